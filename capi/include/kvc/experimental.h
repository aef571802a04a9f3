/* kvc/experimental.h: calls that may still change or disappear in any version, patch versions included.
 *
 * <kvc/kvc.h> does not include this header: including it is the caller's consent. The shared library exports
 * these calls under the symbol version KVC_EXPERIMENTAL, and tests/abi/layout.txt does not list them. A call
 * that has proved itself moves to a stable header and to the symbol version of that release. */
#ifndef KVC_EXPERIMENTAL_H
#define KVC_EXPERIMENTAL_H

#include "base.h"
#include "device.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Copies a name under which kvc_device_open() can open a device. Names are listed in the order in which
 * their backends were registered; a backend that is not installed is not listed. Counting beyond the CPU loads
 * libkvc_cuda where it is, and begins CUDA in this process.
 *
 * index     0, 1, …; count up until the call returns NOT_FOUND.
 * name      [capacity] receives the name and its terminator. 32 bytes are enough for every name.
 *
 * Errors: INVALID_ARGUMENT (index is negative, name is null, capacity is too small), NOT_FOUND (index is
 * past the last name). Threads: any. Since 0.2. */
KVC_API kvc_status kvc_device_name(int32_t index, char *name, size_t capacity) KVC_NOEXCEPT;

typedef struct kvc_device_info {
  uint32_t struct_size;
  int32_t device_type;      /* KVC_CPU … */
  int32_t device_id;
  int32_t n_threads;        /* that share the work of a call, the caller's included */
  char name[32];            /* as kvc_device_open() took it */
  char instruction_set[32]; /* that its kernels use: "avx2" */
} kvc_device_info;

#define KVC_DEVICE_INFO_INIT {sizeof(kvc_device_info), 0, 0, 0, {0}, {0}}

/* Tells what a device is. `out`: its struct_size must be set.
 * Errors: INVALID_ARGUMENT. Threads: any. Since 0.2. */
KVC_API kvc_status kvc_device_query(const kvc_device *device, kvc_device_info *out) KVC_NOEXCEPT;

#ifdef __cplusplus
}
#endif
#endif
