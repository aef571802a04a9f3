#include "kernels/cpu/rows.hpp"

#include <algorithm>

#include "core/base/half.hpp"
#include "kernels/cpu/convert.hpp"
#include "kernels/cpu/rotation.hpp"

namespace kvc::cpu {
namespace {

/// Pairs rotated at a time, with a table on the stack.
constexpr int32_t chunk_pairs = 128;

/// The caller alone does less than this: handing out work costs some microseconds.
constexpr size_t parallel_bytes = size_t{256} << 10;

/// Work is handed out in items of one head and this many tokens.
constexpr int32_t item_tokens = 64;

Row row_at(const Tensor& tensor, int64_t token, int64_t head) {
  const int64_t element = token * tensor.stride[0] + head * tensor.stride[1];
  auto* data = static_cast<std::byte*>(tensor.data) +
               element * static_cast<int64_t>(size_of(tensor.dtype));
  return {.data = data, .stride = tensor.stride[2], .dtype = tensor.dtype};
}

Row row_at(const Slab& slab, int32_t cell, int32_t head) {
  return {.data = slab.row(head, cell), .stride = 1, .dtype = slab.element()};
}

/// The rotation of one chunk of pairs, kept while the offset stays: neighbours mostly have the same
/// pending rotation.
struct ChunkRotation {
  const Rope& rope;
  const PairRange pairs;
  float table[2 * chunk_pairs];
  int32_t offset = 0;  // none computed yet: rows without a pending rotation are left alone

  ChunkRotation(const Rope& of, int32_t first_pair)
      : rope(of), pairs{first_pair, std::min(of.n_dims / 2 - first_pair, chunk_pairs)} {}

  void set_offset(int32_t to) {
    if (to == offset) return;
    offset = to;
    make_rotation(rope, pairs, to, table);
  }

