/* Rows in int8 blocks times matrices in the blocks of a GGUF file: four, six or eight bits a weight, as they were stored.
 *
 * A matrix is packed in panels of PANEL columns and, within one, in chunks of its depth
 * (models/graphs/block_layout.py has the layout): a panel streams from memory once. Few rows read it as it is; for many a chunk is unpacked once.
 * Either way each sum has the same order: the integers of a block, exact; times the row's and then the column's scale.
 */
#include "kernels.h"
#include "simd.h"

#define GROUP_BYTES (4 * PANEL)       /* a group: four values of the depth, all columns of the panel */
#define TILE_COLUMNS (2 * VW)
#define TILES (PANEL / TILE_COLUMNS)
#define FUSED_ROWS 4                  /* read packed weights together; */
#define MOST_FUSED_ROWS 8             /* up to here rows do, the second half from a cache */
#define MOST_TILE_ROWS 6              /* 6 x 2 sums of integers and of floats leave 8 of 32 registers */
#if VW > 4
#define IS_TILED 1
#define UNROLL _Pragma("GCC unroll 8")
#else
#define IS_TILED 0                    /* one row at a time: tiles without instructions for them only take long to compile */
#define UNROLL _Pragma("GCC unroll 1")
#endif
#define ROWS_AT_ONCE 96               /* of many, per unpacked chunk; their sums lie on a thread's stack */
#define LONGEST_CHUNK 256
#define BLOCKS_PER_CHUNK (LONGEST_CHUNK / BLOCK)
#define BLOCK_PREFETCH_BYTES 6144 /* into the second cache, as in product.h */

typedef int32_t vi_any __attribute__((vector_size(VW * 4), aligned(1), may_alias));

/* One chunk as bytes and floats: values [depth/4,PANEL,4], a scale per block or half block, a minimum per block. */
typedef struct {
    uint8_t values[LONGEST_CHUNK * PANEL];
    float scales[2 * BLOCKS_PER_CHUNK * PANEL], minima[BLOCKS_PER_CHUNK * PANEL];
} Unpacked;

INLINE int has_minima(int form) { return form == FORM_4_MIN || form == FORM_4_SUPER; }
INLINE int is_super(int form) { return form == FORM_4_SUPER || form == FORM_6_SUPER; }
INLINE int scales_per_block(int form) { return form == FORM_6_SUPER ? 2 : 1; }

INLINE vf multiply_add(vf a, vf b, vf c) {
#if defined(__AVX512F__)
    return (vf)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__FMA__)
    return (vf)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#else
    return a * b + c;
#endif
}

#if defined(__AVX512F__) /* the compiler takes bytes apart one by one here */
INLINE vf load_u8(const uint8_t *p) {
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
INLINE vf load_s8(const uint8_t *p) {
    return (vf)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)p)));
}
#elif defined(__AVX2__)
INLINE vf load_u8(const uint8_t *p) {
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
INLINE vf load_s8(const uint8_t *p) {
    return (vf)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)p)));
}
#else
INLINE vf load_u8(const uint8_t *p) {
    vf x = {0};
    for (int i = 0; i < VW; i++) x[i] = p[i];
    return x;
}
INLINE vf load_s8(const uint8_t *p) {
    vf x = {0};
    for (int i = 0; i < VW; i++) x[i] = (int8_t)p[i];
    return x;
}
#endif

INLINE vf load_half_at(const uint8_t *p) { return load_half((const uint16_t *)p); }

/* Where a chunk has the values of block `block`, and for six bits their upper two. */
INLINE const uint8_t *values_of(int form, const uint8_t *chunk, int64_t block) {
    switch (form) {
    case FORM_4: return chunk + 2 * PANEL;
    case FORM_4_MIN: return chunk + 4 * PANEL;
    case FORM_8: return chunk + 2 * PANEL;
    case FORM_4_SUPER: return chunk + (4 + 16) * PANEL + block * BLOCK / 2 * PANEL;
    default: return chunk + (2 + 16) * PANEL + block * BLOCK / 2 * PANEL;
    }
}
INLINE const uint8_t *upper_of(const uint8_t *chunk, int64_t block) {
    return chunk + (2 + 16 + LONGEST_CHUNK / 2) * PANEL + block * BLOCK / 4 * PANEL;
}

