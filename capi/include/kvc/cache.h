/* kvc/cache.h: creating a cache, the forward pass, sequences, watching. Part of <kvc/kvc.h>.
 *
 * A cache stores the keys and values of tokens, layer by layer. A token belongs to a sequence and has a position in it.
 * `next` of a sequence is one past its last position: where the sequence continues (0 when it is empty).
 *
 * reach: a token sees itself and the `reach` positions before it. A sliding window of W is reach = W in Ollama's terms and
 * reach = W - 1 in Hugging Face's. kvc knows only reach (0: a token sees everything before it).
 *
 * Work is done in passes. kvc_begin() assigns a cell to each token of a batch, kvc_put() and kvc_attention() run once per
 * layer, kvc_commit() keeps the pass, and kvc_abort() discards it. This is what each call does in each state:
 *
 *   call                                    no pass open    a pass is open
 *   begin                                   opens a pass    plans as if the open pass were committed; commits it, opens the new
 *   put, put_codes (storage.h)              BAD_STATE       store; a second put of a layer replaces the first
 *   attention, get, get_codes, get_copy     BAD_STATE       need a put of that layer in this pass, else BAD_STATE
 *   put_attention                           BAD_STATE       put, then attention
 *   mask, history, set_causal               BAD_STATE       work; set_causal holds until the pass ends
 *   encoder_put, encoder_share (encoder.h)  BAD_STATE       work
 *   state_layout, _get, _put, _conv, _view, _slots, _done (recurrent.h)
 *                                           BAD_STATE       work
 *   commit, commit_prefix, abort            BAD_STATE       end the pass; layers that were not put then hold zeros, and their
 *                                                           states stay as they were
 *   remove, copy_prefix, reorder, resume, checkpoint_take
 *                                           work            as if the open pass were committed, and commit it
 *   fits, can_resume, can_remove, runs, gather, encoder_query, state_gather, checkpoint_list, sequence_query, cache_stats,
 *   state_digest, check                     work            as if the open pass were committed
 *   bind_attention, bind_rope, bind_scales, bind_shift
 *                                           work            BAD_STATE
 *
 * begin, remove, copy_prefix, reorder, resume and checkpoint_take end an open pass implicitly: only if the call succeeds, and
 * only if every layer was put. If a layer was not put, they return BAD_STATE. abort, commit and commit_prefix end any pass.
 *
 * Errors are checked in this order, over the whole batch: HANDLE, BUSY, NOT_SUPPORTED for a call that this kind of cache lacks,
 * BAD_STATE for a missing pass or put, INVALID_ARGUMENT, BAD_STATE for an open pass with a layer that was not put (for bind_…:
 * for any open pass), WINDOW_LOST, NOT_FOUND, NOT_SUPPORTED, CACHE_FULL. Where this list says INVALID_ARGUMENT, arguments are
 * checked one after the other: a descriptor's size (VERSION) before its fields; a tensor's SHAPE, then DTYPE, DEVICE_MISMATCH and
 * its address range (OVERFLOW). Every function may return HANDLE and, kvc_cache_stats() apart, BUSY; the comments below do not
 * repeat them. A call that fails has changed nothing.
 *
 * Threads: functions that take `const kvc_cache *` may overlap each other ("Threads: const"); all others are exclusive
 * (base.h). Only kvc_cache_stats() may overlap any call.
 */
#ifndef KVC_CACHE_H
#define KVC_CACHE_H

#include "base.h"
#include "device.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kvc_cache kvc_cache; /* a handle, see base.h */

/* ---- Creating -------------------------------------------------------------------------------------------------------- */

enum { /* kvc_cache_desc.kind. kvc_cache_create() makes KVC_CAUSAL, KVC_ENCODER (encoder.h), KVC_RECURRENT (recurrent.h),
          KVC_TRANSFORMER (transformer.h) and KVC_LIGHTNING (lightning.h), kvc_cache_wrap() wrappers (wrapper.h) */
  KVC_CAUSAL = 1,
  KVC_ENCODER,
  KVC_RECURRENT,
  KVC_WRAPPER,
  KVC_TRANSFORMER,
  KVC_LIGHTNING
};

