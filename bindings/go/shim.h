/* What cgo cannot say well, as static functions. Each calls kvc once and, on a failure, takes the message along within
 * the same foreign call: in a second one the goroutine may be on another thread, and the message somebody else's.
 *
 * Tensors are built here, on C's stack, from a data pointer that is an argument of its own: Go memory that points to Go
 * memory may not be passed. Results come back by value, so that a call that succeeds allocates nothing. */
#ifndef KVC_GO_SHIM_H
#define KVC_GO_SHIM_H

#include <kvc/kvc.h>
#include <stdlib.h>
#include <string.h>

typedef struct go_result {
  kvc_status status;
  char *message; /* null on success, and when there is no memory for it; else the caller frees it */
} go_result;

static inline go_result go_done(kvc_status status) {
  go_result result = {status, NULL};
  if (status != KVC_OK) {
    const size_t length = kvc_last_error_copy(NULL, 0);
    result.message = malloc(length + 1);
    if (result.message) kvc_last_error_copy(result.message, length + 1);
  }
  return result;
}

typedef struct go_device { go_result result; kvc_device *device; } go_device;
typedef struct go_cache { go_result result; kvc_cache *cache; } go_cache;
typedef struct go_number { go_result result; uint64_t number; } go_number;
typedef struct go_digest { go_result result; uint64_t first, second; } go_digest;
typedef struct go_info { go_result result; kvc_sequence_info info; } go_info;
typedef struct go_stats { go_result result; kvc_stats stats; } go_stats;
typedef struct go_history { go_result result; int32_t first_cell, n_cells; } go_history;
typedef struct go_tensors { go_result result; kvc_tensor first, second; } go_tensors;

/* ---- Tensors -------------------------------------------------------------------------------------------------------- */

/* Bytes, whatever the elements: cgo need not look for pointers in them. */
#define GO_TENSOR(name) \
  uint8_t *name##_data, uint32_t name##_dtype, int32_t name##_ndim, int64_t name##_0, int64_t name##_1, int64_t name##_2
