#include "capi/src/arguments.hpp"

#include <algorithm>
#include <cinttypes>

#include "capi/src/words.hpp"
#include "core/base/checked.hpp"

namespace kvc::capi {
namespace {

constexpr size_t longest_descriptor = 4096;  // no descriptor will ever be longer: a larger number is garbage

Status check_one(const char* name, uint32_t dtype, uint32_t wanted) {
  return dtype == wanted ? Status::ok : wrong_dtype(name, dtype, dtype_name(wanted));
}

Status check_elements(const char* name, uint32_t dtype, Elements elements) {
  const bool is_float = dtype == KVC_F32 || dtype == KVC_F16 || dtype == KVC_BF16;
  switch (elements) {
    case Elements::floats:
      return is_float ? Status::ok : wrong_dtype(name, dtype, "f32, f16 or bf16");
    case Elements::f32: return dtype == KVC_F32 ? Status::ok : wrong_dtype(name, dtype, "f32");
    case Elements::boolean:
      return dtype == KVC_BOOL ? Status::ok : wrong_dtype(name, dtype, "bool");
    case Elements::mask:
      if (dtype == KVC_F32 || dtype == KVC_F16 || dtype == KVC_BOOL) return Status::ok;
      return wrong_dtype(name, dtype, "f32, f16 or bool");
    case Elements::shown:
      if (dtype == KVC_BOOL || dtype == KVC_I32) return Status::ok;
      return wrong_dtype(name, dtype, "bool or i32");
    case Elements::i8: return check_one(name, dtype, KVC_I8);
    case Elements::u8: return check_one(name, dtype, KVC_U8);
    case Elements::f16: return check_one(name, dtype, KVC_F16);
    case Elements::bf16: return check_one(name, dtype, KVC_BF16);
    case Elements::f8_e4m3: return check_one(name, dtype, KVC_F8_E4M3);
    case Elements::f8_e5m2: return check_one(name, dtype, KVC_F8_E5M2);
    case Elements::any:
      return is_element_type(dtype) ? Status::ok
                                    : wrong_dtype(name, dtype, "a type that an element can have");
  }
  __builtin_unreachable();
}

/// Elements from the first to the last, both included.
CheckedSize span_of(const kvc_tensor& t) {
  CheckedSize span(1);
  for (int32_t d = 0; d < t.ndim; ++d) {
    if (t.shape[d] == 0) return CheckedSize(0);
    span = span + CheckedSize(static_cast<uint64_t>(t.shape[d] - 1)) *
                      CheckedSize(static_cast<uint64_t>(t.strides[d]));
  }
  return span;
}

/// Two indexes that name the same element would be written twice. Dense views with their dimensions in any order, padded or
/// sliced, pass.
bool writes_twice(const kvc_tensor& t) {
  int32_t order[KVC_MAX_DIMS];
  int32_t n = 0;
  for (int32_t d = 0; d < t.ndim; ++d) {
    if (t.shape[d] == 0) return false;
    if (t.shape[d] == 1) continue;
    int32_t at = n++;  // sorted by stride, by insertion: there are at most eight
    for (; at > 0 && t.strides[order[at - 1]] > t.strides[d]; --at) order[at] = order[at - 1];
    order[at] = d;
  }
  CheckedSize inner(1);
  for (int32_t i = 0; i < n; ++i) {
    const auto stride = static_cast<uint64_t>(t.strides[order[i]]);
    if (inner.overflowed() || stride < inner.value()) return true;
    inner = inner + CheckedSize(static_cast<uint64_t>(t.shape[order[i]] - 1)) * CheckedSize(stride);
  }
  return false;
}

Status wrong_shape(const char* name, const kvc_tensor& t, const Expected& expected) {
  const Words wanted = words_for_list(expected.shape, expected.ndim);
  if (t.ndim < 0 || t.ndim > KVC_MAX_DIMS)
    return fail(Status::shape, "%s has %d dimensions, not %d: %s (%s%s)", name, t.ndim,
                expected.ndim, wanted.text, expected.leading, expected.axes);
  return fail(Status::shape, "%s has shape %s, not %s (%s%s)", name,
              words_for_list(t.shape, t.ndim).text, wanted.text, expected.leading, expected.axes);
}

Status check_shape(const char* name, const kvc_tensor& t, const Expected& expected,
                   Direction direction) {
  if (t.ndim != expected.ndim || !std::equal(t.shape, t.shape + t.ndim, expected.shape))
    return wrong_shape(name, t, expected);
  for (int32_t d = 0; d < t.ndim; ++d) {
    if (t.strides[d] < 0) {
      return fail(Status::shape, "%s.strides[%d] is %" PRId64 "; strides are 0 or more", name, d,
                  t.strides[d]);
    }
  }
  if (direction == Direction::out && writes_twice(t)) {
    return fail(
        Status::shape,
        "%s has shape %s and strides %s: several elements at one address, and kvc writes to it",
        name, words_for_list(t.shape, t.ndim).text, words_for_list(t.strides, t.ndim).text);
  }
  return Status::ok;
}

Status check_memory(const char* name, const kvc_tensor& t) {
  const CheckedSize span = span_of(t);
  if (!span.overflowed() && span.value() == 0) return Status::ok;
  if (t.data == nullptr) {
    return fail(Status::invalid_argument, "%s.data is null, but the tensor has shape %s", name,
                words_for_list(t.shape, t.ndim).text);
  }
  const uint64_t element = size_of(static_cast<DType>(t.dtype));
  const uint64_t address = reinterpret_cast<uintptr_t>(t.data);
  const CheckedSize end = CheckedSize(address) + CheckedSize(t.byte_offset) +
                          span * CheckedSize(element);
  if (end.overflowed() || end.value() > uint64_t{PTRDIFF_MAX}) {
    return fail(Status::overflow,
                "%s reaches beyond the address space: shape %s, strides %s, byte_offset %" PRIu64,
                name, words_for_list(t.shape, t.ndim).text, words_for_list(t.strides, t.ndim).text,
                t.byte_offset);
  }
  if (const uint64_t rest = (address + t.byte_offset) % element; rest != 0) {
    return fail(Status::invalid_argument,
                "%s is not aligned: data + byte_offset is %" PRIu64
                " more than a multiple of %" PRIu64 ", the bytes of an element of type %s",
                name, rest, element, dtype_name(t.dtype));
  }
  return Status::ok;
}

}  // namespace

bool is_element_type(uint32_t dtype) {
  switch (dtype) {
    case KVC_F32:
    case KVC_F16:
    case KVC_BF16:
    case KVC_I32:
    case KVC_BOOL:
    case KVC_I8:
    case KVC_U8:
    case KVC_F8_E4M3:
    case KVC_F8_E5M2: return true;
    default: return false;
  }
}

Status wrong_struct_size(const char* name, uint32_t struct_size, const char* side, size_t bound) {
  return fail(
      Status::invalid_argument,
      "%s.struct_size is %u, %s %zu: set it to sizeof(%s), as the initialiser of the struct does",
      name, struct_size, side, bound, name);
}

Status check_struct_size(const char* name, const void* descriptor, uint32_t struct_size,
                         size_t least, size_t known) {
  if (struct_size < least) return wrong_struct_size(name, struct_size, "below", least);
  if (struct_size > longest_descriptor)
    return wrong_struct_size(name, struct_size, "above", longest_descriptor);
  const auto* bytes = static_cast<const unsigned char*>(descriptor);
  for (size_t i = known; i < struct_size; ++i) {
    if (bytes[i] == 0) continue;
    return fail(
        Status::version,
        "%s.struct_size is %u, and byte %zu is not 0: this library knows %zu bytes. Either another "
        "struct was passed as %s, or the caller was compiled for a newer kvc: load that, or leave "
        "its new fields 0",
        name, struct_size, i, known, name);
  }
  return Status::ok;
}

Status wrong_dtype(const char* name, uint32_t dtype, const char* wanted) {
  return fail(Status::dtype, "%s is %s, not %s", name, words_for_dtype(dtype).text, wanted);
}

Status read_storage_type(const char* name, uint32_t dtype, StorageType* out) {
  switch (dtype) {
    case 0:
    case KVC_F32: *out = StorageType::f32; return Status::ok;
    case KVC_F16: *out = StorageType::f16; return Status::ok;
    case KVC_BF16: *out = StorageType::bf16; return Status::ok;
    case KVC_F8_E4M3: *out = StorageType::f8_e4m3; return Status::ok;
    case KVC_F8_E5M2: *out = StorageType::f8_e5m2; return Status::ok;
    case KVC_Q8_0: *out = StorageType::q8_0; return Status::ok;
    case KVC_Q4_0: *out = StorageType::q4_0; return Status::ok;
    case KVC_INT8: *out = StorageType::int8; return Status::ok;
    case KVC_NF4: *out = StorageType::nf4; return Status::ok;
    default: break;
  }
  return wrong_dtype(name, dtype, "f32, f16, bf16, f8_e4m3, f8_e5m2, q8_0, q4_0, int8 or nf4");
}

uint32_t dtype_of(StorageType type) {
  switch (type) {
    case StorageType::f32: return KVC_F32;
    case StorageType::f16: return KVC_F16;
    case StorageType::bf16: return KVC_BF16;
    case StorageType::f8_e4m3: return KVC_F8_E4M3;
    case StorageType::f8_e5m2: return KVC_F8_E5M2;
    case StorageType::q8_0: return KVC_Q8_0;
    case StorageType::q4_0: return KVC_Q4_0;
    case StorageType::int8: return KVC_INT8;
    case StorageType::nf4: return KVC_NF4;
  }
  __builtin_unreachable();
}

Elements elements_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return Elements::f32;
    case DType::f16: return Elements::f16;
    case DType::bf16: return Elements::bf16;
    case DType::boolean: return Elements::boolean;
    case DType::i32: return Elements::shown;
    case DType::i8: return Elements::i8;
    case DType::u8: return Elements::u8;
    case DType::f8_e4m3: return Elements::f8_e4m3;
    case DType::f8_e5m2: return Elements::f8_e5m2;
  }
  __builtin_unreachable();
}

