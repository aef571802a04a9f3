#include "state_world.hpp"

#include <algorithm>
#include <map>
#include <sstream>

namespace fuzz {

const std::vector<std::string>& state_setup_names() {
  static const std::vector<std::string> all = {"any", "approximate", "drafts", "few_checkpoints",
                                               "strict"};
  return all;
}

int32_t StateWorld::some_position(int32_t sequence) {
  if (!oracle().is_sequence(sequence)) return random_.below(20);
  const model::RecurrentSequence& held = oracle().sequences[static_cast<size_t>(sequence)];
  const auto n = static_cast<int32_t>(held.checkpoints.size());
  const int32_t near = random_.below(3) - 1;
  switch (random_.below(6)) {
    case 0: return std::max(0, held.next - random_.below(3));
    case 1: return random_.below(4);
    case 2:
    case 3:
      if (n > 0)
        return std::max(0, held.checkpoints[static_cast<size_t>(random_.below(n))].at + near);
      break;
    default: break;
  }
  return random_.below(std::min(held.next, 1000) + 1);
}

void StateWorld::checkpoint_list(int32_t sequence, int32_t capacity) {
  Call made = query(Op::checkpoint_list, {sequence},
                    "sequence " + std::to_string(sequence) + " capacity " + std::to_string(capacity));
  Numbers at(static_cast<size_t>(std::max(capacity, 0)) + 1, -7);
  int32_t n = -7;
  const kvc_status status = kvc_checkpoint_list(door_of_kind(sequence), sequence, capacity,
                                                at.data(), &n);
  const bool legal = oracle().is_sequence(sequence) && capacity >= 0;
  if (status == KVC_OK && legal) {
    const auto& wanted = oracle().sequences[static_cast<size_t>(sequence)].checkpoints;
    expect_equal(n, static_cast<int64_t>(wanted.size()), "checkpoints");
    for (int32_t i = 0; i <= capacity; ++i) {
      const bool written = i < n && i < capacity;
      expect_equal(at[static_cast<size_t>(i)], written ? wanted[static_cast<size_t>(i)].at : -7,
                   "a checkpoint");
    }
  }
  judge(made, status, legal ? KVC_OK : KVC_E_INVALID_ARGUMENT);
}

void StateWorld::compare_kind() {
  for (int32_t s = 0; s < n_sequences(); ++s) {
    const auto& wanted = oracle().sequences[static_cast<size_t>(s)].checkpoints;
    Numbers at(wanted.size() + 1);
    int32_t n = -7;
    if (kvc_checkpoint_list(handle(), s, static_cast<int32_t>(at.size()), at.data(), &n) != KVC_OK)
      differ("checkpoint_list: " + support::last_message());
    expect_equal(n, static_cast<int64_t>(wanted.size()), "checkpoints");
    for (size_t i = 0; i < wanted.size(); ++i)
      expect_equal(at[i], wanted[i].at, "place of a checkpoint");
  }
  if (random_.chance(0.2)) compare_contents();
}

void StateWorld::compare_cells(const kvc_stats& stats) const {
  expect_equal(static_cast<int64_t>(stats.cells), oracle().n_slots(), "slots");
  if (stats.cells_used > stats.cells || stats.cells_shared > stats.cells_used)
    differ("more slots are used than there are");
}

/// An empty cache: every sequence takes as many checkpoints of NaN as it can, then all are given up.
void StateWorld::poison_all() {
  const int32_t n = std::max(oracle().most_checkpoints(), 0) + 1;
  for (int32_t s = 0; s < n_sequences(); ++s)
    for (int32_t position = 0; position < n; ++position) {
      if (kvc_begin(cache_, 1, &position, &s, nullptr, 0, nullptr) != KVC_OK)
        differ("begin: " + support::last_message());
      Batch batch;
      batch.n = 1;
      put_nan(batch);
      if (kvc_commit(cache_) != KVC_OK) differ("commit: " + support::last_message());
      if (n > 1 && kvc_checkpoint_take(cache_, s) != KVC_OK)
        differ("checkpoint_take: " + support::last_message());
    }
  for (int32_t s = 0; s < n_sequences(); ++s)
    if (kvc_remove(cache_, s, 0, KVC_SEQ_END) != KVC_OK)
      differ("remove: " + support::last_message());
  oracle().passes = support::stats(cache_).passes;
  ++counts_.poisonings;
}

// ---- What an operation meets -------------------------------------------------------------------

Met StateWorld::circumstances(const Numbers& sequences) const {
  std::map<int32_t, int32_t> owners;
  for (const model::RecurrentSequence& sequence : oracle().sequences) {
    if (sequence.next > 0) ++owners[sequence.state];
    for (const model::Checkpoint& each : sequence.checkpoints) ++owners[each.state];
  }
  bool shared = false, full = false, approximate = false;
  for (int32_t s = 0; s < n_sequences(); ++s) {
    if (!sequences.empty() && std::find(sequences.begin(), sequences.end(), s) == sequences.end())
      continue;
    const model::RecurrentSequence& sequence = oracle().sequences[static_cast<size_t>(s)];
    shared = shared || (sequence.next > 0 && owners[sequence.state] > 1);
    for (const model::Checkpoint& each : sequence.checkpoints)
      shared = shared || owners[each.state] > 1;
    full = full || static_cast<int32_t>(sequence.checkpoints.size()) == oracle().most_checkpoints();
    approximate = approximate || sequence.approximate;
  }
  return {shared, full, approximate, has_drafts(), oracle().pass_open && !oracle().batch().reserve};
}

std::string StateWorld::describe() const {
  std::ostringstream text;
  text << describe_setup() << "\nthe oracle, per sequence (checkpoints as at:state):\n";
  for (size_t s = 0; s < oracle().sequences.size(); ++s) {
    const model::RecurrentSequence& sequence = oracle().sequences[s];
    text << "  " << s << " next " << sequence.next << " state " << sequence.state
         << (sequence.approximate ? " approximate" : "") << " |";
    for (const model::Checkpoint& each : sequence.checkpoints)
      text << ' ' << each.at << ':' << each.state << (each.approximate ? "~" : "");
    text << '\n';
  }
  return text.str();
}

}  // namespace fuzz
