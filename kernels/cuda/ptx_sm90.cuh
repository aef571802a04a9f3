#pragma once
#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/runtime.hpp"

/// What ptx.cuh is for instructions of compute capability 9.0: barriers in shared memory, products of groups of four warps whose
/// factors lie there, and registers that one group leaves to another.
namespace kvc::cuda {

/// A matrix in shared memory as such products name it: lines of 128 bytes, 64 elements, whose chunks of 16 bytes are exchanged by
/// the last three bits of the line. `shared`, a multiple of 1024 but for the dims that are skipped, is where its first 64 elements
/// of each line begin, `leading` how far from there to the next 64.
KVC_DEVICE uint64_t matrix_at(uint32_t shared, int leading) {
  constexpr uint64_t eight_lines = 8 * 128, exchanged_by_128 = 1;
  return static_cast<uint64_t>(shared & 0x3ffffu) >> 4 |
         static_cast<uint64_t>(leading) >> 4 << 16 | eight_lines >> 4 << 32 |
         exchanged_by_128 << 62;
}

}  // namespace kvc::cuda

#if defined(KVC_SIMT)
#include "tests/simt/sm90_instructions.hpp"
#else

namespace kvc::cuda {

/// A barrier of n threads of the block; 0 is that of sync_block().
KVC_DEVICE void sync_threads(int barrier, int n) {
  asm volatile("bar.sync %0, %1;" ::"r"(barrier), "r"(n) : "memory");
}

// Barriers of 8 bytes in shared memory. A phase of theirs ends with the count-th arrival; the first is of parity 0.

/// By one thread; another barrier has to follow before the first use.
KVC_DEVICE void init_barrier(uint32_t barrier, int count) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(barrier), "r"(count) : "memory");
}
/// What the thread did before is done for those who wait for the phase.
KVC_DEVICE void arrive(uint32_t barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(barrier) : "memory");
}
/// As arrive(), of a phase that ends when so many bytes of boxes have landed, too.
KVC_DEVICE void arrive_and_expect(uint32_t barrier, int bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(barrier), "r"(bytes) : "memory");
}
/// By one thread, which will copy boxes of it soon.
KVC_DEVICE void prefetch_map(const RowMap& map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(&map) : "memory");
}
/// By one thread: copies a box, from these on, to lines of 128 bytes as matrix_at() wants them, and tells the barrier. The unit that
/// does it sees of barriers and of memory that threads have used what publish_shared() was called behind; units that multiply see
/// what it has written.
KVC_DEVICE void copy_box(uint32_t shared, const RowMap& map, int dim, int row, int head, uint32_t barrier) {
  asm volatile(
      "cp.async.bulk.tensor.3d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3, %4}], [%5];" ::"r"(shared),
      "l"(&map), "r"(dim), "r"(row), "r"(head), "r"(barrier)
      : "memory");
}
/// An arrival when all copies that the thread has begun have landed. It waits for none of them.
KVC_DEVICE void arrive_when_copied(uint32_t barrier) {
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(barrier) : "memory");
}
/// For the end of the current phase, if its parity is that, or else for nothing.
KVC_DEVICE void wait_for_phase(uint32_t barrier, int parity) {
  asm volatile(
      "{\n.reg .pred over;\n"
      "AGAIN: mbarrier.try_wait.parity.shared::cta.b64 over, [%0], %1;\n"
      "@!over bra AGAIN;\n}" ::"r"(barrier),
      "r"(parity)
      : "memory");
}

/// What is in shared memory for the threads of this warp, which all call it, is so for the units that multiply or copy boxes, too.
KVC_DEVICE void publish_shared() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }

/// A group of four warps goes on with fewer registers a thread, or waits until there are more.
template <int n>
KVC_DEVICE void give_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(n));
}
template <int n>
KVC_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(n));
}

// Products of a group of four warps, which go on meanwhile. Nobody may touch sums or factors until they have been waited for.

