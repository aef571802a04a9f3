/* Functions that take the place of calls of the library, with arguments that Python can pass. Included by
 * the generated wrapper; kvc_capi.i renames them to what they stand for. */
#ifndef KVC_PYTHON_CALLS_H
#define KVC_PYTHON_CALLS_H

#include <kvc/kvc.h>

#include <string.h>

static kvc_attention_extra kvc_py_extra(const kvc_tensor *bias, const kvc_tensor *mask,
                                        kvc_tensor *weights, kvc_tensor *lse, uint32_t flags,
                                        uint64_t dropout_seed) {
  const kvc_attention_extra extra = {.struct_size = sizeof extra,
                                     .flags = flags,
                                     .bias = bias,
                                     .mask = mask,
                                     .weights = weights,
                                     .lse = lse,
                                     .dropout_seed = dropout_seed};
  return extra;
}

/* kvc_attention() with the fields of its extra as arguments. */
static kvc_status kvc_py_attention(kvc_cache *cache, int32_t layer, const kvc_tensor *q,
                                   kvc_tensor *out, const kvc_tensor *bias, const kvc_tensor *mask,
                                   kvc_tensor *weights, kvc_tensor *lse, uint32_t flags,
                                   uint64_t dropout_seed) {
  const kvc_attention_extra extra = kvc_py_extra(bias, mask, weights, lse, flags, dropout_seed);
  return kvc_attention(cache, layer, q, out, &extra);
}

/* kvc_put_attention() likewise. */
static kvc_status kvc_py_put_attention(kvc_cache *cache, int32_t layer, const kvc_tensor *k,
                                       const kvc_tensor *v, const kvc_tensor *q, kvc_tensor *out,
                                       const kvc_tensor *bias, const kvc_tensor *mask,
                                       kvc_tensor *weights, kvc_tensor *lse, uint32_t flags,
                                       uint64_t dropout_seed) {
  const kvc_attention_extra extra = kvc_py_extra(bias, mask, weights, lse, flags, dropout_seed);
  return kvc_put_attention(cache, layer, k, v, q, out, &extra);
}

/* kvc_get() into local views, which are then returned. */
static kvc_status kvc_py_get(kvc_cache *cache, int32_t layer, int32_t of_k, int32_t of_v,
                             kvc_tensor VIEWS[2]) {
  memset(VIEWS, 0, 2 * sizeof *VIEWS);
  return kvc_get(cache, layer, of_k ? &VIEWS[0] : NULL, of_v ? &VIEWS[1] : NULL);
}

/* kvc_get_codes() into local views, which are then returned. */
static kvc_status kvc_py_get_codes(kvc_cache *cache, int32_t layer, kvc_tensor VIEWS[4]) {
  memset(VIEWS, 0, 4 * sizeof *VIEWS);
  return kvc_get_codes(cache, layer, &VIEWS[0], &VIEWS[1], &VIEWS[2], &VIEWS[3]);
}

/* kvc_rows_view() likewise. */
static kvc_status kvc_py_rows_view(const kvc_cache *cache, int32_t layer, kvc_tensor VIEWS[4]) {
  memset(VIEWS, 0, 4 * sizeof *VIEWS);
  return kvc_rows_view(cache, layer, &VIEWS[0], &VIEWS[1], &VIEWS[2], &VIEWS[3]);
}

/* The shapes that kvc_get_copy() proposes. */
static kvc_status kvc_py_copy_shape(kvc_cache *cache, int32_t layer, kvc_tensor *VIEW,
                                    kvc_tensor *SECOND_VIEW) {
  memset(VIEW, 0, sizeof *VIEW);
  memset(SECOND_VIEW, 0, sizeof *SECOND_VIEW);
  return kvc_get_copy(cache, layer, VIEW, SECOND_VIEW);
}

/* The shape and element type that kvc_mask() proposes. */
static kvc_status kvc_py_mask_shape(kvc_cache *cache, int32_t layer, kvc_tensor *VIEW) {
  memset(VIEW, 0, sizeof *VIEW);
  VIEW->device_type = KVC_CPU;
  return kvc_mask(cache, layer, VIEW);
}

/* kvc_gather() with an argument for the flag, which a Python array cannot carry. */
static kvc_status kvc_py_gather(kvc_cache *cache, int32_t layer, int32_t sequence,
                                int32_t transpose_v, kvc_tensor *k, kvc_tensor *v) {
  if (v != NULL && transpose_v) v->flags |= KVC_TENSOR_TRANSPOSED;
  return kvc_gather(cache, layer, sequence, k, v);
}

