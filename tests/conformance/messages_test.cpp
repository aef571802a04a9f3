// Error messages as someone reads them in a log, without the source: which argument, what came, what is taken, what to do. One
// example of each kind; the rules that all messages keep to are in support/message_rules.hpp, and BadInput applies them.
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "kvc/encoder.h"
#include "kvc/operators.h"
#include "kvc/recurrent.h"
#include "kvc/storage.h"
#include "kvc/wrapper.h"
#include "support/bad_input.hpp"
#include "support/message_rules.hpp"

namespace {

using support::Specimen;

class Messages : public ::testing::Test {
 protected:
  /// The call fails with this status, and its message holds all these facts.
  void expect(kvc_status status, const std::function<kvc_status()>& call,
              const std::vector<std::string>& facts) {
    const kvc_status got = call();
    const std::string message = support::last_message();
    EXPECT_EQ(support::name(got), support::name(status)) << message;
    EXPECT_EQ(support::fault_of(status, message), "") << message;
    for (const std::string& fact : facts)
      EXPECT_NE(message.find(fact), std::string::npos) << "\"" << fact << "\" in: " << message;
  }

  /// kvc_put() of a spoilt k in an open pass of two tokens.
  void expect_k(kvc_status status, const std::function<void(kvc_tensor&)>& spoil,
                const std::vector<std::string>& facts) {
    kvc_tensor k = s.k;
    spoil(k);
    expect(
        status, [&] { return kvc_put(s.cache, 0, &k, &s.v); }, facts);
  }

  kvc_status create(const std::function<void(kvc_cache_desc&, kvc_causal_desc&)>& spoil) {
    kvc_cache_desc desc = support::cache_desc(2, 2, 4, 4);
    kvc_causal_desc causal = support::causal_desc();
    spoil(desc, causal);
    uint64_t bytes = 0;
    return kvc_cache_memory_bytes(device, &desc, &causal, &bytes);
  }

  kvc_status begin(std::vector<int32_t> position, std::vector<int32_t> sequence) {
    return kvc_begin(s.cache, static_cast<int32_t>(position.size()), position.data(),
                     sequence.data(), nullptr, 0, nullptr);
  }

