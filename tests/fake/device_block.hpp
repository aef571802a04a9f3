#pragma once
#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>
#include <mutex>
#include <new>

#include "tests/fake/fake_device.hpp"

/// Memory that the host cannot read where it is, for devices that are made for tests.
namespace fake {

/// Two mappings of the same memory: one that only the device's calls may use, and one for tests to look at.
class DeviceBlock {
 public:
  static DeviceBlock* make(size_t bytes) noexcept {
    auto* block = new (std::nothrow) DeviceBlock();
    if (block == nullptr || !block->map(bytes)) {
      delete block;
      return nullptr;
    }
    return block;
  }
  ~DeviceBlock() {
    // In this order: another thread that gets the first address asks for the second.
    if (on_host_ != nullptr) munmap(on_host_, bytes_);
    if (data_ != nullptr) munmap(data_, bytes_);
  }
  DeviceBlock(const DeviceBlock&) = delete;
  DeviceBlock& operator=(const DeviceBlock&) = delete;

  std::byte* data() const { return data_; }
  std::byte* on_host() const { return on_host_; }
  size_t bytes() const { return bytes_; }
  bool contains(const std::byte* address) const {
    return address >= data_ && address < data_ + bytes_;
  }

  void enter() {
    const std::lock_guard lock(mutex_);
    if (n_inside_++ == 0) mprotect(data_, bytes_, PROT_READ | PROT_WRITE);
  }
  void leave() {
    const std::lock_guard lock(mutex_);
    if (--n_inside_ > 0) return;
    // Which takes as long as the mapping has pages: it forgets them, and a call that reads a few rows finds those again.
    madvise(data_, bytes_, MADV_DONTNEED);
    mprotect(data_, bytes_, PROT_NONE);
  }

  DeviceBlock* next = nullptr;

 private:
  DeviceBlock() = default;

  bool map(size_t bytes) {
    constexpr size_t huge = size_t{2} << 20;
    bytes_ = (bytes + huge - 1) / huge * huge;
    if (bytes_ < bytes || bytes_ > host_distance) return false;
    const int file = memfd_create("kvc device for tests", MFD_CLOEXEC);
    if (file < 0) return false;
    const bool mapped = ftruncate(file, static_cast<off_t>(bytes_)) == 0 && map_twice(file);
    close(file);
    return mapped;
  }
  bool map_twice(int file) {
    // The aligned block replaces a part of room that is held meanwhile, because other threads map, too. The second address
    // follows from the first, so it is asked for.
    constexpr size_t huge = size_t{2} << 20;
    void* room = mmap(nullptr, bytes_ + huge, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (room == MAP_FAILED) return false;
    const uintptr_t begin = reinterpret_cast<uintptr_t>(room);
    const uintptr_t at = (begin + huge - 1) / huge * huge;
    data_ = map_at(at, PROT_NONE, MAP_FIXED, file);
    if (at > begin) munmap(room, at - begin);
    munmap(reinterpret_cast<void*>(at + bytes_), begin + huge - at);
    if (data_ != nullptr)
      on_host_ = map_at(at - host_distance, PROT_READ | PROT_WRITE, MAP_FIXED_NOREPLACE, file);
    return on_host_ != nullptr;
  }
  std::byte* map_at(uintptr_t address, int protection, int flags, int file) {
    void* mapped = mmap(reinterpret_cast<void*>(address), bytes_, protection, MAP_SHARED | flags,
                        file, 0);
    return mapped == MAP_FAILED ? nullptr : static_cast<std::byte*>(mapped);
  }

  std::byte* data_ = nullptr;
  std::byte* on_host_ = nullptr;
  size_t bytes_ = 0;
  std::mutex mutex_;
  int32_t n_inside_ = 0;
};

/// The blocks of all devices of the process that are made for tests.
class Blocks {
 public:
  static void add(DeviceBlock* block) {
    const std::lock_guard lock(mutex_);
    block->next = first_;
    first_ = block;
  }
  static void remove(const void* data) {
    const std::lock_guard lock(mutex_);
    for (DeviceBlock** at = &first_; *at != nullptr; at = &(*at)->next) {
      if ((*at)->data() != data) continue;
      DeviceBlock* found = *at;
      *at = found->next;
      delete found;
      return;
    }
  }
  static DeviceBlock* holding(const std::byte* address) {
    const std::lock_guard lock(mutex_);
    DeviceBlock* block = first_;
    while (block != nullptr && !block->contains(address)) block = block->next;
    return block;
  }
  /// Calls use(block) for each.
  template <class Use>
  static void for_each(Use use) {
    const std::lock_guard lock(mutex_);
    for (DeviceBlock* block = first_; block != nullptr; block = block->next) use(*block);
  }

 private:
  static inline std::mutex mutex_;
  static inline DeviceBlock* first_ = nullptr;
};

}  // namespace fake
