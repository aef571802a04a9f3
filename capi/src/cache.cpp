#include <new>

#include "capi/src/arguments.hpp"
#include "capi/src/descriptors.hpp"
#include "capi/src/inside.hpp"
#include "core/caches/create.hpp"

namespace kvc::capi {
namespace {

Status device_of(const kvc_device* handle, std::shared_ptr<Device>* device) {
  void* object = nullptr;
  if (Status s = handles::enter(handle, Kind::device, Access::shared, &object); s != Status::ok)
    return s;
  *device = static_cast<DeviceObject*>(object)->device;
  handles::leave(handle, Access::shared);
  return Status::ok;
}

Status create(const std::shared_ptr<Device>& device, const CacheRequest& request, kvc_cache** out) {
  std::unique_ptr<CacheObject> object(new (std::nothrow) CacheObject());
  if (!object)
    return fail(Status::out_of_memory, "the process has no memory for the handle of a cache");
  const Status made = create_cache(device, request, &object->cache);
  if (made != Status::ok) return made;
  *out = static_cast<kvc_cache*>(handles::add(Kind::cache, object.get(), object->cache->stats()));
  if (*out == nullptr) return Status::out_of_memory;
  (void)object.release();  // the table owns it now
  return Status::ok;
}

/// Children that are entered alone go as they are; those whose handles were destroyed end here.
void let_go(const Children& children, ChildrenInside& inside) {
  inside.forget();
  for (int32_t child = 0; child < children.n(); ++child) {
    inside.object(child).is_wrapped = false;
    delete static_cast<CacheObject*>(handles::unpin(children.pins[child]));
  }
}

/// The handle of a wrapper ends before its children's slots are free for other caches: whoever reads its statistics meanwhile
/// then finds that it has ended.
Status destroy(kvc_cache* handle) {
  void* entered = nullptr;
  if (Status s = handles::enter(handle, Kind::cache, Access::exclusive, &entered); s != Status::ok)
    return s;
  const auto& object = *static_cast<CacheObject*>(entered);
  if (!object.children) {
    handles::erase(handle, &entered);
  } else {
    ChildrenInside inside(*object.children, Access::exclusive);
    if (Status s = inside.enter_all(); s != Status::ok) {
      handles::leave(handle, Access::exclusive);
      return s;
    }
    handles::erase(handle, &entered);
    let_go(*object.children, inside);
  }
  delete static_cast<CacheObject*>(entered);
  return Status::ok;
}

/// A batch of rows has passes of rows alone.
Status check_takes_lists(const Cache& cache) {
  if (cache.takes_lists()) return Status::ok;
  return fail(Status::not_supported,
              "a transformer cache (KVC_TRANSFORMER) takes as many tokens in every row: call "
              "kvc_begin_rows or kvc_fits_rows");
}

Status read_batch(const int32_t* position, const int32_t* sequence, Batch* batch) {
  if (position == nullptr) return is_null("position");
  if (sequence == nullptr) return is_null("sequence");
  batch->position = position;
  batch->sequence = sequence;
  return Status::ok;
}

}  // namespace
}  // namespace kvc::capi

using kvc::Cache, kvc::fail, kvc::Status;
using kvc::capi::CacheObject, kvc::capi::with_cache, kvc::capi::with_object;
using kvc::capi::with_sequences;

kvc_status kvc_cache_memory_bytes(const kvc_device* device, const kvc_cache_desc* desc,
                                  const void* kind_desc, uint64_t* out_bytes) noexcept {
  return kvc::capi::guard_lifetime([&]() -> Status {
    std::shared_ptr<kvc::Device> on;
    if (Status s = kvc::capi::device_of(device, &on); s != Status::ok) return s;
    if (out_bytes == nullptr) return kvc::is_null("out_bytes");
    kvc::CacheRequest request;
    if (Status s = kvc::capi::read_request(desc, kind_desc, &request); s != Status::ok) return s;
    return kvc::cache_memory_bytes(on, request, out_bytes);
  });
}

kvc_status kvc_cache_create(kvc_device* device, const kvc_cache_desc* desc, const void* kind_desc,
                            kvc_cache** out) noexcept {
  return kvc::capi::guard_lifetime([&]() -> Status {
    std::shared_ptr<kvc::Device> on;
    if (out != nullptr) *out = nullptr;
    if (Status s = kvc::capi::device_of(device, &on); s != Status::ok) return s;
    if (out == nullptr) return kvc::is_null("out");
    kvc::CacheRequest request;
    if (Status s = kvc::capi::read_request(desc, kind_desc, &request); s != Status::ok) return s;
    return kvc::capi::create(on, request, out);
  });
}

kvc_status kvc_cache_destroy(kvc_cache* cache) noexcept {
  if (cache == nullptr) return KVC_OK;
  return kvc::capi::guard_lifetime([&]() -> Status { return kvc::capi::destroy(cache); });
}

// ---- A pass ---------------------------------------------------------------------------------------------------------------

