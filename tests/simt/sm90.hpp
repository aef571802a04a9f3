#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <type_traits>

#include "tests/simt/simt.hpp"

/// What warps of a block do apart from each other, as GPUs of compute capability 9.0 can: barriers in shared memory, which copies
/// arrive at too; products of groups of four warps, which run while the warps go on; registers that one group leaves to another.
///
/// What it finds, beside what simt.hpp says: waits for the wrong phase and barriers that are used before they are there; results
/// that are read, and factors that are changed, before their product is done (it runs when it is begun, or as late as when it
/// is waited for); shared memory that was written and not published to the units that multiply, or to those that copy boxes there;
/// products without a fence before; counts that do not match (a deadlock).
namespace simt::sm90 {

inline constexpr unsigned group_threads = 128;

/// The threads of a group of warps bring the address of something each, under the same name. The last to come calls `act`, which
/// owns nothing: a launch that has failed abandons its threads where they are.
using Brought = std::array<const void*, group_threads>;
void meet(const char* name, const void* own, void (*act)(const void* context, const Brought&),
          const void* context);
template <class Act>
void meet(const char* name, const void* own, const Act& act) {
  static_assert(std::is_trivially_destructible_v<Act>);
  const auto call = [](const void* context, const Brought& brought) {
    (*static_cast<const Act*>(context))(brought);
  };
  meet(name, own, call, &act);
}

/// Waits until n threads of the block are at this barrier; 0 is that of sync_block().
void sync_threads(unsigned barrier, unsigned n);

// Barriers in shared memory, at an offset.
void init_barrier(size_t at, unsigned count);
void arrive(size_t at);
/// When the copies that the thread has begun have landed.
void arrive_when_copied(size_t at);
/// As arrive(), of a phase that ends when so many bytes have landed, too.
void arrive_and_expect(size_t at, size_t bytes);

/// Lines of 128 bytes of 64 elements, which a copy brings to shared memory with chunks of 16 bytes exchanged. They land eight at a
/// time, in any order, and tell the barrier; until then what was there is NaN.
struct Box {
  const char* from;  // the first element
  size_t row_stride, n_rows;
  size_t row_bytes;  // of a line, behind which zeros are
};
void copy_box(size_t to, const Box& box, size_t barrier);
/// For the end of the phase of this parity. It is over at once where that is the phase before the current one.
void wait_for_phase(size_t at, unsigned parity);

/// Units that multiply see what is in shared memory now; not what is written later.
void publish_shared();
/// Shared memory as they see it.
const char* published();

/// A group of warps wants so many registers a thread, fewer than before or more.
void change_registers(unsigned n, bool to_more);

// Products of a group of warps, in groups. Their sums are NaN until they are waited for.

/// What a thread brings to a product: its sums, its part of the left factor or where that is, and where the right one is.
struct Factors {
  float* sums;
  const uint32_t* left;
  uint64_t left_matrix, right_matrix;
  bool right_by_rows, accumulates;

  bool agrees(const Factors& other) const {
    return (left == nullptr) == (other.left == nullptr) && left_matrix == other.left_matrix &&
           right_matrix == other.right_matrix && accumulates == other.accumulates;
  }
};
using GroupFactors = std::array<Factors, group_threads>;
using GroupSums = std::array<float*, group_threads>;

/// 64 rows, of which a thread has n/2 sums.
struct Product {
  GroupFactors of;
  size_t n_sums;  // of a thread
  void (*add)(const GroupFactors& of, GroupSums& sums);
};
/// By one thread for its group: in meet().
void begin_product(const Product& product);
// By all.
void fence_products();
void end_product_group();
void wait_for_products(size_t n_left);

}  // namespace simt::sm90
