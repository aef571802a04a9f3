#include "kernels/cpu/lightning.hpp"

#include <unistd.h>

#include <algorithm>
#include <cmath>

#include "core/base/carver.hpp"
#include "kernels/cpu/convert.hpp"
#include "kernels/cpu/kernel_table.hpp"

namespace kvc::cpu {
namespace {

/// Tokens of a block unless the cache says otherwise: the more, the more products of tokens that a recurrence would not need;
/// the fewer, the more often the state comes from the second-level cache.
constexpr int32_t default_block = 48;

int32_t block_of(int32_t asked) { return asked == 0 ? default_block : asked; }

/// Calls with less state than this (in floats) are done by the caller alone: handing out work costs some microseconds.
constexpr int64_t parallel_floats = 16384;

/// States written together by a call of one token each go past the caches from so many bytes on.
constexpr int64_t streamed_bytes = int64_t{4} << 20;

/// So do K and V that are kept, and outputs, from so many numbers on.
constexpr int64_t kept_past_caches = int64_t{1} << 18;
constexpr int64_t outputs_past_caches = int64_t{1} << 21;

size_t extent(int64_t n) { return static_cast<size_t>(n); }

/// Rows of a token that are longer are not prefetched.
constexpr int64_t most_bytes_ahead = 8192;

/// Measured on Zen 4: a block that was prefetched into the second level takes longer. Rows that leave the first level before they are
/// needed are in the second then, too.
bool prefetches_into_first_level() {
#if defined(__x86_64__)
  return __builtin_cpu_is("amd") != 0;
#else
  return false;
#endif
}

/// Heads that a thread takes through the blocks side by side: their rows of a token lie beside each other, often in one page of
/// memory, and finding a page costs as much as reading a row. More bytes of a token than these lie in several pages.
constexpr int32_t heads_at_once_max = 8;
constexpr int64_t bytes_at_once = 4096;

/// Their states should take no more than half of a second-level cache.
int64_t state_bytes_at_once() {
#if defined(_SC_LEVEL2_CACHE_SIZE)
  static const int64_t bytes = sysconf(_SC_LEVEL2_CACHE_SIZE) / 2;
  if (bytes > 0) return bytes;
#endif
  return int64_t{256} << 10;
}

/// What one thread works with.
struct Scratch {
  float* k = nullptr;            // [block][dims_k]
  float* v = nullptr;            // [block][dims_v] in panels
  float* q = nullptr;            // [block or query heads of a state head][dims_k]
  float* out = nullptr;          // likewise
  float* state = nullptr;        // [heads_at_once_max][head_dim_k][dims_v] in panels
  float* key_columns = nullptr;  // the others as in LightningBlock
  float* decayed_keys = nullptr;
  float* weights = nullptr;
  float* decay = nullptr;  // [heads_at_once_max][block + 1]
  float* reversed = nullptr;
  float* from_decay = nullptr;
  std::byte** row = nullptr;          // [block or query heads of a state head] of a tensor
  const std::byte** ahead = nullptr;  // [3 · block] rows of the next block

  void place(Carver& carver, const LightningBounds& bounds) {
    const int64_t dims_k = padded_to_vectors(bounds.head_dim_k);
    const int64_t dims_v = padded_to_vectors(bounds.head_dim_v);
    const int64_t block = block_of(bounds.block), padded_block = padded_to_vectors(block);
    const int64_t group = bounds.n_heads == 0 ? 0 : bounds.max_q_heads / bounds.n_heads;
    const int64_t rows = std::max(block, group);
    const auto take = [&](int64_t n) { return carver.take<float>(extent(n), 64); };
    k = take(block * dims_k);
    v = take(block * dims_v);
    q = take(rows * dims_k);
    out = take(rows * dims_v);
    state = take(heads_at_once_max * bounds.head_dim_k * dims_v);
    key_columns = take(padded_block * dims_k);
    decayed_keys = take(block * dims_k);
    weights = take(block * padded_block);
    decay = take(heads_at_once_max * (block + 1));
    reversed = take(block + decay_margin);
    from_decay = take(block);
    row = carver.take<std::byte*>(extent(rows), 64);
    ahead = carver.take<const std::byte*>(extent(3 * block), 64);
  }
};

size_t scratch_bytes(const LightningBounds& bounds) {
  Carver carver;
  Scratch().place(carver, bounds);
  return extent(static_cast<int64_t>(carver.used().rounded_up(4096).value()));
}

}  // namespace

class LightningCall {
 public:
  explicit LightningCall(const LightningParams& params)
      : params_(params),
        bounds_(params.bounds),
        scratch_bytes_(scratch_bytes(bounds_)),
        kernels_(kernels()),
        dims_k_(static_cast<int32_t>(padded_to_vectors(bounds_.head_dim_k))),
        dims_v_(static_cast<int32_t>(padded_to_vectors(bounds_.head_dim_v))),
        block_(block_of(bounds_.block)),
        group_(attends() ? params.n_q_heads / bounds_.n_heads : 0) {}

