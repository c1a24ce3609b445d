/* One token drawn from a row of logits, and the likeliest tokens of a row.
 *
 * The rules are those of engines/drawing.py, which draws where this cannot say for sure. Weights here have a relative
 * error below 2.5e-10, and so has every accumulated weight. A token is drawn only where the target lies further than
 * DOUBT from both of its ends; otherwise the answer is UNSURE. Therefore both give the same token.
 *
 * Nothing that cannot matter is sorted: tokens within some nats of the likeliest are divided into bins by their logit,
 * and only the bin is sorted that a question falls into. Where these tokens do not settle it, the next span is tried.
 */
#ifndef FENHE_CHOOSING_H
#define FENHE_CHOOSING_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#include "kernels.h"
#include "simd.h"

#define DOUBT 1e-9
#define UNSURE (-1)
#define OUTSIDE (-2) /* of the tokens that were divided */
#define LANES 8
#define LEAST_EXPONENT (-700.0)
#define NOTHING 1e-200
#define SLACK 1e-6 /* nats beyond min-p that are looked at */

typedef double vd __attribute__((vector_size(LANES * 8)));
typedef int64_t vl __attribute__((vector_size(LANES * 8)));
typedef double vd_loose __attribute__((vector_size(LANES * 8), aligned(8), may_alias));
typedef int32_t v8i __attribute__((vector_size(LANES * 4)));
typedef int32_t v8i_loose __attribute__((vector_size(LANES * 4), aligned(4), may_alias));
typedef float v8_loose __attribute__((vector_size(LANES * 4), aligned(4), may_alias));

typedef struct {
    double low, high;
} Range;

INLINE vd splat_d(double x) { return x - (vd){0}; }
INLINE vd masked(vl mask, vd x) { return (vd)(mask & (vl)x); }

INLINE vd at_least(vd x, double least) {
#if defined(__AVX512F__)
    return (vd)_mm512_max_pd((__m512d)x, _mm512_set1_pd(least));
#else
    vl passes = (vl)(x > splat_d(least));
    return (vd)((passes & (vl)x) | (~passes & (vl)splat_d(least)));
#endif
}

INLINE double total_of(vd x) {
    return ((x[0] + x[4]) + (x[1] + x[5])) + ((x[2] + x[6]) + (x[3] + x[7]));
}

/* e to the power of x <= 0, exact at 0; x below LEAST_EXPONENT gives a number that is as good as 0. */
INLINE vd exp_of(vd x) {
    const vd shifter = splat_d(0x1.8p52); /* adding it rounds to an integer, kept in the low bits */
    x = at_least(x, LEAST_EXPONENT);
    vd shifted = x * 0x1.71547652b82fep0 + shifter;
    vd r = x - (shifted - shifter) * 0x1.62e42fefa39efp-1;
    vd p = splat_d(1.0 / 40320); /* Taylor: r is at most half of log 2, which leaves 2.1e-10 */
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 0.5;
    p = p * r + 1.0;
    p = p * r + 1.0;
    return (vd)((vl)p + ((vl)shifted << 52));
}

/* Eight logits, -inf behind the last one. */
INLINE vd logits_at(const float *logits, int64_t i, int64_t count) {
    float some[LANES];
    if (i + LANES <= count) return __builtin_convertvector(*(const v8_loose *)(logits + i), vd);
    for (int lane = 0; lane < LANES; lane++) some[lane] = i + lane < count ? logits[i + lane] : -INFINITY;
    return __builtin_convertvector(*(const v8_loose *)some, vd);
}

static double highest_of(const float *logits, int64_t count) {
    vf best = splat(-INFINITY);
    int64_t i = 0;
    for (; i + VW <= count; i += VW) best = maximum(best, load(logits + i));
    float highest = max_of(best);
    for (; i < count; i++) highest = logits[i] > highest ? logits[i] : highest;
    return highest;
}

