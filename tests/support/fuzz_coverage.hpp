#pragma once
#include "fuzz_counts.hpp"

namespace fuzz {

/// The tables of the programs: the operations of each kind of cache and the hard situations that they meet, in the sequences
/// that they name, or, when they name none, in any.
Counts causal_counts();  // shared cells, tokens that have slid out of the window, a full pool, an open pass
Counts encoder_counts();  // shared inputs, no free slot, an open pass
Counts recurrent_counts();
Counts lightning_counts();  // a shared state, all checkpoints, an approximate state, a draft that can be cut, an open pass
Counts rows_counts();  // padding at the start of a row or of the pass, a ring that has lost positions, a full row, an open pass
Counts wrapper_counts();

}  // namespace fuzz
