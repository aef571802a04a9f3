// kvc.hpp over a library that answers what the real one does rarely or never. The functions below take the place of
// libkvc.so's in this program: a program's own symbols come first.
#include <gtest/gtest.h>

#include <algorithm>
#include <kvc/kvc.hpp>
#include <vector>

namespace {

uint32_t version = KVC_VERSION_NUMBER;
std::vector<int32_t> number_of_runs;  // at each call; the last one stays
size_t calls = 0;

}  // namespace

uint32_t kvc_version_number() noexcept { return version; }

kvc_status kvc_runs(const kvc_cache* /*cache*/, int32_t /*layer*/, int32_t /*sequence*/,
                    int32_t capacity, kvc_run* runs, int32_t* n) noexcept {
  *n = number_of_runs[std::min(calls++, number_of_runs.size() - 1)];
  for (int32_t i = 0; i < std::min(capacity, *n); ++i) runs[i] = {2 * i, 1, 2 * i, 0};
  return KVC_OK;
}

namespace {

kvc::Device open() { return kvc::Device("cpu"); }

TEST(CppStandIn, LibrariesOfAnotherMinorVersionAreRefused) {
  open();
  version = KVC_VERSION_NUMBER + 1;  // a patch changes no struct
  open();
  for (const int step : {0x100, 0x10000}) {
    version = KVC_VERSION_NUMBER + static_cast<uint32_t>(step);
    EXPECT_THROW(open(), kvc::VersionMismatch);
  }
  version = 12 << 16 | 34 << 8;
  try {
    open();
    ADD_FAILURE() << "version 12.34 was taken";
  } catch (const kvc::VersionMismatch& error) {
    const std::string versions = "compiled for kvc " + std::to_string(KVC_VERSION_MAJOR) + "." +
                                 std::to_string(KVC_VERSION_MINOR) + ", loaded kvc 12.34: ";
    EXPECT_EQ(error.message().rfind(versions, 0), 0u) << error.message();
  }
  version = KVC_VERSION_NUMBER;
}

TEST(CppStandIn, RunsMayChangeTheirNumberBetweenTwoCalls) {
  kvc::CacheDesc desc;
  desc.n_layers = desc.n_kv_heads = desc.head_dim_k = desc.capacity = desc.max_batch = 1;
  desc.max_sequences = 1;
  const kvc::Cache cache(open(), desc);
  for (const std::vector<int32_t>& numbers :
       std::vector<std::vector<int32_t>>{{0}, {4}, {4, 2}, {4, 0}, {2, 4}, {1, 2, 3, 4}, {2, 4, 1}}) {
    number_of_runs = numbers;
    calls = 0;
    const std::vector<kvc_run> runs = cache.runs(0, 0);
    ASSERT_EQ(runs.size(), static_cast<size_t>(numbers.back()));
    for (size_t i = 0; i < runs.size(); ++i) {
      EXPECT_EQ(runs[i].length, 1);
      EXPECT_EQ(runs[i].position, static_cast<int32_t>(2 * i));
    }
  }
}

}  // namespace
