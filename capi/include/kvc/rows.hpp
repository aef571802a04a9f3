// kvc/rows.hpp: batches of rows, and the transformer cache, which holds them. Part of <kvc/kvc.hpp>; rows.h and transformer.h
// are the manual.
//
// A batch has desc.max_sequences rows, and row b is sequence b. A pass has q_len tokens in each row, and tensors have a batch
// dimension in the place of n_tokens:
//
//   kvc::Cache cache(device, desc, kvc::TransformerDesc());  // desc.max_batch: the rows times the tokens of a pass
//   kvc::Rows prompts;
//   prompts.q_len = 7, prompts.valid = {7, 5};               // two prompts, the shorter one padded at its end
//   kvc::Pass pass(cache, prompts);
//   for each layer {
//     cache.put(layer, {k, {2, 7, n_kv_heads, head_dim}}, {v, {2, 7, n_kv_heads, head_dim}});
//     cache.attention(layer, {q, {2, 7, n_q_heads, head_dim}}, {out, {2, 7, n_q_heads, head_dim}});
//   }
//   pass.commit();
#ifndef KVC_ROWS_HPP
#define KVC_ROWS_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "attention.hpp"
#include "base.hpp"
#include "kinds.hpp"
#include "rows.h"
#include "transformer.h"

namespace kvc {
inline namespace api_0_2 {

// What a pass takes of each row, see kvc_begin_rows(). Begin all passes of a loop with one of these: then nothing is allocated.
struct Rows {
  std::int32_t q_len = 1;
  std::vector<std::int32_t> valid = {};        // [batch]; empty: q_len each
  ConstTensor attention_mask = {};             // {}: nothing is hidden
  std::vector<std::int32_t> token_types = {};  // [batch * q_len]; empty: none
  std::uint32_t flags = 0;                     // KVC_ROWS_…
  void *stream = nullptr;
};

// Where rows continue, and below which position they are padding.
struct RowPlaces {
  std::vector<std::int32_t> index, starts;
};

// Member functions of Cache.
template <typename Self>
class RowCalls {
 public:
  // The guard Pass calls begin_rows() and aborts a pass that was not committed.
  void begin_rows(const Rows &rows) {
    check_lengths(rows);
    check(kvc_begin_rows(raw(), rows.q_len, rows.flags, pointer_to(rows.valid), rows.attention_mask.get(),
                         pointer_to(rows.token_types), rows.stream));
  }
  // Whether begin_rows() would find room. Throws whatever else begin_rows() would throw.
  bool fits_rows(const Rows &rows) const {
    check_lengths(rows);
    const kvc_status status = kvc_fits_rows(raw(), rows.q_len, rows.flags, pointer_to(rows.valid), rows.attention_mask.get(),
                                            pointer_to(rows.token_types));
    if (status != KVC_E_CACHE_FULL) check(status);
    return status == KVC_OK;
  }
  // Of rows [row_begin, row_begin + n); without arguments, of all.
  RowPlaces rows_query() const { return rows_query(0, self().max_sequences_); }
  RowPlaces rows_query(std::int32_t row_begin, std::int32_t n) const {
    RowPlaces places;
    places.index.resize(static_cast<std::size_t>(std::clamp(n, 0, self().max_sequences_)));  // of more rows nothing is written
    places.starts.resize(places.index.size());
    check(kvc_rows_query(raw(), row_begin, n, places.index.data(), places.starts.data()));
    return places;
  }
  // Of rows from row_begin on, as many as there are elements. What is empty stays as it is.
  void rows_set(std::int32_t row_begin, const std::vector<std::int32_t> &index, const std::vector<std::int32_t> &starts = {}) {
    const std::int32_t n = starts.empty()  ? detail::length("index", index)
                           : index.empty() ? detail::length("starts", starts)
                                           : detail::same_length("index", index, "starts", starts);
    check(kvc_rows_set(raw(), row_begin, n, pointer_to(index), pointer_to(starts)));
  }
  // All rows of `other` in the place of rows [slot, slot + rows of other).
  void insert(const Self &other, std::int32_t slot) { check(kvc_insert(raw(), other.handle(), slot)); }

  // All columns of all rows as they are stored, [batch, columns, heads, …], without a pass. The views last until the next call
  // on the cache that is not const.
  CodeViews rows_view(std::int32_t layer) const {
    return CodeViews::from([&](kvc_tensor *k, kvc_tensor *k_scales, kvc_tensor *v, kvc_tensor *v_scales) {
      return kvc_rows_view(raw(), layer, k, k_scales, v, v_scales);
    });
  }
  // Replaces what rows hold in one layer, by numbers or by codes as rows_view() lends them. {}: stays; no scales.
  void rows_fill(std::int32_t layer, std::int32_t row_begin, std::int32_t n, const ConstTensor &k, const ConstTensor &k_scales,
                 const ConstTensor &v, const ConstTensor &v_scales) {
    check(kvc_rows_fill(raw(), layer, row_begin, n, k.get(), k_scales.get(), v.get(), v_scales.get()));
  }

 private:
  const Self &self() const noexcept { return static_cast<const Self &>(*this); }
  kvc_cache *raw() const noexcept { return self().handle(); }
  static const std::int32_t *pointer_to(const std::vector<std::int32_t> &values) noexcept {
    return values.empty() ? nullptr : values.data();
  }
  // C reads as many elements as there are rows, and tokens of rows.
  void check_lengths(const Rows &rows) const {
    const std::int64_t n_rows = self().max_sequences_;
    check_length("valid", rows.valid.size(), n_rows, "rows");
    check_length("token_types", rows.token_types.size(), n_rows * rows.q_len, "tokens");
  }
  static void check_length(const char *name, std::size_t n, std::int64_t wanted, const char *of_what) {
    if (n != 0 && static_cast<std::int64_t>(n) != wanted)
      raise(KVC_E_INVALID_ARGUMENT, std::string(name) + " has " + std::to_string(n) + " elements, the batch has " +
                                        std::to_string(wanted) + " " + of_what);
  }
};

}  // namespace api_0_2
}  // namespace kvc

#endif