  void run(ThreadPool& pool) noexcept;

 private:
  /// A row of the call for one state head.
  struct Item {
    const LightningRow& row;
    const LightningToken* token;
    int32_t head;
    int32_t place;  // among the heads that go side by side
    Scratch scratch;
  };
  /// K or V of the call, as tensors or as they were kept.
  struct Side {
    const Tensor& tensor;
    std::byte* kept;  // the head's row of the sequence's first token
    DType kept_type;
    int32_t head_dim;
    int64_t kept_stride() const { return KeptTokens::row_bytes(head_dim, kept_type); }
  };

  double slope_of(const Item& item) const { return static_cast<double>(params_.slopes[item.head]); }
  bool attends() const { return params_.q.data != nullptr; }
  bool keeps(const Item& item) const { return params_.keeps || item.row.is_drafted; }
  void clear_padding() const;
  void run_item(int32_t index, int32_t thread) noexcept;
  void run_head(const Item& item) const;
  void step(const Item& item) const;
  void run_blocks(const Item& first_head, int32_t n_heads) const;
  void run_block(const Item& item, int32_t first, LightningBlock block, bool advances) const;
  void read_state(const Item& item) const;
  void write_state(const Item& item) const;
  template <class Copy>
  void for_each_panel_row(const Item& item, int32_t slot, Copy copy) const;
  Side side(const Item& item, bool is_k) const;
  void load_side(const Item& item, const Side& side, int32_t first, int32_t n, float* to,
                 int32_t panel) const;
  const float* in_place(const Tensor& tensor, const LightningToken* token, int32_t n,
                        int64_t head) const;
  const float* keys_in_place(const Item& item, int32_t first, int32_t n) const;
  void load_keys(const Item& item, int32_t first, int32_t n) const;
  void load_values(const Item& item, int32_t first, int32_t n) const;
  void look_ahead(const Item& item, int32_t n_heads, int32_t first, int32_t n,
                  LightningAhead* ahead) const;
  template <class At>
  void load_queries(const Scratch& scratch, int32_t n, At at) const;
  template <class At>
  LightningOutputs outputs(const Scratch& scratch, int32_t n, At at) const;
  bool kernels_can_write(const LightningOutputs& rows) const;
  void store(const LightningOutputs& rows) const;
  float* state_in_scratch(const Item& item) const {
    return item.scratch.state + extent(int64_t{item.place} * bounds_.head_dim_k * dims_v_);
  }
  float* state_of(int32_t slot, int32_t head) const {
    return reinterpret_cast<float*>(params_.states.slot(slot)) +
           extent(int64_t{head} * bounds_.head_dim_k * dims_v_);
  }

