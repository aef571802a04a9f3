#include "oracle.hpp"

#include <algorithm>
#include <cmath>
#include <limits>
#include <set>

namespace model {
namespace {

uint32_t type_of(const uint32_t* token_flags, int32_t i) {
  return token_flags ? token_flags[i] >> KVC_TOKEN_TYPE_SHIFT : 0;
}

}  // namespace

Oracle::Oracle(const kvc_cache_desc& cache_desc, const kvc_causal_desc& causal_desc)
    : ListKind(cache_desc), causal(causal_desc) {
  resolve_storage(cache, &storage_k, &storage_v);
  scales_k.assign(row(cache.n_layers, 0), 1);
  scales_v = scales_k;
  rope.resize(static_cast<size_t>(cache.n_layers));
  constants.resize(static_cast<size_t>(cache.n_layers));

  // Memory is limited with a reach, and with a chunk when `memory` is given.
  int64_t least = 0;
  if (causal.reach > 0 && causal.memory != KVC_NONE) {
    limited = true;
    least = causal.reach;
  } else if (causal.reach == 0 && causal.chunk > 0 && causal.memory > 0) {
    limited = true;
    least = causal.chunk - 1;
  }
  if (limited) {
    if (cache.max_sequences > 1) least += 1;
    const int64_t kept = std::max<int64_t>(causal.memory == 0 ? causal.reach : causal.memory, least);
    if (kept >= cache.capacity)
      limited = false;
    else
      memory = static_cast<int32_t>(kept);
  }
  const int64_t n = cache.max_sequences;
  const int64_t per_pass = 2 * static_cast<int64_t>(cache.max_batch);
  const int64_t kept = static_cast<int64_t>(memory) + causal.keep_first;
  pool_ = cache.cells > 0 ? cache.cells : limited ? n * kept + per_pass : n * cache.capacity;
}

// ---- What may be asked
// -------------------------------------------------------------------------------------------------

int32_t Oracle::limit() const {
  return limited ? memory + causal.keep_first + 2 * cache.max_batch : cache.capacity;
}

int64_t Oracle::low(int64_t g) const {
  int64_t lowest = 0;
  if (causal.reach > 0) lowest = std::max(lowest, g - causal.reach);
  if (causal.chunk > 0) lowest = std::max(lowest, g - g % causal.chunk);
  return lowest;
}

bool Oracle::can_continue(int32_t s, int32_t g) const {
  if (g == 0) return true;
  return g <= at(s).next && (!limited || g <= causal.keep_first || low(g) >= at(s).lost_below);
}

int32_t Oracle::best(int32_t s, int32_t want) const {
  const int32_t most = std::min(want, at(s).next);
  if (can_continue(s, most)) return most;
  // low() never falls as g grows, so when `most` fails, all above keep_first do.
  return std::min(most, causal.keep_first);
}

bool Oracle::turns() const {
  return std::any_of(rope.begin(), rope.end(), [](const Rope& layer) { return layer.n_dims > 0; });
}

bool Oracle::fully_put() const {
  return std::all_of(pass.put.begin(), pass.put.end(), [](char put) { return put != 0; });
}

Info Oracle::info(int32_t s) const {
  const Sequence& sequence = at(s);
  const auto count = static_cast<int32_t>(sequence.tokens.size());
  const int64_t room = std::min<int64_t>(limit() - count, pool_ - used());
  return {sequence.tokens.empty() ? sequence.next : sequence.tokens.front().position, sequence.next,
          count, static_cast<int32_t>(room), sequence.lost_below};
}

int64_t Oracle::used() const {
  std::set<int32_t> distinct;
  for (const Sequence& sequence : sequences)
    for (const Token& token : sequence.tokens) distinct.insert(token.content);
  return static_cast<int64_t>(distinct.size());
}

int64_t Oracle::shared() const {
  std::multiset<int32_t> all;
  for (const Sequence& sequence : sequences)
    for (const Token& token : sequence.tokens) all.insert(token.content);
  std::set<int32_t> more_than_once;
  for (const int32_t content : all)
    if (all.count(content) > 1) more_than_once.insert(content);
  return static_cast<int64_t>(more_than_once.size());
}

int32_t Oracle::pending_rotation(const Token& token) const {
  if (!turns()) return 0;  // its keys carry no rotation
  return token.position - contents[static_cast<size_t>(token.content)].rotated_for;
}

bool Oracle::sees(int32_t batch_index, int32_t j) const {
  const auto i = static_cast<size_t>(batch_index);
  const int64_t p = pass.position[i];
  for (size_t other = 0; other < pass.position.size(); ++other)
    if (pass.position[other] == j && same_block(i, other)) return true;
  if (j > p && !pass.except[i]) return false;
  if (causal.chunk > 0 && j < p - p % causal.chunk) return false;
  return causal.reach == 0 || j >= p - causal.reach || j < causal.keep_first;
}

bool Oracle::same_block(size_t a, size_t b) const {
  const auto chunk = [this](int32_t position) {
    return causal.chunk > 0 ? position / causal.chunk : 0;
  };
  return pass.sequence[a] == pass.sequence[b] && pass.sequence[a] != KVC_NONE && pass.type[a] != 0 &&
         pass.type[a] == pass.type[b] && chunk(pass.position[a]) == chunk(pass.position[b]);
}

std::vector<Token> Oracle::visible(int32_t batch_index) const {
  std::vector<Token> result;
  const int32_t s = pass.sequence[static_cast<size_t>(batch_index)];
  if (s == KVC_NONE) return result;
  for (const Token& token : sequences[static_cast<size_t>(s)].tokens)
    if (sees(batch_index, token.position)) result.push_back(token);
  return result;
}

// ---- A pass
// ------------------------------------------------------------------------------------------------------------

/// Tokens of one type must be consecutive tokens of their sequence.
bool Oracle::legal_tokens(int32_t n, const int32_t* sequence, const uint32_t* token_flags) const {
  std::map<int32_t, std::vector<uint32_t>> types;  // of each sequence's tokens
  for (int32_t i = 0; i < n; ++i)
    if (sequence[i] != KVC_NONE) types[sequence[i]].push_back(type_of(token_flags, i));
  for (const auto& [s, list] : types)
    for (size_t a = 0; a < list.size(); ++a)
      for (size_t c = a + 2; c < list.size(); ++c)
        if (list[a] != 0 && list[a] == list[c] && list[c - 1] != list[c]) return false;
  return true;
}

kvc_status Oracle::room(int32_t n, const int32_t* sequence, const uint32_t*) const {
  // What slides out stays owned until the pass is committed, but no longer counts for its sequence.
  const auto n_padding = std::count(sequence, sequence + n, KVC_NONE);
  if (used() + n - n_padding > pool_) return KVC_E_CACHE_FULL;
  if (limited) return KVC_OK;
  for (int32_t s = 0; s < cache.max_sequences; ++s) {
    const auto more = std::count(sequence, sequence + n, s);
    const auto held = static_cast<int64_t>(at(s).tokens.size());
    if (held + more > cache.capacity) return KVC_E_CACHE_FULL;
  }
  return KVC_OK;
}

void Oracle::open(int32_t n, const int32_t* position, const int32_t* sequence,
                  const uint32_t* token_flags, bool reserve) {
  pass.reserve = reserve;
  pass.n_tokens = n;
  pass.put.assign(static_cast<size_t>(cache.n_layers), 0);
  pass.except.assign(static_cast<size_t>(n), 0);
  pass.type.assign(static_cast<size_t>(n), 0);
  if (reserve) return;

  pass.before = sequences;
  for (int32_t i = 0; i < n; ++i) {
    pass.position.push_back(position[i]);
    pass.sequence.push_back(sequence[i]);
    if (sequence[i] == KVC_NONE) {
      pass.content.push_back(-1);
      continue;
    }
    pass.except[static_cast<size_t>(i)] = token_flags && (token_flags[i] & KVC_TOKEN_SEES_LATER);
    pass.type[static_cast<size_t>(i)] = type_of(token_flags, i);
    pass.content.push_back(static_cast<int32_t>(contents.size()));
    Content content;
    content.rotated_for = position[i];
    content.put.assign(static_cast<size_t>(cache.n_layers), 0);
    content.k = StoredRows(storage_k, row(cache.n_layers, 0));
    content.v = StoredRows(storage_v, v_in_k() ? 0 : row(cache.n_layers, 0));
    contents.push_back(content);
  }
  if (std::count(sequence, sequence + n, KVC_NONE) == n)  // nothing to put
    pass.put.assign(pass.put.size(), 1);
  keep(std::vector<char>(static_cast<size_t>(n), 1));
}

/// The sequences as they are when these tokens of the batch are kept: all slide, then the kept
/// tokens are appended.
void Oracle::keep(const std::vector<char>& kept) {
  sequences = pass.before;
  for (int32_t s = 0; s < cache.max_sequences; ++s) {
    Sequence& sequence = at(s);
    int64_t p = sequence.next;
    for (size_t i = pass.position.size(); i-- > 0;)
      if (pass.sequence[i] == s && kept[i])
        p = pass.position[i];  // ends with the first one, which is the lowest
    std::vector<Token> stay;
    for (const Token& token : sequence.tokens) {
      if (limited && causal.keep_first <= token.position && token.position < p - memory)
        sequence.lost_below = std::max(sequence.lost_below, token.position + 1);
      else
        stay.push_back(token);
    }
    sequence.tokens = stay;
    for (size_t i = 0; i < pass.position.size(); ++i) {
      if (pass.sequence[i] != s || !kept[i]) continue;
      sequence.tokens.push_back({pass.position[i], pass.content[i]});
      sequence.next = pass.position[i] + 1;
    }
    if (sequence.next <= causal.keep_first) sequence.lost_below = 0;
  }
}

kvc_status Oracle::needs_put(int32_t layer) const {
  if (!pass_open) return KVC_E_BAD_STATE;
  if (layer < 0 || layer >= cache.n_layers) return KVC_E_INVALID_ARGUMENT;
  return pass.reserve || pass.put[static_cast<size_t>(layer)] ? KVC_OK : KVC_E_BAD_STATE;
}

/// store(content, token, head) keeps one token's rows of a head.
template <class Store>
kvc_status Oracle::store_tokens(int32_t layer, const Store& store) {
  if (!pass_open) return KVC_E_BAD_STATE;
  if (layer < 0 || layer >= cache.n_layers) return KVC_E_INVALID_ARGUMENT;
  pass.put[static_cast<size_t>(layer)] = 1;
  if (pass.reserve) return KVC_OK;
  for (size_t i = 0; i < pass.content.size(); ++i) {
    if (pass.content[i] < 0) continue;
    Content& content = contents[static_cast<size_t>(pass.content[i])];
    content.put[static_cast<size_t>(layer)] = 1;
    for (int32_t head = 0; head < cache.n_kv_heads; ++head)
      store(content, i * static_cast<size_t>(cache.n_kv_heads) + static_cast<size_t>(head),
            row(layer, head));
  }
  return KVC_OK;
}

kvc_status Oracle::put(int32_t layer, const std::vector<float>& k, const std::vector<float>& v) {
  return store_tokens(layer, [&](Content& content, size_t from, size_t to) {
    content.k.put(to, k.data() + from * static_cast<size_t>(cache.head_dim_k), scales_k[to]);
    if (!v_in_k())
      content.v.put(to, v.data() + from * static_cast<size_t>(cache.head_dim_v), scales_v[to]);
  });
}

kvc_status Oracle::put_codes(int32_t layer, const Bytes& k, const Bytes& v) {
  const auto keep = [](StoredRows& rows, const Bytes& given, size_t from, size_t to, float bound) {
    const Storage& storage = rows.storage();
    rows.put_codes(to, given.codes.data() + from * storage.code_bytes(),
                   given.scales.data() + from * storage.scale_bytes(), bound);
  };
  return store_tokens(layer, [&](Content& content, size_t from, size_t to) {
    keep(content.k, k, from, to, scales_k[to]);
    if (!v_in_k()) keep(content.v, v, from, to, scales_v[to]);
  });
}

kvc_status Oracle::set_causal(int32_t n, const int32_t* except) {
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

}  // namespace model
