// Random passes in a cache on cuda:0 and in its twin on the CPU: the same statuses, the same digests, and attention within the sum
// of both bounds (docs/SEMANTICS.md, §8). Passes come on one stream after another, and half of them are done by a graph. It is
// built twice: for a GPU (cuda_passes, by `make test-cuda`) and over the simulation (simulated_passes).
//   passes [--seed N] [--passes N]
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <random>
#include <string>
#include <vector>

#include "kvc/kvc.h"
#include "tests/cuda/gpu.hpp"

namespace {

using gpu::fail;

/// Floats on the GPU.
class DeviceFloats {
 public:
  explicit DeviceFloats(size_t n) : memory_(n * sizeof(float)) {}
  void write(const std::vector<float>& from) const {
    memory_.write(from.data(), from.size() * sizeof(float));
  }
  void read(std::vector<float>* to) const { memory_.read(to->data(), to->size() * sizeof(float)); }
  void* data() const { return memory_.data(); }

 private:
  gpu::Memory memory_;
};

struct Setup {
  uint32_t dtype;
  int32_t n_kv_heads, n_q_heads, head_dim, reach;
  uint32_t flags = 0;  // of the cache
};

constexpr int32_t max_sequences = 4, capacity = 160, max_batch = 24, n_layers = 2;

struct Caches {
  explicit Caches(const Setup& setup) {
    open("cpu", setup, &cpu);
    open("cuda:0", setup, &gpu);
  }
  Caches(const Caches&) = delete;
  Caches& operator=(const Caches&) = delete;
  ~Caches() {
    for (kvc_cache* cache : {cpu, gpu})
      if (kvc_cache_destroy(cache) != KVC_OK) fail("destroy");
  }

  static void open(const char* name, const Setup& setup, kvc_cache** out) {
    kvc_device* device = nullptr;
    if (kvc_device_open(name, nullptr, nullptr, &device) != KVC_OK) fail(name);
    kvc_cache_desc desc = KVC_CACHE_DESC_INIT;
    desc.n_layers = n_layers;
    desc.n_kv_heads = setup.n_kv_heads;
    desc.max_q_heads = setup.n_q_heads;
    desc.head_dim_k = desc.head_dim_v = setup.head_dim;
    desc.dtype_k = desc.dtype_v = setup.dtype;
    desc.flags = setup.flags;
    desc.max_sequences = max_sequences;
    desc.capacity = capacity;
    desc.max_batch = max_batch;
    kvc_causal_desc causal = KVC_CAUSAL_DESC_INIT;
    causal.reach = setup.reach;
    if (kvc_cache_create(device, &desc, &causal, out) != KVC_OK) fail("create");
    kvc_rope_desc rope = KVC_ROPE_DESC_INIT;
    if (kvc_bind_rope(*out, 0, n_layers, &rope, nullptr) != KVC_OK) fail("bind_rope");
    if (kvc_device_close(device) != KVC_OK) fail("close");
  }

  /// The same call on both.
  template <class Call>
  kvc_status both(const char* name, Call call) {
    const kvc_status on_cpu = call(cpu), on_gpu = call(gpu);
    if (on_cpu != on_gpu)
      fail(std::string(name) + " is " + kvc_status_name(on_cpu) + " on the CPU, " +
           kvc_status_name(on_gpu) + " on the GPU");
    return on_cpu;
  }

  kvc_cache *cpu = nullptr, *gpu = nullptr;
};

kvc_tensor tensor(void* data, bool on_gpu, int64_t n, int64_t heads, int64_t dim) {
  return gpu::tensor(data, on_gpu, KVC_F32, {n, heads, dim});
}

/// Of a layer: on the GPU at addresses that stay, with as many rows as a pass may have.
struct LayerTensors {
  explicit LayerTensors(const Setup& s)
      : k_there(floats(s, s.n_kv_heads)),
        v_there(floats(s, s.n_kv_heads)),
        q_there(floats(s, s.n_q_heads)),
        out_there(floats(s, s.n_q_heads)) {}
  static size_t floats(const Setup& s, int32_t heads) {
    return static_cast<size_t>(max_batch * heads * s.head_dim);
  }

  std::vector<float> k, v, q, out;
  DeviceFloats k_there, v_there, q_there, out_there;
};

class Run {
 public:
  Run(const Setup& setup, unsigned seed) : setup_(setup), caches_(setup), random_(seed) {
    for (gpu::Stream& stream : streams_) stream = gpu::create_stream();
    for (int32_t layer = 0; layer < n_layers; ++layer) tensors_.emplace_back(setup);
    capture();
  }
  ~Run() {
    gpu::destroy_graph(graph_);
    for (gpu::Stream stream : streams_) gpu::destroy_stream(stream);
  }
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  void step() {
    switch (below(8)) {
      case 0: return forget();
      case 1: return copy();
      case 2: return remove();
      default: return pass();
    }
  }
  double worst() const { return worst_; }
  int attended() const { return attended_; }
  int n_replayed() const { return n_replayed_; }

