// Replays the vectors of lightning caches: scripts of calls with the status, the outputs, and what each sequence's states and
// checkpoints are after each, computed term by term in double; and the families of slopes.
#include <gtest/gtest.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>

#include "support/lightning_rig.hpp"
#include "support/vectors.hpp"

namespace {

using nlohmann::json;
using Numbers = std::vector<int32_t>;

const json& vectors() {
  static const json all = support::vectors("lightning.json");
  return all;
}

void flatten(const json& value, std::vector<double>& to) {
  if (!value.is_array()) return to.push_back(value.get<double>());
  for (const json& part : value) flatten(part, to);
}

std::vector<double> numbers(const json& value) {
  std::vector<double> all;
  flatten(value, all);
  return all;
}

/// Numbers of a script have eight digits and are sums of a few products of numbers below 1.
void expect_near(const std::vector<float>& got, const json& wanted, const char* what) {
  const std::vector<double> all = numbers(wanted);
  ASSERT_EQ(got.size(), all.size()) << what;
  for (size_t i = 0; i < all.size(); ++i)
    ASSERT_NEAR(static_cast<double>(got[i]), all[i], 1e-5 * std::max(1.0, std::fabs(all[i])))
        << what << " " << i;
}

class Player {
 public:
  Player(kvc_device* device, const json& fields) : rig_(device) {
    const auto field = [&](const char* name) { return fields[name].get<int32_t>(); };
    rig_.desc.n_layers = static_cast<int32_t>(fields["slope"].size());
    rig_.desc.n_kv_heads = field("heads");
    rig_.desc.head_dim_k = field("head_dim_k");
    rig_.desc.head_dim_v = field("head_dim_v");
    rig_.desc.max_sequences = field("max_sequences");
    rig_.lightning.checkpoints = field("checkpoints");
    rig_.lightning.checkpoint_interval = field("checkpoint_interval");
    rig_.lightning.checkpoint_min_pos = field("checkpoint_min_pos");
    rig_.lightning.draft_states = field("draft_states");
    rig_.n_q_heads = field("q_heads");
    for (const double slope : numbers(fields["slope"]))
      rig_.slopes.push_back(static_cast<float>(slope));
    rig_.create();
    kvc_attention_desc constants = KVC_ATTENTION_DESC_INIT;
    constants.n_q_heads = rig_.n_q_heads;
    constants.scale = fields.value("scale", 0.0f);
    EXPECT_EQ(kvc_bind_attention(rig_.cache, 0, rig_.desc.n_layers, &constants, nullptr, nullptr), KVC_OK)
        << support::last_message();
  }

  void play(const json& step) {
    const support::Digest before = support::digest(rig_.cache);
    const kvc_status status = call(step);
    ASSERT_EQ(support::name(status), step["status"].get<std::string>()) << support::last_message();
    if (status != KVC_OK) {
      ASSERT_EQ(support::digest(rig_.cache), before);
    }
    ASSERT_EQ(kvc_check(rig_.cache), KVC_OK) << support::last_message();
    for (int32_t s = 0; s < rig_.desc.max_sequences; ++s) {
      const auto index = static_cast<size_t>(s);
      ASSERT_EQ(rig_.next(s), step["next"][index].get<int32_t>()) << "sequence " << s;
      ASSERT_EQ(rig_.checkpoints(s), step["checkpoints"][index].get<Numbers>()) << "sequence " << s;
      if (!step.contains("state")) continue;
      for (int32_t layer = 0; layer < rig_.desc.n_layers; ++layer)
        expect_near(rig_.state(layer, s), step["state"][index][static_cast<size_t>(layer)], "state");
    }
  }

 private:
  kvc_status begin(const json& step) {
    std::vector<support::LightningRig::Token> tokens;
    for (size_t i = 0; i < step["position"].size(); ++i) {
      const bool masked = step.contains("masked") && step["masked"][i].get<int32_t>() != 0;
      tokens.push_back({step["sequence"][i], step["position"][i], masked});
    }
    const kvc_status status = rig_.begin(tokens, step["salt"].get<uint64_t>());
    for (int32_t layer = 0; status == KVC_OK && layer < rig_.desc.n_layers; ++layer) {
      EXPECT_EQ(rig_.put_attention(layer), KVC_OK) << support::last_message();
      expect_near(rig_.out(), step["out"][static_cast<size_t>(layer)], "out of put_attention");
      EXPECT_EQ(rig_.attention(layer), KVC_OK) << support::last_message();
      expect_near(rig_.out(), step["out"][static_cast<size_t>(layer)], "out of attention");
    }
    return status;
  }

  kvc_status call(const json& step) {
    const auto field = [&](const char* name) { return step[name].get<int32_t>(); };
    const std::string op = step["op"];
    kvc_cache* cache = rig_.cache;
    int32_t got = -1;
    kvc_status status = KVC_OK;
    if (op == "begin") return begin(step);
    if (op == "commit") return kvc_commit(cache);
    if (op == "abort") return kvc_abort(cache);
    if (op == "checkpoint_take") return kvc_checkpoint_take(cache, field("sequence"));
    if (op == "commit_prefix") {
      const Numbers sequence = step["sequence"], keep = step["keep"];
      return kvc_commit_prefix(cache, static_cast<int32_t>(sequence.size()), sequence.data(),
                               keep.data());
    }
    if (op == "resume") {
      status = kvc_resume(cache, field("sequence"), field("want"), &got);
    } else if (op == "can_resume") {
      status = kvc_can_resume(cache, field("sequence"), field("want"), &got);
    } else if (op == "copy_prefix") {
      status = kvc_copy_prefix(cache, field("src"), field("dst"), field("len"), &got);
    } else {
      ADD_FAILURE() << "the script has an unknown call: " << op;
    }
    if (status == KVC_OK) {
      EXPECT_EQ(got, field("got")) << op;
    }
    return status;
  }

  support::LightningRig rig_;
};

TEST(LightningVectors, Scripts) {
  const support::Device device(2);
  size_t n = 0;
  for (const json& script : vectors()["lightning"]) {
    SCOPED_TRACE(script["name"].get<std::string>());
    Player player(device, script["cache"]);
    if (HasFatalFailure()) return;
    for (size_t i = 0; i < script["steps"].size(); ++i, ++n) {
      SCOPED_TRACE("step " + std::to_string(i));
      player.play(script["steps"][i]);
      if (HasFailure()) return;
    }
  }
  EXPECT_EQ(n, 196u);
}

TEST(LightningVectors, Slopes) {
  const std::map<std::string, uint32_t> families = {{"alibi", KVC_SLOPES_ALIBI},
                                                    {"lightning2", KVC_SLOPES_LIGHTNING2},
                                                    {"minimax", KVC_SLOPES_MINIMAX},
                                                    {"linear", KVC_SLOPES_LINEAR}};
  ASSERT_EQ(vectors()["slopes"].size(), 10u);
  for (const json& fields : vectors()["slopes"]) {
    const int32_t heads = fields["heads"];
    std::vector<float> slopes(static_cast<size_t>(heads));
    ASSERT_EQ(kvc_slopes(families.at(fields["family"]), heads, fields["layer"], fields["layers"],
                         slopes.data()),
              KVC_OK)
        << support::last_message();
    const std::string wanted = fields["slopes"];
    for (size_t i = 0; i < slopes.size(); ++i)
      EXPECT_EQ(std::bit_cast<uint32_t>(slopes[i]), std::stoul(wanted.substr(8 * i, 8), nullptr, 16))
          << fields["family"] << " of " << heads << " heads, head " << i;
  }
}

}  // namespace
