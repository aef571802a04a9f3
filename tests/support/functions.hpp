#pragma once
#include <functional>
#include <vector>

#include "bad_input.hpp"

namespace support {

struct Function {
  const char* name;
  std::function<kvc_status(kvc_cache*)> call;  // with arguments that the specimen would take
};

/// Every function that takes a cache but destroy.
std::vector<Function> functions(Specimen& specimen);

}  // namespace support
