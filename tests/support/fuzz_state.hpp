#pragma once
#include <vector>

#include "fuzz_kind.hpp"
#include "model/oracle.hpp"

namespace fuzz {

/// The bytes of one vector: its codes, then its scales.
void fold_row(Hash& hash, const model::StoredRows& rows, size_t row);

/// The states of a causal cache's oracle as numbers. Left open by the contract: whether a reserve pass counts as open, the order
/// of an open pass's batch when it has an except set, and tokens of an open pass that no layer was put for.
class CausalStates {
 public:
  StateHashes of(const model::Oracle& oracle);

 private:
  Hash content_hash(const model::Oracle& oracle, int32_t content);

  std::vector<Hash> contents_;  // of those that cannot change any more
};

}  // namespace fuzz
