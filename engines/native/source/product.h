/* Quantised rows times int8 columns. Sums are exact integers, so neither tiling nor threads change a bit.
 *
 * Weights are packed in panels of PANEL columns, each [K/4,PANEL,4]: a panel streams from memory once for all rows.
 */
#include "kernels.h"
#include "simd.h"

#define PANEL_VECTORS (PANEL / VW)
#if VW == 16
#define PRODUCT_ROWS 12 /* 12 x 2 sums of 32 registers */
#define PRODUCT_VECTORS PANEL_VECTORS
#elif VW == 8
#define PRODUCT_ROWS 4 /* 4 x 2 sums of 16 registers, beside the halves of two vectors of weights and of a row */
#define PRODUCT_VECTORS 2
#else
#define PRODUCT_ROWS 2
#define PRODUCT_VECTORS PANEL_VECTORS
#endif
#define PREFETCH_BYTES 8192 /* into the second cache: the first one is full of rows and of weights in use */

typedef int32_t vi_loose __attribute__((vector_size(VW * 4), aligned(4), may_alias));

/* Four bytes per lane as they are multiplied: as they are with VNNI. With AVX2 and AVX-512 their even and odd ones as
 * 16-bit numbers, whose products one instruction adds in pairs exactly (sums of byte products would saturate there). */
#if defined(__AVX512VNNI__)
typedef struct {
    vi all;
} Fours;

INLINE Fours weight_fours(vi weights) { return (Fours){weights}; }
INLINE Fours row_fours(int32_t four) { return (Fours){(vi)_mm512_set1_epi32(four)}; }
INLINE vi dot4(vi sum, Fours row, Fours weights) {
    return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)row.all, (__m512i)weights.all);
}
#elif defined(__AVX2__)
#if defined(__AVX512F__)
typedef __m512i Integers;
#define OF_WIDTH(name) _mm512_##name
#else
typedef __m256i Integers;
#define OF_WIDTH(name) _mm256_##name
#endif
typedef struct {
    vi even, odd;
} Fours;

INLINE Fours weight_fours(vi weights) {
    Integers even = OF_WIDTH(srai_epi16)(OF_WIDTH(slli_epi16)((Integers)weights, 8), 8);
    return (Fours){(vi)even, (vi)OF_WIDTH(srai_epi16)((Integers)weights, 8)};
}
INLINE Fours row_fours(int32_t four) {
    Integers row = OF_WIDTH(set1_epi32)(four);
    __asm__("" : "+v"(row)); /* else the compiler masks the number first and fills two vectors from it */
    return (Fours){(vi)row & 0x00ff00ff, (vi)OF_WIDTH(srli_epi16)(row, 8)};
}
INLINE vi dot4(vi sum, Fours row, Fours weights) {
    sum += (vi)OF_WIDTH(madd_epi16)((Integers)row.even, (Integers)weights.even);
    return sum + (vi)OF_WIDTH(madd_epi16)((Integers)row.odd, (Integers)weights.odd);
}
#undef OF_WIDTH
#else
typedef struct {
    vi all;
} Fours;

INLINE Fours weight_fours(vi weights) { return (Fours){weights}; }
INLINE Fours row_fours(int32_t four) { return (Fours){four - (vi){0}}; }
INLINE vi dot4(vi sum, Fours row, Fours weights) {
    for (int i = 0; i < 4; i++) sum += (weights.all << (24 - 8 * i) >> 24) * (row.all >> 8 * i & 255);
    return sum;
}
#endif

/* `rows` rows times `vectors` vectors of columns, from `column` of the panel on. */
INLINE void product_tile(int rows, int vectors, const ProductJob *job, int64_t first, int64_t panel, int64_t column) {
    const int8_t *weights = job->packed + panel * job->depth * PANEL + 4 * column;
    const uint8_t *x = job->x + first * job->x_stride;
    int64_t start = panel * PANEL + column, columns = job->width - start < vectors * VW ? job->width - start : vectors * VW;
    if (columns <= 0) return;
    vi sums[PRODUCT_ROWS][PANEL_VECTORS];
    for (int r = 0; r < rows; r++) /* no memcpy: it would keep the sums in memory */
        for (int v = 0; v < vectors; v++) sums[r][v] = *(const vi_loose *)(job->offsets + start + v * VW);
    for (int64_t k = 0; k < job->depth; k += 4) {
        Fours w[PANEL_VECTORS];
        for (int v = 0; v < vectors; v++) w[v] = weight_fours(*(const vi_loose *)(weights + k * PANEL + 4 * v * VW));
        if (first == 0 && column == 0)
            for (int i = 0; i < 4 * PANEL; i += 64) __builtin_prefetch(weights + k * PANEL + PREFETCH_BYTES + i, 0, 2);
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, x + r * job->x_stride + k, sizeof four);
            Fours row = row_fours(four);
            for (int v = 0; v < vectors; v++) sums[r][v] = dot4(sums[r][v], row, w[v]);
        }
    }
    for (int r = 0; r < rows; r++) {
        float scale = job->row_scale ? job->row_scale[first + r] : 1.0f, values[PANEL];
        for (int v = 0; v < vectors; v++)
            store(values + v * VW, __builtin_convertvector(sums[r][v], vf) * load(job->column_scale + start + v * VW) * scale);
        memcpy(job->product + (first + r) * job->product_stride + start, values, (size_t)columns * sizeof(float));
    }
}

INLINE void product_rows(int rows, int vectors, const ProductJob *job, int64_t first, int64_t panel) {
    for (int64_t column = 0; column < PANEL; column += vectors * VW) product_tile(rows, vectors, job, first, panel, column);
}

static void product_panel(void *data, size_t panel) {
    const ProductJob *job = data;
    int64_t first = 0, at = (int64_t)panel;
    for (; first + PRODUCT_ROWS <= job->num_rows; first += PRODUCT_ROWS)
        product_rows(PRODUCT_ROWS, PRODUCT_VECTORS, job, first, at);
#if PRODUCT_ROWS > 4
    for (; first + 8 <= job->num_rows; first += 8) product_rows(8, PANEL_VECTORS, job, first, at);
    for (; first + 4 <= job->num_rows; first += 4) product_rows(4, PANEL_VECTORS, job, first, at);
#endif
#if PRODUCT_ROWS > 2
    for (; first + 2 <= job->num_rows; first += 2) product_rows(2, PANEL_VECTORS, job, first, at);
#endif
    for (; first < job->num_rows; first++) product_rows(1, PANEL_VECTORS, job, first, at);
}
