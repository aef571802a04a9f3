#pragma once
#include <new>

#include "kernels/cuda/attention_arguments.hpp"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/ptx.cuh"

/// What all attention kernels do alike: which part of which tile a block serves, what its columns see, what becomes of a product
/// of a query and a key, and how partial results come together.
namespace kvc::cuda {

KVC_DEVICE float infinity() { return float_of(0x7f800000u); }
KVC_DEVICE constexpr float log2_e() { return 1.44269504f; }
KVC_DEVICE constexpr float ln_2() { return 0.693147181f; }

/// A row of the batch and a query head.
struct alignas(16) Column {
  int32_t first_end, begin, end;  // what it sees, in seen coordinates
  int32_t position;
  int32_t token;
  int32_t head;
  float slope;    // in units of log2
  float unscale;  // undoes what a kernel has multiplied its query with
};

KVC_DEVICE int64_t token_offset(const Strided& tensor, int64_t token) {
  if (tensor.fold == 0) return token * tensor.token;
  return token / tensor.fold * tensor.fold_stride + token % tensor.fold * tensor.token;
}

/// What the blocks of a launch share among them.
KVC_DEVICE LaunchedParts launched(const AttentionArguments& a) {
  return a.launched != nullptr ? *a.launched : LaunchedParts{a.first_part, a.n_parts, a.n_tiles};
}

/// What a block of threads is doing: a part of a tile, for one KV head and one turn. It lies at the start of shared memory,
/// where it takes no registers.
struct alignas(16) Task {
  Tile tile;
  ListRef list;  // without meaning where nothing is seen
  int32_t part;  // of the tile
  int32_t turn;  // of shape.turns()
  int32_t kv_head;
  int32_t first_head;  // query head of the first column
  int32_t n_heads;     // of a row
  int32_t n_used;      // columns

  KVC_DEVICE Task(const AttentionArguments& a, int32_t tile_index, int32_t of_part, int32_t of_turn)
      : tile(a.tiles[tile_index]), part(of_part), turn(of_turn) {
    const int32_t skipped = turn % a.shape.head_blocks() * a.shape.columns;
    const int32_t left = a.shape.group - skipped;
    if (tile.n_seen > 0) list = a.lists[tile.list];
    kv_head = turn / a.shape.head_blocks();
    first_head = kv_head * a.shape.group + skipped;
    n_heads = left < a.shape.columns ? left : a.shape.columns;
    n_used = tile.n_rows * n_heads;
  }

  /// The index-th of a launch, which counts parts and, within them, turns.
  KVC_DEVICE static Task of_launch(const AttentionArguments& a, int64_t index) {
    const LaunchedParts parts = launched(a);
    const int32_t any_part = parts.first_part + static_cast<int32_t>(index / a.shape.turns());
    int32_t low = 0, high = parts.n_tiles - 1;  // the last tile whose first part is not behind this one
    while (low < high) {
      const int32_t middle = (low + high + 1) / 2;
      if (a.tiles[middle].first_part <= any_part) {
        low = middle;
      } else {
        high = middle - 1;
      }
    }
    return Task(a, low, any_part - a.tiles[low].first_part,
                static_cast<int32_t>(index % a.shape.turns()));
  }

  KVC_DEVICE int begin() const { return part * tile.stretch; }
  KVC_DEVICE int end() const {
    const int stop = begin() + tile.stretch;
    return stop < tile.n_seen ? stop : tile.n_seen;
  }
};

/// Where a block's task and columns lie; the rest is the kernel's.
inline constexpr int task_bytes = (static_cast<int>(sizeof(Task)) + 15) / 16 * 16;
static_assert(task_bytes + tile_columns * static_cast<int>(sizeof(Column)) <= item_bytes);

/// Threads that do something together: here all of a block.
struct WholeBlock {
  KVC_DEVICE static int thread() { return thread_index(); }
  KVC_DEVICE static int n_threads() { return cuda::n_threads(); }
  KVC_DEVICE static void sync() { sync_block(); }
};

/// A task and its columns, for the threads of its block.
struct Item {
  const AttentionArguments& a;

