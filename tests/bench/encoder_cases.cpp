#include <algorithm>
#include <cmath>
#include <cstdio>
#include <vector>

#include <kvc/encoder.h>

#include "cases.hpp"
#include "limits.hpp"
#include "measure.hpp"
#include "rig.hpp"

namespace bench {
namespace {

/// Cross attention of one sequence over one input, in as many layers as the causal cache beside it.
class Cross {
 public:
  Cross(const Setup& setup, int32_t layers, int32_t tokens)
      : layers_(layers),
        q_(KVC_F32, {tokens, setup.n_q_heads, setup.head_dim}),
        out_(KVC_F32, {tokens, setup.n_q_heads, setup.head_dim}) {
    kvc_cache_desc desc = KVC_CACHE_DESC_INIT;
    desc.kind = KVC_ENCODER;
    desc.flags = KVC_CACHE_PREFAULT;
    desc.n_layers = layers;
    desc.n_kv_heads = setup.n_kv_heads;
    desc.head_dim_k = setup.head_dim;
    desc.dtype_k = desc.dtype_v = setup.dtype;
    desc.max_sequences = 1;
    desc.capacity = setup.context;
    desc.max_batch = tokens;
    desc.max_q_heads = setup.n_q_heads;
    kvc_encoder_desc encoder = KVC_ENCODER_DESC_INIT;
    encoder.inputs = 1;
    must(kvc_cache_create(device_, &desc, &encoder, &cache_), "cache");
    q_.fill(3);
    std::vector<int32_t> position(static_cast<size_t>(tokens)), sequence(position.size(), 0);
    std::vector<uint32_t> flags(position.size(), 0);
    flags[0] = KVC_TOKEN_ENCODER_INPUT;
    for (size_t i = 0; i < position.size(); ++i) position[i] = static_cast<int32_t>(i);
    must(kvc_begin(cache_, tokens, position.data(), sequence.data(), flags.data(), 0, nullptr),
         "begin");
    Array k(KVC_F32, {setup.context, setup.n_kv_heads, setup.head_dim});
    k.fill(1);
    for (int32_t layer = 0; layer < layers; ++layer)
      must(kvc_put(cache_, layer, k.tensor(), k.tensor()), "put");
  }
  ~Cross() {
    must(kvc_cache_destroy(cache_), "destroy");
    must(kvc_device_close(device_), "close");
  }
  Cross(const Cross&) = delete;
  Cross& operator=(const Cross&) = delete;

  void attend() {
    must(kvc_attention(cache_, layer_, q_.tensor(), out_.tensor(), nullptr), "attention");
    layer_ = (layer_ + 1) % layers_;
  }
  void attend_all() {
    for (int32_t layer = 0; layer < layers_; ++layer) attend();
  }

 private:
  const int32_t layers_;
  int32_t layer_ = 0;
  kvc_device* device_ = open_device();
  kvc_cache* cache_ = nullptr;
  Array q_, out_;
};

/// Each pair takes the median of several calls in turn: a call of Whisper's shape takes some tens of microseconds.
void beside_causal(Limits& limits, const char* model, Setup setup, int32_t tokens) {
  setup.batch = tokens;
  const int32_t length = setup.context;
  setup.context = length - tokens;  // the causal cache then holds as many keys as the input
  Rig causal(setup);
  setup.context = length;
  Cross cross(setup, causal.setup().layers, tokens);
  causal.open(tokens, true);  // each token sees all of them, as in cross attention
  causal.attend_all();
  cross.attend_all();
  limits.clean_caches();
  char name[96];
  std::snprintf(name, sizeof name, "cross attention, %s, %d token%s, beside causal", model, tokens,
                tokens > 1 ? "s" : "");
  for (int pair = 0; pair < pairs(); ++pair) {
    std::vector<double> base, time;
    for (int i = 0; i < 15; ++i) {
      causal.attend();
      base.push_back(seconds([&] { causal.attend(); }));
      cross.attend();
      time.push_back(seconds([&] { cross.attend(); }));
    }
    report({"encoder", name, "x", Better::lower, 1.05, 1.0}, median(time) / median(base),
           median(time));
  }
  causal.close();
}

}  // namespace

void encoder_cases(Limits& limits) {
  Setup whisper;
  whisper.n_q_heads = whisper.n_kv_heads = 6;
  whisper.head_dim = 64;
  whisper.context = 1500;
  Setup vision;
  vision.context = 6404;
  for (const int32_t tokens : {1, 32}) {
    beside_causal(limits, "1500 x 6 x 64", whisper, tokens);
    beside_causal(limits, "6404 x 8 x 128", vision, tokens);
  }
}

}  // namespace bench
