/* kvc/base.h: status codes and messages, tensors, versions. Part of <kvc/kvc.h>. */
#ifndef KVC_BASE_H
#define KVC_BASE_H

#include <stddef.h>
#include <stdint.h>

/* Marks every public function. A shared library exports only these. */
#if defined(SWIG)
#define KVC_API
#elif defined(_WIN32)
#define KVC_API __declspec(dllimport)
#elif defined(__GNUC__)
#define KVC_API __attribute__((visibility("default")))
#else
#define KVC_API
#endif

/* No function throws. C++ compilers are told so. */
#if defined(__cplusplus) && !defined(SWIG)
#define KVC_NOEXCEPT noexcept
#else
#define KVC_NOEXCEPT
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Status ------------------------------------------------------------------------------------------------------
 *
 * 0 is success, errors are negative, positive values are reserved. The numbers are pinned for ever. */

typedef int32_t kvc_status;

enum {
  KVC_OK = 0,
  KVC_E_INVALID_ARGUMENT = -1,  /* a null pointer, a number outside its bounds, an unknown flag */
  KVC_E_HANDLE = -2,            /* null, freed, foreign or wrong-kind handle, or one from before a fork */
  KVC_E_OUT_OF_MEMORY = -3,     /* the allocator, the system or the handle table has no more */
  KVC_E_NOT_SUPPORTED = -4,     /* well formed, but this cache cannot do it */
  KVC_E_BAD_STATE = -5,         /* not now: no pass is open, a layer was not put, constants bound too late */
  KVC_E_BUSY = -6,              /* another thread is inside a call that excludes this one */
  KVC_E_SHAPE = -7,             /* a tensor has the wrong number of dimensions, extent or strides */
  KVC_E_DTYPE = -8,             /* a tensor has an element type that this argument does not take */
  KVC_E_OVERFLOW = -9,          /* a product of sizes does not fit */
  KVC_E_VERSION = -10,          /* a descriptor from a newer kvc sets a field that this library does not know */
  KVC_E_CACHE_FULL = -20,       /* fewer free cells than tokens, or more positions than a sequence may hold */
  KVC_E_WINDOW_LOST = -21,      /* the tokens that a continuation would need have slid out of the window */
  KVC_E_NOT_FOUND = -22,
  KVC_E_INVALID_RECURRENT_SHAPE = -23,
  KVC_E_DEVICE = -40,           /* the device failed; the cache is poisoned: only destroy and kvc_cache_stats work */
  KVC_E_DEVICE_MISMATCH = -41,  /* a tensor lies on another device than the cache */
  KVC_E_BACKEND_UNAVAILABLE = -42, /* no such device on this machine, or its backend is not installed */
  KVC_E_IO = -60,
  KVC_E_CORRUPT = -61,
  KVC_E_INTERNAL = -99          /* a broken invariant inside kvc: a bug. The cache is poisoned, as after DEVICE */
};

/* The name of a status without its prefix, "CACHE_FULL"; "UNKNOWN" for a number that is none. Never null, static.
 * Threads: any. Since 0.1. */
KVC_API const char *kvc_status_name(kvc_status status) KVC_NOEXCEPT;

/* Copies the calling thread's last error message into `buffer`, cut to `capacity` and always terminated (when capacity > 0).
 * Returns the message's full length without its terminator, so capacity 0 with a null buffer asks for the length.
 *
 * Every failing call sets the message of its thread; a call that succeeds leaves it. One line of UTF-8, at most 511 bytes,
 * that adds facts to the status: "layer 40 out of range [0, 32)". It holds no addresses and no tensor values.
 * Bindings copy it within the same foreign call as the failure: a goroutine may be on another thread afterwards.
 * Threads: any. Allocates nothing. Since 0.1. */
KVC_API size_t kvc_last_error_copy(char *buffer, size_t capacity) KVC_NOEXCEPT;

/* ---- Tensors ------------------------------------------------------------------------------------------------------
 *
 * A view of memory that somebody else owns. Numbers follow DLPack (dtype, device types, strides in elements, byte_offset),
 * but shape and strides lie inside the struct, so that it holds one pointer and needs no allocation. Frozen: never grows.
 *
 * Where two tensors must not overlap their spans count, from the first element to the last: rows of both that lie
 * interleaved in one buffer overlap. What is only read may be the same memory. */

