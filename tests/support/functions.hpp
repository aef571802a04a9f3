#pragma once
#include <functional>
#include <vector>

#include "bad_input.hpp"

namespace support {

struct Function {
  const char* name;
  std::function<kvc_status(kvc_cache*)> call;  // with arguments that the specimen would take
};

/// Every function that takes a causal cache but destroy.
std::vector<Function> functions(Specimen& specimen);

/// Those of encoder caches, recurrent caches and wrappers, which a causal cache lacks. Their arguments are wrong.
std::vector<Function> functions_of_other_kinds();

}  // namespace support