kvc_status kvc_begin(kvc_cache* cache, int32_t n_tokens, const int32_t* position,
                     const int32_t* sequence, const uint32_t* token_flags, uint32_t flags,
                     void* stream) noexcept {
  return with_object(cache, [&](const CacheObject& object, Cache& c) -> Status {
    if (Status s = kvc::capi::check_takes_lists(c); s != Status::ok) return s;
    if (Status s = kvc::capi::check_not_wrapped(object); s != Status::ok) return s;
    const bool reserve = (flags & KVC_BEGIN_RESERVE) != 0;
    constexpr uint32_t known = KVC_BEGIN_RESERVE | KVC_BEGIN_REPLAY;
    if ((flags & ~known) != 0)
      return kvc::unknown_bits("flags", flags & ~known, "KVC_BEGIN_RESERVE, KVC_BEGIN_REPLAY");
    if (stream != nullptr && !c.device().takes_stream)
      return fail(Status::invalid_argument,
                  "stream is set, but the device of the cache takes none: pass null");
    kvc::Batch batch;
    if (!reserve) {
      if (Status s = kvc::capi::read_batch(position, sequence, &batch); s != Status::ok) return s;
    }
    batch.flags = token_flags;
    batch.n_tokens = n_tokens;
    batch.stream = stream;
    batch.replay = (flags & KVC_BEGIN_REPLAY) != 0;
    return c.begin(batch, reserve);
  });
}

kvc_status kvc_fits(const kvc_cache* cache, int32_t n_tokens, const int32_t* position,
                    const int32_t* sequence, const uint32_t* token_flags) noexcept {
  return with_cache(cache, [&](const Cache& c) -> Status {
    if (Status s = kvc::capi::check_takes_lists(c); s != Status::ok) return s;
    kvc::Batch batch;
    if (Status s = kvc::capi::read_batch(position, sequence, &batch); s != Status::ok) return s;
    batch.n_tokens = n_tokens;
    batch.flags = token_flags;
    return c.fits(batch, false);
  });
}

kvc_status kvc_set_causal(kvc_cache* cache, int32_t n_except, const int32_t* except) noexcept {
  return kvc::capi::with_facet<kvc::capi::OfCausality>(
      cache, [&](kvc::Causality& c, Cache&) { return c.set_causal(n_except, except); });
}

kvc_status kvc_commit(kvc_cache* cache) noexcept {
  return with_sequences(cache, [&](Cache& c) { return c.commit(); });
}

kvc_status kvc_commit_prefix(kvc_cache* cache, int32_t n_sequences, const int32_t* sequence,
                             const int32_t* keep) noexcept {
  return with_sequences(cache, [&](Cache& c) { return c.commit_prefix(n_sequences, sequence, keep); });
}

kvc_status kvc_abort(kvc_cache* cache) noexcept {
  return with_sequences(cache, [&](Cache& c) { return c.abort(); });
}

// ---- Sequences ----------------------------------------------------------------------------------------------------------------

kvc_status kvc_can_resume(const kvc_cache* cache, int32_t sequence, int32_t want,
                          int32_t* best) noexcept {
  return with_cache(cache, [&](const Cache& c) -> Status {
    if (best == nullptr) return kvc::is_null("best");
    return c.can_resume(sequence, want, best);
  });
}

kvc_status kvc_resume(kvc_cache* cache, int32_t sequence, int32_t want, int32_t* got) noexcept {
  return with_sequences(cache, [&](Cache& c) { return c.resume(sequence, want, got); });
}

kvc_status kvc_copy_prefix(kvc_cache* cache, int32_t src, int32_t dst, int32_t len,
                           int32_t* got) noexcept {
  return with_sequences(cache, [&](Cache& c) { return c.copy_prefix(src, dst, len, got); });
}

kvc_status kvc_reorder(kvc_cache* cache, int32_t n, const int32_t* dst, const int32_t* src) noexcept {
  return with_sequences(cache, [&](Cache& c) { return c.reorder(n, dst, src); });
}

kvc_status kvc_remove(kvc_cache* cache, int32_t sequence, int32_t begin, int32_t end) noexcept {
  return with_sequences(cache, [&](Cache& c) { return c.remove(sequence, begin, end); });
}

kvc_status kvc_can_remove(const kvc_cache* cache, int32_t sequence, int32_t begin,
                          int32_t end) noexcept {
  return with_cache(cache, [&](const Cache& c) { return c.can_remove(sequence, begin, end); });
}

kvc_status kvc_sequence_query(const kvc_cache* cache, int32_t sequence,
                              kvc_sequence_info* out) noexcept {
  return with_cache(cache, [&](const Cache& c) -> Status {
    if (Status s = kvc::capi::check_output("kvc_sequence_info", out); s != Status::ok) return s;
    kvc::SequenceInfo info = {};
    if (Status s = c.sequence_info(sequence, &info); s != Status::ok) return s;
    kvc::capi::write_output<kvc_sequence_info>(
        {0, info.flags, info.first, info.next, info.count, info.room, info.lost_below, 0}, out);
    return Status::ok;
  });
}

// ---- Watching -------------------------------------------------------------------------------------------------------------------

kvc_status kvc_cache_stats(const kvc_cache* cache, kvc_stats* out) noexcept {
  return kvc::capi::guard([&]() -> Status {
    kvc::CacheStats stats;
    if (Status s = kvc::capi::handles::read_stats(cache, &stats); s != Status::ok) return s;
    if (Status s = kvc::capi::check_output("kvc_stats", out); s != Status::ok) return s;
    kvc::capi::write_output<kvc_stats>(
        {0, static_cast<uint32_t>(stats.state), stats.cells, stats.cells_used, stats.cells_shared,
         stats.bytes, stats.passes},
        out);
    return Status::ok;
  });
}

kvc_status kvc_state_digest(const kvc_cache* cache, uint64_t out[2]) noexcept {
  return with_cache(cache, [&](const Cache& c) -> Status {
    if (out == nullptr) return kvc::is_null("out");
    return c.digest(out);
  });
}

kvc_status kvc_check(const kvc_cache* cache) noexcept {
  return with_cache(cache, [&](const Cache& c) { return c.check(); });
}
