#include "kvc/recurrent.h"

#include <algorithm>
#include <cinttypes>

#include "capi/src/arguments.hpp"
#include "capi/src/inside.hpp"
#include "capi/src/words.hpp"
#include "core/base/checked.hpp"
#include "core/caches/recurrent.hpp"

static_assert(KVC_PART_CONV == kvc::RecurrentCache::conv &&
              KVC_PART_RECURRENT == kvc::RecurrentCache::recurrent);
static_assert(KVC_SEQUENCE_APPROXIMATE == kvc::sequence_approximate);
static_assert(sizeof(kvc_state_sequence) == sizeof(kvc::StateSequence));

namespace kvc::capi {
namespace {

/// Whether these are the dims of one state: any, as long as their product is the part's size.
Status check_dims(const char* name, const int64_t* dims, int32_t n, const StateShape& part) {
  CheckedSize product(1);
  for (int32_t d = 0; d < n; ++d) {
    if (dims[d] < 1) product = CheckedSize(0);
    product = product * CheckedSize(static_cast<uint64_t>(dims[d]));
  }
  const auto size = static_cast<uint64_t>(part.n_elements);
  if (n > 0 && !product.overflowed() && product.value() == size) return Status::ok;
  const bool is_conv = part.ndim == 2;
  return fail(Status::invalid_recurrent_shape,
              "%s has %d dims %s of a state, whose product must be %" PRId64 " (%s)", name, n,
              words_for_list(dims, n).text, part.n_elements,
              is_conv ? "conv_channels * conv_dim" : "state_size");
}

/// The rows that a tensor of states has in its first dimension.
struct Rows {
  int32_t n;
  const char* name;  // null: there is no such dimension
};

/// A tensor of states, [rows, dims…] or [dims…].
Status read_states(const char* name, const kvc_tensor* from, const Rows& rows, const StateShape& part,
                   Direction direction, const DeviceInfo& device, Tensor* to) {
  if (from == nullptr) return is_null(name);
  if (Status s = check_tensor_flags(name, *from); s != Status::ok) return s;
  const int32_t leading = rows.name != nullptr ? 1 : 0;
  if (from->ndim < 1 || from->ndim > KVC_MAX_DIMS)
    return fail(Status::shape, "%s has %d dimensions, not 1 to %d", name, from->ndim, KVC_MAX_DIMS);
  if (leading == 1 && from->shape[0] != rows.n) {
    return fail(Status::shape, "%s has shape %s, not [%d, …]: it counts the %s", name,
                words_for_list(from->shape, from->ndim).text, rows.n, rows.name);
  }
  const Status fits = check_dims(name, from->shape + leading, from->ndim - leading, part);
  if (fits != Status::ok) return fits;
  Expected as_given = {from->ndim, {}, "dims of a state"};
  std::copy_n(from->shape, from->ndim, as_given.shape);
  return read_tensor(name, from, as_given, direction, device, to);
}

/// Fills in shape, dense strides and type of a tensor without data.
Status describe(const Rows& rows, const StateShape& part, const DeviceInfo& device, kvc_tensor* into) {
  int64_t shape[KVC_MAX_DIMS];
  int32_t ndim = 0;
  if (rows.name != nullptr) shape[ndim++] = rows.n;
  for (int32_t d = 0; d < part.ndim; ++d) shape[ndim++] = part.extent[d];
  kvc_tensor dense;
  const auto dtype = static_cast<uint32_t>(part.dtype);
  const auto s = static_cast<Status>(kvc_tensor_dense(nullptr, dtype, ndim, shape, &dense));
  if (s != Status::ok) return s;
  dense.device_type = device.type;
  dense.device_id = device.id;
  *into = dense;
  return Status::ok;
}

Status get(RecurrentStates& states, int32_t layer, int32_t part, kvc_tensor* into) {
  if (Status s = states.ready_for_part(layer, part); s != Status::ok) return s;
  if (into == nullptr) return is_null("into");
  const StateShape shape = states.part_shape(part);
  const DeviceInfo& device = states.holder().device();
  const Rows rows = {states.n_batch_sequences(), "sequences of the batch"};
  if (into->data == nullptr) return describe(rows, shape, device, into);
  Tensor tensor;
  const Status s = read_states("into", into, rows, shape, Direction::out, device, &tensor);
  return s == Status::ok ? states.get_states(layer, part, tensor) : s;
}

Status put(RecurrentStates& states, int32_t layer, int32_t part, const kvc_tensor* from) {
  if (Status s = states.ready_for_part(layer, part); s != Status::ok) return s;
  Tensor tensor;
  const Rows rows = {states.n_batch_rows(), "rows of the batch, see kvc_state_layout"};
  const Status s = read_states("from", from, rows, states.part_shape(part), Direction::in,
                               states.holder().device(), &tensor);
  return s == Status::ok ? states.put_states(layer, part, tensor) : s;
}

Status put_conv(RecurrentStates& states, int32_t layer, const kvc_tensor* x) {
  if (Status s = states.ready_for_part(layer, KVC_PART_CONV); s != Status::ok) return s;
  const int64_t channels = states.part_shape(KVC_PART_CONV).extent[0];
  const Expected shape = {2, {states.holder().n_tokens(), channels}, "n_tokens, conv_channels"};
  Tensor tensor;
  const Status s = read_tensor("x", x, shape, Direction::in, states.holder().device(), &tensor);
  return s == Status::ok ? states.put_conv(layer, tensor) : s;
}

Status view(RecurrentStates& states, int32_t layer, int32_t part, int32_t n_dims,
            const int64_t* dims, kvc_tensor* slots) {
  if (Status s = states.ready_for_part(layer, part); s != Status::ok) return s;
  constexpr int32_t most = KVC_MAX_DIMS - 1;
  if (n_dims < 0 || n_dims > most) return out_of_range("n_dims", n_dims, 0, most);
  if (Status s = check_arrays("n_dims", n_dims, {{"dims", dims}}); s != Status::ok) return s;
  if (slots == nullptr) return is_null("slots");
  StateShape shape = states.part_shape(part);
  if (n_dims > 0) {
    if (Status s = check_dims("slots", dims, n_dims, shape); s != Status::ok) return s;
    shape.ndim = n_dims;
    std::copy_n(dims, n_dims, shape.extent);
  }
  Tensor all;
  if (Status s = states.view_states(layer, part, shape, &all); s != Status::ok) return s;
  write_view(all, states.holder().device(), slots);
  return Status::ok;
}

Status gather(RecurrentStates& states, int32_t layer, int32_t part, int32_t sequence, int32_t at,
              kvc_tensor* into) {
  if (Status s = states.check_part(layer, part); s != Status::ok) return s;
  if (Status s = states.check_place(sequence, at); s != Status::ok) return s;
  if (into == nullptr) return is_null("into");
  const StateShape shape = states.part_shape(part);
  const DeviceInfo& device = states.holder().device();
  const Rows no_rows = {0, nullptr};
  if (into->data == nullptr) {
    if (Status s = states.find_state(sequence, at); s != Status::ok) return s;
    return describe(no_rows, shape, device, into);
  }
  Tensor tensor;
  const Status s = read_states("into", into, no_rows, shape, Direction::out, device, &tensor);
  return s == Status::ok ? states.gather_state(layer, part, sequence, at, tensor) : s;
}

/// What lists an array of the caller's needs.
Status check_list(const char* name, int32_t capacity, const void* list, const char* count_name,
                  const int32_t* count) {
  if (count == nullptr) return is_null(count_name);
  return check_arrays("capacity", capacity, {{name, list}});
}

}  // namespace
}  // namespace kvc::capi

