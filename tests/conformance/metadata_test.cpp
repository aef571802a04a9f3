// Metadata and padding: the vectors, the messages word for word, JSON of every kind, and what is wrong.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>

#include "kvc/metadata.h"
#include "support/abi.hpp"
#include "support/message_rules.hpp"
#include "support/vectors.hpp"

namespace {

using nlohmann::json;

const json& vectors() {
  static const json all = support::vectors("metadata.json");
  return all;
}

kvc_metadata transformer() {
  kvc_metadata metadata = KVC_METADATA_INIT;
  metadata.batch_size = 4;
  metadata.sequence_length = 10;
  metadata.num_hidden_layers = 2;
  metadata.num_heads = 8;
  metadata.head_dim = 64;
  return metadata;
}

kvc_metadata lightning() {
  kvc_metadata metadata = transformer();
  metadata.kind = KVC_LIGHTNING;
  metadata.sequence_length = 0;
  return metadata;
}

bool same(const kvc_metadata& a, const kvc_metadata& b) {
  return std::memcmp(&a, &b, sizeof a) == 0;
}

std::string to_json(const kvc_metadata& metadata) {
  size_t length = 0;
  char text[512];
  EXPECT_EQ(kvc_metadata_to_json(&metadata, text, sizeof text, &length), KVC_OK)
      << support::last_message();
  EXPECT_EQ(length, std::strlen(text));
  return text;
}

kvc_status from_json(const std::string& text, kvc_metadata* metadata) {
  const auto exact = std::make_unique<char[]>(text.size());  // nothing behind it may be read
  std::copy(text.begin(), text.end(), exact.get());
  return kvc_metadata_from_json(exact.get(), text.size(), metadata);
}

void expect_refused(kvc_status status, kvc_status wanted, const std::string& part) {
  EXPECT_EQ(support::name(status), support::name(wanted)) << support::last_message();
  EXPECT_NE(support::last_message().find(part), std::string::npos) << support::last_message();
  EXPECT_EQ(support::fault_of(status, support::last_message()), "") << support::last_message();
}

// ---- Checking ----------------------------------------------------------------------------------------------------------------

TEST(Metadata, ResolvesTheVectorsWithTheirMessages) {
  size_t n = 0;
  for (const json& vector : vectors()["metadata"]) {
    kvc_metadata metadata = KVC_METADATA_INIT;
    ASSERT_EQ(from_json(vector["arguments"].dump(), &metadata), KVC_OK) << support::last_message();
    const kvc_metadata given = metadata;
    const kvc_status status = kvc_metadata_resolve(&metadata);
    ++n;
    if (vector.contains("error")) {
      EXPECT_EQ(status, KVC_E_INVALID_ARGUMENT) << vector;
      EXPECT_EQ(support::last_message(), vector["error"].get<std::string>());
      EXPECT_TRUE(same(metadata, given)) << vector;
    } else {
      EXPECT_EQ(status, KVC_OK) << vector << support::last_message();
      EXPECT_EQ(json::parse(to_json(metadata)), vector["result"]);
      const kvc_metadata once = metadata;
      EXPECT_EQ(kvc_metadata_resolve(&metadata), KVC_OK);
      EXPECT_TRUE(same(metadata, once)) << "resolved a second time";
    }
  }
  EXPECT_EQ(n, 14u);
}

TEST(Metadata, MessagesComeInTheirOrder) {
  const std::vector<std::pair<int32_t kvc_metadata::*, std::string>> steps = {
      {&kvc_metadata::batch_size, "batch_size must be positive"},
      {&kvc_metadata::sequence_length, "sequence_length must be positive"},
      {&kvc_metadata::head_dim, "Either head_dim or both key_dim and value_dim must be specified"},
      {&kvc_metadata::num_heads,
       "Either num_heads or both key_heads and value_heads must be specified"},
      {&kvc_metadata::num_hidden_layers, "num_hidden_layers must be positive"}};
  kvc_metadata metadata = KVC_METADATA_INIT;
  for (const auto& [field, message] : steps) {
    EXPECT_EQ(kvc_metadata_resolve(&metadata), KVC_E_INVALID_ARGUMENT);
    EXPECT_EQ(support::last_message(), message);
    metadata.*field = 3;
  }
  EXPECT_EQ(kvc_metadata_resolve(&metadata), KVC_OK);
  const std::vector<std::pair<int32_t kvc_metadata::*, std::string>> sizes = {
      {&kvc_metadata::value_dim, "value_dim must be positive"},
      {&kvc_metadata::key_dim, "key_dim must be positive"},
      {&kvc_metadata::value_heads, "value_heads must be positive"},
      {&kvc_metadata::key_heads, "key_heads must be positive"}};
  for (const auto& [field, message] : sizes) {  // the later one is named last
    metadata.*field = -1;
    EXPECT_EQ(kvc_metadata_resolve(&metadata), KVC_E_INVALID_ARGUMENT);
    EXPECT_EQ(support::last_message(), message);
  }
}

TEST(Metadata, ALightningCacheHasNoLength) {
  kvc_metadata metadata = lightning();
  EXPECT_EQ(kvc_metadata_resolve(&metadata), KVC_OK) << support::last_message();
  EXPECT_EQ(metadata.key_heads, 8);
  EXPECT_EQ(metadata.value_dim, 64);
  metadata.sequence_length = 5;
  expect_refused(kvc_metadata_resolve(&metadata), KVC_E_INVALID_ARGUMENT, "sequence_length is 5");
  metadata.sequence_length = 0;
  metadata.pad_token_id = 7;
  expect_refused(kvc_metadata_resolve(&metadata), KVC_E_INVALID_ARGUMENT, "pad_token_id is 7");
  metadata.pad_token_id = 0;
  metadata.flags = KVC_METADATA_NO_CAUSAL_MASK;
  expect_refused(kvc_metadata_resolve(&metadata), KVC_E_INVALID_ARGUMENT, "flags of a lightning");
}

TEST(Metadata, RefusesStructsThatItDoesNotKnow) {
  const auto expect = [](kvc_metadata metadata, kvc_status wanted, const std::string& part) {
    const kvc_metadata given = metadata;
    char text[64] = "?";
    expect_refused(kvc_metadata_resolve(&metadata), wanted, part);
    expect_refused(kvc_metadata_to_json(&metadata, text, sizeof text, nullptr), wanted, part);
    EXPECT_TRUE(same(metadata, given));
    EXPECT_STREQ(text, "?");
  };
  kvc_metadata metadata = transformer();
  metadata.struct_size -= 4;
  expect(metadata, KVC_E_INVALID_ARGUMENT, "kvc_metadata.struct_size is 48");
  for (const uint32_t kind : {0u, uint32_t{KVC_CAUSAL}, uint32_t{KVC_WRAPPER}, 77u}) {
    metadata = transformer();
    metadata.kind = kind;
    expect(metadata, KVC_E_INVALID_ARGUMENT, "kvc_metadata.kind");
    EXPECT_EQ(from_json("{}", &metadata), KVC_E_INVALID_ARGUMENT);
  }
  metadata = transformer();
  metadata.flags = 4;
  expect(metadata, KVC_E_INVALID_ARGUMENT, "kvc_metadata.flags");
  expect_refused(kvc_metadata_resolve(nullptr), KVC_E_INVALID_ARGUMENT, "is null");
  expect_refused(kvc_metadata_to_json(nullptr, nullptr, 0, nullptr), KVC_E_INVALID_ARGUMENT,
                 "is null");

  // A newer caller's struct: zeros in what is unknown are taken and stay, anything else is not.
  struct {
    kvc_metadata known = transformer();
    uint32_t tail = 0;
  } newer;
  newer.known.struct_size = sizeof newer;
  EXPECT_EQ(kvc_metadata_resolve(&newer.known), KVC_OK);
  EXPECT_EQ(newer.known.struct_size, sizeof newer);
  EXPECT_EQ(newer.known.key_heads, 8);
  newer.tail = 1;
  expect_refused(kvc_metadata_resolve(&newer.known), KVC_E_VERSION, "kvc_metadata");
}

// ---- Descriptors -------------------------------------------------------------------------------------------------------------

TEST(Metadata, DescribesATransformerCache) {
  kvc_metadata metadata = transformer();
  metadata.value_heads = 2;
  metadata.key_dim = 96;
  metadata.flags = KVC_METADATA_NO_CAUSAL_MASK | KVC_METADATA_NO_ATTENTION_BIAS;
  const kvc_metadata given = metadata;
  kvc_cache_desc desc = KVC_CACHE_DESC_INIT;
  desc.dtype_k = KVC_BF16;
  desc.max_batch = 4 * 3;
  desc.max_q_heads = 16;
  desc.cells = 77;
  desc.flags = KVC_CACHE_ZERO_ON_FREE;
  kvc_transformer_desc kind_desc = KVC_TRANSFORMER_DESC_INIT;
  kind_desc.flags = KVC_TRANSFORMER_RING;
  kind_desc.reach = 5;
  ASSERT_EQ(kvc_metadata_descriptors(&metadata, &desc, &kind_desc), KVC_OK)
      << support::last_message();
  EXPECT_TRUE(same(metadata, given));
  EXPECT_EQ(desc.kind, uint32_t{KVC_TRANSFORMER});
  EXPECT_EQ(desc.n_layers, 2);
  EXPECT_EQ(desc.n_kv_heads, 8);
  EXPECT_EQ(desc.head_dim_k, 96);
  EXPECT_EQ(desc.head_dim_v, 64);
  EXPECT_EQ(desc.max_sequences, 4);
  EXPECT_EQ(desc.capacity, 10);
  EXPECT_EQ(desc.cells, 0);
  EXPECT_EQ(desc.dtype_k, uint32_t{KVC_BF16});
  EXPECT_EQ(desc.max_batch, 12);
  EXPECT_EQ(desc.max_q_heads, 16);
  EXPECT_EQ(desc.flags, uint64_t{KVC_CACHE_ZERO_ON_FREE});
  EXPECT_EQ(kind_desc.value_heads, 2);
  EXPECT_EQ(kind_desc.mask_dtype, uint32_t{KVC_BOOL});
  EXPECT_EQ(kind_desc.reach, 5);
  EXPECT_EQ(kind_desc.flags, uint32_t{KVC_TRANSFORMER_RING | KVC_TRANSFORMER_NOT_CAUSAL});
  const support::Device device(1);
  support::Cache cache;
  EXPECT_EQ(kvc_cache_create(device, &desc, &kind_desc, &cache.handle), KVC_OK)
      << support::last_message();
  // What the flags set, their absence takes back.
  metadata.flags = 0;
  ASSERT_EQ(kvc_metadata_descriptors(&metadata, &desc, &kind_desc), KVC_OK);
  EXPECT_EQ(kind_desc.mask_dtype, uint32_t{KVC_F32});
  EXPECT_EQ(kind_desc.flags, uint32_t{KVC_TRANSFORMER_RING});
}

TEST(Metadata, DescribesALightningCache) {
  const kvc_metadata metadata = lightning();
  kvc_cache_desc desc = KVC_CACHE_DESC_INIT;
  desc.max_batch = 4 * 3;
  desc.capacity = 5;
  ASSERT_EQ(kvc_metadata_descriptors(&metadata, &desc, nullptr), KVC_OK) << support::last_message();
  EXPECT_EQ(desc.kind, uint32_t{KVC_LIGHTNING});
  EXPECT_EQ(desc.capacity, 0);
  EXPECT_EQ(desc.n_kv_heads, 8);
  const support::Device device(1);
  support::Cache cache;
  EXPECT_EQ(kvc_cache_create(device, &desc, nullptr, &cache.handle), KVC_OK)
      << support::last_message();
}

TEST(Metadata, DescriptorsAreFilledInTogetherOrNotAtAll) {
  kvc_cache_desc desc = KVC_CACHE_DESC_INIT;
  kvc_transformer_desc kind_desc = KVC_TRANSFORMER_DESC_INIT;
  const kvc_cache_desc desc_before = desc;
  const kvc_transformer_desc kind_before = kind_desc;
  const auto expect = [&](const kvc_metadata& metadata, kvc_cache_desc* to,
                          kvc_transformer_desc* kind, kvc_status wanted, const std::string& part) {
    expect_refused(kvc_metadata_descriptors(&metadata, to, kind), wanted, part);
    EXPECT_EQ(std::memcmp(&desc, &desc_before, sizeof desc), 0);
    EXPECT_EQ(std::memcmp(&kind_desc, &kind_before, sizeof kind_desc), 0);
  };
  kvc_metadata metadata = transformer();
  expect(metadata, nullptr, &kind_desc, KVC_E_INVALID_ARGUMENT, "kvc_cache_desc is null");
  expect(metadata, &desc, nullptr, KVC_E_INVALID_ARGUMENT, "kvc_transformer_desc is null");
  kvc_transformer_desc small = kind_desc;
  small.struct_size = 8;
  expect(metadata, &desc, &small, KVC_E_INVALID_ARGUMENT, "kvc_transformer_desc.struct_size is 8");
  metadata.batch_size = 0;
  expect(metadata, &desc, &kind_desc, KVC_E_INVALID_ARGUMENT, "batch_size must be positive");
  metadata = lightning();
  expect(metadata, &desc, &kind_desc, KVC_E_INVALID_ARGUMENT, "kind_desc must be null");
  metadata.value_heads = 4;
  expect(metadata, &desc, nullptr, KVC_E_NOT_SUPPORTED, "key_heads is 8 and value_heads 4");
}

// ---- JSON --------------------------------------------------------------------------------------------------------------------

TEST(Metadata, IsWrittenAsPythonWritesIt) {
  kvc_metadata metadata = transformer();
  metadata.flags = KVC_METADATA_NO_ATTENTION_BIAS;
  EXPECT_EQ(
      to_json(metadata),
      "{\"batch_size\": 4, \"sequence_length\": 10, \"num_hidden_layers\": 2, \"pad_token_id\": 0, "
      "\"num_heads\": 8, \"head_dim\": 64, \"key_heads\": null, \"value_heads\": null, "
      "\"key_dim\": null, \"value_dim\": null, \"update_causal_mask\": true, "
      "\"create_attention_bias\": false}");
  EXPECT_EQ(
      to_json(lightning()),
      "{\"partition_axis\": null, \"batch_size\": 4, \"num_hidden_layers\": 2, \"num_heads\": 8, "
      "\"head_dim\": 64, \"key_heads\": null, \"value_heads\": null, \"key_dim\": null, "
      "\"value_dim\": null}");
}

TEST(Metadata, TextIsCutToTheRoomThereIs) {
  kvc_metadata metadata = transformer();
  for (int32_t* field :
       {&metadata.batch_size, &metadata.sequence_length, &metadata.num_hidden_layers,
        &metadata.pad_token_id, &metadata.num_heads, &metadata.head_dim, &metadata.key_heads,
        &metadata.value_heads, &metadata.key_dim, &metadata.value_dim})
    *field = INT32_MIN;  // the longest there is
  metadata.flags = KVC_METADATA_NO_ATTENTION_BIAS | KVC_METADATA_NO_CAUSAL_MASK;
  const std::string whole = to_json(metadata);
  EXPECT_EQ(json::parse(whole)["pad_token_id"], INT32_MIN);
  for (size_t capacity = 0; capacity <= whole.size() + 2; ++capacity) {
    std::vector<char> room(capacity + 1, '#');
    size_t length = 0;
    ASSERT_EQ(kvc_metadata_to_json(&metadata, capacity > 0 ? room.data() : nullptr, capacity, &length),
              KVC_OK);
    EXPECT_EQ(length, whole.size());
    EXPECT_EQ(room[capacity], '#');
    if (capacity > 0) {
      EXPECT_EQ(room.data(), whole.substr(0, capacity - 1));
    }
  }
  expect_refused(kvc_metadata_to_json(&metadata, nullptr, 3, nullptr), KVC_E_INVALID_ARGUMENT,
                 "buffer is null");
}

TEST(Metadata, WhatWasWrittenIsReadBack) {
  for (const bool of_lightning : {false, true})
    for (const int32_t number : {0, 1, -1, INT32_MAX, INT32_MIN})
      for (const uint32_t flags : {0u, 1u, 2u, 3u}) {
        kvc_metadata metadata = of_lightning ? lightning() : transformer();
        metadata.value_dim = number;
        metadata.batch_size = -number / 2;
        if (!of_lightning) {
          metadata.flags = flags;
          metadata.pad_token_id = number;
        }
        kvc_metadata read = KVC_METADATA_INIT;
        read.kind = metadata.kind;
        read.key_dim = 99;  // all is filled in
        EXPECT_EQ(from_json(to_json(metadata), &read), KVC_OK) << support::last_message();
        EXPECT_TRUE(same(read, metadata)) << to_json(read);
      }
}

TEST(Metadata, ReadsWhatOthersWrite) {
  kvc_metadata metadata = KVC_METADATA_INIT;
  EXPECT_EQ(from_json("{}", &metadata), KVC_OK);
  const kvc_metadata nothing = KVC_METADATA_INIT;
  EXPECT_TRUE(same(metadata, nothing));
  const std::string text = R"( {"unknown": [{"batch_size": 1}, "batch_size", 1e300], "batch_size":7,
      "partition_axis": {"head_dim": 5, "deep": {"batch_size": 8}}, "head_dim"	: null,
      "batch_size": 9, "update_causal_mask": false, "create_attention_bias": null, "": 1.5,
      "b\u0061tch_sizes": "\ud83d\ude00", "key_\u0068eads": -3, "batch_size ": "x"}  )";
  ASSERT_EQ(from_json(text, &metadata), KVC_OK) << support::last_message();
  EXPECT_EQ(metadata.batch_size, 9);
  EXPECT_EQ(metadata.head_dim, 0);
  EXPECT_EQ(metadata.key_heads, -3);
  EXPECT_EQ(metadata.flags, uint32_t{KVC_METADATA_NO_CAUSAL_MASK});
  // A lightning cache has other fields: those are unknown.
  metadata.kind = KVC_LIGHTNING;
  ASSERT_EQ(
      from_json(R"({"sequence_length": "?", "update_causal_mask": 3, "head_dim": 4})", &metadata),
      KVC_OK)
      << support::last_message();
  EXPECT_EQ(metadata.head_dim, 4);
  EXPECT_EQ(metadata.batch_size, 0);
  const std::string deep = std::string(100000, '[') + std::string(100000, ']');
  EXPECT_EQ(from_json("{\"x\": " + deep + "}", &metadata), KVC_OK) << support::last_message();
}

