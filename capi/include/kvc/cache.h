/* kvc/cache.h: creating a cache, the forward pass, sequences, watching. Part of <kvc/kvc.h>.
 *
 * A cache holds, per layer, the keys and values of tokens. A token belongs to a sequence and has a position in it.
 * `next` of a sequence is one past its last position: where it continues (0 when it is empty).
 *
 * reach: a token sees itself and the `reach` positions before it. What others call a sliding window of W is reach = W in
 * Ollama's terms and reach = W - 1 in Hugging Face's. kvc knows only reach (0: sees everything).
 *
 * Work goes in passes: kvc_begin() plans where a batch of tokens goes, kvc_put() and kvc_attention() run per layer,
 * kvc_commit() keeps the pass, kvc_abort() forgets it. What each call does in each state:
 *
 *   call                                    no pass open    a pass is open
 *   begin                                   opens           as if the open pass were committed; commits it, opens the new
 *   put                                     BAD_STATE       stores; a second put of a layer replaces the first
 *   attention, attention_with, get          BAD_STATE       need a put of that layer in this pass, else BAD_STATE
 *   put_attention                           BAD_STATE       put, then attention
 *   mask, history, set_causal               BAD_STATE       work; set_causal holds until the pass ends
 *   commit, commit_prefix, abort            BAD_STATE       end the pass; a layer that was not put then holds zeros
 *   remove, copy_prefix, reorder, resume    work            as if the open pass were committed, and commit it
 *   fits, can_resume, runs, gather, sequence_query, cache_stats, state_digest, check
 *                                           work            answer as if the pass were committed
 *   bind_attention, bind_rope, bind_shift   work            BAD_STATE
 *
 * A call that ends an open pass on the side (begin, remove, copy_prefix, reorder, resume) does so only when it succeeds,
 * and only when every layer was put, else BAD_STATE: abort, commit or commit_prefix end any pass.
 *
 * Errors are looked for in this order, over the whole batch: HANDLE, BUSY, BAD_STATE for a missing pass or put,
 * INVALID_ARGUMENT, BAD_STATE for an open pass that is not fully put (or, in bind_…, open at all), WINDOW_LOST,
 * NOT_SUPPORTED, CACHE_FULL. Where INVALID_ARGUMENT stands, arguments are looked at one after the other: a descriptor's
 * size (VERSION) before its fields; a tensor's SHAPE, then DTYPE, DEVICE_MISMATCH and where it lies (OVERFLOW).
 * Every function may answer HANDLE and BUSY; they are not repeated below. A call that fails has changed nothing.
 *
 * Threads: functions that take `const kvc_cache *` overlap freely, all others are exclusive (base.h). */
#ifndef KVC_CACHE_H
#define KVC_CACHE_H

#include "base.h"
#include "device.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kvc_cache kvc_cache; /* a handle, see base.h */

/* ---- Creating -------------------------------------------------------------------------------------------------------- */

enum { /* kvc_cache_desc.kind; 0.1 creates KVC_CAUSAL, the others are NOT_SUPPORTED */
  KVC_CAUSAL = 1,
  KVC_ENCODER,
  KVC_RECURRENT,
  KVC_WRAPPER,
  KVC_TRANSFORMER,
  KVC_LIGHTNING
};

enum { /* kvc_cache_desc.flags */
  KVC_CACHE_STRICT = 1,       /* each position of a batch is its sequence's next: no gaps */
  KVC_CACHE_ZERO_ON_FREE = 2, /* cells become zeros when they are freed: several tenants in one process */
  KVC_CACHE_PREFAULT = 4      /* touch all memory at create, so that no page fault comes later */
};

/* Geometry that every kind shares. All bounds are hard. Counts of sequences, positions, tokens and cells are at most 2^30. */
typedef struct kvc_cache_desc {
  uint32_t struct_size;
  uint32_t kind;         /* KVC_CAUSAL … */
  uint64_t flags;        /* KVC_CACHE_… */
  int32_t n_layers;      /* 1 … 65536 */
  int32_t n_kv_heads;    /* 1 … 65536 */
  int32_t head_dim_k;    /* 1 … 65536 */
  int32_t head_dim_v;    /* 0: as head_dim_k */
  uint32_t dtype_k;      /* storage type: KVC_F32, KVC_F16, KVC_BF16; 0: KVC_F32 */
  uint32_t dtype_v;      /* likewise, on its own */
  int32_t max_sequences; /* sequences are 0 … max_sequences - 1 */
  int32_t capacity;      /* positions that one sequence may hold (a count: gaps cost nothing) */
  int32_t max_batch;     /* a pass has 1 … max_batch tokens */
  int32_t cells;         /* pool that all sequences share; 0: as many as the other bounds can need (see kvc_causal_desc) */
  int32_t max_q_heads;   /* query heads that an attention may have; sizes the workspace. 0: n_kv_heads * 16 */
  int32_t reserved;      /* 0 */
} kvc_cache_desc;

