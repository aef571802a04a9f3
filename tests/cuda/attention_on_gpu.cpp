// Linked into a test of attention kernels (tests/unit/cuda_attention_check.hpp), it sends their launches to a device instead of the
// shim: the kernels that the backend would choose, with the arrays of the test where they are. So a program's heap is memory that a
// GPU reaches at the same addresses: one block, which CUDA is told of before the first launch.
#include <sys/mman.h>

#include <bit>
#include <cstdio>
#include <cstdlib>
#include <new>

#include "kernels/cuda/attention_kernels.hpp"
#include "tests/cuda/gpu.hpp"
#include "tests/cuda/reachable.hpp"
#include "unit/cuda_attention_check.hpp"

namespace {

/// Blocks of sizes that are powers of two, behind each other; what is given back is given out again. For programs of one thread.
class Heap {
 public:
  static constexpr size_t bytes = size_t{1} << 29, header = 64, classes = 30;

  void* take(size_t wanted) {
    const auto size_class = static_cast<size_t>(std::bit_width(wanted + header - 1));
    if (size_class >= classes) throw std::bad_alloc();
    if (begin_ == nullptr) reserve();
    std::byte* block = free_[size_class];
    if (block != nullptr) {
      free_[size_class] = next(block);
    } else {
      if (taken_ + (size_t{1} << size_class) > bytes) throw std::bad_alloc();
      block = begin_ + taken_;
      taken_ += size_t{1} << size_class;
    }
    *reinterpret_cast<size_t*>(block) = size_class;
    return block + header;
  }
  void give_back(void* given) {
    if (given == nullptr) return;
    auto* const block = static_cast<std::byte*>(given) - header;
    std::byte*& first = free_[*reinterpret_cast<size_t*>(block)];
    next(block) = first;
    first = block;
  }
  std::byte* begin() const { return begin_; }

 private:
  static std::byte*& next(std::byte* block) { return *reinterpret_cast<std::byte**>(block + 8); }
  void reserve() {
    void* const block = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                             MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (block == MAP_FAILED) throw std::bad_alloc();
    begin_ = static_cast<std::byte*>(block);
  }

  std::byte* begin_ = nullptr;
  size_t taken_ = 0;
  std::byte* free_[classes] = {};
};
constinit Heap heap;  // before any other static object

using namespace cuda_attention;

/// The test is not run.
[[noreturn]] void not_for(const DeviceProperties& properties) {
  std::printf("%s is of compute capability %d.%d\n", properties.name, properties.major,
              properties.minor);
  std::exit(77);
}

const AttentionKernel& kernel_of(const AttentionArguments& a, Role role) {
  if (role == Role::weights) return weights_kernel_for(a);
  if (role == Role::narrow) return narrow_kernel_for(a);
  if (role == Role::medium) return *medium_kernel_for(a);
  DeviceProperties properties;
  gpu::need(runtime::properties_of(0, &properties), "properties");
  const Abilities abilities = {.shared_bytes_max = properties.shared_bytes_per_block,
                               .is_sm90 = a.shape.columns > wide_columns};
  if (abilities.is_sm90 && (properties.major != 9 || properties.minor != 0)) not_for(properties);
  const AttentionKernel* const wide = wide_kernel_for(a, abilities);
  if (wide == nullptr) gpu::fail("no kernel serves this call's wide tiles");
  return *wide;
}

void launch(const AttentionArguments& a, Role role, unsigned blocks) {
  [[maybe_unused]] static const bool told = (gpu::make_reachable(heap.begin(), Heap::bytes), true);
  const AttentionKernel& kernel = kernel_of(a, role);
  const Grid grid = {blocks, kernel.threads, kernel.shared_bytes(a)};
  int32_t resident = 0;
  gpu::need(runtime::prepare(kernel.kernel, grid, &resident), kernel.kernel.name);
  gpu::need(launch(kernel, a, blocks, nullptr), kernel.kernel.name);
  gpu::need(runtime::synchronize(nullptr), kernel.kernel.name);
}

[[maybe_unused]] const bool registered = (cuda_attention::launch_elsewhere = launch, true);

}  // namespace

void* operator new(size_t bytes) { return heap.take(bytes); }
void operator delete(void* block) noexcept { heap.give_back(block); }
void operator delete(void* block, size_t) noexcept { heap.give_back(block); }
