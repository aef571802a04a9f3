#include <algorithm>

#include "fuzz_world.hpp"

/// What tokens of a batch are besides their positions, and puts.
namespace fuzz {

void World::give_flags(Batch& batch) {
  if (random_.chance(0.3))
    for (uint32_t& flags : batch.flags)
      if (random_.chance(0.3)) flags |= KVC_TOKEN_SEES_LATER;
  if (random_.chance(0.2)) give_types(batch);
}

/// Types for stretches of each sequence's tokens; rarely one that begins twice.
void World::give_types(Batch& batch) {
  std::vector<uint32_t> current(oracle_.sequences.size(), 0);
  uint32_t newest = random_.chance(0.1) ? 0xfff0u : 0;
  const bool repeats = random_.chance(0.05);
  for (size_t i = 0; i < batch.sequence.size(); ++i) {
    uint32_t& type = current[static_cast<size_t>(batch.sequence[i])];
    if (!random_.chance(0.7)) {
      if (newest < 0xffffu) ++newest;
      type = random_.chance(0.3) || newest == 0xffffu ? 0 : repeats ? 1 : newest;
    }
    batch.flags[i] |= type << KVC_TOKEN_TYPE_SHIFT;
  }
}

void World::put_values(int32_t layer, support::Array& k, support::Array& v) {
  Call made = call(Op::put, oracle_.pass_open ? oracle_.pass.sequence : Numbers(),
                   "layer " + std::to_string(layer));
  const Door at = door(layer);
  const kvc_status expected = oracle_.put(layer, k.floats(), v.floats());
  judge(made, kvc_put(at.cache, at.layer, k.tensor(), oracle_.v_in_k() ? nullptr : v.tensor()),
        expected);
}

void World::put(int32_t layer) {
  // Rather a layer that is still missing, but sometimes one a second time.
  for (int32_t tries = 0; tries < 4 && oracle_.pass_open && !random_.chance(0.1); ++tries) {
    const Numbers done = put_layers();
    if (std::find(done.begin(), done.end(), layer) == done.end()) break;
    layer = some_layer();
  }
  const int64_t heads = setup_.cache.n_kv_heads;
  if (random_.chance(0.25)) return put_drawn_codes(layer);
  support::Array k(some_dtype(), {n_tokens(), heads, oracle_.cache.head_dim_k}, random_);
  support::Array v(some_dtype(), {n_tokens(), heads, oracle_.cache.head_dim_v}, random_);
  fill_values(k);
  fill_values(v);
  spoil_padding(k);
  spoil_padding(v);
  put_values(layer, k, v);
}

/// In every layer: scales that are NaN, and codes that are not zero, so that whoever reads either of them is found out.
void World::put_nan(const Batch& batch) {
  const Codes nan = nan_codes(batch.n);
  for (int32_t layer = 0; layer < setup_.cache.n_layers; ++layer)
    if (put_codes(cache_, layer, nan) != KVC_OK) differ("put of NaN: " + support::last_message());
}

}  // namespace fuzz
