#pragma once
#include <optional>
#include <string>
#include <vector>

#include "attention_world.hpp"
#include "model/rows_oracle.hpp"
#include "rows_setup.hpp"
#include "stored_bytes.hpp"

namespace fuzz {

/// A transformer cache and its oracle.
///
/// The parts, besides those of AttentionWorld: rows_world.cpp (choices and arguments), rows_passes.cpp (passes of rows, puts, constants,
/// calls that the kind lacks), rows_attention.cpp (attention against double), rows_reading.cpp (views, codes, copies, mask,
/// gather), rows_moving.cpp (rows that are set, inserted and filled, the state in another cache), rows_checks.cpp (what is compared
/// after every operation).
class RowsWorld : public AttentionWorld {
 public:
  RowsWorld(kvc_device* device, const RowsSetup& setup, const support::Random& random, Counts& counts);

  model::RowsOracle& oracle() override { return oracle_; }
  void give_flags(Batch&) override {}
  void put_nan(const Batch&) override { put_nan(); }
  void compare_rebuilt() override;
  int32_t some_position(int32_t sequence) override;
  std::string describe() const override;
  Met circumstances(const Numbers& sequences) const override;

 private:
  std::vector<Choice> layer_choices() override;
  std::vector<Choice> more_choices() override;

  // Choosing.
  int32_t some_put_layer();
  int32_t missing_layer();  // rather one that was not put
  int32_t q_heads(int32_t layer);
  int32_t q_len() const override { return oracle_.pass_open ? oracle_.pass.q_len : 1; }
  int32_t room(int32_t row) const;  // for tokens of a pass

  // Passes.
  /// What kvc_begin_rows() is given.
  struct Rows {
    int32_t q_len = 1;
    uint32_t flags = 0;
    Numbers valid, types;  // empty: none
    model::RowsMask mask;
    std::optional<support::Array> array;  // the mask as a tensor
    kvc_status refused = KVC_OK;          // what is said to the tensor

    model::RowsBatch given() const;
    const kvc_tensor* tensor() const { return array ? array->tensor() : nullptr; }
    std::string text() const;
  };
  Rows draw_rows();
  void give_mask(Rows& rows);
  void give_right_padding(Rows& rows);
  void spoil(Rows& rows);
  kvc_status status_of(const Rows& rows) const;
  void begin_drawn() override;
  void begin_reserve() override;
  void fits() override;
  void poison_by_abort() override;
  void put_nan();
  KeysAndValues draw_keys_and_values();
  const kvc_tensor* v_of(const KeysAndValues& drawn) const;
  kvc_status spoil(KeysAndValues& drawn);
  void put();
  void put_codes();
  kvc_status put_codes(kvc_cache* cache, int32_t layer, int32_t q_len,
                       const model::Oracle::Bytes& k, const model::Oracle::Bytes& v) const;
  void bind_attention();
  void bind_scales(int32_t layer, bool of_k, bool of_v);
  void lacking();

  // Attention.
  std::vector<std::vector<char>> seen_columns() const;
  Extra draw_extra(int64_t heads);
  void spoil_bias(support::Array& bias);
  model::Bias oracle_bias(const Extra& extra) const;
  Queries draw_queries(int32_t heads);
  kvc_status spoil(Queries& queries, kvc_attention_extra& desc);
  void attention();
  void put_attention();
  void compare_attention(int32_t layer, const Queries& queries, bool with_lse, const Extra& extra);
  bool is_wild(int32_t layer, int32_t token) const override;
  bool attends() const { return oracle_.value_heads() == setup_.cache.n_kv_heads; }

  // Reading.
  void get();
  void get_codes();
  void get_copy();
  void view();
  void mask();
  void history_range();
  void gather();
  void compare_numbers(int32_t layer, const kvc_tensor& view, bool is_key) const;
  void compare_codes(int32_t layer, const Lent& lent, bool is_key) const;
  void compare_copy(int32_t layer, const support::Array& copy, bool is_key) const;
  void compare_freed(const kvc_tensor& view) const;
  void compare_mask(const support::Array& mask) const;
  void compare_textbook(int32_t layer);
  void compare_gathered(int32_t layer, int32_t sequence, const support::Array* k,
                        const support::Array* v, bool transposed) const;
  /// The numbers of one token; read(element) is what was read.
  template <class Read>
  void compare_token(int32_t layer, const model::Token& token, bool is_key, uint32_t dtype,
                     const char* where, const Read& read) const;

  // Rows.
  void rows_set();
  void insert();
  void rows_fill();
  struct Side {
    std::optional<CodeArrays> codes;
    std::optional<support::Array> numbers;
    model::Oracle::Bytes bytes;
    std::vector<float> floats;

    const kvc_tensor* tensor();
    const kvc_tensor* scales();
    model::RowsOracle::Filling filling() const;
  };
  Side draw_side(int32_t row_begin, int32_t n, int32_t c, bool is_key);
  void take_scales(const RowsWorld& from, int32_t layer);
  void one_pass();
  void copy_row(kvc_cache* other, int32_t row) const;

  // Comparisons.
  void compare_cells(const kvc_stats& stats) const override;
  StateHashes state_hashes() override;
  void compare_kind() override;
  void compare_contents() override;
  void compare_rows() const;
  void compare_places() const;

  Hash content_hash(int32_t content);

  RowsSetup setup_;
  std::vector<Hash> contents_;  // of those that cannot change any more
  model::RowsOracle oracle_;
};

}  // namespace fuzz
