/* Attention of one new token per row: memory-bound, so each key and value is read once for all heads of its group.
 *
 * The keys are taken in chunks of KEYS_PER_CHUNK at fixed positions. Each chunk yields a partial {maximum, sum, weighted
 * values} per head; partials are merged in the order of the chunks, whoever computed them. That is why neither the batch
 * nor the threads change a bit.
 */
#include "heads.h"
#include "rows.h"

#define NO_MAXIMUM -1e30f
#define HEADS_AT_ONCE 4

typedef struct {
    float *maximum, *sum, *values; /* [G], [G], [G,D] */
} Partial;

/* The keys of one chunk, and what will be read after it. */
typedef struct {
    const uint16_t *keys, *values, *next_keys;
    int64_t count;
    const ChunkScales *scales; /* int8 only */
} Span;

INLINE Partial partial_at(float *memory, int64_t group) {
    return (Partial){memory, memory + group, memory + 2 * group};
}

/* Ask for `count` values of the cache from value `first` on early: streams this short end before the processor's own
 * prefetcher has noticed them. */
INLINE void prefetch_cached(int is_int8, const uint16_t *position, int64_t first, int64_t count) {
    const char *bytes = (const char *)position;
    int64_t size = is_int8 ? 1 : sizeof *position;
    if (is_int8 && first % 64 != 0) return; /* that cache line has been asked for */
    for (int64_t i = first * size; i < (first + count) * size; i += 64) __builtin_prefetch(bytes + i);
}

/* scores[h][k] = queries[h] . keys[k], in int8 without the key's scale, for `n` keys; entries past n hold anything. */
INLINE void score_chunk(int is_int8, int heads, int vectors, const float *queries, const Span *span,
                        int64_t d, float scores[][KEYS_PER_CHUNK]) {
    int64_t n = span->count;
    for (int64_t first = 0; first < n; first += VW) {
        vf products[HEADS_AT_ONCE][VW];
        for (int k = 0; k < VW; k++) {
            int64_t key = first + k < n ? first + k : n - 1; /* never read past the slot */
            vf total[HEADS_AT_ONCE];
            for (int h = 0; h < heads; h++) total[h] = (vf){0};
            prefetch_cached(is_int8, span->values + key * d, 0, vectors * VW);
            for (int v = 0; v < vectors; v++) {
                vf x = load_cached(is_int8, span->keys + key * d, v * VW);
                for (int h = 0; h < heads; h++) total[h] += x * load(queries + h * d + v * VW);
            }
            for (int h = 0; h < heads; h++) products[h][k] = total[h];
        }
        for (int h = 0; h < heads; h++) store(scores[h] + first, sums_of(products[h]));
    }
}

/* Turn scores into powers of two relative to their maximum; entries past the span's end become zero. In int8 what is added
 * up are these weights, and what is left in their place has the value's scale. */
INLINE void weigh_chunk(int is_int8, float *scores, const Span *span, float *maximum_out, float *sum_out) {
    const int vectors = KEYS_PER_CHUNK / VW;
    const int32_t n = (int32_t)span->count;
    vf best = splat(NO_MAXIMUM), total = {0};
    vi index = lane_index();
    for (int v = 0; v < vectors; v++) {
        vf x = load(scores + v * VW);
        if (is_int8) x *= load(span->scales->keys + v * VW);
        x = choose(index + v * VW < n, x, splat(NO_MAXIMUM));
        store(scores + v * VW, x);
        best = maximum(x, best);
    }
    float largest = bound_of(max_of(best));
    for (int v = 0; v < vectors; v++) {
        vf p = exp2_of(load(scores + v * VW) - largest);
        p = choose(index + v * VW < n, is_int8 ? p : rounded(p), (vf){0});
        store(scores + v * VW, is_int8 ? rounded(p * load(span->scales->values + v * VW)) : p);
        total += p;
    }
    *maximum_out = largest;
    *sum_out = sum_of(total);
}

