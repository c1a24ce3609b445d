/* Chooses the table of kernels for this processor. FENHE_ONLY names the one table of a library that has no other. */
#include <string.h>

#include "kernels.h"

#define JOIN(a, b) a##b
#define TABLE(variant) JOIN(fenhe_kernels_, variant)

#if defined(FENHE_ONLY)
extern const Kernels TABLE(FENHE_ONLY);
static const Kernels *const tables[] = {&TABLE(FENHE_ONLY)};

static int can_run(const Kernels *table) { return (void)table, 1; }
#elif defined(__x86_64__)
extern const Kernels fenhe_kernels_bf16, fenhe_kernels_vnni, fenhe_kernels_avx512, fenhe_kernels_avx2, fenhe_kernels_generic;
static const Kernels *const tables[] = {&fenhe_kernels_bf16, &fenhe_kernels_vnni, &fenhe_kernels_avx512, &fenhe_kernels_avx2,
                                        &fenhe_kernels_generic};

static int can_run(const Kernels *table) {
    __builtin_cpu_init();
    if (table == &fenhe_kernels_generic) return 1;
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") || !__builtin_cpu_supports("bmi2")) return 0;
    if (table == &fenhe_kernels_avx2) return 1;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512vl") || !__builtin_cpu_supports("avx512cd"))
        return 0;
    if (table == &fenhe_kernels_avx512) return 1;
    if (!__builtin_cpu_supports("avx512vnni")) return 0;
    return table == &fenhe_kernels_vnni || __builtin_cpu_supports("avx512bf16");
}
#else
extern const Kernels fenhe_kernels_generic;
static const Kernels *const tables[] = {&fenhe_kernels_generic};

static int can_run(const Kernels *table) { return (void)table, 1; }
#endif

#define NUM_TABLES (sizeof tables / sizeof *tables) /* best first; the last one runs everywhere */

static const Kernels *_Atomic chosen;

const Kernels *fenhe_kernels(void) {
    const Kernels *table = atomic_load_explicit(&chosen, memory_order_relaxed);
    if (table != NULL) return table;
    size_t i = 0;
    while (i + 1 < NUM_TABLES && !can_run(tables[i])) i++;
    atomic_store_explicit(&chosen, tables[i], memory_order_relaxed);
    return tables[i];
}

EXPORTED const char *fenhe_instructions(void) { return fenhe_kernels()->name; }

/* For tests: from now on this process uses the table of this name. 0 where the library or the processor has none. */
EXPORTED int fenhe_choose_instructions(const char *name) {
    for (size_t i = 0; i < NUM_TABLES; i++)
        if (strcmp(tables[i]->name, name) == 0 && can_run(tables[i])) {
            atomic_store_explicit(&chosen, tables[i], memory_order_relaxed);
            return 1;
        }
    return 0;
}
