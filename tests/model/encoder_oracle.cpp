#include "encoder_oracle.hpp"

#include <algorithm>
#include <limits>

namespace model {

EncoderOracle::EncoderOracle(const kvc_cache_desc& cache_desc, const kvc_encoder_desc& encoder)
    : ListKind(cache_desc) {
  resolve_storage(cache, &storage_k, &storage_v);
  constants.resize(static_cast<size_t>(cache.n_layers));
  scales_k.assign(static_cast<size_t>(cache.n_layers * cache.n_kv_heads), 1);
  scales_v = scales_k;
  n_slots_ = encoder.inputs > 0
                 ? encoder.inputs
                 : cache.max_sequences + std::min(cache.max_sequences, cache.max_batch);
}

// ---- Who holds what ---------------------------------------------------------------------------------------

/// The inputs that sequences hold, as if the open pass were committed.
std::set<int32_t> EncoderOracle::held() const {
  std::set<int32_t> result;
  for (const EncoderSequence& sequence : sequences)
    if (sequence.input >= 0) result.insert(sequence.input);
  return result;
}

int64_t EncoderOracle::used() const {
  int64_t result = 0;
  for (const int32_t input : held()) result += inputs[static_cast<size_t>(input)].length;
  return result;
}

int64_t EncoderOracle::shared() const {
  int64_t result = 0;
  for (const int32_t input : held()) {
    const auto n = std::count_if(sequences.begin(), sequences.end(),
                                 [&](const EncoderSequence& s) { return s.input == input; });
    if (n > 1) result += inputs[static_cast<size_t>(input)].length;
  }
  return result;
}

int32_t EncoderOracle::length(int32_t s) const {
  return at(s).input < 0 ? 0 : inputs[static_cast<size_t>(at(s).input)].length;
}

Info EncoderOracle::info(int32_t s) const {
  const EncoderSequence& sequence = at(s);
  return {sequence.input < 0 ? sequence.next : sequence.at, sequence.next, length(s),
          std::numeric_limits<int32_t>::max() - 1 - sequence.next, 0};
}

bool EncoderOracle::any_put(int32_t input) const {
  const std::vector<char>& put = inputs[static_cast<size_t>(input)].put;
  return std::find(put.begin(), put.end(), 1) != put.end();
}

// ---- A pass ----------------------------------------------------------------------------------------------------

/// A sequence carries one input at most.
bool EncoderOracle::legal_tokens(int32_t n, const int32_t* sequence,
                                 const uint32_t* token_flags) const {
  std::set<int32_t> carrying;
  for (int32_t i = 0; token_flags && i < n; ++i)
    if (token_flags[i] && !carrying.insert(sequence[i]).second) return false;
  return true;
}

kvc_status EncoderOracle::room(int32_t n, const int32_t*, const uint32_t* token_flags) const {
  const auto carried = token_flags ? n - std::count(token_flags, token_flags + n, 0u) : 0;
  return slots_used() + carried > n_slots_ ? KVC_E_CACHE_FULL : KVC_OK;
}

void EncoderOracle::open(int32_t n, const int32_t* position, const int32_t* sequence,
                         const uint32_t* token_flags, bool reserve) {
  pass.reserve = reserve;
  pass.n_tokens = n;
  if (reserve) return;
  pass.before = sequences;
  pass.position.assign(position, position + n);
  pass.sequence.assign(sequence, sequence + n);
  for (int32_t i = 0; i < n; ++i) {
    if (sequence[i] == KVC_NONE) continue;
    EncoderSequence& s = at(sequence[i]);
    s.next = position[i] + 1;
    if (!token_flags || !token_flags[i]) continue;
    if (s.input < 0) s.first = position[i];
    s.at = position[i];
    s.input = static_cast<int32_t>(inputs.size());
    inputs.emplace_back().put.resize(static_cast<size_t>(cache.n_layers));
    pass.carries[sequence[i]] = false;
  }
}

kvc_status EncoderOracle::needs_pass(int32_t layer) const {
  if (!pass_open) return KVC_E_BAD_STATE;
  return layer >= 0 && layer < cache.n_layers ? KVC_OK : KVC_E_INVALID_ARGUMENT;
}

kvc_status EncoderOracle::needs_put(int32_t layer) const {
  if (const kvc_status status = needs_pass(layer); status != KVC_OK) return status;
  for (const auto& [s, shares] : pass.carries)
    if (!shares && !inputs[static_cast<size_t>(at(s).input)].put[static_cast<size_t>(layer)])
      return KVC_E_BAD_STATE;
  return KVC_OK;
}

bool EncoderOracle::fully_put() const {
  for (int32_t layer = 0; layer < cache.n_layers; ++layer)
    if (needs_put(layer) != KVC_OK) return false;
  return true;
}

int32_t EncoderOracle::only_carrying() const {
  return pass.carries.size() == 1 ? pass.carries.begin()->first : -1;
}

kvc_status EncoderOracle::may_put_input(int32_t layer, int32_t s, int64_t n) const {
  if (const kvc_status status = needs_pass(layer); status != KVC_OK) return status;
  if (!is_sequence(s)) return KVC_E_INVALID_ARGUMENT;
  const bool any_length = n >= 1 && n <= cache.capacity;
  if (pass.reserve) return any_length ? KVC_OK : KVC_E_SHAPE;
  const auto carried = pass.carries.find(s);
  if (carried == pass.carries.end() || carried->second) return KVC_E_INVALID_ARGUMENT;
  return (any_put(at(s).input) ? n == length(s) : any_length) ? KVC_OK : KVC_E_SHAPE;
}

kvc_status EncoderOracle::may_put(int32_t layer, int64_t n) const {
  if (!pass_open || (!pass.reserve && pass.carries.empty())) return KVC_E_BAD_STATE;
  return may_put_input(layer, pass.reserve ? 0 : only_carrying(), n);
}

size_t EncoderOracle::stored_row(int32_t layer, int32_t input, int32_t row, int32_t head) const {
  const int64_t length = inputs[static_cast<size_t>(input)].length;
  return static_cast<size_t>((layer * length + row) * cache.n_kv_heads + head);
}

template <class Store>
void EncoderOracle::store_rows(int32_t layer, int32_t s, int64_t n, const Store& store) {
  if (pass.reserve) return;
  EncoderInput& input = inputs[static_cast<size_t>(at(s).input)];
  if (input.length == 0) {
    const auto rows = static_cast<size_t>(n * cache.n_layers * cache.n_kv_heads);
    input.k = StoredRows(storage_k, rows);
    input.v = StoredRows(storage_v, rows);
  }
  input.length = static_cast<int32_t>(n);
  input.put[static_cast<size_t>(layer)] = 1;
  for (int32_t row = 0; row < input.length; ++row)
    for (int32_t head = 0; head < cache.n_kv_heads; ++head)
      store(input, static_cast<size_t>(row * cache.n_kv_heads + head),
            stored_row(layer, at(s).input, row, head),
            static_cast<size_t>(layer * cache.n_kv_heads + head));
}

void EncoderOracle::put_input(int32_t layer, int32_t s, int64_t n, const std::vector<float>& k,
                              const std::vector<float>& v) {
  store_rows(layer, s, n, [&](EncoderInput& input, size_t from, size_t to, size_t head) {
    input.k.put(to, k.data() + from * static_cast<size_t>(cache.head_dim_k), scales_k[head]);
    input.v.put(to, v.data() + from * static_cast<size_t>(cache.head_dim_v), scales_v[head]);
  });
}

void EncoderOracle::put_codes(int32_t layer, int32_t s, int64_t n, const Oracle::Bytes& k,
                              const Oracle::Bytes& v) {
  store_rows(layer, s, n, [&](EncoderInput& input, size_t from, size_t to, size_t head) {
    input.k.put_codes(to, k.codes.data() + from * storage_k.code_bytes(),
                      k.scales.data() + from * storage_k.scale_bytes(), scales_k[head]);
    input.v.put_codes(to, v.codes.data() + from * storage_v.code_bytes(),
                      v.scales.data() + from * storage_v.scale_bytes(), scales_v[head]);
  });
}

kvc_status EncoderOracle::may_bind_scales(bool of_k, bool of_v) const {
  if (pass_open || !is_empty()) return KVC_E_BAD_STATE;
  const bool fits = (!of_k || storage_k.is_f8()) && (!of_v || storage_v.is_f8());
  return fits ? KVC_OK : KVC_E_NOT_SUPPORTED;
}

kvc_status EncoderOracle::share(int32_t s, int32_t source) {
  if (!pass_open) return KVC_E_BAD_STATE;
  if (!is_sequence(s) || !is_sequence(source) || s == source) return KVC_E_INVALID_ARGUMENT;
  if (pass.reserve) return KVC_OK;
  const auto carried = pass.carries.find(s);
  if (carried == pass.carries.end()) return KVC_E_INVALID_ARGUMENT;
  const int32_t own = at(s).input;
  const auto holders = std::count_if(sequences.begin(), sequences.end(),
                                     [&](const EncoderSequence& each) { return each.input == own; });
  if (carried->second || any_put(own) || holders > 1) return KVC_E_BAD_STATE;
  if (at(source).input < 0) return KVC_E_NOT_FOUND;
  at(s).input = at(source).input;
  carried->second = true;
  return KVC_OK;
}

int32_t EncoderOracle::seen(int32_t token) const {
  const auto t = static_cast<size_t>(token);
  const int32_t s = pass.sequence[t];
  if (s == KVC_NONE) return -1;
  const bool before = pass.carries.count(s) != 0 && pass.position[t] < at(s).at;
  const int32_t input = before ? pass.before[static_cast<size_t>(s)].input : at(s).input;
  return input >= 0 && inputs[static_cast<size_t>(input)].length > 0 ? input : -1;
}

// ---- The end of a pass --------------------------------------------------------------------------------------------

/// What was not put reads as zeros from here on.
void EncoderOracle::mark_put() {
  for (EncoderInput& input : inputs) std::fill(input.put.begin(), input.put.end(), 1);
}

void EncoderOracle::keep(const std::vector<char>& kept) {
  for (int32_t index = 0; index < cache.max_sequences; ++index) {
    if (tokens_of(index) == 0) continue;
    EncoderSequence& s = at(index);
    const EncoderSequence& before = pass.before[static_cast<size_t>(index)];
    int32_t next = before.next;
    for (size_t t = 0; t < kept.size(); ++t)
      if (pass.sequence[t] == index && kept[t]) next = pass.position[t] + 1;
    if (pass.carries.count(index) != 0 && s.at >= next) s = before;
    s.next = next;
  }
}

void EncoderOracle::forget() {
  sequences = pass.before;
  mark_put();
}

}  // namespace model
