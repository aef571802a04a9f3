#pragma once
#include <cstdint>
#include <memory>

#include "core/attention/row_plan.hpp"
#include "core/caches/kv_cache.hpp"
#include "core/cells/row_book.hpp"
#include "core/device.hpp"

namespace kvc {

class DigestSum;

/// As the caller asks: 0 is the default. The heads of V are in the bounds.
struct TransformerRequest {
  bool ring = false;
  bool not_causal = false;
  int32_t reach = 0;
  DType mask_dtype = DType::f32;
};

struct TransformerSettings {
  RowRules rules;
  DType mask_dtype = DType::f32;
};

/// The cache of a batch of rows (semantics §6): the token at a position of row b lies in one column of it, cell
/// b · columns + column. The book knows where rows continue, the plan what tokens of the open pass see; this class adds K and V.
///
/// The files: transformer.cpp (creation, watching), transformer_pass.cpp (begin … abort, put, attention),
/// transformer_reading.cpp (get, mask, gather, views), transformer_rows.cpp (copies, insert, fill).
class TransformerCache final : public TokenCache<LabelledCache<RowBook>, RowPlan>,
                               public Rows,
                               public RowStorage {
 public:
  /// Checks bounds and request and fills in defaults. Needs no device.
  static Status resolve(CacheBounds& bounds, const TransformerRequest& request,
                        TransformerSettings* settings);
  static Status memory_bytes(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                             const TransformerSettings& settings, uint64_t* bytes);
  static Status create(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                       const TransformerSettings& settings, std::shared_ptr<Cache>* out);

  Rows* rows() override { return this; }
  const Rows* rows() const override { return this; }
  RowStorage* row_storage() override { return this; }
  const RowStorage* row_storage() const override { return this; }
  bool takes_lists() const override { return false; }

  Status check_scales(bool of_k, bool of_v) const override;
  Status get(int32_t layer, Tensor* k, Tensor* v) override;
  Status get_codes(int32_t layer, Codes* codes) override;
  Status prepare_copy(int32_t layer) override { return ready_for_layer(layer, true); }
  Status get_copy(int32_t layer, const Tensor& k, const Tensor& v) override;
  Status history(int32_t layer, int32_t* first, int32_t* cells) override;
  DType mask_dtype() const override { return settings_.mask_dtype; }
  Status mask(int32_t layer, const Tensor& into) override;
  Status gather(int32_t layer, int32_t sequence, const Tensor& k, const Tensor& v) override;
  Status runs(int32_t layer, int32_t sequence, int32_t capacity, Run* runs, int32_t* n) const override;

  int32_t q_len() const override { return pass_.n_tokens() / bounds_.max_sequences; }
  bool has_starts() const override { return true; }
  int32_t starts(int32_t row) const override { return book_.sequence(row).starts; }
  Status check_set(int32_t row_begin, int32_t n, const int32_t* index,
                   const int32_t* starts) const override {
    return book_.check_set(row_begin, n, index, starts);
  }
  Status apply_set(int32_t row_begin, int32_t n, const int32_t* index, const int32_t* starts) override;
  Status check_insert(const Cache& other, int32_t slot) const override;
  Status apply_insert(const Cache& other, int32_t slot) override;

  Status view_rows(int32_t layer, Codes* codes) const override;
  Status check_fill(int32_t layer, int32_t row_begin, int32_t n) const override;
  int32_t n_columns() const override { return book_.rules().columns; }
  Status fill_rows(int32_t layer, int32_t row_begin, int32_t n, const Filling& filling) override;

  Status copy(int32_t source, int32_t destination, int32_t position) override;
  Status apply_reorder(int32_t n, const int32_t* destination, const int32_t* source) override;

  CacheStats stats() const override;
  Status digest(uint64_t out[2]) const override;

 private:
  friend BookedCache<RowBook>;  // creates it
  TransformerCache(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                   const TransformerSettings& settings);
  AttentionBounds attention_bounds() const;
  void carve_host(Carver& carver);
  void carve_device(Carver& carver);
  Status attach();

  // A pass (transformer_pass.cpp).
  Status open_pass(const Batch& batch) override;
  PassRecorder* pass_recorder() const override { return on_device_->recorder(); }
  Status replan() override { return make_plan(); }
  Status check_kept_tokens(int32_t row, int32_t n) const override;
  Status settle_unput() override;
  Status follow_book() override;
  Status clear(int32_t layer, const int32_t* cell, int32_t n);
  Status make_plan();
  Status check_attends() const override;
  Status prepare(int32_t layer, const AttentionTensors& tensors, const AttentionOperator** op,
                 AttentionParams* params) override;
  static Visibility visibility_of(const RowRules& rules);

  // Reading (transformer_reading.cpp).
  Tensor by_rows(const Tensor& cells) const;

  // Rows (transformer_rows.cpp).
  Status check_same(const TransformerCache& other) const;
  Status copy_stretches(const TransformerCache& from, const CellStretch* stretch, int32_t n,
                        bool exchange);
  Status copy_row(const TransformerCache& from, int32_t source, int32_t destination, int32_t end);
  Status exchange_rows(int32_t a, int32_t b);
  Status fill_cells(int32_t layer, const int32_t* cell, int32_t n, const Filling& from);

  // Watching.
  Status digest_row(int32_t index, DigestSum& sum) const;

  const TransformerSettings settings_;
  struct Move {
    int32_t source;  // −1: the row has what it shall have
    int32_t n_uses;  // as the source of rows that have not
  };
  Move* moves_ = nullptr;          // [rows] while they are reordered
  bool entries_are_told_ = false;  // to a device that follows them
};

}  // namespace kvc
