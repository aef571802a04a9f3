#include <algorithm>
#include <cstring>

#include "kernels/cpu/rows.hpp"

/// Cells that are copied as they are: whole stretches at a time, because cells that follow each other lie side by side.
namespace kvc::cpu {
namespace {

/// Work is handed out in items of about this size, large enough for memcpy to write past the caches.
constexpr size_t item_bytes = size_t{2} << 20;

/// The caller alone does less than this: handing out work costs some microseconds.
constexpr size_t parallel_bytes = size_t{256} << 10;

/// What a plane holds in one head of a stretch of cells, in as few parts as it lies there.
struct Part {
  std::byte* from;
  std::byte* to;
  size_t from_stride;
  size_t to_stride;
  size_t bytes;  // of a row
  int32_t n_rows;
};

void exchange(std::byte* a, std::byte* b, size_t n) {
  std::byte kept[4096];
  for (size_t at = 0; at < n; at += sizeof kept) {
    const size_t bytes = std::min(n - at, sizeof kept);
    std::memcpy(kept, a + at, bytes);
    std::memcpy(a + at, b + at, bytes);
    std::memcpy(b + at, kept, bytes);
  }
}

void copy_part(Part part, bool both_ways) {
  if (part.from_stride == part.bytes && part.to_stride == part.bytes) {
    part.bytes *= static_cast<size_t>(part.n_rows);
    part.n_rows = 1;
  }
  for (int32_t i = 0; i < part.n_rows; ++i) {
    if (both_ways) {
      exchange(part.from, part.to, part.bytes);
    } else {
      std::memcpy(part.to, part.from, part.bytes);
    }
    part.from += part.from_stride;
    part.to += part.to_stride;
  }
}

/// One plane of one side of a layer.
struct Job {
  const CopyParams& params;
  const Plane& from;
  const Plane& to;
  int32_t n_heads;
  int32_t cells_at_once;
  int32_t items_per_head;

  void copy(int32_t item) const {
    const int32_t head = item / items_per_head;
    int32_t rest = item % items_per_head, stretch = 0;  // the item's place among those of a head
    while (rest >= items_of(params.stretch[stretch])) rest -= items_of(params.stretch[stretch++]);
    const CellStretch& cells = params.stretch[stretch];
    const int32_t first = rest * cells_at_once;
    copy_part({from.row(head, cells.from + first), to.row(head, cells.to + first), from.row_stride,
               to.row_stride, from.row_bytes, std::min(cells_at_once, cells.n - first)},
              params.exchange);
  }
  int32_t items_of(const CellStretch& cells) const {
    return (cells.n + cells_at_once - 1) / cells_at_once;
  }
};

void copy_plane(const CopyParams& params, const Plane& from, const Plane& to, int32_t n_heads,
                ThreadPool& pool) {
  if (from.row_bytes == 0) return;
  const auto at_once = static_cast<int32_t>(std::max<size_t>(item_bytes / from.row_bytes, 1));
  Job job{params, from, to, n_heads, at_once, 0};
  int64_t n_cells = 0;
  for (int32_t i = 0; i < params.n_stretches; ++i) {
    n_cells += params.stretch[i].n;
    job.items_per_head += job.items_of(params.stretch[i]);
  }
  const int32_t n_items = job.items_per_head * n_heads;
  const auto work = [](void* context, int32_t item, int32_t) noexcept {
    static_cast<const Job*>(context)->copy(item);
  };
  if (static_cast<size_t>(n_cells) * from.row_bytes * static_cast<size_t>(n_heads) < parallel_bytes) {
    for (int32_t item = 0; item < n_items; ++item) work(&job, item, 0);
  } else {
    pool.run(n_items, work, &job);
  }
}

}  // namespace

void copy_cells(const CopyParams& params, ThreadPool& pool) noexcept {
  const LayerStorage &from = params.from, &to = params.to;
  copy_plane(params, from.k.codes, to.k.codes, from.k.n_heads, pool);
  copy_plane(params, from.k.scales, to.k.scales, from.k.n_heads, pool);
  if (from.v_in_k) return;
  copy_plane(params, from.v.codes, to.v.codes, from.v.n_heads, pool);
  copy_plane(params, from.v.scales, to.v.scales, from.v.n_heads, pool);
}

}  // namespace kvc::cpu