Status check_tensor_flags(const char* name, const kvc_tensor& tensor) {
  if (tensor.flags == 0 && tensor.reserved == 0) return Status::ok;
  return fail(
      Status::invalid_argument,
      "%s has flags %u and reserved %u: both must be 0 (only v of kvc_gather takes the flag "
      "KVC_TENSOR_TRANSPOSED, %d)",
      name, tensor.flags, tensor.reserved, KVC_TENSOR_TRANSPOSED);
}

Status read_tensor(const char* name, const kvc_tensor* from, const Expected& expected,
                   Direction direction, const DeviceInfo& device, Tensor* to, Elements elements) {
  if (from == nullptr) return is_null(name);
  if (Status s = check_tensor_flags(name, *from); s != Status::ok) return s;
  if (Status s = check_shape(name, *from, expected, direction); s != Status::ok) return s;
  if (Status s = check_elements(name, from->dtype, elements); s != Status::ok) return s;
  if (from->device_type != device.type || from->device_id != device.id) {
    return fail(Status::device_mismatch, "%s is on %s, the cache on %s: copy the tensor there",
                name, words_for_device(from->device_type, from->device_id).text,
                words_for_device(device.type, device.id).text);
  }
  if (Status s = check_memory(name, *from); s != Status::ok) return s;
  // An empty tensor may lie nowhere: there is no address to add to.
  to->ndim = from->ndim;
  to->dtype = static_cast<DType>(from->dtype);
  std::copy_n(from->shape, from->ndim, to->shape);
  std::copy_n(from->strides, from->ndim, to->stride);
  to->data = to->is_empty() ? from->data : static_cast<std::byte*>(from->data) + from->byte_offset;
  return Status::ok;
}

