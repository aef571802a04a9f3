#include "fuzz_world.hpp"

#include <algorithm>
#include <sstream>

#include "fuzz_choice.hpp"
#include "message_rules.hpp"

/// Which operation comes next, and with which arguments.
namespace fuzz {
World::World(kvc_device* device, const Setup& setup, const support::Random& random, Coverage& coverage)
    : setup_(setup),
      random_(random),
      coverage_(coverage),
      device_(device),
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
  if (setup_.bind_attention(cache_) != KVC_OK) differ("bind_attention: " + support::last_message());
  setup_.bind_attention(oracle_);
  if (setup_.shift) bind_shift(false);
  if (!poison_first) poison_all();
  compare_all();
}

void World::step() {
  if (oracle_.pass_open)
    step_open();
  else
    step_idle();
}

void World::step_idle() {
  const auto any_layer = [&] { return some_layer(); };
  perform_one(random_, {{400, [&] { begin(draw_batch(), random_.chance(0.3)); }},
                        {20, [&] { begin_reserve(); }},
                        {25, [&] { fits(); }},
                        {20, [&] { can_resume(); }},
                        {25, [&] { resume(); }},
                        {50, [&] { copy_prefix(); }},
                        {40, [&] { reorder(); }},
                        {25, [&] { remove_tail(); }},
                        {60, [&] { remove_middle(); }},
                        {30, [&] { can_remove(); }},
                        {30, [&] { gather(); }},
                        {20, [&] { bind_attention(); }},
                        {12, [&] { bind_rope(); }},
                        {12, [&] { bind_shift(random_.chance(0.3)); }},
                        {3, [&] { poison_by_abort(); }},
                        {2, [&] { poison_by_spare_sequence(); }},
                        // Illegal now.
                        {4, [&] { put(any_layer()); }},
                        {4, [&] { attention(); }},
                        {4, [&] { attention_extra(); }},
                        {4, [&] { put_attention(); }},
                        {4, [&] { get(); }},
                        {4, [&] { mask(); }},
                        {4, [&] { history_range(); }},
                        {4, [&] { set_causal(); }},
                        {4, [&] { commit(); }},
                        {4, [&] { commit_prefix(); }},
                        {4, [&] { abort(); }}});
}

void World::step_open() {
  const bool complete = oracle_.fully_put();
  const int32_t ending = complete ? 6 : 1;
  perform_one(random_, {{complete ? 15 : 200, [&] { put(some_layer()); }},
                        {25, [&] { attention(); }},
                        {15, [&] { attention_extra(); }},
                        {complete ? 10 : 60, [&] { put_attention(); }},
                        {30, [&] { get(); }},
                        {25, [&] { mask(); }},
                        {15, [&] { history_range(); }},
                        {25, [&] { set_causal(); }},
                        {5 * ending, [&] { commit(); }},
                        {6 * ending, [&] { commit_prefix(); }},
                        {5 * ending, [&] { abort(); }},
                        {8 * ending, [&] { begin(draw_batch(), random_.chance(0.3)); }},
                        {5 * ending, [&] { begin_reserve(); }},
                        {12, [&] { fits(); }},
                        {12, [&] { can_resume(); }},
                        {3 * ending, [&] { resume(); }},
                        {4 * ending, [&] { copy_prefix(); }},
                        {3 * ending, [&] { reorder(); }},
                        {3 * ending, [&] { remove_tail(); }},
                        {5 * ending, [&] { remove_middle(); }},
                        {5, [&] { can_remove(); }},
                        {15, [&] { gather(); }},
                        {12, [&] { bind_attention(); }},
                        {12, [&] { bind_rope(); }},
                        {12, [&] { bind_shift(random_.chance(0.5)); }}});
}

// ---- Arguments ---------------------------------------------------------------------------------

int32_t World::odd_number() {
  return random_.pick({-1, -2, INT32_MIN, INT32_MIN + 1, INT32_MAX, INT32_MAX - 1, -1000000,
                       setup_.cache.max_sequences, setup_.cache.n_layers});
}

