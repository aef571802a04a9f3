#pragma once
#include <array>
#include <memory>
#include <string>
#include <vector>

#include "fuzz_kind.hpp"
#include "model/encoder_oracle.hpp"
#include "model/wrapper_oracle.hpp"

namespace fuzz {

/// What the children of a wrapper count, by kind. Only the wrapper's own table is held to numbers.
struct ChildCounts {
  Counts causal, encoder, recurrent, lightning;
  ChildCounts();
};

const std::vector<std::string>& wrapper_setup_names();

/// A wrapper, its oracle, and the worlds of its children. Calls on sequences and passes are the wrapper's; what layers do the
/// children's worlds perform, on the child or through the wrapper, each with its own oracle, which the wrapper's oracle moves.
/// In some episodes the wrapper is destroyed half-way, and its children go on alone; in others the handles of its children are
/// destroyed at the end, and the wrapper goes on.
class WrapperWorld : public KindWorld {
 public:
  WrapperWorld(kvc_device* device, const std::string& setup, support::Random& random,
               Counts& counts, ChildCounts& of_children);

  void step() override;
  void finish() override;

  kvc_cache* handle() const override { return cache_; }
  model::Kind& oracle() override { return *oracle_; }
  void give_flags(Batch& batch) override;
  void give_poison_flags(Batch& batch) const override;
  void put_nan(const Batch& batch) override;
  void compare_rebuilt() override;
  void expect_removal(int32_t sequence, int32_t begin, int32_t end) override;
  void compare_removal(Shifting shifting) override;
  int32_t some_position(int32_t sequence) override;
  std::string describe() const override;
  Met circumstances(const Numbers& sequences) const override;

 private:
  using Child = std::unique_ptr<KindWorld>;

  void add_child(const std::string& kind, support::Random& random, ChildCounts& of_children);
  void wrap();
  void let_go();
  void outlive_handles();
  std::vector<Choice> layer_choices() override;
  std::vector<Choice> more_choices() override;
  KindWorld& some_child();
  /// The only child of a kind, null: there are several or none.
  KindWorld* only(uint32_t kind) const;
  /// The only child that keeps checkpoints, of whatever kind.
  KindWorld* only_with_checkpoints() const;
  model::EncoderOracle* only_encoder() const;

  void of_child();
  void refused();
  void share();
  void lacking();

  void compare_cells(const kvc_stats& stats) const override;
  StateHashes state_hashes() override;
  void compare_kind() override;
  void compare_contents() override {}
  void compare_answers();

  const std::string name_;
  std::vector<Child> children_;
  support::Cache cache_;
  std::unique_ptr<model::WrapperOracle> oracle_;
  int32_t let_go_in_ = -1;    // operations; −1: never
  bool children_too_ = true;  // what has just been performed was not a child's
  std::array<int32_t, 3> removal_{};
};

}  // namespace fuzz
