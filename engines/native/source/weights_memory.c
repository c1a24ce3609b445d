/* Memory for packed weights in huge pages: a step reads them all, and with small pages looks up an address every 4 KiB.
 *
 * Weights are smaller than a huge page, so they lie side by side in regions; a region goes when its last weight does.
 */
#define _GNU_SOURCE
#include <pthread.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "operators.h"

#define HUGE_PAGE ((size_t)2 << 20)
#define REGION_BYTES ((size_t)16 << 20)
#define ALIGNMENT 64

struct WeightsRegion {
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
    region->memory = aligned_alloc(HUGE_PAGE, region->size);
    if (region->memory == NULL) return free(region), NULL;
#ifdef MADV_HUGEPAGE
    madvise(region->memory, region->size, MADV_HUGEPAGE); /* where it is refused, small pages serve too */
#endif
    return region;
}

static void free_region(WeightsRegion *region) {
    if (region == NULL) return;
    free(region->memory);
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
        memset(memory, 0, bytes);
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
