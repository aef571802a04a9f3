#include "lightning_world.hpp"

#include <algorithm>
#include <cmath>

#include "kvc/rows.h"

/// Which operation comes next and with which arguments; what layers do; states that come and go.
namespace fuzz {

LightningWorld::LightningWorld(kvc_device* device, const LightningSetup& setup,
                               const support::Random& random, Counts& counts)
    : StateWorld(device, random, counts),
      setup_(setup),
      oracle_(setup.cache, setup.lightning, setup.slopes) {
  cache_.status = kvc_cache_create(device, &setup.cache, &setup.lightning, &cache_.handle);
  if (cache_.status != KVC_OK) differ("create: " + support::last_message());
  bind(cache_);
  poison_all();
  compare_all();
}

void LightningWorld::bind(kvc_cache* cache) const {
  for (int32_t layer = 0; layer < setup_.cache.n_layers; ++layer)
    if (kvc_bind_decay(cache, layer, layer + 1,
                       setup_.slopes.data() + layer * setup_.cache.n_kv_heads) != KVC_OK)
      differ("bind_decay: " + support::last_message());
  if (!setup_.binds_attention) return;
  kvc_attention_desc constants = KVC_ATTENTION_DESC_INIT;
  constants.n_q_heads = setup_.n_q_heads;
  constants.scale = setup_.scale;
  if (kvc_bind_attention(cache, 0, setup_.cache.n_layers, &constants, nullptr, nullptr) != KVC_OK)
    differ("bind_attention: " + support::last_message());
}

std::vector<Choice> LightningWorld::layer_choices() {
  const bool open = oracle_.pass_open;
  const int32_t put_weight = !open ? 6 : is_complete() ? 15 : 100;
  return {{put_weight, [this] { put(); }},
          {put_weight, [this] { put_attention(); }},
          {open ? 60 : 6, [this] { attention(); }},
          {20, [this] { read(); }},
          {open ? 2 : 15, [this] { write(); }},
          {20, [this] { checkpoint_list(some_sequence(), 6); }},
          {10, [this] { lacking(); }}};
}

std::vector<Choice> LightningWorld::more_choices() {
  return {{oracle_.pass_open ? (is_complete() ? 15 : 2) : 15, [this] { rows_set(); }},
          {oracle_.pass_open ? 0 : 6, [this] { compare_rebuilt(); }}};
}

// ---- Arguments ---------------------------------------------------------------------------------

void LightningWorld::give_flags(Batch& batch) {
  if (!random_.chance(0.4)) return;
  batch.flags.resize(static_cast<size_t>(batch.n));
  for (size_t i = 0; i < batch.flags.size(); ++i)
    if (batch.sequence[i] != KVC_NONE && random_.chance(0.3)) batch.flags[i] = KVC_TOKEN_MASKED;
}

int32_t LightningWorld::missing_layer() {
  int32_t layer = some_layer();
  for (int32_t tries = 0; tries < 4 && oracle_.needs_layer(layer) == KVC_OK; ++tries) {
    const auto& put = oracle_.pass.k;
    if (put.empty() || put[static_cast<size_t>(layer)].empty()) break;
    layer = some_layer();
  }
  return layer;
}

support::Array LightningWorld::draw_tokens(int64_t heads, int64_t dim, bool is_query) {
  support::Array array(some_dtype(), {n_tokens(), heads, dim}, random_);
  array.fill(random_);
  spoil_padding(array);
  const model::LightningPass& pass = oracle_.pass;
  for (size_t t = 0; !is_query && t < pass.masked.size(); ++t)
    for (int64_t i = 0; pass.masked[t] && i < heads * dim; ++i)
      array.set(static_cast<int64_t>(t) * heads * dim + i, std::nan(""));
  return array;
}

// ---- Put and attention -------------------------------------------------------------------------

void LightningWorld::put() {
  const int32_t layer = missing_layer();
  const support::Array k = draw_tokens(setup_.cache.n_kv_heads, setup_.cache.head_dim_k, false);
  const support::Array v = draw_tokens(setup_.cache.n_kv_heads, dim_v(), false);
  const kvc_status expected = oracle_.needs_layer(layer);
  Call made = call(Op::put, oracle_.pass.sequence, "layer " + std::to_string(layer));
  if (expected == KVC_OK) oracle_.put(layer, k.floats(), v.floats());
  const Door at = door(layer);
  judge(made, kvc_put(at.cache, at.layer, k.tensor(), v.tensor()), expected);
}

void LightningWorld::compare_outputs(int32_t layer, const support::Array& q,
                                     const support::Array& out) {
  if (!out.gaps_intact()) differ("attention wrote beside its output");
  if (oracle_.pass.reserve) return;
  const double scale = setup_.scale == 0 ? 1 : static_cast<double>(setup_.scale);
  const model::LightningOutputs wanted = oracle_.attend(layer, setup_.n_q_heads, q.floats(), scale);
  const uint32_t dtype = out.tensor()->dtype;
  const double unit = dtype == KVC_F32 ? 0 : dtype == KVC_F16 ? 0x1p-11 : 0x1p-8;
  for (size_t i = 0; i < wanted.value.size(); ++i) {
    const double bound = 1e-5 * wanted.magnitude[i] + tiny;
    const double most = bound + unit * (std::fabs(wanted.value[i]) + bound) + (unit > 0 ? 0x1p-24 : 0);
    const double got = out.get(static_cast<int64_t>(i));
    if (dtype == KVC_F16 && std::fabs(wanted.value[i]) + bound > 65000) continue;
    if (!(std::fabs(got - wanted.value[i]) <= most))
      differ("output " + std::to_string(i) + " of layer " + std::to_string(layer) + " is " +
             std::to_string(got) + ", expected " + std::to_string(wanted.value[i]));
  }
  counts_.rows_compared += static_cast<uint64_t>(oracle_.pass.n_tokens) *
                           static_cast<uint64_t>(setup_.n_q_heads);
}

void LightningWorld::attention() {
  const int32_t layer = random_.chance(0.7) && oracle_.pass.last_put >= 0 ? oracle_.pass.last_put
                                                                          : some_layer();
  const support::Array q = draw_tokens(setup_.n_q_heads, setup_.cache.head_dim_k, true);
  support::Array out(some_dtype(), {n_tokens(), setup_.n_q_heads, dim_v()}, random_);
  const kvc_status expected = oracle_.needs_kept(layer);
  Call made = query(Op::attention, oracle_.pass.sequence, "layer " + std::to_string(layer));
  const Door at = door(layer);
  const kvc_status status = kvc_attention(at.cache, at.layer, q.tensor(), out.tensor(), nullptr);
  if (status == KVC_OK && expected == KVC_OK) compare_outputs(layer, q, out);
  judge(made, status, expected);
}

void LightningWorld::put_attention() {
  const int32_t layer = missing_layer();
  const support::Array k = draw_tokens(setup_.cache.n_kv_heads, setup_.cache.head_dim_k, false);
  const support::Array v = draw_tokens(setup_.cache.n_kv_heads, dim_v(), false);
  const support::Array q = draw_tokens(setup_.n_q_heads, setup_.cache.head_dim_k, true);
  support::Array out(some_dtype(), {n_tokens(), setup_.n_q_heads, dim_v()}, random_);
  const kvc_status expected = oracle_.needs_layer(layer);
  Call made = call(Op::put_attention, oracle_.pass.sequence, "layer " + std::to_string(layer));
  if (expected == KVC_OK) oracle_.put(layer, k.floats(), v.floats());
  const Door at = door(layer);
  const kvc_status status = kvc_put_attention(at.cache, at.layer, k.tensor(), v.tensor(),
                                              q.tensor(), out.tensor(), nullptr);
  if (status == KVC_OK && expected == KVC_OK) compare_outputs(layer, q, out);
  judge(made, status, expected);
}

// ---- States that come and go -------------------------------------------------------------------

void LightningWorld::read() {
  const int32_t layer = some_layer();
  const int32_t first = some_sequence(), n = random_.between(0, n_sequences());
  const bool legal = layer >= 0 && layer < n_layers() && first >= 0 && first <= n_sequences() - n;
  support::Array into(KVC_F32, {n, setup_.cache.n_kv_heads, setup_.cache.head_dim_k, dim_v()},
                      random_);
  Call made = query(Op::lightning_read, {},
                    "layer " + std::to_string(layer) + " sequences " + std::to_string(first) +
                        " + " + std::to_string(n));
  const Door at = door(layer);
  const kvc_status status = kvc_lightning_read(at.cache, at.layer, first, n, into.tensor());
  if (status == KVC_OK && legal) {
    if (!into.gaps_intact()) differ("lightning_read wrote beside its output");
    for (int32_t i = 0; i < n; ++i) compare_state(layer, first + i, into, i);
  }
  judge(made, status, legal ? KVC_OK : KVC_E_INVALID_ARGUMENT);
}

void LightningWorld::write() {
  const int32_t layer = some_layer();
  const int32_t first = some_sequence();
  const int32_t n = random_.chance(0.7) ? 1 : random_.between(0, n_sequences());
  support::Array from(KVC_F32, {n, setup_.cache.n_kv_heads, setup_.cache.head_dim_k, dim_v()},
                      random_);
  from.fill(random_);
  const kvc_status expected = oracle_.may_write(layer, first, n);
  Call made = call(Op::lightning_write, {},
                   "layer " + std::to_string(layer) + " sequences " + std::to_string(first) +
                       " + " + std::to_string(n));
  const std::vector<float> all = from.floats();
  const auto size = static_cast<int64_t>(n > 0 ? all.size() / static_cast<size_t>(n) : 0);
  for (int32_t i = 0; expected == KVC_OK && i < n; ++i)
    oracle_.write(layer, first + i, {all.begin() + i * size, all.begin() + (i + 1) * size});
  const Door at = door(layer);
  judge(made, kvc_lightning_write(at.cache, at.layer, first, n, from.tensor()), expected);
}

void LightningWorld::rows_set() {
  const int32_t row = some_sequence();
  const int32_t index = random_.chance(0.1)   ? odd_number()
                        : random_.chance(0.2) ? 0
                                              : random_.below(40);
  const kvc_status expected = oracle_.may_set(row, index);
  Call made = call(Op::rows_set, {row}, std::to_string(row) + " index " + std::to_string(index));
  if (expected == KVC_OK) oracle_.set(row, index);
  judge(made, kvc_rows_set(handle(), row, 1, &index, nullptr), expected);
}

void LightningWorld::lacking() {
  const int32_t which = random_.below(9), number = odd_number();
  Call made = query(Op::lacking, {}, std::to_string(which));
  kvc_cache* const c = handle();
  const auto perform = [&]() -> kvc_status {
    switch (which) {
      case 0: return kvc_set_causal(c, number, nullptr);
      case 1: return kvc_bind_rope(c, number, number, nullptr, nullptr);
      case 2: return kvc_bind_shift(c, nullptr, nullptr);
      case 3: return kvc_get(c, number, nullptr, nullptr);
      case 4: return kvc_mask(c, number, nullptr);
      case 5: return kvc_gather(c, number, number, nullptr, nullptr);
      case 6: return kvc_history(c, number, nullptr, nullptr);
      case 7: return kvc_runs(c, number, number, number, nullptr, nullptr);
      default: return kvc_bind_scales(c, number, number, nullptr, nullptr);
    }
  };
  judge(made, perform(), KVC_E_NOT_SUPPORTED);
}

bool LightningWorld::has_drafts() const {
  return std::any_of(oracle_.pass.layout.begin(), oracle_.pass.layout.end(),
                     [&](const model::LightningRows& rows) {
                       return rows.tokens.size() > 1 && oracle_.is_draft(rows.tokens.size());
                     });
}

}  // namespace fuzz
