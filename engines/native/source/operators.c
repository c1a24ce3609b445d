/* Registers the operators of the domain `fenhe` with ONNX Runtime, and reads and makes their tensors. */
#include "operators.h"

#include <pthread.h>
#include <stdlib.h>

#define NUM_OPERATORS_MAX 16
#define WORTH_WAKING_NS 3000

typedef struct {
    OrtCustomOp base;
    const OperatorSpec *spec;
} Operator;

typedef struct {
    const OrtApi *api;
    const OperatorSpec *spec;
    Attributes attributes;
} Kernel;

OrtStatus *fenhe_refuse(const OrtApi *api, const char *message) {
    return ORT(api, CreateStatus)(ORT_INVALID_ARGUMENT, message);
}

static OrtStatus *read_shape(const OrtApi *api, const OrtValue *value, Shape *shape) {
    OrtTensorInfo *info;
    TRY(ORT(api, GetTensorTypeAndShape)(value, &info));
    OrtStatus *status = ORT(api, GetDimensionsCount)(info, &shape->rank);
    if (status == NULL && shape->rank > MAX_RANK) status = fenhe_refuse(api, "fenhe: a tensor of more than 4 dimensions");
    if (status == NULL) status = ORT(api, GetDimensions)(info, shape->dims, shape->rank);
    ORT(api, ReleaseTensorTypeAndShapeInfo)(info);
    return status;
}

OrtStatus *fenhe_input(const OrtApi *api, const OrtKernelContext *context, size_t index, void *data_out, Shape *shape) {
    void **data = data_out;
    size_t count;
    const OrtValue *value = NULL;
    *data = NULL;
    TRY(ORT(api, KernelContext_GetInputCount)(context, &count));
    if (index < count) TRY(ORT(api, KernelContext_GetInput)(context, index, &value));
    if (value == NULL) return NULL;
    if (shape != NULL) TRY(read_shape(api, value, shape));
    return ORT(api, GetTensorMutableData)((OrtValue *)value, data);
}

OrtStatus *fenhe_output(const OrtApi *api, OrtKernelContext *context, size_t index, Shape shape, void *data_out) {
    void **data = data_out;
    size_t count;
    OrtValue *value = NULL;
    *data = NULL;
    TRY(ORT(api, KernelContext_GetOutputCount)(context, &count));
    if (index < count) TRY(ORT(api, KernelContext_GetOutput)(context, index, shape.dims, shape.rank, &value));
    return value == NULL ? NULL : ORT(api, GetTensorMutableData)(value, data);
}

OrtStatus *fenhe_run(const OrtApi *api, const OrtKernelContext *context, void (*work)(void *, size_t), size_t count,
                     size_t num_batches, int64_t cost, void *job) {
    if (count > 1 && cost > WORTH_WAKING_NS)
        return ORT(api, KernelContext_ParallelFor)(context, work, count, num_batches, job);
    for (size_t i = 0; i < count; i++) work(job, i);
    return NULL;
}

static const OperatorSpec *spec_of(const OrtCustomOp *op) { return ((const Operator *)op)->spec; }
static const char *name_of(const OrtCustomOp *op) { return spec_of(op)->name; }
static const char *provider_of(const OrtCustomOp *op) { return (void)op, NULL; } /* null: the CPU */
static int input_type(const OrtCustomOp *op, size_t i) { return spec_of(op)->input_types[i]; }
static int output_type(const OrtCustomOp *op, size_t i) { return spec_of(op)->output_types[i]; }
static size_t num_inputs(const OrtCustomOp *op) { return spec_of(op)->num_inputs; }
static size_t num_outputs(const OrtCustomOp *op) { return spec_of(op)->num_outputs; }
static int input_kind(const OrtCustomOp *op, size_t i) {
    return i < spec_of(op)->num_required ? ORT_REQUIRED : ORT_OPTIONAL;
}
static int output_kind(const OrtCustomOp *op, size_t i) {
    return i < spec_of(op)->num_required_outputs ? ORT_REQUIRED : ORT_OPTIONAL;
}
static int default_memory(const OrtCustomOp *op, size_t i) { return (void)op, (void)i, 0; }
static int one(const OrtCustomOp *op) { return (void)op, 1; }
static void release_pair(int *a, int *b) { free(a), free(b); }
static size_t no_pairs(int **a, int **b) { return *a = *b = NULL, 0; }