  /// Rotates the chunk's pairs of a row. `from` may be `to`.
  void rotate_row(const Row& to, const Row& from) const {
    rotate_pairs(
        rope, pairs, table,
        [&](int32_t d) { return load_element(from.data, from.dtype, d * from.stride); },
        [&](int32_t d, float x) { store_element(to.data, to.dtype, d * to.stride, x); });
  }
};

/// Calls `per_row(token, head)` for every row; tokens of one head in a row, so that a head's slab
/// is walked in order.
template <class PerRow>
void for_each_row(int32_t n_tokens, int32_t n_heads, size_t bytes, ThreadPool& pool,
                  const PerRow& per_row) noexcept {
  struct Job {
    const PerRow& per_row;
    int32_t n_tokens;
    int32_t n_chunks;
  };
  const Job job{per_row, n_tokens, (n_tokens + item_tokens - 1) / item_tokens};
  const auto work = [](void* context, int32_t item, int32_t) noexcept {
    const Job& mine = *static_cast<const Job*>(context);
    const int32_t head = item / mine.n_chunks;
    const int32_t begin = item % mine.n_chunks * item_tokens;
    const int32_t end = std::min(begin + item_tokens, mine.n_tokens);
    for (int32_t token = begin; token < end; ++token) mine.per_row(token, head);
  };
  const int32_t n_items = job.n_chunks * n_heads;
  if (bytes >= parallel_bytes) {
    pool.run(n_items, work, const_cast<Job*>(&job));
  } else {
    for (int32_t item = 0; item < n_items; ++item) work(const_cast<Job*>(&job), item, 0);
  }
}

size_t bytes_of(const LayerStorage& storage, int32_t n_tokens) {
  const size_t per_head = storage.k.row_bytes + storage.v.row_bytes;
  return per_head * static_cast<size_t>(storage.k.n_heads) * static_cast<size_t>(n_tokens);
}

}  // namespace

void store_rows(const StoreParams& params, ThreadPool& pool) noexcept {
  const Slab& k = params.storage.k;
  const Slab& v = params.storage.v;
  const auto store = [&](int32_t token, int32_t head) {
    const int32_t cell = params.cell[token];
    if (cell < 0) return;
    convert_row(row_at(k, cell, head), row_at(params.k, token, head), k.head_dim);
    convert_row(row_at(v, cell, head), row_at(params.v, token, head), v.head_dim);
  };
  for_each_row(params.n_tokens, params.storage.k.n_heads, bytes_of(params.storage, params.n_tokens),
               pool, store);
}

void load_rows(const LoadParams& params, ThreadPool& pool) noexcept {
  const Slab& k = params.storage.k;
  const Slab& v = params.storage.v;
  const auto load = [&](int32_t token, int32_t head) {
    const int32_t cell = params.cell[token];
    const Row to_k = params.k.data ? row_at(params.k, token, head) : Row{};
    const Row to_v = params.v.data ? row_at(params.v, token, head) : Row{};
    if (cell < 0) {
      if (to_k.data) zero_row(to_k, k.head_dim);
      if (to_v.data) zero_row(to_v, v.head_dim);
      return;
    }
    if (to_k.data) convert_row(to_k, row_at(k, cell, head), k.head_dim);
    if (to_v.data) convert_row(to_v, row_at(v, cell, head), v.head_dim);
  };
  const int32_t n_heads = params.storage.k.n_heads;
  for_each_row(params.n_tokens, n_heads, bytes_of(params.storage, params.n_tokens), pool, load);
  if (!params.k.data || !params.offset) return;

  // Keys with a pending rotation are read again and rotated.
  for (int32_t first = 0; first < params.rope.n_dims / 2; first += chunk_pairs) {
    ChunkRotation rotation(params.rope, first);
    for (int32_t token = 0; token < params.n_tokens; ++token) {
      if (params.offset[token] == 0 || params.cell[token] < 0) continue;
      rotation.set_offset(params.offset[token]);
      for (int32_t head = 0; head < n_heads; ++head)
        rotation.rotate_row(row_at(params.k, token, head), row_at(k, params.cell[token], head));
    }
  }
}

void move_rows(const MoveParams& params, ThreadPool& pool) noexcept {
  const Slab& k = params.storage.k;
  const Slab& v = params.storage.v;
  const int32_t n_heads = params.storage.k.n_heads;
  // No target is a later source, but it may be an earlier one: the order of the cells is kept by
  // doing whole heads.
  struct Job {
    const MoveParams& params;
    const Slab& k;
    const Slab& v;
  };
  Job job{params, k, v};
  const auto copy_head = [](void* context, int32_t head, int32_t) noexcept {
    const Job& mine = *static_cast<const Job*>(context);
    for (int32_t i = 0; i < mine.params.n_cells; ++i) {
      if (mine.params.from[i] == mine.params.to[i]) continue;
      convert_row(row_at(mine.k, mine.params.to[i], head),
                  row_at(mine.k, mine.params.from[i], head), mine.k.head_dim);
      convert_row(row_at(mine.v, mine.params.to[i], head),
                  row_at(mine.v, mine.params.from[i], head), mine.v.head_dim);
    }
  };
  if (bytes_of(params.storage, params.n_cells) >= parallel_bytes) {
    pool.run(n_heads, copy_head, &job);
  } else {
    for (int32_t head = 0; head < n_heads; ++head) copy_head(&job, head, 0);
  }
  if (!params.offset) return;

  for (int32_t first = 0; first < params.rope.n_dims / 2; first += chunk_pairs) {
    ChunkRotation rotation(params.rope, first);
    for (int32_t i = 0; i < params.n_cells; ++i) {
      if (params.offset[i] == 0) continue;
      rotation.set_offset(params.offset[i]);
      for (int32_t head = 0; head < n_heads; ++head) {
        const Row row = row_at(k, params.to[i], head);
        rotation.rotate_row(row, row);
      }
    }
  }
}

void clear_rows(const ClearParams& params, ThreadPool& pool) noexcept {
  const Slab& k = params.storage.k;
  const Slab& v = params.storage.v;
  const auto clear = [&](int32_t i, int32_t head) {
    if (params.cell[i] < 0) return;
    zero_row(row_at(k, params.cell[i], head), k.head_dim);
    zero_row(row_at(v, params.cell[i], head), v.head_dim);
  };
  for_each_row(params.n_cells, params.storage.k.n_heads, bytes_of(params.storage, params.n_cells),
               pool, clear);
}

}  // namespace kvc::cpu
