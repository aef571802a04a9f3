#pragma once
#include <string>
#include <vector>

#include "lightning_setup.hpp"
#include "model/lightning_oracle.hpp"
#include "state_world.hpp"

namespace fuzz {

/// A lightning cache and its oracle.
///
/// The parts, besides those of StateWorld: lightning_world.cpp (choices and arguments, put and attention, states that come and go),
/// lightning_checks.cpp (what is compared after every operation, the state in another cache, NaN in free slots).
class LightningWorld : public StateWorld {
 public:
  LightningWorld(kvc_device* device, const LightningSetup& setup, const support::Random& random,
                 Counts& counts);

  model::LightningOracle& oracle() override { return oracle_; }
  void give_flags(Batch& batch) override;
  void put_nan(const Batch& batch) override;
  void compare_rebuilt() override;

 private:
  std::vector<Choice> layer_choices() override;
  std::vector<Choice> more_choices() override;
  std::string describe_setup() const override { return setup_.describe(); }
  bool has_drafts() const override;

  void bind(kvc_cache* cache) const;
  int32_t missing_layer();  // rather one that was not put
  /// [n_tokens, heads, dim], NaN where it is not read.
  support::Array draw_tokens(int64_t heads, int64_t dim, bool is_query);
  void put();
  void attention();
  void put_attention();
  void compare_outputs(int32_t layer, const support::Array& q, const support::Array& out);
  void read();
  void write();
  void rows_set();
  void lacking();

  static constexpr double tiny = 0x1p-120;  // below f32's normal numbers nothing is exact
  int64_t dim_v() const { return oracle_.cache.head_dim_v; }
  void compare_state(int32_t layer, int32_t sequence, const support::Array& got, int64_t row) const;
  StateHashes state_hashes() override;
  void compare_contents() override;

  LightningSetup setup_;
  model::LightningOracle oracle_;
};

}  // namespace fuzz
