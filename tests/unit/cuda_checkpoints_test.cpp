// Checkpoints in pinned memory over the simulated CUDA device by way of the C ABI, while states are on their way there: whoever steps
// back to one, reads it, inserts it or writes over its state comes behind the copy. No slot becomes free here, which would wait for the
// copy, too.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <functional>
#include <iterator>
#include <memory>
#include <vector>

#include "core/caches/create.hpp"
#include "support/abi.hpp"
#include "tests/simt/runtime_simt.hpp"
#include "unit/cuda_arena.hpp"

namespace {

using cuda_arena::Arena;
using cuda_arena::open_cuda;

constexpr uint64_t seed = 20261130;
constexpr int32_t sequences = 3, heads = 2, head_dim = 24, state_size = 37;
constexpr unsigned n_orders = 20;

kvc_cache* create(const std::shared_ptr<kvc::Device>& device, kvc::CacheKind kind) {
  kvc::CacheRequest request;
  request.kind = kind;
  request.bounds.n_layers = 1;
  request.bounds.max_sequences = sequences;
  request.bounds.max_batch = sequences;
  const kvc::CheckpointRequest checkpoints = {
      .checkpoints = 2, .checkpoint_interval = -1, .checkpoint_min_pos = -1, .on_host = true};
  if (kind == kvc::CacheKind::recurrent) {
    request.recurrent.state_size = state_size;
    request.recurrent.checkpoints = checkpoints;
  } else {
    request.bounds.n_kv_heads = request.bounds.max_q_heads = heads;
    request.bounds.head_dim_k = request.bounds.head_dim_v = head_dim;
    request.lightning.checkpoints = checkpoints;
  }
  kvc_cache* const cache = cuda_arena::create_cache(device, request);
  EXPECT_NE(cache, nullptr) << kvc::last_message();
  const float slopes[heads] = {0.01f, 0.3f};
  if (kind == kvc::CacheKind::lightning) {
    EXPECT_EQ(kvc_bind_decay(cache, 0, 1, slopes), KVC_OK);
  }
  return cache;
}

/// Calls on a cache. Those that are `late` leave the device behind; after any other it has done everything.
class Calls {
 public:
  Calls(kvc::CacheKind kind, bool late) : kind_(kind), late_(late) {}
  ~Calls() {
    for (kvc_cache* cache : {cache_, other_}) EXPECT_EQ(kvc_cache_destroy(cache), KVC_OK);
  }
  Calls(const Calls&) = delete;
  Calls& operator=(const Calls&) = delete;

  kvc_cache* cache() const { return cache_; }
  /// Empty, on the same device.
  kvc_cache* other() const { return other_; }
  Arena& arena() { return arena_; }

  void done(kvc_status status) const {
    EXPECT_EQ(status, KVC_OK) << support::last_message();
    if (!late_) simt::device::finish();
  }
  /// Of one token of sequence 0.
  void pass(int32_t position) {
    const int32_t sequence = 0;
    done(kvc_begin(cache_, 1, &position, &sequence, nullptr, 0, nullptr));
    if (kind_ == kvc::CacheKind::recurrent) {
      const kvc_tensor state = arena_.take({1, state_size});
      done(kvc_state_put(cache_, 0, KVC_PART_RECURRENT, &state));
    } else {
      const kvc_tensor k = arena_.take({1, heads, head_dim}), v = arena_.take({1, heads, head_dim});
      done(kvc_put(cache_, 0, &k, &v));
    }
    done(kvc_commit(cache_));
  }
  /// The checkpoint of sequence 0 at 1 is under way. The state that it comes from is sequence 1's, since sequence 0 went on.
  void leave_one_under_way() {
    pass(0);
    done(kvc_checkpoint_take(cache_, 0));
    int32_t at = 0;
    done(kvc_copy_prefix(cache_, 0, 1, 1, &at));
    pass(1);
  }

 private:
  const kvc::CacheKind kind_;
  const bool late_;
  std::shared_ptr<kvc::Device> device_ = open_cuda();
  kvc_cache *cache_ = create(device_, kind_), *other_ = create(device_, kind_);
  Arena arena_{device_, size_t{16} * heads* head_dim* head_dim, seed};
};

using Result = std::vector<uint64_t>;

Result digest_of(kvc_cache* cache) {
  Result digest(2);
  EXPECT_EQ(kvc_state_digest(cache, digest.data()), KVC_OK) << support::last_message();
  EXPECT_EQ(kvc_check(cache), KVC_OK) << support::last_message();
  return digest;
}

/// Whether `work` returns the same in whatever order the streams get on, as where nothing is ever late.
void expect_the_same(kvc::CacheKind kind, const std::function<Result(Calls&)>& work) {
  Calls prompt(kind, false);
  const Result wanted = work(prompt);
  for (unsigned order = 1; order <= n_orders; ++order) {
    simt::device::set_seed(order);
    Calls late(kind, true);
    EXPECT_EQ(work(late), wanted) << "order " << order;
  }
}

TEST(CudaCheckpoints, WhoStepsBackComesBehindTheCopy) {
  for (const kvc::CacheKind kind : {kvc::CacheKind::recurrent, kvc::CacheKind::lightning}) {
    expect_the_same(kind, [](Calls& calls) {
      calls.leave_one_under_way();
      int32_t at = 0;
      calls.done(kvc_copy_prefix(calls.cache(), 0, 2, 1, &at));
      EXPECT_EQ(at, 1);
      return digest_of(calls.cache());
    });
  }
}

TEST(CudaCheckpoints, WhoReadsOneComesBehindTheCopy) {
  expect_the_same(kvc::CacheKind::recurrent, [](Calls& calls) {
    calls.leave_one_under_way();
    kvc_tensor state = calls.arena().take({state_size});
    calls.done(kvc_state_gather(calls.cache(), 0, KVC_PART_RECURRENT, 0, 1, &state));
    simt::device::finish();
    const float* const end = calls.arena().on_host() + calls.arena().taken();
    Result bits;
    std::transform(end - state_size, end, std::back_inserter(bits),
                   [](float number) { return std::bit_cast<uint32_t>(number); });
    return bits;
  });
}

TEST(CudaCheckpoints, ADigestComesBehindTheCopy) {
  expect_the_same(kvc::CacheKind::recurrent, [](Calls& calls) {
    calls.leave_one_under_way();
    return digest_of(calls.cache());
  });
}

TEST(CudaCheckpoints, WhoInsertsOneComesBehindTheCopy) {
  expect_the_same(kvc::CacheKind::lightning, [](Calls& calls) {
    calls.leave_one_under_way();
    calls.done(kvc_insert(calls.other(), calls.cache(), 0));
    return digest_of(calls.other());
  });
}

/// Sequence 1 has the state that the checkpoint of sequence 0 comes from to itself.
TEST(CudaCheckpoints, WhoWritesOverAStateComesBehindTheCopy) {
  expect_the_same(kvc::CacheKind::lightning, [](Calls& calls) {
    calls.leave_one_under_way();
    const kvc_tensor states = calls.arena().take({1, heads, head_dim, head_dim});
    calls.done(kvc_lightning_write(calls.cache(), 0, 1, 1, &states));
    return digest_of(calls.cache());
  });
}

}  // namespace
