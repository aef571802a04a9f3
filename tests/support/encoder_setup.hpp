#pragma once
#include <string>
#include <vector>

#include "fuzz_setup.hpp"
#include "kvc/encoder.h"

/// The encoder caches that the random operations run on.
namespace fuzz {

struct EncoderSetup {
  std::string name;
  kvc_cache_desc cache{};
  kvc_encoder_desc encoder{};
  std::vector<LayerAttention> attention;  // [n_layers]

  std::string describe() const;
};

const std::vector<std::string>& encoder_setup_names();
EncoderSetup draw_encoder_setup(const std::string& name, support::Random& random,
                                const InCommon& common = {});

}  // namespace fuzz
