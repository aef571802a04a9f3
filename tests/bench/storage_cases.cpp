#include <kvc/storage.h>

#include <string>
#include <vector>

#include "cases.hpp"
#include "measure.hpp"
#include "rig.hpp"

/// What storage types cost beside f16, call after call.
namespace bench {
namespace {

struct Type {
  const char* name;
  uint32_t dtype;
  bool rotate;
  double decode_must, decode_go_for;  // x of f16; 0: no target
};

constexpr Type types[] = {
    {"f32", KVC_F32, false, 0, 0},
    {"bf16", KVC_BF16, false, 0, 0},
    {"f8_e4m3", KVC_F8_E4M3, false, 0.7, 0.58},
    {"f8_e5m2", KVC_F8_E5M2, false, 0.7, 0.58},
    {"q8_0", KVC_Q8_0, false, 0.7, 0.58},
    {"int8", KVC_INT8, false, 0.7, 0.58},
    {"q4_0", KVC_Q4_0, false, 0.6, 0.4},
    {"nf4", KVC_NF4, false, 0.6, 0.4},
    {"q8_0 rotated", KVC_Q8_0, true, 0.7, 0.58},
    {"int8 rotated", KVC_INT8, true, 0.7, 0.58},
    {"q4_0 rotated", KVC_Q4_0, true, 0.6, 0.4},
    {"nf4 rotated", KVC_NF4, true, 0.6, 0.4},
};

Setup stored_as(const Type& type, Setup setup) {
  setup.dtype = type.dtype;
  setup.rotate = type.rotate;
  return setup;
}

double timed(Rig& rig) {
  rig.attend();  // threads are awake then
  return seconds([&] { rig.attend(); });
}

void decode(Limits& limits) {
  Setup setup;
  setup.context = 16384;
  Rig f16(setup);
  f16.open(1);
  for (const Type& type : types) {
    if (type.decode_must == 0) continue;
    Rig rig(stored_as(type, setup));
    rig.open(1);
    f16.attend_all();
    rig.attend_all();
    limits.clean_caches();
    for (int pair = 0; pair < pairs(); ++pair) {
      const double base = timed(f16), kernel = timed(rig);
      report({"storage", std::string("decode ") + type.name + ", 16k", "x of f16", Better::lower,
              type.decode_must, type.decode_go_for},
             kernel / base, kernel);
    }
    rig.close();
  }
  f16.close();
}

/// A prompt of 512 tokens on 4096, and the put of these tokens.
void prefill(Limits& limits) {
  constexpr int32_t tokens = 512;
  Setup setup;
  const int32_t n_parts = 2 * setup.n_kv_heads;
  setup.context = 4096 - tokens;
  setup.batch = tokens;
  setup.layers = 4;
  Rig f16(setup);
  f16.open(tokens);
  for (const Type& type : types) {
    Rig rig(stored_as(type, setup));
    rig.open(tokens);
    f16.attend_all();
    rig.attend_all();
    limits.clean_caches();
    // What a put writes, K and V head by head.
    const auto written = static_cast<size_t>(rig.bytes_of_token() * tokens / n_parts);
    const Blocks room(static_cast<size_t>(setup.layers * n_parts), written);
    for (int pair = 0; pair < pairs(); ++pair) {
      const double base = timed(f16), kernel = timed(rig);
      std::vector<double> puts, writes;
      for (int32_t i = 0; i < 2 * setup.layers; ++i) {
        const auto first = room.at.begin() + i % setup.layers * n_parts;
        writes.push_back(limits.write_seconds({first, first + n_parts}, written));
        puts.push_back(seconds([&] { rig.put_layer(i % setup.layers); }));
      }
      const double put = median(puts);
      report({"storage", std::string("prefill 512 on 4096, ") + type.name, "x of f16",
              Better::lower, 1.1, 1.0},
             kernel / base, kernel);
      report(
          {"storage", std::string("put 512, ") + type.name, "% of its prefill", Better::lower, 5, 0},
          100 * put / kernel, put);
      report({"storage", std::string("put 512, ") + type.name + ", beside writing its bytes",
              "% of write rate", Better::higher, 0, 0},
             100 * median(writes) / put, put);
    }
    rig.close();
  }
  f16.close();
}

}  // namespace

void storage_cases(Limits& limits) {
  decode(limits);
  prefill(limits);
}

}  // namespace bench
