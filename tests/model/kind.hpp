#pragma once
#include <cstdint>
#include <vector>

#include "kvc/kvc.h"

namespace model {

/// What kvc_sequence_query() returns.
struct Info {
  int32_t first, next, count, room, lost_below;
  uint32_t flags = 0;
};

/// The tokens of an open pass.
struct Batch {
  bool reserve = false;
  int32_t n_tokens = 0;
  std::vector<int32_t> position, sequence;  // [n_tokens], empty for a reserve pass
};

/// What the oracles of all kinds have in common: the calls that open and end passes and that step back, written once, with the
/// order in which their errors are looked for. A kind fills in what differs. All that it tells is as if the open pass were
/// committed. A wrapper fills it in with what its children do, so that it has the order of errors from here too.
class Kind {
 public:
  explicit Kind(const kvc_cache_desc& desc) : cache(desc) {}
  virtual ~Kind() = default;

  kvc_status begin(int32_t n, const int32_t* position, const int32_t* sequence,
                   const uint32_t* token_flags, uint32_t flags);
  kvc_status fits(int32_t n, const int32_t* position, const int32_t* sequence,
                  const uint32_t* token_flags) const;
  kvc_status commit();
  kvc_status commit_prefix(int32_t n, const int32_t* sequence, const int32_t* keep);
  kvc_status abort();
  kvc_status can_resume(int32_t sequence, int32_t want, int32_t* best) const;
  kvc_status resume(int32_t sequence, int32_t want, int32_t* got);
  kvc_status copy_prefix(int32_t src, int32_t dst, int32_t len, int32_t* got);
  kvc_status reorder(int32_t n, const int32_t* dst, const int32_t* src);
  /// What remove() would return when no shift function refuses.
  kvc_status can_remove(int32_t sequence, int32_t begin, int32_t end) const;
  kvc_status remove(int32_t sequence, int32_t begin, int32_t end);
  kvc_status checkpoint_take(int32_t sequence);
  virtual kvc_status set_causal(int32_t, const int32_t*) { return KVC_E_NOT_SUPPORTED; }

  /// Of the open pass; empty when none is open.
  virtual const Batch& batch() const = 0;
  virtual int32_t next(int32_t sequence) const = 0;
  virtual Info info(int32_t sequence) const = 0;
  /// All that the open pass wants put was put.
  virtual bool fully_put() const = 0;

  /// What a shift function would return in remove(), when it is called at all.
  kvc_status refusal(int32_t sequence, int32_t begin, int32_t end) const;
  virtual bool has_checkpoints() const { return false; }

  bool is_sequence(int32_t s) const { return s >= 0 && s < cache.max_sequences; }
  /// Every sequence begins at 0.
  bool is_empty() const {
    for (int32_t s = 0; s < cache.max_sequences; ++s)
      if (next(s) > 0) return false;
    return true;
  }
  /// How many tokens of the open pass are a sequence's.
  int32_t tokens_of(int32_t sequence) const;

  kvc_cache_desc cache;
  bool pass_open = false;
  uint64_t passes = 0;  // committed

 protected:
  friend class WrapperOracle;

  // ---- What a kind fills in: what it asks …
  virtual uint32_t known_flags() const = 0;  // of a token
  /// The tokens fit together, given that positions, sequences and flags are legal.
  virtual bool legal_tokens(int32_t n, const int32_t* sequence, const uint32_t* token_flags) const;
  virtual kvc_status room(int32_t n, const int32_t* sequence, const uint32_t* token_flags) const = 0;
  virtual kvc_status may_keep(const std::vector<char>& kept) const = 0;  // [n_tokens]
  virtual bool can_continue(int32_t sequence, int32_t g) const = 0;
  /// The largest place at or below `want` and next at which the sequence can continue.
  virtual int32_t best(int32_t sequence, int32_t want) const = 0;
  virtual kvc_status may_remove_middle(int32_t sequence, int32_t begin, int32_t end) const = 0;
  /// Of a shift function, when what lies at or behind `end` moves.
  virtual kvc_status shift_refusal(int32_t, int32_t) const { return KVC_OK; }
  virtual bool checkpoints_are_off() const { return false; }
  // … and what it does when all has been asked.
  virtual void open(int32_t n, const int32_t* position, const int32_t* sequence,
                    const uint32_t* token_flags, bool reserve) = 0;
  virtual void keep(const std::vector<char>& kept) = 0;
  virtual void close() = 0;  // commits the open pass, if any
  virtual void undo() = 0;   // aborts it
  virtual void cut(int32_t sequence, int32_t g) = 0;
  virtual void copy(int32_t src, int32_t dst, int32_t g) = 0;
  virtual void copy_all(int32_t n, const int32_t* dst, const int32_t* src) = 0;
  virtual void remove_middle(int32_t sequence, int32_t begin, int32_t end) = 0;
  virtual void take_checkpoint(int32_t) {}

  bool closable() const { return !pass_open || batch().reserve || fully_put(); }

 private:
  kvc_status may_begin(int32_t n, const int32_t* position, const int32_t* sequence,
                       const uint32_t* token_flags, bool reserve) const;
  bool legal_flags(int32_t n, const int32_t* sequence, const uint32_t* token_flags) const;
  bool legal_batch(int32_t n, const int32_t* position, const int32_t* sequence) const;
};

/// A kind whose state is a list of sequences. A Sequence has a `next` and can be copied.
template <class Sequence>
class ListKind : public Kind {
 public:
  explicit ListKind(const kvc_cache_desc& desc)
      : Kind(desc), sequences(static_cast<size_t>(desc.max_sequences)) {}

  int32_t next(int32_t s) const override { return at(s).next; }

  std::vector<Sequence> sequences;  // as if an open pass were committed

 protected:
  virtual Sequence cut_to(Sequence sequence, int32_t g) const = 0;
  virtual void settle() = 0;  // what was not put is what a commit makes of it
  virtual void forget() = 0;  // what the open pass did to the sequences
  virtual void clear_pass() = 0;

  void close() override {
    if (pass_open && !batch().reserve) {
      settle();
      ++passes;
    }
    pass_open = false;
    clear_pass();
  }
  void undo() override {
    if (!batch().reserve) forget();
    pass_open = false;
    clear_pass();
  }
  void cut(int32_t s, int32_t g) override { at(s) = cut_to(at(s), g); }
  void copy(int32_t src, int32_t dst, int32_t g) override { at(dst) = cut_to(at(src), g); }
  void copy_all(int32_t n, const int32_t* dst, const int32_t* src) override {
    const std::vector<Sequence> before = sequences;
    for (int32_t i = 0; i < n; ++i) at(dst[i]) = before[static_cast<size_t>(src[i])];
  }

  Sequence& at(int32_t s) { return sequences[static_cast<size_t>(s)]; }
  const Sequence& at(int32_t s) const { return sequences[static_cast<size_t>(s)]; }
};

}  // namespace model
