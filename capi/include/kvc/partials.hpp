// kvc/partials.hpp: results over parts of the keys, dropout masks, and modes. Part of <kvc/kvc.hpp>; operators.h is the manual.
//
//   kvc::AttentionExtra extra;
//   extra.flags = KVC_EXTRA_NO_SINKS, extra.lse = kvc::Tensor(lse, {n_tokens, n_q_heads});
//   cache.attention(layer, q, {out, shape}, extra);  // and in the same way o2 and lse2, over other keys
//   kvc::merge_attention({out, shape}, {lse, {n_tokens, n_q_heads}}, {o2, shape}, {lse2, {n_tokens, n_q_heads}});
//   kvc::apply_sinks({out, shape}, {lse, {n_tokens, n_q_heads}}, sinks);
#ifndef KVC_PARTIALS_HPP
#define KVC_PARTIALS_HPP

#include <cstdint>
#include <vector>

#include "base.hpp"
#include "operators.h"

namespace kvc {
inline namespace api_0_2 {

// Merges the result o2 into o, and its log-sum-exp lse2 into lse.
inline void merge_attention(Tensor o, Tensor lse, const ConstTensor &o2, const ConstTensor &lse2) {
  check(kvc_merge_attention(o.get(), lse.get(), o2.get(), lse2.get()));
}

// sinks: [heads]. Once, when everything is merged.
inline void apply_sinks(Tensor o, const ConstTensor &lse, const float *sinks) {
  check(kvc_apply_sinks(o.get(), lse.get(), sinks));
}

// Head h * n + i of `out` is head h of `in`.
inline void repeat_kv_heads(const ConstTensor &in, std::int32_t n, Tensor out) {
  check(kvc_repeat_kv_heads(in.get(), n, out.get()));
}

// What a call of attention with this seed keeps: [n_heads, n_q, n_k] of bool.
inline void dropout_mask(std::uint64_t seed, float probability, std::int32_t layer, std::int32_t sequence,
                         const std::vector<std::int32_t> &q_position, const std::vector<std::int32_t> &k_position,
                         Tensor into) {
  check(kvc_dropout_mask(seed, probability, layer, sequence, detail::length("q_position", q_position),
                         detail::elements(q_position), detail::length("k_position", k_position), detail::elements(k_position),
                         into.get()));
}

// The mode of queries without a cache, KVC_MODE_AUTOREGRESSIVE or KVC_MODE_TRAIN. bthd: q is [batch, length, heads, dim]; else
// [batch, heads, length, dim].
inline std::uint32_t mode_of(const ConstTensor &q, bool bthd = true) {
  std::uint32_t mode = 0;
  check(kvc_mode_of(q.get(), bthd ? 1 : 0, &mode));
  return mode;
}

}  // namespace api_0_2
}  // namespace kvc

#endif
