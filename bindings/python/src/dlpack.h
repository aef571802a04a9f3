/* DLPack: reads tensors of other libraries, and lends them the memory of a cache. Included once, by
 * arrays.h. */
#ifndef KVC_PYTHON_DLPACK_H
#define KVC_PYTHON_DLPACK_H

#include "dlpack_layout.h"
#include "support.h"

#include <kvc/kvc_dlpack.h>

#define KVC_PY_DLPACK_LEGACY "dltensor"
#define KVC_PY_DLPACK_VERSIONED "dltensor_versioned"

/* ---- In -------------------------------------------------------------------------------------- */

/* Called before __dlpack__(), in which a producer may have to wait for its device. */
static int kvc_py_dlpack_is_on_cpu(PyObject* object, const char* name) {
  PyObject* device = PyObject_CallMethod(object, "__dlpack_device__", NULL);
  PyObject* type;
  long number = -1;
  if (device == NULL) return 0;
  type = PySequence_GetItem(device, 0);
  if (type != NULL) number = PyLong_AsLong(type);
  Py_XDECREF(type);
  Py_DECREF(device);
  if (PyErr_Occurred()) return 0;
  if (number == kDLCPU || number == kDLCUDAHost) return 1;
  kvc_py_raise_format(KVC_E_DEVICE_MISMATCH,
                      "%s is on a device of DLPack type %ld, the cache is on the CPU", name, number);
  return 0;
}

/* A capsule of DLPack 1.0, or of the older kind if the producer does not know max_version. */
static PyObject* kvc_py_dlpack_request(PyObject* method) {
  PyObject *none = PyTuple_New(0), *options = Py_BuildValue("{s:(ii)}", "max_version", 1, 0);
  PyObject* capsule = none && options ? PyObject_Call(method, none, options) : NULL;
  if (capsule == NULL && none && options && PyErr_ExceptionMatches(PyExc_TypeError)) {
    PyErr_Clear();
    capsule = PyObject_Call(method, none, NULL);
  }
  Py_XDECREF(none);
  Py_XDECREF(options);
  return capsule;
}

/* Reads the tensor in a capsule, which keeps it alive. Returns 0 with an exception set if it fails. */
static int kvc_py_dlpack_read(PyObject* capsule, const char* name, int writable,
                              uint32_t meaning_of_bits, kvc_tensor* out) {
  DLTensor lent;
  kvc_status status;
  if (PyCapsule_IsValid(capsule, KVC_PY_DLPACK_VERSIONED)) {
    DLManagedTensorVersioned* managed =
        (DLManagedTensorVersioned*)PyCapsule_GetPointer(capsule, KVC_PY_DLPACK_VERSIONED);
    if (managed->version.major > 1) {
      kvc_py_raise_format(KVC_E_VERSION, "%s uses DLPack %u, which is too new", name,
                          managed->version.major);
      return 0;
    }
    if (writable && (managed->flags & DLPACK_FLAG_BITMASK_READ_ONLY))
      return kvc_py_refuse_to_write(name);
    lent = managed->dl_tensor;
  } else if (PyCapsule_IsValid(capsule, KVC_PY_DLPACK_LEGACY)) {
    lent = ((DLManagedTensor*)PyCapsule_GetPointer(capsule, KVC_PY_DLPACK_LEGACY))->dl_tensor;
  } else {
    PyErr_Format(PyExc_TypeError, "%s: its __dlpack__ returns no tensor", name);
    return 0;
  }
  if (lent.dtype.code == kDLUInt && lent.dtype.bits == 16 && lent.dtype.lanes == 1) {
    if (meaning_of_bits == 0) return kvc_py_refuse_dtype(name, "uint16", 1);
    lent.dtype.code = (uint8_t)(meaning_of_bits & 0xff); /* kDLFloat or kDLBfloat */
  }
  status = kvc_tensor_from_dlpack(&lent, out);
  if (status == KVC_OK) return 1;
  if (status == KVC_E_DTYPE) {
    char type[64];
    PyOS_snprintf(type, sizeof type, "%u of %u bits and %u lanes (DLPack)", lent.dtype.code,
                  lent.dtype.bits, lent.dtype.lanes);
    kvc_py_refuse_dtype(name, type, 0);
  } else if (status == KVC_E_SHAPE) {
    kvc_py_raise_format(status, "%s has a negative stride, or %d dimensions are not 0 to %d", name,
                        (int)lent.ndim, KVC_MAX_DIMS);
  } else {
    kvc_py_raise_format(status, "%s: its DLPack tensor cannot be used", name);
  }
  return 0;
}

/* Returns 1 if the object was read (`capsule` keeps its memory alive), 0 with an exception set, or
 * -1 if it has no __dlpack__(). */
static int kvc_py_dlpack_open(PyObject* object, const char* name, int writable,
                              uint32_t meaning_of_bits, PyObject** capsule, kvc_tensor* out) {
  PyObject* method = PyObject_GetAttrString(object, "__dlpack__");
  if (method == NULL) {
    if (!PyErr_ExceptionMatches(PyExc_AttributeError)) return 0;
    PyErr_Clear();
    return -1;
  }
  if (kvc_py_dlpack_is_on_cpu(object, name)) *capsule = kvc_py_dlpack_request(method);
  Py_DECREF(method);
  return *capsule != NULL && kvc_py_dlpack_read(*capsule, name, writable, meaning_of_bits, out);
}

/* ---- Out ------------------------------------------------------------------------------------- */

/* Called by the consumer's deleter, on any thread, with or without the GIL. */
static void kvc_py_dlpack_release(kvc_dlpack_export* self) {
  if (Py_IsInitialized()) { /* else the interpreter has already destroyed the owner */
    const PyGILState_STATE gil = PyGILState_Ensure();
    Py_DECREF((PyObject*)self->owner);
    PyGILState_Release(gil);
  }
  free(self);
}

/* Destroys a capsule that no consumer took. (A consumer renames the capsule that it takes.) */
static void kvc_py_dlpack_gone(PyObject* capsule) {
  if (PyCapsule_IsValid(capsule, KVC_PY_DLPACK_VERSIONED)) {
    DLManagedTensorVersioned* managed =
        (DLManagedTensorVersioned*)PyCapsule_GetPointer(capsule, KVC_PY_DLPACK_VERSIONED);
    managed->deleter(managed);
  } else if (PyCapsule_IsValid(capsule, KVC_PY_DLPACK_LEGACY)) {
    DLManagedTensor* managed = (DLManagedTensor*)PyCapsule_GetPointer(capsule, KVC_PY_DLPACK_LEGACY);
    managed->deleter(managed);
  }
}

/* A DLPack capsule over memory that `owner` keeps alive. */
static PyObject* kvc_py_dlpack_new(PyObject* owner, const kvc_tensor* view, int versioned,
                                   uint64_t flags) {
  kvc_dlpack_export* lent = (kvc_dlpack_export*)malloc(sizeof *lent);
  PyObject* capsule;
  if (lent == NULL) return PyErr_NoMemory();
  kvc_dlpack_export_init(lent, view, flags, kvc_py_dlpack_release, owner);
  capsule = versioned
                ? PyCapsule_New(&lent->versioned, KVC_PY_DLPACK_VERSIONED, kvc_py_dlpack_gone)
                : PyCapsule_New(&lent->legacy, KVC_PY_DLPACK_LEGACY, kvc_py_dlpack_gone);
  if (capsule == NULL) {
    free(lent);
    return NULL;
  }
  Py_INCREF(owner);
  return capsule;
}

#endif
