/// The kernels for AArch64, whose every processor has NEON. The compiler's vectors become NEON by themselves; what it would not
/// find are the conversions of f16 and bf16.
#if defined(__aarch64__)
#define KVC_ISA_NAMESPACE neon
#define KVC_NEON
#include "kernels/cpu/isa.inc"

namespace kvc::cpu {
constinit const KernelTable neon_kernels = neon::make_table("neon");
}  // namespace kvc::cpu
#endif
