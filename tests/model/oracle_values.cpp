#include <algorithm>
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

namespace {

const Content& content_of(const Oracle& oracle, const Token& token) {
  return oracle.contents[static_cast<size_t>(token.content)];
}

}  // namespace

std::vector<double> Oracle::key(int32_t layer, const Token& token) const {
  std::vector<double> result;
  const int32_t offset = pending_rotation(token);
  for (int32_t head = 0; head < cache.n_kv_heads; ++head) {
    std::vector<double> one = content_of(*this, token).k.values(row(layer, head));
    if (offset != 0) turn(rope[static_cast<size_t>(layer)], offset, one.data());
    result.insert(result.end(), one.begin(), one.end());
  }
  return result;
}

std::vector<double> Oracle::value(int32_t layer, const Token& token) const {
  const Content& content = content_of(*this, token);
  std::vector<double> result;
  for (int32_t head = 0; head < cache.n_kv_heads; ++head) {
    const std::vector<double> one = (v_in_k() ? content.k : content.v).values(row(layer, head));
    const auto begin = one.begin() + (v_in_k() ? cache.v_first : 0);
    result.insert(result.end(), begin, begin + cache.head_dim_v);
  }
  return result;
}

const float* Oracle::stored_key(int32_t layer, const Token& token, int32_t head) const {
  return content_of(*this, token).k.numbers(row(layer, head));
}

std::vector<float> Oracle::stored_value(int32_t layer, const Token& token) const {
  const Content& content = content_of(*this, token);
  std::vector<float> result;
  for (int32_t head = 0; head < cache.n_kv_heads; ++head) {
    const float* one = (v_in_k() ? content.k : content.v).numbers(row(layer, head)) +
                       (v_in_k() ? cache.v_first : 0);
    result.insert(result.end(), one, one + cache.head_dim_v);
  }
  return result;
}

std::vector<double> Oracle::as_multiplied(int32_t layer, const Token& token, const double* q) const {
  std::vector<double> result(q, q + cache.head_dim_k);
  if (const int32_t offset = pending_rotation(token); offset != 0)
    turn(rope[static_cast<size_t>(layer)], -offset, result.data());
  rotate(storage_k, result.data());
  return result;
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

kvc_status Oracle::get(int32_t layer, bool wants_k, bool wants_v) const {
  if (const kvc_status status = needs_put(layer); status != KVC_OK) return status;
  const bool lends = (!wants_k || storage_k.is_plain()) && (!wants_v || storage_v.is_plain());
  if (!lends) return KVC_E_NOT_SUPPORTED;
  if (pass.reserve || !get_pays()) return KVC_OK;
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

/// One sequence's token has a content of its own from here on, after an abort too.
void Oracle::replace_content(int32_t s, int32_t old, const Content& by) {
  const auto rewritten = static_cast<int32_t>(contents.size());
  contents.push_back(by);
  const auto replace = [&](std::vector<Sequence>& lists) {
    for (Token& token : lists[static_cast<size_t>(s)].tokens)
      if (token.content == old) token.content = rewritten;
  };
  replace(sequences);
  if (pass_open && !pass.reserve) replace(pass.before);
}

void Oracle::pay(int32_t s, int32_t position, const std::vector<float>& k) {
  for (const Token& token : sequences[static_cast<size_t>(s)].tokens) {
    if (token.position != position) continue;
    Content content = content_of(*this, token);
    content.rotated_for = position;
    for (size_t i = 0; i < row(cache.n_layers, 0); ++i)
      content.k.put(i, k.data() + i * static_cast<size_t>(cache.head_dim_k), 1);
    return replace_content(s, token.content, content);
  }
}

/// Sequences in the order in which the batch names them; the first one that sees a content keeps it.
std::vector<Oracle::Debt> Oracle::splits() const {
  std::vector<Debt> result;
  std::vector<int32_t> order;
  for (const int32_t s : pass.sequence)
    if (s != KVC_NONE && std::find(order.begin(), order.end(), s) == order.end())
      order.push_back(s);
  std::map<int32_t, int32_t> shown_at;  // by content, the position
  for (const int32_t s : order)
    for (const Token& token : sequences[static_cast<size_t>(s)].tokens) {
      bool seen = false;
      for (size_t i = 0; i < pass.position.size(); ++i)
        seen = seen || (pass.sequence[i] == s && sees(static_cast<int32_t>(i), token.position));
      if (!seen) continue;
      const auto first = shown_at.insert({token.content, token.position}).first;
      if (turns() && first->second != token.position) result.push_back({s, token.position});
    }
  return result;
}

kvc_status Oracle::get_copy(int32_t layer) const {
  if (const kvc_status status = needs_put(layer); status != KVC_OK || pass.reserve) return status;
  return static_cast<int64_t>(splits().size()) > free_now() ? KVC_E_CACHE_FULL : KVC_OK;
}

void Oracle::split() {
  for (const Debt& each : splits())
    for (const Token& token : sequences[static_cast<size_t>(each.sequence)].tokens)
      if (token.position == each.position) {
        replace_content(each.sequence, token.content, Content(content_of(*this, token)));
        break;
      }
}

}  // namespace model