Status read_broadcast(const char* name, const kvc_tensor* from, const Expected& expected,
                      const DeviceInfo& device, Tensor* to, Elements elements) {
  if (from == nullptr) return is_null(name);
  if (from->ndim < 1 || from->ndim > expected.ndim) return wrong_shape(name, *from, expected);
  const int32_t missing = expected.ndim - from->ndim;
  Expected given = {from->ndim, {}, expected.axes};
  for (int32_t d = 0; d < from->ndim; ++d)
    given.shape[d] = from->shape[d] == 1 ? 1 : expected.shape[missing + d];
  Tensor tensor;
  if (Status s = read_tensor(name, from, given, Direction::in, device, &tensor, elements);
      s != Status::ok)
    return s;
  *to = tensor;
  to->ndim = expected.ndim;
  for (int32_t d = 0; d < expected.ndim; ++d) {
    const bool repeated = d < missing || tensor.shape[d - missing] == 1;
    to->shape[d] = expected.shape[d];
    to->stride[d] = repeated ? 0 : tensor.stride[d - missing];
  }
  return Status::ok;
}

Status read_for_heads(const char* name, const kvc_tensor* from, const Expected& expected,
                      const HeadAxis& heads, const DeviceInfo& device, Tensor* to, int32_t* sharers,
                      Elements elements) {
  Expected given = expected;
  const bool has_shape = from != nullptr && from->ndim >= 1 && from->ndim <= expected.ndim;
  const int32_t axis = has_shape ? heads.axis - (expected.ndim - from->ndim) : -1;
  const int64_t n_heads = expected.shape[heads.axis];
  const bool by_group = axis >= 0 && heads.n_kv_heads > 1 && from->shape[axis] == heads.n_kv_heads;
  if (by_group) given.shape[heads.axis] = heads.n_kv_heads;
  if (Status s = read_broadcast(name, from, given, device, to, elements); s != Status::ok) return s;
  to->shape[heads.axis] = n_heads;
  *sharers = by_group ? static_cast<int32_t>(n_heads / heads.n_kv_heads) : 1;
  return Status::ok;
}

