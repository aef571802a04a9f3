/* Operators of attention as Python objects, and callers' operators that are written in Python. Included by the generated
 * wrapper.
 *
 * A caller's operator is an object of kvc/operator_calls.py, which the library holds as `user`. Its functions run on the thread of
 * the call that needs it, with the GIL. The wrapper of such a call keeps a frame (KVC_PY_RUNS_PYTHON in kvc_capi.i): the arguments
 * of the call, which own the memory of its tensors, and the exception that the operator raised, which the call then raises. */
#ifndef KVC_PYTHON_OPERATORS_H
#define KVC_PYTHON_OPERATORS_H

#include <kvc/kvc.h>

#include "arrays.h"
#include "handles.h"

#define KVC_PY_OPERATOR "kvc_operator"
#define KVC_PY_CALL "kvc_operator_call"

/* ---- Handles ------------------------------------------------------------------------------------ */

static void kvc_py_operator_gone(PyObject* capsule) {
  kvc_operator* op = (kvc_operator*)PyCapsule_GetPointer(capsule, KVC_PY_OPERATOR);
  /* No call on this operator is running: it would hold a reference. */
  Py_BEGIN_ALLOW_THREADS
  kvc_operator_destroy(op);
  Py_END_ALLOW_THREADS
}

static PyObject* kvc_py_operator_new(kvc_operator* op) {
  PyObject* capsule = PyCapsule_New(op, KVC_PY_OPERATOR, kvc_py_operator_gone);
  if (capsule == NULL) kvc_operator_destroy(op);
  return capsule;
}

/* None stands for no operator. Returns 0 with an exception set if it fails. */
static int kvc_py_operator_open(PyObject* object, kvc_operator** out) {
  *out = NULL;
  if (object == Py_None) return 1;
  *out = (kvc_operator*)PyCapsule_GetPointer(object, KVC_PY_OPERATOR);
  return *out != NULL;
}

/* ---- A call that may run Python ----------------------------------------------------------------- */

typedef struct kvc_py_frame {
  PyObject** arguments;
  Py_ssize_t count;
  PyObject* thrown;
  struct kvc_py_frame* outer;
} kvc_py_frame;

static __thread kvc_py_frame* kvc_py_innermost = NULL;

static void kvc_py_frame_open(kvc_py_frame* frame, PyObject** arguments, size_t count) {
  frame->arguments = arguments;
  frame->count = (Py_ssize_t)count;
  frame->thrown = NULL;
  frame->outer = kvc_py_innermost;
  kvc_py_innermost = frame;
}

/* If the call failed, kvc_py_raise() raises what the operator raised. */
static void kvc_py_frame_close(kvc_py_frame* frame, kvc_status status) {
  kvc_py_innermost = frame->outer;
  if (status != KVC_OK)
    Py_XSETREF(kvc_py_thrown, frame->thrown);
  else
    Py_XDECREF(frame->thrown);
}

/* Keeps the exception that is set. Its status poisons nothing. */
static kvc_status kvc_py_throw(void) {
  PyObject *kind, *value, *traceback;
  PyErr_Fetch(&kind, &value, &traceback);
  PyErr_NormalizeException(&kind, &value, &traceback);
  if (traceback != NULL) PyException_SetTraceback(value, traceback);
  Py_XDECREF(traceback);
  Py_DECREF(kind);
  if (kvc_py_innermost == NULL) { /* a program that is not this package made the call */
    PyErr_SetObject((PyObject*)Py_TYPE(value), value);
    PyErr_WriteUnraisable(NULL);
    Py_DECREF(value);
  } else {
    Py_XSETREF(kvc_py_innermost->thrown, value);
  }
  return KVC_E_INVALID_ARGUMENT;
}

/* ---- What an operator's functions are given ----------------------------------------------------- */

/* Puts a new reference into the dict, unless an earlier one failed. */
static void kvc_py_set(PyObject* fields, const char* name, PyObject* value) {
  if (value == NULL) return;
  if (!PyErr_Occurred()) PyDict_SetItemString(fields, name, value);
  Py_DECREF(value);
}

