#include "fuzz_kind.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <sstream>

#include "message_rules.hpp"

/// Which operation comes next, and whether its status is right.
namespace fuzz {

std::string text(const Numbers& numbers) {
  std::ostringstream result;
  result << "[";
  for (const int32_t number : numbers) result << ' ' << number;
  result << " ]";
  return result.str();
}

bool same(double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); }

/// Folds a word in. Two lanes of multiply and rotate: no secret, only no accident.
void fold(Hash& hash, uint64_t word) {
  hash.first = std::rotl((hash.first ^ word) * 0x9e3779b97f4a7c15ull, 29);
  hash.second = std::rotl((hash.second + word) * 0xc2b2ae3d27d4eb4full, 31) ^ word;
}

void fold(Hash& hash, const Hash& other) {
  fold(hash, other.first);
  fold(hash, other.second);
}

// ---- Choosing ----------------------------------------------------------------------------------

void KindWorld::step() {
  std::vector<Choice> choices = sequence_choices();
  for (const std::vector<Choice>& more : {layer_choices(), more_choices()})
    choices.insert(choices.end(), more.begin(), more.end());
  perform_one(random_, choices);
}

/// An unfinished pass is mostly put; a finished one mostly ended; what is illegal is tried now and then.
std::vector<Choice> KindWorld::sequence_choices() {
  const bool open = oracle().pass_open;
  const int32_t ending = !open ? 0 : is_complete() ? 6 : 1;
  const auto weight = [&](int32_t idle, int32_t in_pass) { return open ? in_pass * ending : idle; };
  const bool has_checkpoints = oracle().has_checkpoints();
  return {{weight(400, 8), [this] { begin_drawn(); }},
          {weight(20, 5), [this] { begin_reserve(); }},
          {open ? 12 : 25, [this] { fits(); }},
          {weight(4, 5), [this] { commit(); }},
          {weight(4, 6), [this] { commit_prefix(); }},
          {weight(4, 5), [this] { abort(); }},
          {open ? 12 : 20, [this] { can_resume(); }},
          {weight(25, 3), [this] { resume(); }},
          {weight(50, 4), [this] { copy_prefix(); }},
          {weight(40, 3), [this] { reorder(); }},
          {weight(25, 3), [this] { remove_tail(); }},
          {weight(60, 5), [this] { remove_middle(); }},
          {open ? 5 : 30, [this] { can_remove(); }},
          {has_checkpoints ? weight(30, 3) : 0, [this] { checkpoint_take(); }},
          {open ? 0 : 3, [this] { poison_by_abort(); }}};
}

void KindWorld::finish() {
  compare_contents();
  if (!oracle().pass_open) compare_rebuilt();
}

// ---- In a wrapper ------------------------------------------------------------------------------

void KindWorld::wrapped_by(kvc_cache* wrapper, int32_t first_layer, int32_t n_sequences, bool is_only) {
  wrapper_ = wrapper;
  first_layer_ = first_layer;
  wrapper_sequences_ = n_sequences;
  is_only_ = is_only;
}

void KindWorld::compare_after(bool state_may_change) {
  state_may_change_ = state_may_change;
  compare_all();
}

/// Sequences that other children lack are the child's own.
KindWorld::Door KindWorld::door(int32_t layer, int32_t sequence) {
  const bool exists = layer >= 0 && layer < n_layers();
  const bool own = oracle().is_sequence(sequence) && sequence >= wrapper_sequences_;
  const bool through = wrapper_ && exists && !own && random_.chance(0.5);
  return through ? Door{wrapper_, first_layer_ + layer} : Door{handle(), layer};
}

kvc_cache* KindWorld::door_of_kind(int32_t sequence) {
  const bool own = oracle().is_sequence(sequence) && sequence >= wrapper_sequences_;
  return wrapper_ && is_only_ && !own && random_.chance(0.5) ? wrapper_ : handle();
}

// ---- Arguments ---------------------------------------------------------------------------------

int32_t KindWorld::odd_number() {
  return random_.pick({-1, -2, INT32_MIN, INT32_MIN + 1, INT32_MAX, INT32_MAX - 1, -1000000,
                       n_sequences(), n_layers()});
}

int32_t KindWorld::some_sequence() {
  if (random_.chance(0.02)) return random_.chance(0.5) ? -1 : odd_number();
  return real_sequence();
}

int32_t KindWorld::real_sequence() {
  const int32_t first = random_.below(n_sequences());
  return oracle().next(first) > 0 ? first : random_.below(n_sequences());
}

int32_t KindWorld::some_layer() {
  return random_.chance(0.01) ? odd_number() : random_.below(n_layers());
}

void KindWorld::fill_values(support::Array& array) {
  array.fill(random_);
  if (random_.chance(0.97) || array.count() == 0) return;
  // Beyond f16, infinite, tiny, between two neighbours of a 16-bit type.
  const double special = random_.pick({1e6, -70000.0, 65519.9, HUGE_VAL, -0.0, 1e-7, 6e-8, 1e-40,
                                       1.00048828125, 1.00390625, 3.4e38});
  array.set(random_.below(static_cast<int32_t>(array.count())), special);
}

/// NaN in the rows of padding tokens: they are never read.
void KindWorld::spoil_padding(support::Array& array) {
  const model::Batch& batch = oracle().batch();
  if (!oracle().pass_open || batch.sequence.empty()) return;
  const int64_t row = array.count() / batch.n_tokens;
  for (size_t t = 0; t < batch.sequence.size(); ++t) {
    if (batch.sequence[t] != KVC_NONE) continue;
    for (int64_t i = 0; i < row; ++i) array.set(static_cast<int64_t>(t) * row + i, std::nan(""));
  }
}

// ---- Judging -----------------------------------------------------------------------------------

KindWorld::Call KindWorld::call(Op op, const Numbers& sequences, const std::string& arguments) {
  state_may_change_ = true;
  log_.push_back(std::string(name(op)) + "(" + arguments + ")");
  if (log_.size() > 40) log_.pop_front();
  return {op, circumstances(sequences)};
}

KindWorld::Call KindWorld::query(Op op, const Numbers& sequences, const std::string& arguments) {
  Call made = call(op, sequences, arguments);
  state_may_change_ = false;
  return made;
}

void KindWorld::judge(Call& call, kvc_status status, kvc_status expected) {
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
  note_status(call.met, status);
  const kvc_status success = call.op == Op::lacking   ? KVC_E_NOT_SUPPORTED
                             : call.op == Op::refused ? KVC_E_BAD_STATE
                                                      : KVC_OK;
  ++counts_.operations;
  counts_.record(call.op, status == success, call.met);
  if (status != KVC_OK) state_may_change_ = false;
  compare_all();
}

void KindWorld::differ(const std::string& what) const { throw Difference(what); }

void KindWorld::expect_equal(int64_t actual, int64_t expected, const char* what) const {
  if (actual == expected) return;
  differ(std::string(what) + " is " + std::to_string(actual) + ", expected " +
         std::to_string(expected));
}

std::string KindWorld::history() const {
  std::ostringstream text;
  text << "last operations, the newest at the end:\n";
  for (const std::string& line : log_) text << "  " << line << '\n';
  text << describe();
  const model::Batch& batch = oracle().batch();
  if (oracle().pass_open)
    text << "a pass of " << batch.n_tokens << " tokens is open: sequence "
         << fuzz::text(batch.sequence) << " position " << fuzz::text(batch.position) << '\n';
  return text.str();
}

}  // namespace fuzz