/* How many tokens min-p leaves, at least and at most, and what these weigh. */
typedef struct {
    int64_t least, most;
    Range mass;
} Left;

INLINE vd weights_at(const DrawJob *job, int64_t i) {
    const ChoosingScratch *s = job->scratch;
    return exp_of((logits_at(job->logits, i, job->count) - splat_d(s->highest)) * splat_d(s->per_logit));
}

/* The weight of all tokens, and of each block. With `left` also what min-p leaves. */
static double add_up(const DrawJob *job, Left *left) {
    const vd surely = splat_d(job->min_p * (1.0 + DOUBT)), perhaps = splat_d(job->min_p * (1.0 - DOUBT));
    vd low = {0}, high = {0};
    vl num_low = {0}, num_high = {0};
    double total = 0.0;
    for (int64_t block = 0; block * CHOOSING_BLOCK < job->count; block++) {
        vd sum = {0};
        for (int64_t i = block * CHOOSING_BLOCK; i < (block + 1) * CHOOSING_BLOCK && i < job->count; i += LANES) {
            vd weights = weights_at(job, i); /* behind the last token as good as nothing */
            sum += weights;
            if (left == NULL) continue;
            vl is_surely = (vl)(weights >= surely), is_perhaps = (vl)(weights >= perhaps);
            low += masked(is_surely, weights), num_low -= is_surely;
            high += masked(is_perhaps, weights), num_high -= is_perhaps;
        }
        job->scratch->blocks[block] = total_of(sum);
        total += job->scratch->blocks[block];
    }
    if (left == NULL) return total;
    *left = (Left){.mass = {total_of(low), total_of(high)}};
    for (int lane = 0; lane < LANES; lane++) left->least += num_low[lane], left->most += num_high[lane];
    return total;
}

static int64_t from_all(const DrawJob *job, double target) {
    double low = target * (1.0 - DOUBT), high = target * (1.0 + DOUBT), before = 0.0;
    const double *blocks = job->scratch->blocks;
    int64_t num_blocks = (job->count + CHOOSING_BLOCK - 1) / CHOOSING_BLOCK, block = 0;
    if (target < NOTHING) return UNSURE; /* tokens that weigh nothing would count */
    while (block < num_blocks && before + blocks[block] <= low) before += blocks[block++];
    for (int64_t i = block * CHOOSING_BLOCK; i < job->count && i < (block + 1) * CHOOSING_BLOCK; i += LANES) {
        vd weights = weights_at(job, i);
        for (int lane = 0; lane < LANES && i + lane < job->count; lane++) {
            double end = before + weights[lane];
            if (end > low) return high < end ? i + lane : UNSURE;
            before = end;
        }
    }
    return UNSURE;
}

/* The tokens with at least this logit. */
static void find_all_from(ChoosingScratch *s, const float *logits, int64_t count, float least) {
    int64_t num = 0, i = 0;
#if defined(__AVX512F__)
    const __m512i lanes = (__m512i)lane_index();
    for (; i + VW <= count; i += VW) {
        __m512 x = _mm512_loadu_ps(logits + i);
        __mmask16 passes = _mm512_cmp_ps_mask(x, _mm512_set1_ps(least), _CMP_GE_OQ);
        if (passes == 0) continue;
        __m512i ids = _mm512_add_epi32(lanes, _mm512_set1_epi32((int)i));
        _mm512_storeu_si512(s->ids + num, _mm512_maskz_compress_epi32(passes, ids));
        _mm512_storeu_ps(s->values + num, _mm512_maskz_compress_ps(passes, x));
        num += __builtin_popcount(passes);
    }
#elif defined(__AVX2__)
    for (; i + VW <= count; i += VW) {
        __m256 is_enough = _mm256_cmp_ps(_mm256_loadu_ps(logits + i), _mm256_set1_ps(least), _CMP_GE_OQ);
        for (int passes = _mm256_movemask_ps(is_enough); passes != 0; passes &= passes - 1) {
            s->ids[num] = (int32_t)(i + __builtin_ctz((unsigned)passes));
            s->values[num] = logits[s->ids[num]];
            num++;
        }
    }
#endif
    for (; i < count; i++) {
        s->ids[num] = (int32_t)i;
        s->values[num] = logits[i];
        num += logits[i] >= least;
    }
    s->num_found = num;
}