  KVC_DEVICE static const Task& task() { return *reinterpret_cast<const Task*>(shared_memory()); }
  KVC_DEVICE static Column& column(int index) {
    return reinterpret_cast<Column*>(shared_memory() + task_bytes)[index];
  }

  /// Called by the whole block, which has left the task before behind. Columns behind the last see nothing.
  template <class Next>
  KVC_DEVICE void begin(Next next) const {
    sync_block();
    if (thread_index() == 0) new (shared_memory()) Task(next());
    sync_block();
    stage_columns();
    sync_block();
  }
  /// What threads behind the last column may call while the others begin a task: they have no part in it.
  KVC_DEVICE static void follow() { KVC_UNROLL for (int i = 0; i < 3; ++i) sync_block(); }

  /// Where the token arrays name the token with this seen coordinate.
  KVC_DEVICE static int64_t entry(int seen) {
    const Tile& tile = task().tile;
    int index = seen < tile.first_end ? seen : seen - tile.first_end + tile.begin;
    const ListRef& tokens = task().list;
    for (int piece = 0; piece < 2; ++piece) {
      if (index < tokens.count[piece]) return tokens.start[piece] + index;
      index -= tokens.count[piece];
    }
    return tokens.start[2] + index;
  }

  KVC_DEVICE static int seen_of(int index) {
    const Tile& tile = task().tile;
    if (index >= tile.begin) return index - (tile.begin - tile.first_end);
    return index < tile.first_end ? index : tile.first_end;
  }

  /// Calls visit(offset, from, to) for the stretches of seen coordinates [from, to) of this part whose keys owe the same rotation.
  template <class Visit>
  KVC_DEVICE void for_each_segment(int first, int last, Visit visit) const {
    const Segment* const segments = a.segments + task().list.first_segment;
    const int n = task().list.n_segments;
    for (int i = 0; i < n; ++i) {
      const int begins = seen_of(segments[i].begin);
      const int ends = i + 1 < n ? seen_of(segments[i + 1].begin) : task().tile.n_seen;
      const int from = begins > first ? begins : first, to = ends < last ? ends : last;
      if (from < to) visit(segments[i].offset, from, to);
    }
  }

  /// Whether every column sees the tokens [from, to), as far as rows decide.
  KVC_DEVICE static bool all_see(int from, int to) {
    const Tile& tile = task().tile;
    return to <= tile.all_first_end || (from >= tile.all_begin && to <= tile.all_end);
  }
  KVC_DEVICE static bool sees(const Column& column, int seen) {
    return seen < column.first_end || (seen >= column.begin && seen < column.end);
  }

  /// An element of the query of a column, multiplied with q_factor.
  KVC_DEVICE float query(const Column& column, int dim) const {
    const int64_t at = token_offset(a.q, column.token) + column.head * a.q.head + dim * a.q.last;
    return load_element(a.q.data, a.q.element, at) * a.q_factor;
  }

  /// By the lanes of a warp: what undoes the power of two that brings a column's largest element, which a rotation may make 1.5 times
  /// as large, to about 2^13. There no part of it underflows in f16.
  KVC_DEVICE float unscale_of(const Column& column, int lane) const {
    return unscale_of(a.k.dim, lane, [&](int dim) { return query(column, dim); });
  }
  /// The same of `n` elements.
  template <class At>
  KVC_DEVICE static float unscale_of(int n, int lane, At at) {
    float largest = 0;
    for (int dim = lane; dim < n; dim += 32) largest = fmaxf(largest, fabsf(at(dim)));
    KVC_UNROLL for (int mask = 16; mask > 0; mask /= 2)
      largest = fmaxf(largest, shuffle_xor(largest, mask));
    const int exponent = static_cast<int>(bits_of(largest) >> 23);  // biased; 0: all are zero
    const int wanted = exponent == 0 ? 0 : 127 + 13 - exponent;
    const int up = wanted < -120 ? -120 : wanted > 120 ? 120 : wanted;
    return float_of(static_cast<uint32_t>(127 - up) << 23);
  }

  /// `table` [rope_dims / 2][2] becomes cosines and sines of what keys owe, by the threads of a team. A barrier has to follow.
  template <class Team = WholeBlock>
  KVC_DEVICE void stage_rotation(double* table, int offset) const {
    for (int pair = Team::thread(); pair < a.rope_dims / 2; pair += Team::n_threads()) {
      cosine_and_sine(offset * a.frequency[pair], table + 2 * pair, table + 2 * pair + 1);
    }
  }

