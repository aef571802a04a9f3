#include <algorithm>

#include "oracle.hpp"

/// How passes end, and the calls on sequences.
namespace model {

/// A layer that was not put holds zeros from now on.
void Oracle::settle() {
  for (const int32_t content : pass.content) {
    if (content < 0) continue;
    std::vector<char>& put = contents[static_cast<size_t>(content)].put;
    std::fill(put.begin(), put.end(), 1);
  }
}

kvc_status Oracle::may_keep(const std::vector<char>& kept) const {
  for (size_t a = 0; a < kept.size(); ++a)
    for (size_t b = 0; b < kept.size(); ++b) {
      const bool saw = pass.sequence[a] == pass.sequence[b] &&
                       sees(static_cast<int32_t>(a), pass.position[b]);
      if (kept[a] && !kept[b] && ((pass.except[a] && saw) || same_block(a, b)))
        return KVC_E_INVALID_ARGUMENT;
    }
  return KVC_OK;
}

// ---- Sequences ---------------------------------------------------------------------------------

Sequence Oracle::cut_to(Sequence sequence, int32_t g) const {
  std::vector<Token> stay;
  for (const Token& token : sequence.tokens)
    if (token.position < g) stay.push_back(token);
  sequence.tokens = stay;
  sequence.next = g;
  if (sequence.next <= causal.keep_first) sequence.lost_below = 0;
  return sequence;
}

int32_t Oracle::lost_after_removal(const Sequence& sequence, int32_t b, int32_t e) const {
  const int32_t d = e - b, n = sequence.next - d;
  int32_t lost = sequence.lost_below;
  if (limited) {
    if (b < causal.keep_first && lost > 0) {
      if (e < lost) return -1;
      lost = 0;
    } else if (lost > b) {
      lost = std::max(b, lost - d);
    }
    if (n > causal.keep_first && low(n) < lost) return -1;
  }
  return n <= causal.keep_first ? 0 : lost;
}

int64_t Oracle::n_moved(const Sequence& sequence, int32_t e) const {
  return std::count_if(sequence.tokens.begin(), sequence.tokens.end(),
                       [e](const Token& token) { return token.position >= e; });
}

kvc_status Oracle::may_remove_middle(int32_t s, int32_t b, int32_t e) const {
  if (lost_after_removal(at(s), b, e) < 0) return KVC_E_WINDOW_LOST;
  const int64_t moved = n_moved(at(s), e);
  const bool position_free = causal.flags & KVC_CAUSAL_POSITION_FREE;
  if (moved > 0 && !turns() && !position_free && !shift.turn) return KVC_E_NOT_SUPPORTED;
  // Copies are made before anything is given up, so that a refusal can change nothing: what the open pass has put out of
  // sight is still there then and leaves no room.
  return shift.turn && moved > free_now() ? KVC_E_CACHE_FULL : KVC_OK;
}

kvc_status Oracle::shift_refusal(int32_t s, int32_t e) const {
  if (!shift.turn || n_moved(at(s), e) == 0) return KVC_OK;
  return shift.refuses_at >= 0 && shift.refuses_at < cache.n_layers ? shift.refusal : KVC_OK;
}

void Oracle::remove_middle(int32_t s, int32_t b, int32_t e) {
  Sequence& sequence = at(s);
  const int32_t d = e - b;
  sequence.lost_below = lost_after_removal(sequence, b, e);
  std::vector<Token> stay;
  for (const Token& token : sequence.tokens) {
    if (token.position < b) stay.push_back(token);
    if (token.position >= e)
      stay.push_back(
          {token.position - d, shift.turn ? shifted(token, token.position - d) : token.content});
  }
  sequence.tokens = stay;
  sequence.next -= d;
}

// ---- Constants that say how keys turn ----------------------------------------------------------

kvc_status Oracle::may_bind_rope(const Rope& turned) const {
  // What is a value too may not turn.
  const bool meets_v = turned.n_dims > 0 && turned.first_dim < cache.v_first + cache.head_dim_v &&
                       cache.v_first < turned.first_dim + turned.n_dims;
  if (v_in_k() && meets_v) return KVC_E_INVALID_ARGUMENT;
  if (pass_open || !is_empty()) return KVC_E_BAD_STATE;
  const bool position_free = causal.flags & KVC_CAUSAL_POSITION_FREE;
  return position_free || shift.turn ? KVC_E_NOT_SUPPORTED : KVC_OK;
}

kvc_status Oracle::may_bind_shift(bool takes_away) const {
  if (pass_open) return KVC_E_BAD_STATE;
  const bool position_free = causal.flags & KVC_CAUSAL_POSITION_FREE;
  const bool turnable = storage_k.is_plain() && !v_in_k();
  return !takes_away && (turns() || position_free || !turnable) ? KVC_E_NOT_SUPPORTED : KVC_OK;
}

kvc_status Oracle::may_bind_scales(bool of_k, bool of_v) const {
  if (v_in_k() && of_v) return KVC_E_INVALID_ARGUMENT;
  if (pass_open || !is_empty()) return KVC_E_BAD_STATE;
  const bool fits = (!of_k || storage_k.is_f8()) && (!of_v || storage_v.is_f8());
  return fits ? KVC_OK : KVC_E_NOT_SUPPORTED;
}

/// A copy of what the token holds, turned in every layer.
int32_t Oracle::shifted(const Token& token, int32_t to) {
  Content content = contents[static_cast<size_t>(token.content)];
  const auto dim = static_cast<size_t>(cache.head_dim_k);
  for (int32_t layer = 0; layer < cache.n_layers; ++layer) {
    const float* stored = content.k.numbers(row(layer, 0));
    std::vector<float> keys(stored, stored + static_cast<size_t>(cache.n_kv_heads) * dim);
    shift.turn(layer, token.position, to, keys.data());
    for (int32_t head = 0; head < cache.n_kv_heads; ++head)
      content.k.put(row(layer, head), keys.data() + static_cast<size_t>(head) * dim, 1);
  }
  content.rotated_for = to;
  contents.push_back(content);
  return static_cast<int32_t>(contents.size()) - 1;
}

}  // namespace model
