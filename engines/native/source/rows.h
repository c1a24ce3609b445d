/* Operations that look at one token at a time: norms, SwiGLU, and symmetric quantisation to u8 around 128. */
#include <stdlib.h>

#include "kernels.h"
#include "simd.h"

#define TINY_ROW 1e-30f /* rows below it quantise to zero: 127 / maximum would overflow */

INLINE float largest_magnitude(const float *x, const float *factor, int64_t width) {
    vf best[2] = {{0}, {0}};
    int64_t i = 0;
    for (; i + 2 * VW <= width; i += 2 * VW)
        for (int k = 0; k < 2; k++) {
            vf y = load(x + i + k * VW);
            best[k] = maximum(magnitude(factor ? y * load(factor + i + k * VW) : y), best[k]);
        }
    float largest = max_of(maximum(best[0], best[1]));
    for (; i < width; i++) {
        float y = fabsf(factor ? x[i] * factor[i] : x[i]);
        largest = y > largest ? y : largest;
    }
    return largest;
}

/* Quantise x * factor (factor may be null) and return maximum / 127. */
INLINE float quantize(const float *x, const float *factor, int64_t width, uint8_t *q) {
    float largest = largest_magnitude(x, factor, width);
    if (!(largest > TINY_ROW)) {
        memset(q, 128, (size_t)width);
        return 0.0f;
    }
    float inverse = 127.0f / largest;
    int64_t i = 0;
    for (; i + VW <= width; i += VW) {
        vf y = load(x + i);
        store_quantized(q + i, (factor ? y * load(factor + i) : y) * inverse);
    }
    for (; i < width; i++) q[i] = (uint8_t)(lrintf((factor ? x[i] * factor[i] : x[i]) * inverse) + 128);
    return largest / 127.0f;
}

/* Quantise x * factor (factor may be null) in blocks, each with a scale of its own (times `multiplier`), and add up the
 * integers of each half block. */
INLINE void quantize_blocks(const float *x, const float *factor, int64_t width, float multiplier, int8_t *q, float *scales,
                            int32_t *sums) {
    for (int64_t start = 0; start < width; start += BLOCK, scales++, sums += 2) {
        const float *gamma = factor ? factor + start : NULL;
        float largest = largest_magnitude(x + start, gamma, BLOCK);
        int is_zero = !(largest > TINY_ROW);
        float inverse = is_zero ? 0.0f : 127.0f / largest;
        for (int64_t i = 0; i < BLOCK; i += VW) {
            vf y = load(x + start + i);
            y = (gamma ? y * load(gamma + i) : y) * inverse;
            store_rounded(q + start + i, is_zero ? splat(0.0f) : y);
        }
        *scales = is_zero ? 0.0f : largest / 127.0f * multiplier;
        for (int half = 0; half < 2; half++) {
            int32_t sum = 0;
            for (int i = 0; i < BLOCK / 2; i++) sum += q[start + half * (BLOCK / 2) + i];
            sums[half] = sum;
        }
    }
}

/* What ends a row operation: one scale for the row, or with `block_sums` one for every block. */
INLINE void quantize_either(const float *x, const float *factor, int64_t width, float multiplier, int64_t token, uint8_t *q,
                            float *scales, int32_t *block_sums) {
    if (block_sums)
        quantize_blocks(x, factor, width, multiplier, (int8_t *)q + token * width, scales + token * (width / BLOCK),
                        block_sums + token * (2 * width / BLOCK));
    else scales[token] = quantize(x, factor, width, q + token * width) * multiplier;
}

/* target = x + skip * scale. */
INLINE void add_scaled(const float *x, const float *skip, float scale, int64_t width, float *target) {
    int64_t i = 0;
    for (; i + VW <= width; i += VW) store(target + i, load(x + i) + load(skip + i) * scale);
    for (; i < width; i++) target[i] = x[i] + skip[i] * scale;
}