enum { /* kvc_causal_desc.flags */
  KVC_CAUSAL_POSITION_FREE = 1 /* keys carry no rotation: positions may move without touching them */
};

/* What a causal cache alone needs. Null, or all zero: every token sees everything before it, without limit.
 *
 * With a reach memory is limited: a sequence keeps `memory` positions behind the lowest one of its batch, and the first
 * `keep_first` for ever; older ones slide out when a pass begins and are lost when it commits. A chunk limits memory only
 * when `memory` is given. Where memory is limited, memory + keep_first + 2 * max_batch takes the place of capacity (above
 * 2^30: OVERFLOW) and the pool is max_sequences * (memory + keep_first) + 2 * max_batch cells, else
 * max_sequences * capacity. */
typedef struct kvc_causal_desc {
  uint32_t struct_size;
  uint32_t flags;       /* KVC_CAUSAL_… */
  int32_t reach;        /* a token sees itself and `reach` positions before it; 0: everything */
  int32_t memory;       /* positions kept; 0: the reach; KVC_NONE: unlimited. Raised to the reach (chunk - 1), and by one more
                           when max_sequences > 1; at or above capacity it means unlimited. Ignored without reach and chunk */
  int32_t chunk;        /* attention restarts every `chunk` positions: a token at p sees p - p % chunk and later; 0: never */
  int32_t keep_first;   /* positions below it stay visible whatever the reach says (but not across a chunk) */
  int32_t cell_padding; /* the range that get and mask span is rounded outward to a multiple of it; 0: 1 */
  uint32_t mask_dtype;  /* what kvc_mask() proposes: KVC_F32 or KVC_F16; 0: KVC_F32 */
} kvc_causal_desc;

/* The bytes that kvc_cache_create() would take from this device's allocator with these descriptors, all told. It depends on
 * the device: every thread of it has a workspace of its own. Allocates nothing.
 * Errors: INVALID_ARGUMENT, DTYPE, NOT_SUPPORTED, OVERFLOW, VERSION. Threads: const. Since 0.1. */
KVC_API kvc_status kvc_cache_memory_bytes(const kvc_device *device, const kvc_cache_desc *desc, const void *kind_desc,
                                          uint64_t *out_bytes) KVC_NOEXCEPT;

/* Creates a cache and reserves all memory it will ever use, workspace included, as zeros.
 *
 * kind_desc  kvc_causal_desc for KVC_CAUSAL; may be null: all defaults.
 * out        receives the handle; null after a failure.
 *
 * Ownership: the caller destroys the cache. It keeps what it needs of the device.
 * Errors: as kvc_cache_memory_bytes(), and OUT_OF_MEMORY. Threads: any. Since 0.1. */
KVC_API kvc_status kvc_cache_create(kvc_device *device, const kvc_cache_desc *desc, const void *kind_desc,
                                    kvc_cache **out) KVC_NOEXCEPT;

/* Destroys a cache, whatever its state. Null is ok. Errors: HANDLE (destroyed twice), BUSY. Since 0.1. */
KVC_API kvc_status kvc_cache_destroy(kvc_cache *cache) KVC_NOEXCEPT;

/* ---- A pass ------------------------------------------------------------------------------------------------------------- */

enum { /* per token of a pass */
  KVC_TOKEN_SEES_LATER = 1,   /* not causal: sees its sequence's tokens after it too (the "except" set) */
  KVC_TOKEN_ENCODER_INPUT = 2 /* encoder caches only */
};

enum { /* kvc_begin flags */
  KVC_BEGIN_RESERVE = 1 /* size a graph for the worst case: position and sequence may be null, nothing is planned, get and
                           mask have their largest shapes, put and attention check their arguments and do nothing; any
                           call may end it, and ending it changes nothing */
};

/* Opens a pass of n_tokens tokens: decides their cells, puts out of sight what slides out of a limited window.
 *
 * position     [n_tokens] 0 … INT32_MAX - 2; within a sequence strictly ascending from its `next` or above
 *              (a gap is legal unless the cache is strict). Borrowed for the call.
 * sequence     [n_tokens] 0 … max_sequences - 1. Sequences may be mixed in any order. Borrowed for the call.
 * token_flags  [n_tokens] KVC_TOKEN_…, may be null: none.
 * flags        KVC_BEGIN_…
 * stream       null on KVC_CPU.
 *
 * Errors: INVALID_ARGUMENT; BAD_STATE (the open pass is not fully put); CACHE_FULL (fewer free cells than tokens, or a
 * sequence would hold more positions than it may), naming sequence, cells and batch.
 * Cost: O(n_tokens + what slides out). Since 0.1. */
