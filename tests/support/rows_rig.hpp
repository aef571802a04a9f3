#pragma once
#include <cstdint>
#include <map>
#include <vector>

#include "kvc/transformer.h"
#include "support/abi.hpp"
#include "support/random.hpp"

namespace support {

/// A transformer cache beside what it must hold: per row the value of the token at each position, from which K and V of every layer
/// are made.
class RowsRig {
 public:
  static constexpr int32_t n_layers = 2, n_kv_heads = 2, n_q_heads = 4, dim_k = 24, dim_v = 16;

  struct Pass {
    int32_t q_len = 1;
    std::vector<int32_t> valid{};  // empty: all
    std::vector<int32_t> types{};
    std::vector<std::vector<uint8_t>> mask{};  // [batch] or [batch * q_len] rows of columns
    uint32_t flags = 0;
  };
  struct Row {
    std::map<int32_t, int32_t> held;  // value of the token at a position
    int32_t next = 0, starts = 0;
  };

  explicit RowsRig(kvc_device* device) : device_(device) {
    desc = cache_desc(n_layers, n_kv_heads, dim_k, dim_v);
    desc.kind = KVC_TRANSFORMER;
    desc.max_sequences = 3;
    desc.capacity = 40;
    desc.max_batch = 3 * 8;
    transformer = KVC_TRANSFORMER_DESC_INIT;
  }

  kvc_cache_desc desc{};
  kvc_transformer_desc transformer{};
  Cache cache;
  std::vector<Row> rows;

  void create();
  bool is_ring() const { return (transformer.flags & KVC_TRANSFORMER_RING) != 0; }
  int32_t batch() const { return desc.max_sequences; }
  int32_t q_max() const { return desc.max_batch / desc.max_sequences; }
  int32_t columns() const { return desc.capacity + (is_ring() ? q_max() : 0); }

  kvc_status begin(const Pass& pass);
  void put_all();
  /// Begins the pass, puts every layer, compares what tokens see and attend to, and commits it.
  void run(const Pass& pass);
  /// What a commit leaves in the rig's rows.
  void note_committed();
  void note_aborted();

  bool sees(int32_t row, int32_t token, int32_t position) const;
  void expect_visible() const;
  void expect_attention(bool apart) const;
  /// Index, starts and gathered keys and values of every row.
  void expect_rows() const;

  float key(int32_t layer, int32_t value, int32_t head, int32_t dim) const {
    return number(layer * 2, value, head, dim);
  }
  float value(int32_t layer, int32_t of, int32_t head, int32_t dim) const {
    return number(layer * 2 + 1, of, head, dim);
  }

 private:
  static float number(int32_t side, int32_t value, int32_t head, int32_t dim);
  int32_t valid(int32_t row) const {
    return pass_.valid.empty() ? pass_.q_len : pass_.valid[static_cast<size_t>(row)];
  }
  int32_t before(int32_t row) const { return rows[static_cast<size_t>(row)].next - valid(row); }
  int32_t type(int32_t row, int32_t token) const {
    return pass_.types.empty() ? 0 : pass_.types[static_cast<size_t>(row * pass_.q_len + token)];
  }

  kvc_device* device_;
  Pass pass_;
  std::vector<Row> before_;
  int32_t next_value_ = 1;
  Random random_{20261129};
};

}  // namespace support
