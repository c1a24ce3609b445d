/* What the operators share: reading tensors of a call, and the shape of an operator's description. */
#ifndef FENHE_OPERATORS_H
#define FENHE_OPERATORS_H

#include "kernels.h"
#include "ort_abi.h"

#define MAX_RANK 4
#define MAX_PORTS (2 + 2 * MAX_WIDTHS)
#define MAX_MATRICES 3 /* that read the same rows in one BlockProduct */

typedef struct {
    const char *name;
    size_t num_inputs, num_required, num_outputs, num_required_outputs;
    int input_types[MAX_PORTS], output_types[MAX_PORTS];
    OrtStatus *(*read_attributes)(const OrtApi *api, const OrtKernelInfo *info, void *attributes);
    OrtStatus *(*compute)(const OrtApi *api, OrtKernelContext *context, const void *attributes);
    size_t (*may_inplace)(int **inputs, int **outputs);
    void (*release)(void *attributes);
} OperatorSpec;

typedef struct {
    float epsilon;
} NormAttributes;

typedef struct {
    int64_t num_heads, num_kv_heads, window;
    float scale, epsilon;
} AttentionAttributes;

typedef struct {
    int64_t parts;
} SwigluAttributes;

typedef struct WeightsRegion WeightsRegion;

typedef struct {
    int64_t depth, width;
    int8_t *values; /* null until the first call */
    int32_t *offsets;
    float *scales;
    WeightsRegion *region; /* holds the memory of all three */
} PackedWeight;

typedef struct {
    PackedWeight weight;
} ProductState;

typedef struct {
    int64_t num_widths; /* 0 until the first call */
    PackedWeight weights[MAX_WIDTHS];
    int64_t matrix_of[MAX_WIDTHS]; /* which of the weights each width has */
} WidthProductState;

typedef struct {
    int64_t num_blocks; /* 0 until the first call */
    int64_t ends[MAX_WIDTHS]; /* the column behind each block, narrowest first */
    PackedWeight weight; /* of all blocks */
} NestedProductState;

typedef struct {
    int64_t num_candidates;
    float reach;
    PackedWeight preview, frequent;
    int32_t *row_offsets; /* [V] -128 * the sum of an exact row; null until the first call */
} CandidateState;

typedef struct {
    int64_t offsets[MAX_MATRICES]; /* of a matrix in the weights, in bytes; below 0: none */
} BlockAttributes;

typedef union {
    NormAttributes norm;
    SwigluAttributes swiglu;
    AttentionAttributes attention;
    ProductState product;
    WidthProductState width_product;
    NestedProductState nested_product;
    CandidateState candidates;
    BlockAttributes blocks;
} Attributes;

typedef struct {
    int64_t dims[MAX_RANK];
    size_t rank;
} Shape;

/* An input or output tensor's memory; null for an optional one that is absent. */
OrtStatus *fenhe_input(const OrtApi *api, const OrtKernelContext *context, size_t index, void *data_out, Shape *shape);
OrtStatus *fenhe_output(const OrtApi *api, OrtKernelContext *context, size_t index, Shape shape, void *data_out);
OrtStatus *fenhe_refuse(const OrtApi *api, const char *message);

/* Memory of so many bytes, all zero; null if there is none. It lives until its region is given back, once for each. */
void *fenhe_take_memory(size_t bytes, WeightsRegion **region);
void fenhe_give_memory_back(WeightsRegion *region);

/* Allocate a packed weight for `depth` x `width`, all zero; `fenhe_pack_column` and `fenhe_pack_columns` fill it. */
OrtStatus *fenhe_make_packed(const OrtApi *api, int64_t depth, int64_t width, PackedWeight *packed);
void fenhe_release_packed(PackedWeight *packed);

/* Column `n` from `depth` values that lie `stride` apart. */
void fenhe_pack_column(PackedWeight *packed, int64_t n, const int8_t *values, int64_t stride, float scale);

/* Columns `first`..`first + width - 1` from a matrix of [depth, width]. */
OrtStatus *fenhe_pack_columns(const OrtApi *api, const OrtKernelContext *context, PackedWeight *packed, int64_t first,
                              const int8_t *values, int64_t width, const float *scales);

/* `job` with the weights of the panels of columns `first`..`end`-1; `first` is a multiple of PANEL. */
ProductJob fenhe_product_of(const PackedWeight *packed, int64_t first, int64_t end, ProductJob job);

/* Products, at most MAX_WIDTHS of them: the panels of all as one job. */
OrtStatus *fenhe_run_products(const OrtApi *api, const OrtKernelContext *context, const ProductJob *jobs, size_t count);

/* A product with a whole packed weight, of rows that lie side by side. */
OrtStatus *fenhe_run_product(const OrtApi *api, const OrtKernelContext *context, const PackedWeight *packed,
                             ProductJob *job);

/* The rows of each width from input `index`, which must fit the rows of an input of this shape. */
OrtStatus *fenhe_read_widths(const OrtApi *api, const OrtKernelContext *context, size_t index, const Shape *shape,
                             int64_t num_widths, Widths *widths);

/* Outputs 0 to 2 of an operator that quantises rows of this shape in blocks: values, scales, sums of half blocks. */
OrtStatus *fenhe_block_outputs(const OrtApi *api, OrtKernelContext *context, Shape shape, uint8_t **q, float **scales,
                               int32_t **sums);

/* Run `work` for items 0..count-1: on ONNX Runtime's threads if `cost` (about nanoseconds in all) is worth waking them. */
OrtStatus *fenhe_run(const OrtApi *api, const OrtKernelContext *context, void (*work)(void *, size_t), size_t count,
                     size_t num_batches, int64_t cost, void *job);

extern const OperatorSpec fenhe_slot_attention, fenhe_quantized_product, fenhe_candidate_logits, fenhe_nested_product,
    fenhe_width_product, fenhe_block_attention, fenhe_block_product;
extern const OperatorSpec fenhe_row_operators[];
extern const size_t fenhe_num_row_operators;

#define TRY(call)                          \
    do {                                   \
        OrtStatus *status_ = (call);       \
        if (status_ != NULL) return status_; \
    } while (0)

#endif