 private:
  int32_t below(int32_t n) { return static_cast<int32_t>(random_() % static_cast<unsigned>(n)); }
  int32_t next(int32_t sequence) {
    kvc_sequence_info info = KVC_SEQUENCE_INFO_INIT;
    if (kvc_sequence_query(caches_.cpu, sequence, &info) != KVC_OK) fail("query");
    return info.next;
  }
  void same_digest() {
    uint64_t cpu[2], gpu[2];
    if (kvc_state_digest(caches_.cpu, cpu) != KVC_OK || kvc_state_digest(caches_.gpu, gpu) != KVC_OK)
      fail("digest");
    if (std::memcmp(cpu, gpu, sizeof cpu) != 0) fail("the digests differ");
  }

  void forget() {
    const int32_t sequence = below(max_sequences), want = below(next(sequence) + 1);
    caches_.both("resume", [&](kvc_cache* cache) {
      int32_t got = 0;
      return kvc_resume(cache, sequence, want, &got);
    });
    same_digest();
  }
  void copy() {
    const int32_t from = below(max_sequences), to = below(max_sequences);
    const int32_t length = below(next(from) + 1);
    caches_.both("copy_prefix", [&](kvc_cache* cache) {
      int32_t got = 0;
      return kvc_copy_prefix(cache, from, to, length, &got);
    });
    same_digest();
  }
  void remove() {
    const int32_t sequence = below(max_sequences), end = below(next(sequence) + 1);
    const int32_t begin = below(end + 1);
    caches_.both("remove", [&](kvc_cache* cache) { return kvc_remove(cache, sequence, begin, end); });
    same_digest();
  }

  void pass() {
    std::vector<int32_t> position, sequence;
    for (int32_t s = 0; s < max_sequences; ++s) {
      const int32_t first = next(s), room = std::min(capacity - first, max_batch / max_sequences);
      const int32_t n = room > 0 ? below(room + 1) : 0;
      for (int32_t i = 0; i < n; ++i) {
        position.push_back(first + i);
        sequence.push_back(s);
      }
    }
    const auto n = static_cast<int32_t>(position.size());
    if (n == 0) return forget();
    const gpu::Stream stream = streams_[static_cast<size_t>(below(n_streams))];
    const bool replays = below(2) == 0;
    const kvc_status begun = caches_.both("begin", [&](kvc_cache* cache) {
      const bool there = cache == caches_.gpu;
      return kvc_begin(cache, n, position.data(), sequence.data(), nullptr,
                       there && replays ? uint32_t{KVC_BEGIN_REPLAY} : 0u, there ? stream : nullptr);
    });
    if (begun != KVC_OK) return;
    for (int32_t layer = 0; layer < n_layers; ++layer) bring_inputs(layer, n);
    if (replays) gpu::launch(graph_, stream);
    for (int32_t layer = 0; layer < n_layers; ++layer) {
      put_attention(caches_.cpu, layer, n);
      if (!replays) put_attention(caches_.gpu, layer, n);
    }
    gpu::need(kvc::cuda::runtime::synchronize(stream), "synchronize");
    for (int32_t layer = 0; layer < n_layers; ++layer) compare(layer, n);
    n_replayed_ += replays ? 1 : 0;
    const bool kept = below(6) > 0;
    caches_.both(kept ? "commit" : "abort", kept ? kvc_commit : kvc_abort);
    same_digest();
  }

  /// The passes of a graph: as many tokens as a pass may have, all layers.
  void capture() {
    const gpu::Stream stream = streams_[0];
    gpu::begin_capture(stream);
    gpu::must(kvc_begin(caches_.gpu, max_batch, nullptr, nullptr, nullptr, KVC_BEGIN_RESERVE, stream),
              "begin");
    for (int32_t layer = 0; layer < n_layers; ++layer) put_attention(caches_.gpu, layer, max_batch);
    gpu::must(kvc_commit(caches_.gpu), "commit");
    graph_ = gpu::end_capture(stream);
  }

  std::vector<float> numbers(int32_t n) {
    std::normal_distribution<float> normal;
    std::vector<float> made(static_cast<size_t>(n));
    for (float& x : made) x = normal(random_);
    return made;
  }

  /// The largest norm of a vector.
  static double longest(const std::vector<float>& x, int32_t dim) {
    double most = 0;
    for (size_t i = 0; i < x.size(); i += static_cast<size_t>(dim)) {
      double sum = 0;
      for (size_t d = i; d < i + static_cast<size_t>(dim); ++d) sum += double{x[d]} * double{x[d]};
      most = std::max(most, sum);
    }
    return std::sqrt(most);
  }

  void bring_inputs(int32_t layer, int32_t n) {
    LayerTensors& t = tensors_[static_cast<size_t>(layer)];
    t.k = numbers(n * setup_.n_kv_heads * setup_.head_dim);
    t.v = numbers(n * setup_.n_kv_heads * setup_.head_dim);
    t.q = numbers(n * setup_.n_q_heads * setup_.head_dim);
    t.out.resize(t.q.size());
    t.k_there.write(t.k);
    t.v_there.write(t.v);
    t.q_there.write(t.q);
  }

