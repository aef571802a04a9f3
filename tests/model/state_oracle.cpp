#include "state_oracle.hpp"

#include <limits>

namespace model {
namespace {

int32_t either(int32_t given, int32_t otherwise) { return given == 0 ? otherwise : given; }

}  // namespace

StateOracle::StateOracle(const kvc_cache_desc& cache_desc, const Rules& rules)
    : ListKind(cache_desc), rules_(rules) {
  rules_.checkpoints = either(rules.checkpoints, 24);
  rules_.interval = either(rules.interval, 1664);
  rules_.min_pos = either(rules.min_pos, 16);
  if (rules_.min_pos == KVC_NONE) rules_.min_pos = 0;
}

Info StateOracle::info(int32_t s) const {
  const int32_t n = at(s).next;
  return {n, n,
          0, std::numeric_limits<int32_t>::max() - 1 - n,
          0, at(s).approximate ? uint32_t{KVC_SEQUENCE_APPROXIMATE} : 0};
}

void StateOracle::advance(RecurrentSequence& sequence, int32_t next, int32_t state) const {
  sequence.next = next;
  sequence.state = state;
  if (rules_.checkpoints == KVC_NONE || rules_.interval == KVC_NONE) return;
  if (next <= rules_.min_pos) return;
  if (sequence.checkpoints.empty() || next - rules_.interval >= sequence.checkpoints.back().at)
    add_checkpoint(sequence);
}

// ---- Checkpoints and stepping back -------------------------------------------------------------

void StateOracle::add_checkpoint(RecurrentSequence& sequence) const {
  std::vector<Checkpoint>& all = sequence.checkpoints;
  if (sequence.next == 0 || (!all.empty() && all.back().at == sequence.next)) return;
  if (static_cast<int32_t>(all.size()) == rules_.checkpoints) all.erase(all.begin());
  all.push_back({sequence.next, sequence.state, sequence.approximate});
}

int32_t StateOracle::state_at(int32_t s, int32_t g) const {
  if (g == 0) return 0;
  if (g == at(s).next) return at(s).state;
  for (const Checkpoint& checkpoint : at(s).checkpoints)
    if (checkpoint.at == g) return checkpoint.state;
  return -1;
}

int32_t StateOracle::best(int32_t s, int32_t want) const {
  if (want >= at(s).next) return at(s).next;
  int32_t result = 0;
  for (const Checkpoint& checkpoint : at(s).checkpoints)
    if (checkpoint.at <= want) result = checkpoint.at;
  return result;
}

RecurrentSequence StateOracle::cut_to(RecurrentSequence sequence, int32_t g) const {
  if (g == sequence.next) return sequence;
  RecurrentSequence result;
  result.next = g;
  for (const Checkpoint& checkpoint : sequence.checkpoints) {
    if (checkpoint.at > g) continue;
    result.checkpoints.push_back(checkpoint);
    result.state = checkpoint.state;  // the last one is at g, unless g is 0
    result.approximate = checkpoint.approximate;
  }
  return result;
}

kvc_status StateOracle::may_remove_middle(int32_t, int32_t, int32_t) const {
  return rules_.approximate ? KVC_OK : KVC_E_NOT_SUPPORTED;
}

/// Only labels change.
void StateOracle::remove_middle(int32_t s, int32_t b, int32_t e) {
  RecurrentSequence& sequence = at(s);
  std::vector<Checkpoint> stay;
  for (const Checkpoint& checkpoint : sequence.checkpoints) {
    if (checkpoint.at <= b) stay.push_back(checkpoint);
    if (checkpoint.at > e) stay.push_back({checkpoint.at - (e - b), checkpoint.state, true});
  }
  sequence.checkpoints = stay;
  sequence.approximate = true;
  sequence.next -= e - b;
}

}  // namespace model
