/* The SWIG interface: module kvc_capi inside package kvc, generated from the C headers themselves.
 *
 * Every function keeps its C name and order of arguments, except that a failing status raises an
 * exception, output arguments are returned, arrays are read through the buffer protocol,
 * __array_interface__ or DLPack (arrays.h), a list of integers replaces its pointer and its count
 * (support.h), and a cache is a capsule (handles.h). The calls that may take longer than reacquiring
 * the GIL release it (-threads, and the list further down); all others keep it. Only the package's
 * own modules use this module: SWIG's proxy objects never reach a caller. */
%module(package="kvc") kvc_capi

%{
#include "arrays.h"
#include "calls.h"
#include "handles.h"
#include "operators.h"

/* How the wrapper reads an array: (address, shape, strides in bytes, dtype). */
static PyObject *kvc_py_describe_array(const kvc_tensor *described) {
  return kvc_py_describe(described);
}
static PyObject *kvc_py_describe_values(const kvc_tensor *values) {
  return kvc_py_describe(values);
}
static PyObject *kvc_py_describe_codes(const kvc_tensor *codes) {
  return kvc_py_describe(codes);
}
static PyObject *kvc_py_describe_elements(const kvc_tensor *in) {
  return kvc_py_describe(in);
}

static void kvc_py_set_errors(PyObject *errors, PyObject *translate) {
  Py_INCREF(errors);
  Py_XSETREF(kvc_py_errors, errors);
  Py_INCREF(translate);
  Py_XSETREF(kvc_py_translate, translate);
}
%}

%include <stdint.i>
%include <cstring.i>

/* ---- Statuses and numbers -------------------------------------------------------------------- */

%typemap(out) kvc_status {
  if ($1 != KVC_OK) {
    kvc_py_raise($1, NULL);
    SWIG_fail;
  }
  $result = SWIG_Py_Void();
}
%typemap(in) int32_t {
  if (!kvc_py_int32($input, "$1_name", &$1)) SWIG_fail;
}
%typemap(in, numinputs=0) int32_t *best (int32_t value = 0), int32_t *got (int32_t value = 0),
                          int32_t *n (int32_t value = 0), int32_t *first_cell (int32_t value = 0),
                          int32_t *n_cells (int32_t value = 0), int32_t *position (int32_t value = 0),
                          int32_t *length (int32_t value = 0), int32_t *n_rows (int32_t value = 0)
  "$1 = &value;"
%typemap(argout) int32_t *best, int32_t *got, int32_t *n, int32_t *first_cell, int32_t *n_cells,
                 int32_t *position, int32_t *length, int32_t *n_rows {
  $result = SWIG_Python_AppendOutput($result, PyLong_FromLong(*$1));
}
%typemap(in, numinputs=0) uint64_t *out_bytes (uint64_t value = 0) "$1 = &value;"
%typemap(argout) uint64_t *out_bytes {
  $result = SWIG_Python_AppendOutput($result, PyLong_FromUnsignedLongLong(*$1));
}
%typemap(in, numinputs=0) uint64_t out[2] (uint64_t value[2]) "$1 = value;"
%typemap(argout) uint64_t out[2] {
  $result = SWIG_Python_AppendOutput(
      $result, Py_BuildValue("KK", (unsigned long long)$1[0], (unsigned long long)$1[1]));
}
/* The argument of kvc_status_name() is any number, not the status of a call. */
%typemap(in) kvc_status status {
  if (!kvc_py_int32($input, "status", &$1)) SWIG_fail;
}

/* Streams and functions of C are their addresses; None: null. */
%typemap(in) void *stream, void *user, void *alloc, void *release {
  $1 = $input == Py_None ? NULL : PyLong_AsVoidPtr($input);
  if (PyErr_Occurred()) SWIG_fail;
}

/* ---- Handles --------------------------------------------------------------------------------- */

%typemap(in) kvc_cache *cache {
  if (!kvc_py_cache_open($input, &$1)) SWIG_fail;
}
%typemap(in) const kvc_cache *cache (kvc_cache *handle), const kvc_cache *other (kvc_cache *handle) {
  if (!kvc_py_cache_open($input, &handle)) SWIG_fail;
  $1 = handle;
}
%typemap(in, numinputs=0) kvc_cache **out (kvc_cache *handle = NULL),
                          kvc_device **out (kvc_device *handle = NULL)
  "$1 = &handle;"
