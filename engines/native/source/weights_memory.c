/* Memory for packed weights in huge pages: a step reads them all, and with small pages looks up an address every 4 KiB.
 *
 * Weights are smaller than a huge page, so they lie side by side in regions; a region goes when its last weight does.
 * It is mapped, so the system has filled it with zeros, and no part of it is given out twice.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#include "operators.h"

#define HUGE_PAGE ((size_t)2 << 20)
#define REGION_BYTES ((size_t)16 << 20)
#define ALIGNMENT 64

struct WeightsRegion {
    char *mapped; /* a huge page more than `size`; `memory` begins at the first huge page in it */
    char *memory;
    size_t size, used, num_weights;
};

static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static WeightsRegion *current;

static WeightsRegion *make_region(size_t bytes) {
    WeightsRegion *region = calloc(1, sizeof *region);
    if (region == NULL) return NULL;
    region->size = (bytes > REGION_BYTES ? bytes : REGION_BYTES) + HUGE_PAGE - 1;
    region->size -= region->size % HUGE_PAGE;
    region->mapped = mmap(NULL, region->size + HUGE_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (region->mapped == MAP_FAILED) return free(region), NULL;
    region->memory = region->mapped + (HUGE_PAGE - (uintptr_t)region->mapped % HUGE_PAGE) % HUGE_PAGE;
#ifdef MADV_HUGEPAGE
    madvise(region->memory, region->size, MADV_HUGEPAGE); /* where it is refused, small pages serve too */
#endif
    return region;
}

static void free_region(WeightsRegion *region) {
    if (region == NULL) return;
    munmap(region->mapped, region->size + HUGE_PAGE);
    free(region);
}

void *fenhe_take_memory(size_t bytes, WeightsRegion **region) {
    void *memory = NULL;
    bytes = (bytes + ALIGNMENT - 1) / ALIGNMENT * ALIGNMENT;
    pthread_mutex_lock(&lock);
    if (current == NULL || current->size - current->used < bytes) {
        WeightsRegion *made = make_region(bytes);
        if (made != NULL && current != NULL && current->num_weights == 0) free_region(current);
        if (made != NULL) current = made;
        *region = made;
    } else {
        *region = current;
    }
    if (*region != NULL) {
        memory = current->memory + current->used;
        current->used += bytes;
        current->num_weights++;
    }
    pthread_mutex_unlock(&lock);
    return memory;
}

void fenhe_give_memory_back(WeightsRegion *region) {
    if (region == NULL) return;
    pthread_mutex_lock(&lock);
    if (--region->num_weights == 0) {
        if (region == current) current = NULL;
        free_region(region);
    }
    pthread_mutex_unlock(&lock);
}
