#include <cmath>
#include <cstring>
#include <memory>
#include <new>
#include <utility>

#include "capi/src/arguments.hpp"
#include "capi/src/guard.hpp"
#include "kernels/cpu/row_codec.hpp"
#include "kvc/storage.h"

/// The codecs alone, on the host.
namespace kvc::capi {
namespace {

using cpu::Row;

struct Codec {
  RowFormat format;
  float scale = 1;  // f8
};

Status read_codec(const kvc_codec_desc* desc, int64_t head_dim, Codec* codec) {
  kvc_codec_desc d;
  if (Status s = read_descriptor("kvc_codec_desc", desc, &d); s != Status::ok) return s;
  if (const uint32_t unknown = d.flags & ~uint32_t{KVC_CODEC_ROTATE}; unknown != 0)
    return unknown_bits("kvc_codec_desc.flags", unknown, "KVC_CODEC_ROTATE");
  RowRequest request = {"dtype", StorageType::f32, static_cast<int32_t>(head_dim), d.block,
                        (d.flags & KVC_CODEC_ROTATE) != 0};
  if (Status s = read_storage_type("dtype", d.dtype, &request.type); s != Status::ok) return s;
  if (Status s = resolve_row_format(request, &codec->format); s != Status::ok) return s;
  if (d.scale == 0) return Status::ok;
  codec->scale = d.scale;
  if (!is_f8(request.type)) {
    return fail(Status::invalid_argument,
                "scale is %g and dtype %s; it must be 0: only f8_e4m3 and f8_e5m2 take one",
                static_cast<double>(d.scale), format_of(request.type).name);
  }
  constexpr float most = 0x1p100f;
  if (d.scale >= 1 / most && d.scale <= most) return Status::ok;
  return fail(Status::invalid_argument, "scale is %g; it must be 0 or from 2^-100 to 2^100",
              static_cast<double>(d.scale));
}

/// Vectors, their codes and their scales: tensors of the same leading dimensions.
struct Vectors {
  Tensor values, codes, scales;

