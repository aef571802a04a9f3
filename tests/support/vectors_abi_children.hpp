#pragma once
#include "vectors_players.hpp"

namespace players {

/// A layer of a child as it is called: on the child itself, or on the wrapper by the wrapper's number.
struct Door {
  kvc_cache* cache;
  int32_t layer;
};

/// The children of each kind. `cache` is the child itself; its layers are called through the doors.
std::unique_ptr<Child> make_abi_causal(const ChildScript& script, kvc_cache* cache,
                                       const std::vector<Door>& doors);
std::unique_ptr<Child> make_abi_encoder(const ChildScript& script, kvc_cache* cache,
                                        const std::vector<Door>& doors);
std::unique_ptr<Child> make_abi_recurrent(const ChildScript& script, kvc_cache* cache,
                                          const std::vector<Door>& doors);

}  // namespace players
