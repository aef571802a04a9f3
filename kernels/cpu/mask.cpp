#include "kernels/cpu/mask.hpp"

#include <algorithm>
#include <iterator>

#include "core/attention/visible.hpp"
#include "kernels/cpu/kernel_table.hpp"

/// A row of a mask is written as runs: what it hides is filled in, then the stretches of neighbouring cells that it sees. Rows of one
/// list differ by a few cells, so each but the first is a copy of the one before it and what is different.
namespace kvc::cpu {
namespace {

/// A mask of fewer bytes is written by the caller alone.
constexpr int64_t parallel_bytes = int64_t{1} << 20;
/// Rows that a thread takes at once fill about so many bytes.
constexpr int64_t item_bytes = int64_t{256} << 10;

template <class Element>
class Mask {
 public:
  Mask(const MaskParams& params, Element visible, Element hidden)
      : params_(params), plan_(params.plan), visible_(visible), hidden_(hidden) {
    const int64_t row_bytes = std::max<int64_t>(
        1, n_columns() * static_cast<int64_t>(sizeof(Element)));
    rows_at_once_ = static_cast<int32_t>(std::clamp<int64_t>(item_bytes / row_bytes, 1, 1 << 20));
  }

  void write(ThreadPool& pool) {
    // Tokens without a row, and those of a reserve pass, which has none.
    const auto n_tokens = static_cast<int32_t>(params_.into.shape[0]);
    for (int32_t token = 0; plan_.n_rows < n_tokens && token < n_tokens; ++token)
      fill_columns(token, params_.all_visible ? visible_ : hidden_);
    const int32_t n_items = (plan_.n_rows + rows_at_once_ - 1) / rows_at_once_;
    const int64_t bytes = plan_.n_rows * n_columns() * static_cast<int64_t>(sizeof(Element));
    const auto write_item = [](void* context, int32_t item, int32_t) noexcept {
      static_cast<const Mask*>(context)->write_rows(item);
    };
    if (bytes < parallel_bytes) {
      for (int32_t item = 0; item < n_items; ++item) write_item(this, item, 0);
    } else {
      pool.run(n_items, write_item, this);
    }
  }

 private:
  int64_t n_columns() const { return params_.into.shape[1]; }
  Element* row_at(int64_t token) const {
    return static_cast<Element*>(params_.into.data) + params_.into.token_offset(token);
  }

  void write_rows(int32_t item) const {
    const int32_t begin = item * rows_at_once_;
    const int32_t end = std::min(begin + rows_at_once_, plan_.n_rows);
    for (int32_t r = begin; r < end; ++r) {
      const AttentionRow& row = plan_.rows[r];
      if (plan_.seen != nullptr) {
        fill_columns(row.token, hidden_);
        fill_seen(row);
      } else if (r > begin && plan_.rows[r - 1].list == row.list) {
        write_after(plan_.rows[r - 1], row);
      } else {
        fill_columns(row.token, hidden_);
        fill(row, 0, row.first_end, visible_);
        fill(row, row.begin, row.end, visible_);
      }
    }
  }

  void fill_columns(int64_t token, Element value) const {
    Element* const row = row_at(token);
    const int64_t stride = params_.into.stride[1];
    if (stride == 1) {
      std::fill_n(row, n_columns(), value);
    } else {
      for (int64_t column = 0; column < n_columns(); ++column) row[column * stride] = value;
    }
  }

  /// Writes a row of the same list as one that is written.
  void write_after(const AttentionRow& written, const AttentionRow& row) const {
    Element* const to = row_at(row.token);
    const Element* const from = row_at(written.token);
    const int64_t stride = params_.into.stride[1];
    if (stride == 1) {
      std::copy_n(from, n_columns(), to);
    } else {
      for (int64_t column = 0; column < n_columns(); ++column)
        to[column * stride] = from[column * stride];
    }
    const auto sees = [](const AttentionRow& r, int32_t index) {
      return index < r.first_end || (index >= r.begin && index < r.end);
    };
    int32_t limit[] = {
        0, written.first_end, written.begin, written.end, row.first_end, row.begin, row.end};
    std::sort(std::begin(limit), std::end(limit));
    for (size_t i = 0; i + 1 < std::size(limit); ++i) {
      if (limit[i] == limit[i + 1] || sees(written, limit[i]) == sees(row, limit[i])) continue;
      fill(row, limit[i], limit[i + 1], sees(row, limit[i]) ? visible_ : hidden_);
    }
  }

  /// Gives the columns of the logical indexes [begin, end) of the row's list a value.
  void fill(const AttentionRow& row, int32_t begin, int32_t end, Element value) const {
    const TokenList& list = plan_.lists[row.list];
    Element* const first = row_at(row.token);
    const int32_t first_column = plan_.first_column(list, params_.first_column);
    int32_t start = 0;  // of the piece
    for (int32_t piece = 0; piece < 3; start += list.count[piece++]) {
      const int32_t* const cell = plan_.tokens.cell + list.start[piece];
      const int32_t last = std::min(end - start, list.count[piece]);
      for (int32_t i = std::max(begin - start, 0); i < last;) {
        const int32_t n = kernels().run_length(cell + i, last - i);
        fill_run(first, list.first_cell + cell[i] - first_column, n, value);
        i += n;
      }
    }
  }

  /// Where ranges name more than what the row sees.
  void fill_seen(const AttentionRow& row) const {
    Element* const first = row_at(row.token);
    const int32_t first_column = plan_.first_column(plan_.lists[row.list], params_.first_column);
    for_each_visible(plan_, row, [&](int32_t, int32_t cell, int32_t) {
      first[(cell - first_column) * params_.into.stride[1]] = visible_;
    });
  }

  void fill_run(Element* row, int64_t column, int32_t n, Element value) const {
    const int64_t stride = params_.into.stride[1];
    if (stride == 1) {
      std::fill_n(row + column, n, value);
    } else {
      for (int32_t i = 0; i < n; ++i) row[(column + i) * stride] = value;
    }
  }

  const MaskParams& params_;
  const AttentionPlan& plan_;
  const Element visible_, hidden_;
  int32_t rows_at_once_;
};

}  // namespace

void write_mask(const MaskParams& params, ThreadPool& pool) noexcept {
  switch (params.into.dtype) {
    case DType::f32: return Mask<uint32_t>(params, 0, 0xff800000u).write(pool);
    case DType::f16: return Mask<uint16_t>(params, 0, 0xfc00u).write(pool);
    case DType::bf16: return Mask<uint16_t>(params, 0, 0xff80u).write(pool);
    case DType::boolean: return Mask<uint8_t>(params, 1, 0).write(pool);
    default: break;  // no mask has codes
  }
  __builtin_unreachable();
}

}  // namespace kvc::cpu
