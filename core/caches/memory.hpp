#pragma once
#include <cstdint>
#include <memory>

#include "core/base/carver.hpp"
#include "core/base/status.hpp"
#include "core/device.hpp"

namespace kvc {

/// The blocks that a cache takes from its device, one of each place: first how large they are, then the blocks.
class CacheMemory {
 public:
  explicit CacheMemory(const std::shared_ptr<Device>& device) : device_(device) {}
  ~CacheMemory();
  CacheMemory(const CacheMemory&) = delete;
  CacheMemory& operator=(const CacheMemory&) = delete;

  /// Notes the sizes of a cache that was laid out over no blocks; false if the address space is too small for it.
  bool measure(const Carver& host, const Carver& on_device, const Carver& pinned = Carver());
  /// Takes blocks of the sizes that were measured.
  Status take(bool prefault);

  uint64_t bytes() const { return host_.bytes + on_device_.bytes + pinned_.bytes; }
  void* host() const { return host_.data; }
  void* on_device() const { return on_device_.data; }
  /// Null where the cache wants none of it.
  void* pinned() const { return pinned_.data; }

 private:
  struct Block {
    void* data = nullptr;
    uint64_t bytes = 0;
  };
  Status take(Place place, bool prefault, Block* block);

  std::shared_ptr<Device> device_;
  Block host_, on_device_, pinned_;
};

}  // namespace kvc
