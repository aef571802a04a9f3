#pragma once
#include <cstdint>

/// The instructions that C++ has no word for. This is the one place with PTX; with KVC_SIMT the same functions run on the CPU
/// (tests/simt), so that the kernels are tested without a GPU. Kernels contain no other CUDA than these functions.
namespace kvc::cuda {

struct alignas(16) Word4 {
  uint32_t w[4];
};
struct alignas(8) Word2 {
  uint32_t w[2];
};

}  // namespace kvc::cuda

#if defined(KVC_SIMT)
#define KVC_DEVICE inline
#define KVC_TABLE inline constexpr
#define KVC_LAUNCH_BOUNDS(threads, blocks)
#define KVC_UNROLL _Pragma("GCC unroll 64")
#define KVC_UNROLL_2
#define KVC_NO_UNROLL
#include "tests/simt/instructions.hpp"
#else
#include <cuda_fp16.h>
#define KVC_DEVICE __device__ __forceinline__
/// An array at namespace scope that kernels read.
#define KVC_TABLE static __device__ const
/// Threads of a block, and blocks of which a multiprocessor must have room: registers follow from it.
#define KVC_LAUNCH_BOUNDS(threads, blocks) __launch_bounds__(threads, blocks)
#define KVC_UNROLL _Pragma("unroll")
#define KVC_UNROLL_2 _Pragma("unroll 2")
#define KVC_NO_UNROLL _Pragma("unroll 1")

namespace kvc::cuda {

KVC_DEVICE int thread_index() { return static_cast<int>(threadIdx.x); }
KVC_DEVICE int block_index() { return static_cast<int>(blockIdx.x); }
KVC_DEVICE int n_threads() { return static_cast<int>(blockDim.x); }
KVC_DEVICE int n_blocks() { return static_cast<int>(gridDim.x); }
KVC_DEVICE void sync_block() { __syncthreads(); }
KVC_DEVICE char* shared_memory() {
  extern __shared__ __align__(1024) char dynamic_shared[];
  return dynamic_shared;
}

KVC_DEVICE uint32_t bits_of(float x) { return __float_as_uint(x); }
KVC_DEVICE float float_of(uint32_t bits) { return __uint_as_float(bits); }

// These are not fused, whatever the compiler likes: stored bits do not depend on who computed them.
KVC_DEVICE float multiply_rounded(float a, float b) { return __fmul_rn(a, b); }
KVC_DEVICE float add_rounded(float a, float b) { return __fadd_rn(a, b); }
KVC_DEVICE float subtract_rounded(float a, float b) { return __fsub_rn(a, b); }
KVC_DEVICE float divide_rounded(float a, float b) { return __fdiv_rn(a, b); }

KVC_DEVICE int count_bits(uint32_t x) { return __popc(x); }

/// Of any angle, by half turns in two parts: sincos() takes stack for angles that are large.
KVC_DEVICE void cosine_and_sine(double angle, double* cosine, double* sine) {
  constexpr double inverse_pi = 0x1.45f306dc9c883p-2, rest = -0x1.6b01ec5417056p-56;
  const double turns = angle * inverse_pi;
  const double error = fma(angle, rest, fma(angle, inverse_pi, -turns));
  sincospi(turns - 2 * rint(turns / 2) + error, sine, cosine);
}

KVC_DEVICE double exponential(double x) { return exp(x); }

KVC_DEVICE float multiply_add(float a, float b, float c) { return fmaf(a, b, c); }

/// What other blocks have written, behind fence_device().
KVC_DEVICE float load_across_blocks(const float* address) { return __ldcg(address); }

/// 16 bytes that are read once: the first-level cache does not keep them, and the second asks for 256 bytes at a time. Nothing
/// may write them while the kernel runs.
KVC_DEVICE Word4 load_stream(const void* address) {
  Word4 loaded;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0,%1,%2,%3}, [%4];"
               : "=r"(loaded.w[0]), "=r"(loaded.w[1]), "=r"(loaded.w[2]), "=r"(loaded.w[3])
               : "l"(address));
  return loaded;
}

/// The same of 8 bytes, and of 4.
KVC_DEVICE Word2 load_stream_8(const void* address) {
  Word2 loaded;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v2.u32 {%0,%1}, [%2];"
               : "=r"(loaded.w[0]), "=r"(loaded.w[1])
               : "l"(address));
  return loaded;
}
KVC_DEVICE uint32_t load_stream_4(const void* address) {
  uint32_t loaded;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.u32 %0, [%1];" : "=r"(loaded) : "l"(address));
  return loaded;
}

/// Where shared_memory() begins for what names it by number; a multiple of 1024.
KVC_DEVICE uint32_t shared_address() {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared_memory()));
}

/// Copies 16 bytes to shared memory while the thread goes on; zeros where it does not read. They are there for the thread when it
/// has waited for their group, for others behind a barrier after that.
KVC_DEVICE void copy_async(uint32_t shared, const void* global, bool reads) {
  asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(shared), "l"(global),
               "r"(reads ? 16 : 0)
               : "memory");
}
/// Copies that were begun since the last end of a group are a group.
KVC_DEVICE void end_copy_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }
/// For all groups but the last n_left.
template <int n_left>
KVC_DEVICE void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(n_left) : "memory");
}

