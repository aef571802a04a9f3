#pragma once
#include <cstring>
#include <initializer_list>

#include "core/base/messages.hpp"
#include "core/base/status.hpp"
#include "core/base/storage.hpp"
#include "core/base/tensor.hpp"
#include "core/caches/cache.hpp"
#include "core/device.hpp"
#include "kvc/encoder.h"
#include "kvc/experimental.h"
#include "kvc/kvc.h"
#include "kvc/lightning.h"
#include "kvc/metadata.h"
#include "kvc/operators.h"
#include "kvc/recurrent.h"
#include "kvc/storage.h"
#include "kvc/transformer.h"

/// Checks of what callers hand in: descriptors and tensors.
namespace kvc::capi {

/// Bytes that a struct had when it first appeared in this minor version: what every caller's has. They never change within it,
/// whatever is appended.
template <class Struct>
inline constexpr size_t first_size = 0;
template <>
inline constexpr size_t first_size<kvc_device_desc> = 24;
template <>
inline constexpr size_t first_size<kvc_device_info> = 80;
template <>
inline constexpr size_t first_size<kvc_operator_info> = 112;
template <>
inline constexpr size_t first_size<kvc_operator_needs> = 44;
template <>
inline constexpr size_t first_size<kvc_operator_desc> = 68;
template <>
inline constexpr size_t first_size<kvc_forward_desc> = 40;
template <>
inline constexpr size_t first_size<kvc_operator_functions> = 48;
template <>
inline constexpr size_t first_size<kvc_cache_desc> = 72;
template <>
inline constexpr size_t first_size<kvc_causal_desc> = 36;
template <>
inline constexpr size_t first_size<kvc_encoder_desc> = 20;
template <>
inline constexpr size_t first_size<kvc_recurrent_desc> = 56;
template <>
inline constexpr size_t first_size<kvc_transformer_desc> = 24;
template <>
inline constexpr size_t first_size<kvc_lightning_desc> = 32;
template <>
inline constexpr size_t first_size<kvc_attention_desc> = 24;
template <>
inline constexpr size_t first_size<kvc_rope_desc> = 24;
template <>
inline constexpr size_t first_size<kvc_attention_extra> = 80;
template <>
inline constexpr size_t first_size<kvc_sequence_info> = 32;
template <>
inline constexpr size_t first_size<kvc_stats> = 48;
template <>
inline constexpr size_t first_size<kvc_storage_info> = 32;
template <>
inline constexpr size_t first_size<kvc_codec_desc> = 20;
template <>
inline constexpr size_t first_size<kvc_metadata> = 52;

/// "kvc_stats.struct_size is 4, below 48: …"
Status wrong_struct_size(const char* name, uint32_t struct_size, const char* side, size_t bound);

/// `least` is the descriptor's first size, `known` its size today.
Status check_struct_size(const char* name, const void* descriptor, uint32_t struct_size,
                         size_t least, size_t known);

/// Reads a descriptor that may be older or newer than this library: what an older one lacks is zero, a longer one may only
/// hold zeros in what is unknown.
template <class Descriptor>
Status read_descriptor(const char* name, const Descriptor* from, Descriptor* to) {
  constexpr size_t least = first_size<Descriptor>, known = sizeof(Descriptor);
  static_assert(least >= sizeof(from->struct_size) && least <= known);
  if (from == nullptr) return is_null(name);
  const uint32_t size = from->struct_size;
  if (Status s = check_struct_size(name, from, size, least, known); s != Status::ok) return s;
  *to = {};
  std::memcpy(static_cast<void*>(to), from, size < known ? size : known);
  return Status::ok;
}

/// Whether a struct that the library fills in has room for what it always held.
template <class Output>
Status check_output(const char* name, const Output* out) {
  static_assert(first_size<Output> > 0 && first_size<Output> <= sizeof(Output));
  if (out == nullptr) return is_null(name);
  if (out->struct_size >= first_size<Output>) return Status::ok;
  return wrong_struct_size(name, out->struct_size, "below", first_size<Output>);
}

/// Writes as much of it as the caller has room for; struct_size stays the caller's.
template <class Output>
void write_output(Output filled, Output* out) {
  filled.struct_size = out->struct_size;
  std::memcpy(static_cast<void*>(out), &filled,
              filled.struct_size < sizeof(Output) ? filled.struct_size : sizeof(Output));
}

/// What one element of a tensor may be: not a storage type whose codes are smaller than a byte or whose scales lie apart.
bool is_element_type(uint32_t dtype);

/// "k is f64, not f32, f16 or bf16"
Status wrong_dtype(const char* name, uint32_t dtype, const char* wanted);

/// 0 is f32; what is no storage type is DTYPE.
Status read_storage_type(const char* name, uint32_t dtype, StorageType* out);
/// The number of a storage type in the ABI.
uint32_t dtype_of(StorageType type);

enum class Direction { in, out };

struct Expected {
  int32_t ndim;
  int64_t shape[KVC_MAX_DIMS];
  const char* axes;          // what the extents are, for messages
  const char* leading = "";  // what those before `axes` are
};

/// Element types that an argument takes: a set of these, or one type alone.
enum class Elements { floats, f32, boolean, mask, shown, i8, u8, f16, bf16, f8_e4m3, f8_e5m2, any };

/// The one type that an element of codes or scales has.
Elements elements_of(DType dtype);

/// Flags that no function takes but kvc_gather().
Status check_tensor_flags(const char* name, const kvc_tensor& tensor);

/// A tensor of the caller's as kernels read it, against the shape it must have and the device that it must be on.
Status read_tensor(const char* name, const kvc_tensor* from, const Expected& expected,
                   Direction direction, const DeviceInfo& device, Tensor* to,
                   Elements elements = Elements::floats);

/// The same for an input that is broadcast: a dimension of extent 1 has stride 0 afterwards, and leading dimensions may be
/// missing.
Status read_broadcast(const char* name, const kvc_tensor* from, const Expected& expected,
                      const DeviceInfo& device, Tensor* to, Elements elements = Elements::floats);

/// The same for a tensor whose dimension `axis` counts query heads: as many as KV heads stand for a group each. `sharers` receives
/// how many neighbouring query heads share one of the tensor.
struct HeadAxis {
  int32_t axis;
  int64_t n_kv_heads;
};
Status read_for_heads(const char* name, const kvc_tensor* from, const Expected& expected,
                      const HeadAxis& heads, const DeviceInfo& device, Tensor* to, int32_t* sharers,
                      Elements elements = Elements::floats);

/// The dimensions of a tensor that count the tokens of a pass: [n_tokens], or [batch, q_len] in a pass of rows; or those of an
/// encoder's input: [length].
struct TokenDims {
  int32_t n = 1;
  int64_t extent[2] = {};
  const char* names = "";  // for messages

