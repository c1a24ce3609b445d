/* What attention multiplies: floats, or bf16 where the processor has instructions for that. Prompts then multiply two at
 * a time and single tokens one, but the same values: queries, weights and what goes into the cache are rounded to bf16.
 *
 * A cell holds CELL neighbours along the depth of a product. A cell's products are added in a fixed order, and a zero
 * adds nothing, so that cells change none of what prefill.h says of bits.
 */
#ifndef FENHE_CELLS_H
#define FENHE_CELLS_H

#include "kernels.h"
#include "simd.h"

#if defined(__AVX512BF16__)
#define CELL 2
#define LARGEST_HALF 65280.0f /* that is a bf16 too */
typedef int32_t Cell; /* the first in the lower half */

INLINE vf rounded(vf x) {
    __m512i bits = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)x));
    return (vf)_mm512_slli_epi32(bits, 16);
}

/* A weight is two to the power of its score less this bound, and at most 1. As bounds are whole numbers, weights that were
 * taken against different ones differ by an exact power of two: chunks and single tokens round them alike. */
INLINE float bound_of(float largest) { return ceilf(largest); }

INLINE vf load_cells(const Cell *p) { return (vf)_mm512_loadu_si512(p); }
INLINE void put_cells(Cell *p, vf x) { _mm512_storeu_si512(p, (__m512i)x); }
INLINE vf add_products(vf sum, Cell a, vf b) {
    return (vf)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_epi32(a), (__m512bh)b);
}

/* 2 * VW neighbours, rounded to the nearest bf16. */
INLINE vf to_cells(vf low, vf high) { return (vf)_mm512_cvtne2ps_pbh((__m512)high, (__m512)low); }

/* Lane i holds first[i] and second[i]. */
INLINE vf pair_cells(vf first, vf second) {
    __m512i low = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)first));
    __m512i high = _mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)second));
    return (vf)_mm512_or_si512(low, _mm512_slli_epi32(high, 16));
}
#else
#define CELL 1
#define LARGEST_HALF 65504.0f
typedef float Cell;

INLINE vf rounded(vf x) { return x; }
INLINE float bound_of(float largest) { return largest; }

INLINE vf load_cells(const Cell *p) { return load(p); }
INLINE void put_cells(Cell *p, vf x) { store(p, x); }
INLINE vf add_products(vf sum, Cell a, vf b) { return sum + b * a; }
#endif

/* Cells of a head, whole vectors of them: the last ones may be zeros. */
INLINE int64_t cells_of(int64_t d) { return (d + CELL * VW - 1) / (CELL * VW) * VW; }

/* A vector of cells from `left` or more values; left is a multiple of VW. */
INLINE vf cells_of_floats(const float *p, int64_t left) {
#if CELL == 2
    return to_cells(load(p), left > VW ? load(p + VW) : (vf){0});
#else
    return (void)left, load(p);
#endif
}

/* Put the weights of a chunk's keys, and return their sum by lanes: of what was put, so that they still add up to one. */
INLINE vf put_weights(const vf weights[KEYS_PER_CHUNK / VW], Cell *out) {
    vf sum = {0};
#if CELL == 2
    for (int v = 0; v < KEYS_PER_CHUNK / VW; v += 2) {
        vf cells = to_cells(weights[v], weights[v + 1]);
        put_cells(out + v / 2 * VW, cells);
        sum = add_products(sum, 0x3f803f80, cells); /* 1 and 1 */
    }
#else
    for (int v = 0; v < KEYS_PER_CHUNK / VW; v++) {
        put_cells(out + v * VW, weights[v]);
        sum += weights[v];
    }
#endif
    return sum;
}

/* The same in int8: what is put has the scale of each key's value, and the sum does not. */
INLINE vf put_scaled_weights(const vf weights[KEYS_PER_CHUNK / VW], const float *scales, Cell *out) {
    vf sum = {0}, scaled[KEYS_PER_CHUNK / VW];
    for (int v = 0; v < KEYS_PER_CHUNK / VW; v++) {
        sum += weights[v];
        scaled[v] = weights[v] * load(scales + v * VW);
    }
    put_weights(scaled, out);
    return sum;
}

#endif
