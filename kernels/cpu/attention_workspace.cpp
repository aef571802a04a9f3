#include "kernels/cpu/attention_workspace.hpp"

#include <algorithm>

#include "kernels/cpu/attention.hpp"
#include "kernels/cpu/kernel_table.hpp"
#include "kernels/cpu/offset_rotations.hpp"

namespace kvc::cpu {
namespace {

/// Floats from the start of a page to o. Decode of a group of four then has q, probabilities and o at page offsets of
/// their own (0, 2048 and 3072): with q and o at the same one it reads memory about 3 % slower.
constexpr uint64_t o_place = 768;

template <class T>
T* shifted(T* pointer, size_t bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<std::byte*>(pointer) + bytes);
}

}  // namespace

void ThreadScratch::place(Carver& carver, int32_t head_dim_k, int32_t head_dim_v) {
  size_t kernel_bytes = 0;
  for (int32_t i = 0; const KernelTable* table = runnable_kernels(i); ++i) {
    kernel_bytes = std::max(kernel_bytes, table->narrow_tile_scratch_bytes(head_dim_k, head_dim_v));
    if (table->medium_tile_scratch_bytes) {
      kernel_bytes = std::max(kernel_bytes, table->medium_tile_scratch_bytes(head_dim_k, head_dim_v));
    }
    kernel_bytes = std::max(kernel_bytes, table->wide_tile_scratch_bytes(head_dim_k, head_dim_v));
  }
  const auto rows = static_cast<uint64_t>(tile_rows_max);
  const auto q_stride = static_cast<uint64_t>(padded(head_dim_k));
  const auto o_stride = static_cast<uint64_t>(padded(head_dim_v));
  kernel = carver.take<std::byte>(kernel_bytes, 4096);
  q = carver.take<float>(rows * q_stride, 4096);
  q_rotated = carver.take<float>(rows * q_stride, 4096);
  o = carver.take<float>(rows * o_stride + o_place, 4096);
  if (o) o += o_place;
  max = carver.take<float>(rows, 64);
  sum = carver.take<float>(rows, 64);
  folded_o = carver.take<float>(rows * o_stride, 64);
  folded_max = carver.take<float>(rows, 64);
  folded_sum = carver.take<float>(rows, 64);
  slope = carver.take<float>(rows, 64);
  token = carver.take<TileToken>(rows, 64);
  segment_token = carver.take<TileToken>(rows, 64);
  cell = carver.take<int32_t>(static_cast<uint64_t>(tile_cells_max), 64);
  position = carver.take<int32_t>(static_cast<uint64_t>(tile_cells_max), 64);
  rotations = OffsetRotations::place(carver, head_dim_k);
  const auto n_turned = static_cast<uint64_t>(turned_cells(head_dim_k));
  turned = carver.take<float>(n_turned * q_stride, 4096);
  ordinal = carver.take<int32_t>(n_turned, 64);
  run = carver.take<int32_t>(n_turned, 64);
  bias = carver.take<float>(static_cast<uint64_t>(bias_floats_max), 64);
}

size_t slot_bytes(int32_t n_q_heads, int32_t head_dim_v) {
  return static_cast<size_t>(n_q_heads) * static_cast<size_t>(padded(head_dim_v) + 16) * sizeof(float);
}

/// The threads' scratch comes first: what kernels touch most then never lies in the ragged end of the cache's block, which
/// has no huge pages.
void Workspace::place(Carver& carver, const AttentionBounds& bounds, int32_t n_threads) {
  carver.take<std::byte>(0, 4096);
  const CheckedSize before = carver.used();
  first.place(carver, bounds.head_dim_k, bounds.head_dim_v);
  carver.take<std::byte>(0, 4096);
  scratch_bytes = static_cast<size_t>(carver.used().value() - before.value());
  carver.take<std::byte>(CheckedSize(scratch_bytes) *
                         CheckedSize(static_cast<uint64_t>(n_threads - 1)));

  work.place(carver, bounds.max_batch);
  const auto n_q_heads = static_cast<uint64_t>(bounds.max_q_heads);
  finished = carver.take<std::atomic<int32_t>>(CheckedSize(slots_max / 2) * CheckedSize(n_q_heads),
                                               64);
  // Sized in bytes: a layer of fewer heads has more slots in the same room.
  const size_t one = slot_bytes(bounds.max_q_heads, bounds.head_dim_v);
  const size_t room = std::max(std::min(slots_max * one, slot_bytes_max), one);
  partial = carver.take<float>(room / sizeof(float), 4096);
}

void Workspace::place(const AttentionParams& params, int32_t n_threads) {
  AttentionBounds bounds;
  bounds.max_batch = params.plan.n_rows;
  bounds.max_q_heads = params.constants.n_q_heads;
  bounds.n_kv_heads = params.storage.k.n_heads;
  bounds.head_dim_k = params.storage.k.head_dim();
  bounds.head_dim_v = params.storage.v.head_dim();
  Carver carver(params.workspace);
  place(carver, bounds, n_threads);
}

ThreadScratch Workspace::scratch_of(int32_t thread) const {
  const size_t by = scratch_bytes * static_cast<size_t>(thread);
  ThreadScratch s = first;
  s.kernel = shifted(s.kernel, by);
  s.q = shifted(s.q, by);
  s.q_rotated = shifted(s.q_rotated, by);
  s.o = shifted(s.o, by);
  s.max = shifted(s.max, by);
  s.sum = shifted(s.sum, by);
  s.folded_o = shifted(s.folded_o, by);
  s.folded_max = shifted(s.folded_max, by);
  s.folded_sum = shifted(s.folded_sum, by);
  s.slope = shifted(s.slope, by);
  s.token = shifted(s.token, by);
  s.segment_token = shifted(s.segment_token, by);
  s.cell = shifted(s.cell, by);
  s.position = shifted(s.position, by);
  s.rotations = shifted(s.rotations, by);
  s.turned = shifted(s.turned, by);
  s.ordinal = shifted(s.ordinal, by);
  s.run = shifted(s.run, by);
  s.bias = shifted(s.bias, by);
  return s;
}

RowScratch row_scratch(const AttentionBounds& bounds, std::byte* workspace, int32_t n_threads) {
  if (bounds.head_dim_k == 0) return {};  // a cache without keys
  Carver carver(workspace);
  Workspace space;
  space.place(carver, bounds, n_threads);
  float* const values = bounds.head_dim_v > bounds.head_dim_k ? space.first.o : space.first.q;
  return {{values, space.first.q_rotated, space.first.cell}, space.scratch_bytes};
}

size_t attention_workspace_bytes(const AttentionBounds& bounds, int32_t n_threads) noexcept {
  Carver carver;
  Workspace space;
  space.place(carver, bounds, n_threads);
  const CheckedSize total = carver.used().rounded_up(4096);
  return total.overflowed() ? SIZE_MAX : static_cast<size_t>(total.value());
}

}  // namespace kvc::cpu
