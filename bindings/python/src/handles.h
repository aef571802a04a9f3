/* A cache as a Python object: a capsule that destroys it when the last reference goes. A running call
 * holds one, and so does every array that the cache's memory was lent to: none can meet freed memory. */
#ifndef KVC_PYTHON_HANDLES_H
#define KVC_PYTHON_HANDLES_H

#include "support.h"

#define KVC_PY_CACHE "kvc_cache"

static void kvc_py_cache_gone(PyObject* capsule) {
  kvc_cache* cache = (kvc_cache*)PyCapsule_GetPointer(capsule, KVC_PY_CACHE);
  /* Nobody is inside a call. In a child of a fork the handle is dead already, which is no news. */
  Py_BEGIN_ALLOW_THREADS
  kvc_cache_destroy(cache);
  Py_END_ALLOW_THREADS
}

static PyObject* kvc_py_cache_new(kvc_cache* cache) {
  PyObject* capsule = PyCapsule_New(cache, KVC_PY_CACHE, kvc_py_cache_gone);
  if (capsule == NULL) kvc_cache_destroy(cache);
  return capsule;
}

/* The cache of a capsule; None stands for one that was closed. 0: an exception is set. */
static int kvc_py_cache_open(PyObject* object, kvc_cache** out) {
  if (object == Py_None) {
    kvc_py_raise(KVC_E_HANDLE, "the cache is closed");
    return 0;
  }
  *out = (kvc_cache*)PyCapsule_GetPointer(object, KVC_PY_CACHE);
  return *out != NULL;
}

#endif
