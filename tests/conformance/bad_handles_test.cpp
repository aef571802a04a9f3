// Every function with every kind of wrong handle, and calls in the wrong state.
#include <gtest/gtest.h>

#include <iostream>
#include <memory>
#include <vector>

#include "support/bad_input.hpp"
#include "support/functions.hpp"
#include "support/random.hpp"

namespace {

using support::BadInput;
using support::Function;
using support::functions;
using support::Specimen;

TEST(BadHandles, EveryFunctionSaysHandle) {
  const support::Device device(1);
  Specimen specimen(device);
  kvc_cache* freed = nullptr;
  {
    Specimen other(device);
    freed = other.cache.handle;
  }
  kvc_cache* freed_and_reused = nullptr;
  {
    Specimen other(device);
    freed_and_reused = other.cache.handle;
  }
  const Specimen in_its_slot(device);  // most likely
  int32_t on_the_stack[64] = {};
  const auto as_cache = [](auto value) { return reinterpret_cast<kvc_cache*>(value); };
  const auto flipped = reinterpret_cast<uintptr_t>(specimen.cache.handle) ^ 1;
  const std::vector<std::pair<const char*, kvc_cache*>> handles = {
      {"null", nullptr},
      {"one", as_cache(uintptr_t{1})},
      {"all ones", as_cache(~uintptr_t{0})},
      {"an address", as_cache(&on_the_stack[1])},
      {"a device", as_cache(device.handle)},
      {"freed", freed},
      {"freed, slot reused", freed_and_reused},
      {"one bit off", as_cache(flipped)},
  };
  BadInput bad(specimen.cache);
  std::vector<Function> all = functions(specimen);
  for (const Function& function : support::functions_of_other_kinds()) all.push_back(function);
  all.push_back({"cache_destroy", [](kvc_cache* c) { return kvc_cache_destroy(c); }});
  for (const Function& function : all) {
    for (const auto& [kind, handle] : handles) {
      if (handle == nullptr && std::string(function.name) == "cache_destroy") continue;
      bad.expect(KVC_E_HANDLE, std::string(function.name) + " of " + kind,
                 [&, h = handle] { return function.call(h); });
    }
  }
  std::cout << bad.calls() << " calls with a wrong handle" << std::endl;
  EXPECT_GE(bad.calls(), 326);
}

TEST(BadHandles, DevicesToo) {
  const support::Device device(1);
  Specimen specimen(device);
  kvc_device* closed = nullptr;
  EXPECT_EQ(kvc_device_open("cpu", nullptr, nullptr, &closed), KVC_OK);
  EXPECT_EQ(kvc_device_close(closed), KVC_OK);
  const kvc_cache_desc desc = support::cache_desc(1, 1, 4, 4);
  BadInput bad(specimen.cache);
  const auto as_device = [](auto value) { return reinterpret_cast<kvc_device*>(value); };
  for (kvc_device* handle : {as_device(uintptr_t{0}), as_device(uintptr_t{8}), closed,
                             as_device(specimen.cache.handle), as_device(&bad)}) {
    bad.expect(KVC_E_HANDLE, "cache_create", [&] {
      kvc_cache* made = reinterpret_cast<kvc_cache*>(&bad);
      const kvc_status status = kvc_cache_create(handle, &desc, nullptr, &made);
      EXPECT_EQ(made, nullptr);
      return status;
    });
    bad.expect(KVC_E_HANDLE, "cache_memory_bytes", [&] {
      uint64_t bytes = 0;
      return kvc_cache_memory_bytes(handle, &desc, nullptr, &bytes);
    });
    bad.expect(KVC_E_HANDLE, "device_synchronize", [&] { return kvc_device_synchronize(handle); });
    if (handle) bad.expect(KVC_E_HANDLE, "device_close", [&] { return kvc_device_close(handle); });
  }
  EXPECT_EQ(kvc_device_close(nullptr), KVC_OK);
  EXPECT_EQ(kvc_cache_destroy(nullptr), KVC_OK);
}

TEST(BadHandles, RandomNumbersAreNoHandles) {
  const support::Device device(1);
  Specimen specimen(device);
  const support::Digest before = support::digest(specimen.cache);
  support::Random random(20261121);
  for (int32_t i = 0; i < 1000000; ++i) {
    const uint64_t bits = random.bits();
    // Half of them near a real one, where a weak check would let something through.
    const uint64_t near = reinterpret_cast<uintptr_t>(specimen.cache.handle) ^ (bits & 0xffff);
    const uint64_t value = i % 2 ? bits : near;
    if (value == reinterpret_cast<uintptr_t>(specimen.cache.handle)) continue;
    ASSERT_EQ(kvc_check(reinterpret_cast<kvc_cache*>(value)), KVC_E_HANDLE) << value;
  }
  EXPECT_EQ(support::digest(specimen.cache), before);
}

TEST(BadHandles, AsManyAsThereCanBe) {
  const support::Device parent(1);
  const kvc_cache_desc desc = support::cache_desc(1, 1, 4, 4);
  kvc_device_desc settings{};
  settings.struct_size = sizeof settings;
  settings.n_threads = 1;
  std::vector<kvc_device*> open;
  kvc_status status = KVC_OK;
  while (status == KVC_OK) {
    kvc_device* device = nullptr;
    status = kvc_device_open("cpu", &settings, nullptr, &device);
    ASSERT_EQ(device != nullptr, status == KVC_OK);
    if (device) open.push_back(device);
  }
  BadInput bad(nullptr);
  kvc_cache* cache = nullptr;
  kvc_device* device = nullptr;
  bad.expect(KVC_E_OUT_OF_MEMORY, "one device more",
             [&] { return kvc_device_open("cpu", &settings, nullptr, &device); });
  bad.expect(KVC_E_OUT_OF_MEMORY, "a cache more",
             [&] { return kvc_cache_create(parent, &desc, nullptr, &cache); });
  EXPECT_EQ(device, nullptr);
  EXPECT_EQ(cache, nullptr);
  EXPECT_EQ(open.size(), 65535u);
  for (kvc_device* each : open) ASSERT_EQ(kvc_device_close(each), KVC_OK);
  for (kvc_device* each : open) ASSERT_EQ(kvc_device_close(each), KVC_E_HANDLE);
  EXPECT_EQ(support::Cache(parent, desc).status, KVC_OK) << "it has recovered";
}

TEST(BadHandles, ParentsAndChildrenInAnyOrder) {
  auto device = std::make_unique<support::Device>(2);
  Specimen specimen(*device);
  device.reset();  // the cache keeps what it needs
  specimen.open(2);
  EXPECT_EQ(kvc_attention(specimen.cache, 1, &specimen.q, &specimen.out, nullptr), KVC_OK);
}

TEST(BadHandles, CallsOfOtherKindsAreNotSupportedWhateverTheirArguments) {
  const support::Device device(1);
  Specimen specimen(device);
  BadInput bad(specimen.cache);
  for (const Function& function : support::functions_of_other_kinds())
    bad.expect(KVC_E_NOT_SUPPORTED, function.name, [&] { return function.call(specimen.cache); });
}

TEST(BadStates, NoPass) {
  const support::Device device(1);
  Specimen s(device);
  BadInput bad(s.cache);
  for (const Function& function : functions(s)) {
    const std::string name = function.name;
    const bool needs_pass = name == "put" || name == "attention" || name == "attention_extra" ||
                            name == "put_attention" || name == "get" || name == "history" ||
                            name == "mask" || name == "set_causal" || name == "commit" ||
                            name == "commit_prefix" || name == "abort";
    // RoPE is bound while the cache is empty.
    if (needs_pass || name == "bind_rope")
      bad.expect(KVC_E_BAD_STATE, name + " without a pass", [&] { return function.call(s.cache); });
  }
  // A missing pass is seen before a bad argument.
  bad.expect(KVC_E_BAD_STATE, "put of layer -1",
             [&] { return kvc_put(s.cache, -1, nullptr, nullptr); });
  bad.expect(KVC_E_BAD_STATE, "mask of null", [&] { return kvc_mask(s.cache, 0, nullptr); });
  bad.expect(KVC_E_BAD_STATE, "history into null",
             [&] { return kvc_history(s.cache, 0, nullptr, nullptr); });
  EXPECT_GE(bad.calls(), 15);
}

TEST(BadStates, PassNotFullyPut) {
  const support::Device device(1);
  Specimen s(device);
  s.open(1);
  BadInput bad(s.cache);
  for (const Function& function : functions(s)) {
    const std::string name = function.name;
    const bool ends_a_pass = name == "remove" || name == "copy_prefix" || name == "reorder" ||
                             name == "resume";
    if (ends_a_pass || name == "bind_attention" || name == "bind_rope" || name == "bind_shift")
      bad.expect(KVC_E_BAD_STATE, name, [&] { return function.call(s.cache); });
  }
  const int32_t position[] = {4, 2}, sequence[] = {0, 1};
  bad.expect(KVC_E_BAD_STATE, "begin",
             [&] { return kvc_begin(s.cache, 2, position, sequence, nullptr, 0, nullptr); });
  bad.expect(KVC_E_BAD_STATE, "begin reserve", [&] {
    return kvc_begin(s.cache, 2, nullptr, nullptr, nullptr, KVC_BEGIN_RESERVE, nullptr);
  });
  bad.expect(KVC_E_BAD_STATE, "fits",
             [&] { return kvc_fits(s.cache, 2, position, sequence, nullptr); });
  bad.expect(KVC_E_BAD_STATE, "attention of a layer that was not put",
             [&] { return kvc_attention(s.cache, 1, &s.q, &s.out, nullptr); });
  kvc_attention_extra extra = support::extra(&s.bias, &s.mask, &s.weights);
  extra.flags = 1;
  bad.expect(KVC_E_BAD_STATE, "attention_extra of a layer that was not put, and a bad argument",
             [&] { return kvc_attention(s.cache, 1, &s.q, &s.out, &extra); });
  bad.expect(KVC_E_BAD_STATE, "get of a layer that was not put",
             [&] { return kvc_get(s.cache, 1, &s.k, &s.v); });
  // A bad argument is seen before the unfinished pass.
  bad.expect(KVC_E_INVALID_ARGUMENT, "remove [2, 1)", [&] { return kvc_remove(s.cache, 0, 2, 1); });
  bad.expect(KVC_E_INVALID_ARGUMENT, "fits of none",
             [&] { return kvc_fits(s.cache, 0, position, sequence, nullptr); });
  EXPECT_EQ(kvc_abort(s.cache), KVC_OK);
}

}  // namespace
