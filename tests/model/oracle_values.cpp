#include <cmath>
#include <map>
#include <set>

#include "oracle.hpp"

/// What the tokens of the oracle hold, and how their keys turn.
namespace model {

void turn(const Rope& rope, double positions, double* vector) {
  for (int32_t i = 0; i < rope.n_dims / 2; ++i) {
    const double theta = positions * rope.frequency[static_cast<size_t>(i)];
    double& a = vector[rope.first_dim + (rope.halves ? i : 2 * i)];
    double& b = vector[rope.first_dim + (rope.halves ? i + rope.n_dims / 2 : 2 * i + 1)];
    const double turned = a * std::cos(theta) - b * std::sin(theta);
    b = a * std::sin(theta) + b * std::cos(theta);
    a = turned;
  }
}

std::vector<double> Oracle::key(int32_t layer, const Token& token) const {
  const auto row = static_cast<size_t>(cache.n_kv_heads * cache.head_dim_k);
  const float* stored = contents[static_cast<size_t>(token.content)].k.data() +
                        static_cast<size_t>(layer) * row;
  std::vector<double> result(stored, stored + row);
  if (const int32_t offset = pending_rotation(token); offset != 0)
    for (int32_t head = 0; head < cache.n_kv_heads; ++head)
      turn(rope[static_cast<size_t>(layer)], offset, result.data() + head * cache.head_dim_k);
  return result;
}

std::vector<double> Oracle::value(int32_t layer, const Token& token) const {
  const auto row = static_cast<size_t>(cache.n_kv_heads * cache.head_dim_v);
  const float* stored = contents[static_cast<size_t>(token.content)].v.data() +
                        static_cast<size_t>(layer) * row;
  return std::vector<double>(stored, stored + row);
}

std::vector<Oracle::Debt> Oracle::debts() const {
  std::vector<Debt> result;
  for (int32_t s = 0; s < cache.max_sequences; ++s)
    for (const Token& token : sequences[static_cast<size_t>(s)].tokens) {
      bool seen = false;
      for (size_t i = 0; i < pass.position.size(); ++i)
        seen = seen || (pass.sequence[i] == s && sees(static_cast<int32_t>(i), token.position));
      if (seen && pending_rotation(token) != 0) result.push_back({s, token.position});
    }
  return result;
}

/// Who holds each content, hidden ones included: an open pass may still be aborted.
std::map<int32_t, std::set<int32_t>> Oracle::holders() const {
  std::map<int32_t, std::set<int32_t>> result;
  for (int32_t s = 0; s < cache.max_sequences; ++s) {
    for (const Token& token : sequences[static_cast<size_t>(s)].tokens)
      result[token.content].insert(s);
    if (pass.before.empty()) continue;
    for (const Token& token : pass.before[static_cast<size_t>(s)].tokens)
      result[token.content].insert(s);
  }
  return result;
}

int64_t Oracle::free_now() const { return pool_ - static_cast<int64_t>(holders().size()); }

kvc_status Oracle::get(int32_t layer) const {
  if (const kvc_status status = needs_put(layer); status != KVC_OK || pass.reserve) return status;
  std::map<int32_t, std::set<int32_t>> held_by = holders();
  int64_t free = pool_ - static_cast<int64_t>(held_by.size());
  for (const Debt& debt : debts())
    for (const Token& token : sequences[static_cast<size_t>(debt.sequence)].tokens)
      if (token.position == debt.position && held_by[token.content].size() > 1) {
        held_by[token.content].erase(debt.sequence);
        --free;
      }
  return free < 0 ? KVC_E_CACHE_FULL : KVC_OK;
}

void Oracle::pay(int32_t s, int32_t position, const std::vector<float>& k) {
  const auto rewritten = static_cast<int32_t>(contents.size());
  int32_t old = -1;
  for (const Token& token : sequences[static_cast<size_t>(s)].tokens)
    if (token.position == position) old = token.content;
  if (old < 0) return;
  Content content = contents[static_cast<size_t>(old)];
  content.rotated_for = position;
  content.k = k;
  contents.push_back(content);
  const auto replace = [&](std::vector<Sequence>& lists) {
    for (Token& token : lists[static_cast<size_t>(s)].tokens)
      if (token.content == old) token.content = rewritten;
  };
  replace(sequences);
  if (pass_open && !pass.reserve) replace(pass.before);
}

}  // namespace model
