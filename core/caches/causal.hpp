#pragma once
#include <cstdint>
#include <memory>
#include <mutex>

#include "core/attention/visibility.hpp"
#include "core/backend.hpp"
#include "core/caches/cache.hpp"
#include "core/cells/cell_pool.hpp"
#include "core/cells/token_sequence.hpp"

namespace kvc {

class Digest;

/// What makes a causal cache: window, chunk, how much is remembered. Raised and resolved by CausalCache::resolve().
struct CausalSettings {
  Visibility visibility;
  int32_t memory = 0;    // positions kept behind the lowest of a batch; meaningless when unlimited
  bool limited = false;  // else nothing ever slides
  bool position_free = false;  // keys carry no rotation
  int32_t cell_padding = 1;
  DType mask_dtype = DType::f32;
};

/// As the caller asks: 0 is the default, −1 is "unlimited" for memory.
struct CausalRequest {
  int32_t reach = 0, memory = 0, chunk = 0, keep_first = 0, cell_padding = 0;
  bool position_free = false;
  DType mask_dtype = DType::f32;
};

/// The causal family: causal, sliding window, window with memory, chunked. One class, four set-ups.
///
/// A pass is planned, then checked, then applied: begin() decides everything that could fail before it changes anything.
/// The files: causal.cpp (creation), causal_pass.cpp (begin … abort), causal_sequences.cpp (remove, copies),
/// causal_attention.cpp (constants, plan of a pass, attention), causal_reading.cpp (get, mask, gather, runs),
/// causal_watching.cpp (stats, digest, check).
class CausalCache final : public Cache {
 public:
  /// Checks bounds and request and fills in defaults. Needs no device.
  static Status resolve(CacheBounds& bounds, const CausalRequest& request, CausalSettings* settings);

  /// Bytes of the one block that a cache takes from its backend.
  static Status memory_bytes(std::shared_ptr<Backend> backend, const CacheBounds& bounds,
                             const CausalSettings& settings, uint64_t* bytes);

  static Status create(std::shared_ptr<Backend> backend, const CacheBounds& bounds,
                       const CausalSettings& settings, std::unique_ptr<Cache>* out);
  ~CausalCache() override;

  const CacheBounds& bounds() const override { return bounds_; }
  Status health() const override { return health_; }
  void poison(const char* broken_invariant) const override;

  Status begin(const Batch& batch, bool reserve) override;
  Status fits(const Batch& batch) const override;
  int32_t n_tokens() const override { return n_tokens_; }
  Status ready_in_pass() const override;
  Status ready_for_layer(int32_t layer, bool needs_put) const override;
  Status put(int32_t layer, const Tensor& k, const Tensor& v) override;
  Status attention(int32_t layer, const AttentionTensors& tensors) override;
  Status set_causal(int32_t n_except, const int32_t* except) override;
  Status commit() override;
  Status commit_prefix(int32_t n, const int32_t* sequence, const int32_t* keep) override;
  Status abort() override;

  Status bind_attention(int32_t layer_begin, int32_t layer_end,
                        const AttentionConstants& constants) override;
  Status bind_rope(int32_t layer_begin, int32_t layer_end, const RopeSettings& settings) override;
  Status bind_shift(const KeyShift& shift) override;
  int32_t bound_q_heads(int32_t layer) const override { return layers_[layer].constants.n_q_heads; }

  Status get(int32_t layer, Tensor* k, Tensor* v) override;
  Status history(int32_t* first, int32_t* cells) override;
  DType mask_dtype() const override { return settings_.mask_dtype; }
  Status mask(const Tensor& into) override;
  Status gather(int32_t layer, int32_t sequence, const Tensor& k, const Tensor& v) override;
  Status runs(int32_t sequence, int32_t capacity, Run* runs, int32_t* n) const override;

  Status can_resume(int32_t sequence, int32_t want, int32_t* best) const override;
  Status resume(int32_t sequence, int32_t want, int32_t* got) override;
  Status copy_prefix(int32_t source, int32_t destination, int32_t length, int32_t* got) override;
  Status reorder(int32_t n, const int32_t* destination, const int32_t* source) override;
  Status remove(int32_t sequence, int32_t begin, int32_t end) override;
  Status sequence_info(int32_t sequence, SequenceInfo* info) const override;

  /// Sequences that the open pass began with or slides: what opening and ending it costs beside its tokens.
  int32_t n_touched() const { return n_touched_; }