/* kvc_begin() with the flag RESERVE, which needs no positions. */
static kvc_status kvc_py_begin_reserve(kvc_cache *cache, int32_t n_tokens, void *stream) {
  return kvc_begin(cache, n_tokens, NULL, NULL, NULL, KVC_BEGIN_RESERVE, stream);
}

/* kvc_device_open() with a device_allocator by the addresses of its functions; null: none. */
static kvc_status kvc_py_device_open(const char *name, const kvc_device_desc *desc, void *user,
                                     void *alloc, void *release, kvc_device **out) {
  const kvc_allocator memory = {user, (void *(*)(void *, size_t, size_t))(uintptr_t)alloc,
                                (void (*)(void *, void *, size_t, size_t))(uintptr_t)release};
  kvc_device_desc all = *desc;
  if (alloc != NULL || release != NULL) all.device_allocator = &memory;
  return kvc_device_open(name, &all, NULL, out);
}

/* The shape and element type that kvc_state_get() proposes. */
static kvc_status kvc_py_state_shape(kvc_cache *cache, int32_t layer, int32_t part,
                                     kvc_tensor *VIEW) {
  memset(VIEW, 0, sizeof *VIEW);
  VIEW->device_type = KVC_CPU;
  return kvc_state_get(cache, layer, part, VIEW);
}

/* Likewise of kvc_state_gather(). */
static kvc_status kvc_py_state_gather_shape(kvc_cache *cache, int32_t layer, int32_t part,
                                            int32_t sequence, int32_t at, kvc_tensor *VIEW) {
  memset(VIEW, 0, sizeof *VIEW);
  VIEW->device_type = KVC_CPU;
  return kvc_state_gather(cache, layer, part, sequence, at, VIEW);
}

/* How many rows a tensor is about: its first extent. */
static int32_t kvc_py_rows_of(const kvc_tensor *tensor) {
  if (tensor == NULL || tensor->ndim == 0) return 1; /* the library says what is wrong */
  return tensor->shape[0] > INT32_MAX ? INT32_MAX : (int32_t)tensor->shape[0];
}

/* kvc_rows_fill() of as many rows as the tensors have. */
static kvc_status kvc_py_rows_fill(kvc_cache *cache, int32_t layer, int32_t row_begin,
                                   const kvc_tensor *k, const kvc_tensor *k_scales,
                                   const kvc_tensor *v, const kvc_tensor *v_scales) {
  return kvc_rows_fill(cache, layer, row_begin, kvc_py_rows_of(k != NULL ? k : v), k, k_scales, v,
                       v_scales);
}

/* kvc_lightning_write() likewise. */
static kvc_status kvc_py_lightning_write(kvc_cache *cache, int32_t layer, int32_t sequence_begin,
                                         const kvc_tensor *states) {
  return kvc_lightning_write(cache, layer, sequence_begin, kvc_py_rows_of(states), states);
}

/* The shape that kvc_lightning_read() proposes. */
static kvc_status kvc_py_lightning_shape(const kvc_cache *cache, int32_t layer,
                                         int32_t sequence_begin, int32_t n_sequences,
                                         kvc_tensor *VIEW) {
  memset(VIEW, 0, sizeof *VIEW);
  VIEW->device_type = KVC_CPU;
  return kvc_lightning_read(cache, layer, sequence_begin, n_sequences, VIEW);
}

/* The positions that kvc_call_positions() writes, into an array that Python made. */
static kvc_status kvc_py_call_positions(const kvc_operator_call *call, int32_t sequence,
                                        int32_t capacity, int32_t *at) {
  return kvc_call_positions(call, sequence, capacity, at);
}

/* kvc_state_view() with the default dimensions. */
static kvc_status kvc_py_state_view(kvc_cache *cache, int32_t layer, int32_t part,
                                    kvc_tensor *VIEW) {
  memset(VIEW, 0, sizeof *VIEW);
  return kvc_state_view(cache, layer, part, 0, NULL, VIEW);
}

/* kvc_cache_wrap() with the map as two lists, which are equally long. */
static kvc_status kvc_py_wrap(kvc_cache *const *children, int32_t n_children, int32_t n_layers,
                              const int32_t *child_of_layer, int32_t n_numbers,
                              const int32_t *layer_in_child, kvc_cache **out) {
  if (n_numbers != n_layers) return KVC_E_INTERNAL;
  return kvc_cache_wrap(children, n_children, n_layers ? child_of_layer : NULL,
                        n_layers ? layer_in_child : NULL, n_layers, out);
}

#endif
