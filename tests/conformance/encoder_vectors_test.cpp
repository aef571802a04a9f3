// Replays the behaviour vectors of encoder caches through the C ABI: the status of each call, what each token of the batch
// sees, and what each sequence holds afterwards.
#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "kvc/encoder.h"
#include "support/abi.hpp"
#include "support/host_view.hpp"

namespace {

using nlohmann::json;
using Numbers = std::vector<int32_t>;

constexpr int32_t n_layers = 2, n_kv_heads = 2, head_dim = 4;

json encoder_scripts() {
  const auto path = std::filesystem::path(__FILE__).parent_path() / "vectors" / "kinds.json";
  std::ifstream file(path);
  json scripts = json::array();
  for (const json& script : json::parse(file)) {
    const bool is_one = !script["wrapped"].get<bool>() && script["children"].size() == 1;
    if (is_one && script["children"][0]["kind"] == "encoder") scripts.push_back(script);
  }
  return scripts;
}

Numbers numbers(const json& step, const char* name) {
  return step.contains(name) ? step[name].get<Numbers>() : Numbers();
}

std::array<uint64_t, 2> digest(kvc_cache* cache) {
  std::array<uint64_t, 2> value{};
  EXPECT_EQ(kvc_state_digest(cache, value.data()), KVC_OK) << support::last_message();
  return value;
}

class Player {
 public:
  explicit Player(const json& fields) : device_(1) {
    const auto field = [&](const char* name) { return fields.value(name, 0); };
    kvc_cache_desc desc = support::cache_desc(n_layers, n_kv_heads, head_dim, head_dim);
    desc.kind = KVC_ENCODER;
    desc.max_sequences = field("max_sequences");
    desc.capacity = field("capacity");
    desc.max_batch = field("max_batch");
    if (fields.value("strict", false)) desc.flags |= KVC_CACHE_STRICT;
    kvc_encoder_desc encoder = KVC_ENCODER_DESC_INIT;
    encoder.inputs = field("inputs");
    EXPECT_EQ(kvc_cache_create(device_, &desc, &encoder, &cache_.handle), KVC_OK)
        << support::last_message();
  }

  kvc_cache* cache() { return cache_; }

  kvc_status perform(const json& step, int32_t* got) {
    const std::string op = step["op"];
    const auto number = [&](const char* name) {
      return step[name].is_null() ? KVC_SEQ_END : step[name].get<int32_t>();
    };
    const Numbers sequence = step["sequence"].is_array() ? numbers(step, "sequence") : Numbers();
    if (op == "begin") return begin(step);
    if (op == "fits") {
      const Numbers position = numbers(step, "position");
      const std::vector<uint32_t> flags = flags_of(step);
      return kvc_fits(cache_, size(position), position.data(), sequence.data(),
                      flags.empty() ? nullptr : flags.data());
    }
    if (op == "set_causal") return kvc_set_causal(cache_, 0, nullptr);
    if (op == "commit") return kvc_commit(cache_);
    if (op == "abort") return kvc_abort(cache_);
    if (op == "commit_prefix") {
      const Numbers keep = numbers(step, "keep");
      return kvc_commit_prefix(cache_, size(sequence), sequence.data(), keep.data());
    }
    if (op == "can_resume") return kvc_can_resume(cache_, number("sequence"), number("want"), got);
    if (op == "resume") return kvc_resume(cache_, number("sequence"), number("want"), got);
    if (op == "copy_prefix")
      return kvc_copy_prefix(cache_, number("src"), number("dst"), number("len"), got);
    if (op == "reorder") {
      const Numbers dst = numbers(step, "dst"), src = numbers(step, "src");
      return kvc_reorder(cache_, size(dst), dst.data(), src.data());
    }
    if (op == "remove")
      return kvc_remove(cache_, number("sequence"), number("begin"), number("end"));
    ADD_FAILURE() << "unknown op " << op;
    return KVC_E_INTERNAL;
  }

