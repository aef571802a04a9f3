#pragma once
#include <deque>
#include <map>
#include <memory>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "abi.hpp"
#include "array.hpp"
#include "encoder_setup.hpp"
#include "fuzz_program.hpp"
#include "model/encoder_oracle.hpp"

namespace fuzz {

/// One encoder cache, the oracle beside it, and the operations that are performed on both.
///
/// The parts: encoder_world.cpp (which operation comes next, and the judgement), encoder_passes.cpp (begin … abort, puts,
/// sharing), encoder_sequences.cpp (copies, removals, constants, calls that the kind lacks), encoder_attention.cpp
/// (attention against double), encoder_reading.cpp (views, mask, gather), encoder_checks.cpp (what is compared after every
/// operation, the state in other slots, NaN in free slots).
class EncoderWorld : public Steps {
 public:
  EncoderWorld(kvc_device* device, const EncoderSetup& setup, const support::Random& random,
               EncoderCoverage& coverage);

  void step() override;
  void finish() override;
  std::string history() const override;

 private:
  using Numbers = std::vector<int32_t>;

  /// Remembers the circumstances of a call; judge() compares its status.
  struct Call {
    EncoderOp op;
    EncoderCircumstances met;
  };
  EncoderCircumstances circumstances() const;
  Call call(EncoderOp op, const std::string& arguments);
  void judge(Call& call, kvc_status status, kvc_status expected);
  [[noreturn]] void differ(const std::string& what) const;
  void expect_equal(int64_t actual, int64_t expected, const char* what) const;

  // Choosing.
  int32_t odd_number();     // negative, huge
  int32_t some_sequence();  // sometimes one that does not exist
  int32_t some_layer();     // likewise
  int32_t some_put_layer();
  int32_t missing_layer(int32_t sequence);  // rather one that the sequence's input lacks
  int32_t some_position(int32_t sequence);
  int32_t carrying_sequence();  // rather one that carries an input
  int32_t some_length(int32_t sequence);
  int32_t q_heads(int32_t layer);
  int64_t n_tokens() const { return oracle_.pass_open ? oracle_.pass.n_tokens : 1; }

  // Passes.
  struct Batch {
    Numbers position, sequence;
    std::vector<uint32_t> flags;  // empty: none are given
    int32_t n = 0;
    std::string text() const;
  };
  Batch draw_batch();
  void spoil(Batch& batch);
  void begin();
  void begin_reserve();
  void fits();
  struct KeysAndValues {
    support::Array k, v;
  };
  KeysAndValues draw_keys_and_values(int32_t n);
  /// Gives v another number of rows than k, rarely.
  kvc_status spoil(KeysAndValues& put);
  void put();
  void encoder_put();
  void share();
  void commit();
  void commit_prefix();
  void abort();

  // Sequences.
  void can_resume();
  void resume();
  void copy_prefix();
  void reorder();
  void remove(EncoderOp op);
  void bind_attention();
  void lacking();

  // Attention.
  /// What one attention call adds; its columns begin at the cell `first`.
  struct Extra {
    std::optional<support::Array> bias, mask, weights;
    int32_t first = 0, columns = 0;
    kvc_attention_extra describe();
  };
  /// Of the columns; `where_known`: which cells a token sees is known, so what it does not see may hold NaN.
  Extra draw_extra(int64_t heads, int32_t first, int32_t columns, bool where_known);
  model::Bias oracle_bias(const Extra& extra) const;
  void attention();
  void put_attention();
  struct Queries {
    support::Array q, out, lse;
    kvc_tensor wrong{};  // one of them with another shape
  };
  Queries draw_queries(int32_t heads);
  kvc_status spoil(Queries& queries, kvc_attention_extra& desc);
  void compare_attention(int32_t layer, const Queries& queries, bool with_lse, const Extra& extra);
  void compare_weights(int32_t token, int32_t head, const Extra& extra,
                       const model::AttentionResult& expected, int32_t heads) const;
  void spoil_padding(support::Array& array);
  bool is_wild(int32_t layer, int32_t token) const;

  // Reading.
  struct Span {
    int32_t first = 0, cells = 0;
  };
  Span span() const;  // of the inputs that the batch sees; in a reserve pass of all slots
  bool sees(int32_t token, int32_t cell) const;
  void get();
  void compare_view(int32_t layer, const kvc_tensor& view, bool is_key) const;
  void compare_textbook(int32_t layer, const kvc_tensor& k, const kvc_tensor& v);
  void compare_mask(const support::Array& mask) const;
  void compare_freed(const kvc_tensor& view, int32_t first) const;
  std::set<int32_t> live_inputs() const;  // those that abort would bring back included
  void mask();
  void history_range();
  void gather();
  void compare_gathered(int32_t layer, int32_t sequence, const support::Array* k,
                        const support::Array* v, bool transposed) const;

  // Comparisons.
  void compare_all();
  void compare_sequences();
  void compare_places();
  void compare_stats();
  void compare_digest(bool must_stay);
  void compare_contents();
  void compare_rebuilt();
  void put_again(kvc_cache* other, int32_t sequence, int32_t position, int32_t input) const;
  uint64_t state(bool fine) const;
  void poison();

  EncoderSetup setup_;
  support::Random random_;
  EncoderCoverage& coverage_;
  kvc_device* device_;
  support::Cache cache_;
  model::EncoderOracle oracle_;
  support::Digest last_digest_{};
  bool state_may_change_ = false;                  // by the operation just performed
  std::map<int32_t, int32_t> cell_of_;             // where an input was last seen to lie
  std::map<uint64_t, support::Digest> digest_of_;  // by state
  std::map<support::Digest, uint64_t> state_of_;
  std::deque<std::string> log_;
};

}  // namespace fuzz
