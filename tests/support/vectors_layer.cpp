#include "vectors_players.hpp"

/// The recurrence that the vectors' recurrent layers compute.
namespace players {

Memory Memory::then(int32_t value) const {
  Memory result{after_token(h, value), columns};
  if (columns.empty()) return result;
  result.columns.erase(result.columns.begin());
  result.columns.push_back(value + 1);
  return result;
}

LayerRows layer_rows(int32_t sequence, const Memory& before, const Numbers& values, int32_t n_rows) {
  LayerRows result{sequence, before, {}};
  Memory now = before;
  for (size_t i = 0; i < values.size(); ++i) {
    now = now.then(values[i]);
    if (static_cast<int32_t>(values.size() - i) <= n_rows) result.rows.push_back(now);
  }
  return result;
}

json described(const std::vector<LayerRows>& layer) {
  json result = json::array();
  for (const LayerRows& each : layer) {
    json rows = json::array();
    for (const Memory& row : each.rows) rows.push_back({row.h, row.columns});
    result.push_back({each.sequence, json::array({each.before.h, each.before.columns}), rows});
  }
  return result;
}

}  // namespace players