  /// What attention, the mask and the view of get() say that each token sees: [input, length].
  std::vector<std::pair<int32_t, int32_t>> seen(int32_t n_tokens) {
    kvc_tensor k{}, v{};
    EXPECT_EQ(kvc_get(cache_, n_layers - 1, &k, &v), KVC_OK) << support::last_message();
    const int64_t history = k.shape[0];
    std::vector<uint8_t> mask(static_cast<size_t>(n_tokens * history));
    if (history > 0) {
      kvc_tensor into = support::dense(mask.data(), KVC_BOOL, {n_tokens, history});
      EXPECT_EQ(kvc_mask(cache_, n_layers - 1, &into), KVC_OK) << support::last_message();
    }
    std::vector<float> q(static_cast<size_t>(n_tokens) * 4 * head_dim), out(q.size());
    std::vector<float> lse(static_cast<size_t>(n_tokens) * 4);
    const kvc_tensor queries = support::dense(q.data(), KVC_F32, {n_tokens, 4, head_dim});
    kvc_tensor results = support::dense(out.data(), KVC_F32, {n_tokens, 4, head_dim});
    kvc_tensor sums = support::dense(lse.data(), KVC_F32, {n_tokens, 4});
    EXPECT_EQ(support::attention(cache_, n_layers - 1, &queries, &results, &sums), KVC_OK)
        << support::last_message();
    std::vector<std::pair<int32_t, int32_t>> result;
    for (int32_t t = 0; t < n_tokens; ++t) {
      int32_t input = -1, length = 0;
      for (int64_t c = 0; c < history; ++c) {
        if (mask[static_cast<size_t>(t * history + c)] == 0) continue;
        const auto* value = static_cast<const float*>(support::on_host(v).data) + c * v.strides[0];
        const int32_t number = static_cast<int32_t>(value[0]) - 1;
        EXPECT_TRUE(length == 0 || number == input) << "two inputs in one row";
        input = number;
        ++length;
      }
      // All keys weigh the same for a query of zeros, and an input's values are its number + 1.
      EXPECT_EQ(out[static_cast<size_t>(t) * 4 * head_dim], static_cast<float>(input + 1));
      const float sum = lse[static_cast<size_t>(t) * 4];
      const double expected = length > 0 ? std::log(static_cast<double>(length)) : -HUGE_VAL;
      EXPECT_TRUE(sum == expected || std::fabs(sum - expected) < 1e-5) << sum << ", not " << expected;
      result.emplace_back(input, length);
    }
    return result;
  }

  void expect_held(int32_t sequence, const json& held) {
    int32_t position = -7, length = -7;
    EXPECT_EQ(kvc_encoder_query(cache_, sequence, &position, &length), KVC_OK);
    const kvc_sequence_info info = support::sequence_info(cache_, sequence);
    EXPECT_EQ(info.count, length);
    if (held.is_null()) {
      EXPECT_EQ(position, KVC_NONE);
      EXPECT_EQ(length, 0);
      return;
    }
    EXPECT_EQ(position, held[0].get<int32_t>());
    EXPECT_EQ(info.first, position);
    ASSERT_EQ(length, held[2].get<int32_t>());
    std::vector<float> values(static_cast<size_t>(length) * n_kv_heads * head_dim);
    for (int32_t layer = 0; layer < n_layers && length > 0; ++layer) {
      kvc_tensor v = support::dense(values.data(), KVC_F32, {length, n_kv_heads, head_dim});
      ASSERT_EQ(kvc_gather(cache_, layer, sequence, nullptr, &v), KVC_OK) << support::last_message();
      for (const float value : values)
        ASSERT_EQ(value, static_cast<float>(held[1].get<int32_t>() + 1));
    }
    kvc_run run{};
    int32_t n_runs = 0;
    EXPECT_EQ(kvc_runs(cache_, 0, sequence, 1, &run, &n_runs), KVC_OK);
    EXPECT_EQ(n_runs, length > 0 ? 1 : 0);
    EXPECT_EQ(run.length, length);
  }

 private:
  static int32_t size(const Numbers& list) { return static_cast<int32_t>(list.size()); }
  static std::vector<uint32_t> flags_of(const json& step) {
    return step.contains("flags") ? step["flags"].get<std::vector<uint32_t>>()
                                  : std::vector<uint32_t>();
  }

