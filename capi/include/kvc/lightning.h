/* kvc/lightning.h: the lightning cache, for linear attention with decay (Lightning Attention, RetNet, MiniMax-01).
 * Part of <kvc/kvc.h>. Since 0.2.
 *
 * A lightning cache (kvc_cache_desc.kind = KVC_LIGHTNING) holds no keys and values. Each sequence has, per layer and state head, one
 * matrix S [head_dim_k, head_dim_v] in f32, zeros when the sequence is empty. Time is the position: with lambda = exp(-slope) of the
 * state head, the state as of next = n and the output of the token at position p are
 *
 *   S   = sum over j < n  of lambda^(n - 1 - j) k_j^T v_j
 *   o_p = scale * q_p * (sum over j <= p of lambda^(p - j) k_j^T v_j)        the token itself does not decay; there is no softmax
 *
 * over the sequence's tokens at positions j. So a state decays over a gap of positions, and memory does not grow with a sequence.
 * Query head h reads state head h / (n_q_heads / n_kv_heads).
 *
 *   kvc_bind_decay(cache, 0, n_layers, slopes);                     // once, while the cache is empty: kvc_slopes()
 *   kvc_begin(cache, n, position, sequence, NULL, 0, NULL);
 *   for each layer kvc_put_attention(cache, layer, &k, &v, &q, &out, NULL);   // k, v, q and out as in attention.h
 *   kvc_commit(cache);
 *
 * A token flagged KVC_TOKEN_MASKED adds nothing to the state while time passes: it is a gap with an output, and its rows of k and
 * v are not read. A padding token (sequence KVC_NONE) neither adds nor lets time pass.
 *
 * The calls of cache.h and attention.h work on it, with these differences:
 *
 *   kvc_cache_desc     dtype_k and dtype_v are 0 or KVC_F32; capacity, cells, block_k, block_v, v_first must be 0, and of the
 *                      flags only KVC_CACHE_STRICT, _ZERO_ON_FREE and _PREFAULT are taken
 *   kvc_bind_attention scale 0 is 1. softcap, alibi_slopes and sinks: NOT_SUPPORTED
 *   kvc_begin          never returns CACHE_FULL. A reserve pass checks arguments and does nothing, as everywhere
 *   kvc_put            makes the states behind the pass, in slots of their own. BAD_STATE in a layer without slopes
 *   kvc_attention      returns outputs for the layer that was put last in this pass, whose K and V are kept until the next put;
 *                      for another one BAD_STATE. With KVC_LIGHTNING_FUSED, and with an extra of bias, mask, weights, lse or
 *                      dropout: NOT_SUPPORTED
 *   kvc_put_attention  makes both in one run over the tokens, with the same bits in less time
 *   kvc_commit         the new states take effect. In a layer that was not put, the tokens count as zeros: its state decays
 *   kvc_commit_prefix  a sequence keeps some of its tokens, not all, only if it has at most draft_states + 1 (else NOT_SUPPORTED).
 *                      Its state is then, bit for bit, what a pass of the kept tokens alone would have made
 *   kvc_resume, kvc_can_resume, kvc_copy_prefix, kvc_reorder, kvc_remove, kvc_checkpoint_take, kvc_checkpoint_list,
 *   kvc_sequence_query, kvc_cache_stats, kvc_state_digest
 *                      as in a recurrent cache (recurrent.h), with KVC_LIGHTNING_APPROXIMATE
 *   kvc_begin_rows     (rows.h) works too. attention_mask is [batch, q_len]: a token that it hides counts as KVC_TOKEN_MASKED, with
 *                      KVC_ROWS_POSTPADDED as padding. token_types and KVC_ROWS_NOT_CAUSAL: NOT_SUPPORTED
 *   kvc_rows_set       the index is a label of time: the state stays as it is, checkpoints are dropped; 0 empties the row. starts
 *                      must be 0
 *   kvc_insert         states and checkpoints, of more checkpoints than there may be not the lowest. Slopes must be the same
 *   kvc_get, kvc_mask, kvc_history, kvc_gather, kvc_runs, kvc_set_causal, kvc_bind_rope, kvc_bind_shift, kvc_bind_scales, calls
 *   on codes           NOT_SUPPORTED
 *
 * Accuracy: each number of an output or a state is off by at most 1e-5 of the sum of the magnitudes of the terms that make it, or by
 * 2^-120 if that is more, compared with double over the same inputs; then it is rounded to the output's type. The same inputs,
 * block and instruction set give the same bits for any number of threads. */
#ifndef KVC_LIGHTNING_H
#define KVC_LIGHTNING_H

#include "attention.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { /* kvc_lightning_desc.flags */
  KVC_LIGHTNING_APPROXIMATE = 1,      /* middle parts may be removed; states then still contain what was removed */
  KVC_LIGHTNING_HOST_CHECKPOINTS = 2, /* as KVC_RECURRENT_HOST_CHECKPOINTS */
  KVC_LIGHTNING_FUSED = 4 /* every layer is attended by kvc_put_attention(): K and V are not kept for kvc_attention(), which is
                             NOT_SUPPORTED. Prompts take less time on a CPU; bits and memory stay the same. Since 0.2 */
};

