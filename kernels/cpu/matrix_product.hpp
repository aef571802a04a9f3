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

/// The products of parts that matter: part i with part j where i + j < order. Each shares a part with the one before.
/// That saves loads, which take time of their own when the core's other thread is busy.
struct Path {
  int32_t count = 0;
  int32_t a[6] = {}, b[6] = {};

  constexpr Path(int32_t parts_a, int32_t parts_b, int32_t order) {
    bool reached = false;
    const bool swapped = parts_b > parts_a;
    const int32_t more = swapped ? parts_b : parts_a, fewer = swapped ? parts_a : parts_b;
    const auto visit = [&](int32_t i, int32_t j) {
      a[count] = swapped ? j : i;
      b[count++] = swapped ? i : j;
      reached |= i == 0 && j == 0;
    };
    for (int32_t i = more - 1, j = 0; i >= 0; --i) {
      visit(i, j);
      for (; j + 1 < fewer && i + j + 1 < order; visit(i, j)) ++j;
    }
    if (!reached) visit(0, 0);
  }
};

template <int32_t number>
struct Register {
  static constexpr int32_t index = number;
};

/// A · B in 16 · tiles_a rows and 16 · tiles_b columns: sums in registers 0 to 3, A in 4 and 5, B
/// in 6 and 7. `meanwhile` is told of every few multiplications: what it does then, vectors do while
/// the matrix unit works.
template <int32_t parts_a, int32_t parts_b, int32_t order, int32_t tiles_a, int32_t tiles_b>
struct Product {
  static constexpr Path path{parts_a, parts_b, order};

  /// Loads the parts of product `index` of the path that differ from those of the one before.
  template <int32_t index>
  KVC_INLINE void load_parts(const std::byte* a, size_t side_a, const std::byte* b, size_t side_b) {
    constexpr int32_t before = index > 0 ? index - 1 : path.count - 1;
    constexpr bool is_first = index == 0;
    constexpr size_t at_a = static_cast<size_t>(path.a[index]) * amx_tile_bytes,
                     at_b = static_cast<size_t>(path.b[index]) * amx_tile_bytes;
    if constexpr (is_first || path.a[index] != path.a[before]) {
      amx_load<4>(a + at_a);
      if constexpr (tiles_a == 2) amx_load<5>(a + side_a + at_a);
    }
    if constexpr (is_first || path.b[index] != path.b[before]) {
      amx_load<6>(b + at_b);
      if constexpr (tiles_b == 2) amx_load<7>(b + side_b + at_b);
    }
  }

  /// Product `index` and those behind it. What the next one needs is loaded before `meanwhile`, which takes longer than a load.
  template <int32_t index, class Meanwhile>
  KVC_INLINE void add_step(const Operand& a, const std::byte* from_a, const Operand& b,
                           const std::byte* from_b, bool is_last, Meanwhile& meanwhile) {
    amx_multiply_add<0, 4, 6>();
    if constexpr (tiles_b == 2) amx_multiply_add<1, 4, 7>();
    if constexpr (tiles_a == 2) amx_multiply_add<2, 5, 6>();
    if constexpr (tiles_a == 2 && tiles_b == 2) amx_multiply_add<3, 5, 7>();
    if constexpr (index + 1 < path.count) {
      load_parts<index + 1>(from_a, a.side_bytes, from_b, b.side_bytes);
    } else if (!is_last) {
      load_parts<0>(from_a + a.step_bytes, a.side_bytes, from_b + b.step_bytes, b.side_bytes);
    }
    meanwhile.after(tiles_a * tiles_b);
    if constexpr (index + 1 < path.count)
      add_step<index + 1>(a, from_a, b, from_b, is_last, meanwhile);
  }

  /// Calls `use` with each register of sums and where it lies in c.
  template <class Use>
  KVC_INLINE void for_sums(float* c, size_t stride, Use use) {
    use(Register<0>{}, c);
    if constexpr (tiles_b == 2) use(Register<1>{}, c + 16);
    if constexpr (tiles_a == 2) use(Register<2>{}, c + 16 * stride);
    if constexpr (tiles_a == 2 && tiles_b == 2) use(Register<3>{}, c + 16 * stride + 16);
  }

  /// c [16 · tiles_a][stride] = A · B over `steps` steps, or c + A · B.
  template <bool adds, class Meanwhile>
  [[gnu::noinline]] static void multiply(const Operand& a, const Operand& b, int32_t steps,
                                         float* c, size_t stride, Meanwhile& meanwhile) {
    const size_t bytes = stride * sizeof(float);
    for_sums(c, stride, [&](auto sum, [[maybe_unused]] float* at) {
      if constexpr (adds) {
        amx_load<sum.index>(at, bytes);
      } else {
        amx_zero<sum.index>();
      }
    });
    const std::byte *from_a = a.at, *from_b = b.at;
    load_parts<0>(from_a, a.side_bytes, from_b, b.side_bytes);
    for (int32_t step = 0; step < steps; ++step, from_a += a.step_bytes, from_b += b.step_bytes)
      add_step<0>(a, from_a, b, from_b, step + 1 == steps, meanwhile);
    for_sums(c, stride, [&](auto sum, float* at) { amx_store<sum.index>(at, bytes); });
  }
};

}  // namespace kvc::cpu::KVC_ISA_NAMESPACE::matrix
