/* BlockProduct: checks, and the panels of up to three matrices that read the same rows as one job. */
#include <string.h>

#include "operators.h"

#define MAGIC 0x32626866 /* "fhb2" */
#define HEADER_BYTES 64
#define BATCHES_WANTED 16 /* as in product_operator.c */
#define VALUES_PER_NS 64  /* rough, to judge whether waking threads pays */

/* What stands before a packed matrix, filled up with zeros to HEADER_BYTES. */
typedef struct {
    uint32_t magic, form;
    int64_t depth, width, num_bytes;
} Header;

typedef struct {
    const uint8_t *data;
    int64_t size;
} Weights;

static const char *find_problem(const Weights *weights, int64_t offset, int64_t depth, Header *header) {
    if (offset % HEADER_BYTES != 0 || offset > weights->size - HEADER_BYTES)
        return "BlockProduct: a matrix begins behind the end of the weights";
    memcpy(header, weights->data + offset, sizeof *header);
    if (header->magic != MAGIC) return "BlockProduct: the weights have no matrix there; build the student again";
    int64_t chunk = chunk_bytes_of((int)header->form);
    if (chunk == 0) return "BlockProduct: a matrix of a kind that this version does not know; build the student again";
    if (header->depth != depth || depth % chunk_depth_of((int)header->form) != 0)
        return "BlockProduct: q must be as wide as the matrix is deep";
    if (header->width < 1 || header->width > INT32_MAX) return "BlockProduct: a matrix without columns";
    int64_t panels = (header->width + PANEL - 1) / PANEL, bytes = panels * (depth / chunk_depth_of((int)header->form)) * chunk;
    if (header->num_bytes != bytes || bytes > weights->size - HEADER_BYTES - offset)
        return "BlockProduct: a matrix ends behind the end of the weights, which are cut short; build the student again";
    return NULL;
}

typedef struct {
    void (*panel)(void *job, size_t panel);
    BlockJob jobs[MAX_MATRICES];
    size_t count, ends[MAX_MATRICES]; /* how many panels the matrices up to each have */
} Products;

static void run_panel(void *data, size_t item) {
    Products *products = data;
    size_t i = 0;
    while (item >= products->ends[i]) i++;
    products->panel(&products->jobs[i], item - (i == 0 ? 0 : products->ends[i - 1]));
}

static int64_t num_values(const Shape *shape) {
    int64_t product = 1;
    for (size_t i = 0; i < shape->rank; i++) product *= shape->dims[i];
    return product;
}

static OrtStatus *read_rows(const OrtApi *api, OrtKernelContext *context, BlockJob *job, Shape *shape) {
    Shape scale, sums;
    TRY(fenhe_input(api, context, 0, &job->x, shape));
    TRY(fenhe_input(api, context, 1, &job->x_scale, &scale));
    TRY(fenhe_input(api, context, 2, &job->x_sums, &sums));
    if (shape->rank < 1 || shape->dims[shape->rank - 1] < BLOCK || shape->dims[shape->rank - 1] % BLOCK != 0)
        return fenhe_refuse(api, "BlockProduct: q must be a multiple of 32 wide");
    job->depth = shape->dims[shape->rank - 1];
    job->num_rows = num_values(shape) / job->depth;
    int64_t blocks = job->num_rows * (job->depth / BLOCK);
    if (num_values(&scale) != blocks || num_values(&sums) != 2 * blocks)
        return fenhe_refuse(api, "BlockProduct: block_scale must have a value per 32 of q, block_sums one per 16");
    return NULL;
}

static OrtStatus *find_matrices(const OrtApi *api, OrtKernelContext *context, const BlockAttributes *attributes,
                                const BlockJob *rows, Products *products) {
    Weights weights;
    Shape shape;
    TRY(fenhe_input(api, context, 3, &weights.data, &shape));
    weights.size = num_values(&shape);
    for (size_t i = 0; i < MAX_MATRICES && attributes->offsets[i] >= 0; i++) {
        Header header;
        const char *problem = find_problem(&weights, attributes->offsets[i], rows->depth, &header);
        if (problem != NULL) return fenhe_refuse(api, problem);
        BlockJob *job = &products->jobs[products->count++];
        *job = *rows;
        job->form = (int)header.form, job->width = header.width;
        job->packed = weights.data + attributes->offsets[i] + HEADER_BYTES;
    }
    return NULL;
}

static OrtStatus *compute(const OrtApi *api, OrtKernelContext *context, const void *attributes) {
    Products products = {.panel = fenhe_kernels()->block_panel};
    BlockJob rows = {0};
    Shape shape;
    TRY(read_rows(api, context, &rows, &shape));
    TRY(find_matrices(api, context, attributes, &rows, &products));
    int64_t width = 0;
    size_t panels = 0;
    for (size_t i = 0; i < products.count; i++) width += products.jobs[i].width;
    shape.dims[shape.rank - 1] = width;
    float *product;
    TRY(fenhe_output(api, context, 0, shape, &product));
    for (size_t i = 0; i < products.count; i++) {
        BlockJob *job = &products.jobs[i];
        job->product = product, job->product_stride = width;
        product += job->width;
        products.ends[i] = panels += (size_t)((job->width + PANEL - 1) / PANEL);
    }
    size_t batches = panels < BATCHES_WANTED ? panels : BATCHES_WANTED;
    if (rows.num_rows == 0) return NULL;
    return fenhe_run(api, context, run_panel, panels, batches, rows.num_rows * rows.depth * width / VALUES_PER_NS, &products);
}

static OrtStatus *read_attributes(const OrtApi *api, const OrtKernelInfo *info, void *attributes) {
    static const char *const names[MAX_MATRICES] = {"offset", "second_offset", "third_offset"};
    BlockAttributes *blocks = attributes;
    for (size_t i = 0; i < MAX_MATRICES; i++)
        TRY(ORT(api, KernelInfoGetAttribute_int64)(info, names[i], &blocks->offsets[i]));
    return blocks->offsets[0] < 0 ? fenhe_refuse(api, "BlockProduct: offset must be at least 0") : NULL;
}

const OperatorSpec fenhe_block_product = {
    /* q, block_scale, block_sums, weights -> product */
    .name = "BlockProduct",
    .num_inputs = 4, .num_required = 4, .input_types = {ORT_INT8, ORT_FLOAT, ORT_INT32, ORT_UINT8},
    .num_outputs = 1, .num_required_outputs = 1, .output_types = {ORT_FLOAT},
    .read_attributes = read_attributes,
    .compute = compute,
};
