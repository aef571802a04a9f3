#pragma once
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "fuzz_coverage.hpp"
#include "fuzz_kind.hpp"
#include "fuzz_setup.hpp"
#include "fuzz_state.hpp"
#include "model/attention.hpp"
#include "model/oracle.hpp"

namespace fuzz {

/// How far the rounding of logits moves a weight at most, given the log-sum-exp, which is about as large as they are.
double logit_rounding(double sum);

/// A causal cache and its oracle.
///
/// The parts, besides those of KindWorld: fuzz_world.cpp (choices and arguments), fuzz_passes.cpp (puts), fuzz_constants.cpp
/// (what is bound, a caller's shift function), fuzz_codes.cpp (codes and scales), fuzz_reading.cpp (attention, mask, gather), fuzz_extra.cpp (what one attention
/// call adds), fuzz_get.cpp (views and keys that are rewritten), fuzz_checks.cpp (what is compared after every operation),
/// fuzz_poison.cpp (NaN in free cells).
class World : public KindWorld {
 public:
  World(kvc_device* device, const Setup& setup, const support::Random& random, Counts& counts);

  kvc_cache* handle() const override { return cache_; }
  model::Oracle& oracle() override { return oracle_; }
  void give_flags(Batch& batch) override;
  void put_nan(const Batch& batch) override;
  void compare_rebuilt() override;
  void expect_removal(int32_t sequence, int32_t begin, int32_t end) override;
  void compare_removal(Shifting shifting) override;
  int32_t some_position(int32_t sequence) override;
  std::string describe() const override;
  Met circumstances(const Numbers& sequences) const override;

 private:
  std::vector<Choice> layer_choices() override;
  std::vector<Choice> more_choices() override;
  void note_status(Met& met, kvc_status status) const override;
  int32_t q_heads(int32_t layer);
  std::vector<int32_t> put_layers() const;
  int32_t some_put_layer();  // rather one that was put

  // Passes.
  void give_types(Batch& batch);
  void put(int32_t layer);
  void put_values(int32_t layer, support::Array& k, support::Array& v);

  /// What kvc_put_codes() takes, [n, n_kv_heads] rows.
  struct Codes {
    int64_t n = 0;
    model::Oracle::Bytes k, v;
  };
  Codes draw_codes(int64_t n);
  Codes nan_codes(int64_t n) const;
  void put_drawn_codes(int32_t layer);
  void put_codes(int32_t layer, const Codes& codes);
  kvc_status put_codes(kvc_cache* cache, int32_t layer, const Codes& codes) const;

  // Constants of the model.
  void bind_attention();
  void choose_operators(int32_t layer);
  void choose_operator(int32_t layer, uint32_t mode);
  void bind_rope();
  void bind_rope(int32_t layer, const LayerRope& rope);
  void bind_scales();
  void bind_scales(int32_t layer, bool of_k, bool of_v);
  void bind_shift(bool takes_away);
  static kvc_status shift_keys(void* world, int32_t layer, int32_t n, const int32_t* from,
                               const int32_t* to, kvc_tensor* k);

  // Reading.
  /// What one attention call adds, and where its columns are.
  struct Extra {
    std::optional<support::Array> bias, mask, weights;
    int32_t first_cell = 0, n_cells = 0;
    bool without_sinks = false;
    std::optional<uint64_t> dropout_seed;
    kvc_attention_extra describe();
  };
  void attention();
  void attention_extra();
  void put_attention();
  void get();
  void get_codes();
  void get_copy();
  void mask();
  void history_range();
  void gather();
  void compare_attention(int32_t layer, int32_t n_q_heads, const std::vector<double>& q,
                         const support::Array& out, const support::Array* lse,
                         const Extra* extra = nullptr);
  std::vector<std::vector<char>> seen_columns(const Extra& extra) const;
  Extra draw_extra(int64_t heads);
  void spoil_bias(Extra& extra);
  model::Bias oracle_bias(const Extra& extra) const;
  model::Bias oracle_dropout(int32_t layer, const Extra& extra);
  void compare_weights(int32_t layer, int32_t heads, const Extra& extra,
                       const model::AttentionResult& expected) const;
  void compare_gathered(int32_t layer, int32_t sequence);
  void compare_gathered(int32_t layer, int32_t sequence, const support::Array* k,
                        const support::Array* v, bool transposed) const;
  bool is_wild(int32_t layer, const std::vector<model::Token>& tokens) const;
  /// As is_wild(), but NaN counts as a number that can be compared.
  bool is_huge(int32_t layer, const std::vector<model::Token>& tokens) const;
  double read_slack(int32_t layer, const model::Token& token, int64_t element, bool is_key,
                    uint32_t dtype, double wanted) const;
  std::vector<std::vector<int32_t>> visible_cells() const;  // per token of the batch
  int32_t first_column(const std::vector<std::vector<int32_t>>& cells) const;
  void compare_mask(const support::Array& mask, const std::vector<std::vector<int32_t>>& cells) const;
  void adopt_paid_keys();
  void compare_layout(const kvc_tensor& k, const kvc_tensor& v) const;
  void compare_views(int32_t layer, const kvc_tensor& k, const kvc_tensor& v);
  /// Codes and scales of one side, as kvc_get_codes() lends them.
  struct Lent {
    kvc_tensor codes{}, scales{};
  };
  void compare_codes(int32_t layer, const Lent& lent, bool is_key) const;
  void compare_copy(int32_t layer, const support::Array& copy, bool is_key) const;
  /// Calls visit(column, token) for what some token of the batch sees.
  template <class Visit>
  void for_each_seen(const Visit& visit) const;
  /// Columns of cells that nobody holds; none where what is hidden may hold some.
  std::vector<int64_t> free_columns(int64_t history) const;
  void compare_freed(const kvc_tensor& view) const;
  void compare_textbook(int32_t layer, const kvc_tensor& k, const kvc_tensor& v,
                        const support::Array& mask);

  // Comparisons.
  void compare_cells(const kvc_stats& stats) const override;
  StateHashes state_hashes() override { return states_.of(oracle_); }
  void compare_kind() override;
  void compare_contents() override;
  void compare_places();

  // Poison.
  void poison_all();
  void poison_by_spare_sequence();
  bool fill_with_nan(int32_t sequence, int32_t n);

  Setup setup_;
  support::Cache cache_;
  model::Oracle oracle_;
  CausalStates states_;
  std::vector<std::vector<support::Place>> places_;  // per sequence
  std::vector<std::optional<float>> dropout_;  // per layer, of its operator for training, if that can

  /// What the shift function was called with during one removal: per layer the positions of each key.
  struct Moved {
    int32_t from, to;
    bool operator==(const Moved&) const = default;
  };
  std::vector<std::vector<Moved>> shifted_;
  std::vector<Moved> to_be_moved_;  // what it must have been called with
  std::string shift_complaint_;
};

}  // namespace fuzz