/* The exact fp32 scale of columns `column`.. in block `block`, of its second half where `half` is 1. */
INLINE vf scale_of(int form, const uint8_t *chunk, int64_t block, int half, int64_t column) {
    vf scale = load_half_at(chunk + 2 * column);
    if (form == FORM_4_SUPER) scale *= load_u8(chunk + 4 * PANEL + block * PANEL + column);
    if (form == FORM_6_SUPER) scale *= load_s8(chunk + 2 * PANEL + (2 * block + half) * PANEL + column);
    return scale;
}
INLINE vf minimum_of(int form, const uint8_t *chunk, int64_t block, int64_t column) {
    vf least = load_half_at(chunk + 2 * PANEL + 2 * column);
    if (form == FORM_4_SUPER) least *= -load_u8(chunk + (4 + 8) * PANEL + block * PANEL + column);
    return least;
}

/* Four values each of VW columns: group `group` of 0..7 of a block. Unsigned, but for FORM_8. */
INLINE vi group_of(int form, const uint8_t *values, const uint8_t *upper, int group, int64_t column) {
    if (form == FORM_8) return (vi) * (const vi_any *)(values + group * GROUP_BYTES + 4 * column);
    vi packed = (vi) * (const vi_any *)(values + (group & 3) * GROUP_BYTES + 4 * column);
    vi low = (group < 4 ? packed : packed >> 4) & 0x0f0f0f0f;
    if (form != FORM_6_SUPER) return low;
    vi high = (vi) * (const vi_any *)(upper + (group & 1) * GROUP_BYTES + 4 * column);
    vi placed = group < 2 ? high : group < 4 ? high >> 2 : group < 6 ? high << 4 : high << 2;
    return low | (placed & 0x30303030);
}

/* What FORM_8 is multiplied as where bytes must be unsigned: 128 more. */
#if defined(__AVX512VNNI__)
#define BYTE_OFFSET 128
#else
#define BYTE_OFFSET 0
#endif
INLINE int offset_of(int form) {
    return form == FORM_4 ? 8 : form == FORM_6_SUPER ? 32 : form == FORM_8 ? BYTE_OFFSET : 0;
}

/* sum + the products of four weights per lane with four signed bytes, the same in every lane. */
INLINE vi dot4_of(int is_signed, vi sum, vi weights, int32_t four) {
#if defined(__AVX512VNNI__)
    (void)is_signed;
    return (vi)_mm512_dpbusd_epi32((__m512i)sum, (__m512i)weights, _mm512_set1_epi32(four));
#elif defined(__AVX512F__) || defined(__AVX2__)
#if defined(__AVX512F__)
#define AS(name) _mm512_##name
    __m512i w = (__m512i)weights, x = _mm512_set1_epi32(four), pairs;
#else
#define AS(name) _mm256_##name
    __m256i w = (__m256i)weights, x = _mm256_set1_epi32(four), pairs;
#endif
    if (is_signed) { /* sums of two products need 17 bits */
        pairs = AS(madd_epi16)(AS(srai_epi16)(w, 8), AS(srai_epi16)(x, 8));
        w = AS(srai_epi16)(AS(slli_epi16)(w, 8), 8), x = AS(srai_epi16)(AS(slli_epi16)(x, 8), 8);
        return sum + (vi)pairs + (vi)AS(madd_epi16)(w, x);
    }
    return sum + (vi)AS(madd_epi16)(AS(maddubs_epi16)(w, x), AS(set1_epi16)(1));
#undef AS
#else
    for (int i = 0; i < 4; i++) {
        int32_t x = (int8_t)(four >> 8 * i);
        sum += (is_signed ? weights << (24 - 8 * i) >> 24 : weights >> 8 * i & 255) * x;
    }
    return sum;
#endif
}

/* The rows of a tile. */
typedef struct {
    const int8_t *x;
    const float *scale;
    const int32_t *sums;
    int64_t x_stride, scale_stride, sums_stride;
} TileRows;

INLINE TileRows rows_from(const BlockJob *job, int64_t first) {
    int64_t blocks = job->depth / BLOCK;
    return (TileRows){.x = job->x + first * job->depth, .scale = job->x_scale + first * blocks,
                      .sums = job->x_sums + first * 2 * blocks, .x_stride = job->depth, .scale_stride = blocks,
                      .sums_stride = 2 * blocks};
}

