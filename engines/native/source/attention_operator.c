/* SlotAttention: checks, scratch memory and the cutting of the work into units.
 *
 * A batch has one row per slot, and as many tokens in each. Sequences of any length lie one behind the other instead, each
 * token a row; then `seqlens_k` says how many tokens each has, in which slot of the cache, and where it ends.
 */
#include <stdlib.h>
#include <string.h>

#include "operators.h"

#define UNITS_WANTED 32     /* enough to even out a few threads, few enough to keep merging rare */
#define NS_PER_CHUNK 400    /* of one head group; rough, to judge whether waking threads pays */
#define NS_PER_NEW_TOKEN 100
#define PRODUCTS_PER_NS 16     /* of a prompt's queries and keys; as rough */
#define PREFILL_UNITS_WANTED 6 /* at least: of three equal units, the second of two threads would wait for the last */
#define LEAST_QUERIES 4        /* of a block: with fewer, unpacking its keys takes longer than the rest */

enum { QKV, QKV_SCALE, PAST_KEYS, PAST_VALUES, LAST_POSITION, COS, SIN, BIAS, Q_NORM, K_NORM };

static OrtStatus *read_tensors(const OrtApi *api, OrtKernelContext *context, AttentionJob *job, Shape shapes[10]) {
    TRY(fenhe_input(api, context, QKV, &job->qkv, &shapes[QKV]));
    TRY(fenhe_input(api, context, QKV_SCALE, &job->qkv_scale, &shapes[QKV_SCALE]));
    TRY(fenhe_input(api, context, PAST_KEYS, &job->keys, &shapes[PAST_KEYS]));
    TRY(fenhe_input(api, context, PAST_VALUES, &job->values, &shapes[PAST_VALUES]));
    TRY(fenhe_input(api, context, LAST_POSITION, &job->last_position, &shapes[LAST_POSITION]));
    TRY(fenhe_input(api, context, COS, &job->cos, &shapes[COS]));
    TRY(fenhe_input(api, context, SIN, &job->sin, &shapes[SIN]));
    TRY(fenhe_input(api, context, BIAS, &job->bias, &shapes[BIAS]));
    TRY(fenhe_input(api, context, Q_NORM, &job->q_norm, &shapes[Q_NORM]));
    return fenhe_input(api, context, K_NORM, &job->k_norm, &shapes[K_NORM]);
}

typedef struct {
    int32_t num_tokens, slot, last_position;
} SequenceOfRows;

/* Behind a first number below zero: that many of them. */
static int has_sequences(const AttentionJob *job, const Shape *positions) {
    return positions->rank == 1 && positions->dims[0] > 1 && job->last_position[0] < 0;
}

static int is_one_shape(const int64_t *a, const int64_t *b) {
    return memcmp(a, b, 4 * sizeof *a) == 0;
}

/* In int8, past_k has keys and values (see cached.h), and past_v two scales for every position. */
static int has_scales(const Shape shapes[10]) {
    const int64_t *cache = shapes[PAST_KEYS].dims, *scales = shapes[PAST_VALUES].dims;
    int64_t expected[4] = {cache[0], cache[1], cache[3] > 0 ? 2 * cache[2] / cache[3] : 0, cache[3]};
    return cache[3] > 0 && 2 * cache[2] % cache[3] == 0 && is_one_shape(scales, expected);
}

