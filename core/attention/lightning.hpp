#pragma once
#include <cstddef>
#include <cstdint>

#include "core/base/states.hpp"
#include "core/base/tensor.hpp"

/// Plain structs that say what linear attention with decay means (semantics §7). The cache fills them in, kernels only read them.
namespace kvc {

/// Floats of a row of a state: padded with zeros to whole vectors of any instruction set.
constexpr int64_t padded_to_vectors(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }

/// Bounds of the calls of a cache; all 0: it has none.
struct LightningBounds {
  int32_t n_heads = 0;
  int32_t max_q_heads = 0;
  int32_t head_dim_k = 0;
  int32_t head_dim_v = 0;
  int32_t block = 0;  // tokens at most that are multiplied as matrices; 0: the kernel's own number
  int32_t max_batch = 0;
};

struct LightningToken {
  int32_t index = 0;  // in the batch: row of k, v, q and out
  int32_t position = 0;
  bool is_masked = false;  // its key and value are not read and count as zeros
};

/// K and V of tokens as put() got them, [n_heads][n_tokens] rows of whole lines: for attention, and for a commit of a part.
struct KeptTokens {
  std::byte* k = nullptr;
  std::byte* v = nullptr;
  int64_t n_tokens = 0;  // from one head to the next
  DType k_type = DType::f32;
  DType v_type = DType::f32;

  static constexpr int64_t row_bytes(int64_t head_dim, DType type) {
    return (head_dim * static_cast<int64_t>(size_of(type)) + 63) / 64 * 64;
  }
};

/// A sequence of the pass.
struct LightningRow {
  int32_t from = 0;         // slot of the state before
  int32_t to = 0;           // slot of the state behind
  int32_t next = 0;         // position that `from` is the state of
  int32_t first_token = 0;  // in LightningParams::token
  int32_t n_tokens = 0;
  bool is_drafted = false;  // its K and V are kept for a commit of a part of its tokens
  int32_t first_kept = 0;   // in LightningParams::drafted or last_layer
};

/// Where keys and values come from.
enum class LightningInput : uint8_t {
  tensors,  // k and v
  kept,     // what was kept of them
  none      // zeros: nothing but time
};

/// One layer: for each row the state behind its tokens, the outputs of them, or both.
struct LightningParams {
  StatePart states;  // [n_heads, head_dim_k, padded head_dim_v] f32
  LightningBounds bounds;
  const float* slopes = nullptr;      // [n_heads] a state decays by exp(−slope) per position
  const LightningRow* row = nullptr;  // [n_rows]
  int32_t n_rows = 0;
  const LightningToken* token = nullptr;  // sequence by sequence, ascending
  KeptTokens last_layer;                  // overwritten by the next layer
  KeptTokens drafted;                     // this layer's
  LightningInput input = LightningInput::tensors;
  bool keeps = true;  // k and v, for a call to come; of rows that are drafted they are kept in any case
  bool writes_states = false;
  Tensor k, v;  // [n_tokens, n_heads, head_dim]

  // Attention. Without q no outputs are wanted.
  int32_t n_q_heads = 0;
  float scale = 1;
  Tensor q, out;                     // [n_tokens, n_q_heads, head_dim]
  const int32_t* padding = nullptr;  // [n_padding] tokens whose outputs are zeros
  int32_t n_padding = 0;
  std::byte* workspace = nullptr;  // Device::lightning_workspace_bytes() of them, aligned to 4096
};

/// One layer's state of one sequence beside a tensor: read as it will be when so many positions have passed, or written.
struct LightningState {
  StatePart states;
  LightningBounds bounds;
  const float* slopes = nullptr;  // [n_heads]
  int32_t slot = 0;
  int32_t passed = 0;  // positions
  Tensor tensor;       // [n_heads, head_dim_k, head_dim_v] f32, any strides
};

}  // namespace kvc
