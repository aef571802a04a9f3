#include "tests/cuda/staging.hpp"

#include <algorithm>

namespace gpu {

using kvc::Tensor;
using kvc::cuda::Error;
namespace runtime = kvc::cuda::runtime;

namespace {

/// Elements from the first of a tensor to the ends of what it names.
struct Extent {
  int64_t least = 0, most = 0;
  void add(int64_t steps, int64_t stride) { (stride < 0 ? least : most) += steps * stride; }
};

Extent extent_of(const Tensor& tensor, int32_t tokens) {
  Extent extent;
  for (int32_t d = 0; d < tensor.ndim; ++d) {
    const int64_t last = tensor.shape[d] - 1;
    if (d != tokens || tensor.fold == 0) {
      extent.add(last, tensor.stride[d]);
      continue;
    }
    extent.add(last / tensor.fold, tensor.fold_stride);
    extent.add(std::min<int64_t>(last, tensor.fold - 1), tensor.stride[d]);
  }
  return extent;
}

/// Blocks of memory lie on the same bytes of 256 as what they are copies of.
constexpr size_t alignment = 256;
size_t offset_of(const std::byte* address) {
  return reinterpret_cast<uintptr_t>(address) % alignment;
}

}  // namespace

Staging::~Staging() {
  for (const Range& range : ranges_)
    if (range.there != nullptr) runtime::release(range.there - offset_of(range.begin));
}

void Staging::add(Tensor& tensor, Use use, int32_t tokens) {
  if (tensor.data == nullptr || tensor.is_empty()) return;
  const Extent extent = extent_of(tensor, tokens);
  const auto bytes = static_cast<int64_t>(size_of(tensor.dtype));
  auto* const data = static_cast<std::byte*>(tensor.data);
  tensors_.push_back({&tensor,
                      {data + extent.least * bytes, data + (extent.most + 1) * bytes,
                       use == Use::written, nullptr}});
}

void Staging::add_rows(Tensor& tensor, Use use, int64_t n, int64_t stride) {
  if (n == 0) return;
  const size_t before = tensors_.size();
  add(tensor, use);
  if (tensors_.size() == before) return;
  Range& range = tensors_.back().range;
  const int64_t more = (n - 1) * stride * static_cast<int64_t>(size_of(tensor.dtype));
  (more < 0 ? range.begin : range.end) += more;
}

/// Ranges that share a byte become one.
void Staging::merge() {
  for (const Staged& staged : tensors_) ranges_.push_back(staged.range);
  std::sort(ranges_.begin(), ranges_.end(),
            [](const Range& a, const Range& b) { return a.begin < b.begin; });
  std::vector<Range> merged;
  for (const Range& range : ranges_) {
    if (merged.empty() || range.begin >= merged.back().end) {
      merged.push_back(range);
      continue;
    }
    merged.back().end = std::max(merged.back().end, range.end);
    merged.back().is_written = merged.back().is_written || range.is_written;
  }
  ranges_ = std::move(merged);
}

const Staging::Range& Staging::range_of(const std::byte* address) const {
  return *std::find_if(ranges_.begin(), ranges_.end(), [address](const Range& range) {
    return range.begin <= address && address < range.end;
  });
}

Error Staging::begin() {
  merge();
  for (Range& range : ranges_) {
    const auto bytes = static_cast<size_t>(range.end - range.begin);
    void* block = nullptr;
    if (Error e = runtime::allocate(bytes + alignment, &block); e != Error::none) return e;
    range.there = static_cast<std::byte*>(block) + offset_of(range.begin);
    if (Error e = runtime::copy_to_device(range.there, range.begin, bytes, nullptr); e != Error::none)
      return e;
  }
  for (const Staged& staged : tensors_) {
    const auto* const data = static_cast<std::byte*>(staged.tensor->data);
    const Range& range = range_of(data);
    staged.tensor->data = range.there + (data - range.begin);
  }
  return ranges_.empty() ? Error::none : runtime::synchronize(nullptr);
}

Error Staging::end() {
  if (Error e = runtime::synchronize_device(); e != Error::none) return e;
  for (const Range& range : ranges_) {
    if (!range.is_written) continue;
    const auto bytes = static_cast<size_t>(range.end - range.begin);
    if (Error e = runtime::copy_to_host(range.begin, range.there, bytes, nullptr); e != Error::none)
      return e;
  }
  return ranges_.empty() ? Error::none : runtime::synchronize(nullptr);
}

}  // namespace gpu