static const char *find_shape_problem(AttentionJob *job, const Shape shapes[10]) {
    const int64_t *qkv = shapes[QKV].dims, *cache = shapes[PAST_KEYS].dims;
    if (shapes[QKV].rank != 3) return "SlotAttention: qkv must be [batch, tokens, (heads + 2 kv_heads) * head_dim]";
    if (shapes[PAST_KEYS].rank != 4) return "SlotAttention: past_k must be [batch, kv_heads, positions, head_dim]";
    if (shapes[PAST_VALUES].rank != 4 || (!is_one_shape(cache, shapes[PAST_VALUES].dims) && !has_scales(shapes)))
        return "SlotAttention: past_k and past_v must have one shape, or past_v two values for each position (int8)";
    job->num_rows = qkv[0], job->num_tokens = qkv[1];
    job->num_positions = cache[2], job->head_dim = cache[3];
    int64_t d = job->head_dim, width = (job->num_heads + 2 * job->num_kv_heads) * d;
    if (d < 16 || d % 16 != 0 || d > MAX_HEAD_DIM) return "SlotAttention: head_dim must be a multiple of 16, at most 256";
    if (qkv[2] != width) return "SlotAttention: qkv is not (num_heads + 2 * kv_num_heads) * head_dim wide";
    int is_batch = !has_sequences(job, &shapes[LAST_POSITION]);
    if ((is_batch && cache[0] != job->num_rows) || cache[1] != job->num_kv_heads)
        return "SlotAttention: past_k must have qkv's batch and kv_num_heads";
    if (is_batch && (shapes[LAST_POSITION].rank != 1 || shapes[LAST_POSITION].dims[0] != job->num_rows))
        return "SlotAttention: seqlens_k must be [batch]";
    if (job->qkv_scale && (shapes[QKV_SCALE].rank < 2 || shapes[QKV_SCALE].dims[0] != qkv[0] || shapes[QKV_SCALE].dims[1] != qkv[1]))
        return "SlotAttention: qkv_row_scale must be [batch, tokens, 1]";
    if (shapes[COS].rank != 2 || shapes[COS].dims[1] != d / 2 || shapes[SIN].rank != 2 ||
        shapes[SIN].dims[0] != shapes[COS].dims[0] || shapes[SIN].dims[1] != d / 2)
        return "SlotAttention: cos and sin must be [positions, head_dim / 2]";
    if (job->bias && shapes[BIAS].dims[0] != width) return "SlotAttention: qkv_bias must be as wide as qkv";
    if ((job->q_norm && shapes[Q_NORM].dims[0] != d) || (job->k_norm && shapes[K_NORM].dims[0] != d))
        return "SlotAttention: q_norm and k_norm must be [head_dim]";
    return NULL;
}

static const char *find_position_problem(const AttentionJob *job, int64_t num_rotations) {
    for (int64_t row = 0; row < job->num_rows; row++) {
        int64_t last = job->last_position[row];
        if (last < job->num_tokens - 1) return "SlotAttention: seqlens_k must be past + tokens - 1 (a past below 0)";
        if (last >= job->num_positions) return "SlotAttention: seqlens_k lies beyond the positions of past_k";
        if (last >= num_rotations) return "SlotAttention: seqlens_k lies beyond the rows of cos and sin";
    }
    return NULL;
}

static const char *find_sequence_problem(const AttentionJob *job, int64_t num_values, int64_t num_slots, int64_t num_rotations) {
    int64_t count = -(int64_t)job->last_position[0], num_rows = 0;
    if (job->num_tokens != 1 || num_values != 1 + 3 * count)
        return "SlotAttention: sequences must be [rows, 1, ...], with three numbers each behind their negative count";
    const SequenceOfRows *all = (const SequenceOfRows *)(job->last_position + 1);
    for (int64_t i = 0; i < count; i++) {
        if (all[i].num_tokens < 1 || all[i].last_position < all[i].num_tokens - 1)
            return "SlotAttention: a sequence must have tokens, and its last position be past + tokens - 1";
        if (all[i].slot < 0 || all[i].slot >= num_slots) return "SlotAttention: a sequence's slot lies beyond past_k";
        if (all[i].last_position >= job->num_positions || all[i].last_position >= num_rotations)
            return "SlotAttention: a sequence's last position lies beyond past_k, or cos and sin";
        num_rows += all[i].num_tokens;
    }
    return num_rows == job->num_rows ? NULL : "SlotAttention: the sequences have another number of tokens than qkv has rows";
}

/* Present is past with new rows: the caller binds both to one memory, otherwise everything must be copied. */
static OrtStatus *bind_cache(const OrtApi *api, OrtKernelContext *context, size_t output, Shape shape, uint16_t **cache) {
    uint16_t *present;
    TRY(fenhe_output(api, context, output, shape, &present));
    if (present == NULL) return fenhe_refuse(api, "SlotAttention: present_k and present_v must be outputs");
    size_t count = (size_t)(shape.dims[0] * shape.dims[1] * shape.dims[2] * shape.dims[3]);
    if (present != *cache) memcpy(present, *cache, count * sizeof **cache);
    *cache = present;
    return NULL;
}

/* Hand out consecutive 64-byte-aligned pieces; with no memory, only count. */
static void *take(char **memory, size_t *used, size_t bytes) {
    void *piece = *memory == NULL ? NULL : *memory + *used;
    *used += (bytes + 63) / 64 * 64;
    return piece;
}

