/* kvc/recurrent.h: the recurrent cache, for state-space models, gated delta rules, short convolutions and RWKV.
 * Part of <kvc/kvc.h>. Since 0.2.
 *
 * A recurrent cache (kvc_cache_desc.kind = KVC_RECURRENT) holds states of fixed size in place of keys and values. kvc computes no
 * recurrence: it stores states, copies sequences without copying states, and takes sequences back to earlier states. A layer has
 * two parts, one of which may be missing: the convolution state, which is the last conv_dim inputs of a causal convolution, and
 * the recurrent state. A hybrid model has such a cache for its recurrent layers and a causal one for the others.
 *
 * The state of a sequence is every part of every layer; zeros while its `next` is 0. A checkpoint is a state that is kept with the
 * position where it continues. States have no positions to cut at, so a sequence can continue at its next, at a checkpoint, and
 * at 0, and nowhere else.
 *
 *   kvc_begin(cache, n, position, sequence, NULL, 0, NULL);
 *   for each layer with a state {
 *     kvc_state_get(cache, layer, KVC_PART_RECURRENT, &before);   // [n_sequences, …]: a state per sequence of the batch
 *     …                                                           // your recurrence
 *     kvc_state_put(cache, layer, KVC_PART_RECURRENT, &after);    // [n_rows, …]: the states that it left
 *     kvc_state_conv(cache, layer, &x);                           // the inputs of the convolution
 *   }
 *   kvc_commit(cache);
 *
 * Kernels that work in place take kvc_state_view() instead: they read the slots that kvc_state_layout() names, write those of
 * kvc_state_slots() and call kvc_state_done().
 *
 * Rows: a sequence with n tokens in the pass has the states after each of them if n <= draft_states + 1, else only the one after
 * its last. Rows lie sequence by sequence, in the order of kvc_state_layout(). kvc_commit_prefix() needs the row of the last
 * token that it keeps, so draft_states is how many tokens a pass may draft.
 *
 * The calls of cache.h work on it, with these differences:
 *
 *   kvc_cache_desc     n_layers counts layers with a state. n_kv_heads, head_dim_k, head_dim_v, dtype_k, dtype_v, capacity, cells
 *                      and max_q_heads must be 0
 *   kvc_begin          never returns CACHE_FULL: a sequence holds no positions, and every slot is reserved. A reserve pass counts
 *                      token i as one of sequence i % min(n_tokens, max_sequences)
 *   kvc_commit         the state becomes the row after the sequence's last token. A part that was not put stays as it was. begin,
 *                      remove, copy_prefix, reorder, resume and checkpoint_take end a pass only if every part of every layer was
 *                      put. The end of a pass takes checkpoints, see kvc_recurrent_desc
 *   kvc_commit_prefix  NOT_SUPPORTED if a sequence keeps some of its tokens, not all, and has more than draft_states + 1. A
 *                      sequence that keeps none counts as not in the batch
 *   kvc_resume, kvc_can_resume, kvc_copy_prefix       find the largest of 0, next and the checkpoints that is at most `want`.
 *                      resume forgets the checkpoints above it; a copy gets those at or below it. No state is copied, but from
 *                      checkpoints that lie in host memory (KVC_RECURRENT_HOST_CHECKPOINTS)
 *   kvc_remove         to the end: WINDOW_LOST if the sequence cannot continue at `begin`. Of a middle part: NOT_SUPPORTED, or,
 *                      with KVC_RECURRENT_APPROXIMATE, checkpoints in (begin, end] go and those above end move down. They and
 *                      the state still contain what was removed: KVC_SEQUENCE_APPROXIMATE, until the sequence resumes at a
 *                      checkpoint without that mark
 *   kvc_sequence_query first: next; count: 0; room: INT32_MAX - 1 - next; flags: KVC_SEQUENCE_APPROXIMATE
 *   kvc_cache_stats    cells, used and shared count slots
 *   kvc_state_digest   covers per sequence next, state and checkpoints, and of an open pass the rows of what was put
 *   calls that need keys and values (kvc_put, kvc_attention, kvc_get, kvc_mask, …)    NOT_SUPPORTED
 *
 * "As if the open pass were committed" includes the checkpoint that the commit takes, and the one that goes for it. */