/* Smaller is likelier; of equals the first that was found. */
static uint64_t rank_of(const ChoosingScratch *s, int64_t place) {
    float logit = s->values[place] + 0.0f; /* no zero below zero */
    uint32_t bits;
    memcpy(&bits, &logit, 4);
    bits = bits & 0x80000000 ? ~bits : bits | 0x80000000;
    return (uint64_t)~bits << 32 | (uint32_t)place;
}

static void sort_ranks(uint64_t *ranks, int64_t count) {
    static const int64_t gaps[] = {1750, 701, 301, 132, 57, 23, 10, 4, 1};
    for (size_t g = 0; g < sizeof gaps / sizeof *gaps; g++)
        for (int64_t i = gaps[g]; i < count; i++) {
            uint64_t rank = ranks[i];
            int64_t j = i;
            for (; j >= gaps[g] && ranks[j - gaps[g]] > rank; j -= gaps[g]) ranks[j] = ranks[j - gaps[g]];
            ranks[j] = rank;
        }
}

/* Tokens within `span` nats of the highest logit into bins, the likeliest in the first. */
static void divide(const DrawJob *job, double span) {
    ChoosingScratch *s = job->scratch;
    float least = isinf(span) ? -INFINITY : (float)(s->highest - span / s->per_logit);
    const vd per_logit = splat_d(s->per_logit);
    const vd per_nat = splat_d(CHOOSING_BINS / (span < CHOOSING_LONGEST ? span : CHOOSING_LONGEST));
    find_all_from(s, job->logits, job->count, least);
    s->outside = isinf(span) ? 0.0 : exp(((double)least - s->highest) * s->per_logit);
    s->found_mass = 0.0;
    memset(s->masses, 0, sizeof s->masses);
    memset(s->nums, 0, sizeof s->nums);
    for (int64_t i = 0; i < s->num_found; i += LANES) {
        vd nats = (logits_at(s->values, i, s->num_found) - splat_d(s->highest)) * per_logit;
        *(vd_loose *)(s->weights + i) = exp_of(nats);
        *(v8i_loose *)(s->bins + i) = __builtin_convertvector(-at_least(nats * per_nat, 1 - CHOOSING_BINS), v8i);
    }
    for (int64_t i = 0; i < s->num_found; i++) {
        s->masses[s->bins[i]] += s->weights[i];
        s->nums[s->bins[i]]++;
    }
    for (int bin = 0; bin < CHOOSING_BINS; bin++) s->found_mass += s->masses[bin];
}

/* The places of a bin's tokens into `ranks`, the likeliest first; returns how many, or UNSURE where that takes too long. */
static int64_t sort_bin(ChoosingScratch *s, int bin) {
    int64_t num = 0;
    if (s->nums[bin] > CHOOSING_SORTED) return UNSURE;
    for (int64_t i = 0; num < s->nums[bin]; i++)
        if (s->bins[i] == bin) s->ranks[num++] = rank_of(s, i);
    sort_ranks(s->ranks, num);
    return num;
}

/* The weight of the likeliest `num` tokens, no more than were found. */
static Range mass_of_first(ChoosingScratch *s, int64_t num) {
    double before = 0.0;
    int bin = 0;
    while (s->nums[bin] < num) num -= s->nums[bin], before += s->masses[bin++];
    int64_t sorted = num < s->nums[bin] ? sort_bin(s, bin) : UNSURE;
    if (sorted < 0) return (Range){num < s->nums[bin] ? before : before + s->masses[bin], before + s->masses[bin]};
    for (int64_t i = 0; i < num; i++) before += s->weights[(uint32_t)s->ranks[i]];
    return (Range){before, before};
}