/// Before products whose sums or factors in registers the threads have touched.
KVC_DEVICE void fence_products() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
/// Products that were begun since the last end of a group are a group.
KVC_DEVICE void end_product_group() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
/// For all groups but the last n_left. `sums` are those of products that are done then: the compiler does not use them earlier.
template <int n_left, int n>
KVC_DEVICE void wait_for_products(float (&sums)[n][4]) {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(n_left) : "memory");
  KVC_UNROLL for (int i = 0; i < n; ++i)
    KVC_UNROLL for (int e = 0; e < 4; ++e) asm volatile("" : "+f"(sums[i][e])::"memory");
}

// d = a · b, or += where it accumulates: 64 × 16 by 16 × n, on tensor cores. A thread has of d what it has of mma_16x8x16, the four
// warps 16 rows each. From shared memory, a lies by rows and b by columns; from registers, a as in mma_16x8x16 and b by rows.
template <class T, int n>
KVC_DEVICE void multiply_shared(float (&d)[n / 8][4], uint64_t a, uint64_t b, bool accumulates);
template <class T, int n>
KVC_DEVICE void multiply_registers(float (&d)[n / 8][4], const uint32_t (&a)[4], uint64_t b,
                                   bool accumulates);

#define KVC_SUMS_8(d, i)                                                                      \
  "+f"(d[i][0]), "+f"(d[i][1]), "+f"(d[i][2]), "+f"(d[i][3]), "+f"(d[i + 1][0]), "+f"(d[i + 1][1]), \
      "+f"(d[i + 1][2]), "+f"(d[i + 1][3])
#define KVC_SUMS_32(d, i) \
  KVC_SUMS_8(d, i), KVC_SUMS_8(d, i + 2), KVC_SUMS_8(d, i + 4), KVC_SUMS_8(d, i + 6)
#define KVC_SUMS_64(d) KVC_SUMS_32(d, 0), KVC_SUMS_32(d, 8)
#define KVC_NAMES_32                                                                      \
  "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23," \
  "%24,%25,%26,%27,%28,%29,%30,%31"
#define KVC_NAMES_64                                                                       \
  KVC_NAMES_32                                                                             \
  ",%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53," \
  "%54,%55,%56,%57,%58,%59,%60,%61,%62,%63"
#define KVC_MULTIPLY(T, n, type, sums, names, left, right, accumulated, four, after)                 \
  template <>                                                                                        \
  KVC_DEVICE void multiply_shared<T, n>(float (&d)[n / 8][4], uint64_t a, uint64_t b,                \
                                        bool accumulates) {                                          \
    asm volatile("{\n.reg .pred adds;\nsetp.ne.b32 adds, " accumulated ", 0;\n"                      \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" names "}, "    \
                 left ", " right ", adds, 1, 1, 0, 0;\n}"                                            \
                 : sums                                                                              \
                 : "l"(a), "l"(b), "r"(accumulates ? 1 : 0));                                        \
  }                                                                                                  \
  template <>                                                                                        \
  KVC_DEVICE void multiply_registers<T, n>(float (&d)[n / 8][4], const uint32_t (&a)[4], uint64_t b, \
                                           bool accumulates) {                                       \
    asm volatile("{\n.reg .pred adds;\nsetp.ne.b32 adds, " after ", 0;\n"                            \
                 "wgmma.mma_async.sync.aligned.m64n" #n "k16.f32." type "." type " {" names "}, "    \
                 four ", adds, 1, 1, 1;\n}"                                                          \
                 : sums                                                                              \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "r"(accumulates ? 1 : 0));    \
  }
#define KVC_MULTIPLY_64(T, type) \
  KVC_MULTIPLY(T, 64, type, KVC_SUMS_32(d, 0), KVC_NAMES_32, "%32", "%33", "%34", "{%32,%33,%34,%35}, %36", "%37")
#define KVC_MULTIPLY_128(T, type) \
  KVC_MULTIPLY(T, 128, type, KVC_SUMS_64(d), KVC_NAMES_64, "%64", "%65", "%66", "{%64,%65,%66,%67}, %68", "%69")
KVC_MULTIPLY_64(Bf16, "bf16")
KVC_MULTIPLY_64(F16, "f16")
KVC_MULTIPLY_128(Bf16, "bf16")
KVC_MULTIPLY_128(F16, "f16")

}  // namespace kvc::cuda
#endif
