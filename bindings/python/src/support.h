/* What the typemaps of kvc_capi.i share: errors and integers. Included by the generated wrapper. */
#ifndef KVC_PYTHON_SUPPORT_H
#define KVC_PYTHON_SUPPORT_H

#include <Python.h>
#include <kvc/kvc.h>

#include <limits.h>
#include <stdlib.h>
#include <string.h>

/* Initialises the variables of a typemap, so that closing one that was never opened does nothing. */
#define KVC_PY_EMPTY \
  { 0 }

/* {status: exception class}, and the function that puts a message of the library in the words of Python.
 * kvc/errors.py sets them when the package is imported. */
static PyObject* kvc_py_errors = NULL;
static PyObject* kvc_py_translate = NULL;

/* What a caller's operator raised in the call that has just failed on this thread (operators.h). */
static __thread PyObject* kvc_py_thrown = NULL;

/* Raises the exception of a status with the message `text`; null: what a caller's operator raised, or the
 * library's last error message, in the words of Python. */
static void kvc_py_raise(kvc_status status, const char* text) {
  char message[512];
  PyObject *key, *kind, *value, *shown;
  if (text == NULL && kvc_py_thrown != NULL) {
    value = kvc_py_thrown;
    kvc_py_thrown = NULL;
    PyErr_SetObject((PyObject*)Py_TYPE(value), value);
    Py_DECREF(value);
    return;
  }
  /* This must come first: creating an object may run a finalizer that calls kvc on this thread. */
  if (text == NULL) {
    kvc_last_error_copy(message, sizeof message);
    shown = kvc_py_translate != NULL ? PyObject_CallFunction(kvc_py_translate, "s", message)
                                     : PyUnicode_FromString(message);
  } else {
    shown = PyUnicode_FromString(text);
  }
  if (shown == NULL) return;
  key = PyLong_FromLong(status);
  if (key == NULL) {
    Py_DECREF(shown);
    return;
  }
  kind = kvc_py_errors ? PyDict_GetItemWithError(kvc_py_errors, key) : NULL;
  if (kind == NULL && kvc_py_errors && !PyErr_Occurred()) {
    PyObject* base = PyLong_FromLong(0); /* kvc.Error, for a status without an exception of its own */
    kind = base ? PyDict_GetItemWithError(kvc_py_errors, base) : NULL;
    Py_XDECREF(base);
  }
  if (kind == NULL) kind = PyExc_RuntimeError;
  Py_INCREF(kind);
  value = kind == PyExc_RuntimeError ? PyObject_CallFunction(kind, "O", shown)
                                     : PyObject_CallFunction(kind, "OO", shown, key);
  if (value != NULL) PyErr_SetObject(kind, value);
  Py_XDECREF(value);
  Py_DECREF(kind);
  Py_DECREF(key);
  Py_DECREF(shown);
}

/* kvc_py_raise() with a format as PyUnicode_FromFormat() takes it. */
static void kvc_py_raise_format(kvc_status status, const char* format, ...) {
  va_list arguments;
  PyObject* text;
  const char* utf8;
  va_start(arguments, format);
  text = PyUnicode_FromFormatV(format, arguments);
  va_end(arguments);
  if (text == NULL) return;
  utf8 = PyUnicode_AsUTF8(text);
  if (utf8 != NULL) kvc_py_raise(status, utf8);
  Py_DECREF(text);
}

/* Converts any integer object (NumPy's too) to int32_t. It is argument `name`, or its entry `index` if
 * that is 0 or more. Returns 0 with an exception set if it fails. */
static int kvc_py_entry(PyObject* object, const char* name, Py_ssize_t index, int32_t* out) {
  PyObject* number = PyNumber_Index(object);
  long long value;
  int overflow = 0;
  char entry[80];
  if (number != NULL) {
    value = PyLong_AsLongLongAndOverflow(number, &overflow);
    if (!overflow && value >= INT32_MIN && value <= INT32_MAX) {
      Py_DECREF(number);
      *out = (int32_t)value;
      return 1;
    }
  }
  if (index < 0)
    PyOS_snprintf(entry, sizeof entry, "%s", name);
  else
    PyOS_snprintf(entry, sizeof entry, "%s[%zd]", name, index);
  if (number != NULL) {
    kvc_py_raise_format(KVC_E_INVALID_ARGUMENT, "%s %S is no integer of 32 bits", entry, number);
  } else if (PyErr_ExceptionMatches(PyExc_TypeError)) {
    PyErr_Format(PyExc_TypeError, "%s must be an integer, not %.100s", entry, Py_TYPE(object)->tp_name);
  }
  Py_XDECREF(number);
  return 0;
}

static int kvc_py_int32(PyObject* object, const char* name, int32_t* out) {
  return kvc_py_entry(object, name, -1, out);
}

/* ---- Lists of integers: positions, sequences ------------------------------------------------- */

#define KVC_PY_INTS_INSIDE 32

/* Integers, copied from a list or an array while the GIL is held: the library reads them more than
 * once, and another thread may write to the array in between. The batch of a decode step is small
 * enough to be copied without an allocation. */
