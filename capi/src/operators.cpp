#include <cmath>
#include <cstdio>
#include <cstring>
#include <new>

#include "capi/src/arguments.hpp"
#include "capi/src/callers_operator.hpp"
#include "capi/src/inside.hpp"
#include "capi/src/operator_words.hpp"
#include "capi/src/words.hpp"
#include "core/attention/registry.hpp"
#include "core/caches/kv_layers.hpp"

/// Operators by name, with settings, and the layers that attend with them.
namespace kvc::capi {
namespace {

/// What a device handle has for operators; both outlive the handle.
struct DeviceOperators {
  std::shared_ptr<Device> device;
  std::shared_ptr<OperatorRegistry> registry;
};

Status operators_of(const kvc_device* handle, DeviceOperators* out) {
  void* object = nullptr;
  if (Status s = handles::enter(handle, Kind::device, Access::shared, &object); s != Status::ok)
    return s;
  const auto& device = *static_cast<const DeviceObject*>(object);
  *out = {device.device, device.operators};
  handles::leave(handle, Access::shared);
  return Status::ok;
}

Status describe(const kvc_device* device, int32_t i, const char* name, kvc_operator_info* out) {
  DeviceOperators of;
  if (Status s = operators_of(device, &of); s != Status::ok) return s;
  if (Status s = check_output("kvc_operator_info", out); s != Status::ok) return s;
  OperatorRegistry::Entry entry = {};
  const Status found = name != nullptr ? of.registry->find(name, &entry) : of.registry->at(i, &entry);
  if (found != Status::ok) return found;
  write_output(info_of(*entry.op, entry.name, of.device->info()), out);
  return Status::ok;
}

// ---- What an operator is wanted for -------------------------------------------------------------------------------------

Status read_needs(const kvc_operator_needs* from, OperatorNeeds* needs) {
  kvc_operator_needs n;
  if (Status s = read_descriptor("kvc_operator_needs", from, &n); s != Status::ok) return s;
  const bool one = n.mode != 0 && (n.mode & (n.mode - 1)) == 0 &&
                   (n.mode & ~uint32_t{KVC_MODE_ALL}) == 0;
  if (!one)
    return fail(Status::invalid_argument,
                "kvc_operator_needs.mode is %u; it must be one of KVC_MODE_TRAIN (1), "
                "KVC_MODE_PREFILL (2), KVC_MODE_AUTOREGRESSIVE (4) and KVC_MODE_INSERT (8)",
                n.mode);
  if (const uint32_t unknown = n.features & ~all_features; unknown != 0)
    return unknown_bits("kvc_operator_needs.features", unknown, "KVC_FEATURE_…");
  if (Status s = read_storage_type("dtype_k", n.dtype_k, &needs->type_k); s != Status::ok) return s;
  if (Status s = read_storage_type("dtype_v", n.dtype_v, &needs->type_v); s != Status::ok) return s;
  const Status counts = check_counts({{"n_q_heads", n.n_q_heads},
                                      {"n_kv_heads", n.n_kv_heads},
                                      {"head_dim_k", n.head_dim_k},
                                      {"head_dim_v", n.head_dim_v}},
                                     max_head_dim);
  if (counts != Status::ok) return counts;
  const Status runtime = read_precision("runtime_dtype", n.runtime_dtype, &needs->runtime_type);
  if (runtime != Status::ok) return runtime;
  const Status softmax = read_precision("softmax_dtype", n.softmax_dtype, &needs->softmax_type);
  if (softmax != Status::ok) return softmax;
  needs->mode = static_cast<Mode>(n.mode);
  needs->features = n.features;
  needs->n_q_heads = n.n_q_heads;
  needs->n_kv_heads = n.n_kv_heads;
  needs->head_dim_k = n.head_dim_k;
  needs->head_dim_v = n.head_dim_v;
  return Status::ok;
}

Status supports(const kvc_device* device, const char* name, const kvc_operator_needs* wanted,
                char* chosen) {
  DeviceOperators of;
  if (Status s = operators_of(device, &of); s != Status::ok) return s;
  OperatorNeeds needs;
  if (Status s = read_needs(wanted, &needs); s != Status::ok) return s;
  const auto name_it = [chosen](const AttentionOperator& op) {
    if (chosen != nullptr) std::snprintf(chosen, OperatorRegistry::name_capacity, "%s", op.name);
    return Status::ok;
  };
  if (name != nullptr) {
    OperatorRegistry::Entry entry = {};
    if (Status s = of.registry->find(name, &entry); s != Status::ok) return s;
    if (Status s = check_operator(*entry.op, needs); s != Status::ok) return s;
    return name_it(*entry.op);
  }
  for (int32_t i = 0; const AttentionOperator* op = of.registry->built_in(i); ++i) {
    if (check_operator(*op, needs) == Status::ok) return name_it(*op);
  }
  return check_operator(*of.registry->built_in(0), needs);  // what the one that attends by itself lacks
}

// ---- Operators of callers -----------------------------------------------------------------------------------------------

Status add(const kvc_device* device, const char* names, uint32_t flags,
           const kvc_operator_info* info, const kvc_operator_functions* functions, void* user) {
  DeviceOperators of;
  if (Status s = operators_of(device, &of); s != Status::ok) return s;
  if (const uint32_t unknown = flags & ~uint32_t{KVC_OPERATOR_REPLACE}; unknown != 0)
    return unknown_bits("flags", unknown, "KVC_OPERATOR_REPLACE");
  std::shared_ptr<CallersOperator> op;
  if (Status s = make_callers_operator(names, info, functions, user, of.device->info(), &op);
      s != Status::ok)
    return s;
  if (Status s = of.registry->add(op, (flags & KVC_OPERATOR_REPLACE) != 0); s != Status::ok)
    return s;
  op->is_registered = true;
  return Status::ok;
}

/// What the registry lets go of ends behind its lock.
Status take_away(const kvc_device* device, const char* name) {
  DeviceOperators of;
  if (Status s = operators_of(device, &of); s != Status::ok) return s;
  if (name == nullptr) return is_null("name");
  std::shared_ptr<const AttentionOperator> op;
  return of.registry->remove(name, &op);
}

// ---- Settings -----------------------------------------------------------------------------------------------------------

Status check_settings(const kvc_operator_desc& d) {
  if (const uint32_t unknown = d.flags & ~uint32_t{KVC_OPERATOR_NO_SCAN}; unknown != 0)
    return unknown_bits("kvc_operator_desc.flags", unknown, "KVC_OPERATOR_NO_SCAN");
  if (!(d.dropout_prob >= 0 && d.dropout_prob < 1)) {
    return fail(Status::invalid_argument, "dropout_prob is %g; it must be 0 or more and below 1",
                static_cast<double>(d.dropout_prob));
  }
  constexpr float most = 0x1p100f;
  const float scale = std::fabs(d.softmax_scale);
  if (d.softmax_scale != 0 && !(scale >= 1 / most && scale <= most)) {
    return fail(Status::invalid_argument,
                "softmax_scale is %g; it must be 0 or of a magnitude from 2^-100 to 2^100",
                static_cast<double>(d.softmax_scale));
  }
  return check_counts({{"block_q", d.block_q},
                       {"block_k", d.block_k},
                       {"block_b", d.block_b},
                       {"stretches", d.stretches}},
                      1 << 20);
}

/// A block that was asked for, as the operator has it; 0: its own.
Status read_block(const AttentionOperator& op, const char* name, int32_t asked, int32_t multiple,
                  int32_t most, int32_t* block) {
  const int64_t rounded = multiple == 0 ? asked
                                        : (int64_t{asked} + multiple - 1) / multiple * multiple;
  if (most != 0 && rounded > most) {
    return fail(Status::not_supported, "%s is %d; the operator %s has blocks of at most %d", name,
                asked, op.name, most);
  }
  *block = static_cast<int32_t>(rounded);
  return Status::ok;
}

/// `d` is resolved.
Status choose(const kvc_operator_desc& d, const DeviceInfo& device, ChosenOperator* chosen) {
  const AttentionOperator& op = *chosen->op;
  OperatorNeeds needs;
  needs.mode = mode_insert;  // each operator is for some modes, which are checked when it is bound
  if (Status s = read_precision("runtime_dtype", d.runtime_dtype, &needs.runtime_type);
      s != Status::ok)
    return s;
  if (Status s = read_precision("softmax_dtype", d.softmax_dtype, &needs.softmax_type);
      s != Status::ok)
    return s;
  if (op.run == nullptr) {  // it is bound to states, which have a scale and nothing to round
    needs.features = feature_lightning;
    if (d.softmax_scale != 0)
      return fail(Status::not_supported,
                  "the operator %s has no softmax_scale: its layers have one", op.name);
  }
  needs.features |= (d.dropout_prob != 0 ? feature_dropout : 0u) |
                    (d.block_q != 0 ? feature_block_q : 0u) |
                    (d.block_k != 0 ? feature_block_k : 0u) |
                    (d.block_b != 0 ? feature_block_b : 0u) |
                    (d.stretches != 0 || d.flags != 0 ? feature_scan : 0u);
  needs.type_k = needs.type_v = first_storage(op);
  if (Status s = check_operator(op, needs); s != Status::ok) return s;
  OperatorSettings& settings = chosen->settings;
  if (Status s = read_block(op, "block_q", d.block_q, op.block_q_multiple, op.block_q_max,
                            &settings.block_q);
      s != Status::ok)
    return s;
  if (Status s = read_block(op, "block_k", d.block_k, op.block_k_multiple, op.block_k_max,
                            &settings.block_k);
      s != Status::ok)
    return s;
  settings.block_b = d.block_b;
  if ((op.features & feature_scan) != 0)
    settings.stretches = d.stretches != 0 ? d.stretches : device.n_threads;
  settings.side_by_side = (d.flags & KVC_OPERATOR_NO_SCAN) != 0;
  settings.in_double = needs.softmax_type == in_f64;
  settings.runtime_type = needs.runtime_type;
  chosen->scale = d.softmax_scale;
  chosen->dropout_probability = d.dropout_prob;
  chosen->softmax_type = needs.softmax_type;
  chosen->device_type = device.type;
  chosen->device_id = device.id;
  return Status::ok;
}

/// 0 in all of them: none.
Status read_bounds(const kvc_operator_desc& d, ForwardBounds* bounds, bool* given) {
  constexpr int32_t largest = 1 << 30, most_heads = 65536;
  *given = (d.max_rows | d.max_q_len | d.max_kv_len | d.n_kv_heads | d.max_q_heads | d.head_dim_k |
            d.head_dim_v) != 0;
  if (!*given) return Status::ok;
  *bounds = {.max_rows = d.max_rows,
             .max_q_len = d.max_q_len,
             .max_kv_len = d.max_kv_len,
             .n_kv_heads = d.n_kv_heads,
             .max_q_heads = d.max_q_heads != 0 ? d.max_q_heads : d.n_kv_heads,
             .head_dim_k = d.head_dim_k,
             .head_dim_v = d.head_dim_v != 0 ? d.head_dim_v : d.head_dim_k};
  const struct {
    Count bound;
    int32_t most;
  } limits[] = {{{"max_rows", bounds->max_rows}, largest},
                {{"max_q_len", bounds->max_q_len}, largest},
                {{"max_kv_len", bounds->max_kv_len}, largest},
                {{"n_kv_heads", bounds->n_kv_heads}, most_heads},
                {{"max_q_heads", bounds->max_q_heads}, most_heads},
                {{"head_dim_k", bounds->head_dim_k}, max_head_dim},
                {{"head_dim_v", bounds->head_dim_v}, max_head_dim}};
  for (const auto& [bound, most] : limits) {
    if (bound.value < 1 || bound.value > most)
      return out_of_range(bound.name, bound.value, 1, most);
  }
  if (bounds->max_q_heads < bounds->n_kv_heads)
    return out_of_range("max_q_heads", bounds->max_q_heads, bounds->n_kv_heads, most_heads);
  for (const Count& length : {Count{"max_q_len", d.max_q_len}, Count{"max_kv_len", d.max_kv_len}}) {
    if (int64_t{d.max_rows} * length.value > largest)
      return fail(Status::overflow, "max_rows %d * %s %d is more than %d", d.max_rows, length.name,
                  length.value, largest);
  }
  return Status::ok;
}

Status create(const kvc_device* device, const char* name, const kvc_operator_desc* desc,
              kvc_operator** out) {
  if (out != nullptr) *out = nullptr;
  DeviceOperators of;
  if (Status s = operators_of(device, &of); s != Status::ok) return s;
  if (out == nullptr) return is_null("out");
  if (name == nullptr) return is_null("name");
  kvc_operator_desc d = KVC_OPERATOR_DESC_INIT;
  if (desc != nullptr) {
    if (Status s = read_descriptor("kvc_operator_desc", desc, &d); s != Status::ok) return s;
  }
  if (Status s = check_settings(d); s != Status::ok) return s;
  ForwardBounds bounds;
  bool attends_alone = false;
  if (Status s = read_bounds(d, &bounds, &attends_alone); s != Status::ok) return s;
  OperatorRegistry::Entry entry = {};
  if (Status s = of.registry->find(name, &entry); s != Status::ok) return s;
  auto object = std::make_unique<OperatorObject>();
  auto chosen = std::make_shared<ChosenOperator>();
  chosen->op = entry.op;
  if (Status s = choose(d, of.device->info(), chosen.get()); s != Status::ok) return s;
  if (attends_alone) {
    OperatorNeeds needs;
    needs.mode = mode_insert;
    needs.features = feature_forward | (chosen->op->features & feature_lightning);
    needs.type_k = needs.type_v = first_storage(*chosen->op);
    needs.head_dim_k = bounds.head_dim_k;
    needs.head_dim_v = bounds.head_dim_v;
    if (Status s = check_operator(*chosen->op, needs); s != Status::ok) return s;
    if (Status s = Forward::create(of.device, bounds, &object->forward); s != Status::ok) return s;
  }
  std::memcpy(object->name, entry.name, sizeof object->name);
  object->device = of.device;
  object->chosen = std::move(chosen);
  *out = static_cast<kvc_operator*>(handles::add(Kind::op, object.get(), {}));
  if (*out == nullptr) return Status::out_of_memory;
  (void)object.release();  // the table owns it now
  return Status::ok;
}

Status query(const OperatorObject& object, kvc_operator_info* info, kvc_operator_desc* desc) {
  if (info != nullptr) {
    if (Status s = check_output("kvc_operator_info", info); s != Status::ok) return s;
  }
  if (desc != nullptr) {
    if (Status s = check_output("kvc_operator_desc", desc); s != Status::ok) return s;
  }
  const ChosenOperator& chosen = *object.chosen;
  if (info != nullptr) write_output(info_of(*chosen.op, object.name, object.device->info()), info);
  if (desc == nullptr) return Status::ok;
  kvc_operator_desc d = KVC_OPERATOR_DESC_INIT;
  d.flags = chosen.settings.side_by_side ? uint32_t{KVC_OPERATOR_NO_SCAN} : 0;
  d.runtime_dtype = dtype_of_precision(chosen.settings.runtime_type);
  d.softmax_dtype = dtype_of_precision(chosen.softmax_type);
  d.softmax_scale = chosen.scale;
  d.dropout_prob = chosen.dropout_probability;
  d.block_q = chosen.settings.block_q;
  d.block_k = chosen.settings.block_k;
  d.block_b = chosen.settings.block_b;
  d.stretches = chosen.settings.stretches;
  if (object.forward) {
    const ForwardBounds& bounds = object.forward->bounds();
    d.max_rows = bounds.max_rows;
    d.max_q_len = bounds.max_q_len;
    d.max_kv_len = bounds.max_kv_len;
    d.n_kv_heads = bounds.n_kv_heads;
    d.max_q_heads = bounds.max_q_heads;
    d.head_dim_k = bounds.head_dim_k;
    d.head_dim_v = bounds.head_dim_v;
  }
  write_output(d, desc);
  return Status::ok;
}

Status resolve(const kvc_operator_desc* base, kvc_operator_desc* desc) {
  kvc_operator_desc d, b = KVC_OPERATOR_DESC_INIT;
  if (Status s = read_descriptor("kvc_operator_desc", desc, &d); s != Status::ok) return s;
  if (base != nullptr) {
    if (Status s = read_descriptor("base", base, &b); s != Status::ok) return s;
  }
  const auto fill = [](auto& field, auto from, auto otherwise) {
    if (field == 0) field = from != 0 ? from : otherwise;
  };
  fill(d.flags, b.flags, 0u);
  fill(d.runtime_dtype, b.runtime_dtype, uint32_t{KVC_F32});
  fill(d.softmax_dtype, b.softmax_dtype, uint32_t{KVC_F32});
  fill(d.softmax_scale, b.softmax_scale, 0.0f);
  fill(d.dropout_prob, b.dropout_prob, 0.0f);
  fill(d.block_q, b.block_q, 0);
  fill(d.block_k, b.block_k, 0);
  fill(d.block_b, b.block_b, 0);
  fill(d.stretches, b.stretches, 0);
  fill(d.max_rows, b.max_rows, 0);
  fill(d.max_q_len, b.max_q_len, 0);
  fill(d.max_kv_len, b.max_kv_len, 0);
  fill(d.n_kv_heads, b.n_kv_heads, 0);
  fill(d.max_q_heads, b.max_q_heads, 0);
  fill(d.head_dim_k, b.head_dim_k, 0);
  fill(d.head_dim_v, b.head_dim_v, 0);
  write_output(d, desc);
  return Status::ok;
}

// ---- Layers -------------------------------------------------------------------------------------------------------------

/// Of a cache that attends in one way alone: null.
KvLayers* layers_of(Cache& cache) { return cache.layer_attention()->layers_with_operators(); }

/// Caches of states attend by themselves, and their operator has no more to it than its name.
Status check_states(const ChosenOperator& op) {
  if ((op.op->features & feature_lightning) != 0) return Status::ok;
  return fail(Status::not_supported, "the operator %s has no lightning attention", op.op->name);
}

Status bind(const LayerRange& layers, const DeviceInfo& device, uint32_t modes,
            const std::shared_ptr<const ChosenOperator>& op) {
  if (Status s = layers.check_facet<OfLayerAttention>(); s != Status::ok) return s;
  if (Status s = layers.check(); s != Status::ok) return s;
  if (modes == 0)
    return fail(Status::invalid_argument,
                "modes is 0; it must name one at least (KVC_MODE_ALL, 15)");
  if (const uint32_t unknown = modes & ~uint32_t{KVC_MODE_ALL}; unknown != 0)
    return unknown_bits("modes", unknown, "KVC_MODE_…");
  if (op && (op->device_type != device.type || op->device_id != device.id)) {
    return fail(Status::device_mismatch, "op was created on %s, the cache on %s: create it there",
                words_for_device(op->device_type, op->device_id).text,
                words_for_device(device.type, device.id).text);
  }
  const auto ask = [&](auto question) {
    return layers.each_part_until([&](Cache& cache, int32_t begin, int32_t end) {
      return question(layers_of(cache), begin, end);
    });
  };
  if (op) {
    const Status scale = ask([&](const KvLayers* of, int32_t begin, int32_t end) {
      return of == nullptr ? Status::ok : of->check_scale(begin, end, *op);
    });
    if (scale != Status::ok) return scale;
  }
  if (Status s = layers.check_idle(); s != Status::ok) return s;
  if (op) {
    const Status lacks = ask([&](const KvLayers* of, int32_t begin, int32_t end) {
      return of == nullptr ? check_states(*op) : of->check_operator(begin, end, modes, *op);
    });
    if (lacks != Status::ok) return lacks;
  }
  layers.each_part([&](Cache& cache, int32_t begin, int32_t end) {
    if (KvLayers* const of = layers_of(cache)) of->bind_operator(begin, end, modes, op);
  });
  return Status::ok;
}

/// What a handle of an operator stands for, without keeping the handle.
Status chosen_of(kvc_operator* handle, std::shared_ptr<const ChosenOperator>* out) {
  if (handle == nullptr) return Status::ok;
  void* object = nullptr;
  if (Status s = handles::enter(handle, Kind::op, Access::shared, &object); s != Status::ok)
    return s;
  *out = static_cast<const OperatorObject*>(object)->chosen;
  handles::leave(handle, Access::shared);
  return Status::ok;
}

}  // namespace
}  // namespace kvc::capi