enum { /* kvc_cache_desc.flags */
  KVC_CACHE_STRICT = 1,       /* each position of a batch must be its sequence's next: no gaps */
  KVC_CACHE_ZERO_ON_FREE = 2, /* overwrite cells with zeros when they are freed: for several tenants in one process */
  KVC_CACHE_PREFAULT = 4,     /* touch all memory in kvc_cache_create(), so that no page fault happens later */

  /* How K and V are stored (storage.h). A type or dimension that a flag does not take returns INVALID_ARGUMENT. Since 0.2. */
  KVC_CACHE_ROTATE_K = 8,     /* K is stored rotated by a Hadamard matrix: q8_0, q4_0, int8, nf4; head_dim_k is even */
  KVC_CACHE_ROTATE_V = 16,    /* V likewise */
  KVC_CACHE_INTERLEAVED = 32, /* K and V of a token lie side by side in one row: f32, f16 or bf16, the same for both. Causal
                                 and transformer caches */
  KVC_CACHE_V_IN_K = 64       /* V is dims [v_first, v_first + head_dim_v) of K and is not stored: latent attention, as in
                                 DeepSeek V2 (arXiv 2405.04434). kvc_put() takes a null v, and views of V are views into K.
                                 RoPE may not turn those dims. Not with INTERLEAVED or ROTATE_V. Causal and
                                 transformer caches */
};

/* The geometry that every kind of cache shares. All bounds are hard. Counts of sequences, positions, tokens and cells are at
 * most 2^30. */
typedef struct kvc_cache_desc {
  uint32_t struct_size;
  uint32_t kind;         /* KVC_CAUSAL … */
  uint64_t flags;        /* KVC_CACHE_… */
  int32_t n_layers;      /* 1 … 65536 */
  int32_t n_kv_heads;    /* 1 … 65536 */
  int32_t head_dim_k;    /* 1 … 65536 */
  int32_t head_dim_v;    /* 0: as head_dim_k */
  uint32_t dtype_k;      /* storage type (storage.h): KVC_F32, KVC_F16, KVC_BF16, KVC_F8_E4M3, KVC_F8_E5M2, KVC_Q8_0, KVC_Q4_0,
                            KVC_INT8 or KVC_NF4; 0: KVC_F32 */
  uint32_t dtype_v;      /* storage type of V, independent of dtype_k; 0: KVC_F32. With KVC_CACHE_V_IN_K it must be 0 */
  int32_t max_sequences; /* sequences are 0 … max_sequences - 1 */
  int32_t capacity;      /* positions that one sequence may hold (a count: gaps cost nothing) */
  int32_t max_batch;     /* a pass has 1 … max_batch tokens, padding included */
  int32_t cells;         /* size of the pool that all sequences share; 0: as many as the other bounds can need (see
                            kvc_causal_desc) */
  int32_t max_q_heads;   /* query heads that an attention call may have; sizes the workspace. 0: n_kv_heads * 16 */
  int32_t block_k;       /* KVC_NF4: values that share a scale, 16, 32, 64 or 128; 0: the largest of 64, 32 and 16 that divides
                            head_dim_k. Other types: 0. Since 0.2 */
  int32_t block_v;       /* likewise for V */
  int32_t v_first;       /* KVC_CACHE_V_IN_K: the first dim of K that belongs to V, at most head_dim_k - head_dim_v; and no block
                            of storage or rotation is cut in two. Else 0. Since 0.2 */
} kvc_cache_desc;

#define KVC_CACHE_DESC_INIT {sizeof(kvc_cache_desc), KVC_CAUSAL, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

enum { /* kvc_causal_desc.flags */
  KVC_CAUSAL_POSITION_FREE = 1 /* keys carry no rotation: positions may move without touching them */
};

/* What only a causal cache needs. The descriptor of every kind begins with struct_size and kind.
 *
 * If all other fields are zero, every token sees everything before it, without limit.
 *
 * With a reach, memory is limited: a sequence keeps the `memory` positions before the lowest position of its batch, and its
 * first `keep_first` positions for ever. Older positions slide out when a pass begins, and are lost when it commits. A chunk
 * limits memory only if `memory` is given. With limited memory a sequence holds at most memory + keep_first + 2 * max_batch
 * positions (above 2^30: OVERFLOW) whatever capacity says, and the pool has max_sequences * (memory + keep_first) +
 * 2 * max_batch cells; otherwise the pool has max_sequences * capacity cells. */