/* The accumulated weight of the tokens up to the one that reaches `goal`, which lies among those found. */
static Range mass_reaching(ChoosingScratch *s, double goal) {
    double before = 0.0;
    int bin = 0;
    while (bin < CHOOSING_BINS - 1 && before + s->masses[bin] < goal) before += s->masses[bin++];
    int64_t num = sort_bin(s, bin);
    if (num < 0) return (Range){goal, before + s->masses[bin]};
    for (int64_t i = 0; i < num && before < goal; i++) before += s->weights[(uint32_t)s->ranks[i]];
    return (Range){before, before};
}

static Range least_of_both(Range a, Range b) {
    return (Range){a.low < b.low ? a.low : b.low, a.high < b.high ? a.high : b.high};
}

/* What top-p leaves of `kept`, where it asks for `goal`. */
static Range cut(ChoosingScratch *s, Range kept, Range goal) {
    double low = goal.low * (1.0 - DOUBT), high = goal.high * (1.0 + DOUBT);
    Range reached = {low, high + s->outside};
    if (high < s->found_mass) {
        reached.low = mass_reaching(s, low).low;
        reached.high = mass_reaching(s, high).high;
    }
    return least_of_both(kept, reached);
}

/* The token that a target falls on, somewhere between two numbers. */
static int64_t token_at(ChoosingScratch *s, Range target) {
    double low = target.low * (1.0 - DOUBT), high = target.high * (1.0 + DOUBT), before = 0.0;
    if (high >= s->found_mass) return OUTSIDE;
    int bin = 0;
    while (bin < CHOOSING_BINS - 1 && before + s->masses[bin] <= low) before += s->masses[bin++];
    if (high >= before + s->masses[bin]) return UNSURE;
    int64_t num = sort_bin(s, bin);
    for (int64_t i = 0; i < num; i++) {
        uint32_t place = (uint32_t)s->ranks[i];
        double end = before + s->weights[place];
        if (end > low) return high < end ? s->ids[place] : UNSURE;
        before = end;
    }
    return UNSURE;
}

/* What min-p leaves of the tokens found. */
static Left left_of_found(const DrawJob *job) {
    const ChoosingScratch *s = job->scratch;
    Left left = {0};
    for (int64_t i = 0; i < s->num_found; i++) {
        if (s->weights[i] >= job->min_p * (1.0 + DOUBT)) left.mass.low += s->weights[i], left.least++;
        if (s->weights[i] >= job->min_p * (1.0 - DOUBT)) left.mass.high += s->weights[i], left.most++;
    }
    return left;
}

/* The token, if the tokens within `span` settle that. `total` is the weight of all, where top-p is a part of that. */
static int64_t from_span(const DrawJob *job, double span, double total, Left left) {
    ChoosingScratch *s = job->scratch;
    divide(job, span);
    if (left.most == 0) left = left_of_found(job), s->outside = 0.0;
    if (left.least == 0) left.least = 1, left.mass.low = 1.0; /* the likeliest is always left */
    int has_limit = job->top_k > 0 && job->top_k < left.least;
    if (has_limit && s->num_found < job->top_k) return OUTSIDE;
    Range kept = has_limit ? mass_of_first(s, job->top_k) : left.mass;
    Range base = job->top_k > 0 ? kept : (Range){total, total};
    if (job->top_p < 1.0) kept = cut(s, kept, (Range){base.low * job->top_p, base.high * job->top_p});
    return token_at(s, (Range){job->point * kept.low, job->point * kept.high});
}

