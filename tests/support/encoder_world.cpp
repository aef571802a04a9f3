#include "encoder_world.hpp"

#include <algorithm>
#include <sstream>

/// Which operation comes next and with which arguments.
namespace fuzz {

EncoderWorld::EncoderWorld(kvc_device* device, const EncoderSetup& setup,
                           const support::Random& random, Counts& counts)
    : AttentionWorld(device, random, counts), setup_(setup), oracle_(setup.cache, setup.encoder) {
  cache_.status = kvc_cache_create(device, &setup.cache, &setup.encoder, &cache_.handle);
  if (cache_.status != KVC_OK) differ("create: " + support::last_message());
  for (int32_t layer = 0; layer < setup_.cache.n_layers; ++layer) {
    const LayerAttention& constants = setup_.attention[static_cast<size_t>(layer)];
    if (!constants.bound) continue;
    if (constants.bind(cache_, layer) != KVC_OK)
      differ("bind_attention: " + support::last_message());
    constants.bind(oracle_.constants[static_cast<size_t>(layer)]);
  }
  for (int32_t layer = 0; layer < setup_.cache.n_layers; ++layer)
    if (random_.chance(0.8))
      bind_scales(layer, oracle_.storage_k.is_f8(), oracle_.storage_v.is_f8());
  compare_all();
  poison_by_abort();
}

std::vector<Choice> EncoderWorld::layer_choices() {
  const bool open = oracle_.pass_open;
  const int32_t put = !open ? 10 : is_complete() ? 30 : 120;
  const int32_t work = open ? 40 : 10;
  return {{put, [this] { this->put(); }},
          {2 * put, [this] { encoder_put(); }},
          {put, [this] { put_attention(); }},
          {work, [this] { share(); }},
          {2 * work, [this] { attention(); }},
          {work, [this] { get(); }},
          {work, [this] { mask(); }},
          {work / 2, [this] { history_range(); }},
          {30, [this] { gather(); }},
          {20, [this] { bind_attention(); }},
          {put, [this] { put_codes(); }},
          {work, [this] { get_codes(); }},
          {work, [this] { get_copy(); }},
          {15,
           [this] {
             bind_scales(random_.below(setup_.cache.n_layers),
                         random_.chance(oracle_.storage_k.is_f8() ? 0.7 : 0.2),
                         random_.chance(oracle_.storage_v.is_f8() ? 0.7 : 0.2));
           }},
          {15, [this] { lacking(); }}};
}

std::vector<Choice> EncoderWorld::more_choices() {
  return {{oracle_.pass_open ? 0 : 6, [this] { compare_rebuilt(); }}};
}

// ---- Arguments -------------------------------------------------------------------------------------------------

int32_t EncoderWorld::some_put_layer() {
  int32_t layer = some_layer();
  for (int32_t tries = 0; tries < 4 && oracle_.needs_put(layer) != KVC_OK; ++tries)
    layer = some_layer();
  return layer;
}

int32_t EncoderWorld::missing_layer(int32_t sequence) {
  int32_t layer = some_layer();
  if (!oracle_.pass_open || oracle_.pass.carries.count(sequence) == 0) return layer;
  const int32_t input = oracle_.sequences[static_cast<size_t>(sequence)].input;
  const std::vector<char>& put = oracle_.inputs[static_cast<size_t>(input)].put;
  for (int32_t tries = 0; tries < 3; ++tries) {
    if (layer < 0 || layer >= setup_.cache.n_layers || !put[static_cast<size_t>(layer)]) break;
    layer = some_layer();
  }
  return layer;
}

int32_t EncoderWorld::some_position(int32_t sequence) {
  if (sequence < 0 || sequence >= setup_.cache.max_sequences) return random_.below(20);
  const model::EncoderSequence& held = oracle_.sequences[static_cast<size_t>(sequence)];
  const int32_t near = random_.below(3) - 1;
  switch (random_.below(6)) {
    case 0: return std::max(0, held.at + near);
    case 1: return std::max(0, held.first + near);
    case 2: return std::max(0, held.next - random_.below(3));
    case 3: return random_.below(4);
    default: return random_.below(std::min(held.next, 1000) + 1);
  }
}

int32_t EncoderWorld::carrying_sequence() {
  const auto& carries = oracle_.pass.carries;
  if (!oracle_.pass_open || carries.empty() || random_.chance(0.05)) return some_sequence();
  return std::next(carries.begin(), random_.below(static_cast<int32_t>(carries.size())))->first;
}

/// Of an input: what it has, rarely another.
int32_t EncoderWorld::some_length(int32_t sequence) {
  const bool exists = sequence >= 0 && sequence < setup_.cache.max_sequences;
  const int32_t has = exists ? oracle_.length(sequence) : 0;
  if (has > 0 && oracle_.pass_open && random_.chance(0.95)) return has;
  if (random_.chance(0.04)) return random_.chance(0.5) ? 0 : setup_.cache.capacity + 1;
  return random_.between(1, setup_.cache.capacity);
}

int32_t EncoderWorld::q_heads(int32_t layer) {
  const int32_t heads = setup_.cache.n_kv_heads;
  if (layer < 0 || layer >= setup_.cache.n_layers) return heads;
  const model::Constants& constants = oracle_.constants[static_cast<size_t>(layer)];
  if (constants.n_q_heads > 0) return constants.n_q_heads;
  return heads * random_.between(1, setup_.cache.max_q_heads / heads);
}

// ---- What an operation meets -----------------------------------------------------------------------------------

Met EncoderWorld::circumstances(const Numbers&) const {
  return {oracle_.shared() > 0, oracle_.slots_used() == oracle_.slots(),
          oracle_.pass_open && !oracle_.pass.reserve};
}

std::string EncoderWorld::describe() const {
  std::ostringstream text;
  text << setup_.describe() << "\nthe oracle, per sequence:\n";
  for (size_t s = 0; s < oracle_.sequences.size(); ++s) {
    const model::EncoderSequence& sequence = oracle_.sequences[s];
    text << "  " << s << " next " << sequence.next << " input " << sequence.input << " at "
         << sequence.at << " first " << sequence.first << " length "
         << oracle_.length(static_cast<int32_t>(s)) << '\n';
  }
  return text.str();
}

}  // namespace fuzz
