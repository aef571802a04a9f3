#include <cstring>
#include <new>

#include "capi/src/arguments.hpp"
#include "capi/src/inside.hpp"
#include "capi/src/words.hpp"
#include "core/caches/create.hpp"
#include "kvc/encoder.h"
#include "kvc/recurrent.h"

namespace kvc::capi {
namespace {

constexpr uint64_t cache_flags = KVC_CACHE_STRICT | KVC_CACHE_ZERO_ON_FREE | KVC_CACHE_PREFAULT;
constexpr uint64_t reserved_flags = KVC_CACHE_ROTATE_K | KVC_CACHE_ROTATE_V |
                                    KVC_CACHE_INTERLEAVED | KVC_CACHE_V_IN_K;

/// What the header reserves and this version lacks.
Status check_reserved(const kvc_cache_desc& d) {
  if (Status s = check_stored("dtype_k", d.dtype_k); s != Status::ok) return s;
  if (Status s = check_stored("dtype_v", d.dtype_v); s != Status::ok) return s;
  struct Reserved {
    uint64_t flag;
    const char* name;
  };
  for (const Reserved& reserved :
       {Reserved{KVC_CACHE_ROTATE_K, "the flag KVC_CACHE_ROTATE_K"},
        Reserved{KVC_CACHE_ROTATE_V, "the flag KVC_CACHE_ROTATE_V"},
        Reserved{KVC_CACHE_INTERLEAVED, "the flag KVC_CACHE_INTERLEAVED"},
        Reserved{KVC_CACHE_V_IN_K, "the flag KVC_CACHE_V_IN_K"}}) {
    if ((d.flags & reserved.flag) != 0) return not_implemented(reserved.name);
  }
  return Status::ok;
}

/// A recurrent cache holds states: whatever describes keys and values must be 0.
Status check_no_keys(const kvc_cache_desc& d) {
  struct Field {
    const char* name;
    int64_t value;
  };
  for (const Field& field : {Field{"n_kv_heads", d.n_kv_heads}, Field{"head_dim_k", d.head_dim_k},
                             Field{"head_dim_v", d.head_dim_v}, Field{"dtype_k", d.dtype_k},
                             Field{"dtype_v", d.dtype_v}, Field{"capacity", d.capacity},
                             Field{"cells", d.cells}, Field{"max_q_heads", d.max_q_heads}}) {
    if (field.value == 0) continue;
    return fail(Status::invalid_argument,
                "%s is %lld; it must be 0: a recurrent cache holds no keys and values", field.name,
                static_cast<long long>(field.value));
  }
  return Status::ok;
}

Status read_common(const kvc_cache_desc& d, CacheRequest* request) {
  CacheBounds* bounds = &request->bounds;
  if (d.kind < KVC_CAUSAL || d.kind > KVC_LIGHTNING)
    return fail(Status::invalid_argument,
                "kind %u is none of KVC_CAUSAL (%d) to KVC_LIGHTNING (%d); this version creates "
                "KVC_CAUSAL, KVC_ENCODER and KVC_RECURRENT",
                d.kind, KVC_CAUSAL, KVC_LIGHTNING);
  request->kind = static_cast<CacheKind>(d.kind);
  if (d.block_k != 0 || d.block_v != 0 || d.v_first != 0) {
    return fail(
        Status::invalid_argument,
        "block_k %d, block_v %d, v_first %d: no storage type of this version uses them, so all "
        "must be 0",
        d.block_k, d.block_v, d.v_first);
  }
  if (const uint64_t unknown = d.flags & ~(cache_flags | reserved_flags); unknown != 0) {
    return unknown_bits("kvc_cache_desc.flags", unknown,
                        "KVC_CACHE_STRICT, KVC_CACHE_ZERO_ON_FREE and KVC_CACHE_PREFAULT");
  }
  if (d.kind == KVC_RECURRENT) {
    if (Status s = check_no_keys(d); s != Status::ok) return s;
  }
  if (Status s = read_storage_type("dtype_k", d.dtype_k, &bounds->type_k); s != Status::ok)
    return s;
  if (Status s = read_storage_type("dtype_v", d.dtype_v, &bounds->type_v); s != Status::ok)
    return s;
  bounds->n_layers = d.n_layers;
  bounds->n_kv_heads = d.n_kv_heads;
  bounds->head_dim_k = d.head_dim_k;
  bounds->head_dim_v = d.head_dim_v;
  bounds->max_sequences = d.max_sequences;
  bounds->capacity = d.capacity;
  bounds->max_batch = d.max_batch;
  bounds->cells = d.cells;
  bounds->max_q_heads = d.max_q_heads;
  bounds->strict = (d.flags & KVC_CACHE_STRICT) != 0;
  bounds->zero_on_free = (d.flags & KVC_CACHE_ZERO_ON_FREE) != 0;
  bounds->prefault = (d.flags & KVC_CACHE_PREFAULT) != 0;
  return Status::ok;
}

/// The kind says which struct a kind descriptor is, so it is checked before the size of that struct.
Status check_kind(const void* kind_desc, uint32_t kind) {
  struct {
    uint32_t struct_size, kind;
  } head = {};
  std::memcpy(&head.struct_size, kind_desc, sizeof head.struct_size);
  if (head.struct_size < sizeof head) {
    return wrong_struct_size(kind == KVC_ENCODER     ? "kvc_encoder_desc"
                             : kind == KVC_RECURRENT ? "kvc_recurrent_desc"
                                                     : "kvc_causal_desc",
                             head.struct_size, "below", sizeof head);
  }
  std::memcpy(&head, kind_desc, sizeof head);
  if (head.kind == kind) return Status::ok;
  return fail(
      Status::invalid_argument,
      "kind_desc is of kind %s (%u), the cache of kind %s (%u): pass the descriptor of that kind "
      "with its field kind set, or null for the defaults",
      kind_name(head.kind), head.kind, kind_name(kind), kind);
}

Status read_mask_dtype(uint32_t dtype, DType* out) {
  switch (dtype) {
    case 0:
    case KVC_F32: *out = DType::f32; return Status::ok;
    case KVC_F16: *out = DType::f16; return Status::ok;
    case KVC_BOOL: *out = DType::boolean; return Status::ok;
    default: return wrong_dtype("mask_dtype", dtype, "f32, f16 or bool");
  }
}

Status read_causal(const void* desc, CausalRequest* request) {
  if (desc == nullptr) return Status::ok;
  if (Status s = check_kind(desc, KVC_CAUSAL); s != Status::ok) return s;
  kvc_causal_desc d;
  if (Status s = read_descriptor("kvc_causal_desc", static_cast<const kvc_causal_desc*>(desc), &d);
      s != Status::ok)
    return s;
  if (const uint32_t unknown = d.flags & ~uint32_t{KVC_CAUSAL_POSITION_FREE}; unknown != 0)
    return unknown_bits("kvc_causal_desc.flags", unknown, "KVC_CAUSAL_POSITION_FREE");
  if (Status s = read_mask_dtype(d.mask_dtype, &request->mask_dtype); s != Status::ok) return s;
  request->reach = d.reach;
  request->memory = d.memory;
  request->chunk = d.chunk;
  request->keep_first = d.keep_first;
  request->cell_padding = d.cell_padding;
  request->position_free = (d.flags & KVC_CAUSAL_POSITION_FREE) != 0;
  return Status::ok;
}

Status read_encoder(const void* desc, EncoderRequest* request) {
  if (desc == nullptr) return Status::ok;
  if (Status s = check_kind(desc, KVC_ENCODER); s != Status::ok) return s;
  kvc_encoder_desc d;
  if (Status s = read_descriptor("kvc_encoder_desc", static_cast<const kvc_encoder_desc*>(desc), &d);
      s != Status::ok)
    return s;
  if (d.flags != 0) return unknown_bits("kvc_encoder_desc.flags", d.flags, nullptr);
  request->inputs = d.inputs;
  return read_mask_dtype(d.mask_dtype, &request->mask_dtype);
}

/// States are stored as f32, f16 or bf16, in every version.
Status read_state_type(const char* name, uint32_t dtype, StorageType* out) {
  switch (dtype) {
    case 0:
    case KVC_F32: *out = StorageType::f32; return Status::ok;
    case KVC_F16: *out = StorageType::f16; return Status::ok;
    case KVC_BF16: *out = StorageType::bf16; return Status::ok;
    default: return wrong_dtype(name, dtype, "f32, f16 or bf16");
  }
}

Status read_recurrent(const void* desc, RecurrentRequest* request) {
  if (desc == nullptr)
    return fail(Status::invalid_argument,
                "kind_desc is null: a recurrent cache needs a kvc_recurrent_desc, which says how "
                "large a state is");
  if (Status s = check_kind(desc, KVC_RECURRENT); s != Status::ok) return s;
  kvc_recurrent_desc d;
  const auto* given = static_cast<const kvc_recurrent_desc*>(desc);
  if (Status s = read_descriptor("kvc_recurrent_desc", given, &d); s != Status::ok) return s;
  constexpr uint32_t known = KVC_RECURRENT_APPROXIMATE | KVC_RECURRENT_HOST_CHECKPOINTS;
  if ((d.flags & ~known) != 0) {
    return unknown_bits("kvc_recurrent_desc.flags", d.flags & ~known,
                        "KVC_RECURRENT_APPROXIMATE and KVC_RECURRENT_HOST_CHECKPOINTS");
  }
  if (d.reserved != 0)
    return fail(Status::invalid_argument, "kvc_recurrent_desc.reserved is %u; it must be 0",
                d.reserved);
  if (Status s = read_state_type("dtype_state", d.dtype_state, &request->type_state); s != Status::ok)
    return s;
  if (Status s = read_state_type("dtype_conv", d.dtype_conv, &request->type_conv); s != Status::ok)
    return s;
  request->approximate = (d.flags & KVC_RECURRENT_APPROXIMATE) != 0;
  request->state_size = d.state_size;
  request->conv_channels = d.conv_channels;
  request->conv_dim = d.conv_dim;
  request->checkpoints = d.checkpoints;
  request->checkpoint_interval = d.checkpoint_interval;
  request->checkpoint_min_pos = d.checkpoint_min_pos;
  request->draft_states = d.draft_states;
  return Status::ok;
}

/// NOT_SUPPORTED for what is reserved comes behind everything that is wrong, bounds included (cache.h).
Status read_request(const kvc_cache_desc* desc, const void* kind_desc, CacheRequest* request) {
  kvc_cache_desc d;
  if (Status s = read_descriptor("kvc_cache_desc", desc, &d); s != Status::ok) return s;
  if (Status s = read_common(d, request); s != Status::ok) return s;
  if (request->kind == CacheKind::causal) {
    if (Status s = read_causal(kind_desc, &request->causal); s != Status::ok) return s;
  }
  if (request->kind == CacheKind::encoder) {
    if (Status s = read_encoder(kind_desc, &request->encoder); s != Status::ok) return s;
  }
  if (request->kind == CacheKind::recurrent) {
    if (Status s = read_recurrent(kind_desc, &request->recurrent); s != Status::ok) return s;
  }
  if (Status s = check_request(*request); s != Status::ok) return s;
  return check_reserved(d);
}

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

/// A wrapper lets its children go as they are; those whose handles were destroyed end with it.
Status let_go(const Children& children) {
  ChildrenInside inside(children, Access::exclusive);
  if (Status s = inside.enter_all(); s != Status::ok) return s;
  inside.forget();
  for (int32_t child = 0; child < children.n(); ++child) {
    inside.object(child).is_wrapped = false;
    delete static_cast<CacheObject*>(handles::unpin(children.pins[child]));
  }
  return Status::ok;
}

Status destroy(kvc_cache* handle) {
  void* entered = nullptr;
  if (Status s = handles::enter(handle, Kind::cache, Access::exclusive, &entered); s != Status::ok)
    return s;
  const CacheObject& object = *static_cast<CacheObject*>(entered);
  if (object.children) {
    if (Status s = let_go(*object.children); s != Status::ok) {
      handles::leave(handle, Access::exclusive);
      return s;
    }
  }
  handles::erase(handle, &entered);
  delete static_cast<CacheObject*>(entered);
  return Status::ok;
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
using kvc::capi::with_cache, kvc::capi::with_sequences;

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
  return with_sequences(cache, [&](Cache& c) -> Status {
    const bool reserve = (flags & KVC_BEGIN_RESERVE) != 0;
    constexpr uint32_t known = KVC_BEGIN_RESERVE | KVC_BEGIN_REPLAY;
    if ((flags & ~known) != 0)
      return kvc::unknown_bits("flags", flags & ~known, "KVC_BEGIN_RESERVE");
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
    kvc::Batch batch;
    if (Status s = kvc::capi::read_batch(position, sequence, &batch); s != Status::ok) return s;
    batch.n_tokens = n_tokens;
    batch.flags = token_flags;
    return c.fits(batch);
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