static void kvc_py_set_int(PyObject* fields, const char* name, int64_t value) {
  kvc_py_set(fields, name, PyLong_FromLongLong(value));
}

static void kvc_py_set_float(PyObject* fields, const char* name, double value) {
  kvc_py_set(fields, name, PyFloat_FromDouble(value));
}

static void kvc_py_set_bytes(PyObject* fields, const char* name, const void* data, size_t bytes) {
  if (data == NULL) {
    Py_INCREF(Py_None);
    kvc_py_set(fields, name, Py_None);
  } else {
    kvc_py_set(fields, name, PyBytes_FromStringAndSize((const char*)data, (Py_ssize_t)bytes));
  }
}

static void kvc_py_set_tensor(PyObject* fields, const char* name, const kvc_tensor* tensor) {
  if (tensor == NULL)
    kvc_py_set_bytes(fields, name, NULL, 0);
  else
    kvc_py_set(fields, name, kvc_py_describe(tensor));
}

/* All fields of a call by name: numbers, copies of arrays as bytes, descriptions of tensors. */
static PyObject* kvc_py_call_fields(const kvc_operator_call* call) {
  PyObject* fields = PyDict_New();
  const size_t heads = (size_t)call->n_q_heads * sizeof(float);
  const size_t tokens = (size_t)call->n_tokens * sizeof(int32_t);
  if (fields == NULL) return NULL;
  kvc_py_set_int(fields, "mode", call->mode);
  kvc_py_set_int(fields, "features", call->features);
  kvc_py_set_int(fields, "layer", call->layer);
  kvc_py_set_int(fields, "n_tokens", call->n_tokens);
  kvc_py_set_int(fields, "n_q_heads", call->n_q_heads);
  kvc_py_set_int(fields, "n_kv_heads", call->n_kv_heads);
  kvc_py_set_int(fields, "batch", call->batch);
  kvc_py_set_int(fields, "block_q", call->block_q);
  kvc_py_set_int(fields, "block_k", call->block_k);
  kvc_py_set_int(fields, "block_b", call->block_b);
  kvc_py_set_int(fields, "stretches", call->stretches);
  kvc_py_set(fields, "dropout_seed", PyLong_FromUnsignedLongLong(call->dropout_seed));
  kvc_py_set_float(fields, "scale", call->scale);
  kvc_py_set_float(fields, "softcap", call->softcap);
  kvc_py_set_float(fields, "dropout_prob", call->dropout_prob);
  kvc_py_set_float(fields, "keep_factor", call->keep_factor);
  kvc_py_set_bytes(fields, "slopes", call->slopes, heads);
  kvc_py_set_bytes(fields, "sinks", call->sinks, heads);
  kvc_py_set_bytes(fields, "positions", call->position, tokens);
  kvc_py_set_bytes(fields, "sequences", call->sequence, tokens);
  kvc_py_set_tensor(fields, "q", call->q);
  kvc_py_set_tensor(fields, "k", call->k);
  kvc_py_set_tensor(fields, "k_scales", call->k_scales);
  kvc_py_set_tensor(fields, "v", call->v);
  kvc_py_set_tensor(fields, "v_scales", call->v_scales);
  kvc_py_set_tensor(fields, "bias", call->bias);
  kvc_py_set_tensor(fields, "mask", call->mask);
  kvc_py_set_tensor(fields, "out", call->out);
  kvc_py_set_tensor(fields, "lse", call->lse);
  kvc_py_set_tensor(fields, "weights", call->weights);
  if (PyErr_Occurred()) Py_CLEAR(fields);
  return fields;
}

