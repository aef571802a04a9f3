/* kvc/kvc_dlpack.h: DLPack tensors as kvc tensors and back, without a copy. Opt-in: <kvc/kvc.h> does not include it.
 *
 * Array libraries (NumPy, PyTorch, JAX, TVM, CuPy) share memory through DLPack. This header converts their tensors into a
 * kvc_tensor for kvc_put() or kvc_attention(), and the views of kvc_get() into tensors for them:
 *
 *   kvc_tensor_from_dlpack()            DLTensor -> kvc_tensor
 *   kvc_tensor_from_dlpack_versioned()  DLManagedTensorVersioned -> kvc_tensor, checks version and read-only flag
 *   kvc_tensor_to_dlpack()              kvc_tensor -> DLTensor, for one call that borrows it
 *   kvc_dlpack_export_init()            kvc_tensor -> DLManagedTensor or DLManagedTensorVersioned, which the consumer keeps
 *
 * It is C99 and C++11, all inline: nothing is exported, allocated or linked. It needs the dlpack.h of DLPack 1.0 or
 * newer, which kvc does not install: include yours first, or put it on the include path as <dlpack/dlpack.h>.
 *
 * What maps to what:
 *
 *   element types  float 32, float 16, bfloat 16, int 32, bool, and those of codes (int 8, uint 8, float8_e4m3fn, float8_e5m2), of
 *                  one lane; any other returns DTYPE
 *   devices        kDLCPU and kDLCUDAHost (pinned memory is host memory) are KVC_CPU, kDLCUDA is KVC_CUDA; any other
 *                  returns DEVICE_MISMATCH
 *   strides        in elements on both sides. Null means dense rows (DLPack before 1.2). The stride of an extent of 0 or 1 is
 *                  never used and becomes 0; any other negative stride returns SHAPE
 *   dimensions     at most KVC_MAX_DIMS; more return SHAPE
 *
 * A conversion is a dozen comparisons and copies of numbers. A failing one returns a status, leaves `out` as it was and sets
 * no message (kvc_last_error_copy() covers the functions of the library only). The function that takes the tensor checks
 * whether it suits the argument: shape, element type, alignment, device.
 * Threads: any. Since 0.1; types of codes since 0.2. */
#ifndef KVC_KVC_DLPACK_H
#define KVC_KVC_DLPACK_H

#include "base.h"

#ifndef DLPACK_DLPACK_H_
#include <dlpack/dlpack.h>
#endif
#ifndef DLPACK_MAJOR_VERSION
#error "kvc/kvc_dlpack.h asks for the dlpack.h of DLPack 1.0 or newer"
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- In ---------------------------------------------------------------------------------------------------------------- */

/* Converts `from` into a kvc_tensor.
 *
 * Ownership: `from` and its memory stay the producer's. `out` points to the memory and not to `from`, so only the
 * memory must stay valid: for a managed tensor, call its deleter after the last kvc call that uses `out`.
 * A kvc_tensor has no read-only flag: before you pass `out` as an output, make sure that its memory may be written.
 * Errors: INVALID_ARGUMENT (null), SHAPE, DTYPE, DEVICE_MISMATCH, OVERFLOW (dense rows whose strides do not fit). */
static inline kvc_status kvc_tensor_from_dlpack(const DLTensor *from, kvc_tensor *out) {
  kvc_tensor view;
  int64_t dense = 1;
  int i;
  if (from == NULL || out == NULL) return KVC_E_INVALID_ARGUMENT;
  if (from->ndim < 0 || from->ndim > KVC_MAX_DIMS || (from->ndim > 0 && from->shape == NULL)) return KVC_E_SHAPE;
  view.data = from->data;
  view.byte_offset = from->byte_offset;
  view.ndim = from->ndim;
  view.dtype = from->dtype.code | (uint32_t)from->dtype.bits << 8 | (uint32_t)from->dtype.lanes << 16;
  view.flags = view.reserved = 0;
  if (view.dtype != KVC_F32 && view.dtype != KVC_F16 && view.dtype != KVC_BF16 && view.dtype != KVC_I32 &&
      view.dtype != KVC_BOOL && view.dtype != KVC_I8 && view.dtype != KVC_U8 && view.dtype != KVC_F8_E4M3 &&
      view.dtype != KVC_F8_E5M2)
    return KVC_E_DTYPE;
  switch ((int)from->device.device_type) {
    case kDLCPU:
    case kDLCUDAHost:
      view.device_type = KVC_CPU;
      view.device_id = 0;
      break;
    case kDLCUDA:
      view.device_type = KVC_CUDA;
      view.device_id = from->device.device_id;
      break;
    default: return KVC_E_DEVICE_MISMATCH;
  }
  for (i = KVC_MAX_DIMS - 1; i >= 0; --i) {
    const int64_t extent = i < from->ndim ? from->shape[i] : 0;
    const int64_t stride = i >= from->ndim || extent <= 1 ? 0 : from->strides != NULL ? from->strides[i] : dense;
    if (extent < 0 || stride < 0) return KVC_E_SHAPE;
    view.shape[i] = extent;
    view.strides[i] = stride;
    if (extent > 1) {
      if (from->strides == NULL && dense > INT64_MAX / extent) return KVC_E_OVERFLOW;
      dense = from->strides == NULL ? dense * extent : 1;
    }
  }
  *out = view;
  return KVC_OK;
}