KVC_API kvc_status kvc_begin(kvc_cache *cache, int32_t n_tokens, const int32_t *position, const int32_t *sequence,
                             const uint32_t *token_flags, uint32_t flags, void *stream) KVC_NOEXCEPT;

/* The status that kvc_begin() would return for this batch now. Nothing changes.
 * Errors: those of kvc_begin(). Threads: const. Since 0.1. */
KVC_API kvc_status kvc_fits(const kvc_cache *cache, int32_t n_tokens, const int32_t *position,
                            const int32_t *sequence) KVC_NOEXCEPT;

/* Stores one layer's keys and values for the tokens of the open pass, converted to the storage type (round to nearest
 * even, overflow becomes infinity). Keys come rotated by the caller, if the model rotates them.
 *
 * k  [n_tokens, n_kv_heads, head_dim_k], v [n_tokens, n_kv_heads, head_dim_v]: f32, f16 or bf16 whatever the storage type,
 *    any strides (contiguous rows are fastest). Borrowed for the call.
 *
 * Errors: BAD_STATE (no pass), INVALID_ARGUMENT, SHAPE, DTYPE, DEVICE_MISMATCH, OVERFLOW. Since 0.1. */
KVC_API kvc_status kvc_put(kvc_cache *cache, int32_t layer, const kvc_tensor *k, const kvc_tensor *v) KVC_NOEXCEPT;

/* Replaces the except set of the open pass: the tokens of the batch that see later tokens of their sequence too.
 *
 * except  [n_except] indexes into the batch; may be null when n_except is 0 (all causal). A repeated index counts once.
 *
 * Errors: BAD_STATE (no pass), INVALID_ARGUMENT (an index outside the batch). Since 0.1. */
KVC_API kvc_status kvc_set_causal(kvc_cache *cache, int32_t n_except, const int32_t *except) KVC_NOEXCEPT;

/* Keeps the pass. In a layer that was not put its tokens hold zeros. Errors: BAD_STATE (no pass). Since 0.1. */
KVC_API kvc_status kvc_commit(kvc_cache *cache) KVC_NOEXCEPT;

/* Keeps of each named sequence its first `keep` tokens of this pass, counted in batch order; sequences not named keep
 * all. This is how speculative decoding keeps what was verified: it depends on no window.
 *
 * sequence, keep  [n_sequences]; n_sequences 0 is commit.
 *
 * Errors: BAD_STATE (no pass); INVALID_ARGUMENT (a sequence named twice, more tokens than it has in the pass, or a kept
 * token of the except set that saw a dropped one), and the pass stays open. Since 0.1. */
KVC_API kvc_status kvc_commit_prefix(kvc_cache *cache, int32_t n_sequences, const int32_t *sequence,
                                     const int32_t *keep) KVC_NOEXCEPT;

/* Forgets the pass: the cache is as it was before kvc_begin(), sliding included; only rotations that kvc_get() paid in the
 * pass stay paid. Errors: BAD_STATE (no pass). Since 0.1. */
KVC_API kvc_status kvc_abort(kvc_cache *cache) KVC_NOEXCEPT;

/* ---- Sequences ------------------------------------------------------------------------------------------------------------
 *
 * A sequence can continue at g when g = 0, or g <= next and everything that a token at g may see is still there. */

/* The largest g <= want at which the sequence can continue; best == want means yes. Nothing changes.
 * Errors: INVALID_ARGUMENT (want < 0). Threads: const. Since 0.1. */
KVC_API kvc_status kvc_can_resume(const kvc_cache *cache, int32_t sequence, int32_t want, int32_t *best) KVC_NOEXCEPT;

/* The same g, and what lies at or behind it is dropped: the next pass continues at g. Never fails for want of history,
 * but may answer 0; ask kvc_can_resume() first if dropping everything is too high a price. `got` may be null.
 * Errors: INVALID_ARGUMENT, BAD_STATE (the open pass is not fully put). Since 0.1. */
KVC_API kvc_status kvc_resume(kvc_cache *cache, int32_t sequence, int32_t want, int32_t *got) KVC_NOEXCEPT;

/* Makes dst a copy of src cut to g, where g is what kvc_resume(src, len) would answer; what dst held is dropped. No K or V
 * moves: both share the cells. An empty src empties dst. `got` may be null.
 * Errors: INVALID_ARGUMENT (src == dst, len < 0), BAD_STATE. Cost: O(tokens of both). Since 0.1. */
