/// The kernels for a machine of which nothing is known.
#define KVC_ISA_NAMESPACE portable
#include "kernels/cpu/isa.inc"

namespace kvc::cpu {
constinit const KernelTable portable_kernels = portable::make_table("portable");
}  // namespace kvc::cpu
