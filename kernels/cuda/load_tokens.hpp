#pragma once
#include "core/attention/params.hpp"
#include "kernels/cuda/turn_tables.hpp"

namespace kvc::cuda {

/// Calls launch() for as many tokens at a time as `tokens` has room for: what the pairs of `tables` turn, and with `writes_rest`
/// everything that is not turned.
template <class Launch>
Error load_pairs(const LoadParams& params, TurnTables& tables, bool writes_rest,
                 LoadedTokens& tokens, Launch launch) {
  tokens.turn = tables.view();
  tokens.writes_rest = writes_rest ? 1 : 0;
  const auto flush = [&]() -> Error {
    const Error e = launch();
    tokens.n_cells = 0;
    tables.clear();
    return e;
  };
  for (int32_t i = 0; i < params.n_tokens; ++i) {
    const bool turns = params.rope.n_dims > 0 && params.offset != nullptr &&
                       params.offset[i] != 0 && params.cell[i] >= 0;
    int32_t table = turns ? tables.table_for(params.offset[i]) : -1;
    if (tokens.n_cells == turned_cells || (turns && table < 0)) {
      if (Error e = flush(); e != Error::none) return e;
      table = turns ? tables.table_for(params.offset[i]) : -1;
    }
    tokens.cell[tokens.n_cells] = params.cell[i];
    tokens.row[tokens.n_cells] = params.row != nullptr ? params.row[i] : i;
    tokens.table[tokens.n_cells++] = static_cast<int16_t>(table);
  }
  return flush();
}

/// The same for all pairs.
template <class Launch>
Error load_tokens(const LoadParams& params, LoadedTokens& tokens, Launch launch) {
  int32_t pair = 0;
  do {
    TurnTables tables(params.rope, pair, tokens.tables);
    if (Error e = load_pairs(params, tables, pair == 0, tokens, launch); e != Error::none) return e;
    pair = tables.next_pair();
  } while (params.offset != nullptr && pair < params.rope.n_dims / 2);
  return Error::none;
}

}  // namespace kvc::cuda
