#include <algorithm>
#include <cmath>
#include <cstdio>

#include "cases.hpp"
#include "measure.hpp"
#include "rig.hpp"

namespace bench {
namespace {

const char* dtype_name(uint32_t dtype) {
  return dtype == KVC_F32 ? "f32" : dtype == KVC_F16 ? "f16" : "bf16";
}

double decode_limit(Limits& limits, double bytes, double operations) {
  return std::fmax(bytes / limits.read_rate(static_cast<size_t>(bytes)),
                   operations / limits.multiply_rate());
}

/// What the figures of a case are called, and their targets (0: none).
struct Label {
  const char* group;
  std::string name;
  double must_percent = 0, go_for = 0;
};

/// Seconds of one call, after one of the layer before it: as in a model, and as when the limits are taken, threads are
/// awake when the time starts. (Between pairs the parent process has just read a line, on one of their processors.)
double timed(Rig& rig, bool log_sum_exp = false) {
  rig.attend(log_sum_exp);
  return seconds([&] { rig.attend(log_sum_exp); });
}

void decode(Limits& limits, const Label& label, const Setup& setup) {
  Rig rig(setup);
  rig.open(1);
  rig.attend_all();
  limits.clean_caches();
  const double bytes = rig.bytes_of_history();
  const double operations = Rig::causal_operations(setup, 1, setup.context) * setup.sequences;
  for (int pair = 0; pair < pairs(); ++pair) {
    const double limit = decode_limit(limits, bytes, operations);
    const double kernel = timed(rig);
    report({label.group, label.name, "% of limit", Better::higher, label.must_percent, label.go_for},
           100 * limit / kernel, kernel);
  }
  rig.close();
}

/// How much slower histories read that were generated together, one token each per pass, than those of one sequence after
/// another.
void histories(Limits& limits, Setup setup) {
  Rig together(setup);
  setup.together = false;
  Rig one_by_one(setup);
  together.open(1);
  one_by_one.open(1);
  together.attend_all();
  one_by_one.attend_all();
  limits.clean_caches();
  const std::string name = "decode f16, " + std::to_string(setup.sequences) +
                           " x 4k, together beside one after another";
  for (int pair = 0; pair < pairs(); ++pair) {
    const double base = timed(one_by_one);
    const double kernel = timed(together);
    report({"decode", name, "x", Better::lower, 1.1, 1.0}, kernel / base, kernel);
  }
  one_by_one.close();
  together.close();
}

/// Heads that fill no vectors beside the next multiple of 16, call after call.
void odd_heads(Limits& limits, int32_t head_dim) {
  Setup setup;
  setup.head_dim = head_dim;
  Rig odd(setup);
  setup.head_dim = (head_dim + 15) / 16 * 16;
  Rig even(setup);
  odd.open(1);
  even.open(1);
  odd.attend_all();
  even.attend_all();
  limits.clean_caches();
  for (int pair = 0; pair < pairs(); ++pair) {
    const double base = timed(even);
    const double kernel = timed(odd);
    report({"shapes", "decode f16, 4k, heads of " + std::to_string(head_dim),
            "x of the next multiple of 16", Better::lower, 1.3, 1.1},
           kernel / base, kernel);
  }
  odd.close();
  even.close();
}

void prefill(Limits& limits, const Label& label, Setup setup, int32_t tokens, int32_t context) {
  setup.context = context - tokens;
  setup.batch = tokens;
  setup.layers = 4;
  Rig rig(setup);
  rig.open(tokens);
  rig.attend_all();
  limits.clean_caches();
  const double operations = Rig::causal_operations(setup, tokens, setup.context);
  for (int pair = 0; pair < pairs(); ++pair) {
    const double limit = operations / limits.multiply_rate();
    const double kernel = timed(rig);
    report(
        {label.group, label.name, "% of FMA peak", Better::higher, label.must_percent, label.go_for},
        100 * limit / kernel, kernel);
  }
  rig.close();
}

/// Queries and results of 16 bits, as K and V, and products that may be rounded to them.
void small_query_cases(Limits& limits) {
  struct Case {
    uint32_t dtype, runtime;
    double must_percent, go_for;
  };
  for (const Case& c :
       {Case{KVC_F16, 0, 120, 170}, Case{KVC_F16, KVC_F16, 0, 0}, Case{KVC_F16, KVC_BF16, 220, 350},
        Case{KVC_BF16, 0, 160, 250}, Case{KVC_BF16, KVC_BF16, 220, 350}}) {
    Setup setup;
    setup.dtype = setup.dtype_q = c.dtype;
    setup.runtime_dtype = c.runtime;
    std::string name = std::string("prefill ") + dtype_name(c.dtype) + ", queries too, 2048 on 2048";
    if (c.runtime != 0) name += std::string(", runtime ") + dtype_name(c.runtime);
    prefill(limits, {"prefill", name, c.must_percent, c.go_for}, setup, 2048, 2048);
  }
}

/// What a token costs beside more others on one prefix than have partial results at once.
void many_on_one_prefix(Limits& limits) {
  const auto on_prefix = [](int32_t sequences) {
    Setup setup;
    setup.n_q_heads = 4;
    setup.n_kv_heads = 1;
    setup.context = 2048;
    setup.layers = 4;
    setup.shared = true;
    setup.sequences = sequences;
    return setup;
  };
  Rig fewer(on_prefix(256));
  fewer.open(1);
  for (const int32_t sequences : {257, 1024}) {
    Rig rig(on_prefix(sequences));
    rig.open(1);
    fewer.attend_all();
    rig.attend_all();
    limits.clean_caches();
    for (int pair = 0; pair < pairs(); ++pair) {
      const double base = timed(fewer) / 256;
      const double kernel = timed(rig);
      report({"shared", "a token of " + std::to_string(sequences) + " sequences on one 2k prefix",
              "x of 256", Better::lower, 1.1, 0},
             kernel / sequences / base, kernel);
    }
    rig.close();
  }
  fewer.close();
}

}  // namespace

void decode_cases(Limits& limits) {
  const auto single = [&](uint32_t dtype, int32_t context, double must_percent, double go_for) {
    Setup setup;
    setup.dtype = dtype;
    setup.context = context;
    char name[64];
    std::snprintf(name, sizeof name, "decode %s, %dk, batch 1", dtype_name(dtype), context / 1024);
    decode(limits, {"decode", name, must_percent, go_for}, setup);
  };
  single(KVC_F16, 1024, 72, 85);
  single(KVC_F16, 4096, 82, 92);
  single(KVC_F16, 16384, 80, 92);
  single(KVC_F16, 65536, 80, 92);
  single(KVC_BF16, 16384, 75, 88);
  single(KVC_F32, 16384, 75, 90);
  for (const int32_t sequences : {8, 32}) {
    Setup setup;
    setup.sequences = sequences;
    decode(
        limits,
        {"decode", "decode f16, " + std::to_string(sequences) + " x 4k, generated together", 78, 92},
        setup);
    histories(limits, setup);
  }
}

void prefill_cases(Limits& limits) {
  struct Case {
    int32_t tokens, context;
    double must_percent, go_for;
  };
  for (const Case& c : {Case{2048, 2048, 90, 110}, Case{512, 4096, 75, 85}, Case{512, 512, 70, 85}}) {
    char name[64];
    std::snprintf(name, sizeof name, "prefill f16, %d on %d", c.tokens, c.context);
    prefill(limits, {"prefill", name, c.must_percent, c.go_for}, Setup(), c.tokens, c.context);
  }
  small_query_cases(limits);
}

void shape_cases(Limits& limits) {
  // At most 5 points below the targets of heads of 128 and 4 query heads per KV head.
  const auto shape = [&](const std::string& name, const Setup& setup) {
    decode(limits, {"shapes", "decode f16, 4k, " + name, 77, 87}, setup);
    prefill(limits, {"shapes", "prefill f16, 512 on 512, " + name, 61, 70}, setup, 512, 512);
  };
  for (const int32_t head_dim : {64, 80, 96, 192, 256}) {
    Setup setup;
    setup.head_dim = head_dim;
    shape("heads of " + std::to_string(head_dim), setup);
  }
  for (const int32_t head_dim : {33, 65, 129}) odd_heads(limits, head_dim);
  // Multi-head latent attention as its decode sees it: one KV head, whose value is shorter than its key.
  Setup latent;
  latent.n_q_heads = 16;
  latent.n_kv_heads = 1;
  latent.head_dim = 576;
  latent.head_dim_v = 512;
  shape("16 heads of 576/512 on 1", latent);
  for (const int32_t group : {1, 4, 7, 8, 16}) {
    Setup setup;
    setup.n_q_heads = group * setup.n_kv_heads;
    shape(std::to_string(group) + (group == 1 ? " query head" : " query heads") + " per KV head",
          setup);
  }
}

/// A token of each of 32 sequences that share all but their last token, beside one sequence.
void one_prefix(Limits& limits, uint32_t dtype, double must, double go_for) {
  Setup setup;
  setup.dtype = setup.dtype_q = dtype;
  Rig alone(setup);
  setup.sequences = 32;
  setup.shared = true;
  Rig rig(setup);
  alone.open(1);
  rig.open(1);
  alone.attend_all();
  rig.attend_all();
  const std::string name = std::string("decode ") + dtype_name(dtype) +
                           ", queries too, 32 sequences on one 4k prefix";
  limits.clean_caches();
  for (int pair = 0; pair < pairs(); ++pair) {
    const double one = timed(alone);
    const double all = timed(rig);
    report({"shared", name, "x of one alone", Better::lower, must, go_for}, all / one, all);
  }
  rig.close();
  alone.close();
}

void shared_cases(Limits& limits) {
  one_prefix(limits, KVC_F16, 5, 3);
  one_prefix(limits, KVC_BF16, 3.5, 2);
  many_on_one_prefix(limits);
}

void option_cases(Limits& limits) {
  struct Option {
    const char* name;
    void (*apply)(Setup&);
    bool sees_later, log_sum_exp;
  };
  const Option options[] = {{"window",
                             [](Setup& s) {
                               s.causal.reach = s.context + s.batch;
                               s.causal.memory = KVC_NONE;
                             },
                             false, false},
                            {"softcap", [](Setup& s) { s.softcap = 30; }, false, false},
                            {"sinks", [](Setup& s) { s.sinks = true; }, false, false},
                            {"ALiBi", [](Setup& s) { s.alibi = true; }, false, false},
                            {"except rows", [](Setup&) {}, true, false},
                            {"log-sum-exp", [](Setup&) {}, false, true}};
  for (const bool prefill : {false, true}) {
    Setup setup;
    setup.context = prefill ? 0 : 4096;
    setup.batch = prefill ? 512 : 1;
    if (prefill) setup.layers = 4;
    Rig plain(setup);
    plain.open(setup.batch);
    plain.attend();
    for (const Option& option : options) {
      Setup with = setup;
      option.apply(with);
      Rig rig(with);
      rig.open(setup.batch, option.sees_later);
      plain.attend_all();
      rig.attend_all();
      limits.clean_caches();
      // Rows that see later tokens have almost twice the pairs to do in a prefill; the time is taken per pair.
      const double more = option.sees_later ? 2.0 * setup.batch / (setup.batch + 1.0) : 1.0;
      for (int pair = 0; pair < pairs(); ++pair) {
        const double base = timed(plain);
        const double kernel = timed(rig, option.log_sum_exp);
        report({"options", std::string(prefill ? "prefill 512: " : "decode 4k: ") + option.name,
                "x plain", Better::lower, 1.25, 1.1},
               kernel / base / (prefill ? more : 1.0), kernel);
      }
      rig.close();
    }
    plain.close();
  }
}

void token_count_cases(Limits& limits) {
  Setup setup;
  setup.batch = 128;
  Rig rig(setup);
  limits.clean_caches();
  const int32_t counts[] = {1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128};
  double best[std::size(counts)] = {};
  for (int pair = 0; pair < pairs(); ++pair) {
    for (size_t i = 0; i < std::size(counts); ++i) {
      rig.open(counts[i]);
      rig.attend();
      best[i] = 1e9;
      for (int repeat = 0; repeat < 3; ++repeat)
        best[i] = std::fmin(best[i], seconds([&] { rig.attend(); }));
      rig.close();
    }
    for (size_t i = 0; counts[i] <= 64; ++i) {
      const int32_t* twice = std::find(std::begin(counts), std::end(counts), 2 * counts[i]);
      char name[64];
      std::snprintf(name, sizeof name, "%d tokens on 4k", counts[i]);
      report({"tokens", name, "x of twice as many", Better::lower, 1.0, 1.0},
             best[i] / best[twice - counts], best[i]);
    }
  }
}

void mixed_cases(Limits& limits) {
  Setup setup;
  setup.sequences = 32;
  setup.batch = 480;
  Rig rig(setup);
  limits.clean_caches();
  for (int pair = 0; pair < pairs(); ++pair) {
    double alone = 0;
    for (const bool chunk : {true, false}) {
      rig.open_mixed(480, chunk, !chunk);
      rig.attend();
      alone += seconds([&] { rig.attend(); });
      rig.close();
    }
    rig.open_mixed(480);
    rig.attend();
    const double kernel = seconds([&] { rig.attend(); });
    rig.close();
    report({"mixed", "480 prefill + 31 decodes at 4k", "x of the sum of both alone", Better::lower,
            1.1, 1.0},
           kernel / alone, kernel);
  }
}

void interrupted_cases(Limits& limits) {
  for (const int32_t context : {1024, 4096}) {
    Setup setup;
    setup.context = context;
    Rig rig(setup);
    setup.n_threads = 1;
    Rig alone(setup);
    rig.open(1);
    alone.open(1);
    rig.attend_all();
    alone.attend_all();
    limits.clean_caches();
    char name[80];
    for (int pair = 0; pair < pairs(); ++pair) {
      double back_to_back = 0;
      for (int i = 0; i < 3; ++i) back_to_back = seconds([&] { rig.attend(); });
      limits.other_work(0.002);
      const double interrupted = seconds([&] { rig.attend(); });
      limits.other_work(0.002);
      const double single = seconds([&] { alone.attend(); });
      std::snprintf(name, sizeof name, "decode %dk after 2 ms of other work", context / 1024);
      report({"interrupted", name, "µs above back to back", Better::lower, 60, 20},
             1e6 * (interrupted - back_to_back), interrupted);
      std::snprintf(name, sizeof name, "decode %dk after other work, 2 threads", context / 1024);
      report({"interrupted", name, "x of one thread", Better::lower, 1.0, 0}, interrupted / single,
             interrupted);
    }
    rig.close();
    alone.close();
  }
}

}  // namespace bench
