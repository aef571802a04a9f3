#pragma once
#include <memory>

#include "capi/src/handle_table.hpp"
#include "core/attention/forward.hpp"
#include "core/attention/operator.hpp"
#include "core/attention/registry.hpp"
#include "core/caches/cache.hpp"
#include "core/caches/wrapper.hpp"
#include "core/device.hpp"

namespace kvc::capi {

/// Of a device, as kvc_device_info has room for it.
struct DeviceName {
  char text[32] = {};
};

/// What a handle stands for. A cache keeps its device, so the handles of both may be destroyed in any order.
struct DeviceObject {
  std::shared_ptr<Device> device;
  std::shared_ptr<OperatorRegistry> operators;
  DeviceName name;  // as it can be opened
};

struct OperatorObject {
  std::shared_ptr<Device> device;
  std::shared_ptr<const ChosenOperator> chosen;
  std::unique_ptr<Forward> forward;                 // null: it is only bound to caches
  char name[OperatorRegistry::name_capacity] = {};  // as it was created
};

/// The children of a wrapper as handles: each stays, wherever its own handle goes, until the wrapper is destroyed.
struct Children {
  WrapperCache* wrapper = nullptr;
  handles::Pin pins[WrapperCache::max_children];

  int32_t n() const { return wrapper->n_children(); }
};

struct CacheObject {
  std::shared_ptr<Cache> cache;
  std::unique_ptr<Children> children;  // null: no wrapper
  bool is_wrapped = false;             // a wrapper moves its sequences
};

}  // namespace kvc::capi
