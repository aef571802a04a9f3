/* kvc/base.h: status codes and messages, tensors, versions, threads and forks. Part of <kvc/kvc.h>. */
#ifndef KVC_BASE_H
#define KVC_BASE_H

#include <stddef.h>
#include <stdint.h>

/* Marks every public function. The shared library exports these and nothing else. */
#if defined(SWIG)
#define KVC_API
#elif defined(_WIN32)
#define KVC_API __declspec(dllimport)
#elif defined(__GNUC__)
#define KVC_API __attribute__((visibility("default")))
#else
#define KVC_API
#endif

/* No function throws, and C++ compilers may rely on it. */
#if defined(__cplusplus) && !defined(SWIG)
#define KVC_NOEXCEPT noexcept
#else
#define KVC_NOEXCEPT
#endif

#ifdef __cplusplus
extern "C" {
#endif

/* ---- Status --------------------------------------------------------------------------------------
 *
 * 0 is success, errors are negative, positive values are reserved. These numbers never change. In comments
 * BUSY stands for KVC_E_BUSY, and so on. */

typedef int32_t kvc_status;

enum {
  KVC_OK = 0,
  KVC_E_INVALID_ARGUMENT = -1, /* a null pointer, a number out of bounds, an unknown flag */
  KVC_E_HANDLE = -2,           /* the handle is null, destroyed, of another kind, or not from kvc;
                                  or it was made before a fork */
  KVC_E_OUT_OF_MEMORY = -3,    /* the allocator, the system or the handle table is exhausted */
  KVC_E_NOT_SUPPORTED = -4,    /* the request is well formed, but this cache cannot do it */
  KVC_E_BAD_STATE = -5,        /* the call is not allowed now: no pass is open, a layer was not put, or
                                  constants are bound too late */
  KVC_E_BUSY = -6,             /* another thread is inside a call that excludes this one */
  KVC_E_SHAPE = -7,            /* a tensor has the wrong number of dimensions, a wrong extent or a wrong stride */
  KVC_E_DTYPE = -8,            /* this argument does not accept this element type */
  KVC_E_OVERFLOW = -9,         /* a product of sizes does not fit */
  KVC_E_VERSION = -10,         /* a descriptor from a newer kvc sets a field that this library does
                                  not know */
  KVC_E_CACHE_FULL = -20,      /* the batch has more tokens than there are free cells, or a sequence
                                  would hold more positions than it may */
  KVC_E_WINDOW_LOST = -21,     /* the sequence cannot continue there: what it would need was released
                                  (tokens that slid out, an input or a state that was replaced) */
  KVC_E_NOT_FOUND = -22,       /* nothing has this index */
  KVC_E_INVALID_RECURRENT_SHAPE = -23, /* the dimensions of a tensor do not make the size of a state
                                          (recurrent.h) */
  KVC_E_DEVICE = -40,          /* the device failed. The cache is poisoned: only kvc_cache_destroy()
                                  and kvc_cache_stats() still work */
  KVC_E_DEVICE_MISMATCH = -41, /* a tensor is not on the device of the cache */
  KVC_E_BACKEND_UNAVAILABLE = -42, /* this machine has no such device, or its backend is not installed */
  KVC_E_IO = -60,              /* reserved */
  KVC_E_CORRUPT = -61,         /* a text is not what it should be (metadata.h) */
  KVC_E_INTERNAL = -99         /* a broken invariant inside kvc: a bug. The cache is poisoned, as after
                                  KVC_E_DEVICE; not by kvc_check(), which only looks, and not by what a
                                  shift function returned (kvc_bind_shift) */
};

/* Returns the name of a status without its prefix, for example "CACHE_FULL", or "UNKNOWN" if there is no
 * such status. The string is static and never null. Threads: any. Since 0.1. */
KVC_API const char *kvc_status_name(kvc_status status) KVC_NOEXCEPT;

/* Copies the last error message of the calling thread into `buffer`. The copy is truncated to `capacity`
 * bytes and always terminated (if capacity > 0). Returns the length of the whole message without its
 * terminator; pass a null buffer and capacity 0 to get the length alone.
 *
 * Every failing call replaces the message of the thread that made it. A successful call leaves the
 * previous message in place. A message is one line of UTF-8 of at most 511 bytes that adds facts to the
 * status: "layer 40 out of range [0, 32)". It names arguments as these headers do, and contains no addresses
 * and no values of tensors. A thread has no message before its first failure, nor in a forked child. kvc
 * keeps the messages of 4096 threads at a time; a further thread that fails has none.
 *
 * A binding should copy the message within the same foreign call that failed: a goroutine may run on
 * another thread afterwards. Threads: any; a signal handler may call it. Allocates nothing. Since 0.1. */
KVC_API size_t kvc_last_error_copy(char *buffer, size_t capacity) KVC_NOEXCEPT;

/* ---- Tensors -------------------------------------------------------------------------------------
 *
 * A kvc_tensor is a view of memory that somebody else owns. Element types, device types, byte_offset and
 * strides (in elements) follow DLPack. Unlike DLPack, shape and strides are inside the struct, so a tensor
 * holds a single pointer and needs no allocation. The struct is frozen: it never grows.
 *
 * Where two tensors must not overlap, kvc compares their spans, from the first element to the last. Rows
 * of two tensors that are interleaved in one buffer therefore overlap. Tensors that are only read may
 * share memory. */

enum { /* element types: DLPack code | bits << 8 | lanes << 16 */
  KVC_F32 = 2 | 32 << 8 | 1 << 16,
  KVC_F16 = 2 | 16 << 8 | 1 << 16,
  KVC_BF16 = 4 | 16 << 8 | 1 << 16,
  KVC_I32 = 0 | 32 << 8 | 1 << 16,
  KVC_BOOL = 6 | 8 << 8 | 1 << 16, /* one byte: 0 is false, anything else is true */

  KVC_F64 = 2 | 64 << 8 | 1 << 16, /* reserved: this version takes no tensor of this type */

  /* Element types of codes (storage.h). KVC_F8_… are storage types, too. */
  KVC_I8 = 0 | 8 << 8 | 1 << 16,
  KVC_U8 = 1 | 8 << 8 | 1 << 16,
  KVC_F8_E4M3 = 10 | 8 << 8 | 1 << 16, /* e4m3fn: no infinity, the largest value is 448 */
  KVC_F8_E5M2 = 12 | 8 << 8 | 1 << 16,
  /* Codes from 128 on are kvc's own. They name storage types of a cache, never the type of a tensor. */
  KVC_Q8_0 = 128 | 8 << 8 | 1 << 16, /* blocks of 32 values with one f16 scale; 8-bit codes */
  KVC_Q4_0 = 129 | 4 << 8 | 1 << 16, /* blocks of 32 values with one f16 scale; 4-bit codes, offset 8 */
  KVC_INT8 = 130 | 8 << 8 | 1 << 16, /* one f32 scale per vector; 8-bit codes */
  KVC_NF4 = 131 | 4 << 8 | 1 << 16   /* blocks of 16, 32, 64 or 128 values with one f32 scale; 4-bit
                                        codes of a table */
};

enum { /* device types, DLPack's numbers */
  KVC_CPU = 1,
  KVC_CUDA = 2
};

enum { /* kvc_tensor.flags */
  KVC_TENSOR_TRANSPOSED = 1 /* kvc_gather() only: V is [n_kv_heads, head_dim_v, n] */
};

#define KVC_MAX_DIMS 8

typedef struct kvc_tensor {
  void *data;                    /* a host address on KVC_CPU. With byte_offset added it must be aligned
                                    to the element type */
  uint64_t byte_offset;          /* added to data */
  int64_t shape[KVC_MAX_DIMS];   /* extents of the first ndim dimensions */
  int64_t strides[KVC_MAX_DIMS]; /* in elements, 0 or more. Always given: DLPack's null is not allowed */
  int32_t ndim;
  uint32_t dtype;                /* KVC_F32 … */
  int32_t device_type;           /* KVC_CPU … */
  int32_t device_id;             /* 0 on KVC_CPU */
  uint32_t flags;                /* 0, or a flag that the function documents */
  uint32_t reserved;             /* 0 */
} kvc_tensor;

/* Fills in `out` as a dense row-major view on KVC_CPU: shape[0 … ndim) with the last index fastest.
 * `data` may be null and set later.
 * Errors: INVALID_ARGUMENT (out or shape is null, ndim is outside 1 … 8, an extent is negative), DTYPE (not
 * one of f32, f16, bf16, i32, bool, i8, u8, f8_e4m3, f8_e5m2), OVERFLOW. Threads: any. Since 0.1. */
KVC_API kvc_status kvc_tensor_dense(void *data, uint32_t dtype, int32_t ndim, const int64_t *shape,
                                    kvc_tensor *out) KVC_NOEXCEPT;

/* ---- Structs with a struct_size ------------------------------------------------------------------
 *
 * Descriptors, kvc_attention_extra, kvc_sequence_info and kvc_stats begin with struct_size: sizeof the
 * caller's struct, so that a later kvc may append fields. Each of them has an initialiser, the name of the
 * struct in capitals with _INIT. It sets struct_size, kind (where there is one) to KVC_CAUSAL, and every
 * other field to 0 or null, which is its default:
 *
 *   kvc_cache_desc desc = KVC_CACHE_DESC_INIT;
 *   desc.n_layers = 30;
 *
 * It names every field, so no compiler warns about missing ones, in C99, C++11 and later. */

/* ---- Versions ------------------------------------------------------------------------------------
 *
 * While the major version is 0, a minor version may break the ABI and a patch version never does. From 1.0
 * on, only a major version may.
 *
 * The SONAME is libkvc.so.0 for every 0.x. All symbols carry the minor version as their symbol version
 * (KVC_0.2), so a program that was linked against another minor version does not start: the dynamic loader
 * reports "version `KVC_0.1' not found". A program that loads the library with dlopen() compares
 * kvc_version_number() with KVC_VERSION_NUMBER; kvc.hpp and the other languages do that for their callers. */

#define KVC_VERSION_MAJOR 0
#define KVC_VERSION_MINOR 2
#define KVC_VERSION_PATCH 0
#define KVC_VERSION_NUMBER (KVC_VERSION_MAJOR << 16 | KVC_VERSION_MINOR << 8 | KVC_VERSION_PATCH)

/* Returns the version of the library: major << 16 | minor << 8 | patch. Threads: any. Since 0.1. */
KVC_API uint32_t kvc_version_number(void) KVC_NOEXCEPT;

/* Returns one line about this build: version, compiler, and the instruction set that the CPU kernels use
 * on this machine. If Linux refused the process the AMX registers of its processor, the line says why
 * (docs/THREADING.md, AMX). It is meant for people; do not parse it. The string is static and never null.
 * Threads: any. Since 0.1. */
KVC_API const char *kvc_build_info(void) KVC_NOEXCEPT;

/* ---- Ranges, "off", threads, forks, the process, handles -----------------------------------------
 *
 * Threads: different caches are always independent. On one cache, functions that take `const kvc_cache *`
 * ("Threads: const" in their comments) may run at the same time; every other function is exclusive. A call
 * that breaks this rule is detected and returns BUSY; the behaviour is never undefined. "Threads: any" means
 * that any number of threads may call the function at the same time, whatever else runs; the only one of
 * them that takes a cache is kvc_cache_stats(). A cache may be passed from thread to thread. An error
 * message belongs to the thread whose call failed.
 *
 * Forks: the handles of a parent process are not valid in its child. In the child every call on such a
 * handle returns HANDLE, destroy included. The child may open devices and create caches of its own.
 *
 * Floating-point environment: rounding mode, flush to zero, traps and status flags of the calling thread have
 * no effect on any call, and every call leaves them as they were.
 *
 * Cancellation: pthread_cancel() does not interrupt a call. The thread is cancelled at its next cancellation
 * point after the call. Threads whose cancellation type is asynchronous must not call kvc.
 *
 * A call must end by returning. A thread that leaves it with longjmp(), from a signal handler or from a
 * function that kvc calls, stays inside the cache: every later call on it returns BUSY.
 *
 * Unloading: call dlclose() only after every cache and device is destroyed. The threads of a device run
 * code of the library.
 *
 * Handles are keys of a table, not addresses. Never dereference a handle and never cast it to another
 * kind. Its bit pattern is not a canonical address, so a garbage collector does not mistake it for a
 * pointer into its heap. */

#define KVC_SEQ_END INT32_MAX /* "to the end" in a range of positions */
#define KVC_NONE (-1)         /* "off" where 0 means "default"; as the sequence of a token: padding */

#ifdef __cplusplus
}
#endif
#endif
