/* kvc/attention.h: constants of the model, attention, and reading K, V and the mask for kernels of your own.
 * Part of <kvc/kvc.h>.
 *
 * Attention is softmax(scale * q k^T -> softcap -> + ALiBi -> + bias / visibility -> sinks) v, computed straight from the
 * cells. No mask is built, all query heads of a KV head share one read of K and V, and sums are in f32. Query head h uses KV
 * head h / (n_q_heads / n_kv_heads): multi-head, grouped-query and multi-query attention alike.
 * (Online softmax: Milakov and Gimelshein, arXiv 1805.02867; tiling: FlashAttention-2, arXiv 2307.08691.)
 *
 * A batch token at position p of a sequence sees a stored token of that sequence at position j if
 *   j <= p (not required for tokens in the except set), and (j >= p - reach or j < keep_first), and, with a chunk,
 *   j >= p - p % chunk.
 * It also sees the batch tokens of that sequence with the same type (KVC_TOKEN_TYPE) that lie in the same chunk, at any j.
 * A hidden token never influences the result, even if it is NaN.
 *
 * Range: results are finite and accurate (docs/SEMANTICS.md, section 8) while these numbers stay below 2^126 for every row:
 * |scale| * sum |q_i k_i| + |ALiBi| + |bias| (before a softcap), |scale * q_i| in each dimension, and the sum of the magnitudes
 * of the values that the row sees in each dimension. kvc checks constants when they are bound, but never looks into tensors:
 * data beyond these limits, infinities and NaN included, may give infinities or NaN in the rows that see it.
 *
 * Same bits: on one instruction set, what a token gets has the same bits for any number of threads, alone and beside other
 * sequences in the pass, wherever its sequence's cells lie, and with padding or without, in every storage type. Two things may
 * round otherwise: a prefix of 128 tokens or more that sequences of the pass share is read once for all of them, and a prompt that
 * is cut into passes otherwise meets other kernels. Different instruction sets agree up to rounding. */
#ifndef KVC_ATTENTION_H
#define KVC_ATTENTION_H

#include "base.h"
#include "cache.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Constants of the model ------------------------------------------------------------------------------------------
 *
 * They are bound once per range of layers, so that the hot calls stay short. Arrays are copied. */

typedef struct kvc_attention_desc {
  uint32_t struct_size;
  int32_t n_q_heads; /* a multiple of n_kv_heads, at most max_q_heads; has no default */
  float scale;       /* 0: 1 / sqrt(head_dim_k); else of a magnitude from 2^-100 to 2^100 */
  float softcap;     /* x -> softcap * tanh(x / softcap) after the scale; 0: none; else from 2^-100 to 2^100 */
  uint64_t flags;    /* 0 */
} kvc_attention_desc;

#define KVC_ATTENTION_DESC_INIT {sizeof(kvc_attention_desc), 0, 0, 0, 0}

/* Binds layers [layer_begin, layer_end); an empty range binds nothing. A layer that was never bound has the default scale and
 * no options, and takes its number of query heads from q.
 *
 * alibi_slopes  [n_q_heads]; null: none. Adds -slope_h * |p - j| (ALiBi, arXiv 2108.12409). Of a magnitude up to 2^95: times
 *               the largest distance, just below 2^31, they stay in range.
 * sinks         [n_q_heads]; null: none. One extra logit per query head, which counts in the softmax sum but has no value
 *               vector. Any finite number.
 *
 * Errors: INVALID_ARGUMENT (bounds; a scale, softcap, slope or sink beyond its limit, which the message gives), BAD_STATE (a
 * pass is open), VERSION. Since 0.1; limits of finite numbers since 0.2. */
KVC_API kvc_status kvc_bind_attention(kvc_cache *cache, int32_t layer_begin, int32_t layer_end,
                                      const kvc_attention_desc *desc, const float *alibi_slopes,
                                      const float *sinks) KVC_NOEXCEPT;

enum { /* kvc_rope_desc.pairs */
  KVC_ROPE_NEIGHBOURS = 0, /* (0, 1) (2, 3) …, counted from first_dim */
  KVC_ROPE_HALVES = 1      /* (0, n_dims / 2) (1, n_dims / 2 + 1) …, counted from first_dim */
};

/* How the caller rotates keys and queries: theta_i = p * scale * base^(-2i / n_dims) / factor_i rotates pair i,
 * (a, b) -> (a cos - b sin, a sin + b cos), over the dimensions [first_dim, first_dim + n_dims) (RoFormer, arXiv 2104.09864).
 * kvc rotates nothing on put; it needs these constants to move positions afterwards. */
