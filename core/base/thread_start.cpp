#include "core/base/thread_start.hpp"

#include <link.h>

#include <cstddef>

namespace kvc {
namespace {

/// Kernels need 12 KiB of a stack at most, and several times as much with sanitizers. `ulimit -s`, the default, may be more
/// than the address space has for 256 threads.
constexpr size_t for_kernels = size_t{256} << 10;

/// glibc lays the thread-local storage of a thread on its stack. What all modules of the process have of it:
size_t thread_local_bytes() noexcept {
  size_t bytes = 0;
  const auto add = [](dl_phdr_info* module, size_t, void* sum) noexcept {
    for (int i = 0; i < module->dlpi_phnum; ++i) {
      const auto& segment = module->dlpi_phdr[i];
      if (segment.p_type == PT_TLS) *static_cast<size_t*>(sum) += segment.p_memsz + segment.p_align;
    }
    return 0;
  };
  dl_iterate_phdr(add, &bytes);
  return bytes;
}

size_t stack_bytes() noexcept {
  constexpr size_t largest_page = size_t{64} << 10;
  return (for_kernels + thread_local_bytes() + largest_page - 1) & ~(largest_page - 1);
}

}  // namespace

ThreadStart::ThreadStart() noexcept : error_(pthread_attr_init(&attributes_)) {
  if (error_ == 0) error_ = pthread_attr_setstacksize(&attributes_, stack_bytes());
}

ThreadStart::~ThreadStart() { pthread_attr_destroy(&attributes_); }

int ThreadStart::operator()(pthread_t* thread, void* (*body)(void*), void* argument) const noexcept {
  return error_ != 0 ? error_ : pthread_create(thread, &attributes_, body, argument);
}

}  // namespace kvc