typedef struct kvc_causal_desc {
  uint32_t struct_size;
  uint32_t kind;        /* KVC_CAUSAL */
  uint32_t flags;       /* KVC_CAUSAL_… */
  int32_t reach;        /* a token sees itself and `reach` positions before it; 0: everything */
  int32_t memory;       /* positions kept; 0: the reach; KVC_NONE: unlimited. Raised to the reach (or chunk - 1), and by one
                           more if max_sequences > 1; at or above capacity it means unlimited. Ignored without reach and
                           chunk */
  int32_t chunk;        /* attention restarts every `chunk` positions: a token at p sees p - p % chunk and later; 0: never */
  int32_t keep_first;   /* positions below keep_first stay visible whatever the reach (but not across a chunk) */
  int32_t cell_padding; /* the range of cells that get and mask span is rounded outward to multiples of this; 0: 1 */
  uint32_t mask_dtype;  /* the type that kvc_mask() fills in for null data: KVC_F32, KVC_F16 or KVC_BOOL; 0: KVC_F32 */
} kvc_causal_desc;

#define KVC_CAUSAL_DESC_INIT {sizeof(kvc_causal_desc), KVC_CAUSAL, 0, 0, 0, 0, 0, 0, 0}

/* Computes the bytes that kvc_cache_create() would take from this device with these descriptors, in host and device memory
 * together. The result depends on the device: each of its threads has a workspace in every cache. Allocates nothing.
 *
 *   K and V    cells * n_layers * n_kv_heads * (bytes of a row of K and of a row of V, scales included: kvc_storage_query()),
 *              some KiB per layer and head besides
 *   the book   per cell 12 bytes and some bits (16 with ZERO_ON_FREE); per sequence about 200 bytes, and 8 for each position
 *              that it can hold: min(capacity, cells), or, with limited memory, min(keep_first, cells) +
 *              min(memory + 2 * max_batch, cells)
 *   the rest   workspace and constants: depends on max_batch, max_q_heads, head_dim, n_layers and threads, not on cells
 *
 * Sharing lets every sequence hold every cell, so each has entries for all that it can hold: with 1024 sequences 8 KiB per
 * cell, beside 128 KiB of K and V in a model of 32 layers with 8 KV heads of 128 in f16.
 *
 * Without a caller's allocator all of this is only address space until it is written, and sequences that are never used cost
 * nothing (the system may give it in pages of 2 MiB); KVC_CACHE_PREFAULT takes all at once. An allocator of the caller
 * (kvc_device_open) is asked for all of it, and kvc writes zeros to all of it.
 *
 * Errors: INVALID_ARGUMENT, DTYPE, NOT_SUPPORTED, OVERFLOW, VERSION. Threads: const. Since 0.1. */
KVC_API kvc_status kvc_cache_memory_bytes(const kvc_device *device, const kvc_cache_desc *desc, const void *kind_desc,
                                          uint64_t *out_bytes) KVC_NOEXCEPT;

/* Creates a cache and reserves all memory that it will ever use, workspace included. The memory is zeroed.
 *
 * kind_desc  kvc_causal_desc for KVC_CAUSAL; null: all defaults. Its kind must be desc->kind.
 * out        receives the handle, or null if the call fails.
 *
 * Ownership: the caller destroys the cache. The cache keeps what it needs of the device.
 * Errors: as kvc_cache_memory_bytes(), and OUT_OF_MEMORY. Threads: any. Since 0.1. */
KVC_API kvc_status kvc_cache_create(kvc_device *device, const kvc_cache_desc *desc, const void *kind_desc,
                                    kvc_cache **out) KVC_NOEXCEPT;

/* Destroys a cache in any state. Null is allowed and does nothing. Errors: HANDLE (destroyed twice), BUSY. Since 0.1. */
KVC_API kvc_status kvc_cache_destroy(kvc_cache *cache) KVC_NOEXCEPT;

/* ---- A pass ------------------------------------------------------------------------------------------------------------- */