/// Four of the eight bytes of two words: nibble i of the selector names the i-th.
KVC_DEVICE uint32_t permute(uint32_t low, uint32_t high, uint32_t selector) {
  return __byte_perm(low, high, selector);
}

/// (word & mask) ^ flipped, as one instruction also where both are constants.
KVC_DEVICE uint32_t select_and_flip(uint32_t word, uint32_t mask, uint32_t flipped) {
  uint32_t result;
  asm("lop3.b32 %0, %1, %2, %3, 0x6a;" : "=r"(result) : "r"(word), "r"(mask), "r"(flipped));
  return result;
}

/// To 2^-22.
KVC_DEVICE float exp2_fast(float x) {
  float result;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(result) : "f"(x));
  return result;
}

// Of a warp, whose lanes must all be here.
KVC_DEVICE uint32_t shuffle(uint32_t value, int from) { return __shfl_sync(~0u, value, from); }
KVC_DEVICE int32_t shuffle(int32_t value, int from) { return __shfl_sync(~0u, value, from); }
KVC_DEVICE float shuffle(float value, int from) { return __shfl_sync(~0u, value, from); }
KVC_DEVICE uint32_t shuffle_xor(uint32_t value, int mask) { return __shfl_xor_sync(~0u, value, mask); }
KVC_DEVICE float shuffle_xor(float value, int mask) { return __shfl_xor_sync(~0u, value, mask); }
KVC_DEVICE uint32_t largest_of_lanes(uint32_t value) { return __reduce_max_sync(~0u, value); }
KVC_DEVICE bool any_lane(bool value) { return __any_sync(~0u, value) != 0; }
/// Tells the compiler that all lanes have the same value.
KVC_DEVICE int uniform(int value) { return __shfl_sync(~0u, value, 0); }
KVC_DEVICE void sync_warp() { __syncwarp(); }

/// A matrix of 8 × 8 elements of 16 bits, of which four lanes hold a row, becomes its transpose.
KVC_DEVICE uint32_t transpose_8x8(uint32_t value) {
  uint32_t result;
  asm("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(result) : "r"(value));
  return result;
}

/// Four matrices of 8 × 8 elements of 16 bits from shared memory. Lane i brings the address of row i % 8 of matrix i / 8, and gets
/// elements 2 (i % 4) and the next of row i / 4 of each.
KVC_DEVICE void load_matrices(uint32_t (&m)[4], uint32_t shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(shared_row));
}
/// The same of their transposes.
KVC_DEVICE void load_matrices_transposed(uint32_t (&m)[4], uint32_t shared_row) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(m[0]), "=r"(m[1]), "=r"(m[2]), "=r"(m[3])
               : "r"(shared_row));
}

/// Numbers of 16 bits, two in a word.
struct Bf16 {
  static constexpr bool has_small_range = false;
  static KVC_DEVICE float low(uint32_t pair) { return __uint_as_float(pair << 16); }
  static KVC_DEVICE float high(uint32_t pair) { return __uint_as_float(pair & 0xffff0000u); }
  static KVC_DEVICE uint32_t pack(float low_part, float high_part) {
    uint32_t pair;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high_part), "f"(low_part));
    return pair;
  }
};
struct F16 {
  static constexpr bool has_small_range = true;
  static KVC_DEVICE float low(uint32_t pair) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(pair & 0xffffu)));
  }
  static KVC_DEVICE float high(uint32_t pair) {
    return __half2float(__ushort_as_half(static_cast<unsigned short>(pair >> 16)));
  }
  static KVC_DEVICE uint32_t pack(float low_part, float high_part) {
    uint32_t pair;
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(pair) : "f"(high_part), "f"(low_part));
    return pair;
  }
  /// a · b + c, rounded once.
  static KVC_DEVICE uint32_t multiply_add(uint32_t a, uint32_t b, uint32_t c) {
    uint32_t pair;
    asm("fma.rn.f16x2 %0, %1, %2, %3;" : "=r"(pair) : "r"(a), "r"(b), "r"(c));
    return pair;
  }
};

/// d += a · b, a 16 × 16 by rows, b 16 × 8 by columns, on a tensor core.
template <class T>
KVC_DEVICE void mma_16x8x16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]);
template <>
KVC_DEVICE void mma_16x8x16<Bf16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
template <>
KVC_DEVICE void mma_16x8x16<F16>(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 "
      "{%0,%1,%2,%3},{%4,%5,%6,%7},{%8,%9},{%0,%1,%2,%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}

/// What this thread wrote is seen by other blocks before what it writes next.
KVC_DEVICE void fence_device() { __threadfence(); }
/// Returns what was there before.
KVC_DEVICE int32_t atomic_add(int32_t* to, int32_t value) { return atomicAdd(to, value); }

}  // namespace kvc::cuda
#endif
