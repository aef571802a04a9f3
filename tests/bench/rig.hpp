#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include <kvc/kvc.h>
#include <kvc/operators.h>

/// A cache with a history, as a bench case needs it: several layers, so that the calls rotate over more memory than any
/// last-level cache holds.
namespace bench {

/// Ends the process with the message of a failed call: a bench that goes on after a failure measures nothing.
void must(kvc_status status, const char* what);

/// The device of this machine's processors; 0: as many threads as the run has.
kvc_device* open_device(int32_t n_threads = 0);

/// An array in 16- or 32-bit floats with a dense tensor over it, which begins with a cache line, as those of PyTorch and ggml do.
class Array {
 public:
  Array(uint32_t dtype, const std::vector<int64_t>& shape);
  kvc_tensor* tensor() { return &tensor_; }
  void fill(uint32_t seed);  // values around 0 with variance 1; of 16 bits: magnitudes from 0.5 to 1

 private:
  std::vector<uint16_t> bytes_;
  kvc_tensor tensor_;
};

struct Setup {
  int32_t n_q_heads = 32;
  int32_t n_kv_heads = 8;
  int32_t head_dim = 128;  // of a key, and of a value unless head_dim_v says otherwise
  int32_t head_dim_v = 0;
  uint32_t dtype = KVC_F16;    // of K and V
  uint32_t dtype_q = KVC_F32;  // of queries and results
  uint32_t runtime_dtype = 0;  // of an operator that prefills are bound to; 0: none is bound
  bool rotate = false;         // both are stored rotated
  int32_t sequences = 1;
  int32_t context = 4096;  // tokens of each sequence before the measured pass
  int32_t batch = 0;       // tokens per sequence that measured passes bring at most; 0: 1
  bool together = true;  // histories generated together, one token each per pass; else one after another
  bool shared = false;  // the histories are one: generated once, then shared by all sequences
  int32_t n_threads = 0;
  int32_t layers = 0;  // 0: enough for bytes_beyond_caches()
  kvc_causal_desc causal = {};
  float softcap = 0;
  bool alibi = false;
  bool sinks = false;
};

class Rig {
 public:
  explicit Rig(const Setup& setup);
  ~Rig();
  Rig(const Rig&) = delete;
  Rig& operator=(const Rig&) = delete;

  const Setup& setup() const { return setup_; }
  kvc_device* device() { return device_; }
  kvc_cache* cache() { return cache_; }

  /// Opens a pass of `tokens` tokens for each sequence and puts every layer.
  void open(int32_t tokens, bool sees_later = false);
  /// Puts the pass's tokens into a layer once more.
  void put_layer(int32_t layer);
  /// Opens a pass of `chunk` tokens of sequence 0 and one of each other.
  void open_mixed(int32_t chunk, bool chunk_only = false, bool decodes_only = false);
  void close() { must(kvc_abort(cache_), "abort"); }

  /// Attention of the open pass in the next layer of the rotation.
  void attend(bool log_sum_exp = false);
  /// Of every layer: what filling them left in the caches has then gone back to memory.
  void attend_all();
  void attend_layer(int32_t layer, bool log_sum_exp = false);

  double bytes_of_token() const;    // of its K and V in a layer
  double bytes_of_history() const;  // of K and V that one call of a decode pass reads
  static double causal_operations(const Setup& setup, int32_t tokens, int32_t past);

 private:
  void begin(const std::vector<int32_t>& position, const std::vector<int32_t>& sequence,
             bool sees_later);
  void bind_operator();
  void put_all();
  void generate();

  Setup setup_;
  kvc_device* device_ = nullptr;
  kvc_cache* cache_ = nullptr;
  int32_t layer_ = 0;
  int32_t n_tokens_ = 0;
  std::vector<Array> arrays_;  // k, v, q, out, lse of the open pass
};

}  // namespace bench
