/* kvc/operators.h: partial results of attention, and dropout. Experimental: these calls may change in any version. Not part of
 * <kvc/kvc.h>: including this header is your consent.
 *
 * The calls of the first part need no handle: their tensors are on KVC_CPU, they allocate nothing, and any number of threads may
 * make them. What lies between the first and the last element of a tensor that is written must not overlap another tensor. */
#ifndef KVC_OPERATORS_H
#define KVC_OPERATORS_H

#include "attention.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Results over parts of the keys ------------------------------------------------------------------------------------------ */

/* Merges two results over disjoint keys into the one over all of them: with L = log(e^lse + e^lse2), o becomes
 * o e^(lse - L) + o2 e^(lse2 - L), and lse becomes L. A log-sum-exp of minus infinity (a row that saw nothing) counts as nothing.
 * Both are results without sinks (KVC_EXTRA_NO_SINKS).
 *
 * o, o2      [..., heads, dim] f32, f16 or bf16, 2 to 8 dimensions, any strides, of one shape
 * lse, lse2  [..., heads] f32
 *
 * Errors: INVALID_ARGUMENT, SHAPE, DTYPE, DEVICE_MISMATCH, OVERFLOW. Threads: any. Since 0.2. */
KVC_API kvc_status kvc_merge_attention(kvc_tensor *o, kvc_tensor *lse, const kvc_tensor *o2,
                                       const kvc_tensor *lse2) KVC_NOEXCEPT;

/* Adds the sinks to a result without them, once, when everything is merged: o becomes o / (1 + e^(sink - lse)). A row whose
 * log-sum-exp is minus infinity becomes 0.
 *
 * o      [..., heads, dim] f32, f16 or bf16
 * lse    [..., heads] f32; stays as it is, because it never holds the sink
 * sinks  [heads], finite
 *
 * Errors: as kvc_merge_attention(). Threads: any. Since 0.2. */
KVC_API kvc_status kvc_apply_sinks(kvc_tensor *o, const kvc_tensor *lse, const float *sinks) KVC_NOEXCEPT;

/* Writes each KV head n times: head h * n + i of `out` is head h of `in`. kvc_attention() never needs it, kernels of your own may.
 *
 * in   [..., heads, dim], 2 to 8 dimensions, any strides, any element type
 * out  [..., heads * n, dim] of the same type
 *
 * Errors: as kvc_merge_attention(). Threads: any. Since 0.2. */
KVC_API kvc_status kvc_repeat_kv_heads(const kvc_tensor *in, int32_t n, kvc_tensor *out) KVC_NOEXCEPT;

/* ---- Dropout ------------------------------------------------------------------------------------------------------------------
 *
 * The weight of query position p, key position j and query head h of a layer and sequence is kept if w >= floor(probability *
 * 2^32), and then multiplied with 1 / (1 - probability), computed in double and rounded to f32 once; else it is 0. w is word
 * j % 4 of Philox4x32-10 (Salmon et al., 2011) with the key (seed % 2^32, seed / 2^32) and the counter (j / 4, p, layer * 65536 +
 * h, sequence), the first word first. So a mask depends on positions, and not on cells, blocks, threads or instruction sets. */

/* Writes the mask that a call of attention with this seed uses.
 *
 * probability  0 or more, below 1
 * layer        0 … 65535
 * sequence     0 or more
 * q_position   [n_q], 0 or more
 * k_position   [n_k], 0 or more
 * into         [n_heads, n_q, n_k] KVC_BOOL, any strides: 1 is kept. n_heads is at most 65536
 *
 * Errors: INVALID_ARGUMENT, SHAPE, DTYPE, DEVICE_MISMATCH, OVERFLOW, NOT_SUPPORTED (more heads). Threads: any. Since 0.2. */
KVC_API kvc_status kvc_dropout_mask(uint64_t seed, float probability, int32_t layer, int32_t sequence, int32_t n_q,
                                    const int32_t *q_position, int32_t n_k, const int32_t *k_position,
                                    kvc_tensor *into) KVC_NOEXCEPT;

/* ---- Modes ------------------------------------------------------------------------------------------------------------------- */

enum { /* what attention is called for; to be combined */
  KVC_MODE_TRAIN = 1,          /* "__train__": a call with dropout; without a cache more than one query token */
  KVC_MODE_PREFILL = 2,        /* "__prefill__": a pass in which some sequence has more than one token */
  KVC_MODE_AUTOREGRESSIVE = 4, /* "__autoregressive__": each sequence has one token */
  KVC_MODE_INSERT = 8,         /* "__insert__": rows move from cache to cache; no operator runs */
  KVC_MODE_ALL = 15
};

/* Returns the mode of queries without a cache: KVC_MODE_AUTOREGRESSIVE if there is one token per row, else KVC_MODE_TRAIN. Only the
 * shape of q is read.
 *
 * q     four dimensions
 * bthd  1: q is [batch, length, heads, dim]; 0: [batch, heads, length, dim]
 *
 * Errors: INVALID_ARGUMENT, SHAPE. Threads: any. Since 0.2. */
KVC_API kvc_status kvc_mode_of(const kvc_tensor *q, int32_t bthd, uint32_t *mode) KVC_NOEXCEPT;

#ifdef __cplusplus
}
#endif
#endif
