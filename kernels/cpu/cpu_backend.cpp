#include "kernels/cpu/cpu_backend.hpp"

#include <sys/mman.h>

#include <cstring>
#include <new>

#include "kernels/cpu/attention.hpp"
#include "kernels/cpu/kernel_table.hpp"
#include "kernels/cpu/rows.hpp"

namespace kvc::cpu {
namespace {

constexpr size_t page = 4096;
constexpr size_t huge_page = size_t{2} << 20;

size_t alignment_for(size_t bytes) { return bytes >= huge_page ? huge_page : page; }

/// `bytes` rounded up to pages; 0 when there is no such number.
size_t whole_pages(size_t bytes) {
  const size_t rounded = (bytes + page - 1) & ~(page - 1);
  return rounded < bytes ? 0 : rounded;
}

/// Makes every page present now, so that the first pass does not pay for it.
void touch(std::byte* block, size_t bytes) {
#if defined(MADV_POPULATE_WRITE)
  if (madvise(block, bytes, MADV_POPULATE_WRITE) == 0) return;
#endif
  for (size_t i = 0; i < bytes; i += page)
    static_cast<volatile std::byte*>(block)[i] = std::byte{0};
}

void* map_pages(size_t bytes, bool prefault) {
  const size_t wanted = whole_pages(bytes);
  const size_t alignment = alignment_for(bytes);
  const size_t mapped = wanted + (alignment - page);
  if (wanted == 0 || mapped < wanted) return nullptr;
  void* region = mmap(nullptr, mapped, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (region == MAP_FAILED) return nullptr;
  auto* begin = static_cast<std::byte*>(region);
  const auto address = reinterpret_cast<uintptr_t>(begin);
  const size_t front = (alignment - address % alignment) % alignment;
  const size_t back = mapped - front - wanted;
  if (front > 0) munmap(begin, front);
  if (back > 0) munmap(begin + front + wanted, back);
  std::byte* block = begin + front;
#if defined(MADV_HUGEPAGE)
  if (alignment == huge_page)
    madvise(block, wanted, MADV_HUGEPAGE);  // a wish: without it we are only slower
#endif
  if (prefault) touch(block, wanted);
  return block;
}

}  // namespace

Status CpuBackend::create(int32_t n_threads, const Allocator* allocator,
                          std::unique_ptr<Backend>& out) noexcept {
  ThreadPool* pool = nullptr;
  const Status status = ThreadPool::create(n_threads, &pool);
  if (status != Status::ok) return status;
  auto* backend = new (std::nothrow) CpuBackend(pool, allocator ? *allocator : Allocator{});
  if (!backend) {
    ThreadPool::destroy(pool);
    return fail(Status::out_of_memory, "no memory for a backend");
  }
  out.reset(backend);
  return Status::ok;
}

const char* CpuBackend::instruction_set() noexcept { return kernels().name; }

CpuBackend::~CpuBackend() { ThreadPool::destroy(pool_); }

void* CpuBackend::allocate(size_t bytes, bool prefault) noexcept {
  if (bytes == 0) bytes = 1;
  if (!allocator_.alloc) return map_pages(bytes, prefault);
  void* block = allocator_.alloc(allocator_.user, bytes, alignment_for(bytes));
  if (block) std::memset(block, 0, bytes);
  return block;
}

void CpuBackend::release(void* block, size_t bytes) noexcept {
  if (!block) return;
  if (bytes == 0) bytes = 1;
  if (!allocator_.alloc) {
    munmap(block, whole_pages(bytes));
  } else if (allocator_.free) {
    allocator_.free(allocator_.user, block, bytes, alignment_for(bytes));
  }
}

size_t CpuBackend::attention_workspace_bytes(const AttentionBounds& bounds) const noexcept {
  return cpu::attention_workspace_bytes(bounds, pool_->n_threads());
}

Status CpuBackend::store(const StoreParams& params) noexcept {
  store_rows(params, *pool_);
  return Status::ok;
}

Status CpuBackend::load(const LoadParams& params) noexcept {
  load_rows(params, *pool_);
  return Status::ok;
}

Status CpuBackend::move(const MoveParams& params) noexcept {
  move_rows(params, *pool_);
  return Status::ok;
}

Status CpuBackend::clear(const ClearParams& params) noexcept {
  clear_rows(params, *pool_);
  return Status::ok;
}

Status CpuBackend::attention(const AttentionParams& params) noexcept {
  cpu::attention(params, *pool_);
  return Status::ok;
}

}  // namespace kvc::cpu