  /// The same turned back by what keys owe. `table` null: they owe nothing.
  KVC_DEVICE float turned_query(const Column& column, int dim, const double* table) const {
    const int turned = dim - a.rope_first;
    if (table == nullptr || turned < 0 || turned >= a.rope_dims) return query(column, dim);
    const int half = a.rope_dims / 2;
    const bool is_second = a.rope_halves != 0 ? turned >= half : turned % 2 != 0;
    const int distance = a.rope_halves != 0 ? half : 1;
    const int pair = a.rope_halves != 0 ? turned % half : turned / 2;
    const double own = query(column, dim);
    const double other = query(column, is_second ? dim - distance : dim + distance);
    const double c = table[2 * pair], s = table[2 * pair + 1];
    return static_cast<float>(is_second ? own * c - other * s : own * c + other * s);
  }

  /// From the product of a query and the key in `cell` of the token arrays to a score in units of log2; minus infinity where it is
  /// hidden by something else than rows.
  KVC_DEVICE float score(const Column& column, float product, int cell, int position) const {
    float x = product;
    if (a.softcap != 0) x = a.softcap * tanhf(x / a.softcap) * log2_e();
    if (a.slopes != nullptr) {
      const int distance = column.position - position;
      x = multiply_add(-column.slope, static_cast<float>(distance < 0 ? -distance : distance), x);
    }
    if (a.seen != nullptr &&
        (a.seen[column.token * a.seen_words + cell / 64] >> (cell % 64) & 1u) == 0)
      return -infinity();
    const int64_t at = tensor_column(cell);
    if (a.mask.data != nullptr) {
      const int64_t head = column.head / a.mask_sharers;
      if (a.mask.data[head * a.mask.head + token_offset(a.mask, column.token) +
                      at * a.mask.last] == 0)
        return -infinity();
    }
    if (a.bias.data == nullptr) return x;
    const int64_t head = column.head / a.bias_sharers;
    const float bias = load_element(
        a.bias.data, a.bias.element,
        head * a.bias.head + token_offset(a.bias, column.token) + at * a.bias.last);
    if (bias == -infinity()) return bias;
    // The least finite number must not become infinite.
    return x + fmaxf(bias * log2_e(), -float_of(0x7f7fffffu));
  }

  KVC_DEVICE int64_t tensor_column(int cell) const {
    return a.columns_by_list != 0 ? cell : cell + task().list.first_cell - a.first_column;
  }

  // ---- Results -------------------------------------------------------------------------------------------------------------

  /// What is below the line of a softmax whose sum over keys is `sum`, counted from `top`.
  KVC_DEVICE float total(const Column& column, float sum, float top) const {
    return a.sinks == nullptr ? sum : sum + exp2_fast(a.sinks[column.head] * log2_e() - top);
  }

  /// One output. Nothing was seen where the sum is 0.
  KVC_DEVICE void write(const Column& column, int dim, float x, float sum, float top) const {
    const float value = sum == 0 ? 0.0f : x / total(column, sum, top);
    store_element(a.out.data, a.out.element,
                  token_offset(a.out, column.token) + column.head * a.out.head + dim * a.out.last,
                  value);
    if (dim != 0 || a.lse.data == nullptr) return;
    const float lse = sum == 0 ? -infinity() : multiply_add(top, ln_2(), logf(sum));
    store_element(a.lse.data, Element::f32,
                  token_offset(a.lse, column.token) + column.head * a.lse.head, lse);
  }

  /// The first slot of a part's results: they follow one another, column by column.
  KVC_DEVICE static int64_t slot(const Tile& tile, const TileShape& shape, int part, int turn) {
    return tile.first_slot + (int64_t{part} * shape.turns() + turn) * shape.slots(tile.n_rows);
  }
  KVC_DEVICE float* partial(int64_t of_slot, int column) const {
    return a.partial + (of_slot * tile_columns + column) * (a.v.dim + 2);
  }

