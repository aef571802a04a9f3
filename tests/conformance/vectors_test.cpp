// Replays the behaviour vectors: scripts of calls with the status, the answer, and what is seen and held after each. Once with the
// oracles, which proves the oracles, and once through the C ABI, which proves the library. The scripts of causal caches are
// replayed through wrappers of one and of two children too.
#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>

#include "support/vectors.hpp"
#include "support/vectors_players.hpp"

namespace {

using nlohmann::json;
using players::Numbers;
using players::Player;

/// The scripts of causal caches in the form of those of all kinds. `times`: that many children, all alike.
json causal_scripts(bool wrapped, size_t times) {
  json scripts = json::array();
  for (json entry : support::vectors("causal.json")) {
    json child = entry["cache"];
    child["kind"] = "causal";
    json steps = json::array();
    for (json step : entry["steps"]) {
      if (step.contains("visible")) step["seen"] = json(times, step["visible"]);
      step["after"] = json(times, step["after"]);
      steps.push_back(step);
    }
    scripts.push_back({{"name", entry["name"]},
                       {"wrapped", wrapped},
                       {"children", json(times, child)},
                       {"steps", steps}});
  }
  return scripts;
}

players::ChildScript child_of(const json& fields, int32_t largest_value) {
  const auto field = [&](const char* name) { return fields.value(name, 0); };
  const std::string kind = fields["kind"];
  players::ChildScript child;
  child.cache = support::cache_desc(players::n_layers, 0, 0, 0);
  child.cache.max_sequences = field("max_sequences");
  child.cache.capacity = field("capacity");
  child.cache.max_batch = field("max_batch");
  child.cache.cells = field("cells");
  if (fields.value("strict", false)) child.cache.flags |= KVC_CACHE_STRICT;
  child.rope = fields.value("rope", true);
  if (kind == "causal") {
    child.cache.n_kv_heads = 1;
    child.cache.head_dim_k = 4;
    child.cache.head_dim_v = largest_value + 1;  // each value has a dimension of its own
    child.causal = support::causal_desc();
    child.causal.reach = field("reach");
    child.causal.memory = field("memory");
    child.causal.chunk = field("chunk");
    child.causal.keep_first = field("keep_first");
  } else if (kind == "encoder") {
    child.cache.kind = KVC_ENCODER;
    child.cache.n_kv_heads = 2;
    child.cache.head_dim_k = child.cache.head_dim_v = 4;
    child.encoder = KVC_ENCODER_DESC_INIT;
    child.encoder.inputs = field("inputs");
  } else {
    child.cache.kind = KVC_RECURRENT;
    child.cache.dtype_k = child.cache.dtype_v = 0;
    child.recurrent = KVC_RECURRENT_DESC_INIT;
    if (fields.value("approximate", false)) child.recurrent.flags = KVC_RECURRENT_APPROXIMATE;
    child.recurrent.state_size = 3;
    child.recurrent.conv_dim = field("conv_dim");
    child.recurrent.conv_channels = field("conv_dim") > 0 ? 2 : 0;
    child.recurrent.checkpoints = field("checkpoints");
    child.recurrent.checkpoint_interval = field("checkpoint_interval");
    child.recurrent.checkpoint_min_pos = field("checkpoint_min_pos");
    child.recurrent.draft_states = field("draft_states");
  }
  return child;
}

players::Script script_of(const json& entry) {
  int32_t largest = 0;
  for (const json& step : entry["steps"])
    for (const json& value : step.value("value", json::array()))
      largest = std::max(largest, value.get<int32_t>());
  players::Script script;
  script.wrapped = entry["wrapped"];
  for (const json& child : entry["children"]) script.children.push_back(child_of(child, largest));
  return script;
}

Numbers numbers(const json& step, const char* name) {
  return step.contains(name) ? step[name].get<Numbers>() : Numbers();
}

players::Pass pass_of(const json& step) {
  players::Pass pass{
      numbers(step, "position"), numbers(step, "sequence"), numbers(step, "value"), {}, {}};
  if (step.contains("flags")) pass.flags = step["flags"].get<std::vector<uint32_t>>();
  for (const json& input : step.value("inputs", json::array()))
    pass.inputs.push_back({input[0], input[1], input[2]});
  return pass;
}

/// Begins, shares, and puts what the layers put.
kvc_status begin(Player& player, const json& step) {
  const players::Pass pass = pass_of(step);
  const kvc_status status = player.begin(pass);
  if (status != KVC_OK) return status;
  std::set<int32_t> shared;
  for (const json& share : step.value("share", json::array())) {
    const kvc_status made = player.share(share[0], share[1]);
    EXPECT_EQ(support::name(made), share[2].get<std::string>()) << share;
    if (made == KVC_OK) shared.insert(share[0].get<int32_t>());
  }
  if (!step.value("put", true)) return status;
  for (const auto& child : player.children) child->put(pass, shared);
  return status;
}

kvc_status perform(Player& player, const json& step, int32_t* got) {
  const std::string op = step["op"];
  const auto number = [&](const char* name) {
    return step[name].is_null() ? KVC_SEQ_END : step[name].get<int32_t>();
  };
  if (op == "begin") return begin(player, step);
  if (op == "fits") return player.fits(pass_of(step));
  if (op == "set_causal") return player.set_causal(numbers(step, "except"));
  if (op == "commit") return player.commit();
  if (op == "commit_prefix")
    return player.commit_prefix(numbers(step, "sequence"), numbers(step, "keep"));
  if (op == "abort") return player.abort();
  if (op == "can_resume") return player.can_resume(number("sequence"), number("want"), got);
  if (op == "resume") return player.resume(number("sequence"), number("want"), got);
  if (op == "copy_prefix")
    return player.copy_prefix(number("src"), number("dst"), number("len"), got);
  if (op == "reorder") return player.reorder(numbers(step, "dst"), numbers(step, "src"));
  if (op == "remove") return player.remove(number("sequence"), number("begin"), number("end"));
  if (op == "checkpoint_take") return player.checkpoint_take(number("sequence"));
  ADD_FAILURE() << "unknown op " << op;
  return KVC_E_INTERNAL;
}

/// Which value a token of zeros would have had, and which input one without a position was, cannot be read.
json tokens_in_order(json pairs) {
  for (json& pair : pairs)
    if (pair[1] < 0) pair[1] = -1;
  std::sort(pairs.begin(), pairs.end());
  return pairs;
}

json comparable_seen(const std::string& kind, json rows) {
  for (json& row : rows) {
    if (kind == "causal") row = tokens_in_order(row);
    if (kind == "encoder" && row[1] == 0) row[0] = -1;
  }
  return rows;
}

/// `labels`: whether a checkpoint is approximate can be read.
json comparable_held(const std::string& kind, json held, bool labels) {
  if (kind == "causal") return tokens_in_order(held);
  if (kind == "encoder" && !held.is_null() && held[2] == 0) held[1] = -1;
  if (kind == "recurrent" && !labels)
    for (json& checkpoint : held[3]) checkpoint[2] = 0;
  return held;
}

struct Replay {
  std::unique_ptr<Player> (*make)(const players::Script&);
  bool labels;
  size_t steps = 0;

