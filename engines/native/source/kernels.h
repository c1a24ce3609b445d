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

#define EXPORTED __attribute__((visibility("default")))
#define KEYS_PER_CHUNK 64    /* Keys that share one running maximum; chunk borders are multiples of it. */
#define QUERIES_PER_BLOCK 32 /* Queries of a prompt that share one unpacked chunk of keys and values, at most. */
#define PANEL 32 /* Columns of a weight that are packed together. */
#define BLOCK 32 /* Values of a row that share a scale, where rows are quantised in blocks. */
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
    float *row_scale;                           /* [T], or with `block_sums` [T,width/BLOCK] */
    int32_t *block_sums;                        /* [T,width/(BLOCK/2)] or null; then q is signed, in blocks */
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
    uint16_t *keys, *values;                               /* [B,KVH,N,D] as half floats, or in int8, see cached.h */
    uint16_t *scales;                                      /* int8 only, else null: [B,KVH,N,2] of keys and values */
    uint8_t *q;                                            /* [B,S,NH*D] */
    float *row_scale;                                      /* [B,S], or with `block_sums` [B,S,NH*D/BLOCK] */
    int32_t *block_sums;                                   /* as in RowJob */
    float *attended;                                       /* scratch [B,S,NH*D] */
    atomic_int *pending;                                   /* units not yet done, per row (decode) or query block (prefill) */
    int64_t block_queries;                                 /* prefill only: of a query block, at most QUERIES_PER_BLOCK */
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

/* How a matrix in blocks is stored: bits of a value, and what stands beside a block or a super-block of eight. */
enum {
    FORM_4 = 1,       /* less 8, times a half (Q4_0) */
    FORM_4_MIN = 2,   /* times a half plus a half (Q4_1) */
    FORM_8 = 3,       /* signed, times a half (Q8_0, Q5_0) */
    FORM_4_SUPER = 4, /* times a byte and the super-block's half, less a byte times its other half (Q4_K) */
    FORM_6_SUPER = 5, /* less 32, times a signed byte of half a block and the super-block's half (Q6_K) */
    NUM_FORMS
};

/* Rows in blocks times a matrix that is packed as blocks.h says. */
typedef struct {
    int64_t num_rows, depth, width, product_stride;
    int form;
    const int8_t *x;       /* [T,depth] */
    const float *x_scale;  /* [T,depth/BLOCK] */
    const int32_t *x_sums; /* [T,depth/(BLOCK/2)] the values of each half block, summed */
    const uint8_t *packed;
    float *product; /* [T,product_stride] from the matrix's first column on */
} BlockJob;

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

#define CHOOSING_BLOCK 128      /* Tokens whose weights are added up together. */
#define CHOOSING_BINS 1024      /* Of equal width in nats. */
#define CHOOSING_SORTED 4096    /* More tokens of one bin are not sorted. */
#define CHOOSING_LIKELIEST 64   /* More likeliest tokens are not looked for. */
#define CHOOSING_LONGEST 64.0   /* Nats that the bins cover where every token is divided; the last one has the rest. */
#define CHOOSING_MANY 8192      /* With a higher top-k the shortest span is not even tried. */

/* What choosing one token needs, one job after the other. The arrays lie behind it. */
typedef struct {
    double highest, per_logit; /* the largest logit; nats per unit of logits */
    double found_mass, outside; /* weight of the tokens found; the most that another one weighs */
    int64_t num_found;
    double masses[CHOOSING_BINS];
    int32_t nums[CHOOSING_BINS];
    uint64_t ranks[CHOOSING_SORTED];
    double *blocks;  /* [blocks] */
    int32_t *ids;    /* of the tokens found, ascending; all of these [count, and a vector more] */
    float *values;   /* their logits */
    double *weights; /* and their weights */
    int32_t *bins;   /* and where they are divided into */
} ChoosingScratch;

/* A token at `point` of the accumulated weights after temperature, min-p, top-k and top-p. */
typedef struct {
    const float *logits; /* [count] */
    int64_t count, top_k; /* 0: no limit */
    double temperature, top_p, min_p, point;
    ChoosingScratch *scratch;
} DrawJob;

typedef struct {
    const float *logits; /* [count] */
    int64_t count, num;
    int64_t *ids;      /* [num] */
    double *log_total; /* logarithm of the sum of all exponentials */
    ChoosingScratch *scratch;
} LikeliestJob;

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
    void (*block_panel)(void *job, size_t panel);
    void (*candidate_row)(void *job, size_t token);
    int64_t (*draw_token)(const DrawJob *job);          /* its id, or below 0 where rounding could decide */
    int64_t (*find_likeliest)(const LikeliestJob *job); /* `num`, or below 0 where it was not done */
} Kernels;

static inline int64_t width_of(const Widths *widths, int64_t token) {
    int64_t width = 0;
    while (width + 1 < widths->num_widths && token / widths->tokens_per_row >= widths->rows[width]) width++;
    return width;
}

/* Blocks of queries of each row of a prefill. */
static inline int64_t num_query_blocks(const AttentionJob *job) {
    return (job->num_tokens + job->block_queries - 1) / job->block_queries;
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

/* How many values of the depth share their halves in a matrix in blocks, and how many bytes those of a panel take. */
static inline int64_t chunk_depth_of(int form) {
    return form == FORM_4_SUPER || form == FORM_6_SUPER ? 8 * BLOCK : BLOCK;
}
static inline int64_t chunk_bytes_of(int form) {
    switch (form) {
    case FORM_4: return (2 + BLOCK / 2) * PANEL;
    case FORM_4_MIN: return (4 + BLOCK / 2) * PANEL;
    case FORM_8: return (2 + BLOCK) * PANEL;
    case FORM_4_SUPER: return (4 + 8 + 8 + 8 * BLOCK / 2) * PANEL;
    case FORM_6_SUPER: return (2 + 16 + 8 * BLOCK * 3 / 4) * PANEL;
    default: return 0;
    }
}

/* The best table for this processor, or the one that was chosen. */
const Kernels *fenhe_kernels(void);

#endif
