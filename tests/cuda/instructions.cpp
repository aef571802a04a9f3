// Every instruction that the simulation imitates, on a GPU beside the simulation: the same bits wherever it promises bits, and within
// what kernels count on where it does not. It prints what tensor cores do to sums, which no document says. Built twice: for a GPU
// (by `make test-cuda`), and over the simulation, which proves the program.
//   instructions [--seed N]
#include <algorithm>
#include <bit>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "core/base/half.hpp"
#include "tests/cuda/gpu.hpp"
#include "tests/cuda/instructions.hpp"

namespace {

using namespace instructions;
namespace runtime = kvc::cuda::runtime;

constexpr int32_t n_rounds = 500;
constexpr size_t n_in = size_t{n_rounds} * lanes * words_in,
                 n_out = size_t{n_rounds} * lanes * words_out;

constexpr const char* names[] = {"shuffle",
                                 "shuffle_xor",
                                 "largest_of_lanes",
                                 "any_lane",
                                 "transpose_8x8",
                                 "load_matrices",
                                 "load_matrices_transposed",
                                 "permute",
                                 "select_and_flip",
                                 "load_stream",
                                 "load_stream_8",
                                 "load_stream_4",
                                 "copy_async",
                                 "round_f32",
                                 "pack",
                                 "unpack",
                                 "count_bits",
                                 "multiply_add",
                                 "multiply_add_f16",
                                 "exp2_fast",
                                 "cosine",
                                 "exponential",
                                 "mma_bf16",
                                 "mma_f16"};
static_assert(std::size(names) == static_cast<size_t>(Instruction::n));
const char* name_of(Instruction instruction) { return names[static_cast<size_t>(instruction)]; }

using Words = std::vector<uint32_t>;

float float_of(uint32_t bits) { return std::bit_cast<float>(bits); }

Words on_gpu(Instruction instruction, const Words& in) {
  const gpu::Memory in_there(in.size() * 4), out_there(n_out * 4);
  Words out(n_out, 0xffffffffu);
  in_there.write(in.data(), in_there.bytes());
  out_there.write(out.data(), out_there.bytes());
  const Params params = {instruction, n_rounds, reinterpret_cast<uint32_t*>(in_there.data()),
                         reinterpret_cast<uint32_t*>(out_there.data())};
  int32_t resident = 0;
  const kvc::cuda::Grid grid = {1, lanes, shared_bytes};
  gpu::need(runtime::prepare(instruction_kernel(), grid, &resident), "prepare");
  gpu::need(runtime::launch(instruction_kernel(), grid, &params, nullptr), "launch");
  gpu::need(runtime::synchronize(nullptr), name_of(instruction));
  out_there.read(out.data(), out_there.bytes());
  return out;
}
Words simulated(Instruction instruction, const Words& in) {
  Words aligned = in, out(n_out, 0xffffffffu);  // a vector is aligned to 16
  simulate({instruction, n_rounds, aligned.data(), out.data()});
  return out;
}

/// What lanes bring: whatever the instruction takes.
class Inputs {
 public:
  explicit Inputs(unsigned seed) : random_(seed) {}

  Words words() {
    Words made(n_in);
    for (uint32_t& word : made) word = static_cast<uint32_t>(random_());
    return made;
  }
  Words floats(float least, float most) {
    std::uniform_real_distribution<float> value(least, most);
    Words made(n_in);
    for (uint32_t& word : made) word = std::bit_cast<uint32_t>(value(random_));
    return made;
  }
  Words doubles(double least, double most) {
    std::uniform_real_distribution<double> value(least, most);
    Words made(n_in);
    for (size_t i = 0; i + 1 < n_in; i += 2) {
      const double x = value(random_);
      std::memcpy(&made[i], &x, sizeof x);
    }
    return made;
  }
  /// Of a product of matrices: a and b in 16 bits, c in f32. `size` of a number; integers where sums must be exact.
  Words matrices(bool are_bf16, bool are_integers, float spread) {
    std::normal_distribution<float> normal;
    const auto number = [&] {
      if (are_integers) return static_cast<float>(static_cast<int32_t>(random_() % 17) - 8);
      return normal(random_) * std::exp2(spread * normal(random_));
    };
    const auto half = [&] {
      return are_bf16 ? kvc::f32_to_bf16(number()) : kvc::f32_to_f16(number());
    };
    Words made(n_in);
    for (size_t i = 0; i < n_in; ++i) {
      const uint32_t low = half(), high = half();
      made[i] = i % words_in < 6 ? low | high << 16 : std::bit_cast<uint32_t>(number());
    }
    return made;
  }