#ifndef KVC_RECURRENT_H
#define KVC_RECURRENT_H

#include "attention.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { /* parts of a layer's state */
  KVC_PART_CONV = 1,     /* [conv_channels, conv_dim]: the last conv_dim inputs of a causal convolution, oldest first */
  KVC_PART_RECURRENT = 2 /* [state_size], of any shape */
};

enum { /* kvc_recurrent_desc.flags */
  KVC_RECURRENT_APPROXIMATE = 1,     /* middle parts may be removed; states then still contain what was removed */
  KVC_RECURRENT_HOST_CHECKPOINTS = 2 /* checkpoints lie in host memory, where they are on KVC_CPU in any case: see below */
};

/* What only a recurrent cache needs. Never null: it says how large a state is.
 *
 * The cache has 1 + max_sequences * (1 + checkpoints) + min(max_batch, min(max_sequences, max_batch) * (draft_states + 1)) slots
 * (above 2^30: OVERFLOW): one of zeros, one for each state and checkpoint, and those that a pass writes. A slot holds a state,
 * n_layers * (the bytes of both parts), and 32 bytes of bookkeeping at most. So `checkpoints` is the field to choose by what
 * kvc_cache_memory_bytes() returns. A slot that is never used costs only address space, see there.
 *
 * When a pass ends, however it ends, except by abort, each sequence that keeps a token of it takes a checkpoint at its new next if
 * its last position is checkpoint_min_pos or above and it either has no checkpoint or its newest is checkpoint_interval
 * positions or more below. A sequence that has as many as `checkpoints` loses its lowest.
 *
 * KVC_RECURRENT_HOST_CHECKPOINTS (on KVC_CPU it changes nothing): the max_sequences * checkpoints slots of checkpoints are in host
 * memory that CUDA pins at create, all of it, and does not zero, and the device's memory has only the others. Then a checkpoint is
 * a copy of the state, made beside the next pass, and a sequence that steps back to one, or becomes a copy of another one cut
 * there, gets a copy of it. No call waits for either. */
typedef struct kvc_recurrent_desc {
  uint32_t struct_size;
  uint32_t kind;               /* KVC_RECURRENT */
  uint32_t flags;              /* KVC_RECURRENT_… */
  uint32_t dtype_state;        /* storage type of the recurrent state: KVC_F32, KVC_F16, KVC_BF16; 0: KVC_F32. Below f32 long
                                  sequences drift */
  int64_t state_size;          /* elements of it per layer and sequence, 0 … 2^40; 0: no such part */
  int32_t conv_channels;       /* 0 … 2^24 */
  int32_t conv_dim;            /* 0 … 65536: the width of the convolution less 1. If either is 0 there is no such part. A cache
                                  has one part or both */
  uint32_t dtype_conv;         /* storage type of the convolution state, as dtype_state */
  int32_t checkpoints;         /* that a sequence keeps; 0: 24, KVC_NONE: none */
  int32_t checkpoint_interval; /* positions from one automatic checkpoint to the next; 0: 1664, KVC_NONE: no automatic ones */
  int32_t checkpoint_min_pos;  /* last position of a pass that leaves the first automatic one; 0: 16, KVC_NONE: any */
  int32_t draft_states;        /* a pass with at most draft_states + 1 tokens of a sequence keeps a state per token, 0 … 65536 */
  uint32_t reserved;           /* 0 */
} kvc_recurrent_desc;

#define KVC_RECURRENT_DESC_INIT {sizeof(kvc_recurrent_desc), KVC_RECURRENT, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

/* ---- States by copy -------------------------------------------------------------------------------------------------------- */

