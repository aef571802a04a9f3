/* kvc/rows.h: batches of rows, for transformer and lightning caches (transformer.h, lightning.h). Part of <kvc/kvc.h>.
 * Since 0.2.
 *
 * A batch has kvc_cache_desc.max_sequences rows, and row b is sequence b. A pass has q_len tokens in each row, of which the first
 * valid[b] continue the row and the others are padding. The index of a row is where it continues: padding on its left counts.
 * Its starts is the position below which it is padding: stored, never seen.
 *
 * In a pass of rows tensors have two dimensions in the place of n_tokens:
 *
 *   k, v (kvc_put, _put_attention, _put_codes)    [batch, q_len, n_kv_heads, …]
 *   q, out                                        [batch, q_len, n_q_heads, head_dim]
 *   lse                                           [batch, q_len, n_q_heads]
 *   bias, mask, weights of an extra               [batch, n_q_heads, q_len, columns], broadcast as ever
 *   the mask of kvc_mask()                        [batch, 1, q_len, columns]
 *   k, v of kvc_get(), _get_codes(), _get_copy()  [batch, columns, n_kv_heads, …]
 *
 * Arrays laid out [batch, heads, length, dim] are the same tensors with other strides. Token i of row b has the number
 * b * q_len + i, which is what kvc_set_causal() takes. Padding tokens are never read; their outputs are 0, their log-sum-exp is minus
 * infinity, and they see nothing.
 *
 *   kvc_begin_rows(cache, q_len, 0, valid, NULL, NULL, NULL);
 *   for each layer {
 *     kvc_put(cache, layer, &k, &v);
 *     kvc_attention(cache, layer, &q, &out, NULL);
 *   }
 *   kvc_commit(cache);
 *
 * The calls of cache.h that end a pass and move sequences take rows as sequences; kvc_commit_prefix() counts a row's tokens without
 * its padding. In the table at the top of cache.h kvc_begin_rows() stands beside begin, kvc_rows_set() and kvc_insert() beside
 * remove, kvc_fits_rows() and kvc_rows_query() beside fits. Errors come in the order stated there.
 *
 * Wrappers: kvc_begin_rows(), kvc_fits_rows(), kvc_rows_query(), kvc_rows_set() and kvc_insert() work on a wrapper whose children all
 * have as many rows, and reach all of them. Its children return BAD_STATE for those that change something. */
#ifndef KVC_ROWS_H
#define KVC_ROWS_H

#include "attention.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { /* flags of kvc_begin_rows() */
  KVC_ROWS_RESERVE = 1,    /* as KVC_BEGIN_RESERVE: only q_len counts, nothing is planned or stored */
  KVC_ROWS_NOT_CAUSAL = 2, /* every token of the pass is in the except set, see kvc_set_causal() */
  KVC_ROWS_POSTPADDED = 4, /* valid is null and read off attention_mask: of a row's new columns those that it shows come first,
                              and as many tokens count */
  KVC_ROWS_REPLAY = 8      /* as KVC_BEGIN_REPLAY: a captured graph does the pass. For the graph tensors are lists of tokens, row after
                              row: of a pass with a smaller q_len than the capture's, they lie close together at their start */
};

/* Opens a pass of q_len tokens in every row. Token i of row b has the position index[b] + i.
 *
 * q_len           1 … max_batch / max_sequences
 * flags           KVC_ROWS_…
 * valid           [batch] 0 … q_len; null: q_len each. A row that is finished takes 0 tokens
 * attention_mask  KVC_BOOL or KVC_I32 (0 hides) on the host, any strides; null: nothing is hidden. It is copied, holds for this pass
 *                 alone, and only hides: what a row cannot see it does not show.
 *                 Transformer caches: [batch, n] or [batch, 1, q_len, n], a column per position. n reaches at least as far as each
 *                 row will and at most to the capacity; columns beyond n are not hidden. With a ring NOT_SUPPORTED, because its
 *                 columns are reused: use valid and starts. With POSTPADDED [batch, n] alone
 * token_types     [batch * q_len]; null: none. Tokens of a row and pass with the same type, 0 apart, see each other whatever
 *                 their order and distance
 * stream          as in kvc_begin()
 *
 * Errors: INVALID_ARGUMENT, SHAPE, DTYPE, DEVICE_MISMATCH, OVERFLOW, BAD_STATE (the open pass is not fully put), NOT_SUPPORTED,
 * CACHE_FULL (the message names the row; no row was changed). */
KVC_API kvc_status kvc_begin_rows(kvc_cache *cache, int32_t q_len, uint32_t flags, const int32_t *valid,
                                  const kvc_tensor *attention_mask, const int32_t *token_types,
                                  void *stream) KVC_NOEXCEPT;

/* The status that kvc_begin_rows() would return. Threads: const. */
KVC_API kvc_status kvc_fits_rows(const kvc_cache *cache, int32_t q_len, uint32_t flags, const int32_t *valid,
                                 const kvc_tensor *attention_mask, const int32_t *token_types) KVC_NOEXCEPT;

/* Index and starts of rows [row_begin, row_begin + n), as if the open pass were committed.
 *
 * index, starts  [n], either may be null
 *
 * Errors: INVALID_ARGUMENT. Threads: const. */
KVC_API kvc_status kvc_rows_query(const kvc_cache *cache, int32_t row_begin, int32_t n, int32_t *index,
                                  int32_t *starts) KVC_NOEXCEPT;

/* Sets them, in all of these rows or in none.
 *
 * index   [n], may be null. A row goes back: what lies at or behind the index is dropped, and starts stay as they are. Only an empty
 *         row of a ring may go anywhere, up to 2^31 - 3; it then continues there
 * starts  [n], may be null. 0 … capacity; of a ring any position. On a wrapper they are for the children that have starts
 *
 * Errors: INVALID_ARGUMENT, BAD_STATE (the open pass is not fully put), WINDOW_LOST (a ring no longer holds what a token at that
 * index would see). */
KVC_API kvc_status kvc_rows_set(kvc_cache *cache, int32_t row_begin, int32_t n, const int32_t *index,
                                const int32_t *starts) KVC_NOEXCEPT;

/* Puts all rows of another cache in the place of rows [slot, slot + rows of other): what they hold, byte for byte, index and
 * starts. What these rows held is gone. Both caches are of one kind, on one device, and store in the same way; capacity may
 * differ except in rings, and so may max_batch. Of a wrapper the children take the rows of the other's children.
 *
 * other  is read beside const calls on it
 *
 * Errors: INVALID_ARGUMENT (the same cache, rows that do not exist, other layers, heads, dimensions, types, blocks, rotations or
 * f8 scales; a ring and none; rings of two capacities), DEVICE_MISMATCH, BAD_STATE (a pass of other is open, or the open pass is
 * not fully put), CACHE_FULL (index or starts of a row are beyond capacity). */
KVC_API kvc_status kvc_insert(kvc_cache *cache, const kvc_cache *other, int32_t slot) KVC_NOEXCEPT;

#ifdef __cplusplus
}
#endif
#endif
