/* Uses a cache on a device of the CUDA backend without memory there: what libkvc and the backend tell each other, and that
 * tensors of the host are refused.   use_device NAME DEVICE_ID */
#include <kvc/experimental.h>
#include <kvc/kvc.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define EXPECT(condition) \
  if (!(condition)) return printf("line %d: %s; last message: %s\n", __LINE__, #condition, message()), 1

enum { TOKENS = 3, KV_HEADS = 2, QUERY_HEADS = 4, HEAD_DIM = 64 };

static const char *message(void) {
  static char text[512];
  kvc_last_error_copy(text, sizeof text);
  return text;
}

int main(int argc, char **argv) {
  static float zeros[TOKENS * QUERY_HEADS * HEAD_DIM], written[TOKENS * QUERY_HEADS * HEAD_DIM];
  const int32_t position[TOKENS] = {0, 1, 2}, sequence[TOKENS] = {0, 0, 0};
  const int64_t kv_shape[3] = {TOKENS, KV_HEADS, HEAD_DIM}, q_shape[3] = {TOKENS, QUERY_HEADS, HEAD_DIM};
  kvc_device_info info = KVC_DEVICE_INFO_INIT;
  kvc_cache_desc desc = KVC_CACHE_DESC_INIT;
  kvc_causal_desc causal = KVC_CAUSAL_DESC_INIT;
  kvc_device *device = NULL;
  kvc_cache *cache = NULL;
  kvc_tensor kv, q, out;
  char name[32];
  if (argc != 3) return 2;

  EXPECT(kvc_device_open(argv[1], NULL, NULL, &device) == KVC_OK);
  EXPECT(kvc_device_query(device, &info) == KVC_OK);
  sprintf(name, "cuda:%s", argv[2]);
  EXPECT(strcmp(info.name, name) == 0 && info.device_type == KVC_CUDA && info.device_id == atoi(argv[2]));
  EXPECT(strncmp(info.instruction_set, "sm_", 3) == 0);

  desc.n_layers = 1, desc.n_kv_heads = KV_HEADS, desc.head_dim_k = desc.head_dim_v = HEAD_DIM;
  desc.capacity = 16, desc.max_sequences = 2, desc.max_batch = 4, desc.max_q_heads = QUERY_HEADS;
  desc.dtype_k = desc.dtype_v = KVC_BF16;
  desc.head_dim_k = 577;
  EXPECT(kvc_cache_create(device, &desc, &causal, &cache) == KVC_E_NOT_SUPPORTED && strstr(message(), "577"));
  desc.head_dim_k = HEAD_DIM;
  EXPECT(kvc_cache_create(device, &desc, &causal, &cache) == KVC_OK);
  EXPECT(kvc_device_close(device) == KVC_OK); /* the cache keeps what it needs */

  kvc_tensor_dense(zeros, KVC_F32, 3, kv_shape, &kv);
  kvc_tensor_dense(zeros, KVC_F32, 3, q_shape, &q);
  kvc_tensor_dense(written, KVC_F32, 3, q_shape, &out);
  EXPECT(kvc_begin(cache, TOKENS, position, sequence, NULL, 0, NULL) == KVC_OK);
  EXPECT(kvc_put(cache, 0, &kv, &kv) == KVC_E_DEVICE_MISMATCH);
  EXPECT(strstr(message(), "k is on cpu, the cache on ") != NULL && strstr(message(), name) != NULL);
  EXPECT(kvc_put_attention(cache, 0, &kv, &kv, &q, &out, NULL) == KVC_E_DEVICE_MISMATCH);
  EXPECT(kvc_abort(cache) == KVC_OK);

  EXPECT(kvc_check(cache) == KVC_OK);
  EXPECT(kvc_cache_destroy(cache) == KVC_OK);
  printf("OK\n");
  return 0;
}