TokenDims token_dims(const Cache& cache) {
  const int32_t n = cache.n_tokens();
  const int32_t q_len = cache.rows() == nullptr ? 0 : cache.rows()->q_len();
  return q_len == 0 ? TokenDims::list(n) : TokenDims::rows(n / q_len, q_len);
}

Expected expect_tokens(const TokenDims& tokens, int64_t heads, int64_t per_head, const char* axes) {
  if (tokens.are_rows())
    return {4, {tokens.extent[0], tokens.extent[1], heads, per_head}, axes, tokens.names};
  return {3, {tokens.extent[0], heads, per_head}, axes, tokens.names};
}

void fold_tokens(const TokenDims& tokens, int32_t dim, Tensor* tensor) {
  if (!tokens.are_rows() || tensor->ndim == 0) return;
  const int64_t n_rows = tokens.extent[0], per_row = tokens.extent[1];
  const int64_t row_stride = tensor->stride[dim], stride = tensor->stride[dim + 1];
  tensor->shape[dim] = n_rows * per_row;
  tensor->stride[dim] = per_row == 1 ? row_stride : stride;
  if (n_rows > 1 && per_row > 1 && row_stride != per_row * stride) {
    tensor->fold = static_cast<int32_t>(per_row);
    tensor->fold_stride = row_stride;
  }
  --tensor->ndim;
  for (int32_t d = dim + 1; d < tensor->ndim; ++d) {
    tensor->shape[d] = tensor->shape[d + 1];
    tensor->stride[d] = tensor->stride[d + 1];
  }
}

void fold_columns(const TokenDims& tokens, Tensor* tensor) {
  if (!tokens.are_rows() || tensor->ndim == 0) return;
  std::swap(tensor->shape[0], tensor->shape[1]);
  std::swap(tensor->stride[0], tensor->stride[1]);
  fold_tokens(tokens, 1, tensor);
}