  const LightningParams& params_;
  const LightningBounds& bounds_;
  const size_t scratch_bytes_;
  const KernelTable& kernels_;
  const int32_t dims_k_, dims_v_, block_;
  const int32_t group_;  // query heads of a state head, 0: no outputs are wanted
  bool keeps_past_caches_ = false, outputs_past_caches_ = false;
  int32_t heads_at_once_ = 1;
  int32_t items_per_row_ = 1;
  int32_t first_row_ = 0;  // of those that are handed out
};

namespace {

Row row_at(const Tensor& t, int64_t token, int64_t head) {
  const int64_t at = t.token_offset(token) + head * t.stride[1];
  auto* data = static_cast<std::byte*>(t.data) + at * static_cast<int64_t>(size_of(t.dtype));
  return {data, t.stride[2], t.dtype};
}

Row floats(const float* p) {
  return {reinterpret_cast<std::byte*>(const_cast<float*>(p)), 1, DType::f32};
}

double decay_of(double slope, int64_t positions) {
  return std::exp(-slope * static_cast<double>(positions));
}

Decay in_two_floats(double decay) {
  const auto high = static_cast<float>(decay);
  return {high, static_cast<float>(decay - static_cast<double>(high))};
}

}  // namespace

void LightningCall::run(ThreadPool& pool) noexcept {
  if (attends()) clear_padding();
  const auto work = [](void* context, int32_t item, int32_t thread) noexcept {
    static_cast<LightningCall*>(context)->run_item(item, thread);
  };
  const int64_t floats_of_row = int64_t{bounds_.n_heads} * bounds_.head_dim_k * dims_v_;
  int64_t n_tokens = 0;
  for (int32_t i = 0; i < params_.n_rows; ++i) n_tokens += params_.row[i].n_tokens;
  keeps_past_caches_ = n_tokens * bounds_.n_heads * (dims_k_ + dims_v_) >= kept_past_caches;
  outputs_past_caches_ = n_tokens * params_.n_q_heads * dims_v_ >= outputs_past_caches;
  const bool is_small = n_tokens * floats_of_row < parallel_floats;
  // How many heads go side by side changes no bit: they have nothing in common.
  const int64_t in_a_page = bytes_at_once /
                            KeptTokens::row_bytes(bounds_.head_dim_k, params_.last_layer.k_type);
  const int64_t in_the_cache = state_bytes_at_once() /
                               (bounds_.head_dim_k * dims_v_ * int64_t{sizeof(float)});
  const int64_t for_all_threads = params_.n_rows * bounds_.n_heads / (4 * pool.n_threads());
  heads_at_once_ = static_cast<int32_t>(std::clamp<int64_t>(
      std::min({in_a_page, in_the_cache, for_all_threads}), 1, heads_at_once_max));
  items_per_row_ = (bounds_.n_heads + heads_at_once_ - 1) / heads_at_once_;
  const int32_t rows_at_once = ThreadPool::items_max / items_per_row_;
  for (first_row_ = 0; first_row_ < params_.n_rows; first_row_ += rows_at_once) {
    const int32_t n = std::min(rows_at_once, params_.n_rows - first_row_) * items_per_row_;
    if (!is_small) {
      pool.run(n, work, this);
      continue;
    }
    for (int32_t item = 0; item < n; ++item) run_item(item, 0);
  }
}

void LightningCall::clear_padding() const {
  for (int32_t i = 0; i < params_.n_padding; ++i) {
    for (int32_t head = 0; head < params_.n_q_heads; ++head)
      zero_row(row_at(params_.out, params_.padding[i], head), bounds_.head_dim_v);
  }
}

void LightningCall::run_item(int32_t index, int32_t thread) noexcept {
  const LightningRow& row = params_.row[first_row_ + index / items_per_row_];
  const int32_t first = index % items_per_row_ * heads_at_once_;
  const int32_t n = std::min(heads_at_once_, bounds_.n_heads - first);
  Item item = {row, params_.token + row.first_token, first, 0, {}};
  Carver carver(params_.workspace + extent(thread) * scratch_bytes_);
  item.scratch.place(carver, bounds_);
  if (row.n_tokens > 1 && params_.input != LightningInput::none) return run_blocks(item, n);
  for (; item.head < first + n; ++item.head) run_head(item);
}

/// The row's only token, or nothing but time.
void LightningCall::run_head(const Item& item) const {
  if (params_.input == LightningInput::none) {
    std::fill_n(item.scratch.k, dims_k_, 0.0f);
    std::fill_n(item.scratch.v, dims_v_, 0.0f);
  } else {
    load_keys(item, 0, 1);
    load_values(item, 0, 1);
  }
  step(item);
}

// ---- Keys, values, queries, outputs -----------------------------------------------------------------------------------------

LightningCall::Side LightningCall::side(const Item& item, bool is_k) const {
  const KeptTokens& kept = item.row.is_drafted ? params_.drafted : params_.last_layer;
  Side side = {is_k ? params_.k : params_.v, is_k ? kept.k : kept.v,
               is_k ? kept.k_type : kept.v_type, is_k ? bounds_.head_dim_k : bounds_.head_dim_v};
  side.kept += (item.head * kept.n_tokens + item.row.first_kept) * side.kept_stride();
  return side;
}

/// Tokens [first, first + n) of the item in f32. Those of a tensor are kept if they are wanted; of masked ones nothing is read.
void LightningCall::load_side(const Item& item, const Side& side, int32_t first, int32_t n,
                              float* to, int32_t panel) const {
  std::byte* const kept = side.kept + first * side.kept_stride();
  const bool from_tensor = params_.input == LightningInput::tensors;
  const bool is_dense = from_tensor && side.tensor.stride[2] == 1;
  for (int32_t i = 0; i < n; ++i) {
    const LightningToken& token = item.token[first + i];
    std::byte*& row = item.scratch.row[i];
    row = nullptr;
    if (token.is_masked) continue;
    row = kept + i * side.kept_stride();
    if (!from_tensor) continue;
    const Row from = row_at(side.tensor, token.index, item.head);
    if (is_dense) {
      row = from.data;
    } else {
      convert_row(Row{row, 1, side.kept_type}, from, side.head_dim);
    }
  }
  LightningRows rows;
  rows.row = item.scratch.row;
  rows.n = n;
  rows.type = side.kept_type;
  rows.dims = side.head_dim;
  rows.panel = panel;
  rows.to = to;
  if (is_dense && keeps(item)) {
    rows.kept = kept;
    rows.kept_stride = extent(side.kept_stride());
    rows.keeps_past_caches = keeps_past_caches_;
  }
  kernels_.lightning_load(rows);
}

void LightningCall::load_keys(const Item& item, int32_t first, int32_t n) const {
  load_side(item, side(item, true), first, n, item.scratch.k, dims_k_);
}
void LightningCall::load_values(const Item& item, int32_t first, int32_t n) const {
  load_side(item, side(item, false), first, n, item.scratch.v, kernels_.lightning_panel_dims);
}

/// Keys or queries where they lie, if the kernels of a block can read them there: floats, whole vectors, evenly spaced. Else null.
const float* LightningCall::in_place(const Tensor& tensor, const LightningToken* token, int32_t n,
                                     int64_t head) const {
  if (tensor.dtype != DType::f32 || tensor.stride[2] != 1 || dims_k_ != bounds_.head_dim_k)
    return nullptr;
  const int32_t first = token[0].index;
  for (int32_t i = 1; i < n; ++i) {
    if (tensor.token_offset(token[i].index) - tensor.token_offset(first) != i * tensor.stride[0])
      return nullptr;
  }
  return reinterpret_cast<const float*>(row_at(tensor, first, head).data);
}

/// None that are kept, too, and none of masked tokens, which count as zeros.
const float* LightningCall::keys_in_place(const Item& item, int32_t first, int32_t n) const {
  if (params_.input != LightningInput::tensors || keeps(item)) return nullptr;
  const LightningToken* const token = item.token + first;
  for (int32_t i = 0; i < n; ++i) {
    if (token[i].is_masked) return nullptr;
  }
  return in_place(params_.k, token, n, item.head);
}

/// Where the tokens [first, first + n) of n_heads heads lie, for the kernels of the block before.
void LightningCall::look_ahead(const Item& item, int32_t n_heads, int32_t first, int32_t n,
                               LightningAhead* ahead) const {
  *ahead = {};
  int64_t row_bytes = 0;
  const auto add = [&](const Tensor& tensor, int32_t head, int32_t heads) {
    if (tensor.data == nullptr || tensor.stride[2] != 1) return;
    const int64_t last = (heads - 1) * tensor.stride[1] + tensor.shape[2];
    const int64_t bytes = last * static_cast<int64_t>(size_of(tensor.dtype));
    if (bytes < 0 || bytes > most_bytes_ahead) return;
    row_bytes = std::max(row_bytes, bytes);
    for (int32_t i = first; i < first + n; ++i)
      item.scratch.ahead[ahead->n++] = row_at(tensor, item.token[i].index, head).data;
  };
  add(params_.k, item.head, n_heads);
  add(params_.v, item.head, n_heads);
  add(params_.q, item.head * group_, n_heads * group_);
  // Kernels prefetch after every few steps of a product: about as often as this in a block.
  const int64_t products = int64_t{group_ + 1} * dims_k_ * dims_v_ +
                           int64_t{group_} * n * (dims_k_ + dims_v_) / 2;
  const int64_t steps = std::max<int64_t>(
      1, n_heads * n * products / (6 * 4 * kernels_.lightning_panel_dims));
  const int64_t lines = ahead->n * ((row_bytes + 63) / 64);
  ahead->row = item.scratch.ahead;
  ahead->lines_at_once = static_cast<int32_t>((lines + steps - 1) / steps);
  ahead->row_bytes = static_cast<int32_t>(row_bytes);
  ahead->into_first_level = prefetches_into_first_level();
}

/// n queries, the i-th of them where at(i) says, times the scale.
template <class At>
void LightningCall::load_queries(const Scratch& scratch, int32_t n, At at) const {
  LightningRows rows;
  rows.row = scratch.row;
  rows.n = n;
  rows.type = params_.q.dtype;
  rows.dims = bounds_.head_dim_k;
  rows.panel = dims_k_;
  rows.factor = params_.scale;
  rows.to = scratch.q;
  for (int32_t i = 0; i < n; ++i) {
    const Row from = at(i);
    scratch.row[i] = from.data;
    if (from.stride == 1) continue;
    float* to = scratch.q + extent(i) * extent(dims_k_);
    convert_row(floats(to), from, bounds_.head_dim_k);
    scratch.row[i] = reinterpret_cast<std::byte*>(to);
    rows.type = DType::f32;
  }
  kernels_.lightning_load(rows);
}

/// n outputs, the i-th of them to where at(i) says.
template <class At>
LightningOutputs LightningCall::outputs(const Scratch& scratch, int32_t n, At at) const {
  for (int32_t i = 0; i < n; ++i) scratch.row[i] = at(i).data;
  LightningOutputs rows;
  rows.from = scratch.out;
  rows.row = scratch.row;
  rows.n = n;
  rows.type = params_.out.dtype;
  rows.dims = bounds_.head_dim_v;
  rows.past_caches = outputs_past_caches_;
  return rows;
}

/// Whether the kernel of a block can write its sums where they belong: as whole vectors.
bool LightningCall::kernels_can_write(const LightningOutputs& rows) const {
  if (params_.out.stride[2] != 1 || rows.dims != dims_v_) return false;
  uintptr_t addresses = 0;
  for (int32_t i = 0; i < rows.n; ++i) addresses |= reinterpret_cast<uintptr_t>(rows.row[i]);
  return !rows.past_caches || addresses % 64 == 0;
}

void LightningCall::store(const LightningOutputs& rows) const {
  if (params_.out.stride[2] == 1) return kernels_.lightning_store(rows);
  for (int32_t i = 0; i < rows.n; ++i)
    convert_row(Row{rows.row[i], params_.out.stride[2], rows.type},
                floats(rows.from + extent(i) * extent(dims_v_)), rows.dims);
}

// ---- A token ----------------------------------------------------------------------------------------------------------------

/// From the position of the old state to behind the row's last token, which alone has a key and a value.
void LightningCall::step(const Item& item) const {
  const LightningToken& last = item.token[item.row.n_tokens - 1];
  LightningStep step;
  step.from = state_of(item.row.from, item.head);
  step.to = params_.writes_states ? state_of(item.row.to, item.head) : nullptr;
  step.k = item.scratch.k;
  step.v = item.scratch.v;
  step.q = item.scratch.q;
  step.out = item.scratch.out;
  step.depth = bounds_.head_dim_k;
  step.dims_k = dims_k_;
  step.dims_v = dims_v_;
  step.n_q = group_;
  step.decay = in_two_floats(decay_of(slope_of(item), int64_t{last.position} + 1 - item.row.next));
  const int64_t written = int64_t{params_.n_rows} * static_cast<int64_t>(params_.states.bytes());
  step.streams = written >= streamed_bytes;
  const int32_t first_head = item.head * group_;
  if (group_ > 0)
    load_queries(item.scratch, group_,
                 [&](int32_t i) { return row_at(params_.q, last.index, first_head + i); });
  kernels_.lightning_step(step);
  if (group_ > 0)
    store(outputs(item.scratch, group_,
                  [&](int32_t i) { return row_at(params_.out, last.index, first_head + i); }));
}

// ---- Blocks -------------------------------------------------------------------------------------------------------------------

/// Calls copy(row of a panel in scratch, the same numbers in the slot, how many).
template <class Copy>
void LightningCall::for_each_panel_row(const Item& item, int32_t slot, Copy copy) const {
  float* stored = state_of(slot, item.head);
  float* panel = state_in_scratch(item);
  for (int32_t column = 0; column < dims_v_; column += kernels_.lightning_panel_dims) {
    const int32_t width = std::min(kernels_.lightning_panel_dims, dims_v_ - column);
    for (int32_t d = 0; d < bounds_.head_dim_k; ++d, panel += width)
      copy(panel, stored + extent(int64_t{d} * dims_v_ + column), width);
  }
}

void LightningCall::read_state(const Item& item) const {
  for_each_panel_row(item, item.row.from, [](float* panel, const float* stored, int32_t n) {
    std::copy_n(stored, n, panel);
  });
}

void LightningCall::write_state(const Item& item) const {
  for_each_panel_row(item, item.row.to, [](const float* panel, float* stored, int32_t n) {
    std::copy_n(panel, n, stored);
  });
}

/// Blocks are tokens whose positions follow each other: where a position is missing, another block begins.
void LightningCall::run_blocks(const Item& first_head, int32_t n_heads) const {
  const Scratch& s = first_head.scratch;
  LightningAhead ahead;
  LightningBlock block;
  block.depth = bounds_.head_dim_k;
  block.dims_k = dims_k_;
  block.dims_v = dims_v_;
  block.v = s.v;
  block.out = s.out;
  block.key_columns = s.key_columns;
  block.decayed_keys = s.decayed_keys;
  block.reversed = s.reversed;
  block.weights = s.weights;
  block.ahead = &ahead;
  const LightningToken* const tokens = first_head.token;
  const int32_t n_tokens = first_head.row.n_tokens;
  Item item = first_head;
  const auto for_each_head = [&](const auto& visit) {
    for (item.place = 0; item.place < n_heads; ++item.place) {
      item.head = first_head.head + item.place;
      visit(s.decay + extent(item.place) * extent(block_ + 1));
    }
  };
  for_each_head([&](float* decay) {
    read_state(item);
    for (int32_t i = 0; i <= std::min(block_, n_tokens); ++i)
      decay[i] = static_cast<float>(decay_of(slope_of(item), i));
  });
  int64_t next = first_head.row.next;
  for (int32_t first = 0; first < n_tokens; first += block.n) {
    const LightningToken* token = tokens + first;
    const int32_t most = std::min(block_, n_tokens - first);
    for (block.n = 1; block.n < most && token[block.n].position == token->position + block.n;)
      ++block.n;
    const int64_t gap = token->position - next;
    next = int64_t{token->position} + block.n;
    const int32_t behind = first + block.n;
    look_ahead(first_head, n_heads, behind, std::min(block_, n_tokens - behind), &ahead);
    for_each_head([&](const float* decay) {
      block.decay = decay;
      block.state = state_in_scratch(item);
      block.from_decay = gap == 0 ? decay + 1 : s.from_decay;
      for (int32_t i = 0; gap != 0 && i < block.n; ++i)
        s.from_decay[i] = static_cast<float>(decay_of(slope_of(item), gap + i + 1));
      block.state_decay = in_two_floats(decay_of(slope_of(item), gap + block.n));
      run_block(item, first, block, params_.writes_states || behind < n_tokens);
    });
  }
  if (params_.writes_states) for_each_head([&](const float*) { write_state(item); });
}

void LightningCall::run_block(const Item& item, int32_t first, LightningBlock block,
                              bool advances) const {
  block.k = keys_in_place(item, first, block.n);
  block.k_stride = params_.k.stride[0];
  if (block.k == nullptr) {
    load_keys(item, first, block.n);
    block.k = item.scratch.k;
    block.k_stride = dims_k_;
  }
  load_values(item, first, block.n);
  kernels_.lightning_pack(block, attends(), advances);
  const LightningToken* const token = item.token + first;
  for (int32_t head = item.head * group_; head < (item.head + 1) * group_; ++head) {
    block.q = params_.scale == 1 ? in_place(params_.q, token, block.n, head) : nullptr;
    block.q_stride = params_.q.stride[0];
    if (block.q == nullptr) {
      load_queries(item.scratch, block.n,
                   [&](int32_t i) { return row_at(params_.q, token[i].index, head); });
      block.q = item.scratch.q;
      block.q_stride = dims_k_;
    }
    const LightningOutputs rows = outputs(
        item.scratch, block.n, [&](int32_t i) { return row_at(params_.out, token[i].index, head); });
    block.outputs = kernels_can_write(rows) ? &rows : nullptr;
    kernels_.lightning_attend(block);
    if (block.outputs == nullptr) store(rows);
  }
  if (advances) kernels_.lightning_advance(block);
}

// ---- The call -----------------------------------------------------------------------------------------------------------------

size_t lightning_workspace_bytes(const LightningBounds& bounds, int32_t n_threads) noexcept {
  return bounds.n_heads == 0 ? 0 : scratch_bytes(bounds) * extent(n_threads);
}

void lightning(const LightningParams& params, ThreadPool& pool) noexcept {
  LightningCall(params).run(pool);
}

namespace {

/// Calls copy(row of the state, row of the tensor, head).
template <class Copy>
void for_each_row(const LightningState& s, const Copy& copy) {
  const int64_t dims_v = padded_to_vectors(s.bounds.head_dim_v);
  auto* stored = reinterpret_cast<float*>(s.states.slot(s.slot));
  for (int64_t head = 0; head < s.bounds.n_heads; ++head) {
    for (int64_t d = 0; d < s.bounds.head_dim_k; ++d, stored += dims_v)
      copy(stored, row_at(s.tensor, head, d), head);
  }
}

}  // namespace

/// Time passes as in lightning(): by the same kernel, over a part of a row at a time.
void load_lightning(const LightningState& s) noexcept {
  constexpr int64_t part = 256;
  alignas(64) float decayed[part];
  alignas(64) const float zeros[part] = {};
  const KernelTable& table = kernels();
  for_each_row(s, [&](const float* stored, const Row& row, int64_t head) {
    if (s.passed == 0) return convert_row(row, floats(stored), s.bounds.head_dim_v);
    LightningStep step;
    step.decay = in_two_floats(decay_of(static_cast<double>(s.slopes[head]), s.passed));
    step.depth = 1;
    step.k = step.v = zeros;
    step.to = decayed;
    for (int64_t first = 0; first < s.bounds.head_dim_v; first += part) {
      const int64_t n = std::min<int64_t>(part, s.bounds.head_dim_v - first);
      step.from = stored + first;
      step.dims_v = static_cast<int32_t>(padded_to_vectors(n));
      table.lightning_step(step);
      const int64_t at = first * row.stride * static_cast<int64_t>(size_of(row.dtype));
      convert_row(Row{row.data + at, row.stride, row.dtype}, floats(decayed), n);
    }
  });
}

void store_lightning(const LightningState& s) noexcept {
  for_each_row(s, [&](float* stored, const Row& row, int64_t) {
    convert_row(floats(stored), row, s.bounds.head_dim_v);
  });
}

}  // namespace kvc::cpu
