/* What shim.h is, for caches whose passes are batches of rows: transformer and lightning caches. */
#ifndef KVC_GO_SHIM_ROWS_H
#define KVC_GO_SHIM_ROWS_H

#include "shim.h"

/* ---- Rows ----------------------------------------------------------------------------------------------------------- */

static inline go_result go_begin_rows(kvc_cache *cache, int32_t q_len, uint32_t flags, const int32_t *valid,
                                      go_tensor attention_mask, const int32_t *token_types, void *stream) {
  GO_VIEW(attention_mask);
  return go_done(kvc_begin_rows(cache, q_len, flags, valid, attention_mask_view, token_types, stream));
}

static inline go_result go_fits_rows(const kvc_cache *cache, int32_t q_len, uint32_t flags, const int32_t *valid,
                                     go_tensor attention_mask, const int32_t *token_types) {
  GO_VIEW(attention_mask);
  return go_done(kvc_fits_rows(cache, q_len, flags, valid, attention_mask_view, token_types));
}

static inline go_result go_rows_query(const kvc_cache *cache, int32_t row_begin, int32_t n, int32_t *index,
                                      int32_t *starts) {
  return go_done(kvc_rows_query(cache, row_begin, n, index, starts));
}

static inline go_result go_rows_set(kvc_cache *cache, int32_t row_begin, int32_t n, const int32_t *index,
                                    const int32_t *starts) {
  return go_done(kvc_rows_set(cache, row_begin, n, index, starts));
}

static inline go_result go_insert(kvc_cache *cache, const kvc_cache *other, int32_t slot) {
  return go_done(kvc_insert(cache, other, slot));
}

/* ---- Transformer caches --------------------------------------------------------------------------------------------- */

static inline go_codes go_rows_view(const kvc_cache *cache, int32_t layer) {
  go_codes out;
  memset(&out, 0, sizeof out);
  out.result = go_done(kvc_rows_view(cache, layer, &out.k, &out.k_scales, &out.v, &out.v_scales));
  return out;
}

static inline go_result go_rows_fill(kvc_cache *cache, int32_t layer, int32_t row_begin, int32_t n, go_tensor k,
                                     go_tensor k_scales, go_tensor v, go_tensor v_scales) {
  GO_VIEW(k);
  GO_VIEW(k_scales);
  GO_VIEW(v);
  GO_VIEW(v_scales);
  return go_done(kvc_rows_fill(cache, layer, row_begin, n, k_view, k_scales_view, v_view, v_scales_view));
}

/* ---- Lightning caches ----------------------------------------------------------------------------------------------- */

static inline go_result go_bind_decay(kvc_cache *cache, int32_t layer_begin, int32_t layer_end, const float *slopes) {
  return go_done(kvc_bind_decay(cache, layer_begin, layer_end, slopes));
}

static inline go_result go_slopes(uint32_t family, int32_t n_heads, int32_t layer, int32_t n_layers, float *out) {
  return go_done(kvc_slopes(family, n_heads, layer, n_layers, out));
}

static inline go_result go_lightning_read(const kvc_cache *cache, int32_t layer, int32_t sequence_begin, int32_t n,
                                          go_tensor state) {
  float nothing = 0;
  GO_VIEW(state);
  if (state_view && !state_view->data) state_view->data = &nothing; /* no elements, but null would query the shape */
  return go_done(kvc_lightning_read(cache, layer, sequence_begin, n, state_view));
}

static inline go_result go_lightning_write(kvc_cache *cache, int32_t layer, int32_t sequence_begin, int32_t n,
                                           go_tensor state) {
  GO_VIEW(state);
  return go_done(kvc_lightning_write(cache, layer, sequence_begin, n, state_view));
}

#endif