Status check_counts(std::initializer_list<Count> counts, int32_t most) {
  for (const Count& count : counts) {
    if (count.value < 0 || count.value > most)
      return out_of_range(count.name, count.value, 0, most);
  }
  return Status::ok;
}

void write_view(const Tensor& view, const DeviceInfo& device, kvc_tensor* out) {
  *out = {};
  out->data = view.data;
  out->ndim = view.ndim;
  out->dtype = static_cast<uint32_t>(view.dtype);
  out->device_type = device.type;
  out->device_id = device.id;
  for (int32_t d = 0; d < view.ndim; ++d) {
    out->shape[d] = view.shape[d];
    out->strides[d] = view.stride[d];
  }
}

void write_codes(const KeyValues::Codes& codes, const DeviceInfo& device, kvc_tensor* k,
                 kvc_tensor* k_scales, kvc_tensor* v, kvc_tensor* v_scales) {
  const auto write = [&device](const Tensor& view, kvc_tensor* out) {
    if (out != nullptr) write_view(view, device, out);
  };
  write(codes.k, k);
  write(codes.k_scales, k_scales);
  write(codes.v, v);
  write(codes.v_scales, v_scales);
}

Status fill_in(const Expected& shape, uint32_t dtype, const DeviceInfo& device, kvc_tensor* out) {
  const auto s = static_cast<Status>(kvc_tensor_dense(nullptr, dtype, shape.ndim, shape.shape, out));
  if (s != Status::ok) return s;
  out->device_type = device.type;
  out->device_id = device.id;
  return Status::ok;
}

Status check_q_heads(const CacheBounds& bounds, const char* name, int64_t n_q_heads) {
  if (n_q_heads >= bounds.n_kv_heads && n_q_heads <= bounds.max_q_heads &&
      n_q_heads % bounds.n_kv_heads == 0)
    return Status::ok;
  return fail(Status::invalid_argument,
              "%s is %lld; it must be a multiple of n_kv_heads %d, from %d to max_q_heads %d", name,
              static_cast<long long>(n_q_heads), bounds.n_kv_heads, bounds.n_kv_heads,
              bounds.max_q_heads);
}

Status need_no_v(const char* name, const kvc_tensor* v) {
  if (v == nullptr) return Status::ok;
  return fail(Status::invalid_argument, "%s must be null: with KVC_CACHE_V_IN_K V is a part of K",
              name);
}

Status dims_to_put(const LayerAttention& cache, const kvc_tensor* k, TokenDims* tokens) {
  *tokens = token_dims(cache.holder());
  if (tokens->are_rows()) return Status::ok;
  if (cache.holder().encoder_inputs() != nullptr) *tokens = TokenDims::input(0);
  return cache.rows_to_put(rows_of(k), &tokens->extent[0]);
}

int64_t rows_of(const kvc_tensor* k) { return k != nullptr && k->ndim == 3 ? k->shape[0] : 1; }

Status read_keys_and_values(const CacheBounds& bounds, const DeviceInfo& device,
                            const TokenDims& tokens, const kvc_tensor* k, const kvc_tensor* v,
                            KeysAndValues* put) {
  const Expected k_shape = expect_tokens(tokens, bounds.n_kv_heads, bounds.head_dim_k,
                                         "n_kv_heads, head_dim_k");
  const Expected v_shape = expect_tokens(
      tokens, bounds.value_heads, bounds.head_dim_v,
      bounds.value_heads == bounds.n_kv_heads ? "n_kv_heads, head_dim_v" : "value_heads, head_dim_v");
  if (Status s = read_tensor("k", k, k_shape, Direction::in, device, &put->k); s != Status::ok)
    return s;
  fold_tokens(tokens, 0, &put->k);
  if (bounds.v_in_k) return need_no_v("v", v);
  if (Status s = read_tensor("v", v, v_shape, Direction::in, device, &put->v); s != Status::ok)
    return s;
  fold_tokens(tokens, 0, &put->v);
  return Status::ok;
}

}  // namespace kvc::capi
