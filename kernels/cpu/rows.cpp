#include "kernels/cpu/rows.hpp"

#include <algorithm>
#include <cstring>

#include "core/base/half.hpp"
#include "kernels/cpu/convert.hpp"
#include "kernels/cpu/rotation.hpp"
#include "kernels/cpu/row_codec.hpp"

namespace kvc::cpu {
namespace {

/// Pairs rotated at a time, with a table on the stack.
constexpr int32_t chunk_pairs = 128;

/// The caller alone does less than this: handing out work costs some microseconds.
constexpr size_t parallel_bytes = size_t{256} << 10;

/// Work is handed out in items of one head and this many tokens.
constexpr int32_t item_tokens = 64;

Row row_at(const Tensor& tensor, int64_t token, int64_t head) {
  const int64_t element = tensor.token_offset(token) + head * tensor.stride[1];
  auto* data = static_cast<std::byte*>(tensor.data) +
               element * static_cast<int64_t>(size_of(tensor.dtype));
  return {.data = data, .stride = tensor.stride[2], .dtype = tensor.dtype};
}

/// A row whose numbers are stored as they are.
Row row_at(const Slab& slab, int32_t cell, int32_t head) {
  return {.data = slab.row(head, cell), .stride = 1, .dtype = format_of(slab.type()).code};
}

/// Stored bytes of a row, from one cell to another.
void copy_row(const Slab& slab, int32_t head, int32_t from, int32_t to) {
  std::memcpy(slab.codes.row(head, to), slab.codes.row(head, from), slab.codes.row_bytes);
  if (slab.scales.row_bytes > 0)
    std::memcpy(slab.scales.row(head, to), slab.scales.row(head, from), slab.scales.row_bytes);
}

/// Turns a key that was decoded by `offset` positions. Neighbours mostly have the same pending rotation, so the thread keeps it.
void turn(const Rope& rope, int32_t offset, const ThreadRows& mine) {
  const PairRange all = {0, rope.n_dims / 2};
  if (*mine.turned_by != offset) make_rotation(rope, all, offset, mine.rotation);
  *mine.turned_by = offset;
  rotate_pairs(
      rope, all, mine.rotation, [&](int32_t d) { return mine.values[d]; },
      [&](int32_t d, float x) { mine.values[d] = x; });
}

/// Stored bytes in a tensor's row, whose elements may lie apart.
void copy_bytes(std::byte* to, const Row& from, size_t n) {
  const size_t element = size_of(from.dtype);
  if (from.stride == 1) {
    std::memcpy(to, from.data, n);
    return;
  }
  for (size_t at = 0; at < n; at += element)
    std::memcpy(to + at, from.data + static_cast<int64_t>(at) * from.stride, element);
}

void clear_row(const Slab& slab, int32_t head, int32_t cell) {
  std::memset(slab.codes.row(head, cell), 0, slab.codes.row_bytes);
  if (slab.scales.row_bytes > 0) std::memset(slab.scales.row(head, cell), 0, slab.scales.row_bytes);
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

/// Calls `per_row(token, head, thread)` for every row; tokens of one head in a row, so that a head's
/// slab is walked in order.
template <class PerRow>
void for_each_row(int32_t n_tokens, int32_t n_heads, size_t bytes, ThreadPool& pool,
                  const PerRow& per_row) noexcept {
  struct Job {
    const PerRow& per_row;
    int32_t n_tokens;
    int32_t n_chunks;
  };
  const Job job{per_row, n_tokens, (n_tokens + item_tokens - 1) / item_tokens};
  const auto work = [](void* context, int32_t item, int32_t thread) noexcept {
    const Job& mine = *static_cast<const Job*>(context);
    const int32_t head = item / mine.n_chunks;
    const int32_t begin = item % mine.n_chunks * item_tokens;
    const int32_t end = std::min(begin + item_tokens, mine.n_tokens);
    for (int32_t token = begin; token < end; ++token) mine.per_row(token, head, thread);
  };
  const int32_t n_items = job.n_chunks * n_heads;
  if (bytes >= parallel_bytes) {
    pool.run(n_items, work, const_cast<Job*>(&job));
  } else {
    for (int32_t item = 0; item < n_items; ++item) work(const_cast<Job*>(&job), item, 0);
  }
}

/// V may have more heads than K, or fewer: calls that go through both go through as many as there are.
int32_t most_heads(const LayerStorage& storage) {
  return std::max(storage.k.n_heads, storage.v.n_heads);
}

/// Bytes that a call over so many tokens moves: the numbers, not the codes, which take longer to make.
size_t bytes_of(const LayerStorage& storage, int32_t n_tokens) {
  const auto bytes = [](const Slab& slab) {
    const size_t codes = slab.codes.row_bytes;
    return static_cast<size_t>(slab.n_heads) *
           (is_plain(slab.type()) ? codes : static_cast<size_t>(slab.head_dim()) * sizeof(float));
  };
  return (bytes(storage.k) + bytes(storage.v)) * static_cast<size_t>(n_tokens);
}

void store_row(const Slab& slab, int32_t cell, int32_t head, const Row& from, float* values) {
  if (is_plain(slab.type())) {
    convert_row(row_at(slab, cell, head), from, slab.head_dim());
  } else {
    encode_row(slab.format, slab.stored(head, cell), from, values);
  }
}

/// Loads a row into one of a tensor, which may have no data. A key with a pending rotation is turned by `offset`.
void load_row(const Slab& slab, int32_t cell, int32_t head, const Row& to, const Rope& rope,
              int32_t offset, const ThreadRows& mine) {
  if (to.data == nullptr) return;
  if (cell < 0) {
    zero_row(to, slab.head_dim());
  } else if (is_plain(slab.type()) && offset == 0) {
    convert_row(to, row_at(slab, cell, head), slab.head_dim());
  } else {
    decode_row(slab.format, slab.stored(head, cell), mine.values);
    if (offset != 0) turn(rope, offset, mine);
    convert_row(to, {.data = reinterpret_cast<std::byte*>(mine.values)}, slab.head_dim());
  }
}

}  // namespace

ThreadRows RowScratch::of(int32_t thread) const {
  const size_t by = bytes_apart * static_cast<size_t>(thread) / sizeof(float);
  return {first.values + by, first.rotation + by, first.turned_by + by};
}

void store_rows(const StoreParams& params, ThreadPool& pool, const RowScratch& scratch) noexcept {
  const LayerStorage& storage = params.storage;
  const auto store = [&](int32_t token, int32_t head, int32_t thread) {
    const int32_t cell = params.cell[token];
    if (cell < 0) return;
    float* values = scratch.of(thread).values;
    const auto side = [&](const Slab& slab, const Tensor& rows) {
      if (rows.data == nullptr || head >= slab.n_heads) return;
      store_row(slab, cell, head, row_at(rows, token, head), values);
    };
    side(storage.k, params.k);
    if (!storage.v_in_k) side(storage.v, params.v);
  };
  for_each_row(params.n_tokens, most_heads(storage), bytes_of(storage, params.n_tokens), pool, store);
}

void store_codes(const StoreCodesParams& params, ThreadPool& pool) noexcept {
  const LayerStorage& storage = params.storage;
  const auto store = [&](int32_t token, int32_t head, int32_t) {
    const int32_t cell = params.cell[token];
    if (cell < 0) return;
    const auto copy = [&](const Plane& plane, const Tensor& rows) {
      if (plane.row_bytes == 0 || rows.data == nullptr) return;
      copy_bytes(plane.row(head, cell), row_at(rows, token, head), plane.row_bytes);
    };
    if (head < storage.k.n_heads) {
      copy(storage.k.codes, params.k);
      copy(storage.k.scales, params.k_scales);
    }
    if (storage.v_in_k || head >= storage.v.n_heads) return;
    copy(storage.v.codes, params.v);
    copy(storage.v.scales, params.v_scales);
  };
  for_each_row(params.n_tokens, most_heads(storage), bytes_of(storage, params.n_tokens), pool, store);
}

void load_rows(const LoadParams& params, ThreadPool& pool, const RowScratch& scratch) noexcept {
  const LayerStorage& storage = params.storage;
  const auto load = [&](int32_t token, int32_t head, int32_t thread) {
    const int32_t cell = params.cell[token];
    const int64_t row = params.row != nullptr ? params.row[token] : token;
    const auto target = [&](const Slab& slab, const Tensor& rows) {
      return rows.data != nullptr && head < slab.n_heads ? row_at(rows, row, head) : Row{};
    };
    const Row to_k = target(storage.k, params.k), to_v = target(storage.v, params.v);
    const int32_t offset = params.offset != nullptr && params.rope.n_dims > 0 ? params.offset[token]
                                                                              : 0;
    const ThreadRows mine = scratch.of(thread);
    load_row(storage.k, cell, head, to_k, params.rope, offset, mine);
    load_row(storage.v, cell, head, to_v, {}, 0, mine);
  };
  for (int32_t thread = 0; thread < pool.n_threads(); ++thread) *scratch.of(thread).turned_by = 0;
  for_each_row(params.n_tokens, most_heads(storage), bytes_of(storage, params.n_tokens), pool, load);
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
      copy_row(mine.k, head, mine.params.from[i], mine.params.to[i]);
      if (!mine.params.storage.v_in_k)
        copy_row(mine.v, head, mine.params.from[i], mine.params.to[i]);
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
  const auto clear = [&](int32_t i, int32_t head, int32_t) {
    if (params.cell[i] < 0) return;
    if (head < k.n_heads) clear_row(k, head, params.cell[i]);
    if (!params.storage.v_in_k && head < v.n_heads) clear_row(v, head, params.cell[i]);
  };
  for_each_row(params.n_cells, most_heads(params.storage), bytes_of(params.storage, params.n_cells),
               pool, clear);
}

}  // namespace kvc::cpu