int32_t World::some_sequence() {
  if (random_.chance(0.02)) return random_.chance(0.5) ? -1 : odd_number();
  return real_sequence();
}

int32_t World::real_sequence() {
  const int32_t first = random_.below(setup_.cache.max_sequences);
  if (!oracle_.sequences[static_cast<size_t>(first)].tokens.empty()) return first;
  return random_.below(setup_.cache.max_sequences);
}

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

int32_t World::some_layer() {
  if (random_.chance(0.01)) return odd_number();
  return random_.below(setup_.cache.n_layers);
}

int32_t World::some_put_layer() {
  const Numbers layers = put_layers();
  const int32_t layer = some_layer();
  if (layers.empty() || random_.chance(0.05)) return layer;
  return layers[static_cast<size_t>(random_.below(static_cast<int32_t>(layers.size())))];
}

// ---- Judging -----------------------------------------------------------------------------------

Circumstances World::circumstances(const Numbers& sequences) const {
  Circumstances met;
  met.open = oracle_.pass_open && !oracle_.pass.reserve;
  met.full = oracle_.used() == oracle_.pool();
  std::vector<int32_t> owners(oracle_.contents.size(), 0);
  for (const model::Sequence& sequence : oracle_.sequences)
    for (const model::Token& token : sequence.tokens) ++owners[static_cast<size_t>(token.content)];
  for (int32_t s = 0; s < setup_.cache.max_sequences; ++s) {
    if (!sequences.empty() && std::find(sequences.begin(), sequences.end(), s) == sequences.end())
      continue;
    const model::Sequence& sequence = oracle_.sequences[static_cast<size_t>(s)];
    met.slid = met.slid || sequence.lost_below > 0;
    for (const model::Token& token : sequence.tokens)
      met.shared = met.shared || owners[static_cast<size_t>(token.content)] > 1;
  }
  return met;
}

World::Call World::call(Op op, const Numbers& sequences, const std::string& arguments) {
  const Circumstances met = circumstances(sequences);
  state_may_change_ = true;
  log_.push_back(std::string(name(op)) + "(" + arguments + ")");
  if (log_.size() > 40) log_.pop_front();
  return {op, met};
}

void World::judge(Call& call, kvc_status status, kvc_status expected) {
  log_.back() += " -> " + support::name(status);
  if (status != expected) {
    std::string message = "status is " + support::name(status);
    if (status != KVC_OK) message += " (" + support::last_message() + ")";
    differ(message + ", expected " + support::name(expected));
  }
  if (status != KVC_OK) {
    const std::string message = support::last_message();
    const std::string fault = support::fault_of(status, message);
    if (!fault.empty()) differ("the message \"" + message + "\": " + fault);
  }
  call.met.full = call.met.full || status == KVC_E_CACHE_FULL;
  ++coverage_.operations;
  coverage_.record(call.op, status == KVC_OK, call.met);
  if (status != KVC_OK) state_may_change_ = false;
  compare_all();
}

void World::differ(const std::string& what) const { throw Difference(what); }

void World::expect_equal(int64_t actual, int64_t expected, const char* what) const {
  if (actual == expected) return;
  differ(std::string(what) + " is " + std::to_string(actual) + ", expected " +
         std::to_string(expected));
}

std::string World::history() const {
  std::ostringstream text;
  text << setup_.describe() << "\nlast operations, the newest at the end:\n";
  for (const std::string& line : log_) text << "  " << line << '\n';
  text << "the oracle then, per sequence (position:content/pending rotation):\n";
  for (size_t s = 0; s < oracle_.sequences.size(); ++s) {
    const model::Sequence& sequence = oracle_.sequences[s];
    text << "  " << s << " next " << sequence.next << " lost_below " << sequence.lost_below << " |";
    for (const model::Token& token : sequence.tokens)
      text << ' ' << token.position << ':' << token.content << '/' << oracle_.pending_rotation(token);
    text << '\n';
  }
  if (oracle_.pass_open) text << "a pass of " << oracle_.pass.n_tokens << " tokens is open\n";
  return text.str();
}

}  // namespace fuzz
