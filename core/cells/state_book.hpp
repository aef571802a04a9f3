#pragma once
#include <cstdint>

#include "core/base/carver.hpp"
#include "core/base/health.hpp"
#include "core/base/status.hpp"
#include "core/cells/batch.hpp"
#include "core/cells/row_list.hpp"
#include "core/cells/sequence_info.hpp"
#include "core/cells/sequence_plans.hpp"

namespace kvc {

struct StateRules {
  int32_t max_sequences = 0;
  int32_t max_batch = 0;
  int32_t n_slots = 0;
  int32_t n_checkpoint_slots = 0;  // the last ones, which checkpoints have apart; 0: they share those of states
  int32_t checkpoints = 0;          // that a sequence keeps, 0: none
  int32_t checkpoint_interval = 0;  // positions between automatic ones, 0: no automatic ones
  int32_t checkpoint_min_pos = 0;   // lowest last position of a pass that leaves one
  int32_t max_rows = 0;      // a sequence with up to this many tokens in a pass has a row for each
  bool approximate = false;  // middle parts may be removed
  const char* approximate_flag = "";      // the caller's name of that, for messages
  KnownFlags known_flags = {0, nullptr};  // of tokens
  bool takes_rows = false;                // passes may take as many tokens in every row
  bool strict = false;

  int32_t n_state_slots() const { return n_slots - n_checkpoint_slots; }
};

/// A state that a sequence keeps besides its own, to step back to.
struct Checkpoint {
  int32_t at = 0;  // where it continues
  uint32_t slot : 31 = 0;
  uint32_t is_approximate : 1 = 0;
};

/// A sequence of the open pass, as kvc_state_sequence.
struct StateSequence {
  int32_t sequence = 0;
  int32_t n_tokens = 0;
  int32_t first_token = 0;
  int32_t first_row = 0;
  int32_t n_rows = 0;
  int32_t read_slot = 0;
};

/// The book of a recurrent cache: where each sequence continues, which slot holds its state, which checkpoints it has, and what
/// the open pass changes about that. It holds no states and knows no device (semantics §4).
///
/// Slot 0 holds zeros and has no owners. Any other slot is written only by the pass that took it, and is free when nobody owns it.
/// Owners are counted apart: those that a slot has after a commit of the open pass (`then`), and those that only abort would
/// keep (`held`). So what the commit frees and which checkpoint it takes is known from the begin of the pass on.
///
/// A checkpoint is one more owner of the state's slot, or, where checkpoints have slots apart, a copy of it. The book takes the slot
/// and notes the copy (copy_from(), copy_to()); the cache makes it before it makes anything else of the book's.
///
/// As in CellBook, check_batch() decides everything that can fail before open_pass() changes anything. There is always room.
///
/// The files: state_book.cpp (layout, slots, passes), state_book_sequences.cpp (stepping back, copies, removals, check).
class StateBook {
 public:
  static constexpr int32_t zeros = 0;  // the slot of zeros

  struct Sequence {
    int32_t next = 0;           // the open pass included
    int32_t slot = zeros;       // of its state, from before the open pass
    int32_t n_checkpoints = 0;  // without the one that commit takes
    bool is_approximate = false;
    // While a pass is open:
    int32_t next_before = 0;
    int32_t n_added = 0;
    int32_t n_kept = 0;        // of them
    int32_t first_added = -1;  // index in the batch of its first token
    int32_t last_added = -1;
    int32_t first_row = 0;
    int32_t n_rows = 0;
    bool takes_checkpoint = false;  // at its commit
  };

  StateBook(const StateRules& rules, const Health& health)
      : known_flags(rules.known_flags),
        rules_(rules),
        health_(health),
        plans_({rules.max_sequences, rules.max_batch, rules.strict}),
        row_list_(rules.max_sequences, rules.takes_rows ? rules.max_batch : 0) {}

  const KnownFlags known_flags;

  void carve(Carver& carver);
  void reset();  // call once, after carve() over a block

  const Sequence& sequence(int32_t index) const { return sequences_[index]; }
  const Checkpoint* checkpoints(int32_t sequence) const {
    return checkpoints_ + int64_t{sequence} * rules_.checkpoints;
  }
  bool is_free(int32_t slot) const { return slots_[slot].n_then + slots_[slot].n_held == 0; }

  /// Slots that sequences own, as if the open pass were committed, and those of them that have several owners.
  int32_t used() const { return used_ + n_coming_; }
  int32_t shared() const { return shared_; }

  // ---- A pass ----
  Status check_batch(const Batch& batch) const;
  Status check_room(const Batch& batch) const {
    return batch.rows == nullptr ? Status::ok : RowList::check_supported(*batch.rows);
  }
  /// The tokens of a batch that check_batch() has just planned, as a list.
  Batch list_of(const Batch& batch) const {
    return batch.rows == nullptr ? batch : row_list_.list(batch);
  }
  void open_pass(const Batch& batch);
  /// Whether there is a row behind the first n tokens of a sequence.
  Status check_kept(int32_t sequence, int32_t n) const;
  void keep_added(int32_t sequence, int32_t n);
  void commit_pass();
  void abort_pass();

  int32_t n_in_batch() const { return n_in_batch_; }
  int32_t in_batch(int32_t index) const { return in_batch_[index]; }
  int32_t n_rows() const { return n_rows_; }
  int32_t row_slot(int32_t row) const { return row_slot_[row]; }
  const int32_t* row_slots() const { return row_slot_; }  // [n_rows]
  /// The slot of the row that the state becomes. Needs a sequence that keeps a token.
  int32_t kept_slot(const Sequence& sequence) const;
  /// The next token of the same sequence, −1: none.
  int32_t follower(int32_t token) const { return batch_follower_[token]; }
  int32_t position(int32_t token) const { return batch_position_[token]; }

