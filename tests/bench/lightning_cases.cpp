#include <string>
#include <vector>

#include <kvc/lightning.h>

#include "cases.hpp"
#include "limits.hpp"
#include "measure.hpp"
#include "rig.hpp"

namespace bench {
namespace {

constexpr int32_t heads = 32, dim = 128;
constexpr size_t state_bytes = size_t{heads} * dim * dim * sizeof(float);

/// A lightning cache and the arrays of a pass.
class Lightning {
 public:
  Lightning(int32_t layers, int32_t sequences, int32_t tokens, uint32_t dtype, uint32_t flags = 0)
      : layers_(layers), sequences_(sequences), tokens_(tokens) {
    kvc_cache_desc desc = KVC_CACHE_DESC_INIT;
    desc.kind = KVC_LIGHTNING;
    desc.flags = KVC_CACHE_PREFAULT;
    desc.n_layers = layers;
    desc.n_kv_heads = desc.max_q_heads = heads;
    desc.head_dim_k = dim;
    desc.max_sequences = sequences;
    desc.max_batch = sequences * tokens;
    kvc_lightning_desc lightning = KVC_LIGHTNING_DESC_INIT;
    lightning.flags = flags;
    lightning.checkpoints = KVC_NONE;
    must(kvc_cache_create(device_, &desc, &lightning, &cache_), "cache");
    std::vector<float> slopes(heads);
    must(kvc_slopes(KVC_SLOPES_ALIBI, heads, 0, 1, slopes.data()), "slopes");
    must(kvc_bind_decay(cache_, 0, layers, slopes.data()), "decay");
    for (uint32_t i = 0; i < 4; ++i) {
      arrays_.emplace_back(dtype, std::vector<int64_t>{sequences * tokens, heads, dim});
      arrays_.back().fill(i);
    }
  }
  ~Lightning() {
    must(kvc_cache_destroy(cache_), "destroy");
    must(kvc_device_close(device_), "close");
  }
  Lightning(const Lightning&) = delete;
  Lightning& operator=(const Lightning&) = delete;

  /// A pass in which every layer is put and attended. Only that counts.
  double pass() {
    std::vector<int32_t> position, sequence;
    for (int32_t s = 0; s < sequences_; ++s) {
      for (int32_t t = 0; t < tokens_; ++t) {
        position.push_back(next_ + t);
        sequence.push_back(s);
      }
    }
    next_ += tokens_;
    must(kvc_begin(cache_, sequences_ * tokens_, position.data(), sequence.data(), nullptr, 0, nullptr),
         "begin");
    const double time = seconds([&] {
      for (int32_t layer = 0; layer < layers_; ++layer)
        must(kvc_put_attention(cache_, layer, arrays_[0].tensor(), arrays_[1].tensor(),
                               arrays_[2].tensor(), arrays_[3].tensor(), nullptr),
             "put_attention");
    });
    must(kvc_commit(cache_), "commit");
    return time;
  }

 private:
  int32_t layers_, sequences_, tokens_, next_ = 0;
  kvc_device* device_ = open_device();
  kvc_cache* cache_ = nullptr;
  std::vector<Array> arrays_;
};

/// The limit copies states of the same sizes: a pass reads each state and writes it to another slot.
void decode_cost(Limits& limits) {
  constexpr int32_t layers = 16, batch = 8;
  Lightning lightning(layers, batch, 1, KVC_F16);
  const Blocks before(size_t{layers} * batch, state_bytes),
      after(size_t{layers} * batch, state_bytes);
  for (int i = 0; i < 3; ++i) lightning.pass();
  for (int pair = 0; pair < pairs(); ++pair) {
    std::vector<double> copies, passes;
    for (int i = 0; i < 5; ++i) {
      copies.push_back(limits.copy_seconds(i % 2 == 0 ? after.at : before.at,
                                           i % 2 == 0 ? before.at : after.at, state_bytes));
      passes.push_back(lightning.pass());
    }
    report({"lightning", "decode, state 32 x 128 x 128 f32, batch 8", "% of copying",
            Better::higher, 75, 90},
           100 * median(copies) / median(passes), median(passes));
  }
}

/// Counted are the multiply-adds that blocks of 48 tokens need, of tokens with each other those that see each other.
void prefill_cost(Limits& limits) {
  constexpr int32_t tokens = 2048, block = 48;
  constexpr double operations = 2.0 * tokens * heads * (2.0 * dim * dim + (block + 1) / 2.0 * 2 * dim);
  struct Row {
    const char* name;
    uint32_t dtype, flags;
  };
  for (const Row& row :
       {Row{"prefill 2048 tokens, 32 heads of 128, f32", KVC_F32, 0},
        Row{"prefill 2048 tokens, 32 heads of 128, f16", KVC_F16, 0},
        Row{"prefill 2048 tokens, 32 heads of 128, f32, fused", KVC_F32, KVC_LIGHTNING_FUSED},
        Row{"prefill 2048 tokens, 32 heads of 128, f16, fused", KVC_F16, KVC_LIGHTNING_FUSED}}) {
    Lightning lightning(2, 1, tokens, row.dtype, row.flags);
    for (int i = 0; i < 2; ++i) lightning.pass();
    for (int pair = 0; pair < pairs(); ++pair) {
      std::vector<double> rates, passes;
      for (int i = 0; i < 5; ++i) {
        rates.push_back(limits.multiply_rate());
        passes.push_back(lightning.pass() / 2);
      }
      report({"lightning", row.name, "%", Better::higher, 65, 90},
             100 * operations / median(passes) / median(rates), median(passes));
    }
  }
}

}  // namespace

void lightning_cases(Limits& limits) {
  decode_cost(limits);
  prefill_cost(limits);
}

}  // namespace bench
