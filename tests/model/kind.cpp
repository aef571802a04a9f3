#include "kind.hpp"

#include <algorithm>
#include <limits>
#include <set>

namespace model {

int32_t Kind::tokens_of(int32_t sequence) const {
  const std::vector<int32_t>& all = batch().sequence;
  return static_cast<int32_t>(std::count(all.begin(), all.end(), sequence));
}

// ---- A pass ------------------------------------------------------------------------------------

bool Kind::legal_tokens(int32_t, const int32_t*, const uint32_t*) const { return true; }

/// Padding has no flags. In a reserve pass there are no sequences.
bool Kind::legal_flags(int32_t n, const int32_t* sequence, const uint32_t* token_flags) const {
  if (n < 1 || n > cache.max_batch) return false;
  for (int32_t i = 0; token_flags && i < n; ++i) {
    const bool padding = sequence && sequence[i] == KVC_NONE;
    if (token_flags[i] & ~(padding ? 0 : known_flags())) return false;
  }
  return true;
}

bool Kind::legal_batch(int32_t n, const int32_t* position, const int32_t* sequence) const {
  std::vector<int32_t> expected;
  for (int32_t s = 0; s < cache.max_sequences; ++s) expected.push_back(next(s));
  for (int32_t i = 0; i < n; ++i) {
    if (sequence[i] == KVC_NONE) continue;  // padding
    if (!is_sequence(sequence[i])) return false;
    if (position[i] < 0 || position[i] >= std::numeric_limits<int32_t>::max() - 1) return false;
    int32_t& at = expected[static_cast<size_t>(sequence[i])];
    if (position[i] < at) return false;
    if ((cache.flags & KVC_CACHE_STRICT) && position[i] != at) return false;
    at = position[i] + 1;
  }
  return true;
}

kvc_status Kind::may_begin(int32_t n, const int32_t* position, const int32_t* sequence,
                           const uint32_t* token_flags, bool reserve) const {
  if (!legal_flags(n, reserve ? nullptr : sequence, token_flags)) return KVC_E_INVALID_ARGUMENT;
  if (!reserve && (!position || !sequence || !legal_batch(n, position, sequence) ||
                   !legal_tokens(n, sequence, token_flags)))
    return KVC_E_INVALID_ARGUMENT;
  if (!closable()) return KVC_E_BAD_STATE;
  return reserve ? KVC_OK : room(n, sequence, token_flags);
}

kvc_status Kind::fits(int32_t n, const int32_t* position, const int32_t* sequence,
                      const uint32_t* token_flags) const {
  return may_begin(n, position, sequence, token_flags, false);
}

kvc_status Kind::begin(int32_t n, const int32_t* position, const int32_t* sequence,
                       const uint32_t* token_flags, uint32_t flags) {
  const bool reserve = flags & KVC_BEGIN_RESERVE;
  const kvc_status status = may_begin(n, position, sequence, token_flags, reserve);
  if (status != KVC_OK) return status;
  close();
  open(n, position, sequence, token_flags, reserve);
  pass_open = true;
  return KVC_OK;
}

kvc_status Kind::commit() {
  if (!pass_open) return KVC_E_BAD_STATE;
  close();
  return KVC_OK;
}

kvc_status Kind::commit_prefix(int32_t n, const int32_t* sequence, const int32_t* keep_counts) {
  if (!pass_open) return KVC_E_BAD_STATE;
  if (n < 0 || (n > 0 && (!sequence || !keep_counts))) return KVC_E_INVALID_ARGUMENT;
  std::set<int32_t> named;
  std::vector<char> kept(batch().sequence.size(), 1);
  for (int32_t i = 0; i < n; ++i) {
    if (!is_sequence(sequence[i]) || !named.insert(sequence[i]).second || keep_counts[i] < 0)
      return KVC_E_INVALID_ARGUMENT;
    int32_t seen = 0;
    for (size_t t = 0; t < kept.size(); ++t)
      if (batch().sequence[t] == sequence[i]) kept[t] = seen++ < keep_counts[i];
    if (keep_counts[i] > seen && !batch().reserve) return KVC_E_INVALID_ARGUMENT;
  }
  if (!batch().reserve) {
    if (const kvc_status status = may_keep(kept); status != KVC_OK) return status;
    keep(kept);
  }
  close();
  return KVC_OK;
}

kvc_status Kind::abort() {
  if (!pass_open) return KVC_E_BAD_STATE;
  undo();
  return KVC_OK;
}

// ---- Stepping back -----------------------------------------------------------------------------

kvc_status Kind::can_resume(int32_t s, int32_t want, int32_t* g) const {
  if (!is_sequence(s) || want < 0) return KVC_E_INVALID_ARGUMENT;
  *g = best(s, want);
  return KVC_OK;
}

kvc_status Kind::resume(int32_t s, int32_t want, int32_t* got) {
  if (!is_sequence(s) || want < 0) return KVC_E_INVALID_ARGUMENT;
  if (!closable()) return KVC_E_BAD_STATE;
  close();
  *got = best(s, want);
  cut(s, *got);
  return KVC_OK;
}

kvc_status Kind::copy_prefix(int32_t src, int32_t dst, int32_t len, int32_t* got) {
  if (!is_sequence(src) || !is_sequence(dst) || src == dst || len < 0)
    return KVC_E_INVALID_ARGUMENT;
  if (!closable()) return KVC_E_BAD_STATE;
  close();
  *got = best(src, len);
  copy(src, dst, *got);
  return KVC_OK;
}

kvc_status Kind::reorder(int32_t n, const int32_t* dst, const int32_t* src) {
  if (n < 0 || (n > 0 && (!dst || !src))) return KVC_E_INVALID_ARGUMENT;
  std::set<int32_t> named;
  for (int32_t i = 0; i < n; ++i)
    if (!is_sequence(dst[i]) || !is_sequence(src[i]) || !named.insert(dst[i]).second)
      return KVC_E_INVALID_ARGUMENT;
  if (!closable()) return KVC_E_BAD_STATE;
  close();
  copy_all(n, dst, src);
  return KVC_OK;
}

kvc_status Kind::can_remove(int32_t s, int32_t b, int32_t e) const {
  if (!is_sequence(s) || b < 0 || e < b) return KVC_E_INVALID_ARGUMENT;
  if (!closable()) return KVC_E_BAD_STATE;
  if (b == e || b >= next(s)) return KVC_OK;
  if (e < next(s)) return may_remove_middle(s, b, e);
  return can_continue(s, b) ? KVC_OK : KVC_E_WINDOW_LOST;
}

kvc_status Kind::refusal(int32_t s, int32_t b, int32_t e) const {
  return is_sequence(s) && b < e && e < next(s) ? shift_refusal(s, e) : KVC_OK;
}

kvc_status Kind::remove(int32_t s, int32_t b, int32_t e) {
  if (const kvc_status status = can_remove(s, b, e); status != KVC_OK) return status;
  if (const kvc_status status = refusal(s, b, e); status != KVC_OK) return status;
  const bool nothing = b == e || b >= next(s);
  const bool to_the_end = e >= next(s);
  close();
  if (nothing) return KVC_OK;
  if (to_the_end) {
    cut(s, b);
  } else {
    remove_middle(s, b, e);
  }
  return KVC_OK;
}

kvc_status Kind::checkpoint_take(int32_t s) {
  if (!has_checkpoints()) return KVC_E_NOT_SUPPORTED;
  if (!is_sequence(s)) return KVC_E_INVALID_ARGUMENT;
  if (!closable()) return KVC_E_BAD_STATE;
  if (checkpoints_are_off()) return KVC_E_NOT_SUPPORTED;
  close();
  take_checkpoint(s);
  return KVC_OK;
}

}  // namespace model
