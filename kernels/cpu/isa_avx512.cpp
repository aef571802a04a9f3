/// The kernels for AVX-512 F, BW, VL and DQ (x86-64-v4). The build gives this file, and no other, the flags it needs.
#if defined(__x86_64__)
#define KVC_ISA_NAMESPACE avx512
#include "kernels/cpu/isa.inc"

namespace kvc::cpu {
constinit const KernelTable avx512_kernels = avx512::make_table("avx512");
}  // namespace kvc::cpu
#endif
