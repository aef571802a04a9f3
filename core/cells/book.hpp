#pragma once
#include <cstdint>

#include "core/attention/visibility.hpp"
#include "core/base/carver.hpp"
#include "core/base/health.hpp"
#include "core/base/status.hpp"
#include "core/cells/batch.hpp"
#include "core/cells/cell_pool.hpp"
#include "core/cells/sequence_info.hpp"
#include "core/cells/token_sequence.hpp"

namespace kvc {

/// The rules by which a cache wants its book kept.
struct BookRules {
  int32_t max_sequences = 0;
  int32_t max_batch = 0;
  int32_t n_cells = 0;
  int32_t sequence_limit = 0;  // positions that a sequence stores at most
  Visibility visibility;
  int32_t memory = 0;  // positions kept behind the lowest of a batch; without meaning when not limited
  bool limited = false;        // else nothing ever slides
  bool strict = false;         // a batch leaves no gaps
  bool notes_freed = false;    // cells that become free are listed, see freed()
  bool notes_changes = false;  // what changes in the token arrays is listed, see take_changes()
};

/// Cells next to each other that hold consecutive positions whose keys have the same pending rotation.
struct Run {
  int32_t cell, length, position, offset;
};

/// A removal of positions that was found possible.
struct Removal {
  int32_t sequence = 0;
  int32_t begin = 0;
  int32_t end = 0;
  bool nothing = false;     // the range holds no position
  bool to_the_end = false;  // else positions behind it move down
  bool moves = false;       // some stored position does
  int32_t lost_below = 0;   // of the sequence afterwards
};

/// Someone who holds cells besides the sequences, so that check() can count owners.
class CellHolder {
 public:
  virtual ~CellHolder() = default;
  using Visit = void (*)(void* context, const int32_t* cells, int32_t n);
  virtual void for_each_held(Visit visit, void* context) const = 0;
};

/// The book of a cache: which cell holds which token of which sequence, where each sequence continues, what has slid out of
/// its window, and what the open pass changes about that. It holds no K and V and knows no device.
///
/// A pass is planned, then checked, then applied: check_batch() and check_room() decide everything that can fail before
/// open_pass() changes anything. Whoever calls makes sure that the calls of a pass come in order; a broken invariant
/// poisons the Health that the book was given.
///
/// The files: book.cpp (layout, passes), book_sequences.cpp (stepping back, copies, removals), book_check.cpp.
class CellBook {
 public:
  struct Sequence {
    TokenSequence tokens;
    int32_t home = 0;  // the block where it begins
    int32_t next = 0;  // one past its last position, the open pass included
    int32_t lost_below = 0;  // one more than the highest position that sliding released, the open pass included
    bool may_be_pending = false;  // some key may have a pending rotation
    // While a pass is open: what abort brings back, and which tokens it added.
    int32_t next_before = 0;
    int32_t lost_below_before = 0;
    int32_t n_added = 0;
    int32_t first_added = -1;  // index in the batch of its first token, −1: none
    int32_t last_added = -1;
  };

  CellBook(const BookRules& rules, const Health& health) : rules_(rules), health_(health) {}
  void carve(Carver& carver);
  void reset();  // call once, after carve() over a block

  const BookRules& rules() const { return rules_; }
  const Sequence& sequence(int32_t index) const { return sequences_[index]; }
  const CellPool& pool() const { return pool_; }

  /// From now on keys rotate when their positions move. Only while the book is empty.
  void rotate_keys() { keys_rotate_ = true; }
  bool keys_rotate() const { return keys_rotate_; }
  /// The rotation that a token's key still needs, in positions.
  int32_t offset_of(Token token) const {
    return keys_rotate_ ? token.position - pool_.rotated_for(token.cell) : 0;
  }

  // ---- A pass (book.cpp) ----
  /// The token flags that causal caches know.
  static constexpr KnownFlags known_flags = {token_sees_later | token_types,
                                             "KVC_TOKEN_SEES_LATER and KVC_TOKEN_TYPE()"};
  /// Whether the n sequences exist and none is named twice.
  Status check_distinct(int32_t n, const int32_t* sequence) const;
  /// The batch against the bounds. Leaves in the plan what check_room() and open_pass() need.
  Status check_batch(const Batch& batch) const;
  Status check_room(const Batch& batch) const;
  /// Opens the pass that was just checked.
  void open_pass(const Batch& batch);
  /// Keeps the first n tokens of those that the pass added. A sequence that keeps none slides as if it had not been in it.
  void keep_added(int32_t sequence, int32_t n);
  void commit_pass();
  void abort_pass();

