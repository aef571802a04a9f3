/* kvc/device.h: where memory lies and how many threads work. Part of <kvc/kvc.h>. */
#ifndef KVC_DEVICE_H
#define KVC_DEVICE_H

#include "base.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kvc_device kvc_device; /* a handle, see base.h */

typedef struct kvc_device_desc {
  uint32_t struct_size;
  int32_t n_threads; /* threads that share one attention call, the caller's included; at most 256.
                        0: as many as the process is allowed (affinity mask, cgroup quota), up to 256.
                        1: the caller's alone */
  uint64_t flags;    /* 0 */
} kvc_device_desc;

/* Memory of the caller's choosing. `alloc` returns a block of `bytes` (> 0) aligned to `alignment` (a power of two), or
 * null when it has none; `free` gets back exactly what alloc was asked for. kvc calls them while a device is opened or a
 * cache is created and when the last user of a block is destroyed, on the thread that does so, never in between.
 * They must not throw, must not call kvc, and must work until every device opened with them and every cache made on
 * those is destroyed. `user` is passed through. */
typedef struct kvc_allocator {
  void *user;
  void *(*alloc)(void *user, size_t bytes, size_t alignment);
  void (*free)(void *user, void *block, size_t bytes, size_t alignment);
} kvc_allocator;

/* Opens a device and starts its threads (n_threads - 1 of them, all here and none later).
 *
 * name       "cpu". ("cuda:0" …: BACKEND_UNAVAILABLE unless libkvc_cuda is installed.)
 * desc       may be null: all defaults.
 * allocator  copied; may be null: kvc maps its own memory and asks for huge pages.
 * out        receives the handle; null after a failure.
 *
 * Ownership: the caller closes the device. Caches keep what they need of it, so it may be closed before them.
 * Threads: any. Several caches on one device may attend at once; the threads then serve one of them at a time and the
 * other callers do their own work themselves, with the same bits as a result.
 * Errors: INVALID_ARGUMENT, VERSION, BACKEND_UNAVAILABLE, OUT_OF_MEMORY (a thread could not be started, too many handles).
 * Since 0.1. */
KVC_API kvc_status kvc_device_open(const char *name, const kvc_device_desc *desc, const kvc_allocator *allocator,
                                   kvc_device **out) KVC_NOEXCEPT;

/* Closes the handle; the threads end when the last cache made on the device is destroyed too. Null is ok.
 * Errors: HANDLE (closed twice), BUSY. Since 0.1. */
KVC_API kvc_status kvc_device_close(kvc_device *device) KVC_NOEXCEPT;

#ifdef __cplusplus
}
#endif
#endif