/* The arguments of the call that runs, which own the memory of its tensors. */
static PyObject* kvc_py_owners(void) {
  const kvc_py_frame* frame = kvc_py_innermost;
  PyObject* owners = PyTuple_New(frame != NULL ? frame->count : 0);
  Py_ssize_t i;
  for (i = 0; owners != NULL && frame != NULL && i < frame->count; ++i) {
    PyObject* each = frame->arguments[i] != NULL ? frame->arguments[i] : Py_None;
    Py_INCREF(each);
    PyTuple_SET_ITEM(owners, i, each);
  }
  return owners;
}

/* ---- The functions ------------------------------------------------------------------------------ */

static kvc_status kvc_py_run_operator(void* user, const kvc_operator_call* call) {
  const PyGILState_STATE gil = PyGILState_Ensure();
  PyObject* fields = kvc_py_call_fields(call);
  PyObject* owners = fields ? kvc_py_owners() : NULL;
  PyObject* capsule = owners ? PyCapsule_New((void*)call, KVC_PY_CALL, NULL) : NULL;
  PyObject* result =
      capsule ? PyObject_CallMethod((PyObject*)user, "run", "OOO", capsule, owners, fields) : NULL;
  const kvc_status status = result != NULL ? KVC_OK : kvc_py_throw();
  if (capsule != NULL) PyCapsule_SetName(capsule, "ended"); /* whoever kept it reaches nothing */
  Py_XDECREF(result);
  Py_XDECREF(capsule);
  Py_XDECREF(owners);
  Py_XDECREF(fields);
  PyGILState_Release(gil);
  return status;
}

static kvc_status kvc_py_asks_operator(void* user, const kvc_operator_needs* needs) {
  const PyGILState_STATE gil = PyGILState_Ensure();
  PyObject* answer = PyObject_CallMethod(
      (PyObject*)user, "supports", "IIIIiiiiII", needs->mode, needs->features, needs->dtype_k,
      needs->dtype_v, needs->n_q_heads, needs->n_kv_heads, needs->head_dim_k, needs->head_dim_v,
      needs->runtime_dtype, needs->softmax_dtype);
  const int is_true = answer != NULL ? PyObject_IsTrue(answer) : -1;
  const kvc_status status = is_true < 0 ? kvc_py_throw() : is_true ? KVC_OK : KVC_E_NOT_SUPPORTED;
  Py_XDECREF(answer);
  PyGILState_Release(gil);
  return status;
}

static void kvc_py_release_operator(void* user) {
  PyGILState_STATE gil;
  if (!Py_IsInitialized()) return; /* the interpreter has already destroyed the object */
  gil = PyGILState_Ensure();
  Py_DECREF((PyObject*)user);
  PyGILState_Release(gil);
}

/* kvc_operator_register() of an object of kvc/operator_calls.py. */
static kvc_status kvc_py_operator_register(kvc_device* device, const char* names, uint32_t flags,
                                           const kvc_operator_info* info, PyObject* implementation,
                                           int32_t asks) {
  const kvc_operator_functions functions = {.struct_size = sizeof functions,
                                            .supports = asks ? kvc_py_asks_operator : NULL,
                                            .forward_native = kvc_py_run_operator,
                                            .release = kvc_py_release_operator};
  kvc_status status;
  Py_INCREF(implementation);
  status = kvc_operator_register(device, names, flags, info, &functions, implementation);
  if (status != KVC_OK) Py_DECREF(implementation); /* it is not released then */
  return status;
}

/* kvc_operator_forward() with the tensors of its extra as arguments. */
static kvc_status kvc_py_operator_forward(kvc_operator* op, const kvc_forward_desc* desc,
                                          const kvc_tensor* q, const kvc_tensor* k,
                                          const kvc_tensor* v, kvc_tensor* out,
                                          const float* alibi_slopes, const float* sinks,
                                          const kvc_tensor* bias, const kvc_tensor* mask,
                                          kvc_tensor* weights, kvc_tensor* lse) {
  const kvc_attention_extra extra = {
      .struct_size = sizeof extra, .bias = bias, .mask = mask, .weights = weights, .lse = lse};
  return kvc_operator_forward(op, desc, q, k, v, alibi_slopes, sinks, &extra, out);
}

#endif