 private:
  std::mt19937 random_;
};

void need_same(Instruction instruction, const Words& in) {
  const Words want = simulated(instruction, in), got = on_gpu(instruction, in);
  for (size_t i = 0; i < n_out; ++i) {
    if (want[i] == got[i]) continue;
    char text[160];
    std::snprintf(text, sizeof text,
                  "%s: lane %zu, word %zu of round %zu is %08x on the GPU, simulated %08x",
                  name_of(instruction), i / words_out % lanes, i % words_out, i / words_out / lanes,
                  got[i], want[i]);
    gpu::fail(text);
  }
  std::printf("%s: the same bits\n", name_of(instruction));
}

/// Calls error(in, out) for each lane; the largest must be at most `at_most`.
template <class ErrorOf>
void need_close(Instruction instruction, const Words& in, double at_most, ErrorOf error_of) {
  const Words out = on_gpu(instruction, in);
  double worst = 0;
  for (size_t lane = 0; lane < size_t{n_rounds} * lanes; ++lane) {
    const double error = error_of(&in[lane * words_in], &out[lane * words_out]);
    if (!(error <= at_most))
      gpu::fail(std::string(name_of(instruction)) + " is off by " +
                std::to_string(error / at_most) + " of what it may be");
    worst = std::max(worst, error);
  }
  std::printf("%s: off by at most %.3g, and may be by %.3g\n", name_of(instruction), worst, at_most);
}

double double_at(const uint32_t* words) {
  double x = 0;
  std::memcpy(&x, words, sizeof x);
  return x;
}

/// One element of a product of matrices: its addends, c last.
struct Sum {
  double addends[17];
};
Sum sum_of(const Words& in, size_t round, size_t lane, size_t i, bool are_bf16) {
  const auto word = [&](size_t of_lane, size_t at) {
    return in[(round * lanes + of_lane) * words_in + at];
  };
  const auto number = [&](uint32_t pair, size_t half) {
    const auto bits = static_cast<uint16_t>(pair >> 16 * half);
    return static_cast<double>(are_bf16 ? kvc::bf16_to_f32(bits) : kvc::f16_to_f32(bits));
  };
  const size_t row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
  Sum sum;
  for (size_t k = 0; k < 16; ++k) {
    // Row r of a is words r / 8 (and 2 more from k = 8 on) of lanes 4 (r % 8) …; column n of b lies in lanes 4 n ….
    const double left = number(word(row % 8 * 4 + k % 8 / 2, row / 8 + k / 8 * 2), k % 2);
    const double right = number(word(column * 4 + k % 8 / 2, 4 + k / 8), k % 2);
    sum.addends[k] = left * right;
  }
  sum.addends[16] = static_cast<double>(float_of(word(lane, 6 + i)));
  return sum;
}

/// Sums that kernels count on: addends cut off one bit below the last place of the largest, and the sum at its own last place.
void check_sums(Instruction instruction, const Words& in, bool are_bf16, float spread) {
  const Words got = on_gpu(instruction, in), model = simulated(instruction, in);
  size_t n_model = 0, n_nearest = 0;
  double worst = 0, worst_in_places = 0;
  for (size_t at = 0; at < n_out; ++at) {
    const size_t lane = at / words_out % lanes;
    const Sum sum = sum_of(in, at / words_out / lanes, lane, at % words_out, are_bf16);
    long double exact = 0;
    double largest = 0;
    for (const double addend : sum.addends) {
      exact += static_cast<long double>(addend);
      largest = std::max(largest, std::fabs(addend));
    }
    const auto result = static_cast<double>(float_of(got[at]));
    const double error = std::fabs(static_cast<double>(static_cast<long double>(result) - exact));
    const double place = std::ldexp(1, std::ilogb(largest) - 23);
    const double own = std::ldexp(1, std::ilogb(std::max(std::fabs(result), largest * 0x1p-30)) - 23);
    const double at_most = 17 * place / 2 + own;
    if (!(error <= at_most))
      gpu::fail(std::string(name_of(instruction)) + ": a sum is off by " +
                std::to_string(error / at_most) + " of what the simulation's may be");
    worst = std::max(worst, error / at_most);
    worst_in_places = std::max(worst_in_places, error / place);
    n_model += got[at] == model[at] ? 1 : 0;
    n_nearest += static_cast<float>(exact) == float_of(got[at]) ? 1 : 0;
  }
  std::printf(
      "%s, spread %.0f: %.1f %% of sums are the simulation's, %.1f %% rounded to nearest; at most "
      "%.0f %% of the "
      "worst that kernels count on, %.2f last places of the largest addend\n",
      name_of(instruction), static_cast<double>(spread), 100.0 * static_cast<double>(n_model) / n_out,
      100.0 * static_cast<double>(n_nearest) / n_out, 100 * worst, worst_in_places);
}

void run(unsigned seed) {
  Inputs inputs(seed);
  for (const Instruction each :
       {Instruction::shuffle, Instruction::shuffle_xor, Instruction::largest_of_lanes,
        Instruction::any_lane, Instruction::transpose_8x8, Instruction::load_matrices,
        Instruction::load_matrices_transposed, Instruction::permute, Instruction::select_and_flip,
        Instruction::load_stream, Instruction::load_stream_8, Instruction::load_stream_4,
        Instruction::copy_async, Instruction::count_bits})
    need_same(each, inputs.words());
  need_same(Instruction::round_f32, inputs.floats(-100, 100));
  need_same(Instruction::pack, inputs.floats(-1000, 1000));
  need_same(Instruction::pack, inputs.floats(-0x1p-13f, 0x1p-13f));  // where f16 is subnormal
  Words halves = inputs.words();
  for (uint32_t& pair : halves) pair &= 0xbfffbfffu;  // no NaN: its bits are free
  need_same(Instruction::unpack, halves);
  // Fused on a GPU, and off by nothing; the simulation rounds twice.
  need_close(Instruction::multiply_add, inputs.floats(-4, 4), 0x1.1p-23,
             [](const uint32_t* in, const uint32_t* out) {
               const float a = float_of(in[0]), b = float_of(in[1]), c = float_of(in[2]);
               const auto want = static_cast<double>(std::fma(a, b, c));
               const double size = std::fabs(static_cast<double>(a) * static_cast<double>(b)) +
                                   std::fabs(static_cast<double>(c));
               return std::fabs(want - static_cast<double>(float_of(out[0]))) / size;
             });
  // Of integers, which both have exactly, as kernels use it to decode.
  need_same(Instruction::multiply_add_f16, inputs.matrices(false, true, 0));
  // 2^-22, and what the simulation rounds.
  need_close(Instruction::exp2_fast, inputs.floats(-120, 20), 0x1.cp-22,
             [](const uint32_t* in, const uint32_t* out) {
               const double want = std::exp2(static_cast<double>(float_of(in[0])));
               return std::fabs(static_cast<double>(float_of(out[0])) - want) / want;
             });
  need_close(Instruction::cosine, inputs.doubles(-3e6, 3e6), 1e-14,
             [](const uint32_t* in, const uint32_t* out) {
               const double angle = double_at(in);
               return std::max(std::fabs(double_at(out) - std::cos(angle)),
                               std::fabs(double_at(out + 2) - std::sin(angle)));
             });
  need_close(Instruction::exponential, inputs.doubles(-700, 0), 1e-15,
             [](const uint32_t* in, const uint32_t* out) {
               const double want = std::exp(double_at(in));
               return std::fabs(double_at(out) - want) / want;
             });
  for (const Instruction each : {Instruction::mma_bf16, Instruction::mma_f16}) {
    const bool are_bf16 = each == Instruction::mma_bf16;
    need_same(each, inputs.matrices(are_bf16, true, 0));
    for (const float spread : {0.0f, 2.0f})
      check_sums(each, inputs.matrices(are_bf16, false, spread), are_bf16, spread);
  }
}

}  // namespace

int main(int argc, char** argv) {
  unsigned seed = std::random_device()();
  if (argc == 3 && std::strcmp(argv[1], "--seed") == 0)
    seed = static_cast<unsigned>(std::atoll(argv[2]));
  std::printf("seed %u, %d rounds of a warp for each\n", seed, n_rounds);
  run(seed);
  return 0;
}