typedef struct kvc_state_sequence {
  int32_t sequence;
  int32_t n_tokens;    /* in the batch */
  int32_t first_token; /* where they begin in `order` of kvc_state_layout() */
  int32_t first_row;   /* where its rows begin in kvc_state_put() and kvc_state_slots() */
  int32_t n_rows;      /* n_tokens if that is at most draft_states + 1: the states after each token; else 1: after the last */
  int32_t read_slot;   /* where kvc_state_view() has its state from before the pass; 0, the slot of zeros, for a new sequence */
} kvc_state_sequence;

/* Lists the batch by sequences, in order of first appearance. Their numbers of tokens may differ.
 *
 * sequences  [capacity], may be null if capacity is 0. Receives the first `capacity` sequences.
 * n          receives how many there are, even if that is more than capacity.
 * order      [n_tokens of the pass], may be null. Receives indexes into the batch: sequence by sequence, each one's tokens in
 *            batch order, then the padding tokens.
 *
 * Errors: BAD_STATE (no pass), INVALID_ARGUMENT. Threads: const. */
KVC_API kvc_status kvc_state_layout(const kvc_cache *cache, int32_t capacity, kvc_state_sequence *sequences, int32_t *n,
                                    int32_t *order) KVC_NOEXCEPT;

/* Copies the states from before the pass of the batch's sequences, whatever was put since; zeros for a new sequence.
 *
 * into  [n_sequences, dims…], f32, f16 or bf16, any strides. dims are free if their product is the size of the part: state_size, or
 *       conv_channels * conv_dim. Row i is sequence i of kvc_state_layout(). With data null nothing is copied; shape, dense
 *       strides and the storage type are filled in: [n_sequences, state_size] or [n_sequences, conv_channels, conv_dim].
 *
 * Errors: BAD_STATE (no pass), INVALID_ARGUMENT (layer; a part that the cache lacks), SHAPE (the first extent, or no dimension),
 * INVALID_RECURRENT_SHAPE (no dims, one below 1, another product), SHAPE (strides), DTYPE, DEVICE_MISMATCH, OVERFLOW. */
KVC_API kvc_status kvc_state_get(kvc_cache *cache, int32_t layer, int32_t part, kvc_tensor *into) KVC_NOEXCEPT;

/* Stores the rows of a part, converted to the storage type (rounded to nearest even; overflow becomes infinity). A second put of
 * a part replaces the first.
 *
 * from  [n_rows, dims…], f32, f16 or bf16, any strides; dims as in kvc_state_get(). n_rows is the sum of n_rows over the sequences
 *       of kvc_state_layout(). Borrowed for the call; not the memory of kvc_state_view().
 *
 * Errors: as kvc_state_get(). */
KVC_API kvc_status kvc_state_put(kvc_cache *cache, int32_t layer, int32_t part, const kvc_tensor *from) KVC_NOEXCEPT;

/* Puts the convolution part, made from the inputs of the convolution: each row is the last conv_dim columns of the state from
 * before the pass, followed by the inputs of the sequence's tokens up to the row's token.
 *
 * x  [n_tokens, conv_channels] in batch order, f32, f16 or bf16, any strides. Rows of padding tokens are not read. Borrowed for
 *    the call; not the memory of kvc_state_view().
 *
 * Errors: BAD_STATE (no pass), INVALID_ARGUMENT (layer; the cache has no such part), SHAPE, DTYPE, DEVICE_MISMATCH, OVERFLOW. */
KVC_API kvc_status kvc_state_conv(kvc_cache *cache, int32_t layer, const kvc_tensor *x) KVC_NOEXCEPT;

/* ---- States in place ------------------------------------------------------------------------------------------------------- */

