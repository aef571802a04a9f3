#include "core/caches/bounds.hpp"
#include "core/base/planted.hpp"

#include "core/base/messages.hpp"

namespace kvc {

Status check_range(const char* name, int32_t value, int32_t low, int32_t high) {
  return value >= low && value <= high ? Status::ok : out_of_range(name, value, low, high);
}

Status check_bounds(const CacheBounds& b) {
  struct Check {
    const char* name;
    int32_t value, low, high;
  };
  const Check checks[] = {{"n_layers", b.n_layers, 1, max_extent},
                          {"n_kv_heads", b.n_kv_heads, 1, max_extent},
                          {"head_dim_k", b.head_dim_k, 1, max_extent},
                          {"head_dim_v", b.head_dim_v, 0, max_extent},
                          {"max_sequences", b.max_sequences, 1, max_count},
                          {"capacity", b.capacity, 1, max_count},
                          {"max_batch", b.max_batch, 1, max_count},
                          {"cells", b.cells, 0, max_count},
                          {"max_q_heads", b.max_q_heads, 0, max_extent * 16}};
  for (const Check& check : checks) {
    if (Status s = check_range(check.name, check.value, check.low, check.high); s != Status::ok)
      return s;
  }
  return Status::ok;
}

Status resolve_heads(CacheBounds& bounds) {
  if (bounds.head_dim_v == 0) bounds.head_dim_v = bounds.head_dim_k;
  if (bounds.value_heads == 0) bounds.value_heads = bounds.n_kv_heads;
  if (bounds.max_q_heads == 0) bounds.max_q_heads = bounds.n_kv_heads * 16;
  if (bounds.max_q_heads >= bounds.n_kv_heads) return Status::ok;
  return fail(Status::invalid_argument,
              "max_q_heads %d is below n_kv_heads %d: each KV head serves a query head or more",
              bounds.max_q_heads, bounds.n_kv_heads);
}

namespace {

Status check_interleaved(const CacheBounds& b) {
  if (!b.interleaved || (b.type_k == b.type_v && is_plain(b.type_k))) return Status::ok;
  return fail(Status::invalid_argument,
              "KVC_CACHE_INTERLEAVED with dtype_k %s and dtype_v %s: one row holds both, so both "
              "must be f32, "
              "f16 or bf16",
              format_of(b.type_k).name, format_of(b.type_v).name);
}

/// Whether [v_first, v_first + head_dim_v) lies in K and cuts no block of `name`s in two.
Status check_part(const CacheBounds& b, const char* name, int32_t block) {
  if (block == 0 || (b.v_first % block == 0 && b.head_dim_v % block == 0)) return Status::ok;
  return fail(Status::invalid_argument,
              "V is dims %d to %d of K, which cuts a block of %d %s in two: v_first and head_dim_v "
              "must be multiples of %d",
              b.v_first, b.v_first + b.head_dim_v - 1, block, name, block);
}

Status resolve_v_in_k(CacheBounds& b) {
  if (b.interleaved || b.rotate_v) {
    return fail(
        Status::invalid_argument,
        "KVC_CACHE_V_IN_K must not be set with %s: V is a part of K's rows and has no storage "
        "of its own",
        b.interleaved ? "KVC_CACHE_INTERLEAVED" : "KVC_CACHE_ROTATE_V");
  }
  if (b.v_first < 0 || b.v_first > b.head_dim_k - b.head_dim_v) {
    return fail(
        Status::invalid_argument,
        "V is dims %d to %lld of K, whose head_dim_k is %d: v_first + head_dim_v must be at "
        "most head_dim_k",
        b.v_first, static_cast<long long>(b.v_first) + b.head_dim_v - 1, b.head_dim_k);
  }
  const bool whole = b.type_k == StorageType::int8;  // any part of a vector has the vector's scale
  if (Status s = check_part(b, "values that share a scale", whole ? 0 : b.row_k.block);
      s != Status::ok)
    return s;
  if (Status s = check_part(b, "values that are rotated together", b.row_k.rotation); s != Status::ok)
    return s;
  b.row_v = b.row_k;
  b.row_v.head_dim = b.head_dim_v;
  if (whole) b.row_v.block = b.head_dim_v;
  return Status::ok;
}

}  // namespace

Status resolve_storage(CacheBounds& b) {
  if (!b.v_in_k && b.v_first != 0) {
    return fail(Status::invalid_argument, "v_first is %d; without KVC_CACHE_V_IN_K it must be 0",
                b.v_first);
  }
  const RowRequest k = {"dtype_k", b.type_k, b.head_dim_k,
                        planted(Bug::block_of_default_size) ? 0 : b.block_k, b.rotate_k};
  if (Status s = resolve_row_format(k, &b.row_k); s != Status::ok) return s;
  if (b.v_in_k) return resolve_v_in_k(b);
  const RowRequest v = {"dtype_v", b.type_v, b.head_dim_v, b.block_v, b.rotate_v};
  if (Status s = resolve_row_format(v, &b.row_v); s != Status::ok) return s;
  return check_interleaved(b);
}

}  // namespace kvc
