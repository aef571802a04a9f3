#pragma once
#include <kvc/kvc.h>

#include <memory>
#include <random>
#include <vector>

#include "tests/bench/cuda/figures.hpp"
#include "tests/bench/cuda/roofs.hpp"
#include "tests/bench/cuda/timing.hpp"

namespace bench_cuda {

struct Setup {
  int32_t n_q_heads = 32;
  int32_t n_kv_heads = 8;
  int32_t head_dim = 128;
  uint32_t dtype = KVC_BF16;    // of K and V, which come in bf16
  uint32_t dtype_q = KVC_BF16;  // of queries and results
  uint32_t runtime_dtype = 0;   // of an operator that prefills are bound to; 0: none is bound
  int32_t sequences = 1;
  int32_t context = 0;  // tokens of each sequence before the measured pass
  int32_t tokens = 1;   // of each sequence in it
  int32_t run = 0;  // neighbouring cells of a sequence, 32 or 1, in random order; 0: all of them
  bool is_shared = false;   // the histories are one
  bool sees_later = false;  // not causal
  double least_bytes = 0;   // of all layers, beyond what the roofs ask for

  /// As --tiny has it: few of everything, by the same kernels.
  Setup scaled() const;
  bool is_scattered() const { return run == 1; }
  /// Of K and V in a layer, each stored byte once, that the measured pass sees.
  double bytes_seen() const;
  /// Of the products of visible pairs.
  double operations() const;
};

/// A cache on the GPU with a history, several layers of it, so that calls rotate over more than the second-level cache holds; and
/// one layer of it in a cache on the CPU, whose results are what the GPU's are compared with.
class Rig {
 public:
  Rig(const Setup& setup, const Roofs& roofs);
  ~Rig();
  Rig(const Rig&) = delete;
  Rig& operator=(const Rig&) = delete;

  const Setup& setup() const { return setup_; }
  kvc_cache* cache() { return gpu_; }
  gpu::Stream stream() { return stream_; }
  int32_t n_layers() const { return layers_; }
  int32_t n_tokens() const { return setup_.sequences * setup_.tokens; }

  /// Opens the measured pass on the GPU and puts every layer.
  void open();
  void begin(uint32_t flags);
  void put_all();
  /// From the last layer to the first, whose results stay.
  void attend_all();
  void put_attend_all();
  void close() { gpu::must(kvc_abort(gpu_), "abort"); }

  /// Captures what `give` gives to the stream in a pass of that shape.
  template <class Give>
  gpu::Graph* capture(Give give) {
    gpu::begin_capture(stream_);
    begin(KVC_BEGIN_RESERVE);
    give();
    gpu::must(kvc_commit(gpu_), "commit");
    return gpu::end_capture(stream_);
  }

  /// How far results of the first layer are from the CPU's, in a pass of its own: results in f32, so that nothing hides behind
  /// their rounding.
  Error exact_error();
  /// The same of what the last measured call has left.
  Error last_error();

 private:
  using Numbers = std::vector<uint16_t>;

  kvc_cache* create(const char* device, int32_t layers);
  void bind_operator();
  void make_inputs();
  void fill();
  void fill_pass(const std::vector<int32_t>& position, const std::vector<int32_t>& sequence);
  void occupy();
  void give_up_a_block();
  void check_runs();
  void expect();
  kvc_tensor rows(int32_t layer, bool on_gpu, bool is_v, int32_t n);
  kvc_tensor queries(bool on_gpu);
  kvc_tensor results(void* data, bool on_gpu, uint32_t dtype) const;
  double distance(const std::vector<float>& got) const;
  double allowed_of(uint32_t dtype) const;

  const Setup setup_;
  const int32_t max_batch_;
  int32_t layers_ = 0;
  int32_t n_filled_ = 0;    // passes
  int32_t n_occupied_ = 0;  // cells of the sequence that scatters the others
  gpu::Stream stream_ = gpu::create_stream();
  kvc_cache *gpu_ = nullptr, *cpu_ = nullptr;
  std::mt19937 random_{7};
  std::vector<int32_t> position_, sequence_;  // of the measured pass
  std::vector<uint32_t> token_flags_;
  Numbers k_, v_, q_;  // K and V of bf16
  std::unique_ptr<gpu::Memory> k_there_, v_there_, q_there_, out_there_;
  std::vector<float> expected_;
};

}  // namespace bench_cuda