  /// Begins, shares, and puts the inputs that are not shared.
  kvc_status begin(const json& step) {
    const Numbers position = numbers(step, "position"), sequence = numbers(step, "sequence");
    const std::vector<uint32_t> flags = flags_of(step);
    const kvc_status status = kvc_begin(cache_, size(position), position.data(), sequence.data(),
                                        flags.empty() ? nullptr : flags.data(), 0, nullptr);
    if (status != KVC_OK) return status;
    std::set<int32_t> shared;
    for (const json& share : step.value("share", json::array())) {
      const auto to = share[0].get<int32_t>();
      const kvc_status made = kvc_encoder_share(cache_, to, share[1].get<int32_t>());
      EXPECT_EQ(support::name(made), share[2].get<std::string>()) << share;
      if (made == KVC_OK) shared.insert(to);
    }
    if (!step.value("put", true)) return status;
    const json inputs = step.value("inputs", json::array());
    for (const json& input : inputs) {
      const auto s = input[0].get<int32_t>(), length = input[2].get<int32_t>();
      if (shared.count(s) != 0) continue;
      std::vector<float> values(static_cast<size_t>(length) * n_kv_heads * head_dim,
                                static_cast<float>(input[1].get<int32_t>() + 1));
      const kvc_tensor kv = support::dense(values.data(), KVC_F32, {length, n_kv_heads, head_dim});
      for (int32_t layer = 0; layer < n_layers; ++layer) {
        const bool only = inputs.size() == 1 && layer == 1;
        EXPECT_EQ(
            only ? kvc_put(cache_, layer, &kv, &kv) : kvc_encoder_put(cache_, layer, s, &kv, &kv),
            KVC_OK)
            << support::last_message();
      }
    }
    return status;
  }

  support::Device device_;
  support::Cache cache_;
};

void check_step(Player& player, const json& step, const json& after, const json& next) {
  if (step["op"] == "checkpoint_take") return;  // a call of recurrent caches
  const auto before = digest(player.cache());
  int32_t got = -1;
  const kvc_status status = player.perform(step, &got);
  ASSERT_EQ(support::name(status), step["status"].get<std::string>()) << support::last_message();
  if (status != KVC_OK) {
    EXPECT_EQ(digest(player.cache()), before) << "a failed call changed something";
  } else if (step.contains("got")) {
    EXPECT_EQ(got, step["got"].get<int32_t>());
  }
  if (step.contains("seen")) {
    const json& rows = step["seen"][0];
    const auto seen = player.seen(static_cast<int32_t>(rows.size()));
    for (size_t t = 0; t < rows.size(); ++t) {
      EXPECT_EQ(seen[t].second, rows[t][1].get<int32_t>()) << "token " << t;
      // Of an input of length 0 nothing is seen that could tell its number.
      if (seen[t].second > 0) {
        EXPECT_EQ(seen[t].first, rows[t][0].get<int32_t>()) << "token " << t;
      }
    }
  }
  for (size_t s = 0; s < after.size(); ++s) {
    player.expect_held(static_cast<int32_t>(s), after[s]);
    EXPECT_EQ(support::sequence_info(player.cache(), static_cast<int32_t>(s)).next,
              next[s].get<int32_t>());
  }
  EXPECT_EQ(kvc_check(player.cache()), KVC_OK) << support::last_message();
}

TEST(EncoderVectors, CAbi) {
  const json scripts = encoder_scripts();
  size_t steps = 0;
  for (const json& script : scripts) {
    Player player(script["children"][0]);
    json after = json::array(), next = json::array();
    for (const json& step : script["steps"]) {
      SCOPED_TRACE(script["name"].get<std::string>() + ": " + step.dump());
      if (step.contains("after")) after = step["after"][0];
      if (step.contains("next")) next = step["next"];
      check_step(player, step, after, next);
      if (HasFailure()) return;
      ++steps;
    }
  }
  EXPECT_GE(scripts.size(), 60u);
  EXPECT_GT(steps, 500u);
}

}  // namespace
