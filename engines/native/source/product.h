/* Quantised rows times int8 columns. Sums are exact integers, so neither tiling nor threads change a bit.
 *
 * Weights are packed in panels of PANEL columns, each [K/4,PANEL,4]: a panel streams from memory once for all rows.
 */
#include "kernels.h"
#include "simd.h"

#define PANEL_VECTORS (PANEL / VW)
#if VW == 16
#define PRODUCT_ROWS 12 /* 12 x 2 sums of 32 registers */
#else
#define PRODUCT_ROWS 2
#endif
#define PREFETCH_BYTES 8192 /* into the second cache: the first one is full of rows and of weights in use */

/* sum + the products of four unsigned bytes, the same in every lane, with four signed bytes per lane. */
typedef int32_t vi_loose __attribute__((vector_size(VW * 4), aligned(4), may_alias));

INLINE vi dot4(vi sum, int32_t four, vi weights) {
#if defined(__AVX512VNNI__)
    return (vi)_mm512_dpbusd_epi32((__m512i)sum, _mm512_set1_epi32(four), (__m512i)weights);
#else
    for (int i = 0; i < 4; i++) sum += (weights << (24 - 8 * i) >> 24) * (four >> 8 * i & 255);
    return sum;
#endif
}

INLINE void product_tile(int rows, const ProductJob *job, int64_t first, int64_t panel) {
    const int8_t *weights = job->packed + panel * job->depth * PANEL;
    const uint8_t *x = job->x + first * job->x_stride;
    vi sums[PRODUCT_ROWS][PANEL_VECTORS];
    for (int r = 0; r < rows; r++) /* no memcpy: it would keep the sums in memory */
        for (int v = 0; v < PANEL_VECTORS; v++) sums[r][v] = *(const vi_loose *)(job->offsets + panel * PANEL + v * VW);
    for (int64_t k = 0; k < job->depth; k += 4) {
        vi w[PANEL_VECTORS];
        for (int v = 0; v < PANEL_VECTORS; v++) w[v] = *(const vi_loose *)(weights + k * PANEL + 4 * v * VW);
        if (first == 0)
            for (int i = 0; i < 4 * PANEL; i += 64) __builtin_prefetch(weights + k * PANEL + PREFETCH_BYTES + i, 0, 2);
        for (int r = 0; r < rows; r++) {
            int32_t four;
            memcpy(&four, x + r * job->x_stride + k, sizeof four);
            for (int v = 0; v < PANEL_VECTORS; v++) sums[r][v] = dot4(sums[r][v], four, w[v]);
        }
    }
    int64_t columns = job->width - panel * PANEL < PANEL ? job->width - panel * PANEL : PANEL;
    for (int r = 0; r < rows; r++) {
        float scale = job->row_scale ? job->row_scale[first + r] : 1.0f, values[PANEL];
        for (int v = 0; v < PANEL_VECTORS; v++)
            store(values + v * VW, __builtin_convertvector(sums[r][v], vf) * load(job->column_scale + panel * PANEL + v * VW) * scale);
        memcpy(job->product + (first + r) * job->product_stride + panel * PANEL, values, (size_t)columns * sizeof(float));
    }
}

static void product_panel(void *data, size_t panel) {
    const ProductJob *job = data;
    int64_t first = 0;
    for (; first + PRODUCT_ROWS <= job->num_rows; first += PRODUCT_ROWS) product_tile(PRODUCT_ROWS, job, first, (int64_t)panel);
#if PRODUCT_ROWS > 2
    for (; first + 8 <= job->num_rows; first += 8) product_tile(8, job, first, (int64_t)panel);
    for (; first + 4 <= job->num_rows; first += 4) product_tile(4, job, first, (int64_t)panel);
    for (; first + 2 <= job->num_rows; first += 2) product_tile(2, job, first, (int64_t)panel);
#endif
    for (; first < job->num_rows; first++) product_tile(1, job, first, (int64_t)panel);
}
