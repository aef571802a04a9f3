#include "kernels/cpu/states.hpp"

#include <algorithm>
#include <cstring>

#include "kernels/cpu/convert.hpp"

namespace kvc::cpu {
namespace {

/// Work is handed out in items of about this size.
constexpr int64_t item_bytes = int64_t{256} << 10;

/// Channels of a convolution state whose columns are written together: they stay in the first-level cache.
constexpr int32_t channel_block = 256;

/// Calls per_stretch(row, begin, end) for stretches of elements that make up every row; several threads share them when there
/// is work for more than one.
template <class PerStretch>
void for_each_stretch(int32_t n_rows, int64_t n_elements, int64_t element_bytes, ThreadPool& pool,
                      const PerStretch& per_stretch) noexcept {
  struct Job {
    const PerStretch& per_stretch;
    int32_t n_rows;
    int32_t rows_at_once;
    int64_t n_elements;
    int64_t stretch;
    int64_t stretches;  // of a row
  };
  const int64_t stretch = std::min(std::max<int64_t>(item_bytes / element_bytes, 1), n_elements);
  const auto rows_at_once = static_cast<int32_t>(
      std::clamp<int64_t>(item_bytes / (stretch * element_bytes), 1, n_rows));
  const Job job{per_stretch, n_rows,  rows_at_once,
                n_elements,  stretch, (n_elements + stretch - 1) / stretch};
  const auto work = [](void* context, int32_t item, int32_t) noexcept {
    const Job& mine = *static_cast<const Job*>(context);
    const int64_t begin = item % mine.stretches * mine.stretch;
    const int64_t end = std::min(begin + mine.stretch, mine.n_elements);
    const auto first = static_cast<int32_t>(item / mine.stretches) * mine.rows_at_once;
    const int32_t last = std::min(first + mine.rows_at_once, mine.n_rows);
    for (int32_t row = first; row < last; ++row) mine.per_stretch(row, begin, end);
  };
  const int64_t n_items = (n_rows + rows_at_once - 1) / rows_at_once * job.stretches;
  if (n_items == 1) return work(const_cast<Job*>(&job), 0, 0);
  pool.run(static_cast<int32_t>(n_items), work, const_cast<Job*>(&job));
}

/// A row of a tensor as the fewest dimensions: neighbours that lie behind each other without a gap are one.
class RowShape {
 public:
  explicit RowShape(const Tensor& row) : dtype_(row.dtype) {
    for (int32_t d = 0; d < row.ndim; ++d) {
      if (row.shape[d] == 1) continue;
      if (ndim_ > 0 && stride_[ndim_ - 1] == row.shape[d] * row.stride[d]) {
        extent_[ndim_ - 1] *= row.shape[d];
        stride_[ndim_ - 1] = row.stride[d];
      } else {
        extent_[ndim_] = row.shape[d];
        stride_[ndim_++] = row.stride[d];
      }
    }
    if (ndim_ == 0) extent_[ndim_++] = 1;
  }

  /// Calls per_run(elements, at, n) for the runs of equal stride that make up the elements [begin, end); `at` counts from begin.
  template <class PerRun>
  void for_each_run(std::byte* data, int64_t begin, int64_t end, const PerRun& per_run) const {
    int64_t index[8], offset = 0, rest = begin;
    for (int32_t d = ndim_ - 1; d >= 0; --d) {
      index[d] = rest % extent_[d];
      rest /= extent_[d];
      offset += index[d] * stride_[d];
    }
    const int32_t inner = ndim_ - 1;
    for (int64_t at = begin; at < end;) {
      const int64_t n = std::min(extent_[inner] - index[inner], end - at);
      std::byte* first = data + offset * static_cast<int64_t>(size_of(dtype_));
      per_run(Row{first, stride_[inner], dtype_}, at - begin, n);
      at += n;
      index[inner] += n;
      offset += n * stride_[inner];
      for (int32_t d = inner; d > 0 && index[d] == extent_[d]; --d) {
        offset += stride_[d - 1] - index[d] * stride_[d];
        index[d] = 0;
        ++index[d - 1];
      }
    }
  }

