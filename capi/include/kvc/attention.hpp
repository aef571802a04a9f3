// kvc/attention.hpp: constants of the model, attention, and reading what a cache stores. Part of <kvc/kvc.hpp>; attention.h and
// storage.h are the manual.
#ifndef KVC_ATTENTION_HPP
#define KVC_ATTENTION_HPP

#include <cstdint>
#include <optional>
#include <vector>

#include "base.hpp"
#include "callers_operator.hpp"

namespace kvc {
inline namespace api_0_2 {

struct AttentionDesc : kvc_attention_desc {
  AttentionDesc() noexcept : kvc_attention_desc(KVC_ATTENTION_DESC_INIT) {}
};

struct RopeDesc : kvc_rope_desc {
  RopeDesc() noexcept : kvc_rope_desc(KVC_ROPE_DESC_INIT) {}
};

// What one attention call takes and returns besides q and out; see kvc_attention_extra. Empty: not wanted.
struct AttentionExtra {
  std::optional<ConstTensor> bias, mask;
  std::optional<Tensor> lse, weights;
  std::uint32_t flags = 0;  // KVC_EXTRA_…
  std::uint64_t dropout_seed = 0;

  // As C takes it, with pointers into this struct.
  kvc_attention_extra pointers() noexcept {
    kvc_attention_extra pointers = KVC_ATTENTION_EXTRA_INIT;
    if (bias) pointers.bias = bias->get();
    if (mask) pointers.mask = mask->get();
    if (weights) pointers.weights = weights->get();
    if (lse) pointers.lse = lse->get();
    pointers.flags = flags;
    pointers.dropout_seed = dropout_seed;
    return pointers;
  }
};

// Keys and values of one layer.
struct KeyValueViews {
  kvc_tensor k, v;
};

// Codes and scales of one layer. Empty: the type stores no scales.
struct CodeViews {
  kvc_tensor k{};
  std::optional<kvc_tensor> k_scales;
  kvc_tensor v{};
  std::optional<kvc_tensor> v_scales;

  // What `lend(&k, &k_scales, &v, &v_scales)` lends.
  template <typename Lend>
  static CodeViews from(const Lend &lend) {
    CodeViews views;
    kvc_tensor k_scales{}, v_scales{};
    check(lend(&views.k, &k_scales, &views.v, &v_scales));
    if (k_scales.ndim > 0) views.k_scales = k_scales;
    if (v_scales.ndim > 0) views.v_scales = v_scales;
    return views;
  }
};

// The cells that the columns of views, masks, biases and weights stand for: column i is cell first_cell + i.
struct History {
  std::int32_t first_cell = 0, n_cells = 0;
};

// Member functions of Cache.
template <typename Self>
class AttentionCalls {
 public:
  // Constants of the model, for layers [layer_begin, layer_end). Arrays are copied and may be null.
  void bind_attention(std::int32_t layer_begin, std::int32_t layer_end, const AttentionDesc &desc,
                      const float *alibi_slopes = nullptr, const float *sinks = nullptr) {
    detail::check_call([&] { return kvc_bind_attention(raw(), layer_begin, layer_end, &desc, alibi_slopes, sinks); });
  }
  void bind_rope(std::int32_t layer_begin, std::int32_t layer_end, const RopeDesc &desc,
                 const float *frequency_factors = nullptr) {
    check(kvc_bind_rope(raw(), layer_begin, layer_end, &desc, frequency_factors));
  }

  // Of f8 keys and values: one for each KV head, copied. Null: stay as they are.
  void bind_scales(std::int32_t layer_begin, std::int32_t layer_end, const float *k_scales, const float *v_scales) {
    check(kvc_bind_scales(raw(), layer_begin, layer_end, k_scales, v_scales));
  }

  // `function` and `user` must stay valid until the cache is destroyed or another function is bound.
  void bind_shift(kvc_shift_function function, void *user) { check(kvc_bind_shift(raw(), function, user)); }

  // With KVC_CACHE_V_IN_K v is {}, here and in put_attention().
  void put(std::int32_t layer, const ConstTensor &k, const ConstTensor &v) {
    check(kvc_put(raw(), layer, k.get(), v.get()));
  }
  void attention(std::int32_t layer, const ConstTensor &q, Tensor out) {
    detail::check_call([&] { return kvc_attention(raw(), layer, q.get(), out.get(), nullptr); });
  }
  void attention(std::int32_t layer, const ConstTensor &q, Tensor out, AttentionExtra extra) {
    const kvc_attention_extra pointers = extra.pointers();
    detail::check_call([&] { return kvc_attention(raw(), layer, q.get(), out.get(), &pointers); });
  }
  void put_attention(std::int32_t layer, const ConstTensor &k, const ConstTensor &v, const ConstTensor &q, Tensor out) {
    detail::check_call([&] { return kvc_put_attention(raw(), layer, k.get(), v.get(), q.get(), out.get(), nullptr); });
  }
  void put_attention(std::int32_t layer, const ConstTensor &k, const ConstTensor &v, const ConstTensor &q, Tensor out,
                     AttentionExtra extra) {
    const kvc_attention_extra pointers = extra.pointers();
    detail::check_call([&] { return kvc_put_attention(raw(), layer, k.get(), v.get(), q.get(), out.get(), &pointers); });
  }
  // What a cache of the same storage stored, as encode() and get_codes() have it. Scales that are not stored are {}, and with
  // KVC_CACHE_V_IN_K v and v_scales are.
  void put_codes(std::int32_t layer, const ConstTensor &k, const ConstTensor &k_scales, const ConstTensor &v,
                 const ConstTensor &v_scales) {
    check(kvc_put_codes(raw(), layer, k.get(), k_scales.get(), v.get(), v_scales.get()));
  }
  // The tokens of the batch, by index, that also see later tokens.
  void set_causal(const std::vector<std::int32_t> &except) {
    check(kvc_set_causal(raw(), detail::length("except", except), except.data()));
  }

  // Reading, for callers with kernels of their own. The views last until the pass ends. get() lends f32, f16 and bf16, in which
  // keys are rotated as far as they owe; get_codes() lends every storage type as it is; get_copy() decodes every storage type.
  // Where one side stores codes, get_keys() or get_values() lends the other.
  KeyValueViews get(std::int32_t layer) {
    KeyValueViews views{};
    check(kvc_get(raw(), layer, &views.k, &views.v));
    return views;
  }
  kvc_tensor get_keys(std::int32_t layer) {
    kvc_tensor k{};
    check(kvc_get(raw(), layer, &k, nullptr));
    return k;
  }
  kvc_tensor get_values(std::int32_t layer) {
    kvc_tensor v{};
    check(kvc_get(raw(), layer, nullptr, &v));
    return v;
  }
  CodeViews get_codes(std::int32_t layer) {
    return CodeViews::from([&](kvc_tensor *k, kvc_tensor *k_scales, kvc_tensor *v, kvc_tensor *v_scales) {
      return kvc_get_codes(raw(), layer, k, k_scales, v, v_scales);
    });
  }
  // The shapes that get_copy() needs, [history, n_kv_heads, head_dim], as f32; data is null.
  KeyValueViews copy_shapes(std::int32_t layer) {
    KeyValueViews shapes{};
    check(kvc_get_copy(raw(), layer, &shapes.k, &shapes.v));
    return shapes;
  }
  // A k or v that is not wanted is {}.
  void get_copy(std::int32_t layer, Tensor k, Tensor v) { check(kvc_get_copy(raw(), layer, k.get(), v.get())); }
  History history(std::int32_t layer) {
    History range;
    check(kvc_history(raw(), layer, &range.first_cell, &range.n_cells));
    return range;
  }
  // The shape that mask() needs, [n_tokens, history], and the mask_dtype of the descriptor; data is null.
  kvc_tensor mask_shape(std::int32_t layer) {
    kvc_tensor shape{};
    check(kvc_mask(raw(), layer, &shape));
    return shape;
  }
  void mask(std::int32_t layer, Tensor into) { check(kvc_mask(raw(), layer, into.get())); }
  // Copies the keys, the values or both of a sequence, in order of position. A v that is your own kvc_tensor may have the
  // flag KVC_TENSOR_TRANSPOSED.
  void gather(std::int32_t layer, std::int32_t sequence, Tensor k, Tensor v) {
    check(kvc_gather(raw(), layer, sequence, k.get(), v.get()));
  }
  void gather_keys(std::int32_t layer, std::int32_t sequence, Tensor k) {
    check(kvc_gather(raw(), layer, sequence, k.get(), nullptr));
  }
  void gather_values(std::int32_t layer, std::int32_t sequence, Tensor v) {
    check(kvc_gather(raw(), layer, sequence, nullptr, v.get()));
  }
  std::vector<kvc_run> runs(std::int32_t layer, std::int32_t sequence) const {
    return detail::list_of<kvc_run>([&](std::int32_t room, kvc_run *found, std::int32_t *n) {
      return kvc_runs(raw(), layer, sequence, room, found, n);
    });
  }

 private:
  kvc_cache *raw() const noexcept { return static_cast<const Self &>(*this).handle(); }
};

}  // namespace api_0_2
}  // namespace kvc

#endif
