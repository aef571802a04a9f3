/* What shim.h is, for caches whose passes are batches of rows. */
#ifndef KVC_GO_SHIM_ROWS_H
#define KVC_GO_SHIM_ROWS_H

#include <kvc/transformer.h>

#include "shim.h"

/* ---- Rows ----------------------------------------------------------------------------------------------------------- */

static inline go_result go_begin_rows(kvc_cache *cache, int32_t q_len, uint32_t flags, const int32_t *valid,
                                      go_tensor attention_mask, const int32_t *token_types) {
  GO_VIEW(attention_mask);
  return go_done(kvc_begin_rows(cache, q_len, flags, valid, attention_mask_view, token_types, NULL));
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

#endif