%typemap(argout) kvc_cache **out {
  $result = SWIG_Python_AppendOutput($result, kvc_py_cache_new(*$1));
}
%typemap(argout) kvc_device **out {
  $result = SWIG_Python_AppendOutput($result, SWIG_NewPointerObj(*$1, $*1_descriptor, 0));
}

%typemap(in) kvc_operator *op {
  if (!kvc_py_operator_open($input, &$1)) SWIG_fail;
}
%typemap(in) const kvc_operator *op (kvc_operator *handle) {
  if (!kvc_py_operator_open($input, &handle)) SWIG_fail;
  $1 = handle;
}
%typemap(in, numinputs=0) kvc_operator **out (kvc_operator *handle = NULL) "$1 = &handle;"
%typemap(argout) kvc_operator **out {
  $result = SWIG_Python_AppendOutput($result, kvc_py_operator_new(*$1));
}
%typemap(in) const kvc_operator_call *call {
  $1 = (kvc_operator_call *)PyCapsule_GetPointer($input, KVC_PY_CALL);
  if ($1 == NULL) SWIG_fail;
}

/* Children as a list of caches; it keeps them alive during the call. */
%typemap(in) (kvc_cache *const *children, int32_t n_children) (kvc_cache **list = NULL) {
  const Py_ssize_t n = PyList_Size($input);
  if (n < 0 || n > INT32_MAX) SWIG_fail;
  list = (kvc_cache **)calloc(n ? (size_t)n : 1, sizeof *list);
  if (list == NULL) {
    PyErr_NoMemory();
    SWIG_fail;
  }
  for (Py_ssize_t i = 0; i < n; ++i) {
    if (!kvc_py_cache_open(PyList_GET_ITEM($input, i), &list[i])) SWIG_fail;
  }
  $1 = list;
  $2 = (int32_t)n;
}
%typemap(freearg) (kvc_cache *const *children, int32_t n_children) "free(list$argnum);"

/* ---- Lists of integers ----------------------------------------------------------------------- */

/* Count and list are one argument, which the package names NAME. KVC_PY_EMPTY is required: after a failure SWIG frees every
 * argument, opened or not. */
%define KVC_COUNTED(COUNT, LIST, NAME)
%typemap(in) (int32_t COUNT, const int32_t *LIST) (kvc_py_ints ints = KVC_PY_EMPTY) {
  if (!kvc_py_ints_open(&ints, $input, NAME, -1, NULL)) SWIG_fail;
  $1 = ints.count;
  $2 = ints.data;
}
%typemap(freearg) (int32_t COUNT, const int32_t *LIST) "kvc_py_ints_close(&ints$argnum);"
%enddef

/* A list of the same length as the counted one, which is argument 2 of every such function. */
%define KVC_BESIDE(TYPE, LIST, NAME, BESIDE)
%typemap(in) const TYPE *LIST (kvc_py_ints ints = KVC_PY_EMPTY) {
  if ($input != Py_None) {
    if (!kvc_py_ints_open(&ints, $input, NAME, arg2, BESIDE)) SWIG_fail;
    $1 = (TYPE *)ints.data;
  }
}
%typemap(freearg) const TYPE *LIST "kvc_py_ints_close(&ints$argnum);"
%enddef

KVC_COUNTED(n_tokens, position, "positions")
KVC_COUNTED(n_except, except, "sees_later")
KVC_COUNTED(n_sequences, sequence, "sequences")
KVC_COUNTED(n, dst, "dst")
KVC_COUNTED(n_layers, child_of_layer, "layers")
KVC_COUNTED(n_numbers, layer_in_child, "layers")
KVC_BESIDE(int32_t, sequence, "sequences", "positions")
KVC_BESIDE(int32_t, keep, "keep", "sequences")
KVC_BESIDE(int32_t, src, "src", "dst")
KVC_BESIDE(uint32_t, token_flags, "token_flags", "positions")

/* Records of int32 are written into an array of int32 [capacity, …]; with None only their number is
 * returned. */
%define KVC_RECORDS(TYPE, LIST)
%typemap(in) (int32_t capacity, TYPE *LIST) (Py_buffer view = KVC_PY_EMPTY) {
  $1 = 0;
  $2 = NULL;
  if ($input != Py_None) {
    if (PyObject_GetBuffer($input, &view, PyBUF_WRITABLE) != 0) SWIG_fail;
    $1 = (int32_t)(view.len / (Py_ssize_t)sizeof(TYPE));
    $2 = (TYPE *)view.buf;
  }
}
%typemap(freearg) (int32_t capacity, TYPE *LIST)
  "if (view$argnum.obj) PyBuffer_Release(&view$argnum);"
