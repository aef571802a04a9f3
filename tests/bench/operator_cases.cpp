#include <numeric>
#include <vector>

#include <kvc/operators.h>

#include "cases.hpp"
#include "measure.hpp"
#include "rig.hpp"

namespace bench {
namespace {

double sum(const std::vector<double>& times) {
  return std::accumulate(times.begin(), times.end(), 0.0);
}

/// Half of the layers attend with the operator by name that the library would choose.
void named_cost() {
  Rig rig({});
  const int32_t layers = rig.setup().layers;
  kvc_operator* flash = nullptr;
  must(kvc_operator_create(rig.device(), "flash", nullptr, &flash), "operator");
  must(kvc_bind_operator(rig.cache(), 0, layers / 2, KVC_MODE_ALL, flash), "bind_operator");
  must(kvc_operator_destroy(flash), "destroy");
  rig.open(1);
  rig.attend_all();
  for (int pair = 0; pair < pairs(); ++pair) {
    std::vector<double> named, chosen;
    for (int32_t layer = 0; layer < layers / 2; ++layer) {
      named.push_back(seconds([&] { rig.attend_layer(layer); }));
      chosen.push_back(seconds([&] { rig.attend_layer(layers / 2 + layer); }));
    }
    report({"operators", "decode f16, 4k, an operator bound by name", "x chosen", Better::lower,
            1.02, 1},
           median(named) / median(chosen), median(named));
  }
  rig.close();
}

/// The same numbers without a cache, and as a pass of one. Queries and outputs are f32 in both, keys and values f16.
void forward_cost() {
  constexpr int32_t n = 2048;
  Rig rig({.context = 0, .batch = n, .layers = 2});
  const Setup& s = rig.setup();
  kvc_operator_desc desc = KVC_OPERATOR_DESC_INIT;
  desc.max_rows = 1;
  desc.max_q_len = desc.max_kv_len = n;
  desc.n_kv_heads = s.n_kv_heads;
  desc.max_q_heads = s.n_q_heads;
  desc.head_dim_k = s.head_dim;
  kvc_operator* flash = nullptr;
  must(kvc_operator_create(rig.device(), "flash", &desc, &flash), "operator");
  Array q(KVC_F32, {1, n, s.n_q_heads, s.head_dim}), out(KVC_F32, {1, n, s.n_q_heads, s.head_dim});
  Array k(KVC_F16, {1, n, s.n_kv_heads, s.head_dim}), v(KVC_F16, {1, n, s.n_kv_heads, s.head_dim});
  q.fill(3);
  k.fill(1);
  v.fill(2);
  kvc_forward_desc causal = KVC_FORWARD_DESC_INIT;
  causal.flags = KVC_FORWARD_CAUSAL;
  rig.open(n);
  rig.attend_all();
  for (int pair = 0; pair < pairs(); ++pair) {
    std::vector<double> without, with;
    for (int i = 0; i < 6; ++i) {  // what goes first is slower, so they take turns at it
      if (i % 2 != 0) with.push_back(seconds([&] { rig.attend(); }));
      without.push_back(seconds([&] {
        must(kvc_operator_forward(flash, &causal, q.tensor(), k.tensor(), v.tensor(), nullptr,
                                  nullptr, nullptr, out.tensor()),
             "forward");
      }));
      if (i % 2 == 0) with.push_back(seconds([&] { rig.attend(); }));
    }
    report({"operators", "attention without a cache, 2048 on 2048, f16", "x a prefill",
            Better::lower, 1.05, 1},
           sum(without) / sum(with), median(without));
  }
  rig.close();
  must(kvc_operator_destroy(flash), "destroy");
}

}  // namespace

void operator_cases() {
  named_cost();
  forward_cost();
}

}  // namespace bench