TEST(Metadata, TextThatIsNoObjectIsCorrupt) {
  struct Text {
    std::string text, part;
  };
  const std::vector<Text> texts = {
      {"", "byte 0 of 0"},
      {"   ", "of 3"},
      {"{", "of 1"},
      {"nul", "of 3"},
      {"{\"batch_size\": }", "byte 16 of 16"},
      {"{\"batch_size\": 1,}", "of 18"},
      {"{\"batch_size\": 01}", "of 18"},
      {"{batch_size: 1}", "byte 2 of 15"},
      {"{} x", "byte 4 of 4"},
      {"{\"a\": \"\xff\"}", "byte 8 of 10"},
      {"{\"a\": \"\\ud800\"}", "of 15"},
      {std::string("{\"a\": 1}\0", 9), "byte 9 of 9"},
      {std::string("{\"a\": 1}\0{", 10), "byte 9 of 10"},
      {std::string("{\"a\0\": 1}", 9), "byte 4 of 9"},
      {"{\"a\": 1e999}", "of 12"},
      {std::string(100000, '['), "text holds an array, not a JSON object"},
      {"{\"x\": " + std::string(100000, '['), "of 100006"},
      {"[]", "text holds an array, not a JSON object"},
      {"null", "text holds null, not"},
      {"true", "text holds true, not"},
      {"\"{}\"", "text holds a string, not"},
      {"17", "text holds a number, not"},
      {"1.5", "text holds a number"},
      {"{\"batch_size\": \"4\"}", "batch_size is a string, not a whole number or null"},
      {"{\"batch_size\": 4.0}",
       "batch_size is a number with a fraction or an exponent, not a whole"},
      {"{\"batch_size\": true}", "batch_size is true, not a whole number or null"},
      {"{\"batch_size\": [4]}", "batch_size is an array, not a whole number or null"},
      {"{\"batch_size\": {}}", "batch_size is an object, not a whole number or null"},
      {"{\"value_dim\": 2147483648}",
       "value_dim is 2147483648, not from -2147483648 to 2147483647"},
      {"{\"value_dim\": -2147483649}", "value_dim is -2147483649, not from"},
      {"{\"value_dim\": 18446744073709551615}", "value_dim is 18446744073709551615, not from"},
      {"{\"value_dim\": 123456789012345678901234567890}", "value_dim is a number with"},
      {"{\"update_causal_mask\": 1}", "update_causal_mask is a number, not true, false or null"},
      {"{\"create_attention_bias\": \"no\"}",
       "create_attention_bias is a string, not true, false"}};
  for (const Text& each : texts) {
    kvc_metadata metadata = transformer();
    const kvc_metadata before = metadata;
    expect_refused(from_json(each.text, &metadata), KVC_E_CORRUPT, each.part);
    EXPECT_TRUE(same(metadata, before)) << each.text.substr(0, 100);
  }
  kvc_metadata metadata = transformer();
  expect_refused(kvc_metadata_from_json(nullptr, 0, &metadata), KVC_E_INVALID_ARGUMENT,
                 "text is null");
  expect_refused(kvc_metadata_from_json("{}", 2, nullptr), KVC_E_INVALID_ARGUMENT, "is null");
  expect_refused(kvc_metadata_from_json("{}", (size_t{64} << 20) + 1, &metadata),
                 KVC_E_INVALID_ARGUMENT, "length is 67108865");
  metadata.struct_size = 8;
  expect_refused(kvc_metadata_from_json("{}", 2, &metadata), KVC_E_INVALID_ARGUMENT,
                 "struct_size is 8");
}

