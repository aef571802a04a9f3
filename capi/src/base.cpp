#include <cstdio>

#include "capi/src/arguments.hpp"
#include "capi/src/guard.hpp"
#include "capi/src/words.hpp"
#include "core/base/checked.hpp"
#include "kernels/cpu/kernel_table.hpp"

static_assert(sizeof(kvc_tensor) == 168);
static_assert(static_cast<kvc_status>(kvc::Status::cache_full) == KVC_E_CACHE_FULL);
static_assert(static_cast<kvc_status>(kvc::Status::internal) == KVC_E_INTERNAL);
static_assert(static_cast<uint32_t>(kvc::DType::bf16) == KVC_BF16);
static_assert(static_cast<uint32_t>(kvc::DType::i8) == KVC_I8);
static_assert(static_cast<uint32_t>(kvc::DType::u8) == KVC_U8);
static_assert(static_cast<uint32_t>(kvc::DType::f8_e4m3) == KVC_F8_E4M3);
static_assert(static_cast<uint32_t>(kvc::DType::f8_e5m2) == KVC_F8_E5M2);

const char* kvc_status_name(kvc_status status) noexcept {
  switch (status) {
    case KVC_OK: return "OK";
    case KVC_E_INVALID_ARGUMENT: return "INVALID_ARGUMENT";
    case KVC_E_HANDLE: return "HANDLE";
    case KVC_E_OUT_OF_MEMORY: return "OUT_OF_MEMORY";
    case KVC_E_NOT_SUPPORTED: return "NOT_SUPPORTED";
    case KVC_E_BAD_STATE: return "BAD_STATE";
    case KVC_E_BUSY: return "BUSY";
    case KVC_E_SHAPE: return "SHAPE";
    case KVC_E_DTYPE: return "DTYPE";
    case KVC_E_OVERFLOW: return "OVERFLOW";
    case KVC_E_VERSION: return "VERSION";
    case KVC_E_CACHE_FULL: return "CACHE_FULL";
    case KVC_E_WINDOW_LOST: return "WINDOW_LOST";
    case KVC_E_NOT_FOUND: return "NOT_FOUND";
    case KVC_E_INVALID_RECURRENT_SHAPE: return "INVALID_RECURRENT_SHAPE";
    case KVC_E_DEVICE: return "DEVICE";
    case KVC_E_DEVICE_MISMATCH: return "DEVICE_MISMATCH";
    case KVC_E_BACKEND_UNAVAILABLE: return "BACKEND_UNAVAILABLE";
    case KVC_E_IO: return "IO";
    case KVC_E_CORRUPT: return "CORRUPT";
    case KVC_E_INTERNAL: return "INTERNAL";
    default: return "UNKNOWN";
  }
}

size_t kvc_last_error_copy(char* buffer, size_t capacity) noexcept {
  return kvc::copy_last_message(buffer, capacity);
}

kvc_status kvc_tensor_dense(void* data, uint32_t dtype, int32_t ndim, const int64_t* shape,
                            kvc_tensor* out) noexcept {
  return kvc::capi::guard([&]() -> kvc::Status {
    using kvc::fail, kvc::Status;
    if (out == nullptr) return kvc::is_null("out");
    if (shape == nullptr) return kvc::is_null("shape");
    if (ndim < 1 || ndim > KVC_MAX_DIMS) return kvc::out_of_range("ndim", ndim, 1, KVC_MAX_DIMS);
    if (!kvc::capi::is_element_type(dtype)) {
      return kvc::capi::wrong_dtype("dtype", dtype,
                                    "f32, f16, bf16, i32, bool, i8, u8, f8_e4m3 or f8_e5m2");
    }
    kvc_tensor tensor = {};
    kvc::CheckedSize stride(1);
    for (int32_t d = ndim - 1; d >= 0; --d) {
      if (shape[d] < 0) {
        return fail(Status::invalid_argument, "shape is %s, and shape[%d] is negative",
                    kvc::capi::words_for_list(shape, ndim).text, d);
      }
      tensor.shape[d] = shape[d];
      tensor.strides[d] = static_cast<int64_t>(stride.value());
      stride = stride * kvc::CheckedSize(static_cast<uint64_t>(shape[d] > 0 ? shape[d] : 1));
      if (stride.overflowed() || stride.value() > static_cast<uint64_t>(INT64_MAX) / 4) {
        return fail(Status::overflow, "shape is %s: more than 2^61 elements",
                    kvc::capi::words_for_list(shape, ndim).text);
      }
    }
    tensor.data = data;
    tensor.ndim = ndim;
    tensor.dtype = dtype;
    tensor.device_type = KVC_CPU;
    *out = tensor;
    return Status::ok;
  });
}

uint32_t kvc_version_number(void) noexcept { return KVC_VERSION_NUMBER; }

const char* kvc_build_info(void) noexcept {
  static const struct Info {
    char text[256];
    Info() {
      const char* refusal = kvc::cpu::amx_refusal();
      std::snprintf(text, sizeof text, "kvc %d.%d.%d, %s %s, cpu kernels: %s%s%s",
                    KVC_VERSION_MAJOR, KVC_VERSION_MINOR, KVC_VERSION_PATCH,
#if defined(__clang__)
                    "clang", __clang_version__,
#else
                    "gcc", __VERSION__,
#endif
                    kvc::cpu::kernels().name, refusal ? "; AMX refused: " : "",
                    refusal ? refusal : "");
    }
  } info;
  return info.text;
}
