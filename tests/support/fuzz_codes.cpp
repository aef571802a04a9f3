#include <algorithm>
#include <cmath>

#include "fuzz_world.hpp"
#include "host_view.hpp"
#include "stored_bytes.hpp"

/// Codes and scales as they are stored, and copies of them as numbers.
namespace fuzz {
// ---- Putting ---------------------------------------------------------------------------------------

World::Codes World::draw_codes(int64_t n) {
  const int64_t rows = n * setup_.cache.n_kv_heads;
  return {n, draw_bytes(oracle_.storage_k, rows, random_),
          draw_bytes(oracle_.storage_v, rows, random_)};
}

World::Codes World::nan_codes(int64_t n) const {
  const int64_t rows = n * setup_.cache.n_kv_heads;
  return {n, nan_bytes(oracle_.storage_k, rows), nan_bytes(oracle_.storage_v, rows)};
}

kvc_status World::put_codes(kvc_cache* cache, int32_t layer, const Codes& given) const {
  const int64_t heads = setup_.cache.n_kv_heads;
  CodeArrays k(oracle_.storage_k, given.k, given.n, heads);
  if (oracle_.v_in_k())
    return kvc_put_codes(cache, layer, k.codes.tensor(), k.scales_or_null(), nullptr, nullptr);
  CodeArrays v(oracle_.storage_v, given.v, given.n, heads);
  return kvc_put_codes(cache, layer, k.codes.tensor(), k.scales_or_null(), v.codes.tensor(),
                       v.scales_or_null());
}

void World::put_codes(int32_t layer, const Codes& codes) {
  Call made = call(Op::put_codes, oracle_.pass_open ? oracle_.pass.sequence : Numbers(),
                   "layer " + std::to_string(layer));
  const Door at = door(layer);
  const kvc_status expected = oracle_.put_codes(layer, codes.k, codes.v);
  judge(made, put_codes(at.cache, at.layer, codes), expected);
}

/// Now and then a second time with the same codes under other scales, which is another state.
void World::put_drawn_codes(int32_t layer) {
  Codes codes = draw_codes(n_tokens());
  put_codes(layer, codes);
  if (!random_.chance(0.1)) return;
  for (const auto& [storage, bytes] :
       {std::pair(&oracle_.storage_k, &codes.k), std::pair(&oracle_.storage_v, &codes.v)})
    double_scales(*storage, *bytes);
  put_codes(layer, codes);
}

// ---- Reading -----------------------------------------------------------------------------------------

template <class Visit>
void World::for_each_seen(const Visit& visit) const {
  const std::vector<std::vector<int32_t>> cells = visible_cells();
  const int32_t first = first_column(cells);
  for (int32_t t = 0; t < oracle_.pass.n_tokens; ++t) {
    const std::vector<model::Token> tokens = oracle_.visible(t);
    for (size_t i = 0; i < tokens.size(); ++i)
      visit(cells[static_cast<size_t>(t)][i] - first, tokens[i]);
  }
}

void World::get_codes() {
  const int32_t layer = some_put_layer();
  Call made = query(Op::get_codes, oracle_.pass.sequence, "layer " + std::to_string(layer));
  const kvc_status expected = oracle_.needs_put(layer);
  Lent k, v;
  const Door at = door(layer);
  const kvc_status status = kvc_get_codes(at.cache, at.layer, &k.codes, &k.scales, &v.codes,
                                          &v.scales);
  for (kvc_tensor* view : {&k.codes, &k.scales, &v.codes, &v.scales})
    *view = support::on_host(*view);
  const bool shown = status == KVC_OK && expected == KVC_OK;
  if (shown && oracle_.pass.reserve && k.codes.shape[0] < oracle_.pool())
    differ("a reserve pass shows less than the pool");
  if (shown && !oracle_.pass.reserve) {
    compare_codes(layer, k, true);
    compare_codes(layer, v, false);
    if (oracle_.storage_k.is_plain() && oracle_.storage_v.is_plain())
      compare_layout(k.codes, v.codes);
    for (const kvc_tensor* view : {&k.codes, &k.scales, &v.codes, &v.scales}) compare_freed(*view);
  }
  judge(made, status, expected);
}

/// Byte for byte what the oracle stores, in every cell that is seen.
void World::compare_codes(int32_t layer, const Lent& lent, bool is_key) const {
  const bool part = !is_key && oracle_.v_in_k();
  const model::Storage& storage = is_key || part ? oracle_.storage_k : oracle_.storage_v;
  const int64_t dim = is_key ? oracle_.cache.head_dim_k : oracle_.cache.head_dim_v;
  const int64_t first = part ? setup_.cache.v_first : 0;
  const int64_t per_code = storage.dim / storage.codes_per_row();
  const bool whole = storage.block == storage.dim;  // one scale for all of it
  const int64_t n_scales = storage.block == 0 ? 0 : whole ? 1 : dim / storage.block;
  const int64_t first_scale = storage.block == 0 || whole ? 0 : first / storage.block;
  expect_equal(lent.codes.dtype, storage.code_dtype(), "dtype of codes");
  expect_equal(lent.codes.shape[1], setup_.cache.n_kv_heads, "heads of codes");
  expect_equal(lent.codes.shape[2], dim / per_code, "codes per row");
  expect_equal(lent.scales.data != nullptr, n_scales > 0, "scales");
  if (n_scales > 0) {
    expect_equal(lent.scales.dtype, storage.scale_dtype(), "dtype of scales");
    expect_equal(lent.scales.shape[0], lent.codes.shape[0], "history of scales");
    expect_equal(lent.scales.shape[2], n_scales, "scales per row");
  }
  for_each_seen([&](int64_t column, const model::Token& token) {
    const model::Content& content = oracle_.contents[static_cast<size_t>(token.content)];
    const model::StoredRows& rows = is_key || part ? content.k : content.v;
    for (int64_t head = 0; head < setup_.cache.n_kv_heads; ++head) {
      const auto row = static_cast<size_t>(layer * setup_.cache.n_kv_heads + head);
      const size_t code = model::element_bytes(storage.code_dtype());
      if (!same_bytes(storage.code_dtype(), row_of(lent.codes, column, head),
                      rows.codes(row) + static_cast<size_t>(first / per_code) * code, dim / per_code))
        differ("other codes are stored at position " + std::to_string(token.position));
      const size_t scale = n_scales > 0 ? model::element_bytes(storage.scale_dtype()) : 0;
      if (n_scales > 0 &&
          !same_bytes(storage.scale_dtype(), row_of(lent.scales, column, head),
                      rows.scales(row) + static_cast<size_t>(first_scale) * scale, n_scales))
        differ("other scales are stored at position " + std::to_string(token.position));
    }
  });
}

void World::get_copy() {
  const int32_t layer = some_put_layer();
  Call made = call(Op::get_copy, oracle_.pass.sequence, "layer " + std::to_string(layer));
  const kvc_status expected = oracle_.get_copy(layer);
  const bool splits = expected == KVC_OK && oracle_.pass_open && !oracle_.pass.reserve;
  kvc_tensor size{};
  const Door at = door(layer);
  kvc_status status = kvc_get_copy(at.cache, at.layer, &size, nullptr);
  if (status == KVC_OK && expected == KVC_OK) {
    if (splits) oracle_.split();
    compare_places();
    expect_equal(size.dtype, KVC_F32, "proposed dtype");
    expect_equal(size.shape[2], oracle_.cache.head_dim_k, "proposed dimensions");
    const int64_t heads = setup_.cache.n_kv_heads;
    support::Array k(some_dtype(), {size.shape[0], heads, oracle_.cache.head_dim_k}, random_);
    support::Array v(some_dtype(), {size.shape[0], heads, oracle_.cache.head_dim_v}, random_);
    k.fill(3);
    v.fill(3);
    const bool with_k = random_.chance(0.9), with_v = random_.chance(0.9);
    status = kvc_get_copy(at.cache, at.layer, with_k ? k.tensor() : nullptr,
                          with_v ? v.tensor() : nullptr);
    if (status == KVC_OK && !oracle_.pass.reserve && with_k) compare_copy(layer, k, true);
    if (status == KVC_OK && !oracle_.pass.reserve && with_v) compare_copy(layer, v, false);
  }
  judge(made, status, expected);
}

/// What is seen as numbers, rotated back and turned by what it owes; zeros everywhere else.
void World::compare_copy(int32_t layer, const support::Array& copy, bool is_key) const {
  if (!copy.gaps_intact()) differ("get_copy wrote beside its output");
  const int64_t dim = is_key ? oracle_.cache.head_dim_k : oracle_.cache.head_dim_v;
  const int64_t width = setup_.cache.n_kv_heads * dim;
  const uint32_t dtype = copy.tensor()->dtype;
  std::vector<char> seen(static_cast<size_t>(copy.tensor()->shape[0]), 0);
  for_each_seen([&](int64_t column, const model::Token& token) {
    if (seen[static_cast<size_t>(column)]) return;
    seen[static_cast<size_t>(column)] = 1;
    const std::vector<double> wanted = is_key ? oracle_.key(layer, token)
                                              : oracle_.value(layer, token);
    for (int64_t e = 0; e < width; ++e) {
      const double got = copy.get(column * width + e), exact = wanted[static_cast<size_t>(e)];
      const double slack = read_slack(layer, token, e, is_key, dtype, exact);
      if (slack != HUGE_VAL && !same(got, model::round_to(dtype, exact)) &&
          !(std::fabs(got - model::round_to(dtype, exact)) <= slack))
        differ(std::string("get_copy: ") + (is_key ? "the key" : "the value") + " at position " +
               std::to_string(token.position) + " element " + std::to_string(e) + " is " +
               std::to_string(got) + ", expected " + std::to_string(exact));
    }
  });
  for (size_t column = 0; column < seen.size(); ++column)
    for (int64_t e = 0; !seen[column] && e < width; ++e)
      if (copy.get(static_cast<int64_t>(column) * width + e) != 0)
        differ("get_copy shows what no token of the batch sees");
}

}  // namespace fuzz
