#pragma once
#include <algorithm>
#include <cstdint>

#include "core/base/carver.hpp"
#include "core/base/health.hpp"
#include "core/base/status.hpp"
#include "core/cells/batch.hpp"
#include "core/cells/sequence_info.hpp"
#include "core/cells/sequence_plans.hpp"

namespace kvc {

struct InputRules {
  int32_t max_sequences = 0;
  int32_t max_batch = 0;
  int32_t n_slots = 0;
  bool strict = false;
};

/// The encoder input of a sequence: what an encoder read, which all of its later tokens see.
struct Input {
  int32_t at = -1;     // position of the token that carried it
  int32_t slot = -1;   // −1: none
  int32_t first = -1;  // position of the first input of its history, replaced ones included

  bool exists() const { return slot >= 0; }
};

/// The book of an encoder cache: where each sequence continues, which input it holds, who shares a slot, and what the open pass
/// changes about that. It holds no K and V and knows no device (semantics §3).
///
/// While a pass is open a sequence that carries an input has two: `held`, which its tokens before the carrying one still see and
/// abort keeps, and `then`, which commit puts in its place. A slot is free when no sequence has it as either.
///
/// As in CellBook, check_batch() and check_room() decide everything that can fail before open_pass() changes anything.
class InputBook {
 public:
  struct Sequence {
    Input held, then;  // the same while the sequence carries nothing
    int32_t next = 0;  // the open pass included
    // While a pass is open:
    int32_t next_before = 0;
    int32_t n_added = 0;
    int32_t first_added = -1;  // index in the batch of its first token
    int32_t last_added = -1;
    int32_t carrier = -1;  // index in the batch of the token that carries an input, −1: none
    bool shares = false;   // its input is another's: nothing is put for it
  };

  /// The token flags that encoder caches know.
  static constexpr KnownFlags known_flags = {token_encoder_input, "KVC_TOKEN_ENCODER_INPUT"};

  InputBook(const InputRules& rules, const Health& health)
      : rules_(rules), health_(health), plans_({rules.max_sequences, rules.max_batch, rules.strict}) {}
  void carve(Carver& carver);
  void reset();  // call once, after carve() over a block

  const Sequence& sequence(int32_t index) const { return sequences_[index]; }
  int32_t length(int32_t slot) const { return slots_[slot].length; }
  bool is_free(int32_t slot) const { return slots_[slot].n_then + slots_[slot].n_held == 0; }
  int32_t n_sharing(int32_t slot) const { return slots_[slot].n_then; }

  /// The length of what a slot holds, 0 until it is put.
  void set_length(int32_t slot, int32_t length);

  /// Positions of inputs that sequences hold, as if the open pass were committed, and of those that several hold.
  int64_t used() const { return used_; }
  int64_t shared() const { return shared_; }

  // ---- A pass ----
  Status check_batch(const Batch& batch) const;
  Status check_room(const Batch& batch) const;
  void open_pass(const Batch& batch);
  /// Whether `sequence` may share what `source` carries or holds; `was_put`: a layer of its own input was.
  Status check_share(int32_t sequence, int32_t source, bool was_put) const;
  void share(int32_t sequence, int32_t source);
  void keep_added(int32_t sequence, int32_t n);
  void commit_pass();
  void abort_pass();

  int32_t n_in_batch() const { return n_in_batch_; }
  int32_t in_batch(int32_t index) const { return in_batch_[index]; }
  const int32_t* batch_sequence() const { return batch_sequence_; }  // no_sequence: padding
  const int32_t* batch_position() const { return batch_position_; }
  /// The slot that a token of the batch sees, −1: none.
  int32_t seen_slot(int32_t token) const;
  /// Calls visit(sequence) for each sequence that carries an input in the open pass.
  template <class Visit>
  void for_each_carrying(Visit visit) const {
    for (int32_t i = 0; i < n_in_batch_; ++i) {
      if (sequences_[in_batch_[i]].carrier >= 0) visit(in_batch_[i]);
    }
  }

  // ---- Sequences. No pass is open, or the call is const and returns what it would after a commit ----
  bool can_continue(int32_t sequence, int32_t position) const;
  int32_t best_continuation(int32_t sequence, int32_t want) const;
  void cut(int32_t sequence, int32_t position);
  void copy_prefix(int32_t source, int32_t destination, int32_t position);
  Status check_reorder(int32_t n, const int32_t* destination, const int32_t* source) const {
    return plans_.check_reorder(n, destination, source);
  }
  void reorder(int32_t n, const int32_t* destination, const int32_t* source);
  Status check_distinct(int32_t n, const int32_t* sequence) const {
    return plans_.check_distinct(n, sequence);
  }
  Status check_removal(int32_t sequence, int32_t begin, int32_t end) const;
  void remove(int32_t sequence, int32_t begin, int32_t end);
  SequenceInfo info(int32_t sequence) const;

  /// Slots that became free since forget_freed().
  const int32_t* freed() const { return freed_; }
  int32_t n_freed() const { return n_freed_; }
  void forget_freed() { n_freed_ = 0; }

  /// Recounts everything; names what is broken.
  Status check(bool pass_is_open) const;

 private:
  struct Slot {
    int32_t n_then = 0;  // sequences that have it as `then`
    int32_t n_held = 0;  // sequences that have it as `held` and another as `then`
    int32_t length = 0;
  };
  int64_t weight(const Slot& slot, int32_t at_least) const {
    return slot.n_then >= at_least ? slot.length : 0;
  }
  void change(int32_t slot, int32_t then, int32_t held);
  void set_input(Sequence& sequence, const Input& input);
  void forget_carried(Sequence& sequence);
  void release_if_free(int32_t slot);
  static Input cut(const Input& input, int32_t position);

  InputRules rules_;
  const Health& health_;
  Sequence* sequences_ = nullptr;  // [max_sequences]
  Slot* slots_ = nullptr;          // [n_slots]
  int32_t* free_ = nullptr;        // [n_slots] a stack of free slots
  int32_t n_free_ = 0;
  int32_t n_free_at_commit_ = 0;  // slots that only `held` names
  int32_t* freed_ = nullptr;      // [n_slots]
  int32_t n_freed_ = 0;
  int64_t used_ = 0;
  int64_t shared_ = 0;

  SequencePlans plans_;
  mutable int32_t n_carriers_ = 0;
  struct Copy {
    Input input;
    int32_t next;
  };
  Copy* copies_ = nullptr;  // [max_sequences] sources of a reorder

  // The open pass.
  int32_t* batch_position_ = nullptr;  // [max_batch]
  int32_t* batch_sequence_ = nullptr;  // [max_batch]
  int32_t* batch_follower_ = nullptr;  // [max_batch] next token of the same sequence, −1: none
  int32_t* in_batch_ = nullptr;        // [max_sequences]
  int32_t n_in_batch_ = 0;
};

}  // namespace kvc
