#pragma once
#include <algorithm>
#include <cstdint>

#include "core/attention/params.hpp"

namespace kvc {

/// Calls visit(index, cell, position) for each token of its list that a row sees, in order of position. The one walk over
/// what is visible: masks, weights, spans and tests of the plan all use it.
template <class Visit>
void for_each_visible(const AttentionPlan& plan, const AttentionRow& row, Visit visit) {
  const TokenList& list = plan.lists[row.list];
  int32_t start = 0;  // of the piece
  for (int32_t piece = 0; piece < 3; start += list.count[piece++]) {
    const auto walk = [&](int32_t begin, int32_t end) {
      const int32_t last = std::min(end - start, list.count[piece]);
      for (int32_t i = std::max(begin - start, 0); i < last; ++i) {
        const int32_t cell = plan.tokens.cell[list.start[piece] + i];
        if (plan.hides(row.token, cell)) continue;
        visit(start + i, list.first_cell + cell,
              list.first_position + plan.tokens.position[list.start[piece] + i]);
      }
    };
    walk(0, row.first_end);
    walk(row.begin, row.end);
  }
}

}  // namespace kvc