%enddef

KVC_RECORDS(kvc_run, runs)
KVC_RECORDS(kvc_state_sequence, sequences)
KVC_RECORDS(int32_t, slot)
KVC_RECORDS(int32_t, at)

/* Arrays of int32 or float32 whose length and order the Python code has checked, or None. Those that are
 * read are the package's own: no other thread writes to them. */
%define KVC_NUMBERS(TYPE, DECLARATION, FLAGS)
%typemap(in) DECLARATION (Py_buffer view = KVC_PY_EMPTY) {
  if ($input != Py_None) {
    if (PyObject_GetBuffer($input, &view, FLAGS) != 0) SWIG_fail;
    $1 = (TYPE *)view.buf;
  }
}
%typemap(freearg) DECLARATION "if (view$argnum.obj) PyBuffer_Release(&view$argnum);"
%enddef

KVC_NUMBERS(int32_t, int32_t *order, PyBUF_WRITABLE)
KVC_NUMBERS(float, const float *, PyBUF_C_CONTIGUOUS)

/* ---- Tensors --------------------------------------------------------------------------------- */

/* TAKES are the element types, WRITTEN is 1 if the call writes to the array. The first argument of a call is its cache,
 * if it has one. */
%define KVC_ARRAY(DECLARATION, NAME, TAKES, WRITTEN)
%typemap(in) DECLARATION (kvc_py_array array = KVC_PY_EMPTY) {
  const kvc_py_argument argument = {$input, NAME, TAKES, WRITTEN, 0, kvc_py_gpu_of(swig_obj[0])};
  if (!kvc_py_array_open(&array, argument)) SWIG_fail;
  $1 = &array.tensor;
}
%typemap(freearg) DECLARATION "kvc_py_array_close(&array$argnum);"
%enddef

/* None stands for an array that the call does not need. */
%define KVC_OPTIONAL_ARRAY(DECLARATION, NAME, TAKES, WRITTEN)
%typemap(in) DECLARATION (kvc_py_array array = KVC_PY_EMPTY) {
  if ($input != Py_None) {
    const kvc_py_argument argument = {$input, NAME, TAKES, WRITTEN, 0, kvc_py_gpu_of(swig_obj[0])};
    if (!kvc_py_array_open(&array, argument)) SWIG_fail;
    $1 = &array.tensor;
  }
}
%typemap(freearg) DECLARATION "kvc_py_array_close(&array$argnum);"
%enddef

KVC_ARRAY(const kvc_tensor *described, "q", KVC_PY_ANY, 0)
KVC_ARRAY(const kvc_tensor *k, "k", KVC_PY_FLOATS, 0)
KVC_OPTIONAL_ARRAY(const kvc_tensor *v, "v", KVC_PY_FLOATS, 0) /* of a cache whose V is a part of K */
KVC_ARRAY(const kvc_tensor *q, "q", KVC_PY_FLOATS, 0)
KVC_ARRAY(kvc_tensor *out, "out", KVC_PY_FLOATS, 1)
KVC_ARRAY(kvc_tensor *into, "into", KVC_PY_MASK, 1)
KVC_OPTIONAL_ARRAY(const kvc_tensor *bias, "bias", KVC_PY_FLOATS, 0)
KVC_OPTIONAL_ARRAY(const kvc_tensor *mask, "mask", KVC_PY_BOOL, 0)
KVC_OPTIONAL_ARRAY(kvc_tensor *weights, "weights", KVC_PY_FLOAT32, 1)
KVC_OPTIONAL_ARRAY(kvc_tensor *lse, "lse", KVC_PY_FLOAT32, 1)
KVC_OPTIONAL_ARRAY(kvc_tensor *k, "k", KVC_PY_FLOATS, 1)
KVC_OPTIONAL_ARRAY(kvc_tensor *v, "v", KVC_PY_FLOATS, 1)

%typemap(in, numinputs=0) kvc_tensor *VIEW (kvc_tensor view),
                          kvc_tensor *SECOND_VIEW (kvc_tensor view) "$1 = &view;"
