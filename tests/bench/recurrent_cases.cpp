#include <string>
#include <vector>

#include <kvc/recurrent.h>

#include "cases.hpp"
#include "limits.hpp"
#include "measure.hpp"
#include "rig.hpp"

namespace bench {
namespace {

/// The gated-delta layers of Qwen3-Next: 32 heads of 128 x 128 in f32.
constexpr int32_t layers = 36;
constexpr int64_t heads = 32, dim = 128;
constexpr size_t layer_bytes = heads * dim * dim * sizeof(float);

class States {
 public:
  explicit States(uint32_t stored) {
    kvc_cache_desc desc = KVC_CACHE_DESC_INIT;
    desc.kind = KVC_RECURRENT;
    desc.flags = KVC_CACHE_PREFAULT;
    desc.n_layers = layers;
    desc.max_sequences = desc.max_batch = 1;
    kvc_recurrent_desc recurrent = KVC_RECURRENT_DESC_INIT;
    recurrent.state_size = heads * dim * dim;
    recurrent.dtype_state = stored;
    recurrent.checkpoints = KVC_NONE;
    must(kvc_cache_create(device_, &desc, &recurrent, &cache_), "cache");
  }
  ~States() {
    must(kvc_cache_destroy(cache_), "destroy");
    must(kvc_device_close(device_), "close");
  }
  States(const States&) = delete;
  States& operator=(const States&) = delete;

  /// A pass in which every layer's state comes into the caller's memory and goes back. Only that counts.
  double pass(const Blocks& memory) {
    const int32_t position = next_++, sequence = 0;
    must(kvc_begin(cache_, 1, &position, &sequence, nullptr, 0, nullptr), "begin");
    const double time = seconds([&] {
      for (int32_t layer = 0; layer < layers; ++layer) {
        kvc_tensor state;
        const int64_t shape[] = {1, heads, dim, dim};
        std::byte* data = memory.at[static_cast<size_t>(layer)];
        must(kvc_tensor_dense(data, KVC_F32, 4, shape, &state), "tensor");
        must(kvc_state_get(cache_, layer, KVC_PART_RECURRENT, &state), "state_get");
        must(kvc_state_put(cache_, layer, KVC_PART_RECURRENT, &state), "state_put");
      }
    });
    must(kvc_commit(cache_), "commit");
    return time;
  }

 private:
  kvc_device* device_ = open_device();
  kvc_cache* cache_ = nullptr;
  int32_t next_ = 0;
};

/// The limit copies the same bytes between blocks of the same sizes: in, and out to where the next pass takes them from.
void copy_cost(Limits& limits) {
  States f32(KVC_F32), bf16(KVC_BF16);
  const Blocks memory(layers, layer_bytes), before(layers, layer_bytes), after(layers, layer_bytes),
      between(layers, layer_bytes);
  const Blocks* from = &before;
  const Blocks* to = &after;
  const auto limit = [&] {
    std::vector<std::byte*> sources, targets;
    for (size_t layer = 0; layer < layers; ++layer) {
      sources.insert(sources.end(), {from->at[layer], between.at[layer]});
      targets.insert(targets.end(), {between.at[layer], to->at[layer]});
    }
    std::swap(from, to);
    return limits.copy_seconds(targets, sources, layer_bytes);
  };
  for (States* states : {&f32, &bf16}) {
    for (int i = 0; i < 3; ++i) states->pass(memory);
    for (int pair = 0; pair < pairs(); ++pair) {
      std::vector<double> copies, passes;
      for (int i = 0; i < 5; ++i) {
        copies.push_back(limit());
        passes.push_back(states->pass(memory));
      }
      const bool same = states == &f32;
      report({"recurrent",
              std::string("state_get + state_put of 75 MB, stored as ") + (same ? "f32" : "bf16"),
              same ? "% of copying" : "% of copying f32", Better::higher, same ? 75.0 : 0.0,
              same ? 90.0 : 0.0},
             100 * median(copies) / median(passes), median(passes));
    }
  }
}

/// States so small that what is left is bookkeeping. Costs are those of one call, of many in a row.
void checkpoint_cost() {
  constexpr int32_t sequences = 64, checkpoints = 24;
  kvc_device* device = nullptr;
  must(kvc_device_open("cpu", nullptr, nullptr, &device), "device");
  kvc_cache_desc desc = KVC_CACHE_DESC_INIT;
  desc.kind = KVC_RECURRENT;
  desc.n_layers = 1;
  desc.max_sequences = desc.max_batch = sequences;
  kvc_recurrent_desc recurrent = KVC_RECURRENT_DESC_INIT;
  recurrent.state_size = 16;
  recurrent.checkpoints = checkpoints;
  recurrent.checkpoint_interval = KVC_NONE;
  kvc_cache* cache = nullptr;
  must(kvc_cache_create(device, &desc, &recurrent, &cache), "cache");
  Array rows(KVC_F32, {sequences, 16});
  int32_t next = 0;
  const auto pass = [&] {
    std::vector<int32_t> position(sequences, next++), sequence(sequences);
    for (int32_t s = 0; s < sequences; ++s) sequence[static_cast<size_t>(s)] = s;
    must(kvc_begin(cache, sequences, position.data(), sequence.data(), nullptr, 0, nullptr),
         "begin");
    must(kvc_state_put(cache, 0, KVC_PART_RECURRENT, rows.tensor()), "put");
    must(kvc_commit(cache), "commit");
  };
  const auto each = [&](auto call) {
    return seconds([&] {
             for (int32_t s = 0; s < sequences; ++s) call(s);
           }) /
           sequences;
  };
  const auto take = [&](int32_t s) { must(kvc_checkpoint_take(cache, s), "checkpoint_take"); };
  for (int pair = 0; pair < pairs(); ++pair) {
    double taken = 0;
    for (int32_t i = 0; i < checkpoints + 4; ++i) {  // the last ones go into full lists
      pass();
      taken = each(take);
    }
    // Even sequences become copies of the odd ones: 24 checkpoints and a state.
    const double copied = each([&](int32_t s) {
      must(kvc_copy_prefix(cache, s | 1, (s | 1) - 1, next, nullptr), "copy_prefix");
    });
    const double restored = each(
        [&](int32_t s) { must(kvc_resume(cache, s, next - 1, nullptr), "resume"); });
    const int32_t least = next - checkpoints;
    const double first = each(
        [&](int32_t s) { must(kvc_resume(cache, s, least, nullptr), "resume"); });
    const auto row = [](const char* name, double must_take, double value) {
      report({"recurrent", name, "µs", Better::lower, must_take, 1}, 1e6 * value, value);
    };
    row("take a checkpoint, 24 held", 2.05, taken);
    row("copy a sequence with 24 checkpoints", 3.2, copied);
    row("restore the last checkpoint but one of 24", 3.2, restored);
    row("restore the lowest checkpoint of 23", 3.2, first);
    for (int32_t s = 0; s < sequences; ++s) must(kvc_resume(cache, s, 0, nullptr), "resume");
    next = 0;
  }
  must(kvc_cache_destroy(cache), "destroy");
  must(kvc_device_close(device), "close");
}

}  // namespace

void recurrent_cases(Limits& limits) {
  copy_cost(limits);
  checkpoint_cost();
}

}  // namespace bench
