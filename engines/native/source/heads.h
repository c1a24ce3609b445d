/* From the raw projection to rotated queries, and to keys and values in the cache. */
#include "cached.h"

#define LOG2_E 1.44269504f

/* The last `num_tokens` positions of a row are the new ones. */
INLINE int64_t position_of(const AttentionJob *job, int64_t row, int64_t token) {
    return job->last_position[row] - job->num_tokens + 1 + token;
}

INLINE int64_t qkv_width(const AttentionJob *job) {
    return (job->num_heads + 2 * job->num_kv_heads) * job->head_dim;
}

INLINE uint16_t *slot_of(const AttentionJob *job, uint16_t *cache, int64_t row, int64_t kv_head) {
    return cache + (row * job->num_kv_heads + kv_head) * job->num_positions * job->head_dim;
}

INLINE uint16_t *scales_of(const AttentionJob *job, int64_t row, int64_t kv_head) {
    return job->scales + (row * job->num_kv_heads + kv_head) * job->num_positions * 2;
}

/* target = projection * row scale + bias of head `head`, counted over queries, keys, values. */
static void read_head(const AttentionJob *job, int64_t row, int64_t token, int64_t head, float *target) {
    int64_t d = job->head_dim, at = row * job->num_tokens + token;
    const float *source = job->qkv + at * qkv_width(job) + head * d;
    float scale = job->qkv_scale ? job->qkv_scale[at] : 1.0f;
    const float *later = source + 2 * qkv_width(job); /* too short and far apart for the processor's own prefetcher */
    for (int64_t i = 0; i < d; i += 16) __builtin_prefetch(later + i);
    for (int64_t i = 0; i < d; i++) target[i] = source[i] * scale;
    if (!job->bias) return;
    for (int64_t i = 0; i < d; i++) target[i] += job->bias[head * d + i];
}

/* Normalise with `weight` (may be null), rotate halves against each other, multiply. */
static void rotate_head(const AttentionJob *job, const float *weight, int64_t position, float multiplier, float *x) {
    int64_t d = job->head_dim, half = d / 2;
    if (weight) {
        float total[VW] = {0};
        for (int64_t i = 0; i < d; i += VW)
            for (int k = 0; k < VW; k++) total[k] += x[i + k] * x[i + k];
        float sum = 0;
        for (int k = 0; k < VW; k++) sum += total[k];
        float inverse = 1.0f / sqrtf(sum / (float)d + job->epsilon);
        for (int64_t i = 0; i < d; i++) x[i] *= inverse * weight[i];
    }
    const float *c = job->cos + position * half, *s = job->sin + position * half;
    float rotated[MAX_HEAD_DIM];
    for (int64_t i = 0; i < half; i++) rotated[i] = (x[i] * c[i] - x[half + i] * s[i]) * multiplier;
    for (int64_t i = 0; i < half; i++) rotated[half + i] = (x[half + i] * c[i] + x[i] * s[i]) * multiplier;
    memcpy(x, rotated, (size_t)d * sizeof *x);
}

/* The query of `head`, with the softmax scale and the change from e to 2 as the base of powers folded in. */
static void make_query(const AttentionJob *job, int64_t row, int64_t token, int64_t head, float *target) {
    read_head(job, row, token, head, target);
    rotate_head(job, job->q_norm, position_of(job, row, token), job->scale * LOG2_E, target);
    for (int64_t i = 0; i < job->head_dim; i += VW) store(target + i, rounded(load(target + i)));
}

/* In int8 where there is a place for the scale. */
INLINE void write_cached(const float *x, int64_t d, uint16_t *target, uint16_t *scale) {
    if (scale) write_int8(x, d, (int8_t *)target, scale);
    else write_half(x, d, target);
}

/* Put one token's key and value of one head into the cache. */
static void write_key_value(const AttentionJob *job, int64_t row, int64_t token, int64_t kv_head) {
    float x[MAX_HEAD_DIM];
    int64_t position = position_of(job, row, token), d = job->head_dim;
    uint16_t *scales = job->scales ? scales_of(job, row, kv_head) + 2 * position : NULL;
    read_head(job, row, token, job->num_heads + kv_head, x);
    rotate_head(job, job->k_norm, position, 1.0f, x);
    write_cached(x, d, slot_of(job, job->keys, row, kv_head) + position * d, scales);
    read_head(job, row, token, job->num_heads + job->num_kv_heads + kv_head, x);
    write_cached(x, d, slot_of(job, job->values, row, kv_head) + position * d, scales ? scales + 1 : NULL);
}