static OrtStatus *create_kernel(const OrtCustomOp *op, const OrtApi *api, const OrtKernelInfo *info, void **out) {
    Kernel *kernel = calloc(1, sizeof *kernel);
    if (kernel == NULL) return ORT(api, CreateStatus)(ORT_FAIL, "fenhe: out of memory");
    kernel->api = api;
    kernel->spec = spec_of(op);
    OrtStatus *status = NULL;
    if (kernel->spec->read_attributes != NULL) status = kernel->spec->read_attributes(api, info, &kernel->attributes);
    if (status != NULL) free(kernel);
    else *out = kernel;
    return status;
}

static OrtStatus *compute(void *data, OrtKernelContext *context) {
    const Kernel *kernel = data;
    return kernel->spec->compute(kernel->api, context, &kernel->attributes);
}

static void destroy(void *data) {
    Kernel *kernel = data;
    if (kernel->spec->release != NULL) kernel->spec->release(&kernel->attributes);
    free(kernel);
}

static Operator make_operator(const OperatorSpec *spec) {
    return (Operator){
        .spec = spec,
        .base = {.version = FENHE_ORT_API_VERSION,
                 .GetName = name_of,
                 .GetExecutionProviderType = provider_of,
                 .GetInputType = input_type,
                 .GetInputTypeCount = num_inputs,
                 .GetOutputType = output_type,
                 .GetOutputTypeCount = num_outputs,
                 .KernelDestroy = destroy,
                 .GetInputCharacteristic = input_kind,
                 .GetOutputCharacteristic = output_kind,
                 .GetInputMemoryType = default_memory,
                 .GetVariadicInputMinArity = one,
                 .GetVariadicInputHomogeneity = one,
                 .GetVariadicOutputMinArity = one,
                 .GetVariadicOutputHomogeneity = one,
                 .CreateKernelV2 = create_kernel,
                 .KernelComputeV2 = compute,
                 .GetStartVersion = one,
                 .GetEndVersion = one,
                 .GetMayInplace = spec->may_inplace != NULL ? spec->may_inplace : no_pairs,
                 .ReleaseMayInplace = release_pair,
                 .GetAliasMap = no_pairs,
                 .ReleaseAliasMap = release_pair},
    };
}

/* Made once: sessions may be created on several threads, and ONNX Runtime keeps the addresses. */
static OrtStatus *make_domain(const OrtApi *api, OrtCustomOpDomain **out) {
    static Operator operators[NUM_OPERATORS_MAX];
    static OrtCustomOpDomain *domain;
    const OperatorSpec *const others[] = {&fenhe_slot_attention, &fenhe_quantized_product, &fenhe_candidate_logits,
                                          &fenhe_nested_product, &fenhe_width_product, &fenhe_block_attention,
                                          &fenhe_block_product};
    const size_t num_others = sizeof others / sizeof *others, count = num_others + fenhe_num_row_operators;
    if (count > NUM_OPERATORS_MAX) return fenhe_refuse(api, "fenhe: more operators than NUM_OPERATORS_MAX; raise it");
    if (domain == NULL) {
        OrtCustomOpDomain *made;
        TRY(ORT(api, CreateCustomOpDomain)("fenhe", &made));
        for (size_t i = 0; i < count; i++) {
            operators[i] = make_operator(i < num_others ? others[i] : &fenhe_row_operators[i - num_others]);
            TRY(ORT(api, CustomOpDomain_Add)(made, &operators[i].base));
        }
        domain = made;
    }
    *out = domain;
    return NULL;
}

/* The entry point that SessionOptions.register_custom_ops_library looks for. */
EXPORTED OrtStatus *RegisterCustomOps(OrtSessionOptions *options, const OrtApiBase *base) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    const OrtApi *api = base->GetApi(FENHE_ORT_API_VERSION);
    if (api == NULL) return fenhe_refuse(base->GetApi(1), "fenhe: needs onnxruntime 1.18 or newer");
    OrtCustomOpDomain *domain;
    pthread_mutex_lock(&lock);
    OrtStatus *status = make_domain(api, &domain);
    pthread_mutex_unlock(&lock);
    return status != NULL ? status : ORT(api, AddCustomOpDomain)(options, domain);
}
