/* Attention of many new tokens per row: compute-bound, so keys and values are unpacked once per block of queries.
 *
 * A unit is (row, key head, block of `block_queries` queries) with all query heads of the group. Its sums run over the
 * chunks of keys in order, and a masked key adds an exact zero: a prompt cut into other pieces gives the same bits. What
 * it multiplies is floats or bf16, see cells.h.
 */
#include "decode.h"

/* One unit's working memory. R rows are (query, head of the group), queries outermost. */
typedef struct {
    int64_t rows, first_position;
    Cell *queries;            /* [R,cells] */
    float *sums;              /* [R,D] */
    float *maxima;            /* [R] */
    float *totals;            /* [R,VW], one sum per lane */
    Cell *keys, *values;      /* [cells,KEYS], [KEYS/CELL,D] */
    ChunkScales *scales;      /* int8 only, else null */
} Block;

/* sums = sums * keep + a[rows,depth] . b[depth,vectors], all loops constant but the one over depth. */
INLINE void multiply_tile(int rows, int vectors, const Cell *a, int64_t a_stride, const Cell *b, int64_t b_stride,
                          int64_t depth, vf sums[TILE_ROWS][TILE_VECTORS]) {
    for (int64_t k = 0; k < depth; k++)
        for (int v = 0; v < vectors; v++) {
            vf x = load_cells(b + k * b_stride + v * VW);
            for (int r = 0; r < rows; r++) sums[r][v] = add_products(sums[r][v], a[r * a_stride + k], x);
        }
}

INLINE void score_columns(int rows, int vectors, const Cell *queries, const Cell *keys, int64_t depth, float *scores) {
    vf sums[TILE_ROWS][TILE_VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) sums[r][v] = (vf){0};
    multiply_tile(rows, vectors, queries, depth, keys, KEYS_PER_CHUNK, depth, sums);
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) store(scores + r * KEYS_PER_CHUNK + v * VW, sums[r][v]);
}

/* Scores of at least the first `high` keys of the chunk. */
INLINE void score_tile(int rows, int64_t high, const Cell *queries, const Cell *keys, int64_t depth, float *scores) {
    const int wide = TILE_VECTORS * VW;
    for (int64_t first = 0; first < high; first += wide)
        if (high - first > wide / 2) score_columns(rows, TILE_VECTORS, queries, keys + first, depth, scores + first);
        else score_columns(rows, TILE_VECTORS / 2, queries, keys + first, depth, scores + first);
}

INLINE void mix_columns(int rows, int vectors, const Cell *weights, const float *keep, const Cell *values,
                        int64_t depth, int64_t d, float *target) {
    vf sums[TILE_ROWS][TILE_VECTORS];
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) sums[r][v] = load(target + r * d + v * VW) * keep[r];
    multiply_tile(rows, vectors, weights, KEYS_PER_CHUNK / CELL, values, d, depth, sums);
    for (int r = 0; r < rows; r++)
        for (int v = 0; v < vectors; v++) store(target + r * d + v * VW, sums[r][v]);
}

INLINE void mix_tile(int rows, const Cell *weights, const float *keep, const Cell *values, int64_t depth, int64_t d,
                     float *target) {
    int64_t i = 0;
    for (; i + TILE_VECTORS * VW <= d; i += TILE_VECTORS * VW)
        mix_columns(rows, TILE_VECTORS, weights, keep, values + i, depth, d, target + i);
    for (; i < d; i += VW) mix_columns(rows, 1, weights, keep, values + i, depth, d, target + i);
}

/* Scores to weights of one row, keys [low, high) of the chunk being visible. Returns what older sums are multiplied by.
 * Scales are as in `weigh_chunk`. */
INLINE float weigh_row(const float *scores, int64_t low, int64_t high, const ChunkScales *scales, float *largest,
                       float *total, Cell *weights) {
    const int vectors = KEYS_PER_CHUNK / VW;
    int is_masked = low > 0 || high < KEYS_PER_CHUNK;
    vi index = lane_index();
    vf x[KEYS_PER_CHUNK / VW], best = splat(*largest);
    for (int v = 0; v < vectors; v++) {
        x[v] = load(scores + v * VW);
        if (scales) x[v] *= load(scales->keys + v * VW);
        if (is_masked) {
            vi key = index + v * VW;
            x[v] = choose((key >= (int32_t)low) & (key < (int32_t)high), x[v], splat(NO_MAXIMUM));
        }
        best = maximum(x[v], best);
    }
    float before = *largest, now = bound_of(max_of(best));
    for (int v = 0; v < vectors; v++) {
        vf p = exp2_of(x[v] - now);
        x[v] = is_masked ? choose(x[v] > NO_MAXIMUM, p, (vf){0}) : p;
    }
    float keep = now > before ? exp2_of(splat(before - now))[0] : 1.0f;
    *largest = now;
    vf sum = scales ? put_scaled_weights(x, scales->values, weights) : put_weights(x, weights);
    store(total, load(total) * keep + sum);
    return keep;
}

INLINE int64_t clamp_key(int64_t key) { return key < 0 ? 0 : key > KEYS_PER_CHUNK ? KEYS_PER_CHUNK : key; }

