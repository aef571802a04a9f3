#include "core/caches/bounds.hpp"

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
  if (bounds.max_q_heads == 0) bounds.max_q_heads = bounds.n_kv_heads * 16;
  if (bounds.max_q_heads >= bounds.n_kv_heads) return Status::ok;
  return fail(Status::invalid_argument,
              "max_q_heads %d is below n_kv_heads %d: each KV head serves a query head or more",
              bounds.max_q_heads, bounds.n_kv_heads);
}

}  // namespace kvc
