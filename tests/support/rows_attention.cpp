#include <algorithm>
#include <cmath>

#include "rows_world.hpp"

/// attention, put_attention and what they add, compared with double.
namespace fuzz {
namespace {

/// A shape that is broadcast to [batch, heads, q_len, columns].
std::vector<int64_t> some_shape(support::Random& random, const std::vector<int64_t>& whole) {
  std::vector<int64_t> shape = whole;
  for (size_t d = 0; d < shape.size(); ++d)
    if (random.chance(d == 3 ? 0.1 : 0.3)) shape[d] = 1;
  while (shape.size() > 1 && shape[0] == 1 && random.chance(0.5)) shape.erase(shape.begin());
  return shape;
}

}  // namespace

bool RowsWorld::is_wild(int32_t layer, int32_t token) const {
  const std::vector<model::Token> seen = oracle_.visible(token);
  return std::any_of(seen.begin(), seen.end(), [&](const model::Token& each) {
    return wild(oracle_.key(layer, each)) || wild(oracle_.value(layer, each));
  });
}

/// Which columns of its row each token sees, [n_tokens][columns].
std::vector<std::vector<char>> RowsWorld::seen_columns() const {
  std::vector<std::vector<char>> seen;
  for (int32_t t = 0; t < oracle_.pass.n_tokens; ++t) {
    seen.emplace_back(static_cast<size_t>(oracle_.columns()));
    for (const model::Token& token : oracle_.visible(t))
      seen.back()[static_cast<size_t>(oracle_.column(token.position))] = 1;
  }
  return seen;
}

RowsWorld::Queries RowsWorld::draw_queries(int32_t heads) {
  const int64_t batch = n_sequences();
  Queries drawn = {
      support::Array(some_dtype(), {batch, q_len(), heads, oracle_.cache.head_dim_k}, random_),
      support::Array(some_dtype(), {batch, q_len(), heads, oracle_.cache.head_dim_v}, random_),
      support::Array(KVC_F32, {batch, q_len(), heads}, random_)};
  drawn.q.fill(random_);
  spoil_padding(drawn.q);
  return drawn;
}

RowsWorld::Extra RowsWorld::draw_extra(int64_t heads) {
  Extra extra;
  const std::vector<int64_t> whole = {n_sequences(), heads, q_len(), oracle_.columns()};
  if (random_.chance(0.4)) {
    extra.bias.emplace(some_dtype(), some_shape(random_, whole), random_);
    extra.bias->fill(random_);
    spoil_bias(*extra.bias);
  }
  if (random_.chance(0.4)) {
    extra.mask.emplace(KVC_BOOL, some_shape(random_, whole), random_);
    const double hidden = random_.pick({0.05, 0.5, 0.95});
    for (int64_t i = 0; i < extra.mask->count(); ++i) extra.mask->set(i, !random_.chance(hidden));
  }
  if (random_.chance(0.4)) {
    extra.weights.emplace(KVC_F32, whole, random_);
    extra.weights->fill(3);
  }
  return extra;
}

/// Minus infinity here and there, and NaN where the cache's own rules hide the column.
void RowsWorld::spoil_bias(support::Array& bias) {
  const kvc_tensor& t = *bias.tensor();
  const int64_t batch = n_sequences(), n = q_len(), columns = oracle_.columns();
  const bool is_whole = t.ndim == 4 && t.shape[0] == batch && t.shape[2] == n && t.shape[3] == columns;
  const bool has_nan = is_whole && !oracle_.pass.reserve;
  const std::vector<std::vector<char>> seen = has_nan ? seen_columns()
                                                      : std::vector<std::vector<char>>();
  for (int64_t i = 0; i < bias.count(); ++i) {
    const int64_t line = i / columns;  // of [batch, heads, q_len]
    const bool hidden = has_nan && !seen[static_cast<size_t>(line / n / t.shape[1] * n + line % n)]
                                        [static_cast<size_t>(i % columns)];
    if (hidden) bias.set(i, std::nan(""));
    if (!hidden && random_.chance(0.05)) bias.set(i, -HUGE_VAL);
  }
}

/// What the oracle adds to the score of a token and a position.
model::Bias RowsWorld::oracle_bias(const Extra& extra) const {
  if (!extra.bias && !extra.mask) return {};
  return [this, &extra](int32_t head, int32_t token, int32_t position) {
    const int64_t row = token / q_len(), i = token % q_len(), column = oracle_.column(position);
    if (extra.mask && support::broadcast_get(*extra.mask, {row, head, i, column}) == 0)
      return -HUGE_VAL;
    return extra.bias ? support::broadcast_get(*extra.bias, {row, head, i, column}) : 0.0;
  };
}

/// Makes the call one that is refused, rarely; its status.
kvc_status RowsWorld::spoil(Queries& queries, kvc_attention_extra& desc) {
  const auto with_wrong_rows = [&](const support::Array& array) {
    queries.wrong = *array.tensor();
    ++queries.wrong.shape[random_.below(2)];
    return &queries.wrong;
  };
  switch (random_.below(40)) {
    case 0: *queries.q.tensor() = *with_wrong_rows(queries.q); return KVC_E_SHAPE;
    case 1: desc.lse = with_wrong_rows(queries.lse); return KVC_E_SHAPE;
    case 2: desc.flags = 1u << 20; return KVC_E_INVALID_ARGUMENT;
    case 3: desc.weights = queries.lse.tensor(); return KVC_E_SHAPE;
    default: return KVC_OK;
  }
}

void RowsWorld::attention() {
  const int32_t layer = some_put_layer(), heads = q_heads(layer);
  kvc_status expected = oracle_.needs_put(layer);
  Extra extra;
  if (expected == KVC_OK) extra = draw_extra(heads);
  Queries queries = draw_queries(heads);
  kvc_attention_extra desc = extra.describe();
  const bool with_lse = random_.chance(0.5);
  if (with_lse) desc.lse = queries.lse.tensor();
  const kvc_status spoilt = spoil(queries, desc);
  if (expected == KVC_OK) expected = spoilt == KVC_OK && !attends() ? KVC_E_NOT_SUPPORTED : spoilt;
  Call made = query(Op::attention, {}, "layer " + std::to_string(layer));
  const Door at = door(layer);
  const kvc_status status = kvc_attention(at.cache, at.layer, queries.q.tensor(),
                                          queries.out.tensor(), &desc);
  if (status == KVC_OK && expected == KVC_OK && !oracle_.pass.reserve)
    compare_attention(layer, queries, with_lse, extra);
  judge(made, status, expected);
}

void RowsWorld::put_attention() {
  const int32_t layer = missing_layer(), heads = q_heads(layer);
  kvc_status expected = oracle_.needs_pass(layer);
  KeysAndValues drawn = draw_keys_and_values();
  Extra extra;
  if (expected == KVC_OK) extra = draw_extra(heads);
  Queries queries = draw_queries(heads);
  kvc_attention_extra desc = extra.describe();
  const bool with_lse = random_.chance(0.5);
  if (with_lse) desc.lse = queries.lse.tensor();
  const kvc_status spoilt = spoil(queries, desc);
  if (expected == KVC_OK) expected = spoilt == KVC_OK && !attends() ? KVC_E_NOT_SUPPORTED : spoilt;
  Call made = call(Op::put_attention, {}, "layer " + std::to_string(layer));
  const Door at = door(layer);
  const kvc_status status = kvc_put_attention(at.cache, at.layer, drawn.k.tensor(), v_of(drawn),
                                              queries.q.tensor(), queries.out.tensor(), &desc);
  if (expected == KVC_OK) oracle_.put(layer, drawn.k.floats(), drawn.v.floats());
  if (status == KVC_OK && expected == KVC_OK && !oracle_.pass.reserve)
    compare_attention(layer, queries, with_lse, extra);
  judge(made, status, expected);
}

void RowsWorld::compare_attention(int32_t layer, const Queries& queries, bool with_lse,
                                  const Extra& extra) {
  const auto heads = static_cast<int32_t>(queries.q.tensor()->shape[2]);
  AttentionWorld::compare_attention(
      layer, queries, with_lse, extra,
      model::attend(oracle_, layer, heads, queries.q.doubles(), oracle_bias(extra)),
      [&](int32_t, int32_t position) { return oracle_.column(position); });
}

}  // namespace fuzz
