#pragma once
#include <cmath>
#include <cstdint>

#include "core/attention/params.hpp"
#include "core/base/states.hpp"
#include "core/base/status.hpp"
#include "core/base/storage.hpp"
#include "core/base/tensor.hpp"
#include "core/caches/pass_state.hpp"
#include "core/cells/batch.hpp"
#include "core/cells/book.hpp"
#include "core/cells/state_book.hpp"
#include "core/device.hpp"

namespace kvc {

/// Geometry that every kind of cache shares, defaults filled in.
struct CacheBounds {
  int32_t n_layers = 0;
  int32_t n_kv_heads = 0;
  int32_t head_dim_k = 0;
  int32_t head_dim_v = 0;
  int32_t value_heads = 0;  // heads of V: n_kv_heads, but in a transformer cache
  StorageType type_k = StorageType::f32;
  StorageType type_v = StorageType::f32;
  int32_t block_k = 0;
  int32_t block_v = 0;
  int32_t v_first = 0;  // v_in_k: the first dim of K that is V's
  int32_t max_sequences = 0;
  int32_t capacity = 0;
  int32_t max_batch = 0;
  int32_t cells = 0;
  int32_t max_q_heads = 0;
  bool strict = false;
  bool zero_on_free = false;
  bool prefault = false;
  bool rotate_k = false;
  bool rotate_v = false;
  bool interleaved = false;  // K and V of a token in one row
  bool v_in_k = false;       // V is a part of K and is not stored
  RowFormat row_k;           // what the types, blocks and rotations come to
  RowFormat row_v;
};

struct CacheStats {
  CacheState state;
  uint64_t cells, cells_used, cells_shared, bytes, passes;
};

struct RopeSettings {
  bool halves = false;
  int32_t first_dim = 0;
  int32_t n_dims = 0;
  double base = 10000;
  double scale = 1;
  const float* factors = nullptr;  // [n_dims / 2], may be null

  /// Radians per position of pair i.
  double frequency(int32_t i) const {
    const double factor = factors == nullptr ? 1.0 : static_cast<double>(factors[i]);
    return scale * std::pow(base, -2.0 * i / n_dims) / factor;
  }
};

/// A caller's function that rotates keys for new positions: [n, n_kv_heads, head_dim_k] of one layer, in the storage type.
struct KeyShift {
  Status (*run)(const KeyShift& self, int32_t layer, int32_t n, const int32_t* from, const int32_t* to,
                const Tensor& keys) = nullptr;  // null: none
  void (*function)() = nullptr;                 // the caller's, of the type that `run` knows
  void* user = nullptr;
  DeviceInfo device;  // where the keys are
};

class Cache;
class KvLayers;

/// The facet of a cache whose layers take keys and values and attend over them, however it keeps them.
class LayerAttention {
 public:
  virtual ~LayerAttention() = default;
  /// The cache that this is a facet of.
  virtual const Cache& holder() const = 0;

  // The checks that come before those of arguments.
  virtual Status ready_for_layer(int32_t layer, bool needs_put) const = 0;
  virtual Status ready_to_put(int32_t layer) const = 0;
  /// How many rows put() takes; `offered` is what the caller has.
  virtual Status rows_to_put(int64_t offered, int64_t* rows) const = 0;
  /// put_attention() will put this many: what history() returns counts them. 0 takes that back.
  virtual void expect_rows(int64_t) {}
  virtual Status put(int32_t layer, const Tensor& k, const Tensor& v) = 0;
  virtual Status attention(int32_t layer, const AttentionTensors& tensors) = 0;
  /// Both, or neither: what attention() would refuse is found before anything is stored.
  virtual Status put_attention(int32_t layer, const Tensor& k, const Tensor& v,
                               const AttentionTensors& tensors) = 0;
  /// The columns of bias, mask and weights.
  virtual Status history(int32_t layer, int32_t* first, int32_t* cells) = 0;