%typemap(argout) kvc_tensor *VIEW, kvc_tensor *SECOND_VIEW {
  $result = SWIG_Python_AppendOutput($result, kvc_py_describe($1));
}
%typemap(in, numinputs=0) kvc_tensor VIEWS[ANY] (kvc_tensor views[$1_dim0]) "$1 = views;"
%typemap(argout) kvc_tensor VIEWS[ANY] {
  $result = kvc_py_describe_all($1, $1_dim0);
}

/* ---- What is left out and renamed -------------------------------------------------------------- */

%ignore kvc_tensor;        /* the typemaps make tensors */
%ignore kvc_tensor_dense;
%ignore kvc_allocator;     /* its callbacks would need the GIL at arbitrary points */
%ignore kvc_bind_shift;    /* likewise */
%ignore kvc_device_desc::device_allocator;
%ignore kvc_device_open;
%ignore kvc_attention_extra;
%ignore kvc_attention;     /* the functions above, renamed below, replace these */
%ignore kvc_put_attention;
%ignore kvc_get;
%ignore kvc_get_codes;
%ignore kvc_rows_view;
%ignore kvc_rows_fill;
%ignore kvc_lightning_write;
%ignore kvc_gather;
%ignore kvc_run;
%ignore kvc_state_view;
%ignore kvc_state_sequence;
%ignore kvc_cache_wrap;
%ignore kvc_operator_destroy; /* the capsule of the operator does it */
%ignore kvc_operator_call;
%ignore kvc_operator_functions;
%ignore kvc_operator_register;
%ignore kvc_operator_forward;
%ignore kvc_call_positions;
%ignore kvc_cache_child; /* the package keeps the children itself */

%cstring_output_maxsize(char *buffer, size_t capacity);

/* ---- Who releases the GIL -------------------------------------------------------------------- */

/* Only calls that work on keys and values or on any number of tokens, map memory, or wait for threads
 * or for a lock. All others keep the GIL, constructors and fields of descriptors included. */
%nothreadallow;
%threadallow kvc_py_device_open;
%threadallow kvc_device_close;
%threadallow kvc_device_synchronize;
%threadallow kvc_cache_create;
%threadallow kvc_cache_destroy;
%threadallow kvc_begin;
%threadallow kvc_fits;
%threadallow kvc_put;
%threadallow kvc_py_attention;
%threadallow kvc_py_put_attention;
%threadallow kvc_commit;
%threadallow kvc_commit_prefix;
%threadallow kvc_abort;
%threadallow kvc_resume;
%threadallow kvc_copy_prefix;
%threadallow kvc_reorder;
%threadallow kvc_remove;
%threadallow kvc_can_remove;
%threadallow kvc_py_get;
%threadallow kvc_py_get_codes;
%threadallow kvc_get_copy;
%threadallow kvc_py_copy_shape;
%threadallow kvc_put_codes;
%threadallow kvc_encode;
%threadallow kvc_decode;
%threadallow kvc_mask;
%threadallow kvc_py_gather;
%threadallow kvc_runs;
%threadallow kvc_state_digest;
%threadallow kvc_check;
%threadallow kvc_encoder_put;
%threadallow kvc_state_layout;
%threadallow kvc_state_get;
%threadallow kvc_state_put;
%threadallow kvc_state_conv;
%threadallow kvc_state_slots;
%threadallow kvc_state_gather;
%threadallow kvc_checkpoint_take;
%threadallow kvc_begin_rows;
%threadallow kvc_fits_rows;
%threadallow kvc_rows_set;
%threadallow kvc_insert;
%threadallow kvc_py_rows_fill;
%threadallow kvc_lightning_read;
%threadallow kvc_operator_create;
%threadallow kvc_py_operator_forward;
%threadallow kvc_merge_attention;
%threadallow kvc_apply_sinks;
%threadallow kvc_repeat_kv_heads;
%threadallow kvc_dropout_mask;
%threadallow kvc_padding;
%threadallow kvc_py_lightning_write;

/* ---- Which calls may run a caller's operator --------------------------------------------------------- */

%define KVC_PY_RUNS_PYTHON(CALL)
%exception CALL {
  kvc_py_frame frame;
  kvc_py_frame_open(&frame, swig_obj, sizeof swig_obj / sizeof *swig_obj);
  $action
  kvc_py_frame_close(&frame, result);
}
%enddef
KVC_PY_RUNS_PYTHON(kvc_py_attention)
KVC_PY_RUNS_PYTHON(kvc_py_put_attention)
KVC_PY_RUNS_PYTHON(kvc_py_operator_forward)
KVC_PY_RUNS_PYTHON(kvc_operator_create)
KVC_PY_RUNS_PYTHON(kvc_operator_supports)
KVC_PY_RUNS_PYTHON(kvc_bind_operator)
KVC_PY_RUNS_PYTHON(kvc_bind_attention)

