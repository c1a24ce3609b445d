/* SkipRmsNorm, SkipRmsNormQuantize, ScaleAdd, SwigluQuantize, NestedSwigluQuantize, QuantizeRows: checks, outputs, and one
 * item per token. */
#include <stdlib.h>

#include "operators.h"

#define MAX_ROW_WIDTH 65536 /* SwiGLU keeps one row on a thread's stack */
#define VALUES_PER_NS 8     /* rough, to judge whether waking threads pays */

static int64_t num_tokens_of(const Shape *shape) {
    int64_t tokens = 1;
    for (size_t i = 0; i + 1 < shape->rank; i++) tokens *= shape->dims[i];
    return tokens;
}

static Shape per_token(Shape shape) {
    shape.dims[shape.rank - 1] = 1;
    return shape;
}

static int is_same(const Shape *a, const Shape *b) {
    if (a->rank != b->rank) return 0;
    for (size_t i = 0; i < a->rank; i++)
        if (a->dims[i] != b->dims[i]) return 0;
    return 1;
}

static int is_count(const Shape *shape, int64_t count) {
    int64_t all = 1;
    for (size_t i = 0; i < shape->rank; i++) all *= shape->dims[i];
    return all == count;
}

static OrtStatus *run_rows(const OrtApi *api, OrtKernelContext *context, void (*row)(void *, size_t), RowJob *job,
                           int64_t tokens) {
    return fenhe_run(api, context, row, (size_t)tokens, 0, tokens * job->width / VALUES_PER_NS, job);
}

static OrtStatus *read_x(const OrtApi *api, OrtKernelContext *context, RowJob *job, Shape *shape) {
    TRY(fenhe_input(api, context, 0, &job->x, shape));
    if (shape->rank < 1) return fenhe_refuse(api, "fenhe: the first input must have at least one dimension");
    job->width = shape->dims[shape->rank - 1];
    return job->width > MAX_ROW_WIDTH ? fenhe_refuse(api, "fenhe: rows of more than 65536 values") : NULL;
}

/* Inputs `index` (skip) and `index + 1` (its row scale). */
static OrtStatus *read_skip(const OrtApi *api, OrtKernelContext *context, size_t index, RowJob *job, const Shape *x) {
    Shape shape, scale_shape;
    TRY(fenhe_input(api, context, index, &job->skip, &shape));
    TRY(fenhe_input(api, context, index + 1, &job->skip_scale, &scale_shape));
    if (job->skip && !is_same(&shape, x)) return fenhe_refuse(api, "fenhe: skip must have the shape of x");
    if (job->skip_scale && !is_count(&scale_shape, num_tokens_of(x)))
        return fenhe_refuse(api, "fenhe: skip_row_scale must have one value per row");
    return NULL;
}

static OrtStatus *quantized_outputs(const OrtApi *api, OrtKernelContext *context, RowJob *job, Shape shape) {
    TRY(fenhe_output(api, context, 0, shape, &job->q));
    return fenhe_output(api, context, 1, per_token(shape), &job->row_scale);
}

OrtStatus *fenhe_block_outputs(const OrtApi *api, OrtKernelContext *context, Shape shape, uint8_t **q, float **scales,
                               int32_t **sums) {
    int64_t width = shape.dims[shape.rank - 1];
    if (width % BLOCK != 0) return fenhe_refuse(api, "fenhe: rows in blocks must be a multiple of 32 wide");
    TRY(fenhe_output(api, context, 0, shape, q));
    shape.dims[shape.rank - 1] = width / BLOCK;
    TRY(fenhe_output(api, context, 1, shape, scales));
    shape.dims[shape.rank - 1] = 2 * width / BLOCK;
    return fenhe_output(api, context, 2, shape, sums);
}

/* The sum is needed even when the graph does not ask for it: the norm reads it. */
static OrtStatus *run_norm(const OrtApi *api, OrtKernelContext *context, RowJob *job, int64_t tokens) {
    if (job->skip == NULL || job->sum != NULL) return run_rows(api, context, fenhe_kernels()->norm_row, job, tokens);
    float *sum = malloc((size_t)(tokens * job->width) * sizeof *sum);
    if (sum == NULL) return ORT(api, CreateStatus)(ORT_FAIL, "fenhe: out of memory");
    job->sum = sum;
    OrtStatus *status = run_rows(api, context, fenhe_kernels()->norm_row, job, tokens);
    free(sum);
    return status;
}

