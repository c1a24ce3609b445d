/* CandidateLogits: checks, and the preview and the frequent tokens' rows packed at the first call. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "operators.h"

#define NS_PER_ROW 20000 /* rough, to judge whether waking threads pays */
#define BYTES_SUMMED_PER_NS 4 /* the same */
#define ROWS_SUMMED_AT_ONCE 1024

enum { X, X_SCALE, P, P_SCALE, PREVIEW, PREVIEW_SCALE, BIAS, ROWS, ROWS_SCALE, FREQUENT, NUM_INPUTS };

typedef struct {
    const void *data[NUM_INPUTS];
    Shape shape[NUM_INPUTS];
} Inputs;

static int64_t num_values(const Shape *shape) {
    int64_t product = 1;
    for (size_t i = 0; i < shape->rank; i++) product *= shape->dims[i];
    return product;
}

static OrtStatus *read_inputs(const OrtApi *api, OrtKernelContext *context, Inputs *inputs) {
    for (size_t i = 0; i < NUM_INPUTS; i++) TRY(fenhe_input(api, context, i, &inputs->data[i], &inputs->shape[i]));
    const Shape *shape = inputs->shape;
    if (shape[ROWS].rank != 2 || shape[PREVIEW].rank != 2 || shape[ROWS].dims[1] % 4 != 0 || shape[PREVIEW].dims[0] % 4 != 0)
        return fenhe_refuse(api, "CandidateLogits: rows [vocab, depth] and preview [rank, vocab] need depths divisible by 4");
    int64_t vocab = shape[ROWS].dims[0];
    if (shape[PREVIEW].dims[1] != vocab || num_values(&shape[PREVIEW_SCALE]) != vocab || num_values(&shape[BIAS]) != vocab ||
        num_values(&shape[ROWS_SCALE]) != vocab)
        return fenhe_refuse(api, "CandidateLogits: preview, scales, bias and rows must have one vocabulary");
    if (shape[X].rank != 2 || shape[P].rank != 2 || shape[X].dims[0] != shape[P].dims[0] ||
        shape[X].dims[1] != shape[ROWS].dims[1] || shape[P].dims[1] != shape[PREVIEW].dims[0])
        return fenhe_refuse(api, "CandidateLogits: x must be [rows, depth] and p [rows, rank]");
    if (num_values(&shape[X_SCALE]) != shape[X].dims[0] || num_values(&shape[P_SCALE]) != shape[P].dims[0])
        return fenhe_refuse(api, "CandidateLogits: x_scale and p_scale must have one value per row");
    return shape[FREQUENT].rank == 1 ? NULL : fenhe_refuse(api, "CandidateLogits: frequent must be a list of token ids");
}

static OrtStatus *pack_preview(const OrtApi *api, const OrtKernelContext *context, const Inputs *inputs,
                               PackedWeight *packed) {
    const Shape *shape = &inputs->shape[PREVIEW];
    const int8_t *values = inputs->data[PREVIEW];
    const float *scales = inputs->data[PREVIEW_SCALE];
    TRY(fenhe_make_packed(api, shape->dims[0], shape->dims[1], packed));
    return fenhe_pack_columns(api, context, packed, 0, values, packed->width, scales);
}

static OrtStatus *pack_frequent(const OrtApi *api, const Inputs *inputs, PackedWeight *packed) {
    int64_t vocab = inputs->shape[ROWS].dims[0], depth = inputs->shape[ROWS].dims[1];
    int64_t num_frequent = inputs->shape[FREQUENT].dims[0];
    const int8_t *rows = inputs->data[ROWS];
    const float *scales = inputs->data[ROWS_SCALE];
    const int32_t *frequent = inputs->data[FREQUENT];
    for (int64_t n = 0; n < num_frequent; n++)
        if (frequent[n] < 0 || frequent[n] >= vocab) return fenhe_refuse(api, "CandidateLogits: a frequent token is none of the vocabulary");
    TRY(fenhe_make_packed(api, depth, num_frequent, packed));
    for (int64_t n = 0; n < num_frequent; n++) fenhe_pack_column(packed, n, rows + frequent[n] * depth, 1, scales[frequent[n]]);
    return NULL;
}

typedef struct {
    int64_t vocab, depth;
    const int8_t *rows;
    int32_t *row_offsets;
} Summing;

static void sum_some_rows(void *data, size_t item) {
    const Summing *summing = data;
    int64_t first = (int64_t)item * ROWS_SUMMED_AT_ONCE, end = first + ROWS_SUMMED_AT_ONCE;
    for (int64_t n = first; n < end && n < summing->vocab; n++) {
        const int8_t *row = summing->rows + n * summing->depth;
        int32_t sum = 0;
        for (int64_t k = 0; k < summing->depth; k++) sum += row[k];
        summing->row_offsets[n] = -128 * sum;
    }
}

static OrtStatus *sum_rows(const OrtApi *api, const OrtKernelContext *context, const Inputs *inputs, CandidateState *state) {
    int64_t vocab = inputs->shape[ROWS].dims[0], depth = inputs->shape[ROWS].dims[1];
    size_t count = (size_t)((vocab + ROWS_SUMMED_AT_ONCE - 1) / ROWS_SUMMED_AT_ONCE);
    state->row_offsets = calloc((size_t)vocab, sizeof *state->row_offsets);
    if (state->row_offsets == NULL) return ORT(api, CreateStatus)(ORT_FAIL, "CandidateLogits: out of memory");
    Summing summing = {.vocab = vocab, .depth = depth, .rows = inputs->data[ROWS], .row_offsets = state->row_offsets};
    return fenhe_run(api, context, sum_some_rows, count, count, vocab * depth / BYTES_SUMMED_PER_NS, &summing);
}

