#include <algorithm>
#include <cmath>

#include "encoder_world.hpp"
#include "fuzz_world.hpp"
#include "host_view.hpp"
#include "stored_bytes.hpp"

/// Views, mask, history and gather.
namespace fuzz {
namespace {

double at(const kvc_tensor& view, int64_t cell, int64_t element) {
  const char* data = static_cast<const char*>(view.data) + view.byte_offset;
  const int64_t head = element / view.shape[2], dimension = element % view.shape[2];
  return model::load(data, view.dtype,
                     cell * view.strides[0] + head * view.strides[1] + dimension * view.strides[2]);
}

}  // namespace

bool EncoderWorld::sees(int32_t token, int32_t cell) const {
  const int32_t input = oracle_.seen(token);
  if (input < 0) return false;
  const int32_t first = cell_of_.at(input);
  return cell >= first && cell < first + oracle_.inputs[static_cast<size_t>(input)].length;
}

EncoderWorld::Span EncoderWorld::span() const {
  if (oracle_.pass.reserve)
    return {0, static_cast<int32_t>(oracle_.slots() * setup_.cache.capacity)};
  int32_t low = INT32_MAX, high = 0;
  for (int32_t t = 0; t < oracle_.pass.n_tokens; ++t) {
    const int32_t input = oracle_.seen(t);
    if (input < 0) continue;
    const int32_t first = cell_of_.at(input);
    low = std::min(low, first);
    high = std::max(high, first + oracle_.inputs[static_cast<size_t>(input)].length);
  }
  return high > 0 ? Span{low, high - low} : Span{};
}

std::set<int32_t> EncoderWorld::live_inputs() const {
  std::set<int32_t> live;
  for (const auto* list : {&oracle_.sequences, &oracle_.pass.before})
    for (const model::EncoderSequence& sequence : *list)
      if (sequence.input >= 0 && oracle_.inputs[static_cast<size_t>(sequence.input)].length > 0)
        live.insert(sequence.input);
  return live;
}

void EncoderWorld::get() {
  const int32_t layer = some_put_layer();
  Call made = query(Op::get, {}, "layer " + std::to_string(layer));
  const Door at = door(layer);
  const bool lends = oracle_.storage_k.is_plain() && oracle_.storage_v.is_plain();
  kvc_status expected = oracle_.needs_put(layer);
  if (expected == KVC_OK && !lends) expected = KVC_E_NOT_SUPPORTED;
  kvc_tensor k{}, v{};
  const kvc_status status = kvc_get(at.cache, at.layer, &k, &v);
  if (status == KVC_OK && expected == KVC_OK) {
    k = support::on_host(k);
    v = support::on_host(v);
    compare_view(layer, k, true);
    compare_view(layer, v, false);
    if (!oracle_.pass.reserve) compare_textbook(layer, k, v);
  }
  judge(made, status, expected);
}

std::set<int32_t> EncoderWorld::seen_inputs() const {
  std::set<int32_t> inputs;
  for (int32_t t = 0; t < oracle_.pass.n_tokens; ++t)
    if (oracle_.seen(t) >= 0) inputs.insert(oracle_.seen(t));
  return inputs;
}

void EncoderWorld::compare_view(int32_t layer, const kvc_tensor& view, bool is_key) const {
  const bool reserve = oracle_.pass.reserve;
  const Span shown = span();
  const int64_t dim = is_key ? oracle_.cache.head_dim_k : oracle_.cache.head_dim_v;
  expect_equal(view.dtype, is_key ? oracle_.cache.dtype_k : oracle_.cache.dtype_v,
               "dtype of a view");
  expect_equal(view.shape[0], shown.cells, "cells of a view");
  expect_equal(view.shape[1], setup_.cache.n_kv_heads, "heads of a view");
  expect_equal(view.shape[2], dim, "dimensions of a view");
  expect_equal(view.strides[0], dim, "stride between cells");
  expect_equal(view.strides[2], 1, "stride between elements");
  const std::set<int32_t> inputs = reserve ? live_inputs() : seen_inputs();
  for (const int32_t input : inputs) {
    for (int32_t row = 0; row < oracle_.inputs[static_cast<size_t>(input)].length; ++row) {
      const std::vector<double> wanted = is_key ? oracle_.key(layer, input, row)
                                                : oracle_.value(layer, input, row);
      for (size_t e = 0; e < wanted.size(); ++e)
        if (!same(at(view, cell_of_.at(input) + row - shown.first, static_cast<int64_t>(e)),
                  wanted[e]))
          differ("a view shows something else in row " + std::to_string(row) + " of an input");
    }
  }
  if (setup_.cache.flags & KVC_CACHE_ZERO_ON_FREE) compare_freed(view, shown.first);
}

/// A textbook attention over the views and the mask agrees with kvc_attention().
void EncoderWorld::compare_textbook(int32_t layer, const kvc_tensor& k, const kvc_tensor& v) {
  const int64_t n = oracle_.pass.n_tokens, columns = k.shape[0], heads = q_heads(layer);
  const int64_t dk = k.shape[2], dv = v.shape[2], group = heads / setup_.cache.n_kv_heads;
  support::Array mask(KVC_F32, {n, columns}), q(KVC_F32, {n, heads, dk}),
      out(KVC_F32, {n, heads, dv});
  q.fill(random_);
  if (kvc_mask(cache_, layer, mask.tensor()) != KVC_OK ||
      kvc_attention(cache_, layer, q.tensor(), out.tensor(), nullptr) != KVC_OK)
    differ("mask or attention after get: " + support::last_message());
  const model::Constants& constants = oracle_.constants[static_cast<size_t>(layer)];
  const double scale = constants.scale != 0 ? constants.scale
                                            : 1 / std::sqrt(static_cast<double>(dk));
  for (int64_t row = 0; row < n * heads; ++row) {
    const int64_t t = row / heads, kv_head = row % heads / group;
    if (is_wild(layer, static_cast<int32_t>(t))) continue;
    std::vector<std::vector<double>> values;
    std::vector<model::Seen> seen;
    for (int64_t c = 0; c < columns; ++c) {
      if (mask.get(t * columns + c) != 0) continue;
      double dot = 0;
      for (int64_t d = 0; d < dk; ++d) dot += q.get(row * dk + d) * at(k, c, kv_head * dk + d);
      std::vector<double>& value = values.emplace_back();
      for (int64_t d = 0; d < dv; ++d) value.push_back(at(v, c, kv_head * dv + d));
      seen.push_back({dot, 0, value.data(), 0});
    }
    double largest = 0;
    for (const std::vector<double>& value : values)
      for (const double each : value) largest = std::max(largest, std::fabs(each));
    std::vector<double> wanted(static_cast<size_t>(dv));
    const double sum = model::attend_row(constants, static_cast<int32_t>(row % heads), scale, seen,
                                         static_cast<int32_t>(dv), wanted.data());
    for (int64_t d = 0; d < dv; ++d) {
      const double slack = (4e-5 + logit_rounding(sum)) * largest + 1e-30;
      if (!(std::fabs(out.get(row * dv + d) - wanted[static_cast<size_t>(d)]) <= slack))
        differ("a textbook attention over the views differs in batch token " + std::to_string(t));
    }
  }
}

/// With ZERO_ON_FREE what nobody holds is zero.
void EncoderWorld::compare_freed(const kvc_tensor& view, int32_t first) const {
  std::vector<char> held(static_cast<size_t>(view.shape[0]), 0);
  for (const int32_t input : live_inputs())
    for (int32_t row = 0; row < oracle_.inputs[static_cast<size_t>(input)].length; ++row) {
      const int32_t column = cell_of_.at(input) + row - first;
      if (column >= 0 && column < view.shape[0]) held[static_cast<size_t>(column)] = 1;
    }
  for (int64_t column = 0; column < view.shape[0]; ++column)
    for (int64_t head = 0; !held[static_cast<size_t>(column)] && head < view.shape[1]; ++head)
      if (!is_zero_row(view, column, head)) differ("a cell that was freed is not zero");
}

void EncoderWorld::compare_mask(const support::Array& mask) const {
  if (!mask.gaps_intact()) differ("mask wrote beside its output");
  const int64_t columns = mask.tensor()->shape[1];
  const bool is_bool = mask.tensor()->dtype == KVC_BOOL;
  const int32_t first = span().first;
  for (int32_t t = 0; t < oracle_.pass.n_tokens; ++t)
    for (int64_t column = 0; column < columns; ++column) {
      const bool visible = oracle_.pass.reserve || sees(t, first + static_cast<int32_t>(column));
      const double value = mask.get(t * columns + column);
      if (value != (is_bool ? static_cast<double>(visible) : visible ? 0.0 : -HUGE_VAL))
        differ("mask of batch token " + std::to_string(t) + " column " + std::to_string(column) +
               " is " + std::to_string(value));
    }
}

void EncoderWorld::mask() {
  const int32_t layer = some_layer();
  Call made = query(Op::mask, {}, "layer " + std::to_string(layer));
  const Door at = door(layer);
  const kvc_status expected = oracle_.needs_pass(layer);
  kvc_tensor size{};
  kvc_status status = kvc_mask(at.cache, at.layer, &size);
  if (status == KVC_OK && expected == KVC_OK) {
    const uint32_t proposed = setup_.encoder.mask_dtype == 0 ? uint32_t{KVC_F32}
                                                             : setup_.encoder.mask_dtype;
    expect_equal(size.dtype, proposed, "proposed mask dtype");
    expect_equal(size.ndim, 2, "mask dimensions");
    expect_equal(size.shape[0], oracle_.pass.n_tokens, "mask rows");
    expect_equal(size.shape[1], span().cells, "mask columns");
    const uint32_t dtype = random_.pick<uint32_t>({KVC_F32, KVC_F16, KVC_BOOL});
    support::Array mask(dtype, {size.shape[0], size.shape[1]}, random_);
    mask.fill(3);
    status = kvc_mask(at.cache, at.layer, mask.tensor());
    if (status == KVC_OK) compare_mask(mask);
  }
  judge(made, status, expected);
}

void EncoderWorld::history_range() {
  const int32_t layer = some_layer();
  Call made = query(Op::history, {}, "layer " + std::to_string(layer));
  const Door at = door(layer);
  const kvc_status expected = oracle_.needs_pass(layer);
  Span got{-7, -7};
  const kvc_status status = kvc_history(at.cache, at.layer, &got.first, &got.cells);
  if (status == KVC_OK && expected == KVC_OK) {
    const Span wanted = span();
    expect_equal(got.first, wanted.first, "first cell of the history");
    expect_equal(got.cells, wanted.cells, "cells of the history");
  }
  judge(made, status, expected);
}

void EncoderWorld::gather() {
  const int32_t sequence = some_sequence(), layer = some_layer();
  const bool is_sequence = sequence >= 0 && sequence < setup_.cache.max_sequences;
  const bool exists = is_sequence && layer >= 0 && layer < setup_.cache.n_layers;
  const bool wrong = random_.chance(0.03);
  Call made = query(Op::gather, {sequence},
                    "layer " + std::to_string(layer) + " sequence " + std::to_string(sequence));
  const int64_t n = (is_sequence ? oracle_.length(sequence) : 1) + wrong;
  const int64_t heads = setup_.cache.n_kv_heads, dv = oracle_.cache.head_dim_v;
  const auto dtype = [&] { return random_.pick<uint32_t>({KVC_F32, KVC_F16, KVC_BF16}); };
  const bool transposed = random_.chance(0.3);
  support::Array k(dtype(), {n, heads, oracle_.cache.head_dim_k}, random_);
  support::Array v = transposed ? support::Array(dtype(), {heads, dv, n}, random_)
                                : support::Array(dtype(), {n, heads, dv}, random_);
  if (transposed) v.tensor()->flags = KVC_TENSOR_TRANSPOSED;
  const bool with_k = random_.chance(0.8);
  const Door at = door(layer, sequence);
  const kvc_status status = kvc_gather(at.cache, at.layer, sequence, with_k ? k.tensor() : nullptr,
                                       v.tensor());
  if (status == KVC_OK && exists)
    compare_gathered(layer, sequence, with_k ? &k : nullptr, &v, transposed);
  judge(made, status, !exists ? KVC_E_INVALID_ARGUMENT : wrong ? KVC_E_SHAPE : KVC_OK);
}

void EncoderWorld::compare_gathered(int32_t layer, int32_t sequence, const support::Array* k,
                                    const support::Array* v, bool transposed) const {
  if ((k && !k->gaps_intact()) || (v && !v->gaps_intact()))
    differ("gather wrote beside its output");
  const int32_t input = oracle_.sequences[static_cast<size_t>(sequence)].input;
  const int64_t n = oracle_.length(sequence);
  for (const support::Array* side : {k, v}) {
    if (side == nullptr) continue;
    for (int32_t row = 0; row < n; ++row) {
      const std::vector<double> wanted = side == k ? oracle_.key(layer, input, row)
                                                   : oracle_.value(layer, input, row);
      const auto width = static_cast<int64_t>(wanted.size());
      for (int64_t e = 0; e < width; ++e) {
        const double got = side->get(side == v && transposed ? e * n + row : row * width + e);
        const double exact = wanted[static_cast<size_t>(e)];
        const model::EncoderInput& held = oracle_.inputs[static_cast<size_t>(input)];
        const auto head = static_cast<int32_t>(e / (width / setup_.cache.n_kv_heads));
        const double slack = read_slack(side == k ? held.k : held.v,
                                        oracle_.stored_row(layer, input, row, head),
                                        side->tensor()->dtype, exact);
        const double rounded = model::round_to(side->tensor()->dtype, exact);
        if (slack != HUGE_VAL && !same(got, rounded) && !(std::fabs(got - rounded) <= slack))
          differ("gather: row " + std::to_string(row) + " of layer " + std::to_string(layer) +
                 " sequence " + std::to_string(sequence) + " is " + std::to_string(got) +
                 ", expected " + std::to_string(wanted[static_cast<size_t>(e)]));
      }
    }
  }
}

}  // namespace fuzz
