#include "fuzz_state.hpp"

#include <algorithm>
#include <set>

namespace fuzz {

void fold_row(Hash& hash, const model::StoredRows& rows, size_t row) {
  const model::Storage& storage = rows.storage();
  for (size_t i = 0; i < storage.code_bytes(); ++i) fold(hash, rows.codes(row)[i]);
  for (size_t i = 0; i < storage.scale_bytes(); ++i) fold(hash, rows.scales(row)[i]);
}

Hash CausalStates::content_hash(const model::Oracle& oracle, int32_t index) {
  const auto at = static_cast<size_t>(index);
  if (at < contents_.size() && contents_[at] != Hash()) return contents_[at];
  const model::Content& content = oracle.contents[at];
  Hash hash{1, 2};
  bool final = true;
  const auto heads = static_cast<size_t>(oracle.cache.n_kv_heads);
  for (size_t layer = 0; layer < content.put.size(); ++layer) {
    fold(hash, static_cast<uint64_t>(content.put[layer]));
    final = final && content.put[layer];
    if (!content.put[layer]) continue;
    for (size_t row = layer * heads; row < (layer + 1) * heads; ++row) {
      fold_row(hash, content.k, row);
      if (!oracle.v_in_k()) fold_row(hash, content.v, row);
    }
  }
  // Tokens of an open pass may be put again.
  if (final && (!oracle.pass_open || oracle.pass.content.empty() || index < oracle.pass.content[0])) {
    contents_.resize(std::max(contents_.size(), at + 1));
    contents_[at] = hash;
  }
  return hash;
}

StateHashes CausalStates::of(const model::Oracle& oracle) {
  StateHashes result;
  const auto both = [&](uint64_t word) {
    fold(result.fine, word);
    fold(result.coarse, word);
  };
  for (const model::Sequence& sequence : oracle.sequences) {
    both(static_cast<uint64_t>(sequence.next));
    both(static_cast<uint64_t>(sequence.lost_below));
    for (const model::Token& token : sequence.tokens) {
      const std::vector<char>& put = oracle.contents[static_cast<size_t>(token.content)].put;
      const bool somewhere = std::find(put.begin(), put.end(), 1) != put.end();
      Hash hash = content_hash(oracle, token.content);
      fold(hash, static_cast<uint64_t>(token.position));
      fold(hash, static_cast<uint64_t>(static_cast<int64_t>(oracle.pending_rotation(token))));
      fold(result.fine, hash);
      if (somewhere) fold(result.coarse, hash);
    }
  }
  fold(result.fine, oracle.pass_open ? oracle.pass.reserve ? 2 : 1 : 0);
  fold(result.coarse, oracle.pass_open && !oracle.pass.reserve);
  std::set<std::pair<int32_t, int32_t>> except;
  for (size_t i = 0; i < oracle.pass.position.size(); ++i)
    if (oracle.pass.except[i]) except.insert({oracle.pass.sequence[i], oracle.pass.position[i]});
  for (const auto& [sequence, position] : except) {
    both(static_cast<uint64_t>(sequence));
    both(static_cast<uint64_t>(position));
  }
  if (!except.empty())
    for (size_t i = 0; i < oracle.pass.position.size(); ++i)
      fold(result.fine, static_cast<uint64_t>(oracle.pass.sequence[i]));
  return result;
}

}  // namespace fuzz