enum { /* element types: DLPack code | bits << 8 | lanes << 16 */
  KVC_F32 = 2 | 32 << 8 | 1 << 16,
  KVC_F16 = 2 | 16 << 8 | 1 << 16,
  KVC_BF16 = 4 | 16 << 8 | 1 << 16,
  KVC_I32 = 0 | 32 << 8 | 1 << 16,
  KVC_BOOL = 6 | 8 << 8 | 1 << 16 /* a byte, 0 or not */
};

enum { /* device types */
  KVC_CPU = 1,
  KVC_CUDA = 2
};

enum { /* kvc_tensor.flags */
  KVC_TENSOR_TRANSPOSED = 1 /* kvc_gather only: V as [n_kv_heads, head_dim_v, n] */
};

#define KVC_MAX_DIMS 8

typedef struct kvc_tensor {
  void *data;                     /* host address on KVC_CPU; must be aligned to its element after byte_offset */
  uint64_t byte_offset;           /* added to data */
  int64_t shape[KVC_MAX_DIMS];    /* extents of the first ndim dimensions */
  int64_t strides[KVC_MAX_DIMS];  /* in elements, always given (never null as DLPack allows), 0 or more */
  int32_t ndim;
  uint32_t dtype;                 /* KVC_F32 … */
  int32_t device_type;            /* KVC_CPU … */
  int32_t device_id;              /* 0 on KVC_CPU */
  uint32_t flags;                 /* 0, or what the function names */
  uint32_t reserved;              /* 0 */
} kvc_tensor;

/* Fills `out` with a dense row-major view on KVC_CPU: shape[0 … ndim) with the last index fastest.
 * Errors: INVALID_ARGUMENT (null out or shape, ndim outside 1 … 8, a negative extent), DTYPE, OVERFLOW.
 * `data` may be null (to be set later). Threads: any. Since 0.1. */
KVC_API kvc_status kvc_tensor_dense(void *data, uint32_t dtype, int32_t ndim, const int64_t *shape,
                                    kvc_tensor *out) KVC_NOEXCEPT;

/* ---- Versions -----------------------------------------------------------------------------------------------------
 *
 * While the major version is 0 a minor version may break the ABI and a patch version never does; the SONAME is
 * libkvc.so.0. From 1.0 on only a major version may. Compare the header's number with the library's at load. */

#define KVC_VERSION_MAJOR 0
#define KVC_VERSION_MINOR 1
#define KVC_VERSION_PATCH 0
#define KVC_VERSION_NUMBER (KVC_VERSION_MAJOR << 16 | KVC_VERSION_MINOR << 8 | KVC_VERSION_PATCH)

/* The library's version: major << 16 | minor << 8 | patch. Threads: any. Since 0.1. */
KVC_API uint32_t kvc_version_number(void) KVC_NOEXCEPT;

/* One line about this build: version, compiler, instruction set that the CPU kernels chose on this machine.
 * Never null, static. For people, not for parsing. Threads: any. Since 0.1. */
KVC_API const char *kvc_build_info(void) KVC_NOEXCEPT;

/* ---- Ranges, "off", threads and forks -------------------------------------------------------------------------------
 *
 * Threads: different caches are always independent. On one cache, functions that take `const kvc_cache *` overlap
 * freely; every other function is exclusive. The library detects an overlap that breaks this rule and answers BUSY; it
 * is never undefined. A cache may move between threads. The message of a failure belongs to the thread that met it.
 *
 * Forks: a child process holds none of its parent's handles: each says HANDLE, destroy included. It may open its own.
 *
 * Unloading: dlclose only after every cache and device is destroyed; a device's threads run the library's code.
 *
 * Handles are keys of a table, not addresses: never dereference them, never cast them to another kind. Their bit pattern
 * is no canonical address, so that a garbage collector does not take one for a pointer of its own. */

#define KVC_SEQ_END INT32_MAX /* "to the end" in a range of positions */
#define KVC_NONE (-1)         /* "off" where 0 means "default" */

#ifdef __cplusplus
}
#endif
#endif
