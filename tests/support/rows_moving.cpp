#include <algorithm>
#include <cmath>

#include "rows_world.hpp"

/// Rows that are set, filled and inserted; the same state in another cache.
namespace fuzz {

void RowsWorld::rows_set() {
  int32_t begin = random_.below(n_sequences());
  int32_t n = random_.between(0, n_sequences() - begin);
  if (random_.chance(0.02)) (random_.chance(0.5) ? begin : n) = odd_number();
  Numbers index, starts;
  const bool with_index = random_.chance(0.6), with_starts = random_.chance(0.6);
  const bool exist = begin >= 0 && n >= 0 && begin <= n_sequences() - n;
  for (int32_t s = begin; exist && s < begin + n; ++s) {
    const model::Row& row = oracle_.sequences[static_cast<size_t>(s)];
    const bool goes_anywhere = oracle_.is_ring() && row.next == 0;
    int32_t at = goes_anywhere         ? random_.pick({0, 1, 5, 100, 1000000})
                 : random_.chance(0.4) ? row.next
                                       : std::min(row.next, some_position(s));
    if (random_.chance(0.02)) at = random_.pick({row.next + 1, -1, INT32_MIN, INT32_MAX});
    index.push_back(at);
    int32_t start = random_.chance(0.5) ? 0 : some_position(s);
    if (!oracle_.is_ring()) start = std::min(start, setup_.cache.capacity);
    if (random_.chance(0.02)) start = random_.pick({-1, INT32_MIN, INT32_MAX});
    starts.push_back(start);
  }
  Call made = call(Op::rows_set, {},
                   "row_begin " + std::to_string(begin) + " n " + std::to_string(n) +
                       (with_index ? " index " + text(index) : "") +
                       (with_starts ? " starts " + text(starts) : ""));
  const int32_t* const new_index = with_index ? index.data() : nullptr;
  const int32_t* const new_starts = with_starts ? starts.data() : nullptr;
  const kvc_status expected = oracle_.rows_set(begin, n, new_index, new_starts);
  judge(made, kvc_rows_set(cache_, begin, n, new_index, new_starts), expected);
}

// ---- Filling -----------------------------------------------------------------------------------------------------------------

const kvc_tensor* RowsWorld::Side::tensor() {
  return codes ? codes->codes.tensor() : numbers ? numbers->tensor() : nullptr;
}

const kvc_tensor* RowsWorld::Side::scales() { return codes ? codes->scales_or_null() : nullptr; }

model::RowsOracle::Filling RowsWorld::Side::filling() const {
  return {codes ? &bytes : nullptr, numbers ? &floats : nullptr};
}

/// Codes, numbers, or nothing, of [n, c] columns. Where no position is stored lies NaN.
RowsWorld::Side RowsWorld::draw_side(int32_t row_begin, int32_t n, int32_t c, bool is_key) {
  Side side;
  const int32_t heads = is_key ? setup_.cache.n_kv_heads : oracle_.value_heads();
  const int32_t dim = is_key ? oracle_.cache.head_dim_k : oracle_.cache.head_dim_v;
  const model::Storage& storage = is_key ? oracle_.storage_k : oracle_.storage_v;
  if ((!is_key && oracle_.v_in_k()) || random_.chance(0.15)) return side;
  if (random_.chance(0.5)) {
    side.bytes = draw_bytes(storage, int64_t{n} * c * heads, random_);
    side.codes.emplace(storage, side.bytes, std::vector<int64_t>{n, c, heads});
    return side;
  }
  side.numbers.emplace(some_dtype(), std::vector<int64_t>{n, c, heads, dim}, random_);
  fill_values(*side.numbers);
  for (int32_t i = 0; i < n; ++i) {
    std::vector<char> held(static_cast<size_t>(oracle_.columns()), 0);
    if (oracle_.is_sequence(row_begin + i))
      for (const model::Token& token : oracle_.held(row_begin + i))
        held[static_cast<size_t>(oracle_.column(token.position))] = 1;
    for (int32_t column = 0; column < c; ++column)
      for (int32_t e = 0; !held[static_cast<size_t>(column)] && e < heads * dim; ++e)
        side.numbers->set((int64_t{i} * c + column) * heads * dim + e, std::nan(""));
  }
  side.floats = side.numbers->floats();
  return side;
}

void RowsWorld::rows_fill() {
  const int32_t layer = some_layer(), begin = random_.below(n_sequences());
  int32_t n = random_.between(1, n_sequences() - begin);
  if (random_.chance(0.02)) n = n_sequences() + 1;
  const int32_t c = random_.chance(0.5) ? oracle_.columns() : random_.between(1, oracle_.columns());
  Side k = draw_side(begin, n, c, true), v = draw_side(begin, n, c, false);
  kvc_status expected = oracle_.may_fill(layer, begin, n);
  kvc_tensor spoilt{};
  if (random_.chance(0.02) && k.tensor() && expected == KVC_OK) {
    spoilt = *k.tensor();
    spoilt.shape[1] = oracle_.columns() + 1;
    expected = KVC_E_SHAPE;
  }
  const auto said = [](const Side& side) {
    return side.codes ? "codes" : side.numbers ? "numbers" : "nothing";
  };
  Call made = call(Op::rows_fill, {},
                   "layer " + std::to_string(layer) + " rows " + std::to_string(begin) + " + " +
                       std::to_string(n) + " columns " + std::to_string(c) + " k " + said(k) +
                       " v " + said(v));
  if (expected == KVC_OK) oracle_.fill(layer, begin, n, c, k.filling(), v.filling());
  const Door at = door(layer);
  judge(made,
        kvc_rows_fill(at.cache, at.layer, begin, n, spoilt.ndim > 0 ? &spoilt : k.tensor(),
                      k.scales(), v.tensor(), v.scales()),
        expected);
}

// ---- Inserting ---------------------------------------------------------------------------------------------------------------

/// Rows of a cache that is made for it, of another number of rows, another room for passes and, unless it is a ring, another length.
void RowsWorld::insert() {
  RowsSetup setup = setup_;
  setup.cache.max_sequences = random_.between(1, n_sequences() + (random_.chance(0.05) ? 1 : 0));
  setup.cache.max_batch = setup.cache.max_sequences * random_.between(1, 6);
  if (!oracle_.is_ring() || random_.chance(0.05)) setup.cache.capacity = random_.between(2, 12);
  if (!oracle_.is_ring() && random_.chance(0.6)) setup.cache.capacity = setup_.cache.capacity;
  setup.cache.flags &= ~uint64_t{KVC_CACHE_PREFAULT};
  RowsWorld other(device_, setup, support::Random(random_.bits()), counts_);
  for (int32_t layer = 0; layer < n_layers(); ++layer) other.take_scales(*this, layer);
  for (int32_t passes = random_.below(4); passes > 0; --passes) other.one_pass();
  if (random_.chance(0.7)) other.rows_set();
  const bool stays_open = random_.chance(0.05);
  if (stays_open) other.begin_drawn();
  const int32_t slot = random_.chance(0.03)
                           ? odd_number()
                           : random_.below(std::max(1, n_sequences() - setup.cache.max_sequences + 1));
  Call made = call(Op::insert, {}, "slot " + std::to_string(slot) + " of " + other.describe());
  const bool alike = setup.cache.capacity == setup_.cache.capacity || !oracle_.is_ring();
  const kvc_status expected = alike ? oracle_.insert(other.oracle_, slot) : KVC_E_INVALID_ARGUMENT;
  judge(made, kvc_insert(cache_, other.cache_, slot), expected);
}

/// Binds the scales of f8 that another cache has.
void RowsWorld::take_scales(const RowsWorld& from, int32_t layer) {
  const bool of_k = oracle_.storage_k.is_f8(), of_v = oracle_.storage_v.is_f8() && !oracle_.v_in_k();
  if (!of_k && !of_v) return;
  oracle_.scales_k = from.oracle_.scales_k;
  oracle_.scales_v = from.oracle_.scales_v;
  const kvc_status status = kvc_bind_scales(
      cache_, layer, layer + 1, of_k ? oracle_.scales_k.data() + oracle_.key_row(layer, 0) : nullptr,
      of_v ? oracle_.scales_v.data() + oracle_.value_row(layer, 0) : nullptr);
  if (status != KVC_OK) differ("bind_scales: " + support::last_message());
}

/// A pass that is put and committed, where the tokens fit.
void RowsWorld::one_pass() {
  begin_drawn();
  if (!oracle_.pass_open) return;
  for (int32_t layer = 0; layer < n_layers(); ++layer) {
    KeysAndValues drawn = draw_keys_and_values();
    oracle_.put(layer, drawn.k.floats(), drawn.v.floats());
    if (kvc_put(cache_, layer, drawn.k.tensor(), v_of(drawn)) != KVC_OK)
      differ("put: " + support::last_message());
  }
  state_may_change_ = true;
  commit();
}

// ---- The same state in another cache -----------------------------------------------------------------------------------------

/// One row: its tokens, as far as they were lost more tokens behind them, and back to its index.
void RowsWorld::copy_row(kvc_cache* other, int32_t row) const {
  const auto expect = [this](kvc_status status) {
    if (status != KVC_OK) differ("the second cache: " + support::last_message());
  };
  const model::Row& wanted = oracle_.sequences[static_cast<size_t>(row)];
  const std::vector<model::Token> tokens = oracle_.held(row);
  const int32_t until = wanted.lost_below > 0 ? wanted.lost_below + setup_.cache.capacity
                                              : wanted.next;
  const int32_t first = tokens.empty() ? until : tokens.front().position;
  if (oracle_.is_ring() && first > 0) expect(kvc_rows_set(other, row, 1, &first, nullptr));
  Numbers valid(static_cast<size_t>(n_sequences()), 0);
  for (int32_t p = first; p < until; ++p) {
    valid[static_cast<size_t>(row)] = 1;
    expect(kvc_begin_rows(other, 1, 0, valid.data(), nullptr, nullptr, nullptr));
    const auto index = static_cast<size_t>(p - first);
    for (int32_t layer = 0; layer < n_layers(); ++layer) {
      // What lies behind the index is only there to be dropped.
      const model::Content& content = oracle_.content_of(tokens[std::min(index, tokens.size() - 1)]);
      model::Oracle::Bytes k, v;
      for (int32_t b = 0; b < n_sequences(); ++b) {
        for (int32_t head = 0; head < setup_.cache.n_kv_heads; ++head)
          append_row(k, content.k, oracle_.key_row(layer, head));
        for (int32_t head = 0; head < oracle_.value_heads() && !oracle_.v_in_k(); ++head)
          append_row(v, content.v, oracle_.value_row(layer, head));
      }
      expect(put_codes(other, layer, 1, k, v));
    }
    expect(kvc_commit(other));
  }
  if (until > wanted.next) expect(kvc_rows_set(other, row, 1, &wanted.next, nullptr));
  expect(kvc_rows_set(other, row, 1, nullptr, &wanted.starts));
}

/// With other room for passes, so that the columns of a ring are others.
void RowsWorld::compare_rebuilt() {
  kvc_cache_desc desc = setup_.cache;
  desc.max_batch = n_sequences() * random_.between(1, 9);
  for (const model::Row& row : oracle_.sequences)  // nothing that can be filled again
    if (row.next > 0 && row.lost_below >= row.next) return;
  support::Cache other;
  if (kvc_cache_create(device_, &desc, &setup_.transformer, &other.handle) != KVC_OK)
    differ("the second cache: " + support::last_message());
  for (int32_t row = n_sequences(); row-- > 0;) copy_row(other, row);
  if (support::digest(other) != last_digest_)
    differ("the same state in another cache has another digest");
  ++counts_.rebuilt;
}

}  // namespace fuzz