/* Attend rows [first, first+rows) of the block to the chunk that begins at key `chunk_start`. */
INLINE void attend_tile(const AttentionJob *job, const Block *block, int rows, int64_t first, int64_t chunk_start) {
    int64_t group = job->num_heads / job->num_kv_heads, d = job->head_dim;
    int64_t earliest = block->first_position + first / group, latest = block->first_position + (first + rows - 1) / group;
    if (latest < chunk_start) return;
    if (job->window > 0 && earliest - job->window >= chunk_start + KEYS_PER_CHUNK - 1) return;
    float scores[TILE_ROWS * KEYS_PER_CHUNK] = {0}, keep[TILE_ROWS];
    Cell weights[TILE_ROWS * KEYS_PER_CHUNK / CELL];
    int64_t visible = clamp_key(latest + 1 - chunk_start);
    score_tile(rows, visible, block->queries + first * cells_of(d), block->keys, cells_of(d), scores);
    for (int r = 0; r < rows; r++) {
        int64_t row = first + r, position = block->first_position + row / group;
        int64_t low = job->window > 0 ? clamp_key(position - job->window + 1 - chunk_start) : 0;
        int64_t high = clamp_key(position + 1 - chunk_start);
        keep[r] = weigh_row(scores + r * KEYS_PER_CHUNK, low, high, block->scales, block->maxima + row,
                            block->totals + row * VW, weights + r * KEYS_PER_CHUNK / CELL);
    }
    mix_tile(rows, weights, keep, block->values, (visible + CELL - 1) / CELL, d, block->sums + first * d);
}

static void attend_block(const AttentionJob *job, const Block *block, int64_t chunk_start) {
    int64_t first = 0;
    for (; first + TILE_ROWS <= block->rows; first += TILE_ROWS) attend_tile(job, block, TILE_ROWS, first, chunk_start);
    for (; first + 2 <= block->rows; first += 2) attend_tile(job, block, 2, first, chunk_start);
    for (; first < block->rows; first++) attend_tile(job, block, 1, first, chunk_start);
}

/* Transpose VW keys by VW cells, from dimension `i` on. */
INLINE void transpose_keys(int is_int8, const uint16_t *source, int64_t i, int64_t d, Cell *target) {
    vf x[VW];
    for (int k = 0; k < VW; k++) x[k] = cells_of_cached(is_int8, source + k * d, i, d);
#pragma GCC unroll 4
    for (int step = VW / 2; step > 0; step /= 2) {
        vf y[VW];
        for (int k = 0; k < VW; k++) {
            vi mask = (lane_index() & step) != 0;
            vf partner = x[k ^ step], moved;
#if VW == 16
            vi from = lane_index() ^ step;
            moved = (vf)_mm512_permutexvar_ps((__m512i)from, (__m512)partner);
#else
            for (int i = 0; i < VW; i++) moved[i] = partner[i ^ step];
#endif
            y[k] = k & step ? choose(mask, x[k], moved) : choose(mask, moved, x[k]);
        }
        memcpy(x, y, sizeof x);
    }
    for (int k = 0; k < VW; k++) put_cells(target + k * KEYS_PER_CHUNK, x[k]);
}

INLINE void unpack_values(int is_int8, const Block *block, const uint16_t *values, int64_t n, int64_t d) {
#if CELL == 2
    for (int64_t k = 0; k < n; k += 2)
        for (int64_t i = 0; i < d; i += VW) {
            vf first = load_cached(is_int8, values + k * d, i);
            vf second = k + 1 < n ? load_cached(is_int8, values + (k + 1) * d, i) : (vf){0};
            put_cells(block->values + k / 2 * d + i, pair_cells(first, second));
        }
#else
    for (int64_t k = 0; k < n; k++)
        for (int64_t i = 0; i < d; i += VW) put_cells(block->values + k * d + i, load_cached(is_int8, values + k * d, i));
#endif
    int64_t done = (n + CELL - 1) / CELL;
    memset(block->values + done * d, 0, (size_t)((KEYS_PER_CHUNK / CELL - done) * d) * sizeof(Cell));
}

/* Unpack the chunk: keys transposed, values as they are; positions past `end` become zeros (they may hold anything). */
INLINE void unpack_chunk(int is_int8, const AttentionJob *job, const Block *block, const uint16_t *keys,
                         const uint16_t *values, int64_t chunk_start, int64_t end) {
    int64_t d = job->head_dim, n = clamp_key(end - chunk_start);
    uint16_t tail[VW * MAX_HEAD_DIM];
    for (int64_t k = 0; k < KEYS_PER_CHUNK; k += VW) {
        const uint16_t *source = keys + (chunk_start + k) * d;
        if (k + VW > n) {
            memset(tail, 0, sizeof tail);
            if (k < n) memcpy(tail, source, (size_t)((n - k) * d) * sizeof *tail);
            source = tail;
        }
        for (int64_t i = 0; i < d; i += CELL * VW)
            transpose_keys(is_int8, source, i, d, block->keys + i / CELL * KEYS_PER_CHUNK + k);
    }
    unpack_values(is_int8, block, values + chunk_start * d, n, d);
}

