/* QuantizedProduct: checks, and the weights packed at the first call; also how several products run as one job. */
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "operators.h"

#define BATCHES_WANTED 16 /* neighbouring panels on one thread stream from memory; enough batches to even out threads */
#define VALUES_PER_NS 128 /* rough, to judge whether waking threads pays */
#define BYTES_PACKED_PER_NS 2 /* the same */

OrtStatus *fenhe_make_packed(const OrtApi *api, int64_t depth, int64_t width, PackedWeight *packed) {
    size_t columns = (size_t)(width + PANEL - 1) / PANEL * PANEL, values = columns * (size_t)depth;
    char *memory = fenhe_take_memory(values + columns * 8, &packed->region);
    if (memory == NULL) return ORT(api, CreateStatus)(ORT_FAIL, "fenhe: out of memory for packed weights");
    packed->depth = depth, packed->width = width;
    packed->values = (int8_t *)memory;
    packed->offsets = (int32_t *)(memory + values);
    packed->scales = (float *)(memory + values + columns * 4);
    return NULL;
}

void fenhe_release_packed(PackedWeight *packed) {
    fenhe_give_memory_back(packed->region);
    packed->region = NULL, packed->values = NULL;
}

void fenhe_pack_column(PackedWeight *packed, int64_t n, const int8_t *values, int64_t stride, float scale) {
    int8_t *panel = packed->values + n / PANEL * packed->depth * PANEL + n % PANEL * 4;
    for (int64_t k = 0; k < packed->depth; k++) {
        panel[k / 4 * 4 * PANEL + k % 4] = values[k * stride];
        packed->offsets[n] -= 128 * values[k * stride];
    }
    packed->scales[n] = scale;
}

typedef struct {
    PackedWeight *packed;
    int64_t first, stride;
    const int8_t *values;
} Packing;

/* The columns of a whole panel together: by itself each would take a cache line of every row for one byte of it. */
static void pack_panel(void *data, size_t item) {
    const Packing *packing = data;
    PackedWeight *packed = packing->packed;
    int64_t column = (int64_t)item * PANEL, first = packing->first + column, stride = packing->stride;
    const int8_t *values = packing->values + column;
    int8_t *panel = packed->values + first * packed->depth;
    int32_t sums[PANEL] = {0};
    for (int64_t k = 0; k < packed->depth; k += 4, values += 4 * stride, panel += 4 * PANEL) {
        const int8_t *row0 = values, *row1 = row0 + stride, *row2 = row1 + stride, *row3 = row2 + stride;
        for (size_t n = 0; n < PANEL; n++) {
            panel[4 * n] = row0[n], panel[4 * n + 1] = row1[n], panel[4 * n + 2] = row2[n], panel[4 * n + 3] = row3[n];
        }
        for (size_t n = 0; n < PANEL; n++) sums[n] += row0[n] + row1[n] + row2[n] + row3[n];
    }
    for (size_t n = 0; n < PANEL; n++) packed->offsets[first + (int64_t)n] = -128 * sums[n];
}

OrtStatus *fenhe_pack_columns(const OrtApi *api, const OrtKernelContext *context, PackedWeight *packed, int64_t first,
                              const int8_t *values, int64_t width, const float *scales) {
    Packing packing = {.packed = packed, .first = first, .stride = width, .values = values};
    size_t panels = first % PANEL == 0 && packed->depth % 4 == 0 ? (size_t)(width / PANEL) : 0;
    size_t batches = panels < BATCHES_WANTED ? panels : BATCHES_WANTED;
    int64_t whole = (int64_t)panels * PANEL;
    TRY(fenhe_run(api, context, pack_panel, panels, batches, whole * packed->depth / BYTES_PACKED_PER_NS, &packing));
    memcpy(packed->scales + first, scales, (size_t)whole * sizeof *scales);
    for (int64_t n = whole; n < width; n++) fenhe_pack_column(packed, first + n, values + n, width, scales[n]);
    return NULL;
}

/* The weight is a constant of the graph: what the first call saw stays true. */
static OrtStatus *prepare(const OrtApi *api, OrtKernelContext *context, PackedWeight *packed) {
    const int8_t *weight;
    const float *scales;
    Shape shape, scales_shape;
    TRY(fenhe_input(api, context, 1, &weight, &shape));
    TRY(fenhe_input(api, context, 2, &scales, &scales_shape));
    if (shape.rank != 2 || shape.dims[0] % 4 != 0)
        return fenhe_refuse(api, "QuantizedProduct: weight must be [depth, width] with a depth divisible by 4");
    if (scales_shape.rank != 1 || scales_shape.dims[0] != shape.dims[1])
        return fenhe_refuse(api, "QuantizedProduct: column_scale must be [width]");
    TRY(fenhe_make_packed(api, shape.dims[0], shape.dims[1], packed));
    OrtStatus *status = fenhe_pack_columns(api, context, packed, 0, weight, packed->width, scales);
    if (status != NULL) fenhe_release_packed(packed);
    return status;
}

