#include "kernels.hpp"

#if defined(PC_NEON_BF16) && defined(__linux__)
#include <sys/auxv.h>
#elif defined(PC_NEON_BF16) && defined(__APPLE__)
#include <sys/sysctl.h>
#endif

namespace posecrafter::cpu {

namespace avx512_bf16 {
extern const Kernels kTable;
}
namespace avx512 {
extern const Kernels kTable;
}
namespace avx2 {
extern const Kernels kTable;
}
namespace neon_bf16 {
extern const Kernels kTable;
}
namespace plain {
extern const Kernels kTable;
}

#if defined(PC_NEON_BF16)
/* Whether this processor has ARM's BF16. */
static bool has_bf16() {
#if defined(__linux__)
    constexpr unsigned long kBf16 = 1ul << 14;  // HWCAP2_BF16, which older headers do not have
    return (getauxval(AT_HWCAP2) & kBf16) != 0;
#elif defined(__APPLE__)
    int told = 0;
    std::size_t size = sizeof told;
    return sysctlbyname("hw.optional.arm.FEAT_BF16", &told, &size, nullptr, 0) == 0 && told != 0;
#else
    return false;
#endif
}
#endif

std::vector<const Kernels*> runnable_kernels() {
    std::vector<const Kernels*> tables;
#if defined(__x86_64__)
    const bool fma = __builtin_cpu_supports("fma");
    const bool wide = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                      __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq");
    if (fma && wide && __builtin_cpu_supports("avx512bf16")) tables.push_back(&avx512_bf16::kTable);
    if (fma && wide) tables.push_back(&avx512::kTable);
    if (fma && __builtin_cpu_supports("avx2")) tables.push_back(&avx2::kTable);
#endif
#if defined(PC_NEON_BF16)
    if (has_bf16()) tables.push_back(&neon_bf16::kTable);
#endif
    tables.push_back(&plain::kTable);
    return tables;
}

const Kernels& kernels() {
    return *runnable_kernels().front();
}

}  // namespace posecrafter::cpu