/* What only a lightning cache needs; null: all defaults.
 *
 * The cache has 1 + max_sequences * (1 + checkpoints) + min(max_sequences, max_batch) slots of n_layers * n_kv_heads * head_dim_k *
 * head_dim_v floats (rows padded to 16), and K and V of max_batch tokens in f32; with draft_states also those of min(max_batch,
 * min(max_sequences, max_batch) * (draft_states + 1)) tokens of each layer. So `checkpoints` is the field to choose by what
 * kvc_cache_memory_bytes() returns. A slot that is never used costs only address space. Checkpoints are taken, and go, as
 * recurrent.h says. */
typedef struct kvc_lightning_desc {
  uint32_t struct_size;
  uint32_t kind;               /* KVC_LIGHTNING */
  uint32_t flags;              /* KVC_LIGHTNING_… */
  int32_t block;               /* tokens that a pass multiplies as matrices at once, 1 … 1024; 0: the kernel's own number */
  int32_t checkpoints;         /* that a sequence keeps; 0: 24, KVC_NONE: none */
  int32_t checkpoint_interval; /* positions from one automatic checkpoint to the next; 0: 1664, KVC_NONE: no automatic ones */
  int32_t checkpoint_min_pos;  /* last position of a pass that leaves the first automatic one; 0: 16, KVC_NONE: any */
  int32_t draft_states;        /* kvc_commit_prefix() can cut a sequence with up to draft_states + 1 tokens in the pass, 0 … 65536 */
} kvc_lightning_desc;

#define KVC_LIGHTNING_DESC_INIT {sizeof(kvc_lightning_desc), KVC_LIGHTNING, 0, 0, 0, 0, 0, 0}

/* Binds how the states of layers [layer_begin, layer_end) decay: by exp(-slope) per position.
 *
 * slopes  [n_kv_heads], finite, 0 or more. Copied.
 *
 * Errors: INVALID_ARGUMENT (of a wrapper also: owners with different n_kv_heads), BAD_STATE (a pass is open, or a sequence is not
 * empty). */
KVC_API kvc_status kvc_bind_decay(kvc_cache *cache, int32_t layer_begin, int32_t layer_end, const float *slopes) KVC_NOEXCEPT;

enum { /* kvc_slopes. H: n_heads, h: the head, l: layer, L: n_layers */
  KVC_SLOPES_ALIBI = 1,  /* 2^(-8 (h + 1) / H); if H is no power of two: those of the next lower power, then every second one of the
                            next higher. Also what kvc_bind_attention() takes as alibi_slopes */
  KVC_SLOPES_LIGHTNING2, /* ALIBI * (1 - l / max(L - 1, 1) + 1e-5) */
  KVC_SLOPES_MINIMAX,    /* 2^(-8 (h + 1) / H) * (1 - l / (L - 1 + 1e-5) + 1e-5) */
  KVC_SLOPES_LINEAR      /* 8 h / H * (1 - l / L) */
};

/* Writes the slopes of a known family, computed in double and rounded once.
 *
 * n_heads   1 … 2^20
 * layer     0 … n_layers - 1; ALIBI ignores both
 * out       [n_heads]
 *
 * Errors: INVALID_ARGUMENT. Threads: any. */
KVC_API kvc_status kvc_slopes(uint32_t family, int32_t n_heads, int32_t layer, int32_t n_layers, float *out) KVC_NOEXCEPT;

/* Copies the states of sequences [sequence_begin, sequence_begin + n), as of their next and as if the open pass were committed.
 *
 * state  [n, n_kv_heads, head_dim_k, head_dim_v] f32, any strides. With data null nothing is copied; shape, dense strides and type
 *        are filled in.
 *
 * Errors: INVALID_ARGUMENT, SHAPE, DTYPE, DEVICE_MISMATCH, OVERFLOW. Threads: const. */
KVC_API kvc_status kvc_lightning_read(const kvc_cache *cache, int32_t layer, int32_t sequence_begin, int32_t n,
                                      kvc_tensor *state) KVC_NOEXCEPT;

/* Replaces the states of sequences in one layer, as kvc_lightning_read() copies them. Their checkpoints are dropped.
 *
 * Errors: BAD_STATE (a pass is open; the layer has no slopes; a sequence is empty, so its state is zeros), INVALID_ARGUMENT, SHAPE,
 * DTYPE, DEVICE_MISMATCH, OVERFLOW. */
KVC_API kvc_status kvc_lightning_write(kvc_cache *cache, int32_t layer, int32_t sequence_begin, int32_t n,
                                       const kvc_tensor *state) KVC_NOEXCEPT;

#ifdef __cplusplus
}
#endif
#endif