  int64_t count() const {
    if (values.is_empty()) return 0;  // other extents may be of any size
    int64_t n = 1;
    for (int32_t d = 0; d + 1 < values.ndim; ++d) n *= values.shape[d];
    return n;
  }
};

/// Row `index` of a tensor, counted in row-major order of the leading dimensions.
Row row_at(const Tensor& tensor, int64_t index) {
  int64_t element = 0;
  for (int32_t d = tensor.ndim - 2; d >= 0; --d) {
    element += index % tensor.shape[d] * tensor.stride[d];
    index /= tensor.shape[d];
  }
  auto* data = static_cast<std::byte*>(tensor.data) +
               element * static_cast<int64_t>(size_of(tensor.dtype));
  return {.data = data, .stride = tensor.stride[tensor.ndim - 1], .dtype = tensor.dtype};
}

/// Checks `values` alone and finds head_dim.
Status read_head_dim(const kvc_tensor* values, int64_t* head_dim) {
  if (values == nullptr) return is_null("values");
  if (values->ndim < 1 || values->ndim > KVC_MAX_DIMS) {
    return fail(Status::shape, "values has %d dimensions, not 1 to %d (..., head_dim)",
                values->ndim, KVC_MAX_DIMS);
  }
  *head_dim = values->shape[values->ndim - 1];
  if (*head_dim >= 1 && *head_dim <= max_head_dim) return Status::ok;
  return fail(Status::shape, "values has a last dimension of %lld, not 1 to %d (..., head_dim)",
              static_cast<long long>(*head_dim), max_head_dim);
}

struct Given {
  const kvc_tensor *values, *codes, *scales;
  bool encodes;
};

Status read_vectors(const Given& given, const Codec& codec, Vectors* vectors) {
  const DeviceInfo host;
  const RowFormat& format = codec.format;
  const StorageFormat elements = format_of(format.type);
  const Direction in = given.encodes ? Direction::in : Direction::out;
  const Direction out = given.encodes ? Direction::out : Direction::in;
  Expected shape = {given.values->ndim, {}, "..., head_dim"};
  std::memcpy(shape.shape, given.values->shape, sizeof shape.shape);
  if (Status s = read_tensor("values", given.values, shape, in, host, &vectors->values);
      s != Status::ok)
    return s;
  int64_t& last = shape.shape[shape.ndim - 1];
  last = format.n_codes();
  shape.axes = "..., codes_per_row";
  if (Status s = read_tensor("codes", given.codes, shape, out, host, &vectors->codes,
                             elements_of(elements.code));
      s != Status::ok)
    return s;
  if (format.block == 0) {
    if (given.scales == nullptr) return Status::ok;
    return fail(Status::invalid_argument, "scales must be null: %s stores no scales", elements.name);
  }
  last = format.n_scales();
  shape.axes = "..., scales_per_row";
  return read_tensor("scales", given.scales, shape, out, host, &vectors->scales,
                     elements_of(elements.scale));
}

Status check_apart(const Vectors& vectors) {
  struct Named {
    const char* name;
    const Tensor& tensor;
  };
  const Named values = {"values", vectors.values}, codes = {"codes", vectors.codes},
              scales = {"scales", vectors.scales};
  for (const auto& [first, second] : {std::pair(values, codes), {values, scales}, {codes, scales}}) {
    if (second.tensor.data == nullptr || !overlap(first.tensor, second.tensor)) continue;
    return fail(Status::invalid_argument, "%s overlaps %s: each needs memory of its own",
                second.name, first.name);
  }
  return Status::ok;
}

/// Room for one vector: its numbers, and its codes and scales where the tensor's elements do not lie side by side.
class Room {
 public:
  /// Memory is taken for long vectors alone.
  Status take(const RowFormat& format) {
    if (format.head_dim <= on_stack) return Status::ok;
    const auto n = static_cast<size_t>(format.head_dim);
    heap_.reset(new (std::nothrow) float[3 * n]);
    if (!heap_) {
      return fail(Status::out_of_memory, "the process has no memory for a vector of %d numbers",
                  format.head_dim);
    }
    values = heap_.get();
    codes = reinterpret_cast<std::byte*>(heap_.get() + n);
    scales = reinterpret_cast<std::byte*>(heap_.get() + 2 * n);
    return Status::ok;
  }

  float* values = on_stack_;
  std::byte* codes = reinterpret_cast<std::byte*>(&on_stack_[on_stack]);
  std::byte* scales = codes + on_stack * sizeof(float);

