#include <cmath>

#include "encoder_world.hpp"

/// attention, put_attention and what they add, compared with double.
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

bool EncoderWorld::is_wild(int32_t layer, int32_t token) const {
  const int32_t input = oracle_.seen(token);
  const int32_t rows = input < 0 ? 0 : oracle_.inputs[static_cast<size_t>(input)].length;
  for (int32_t row = 0; row < rows; ++row)
    if (wild(oracle_.key(layer, input, row)) || wild(oracle_.value(layer, input, row))) return true;
  return false;
}

EncoderWorld::Queries EncoderWorld::draw_queries(int32_t heads) {
  Queries drawn = {
      support::Array(some_dtype(), {n_tokens(), heads, oracle_.cache.head_dim_k}, random_),
      support::Array(some_dtype(), {n_tokens(), heads, oracle_.cache.head_dim_v}, random_),
      support::Array(KVC_F32, {n_tokens(), heads}, random_)};
  drawn.q.fill(random_);
  spoil_padding(drawn.q);
  return drawn;
}

EncoderWorld::Extra EncoderWorld::draw_extra(int64_t heads, int32_t first, int32_t columns,
                                             bool where_known) {
  Extra extra;
  extra.first = first;
  const int64_t n = n_tokens();
  if (random_.chance(0.4)) {
    const uint32_t dtype = random_.pick<uint32_t>({KVC_F32, KVC_F16, KVC_BF16});
    extra.bias.emplace(dtype, some_shape(random_, heads, n, columns), random_);
    extra.bias->fill(random_);
    const kvc_tensor& t = *extra.bias->tensor();
    const int64_t last = t.shape[t.ndim - 1], rows = t.ndim > 1 ? t.shape[t.ndim - 2] : 1;
    for (int64_t i = 0; i < extra.bias->count(); ++i) {
      const auto token = static_cast<int32_t>(i / last % rows);
      const bool hidden = where_known && rows == n && last == columns &&
                          !sees(token, first + static_cast<int32_t>(i % last));
      if (hidden) extra.bias->set(i, std::nan(""));
      if (!hidden && random_.chance(0.05)) extra.bias->set(i, -HUGE_VAL);
    }
  }
  if (random_.chance(0.4)) {
    extra.mask.emplace(KVC_BOOL, some_shape(random_, heads, n, columns), random_);
    const double hidden = random_.pick({0.05, 0.5, 0.95});
    for (int64_t i = 0; i < extra.mask->count(); ++i) extra.mask->set(i, !random_.chance(hidden));
  }
  if (random_.chance(0.4)) {
    extra.weights.emplace(KVC_F32, std::vector<int64_t>{heads, n, columns}, random_);
    extra.weights->fill(3);
  }
  return extra;
}

/// What the oracle adds to the score of a token and a row of the input that it sees.
model::Bias EncoderWorld::oracle_bias(const Extra& extra) const {
  if (!extra.bias && !extra.mask) return {};
  return [this, &extra](int32_t head, int32_t token, int32_t row) {
    const int32_t at = cell_of_.at(oracle_.seen(token)) + row - extra.first;
    if (extra.mask && support::broadcast_get(*extra.mask, head, token, at) == 0) return -HUGE_VAL;
    return extra.bias ? support::broadcast_get(*extra.bias, head, token, at) : 0.0;
  };
}

/// Makes the call one that is refused, rarely; its status.
kvc_status EncoderWorld::spoil(Queries& queries, kvc_attention_extra& desc) {
  const auto with_wrong_rows = [&](const support::Array& array) {
    queries.wrong = *array.tensor();
    ++queries.wrong.shape[0];
    return &queries.wrong;
  };
  switch (random_.below(40)) {
    case 0: *queries.q.tensor() = *with_wrong_rows(queries.q); return KVC_E_SHAPE;
    case 1: desc.lse = with_wrong_rows(queries.lse); return KVC_E_SHAPE;
    case 2:  // without an operator; a reserve pass attends with none
      desc.flags = KVC_EXTRA_DROPOUT;
      return oracle_.pass.reserve ? KVC_OK : KVC_E_NOT_SUPPORTED;
    case 3: desc.flags = 1u << 20; return KVC_E_INVALID_ARGUMENT;
    case 4: desc.weights = queries.lse.tensor(); return KVC_E_SHAPE;
    default: return KVC_OK;
  }
}

