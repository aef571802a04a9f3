#pragma once
#include <cmath>
#include <cstdint>

#include "core/attention/params.hpp"
#include "kernels/cuda/row_params.hpp"

namespace kvc::cuda {

/// Fills the tables of a launch that turns keys. Angles are computed on the host, in double, as for caches on the CPU: so the
/// bits of a turned key do not depend on the device, and a key that many tokens share is turned by one table.
class TurnTables {
 public:
  /// `pairs` of the rope from `first_pair` on, as many as a table has room for.
  TurnTables(const Rope& rope, int32_t first_pair, float* tables) : rope_(rope), tables_(tables) {
    const int32_t left = rope.n_dims / 2 - first_pair;
    view_ = {rope.first_dim, rope.n_dims, rope.halves ? 1 : 0, first_pair,
             left < most_pairs ? left : most_pairs};
  }

  const TurnView& view() const { return view_; }
  int32_t next_pair() const { return view_.first_pair + view_.n_pairs; }

  void clear() { n_ = 0; }
  /// The table for an offset; −1 when there is no room for one more.
  int32_t table_for(int32_t offset) {
    for (int32_t i = n_ - 1; i >= 0; --i) {
      if (offset_[i] == offset) return i;
    }
    const int32_t floats = 2 * view_.n_pairs;
    if (n_ == most_tables || (n_ + 1) * floats > turn_floats) return -1;
    float* const cosine = tables_ + n_ * floats;
    for (int32_t i = 0; i < view_.n_pairs; ++i) {
      const double angle = offset * rope_.frequency[view_.first_pair + i];
      cosine[i] = static_cast<float>(std::cos(angle));
      cosine[view_.n_pairs + i] = static_cast<float>(std::sin(angle));
    }
    offset_[n_] = offset;
    return n_++;
  }

 private:
  static constexpr int32_t most_tables = 64;
  static constexpr int32_t most_pairs = turn_floats / 2;

  const Rope& rope_;
  float* tables_;
  TurnView view_;
  int32_t offset_[most_tables];
  int32_t n_ = 0;
};

}  // namespace kvc::cuda