  CacheStats stats() const override;
  Status digest(uint64_t out[2]) const override;
  Status check() const override;

 private:
  struct Sequence {
    TokenSequence tokens;
    int32_t home = 0;  // the block where it begins
    int32_t next = 0;  // one past its last position, the open pass included
    int32_t lost_below = 0;  // one more than the highest position that sliding released, the open pass included
    bool may_owe = false;  // some key may owe a rotation
    // While a pass is open: what abort brings back, and how many tokens it added.
    int32_t next_before = 0;
    int32_t lost_below_before = 0;
    int32_t n_added = 0;
    int32_t first_added = -1;  // index in the batch of its first token, −1: none
    int32_t last_added = -1;
  };

  /// What planning a batch finds out per sequence. Valid where `stamp` is the plan's.
  struct SequencePlan {
    uint32_t stamp = 0;
    int32_t first = 0;    // lowest position
    int32_t last = 0;     // highest so far
    int32_t count = 0;    // tokens
    int32_t slides = 0;   // tokens at the start of its ring that the pass puts out of sight
    int32_t source = -1;  // reorder: the sequence it becomes a copy of
    int32_t uses = 0;     // reorder: copies still to be made of it
  };

  struct Layer {
    LayerStorage storage;
    AttentionConstants constants;  // n_q_heads 0: never bound
    float* slopes = nullptr;       // [max_q_heads]
    float* sinks = nullptr;        // [max_q_heads]
    double* frequency = nullptr;   // [head_dim_k / 2]
    bool put = false;              // in the open pass
  };

  CausalCache(std::shared_ptr<Backend> backend, const CacheBounds& bounds,
              const CausalSettings& settings);
  void carve(Carver& carver);
  void carve_layer(Carver& carver, Layer& layer);
  void carve_batch(Carver& carver);

  // Planning (causal_pass.cpp).
  void begin_plan() const;
  Status plan_batch(const Batch& batch) const;
  Status check_batch(const Batch& batch) const;
  Status check_room(const Batch& batch) const;  // leaves in the plan how many slide
  Status ready_to_end_pass() const;             // no pass, or every layer put
  int64_t slide_bound(int32_t lowest) const;
  int32_t tokens_to_slide(const Sequence& sequence, int32_t lowest) const;
  int32_t home_block(int32_t sequence) const;

  // Applying.
  void open_sequence(int32_t sequence, int32_t n_slide);
  void hide(Sequence& sequence, int32_t n);
  void show(Sequence& sequence, int32_t n);
  void place(const Batch& batch, int32_t begin, int32_t end);
  void drop_tokens(Sequence& sequence, int32_t begin, int32_t end);
  void drop_added(Sequence& sequence, int32_t n);
  void keep_added(Sequence& sequence, int32_t n);
  Status clear_missing_layers();
  void drop_slid(Sequence& sequence);
  Status keep_pass();  // ends the open pass, if there is one
  void close_pass();
  void release(int32_t cell) {
    if (bounds_.zero_on_free) note_freed(cell);
  }
  void note_freed(int32_t cell);
  Status flush_freed();
  void mark_dirty(int32_t sequence);
  void expect(bool condition, const char* what) const {
    if (!condition) poison(what);
  }

  // Sequences (causal_sequences.cpp).
  Status check_sequence(int32_t sequence) const;
  Status check_layer(int32_t layer) const;
  bool can_continue(const Sequence& sequence, int32_t position) const;
  int32_t best_continuation(const Sequence& sequence, int32_t want) const;
  void cut(Sequence& sequence, int32_t position);
  void empty(Sequence& sequence);
  void copy(const Sequence& source, int32_t count, int32_t next, Sequence& destination);
  Status check_middle_removal(const Sequence& sequence, int32_t begin, int32_t end,
                              int32_t* lost_below) const;
  void remove_middle(Sequence& sequence, int32_t begin, int32_t end, int32_t lost_below);
  // Shifts by the caller's function (causal_shift.cpp).
  /// Free cells taken for copies, in the order of the tokens they are for: each names the next one where it will later say
  /// for which position its key was rotated. Given back unless kept.
  class Copies {
   public:
    explicit Copies(CausalCache& cache) : cache_(cache) {}
    Copies(const Copies&) = delete;
    Copies& operator=(const Copies&) = delete;
    ~Copies();

    void take(int32_t count, int32_t home);
    int32_t first() const { return first_; }
    int32_t next_of(int32_t cell) const { return cache_.pool_.rotated_for(cell); }
    void keep() { first_ = -1; }

