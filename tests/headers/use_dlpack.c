/* kvc/kvc_dlpack.h over the real dlpack.h: what maps to what, what is refused, and K and V that go in and come out of a
 * cache as DLPack tensors. Compiled as C and as C++. */
#include <kvc/kvc.h>
#include <kvc/kvc_dlpack.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int failures = 0;
#define CHECK(condition) \
  ((condition) ? (void)0 : (void)(++failures, fprintf(stderr, "line %d: %s\n", __LINE__, #condition)))

enum { TOKENS = 3, HEADS = 2, DIM = 4 };

static DLTensor tensor_of(void *data, unsigned code, unsigned bits, int ndim, int64_t *shape, int64_t *strides) {
  DLTensor t;
  memset(&t, 0, sizeof t);
  t.data = data;
  t.device.device_type = kDLCPU;
  t.ndim = ndim;
  t.dtype.code = (uint8_t)code;
  t.dtype.bits = (uint8_t)bits;
  t.dtype.lanes = 1;
  t.shape = shape;
  t.strides = strides;
  return t;
}

static void test_what_maps(void) {
  float data[24];
  int64_t shape[3] = {3, 1, 4}, strides[3] = {8, -5, 2};
  DLTensor t = tensor_of(data, kDLFloat, 32, 3, shape, strides), back;
  kvc_tensor view;
  t.byte_offset = 16;
  CHECK(kvc_tensor_from_dlpack(&t, &view) == KVC_OK);
  CHECK(view.data == (void *)data && view.byte_offset == 16 && view.ndim == 3 && view.dtype == KVC_F32);
  CHECK(view.device_type == KVC_CPU && view.device_id == 0 && view.flags == 0 && view.reserved == 0);
  CHECK(view.shape[0] == 3 && view.shape[1] == 1 && view.shape[2] == 4);
  CHECK(view.strides[0] == 8 && view.strides[1] == 0 && view.strides[2] == 2); /* -5 is never stepped */
  CHECK(kvc_tensor_to_dlpack(&view, &back) == KVC_OK);
  CHECK(back.data == (void *)(data + 4) && back.byte_offset == 0 && back.ndim == 3 && back.strides[2] == 2);
  CHECK(back.dtype.code == kDLFloat && back.dtype.bits == 32 && back.dtype.lanes == 1 && back.device.device_type == kDLCPU);

  t.strides = NULL;
  CHECK(kvc_tensor_from_dlpack(&t, &view) == KVC_OK);
  CHECK(view.strides[0] == 4 && view.strides[1] == 0 && view.strides[2] == 1);
  t.device.device_type = kDLCUDAHost;
  CHECK(kvc_tensor_from_dlpack(&t, &view) == KVC_OK && view.device_type == KVC_CPU);
  t.device.device_type = kDLCUDA;
  t.device.device_id = 3;
  CHECK(kvc_tensor_from_dlpack(&t, &view) == KVC_OK && view.device_type == KVC_CUDA && view.device_id == 3);
  t.dtype.bits = 16;
  CHECK(kvc_tensor_from_dlpack(&t, &view) == KVC_OK && view.dtype == KVC_F16);
  t.dtype.code = kDLBfloat;
  CHECK(kvc_tensor_from_dlpack(&t, &view) == KVC_OK && view.dtype == KVC_BF16);
  t.dtype.code = kDLInt;
  t.dtype.bits = 32;
  CHECK(kvc_tensor_from_dlpack(&t, &view) == KVC_OK && view.dtype == KVC_I32);
  t.dtype.code = kDLBool;
  t.dtype.bits = 8;
  CHECK(kvc_tensor_from_dlpack(&t, &view) == KVC_OK && view.dtype == KVC_BOOL);
  t.dtype.code = kDLInt; /* codes */
  CHECK(kvc_tensor_from_dlpack(&t, &view) == KVC_OK && view.dtype == KVC_I8);
  t.dtype.code = kDLUInt;
  CHECK(kvc_tensor_from_dlpack(&t, &view) == KVC_OK && view.dtype == KVC_U8);
  t.dtype.code = 10; /* kDLFloat8_e4m3fn and kDLFloat8_e5m2 of DLPack 1.1 */
  CHECK(kvc_tensor_from_dlpack(&t, &view) == KVC_OK && view.dtype == KVC_F8_E4M3);
  t.dtype.code = 12;
  CHECK(kvc_tensor_from_dlpack(&t, &view) == KVC_OK && view.dtype == KVC_F8_E5M2);
  shape[0] = 0; /* nothing in it: no address either */
  t.data = NULL;
  CHECK(kvc_tensor_from_dlpack(&t, &view) == KVC_OK && kvc_tensor_to_dlpack(&view, &back) == KVC_OK && back.data == NULL);
}

static void test_what_is_refused(void) {
  float data[24];
  int64_t shape[9] = {3, 2, 4, 1, 1, 1, 1, 1, 1}, strides[3] = {8, -4, 1};
  DLTensor t = tensor_of(data, kDLFloat, 32, 3, shape, strides);
  DLManagedTensorVersioned managed;
  kvc_tensor view;
  memset(&view, 7, sizeof view);
  CHECK(kvc_tensor_from_dlpack(NULL, &view) == KVC_E_INVALID_ARGUMENT);
  CHECK(kvc_tensor_from_dlpack(&t, NULL) == KVC_E_INVALID_ARGUMENT);
  CHECK(kvc_tensor_from_dlpack(&t, &view) == KVC_E_SHAPE); /* a negative stride */
  t.strides = NULL;
  t.ndim = 9;
  CHECK(kvc_tensor_from_dlpack(&t, &view) == KVC_E_SHAPE);
  t.ndim = -1;
  CHECK(kvc_tensor_from_dlpack(&t, &view) == KVC_E_SHAPE);
  t.ndim = 3;
  t.shape = NULL;
  CHECK(kvc_tensor_from_dlpack(&t, &view) == KVC_E_SHAPE);
  t.shape = shape;
  shape[1] = -2;
  CHECK(kvc_tensor_from_dlpack(&t, &view) == KVC_E_SHAPE);
  shape[1] = shape[0] = INT64_MAX / 2;
  CHECK(kvc_tensor_from_dlpack(&t, &view) == KVC_E_OVERFLOW);
  shape[0] = 3, shape[1] = 2;
  t.dtype.bits = 64;
  CHECK(kvc_tensor_from_dlpack(&t, &view) == KVC_E_DTYPE);
  t.dtype.bits = 32;
  t.dtype.lanes = 4;
  CHECK(kvc_tensor_from_dlpack(&t, &view) == KVC_E_DTYPE);
  t.dtype.lanes = 1;
  t.device.device_type = kDLROCM;
  CHECK(kvc_tensor_from_dlpack(&t, &view) == KVC_E_DEVICE_MISMATCH);
  t.device.device_type = kDLCPU;

  memset(&managed, 0, sizeof managed);
  managed.version.major = 2;
  managed.dl_tensor = t;
  CHECK(kvc_tensor_from_dlpack_versioned(&managed, 0, &view) == KVC_E_VERSION);
  managed.version.major = 1;
  managed.flags = DLPACK_FLAG_BITMASK_READ_ONLY;
  CHECK(kvc_tensor_from_dlpack_versioned(&managed, 1, &view) == KVC_E_INVALID_ARGUMENT);
  CHECK(kvc_tensor_from_dlpack_versioned(NULL, 1, &view) == KVC_E_INVALID_ARGUMENT);
  CHECK(view.ndim == 0x07070707); /* no failure wrote to it */
  CHECK(kvc_tensor_from_dlpack_versioned(&managed, 0, &view) == KVC_OK && view.ndim == 3);
  view.ndim = 9;
  CHECK(kvc_tensor_to_dlpack(&view, &t) == KVC_E_SHAPE && kvc_tensor_to_dlpack(NULL, &t) == KVC_E_INVALID_ARGUMENT);
}

static int released = 0;
static void release(kvc_dlpack_export *self) {
  ++released;
  CHECK(self->owner == (void *)&released);
  free(self);
}

/* bfloat16 keys with gaps between their heads go in, and come out as both kinds of managed tensor. */
static void test_a_cache(void) {
  uint16_t in[TOKENS][HEADS][2 * DIM];
  int64_t shape[3] = {TOKENS, HEADS, DIM}, strides[3] = {HEADS * 2 * DIM, 2 * DIM, 1};
  const int32_t position[TOKENS] = {0, 1, 2}, sequence[TOKENS] = {0, 0, 0};
  DLTensor lent = tensor_of(in, kDLBfloat, 16, 3, shape, strides);
  kvc_device *device = NULL;
  kvc_cache *cache = NULL;
  kvc_cache_desc desc;
  kvc_tensor k, seen;
  int round, i, token, head, dim;
  for (i = 0; i < TOKENS * HEADS * 2 * DIM; ++i) (&in[0][0][0])[i] = (uint16_t)(0x3f80 + i);
  memset(&desc, 0, sizeof desc);
  desc.struct_size = sizeof desc;
  desc.kind = KVC_CAUSAL;
  desc.n_layers = 1, desc.n_kv_heads = HEADS, desc.head_dim_k = DIM;
  desc.dtype_k = desc.dtype_v = KVC_BF16;
  desc.max_sequences = 1, desc.capacity = 16, desc.max_batch = 8;
  CHECK(kvc_device_open("cpu", NULL, NULL, &device) == KVC_OK);
  CHECK(kvc_cache_create(device, &desc, NULL, &cache) == KVC_OK);
  CHECK(kvc_tensor_from_dlpack(&lent, &k) == KVC_OK);
  CHECK(kvc_begin(cache, TOKENS, position, sequence, NULL, 0, NULL) == KVC_OK);
  CHECK(kvc_put(cache, 0, &k, &k) == KVC_OK);
  CHECK(kvc_get(cache, 0, &seen, NULL) == KVC_OK);
  for (round = 0; round < 2; ++round) {
    kvc_dlpack_export *e = (kvc_dlpack_export *)malloc(sizeof *e);
    const DLTensor *out;
    CHECK(kvc_dlpack_export_init(e, &seen, DLPACK_FLAG_BITMASK_READ_ONLY, NULL, NULL) == KVC_E_INVALID_ARGUMENT);
    CHECK(kvc_dlpack_export_init(e, &seen, DLPACK_FLAG_BITMASK_READ_ONLY, release, &released) == KVC_OK);
    out = round ? &e->legacy.dl_tensor : &e->versioned.dl_tensor;
    CHECK(e->versioned.version.major == 1 && e->versioned.flags == DLPACK_FLAG_BITMASK_READ_ONLY);
    CHECK(out->shape[0] == TOKENS && out->dtype.code == kDLBfloat && out->data == seen.data);
    for (token = 0; token < TOKENS; ++token)
      for (head = 0; head < HEADS; ++head)
        for (dim = 0; dim < DIM; ++dim)
          CHECK(((const uint16_t *)out->data)[token * out->strides[0] + head * out->strides[1] + dim * out->strides[2]] ==
                in[token][head][dim]);
    if (round) {
      e->legacy.deleter(&e->legacy);
    } else {
      e->versioned.deleter(&e->versioned);
    }
    CHECK(released == round + 1);
  }
  CHECK(kvc_commit(cache) == KVC_OK);
  CHECK(kvc_cache_destroy(cache) == KVC_OK && kvc_device_close(device) == KVC_OK);
}

int main(void) {
  test_what_maps();
  test_what_is_refused();
  test_a_cache();
  return failures != 0;
}