void EncoderWorld::compare_attention(int32_t layer, const Queries& queries, bool with_lse,
                                     const Extra& extra) {
  const auto heads = static_cast<int32_t>(queries.q.tensor()->shape[1]);
  AttentionWorld::compare_attention(
      layer, queries, with_lse, extra,
      oracle_.attend(layer, heads, queries.q.doubles(), oracle_bias(extra)),
      [&](int32_t token, int32_t row) {
        return cell_of_.at(oracle_.seen(token)) + row - extra.first;
      });
}

void EncoderWorld::attention() {
  const int32_t layer = some_put_layer();
  const kvc_status expected = oracle_.needs_put(layer);
  Extra extra;
  const int32_t heads = q_heads(layer);
  if (expected == KVC_OK) {
    Span history;
    if (kvc_history(cache_, layer, &history.first, &history.cells) != KVC_OK)
      differ("history: " + support::last_message());
    extra = draw_extra(heads, history.first, history.cells, !oracle_.pass.reserve);
  }
  Queries queries = draw_queries(heads);
  kvc_attention_extra desc = extra.describe();
  const bool with_lse = random_.chance(0.5);
  if (with_lse) desc.lse = queries.lse.tensor();
  const kvc_status spoilt = spoil(queries, desc);
  Call made = query(Op::attention, {}, "layer " + std::to_string(layer));
  const Door at = door(layer);
  const kvc_status status = kvc_attention(at.cache, at.layer, queries.q.tensor(),
                                          queries.out.tensor(), &desc);
  if (status == KVC_OK && expected == KVC_OK && !oracle_.pass.reserve)
    compare_attention(layer, queries, with_lse, extra);
  judge(made, status, expected == KVC_OK ? spoilt : expected);
}

/// The columns are known when the input has its length already, and else when the batch sees no other input.
void EncoderWorld::put_attention() {
  const int32_t sequence = oracle_.only_carrying();
  const int32_t layer = missing_layer(sequence), n = some_length(sequence);
  const int32_t heads = q_heads(layer);
  const kvc_status may_put = oracle_.may_put(layer, n);
  KeysAndValues put = draw_keys_and_values(n);
  Extra extra;
  if (may_put == KVC_OK) {
    const bool is_first = !oracle_.pass.reserve && oracle_.length(sequence) == 0;
    Span history;
    if (kvc_history(cache_, layer, &history.first, &history.cells) != KVC_OK)
      differ("history: " + support::last_message());
    if (!is_first)
      extra = draw_extra(heads, history.first, history.cells, !oracle_.pass.reserve);
    else if (history.cells == 0)
      extra = draw_extra(heads, 0, n, false);
  }
  Queries queries = draw_queries(heads);
  kvc_attention_extra desc = extra.describe();
  const bool with_lse = random_.chance(0.5);
  if (with_lse) desc.lse = queries.lse.tensor();
  const kvc_status spoilt = spoil(queries, desc);
  Call made = call(Op::put_attention, {},
                   "layer " + std::to_string(layer) + " n " + std::to_string(n));
  const Door at = door(layer);
  const kvc_status status = kvc_put_attention(at.cache, at.layer, put.k.tensor(), put.v.tensor(),
                                              queries.q.tensor(), queries.out.tensor(), &desc);
  const kvc_status expected = may_put == KVC_OK ? spoilt : may_put;
  if (status == KVC_OK && expected == KVC_OK && !oracle_.pass.reserve) {
    oracle_.put_input(layer, sequence, n, put.k.floats(), put.v.floats());
    compare_places();
    extra.first = span().first;
    compare_attention(layer, queries, with_lse, extra);
  }
  judge(made, status, expected);
}

}  // namespace fuzz