typedef struct {
    DecodeUnit *units;
    int64_t *partial_of;
    atomic_int *pending_chunks;
} DecodePlan;

/* Cut each head group into units of about equal numbers of chunks, so that one long row does not hold up the others. */
static size_t cut_decode(const AttentionJob *job, const DecodePlan *plan, int64_t chunks_per_unit) {
    size_t num_units = 0;
    int64_t partials = 0;
    for (int64_t row = 0; row < job->num_rows; row++)
        for (int64_t head = 0; head < job->num_kv_heads; head++) {
            int64_t chunks = num_chunks_of(job, job->last_position[row]), group = row * job->num_kv_heads + head;
            int64_t pieces = (chunks + chunks_per_unit - 1) / chunks_per_unit;
            plan->partial_of[group] = partials;
            plan->pending_chunks[group] = (int)pieces;
            partials += chunks;
            for (int64_t i = 0; i < pieces; i++) {
                int64_t first = chunks * i / pieces, last = chunks * (i + 1) / pieces;
                plan->units[num_units++] = (DecodeUnit){row, head, first, last - first};
            }
        }
    return num_units;
}

static OrtStatus *run_decode(const OrtApi *api, OrtKernelContext *context, AttentionJob *job) {
    int64_t groups = job->num_rows * job->num_kv_heads, chunks = 0;
    for (int64_t row = 0; row < job->num_rows; row++)
        chunks += job->num_kv_heads * num_chunks_of(job, job->last_position[row]);
    DecodePlan plan = {0};
    char *memory = NULL;
    for (int pass = 0; pass < 2; pass++) {
        size_t used = 0;
        job->attended = take(&memory, &used, (size_t)(job->num_rows * job->num_heads * job->head_dim) * sizeof(float));
        job->partials = take(&memory, &used, (size_t)(chunks * partial_size(job)) * sizeof(float));
        plan.units = take(&memory, &used, (size_t)chunks * sizeof(DecodeUnit));
        plan.partial_of = take(&memory, &used, (size_t)groups * sizeof(int64_t));
        plan.pending_chunks = take(&memory, &used, (size_t)groups * sizeof(atomic_int));
        job->pending = take(&memory, &used, (size_t)job->num_rows * sizeof(atomic_int));
        if (pass == 0 && (memory = aligned_alloc(64, used)) == NULL)
            return ORT(api, CreateStatus)(ORT_FAIL, "SlotAttention: out of memory");
    }
    size_t num_units = cut_decode(job, &plan, (chunks + UNITS_WANTED - 1) / UNITS_WANTED);
    for (int64_t row = 0; row < job->num_rows; row++) job->pending[row] = (int)job->num_kv_heads;
    job->units = plan.units, job->num_units = num_units, job->partial_of = plan.partial_of, job->pending_chunks = plan.pending_chunks;
    size_t num_batches = num_units < UNITS_WANTED ? num_units : UNITS_WANTED; /* neighbours on one thread: see `Span` */
    OrtStatus *status =
        fenhe_run(api, context, fenhe_kernels()->decode_unit, num_units, num_batches, chunks * NS_PER_CHUNK, job);
    free(memory);
    return status;
}

/* Few queries are cut into smaller blocks, or threads would have nothing to do. */
static int64_t choose_block_queries(AttentionJob *job) {
    job->block_queries = QUERIES_PER_BLOCK;
    while (job->block_queries > LEAST_QUERIES && job->num_rows * num_query_blocks(job) * job->num_kv_heads < PREFILL_UNITS_WANTED)
        job->block_queries /= 2;
    return job->num_rows * num_query_blocks(job);
}

static int64_t prefill_ns(const AttentionJob *job) {
    int64_t keys = 0;
    for (int64_t row = 0; row < job->num_rows; row++)
        keys += num_chunks_of(job, job->last_position[row]) * KEYS_PER_CHUNK;
    return job->num_tokens * keys * job->num_heads * job->head_dim * 2 / PRODUCTS_PER_NS;
}

