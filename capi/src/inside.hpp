#pragma once
#include <algorithm>
#include <initializer_list>
#include <utility>

#include "capi/src/guard.hpp"
#include "capi/src/handle_table.hpp"
#include "capi/src/objects.hpp"
#include "core/base/status.hpp"
#include "kvc/kvc.h"

/// How a call gets inside the caches that it uses: the one behind its handle and, if that is a wrapper, all of its children or
/// the one that the call is about. What a kind of cache lacks is NOT_SUPPORTED, before arguments are looked at.
namespace kvc::capi {

// A const function shares its cache with other const functions; any other is alone in it.
inline kvc_cache* any(const kvc_cache* handle) { return const_cast<kvc_cache*>(handle); }
constexpr Access access_of(const kvc_cache*) { return Access::shared; }
constexpr Access access_of(kvc_cache*) { return Access::exclusive; }
inline const Cache& as_seen_by(const kvc_cache*, Cache& cache) { return cache; }
inline Cache& as_seen_by(kvc_cache*, Cache& cache) { return cache; }

/// Leaves the cache at `place`, a handle or a pin, after posting what the call leaves for kvc_cache_stats().
template <class Place>
void leave_cache(const Place& place, const Cache& cache, Access access) noexcept {
  if (access == Access::exclusive) return handles::leave(place, cache.stats());
  if (!cache.health().ok()) handles::post_poison(place);
  handles::leave(place, access);
}

/// The children of a wrapper that a call is inside. It leaves them when it ends.
class ChildrenInside {
 public:
  ChildrenInside(const Children& children, Access access) : children_(children), access_(access) {}
  ~ChildrenInside();
  ChildrenInside(const ChildrenInside&) = delete;
  ChildrenInside& operator=(const ChildrenInside&) = delete;

  /// BUSY while a call that excludes this one is in the child; the message names it.
  Status enter(int32_t child);
  Status enter_all();
  CacheObject& object(int32_t child) const { return *objects_[child]; }
  /// They are no longer to be left.
  void forget() { n_ = 0; }