  /// Sequences that the open pass touches: those of its batch first, then others of which something slides.
  int32_t n_touched() const { return n_touched_; }
  int32_t n_in_batch() const { return n_in_batch_; }
  int32_t touched(int32_t index) const { return touched_[index]; }
  /// Of the open pass, per token of its batch.
  const int32_t* batch_position() const { return batch_position_; }
  const int32_t* batch_sequence() const { return batch_sequence_; }  // no_sequence: padding
  /// −1: padding, or dropped by keep_added().
  const int32_t* batch_cell() const { return batch_cell_; }
  /// Calls visit(token) for each token that the pass added to a sequence, in batch order.
  template <class Visit>
  void for_each_added(const Sequence& sequence, Visit visit) const {
    for (int32_t token = sequence.first_added; token >= 0; token = batch_follower_[token])
      visit(token);
  }

  // ---- Sequences (book_sequences.cpp). No pass is open, or the call is const and returns what it would after a commit ----
  bool can_continue(const Sequence& sequence, int32_t position) const;
  int32_t best_continuation(int32_t sequence, int32_t want) const;
  void cut(int32_t sequence, int32_t position);
  /// The destination becomes a copy of the source cut to `position`, at which that can continue.
  void copy_prefix(int32_t source, int32_t destination, int32_t position);
  Status check_reorder(int32_t n, const int32_t* destination, const int32_t* source) const;
  void reorder(int32_t n, const int32_t* destination, const int32_t* source);
  Status plan_removal(int32_t sequence, int32_t begin, int32_t end, Removal* removal) const;
  void remove(const Removal& removal);
  SequenceInfo info(int32_t sequence) const;
  /// The first `capacity` runs of a sequence; returns how many there are.
  int32_t runs(int32_t sequence, int32_t capacity, Run* runs) const;

  /// Free cells taken for copies of tokens, in their order: each names the next one where it will later say for which
  /// position its key was rotated. They wait to be used or given back.
  class Copies {
   public:
    explicit Copies(CellBook& book) : book_(book) {}
    Copies(const Copies&) = delete;
    Copies& operator=(const Copies&) = delete;

    void take(int32_t count, int32_t home);
    void give_back();
    int32_t first() const { return first_; }
    int32_t next_of(int32_t cell) const { return book_.pool_.rotated_for(cell); }
    void keep() { first_ = last_ = -1; }

   private:
    CellBook& book_;
    int32_t first_ = -1;
    int32_t last_ = -1;
  };
  /// The copies take the places of the tokens from `first` on, whose keys are rotated for positions lower by `distance`.
  void use_copies(int32_t sequence, int32_t first, int32_t distance, Copies& copies);

  /// For counting ahead which cells would be copied: takes an owner of a cell away and returns how many are left. Every one
  /// that was lent must be returned.
  int32_t lend_owner(int32_t cell) { return pool_.lend_owner(cell); }
  void return_owner(int32_t cell) { pool_.return_owner(cell); }
  /// For comparing what sequences share (CellPool).
  void mark_current(int32_t cell) { pool_.mark_current(cell); }
  bool is_current(int32_t cell) const { return pool_.is_current(cell); }
  void mark_compared(int32_t cell) { pool_.mark_compared(cell); }
  void unmark(int32_t cell) { pool_.unmark(cell); }
  /// Gives a sequence a cell of its own for a token whose cell it shares; returns it.
  int32_t take_own_cell(int32_t sequence, int32_t index, Token token);
  void set_rotated_for(int32_t cell, int32_t position) { pool_.set_rotated_for(cell, position); }

  /// One more owner for each of these cells, which have some. A cell that only such owners hold is used, and stays.
  void hold(const int32_t* cells, int32_t n) { pool_.add_owners(cells, n); }
  void let_go(const int32_t* cells, int32_t n) {
    pool_.drop_owners(cells, n, [this](int32_t cell) { note_freed(cell); });
  }

  /// The tokens of all sequences, as lists name them, and what changed in them since the last call.
  TokenArrays token_arrays() const { return {token_cell_, token_position_}; }
  int64_t n_token_entries() const { return sequence_extent().entries() * rules_.max_sequences; }
  TokenChanges take_changes();

  /// Cells that became free since forget_freed(), when the rules ask for that.
  const int32_t* freed() const { return freed_; }
  int32_t n_freed() const { return n_freed_; }
  void forget_freed() { n_freed_ = 0; }

