#include "core/caches/row_digests.hpp"

#include <algorithm>

#include "core/base/planted.hpp"

namespace kvc {

Status RowDigests::add_layer(int32_t layer, const LayerStorage& storage, int32_t n) {
  for (int32_t i = 0; i < n; ++i) digest_[i].update(&layer, sizeof layer);
  for (int32_t head = 0; head < std::max(storage.k.n_heads, storage.v.n_heads); ++head) {
    for (const Slab* slab : {&storage.k, &storage.v}) {
      if ((slab == &storage.v && storage.v_in_k) || head >= slab->n_heads) continue;
      if (Status s = add_rows(slab->codes, head, n); s != Status::ok) return s;
      if (planted(Bug::digest_without_scales)) continue;
      if (Status s = add_rows(slab->scales, head, n); s != Status::ok) return s;
    }
  }
  return Status::ok;
}

Status RowDigests::add_rows(const Plane& plane, int32_t head, int32_t n) {
  if (plane.row_bytes == 0) return Status::ok;
  const size_t part = std::min(plane.row_bytes, sizeof buffer_);
  const auto at_once = static_cast<int32_t>(std::min<size_t>(sizeof buffer_ / part, rows_max));
  for (int32_t first = 0; first < n; first += at_once) {
    const int32_t rows = std::min(at_once, n - first);
    for (size_t at = 0; at < plane.row_bytes; at += part) {
      const size_t bytes = std::min(part, plane.row_bytes - at);
      const RowBytes read = {plane, head, cell + first, rows, at, bytes, buffer_};
      if (Status s = health_.after(device_.read_rows(read)); s != Status::ok) return s;
      for (int32_t i = 0; i < rows; ++i)
        digest_[first + i].update(buffer_ + static_cast<size_t>(i) * bytes, bytes);
    }
  }
  return Status::ok;
}

void RowDigests::finish(int32_t n, DigestSum& sum) {
  for (int32_t i = 0; i < n; ++i) {
    sum.add(digest_[i]);
    digest_[i] = Digest();
  }
}

}  // namespace kvc