enum { /* kvc_begin token_flags, one per token. Other bits return INVALID_ARGUMENT */
  KVC_TOKEN_SEES_LATER = 1,    /* not causal: the token also sees later tokens of its sequence (the "except" set) */
  KVC_TOKEN_ENCODER_INPUT = 2, /* encoder caches only; a causal cache returns INVALID_ARGUMENT */
  KVC_TOKEN_MASKED = 4,        /* lightning caches only; a causal cache returns INVALID_ARGUMENT */
  KVC_TOKEN_TYPE_SHIFT = 16    /* the upper 16 bits are the token's type, see KVC_TOKEN_TYPE() */
};

/* Flags of a token of a type, 1 … 65535. Tokens of one sequence that have the same type in a pass see each other, later ones and
 * ones outside the window too (not in other chunks): the tokens of an image in Gemma 3, for example. They must be consecutive
 * tokens of their sequence, so every image of a pass has a type of its own. A type means nothing after the pass. Since 0.2. */
#define KVC_TOKEN_TYPE(type) ((uint32_t)(type) << KVC_TOKEN_TYPE_SHIFT)

enum { /* kvc_begin flags */
  KVC_BEGIN_RESERVE = 1, /* a pass to size a graph for the worst case. position and sequence may be null and nothing is planned.
                            get and mask have their largest shapes; put and attention check their arguments and do nothing. Any
                            call may end the pass, and ending it changes nothing. While a CUDA graph is captured from `stream`,
                            put and attention become part of the graph: see below */
  KVC_BEGIN_REPLAY = 2   /* a pass that a captured graph does: every layer counts as put, and put and attention are BAD_STATE */
};

/* CUDA graphs: a graph does the puts and the attention of passes that differ in everything but their tensors. Caches of every kind
 * on a GPU can be captured, whatever they store; on other devices it is NOT_SUPPORTED. Besides kvc_put(), kvc_put_codes(),
 * kvc_attention() and kvc_put_attention(), a graph does kvc_state_get(), kvc_state_put() and kvc_state_conv() of a recurrent cache. K
 * and V of a lightning cache's layer have the same types in all graphs. Of an encoder cache a graph attends to inputs and puts none:
 * passes that carry inputs are not replayed. Rows are begun with KVC_ROWS_RESERVE and KVC_ROWS_REPLAY.
 *
 *   cudaStreamBeginCapture(s, …)                   kvc_begin(c, 16, NULL, NULL, NULL, KVC_BEGIN_RESERVE, s)
 *     kvc_put_attention(c, layer, …) for each layer; kvc_commit(c); cudaStreamEndCapture(s, …)
 *   for each pass: kvc_begin(c, n, position, sequence, NULL, KVC_BEGIN_REPLAY, s)   n up to 16, padding included
 *     cudaGraphLaunch(…, s); kvc_commit(c)
 *
 * A graph has the addresses of the tensors and the constants of its capture. It does the first n rows of the tensors; the others
 * stay as they are. Launch it on the stream of the pass, once, between begin and the end of the pass, with no more tokens than it
 * was captured with. Columns of bias, mask and weights are all cells, and so they are in a pass that is replayed: kvc_history()
 * returns 0 and all of them. All attention calls that are captured have as many query heads. The bits are those of a pass that is
 * not captured.
 *
 * While the stream is captured, kvc_begin() is BAD_STATE without KVC_BEGIN_RESERVE, and while a pass is open that began before. Every
 * other call that would give the GPU work is NOT_SUPPORTED, and so are those that end such a pass or move sequences, whether
 * or not they have work for the GPU. */

