/* kvc/encoder.h: the encoder cache, for cross attention. Part of <kvc/kvc.h>. Since 0.2.
 *
 * An encoder cache (kvc_cache_desc.kind = KVC_ENCODER) holds the keys and values of what an encoder read: an image, 30 seconds of
 * audio, a source sentence. This is called an input. A sequence holds at most one input, its newest. A token of the batch
 * carries a new one (KVC_TOKEN_ENCODER_INPUT); it and all later tokens of its sequence see the whole of it, until another token
 * carries the next one. Sequences may share an input: copies of a sequence do, and kvc_encoder_share() makes them.
 *
 *   kvc_begin(cache, n, position, sequence, token_flags, 0, NULL);   // some tokens carry an input
 *   for each cross attention layer {
 *     kvc_encoder_put(cache, layer, sequence, &k, &v);               // for each sequence that carries one
 *     kvc_attention(cache, layer, &q, &out, NULL);
 *   }
 *   kvc_commit(cache);
 *
 * The calls of cache.h and attention.h work on it, with these differences:
 *
 *   kvc_cache_desc     capacity: positions of one input at most; cells: 0; max_batch counts decoder tokens
 *   kvc_begin          CACHE_FULL: fewer free slots than inputs that the batch carries. INVALID_ARGUMENT: a sequence carries two
 *   kvc_put            stores the only input of the pass, k and v [length, …]. BAD_STATE: no token carries one;
 *                      INVALID_ARGUMENT: several do, or the only one is shared. In a reserve pass it takes any length
 *   kvc_attention      needs a layer put for each input that the pass carries and does not share. In a pass that carries none it
 *   kvc_get            needs no put. A token whose sequence has no input gets 0 and the log-sum-exp minus infinity. The view spans
 *                      the inputs that the batch sees, not padded: if it sees one, exactly that one
 *   kvc_bind_attention NOT_SUPPORTED with alibi_slopes: the keys have no positions, so no distance
 *   kvc_bind_rope, kvc_bind_shift, kvc_set_causal     NOT_SUPPORTED
 *   kvc_resume, kvc_copy_prefix, kvc_remove           a sequence can continue behind its input, and at or before the first input of
 *                      its history. Between the two, tokens saw an input that has been replaced (kvc_remove: WINDOW_LOST). A
 *                      removal moves no key and never lacks room
 *   kvc_commit         a new input replaces the old one. In a layer that was not put it holds zeros; if none was, its length is 0
 *   kvc_runs, kvc_gather   the input of a sequence, one run at position 0
 *   kvc_sequence_query first: the position of the token that carried the input (next if there is none); count: its length
 *   kvc_cache_stats    cells: inputs * capacity; used and shared: positions of inputs that sequences hold, and that several hold */
#ifndef KVC_ENCODER_H
#define KVC_ENCODER_H

#include "attention.h"

#ifdef __cplusplus
extern "C" {
#endif

/* What only an encoder cache needs. */
typedef struct kvc_encoder_desc {
  uint32_t struct_size;
  uint32_t kind;       /* KVC_ENCODER */
  uint32_t flags;      /* 0 */
  int32_t inputs;      /* slots: inputs that the cache holds at a time, those that the open pass replaces included. 0: max_sequences
                          + min(max_sequences, max_batch), with which kvc_begin() never returns CACHE_FULL. Times capacity at
                          most 2^30 (OVERFLOW) */
  uint32_t mask_dtype; /* as in kvc_causal_desc */
} kvc_encoder_desc;

#define KVC_ENCODER_DESC_INIT {sizeof(kvc_encoder_desc), KVC_ENCODER, 0, 0, 0}

/* Stores one layer of the input that `sequence` carries in the open pass. The first put of an input in a pass sets its length; its
 * other layers have the same. A second put of a layer replaces the first.
 *
 * k  [length, n_kv_heads, head_dim_k], v [length, n_kv_heads, head_dim_v], length 1 … capacity; element types and strides as in
 *    kvc_put(). Borrowed for the call.
 *
 * Errors: BAD_STATE (no pass), INVALID_ARGUMENT (layer, sequence, a sequence that carries no input in this pass or shares
 * another's), SHAPE (the length too), DTYPE, DEVICE_MISMATCH, OVERFLOW. */
KVC_API kvc_status kvc_encoder_put(kvc_cache *cache, int32_t layer, int32_t sequence, const kvc_tensor *k,
                                   const kvc_tensor *v) KVC_NOEXCEPT;

/* Makes the input that `sequence` carries in the open pass the one that `source` carries in it, or else the one that `source`
 * holds: nothing to encode, nothing to put, no memory. One image in many chats, one recording with many prompts.
 *
 * Errors: BAD_STATE (no pass); INVALID_ARGUMENT (sequence, source, both the same, a sequence that carries no input in this pass);
 * BAD_STATE (a layer of its input was put, it shares one already, or another sequence shares what it carries); NOT_FOUND
 * (source neither carries nor holds one). */
KVC_API kvc_status kvc_encoder_share(kvc_cache *cache, int32_t sequence, int32_t source) KVC_NOEXCEPT;

/* Returns the input that a sequence holds, as if the open pass were committed: the position of the token that carried it
 * (KVC_NONE: it has none), and its length (0: nothing is stored, so cross attention can be skipped). Either may be null.
 * Errors: INVALID_ARGUMENT. Threads: const. */
KVC_API kvc_status kvc_encoder_query(const kvc_cache *cache, int32_t sequence, int32_t *position,
                                     int32_t *length) KVC_NOEXCEPT;

#ifdef __cplusplus
}
#endif
#endif
