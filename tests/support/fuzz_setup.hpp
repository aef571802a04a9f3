#pragma once
#include <string>
#include <vector>

#include "abi.hpp"
#include "model/oracle.hpp"
#include "random.hpp"

/// The caches that the random operations run on.
namespace fuzz {

struct LayerRope {
  bool bound = false;
  kvc_rope_desc desc{};
  std::vector<float> factors;  // empty: all 1
};

struct LayerAttention {
  bool bound = false;
  kvc_attention_desc desc{};
  std::vector<float> slopes, sinks;  // empty: none

  kvc_status bind(kvc_cache* cache, int32_t layer) const;
  void bind(model::Constants& constants) const;
};

struct Setup {
  std::string name;
  kvc_cache_desc cache{};
  kvc_causal_desc causal{};
  std::vector<LayerRope> rope;            // [n_layers]
  std::vector<LayerAttention> attention;  // [n_layers]

  std::string describe() const;
  /// Binds the constants, in the cache or in the oracle.
  kvc_status bind_rope(kvc_cache* cache) const;
  kvc_status bind_attention(kvc_cache* cache) const;
  void bind(model::Oracle& oracle) const;
};

const std::vector<std::string>& setup_names();
Setup draw_setup(const std::string& name, support::Random& random);

}  // namespace fuzz