typedef struct kvc_py_ints {
  int32_t* data;
  int32_t count;
  int32_t inside[KVC_PY_INTS_INSIDE];
} kvc_py_ints;

static void kvc_py_ints_close(kvc_py_ints* ints) {
  if (ints->data != ints->inside) free(ints->data); /* null if it was never opened */
  ints->data = NULL;
}

static int kvc_py_ints_reserve(kvc_py_ints* ints, Py_ssize_t count, const char* name) {
  if (count > INT32_MAX) {
    kvc_py_raise_format(KVC_E_INVALID_ARGUMENT, "%s has %zd entries, more than %d", name, count,
                        INT32_MAX);
    return 0;
  }
  ints->count = (int32_t)count;
  if (count > KVC_PY_INTS_INSIDE) ints->data = (int32_t*)malloc((size_t)count * sizeof(int32_t));
  if (ints->data == NULL) {
    PyErr_NoMemory();
    return 0;
  }
  return 1;
}

/* 'i' for a signed integer of 4 bytes, 'q' for one of 8, else 0. */
static char kvc_py_int_format(const Py_buffer* view) {
  const char* format = view->format ? view->format : "B";
  if (*format == '@' || *format == '=' || *format == '<') ++format;
  if (format[0] == '\0' || format[1] != '\0' || strchr("ilq", format[0]) == NULL) return 0;
  return view->itemsize == 4 ? 'i' : view->itemsize == 8 ? 'q' : 0;
}

/* Copies a one-dimensional integer buffer. Returns 1, 0 with an exception set, or -1 if the object is
 * not such a buffer. */
static int kvc_py_ints_from_buffer(kvc_py_ints* ints, PyObject* object, const char* name) {
  Py_buffer view;
  Py_ssize_t i, stride;
  char kind;
  if (!PyObject_CheckBuffer(object) ||
      PyObject_GetBuffer(object, &view, PyBUF_STRIDES | PyBUF_FORMAT) != 0) {
    PyErr_Clear();
    return -1;
  }
  kind = view.ndim == 1 ? kvc_py_int_format(&view) : 0;
  if (kind == 0) {
    PyBuffer_Release(&view);
    return -1;
  }
  stride = view.strides ? view.strides[0] : view.itemsize;
  if (!kvc_py_ints_reserve(ints, view.shape[0], name)) {
    PyBuffer_Release(&view);
    return 0;
  }
  for (i = 0; i < view.shape[0]; ++i) {
    const char* at = (const char*)view.buf + i * stride;
    int64_t value;
    if (kind == 'i') {
      int32_t narrow;
      memcpy(&narrow, at, sizeof narrow);
      value = narrow;
    } else {
      memcpy(&value, at, sizeof value);
    }
    if (value < INT32_MIN || value > INT32_MAX) {
      kvc_py_raise_format(KVC_E_INVALID_ARGUMENT, "%s[%zd] %lld is no integer of 32 bits", name, i,
                          (long long)value);
      PyBuffer_Release(&view);
      return 0;
    }
    ints->data[i] = (int32_t)value;
  }
  PyBuffer_Release(&view);
  return 1;
}

/* Copies any sequence of integers. If `expected` >= 0 it must have that many entries, as the argument
 * named `beside` has, or be one integer, which is then repeated. Returns 0 with an exception set if it
 * fails. */
static int kvc_py_ints_open(kvc_py_ints* ints, PyObject* object, const char* name, int32_t expected,
                            const char* beside) {
  int taken;
  ints->data = ints->inside;
  ints->count = 0;
  if (expected >= 0 && PyIndex_Check(object) && !PySequence_Check(object)) {
    int32_t value, i;
    if (!kvc_py_int32(object, name, &value) || !kvc_py_ints_reserve(ints, expected, name)) return 0;
    for (i = 0; i < expected; ++i) ints->data[i] = value;
    return 1;
  }
  taken = kvc_py_ints_from_buffer(ints, object, name);
  if (taken == 0) return 0;
  if (taken < 0) {
    Py_ssize_t i;
    PyObject* items = PySequence_Tuple(object); /* an entry's __index__() may shrink the list */
    if (items == NULL) {
      if (!PyErr_ExceptionMatches(PyExc_TypeError)) return 0;
      PyErr_Format(PyExc_TypeError, "%s must be a list or array of integers%s, not %.100s", name,
                   expected >= 0 ? ", or one integer for all" : "", Py_TYPE(object)->tp_name);
      return 0;
    }
    taken = kvc_py_ints_reserve(ints, PyTuple_GET_SIZE(items), name);
    for (i = 0; taken && i < ints->count; ++i) {
      taken = kvc_py_entry(PyTuple_GET_ITEM(items, i), name, i, &ints->data[i]);
    }
    Py_DECREF(items);
    if (!taken) return 0;
  }
  if (expected >= 0 && ints->count != expected) {
    kvc_py_raise_format(KVC_E_INVALID_ARGUMENT, "%s has %d entries, but %s has %d", name,
                        (int)ints->count, beside, (int)expected);
    return 0;
  }
  return 1;
}

#endif
