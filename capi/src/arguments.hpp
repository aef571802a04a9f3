#pragma once
#include <cstring>

#include "core/base/status.hpp"
#include "core/base/tensor.hpp"
#include "kvc/kvc.h"

/// Checks of what callers hand in: descriptors and tensors.
namespace kvc::capi {

Status check_struct_size(const char* name, const void* descriptor, uint32_t struct_size, size_t known);

/// Reads a descriptor that may be older or newer than this library: a longer one may only hold zeros in what is unknown.
template <class Descriptor>
Status read_descriptor(const char* name, const Descriptor* from, Descriptor* to) {
  if (from == nullptr) return fail(Status::invalid_argument, "%s is null", name);
  if (Status s = check_struct_size(name, from, from->struct_size, sizeof(Descriptor)); s != Status::ok)
    return s;
  std::memcpy(to, from, sizeof(Descriptor));
  return Status::ok;
}

/// A struct that the library fills in: as much of it as the caller has room for.
template <class Output>
Status check_output(const char* name, const Output* out) {
  if (out == nullptr) return fail(Status::invalid_argument, "%s is null", name);
  if (out->struct_size >= sizeof(Output)) return Status::ok;
  return fail(Status::invalid_argument, "%s.struct_size %u is below %zu", name, out->struct_size,
              sizeof(Output));
}

Status storage_dtype(const char* name, uint32_t dtype, DType* out);  // 0: f32

enum class Direction { in, out };

struct Expected {
  int32_t ndim;
  int64_t shape[4];
};

/// A tensor of the caller's as kernels read it, against the shape it must have. Float types unless `only` names one.
Status read_tensor(const char* name, const kvc_tensor* from, const Expected& expected,
                   Direction direction, Tensor* to, uint32_t only = 0);

/// The same for an input that is broadcast: a dimension of extent 1 has stride 0 afterwards, and leading dimensions may be
/// missing.
Status read_broadcast(const char* name, const kvc_tensor* from, const Expected& expected,
                      Tensor* to, uint32_t only = 0);

/// Whether the spans of two tensors, from first to last element, meet.
bool overlap(const Tensor& a, const Tensor& b);

}  // namespace kvc::capi