static void release(void *attributes) {
    CandidateState *state = &((Attributes *)attributes)->candidates;
    fenhe_release_packed(&state->preview), fenhe_release_packed(&state->frequent), free(state->row_offsets);
    state->row_offsets = NULL;
}

/* All constants of the graph: what the first call saw stays true. */
static OrtStatus *prepare(const OrtApi *api, const OrtKernelContext *context, const Inputs *inputs,
                          CandidateState *state) {
    if (state->num_candidates > inputs->shape[ROWS].dims[0])
        return fenhe_refuse(api, "CandidateLogits: num_candidates must be at most the vocabulary");
    OrtStatus *status = pack_preview(api, context, inputs, &state->preview);
    if (status == NULL) status = pack_frequent(api, inputs, &state->frequent);
    if (status == NULL) status = sum_rows(api, context, inputs, state);
    if (status != NULL) release(state);
    return status;
}

static OrtStatus *run(const OrtApi *api, OrtKernelContext *context, const Inputs *inputs, const CandidateState *state,
                      float *frequent_logits, int32_t *found, float *logits) {
    int64_t num_rows = inputs->shape[X].dims[0];
    ProductJob preview = {.num_rows = num_rows, .x = inputs->data[P], .row_scale = inputs->data[P_SCALE], .product = logits};
    TRY(fenhe_run_product(api, context, &state->preview, &preview));
    ProductJob frequent = {.num_rows = num_rows, .x = inputs->data[X], .row_scale = inputs->data[X_SCALE],
                           .product = frequent_logits};
    TRY(fenhe_run_product(api, context, &state->frequent, &frequent));
    CandidateJob job = {.depth = inputs->shape[ROWS].dims[1], .vocab = inputs->shape[ROWS].dims[0],
                        .num_frequent = state->frequent.width, .num_candidates = state->num_candidates,
                        .reach = state->reach, .x = inputs->data[X], .x_scale = inputs->data[X_SCALE],
                        .bias = inputs->data[BIAS], .rows = inputs->data[ROWS], .row_scales = inputs->data[ROWS_SCALE],
                        .row_offsets = state->row_offsets, .frequent = inputs->data[FREQUENT],
                        .frequent_logits = frequent_logits, .found = found, .logits = logits};
    return fenhe_run(api, context, fenhe_kernels()->candidate_row, (size_t)num_rows, (size_t)num_rows,
                     num_rows * NS_PER_ROW, &job);
}

static OrtStatus *compute(const OrtApi *api, OrtKernelContext *context, const void *attributes) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    CandidateState *state = &((Attributes *)attributes)->candidates;
    Inputs inputs;
    TRY(read_inputs(api, context, &inputs));
    pthread_mutex_lock(&lock);
    OrtStatus *status = state->row_offsets == NULL ? prepare(api, context, &inputs, state) : NULL;
    pthread_mutex_unlock(&lock);
    if (status != NULL) return status;
    Shape shape = {.rank = 2, .dims = {inputs.shape[X].dims[0], inputs.shape[ROWS].dims[0]}};
    float *logits;
    TRY(fenhe_output(api, context, 0, shape, &logits));
    size_t num_rows = (size_t)shape.dims[0], frequent = (size_t)state->frequent.width;
    float *scratch = malloc(num_rows * (frequent + (size_t)state->num_candidates) * sizeof *scratch + 1);
    if (scratch == NULL) return ORT(api, CreateStatus)(ORT_FAIL, "CandidateLogits: out of memory");
    status = run(api, context, &inputs, state, scratch, (int32_t *)(scratch + num_rows * frequent), logits);
    free(scratch);
    return status;
}

static OrtStatus *read_attributes(const OrtApi *api, const OrtKernelInfo *info, void *attributes) {
    CandidateState *state = &((Attributes *)attributes)->candidates;
    TRY(ORT(api, KernelInfoGetAttribute_int64)(info, "num_candidates", &state->num_candidates));
    TRY(ORT(api, KernelInfoGetAttribute_float)(info, "reach", &state->reach));
    if (state->num_candidates < 1 || !(state->reach > 0))
        return fenhe_refuse(api, "CandidateLogits: num_candidates and reach must be above 0");
    return NULL;
}

const OperatorSpec fenhe_candidate_logits = {
    /* x, x_scale, p, p_scale, preview, preview_scale, bias, rows, rows_scale, frequent -> logits */
    .name = "CandidateLogits",
    .num_inputs = NUM_INPUTS, .num_required = NUM_INPUTS,
    .input_types = {ORT_UINT8, ORT_FLOAT, ORT_UINT8, ORT_FLOAT, ORT_INT8, ORT_FLOAT, ORT_FLOAT, ORT_INT8, ORT_FLOAT, ORT_INT32},
    .num_outputs = 1, .num_required_outputs = 1, .output_types = {ORT_FLOAT},
    .read_attributes = read_attributes,
    .compute = compute,
    .release = release,
};