  /// Rows of a sequence with n tokens in a pass.
  int32_t rows_for(int32_t n) const { return n <= rules_.max_rows ? n : 1; }
  /// The slot that the i-th of the next pass's rows would have.
  int32_t free_slot(int32_t i) const { return free_.slot[free_.n - 1 - i]; }

  // ---- Sequences. No pass is open, or the call is const and returns what it would after a commit ----
  int32_t best_continuation(int32_t sequence, int32_t want) const;
  /// The slot of the checkpoint at a position. Needs one there.
  int32_t checkpoint_slot(int32_t sequence, int32_t at) const;
  int32_t list_checkpoints(int32_t sequence, int32_t capacity, int32_t* at) const;
  void take_checkpoint(int32_t sequence);
  void forget_checkpoints(int32_t sequence);
  /// A slot that the sequence alone owns, for a caller who writes its state: its own or a fresh one. No slot is listed as freed.
  int32_t take_own_slot(int32_t sequence);
  /// The state is one of another position; 0: the sequence is emptied. Checkpoints are forgotten.
  void relabel(int32_t sequence, int32_t position);
  /// An empty sequence becomes what one of another book is, in slots of its own: from[i] of the other becomes to[i]. Returns how
  /// many there are, 1 + checkpoints at most; the lowest checkpoints stay behind where there are more. No slot is listed as freed.
  int32_t adopt(int32_t sequence, const StateBook& other, int32_t source, int32_t* from, int32_t* to);
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

  /// Free slots are stacks; those that became free since forget_freed() are on top.
  struct FreeSlots {
    int32_t* slot = nullptr;
    int32_t n = 0;
    int32_t n_freed = 0;

    const int32_t* freed() const { return slot + n - n_freed; }
  };
  const FreeSlots& free_slots() const { return free_; }
  const FreeSlots& free_checkpoint_slots() const { return free_checkpoints_; }
  void forget_freed() { free_.n_freed = free_checkpoints_.n_freed = 0; }

  /// Whether a slot is one of those that checkpoints have apart.
  bool is_checkpoints(int32_t slot) const { return slot >= rules_.n_state_slots(); }
  /// Slots that become copies of others, since forget_copies(): all of states for checkpoints, or the other way.
  const int32_t* copy_from() const { return copy_from_; }
  const int32_t* copy_to() const { return copy_to_; }
  int32_t n_slot_copies() const { return n_slot_copies_; }
  void forget_copies() { n_slot_copies_ = 0; }

  /// Recounts everything; names what is broken.
  Status check(bool pass_is_open) const;

 private:
  struct Slot {
    int32_t n_then = 0;
    int32_t n_held = 0;
  };
  Checkpoint* list(int32_t sequence) {
    return checkpoints_ + int64_t{sequence} * rules_.checkpoints;
  }
  bool keeps_apart() const { return rules_.n_checkpoint_slots > 0; }
  FreeSlots& pool_of(int32_t slot) { return is_checkpoints(slot) ? free_checkpoints_ : free_; }
  void change(int32_t slot, int32_t then, int32_t held);
  void release_if_free(int32_t slot);
  int32_t take(FreeSlots& pool);
  int32_t take_copy(int32_t slot, FreeSlots& pool);
  void make_own(Sequence* sequence);
  bool loses_lowest(const Sequence& sequence) const {
    return sequence.takes_checkpoint && sequence.n_checkpoints == rules_.checkpoints;
  }
  bool wants_checkpoint(int32_t sequence) const;
  void plan_end(int32_t sequence, int32_t sign);
  void commit(int32_t sequence);
  void let_go(int32_t sequence);
  void own(const Sequence& sequence, const Checkpoint* checkpoints);
  void disown(int32_t sequence);
  void push_checkpoint(int32_t sequence);
  Sequence cut_to(int32_t sequence, int32_t position) const;
  Status check_one(int32_t sequence, bool pass_is_open) const;
  void count_owners(int32_t sequence, uint64_t* then, uint64_t* held) const;

  StateRules rules_;
  const Health& health_;
  Sequence* sequences_ = nullptr;      // [max_sequences]
  Checkpoint* checkpoints_ = nullptr;  // [max_sequences][checkpoints] ascending
  Slot* slots_ = nullptr;              // [n_slots]
  FreeSlots free_;                     // [n_state_slots]
  FreeSlots free_checkpoints_;         // [n_checkpoint_slots]
  int32_t* copy_from_ = nullptr;       // [max_sequences]
  int32_t* copy_to_ = nullptr;         // [max_sequences]
  int32_t n_slot_copies_ = 0;
  int32_t n_coming_ = 0;  // slots that the commit will take for checkpoints
  int32_t used_ = 0;
  int32_t shared_ = 0;

  SequencePlans plans_;
  RowList row_list_;
  // Sources of a reorder.
  Sequence* copies_ = nullptr;                // [max_sequences]
  Checkpoint* copied_checkpoints_ = nullptr;  // [max_sequences][checkpoints]

  // The open pass.
  int32_t* batch_position_ = nullptr;  // [max_batch]
  int32_t* batch_follower_ = nullptr;  // [max_batch]
  int32_t* row_slot_ = nullptr;        // [max_batch]
  int32_t* in_batch_ = nullptr;        // [max_sequences] in order of first appearance
  int32_t n_in_batch_ = 0;
  int32_t n_rows_ = 0;
};

}  // namespace kvc
