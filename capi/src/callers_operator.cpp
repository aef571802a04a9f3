#include "capi/src/callers_operator.hpp"

#include <cstring>

#include "capi/src/arguments.hpp"
#include "capi/src/cancellation.hpp"
#include "capi/src/operator_call.hpp"
#include "capi/src/operator_words.hpp"
#include "core/base/float_environment.hpp"
#include "kernels/cpu/attention.hpp"

namespace kvc::capi {
namespace {

constexpr size_t most_names = CallersOperator::most_names;

/// Calls a caller's function; its status as ours. `what` it was called for is for the message.
template <class Function>
Status call_out(const AttentionOperator& op, const char* what, Function function) {
  kvc_status status = KVC_OK;
  try {
    const NoCancellation until_done;
    const FloatEnvironmentAroundCallback around;
    status = function();
  } catch (...) {
    return fail(Status::internal, "an exception left the operator %s (kvc_operator_register)",
                op.name);
  }
  if (status == KVC_OK) return Status::ok;
  const char* name = kvc_status_name(status);
  const bool known = std::strcmp(name, "UNKNOWN") != 0;
  return fail(known ? static_cast<Status>(status) : Status::invalid_argument,
              "the operator %s (kvc_operator_register) returned %s (%d) %s%s", op.name, name,
              status, what, known ? "" : ": no status of kvc");
}

/// Whether kvc_bind_scales() bound something other than 1.
bool scales_codes(const Slab& slab) {
  for (int32_t head = 0; head < slab.n_heads; ++head) {
    if (slab.scale_of(head) != 1.0f) return true;
  }
  return false;
}

/// What core asks of an operator.
Status run(const AttentionOperator& self, const AttentionParams& params, CacheDevice&) noexcept {
  const auto& op = static_cast<const CallersOperator&>(self);
  const kvc_operator_forward_function own = op.device.type == KVC_CUDA ? op.functions.forward_cuda
                                                                       : op.functions.forward_cpu;
  const kvc_operator_forward_function forward = own != nullptr ? own : op.functions.forward_native;
  if (scales_codes(params.storage.k) || scales_codes(params.storage.v)) {
    return fail(Status::not_supported,
                "the operator %s (kvc_operator_register) would not be told the scales that "
                "kvc_bind_scales bound: a call has none",
                op.name);
  }
  CallInProgress call(params, op.device);
  if (Status s = call.begin(); s != Status::ok) return s;
  const Status status = call_out(op, "for a call", [&] { return forward(op.user, call.call()); });
  cpu::write_padding(params);
  return status;
}

Status supports(const AttentionOperator& self, const OperatorNeeds& needs) noexcept {
  const auto& op = static_cast<const CallersOperator&>(self);
  kvc_operator_needs n = KVC_OPERATOR_NEEDS_INIT;
  n.mode = needs.mode;
  n.features = needs.features;
  n.dtype_k = dtype_of(needs.type_k);
  n.dtype_v = dtype_of(needs.type_v);
  n.n_q_heads = needs.n_q_heads;
  n.n_kv_heads = needs.n_kv_heads;
  n.head_dim_k = needs.head_dim_k;
  n.head_dim_v = needs.head_dim_v;
  n.runtime_dtype = dtype_of_precision(needs.runtime_type);
  n.softmax_dtype = dtype_of_precision(needs.softmax_type);
  return call_out(op, "when asked for what it supports",
                  [&] { return op.functions.supports(op.user, &n); });
}

// ---- What a caller describes --------------------------------------------------------------------------------------------

bool is_name_letter(char c) {
  return (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9') || c == '_' || c == '-';
}

/// "mine,alias" becomes a name and a list of aliases.
Status read_names(const char* names, CallersOperator* op) {
  if (names == nullptr) return is_null("names");
  size_t n = 0, length = 0;
  for (const char* at = names;; ++at) {
    char* const name = op->names + n * OperatorRegistry::name_capacity;
    if (*at == ',' || *at == '\0') {
      if (length == 0) return fail(Status::invalid_argument, "names: name %zu is empty", n);
      if (n == 0)
        op->name = name;
      else
        op->alias_list[n - 1] = name;
      ++n;
      length = 0;
      if (*at == '\0') break;
      if (n == most_names)
        return fail(Status::invalid_argument, "names has more than %zu names", most_names);
      continue;
    }
    if (!is_name_letter(*at))
      return fail(Status::invalid_argument,
                  "names: name %zu has a character that is none of a-z, 0-9, _ and -", n);
    if (length + 1 == OperatorRegistry::name_capacity)
      return fail(Status::invalid_argument, "names: name %zu has more than %zu characters", n,
                  OperatorRegistry::name_capacity - 1);
    name[length++] = *at;
  }
  op->aliases = op->alias_list;
  return Status::ok;
}

Status read_info(const kvc_operator_info* from, CallersOperator* op) {
  kvc_operator_info info;
  if (Status s = read_descriptor("kvc_operator_info", from, &info); s != Status::ok) return s;
  const uint32_t here = uint32_t{1} << op->device.type;
  if (info.devices != 0 && (info.devices & here) == 0) {
    return fail(
        Status::invalid_argument,
        "devices is %u, without the bit of this device (1 << %d): register it where it runs",
        info.devices, op->device.type);
  }
  if ((info.modes & modes_that_attend) == 0)
    return fail(Status::invalid_argument,
                "modes is %u; it must name one of KVC_MODE_TRAIN, KVC_MODE_PREFILL and "
                "KVC_MODE_AUTOREGRESSIVE at least",
                info.modes);
  constexpr uint32_t precisions = in_f64 | in_f32 | in_f16 | in_bf16;
  const struct {
    const char* name;
    uint32_t bits, known;
    const char* words;
  } sets[] = {{"modes", info.modes, KVC_MODE_ALL, "KVC_MODE_…"},
              {"features", info.features, all_features, "KVC_FEATURE_…"},
              {"storage", info.storage, every_storage << 1, "KVC_SET_…"},
              {"runtime_dtypes", info.runtime_dtypes, precisions, "KVC_SET_…"},
              {"softmax_dtypes", info.softmax_dtypes, precisions, "KVC_SET_…"}};
  for (const auto& set : sets) {
    const uint32_t unknown = set.bits & ~set.known;
    if (unknown != 0) return unknown_bits(set.name, unknown, set.words);
  }
  const Status counts = check_counts({{"head_dim_min", info.head_dim_min},
                                      {"head_dim_max", info.head_dim_max},
                                      {"head_dim_multiple", info.head_dim_multiple},
                                      {"block_q_multiple", info.block_q_multiple},
                                      {"block_k_multiple", info.block_k_multiple}},
                                     max_head_dim);
  if (counts != Status::ok) return counts;
  const auto or_f32 = [](uint32_t set) { return set != 0 ? set : uint32_t{in_f32}; };
  op->modes = info.modes & modes_that_attend;
  op->features = info.features;
  op->storage = or_f32(info.storage) >> 1;
  op->runtime_types = or_f32(info.runtime_dtypes);
  op->softmax_types = or_f32(info.softmax_dtypes);
  op->head_dim_min = info.head_dim_min;
  op->head_dim_max = info.head_dim_max;
  op->head_dim_multiple = info.head_dim_multiple;
  op->block_q_multiple = info.block_q_multiple;
  op->block_k_multiple = info.block_k_multiple;
  return Status::ok;
}

}  // namespace

CallersOperator::~CallersOperator() {
  if (!is_registered || functions.release == nullptr) return;
  const NoCancellation until_done;
  const FloatEnvironmentAroundCallback around;
  functions.release(user);
}

Status make_callers_operator(const char* names, const kvc_operator_info* info,
                             const kvc_operator_functions* functions, void* user,
                             const DeviceInfo& device, std::shared_ptr<CallersOperator>* out) {
  auto op = std::make_shared<CallersOperator>();
  op->device = device;
  if (Status s = read_names(names, op.get()); s != Status::ok) return s;
  if (Status s = read_info(info, op.get()); s != Status::ok) return s;
  const Status read = read_descriptor("kvc_operator_functions", functions, &op->functions);
  if (read != Status::ok) return read;
  if (op->functions.reserved != 0)
    return fail(Status::invalid_argument, "kvc_operator_functions.reserved is %u; it must be 0",
                op->functions.reserved);
  if (op->functions.forward_native == nullptr) return is_null("forward_native");
  op->user = user;
  op->is_callers = true;
  op->run = run;
  op->AttentionOperator::supports = op->functions.supports != nullptr ? supports : nullptr;
  *out = std::move(op);
  return Status::ok;
}

}  // namespace kvc::capi
