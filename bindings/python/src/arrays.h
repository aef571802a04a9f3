/* Python's arrays as kvc_tensor views, without a copy. Included once, by the generated wrapper.
 *
 * An argument is an object with the buffer protocol, __array_interface__ or __dlpack__, tried in this
 * order (the fastest first), or a tuple (object, dtype) whose dtype is the element type of bare 16-bit
 * values (the buffer protocol has no bfloat16), or of bare bytes (it has no float8). */
#ifndef KVC_PYTHON_ARRAYS_H
#define KVC_PYTHON_ARRAYS_H

#include "dlpack.h"
#include "refusals.h"

typedef struct kvc_py_array {
  kvc_tensor tensor;
  int has_view;
  Py_buffer view;
  PyObject* lender; /* keeps the memory of __array_interface__ or __dlpack__ alive during the call */
} kvc_py_array;

static void kvc_py_array_close(kvc_py_array* array) {
  if (array->has_view) PyBuffer_Release(&array->view);
  array->has_view = 0;
  Py_CLEAR(array->lender);
}

/* The kvc element type of a size and a code: 'f' floating, 'b' boolean, 'i' signed, 'u' and 'V' bare
 * bits, whose type may be known. 0: there is none. */
static uint32_t kvc_py_dtype(char code, Py_ssize_t itemsize, uint32_t meaning_of_bits) {
  if (code == 'f' && itemsize == 4) return KVC_F32;
  if (code == 'f' && itemsize == 2) return KVC_F16;
  if (code == 'b' && itemsize == 1) return KVC_BOOL;
  if (code == 'i' && itemsize == 1) return KVC_I8;
  if (code != 'u' && code != 'V') return 0;
  if (meaning_of_bits != 0 && kvc_py_itemsize(meaning_of_bits) == itemsize) return meaning_of_bits;
  return code == 'u' && itemsize == 1 ? KVC_U8 : 0;
}
/* Converts a stride from bytes to elements. */
static int kvc_py_array_set_stride(kvc_tensor* tensor, int dim, Py_ssize_t bytes,
                                   Py_ssize_t itemsize, const kvc_py_argument* argument) {
  if (tensor->shape[dim] <= 1) bytes = 0; /* the stride of an extent of 0 or 1 is never used */
  if (bytes < 0) return kvc_py_refuse_stride(argument, bytes, "which runs backwards");
  if (bytes % itemsize != 0)
    return kvc_py_refuse_stride(argument, bytes, "which is not a whole number of elements");
  tensor->strides[dim] = bytes / itemsize;
  return 1;
}

static int kvc_py_array_set_ndim(kvc_tensor* tensor, Py_ssize_t ndim, const char* name) {
  if (ndim > KVC_MAX_DIMS) {
    kvc_py_raise_format(KVC_E_SHAPE, "%s has %zd dimensions, more than %d", name, ndim, KVC_MAX_DIMS);
    return 0;
  }
  tensor->ndim = (int32_t)ndim;
  return 1;
}

