/// The kernels for AVX-512 F, BW, VL and DQ (x86-64-v4), and the tables of those for VNNI and for
/// AMX, which add one for a few rows of codes, and AMX a wide one. The build gives this file, and no other, the flags it needs.
#if defined(__x86_64__)
#define KVC_ISA_NAMESPACE avx512
#include "kernels/cpu/isa.inc"

namespace kvc::cpu {
namespace avx512 {

using ProcessTile = void (*)(const Tile&);

/// The table of a set that has kernels of its own for a few rows of codes.
constexpr KernelTable make_codes_table(const char* name, ProcessTile narrow, ProcessTile medium,
                                       size_t (*scratch_bytes)(int32_t, int32_t)) {
  KernelTable table = make_table(name);
  table.process_narrow_tile = narrow;
  table.process_medium_tile = medium;
  table.narrow_tile_scratch_bytes = table.medium_tile_scratch_bytes = scratch_bytes;
  return table;
}

constexpr KernelTable make_vnni_table() {
  return make_codes_table("vnni", vnni::process_codes_tile, vnni::process_medium_codes_tile,
                          vnni::codes_tile_scratch_bytes);
}

constexpr KernelTable make_amx_table() {
  KernelTable table = make_codes_table(
      "amx", amx::process_codes_tile, amx::process_medium_codes_tile, amx::codes_tile_scratch_bytes);
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
