#pragma once
#include <deque>
#include <functional>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "abi.hpp"
#include "array.hpp"
#include "fuzz_choice.hpp"
#include "fuzz_counts.hpp"
#include "fuzz_program.hpp"
#include "model/kind.hpp"

namespace fuzz {

using Numbers = std::vector<int32_t>;

std::string text(const Numbers& numbers);
bool same(double a, double b);  // NaN is the same as NaN

using Hash = std::pair<uint64_t, uint64_t>;
void fold(Hash& hash, uint64_t word);
void fold(Hash& hash, const Hash& other);

/// A state of an oracle as two numbers. What the contract lists as covered by the digest is in both; what it leaves open is in
/// `fine` only: equal `fine` demands equal digests, and equal digests demand equal `coarse`.
struct StateHashes {
  Hash fine{1, 2}, coarse{3, 4};
};

struct Batch {
  Numbers position, sequence;
  std::vector<uint32_t> flags;  // empty: none are given
  int32_t n = 0;
  const uint32_t* token_flags() const { return flags.empty() ? nullptr : flags.data(); }
  std::string text() const;
};

/// How far a removal comes that asks a caller's shift function.
enum class Shifting { none, until_refusal, all };

/// One cache, its oracle, and the operations that are performed on both: here those that every kind has, with the choice of
/// their arguments, the judgement, and what is compared after every operation. A kind adds what layers do.
///
/// The parts: fuzz_kind.cpp (which operation comes next, the judgement), fuzz_kind_passes.cpp (begin … abort, batches),
/// fuzz_kind_sequences.cpp (copies, removals), fuzz_kind_checks.cpp (what is compared; NaN in free cells).
class KindWorld : public Steps {
 public:
  KindWorld(kvc_device* device, const support::Random& random, Counts& counts)
      : device_(device), random_(random), counts_(counts) {}

  /// One operation, and all comparisons. Throws Difference.
  void step() override;
  void finish() override;
  std::string history() const override;
  /// Of the stream that its choices are read from.
  size_t bytes_left() const { return random_.bytes_left(); }

  virtual kvc_cache* handle() const = 0;
  virtual model::Kind& oracle() = 0;
  const model::Kind& oracle() const { return const_cast<KindWorld*>(this)->oracle(); }

  // ---- For the wrapper of this cache
  /// From now on others begin and end its passes and move its sequences. Layer i is the wrapper's layer first_layer + i. The
  /// only child of its kind is called through the wrapper without a layer, too.
  void wrapped_by(kvc_cache* wrapper, int32_t first_layer, int32_t n_sequences, bool is_only);
  void unwrapped() { wrapper_ = nullptr; }
  /// One operation that layers perform.
  void step_of_layers() { perform_one(random_, layer_choices()); }
  /// Somebody else performed an operation on the cache and on its oracle.
  void compare_after(bool state_may_change);
  bool may_have_changed() const { return state_may_change_; }
  const support::Digest& last_digest() const { return last_digest_; }
  std::string last_logged() const { return log_.empty() ? "" : log_.back(); }

  /// Gives flags to the tokens of a batch.
  virtual void give_flags(Batch& batch) = 0;
  /// Flags with which a pass of NaN takes as much room as it can.
  virtual void give_poison_flags(Batch&) const {}
  /// Puts NaN in all that the open pass of this batch takes.
  virtual void put_nan(const Batch& batch) = 0;
  /// The state once more in another cache, in other cells: the same digest.
  virtual void compare_rebuilt() = 0;
  virtual void expect_removal(int32_t, int32_t, int32_t) {}
  virtual void compare_removal(Shifting) {}
  virtual int32_t some_position(int32_t sequence) = 0;
  /// The set-up and the oracle's state, for a reader.
  virtual std::string describe() const = 0;
  virtual Met circumstances(const Numbers& sequences) const = 0;

 protected:
  /// Remembers the circumstances of a call; judge() compares its status.
  struct Call {
    Op op;
    Met met;
  };
  Call call(Op op, const Numbers& sequences, const std::string& arguments);
  /// The same for a call that changes nothing.
  Call query(Op op, const Numbers& sequences, const std::string& arguments);
  void judge(Call& call, kvc_status status, kvc_status expected);
  virtual void note_status(Met&, kvc_status) const {}
  [[noreturn]] void differ(const std::string& what) const;
  void expect_equal(int64_t actual, int64_t expected, const char* what) const;

  /// What layers do, and how often: operations that a wrapped child still performs itself.
  virtual std::vector<Choice> layer_choices() = 0;
  /// What else only this kind has.
  virtual std::vector<Choice> more_choices() { return {}; }
  bool is_complete() const { return oracle().pass_open && oracle().fully_put(); }

  /// A layer as it is called: on the cache itself or through its wrapper.
  struct Door {
    kvc_cache* cache;
    int32_t layer;
  };
  Door door(int32_t layer, int32_t sequence = 0);
  /// Likewise for calls without a layer.
  kvc_cache* door_of_kind(int32_t sequence = 0);

  // Arguments.
  int32_t odd_number();     // negative, huge
  int32_t some_sequence();  // sometimes one that does not exist
  int32_t real_sequence();  // rather one that holds something
  int32_t some_layer();     // sometimes one that does not exist
  int32_t n_layers() const { return oracle().cache.n_layers; }
  int32_t n_sequences() const { return oracle().cache.max_sequences; }
  int64_t n_tokens() const { return oracle().pass_open ? oracle().batch().n_tokens : 1; }
  uint32_t some_dtype() { return random_.pick<uint32_t>({KVC_F32, KVC_F16, KVC_BF16}); }
  void fill_values(support::Array& array);    // rarely with a special one
  void spoil_padding(support::Array& array);  // [n_tokens, …]
  Batch draw_batch();
  Batch next_tokens(int32_t n);

  // Operations. Those on lists of tokens are replaced where a kind takes rows.
  virtual void begin_drawn() { begin(draw_batch()); }
  virtual void begin_reserve();
  virtual void fits();
  void begin(const Batch& batch);
  void set_causal();
  void commit();
  void commit_prefix();
  void abort();
  void can_resume();
  void resume();
  void copy_prefix();
  void reorder();
  void remove_tail();
  void remove_middle();
  void can_remove();
  void remove(Op op, int32_t sequence, int32_t begin, int32_t end);
  void checkpoint_take();
  virtual void poison_by_abort();

  // Comparisons.
  void compare_all();
  void compare_sequences();
  void compare_stats();
  void compare_digest(bool must_stay);
  virtual void compare_cells(const kvc_stats& stats) const = 0;
  virtual StateHashes state_hashes() = 0;
  /// What else is compared after every operation, and what is compared once, at the end.
  virtual void compare_kind() = 0;
  virtual void compare_contents() = 0;

  kvc_device* device_;
  support::Random random_;
  Counts& counts_;
  bool state_may_change_ = false;  // by the operation just performed
  support::Digest last_digest_{};
  std::deque<std::string> log_;

 private:
  std::vector<Choice> sequence_choices();
  void pad(Batch& batch);
  void spoil(Batch& batch);

  kvc_cache* wrapper_ = nullptr;
  int32_t first_layer_ = 0, wrapper_sequences_ = 0;
  bool is_only_ = false;
  std::map<Hash, support::Digest> digest_of_;
  std::map<support::Digest, Hash> state_of_;
};

}  // namespace fuzz