INLINE float sum_of_squares(const float *x, int64_t width) {
    vf total[4] = {{0}, {0}, {0}, {0}};
    int64_t i = 0;
    for (; i + 4 * VW <= width; i += 4 * VW)
        for (int k = 0; k < 4; k++) {
            vf y = load(x + i + k * VW);
            total[k] += y * y;
        }
    float sum = sum_of((total[0] + total[1]) + (total[2] + total[3]));
    for (; i < width; i++) sum += x[i] * x[i];
    return sum;
}

static void add_row(void *data, size_t token) {
    const RowJob *job = data;
    int64_t at = (int64_t)token * job->width;
    add_scaled(job->x + at, job->skip + at, job->skip_scale ? job->skip_scale[token] : 1.0f, job->width, job->sum + at);
}

static void norm_row(void *data, size_t token) {
    const RowJob *job = data;
    int64_t width = job->width, at = (int64_t)token * width;
    const float *x = job->x + at;
    if (job->skip) {
        add_row(data, token);
        x = job->sum + at;
    } else if (job->sum && job->sum != job->x) {
        memcpy(job->sum + at, x, (size_t)width * sizeof *x);
    }
    float inverse = 1.0f / sqrtf(sum_of_squares(x, width) / (float)width + job->epsilon);
    if (job->q) quantize_either(x, job->gamma, width, inverse, (int64_t)token, job->q, job->row_scale, job->block_sums);
    if (!job->normed) return;
    for (int64_t i = 0; i < width; i++) job->normed[at + i] = x[i] * inverse * job->gamma[i];
}

static void quantize_row(void *data, size_t token) {
    const RowJob *job = data;
    int64_t at = (int64_t)token * job->width;
    quantize_either(job->x + at, NULL, job->width, 1.0f, (int64_t)token, job->q, job->row_scale, job->block_sums);
}

/* Mix `parts` equal parts of a row by the Hadamard matrix, not yet divided by sqrt(parts). */
INLINE void hadamard(float *x, int64_t width, int64_t parts) {
    for (int64_t span = width / parts; span < width; span *= 2)
        for (int64_t start = 0; start < width; start += 2 * span) {
            float *low = x + start, *high = low + span;
            int64_t i = 0;
            for (; i + VW <= span; i += VW) {
                vf a = load(low + i), b = load(high + i);
                store(low + i, a + b);
                store(high + i, a - b);
            }
            for (; i < span; i++) {
                float a = low[i], b = high[i];
                low[i] = a + b;
                high[i] = a - b;
            }
        }
}

INLINE vf swiglu(vf gate, vf up, float scale) {
    gate *= scale;
    return gate / (1.0f + exp2_of(minimum(gate * -1.44269504f, splat(126.0f)))) * (up * scale);
}

INLINE void swiglu_block(const float *gate, const float *up, float scale, int64_t count, float *hidden) {
    int64_t i = 0;
    for (; i + VW <= count; i += VW) store(hidden + i, swiglu(load(gate + i), load(up + i), scale));
    for (; i < count; i++) hidden[i] = swiglu(splat(gate[i]), splat(up[i]), scale)[0];
}

static void swiglu_row(void *data, size_t token) {
    const RowJob *job = data;
    const float *x = job->x + (int64_t)token * 2 * job->width;
    int64_t width = width_of(&job->widths, (int64_t)token), num_neurons = job->widths.neurons[width], start = 0;
    float hidden[num_neurons]; /* row_operators.c bounds it, so this fits a thread's stack */
    for (int64_t block = job->widths.num_widths - 1; block >= width; block--) {
        int64_t end = job->widths.neurons[block], count = end - start;
        swiglu_block(x + 2 * start, x + 2 * start + count, job->scale ? job->scale[token] : 1.0f, count, hidden + start);
        start = end;
    }
    hadamard(hidden, num_neurons, job->parts[width]);
    if (job->block_sums) {
        quantize_either(hidden, NULL, num_neurons, 1.0f, (int64_t)token, job->q, job->row_scale, job->block_sums);
        return;
    }
    float step = quantize(hidden, NULL, num_neurons, job->q + (int64_t)token * job->width);
    job->row_scale[token] = step / sqrtf((float)job->parts[width]);
}
