#include <kvc/lightning.h>
#include <kvc/recurrent.h>

#include <cmath>
#include <memory>
#include <string>

#include "core/base/half.hpp"
#include "tests/bench/cuda/cases.hpp"
#include "tests/bench/cuda/timing.hpp"

/// Caches whose layers have states instead of keys: 32 heads of 128 × 128 in f32.
namespace bench_cuda {
namespace {

struct Sizes {
  int32_t layers = 8, sequences = 64, tokens = 1;
  int64_t heads = 32, dim = 128;

  Sizes scaled() const {
    return options.tiny ? Sizes{2, std::min(sequences, 2), std::min(tokens, 40), 1, 32} : *this;
  }
  double state_bytes() const {  // of a layer
    return 4.0 * sequences * static_cast<double>(heads * dim * dim);
  }
  int32_t n_tokens() const { return sequences * tokens; }
};

/// A cache of either kind on the GPU, and one on the CPU with one layer.
class States {
 public:
  States(uint32_t kind, const Sizes& sizes) : kind_(kind), sizes_(sizes) {
    gpu_ = create("cuda:0", sizes.layers);
    cpu_ = create("cpu", 1);
  }
  ~States() {
    gpu::must(kvc_cache_destroy(cpu_), "destroy");
    gpu::must(kvc_cache_destroy(gpu_), "destroy");
    gpu::destroy_stream(stream);
  }
  States(const States&) = delete;
  States& operator=(const States&) = delete;

  /// Opens the next pass of both.
  void open() {
    std::vector<int32_t> position, sequence;
    for (int32_t s = 0; s < sizes_.sequences; ++s) {
      for (int32_t t = 0; t < sizes_.tokens; ++t) {
        position.push_back(next_ + t);
        sequence.push_back(s);
      }
    }
    next_ += sizes_.tokens;
    for (kvc_cache* cache : {cpu_, gpu_})
      gpu::must(kvc_begin(cache, sizes_.n_tokens(), position.data(), sequence.data(), nullptr, 0,
                          cache == gpu_ ? stream : nullptr),
                "begin");
  }
  void commit() {
    for (kvc_cache* cache : {cpu_, gpu_}) gpu::must(kvc_commit(cache), "commit");
  }
  kvc_cache* on(bool gpu) { return gpu ? gpu_ : cpu_; }

  gpu::Stream stream = gpu::create_stream();

 private:
  kvc_cache* create(const char* name, int32_t layers) {
    kvc_device* device = nullptr;
    gpu::must(kvc_device_open(name, nullptr, nullptr, &device), name);
    kvc_cache_desc desc = KVC_CACHE_DESC_INIT;
    desc.kind = kind_;
    desc.n_layers = layers;
    desc.max_sequences = sizes_.sequences;
    desc.max_batch = sizes_.n_tokens();
    kvc_cache* cache = nullptr;
    if (kind_ == KVC_RECURRENT) {
      kvc_recurrent_desc recurrent = KVC_RECURRENT_DESC_INIT;
      recurrent.state_size = sizes_.heads * sizes_.dim * sizes_.dim;
      recurrent.checkpoints = KVC_NONE;
      gpu::must(kvc_cache_create(device, &desc, &recurrent, &cache), "create");
    } else {
      desc.n_kv_heads = desc.max_q_heads = static_cast<int32_t>(sizes_.heads);
      desc.head_dim_k = static_cast<int32_t>(sizes_.dim);
      kvc_lightning_desc lightning = KVC_LIGHTNING_DESC_INIT;
      lightning.checkpoints = KVC_NONE;
      gpu::must(kvc_cache_create(device, &desc, &lightning, &cache), "create");
      std::vector<float> slopes(static_cast<size_t>(sizes_.heads));
      gpu::must(kvc_slopes(KVC_SLOPES_ALIBI, desc.n_kv_heads, 0, 1, slopes.data()), "slopes");
      gpu::must(kvc_bind_decay(cache, 0, layers, slopes.data()), "decay");
    }
    gpu::must(kvc_device_close(device), "close");
    return cache;
  }

