// kvc/base.hpp: errors as exceptions, owners of handles, and tensors. Part of <kvc/kvc.hpp>.
#ifndef KVC_BASE_HPP
#define KVC_BASE_HPP

#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "kvc.h"

namespace kvc {
// The library itself uses namespace kvc, and a static libkvc.a hides no symbol: this keeps the two sets of names apart.
inline namespace api_0_2 {

// ---- Errors ---------------------------------------------------------------------------------------------------------

// Thrown by a failing call. what() is "CACHE_FULL: " followed by the message.
class Error : public std::runtime_error {
 public:
  Error(kvc_status status, const std::string &message)
      : std::runtime_error(std::string(kvc_status_name(status)) + ": " + message), status_(status), message_(message) {}

  kvc_status status() const noexcept { return status_; }
  const std::string &message() const noexcept { return message_; }

 private:
  kvc_status status_;
  std::string message_;
};

// An Error of one status, so that it can be caught by its type.
template <kvc_status Status>
class ErrorOf : public Error {
 public:
  explicit ErrorOf(const std::string &message) : Error(Status, message) {}
};

using InvalidArgument = ErrorOf<KVC_E_INVALID_ARGUMENT>;
using InvalidHandle = ErrorOf<KVC_E_HANDLE>;  // closed, or moved from
using OutOfMemory = ErrorOf<KVC_E_OUT_OF_MEMORY>;
using NotSupported = ErrorOf<KVC_E_NOT_SUPPORTED>;
using BadState = ErrorOf<KVC_E_BAD_STATE>;
using Busy = ErrorOf<KVC_E_BUSY>;
using ShapeError = ErrorOf<KVC_E_SHAPE>;
using DtypeError = ErrorOf<KVC_E_DTYPE>;
using SizeOverflow = ErrorOf<KVC_E_OVERFLOW>;
using VersionMismatch = ErrorOf<KVC_E_VERSION>;
using CacheFull = ErrorOf<KVC_E_CACHE_FULL>;
using WindowLost = ErrorOf<KVC_E_WINDOW_LOST>;
using NotFound = ErrorOf<KVC_E_NOT_FOUND>;
using StateShapeError = ErrorOf<KVC_E_INVALID_RECURRENT_SHAPE>;
using Corrupt = ErrorOf<KVC_E_CORRUPT>;
using DeviceFailure = ErrorOf<KVC_E_DEVICE>;
using DeviceMismatch = ErrorOf<KVC_E_DEVICE_MISMATCH>;
using BackendUnavailable = ErrorOf<KVC_E_BACKEND_UNAVAILABLE>;
using InternalError = ErrorOf<KVC_E_INTERNAL>;

// Throws the Error of a status; a status without a type of its own is thrown as a plain Error.
[[noreturn]] inline void raise(kvc_status status, const std::string &message) {
  switch (status) {
    case KVC_E_INVALID_ARGUMENT: throw InvalidArgument(message);
    case KVC_E_HANDLE: throw InvalidHandle(message);
    case KVC_E_OUT_OF_MEMORY: throw OutOfMemory(message);
    case KVC_E_NOT_SUPPORTED: throw NotSupported(message);
    case KVC_E_BAD_STATE: throw BadState(message);
    case KVC_E_BUSY: throw Busy(message);
    case KVC_E_SHAPE: throw ShapeError(message);
    case KVC_E_DTYPE: throw DtypeError(message);
    case KVC_E_OVERFLOW: throw SizeOverflow(message);
    case KVC_E_VERSION: throw VersionMismatch(message);
    case KVC_E_CACHE_FULL: throw CacheFull(message);
    case KVC_E_WINDOW_LOST: throw WindowLost(message);
    case KVC_E_NOT_FOUND: throw NotFound(message);
    case KVC_E_INVALID_RECURRENT_SHAPE: throw StateShapeError(message);
    case KVC_E_CORRUPT: throw Corrupt(message);
    case KVC_E_DEVICE: throw DeviceFailure(message);
    case KVC_E_DEVICE_MISMATCH: throw DeviceMismatch(message);
    case KVC_E_BACKEND_UNAVAILABLE: throw BackendUnavailable(message);
    case KVC_E_INTERNAL: throw InternalError(message);
    default: throw Error(status, message);
  }
}

// Throws if a C function failed; for callers that mix both APIs: kvc::check(kvc_commit(cache.handle())).
inline void check(kvc_status status) {
  if (status == KVC_OK) return;
  char message[512];
  kvc_last_error_copy(message, sizeof message);
  raise(status, message);
}

// Throws if a library with this version number is not the one that these headers describe. Device calls it.
inline void check_version(std::uint32_t library) {
  const auto text = [](std::uint32_t number) {
    return std::to_string(number >> 16) + "." + std::to_string(number >> 8 & 0xff);
  };
  if (library >> 8 != KVC_VERSION_NUMBER >> 8)
    raise(KVC_E_VERSION, "compiled for kvc " + text(KVC_VERSION_NUMBER) + ", loaded kvc " + text(library) +
                             ": load the library of the headers, or compile again with the headers of the library");
}

// ---- Owners ---------------------------------------------------------------------------------------------------------

// Owns a handle: destroys it in the end, can be moved and not copied. One that was closed or moved from has a null handle.
template <typename Object, kvc_status (*Destroy)(Object *)>
class Owner {
 public:
  Owner(Owner &&other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Owner &operator=(Owner &&other) noexcept {
    if (this != &other) {
      Destroy(handle_);
      handle_ = std::exchange(other.handle_, nullptr);
    }
    return *this;
  }

  // The destructor does the same but cannot report BUSY. Closing twice is allowed.
  void close() {
    check(Destroy(handle_));
    handle_ = nullptr;
  }
  Object *handle() const noexcept { return handle_; }

 protected:
  Owner() noexcept = default;
  ~Owner() { Destroy(handle_); }

  Object *handle_ = nullptr;
};

// ---- Tensors: views of memory that the caller owns, on the CPU where nothing else is said -------------------------------------------------------

// A view that kvc writes to. float means KVC_F32; pass 16-bit elements with their type. A vector may be longer than the shape
// asks, not shorter (InvalidArgument), and must not be resized while the view is used. Rows are dense; for strides fill in a
// kvc_tensor yourself. {} is no tensor, for calls that can do without one.
class Tensor {
 public:
  using Shape = std::initializer_list<std::int64_t>;

  Tensor() noexcept : view_(), present_(false) {}
  Tensor(float *data, Shape shape) : Tensor(data, KVC_F32, shape) {}
  Tensor(bool *data, Shape shape) : Tensor(data, KVC_BOOL, shape) {
    static_assert(sizeof(bool) == 1, "KVC_BOOL is a byte");
  }
  Tensor(void *data, std::uint32_t dtype, Shape shape) {
    const std::int64_t none = 0;  // the list may be a null pointer when it is empty
    check(kvc_tensor_dense(data, dtype, static_cast<std::int32_t>(shape.size()), shape.size() > 0 ? shape.begin() : &none,
                           &view_));
  }
  Tensor(std::vector<float> &data, Shape shape) : Tensor(data, KVC_F32, shape) {}
  template <typename Element>
  Tensor(std::vector<Element> &data, std::uint32_t dtype, Shape shape) : Tensor(data.data(), dtype, shape) {
    check_fits(data.size(), sizeof(Element));
  }
  Tensor(const kvc_tensor &view) noexcept : view_(view) {}

  // The same view of the memory of "cuda:<id>", where `data` is an address.
  Tensor on_cuda(std::int32_t id = 0) const noexcept {
    Tensor there = *this;
    there.view_.device_type = KVC_CUDA;
    there.view_.device_id = id;
    return there;
  }

  // Null for {}.
  kvc_tensor *get() noexcept { return present_ ? &view_ : nullptr; }
  const kvc_tensor *get() const noexcept { return present_ ? &view_ : nullptr; }

 private:
  friend class ConstTensor;
  void check_fits(std::size_t n_elements, std::size_t element_bytes) const {
    const std::size_t dtype_bytes = (view_.dtype >> 8 & 0xff) / 8;
    if (element_bytes != dtype_bytes)
      raise(KVC_E_INVALID_ARGUMENT, "the vector's elements have " + std::to_string(element_bytes) + " bytes, those of dtype " +
                                        std::to_string(dtype_bytes));
    std::size_t needed = 1;
    for (std::int32_t d = 0; d < view_.ndim; ++d) needed *= static_cast<std::size_t>(view_.shape[d]);
    if (n_elements < needed)
      raise(KVC_E_INVALID_ARGUMENT, "the vector has " + std::to_string(n_elements) + " elements, the shape takes " +
                                        std::to_string(needed));
  }

  kvc_tensor view_;
  bool present_ = true;
};

// A view that kvc only reads. A mask is bool, or bytes with the type KVC_BOOL. {} is no tensor.
class ConstTensor {
 public:
  using Shape = Tensor::Shape;

  ConstTensor() noexcept = default;
  ConstTensor(const float *data, Shape shape) : ConstTensor(data, KVC_F32, shape) {}
  ConstTensor(const bool *data, Shape shape) : ConstTensor(data, KVC_BOOL, shape) {
    static_assert(sizeof(bool) == 1, "KVC_BOOL is a byte");
  }
  ConstTensor(const void *data, std::uint32_t dtype, Shape shape)
      : view_(const_cast<void *>(data), dtype, shape) {}  // the C struct has one pointer for both
  ConstTensor(const std::vector<float> &data, Shape shape) : ConstTensor(data, KVC_F32, shape) {}
  template <typename Element>
  ConstTensor(const std::vector<Element> &data, std::uint32_t dtype, Shape shape) : ConstTensor(data.data(), dtype, shape) {
    view_.check_fits(data.size(), sizeof(Element));
  }
  ConstTensor(const Tensor &view) noexcept : view_(view) {}
  ConstTensor(const kvc_tensor &view) noexcept : view_(view) {}
  ConstTensor(const std::optional<kvc_tensor> &view) noexcept : view_(view ? Tensor(*view) : Tensor()) {}

  ConstTensor on_cuda(std::int32_t id = 0) const noexcept { return view_.on_cuda(id); }

  const kvc_tensor *get() const noexcept { return view_.get(); }

 private:
  Tensor view_;
};

// ---- Lists ----------------------------------------------------------------------------------------------------------

namespace detail {

// All that `list(room, elements, &n)` lists.
template <typename Element = std::int32_t, typename List>
std::vector<Element> list_of(List list) {
  std::vector<Element> found;
  std::int32_t n = 0, room = 0;
  do {  // another thread may change their number between two calls
    found.resize(static_cast<std::size_t>(n));
    room = n;
    check(list(room, found.data(), &n));
  } while (n > room);
  found.resize(static_cast<std::size_t>(n));
  return found;
}

template <typename Element>
std::int32_t length(const char *name, const std::vector<Element> &values) {
  if (values.size() > static_cast<std::size_t>(INT32_MAX))
    raise(KVC_E_INVALID_ARGUMENT,
          std::string(name) + " has " + std::to_string(values.size()) + " elements; at most 2147483647 are taken");
  return static_cast<std::int32_t>(values.size());
}

template <typename Element>
std::int32_t same_length(const char *a_name, const std::vector<std::int32_t> &a, const char *b_name,
                         const std::vector<Element> &b) {
  if (a.size() != b.size())
    raise(KVC_E_INVALID_ARGUMENT, std::string(a_name) + " has " + std::to_string(a.size()) + " elements, " + b_name + " has " +
                                      std::to_string(b.size()) + ": they must have the same number");
  return length(a_name, a);
}

// Not null: the data() of an empty vector may be, and C would then miss the array and not its elements.
inline const std::int32_t *elements(const std::vector<std::int32_t> &values) {
  static constexpr std::int32_t none = 0;
  return values.empty() ? &none : values.data();
}

}  // namespace detail

}  // namespace api_0_2
}  // namespace kvc

#endif