/* Opens a pass of n_tokens tokens. Assigns a cell to each token and hides tokens that leave a limited window; commit frees
 * them, abort restores them.
 *
 * position     [n_tokens] 0 … INT32_MAX - 2. Within a sequence strictly ascending, starting at its `next` or above (a gap is
 *              legal unless the cache is strict). Borrowed for the call.
 * sequence     [n_tokens] 0 … max_sequences - 1, or KVC_NONE. Sequences may be mixed in any order. Borrowed for the call.
 *              KVC_NONE makes the token padding: it belongs to no sequence and takes no cell, its position is ignored and its
 *              flags must be 0. Its rows of K, V, q, bias and mask are never read, even if they hold NaN. Its output is 0, its
 *              log-sum-exp minus infinity, its weights are 0 and its mask is hidden. A pass with padding gives bit for bit the
 *              results of the same pass without it, if it is within max_batch. A pass of padding alone needs no put.
 * token_flags  [n_tokens] KVC_TOKEN_…, KVC_TOKEN_TYPE(…); null: none.
 * flags        KVC_BEGIN_…
 * stream       null on KVC_CPU. (On CUDA the device's work is ordered on it, in DLPack's numbering.)
 *
 * Errors: INVALID_ARGUMENT; BAD_STATE (a layer of the open pass was not put; the stream is being captured; KVC_BEGIN_REPLAY, and no
 * pass was captured); NOT_SUPPORTED; CACHE_FULL (fewer free cells than tokens, or a sequence would hold more positions than it may;
 * the message gives the sequence and the numbers).
 * Cost: O(n_tokens + number of tokens that slide out). Since 0.1; padding since 0.2. */
KVC_API kvc_status kvc_begin(kvc_cache *cache, int32_t n_tokens, const int32_t *position, const int32_t *sequence,
                             const uint32_t *token_flags, uint32_t flags, void *stream) KVC_NOEXCEPT;

/* Returns the status that kvc_begin() would return for this batch now. Changes nothing.
 * Errors: those of kvc_begin(). Threads: const. Since 0.1; token_flags since 0.2. */
KVC_API kvc_status kvc_fits(const kvc_cache *cache, int32_t n_tokens, const int32_t *position, const int32_t *sequence,
                            const uint32_t *token_flags) KVC_NOEXCEPT;

/* Stores one layer's keys and values for the tokens of the open pass, converted to the storage type: encoded as storage.h says, or
 * rounded to nearest even to f32, f16 or bf16, where overflow becomes infinity. If the model rotates keys, the caller does so
 * before this call.
 *
 * k  [n_tokens, n_kv_heads, head_dim_k], v [n_tokens, n_kv_heads, head_dim_v]: f32, f16 or bf16 whatever the storage type,
 *    any strides (contiguous rows are fastest). Borrowed for the call. Rows of padding tokens are not read. With
 *    KVC_CACHE_V_IN_K v must be null.
 *
 * Errors: BAD_STATE (no pass), INVALID_ARGUMENT, SHAPE, DTYPE, DEVICE_MISMATCH, OVERFLOW. Since 0.1. */
KVC_API kvc_status kvc_put(kvc_cache *cache, int32_t layer, const kvc_tensor *k, const kvc_tensor *v) KVC_NOEXCEPT;

/* Replaces the except set of the open pass: the tokens of the batch that also see later tokens of their sequence.
 *
 * except  [n_except] indexes into the batch; may be null if n_except is 0 (then all tokens are causal). A repeated index counts
 *         once; a padding token has no effect.
 *
 * Errors: BAD_STATE (no pass), INVALID_ARGUMENT (an index outside the batch). Since 0.1. */
KVC_API kvc_status kvc_set_causal(kvc_cache *cache, int32_t n_except, const int32_t *except) KVC_NOEXCEPT;

/* Keeps the pass. In a layer that was not put, the tokens of the pass hold zeros; in a recurrent cache its states stay as they
 * were. Errors: BAD_STATE (no pass). Since 0.1. */
KVC_API kvc_status kvc_commit(kvc_cache *cache) KVC_NOEXCEPT;

/* Keeps the first `keep` tokens of each named sequence in this pass, counted in batch order; sequences that are not named keep
 * all their tokens. Speculative decoding keeps its verified tokens in this way, whatever the window.
 *
 * sequence, keep  [n_sequences]; n_sequences 0 is the same as commit.
 *
 * Errors: BAD_STATE (no pass); INVALID_ARGUMENT (a sequence is named twice or has fewer tokens in the pass, or a kept token
 * sees a dropped one: of the except set, or because both have the same type); NOT_SUPPORTED (a recurrent cache has no state for
 * the last token kept, see draft_states). After an error the pass stays open. Since 0.1. */
KVC_API kvc_status kvc_commit_prefix(kvc_cache *cache, int32_t n_sequences, const int32_t *sequence,
                                     const int32_t *keep) KVC_NOEXCEPT;

