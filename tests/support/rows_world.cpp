#include "rows_world.hpp"

#include <algorithm>
#include <sstream>

/// Which operation comes next and with which arguments.
namespace fuzz {

RowsWorld::RowsWorld(kvc_device* device, const RowsSetup& setup, const support::Random& random,
                     Counts& counts)
    : AttentionWorld(device, random, counts), setup_(setup), oracle_(setup.cache, setup.transformer) {
  cache_.status = kvc_cache_create(device, &setup.cache, &setup.transformer, &cache_.handle);
  if (cache_.status != KVC_OK) differ("create: " + support::last_message());
  for (int32_t layer = 0; layer < n_layers(); ++layer) {
    const LayerAttention& constants = setup_.attention[static_cast<size_t>(layer)];
    if (!constants.bound) continue;
    if (constants.bind(cache_, layer) != KVC_OK)
      differ("bind_attention: " + support::last_message());
    constants.bind(oracle_.constants[static_cast<size_t>(layer)]);
  }
  for (int32_t layer = 0; layer < n_layers(); ++layer)
    if (random_.chance(0.8))
      bind_scales(layer, oracle_.storage_k.is_f8(), oracle_.storage_v.is_f8() && !oracle_.v_in_k());
  compare_all();
  poison_by_abort();
}

std::vector<Choice> RowsWorld::layer_choices() {
  const bool open = oracle_.pass_open;
  const int32_t put = !open ? 10 : is_complete() ? 30 : 160;
  const int32_t work = open ? 40 : 10;
  return {{put, [this] { this->put(); }},
          {put, [this] { put_attention(); }},
          {put, [this] { put_codes(); }},
          {2 * work, [this] { attention(); }},
          {work, [this] { get(); }},
          {work, [this] { get_codes(); }},
          {work, [this] { get_copy(); }},
          {work, [this] { mask(); }},
          {work / 2, [this] { history_range(); }},
          {20, [this] { view(); }},
          {20, [this] { gather(); }},
          {open ? 6 : 60, [this] { rows_fill(); }},
          {20, [this] { bind_attention(); }},
          {15,
           [this] {
             bind_scales(random_.below(n_layers()),
                         random_.chance(oracle_.storage_k.is_f8() ? 0.7 : 0.2),
                         random_.chance(oracle_.storage_v.is_f8() ? 0.7 : 0.2));
           }},
          {15, [this] { lacking(); }}};
}

std::vector<Choice> RowsWorld::more_choices() {
  const bool open = oracle_.pass_open;
  const int32_t ending = !open ? 0 : is_complete() ? 6 : 1;
  return {{open ? 0 : 6, [this] { compare_rebuilt(); }},
          {open ? 20 : 4, [this] { set_causal(); }},
          {open ? 5 * ending : 90, [this] { rows_set(); }},
          {open ? 2 * ending : 25, [this] { insert(); }}};
}

// ---- Arguments ---------------------------------------------------------------------------------------------------------------

int32_t RowsWorld::some_put_layer() {
  int32_t layer = some_layer();
  for (int32_t tries = 0; tries < 4 && oracle_.needs_put(layer) != KVC_OK; ++tries)
    layer = some_layer();
  return layer;
}

int32_t RowsWorld::missing_layer() {
  int32_t layer = some_layer();
  for (int32_t tries = 0; tries < 3 && oracle_.needs_put(layer) == KVC_OK; ++tries)
    layer = some_layer();
  return layer;
}

int32_t RowsWorld::some_position(int32_t sequence) {
  if (!oracle_.is_sequence(sequence)) return random_.below(20);
  const model::Info info = oracle_.info(sequence);
  switch (random_.below(6)) {
    case 0: return std::max(0, info.lost_below + oracle_.reach + random_.below(3) - 1);
    case 1: return std::max(0, info.first + random_.below(3) - 1);
    case 2: return std::max(0, info.next - random_.below(3));
    case 3: return random_.below(4);
    default: return info.first + random_.below(info.next - info.first + 1);
  }
}

int32_t RowsWorld::q_heads(int32_t layer) {
  const int32_t heads = setup_.cache.n_kv_heads;
  if (layer < 0 || layer >= n_layers()) return heads;
  const model::Constants& constants = oracle_.constants[static_cast<size_t>(layer)];
  if (constants.n_q_heads > 0) return constants.n_q_heads;
  return heads * random_.between(1, setup_.cache.max_q_heads / heads);
}

int32_t RowsWorld::room(int32_t row) const {
  return oracle_.is_ring() ? oracle_.q_max() : setup_.cache.capacity - oracle_.next(row);
}

// ---- What an operation meets -------------------------------------------------------------------------------------------------

Met RowsWorld::circumstances(const Numbers&) const {
  const auto any = [&](const auto& is) {
    return std::any_of(oracle_.sequences.begin(), oracle_.sequences.end(), is);
  };
  const std::vector<int32_t>& tokens = oracle_.pass.sequence;
  const bool padded = std::find(tokens.begin(), tokens.end(), KVC_NONE) != tokens.end();
  return {padded || any([](const model::Row& row) { return row.starts > 0; }),
          any([](const model::Row& row) { return row.lost_below > 0; }),
          any([&](const model::Row& row) { return row.next == setup_.cache.capacity; }),
          oracle_.pass_open && !oracle_.pass.reserve};
}

std::string RowsWorld::describe() const {
  std::ostringstream text;
  text << setup_.describe() << "\nthe oracle, per row:\n";
  for (int32_t s = 0; s < n_sequences(); ++s) {
    const model::Info info = oracle_.info(s);
    text << "  " << s << " index " << info.next << " starts "
         << oracle_.sequences[static_cast<size_t>(s)].starts << " first " << info.first << " count "
         << info.count << " lost_below " << info.lost_below << '\n';
  }
  return text.str();
}

}  // namespace fuzz
