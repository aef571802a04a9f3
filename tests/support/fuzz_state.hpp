#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "abi.hpp"
#include "model/oracle.hpp"

namespace fuzz {

using Hash = std::pair<uint64_t, uint64_t>;

/// A state of the oracle as two numbers. What the contract lists as covered by the digest is in
/// both; what it leaves open is in `fine` only: equal `fine` demands equal digests, and equal
/// digests demand equal `coarse`.
/// Left open: whether a reserve pass counts as open, the order of an open pass's batch when it has
/// an except set, and tokens of an open pass that no layer was put for.
struct StateHashes {
  Hash fine, coarse;
};

class DigestLedger {
 public:
  /// Empty when the digest fits all states seen so far, else what is wrong.
  std::string enter(const model::Oracle& oracle, const support::Digest& digest);

 private:
  StateHashes hashes(const model::Oracle& oracle);
  Hash content_hash(const model::Oracle& oracle, int32_t content);

  std::vector<Hash> contents_;  // of those that cannot change any more
  std::map<Hash, support::Digest> digest_of_;
  std::map<support::Digest, Hash> state_of_;
};

}  // namespace fuzz
