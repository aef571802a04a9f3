/* kvc/attention.h: constants of the model, attention, reading K, V and the mask with kernels of your own.
 * Part of <kvc/kvc.h>.
 *
 * Attention is softmax(scale * q k^T -> softcap -> + ALiBi / visibility -> sinks) v, computed straight from the cells:
 * no mask is built, all query heads of a KV head share one read of K and V, sums are in f32. Query head h reads KV head
 * h / (n_q_heads / n_kv_heads): multi-head, grouped-query and multi-query attention alike.
 * (Online softmax: Milakov and Gimelshein, arXiv 1805.02867; tiling: FlashAttention-2, arXiv 2307.08691.)
 *
 * Visible, for a batch token at position p of a sequence and a stored token of it at position j:
 *   j <= p (not asked of tokens in the except set), and (j >= p - reach or j < keep_first), and, with a chunk,
 *   j >= p - p % chunk. What is hidden never reaches the result, even when it is NaN.
 *
 * The same inputs give the same bits whatever the thread count. Different instruction sets agree to rounding only. */
#ifndef KVC_ATTENTION_H
#define KVC_ATTENTION_H

#include "base.h"
#include "cache.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Constants of the model ------------------------------------------------------------------------------------------
 *
 * Bound once per range of layers, so that the hot call is short. Arrays are copied. */

typedef struct kvc_attention_desc {
  uint32_t struct_size;
  int32_t n_q_heads; /* a multiple of n_kv_heads, at most max_q_heads */
  float scale;       /* 0: 1 / sqrt(head_dim_k) */
  float softcap;     /* x -> softcap * tanh(x / softcap) after the scale; 0: none */
  uint64_t flags;    /* 0 */
} kvc_attention_desc;

/* Binds layers [layer_begin, layer_end). A layer that was never bound has the default scale, no options, and takes its
 * number of query heads from q.
 *
 * alibi_slopes  [n_q_heads], may be null: adds -slope_h * |p - j| (ALiBi, arXiv 2108.12409).
 * sinks         [n_q_heads], may be null: one extra logit per query head that takes part in the sum and has no value.
 *
 * Errors: INVALID_ARGUMENT (bounds; a scale, softcap, slope or sink that is not finite; softcap < 0; scale, softcap,
 * 1 / softcap or scale / softcap at the ends of what f32 holds), BAD_STATE (a pass is open), VERSION. Since 0.1. */
KVC_API kvc_status kvc_bind_attention(kvc_cache *cache, int32_t layer_begin, int32_t layer_end,
                                      const kvc_attention_desc *desc, const float *alibi_slopes,
                                      const float *sinks) KVC_NOEXCEPT;

enum { /* kvc_rope_desc.pairs */
  KVC_ROPE_NEIGHBOURS = 0, /* (0, 1) (2, 3) … */
  KVC_ROPE_HALVES = 1      /* (0, n_dims / 2) (1, n_dims / 2 + 1) … */
};

/* How the caller rotates keys and queries: theta_i = p * scale * base^(-2i / n_dims) / factor_i turns pair i,
 * (a, b) -> (a cos - b sin, a sin + b cos), over the first n_dims dimensions (RoFormer, arXiv 2104.09864). kvc rotates
 * nothing on put; it needs this to move positions afterwards. */
typedef struct kvc_rope_desc {
  uint32_t struct_size;
  uint32_t pairs; /* KVC_ROPE_… */
  int32_t n_dims; /* even, at most head_dim_k; 0: head_dim_k (rounded down to even) */
  float base;     /* 0: 10000 */
  float scale;    /* 0: 1 */
} kvc_rope_desc;

/* Binds RoPE for layers [layer_begin, layer_end). In a cache with RoPE a layer without it is position-free.
 *
 * frequency_factors  [n_dims / 2], may be null: all 1.
 *
 * Errors: INVALID_ARGUMENT (bounds; base, scale or a factor that is not positive and finite), BAD_STATE (a pass is open or
 * the cache is not empty), NOT_SUPPORTED (the cache is position-free or has a shift function), VERSION. Since 0.1. */
KVC_API kvc_status kvc_bind_rope(kvc_cache *cache, int32_t layer_begin, int32_t layer_end, const kvc_rope_desc *desc,
                                 const float *frequency_factors) KVC_NOEXCEPT;

