/* A cache as a Python object: a capsule that destroys the cache when the last reference is dropped.
 * Every running call and every array over the cache's memory holds a reference, so none can use freed
 * memory. */
#ifndef KVC_PYTHON_HANDLES_H
#define KVC_PYTHON_HANDLES_H

#include <sched.h>

#include "support.h"

#define KVC_PY_CACHE "kvc_cache"

/* The context of the capsule of a cache on a GPU: the stream that DLPack's producers are asked to hand their
 * tensors over to, which is that of the last pass. */
typedef struct kvc_py_gpu {
  unsigned long long stream; /* in DLPack's numbering */
} kvc_py_gpu;

/* Null: an object that is no cache, or a cache on the CPU. */
static const kvc_py_gpu* kvc_py_gpu_of(PyObject* object) {
  if (object == NULL || !PyCapsule_IsValid(object, KVC_PY_CACHE)) return NULL;
  return (const kvc_py_gpu*)PyCapsule_GetContext(object);
}

/* Says that a cache is on a GPU, and which stream its pass has (0: the legacy default stream, as 1). */
static PyObject* kvc_py_use_stream(PyObject* cache, unsigned long long stream) {
  kvc_py_gpu* gpu;
  if (!PyCapsule_IsValid(cache, KVC_PY_CACHE)) Py_RETURN_NONE; /* it is closed */
  gpu = (kvc_py_gpu*)PyCapsule_GetContext(cache);
  if (gpu == NULL) gpu = (kvc_py_gpu*)malloc(sizeof *gpu);
  if (gpu == NULL) return PyErr_NoMemory();
  gpu->stream = stream == 0 ? 1 : stream;
  PyCapsule_SetContext(cache, gpu);
  Py_RETURN_NONE;
}

static void kvc_py_cache_gone(PyObject* capsule) {
  kvc_cache* cache = (kvc_cache*)PyCapsule_GetPointer(capsule, KVC_PY_CACHE);
  free(PyCapsule_GetContext(capsule));
  /* No call on this cache is running: it would hold a reference. One on its wrapper, or on a child of it,
   * would not: it is waited for, since nobody could destroy the cache later. In a forked child this fails
   * with HANDLE, as it should: the parent owns the cache. */
  Py_BEGIN_ALLOW_THREADS
  while (kvc_cache_destroy(cache) == KVC_E_BUSY) sched_yield();
  Py_END_ALLOW_THREADS
}

static PyObject* kvc_py_cache_new(kvc_cache* cache) {
  PyObject* capsule = PyCapsule_New(cache, KVC_PY_CACHE, kvc_py_cache_gone);
  if (capsule == NULL) kvc_cache_destroy(cache);
  return capsule;
}

/* Gets the cache of a capsule; None means a closed cache. Returns 0 with an exception set if it
 * fails. */
static int kvc_py_cache_open(PyObject* object, kvc_cache** out) {
  if (object == Py_None) {
    kvc_py_raise(KVC_E_HANDLE, "the cache is closed");
    return 0;
  }
  *out = (kvc_cache*)PyCapsule_GetPointer(object, KVC_PY_CACHE);
  return *out != NULL;
}

#endif
