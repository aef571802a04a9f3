#include "kernels/cpu/lightning.hpp"

#include <algorithm>
#include <cmath>

#include "core/base/carver.hpp"
#include "kernels/cpu/convert.hpp"
#include "kernels/cpu/kernel_table.hpp"

namespace kvc::cpu {
namespace {

/// Tokens of a block unless the cache says otherwise: the more, the more products of tokens that a recurrence would not need;
/// the fewer, the more often the state comes from the second-level cache.
constexpr int32_t default_block = 60;

int32_t block_of(int32_t asked) { return asked == 0 ? default_block : asked; }

/// Calls with less state than this (in floats) are done by the caller alone: handing out work costs some microseconds.
constexpr int64_t parallel_floats = 16384;

/// States written together by a call of one token each go past the caches from so many bytes on.
constexpr int64_t streamed_bytes = int64_t{4} << 20;

/// So do K and V that are kept, from so many numbers on.
constexpr int64_t kept_past_caches = int64_t{1} << 18;

size_t extent(int64_t n) { return static_cast<size_t>(n); }

/// Rows of a token that are longer are not prefetched.
constexpr int64_t most_bytes_ahead = 8192;

/// Heads that a thread takes through the blocks side by side: their rows of a token lie beside each other, often in one page of
/// memory, and finding a page costs as much as reading a row.
constexpr int32_t heads_at_once_max = 4;

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
  const std::byte** row = nullptr;    // [block] of a tensor
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
    row = carver.take<const std::byte*>(extent(block), 64);
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
  void clear_padding() const;
  void run_item(int32_t index, int32_t thread) noexcept;
  void run_head(const Item& item) const;
  void step(const Item& item) const;
  void run_blocks(const Item& first_head, int32_t n_heads) const;
  void run_block(const Item& item, int32_t first, const LightningBlock& block, bool advances) const;
  void read_state(const Item& item) const;
  void write_state(const Item& item) const;
  template <class Copy>
  void for_each_panel_row(const Item& item, int32_t slot, Copy copy) const;
  Side side(const Item& item, bool is_k) const;
  template <class Put>
  void load_side(const Item& item, const Side& side, int32_t first, int32_t n, const Put& put) const;
  void load_keys_and_values(const Item& item, int32_t first, int32_t n) const;
  void keep(const Item& item, const Side& side, int32_t first, int32_t n) const;
  void look_ahead(const Item& item, int32_t n_heads, int32_t first, int32_t n,
                  LightningAhead* ahead) const;
  void load_query(const LightningToken& token, int32_t q_head, float* to) const;
  void store_out(const LightningToken& token, int32_t q_head, const float* from) const;
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
  bool keeps_past_caches_ = false;
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
  const bool is_small = n_tokens * floats_of_row < parallel_floats;
  // How many heads go side by side changes no bit: they have nothing in common.
  heads_at_once_ = std::clamp(params_.n_rows * bounds_.n_heads / (4 * pool.n_threads()), 1,
                              heads_at_once_max);
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
    load_keys_and_values(item, 0, 1);
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

/// Calls put(i, row) for tokens [first, first + n) of the item: where their keys or values are. A masked token has none.
template <class Put>
void LightningCall::load_side(const Item& item, const Side& side, int32_t first, int32_t n,
                              const Put& put) const {
  const bool from_tensor = params_.input == LightningInput::tensors;
  for (int32_t i = first; i < first + n; ++i) {
    const LightningToken& token = item.token[i];
    if (token.is_masked) {
      put(i - first, Row{});
    } else if (from_tensor) {
      put(i - first, row_at(side.tensor, token.index, item.head));
    } else {
      put(i - first, Row{side.kept + i * side.kept_stride(), 1, side.kept_type});
    }
  }
}

/// Tokens [first, first + n) of the item in f32, and kept unless they are.
void LightningCall::load_keys_and_values(const Item& item, int32_t first, int32_t n) const {
  const Side k = side(item, true), v = side(item, false);
  load_side(item, k, first, n, [&](int32_t i, const Row& from) {
    float* to = item.scratch.k + int64_t{i} * dims_k_;
    if (from.data != nullptr) convert_row(floats(to), from, k.head_dim);
    std::fill(to + (from.data != nullptr ? k.head_dim : 0), to + dims_k_, 0.0f);
  });
  load_side(item, v, first, n, [&](int32_t i, const Row& from) {
    for (int32_t column = 0; column < dims_v_; column += kernels_.lightning_panel_dims) {
      const int32_t width = std::min(kernels_.lightning_panel_dims, dims_v_ - column);
      float* to = item.scratch.v + int64_t{column} * n + i * width;
      const int32_t filled = from.data == nullptr ? 0 : std::min(width, v.head_dim - column);
      if (filled > 0) {
        const int64_t bytes = column * from.stride * static_cast<int64_t>(size_of(from.dtype));
        convert_row(floats(to), Row{from.data + bytes, from.stride, from.dtype}, filled);
      }
      std::fill(to + filled, to + width, 0.0f);
    }
  });
  if (params_.input != LightningInput::tensors) return;
  keep(item, k, first, n);
  keep(item, v, first, n);
}

/// Rows as they are. Those of masked tokens are never read.
void LightningCall::keep(const Item& item, const Side& side, int32_t first, int32_t n) const {
  std::byte* to = side.kept + first * side.kept_stride();
  int32_t n_runs = 0;  // rows in a run, since the last masked token
  const auto flush = [&](int32_t end) {
    if (n_runs > 0)
      kernels_.lightning_keep(to + (end - n_runs) * side.kept_stride(), extent(side.kept_stride()),
                              item.scratch.row, n_runs,
                              extent(side.head_dim) * size_of(side.kept_type));
    n_runs = 0;
  };
  load_side(item, side, first, n, [&](int32_t i, const Row& from) {
    if (from.data != nullptr && from.stride == 1 && keeps_past_caches_) {
      item.scratch.row[n_runs++] = from.data;
      return;
    }
    flush(i);
    if (from.data != nullptr)
      convert_row(Row{to + i * side.kept_stride(), 1, side.kept_type}, from, side.head_dim);
  });
  flush(n);
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
  const int32_t products = 60 * n_heads;  // about as many as kernels make of a block
  ahead->row = item.scratch.ahead;
  ahead->at_once = (ahead->n + products - 1) / products;
  ahead->row_bytes = static_cast<int32_t>(row_bytes);
}

void LightningCall::load_query(const LightningToken& token, int32_t q_head, float* to) const {
  convert_row(floats(to), row_at(params_.q, token.index, q_head), bounds_.head_dim_k);
  std::fill(to + bounds_.head_dim_k, to + dims_k_, 0.0f);
  if (params_.scale != 1) kernels_.scale(to, params_.scale, dims_k_);
}

void LightningCall::store_out(const LightningToken& token, int32_t q_head, const float* from) const {
  convert_row(row_at(params_.out, token.index, q_head), floats(from), bounds_.head_dim_v);
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
  for (int32_t i = 0; i < group_; ++i)
    load_query(last, item.head * group_ + i, item.scratch.q + extent(i) * extent(dims_k_));
  kernels_.lightning_step(step);
  for (int32_t i = 0; i < group_; ++i)
    store_out(last, item.head * group_ + i, item.scratch.out + extent(i) * extent(dims_v_));
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
  block.k = s.k;
  block.v = s.v;
  block.q = s.q;
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

void LightningCall::run_block(const Item& item, int32_t first, const LightningBlock& block,
                              bool advances) const {
  load_keys_and_values(item, first, block.n);
  kernels_.lightning_pack(block, attends(), advances);
  for (int32_t head = item.head * group_; head < (item.head + 1) * group_; ++head) {
    for (int32_t i = 0; i < block.n; ++i)
      load_query(item.token[first + i], head, item.scratch.q + extent(i) * extent(dims_k_));
    kernels_.lightning_attend(block);
    for (int32_t i = 0; i < block.n; ++i)
      store_out(item.token[first + i], head, item.scratch.out + extent(i) * extent(dims_v_));
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
