// kvc/recurrent.hpp: caches of the states of recurrent layers. Part of <kvc/kvc.hpp>; recurrent.h is the manual.
//
// Recurrent caches hold states in place of keys and values. A pass reads those that its sequences had and stores those that
// its tokens leave, the rows:
//
//   const kvc::StateLayout layout = cache.state_layout();  // which tokens and rows belong to which sequence
//   for each layer {
//     cache.state_get(layer, kvc::Part::recurrent, {before, {n_sequences, 32, 128, 128}});
//     …                                                    // your recurrence
//     cache.state_put(layer, kvc::Part::recurrent, {after, {n_rows, 32, 128, 128}});
//     cache.state_conv(layer, {x, {n_tokens, n_channels}});
//   }
#ifndef KVC_RECURRENT_HPP
#define KVC_RECURRENT_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base.hpp"

namespace kvc {
inline namespace api_0_2 {

// Parts of a state of a recurrent cache.
enum class Part : std::int32_t { conv = KVC_PART_CONV, recurrent = KVC_PART_RECURRENT };

// The batch of a pass by sequences, see kvc_state_layout().
struct StateLayout {
  std::vector<kvc_state_sequence> sequences;
  std::vector<std::int32_t> order;  // [n_tokens] indexes into the batch; those of padding come last
};

// Member functions of Cache.
template <typename Self>
class StateCalls {
 public:
  StateLayout state_layout() const {
    const auto most_tokens = static_cast<std::size_t>(static_cast<const Self &>(*this).max_batch_);  // of any pass
    StateLayout layout;
    layout.sequences = detail::list_of<kvc_state_sequence>([&](std::int32_t room, kvc_state_sequence *found, std::int32_t *n) {
      layout.order.assign(most_tokens, -1);
      return kvc_state_layout(raw(), room, found, n, layout.order.data());
    });
    layout.order.erase(std::find(layout.order.begin(), layout.order.end(), -1), layout.order.end());
    return layout;
  }
  // The shape that state_get() needs, [n_sequences, dims…], and the storage type; data is null.
  kvc_tensor state_shape(std::int32_t layer, Part part) {
    kvc_tensor shape{};
    check(kvc_state_get(raw(), layer, static_cast<std::int32_t>(part), &shape));
    return shape;
  }
  void state_get(std::int32_t layer, Part part, Tensor into) {
    check(kvc_state_get(raw(), layer, static_cast<std::int32_t>(part), into.get()));
  }
  void state_put(std::int32_t layer, Part part, const ConstTensor &from) {
    check(kvc_state_put(raw(), layer, static_cast<std::int32_t>(part), from.get()));
  }
  void state_conv(std::int32_t layer, const ConstTensor &x) { check(kvc_state_conv(raw(), layer, x.get())); }
  // All slots, [n_slots, dims…], for kernels that work in place: they read the slots that state_layout() names, write those
  // of state_slots() and call state_done(). The view lasts until the pass ends.
  kvc_tensor state_view(std::int32_t layer, Part part, const std::vector<std::int64_t> &dims = {}) {
    kvc_tensor slots{};
    check(kvc_state_view(raw(), layer, static_cast<std::int32_t>(part), detail::length("dims", dims),
                         dims.empty() ? nullptr : dims.data(), &slots));
    return slots;
  }
  std::vector<std::int32_t> state_slots() const {
    return detail::list_of([&](std::int32_t room, std::int32_t *slot, std::int32_t *n) {
      return kvc_state_slots(raw(), room, slot, n);
    });
  }
  void state_done(std::int32_t layer, Part part) {
    check(kvc_state_done(raw(), layer, static_cast<std::int32_t>(part)));
  }
  void state_gather(std::int32_t layer, Part part, std::int32_t sequence, std::int32_t at, Tensor into) {
    check(kvc_state_gather(raw(), layer, static_cast<std::int32_t>(part), sequence, at, into.get()));
  }
  // resume() goes back to a checkpoint.
  void checkpoint_take(std::int32_t sequence) { check(kvc_checkpoint_take(raw(), sequence)); }
  std::vector<std::int32_t> checkpoint_list(std::int32_t sequence) const {
    return detail::list_of([&](std::int32_t room, std::int32_t *at, std::int32_t *n) {
      return kvc_checkpoint_list(raw(), sequence, room, at, n);
    });
  }

 private:
  kvc_cache *raw() const noexcept { return static_cast<const Self &>(*this).handle(); }
};

}  // namespace api_0_2
}  // namespace kvc

#endif
