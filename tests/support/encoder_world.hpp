#pragma once
#include <map>
#include <set>
#include <string>
#include <vector>

#include "attention_world.hpp"
#include "encoder_setup.hpp"
#include "model/encoder_oracle.hpp"

namespace fuzz {

/// An encoder cache and its oracle.
///
/// The parts, besides those of AttentionWorld: encoder_world.cpp (choices and arguments), encoder_passes.cpp (puts, sharing,
/// constants, calls that the kind lacks), encoder_attention.cpp (attention against double), encoder_reading.cpp (views, mask,
/// gather), encoder_checks.cpp (what is compared after every operation, the state in other slots).
class EncoderWorld : public AttentionWorld {
 public:
  EncoderWorld(kvc_device* device, const EncoderSetup& setup, const support::Random& random,
               Counts& counts);

  model::EncoderOracle& oracle() override { return oracle_; }
  void give_flags(Batch& batch) override;
  void give_poison_flags(Batch& batch) const override;
  void put_nan(const Batch& batch) override;
  void compare_rebuilt() override;
  int32_t some_position(int32_t sequence) override;
  std::string describe() const override;
  Met circumstances(const Numbers& sequences) const override;

 private:
  std::vector<Choice> layer_choices() override;
  std::vector<Choice> more_choices() override;

  // Choosing.
  int32_t some_put_layer();
  int32_t missing_layer(int32_t sequence);  // rather one that the sequence's input lacks
  int32_t carrying_sequence();              // rather one that carries an input
  int32_t some_length(int32_t sequence);
  int32_t q_heads(int32_t layer);
  int32_t q_len() const override { return oracle_.pass.n_tokens; }

  // Passes.
  KeysAndValues draw_keys_and_values(int32_t n);
  /// Gives v another number of rows than k, rarely.
  kvc_status spoil(KeysAndValues& put);
  void put();
  void encoder_put();
  struct Codes {
    int64_t n = 0;
    model::Oracle::Bytes k, v;
  };
  void put_codes();
  kvc_status put_codes(kvc_cache* cache, int32_t layer, const Codes& codes) const;
  void bind_scales(int32_t layer, bool of_k, bool of_v);
  void share();
  void bind_attention();
  void lacking();

  // Attention.
  /// Its columns begin at the cell `first`.
  struct Extra : AttentionWorld::Extra {
    int32_t first = 0;
  };
  /// Of the columns; `where_known`: which cells a token sees is known, so what it does not see may hold NaN.
  Extra draw_extra(int64_t heads, int32_t first, int32_t columns, bool where_known);
  model::Bias oracle_bias(const Extra& extra) const;
  void attention();
  void put_attention();
  Queries draw_queries(int32_t heads);
  kvc_status spoil(Queries& queries, kvc_attention_extra& desc);
  void compare_attention(int32_t layer, const Queries& queries, bool with_lse, const Extra& extra);
  bool is_wild(int32_t layer, int32_t token) const override;

  // Reading.
  struct Span {
    int32_t first = 0, cells = 0;
  };
  Span span() const;  // of the inputs that the batch sees; in a reserve pass of all slots
  bool sees(int32_t token, int32_t cell) const;
  void get();
  void get_codes();
  void compare_codes(int32_t layer, const Lent& lent, bool is_key) const;
  void get_copy();
  void compare_copy(int32_t layer, const support::Array& copy, bool is_key) const;
  std::set<int32_t> seen_inputs() const;
  /// How far a number that was read may be off; infinity: it may be anything, because f32 overflows on the way.
  double read_slack(const model::StoredRows& rows, size_t row, uint32_t dtype, double wanted) const;
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
  void compare_cells(const kvc_stats& stats) const override;
  StateHashes state_hashes() override;
  void compare_kind() override;
  void compare_contents() override;
  void compare_places();
  void put_again(kvc_cache* other, int32_t sequence, int32_t position, int32_t input) const;

  EncoderSetup setup_;
  model::EncoderOracle oracle_;
  std::map<int32_t, int32_t> cell_of_;  // where an input was last seen to lie
};

}  // namespace fuzz
