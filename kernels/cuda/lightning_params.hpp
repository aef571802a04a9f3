#pragma once
#include <cstdint>

#include "kernels/cuda/row_params.hpp"

namespace kvc {
class Carver;
}

/// What the kernels of linear attention with decay are launched with. A call is cut by what its sequences are alone, so their bits do
/// not depend on the rest of the batch: a sequence into segments of segment_tokens, these into blocks of tokens whose positions
/// follow each other. A launch takes as many segments as its parameters have room for, and a later segment of a sequence
/// comes in a later launch.
namespace kvc::cuda {

/// Dimensions of keys that the shared memory of a block has room for.
inline constexpr int32_t decay_dim_max = 512;

inline constexpr int32_t decay_threads = 128;
/// Tokens of a block at most; columns of a state that a block of threads works on; dimensions of keys that it takes at a time.
inline constexpr int32_t decay_tile = 32;
/// Floats from one line of a tile to the next: lines begin on 16 bytes.
inline constexpr int32_t tile_stride = 36;
/// Columns of a state that a block of threads works on for a single token, and query heads that it serves in one walk.
inline constexpr int32_t step_columns = 128, step_queries = 4;

inline constexpr int32_t segment_tokens = 1024;  // and the most of a launch
inline constexpr int32_t launch_segments = 256;
inline constexpr int32_t launch_heads = 128;

/// A token of a launch: its row in tensors, and where its key and value are kept.
struct DecayToken {
  uint32_t index_and_mask;  // twice the index, and 1 where the token is masked: its key and value count as zeros
  int32_t kept;  // row of the layer that was put last, or ~row of the drafted ones
};

/// Tokens whose positions follow each other, `gap` positions behind what came before. One without tokens is nothing but time.
struct DecayBlock {
  int32_t first_token;
  int32_t n;
  int32_t gap;
};

struct DecaySegment {
  int32_t from, to;  // slots
  int32_t first_block, n_blocks;
  int32_t is_cut;  // its sequence is: the state behind it is written in any case, for the segment that follows
};

/// What the launches of a graph read of a pass, instead of their parameters: addresses in device memory. Sequences of one token come
/// first, and tokens lie in the order of their sequences.
struct PlannedDecay {
  struct Counts {
    int32_t n_single;     // sequences of one token
    int32_t n_sequences;  // of all
    int32_t n_tokens;     // without padding
    int32_t n_padding;
  };
  Counts* n = nullptr;
  DecaySegment* segment = nullptr;  // [sequences] whole ones
  DecayBlock* block = nullptr;      // [tokens]
  DecayToken* token = nullptr;      // [tokens]
  int32_t* padding = nullptr;       // [tokens]

  /// For `most` tokens.
  void carve(int32_t most, Carver& carver);
};

/// Kept rows of K or V, [heads][tokens].
struct KeptView {
  char* last = nullptr;  // of the layer that was put last
  char* drafted = nullptr;
  int64_t last_head = 0, drafted_head = 0;  // bytes from one head to the next
  int32_t row_bytes = 0;
  int32_t dim = 0;
  Element element = Element::f32;
};

inline constexpr int32_t kept_tokens = 2048;

struct KeepLaunch {
  KeptView k, v;
  RowsView k_rows, v_rows;
  int32_t n_heads = 0;
  PlannedDecay planned;  // where a graph launches: what follows is not read
  int32_t n_tokens = 0;
  DecayToken token[kept_tokens];
};

struct DecayLaunch {
  char* states = nullptr;  // of slot 0
  int64_t slot_bytes = 0;
  KeptView k, v;
  /// Keys and values of single tokens, which are kept on the way; without data they were kept before.
  RowsView put_k, put_v;
  RowsView q, out;
  int32_t padded_v = 0;  // floats of a state's row
  int32_t group = 0;     // query heads of a state head; 0: no outputs are wanted
  float scale = 1;
  int32_t writes = 0;                   // states
  int32_t first_head = 0, n_heads = 0;  // state heads
  float slope[launch_heads];
  PlannedDecay planned;  // where a graph launches: what follows is not read
  int32_t n_segments = 0;
  DecaySegment segment[launch_segments];
  DecayBlock block[segment_tokens];
  DecayToken token[segment_tokens];
};

/// Tokens whose outputs become zeros.
struct PaddingLaunch {
  RowsView out;
  int32_t n_heads = 0;
  int32_t dim = 0;
  PlannedDecay planned;  // where a graph launches: what follows is not read
  int32_t n_tokens = 0;
  int32_t token[kept_tokens];
};

/// One state beside a tensor [heads, head_dim_k, head_dim_v]: the tensor's rows are the dimensions of keys.
struct DecayedStateLaunch {
  char* state = nullptr;
  RowsView rows;
  int32_t dim_k = 0, dim_v = 0, padded_v = 0;
  int32_t passed = 0;  // positions since
  int32_t stores = 0;  // the tensor's numbers, else it loads
  int32_t first_head = 0, n_heads = 0;
  float slope[launch_heads];
};

Kernel keep_kernel() noexcept;
Kernel decay_step_kernel() noexcept;
Kernel decay_blocks_kernel() noexcept;
Kernel padding_kernel() noexcept;
Kernel decayed_state_kernel() noexcept;

/// Shared memory of a block of threads.
constexpr int32_t step_shared_bytes(int32_t dim_k) {
  return ((1 + step_queries) * dim_k + decay_threads * 4 * step_queries) * 4;
}
constexpr int32_t blocks_shared_bytes(int32_t dim_k) {
  return (dim_k * tile_stride + 4 * decay_tile * tile_stride + 2 * decay_tile) * 4;
}
static_assert(step_shared_bytes(decay_dim_max) <= 48 << 10);    // that a block has unasked
static_assert(blocks_shared_bytes(decay_dim_max) <= 99 << 10);  // that every GPU has

}  // namespace kvc::cuda