// ---- Padding -----------------------------------------------------------------------------------------------------------------

TEST(Padding, FindsBothEnds) {
  ASSERT_EQ(vectors()["padding"].size(), 2u);
  for (const json& vector : vectors()["padding"]) {
    const auto rows = vector["ids"].get<std::vector<std::vector<int32_t>>>();
    std::vector<int32_t> ids, starts(rows.size(), -7), ends(rows.size(), -7);
    for (const std::vector<int32_t>& row : rows) ids.insert(ids.end(), row.begin(), row.end());
    const auto n_rows = static_cast<int32_t>(rows.size());
    const auto q_len = static_cast<int32_t>(rows[0].size());
    const int32_t pad = vector["pad"];
    ASSERT_EQ(kvc_padding(n_rows, q_len, ids.data(), pad, starts.data(), ends.data()), KVC_OK);
    EXPECT_EQ(json(starts), vector["starts"]);
    EXPECT_EQ(json(ends), vector["ends"]);
    std::vector<int32_t> alone(rows.size(), -7);
    ASSERT_EQ(kvc_padding(n_rows, q_len, ids.data(), pad, nullptr, alone.data()), KVC_OK);
    EXPECT_EQ(alone, ends);
    ASSERT_EQ(kvc_padding(n_rows, q_len, ids.data(), pad, alone.data(), nullptr), KVC_OK);
    EXPECT_EQ(alone, starts);
  }
}

TEST(Padding, RefusesWhatIsNoBatch) {
  const int32_t ids[2] = {0, 1};
  int32_t at = -7;
  for (const int32_t none : {0, -1, INT32_MIN}) {
    expect_refused(kvc_padding(none, 2, ids, 0, &at, &at), KVC_E_INVALID_ARGUMENT, "n_rows");
    expect_refused(kvc_padding(1, none, ids, 0, &at, &at), KVC_E_INVALID_ARGUMENT, "q_len");
  }
  expect_refused(kvc_padding(1, 2, nullptr, 0, &at, &at), KVC_E_INVALID_ARGUMENT,
                 "token_ids is null");
  EXPECT_EQ(at, -7);
}

}  // namespace
