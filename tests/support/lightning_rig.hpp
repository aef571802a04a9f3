#pragma once
#include <cstdint>
#include <vector>

#include "kvc/lightning.h"
#include "support/abi.hpp"

namespace support {

/// A lightning cache for tests by hand, with k, v and q that follow from a salt.
class LightningRig {
 public:
  explicit LightningRig(kvc_device* device);

  struct Token {
    int32_t sequence = 0;
    int32_t position = -1;  // −1: its sequence's next
    bool masked = false;
  };

  kvc_cache_desc desc{};
  kvc_lightning_desc lightning = KVC_LIGHTNING_DESC_INIT;
  std::vector<float> slopes;  // [n_layers, n_kv_heads]
  Cache cache;

  /// Makes the cache and binds its slopes.
  void create();
  int32_t next(int32_t sequence) const { return sequence_info(cache, sequence).next; }
  std::vector<int32_t> checkpoints(int32_t sequence) const;

  /// Begins a pass; k, v and q of each layer are drawn from `salt`.
  kvc_status begin(const std::vector<Token>& tokens, uint64_t salt);
  kvc_status put(int32_t layer);
  kvc_status attention(int32_t layer);
  kvc_status put_attention(int32_t layer);
  /// begin(), and puts and attends every layer.
  void pass(const std::vector<Token>& tokens, uint64_t salt);

  /// The outputs of the last attention, [n_tokens, n_q_heads, head_dim_v].
  const std::vector<float>& out() const { return out_; }
  std::vector<float> state(int32_t layer, int32_t sequence) const;

  int64_t n_tokens() const { return static_cast<int64_t>(tokens_.size()); }
  int32_t n_q_heads = 0;  // 0: n_kv_heads

 private:
  void draw(int32_t layer);
  kvc_tensor tensor(std::vector<float>& data, int64_t heads, int64_t dim) const;

  kvc_device* device_;
  std::vector<Token> tokens_;
  uint64_t salt_ = 0;
  std::vector<float> k_, v_, q_, out_;
};

}  // namespace support
