// Every field of every descriptor beyond its bounds, every struct_size, every unknown flag.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iostream>

#include "support/bad_input.hpp"

namespace {

using support::BadInput, support::expect_struct_sizes, support::Longer;
using support::Specimen;

constexpr kvc_status invalid = KVC_E_INVALID_ARGUMENT;
constexpr int32_t least = INT32_MIN, most = INT32_MAX, billion = 1 << 30;

TEST(BadDescriptors, Device) {
  BadInput bad(nullptr);
  const auto open = [](const char* name, const kvc_device_desc* desc, const kvc_allocator* allocator) {
    kvc_device* device = nullptr;
    const kvc_status status = kvc_device_open(name, desc, allocator, &device);
    EXPECT_EQ(device != nullptr, status == KVC_OK);
    EXPECT_EQ(kvc_device_close(device), KVC_OK);
    return status;
  };
  kvc_device_desc good{};
  good.struct_size = sizeof good;
  good.n_threads = 1;
  expect_struct_sizes<kvc_device_desc>(
      bad, "device", good, [&](const kvc_device_desc* desc) { return open("cpu", desc, nullptr); });
  for (const int32_t n : {least, -1, 257, most}) {
    kvc_device_desc desc = good;
    desc.n_threads = n;
    bad.expect(invalid, "n_threads", [&] { return open("cpu", &desc, nullptr); });
  }
  for (const uint64_t flags : {uint64_t{1}, uint64_t{1} << 63}) {
    kvc_device_desc desc = good;
    desc.flags = flags;
    bad.expect(invalid, "flags", [&] { return open("cpu", &desc, nullptr); });
  }
  for (const char* name : {"", "CPU", "gpu", "cpux"})
    bad.expect(invalid, name, [&] { return open(name, nullptr, nullptr); });
  for (const char* name : {"cuda", "cuda:0", "cuda:99"})
    bad.expect(KVC_E_BACKEND_UNAVAILABLE, name, [&] { return open(name, nullptr, nullptr); });
  bad.expect(invalid, "null name", [&] { return open(nullptr, nullptr, nullptr); });
  bad.expect(invalid, "null out", [&] { return kvc_device_open("cpu", nullptr, nullptr, nullptr); });
  kvc_allocator half{};
  half.alloc = [](void*, size_t, size_t) -> void* { return nullptr; };
  bad.expect(invalid, "an allocator that cannot free", [&] { return open("cpu", nullptr, &half); });
  kvc_device_desc desc = good;
  desc.device_allocator = &half;
  bad.expect(invalid, "a device_allocator that cannot free",
             [&] { return open("cpu", &desc, nullptr); });
  half.free = [](void*, void*, size_t, size_t) {};
  bad.expect(KVC_E_NOT_SUPPORTED, "a device_allocator of the CPU",
             [&] { return open("cpu", &desc, nullptr); });
  bad.expect(KVC_E_BACKEND_UNAVAILABLE, "a device_allocator of no GPU",
             [&] { return open("cuda:99", &desc, nullptr); });
  half.alloc = nullptr;
  bad.expect(invalid, "an allocator that cannot allocate",
             [&] { return open("cpu", nullptr, &half); });
  bad.expect(invalid, "a device_allocator that cannot allocate",
             [&] { return open("cpu", &desc, nullptr); });
}

/// One field set to one value.
struct Wrong {
  std::string what;
  std::function<void(kvc_cache_desc&, kvc_causal_desc&)> set;
  kvc_status expected = invalid;
};

template <class Number, class Descriptor>
void add(std::vector<Wrong>& list, const char* name, Number Descriptor::*field,
         std::initializer_list<Number> values, kvc_status expected = invalid) {
  for (const Number value : values) {
    const auto set = [field, value](kvc_cache_desc& cache, kvc_causal_desc& causal) {
      if constexpr (std::is_same_v<Descriptor, kvc_cache_desc>)
        cache.*field = value;
      else
        causal.*field = value;
      (void)cache, (void)causal;
    };
    list.push_back({std::string(name) + " " + std::to_string(value), set, expected});
  }
}

std::vector<Wrong> wrong_caches() {
  using C = kvc_cache_desc;
  using W = kvc_causal_desc;
  std::vector<Wrong> list;
  add(list, "kind", &C::kind, {0u, 7u, UINT32_MAX});
  add(list, "kind of another descriptor", &C::kind,
      {uint32_t{KVC_RECURRENT}, uint32_t{KVC_TRANSFORMER}, uint32_t{KVC_LIGHTNING}});
  add(list, "kind", &C::kind, {uint32_t{KVC_WRAPPER}}, KVC_E_NOT_SUPPORTED);
  add(list, "flags", &C::flags, {uint64_t{128}, uint64_t{1} << 32, ~uint64_t{0}});
  add(list, "n_layers", &C::n_layers, {least, -1, 0, 65537, most});
  add(list, "n_kv_heads", &C::n_kv_heads, {least, -1, 0, 65537, most});
  add(list, "head_dim_k", &C::head_dim_k, {least, -1, 0, 65537, most});
  add(list, "head_dim_v", &C::head_dim_v, {least, -1, 65537, most});
  add(list, "dtype_k", &C::dtype_k, {1u, uint32_t{KVC_I32}, UINT32_MAX}, KVC_E_DTYPE);
  add(list, "dtype_v", &C::dtype_v, {1u, uint32_t{KVC_I32}, UINT32_MAX}, KVC_E_DTYPE);
  add(list, "max_sequences", &C::max_sequences, {least, -1, 0, billion + 1, most});
  add(list, "capacity", &C::capacity, {least, -1, 0, billion + 1, most});
  add(list, "max_batch", &C::max_batch, {least, -1, 0, billion + 1, most});
  add(list, "cells", &C::cells, {least, -1, billion + 1, most});
  add(list, "max_q_heads", &C::max_q_heads, {least, -1, 1, most});
  add(list, "block_k", &C::block_k, {1, -1, 64});
  add(list, "block_v", &C::block_v, {1, -1, 64});
  add(list, "v_first", &C::v_first, {1, -1});
  add(list, "kind of the causal descriptor", &W::kind, {0u, uint32_t{KVC_ENCODER}, UINT32_MAX});
  for (const uint32_t blocked : {KVC_Q8_0, KVC_Q4_0, KVC_NF4}) {
    add(list, "dtype_k whose block the head lacks", &C::dtype_k, {blocked});
    add(list, "dtype_v whose block the head lacks", &C::dtype_v, {blocked});
  }
  for (const uint64_t flag : {KVC_CACHE_ROTATE_K, KVC_CACHE_ROTATE_V, KVC_CACHE_V_IN_K})
    add(list, "a flag that f32 does not take", &C::flags, {flag});
  add(list, "reach", &W::reach, {least, -1, billion + 1, most});
  add(list, "memory", &W::memory, {least, -2, billion + 1, most});
  add(list, "chunk", &W::chunk, {least, -1, billion + 1, most});
  add(list, "keep_first", &W::keep_first, {least, -1, billion + 1, most});
  add(list, "cell_padding", &W::cell_padding, {least, -1, 65537, most});
  add(list, "causal flags", &W::flags, {2u, 1u << 31, ~0u});
  add(list, "mask_dtype", &W::mask_dtype, {uint32_t{KVC_BF16}, uint32_t{KVC_I32}, 1u}, KVC_E_DTYPE);
  return list;
}

TEST(BadDescriptors, Cache) {
  const support::Device device(1);
  BadInput bad(nullptr);
  kvc_cache_desc good = support::cache_desc(1, 2, 4, 4);
  kvc_causal_desc good_causal = support::causal_desc();
  good_causal.reach = 4;
  const auto create = [&](const kvc_cache_desc* desc, const void* causal) {
    kvc_cache* cache = reinterpret_cast<kvc_cache*>(&bad);
    const kvc_status status = kvc_cache_create(device, desc, causal, &cache);
    EXPECT_EQ(cache != nullptr, status == KVC_OK);
    EXPECT_EQ(kvc_cache_destroy(cache), KVC_OK);
    return status;
  };
  const auto measure = [&](const kvc_cache_desc* desc, const void* causal) {
    uint64_t bytes = 0;
    return kvc_cache_memory_bytes(device, desc, causal, &bytes);
  };
  for (const Wrong& wrong : wrong_caches()) {
    kvc_cache_desc desc = good;
    kvc_causal_desc causal = good_causal;
    wrong.set(desc, causal);
    bad.expect(wrong.expected, "create: " + wrong.what, [&] { return create(&desc, &causal); });
    bad.expect(wrong.expected, "memory_bytes: " + wrong.what, [&] { return measure(&desc, &causal); });
  }
  expect_struct_sizes<kvc_cache_desc>(bad, "cache", good,
                                      [&](const kvc_cache_desc* d) { return create(d, nullptr); });
  expect_struct_sizes<kvc_causal_desc>(bad, "causal", good_causal,
                                       [&](const kvc_causal_desc* d) { return create(&good, d); });
  bad.expect(invalid, "create: null desc", [&] { return create(nullptr, nullptr); });
  bad.expect(invalid, "memory_bytes: null desc", [&] { return measure(nullptr, nullptr); });
  bad.expect(invalid, "create: null out",
             [&] { return kvc_cache_create(device, &good, nullptr, nullptr); });
  bad.expect(invalid, "memory_bytes: null out",
             [&] { return kvc_cache_memory_bytes(device, &good, nullptr, nullptr); });
  std::cout << bad.calls() << " calls" << std::endl;
  EXPECT_GE(bad.calls(), 150);
}

TEST(BadDescriptors, SizesThatDoNotFit) {
  const support::Device device(1);
  BadInput bad(nullptr);
  uint64_t bytes = 0;
  kvc_cache* cache = nullptr;
  kvc_cache_desc huge = support::cache_desc(65536, 65536, 65536, 65536);
  huge.capacity = huge.max_sequences = huge.max_batch = huge.cells = billion;
  const auto both = [&](kvc_status expected, const char* what) {
    bad.expect(expected, what, [&] { return kvc_cache_create(device, &huge, nullptr, &cache); });
    bad.expect(expected, what, [&] { return kvc_cache_memory_bytes(device, &huge, nullptr, &bytes); });
  };
  both(KVC_E_OVERFLOW, "everything at its largest");
  huge.max_sequences = huge.max_batch = 1;
  both(KVC_E_OVERFLOW, "K and V alone");
  huge = support::cache_desc(65536, 1024, 256, 256);
  huge.capacity = 1 << 20;
  huge.max_batch = 1;
  bad.expect(KVC_OK, "2^55 bytes can be computed",
             [&] { return kvc_cache_memory_bytes(device, &huge, nullptr, &bytes); });
  EXPECT_GT(bytes, uint64_t{1} << 54);
  bad.expect(KVC_E_OUT_OF_MEMORY, "2^55 bytes",
             [&] { return kvc_cache_create(device, &huge, nullptr, &cache); });
}

// Every mixture of small and large bounds: what does not fit 63 bits by a count in 128 is refused, and
// what is answered is never less than K and V need. A product that wrapped around would be caught here.
TEST(BadDescriptors, NoProductWrapsAround) {
  const support::Device device(2);
  const std::vector<int32_t kvc_cache_desc::*> fields = {
      &kvc_cache_desc::n_layers,      &kvc_cache_desc::n_kv_heads, &kvc_cache_desc::head_dim_k,
      &kvc_cache_desc::max_sequences, &kvc_cache_desc::capacity,   &kvc_cache_desc::max_batch,
      &kvc_cache_desc::cells,         &kvc_cache_desc::max_q_heads};
  const std::vector<std::vector<int32_t>> values = {{1, 4096},
                                                    {1, 65536},
                                                    {1, 65536},
                                                    {1, 1 << 15, billion},
                                                    {1, 1 << 15, billion},
                                                    {1, 1 << 20, billion},
                                                    {0, 1 << 20, billion},
                                                    {0, 65536, 65536 * 16}};
  int32_t answered = 0, refused = 0;
  std::vector<size_t> pick(fields.size(), 0);
  for (bool more = true; more;) {
    kvc_cache_desc desc = support::cache_desc(1, 1, 1, 0);
    for (size_t i = 0; i < fields.size(); ++i) desc.*fields[i] = values[i][pick[i]];
    uint64_t bytes = 0;
    const kvc_status status = kvc_cache_memory_bytes(device, &desc, nullptr, &bytes);
    using Wide = unsigned __int128;
    const Wide cells = desc.cells
                           ? static_cast<Wide>(desc.cells)
                           : static_cast<Wide>(desc.max_sequences) * static_cast<Wide>(desc.capacity);
    const Wide least_bytes = static_cast<Wide>(desc.n_layers) * static_cast<Wide>(desc.n_kv_heads) *
                             static_cast<Wide>(desc.head_dim_k) * 8 * cells;
    if (status == KVC_OK) {
      ++answered;
      ASSERT_GE(bytes, least_bytes) << "a product wrapped around";
      ASSERT_LE(bytes, static_cast<uint64_t>(PTRDIFF_MAX));
    } else if (desc.max_q_heads != 0 && desc.max_q_heads < desc.n_kv_heads) {
      ASSERT_EQ(status, invalid);
    } else {
      ++refused;
      ASSERT_EQ(support::name(status), "OVERFLOW") << support::last_message();
    }
    ASSERT_FALSE(status == KVC_OK && least_bytes > static_cast<Wide>(PTRDIFF_MAX));
    more = false;
    for (size_t i = 0; i < fields.size() && !more; ++i) {
      more = ++pick[i] < values[i].size();
      if (!more) pick[i] = 0;
    }
  }
  std::cout << answered << " sizes were told, " << refused << " do not fit" << std::endl;
  EXPECT_GT(answered, 100);
  EXPECT_GT(refused, 100);
}

/// What semantics says about limited memory, in numbers that cannot overflow: the positions that a sequence may hold.
int64_t positions_held(const kvc_cache_desc& cache, const kvc_causal_desc& causal) {
  const bool chunked = causal.reach == 0 && causal.chunk > 0 && causal.memory > 0;
  if (causal.memory == KVC_NONE || (causal.reach == 0 && !chunked)) return cache.capacity;
  const int64_t least_kept = (chunked ? causal.chunk - 1 : causal.reach) + (cache.max_sequences > 1);
  const int64_t kept = std::max<int64_t>(causal.memory > 0 ? causal.memory : causal.reach, least_kept);
  if (kept >= cache.capacity) return cache.capacity;
  return kept + causal.keep_first + 2 * int64_t{cache.max_batch};
}

// Every mixture of windows near their largest: more than 2^30 positions of a sequence are refused, never cut down to it.
TEST(BadDescriptors, LongestWindows) {
  const support::Device device(1);
  int32_t answered = 0, refused = 0;
  for (const int32_t reach : {0, 1, 4, billion - 20, billion - 1, billion}) {
    for (const int32_t memory : {0, KVC_NONE, 4, billion - 21, billion - 20, billion}) {
      for (const int32_t chunk : {0, 1, 8, billion - 1, billion}) {
        for (const int32_t keep_first :
             {0, 1, billion - 22, billion - 21, billion - 20, billion - 1, billion}) {
          for (const int32_t capacity : {64, billion}) {
            for (const int32_t max_batch : {1, 8, billion / 2, billion}) {
              kvc_cache_desc cache = support::cache_desc(1, 1, 2, 2);
              cache.capacity = capacity;
              cache.max_batch = max_batch;
              cache.max_sequences = 1 + chunk % 2;
              cache.cells = 64;
              kvc_causal_desc causal = support::causal_desc();
              causal.reach = reach;
              causal.memory = memory;
              causal.chunk = chunk;
              causal.keep_first = keep_first;
              const bool fits = positions_held(cache, causal) <= billion;
              uint64_t bytes = 0;
              const kvc_status status = kvc_cache_memory_bytes(device, &cache, &causal, &bytes);
              ASSERT_EQ(support::name(status), fits ? "OK" : "OVERFLOW")
                  << "reach " << reach << " memory " << memory << " chunk " << chunk << " keep_first "
                  << keep_first << " capacity " << capacity << " max_batch " << max_batch;
              (fits ? answered : refused) += 1;
            }
          }
        }
      }
    }
  }
  std::cout << answered << " sizes were told, " << refused << " do not fit" << std::endl;
  EXPECT_GT(answered, 100);
  EXPECT_GT(refused, 100);
}

// The longest kept-first part that fits, with positions behind it: each part of a sequence has the room that it needs.
TEST(BadDescriptors, LongestKeptFirstPart) {
  const support::Device device(1);
  constexpr int32_t batch = 8;
  kvc_cache_desc desc = support::cache_desc(1, 1, 2, 2);
  desc.max_batch = batch;
  desc.cells = 64;
  kvc_causal_desc causal = support::causal_desc();
  causal.reach = 4;
  causal.keep_first = billion - 4 - 2 * batch;
  const support::Cache cache(device, desc, &causal);
  if (cache.status == KVC_E_OUT_OF_MEMORY) GTEST_SKIP() << "8 GiB of address space";
  ASSERT_EQ(cache.status, KVC_OK) << support::last_message();
  float data[batch * 2] = {};
  const kvc_tensor rows = support::dense(data, KVC_F32, {batch, 1, 2});
  for (int32_t pass = 0; pass < 4; ++pass) {
    int32_t position[batch], sequence[batch] = {};
    for (int32_t i = 0; i < batch; ++i)  // the first pass lies on both sides of the border
      position[i] = causal.keep_first + (pass - 1) * batch + i + (pass == 0 ? batch / 2 : batch);
    ASSERT_EQ(kvc_begin(cache, batch, position, sequence, nullptr, 0, nullptr), KVC_OK)
        << support::last_message();
    ASSERT_EQ(kvc_put(cache, 0, &rows, &rows), KVC_OK);
    ASSERT_EQ(kvc_check(cache), KVC_OK) << support::last_message();
    ASSERT_EQ(kvc_commit(cache), KVC_OK);
    ASSERT_EQ(kvc_check(cache), KVC_OK) << support::last_message();
  }
}

TEST(BadDescriptors, Attention) {
  const support::Device device(1);
  Specimen s(device);
  BadInput bad(s.cache);
  kvc_attention_desc good{};
  good.struct_size = sizeof good;
  good.n_q_heads = Specimen::q_heads;
  const auto bind = [&](const kvc_attention_desc* desc) {
    return kvc_bind_attention(s.cache, 0, 2, desc, nullptr, nullptr);
  };
  expect_struct_sizes<kvc_attention_desc>(bad, "attention", good, bind);
  const auto refuse = [&](const std::string& what,
                          const std::function<void(kvc_attention_desc&)>& set) {
    kvc_attention_desc desc = good;
    set(desc);
    bad.expect(invalid, what, [&] { return bind(&desc); });
  };
  for (const int32_t n : {least, -4, -1, 0, 1, 3, 6, most, most - 1})
    refuse("n_q_heads " + std::to_string(n), [&](auto& d) { d.n_q_heads = n; });
  for (const float wrong : {NAN, HUGE_VALF, -HUGE_VALF}) {
    refuse("scale", [&](auto& d) { d.scale = wrong; });
    refuse("softcap", [&](auto& d) { d.softcap = wrong; });
    const float numbers[] = {0, 1, wrong, 1};
    bad.expect(invalid, "slopes",
               [&] { return kvc_bind_attention(s.cache, 0, 1, &good, numbers, nullptr); });
    bad.expect(invalid, "sinks",
               [&] { return kvc_bind_attention(s.cache, 0, 1, &good, nullptr, numbers); });
  }
  refuse("softcap below 0", [](auto& d) { d.softcap = -1; });
  for (const float softcap : {1e-45f, 1e-40f, 1e-39f, 2.9e-39f, 3e38f})
    refuse("softcap " + std::to_string(softcap), [&](auto& d) { d.softcap = softcap; });
  for (const float scale : {2.5e38f, -2.5e38f})
    refuse("scale " + std::to_string(scale), [&](auto& d) { d.scale = scale; });
  refuse("flags", [](auto& d) { d.flags = 1; });
  bad.expect(invalid, "null desc", [&] { return bind(nullptr); });
  for (const auto& [begin, end] : std::initializer_list<std::pair<int32_t, int32_t>>{
           {-1, 1}, {least, 1}, {0, 3}, {0, most}, {2, 1}, {1, -1}, {least, most}, {3, 3}}) {
    const std::string range = "layers [" + std::to_string(begin) + ", " + std::to_string(end) + ")";
    bad.expect(invalid, range, [&, b = begin, e = end] {
      return kvc_bind_attention(s.cache, b, e, &good, nullptr, nullptr);
    });
  }
}

TEST(BadDescriptors, Rope) {
  const support::Device device(1);
  const support::Cache empty(device, support::cache_desc(2, 1, 6, 6));
  BadInput bad(empty);
  kvc_rope_desc good{};
  good.struct_size = sizeof good;
  const auto bind = [&](const kvc_rope_desc* desc) {
    return kvc_bind_rope(empty, 0, 2, desc, nullptr);
  };
  expect_struct_sizes<kvc_rope_desc>(bad, "rope", good, bind);
  const auto refuse = [&](const std::string& what, const std::function<void(kvc_rope_desc&)>& set) {
    kvc_rope_desc desc = good;
    set(desc);
    bad.expect(invalid, what, [&] { return bind(&desc); });
  };
  for (const uint32_t pairs : {2u, UINT32_MAX}) refuse("pairs", [&](auto& d) { d.pairs = pairs; });
  for (const int32_t n : {least, -2, -1, 1, 3, 7, 8, most})
    refuse("n_dims " + std::to_string(n), [&](auto& d) { d.n_dims = n; });
  for (const float wrong : {NAN, HUGE_VALF, -HUGE_VALF, -1.0f}) {
    refuse("base", [&](auto& d) { d.base = wrong; });
    refuse("scale", [&](auto& d) { d.scale = wrong; });
    const float factors[] = {1, 1, wrong};
    bad.expect(invalid, "factor", [&] { return kvc_bind_rope(empty, 0, 1, &good, factors); });
  }
  const float zero[] = {1, 0, 1};
  bad.expect(invalid, "factor 0", [&] { return kvc_bind_rope(empty, 0, 1, &good, zero); });
  bad.expect(invalid, "null desc", [&] { return bind(nullptr); });
  for (const auto& [begin, end] :
       std::initializer_list<std::pair<int32_t, int32_t>>{{-1, 1}, {0, 3}, {2, 1}, {least, most}})
    bad.expect(invalid, "layers",
               [&, b = begin, e = end] { return kvc_bind_rope(empty, b, e, &good, nullptr); });
}

TEST(BadDescriptors, Answers) {
  const support::Device device(1);
  Specimen s(device);
  BadInput bad(s.cache);
  for (const uint32_t wrong : {0u, 4u, uint32_t{sizeof(kvc_stats)} - 8}) {
    kvc_stats stats{};
    stats.struct_size = wrong;
    bad.expect(invalid, "stats", [&] { return kvc_cache_stats(s.cache, &stats); });
    kvc_sequence_info info{};
    info.struct_size = wrong == sizeof(kvc_stats) - 8 ? uint32_t{sizeof info} - 4 : wrong;
    bad.expect(invalid, "sequence info", [&] { return kvc_sequence_query(s.cache, 0, &info); });
  }
  Longer<kvc_stats> longer{};
  longer.known.struct_size = sizeof longer;
  std::memset(longer.tail, 0x5A, sizeof longer.tail);
  EXPECT_EQ(kvc_cache_stats(s.cache, &longer.known), KVC_OK);
  EXPECT_EQ(longer.known.struct_size, sizeof longer);
  EXPECT_EQ(longer.known.cells, static_cast<uint64_t>(Specimen::cells));
}

TEST(BadDescriptors, AttentionExtra) {
  const support::Device device(1);
  Specimen s(device);
  s.open(1);
  BadInput bad(s.cache);
  const auto attend = [&](const kvc_attention_extra* extra) {
    return kvc_attention(s.cache, 0, &s.q, &s.out, extra);
  };
  const kvc_attention_extra good = support::extra(&s.bias, &s.mask, &s.weights);
  expect_struct_sizes<kvc_attention_extra>(bad, "extra", good, attend);
  const auto spoilt = [&](kvc_status status, const char* what, auto spoil) {
    kvc_attention_extra extra = good;
    spoil(extra);
    bad.expect(status, what, [&] { return attend(&extra); });
  };
  for (const uint32_t unknown : {16u, 1u << 31, UINT32_MAX})
    spoilt(invalid, "unknown flags", [&](auto& extra) { extra.flags = unknown; });
  spoilt(invalid, "a seed without dropout", [](auto& extra) { extra.dropout_seed = 1; });
  for (const uint32_t later : {KVC_EXTRA_DROPOUT, KVC_EXTRA_BY_POSITION, KVC_EXTRA_MASK_ALONE})
    spoilt(KVC_E_NOT_SUPPORTED, "a later flag", [&](auto& extra) { extra.flags = later; });
  const float number = 1;
  const int32_t position = 0;
  const kvc_attention_desc constants{};
  spoilt(KVC_E_NOT_SUPPORTED, "slopes", [&](auto& extra) { extra.alibi_slopes = &number; });
  spoilt(KVC_E_NOT_SUPPORTED, "sinks", [&](auto& extra) { extra.sinks = &number; });
  spoilt(KVC_E_NOT_SUPPORTED, "constants", [&](auto& extra) { extra.constants = &constants; });
  spoilt(KVC_E_NOT_SUPPORTED, "positions", [&](auto& extra) { extra.first_position = &position; });
}

}  // namespace
