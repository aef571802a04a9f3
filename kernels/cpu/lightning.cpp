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
constexpr int32_t default_block = 64;

int32_t block_of(int32_t asked) { return asked == 0 ? default_block : asked; }

/// Calls with less state than this (in floats) are done by the caller alone: handing out work costs some microseconds.
constexpr int64_t parallel_floats = 16384;

/// States written together by a call of one token each go past the caches from so many bytes on.
constexpr int64_t streamed_bytes = int64_t{4} << 20;

size_t extent(int64_t n) { return static_cast<size_t>(n); }

/// What one thread works with.
struct Scratch {
  float* q = nullptr;            // [block or query heads of a state head][dims_k]
  float* out = nullptr;          // likewise
  float* state = nullptr;        // [head_dim_k][dims_v] in panels
  float* key_columns = nullptr;  // the others as in LightningBlock
  float* decayed_keys = nullptr;
  float* weights = nullptr;
  float* decay = nullptr;
  float* reversed = nullptr;
  float* from_decay = nullptr;
  float* zeros = nullptr;  // [dims_k or dims_v]

  void place(Carver& carver, const LightningBounds& bounds) {
    const int64_t dims_k = padded_to_vectors(bounds.head_dim_k);
    const int64_t dims_v = padded_to_vectors(bounds.head_dim_v);
    const int64_t block = block_of(bounds.block), padded_block = padded_to_vectors(block);
    const int64_t group = bounds.n_heads == 0 ? 0 : bounds.max_q_heads / bounds.n_heads;
    const int64_t rows = std::max(block, group);
    const auto take = [&](int64_t n) { return carver.take<float>(extent(n), 64); };
    q = take(rows * dims_k);
    out = take(rows * dims_v);
    state = take(bounds.head_dim_k * dims_v);
    key_columns = take(padded_block * dims_k);
    decayed_keys = take(block * dims_k);
    weights = take(block * padded_block);
    decay = take(block + 1);
    reversed = take(block + decay_margin);
    from_decay = take(block);
    zeros = take(std::max(dims_k, dims_v));
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
    double slope;
    float* kept_k;
    float* kept_v;
    Scratch scratch;
  };

