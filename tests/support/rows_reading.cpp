#include <algorithm>
#include <cmath>

#include "fuzz_world.hpp"
#include "host_view.hpp"
#include "rows_world.hpp"

/// Views, codes, copies, mask and gather.
namespace fuzz {
namespace {

/// One row of a view of all rows, [columns, heads, …].
kvc_tensor row_view(const kvc_tensor& view, int64_t row) {
  kvc_tensor one = view;
  one.ndim = 3;
  for (int32_t d = 0; d < 3; ++d) {
    one.shape[d] = view.shape[d + 1];
    one.strides[d] = view.strides[d + 1];
  }
  one.byte_offset += static_cast<uint64_t>(row * view.strides[0]) * model::element_bytes(view.dtype);
  return one;
}

}  // namespace

// ---- Views -------------------------------------------------------------------------------------------------------------------

void RowsWorld::get() {
  const int32_t layer = some_put_layer();
  const bool wants_k = random_.chance(0.9), wants_v = random_.chance(0.9);
  Call made = query(Op::get, {}, "layer " + std::to_string(layer));
  const bool lends = (!wants_k || oracle_.storage_k.is_plain()) &&
                     (!wants_v || oracle_.storage_v.is_plain());
  kvc_status expected = oracle_.needs_put(layer);
  if (expected == KVC_OK && !lends) expected = KVC_E_NOT_SUPPORTED;
  kvc_tensor k{}, v{};
  const Door at = door(layer);
  const kvc_status status = kvc_get(at.cache, at.layer, wants_k ? &k : nullptr,
                                    wants_v ? &v : nullptr);
  if (status == KVC_OK && expected == KVC_OK) {
    if (wants_k) compare_numbers(layer, support::on_host(k), true);
    if (wants_v) compare_numbers(layer, support::on_host(v), false);
    if (!oracle_.pass.reserve && attends()) compare_textbook(layer);
  }
  judge(made, status, expected);
}

/// A view of numbers, which are what the codes of plain types are.
void RowsWorld::compare_numbers(int32_t layer, const kvc_tensor& view, bool is_key) const {
  expect_equal(view.ndim, 4, "dimensions of a view");
  expect_equal(view.dtype, is_key ? oracle_.cache.dtype_k : oracle_.cache.dtype_v,
               "dtype of a view");
  expect_equal(view.shape[0], n_sequences(), "rows of a view");
  expect_equal(view.shape[1], oracle_.columns(), "columns of a view");
  expect_equal(view.shape[2], is_key ? setup_.cache.n_kv_heads : oracle_.value_heads(),
               "heads of a view");
  expect_equal(view.shape[3], is_key ? oracle_.cache.head_dim_k : oracle_.cache.head_dim_v,
               "dimensions of a view");
  for (int32_t s = 0; s < n_sequences(); ++s) {
    const kvc_tensor row = row_view(view, s);
    for (const model::Token& token : oracle_.held(s)) {
      if (!oracle_.content_of(token).put[static_cast<size_t>(layer)]) continue;
      const std::vector<double> wanted = is_key ? oracle_.key(layer, token)
                                                : oracle_.value(layer, token);
      for (size_t e = 0; e < wanted.size(); ++e) {
        const auto element = static_cast<int64_t>(e);
        const char* const at = row_of(row, oracle_.column(token.position), element / view.shape[3]);
        if (!same(model::load(at, view.dtype, element % view.shape[3] * row.strides[2]), wanted[e]))
          differ("a view shows something else at position " + std::to_string(token.position) +
                 " of row " + std::to_string(s));
      }
    }
  }
  compare_freed(view);
}

/// With ZERO_ON_FREE a column that holds no position is zero.
void RowsWorld::compare_freed(const kvc_tensor& view) const {
  if (!(setup_.cache.flags & KVC_CACHE_ZERO_ON_FREE) || oracle_.pass_open) return;
  for (int32_t s = 0; s < n_sequences(); ++s) {
    std::vector<char> held(static_cast<size_t>(oracle_.columns()), 0);
    for (const model::Token& token : oracle_.held(s))
      held[static_cast<size_t>(oracle_.column(token.position))] = 1;
    const kvc_tensor row = row_view(view, s);
    for (int64_t column = 0; column < view.shape[1]; ++column)
      for (int64_t head = 0; !held[static_cast<size_t>(column)] && head < view.shape[2]; ++head)
        if (!is_zero_row(row, column, head)) differ("a column that was freed is not zero");
  }
}

void RowsWorld::get_codes() {
  const int32_t layer = some_put_layer();
  Call made = query(Op::get_codes, {}, "layer " + std::to_string(layer));
  const kvc_status expected = oracle_.needs_put(layer);
  Lent k, v;
  const Door at = door(layer);
  const kvc_status status = kvc_get_codes(at.cache, at.layer, &k.codes, &k.scales, &v.codes,
                                          &v.scales);
  if (status == KVC_OK && expected == KVC_OK) {
    compare_codes(layer, k, true);
    compare_codes(layer, v, false);
  }
  judge(made, status, expected);
}

/// kvc_rows_view() needs no pass.
void RowsWorld::view() {
  const int32_t layer = some_layer();
  Call made = query(Op::rows_view, {}, "layer " + std::to_string(layer));
  const bool exists = layer >= 0 && layer < n_layers();
  Lent k, v;
  const Door at = door(layer);
  const kvc_status status = kvc_rows_view(at.cache, at.layer, &k.codes, &k.scales, &v.codes,
                                          &v.scales);
  if (status == KVC_OK && exists) {
    compare_codes(layer, k, true);
    compare_codes(layer, v, false);
  }
  judge(made, status, exists ? KVC_OK : KVC_E_INVALID_ARGUMENT);
}

/// Byte for byte what the oracle stores, at every position.
void RowsWorld::compare_codes(int32_t layer, const Lent& lent, bool is_key) const {
  if (!is_key && oracle_.v_in_k()) return;  // a part of K's rows
  const model::Storage& storage = is_key ? oracle_.storage_k : oracle_.storage_v;
  const int32_t heads = is_key ? setup_.cache.n_kv_heads : oracle_.value_heads();
  const kvc_tensor codes = support::on_host(lent.codes), scales = support::on_host(lent.scales);
  expect_equal(codes.ndim, 4, "dimensions of codes");
  expect_equal(codes.dtype, storage.code_dtype(), "dtype of codes");
  expect_equal(codes.shape[0], n_sequences(), "rows of codes");
  expect_equal(codes.shape[1], oracle_.columns(), "columns of codes");
  expect_equal(codes.shape[2], heads, "heads of codes");
  expect_equal(codes.shape[3], storage.codes_per_row(), "codes per row");
  expect_equal(scales.data != nullptr, storage.block > 0, "scales");
  if (storage.block > 0) {
    expect_equal(scales.dtype, storage.scale_dtype(), "dtype of scales");
    expect_equal(scales.shape[1], oracle_.columns(), "columns of scales");
    expect_equal(scales.shape[3], storage.scales_per_row(), "scales per row");
  }
  for (int32_t s = 0; s < n_sequences(); ++s)
    for (const model::Token& token : oracle_.held(s)) {
      const model::Content& content = oracle_.content_of(token);
      if (!content.put[static_cast<size_t>(layer)]) continue;
      const model::StoredRows& rows = is_key ? content.k : content.v;
      for (int32_t head = 0; head < heads; ++head) {
        const size_t stored = is_key ? oracle_.key_row(layer, head) : oracle_.value_row(layer, head);
        const int32_t column = oracle_.column(token.position);
        const bool same_codes = same_bytes(storage.code_dtype(),
                                           row_of(row_view(codes, s), column, head),
                                           rows.codes(stored), storage.codes_per_row());
        const bool same_scales = storage.block == 0 ||
                                 same_bytes(storage.scale_dtype(),
                                            row_of(row_view(scales, s), column, head),
                                            rows.scales(stored), storage.scales_per_row());
        if (!same_codes || !same_scales)
          differ(std::string("other ") + (same_codes ? "scales" : "codes") +
                 " are stored at position " + std::to_string(token.position) + " of row " +
                 std::to_string(s));
      }
    }
  compare_freed(codes);
  if (storage.block > 0) compare_freed(scales);
}

/// A textbook attention over get_copy and the mask agrees with kvc_attention().
void RowsWorld::compare_textbook(int32_t layer) {
  const int64_t batch = n_sequences(), n = q_len(), columns = oracle_.columns();
  const int64_t heads = q_heads(layer), kv = setup_.cache.n_kv_heads, group = heads / kv;
  const int64_t dk = oracle_.cache.head_dim_k, dv = oracle_.cache.head_dim_v;
  support::Array k(KVC_F32, {batch, columns, kv, dk}), v(KVC_F32, {batch, columns, kv, dv});
  support::Array mask(KVC_BOOL, {batch, 1, n, columns}), q(KVC_F32, {batch, n, heads, dk}),
      out(KVC_F32, {batch, n, heads, dv});
  q.fill(random_);
  if (kvc_get_copy(cache_, layer, k.tensor(), v.tensor()) != KVC_OK ||
      kvc_mask(cache_, layer, mask.tensor()) != KVC_OK ||
      kvc_attention(cache_, layer, q.tensor(), out.tensor(), nullptr) != KVC_OK)
    differ("get_copy, mask or attention after get: " + support::last_message());
  compare_mask(mask);
  const model::Constants& constants = oracle_.constants[static_cast<size_t>(layer)];
  const double scale = constants.scale != 0 ? constants.scale
                                            : 1 / std::sqrt(static_cast<double>(dk));
  for (int64_t row = 0; row < batch * n * heads; ++row) {
    const int64_t t = row / heads, b = t / n, kv_head = row % heads / group;
    if (is_wild(layer, static_cast<int32_t>(t))) continue;
    std::vector<std::vector<double>> values;
    std::vector<model::Seen> seen;
    double largest = 0;
    for (const model::Token& token : oracle_.visible(static_cast<int32_t>(t))) {
      const int64_t c = oracle_.column(token.position);
      double dot = 0;
      for (int64_t d = 0; d < dk; ++d)
        dot += q.get(row * dk + d) * k.get(((b * columns + c) * kv + kv_head) * dk + d);
      std::vector<double>& value = values.emplace_back();
      for (int64_t d = 0; d < dv; ++d)
        value.push_back(v.get(((b * columns + c) * kv + kv_head) * dv + d));
      for (const double each : value) largest = std::max(largest, std::fabs(each));
      const double distance = std::fabs(
          static_cast<double>(oracle_.pass.position[static_cast<size_t>(t)]) - token.position);
      seen.push_back({dot, distance, nullptr, 0});
    }
    for (size_t i = 0; i < seen.size(); ++i) seen[i].value = values[i].data();
    std::vector<double> wanted(static_cast<size_t>(dv));
    const double sum = model::attend_row(constants, static_cast<int32_t>(row % heads), scale, seen,
                                         static_cast<int32_t>(dv), wanted.data());
    for (int64_t d = 0; d < dv; ++d) {
      const double slack = (1e-4 + logit_rounding(sum)) * largest + 1e-30;
      if (!(std::fabs(out.get(row * dv + d) - wanted[static_cast<size_t>(d)]) <= slack))
        differ("a textbook attention over the copies differs in token " + std::to_string(t));
    }
  }
}

// ---- Copies ------------------------------------------------------------------------------------------------------------------

template <class Read>
void RowsWorld::compare_token(int32_t layer, const model::Token& token, bool is_key, uint32_t dtype,
                              const char* where, const Read& read) const {
  const std::vector<double> wanted = is_key ? oracle_.key(layer, token) : oracle_.value(layer, token);
  const size_t dim = wanted.size() /
                     static_cast<size_t>(is_key ? setup_.cache.n_kv_heads : oracle_.value_heads());
  const model::Content& content = oracle_.content_of(token);
  const bool of_k = is_key || oracle_.v_in_k();
  const model::StoredRows& rows = of_k ? content.k : content.v;
  for (size_t e = 0; e < wanted.size(); ++e) {
    const double exact = wanted[e], rounded = model::round_to(dtype, exact);
    const double got = read(static_cast<int64_t>(e));
    if (same(got, rounded)) continue;
    const auto head = static_cast<int32_t>(e / dim);
    const size_t stored = of_k ? oracle_.key_row(layer, head) : oracle_.value_row(layer, head);
    const double slack = rows.storage().rotation == 0
                             ? 0
                             : turned_slack(largest_of(rows, stored), dtype, exact);
    if (slack != HUGE_VAL && !(std::fabs(got - rounded) <= slack))
      differ(std::string(where) + ": position " + std::to_string(token.position) + " of layer " +
             std::to_string(layer) + " is " + std::to_string(got) + ", expected " +
             std::to_string(exact));
  }
}

void RowsWorld::get_copy() {
  const int32_t layer = some_put_layer();
  Call made = query(Op::get_copy, {}, "layer " + std::to_string(layer));
  const Door at = door(layer);
  const kvc_status expected = oracle_.needs_put(layer);
  kvc_tensor size{};
  kvc_status status = kvc_get_copy(at.cache, at.layer, &size, nullptr);
  if (status == KVC_OK && expected == KVC_OK) {
    expect_equal(size.ndim, 4, "dimensions of a copy");
    expect_equal(size.shape[0], n_sequences(), "rows of a copy");
    expect_equal(size.shape[1], oracle_.columns(), "columns of a copy");
    const int64_t batch = n_sequences(), columns = oracle_.columns();
    support::Array k(some_dtype(),
                     {batch, columns, setup_.cache.n_kv_heads, oracle_.cache.head_dim_k}, random_);
    support::Array v(some_dtype(),
                     {batch, columns, oracle_.value_heads(), oracle_.cache.head_dim_v}, random_);
    k.fill(3);
    v.fill(3);
    const bool wants_v = random_.chance(0.9);
    status = kvc_get_copy(at.cache, at.layer, k.tensor(), wants_v ? v.tensor() : nullptr);
    if (status == KVC_OK && !oracle_.pass.reserve) {
      compare_copy(layer, k, true);
      if (wants_v) compare_copy(layer, v, false);
    }
  }
  judge(made, status, expected);
}

/// What is seen as numbers, rotated back; zeros everywhere else.
void RowsWorld::compare_copy(int32_t layer, const support::Array& copy, bool is_key) const {
  if (!copy.gaps_intact()) differ("get_copy wrote beside its output");
  const kvc_tensor& shape = *copy.tensor();
  const int64_t columns = shape.shape[1], width = shape.shape[2] * shape.shape[3];
  std::vector<char> seen(static_cast<size_t>(n_sequences() * columns), 0);
  for (int32_t t = 0; t < oracle_.pass.n_tokens; ++t)
    for (const model::Token& token : oracle_.visible(t)) {
      const int64_t line = t / q_len() * columns + oracle_.column(token.position);
      char& is_seen = seen[static_cast<size_t>(line)];
      if (!is_seen)
        compare_token(layer, token, is_key, shape.dtype, "get_copy",
                      [&](int64_t e) { return copy.get(line * width + e); });
      is_seen = 1;
    }
  for (size_t line = 0; line < seen.size(); ++line)
    for (int64_t e = 0; !seen[line] && e < width; ++e)
      if (copy.get(static_cast<int64_t>(line) * width + e) != 0)
        differ("get_copy shows what no token of the batch sees");
}

void RowsWorld::gather() {
  const int32_t sequence = some_sequence(), layer = some_layer();
  const bool exists = oracle_.is_sequence(sequence) && layer >= 0 && layer < n_layers();
  const bool wrong = random_.chance(0.03);
  Call made = query(Op::gather, {},
                    "layer " + std::to_string(layer) + " sequence " + std::to_string(sequence));
  const int64_t n = (oracle_.is_sequence(sequence) ? oracle_.info(sequence).count : 1) + wrong;
  const int64_t heads = oracle_.value_heads(), dv = oracle_.cache.head_dim_v;
  const bool transposed = random_.chance(0.3);
  support::Array k(some_dtype(), {n, setup_.cache.n_kv_heads, oracle_.cache.head_dim_k}, random_);
  support::Array v = transposed ? support::Array(some_dtype(), {heads, dv, n}, random_)
                                : support::Array(some_dtype(), {n, heads, dv}, random_);
  if (transposed) v.tensor()->flags = KVC_TENSOR_TRANSPOSED;
  const bool with_k = random_.chance(0.8);
  const Door at = door(layer, sequence);
  const kvc_status status = kvc_gather(at.cache, at.layer, sequence, with_k ? k.tensor() : nullptr,
                                       v.tensor());
  if (status == KVC_OK && exists)
    compare_gathered(layer, sequence, with_k ? &k : nullptr, &v, transposed);
  judge(made, status, !exists ? KVC_E_INVALID_ARGUMENT : wrong ? KVC_E_SHAPE : KVC_OK);
}

void RowsWorld::compare_gathered(int32_t layer, int32_t sequence, const support::Array* k,
                                 const support::Array* v, bool transposed) const {
  if ((k && !k->gaps_intact()) || (v && !v->gaps_intact()))
    differ("gather wrote beside its output");
  const std::vector<model::Token> tokens = oracle_.held(sequence);
  const auto n = static_cast<int64_t>(tokens.size());
  for (const support::Array* side : {k, v}) {
    for (int64_t row = 0; side && row < n; ++row) {
      const model::Token& token = tokens[static_cast<size_t>(row)];
      const int64_t width = side->count() / n;
      compare_token(layer, token, side == k, side->tensor()->dtype, "gather", [&](int64_t e) {
        return side->get(side == v && transposed ? e * n + row : row * width + e);
      });
    }
  }
}

// ---- Masks -------------------------------------------------------------------------------------------------------------------

void RowsWorld::mask() {
  const int32_t layer = some_layer();
  Call made = query(Op::mask, {}, "layer " + std::to_string(layer));
  const Door at = door(layer);
  const kvc_status expected = oracle_.needs_pass(layer);
  kvc_tensor size{};
  kvc_status status = kvc_mask(at.cache, at.layer, &size);
  if (status == KVC_OK && expected == KVC_OK) {
    const uint32_t asked = setup_.transformer.mask_dtype;
    const int64_t wanted[] = {n_sequences(), 1, q_len(), oracle_.columns()};
    expect_equal(size.dtype, asked == 0 ? uint32_t{KVC_F32} : asked, "proposed mask dtype");
    expect_equal(size.ndim, 4, "mask dimensions");
    for (int32_t d = 0; d < 4; ++d) expect_equal(size.shape[d], wanted[d], "extent of the mask");
    support::Array mask(random_.pick<uint32_t>({KVC_F32, KVC_F16, KVC_BOOL}), {wanted, wanted + 4},
                        random_);
    mask.fill(3);
    status = kvc_mask(at.cache, at.layer, mask.tensor());
    if (status == KVC_OK) compare_mask(mask);
  }
  judge(made, status, expected);
}

void RowsWorld::compare_mask(const support::Array& mask) const {
  if (!mask.gaps_intact()) differ("mask wrote beside its output");
  const int32_t columns = oracle_.columns();
  const bool is_bool = mask.tensor()->dtype == KVC_BOOL;
  if (oracle_.pass.reserve) return;
  const std::vector<std::vector<char>> seen = seen_columns();
  for (int32_t t = 0; t < oracle_.pass.n_tokens; ++t) {
    for (int32_t c = 0; c < columns; ++c) {
      const bool visible = seen[static_cast<size_t>(t)][static_cast<size_t>(c)];
      const double value = mask.get(int64_t{t} * columns + c);
      if (value != (is_bool ? static_cast<double>(visible) : visible ? 0.0 : -HUGE_VAL))
        differ("mask of token " + std::to_string(t) + " column " + std::to_string(c) + " is " +
               std::to_string(value));
    }
  }
}

void RowsWorld::history_range() {
  const int32_t layer = some_layer();
  Call made = query(Op::history, {}, "layer " + std::to_string(layer));
  const Door at = door(layer);
  const kvc_status expected = oracle_.needs_pass(layer);
  int32_t first = -7, n = -7;
  const kvc_status status = kvc_history(at.cache, at.layer, &first, &n);
  if (status == KVC_OK && expected == KVC_OK) {
    expect_equal(first, 0, "first cell of the history");
    expect_equal(n, oracle_.columns(), "cells of the history");
  }
  judge(made, status, expected);
}

}  // namespace fuzz
