// kvc_check on caches whose bookkeeping was damaged behind their back, one bit at a time: it names what is broken or finds that
// nothing is, and never falls over.
#include <gtest/gtest.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <set>
#include <string>
#include <vector>

#include "core/caches/causal.hpp"
#include "unit/watched_device.hpp"

namespace {

using kvc::Status;

/// A pass that adds tokens to a sequence; the next one ends it.
void add(kvc::CausalCache& cache, int32_t sequence, int32_t first, int32_t n) {
  std::vector<int32_t> position, owner(static_cast<size_t>(n), sequence);
  for (int32_t i = 0; i < n; ++i) position.push_back(first + i);
  kvc::Batch batch;
  batch.n_tokens = n;
  batch.position = position.data();
  batch.sequence = owner.data();
  ASSERT_EQ(cache.begin(batch, false), Status::ok) << kvc::last_message();
  std::vector<float> rows(position.size() * 2, 1.0f);
  kvc::Tensor tensor;
  tensor.data = rows.data();
  tensor.dtype = kvc::DType::f32;
  tensor.ndim = 3;
  const int64_t shape[] = {n, 1, 2}, stride[] = {2, 2, 1};
  std::copy_n(shape, 3, tensor.shape);
  std::copy_n(stride, 3, tensor.stride);
  ASSERT_EQ(cache.put(0, tensor, tensor), Status::ok) << kvc::last_message();
}

/// What kvc_check returns for a cache, one damaged bit after the other.
void damage(bool with_rope, std::set<std::string>& met) {
  kvc::CacheBounds bounds;
  bounds.n_layers = bounds.n_kv_heads = 1;
  bounds.head_dim_k = bounds.head_dim_v = 2;
  bounds.max_sequences = 3;
  bounds.capacity = 1024;
  bounds.max_batch = 32;
  bounds.cells = 2080;  // more blocks than a word has bits: the sets of free blocks have levels
  kvc::CausalRequest wanted;
  kvc::CausalSettings settings;
  wanted.reach = 16;
  wanted.memory = 20;
  wanted.keep_first = 3;
  ASSERT_EQ(kvc::CausalCache::resolve(bounds, wanted, &settings), Status::ok) << kvc::last_message();
  auto device = std::make_shared<WatchedDevice>();
  std::shared_ptr<kvc::Cache> made;
  ASSERT_EQ(kvc::CausalCache::create(device, bounds, settings, &made), Status::ok);
  auto& cache = static_cast<kvc::CausalCache&>(*made);
  kvc::RopeSettings rope;
  rope.n_dims = 2;
  if (with_rope) {
    ASSERT_EQ(cache.check_rope({}), Status::ok) << kvc::last_message();
    cache.bind_rope(0, 1, rope);
  }
  for (int32_t first = 0; first < 64; first += 16) add(cache, 0, first, 16);
  int32_t got = 0;
  ASSERT_EQ(cache.copy_prefix(0, 1, INT32_MAX, &got), Status::ok) << kvc::last_message();
  add(cache, 1, got, 16);  // what it shares with sequence 0 slides, and is hidden by the open pass
  ASSERT_EQ(cache.check(), Status::ok) << kvc::last_message();

  // First come the layer and the sequences, objects with pointers; behind them lie arrays of numbers.
  constexpr size_t first_array = 1024;
  for (size_t at = first_array; at < device->bytes(); at += 4) {
    for (const uint32_t flip : {1u, 0x80u, 0x80000000u}) {
      uint32_t word = 0;
      std::memcpy(&word, device->block() + at, 4);
      const uint32_t damaged = word ^ flip;
      std::memcpy(device->block() + at, &damaged, 4);
      const Status status = cache.check();
      std::memcpy(device->block() + at, &word, 4);
      ASSERT_TRUE(status == Status::ok || status == Status::internal);
      if (status == Status::internal) met.insert(kvc::last_message());
    }
  }
  ASSERT_EQ(cache.check(), Status::ok);
  ASSERT_TRUE(cache.health().ok()) << "check only looks";
}

TEST(Check, NamesEveryKindOfDamage) {
  std::set<std::string> met;
  damage(false, met);
  damage(true, met);
  for (const char* kind :
       {"a cell has fewer owners than hidden ones", "a cell is free and owned, or neither",
        "the number of cells that are free at commit", "the number of shared cells",
        "the bitmap of blocks with a free cell", "the bitmap of wholly free blocks",
        "the tree over the blocks with a free cell", "the tree over the wholly free blocks",
        "owner counts differ from what the sequences hold",
        "hidden counts differ from what the sequences hide",
        "sequence 0: names a cell outside the pool", "sequence 0: positions do not ascend",
        "sequence 0: a key has a pending rotation that was not noted",
        "sequence 1: holds a position at or behind its next", "sequence 1: kept-first tokens"}) {
    EXPECT_TRUE(met.contains(kind)) << kind;
  }
}

}  // namespace