/* values_out[h] = sum over k of weights[h][k] * values[k]. */
INLINE void mix_chunk(int is_int8, int heads, int vectors, float weights[][KEYS_PER_CHUNK], const Span *span, int64_t d,
                      float *values_out) {
    for (int first = 0; first < vectors; first += TILE_VECTORS) {
        int count = vectors - first < TILE_VECTORS ? vectors - first : TILE_VECTORS;
        vf total[HEADS_AT_ONCE][TILE_VECTORS];
        for (int h = 0; h < heads; h++)
            for (int v = 0; v < TILE_VECTORS; v++) total[h][v] = (vf){0};
        for (int64_t k = 0; k < span->count; k++) {
            prefetch_cached(is_int8, span->next_keys + k * d, first * VW, count * VW);
            for (int v = 0; v < count; v++) {
                vf x = load_cached(is_int8, span->values + k * d, (first + v) * VW);
                for (int h = 0; h < heads; h++) total[h][v] += x * weights[h][k];
            }
        }
        for (int h = 0; h < heads; h++)
            for (int v = 0; v < count; v++) store(values_out + h * d + (first + v) * VW, total[h][v]);
    }
}

INLINE void attend_heads(int is_int8, int heads, int vectors, const float *queries, const Span *span, int64_t d, int64_t head,
                         Partial out) {
    float scores[HEADS_AT_ONCE][KEYS_PER_CHUNK] = {{0}};
    score_chunk(is_int8, heads, vectors, queries + head * d, span, d, scores);
    for (int h = 0; h < heads; h++) weigh_chunk(is_int8, scores[h], span, out.maximum + head + h, out.sum + head + h);
    mix_chunk(is_int8, heads, vectors, scores, span, d, out.values + head * d);
}

/* The compiler unrolls the loops for constant arguments only, so the usual shapes are spelled out. */
INLINE void attend_chunk(int is_int8, int64_t group, int64_t d, const float *queries, const Span *span, Partial out) {
    int vectors = (int)(d / VW);
    for (int64_t head = 0; head < group; head += HEADS_AT_ONCE) {
        int heads = (int)(group - head < HEADS_AT_ONCE ? group - head : HEADS_AT_ONCE);
#define FENHE_SHAPE(H, V) \
    if (heads == H && vectors == V) attend_heads(is_int8, H, V, queries, span, d, head, out); else
        FENHE_SHAPE(1, 64 / VW) FENHE_SHAPE(2, 64 / VW) FENHE_SHAPE(3, 64 / VW) FENHE_SHAPE(4, 64 / VW)
        FENHE_SHAPE(1, 128 / VW) FENHE_SHAPE(2, 128 / VW) FENHE_SHAPE(3, 128 / VW) FENHE_SHAPE(4, 128 / VW)
        attend_heads(is_int8, heads, vectors, queries, span, d, head, out);
#undef FENHE_SHAPE
    }
}

static void attend_halves(int64_t group, int64_t d, const float *queries, const Span *span, Partial out) {
    attend_chunk(0, group, d, queries, span, out);
}

static void attend_int8(int64_t group, int64_t d, const float *queries, const Span *span, Partial out) {
    attend_chunk(1, group, d, queries, span, out);
}

/* Fold the next chunk's partial into the running one. */
static void merge_partial(int64_t group, int64_t d, Partial running, Partial next) {
    for (int64_t h = 0; h < group; h++) {
        float old = running.maximum[h], new = next.maximum[h], best = old > new ? old : new;
        vf keep = exp2_of(splat(old - best)), add = exp2_of(splat(new - best));
        running.maximum[h] = best;
        running.sum[h] = running.sum[h] * keep[0] + next.sum[h] * add[0];
        for (int64_t i = h * d; i < (h + 1) * d; i += VW)
            store(running.values + i, load(running.values + i) * keep + load(next.values + i) * add);
    }
}

