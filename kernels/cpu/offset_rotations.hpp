#pragma once
#include <cstdint>

#include "core/attention/params.hpp"
#include "core/base/carver.hpp"
#include "kernels/cpu/kernel_table.hpp"

/// Rotations by RoPE for any number of offsets, one after the other, by one thread.
///
/// A key that owes an offset costs a product or two of numbers that are at hand, not a cosine and a sine per pair:
///
///   |offset|   bits 19 … 8   bits 7 … 4   bits 3 … 0
///              top (double)  middle       low           R = top · middle · low
///              └─ powers ─┘  └─ 16 each, made once ─┘
///              └──────── high, f32 ───┘
///
/// Neighbouring tokens owe nearly the same, so `high` rarely changes. A rotation depends on its offset alone, not on those that
/// came before it: whichever thread turns a key, it gets the same bits.
///
/// Offsets whose angles are too large for that are computed as they are, cosine and sine of (offset × frequency) in double.
namespace kvc::cpu {

/// The one row `from` of f32, turned into `to`.
inline TurnedRows one_row(float* to, const float* from, int32_t head_dim) {
  static constexpr int32_t first = 0;
  return {.to = to,
          .to_stride = 0,
          .from = reinterpret_cast<const std::byte*>(from),
          .from_stride = 0,
          .cell = &first,
          .n = 1,
          .type = DType::f32,
          .head_dim = head_dim};
}

class OffsetRotations {
 public:
  /// Room for the rotations of keys of head_dim dimensions.
  static std::byte* place(Carver& carver, int32_t head_dim);

  /// In memory that place() has returned for at least as many dimensions; forgets what it holds.
  static void forget(std::byte* memory);
  OffsetRotations(const Rope& rope, std::byte* memory);

  /// Turns rows by `offset` positions. Dimensions that the Rope leaves alone are converted.
  void turn(const TurnedRows& rows, int32_t offset);

 private:
  struct State {
    bool is_prepared;
    int64_t exact;  // what the numbers in `exact`, `high` and `top` are of
    int64_t high, top;
    double fastest;  // frequency
  };

  void prepare();
  KeyTurn turn_by(int32_t offset);
  void make_exact(int64_t distance);
  void make_high(int64_t high);
  void make_top(int64_t top);
  void widen(float* to, const double* from) const;
  double* number(double* table, int64_t index) const { return table + index * 2 * n_pairs_; }

  const Rope& rope_;
  const KernelTable& kernels_;
  int64_t n_pairs_;  // rounded up to whole vectors
  int64_t count_;    // floats of the cosines of a rotation, and of its sines
  State* state_;
  double* power_;   // [powers][2][n_pairs] R(2^i)
  double* middle_;  // [16][2][n_pairs] R(16 · i)
  double* top_;     // [2][n_pairs]
  double* product_;
  float* low_;  // [16][2][count] R(i)
  float* high_;
  float* exact_;
};

}  // namespace kvc::cpu