typedef struct kvc_rope_desc {
  uint32_t struct_size;
  uint32_t pairs;    /* KVC_ROPE_… */
  int32_t n_dims;    /* even; 0: head_dim_k - first_dim, rounded down to even */
  float base;        /* 0: 10000 */
  float scale;       /* 0: 1 */
  int32_t first_dim; /* first_dim + n_dims is at most head_dim_k */
} kvc_rope_desc;

#define KVC_ROPE_DESC_INIT {sizeof(kvc_rope_desc), 0, 0, 0, 0, 0}

/* Binds RoPE for layers [layer_begin, layer_end). In a cache with RoPE a layer without it is position-free. An empty range
 * such as [0, 0) binds nothing: the cache still has no RoPE.
 *
 * frequency_factors  [n_dims / 2]; null: all 1.
 *
 * Errors: INVALID_ARGUMENT (bounds; a base, scale or factor that is not positive and finite; a pair that turns by more than
 * 2^95 per position, which positions take out of range; with KVC_CACHE_V_IN_K a dim of V that would turn), BAD_STATE (a pass is
 * open or the cache is not empty), NOT_SUPPORTED (the cache is position-free or has a shift function), VERSION. Since 0.1. */
KVC_API kvc_status kvc_bind_rope(kvc_cache *cache, int32_t layer_begin, int32_t layer_end, const kvc_rope_desc *desc,
                                 const float *frequency_factors) KVC_NOEXCEPT;

/* Rotates keys for new positions, for rotations that kvc_rope_desc cannot describe. kvc_remove() of a middle part calls it on
 * the calling thread, for every layer and every run of cells that moves.
 *
 * from, to  [n] the positions that the keys are rotated for now, and those they move to.
 * k         [n, n_kv_heads, head_dim_k] with strides, in the storage type: copies of the keys, to be rotated in place. Valid
 *           during the call.
 *
 * Returns KVC_OK, or a status that kvc_remove() then returns (INVALID_ARGUMENT for a number that is no status of kvc). Nothing
 * has changed then, and the cache is not poisoned, not even by KVC_E_DEVICE and KVC_E_INTERNAL: only copies were rotated.
 *
 * It must not call this cache (BUSY; only kvc_cache_stats() works) and must return: an exception poisons the cache (INTERNAL),
 * pthread_exit() ends the process, and after longjmp() every other call on the cache returns BUSY for ever. It runs with
 * cancellation disabled and in kvc's floating-point environment (round to nearest, subnormal numbers, no traps), and may
 * change both while it runs. */
typedef kvc_status (*kvc_shift_function)(void *user, int32_t layer, int32_t n, const int32_t *from, const int32_t *to,
                                         kvc_tensor *k);

/* Binds a shift function for the whole cache; null unbinds it. Positions then move like this: kvc copies the tokens after the
 * removed part into free cells, the function rotates the keys of the copies, and the copies replace the originals only if the
 * function succeeds in every layer. So a shift costs time and free cells (CACHE_FULL if there are fewer than tokens that move),
 * rounds keys again each time, and changes nothing if the function fails: an open pass stays open. Cells that slid out in that
 * pass are not free for the copies, because a failure must leave them in place; commit first to free them. Prefer
 * kvc_bind_rope() where it can describe the rotation: it is exact, costs nothing and needs no room.
 *
 * `function` and `user` must stay valid until the cache is destroyed or another function is bound.
 * Errors: BAD_STATE (a pass is open), NOT_SUPPORTED (the cache has RoPE or is position-free, dtype_k is quantised, or V is a part
 * of K). Since 0.1. */
KVC_API kvc_status kvc_bind_shift(kvc_cache *cache, kvc_shift_function function, void *user) KVC_NOEXCEPT;

/* ---- Attention ------------------------------------------------------------------------------------------------------- */

enum { /* kvc_attention_extra.flags; the last two are reserved, NOT_SUPPORTED in this version */
  KVC_EXTRA_DROPOUT = 1,     /* drop weights by dropout_seed, with the probability of the layer's operator (operators.h); a layer
                                without one: NOT_SUPPORTED */
  KVC_EXTRA_NO_SINKS = 2,    /* a partial result, to be merged: the layer's sinks take no part in the softmax */
  KVC_EXTRA_BY_POSITION = 4, /* columns of bias, mask and weights are positions of the row's own sequence, not cells */
  KVC_EXTRA_MASK_ALONE = 8   /* the mask alone decides what a row sees of its sequence */
};

