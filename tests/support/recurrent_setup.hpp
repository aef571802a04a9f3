#pragma once
#include <string>
#include <vector>

#include "fuzz_setup.hpp"
#include "kvc/recurrent.h"

/// The recurrent caches that the random operations run on.
namespace fuzz {

struct RecurrentSetup {
  std::string name;
  kvc_cache_desc cache{};
  kvc_recurrent_desc recurrent{};

  std::string describe() const;
};

RecurrentSetup draw_recurrent_setup(const std::string& name, support::Random& random,
                                    const InCommon& common = {});

}  // namespace fuzz
