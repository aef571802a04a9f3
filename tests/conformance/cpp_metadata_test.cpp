// metadata.hpp: metadata of both kinds as descriptors, caches and JSON; padding of rows; errors by their type.
#include <gtest/gtest.h>

#include <cstring>
#include <kvc/kvc.hpp>
#include <string>
#include <vector>

namespace {

kvc::Metadata transformer() {
  kvc::Metadata metadata;
  metadata.batch_size = 2, metadata.sequence_length = 16, metadata.num_hidden_layers = 3;
  metadata.num_heads = 2, metadata.head_dim = 8;
  return metadata;
}

/// The call throws InvalidArgument with this message.
void expect_refused(const kvc::Metadata& metadata, const std::string& message) {
  try {
    (void)kvc::metadata_resolve(metadata);
    ADD_FAILURE() << "not refused: " << message;
  } catch (const kvc::InvalidArgument& error) {
    EXPECT_NE(error.message().find(message), std::string::npos) << error.message();
  }
}

TEST(CppMetadata, ACacheFromJson) {
  kvc::Metadata metadata = transformer();
  metadata.value_heads = 4, metadata.flags = KVC_METADATA_NO_CAUSAL_MASK, metadata.pad_token_id = -1;
  const std::string text = kvc::metadata_to_json(metadata);
  EXPECT_EQ(text.rfind(R"({"batch_size": 2, "sequence_length": 16,)", 0), 0u) << text;
  EXPECT_EQ(text.back(), '}');
  const kvc::Metadata again = kvc::metadata_from_json(text);
  EXPECT_EQ(std::memcmp(&again, &metadata, sizeof again), 0);
  const kvc::Metadata resolved = kvc::metadata_resolve(again);
  EXPECT_EQ(resolved.key_heads, 2);
  EXPECT_EQ(resolved.value_heads, 4);
  EXPECT_EQ(resolved.value_dim, 8);

  kvc::CacheDesc desc;
  kvc::TransformerDesc kind;
  desc.dtype_k = desc.dtype_v = KVC_F16, kind.reach = 7;
  kvc::metadata_descriptors(metadata, desc, kind);
  EXPECT_EQ(desc.n_layers, 3);
  EXPECT_EQ(desc.capacity, 16);
  EXPECT_EQ(desc.dtype_k, uint32_t{KVC_F16});
  EXPECT_EQ(kind.value_heads, 4);
  EXPECT_EQ(kind.flags, uint32_t{KVC_TRANSFORMER_NOT_CAUSAL});
  EXPECT_EQ(kind.reach, 7);
  desc.max_batch = 4;
  const kvc::Cache cache(kvc::Device("cpu"), desc, kind);
  EXPECT_EQ(cache.rows_query().index, (std::vector<int32_t>{0, 0}));
}

TEST(CppMetadata, OfLightningCaches) {
  kvc::Metadata metadata(kvc::Kind::lightning);
  metadata.batch_size = 2, metadata.num_hidden_layers = 1, metadata.num_heads = 4,
  metadata.head_dim = 8;
  const std::string text = kvc::metadata_to_json(metadata);
  EXPECT_EQ(text.rfind(R"({"partition_axis": null,)", 0), 0u) << text;
  const kvc::Metadata again = kvc::metadata_from_json(text, kvc::Kind::lightning);
  EXPECT_EQ(std::memcmp(&again, &metadata, sizeof again), 0);
  kvc::CacheDesc desc;
  kvc::metadata_descriptors(metadata, desc);
  desc.max_batch = 2;
  EXPECT_EQ(kvc::Cache(kvc::Device("cpu"), desc, kvc::LightningDesc()).sequence(1).next, 0);
  kvc::TransformerDesc kind;
  EXPECT_THROW(kvc::metadata_descriptors(metadata, desc, kind), kvc::InvalidArgument);
  metadata.value_heads = 2;
  EXPECT_THROW(kvc::metadata_descriptors(metadata, desc), kvc::NotSupported);
}

TEST(CppMetadata, WhatIsWrongIsNamed) {
  kvc::Metadata metadata = transformer();
  metadata.batch_size = 0;
  expect_refused(metadata, "batch_size must be positive");
  metadata = transformer(), metadata.head_dim = 0;
  expect_refused(metadata, "Either head_dim or both key_dim and value_dim must be specified");
  metadata = transformer(), metadata.kind = KVC_CAUSAL;
  expect_refused(metadata, "kind");
  EXPECT_THROW((void)kvc::metadata_to_json(metadata), kvc::InvalidArgument);
  EXPECT_THROW((void)kvc::metadata_from_json("[1]"), kvc::Corrupt);
  EXPECT_THROW((void)kvc::metadata_from_json(R"({"batch_size": "2"})"), kvc::Corrupt);
  EXPECT_THROW((void)kvc::metadata_from_json("{}", kvc::Kind::causal), kvc::InvalidArgument);
  EXPECT_EQ(kvc::metadata_from_json("{}").batch_size, 0);
}

TEST(CppMetadata, PaddingAtBothEndsOfRows) {
  const kvc::Padding found = kvc::find_padding(3, 4, {0, 5, 0, 6, 5, 6, 0, 0, 0, 0, 0, 0}, 0);
  EXPECT_EQ(found.starts, (std::vector<int32_t>{1, 0, 4}));
  EXPECT_EQ(found.ends, (std::vector<int32_t>{4, 2, 4}));
  EXPECT_THROW((void)kvc::find_padding(2, 2, {1, 2, 3}, 0), kvc::InvalidArgument);
  EXPECT_THROW((void)kvc::find_padding(0, 2, {}, 0), kvc::InvalidArgument);
  EXPECT_THROW((void)kvc::find_padding(2, -1, {}, 0), kvc::InvalidArgument);
}

}  // namespace
