#include "kernels/cpu/attention.hpp"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <cstring>
#include <limits>

#include "core/base/half.hpp"
#include "core/base/planted.hpp"
#include "kernels/cpu/attention_plan.hpp"
#include "kernels/cpu/attention_weights.hpp"
#include "kernels/cpu/attention_workspace.hpp"
#include "kernels/cpu/kernel_table.hpp"
#include "kernels/cpu/offset_rotations.hpp"
#include "kernels/cpu/score_bias.hpp"

namespace kvc::cpu {
namespace {

constexpr double log2_e = 1.4426950408889634;
constexpr double ln_2 = 0.6931471805599453;
constexpr float minus_infinity = -std::numeric_limits<float>::infinity();

/// Calls cheaper than this (in cells × rows) are done by the caller alone: handing out work costs some microseconds.
constexpr int64_t parallel_cost = 4096;

/// A bias in units of log2. One as low as floats go, which some frameworks take for a mask, stays above minus infinity: a
/// row that has nothing else spreads its weight evenly, as it does there.
float in_log2(float bias) {
  const float scaled = bias * static_cast<float>(log2_e);
  return bias > minus_infinity ? std::max(scaled, -std::numeric_limits<float>::max()) : scaled;
}

/// Whether queries carry the division by a softcap, which then costs nothing. A far smaller one would take products with
/// keys out of f32 (and their sum to NaN) where the score itself is in range, a far larger one below its normal numbers.
bool query_carries(float softcap) { return softcap >= 1 && softcap <= 65536; }

/// Parts of a factor of a product that is rounded to a Precision.
constexpr int32_t bf16_parts(uint32_t runtime_type) {
  return runtime_type == in_bf16 ? 1 : runtime_type == in_f16 ? 2 : 3;
}

}  // namespace

class Call {
 public:
  Call(const AttentionParams& params, int32_t n_threads) : params_(params), kernels_(kernels()) {
    const LayerStorage& storage = params.storage;
    space_.place(params, n_threads);
    medium_rows_min_ = kernels_.medium_tile_rows_min(storage.k.type(), storage.v.type());
    wide_rows_min_ = kernels_.wide_tile_rows_min(storage.k.type(), storage.v.type());
    group_ = params.constants.n_q_heads / storage.k.n_heads;
    q_stride_ = padded(storage.k.head_dim());
    o_stride_ = padded(storage.v.head_dim());
  }

  void run(ThreadPool& pool, Schedule& schedule) noexcept;

 private:
  struct Item {
    const WorkTile* tile = nullptr;
    int32_t unit = 0;  // of the tile
    int32_t kv_head = 0;
    int32_t q_head = 0;   // the first of the piece
    int32_t n_heads = 0;  // of the piece
    ThreadScratch scratch;

    int32_t n_rows() const { return tile->n_tokens * n_heads; }
  };

  void cut(Schedule& schedule);
  void run_wave(ThreadPool& pool, const WorkWave& wave, int32_t end) noexcept;
  void run_item(int32_t index, int32_t thread) noexcept;
  double score_factor(const Item& item) const;
  bool kernel_scales(const Item& item) const;
  void prefetch_queries(const Item& item, int32_t index) const;
  void load_queries(const Item& item) const;
  Tile describe(const Item& item) const;
  void attend_chunk(const Item& item, Tile& tile, int32_t begin, int32_t end) const;
  void attend_pending(const Item& item, Tile& tile) const;
  void attend_runs(const Item& item, Tile& tile) const;
  void attend_short_runs(const Item& item, Tile& tile) const;
  void attend_turned(const Item& item, Tile& tile) const;
  void turn_keys(const Item& item, const Tile& tile, int32_t begin, int32_t end) const;
  void decode_keys(const Item& item, const Tile& tile, int32_t begin, int32_t end, float* key) const;
  void narrow_to(const Item& item, const Tile& chunk, int32_t begin, int32_t end, Tile& tile) const;
  int32_t offset_of(const Tile& tile, int32_t index) const {
    return tile.position[index] - params_.plan.rotated_for[tile.k.cell[index]];
  }
  int32_t cells_at_once(const Item& item) const;
  void place_cells(const Item& item, Tile& tile, int32_t begin, int32_t end) const;
  void place_bias(const Item& item, Tile& tile) const;
  void place_tokens(const Item& item, int32_t begin, int32_t end) const;
  void turn_queries(const Item& item, int32_t offset, float* to) const;
  bool keys_turn(const Item& item) const {
    return params_.plan.lists[item.tile->list].has_pending && params_.constants.rope.n_dims > 0;
  }
  void process(const Tile& tile) const;
  /// A result over some of a row's keys.
  struct Partial {
    float* o;  // [o_stride]
    float* max;
    float* sum;
  };
  void attend_stretch(const Item& item, int32_t stretch) const;
  void fold(const Partial& total, const Partial& next) const;
  void fold(const Item& item, bool is_first) const;
  void take_folded(Item& item) const;
  Partial row_of(float* o, float* max, float* sum, int32_t row) const;
  void finish(const Item& item);
  void merge(const Item& item, const WorkRow& row, int32_t plan_row);
  void write(const Item& item, int32_t plan_row, int32_t head, float* o, float max, float sum) const;
  float* partial_at(int32_t slot, int32_t head) const {
    const size_t index = static_cast<size_t>(slot) * static_cast<size_t>(params_.constants.n_q_heads) +
                         static_cast<size_t>(head);
    return space_.partial + index * static_cast<size_t>(o_stride_ + 16);
  }

