#include "capi/src/inside.hpp"

#include "core/base/messages.hpp"
#include "core/base/planted.hpp"
#include "core/cells/sequence_checks.hpp"

namespace kvc::capi {

ChildrenInside::~ChildrenInside() {
  while (n_ > 0) {
    const int32_t child = entered_[--n_];
    leave_cache(children_.pins[child], *objects_[child]->cache, access_);
  }
}

Status ChildrenInside::enter(int32_t child) {
  void* entered = nullptr;
  if (Status s = handles::enter(children_.pins[child], access_, &entered); s != Status::ok)
    return of_child(s, child);
  objects_[child] = static_cast<CacheObject*>(entered);
  entered_[n_++] = child;
  return Status::ok;
}

Status ChildrenInside::enter_all() {
  for (int32_t child = 0; child < children_.n(); ++child) {
    if (Status s = enter(child); s != Status::ok) return s;
  }
  return Status::ok;
}

Status check_not_wrapped(const CacheObject& object) {
  if (!object.is_wrapped || planted(Bug::wrapped_child_obeys)) return Status::ok;
  return fail(Status::bad_state,
              "the cache is a child of a wrapper, which begins and ends its passes and moves its "
              "sequences: call the wrapper");
}

Status of_child(Status status, int32_t child) {
  char message[message_capacity];
  copy_last_message(message, sizeof message);
  return fail(status, "child %d of the wrapper: %s", child, message);
}

Status of_layer(Status status, int32_t layer, const WrapperCache::LayerPlace& place) {
  char message[message_capacity];
  copy_last_message(message, sizeof message);
  return fail(status, "layer %d of the wrapper, which is layer %d of child %d: %s", layer,
              place.layer, place.child, message);
}

namespace {

Status check_sequences(const WrapperCache& wrapper, Sequences sequences) {
  for (const int32_t sequence : sequences) {
    if (Status s = check_sequence(sequence, wrapper.bounds().max_sequences); s != Status::ok)
      return s;
  }
  return Status::ok;
}

}  // namespace

Status find_layer(const WrapperCache& wrapper, int32_t layer, When when, Sequences sequences,
                  WrapperCache::LayerPlace* place) {
  if (when == When::in_pass) {
    if (Status s = wrapper.need_pass(); s != Status::ok) return s;
  }
  const int32_t n_layers = wrapper.bounds().n_layers;
  if (layer < 0 || layer >= n_layers) return no_index("layer", layer, n_layers);
  *place = wrapper.place_of(layer);
  return check_sequences(wrapper, sequences);
}

Status find_only(const WrapperCache& wrapper, bool (*has)(Cache& child), const char* lacking,
                 When when, Sequences sequences, WrapperCache::LayerPlace* place) {
  int32_t n = 0;
  place->layer = -1;  // the call names none
  for (int32_t child = 0; child < wrapper.n_children(); ++child) {
    if (!has(wrapper.child(child))) continue;
    place->child = child;
    ++n;
  }
  if (n == 0)
    return fail(Status::not_supported, "no child of the wrapper has what it takes: %s", lacking);
  if (n > 1) {
    return fail(
        Status::not_supported,
        "%d children of the wrapper have what this call is about, so it does not know which "
        "one is meant: call it on a child",
        n);
  }
  if (when == When::in_pass) {
    if (Status s = wrapper.need_pass(); s != Status::ok) return s;
  }
  return check_sequences(wrapper, sequences);
}

Status LayerRange::check_idle() const {
  if (object_.cache->stats().state == CacheState::idle) return Status::ok;
  return fail(Status::bad_state,
              "a pass is open: constants are bound between passes; end it with kvc_commit or "
              "kvc_abort first");
}

Status LayerRange::check() const {
  const int32_t n_layers = object_.cache->bounds().n_layers;
  if (begin_ >= 0 && begin_ <= end_ && end_ <= n_layers) return Status::ok;
  return fail(
      Status::invalid_argument,
      "layer_begin %d, layer_end %d are no range of layers: 0 <= layer_begin <= layer_end <= "
      "n_layers, which is %d",
      begin_, end_, n_layers);
}

}  // namespace kvc::capi
