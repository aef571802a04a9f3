#include <algorithm>
#include <cstring>

#include "kernels/cpu/rows.hpp"

/// Cells that are copied as they are: whole stretches at a time, because cells that follow each other lie side by side.
namespace kvc::cpu {
namespace {

/// Work is handed out in items of about this size.
constexpr size_t item_bytes = size_t{256} << 10;

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

/// All planes of a layer, cut into items.
class Job {
 public:
  explicit Job(const CopyParams& params) : params_(params) {
    const LayerStorage &from = params.from, &to = params.to;
    add(from.k.codes, to.k.codes, from.k.n_heads);
    add(from.k.scales, to.k.scales, from.k.n_heads);
    if (from.v_in_k) return;
    add(from.v.codes, to.v.codes, from.v.n_heads);
    add(from.v.scales, to.v.scales, from.v.n_heads);
  }

  void run(ThreadPool& pool) {
    const auto work = [](void* context, int32_t item, int32_t) noexcept {
      static_cast<const Job*>(context)->copy(item);
    };
    if (bytes_ >= parallel_bytes) return pool.run(n_items_, work, this);
    for (int32_t item = 0; item < n_items_; ++item) work(this, item, 0);
  }

 private:
  struct PlaneItems {
    const Plane* from;
    const Plane* to;
    int32_t first_item;
    int32_t items_per_head;
    int32_t cells_at_once;

    int32_t items_of(const CellStretch& cells) const {
      return (cells.n + cells_at_once - 1) / cells_at_once;
    }
  };

  void add(const Plane& from, const Plane& to, int32_t n_heads) {
    if (from.row_bytes == 0) return;
    const auto at_once = static_cast<int32_t>(std::max<size_t>(item_bytes / from.row_bytes, 1));
    PlaneItems& plane = planes_[n_planes_++] = {&from, &to, n_items_, 0, at_once};
    size_t n_cells = 0;
    for (int32_t i = 0; i < params_.n_stretches; ++i) {
      n_cells += static_cast<size_t>(params_.stretch[i].n);
      plane.items_per_head += plane.items_of(params_.stretch[i]);
    }
    n_items_ += plane.items_per_head * n_heads;
    bytes_ += n_cells * from.row_bytes * static_cast<size_t>(n_heads);
  }

  void copy(int32_t item) const {
    const PlaneItems* plane = planes_ + n_planes_ - 1;
    while (item < plane->first_item) --plane;
    const int32_t head = (item - plane->first_item) / plane->items_per_head;
    int32_t rest = (item - plane->first_item) % plane->items_per_head;
    const CellStretch* cells = params_.stretch;
    while (rest >= plane->items_of(*cells)) rest -= plane->items_of(*cells++);
    const int32_t first = rest * plane->cells_at_once;
    copy_part({plane->from->row(head, cells->from + first), plane->to->row(head, cells->to + first),
               plane->from->row_stride, plane->to->row_stride, plane->from->row_bytes,
               std::min(plane->cells_at_once, cells->n - first)},
              params_.exchange);
  }

  const CopyParams& params_;
  PlaneItems planes_[4];
  int32_t n_planes_ = 0;
  int32_t n_items_ = 0;
  size_t bytes_ = 0;
};

}  // namespace

void copy_cells(const CopyParams& params, ThreadPool& pool) noexcept { Job(params).run(pool); }

}  // namespace kvc::cpu
