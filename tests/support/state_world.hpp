#pragma once
#include <string>
#include <vector>

#include "fuzz_kind.hpp"
#include "model/state_oracle.hpp"

namespace fuzz {

/// What the worlds of caches share whose sequences have states: checkpoints, and what is said and compared about them.
class StateWorld : public KindWorld {
 public:
  using KindWorld::KindWorld;

  kvc_cache* handle() const override { return cache_; }
  model::StateOracle& oracle() override = 0;
  const model::StateOracle& oracle() const { return const_cast<StateWorld*>(this)->oracle(); }
  int32_t some_position(int32_t sequence) override;
  std::string describe() const override;
  Met circumstances(const Numbers& sequences) const override;

 protected:
  virtual std::string describe_setup() const = 0;
  /// The open pass has a sequence of several tokens that can be kept in part.
  virtual bool has_drafts() const = 0;

  void compare_kind() override;
  void compare_cells(const kvc_stats& stats) const override;
  void checkpoint_list(int32_t sequence, int32_t capacity);
  void poison_all();

  support::Cache cache_;
};

const std::vector<std::string>& state_setup_names();

/// The checkpoints and drafts of a descriptor.
template <class Desc>
void draw_checkpoints(const std::string& name, support::Random& random, Desc& desc) {
  desc.checkpoints = name == "few_checkpoints" ? random.between(1, 2)
                                               : random.pick({0, 1, 2, 3, 5, KVC_NONE});
  if (name == "approximate" && desc.checkpoints == KVC_NONE) desc.checkpoints = 3;
  desc.checkpoint_interval = random.pick({0, 1, 2, 3, 5, 9, KVC_NONE});
  desc.checkpoint_min_pos = random.pick({0, KVC_NONE, 1, 3, 7});
  desc.draft_states = name == "drafts" ? random.between(1, 7) : random.pick({0, 0, 1, 3});
}

}  // namespace fuzz
