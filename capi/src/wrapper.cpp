#include "kvc/wrapper.h"

#include <utility>
#include <vector>

#include "capi/src/inside.hpp"
#include "core/base/messages.hpp"
#include "core/caches/bounds.hpp"

namespace kvc::capi {
namespace {

static_assert(KVC_MAX_CHILDREN == WrapperCache::max_children);

/// Caches that a call is about to wrap. It is alone inside them until it ends.
class Candidates {
 public:
  Candidates(kvc_cache* const* handles, int32_t n) : handles_(handles), n_(n) {}
  ~Candidates() {
    for (int32_t i = 0; i < n_; ++i) {
      if (objects_[i] == nullptr || first_of(i) != i) continue;
      leave_cache(static_cast<const void*>(handles_[i]), *objects_[i]->cache, Access::exclusive);
    }
  }
  Candidates(const Candidates&) = delete;
  Candidates& operator=(const Candidates&) = delete;

  Status enter() {
    for (int32_t i = 0; i < n_; ++i) {
      void* entered = nullptr;
      if (const int32_t first = first_of(i); first != i) {
        entered = objects_[first];
      } else if (Status s = handles::enter(handles_[i], Kind::cache, Access::exclusive, &entered);
                 s != Status::ok) {
        return named(s, i);
      }
      objects_[i] = static_cast<CacheObject*>(entered);
      if (Status s = cache(i).health().status(); s != Status::ok)
        return fail(s, "children[%d] is poisoned by an earlier failure", i);
    }
    return Status::ok;
  }

  Status check_kinds() const {
    for (int32_t i = 0; i < n_; ++i) {
      if (first_of(i) == i) continue;
      return fail(Status::invalid_argument, "children[%d] and children[%d] are the same cache",
                  first_of(i), i);
    }
    for (int32_t i = 0; i < n_; ++i) {
      if (!objects_[i]->children) continue;
      return fail(Status::not_supported, "children[%d] is a wrapper: list its children instead", i);
    }
    return check_passes();
  }

  /// Passes of a list of tokens, or of rows: some must be common to all.
  Status check_passes() const {
    int32_t rows_alone = -1, lists_alone = -1;
    for (int32_t i = 0; i < n_; ++i) {
      if (!cache(i).takes_lists()) rows_alone = i;
      if (cache(i).rows() == nullptr) lists_alone = i;
    }
    if (rows_alone < 0) return Status::ok;
    if (lists_alone >= 0) {
      return fail(Status::not_supported,
                  "children[%d] takes passes of rows alone (kvc_begin_rows) and children[%d] lists "
                  "of tokens alone (kvc_begin): no pass would reach both",
                  rows_alone, lists_alone);
    }
    for (int32_t i = 0; i < n_; ++i) {
      const int32_t rows = cache(i).bounds().max_sequences;
      const int32_t wanted = cache(rows_alone).bounds().max_sequences;
      if (rows == wanted) continue;
      return fail(Status::not_supported,
                  "children[%d] has %d rows and children[%d] has %d: a batch has as many in all", i,
                  rows, rows_alone, wanted);
    }
    return Status::ok;
  }

  Status check_devices() const {
    for (int32_t i = 1; i < n_; ++i) {
      const DeviceInfo &first = cache(0).device(), &other = cache(i).device();
      if (other.type == first.type && other.id == first.id) continue;
      return fail(Status::device_mismatch,
                  "children[%d] is on device %d:%d, children[0] on %d:%d: all must be on one", i,
                  static_cast<int>(other.type), other.id, static_cast<int>(first.type), first.id);
    }
    return Status::ok;
  }

  Status check_unused() const {
    for (int32_t i = 0; i < n_; ++i) {
      if (objects_[i]->is_wrapped)
        return fail(Status::bad_state, "children[%d] is a child of another wrapper", i);
      if (cache(i).stats().state != CacheState::idle)
        return fail(Status::bad_state, "children[%d] has a pass open: end it first", i);
      for (int32_t sequence = 0; sequence < cache(i).bounds().max_sequences; ++sequence) {
        const int32_t next = cache(i).info(sequence).next;
        if (next == 0) continue;
        return fail(
            Status::bad_state,
            "children[%d] must be empty, but its sequence %d continues at %d: empty it with "
            "kvc_remove",
            i, sequence, next);
      }
    }
    return Status::ok;
  }

  Cache& cache(int32_t i) const { return *objects_[i]->cache; }
  CacheObject& object(int32_t i) const { return *objects_[i]; }

 private:
  int32_t first_of(int32_t i) const {
    int32_t first = 0;
    while (handles_[first] != handles_[i]) ++first;
    return first;
  }
  static Status named(Status status, int32_t i) {
    char message[message_capacity];
    copy_last_message(message, sizeof message);
    return fail(status, "children[%d]: %s", i, message);
  }