enum { FLOATS, ROWS, BLOCKS }; /* how a row operator gives its result */

static OrtStatus *compute_norm(const OrtApi *api, OrtKernelContext *context, const void *attributes, int result) {
    RowJob job = {.epsilon = ((const NormAttributes *)attributes)->epsilon};
    Shape shape, gamma_shape;
    TRY(read_x(api, context, &job, &shape));
    TRY(fenhe_input(api, context, 1, &job.gamma, &gamma_shape));
    if (!is_count(&gamma_shape, job.width)) return fenhe_refuse(api, "fenhe: gamma must be as wide as x");
    TRY(read_skip(api, context, 2, &job, &shape));
    if (result == BLOCKS) TRY(fenhe_block_outputs(api, context, shape, &job.q, &job.row_scale, &job.block_sums));
    else if (result == ROWS) TRY(quantized_outputs(api, context, &job, shape));
    else TRY(fenhe_output(api, context, 0, shape, &job.normed));
    TRY(fenhe_output(api, context, result == BLOCKS ? 3 : result == ROWS ? 2 : 1, shape, &job.sum));
    return run_norm(api, context, &job, num_tokens_of(&shape));
}

static OrtStatus *compute_norm_float(const OrtApi *api, OrtKernelContext *context, const void *attributes) {
    return compute_norm(api, context, attributes, FLOATS);
}

static OrtStatus *compute_norm_quantized(const OrtApi *api, OrtKernelContext *context, const void *attributes) {
    return compute_norm(api, context, attributes, ROWS);
}

static OrtStatus *compute_norm_blocks(const OrtApi *api, OrtKernelContext *context, const void *attributes) {
    return compute_norm(api, context, attributes, BLOCKS);
}

static OrtStatus *compute_scale_add(const OrtApi *api, OrtKernelContext *context, const void *attributes) {
    (void)attributes;
    RowJob job = {0};
    Shape shape;
    TRY(read_x(api, context, &job, &shape));
    TRY(read_skip(api, context, 1, &job, &shape));
    TRY(fenhe_output(api, context, 0, shape, &job.sum));
    return run_rows(api, context, fenhe_kernels()->add_row, &job, num_tokens_of(&shape));
}

static OrtStatus *run_swiglu(const OrtApi *api, OrtKernelContext *context, RowJob *job, Shape gate_up) {
    Shape shape = gate_up, scale_shape;
    shape.dims[shape.rank - 1] = job->width /= 2;
    TRY(fenhe_input(api, context, 1, &job->scale, &scale_shape));
    if (!is_count(&scale_shape, num_tokens_of(&shape)))
        return fenhe_refuse(api, "fenhe: row_scale must have one value per row");
    TRY(quantized_outputs(api, context, job, shape));
    return run_rows(api, context, fenhe_kernels()->swiglu_row, job, num_tokens_of(&shape));
}

static OrtStatus *compute_swiglu(const OrtApi *api, OrtKernelContext *context, const void *attributes) {
    int64_t parts = ((const SwigluAttributes *)attributes)->parts;
    RowJob job = {0};
    Shape shape;
    TRY(read_x(api, context, &job, &shape));
    if (job.width % (2 * parts)) return fenhe_refuse(api, "fenhe: gate_up must be 2 * hadamard_parts * n wide");
    int32_t neurons = (int32_t)(job.width / 2), num_parts = (int32_t)parts;
    job.widths = (Widths){.num_widths = 1, .tokens_per_row = 1, .neurons = &neurons};
    job.parts = &num_parts;
    return run_swiglu(api, context, &job, shape);
}

static const char *find_neurons_problem(const RowJob *job) {
    for (int64_t i = 0; i < job->widths.num_widths; i++) {
        int32_t neurons = job->widths.neurons[i], parts = job->parts[i];
        if (i == 0 ? 2 * neurons != job->width : neurons < 1 || neurons > job->widths.neurons[i - 1])
            return "NestedSwigluQuantize: neurons must begin with all of gate_up's and never rise";
        if (parts < 1 || (parts & (parts - 1)) || neurons % parts)
            return "NestedSwigluQuantize: hadamard_parts must be powers of two that divide the neurons";
    }
    return NULL;
}

