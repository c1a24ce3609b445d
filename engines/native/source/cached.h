/* One token's key and value of one head, as they lie in the cache: halves, or int8 with a scale each.
 *
 * Halves lie in two tensors, keys and values. In int8 a position has the D bytes of its key, then the D of its value,
 * where halves have the key; `values` of a job points half a row behind `keys`, so that a position of either kind is D
 * halves behind the one before. The scales, halves too, lie apart: of each position the key's, then the value's.
 *
 * Attention multiplies integers as they are: a key's scale multiplies its scores, a value's its weights.
 */
#ifndef FENHE_CACHED_H
#define FENHE_CACHED_H

#include "cells.h"

typedef struct {
    float keys[KEYS_PER_CHUNK], values[KEYS_PER_CHUNK];
} ChunkScales;

/* VW values of a position, from value `i` on. */
INLINE vf load_cached(int is_int8, const uint16_t *position, int64_t i) {
    return is_int8 ? load_bytes((const int8_t *)position + i) : load_half(position + i);
}

/* A vector of cells of a position that has `d` values, from value `i` on; values behind the last are zeros. */
INLINE vf cells_of_cached(int is_int8, const uint16_t *position, int64_t i, int64_t d) {
#if CELL == 2
    vf low = load_cached(is_int8, position, i);
    return to_cells(low, i + VW < d ? load_cached(is_int8, position, i + VW) : (vf){0});
#else
    return (void)d, load_cached(is_int8, position, i);
#endif
}

/* The scales of `n` positions; those behind them become zeros (the memory may hold anything). */
static void read_scales(const uint16_t *scales, int64_t n, ChunkScales *out) {
    float pairs[2 * KEYS_PER_CHUNK] = {0};
    int64_t i = 0;
    for (; i + VW <= 2 * n; i += VW) store(pairs + i, load_half(scales + i));
    for (; i < 2 * n; i++) pairs[i] = half_to_float(scales[i]);
    for (int k = 0; k < KEYS_PER_CHUNK; k++) out->keys[k] = pairs[2 * k], out->values[k] = pairs[2 * k + 1];
}

INLINE void write_half(const float *x, int64_t width, uint16_t *target) {
#if defined(__AVX512F__)
    for (int64_t i = 0; i < width; i += VW) {
        __m512 y = (__m512)rounded(load(x + i));
        y = _mm512_max_ps(_mm512_min_ps(y, _mm512_set1_ps(LARGEST_HALF)), _mm512_set1_ps(-LARGEST_HALF));
        _mm256_storeu_si256((__m256i *)(target + i), _mm512_cvtps_ph(y, _MM_FROUND_TO_NEAREST_INT));
    }
#else
    for (int64_t i = 0; i < width; i++) target[i] = float_to_half(x[i]);
#endif
}

/* In steps of a 127th of the largest magnitude, as a half has it. What is below every half becomes zero. */
INLINE void write_int8(const float *x, int64_t width, int8_t *target, uint16_t *scale_out) {
    vf best = {0};
    for (int64_t i = 0; i < width; i += VW) best = maximum(magnitude(load(x + i)), best);
    uint16_t half = float_to_half(max_of(best) / 127.0f);
    float scale = half_to_float(half), inverse = scale > 0.0f ? 1.0f / scale : 0.0f;
    for (int64_t i = 0; i < width; i += VW)
        store_rounded(target + i, minimum(maximum(load(x + i) * inverse, splat(-127.0f)), splat(127.0f)));
    *scale_out = half;
}

#endif