static OrtStatus *run_prefill(const OrtApi *api, OrtKernelContext *context, AttentionJob *job) {
    int64_t tokens = job->num_rows * job->num_tokens, blocks = choose_block_queries(job);
    char *memory = NULL;
    for (int pass = 0; pass < 2; pass++) {
        size_t used = 0;
        job->attended = take(&memory, &used, (size_t)(tokens * job->num_heads * job->head_dim) * sizeof(float));
        job->pending = take(&memory, &used, (size_t)blocks * sizeof(atomic_int));
        if (pass == 0 && (memory = aligned_alloc(64, used)) == NULL)
            return ORT(api, CreateStatus)(ORT_FAIL, "SlotAttention: out of memory");
    }
    for (int64_t i = 0; i < blocks; i++) job->pending[i] = (int)job->num_kv_heads;
    OrtStatus *status = fenhe_run(api, context, fenhe_kernels()->write_token, (size_t)tokens, 0,
                                  tokens * job->num_kv_heads * NS_PER_NEW_TOKEN, job);
    size_t units = (size_t)(blocks * job->num_kv_heads);
    if (status == NULL)
        status = fenhe_run(api, context, fenhe_kernels()->prefill_unit, units, units, prefill_ns(job), job);
    free(memory);
    return status;
}

/* The job of the rows from `row` on, in the slots from `slot` on. */
static AttentionJob part_of(const AttentionJob *whole, int64_t row, int64_t slot) {
    AttentionJob part = *whole;
    int64_t width = whole->num_heads * whole->head_dim, slot_size = whole->num_kv_heads * whole->num_positions * whole->head_dim;
    part.qkv += row * (width + 2 * whole->num_kv_heads * whole->head_dim);
    if (part.qkv_scale) part.qkv_scale += row;
    part.keys += slot * slot_size, part.values += slot * slot_size;
    if (part.scales) part.scales += slot * whole->num_kv_heads * whole->num_positions * 2;
    part.q += row * width;
    part.row_scale += row * (whole->block_sums ? width / BLOCK : 1);
    if (part.block_sums) part.block_sums += row * (2 * width / BLOCK);
    return part;
}

/* Each prompt by itself; single tokens in neighbouring slots together. */
static OrtStatus *run_sequences(const OrtApi *api, OrtKernelContext *context, const AttentionJob *job) {
    int64_t count = -(int64_t)job->last_position[0], row = 0;
    const SequenceOfRows *all = (const SequenceOfRows *)(job->last_position + 1);
    int32_t *last_position = malloc((size_t)count * sizeof *last_position);
    if (last_position == NULL) return ORT(api, CreateStatus)(ORT_FAIL, "SlotAttention: out of memory");
    for (int64_t i = 0; i < count; i++) last_position[i] = all[i].last_position;
    OrtStatus *status = NULL;
    for (int64_t i = 0, end; i < count && status == NULL; i = end) {
        end = i + 1;
        if (all[i].num_tokens == 1)
            while (end < count && all[end].num_tokens == 1 && all[end].slot == all[end - 1].slot + 1) end++;
        AttentionJob part = part_of(job, row, all[i].slot);
        part.num_rows = end - i, part.num_tokens = all[i].num_tokens, part.last_position = last_position + i;
        status = part.num_tokens == 1 ? run_decode(api, context, &part) : run_prefill(api, context, &part);
        row += part.num_rows * part.num_tokens;
    }
    free(last_position);
    return status;
}

static OrtStatus *bind_caches(const OrtApi *api, OrtKernelContext *context, size_t output, const Shape shapes[10],
                              AttentionJob *job) {
    TRY(bind_cache(api, context, output, shapes[PAST_KEYS], &job->keys));
    TRY(bind_cache(api, context, output + 1, shapes[PAST_VALUES], &job->values));
    if (is_one_shape(shapes[PAST_KEYS].dims, shapes[PAST_VALUES].dims)) return NULL;
    job->scales = job->values;
    job->values = job->keys + job->head_dim / 2;
    return NULL;
}

static OrtStatus *row_outputs(const OrtApi *api, OrtKernelContext *context, Shape shape, AttentionJob *job) {
    TRY(fenhe_output(api, context, 0, shape, &job->q));
    shape.dims[2] = 1;
    return fenhe_output(api, context, 1, shape, &job->row_scale);
}

