/* What cgo cannot express well, as static functions. Each one calls kvc once. If the call fails, the function copies the
 * message before it returns: in a second foreign call the goroutine may run on another thread, which has another message.
 *
 * A tensor is passed by value and its kvc_tensor is built here, on the C stack, because cgo forbids passing Go memory that
 * points to Go memory. Results are returned by value, so that a successful call allocates nothing. */
#ifndef KVC_GO_SHIM_H
#define KVC_GO_SHIM_H

#include <kvc/kvc.h>
#include <stdlib.h>
#include <string.h>

typedef struct go_result {
  kvc_status status;
  char *message; /* the caller frees it. Null on success, and if there is no memory for it */
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
typedef struct go_pair { go_result result; int32_t first, second; } go_pair;
typedef struct go_child { go_result result; kvc_cache *cache; int32_t layer; } go_child;
typedef struct go_tensors { go_result result; kvc_tensor first, second; } go_tensors;
typedef struct go_codes { go_result result; kvc_tensor k, k_scales, v, v_scales; } go_codes;
typedef struct go_storage { go_result result; kvc_storage_info info; } go_storage;

/* ---- Tensors -------------------------------------------------------------------------------------------------------- */

/* A dense tensor of Go memory, or of a GPU's. dtype 0: absent. Data is bytes whatever the elements, so cgo has no pointers to look for. */
typedef struct go_tensor {
  uint8_t *data;
  uint32_t dtype;
  int32_t ndim;
  int64_t shape[4];
  int32_t device_type, device_id; /* 0: KVC_CPU, and memory of Go */
} go_tensor;

typedef struct go_extra {
  go_tensor bias, mask, weights, lse;
  uint64_t dropout_seed;
  uint32_t flags; /* KVC_EXTRA_… */
} go_extra;

/* Sets *view to `room` with the tensor in it, or to null if the tensor is absent. */
static inline kvc_status go_view(const go_tensor *tensor, kvc_tensor *room, kvc_tensor **view) {
  *view = tensor->dtype ? room : NULL;
  if (!tensor->dtype) return KVC_OK;
  const kvc_status status = kvc_tensor_dense(tensor->data, tensor->dtype, tensor->ndim, tensor->shape, room);
  if (status == KVC_OK && tensor->device_type) {
    room->device_type = tensor->device_type;
    room->device_id = tensor->device_id;
  }
  return status;
}

/* Declares name_view, the kvc_tensor of the parameter `name` (null: absent), or returns the error. */
#define GO_VIEW(name)                                                                \
  kvc_tensor name##_room, *name##_view;                                              \
  const kvc_status name##_status = go_view(&(name), &name##_room, &name##_view);     \
  if (name##_status != KVC_OK) return go_done(name##_status)

/* The room that the views of a go_extra need. */
typedef struct go_extra_room { kvc_tensor bias, mask, weights, lse; } go_extra_room;

static inline kvc_status go_view_extra(const go_extra *tensors, go_extra_room *room, kvc_attention_extra *extra) {
  kvc_tensor *bias, *mask;
  kvc_status status = go_view(&tensors->bias, &room->bias, &bias);
  memset(extra, 0, sizeof *extra);
  extra->struct_size = sizeof *extra;
  extra->flags = tensors->flags;
  extra->dropout_seed = tensors->dropout_seed;
  if (status == KVC_OK) status = go_view(&tensors->mask, &room->mask, &mask);
  if (status == KVC_OK) status = go_view(&tensors->weights, &room->weights, &extra->weights);
  if (status == KVC_OK) status = go_view(&tensors->lse, &room->lse, &extra->lse);
  if (status != KVC_OK) return status;
  extra->bias = bias;
  extra->mask = mask;
  return KVC_OK;
}

static inline go_result go_put(kvc_cache *cache, int32_t layer, go_tensor k, go_tensor v) {
  GO_VIEW(k);
  GO_VIEW(v);
  return go_done(kvc_put(cache, layer, k_view, v_view));
}

static inline go_result go_attention(kvc_cache *cache, int32_t layer, go_tensor q, go_tensor out, go_extra tensors) {
  go_extra_room room;
  kvc_attention_extra extra;
  const kvc_status status = go_view_extra(&tensors, &room, &extra);
  if (status != KVC_OK) return go_done(status);
  GO_VIEW(q);
  GO_VIEW(out);
  return go_done(kvc_attention(cache, layer, q_view, out_view, &extra));
}

static inline go_result go_put_attention(kvc_cache *cache, int32_t layer, go_tensor k, go_tensor v, go_tensor q,
                                         go_tensor out, go_extra tensors) {
  go_extra_room room;
  kvc_attention_extra extra;
  const kvc_status status = go_view_extra(&tensors, &room, &extra);
  if (status != KVC_OK) return go_done(status);
  GO_VIEW(k);
  GO_VIEW(v);
  GO_VIEW(q);
  GO_VIEW(out);
  return go_done(kvc_put_attention(cache, layer, k_view, v_view, q_view, out_view, &extra));
}

static inline go_history go_history_of(kvc_cache *cache, int32_t layer) {
  go_history out = {{0}, 0, 0};
  out.result = go_done(kvc_history(cache, layer, &out.first_cell, &out.n_cells));
  return out;
}

static inline go_result go_mask(kvc_cache *cache, int32_t layer, go_tensor into) {
  float nothing = 0;
  GO_VIEW(into);
  if (!into_view->data) into_view->data = &nothing; /* no elements, but null would query the shape */
  return go_done(kvc_mask(cache, layer, into_view));
}

static inline go_tensors go_mask_shape(kvc_cache *cache, int32_t layer) {
  go_tensors out;
  memset(&out, 0, sizeof out);
  out.result = go_done(kvc_mask(cache, layer, &out.first));
  return out;
}

static inline go_result go_gather(kvc_cache *cache, int32_t layer, int32_t sequence, go_tensor k, go_tensor v,
                                  uint32_t v_flags) {
  GO_VIEW(k);
  GO_VIEW(v);
  if (v_view) v_view->flags = v_flags;
  return go_done(kvc_gather(cache, layer, sequence, k_view, v_view));
}

static inline go_tensors go_get(kvc_cache *cache, int32_t layer, int of_k, int of_v) {
  go_tensors out;
  memset(&out, 0, sizeof out);
  out.result = go_done(kvc_get(cache, layer, of_k ? &out.first : NULL, of_v ? &out.second : NULL));
  return out;
}

/* ---- Storage types -------------------------------------------------------------------------------------------------- */

static inline go_storage go_storage_query(uint32_t dtype, int32_t head_dim, int32_t block) {
  go_storage out = {{0}, KVC_STORAGE_INFO_INIT};
  out.result = go_done(kvc_storage_query(dtype, head_dim, block, &out.info));
  return out;
}

static inline go_result go_encode(kvc_codec_desc desc, go_tensor values, go_tensor codes, go_tensor scales) {
  GO_VIEW(values);
  GO_VIEW(codes);
  GO_VIEW(scales);
  return go_done(kvc_encode(&desc, values_view, codes_view, scales_view));
}

static inline go_result go_decode(kvc_codec_desc desc, go_tensor codes, go_tensor scales, go_tensor values) {
  GO_VIEW(codes);
  GO_VIEW(scales);
  GO_VIEW(values);
  return go_done(kvc_decode(&desc, codes_view, scales_view, values_view));
}

static inline go_codes go_get_codes(kvc_cache *cache, int32_t layer) {
  go_codes out;
  memset(&out, 0, sizeof out);
  out.result = go_done(kvc_get_codes(cache, layer, &out.k, &out.k_scales, &out.v, &out.v_scales));
  return out;
}

static inline go_tensors go_copy_shapes(kvc_cache *cache, int32_t layer) {
  go_tensors out;
  memset(&out, 0, sizeof out);
  out.result = go_done(kvc_get_copy(cache, layer, &out.first, &out.second));
  return out;
}

static inline go_result go_get_copy(kvc_cache *cache, int32_t layer, go_tensor k, go_tensor v) {
  float nothing = 0;
  GO_VIEW(k);
  GO_VIEW(v);
  if (k_view && !k_view->data) k_view->data = &nothing; /* no elements, but null would query the shape */
  if (v_view && !v_view->data) v_view->data = &nothing;
  return go_done(kvc_get_copy(cache, layer, k_view, v_view));
}

static inline go_result go_put_codes(kvc_cache *cache, int32_t layer, go_tensor k, go_tensor k_scales, go_tensor v,
                                     go_tensor v_scales) {
  GO_VIEW(k);
  GO_VIEW(k_scales);
  GO_VIEW(v);
  GO_VIEW(v_scales);
  return go_done(kvc_put_codes(cache, layer, k_view, k_scales_view, v_view, v_scales_view));
}

/* ---- Encoder inputs ------------------------------------------------------------------------------------------------- */

static inline go_result go_encoder_put(kvc_cache *cache, int32_t layer, int32_t sequence, go_tensor k, go_tensor v) {
  GO_VIEW(k);
  GO_VIEW(v);
  return go_done(kvc_encoder_put(cache, layer, sequence, k_view, v_view));
}

static inline go_result go_encoder_share(kvc_cache *cache, int32_t sequence, int32_t source) {
  return go_done(kvc_encoder_share(cache, sequence, source));
}

static inline go_pair go_encoder_query(const kvc_cache *cache, int32_t sequence) {
  go_pair out = {{0}, KVC_NONE, 0};
  out.result = go_done(kvc_encoder_query(cache, sequence, &out.first, &out.second));
  return out;
}

/* ---- States --------------------------------------------------------------------------------------------------------- */

/* Structs and lists of numbers hold no pointer, so they may be Go memory. */
static inline go_number go_state_layout(const kvc_cache *cache, int32_t capacity, kvc_state_sequence *sequences,
                                        int32_t *order) {
  int32_t n = 0;
  go_number out = {go_done(kvc_state_layout(cache, capacity, sequences, &n, order)), 0};
  out.number = (uint64_t)n;
  return out;
}

static inline go_result go_state_get(kvc_cache *cache, int32_t layer, int32_t part, go_tensor into) {
  float nothing = 0;
  GO_VIEW(into);
  if (!into_view->data) into_view->data = &nothing; /* no elements, but null would query the shape */
  return go_done(kvc_state_get(cache, layer, part, into_view));
}

static inline go_result go_state_put(kvc_cache *cache, int32_t layer, int32_t part, go_tensor from) {
  GO_VIEW(from);
  return go_done(kvc_state_put(cache, layer, part, from_view));
}

static inline go_result go_state_conv(kvc_cache *cache, int32_t layer, go_tensor x) {
  GO_VIEW(x);
  return go_done(kvc_state_conv(cache, layer, x_view));
}

static inline go_tensors go_state_view(kvc_cache *cache, int32_t layer, int32_t part) {
  go_tensors out;
  memset(&out, 0, sizeof out);
  out.result = go_done(kvc_state_view(cache, layer, part, 0, NULL, &out.first));
  return out;
}

static inline go_number go_state_slots(const kvc_cache *cache, int32_t capacity, int32_t *slots) {
  int32_t n = 0;
  go_number out = {go_done(kvc_state_slots(cache, capacity, slots, &n)), 0};
  out.number = (uint64_t)n;
  return out;
}

static inline go_result go_state_done(kvc_cache *cache, int32_t layer, int32_t part) {
  return go_done(kvc_state_done(cache, layer, part));
}

static inline go_result go_state_gather(kvc_cache *cache, int32_t layer, int32_t part, int32_t sequence, int32_t at,
                                        go_tensor into) {
  float nothing = 0;
  GO_VIEW(into);
  if (!into_view->data) into_view->data = &nothing;
  return go_done(kvc_state_gather(cache, layer, part, sequence, at, into_view));
}

static inline go_result go_checkpoint_take(kvc_cache *cache, int32_t sequence) {
  return go_done(kvc_checkpoint_take(cache, sequence));
}

static inline go_number go_checkpoint_list(const kvc_cache *cache, int32_t sequence, int32_t capacity, int32_t *at) {
  int32_t n = 0;
  go_number out = {go_done(kvc_checkpoint_list(cache, sequence, capacity, at, &n)), 0};
  out.number = (uint64_t)n;
  return out;
}

/* ---- Wrappers ------------------------------------------------------------------------------------------------------- */

/* A handle is a key, not an address: an array of handles may be Go memory. */
static inline go_cache go_cache_wrap(kvc_cache **children, int32_t n_children, const int32_t *child, const int32_t *layer,
                                     int32_t n_layers) {
  go_cache out = {{0}, NULL};
  out.result = go_done(kvc_cache_wrap(children, n_children, child, layer, n_layers, &out.cache));
  return out;
}

static inline go_child go_cache_child(const kvc_cache *wrapper, int32_t layer) {
  go_child out = {{0}, NULL, 0};
  out.result = go_done(kvc_cache_child(wrapper, layer, &out.cache, &out.layer));
  return out;
}

/* ---- Devices and caches --------------------------------------------------------------------------------------------- */

/* The version of the headers that this file is compiled with, whose struct sizes and prototypes it uses. */
static inline uint32_t go_header_version(void) { return KVC_VERSION_NUMBER; }

/* Addresses of C functions. Without them a GPU's memory is CUDA's own. */
static inline go_device go_device_open(const char *name, int32_t n_threads, void *user, void *alloc, void *release) {
  const kvc_allocator memory = {user, (void *(*)(void *, size_t, size_t))alloc, (void (*)(void *, void *, size_t, size_t))release};
  const kvc_device_desc desc = {sizeof desc, n_threads, 0, alloc != NULL || release != NULL ? &memory : NULL};
  go_device out = {{0}, NULL};
  out.result = go_done(kvc_device_open(name, &desc, NULL, &out.device));
  return out;
}

static inline go_result go_device_synchronize(const kvc_device *device) { return go_done(kvc_device_synchronize(device)); }
static inline go_result go_device_close(kvc_device *device) { return go_done(kvc_device_close(device)); }

static inline go_cache go_cache_create(kvc_device *device, kvc_cache_desc desc, const void *kind) {
  go_cache out = {{0}, NULL};
  out.result = go_done(kvc_cache_create(device, &desc, kind, &out.cache));
  return out;
}

static inline go_number go_cache_memory_bytes(const kvc_device *device, kvc_cache_desc desc, const void *kind) {
  go_number out = {{0}, 0};
  out.result = go_done(kvc_cache_memory_bytes(device, &desc, kind, &out.number));
  return out;
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

static inline go_result go_bind_scales(kvc_cache *cache, int32_t layer_begin, int32_t layer_end, const float *k_scales,
                                       const float *v_scales) {
  return go_done(kvc_bind_scales(cache, layer_begin, layer_end, k_scales, v_scales));
}

/* ---- Passes and sequences ------------------------------------------------------------------------------------------- */

static inline go_result go_begin(kvc_cache *cache, int32_t n_tokens, const int32_t *position, const int32_t *sequence,
                                 const uint32_t *token_flags, uint32_t flags, void *stream) {
  return go_done(kvc_begin(cache, n_tokens, position, sequence, token_flags, flags, stream));
}

static inline go_result go_fits(const kvc_cache *cache, int32_t n_tokens, const int32_t *position,
                                const int32_t *sequence, const uint32_t *token_flags) {
  return go_done(kvc_fits(cache, n_tokens, position, sequence, token_flags));
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
  go_number out = {go_done(kvc_can_resume(cache, sequence, want, &best)), 0};
  out.number = (uint64_t)best;
  return out;
}

static inline go_number go_resume(kvc_cache *cache, int32_t sequence, int32_t want) {
  int32_t got = 0;
  go_number out = {go_done(kvc_resume(cache, sequence, want, &got)), 0};
  out.number = (uint64_t)got;
  return out;
}

static inline go_number go_copy_prefix(kvc_cache *cache, int32_t source, int32_t destination, int32_t length) {
  int32_t got = 0;
  go_number out = {go_done(kvc_copy_prefix(cache, source, destination, length, &got)), 0};
  out.number = (uint64_t)got;
  return out;
}

static inline go_result go_reorder(kvc_cache *cache, int32_t n, const int32_t *destination, const int32_t *source) {
  return go_done(kvc_reorder(cache, n, destination, source));
}

static inline go_result go_remove(kvc_cache *cache, int32_t sequence, int32_t begin, int32_t end) {
  return go_done(kvc_remove(cache, sequence, begin, end));
}

static inline go_result go_can_remove(const kvc_cache *cache, int32_t sequence, int32_t begin, int32_t end) {
  return go_done(kvc_can_remove(cache, sequence, begin, end));
}

/* ---- Watching ------------------------------------------------------------------------------------------------------- */

static inline go_info go_sequence_query(const kvc_cache *cache, int32_t sequence) {
  go_info out = {{0}, {sizeof(kvc_sequence_info), 0, 0, 0, 0, 0, 0, 0}};
  out.result = go_done(kvc_sequence_query(cache, sequence, &out.info));
  return out;
}

static inline go_stats go_cache_stats(const kvc_cache *cache) {
  go_stats out = {{0}, {sizeof(kvc_stats), 0, 0, 0, 0, 0, 0}};
  out.result = go_done(kvc_cache_stats(cache, &out.stats));
  return out;
}

static inline go_digest go_state_digest(const kvc_cache *cache) {
  uint64_t digest[2] = {0, 0};
  go_digest out = {go_done(kvc_state_digest(cache, digest)), 0, 0};
  out.first = digest[0];
  out.second = digest[1];
  return out;
}

static inline go_result go_check(const kvc_cache *cache) { return go_done(kvc_check(cache)); }

/* A kvc_run holds four numbers and no pointer, so `runs` may be Go memory. */
static inline go_number go_runs(const kvc_cache *cache, int32_t layer, int32_t sequence, int32_t capacity, kvc_run *runs) {
  int32_t n = 0;
  go_number out = {go_done(kvc_runs(cache, layer, sequence, capacity, runs, &n)), 0};
  out.number = (uint64_t)n;
  return out;
}

#endif
