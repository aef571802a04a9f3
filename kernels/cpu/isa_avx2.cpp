/// The kernels for AVX2, FMA and F16C (x86-64-v3). The build gives this file, and no other, the
/// flags it needs.
#if defined(__x86_64__)
#define KVC_ISA_NAMESPACE avx2
#include "kernels/cpu/isa.inc"

namespace kvc::cpu {
constinit const KernelTable avx2_kernels = avx2::make_table("avx2");
}  // namespace kvc::cpu
#endif