static int64_t from_filtered(const DrawJob *job) {
    static const double spans[] = {8.0, 16.0, 32.0, INFINITY};
    const size_t num_spans = sizeof spans / sizeof *spans;
    int has_min_p = job->min_p > 0.0, has_top_k = job->top_k > 0 && job->top_k < job->count;
    double total = 0.0, lowest = has_min_p ? SLACK - log(job->min_p) : INFINITY;
    int is_narrow = lowest <= spans[1];
    Left left = {job->count, job->count, {0.0, 0.0}};
    if (has_min_p && !is_narrow) total = add_up(job, &left);
    else if (is_narrow ? job->top_p < 1.0 : !has_top_k) total = add_up(job, NULL);
    if (!has_min_p) left.mass = (Range){total, total};
    if (is_narrow) return from_span(job, lowest, total, (Left){0});
    for (size_t i = job->top_k > CHOOSING_MANY; i < num_spans; i++) {
        int64_t token = from_span(job, spans[i], total, left);
        if (token >= 0) return token;
    }
    return UNSURE;
}

static int64_t draw_token(const DrawJob *job) {
    ChoosingScratch *s = job->scratch;
    s->highest = highest_of(job->logits, job->count);
    s->per_logit = 1.0 / job->temperature;
    if (!isfinite(s->highest) || !isfinite(s->per_logit)) return UNSURE;
    int has_filters = job->top_k > 0 || job->top_p < 1.0 || job->min_p > 0.0;
    return has_filters ? from_filtered(job) : from_all(job, job->point * add_up(job, NULL));
}

/* The largest of every block, and the sum of all exponentials over the largest. */
static double survey(ChoosingScratch *s, const float *logits, int64_t count) {
    const vd highest = splat_d(s->highest);
    vd sum = {0};
    for (int64_t block = 0; block * CHOOSING_BLOCK < count; block++) {
        int64_t start = block * CHOOSING_BLOCK, end = start + CHOOSING_BLOCK < count ? start + CHOOSING_BLOCK : count;
        s->blocks[block] = highest_of(logits + start, end - start);
        for (int64_t i = start; i < end; i += LANES) sum += exp_of(logits_at(logits, i, count) - highest);
    }
    return total_of(sum);
}

/* The `num`-th largest of the blocks' largest logits: at least so many tokens have it or more. */
static float least_of_likeliest(const ChoosingScratch *s, int64_t num_blocks, int64_t num) {
    double best[CHOOSING_LIKELIEST];
    int64_t held = 0;
    if (num_blocks < num) return -INFINITY;
    for (int64_t block = 0; block < num_blocks; block++) {
        if (held == num && s->blocks[block] <= best[num - 1]) continue;
        int64_t i = held < num ? held++ : num - 1;
        for (; i > 0 && best[i - 1] < s->blocks[block]; i--) best[i] = best[i - 1];
        best[i] = s->blocks[block];
    }
    return (float)best[num - 1];
}

static int64_t find_likeliest(const LikeliestJob *job) {
    ChoosingScratch *s = job->scratch;
    int64_t num_blocks = (job->count + CHOOSING_BLOCK - 1) / CHOOSING_BLOCK;
    if (job->num > CHOOSING_LIKELIEST || job->num > job->count) return UNSURE;
    s->highest = highest_of(job->logits, job->count);
    if (!isfinite(s->highest)) return UNSURE;
    *job->log_total = s->highest + log(survey(s, job->logits, job->count));
    if (job->num == 0) return 0;
    find_all_from(s, job->logits, job->count, least_of_likeliest(s, num_blocks, job->num));
    if (s->num_found < job->num || s->num_found > CHOOSING_SORTED) return UNSURE; /* fewer: some are NaN */
    for (int64_t i = 0; i < s->num_found; i++) s->ranks[i] = rank_of(s, i);
    sort_ranks(s->ranks, s->num_found);
    for (int64_t i = 0; i < job->num; i++) job->ids[i] = s->ids[(uint32_t)s->ranks[i]];
    return job->num;
}

#endif
