#include <algorithm>
#include <cmath>
#include <map>

#include "fuzz_world.hpp"
#include "host_view.hpp"
#include "model/attention.hpp"
#include "stored_bytes.hpp"

/// kvc_get(): what the views show, which keys were rewritten, and a textbook attention over them.
namespace fuzz {
namespace {

double at(const kvc_tensor& view, int64_t cell, int64_t head, int64_t dimension) {
  const char* data = static_cast<const char*>(view.data) + view.byte_offset;
  return model::load(data, view.dtype,
                     cell * view.strides[0] + head * view.strides[1] + dimension * view.strides[2]);
}

}  // namespace

void World::get() {
  const int32_t layer = some_put_layer();
  const bool wants_k = random_.chance(0.9), wants_v = random_.chance(0.9);
  Call made = call(Op::get, oracle_.pass.sequence, "layer " + std::to_string(layer));
  const kvc_status expected = oracle_.get(layer, wants_k, wants_v);
  kvc_tensor k{}, v{};
  const Door at = door(layer);
  const kvc_status status = kvc_get(at.cache, at.layer, wants_k ? &k : nullptr,
                                    wants_v ? &v : nullptr);
  k = support::on_host(k);
  v = support::on_host(v);
  const bool shown = status == KVC_OK && expected == KVC_OK;
  if (shown && wants_k && oracle_.pass.reserve && k.shape[0] < oracle_.pool())
    differ("a reserve pass shows less than the pool");
  if (shown && !oracle_.pass.reserve) {
    if (oracle_.get_pays()) adopt_paid_keys();
    compare_places();
    if (wants_k && wants_v) compare_views(layer, k, v);
  }
  judge(made, status, expected);
}

/// Keys that had a pending rotation have been rotated and rounded: to the oracle's within a rounding. From
/// here on the oracle holds the bits that the library holds.
void World::adopt_paid_keys() {
  const int64_t row = setup_.cache.n_kv_heads * oracle_.cache.head_dim_k;
  for (const model::Oracle::Debt& debt : oracle_.debts()) {
    const auto& tokens = oracle_.sequences[static_cast<size_t>(debt.sequence)].tokens;
    const auto n = static_cast<int64_t>(tokens.size());
    int64_t index = 0;
    while (tokens[static_cast<size_t>(index)].position != debt.position) ++index;
    const model::Token token = tokens[static_cast<size_t>(index)];
    std::vector<float> paid;
    for (int32_t layer = 0; layer < setup_.cache.n_layers; ++layer) {
      support::Array k(KVC_F32, {n, setup_.cache.n_kv_heads, oracle_.cache.head_dim_k});
      if (kvc_gather(cache_, layer, debt.sequence, k.tensor(), nullptr) != KVC_OK)
        differ("gather after get: " + support::last_message());
      const std::vector<double> wanted = oracle_.key(layer, token);
      const uint32_t dtype = oracle_.cache.dtype_k;
      for (int64_t e = 0; e < row; ++e) {
        const double got = k.get(index * row + e), exact = wanted[static_cast<size_t>(e)];
        paid.push_back(static_cast<float>(got));
        const double slack = 0.51 * model::spacing(dtype, exact) + 2e-6 * (1 + std::fabs(exact));
        const bool wild = is_wild(layer, {token});
        const bool turned = oracle_.rope[static_cast<size_t>(layer)].n_dims > 0;
        if (wild && turned) continue;
        const bool same = got == exact || (std::isnan(got) && std::isnan(exact));
        if (!(std::fabs(got - exact) <= (turned ? slack : 0.0)) && !same)
          differ("get rewrote the key at position " + std::to_string(debt.position) +
                 " of sequence " + std::to_string(debt.sequence) + " layer " + std::to_string(layer) +
                 " to " + std::to_string(got) + ", expected " + std::to_string(exact));
      }
    }
    oracle_.pay(debt.sequence, debt.position, paid);
  }
}

/// Where the rows of K and V lie to each other.
void World::compare_layout(const kvc_tensor& k, const kvc_tensor& v) const {
  const int64_t dk = oracle_.cache.head_dim_k, dv = oracle_.cache.head_dim_v;
  const bool interleaved = setup_.cache.flags & KVC_CACHE_INTERLEAVED;
  expect_equal(k.strides[2] + v.strides[2], 2, "strides between elements");
  expect_equal(k.strides[0], interleaved ? dk + dv : dk, "stride between cells of k");
  expect_equal(v.strides[0],
               interleaved        ? dk + dv
               : oracle_.v_in_k() ? dk
                                  : dv,
               "stride between cells of v");
  const char* const keys = static_cast<const char*>(k.data) + k.byte_offset;
  const char* const values = static_cast<const char*>(v.data) + v.byte_offset;
  const auto element = static_cast<int64_t>(model::element_bytes(k.dtype));
  if (k.shape[0] > 0 && interleaved)
    expect_equal(values - keys, dk * element, "place of v in a row");
  if (k.shape[0] > 0 && oracle_.v_in_k())
    expect_equal(values - keys, setup_.cache.v_first * element, "place of v in k");
}

void World::compare_views(int32_t layer, const kvc_tensor& k, const kvc_tensor& v) {
  const int64_t heads = setup_.cache.n_kv_heads;
  const int64_t dk = oracle_.cache.head_dim_k, dv = oracle_.cache.head_dim_v;
  expect_equal(k.dtype, oracle_.cache.dtype_k, "dtype of k");
  expect_equal(v.dtype, oracle_.cache.dtype_v, "dtype of v");
  expect_equal(k.shape[0], v.shape[0], "history of v");
  expect_equal(k.shape[1] * k.shape[2], heads * dk, "row of k");
  expect_equal(v.shape[1] * v.shape[2], heads * dv, "row of v");
  compare_layout(k, v);

  kvc_tensor size{};
  if (kvc_mask(cache_, 0, &size) != KVC_OK) differ("mask after get: " + support::last_message());
  expect_equal(size.shape[1], k.shape[0], "history of the mask");
  support::Array mask(KVC_F32, {size.shape[0], size.shape[1]});
  kvc_mask(cache_, 0, mask.tensor());
  const std::vector<std::vector<int32_t>> cells = visible_cells();
  compare_mask(mask, cells);
  const int32_t first = first_column(cells);
  for (int32_t t = 0; t < oracle_.pass.n_tokens; ++t) {
    const std::vector<model::Token> tokens = oracle_.visible(t);
    for (size_t i = 0; i < tokens.size(); ++i) {
      const int64_t column = cells[static_cast<size_t>(t)][i] - first;
      const std::vector<double> key = oracle_.key(layer, tokens[i]);
      const std::vector<double> value = oracle_.value(layer, tokens[i]);
      const auto same = [](double a, double b) { return a == b || (std::isnan(a) && std::isnan(b)); };
      for (int64_t e = 0; e < heads * dk; ++e)
        if (!same(at(k, column, e / dk, e % dk), key[static_cast<size_t>(e)]))
          differ("the view of k shows another key at position " + std::to_string(tokens[i].position));
      for (int64_t e = 0; e < heads * dv; ++e)
        if (!same(at(v, column, e / dv, e % dv), value[static_cast<size_t>(e)]))
          differ("the view of v shows another value at position " +
                 std::to_string(tokens[i].position));
    }
  }
  compare_freed(k);
  compare_freed(v);
  compare_textbook(layer, k, v, mask);
}

std::vector<int64_t> World::free_columns(int64_t history) const {
  const int32_t first = first_column(visible_cells());
  std::vector<char> held(static_cast<size_t>(history), 0);
  for (size_t s = 0; s < places_.size(); ++s) {
    // Hidden tokens still hold their cells, and nothing says which these are.
    if (oracle_.pass.before[s].lost_below != oracle_.sequences[s].lost_below) return {};
    for (const support::Place& place : places_[s])
      if (place.cell >= first && place.cell - first < history)
        held[static_cast<size_t>(place.cell - first)] = 1;
  }
  std::vector<int64_t> result;
  for (int64_t column = 0; column < history; ++column)
    if (!held[static_cast<size_t>(column)]) result.push_back(column);
  return result;
}

/// With zero_on_free the bytes of a cell that nobody holds are zero, of numbers, codes and scales alike.
void World::compare_freed(const kvc_tensor& view) const {
  if (!(setup_.cache.flags & KVC_CACHE_ZERO_ON_FREE) || view.data == nullptr) return;
  for (const int64_t column : free_columns(view.shape[0]))
    for (int64_t head = 0; head < view.shape[1]; ++head)
      if (!is_zero_row(view, column, head)) differ("a free cell holds something");
}

/// softmax(q k^T + mask) v over the views, as a caller with its own kernels would: it must be what
/// kvc_attention() returns.
void World::compare_textbook(int32_t layer, const kvc_tensor& k, const kvc_tensor& v,
                             const support::Array& mask) {
  const int32_t heads = q_heads(layer), n = oracle_.pass.n_tokens;
  const int64_t dk = k.shape[2], dv = v.shape[2], history = k.shape[0];
  support::Array q(KVC_F32, {n, heads, dk}), out(KVC_F32, {n, heads, dv});
  q.fill(random_);
  if (kvc_attention(cache_, layer, q.tensor(), out.tensor(), nullptr) != KVC_OK)
    differ("attention after get: " + support::last_message());
  const model::Constants& constants = oracle_.constants[static_cast<size_t>(layer)];
  const double scale = constants.scale != 0 ? constants.scale
                                            : 1 / std::sqrt(static_cast<double>(dk));
  const int32_t first = first_column(visible_cells());
  for (int32_t t = 0; t < n; ++t) {
    if (is_wild(layer, oracle_.visible(t))) continue;
    if (oracle_.pass.sequence[static_cast<size_t>(t)] == KVC_NONE) continue;
    const auto sequence = static_cast<size_t>(oracle_.pass.sequence[static_cast<size_t>(t)]);
    std::map<int64_t, int32_t> position_of;  // by column
    for (const support::Place& place : places_[sequence])
      position_of[place.cell - first] = place.position;
    for (int32_t h = 0; h < heads; ++h) {
      const int32_t kv_head = h / (heads / setup_.cache.n_kv_heads);
      std::vector<model::Seen> seen;
      std::vector<double> values;
      values.reserve(static_cast<size_t>(history * dv));
      double largest = 0;
      for (int64_t column = 0; column < history; ++column) {
        if (mask.get(t * history + column) != 0) continue;
        double dot = 0;
        for (int64_t d = 0; d < dk; ++d)
          dot += q.get((t * heads + h) * dk + d) * at(k, column, kv_head, d);
        const double* value = values.data() + values.size();
        for (int64_t d = 0; d < dv; ++d) values.push_back(at(v, column, kv_head, d));
        for (int64_t d = 0; d < dv; ++d) largest = std::max(largest, std::fabs(value[d]));
        const double own = oracle_.pass.position[static_cast<size_t>(t)];
        seen.push_back({dot, std::fabs(own - position_of[column]), value});
      }
      std::vector<double> wanted(static_cast<size_t>(dv));
      model::attend_row(constants, h, scale, seen, static_cast<int32_t>(dv), wanted.data());
      for (int64_t d = 0; d < dv; ++d) {
        const double got = out.get((t * heads + h) * dv + d);
        if (!(std::fabs(got - wanted[static_cast<size_t>(d)]) <= 4e-5 * largest + 1e-30))
          differ("attention is not the textbook's over get and mask");
      }
    }
  }
}

}  // namespace fuzz
