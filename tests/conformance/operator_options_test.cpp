// Every operator with every option of attention, against double: within the bound, or refused by name. Dropout by the model's own
// Philox.
#include <gtest/gtest.h>

#include <algorithm>
#include <iostream>

#include "support/attention_cases.hpp"

namespace {

using support::AttentionOptions;

constexpr uint64_t seed = 20261130;

/// Each option alone and one pair in `thinned`, with an operator that has all of them.
void run(const char* op, uint32_t modes, const kvc_operator_desc& desc, const char* name,
         size_t thinned = 96) {
  const std::vector<support::AttentionOption>& list = support::attention_options();
  thinned *= support::one_pair_in();
  double worst = 0;
  for (size_t a = 0; a < list.size(); ++a) {
    for (size_t b = a; b < list.size(); ++b) {
      if (b != a && (3 * a + b) % thinned != 0) continue;
      AttentionOptions options;
      list[a].apply(options);
      if (b != a) list[b].apply(options);
      options.op = op;
      options.op_modes = modes;
      options.op_desc = desc;
      options.name = std::string(name) + ": " + list[a].name +
                     (b != a ? std::string(" + ") + list[b].name : "");
      worst = std::max(
          worst, support::run_attention(options, support::derived_seed(seed, a * list.size() + b)));
      if (::testing::Test::HasFailure()) {
        std::cout << "options: " << options.name << ", seed " << seed << std::endl;
        return;
      }
    }
  }
  std::cout << name << ": largest error " << worst << "e-6 of the largest |v|" << std::endl;
}

kvc_operator_desc with(void (*change)(kvc_operator_desc&)) {
  kvc_operator_desc desc = KVC_OPERATOR_DESC_INIT;
  change(desc);
  return desc;
}

TEST(OperatorOptions, Flash) {
  run("flash", KVC_MODE_ALL, KVC_OPERATOR_DESC_INIT, "flash");
  run("sdpa", KVC_MODE_ALL, with([](auto& d) { d.block_q = 1, d.block_k = 1; }), "small blocks");
}

/// What may be rounded to fewer bits stays within the bound of these, by kernels that round and by those that do not.
TEST(OperatorOptions, Rounded) {
  const auto rounded_to = [](uint32_t dtype) {
    kvc_operator_desc desc = KVC_OPERATOR_DESC_INIT;
    desc.runtime_dtype = dtype;
    return desc;
  };
  run("flash", KVC_MODE_ALL, rounded_to(KVC_BF16), "flash in bf16", 24);
  run("flash", KVC_MODE_ALL, rounded_to(KVC_F16), "flash in f16", 24);
  run("ring", KVC_MODE_ALL, rounded_to(KVC_BF16), "ring in bf16");
  run("vanilla", KVC_MODE_ALL, rounded_to(KVC_BF16), "vanilla in bf16");
  run("decode", KVC_MODE_AUTOREGRESSIVE, rounded_to(KVC_BF16), "decode in bf16");
}

TEST(OperatorOptions, Vanilla) {
  run("vanilla", KVC_MODE_ALL, KVC_OPERATOR_DESC_INIT, "vanilla");
  run("vanilla", KVC_MODE_ALL, with([](auto& d) { d.softmax_dtype = KVC_F64; }), "vanilla in f64");
}

TEST(OperatorOptions, Dropout) {
  run("vanilla", KVC_MODE_ALL, with([](auto& d) { d.dropout_prob = 0.25f; }), "dropout");
  run("vanilla", KVC_MODE_TRAIN,
      with([](auto& d) { d.dropout_prob = 0.9f, d.softmax_dtype = KVC_F64; }),
      "much dropout in f64");
}

TEST(OperatorOptions, Decode) {
  run("decode", KVC_MODE_AUTOREGRESSIVE, KVC_OPERATOR_DESC_INIT, "decode");
  run("autoregressive_decodeattn", KVC_MODE_AUTOREGRESSIVE, with([](auto& d) { d.block_k = 384; }),
      "decode in blocks");
}

TEST(OperatorOptions, Ring) {
  run("ring", KVC_MODE_ALL, with([](auto& d) { d.stretches = 3; }), "ring of 3");
  run("ring", KVC_MODE_ALL, with([](auto& d) { d.stretches = 7, d.flags = KVC_OPERATOR_NO_SCAN; }),
      "ring of 7 side by side");
}

}  // namespace
