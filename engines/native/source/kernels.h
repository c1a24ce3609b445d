/* The arithmetic behind the operators, free of ONNX Runtime: jobs, and one table of functions per instruction set.
 *
 * A function of the table does item `i` of a job. Items may run in any order and on any thread; the result of a row is
 * the same bits whatever the other rows, the threads and their order are, because every sum has one fixed order.
 *
 * Letters in shapes: T tokens, B rows, S tokens of a row, H hidden, F feed-forward, D head dimension, N positions of a slot.
 */
#ifndef FENHE_KERNELS_H
#define FENHE_KERNELS_H

#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>

#define KEYS_PER_CHUNK 64    /* Keys that share one running maximum; chunk borders are multiples of it. */
#define QUERIES_PER_BLOCK 32 /* Queries of a prompt that share one unpacked chunk of keys and values. */
#define PANEL 32 /* Columns of a weight that are packed together. */
#define MAX_HEAD_DIM 256
#define MAX_WIDTHS 8 /* The whole width and the narrower ones of a student. */
#define MAX_GROUP 16 /* Query heads per key head; bounds what a prefill unit keeps on a thread's stack. */

/* How many neurons of a feed-forward layer each row runs. Rows are sorted widest first, and widths are nested: a row of
 * width w runs the blocks of neurons of all narrower widths and its own, which is block w. */
typedef struct {
    int64_t num_widths, tokens_per_row;
    const int32_t *rows;    /* [W] how many rows are at least that wide, widest first; the last one counts all rows */
    const int32_t *neurons; /* [W] of each width, widest first */
} Widths;

/* One token's worth of a fused row operation. Which fields are null says what the operation is. */
typedef struct {
    int64_t width;
    float epsilon;
    const float *x, *skip, *skip_scale, *gamma; /* [T,width], [T,width], [T], [width] */
    const float *scale;                         /* SwiGLU: [T]; its x is [T,2*width], per block gate before up */
    Widths widths;                              /* SwiGLU */
    const int32_t *parts;                       /* SwiGLU: [W] how many parts its Hadamard transform mixes */
    float *sum, *normed;                        /* [T,width] each */
    uint8_t *q;                                 /* [T,width] */
    float *row_scale;                           /* [T] */
} RowJob;

typedef struct {
    int64_t row, kv_head, first_chunk, num_chunks; /* `first_chunk` counts from the first chunk inside the window. */
} DecodeUnit;

typedef struct {
    int64_t num_rows, num_tokens, num_heads, num_kv_heads, head_dim, num_positions, window; /* B S . . D N; window 0: all */
    float scale, epsilon;
    const float *qkv, *qkv_scale, *bias, *q_norm, *k_norm; /* [B,S,(NH+2KVH)*D], [B,S], [(NH+2KVH)*D], [D], [D] */
    const float *cos, *sin;                                /* [P,D/2] */
    const int32_t *last_position;                          /* [B] */
    uint16_t *keys, *values;                               /* [B,KVH,N,D] as half floats */
    uint8_t *q;                                            /* [B,S,NH*D] */
    float *row_scale;                                      /* [B,S] */
    float *attended;                                       /* scratch [B,S,NH*D] */
    atomic_int *pending;                                   /* units not yet done, per row (decode) or query block (prefill) */
    /* decode only */
    const DecodeUnit *units;
    size_t num_units;
    atomic_int *pending_chunks; /* [B,KVH] units not yet done */
    float *partials;            /* a partial per chunk and group, see decode.h */
    const int64_t *partial_of;  /* [B,KVH] index of the first partial */
} AttentionJob;

/* Rows of a product whose weights are packed as product.h says. */
typedef struct {
    int64_t num_rows, depth, width;
    int64_t x_stride, product_stride;      /* from one row to the next; rows may be longer than what is read or written */
    const uint8_t *x;                      /* [T,depth] */
    const int8_t *packed;
    const int32_t *offsets;                /* [width] -128 * the column's sum; padded to whole panels, as scales */
    const float *column_scale, *row_scale; /* [width], [T] or null */
    float *product;                        /* [T,width] */
} ProductJob;

/* One row's logits: previews become exact for the frequent tokens and for the best other candidates. */
typedef struct {
    int64_t depth, vocab, num_frequent, num_candidates;
    float reach;
    const uint8_t *x;                /* [T,depth] */
    const float *x_scale;            /* [T] */
    const float *bias;               /* [vocab] added to every preview */
    const int8_t *rows;              /* [vocab,depth] */
    const float *row_scales;         /* [vocab] */
    const int32_t *row_offsets;      /* [vocab] -128 * the row's sum */
    const int32_t *frequent;         /* [num_frequent] token ids */
    const float *frequent_logits;    /* [T,num_frequent] exact */
    int32_t *found;                  /* scratch [T,num_candidates] */
    float *logits;                   /* [T,vocab] previews, then the result */
} CandidateJob;

typedef struct {
    const char *name;
    void (*norm_row)(void *job, size_t token);
    void (*add_row)(void *job, size_t token);
    void (*swiglu_row)(void *job, size_t token);
    void (*quantize_row)(void *job, size_t token);
    void (*decode_unit)(void *job, size_t unit);
    void (*write_token)(void *job, size_t token);
    void (*prefill_unit)(void *job, size_t unit);
    void (*product_panel)(void *job, size_t panel);
    void (*candidate_row)(void *job, size_t token);
} Kernels;

static inline int64_t width_of(const Widths *widths, int64_t token) {
    int64_t width = 0;
    while (width + 1 < widths->num_widths && token / widths->tokens_per_row >= widths->rows[width]) width++;
    return width;
}

/* The first chunk and the number of chunks that a query at `position` attends to. */
static inline int64_t first_chunk_of(const AttentionJob *job, int64_t position) {
    int64_t first_key = job->window > 0 && position + 1 > job->window ? position + 1 - job->window : 0;
    return first_key / KEYS_PER_CHUNK;
}

static inline int64_t num_chunks_of(const AttentionJob *job, int64_t position) {
    return position / KEYS_PER_CHUNK + 1 - first_chunk_of(job, position);
}

/* Floats of one partial: maximum, sum and weighted values of each head of a group. */
static inline int64_t partial_size(const AttentionJob *job) {
    return job->num_heads / job->num_kv_heads * (job->head_dim + 2);
}

/* The best table for this processor. */
const Kernels *fenhe_kernels(void);

#endif