  static TokenDims list(int64_t n_tokens) { return {1, {n_tokens, 0}, "n_tokens, "}; }
  static TokenDims input(int64_t length) { return {1, {length, 0}, "length, "}; }
  static TokenDims rows(int64_t n_rows, int64_t per_row) {
    return {2, {n_rows, per_row}, "batch, q_len, "};
  }
  bool are_rows() const { return n == 2; }
};
TokenDims token_dims(const Cache& cache);

/// [tokens…, heads, per_head]; `axes` are the last two.
Expected expect_tokens(const TokenDims& tokens, int64_t heads, int64_t per_head, const char* axes);
/// Two dimensions of tokens, the first at `dim`, become one, as kernels count tokens. Behind all checks of the tensor.
void fold_tokens(const TokenDims& tokens, int32_t dim, Tensor* tensor);

/// [batch, n_q_heads, q_len, columns] as kernels read it: heads first, then tokens. Behind all checks, too.
void fold_columns(const TokenDims& tokens, Tensor* tensor);

/// A view as callers read it.
void write_view(const Tensor& view, const DeviceInfo& device, kvc_tensor* out);
/// Views of codes and scales; where one is null it is not wanted.
void write_codes(const KeyValues::Codes& codes, const DeviceInfo& device, kvc_tensor* k,
                 kvc_tensor* k_scales, kvc_tensor* v, kvc_tensor* v_scales);
/// A tensor without data is filled in for the caller to allocate.
Status fill_in(const Expected& shape, uint32_t dtype, const DeviceInfo& device, kvc_tensor* out);

/// Whether a cache of these bounds can attend with so many query heads; `name` is where they come from.
Status check_q_heads(const CacheBounds& bounds, const char* name, int64_t n_q_heads);

struct KeysAndValues {
  Tensor k, v;  // v without data where it is a part of k
};

/// With V in K there is no v to put.
Status need_no_v(const char* name, const kvc_tensor* v);

/// The dimensions of tokens of what a put stores.
Status dims_to_put(const LayerAttention& cache, const kvc_tensor* k, TokenDims* tokens);
/// How many rows k has for a put; 1 where it has no shape, which read_keys_and_values() refuses.
int64_t rows_of(const kvc_tensor* k);
/// The tensors of a put of this many rows.
Status read_keys_and_values(const CacheBounds& bounds, const DeviceInfo& device,
                            const TokenDims& tokens, const kvc_tensor* k, const kvc_tensor* v,
                            KeysAndValues* put);

/// Constants of the model, but for what depends on layers.
Status read_constants(const kvc_attention_desc& d, const float* slopes, const float* sinks,
                      AttentionConstants* constants);

/// A whole number of a descriptor, by its name.
struct Count {
  const char* name;
  int32_t value;
};
/// Whether each is from 0 to `most`.
Status check_counts(std::initializer_list<Count> counts, int32_t most);

/// INVALID_ARGUMENT: "out overlaps q".
Status overlaps(const char* written, const char* other);
/// What a call writes must not overlap what it reads or writes besides.
Status check_overlaps(const AttentionTensors& a);

}  // namespace kvc::capi
