#include "kernels/cpu/offset_rotations.hpp"

#include <algorithm>
#include <cmath>
#include <cstdlib>

namespace kvc::cpu {
namespace {

constexpr int32_t digit_bits = 4;
constexpr int64_t digits = 1 << digit_bits;

/// Offsets from 2^n_powers on are computed as they are, and so are angles from `largest_angle` on: below, what products of powers
/// in double lose is far below an ulp of f32.
constexpr int32_t n_powers = 20;
constexpr double largest_angle = 1 << 24;

constexpr int64_t whole_vectors(int64_t n) { return (n + 15) / 16 * 16; }

constexpr int64_t state_bytes = 64;
constexpr int64_t doubles(int64_t n_pairs) { return (n_powers + digits + 2) * 2 * n_pairs; }
constexpr int64_t floats(int64_t count) { return (digits + 2) * 2 * count; }

}  // namespace

std::byte* OffsetRotations::place(Carver& carver, int32_t head_dim) {
  const int64_t n_pairs = whole_vectors(head_dim / 2), count = whole_vectors(head_dim);
  const int64_t bytes = state_bytes + doubles(n_pairs) * static_cast<int64_t>(sizeof(double)) +
                        floats(count) * static_cast<int64_t>(sizeof(float));
  return carver.take<std::byte>(static_cast<uint64_t>(bytes), 64);
}

void OffsetRotations::forget(std::byte* memory) {
  static_assert(sizeof(State) <= state_bytes);
  *reinterpret_cast<State*>(memory) = State{};
}

OffsetRotations::OffsetRotations(const Rope& rope, std::byte* memory)
    : rope_(rope),
      kernels_(kernels()),
      n_pairs_(whole_vectors(rope.n_dims / 2)),
      count_(rope.halves ? n_pairs_ : whole_vectors(rope.n_dims)),
      state_(reinterpret_cast<State*>(memory)) {
  power_ = reinterpret_cast<double*>(memory + state_bytes);
  middle_ = number(power_, n_powers);
  top_ = number(middle_, digits);
  product_ = number(top_, 1);
  low_ = reinterpret_cast<float*>(number(product_, 1));
  high_ = low_ + digits * 2 * count_;
  exact_ = high_ + 2 * count_;
}

void OffsetRotations::prepare() {
  *state_ = State{.is_prepared = true, .exact = -1, .high = -1, .top = -1, .fastest = 0};
  std::fill_n(power_, 2 * n_pairs_, 0.0);
  for (int32_t i = 0; i < rope_.n_dims / 2; ++i) {
    power_[i] = std::cos(rope_.frequency[i]);
    power_[n_pairs_ + i] = std::sin(rope_.frequency[i]);
    state_->fastest = std::max(state_->fastest, rope_.frequency[i]);
  }
  for (int32_t i = 1; i < n_powers; ++i) {
    const double* half = number(power_, i - 1);
    kernels_.multiply_turns(number(power_, i), half, half, n_pairs_);
  }
  const auto make_digits = [this](const double* one, auto use) {
    std::fill_n(product_, n_pairs_, 1.0);
    std::fill_n(product_ + n_pairs_, n_pairs_, 0.0);
    for (int64_t i = 0; i < digits; ++i) {
      use(i);
      kernels_.multiply_turns(product_, product_, one, n_pairs_);
    }
  };
  make_digits(power_, [this](int64_t i) { widen(low_ + i * 2 * count_, product_); });
  make_digits(number(power_, digit_bits),
              [this](int64_t i) { std::copy_n(product_, 2 * n_pairs_, number(middle_, i)); });
}

/// From double to what turn reads.
void OffsetRotations::widen(float* to, const double* from) const {
  if (rope_.halves) {
    for (int64_t i = 0; i < n_pairs_; ++i) {
      to[i] = static_cast<float>(from[i]);
      to[count_ + i] = static_cast<float>(from[n_pairs_ + i]);
    }
    return;
  }
  for (int64_t i = 0; i < count_ / 2; ++i) {
    to[2 * i] = to[2 * i + 1] = static_cast<float>(from[i]);
    to[count_ + 2 * i + 1] = static_cast<float>(from[n_pairs_ + i]);
    to[count_ + 2 * i] = -to[count_ + 2 * i + 1];
  }
}

void OffsetRotations::make_top(int64_t top) {
  state_->top = top;
  std::fill_n(top_, n_pairs_, 1.0);
  std::fill_n(top_ + n_pairs_, n_pairs_, 0.0);
  for (int32_t i = 0; top >> i != 0; ++i) {
    if ((top >> i & 1) != 0)
      kernels_.multiply_turns(top_, top_, number(power_, 2 * digit_bits + i), n_pairs_);
  }
}

void OffsetRotations::make_high(int64_t high) {
  state_->high = high;
  if (const int64_t top = high >> digit_bits; state_->top != top) make_top(top);
  kernels_.multiply_turns(product_, top_, number(middle_, high % digits), n_pairs_);
  widen(high_, product_);
}

void OffsetRotations::make_exact(int64_t distance) {
  state_->exact = distance;
  for (int32_t i = 0; i < rope_.n_dims / 2; ++i) {
    const double angle = static_cast<double>(distance) * rope_.frequency[i];
    product_[i] = std::cos(angle);
    product_[n_pairs_ + i] = std::sin(angle);
  }
  widen(exact_, product_);
}

KeyTurn OffsetRotations::turn_by(int32_t offset) {
  if (!state_->is_prepared) prepare();
  const int64_t distance = std::abs(int64_t{offset});
  KeyTurn turn{
      .rope = &rope_, .high = high_, .low = low_, .count = count_, .sign = offset < 0 ? -1.0f : 1.0f};
  if (distance >> n_powers != 0 || static_cast<double>(distance) * state_->fastest >= largest_angle) {
    if (state_->exact != distance) make_exact(distance);
    turn.high = exact_;  // and low by 0
    return turn;
  }
  if (const int64_t high = distance >> digit_bits; state_->high != high) make_high(high);
  turn.low = low_ + distance % digits * 2 * count_;
  return turn;
}

void OffsetRotations::turn(const TurnedRows& rows, int32_t offset) {
  kernels_.turn_rows(rows, turn_by(offset));
}

}  // namespace kvc::cpu