  bool attends() const { return params_.q.data != nullptr; }
  void clear_padding() const;
  void run_item(int32_t index, int32_t thread) noexcept;
  void step(const Item& item, const float* k, const float* v) const;
  void run_blocks(const Item& item) const;
  void read_state(const Item& item) const;
  void write_state(const Item& item) const;
  template <class Copy>
  void for_each_panel_row(const Item& item, int32_t slot, Copy copy) const;
  void keep(const Item& item, int32_t first, int32_t n) const;
  void load_query(const LightningToken& token, int32_t q_head, float* to) const;
  void store_out(const LightningToken& token, int32_t q_head, const float* from) const;
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
  int32_t first_item_ = 0;
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
  const bool is_small = n_tokens * floats_of_row < parallel_floats;
  const int32_t rows_at_once = ThreadPool::items_max / bounds_.n_heads;
  for (int32_t first = 0; first < params_.n_rows; first += rows_at_once) {
    first_item_ = first;
    const int32_t n = std::min(rows_at_once, params_.n_rows - first) * bounds_.n_heads;
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
  const LightningRow& row = params_.row[first_item_ + index / bounds_.n_heads];
  const int32_t head = index % bounds_.n_heads;
  Item item = {row,     params_.token + row.first_token,
               head,    static_cast<double>(params_.slopes[head]),
               nullptr, nullptr,
               {}};
  Carver carver(params_.workspace + extent(thread) * scratch_bytes_);
  item.scratch.place(carver, bounds_);
  if (params_.input == LightningInput::none) {
    std::fill_n(item.scratch.zeros, std::max(dims_k_, dims_v_), 0.0f);
    return step(item, item.scratch.zeros, item.scratch.zeros);
  }
  const KeptTokens& kept = row.is_drafted ? params_.drafted : params_.last_layer;
  const int64_t at = head * kept.n_tokens + row.first_kept;
  item.kept_k = kept.k + at * dims_k_;
  item.kept_v = kept.v + at * dims_v_;
  if (row.n_tokens > 1) return run_blocks(item);
  keep(item, 0, 1);
  step(item, item.kept_k, item.kept_v);
}

/// Copies keys and values into what is kept, unless they are there.
void LightningCall::keep(const Item& item, int32_t first, int32_t n) const {
  if (params_.input != LightningInput::tensors) return;
  const auto copy = [&](const Tensor& from, int32_t head_dim, int32_t dims, float* to, int32_t i) {
    const LightningToken& token = item.token[i];
    if (!token.is_masked) convert_row(floats(to), row_at(from, token.index, item.head), head_dim);
    std::fill(to + (token.is_masked ? 0 : head_dim), to + dims, 0.0f);
  };
  for (int32_t i = first; i < first + n; ++i) {
    copy(params_.k, bounds_.head_dim_k, dims_k_, item.kept_k + int64_t{i} * dims_k_, i);
    copy(params_.v, bounds_.head_dim_v, dims_v_, item.kept_v + int64_t{i} * dims_v_, i);
  }
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
void LightningCall::step(const Item& item, const float* k, const float* v) const {
  const LightningToken& last = item.token[item.row.n_tokens - 1];
  LightningStep step;
  step.from = state_of(item.row.from, item.head);
  step.to = params_.writes_states ? state_of(item.row.to, item.head) : nullptr;
  step.k = k;
  step.v = v;
  step.q = item.scratch.q;
  step.out = item.scratch.out;
  step.depth = bounds_.head_dim_k;
  step.dims_k = dims_k_;
  step.dims_v = dims_v_;
  step.n_q = group_;
  step.decay = in_two_floats(decay_of(item.slope, int64_t{last.position} + 1 - item.row.next));
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
  float* panel = item.scratch.state;
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
void LightningCall::run_blocks(const Item& item) const {
  const Scratch& s = item.scratch;
  read_state(item);
  LightningBlock block;
  block.depth = bounds_.head_dim_k;
  block.dims_k = dims_k_;
  block.dims_v = dims_v_;
  block.decay = s.decay;
  block.state = s.state;
  block.q = s.q;
  block.out = s.out;
  block.key_columns = s.key_columns;
  block.decayed_keys = s.decayed_keys;
  block.reversed = s.reversed;
  block.weights = s.weights;
  for (int32_t i = 0; i <= std::min(block_, item.row.n_tokens); ++i)
    s.decay[i] = static_cast<float>(decay_of(item.slope, i));
  int64_t next = item.row.next;
  for (int32_t first = 0; first < item.row.n_tokens; first += block.n) {
    const LightningToken* token = item.token + first;
    const int32_t most = std::min(block_, item.row.n_tokens - first);
    for (block.n = 1; block.n < most && token[block.n].position == token->position + block.n;)
      ++block.n;
    keep(item, first, block.n);
    block.k = item.kept_k + int64_t{first} * dims_k_;
    block.v = item.kept_v + int64_t{first} * dims_v_;
    const int64_t gap = token->position - next;
    block.from_decay = gap == 0 ? s.decay + 1 : s.from_decay;
    for (int32_t i = 0; gap != 0 && i < block.n; ++i)
      s.from_decay[i] = static_cast<float>(decay_of(item.slope, gap + i + 1));
    block.state_decay = in_two_floats(decay_of(item.slope, gap + block.n));
    const bool advances = params_.writes_states || first + block.n < item.row.n_tokens;
    kernels_.lightning_pack(block, attends(), advances);
    for (int32_t head = item.head * group_; head < (item.head + 1) * group_; ++head) {
      for (int32_t i = 0; i < block.n; ++i)
        load_query(token[i], head, s.q + extent(i) * extent(dims_k_));
      kernels_.lightning_attend(block);
      for (int32_t i = 0; i < block.n; ++i)
        store_out(token[i], head, s.out + extent(i) * extent(dims_v_));
    }
    if (advances) kernels_.lightning_advance(block);
    next = int64_t{token->position} + block.n;
  }
  if (params_.writes_states) write_state(item);
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

void load_lightning(const LightningState& s) noexcept {
  for_each_row(s, [&](const float* stored, const Row& row, int64_t head) {
    convert_row(row, floats(stored), s.bounds.head_dim_v);
    if (s.passed == 0) return;
    const Decay decay = in_two_floats(decay_of(static_cast<double>(s.slopes[head]), s.passed));
    for (int64_t i = 0; i < s.bounds.head_dim_v; ++i) {
      float& x = reinterpret_cast<float*>(row.data)[i * row.stride];
      x = std::fma(x, decay.high, x * decay.low);
    }
  });
}

void store_lightning(const LightningState& s) noexcept {
  for_each_row(s, [&](float* stored, const Row& row, int64_t) {
    convert_row(floats(stored), row, s.bounds.head_dim_v);
  });
}

}  // namespace kvc::cpu
