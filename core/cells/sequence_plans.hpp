#pragma once
#include <cstdint>

#include "core/base/carver.hpp"
#include "core/base/status.hpp"
#include "core/cells/batch.hpp"

namespace kvc {

/// What the books of kinds without cells find out when they plan: which sequences a batch or a list names, and where each of
/// them would continue. It lies in scratch that the next plan reuses without clearing it. Const calls plan too, and may
/// overlap: whoever makes them keeps them apart.
class SequencePlans {
 public:
  struct Bounds {
    int32_t max_sequences = 0;
    int32_t max_batch = 0;
    bool strict = false;
  };
  struct Plan {
    uint32_t stamp = 0;  // of the plan that it belongs to
    int32_t next = 0;
    int32_t carrier = -1;  // index in the batch of the token that carries an encoder input
  };

  explicit SequencePlans(const Bounds& bounds) : bounds_(bounds) {}
  void carve(Carver& carver) {
    plans_ = carver.take<Plan>(static_cast<uint64_t>(bounds_.max_sequences), 64);
  }

  const Plan& operator[](int32_t sequence) const { return plans_[sequence]; }

  /// The batch against the bounds. `next_of(sequence)` is where a sequence continues; `visit(token, plan)` may refuse a token
  /// that is no padding.
  template <class NextOf, class Visit>
  Status check_batch(const Batch& batch, const KnownFlags& known, NextOf next_of, Visit visit) const {
    if (Status s = check_n_tokens(batch, bounds_.max_batch); s != Status::ok) return s;
    begin();
    for (int32_t i = 0; i < batch.n_tokens; ++i) {
      if (Status s = check_token_flags(batch, i, known); s != Status::ok) return s;
      const int32_t sequence = batch.sequence[i];
      if (sequence == no_sequence) continue;
      if (Status s = check_token(batch, i, bounds_.max_sequences); s != Status::ok) return s;
      Plan& plan = plans_[sequence];
      if (mark(sequence)) plan.next = next_of(sequence);
      if (Status s = check_continues(batch, i, plan.next, bounds_.strict); s != Status::ok)
        return s;
      plan.next = batch.position[i] + 1;
      if (Status s = visit(i, plan); s != Status::ok) return s;
    }
    return Status::ok;
  }

  /// Whether the n sequences exist and none is named twice.
  Status check_distinct(int32_t n, const int32_t* sequence) const;
  Status check_reorder(int32_t n, const int32_t* destination, const int32_t* source) const;

 private:
  void begin() const;
  bool mark(int32_t sequence) const;  // false: marked already

  const Bounds bounds_;
  Plan* plans_ = nullptr;  // [max_sequences]
  mutable uint32_t stamp_ = 0;
};

}  // namespace kvc
