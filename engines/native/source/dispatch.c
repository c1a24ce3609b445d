/* Chooses the table of kernels for this processor. FENHE_ONLY names the one table of a library built to test it. */
#include "kernels.h"

#define JOIN(a, b) a##b
#define TABLE(variant) JOIN(fenhe_kernels_, variant)

#ifdef FENHE_ONLY
extern const Kernels TABLE(FENHE_ONLY);
const Kernels *fenhe_kernels(void) { return &TABLE(FENHE_ONLY); }
#elif defined(__x86_64__)
extern const Kernels fenhe_kernels_vnni, fenhe_kernels_avx512, fenhe_kernels_avx2, fenhe_kernels_generic;

const Kernels *fenhe_kernels(void) {
    __builtin_cpu_init();
    int has_avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
    int has_avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                     __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl") &&
                     __builtin_cpu_supports("avx512cd");
    if (has_avx2 && has_avx512 && __builtin_cpu_supports("avx512vnni")) return &fenhe_kernels_vnni;
    return has_avx2 && has_avx512 ? &fenhe_kernels_avx512 : has_avx2 ? &fenhe_kernels_avx2 : &fenhe_kernels_generic;
}
#else
extern const Kernels fenhe_kernels_generic;
const Kernels *fenhe_kernels(void) { return &fenhe_kernels_generic; }
#endif
