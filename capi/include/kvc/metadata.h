/* kvc/metadata.h: sizes of a cache as models describe them, and padding. Part of <kvc/kvc.h>. Since 0.2.
 *
 * kvc_metadata has the fields of EasyDeL's TransformerCacheMetaData and LightningCacheMetaData. It is checked and completed by
 * kvc_metadata_resolve(), becomes descriptors by kvc_metadata_descriptors(), and is written and read as JSON. No call here takes a
 * cache, and none keeps a pointer.
 *
 *   kvc_metadata metadata = KVC_METADATA_INIT;
 *   metadata.batch_size = 8;  metadata.sequence_length = 4096;  metadata.num_hidden_layers = 32;
 *   metadata.num_heads = 8;   metadata.head_dim = 128;
 *   kvc_metadata_descriptors(&metadata, &desc, &kind_desc);
 *   desc.max_batch = 8 * 512;
 *   kvc_cache_create(device, &desc, &kind_desc, &cache); */
#ifndef KVC_METADATA_H
#define KVC_METADATA_H

#include "cache.h"
#include "transformer.h"

#ifdef __cplusplus
extern "C" {
#endif

enum { /* kvc_metadata.flags, KVC_TRANSFORMER only */
  KVC_METADATA_NO_CAUSAL_MASK = 1,   /* update_causal_mask = false: KVC_TRANSFORMER_NOT_CAUSAL */
  KVC_METADATA_NO_ATTENTION_BIAS = 2 /* create_attention_bias = false: kvc_mask() proposes KVC_BOOL instead of KVC_F32 */
};

typedef struct kvc_metadata { /* 0 in a field: not given */
  uint32_t struct_size;
  uint32_t kind;             /* KVC_TRANSFORMER or KVC_LIGHTNING */
  uint32_t flags;            /* KVC_METADATA_… */
  int32_t batch_size;        /* max_sequences */
  int32_t sequence_length;   /* capacity. KVC_LIGHTNING: must be 0 */
  int32_t num_hidden_layers; /* n_layers */
  int32_t pad_token_id;      /* any number: what kvc_padding() is given. KVC_LIGHTNING: must be 0 */
  int32_t num_heads;         /* KV heads: key_heads and value_heads, where they are not given */
  int32_t head_dim;          /* key_dim and value_dim, where they are not given */
  int32_t key_heads;         /* n_kv_heads */
  int32_t value_heads;       /* kvc_transformer_desc.value_heads */
  int32_t key_dim;           /* head_dim_k */
  int32_t value_dim;         /* head_dim_v */
} kvc_metadata;

#define KVC_METADATA_INIT {sizeof(kvc_metadata), KVC_TRANSFORMER, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}

/* Checks what was given, and fills in key_heads and value_heads from num_heads, key_dim and value_dim from head_dim where they were
 * not. num_heads and head_dim stay as they are. On failure nothing is filled in.
 *
 * Errors: VERSION; INVALID_ARGUMENT, whose message is the first of these that applies:
 *   a null pointer, a struct_size, kind or flag that is not one of these, a field that the kind does not have
 *   "batch_size must be positive"
 *   "sequence_length must be positive" (KVC_TRANSFORMER)
 *   "Either head_dim or both key_dim and value_dim must be specified"
 *   "Either num_heads or both key_heads and value_heads must be specified"
 *   "num_hidden_layers must be positive", then the same of key_heads, value_heads, key_dim, value_dim
 * Threads: any. */
KVC_API kvc_status kvc_metadata_resolve(kvc_metadata *metadata) KVC_NOEXCEPT;

/* Fills in the descriptors of a cache. The metadata need not be resolved, and stays as it is.
 *
 * desc       receives kind, n_layers, n_kv_heads, head_dim_k, head_dim_v, max_sequences, capacity (KVC_LIGHTNING: 0) and cells
 *            (0). The other fields, for instance the storage types, max_batch and max_q_heads, stay as they are. Its struct_size
 *            must be set.
 * kind_desc  receives value_heads, mask_dtype and the flag KVC_TRANSFORMER_NOT_CAUSAL. Ring and reach stay as they are. Its
 *            struct_size and kind must be set. KVC_LIGHTNING: must be null.
 *
 * kvc_cache_create() checks the rest. On failure nothing is filled in.
 * Errors: those of kvc_metadata_resolve(), also for the descriptors; NOT_SUPPORTED (KVC_LIGHTNING with key_heads other than
 * value_heads: a state has one number of heads). Threads: any. */
KVC_API kvc_status kvc_metadata_descriptors(const kvc_metadata *metadata, kvc_cache_desc *desc,
                                            kvc_transformer_desc *kind_desc) KVC_NOEXCEPT;

/* Writes the metadata as one JSON object, on one line, as Python's json.dumps() would. What was not given is null; pad_token_id is
 * always a number. Nothing is derived or checked: what kvc_metadata_from_json() reads back is the same.
 *
 *   KVC_TRANSFORMER  batch_size, sequence_length, num_hidden_layers, pad_token_id, num_heads, head_dim, key_heads, value_heads,
 *                    key_dim, value_dim; update_causal_mask and create_attention_bias are true or false
 *   KVC_LIGHTNING    partition_axis (always null), batch_size, num_hidden_layers, num_heads, head_dim, key_heads, value_heads,
 *                    key_dim, value_dim
 *
 * buffer  [capacity], may be null if capacity is 0. Receives the text, cut to `capacity` bytes, and always terminated (if
 *         capacity > 0). 512 bytes are enough.
 * length  receives the length of the whole text without its terminator. May be null.
 *
 * Errors: INVALID_ARGUMENT (struct_size, kind, flags or a field that the kind does not have; buffer is null and capacity is not 0),
 * VERSION. Threads: any. Allocates nothing. */
KVC_API kvc_status kvc_metadata_to_json(const kvc_metadata *metadata, char *buffer, size_t capacity,
                                        size_t *length) KVC_NOEXCEPT;

/* Reads metadata from a JSON object with the fields of kvc_metadata_to_json(). A field that is missing or null is not given
 * (update_causal_mask and create_attention_bias: true), a field of another name is ignored, of two of one name the later counts.
 * Nothing is derived or checked: that is kvc_metadata_resolve()'s. On failure nothing is filled in.
 *
 * text  [length] UTF-8, not terminated; 64 MiB at most
 * out   its struct_size and kind must be set; all other fields are filled in
 *
 * Errors: INVALID_ARGUMENT (a null pointer, length, struct_size or kind), CORRUPT (the text is no JSON object: the message says at
 * which byte; a field is of another type, or does not fit 32 bits: the message names it), OUT_OF_MEMORY. Threads: any. May allocate. */
KVC_API kvc_status kvc_metadata_from_json(const char *text, size_t length, kvc_metadata *out) KVC_NOEXCEPT;

/* Finds the padding at both ends of rows of tokens: `starts` as kvc_rows_set() takes it, and `ends` as kvc_begin_rows() takes
 * `valid`. Padding between other tokens is none.
 *
 * n_rows, q_len  1 or more
 * token_ids      [n_rows, q_len]
 * starts         [n_rows] receives the index of the row's first token that is not padding. May be null.
 * ends           [n_rows] receives one past the index of its last one. May be null.
 *
 * A row of padding alone has q_len and q_len.
 * Errors: INVALID_ARGUMENT. Threads: any. */
KVC_API kvc_status kvc_padding(int32_t n_rows, int32_t q_len, const int32_t *token_ids, int32_t pad_token_id, int32_t *starts,
                               int32_t *ends) KVC_NOEXCEPT;

#ifdef __cplusplus
}
#endif
#endif
