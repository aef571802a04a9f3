#include <algorithm>

#include "fuzz_state.hpp"
#include "rows_world.hpp"

/// What is compared after every operation.
namespace fuzz {

void RowsWorld::compare_kind() {
  compare_rows();
  compare_places();
  counts_.record(Op::runs, true, circumstances({}));
  if (random_.chance(0.2)) compare_contents();
}

void RowsWorld::compare_rows() const {
  Numbers index(static_cast<size_t>(n_sequences())), starts(index.size());
  if (kvc_rows_query(cache_, 0, n_sequences(), index.data(), starts.data()) != KVC_OK)
    differ("rows_query: " + support::last_message());
  for (size_t s = 0; s < index.size(); ++s) {
    expect_equal(index[s], oracle_.sequences[s].next, "index of a row");
    expect_equal(starts[s], oracle_.sequences[s].starts, "starts of a row");
  }
}

/// The token at position p of row b lies in cell b * columns + p mod columns.
void RowsWorld::compare_places() const {
  for (int32_t s = 0; s < n_sequences(); ++s) {
    const std::vector<support::Place> places = support::places(cache_, s);
    const std::vector<model::Token> tokens = oracle_.held(s);
    expect_equal(static_cast<int64_t>(places.size()), static_cast<int64_t>(tokens.size()),
                 "tokens in runs");
    for (size_t i = 0; i < tokens.size(); ++i) {
      expect_equal(places[i].position, tokens[i].position, "position in a run");
      expect_equal(places[i].offset, 0, "offset of a run");
      expect_equal(places[i].cell, s * oracle_.columns() + oracle_.column(tokens[i].position),
                   "cell of a token");
    }
  }
}

void RowsWorld::compare_cells(const kvc_stats& stats) const {
  expect_equal(static_cast<int64_t>(stats.cells), int64_t{n_sequences()} * oracle_.columns(),
               "cells");
  expect_equal(static_cast<int64_t>(stats.cells_used), oracle_.used(), "cells_used");
  expect_equal(static_cast<int64_t>(stats.cells_shared), 0, "cells_shared");
}

void RowsWorld::compare_contents() {
  for (int32_t layer = 0; layer < n_layers(); ++layer)
    for (int32_t s = 0; s < n_sequences(); ++s) {
      const int64_t n = oracle_.info(s).count;
      support::Array k(KVC_F32, {n, setup_.cache.n_kv_heads, oracle_.cache.head_dim_k});
      support::Array v(KVC_F32, {n, oracle_.value_heads(), oracle_.cache.head_dim_v});
      if (kvc_gather(cache_, layer, s, k.tensor(), v.tensor()) != KVC_OK)
        differ("gather: " + support::last_message());
      compare_gathered(layer, s, &k, &v, false);
    }
}

Hash RowsWorld::content_hash(int32_t index) {
  const auto at = static_cast<size_t>(index);
  if (at < contents_.size() && contents_[at] != Hash()) return contents_[at];
  const model::Content& content = oracle_.contents[at];
  Hash hash{1, 2};
  for (int32_t layer = 0; layer < n_layers(); ++layer) {
    const bool put = content.put[static_cast<size_t>(layer)];
    fold(hash, put);
    for (int32_t head = 0; put && head < setup_.cache.n_kv_heads; ++head)
      fold_row(hash, content.k, oracle_.key_row(layer, head));
    for (int32_t head = 0; put && head < oracle_.value_heads() && !oracle_.v_in_k(); ++head)
      fold_row(hash, content.v, oracle_.value_row(layer, head));
  }
  // Tokens of an open pass may be put again.
  const std::vector<int32_t>& added = oracle_.pass.content;
  if (std::find(added.begin(), added.end(), index) != added.end()) return hash;
  contents_.resize(std::max(contents_.size(), at + 1));
  contents_[at] = hash;
  return hash;
}

/// Left open by the contract: whether a reserve pass counts as open, tokens of an open pass that no layer was put for, and the
/// mask and the types of an open pass.
StateHashes RowsWorld::state_hashes() {
  StateHashes result;
  const auto both = [&](uint64_t word) {
    fold(result.fine, word);
    fold(result.coarse, word);
  };
  for (int32_t s = 0; s < n_sequences(); ++s) {
    const model::Row& row = oracle_.sequences[static_cast<size_t>(s)];
    for (const int32_t number : {row.next, row.starts, row.lost_below})
      both(static_cast<uint64_t>(number));
    for (const model::Token& token : oracle_.held(s)) {
      const model::Content& content = oracle_.content_of(token);
      const bool somewhere = std::find(content.put.begin(), content.put.end(), 1) !=
                             content.put.end();
      Hash hash = content_hash(token.content);
      fold(hash, static_cast<uint64_t>(token.position));
      fold(result.fine, hash);
      if (somewhere) fold(result.coarse, hash);
    }
  }
  const model::RowsPass& pass = oracle_.pass;
  fold(result.fine, !oracle_.pass_open ? 0 : pass.reserve ? 2 : 1);
  fold(result.coarse, oracle_.pass_open && !pass.reserve);
  for (size_t t = 0; !pass.reserve && t < pass.except.size(); ++t) {
    if (!pass.except[t]) continue;
    both(static_cast<uint64_t>(pass.sequence[t]));
    both(static_cast<uint64_t>(pass.position[t]));
  }
  fold(result.fine, pass.type.size());  // so that the lists do not run into each other
  for (const int32_t type : pass.type) fold(result.fine, static_cast<uint64_t>(type));
  fold(result.fine, pass.mask.sees.size());
  for (const char sees : pass.mask.sees) fold(result.fine, static_cast<uint64_t>(sees));
  fold(result.fine, static_cast<uint64_t>(pass.q_len));
  return result;
}

}  // namespace fuzz
