#pragma once
#include <string>
#include <vector>

#include "fuzz_setup.hpp"
#include "kvc/lightning.h"

/// The lightning caches that the random operations run on.
namespace fuzz {

struct LightningSetup {
  std::string name;
  kvc_cache_desc cache{};
  kvc_lightning_desc lightning{};
  std::vector<float> slopes;  // [n_layers, n_kv_heads]
  int32_t n_q_heads = 0;
  float scale = 0;
  bool binds_attention = false;

  std::string describe() const;
};

LightningSetup draw_lightning_setup(const std::string& name, support::Random& random,
                                    const InCommon& common = {});

}  // namespace fuzz
