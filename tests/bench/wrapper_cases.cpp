#include <cstdio>
#include <vector>

#include <kvc/wrapper.h>

#include "cases.hpp"
#include "measure.hpp"
#include "rig.hpp"

namespace bench {
namespace {

constexpr int32_t sequences = 64, window = 256;

/// Caches of tiny keys and values, every second one a window, so that what is left is bookkeeping.
std::vector<kvc_cache*> create(kvc_device* device, int32_t n) {
  std::vector<kvc_cache*> caches(static_cast<size_t>(n));
  for (size_t i = 0; i < caches.size(); ++i) {
    kvc_cache_desc desc = KVC_CACHE_DESC_INIT;
    desc.n_layers = desc.n_kv_heads = desc.head_dim_k = 1;
    desc.max_sequences = sequences;
    desc.capacity = 1 << 14;
    desc.max_batch = sequences;
    kvc_causal_desc causal = KVC_CAUSAL_DESC_INIT;
    if (i % 2 == 0) causal.reach = window;
    must(kvc_cache_create(device, &desc, &causal, &caches[i]), "cache");
  }
  return caches;
}

/// Passes of a token of each sequence. Only begin and commit count, not the tiny puts between them.
class Steps {
 public:
  double run(const std::vector<kvc_cache*>& moved, const std::vector<kvc_cache*>& put) {
    std::vector<int32_t> position(sequences, next_++), sequence(sequences);
    for (int32_t s = 0; s < sequences; ++s) sequence[static_cast<size_t>(s)] = s;
    double time = 0;
    for (kvc_cache* cache : moved) {
      time += seconds([&] {
        must(kvc_begin(cache, sequences, position.data(), sequence.data(), nullptr, 0, nullptr),
             "begin");
      });
    }
    for (kvc_cache* cache : put) must(kvc_put(cache, 0, row_.tensor(), row_.tensor()), "put");
    for (kvc_cache* cache : moved) time += seconds([&] { must(kvc_commit(cache), "commit"); });
    return time;
  }

 private:
  int32_t next_ = 0;
  Array row_{KVC_F32, {sequences, 1, 1}};
};

void pass_cost(int32_t n_children) {
  kvc_device* device = nullptr;
  must(kvc_device_open("cpu", nullptr, nullptr, &device), "device");
  const std::vector<kvc_cache*> alone = create(device, n_children),
                                children = create(device, n_children);
  std::vector<kvc_cache*> wrapper(1);
  must(kvc_cache_wrap(children.data(), n_children, nullptr, nullptr, 0, &wrapper[0]), "wrap");
  Steps apart, together;
  for (int32_t i = 0; i < 2 * window; ++i) {  // until the windows slide
    apart.run(alone, alone);
    together.run(wrapper, children);
  }
  char name[80];
  std::snprintf(name, sizeof name, "begin + commit of %d children, beside each by itself", n_children);
  for (int pair = 0; pair < pairs(); ++pair) {
    std::vector<double> base, wrapped;
    for (int i = 0; i < 51; ++i) {
      base.push_back(apart.run(alone, alone));
      wrapped.push_back(together.run(wrapper, children));
    }
    report({"wrapper", name, "x", Better::lower, 1.3, 1.1}, median(wrapped) / median(base),
           median(wrapped));
  }
  for (kvc_cache* cache : wrapper) must(kvc_cache_destroy(cache), "destroy");
  for (kvc_cache* cache : children) must(kvc_cache_destroy(cache), "destroy");
  for (kvc_cache* cache : alone) must(kvc_cache_destroy(cache), "destroy");
  must(kvc_device_close(device), "close");
}

}  // namespace

void wrapper_cases(Limits&) {
  pass_cost(2);
  pass_cost(4);
}

}  // namespace bench
