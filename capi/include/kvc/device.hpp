// kvc/device.hpp: where memory is and how many threads work. Part of <kvc/kvc.hpp>; device.h is the manual.
#ifndef KVC_DEVICE_HPP
#define KVC_DEVICE_HPP

#include "base.hpp"

namespace kvc {
inline namespace api_0_2 {

struct DeviceDesc : kvc_device_desc {
  DeviceDesc() noexcept : kvc_device_desc(KVC_DEVICE_DESC_INIT) {}
};

// May be closed before the caches created on it.
class Device : public Owner<kvc_device, kvc_device_close> {
 public:
  // By default it has as many threads as the process may use. Throws VersionMismatch if the minor version of the library
  // is not that of these headers: structs and functions may differ.
  explicit Device(const char *name = "cpu", const DeviceDesc &desc = {}, const kvc_allocator *allocator = nullptr) {
    check_version(kvc_version_number());
    check(kvc_device_open(name, &desc, allocator, &handle_));
  }

  void synchronize() const { check(kvc_device_synchronize(handle_)); }
};

}  // namespace api_0_2
}  // namespace kvc

#endif
