#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "kind.hpp"

namespace model {

/// The oracle of wrappers: children of any kind, asked one after the other and then all told. It keeps nothing of its own but
/// the batch: what it returns is made of what its children's oracles return.
class WrapperOracle : public Kind {
 public:
  /// The children outlive the wrapper.
  explicit WrapperOracle(std::vector<Kind*> children);

  kvc_status set_causal(int32_t n, const int32_t* except) override;
  const Batch& batch() const override { return children_[0]->batch(); }
  int32_t next(int32_t s) const override { return children_[0]->next(s); }
  Info info(int32_t sequence) const override;
  bool fully_put() const override;
  bool has_checkpoints() const override;

 private:
  uint32_t known_flags() const override;
  bool legal_tokens(int32_t n, const int32_t* sequence, const uint32_t* token_flags) const override;
  kvc_status room(int32_t n, const int32_t* sequence, const uint32_t* token_flags) const override;
  kvc_status may_keep(const std::vector<char>& kept) const override;
  bool can_continue(int32_t sequence, int32_t g) const override;
  int32_t best(int32_t sequence, int32_t want) const override;
  kvc_status may_remove_middle(int32_t sequence, int32_t begin, int32_t end) const override;
  kvc_status shift_refusal(int32_t sequence, int32_t end) const override;
  bool checkpoints_are_off() const override;
  void open(int32_t n, const int32_t* position, const int32_t* sequence,
            const uint32_t* token_flags, bool reserve) override;
  void keep(const std::vector<char>& kept) override;
  void close() override;
  void undo() override;
  void cut(int32_t sequence, int32_t g) override;
  void copy(int32_t src, int32_t dst, int32_t g) override;
  void copy_all(int32_t n, const int32_t* dst, const int32_t* src) override;
  void remove_middle(int32_t sequence, int32_t begin, int32_t end) override;
  void take_checkpoint(int32_t sequence) override;

  using Ask = std::function<kvc_status(const Kind&)>;
  kvc_status first_of(const Ask& ask) const;

  std::vector<Kind*> children_;
};

}  // namespace model