  void check_step(Player& player, const json& children, const json& step, const json& after,
                  const json& next) const {
    const support::Digest before = player.digest();
    int32_t got = -1;
    const kvc_status status = perform(player, step, &got);
    ASSERT_EQ(support::name(status), step["status"].get<std::string>()) << support::last_message();
    if (status != KVC_OK) {
      ASSERT_EQ(player.digest(), before) << "a failed call changed something";
    } else if (step.contains("got")) {
      ASSERT_EQ(got, step["got"].get<int32_t>());
    }
    for (size_t c = 0; c < children.size(); ++c) {
      const std::string kind = children[c]["kind"];
      if (step.contains("seen")) {
        ASSERT_EQ(comparable_seen(kind, player.children[c]->seen()),
                  comparable_seen(kind, step["seen"][c]))
            << "seen in child " << c;
      }
      for (size_t s = 0; s < after[c].size(); ++s)
        ASSERT_EQ(comparable_held(kind, player.children[c]->held(static_cast<int32_t>(s)), labels),
                  comparable_held(kind, after[c][s], labels))
            << "child " << c << " sequence " << s;
    }
    for (size_t s = 0; s < next.size(); ++s)
      ASSERT_EQ(player.next(static_cast<int32_t>(s)), next[s].get<int32_t>()) << "sequence " << s;
  }

  void operator()(const json& scripts) {
    for (const json& entry : scripts) {
      const std::unique_ptr<Player> player = make(script_of(entry));
      json after(entry["children"].size(), json::array()), next = json::array();
      for (size_t i = 0; i < entry["steps"].size(); ++i) {
        const json& step = entry["steps"][i];
        SCOPED_TRACE(entry["name"].get<std::string>() + " step " + std::to_string(i) + ": " +
                     step.dump());
        if (step.contains("after")) after = step["after"];
        if (step.contains("next")) next = step["next"];
        check_step(*player, entry["children"], step, after, next);
        if (::testing::Test::HasFailure()) return;
        ++steps;
      }
    }
  }
};

void replay_all(Replay replay) {
  replay(support::vectors("kinds.json"));
  replay(causal_scripts(false, 1));
  replay(causal_scripts(true, 1));
  replay(causal_scripts(true, 2));
  EXPECT_GT(replay.steps, 15000u) << "the vectors are there, but hold next to nothing";
}

TEST(Vectors, Oracles) { replay_all({players::make_oracle_player, true}); }
TEST(Vectors, CAbi) { replay_all({players::make_abi_player, false}); }

}  // namespace