/* Constructors set struct_size, and every other field to zero. */
%define KVC_SIZED(STRUCT)
%extend STRUCT {
  STRUCT() {
    struct STRUCT *self = (struct STRUCT *)calloc(1, sizeof(struct STRUCT));
    if (self != NULL) self->struct_size = sizeof(struct STRUCT);
    return self;
  }
}
%enddef
KVC_SIZED(kvc_device_desc)
KVC_SIZED(kvc_cache_desc)
KVC_SIZED(kvc_causal_desc)
KVC_SIZED(kvc_encoder_desc)
KVC_SIZED(kvc_recurrent_desc)
KVC_SIZED(kvc_transformer_desc)
KVC_SIZED(kvc_lightning_desc)
KVC_SIZED(kvc_metadata)
KVC_SIZED(kvc_operator_info)
KVC_SIZED(kvc_operator_needs)
KVC_SIZED(kvc_operator_desc)
KVC_SIZED(kvc_forward_desc)
KVC_SIZED(kvc_attention_desc)
KVC_SIZED(kvc_rope_desc)
KVC_SIZED(kvc_sequence_info)
KVC_SIZED(kvc_stats)
KVC_SIZED(kvc_storage_info)
KVC_SIZED(kvc_codec_desc)

%constant int32_t KVC_SEQ_END = INT32_MAX; /* SWIG cannot evaluate the macro */

%include "kvc/base.h"
%include "kvc/device.h"
%include "kvc/cache.h"
%include "kvc/attention.h"
%include "kvc/encoder.h"

KVC_ARRAY(kvc_tensor *o, "o", KVC_PY_FLOATS, 1)
KVC_ARRAY(const kvc_tensor *o2, "o2", KVC_PY_FLOATS, 0)
KVC_ARRAY(const kvc_tensor *lse, "lse", KVC_PY_FLOAT32, 0)
KVC_ARRAY(const kvc_tensor *lse2, "lse2", KVC_PY_FLOAT32, 0)
KVC_ARRAY(const kvc_tensor *in, "x", KVC_PY_ELEMENTS, 0)
KVC_NUMBERS(int32_t, const int32_t *q_position, PyBUF_C_CONTIGUOUS)
KVC_NUMBERS(int32_t, const int32_t *k_position, PyBUF_C_CONTIGUOUS)
%typemap(in, numinputs=0) uint32_t *mode (uint32_t value = 0) "$1 = &value;"
%typemap(argout) uint32_t *mode {
  $result = SWIG_Python_AppendOutput($result, PyLong_FromUnsignedLong(*$1));
}
%cstring_bounded_output(char *chosen, 32);

/* Until here and from here, `out` is a result and `into` a mask. */
KVC_ARRAY(kvc_tensor *out, "out", KVC_PY_ELEMENTS, 1)
%include "kvc/operators.h"
KVC_ARRAY(kvc_tensor *out, "out", KVC_PY_FLOATS, 1)

/* Until here, `into` is a mask. */
KVC_ARRAY(kvc_tensor *into, "into", KVC_PY_FLOATS, 1)
KVC_ARRAY(const kvc_tensor *from, "states", KVC_PY_FLOATS, 0)
KVC_ARRAY(const kvc_tensor *x, "x", KVC_PY_FLOATS, 0)
%include "kvc/recurrent.h"
%include "kvc/wrapper.h"

KVC_NUMBERS(int32_t, const int32_t *valid, PyBUF_C_CONTIGUOUS)
KVC_NUMBERS(int32_t, const int32_t *token_types, PyBUF_C_CONTIGUOUS)
KVC_NUMBERS(int32_t, const int32_t *index, PyBUF_C_CONTIGUOUS)
KVC_NUMBERS(int32_t, const int32_t *starts, PyBUF_C_CONTIGUOUS)
KVC_NUMBERS(int32_t, int32_t *index, PyBUF_WRITABLE)
KVC_NUMBERS(int32_t, int32_t *starts, PyBUF_WRITABLE)
KVC_OPTIONAL_ARRAY(const kvc_tensor *attention_mask, "attention_mask", KVC_PY_BOOL, 0)
%include "kvc/rows.h"

