/* kvc/transformer.h: the transformer cache, a batch of rows as EasyDeL's TransformerCache has it. Part of
 * <kvc/kvc.h>. Since 0.2.
 *
 * A transformer cache (kvc_cache_desc.kind = KVC_TRANSFORMER) holds for each layer K [batch, columns, n_kv_heads, head_dim_k] and V
 * likewise, where batch is max_sequences. The token at position p of a row lies in column p of it, and columns is the capacity. In a
 * ring it lies in column p mod columns: the row keeps its last `capacity` positions, and max_batch / batch spare columns hold the
 * tokens of a pass until it is committed. Cells are numbered row * columns + column.
 *
 * Passes are begun with kvc_begin_rows() (rows.h); kvc_begin() and kvc_fits() are NOT_SUPPORTED. The other calls of cache.h,
 * attention.h and storage.h work on it, with these differences:
 *
 *   kvc_cache_desc   cells must be 0, and max_batch at least max_sequences: a pass has q_len <= max_batch / max_sequences
 *   visible          a token at position p sees what its row holds at j if j >= starts, the attention mask does not hide column j, and
 *                    either j is a token of this pass with its type, or j <= p (skipped in the except set) and j >= p - reach.
 *                    In a ring, too, positions count, and columns never
 *   kvc_attention    NOT_SUPPORTED where value_heads differs from n_kv_heads
 *   kvc_history      0 and columns
 *   kvc_get_copy     columns that no token of their row sees are zeros
 *   kvc_commit       a ring then forgets the positions below index - capacity
 *   kvc_commit_prefix  INVALID_ARGUMENT if a kept token is in the except set or has the type of a dropped one
 *   kvc_resume, kvc_can_resume, kvc_copy_prefix, kvc_remove to the end   a row can continue at 0, and at g <= index if the ring
 *                    still holds the positions from g - reach on. A row that becomes empty gets starts 0
 *   kvc_copy_prefix, kvc_reorder       copy bytes: a row's place is its own. reorder needs no spare row
 *   kvc_remove of a middle part        NOT_SUPPORTED: tokens do not change columns
 *   kvc_bind_rope, kvc_bind_shift      NOT_SUPPORTED: positions never move
 *   kvc_sequence_query   first: the lowest position that is stored; room: capacity - index, of a ring INT32_MAX - 1 - index
 *   kvc_state_digest     covers index, starts and what is stored below index */
#ifndef KVC_TRANSFORMER_H
#define KVC_TRANSFORMER_H

#include "rows.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { /* kvc_transformer_desc.flags */
  KVC_TRANSFORMER_RING = 1,      /* a row goes on past the capacity and keeps its last `capacity` positions */
  KVC_TRANSFORMER_NOT_CAUSAL = 2 /* every token of a pass is in the except set, until kvc_set_causal() replaces it */
};

/* What only a transformer cache needs. Null is the default: everything 0. */
typedef struct kvc_transformer_desc {
  uint32_t struct_size;
  uint32_t kind;       /* KVC_TRANSFORMER */
  uint32_t flags;      /* KVC_TRANSFORMER_… */
  int32_t reach;       /* a token sees itself and so many positions before it; 0: all. A ring's is at most capacity - 1, which is
                          also its default */
  int32_t value_heads; /* heads of V; 0: n_kv_heads. Others store and read like any, and attention is NOT_SUPPORTED */
  uint32_t mask_dtype; /* the type that kvc_mask() fills in for null data: KVC_F32, KVC_F16 or KVC_BOOL; 0: KVC_F32 */
} kvc_transformer_desc;

#define KVC_TRANSFORMER_DESC_INIT {sizeof(kvc_transformer_desc), KVC_TRANSFORMER, 0, 0, 0, 0}

/* Lends all columns of all rows of a layer, as they are stored, without a pass: codes [batch, columns, heads, codes_per_row] and
 * scales [batch, columns, heads, scales_per_row] (storage.h). For f32, f16 and bf16 the codes are the numbers. Scales of a type
 * without stored ones have null data and no dimensions. Columns that hold no position hold anything.
 *
 * k, k_scales, v, v_scales  receive views, any may be null. Valid until the next call on the cache that is not const.
 *
 * Errors: INVALID_ARGUMENT (layer). Threads: const. */
KVC_API kvc_status kvc_rows_view(const kvc_cache *cache, int32_t layer, kvc_tensor *k, kvc_tensor *k_scales, kvc_tensor *v,
                                 kvc_tensor *v_scales) KVC_NOEXCEPT;

/* Replaces what rows [row_begin, row_begin + n) hold in one layer.
 *
 * k, v                [n, c, heads, …], c up to columns, any strides: numbers (f32, f16, bf16), which are stored as kvc_put() does, or
 *                     codes as kvc_rows_view() lends them. Null: stays. Columns that hold no position are not read, and columns
 *                     from c on stay
 * k_scales, v_scales  beside codes with stored scales; else null
 *
 * So a cache is built from arrays: kvc_begin_rows() with the lengths as valid, kvc_commit() without a put, kvc_rows_fill() for each
 * layer, kvc_rows_set() with the starts. The rows of a ring are first set to their lowest positions.
 *
 * Errors: INVALID_ARGUMENT, SHAPE, DTYPE, DEVICE_MISMATCH, OVERFLOW, BAD_STATE (a pass is open). */
KVC_API kvc_status kvc_rows_fill(kvc_cache *cache, int32_t layer, int32_t row_begin, int32_t n, const kvc_tensor *k,
                                 const kvc_tensor *k_scales, const kvc_tensor *v, const kvc_tensor *v_scales) KVC_NOEXCEPT;

#ifdef __cplusplus
}
#endif
#endif
