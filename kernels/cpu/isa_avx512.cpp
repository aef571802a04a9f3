/// The kernels for AVX-512 F, BW, VL and DQ (x86-64-v4), and the tables of those for VNNI and for
/// AMX, which add one for a few rows of codes, and AMX a wide one. The build gives this file, and no other, the flags it needs.
#if defined(__x86_64__)
#define KVC_ISA_NAMESPACE avx512
#include "kernels/cpu/isa.inc"

namespace kvc::cpu {
namespace avx512 {

constexpr KernelTable make_vnni_table() {
  KernelTable table = make_table("vnni");
  table.process_narrow_tile = vnni::process_codes_tile;
  table.narrow_tile_scratch_bytes = vnni::codes_tile_scratch_bytes;
  table.process_medium_tile = vnni::process_medium_codes_tile;
  table.medium_tile_scratch_bytes = vnni::codes_tile_scratch_bytes;
  return table;
}

constexpr KernelTable make_amx_table() {
  KernelTable table = make_table("amx");
  table.process_narrow_tile = amx::process_codes_tile;
  table.narrow_tile_scratch_bytes = amx::codes_tile_scratch_bytes;
  table.process_medium_tile = amx::process_medium_codes_tile;
  table.medium_tile_scratch_bytes = amx::codes_tile_scratch_bytes;
  table.process_wide_tile = amx::process_matrix_tile;
  table.wide_tile_scratch_bytes = amx::matrix_tile_scratch_bytes;
  table.wide_tile_scales = true;
  table.wide_tile_rows_min = amx::matrix_tile_rows_min;
  return table;
}

}  // namespace avx512

constinit const KernelTable avx512_kernels = avx512::make_table("avx512");
constinit const KernelTable vnni_kernels = avx512::make_vnni_table();
constinit const KernelTable amx_kernels = avx512::make_amx_table();
}  // namespace kvc::cpu
#endif
