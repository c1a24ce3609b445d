/* What engines/native/choosing.py calls: no operators, for tokens are chosen outside of graphs. */
#include "kernels.h"

#define EXPORTED __attribute__((visibility("default")))
#define ALIGNED 64

static int64_t blocks_of(int64_t count) { return (count + CHOOSING_BLOCK - 1) / CHOOSING_BLOCK; }

static void *take(char **free_bytes, int64_t num_bytes) {
    void *taken = *free_bytes;
    *free_bytes += (num_bytes + ALIGNED - 1) / ALIGNED * ALIGNED;
    return taken;
}

/* Lays the arrays for `count` logits behind `scratch`, and returns how many bytes all of it takes. */
static int64_t lay_out(ChoosingScratch *scratch, int64_t count) {
    char *start = (char *)scratch, *free_bytes = start;
    int64_t num_blocks = blocks_of(count);
    ChoosingScratch laid;
    take(&free_bytes, sizeof laid);
    laid.blocks = take(&free_bytes, num_blocks * (int64_t)sizeof *laid.blocks);
    laid.ids = take(&free_bytes, (count + ALIGNED) * (int64_t)sizeof *laid.ids);
    laid.values = take(&free_bytes, (count + ALIGNED) * (int64_t)sizeof *laid.values);
    laid.weights = take(&free_bytes, (count + ALIGNED) * (int64_t)sizeof *laid.weights);
    laid.bins = take(&free_bytes, (count + ALIGNED) * (int64_t)sizeof *laid.bins);
    if (scratch != NULL) {
        scratch->blocks = laid.blocks;
        scratch->ids = laid.ids;
        scratch->values = laid.values;
        scratch->weights = laid.weights;
        scratch->bins = laid.bins;
    }
    return free_bytes - start;
}

EXPORTED int64_t fenhe_scratch_bytes(int64_t count) { return lay_out(NULL, count); }

EXPORTED int64_t fenhe_draw(const float *logits, int64_t count, double temperature, double top_p, double min_p,
                            int64_t top_k, double point, void *scratch) {
    lay_out(scratch, count);
    DrawJob job = {.logits = logits, .count = count, .top_k = top_k, .temperature = temperature, .top_p = top_p,
                   .min_p = min_p, .point = point, .scratch = scratch};
    return fenhe_kernels()->draw_token(&job);
}

EXPORTED int64_t fenhe_likeliest(const float *logits, int64_t count, int64_t num, int64_t *ids, double *log_total,
                                 void *scratch) {
    lay_out(scratch, count);
    LikeliestJob job = {.logits = logits, .count = count, .num = num, .ids = ids, .log_total = log_total,
                        .scratch = scratch};
    return fenhe_kernels()->find_likeliest(&job);
}
