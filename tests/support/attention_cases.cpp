#include "attention_cases.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>

namespace support {
namespace {

std::vector<AttentionOption> options_of_attention() {
  return {
      {"reach", [](auto& o) { o.reach = 20; }},
      {"reach 1", [](auto& o) { o.reach = 1; }},
      {"memory", [](auto& o) { o.reach = o.reach ? o.reach : 24, o.memory = 60; }},
      {"chunk", [](auto& o) { o.chunk = 24; }},
      {"keep_first", [](auto& o) { o.keep_first = 3, o.reach = o.reach ? o.reach : 16; }},
      {"except", [](auto& o) { o.except = true; }},
      {"types", [](auto& o) { o.types = true; }},
      {"scale", [](auto& o) { o.scale = 0.25f; }},
      {"softcap", [](auto& o) { o.softcap = 1.5f; }},
      {"alibi", [](auto& o) { o.slopes = true; }},
      {"sinks", [](auto& o) { o.sinks = true; }},
      {"lse", [](auto& o) { o.lse = true; }},
      {"grouped", [](auto& o) { o.n_q_heads = 4 * o.n_kv_heads; }},
      {"groups of 3", [](auto& o) { o.n_q_heads = 3 * o.n_kv_heads; }},
      {"multi-query", [](auto& o) { o.n_kv_heads = 1, o.n_q_heads = 5; }},
      {"dk 80 dv 48", [](auto& o) { o.head_dim_k = 80, o.head_dim_v = 48; }},
      {"dk 33 dv 7", [](auto& o) { o.head_dim_k = 33, o.head_dim_v = 7; }},
      {"k f16", [](auto& o) { o.dtype_k = KVC_F16; }},
      {"v f16", [](auto& o) { o.dtype_v = KVC_F16; }},
      {"k bf16", [](auto& o) { o.dtype_k = KVC_BF16; }},
      {"v bf16", [](auto& o) { o.dtype_v = KVC_BF16; }},
      {"put f16", [](auto& o) { o.dtype_in = KVC_F16; }},
      {"put bf16", [](auto& o) { o.dtype_in = KVC_BF16; }},
      {"q f16", [](auto& o) { o.dtype_q = KVC_F16; }},
      {"q bf16", [](auto& o) { o.dtype_q = KVC_BF16; }},
      {"out f16", [](auto& o) { o.dtype_out = KVC_F16; }},
      {"out bf16", [](auto& o) { o.dtype_out = KVC_BF16; }},
      {"shifts", [](auto& o) { o.shifts = o.rope = true; }},
      {"shifts of halves", [](auto& o) { o.shifts = o.rope = o.halves = true; }},
      {"shared", [](auto& o) { o.shared = true; }},
      {"gaps", [](auto& o) { o.gaps = true; }},
      {"mixed", [](auto& o) { o.mixed = true; }},
      {"strided", [](auto& o) { o.strided = true; }},
      {"padding", [](auto& o) { o.padding = 32; }},
      {"bias", [](auto& o) { o.bias = true; }},
      {"mask", [](auto& o) { o.mask = true; }},
      {"weights", [](auto& o) { o.weights = true; }},
      {"hidden NaN", [](auto& o) { o.hidden_nan = true; }},
  };
}

/// A batch of `n` tokens, of one sequence or of several in any order.
void open_batch(AttentionRig& rig, int32_t n) {
  const bool several = rig.options.mixed || rig.options.shared;
  std::vector<int32_t> next, position, sequence;
  std::vector<uint32_t> flags;
  uint32_t type[3] = {}, newest = 0;  // of each sequence's last token
  for (const model::Sequence& each : rig.oracle.sequences) next.push_back(each.next);
  for (int32_t i = 0; i < n; ++i) {
    const int32_t s = several ? rig.random.below(3) : 0;
    int32_t& at = next[static_cast<size_t>(s)];
    if (rig.options.gaps) at += rig.random.below(3);
    position.push_back(at++);
    sequence.push_back(s);
    const bool sees_later = rig.options.except && rig.random.chance(0.3);
    flags.push_back(sees_later ? uint32_t{KVC_TOKEN_SEES_LATER} : 0u);
    if (rig.options.types && rig.random.chance(0.1))
      type[s] = rig.random.chance(0.3) ? 0 : ++newest;
    flags.back() |= type[s] << KVC_TOKEN_TYPE_SHIFT;
  }
  rig.open(position, sequence, flags);
}

}  // namespace

const std::vector<AttentionOption>& attention_options() {
  static const std::vector<AttentionOption> list = [] {
    std::vector<AttentionOption> all = options_of_attention();
    for (const StorageOption& each : storage_options()) all.push_back({each.name, each.apply});
    return all;
  }();
  return list;
}

double run_attention(AttentionOptions options, uint64_t seed) {
  if (options.shifts && options.reach > 0) options.memory = options.reach + 40;  // room to shift
  AttentionRig rig(shared_device(), options, 400, 100, seed);
  double worst = 0;
  const auto pass = [&](int32_t n) {
    open_batch(rig, n);
    worst = std::max(worst, rig.attend_and_compare());
    if (n != 3) rig.commit();  // the last one is read by the textbook
  };
  pass(40);
  if (options.shared) rig.copy(0, 1);
  if (options.shifts) rig.remove(0, 30, 33);
  pass(1);
  if (options.shared) rig.copy(1, 2);
  if (options.shifts) rig.remove(0, 25, 26);
  pass(5);
  pass(17);
  pass(100);
  pass(1);
  pass(3);
  if (!options.hidden_nan) rig.compare_textbook();  // which knows no bias
  EXPECT_EQ(kvc_check(rig.cache), KVC_OK) << last_message();
  return worst;
}

size_t one_pair_in() {
#ifdef KVC_SANITIZED
  constexpr size_t usual = 4;
#else
  constexpr size_t usual = 1;
#endif
  const char* chosen = std::getenv("KVC_ONE_PAIR_IN");
  return chosen ? std::max<size_t>(std::strtoul(chosen, nullptr, 10), 1) : usual;
}

}  // namespace support
