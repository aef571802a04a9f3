#pragma once
#include <unistd.h>

#include <cstddef>
#include <cstdint>

/// How a block is cut from a mapping. A page is 4 KiB on x86-64, but may be 16 or 64 KiB on other processors, and munmap
/// refuses an address that lies inside one.
namespace kvc::cpu {

inline size_t system_page() noexcept { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

inline constexpr size_t huge_page = size_t{2} << 20;

/// The alignment of a block of this size, whatever a page is.
inline size_t alignment_for(size_t bytes) { return bytes >= huge_page ? huge_page : 4096; }

/// `bytes` rounded up to pages; 0 when there is no such number.
inline size_t whole_pages(size_t bytes, size_t page) {
  const size_t rounded = (bytes + page - 1) & ~(page - 1);
  return rounded < bytes ? 0 : rounded;
}

/// A mapping of `bytes` holds a block of `wanted` at the alignment; `bytes` is 0 when no mapping could. Both are whole pages.
struct MappingSize {
  size_t wanted = 0;
  size_t bytes = 0;
};
inline MappingSize mapping_for(size_t bytes, size_t alignment, size_t page) {
  const size_t wanted = whole_pages(bytes, page);
  const size_t mapped = wanted + (alignment > page ? alignment - page : 0);
  return wanted == 0 || mapped < wanted ? MappingSize{} : MappingSize{wanted, mapped};
}

/// What of a mapping at `address` lies before and behind its block.
struct Ends {
  size_t front = 0;
  size_t back = 0;
};
inline Ends ends_of(uintptr_t address, const MappingSize& mapping, size_t alignment) {
  const size_t front = (alignment - address % alignment) % alignment;
  return {front, mapping.bytes - front - mapping.wanted};
}

}  // namespace kvc::cpu
