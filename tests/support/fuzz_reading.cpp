#include <algorithm>
#include <bit>
#include <cmath>

#include "fuzz_world.hpp"
#include "model/attention.hpp"
#include "stored_bytes.hpp"

/// attention, mask and gather, and what they are compared with.
namespace fuzz {

namespace {

constexpr double too_large = 50;  // beyond it a logit's f32 rounding alone outgrows the tolerance

}  // namespace

/// Logits are f32: where a mask hides what is near, ALiBi leaves scores as large as the distance.
double logit_rounding(double sum) { return std::isfinite(sum) ? 4 * 0x1p-24 * std::fabs(sum) : 0; }

bool World::is_wild(int32_t layer, const std::vector<model::Token>& tokens) const {
  const auto wild = [](double value) { return !(std::fabs(value) <= too_large); };
  for (const model::Token& token : tokens) {
    const std::vector<double> k = oracle_.key(layer, token), v = oracle_.value(layer, token);
    if (std::any_of(k.begin(), k.end(), wild) || std::any_of(v.begin(), v.end(), wild)) return true;
  }
  return false;
}

bool World::is_huge(int32_t layer, const std::vector<model::Token>& tokens) const {
  const auto huge = [](double value) { return std::fabs(value) > too_large; };
  for (const model::Token& token : tokens) {
    const std::vector<double> k = oracle_.key(layer, token), v = oracle_.value(layer, token);
    if (std::any_of(k.begin(), k.end(), huge) || std::any_of(v.begin(), v.end(), huge)) return true;
  }
  return false;
}

void World::compare_attention(int32_t layer, int32_t n_q_heads, const std::vector<double>& q,
                              const support::Array& out, const support::Array* lse,
                              const Extra* extra) {
  if (!out.gaps_intact() || (lse && !lse->gaps_intact()))
    differ("attention wrote beside its output");
  model::Constants& constants = oracle_.constants[static_cast<size_t>(layer)];
  const model::Constants bound = constants;
  if (extra && extra->without_sinks) constants.sinks.clear();
  const model::AttentionResult expected = model::attend(
      oracle_, layer, n_q_heads, q, extra ? oracle_bias(*extra) : model::Bias(),
      extra ? oracle_dropout(layer, *extra) : model::Bias());
  constants = bound;
  const double kept = extra && extra->dropout_seed
                          ? 1 / (1 - double{*dropout_[static_cast<size_t>(layer)]})
                          : 1;
  const int64_t dv = oracle_.cache.head_dim_v;
  for (int32_t t = 0; t < oracle_.pass.n_tokens; ++t) {
    if (is_huge(layer, oracle_.visible(t))) {
      ++counts_.rows_wild;
      continue;
    }
    ++counts_.rows_compared;
    for (int32_t h = 0; h < n_q_heads; ++h) {
      const int64_t row = t * n_q_heads + h;
      const double magnitude = expected.magnitude[static_cast<size_t>(row)];
      const double error = model::attention_error(
          magnitude, kept * expected.largest[static_cast<size_t>(row)]);
      const double sum = expected.lse[static_cast<size_t>(row)];
      for (int64_t d = 0; d < dv; ++d) {
        const double wanted = expected.out[static_cast<size_t>(row * dv + d)];
        const double got = out.get(row * dv + d);
        counts_.trace(std::bit_cast<uint64_t>(got));
        if (std::isnan(wanted) && std::isnan(got)) continue;
        const double tolerance = error + 0.51 * model::spacing(out.tensor()->dtype, wanted) + 1e-30;
        if (!(std::fabs(got - wanted) <= tolerance))  // NaN on one side is a difference
          differ("attention of batch token " + std::to_string(t) + " head " + std::to_string(h) +
                 " dimension " + std::to_string(d) + " is " + std::to_string(got) + ", expected " +
                 std::to_string(wanted));
      }
      if (lse && !same(lse->get(row), sum) &&
          !(std::fabs(lse->get(row) - sum) <= model::log_sum_exp_error(magnitude)))
        differ("log-sum-exp is " + std::to_string(lse->get(row)) + ", expected " +
               std::to_string(sum));
    }
  }
  if (extra && extra->weights) compare_weights(layer, n_q_heads, *extra, expected);
}

void World::attention() {
  const int32_t layer = some_put_layer();
  const bool exists = layer >= 0 && layer < setup_.cache.n_layers;
  const int32_t heads = exists ? q_heads(layer) : setup_.cache.n_kv_heads;
  const int64_t n = oracle_.pass_open ? oracle_.pass.n_tokens : 1;
  support::Array q(some_dtype(), {n, heads, oracle_.cache.head_dim_k}, random_);
  support::Array out(some_dtype(), {n, heads, oracle_.cache.head_dim_v}, random_);
  support::Array lse(KVC_F32, {n, heads}, random_);
  q.fill(random_);
  spoil_padding(q);
  const bool with_lse = random_.chance(0.5);
  Call made = query(Op::attention, oracle_.pass.sequence, "layer " + std::to_string(layer));
  const kvc_status expected = oracle_.needs_put(layer);
  const Door at = door(layer);
  const kvc_status status = support::attention(at.cache, at.layer, q.tensor(), out.tensor(),
                                               with_lse ? lse.tensor() : nullptr);
  if (status == KVC_OK && expected == KVC_OK && !oracle_.pass.reserve)
    compare_attention(layer, heads, q.doubles(), out, with_lse ? &lse : nullptr);
  judge(made, status, expected);
}

void World::put_attention() {
  const int32_t layer = some_layer();
  const bool exists = layer >= 0 && layer < setup_.cache.n_layers;
  const int32_t heads = exists ? q_heads(layer) : setup_.cache.n_kv_heads;
  const int64_t n = oracle_.pass_open ? oracle_.pass.n_tokens : 1;
  const int64_t kv = setup_.cache.n_kv_heads;
  support::Array k(some_dtype(), {n, kv, oracle_.cache.head_dim_k}, random_);
  support::Array v(some_dtype(), {n, kv, oracle_.cache.head_dim_v}, random_);
  support::Array q(some_dtype(), {n, heads, oracle_.cache.head_dim_k}, random_);
  support::Array out(some_dtype(), {n, heads, oracle_.cache.head_dim_v}, random_);
  fill_values(k);
  fill_values(v);
  spoil_padding(k);
  spoil_padding(v);
  q.fill(random_);
  spoil_padding(q);
  Call made = call(Op::put_attention, oracle_.pass.sequence, "layer " + std::to_string(layer));
  const kvc_status expected = oracle_.put(layer, k.floats(), v.floats());
  const Door at = door(layer);
  const kvc_status status = kvc_put_attention(at.cache, at.layer, k.tensor(),
                                              oracle_.v_in_k() ? nullptr : v.tensor(), q.tensor(),
                                              out.tensor(), nullptr);
  if (status == KVC_OK && expected == KVC_OK && !oracle_.pass.reserve)
    compare_attention(layer, heads, q.doubles(), out, nullptr);
  judge(made, status, expected);
}

// ---- Mask --------------------------------------------------------------------------------------

/// Per token of the batch the cells that it must see. places_ runs parallel to the oracle's lists.
std::vector<std::vector<int32_t>> World::visible_cells() const {
  std::vector<std::vector<int32_t>> cells;
  for (int32_t t = 0; t < oracle_.pass.n_tokens; ++t) {
    cells.emplace_back();
    const int32_t sequence = oracle_.pass.sequence[static_cast<size_t>(t)];
    if (sequence == KVC_NONE) continue;
    for (const support::Place& place : places_[static_cast<size_t>(sequence)])
      if (oracle_.sees(t, place.position)) cells.back().push_back(place.cell);
  }
  return cells;
}

int32_t World::first_column(const std::vector<std::vector<int32_t>>& cells) const {
  int32_t lowest = INT32_MAX;
  for (const std::vector<int32_t>& row : cells)
    for (const int32_t cell : row) lowest = std::min(lowest, cell);
  if (lowest == INT32_MAX) return 0;  // a pass of padding alone
  const int32_t padding = std::max(1, setup_.causal.cell_padding);
  return lowest / padding * padding;
}

void World::compare_mask(const support::Array& mask,
                         const std::vector<std::vector<int32_t>>& cells) const {
  if (!mask.gaps_intact()) differ("mask wrote beside its output");
  const int64_t history = mask.tensor()->shape[1];
  const bool is_bool = mask.tensor()->dtype == KVC_BOOL;
  const int32_t first = first_column(cells);
  const int32_t padding = std::max(1, setup_.causal.cell_padding);
  int32_t highest = -1;
  for (size_t t = 0; t < cells.size(); ++t) {
    std::vector<char> seen(static_cast<size_t>(history), 0);
    for (const int32_t cell : cells[t]) {
      highest = std::max(highest, cell);
      if (cell - first >= history) differ("the history ends before a cell that is seen");
      seen[static_cast<size_t>(cell - first)] = 1;
    }
    for (int64_t column = 0; column < history; ++column) {
      const double value = mask.get(static_cast<int64_t>(t) * history + column);
      const bool sees = seen[static_cast<size_t>(column)] != 0;
      if (value != (is_bool ? static_cast<double>(sees) : sees ? 0.0 : -HUGE_VAL))
        differ("mask of batch token " + std::to_string(t) + " column " + std::to_string(column) +
               " is " + std::to_string(value));
    }
  }
  expect_equal(history, highest < 0 ? 0 : (highest / padding + 1) * padding - first, "history");
}

void World::mask() {
  const int32_t layer = some_layer();
  Call made = query(Op::mask, oracle_.pass.sequence, "layer " + std::to_string(layer));
  const kvc_status expected = oracle_.needs_pass(layer);
  kvc_tensor size{};
  const Door at = door(layer);
  kvc_status status = kvc_mask(at.cache, at.layer, &size);
  if (status == KVC_OK && expected == KVC_OK) {
    const uint32_t proposed = setup_.causal.mask_dtype == 0 ? uint32_t{KVC_F32}
                                                            : setup_.causal.mask_dtype;
    expect_equal(size.dtype, proposed, "proposed mask dtype");
    expect_equal(size.ndim, 2, "mask dimensions");
    expect_equal(size.shape[0], oracle_.pass.n_tokens, "mask rows");
    const uint32_t dtype = random_.pick<uint32_t>({KVC_F32, KVC_F16, KVC_BOOL});
    support::Array mask(dtype, {size.shape[0], size.shape[1]}, random_);
    mask.fill(3);
    status = kvc_mask(at.cache, at.layer, mask.tensor());
    if (status == KVC_OK && !oracle_.pass.reserve) compare_mask(mask, visible_cells());
  }
  judge(made, status, expected);
}

void World::history_range() {
  const int32_t layer = some_layer();
  Call made = query(Op::history, oracle_.pass.sequence, "layer " + std::to_string(layer));
  const kvc_status expected = oracle_.needs_pass(layer);
  int32_t first = -7, n_cells = -7;
  const Door at = door(layer);
  const kvc_status status = kvc_history(at.cache, at.layer, &first, &n_cells);
  if (status == KVC_OK && expected == KVC_OK && oracle_.pass.reserve) {
    if (first != 0 || n_cells < oracle_.pool()) differ("a reserve pass spans less than the pool");
  } else if (status == KVC_OK && expected == KVC_OK) {
    const std::vector<std::vector<int32_t>> cells = visible_cells();
    int32_t highest = -1;
    for (const std::vector<int32_t>& row : cells)
      for (const int32_t cell : row) highest = std::max(highest, cell);
    const int32_t padding = std::max(1, setup_.causal.cell_padding);
    expect_equal(first, first_column(cells), "first cell of the history");
    const int32_t end = highest < 0 ? 0 : (highest / padding + 1) * padding;
    expect_equal(n_cells, end - first, "cells of the history");
  }
  judge(made, status, expected);
}

// ---- Gather ------------------------------------------------------------------------------------

void World::gather() {
  const int32_t sequence = some_sequence();
  const int32_t layer = some_layer();
  const bool exists = sequence >= 0 && sequence < setup_.cache.max_sequences && layer >= 0 &&
                      layer < setup_.cache.n_layers;
  Call made = query(Op::gather, {sequence},
                    "layer " + std::to_string(layer) + " sequence " + std::to_string(sequence));
  const size_t held = exists ? oracle_.sequences[static_cast<size_t>(sequence)].tokens.size() : 1;
  const auto n = static_cast<int64_t>(held);
  const int64_t heads = setup_.cache.n_kv_heads;
  const int64_t dv = oracle_.cache.head_dim_v;
  const bool transposed = random_.chance(0.3);
  support::Array k(some_dtype(), {n, heads, oracle_.cache.head_dim_k}, random_);
  support::Array v = transposed ? support::Array(some_dtype(), {heads, dv, n}, random_)
                                : support::Array(some_dtype(), {n, heads, dv}, random_);
  if (transposed) v.tensor()->flags = KVC_TENSOR_TRANSPOSED;
  const bool with_k = random_.chance(0.9), with_v = random_.chance(0.9);
  const Door at = door(layer, sequence);
  const kvc_status status = kvc_gather(at.cache, at.layer, sequence, with_k ? k.tensor() : nullptr,
                                       with_v ? v.tensor() : nullptr);
  if (status == KVC_OK && exists)
    compare_gathered(layer, sequence, with_k ? &k : nullptr, with_v ? &v : nullptr, transposed);
  judge(made, status, exists ? KVC_OK : KVC_E_INVALID_ARGUMENT);
}

void World::compare_gathered(int32_t layer, int32_t sequence, const support::Array* k,
                             const support::Array* v, bool transposed) const {
  const std::vector<model::Token>& tokens = oracle_.sequences[static_cast<size_t>(sequence)].tokens;
  const int64_t n = static_cast<int64_t>(tokens.size());
  const int64_t k_row = setup_.cache.n_kv_heads * oracle_.cache.head_dim_k;
  const int64_t v_row = setup_.cache.n_kv_heads * oracle_.cache.head_dim_v;
  if ((k && !k->gaps_intact()) || (v && !v->gaps_intact()))
    differ("gather wrote beside its output");
  const auto wrong = [&](const char* what, int64_t i, double got, double wanted) {
    differ(std::string("gather: ") + what + " of layer " + std::to_string(layer) + " sequence " +
           std::to_string(sequence) + " position " +
           std::to_string(tokens[static_cast<size_t>(i)].position) + " is " + std::to_string(got) +
           ", expected " + std::to_string(wanted));
  };
  for (int64_t i = 0; i < n; ++i) {
    const model::Token& token = tokens[static_cast<size_t>(i)];
    const std::vector<double> key = oracle_.key(layer, token), value = oracle_.value(layer, token);
    const auto agree = [&](double got, double wanted, int64_t e, bool is_key, uint32_t dtype) {
      const double exact = model::round_to(dtype, wanted);
      if (same(got, exact)) return true;
      const double slack = read_slack(layer, token, e, is_key, dtype, wanted);
      return slack == HUGE_VAL || std::fabs(got - exact) <= slack;
    };
    for (int64_t e = 0; k && e < k_row; ++e) {
      const double wanted = key[static_cast<size_t>(e)], got = k->get(i * k_row + e);
      if (!agree(got, wanted, e, true, k->tensor()->dtype)) wrong("key", i, got, wanted);
    }
    for (int64_t e = 0; v && e < v_row; ++e) {
      const double wanted = value[static_cast<size_t>(e)];
      const double got = v->get(transposed ? e * n + i : i * v_row + e);
      if (!agree(got, wanted, e, false, v->tensor()->dtype)) wrong("value", i, got, wanted);
    }
  }
}

/// How far a number that was read may be off: not at all, unless it was rotated back, or turned by what its key owes. Infinity: it
/// may be anything, because f32 overflows on the way.
double World::read_slack(int32_t layer, const model::Token& token, int64_t element, bool is_key,
                         uint32_t dtype, double wanted) const {
  const bool turned = is_key && oracle_.pending_rotation(token) != 0 &&
                      oracle_.rope[static_cast<size_t>(layer)].n_dims > 0;
  const bool of_k = is_key || oracle_.v_in_k();
  const bool rotated = (of_k ? oracle_.storage_k : oracle_.storage_v).rotation > 0;
  if (!turned && !rotated) return 0;
  const int64_t dim = is_key ? oracle_.cache.head_dim_k : oracle_.cache.head_dim_v;
  const auto head = static_cast<size_t>(element / dim);
  const model::Content& content = oracle_.contents[static_cast<size_t>(token.content)];
  const model::StoredRows& rows = of_k ? content.k : content.v;
  const double largest = largest_of(rows, static_cast<size_t>(layer * setup_.cache.n_kv_heads) + head);
  if (turned && !(largest <= too_large)) return HUGE_VAL;
  return turned_slack(largest, dtype, wanted);
}

}  // namespace fuzz
