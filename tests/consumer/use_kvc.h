/* One pass over two sequences as a runtime would do it, shared by the C and the C++ program. */
#include <kvc/kvc.h>
#include <stdio.h>

enum { LAYERS = 2, KV_HEADS = 2, QUERY_HEADS = 4, HEAD_DIM = 16, TOKENS = 6 };

static kvc_status complain(kvc_status status, const char *call) {
  char message[512];
  kvc_last_error_copy(message, sizeof message);
  fprintf(stderr, "%s: %s: %s\n", call, kvc_status_name(status), message);
  return status;
}

#define TRY(call)                                                    \
  do {                                                               \
    const kvc_status status = (call);                                \
    if (status != KVC_OK) return complain(status, #call);            \
  } while (0)

static kvc_status use_cache(kvc_cache *cache) {
  static float k[TOKENS * KV_HEADS * HEAD_DIM], v[TOKENS * KV_HEADS * HEAD_DIM];
  static float q[TOKENS * QUERY_HEADS * HEAD_DIM], out[TOKENS * QUERY_HEADS * HEAD_DIM];
  const int32_t position[TOKENS] = {0, 1, 2, 0, 1, 2};
  const int32_t sequence[TOKENS] = {0, 0, 0, 1, 1, 1};
  const int64_t kv_shape[3] = {TOKENS, KV_HEADS, HEAD_DIM};
  const int64_t q_shape[3] = {TOKENS, QUERY_HEADS, HEAD_DIM};
  kvc_tensor k_view, v_view, q_view, out_view;
  uint64_t digest[2];
  int32_t layer;
  size_t i;

  for (i = 0; i < sizeof k / sizeof *k; i++) k[i] = (float)(i % 7) - 3, v[i] = (float)(i % 5);
  for (i = 0; i < sizeof q / sizeof *q; i++) q[i] = (float)(i % 3) - 1;
  TRY(kvc_tensor_dense(k, KVC_F32, 3, kv_shape, &k_view));
  TRY(kvc_tensor_dense(v, KVC_F32, 3, kv_shape, &v_view));
  TRY(kvc_tensor_dense(q, KVC_F32, 3, q_shape, &q_view));
  TRY(kvc_tensor_dense(out, KVC_F32, 3, q_shape, &out_view));

  TRY(kvc_begin(cache, TOKENS, position, sequence, NULL, 0, NULL));
  for (layer = 0; layer < LAYERS; layer++) {
    TRY(kvc_put(cache, layer, &k_view, &v_view));
    TRY(kvc_attention(cache, layer, &q_view, &out_view, NULL));
  }
  TRY(kvc_commit(cache));
  /* A first token sees itself alone, so its result is its own value. */
  for (i = 0; i < HEAD_DIM; i++)
    if (out[i] != v[i]) return complain(KVC_E_INTERNAL, "attention of a first token");

  TRY(kvc_remove(cache, 1, 1, KVC_SEQ_END));
  TRY(kvc_check(cache));
  TRY(kvc_state_digest(cache, digest));
  printf("digest %016llx%016llx\n", (unsigned long long)digest[0], (unsigned long long)digest[1]);
  return KVC_OK;
}

static kvc_status use_kvc(void) {
  kvc_device *device = NULL;
  kvc_cache *cache = NULL;
  kvc_cache_desc desc = {sizeof(kvc_cache_desc)};
  kvc_status status;

  if (kvc_version_number() != KVC_VERSION_NUMBER) return complain(KVC_E_VERSION, "header and library");
  desc.kind = KVC_CAUSAL;
  desc.n_layers = LAYERS;
  desc.n_kv_heads = KV_HEADS;
  desc.head_dim_k = HEAD_DIM;
  desc.dtype_k = desc.dtype_v = KVC_F16;
  desc.max_sequences = 2;
  desc.capacity = 32;
  desc.max_batch = TOKENS;
  desc.max_q_heads = QUERY_HEADS;

  TRY(kvc_device_open("cpu", NULL, NULL, &device));
  TRY(kvc_cache_create(device, &desc, NULL, &cache));
  status = use_cache(cache);
  TRY(kvc_cache_destroy(cache));
  TRY(kvc_device_close(device));
  return status;
}
