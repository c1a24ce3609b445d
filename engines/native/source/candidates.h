/* Exact logits for the tokens that matter, over previews of all.
 *
 * The candidates of a row are the tokens whose preview lies within a distance of the best, frequent tokens aside. The
 * distance is `reach`, or the largest of a fixed series of smaller ones that leaves at most `num_candidates`.
 */
#include <math.h>

#include "kernels.h"
#include "simd.h"

#define HALVINGS 8
#define ROWS_AHEAD 4 /* exact rows lie all over the head: each is asked for while those before it are multiplied */

static float add_bias(float *logits, const float *bias, int64_t count) {
    vf best = splat(-INFINITY);
    int64_t i = 0;
    for (; i + VW <= count; i += VW) {
        vf sum = load(logits + i) + load(bias + i);
        store(logits + i, sum);
        best = maximum(best, sum);
    }
    float highest = max_of(best);
    for (; i < count; i++) {
        logits[i] += bias[i];
        highest = logits[i] > highest ? logits[i] : highest;
    }
    return highest;
}

static int64_t count_from(const float *logits, int64_t count, float least) {
    vi found = {0};
    int64_t i = 0, total = 0;
    for (; i + VW <= count; i += VW) found -= load(logits + i) >= splat(least);
    for (int lane = 0; lane < VW; lane++) total += found[lane];
    for (; i < count; i++) total += logits[i] >= least;
    return total;
}

/* The least preview of a candidate. NaN previews are never candidates and stay as they are. */
static float least_of(const CandidateJob *job, const float *logits, float highest) {
    float enough = highest, least = highest - job->reach;
    if (count_from(logits, job->vocab, least) <= job->num_candidates) return least;
    for (int i = 0; i < HALVINGS; i++) {
        float middle = 0.5f * (enough + least);
        if (count_from(logits, job->vocab, middle) <= job->num_candidates) enough = middle;
        else least = middle;
    }
    return enough;
}

static int64_t find_from(const float *logits, int64_t count, float least, int32_t *found, int64_t most) {
    int64_t num_found = 0, i = 0;
    for (; i + VW <= count && num_found < most; i += VW) {
        vi passes = load(logits + i) >= splat(least);
#if defined(__AVX512F__)
        if (_mm512_test_epi32_mask((__m512i)passes, (__m512i)passes) == 0) continue;
#endif
        for (int lane = 0; lane < VW && num_found < most; lane++)
            if (passes[lane]) found[num_found++] = (int32_t)(i + lane);
    }
    for (; i < count && num_found < most; i++)
        if (logits[i] >= least) found[num_found++] = (int32_t)i;
    return num_found;
}

static int32_t dot(const uint8_t *x, const int8_t *weights, int64_t depth) {
    int32_t sum = 0;
    int64_t k = 0;
#if defined(__AVX512VNNI__)
    __m512i sums = _mm512_setzero_si512();
    for (; k + 64 <= depth; k += 64)
        sums = _mm512_dpbusd_epi32(sums, _mm512_loadu_si512(x + k), _mm512_loadu_si512(weights + k));
    sum = _mm512_reduce_add_epi32(sums);
#elif defined(__AVX2__)
    __m256i sums = _mm256_setzero_si256();
    for (; k + 16 <= depth; k += 16) {
        __m256i row = _mm256_cvtepu8_epi16(_mm_loadu_si128((const __m128i *)(x + k)));
        __m256i weight = _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i *)(weights + k)));
        sums = _mm256_add_epi32(sums, _mm256_madd_epi16(row, weight));
    }
    int32_t parts[8];
    memcpy(parts, &sums, sizeof parts);
    for (int i = 0; i < 8; i++) sum += parts[i];
#endif
    for (; k < depth; k++) sum += (int32_t)x[k] * weights[k];
    return sum;
}

static void prefetch_bytes(const int8_t *bytes, int64_t count) {
    for (int64_t i = 0; i < count; i += 64) __builtin_prefetch(bytes + i);
}

static void candidate_row(void *data, size_t token) {
    const CandidateJob *job = data;
    float *logits = job->logits + (int64_t)token * job->vocab, scale = job->x_scale[token];
    const float *frequent = job->frequent_logits + (int64_t)token * job->num_frequent;
    int32_t *found = job->found + (int64_t)token * job->num_candidates;
    float highest = add_bias(logits, job->bias, job->vocab);
    for (int64_t i = 0; i < job->num_frequent; i++) logits[job->frequent[i]] = -INFINITY; /* not to be found */
    float least = least_of(job, logits, highest);
    int64_t num_found = find_from(logits, job->vocab, least, found, job->num_candidates);
    for (int64_t i = 0; i < num_found; i++) {
        int64_t id = found[i];
        if (i + ROWS_AHEAD < num_found) prefetch_bytes(job->rows + found[i + ROWS_AHEAD] * job->depth, job->depth);
        int32_t sum = dot(job->x + (int64_t)token * job->depth, job->rows + id * job->depth, job->depth);
        /* In the order of product.h, so that the bits are those of the exact head. */
        logits[id] = (float)(sum + job->row_offsets[id]) * job->row_scales[id] * scale;
    }
    for (int64_t i = 0; i < job->num_frequent; i++) logits[job->frequent[i]] = frequent[i];
}