/* Returns 1 if the object was read, 0 with an exception set, or -1 if it has no usable buffer. */
static int kvc_py_array_from_buffer(kvc_py_array* array, const kvc_py_argument* argument) {
  PyObject* object = argument->object;
  const int writable = argument->written;
  Py_buffer* view = &array->view;
  kvc_tensor* tensor = &array->tensor;
  const char* format;
  Py_ssize_t dense;
  char code;
  int dim;
  if (!PyObject_CheckBuffer(object)) return -1;
  if (PyObject_GetBuffer(object, view,
                         PyBUF_STRIDES | PyBUF_FORMAT | (writable ? PyBUF_WRITABLE : 0)) != 0) {
    PyErr_Clear();
    if (writable && PyObject_GetBuffer(object, view, PyBUF_STRIDES) == 0) {
      const int read_only = view->readonly;
      PyBuffer_Release(view);
      if (read_only) return kvc_py_refuse_to_write(argument);
    }
    PyErr_Clear();
    return -1; /* an element type that a buffer cannot name */
  }
  array->has_view = 1;
  format = view->format ? view->format : "B";
  if (*format == '@' || *format == '=' || *format == '<') ++format;
  code = strcmp(format, "f") == 0 || strcmp(format, "e") == 0 ? 'f'
         : strcmp(format, "?") == 0                           ? 'b'
         : strcmp(format, "b") == 0                           ? 'i'
         : strcmp(format, "H") == 0 || strcmp(format, "B") == 0 ? 'u'
                                                              : '?';
  tensor->dtype = kvc_py_dtype(code, view->itemsize, argument->meaning_of_bits);
  if (tensor->dtype == 0 || !kvc_py_takes(argument, tensor->dtype)) {
    char type[64];
    PyOS_snprintf(type, sizeof type, "a buffer of format '%.40s'", view->format ? view->format : "B");
    return kvc_py_refuse_dtype(argument, type, code == 'u' && view->itemsize == 2);
  }
  if (!kvc_py_array_set_ndim(tensor, view->ndim, argument->name)) return 0;
  dense = view->itemsize;
  for (dim = view->ndim - 1; dim >= 0; --dim) {
    /* ctypes omits strides even if they are requested: its rows are dense. */
    Py_ssize_t bytes = view->strides ? view->strides[dim] : dense;
    tensor->shape[dim] = view->shape[dim];
    if (!kvc_py_array_set_stride(tensor, dim, bytes, view->itemsize, argument)) return 0;
    dense *= view->shape[dim];
  }
  tensor->data = view->buf;
  return 1;
}

/* The element type of an array of ml_dtypes, whose __array_interface__ does not name it: bfloat16,
 * float8_e4m3fn, float8_e5m2. 0: none of them. */
static uint32_t kvc_py_dtype_by_name(PyObject* object) {
  static const struct {
    const char* name;
    uint32_t dtype;
  } known[] = {
      {"bfloat16", KVC_BF16}, {"float8_e4m3fn", KVC_F8_E4M3}, {"float8_e5m2", KVC_F8_E5M2}};
  PyObject* dtype = PyObject_GetAttrString(object, "dtype");
  PyObject* name = dtype ? PyObject_GetAttrString(dtype, "name") : NULL;
  uint32_t found = 0;
  size_t i;
  for (i = 0; name && PyUnicode_Check(name) && i < sizeof known / sizeof *known; ++i) {
    if (PyUnicode_CompareWithASCIIString(name, known[i].name) == 0) found = known[i].dtype;
  }
  Py_XDECREF(name);
  Py_XDECREF(dtype);
  PyErr_Clear();
  return found;
}

/* Reads shape and strides of an __array_interface__. Null strides mean dense rows. */
static int kvc_py_array_set_extents(kvc_tensor* tensor, PyObject* shape, PyObject* strides,
                                    Py_ssize_t itemsize, const kvc_py_argument* argument) {
  const char* name = argument->name;
  Py_ssize_t dense = itemsize;
  int dim;
  if (shape == NULL || !PyTuple_Check(shape)) {
    PyErr_Format(PyExc_TypeError, "%s: its __array_interface__ has no shape", name);
    return 0;
  }
  if (!kvc_py_array_set_ndim(tensor, PyTuple_GET_SIZE(shape), name)) return 0;
  if (strides == Py_None) strides = NULL;
  if (strides && (!PyTuple_Check(strides) || PyTuple_GET_SIZE(strides) != tensor->ndim)) {
    PyErr_Format(PyExc_TypeError,
                 "%s: its __array_interface__ has strides that do not match its shape", name);
    return 0;
  }
  for (dim = tensor->ndim - 1; dim >= 0; --dim) {
    Py_ssize_t extent = PyLong_AsSsize_t(PyTuple_GET_ITEM(shape, dim));
    Py_ssize_t bytes = strides ? PyLong_AsSsize_t(PyTuple_GET_ITEM(strides, dim)) : dense;
    if (PyErr_Occurred()) return 0;
    tensor->shape[dim] = extent;
    if (!kvc_py_array_set_stride(tensor, dim, bytes, itemsize, argument)) return 0;
    if (extent > 0 && dense > PY_SSIZE_T_MAX / extent) {
      kvc_py_raise_format(KVC_E_OVERFLOW, "%s: its shape overflows", name);
      return 0;
    }
    dense *= extent;
  }
  return 1;
}