static OrtStatus *compute(const OrtApi *api, OrtKernelContext *context, const void *data, int is_in_blocks) {
    const AttentionAttributes *attributes = data;
    AttentionJob job = {.num_heads = attributes->num_heads, .num_kv_heads = attributes->num_kv_heads,
                        .window = attributes->window, .scale = attributes->scale, .epsilon = attributes->epsilon};
    Shape shapes[10] = {0};
    TRY(read_tensors(api, context, &job, shapes));
    const char *problem = find_shape_problem(&job, shapes);
    int is_flat = problem == NULL && has_sequences(&job, &shapes[LAST_POSITION]);
    if (is_flat)
        problem = find_sequence_problem(&job, shapes[LAST_POSITION].dims[0], shapes[PAST_KEYS].dims[0], shapes[COS].dims[0]);
    else if (problem == NULL) problem = find_position_problem(&job, shapes[COS].dims[0]);
    if (problem != NULL) return fenhe_refuse(api, problem);
    Shape out = shapes[QKV];
    out.dims[2] = job.num_heads * job.head_dim;
    if (is_in_blocks) TRY(fenhe_block_outputs(api, context, out, &job.q, &job.row_scale, &job.block_sums));
    else TRY(row_outputs(api, context, out, &job));
    TRY(bind_caches(api, context, is_in_blocks ? 3 : 2, shapes, &job));
    if (job.num_rows * job.num_tokens == 0) return NULL;
    if (is_flat) return run_sequences(api, context, &job);
    return job.num_tokens == 1 ? run_decode(api, context, &job) : run_prefill(api, context, &job);
}

static OrtStatus *compute_rows(const OrtApi *api, OrtKernelContext *context, const void *data) {
    return compute(api, context, data, 0);
}

static OrtStatus *compute_blocks(const OrtApi *api, OrtKernelContext *context, const void *data) {
    return compute(api, context, data, 1);
}

static OrtStatus *read_attributes(const OrtApi *api, const OrtKernelInfo *info, void *data) {
    AttentionAttributes *attributes = data;
    TRY(ORT(api, KernelInfoGetAttribute_int64)(info, "num_heads", &attributes->num_heads));
    TRY(ORT(api, KernelInfoGetAttribute_int64)(info, "kv_num_heads", &attributes->num_kv_heads));
    TRY(ORT(api, KernelInfoGetAttribute_int64)(info, "local_window_size", &attributes->window));
    TRY(ORT(api, KernelInfoGetAttribute_float)(info, "scale", &attributes->scale));
    TRY(ORT(api, KernelInfoGetAttribute_float)(info, "norm_epsilon", &attributes->epsilon));
    int64_t heads = attributes->num_heads, kv_heads = attributes->num_kv_heads;
    if (kv_heads < 1 || heads < kv_heads || heads % kv_heads != 0 || heads / kv_heads > MAX_GROUP)
        return fenhe_refuse(api, "SlotAttention: num_heads must be a multiple (at most 16 fold) of kv_num_heads");
    return NULL;
}

const OperatorSpec fenhe_slot_attention = {
    /* qkv, qkv_row_scale, past_k, past_v, seqlens_k, cos, sin, qkv_bias?, q_norm?, k_norm? */
    .name = "SlotAttention",
    .num_inputs = 10, .num_required = 7,
    .input_types = {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT16, ORT_FLOAT16, ORT_INT32, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT,
                    ORT_FLOAT},
    /* q, row_scale, present_k, present_v */
    .num_outputs = 4, .num_required_outputs = 4,
    .output_types = {ORT_UINT8, ORT_FLOAT, ORT_FLOAT16, ORT_FLOAT16},
    .read_attributes = read_attributes,
    .compute = compute_rows,
};

const OperatorSpec fenhe_block_attention = {
    /* qkv, qkv_row_scale?, past_k, past_v, seqlens_k, cos, sin, qkv_bias?, q_norm?, k_norm?; an input that is required
     * but absent has no dimensions, which find_shape_problem refuses */
    .name = "BlockSlotAttention",
    .num_inputs = 10, .num_required = 1,
    .input_types = {ORT_FLOAT, ORT_FLOAT, ORT_FLOAT16, ORT_FLOAT16, ORT_INT32, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT, ORT_FLOAT,
                    ORT_FLOAT},
    /* q, block_scale, block_sums, present_k, present_v */
    .num_outputs = 5, .num_required_outputs = 5,
    .output_types = {ORT_INT8, ORT_FLOAT, ORT_INT32, ORT_FLOAT16, ORT_FLOAT16},
    .read_attributes = read_attributes,
    .compute = compute_blocks,
};
