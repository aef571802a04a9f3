#pragma once
#include <functional>
#include <optional>
#include <vector>

#include "fuzz_kind.hpp"
#include "model/attention.hpp"

namespace fuzz {

/// What the worlds of encoder and transformer caches share: attention and what one call adds, compared with double.
class AttentionWorld : public KindWorld {
 public:
  using KindWorld::KindWorld;

  kvc_cache* handle() const override { return cache_; }

 protected:
  struct KeysAndValues {
    support::Array k, v;
  };
  /// What one attention call adds.
  struct Extra {
    std::optional<support::Array> bias, mask, weights;
    kvc_attention_extra describe();
  };
  struct Queries {
    support::Array q, out, lse;
    kvc_tensor wrong{};  // one of them with another shape
  };
  /// Codes and scales of one side, as views lend them.
  struct Lent {
    kvc_tensor codes{}, scales{};
  };

  /// Numbers that are too large to compare what is made of them.
  static bool wild(const std::vector<double>& values);
  virtual bool is_wild(int32_t layer, int32_t token) const = 0;
  /// Tokens of a row of the batch.
  virtual int32_t q_len() const = 0;
  /// The column of a position that a token sees.
  using ColumnOf = std::function<int32_t(int32_t token, int32_t position)>;
  void compare_attention(int32_t layer, const Queries& queries, bool with_lse, const Extra& extra,
                         const model::AttentionResult& expected, const ColumnOf& column_of);

  support::Cache cache_;

 private:
  void compare_weights(int32_t token, int32_t head, const support::Array& weights, double lse,
                       const std::vector<double>& wanted) const;
};

}  // namespace fuzz
