// The memory that a cache takes is what the formula at kvc_cache_memory_bytes() says: K and V by cells, the book by cells and
// by what each sequence can hold of them.
#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>

#include "support/abi.hpp"

namespace {

class MemoryBytes : public testing::Test {
 protected:
  uint64_t bytes(const kvc_cache_desc& desc, const kvc_causal_desc* causal = nullptr) const {
    uint64_t result = 0;
    EXPECT_EQ(kvc_cache_memory_bytes(device_, &desc, causal, &result), KVC_OK)
        << support::last_message();
    return result;
  }

 private:
  support::Device device_{1};
};

constexpr double mib = 1 << 20;

TEST_F(MemoryBytes, ManyLongSequencesOverFewCellsStaySmall) {
  kvc_cache_desc desc = support::cache_desc(1, 1, 64, 64);
  desc.dtype_k = desc.dtype_v = KVC_F16;
  desc.max_sequences = 1024;
  desc.capacity = 131072;
  desc.cells = 2048;
  const double found = static_cast<double>(bytes(desc)) / mib;
  std::cout << found << " MiB for 1024 sequences of 131072 over 2048 cells" << std::endl;
  EXPECT_LT(found, 21);
  desc.max_sequences = 1;
  EXPECT_LT(found - static_cast<double>(bytes(desc)) / mib, 16 + 0.5);  // 8 bytes × 1023 × 2048
}

// Of each cell: K, V, 12 bytes and a few bits, 4 more where freed cells are cleared; and 8 bytes in each sequence that could
// hold it.
TEST_F(MemoryBytes, GrowsWithCells) {
  constexpr int32_t step = 1 << 20;
  for (const int32_t sequences : {1, 3, 64}) {
    for (const bool clears : {false, true}) {
      for (const bool in_reach : {true, false}) {
        kvc_cache_desc desc = support::cache_desc(3, 2, 8, 4);
        desc.dtype_v = KVC_F16;
        desc.max_sequences = sequences;
        desc.capacity = in_reach ? 4 * step : step;
        desc.flags = clears ? KVC_CACHE_ZERO_ON_FREE : 0;
        desc.cells = step;
        const uint64_t few = bytes(desc);
        desc.cells = 2 * step;
        const double per_cell = static_cast<double>(bytes(desc) - few) / step;
        const double stored = 3 * 2 * (8 * 4 + 4 * 2), counted = 12 + (clears ? 4 : 0);
        const double named = in_reach ? 8 * sequences : 0;
        EXPECT_NEAR(per_cell, stored + counted + named, 0.5)
            << sequences << " sequences, clears " << clears << ", in reach " << in_reach;
      }
    }
  }
}

// Of each sequence: 8 bytes for each position that it can hold, and some 200.
TEST_F(MemoryBytes, GrowsWithSequences) {
  struct Case {
    int32_t capacity, reach, keep_first, cells;
    int64_t entries;
  };
  const int32_t batch = 16;
  for (const Case& c :
       {Case{4096, 0, 0, 1 << 20, 4096}, Case{4096, 0, 0, 1000, 1000}, Case{1 << 30, 0, 0, 1000, 1000},
        Case{4096, 100, 0, 1 << 20, 101 + 2 * batch},  // memory: the reach and one more
        Case{4096, 100, 7, 1 << 20, 7 + 101 + 2 * batch}, Case{4096, 2000, 0, 1000, 1000},
        Case{4096, 2000, 50, 1000, 50 + 1000}, Case{4096, 100, 3000, 500, 500 + 101 + 2 * batch}}) {
    kvc_cache_desc desc = support::cache_desc(1, 1, 4, 4);
    desc.capacity = c.capacity;
    desc.max_batch = batch;
    desc.cells = c.cells;
    kvc_causal_desc causal = support::causal_desc();
    causal.reach = c.reach;
    causal.keep_first = c.keep_first;
    desc.max_sequences = 1000;
    const uint64_t few = bytes(desc, &causal);
    desc.max_sequences = 2000;
    const double per_sequence = static_cast<double>(bytes(desc, &causal) - few) / 1000;
    EXPECT_GE(per_sequence, static_cast<double>(8 * c.entries));
    EXPECT_LE(per_sequence, static_cast<double>(8 * c.entries + 256))
        << "capacity " << c.capacity << " reach " << c.reach << " keep_first " << c.keep_first
        << " cells " << c.cells;
  }
}

// Where every sequence may hold every cell, as sharing allows, it finds room for all of them.
TEST_F(MemoryBytes, EverySequenceCanHoldEveryCell) {
  const support::Device device(1);
  kvc_cache_desc desc = support::cache_desc(1, 1, 4, 4);
  desc.max_sequences = 100;
  desc.capacity = 1 << 30;
  desc.max_batch = desc.cells = 50;
  const support::Cache cache(device, desc);
  ASSERT_EQ(cache.status, KVC_OK) << support::last_message();
  std::vector<int32_t> position, sequence(50, 0);
  for (int32_t i = 0; i < 50; ++i) position.push_back(1000 * i);
  ASSERT_EQ(kvc_begin(cache, 50, position.data(), sequence.data(), nullptr, 0, nullptr), KVC_OK);
  ASSERT_EQ(kvc_commit(cache), KVC_OK);
  for (int32_t s = 1; s < 100; ++s)
    ASSERT_EQ(kvc_copy_prefix(cache, 0, s, INT32_MAX, nullptr), KVC_OK);
  for (int32_t s = 0; s < 100; ++s) EXPECT_EQ(support::sequence_info(cache, s).count, 50);
  EXPECT_EQ(support::stats(cache).cells_shared, 50u);
  EXPECT_EQ(kvc_check(cache), KVC_OK) << support::last_message();
}

// A cell of a layer takes the rows of codes and scales that kvc_storage_query() tells, and no row of V where V is a part of K.
TEST_F(MemoryBytes, CellsTakeTheirCodesAndScales) {
  constexpr int32_t step = 1 << 20, dim = 128;
  for (const uint32_t dtype : {KVC_F16, KVC_F8_E4M3, KVC_Q8_0, KVC_Q4_0, KVC_INT8, KVC_NF4}) {
    kvc_storage_info info = KVC_STORAGE_INFO_INIT;
    ASSERT_EQ(kvc_storage_query(dtype, dim, 0, &info), KVC_OK) << support::last_message();
    for (const bool v_in_k : {false, true}) {
      kvc_cache_desc desc = support::cache_desc(2, 3, dim, dim);
      desc.dtype_k = dtype;
      desc.dtype_v = v_in_k ? 0 : dtype;
      desc.flags = v_in_k ? KVC_CACHE_V_IN_K : 0;
      desc.capacity = step;
      desc.cells = step;
      const uint64_t few = bytes(desc);
      desc.cells = 2 * step;
      const double per_cell = static_cast<double>(bytes(desc) - few) / step;
      const double stored = 2.0 * 3 * info.bytes_per_row * (v_in_k ? 1 : 2);
      EXPECT_NEAR(per_cell, stored + 12, 0.5) << "type " << dtype << ", V in K " << v_in_k;
    }
  }
}

}  // namespace
