#pragma once
#include <array>
#include <cstdint>
#include <initializer_list>
#include <string>
#include <vector>

#include "kvc/kvc.h"

/// Small things that every test of the C ABI needs: handles that end with their scope, tensors,
/// names of statuses.
namespace support {

inline std::string last_message() {
  std::array<char, 512> text{};
  kvc_last_error_copy(text.data(), text.size());
  return text.data();
}

inline std::string name(kvc_status status) { return kvc_status_name(status); }

class Device {
 public:
  explicit Device(int32_t n_threads = 1, const kvc_allocator* allocator = nullptr) {
    kvc_device_desc desc{};
    desc.struct_size = sizeof desc;
    desc.n_threads = n_threads;
    status = kvc_device_open("cpu", &desc, allocator, &handle);
  }
  Device(const Device&) = delete;
  Device& operator=(const Device&) = delete;
  ~Device() { kvc_device_close(handle); }
  operator kvc_device*() const { return handle; }

  kvc_device* handle = nullptr;
  kvc_status status = KVC_OK;
};

class Cache {
 public:
  Cache() = default;
  Cache(kvc_device* device, const kvc_cache_desc& desc, const kvc_causal_desc* causal = nullptr) {
    status = kvc_cache_create(device, &desc, causal, &handle);
  }
  Cache(const Cache&) = delete;  // made where it lives (guaranteed elision)
  Cache& operator=(const Cache&) = delete;
  ~Cache() { kvc_cache_destroy(handle); }
  operator kvc_cache*() const { return handle; }

  kvc_cache* handle = nullptr;
  kvc_status status = KVC_OK;
};

inline kvc_cache_desc cache_desc(int32_t n_layers, int32_t n_kv_heads, int32_t head_dim_k,
                                 int32_t head_dim_v) {
  kvc_cache_desc desc{};
  desc.struct_size = sizeof desc;
  desc.kind = KVC_CAUSAL;
  desc.n_layers = n_layers;
  desc.n_kv_heads = n_kv_heads;
  desc.head_dim_k = head_dim_k;
  desc.head_dim_v = head_dim_v;
  desc.dtype_k = KVC_F32;
  desc.dtype_v = KVC_F32;
  desc.max_sequences = 1;
  desc.capacity = 64;
  desc.max_batch = 16;
  return desc;
}

inline kvc_causal_desc causal_desc() {
  kvc_causal_desc desc{};
  desc.struct_size = sizeof desc;
  desc.kind = KVC_CAUSAL;
  return desc;
}

/// A dense row-major view.
inline kvc_tensor dense(void* data, uint32_t dtype, std::initializer_list<int64_t> shape) {
  kvc_tensor tensor{};
  kvc_tensor_dense(data, dtype, static_cast<int32_t>(shape.size()), shape.begin(), &tensor);
  return tensor;
}

using Digest = std::array<uint64_t, 2>;

inline Digest digest(const kvc_cache* cache) {
  Digest result{};
  kvc_state_digest(cache, result.data());
  return result;
}

inline kvc_sequence_info sequence_info(const kvc_cache* cache, int32_t sequence) {
  kvc_sequence_info info{};
  info.struct_size = sizeof info;
  kvc_sequence_query(cache, sequence, &info);
  return info;
}

inline kvc_stats stats(const kvc_cache* cache) {
  kvc_stats result{};
  result.struct_size = sizeof result;
  kvc_cache_stats(cache, &result);
  return result;
}

/// The runs of a sequence, one entry per token: where it lies, its position, and the pending
/// rotation of its key.
struct Place {
  int32_t cell, position, offset;
};

inline kvc_attention_extra extra(const kvc_tensor* bias, const kvc_tensor* mask = nullptr,
                                 kvc_tensor* weights = nullptr) {
  kvc_attention_extra extra{};
  extra.struct_size = sizeof extra;
  extra.bias = bias;
  extra.mask = mask;
  extra.weights = weights;
  return extra;
}

/// kvc_attention() and kvc_put_attention() with a log-sum-exp besides; `lse` and `extra` may be null.
inline kvc_status attention(kvc_cache* cache, int32_t layer, const kvc_tensor* q, kvc_tensor* out,
                            kvc_tensor* lse, const kvc_attention_extra* extra = nullptr) {
  kvc_attention_extra with = extra ? *extra : support::extra(nullptr);
  with.lse = lse;
  return kvc_attention(cache, layer, q, out, extra || lse ? &with : nullptr);
}
inline kvc_status put_attention(kvc_cache* cache, int32_t layer, const kvc_tensor* k,
                                const kvc_tensor* v, const kvc_tensor* q, kvc_tensor* out,
                                kvc_tensor* lse) {
  kvc_attention_extra with = extra(nullptr);
  with.lse = lse;
  return kvc_put_attention(cache, layer, k, v, q, out, lse ? &with : nullptr);
}

inline std::vector<kvc_run> runs(const kvc_cache* cache, int32_t sequence) {
  int32_t n = 0;
  if (kvc_runs(cache, 0, sequence, 0, nullptr, &n) != KVC_OK) return {};
  std::vector<kvc_run> result(static_cast<size_t>(n));
  kvc_runs(cache, 0, sequence, n, result.data(), &n);
  return result;
}

inline std::vector<Place> places(const kvc_cache* cache, int32_t sequence) {
  std::vector<Place> result;
  for (const kvc_run& run : runs(cache, sequence))
    for (int32_t i = 0; i < run.length; ++i)
      result.push_back({run.cell + i, run.position + i, run.offset});
  return result;
}

}  // namespace support