/* Discards the pass: the cache is as it was before kvc_begin(), including tokens that slid out. Only pending rotations that
 * kvc_get() applied during the pass stay applied. Errors: BAD_STATE (no pass). Since 0.1. */
KVC_API kvc_status kvc_abort(kvc_cache *cache) KVC_NOEXCEPT;

/* ---- Sequences ------------------------------------------------------------------------------------------------------------
 *
 * A sequence can continue at position g if g = 0, or if g <= next and everything that a token at g may see is still stored. In an
 * encoder cache that is the input that was seen there, in a recurrent cache a state: of next or of a checkpoint. */

/* Finds the largest g <= want at which the sequence can continue; best == want means that it can continue at `want`. Changes
 * nothing. Errors: INVALID_ARGUMENT (want < 0). Threads: const. Since 0.1. */
KVC_API kvc_status kvc_can_resume(const kvc_cache *cache, int32_t sequence, int32_t want, int32_t *best) KVC_NOEXCEPT;

/* Finds the same g as kvc_can_resume() and drops every position from g on: the next pass continues at g. Never fails for lack
 * of history, but g may be 0; if that is too expensive, call kvc_can_resume() first. `got` receives g and may be null.
 * Errors: INVALID_ARGUMENT, BAD_STATE (a layer of the open pass was not put). Since 0.1. */
KVC_API kvc_status kvc_resume(kvc_cache *cache, int32_t sequence, int32_t want, int32_t *got) KVC_NOEXCEPT;

/* Makes dst a copy of src cut to g, the position that kvc_resume(src, len) would find. What dst held is dropped. No K or V is
 * copied: both sequences share the cells. An empty src empties dst. `got` receives g and may be null.
 * Errors: INVALID_ARGUMENT (src == dst, len < 0), BAD_STATE. Cost: O(tokens of both). Since 0.1. */
KVC_API kvc_status kvc_copy_prefix(kvc_cache *cache, int32_t src, int32_t dst, int32_t len, int32_t *got) KVC_NOEXCEPT;

/* Makes several whole copies at once: dst[i] becomes a copy of what src[i] was before the call (beam search).
 * Errors: INVALID_ARGUMENT (a dst is named twice), BAD_STATE. Cost: O(tokens of the sources and destinations). Since 0.1. */
KVC_API kvc_status kvc_reorder(kvc_cache *cache, int32_t n, const int32_t *dst, const int32_t *src) KVC_NOEXCEPT;

/* Releases the positions [begin, end) of a sequence; later positions move down by end - begin. KVC_SEQ_END: to the end.
 *
 * Removing a middle part moves no K or V, needs no room and works on shared cells. Each later key then has a pending rotation:
 * attention applies it to the query instead, kvc_get() and kvc_gather() apply it to the keys they return. Any number of
 * removals is therefore as exact as one. If later positions must move, the cache needs bound RoPE constants (kvc_bind_rope), or
 * must be position-free, or must have a shift function (kvc_bind_shift), which works on copies instead. Cells that slid out in
 * a pass that this call ends are not free for those copies yet: commit first.
 *
 * In a recurrent cache a middle part can only be removed if it was created with KVC_RECURRENT_APPROXIMATE.
 *
 * Errors: INVALID_ARGUMENT (begin < 0, end < begin); BAD_STATE; WINDOW_LOST (to the end: the sequence cannot continue at `begin`;
 * of a middle part: what a token at the new next would need has slid out, or an input that was replaced would have to come
 * back); NOT_SUPPORTED (positions must move in a cache with none of the three; a middle part of a recurrent cache); with a shift
 * function also CACHE_FULL (no room for the copies) and the status that the function returns.
 * Cost: O(tokens of the sequence). Since 0.1. */
KVC_API kvc_status kvc_remove(kvc_cache *cache, int32_t sequence, int32_t begin, int32_t end) KVC_NOEXCEPT;

/* Returns the status that kvc_remove() would return now, except for errors of a shift function itself. Changes nothing.
 * Errors: those of kvc_remove(). Threads: const. Since 0.2. */
KVC_API kvc_status kvc_can_remove(const kvc_cache *cache, int32_t sequence, int32_t begin, int32_t end) KVC_NOEXCEPT;

