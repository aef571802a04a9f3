#include "bad_input.hpp"

#include <gtest/gtest.h>

#include "message_rules.hpp"

namespace support {

void BadInput::expect(kvc_status expected, const std::string& what,
                      const std::function<kvc_status()>& call) {
  ++calls_;
  const Digest before = cache_ ? digest(cache_) : Digest();
  // A message of another failure must not pass for this one's.
  kvc_cache_destroy(reinterpret_cast<kvc_cache*>(uintptr_t{1}));
  const std::string old = last_message();
  const kvc_status status = call();
  const std::string message = last_message();
  EXPECT_EQ(name(status), name(expected)) << what << ": " << message;
  if (status != KVC_OK) {
    EXPECT_EQ(fault_of(status, message), "") << what << ": " << message;
    if (expected != KVC_E_HANDLE) {
      EXPECT_NE(message, old) << what << ": no message of its own";
    }
  }
  if (!cache_) return;
  EXPECT_EQ(digest(cache_), before) << what << " changed the state";
  EXPECT_EQ(kvc_check(cache_), KVC_OK) << what << ": " << last_message();
}

std::vector<Fault> faults(const kvc_tensor& good, Fault::Use use) {
  std::vector<Fault> list;
  const auto add = [&](const std::string& what, kvc_status expected,
                       const std::function<void(kvc_tensor&)>& spoil) {
    list.push_back({what, expected, spoil});
  };
  const int32_t ndim = good.ndim;
  for (const int32_t n : {INT32_MIN, -1, 0, 1, ndim - 1, ndim + 1, 8, 9, INT32_MAX})
    if (n != ndim) add("ndim " + std::to_string(n), KVC_E_SHAPE, [n](auto& t) { t.ndim = n; });
  for (int32_t d = 0; d < ndim; ++d) {
    for (const int64_t extent :
         {INT64_MIN, int64_t{-1}, int64_t{0}, good.shape[d] - 1, good.shape[d] + 1, INT64_MAX})
      if (use != Fault::broadcast || extent != 1)
        add("extent " + std::to_string(extent), KVC_E_SHAPE,
            [d, extent](auto& t) { t.shape[d] = extent; });
    for (const int64_t stride : {INT64_MIN, int64_t{-1}})
      add("stride " + std::to_string(stride), KVC_E_SHAPE,
          [d, stride](auto& t) { t.strides[d] = stride; });
    for (const int64_t stride : {int64_t{1} << 61, INT64_MAX})
      if (good.dtype != KVC_BOOL || stride == INT64_MAX)  // of bytes the other one fits
        add("stride " + std::to_string(stride), KVC_E_OVERFLOW,
            [d, stride](auto& t) { t.strides[d] = stride; });
    if (use == Fault::written)  // two indexes would name one element
      add("stride 0", KVC_E_SHAPE, [d](auto& t) { t.strides[d] = 0; });
  }
  const uint32_t f64 = 2u | 64u << 8 | 1u << 16;
  for (const uint32_t dtype : {0u, 1u, uint32_t{KVC_I32}, uint32_t{KVC_BOOL}, f64, UINT32_MAX})
    if (dtype != good.dtype) add("dtype", KVC_E_DTYPE, [dtype](auto& t) { t.dtype = dtype; });
  for (const int32_t device : {INT32_MIN, -1, 0, int32_t{KVC_CUDA}, INT32_MAX})
    add("device_type", KVC_E_DEVICE_MISMATCH, [device](auto& t) { t.device_type = device; });
  for (const int32_t id : {INT32_MIN, -1, 1, INT32_MAX})
    add("device_id", KVC_E_DEVICE_MISMATCH, [id](auto& t) { t.device_id = id; });
  for (const uint32_t flags : {2u, 3u, 1u << 31, UINT32_MAX})
    add("flags", KVC_E_INVALID_ARGUMENT, [flags](auto& t) { t.flags = flags; });
  add("reserved", KVC_E_INVALID_ARGUMENT, [](auto& t) { t.reserved = 1; });
  for (const uint64_t offset : {uint64_t{1}, uint64_t{2}, uint64_t{3}})
    if (good.dtype != KVC_BOOL)
      add("not aligned", KVC_E_INVALID_ARGUMENT, [offset](auto& t) { t.byte_offset = offset; });
  add("byte_offset", KVC_E_OVERFLOW, [](auto& t) { t.byte_offset = UINT64_MAX - 7; });
  return list;
}

void expect_faults(BadInput& bad, const std::string& name, kvc_tensor& tensor, bool written,
                   const std::function<kvc_status()>& call) {
  const kvc_tensor good = tensor;
  const uint64_t element = (good.dtype >> 8 & 0xff) / 8;
  for (const Fault& fault : faults(good, written ? Fault::written : Fault::read)) {
    if (element < 4 && fault.what == "stride " + std::to_string(int64_t{1} << 61)) continue;
    kvc_tensor spoilt = good;
    fault.spoil(spoilt);
    if (fault.what == "not aligned" && spoilt.byte_offset % element == 0) continue;
    fault.spoil(tensor);
    bad.expect(fault.expected, name + " " + fault.what, call);
    tensor = good;
  }
  tensor.data = nullptr;
  bad.expect(KVC_E_INVALID_ARGUMENT, name + " without data", call);
  tensor = good;
}

void expect(kvc_status wanted, const char* word, kvc_status got) {
  EXPECT_EQ(name(got), name(wanted)) << word << ": " << last_message();
  if (got == KVC_OK) return;
  EXPECT_NE(last_message().find(word), std::string::npos) << last_message();
}

void expect_words(const std::string& what, const std::vector<std::string>& words) {
  const std::string message = support::last_message();
  for (const std::string& word : words)
    EXPECT_NE(message.find(word), std::string::npos)
        << what << ": \"" << word << "\" in: " << message;
}

namespace {

Cache make(kvc_device* device, uint64_t flags) {
  using S = Specimen;
  kvc_cache_desc desc = cache_desc(S::n_layers, S::kv_heads, S::dk, S::dv);
  desc.flags = flags;
  desc.max_sequences = S::max_sequences;
  desc.capacity = S::capacity;
  desc.max_batch = S::max_batch;
  desc.cells = S::cells;
  desc.max_q_heads = S::q_heads;
  return Cache(device, desc);
}

}  // namespace

Specimen::Specimen(kvc_device* device, uint64_t flags, bool rope) : cache(make(device, flags)) {
  EXPECT_EQ(cache.status, KVC_OK) << last_message();
  k = dense(k_data, KVC_F32, {2, kv_heads, dk});
  v = dense(v_data, KVC_F32, {2, kv_heads, dv});
  q = dense(q_data, KVC_F32, {2, q_heads, dk});
  out = dense(out_data, KVC_F32, {2, q_heads, dv});
  lse = dense(lse_data, KVC_F32, {2, q_heads});
  for (float& element : k_data) element = static_cast<float>(&element - k_data);
  for (float& element : v_data) element = static_cast<float>(&element - v_data);
  if (rope) {
    kvc_rope_desc desc{};
    desc.struct_size = sizeof desc;
    EXPECT_EQ(kvc_bind_rope(cache, 0, n_layers, &desc, nullptr), KVC_OK) << last_message();
  }
  append(0);
  append(0);
  append(0);
  append(1);
}

void Specimen::append(int32_t sequence) {
  const int32_t next = sequence_info(cache, sequence).next;
  const kvc_tensor one_k = dense(k_data + next, KVC_F32, {1, kv_heads, dk});
  const kvc_tensor one_v = dense(v_data + next, KVC_F32, {1, kv_heads, dv});
  ASSERT_EQ(kvc_begin(cache, 1, &next, &sequence, nullptr, 0, nullptr), KVC_OK) << last_message();
  for (int32_t layer = 0; layer < n_layers; ++layer)
    ASSERT_EQ(kvc_put(cache, layer, &one_k, &one_v), KVC_OK) << last_message();
  ASSERT_EQ(kvc_commit(cache), KVC_OK);
}

void Specimen::open(int32_t n_put) {
  const int32_t position[] = {sequence_info(cache, 0).next, sequence_info(cache, 1).next};
  const int32_t sequence[] = {0, 1};
  ASSERT_EQ(kvc_begin(cache, 2, position, sequence, nullptr, 0, nullptr), KVC_OK) << last_message();
  for (int32_t layer = 0; layer < n_put; ++layer)
    ASSERT_EQ(kvc_put(cache, layer, &k, &v), KVC_OK) << last_message();
  shape_extras();
}

void Specimen::shape_extras() {
  int32_t first = 0, history = 0;
  ASSERT_EQ(kvc_history(cache, 0, &first, &history), KVC_OK) << last_message();
  bias = dense(bias_data, KVC_F32, {q_heads, 2, history});
  mask = dense(mask_data, KVC_BOOL, {q_heads, 2, history});
  weights = dense(weights_data, KVC_F32, {q_heads, 2, history});
}

}  // namespace support