/* Start a sum of half a block (`halves` 1, beginning at `half`) or a whole one (2), less what is stored too high. */
INLINE vi begin(const TileRows *rows, int row, int64_t block, int half, int halves, int offset) {
    const int32_t *sums = rows->sums + row * rows->sums_stride + 2 * block + half;
    return (vi){0} - (offset == 0 ? 0 : offset * (halves == 2 ? sums[0] + sums[1] : sums[0]));
}

INLINE int32_t four_of(const TileRows *rows, int row, int64_t block, int group) {
    int32_t four;
    memcpy(&four, rows->x + row * rows->x_stride + block * BLOCK + 4 * group, sizeof four);
    return four;
}

INLINE vf scaled(vi sum, const TileRows *rows, int row, int64_t block, vf scale, vf total) {
    vf product = __builtin_convertvector(sum, vf) * rows->scale[row * rows->scale_stride + block];
    return multiply_add(product, scale, total);
}

INLINE vf with_minimum(const TileRows *rows, int row, int64_t block, vf least, vf total) {
    const int32_t *sums = rows->sums + row * rows->sums_stride + 2 * block;
    float sum = (float)(sums[0] + sums[1]) * rows->scale[row * rows->scale_stride + block];
    return multiply_add(splat(sum), least, total);
}

/* One block of packed weights for a few rows, or the `part` of it that has one scale. `at` is its place in the chunk. */
INLINE void fused_part(int count, int form, int part, const TileRows *rows, int64_t block, const uint8_t *chunk, int64_t at,
                       int64_t column, vf totals[][2]) {
    const uint8_t *values = values_of(form, chunk, at), *upper = upper_of(chunk, at);
    int parts = scales_per_block(form), groups = 8 / parts;
    vi sums[FUSED_ROWS][2];
    for (int r = 0; r < count; r++) sums[r][0] = sums[r][1] = begin(rows, r, block, part, 3 - parts, offset_of(form));
UNROLL
    for (int g = part * groups; g < (part + 1) * groups; g++)
        for (int v = 0; v < 2; v++) {
            vi w = group_of(form, values, upper, g, column + v * VW);
            if (form == FORM_8 && BYTE_OFFSET) w ^= (int32_t)0x80808080;
            for (int r = 0; r < count; r++)
                sums[r][v] = dot4_of(form == FORM_8, sums[r][v], w, four_of(rows, r, block, g));
        }
    for (int v = 0; v < 2; v++) {
        vf scale = scale_of(form, chunk, at, part, column + v * VW);
        for (int r = 0; r < count; r++) totals[r][v] = scaled(sums[r][v], rows, r, block, scale, totals[r][v]);
    }
}

INLINE void fused_block(int count, int form, const TileRows *rows, int64_t block, const uint8_t *chunk, int64_t at,
                        int64_t column, vf totals[][2]) {
    fused_part(count, form, 0, rows, block, chunk, at, column, totals);
    if (scales_per_block(form) == 2) fused_part(count, form, 1, rows, block, chunk, at, column, totals);
    if (!has_minima(form)) return;
    for (int v = 0; v < 2; v++) {
        vf least = minimum_of(form, chunk, at, column + v * VW);
        for (int r = 0; r < count; r++) totals[r][v] = with_minimum(rows, r, block, least, totals[r][v]);
    }
}

INLINE void store_columns(const BlockJob *job, int64_t row, int64_t column, vf low, vf high) {
    float values[TILE_COLUMNS];
    int64_t left = job->width - column;
    if (left <= 0) return;
    store(values, low), store(values + VW, high);
    size_t columns = (size_t)(left < TILE_COLUMNS ? left : TILE_COLUMNS);
    memcpy(job->product + row * job->product_stride + column, values, columns * sizeof(float));
}

INLINE void fused_rows(int count, int form, const BlockJob *job, int64_t first, int64_t panel) {
    const TileRows rows = rows_from(job, first);
    int64_t blocks = job->depth / BLOCK, per_chunk = is_super(form) ? BLOCKS_PER_CHUNK : 1;
    int64_t chunk_bytes = chunk_bytes_of(form), block_bytes = chunk_bytes / per_chunk;
    int64_t ahead = chunk_bytes > BLOCK_PREFETCH_BYTES ? chunk_bytes : BLOCK_PREFETCH_BYTES; /* a block reads all over it */
    const uint8_t *packed = job->packed + panel * (blocks / per_chunk) * chunk_bytes;
    for (int64_t tile = 0; tile < TILES; tile++) {
        const uint8_t *chunk = packed;
        int64_t column = tile * TILE_COLUMNS;
        vf totals[FUSED_ROWS][2] = {{{0}}};
        for (int64_t block = 0; block < blocks; block += per_chunk, chunk += chunk_bytes)
#pragma GCC unroll 1
            for (int64_t at = 0; at < per_chunk; at++) {
                if (tile == 0 && first == 0)
#pragma GCC unroll 17
                    for (int64_t i = 0; i < block_bytes; i += 64)
                        __builtin_prefetch(chunk + at * block_bytes + ahead + i, 0, 2);
                fused_block(count, form, &rows, block + at, chunk, at, column, totals);
            }
        for (int r = 0; r < count; r++)
            store_columns(job, first + r, panel * PANEL + column, totals[r][0], totals[r][1]);
    }
}

