#include "lightning_oracle.hpp"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>

namespace model {
namespace {

void fold(std::pair<uint64_t, uint64_t>& hash, uint64_t word) {
  hash.first = std::rotl((hash.first ^ word) * 0x9e3779b97f4a7c15ull, 29);
  hash.second = std::rotl((hash.second + word) * 0xc2b2ae3d27d4eb4full, 31) ^ word;
}

size_t kept_of(const LightningRows& rows, const std::vector<char>& kept) {
  size_t n = 0;
  for (const int32_t token : rows.tokens) n += kept[static_cast<size_t>(token)] != 0;
  return n;
}

}  // namespace

LightningOracle::LightningOracle(const kvc_cache_desc& cache_desc, const kvc_lightning_desc& desc,
                                 const std::vector<float>& slopes_given)
    : StateOracle(cache_desc, {desc.checkpoints, desc.checkpoint_interval, desc.checkpoint_min_pos,
                               (desc.flags & KVC_LIGHTNING_APPROXIMATE) != 0}),
      lightning(desc),
      slopes(slopes_given) {
  if (cache.head_dim_v == 0) cache.head_dim_v = cache.head_dim_k;
  LightningState zeros;
  zeros.value.resize(at_head(cache.n_layers, 0));
  zeros.magnitude = zeros.value;
  states.push_back(zeros);
}

int64_t LightningOracle::n_slots() const {
  return 1 + int64_t{cache.max_sequences} * (1 + std::max(most_checkpoints(), 0)) +
         std::min(cache.max_sequences, cache.max_batch);
}

// ---- A pass ------------------------------------------------------------------------------------

kvc_status LightningOracle::needs_layer(int32_t layer) const {
  if (!pass_open) return KVC_E_BAD_STATE;
  return layer >= 0 && layer < cache.n_layers ? KVC_OK : KVC_E_INVALID_ARGUMENT;
}

kvc_status LightningOracle::needs_kept(int32_t layer) const {
  if (const kvc_status status = needs_layer(layer); status != KVC_OK) return status;
  if ((lightning.flags & KVC_LIGHTNING_FUSED) != 0) return KVC_E_NOT_SUPPORTED;
  if (pass.reserve || pass.layout.empty()) return KVC_OK;
  return layer == pass.last_put ? KVC_OK : KVC_E_BAD_STATE;
}

void LightningOracle::open(int32_t n, const int32_t* position, const int32_t* sequence,
                           const uint32_t* token_flags, bool reserve) {
  pass.reserve = reserve;
  pass.n_tokens = n;
  if (reserve) return;
  pass.before = sequences;
  pass.k.resize(static_cast<size_t>(cache.n_layers));
  pass.v.resize(static_cast<size_t>(cache.n_layers));
  pass.position.assign(position, position + n);
  pass.sequence.assign(sequence, sequence + n);
  for (int32_t i = 0; i < n; ++i) {
    pass.masked.push_back(token_flags != nullptr && (token_flags[i] & KVC_TOKEN_MASKED) != 0);
    if (sequence[i] == KVC_NONE) continue;
    auto rows = std::find_if(pass.layout.begin(), pass.layout.end(),
                             [&](const LightningRows& each) { return each.sequence == sequence[i]; });
    if (rows == pass.layout.end()) {
      rows = pass.layout.insert(rows, {sequence[i], {}, static_cast<int32_t>(states.size()), 0});
      states.push_back(states[0]);
    }
    rows->tokens.push_back(i);
  }
  keep(std::vector<char>(static_cast<size_t>(n), 1));
}

template <class Visit>
void LightningOracle::walk(const LightningRows& rows, int32_t layer, size_t n_tokens,
                           Visit visit) const {
  const RecurrentSequence& from = pass.before[static_cast<size_t>(rows.sequence)];
  const LightningState& before = states[static_cast<size_t>(from.state)];
  const std::vector<float>& k = pass.k[static_cast<size_t>(layer)];
  const std::vector<float>& v = pass.v[static_cast<size_t>(layer)];
  const auto dims_k = static_cast<size_t>(cache.head_dim_k),
             dims_v = static_cast<size_t>(cache.head_dim_v);
  for (int32_t head = 0; head < cache.n_kv_heads; ++head) {
    const auto first = static_cast<ptrdiff_t>(at_head(layer, head)),
               end = first + static_cast<ptrdiff_t>(matrix());
    std::vector<double> value(before.value.begin() + first, before.value.begin() + end);
    std::vector<double> magnitude(before.magnitude.begin() + first, before.magnitude.begin() + end);
    const double slope = static_cast<double>(
        slopes[static_cast<size_t>(layer * cache.n_kv_heads + head)]);
    int32_t next = from.next;
    for (size_t i = 0; i < n_tokens; ++i) {
      const auto token = static_cast<size_t>(rows.tokens[i]);
      const double decay = std::exp(-slope * (double{1} + pass.position[token] - next));
      next = pass.position[token] + 1;
      const bool adds = !pass.masked[token] && !k.empty();
      const size_t row = token * static_cast<size_t>(cache.n_kv_heads) + static_cast<size_t>(head);
      for (size_t a = 0; a < dims_k; ++a)
        for (size_t b = 0; b < dims_v; ++b) {
          const double product = adds ? static_cast<double>(k[row * dims_k + a]) *
                                            static_cast<double>(v[row * dims_v + b])
                                      : 0;
          value[a * dims_v + b] = value[a * dims_v + b] * decay + product;
          magnitude[a * dims_v + b] = magnitude[a * dims_v + b] * decay + std::fabs(product);
        }
      visit(head, i, value, magnitude);
    }
  }
}

/// The state behind the kept tokens, as if the pass were committed.
void LightningOracle::make_state(const LightningRows& rows) {
  const int32_t from = pass.before[static_cast<size_t>(rows.sequence)].state;
  LightningState made = states[static_cast<size_t>(from)];
  const int32_t next = pass.before[static_cast<size_t>(rows.sequence)].next;
  fold(made.made_by, rows.n_kept);
  for (size_t i = 0; i < rows.n_kept; ++i) {
    const auto token = static_cast<size_t>(rows.tokens[i]);
    fold(made.made_by, static_cast<uint64_t>(pass.position[token] - next));
    fold(made.made_by, static_cast<uint64_t>(pass.masked[token]));
  }
  for (int32_t layer = 0; layer < cache.n_layers; ++layer) {
    const std::vector<float>* sides[] = {&pass.k[static_cast<size_t>(layer)],
                                         &pass.v[static_cast<size_t>(layer)]};
    for (const std::vector<float>* side : sides) {
      fold(made.made_by, side->empty());
      const size_t row = side->size() / static_cast<size_t>(std::max(pass.n_tokens, 1));
      for (size_t i = 0; i < rows.n_kept; ++i) {
        const auto token = static_cast<size_t>(rows.tokens[i]);
        for (size_t e = 0; e < row && !pass.masked[token]; ++e)
          fold(made.made_by, std::bit_cast<uint32_t>((*side)[token * row + e]));
      }
    }
    walk(rows, layer, rows.n_kept,
         [&](int32_t head, size_t, const std::vector<double>& value,
             const std::vector<double>& magnitude) {
           const auto at = static_cast<ptrdiff_t>(at_head(layer, head));
           std::copy(value.begin(), value.end(), made.value.begin() + at);
           std::copy(magnitude.begin(), magnitude.end(), made.magnitude.begin() + at);
         });
  }
  states[static_cast<size_t>(rows.state)] = made;
}

void LightningOracle::put(int32_t layer, const std::vector<float>& k, const std::vector<float>& v) {
  if (pass.reserve) return;
  pass.k[static_cast<size_t>(layer)] = k;
  pass.v[static_cast<size_t>(layer)] = v;
  pass.last_put = layer;
  for (const LightningRows& rows : pass.layout) make_state(rows);
}

LightningOutputs LightningOracle::attend(int32_t layer, int32_t n_q_heads,
                                         const std::vector<float>& q, double scale) const {
  LightningOutputs out;
  const auto dims_k = static_cast<size_t>(cache.head_dim_k),
             dims_v = static_cast<size_t>(cache.head_dim_v);
  out.value.resize(static_cast<size_t>(pass.n_tokens) * static_cast<size_t>(n_q_heads) * dims_v);
  out.magnitude = out.value;
  const int32_t group = n_q_heads / cache.n_kv_heads;
  for (const LightningRows& rows : pass.layout)
    walk(rows, layer, rows.tokens.size(),
         [&](int32_t head, size_t i, const std::vector<double>& value,
             const std::vector<double>& magnitude) {
           for (int32_t h = head * group; h < (head + 1) * group; ++h) {
             const size_t row = static_cast<size_t>(rows.tokens[i]) * static_cast<size_t>(n_q_heads) +
                                static_cast<size_t>(h);
             for (size_t a = 0; a < dims_k; ++a)
               for (size_t b = 0; b < dims_v; ++b) {
                 const double factor = scale * static_cast<double>(q[row * dims_k + a]);
                 out.value[row * dims_v + b] += factor * value[a * dims_v + b];
                 out.magnitude[row * dims_v + b] += std::fabs(factor) * magnitude[a * dims_v + b];
               }
           }
         });
  return out;
}

bool LightningOracle::fully_put() const {
  if (pass.layout.empty()) return true;
  return std::none_of(pass.k.begin(), pass.k.end(), [](const auto& k) { return k.empty(); });
}

// ---- The end of a pass -------------------------------------------------------------------------

kvc_status LightningOracle::may_keep(const std::vector<char>& kept) const {
  for (const LightningRows& rows : pass.layout) {
    const size_t n = kept_of(rows, kept), all = rows.tokens.size();
    if (n > 0 && n < all && !is_draft(all)) return KVC_E_NOT_SUPPORTED;
  }
  return KVC_OK;
}

void LightningOracle::keep(const std::vector<char>& kept) {
  sequences = pass.before;
  for (LightningRows& rows : pass.layout) {
    rows.n_kept = kept_of(rows, kept);
    if (rows.n_kept == 0) continue;
    make_state(rows);
    advance(at(rows.sequence), pass.position[static_cast<size_t>(rows.tokens[rows.n_kept - 1])] + 1,
            rows.state);
  }
}

// ---- States that come and go -------------------------------------------------------------------

kvc_status LightningOracle::may_write(int32_t layer, int32_t first, int32_t n) const {
  if (pass_open) return KVC_E_BAD_STATE;
  if (layer < 0 || layer >= cache.n_layers) return KVC_E_INVALID_ARGUMENT;
  if (first < 0 || n < 0 || first > cache.max_sequences - n) return KVC_E_INVALID_ARGUMENT;
  for (int32_t s = first; s < first + n; ++s)
    if (at(s).next == 0) return KVC_E_BAD_STATE;
  return KVC_OK;
}

void LightningOracle::write(int32_t layer, int32_t s, const std::vector<float>& matrices) {
  LightningState made = states[static_cast<size_t>(at(s).state)];
  fold(made.made_by, static_cast<uint64_t>(layer) + 77);
  for (size_t i = 0; i < matrices.size(); ++i) {
    fold(made.made_by, std::bit_cast<uint32_t>(matrices[i]));
    made.value[at_head(layer, 0) + i] = static_cast<double>(matrices[i]);
    made.magnitude[at_head(layer, 0) + i] = std::fabs(static_cast<double>(matrices[i]));
  }
  at(s).state = static_cast<int32_t>(states.size());
  at(s).checkpoints.clear();
  states.push_back(made);
}

kvc_status LightningOracle::may_set(int32_t row, int32_t index) const {
  if (!is_sequence(row) || index < 0 || index > std::numeric_limits<int32_t>::max() - 2)
    return KVC_E_INVALID_ARGUMENT;
  return closable() ? KVC_OK : KVC_E_BAD_STATE;
}

void LightningOracle::set(int32_t row, int32_t index) {
  close();
  if (index == 0) {
    at(row) = cut_to(at(row), 0);
    at(row).state = 0;
  }
  at(row).checkpoints.clear();
  at(row).next = index;
}

}  // namespace model