using kvc::Cache, kvc::RecurrentStates, kvc::Status;
using kvc::capi::OfRecurrentStates, kvc::capi::When;

kvc_status kvc_state_layout(const kvc_cache* cache, int32_t capacity, kvc_state_sequence* sequences,
                            int32_t* n, int32_t* order) noexcept {
  return kvc::capi::with_only<OfRecurrentStates>(
      cache, When::in_pass, {}, [&](const RecurrentStates& states, const Cache& c) -> Status {
        if (Status s = c.need_pass(); s != Status::ok) return s;
        if (Status s = kvc::capi::check_list("sequences", capacity, sequences, "n", n);
            s != Status::ok)
          return s;
        return states.layout(capacity, reinterpret_cast<kvc::StateSequence*>(sequences), n, order);
      });
}

kvc_status kvc_state_get(kvc_cache* cache, int32_t layer, int32_t part, kvc_tensor* into) noexcept {
  return kvc::capi::with_layer<OfRecurrentStates>(
      cache, layer, When::in_pass, {},
      [&](RecurrentStates& c, Cache&, int32_t own) { return kvc::capi::get(c, own, part, into); });
}

kvc_status kvc_state_put(kvc_cache* cache, int32_t layer, int32_t part,
                         const kvc_tensor* from) noexcept {
  return kvc::capi::with_layer<OfRecurrentStates>(
      cache, layer, When::in_pass, {},
      [&](RecurrentStates& c, Cache&, int32_t own) { return kvc::capi::put(c, own, part, from); });
}

