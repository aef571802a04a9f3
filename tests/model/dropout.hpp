#pragma once
#include <cstdint>

/// Dropout by its definition (docs/SEMANTICS.md, section 8): Philox4x32-10 word for word as its paper has it.
namespace model {

/// Whose weight, in which call.
struct Weight {
  uint64_t seed;
  int32_t layer, head, sequence, q_position, k_position;
};

/// What the weight is multiplied with: 0, or 1 / (1 - probability) rounded to f32.
double dropout_factor(const Weight& weight, float probability);

}  // namespace model
