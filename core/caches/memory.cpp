#include "core/caches/memory.hpp"

namespace kvc {

CacheMemory::~CacheMemory() {
  if (host_.data != nullptr) device_->release(Place::host, host_.data, host_.bytes);
  if (on_device_.data != nullptr)
    device_->release(Place::device, on_device_.data, on_device_.bytes);
}

bool CacheMemory::measure(const Carver& host, const Carver& on_device) {
  constexpr uint64_t page_bytes = 4096;
  const CheckedSize host_bytes = host.used().rounded_up(page_bytes);
  const CheckedSize device_bytes = on_device.used().rounded_up(page_bytes);
  const CheckedSize total = host_bytes + device_bytes;
  if (total.overflowed() || total.value() > static_cast<uint64_t>(PTRDIFF_MAX)) return false;
  host_.bytes = host_bytes.value();
  on_device_.bytes = device_bytes.value();
  return true;
}

Status CacheMemory::take(bool prefault) {
  if (Status s = take(Place::device, prefault, &on_device_); s != Status::ok) return s;
  return take(Place::host, prefault, &host_);
}

Status CacheMemory::take(Place place, bool prefault, Block* block) {
  block->data = device_->allocate(place, block->bytes, prefault);
  if (block->data != nullptr) return Status::ok;
  return fail(
      Status::out_of_memory,
      "there is no block of %llu bytes for %s; fewer cells or checkpoints, layers or sequences "
      "need less (kvc_cache_memory_bytes)",
      static_cast<unsigned long long>(block->bytes),
      place == Place::device ? "K, V, states and workspace" : "the bookkeeping");
}

}  // namespace kvc
