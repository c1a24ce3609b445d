/* Vectors of the widest kind this translation unit may use, and the few operations that plain C vectors lack. */
#ifndef FENHE_SIMD_H
#define FENHE_SIMD_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX2__)
#include <immintrin.h>
#endif

#if defined(__AVX512F__)
#define VW 16
#define TILE_VECTORS 4 /* 6 rows x 4 vectors of sums leave 8 of 32 registers */
#elif defined(__AVX2__)
#define VW 8
#define TILE_VECTORS 2 /* 6 x 2 of 16 registers */
#else
#define VW 4
#define TILE_VECTORS 2
#endif
#define TILE_ROWS 6

#define INLINE static inline __attribute__((always_inline))

typedef float vf __attribute__((vector_size(VW * 4)));
typedef int32_t vi __attribute__((vector_size(VW * 4)));
typedef float vf_loose __attribute__((vector_size(VW * 4), aligned(4), may_alias));
typedef uint8_t vb __attribute__((vector_size(VW)));

INLINE vf load(const float *p) { return *(const vf_loose *)p; }
INLINE void store(float *p, vf x) { *(vf_loose *)p = x; }
INLINE vf splat(float x) { return x - (vf){0}; }
INLINE vf choose(vi mask, vf yes, vf no) { return (vf)((mask & (vi)yes) | (~mask & (vi)no)); }
#if defined(__AVX512F__) /* the compiler does not see through `choose` here */
INLINE vf maximum(vf a, vf b) { return (vf)_mm512_max_ps((__m512)a, (__m512)b); }
INLINE vf minimum(vf a, vf b) { return (vf)_mm512_min_ps((__m512)a, (__m512)b); }
#elif defined(__AVX2__)
INLINE vf maximum(vf a, vf b) { return (vf)_mm256_max_ps((__m256)a, (__m256)b); }
INLINE vf minimum(vf a, vf b) { return (vf)_mm256_min_ps((__m256)a, (__m256)b); }
#else
INLINE vf maximum(vf a, vf b) { return choose(a > b, a, b); }
INLINE vf minimum(vf a, vf b) { return choose(a < b, a, b); }
#endif
INLINE vf magnitude(vf x) { return (vf)((vi)x & 0x7fffffff); }

INLINE vi lane_index(void) {
    vi index = {0};
    for (int i = 0; i < VW; i++) index[i] = i;
    return index;
}

INLINE float sum_of(vf x) {
    float t[VW];
    memcpy(t, &x, sizeof t);
    for (int half = VW / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) t[i] += t[i + half];
    return t[0];
}

INLINE float max_of(vf x) {
#if defined(__AVX512F__)
    return _mm512_reduce_max_ps((__m512)x);
#else
    float t[VW];
    memcpy(t, &x, sizeof t);
    for (int half = VW / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++) t[i] = t[i] > t[i + half] ? t[i] : t[i + half];
    return t[0];
#endif
}

/* Lane i of the result is the sum of rows[i]. */
INLINE vf sums_of(const vf rows[VW]) {
#if defined(__AVX512F__)
    __m512 quad[4];
    for (int i = 0; i < 4; i++) { /* quad[i] lane group j: four partial sums of row 4*j+i */
        __m512 a = (__m512)rows[i], b = (__m512)rows[4 + i], c = (__m512)rows[8 + i], d = (__m512)rows[12 + i];
        __m512 ab = _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x44), _mm512_shuffle_f32x4(a, b, 0xee));
        __m512 cd = _mm512_add_ps(_mm512_shuffle_f32x4(c, d, 0x44), _mm512_shuffle_f32x4(c, d, 0xee));
        quad[i] = _mm512_add_ps(_mm512_shuffle_f32x4(ab, cd, 0x88), _mm512_shuffle_f32x4(ab, cd, 0xdd));
    }
    __m512 xy = _mm512_add_ps(_mm512_unpacklo_ps(quad[0], quad[1]), _mm512_unpackhi_ps(quad[0], quad[1]));
    __m512 zw = _mm512_add_ps(_mm512_unpacklo_ps(quad[2], quad[3]), _mm512_unpackhi_ps(quad[2], quad[3]));
    __m512d low = _mm512_unpacklo_pd(_mm512_castps_pd(xy), _mm512_castps_pd(zw));
    __m512d high = _mm512_unpackhi_pd(_mm512_castps_pd(xy), _mm512_castps_pd(zw));
    return (vf)_mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
