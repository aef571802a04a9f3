#include <algorithm>
#include <set>

#include "oracle.hpp"

/// How passes end, and the calls on sequences.
namespace model {

/// The open pass, if any, is committed. A layer that was not put holds zeros from now on.
void Oracle::close() {
  if (!pass_open) return;
  if (!pass.reserve) {
    for (const int32_t content : pass.content) {
      if (content < 0) continue;
      std::vector<char>& put = contents[static_cast<size_t>(content)].put;
      std::fill(put.begin(), put.end(), 1);
    }
    ++passes;
  }
  pass_open = false;
  pass = Pass();
}

kvc_status Oracle::commit() {
  if (!pass_open) return KVC_E_BAD_STATE;
  close();
  return KVC_OK;
}

kvc_status Oracle::abort() {
  if (!pass_open) return KVC_E_BAD_STATE;
  if (!pass.reserve) sequences = pass.before;
  pass_open = false;
  pass = Pass();
  return KVC_OK;
}

kvc_status Oracle::commit_prefix(int32_t n, const int32_t* sequence, const int32_t* keep) {
  if (!pass_open) return KVC_E_BAD_STATE;
  if (n < 0 || (n > 0 && (!sequence || !keep))) return KVC_E_INVALID_ARGUMENT;
  std::set<int32_t> named;
  std::vector<char> kept(pass.position.size(), 1);
  for (int32_t i = 0; i < n; ++i) {
    if (!is_sequence(sequence[i]) || !named.insert(sequence[i]).second || keep[i] < 0)
      return KVC_E_INVALID_ARGUMENT;
    int32_t seen = 0;
    for (size_t t = 0; t < pass.sequence.size(); ++t)
      if (pass.sequence[t] == sequence[i]) kept[t] = seen++ < keep[i];
    if (keep[i] > seen && !pass.reserve) return KVC_E_INVALID_ARGUMENT;
  }
  for (size_t a = 0; a < kept.size(); ++a)
    for (size_t b = 0; b < kept.size(); ++b) {
      const bool saw = pass.sequence[a] == pass.sequence[b] &&
                       sees(static_cast<int32_t>(a), pass.position[b]);
      if (kept[a] && !kept[b] && ((pass.except[a] && saw) || same_block(a, b)))
        return KVC_E_INVALID_ARGUMENT;
    }
  if (!pass.reserve) end_pass_keeping(kept);
  close();
  return KVC_OK;
}

// ---- Sequences
// ---------------------------------------------------------------------------------------------------------

void Oracle::cut(Sequence& sequence, int32_t g) const {
  std::vector<Token> stay;
  for (const Token& token : sequence.tokens)
    if (token.position < g) stay.push_back(token);
  sequence.tokens = stay;
  sequence.next = g;
  if (sequence.next <= causal.keep_first) sequence.lost_below = 0;
}

kvc_status Oracle::can_resume(int32_t s, int32_t want, int32_t* best) const {
  if (!is_sequence(s) || want < 0) return KVC_E_INVALID_ARGUMENT;
  *best = largest_continuation(sequences[static_cast<size_t>(s)], want);
  return KVC_OK;
}

kvc_status Oracle::resume(int32_t s, int32_t want, int32_t* got) {
  if (!is_sequence(s) || want < 0) return KVC_E_INVALID_ARGUMENT;
  if (!closable()) return KVC_E_BAD_STATE;
  close();
  Sequence& sequence = sequences[static_cast<size_t>(s)];
  *got = largest_continuation(sequence, want);
  cut(sequence, *got);
  return KVC_OK;
}

kvc_status Oracle::copy_prefix(int32_t src, int32_t dst, int32_t len, int32_t* got) {
  if (!is_sequence(src) || !is_sequence(dst) || src == dst || len < 0)
    return KVC_E_INVALID_ARGUMENT;
  if (!closable()) return KVC_E_BAD_STATE;
  close();
  const Sequence& source = sequences[static_cast<size_t>(src)];
  *got = largest_continuation(source, len);
  Sequence copy = source;
  cut(copy, *got);
  sequences[static_cast<size_t>(dst)] = copy;
  return KVC_OK;
}

kvc_status Oracle::reorder(int32_t n, const int32_t* dst, const int32_t* src) {
  if (n < 0 || (n > 0 && (!dst || !src))) return KVC_E_INVALID_ARGUMENT;
  std::set<int32_t> named;
  for (int32_t i = 0; i < n; ++i)
    if (!is_sequence(dst[i]) || !is_sequence(src[i]) || !named.insert(dst[i]).second)
      return KVC_E_INVALID_ARGUMENT;
  if (!closable()) return KVC_E_BAD_STATE;
  close();
  const std::vector<Sequence> before = sequences;
  for (int32_t i = 0; i < n; ++i)
    sequences[static_cast<size_t>(dst[i])] = before[static_cast<size_t>(src[i])];
  return KVC_OK;
}

kvc_status Oracle::can_remove(int32_t s, int32_t b, int32_t e) const {
  Oracle copy = *this;
  copy.shift.refuses_at = -1;
  return copy.remove(s, b, e);
}

kvc_status Oracle::remove(int32_t s, int32_t b, int32_t e) {
  if (!is_sequence(s) || b < 0 || e < b) return KVC_E_INVALID_ARGUMENT;
  if (!closable()) return KVC_E_BAD_STATE;
  Sequence& sequence = sequences[static_cast<size_t>(s)];
  if (b == e || b >= sequence.next) {
    close();
    return KVC_OK;
  }
  if (e < sequence.next) return remove_middle(sequence, b, e);
  if (!can_continue(sequence, b)) return KVC_E_WINDOW_LOST;
  close();
  cut(sequence, b);
  return KVC_OK;
}

kvc_status Oracle::remove_middle(Sequence& sequence, int32_t b, int32_t e) {
  const int32_t d = e - b;
  const int32_t n = sequence.next - d;
  int32_t lost = sequence.lost_below;
  if (limited) {
    if (b < causal.keep_first && lost > 0) {
      if (e < lost) return KVC_E_WINDOW_LOST;
      lost = 0;
    } else if (lost > b) {
      lost = std::max(b, lost - d);
    }
    if (n > causal.keep_first && low(n) < lost) return KVC_E_WINDOW_LOST;
  }
  const bool moves = !sequence.tokens.empty() && sequence.tokens.back().position >= e;
  const bool position_free = causal.flags & KVC_CAUSAL_POSITION_FREE;
  if (moves && !turns() && !position_free && !shift.turn) return KVC_E_NOT_SUPPORTED;
  if (moves && shift.turn) {
    const auto behind = [e](const Token& token) { return token.position >= e; };
    const auto n_moved = std::count_if(sequence.tokens.begin(), sequence.tokens.end(), behind);
    if (const kvc_status status = may_shift(n_moved); status != KVC_OK) return status;
  }
  close();
  std::vector<Token> stay;
  for (const Token& token : sequence.tokens) {
    if (token.position < b) stay.push_back(token);
    if (token.position >= e)
      stay.push_back(
          {token.position - d, shift.turn ? shifted(token, token.position - d) : token.content});
  }
  sequence.tokens = stay;
  sequence.next = n;
  sequence.lost_below = n <= causal.keep_first ? 0 : lost;
  return KVC_OK;
}

// ---- Constants that say how keys turn ----------------------------------------------------------

kvc_status Oracle::may_bind_rope() const {
  if (pass_open || used() > 0) return KVC_E_BAD_STATE;
  const bool position_free = causal.flags & KVC_CAUSAL_POSITION_FREE;
  return position_free || shift.turn ? KVC_E_NOT_SUPPORTED : KVC_OK;
}

kvc_status Oracle::may_bind_shift(bool takes_away) const {
  if (pass_open) return KVC_E_BAD_STATE;
  const bool position_free = causal.flags & KVC_CAUSAL_POSITION_FREE;
  return !takes_away && (turns() || position_free) ? KVC_E_NOT_SUPPORTED : KVC_OK;
}

/// Copies are made before anything is given up, so that a refusal can change nothing: what the open pass has put out of
/// sight is still there then and leaves no room.
kvc_status Oracle::may_shift(int64_t n_moved) const {
  if (n_moved > free_now()) return KVC_E_CACHE_FULL;
  return shift.refuses_at >= 0 && shift.refuses_at < cache.n_layers ? shift.refusal : KVC_OK;
}

/// A copy of what the token holds, turned in every layer.
int32_t Oracle::shifted(const Token& token, int32_t to) {
  Content content = contents[static_cast<size_t>(token.content)];
  const auto row = static_cast<size_t>(cache.n_kv_heads * cache.head_dim_k);
  for (int32_t layer = 0; layer < cache.n_layers; ++layer)
    shift.turn(layer, token.position, to, content.k.data() + static_cast<size_t>(layer) * row);
  content.rotated_for = to;
  contents.push_back(content);
  return static_cast<int32_t>(contents.size()) - 1;
}

}  // namespace model
