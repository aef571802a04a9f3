/* Why an array is refused, in the words of Python: what came, what is taken, what to do. Included by
 * arrays.h and dlpack.h. */
#ifndef KVC_PYTHON_REFUSALS_H
#define KVC_PYTHON_REFUSALS_H

#include "dlpack_layout.h"
#include "handles.h"
#include "support.h"

/* Bytes of an element; 0: no array has the type. */
static int kvc_py_itemsize(uint32_t dtype) {
  switch (dtype) {
    case KVC_F32: return 4;
    case KVC_F16:
    case KVC_BF16: return 2;
    case KVC_BOOL:
    case KVC_I8:
    case KVC_U8:
    case KVC_F8_E4M3:
    case KVC_F8_E5M2: return 1;
  }
  return 0;
}

/* The argument for which an array is opened. */
typedef struct kvc_py_argument {
  PyObject* object;
  const char* name;
  enum {
    KVC_PY_FLOATS,
    KVC_PY_FLOAT32,
    KVC_PY_BOOL,
    KVC_PY_MASK,
    KVC_PY_ANY,
    KVC_PY_CODES,  /* elements of codes and scales: the library checks which */
    KVC_PY_ELEMENTS,
    KVC_PY_NUMBERS /* as FLOATS, of a call whose dtype is another thing than the type of bare bits */
  } takes;
  int written;              /* by the call: a copy in its place would stay empty */
  uint32_t meaning_of_bits; /* the type of bare 16-bit values, or bytes; 0: unknown */
  const kvc_py_gpu* gpu;    /* of the cache; null: it is on the CPU */
} kvc_py_argument;

static int kvc_py_takes(const kvc_py_argument* argument, uint32_t dtype) {
  switch (argument->takes) {
    case KVC_PY_FLOATS:
    case KVC_PY_NUMBERS: return dtype == KVC_F32 || dtype == KVC_F16 || dtype == KVC_BF16;
    case KVC_PY_FLOAT32: return dtype == KVC_F32;
    case KVC_PY_BOOL: return dtype == KVC_BOOL;
    case KVC_PY_MASK: return dtype == KVC_F32 || dtype == KVC_F16 || dtype == KVC_BOOL;
    case KVC_PY_CODES: return dtype != KVC_BOOL;
    case KVC_PY_ELEMENTS: return kvc_py_itemsize(dtype) > 0;
    case KVC_PY_ANY: return dtype == KVC_BOOL || kvc_py_itemsize(dtype) > 1;
  }
  return 0;
}

static PyObject* kvc_py_refuse_element(uint32_t dtype) {
  kvc_py_raise_format(KVC_E_DTYPE, "no array has the element type %u", (unsigned int)dtype);
  return NULL;
}

/* The type by the name that the array itself gives it (float64, torch.int32), else `otherwise`. */
static PyObject* kvc_py_type_of(PyObject* object, const char* otherwise) {
  PyObject* dtype = PyObject_GetAttrString(object, "dtype");
  PyObject* text = dtype ? PyObject_Str(dtype) : NULL;
  Py_XDECREF(dtype);
  if (text != NULL) return text;
  PyErr_Clear();
  return PyUnicode_FromString(otherwise);
}

/* What the caller may write instead. */
static PyObject* kvc_py_conversion(const kvc_py_argument* argument, const char* found) {
  const char* name = argument->name;
  const int is_mask = argument->takes == KVC_PY_BOOL;
  if (argument->written) return PyUnicode_FromFormat("pass such an array");
  if (argument->takes == KVC_PY_CODES)
    return PyUnicode_FromFormat("pass what encode() or get_codes() returned");
  if (is_mask && strstr(found, "int8") != NULL)
    return PyUnicode_FromFormat("pass %s.view(bool), which copies nothing", name);
  if (is_mask && strstr(found, "float") != NULL)
    return PyUnicode_FromFormat("0 and minus infinity are a bias, and %s.astype(bool) is a mask", name);
  if (PyObject_HasAttrString(argument->object, "astype"))
    return PyUnicode_FromFormat("convert with %s.astype(%s)", name, is_mask ? "bool" : "numpy.float32");
  if (PyObject_HasAttrString(argument->object, "to"))
    return PyUnicode_FromFormat("convert with %s.to(%s)", name, is_mask ? "torch.bool" : "torch.float32");
  return PyUnicode_FromFormat("convert with numpy.asarray(%s, %s)", name,
                              is_mask ? "bool" : "numpy.float32");
}

/* Always returns 0, which a reader returns when it fails; so do the functions below. `otherwise` names
 * the type of an array that does not name it. */