static void finish_head_group(const AttentionJob *job, int64_t row, int64_t kv_head, Partial running) {
    int64_t group = job->num_heads / job->num_kv_heads, d = job->head_dim;
    float *target = job->attended + (row * job->num_heads + kv_head * group) * d;
    for (int64_t h = 0; h < group; h++) {
        float inverse = 1.0f / running.sum[h];
        for (int64_t i = h * d; i < (h + 1) * d; i += VW) store(target + i, load(running.values + i) * inverse);
    }
    if (atomic_fetch_sub(&job->pending[row], 1) > 1) return;
    int64_t width = job->num_heads * d;
    quantize_either(job->attended + row * width, NULL, width, 1.0f, row, job->q, job->row_scale, job->block_sums);
}

static void merge_all(const AttentionJob *job, int64_t row, int64_t kv_head, float *partials, int64_t count) {
    int64_t group = job->num_heads / job->num_kv_heads, size = partial_size(job);
    Partial running = partial_at(partials, group);
    for (int64_t i = 1; i < count; i++)
        merge_partial(group, job->head_dim, running, partial_at(partials + i * size, group));
    finish_head_group(job, row, kv_head, running);
}

/* Attend to the unit's chunks. A unit that covers its whole head group merges as it goes; otherwise the last one does. */
static void decode_unit(void *data, size_t index) {
    const AttentionJob *job = data;
    const DecodeUnit unit = job->units[index];
    int64_t group = job->num_heads / job->num_kv_heads, d = job->head_dim, size = partial_size(job);
    int64_t position = job->last_position[unit.row], key_group = unit.row * job->num_kv_heads + unit.kv_head;
    int64_t base = first_chunk_of(job, position), count = num_chunks_of(job, position);
    int64_t first_key = job->window > 0 && position + 1 > job->window ? position + 1 - job->window : 0;
    const uint16_t *keys = slot_of(job, job->keys, unit.row, unit.kv_head);
    const uint16_t *values = slot_of(job, job->values, unit.row, unit.kv_head);
    float queries[group * d], spare[size];
    for (int64_t h = 0; h < group; h++) make_query(job, unit.row, 0, unit.kv_head * group + h, queries + h * d);
    if (unit.first_chunk + unit.num_chunks == count) write_key_value(job, unit.row, 0, unit.kv_head);

    const uint16_t *after = keys + (base + unit.first_chunk + unit.num_chunks) * KEYS_PER_CHUNK * d;
    if (index + 1 < job->num_units) {
        const DecodeUnit next = job->units[index + 1];
        int64_t next_base = first_chunk_of(job, job->last_position[next.row]) + next.first_chunk;
        after = slot_of(job, job->keys, next.row, next.kv_head) + next_base * KEYS_PER_CHUNK * d;
    }
    float *partials = job->partials + job->partial_of[key_group] * size;
    int is_whole = unit.num_chunks == count;
    for (int64_t chunk = unit.first_chunk; chunk < unit.first_chunk + unit.num_chunks; chunk++) {
        int64_t from = (base + chunk) * KEYS_PER_CHUNK, to = from + KEYS_PER_CHUNK;
        from = from < first_key ? first_key : from;
        to = to > position + 1 ? position + 1 : to;
        int is_spare = is_whole && chunk > 0;
        Partial out = partial_at(is_spare ? spare : is_whole ? partials : partials + chunk * size, group);
        const uint16_t *next_keys = chunk + 1 < unit.first_chunk + unit.num_chunks ? keys + to * d : after;
        ChunkScales scales;
        const Span span = {keys + from * d, values + from * d, next_keys, to - from, &scales};
        if (job->scales) {
            read_scales(scales_of(job, unit.row, unit.kv_head) + 2 * from, to - from, &scales);
            attend_int8(group, d, queries, &span, out);
        } else attend_halves(group, d, queries, &span, out);
        if (is_spare) merge_partial(group, d, partial_at(partials, group), out);
    }
    if (is_whole) finish_head_group(job, unit.row, unit.kv_head, partial_at(partials, group));
    else if (atomic_fetch_sub(&job->pending_chunks[key_group], 1) == 1)
        merge_all(job, unit.row, unit.kv_head, partials, count);
}