  const AttentionParams& params_;
  const KernelTable& kernels_;
  Workspace space_;
  int32_t group_ = 1;
  int32_t q_stride_ = 0;
  int32_t o_stride_ = 0;
  // For the types that are stored, though keys may be read turned, in f32.
  int32_t medium_rows_min_ = 0, wide_rows_min_ = 0;
  int32_t first_unit_ = 0;  // of those that are handed out
};

void Call::cut(Schedule& schedule) {
  if (schedule.n_q_heads_ == params_.constants.n_q_heads && schedule.kernels_ == &kernels_ &&
      schedule.settings_ == params_.settings) {
    space_.work = schedule.work_;
    return;
  }
  WorkPlan& work = space_.work;
  work.n_slots_max = slots_for(slot_bytes(params_.constants.n_q_heads, params_.storage.v.head_dim()));
  make_work_plan(params_, work);
  schedule.work_ = work;
  schedule.n_q_heads_ = params_.constants.n_q_heads;
  schedule.kernels_ = &kernels_;
  schedule.settings_ = params_.settings;
}

void Call::run(ThreadPool& pool, Schedule& schedule) noexcept {
  cut(schedule);
  const WorkPlan& work = space_.work;
  for (int32_t thread = 0; thread < pool.n_threads(); ++thread) {
    OffsetRotations::forget(space_.scratch_of(thread).rotations);
  }
  for (int32_t wave = 0; wave < work.n_waves; ++wave)
    run_wave(pool, work.waves[wave], work.waves[wave + 1].unit);
}

void Call::run_wave(ThreadPool& pool, const WorkWave& wave, int32_t end) noexcept {
  const int32_t n_counters = wave.n_counters * params_.constants.n_q_heads;
  for (int32_t i = 0; i < n_counters; ++i) space_.finished[i].store(0, std::memory_order_relaxed);
  const auto run_one = [](void* context, int32_t item, int32_t thread) noexcept {
    static_cast<Call*>(context)->run_item(item, thread);
  };
  const int32_t n_heads = params_.storage.k.n_heads * space_.work.n_pieces;
  const int32_t units_at_once = ThreadPool::items_max / n_heads;  // heads are 2^20 at most
  for (first_unit_ = wave.unit; first_unit_ < end; first_unit_ += units_at_once) {
    const int32_t n_items = std::min(units_at_once, end - first_unit_) * n_heads;
    if (wave.cost < parallel_cost) {
      for (int32_t item = 0; item < n_items; ++item) run_one(this, item, 0);
    } else {
      pool.run(n_items, run_one, this);
    }
  }
}

void Call::run_item(int32_t index, int32_t thread) noexcept {
  const WorkPlan& work = space_.work;
  const int32_t n_heads = params_.storage.k.n_heads * work.n_pieces;
  const WorkUnit& unit = work.units[first_unit_ + index / n_heads];
  const int32_t head = index % n_heads;
  const int32_t first_in_group = head % work.n_pieces * work.piece_heads;
  Item item;
  item.tile = &work.tiles[unit.tile];
  item.unit = unit.index;
  item.kv_head = head / work.n_pieces;
  item.q_head = item.kv_head * group_ + first_in_group;
  item.n_heads = std::min(work.piece_heads, group_ - first_in_group);
  if (item.n_heads <= 0) return;
  item.scratch = space_.scratch_of(thread);

  load_queries(item);
  const WorkTile& work_tile = *item.tile;
  const int32_t first = work_tile.is_split ? item.unit : 0;
  const int32_t last = work_tile.is_split ? item.unit : work_tile.n_stretches - 1;
  for (int32_t stretch = first; stretch <= last; ++stretch) {
    attend_stretch(item, stretch);
    if (first == last) break;
    fold(item, stretch == first);
    if (stretch == last) take_folded(item);
  }
  finish(item);
}

void Call::attend_stretch(const Item& item, int32_t stretch) const {
  const int32_t n_rows = item.n_rows();
  const int32_t n_lanes = (n_rows + 15) / 16 * 16;
  std::fill_n(item.scratch.max, n_lanes, minus_infinity);
  std::fill_n(item.scratch.sum, n_lanes, 0.0f);
  std::fill_n(item.scratch.o, static_cast<size_t>(n_rows) * static_cast<size_t>(o_stride_), 0.0f);
  Tile tile = describe(item);
  const int32_t begin = stretch * item.tile->stretch_cells;
  const int32_t end = std::min(begin + item.tile->stretch_cells, item.tile->n_seen);
  const int32_t step = cells_at_once(item);
  for (int32_t at = begin; at < end; at += step)
    attend_chunk(item, tile, at, std::min(at + step, end));
}

/// total := the result over the keys of both. Partial results are always added up in this way, in the order of the history,
/// whoever made them and when.
void Call::fold(const Partial& total, const Partial& next) const {
  const float max = std::max(*total.max, *next.max);
  if (max == minus_infinity) {  // nothing seen yet, or NaN alone
    kernels_.blend(total.o, 1.0f, next.o, 1.0f, o_stride_);
    *total.sum += *next.sum;
    return;
  }
  const float keep = std::exp2(*total.max - max), add = std::exp2(*next.max - max);
  kernels_.blend(total.o, keep, next.o, add, o_stride_);
  *total.sum = *total.sum * keep + *next.sum * add;
  *total.max = max;
}

Call::Partial Call::row_of(float* o, float* max, float* sum, int32_t row) const {
  return {o + static_cast<size_t>(row) * static_cast<size_t>(o_stride_), max + row, sum + row};
}

/// Folds the stretch that the thread has just attended into those before it.
void Call::fold(const Item& item, bool is_first) const {
  const ThreadScratch& s = item.scratch;
  for (int32_t row = 0; row < item.n_rows(); ++row) {
    const Partial total = row_of(s.folded_o, s.folded_max, s.folded_sum, row);
    const Partial next = row_of(s.o, s.max, s.sum, row);
    if (!is_first) {
      fold(total, next);
      continue;
    }
    std::copy_n(next.o, o_stride_, total.o);
    *total.max = *next.max;
    *total.sum = *next.sum;
  }
}

/// What was folded takes the place of the last stretch.
void Call::take_folded(Item& item) const {
  std::swap(item.scratch.o, item.scratch.folded_o);
  std::swap(item.scratch.max, item.scratch.folded_max);
  std::swap(item.scratch.sum, item.scratch.folded_sum);
}

/// What a score is multiplied with to come out in units of log2, the scale of an f8 head included. It may lie outside f32.
double Call::score_factor(const Item& item) const {
  const AttentionConstants& constants = params_.constants;
  double unit = log2_e;
  if (constants.softcap != 0)
    unit = query_carries(constants.softcap) ? 1 / static_cast<double>(constants.softcap) : 1.0;
  const float head_scale = params_.storage.k.scale_of(
      planted(Bug::scale_of_first_head) ? 0 : item.kv_head);
  return constants.scale * unit * static_cast<double>(head_scale);
}

/// Whether the kernel multiplies scores with the factor, so that queries keep their few bits: f16 and bf16 need fewer products
/// then. Factors that could take a product of query and key out of range come first.
bool Call::kernel_scales(const Item& item) const {
  const double factor = score_factor(item);
  return kernels_.wide_tile_scales && item.n_rows() >= wide_rows_min_ &&
         params_.tensors.q.dtype != DType::f32 && factor >= 0x1p-40f && factor <= 0x1p40f;
}

/// Tokens whose queries are prefetched before they are read: their rows lie far apart, which the hardware does not follow.
constexpr int32_t tokens_ahead = 4;

void Call::prefetch_queries(const Item& item, int32_t index) const {
  const Tensor& q = params_.tensors.q;
  if (index >= item.tile->n_tokens || q.stride[2] != 1) return;
  const int64_t token = params_.plan.rows[item.tile->row + index].token;
  const auto element = static_cast<int64_t>(size_of(q.dtype));
  for (int32_t h = 0; h < item.n_heads; ++h) {
    const int64_t offset = q.token_offset(token) + (item.q_head + h) * q.stride[1];
    const auto* row = static_cast<const std::byte*>(q.data) + offset * element;
    for (int64_t at = 0; at < params_.storage.k.head_dim() * element; at += 64)
      __builtin_prefetch(row + at);
  }
}

/// Queries in f32, multiplied with the factor unless the kernel does that.
void Call::load_queries(const Item& item) const {
  const Tensor& q = params_.tensors.q;
  const int32_t head_dim = params_.storage.k.head_dim();
  const Slab& keys = params_.storage.k;
  const double exact = kernel_scales(item) ? 1 : score_factor(item);
  const auto factor = static_cast<float>(exact);
  const bool fits = std::isnormal(factor);
  float* to = item.scratch.q;
  for (int32_t t = 0; t < item.tile->n_tokens; ++t) {
    const int64_t token = params_.plan.rows[item.tile->row + t].token;
    prefetch_queries(item, t + tokens_ahead);
    for (int32_t h = 0; h < item.n_heads; ++h, to += q_stride_) {
      const int64_t index = q.token_offset(token) + (item.q_head + h) * q.stride[1];
      if (q.stride[2] == 1 && fits) {
        const auto* from = static_cast<const std::byte*>(q.data) +
                           index * static_cast<int64_t>(size_of(q.dtype));
        kernels_.to_f32_scaled(to, from, q.dtype, factor, head_dim);
      } else {
        for (int32_t i = 0; i < head_dim; ++i) {
          const float number = load_element(q.data, q.dtype, index + i * q.stride[2]);
          to[i] = fits ? number * factor : static_cast<float>(number * exact);
        }
      }
      std::fill(to + head_dim, to + q_stride_, 0.0f);
      // Keys that owe a rotation by RoPE need it undone on the query first (turn_queries).
      const bool turns_later = keys_turn(item) && !planted(Bug::query_rotated_before_turn);
      if (keys.format.rotation != 0 && !turns_later && !planted(Bug::query_not_rotated))
        kernels_.rotate(to, head_dim, keys.format.rotation);
    }
  }
}

/// A KV head's rows from `first_cell` on.
static TileRows rows_of(const Slab& slab, int32_t kv_head, int32_t first_cell) {
  TileRows rows;
  rows.codes = slab.codes.row(kv_head, first_cell);
  rows.stride = slab.codes.row_stride;
  rows.bytes = slab.codes.row_bytes;
  if (slab.format.block != 0) rows.scales = slab.scales.row(kv_head, first_cell);
  rows.scale_stride = slab.scales.row_stride;
  rows.type = slab.type();
  rows.head_dim = slab.head_dim();
  rows.block = slab.format.block;
  return rows;
}

Tile Call::describe(const Item& item) const {
  const LayerStorage& storage = params_.storage;
  const AttentionConstants& constants = params_.constants;
  const int32_t first_cell = params_.plan.lists[item.tile->list].first_cell;
  Tile tile;
  tile.k = rows_of(storage.k, item.kv_head, first_cell);
  tile.v = rows_of(storage.v, item.kv_head, first_cell);
  tile.q = item.scratch.q;
  if (kernel_scales(item)) tile.scale = static_cast<float>(score_factor(item));
  tile.parts = bf16_parts(params_.settings.runtime_type);
  tile.token = item.scratch.token;
  tile.n_rows = item.n_rows();
  tile.group = item.n_heads;
  tile.q_stride = q_stride_;
  tile.cap = static_cast<float>(constants.softcap * log2_e);
  if (constants.softcap != 0 && !query_carries(constants.softcap))
    tile.cap_inverse = 1 / constants.softcap;
  if (constants.slopes) {
    for (int32_t h = 0; h < item.n_heads; ++h) {
      item.scratch.slope[h] = static_cast<float>(constants.slopes[item.q_head + h] * log2_e);
    }
    tile.slope = item.scratch.slope;
  }
  tile.max = item.scratch.max;
  tile.sum = item.scratch.sum;
  tile.o = item.scratch.o;
  tile.o_stride = o_stride_;
  tile.scratch = item.scratch.kernel;
  return tile;
}

void Call::process(const Tile& tile) const {
  if (tile.n_rows < medium_rows_min_) {
    kernels_.process_narrow_tile(tile);
  } else if (tile.n_rows < wide_rows_min_) {
    kernels_.process_medium_tile(tile);
  } else {
    kernels_.process_wide_tile(tile);
  }
}

/// Cells [begin, end) of those that the tile sees.
void Call::attend_chunk(const Item& item, Tile& tile, int32_t begin, int32_t end) const {
  place_cells(item, tile, begin, end);
  place_tokens(item, begin, end);
  if (params_.changes_scores()) place_bias(item, tile);
  if (keys_turn(item)) {
    attend_pending(item, tile);
  } else {
    process(tile);
  }
}

/// Cells of a tile; fewer where its bias must fit the scratch, or the operator was created with smaller blocks.
int32_t Call::cells_at_once(const Item& item) const {
  const int32_t block = params_.settings.block_k;
  const int32_t most = block > 0 ? std::min(block, tile_cells_max) : tile_cells_max;
  if (!params_.changes_scores()) return most;
  const int32_t fitting = bias_floats_max / padded(item.n_rows());
  return std::min(most, fitting / bias_cells_min * bias_cells_min);
}

/// Bias and mask of the tile's rows and cells as the kernels read them: in f32, rows side by side, hidden ones −infinity.
void Call::place_bias(const Item& item, Tile& tile) const {
  const AttentionTensors& tensors = params_.tensors;
  tile.bias = item.scratch.bias;
  tile.bias_stride = padded(tile.n_rows);
  const bool adds = tensors.changes_scores();
  const int64_t n_columns = adds ? (tensors.bias.data ? tensors.bias : tensors.mask).shape[2]
                                 : INT64_MAX;
  const TokenList& list = params_.plan.lists[item.tile->list];
  const int32_t first_column = params_.plan.first_column(list, params_.first_column) - list.first_cell;
  for (int32_t i = 0; i < tile.n_cells; ++i) {
    float* to = item.scratch.bias + static_cast<size_t>(i) * static_cast<size_t>(tile.bias_stride);
    std::fill(to, to + tile.bias_stride, minus_infinity);
    const int64_t column = tile.v.cell[i] - first_column;
    if (column < 0 || column >= n_columns) continue;  // of another row's history: not seen here
    for (int32_t t = 0; t < item.tile->n_tokens; ++t) {
      const int32_t token = params_.plan.rows[item.tile->row + t].token;
      if (params_.plan.hides(token, tile.v.cell[i])) {
        to += item.n_heads;
        continue;
      }
      if (!adds) {  // the mask of the pass alone
        to = std::fill_n(to, item.n_heads, 0.0f);
        continue;
      }
      for (int32_t h = 0; h < item.n_heads; ++h, ++to)
        *to = in_log2(score_bias(tensors, item.q_head + h, token, column));
    }
  }
}

/// Points the tile at the cell numbers: where they lie in one piece in place, else copied together.
void Call::place_cells(const Item& item, Tile& tile, int32_t begin, int32_t end) const {
  const WorkTile& work = *item.tile;
  const TokenList& list = params_.plan.lists[work.list];
  const TokenArrays& tokens = params_.plan.tokens;
  const bool with_positions = params_.constants.slopes || list.has_pending;
  const int32_t n_first = work.first_end - work.low;
  tile.n_cells = end - begin;
  tile.k.cell = tile.v.cell = item.scratch.cell;
  tile.position = item.scratch.position;
  int32_t n_placed = 0;
  for (int32_t seen = begin; seen < end;) {
    const bool in_first = seen < n_first;
    int32_t index = in_first ? work.low + seen : work.begin + seen - n_first;
    int32_t count = std::min(end, in_first ? n_first : work.n_seen) - seen;
    int32_t piece = 0;
    while (index >= list.count[piece]) index -= list.count[piece++];
    count = std::min(count, list.count[piece] - index);
    const int32_t* const cell = tokens.cell + list.start[piece] + index;
    const int32_t* const position = tokens.position + list.start[piece] + index;
    if (count == tile.n_cells) {
      tile.k.cell = tile.v.cell = cell;
      tile.position = position;
      return;
    }
    std::copy_n(cell, count, item.scratch.cell + n_placed);
    if (with_positions) std::copy_n(position, count, item.scratch.position + n_placed);
    n_placed += count;
    seen += count;
  }
}

/// What the tile's tokens see of its cells [begin, end).
void Call::place_tokens(const Item& item, int32_t begin, int32_t end) const {
  const WorkTile& work = *item.tile;
  const int32_t n_first = work.first_end - work.low;
  for (int32_t t = 0; t < work.n_tokens; ++t) {
    const AttentionRow& row = params_.plan.rows[work.row + t];
    const auto first_part = [&](int32_t index) {
      return std::clamp(std::clamp(index, work.low, work.first_end) - work.low - begin, 0,
                        end - begin);
    };
    // An index of the second range lies in the gap, or before it, only when the range begins in the first part.
    const auto second_part = [&](int32_t index) {
      const int32_t seen = index < work.begin ? std::clamp(index, work.low, work.first_end) - work.low
                                              : n_first + std::min(index, work.end) - work.begin;
      return std::clamp(seen - begin, 0, end - begin);
    };
    TileToken& token = item.scratch.token[t];
    token.first_end = first_part(row.first_end);
    token.begin = second_part(row.begin);
    token.end = std::max(token.begin, second_part(row.end));
    token.position = row.position - params_.plan.lists[work.list].first_position;
  }
}

/// Runs of equal offset are attended with queries turned for them. Where they are short, keys are turned instead: a run costs
/// about as much as turning this many keys.
constexpr int32_t run_cells_min = 48;

/// The same where a kernel changes queries on its way: a run costs what its queries do, and some steps that are taken twice.
constexpr int32_t cells_of_a_change = 4;

/// Keys that are prefetched before they are turned.
constexpr int32_t keys_ahead = 16;

void Call::attend_pending(const Item& item, Tile& tile) const {
  int32_t n_runs = 1;
  for (int32_t i = 1; i < tile.n_cells; ++i) n_runs += offset_of(tile, i) != offset_of(tile, i - 1);
  const LayerStorage& storage = params_.storage;
  const bool changes_queries = tile.n_rows < medium_rows_min_ && is_plain(storage.k.type()) &&
                               is_plain(storage.v.type());
  if (changes_queries && tile.n_cells >= n_runs * (tile.n_rows + cells_of_a_change)) {
    attend_short_runs(item, tile);
  } else if (tile.n_cells >= n_runs * run_cells_min) {
    attend_runs(item, tile);
  } else {
    attend_turned(item, tile);
  }
}

/// Points the tile at cells [begin, end) of the chunk.
void Call::narrow_to(const Item& item, const Tile& chunk, int32_t begin, int32_t end,
                     Tile& tile) const {
  for (int32_t t = 0; t < item.tile->n_tokens; ++t) {
    const auto inside = [begin, end](int32_t index) { return std::clamp(index, begin, end) - begin; };
    const TileToken& whole = item.scratch.token[t];
    item.scratch.segment_token[t] = TileToken{.first_end = inside(whole.first_end),
                                              .begin = inside(whole.begin),
                                              .end = inside(whole.end),
                                              .position = whole.position};
  }
  tile.token = item.scratch.segment_token;
  tile.k.cell = chunk.k.cell + begin;
  tile.v.cell = chunk.v.cell + begin;
  tile.position = chunk.position + begin;
  tile.n_cells = end - begin;
  if (chunk.bias)
    tile.bias = chunk.bias + static_cast<size_t>(begin) * static_cast<size_t>(chunk.bias_stride);
}

/// Each run of equal offset with queries turned for it.
void Call::attend_runs(const Item& item, Tile& tile) const {
  const Tile chunk = tile;
  for (int32_t begin = 0, end = 0; begin < chunk.n_cells; begin = end) {
    const int32_t offset = offset_of(chunk, begin);
    while (end < chunk.n_cells && offset_of(chunk, end) == offset) ++end;
    narrow_to(item, chunk, begin, end, tile);
    tile.q = item.scratch.q;
    if (offset != 0 || params_.storage.k.format.rotation != 0) {
      turn_queries(item, offset, item.scratch.q_rotated);
      tile.q = item.scratch.q_rotated;
    }
    process(tile);
  }
  tile = chunk;
}

/// The same in one walk over many runs, as many as there is room for their queries.
void Call::attend_short_runs(const Item& item, Tile& tile) const {
  const Tile chunk = tile;
  const ThreadScratch& scratch = item.scratch;
  const int32_t cells_max = turned_cells(params_.storage.k.head_dim()),
                runs_max = cells_max / chunk.n_rows;
  const size_t run_floats = static_cast<size_t>(chunk.n_rows) * static_cast<size_t>(q_stride_);
  for (int32_t begin = 0, end = 0; begin < chunk.n_cells; begin = end) {
    for (int32_t n_runs = 0; end < std::min(begin + cells_max, chunk.n_cells); ++end) {
      const int32_t offset = offset_of(chunk, end);
      if (end == begin || offset != offset_of(chunk, end - 1)) {
        if (n_runs == runs_max) break;
        turn_queries(item, offset, scratch.turned + static_cast<size_t>(n_runs++) * run_floats);
      }
      scratch.run[end - begin] = n_runs - 1;
    }
    narrow_to(item, chunk, begin, end, tile);
    tile.q = scratch.turned;
    tile.run = scratch.run;
    process(tile);
  }
  tile = chunk;
}

/// Keys in f32, each turned by its own offset, some at a time; values where they are.
void Call::attend_turned(const Item& item, Tile& tile) const {
  const Tile chunk = tile;
  const ThreadScratch& scratch = item.scratch;
  const int32_t step = turned_cells(params_.storage.k.head_dim());
  for (int32_t i = 0; i < step; ++i) scratch.ordinal[i] = i;
  for (int32_t begin = 0; begin < chunk.n_cells; begin += step) {
    const int32_t end = std::min(begin + step, chunk.n_cells);
    turn_keys(item, chunk, begin, end);
    narrow_to(item, chunk, begin, end, tile);
    tile.k = TileRows{.cell = scratch.ordinal,
                      .codes = reinterpret_cast<const std::byte*>(scratch.turned),
                      .stride = static_cast<size_t>(q_stride_) * sizeof(float),
                      .bytes = static_cast<size_t>(q_stride_) * sizeof(float),
                      .type = StorageType::f32,
                      .head_dim = q_stride_};
    process(tile);
  }
  tile = chunk;
}

/// Writes the keys of cells [begin, end) of the tile to `turned`, run by run of equal offset.
void Call::turn_keys(const Item& item, const Tile& tile, int32_t begin, int32_t end) const {
  const Slab& keys = params_.storage.k;
  const ThreadScratch& scratch = item.scratch;
  const int32_t head_dim = keys.head_dim();
  OffsetRotations rotations(params_.constants.rope, scratch.rotations);
  TurnedRows rows{.to_stride = q_stride_, .head_dim = head_dim};
  for (int32_t at = begin, next = begin; at < end; at = next) {
    const int32_t offset = offset_of(tile, at);
    rows.to = scratch.turned + static_cast<size_t>(at - begin) * static_cast<size_t>(q_stride_);
    for (; next < end && offset_of(tile, next) == offset; ++next) {
      const int32_t ahead = std::min(next + keys_ahead, tile.n_cells - 1);
      const std::byte* row = tile.k.codes + static_cast<size_t>(tile.k.cell[ahead]) * tile.k.stride;
      for (size_t byte = 0; byte < tile.k.bytes; byte += 64) __builtin_prefetch(row + byte);
    }
    rows.n = next - at;
    if (is_plain(keys.type())) {
      rows.type = format_of(keys.type()).code;
      rows.from = tile.k.codes;
      rows.from_stride = tile.k.stride;
      rows.cell = tile.k.cell + at;
    } else {
      decode_keys(item, tile, at, next, rows.to);
      rows.from = reinterpret_cast<const std::byte*>(rows.to);
      rows.from_stride = static_cast<size_t>(q_stride_) * sizeof(float);
      rows.cell = scratch.ordinal;
    }
    rotations.turn(rows, offset);
    for (int32_t i = 0; i < rows.n; ++i) {
      float* row = rows.to + i * q_stride_;
      std::fill(row + head_dim, row + q_stride_, 0.0f);
    }
  }
}

/// Decodes the keys of cells [begin, end) of the tile as they were before they were rotated for storage.
void Call::decode_keys(const Item& item, const Tile& tile, int32_t begin, int32_t end,
                       float* key) const {
  const Slab& keys = params_.storage.k;
  const int32_t first_cell = params_.plan.lists[item.tile->list].first_cell;
  for (int32_t i = begin; i < end; ++i, key += q_stride_) {
    StoredRow row = keys.stored(item.kv_head, first_cell + tile.k.cell[i]);
    row.scale = 1;  // that of an f8 head is in the queries
    kernels_.decode(keys.format, key, row);
    if (keys.format.rotation != 0) kernels_.rotate_back(key, keys.head_dim(), keys.format.rotation);
  }
}

/// Queries for keys that owe `offset` positions: turned the other way, which scores the same as turning the keys, then rotated as
/// keys are stored.
void Call::turn_queries(const Item& item, int32_t offset, float* to) const {
  OffsetRotations rotations(params_.constants.rope, item.scratch.rotations);
  const RowFormat& format = params_.storage.k.format;
  const float* from = item.scratch.q;
  for (int32_t r = 0; r < item.n_rows(); ++r, from += q_stride_, to += q_stride_) {
    if (offset == 0) {
      std::copy_n(from, q_stride_, to);
    } else {
      rotations.turn(one_row(to, from, q_stride_), -offset);
    }
    if (format.rotation != 0 && !planted(Bug::query_rotated_before_turn))
      kernels_.rotate(to, format.head_dim, format.rotation);
  }
}

/// Writes the rows that this item completes, leaves the others where the last of their items will find them.
void Call::finish(const Item& item) {
  const WorkTile& tile = *item.tile;
  for (int32_t t = 0; t < tile.n_tokens; ++t) {
    const int32_t plan_row = tile.row + t;
    const WorkRow& row = space_.work.rows[plan_row];
    const int32_t first = t * item.n_heads;
    float* o = item.scratch.o + static_cast<size_t>(first) * static_cast<size_t>(o_stride_);
    if (row.n_partials == 1) {
      for (int32_t h = 0; h < item.n_heads; ++h, o += o_stride_) {
        write(item, plan_row, h, o, item.scratch.max[first + h], item.scratch.sum[first + h]);
      }
      continue;
    }
    const int32_t slot = row.slot + item.unit + (tile.shared ? 0 : row.n_shared_partials);
    for (int32_t h = 0; h < item.n_heads; ++h, o += o_stride_) {
      float* partial = partial_at(slot, item.q_head + h);
      std::copy_n(o, o_stride_, partial);
      partial[o_stride_] = item.scratch.max[first + h];
      partial[o_stride_ + 1] = item.scratch.sum[first + h];
    }
    auto& counter = space_.finished[row.counter * params_.constants.n_q_heads + item.q_head];
    if (counter.fetch_add(1, std::memory_order_acq_rel) + 1 == row.n_partials)
      merge(item, row, plan_row);
  }
}

/// Adds a row's partial results up: those over a shared prefix, those over the rest, and then the two.
void Call::merge(const Item& item, const WorkRow& row, int32_t plan_row) {
  for (int32_t h = 0; h < item.n_heads; ++h) {
    const auto partial = [&](int32_t i) {
      float* o = partial_at(row.slot + i, item.q_head + h);
      return Partial{o, o + o_stride_, o + o_stride_ + 1};
    };
    const int32_t n_shared = row.n_shared_partials;
    for (int32_t i = 1; i < n_shared; ++i) fold(partial(0), partial(i));
    for (int32_t i = n_shared + 1; i < row.n_partials; ++i) fold(partial(n_shared), partial(i));
    const Partial total = partial(0);
    if (n_shared > 0) fold(total, partial(n_shared));
    write(item, plan_row, h, total.o, *total.max, *total.sum);
  }
}

/// Normalises one row, sink and the scale of an f8 head included, rotates it back and writes it out.
void Call::write(const Item& item, int32_t plan_row, int32_t head, float* o, float max,
                 float sum) const {
  const AttentionConstants& constants = params_.constants;
  const int64_t token = params_.plan.rows[plan_row].token;
  const int32_t q_head = item.q_head + head;
  const int32_t head_dim = params_.storage.v.head_dim();
  const bool sees_nothing = sum == 0;
  double factor = 0;
  if (!sees_nothing) {
    factor = 1 / static_cast<double>(sum);
    if (constants.sinks) factor = 1 / (sum + std::exp2(constants.sinks[q_head] * log2_e - max));
  }
  if (sees_nothing) std::fill_n(o, o_stride_, 0.0f);
  const Slab& values = params_.storage.v;
  factor *= static_cast<double>(values.scale_of(item.kv_head));
  if (values.format.rotation != 0 && !planted(Bug::output_not_rotated_back))
    kernels_.rotate_back(o, head_dim, values.format.rotation);
  const Tensor& out = params_.tensors.out;
  const int64_t index = out.token_offset(token) + q_head * out.stride[1];
  if (out.stride[2] == 1) {
    auto* to = static_cast<std::byte*>(out.data) + index * static_cast<int64_t>(size_of(out.dtype));
    kernels_.from_f32_scaled(to, out.dtype, o, static_cast<float>(factor), head_dim);
  } else {
    for (int32_t i = 0; i < head_dim; ++i) {
      store_element(out.data, out.dtype, index + i * out.stride[2], o[i] * static_cast<float>(factor));
    }
  }
  if (!params_.tensors.lse.data) return;
  const Tensor& lse = params_.tensors.lse;
  float* to = static_cast<float*>(lse.data) + lse.token_offset(token) + q_head * lse.stride[1];
  const double value = (static_cast<double>(max) + std::log2(static_cast<double>(sum))) * ln_2;
  *to = sees_nothing ? minus_infinity : static_cast<float>(value);
}

void write_padding(const AttentionParams& params) noexcept {
  const AttentionTensors& tensors = params.tensors;
  for (int32_t i = 0; i < params.plan.n_padding; ++i) {
    const int64_t token = params.plan.padding[i];
    for (int64_t head = 0; head < params.constants.n_q_heads; ++head) {
      const Tensor& out = tensors.out;
      for (int64_t d = 0; d < params.storage.v.head_dim(); ++d) {
        store_element(out.data, out.dtype,
                      out.token_offset(token) + head * out.stride[1] + d * out.stride[2], 0.0f);
      }
      const Tensor& lse = tensors.lse;
      if (lse.data) {
        static_cast<float*>(lse.data)[lse.token_offset(token) + head * lse.stride[1]] = minus_infinity;
      }
      const Tensor& weights = tensors.weights;
      for (int64_t column = 0; weights.data && column < weights.shape[2]; ++column) {
        static_cast<float*>(weights.data)[head * weights.stride[0] + weights.token_offset(token, 1) +
                                          column * weights.stride[2]] = 0.0f;
      }
    }
  }
}

void attention(const AttentionParams& params, ThreadPool& pool, Schedule& schedule) noexcept {
  write_padding(params);
  if (params.plan.n_rows == 0) return;
  Call call(params, pool.n_threads());
  call.run(pool, schedule);
  if (params.tensors.weights.data) attention_weights(params, pool);
}

}  // namespace kvc::cpu
