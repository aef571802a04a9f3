#pragma once
#include <cstdint>
#include <memory>
#include <set>
#include <utility>
#include <vector>

#include "abi.hpp"

/// Two ways to perform the steps of a behaviour vector.
namespace players {

struct Script {
  kvc_cache_desc cache;  // head_dim_v: at least as many as there are values, each value has a
                         // dimension of its own
  kvc_causal_desc causal;
  bool rope;
};

using Numbers = std::vector<int32_t>;
using Held = std::set<std::pair<int32_t, int32_t>>;  // (position, value)

class Player {
 public:
  virtual ~Player() = default;
  /// Begins and, when that succeeds, puts every layer.
  virtual kvc_status begin(const Numbers& position, const Numbers& sequence, const Numbers& value) = 0;
  virtual kvc_status fits(const Numbers& position, const Numbers& sequence) = 0;
  virtual kvc_status set_causal(const Numbers& except) = 0;
  virtual kvc_status commit() = 0;
  virtual kvc_status commit_prefix(const Numbers& sequence, const Numbers& keep) = 0;
  virtual kvc_status abort() = 0;
  virtual kvc_status can_resume(int32_t sequence, int32_t want, int32_t* best) = 0;
  virtual kvc_status resume(int32_t sequence, int32_t want, int32_t* got) = 0;
  virtual kvc_status copy_prefix(int32_t src, int32_t dst, int32_t len, int32_t* got) = 0;
  virtual kvc_status reorder(const Numbers& dst, const Numbers& src) = 0;
  virtual kvc_status remove(int32_t sequence, int32_t begin, int32_t end) = 0;
  virtual Held visible(int32_t batch_index) = 0;
  virtual Held held(int32_t sequence) = 0;
  virtual int32_t next(int32_t sequence) = 0;
};

std::unique_ptr<Player> make_oracle_player(const Script& script);
std::unique_ptr<Player> make_abi_player(const Script& script);

}  // namespace players