kvc_status kvc_operator_at(const kvc_device* device, int32_t i, kvc_operator_info* out) noexcept {
  return kvc::capi::guard_lifetime([&]() -> kvc::Status {
    if (i < 0) return kvc::out_of_range("i", i, 0, INT32_MAX);
    return kvc::capi::describe(device, i, nullptr, out);
  });
}

kvc_status kvc_operator_find(const kvc_device* device, const char* name,
                             kvc_operator_info* out) noexcept {
  return kvc::capi::guard_lifetime([&]() -> kvc::Status {
    if (name == nullptr) return kvc::is_null("name");
    return kvc::capi::describe(device, 0, name, out);
  });
}

kvc_status kvc_operator_supports(const kvc_device* device, const char* name,
                                 const kvc_operator_needs* needs, char* chosen) noexcept {
  return kvc::capi::guard_lifetime([&] { return kvc::capi::supports(device, name, needs, chosen); });
}

kvc_status kvc_operator_resolve(const kvc_operator_desc* base, kvc_operator_desc* desc) noexcept {
  return kvc::capi::guard([&] { return kvc::capi::resolve(base, desc); });
}

kvc_status kvc_operator_create(kvc_device* device, const char* name, const kvc_operator_desc* desc,
                               kvc_operator** out) noexcept {
  return kvc::capi::guard_lifetime([&] { return kvc::capi::create(device, name, desc, out); });
}