  // Constants of the model. What is bound was checked first.
  virtual Status check_binding(const AttentionConstants& constants) const = 0;
  virtual void bind_attention(int32_t layer_begin, int32_t layer_end,
                              const AttentionConstants& constants) = 0;
  /// Query heads bound to a layer; 0: never bound.
  virtual int32_t bound_q_heads(int32_t layer) const = 0;
  /// Layers whose operators callers may choose; null: the cache attends in one way alone.
  virtual KvLayers* layers_with_operators() { return nullptr; }
};

/// The facet of a cache that holds keys and values, token by token. Dense views span history().
class KeyValues : public LayerAttention {
 public:
  /// Rows as put() would have stored them. Scales of a type without stored ones, and V where it is a part of K, have no data.
  struct Codes {
    Tensor k, k_scales, v, v_scales;
  };
  virtual Status put_codes(int32_t layer, const Codes& codes) = 0;
  /// What f8 codes are multiplied with; null: stays.
  virtual Status check_scales(bool of_k, bool of_v) const = 0;
  virtual void bind_scales(int32_t layer_begin, int32_t layer_end, const float* k_scales,
                           const float* v_scales) = 0;

  // Reading. Shapes of dense views: the boundary makes kvc_tensor of them.
  virtual Status get(int32_t layer, Tensor* k, Tensor* v) = 0;  // null: not wanted, as below
  virtual Status get_codes(int32_t layer, Codes* codes) = 0;
  /// Makes every column of get_copy() one key: history() returns the columns afterwards.
  virtual Status prepare_copy(int32_t layer) = 0;
  /// After prepare_copy(): numbers into [history, n_kv_heads, head_dim] tensors; without data: not wanted.
  virtual Status get_copy(int32_t layer, const Tensor& k, const Tensor& v) = 0;
  virtual DType mask_dtype() const = 0;
  virtual Status mask(int32_t layer, const Tensor& into) = 0;
  virtual Status gather(int32_t layer, int32_t sequence, const Tensor& k, const Tensor& v) = 0;
  virtual Status runs(int32_t layer, int32_t sequence, int32_t capacity, Run* runs,
                      int32_t* n) const = 0;
};

/// The facet of a cache in which a token sees earlier ones, and later ones if it is in the except set.
class Causality {
 public:
  virtual ~Causality() = default;
  virtual Status set_causal(int32_t n_except, const int32_t* except) = 0;
};

/// The facet of a cache whose keys have positions: how they rotate when they move.
class PositionedKeys {
 public:
  virtual ~PositionedKeys() = default;
  virtual Status check_rope(const RopeSettings& settings) const = 0;
  virtual void bind_rope(int32_t layer_begin, int32_t layer_end, const RopeSettings& settings) = 0;
  virtual Status bind_shift(const KeyShift& shift) = 0;
};

/// The facet of a cache that holds what an encoder read: an input per sequence.
class EncoderInputs {
 public:
  virtual ~EncoderInputs() = default;
  // As those of KeyValues, for the input that `sequence` carries.
  virtual Status ready_to_put_input(int32_t layer, int32_t sequence) const = 0;
  virtual Status rows_of_input(int32_t sequence, int64_t offered, int64_t* rows) const = 0;
  virtual Status put_input(int32_t layer, int32_t sequence, const Tensor& k, const Tensor& v) = 0;
  virtual Status share(int32_t sequence, int32_t source) = 0;
  /// Where the input of a sequence was carried (−1: it has none), and its length.
  virtual Status input_of(int32_t sequence, int32_t* position, int32_t* length) const = 0;
};

/// The facet of a cache that holds states of recurrent layers, [n_sequences or n_rows, …] a part.
class RecurrentStates {
 public:
  virtual ~RecurrentStates() = default;