  /// Recounts everything; names what is broken.
  Status check(bool pass_is_open, const CellHolder* holder = nullptr) const;

 private:
  /// What planning a batch finds out per sequence. Valid where `stamp` is the plan's.
  struct SequencePlan {
    uint32_t stamp = 0;
    int32_t first = 0;    // lowest position
    int32_t last = 0;     // highest so far
    int32_t count = 0;    // tokens
    uint32_t type = 0;    // of its last token so far
    int32_t slides = 0;   // tokens at the start of its ring that the pass hides
    int32_t source = -1;  // reorder: the sequence it becomes a copy of
    int32_t uses = 0;     // reorder: copies still to be made of it
  };

  void begin_plan() const;
  TokenSequence::Extent sequence_extent() const;
  Status check_blocks(int32_t n_blocks) const;
  int64_t slide_bound(int32_t lowest) const;
  int32_t tokens_to_slide(const Sequence& sequence, int32_t lowest) const;
  int32_t home_block(int32_t sequence) const;
  void open_sequence(int32_t sequence, int32_t n_slide);
  void hide(Sequence& sequence, int32_t n);
  void show(Sequence& sequence, int32_t n);
  void place(const Batch& batch, int32_t begin, int32_t end);
  void note_padding(int32_t begin, int32_t end);
  void drop_tokens(Sequence& sequence, int32_t begin, int32_t end);
  void drop_added(Sequence& sequence, int32_t n);
  void drop_slid(Sequence& sequence);
  void end_pass();
  void mark_dirty(int32_t sequence);
  void mark_changed(const Sequence& sequence);
  void note_freed(int32_t cell);

  void cut(Sequence& sequence, int32_t position);
  void copy(const Sequence& source, int32_t count, int32_t next, Sequence& destination);
  void rotate_cycle(int32_t start);
  Status check_middle_removal(const Sequence& sequence, int32_t begin, int32_t end,
                              int32_t* lost_below) const;
  void remove_middle(Sequence& sequence, const Removal& removal);

  Status check_sequence_invariants(int32_t sequence, bool pass_is_open) const;

  BookRules rules_;
  const Health& health_;
  bool keys_rotate_ = false;
  CellPool pool_;
  Sequence* sequences_ = nullptr;  // [max_sequences]

  // Scratch of planning. Const calls plan too, and may overlap: whoever makes them keeps them apart.
  SequencePlan* plan_ = nullptr;  // [max_sequences]
  int32_t* plan_order_ = nullptr;  // [max_sequences] sequences of the batch, in order of first appearance
  uint64_t* blocks_ = nullptr;  // [max_batch] type and sequence of each block of typed tokens
  mutable int32_t n_planned_ = 0;
  mutable int32_t n_planned_tokens_ = 0;  // padding left out
  mutable uint32_t plan_stamp_ = 0;

  // The open pass.
  int32_t* batch_position_ = nullptr;  // [max_batch]
  int32_t* batch_sequence_ = nullptr;  // [max_batch]
  int32_t* batch_cell_ = nullptr;      // [max_batch]
  int32_t* batch_follower_ = nullptr;  // [max_batch] next token of the same sequence, −1: none
  int32_t* touched_ = nullptr;         // [max_sequences]
  int32_t n_touched_ = 0;
  int32_t n_in_batch_ = 0;

  // Sequences that may have something to slide: put, copied or moved since they last slid.
  int32_t* dirty_ = nullptr;  // [max_sequences]
  uint8_t* is_dirty_ = nullptr;
  int32_t n_dirty_ = 0;

  int32_t* token_cell_ = nullptr;      // [n_token_entries()]
  int32_t* token_position_ = nullptr;  // [n_token_entries()]
  // Sequences whose entries have changed, with notes_changes.
  int32_t* changed_ = nullptr;  // [max_sequences]
  uint8_t* is_changed_ = nullptr;
  TokenRange* changes_ = nullptr;  // [max_sequences]
  int32_t n_changed_ = 0;

  int32_t* freed_ = nullptr;  // [n_cells] with notes_freed
  int32_t n_freed_ = 0;
};

inline bool CellBook::can_continue(const Sequence& sequence, int32_t position) const {
  if (position == 0) return true;
  if (position > sequence.next) return false;
  if (!rules_.limited || position <= rules_.visibility.keep_first) return true;
  return rules_.visibility.low(position) >= sequence.lost_below;
}

}  // namespace kvc
