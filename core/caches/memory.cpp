#include "core/caches/memory.hpp"

namespace kvc {
namespace {

const char* contents_of(Place place) {
  switch (place) {
    case Place::host: return "the bookkeeping";
    case Place::device: return "K, V, states and workspace";
    case Place::pinned: return "checkpoints in host memory";
  }
  return "";
}

}  // namespace

CacheMemory::~CacheMemory() {
  const auto release = [this](Place place, const Block& block) {
    if (block.data != nullptr) device_->release(place, block.data, block.bytes);
  };
  release(Place::host, host_);
  release(Place::pinned, pinned_);
  release(Place::device, on_device_);
}

bool CacheMemory::measure(const Carver& host, const Carver& on_device, const Carver& pinned) {
  const CheckedSize host_bytes = host.used().rounded_up(page_bytes);
  const CheckedSize device_bytes = on_device.used().rounded_up(page_bytes);
  const CheckedSize pinned_bytes = pinned.used().rounded_up(page_bytes);
  const CheckedSize total = host_bytes + device_bytes + pinned_bytes;
  if (total.overflowed() || total.value() > static_cast<uint64_t>(PTRDIFF_MAX)) return false;
  host_.bytes = host_bytes.value();
  on_device_.bytes = device_bytes.value();
  pinned_.bytes = pinned_bytes.value();
  return true;
}

Status CacheMemory::take(bool prefault) {
  if (Status s = take(Place::device, prefault, &on_device_); s != Status::ok) return s;
  if (pinned_.bytes > 0) {
    if (Status s = take(Place::pinned, prefault, &pinned_); s != Status::ok) return s;
  }
  return take(Place::host, prefault, &host_);
}

Status CacheMemory::take(Place place, bool prefault, Block* block) {
  block->data = device_->allocate(place, block->bytes, prefault);
  if (block->data != nullptr) return Status::ok;
  return fail(
      Status::out_of_memory,
      "there is no block of %llu bytes for %s; fewer cells or checkpoints, layers or sequences "
      "need less (kvc_cache_memory_bytes)",
      static_cast<unsigned long long>(block->bytes), contents_of(place));
}

}  // namespace kvc
