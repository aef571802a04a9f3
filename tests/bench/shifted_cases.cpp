#include <algorithm>
#include <string>
#include <vector>

#include "cases.hpp"
#include "limits.hpp"
#include "measure.hpp"
#include "rig.hpp"

namespace bench {
namespace {

/// One sequence with RoPE, from which single tokens are removed: every key behind one owes a rotation by one more.
class Stream {
 public:
  explicit Stream(int32_t cells) : layers_(layers_beyond_caches(cells)) {
    kvc_cache_desc desc = {};
    desc.struct_size = sizeof desc;
    desc.kind = KVC_CAUSAL;
    desc.flags = KVC_CACHE_PREFAULT;
    desc.n_layers = layers_;
    desc.n_kv_heads = kv_heads;
    desc.head_dim_k = head_dim;
    desc.dtype_k = desc.dtype_v = KVC_F16;
    desc.max_sequences = 1;
    desc.capacity = 1 << 20;
    desc.cells = cells + chunk;
    desc.max_batch = chunk;
    desc.max_q_heads = q_heads;
    must(kvc_cache_create(device_, &desc, nullptr, &cache_), "cache");
    kvc_rope_desc rope = {};
    rope.struct_size = sizeof rope;
    rope.pairs = KVC_ROPE_HALVES;
    must(kvc_bind_rope(cache_, 0, layers_, &rope, nullptr), "rope");
    kv_.fill(1);
    q_.fill(2);
  }
  ~Stream() {
    must(kvc_cache_destroy(cache_), "destroy");
    must(kvc_device_close(device_), "close");
  }
  Stream(const Stream&) = delete;
  Stream& operator=(const Stream&) = delete;

  void append(int32_t n) {
    begin(n);
    must(kvc_commit(cache_), "commit");
    next_ += n;
  }
  void drop(int32_t position) {
    must(kvc_remove(cache_, 0, position, position + 1), "remove");
    --next_;
  }

  /// n tokens, of which `runs` more were removed, evenly.
  void fill(int32_t n, int32_t runs) {
    const int64_t total = n + runs;
    for (int64_t at = 0; at < total; at += chunk) {
      const auto count = static_cast<int32_t>(std::min<int64_t>(chunk, total - at));
      const int32_t first = next_;
      append(count);
      for (int32_t i = count; i-- > 0;) {
        if ((at + i + 1) * runs / total != (at + i) * runs / total) drop(first + i);
      }
    }
  }

  void open() { begin(1); }
  double attend() {
    attend_layer();
    return seconds([&] { attend_layer(); });
  }
  void attend_all() {
    for (int32_t layer = 0; layer < layers_; ++layer) attend_layer();
  }

 private:
  static constexpr int32_t kv_heads = 8, q_heads = 32, head_dim = 128, chunk = 512;

  static int32_t layers_beyond_caches(int32_t cells) {
    const size_t layer_bytes = static_cast<size_t>(cells) * 2 * kv_heads * head_dim * 2;
    return static_cast<int32_t>((bytes_beyond_caches() + layer_bytes - 1) / layer_bytes);
  }
  void begin(int32_t n) {
    std::vector<int32_t> position, sequence(static_cast<size_t>(n), 0);
    for (int32_t i = 0; i < n; ++i) position.push_back(next_ + i);
    must(kvc_begin(cache_, n, position.data(), sequence.data(), nullptr, 0, nullptr), "begin");
    kvc_tensor rows = *kv_.tensor();
    rows.shape[0] = n;
    for (int32_t layer = 0; layer < layers_; ++layer)
      must(kvc_put(cache_, layer, &rows, &rows), "put");
  }
  void attend_layer() {
    must(kvc_attention(cache_, layer_, q_.tensor(), out_.tensor(), nullptr), "attention");
    layer_ = (layer_ + 1) % layers_;
  }

  const int32_t layers_;
  kvc_device* device_ = open_device();
  kvc_cache* cache_ = nullptr;
  int32_t next_ = 0, layer_ = 0;
  Array kv_{KVC_F32, {chunk, kv_heads, head_dim}};
  Array q_{KVC_F32, {1, q_heads, head_dim}};
  Array out_{KVC_F32, {1, q_heads, head_dim}};
};

void compare(Limits& limits, Stream& plain, Stream& shifted, const std::string& name,
             double must_ratio, double go_for) {
  plain.open();
  shifted.open();
  plain.attend_all();
  shifted.attend_all();
  limits.clean_caches();
  for (int pair = 0; pair < pairs(); ++pair) {
    const double base = plain.attend();
    const double kernel = shifted.attend();
    report({"shifted", name, "x plain", Better::lower, must_ratio, go_for}, kernel / base, kernel);
  }
}

}  // namespace

void shifted_cases(Limits& limits) {
  constexpr int32_t keys = 8192, kept = 4096, steps = 10000;
  struct Case {
    int32_t runs;
    double must_ratio, go_for;  // 0: no target
  };
  for (const Case& c : {Case{64, 0, 0}, Case{512, 1.5, 1.1}, Case{4096, 3, 1.5}, Case{8191, 3, 1.5}}) {
    Stream plain(keys), shifted(keys);
    plain.fill(keys, 0);
    shifted.fill(keys, c.runs);
    compare(limits, plain, shifted,
            "decode 8k, " + std::to_string(c.runs) + " runs of pending rotations", c.must_ratio,
            c.go_for);
  }
  Stream plain(kept), stream(kept);
  plain.fill(kept, 0);
  stream.fill(kept, 0);
  for (int32_t step = 0; step < steps; ++step) {
    stream.drop(4);
    stream.append(1);
  }
  compare(limits, plain, stream, "decode 4k that dropped a token in each of 10000 steps", 3, 1.5);
}

}  // namespace bench
