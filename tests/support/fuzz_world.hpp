#pragma once
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "abi.hpp"
#include "array.hpp"
#include "fuzz_coverage.hpp"
#include "fuzz_program.hpp"
#include "fuzz_setup.hpp"
#include "fuzz_state.hpp"
#include "model/attention.hpp"

namespace fuzz {

/// How far the rounding of logits moves a weight at most, given the log-sum-exp, which is about as large as they are.
double logit_rounding(double sum);

/// One cache, the oracle beside it, and the operations that are performed on both.
///
/// The parts: fuzz_world.cpp (which operation comes next), fuzz_passes.cpp (begin … abort),
/// fuzz_sequences.cpp (copies, removals, queries), fuzz_constants.cpp (what is bound, a caller's shift
/// function), fuzz_reading.cpp (attention, mask, gather),
/// fuzz_extra.cpp (what one attention call adds), fuzz_get.cpp (views and keys that are rewritten),
/// fuzz_checks.cpp (what is compared after every operation), fuzz_poison.cpp (NaN in free cells).
class World : public Steps {
 public:
  World(kvc_device* device, const Setup& setup, const support::Random& random, Coverage& coverage);

  /// One operation, and all comparisons. Throws Difference.
  void step() override;
  /// What is compared once, at the end.
  void finish() override;
  std::string history() const override;
  /// Of the stream that its choices are read from.
  size_t bytes_left() const { return random_.bytes_left(); }

 private:
  using Numbers = std::vector<int32_t>;

  /// Remembers the circumstances of a call; judge() compares its status.
  struct Call {
    Op op;
    Circumstances met;
  };
  Circumstances circumstances(const Numbers& sequences) const;
  Call call(Op op, const Numbers& sequences, const std::string& arguments);
  void judge(Call& call, kvc_status status, kvc_status expected);
  [[noreturn]] void differ(const std::string& what) const;
  void expect_equal(int64_t actual, int64_t expected, const char* what) const;

  // Choosing.
  void step_idle();
  void step_open();
  int32_t some_sequence();  // sometimes one that does not exist
  int32_t real_sequence();  // rather one that holds something
  int32_t some_position(int32_t sequence);
  int32_t odd_number();  // negative, huge
  int32_t q_heads(int32_t layer);
  std::vector<int32_t> put_layers() const;
  int32_t some_layer();      // sometimes one that does not exist
  int32_t some_put_layer();  // rather one that was put

  // Passes.
  struct Batch {
    Numbers position, sequence;
    std::vector<uint32_t> flags;
    int32_t n = 0;
  };
  Batch draw_batch();
  void spoil(Batch& batch);
  void give_types(Batch& batch);
  void pad(Batch& batch);
  void spoil_padding(support::Array& array);
  void begin(const Batch& batch, bool with_flags);
  void begin_reserve();
  void fits();
  void put(int32_t layer);
  void put_values(int32_t layer, support::Array& k, support::Array& v);
  void fill_values(support::Array& array);
  void set_causal();
  void commit();
  void commit_prefix();
  void abort();

  // Sequences.
  void can_resume();
  void resume();
  void copy_prefix();
  void reorder();
  void remove_tail();
  void remove_middle();
  void can_remove();
  void remove(Op op, int32_t sequence, int32_t begin, int32_t end);

  // Constants of the model.
  void bind_attention();
  void bind_rope();
  void bind_rope(int32_t layer, const LayerRope& rope);
  void bind_shift(bool takes_away);
  static kvc_status shift_keys(void* world, int32_t layer, int32_t n, const int32_t* from,
                               const int32_t* to, kvc_tensor* k);
  void compare_shift(const std::vector<model::Sequence>& before, int32_t sequence, int32_t begin,
                     int32_t end, kvc_status status) const;

  // Reading.
  /// What one attention call adds, and where its columns are.
  struct Extra {
    std::optional<support::Array> bias, mask, weights;
    int32_t first_cell = 0, n_cells = 0;
    kvc_attention_extra describe();
  };
  void attention();
  void attention_extra();
  void put_attention();
  void get();
  void mask();
  void history_range();
  void gather();
  void gather(int32_t layer, int32_t sequence);
  void compare_attention(int32_t layer, int32_t n_q_heads, const std::vector<double>& q,
                         const support::Array& out, const support::Array* lse,
                         const Extra* extra = nullptr);
  std::vector<std::vector<char>> seen_columns(const Extra& extra) const;
  Extra draw_extra(int64_t heads);
  void spoil_bias(Extra& extra);
  model::Bias oracle_bias(const Extra& extra) const;
  void compare_weights(int32_t layer, int32_t heads, const Extra& extra,
                       const model::AttentionResult& expected) const;
  void compare_gathered(int32_t layer, int32_t sequence, const support::Array* k,
                        const support::Array* v, bool transposed) const;
  bool is_wild(int32_t layer, const std::vector<model::Token>& tokens) const;
  std::vector<std::vector<int32_t>> visible_cells() const;  // per token of the batch
  int32_t first_column(const std::vector<std::vector<int32_t>>& cells) const;
  void compare_mask(const support::Array& mask, const std::vector<std::vector<int32_t>>& cells) const;
  void adopt_paid_keys();
  void compare_views(int32_t layer, const kvc_tensor& k, const kvc_tensor& v);
  void compare_freed_cells(int32_t layer, const kvc_tensor& k, const kvc_tensor& v) const;
  void compare_textbook(int32_t layer, const kvc_tensor& k, const kvc_tensor& v,
                        const support::Array& mask);

  // Comparisons.
  void compare_all();
  void compare_sequences();
  void compare_places();
  void compare_stats();
  void compare_digest(bool must_stay);
  void compare_rebuilt();

  // Poison.
  void poison_all();
  void poison_by_abort();
  void poison_by_spare_sequence();
  bool fill_with_nan(int32_t sequence, int32_t n);

  Setup setup_;
  support::Random random_;
  Coverage& coverage_;
  kvc_device* device_;
  support::Cache cache_;
  model::Oracle oracle_;
  DigestLedger ledger_;
  support::Digest last_digest_{};
  bool state_may_change_ = false;                    // by the operation just performed
  std::vector<std::vector<support::Place>> places_;  // per sequence
  std::deque<std::string> log_;

  /// What the shift function was called with during one removal: per layer the positions of each key.
  struct Moved {
    int32_t from, to;
    bool operator==(const Moved&) const = default;
  };
  std::vector<std::vector<Moved>> shifted_;
  std::string shift_complaint_;
};

}  // namespace fuzz