KVC_NUMBERS(float, float *out, PyBUF_WRITABLE)
KVC_ARRAY(kvc_tensor *state, "into", KVC_PY_FLOAT32, 1)
KVC_ARRAY(const kvc_tensor *states, "states", KVC_PY_FLOAT32, 0)
%include "kvc/lightning.h"

/* Until here, k and v are numbers. */
KVC_ARRAY(const kvc_tensor *values, "values", KVC_PY_NUMBERS, 0)
KVC_ARRAY(kvc_tensor *values, "values", KVC_PY_NUMBERS, 1)
KVC_ARRAY(const kvc_tensor *codes, "codes", KVC_PY_CODES, 0)
KVC_ARRAY(kvc_tensor *codes, "codes", KVC_PY_CODES, 1)
KVC_OPTIONAL_ARRAY(const kvc_tensor *scales, "scales", KVC_PY_CODES, 0)
KVC_OPTIONAL_ARRAY(kvc_tensor *scales, "scales", KVC_PY_CODES, 1)
KVC_ARRAY(const kvc_tensor *k, "k", KVC_PY_CODES, 0)
KVC_OPTIONAL_ARRAY(const kvc_tensor *v, "v", KVC_PY_CODES, 0)
KVC_OPTIONAL_ARRAY(const kvc_tensor *k_scales, "k_scales", KVC_PY_CODES, 0)
KVC_OPTIONAL_ARRAY(const kvc_tensor *v_scales, "v_scales", KVC_PY_CODES, 0)
%include "kvc/storage.h"

%include "kvc/transformer.h"

KVC_NUMBERS(int32_t, const int32_t *token_ids, PyBUF_C_CONTIGUOUS)
KVC_NUMBERS(int32_t, int32_t *ends, PyBUF_WRITABLE)
%typemap(in, numinputs=0) size_t *length "$1 = NULL;"
%typemap(in) (const char *text, size_t length) {
  char *bytes;
  Py_ssize_t n;
  if (PyBytes_AsStringAndSize($input, &bytes, &n) != 0) SWIG_fail;
  $1 = bytes;
  $2 = (size_t)n;
}
%include "kvc/metadata.h"
KVC_ARRAY(const kvc_tensor *k, "k", KVC_PY_FLOATS, 0)
KVC_OPTIONAL_ARRAY(const kvc_tensor *v, "v", KVC_PY_FLOATS, 0)

%rename(kvc_attention) kvc_py_attention;
%rename(kvc_put_attention) kvc_py_put_attention;
%rename(kvc_get) kvc_py_get;
%rename(kvc_get_codes) kvc_py_get_codes;
%rename(kvc_operator_forward) kvc_py_operator_forward;
%rename(kvc_operator_register) kvc_py_operator_register;
%rename(kvc_call_positions) kvc_py_call_positions;
%rename(kvc_rows_view) kvc_py_rows_view;
%rename(kvc_rows_fill) kvc_py_rows_fill;
%rename(kvc_lightning_write) kvc_py_lightning_write;
%rename(kvc_lightning_shape) kvc_py_lightning_shape;
%rename(kvc_copy_shape) kvc_py_copy_shape;
%rename(kvc_gather) kvc_py_gather;
%rename(kvc_mask_shape) kvc_py_mask_shape;
%rename(kvc_begin_reserve) kvc_py_begin_reserve;
%rename(kvc_state_shape) kvc_py_state_shape;
%rename(kvc_state_gather_shape) kvc_py_state_gather_shape;
%rename(kvc_state_view) kvc_py_state_view;
%rename(kvc_cache_wrap) kvc_py_wrap;
%rename(describe_array) kvc_py_describe_array;
%rename(describe_values) kvc_py_describe_values;
%rename(describe_codes) kvc_py_describe_codes;
%rename(describe_elements) kvc_py_describe_elements;
%rename(lend) kvc_py_lend;
%rename(use_stream) kvc_py_use_stream;
%rename(kvc_device_open) kvc_py_device_open;
%rename(set_errors) kvc_py_set_errors;
kvc_status kvc_py_attention(kvc_cache *cache, int32_t layer, const kvc_tensor *q, kvc_tensor *out,
                            const kvc_tensor *bias, const kvc_tensor *mask, kvc_tensor *weights,
                            kvc_tensor *lse, uint32_t flags, uint64_t dropout_seed);