static OrtStatus *compute_nested_swiglu(const OrtApi *api, OrtKernelContext *context, const void *attributes) {
    (void)attributes;
    RowJob job = {0};
    Shape shape, neurons_shape, parts_shape;
    TRY(read_x(api, context, &job, &shape));
    TRY(fenhe_input(api, context, 3, &job.widths.neurons, &neurons_shape));
    TRY(fenhe_input(api, context, 4, &job.parts, &parts_shape));
    if (neurons_shape.rank != 1 || !is_same(&neurons_shape, &parts_shape))
        return fenhe_refuse(api, "NestedSwigluQuantize: neurons and hadamard_parts must have one value per width");
    TRY(fenhe_read_widths(api, context, 2, &shape, neurons_shape.dims[0], &job.widths));
    const char *problem = find_neurons_problem(&job);
    return problem != NULL ? fenhe_refuse(api, problem) : run_swiglu(api, context, &job, shape);
}

static OrtStatus *compute_quantize(const OrtApi *api, OrtKernelContext *context, const void *attributes) {
    (void)attributes;
    RowJob job = {0};
    Shape shape;
    TRY(read_x(api, context, &job, &shape));
    TRY(quantized_outputs(api, context, &job, shape));
    return run_rows(api, context, fenhe_kernels()->quantize_row, &job, num_tokens_of(&shape));
}

static OrtStatus *compute_quantize_blocks(const OrtApi *api, OrtKernelContext *context, const void *attributes) {
    (void)attributes;
    RowJob job = {0};
    Shape shape;
    TRY(read_x(api, context, &job, &shape));
    TRY(fenhe_block_outputs(api, context, shape, &job.q, &job.row_scale, &job.block_sums));
    return run_rows(api, context, fenhe_kernels()->quantize_row, &job, num_tokens_of(&shape));
}

static OrtStatus *compute_swiglu_blocks(const OrtApi *api, OrtKernelContext *context, const void *attributes) {
    (void)attributes;
    RowJob job = {0};
    Shape shape;
    TRY(read_x(api, context, &job, &shape));
    if (job.width % (2 * BLOCK)) return fenhe_refuse(api, "SwigluQuantizeBlocks: gate_up must be a multiple of 64 wide");
    shape.dims[shape.rank - 1] = job.width /= 2;
    int32_t neurons = (int32_t)job.width, num_parts = 1;
    job.widths = (Widths){.num_widths = 1, .tokens_per_row = 1, .neurons = &neurons};
    job.parts = &num_parts;
    TRY(fenhe_block_outputs(api, context, shape, &job.q, &job.row_scale, &job.block_sums));
    return run_rows(api, context, fenhe_kernels()->swiglu_row, &job, num_tokens_of(&shape));
}

static OrtStatus *read_epsilon(const OrtApi *api, const OrtKernelInfo *info, void *attributes) {
    return ORT(api, KernelInfoGetAttribute_float)(info, "epsilon", &((NormAttributes *)attributes)->epsilon);
}

static OrtStatus *read_parts(const OrtApi *api, const OrtKernelInfo *info, void *attributes) {
    int64_t *parts = &((SwigluAttributes *)attributes)->parts;
    TRY(ORT(api, KernelInfoGetAttribute_int64)(info, "hadamard_parts", parts));
    if (*parts < 1 || (*parts & (*parts - 1))) return fenhe_refuse(api, "fenhe: hadamard_parts must be a power of two");
    return NULL;
}

/* x may become the sum where nobody else reads x. */
static size_t sum_over_x(int **inputs, int **outputs, int sum_index) {
    *inputs = malloc(sizeof **inputs), *outputs = malloc(sizeof **outputs);
    if (*inputs == NULL || *outputs == NULL) return 0;
    **inputs = 0, **outputs = sum_index;
    return 1;
}
static size_t sum_over_x_0(int **inputs, int **outputs) { return sum_over_x(inputs, outputs, 0); }
static size_t sum_over_x_1(int **inputs, int **outputs) { return sum_over_x(inputs, outputs, 1); }
static size_t sum_over_x_2(int **inputs, int **outputs) { return sum_over_x(inputs, outputs, 2); }
static size_t sum_over_x_3(int **inputs, int **outputs) { return sum_over_x(inputs, outputs, 3); }