/* Returns 1 if the object was read, 0 with an exception set, or -1 if it has no such interface. */
static int kvc_py_array_from_interface(kvc_py_array* array, const kvc_py_argument* argument) {
  PyObject* object = argument->object;
  const char* name = argument->name;
  kvc_tensor* tensor = &array->tensor;
  PyObject *data, *type;
  const char* typestr;
  Py_ssize_t itemsize;
  char code;
  int read_only;
  array->lender = PyObject_GetAttrString(object, "__array_interface__");
  if (array->lender == NULL) {
    if (!PyErr_ExceptionMatches(PyExc_AttributeError)) return 0;
    PyErr_Clear();
    return -1;
  }
  if (!PyDict_Check(array->lender)) {
    PyErr_Format(PyExc_TypeError, "%s: its __array_interface__ is not a dict", name);
    return 0;
  }
  data = PyDict_GetItemString(array->lender, "data");
  type = PyDict_GetItemString(array->lender, "typestr");
  typestr = type && PyUnicode_Check(type) ? PyUnicode_AsUTF8(type) : NULL;
  if (typestr == NULL || strlen(typestr) < 3 || data == NULL || !PyTuple_Check(data) ||
      PyTuple_GET_SIZE(data) != 2) {
    PyErr_Format(PyExc_TypeError, "%s: its __array_interface__ names no element type or no address",
                 name);
    return 0;
  }
  read_only = PyObject_IsTrue(PyTuple_GET_ITEM(data, 1));
  if (read_only < 0) return 0;
  if (read_only && argument->written) return kvc_py_refuse_to_write(argument);
  itemsize = atoi(typestr + 2);
  code = typestr[0] == '>' ? '?' : typestr[1];
  tensor->dtype = code == 'V' || (code == 'f' && itemsize == 1) ? kvc_py_dtype_by_name(object) : 0;
  if (tensor->dtype == 0 || kvc_py_itemsize(tensor->dtype) != itemsize)
    tensor->dtype = kvc_py_dtype(code, itemsize, argument->meaning_of_bits);
  if (tensor->dtype == 0 || !kvc_py_takes(argument, tensor->dtype))
    return kvc_py_refuse_dtype(argument, typestr, (code == 'u' || code == 'V') && itemsize == 2);
  tensor->data = PyLong_AsVoidPtr(PyTuple_GET_ITEM(data, 0));
  if (PyErr_Occurred()) return 0;
  return kvc_py_array_set_extents(tensor, PyDict_GetItemString(array->lender, "shape"),
                                  PyDict_GetItemString(array->lender, "strides"), itemsize,
                                  argument);
}

/* Opens an argument as a view. Returns 0 with an exception set if it fails. The caller closes the
 * array in either case. */
static int kvc_py_array_open(kvc_py_array* array, kvc_py_argument argument) {
  int taken;
  memset(array, 0, sizeof *array);
  array->tensor.device_type = KVC_CPU;
  if (PyTuple_Check(argument.object) && PyTuple_GET_SIZE(argument.object) == 2) {
    const unsigned long dtype = PyLong_AsUnsignedLong(PyTuple_GET_ITEM(argument.object, 1));
    if (PyErr_Occurred()) return 0;
    /* kvc_py_dtype() takes it for elements of its size alone: no array is read beyond its end. */
    if (dtype == KVC_F16 || dtype == KVC_BF16 || dtype == KVC_F8_E4M3 || dtype == KVC_F8_E5M2)
      argument.meaning_of_bits = (uint32_t)dtype;
    argument.object = PyTuple_GET_ITEM(argument.object, 0);
  }
  if (argument.gpu != NULL) { /* the other two are of the host's memory */
    taken = kvc_py_dlpack_open(&argument, &array->lender, &array->tensor);
    return taken >= 0 ? taken : kvc_py_refuse_device(&argument, kDLCPU);
  }
  taken = kvc_py_array_from_buffer(array, &argument);
  if (taken < 0) taken = kvc_py_array_from_interface(array, &argument);
  /* An object whose buffer is not writable (a bfloat16 array of JAX) is not written through DLPack
   * either: older DLPack capsules cannot be marked read-only. */
  if (taken < 0 && argument.written && PyObject_CheckBuffer(argument.object))
    return kvc_py_refuse_to_write(&argument);
  if (taken < 0) taken = kvc_py_dlpack_open(&argument, &array->lender, &array->tensor);
  return taken >= 0 ? taken : kvc_py_refuse_object(&argument);
}