/* Unpack `blocks` blocks from `block` on: one chunk of super-blocks, or several smaller chunks. */
INLINE void unpack(int form, const uint8_t *chunk, int64_t chunk_bytes, int64_t blocks, Unpacked *out) {
    int parts = scales_per_block(form);
    for (int64_t b = 0; b < blocks; b++) {
        int64_t at = is_super(form) ? b : 0;
        const uint8_t *values = values_of(form, chunk, at), *upper = upper_of(chunk, at);
        for (int64_t column = 0; column < PANEL; column += VW) {
UNROLL
            for (int g = 0; g < 8; g++) {
                vi w = group_of(form, values, upper, g, column);
                if (form == FORM_8 && BYTE_OFFSET) w ^= (int32_t)0x80808080;
                *(vi_any *)(out->values + (b * 8 + g) * GROUP_BYTES + 4 * column) = w;
            }
            for (int part = 0; part < parts; part++)
                store(out->scales + (b * parts + part) * PANEL + column, scale_of(form, chunk, at, part, column));
            if (has_minima(form)) store(out->minima + b * PANEL + column, minimum_of(form, chunk, at, column));
        }
        if (!is_super(form)) chunk += chunk_bytes;
    }
}

/* The blocks of an unpacked chunk for one tile of rows and columns; `totals` [rows,PANEL] goes on from chunk to chunk.
 * Packed bytes from `later` on are fetched meanwhile; null: none. */
INLINE void unpacked_tile(int count, int form, const TileRows *rows, int64_t first_block, int64_t blocks,
                          const Unpacked *chunk, const uint8_t *later, int64_t column, float *totals) {
    int parts = scales_per_block(form), groups = 8 / parts;
    vf sums_of_rows[MOST_TILE_ROWS][2];
    for (int r = 0; r < count; r++)
        for (int v = 0; v < 2; v++) sums_of_rows[r][v] = load(totals + r * PANEL + column + v * VW);
    for (int64_t b = 0; b < blocks; b++) {
        int64_t block = first_block + b, bytes = chunk_bytes_of(form) / (is_super(form) ? BLOCKS_PER_CHUNK : 1);
        if (later != NULL)
#pragma GCC unroll 17
            for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(later + b * bytes + i, 0, 2);
        for (int part = 0; part < parts; part++) {
            vi sums[MOST_TILE_ROWS][2];
            const uint8_t *values = chunk->values + (b * 8 + part * groups) * GROUP_BYTES + 4 * column;
            for (int r = 0; r < count; r++)
                sums[r][0] = sums[r][1] = begin(rows, r, block, part, 3 - parts, offset_of(form));
UNROLL
            for (int g = 0; g < groups; g++) {
                vi w[2];
                for (int v = 0; v < 2; v++) w[v] = (vi) * (const vi_any *)(values + g * GROUP_BYTES + 4 * v * VW);
                for (int r = 0; r < count; r++) {
                    int32_t four = four_of(rows, r, block, part * groups + g);
                    for (int v = 0; v < 2; v++) sums[r][v] = dot4_of(form == FORM_8, sums[r][v], w[v], four);
                }
            }
            for (int v = 0; v < 2; v++) {
                vf scale = load(chunk->scales + (b * parts + part) * PANEL + column + v * VW);
                for (int r = 0; r < count; r++)
                    sums_of_rows[r][v] = scaled(sums[r][v], rows, r, block, scale, sums_of_rows[r][v]);
            }
        }
        for (int v = 0; v < 2 && has_minima(form); v++) {
            vf least = load(chunk->minima + b * PANEL + column + v * VW);
            for (int r = 0; r < count; r++)
                sums_of_rows[r][v] = with_minimum(rows, r, block, least, sums_of_rows[r][v]);
        }
    }
    for (int r = 0; r < count; r++)
        for (int v = 0; v < 2; v++) store(totals + r * PANEL + column + v * VW, sums_of_rows[r][v]);
}

