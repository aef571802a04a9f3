#include "bad_input.hpp"

#include <gtest/gtest.h>

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
    EXPECT_FALSE(message.empty()) << what;
    EXPECT_EQ(message.find('\n'), std::string::npos) << what << ": more than one line";
    EXPECT_LE(message.size(), 511u) << what;
    EXPECT_EQ(message.find("0x7f"), std::string::npos) << what << ": an address: " << message;
    if (expected != KVC_E_HANDLE) {
      EXPECT_NE(message, old) << what << ": no message of its own";
    }
  }
  if (!cache_) return;
  EXPECT_EQ(digest(cache_), before) << what << " changed the state";
  EXPECT_EQ(kvc_check(cache_), KVC_OK) << what << ": " << last_message();
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
}

}  // namespace support