const OperatorSpec fenhe_row_operators[] = {
    {.name = "SkipRmsNormQuantize", /* x, gamma, skip?, skip_row_scale? -> q, row_scale, sum? */
     .num_inputs = 4, .num_required = 2, .input_types = {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT},
     .num_outputs = 3, .num_required_outputs = 2, .output_types = {ORT_UINT8, ORT_FLOAT, ORT_FLOAT},
     .read_attributes = read_epsilon, .compute = compute_norm_quantized, .may_inplace = sum_over_x_2},
    {.name = "SkipRmsNorm", /* x, gamma, skip?, skip_row_scale? -> normed, sum? */
     .num_inputs = 4, .num_required = 2, .input_types = {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT},
     .num_outputs = 2, .num_required_outputs = 1, .output_types = {ORT_FLOAT, ORT_FLOAT},
     .read_attributes = read_epsilon, .compute = compute_norm_float, .may_inplace = sum_over_x_1},
    {.name = "ScaleAdd", /* x, skip, skip_row_scale? -> sum */
     .num_inputs = 3, .num_required = 2, .input_types = {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT},
     .num_outputs = 1, .num_required_outputs = 1, .output_types = {ORT_FLOAT},
     .compute = compute_scale_add, .may_inplace = sum_over_x_0},
    {.name = "SwigluQuantize", /* gate_up, row_scale -> q, row_scale */
     .num_inputs = 2, .num_required = 2, .input_types = {ORT_FLOAT, ORT_FLOAT},
     .num_outputs = 2, .num_required_outputs = 2, .output_types = {ORT_UINT8, ORT_FLOAT},
     .read_attributes = read_parts, .compute = compute_swiglu},
    {.name = "NestedSwigluQuantize", /* gate_up, row_scale, rows_by_width, neurons, hadamard_parts -> q, row_scale */
     .num_inputs = 5, .num_required = 5, .input_types = {ORT_FLOAT, ORT_FLOAT, ORT_INT32, ORT_INT32, ORT_INT32},
     .num_outputs = 2, .num_required_outputs = 2, .output_types = {ORT_UINT8, ORT_FLOAT},
     .compute = compute_nested_swiglu},
    {.name = "QuantizeRows", /* x -> q, row_scale */
     .num_inputs = 1, .num_required = 1, .input_types = {ORT_FLOAT},
     .num_outputs = 2, .num_required_outputs = 2, .output_types = {ORT_UINT8, ORT_FLOAT},
     .compute = compute_quantize},
    {.name = "SkipRmsNormQuantizeBlocks", /* x, gamma, skip? -> q, block_scale, block_sums, sum? */
     .num_inputs = 3, .num_required = 2, .input_types = {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT},
     .num_outputs = 4, .num_required_outputs = 3, .output_types = {ORT_INT8, ORT_FLOAT, ORT_INT32, ORT_FLOAT},
     .read_attributes = read_epsilon, .compute = compute_norm_blocks, .may_inplace = sum_over_x_3},
    {.name = "SwigluQuantizeBlocks", /* gate_up -> q, block_scale, block_sums */
     .num_inputs = 1, .num_required = 1, .input_types = {ORT_FLOAT},
     .num_outputs = 3, .num_required_outputs = 3, .output_types = {ORT_INT8, ORT_FLOAT, ORT_INT32},
     .compute = compute_swiglu_blocks},
    {.name = "QuantizeBlocks", /* x -> q, block_scale, block_sums */
     .num_inputs = 1, .num_required = 1, .input_types = {ORT_FLOAT},
     .num_outputs = 3, .num_required_outputs = 3, .output_types = {ORT_INT8, ORT_FLOAT, ORT_INT32},
     .compute = compute_quantize_blocks},
};
const size_t fenhe_num_row_operators = sizeof fenhe_row_operators / sizeof *fenhe_row_operators;