 private:
  int64_t extent_[8] = {}, stride_[8] = {};
  int32_t ndim_ = 0;
  DType dtype_;
};

template <class Copy>
void for_each_pair(const StateRows& params, ThreadPool& pool, const Copy& copy) noexcept {
  const RowShape shape(params.row);
  const DType stored = params.part.element();
  const auto element_bytes = static_cast<int64_t>(size_of(stored));
  const int64_t row_bytes = params.row_stride * static_cast<int64_t>(size_of(params.row.dtype));
  const auto per_stretch = [&](int32_t row, int64_t begin, int64_t end) {
    auto* data = static_cast<std::byte*>(params.row.data) + row * row_bytes;
    std::byte* slot = params.part.slot(params.slot[row]) + begin * element_bytes;
    shape.for_each_run(data, begin, end, [&](const Row& elements, int64_t at, int64_t n) {
      copy(Row{slot + at * element_bytes, 1, stored}, elements, n);
    });
  };
  for_each_stretch(params.n_rows, params.part.n_elements, element_bytes, pool, per_stretch);
}

}  // namespace

void store_states(const StateRows& params, ThreadPool& pool) noexcept {
  for_each_pair(params, pool, [](const Row& stored, const Row& elements, int64_t n) {
    convert_row(stored, elements, n);
  });
}

void load_states(const StateRows& params, ThreadPool& pool) noexcept {
  for_each_pair(params, pool, [](const Row& stored, const Row& elements, int64_t n) {
    convert_row(elements, stored, n);
  });
}

/// Column c of a row is column n_tokens + c of the old ones followed by the inputs.
void store_conv(const ConvRows& params, ThreadPool& pool) noexcept {
  const DType stored = params.part.element();
  const auto element_bytes = static_cast<int64_t>(size_of(stored));
  const auto x_bytes = static_cast<int64_t>(size_of(params.x.dtype));
  const int64_t width = params.width;
  const auto per_block = [&](const ConvRow& row, int64_t first, int64_t n) {
    const auto column_of = [&](int32_t slot, int64_t column) {
      std::byte* data = params.part.slot(slot) + (first * width + column) * element_bytes;
      return Row{data, width, stored};
    };
    for (int64_t column = 0; column < width; ++column) {
      const Row to = column_of(row.to, column);
      const int64_t source = row.n_tokens + column;
      if (source < width) {
        convert_row(to, column_of(row.from, source), n);
        continue;
      }
      const int64_t token = params.order[row.first_token + (source - width)];
      const int64_t element = token * params.x.stride[0] + first * params.x.stride[1];
      auto* data = static_cast<std::byte*>(params.x.data) + element * x_bytes;
      convert_row(to, Row{data, params.x.stride[1], params.x.dtype}, n);
    }
  };
  const auto per_stretch = [&](int32_t row, int64_t begin, int64_t end) {
    for (int64_t first = begin; first < end; first += channel_block)
      per_block(params.row[row], first, std::min<int64_t>(end - first, channel_block));
  };
  for_each_stretch(params.n_rows, params.n_channels, width * element_bytes, pool, per_stretch);
}

void copy_states(const StateCopies& params, ThreadPool& pool) noexcept {
  const StatePart& source = params.source != nullptr ? *params.source : params.part;
  const auto per_stretch = [&](int32_t i, int64_t begin, int64_t end) {
    std::memcpy(params.part.slot(params.to[i]) + begin, source.slot(params.from[i]) + begin,
                static_cast<size_t>(end - begin));
  };
  for_each_stretch(params.n, static_cast<int64_t>(params.part.bytes()), 1, pool, per_stretch);
}

void clear_states(const StateClears& params, ThreadPool& pool) noexcept {
  const auto per_stretch = [&](int32_t i, int64_t begin, int64_t end) {
    std::byte* slot = params.data + static_cast<size_t>(params.slot[i]) * params.slot_bytes;
    std::memset(slot + begin, 0, static_cast<size_t>(end - begin));
  };
  for_each_stretch(params.n, static_cast<int64_t>(params.n_bytes), 1, pool, per_stretch);
}

}  // namespace kvc::cpu