/* Turns keys for new positions, for rotations that kvc_rope_desc cannot say. Called from kvc_remove() of a middle part, for
 * every layer and every run of cells that moves, by the thread that calls it.
 *
 * from, to  [n]: the positions that the keys are rotated for and the ones they move to.
 * k         [n, n_kv_heads, head_dim_k] with strides, in the storage type: copies of the keys, to be turned in place. Valid
 *           during the call.
 *
 * Returns KVC_OK, or a status with which kvc_remove() fails. It must not throw and must not call this cache (BUSY). */
typedef kvc_status (*kvc_shift_function)(void *user, int32_t layer, int32_t n, const int32_t *from, const int32_t *to,
                                         kvc_tensor *k);

/* Binds a shift function for the whole cache, or with null takes it away. Positions then move like this: the tokens behind
 * the removed part are copied into free cells, the function turns the copies' keys, and only when it has succeeded in every
 * layer do the copies replace the originals. So it costs time and free cells (CACHE_FULL when there are fewer than
 * tokens that move), rounds keys again with every shift, and a refusal changes nothing, the open pass included: what slid
 * out in that pass could still come back, so its cells are not free to copy into before an explicit commit. Where
 * kvc_bind_rope() can say the rotation, it is exact, free and needs no room.
 *
 * `function` and `user` must stay valid until the cache is destroyed or another is bound.
 * Errors: BAD_STATE (a pass is open), NOT_SUPPORTED (the cache has RoPE or is position-free). Since 0.1. */
KVC_API kvc_status kvc_bind_shift(kvc_cache *cache, kvc_shift_function function, void *user) KVC_NOEXCEPT;

/* ---- Attention ------------------------------------------------------------------------------------------------------- */

/* Attention of the batch's queries over what each may see, in a layer that was put in this pass.
 *
 * q    [n_tokens, n_q_heads, head_dim_k] f32, f16 or bf16, any strides. Borrowed for the call.
 * out  [n_tokens, n_q_heads, head_dim_v] f32, f16 or bf16, any strides; written. Must not overlap q.
 * lse  [n_tokens, n_q_heads] f32, any strides, may be null: the natural log of the sum of exponentials over visible keys,
 *      never the sink. With it two results over disjoint keys merge exactly.
 *
 * A row that sees nothing gets 0 and minus infinity, sink or not. A layer that shares another's K and V calls with the
 * owner's number. Threads: exclusive; the device's threads help. GPU-less: the call returns when the result is there.
 * Errors: BAD_STATE (no pass, or no put of this layer), INVALID_ARGUMENT (lse overlaps q or out, too), SHAPE, DTYPE,
 * DEVICE_MISMATCH, OVERFLOW. Since 0.1. */
KVC_API kvc_status kvc_attention(kvc_cache *cache, int32_t layer, const kvc_tensor *q, kvc_tensor *out,
                                 kvc_tensor *lse) KVC_NOEXCEPT;

/* What one call adds to the constants of the model. Columns are those of kvc_mask(); kvc_history() says which
 * cells they stand for.
 *
 * bias     [n_q_heads, n_tokens, history] f32, f16 or bf16, any strides, may be null: added to the scores, after ALiBi.
 *          Minus infinity hides; the least finite number does not: a row that has nothing else weighs all alike.
 * mask     [n_q_heads, n_tokens, history] KVC_BOOL, any strides, may be null: 0 hides. It hides more than the cache's own
 *          rules do, never less. (A mask of 0 and minus infinity is a bias.)
 *          Both are broadcast: an extent may be 1, and leading dimensions may be missing ([n_tokens, history], [history]).
 * weights  [n_q_heads, n_tokens, history] f32, any strides, may be null; written: what each value counts for, sink
 *          included, 0 where a token does not see. Made by a second pass over the keys; for looking, not for speed.
 *
 * What a bias or mask hides never reaches the result, even when it is NaN. Rows of which nothing is left see nothing. */
typedef struct kvc_attention_extra {
  uint32_t struct_size;
  uint32_t reserved; /* 0 */
  const kvc_tensor *bias;
  const kvc_tensor *mask;
  kvc_tensor *weights;
} kvc_attention_extra;

/* kvc_attention() with `extra`; null: without. Errors: those of kvc_attention(), VERSION. INVALID_ARGUMENT also where
 * weights overlaps another tensor. Since 0.1. */
KVC_API kvc_status kvc_attention_with(kvc_cache *cache, int32_t layer, const kvc_tensor *q, kvc_tensor *out, kvc_tensor *lse,
                                      const kvc_attention_extra *extra) KVC_NOEXCEPT;