  virtual const Cache& holder() const = 0;
  virtual Status check_part(int32_t layer, int32_t part) const = 0;
  /// check_part() in an open pass.
  virtual Status ready_for_part(int32_t layer, int32_t part) const = 0;
  virtual StateShape part_shape(int32_t part) const = 0;
  virtual int32_t n_batch_sequences() const = 0;
  virtual int32_t n_batch_rows() const = 0;

  /// The first `capacity` sequences of the batch; `n` receives how many there are. `order` may be null.
  virtual Status layout(int32_t capacity, StateSequence* sequences, int32_t* n,
                        int32_t* order) const = 0;
  virtual Status row_slots(int32_t capacity, int32_t* slot, int32_t* n) const = 0;
  virtual Status get_states(int32_t layer, int32_t part, const Tensor& into) = 0;
  virtual Status put_states(int32_t layer, int32_t part, const Tensor& from) = 0;
  virtual Status put_conv(int32_t layer, const Tensor& x) = 0;
  /// All slots of a part, with the dims of `dims`.
  virtual Status view_states(int32_t layer, int32_t part, const StateShape& dims, Tensor* slots) = 0;
  virtual Status states_done(int32_t layer, int32_t part) = 0;
  /// Whether there may be a state of a sequence at a position, and whether there is one (else NOT_FOUND).
  virtual Status check_place(int32_t sequence, int32_t at) const = 0;
  virtual Status find_state(int32_t sequence, int32_t at) const = 0;
  virtual Status gather_state(int32_t layer, int32_t part, int32_t sequence, int32_t at,
                              const Tensor& into) = 0;
};

/// The facet of a cache that holds states of linear attention with decay, [n, n_kv_heads, head_dim_k, head_dim_v] a layer.
class DecayedStates {
 public:
  virtual ~DecayedStates() = default;
  virtual const Cache& holder() const = 0;
  /// Whether bind_decay() may follow.
  virtual Status check_decay() const = 0;
  virtual void bind_decay(int32_t layer_begin, int32_t layer_end, const float* slopes) = 0;
  /// Whether the layer and the n sequences from `first` on exist.
  virtual Status check_states(int32_t layer, int32_t first, int32_t n) const = 0;
  /// As of next, as if the open pass were committed.
  virtual Status read_states(int32_t layer, int32_t first, const Tensor& into) const = 0;
  /// check_states(), and whether write_states() may follow.
  virtual Status check_write(int32_t layer, int32_t first, int32_t n) const = 0;
  virtual Status write_states(int32_t layer, int32_t first, const Tensor& from) = 0;
};

/// The facet of a cache that itself holds checkpoints of its sequences.
class ListedCheckpoints {
 public:
  virtual ~ListedCheckpoints() = default;
  /// The first `capacity` places where checkpoints of a sequence continue, ascending; `n` receives how many there are.
  virtual Status list_checkpoints(int32_t sequence, int32_t capacity, int32_t* at,
                                  int32_t* n) const = 0;
};

/// The facet of a cache that keeps states of a sequence to step back to.
class Checkpoints {
 public:
  virtual ~Checkpoints() = default;
  /// Whether take_checkpoint() may follow; the sequence exists.
  virtual Status check_checkpoint(int32_t sequence) const = 0;
  virtual Status take_checkpoint(int32_t sequence) = 0;
};

/// The facet of a cache whose sequences are the rows of a batch: its passes may take as many tokens in every row (Batch::rows).
/// Where a row continues is its info().next.
class Rows {
 public:
  virtual ~Rows() = default;
  /// Tokens per row of an open pass of rows; 0: no pass is open, or its tokens are a list.
  virtual int32_t q_len() const = 0;
  /// Whether rows may begin with padding; else starts() is 0.
  virtual bool has_starts() const = 0;
  /// Positions of the row below this one are padding.
  virtual int32_t starts(int32_t row) const = 0;

