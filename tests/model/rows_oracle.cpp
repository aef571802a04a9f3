#include "rows_oracle.hpp"

#include <algorithm>
#include <limits>

namespace model {
namespace {

constexpr int32_t furthest = std::numeric_limits<int32_t>::max() - 2;

}  // namespace

RowsOracle::RowsOracle(const kvc_cache_desc& cache_desc, const kvc_transformer_desc& desc)
    : ListKind(cache_desc), transformer(desc) {
  resolve_storage(cache, &storage_k, &storage_v);
  scales_k.assign(key_row(cache.n_layers, 0), 1);
  scales_v.assign(value_row(cache.n_layers, 0), 1);
  constants.resize(static_cast<size_t>(cache.n_layers));
  reach = desc.reach;
  if (is_ring()) reach = reach == 0 ? cache.capacity - 1 : std::min(reach, cache.capacity - 1);
}

int32_t RowsOracle::value_heads() const {
  return transformer.value_heads == 0 ? cache.n_kv_heads : transformer.value_heads;
}

size_t RowsOracle::key_row(int32_t layer, int32_t head) const {
  return static_cast<size_t>(layer * cache.n_kv_heads + head);
}

size_t RowsOracle::value_row(int32_t layer, int32_t head) const {
  return static_cast<size_t>(layer * value_heads() + head);
}

// ---- A pass ------------------------------------------------------------------------------------------------------------------

/// How many tokens each row takes, read off the mask: of the row's new columns those that count come first.
kvc_status RowsOracle::read_postpadded(const RowsBatch& given, std::vector<int32_t>* valid) const {
  const RowsMask& mask = *given.mask;
  if (mask.of_tokens) return KVC_E_SHAPE;
  for (int32_t b = 0; b < cache.max_sequences; ++b) {
    std::vector<char> counts;
    for (int32_t j = next(b); j < next(b) + given.q_len; ++j)
      counts.push_back(j < mask.n && mask.sees[static_cast<size_t>(b * mask.n + j)]);
    const auto n = static_cast<int32_t>(std::count(counts.begin(), counts.end(), 1));
    if (std::find(counts.begin(), counts.begin() + n, 0) != counts.begin() + n)
      return KVC_E_INVALID_ARGUMENT;
    valid->push_back(n);
  }
  return KVC_OK;
}

kvc_status RowsOracle::read(const RowsBatch& given, std::vector<int32_t>* valid) const {
  constexpr uint32_t known = KVC_ROWS_NOT_CAUSAL | KVC_ROWS_POSTPADDED | KVC_ROWS_RESERVE;
  if (given.flags & ~known) return KVC_E_INVALID_ARGUMENT;
  if (given.q_len < 1 || given.q_len > q_max()) return KVC_E_INVALID_ARGUMENT;
  if (given.flags & KVC_ROWS_RESERVE) return closable() ? KVC_OK : KVC_E_BAD_STATE;
  const bool postpadded = given.flags & KVC_ROWS_POSTPADDED;
  if (postpadded && (given.valid || !given.mask)) return KVC_E_INVALID_ARGUMENT;
  for (int32_t b = 0; b < cache.max_sequences && given.valid; ++b)
    if (given.valid[b] < 0 || given.valid[b] > given.q_len) return KVC_E_INVALID_ARGUMENT;

  if (given.mask && is_ring()) return closable() ? KVC_E_NOT_SUPPORTED : KVC_E_BAD_STATE;
  if (postpadded) {
    if (const kvc_status status = read_postpadded(given, valid); status != KVC_OK) return status;
  } else if (given.valid) {
    valid->assign(given.valid, given.valid + cache.max_sequences);
  } else {
    valid->assign(static_cast<size_t>(cache.max_sequences), given.q_len);
  }
  bool is_full = false;
  for (int32_t b = 0; b < cache.max_sequences; ++b) {
    const int64_t index = int64_t{next(b)} + (*valid)[static_cast<size_t>(b)];
    if (is_ring() && index > furthest) return KVC_E_INVALID_ARGUMENT;
    is_full = is_full || (!is_ring() && index > cache.capacity);
    if (given.mask && given.mask->n < std::min<int64_t>(cache.capacity, index)) return KVC_E_SHAPE;
  }
  if (given.mask && given.mask->n > cache.capacity) return KVC_E_SHAPE;
  if (!closable()) return KVC_E_BAD_STATE;
  return is_full ? KVC_E_CACHE_FULL : KVC_OK;
}

kvc_status RowsOracle::fits_rows(const RowsBatch& given) const {
  std::vector<int32_t> valid;
  return read(given, &valid);
}

Content RowsOracle::new_content() const {
  Content content;
  content.put.assign(static_cast<size_t>(cache.n_layers), 0);
  content.k = StoredRows(storage_k, key_row(cache.n_layers, 0));
  content.v = StoredRows(storage_v, v_in_k() ? 0 : value_row(cache.n_layers, 0));
  return content;
}

kvc_status RowsOracle::begin_rows(const RowsBatch& given) {
  std::vector<int32_t> valid;
  if (const kvc_status status = read(given, &valid); status != KVC_OK) return status;
  close();
  const bool not_causal = transformer.flags & KVC_TRANSFORMER_NOT_CAUSAL ||
                          given.flags & KVC_ROWS_NOT_CAUSAL;
  pass_open = true;
  pass.reserve = given.flags & KVC_ROWS_RESERVE;
  pass.q_len = given.q_len;
  pass.n_tokens = cache.max_sequences * given.q_len;
  const auto n = static_cast<size_t>(pass.n_tokens);
  pass.put.assign(static_cast<size_t>(cache.n_layers), 0);
  pass.except.assign(n, 0);
  pass.type.assign(n, 0);
  if (pass.reserve) return KVC_OK;

  pass.before = sequences;
  if (given.mask) pass.mask = *given.mask;
  for (int32_t b = 0; b < cache.max_sequences; ++b)
    for (int32_t i = 0; i < given.q_len; ++i) {
      const auto token = static_cast<size_t>(b * given.q_len + i);
      const bool counts = i < valid[static_cast<size_t>(b)];
      pass.position.push_back(next(b) + i);
      pass.sequence.push_back(counts ? b : KVC_NONE);
      pass.content.push_back(counts ? static_cast<int32_t>(contents.size()) : -1);
      if (!counts) continue;
      pass.except[token] = not_causal;
      if (given.types) pass.type[token] = given.types[token];
      contents.push_back(new_content());
    }
  const auto padding = std::count(pass.sequence.begin(), pass.sequence.end(), KVC_NONE);
  if (padding == pass.n_tokens) pass.put.assign(pass.put.size(), 1);  // nothing to put
  keep(std::vector<char>(n, 1));
  return KVC_OK;
}

/// The rows as they are when these tokens of the batch are kept.
void RowsOracle::keep(const std::vector<char>& kept) {
  sequences = pass.before;
  for (size_t token = 0; token < kept.size(); ++token) {
    if (pass.sequence[token] == KVC_NONE || !kept[token]) continue;
    Row& row = at(pass.sequence[token]);
    row.tokens.push_back({pass.position[token], pass.content[token]});
    row.next = pass.position[token] + 1;
    if (is_ring()) row.lost_below = std::max(row.lost_below, row.next - cache.capacity);
  }
}

kvc_status RowsOracle::needs_pass(int32_t layer) const {
  if (!pass_open) return KVC_E_BAD_STATE;
  return layer >= 0 && layer < cache.n_layers ? KVC_OK : KVC_E_INVALID_ARGUMENT;
}

kvc_status RowsOracle::needs_put(int32_t layer) const {
  if (const kvc_status status = needs_pass(layer); status != KVC_OK) return status;
  return pass.reserve || pass.put[static_cast<size_t>(layer)] ? KVC_OK : KVC_E_BAD_STATE;
}

bool RowsOracle::fully_put() const {
  return std::all_of(pass.put.begin(), pass.put.end(), [](char put) { return put != 0; });
}

/// store(content, token) keeps what a token of the pass holds in the layer.
template <class Store>
void RowsOracle::store_tokens(int32_t layer, const Store& store) {
  pass.put[static_cast<size_t>(layer)] = 1;
  for (size_t token = 0; token < pass.content.size(); ++token) {
    if (pass.content[token] < 0) continue;
    Content& content = contents[static_cast<size_t>(pass.content[token])];
    content.put[static_cast<size_t>(layer)] = 1;
    store(content, static_cast<int32_t>(token));
  }
}

void RowsOracle::put(int32_t layer, const std::vector<float>& k, const std::vector<float>& v) {
  store_tokens(layer, [&](Content& content, int32_t token) {
    for (int32_t head = 0; head < cache.n_kv_heads; ++head) {
      const size_t to = key_row(layer, head);
      content.k.put(to, k.data() + (token * cache.n_kv_heads + head) * cache.head_dim_k, scales_k[to]);
    }
    for (int32_t head = 0; head < value_heads() && !v_in_k(); ++head) {
      const size_t to = value_row(layer, head);
      content.v.put(to, v.data() + (token * value_heads() + head) * cache.head_dim_v, scales_v[to]);
    }
  });
}

namespace {

void keep_codes(StoredRows& rows, size_t to, const Oracle::Bytes& from, size_t row, float bound) {
  const Storage& storage = rows.storage();
  rows.put_codes(to, from.codes.data() + row * storage.code_bytes(),
                 from.scales.data() + row * storage.scale_bytes(), bound);
}

}  // namespace

void RowsOracle::put_codes(int32_t layer, const Bytes& k, const Bytes& v) {
  store_tokens(layer, [&](Content& content, int32_t token) {
    for (int32_t head = 0; head < cache.n_kv_heads; ++head) {
      const size_t to = key_row(layer, head);
      keep_codes(content.k, to, k, static_cast<size_t>(token * cache.n_kv_heads + head), scales_k[to]);
    }
    for (int32_t head = 0; head < value_heads() && !v_in_k(); ++head) {
      const size_t to = value_row(layer, head);
      keep_codes(content.v, to, v, static_cast<size_t>(token * value_heads() + head), scales_v[to]);
    }
  });
}

kvc_status RowsOracle::set_causal(int32_t n, const int32_t* except) {
  if (!pass_open) return KVC_E_BAD_STATE;
  if (n < 0 || (n > 0 && !except)) return KVC_E_INVALID_ARGUMENT;
  for (int32_t i = 0; i < n; ++i)
    if (except[i] < 0 || except[i] >= pass.n_tokens) return KVC_E_INVALID_ARGUMENT;
  pass.except.assign(pass.except.size(), 0);
  for (int32_t i = 0; i < n; ++i) {
    const auto token = static_cast<size_t>(except[i]);
    pass.except[token] = pass.reserve || pass.sequence[token] != KVC_NONE;
  }
  return KVC_OK;
}

// ---- What a token sees -------------------------------------------------------------------------------------------------------

bool RowsOracle::same_block(size_t a, size_t b) const {
  return pass.sequence[a] == pass.sequence[b] && pass.sequence[a] != KVC_NONE &&
         pass.type[a] != 0 && pass.type[a] == pass.type[b];
}

/// Whether the attention mask leaves a column for a token.
bool RowsOracle::in_mask(int32_t token, int32_t j) const {
  if (j >= pass.mask.n) return true;
  const int32_t row = pass.mask.of_tokens ? token : token / pass.q_len;
  return pass.mask.sees[static_cast<size_t>(row * pass.mask.n + j)] != 0;
}

bool RowsOracle::sees(int32_t token, int32_t j) const {
  const auto t = static_cast<size_t>(token);
  const int32_t p = pass.position[t];
  if (j < at(pass.sequence[t]).starts || !in_mask(token, j)) return false;
  for (size_t other = 0; other < pass.position.size(); ++other)
    if (pass.position[other] == j && same_block(t, other)) return true;
  return (j <= p || pass.except[t]) && (reach == 0 || j >= p - reach);
}

std::vector<Token> RowsOracle::visible(int32_t token) const {
  std::vector<Token> result;
  const int32_t s = pass.sequence[static_cast<size_t>(token)];
  if (s == KVC_NONE) return result;
  for (const Token& stored : at(s).tokens)
    if (sees(token, stored.position)) result.push_back(stored);
  return result;
}

/// A kept token that saw a dropped one, whatever masks and starts hide of it.
kvc_status RowsOracle::may_keep(const std::vector<char>& kept) const {
  for (size_t a = 0; a < kept.size(); ++a)
    for (size_t b = 0; b < kept.size(); ++b) {
      const bool of_one_row = pass.sequence[a] == pass.sequence[b] && pass.sequence[a] != KVC_NONE;
      if (of_one_row && kept[a] && !kept[b] && (pass.except[a] || same_block(a, b)))
        return KVC_E_INVALID_ARGUMENT;
    }
  return KVC_OK;
}

}  // namespace model