/* What one attention call adds to the constants of the model, and what it returns besides the output. The columns, `history` of
 * them, are those of kvc_mask(); kvc_history() returns their number and the cells that they stand for.
 *
 * bias     [n_q_heads, n_tokens, history] f32, f16 or bf16, any strides; null: none. Added to the scores, after ALiBi. Minus
 *          infinity hides a key; the lowest finite number does not: if a row sees only keys with the lowest f32 as bias, their
 *          weights are equal.
 * mask     [n_q_heads, n_tokens, history] KVC_BOOL, any strides; null: none. 0 hides. It can hide more than the cache's own
 *          rules do, never less. (A mask of 0 and minus infinity is a bias.)
 *          Bias and mask are broadcast: an extent may be 1, and leading dimensions may be missing ([n_tokens, history],
 *          [history]). With n_kv_heads heads, each stands for the query heads of its group.
 * weights  [n_q_heads, n_tokens, history] f32, any strides; null: not wanted. Written: the weight of each value, with the sink
 *          in the softmax; 0 where a token does not see the cell. Computed by a second pass over the keys: for analysis, not
 *          for speed.
 * lse      [n_tokens, n_q_heads] f32, any strides; null: not wanted. Written: the natural log of the sum of exponentials over
 *          visible keys, without the sink. With it, two results over disjoint keys can be merged into the one over all.
 *
 * What a bias or mask hides never influences the result, even if it is NaN. A row with nothing left to see gets 0.
 * dropout_seed is 0 without KVC_EXTRA_DROPOUT; with it weights are what is left after dropout, and lse is that of all keys.
 * The fields from first_position on are reserved: all null. */
typedef struct kvc_attention_extra {
  uint32_t struct_size;
  uint32_t flags; /* KVC_EXTRA_… */
  const kvc_tensor *bias;
  const kvc_tensor *mask;
  kvc_tensor *weights;
  kvc_tensor *lse;
  uint64_t dropout_seed;
  const int32_t *first_position;
  const kvc_attention_desc *constants;
  const float *alibi_slopes;
  const float *sinks;
} kvc_attention_extra;

#define KVC_ATTENTION_EXTRA_INIT {sizeof(kvc_attention_extra), 0, NULL, NULL, NULL, NULL, 0, NULL, NULL, NULL, NULL}

/* Computes attention of the batch's queries over what each may see, in a layer that was put in this pass.
 *
 * q      [n_tokens, n_q_heads, head_dim_k] f32, f16 or bf16, any strides. Borrowed for the call.
 * out    [n_tokens, n_q_heads, head_dim_v] f32, f16 or bf16, any strides; written. Must not overlap q.
 * extra  null: none of it is wanted. Tensors that it writes must not overlap q, out or each other.
 *
 * A row that sees nothing gets 0 and minus infinity, with or without a sink. If a layer of the model shares the K and V of
 * another, pass the number of the layer for which they were put. Threads: exclusive; the device's threads share the work. On
 * the CPU the call is synchronous.
 * Errors: BAD_STATE (no pass, or no put of this layer), INVALID_ARGUMENT, SHAPE, DTYPE, DEVICE_MISMATCH, OVERFLOW, VERSION,
 * NOT_SUPPORTED (a reserved field or flag of extra). Since 0.1; extra since 0.2. */
KVC_API kvc_status kvc_attention(kvc_cache *cache, int32_t layer, const kvc_tensor *q, kvc_tensor *out,
                                 const kvc_attention_extra *extra) KVC_NOEXCEPT;

/* kvc_put() and kvc_attention() in one call, which saves one crossing of a language boundary. All arguments are checked before
 * K and V are stored, and K and V are stored before anything is written: what the call writes may overlap k and v, but not q.
 * Errors: those of both. Since 0.1; extra since 0.2. */
KVC_API kvc_status kvc_put_attention(kvc_cache *cache, int32_t layer, const kvc_tensor *k, const kvc_tensor *v,
                                     const kvc_tensor *q, kvc_tensor *out,
                                     const kvc_attention_extra *extra) KVC_NOEXCEPT;

/* ---- Reading, for callers with kernels of their own ---------------------------------------------------------------------
 *
 * All of these take a layer: in caches that combine several kinds, the range of cells depends on the layer. In a causal cache
 * it is the same for all layers. */