/* Returns a view of all slots of a layer's part, [n_slots, dims…], in the storage type; of those in the device's memory, where
 * checkpoints are in host memory. Read the slots that kvc_state_layout() names and write those of kvc_state_slots(), then call
 * kvc_state_done(). No other slot may be written.
 *
 * dims   [n_dims], n_dims 1 … 7, as in kvc_state_get(); or null with n_dims 0: [n_slots, state_size] or [n_slots, conv_channels,
 *        conv_dim]. A slot is dense, the stride from slot to slot is larger.
 * slots  the struct is filled in.
 *
 * Lifetime: valid until the pass ends (next begin, commit, commit_prefix, abort, remove, copy_prefix, reorder, resume,
 * checkpoint_take, destroy); puts do not move it.
 * Errors: BAD_STATE (no pass), INVALID_ARGUMENT (layer; a part that the cache lacks; n_dims), INVALID_RECURRENT_SHAPE (a dim
 * below 1, another product). */
KVC_API kvc_status kvc_state_view(kvc_cache *cache, int32_t layer, int32_t part, int32_t n_dims, const int64_t *dims,
                                  kvc_tensor *slots) KVC_NOEXCEPT;

/* Lists the slot of each row, the same in every layer. A row's slot is no sequence's read_slot. It may hold anything at first:
 * what another sequence left there.
 *
 * slot    [capacity], may be null if capacity is 0. Receives the first `capacity` slots.
 * n_rows  receives how many rows there are, even if that is more than capacity. While a CUDA graph is captured that is the most that
 *         any pass of so many tokens has: what is put is so large.
 *
 * Errors: BAD_STATE (no pass), INVALID_ARGUMENT. Threads: const. */
KVC_API kvc_status kvc_state_slots(const kvc_cache *cache, int32_t capacity, int32_t *slot, int32_t *n_rows) KVC_NOEXCEPT;

/* Tells that all rows of a layer's part were written in place. It counts as kvc_state_put().
 * Errors: BAD_STATE (no pass), INVALID_ARGUMENT (layer; a part that the cache lacks). */
KVC_API kvc_status kvc_state_done(kvc_cache *cache, int32_t layer, int32_t part) KVC_NOEXCEPT;

/* ---- Outside a pass, or as if the open pass were committed ----------------------------------------------------------------- */

/* Copies the state with which a sequence would continue at `at`: its next, one of its checkpoints, or 0 (zeros).
 *
 * into  [dims…], as in kvc_state_get() without the first extent; data null likewise.
 *
 * Errors: INVALID_ARGUMENT, SHAPE (no dimension), INVALID_RECURRENT_SHAPE, SHAPE (strides), DTYPE, DEVICE_MISMATCH, OVERFLOW,
 * NOT_FOUND (no state there). */
KVC_API kvc_status kvc_state_gather(kvc_cache *cache, int32_t layer, int32_t part, int32_t sequence, int32_t at,
                                    kvc_tensor *into) KVC_NOEXCEPT;

/* Keeps the sequence's state as a checkpoint at its next. Nothing is taken at next 0 and where there is one already. A sequence
 * that has as many as the descriptor allows loses its lowest. Ends an open pass as kvc_remove() does. No state is copied, but to
 * host memory (KVC_RECURRENT_HOST_CHECKPOINTS).
 *
 * Only the end of a pass can become a checkpoint: end a pass where one is wanted, for instance before the last token of a prompt,
 * so that the same prompt can be asked again.
 *
 * Errors: INVALID_ARGUMENT, BAD_STATE (a part of a layer was not put in the open pass), NOT_SUPPORTED (checkpoints are off). */
KVC_API kvc_status kvc_checkpoint_take(kvc_cache *cache, int32_t sequence) KVC_NOEXCEPT;

/* Lists where the checkpoints of a sequence continue, ascending. kvc_resume() restores one.
 *
 * at  [capacity], may be null if capacity is 0. Receives the first `capacity` positions.
 * n   receives how many there are, even if that is more than capacity.
 *
 * Errors: INVALID_ARGUMENT. Threads: const. */
KVC_API kvc_status kvc_checkpoint_list(const kvc_cache *cache, int32_t sequence, int32_t capacity, int32_t *at,
                                       int32_t *n) KVC_NOEXCEPT;

#ifdef __cplusplus
}
#endif
#endif