  // Asking and doing, as below. The rows exist; an array that is null leaves its side as it is. What is wrong with arguments
  // comes first: the caller looks at the open pass before it heeds any other refusal.
  virtual Status check_set(int32_t row_begin, int32_t n, const int32_t* index,
                           const int32_t* starts) const = 0;
  virtual Status apply_set(int32_t row_begin, int32_t n, const int32_t* index,
                           const int32_t* starts) = 0;
  /// Rows of another cache, which no one changes meanwhile, in the place of those from `slot` on.
  virtual Status check_insert(const Cache& other, int32_t slot) const = 0;
  virtual Status apply_insert(const Cache& other, int32_t slot) = 0;
};

/// The facet of a cache that keeps the rows of a batch in places of their own.
class RowStorage {
 public:
  virtual ~RowStorage() = default;
  /// All columns of all rows: [batch, columns, heads, …].
  virtual Status view_rows(int32_t layer, KeyValues::Codes* codes) const = 0;
  virtual int32_t n_columns() const = 0;
  /// Whether rows [row_begin, row_begin + n) may be filled in a layer.
  virtual Status check_fill(int32_t layer, int32_t row_begin, int32_t n) const = 0;
  /// What the first columns of n rows are to hold, each side [n, columns, heads, …]: numbers to be stored, or codes as
  /// view_rows() has them. Without data: stays.
  struct Filling {
    int32_t columns = 0;
    Tensor k, v;
    KeyValues::Codes codes;
  };
  /// Columns without a stored position are not read.
  virtual Status fill_rows(int32_t layer, int32_t row_begin, int32_t n, const Filling& filling) = 0;
};

/// What every kind of cache does, as capi/include/kvc documents it. The boundary has checked pointers and tensors (their
/// shapes against bounds() and n_tokens()); a cache checks states, ranges and room, in the order that cache.h states.
/// Const members may run at the same time as each other; any other member runs alone.
///
/// A call that moves sequences or begins or ends a pass comes in two parts: asking, which is const and finds whatever can
/// refuse the call, and doing, which only a broken invariant or a failed device can stop. So a cache that consists of others
/// asks all of them before any does. The public calls put the parts together, once for all kinds.
///
/// What only some kinds do is a facet: a kind that lacks it returns null, and the boundary returns NOT_SUPPORTED.
class Cache {
 public:
  virtual ~Cache() = default;

  virtual const CacheBounds& bounds() const = 0;
  virtual const DeviceInfo& device() const = 0;
  /// ok, or internal/device once a broken invariant or a failed device has poisoned the cache.
  virtual const Health& health() const = 0;

  virtual KeyValues* key_values() { return nullptr; }
  virtual const KeyValues* key_values() const { return nullptr; }
  virtual LayerAttention* layer_attention() { return key_values(); }
  virtual const LayerAttention* layer_attention() const { return key_values(); }
  virtual Causality* causality() { return nullptr; }
  virtual PositionedKeys* positioned_keys() { return nullptr; }
  virtual EncoderInputs* encoder_inputs() { return nullptr; }
  virtual const EncoderInputs* encoder_inputs() const { return nullptr; }
  virtual RecurrentStates* recurrent_states() { return nullptr; }
  virtual const RecurrentStates* recurrent_states() const { return nullptr; }
  virtual DecayedStates* decayed_states() { return nullptr; }
  virtual const DecayedStates* decayed_states() const { return nullptr; }
  virtual const ListedCheckpoints* listed_checkpoints() const { return nullptr; }
  virtual Checkpoints* checkpoints() { return nullptr; }
  virtual const Checkpoints* checkpoints() const { return nullptr; }
  virtual Rows* rows() { return nullptr; }
  virtual const Rows* rows() const { return nullptr; }
  virtual RowStorage* row_storage() { return nullptr; }
  virtual const RowStorage* row_storage() const { return nullptr; }
  /// Whether its passes may take a list of tokens.
  virtual bool takes_lists() const { return true; }

