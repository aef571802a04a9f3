#include "tests/bench/cuda/cases.hpp"
#include "tests/bench/cuda/rig.hpp"

/// What a pass costs beside its attention: puts, its begin, and the processor's time.
namespace bench_cuda {
namespace {

void wait(Rig& rig) { gpu::need(kvc::cuda::runtime::synchronize(rig.stream()), "synchronize"); }

/// Puts of so many tokens, all layers in a graph.
void put(const Roofs& roofs, const char* name, int32_t tokens, double must, double go_for) {
  Setup setup;
  setup.tokens = tokens;
  setup.context = 16;
  Rig rig(setup, roofs);
  StreamClock clock(rig.stream());
  const Error error = rig.exact_error();
  gpu::Graph* const graph = rig.capture([&] { rig.put_all(); });
  const std::vector<double> times = repeated([&] {
    rig.begin(KVC_BEGIN_REPLAY);
    const double time = clock.microseconds([&] { gpu::launch(graph, rig.stream()); });
    rig.close();
    return time / rig.n_layers();
  });
  gpu::destroy_graph(graph);
  report({std::string(name) + ", bf16 into bf16", "µs", Better::lower, must, go_for}, times, times,
         error);
  if (must != 0) return;
  const double bytes = 2.0 * 2 * 2 * rig.n_tokens() * rig.setup().n_kv_heads * rig.setup().head_dim;
  const double limit = 1e6 * bytes / roofs.copy_rate();
  report({std::string(name) + " beside copying", "% of copying", Better::higher, 75, 90},
         each(times, [&](double t) { return 100 * limit / t; }), times, error);
}

}  // namespace

void put_cases(const Roofs& roofs) {
  put(roofs, "put of 256 tokens", 256, 5, 2.5);
  put(roofs, "put of 16k tokens", 16384, 0, 0);
}

void host_cases(const Roofs& roofs) {
  Setup setup;
  setup.sequences = 256;
  setup.context = 1024;
  Rig rig(setup, roofs);
  const Error error = rig.exact_error();
  StreamClock clock(rig.stream());
  const std::vector<double> host = repeated([&] {
    wait(rig);
    const double time = host_microseconds([&] { rig.begin(0); });
    rig.close();
    return time;
  });
  report({"begin of 256 sequences, host", "µs", Better::lower, 40, 20}, host, host, error);
  const std::vector<double> device = repeated([&] {
    wait(rig);
    const double time = clock.microseconds([&] { rig.begin(0); });
    rig.close();
    return time;
  });
  report({"begin of 256 sequences, by events", "µs", Better::lower, 0, 0}, device, device, error);
  rig.open();
  const std::vector<double> layer = repeated([&] {
    wait(rig);
    return host_microseconds([&] { rig.put_attend_all(); }) / rig.n_layers();
  });
  rig.close();
  report({"put and attention of a layer, 256 sequences, host", "µs", Better::lower, 6, 3}, layer,
         layer, rig.last_error());
}

}  // namespace bench_cuda
