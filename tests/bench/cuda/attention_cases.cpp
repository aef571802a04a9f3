#include <string>

#include "tests/bench/cuda/cases.hpp"
#include "tests/bench/cuda/rig.hpp"

namespace bench_cuda {
namespace {

/// Microseconds of an attention call, one per repeat, and how far off its results are.
struct Measured {
  std::vector<double> times;
  Error error;
};

/// Calls that are given to the stream one by one, as a model without graphs does.
Measured one_by_one(Rig& rig) {
  Measured m;
  StreamClock clock(rig.stream());
  rig.open();
  m.times = repeated([&] {
    gpu::need(kvc::cuda::runtime::synchronize(rig.stream()), "synchronize");
    return clock.microseconds([&] { rig.attend_all(); }) / rig.n_layers();
  });
  rig.close();
  m.error = rig.last_error();
  return m;
}

/// All layers in a graph. Another one before it puts the tokens of the pass.
Measured in_graphs(Rig& rig) {
  Measured m;
  StreamClock clock(rig.stream());
  gpu::Graph* const puts = rig.capture([&] { rig.put_all(); });
  gpu::Graph* const attends = rig.capture([&] { rig.attend_all(); });
  m.times = repeated([&] {
    rig.begin(KVC_BEGIN_REPLAY);
    gpu::launch(puts, rig.stream());
    const double time = clock.microseconds([&] { gpu::launch(attends, rig.stream()); });
    rig.close();
    return time / rig.n_layers();
  });
  m.error = rig.last_error();
  gpu::destroy_graph(puts);
  gpu::destroy_graph(attends);
  return m;
}

/// The larger of what the exact pass and the measured calls are off, each beside what it may be.
Error worse(const Error& a, const Error& b) {
  return b.is * a.at_most > a.is * b.at_most || b.is != b.is ? b : a;
}

void report_share(const Roofs& roofs, const Rig& rig, const std::string& name, double must,
                  double go_for, const Measured& m) {
  const double limit = 1e6 * rig.setup().bytes_seen() / roofs.copy_rate();
  report({name, "% of copy rate", Better::higher, must, go_for},
         each(m.times, [&](double t) { return 100 * limit / t; }), m.times, m.error);
}

/// What a decode is held to: a share of the copy rate where it reads much, a time where it reads little.
enum class Target { share, time };

struct Decode {
  const char* name;
  int32_t sequences, context;
  Target target;
  double must, go_for;     // % or µs, in a graph
  int32_t n_q_heads = 32;  // of 8 KV heads
  int32_t tokens = 1;      // of a sequence
};

/// The times in a graph.
std::vector<double> decode(const Roofs& roofs, const Decode& d, int32_t run = 0) {
  Setup setup;
  setup.sequences = d.sequences;
  setup.context = d.context;
  setup.n_q_heads = d.n_q_heads;
  setup.tokens = d.tokens;
  setup.run = run;
  setup.least_bytes = 0x1p29;
  Rig rig(setup, roofs);
  const Error exact = rig.exact_error();
  const std::string name = std::string("decode bf16, ") + d.name;
  Measured m = in_graphs(rig);
  m.error = worse(exact, m.error);
  if (d.target == Target::time)
    report({name, "µs", Better::lower, d.must, d.go_for}, m.times, m.times, m.error);
  else
    report_share(roofs, rig, name, d.must, d.go_for, m);
  report_share(roofs, rig, name + ", no graph", 0, 0, one_by_one(rig));
  return m.times;
}

/// Beside the same work on contiguous cells.
void decode_apart(const Roofs& roofs, const Decode& d, int32_t run,
                  const std::vector<double>& contiguous, double must, double go_for) {
  std::vector<double> times = decode(roofs, d, run), ratios;
  for (size_t i = 0; i < times.size(); ++i) ratios.push_back(times[i] / contiguous[i]);
  report({std::string("decode bf16, ") + d.name + ", beside 32 x 4k", "x of its time",
          Better::lower, must, go_for},
         ratios, times, {});
}

struct Prefill {
  const char* name;
  int32_t head_dim, tokens;
  bool sees_later;
  uint32_t dtype, runtime_dtype;
  double must, go_for;  // TFLOP/s
};

void prefill(const Roofs& roofs, const Prefill& p) {
  Setup setup;
  setup.head_dim = p.head_dim;
  setup.n_q_heads = 4096 / p.head_dim;
  setup.n_kv_heads = setup.n_q_heads / 4;
  setup.tokens = p.tokens;
  setup.sees_later = p.sees_later;
  setup.dtype = setup.dtype_q = p.dtype;
  setup.runtime_dtype = p.runtime_dtype;
  Rig rig(setup, roofs);
  Measured m = one_by_one(rig);
  m.error = worse(rig.exact_error(), m.error);
  const double work = rig.setup().operations();
  report({std::string("prefill ") + p.name, "TFLOP/s", Better::higher, p.must, p.go_for},
         each(m.times, [&](double t) { return 1e-6 * work / t; }), m.times, m.error);
}

struct Stored {
  const char* name;
  uint32_t dtype;
  double must, go_for;
};

}  // namespace

void decode_cases(const Roofs& roofs) {
  for (const Decode& d : {Decode{"1 x 1k", 1, 1024, Target::time, 9, 8},
                          Decode{"1 x 8k", 1, 8192, Target::time, 0, 0},
                          Decode{"1 x 32k", 1, 32768, Target::time, 45, 40},
                          Decode{"1 x 128k", 1, 131072, Target::share, 85, 92},
                          Decode{"8 x 4k", 8, 4096, Target::time, 45, 40},
                          Decode{"8 x 16k", 8, 16384, Target::share, 85, 92}})
    decode(roofs, d);
  const std::vector<double> contiguous = decode(roofs, {"32 x 4k", 32, 4096, Target::share, 85, 92});
  decode(roofs, {"32 x 4k, 16 query heads of a KV head", 32, 4096, Target::share, 75, 85, 128});
  decode(roofs, {"32 x 4k, drafts of 4", 32, 4096, Target::share, 75, 85, 32, 4});
  decode_apart(roofs, {"32 x 4k, cells in runs of 32", 32, 4096, Target::share, 0, 0}, 32,
               contiguous, 1.04, 1.02);
  decode_apart(roofs, {"32 x 4k, scattered cells", 32, 4096, Target::share, 0, 0}, 1, contiguous,
               1.1, 1.05);
}

void prefill_cases(const Roofs& roofs) {
  for (const Prefill& p :
       {Prefill{"runtime bf16, D 128, not causal, 2k", 128, 2048, true, KVC_BF16, KVC_BF16, 480, 600},
        Prefill{"runtime bf16, D 128, not causal, 8k", 128, 8192, true, KVC_BF16, KVC_BF16, 480, 600},
        Prefill{"runtime bf16, D 128, causal, 8k", 128, 8192, false, KVC_BF16, KVC_BF16, 440, 560},
        Prefill{"runtime bf16, D 64, causal, 8k", 64, 8192, false, KVC_BF16, KVC_BF16, 330, 430},
        Prefill{"runtime bf16, D 256, causal, 8k", 256, 8192, false, KVC_BF16, KVC_BF16, 420, 550},
        Prefill{"exact bf16, D 128, causal, 8k", 128, 8192, false, KVC_BF16, 0, 240, 300},
        Prefill{"exact f16, D 128, causal, 8k", 128, 8192, false, KVC_F16, 0, 320, 400}})
    prefill(roofs, p);
}

void storage_cases(const Roofs& roofs) {
  for (const Stored& s :
       {Stored{"f32", KVC_F32, 0, 0}, Stored{"f16", KVC_F16, 85, 92},
        Stored{"f8_e4m3", KVC_F8_E4M3, 70, 85}, Stored{"f8_e5m2", KVC_F8_E5M2, 70, 85},
        Stored{"q8_0", KVC_Q8_0, 70, 85}, Stored{"int8", KVC_INT8, 70, 85},
        Stored{"q4_0", KVC_Q4_0, 50, 65}, Stored{"nf4", KVC_NF4, 50, 65}}) {
    Setup setup;
    setup.sequences = 32;
    setup.context = 4096;
    setup.dtype = s.dtype;
    Rig rig(setup, roofs);
    Measured m = one_by_one(rig);
    m.error = worse(rig.exact_error(), m.error);
    report_share(roofs, rig, std::string("decode ") + s.name + ", 32 x 4k, stored bytes", s.must,
                 s.go_for, m);
  }
}

/// A token of each of 32 sequences that share all but their last token, beside one sequence.
void shared_cases(const Roofs& roofs) {
  Setup setup;
  setup.context = 4096;
  Rig one(setup, roofs);
  setup.sequences = 32;
  setup.is_shared = true;
  Rig all(setup, roofs);
  const Measured alone = one_by_one(one);
  Measured m = one_by_one(all);
  m.error = worse(all.exact_error(), m.error);
  std::vector<double> ratios;
  for (size_t i = 0; i < m.times.size(); ++i) ratios.push_back(m.times[i] / alone.times[i]);
  report({"decode bf16, 32 sequences on one 4k prefix", "x of one alone", Better::lower, 5, 2.5},
         ratios, m.times, m.error);
}

}  // namespace bench_cuda
