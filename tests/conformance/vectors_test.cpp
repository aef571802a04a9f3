// Replays ../shared behaviour vectors: scripts of calls with the status, the answer and the visible
// tokens of each. Once with the oracle, which proves the oracle, and once through the C ABI, which
// proves the library.
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <nlohmann/json.hpp>

#include "support/vectors_players.hpp"

namespace {

using nlohmann::json;
using players::Player;

const json& scripts() {
  static const json all = [] {
    const auto path = std::filesystem::path(__FILE__).parent_path() / "vectors" / "causal.json";
    std::ifstream file(path);
    return json::parse(file);
  }();
  return all;
}

players::Script script_of(const json& entry) {
  const json& fields = entry["cache"];
  players::Script script;
  script.cache = support::cache_desc(2, 1, 4, 0);
  script.causal = support::causal_desc();
  const auto field = [&](const char* name) { return fields.value(name, 0); };
  script.cache.max_sequences = field("max_sequences");
  script.cache.capacity = field("capacity");
  script.cache.max_batch = field("max_batch");
  script.cache.cells = field("cells");
  if (fields.value("strict", false)) script.cache.flags |= KVC_CACHE_STRICT;
  script.causal.reach = field("reach");
  script.causal.memory = field("memory");
  script.causal.chunk = field("chunk");
  script.causal.keep_first = field("keep_first");
  script.rope = fields.value("rope", true);
  int32_t largest = 0;
  for (const json& step : entry["steps"])
    if (step.contains("value"))
      for (const json& value : step["value"]) largest = std::max(largest, value.get<int32_t>());
  script.cache.head_dim_v = largest + 1;
  return script;
}

using Numbers = std::vector<int32_t>;

Numbers numbers(const json& step, const char* name) {
  return step.contains(name) ? step[name].get<Numbers>() : Numbers();
}

kvc_status perform(Player& player, const json& step, int32_t* got) {
  const std::string op = step["op"];
  const auto number = [&](const char* name) {
    return step[name].is_null() ? KVC_SEQ_END : step[name].get<int32_t>();
  };
  if (op == "begin")
    return player.begin(numbers(step, "position"), numbers(step, "sequence"),
                        numbers(step, "value"));
  if (op == "fits") return player.fits(numbers(step, "position"), numbers(step, "sequence"));
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
  ADD_FAILURE() << "unknown op " << op;
  return KVC_E_INTERNAL;
}

players::Held held_of(const json& pairs) {
  players::Held held;
  for (const json& pair : pairs) held.insert({pair[0].get<int32_t>(), pair[1].get<int32_t>()});
  return held;
}

void check_step(Player& player, const json& step) {
  int32_t got = -1;
  const kvc_status status = perform(player, step, &got);
  ASSERT_EQ(support::name(status), step["status"].get<std::string>());
  if (status == KVC_OK && step.contains("got")) {
    ASSERT_EQ(got, step["got"].get<int32_t>());
  }
  if (step.contains("visible")) {
    const json& rows = step["visible"];
    for (size_t row = 0; row < rows.size(); ++row)
      ASSERT_EQ(player.visible(static_cast<int32_t>(row)), held_of(rows[row]))
          << "batch token " << row;
  }
  for (size_t s = 0; s < step["after"].size(); ++s) {
    ASSERT_EQ(player.held(static_cast<int32_t>(s)), held_of(step["after"][s])) << "sequence " << s;
    ASSERT_EQ(player.next(static_cast<int32_t>(s)), step["next"][s].get<int32_t>())
        << "sequence " << s;
  }
}

void replay(std::unique_ptr<Player> (*make)(const players::Script&)) {
  size_t steps = 0;
  for (const json& entry : scripts()) {
    const std::unique_ptr<Player> player = make(script_of(entry));
    for (size_t i = 0; i < entry["steps"].size(); ++i) {
      SCOPED_TRACE(entry["name"].get<std::string>() + " step " + std::to_string(i) + ": " +
                   entry["steps"][i].dump());
      check_step(*player, entry["steps"][i]);
      if (::testing::Test::HasFailure()) return;
      ++steps;
    }
  }
  EXPECT_GT(scripts().size(), 100u);
  EXPECT_GT(steps, scripts().size() * 10) << "the vectors are there, but hold next to nothing";
}

TEST(Vectors, Oracle) { replay(players::make_oracle_player); }

#ifndef KVC_ORACLE_ALONE
TEST(Vectors, CAbi) { replay(players::make_abi_player); }
#endif

}  // namespace