#else
    vf sums = {0};
    for (int i = 0; i < VW; i++) sums[i] = sum_of(rows[i]);
    return sums;
#endif
}

/* 2 to the power of x <= 126, to about 2e-7 relative and exact at 0; x below -126 gives a tiny number. */
INLINE vf exp2_of(vf x) {
    const vf shifter = splat(12582912.0f); /* 1.5 * 2^23: adding it rounds to an integer, kept in the low bits */
    x = maximum(x, splat(-126.0f));
    vf shifted = x + shifter;
    vf r = x - (shifted - shifter);
    vf p = splat(1.32647268e-3f); /* fitted to least relative error on [-1/2, 1/2] */
    p = p * r + 9.67151267e-3f;
    p = p * r + 5.55073374e-2f;
    p = p * r + 2.40222421e-1f;
    p = p * r + 6.93146978e-1f;
    p = p * r + 1.0f;
    return (vf)((vi)p + ((vi)shifted << 23));
}

INLINE float half_to_float(uint16_t h) {
    uint32_t bits = (uint32_t)(h & 0x7fff) << 13;
    float f;
    memcpy(&f, &bits, 4);
    f *= 0x1p112f; /* moves the exponent bias, and makes subnormal halves right */
    if ((h & 0x7c00) == 0x7c00) {
        bits |= 0x7f800000;
        memcpy(&f, &bits, 4);
    }
    return h & 0x8000 ? -f : f;
}

/* To the nearest half, ties to even; beyond the range the largest half, so that the cache never holds an infinity. */
INLINE uint16_t float_to_half(float f) {
    uint32_t bits;
    memcpy(&bits, &f, 4);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    bits &= 0x7fffffff;
    if (bits > 0x7f800000) return sign | 0x7e00;
    if (bits >= 0x477fe000) return sign | 0x7bff;
    if (bits >= 0x38800000) return sign | (uint16_t)((bits - 0x38000000 + 0xfff + (bits >> 13 & 1)) >> 13);
    float small;
    memcpy(&small, &bits, 4);
    small += 0.5f; /* a subnormal half is a multiple of 2^-24, the spacing of floats at 0.5 */
    memcpy(&bits, &small, 4);
    return sign | (uint16_t)(bits - 0x3f000000);
}

INLINE vf load_half(const uint16_t *p) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
#elif defined(__AVX2__)
    return (vf)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
#else
    vf x = {0};
    for (int i = 0; i < VW; i++) x[i] = half_to_float(p[i]);
    return x;
#endif
}

INLINE vf load_bytes(const int8_t *p) {
#if defined(__AVX512F__)
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
#elif defined(__AVX2__)
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
#else
    vf x = {0};
    for (int i = 0; i < VW; i++) x[i] = p[i];
    return x;
#endif
}

/* Lanes must hold integers -128..127 after rounding. */
INLINE void store_rounded(int8_t *p, vf x) {
    vi q = (vi)(x + 12582912.0f);
#if defined(__AVX512F__)
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8((__m512i)q));
#else
    vb bytes = __builtin_convertvector(q, vb);
    memcpy(p, &bytes, VW);
#endif
}

/* Lanes must hold integers -128..127 after rounding; stored with 128 added. */
INLINE void store_quantized(uint8_t *p, vf x) {
    vf shifted = x + 12582912.0f;
    vi q = ((vi)shifted & 0xff) ^ 0x80; /* two's complement plus 128 */
#if defined(__AVX512F__)
    _mm_storeu_si128((__m128i *)p, _mm512_cvtepi32_epi8((__m512i)q));
#else
    vb bytes = __builtin_convertvector(q, vb);
    memcpy(p, &bytes, VW);
#endif
}

#endif