kvc_status kvc_py_put_attention(kvc_cache *cache, int32_t layer, const kvc_tensor *k,
                                const kvc_tensor *v, const kvc_tensor *q, kvc_tensor *out,
                                const kvc_tensor *bias, const kvc_tensor *mask, kvc_tensor *weights,
                                kvc_tensor *lse, uint32_t flags, uint64_t dropout_seed);
kvc_status kvc_py_operator_forward(kvc_operator *op, const kvc_forward_desc *desc,
                                   const kvc_tensor *q, const kvc_tensor *k, const kvc_tensor *v,
                                   kvc_tensor *out, const float *alibi_slopes, const float *sinks,
                                   const kvc_tensor *bias, const kvc_tensor *mask,
                                   kvc_tensor *weights, kvc_tensor *lse);
kvc_status kvc_py_operator_register(kvc_device *device, const char *names, uint32_t flags,
                                    const kvc_operator_info *info, PyObject *implementation,
                                    int32_t asks);
kvc_status kvc_py_call_positions(const kvc_operator_call *call, int32_t sequence, int32_t capacity,
                                 int32_t *at);
kvc_status kvc_py_get(kvc_cache *cache, int32_t layer, int32_t of_k, int32_t of_v,
                      kvc_tensor VIEWS[2]);
kvc_status kvc_py_get_codes(kvc_cache *cache, int32_t layer, kvc_tensor VIEWS[4]);
kvc_status kvc_py_lightning_write(kvc_cache *cache, int32_t layer, int32_t sequence_begin,
                                  const kvc_tensor *states);
kvc_status kvc_py_lightning_shape(const kvc_cache *cache, int32_t layer, int32_t sequence_begin,
                                  int32_t n_sequences, kvc_tensor *VIEW);
kvc_status kvc_py_rows_view(const kvc_cache *cache, int32_t layer, kvc_tensor VIEWS[4]);
kvc_status kvc_py_copy_shape(kvc_cache *cache, int32_t layer, kvc_tensor *VIEW,
                             kvc_tensor *SECOND_VIEW);
kvc_status kvc_py_gather(kvc_cache *cache, int32_t layer, int32_t sequence, int32_t transpose_v,
                         kvc_tensor *k, kvc_tensor *v);
kvc_status kvc_py_mask_shape(kvc_cache *cache, int32_t layer, kvc_tensor *VIEW);
kvc_status kvc_py_begin_reserve(kvc_cache *cache, int32_t n_tokens, void *stream);
kvc_status kvc_py_device_open(const char *name, const kvc_device_desc *desc, void *user, void *alloc,
                              void *release, kvc_device **out);
kvc_status kvc_py_state_shape(kvc_cache *cache, int32_t layer, int32_t part, kvc_tensor *VIEW);
kvc_status kvc_py_state_gather_shape(kvc_cache *cache, int32_t layer, int32_t part,
                                     int32_t sequence, int32_t at, kvc_tensor *VIEW);
kvc_status kvc_py_state_view(kvc_cache *cache, int32_t layer, int32_t part, kvc_tensor *VIEW);
kvc_status kvc_py_wrap(kvc_cache *const *children, int32_t n_children, int32_t n_layers,
                       const int32_t *child_of_layer, int32_t n_numbers,
                       const int32_t *layer_in_child, kvc_cache **out);
PyObject *kvc_py_describe_array(const kvc_tensor *described);
PyObject *kvc_py_describe_values(const kvc_tensor *values);
PyObject *kvc_py_describe_codes(const kvc_tensor *codes);
PyObject *kvc_py_describe_elements(const kvc_tensor *in);
PyObject *kvc_py_lend(PyObject *owner, PyObject *description, int versioned, int flags,
                      int device_type, int device_id);
PyObject *kvc_py_use_stream(PyObject *cache, unsigned long long stream);
void kvc_py_set_errors(PyObject *errors, PyObject *translate);

/* Until here, k is given, and k and v are numbers. */
KVC_OPTIONAL_ARRAY(const kvc_tensor *k, "k", KVC_PY_CODES, 0)
KVC_OPTIONAL_ARRAY(const kvc_tensor *v, "v", KVC_PY_CODES, 0)
kvc_status kvc_py_rows_fill(kvc_cache *cache, int32_t layer, int32_t row_begin, const kvc_tensor *k,
                            const kvc_tensor *k_scales, const kvc_tensor *v,
                            const kvc_tensor *v_scales);
