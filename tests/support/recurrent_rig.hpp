#pragma once
#include <cstdint>
#include <map>
#include <vector>

#include "kvc/recurrent.h"
#include "support/abi.hpp"

namespace support {

/// How a test puts what its layers make.
enum class Put { by_copy, in_place, nothing };

/// A recurrent cache with a recurrence: layer l makes h ← (31·h + value + l) mod 65521 of a token's value, the state is h + 0,
/// h + 1, …, and channel c of the convolution has the inputs value + c. What a sequence's state must be is computed from the
/// values of all of its tokens.
class RecurrentRig {
 public:
  static constexpr int32_t n_layers = 2, state_size = 6, channels = 3;

  explicit RecurrentRig(kvc_device* device) : device_(device) {
    desc.struct_size = sizeof desc;
    desc.kind = KVC_RECURRENT;
    desc.n_layers = n_layers;
    desc.max_sequences = 4;
    desc.max_batch = 16;
    recurrent = KVC_RECURRENT_DESC_INIT;
    recurrent.state_size = state_size;
    recurrent.conv_channels = channels;
    recurrent.conv_dim = 3;
    recurrent.checkpoint_interval = KVC_NONE;
  }

  kvc_cache_desc desc{};
  kvc_recurrent_desc recurrent{};
  Cache cache;

  void create();

  struct Token {
    int32_t sequence, value;  // sequence KVC_NONE: padding
  };
  /// Begins a pass of tokens behind what their sequences hold, and puts all parts of all layers.
  void pass(const std::vector<Token>& tokens, Put put = Put::by_copy);
  kvc_status begin(const std::vector<Token>& tokens);
  void put_all(Put put);
  void put_conv(int32_t layer);
  void put_recurrent(int32_t layer, Put put);

  std::vector<kvc_state_sequence> layout() const;
  std::vector<int32_t> slots() const;
  std::vector<int32_t> checkpoints(int32_t sequence) const;
  int32_t next(int32_t sequence) const { return sequence_info(cache, sequence).next; }
  int32_t best(int32_t sequence, int32_t want) const;
  std::vector<float> state(int32_t layer, int32_t part, int32_t sequence, int32_t at) const;

  /// The state of the sequence at `at` is what tokens of these values make, in both parts and all layers.
  void expect_state(int32_t sequence, int32_t at, const std::vector<int32_t>& values) const;

 private:
  static float after(int32_t layer, float h, int32_t value);
  std::vector<float> gathered(int32_t layer, int32_t part, int32_t sequence, int32_t at,
                              std::initializer_list<int64_t> dims) const;

  kvc_device* device_;
  std::vector<Token> tokens_;  // of the open pass
};

}  // namespace support
