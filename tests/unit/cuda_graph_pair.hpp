#pragma once
#include <array>
#include <utility>

#include "unit/cuda_arena.hpp"

namespace cuda_arena {

/// A cache that passes are done in by calls, and one in which graphs do them, with as many floats each for tensors.
class GraphPair {
 public:
  template <class Create>
  GraphPair(size_t n_floats, uint64_t seed, Create create)
      : random_(seed),
        device_(open_cuda()),
        by_calls_(create(device_)),
        by_graphs_(create(device_)),
        of_calls_(device_, n_floats, seed),
        of_graphs_(device_, n_floats, seed) {}
  ~GraphPair() {
    simt::device::finish();
    for (simt::device::Graph* graph : graphs_) simt::device::destroy_graph(graph);
    for (kvc_cache* cache : both()) EXPECT_EQ(kvc_cache_destroy(cache), KVC_OK);
  }
  GraphPair(const GraphPair&) = delete;
  GraphPair& operator=(const GraphPair&) = delete;

  void compare_digests() {
    uint64_t digest[2], wanted[2];
    ASSERT_EQ(kvc_state_digest(by_calls_, wanted), KVC_OK);
    ASSERT_EQ(kvc_state_digest(by_graphs_, digest), KVC_OK);
    EXPECT_TRUE(std::equal(digest, digest + 2, wanted));
    for (kvc_cache* cache : both()) EXPECT_EQ(kvc_check(cache), KVC_OK) << support::last_message();
  }

 protected:
  std::array<kvc_cache*, 2> both() const { return {by_calls_, by_graphs_}; }
  /// The status of call(cache), which is that of both.
  template <class Call>
  kvc_status on_both(Call call) const {
    const kvc_status status = call(by_calls_);
    EXPECT_EQ(support::name(call(by_graphs_)), support::name(status)) << support::last_message();
    return status;
  }
  /// The first three choices: a sequence takes a checkpoint, steps back to `want`, or is copied to another one. Others do nothing.
  void move_states(int32_t choice, size_t which, size_t to, int32_t want, std::vector<int32_t>& next) {
    const auto sequence = static_cast<int32_t>(which);
    int32_t at = 0;
    if (choice == 0) {
      ASSERT_EQ(on_both([&](kvc_cache* cache) { return kvc_checkpoint_take(cache, sequence); }),
                KVC_OK);
    } else if (choice == 1) {
      ASSERT_EQ(on_both([&](kvc_cache* cache) { return kvc_resume(cache, sequence, want, &at); }),
                KVC_OK);
      next[which] = at;
    } else if (choice == 2) {
      ASSERT_EQ(on_both([&](kvc_cache* cache) {
                  return kvc_copy_prefix(cache, sequence, static_cast<int32_t>(to), next[which], &at);
                }),
                KVC_OK);
      next[to] = at;
    }
  }
  void* any_stream() { return reinterpret_cast<void*>(static_cast<uintptr_t>(random_.below(4))); }
  /// All tensors get the same numbers.
  void fill(void* stream) {
    numbers_.resize(of_calls_.size());
    for (float& number : numbers_) number = random_.value();
    of_calls_.write(numbers_, stream);
    of_graphs_.write(numbers_, stream);
  }
  void launch(size_t graph, void* stream) {
    EXPECT_EQ(simt::device::launch_graph(*graphs_[graph], stream), kvc::cuda::Error::none);
  }
  void compare_tensors(void* stream) const {
    ASSERT_EQ(of_calls_.read(stream), of_graphs_.read(stream));
  }

  support::Random random_;
  std::shared_ptr<kvc::Device> device_;
  kvc_cache *by_calls_, *by_graphs_;
  Arena of_calls_, of_graphs_;
  std::vector<simt::device::Graph*> graphs_;

 private:
  std::vector<float> numbers_;
};

/// The first n of a tensor's rows.
inline kvc_tensor first_of(kvc_tensor tensor, int64_t n) {
  tensor.shape[0] = n;
  return tensor;
}

}  // namespace cuda_arena