enum { /* kvc_sequence_info.flags */
  KVC_SEQUENCE_APPROXIMATE = 1 /* recurrent and lightning caches: the state contains tokens that were removed */
};

typedef struct kvc_sequence_info {
  uint32_t struct_size; /* in: sizeof the caller's struct */
  uint32_t flags;       /* KVC_SEQUENCE_… */
  int32_t first;        /* lowest position held; next if it holds none */
  int32_t next;         /* where the sequence continues */
  int32_t count;        /* positions held */
  int32_t room;         /* tokens that it could take now: min(its limit - count, free cells) */
  int32_t lost_below;   /* one more than the highest position that sliding has released; 0: none */
  int32_t reserved;
} kvc_sequence_info;

#define KVC_SEQUENCE_INFO_INIT {sizeof(kvc_sequence_info), 0, 0, 0, 0, 0, 0, 0}

/* Describes what a sequence holds. Errors: INVALID_ARGUMENT. Threads: const. Since 0.1. */
KVC_API kvc_status kvc_sequence_query(const kvc_cache *cache, int32_t sequence, kvc_sequence_info *out) KVC_NOEXCEPT;

/* ---- Watching ------------------------------------------------------------------------------------------------------------ */

enum { /* kvc_stats.state */
  KVC_STATE_IDLE = 0,
  KVC_STATE_PASS = 1,    /* a pass is open */
  KVC_STATE_RESERVE = 2, /* a reserve pass is open */
  KVC_STATE_POISONED = 3 /* after DEVICE or INTERNAL: only kvc_cache_destroy() and kvc_cache_stats() work */
};

typedef struct kvc_stats {
  uint32_t struct_size;  /* in: sizeof the caller's struct */
  uint32_t state;        /* KVC_STATE_… */
  uint64_t cells;        /* in the pool; of an encoder cache positions of inputs, of a recurrent cache slots, of a wrapper sums */
  uint64_t cells_used;   /* held by at least one sequence */
  uint64_t cells_shared; /* held by more than one */
  uint64_t bytes;        /* memory of this cache, host and device together */
  uint64_t passes;       /* committed since create */
} kvc_stats;

#define KVC_STATS_INIT {sizeof(kvc_stats), 0, 0, 0, 0, 0, 0}

/* Counts what a cache holds. Also works if the cache is poisoned: state is then KVC_STATE_POISONED and the counts are those
 * that the failure left.
 *
 * Made for metrics threads: it never returns BUSY, and no call returns BUSY because of it, kvc_cache_destroy() included. All
 * numbers are those of one moment between two calls; while a call runs that changes the cache, those from before it. A cache
 * that is being destroyed returns them or HANDLE. What else such a thread may call: kvc_sequence_query() and other const
 * functions, but they exclude the calls of the thread that works with the cache, and are excluded by them (base.h).
 * Errors: HANDLE, INVALID_ARGUMENT. Threads: any. Since 0.1; never BUSY since 0.2. */
KVC_API kvc_status kvc_cache_stats(const kvc_cache *cache, kvc_stats *out) KVC_NOEXCEPT;

/* Computes 128 bits over everything observable: for each token its sequence, position, pending rotation and stored bytes of K
 * and V in every layer; for each sequence next and lost_below; whether a pass is open, and its except set. The digest does not
 * depend on cells or on order: equal states have equal digests on any machine of the same byte order. Tokens of an open pass
 * count in the layers that were put. Reads all K and V: for tests and for finding corruption, not for the hot path.
 * As text: 16 hexadecimal digits of out[0], then 16 of out[1].
 * Errors: INVALID_ARGUMENT. Threads: const. Since 0.1. */
KVC_API kvc_status kvc_state_digest(const kvc_cache *cache, uint64_t out[2]) KVC_NOEXCEPT;

/* Verifies every invariant (recounts owners, checks the free set, the order of positions, limits).
 * Errors: INTERNAL (the message names the broken invariant; the cache is not poisoned). Threads: const. Since 0.1. */
KVC_API kvc_status kvc_check(const kvc_cache *cache) KVC_NOEXCEPT;

#ifdef __cplusplus
}
#endif
#endif