kvc_status kvc_state_conv(kvc_cache* cache, int32_t layer, const kvc_tensor* x) noexcept {
  return kvc::capi::with_layer<OfRecurrentStates>(
      cache, layer, When::in_pass, {},
      [&](RecurrentStates& c, Cache&, int32_t own) { return kvc::capi::put_conv(c, own, x); });
}

kvc_status kvc_state_view(kvc_cache* cache, int32_t layer, int32_t part, int32_t n_dims,
                          const int64_t* dims, kvc_tensor* slots) noexcept {
  return kvc::capi::with_layer<OfRecurrentStates>(
      cache, layer, When::in_pass, {}, [&](RecurrentStates& c, Cache&, int32_t own) {
        return kvc::capi::view(c, own, part, n_dims, dims, slots);
      });
}

kvc_status kvc_state_slots(const kvc_cache* cache, int32_t capacity, int32_t* slot,
                           int32_t* n_rows) noexcept {
  return kvc::capi::with_only<OfRecurrentStates>(
      cache, When::in_pass, {}, [&](const RecurrentStates& states, const Cache& c) -> Status {
        if (Status s = c.need_pass(); s != Status::ok) return s;
        if (Status s = kvc::capi::check_list("slot", capacity, slot, "n_rows", n_rows);
            s != Status::ok)
          return s;
        return states.row_slots(capacity, slot, n_rows);
      });
}

kvc_status kvc_state_done(kvc_cache* cache, int32_t layer, int32_t part) noexcept {
  return kvc::capi::with_layer<OfRecurrentStates>(
      cache, layer, When::in_pass, {},
      [&](RecurrentStates& c, Cache&, int32_t own) { return c.states_done(own, part); });
}

kvc_status kvc_state_gather(kvc_cache* cache, int32_t layer, int32_t part, int32_t sequence,
                            int32_t at, kvc_tensor* into) noexcept {
  return kvc::capi::with_layer<OfRecurrentStates>(
      cache, layer, When::always, {sequence}, [&](RecurrentStates& c, Cache&, int32_t own) {
        return kvc::capi::gather(c, own, part, sequence, at, into);
      });
}

kvc_status kvc_checkpoint_take(kvc_cache* cache, int32_t sequence) noexcept {
  return kvc::capi::with_object(cache, [&](const kvc::capi::CacheObject& object, Cache& c) -> Status {
    if (c.checkpoints() == nullptr)
      return kvc::fail(Status::not_supported, "%s", kvc::capi::OfListedCheckpoints::lacking);
    if (Status s = kvc::capi::check_not_wrapped(object); s != Status::ok) return s;
    return c.take_checkpoint(sequence);
  });
}

kvc_status kvc_checkpoint_list(const kvc_cache* cache, int32_t sequence, int32_t capacity,
                               int32_t* at, int32_t* n) noexcept {
  return kvc::capi::with_only<kvc::capi::OfListedCheckpoints>(
      cache, When::always, {sequence},
      [&](const kvc::ListedCheckpoints& states, const Cache&) -> Status {
        if (Status s = kvc::capi::check_list("at", capacity, at, "n", n); s != Status::ok) return s;
        return states.list_checkpoints(sequence, capacity, at, n);
      });
}
