#pragma once
#include <cstddef>
#include <cstdint>

#include "core/attention/dropout.hpp"
#include "core/base/storage.hpp"
#include "core/base/tensor.hpp"

/// Plain structs that say what one attention call, put or copy means. Caches fill them in, kernels only read them.
/// Whoever fills them has checked everything; a kernel checks nothing.
namespace kvc {

/// RoPE as a table: it rotates the dimensions [first_dim, first_dim + n_dims), pair i by (offset × frequency[i]). Pairs are
/// (2i, 2i+1), or (i, i + n_dims/2) when halves, counted from first_dim.
struct Rope {
  const double* frequency = nullptr;  // [n_dims / 2] radians per position: scale · base^(−2i / n_dims) / factor_i
  int32_t n_dims = 0;  // 0: this layer's keys carry no rotation
  bool halves = false;
  int32_t first_dim = 0;
};

/// Constants of the model, bound per layer.
struct AttentionConstants {
  int32_t n_q_heads = 0;  // a multiple of n_kv_heads; query head h reads KV head h / (n_q_heads / n_kv_heads)
  float scale = 0;    // multiplies q·k
  float softcap = 0;  // 0: none; else x → softcap · tanh(x / softcap), after the scale
  const float* slopes = nullptr;  // [n_q_heads] ALiBi, may be null: adds −slope · |p − j|
  const float* sinks = nullptr;   // [n_q_heads], may be null: one extra logit that has no value
  Rope rope;
};

/// Two arrays that hold the tokens of all sequences: the cell that holds a token, and its position now. Lists name them by
/// offset, so that a device may keep arrays of its own beside the host's.
struct TokenArrays {
  const int32_t* cell = nullptr;
  const int32_t* position = nullptr;
};

/// Entries [begin, end) of the token arrays.
struct TokenRange {
  int64_t begin = 0;
  int64_t end = 0;
};

/// What changed in the token arrays since a device was last told.
struct TokenChanges {
  const TokenRange* range = nullptr;  // [n]
  int32_t n = 0;
};

/// The tokens of one sequence in order of position: logical index i is the i-th of them. They lie in up to three pieces
/// of the token arrays (the kept-first part, the ring up to its end, the ring from its start); piece p holds the next
/// count[p].
struct TokenList {
  int64_t start[3] = {};  // offset in the token arrays; positions ascend, a gap is legal
  int32_t count[3] = {};
  int32_t total = 0;  // sum of count
  // Added to every cell and every position that the arrays name: lists in different places may share entries.
  int32_t first_cell = 0;
  int32_t first_position = 0;
  bool has_pending = false;  // some token's position differs from the one its key was rotated for
};

/// What one token of the batch sees: the logical indexes [0, first_end) and [begin, end) of its sequence's list,
/// first_end <= begin <= end. All its query heads see the same.
struct AttentionRow {
  int32_t token = 0;     // index in the batch: row of q, out and lse
  int32_t list = 0;      // index of its sequence's TokenList
  int32_t position = 0;  // of the token itself
  int32_t first_end = 0;
  int32_t begin = 0;
  int32_t end = 0;
  int32_t sequence = 0;  // of the token itself
};

/// Lists whose first `length` entries name the same cells at the same positions: their rows may be served by one read.
struct SharedPrefix {
  int32_t list_begin = 0;  // lists [list_begin, list_end) of the plan share
  int32_t list_end = 0;
  int32_t length = 0;  // logical indexes [0, length)
};

/// The whole batch: rows grouped by list, within a list in batch order (so `end` never falls among causal rows).
struct AttentionPlan {
  const AttentionRow* rows = nullptr;  // [n_rows]
  const TokenList* lists = nullptr;    // [n_lists]
  TokenArrays tokens;
  const SharedPrefix* shared = nullptr;  // [n_shared] disjoint, ascending
  const int32_t* rotated_for = nullptr;  // [n_cells] position that a cell's key was rotated for
  const int32_t* padding = nullptr;  // [n_padding] tokens without a row: they get zeros and see nothing
  int32_t n_rows = 0;
  int32_t n_lists = 0;
  int32_t n_shared = 0;
  int32_t n_padding = 0;
  // Where what tokens see is no range: a bit per token of the batch and cell of its list, counted from first_cell. 0 hides what
  // the rows name. Null: they name no more than what is seen.
  const uint64_t* seen = nullptr;  // [n_tokens][seen_words]
  int64_t seen_words = 0;
  /// Columns of tensors count from the first cell of the token's own list, not from that of all that the batch sees.
  bool columns_by_list = false;
  int32_t batch = 0;  // rows of a batch, of as many tokens each; 0: the tokens are one list

