/* DLPack: reads tensors of other libraries, and lends them the memory of a cache. Included once, by
 * arrays.h. */
#ifndef KVC_PYTHON_DLPACK_H
#define KVC_PYTHON_DLPACK_H

#include "dlpack_layout.h"
#include "refusals.h"

#include <kvc/kvc_dlpack.h>

#define KVC_PY_DLPACK_LEGACY "dltensor"
#define KVC_PY_DLPACK_VERSIONED "dltensor_versioned"

/* ---- In -------------------------------------------------------------------------------------- */

/* Called before __dlpack__(), in which a producer may have to wait for its device. */
static int kvc_py_dlpack_check_device(const kvc_py_argument* argument) {
  PyObject* device = PyObject_CallMethod(argument->object, "__dlpack_device__", NULL);
  PyObject* type;
  long number = -1;
  if (device == NULL) return 0;
  type = PySequence_GetItem(device, 0);
  if (type != NULL) number = PyLong_AsLong(type);
  Py_XDECREF(type);
  Py_DECREF(device);
  if (PyErr_Occurred()) return 0;
  if (argument->gpu != NULL ? number == kDLCUDA : number == kDLCPU || number == kDLCUDAHost) return 1;
  return kvc_py_refuse_device(argument, number);
}

/* A capsule of DLPack 1.0, or of the older kind if the producer does not know max_version. On a GPU the producer
 * orders its work before what follows on the stream of the pass. */
static PyObject* kvc_py_dlpack_request(PyObject* method, const kvc_py_gpu* gpu) {
  PyObject *none = PyTuple_New(0), *options = Py_BuildValue("{s:(ii)}", "max_version", 1, 0);
  PyObject* stream = gpu ? PyLong_FromUnsignedLongLong(gpu->stream) : NULL;
  PyObject* capsule = NULL;
  if (none && options && (gpu == NULL || (stream && PyDict_SetItemString(options, "stream", stream) == 0))) {
    capsule = PyObject_Call(method, none, options);
    if (capsule == NULL && PyErr_ExceptionMatches(PyExc_TypeError)) {
      PyErr_Clear();
      PyDict_DelItemString(options, "max_version");
      capsule = PyObject_Call(method, none, options);
    }
  }
  Py_XDECREF(stream);
  Py_XDECREF(none);
  Py_XDECREF(options);
  return capsule;
}

/* Refuses a tensor of several rows whose strides are negative. */
static int kvc_py_dlpack_runs_forward(const DLTensor* lent, const kvc_py_argument* argument) {
  int dim;
  for (dim = 0; lent->strides != NULL && dim < lent->ndim; ++dim) {
    if (lent->strides[dim] < 0 && lent->shape[dim] > 1)
      return kvc_py_refuse_stride(
          argument, (Py_ssize_t)((uint64_t)lent->strides[dim] * (lent->dtype.bits / 8)),
          "which runs backwards");
  }
  return 1;
}

static int kvc_py_dlpack_refuse_dtype(const DLDataType* type, const kvc_py_argument* argument) {
  static const char* const codes[] = {"int", "uint", "float", "handle", "bfloat", "complex", "bool"};
  char text[64];
  const char* code = type->code < 7 ? codes[type->code] : "a type of DLPack's number ";
  if (type->code >= 7)
    PyOS_snprintf(text, sizeof text, "%s%u with %u bits", code, type->code, type->bits);
  else if (type->code == 6)
    PyOS_snprintf(text, sizeof text, "%s", code);
  else
    PyOS_snprintf(text, sizeof text, "%s%u", code, type->bits);
  if (type->lanes != 1)
    PyOS_snprintf(text + strlen(text), sizeof text - strlen(text), " in vectors of %u", type->lanes);
  return kvc_py_refuse_dtype(argument, text, 0);
}

/* Reads the tensor in a capsule, which keeps it alive. Returns 0 with an exception set if it fails. */
static int kvc_py_dlpack_read(PyObject* capsule, const kvc_py_argument* argument, kvc_tensor* out) {
  const char* name = argument->name;
  DLTensor lent;
  kvc_status status;
  if (PyCapsule_IsValid(capsule, KVC_PY_DLPACK_VERSIONED)) {
    DLManagedTensorVersioned* managed =
        (DLManagedTensorVersioned*)PyCapsule_GetPointer(capsule, KVC_PY_DLPACK_VERSIONED);
    if (managed->version.major > 1) {
      kvc_py_raise_format(KVC_E_VERSION,
                          "%s comes as DLPack %u, but this kvc reads DLPack 1 and older: pass it as an "
                          "array of NumPy",
                          name, managed->version.major);
      return 0;
    }
    if (argument->written && (managed->flags & DLPACK_FLAG_BITMASK_READ_ONLY))
      return kvc_py_refuse_to_write(argument);
    lent = managed->dl_tensor;
  } else if (PyCapsule_IsValid(capsule, KVC_PY_DLPACK_LEGACY)) {
    lent = ((DLManagedTensor*)PyCapsule_GetPointer(capsule, KVC_PY_DLPACK_LEGACY))->dl_tensor;
  } else {
    PyErr_Format(PyExc_TypeError, "%s: its __dlpack__ returns no tensor", name);
    return 0;
  }
  if (lent.dtype.code == kDLUInt && lent.dtype.lanes == 1 &&
      lent.dtype.bits == 8 * kvc_py_itemsize(argument->meaning_of_bits)) {
    lent.dtype.code = (uint8_t)(argument->meaning_of_bits & 0xff); /* DLPack's own numbers */
  } else if (lent.dtype.code == kDLUInt && lent.dtype.bits == 16 && lent.dtype.lanes == 1) {
    return kvc_py_refuse_dtype(argument, "uint16", 1);
  }
  if (lent.ndim < 0 || lent.ndim > KVC_MAX_DIMS) {
    kvc_py_raise_format(KVC_E_SHAPE, "%s has %d dimensions, not 0 to %d", name, (int)lent.ndim,
                        KVC_MAX_DIMS);
    return 0;
  }
  status = kvc_tensor_from_dlpack(&lent, out);
  if (status == KVC_E_DTYPE || (status == KVC_OK && !kvc_py_takes(argument, out->dtype)))
    return kvc_py_dlpack_refuse_dtype(&lent.dtype, argument);
  if (status == KVC_OK) return 1;
  if (status == KVC_E_SHAPE && lent.shape != NULL && !kvc_py_dlpack_runs_forward(&lent, argument))
    return 0;
  if (status == KVC_E_OVERFLOW)
    kvc_py_raise_format(status, "%s: its shape overflows", name);
  else
    kvc_py_raise_format(status, "%s: its DLPack tensor is malformed (%s)", name, kvc_status_name(status));
  return 0;
}

/* Returns 1 if the object was read (`capsule` keeps its memory alive), 0 with an exception set, or
 * -1 if it has no __dlpack__(). */
static int kvc_py_dlpack_open(const kvc_py_argument* argument, PyObject** capsule, kvc_tensor* out) {
  PyObject* method = PyObject_GetAttrString(argument->object, "__dlpack__");
  if (method == NULL) {
    if (!PyErr_ExceptionMatches(PyExc_AttributeError)) return 0;
    PyErr_Clear();
    return -1;
  }
  if (kvc_py_dlpack_check_device(argument)) *capsule = kvc_py_dlpack_request(method, argument->gpu);
  Py_DECREF(method);
  return *capsule != NULL && kvc_py_dlpack_read(*capsule, argument, out);
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
