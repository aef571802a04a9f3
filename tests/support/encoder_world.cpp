#include "encoder_world.hpp"

#include <algorithm>
#include <sstream>

#include "fuzz_choice.hpp"
#include "message_rules.hpp"

/// Which operation comes next and with which arguments, and whether its status is right.
namespace fuzz {

EncoderWorld::EncoderWorld(kvc_device* device, const EncoderSetup& setup,
                           const support::Random& random, EncoderCoverage& coverage)
    : setup_(setup),
      random_(random),
      coverage_(coverage),
      device_(device),
      oracle_(setup.cache, setup.encoder) {
  cache_.status = kvc_cache_create(device, &setup.cache, &setup.encoder, &cache_.handle);
  if (cache_.status != KVC_OK) differ("create: " + support::last_message());
  for (int32_t layer = 0; layer < setup_.cache.n_layers; ++layer) {
    const LayerAttention& constants = setup_.attention[static_cast<size_t>(layer)];
    if (!constants.bound) continue;
    if (constants.bind(cache_, layer) != KVC_OK)
      differ("bind_attention: " + support::last_message());
    constants.bind(oracle_.constants[static_cast<size_t>(layer)]);
  }
  compare_all();
  poison();
}

void EncoderWorld::step() {
  const bool open = oracle_.pass_open, complete = open && oracle_.fully_put();
  // An unfinished pass is mostly put; a finished one mostly ended; what is illegal is tried now and then.
  const int32_t put = !open ? 4 : complete ? 12 : 90;
  const int32_t work = open ? 30 : 4;
  const int32_t end = !open ? 4 : complete ? 30 : 5;
  const int32_t sequences = open && !complete ? 4 : 20;
  perform_one(random_, {{open && !complete ? 10 : 120, [&] { begin(); }},
                        {open && !complete ? 2 : 10, [&] { begin_reserve(); }},
                        {12, [&] { fits(); }},
                        {put, [&] { this->put(); }},
                        {2 * put, [&] { encoder_put(); }},
                        {put, [&] { put_attention(); }},
                        {work, [&] { share(); }},
                        {2 * work, [&] { attention(); }},
                        {work, [&] { get(); }},
                        {work, [&] { mask(); }},
                        {work / 2, [&] { history_range(); }},
                        {15, [&] { gather(); }},
                        {end, [&] { commit(); }},
                        {end, [&] { commit_prefix(); }},
                        {end, [&] { abort(); }},
                        {10, [&] { can_resume(); }},
                        {sequences, [&] { resume(); }},
                        {2 * sequences, [&] { copy_prefix(); }},
                        {sequences, [&] { reorder(); }},
                        {sequences, [&] { remove(EncoderOp::remove_tail); }},
                        {2 * sequences, [&] { remove(EncoderOp::remove_middle); }},
                        {12, [&] { remove(EncoderOp::can_remove); }},
                        {8, [&] { bind_attention(); }},
                        {6, [&] { lacking(); }},
                        {open ? 0 : 3, [&] { poison(); }},
                        {open ? 0 : 2, [&] { compare_rebuilt(); }}});
}

void EncoderWorld::finish() {
  compare_contents();
  if (!oracle_.pass_open) compare_rebuilt();
}

// ---- Arguments -------------------------------------------------------------------------------------------------

int32_t EncoderWorld::odd_number() {
  return random_.pick({-1, -2, INT32_MIN, INT32_MIN + 1, INT32_MAX, INT32_MAX - 1, -1000000,
                       setup_.cache.max_sequences, setup_.cache.n_layers});
}

int32_t EncoderWorld::some_sequence() {
  return random_.chance(0.02) ? odd_number() : random_.below(setup_.cache.max_sequences);
}

int32_t EncoderWorld::some_layer() {
  return random_.chance(0.01) ? odd_number() : random_.below(setup_.cache.n_layers);
}

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
  if (random_.chance(0.02)) return odd_number();
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

// ---- Judging ---------------------------------------------------------------------------------------------------

EncoderCircumstances EncoderWorld::circumstances() const {
  EncoderCircumstances met;
  met.open = oracle_.pass_open && !oracle_.pass.reserve;
  met.full = oracle_.slots_used() == oracle_.slots();
  met.shared = oracle_.shared() > 0;
  return met;
}

EncoderWorld::Call EncoderWorld::call(EncoderOp op, const std::string& arguments) {
  state_may_change_ = true;
  log_.push_back(std::string(name(op)) + "(" + arguments + ")");
  if (log_.size() > 40) log_.pop_front();
  return {op, circumstances()};
}

void EncoderWorld::judge(Call& call, kvc_status status, kvc_status expected) {
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
  const bool lacks = call.op == EncoderOp::lacking;
  ++coverage_.operations;
  coverage_.record(call.op, lacks ? status == KVC_E_NOT_SUPPORTED : status == KVC_OK, call.met);
  if (status != KVC_OK) state_may_change_ = false;
  compare_all();
}

void EncoderWorld::differ(const std::string& what) const { throw Difference(what); }

void EncoderWorld::expect_equal(int64_t actual, int64_t expected, const char* what) const {
  if (actual == expected) return;
  differ(std::string(what) + " is " + std::to_string(actual) + ", expected " +
         std::to_string(expected));
}

std::string EncoderWorld::history() const {
  std::ostringstream text;
  text << setup_.describe() << "\nlast operations, the newest at the end:\n";
  for (const std::string& line : log_) text << "  " << line << '\n';
  text << "the oracle then, per sequence:\n";
  for (size_t s = 0; s < oracle_.sequences.size(); ++s) {
    const model::EncoderSequence& sequence = oracle_.sequences[s];
    text << "  " << s << " next " << sequence.next << " input " << sequence.input << " at "
         << sequence.at << " first " << sequence.first << " length "
         << oracle_.length(static_cast<int32_t>(s)) << '\n';
  }
  if (oracle_.pass_open) text << "a pass of " << oracle_.pass.n_tokens << " tokens is open\n";
  return text.str();
}

}  // namespace fuzz
