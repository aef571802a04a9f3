#include <algorithm>
#include <cstring>
#include <type_traits>
#include <utility>

#include "fuzz_world.hpp"
#include "host_view.hpp"
#include "kvc/operators.h"
#include "simulated_device.hpp"

/// Constants of the model, and a caller's shift function.
namespace fuzz {
namespace {

/// How often the function turns each pair of a key by a right angle: exact in every format, so that the oracle holds the bits.
int32_t quarter_turns(int32_t layer, int32_t from, int32_t to) {
  return static_cast<int32_t>((int64_t{to} - from) * (layer + 1) & 3);
}

float negated(float value) { return -value; }
uint32_t negated(uint32_t bits) { return bits ^ 0x80000000u; }
uint16_t negated(uint16_t bits) { return static_cast<uint16_t>(bits ^ 0x8000u); }

template <class Element>
void turn(int32_t times, Element& a, Element& b) {
  for (; times > 0; --times) a = std::exchange(b, a), a = negated(a);
}

template <class Element>
void turn_in_place(int32_t times, const kvc_tensor& k, int64_t token) {
  auto* data = reinterpret_cast<Element*>(static_cast<char*>(k.data) + k.byte_offset);
  for (int64_t head = 0; head < k.shape[1]; ++head)
    for (int64_t pair = 0; pair < k.shape[2] / 2; ++pair) {
      Element* at = data + token * k.strides[0] + head * k.strides[1] + 2 * pair * k.strides[2];
      turn(times, at[0], at[k.strides[2]]);
    }
}

}  // namespace

void World::bind_attention() {
  if (oracle_.pass_open && oracle_.pass.reserve) return;  // left open by the contract
  const auto layer = static_cast<size_t>(random_.below(setup_.cache.n_layers));
  LayerAttention changed = setup_.attention[layer];
  changed.bound = true;
  changed.desc.softcap = random_.pick({0.0f, 2.0f, 15.0f});
  changed.desc.scale = random_.pick({0.0f, 0.3f, 1.5f});
  const auto index = static_cast<int32_t>(layer);
  Call made = query(Op::bind_attention, {}, "layer " + std::to_string(index));
  const kvc_status expected = oracle_.pass_open ? KVC_E_BAD_STATE : KVC_OK;
  if (expected == KVC_OK) {
    setup_.attention[layer] = changed;
    changed.bind(oracle_.constants[layer]);
  }
  const Door at = door(index);
  judge(made, changed.bind(at.cache, at.layer), expected);
  if (expected == KVC_OK) choose_operators(index);
}

/// Other operators for a layer: what attention returns stays within the same bounds.
void World::choose_operators(int32_t layer) {
  if (support::over_simulated_device()) return;  // it has one
  for (const uint32_t mode : {KVC_MODE_TRAIN, KVC_MODE_PREFILL, KVC_MODE_AUTOREGRESSIVE})
    if (random_.chance(0.5)) choose_operator(layer, mode);
}

void World::choose_operator(int32_t layer, uint32_t mode) {
  kvc_operator_desc desc = KVC_OPERATOR_DESC_INIT;
  const char* name = nullptr;
  switch (random_.below(mode == KVC_MODE_AUTOREGRESSIVE ? 6 : 5)) {
    case 0: break;  // none
    case 1:
      name = "flash";
      desc.block_q = random_.below(40);
      desc.block_k = random_.below(400);
      break;
    case 2:
    case 3:
      name = "vanilla";
      desc.dropout_prob = random_.pick({0.0f, 0.1f, 0.5f, 0.9f});
      desc.softmax_dtype = random_.pick<uint32_t>({KVC_F32, KVC_F64});
      break;
    case 4:
      name = "ring";
      desc.stretches = 1 + random_.below(5);
      desc.flags = random_.chance(0.5) ? uint32_t{KVC_OPERATOR_NO_SCAN} : 0;
      break;
    default: name = "decode"; break;
  }
  kvc_operator* op = nullptr;
  if (name != nullptr && kvc_operator_create(device_, name, &desc, &op) != KVC_OK)
    differ("operator_create: " + support::last_message());
  const Door at = door(layer);
  if (kvc_bind_operator(at.cache, at.layer, at.layer + 1, mode, op) != KVC_OK)
    differ("bind_operator: " + support::last_message());
  if (kvc_operator_destroy(op) != KVC_OK) differ("operator_destroy: " + support::last_message());
  if (mode != KVC_MODE_TRAIN) return;
  const bool drops = name != nullptr && name == std::string("vanilla");
  dropout_[static_cast<size_t>(layer)] = drops ? std::optional<float>(desc.dropout_prob)
                                               : std::nullopt;
}

void World::bind_rope(int32_t layer, const LayerRope& rope) {
  Call made = query(Op::bind_rope, {}, "layer " + std::to_string(layer));
  const kvc_status expected = oracle_.may_bind_rope(rope.model(setup_.cache.head_dim_k));
  if (expected == KVC_OK) {
    const auto index = static_cast<size_t>(layer);
    setup_.rope[index] = rope;
    oracle_.rope[index] = rope.model(setup_.cache.head_dim_k);
  }
  const Door at = door(layer);
  judge(made, rope.bind(at.cache, at.layer), expected);
}

void World::bind_rope() {
  if (oracle_.pass_open && oracle_.pass.reserve) return;  // left open by the contract
  kvc_cache_desc cache = setup_.cache;
  // Rarely one that turns values too, which is refused.
  if (!has_room_for_rope(cache) || random_.chance(0.2)) cache.flags &= ~uint64_t{KVC_CACHE_V_IN_K};
  if (cache.head_dim_k < 2) return;
  bind_rope(random_.below(setup_.cache.n_layers), draw_layer_rope(cache, random_));
}

void World::bind_scales() {
  if (oracle_.pass_open && oracle_.pass.reserve) return;  // left open by the contract
  const int32_t layer = random_.below(setup_.cache.n_layers);
  bind_scales(
      layer, oracle_.storage_k.is_f8() ? random_.chance(0.7) : random_.chance(0.2),
      oracle_.storage_v.is_f8() && !oracle_.v_in_k() ? random_.chance(0.7) : random_.chance(0.2));
}

void World::bind_scales(int32_t layer, bool of_k, bool of_v) {
  const int32_t heads = setup_.cache.n_kv_heads;
  const std::vector<float> k = draw_scales(random_, heads), v = draw_scales(random_, heads);
  Call made = query(Op::bind_scales, {}, "layer " + std::to_string(layer));
  const kvc_status expected = oracle_.may_bind_scales(of_k, of_v);
  const auto first = static_cast<ptrdiff_t>(layer) * heads;
  if (expected == KVC_OK && of_k) std::copy(k.begin(), k.end(), oracle_.scales_k.begin() + first);
  if (expected == KVC_OK && of_v) std::copy(v.begin(), v.end(), oracle_.scales_v.begin() + first);
  const Door at = door(layer);
  judge(made,
        kvc_bind_scales(at.cache, at.layer, at.layer + 1, of_k ? k.data() : nullptr,
                        of_v ? v.data() : nullptr),
        expected);
}

void World::bind_shift(bool takes_away) {
  if (oracle_.pass_open && oracle_.pass.reserve) return;  // left open by the contract
  Call made = query(Op::bind_shift, {}, takes_away ? "null" : "");
  const kvc_status expected = oracle_.may_bind_shift(takes_away);
  if (expected == KVC_OK && takes_away) oracle_.shift.turn = nullptr;
  if (expected == KVC_OK && !takes_away) {
    const int32_t heads = setup_.cache.n_kv_heads, dim = setup_.cache.head_dim_k;
    oracle_.shift.turn = [heads, dim](int32_t layer, int32_t from, int32_t to, float* k) {
      for (int32_t head = 0; head < heads; ++head)
        for (int32_t d = 0; d + 1 < dim; d += 2)
          turn(quarter_turns(layer, from, to), k[head * dim + d], k[head * dim + d + 1]);
    };
  }
  judge(made, kvc_bind_shift(cache_, takes_away ? nullptr : shift_keys, this), expected);
}

/// What the library calls. It may not throw, so what is wrong with the call is said afterwards.
kvc_status World::shift_keys(void* user, int32_t layer, int32_t n, const int32_t* from,
                             const int32_t* to, kvc_tensor* keys) {
  const kvc_tensor view = support::on_host(*keys);
  const kvc_tensor* k = &view;
  auto& world = *static_cast<World*>(user);
  const kvc_cache_desc& cache = world.oracle_.cache;
  if (layer < 0 || layer >= cache.n_layers || n < 1 || k->ndim != 3 || k->shape[0] != n ||
      k->shape[1] != cache.n_kv_heads || k->shape[2] != cache.head_dim_k ||
      k->dtype != cache.dtype_k) {
    world.shift_complaint_ = "the shift function was called with another tensor than promised";
    return KVC_E_INVALID_ARGUMENT;
  }
  if (layer == world.oracle_.shift.refuses_at) return world.oracle_.shift.refusal;
  for (int32_t t = 0; t < n; ++t) {
    world.shifted_[static_cast<size_t>(layer)].push_back({from[t], to[t]});
    const int32_t times = quarter_turns(layer, from[t], to[t]);
    if (k->dtype == KVC_F32)
      turn_in_place<uint32_t>(times, *k, t);
    else
      turn_in_place<uint16_t>(times, *k, t);
  }
  return KVC_OK;
}

/// Which keys move, and whether the function refuses.
void World::expect_removal(int32_t sequence, int32_t begin, int32_t end) {
  oracle_.shift.refuses_at = random_.chance(0.15) ? random_.below(setup_.cache.n_layers) : -1;
  oracle_.shift.refusal = random_.pick<kvc_status>({KVC_E_NOT_FOUND, KVC_E_CACHE_FULL, KVC_E_IO});
  shifted_.resize(static_cast<size_t>(setup_.cache.n_layers));
  for (std::vector<Moved>& layer : shifted_) {
    layer.clear();
    layer.reserve(static_cast<size_t>(oracle_.pool()));  // inside the library nothing may allocate
  }
  shift_complaint_.clear();
  to_be_moved_.clear();
  if (!oracle_.shift.turn || !oracle_.is_sequence(sequence) || begin < 0 || begin >= end) return;
  for (const model::Token& token : oracle_.sequences[static_cast<size_t>(sequence)].tokens)
    if (token.position >= end && begin < oracle_.next(sequence))
      to_be_moved_.push_back({token.position, token.position - (end - begin)});
}

/// It was asked for every key that moves, once in every layer, up to the one that refused, and for no other.
void World::compare_removal(Shifting shifting) {
  if (!shift_complaint_.empty()) differ(shift_complaint_);
  for (int32_t layer = 0; layer < setup_.cache.n_layers; ++layer) {
    const bool reached = shifting == Shifting::all ||
                         (shifting == Shifting::until_refusal && layer < oracle_.shift.refuses_at);
    if (shifted_[static_cast<size_t>(layer)] != (reached ? to_be_moved_ : std::vector<Moved>()))
      differ("the shift function was asked for other keys than those that move");
  }
}

}  // namespace fuzz