kvc_status kvc_operator_destroy(kvc_operator* op) noexcept {
  if (op == nullptr) return KVC_OK;
  return kvc::capi::guard_lifetime([&]() -> kvc::Status {
    void* object = nullptr;
    const kvc::Status removed = kvc::capi::handles::remove(op, kvc::capi::Kind::op, &object);
    if (removed == kvc::Status::ok) delete static_cast<kvc::capi::OperatorObject*>(object);
    return removed;
  });
}

kvc_status kvc_operator_query(const kvc_operator* op, kvc_operator_info* info,
                              kvc_operator_desc* desc) noexcept {
  return kvc::capi::guard([&]() -> kvc::Status {
    using namespace kvc::capi::handles;
    void* object = nullptr;
    const kvc::Status entered = enter(op, kvc::capi::Kind::op, kvc::capi::Access::shared, &object);
    if (entered != kvc::Status::ok) return entered;
    const kvc::Status status = kvc::capi::query(*static_cast<kvc::capi::OperatorObject*>(object),
                                                info, desc);
    leave(op, kvc::capi::Access::shared);
    return status;
  });
}

kvc_status kvc_operator_register(kvc_device* device, const char* names, uint32_t flags,
                                 const kvc_operator_info* info,
                                 const kvc_operator_functions* functions, void* user) noexcept {
  return kvc::capi::guard_lifetime(
      [&] { return kvc::capi::add(device, names, flags, info, functions, user); });
}

kvc_status kvc_operator_unregister(kvc_device* device, const char* name) noexcept {
  return kvc::capi::guard_lifetime([&] { return kvc::capi::take_away(device, name); });
}

kvc_status kvc_bind_operator(kvc_cache* cache, int32_t layer_begin, int32_t layer_end,
                             uint32_t modes, kvc_operator* op) noexcept {
  return kvc::capi::with_object(cache, [&](kvc::capi::CacheObject& object, kvc::Cache& c) {
    std::shared_ptr<const kvc::ChosenOperator> chosen;
    if (kvc::Status s = kvc::capi::chosen_of(op, &chosen); s != kvc::Status::ok) return s;
    return kvc::capi::bind(kvc::capi::LayerRange(object, layer_begin, layer_end), c.device(), modes,
                           chosen);
  });
}
