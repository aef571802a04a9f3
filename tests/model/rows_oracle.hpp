#pragma once
#include <cstdint>
#include <vector>

#include "kvc/transformer.h"
#include "oracle.hpp"

namespace model {

/// A row of the batch. It remembers every token that was ever committed and not cut off; a ring shows those from lost_below on.
struct Row {
  std::vector<Token> tokens;  // positions ascend
  int32_t next = 0;           // index
  int32_t starts = 0;
  int32_t lost_below = 0;
};

/// An attention mask as numbers: sees [batch, n], or [batch, q_len, n].
struct RowsMask {
  int32_t n = 0;
  bool of_tokens = false;
  std::vector<char> sees;
};

/// What kvc_begin_rows() is given.
struct RowsBatch {
  int32_t q_len = 0;
  uint32_t flags = 0;
  const int32_t* valid = nullptr;  // [batch]
  const RowsMask* mask = nullptr;
  const int32_t* types = nullptr;  // [batch * q_len]
};

struct RowsPass : Batch {
  int32_t q_len = 0;
  std::vector<int32_t> content;  // [n_tokens], empty for a reserve pass; padding has no content: -1
  std::vector<char> except;      // [n_tokens]
  std::vector<int32_t> type;     // [n_tokens] 0: none
  std::vector<char> put;         // [n_layers]
  RowsMask mask;                 // n 0: none
  std::vector<Row> before;       // what abort goes back to
};

/// The oracle of transformer caches: rows as lists of positions and contents. It knows no columns, and a ring is a cache that
/// remembers everything and looks at the last positions alone.
class RowsOracle : public ListKind<Row> {
 public:
  using Bytes = Oracle::Bytes;

  RowsOracle(const kvc_cache_desc& cache, const kvc_transformer_desc& transformer);

  kvc_status begin_rows(const RowsBatch& given);
  kvc_status fits_rows(const RowsBatch& given) const;
  kvc_status set_causal(int32_t n, const int32_t* except) override;
  kvc_status rows_set(int32_t row_begin, int32_t n, const int32_t* index, const int32_t* starts);
  /// Rows of another cache, of which all but the number of rows, the length and q_max is alike.
  kvc_status insert(const RowsOracle& other, int32_t slot);

  /// The status of a call that needs a pass and a layer, and of one that needs the layer put, too.
  kvc_status needs_pass(int32_t layer) const;
  kvc_status needs_put(int32_t layer) const;
  /// The status was OK: what the caller's tensors hold, [batch, q_len, heads, head_dim]. With V_IN_K v is not looked at.
  void put(int32_t layer, const std::vector<float>& k, const std::vector<float>& v);
  void put_codes(int32_t layer, const Bytes& k, const Bytes& v);
  kvc_status may_bind_scales(bool of_k, bool of_v) const;

  /// The status of kvc_rows_fill() before its tensors are looked at; then what it does: the codes of [n, c, heads] rows.
  kvc_status may_fill(int32_t layer, int32_t row_begin, int32_t n) const;
  struct Filling {
    const Bytes* codes = nullptr;                 // either …
    const std::vector<float>* numbers = nullptr;  // … or these; neither: stays
  };
  void fill(int32_t layer, int32_t row_begin, int32_t n, int32_t c, const Filling& k,
            const Filling& v);

  bool fully_put() const override;
  const Batch& batch() const override { return pass; }
  Info info(int32_t sequence) const override;
  /// What a row holds, as if the open pass were committed.
  std::vector<Token> held(int32_t sequence) const;
  int64_t used() const;
  bool is_ring() const { return transformer.flags & KVC_TRANSFORMER_RING; }
  int32_t q_max() const { return cache.max_batch / cache.max_sequences; }
  int32_t columns() const { return cache.capacity + (is_ring() ? q_max() : 0); }
  int32_t column(int32_t position) const { return position % columns(); }
  int32_t value_heads() const;
  bool v_in_k() const { return cache.flags & KVC_CACHE_V_IN_K; }

  /// What attend() asks: what a token of the pass sees, and keys and values in numbers.
  std::vector<Token> visible(int32_t token) const;
  int32_t pending_rotation(const Token&) const { return 0; }
  std::vector<double> key(int32_t layer, const Token& token) const;
  std::vector<double> value(int32_t layer, const Token& token) const;
  const float* stored_key(int32_t layer, const Token& token, int32_t head) const;
  std::vector<float> stored_value(int32_t layer, const Token& token) const;
  std::vector<double> as_multiplied(int32_t layer, const Token& token, const double* q) const;
  const Content& content_of(const Token& token) const {
    return contents[static_cast<size_t>(token.content)];
  }
  size_t key_row(int32_t layer, int32_t head) const;
  size_t value_row(int32_t layer, int32_t head) const;

  kvc_transformer_desc transformer;
  int32_t reach = 0;                 // 0: sees everything
  std::vector<Constants> constants;  // [n_layers]
  Storage storage_k, storage_v;
  std::vector<float> scales_k, scales_v;  // [n_layers, heads] of f8

  std::vector<Content> contents;  // only grows
  RowsPass pass;

 private:
  uint32_t known_flags() const override { return 0; }
  kvc_status room(int32_t, const int32_t*, const uint32_t*) const override { return KVC_OK; }
  void open(int32_t, const int32_t*, const int32_t*, const uint32_t*, bool) override {}
  kvc_status may_keep(const std::vector<char>& kept) const override;
  bool can_continue(int32_t sequence, int32_t g) const override;
  int32_t best(int32_t sequence, int32_t want) const override;
  kvc_status may_remove_middle(int32_t, int32_t, int32_t) const override {
    return KVC_E_NOT_SUPPORTED;
  }
  void keep(const std::vector<char>& kept) override;
  void settle() override;
  void forget() override { sequences = pass.before; }
  void clear_pass() override { pass = {}; }
  Row cut_to(Row row, int32_t g) const override;
  void remove_middle(int32_t, int32_t, int32_t) override {}

  kvc_status read(const RowsBatch& given, std::vector<int32_t>* valid) const;
  kvc_status read_postpadded(const RowsBatch& given, std::vector<int32_t>* valid) const;
  bool sees(int32_t token, int32_t position) const;
  bool same_block(size_t token, size_t other) const;
  bool in_mask(int32_t token, int32_t position) const;
  bool continues(const Row& row, int32_t g) const;
  template <class Store>
  void store_tokens(int32_t layer, const Store& store);
  Content new_content() const;
};

}  // namespace model
