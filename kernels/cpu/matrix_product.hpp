#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cpu/bf16_parts.hpp"
#include "kernels/cpu/matrix_tiles.hpp"

/// Products of operands that are sums of bf16 parts, in tiles of AMX.
namespace kvc::cpu::KVC_ISA_NAMESPACE::matrix {

/// Tiles of one operand: part p of tile (side, step) at at + side · side_bytes + step · step_bytes
/// + p · amx_tile_bytes.
struct Operand {
  const std::byte* at;
  size_t side_bytes;  // A: to the next 16 rows, B: to the next 16 columns
  size_t step_bytes;  // to the next 32 of what is summed over
};

/// The products of parts that matter, in an order in which each shares a part with the one before.
/// That saves loads, which take time of their own when the core's other thread is busy.
struct Path {
  int32_t count = 0;
  int32_t a[6] = {}, b[6] = {};

  constexpr Path(int32_t parts_a, int32_t parts_b) {
    bool reached = false;
    const auto visit = [&](int32_t i, int32_t j) {
      a[count] = i;
      b[count++] = j;
      reached |= i == 0 && j == 0;
    };
    for (int32_t i = parts_a - 1, j = 0; i >= 0; --i) {
      visit(i, j);
      for (; j + 1 < parts_b && i + j + 1 < parts_max; visit(i, j)) ++j;
    }
    if (!reached) visit(0, 0);
  }
};

/// A · B in 16 · tiles_a rows and 16 · tiles_b columns: sums in registers 0 to 3, A in 4 and 5, B
/// in 6 and 7. `meanwhile` is told of every few multiplications: what it does then, vectors do while
/// the matrix unit works.
template <int32_t parts_a, int32_t parts_b, int32_t tiles_a, int32_t tiles_b>
struct Product {
  static constexpr Path path{parts_a, parts_b};

  template <int32_t index, class Meanwhile>
  KVC_INLINE void add_step(const std::byte* a, size_t side_a, const std::byte* b, size_t side_b,
                           Meanwhile& meanwhile) {
    if constexpr (index < path.count) {
      constexpr size_t part_a = static_cast<size_t>(path.a[index]),
                       part_b = static_cast<size_t>(path.b[index]);
      if constexpr (index == 0 || path.a[index] != path.a[index > 0 ? index - 1 : 0]) {
        amx_load<4>(a + part_a * amx_tile_bytes);
        if constexpr (tiles_a == 2) amx_load<5>(a + side_a + part_a * amx_tile_bytes);
      }
      if constexpr (index == 0 || path.b[index] != path.b[index > 0 ? index - 1 : 0]) {
        amx_load<6>(b + part_b * amx_tile_bytes);
        if constexpr (tiles_b == 2) amx_load<7>(b + side_b + part_b * amx_tile_bytes);
      }
      amx_multiply_add<0, 4, 6>();
      if constexpr (tiles_b == 2) amx_multiply_add<1, 4, 7>();
      if constexpr (tiles_a == 2) amx_multiply_add<2, 5, 6>();
      if constexpr (tiles_a == 2 && tiles_b == 2) amx_multiply_add<3, 5, 7>();
      meanwhile.after(tiles_a * tiles_b);
      add_step<index + 1>(a, side_a, b, side_b, meanwhile);
    }
  }

  /// c [16 · tiles_a][stride] = A · B over `steps` steps.
  template <class Meanwhile>
  [[gnu::noinline]] static void multiply(const Operand& a, const Operand& b, int32_t steps,
                                         float* c, size_t stride, Meanwhile& meanwhile) {
    amx_zero<0>();
    if constexpr (tiles_b == 2) amx_zero<1>();
    if constexpr (tiles_a == 2) amx_zero<2>();
    if constexpr (tiles_a == 2 && tiles_b == 2) amx_zero<3>();
    const std::byte *from_a = a.at, *from_b = b.at;
    for (int32_t step = 0; step < steps; ++step, from_a += a.step_bytes, from_b += b.step_bytes)
      add_step<0>(from_a, a.side_bytes, from_b, b.side_bytes, meanwhile);
    const size_t bytes = stride * sizeof(float);
    amx_store<0>(c, bytes);
    if constexpr (tiles_b == 2) amx_store<1>(c + 16, bytes);
    if constexpr (tiles_a == 2) amx_store<2>(c + 16 * stride, bytes);
    if constexpr (tiles_a == 2 && tiles_b == 2) amx_store<3>(c + 16 * stride + 16, bytes);
  }
};

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE::matrix