  void put_attention(kvc_cache* cache, int32_t layer, int32_t n) {
    LayerTensors& t = tensors_[static_cast<size_t>(layer)];
    const bool there = cache == caches_.gpu;
    const int32_t kv = setup_.n_kv_heads, qh = setup_.n_q_heads, dim = setup_.head_dim;
    kvc_tensor k = tensor(there ? t.k_there.data() : t.k.data(), there, n, kv, dim);
    kvc_tensor v = tensor(there ? t.v_there.data() : t.v.data(), there, n, kv, dim);
    kvc_tensor q = tensor(there ? t.q_there.data() : t.q.data(), there, n, qh, dim);
    kvc_tensor out = tensor(there ? t.out_there.data() : t.out.data(), there, n, qh, dim);
    gpu::must(kvc_put_attention(cache, layer, &k, &v, &q, &out, nullptr), "put_attention");
  }

  void compare(int32_t layer, int32_t n) {
    const int32_t dim = setup_.head_dim;
    const LayerTensors& tensors = tensors_[static_cast<size_t>(layer)];
    const std::vector<float>&k = tensors.k, &v = tensors.v, &q = tensors.q, &out_cpu = tensors.out;
    std::vector<float> out_gpu(static_cast<size_t>(n * setup_.n_q_heads * dim));
    tensors.out_there.read(&out_gpu);
    // T is at most what vectors of these lengths multiply to. What is stored may be longer, where it was rounded.
    constexpr double rounded = 1.2;
    longest_k_ = std::max(longest_k_, rounded * longest(k, dim));
    largest_v_ = std::max(largest_v_, rounded * longest(v, 1));
    const double t = longest(q, dim) * longest_k_ / std::sqrt(dim);
    const double bound = 2 * (std::ldexp(1, -20) + std::ldexp(t, -22)) * largest_v_;
    for (size_t i = 0; i < out_cpu.size(); ++i) {
      const double difference = std::abs(double{out_cpu[i]} - double{out_gpu[i]});
      if (!(difference <= bound))
        fail("out differs by " + std::to_string(difference) + ", more than " + std::to_string(bound));
      worst_ = std::max(worst_, difference / bound);
      attended_ += 1;
    }
  }

  static constexpr int32_t n_streams = 3;

  const Setup setup_;
  Caches caches_;
  std::mt19937 random_;
  gpu::Stream streams_[n_streams];
  std::deque<LayerTensors> tensors_;
  gpu::Graph* graph_ = nullptr;
  int n_replayed_ = 0;                    // passes
  double longest_k_ = 0, largest_v_ = 0;  // that were put
  double worst_ = 0;
  int attended_ = 0;
};

}  // namespace

int main(int argc, char** argv) {
  unsigned seed = std::random_device()();
  int n_passes = 20;
  for (int i = 1; i + 1 < argc; i += 2) {
    if (std::strcmp(argv[i], "--seed") == 0) seed = static_cast<unsigned>(std::atoll(argv[i + 1]));
    if (std::strcmp(argv[i], "--passes") == 0) n_passes = std::atoi(argv[i + 1]);
  }
  std::printf("seed %u, %d steps per set-up\n", seed, n_passes);
  constexpr uint32_t rotated = KVC_CACHE_ROTATE_K | KVC_CACHE_ROTATE_V;
  std::vector<Setup> setups = {{KVC_F8_E4M3, 1, 6, 80, 0},       {KVC_F8_E5M2, 2, 2, 64, 33},
                               {KVC_Q8_0, 2, 8, 128, 0},         {KVC_Q4_0, 1, 2, 128, 0},
                               {KVC_Q4_0, 2, 4, 64, 0, rotated}, {KVC_INT8, 1, 4, 90, 0, rotated},
                               {KVC_NF4, 1, 2, 80, 0},           {KVC_NF4, 2, 4, 128, 33, rotated}};
  for (const uint32_t dtype : {uint32_t{KVC_F32}, uint32_t{KVC_F16}, uint32_t{KVC_BF16}}) {
    for (const Setup& setup :
         {Setup{dtype, 2, 2, 64, 0}, Setup{dtype, 2, 8, 128, 0}, Setup{dtype, 1, 6, 80, 0},
          Setup{dtype, 1, 2, 128, 33}, Setup{dtype, 1, 16, 128, 0}})
      setups.push_back(setup);
  }
  for (const Setup& setup : setups) {
    Run run(setup, seed++);
    for (int i = 0; i < n_passes; ++i) run.step();
    std::printf(
        "dtype %06x%s, %d query and %d KV heads of %d, reach %d: %d numbers, at most %.0f %% of "
        "the bound; %d passes by a graph\n",
        setup.dtype, setup.flags != 0 ? " rotated" : "", setup.n_q_heads, setup.n_kv_heads,
        setup.head_dim, setup.reach, run.attended(), 100 * run.worst(), run.n_replayed());
  }
  return 0;
}
