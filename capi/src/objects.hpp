#pragma once
#include <memory>

#include "core/caches/cache.hpp"
#include "core/device.hpp"

namespace kvc::capi {

/// What a handle stands for. A cache keeps its device, so the handles of both may be destroyed in any order.
struct DeviceObject {
  std::shared_ptr<Device> device;
};

struct CacheObject {
  std::shared_ptr<Cache> cache;  // wrappers keep their children, whatever happens to the handle
};

}  // namespace kvc::capi