  const uint32_t kind_;
  const Sizes sizes_;
  int32_t next_ = 0;
  kvc_cache *gpu_ = nullptr, *cpu_ = nullptr;
};

std::vector<float> numbers(size_t n) {
  std::vector<float> made(n);
  uint32_t mixed = 1;
  for (float& x : made) {
    mixed = mixed * 1664525u + 1013904223u;
    x = kvc::bf16_to_f32(kvc::f32_to_bf16(static_cast<float>(static_cast<int32_t>(mixed)) * 0x1p-31f));
  }
  return made;
}

double distance(const std::vector<float>& want, const std::vector<float>& got) {
  double difference = 0, size = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    difference += std::pow(double{want[i]} - double{got[i]}, 2);
    size += double{want[i]} * double{want[i]};
  }
  return std::sqrt(difference / size);
}

struct Timed {
  std::vector<double> times;  // of a layer
  Error error;
};

/// Passes of linear attention, whose first layer runs on the CPU as well.
Timed lightning(const Sizes& sizes) {
  States states(KVC_LIGHTNING, sizes);
  const auto n = static_cast<size_t>(sizes.n_tokens() * sizes.heads * sizes.dim);
  std::vector<float> in = numbers(n), want(n), got(n, std::nanf(""));
  const gpu::Memory in_there(n * sizeof(float)), out_there(n * sizeof(float));
  in_there.write(in.data(), in_there.bytes());
  out_there.write(got.data(), out_there.bytes());
  const std::vector<int64_t> shape = {sizes.n_tokens(), sizes.heads, sizes.dim};
  const auto call = [&](bool on_gpu, int32_t layer) {
    const kvc_tensor x = gpu::tensor(on_gpu ? static_cast<void*>(in_there.data()) : in.data(),
                                     on_gpu, KVC_F32, shape);
    kvc_tensor out = gpu::tensor(on_gpu ? static_cast<void*>(out_there.data()) : want.data(),
                                 on_gpu, KVC_F32, shape);
    gpu::must(kvc_put_attention(states.on(on_gpu), layer, &x, &x, &x, &out, nullptr),
              "put_attention");
  };
  StreamClock clock(states.stream);
  Timed timed;
  timed.times = repeated([&] {
    states.open();
    const double time = clock.microseconds([&] {
      for (int32_t layer = sizes.layers; layer-- > 0;) call(true, layer);
    });
    call(false, 0);
    states.commit();
    return time / sizes.layers;
  });
  out_there.read(got.data(), out_there.bytes());
  timed.error = {distance(want, got), 1e-5};
  return timed;
}

/// Every layer's states come into the caller's memory, and go back changed; what comes back in the end must be what went.
Timed recurrent(const Sizes& sizes) {
  States states(KVC_RECURRENT, sizes);
  const auto n = static_cast<size_t>(sizes.sequences * sizes.heads * sizes.dim * sizes.dim);
  const std::vector<float> want = numbers(n);
  std::vector<float> got(n, std::nanf(""));
  const gpu::Memory put_there(n * sizeof(float)), got_there(n * sizeof(float));
  put_there.write(want.data(), put_there.bytes());
  got_there.write(got.data(), got_there.bytes());
  const std::vector<int64_t> shape = {sizes.sequences, sizes.heads, sizes.dim, sizes.dim};
  const kvc_tensor put = gpu::tensor(put_there.data(), true, KVC_F32, shape);
  kvc_tensor into = gpu::tensor(got_there.data(), true, KVC_F32, shape);
  StreamClock clock(states.stream);
  Timed timed;
  timed.times = repeated([&] {
    states.open();
    const double time = clock.microseconds([&] {
      for (int32_t layer = sizes.layers; layer-- > 0;) {
        gpu::must(kvc_state_get(states.on(true), layer, KVC_PART_RECURRENT, &into), "state_get");
        gpu::must(kvc_state_put(states.on(true), layer, KVC_PART_RECURRENT, &put), "state_put");
      }
    });
    states.commit();
    return time / sizes.layers;
  });
  got_there.read(got.data(), got_there.bytes());
  timed.error = {distance(want, got), 0};
  return timed;
}

/// `bytes` of a layer that are read and written at least.
void report_copy(const Roofs& roofs, const char* name, double bytes, double must, double go_for,
                 const Timed& timed) {
  const double limit = 1e6 * bytes / roofs.copy_rate();
  report({name, "% of copying", Better::higher, must, go_for},
         each(timed.times, [&](double t) { return 100 * limit / t; }), timed.times, timed.error);
}

}  // namespace

void state_cases(const Roofs& roofs) {
  const Sizes decode = Sizes().scaled();
  report_copy(roofs, "lightning decode, 64 states of 32 x 128 x 128 f32", 2 * decode.state_bytes(),
              60, 80, lightning(decode));
  Sizes prefill;
  prefill.sequences = 8;
  prefill.tokens = 2048;
  const Timed timed = lightning(prefill.scaled());
  report({"lightning prefill, 8 x 2048 tokens, 32 heads of 128, f32", "µs", Better::lower, 0, 0},
         timed.times, timed.times, timed.error);
  report_copy(roofs, "state_get + state_put of 64 states of 32 x 128 x 128 f32",
              4 * decode.state_bytes(), 75, 90, recurrent(decode));
}

}  // namespace bench_cuda
