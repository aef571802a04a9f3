#pragma once
#include <string>
#include <vector>

#include "fuzz_setup.hpp"
#include "kvc/transformer.h"

/// The transformer caches that the random operations run on.
namespace fuzz {

struct RowsSetup {
  std::string name;
  kvc_cache_desc cache{};
  kvc_transformer_desc transformer{};
  std::vector<LayerAttention> attention;  // [n_layers]

  std::string describe() const;
};

const std::vector<std::string>& rows_setup_names();
RowsSetup draw_rows_setup(const std::string& name, support::Random& random,
                          const InCommon& common = {});

}  // namespace fuzz
