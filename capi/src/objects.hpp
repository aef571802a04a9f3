#pragma once
#include <memory>

#include "core/backend.hpp"
#include "core/caches/cache.hpp"

namespace kvc::capi {

/// What a handle stands for. A cache keeps its device's backend, so both may be destroyed in any order.
struct DeviceObject {
  std::shared_ptr<Backend> backend;
};

struct CacheObject {
  std::shared_ptr<Cache> cache;  // wrappers keep their children, whatever happens to the handle
};

}  // namespace kvc::capi
