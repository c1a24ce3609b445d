/* NestedProduct and WidthProduct: products of rows of several widths; weights are packed at the first call. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "operators.h"

enum { Q, ROWS_BY_WIDTH, FIRST_WEIGHT };

static pthread_mutex_t packing = PTHREAD_MUTEX_INITIALIZER;

static int64_t tokens_per_row_of(const Shape *shape) {
    int64_t tokens = 1;
    for (size_t i = 1; i + 1 < shape->rank; i++) tokens *= shape->dims[i];
    return tokens;
}

OrtStatus *fenhe_read_widths(const OrtApi *api, const OrtKernelContext *context, size_t index, const Shape *shape,
                             int64_t num_widths, Widths *widths) {
    Shape rows_shape;
    TRY(fenhe_input(api, context, index, &widths->rows, &rows_shape));
    if (shape->rank < 2) return fenhe_refuse(api, "fenhe: what has rows of several widths must be [batch, .., width]");
    if (num_widths < 1 || num_widths > MAX_WIDTHS) return fenhe_refuse(api, "fenhe: there must be 1 to 8 widths");
    if (rows_shape.rank != 1 || rows_shape.dims[0] != num_widths)
        return fenhe_refuse(api, "fenhe: rows_by_width must have one value per width");
    for (int64_t i = 0, least = 0; i < num_widths; least = widths->rows[i++])
        if (widths->rows[i] < least) return fenhe_refuse(api, "fenhe: rows_by_width must never fall");
    if (widths->rows[num_widths - 1] != shape->dims[0])
        return fenhe_refuse(api, "fenhe: rows_by_width must end with the batch");
    widths->num_widths = num_widths, widths->tokens_per_row = tokens_per_row_of(shape);
    return NULL;
}

typedef struct {
    const int8_t *values; /* [depth,width]; null where it is left out */
    const float *scales;
    int64_t depth, width;
} Matrix;

static OrtStatus *read_matrix(const OrtApi *api, const OrtKernelContext *context, int64_t index, Matrix *matrix) {
    Shape shape = {0}, scales_shape = {0};
    size_t port = FIRST_WEIGHT + 2 * (size_t)index;
    TRY(fenhe_input(api, context, port, &matrix->values, &shape));
    TRY(fenhe_input(api, context, port + 1, &matrix->scales, &scales_shape));
    if (matrix->values == NULL) return NULL;
    if (shape.rank != 2 || shape.dims[0] % 4 != 0)
        return fenhe_refuse(api, "fenhe: a weight must be [depth, width] with a depth divisible by 4");
    if (matrix->scales == NULL || scales_shape.rank != 1 || scales_shape.dims[0] != shape.dims[1])
        return fenhe_refuse(api, "fenhe: a weight's column_scale must be [width]");
    matrix->depth = shape.dims[0], matrix->width = shape.dims[1];
    return NULL;
}

static OrtStatus *read_matrices(const OrtApi *api, const OrtKernelContext *context, int64_t num_widths, Matrix *matrices) {
    Matrix further = {0};
    for (int64_t i = 0; i < num_widths; i++) TRY(read_matrix(api, context, i, &matrices[i]));
    if (num_widths < MAX_WIDTHS) TRY(read_matrix(api, context, num_widths, &further));
    return further.values == NULL ? NULL : fenhe_refuse(api, "fenhe: more weights than rows_by_width has widths");
}

static OrtStatus *pack_matrix(const OrtApi *api, const OrtKernelContext *context, PackedWeight *packed, int64_t first,
                              const Matrix *matrix) {
    return fenhe_pack_columns(api, context, packed, first, matrix->values, matrix->width, matrix->scales);
}

/* Input q and its widths, of which the weights say how many there are. */
static OrtStatus *read_rows(const OrtApi *api, const OrtKernelContext *context, int64_t num_widths, int64_t depth,
                            ProductJob *job, Shape *shape, Widths *widths) {
    TRY(fenhe_input(api, context, Q, &job->x, shape));
    TRY(fenhe_read_widths(api, context, ROWS_BY_WIDTH, shape, num_widths, widths));
    job->x_stride = shape->dims[shape->rank - 1];
    return job->x_stride == depth ? NULL : fenhe_refuse(api, "fenhe: q must be as wide as the first weight is deep");
}

/* `job` with the rows of the batch from `first` to `end`. */
static ProductJob with_rows(ProductJob job, const Widths *widths, int64_t first, int64_t end) {
    int64_t token = first * widths->tokens_per_row;
    job.num_rows = end * widths->tokens_per_row - token;
    job.x += token * job.x_stride, job.product += token * job.product_stride;
    return job;
}

