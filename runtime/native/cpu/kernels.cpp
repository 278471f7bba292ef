#include "kernels.hpp"

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
namespace plain {
extern const Kernels kTable;
}

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
    tables.push_back(&plain::kTable);
    return tables;
}

const Kernels& kernels() {
    return *runnable_kernels().front();
}

}  // namespace posecrafter::cpu