/* Rows of the next tile when `left` are left: few tiles, of about equal size. */
INLINE int64_t tile_rows(int64_t left) {
    if (!IS_TILED) return 1;
    if (left <= MOST_TILE_ROWS) return left;
    return left < 2 * MOST_TILE_ROWS ? (left + 1) / 2 : MOST_TILE_ROWS;
}

INLINE void unpacked_rows(int form, const BlockJob *job, int64_t panel, int64_t first, int64_t num_rows) {
    int64_t all_blocks = job->depth / BLOCK, per_chunk = is_super(form) ? BLOCKS_PER_CHUNK : 1;
    int64_t chunk_bytes = chunk_bytes_of(form);
    const uint8_t *packed = job->packed + panel * (all_blocks / per_chunk) * chunk_bytes;
    float totals[ROWS_AT_ONCE * PANEL] __attribute__((aligned(64)));
    Unpacked chunk __attribute__((aligned(64)));
    memset(totals, 0, (size_t)num_rows * PANEL * sizeof *totals);
    for (int64_t block = 0; block < all_blocks; block += BLOCKS_PER_CHUNK) {
        int64_t blocks = all_blocks - block < BLOCKS_PER_CHUNK ? all_blocks - block : BLOCKS_PER_CHUNK;
        const uint8_t *from = packed + block / per_chunk * chunk_bytes;
        int64_t bytes = BLOCKS_PER_CHUNK / per_chunk * chunk_bytes;
        unpack(form, from, chunk_bytes, blocks, &chunk);
        for (int64_t done = 0, count; done < num_rows; done += count) {
            count = tile_rows(num_rows - done);
            const TileRows rows = rows_from(job, first + done);
            for (int64_t column = 0; column < PANEL; column += TILE_COLUMNS) {
                const uint8_t *later = first + done + column == 0 ? from + bytes : NULL;
                switch (count) {
#define TILE_OF(n) case n: unpacked_tile(n, form, &rows, block, blocks, &chunk, later, column, totals + done * PANEL); break;
                    TILE_OF(1)
#if IS_TILED
                    TILE_OF(2) TILE_OF(3) TILE_OF(4) TILE_OF(5) TILE_OF(6)
#endif
#undef TILE_OF
                }
            }
        }
    }
    for (int64_t r = 0; r < num_rows; r++)
        for (int64_t column = 0; column < PANEL; column += TILE_COLUMNS)
            store_columns(job, first + r, panel * PANEL + column, load(totals + r * PANEL + column),
                          load(totals + r * PANEL + column + VW));
}

INLINE void rows_of_form(int form, const BlockJob *job, int64_t panel) {
#if IS_TILED
    if (job->num_rows <= MOST_FUSED_ROWS) {
        int64_t count = job->num_rows <= FUSED_ROWS ? job->num_rows : (job->num_rows + 1) / 2;
        for (int64_t first = 0; first < job->num_rows; first += count)
            switch (job->num_rows - first < count ? job->num_rows - first : count) {
            case 1: fused_rows(1, form, job, first, panel); break;
            case 2: fused_rows(2, form, job, first, panel); break;
            case 3: fused_rows(3, form, job, first, panel); break;
            case 4: fused_rows(4, form, job, first, panel); break;
            }
        return;
    }
#endif
    for (int64_t first = 0; first < job->num_rows; first += ROWS_AT_ONCE) {
        int64_t left = job->num_rows - first;
        unpacked_rows(form, job, panel, first, left < ROWS_AT_ONCE ? left : ROWS_AT_ONCE);
    }
}

static void block_panel(void *data, size_t panel) {
    const BlockJob *job = data;
    switch (job->form) {
    case FORM_4: rows_of_form(FORM_4, job, (int64_t)panel); break;
    case FORM_4_MIN: rows_of_form(FORM_4_MIN, job, (int64_t)panel); break;
    case FORM_8: rows_of_form(FORM_8, job, (int64_t)panel); break;
    case FORM_4_SUPER: rows_of_form(FORM_4_SUPER, job, (int64_t)panel); break;
    default: rows_of_form(FORM_6_SUPER, job, (int64_t)panel);
    }
}
