// An operator is asked for nothing that it lacks: each feature that a call needs and the device's operator has not is
// NOT_SUPPORTED, by name, and nothing has changed.
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "capi/src/handle_table.hpp"
#include "capi/src/objects.hpp"
#include "core/caches/causal.hpp"
#include "support/abi.hpp"
#include "tests/fake/over_cpu.hpp"

namespace {

using kvc::Status;

constexpr kvc::FeatureSet everything = 0xffffffff;

/// The CPU with an operator that lacks something.
class PoorDevice final : public fake::DeviceOverCpu {
 public:
  PoorDevice(kvc::FeatureSet lacking, uint32_t storage)
      : op_(*DeviceOverCpu::attention_operator(0)) {
    op_.name = "poor";
    op_.features &= ~lacking;
    op_.storage = storage;
  }
  const kvc::AttentionOperator* attention_operator(int32_t index) const noexcept override {
    return index == 0 ? &op_ : nullptr;
  }
  Status attach(const kvc::AttentionBounds& bounds, const kvc::WorkspaceBlocks& workspace,
                std::unique_ptr<kvc::CacheDevice>* out) noexcept override {
    return attach_around(
        bounds, workspace, [](auto call) { return call(); }, out);
  }

 private:
  kvc::AttentionOperator op_;
};

/// A call that uses every feature at once, on a device that lacks `lacking`.
void attend(kvc::FeatureSet lacking, uint32_t storage, std::string* message, kvc_status* status) {
  kvc::CacheBounds bounds;
  bounds.n_layers = bounds.max_sequences = 1;
  bounds.n_kv_heads = 1;
  bounds.head_dim_k = 4;
  bounds.head_dim_v = 2;
  bounds.type_k = kvc::StorageType::f16;
  bounds.capacity = bounds.max_batch = 16;
  kvc::CausalRequest wanted;
  wanted.reach = 4;
  wanted.chunk = 8;
  kvc::CausalSettings settings;
  ASSERT_EQ(kvc::CausalCache::resolve(bounds, wanted, &settings), Status::ok);
  auto object = std::make_unique<kvc::capi::CacheObject>();
  const auto device = std::make_shared<PoorDevice>(lacking, storage);
  ASSERT_EQ(kvc::CausalCache::create(device, bounds, settings, &object->cache), Status::ok);
  kvc::Cache& cache = *object->cache;
  kvc::KeyValues& kv = *cache.key_values();

  const float slopes[] = {1, 1}, sinks[] = {0, 0};
  kvc::AttentionConstants constants;
  constants.n_q_heads = 2;
  constants.softcap = 10;
  constants.slopes = slopes;
  constants.sinks = sinks;
  kv.bind_attention(0, 1, constants);
  kvc::RopeSettings rope;
  rope.n_dims = 4;
  cache.positioned_keys()->bind_rope(0, 1, rope);

  std::vector<float> numbers(64, 0.5f);
  std::vector<uint8_t> seen(64, 1);
  const auto tensor = [&](int64_t tokens, int64_t heads, int64_t dims) {
    return kvc::Tensor{.data = numbers.data(),
                       .shape = {tokens, heads, dims},
                       .stride = {heads * dims, dims, 1},
                       .ndim = 3};
  };
  const auto pass = [&](int32_t first, int32_t n) {
    std::vector<int32_t> position, sequence(static_cast<size_t>(n), 0);
    for (int32_t i = 0; i < n; ++i) position.push_back(first + i);
    std::vector<uint32_t> flags(static_cast<size_t>(n), kvc::token_sees_later);
    const kvc::Batch batch = {
        .n_tokens = n, .position = position.data(), .sequence = sequence.data(), .flags = flags.data()};
    ASSERT_EQ(cache.begin(batch, false), Status::ok);
    ASSERT_EQ(kv.put(0, tensor(n, 1, 4), tensor(n, 1, 2)), Status::ok);
  };
  pass(0, 3);
  ASSERT_EQ(cache.remove(0, 0, 1), Status::ok) << kvc::last_message();  // two keys have to rotate
  pass(2, 2);

  std::vector<float> out(16), lse(16), weights(64);
  kvc::AttentionTensors tensors;
  tensors.q = tensor(2, 2, 4);
  tensors.out = tensor(2, 2, 2);
  tensors.out.data = out.data();
  tensors.lse = {.data = lse.data(), .shape = {2, 2}, .stride = {2, 1}, .ndim = 2};
  tensors.bias = {.data = numbers.data(), .shape = {2, 2, 4}, .stride = {0, 0, 0}, .ndim = 3};
  tensors.mask = {.data = seen.data(),
                  .shape = {2, 2, 4},
                  .stride = {0, 0, 0},
                  .ndim = 3,
                  .dtype = kvc::DType::boolean};
  tensors.weights = {.data = weights.data(), .shape = {2, 2, 4}, .stride = {8, 4, 1}, .ndim = 3};
  uint64_t before[2], after[2];
  ASSERT_EQ(cache.digest(before), Status::ok);
  *status = static_cast<kvc_status>(kv.attention(0, tensors));
  *message = kvc::last_message();
  ASSERT_EQ(cache.digest(after), Status::ok);
  EXPECT_TRUE(before[0] == after[0] && before[1] == after[1]);
  EXPECT_EQ(cache.health().status(), Status::ok);
}

TEST(Operator, NamesWhatItLacks) {
  std::string message;
  kvc_status status = KVC_E_INTERNAL;
  attend(0, everything, &message, &status);
  EXPECT_EQ(status, KVC_OK) << message;
  struct Case {
    kvc::Feature feature;
    const char* text;
  };
  for (const Case& c :
       {Case{kvc::feature_mask, "mask"}, Case{kvc::feature_bias, "bias"},
        Case{kvc::feature_window, "limited reach"}, Case{kvc::feature_chunk, "chunks"},
        Case{kvc::feature_not_causal, "see later"}, Case{kvc::feature_softcap, "softcap"},
        Case{kvc::feature_alibi, "ALiBi"}, Case{kvc::feature_sinks, "sinks"},
        Case{kvc::feature_lse, "log-sum-exp"}, Case{kvc::feature_weights, "weights"},
        Case{kvc::feature_grouped, "fewer KV heads"},
        Case{kvc::feature_dims_differ, "head dimensions"},
        Case{kvc::feature_shifted, "pending rotation"}}) {
    attend(c.feature, everything, &message, &status);
    EXPECT_EQ(support::name(status), "NOT_SUPPORTED") << c.text;
    EXPECT_NE(message.find("poor"), std::string::npos) << message;
    EXPECT_NE(message.find(c.text), std::string::npos) << message;
  }
}

TEST(Operator, NamesTheStorageThatItDoesNotRead) {
  std::string message;
  kvc_status status = KVC_OK;
  attend(0, kvc::storage_bit(kvc::StorageType::f32), &message, &status);
  EXPECT_EQ(support::name(status), "NOT_SUPPORTED");
  EXPECT_NE(message.find("does not read f16"), std::string::npos) << message;
}

}  // namespace
