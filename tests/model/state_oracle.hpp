#pragma once
#include <cstdint>
#include <vector>

#include "kind.hpp"

namespace model {

struct Checkpoint {
  int32_t at = 0;     // where it continues
  int32_t state = 0;  // index into the list of states
  bool approximate = false;
};

struct RecurrentSequence {
  int32_t next = 0;
  int32_t state = 0;  // index into the list of states; 0 is the state of zeros
  bool approximate = false;
  std::vector<Checkpoint> checkpoints;  // ascending
};

/// What the oracles of caches share whose sequences have states in place of keys and values: a sequence is where it continues, a
/// state, and the states that it can go back to. States are numbers of a list that only grows; 0 is the state of zeros.
class StateOracle : public ListKind<RecurrentSequence> {
 public:
  struct Rules {
    int32_t checkpoints, interval, min_pos;  // as in the descriptor, 0 being the default
    bool approximate;
  };
  StateOracle(const kvc_cache_desc& cache, const Rules& rules);

  bool has_checkpoints() const override { return true; }
  Info info(int32_t sequence) const override;
  /// The state with which a sequence would continue at `g`, −1: there is none.
  int32_t state_at(int32_t sequence, int32_t g) const;
  virtual int64_t n_slots() const = 0;
  int32_t most_checkpoints() const { return rules_.checkpoints; }  // KVC_NONE: they are off

 protected:
  bool can_continue(int32_t s, int32_t g) const override { return state_at(s, g) >= 0; }
  int32_t best(int32_t sequence, int32_t want) const override;
  kvc_status may_remove_middle(int32_t sequence, int32_t begin, int32_t end) const override;
  bool checkpoints_are_off() const override { return rules_.checkpoints == KVC_NONE; }
  RecurrentSequence cut_to(RecurrentSequence sequence, int32_t g) const override;
  void remove_middle(int32_t sequence, int32_t begin, int32_t end) override;
  void take_checkpoint(int32_t s) override { add_checkpoint(at(s)); }
  /// The end of a pass: the sequence continues elsewhere, with another state, and may take a checkpoint by itself.
  void advance(RecurrentSequence& sequence, int32_t next, int32_t state) const;

 private:
  void add_checkpoint(RecurrentSequence& sequence) const;
  Rules rules_;
};

}  // namespace model
