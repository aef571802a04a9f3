#include <algorithm>
#include <cmath>

#include "core/base/planted.hpp"
#include "core/caches/causal.hpp"

namespace kvc {
namespace {

/// A shared prefix shorter than this is not worth a read of its own.
constexpr int32_t least_shared_prefix = 256;

/// How many entries at the start of two lists name the same cells at the same positions.
int32_t common_prefix(const TokenList& a, const TokenList& b) {
  int32_t length = 0, piece_a = 0, piece_b = 0, at_a = 0, at_b = 0;
  const int32_t limit = std::min(a.total, b.total);
  while (length < limit) {
    while (at_a == a.count[piece_a]) at_a = 0, ++piece_a;
    while (at_b == b.count[piece_b]) at_b = 0, ++piece_b;
    const int32_t stretch = std::min(a.count[piece_a] - at_a, b.count[piece_b] - at_b);
    for (int32_t i = 0; i < stretch; ++i) {
      if (a.cell[piece_a][at_a + i] != b.cell[piece_b][at_b + i] ||
          a.position[piece_a][at_a + i] != b.position[piece_b][at_b + i]) {
        return length + i;
      }
    }
    length += stretch;
    at_a += stretch;
    at_b += stretch;
  }
  return length;
}

int32_t first_cell(const TokenList& list) {
  for (int piece = 0; piece < 3; ++piece) {
    if (list.count[piece] > 0) return list.cell[piece][0];
  }
  return -1;
}

}  // namespace

// ---- Constants of the model -----------------------------------------------------------------------------------------------

Status CausalCache::bind_attention(int32_t layer_begin, int32_t layer_end,
                                   const AttentionConstants& constants) {
  if (state_ != CacheState::idle)
    return fail(Status::bad_state, "constants are bound while no pass is open");
  for (int32_t index = layer_begin; index < layer_end; ++index) {
    Layer& layer = layers_[index];
    const Rope rope = layer.constants.rope;
    layer.constants = constants;
    layer.constants.rope = rope;
    layer.constants.slopes = constants.slopes == nullptr ? nullptr : layer.slopes;
    layer.constants.sinks = constants.sinks == nullptr ? nullptr : layer.sinks;
    if (constants.slopes != nullptr)
      std::copy_n(constants.slopes, constants.n_q_heads, layer.slopes);
    if (constants.sinks != nullptr) std::copy_n(constants.sinks, constants.n_q_heads, layer.sinks);
  }
  return Status::ok;
}

Status CausalCache::bind_rope(int32_t layer_begin, int32_t layer_end, const RopeSettings& settings) {
  if (state_ != CacheState::idle)
    return fail(Status::bad_state, "RoPE is bound while no pass is open");
  if (pool_.n_free() != bounds_.cells)
    return fail(Status::bad_state, "RoPE is bound while the cache is empty");
  if (settings_.position_free)
    return fail(Status::not_supported, "the cache was declared position-free");
  if (shift_.run != nullptr) return fail(Status::not_supported, "the cache has a shift function");
  for (int32_t index = layer_begin; index < layer_end; ++index) {
    Layer& layer = layers_[index];
    for (int32_t i = 0; i < settings.n_dims / 2; ++i) {
      const double factor = settings.factors == nullptr ? 1.0
                                                        : static_cast<double>(settings.factors[i]);
      layer.frequency[i] = settings.scale * std::pow(settings.base, -2.0 * i / settings.n_dims) /
                           factor;
    }
    layer.constants.rope = {layer.frequency, settings.n_dims, settings.halves};
  }
  has_rope_ = has_rope_ || layer_begin < layer_end;
  return Status::ok;
}

// ---- The plan of a pass ----------------------------------------------------------------------------------------------------

/// What token `token` of the batch sees; `order` counts the batch's tokens of its sequence. Indexes count from `skipped`.
AttentionRow CausalCache::row_of(const Sequence& sequence, int32_t token, int32_t order,
                                 int32_t skipped) const {
  const TokenSequence& tokens = sequence.tokens;
  const Visibility& visibility = settings_.visibility;
  const int32_t position = batch_position_[token];
  const bool sees_later = in_except_set(token);
  AttentionRow row;
  row.token = token;
  row.position = position;
  row.end = sees_later ? tokens.count() : tokens.count() - sequence.n_added + order + 1;
  const int32_t low = visibility.low(position) + (planted(Bug::short_window) && visibility.reach > 0) +
                      (planted(Bug::late_chunk) && visibility.chunk_start(position) > 0 &&
                       visibility.low(position) < position);
  row.begin = low > 0 ? tokens.rank(low) : 0;
  if (visibility.keep_first > 0 && row.begin > skipped) {
    // The kept-first part, as far as it lies inside the chunk (`skipped` is where the chunk begins) and before the rest.
    row.first_end = std::max(skipped, std::min(tokens.rank(visibility.keep_first), row.end));
    if (row.first_end >= row.begin) row.begin = row.first_end = skipped;
  } else {
    row.first_end = skipped;
  }
  row.first_end -= skipped;
  row.begin -= skipped;
  row.end -= skipped;
  return row;
}

/// Rows of one sequence. They share a list, except where a chunk begins inside the kept-first part: a token then sees
/// [chunk, keep_first) and its window, so its list begins with its chunk.
void CausalCache::plan_sequence_rows(int32_t index) {
  const Sequence& sequence = sequences_[index];
  const Visibility& visibility = settings_.visibility;
  int32_t list_start = -1;
  int32_t order = 0;
  for (int32_t token = sequence.first_added; token >= 0; token = batch_follower_[token], ++order) {
    const int32_t chunk = visibility.chunk_start(batch_position_[token]);
    const bool skips = visibility.keep_first > 0 && chunk > 0;
    const int32_t start = skips ? sequence.tokens.rank(chunk) : 0;
    if (start != list_start) {
      TokenList& list = lists_[attention_plan_.n_lists++];
      list = sequence.tokens.list(start);
      list.owes_rotation = sequence.may_owe &&
                           !(planted(Bug::shift_lost_on_shared) && pool_.n_shared() > 0);
      list_start = start;
    }
    AttentionRow& row = rows_[attention_plan_.n_rows++];
    row = row_of(sequence, token, order, start);
    row.list = attention_plan_.n_lists - 1;
  }
}

/// Finds neighbouring lists that begin with the same cells. Only asked when a first cell is shared.
void CausalCache::plan_shared_prefixes() {
  AttentionPlan& plan = attention_plan_;
  for (int32_t begin = 0; begin < plan.n_lists;) {
    int32_t end = begin + 1;
    int32_t length = 0;
    const int32_t cell = first_cell(lists_[begin]);
    if (cell >= 0 && pool_.owners(cell) > 1) {
      length = lists_[begin].total;
      while (end < plan.n_lists && first_cell(lists_[end]) == cell) {
        const int32_t common = std::min(length, common_prefix(lists_[begin], lists_[end]));
        if (common < least_shared_prefix || common < length / 2) {
          if (end > begin + 1 || common < least_shared_prefix) break;
        }
        length = common;
        ++end;
      }
    }
    if (end > begin + 1) shared_[plan.n_shared++] = {begin, end, length};
    begin = end;
  }
}

void CausalCache::plan_attention() {
  if (attention_planned_) return;
  attention_plan_ = {};
  attention_plan_.rows = rows_;
  attention_plan_.lists = lists_;
  attention_plan_.shared = shared_;
  attention_plan_.rotated_for = pool_.rotated_for();
  for (int32_t i = 0; i < n_in_batch_; ++i) plan_sequence_rows(touched_[i]);
  if (pool_.n_shared() > 0 && attention_plan_.n_lists > 1) plan_shared_prefixes();
  expect(attention_plan_.n_rows == n_tokens_, "the attention plan misses tokens of the batch");
  attention_planned_ = true;
}

Status CausalCache::attention(int32_t index, const AttentionTensors& tensors) {
  if (Status s = ready_for_layer(index, true); s != Status::ok) return s;
  if (state_ == CacheState::reserve) return Status::ok;
  plan_attention();
  if (tensors.changes_scores() || tensors.weights.data != nullptr) span_history();
  if (health_ != Status::ok) return health_;
  const Layer& layer = layers_[index];
  AttentionParams params;
  params.storage = layer.storage;
  params.constants = layer.constants;
  if (layer.constants.n_q_heads == 0) {
    params.constants.n_q_heads = static_cast<int32_t>(tensors.q.shape[1]);
    params.constants.scale = 0;
  }
  if (!(params.constants.scale != 0)) {
    params.constants.scale = static_cast<float>(1.0 /
                                                std::sqrt(static_cast<double>(bounds_.head_dim_k)));
  }
  params.plan = attention_plan_;
  params.tensors = tensors;
  params.first_column = history_begin_;
  params.workspace = workspace_;
  if (Status s = backend_->attention(params); s != Status::ok) return health_ = s;
  return Status::ok;
}

}  // namespace kvc