/* The same for a managed tensor of DLPack 1.0, which carries its version and a read-only flag.
 *
 * writable  not 0: `out` is to be an output of kvc.
 *
 * Errors: those of kvc_tensor_from_dlpack(); VERSION (a newer major version, whose layout is unknown); INVALID_ARGUMENT (a
 * read-only tensor as an output). */
static inline kvc_status kvc_tensor_from_dlpack_versioned(const DLManagedTensorVersioned *from, int writable,
                                                          kvc_tensor *out) {
  if (from == NULL) return KVC_E_INVALID_ARGUMENT;
  if (from->version.major > 1) return KVC_E_VERSION;
  if (writable && (from->flags & DLPACK_FLAG_BITMASK_READ_ONLY) != 0) return KVC_E_INVALID_ARGUMENT;
  return kvc_tensor_from_dlpack(&from->dl_tensor, out);
}

/* ---- Out --------------------------------------------------------------------------------------------------------------- */

/* Converts a kvc_tensor into a DLTensor, for a call that borrows one.
 *
 * Lifetime: shape and strides of `out` point into `view`: do not move or free `view` while `out` is in use. The memory must
 * stay valid as long (a view of kvc_get() is valid until the pass ends).
 * byte_offset is 0 and data includes it, which every consumer handles.
 * Errors: INVALID_ARGUMENT (null), SHAPE (ndim outside 0 … KVC_MAX_DIMS). */
static inline kvc_status kvc_tensor_to_dlpack(kvc_tensor *view, DLTensor *out) {
  if (view == NULL || out == NULL) return KVC_E_INVALID_ARGUMENT;
  if (view->ndim < 0 || view->ndim > KVC_MAX_DIMS) return KVC_E_SHAPE;
  out->data = view->data == NULL ? NULL : (void *)((char *)view->data + view->byte_offset);
  out->device.device_type = (DLDeviceType)view->device_type; /* the numbers are DLPack's */
  out->device.device_id = view->device_id;
  out->ndim = view->ndim;
  out->dtype.code = (uint8_t)(view->dtype & 0xff);
  out->dtype.bits = (uint8_t)(view->dtype >> 8 & 0xff);
  out->dtype.lanes = (uint16_t)(view->dtype >> 16);
  out->shape = view->shape;
  out->strides = view->strides;
  out->byte_offset = 0;
  return KVC_OK;
}

/* A tensor to give away: the consumer keeps it until it calls the deleter. The caller allocates the struct, as it likes, and
 * kvc_dlpack_export_init() fills it in. Then one of the two managed tensors is handed out, once:
 *
 *   my_export *e = malloc(sizeof *e);           // begins with, or is, a kvc_dlpack_export
 *   kvc_get(cache, layer, &k, NULL);
 *   kvc_dlpack_export_init(e, &k, DLPACK_FLAG_BITMASK_READ_ONLY, my_release, my_cache);
 *   consume(&e->versioned);                     // or &e->legacy, for consumers without DLPack 1.0: no read-only flag
 *
 * The memory must last until `release` is called. A view of kvc_get() is the cache's own memory: do not destroy the cache
 * before `release` is called. After the pass the consumer reads whatever the memory then holds. */
typedef struct kvc_dlpack_export {
  DLManagedTensorVersioned versioned;
  DLManagedTensor legacy;
  kvc_tensor view;                                 /* a copy, with the shape and strides of both */
  void (*release)(struct kvc_dlpack_export *self); /* called once, from the consumer's thread; frees the struct */
  void *owner;                                     /* for the caller: what keeps the memory alive */
} kvc_dlpack_export;

static inline void kvc_dlpack_delete_versioned(DLManagedTensorVersioned *self) {
  kvc_dlpack_export *e = (kvc_dlpack_export *)self->manager_ctx;
  e->release(e);
}

static inline void kvc_dlpack_delete_legacy(DLManagedTensor *self) {
  kvc_dlpack_export *e = (kvc_dlpack_export *)self->manager_ctx;
  e->release(e);
}

/* Fills in `out`.
 *
 * flags    DLPACK_FLAG_BITMASK_…, for the versioned tensor
 * release  the deleters call it with `out`; must not throw
 * owner    stored in out->owner
 *
 * Errors: INVALID_ARGUMENT (null view, release or out), SHAPE. */
static inline kvc_status kvc_dlpack_export_init(kvc_dlpack_export *out, const kvc_tensor *view, uint64_t flags,
                                                void (*release)(kvc_dlpack_export *self), void *owner) {
  if (out == NULL || view == NULL || release == NULL) return KVC_E_INVALID_ARGUMENT;
  if (view->ndim < 0 || view->ndim > KVC_MAX_DIMS) return KVC_E_SHAPE;
  out->view = *view;
  out->release = release;
  out->owner = owner;
  out->versioned.version.major = 1;
  out->versioned.version.minor = 0; /* the oldest version with everything used here */
  out->versioned.manager_ctx = out->legacy.manager_ctx = out;
  out->versioned.deleter = kvc_dlpack_delete_versioned;
  out->versioned.flags = flags;
  out->legacy.deleter = kvc_dlpack_delete_legacy;
  (void)kvc_tensor_to_dlpack(&out->view, &out->versioned.dl_tensor);
  return kvc_tensor_to_dlpack(&out->view, &out->legacy.dl_tensor);
}

#ifdef __cplusplus
}
#endif
#endif