  bool hides(int32_t token, int32_t cell) const {
    return seen != nullptr && (seen[token * seen_words + cell / 64] >> (cell % 64) & 1u) == 0;
  }
  /// The cell of column 0 for the tokens of a list; `of_batch` is that of the batch.
  int32_t first_column(const TokenList& list, int32_t of_batch) const {
    return columns_by_list ? list.first_cell : of_batch;
  }
};

/// What the tensors of one attention call say. Columns are cells, counted from the first that the batch's history spans.
struct AttentionTensors {
  Tensor q;    // [n_tokens, n_q_heads, head_dim_k] f32, f16 or bf16, any strides
  Tensor out;  // [n_tokens, n_q_heads, head_dim_v] f32, f16 or bf16, any strides
  Tensor lse;  // [n_tokens, n_q_heads] f32; data null: not wanted. Natural log, over visible keys, never the sink
  Tensor bias;  // [n_q_heads, n_tokens, columns] f32, f16 or bf16, stride 0 where it is broadcast; data null: none.
      // Added to the score; minus infinity hides
  Tensor mask;  // [n_q_heads, n_tokens, columns] bytes, likewise: 0 hides
  Tensor weights;  // [n_q_heads, n_tokens, columns] f32; data null: not wanted. 0 for what a token does not see

  // Neighbouring query heads that share a head of it: 1, or the group of a KV head.
  int32_t bias_sharers = 1;
  int32_t mask_sharers = 1;
  bool leaves_sinks_out = false;  // a result to be merged with others: the sinks come once, at the end
  bool drops = false;  // weights are dropped, with the probability of the layer's operator
  uint64_t dropout_seed = 0;

  bool changes_scores() const { return bias.data != nullptr || mask.data != nullptr; }
};

/// Types that numbers may be rounded to on the way; the numbers are the ABI's. The storage types follow behind f32.
enum Precision : uint32_t { in_f64 = 1, in_f32 = 2, in_f16 = 4, in_bf16 = 8 };

/// How an operator works, as a caller created it. 0: as the operator thinks best.
struct OperatorSettings {
  int32_t block_q = 0;        // query rows of a KV head that share a read of the keys, at most
  int32_t block_k = 0;        // keys that are read at a time, at most
  int32_t block_b = 0;        // batch entries that are attended at a time
  int32_t stretches = 0;      // parts that the keys are cut into, each attended by itself
  bool side_by_side = false;  // several threads may attend the stretches of the same rows
  bool in_double = false;     // scores, softmax and sums
  uint32_t runtime_type = in_f32;  // the least exact Precision that factors of a product may be rounded to; sums stay f32

  bool operator==(const OperatorSettings&) const = default;
};

/// One attention call. Scores are softmax(scale · q kᵀ → softcap → + ALiBi → + bias / visibility → sinks) v,
/// weights dropped before v.
/// Where a key has a pending rotation d = position − rotated_for, the query is rotated the other way instead:
/// q · R(d) k = (R(−d) q) · k.
struct AttentionParams {
  LayerStorage storage;
  AttentionConstants constants;
  AttentionPlan plan;
  AttentionTensors tensors;
  OperatorSettings settings;
  Dropout dropout;
  int32_t first_column = 0;  // the cell of column 0
  int32_t n_columns = 0;     // only for operators of callers, and so is what follows
  uint32_t features = 0;     // that the call needs
  uint32_t mode = 0;
  int32_t layer = 0;
  std::byte* workspace = nullptr;  // attention_workspace_bytes() of them, aligned to 4096

