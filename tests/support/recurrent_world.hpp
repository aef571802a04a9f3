#pragma once
#include <string>
#include <vector>

#include "model/recurrent_oracle.hpp"
#include "recurrent_setup.hpp"
#include "state_world.hpp"

namespace fuzz {

/// A recurrent cache and its oracle.
///
/// The parts, besides those of StateWorld: recurrent_world.cpp (choices and arguments), recurrent_states.cpp (states by copy and in
/// place), recurrent_checks.cpp (what is compared after every operation, the state in other slots, NaN in free slots).
class RecurrentWorld : public StateWorld {
 public:
  RecurrentWorld(kvc_device* device, const RecurrentSetup& setup, const support::Random& random,
                 Counts& counts);

  model::RecurrentOracle& oracle() override { return oracle_; }
  void give_flags(Batch&) override {}
  void put_nan(const Batch& batch) override;
  void compare_rebuilt() override;

 private:
  std::vector<Choice> layer_choices() override;
  std::vector<Choice> more_choices() override;
  std::string describe_setup() const override { return setup_.describe(); }
  bool has_drafts() const override;

  int32_t some_part();                   // sometimes one that does not exist
  int32_t missing_part(int32_t* layer);  // rather one that was not put
  /// [n, dims…] of a part; n < 0: [dims…]. Any dims whose product is the part's size.
  support::Array draw_states(int64_t n, int32_t part);
  /// Makes the tensor one that is refused, rarely; the status.
  kvc_status spoil(kvc_tensor& tensor, bool has_rows);

  void state_layout();
  void state_get();
  void state_put();
  void state_conv();
  void state_in_place();
  void state_gather();
  void list_checkpoints();
  void lacking();

  std::vector<model::RecurrentRows> compare_layout(const std::vector<kvc_state_sequence>& sequences);
  int64_t n_viewed_slots() const;
  void compare_slots(int32_t layer, int32_t part, const kvc_tensor& view);
  void compare_freed(int32_t layer, int32_t part, const kvc_tensor& view,
                     const Numbers& to_write) const;
  void write_rows(int32_t part, const kvc_tensor& view, const Numbers& slots,
                  const std::vector<float>& rows);
  void compare_states(int32_t layer, int32_t part, int32_t state, const support::Array& got,
                      int64_t row, const char* what) const;

  StateHashes state_hashes() override;
  void compare_contents() override;
  void put_again(kvc_cache* other, int32_t sequence, int32_t position, int32_t state) const;

  RecurrentSetup setup_;
  model::RecurrentOracle oracle_;
};

}  // namespace fuzz
