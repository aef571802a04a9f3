// kvc/operators.hpp: attention operators by name, and attention without a cache. Part of <kvc/kvc.hpp>; operators.h is the
// manual.
//
//   kvc::OperatorDesc desc;
//   desc.dropout_prob = 0.1f;
//   const kvc::Operator vanilla(device, "vanilla", desc);
//   cache.bind_operator(0, n_layers, KVC_MODE_TRAIN, &vanilla);
//   kvc::AttentionExtra extra;
//   extra.flags = KVC_EXTRA_DROPOUT, extra.dropout_seed = 7;
//   cache.attention(layer, q, out, extra);  // in a pass
#ifndef KVC_OPERATORS_HPP
#define KVC_OPERATORS_HPP

#include <cstdint>
#include <string>
#include <vector>

#include "attention.hpp"
#include "base.hpp"
#include "callers_operator.hpp"
#include "device.hpp"
#include "operators.h"

namespace kvc {
inline namespace api_0_2 {

struct OperatorNeeds : kvc_operator_needs {
  OperatorNeeds() noexcept : kvc_operator_needs(KVC_OPERATOR_NEEDS_INIT) {}
};

struct OperatorDesc : kvc_operator_desc {
  OperatorDesc() noexcept : kvc_operator_desc(KVC_OPERATOR_DESC_INIT) {}
};

struct ForwardDesc : kvc_forward_desc {
  ForwardDesc() noexcept : kvc_forward_desc(KVC_FORWARD_DESC_INIT) {}
};

// ---- The registry of a device ---------------------------------------------------------------------------------------

// All names, in order of registration: an alias follows its operator.
inline std::vector<OperatorInfo> operators(const Device &device) {
  std::vector<OperatorInfo> found;
  for (std::int32_t i = 0;; ++i) {
    OperatorInfo info;
    const kvc_status status = kvc_operator_at(device.handle(), i, &info);
    if (status == KVC_E_NOT_FOUND) return found;
    check(status);
    found.push_back(info);
  }
}

// The operator that a name stands for. Throws NotFound.
inline OperatorInfo operator_find(const Device &device, const char *name) {
  OperatorInfo info;
  check(kvc_operator_find(device.handle(), name, &info));
  return info;
}

// The name of an operator that can do what is needed: of the named one or, without a name, of the first built-in one. Throws
// NotSupported, which names the first thing that it lacks.
inline std::string operator_supports(const Device &device, const char *name, const OperatorNeeds &needs) {
  char chosen[32];
  detail::check_call([&] { return kvc_operator_supports(device.handle(), name, &needs, chosen); });
  return chosen;
}

// desc, with what is 0 taken from base, and then from the defaults.
inline OperatorDesc operator_resolve(const OperatorDesc &base, OperatorDesc desc) {
  check(kvc_operator_resolve(&base, &desc));
  return desc;
}

// ---- An operator with settings --------------------------------------------------------------------------------------

// May be closed before the caches that are bound to it, and after its device.
class Operator : public Owner<kvc_operator, kvc_operator_destroy> {
 public:
  Operator(const Device &device, const char *name, const OperatorDesc &desc = {}) {
    check(kvc_operator_create(device.handle(), name, &desc, &handle_));
  }

  OperatorInfo info() const {
    OperatorInfo info;
    check(kvc_operator_query(handle_, &info, nullptr));
    return info;
  }
  // The settings as they are used.
  OperatorDesc desc() const {
    OperatorDesc desc;
    check(kvc_operator_query(handle_, nullptr, &desc));
    return desc;
  }

  // Attention without a cache, within the bounds of the descriptor: q [rows, q_len, n_q_heads, head_dim_k], k and v
  // [rows, kv_len, n_kv_heads, …], out [rows, q_len, n_q_heads, head_dim_v]. alibi_slopes and sinks are [n_q_heads].
  void forward(const ForwardDesc &desc, const ConstTensor &q, const ConstTensor &k, const ConstTensor &v, Tensor out,
               AttentionExtra extra = {}, const float *alibi_slopes = nullptr, const float *sinks = nullptr) {
    const kvc_attention_extra pointers = extra.pointers();
    detail::check_call([&] {
      return kvc_operator_forward(handle_, &desc, q.get(), k.get(), v.get(), alibi_slopes, sinks, &pointers, out.get());
    });
  }
};

// Member functions of Cache.
template <typename Self>
class OperatorCalls {
 public:
  // Layers [layer_begin, layer_end) attend with `op` in passes of these modes, KVC_MODE_…; null: the library chooses.
  void bind_operator(std::int32_t layer_begin, std::int32_t layer_end, std::uint32_t modes, const Operator *op) {
    detail::check_call([&] {
      return kvc_bind_operator(static_cast<const Self &>(*this).handle(), layer_begin, layer_end, modes,
                               op == nullptr ? nullptr : op->handle());
    });
  }
};

}  // namespace api_0_2
}  // namespace kvc

#endif
