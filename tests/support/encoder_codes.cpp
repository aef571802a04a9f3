#include <algorithm>
#include <cmath>

#include "encoder_world.hpp"
#include "host_view.hpp"
#include "stored_bytes.hpp"

/// Codes and scales as they are stored, and copies of them as numbers.
namespace fuzz {

kvc_status EncoderWorld::put_codes(kvc_cache* cache, int32_t layer, const Codes& codes) const {
  const int64_t heads = setup_.cache.n_kv_heads;
  CodeArrays k(oracle_.storage_k, codes.k, codes.n, heads);
  CodeArrays v(oracle_.storage_v, codes.v, codes.n, heads);
  return kvc_put_codes(cache, layer, k.codes.tensor(), k.scales_or_null(), v.codes.tensor(),
                       v.scales_or_null());
}

void EncoderWorld::put_codes() {
  const int32_t sequence = oracle_.only_carrying();
  const int32_t layer = missing_layer(sequence), n = some_length(sequence);
  const int64_t rows = int64_t{n} * setup_.cache.n_kv_heads;
  const Codes codes{n, draw_bytes(oracle_.storage_k, rows, random_),
                    draw_bytes(oracle_.storage_v, rows, random_)};
  Call made = call(Op::put_codes, {}, "layer " + std::to_string(layer) + " n " + std::to_string(n));
  const kvc_status expected = oracle_.may_put(layer, n);
  if (expected == KVC_OK) oracle_.put_codes(layer, sequence, n, codes.k, codes.v);
  const Door at = door(layer);
  judge(made, put_codes(at.cache, at.layer, codes), expected);
}

void EncoderWorld::bind_scales(int32_t layer, bool of_k, bool of_v) {
  if (oracle_.pass_open && oracle_.pass.reserve) return;  // left open by the contract
  const int32_t heads = setup_.cache.n_kv_heads;
  const std::vector<float> k = draw_scales(random_, heads), v = draw_scales(random_, heads);
  Call made = query(Op::bind_scales, {}, "layer " + std::to_string(layer));
  const kvc_status expected = oracle_.may_bind_scales(of_k, of_v);
  const auto first = static_cast<ptrdiff_t>(layer) * heads;
  if (expected == KVC_OK && of_k) std::copy(k.begin(), k.end(), oracle_.scales_k.begin() + first);
  if (expected == KVC_OK && of_v) std::copy(v.begin(), v.end(), oracle_.scales_v.begin() + first);
  const Door at = door(layer);
  judge(made,
        kvc_bind_scales(at.cache, at.layer, at.layer + 1, of_k ? k.data() : nullptr,
                        of_v ? v.data() : nullptr),
        expected);
}

void EncoderWorld::get_codes() {
  const int32_t layer = some_put_layer();
  Call made = query(Op::get_codes, {}, "layer " + std::to_string(layer));
  const Door at = door(layer);
  const kvc_status expected = oracle_.needs_put(layer);
  Lent k, v;
  const kvc_status status = kvc_get_codes(at.cache, at.layer, &k.codes, &k.scales, &v.codes,
                                          &v.scales);
  if (status == KVC_OK && expected == KVC_OK) {
    for (kvc_tensor* view : {&k.codes, &k.scales, &v.codes, &v.scales})
      *view = support::on_host(*view);
    compare_codes(layer, k, true);
    compare_codes(layer, v, false);
  }
  judge(made, status, expected);
}

/// Byte for byte what the oracle stores, in every position that is seen.
void EncoderWorld::compare_codes(int32_t layer, const Lent& lent, bool is_key) const {
  const model::Storage& storage = is_key ? oracle_.storage_k : oracle_.storage_v;
  const Span shown = span();
  expect_equal(lent.codes.dtype, storage.code_dtype(), "dtype of codes");
  expect_equal(lent.codes.shape[0], shown.cells, "cells of codes");
  expect_equal(lent.codes.shape[2], storage.codes_per_row(), "codes per row");
  expect_equal(lent.scales.data != nullptr, storage.block > 0, "scales");
  if (storage.block > 0) {
    expect_equal(lent.scales.dtype, storage.scale_dtype(), "dtype of scales");
    expect_equal(lent.scales.shape[0], shown.cells, "cells of scales");
    expect_equal(lent.scales.shape[2], storage.scales_per_row(), "scales per row");
  }
  const std::set<int32_t> inputs = oracle_.pass.reserve ? live_inputs() : seen_inputs();
  for (const int32_t input : inputs) {
    const model::EncoderInput& held = oracle_.inputs[static_cast<size_t>(input)];
    const model::StoredRows& rows = is_key ? held.k : held.v;
    for (int32_t row = 0; row < held.length; ++row)
      for (int32_t head = 0; head < setup_.cache.n_kv_heads; ++head) {
        const size_t stored = oracle_.stored_row(layer, input, row, head);
        const int64_t column = cell_of_.at(input) + row - shown.first;
        if (!same_bytes(storage.code_dtype(), row_of(lent.codes, column, head), rows.codes(stored),
                        storage.codes_per_row()))
          differ("other codes are stored in row " + std::to_string(row) + " of an input");
        if (storage.block > 0 && !same_bytes(storage.scale_dtype(), row_of(lent.scales, column, head),
                                             rows.scales(stored), storage.scales_per_row()))
          differ("other scales are stored in row " + std::to_string(row) + " of an input");
      }
  }
  if (!(setup_.cache.flags & KVC_CACHE_ZERO_ON_FREE)) return;
  compare_freed(lent.codes, shown.first);
  if (storage.block > 0) compare_freed(lent.scales, shown.first);
}

void EncoderWorld::get_copy() {
  const int32_t layer = some_put_layer();
  Call made = query(Op::get_copy, {}, "layer " + std::to_string(layer));
  const Door at = door(layer);
  const kvc_status expected = oracle_.needs_put(layer);
  kvc_tensor size{};
  kvc_status status = kvc_get_copy(at.cache, at.layer, &size, nullptr);
  if (status == KVC_OK && expected == KVC_OK) {
    expect_equal(size.shape[0], span().cells, "cells of a copy");
    const int64_t heads = setup_.cache.n_kv_heads;
    support::Array k(some_dtype(), {size.shape[0], heads, oracle_.cache.head_dim_k}, random_);
    support::Array v(some_dtype(), {size.shape[0], heads, oracle_.cache.head_dim_v}, random_);
    k.fill(3);
    v.fill(3);
    status = kvc_get_copy(at.cache, at.layer, k.tensor(), v.tensor());
    if (status == KVC_OK && !oracle_.pass.reserve) {
      compare_copy(layer, k, true);
      compare_copy(layer, v, false);
    }
  }
  judge(made, status, expected);
}

/// What is seen as numbers, rotated back; zeros everywhere else.
void EncoderWorld::compare_copy(int32_t layer, const support::Array& copy, bool is_key) const {
  if (!copy.gaps_intact()) differ("get_copy wrote beside its output");
  const int64_t dim = is_key ? oracle_.cache.head_dim_k : oracle_.cache.head_dim_v;
  const int64_t width = setup_.cache.n_kv_heads * dim;
  const uint32_t dtype = copy.tensor()->dtype;
  std::vector<char> seen(static_cast<size_t>(copy.tensor()->shape[0]), 0);
  for (const int32_t input : seen_inputs()) {
    const model::EncoderInput& held = oracle_.inputs[static_cast<size_t>(input)];
    for (int32_t row = 0; row < held.length; ++row) {
      const int64_t column = cell_of_.at(input) + row - span().first;
      seen[static_cast<size_t>(column)] = 1;
      const std::vector<double> wanted = is_key ? oracle_.key(layer, input, row)
                                                : oracle_.value(layer, input, row);
      for (int64_t e = 0; e < width; ++e) {
        const double exact = wanted[static_cast<size_t>(e)], got = copy.get(column * width + e);
        const size_t stored = oracle_.stored_row(layer, input, row, static_cast<int32_t>(e / dim));
        const double slack = read_slack(is_key ? held.k : held.v, stored, dtype, exact);
        const double rounded = model::round_to(dtype, exact);
        if (slack != HUGE_VAL && !same(got, rounded) && !(std::fabs(got - rounded) <= slack))
          differ("get_copy: row " + std::to_string(row) + " of an input is " + std::to_string(got) +
                 ", expected " + std::to_string(exact));
      }
    }
  }
  for (size_t column = 0; column < seen.size(); ++column)
    for (int64_t e = 0; !seen[column] && e < width; ++e)
      if (copy.get(static_cast<int64_t>(column) * width + e) != 0)
        differ("get_copy shows what no token of the batch sees");
}

double EncoderWorld::read_slack(const model::StoredRows& rows, size_t row, uint32_t dtype,
                                double wanted) const {
  return rows.storage().rotation == 0 ? 0 : turned_slack(largest_of(rows, row), dtype, wanted);
}

}  // namespace fuzz