ProductJob fenhe_product_of(const PackedWeight *packed, int64_t first, int64_t end, ProductJob job) {
    job.depth = packed->depth, job.width = end - first;
    job.packed = packed->values + first * packed->depth;
    job.offsets = packed->offsets + first, job.column_scale = packed->scales + first;
    return job;
}

static size_t num_panels_of(const ProductJob *job) { return (size_t)(job->width + PANEL - 1) / PANEL; }
static int64_t cost_of(const ProductJob *job) { return job->num_rows * job->depth * job->width / VALUES_PER_NS; }

OrtStatus *fenhe_run_product(const OrtApi *api, const OrtKernelContext *context, const PackedWeight *packed,
                             ProductJob *job) {
    job->x_stride = packed->depth, job->product_stride = packed->width;
    ProductJob whole = fenhe_product_of(packed, 0, packed->width, *job);
    return fenhe_run_products(api, context, &whole, 1);
}

typedef struct {
    void (*panel)(void *job, size_t panel);
    const ProductJob *jobs;
    size_t ends[MAX_WIDTHS]; /* how many panels the jobs up to each have */
} Products;

static void run_panel(void *data, size_t item) {
    const Products *products = data;
    size_t i = 0;
    while (item >= products->ends[i]) i++;
    products->panel((void *)&products->jobs[i], item - (i == 0 ? 0 : products->ends[i - 1]));
}

OrtStatus *fenhe_run_products(const OrtApi *api, const OrtKernelContext *context, const ProductJob *jobs, size_t count) {
    Products products = {.panel = fenhe_kernels()->product_panel, .jobs = jobs};
    size_t panels = 0;
    int64_t cost = 0;
    for (size_t i = 0; i < count; i++) {
        products.ends[i] = panels += num_panels_of(&jobs[i]);
        cost += cost_of(&jobs[i]);
    }
    size_t batches = panels < BATCHES_WANTED ? panels : BATCHES_WANTED;
    return fenhe_run(api, context, run_panel, panels, batches, cost, &products);
}

static OrtStatus *compute(const OrtApi *api, OrtKernelContext *context, const void *attributes) {
    static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
    PackedWeight *packed = &((ProductState *)attributes)->weight;
    pthread_mutex_lock(&lock);
    OrtStatus *status = packed->values == NULL ? prepare(api, context, packed) : NULL;
    pthread_mutex_unlock(&lock);
    if (status != NULL) return status;
    ProductJob job = {.num_rows = 1};
    Shape shape, scale_shape;
    TRY(fenhe_input(api, context, 0, &job.x, &shape));
    if (shape.rank < 1 || shape.dims[shape.rank - 1] != packed->depth)
        return fenhe_refuse(api, "QuantizedProduct: q must be as wide as the weight is deep");
    for (size_t i = 0; i + 1 < shape.rank; i++) job.num_rows *= shape.dims[i];
    TRY(fenhe_input(api, context, 3, &job.row_scale, &scale_shape));
    int64_t scales = 1;
    for (size_t i = 0; job.row_scale != NULL && i < scale_shape.rank; i++) scales *= scale_shape.dims[i];
    if (job.row_scale != NULL && scales != job.num_rows)
        return fenhe_refuse(api, "QuantizedProduct: row_scale must have one value per row");
    shape.dims[shape.rank - 1] = packed->width;
    TRY(fenhe_output(api, context, 0, shape, &job.product));
    return fenhe_run_product(api, context, packed, &job);
}

static void release(void *attributes) { fenhe_release_packed(&((ProductState *)attributes)->weight); }

const OperatorSpec fenhe_quantized_product = {
    /* q, weight, column_scale, row_scale? -> product */
    .name = "QuantizedProduct",
    .num_inputs = 4, .num_required = 3, .input_types = {ORT_UINT8, ORT_INT8, ORT_FLOAT, ORT_FLOAT},
    .num_outputs = 1, .num_required_outputs = 1, .output_types = {ORT_FLOAT},
    .compute = compute,
    .release = release,
};