 private:
  const Children& children_;
  const Access access_;
  int32_t n_ = 0;
  int32_t entered_[WrapperCache::max_children];
  CacheObject* objects_[WrapperCache::max_children];
};

/// Calls `body(CacheObject&)` inside the cache behind `handle`, whatever its health, and inside none of its children.
template <class Body>
kvc_status inside_cache(kvc_cache* handle, Access access, Body body) noexcept {
  void* entered = nullptr;
  if (Status s = handles::enter(handle, Kind::cache, access, &entered); s != Status::ok)
    return static_cast<kvc_status>(s);
  CacheObject& object = *static_cast<CacheObject*>(entered);
  const kvc_status status = guard([&] { return body(object); });
  leave_cache(static_cast<const void*>(handle), *object.cache, access);
  return status;
}

/// A poisoned cache returns the status that poisoned it.
template <class SomeCache, class Body>
Status on_healthy(SomeCache& cache, Body body) {
  if (Status s = cache.health().status(); s != Status::ok)
    return fail(s,
                "the cache is poisoned by an earlier failure: only kvc_cache_destroy and "
                "kvc_cache_stats still work");
  try {
    return body(cache);
  } catch (...) {  // nothing in a call on a cache throws or allocates: what it left undone is unknown
    cache.health().poison("a call was left by an exception");
    return Status::internal;
  }
}

/// Calls `body(CacheObject&, Cache&)` inside the cache behind `handle` and all of its children.
template <class Handle, class Body>
kvc_status with_object(Handle* handle, Body body) noexcept {
  const Access access = access_of(handle);
  return inside_cache(any(handle), access, [&](CacheObject& object) -> Status {
    const auto call = [&](auto& cache) { return body(object, cache); };
    auto& cache = as_seen_by(handle, *object.cache);
    if (!object.children) return on_healthy(cache, call);
    ChildrenInside children(*object.children, access);
    if (Status s = children.enter_all(); s != Status::ok) return s;
    return on_healthy(cache, call);
  });
}

/// Calls `body(Cache&)` likewise.
template <class Handle, class Body>
kvc_status with_cache(Handle* handle, Body body) noexcept {
  return with_object(handle, [&](CacheObject&, auto& cache) { return body(cache); });
}

/// BAD_STATE for a child of a wrapper, which alone begins and ends its passes and moves its sequences.
Status check_not_wrapped(const CacheObject& object);

/// Calls `body(Cache&)` likewise, for calls that begin or end passes or move sequences.
template <class Body>
kvc_status with_sequences(kvc_cache* handle, Body body) noexcept {
  return with_object(handle, [&](const CacheObject& object, Cache& cache) -> Status {
    if (Status s = check_not_wrapped(object); s != Status::ok) return s;
    return body(cache);
  });
}

// ---- Facets -------------------------------------------------------------------------------------------------------------

struct OfLayerAttention {
  static auto* in(auto& cache) { return cache.layer_attention(); }
  static constexpr const char* lacking =
      "this call is for caches that take keys and values: causal (kind KVC_CAUSAL), encoder (kind "
      "KVC_ENCODER), transformer (kind KVC_TRANSFORMER) and lightning (kind KVC_LIGHTNING)";
};
struct OfKeyValues {
  static auto* in(auto& cache) { return cache.key_values(); }
  static constexpr const char* lacking =
      "this call is for caches that hold keys and values: causal (kind KVC_CAUSAL), encoder (kind "
      "KVC_ENCODER) and transformer (kind KVC_TRANSFORMER)";
};
struct OfPositionedKeys {
  static auto* in(auto& cache) { return cache.positioned_keys(); }
  static constexpr const char* lacking =
      "this call is for causal caches (kind KVC_CAUSAL), whose keys turn with their positions; of "
      "a wrapper, call it on a child";
};
struct OfCausality {
  static auto* in(auto& cache) { return cache.causality(); }
  static constexpr const char* lacking =
      "this call is for causal caches (kind KVC_CAUSAL), transformer caches (kind KVC_TRANSFORMER) "
      "and wrappers of them";
};
struct OfEncoderInputs {
  static auto* in(auto& cache) { return cache.encoder_inputs(); }
  static constexpr const char* lacking = "this call is for encoder caches (kind KVC_ENCODER)";
};
struct OfRecurrentStates {
  static auto* in(auto& cache) { return cache.recurrent_states(); }
  static constexpr const char* lacking = "this call is for recurrent caches (kind KVC_RECURRENT)";
};
struct OfDecayedStates {
  static auto* in(auto& cache) { return cache.decayed_states(); }
  static constexpr const char* lacking = "this call is for lightning caches (kind KVC_LIGHTNING)";
};
struct OfListedCheckpoints {
  static auto* in(auto& cache) { return std::as_const(cache).listed_checkpoints(); }
  static constexpr const char* lacking =
      "this call is for recurrent caches (kind KVC_RECURRENT) and lightning caches (kind "
      "KVC_LIGHTNING)";
};
struct OfRows {
  static auto* in(auto& cache) { return cache.rows(); }
  static constexpr const char* lacking =
      "this call is for caches whose sequences are the rows of a batch (KVC_TRANSFORMER and "
      "KVC_LIGHTNING), and wrappers of them";
};
struct OfRowStorage {
  static auto* in(auto& cache) { return cache.row_storage(); }
  static constexpr const char*
      lacking = "this call is for transformer caches (kind KVC_TRANSFORMER)";
};

template <class Facet, class SomeCache, class Body>
Status on_facet(SomeCache& cache, Body body) {
  auto* facet = Facet::in(cache);
  if (facet == nullptr) return fail(Status::not_supported, "%s", Facet::lacking);
  return body(*facet, cache);
}

/// Calls `body(facet, Cache&)` inside the cache behind `handle` and all of its children.
template <class Facet, class Handle, class Body>
kvc_status with_facet(Handle* handle, Body body) noexcept {
  return with_cache(handle, [&](auto& cache) { return on_facet<Facet>(cache, body); });
}

/// Passes a refusal of a child on; the message then names the child, or the layer by both of its numbers.
Status of_child(Status status, int32_t child);
Status of_layer(Status status, int32_t layer, const WrapperCache::LayerPlace& place);

/// Calls `body(facet, Cache&, layer)` inside the cache behind `handle` or, if that is a wrapper, inside the child that
/// `choose(wrapper, &place)` finds, with that child's number of the layer.
template <class Facet, class Handle, class Choose, class Body>
kvc_status with_child(Handle* handle, int32_t layer, Choose choose, Body body) noexcept {
  const Access access = access_of(handle);
  return inside_cache(any(handle), access, [&](CacheObject& object) -> Status {
    const auto call = [&](auto& cache, int32_t its_layer) {
      return on_healthy(cache, [&](auto& c) {
        return on_facet<Facet>(c, [&](auto& facet, auto&) { return body(facet, c, its_layer); });
      });
    };
    if (!object.children) return call(as_seen_by(handle, *object.cache), layer);
    return on_healthy(*object.cache, [&](Cache&) -> Status {
      const WrapperCache& wrapper = *object.children->wrapper;
      WrapperCache::LayerPlace place = {};
      if (Status s = choose(wrapper, &place); s != Status::ok) return s;
      ChildrenInside child(*object.children, access);
      if (Status s = child.enter(place.child); s != Status::ok) return s;
      const Status status = call(as_seen_by(handle, wrapper.child(place.child)), place.layer);
      if (status == Status::ok) return status;
      return place.layer < 0 ? of_child(status, place.child) : of_layer(status, layer, place);
    });
  });
}

/// Arguments that name sequences: a wrapper has those that all of its children have.
using Sequences = std::initializer_list<int32_t>;

/// Where a call with this layer works, in passes alone or at any time.
enum class When { in_pass, always };
Status find_layer(const WrapperCache& wrapper, int32_t layer, When when, Sequences sequences,
                  WrapperCache::LayerPlace* place);

template <class Facet, class Handle, class Body>
kvc_status with_layer(Handle* handle, int32_t layer, When when, Sequences sequences,
                      Body body) noexcept {
  return with_child<Facet>(
      handle, layer,
      [&](const WrapperCache& wrapper, WrapperCache::LayerPlace* place) {
        return find_layer(wrapper, layer, when, sequences, place);
      },
      body);
}

/// The only child of a wrapper that `has` what a call needs; `lacking` says so of one that has not.
Status find_only(const WrapperCache& wrapper, bool (*has)(Cache& child), const char* lacking,
                 When when, Sequences sequences, WrapperCache::LayerPlace* place);

/// Calls `body(facet, Cache&)`; of a wrapper, in the only child that has the facet.
template <class Facet, class Handle, class Body>
kvc_status with_only(Handle* handle, When when, Sequences sequences, Body body) noexcept {
  return with_child<Facet>(
      handle, 0,
      [&](const WrapperCache& wrapper, WrapperCache::LayerPlace* place) {
        const auto has = [](Cache& child) { return Facet::in(child) != nullptr; };
        return find_only(wrapper, has, Facet::lacking, when, sequences, place);
      },
      [&](auto& facet, auto& cache, int32_t) { return body(facet, cache); });
}

// ---- A range of layers --------------------------------------------------------------------------------------------------

/// Layers of a cache that a call names together; those of a wrapper lie in its children.
class LayerRange {
 public:
  LayerRange(CacheObject& object, int32_t begin, int32_t end)
      : object_(object), begin_(begin), end_(end) {}