 private:
  static constexpr int32_t on_stack = 4096;
  alignas(64) float on_stack_[3 * on_stack];
  std::unique_ptr<float[]> heap_;
};

void copy_elements(std::byte* to, int64_t to_stride, const std::byte* from, int64_t from_stride,
                   int64_t n, size_t element) {
  for (int64_t i = 0; i < n; ++i) {
    std::memcpy(to + i * to_stride * static_cast<int64_t>(element),
                from + i * from_stride * static_cast<int64_t>(element), element);
  }
}

/// Calls use(row, stored) for every vector. Codes and scales that do not lie side by side pass through the room.
template <class Use>
void for_each_vector(const Vectors& vectors, const Codec& codec, const Room& room, bool encodes,
                     Use use) {
  const RowFormat& format = codec.format;
  const int64_t n = vectors.count();
  const bool codes_apart = vectors.codes.stride[vectors.codes.ndim - 1] != 1 && format.n_codes() > 1;
  const bool has_scales = vectors.scales.data != nullptr;
  const bool scales_apart = has_scales && format.n_scales() > 1 &&
                            vectors.scales.stride[vectors.scales.ndim - 1] != 1;
  for (int64_t i = 0; i < n; ++i) {
    const Row codes = row_at(vectors.codes, i);
    const Row scales = has_scales ? row_at(vectors.scales, i) : Row{};
    StoredRow stored = {codes.data, scales.data, codec.scale};
    if (codes_apart) stored.codes = room.codes;
    if (scales_apart) stored.scales = room.scales;
    const auto copy_each = [&](auto copy) {
      if (codes_apart) copy(codes, room.codes, format.n_codes());
      if (scales_apart) copy(scales, room.scales, format.n_scales());
    };
    if (!encodes) {
      copy_each([](const Row& row, std::byte* side_by_side, int32_t count) {
        copy_elements(side_by_side, 1, row.data, row.stride, count, size_of(row.dtype));
      });
    }
    use(row_at(vectors.values, i), stored);
    if (encodes) {
      copy_each([](const Row& row, std::byte* side_by_side, int32_t count) {
        copy_elements(row.data, row.stride, side_by_side, 1, count, size_of(row.dtype));
      });
    }
  }
}

Status code(const kvc_codec_desc* desc, const Given& given) {
  int64_t head_dim = 0;
  Codec codec;
  Vectors vectors;
  if (Status s = read_head_dim(given.values, &head_dim); s != Status::ok) return s;
  if (Status s = read_codec(desc, head_dim, &codec); s != Status::ok) return s;
  if (Status s = read_vectors(given, codec, &vectors); s != Status::ok) return s;
  if (Status s = check_apart(vectors); s != Status::ok) return s;
  Room room;
  if (Status s = room.take(codec.format); s != Status::ok) return s;
  for_each_vector(vectors, codec, room, given.encodes, [&](const Row& row, const StoredRow& stored) {
    if (given.encodes) {
      cpu::encode_row(codec.format, stored, row, room.values);
    } else {
      cpu::decode_row(codec.format, stored, room.values);
      cpu::convert_row(row, {.data = reinterpret_cast<std::byte*>(room.values)}, head_dim);
    }
  });
  return Status::ok;
}

Status query(uint32_t dtype, int32_t head_dim, int32_t block, kvc_storage_info* out) {
  if (Status s = check_output("kvc_storage_info", out); s != Status::ok) return s;
  RowRequest request = {"dtype", StorageType::f32, head_dim, block, false};
  if (Status s = read_storage_type("dtype", dtype, &request.type); s != Status::ok) return s;
  if (head_dim < 1 || head_dim > max_head_dim)
    return out_of_range("head_dim", head_dim, 1, max_head_dim);
  RowFormat format;
  if (Status s = resolve_row_format(request, &format); s != Status::ok) return s;
  kvc_storage_info info = KVC_STORAGE_INFO_INIT;
  info.dtype = dtype_of(format.type);
  info.code_dtype = static_cast<uint32_t>(format_of(format.type).code);
  info.scale_dtype = format.block == 0 ? 0 : static_cast<uint32_t>(format_of(format.type).scale);
  info.block = format.block;
  info.codes_per_row = format.n_codes();
  info.scales_per_row = format.n_scales();
  info.bytes_per_row = static_cast<int32_t>(format.code_bytes() + format.scale_bytes());
  write_output(info, out);
  return Status::ok;
}

}  // namespace
}  // namespace kvc::capi

kvc_status kvc_storage_query(uint32_t dtype, int32_t head_dim, int32_t block,
                             kvc_storage_info* out) noexcept {
  return kvc::capi::guard([&] { return kvc::capi::query(dtype, head_dim, block, out); });
}

kvc_status kvc_encode(const kvc_codec_desc* desc, const kvc_tensor* values, kvc_tensor* codes,
                      kvc_tensor* scales) noexcept {
  return kvc::capi::guard([&] { return kvc::capi::code(desc, {values, codes, scales, true}); });
}

kvc_status kvc_decode(const kvc_codec_desc* desc, const kvc_tensor* codes, const kvc_tensor* scales,
                      kvc_tensor* values) noexcept {
  return kvc::capi::guard([&] { return kvc::capi::code(desc, {values, codes, scales, false}); });
}