KVC_API kvc_status kvc_copy_prefix(kvc_cache *cache, int32_t src, int32_t dst, int32_t len, int32_t *got) KVC_NOEXCEPT;

/* Several whole copies at once, each source as it was before the call: dst[i] becomes a copy of src[i] (beam search).
 * Errors: INVALID_ARGUMENT (a dst named twice), BAD_STATE. Cost: O(tokens of the sources and destinations). Since 0.1. */
KVC_API kvc_status kvc_reorder(kvc_cache *cache, int32_t n, const int32_t *dst, const int32_t *src) KVC_NOEXCEPT;

/* Releases the positions [begin, end) of a sequence; later ones move down by end - begin. KVC_SEQ_END: to the end.
 * Removing a middle part moves no K or V, needs no room and works on shared cells: each key then owes a rotation, which
 * attention pays on the query's side and kvc_get() and kvc_gather() pay when they show it, so any number of shifts is as
 * exact as one. It needs bound RoPE constants (kvc_bind_rope) or a position-free cache when later positions must move; or
 * a shift function (kvc_bind_shift), which works on copies instead. Cells that slid out in a pass that this call ends are no
 * room for them yet: commit first.
 *
 * Errors: INVALID_ARGUMENT (begin < 0, end < begin); BAD_STATE; WINDOW_LOST (what a token at the new next would need has
 * slid out); NOT_SUPPORTED (positions must move and nothing says how keys turn); with a shift function also CACHE_FULL (no
 * room for the copies) and what the function answers.
 * Cost: O(tokens of the sequence). Since 0.1. */
KVC_API kvc_status kvc_remove(kvc_cache *cache, int32_t sequence, int32_t begin, int32_t end) KVC_NOEXCEPT;

typedef struct kvc_sequence_info {
  uint32_t struct_size; /* in: what the caller has room for */
  uint32_t flags;       /* 0 */
  int32_t first;        /* lowest position held; next when it holds none */
  int32_t next;         /* where it continues */
  int32_t count;        /* positions held */
  int32_t room;         /* tokens it could take now: min(its limit - count, free cells) */
  int32_t lost_below;   /* one more than the highest position that sliding has released; 0: none */
  int32_t reserved;
} kvc_sequence_info;

/* What a sequence holds. Errors: INVALID_ARGUMENT. Threads: const. Since 0.1. */
KVC_API kvc_status kvc_sequence_query(const kvc_cache *cache, int32_t sequence, kvc_sequence_info *out) KVC_NOEXCEPT;

/* ---- Watching --------------------------------------------------------------------------------------------------------------- */

enum { /* kvc_stats.state */
  KVC_STATE_IDLE = 0,
  KVC_STATE_PASS = 1,     /* a pass is open */
  KVC_STATE_RESERVE = 2,  /* a reserve pass is open */
  KVC_STATE_POISONED = 3  /* DEVICE or INTERNAL: only destroy and kvc_cache_stats work */
};

typedef struct kvc_stats {
  uint32_t struct_size;  /* in: what the caller has room for */
  uint32_t state;        /* KVC_STATE_… */
  uint64_t cells;        /* in the pool */
  uint64_t cells_used;   /* held by at least one sequence */
  uint64_t cells_shared; /* held by more than one */
  uint64_t bytes;        /* memory of this cache */
  uint64_t passes;       /* committed since create */
} kvc_stats;

/* What a cache holds, in counts. It answers when the cache is poisoned too: its state says so, and the counts are those that
 * the failure left. Errors: INVALID_ARGUMENT. Threads: const. Since 0.1. */
KVC_API kvc_status kvc_cache_stats(const kvc_cache *cache, kvc_stats *out) KVC_NOEXCEPT;

/* 128 bits over everything observable: (sequence, position, owed rotation, stored bytes of K and V in every layer) of every
 * token, next and lost_below of every sequence, whether a pass is open and with which except set. Independent of cells and
 * of order: equal states have equal digests on any machine of the same byte order. Tokens of an open pass count where they
 * were put. Reads all K and V: a tool for tests and for finding corruption, not for the hot path.
 * As text: 16 hexadecimal digits of out[0], then 16 of out[1].
 * Errors: INVALID_ARGUMENT. Threads: const. Since 0.1. */
KVC_API kvc_status kvc_state_digest(const kvc_cache *cache, uint64_t out[2]) KVC_NOEXCEPT;

/* Walks every invariant (owner counts recounted, free set, order of positions, limits) and names the broken one.
 * Errors: INTERNAL. Threads: const. Since 0.1. */
KVC_API kvc_status kvc_check(const kvc_cache *cache) KVC_NOEXCEPT;

#ifdef __cplusplus
}
#endif
#endif
