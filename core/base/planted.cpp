#include "core/base/planted.hpp"

#ifdef KVC_PLANTED_BUGS
#include <cstdlib>

namespace kvc {

bool planted(int bug) noexcept {
  static const int chosen = [] {
    const char* name = std::getenv("KVC_PLANTED_BUG");  // NOLINT(concurrency-mt-unsafe): test builds only
    return name == nullptr ? 0 : std::atoi(name);
  }();
  return bug == chosen;
}

}  // namespace kvc
#endif