static int kvc_py_refuse_dtype(const kvc_py_argument* argument, const char* otherwise, int is_bits) {
  static const char* const taken[] = {"float32, float16 or bfloat16", "float32", "bool",
                                      "float32, float16 or bool",
                                      "float32, float16, bfloat16 or bool",
                                      "float32, float16, bfloat16, float8, int8 or uint8",
                                      "float32, float16, bfloat16, float8, int8, uint8 or bool",
                                      "float32, float16 or bfloat16"};
  PyObject* found = kvc_py_type_of(argument->object, otherwise);
  const char* utf8 = found ? PyUnicode_AsUTF8(found) : NULL;
  PyObject* advice = utf8 ? kvc_py_conversion(argument, utf8) : NULL;
  if (advice != NULL && is_bits && (argument->takes == KVC_PY_FLOATS || argument->takes == KVC_PY_ANY)) {
    kvc_py_raise_format(KVC_E_DTYPE,
                        "%s is %U, whose bits may mean anything: pass dtype=\"bf16\" or dtype=\"f16\" if "
                        "they are such numbers",
                        argument->name, found);
  } else if (advice != NULL && is_bits && argument->takes == KVC_PY_NUMBERS) {
    kvc_py_raise_format(KVC_E_DTYPE,
                        "%s is %U, whose bits may mean anything: pass %s.view(numpy.float16), or "
                        "%s.view(ml_dtypes.bfloat16), if they are such numbers",
                        argument->name, found, argument->name, argument->name);
  } else if (advice != NULL) {
    kvc_py_raise_format(KVC_E_DTYPE, "%s is %U; kvc %s %s: %U", argument->name, found,
                        argument->written ? "writes" : "takes", taken[argument->takes], advice);
  }
  Py_XDECREF(advice);
  Py_XDECREF(found);
  return 0;
}

static int kvc_py_refuse_to_write(const kvc_py_argument* argument) {
  PyErr_Format(PyExc_ValueError, "%s is read-only, but the call writes to it: pass an array of your own",
               argument->name);
  return 0;
}

/* `why` is about strides in bytes. */
static int kvc_py_refuse_stride(const kvc_py_argument* argument, Py_ssize_t bytes, const char* why) {
  kvc_py_raise_format(KVC_E_SHAPE, "%s has a stride of %zd bytes, %s%s%s%s", argument->name, bytes, why,
                      argument->written ? "" : ": pass numpy.ascontiguousarray(",
                      argument->written ? "" : argument->name, argument->written ? "" : ")");
  return 0;
}

static int kvc_py_refuse_device(const kvc_py_argument* argument, long type) {
  static const char* const names[] = {NULL,    NULL,  "CUDA", NULL, "OpenCL", NULL, NULL,
                                      "Vulkan", "Metal", "VPI",  "ROCm"};
  const char* known = type >= 0 && type <= 10 ? names[type] : type == 13 ? "CUDA" : NULL;
  if (argument->gpu != NULL) {
    kvc_py_raise_format(KVC_E_DEVICE_MISMATCH,
                        "%s is %s, but the cache is on a GPU of NVIDIA: pass a tensor of that GPU (in "
                        "PyTorch %s.cuda())",
                        argument->name, type == kDLCPU || type == kDLCUDAHost ? "on the CPU" : "elsewhere",
                        argument->name);
  } else if (known != NULL) {
    kvc_py_raise_format(KVC_E_DEVICE_MISMATCH,
                        "%s is on a %s device, but the cache is on the CPU: copy it there first (in "
                        "PyTorch %s.cpu())",
                        argument->name, known, argument->name);
  } else {
    kvc_py_raise_format(KVC_E_DEVICE_MISMATCH,
                        "%s is on a device of DLPack's type %ld, but the cache is on the CPU: copy it "
                        "there first",
                        argument->name, type);
  }
  return 0;
}

static int kvc_py_refuse_object(const kvc_py_argument* argument) {
  const char* name = argument->name;
  const int is_list = argument->takes != KVC_PY_CODES &&
                      (PyList_Check(argument->object) || PyTuple_Check(argument->object));
  PyErr_Format(PyExc_TypeError,
               "%s must be an array (of NumPy, PyTorch, JAX, or with the buffer protocol, "
               "__array_interface__ or __dlpack__), not %.100s%s%s%s",
               name, argument->object == Py_None ? "None" : Py_TYPE(argument->object)->tp_name,
               is_list ? ": pass numpy.asarray(" : "", is_list ? name : "",
               is_list ? ", numpy.float32)" : "");
  return 0;
}

#endif