/* A view as (address, shape, strides in bytes, dtype). */
static PyObject* kvc_py_describe(const kvc_tensor* tensor) {
  const int itemsize = kvc_py_itemsize(tensor->dtype);
  PyObject *shape, *strides, *result = NULL;
  int dim;
  if (itemsize == 0) return kvc_py_refuse_element(tensor->dtype);
  shape = PyTuple_New(tensor->ndim);
  strides = PyTuple_New(tensor->ndim);
  if (shape == NULL || strides == NULL) goto done;
  for (dim = 0; dim < tensor->ndim; ++dim) {
    PyObject* extent = PyLong_FromLongLong(tensor->shape[dim]);
    PyObject* stride = PyLong_FromLongLong(tensor->strides[dim] * itemsize);
    if (extent) PyTuple_SET_ITEM(shape, dim, extent);
    if (stride) PyTuple_SET_ITEM(strides, dim, stride);
    if (extent == NULL || stride == NULL) goto done;
  }
  result = Py_BuildValue("KOOI", (unsigned long long)((uintptr_t)tensor->data + tensor->byte_offset),
                         shape, strides, tensor->dtype);
done:
  Py_XDECREF(shape);
  Py_XDECREF(strides);
  return result;
}

/* Views as a tuple; None for one without dimensions, which stands for what is not stored. */
static PyObject* kvc_py_describe_all(const kvc_tensor* tensors, Py_ssize_t n) {
  PyObject* result = PyTuple_New(n);
  Py_ssize_t i;
  for (i = 0; result != NULL && i < n; ++i) {
    PyObject* each = Py_None;
    if (tensors[i].ndim == 0)
      Py_INCREF(each);
    else
      each = kvc_py_describe(&tensors[i]);
    if (each == NULL)
      Py_CLEAR(result);
    else
      PyTuple_SET_ITEM(result, i, each);
  }
  return result;
}

/* A DLPack capsule over memory that `owner` keeps alive, described as by kvc_py_describe(), with DLPack's
 * numbers of the device, and its flags. */
static PyObject* kvc_py_lend(PyObject* owner, PyObject* description, int versioned, int flags,
                             int device_type, int device_id) {
  kvc_tensor view;
  PyObject *shape, *strides;
  unsigned long long address;
  unsigned int dtype;
  int dim, itemsize;
  memset(&view, 0, sizeof view);
  if (!PyArg_ParseTuple(description, "KO!O!I", &address, &PyTuple_Type, &shape, &PyTuple_Type,
                        &strides, &dtype))
    return NULL;
  itemsize = kvc_py_itemsize(dtype);
  if (itemsize == 0) return kvc_py_refuse_element(dtype);
  view.data = (void*)(uintptr_t)address;
  view.device_type = device_type;
  view.device_id = device_id;
  view.dtype = dtype;
  if (!kvc_py_array_set_ndim(&view, PyTuple_GET_SIZE(shape), "view")) return NULL;
  for (dim = 0; dim < view.ndim; ++dim) {
    view.shape[dim] = PyLong_AsLongLong(PyTuple_GET_ITEM(shape, dim));
    view.strides[dim] = PyLong_AsLongLong(PyTuple_GET_ITEM(strides, dim)) / itemsize;
  }
  return PyErr_Occurred() ? NULL : kvc_py_dlpack_new(owner, &view, versioned, (uint64_t)flags);
}

#endif