   private:
    CausalCache& cache_;
    int32_t first_ = -1;
    int32_t last_ = -1;
  };
  Status make_shifted_copies(const Sequence& sequence, int32_t first, int32_t distance,
                             Copies& copies);
  void use_shifted_copies(Sequence& sequence, int32_t first, int32_t distance, Copies& copies);

  Status plan_reorder(int32_t n, const int32_t* destination, const int32_t* source);
  void rotate_cycle(int32_t start);

  // Plan of a pass (causal_attention.cpp).
  void plan_attention();
  void plan_sequence_rows(int32_t sequence);
  void plan_shared_prefixes();
  AttentionRow row_of(const Sequence& sequence, int32_t token, int32_t order, int32_t skipped) const;
  int32_t offset_of(Token token) const {
    return has_rope_ ? token.position - pool_.rotated_for(token.cell) : 0;
  }
  bool in_except_set(int32_t token) const {
    return (except_[token / 64] >> (token % 64) & 1u) != 0;
  }

  // Reading (causal_reading.cpp).
  static constexpr int32_t tokens_per_move = 256;
  struct Payment {
    int32_t from[tokens_per_move], to[tokens_per_move], offset[tokens_per_move];
    int32_t n = 0;
  };
  template <class Visit>
  void for_each_owing(Visit visit);
  Status pay_rotations();
  int32_t own_copy(int32_t sequence, int32_t index, Token token);
  void settle(Payment& payment);
  void span_history();

  // Watching (causal_watching.cpp).
  Digest digest_of(int32_t sequence, Token token, bool of_open_pass) const;
  Status check_sequence_invariants(int32_t sequence) const;

  std::shared_ptr<Backend> backend_;
  CacheBounds bounds_;
  CausalSettings settings_;
  int32_t sequence_limit_;  // positions that a sequence stores at most
  void* block_ = nullptr;
  uint64_t block_bytes_ = 0;
  mutable Status health_ = Status::ok;

  CellPool pool_;
  Sequence* sequences_ = nullptr;  // [max_sequences]
  Layer* layers_ = nullptr;        // [n_layers]
  std::byte* workspace_ = nullptr;
  bool has_rope_ = false;
  KeyShift shift_;

  // Scratch of planning; fits() is const and may overlap itself, so it is locked.
  mutable std::mutex plan_mutex_;
  mutable SequencePlan* plan_ = nullptr;  // [max_sequences]
  mutable int32_t* plan_order_ = nullptr;  // [max_sequences] sequences of the batch, in order of first appearance
  mutable int32_t n_planned_ = 0;
  mutable uint32_t plan_stamp_ = 0;

  // The open pass.
  CacheState state_ = CacheState::idle;
  int32_t n_tokens_ = 0;
  int32_t n_layers_put_ = 0;
  int32_t* batch_position_ = nullptr;  // [max_batch]
  int32_t* batch_sequence_ = nullptr;  // [max_batch]
  int32_t* batch_cell_ = nullptr;      // [max_batch]; −1: dropped by commit_prefix
  int32_t* batch_follower_ = nullptr;  // [max_batch] next token of the same sequence, −1: none
  uint64_t* except_ = nullptr;         // [max_batch / 64] a bit per token
  int32_t* touched_ = nullptr;  // [max_sequences] sequences that the pass may slide: the batch's first, then dirty ones
  int32_t n_touched_ = 0;
  int32_t n_in_batch_ = 0;  // of them, those with tokens in the batch

  // Sequences that may have something to slide: put, copied or moved since they last slid.
  int32_t* dirty_ = nullptr;  // [max_sequences]
  uint8_t* is_dirty_ = nullptr;
  int32_t n_dirty_ = 0;

  // The attention plan of the open pass, made when first asked for.
  bool attention_planned_ = false;
  AttentionRow* rows_ = nullptr;    // [max_batch]
  TokenList* lists_ = nullptr;      // [max_batch]
  SharedPrefix* shared_ = nullptr;  // [max_batch]
  AttentionPlan attention_plan_;
  bool history_spanned_ = false;
  int32_t history_begin_ = 0;
  int32_t history_end_ = 0;

  // Freed cells that still have to become zeros (zero_on_free).
  static constexpr int32_t freed_capacity = 256;
  int32_t* freed_ = nullptr;
  int32_t n_freed_ = 0;

  uint64_t n_passes_ = 0;
};

}  // namespace kvc