static int64_t rows_given(const OrtApi *api, const OrtKernelContext *context, OrtStatus **status) {
    Shape shape = {0};
    const int32_t *rows;
    *status = fenhe_input(api, context, ROWS_BY_WIDTH, &rows, &shape);
    if (*status == NULL && (shape.rank != 1 || shape.dims[0] < 1 || shape.dims[0] > MAX_WIDTHS))
        *status = fenhe_refuse(api, "fenhe: rows_by_width must have one value per width, 1 to 8");
    return shape.dims[0];
}

/* NestedProduct: a matrix per block of neurons, the block that all rows run first. */

/* A width that has no more neurons than the next narrower one leaves its weight out. */
static OrtStatus *find_blocks(const OrtApi *api, const OrtKernelContext *context, NestedProductState *state, Matrix *blocks) {
    OrtStatus *status;
    int64_t width = 0, num_blocks = rows_given(api, context, &status);
    if (status != NULL) return status;
    TRY(read_matrices(api, context, num_blocks, blocks));
    for (int64_t i = 0; i < num_blocks; i++) {
        if (blocks[i].values != NULL && blocks[i].depth != blocks[0].depth)
            return fenhe_refuse(api, "NestedProduct: weights must be of one depth");
        if (blocks[i].values != NULL && width % PANEL)
            return fenhe_refuse(api, "NestedProduct: weights but the last must be a multiple of 32 wide");
        state->ends[i] = width += blocks[i].values == NULL ? 0 : blocks[i].width;
    }
    TRY(fenhe_make_packed(api, blocks[0].depth, width, &state->weight));
    state->num_blocks = num_blocks;
    return NULL;
}

static OrtStatus *prepare_nested(const OrtApi *api, const OrtKernelContext *context, NestedProductState *state) {
    Matrix blocks[MAX_WIDTHS];
    TRY(find_blocks(api, context, state, blocks));
    OrtStatus *status = NULL;
    for (int64_t i = 0; i < state->num_blocks && status == NULL; i++)
        if (blocks[i].values != NULL)
            status = pack_matrix(api, context, &state->weight, state->ends[i] - blocks[i].width, &blocks[i]);
    if (status != NULL) fenhe_release_packed(&state->weight), state->num_blocks = 0;
    return status;
}

/* Neighbouring blocks that the same rows run are one product. */
static size_t cut_nested(const NestedProductState *state, const Widths *widths, ProductJob job, ProductJob *jobs) {
    size_t count = 0;
    int64_t num_blocks = state->num_blocks, start = 0;
    for (int64_t i = 0; i < num_blocks; i++) {
        int32_t rows = widths->rows[num_blocks - 1 - i];
        if (i + 1 < num_blocks && widths->rows[num_blocks - 2 - i] == rows) continue;
        ProductJob part = fenhe_product_of(&state->weight, start, state->ends[i], with_rows(job, widths, 0, rows));
        part.product += start;
        if (part.num_rows > 0 && part.width > 0) jobs[count++] = part;
        start = state->ends[i];
    }
    return count;
}

static OrtStatus *compute_nested(const OrtApi *api, OrtKernelContext *context, const void *attributes) {
    NestedProductState *state = &((Attributes *)attributes)->nested_product;
    pthread_mutex_lock(&packing);
    OrtStatus *status = state->num_blocks == 0 ? prepare_nested(api, context, state) : NULL;
    pthread_mutex_unlock(&packing);
    if (status != NULL) return status;
    ProductJob job = {.product_stride = state->weight.width}, jobs[MAX_WIDTHS];
    Shape shape;
    Widths widths;
    TRY(read_rows(api, context, state->num_blocks, state->weight.depth, &job, &shape, &widths));
    shape.dims[shape.rank - 1] = job.product_stride;
    TRY(fenhe_output(api, context, 0, shape, &job.product));
    return fenhe_run_products(api, context, jobs, cut_nested(state, &widths, job, jobs));
}

static void release_nested(void *attributes) { fenhe_release_packed(&((Attributes *)attributes)->nested_product.weight); }

/* WidthProduct: a matrix per width, which reads the first values of that width's rows. */

static void release_width(void *attributes) {
    WidthProductState *state = &((Attributes *)attributes)->width_product;
    for (size_t i = 0; i < MAX_WIDTHS; i++) fenhe_release_packed(&state->weights[i]);
}

static const char *find_matrices_problem(const Matrix *matrices, int64_t num_widths) {
    for (int64_t i = 1; i < num_widths; i++)
        if (matrices[i].values != NULL && (matrices[i].width != matrices[0].width || matrices[i].depth > matrices[0].depth))
            return "WidthProduct: weights must be as wide as the first and no deeper";
    return NULL;
}

static int is_same(const Matrix *one, const Matrix *other) {
    size_t size = (size_t)(one->depth * one->width);
    return one->depth == other->depth && one->values != NULL && other->values != NULL &&
           memcmp(one->scales, other->scales, (size_t)one->width * sizeof(float)) == 0 &&
           memcmp(one->values, other->values, size) == 0;
}