  /// Whether something beside the ranges of rows decides what a token sees, or a bias is added.
  bool changes_scores() const { return plan.seen != nullptr || tensors.changes_scores(); }
};

/// Rows of a put: token t goes to cell[t] of every KV head, converted or encoded, rotated before that where the format says so.
struct StoreParams {
  LayerStorage storage;
  const int32_t* cell = nullptr;  // [n_tokens]; −1: the row is not read
  int32_t n_tokens = 0;
  Tensor k;  // [n_tokens, n_kv_heads, head_dim_k] f32, f16 or bf16, any strides; without data: stays, as V where it is a part of K
  Tensor v;  // [n_tokens, heads of V, head_dim_v]
};

/// Rows as another cache of the same storage keeps them: codes and scales, byte for byte. Without data: what stays, scales of a
/// type without stored ones, and V where it is a part of K.
struct StoreCodesParams {
  LayerStorage storage;
  const int32_t* cell = nullptr;  // [n_tokens]; −1: the row is not read
  int32_t n_tokens = 0;
  Tensor k;  // [n_tokens, n_kv_heads, n_codes] in the element type of the codes, any strides
  Tensor k_scales;
  Tensor v;
  Tensor v_scales;
};

/// Rows of a gather or a copy: the token at cell[t] of every KV head goes to row row[t], converted or decoded, rotated back, its key
/// with the pending rotation applied.
struct LoadParams {
  LayerStorage storage;
  Rope rope;
  const int32_t* cell = nullptr;  // [n_tokens]; −1: a row of zeros
  const int32_t* offset = nullptr;  // [n_tokens] position − rotated_for, the pending rotation; null: none
  const int32_t* row = nullptr;  // [n_tokens] no row named twice; null: t
  int32_t n_tokens = 0;
  Tensor k;  // [rows, n_kv_heads, head_dim_k]; data null: not wanted
  Tensor v;  // [rows, n_kv_heads, head_dim_v] (a transposed destination is the same view with other strides); data null: not wanted
};

/// Cells of one layer that move: row cell to[i] becomes a copy of row from[i] in K and V of every head;
/// where offset[i] != 0 its key, whose numbers are stored as they are, is rotated by that many positions. from == to rotates in place.
struct MoveParams {
  LayerStorage storage;
  Rope rope;
  const int32_t* from = nullptr;    // [n_cells]
  const int32_t* to = nullptr;      // [n_cells], no cell named twice, none of them a later `from`
  const int32_t* offset = nullptr;  // [n_cells]
  int32_t n_cells = 0;
};

/// Stretches of cells of one layer: [to, to + n) in the place of [from, from + n).
struct CellStretch {
  int32_t from = 0;
  int32_t to = 0;
  int32_t n = 0;
};

/// Stored bytes of cells that become those of others, in K and V of every head, as they are; of another cache's layer too, if it
/// stores in the same way. No stretch overlaps another.
struct CopyParams {
  LayerStorage from;
  LayerStorage to;
  const CellStretch* stretch = nullptr;  // [n_stretches]
  int32_t n_stretches = 0;
  bool exchange = false;  // and the other way round
};

/// Cells of one layer that become zeros in K and V of every head.
struct ClearParams {
  LayerStorage storage;
  const int32_t* cell = nullptr;  // [n_cells]; −1: none
  int32_t n_cells = 0;
};

/// Which cells each token of the batch sees, as a tensor [n_tokens, columns] of f32, f16, bf16 or booleans, any strides.
struct MaskParams {
  AttentionPlan plan;  // a token without a row sees nothing
  Tensor into;
  int32_t first_column = 0;  // the cell of column 0
  bool all_visible = false;  // of a reserve pass, which has no rows
};

/// Stored bytes of rows, as they are: bytes [first_byte, first_byte + n_bytes) of each row.
struct RowBytes {
  Plane plane;
  int32_t head = 0;
  const int32_t* cell = nullptr;  // [n_rows]
  int32_t n_rows = 0;
  size_t first_byte = 0;
  size_t n_bytes = 0;
  std::byte* data = nullptr;  // [n_rows][n_bytes] on the host
};

/// Bounds of the attention calls of a cache.
struct AttentionBounds {
  int64_t n_token_entries = 0;  // of the token arrays
  int32_t max_batch = 0;
  int32_t max_q_heads = 0;
  int32_t n_kv_heads = 0;
  int32_t head_dim_k = 0;
  int32_t head_dim_v = 0;
  int64_t seen_words = 0;        // of plans whose rows have bits
  bool shares_prefixes = false;  // plans may name prefixes that lists share
};

}  // namespace kvc