/* kvc_put() and kvc_attention() in one crossing of a language boundary. All arguments are checked before K and V are
 * stored, and K and V are stored before out and lse are written: these may overlap k and v, though not q.
 * Errors: those of both. Since 0.1. */
KVC_API kvc_status kvc_put_attention(kvc_cache *cache, int32_t layer, const kvc_tensor *k, const kvc_tensor *v,
                                     const kvc_tensor *q, kvc_tensor *out, kvc_tensor *lse) KVC_NOEXCEPT;

/* ---- Reading, for callers with kernels of their own --------------------------------------------------------------------- */

/* Views of a layer's K and V over the range of cells that spans what the batch may see, rounded outward to cell_padding:
 * [history, n_kv_heads, head_dim] with strides (head_dim, head stride, 1), in the storage type. Cells in it that no token
 * of the batch sees may hold anything of other sequences: apply kvc_mask() before you multiply.
 *
 * k, v  either may be null: not wanted. The struct is filled in; do not write through it.
 * Lifetime: valid until the pass ends (next begin, commit, commit_prefix, abort, remove, copy_prefix, reorder, resume,
 * destroy); puts do not move it.
 *
 * Keys that owe a rotation are rewritten once, in every layer, and cells shared with other sequences are copied first. That
 * outlives the pass, however it ends.
 * Errors: BAD_STATE (no pass, or no put of this layer), INVALID_ARGUMENT, CACHE_FULL (no room for those copies).
 * Since 0.1. */
KVC_API kvc_status kvc_get(kvc_cache *cache, int32_t layer, kvc_tensor *k, kvc_tensor *v) KVC_NOEXCEPT;

/* The range of cells that the columns of kvc_get(), kvc_mask() and kvc_attention_extra stand for: column i is cell
 * first_cell + i, as kvc_runs() numbers them. It may change with kvc_get(), which copies shared cells whose keys it turns.
 *
 * Errors: BAD_STATE (no pass), INVALID_ARGUMENT. Since 0.1. */
KVC_API kvc_status kvc_history(kvc_cache *cache, int32_t *first_cell, int32_t *n_cells) KVC_NOEXCEPT;

/* Writes the mask that belongs to the views of kvc_get(): 0 where a token of the batch sees a cell, minus infinity elsewhere.
 *
 * into  [n_tokens, history], f32 or f16, any strides. With data null nothing is written and shape, dense strides and the
 *       mask_dtype of the descriptor are filled in: ask for the size first.
 *
 * Errors: BAD_STATE (no pass), INVALID_ARGUMENT, SHAPE, DTYPE, DEVICE_MISMATCH, OVERFLOW. Since 0.1. */
KVC_API kvc_status kvc_mask(kvc_cache *cache, kvc_tensor *into) KVC_NOEXCEPT;

/* Copies what one sequence holds in a layer, in order of position, into the caller's tensors; keys turned for where they
 * are now; zeros where an open pass has not put this layer.
 *
 * k, v  [count, n_kv_heads, head_dim], f32, f16 or bf16, any strides; either may be null. With the flag
 *       KVC_TENSOR_TRANSPOSED v is [n_kv_heads, head_dim_v, count]. count is that of kvc_sequence_query().
 *
 * Errors: INVALID_ARGUMENT (k overlaps v, too), SHAPE, DTYPE, DEVICE_MISMATCH, OVERFLOW. Since 0.1. */
KVC_API kvc_status kvc_gather(kvc_cache *cache, int32_t layer, int32_t sequence, kvc_tensor *k, kvc_tensor *v) KVC_NOEXCEPT;

typedef struct kvc_run {
  int32_t cell;     /* first cell, counted from the start of the pool */
  int32_t length;   /* cells in a row that hold consecutive positions */
  int32_t position; /* of the first */
  int32_t offset;   /* rotation the keys still owe, in positions: position - the one they were rotated for */
} kvc_run;

/* Where a sequence's tokens lie, in order of position, as the fewest runs.
 *
 * runs  [capacity], may be null when capacity is 0: the first `capacity` runs are written.
 * n     receives how many there are, even when that is more than capacity.
 *
 * Errors: INVALID_ARGUMENT. Threads: const. Since 0.1. */
KVC_API kvc_status kvc_runs(const kvc_cache *cache, int32_t sequence, int32_t capacity, kvc_run *runs,
                            int32_t *n) KVC_NOEXCEPT;

#ifdef __cplusplus
}
#endif
#endif