/* The width whose matrix rows of width `i` meet: widths that were trained together often share one, read once for both. */
static int64_t matrix_of(const Matrix *matrices, int64_t i) {
    if (matrices[i].values == NULL) return 0;
    int64_t first = 0;
    while (first < i && !is_same(&matrices[first], &matrices[i])) first++;
    return first;
}

static OrtStatus *pack_matrices(const OrtApi *api, const OrtKernelContext *context, const Matrix *matrices,
                                int64_t num_widths, WidthProductState *state) {
    for (int64_t i = 0; i < num_widths; i++) {
        state->matrix_of[i] = matrix_of(matrices, i);
        if (state->matrix_of[i] != i) continue;
        TRY(fenhe_make_packed(api, matrices[i].depth, matrices[i].width, &state->weights[i]));
        TRY(pack_matrix(api, context, &state->weights[i], 0, &matrices[i]));
    }
    return NULL;
}

static OrtStatus *prepare_width(const OrtApi *api, const OrtKernelContext *context, WidthProductState *state) {
    Matrix matrices[MAX_WIDTHS];
    OrtStatus *status;
    int64_t num_widths = rows_given(api, context, &status);
    if (status != NULL) return status;
    TRY(read_matrices(api, context, num_widths, matrices));
    const char *problem = find_matrices_problem(matrices, num_widths);
    if (problem != NULL) return fenhe_refuse(api, problem);
    status = pack_matrices(api, context, matrices, num_widths, state);
    if (status != NULL) release_width(state);
    else state->num_widths = num_widths;
    return status;
}

static const PackedWeight *weight_of(const WidthProductState *state, int64_t width) {
    return &state->weights[state->matrix_of[width]];
}

/* Neighbouring widths with one matrix are one product. */
static size_t cut_widths(const WidthProductState *state, const Widths *widths, ProductJob job, ProductJob *jobs) {
    size_t count = 0;
    int64_t first = 0;
    for (int64_t i = 0; i < state->num_widths; i++) {
        const PackedWeight *weight = weight_of(state, i);
        if (i + 1 < state->num_widths && weight_of(state, i + 1) == weight) continue;
        if (widths->rows[i] > first)
            jobs[count++] = fenhe_product_of(weight, 0, weight->width, with_rows(job, widths, first, widths->rows[i]));
        first = widths->rows[i];
    }
    return count;
}

static OrtStatus *compute_width(const OrtApi *api, OrtKernelContext *context, const void *attributes) {
    WidthProductState *state = &((Attributes *)attributes)->width_product;
    pthread_mutex_lock(&packing);
    OrtStatus *status = state->num_widths == 0 ? prepare_width(api, context, state) : NULL;
    pthread_mutex_unlock(&packing);
    if (status != NULL) return status;
    ProductJob job = {.product_stride = state->weights[0].width}, jobs[MAX_WIDTHS];
    Shape shape;
    Widths widths;
    TRY(read_rows(api, context, state->num_widths, state->weights[0].depth, &job, &shape, &widths));
    shape.dims[shape.rank - 1] = job.product_stride;
    TRY(fenhe_output(api, context, 0, shape, &job.product));
    return fenhe_run_products(api, context, jobs, cut_widths(state, &widths, job, jobs));
}

#define ALL_WEIGHTS ORT_INT8, ORT_FLOAT, ORT_INT8, ORT_FLOAT, ORT_INT8, ORT_FLOAT, ORT_INT8, ORT_FLOAT, \
                    ORT_INT8, ORT_FLOAT, ORT_INT8, ORT_FLOAT, ORT_INT8, ORT_FLOAT, ORT_INT8, ORT_FLOAT

const OperatorSpec fenhe_nested_product = {
    /* q, rows_by_width, weight, column_scale, and these two again per further block -> product */
    .name = "NestedProduct",
    .num_inputs = MAX_PORTS, .num_required = 4, .input_types = {ORT_UINT8, ORT_INT32, ALL_WEIGHTS},
    .num_outputs = 1, .num_required_outputs = 1, .output_types = {ORT_FLOAT},
    .compute = compute_nested,
    .release = release_nested,
};

const OperatorSpec fenhe_width_product = {
    /* q, rows_by_width, weight, column_scale, and these two again per narrower width, or neither -> product */
    .name = "WidthProduct",
    .num_inputs = MAX_PORTS, .num_required = 4, .input_types = {ORT_UINT8, ORT_INT32, ALL_WEIGHTS},
    .num_outputs = 1, .num_required_outputs = 1, .output_types = {ORT_FLOAT},
    .compute = compute_width,
    .release = release_width,
};