#define GO_VIEW(name)                                                                                      \
  kvc_tensor name##_view;                                                                                  \
  const int64_t name##_shape[3] = {name##_0, name##_1, name##_2};                                          \
  const kvc_status name##_dense =                                                                          \
      kvc_tensor_dense(name##_data, name##_dtype, name##_ndim, name##_shape, &name##_view);                \
  if (name##_dense != KVC_OK) return go_done(name##_dense)

static inline go_result go_put(kvc_cache *cache, int32_t layer, GO_TENSOR(k), GO_TENSOR(v)) {
  GO_VIEW(k);
  GO_VIEW(v);
  return go_done(kvc_put(cache, layer, &k_view, &v_view));
}

static inline go_result go_attention(kvc_cache *cache, int32_t layer, GO_TENSOR(q), GO_TENSOR(out), GO_TENSOR(lse)) {
  GO_VIEW(q);
  GO_VIEW(out);
  GO_VIEW(lse);
  return go_done(kvc_attention(cache, layer, &q_view, &out_view, lse_data ? &lse_view : NULL));
}

static inline go_result go_attention_with(kvc_cache *cache, int32_t layer, GO_TENSOR(q), GO_TENSOR(out), GO_TENSOR(lse),
                                          GO_TENSOR(bias), GO_TENSOR(mask), GO_TENSOR(weights)) {
  kvc_attention_extra extra = {sizeof extra, 0, NULL, NULL, NULL};
  GO_VIEW(q);
  GO_VIEW(out);
  GO_VIEW(lse);
  GO_VIEW(bias);
  GO_VIEW(mask);
  GO_VIEW(weights);
  if (bias_data) extra.bias = &bias_view;
  if (mask_data) extra.mask = &mask_view;
  if (weights_data) extra.weights = &weights_view;
  return go_done(kvc_attention_with(cache, layer, &q_view, &out_view, lse_data ? &lse_view : NULL, &extra));
}

static inline go_result go_put_attention(kvc_cache *cache, int32_t layer, GO_TENSOR(k), GO_TENSOR(v), GO_TENSOR(q),
                                         GO_TENSOR(out), GO_TENSOR(lse)) {
  GO_VIEW(k);
  GO_VIEW(v);
  GO_VIEW(q);
  GO_VIEW(out);
  GO_VIEW(lse);
  return go_done(kvc_put_attention(cache, layer, &k_view, &v_view, &q_view, &out_view, lse_data ? &lse_view : NULL));
}

static inline go_history go_history_of(kvc_cache *cache) {
  go_history answer = {{0}, 0, 0};
  answer.result = go_done(kvc_history(cache, &answer.first_cell, &answer.n_cells));
  return answer;
}

static inline go_result go_mask(kvc_cache *cache, GO_TENSOR(into)) {
  GO_VIEW(into);
  return go_done(kvc_mask(cache, &into_view));
}

static inline go_tensors go_mask_shape(kvc_cache *cache) {
  go_tensors answer;
  memset(&answer, 0, sizeof answer);
  answer.result = go_done(kvc_mask(cache, &answer.first));
  return answer;
}

/* has_k, has_v: an address does not tell, since a sequence that holds nothing is gathered into empty slices. */
static inline go_result go_gather(kvc_cache *cache, int32_t layer, int32_t sequence, int32_t has_k, int32_t has_v,
                                  uint32_t v_flags, GO_TENSOR(k), GO_TENSOR(v)) {
  GO_VIEW(k);
  GO_VIEW(v);
  v_view.flags = v_flags;
  return go_done(kvc_gather(cache, layer, sequence, has_k ? &k_view : NULL, has_v ? &v_view : NULL));
}

static inline go_tensors go_get(kvc_cache *cache, int32_t layer) {
  go_tensors answer;
  memset(&answer, 0, sizeof answer);
  answer.result = go_done(kvc_get(cache, layer, &answer.first, &answer.second));
  return answer;
}

/* ---- Devices and caches --------------------------------------------------------------------------------------------- */

/* What the shim was compiled with: struct sizes and prototypes are this version's. */
static inline uint32_t go_header_version(void) { return KVC_VERSION_NUMBER; }

static inline go_device go_device_open(const char *name, int32_t n_threads) {
  kvc_device_desc desc = {sizeof desc, n_threads, 0};
  go_device answer = {{0}, NULL};
  answer.result = go_done(kvc_device_open(name, &desc, NULL, &answer.device));
  return answer;
}

static inline go_result go_device_close(kvc_device *device) { return go_done(kvc_device_close(device)); }

static inline go_cache go_cache_create(kvc_device *device, kvc_cache_desc desc, kvc_causal_desc causal) {
  go_cache answer = {{0}, NULL};
  answer.result = go_done(kvc_cache_create(device, &desc, &causal, &answer.cache));
  return answer;
}

static inline go_number go_cache_memory_bytes(const kvc_device *device, kvc_cache_desc desc, kvc_causal_desc causal) {
  go_number answer = {{0}, 0};
  answer.result = go_done(kvc_cache_memory_bytes(device, &desc, &causal, &answer.number));
  return answer;
}

static inline go_result go_cache_destroy(kvc_cache *cache) { return go_done(kvc_cache_destroy(cache)); }

static inline go_result go_bind_attention(kvc_cache *cache, int32_t layer_begin, int32_t layer_end,
                                          kvc_attention_desc desc, const float *alibi_slopes, const float *sinks) {
  return go_done(kvc_bind_attention(cache, layer_begin, layer_end, &desc, alibi_slopes, sinks));
}

static inline go_result go_bind_rope(kvc_cache *cache, int32_t layer_begin, int32_t layer_end, kvc_rope_desc desc,
                                     const float *frequency_factors) {
  return go_done(kvc_bind_rope(cache, layer_begin, layer_end, &desc, frequency_factors));
}

/* ---- Passes and sequences ------------------------------------------------------------------------------------------- */

static inline go_result go_begin(kvc_cache *cache, int32_t n_tokens, const int32_t *position, const int32_t *sequence,
                                 const uint32_t *token_flags, uint32_t flags) {
  return go_done(kvc_begin(cache, n_tokens, position, sequence, token_flags, flags, NULL));
}

static inline go_result go_fits(const kvc_cache *cache, int32_t n_tokens, const int32_t *position, const int32_t *sequence) {
  return go_done(kvc_fits(cache, n_tokens, position, sequence));
}

static inline go_result go_set_causal(kvc_cache *cache, int32_t n_except, const int32_t *except) {
  return go_done(kvc_set_causal(cache, n_except, except));
}

static inline go_result go_commit(kvc_cache *cache) { return go_done(kvc_commit(cache)); }
static inline go_result go_abort(kvc_cache *cache) { return go_done(kvc_abort(cache)); }

static inline go_result go_commit_prefix(kvc_cache *cache, int32_t n, const int32_t *sequence, const int32_t *keep) {
  return go_done(kvc_commit_prefix(cache, n, sequence, keep));
}

static inline go_number go_can_resume(const kvc_cache *cache, int32_t sequence, int32_t want) {
  int32_t best = 0;
  go_number answer = {go_done(kvc_can_resume(cache, sequence, want, &best)), 0};
  answer.number = (uint64_t)best;
  return answer;
}

static inline go_number go_resume(kvc_cache *cache, int32_t sequence, int32_t want) {
  int32_t got = 0;
  go_number answer = {go_done(kvc_resume(cache, sequence, want, &got)), 0};
  answer.number = (uint64_t)got;
  return answer;
}

static inline go_number go_copy_prefix(kvc_cache *cache, int32_t source, int32_t destination, int32_t length) {
  int32_t got = 0;
  go_number answer = {go_done(kvc_copy_prefix(cache, source, destination, length, &got)), 0};
  answer.number = (uint64_t)got;
  return answer;
}

static inline go_result go_reorder(kvc_cache *cache, int32_t n, const int32_t *destination, const int32_t *source) {
  return go_done(kvc_reorder(cache, n, destination, source));
}

static inline go_result go_remove(kvc_cache *cache, int32_t sequence, int32_t begin, int32_t end) {
  return go_done(kvc_remove(cache, sequence, begin, end));
}

/* ---- Watching ------------------------------------------------------------------------------------------------------- */

static inline go_info go_sequence_query(const kvc_cache *cache, int32_t sequence) {
  go_info answer = {{0}, {sizeof(kvc_sequence_info), 0, 0, 0, 0, 0, 0, 0}};
  answer.result = go_done(kvc_sequence_query(cache, sequence, &answer.info));
  return answer;
}

static inline go_stats go_cache_stats(const kvc_cache *cache) {
  go_stats answer = {{0}, {sizeof(kvc_stats), 0, 0, 0, 0, 0, 0}};
  answer.result = go_done(kvc_cache_stats(cache, &answer.stats));
  return answer;
}

static inline go_digest go_state_digest(const kvc_cache *cache) {
  uint64_t digest[2] = {0, 0};
  go_digest answer = {go_done(kvc_state_digest(cache, digest)), 0, 0};
  answer.first = digest[0];
  answer.second = digest[1];
  return answer;
}

static inline go_result go_check(const kvc_cache *cache) { return go_done(kvc_check(cache)); }

/* kvc_run holds four numbers and no pointer: Go's memory may be written to. */
static inline go_number go_runs(const kvc_cache *cache, int32_t sequence, int32_t capacity, kvc_run *runs) {
  int32_t n = 0;
  go_number answer = {go_done(kvc_runs(cache, sequence, capacity, runs, &n)), 0};
  answer.number = (uint64_t)n;
  return answer;
}

#endif
