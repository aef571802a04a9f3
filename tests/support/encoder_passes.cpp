#include <cmath>

#include "encoder_world.hpp"

/// Which tokens carry inputs; puts and sharing; the constants of the model, and calls that encoder caches do not have.
namespace fuzz {

void EncoderWorld::give_flags(Batch& batch) {
  const double carry = random_.pick({0.0, 0.3, 0.6, 1.0});
  std::set<int32_t> carries;
  for (size_t i = 0; i < batch.sequence.size(); ++i)
    if (random_.chance(carry) && carries.insert(batch.sequence[i]).second)
      batch.flags[i] |= KVC_TOKEN_ENCODER_INPUT;
}

/// The first token of each sequence carries an input.
void EncoderWorld::give_poison_flags(Batch& batch) const {
  std::set<int32_t> carries;
  for (size_t i = 0; i < batch.sequence.size(); ++i)
    if (carries.insert(batch.sequence[i]).second) batch.flags[i] |= KVC_TOKEN_ENCODER_INPUT;
}

/// Inputs of NaN as long as they can be.
void EncoderWorld::put_nan(const Batch& batch) {
  const int64_t n = setup_.cache.capacity, heads = setup_.cache.n_kv_heads;
  support::Array k(KVC_F32, {n, heads, oracle_.cache.head_dim_k});
  support::Array v(KVC_F32, {n, heads, oracle_.cache.head_dim_v});
  k.fill(std::nan(""));
  v.fill(std::nan(""));
  for (size_t i = 0; i < batch.sequence.size(); ++i)
    for (int32_t layer = 0; layer < setup_.cache.n_layers; ++layer)
      if ((batch.flags[i] & KVC_TOKEN_ENCODER_INPUT) != 0 &&
          kvc_encoder_put(cache_, layer, batch.sequence[i], k.tensor(), v.tensor()) != KVC_OK)
        differ("put of NaN: " + support::last_message());
}

// ---- Inputs ----------------------------------------------------------------------------------------------------

EncoderWorld::KeysAndValues EncoderWorld::draw_keys_and_values(int32_t n) {
  const int64_t heads = setup_.cache.n_kv_heads;
  KeysAndValues drawn = {support::Array(some_dtype(), {n, heads, oracle_.cache.head_dim_k}, random_),
                         support::Array(some_dtype(), {n, heads, oracle_.cache.head_dim_v}, random_)};
  fill_values(drawn.k);
  fill_values(drawn.v);
  return drawn;
}

kvc_status EncoderWorld::spoil(KeysAndValues& put) {
  if (!random_.chance(0.02)) return KVC_OK;
  --put.v.tensor()->shape[0];
  return KVC_E_SHAPE;
}

void EncoderWorld::put() {
  const int32_t sequence = oracle_.only_carrying();
  const int32_t layer = missing_layer(sequence), n = some_length(sequence);
  KeysAndValues drawn = draw_keys_and_values(n);
  Call made = call(Op::put, {}, "layer " + std::to_string(layer) + " n " + std::to_string(n));
  kvc_status expected = oracle_.may_put(layer, n);
  if (expected == KVC_OK) expected = spoil(drawn);
  if (expected == KVC_OK) oracle_.put_input(layer, sequence, n, drawn.k.floats(), drawn.v.floats());
  const Door at = door(layer);
  judge(made, kvc_put(at.cache, at.layer, drawn.k.tensor(), drawn.v.tensor()), expected);
}

void EncoderWorld::encoder_put() {
  const int32_t sequence = carrying_sequence(), layer = missing_layer(sequence);
  const int32_t n = some_length(sequence);
  KeysAndValues drawn = draw_keys_and_values(n);
  Call made = call(Op::encoder_put, {sequence},
                   "layer " + std::to_string(layer) + " sequence " + std::to_string(sequence) +
                       " n " + std::to_string(n));
  kvc_status expected = oracle_.may_put_input(layer, sequence, n);
  if (expected == KVC_OK) expected = spoil(drawn);
  if (expected == KVC_OK) oracle_.put_input(layer, sequence, n, drawn.k.floats(), drawn.v.floats());
  const Door at = door(layer, sequence);
  judge(made, kvc_encoder_put(at.cache, at.layer, sequence, drawn.k.tensor(), drawn.v.tensor()),
        expected);
}

void EncoderWorld::share() {
  const int32_t sequence = carrying_sequence(), source = some_sequence();
  Call made = call(Op::share, {sequence, source},
                   "sequence " + std::to_string(sequence) + " source " + std::to_string(source));
  const kvc_status expected = oracle_.share(sequence, source);
  judge(made, kvc_encoder_share(cache_, sequence, source), expected);
}

void EncoderWorld::bind_attention() {
  if (oracle_.pass_open && oracle_.pass.reserve) return;  // left open by the contract
  const int32_t layer = random_.below(setup_.cache.n_layers);
  LayerAttention changed = setup_.attention[static_cast<size_t>(layer)];
  changed.desc.softcap = random_.pick({0.0f, 2.0f, 15.0f});
  changed.desc.scale = random_.pick({0.0f, 0.3f, 1.5f});
  const bool slopes = random_.chance(0.2);  // distances, which the keys do not have
  if (slopes) changed.slopes.assign(static_cast<size_t>(changed.desc.n_q_heads), 0.5f);
  Call made = query(Op::bind_attention, {},
                    "layer " + std::to_string(layer) + (slopes ? " slopes" : ""));
  const kvc_status expected = oracle_.pass_open ? KVC_E_BAD_STATE
                              : slopes          ? KVC_E_NOT_SUPPORTED
                                                : KVC_OK;
  if (expected == KVC_OK) changed.bind(oracle_.constants[static_cast<size_t>(layer)]);
  const Door at = door(layer);
  judge(made, changed.bind(at.cache, at.layer), expected);
}

/// NOT_SUPPORTED before anything else is looked at, so that no argument matters.
void EncoderWorld::lacking() {
  const int32_t which = random_.below(3);
  Call made = query(Op::lacking, {}, std::to_string(which));
  const int32_t number = odd_number();
  const kvc_status status = which == 0   ? kvc_set_causal(cache_, number, nullptr)
                            : which == 1 ? kvc_bind_rope(cache_, number, number, nullptr, nullptr)
                                         : kvc_bind_shift(cache_, nullptr, nullptr);
  judge(made, status, KVC_E_NOT_SUPPORTED);
}

}  // namespace fuzz
