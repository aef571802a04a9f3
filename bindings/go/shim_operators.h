/* What shim.h is, for operators by name, results over parts of the keys, dropout and metadata. */
#ifndef KVC_GO_SHIM_OPERATORS_H
#define KVC_GO_SHIM_OPERATORS_H

#include "shim.h"

typedef struct go_operator { go_result result; kvc_operator *op; } go_operator;
typedef struct go_operator_info { go_result result; kvc_operator_info info; } go_operator_info;
typedef struct go_operator_chosen { go_result result; char name[32]; } go_operator_chosen;
typedef struct go_operator_desc { go_result result; kvc_operator_desc desc; } go_operator_desc;
typedef struct go_operator_used { go_result result; kvc_operator_info info; kvc_operator_desc desc; } go_operator_used;
typedef struct go_mode { go_result result; uint32_t mode; } go_mode;
typedef struct go_metadata { go_result result; kvc_metadata metadata; } go_metadata;
typedef struct go_descriptors { go_result result; kvc_cache_desc desc; kvc_transformer_desc kind; } go_descriptors;
typedef struct go_text { go_result result; size_t length; char text[512]; } go_text;

/* ---- The registry --------------------------------------------------------------------------------------------------- */

static inline go_operator_info go_operator_at(const kvc_device *device, int32_t i) {
  go_operator_info out = {{0}, KVC_OPERATOR_INFO_INIT};
  out.result = go_done(kvc_operator_at(device, i, &out.info));
  return out;
}

static inline go_operator_info go_operator_find(const kvc_device *device, const char *name) {
  go_operator_info out = {{0}, KVC_OPERATOR_INFO_INIT};
  out.result = go_done(kvc_operator_find(device, name, &out.info));
  return out;
}

static inline go_operator_chosen go_operator_supports(const kvc_device *device, const char *name, kvc_operator_needs needs) {
  go_operator_chosen out;
  memset(&out, 0, sizeof out);
  out.result = go_done(kvc_operator_supports(device, name, &needs, out.name));
  return out;
}

/* ---- Operators ------------------------------------------------------------------------------------------------------ */

static inline go_operator_desc go_operator_resolve(kvc_operator_desc base, kvc_operator_desc desc) {
  go_operator_desc out = {{0}, desc};
  out.result = go_done(kvc_operator_resolve(&base, &out.desc));
  return out;
}

static inline go_operator go_operator_create(kvc_device *device, const char *name, kvc_operator_desc desc) {
  go_operator out = {{0}, NULL};
  out.result = go_done(kvc_operator_create(device, name, &desc, &out.op));
  return out;
}

static inline go_result go_operator_destroy(kvc_operator *op) { return go_done(kvc_operator_destroy(op)); }

static inline go_operator_used go_operator_query(const kvc_operator *op) {
  go_operator_used out = {{0}, KVC_OPERATOR_INFO_INIT, KVC_OPERATOR_DESC_INIT};
  out.result = go_done(kvc_operator_query(op, &out.info, &out.desc));
  return out;
}

static inline go_result go_bind_operator(kvc_cache *cache, int32_t layer_begin, int32_t layer_end, uint32_t modes,
                                         kvc_operator *op) {
  return go_done(kvc_bind_operator(cache, layer_begin, layer_end, modes, op));
}

static inline go_result go_operator_forward(kvc_operator *op, kvc_forward_desc desc, go_tensor q, go_tensor k, go_tensor v,
                                            const float *alibi_slopes, const float *sinks, go_extra tensors,
                                            go_tensor out) {
  go_extra_room room;
  kvc_attention_extra extra;
  const kvc_status status = go_view_extra(&tensors, &room, &extra);
  if (status != KVC_OK) return go_done(status);
  GO_VIEW(q);
  GO_VIEW(k);
  GO_VIEW(v);
  GO_VIEW(out);
  return go_done(kvc_operator_forward(op, &desc, q_view, k_view, v_view, alibi_slopes, sinks, &extra, out_view));
}

/* ---- Results over parts of the keys, dropout ------------------------------------------------------------------------ */

static inline go_result go_merge_attention(go_tensor o, go_tensor lse, go_tensor o2, go_tensor lse2) {
  GO_VIEW(o);
  GO_VIEW(lse);
  GO_VIEW(o2);
  GO_VIEW(lse2);
  return go_done(kvc_merge_attention(o_view, lse_view, o2_view, lse2_view));
}

static inline go_result go_apply_sinks(go_tensor o, go_tensor lse, const float *sinks) {
  GO_VIEW(o);
  GO_VIEW(lse);
  return go_done(kvc_apply_sinks(o_view, lse_view, sinks));
}

static inline go_result go_repeat_kv_heads(go_tensor in, int32_t n, go_tensor out) {
  GO_VIEW(in);
  GO_VIEW(out);
  return go_done(kvc_repeat_kv_heads(in_view, n, out_view));
}

static inline go_result go_dropout_mask(uint64_t seed, float probability, int32_t layer, int32_t sequence, int32_t n_q,
                                        const int32_t *q_position, int32_t n_k, const int32_t *k_position,
                                        go_tensor into) {
  GO_VIEW(into);
  return go_done(
      kvc_dropout_mask(seed, probability, layer, sequence, n_q, q_position, n_k, k_position, into_view));
}

static inline go_mode go_mode_of(go_tensor q, int32_t bthd) {
  go_mode out = {{0}, 0};
  kvc_tensor room, *view;
  const kvc_status status = go_view(&q, &room, &view);
  out.result = go_done(status == KVC_OK ? kvc_mode_of(view, bthd, &out.mode) : status);
  return out;
}

/* ---- Metadata ------------------------------------------------------------------------------------------------------- */

static inline go_metadata go_metadata_resolve(kvc_metadata metadata) {
  go_metadata out = {{0}, metadata};
  out.result = go_done(kvc_metadata_resolve(&out.metadata));
  return out;
}

/* `has_kind`: 0 for lightning caches, whose descriptor metadata does not fill in. */
static inline go_descriptors go_metadata_descriptors(kvc_metadata metadata, kvc_cache_desc desc,
                                                     kvc_transformer_desc kind, int32_t has_kind) {
  go_descriptors out = {{0}, desc, kind};
  out.result = go_done(kvc_metadata_descriptors(&metadata, &out.desc, has_kind ? &out.kind : NULL));
  return out;
}

static inline go_text go_metadata_to_json(kvc_metadata metadata) {
  go_text out;
  memset(&out, 0, sizeof out);
  out.result = go_done(kvc_metadata_to_json(&metadata, out.text, sizeof out.text, &out.length));
  return out;
}

static inline go_metadata go_metadata_from_json(const char *text, size_t length, kvc_metadata metadata) {
  go_metadata out = {{0}, metadata};
  out.result = go_done(kvc_metadata_from_json(text, length, &out.metadata));
  return out;
}

static inline go_result go_padding(int32_t n_rows, int32_t q_len, const int32_t *token_ids, int32_t pad_token_id,
                                   int32_t *starts, int32_t *ends) {
  return go_done(kvc_padding(n_rows, q_len, token_ids, pad_token_id, starts, ends));
}

#endif