  // A pass.
  Status begin(const Batch& batch, bool reserve);
  /// Const calls overlap, also where planning needs scratch: what fits() plans with is the kind's to protect.
  virtual Status fits(const Batch& batch, bool reserve) const = 0;
  virtual int32_t n_tokens() const = 0;  // of the open pass
  Status commit();
  Status commit_prefix(int32_t n, const int32_t* sequence, const int32_t* keep);
  Status abort();

  // Sequences.
  Status can_resume(int32_t sequence, int32_t want, int32_t* best) const;
  Status resume(int32_t sequence, int32_t want, int32_t* got);
  Status copy_prefix(int32_t source, int32_t destination, int32_t length, int32_t* got);
  Status reorder(int32_t n, const int32_t* destination, const int32_t* source);
  /// What remove() would return, except what a caller's shift function would.
  Status can_remove(int32_t sequence, int32_t begin, int32_t end) const;
  Status remove(int32_t sequence, int32_t begin, int32_t end);
  Status sequence_info(int32_t sequence, SequenceInfo* info) const;
  /// Only of a cache with checkpoints().
  Status take_checkpoint(int32_t sequence);
  // Only of a cache with rows().
  Status query_rows(int32_t row_begin, int32_t n, int32_t* index, int32_t* starts) const;
  Status set_rows(int32_t row_begin, int32_t n, const int32_t* index, const int32_t* starts);
  Status insert(const Cache& other, int32_t slot);

  // Watching.
  virtual CacheStats stats() const = 0;
  virtual Status digest(uint64_t out[2]) const = 0;
  virtual Status check() const = 0;

  // ---- Asking. Sequences and positions are in range where there is no check of them ----
  virtual Status need_pass() const = 0;
  /// What a call needs that ends an open pass on the side.
  virtual Status need_fully_put() const = 0;
  virtual KnownFlags known_flags() const = 0;
  virtual Status can_begin(const Batch& batch, bool reserve) const = 0;
  /// Whether the pass may begin on its stream, which fits() does not know.
  virtual Status check_stream(const Batch& batch, bool reserve) const = 0;
  /// Whether `call` may give the device work: not while a graph is captured from the stream of the cache's passes.
  virtual Status need_no_recording(const char* call) const = 0;
  /// The same of a call that ends the open pass. The end of a reserve pass gives the device nothing to do.
  virtual Status check_end(const char* call) const = 0;
  /// Whether the n sequences exist and none is named twice.
  virtual Status check_distinct(int32_t n, const int32_t* sequence) const = 0;
  /// Whether the open pass can end with the first `keep` tokens of a sequence.
  virtual Status check_kept(int32_t sequence, int32_t keep) const = 0;
  /// The largest place at or below `want` where a sequence can continue, as if the open pass were committed.
  virtual int32_t best_continuation(int32_t sequence, int32_t want) const = 0;
  virtual Status check_reorder(int32_t n, const int32_t* destination, const int32_t* source) const = 0;
  virtual Status check_removal(int32_t sequence, int32_t begin, int32_t end) const = 0;
  virtual SequenceInfo info(int32_t sequence) const = 0;

  // ---- Doing, right after asking ----
  /// Opens the pass that can_begin() has just planned. No pass is open.
  virtual Status open(const Batch& batch, bool reserve) = 0;
  virtual void keep_added(int32_t sequence, int32_t keep) = 0;
  /// Keeps the open pass, if there is one.
  virtual Status end_pass() = 0;
  /// Forgets the open pass.
  virtual Status drop_pass() = 0;
  virtual Status cut(int32_t sequence, int32_t position) = 0;
  virtual Status copy(int32_t source, int32_t destination, int32_t position) = 0;
  virtual Status apply_reorder(int32_t n, const int32_t* destination, const int32_t* source) = 0;
  /// Asks like check_removal() and lets a caller's function work on copies. After ok either of the two must follow; end_pass()
  /// may come between.
  virtual Status prepare_removal(int32_t sequence, int32_t begin, int32_t end) = 0;
  virtual Status apply_removal() = 0;
  virtual Status cancel_removal() = 0;
};

}  // namespace kvc