static void unpack_halves(const AttentionJob *job, const Block *block, int64_t row, int64_t kv_head, int64_t chunk_start) {
    unpack_chunk(0, job, block, slot_of(job, job->keys, row, kv_head), slot_of(job, job->values, row, kv_head), chunk_start,
                 job->last_position[row] + 1);
}

static void unpack_int8(const AttentionJob *job, const Block *block, int64_t row, int64_t kv_head, int64_t chunk_start) {
    int64_t end = job->last_position[row] + 1;
    unpack_chunk(1, job, block, slot_of(job, job->keys, row, kv_head), slot_of(job, job->values, row, kv_head), chunk_start,
                 end);
    read_scales(scales_of(job, row, kv_head) + 2 * chunk_start, clamp_key(end - chunk_start), block->scales);
}

/* Divide by the totals into the attended rows; the last head group of the block quantises them. */
static void finish_block(const AttentionJob *job, const Block *block, int64_t row, int64_t kv_head, int64_t block_index) {
    int64_t group = job->num_heads / job->num_kv_heads, d = job->head_dim, width = job->num_heads * d;
    int64_t first_token = row * job->num_tokens + block_index * job->block_queries;
    for (int64_t r = 0; r < block->rows; r++) {
        float inverse = 1.0f / sum_of(load(block->totals + r * VW));
        float *target = job->attended + (first_token + r / group) * width + (kv_head * group + r % group) * d;
        for (int64_t i = 0; i < d; i += VW) store(target + i, load(block->sums + r * d + i) * inverse);
    }
    if (atomic_fetch_sub(&job->pending[row * num_query_blocks(job) + block_index], 1) > 1) return;
    for (int64_t token = first_token; token < first_token + block->rows / group; token++)
        quantize_either(job->attended + token * width, NULL, width, 1.0f, token, job->q, job->row_scale, job->block_sums);
}

static void write_token(void *data, size_t token) {
    const AttentionJob *job = data;
    for (int64_t head = 0; head < job->num_kv_heads; head++)
        write_key_value(job, (int64_t)token / job->num_tokens, (int64_t)token % job->num_tokens, head);
}

static Block make_block(const AttentionJob *job, int64_t row, int64_t kv_head, int64_t block_index, float *memory,
                        ChunkScales *scales) {
    int64_t group = job->num_heads / job->num_kv_heads, d = job->head_dim, first = block_index * job->block_queries;
    int64_t tokens = job->num_tokens - first < job->block_queries ? job->num_tokens - first : job->block_queries;
    int64_t rows = tokens * group;
    Block block = {.rows = rows, .first_position = position_of(job, row, first), .scales = job->scales ? scales : NULL};
    block.keys = (Cell *)memory;
    block.values = block.keys + KEYS_PER_CHUNK * cells_of(d);
    block.queries = block.values + KEYS_PER_CHUNK / CELL * d;
    block.sums = (float *)(block.queries + rows * cells_of(d));
    block.totals = block.sums + rows * d;
    block.maxima = block.totals + rows * VW;
    for (int64_t r = 0; r < rows; r++) {
        float query[MAX_HEAD_DIM];
        make_query(job, row, first + r / group, kv_head * group + r % group, query);
        for (int64_t i = 0; i < d; i += CELL * VW)
            put_cells(block.queries + r * cells_of(d) + i / CELL, cells_of_floats(query + i, d - i));
        block.maxima[r] = NO_MAXIMUM;
    }
    memset(block.sums, 0, (size_t)(rows * (d + VW)) * sizeof(float));
    return block;
}

/* Units are numbered so that the longest (last queries) come first, which evens out the threads' finish. */
static void prefill_unit(void *data, size_t unit) {
    const AttentionJob *job = data;
    int64_t group = job->num_heads / job->num_kv_heads, d = job->head_dim;
    int64_t per_block = job->num_rows * job->num_kv_heads;
    int64_t block_index = num_query_blocks(job) - 1 - (int64_t)unit / per_block, key_group = (int64_t)unit % per_block;
    int64_t row = key_group / job->num_kv_heads, kv_head = key_group % job->num_kv_heads;
    float memory[KEYS_PER_CHUNK * (cells_of(d) + d / CELL) + job->block_queries * group * (cells_of(d) + d + VW + 1)] __attribute__((aligned(64)));
    ChunkScales scales;
    Block block = make_block(job, row, kv_head, block_index, memory, &scales);
    int64_t last = block.first_position + block.rows / group - 1;
    for (int64_t chunk = first_chunk_of(job, block.first_position); chunk <= last / KEYS_PER_CHUNK; chunk++) {
        if (job->scales) unpack_int8(job, &block, row, kv_head, chunk * KEYS_PER_CHUNK);
        else unpack_halves(job, &block, row, kv_head, chunk * KEYS_PER_CHUNK);
        attend_block(job, &block, chunk * KEYS_PER_CHUNK);
    }
    finish_block(job, &block, row, kv_head, block_index);
}
