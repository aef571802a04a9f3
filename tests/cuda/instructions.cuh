#pragma once
#include "kernels/cuda/kernel.cuh"
#include "tests/cuda/instructions.hpp"

namespace instructions {
namespace {

using namespace kvc::cuda;

KVC_DEVICE double double_of(uint32_t low, uint32_t high) {
  union {
    uint32_t w[2];
    double x;
  } bits = {{low, high}};
  return bits.x;
}
KVC_DEVICE void store_double(double x, uint32_t* to) {
  union {
    double x;
    uint32_t w[2];
  } bits = {x};
  to[0] = bits.w[0];
  to[1] = bits.w[1];
}

/// Each lane's first four words as a row of 16 bytes in shared memory.
KVC_DEVICE void write_rows(const uint32_t* in, int lane) {
  auto* const rows = reinterpret_cast<uint32_t*>(shared_memory());
  for (int i = 0; i < 4; ++i) rows[lane * 4 + i] = in[i];
  sync_warp();
}

template <class T>
KVC_DEVICE void multiply(const uint32_t* in, uint32_t* out) {
  float d[4] = {float_of(in[6]), float_of(in[7]), float_of(in[8]), float_of(in[9])};
  mma_16x8x16<T>(d, {in[0], in[1], in[2], in[3]}, {in[4], in[5]});
  for (int i = 0; i < 4; ++i) out[i] = bits_of(d[i]);
}

KVC_DEVICE void run_one(Instruction instruction, const uint32_t* in, uint32_t* out, int lane) {
  const auto row = shared_address() + static_cast<uint32_t>(lane) * 16;
  const float a = float_of(in[0]), b = float_of(in[1]), c = float_of(in[2]);
  uint32_t m[4];
  switch (instruction) {
    case Instruction::shuffle: out[0] = shuffle(in[0], static_cast<int>(in[1] % 32)); return;
    case Instruction::shuffle_xor:
      out[0] = shuffle_xor(in[0], shuffle(static_cast<int>(in[1] % 32), 0));
      return;
    case Instruction::largest_of_lanes: out[0] = largest_of_lanes(in[0]); return;
    case Instruction::any_lane: out[0] = any_lane(in[0] % 40 == 0) ? 1 : 0; return;
    case Instruction::transpose_8x8: out[0] = transpose_8x8(in[0]); return;
    case Instruction::load_matrices:
    case Instruction::load_matrices_transposed:
      write_rows(in, lane);
      if (instruction == Instruction::load_matrices) {
        load_matrices(m, row);
      } else {
        load_matrices_transposed(m, row);
      }
      for (int i = 0; i < 4; ++i) out[i] = m[i];
      return;
    case Instruction::permute: out[0] = permute(in[0], in[1], in[2] & 0x7777u); return;
    case Instruction::select_and_flip: out[0] = select_and_flip(in[0], in[1], in[2]); return;
    case Instruction::load_stream:
    case Instruction::load_stream_8:
    case Instruction::load_stream_4:
    case Instruction::copy_async: return;  // they need addresses
    case Instruction::round_f32:
      out[0] = bits_of(multiply_rounded(a, b));
      out[1] = bits_of(add_rounded(a, b));
      out[2] = bits_of(subtract_rounded(a, b));
      out[3] = bits_of(divide_rounded(a, b));
      return;
    case Instruction::pack:
      out[0] = Bf16::pack(a, b);
      out[1] = F16::pack(a, b);
      return;
    case Instruction::unpack:
      out[0] = bits_of(Bf16::low(in[0]));
      out[1] = bits_of(Bf16::high(in[0]));
      out[2] = bits_of(F16::low(in[0]));
      out[3] = bits_of(F16::high(in[0]));
      return;
    case Instruction::count_bits: out[0] = static_cast<uint32_t>(count_bits(in[0])); return;
    case Instruction::multiply_add: out[0] = bits_of(multiply_add(a, b, c)); return;
    case Instruction::multiply_add_f16: out[0] = F16::multiply_add(in[0], in[1], in[2]); return;
    case Instruction::exp2_fast: out[0] = bits_of(exp2_fast(a)); return;
    case Instruction::cosine: {
      double cosine = 0, sine = 0;
      cosine_and_sine(double_of(in[0], in[1]), &cosine, &sine);
      store_double(cosine, out);
      store_double(sine, out + 2);
      return;
    }
    case Instruction::exponential: store_double(exponential(double_of(in[0], in[1])), out); return;
    case Instruction::mma_bf16: return multiply<Bf16>(in, out);
    case Instruction::mma_f16: return multiply<F16>(in, out);
    case Instruction::n: return;
  }
}

KVC_DEVICE bool needs_addresses(Instruction instruction) {
  return instruction == Instruction::load_stream || instruction == Instruction::load_stream_8 ||
         instruction == Instruction::load_stream_4 || instruction == Instruction::copy_async;
}

/// 16 bytes or fewer from the beginning of another lane's words: a load, or a copy by way of shared memory, of which some lanes get zeros.
KVC_DEVICE void run_from_memory(const Params& p, const uint32_t* round, uint32_t* out, int lane) {
  const uint32_t from = round[lane * words_in] % 8;  // words of 16 bytes begin at every fourth pair
  const void* const address = round + from * 4;
  if (p.instruction == Instruction::load_stream) {
    const Word4 loaded = load_stream(address);
    for (int i = 0; i < 4; ++i) out[i] = loaded.w[i];
    return;
  }
  if (p.instruction == Instruction::load_stream_8) {
    const Word2 loaded = load_stream_8(address);
    out[0] = loaded.w[0];
    out[1] = loaded.w[1];
    return;
  }
  if (p.instruction == Instruction::load_stream_4) {
    out[0] = load_stream_4(address);
    return;
  }
  copy_async(shared_address() + static_cast<uint32_t>(lane) * 16, address, lane % 3 != 0);
  end_copy_group();
  wait_for_copies<0>();
  const auto* const rows = reinterpret_cast<const uint32_t*>(shared_memory());
  for (int i = 0; i < 4; ++i) out[i] = rows[lane * 4 + i];
}

/// Words that an instruction does not write are 0.
KVC_GLOBAL void run_instruction(KVC_PARAMS(Params) p) {
  const int lane = thread_index();
  for (int32_t round = 0; round < p.n_rounds; ++round) {
    const uint32_t* const in = p.in + round * lanes * words_in;
    uint32_t out[words_out] = {};
    if (needs_addresses(p.instruction)) {
      run_from_memory(p, in, out, lane);
    } else {
      run_one(p.instruction, in + lane * words_in, out, lane);
    }
    sync_warp();
    for (int i = 0; i < words_out; ++i) p.out[(round * lanes + lane) * words_out + i] = out[i];
  }
}

}  // namespace
}  // namespace instructions