  support::Device device;
  Specimen s{device};  // sequence 0 holds 3 tokens, sequence 1 one
};

constexpr kvc_status invalid = KVC_E_INVALID_ARGUMENT;

TEST_F(Messages, ElementTypesAreNamedOnBothSides) {
  s.open(0);
  const auto of = [&](uint32_t dtype, const std::string& words) {
    expect_k(KVC_E_DTYPE, [&](kvc_tensor& k) { k.dtype = dtype; },
             {"k is " + words + ", not f32, f16 or bf16"});
  };
  of(KVC_F64, "f64");
  of(KVC_BOOL, "bool");
  of(KVC_Q8_0, "q8_0");
  of(0, "untyped (0)");
  of(0 | 64 << 8 | 1 << 16, "i64");
  of(1 | 16 << 8 | 1 << 16, "u16");
  of(5u | 128u << 8 | 1 << 16, "complex128");
  of(2 | 32 << 8 | 4 << 16, "f32 in 4 lanes");
  of(200u | 8 << 8 | 1 << 16, "of an unknown type (DLPack's code 200, 8 bits, 1 lanes)");
  expect(KVC_E_DTYPE, [&] { return create([](auto& d, auto&) { d.dtype_v = KVC_I8; }); },
         {"dtype_v is i8, not f32, f16, bf16, f8_e4m3, f8_e5m2, q8_0, q4_0, int8 or nf4"});
  expect(KVC_E_DTYPE, [&] { return create([](auto&, auto& c) { c.mask_dtype = KVC_BF16; }); },
         {"mask_dtype is bf16, not f32, f16 or bool"});
  expect(invalid, [&] { return create([](auto& d, auto&) { d.dtype_k = KVC_Q4_0; }); },
         {"dtype_k is q4_0", "multiples of 32", "head_dim is 4", "int8"});
  const int64_t shape[] = {2};
  kvc_tensor view{};
  expect(KVC_E_DTYPE, [&] { return kvc_tensor_dense(nullptr, KVC_F64, 1, shape, &view); },
         {"dtype is f64, not f32, f16, bf16, i32, bool, i8, u8, f8_e4m3 or f8_e5m2"});
}

TEST_F(Messages, ShapesAreShownOnBothSidesWithTheirMeaning) {
  s.open(1);
  expect_k(KVC_E_SHAPE, [](kvc_tensor& k) { k.shape[1] = 3; },
           {"k has shape [2, 3, 4], not [2, 2, 4] (n_tokens, n_kv_heads, head_dim_k)"});
  expect_k(KVC_E_SHAPE, [](kvc_tensor& k) { k.ndim = 2; },
           {"k has shape [2, 2], not [2, 2, 4] (n_tokens, n_kv_heads, head_dim_k)"});
  expect_k(KVC_E_SHAPE, [](kvc_tensor& k) { k.ndim = 9; }, {"k has 9 dimensions, not 3: [2, 2, 4]"});
  expect_k(KVC_E_SHAPE, [](kvc_tensor& k) { k.strides[2] = -1; },
           {"k.strides[2] is -1", "0 or more"});
  s.mask.shape[2] = 1000;
  const kvc_attention_extra extra = support::extra(nullptr, &s.mask);
  expect(KVC_E_SHAPE, [&] { return kvc_attention(s.cache, 0, &s.q, &s.out, &extra); },
         {"mask has shape [4, 2, 1000], not [4, 2, ", "n_q_heads, n_tokens, history", "may be 1"});
  s.out.strides[0] = 0;
  expect(KVC_E_SHAPE, [&] { return kvc_attention(s.cache, 0, &s.q, &s.out, nullptr); },
         {"out has shape [2, 4, 3] and strides [0, 3, 1]", "one address"});
}

TEST_F(Messages, MemoryAndDevicesOfTensors) {
  s.open(1);
  expect_k(KVC_E_DEVICE_MISMATCH, [](kvc_tensor& k) { k.device_type = KVC_CUDA, k.device_id = 1; },
           {"k is on cuda:1, the cache on ", "copy"});
  expect_k(invalid, [](kvc_tensor& k) { k.data = nullptr; }, {"k.data is null", "[2, 2, 4]"});
  expect_k(invalid, [](kvc_tensor& k) { k.byte_offset = 2; },
           {"k is not aligned", "multiple of 4", "f32"});
  expect_k(invalid, [](kvc_tensor& k) { k.flags = KVC_TENSOR_TRANSPOSED; },
           {"k has flags 1", "KVC_TENSOR_TRANSPOSED", "kvc_gather"});
  expect_k(KVC_E_OVERFLOW, [](kvc_tensor& k) { k.strides[0] = INT64_MAX; },
           {"k reaches", "[9223372036854775807, 4, 1]"});
  expect(invalid, [&] { return kvc_put(s.cache, 0, nullptr, &s.v); }, {"k is null"});
  kvc_tensor q_as_out = s.q;
  q_as_out.shape[2] = Specimen::dv;
  expect(invalid, [&] { return kvc_attention(s.cache, 0, &s.q, &q_as_out, nullptr); },
         {"out overlaps q", "memory of its own"});
}

TEST_F(Messages, StructSizesLeadToSizeof) {
  expect(invalid, [&] { return create([](auto& d, auto&) { d.struct_size = 0; }); },
         {"kvc_cache_desc.struct_size is 0, below 72", "sizeof(kvc_cache_desc)"});
  expect(invalid, [&] { return create([](auto&, auto& c) { c.struct_size = 4; }); },
         {"kvc_causal_desc.struct_size is 4", "sizeof(kvc_causal_desc)"});
  expect(invalid, [&] { return create([](auto& d, auto&) { d.struct_size = 70000; }); },
         {"70000, above 4096", "sizeof(kvc_cache_desc)"});
  kvc_stats stats{};
  expect(invalid, [&] { return kvc_cache_stats(s.cache, &stats); },
         {"kvc_stats.struct_size is 0, below 48", "sizeof(kvc_stats)"});
  struct {
    kvc_device_desc known;
    uint64_t later;
  } newer = {{32, 1, 0, nullptr}, 7};
  kvc_device* opened = nullptr;
  expect(KVC_E_VERSION, [&] { return kvc_device_open("cpu", &newer.known, nullptr, &opened); },
         {"kvc_device_desc.struct_size is 32", "byte 24", "24 bytes", "newer kvc"});
}

TEST_F(Messages, UnknownBitsAreShownBesideTheKnownOnes) {
  expect(invalid, [&] { return create([](auto& d, auto&) { d.flags = 1u << 20 | 1; }); },
         {"kvc_cache_desc.flags", "bits 0x100000;", "KVC_CACHE_STRICT", "KVC_CACHE_PREFAULT"});
  expect(invalid, [&] { return create([](auto&, auto& c) { c.flags = 8; }); },
         {"kvc_causal_desc.flags", "bits 0x8;", "KVC_CAUSAL_POSITION_FREE"});
  kvc_device_desc desc = KVC_DEVICE_DESC_INIT;
  desc.flags = 2;
  kvc_device* opened = nullptr;
  expect(invalid, [&] { return kvc_device_open("cpu", &desc, nullptr, &opened); },
         {"kvc_device_desc.flags", "bits 0x2;", "must be 0"});
  const int32_t position = 3, sequence = 0;
  const uint32_t token_flags = 2;
  expect(invalid,
         [&] { return kvc_begin(s.cache, 1, &position, &sequence, &token_flags, 0, nullptr); },
         {"token_flags[0]", "bits 0x2;", "KVC_TOKEN_SEES_LATER"});
  expect(invalid, [&] { return kvc_begin(s.cache, 1, &position, &sequence, nullptr, 16, nullptr); },
         {"flags", "bits 0x10;", "KVC_BEGIN_RESERVE"});
}

TEST_F(Messages, KindsAndReservedThingsAreNamed) {
  expect(invalid, [&] { return create([](auto& d, auto&) { d.kind = 0; }); },
         {"kind 0", "KVC_CAUSAL (1)", "KVC_LIGHTNING (6)"});
  expect(invalid, [&] { return create([](auto&, auto& c) { c.kind = KVC_RECURRENT; }); },
         {"kind_desc", "recurrent (3)", "causal (1)"});
  expect(KVC_E_NOT_SUPPORTED, [&] { return create([](auto& d, auto&) { d.kind = KVC_WRAPPER; }); },
         {"kind 4", "kvc_cache_wrap"});
  expect(invalid, [&] { return create([](auto& d, auto&) { d.flags = KVC_CACHE_V_IN_K; }); },
         {"KVC_CACHE_V_IN_K", "dtype_v is f32", "must be 0"});
}

TEST_F(Messages, CallsThatAKindLacksNameTheKindsThatHaveThem) {
  kvc_cache_desc desc = KVC_CACHE_DESC_INIT;
  desc.kind = KVC_RECURRENT;
  desc.n_layers = desc.max_sequences = desc.max_batch = 1;
  kvc_recurrent_desc states = KVC_RECURRENT_DESC_INIT;
  states.state_size = 4;
  support::Cache recurrent, full(device, support::cache_desc(1, 2, 4, 4)), wrapper;
  ASSERT_EQ(kvc_cache_create(device, &desc, &states, &recurrent.handle), KVC_OK);
  constexpr kvc_status lacks = KVC_E_NOT_SUPPORTED;
  const std::vector<std::string> take = {"KVC_CAUSAL", "KVC_ENCODER", "KVC_TRANSFORMER",
                                         "KVC_LIGHTNING"},
                                 hold = {"KVC_CAUSAL", "KVC_ENCODER", "KVC_TRANSFORMER"};
  const auto bind_operator = [](kvc_cache* c) { return kvc_bind_operator(c, 0, 1, 1, nullptr); };
  const auto bind_rope = [](kvc_cache* c) { return kvc_bind_rope(c, 0, 1, nullptr, nullptr); };
  const auto bind_scales = [](kvc_cache* c) { return kvc_bind_scales(c, 0, 1, nullptr, nullptr); };
  expect(
      lacks, [&] { return kvc_put(recurrent, 0, &s.k, &s.v); }, take);
  expect(
      lacks, [&] { return bind_operator(recurrent); }, take);
  expect(
      lacks, [&] { return bind_scales(recurrent); }, hold);
  expect(
      lacks, [&] { return kvc_mask(recurrent, 0, nullptr); }, hold);
  expect(lacks, [&] { return bind_rope(recurrent); }, {"KVC_CAUSAL"});

  kvc_cache* const children[] = {recurrent, full};
  const int32_t child[] = {0, 1}, layer[] = {0, 0};
  ASSERT_EQ(kvc_cache_wrap(children, 2, child, layer, 2, &wrapper.handle), KVC_OK);
  expect(lacks, [&] { return bind_operator(wrapper); }, {"child 0", "KVC_LIGHTNING"});
  expect(lacks, [&] { return bind_scales(wrapper); }, {"child 0", "KVC_TRANSFORMER"});
  int32_t position = 0, length = 0;
  expect(lacks, [&] { return kvc_encoder_query(wrapper, 0, &position, &length); },
         {"no child of the wrapper", "KVC_ENCODER"});
  expect(lacks, [&] { return kvc_bind_shift(wrapper, nullptr, nullptr); },
         {"KVC_CAUSAL", "call it on a child"});
}

TEST_F(Messages, BoundsOfTheDescriptors) {
  expect(invalid, [&] { return create([](auto& d, auto&) { d.n_layers = 0; }); },
         {"n_layers 0 out of range [1, 65536]"});
  expect(invalid, [&] { return create([](auto& d, auto&) { d.max_q_heads = 1; }); },
         {"max_q_heads 1", "n_kv_heads 2"});
  expect(KVC_E_OVERFLOW,
         [&] { return create([](auto& d, auto&) { d.capacity = d.max_sequences = 1 << 20; }); },
         {"max_sequences 1048576 * capacity 1048576", "1073741824 cells", "choose cells"});
  expect(KVC_E_OVERFLOW,
         [&] {
           return create([](auto& d, auto&) {
             d.n_layers = d.n_kv_heads = d.head_dim_k = 65536;
             d.capacity = 1 << 20;
           });
         },
         {"n_layers 65536", "1048576 cells", "address space"});
}

TEST_F(Messages, DevicesAreListed) {
  kvc_device* opened = nullptr;
  expect(invalid, [&] { return kvc_device_open("gpu", nullptr, nullptr, &opened); },
         {"\"gpu\"", "cpu"});
  expect(invalid, [&] { return kvc_device_open("a\nb\x01", nullptr, nullptr, &opened); },
         {"\"a?b?\""});
  const std::string endless(1000, 'x');
  expect(invalid, [&] { return kvc_device_open(endless.c_str(), nullptr, nullptr, &opened); },
         {"xxx…\""});
  expect(KVC_E_BACKEND_UNAVAILABLE,
         [&] { return kvc_device_open("cuda:3@/nowhere", nullptr, nullptr, &opened); },
         {"libkvc_cuda", "named by the device's name", "/nowhere"});
  for (const char* name : {"cuda:", "cuda:x", "cuda:-1", "cuda:12345", "cuda3", "CUDA:0", "cuda:0@",
                           "cuda:0/x", "cuda@"}) {
    expect(invalid, [&] { return kvc_device_open(name, nullptr, nullptr, &opened); },
           {name, "cpu", "cuda:N"});
  }
  const kvc_allocator half = {nullptr, nullptr, nullptr};
  expect(invalid, [&] { return kvc_device_open("cpu", nullptr, &half, &opened); },
         {"allocator.alloc is null"});
}

TEST_F(Messages, BatchesNameTheTokenAndWhereItsSequenceContinues) {
  expect(invalid,
         [&] {
           return begin({3, 3}, {0, 0});
         },
         {"position[1] is 3", "sequence 0 continues at 4 or above"});
  expect(invalid, [&] { return begin({3, 0}, {0, 9}); }, {"sequence[1] 9 out of range [0, 3)"});
  expect(invalid, [&] { return begin({-5}, {0}); }, {"position[0] -5 out of range [0, 2147483646)"});
  expect(invalid,
         [&] {
           return begin({3, 4, 5, 6, 7}, {0, 0, 0, 0, 0});
         },
         {"n_tokens 5 out of range [1, 4]", "max_batch"});
  Specimen strict(device, KVC_CACHE_STRICT);
  const int32_t position = 5, sequence = 0;
  expect(invalid,
         [&] { return kvc_begin(strict.cache, 1, &position, &sequence, nullptr, 0, nullptr); },
         {"position[0] is 5", "sequence 0 continues at 3", "KVC_CACHE_STRICT"});
}

TEST_F(Messages, FullCachesCountBothSidesAndSayWhatMakesRoom) {
  s.append(0);
  s.append(0);
  expect(KVC_E_CACHE_FULL,
         [&] {
           return begin({5, 6, 7, 8}, {0, 0, 0, 0});
         },
         {"sequence 0 holds 5 positions of at most 8 (capacity)", "brings 4", "kvc_remove"});
  for (int i = 0; i < 4; ++i) s.append(1);
  expect(KVC_E_CACHE_FULL,
         [&] {
           return begin({0, 1, 2, 3}, {2, 2, 2, 2});
         },
         {"sequence 2", "2 free cells of 12", "4 tokens", "kvc_remove"});
}

/// Where nothing that is removed would make room, the message asks for a larger cache.
TEST_F(Messages, ABatchThatNoEmptyCacheHoldsAsksForALargerOne) {
  kvc_cache_desc desc = support::cache_desc(1, 1, 2, 2);
  desc.max_sequences = 3;
  desc.capacity = 8;
  desc.max_batch = 16;
  kvc_cache_desc few_cells = desc;
  few_cells.cells = 12;
  const support::Cache small(device, desc), shared(device, few_cells);
  const auto begin_in = [](const support::Cache& cache, const std::vector<int32_t>& sequences) {
    std::vector<int32_t> positions(sequences.size());
    for (size_t i = 0; i < positions.size(); ++i) positions[i] = static_cast<int32_t>(i);
    return kvc_begin(cache, static_cast<int32_t>(positions.size()), positions.data(),
                     sequences.data(), nullptr, 0, nullptr);
  };
  for (const bool held : {false, true}) {  // what the cache holds changes nothing
    if (held) {
      ASSERT_EQ(begin_in(small, {0, 1}), KVC_OK);
      ASSERT_EQ(kvc_commit(small), KVC_OK);
      ASSERT_EQ(begin_in(shared, {1, 1}), KVC_OK);
      ASSERT_EQ(kvc_commit(shared), KVC_OK);
    }
    expect(KVC_E_CACHE_FULL, [&] { return begin_in(small, std::vector<int32_t>(10, 2)); },
           {"sequence 2", "at most 8 (capacity)", "brings 10", "larger capacity"});
    EXPECT_EQ(support::last_message().find("kvc_remove"), std::string::npos);
    expect(KVC_E_CACHE_FULL,
           [&] {
             return begin_in(shared, {0, 0, 0, 0, 0, 0, 0, 2, 2, 2, 2, 2, 2});
           },
           {"free cells of 12", "13 tokens", "more cells", "fewer tokens"});
    EXPECT_EQ(support::last_message().find("kvc_remove"), std::string::npos);
  }
}

TEST_F(Messages, StatesNameTheCallToMakeFirst) {
  expect(KVC_E_BAD_STATE, [&] { return kvc_commit(s.cache); }, {"no pass is open", "kvc_begin"});
  kvc_rope_desc rope = KVC_ROPE_DESC_INIT;
  expect(KVC_E_BAD_STATE, [&] { return kvc_bind_rope(s.cache, 0, 2, &rope, nullptr); },
         {"sequence 0 continues at 3", "empty", "kvc_bind_rope", "kvc_cache_create", "kvc_remove"});
  s.open(1);
  expect(KVC_E_BAD_STATE, [&] { return kvc_attention(s.cache, 1, &s.q, &s.out, nullptr); },
         {"layer 1", "kvc_put"});
  expect(KVC_E_BAD_STATE, [&] { return kvc_remove(s.cache, 0, 0, 1); },
         {"1 of 2 layers", "kvc_abort", "kvc_commit"});
  expect(KVC_E_BAD_STATE, [&] { return kvc_bind_rope(s.cache, 0, 2, &rope, nullptr); },
         {"a pass is open", "RoPE", "kvc_commit or kvc_abort"});
}

TEST_F(Messages, ARemovalThatMustMoveKeysNamesEveryWayToDoIt) {
  expect(KVC_E_NOT_SUPPORTED, [&] { return kvc_remove(s.cache, 0, 0, 1); },
         {"positions from 1 of sequence 0", "by 1", "kvc_bind_rope", "empty", "kvc_bind_shift",
          "KVC_CAUSAL_POSITION_FREE"});
  expect(invalid, [&] { return kvc_remove(s.cache, 0, 2, 1); }, {"begin 2, end 1", "KVC_SEQ_END"});
  expect(invalid, [&] { return kvc_copy_prefix(s.cache, 0, 7, 1, nullptr); },
         {"dst 7 out of range [0, 3)"});
  const int32_t twice[] = {2, 2}, source[] = {0, 1};
  expect(invalid, [&] { return kvc_reorder(s.cache, 2, twice, source); },
         {"dst", "sequence 2 twice", "dst[1]"});
}

TEST_F(Messages, ASequenceOfAnArrayIsNamedWithItsPlace) {
  const int32_t good[] = {0, 1}, bad[] = {1, 5}, kept[] = {0, 0};
  expect(invalid, [&] { return kvc_reorder(s.cache, 2, bad, good); },
         {"dst[1] 5 out of range [0, 3)"});
  expect(invalid, [&] { return kvc_reorder(s.cache, 2, good, bad); },
         {"src[1] 5 out of range [0, 3)"});
  s.open(0);
  expect(invalid, [&] { return kvc_commit_prefix(s.cache, 2, bad, kept); },
         {"sequence[1] 5 out of range [0, 3)"});
}

/// The struct of the cache begins with the same kind as that of the kind, so only its size and its fields tell.
TEST_F(Messages, AnotherStructAsTheDescriptorOfTheKindIsSuspected) {
  const kvc_cache_desc desc = support::cache_desc(2, 2, 4, 4);
  uint64_t bytes = 0;
  expect(KVC_E_VERSION, [&] { return kvc_cache_memory_bytes(device, &desc, &desc, &bytes); },
         {"another struct was passed as kvc_causal_desc", "newer kvc"});
}

TEST_F(Messages, LostWindowsNameWhatIsNeededAndWhatIsGone) {
  kvc_cache_desc desc = support::cache_desc(1, 1, 2, 2);
  kvc_causal_desc causal = support::causal_desc();
  causal.reach = 4;
  const support::Cache cache(device, desc, &causal);
  for (int32_t i = 0; i < 12; ++i) {
    const int32_t sequence = 0;
    ASSERT_EQ(kvc_begin(cache, 1, &i, &sequence, nullptr, 0, nullptr), KVC_OK);
    ASSERT_EQ(kvc_commit(cache), KVC_OK);
  }
  expect(KVC_E_WINDOW_LOST, [&] { return kvc_remove(cache, 0, 9, KVC_SEQ_END); },
         {"token at 9 of sequence 0", "positions from 5", "below 7", "kvc_can_resume"});
}

TEST_F(Messages, HandlesAreCaches) {
  expect(KVC_E_HANDLE, [&] { return kvc_commit(nullptr); }, {"cache is null"});
  expect(KVC_E_HANDLE, [&] { return kvc_commit(reinterpret_cast<kvc_cache*>(device.handle)); },
         {"cache is the handle of a device"});
  kvc_cache* created = nullptr;
  const kvc_cache_desc desc = support::cache_desc(1, 1, 2, 2);
  expect(KVC_E_HANDLE, [&] { return kvc_cache_create(nullptr, &desc, nullptr, &created); },
         {"device is null"});
  ASSERT_EQ(kvc_cache_create(device, &desc, nullptr, &created), KVC_OK);
  ASSERT_EQ(kvc_cache_destroy(created), KVC_OK);
  expect(KVC_E_HANDLE, [&] { return kvc_commit(created); }, {"cache was closed or destroyed already"});
}

/// What the caller's function meets, which calls into its own cache and then gives up.
TEST_F(Messages, BusyCallsAndShiftFunctions) {
  struct Inner {
    kvc_cache* cache;
    std::string message;
  } inner = {s.cache, ""};
  const kvc_shift_function shift = [](void* user, int32_t, int32_t, const int32_t*, const int32_t*,
                                      kvc_tensor*) -> kvc_status {
    auto& self = *static_cast<Inner*>(user);
    EXPECT_EQ(kvc_check(self.cache), KVC_E_BUSY);
    self.message = support::last_message();
    return KVC_E_NOT_FOUND;
  };
  ASSERT_EQ(kvc_bind_shift(s.cache, shift, &inner), KVC_OK);
  expect(KVC_E_NOT_FOUND, [&] { return kvc_remove(s.cache, 0, 0, 1); },
         {"shift function", "NOT_FOUND (-22)", "layer 0", "positions 1 to 2"});
  EXPECT_NE(inner.message.find("another call is inside this cache"), std::string::npos)
      << inner.message;
}

TEST_F(Messages, BlocksThatTheAllocatorDoesNotHave) {
  const kvc_allocator none = {nullptr, [](void*, size_t, size_t) -> void* { return nullptr; },
                              [](void*, void*, size_t, size_t) {}};
  kvc_device_desc settings = KVC_DEVICE_DESC_INIT;
  settings.n_threads = 1;
  kvc_device* poor = nullptr;
  ASSERT_EQ(kvc_device_open("cpu", &settings, &none, &poor), KVC_OK);
  const kvc_cache_desc desc = support::cache_desc(1, 1, 2, 2);
  kvc_cache* cache = nullptr;
  expect(KVC_E_OUT_OF_MEMORY, [&] { return kvc_cache_create(poor, &desc, nullptr, &cache); },
         {"bytes", "K, V", "kvc_cache_memory_bytes"});
  EXPECT_EQ(kvc_device_close(poor), KVC_OK);
}

TEST_F(Messages, ConstantsShowTheirValue) {
  kvc_attention_desc desc = KVC_ATTENTION_DESC_INIT;
  const auto bind = [&] { return kvc_bind_attention(s.cache, 0, 2, &desc, nullptr, nullptr); };
  desc.n_q_heads = 3;
  expect(invalid, bind, {"n_q_heads is 3", "multiple of n_kv_heads 2", "max_q_heads 4"});
  desc.n_q_heads = 4;
  desc.softcap = -2;
  expect(invalid, bind, {"softcap is -2"});
  desc.softcap = 0;
  expect(invalid, [&] { return kvc_bind_attention(s.cache, 1, 3, &desc, nullptr, nullptr); },
         {"layer_begin 1, layer_end 3", "n_layers, which is 2"});
  const float sinks[] = {0, 1, INFINITY, 1};
  expect(invalid, [&] { return kvc_bind_attention(s.cache, 0, 2, &desc, nullptr, sinks); },
         {"sinks[2] is inf"});
  kvc_rope_desc rope = KVC_ROPE_DESC_INIT;
  rope.n_dims = 6;
  expect(invalid, [&] { return kvc_bind_rope(s.cache, 0, 2, &rope, nullptr); },
         {"n_dims 6", "head_dim_k 4"});
}

/// The rules themselves: messages that have said too little.
TEST(MessageRules, FindWhatAMessageLacks) {
  const struct {
    kvc_status status;
    const char* message;
  } poor[] = {{invalid, ""},
              {invalid, "out is wrong"},
              {invalid, "invalid value"},
              {invalid, "the scale is not finite"},
              {invalid, "unknown flags of kvc_device_desc"},
              {invalid, "n_layers 0 out of range [1, 4]\n"},
              {KVC_E_DTYPE, "dtype 0x12000 of k, not f32"},
              {KVC_E_DTYPE, "k has another type"},
              {KVC_E_SHAPE, "k has another shape: [2, 3]"},
              {KVC_E_BAD_STATE, "no pass is open"},
              {KVC_E_CACHE_FULL, "there are 3 free cells"},
              {KVC_E_WINDOW_LOST, "the window has moved on"},
              {KVC_E_NOT_SUPPORTED, "nothing says how keys rotate"},
              {KVC_E_HANDLE, "another kind of handle"},
              {KVC_E_DEVICE_MISMATCH, "k is on cuda:1"}};
  for (const auto& p : poor) EXPECT_NE(support::fault_of(p.status, p.message), "") << p.message;
  EXPECT_EQ(support::fault_of(invalid, "layer 40 out of range [0, 32)"), "");
}

}  // namespace
