// What this CPU and its system can run.
#pragma once

#include <string>

namespace kvasir {
inline namespace KVASIR_ISA_NS {

// Whether the build of that name (CMakeLists.txt) runs here: the CPU has its instructions, and the system keeps their registers.
bool supports(const std::string& build);

}  // namespace KVASIR_ISA_NS
}  // namespace kvasir
