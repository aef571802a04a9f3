#include <algorithm>
#include <limits>

#include "rows_oracle.hpp"

/// Rows as sequences; what they hold.
namespace model {

/// A layer that was not put holds zeros from now on.
void RowsOracle::settle() {
  for (const int32_t content : pass.content) {
    if (content < 0) continue;
    std::vector<char>& put = contents[static_cast<size_t>(content)].put;
    std::fill(put.begin(), put.end(), 1);
  }
}

std::vector<Token> RowsOracle::held(int32_t s) const {
  std::vector<Token> result;
  for (const Token& token : at(s).tokens)
    if (token.position >= at(s).lost_below) result.push_back(token);
  return result;
}

int64_t RowsOracle::used() const {
  int64_t result = 0;
  for (int32_t s = 0; s < cache.max_sequences; ++s) result += static_cast<int64_t>(held(s).size());
  return result;
}

Info RowsOracle::info(int32_t s) const {
  const Row& row = at(s);
  const std::vector<Token> tokens = held(s);
  const int32_t most = is_ring() ? std::numeric_limits<int32_t>::max() - 1 : cache.capacity;
  return {tokens.empty() ? row.next : tokens.front().position, row.next,
          static_cast<int32_t>(tokens.size()), most - row.next, row.lost_below};
}

bool RowsOracle::continues(const Row& row, int32_t g) const {
  if (g == 0) return true;
  return g <= row.next && (!is_ring() || std::max(0, g - reach) >= row.lost_below);
}

bool RowsOracle::can_continue(int32_t s, int32_t g) const { return continues(at(s), g); }

/// What a place may need never lies lower for a higher place.
int32_t RowsOracle::best(int32_t s, int32_t want) const {
  const int32_t most = std::min(want, next(s));
  return can_continue(s, most) ? most : 0;
}

Row RowsOracle::cut_to(Row row, int32_t g) const {
  if (g == 0) return {};
  std::erase_if(row.tokens, [g](const Token& token) { return token.position >= g; });
  row.next = g;
  return row;
}

kvc_status RowsOracle::rows_set(int32_t row_begin, int32_t n, const int32_t* index,
                                const int32_t* starts) {
  if (n < 0 || row_begin < 0 || row_begin > cache.max_sequences - n) return KVC_E_INVALID_ARGUMENT;
  const int32_t most = is_ring() ? std::numeric_limits<int32_t>::max() - 2 : cache.capacity;
  bool is_lost = false;
  for (int32_t i = 0; i < n; ++i) {
    const Row& row = at(row_begin + i);
    if (starts && (starts[i] < 0 || starts[i] > most)) return KVC_E_INVALID_ARGUMENT;
    if (!index) continue;
    const bool anywhere = is_ring() && row.next == 0;
    if (index[i] < 0 || index[i] > (anywhere ? most : row.next)) return KVC_E_INVALID_ARGUMENT;
    is_lost = is_lost || (!anywhere && !continues(row, index[i]));
  }
  if (!closable()) return KVC_E_BAD_STATE;
  if (is_lost) return KVC_E_WINDOW_LOST;
  close();
  for (int32_t i = 0; i < n; ++i) {
    Row& row = at(row_begin + i);
    const int32_t kept = row.starts;
    if (index) {
      row = cut_to(row, index[i]);
      row.next = index[i];
      row.starts = kept;
      if (is_ring()) row.lost_below = std::max(row.lost_below, row.next - cache.capacity);
    }
    if (starts) row.starts = starts[i];
  }
  return KVC_OK;
}

kvc_status RowsOracle::insert(const RowsOracle& other, int32_t slot) {
  const int32_t n = other.cache.max_sequences;
  if (slot < 0 || slot > cache.max_sequences - n) return KVC_E_INVALID_ARGUMENT;
  if (is_ring() != other.is_ring() || (is_ring() && cache.capacity != other.cache.capacity))
    return KVC_E_INVALID_ARGUMENT;
  if (other.pass_open && !other.pass.reserve) return KVC_E_BAD_STATE;
  if (!closable()) return KVC_E_BAD_STATE;
  for (const Row& row : other.sequences)
    if (!is_ring() && std::max(row.next, row.starts) > cache.capacity) return KVC_E_CACHE_FULL;
  close();
  for (int32_t i = 0; i < n; ++i) {
    Row row = other.sequences[static_cast<size_t>(i)];
    row.tokens = other.held(i);
    for (Token& token : row.tokens) {
      contents.push_back(other.content_of(token));
      token.content = static_cast<int32_t>(contents.size()) - 1;
    }
    at(slot + i) = row;
  }
  return KVC_OK;
}

// ---- Contents ----------------------------------------------------------------------------------------------------------------

kvc_status RowsOracle::may_bind_scales(bool of_k, bool of_v) const {
  if (v_in_k() && of_v) return KVC_E_INVALID_ARGUMENT;
  if (pass_open || !is_empty()) return KVC_E_BAD_STATE;
  const bool fits = (!of_k || storage_k.is_f8()) && (!of_v || storage_v.is_f8());
  return fits ? KVC_OK : KVC_E_NOT_SUPPORTED;
}

kvc_status RowsOracle::may_fill(int32_t layer, int32_t row_begin, int32_t n) const {
  if (layer < 0 || layer >= cache.n_layers) return KVC_E_INVALID_ARGUMENT;
  if (n < 0 || row_begin < 0 || row_begin > cache.max_sequences - n) return KVC_E_INVALID_ARGUMENT;
  return pass_open ? KVC_E_BAD_STATE : KVC_OK;
}

void RowsOracle::fill(int32_t layer, int32_t row_begin, int32_t n, int32_t c, const Filling& k,
                      const Filling& v) {
  const auto replace = [&](StoredRows& rows, size_t to, const Filling& by, size_t from, float bound) {
    const auto dim = static_cast<size_t>(rows.storage().dim);
    if (by.numbers) rows.put(to, by.numbers->data() + from * dim, bound);
    if (!by.codes) return;
    const Storage& storage = rows.storage();
    rows.put_codes(to, by.codes->codes.data() + from * storage.code_bytes(),
                   by.codes->scales.data() + from * storage.scale_bytes(), bound);
  };
  for (int32_t i = 0; i < n; ++i)
    for (Token& token : at(row_begin + i).tokens) {
      const int32_t at_column = column(token.position);
      if (token.position < at(row_begin + i).lost_below || at_column >= c) continue;
      Content content = content_of(token);  // which a copy of the row keeps
      for (int32_t head = 0; head < cache.n_kv_heads; ++head) {
        const auto from = static_cast<size_t>((i * c + at_column) * cache.n_kv_heads + head);
        replace(content.k, key_row(layer, head), k, from, scales_k[key_row(layer, head)]);
      }
      for (int32_t head = 0; head < value_heads() && !v_in_k(); ++head) {
        const auto from = static_cast<size_t>((i * c + at_column) * value_heads() + head);
        replace(content.v, value_row(layer, head), v, from, scales_v[value_row(layer, head)]);
      }
      token.content = static_cast<int32_t>(contents.size());
      contents.push_back(content);
    }
}

std::vector<double> RowsOracle::key(int32_t layer, const Token& token) const {
  std::vector<double> result;
  for (int32_t head = 0; head < cache.n_kv_heads; ++head) {
    const std::vector<double> one = content_of(token).k.values(key_row(layer, head));
    result.insert(result.end(), one.begin(), one.end());
  }
  return result;
}

std::vector<double> RowsOracle::value(int32_t layer, const Token& token) const {
  std::vector<double> result;
  for (int32_t head = 0; head < value_heads(); ++head) {
    const std::vector<double> one = v_in_k() ? content_of(token).k.values(key_row(layer, head))
                                             : content_of(token).v.values(value_row(layer, head));
    const auto begin = one.begin() + (v_in_k() ? cache.v_first : 0);
    result.insert(result.end(), begin, begin + cache.head_dim_v);
  }
  return result;
}

const float* RowsOracle::stored_key(int32_t layer, const Token& token, int32_t head) const {
  return content_of(token).k.numbers(key_row(layer, head));
}

std::vector<float> RowsOracle::stored_value(int32_t layer, const Token& token) const {
  std::vector<float> result;
  for (int32_t head = 0; head < value_heads(); ++head) {
    const float* const one = v_in_k()
                                 ? content_of(token).k.numbers(key_row(layer, head)) + cache.v_first
                                 : content_of(token).v.numbers(value_row(layer, head));
    result.insert(result.end(), one, one + cache.head_dim_v);
  }
  return result;
}

std::vector<double> RowsOracle::as_multiplied(int32_t, const Token&, const double* q) const {
  std::vector<double> result(q, q + cache.head_dim_k);
  rotate(storage_k, result.data());
  return result;
}

}  // namespace model
