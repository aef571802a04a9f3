/// The kernels for processors with AMX: those for AVX-512, but for the wide one, which multiplies in matrix registers.
#if defined(__x86_64__)
#define KVC_ISA_NAMESPACE amx
#include "kernels/cpu/isa.inc"
#include "kernels/cpu/matrix.hpp"

namespace kvc::cpu {
namespace amx {

constexpr KernelTable make_matrix_table() {
  KernelTable table = make_table("amx");
  table.process_wide_tile = process_matrix_tile;
  table.wide_tile_scratch_bytes = matrix_tile_scratch_bytes;
  return table;
}

}  // namespace amx

constinit const KernelTable amx_kernels = amx::make_matrix_table();
}  // namespace kvc::cpu
#endif
