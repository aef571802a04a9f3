#include "recurrent_oracle.hpp"

#include <algorithm>

#include "formats.hpp"

namespace model {
RecurrentOracle::RecurrentOracle(const kvc_cache_desc& cache_desc, const kvc_recurrent_desc& desc)
    : StateOracle(cache_desc, {desc.checkpoints, desc.checkpoint_interval, desc.checkpoint_min_pos,
                               (desc.flags & KVC_RECURRENT_APPROXIMATE) != 0}),
      recurrent(desc) {
  recurrent.checkpoints = most_checkpoints();
  if (recurrent.dtype_conv == 0) recurrent.dtype_conv = KVC_F32;
  if (recurrent.dtype_state == 0) recurrent.dtype_state = KVC_F32;
  RecurrentState zeros;
  zeros.conv.resize(static_cast<size_t>(cache.n_layers * size_of(KVC_PART_CONV)));
  zeros.recurrent.resize(static_cast<size_t>(cache.n_layers * size_of(KVC_PART_RECURRENT)));
  states.push_back(zeros);
}

int64_t RecurrentOracle::size_of(int32_t part) const {
  if (part == KVC_PART_CONV) return int64_t{recurrent.conv_channels} * recurrent.conv_dim;
  return part == KVC_PART_RECURRENT ? recurrent.state_size : 0;
}

uint32_t RecurrentOracle::dtype_of(int32_t part) const {
  return part == KVC_PART_CONV ? recurrent.dtype_conv : recurrent.dtype_state;
}

std::vector<float>& RecurrentOracle::all_of(int32_t state, int32_t part) {
  RecurrentState& all = states[static_cast<size_t>(state)];
  return part == KVC_PART_CONV ? all.conv : all.recurrent;
}

std::vector<float> RecurrentOracle::values(int32_t state, int32_t layer, int32_t part) const {
  const RecurrentState& all = states[static_cast<size_t>(state)];
  const std::vector<float>& of = part == KVC_PART_CONV ? all.conv : all.recurrent;
  const auto from = of.begin() + static_cast<ptrdiff_t>(layer * size_of(part));
  return std::vector<float>(from, from + static_cast<ptrdiff_t>(size_of(part)));
}

int64_t RecurrentOracle::n_slots() const {
  const int64_t kept = 1 + std::max(recurrent.checkpoints, 0);
  const int64_t written = int64_t{std::min(cache.max_sequences, cache.max_batch)} *
                          (recurrent.draft_states + 1);
  return 1 + cache.max_sequences * kept + std::min<int64_t>(cache.max_batch, written);
}

// ---- A pass ------------------------------------------------------------------------------------

kvc_status RecurrentOracle::needs_pass(int32_t layer) const {
  if (!pass_open) return KVC_E_BAD_STATE;
  return layer >= 0 && layer < cache.n_layers ? KVC_OK : KVC_E_INVALID_ARGUMENT;
}

kvc_status RecurrentOracle::needs_part(int32_t layer, int32_t part) const {
  if (const kvc_status status = needs_pass(layer); status != KVC_OK) return status;
  return has(part) ? KVC_OK : KVC_E_INVALID_ARGUMENT;
}

std::vector<RecurrentRows> RecurrentOracle::layout() const {
  if (!pass.reserve) return pass.layout;
  const int32_t m = std::min(pass.n_tokens, cache.max_sequences);
  std::vector<RecurrentRows> result(static_cast<size_t>(m));
  for (int32_t i = 0; i < pass.n_tokens; ++i) {
    RecurrentRows& rows = result[static_cast<size_t>(i % m)];
    rows.sequence = i % m;
    rows.tokens.push_back(i);
  }
  for (RecurrentRows& rows : result) {
    const auto n = static_cast<int32_t>(rows.tokens.size());
    rows.states.resize(static_cast<size_t>(n <= recurrent.draft_states + 1 ? n : 1));
  }
  return result;
}

int32_t RecurrentOracle::n_rows() const {
  size_t n = 0;
  for (const RecurrentRows& rows : layout()) n += rows.states.size();
  return static_cast<int32_t>(n);
}

void RecurrentOracle::open(int32_t n, const int32_t* position, const int32_t* sequence,
                           const uint32_t*, bool reserve) {
  pass.reserve = reserve;
  pass.n_tokens = n;
  if (reserve) return;
  pass.before = sequences;
  pass.put.resize(static_cast<size_t>(cache.n_layers) * 2);
  pass.position.assign(position, position + n);
  pass.sequence.assign(sequence, sequence + n);
  for (int32_t i = 0; i < n; ++i) {
    if (sequence[i] == KVC_NONE) continue;
    auto rows = std::find_if(pass.layout.begin(), pass.layout.end(),
                             [&](const RecurrentRows& each) { return each.sequence == sequence[i]; });
    if (rows == pass.layout.end()) rows = pass.layout.insert(rows, {sequence[i], {}, {}});
    rows->tokens.push_back(i);
  }
  for (RecurrentRows& rows : pass.layout) {
    const auto tokens = static_cast<int32_t>(rows.tokens.size());
    for (int32_t row = 0; row < (tokens <= recurrent.draft_states + 1 ? tokens : 1); ++row) {
      rows.states.push_back(static_cast<int32_t>(states.size()));
      states.push_back(states[static_cast<size_t>(at(rows.sequence).state)]);
    }
  }
  keep(std::vector<char>(static_cast<size_t>(n), 1));
}

void RecurrentOracle::put(int32_t layer, int32_t part, const std::vector<float>& rows) {
  if (pass.reserve) return;
  const auto size = static_cast<size_t>(size_of(part));
  size_t row = 0;
  for (const RecurrentRows& each : pass.layout)
    for (const int32_t state : each.states) {
      float* to = all_of(state, part).data() + static_cast<size_t>(layer) * size;
      for (size_t e = 0; e < size; ++e)
        to[e] = static_cast<float>(round_to(dtype_of(part), rows[row * size + e]));
      ++row;
    }
  pass.put[static_cast<size_t>(layer * 2 + (part == KVC_PART_RECURRENT))] = 1;
}

void RecurrentOracle::conv(int32_t layer, const std::vector<float>& x) {
  if (pass.reserve) return;
  const auto channels = static_cast<size_t>(recurrent.conv_channels);
  const auto dim = static_cast<size_t>(recurrent.conv_dim);
  std::vector<float> all;  // [n_rows, channels, dim]
  for (const RecurrentRows& rows : pass.layout) {
    const int32_t before = pass.before[static_cast<size_t>(rows.sequence)].state;
    const std::vector<float> old = values(before, layer, KVC_PART_CONV);
    const size_t n = rows.tokens.size();
    for (size_t last = rows.states.size() == n ? 0 : n - 1; last < n; ++last)
      for (size_t channel = 0; channel < channels; ++channel) {
        std::vector<float> columns(old.begin() + static_cast<ptrdiff_t>(channel * dim),
                                   old.begin() + static_cast<ptrdiff_t>((channel + 1) * dim));
        for (size_t i = 0; i <= last; ++i)
          columns.push_back(x[static_cast<size_t>(rows.tokens[i]) * channels + channel]);
        all.insert(all.end(), columns.end() - static_cast<ptrdiff_t>(dim), columns.end());
      }
  }
  put(layer, KVC_PART_CONV, all);
}

bool RecurrentOracle::fully_put() const {
  if (pass.layout.empty()) return true;
  for (int32_t layer = 0; layer < cache.n_layers; ++layer)
    for (const int32_t part : {KVC_PART_CONV, KVC_PART_RECURRENT})
      if (has(part) && !pass.put[static_cast<size_t>(layer * 2 + (part == KVC_PART_RECURRENT))])
        return false;
  return true;
}

bool RecurrentOracle::any_put() const {
  return std::find(pass.put.begin(), pass.put.end(), 1) != pass.put.end();
}

// ---- The end of a pass -------------------------------------------------------------------------

namespace {

size_t kept_of(const RecurrentRows& rows, const std::vector<char>& kept) {
  size_t n = 0;
  for (const int32_t token : rows.tokens) n += kept[static_cast<size_t>(token)] != 0;
  return n;
}

}  // namespace

kvc_status RecurrentOracle::may_keep(const std::vector<char>& kept) const {
  for (const RecurrentRows& rows : pass.layout) {
    const size_t n = kept_of(rows, kept), all = rows.tokens.size();
    if (n > 0 && n < all && rows.states.size() < all) return KVC_E_NOT_SUPPORTED;
  }
  return KVC_OK;
}

/// The sequences as they are when these tokens of the batch are kept.
void RecurrentOracle::keep(const std::vector<char>& kept) {
  sequences = pass.before;
  for (const RecurrentRows& rows : pass.layout) {
    const size_t n = kept_of(rows, kept);
    if (n == 0) continue;
    RecurrentSequence& sequence = at(rows.sequence);
    const int32_t state = n == rows.tokens.size() ? rows.states.back() : rows.states[n - 1];
    advance(sequence, pass.position[static_cast<size_t>(rows.tokens[n - 1])] + 1, state);
  }
}

}  // namespace model
