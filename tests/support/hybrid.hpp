#pragma once
#include <deque>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "abi.hpp"
#include "kvc/encoder.h"
#include "kvc/recurrent.h"
#include "kvc/wrapper.h"
#include "random.hpp"

/// A small model of recurrent, attention and cross-attention layers, whose caches are one wrapper.
namespace support {

/// What a model is made of.
struct HybridShape {
  struct Layer {
    int32_t child, layer;  // whose it is, and its number there
  };
  std::vector<uint32_t> kinds;   // of the children
  std::vector<Layer> layers;     // of the model, each child's in ascending order
  std::vector<int32_t> reaches;  // of the causal children, 0: sees everything
  std::vector<uint32_t> dtypes;  // of what each child stores
  int32_t conv_dim = 0;
  int32_t draft_states = 0;
  bool limited = false;  // some window slides
  std::string describe() const;
};

HybridShape draw_hybrid(Random& random);

/// A token of a text. One of a text carries what the encoder layers of all later ones see.
struct TextToken {
  int32_t sequence, position, id;
  bool carries;
};

/// What the model made of a token: of recurrent layers exact, of attention layers to rounding.
struct TokenOutput {
  std::vector<float> exact;
  std::vector<float> attended;
};

class Hybrid {
 public:
  static constexpr int32_t dim = 4, state_size = 6, max_sequences = 4, max_batch = 128, n_inputs = 5;

  Hybrid(kvc_device* device, const HybridShape& shape);
  operator kvc_cache*() const { return wrapper_; }

  /// Begins a pass and runs all layers; the caller ends it.
  std::vector<TokenOutput> run(const std::vector<TextToken>& batch, Random& random);
  /// What a sequence would continue with: keys, values and states in every layer.
  std::vector<float> contents(int32_t sequence) const;
  Digest digest() const { return support::digest(wrapper_); }

 private:
  using Rows = std::vector<float>;  // [n_tokens, dim]

  void run_recurrent(int32_t layer, uint32_t dtype, Rows& x, bool in_place);
  void write_in_place(int32_t layer, int32_t part, const std::vector<int32_t>& slots,
                      const Rows& rows);
  int32_t owner_of(int32_t layer) const { return shape_.layers[static_cast<size_t>(layer)].child; }
  void run_attention(int32_t layer, const Rows& x, bool is_encoder,
                     const std::vector<TextToken>& batch, std::vector<TokenOutput>& outputs);

  HybridShape shape_;
  std::deque<Cache> children_;
  Cache wrapper_;
};

}  // namespace support
