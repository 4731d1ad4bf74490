#include "cpu.h"

#if defined(__x86_64__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace kvasir {
inline namespace KVASIR_ISA_NS {
namespace {

#if defined(__x86_64__)

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c"); }

// These ask the system too (xgetbv): a flag counts only where the registers are saved.
bool has_avx512() {
    return has_avx2() && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
           __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vnni");
}

// Linux gives a process the 8 KB of tile registers only when it asks; the grant holds for all its threads.
bool tiles_granted() {
#if defined(__linux__)
    constexpr long kAsk = 0x1023, kTileData = 18;  // ARCH_REQ_XCOMP_PERM
    return syscall(SYS_arch_prctl, kAsk, kTileData) == 0;
#else
    return false;
#endif
}

#endif

}  // namespace

bool supports(const std::string& build) {
    if (build == "portable") return true;
#if defined(__x86_64__)
    __builtin_cpu_init();
    if (build == "avx2") return has_avx2();
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ >= 12  // older compilers do not know the names
    if (build == "avxvnni") return has_avx2() && __builtin_cpu_supports("avxvnni");
    if (build == "amx")
        return has_avx512() && __builtin_cpu_supports("amx-tile") && __builtin_cpu_supports("amx-int8") && tiles_granted();
#endif
    if (build == "avx512") return has_avx512();
#endif
    return false;
}

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir

#ifdef KVASIR_PROBE  // CMakeLists.txt asks by this program what to build
#include <cstdio>

int main(int argc, char** argv) {
    for (int i = 1; i < argc; i++)
        if (kvasir::supports(argv[i])) std::printf("%s;", argv[i]);
}
#endif
