#include <algorithm>
#include <cmath>

#include "fuzz_world.hpp"
#include "model/attention.hpp"
#include "model/dropout.hpp"

/// the extras of kvc_attention(): a bias and a mask of every shape that is broadcast, weights, and the columns
/// that they share.
namespace fuzz {
namespace {

/// A shape that is broadcast to [heads, tokens, columns].
std::vector<int64_t> some_shape(support::Random& random, int64_t heads, int64_t tokens,
                                int64_t columns) {
  std::vector<int64_t> shape = {random.chance(0.3) ? 1 : heads, random.chance(0.3) ? 1 : tokens,
                                random.chance(0.1) ? 1 : columns};
  while (shape.size() > 1 && shape[0] == 1 && random.chance(0.5)) shape.erase(shape.begin());
  return shape;
}

}  // namespace

kvc_attention_extra World::Extra::describe() {
  kvc_attention_extra desc{};
  desc.struct_size = sizeof desc;
  if (bias) desc.bias = bias->tensor();
  if (mask) desc.mask = mask->tensor();
  if (weights) desc.weights = weights->tensor();
  if (without_sinks) desc.flags |= KVC_EXTRA_NO_SINKS;
  if (dropout_seed) {
    desc.flags |= KVC_EXTRA_DROPOUT;
    desc.dropout_seed = *dropout_seed;
  }
  return desc;
}

/// Which columns each token of the batch sees: [n_tokens][columns].
std::vector<std::vector<char>> World::seen_columns(const Extra& extra) const {
  std::vector<std::vector<char>> seen;
  for (const std::vector<int32_t>& cells : visible_cells()) {
    seen.emplace_back(static_cast<size_t>(extra.n_cells));
    for (const int32_t cell : cells) {
      if (cell < extra.first_cell || cell >= extra.first_cell + extra.n_cells)
        differ("the history leaves out a cell that is seen");
      seen.back()[static_cast<size_t>(cell - extra.first_cell)] = 1;
    }
  }
  return seen;
}

World::Extra World::draw_extra(int64_t heads) {
  Extra extra;
  const kvc_status status = kvc_history(cache_, 0, &extra.first_cell, &extra.n_cells);
  if (status != oracle_.needs_pass(0)) differ("history: " + support::last_message());
  if (status != KVC_OK) return extra;
  kvc_tensor size{};
  if (kvc_mask(cache_, 0, &size) != KVC_OK) differ("mask: " + support::last_message());
  expect_equal(extra.n_cells, size.shape[1], "cells of the history");
  if (!oracle_.pass.reserve)
    expect_equal(extra.first_cell, first_column(visible_cells()), "first cell of the history");

  const int64_t n = oracle_.pass.n_tokens, columns = extra.n_cells;
  if (random_.chance(0.7)) {
    const uint32_t dtype = random_.pick<uint32_t>({KVC_F32, KVC_F16, KVC_BF16});
    extra.bias.emplace(dtype, some_shape(random_, heads, n, columns), random_);
    extra.bias->fill(random_);
    spoil_bias(extra);
  }
  if (random_.chance(0.7)) {
    extra.mask.emplace(KVC_BOOL, some_shape(random_, heads, n, columns), random_);
    const double hidden = random_.pick({0.05, 0.5, 0.95});
    for (int64_t i = 0; i < extra.mask->count(); ++i) extra.mask->set(i, !random_.chance(hidden));
  }
  if (random_.chance(0.5)) {
    extra.weights.emplace(KVC_F32, std::vector<int64_t>{heads, n, columns}, random_);
    extra.weights->fill(3);
  }
  extra.without_sinks = random_.chance(0.3);
  if (random_.chance(0.4)) extra.dropout_seed = random_.bits();
  return extra;
}

/// Minus infinity here and there, and NaN where the cache's own rules hide the cell.
void World::spoil_bias(Extra& extra) {
  const std::vector<std::vector<char>> seen = oracle_.pass.reserve ? std::vector<std::vector<char>>()
                                                                   : seen_columns(extra);
  const kvc_tensor& t = *extra.bias->tensor();
  const int64_t columns = t.shape[t.ndim - 1], rows = t.ndim > 1 ? t.shape[t.ndim - 2] : 1;
  for (int64_t i = 0; i < extra.bias->count(); ++i) {
    const auto column = static_cast<size_t>(i % columns),
               row = static_cast<size_t>(i / columns % rows);
    const auto sees = [&](const std::vector<char>& token) { return columns == 1 || token[column]; };
    const bool anybody = rows == 1 ? std::any_of(seen.begin(), seen.end(), sees)
                                   : !seen.empty() && sees(seen[row]);
    if (!anybody)
      extra.bias->set(i, std::nan(""));
    else if (random_.chance(0.05))
      extra.bias->set(i, -HUGE_VAL);
  }
}

/// What the oracle adds to the score of a token and a position, by the column of its cell.
model::Bias World::oracle_bias(const Extra& extra) const {
  if (!extra.bias && !extra.mask) return {};
  std::vector<std::map<int32_t, int32_t>> column(places_.size());  // per sequence, by position
  for (size_t s = 0; s < places_.size(); ++s)
    for (const support::Place& place : places_[s])
      column[s][place.position] = place.cell - extra.first_cell;
  return [this, &extra, column](int32_t head, int32_t token, int32_t position) {
    const auto sequence = static_cast<size_t>(oracle_.pass.sequence[static_cast<size_t>(token)]);
    const int32_t at = column[sequence].at(position);
    if (extra.mask && support::broadcast_get(*extra.mask, head, token, at) == 0) return -HUGE_VAL;
    return extra.bias ? support::broadcast_get(*extra.bias, head, token, at) : 0.0;
  };
}

/// What dropout multiplies the weight of a token and a position with; the layer is the cache's own.
model::Bias World::oracle_dropout(int32_t layer, const Extra& extra) {
  if (!extra.dropout_seed) return {};
  const float probability = *dropout_[static_cast<size_t>(layer)];
  return [this, probability, layer, seed = *extra.dropout_seed](int32_t head, int32_t token,
                                                                int32_t position) {
    const auto at = static_cast<size_t>(token);
    return model::dropout_factor(
        {seed, layer, head, oracle_.pass.sequence[at], oracle_.pass.position[at], position},
        probability);
  };
}

/// A weight where a row sees something, 0 everywhere else.
void World::compare_weights(int32_t layer, int32_t heads, const Extra& extra,
                            const model::AttentionResult& expected) const {
  if (!extra.weights->gaps_intact()) differ("attention wrote beside its weights");
  const int64_t n = oracle_.pass.n_tokens;
  for (int32_t t = 0; t < n; ++t) {
    if (is_wild(layer, oracle_.visible(t))) continue;
    const auto sequence = static_cast<size_t>(oracle_.pass.sequence[static_cast<size_t>(t)]);
    for (int32_t h = 0; h < heads; ++h) {
      std::vector<double> wanted(static_cast<size_t>(extra.n_cells));
      const double kept = extra.dropout_seed
                              ? 1 / (1 - double{*dropout_[static_cast<size_t>(layer)]})
                              : 1;
      const double slack = kept *
                           (4e-5 + logit_rounding(expected.lse[static_cast<size_t>(t * heads + h)]));
      for (const auto& [position, weight] : expected.weights[static_cast<size_t>(t * heads + h)])
        for (const support::Place& place : places_[sequence])
          if (place.position == position)
            wanted[static_cast<size_t>(place.cell - extra.first_cell)] = weight;
      for (int32_t c = 0; c < extra.n_cells; ++c) {
        const double got = support::broadcast_get(*extra.weights, h, t, c);
        const double exact = wanted[static_cast<size_t>(c)];
        if (!(exact == 0 ? got == 0 : std::fabs(got - exact) <= slack))
          differ("the weight of batch token " + std::to_string(t) + " head " + std::to_string(h) +
                 " column " + std::to_string(c) + " is " + std::to_string(got) + ", expected " +
                 std::to_string(exact));
      }
    }
  }
}

void World::attention_extra() {
  const int32_t layer = some_put_layer();
  const bool exists = layer >= 0 && layer < setup_.cache.n_layers;
  const int32_t heads = exists ? q_heads(layer) : setup_.cache.n_kv_heads;
  const int64_t n = oracle_.pass_open ? oracle_.pass.n_tokens : 1;
  Extra extra = draw_extra(heads);
  const kvc_attention_extra desc = extra.describe();
  support::Array q(KVC_F32, {n, heads, oracle_.cache.head_dim_k}, random_);
  support::Array out(KVC_F32, {n, heads, oracle_.cache.head_dim_v}, random_);
  support::Array lse(KVC_F32, {n, heads}, random_);
  q.fill(random_);
  Call made = query(Op::attention_extra, oracle_.pass.sequence,
                    "layer " + std::to_string(layer) + (extra.bias ? " bias" : "") +
                        (extra.mask ? " mask" : "") + (extra.weights ? " weights" : ""));
  kvc_status expected = oracle_.needs_put(layer);
  if (expected == KVC_OK && !oracle_.pass.reserve && extra.dropout_seed &&
      !dropout_[static_cast<size_t>(layer)])
    expected = KVC_E_NOT_SUPPORTED;
  const Door at = door(layer);
  const kvc_status status = support::attention(at.cache, at.layer, q.tensor(), out.tensor(),
                                               lse.tensor(), &desc);
  if (status == KVC_OK && expected == KVC_OK && !oracle_.pass.reserve)
    compare_attention(layer, heads, q.doubles(), out, &lse, &extra);
  judge(made, status, expected);
}

}  // namespace fuzz