  kvc_cache* const* handles_;
  const int32_t n_;
  CacheObject* objects_[KVC_MAX_CHILDREN] = {};
};

Status read_map(const Candidates& children, int32_t n_children, const int32_t* child_of_layer,
                const int32_t* layer_in_child, int32_t n_layers,
                std::vector<WrapperCache::LayerPlace>* layers) {
  layers->reserve(static_cast<size_t>(n_layers));
  for (int32_t i = 0; i < n_layers; ++i) {
    const int32_t child = child_of_layer[i], layer = layer_in_child[i];
    if (child < 0 || child >= n_children) return no_index("child_of_layer", i, child, n_children);
    const int32_t n = children.cache(child).bounds().n_layers;
    if (layer < 0 || layer >= n) return no_index("layer_in_child", i, layer, n);
    layers->push_back({child, layer});
  }
  return Status::ok;
}

Status wrap(kvc_cache* const* handles, int32_t n, const int32_t* child_of_layer,
            const int32_t* layer_in_child, int32_t n_layers, kvc_cache** out) {
  if (out == nullptr) return is_null("out");
  *out = nullptr;
  if (handles == nullptr) return is_null("children");
  if (Status s = check_range("n_children", n, 1, KVC_MAX_CHILDREN); s != Status::ok) return s;
  if (Status s = check_range("n_layers", n_layers, 0, max_extent); s != Status::ok) return s;
  const Status arrays = check_arrays(
      "n_layers", n_layers, {{"child_of_layer", child_of_layer}, {"layer_in_child", layer_in_child}});
  if (arrays != Status::ok) return arrays;

  Candidates candidates(handles, n);
  std::vector<WrapperCache::LayerPlace> layers;
  if (Status s = candidates.enter(); s != Status::ok) return s;
  if (Status s = candidates.check_kinds(); s != Status::ok) return s;
  const Status map = read_map(candidates, n, child_of_layer, layer_in_child, n_layers, &layers);
  if (map != Status::ok) return map;
  if (Status s = candidates.check_devices(); s != Status::ok) return s;
  if (Status s = candidates.check_unused(); s != Status::ok) return s;

  auto object = std::make_unique<CacheObject>();
  object->children = std::make_unique<Children>();
  std::vector<std::shared_ptr<Cache>> children;
  children.reserve(static_cast<size_t>(n));
  for (int32_t i = 0; i < n; ++i) children.push_back(candidates.object(i).cache);
  auto wrapper = std::make_shared<WrapperCache>(std::move(children), std::move(layers));
  object->children->wrapper = wrapper.get();
  object->cache = std::move(wrapper);
  // Nothing fails from here on but the table, and that before anything is pinned.
  for (int32_t i = 0; i < n; ++i) object->children->pins[i] = handles::pin_of(handles[i]);
  *out = static_cast<kvc_cache*>(
      handles::add(Kind::cache, object.get(), object->cache->stats(), object->children->pins, n));
  if (*out == nullptr) return Status::out_of_memory;
  for (int32_t i = 0; i < n; ++i) {
    handles::pin(object->children->pins[i]);
    candidates.object(i).is_wrapped = true;
  }
  (void)object.release();  // the table owns it now
  return Status::ok;
}

Status find_child(const CacheObject& object, int32_t layer, kvc_cache** child,
                  int32_t* layer_in_child) {
  if (!object.children)
    return fail(Status::not_supported, "this call is for wrappers (kvc_cache_wrap)");
  const WrapperCache& wrapper = *object.children->wrapper;
  WrapperCache::LayerPlace place = {};
  if (Status s = find_layer(wrapper, layer, When::always, {}, &place); s != Status::ok) return s;
  const handles::Pin& pin = object.children->pins[place.child];
  if (child != nullptr && !handles::is_live(pin))
    return fail(Status::handle, "the handle of child %d was destroyed", place.child);
  if (child != nullptr) *child = static_cast<kvc_cache*>(pin.handle);
  if (layer_in_child != nullptr) *layer_in_child = place.layer;
  return Status::ok;
}

}  // namespace
}  // namespace kvc::capi

kvc_status kvc_cache_wrap(kvc_cache* const* children, int32_t n_children,
                          const int32_t* child_of_layer, const int32_t* layer_in_child,
                          int32_t n_layers, kvc_cache** out) noexcept {
  return kvc::capi::guard_lifetime([&] {
    return kvc::capi::wrap(children, n_children, child_of_layer, layer_in_child, n_layers, out);
  });
}

kvc_status kvc_cache_child(const kvc_cache* wrapper, int32_t layer, kvc_cache** child,
                           int32_t* layer_in_child) noexcept {
  return kvc::capi::inside_cache(
      kvc::capi::any(wrapper), kvc::capi::Access::shared, [&](const kvc::capi::CacheObject& object) {
        return kvc::capi::on_healthy(*object.cache, [&](kvc::Cache&) {
          return kvc::capi::find_child(object, layer, child, layer_in_child);
        });
      });
}