  /// Writes the results of a part, or leaves them behind; whoever finishes the last part of a tile merges them, and those of the
  /// prefix of its list, in the order of parts. `sums` [columns][row_floats], `weight` and `top` [columns] and `flag` lie in
  /// shared memory. Called by a whole team, behind a barrier.
  template <class Team = WholeBlock>
  KVC_DEVICE void finish(const float* sums, int row_floats, const float* weight, const float* top,
                         int32_t* flag) const {
    const Tile& tile = task().tile;
    const int dims = a.v.dim, n = task().n_used * dims;
    const int64_t own = slot(tile, a.shape, task().part, task().turn);
    for (int i = Team::thread(); i < n; i += Team::n_threads()) {
      const int c = i / dims, dim = i % dims;
      const float x = sums[c * row_floats + dim];
      if (tile.is_whole()) {
        write(column(c), dim, x, weight[c], top[c]);
        continue;
      }
      float* const to = partial(own, c);
      to[dim] = x;
      if (dim != 0) continue;
      to[dims] = weight[c];
      to[dims + 1] = top[c];
    }
    if (tile.is_whole() || tile.is_prefix != 0) return;
    fence_device();
    Team::sync();
    int32_t* const counter = a.counters + slot(tile, a.shape, 0, task().turn);
    if (Team::thread() == 0) *flag = atomic_add(counter, 1) == tile.n_parts - 1 ? 1 : 0;
    Team::sync();
    if (*flag == 0) return;
    fence_device();
    if (Team::thread() == 0) *counter = 0;
    for (int i = Team::thread(); i < n; i += Team::n_threads()) merge(i / dims, i % dims);
  }

 private:
  KVC_DEVICE void stage_columns() const {
    const int c = thread_index();
    if (c >= a.shape.columns) return;
    Column staged = {};
    staged.unscale = 1;
    if (c < task().n_used) {
      const TileRow& row = a.rows[task().tile.first_row + c / task().n_heads];
      staged.first_end = row.first_end;
      staged.begin = row.begin;
      staged.end = row.end;
      staged.position = row.position;
      staged.token = row.token;
      staged.head = task().first_head + c % task().n_heads;
      if (a.slopes != nullptr) staged.slope = a.slopes[staged.head] * log2_e();
    }
    column(c) = staged;
  }

  KVC_DEVICE void merge(int c, int dim) const {
    const int dims = a.v.dim;
    float highest = -infinity();
    for_each_partial(c, [&](const float* one) {
      highest = fmaxf(highest, load_across_blocks(one + dims + 1));
    });
    const float shift = highest == -infinity() ? 0.0f : highest;
    float x = 0, sum = 0;
    for_each_partial(c, [&](const float* one) {
      const float factor = exp2_fast(load_across_blocks(one + dims + 1) - shift);
      sum = multiply_add(load_across_blocks(one + dims), factor, sum);
      x = multiply_add(load_across_blocks(one + dim), factor, x);
    });
    write(column(c), dim, x, sum, shift);
  }

  /// Calls visit(partial) for what the parts that a column sees have left of it, in order: those of the prefix, which a launch before
  /// this one has served, then those of the tile. Tiles of prefixes have several rows, and so all heads of each.
  template <class Visit>
  KVC_DEVICE void for_each_partial(int c, Visit visit) const {
    const Tile& tile = task().tile;
    if (tile.prefix_columns != 0) {
      const TileShape shape = {a.shape.n_kv_heads, a.shape.group, tile.prefix_columns};
      const int row = tile.prefix_row + c / task().n_heads;
      const int head = column(c).head - task().kv_head * a.shape.group;
      visit_parts(a.tiles[tile.prefix_tile + row / shape.rows()], shape, task().kv_head,
                  row % shape.rows() * a.shape.group + head, visit);
    }
    visit_parts(tile, a.shape, task().turn, c, visit);
  }

  template <class Visit>
  KVC_DEVICE void visit_parts(const Tile& tile, const TileShape& shape, int turn, int c, Visit visit) const {
    const int64_t stride = int64_t{shape.turns()} * shape.slots(tile.n_rows) * tile_columns * (a.v.dim + 2);
    const float* one = partial(slot(tile, shape, 0, turn), c);
    for (int i = 0; i < tile.n_parts; ++i, one += stride) visit(one);
  }
};

}  // namespace kvc::cuda