  /// INVALID_ARGUMENT unless it is a range of layers that there are.
  Status check() const;

  /// No layers of a wrapper have no owner that could be asked. Nothing is bound then, but as ever only between passes.
  bool has_owner() const { return !object_.children || begin_ < end_; }
  Status check_idle() const;

  /// Calls `visit(Cache&)` for each cache that owns one of those that there are, and for one that is no wrapper; stops at the
  /// first refusal.
  template <class Visit>
  Status each_owner(Visit visit) const {
    if (!object_.children) return visit(*object_.cache);
    const WrapperCache& wrapper = *object_.children->wrapper;
    uint32_t seen = 0;  // a bit per child
    const int32_t end = std::min(end_, wrapper.bounds().n_layers);
    for (int32_t layer = std::max(begin_, 0); layer < end; ++layer) {
      const int32_t child = wrapper.place_of(layer).child;
      if ((seen >> child & 1u) != 0) continue;
      seen |= 1u << child;
      if (Status s = visit(wrapper.child(child)); s != Status::ok) return of_child(s, child);
    }
    return Status::ok;
  }

  /// NOT_SUPPORTED where an owner is of a kind that lacks the facet.
  template <class Facet>
  Status check_facet() const {
    return each_owner([](Cache& cache) {
      return on_facet<Facet>(cache, [](auto&, Cache&) { return Status::ok; });
    });
  }

  /// Calls `visit(Cache&, begin, end)` for ranges of its owners' layers that cover it.
  template <class Visit>
  void each_part(Visit visit) const {
    (void)each_part_until([&](Cache& cache, int32_t begin, int32_t end) {
      visit(cache, begin, end);
      return Status::ok;
    });
  }
  /// Stops at the first refusal.
  template <class Visit>
  Status each_part_until(Visit visit) const {
    if (!object_.children) return visit(*object_.cache, begin_, end_);
    const WrapperCache& wrapper = *object_.children->wrapper;
    for (int32_t layer = begin_; layer < end_; ++layer) {
      const WrapperCache::LayerPlace& place = wrapper.place_of(layer);
      const Status s = visit(wrapper.child(place.child), place.layer, place.layer + 1);
      if (s != Status::ok) return of_layer(s, layer, place);
    }
    return Status::ok;
  }

 private:
  CacheObject& object_;
  const int32_t begin_, end_;
};

}  // namespace kvc::capi
