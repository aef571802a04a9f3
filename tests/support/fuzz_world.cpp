#include "fuzz_world.hpp"

#include <algorithm>
#include <sstream>

/// Which operation comes next, and with which arguments.
namespace fuzz {
World::World(kvc_device* device, const Setup& setup, const support::Random& random, Counts& counts)
    : KindWorld(device, random, counts),
      setup_(setup),
      cache_(device, setup.cache, &setup.causal),
      oracle_(setup.cache, setup.causal) {
  if (cache_.status != KVC_OK) differ("create: " + support::last_message());
  const bool poison_first = random_.chance(0.5);
  // Constants are bound to an empty cache, before or after it has held something.
  if (poison_first) poison_all();
  for (int32_t layer = 0; layer < setup_.cache.n_layers; ++layer) {
    const LayerRope rope = setup_.rope[static_cast<size_t>(layer)];
    if (rope.bound) bind_rope(layer, rope);
  }
  dropout_.resize(static_cast<size_t>(setup_.cache.n_layers));
  if (setup_.bind_attention(cache_) != KVC_OK) differ("bind_attention: " + support::last_message());
  setup_.bind_attention(oracle_);
  if (setup_.shift) bind_shift(false);
  for (int32_t layer = 0; layer < setup_.cache.n_layers; ++layer)
    if (random_.chance(0.8))
      bind_scales(layer, oracle_.storage_k.is_f8(), oracle_.storage_v.is_f8() && !oracle_.v_in_k());
  if (!poison_first) poison_all();
  compare_all();
}

std::vector<Choice> World::layer_choices() {
  const bool open = oracle_.pass_open, complete = is_complete();
  const auto weight = [&](int32_t idle, int32_t in_pass) { return open ? in_pass : idle; };
  return {{weight(4, complete ? 15 : 200), [this] { put(some_layer()); }},
          {weight(4, complete ? 10 : 60), [this] { put_attention(); }},
          {weight(4, 25), [this] { attention(); }},
          {weight(4, 15), [this] { attention_extra(); }},
          {weight(4, 20), [this] { get(); }},
          {weight(4, 15), [this] { get_codes(); }},
          {weight(4, 20), [this] { get_copy(); }},
          {weight(4, complete ? 8 : 30), [this] { put_drawn_codes(some_layer()); }},
          {weight(4, 25), [this] { mask(); }},
          {weight(4, 15), [this] { history_range(); }},
          {weight(30, 15), [this] { gather(); }},
          {weight(20, 12), [this] { bind_attention(); }},
          {12, [this] { bind_rope(); }},
          {12, [this] { bind_scales(); }},
          {12, [this] { bind_shift(random_.chance(oracle_.pass_open ? 0.5 : 0.3)); }}};
}

std::vector<Choice> World::more_choices() {
  return {{oracle_.pass_open ? 25 : 4, [this] { set_causal(); }},
          {oracle_.pass_open ? 0 : 2, [this] { poison_by_spare_sequence(); }}};
}

// ---- Arguments ---------------------------------------------------------------------------------

int32_t World::some_position(int32_t sequence) {
  if (sequence < 0 || sequence >= setup_.cache.max_sequences) return random_.below(20);
  const model::Sequence& held = oracle_.sequences[static_cast<size_t>(sequence)];
  const auto count = static_cast<int32_t>(held.tokens.size());
  const int32_t near = random_.below(3) - 1;
  switch (random_.below(8)) {
    case 0: return std::max(0, held.lost_below + near);
    case 1: return std::max(0, held.next - random_.below(3));
    case 2: return std::max(0, setup_.causal.keep_first + near);
    case 3: return random_.below(6);
    default: break;
  }
  if (count == 0) return random_.below(std::min(held.next, 1000) + 1);
  return std::max(0, held.tokens[static_cast<size_t>(random_.below(count))].position + near);
}

int32_t World::q_heads(int32_t layer) {
  const model::Constants& constants = oracle_.constants[static_cast<size_t>(layer)];
  if (constants.n_q_heads > 0) return constants.n_q_heads;
  const int32_t heads = setup_.cache.n_kv_heads;
  return heads * random_.between(1, setup_.cache.max_q_heads / heads);
}

std::vector<int32_t> World::put_layers() const {
  Numbers layers;
  for (int32_t layer = 0; layer < setup_.cache.n_layers; ++layer)
    if (oracle_.pass_open && (oracle_.pass.reserve || oracle_.pass.put[static_cast<size_t>(layer)]))
      layers.push_back(layer);
  return layers;
}

int32_t World::some_put_layer() {
  const Numbers layers = put_layers();
  const int32_t layer = some_layer();
  if (layers.empty() || random_.chance(0.05)) return layer;
  return layers[static_cast<size_t>(random_.below(static_cast<int32_t>(layers.size())))];
}

// ---- What an operation meets -------------------------------------------------------------------

Met World::circumstances(const Numbers& sequences) const {
  std::vector<int32_t> owners(oracle_.contents.size(), 0);
  for (const model::Sequence& sequence : oracle_.sequences)
    for (const model::Token& token : sequence.tokens) ++owners[static_cast<size_t>(token.content)];
  bool shared = false, slid = false;
  for (int32_t s = 0; s < setup_.cache.max_sequences; ++s) {
    if (!sequences.empty() && std::find(sequences.begin(), sequences.end(), s) == sequences.end())
      continue;
    const model::Sequence& sequence = oracle_.sequences[static_cast<size_t>(s)];
    slid = slid || sequence.lost_below > 0;
    for (const model::Token& token : sequence.tokens)
      shared = shared || owners[static_cast<size_t>(token.content)] > 1;
  }
  const bool full = oracle_.used() == oracle_.pool();
  return {shared, slid, full, oracle_.pass_open && !oracle_.pass.reserve};
}

void World::note_status(Met& met, kvc_status status) const {
  met[2] = met[2] || status == KVC_E_CACHE_FULL;
}

std::string World::describe() const {
  std::ostringstream text;
  text << setup_.describe() << "\nthe oracle, per sequence (position:content/pending rotation):\n";
  for (size_t s = 0; s < oracle_.sequences.size(); ++s) {
    const model::Sequence& sequence = oracle_.sequences[s];
    text << "  " << s << " next " << sequence.next << " lost_below " << sequence.lost_below << " |";
    for (const model::Token& token : sequence.tokens)
      text << ' ' << token.position << ':' << token.content << '/' << oracle_.pending_rotation(token);
    text << '\n';
  }
  return text.str();
}

}  // namespace fuzz
