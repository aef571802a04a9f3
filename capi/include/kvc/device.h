/* kvc/device.h: where memory is and how many threads work. Part of <kvc/kvc.h>. */
#ifndef KVC_DEVICE_H
#define KVC_DEVICE_H

#include "base.h"

#ifdef __cplusplus
extern "C" {
#endif

typedef struct kvc_device kvc_device; /* a handle, see base.h */

/* The caller's own memory. `alloc` returns a block of `bytes` (> 0) aligned to `alignment` (a power of
 * two), or null if it has none. `free` gets the same bytes and alignment that alloc was called with.
 *
 * kvc calls alloc while a device is opened or a cache is created, and free when the last device or cache
 * that uses a block is closed or destroyed. It makes these calls on the thread that opens, creates, closes
 * or destroys, and at no other time. Both functions must return: an exception and pthread_exit() end the process,
 * longjmp() leaves behind what can never be freed. They must not call kvc, and must keep working until every
 * device that was opened with them is closed and every cache on those devices is destroyed. They run with
 * cancellation disabled and in kvc's floating-point environment (round to nearest, subnormal numbers, no
 * traps), and may change both while they run. kvc passes `user` through. */
typedef struct kvc_allocator {
  void *user;
  void *(*alloc)(void *user, size_t bytes, size_t alignment);
  void (*free)(void *user, void *block, size_t bytes, size_t alignment);
} kvc_allocator;

typedef struct kvc_device_desc {
  uint32_t struct_size;
  int32_t n_threads; /* threads that share the work of one attention call, the caller's included; at
                        most 256. 0: as many as the process may use (affinity mask, cgroup quota), up to
                        256. 1: the calling thread only. A GPU works without any of them */
  uint64_t flags;    /* 0 */
  const kvc_allocator *device_allocator; /* of a GPU's memory; copied. Null: CUDA's own. NOT_SUPPORTED on
                        the CPU, whose memory is the host's: that is the allocator's. `alloc` and `free` get
                        and return addresses of the GPU, aligned to 256, and run while that GPU is the
                        thread's current device. kvc waits for the GPU behind alloc and before free, so a
                        block may still be in use when it is given, and is not when it is taken back */
} kvc_device_desc;

#define KVC_DEVICE_DESC_INIT {sizeof(kvc_device_desc), 0, 0, NULL}

/* Opens a device and starts its threads: n_threads - 1 of them, all now and none later; none for a GPU.
 *
 * name       "cpu", or "cuda:0" ("cuda"), "cuda:1" and so on for the GPUs of NVIDIA. Those need the library
 *            libkvc_cuda of the same build, which is loaded now and stays: the one of "cuda:0@<path>", else
 *            the one that the environment variable KVC_CUDA_PLUGIN names, else libkvc_cuda.so.0 in the folder
 *            of libkvc, else what the system's loader finds under that name. Where it cannot be used, or there
 *            is no driver or no such GPU: BACKEND_UNAVAILABLE, and the message says why. A program that runs
 *            with more rights than its user does not ask the variable.
 * desc       null: all defaults.
 * allocator  copied. Null: kvc maps its own memory and requests huge pages. With a GPU it gives the host's memory,
 *            and device_allocator the GPU's.
 * out        receives the handle, or null if the call fails.
 *
 * Ownership: the caller closes the device. A cache keeps what it needs of its device, so the device may be
 * closed first.
 * Threads: any. Several caches on one device may compute attention at the same time. The device's threads
 * then serve one of these calls at a time, and each other call runs on its calling thread alone; the results
 * have the same bits either way.
 * Errors: INVALID_ARGUMENT, VERSION, BACKEND_UNAVAILABLE, NOT_SUPPORTED (device_allocator on the CPU),
 * OUT_OF_MEMORY (a thread could not be started, or there are too many handles). Since 0.1; device_allocator since
 * 0.2. */
KVC_API kvc_status kvc_device_open(const char *name, const kvc_device_desc *desc,
                                   const kvc_allocator *allocator, kvc_device **out) KVC_NOEXCEPT;

/* Closes the handle. The device's threads end when the last cache on the device is destroyed too. Null is
 * allowed and does nothing. Errors: HANDLE (closed twice), BUSY. Since 0.1. */
KVC_API kvc_status kvc_device_close(kvc_device *device) KVC_NOEXCEPT;

/* Waits until the device has done everything that it was given so far, by kvc or by anybody else in this
 * process, on any stream, and tells of what went wrong: CUDA reports a fault of the GPU at some later call, and
 * this one finds it at once. On the CPU all work of a call is done when it returns, so there is nothing to wait
 * for.
 *
 * Errors: DEVICE (the device has failed; no cache on it will work again). While a CUDA stream is being captured:
 * DEVICE, because CUDA then allows no wait, and the capture is lost. Threads: any. Since 0.2. */
KVC_API kvc_status kvc_device_synchronize(const kvc_device *device) KVC_NOEXCEPT;

#ifdef __cplusplus
}
#endif
#endif