/* Returns views of a layer's K and V over the range of cells that spans what the batch may see, rounded outward to
 * cell_padding: [history, n_kv_heads, head_dim] with strides (head_dim, head stride, 1), in the storage type. Cells of that
 * range which no token of the batch sees may hold anything, including other sequences: apply kvc_mask() before you multiply.
 *
 * k, v  null: not wanted. The struct is filled in; do not write through it.
 * Lifetime: valid until the pass ends (next begin, commit, commit_prefix, abort, remove, copy_prefix, reorder, resume,
 * destroy); puts do not move it.
 *
 * Keys with a pending rotation are rewritten once, in every layer; cells that are shared with other sequences are copied first.
 * These changes outlive the pass, however it ends. Quantised keys are never rewritten.
 * Errors: BAD_STATE (no pass, or no put of this layer), INVALID_ARGUMENT, NOT_SUPPORTED (a side that is wanted is quantised: use
 * kvc_get_codes() or kvc_get_copy()), CACHE_FULL (no room for those copies).
 * Since 0.1. */
KVC_API kvc_status kvc_get(kvc_cache *cache, int32_t layer, kvc_tensor *k, kvc_tensor *v) KVC_NOEXCEPT;

/* Returns the range of cells that the columns of kvc_get(), kvc_mask() and kvc_attention_extra stand for: column i is cell
 * first_cell + i, as kvc_runs() numbers cells. kvc_get() may change the range, because it copies shared cells whose keys it
 * rotates. A pass of padding alone has no columns.
 *
 * Errors: BAD_STATE (no pass), INVALID_ARGUMENT. Since 0.1; layer since 0.2. */
KVC_API kvc_status kvc_history(kvc_cache *cache, int32_t layer, int32_t *first_cell, int32_t *n_cells) KVC_NOEXCEPT;

/* Writes the mask that belongs to the views of kvc_get(): 0 where a token of the batch sees a cell and minus infinity
 * elsewhere, or, as KVC_BOOL, 1 and 0.
 *
 * into  [n_tokens, history], f32, f16 or KVC_BOOL, any strides. With data null nothing is written; shape, dense strides and the
 *       mask_dtype of the descriptor are filled in: call it this way first to get the size.
 *
 * Errors: BAD_STATE (no pass), INVALID_ARGUMENT, SHAPE, DTYPE, DEVICE_MISMATCH, OVERFLOW. Since 0.1; layer and KVC_BOOL since
 * 0.2. */
KVC_API kvc_status kvc_mask(kvc_cache *cache, int32_t layer, kvc_tensor *into) KVC_NOEXCEPT;

/* Copies what one sequence holds in a layer, in order of position, into the caller's tensors. Keys are rotated for their
 * present positions. While a pass is open and this layer was not put in it, the tokens of the pass read as zeros.
 *
 * k, v  [count, n_kv_heads, head_dim], f32, f16 or bf16, any strides; null: not wanted. With the flag KVC_TENSOR_TRANSPOSED v
 *       is [n_kv_heads, head_dim_v, count]. count is that of kvc_sequence_query().
 *
 * Errors: INVALID_ARGUMENT (also if k overlaps v), SHAPE, DTYPE, DEVICE_MISMATCH, OVERFLOW. Since 0.1. */
KVC_API kvc_status kvc_gather(kvc_cache *cache, int32_t layer, int32_t sequence, kvc_tensor *k, kvc_tensor *v) KVC_NOEXCEPT;

typedef struct kvc_run {
  int32_t cell;     /* first cell, counted from the start of the pool */
  int32_t length;   /* neighbouring cells that hold consecutive positions */
  int32_t position; /* of the first cell */
  int32_t offset;   /* pending rotation of the keys, in positions: position minus the one they were rotated for */
} kvc_run;

/* Lists where a sequence's tokens lie in a layer, in order of position, as the fewest runs.
 *
 * runs  [capacity], may be null if capacity is 0. Receives the first `capacity` runs.
 * n     receives how many runs there are, even if that is more than capacity.
 *
 * Errors: INVALID_ARGUMENT. Threads: const. Since 0.1; layer since 0.2. */
KVC_API kvc_status kvc_runs(const kvc_cache *cache, int32_t layer, int32_t sequence, int32_t capacity, kvc_run *runs,
                            int32_t *n) KVC_NOEXCEPT;

#ifdef __cplusplus
}
#endif
#endif
