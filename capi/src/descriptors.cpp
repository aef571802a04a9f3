#include "capi/src/descriptors.hpp"

#include <cstring>

#include "capi/src/arguments.hpp"
#include "capi/src/words.hpp"
#include "kvc/encoder.h"
#include "kvc/lightning.h"
#include "kvc/recurrent.h"
#include "kvc/transformer.h"

namespace kvc::capi {
namespace {

constexpr uint64_t key_flags = KVC_CACHE_ROTATE_K | KVC_CACHE_ROTATE_V | KVC_CACHE_INTERLEAVED |
                               KVC_CACHE_V_IN_K;
constexpr uint64_t cache_flags = KVC_CACHE_STRICT | KVC_CACHE_ZERO_ON_FREE | KVC_CACHE_PREFAULT |
                                 key_flags;

/// A recurrent cache holds states: whatever describes keys and values must be 0.
Status check_no_keys(const kvc_cache_desc& d) {
  struct Field {
    const char* name;
    int64_t value;
  };
  for (const Field& field :
       {Field{"n_kv_heads", d.n_kv_heads}, Field{"head_dim_k", d.head_dim_k},
        Field{"head_dim_v", d.head_dim_v}, Field{"dtype_k", d.dtype_k}, Field{"dtype_v", d.dtype_v},
        Field{"capacity", d.capacity}, Field{"cells", d.cells}, Field{"max_q_heads", d.max_q_heads},
        Field{"block_k", d.block_k}, Field{"block_v", d.block_v}, Field{"v_first", d.v_first}}) {
    if (field.value == 0) continue;
    return fail(Status::invalid_argument,
                "%s is %lld; it must be 0: a recurrent cache holds no keys and values", field.name,
                static_cast<long long>(field.value));
  }
  if ((d.flags & key_flags) == 0) return Status::ok;
  return unknown_bits("kvc_cache_desc.flags of a recurrent cache", d.flags & key_flags,
                      "KVC_CACHE_STRICT, KVC_CACHE_ZERO_ON_FREE and KVC_CACHE_PREFAULT");
}

/// A lightning cache holds states in f32: what describes storage and bounds of keys and values must be 0.
Status check_states_alone(const kvc_cache_desc& d) {
  struct Field {
    const char* name;
    int64_t value;
  };
  for (const Field& field :
       {Field{"capacity", d.capacity}, Field{"cells", d.cells}, Field{"block_k", d.block_k},
        Field{"block_v", d.block_v}, Field{"v_first", d.v_first}}) {
    if (field.value == 0) continue;
    return fail(Status::invalid_argument,
                "%s is %lld; it must be 0: a lightning cache holds states of one size, and no keys "
                "and values",
                field.name, static_cast<long long>(field.value));
  }
  if ((d.flags & key_flags) != 0) {
    return unknown_bits("kvc_cache_desc.flags of a lightning cache", d.flags & key_flags,
                        "KVC_CACHE_STRICT, KVC_CACHE_ZERO_ON_FREE and KVC_CACHE_PREFAULT");
  }
  for (const Field& field : {Field{"dtype_k", d.dtype_k}, Field{"dtype_v", d.dtype_v}}) {
    if (field.value != 0 && field.value != KVC_F32)
      return wrong_dtype(field.name, static_cast<uint32_t>(field.value), "f32");
  }
  return Status::ok;
}

/// How K and V are stored.
Status read_storage(const kvc_cache_desc& d, CacheBounds* bounds) {
  if (Status s = read_storage_type("dtype_k", d.dtype_k, &bounds->type_k); s != Status::ok)
    return s;
  if (Status s = read_storage_type("dtype_v", d.dtype_v, &bounds->type_v); s != Status::ok)
    return s;
  bounds->block_k = d.block_k;
  bounds->block_v = d.block_v;
  bounds->v_first = d.v_first;
  bounds->rotate_k = (d.flags & KVC_CACHE_ROTATE_K) != 0;
  bounds->rotate_v = (d.flags & KVC_CACHE_ROTATE_V) != 0;
  bounds->interleaved = (d.flags & KVC_CACHE_INTERLEAVED) != 0;
  bounds->v_in_k = (d.flags & KVC_CACHE_V_IN_K) != 0;
  if (!bounds->v_in_k) return Status::ok;
  if (d.dtype_v != 0 || d.block_v != 0) {
    return fail(
        Status::invalid_argument,
        "dtype_v is %s and block_v %d; with KVC_CACHE_V_IN_K both must be 0: V is a part of "
        "K's rows",
        words_for_dtype(d.dtype_v).text, d.block_v);
  }
  bounds->type_v = bounds->type_k;
  return Status::ok;
}

Status read_common(const kvc_cache_desc& d, CacheRequest* request) {
  CacheBounds* bounds = &request->bounds;
  if (d.kind < KVC_CAUSAL || d.kind > KVC_LIGHTNING)
    return fail(Status::invalid_argument,
                "kind %u is none of KVC_CAUSAL (%d) to KVC_LIGHTNING (%d); this version creates "
                "KVC_CAUSAL, KVC_ENCODER, KVC_RECURRENT, KVC_TRANSFORMER and KVC_LIGHTNING",
                d.kind, KVC_CAUSAL, KVC_LIGHTNING);
  request->kind = static_cast<CacheKind>(d.kind);
  if (const uint64_t unknown = d.flags & ~cache_flags; unknown != 0) {
    return unknown_bits("kvc_cache_desc.flags", unknown,
                        "KVC_CACHE_STRICT, KVC_CACHE_ZERO_ON_FREE, KVC_CACHE_PREFAULT, "
                        "KVC_CACHE_ROTATE_K, KVC_CACHE_ROTATE_V, KVC_CACHE_INTERLEAVED and "
                        "KVC_CACHE_V_IN_K");
  }
  if (d.kind == KVC_RECURRENT) {
    if (Status s = check_no_keys(d); s != Status::ok) return s;
  }
  if (d.kind == KVC_LIGHTNING) {
    if (Status s = check_states_alone(d); s != Status::ok) return s;
  }
  if (Status s = read_storage(d, bounds); s != Status::ok) return s;
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
    return wrong_struct_size(kind == KVC_ENCODER       ? "kvc_encoder_desc"
                             : kind == KVC_RECURRENT   ? "kvc_recurrent_desc"
                             : kind == KVC_TRANSFORMER ? "kvc_transformer_desc"
                             : kind == KVC_LIGHTNING   ? "kvc_lightning_desc"
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

Status read_transformer(const void* desc, CacheRequest* request) {
  if (desc == nullptr) return Status::ok;
  if (Status s = check_kind(desc, KVC_TRANSFORMER); s != Status::ok) return s;
  kvc_transformer_desc d;
  const auto* given = static_cast<const kvc_transformer_desc*>(desc);
  if (Status s = read_descriptor("kvc_transformer_desc", given, &d); s != Status::ok) return s;
  constexpr uint32_t known = KVC_TRANSFORMER_RING | KVC_TRANSFORMER_NOT_CAUSAL;
  if ((d.flags & ~known) != 0) {
    return unknown_bits("kvc_transformer_desc.flags", d.flags & ~known,
                        "KVC_TRANSFORMER_RING and KVC_TRANSFORMER_NOT_CAUSAL");
  }
  TransformerRequest& transformer = request->transformer;
  const Status s = read_mask_dtype(d.mask_dtype, &transformer.mask_dtype);
  if (s != Status::ok) return s;
  transformer.ring = (d.flags & KVC_TRANSFORMER_RING) != 0;
  transformer.not_causal = (d.flags & KVC_TRANSFORMER_NOT_CAUSAL) != 0;
  transformer.reach = d.reach;
  request->bounds.value_heads = d.value_heads;
  return Status::ok;
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
  request->checkpoints = {d.checkpoints, d.checkpoint_interval, d.checkpoint_min_pos,
                          (d.flags & KVC_RECURRENT_HOST_CHECKPOINTS) != 0};
  request->draft_states = d.draft_states;
  return Status::ok;
}

Status read_lightning(const void* desc, LightningRequest* request) {
  if (desc == nullptr) return Status::ok;
  if (Status s = check_kind(desc, KVC_LIGHTNING); s != Status::ok) return s;
  kvc_lightning_desc d;
  const auto* given = static_cast<const kvc_lightning_desc*>(desc);
  if (Status s = read_descriptor("kvc_lightning_desc", given, &d); s != Status::ok) return s;
  constexpr uint32_t known = KVC_LIGHTNING_APPROXIMATE | KVC_LIGHTNING_HOST_CHECKPOINTS |
                             KVC_LIGHTNING_FUSED;
  if ((d.flags & ~known) != 0) {
    return unknown_bits(
        "kvc_lightning_desc.flags", d.flags & ~known,
        "KVC_LIGHTNING_APPROXIMATE, KVC_LIGHTNING_HOST_CHECKPOINTS and KVC_LIGHTNING_FUSED");
  }
  request->approximate = (d.flags & KVC_LIGHTNING_APPROXIMATE) != 0;
  request->is_fused = (d.flags & KVC_LIGHTNING_FUSED) != 0;
  request->block = d.block;
  request->checkpoints = {d.checkpoints, d.checkpoint_interval, d.checkpoint_min_pos,
                          (d.flags & KVC_LIGHTNING_HOST_CHECKPOINTS) != 0};
  request->draft_states = d.draft_states;
  return Status::ok;
}

}  // namespace

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
  if (request->kind == CacheKind::transformer) {
    if (Status s = read_transformer(kind_desc, request); s != Status::ok) return s;
  }
  if (request->kind == CacheKind::lightning) {
    if (Status s = read_lightning(kind_desc, &request->lightning); s != Status::ok) return s;
  }
  return check_request(*request);
}

}  // namespace kvc::capi
