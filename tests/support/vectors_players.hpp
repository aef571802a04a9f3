#pragma once
#include <cstdint>
#include <memory>
#include <nlohmann/json.hpp>
#include <set>
#include <vector>

#include "abi.hpp"
#include "kvc/encoder.h"
#include "kvc/recurrent.h"
#include "kvc/wrapper.h"

/// Two ways to perform the steps of a behaviour vector: on the oracles, and through the C ABI.
namespace players {

using nlohmann::json;
using Numbers = std::vector<int32_t>;

constexpr int32_t n_layers = 2;

/// One cache of a script.
struct ChildScript {
  kvc_cache_desc cache{};
  kvc_causal_desc causal{};
  kvc_encoder_desc encoder{};
  kvc_recurrent_desc recurrent{};
  bool rope = true;
};

struct Script {
  std::vector<ChildScript> children;
  bool wrapped = false;  // else there is one child, which is called itself
};

struct Input {
  int32_t sequence, number, length;
};

/// What `begin` says.
struct Pass {
  Numbers position, sequence, value;
  std::vector<uint32_t> flags;  // empty: none
  std::vector<Input> inputs;    // that tokens carry
  const uint32_t* token_flags() const { return flags.empty() ? nullptr : flags.data(); }
  int32_t n() const { return static_cast<int32_t>(position.size()); }
};

/// What the layers of a model do with one cache, and what can be read from it, in the form of the vectors.
class Child {
 public:
  virtual ~Child() = default;
  /// Puts every layer; inputs of the sequences in `shared` are another's.
  virtual void put(const Pass& pass, const std::set<int32_t>& shared) = 0;
  virtual json seen() = 0;
  virtual json held(int32_t sequence) = 0;
};

/// The state `h` of the vectors' layer after a token.
inline int64_t after_token(int64_t h, int32_t value) { return (31 * h + value + 1) % 65521; }

/// A state and the columns of its convolution.
struct Memory {
  int64_t h = 0;
  std::vector<int64_t> columns;
  Memory then(int32_t value) const;
};

/// What a layer puts for one sequence: `before`, then the states of its rows. Reported as the vectors do.
struct LayerRows {
  int32_t sequence = 0;
  Memory before;
  std::vector<Memory> rows;
};
LayerRows layer_rows(int32_t sequence, const Memory& before, const Numbers& values, int32_t n_rows);
json described(const std::vector<LayerRows>& layer);

/// Who is called: the only child, or the wrapper.
class Player {
 public:
  virtual ~Player() = default;
  virtual kvc_status begin(const Pass& pass) = 0;
  virtual kvc_status fits(const Pass& pass) = 0;
  virtual kvc_status share(int32_t sequence, int32_t source) = 0;
  virtual kvc_status set_causal(const Numbers& except) = 0;
  virtual kvc_status commit() = 0;
  virtual kvc_status commit_prefix(const Numbers& sequence, const Numbers& keep) = 0;
  virtual kvc_status abort() = 0;
  virtual kvc_status can_resume(int32_t sequence, int32_t want, int32_t* best) = 0;
  virtual kvc_status resume(int32_t sequence, int32_t want, int32_t* got) = 0;
  virtual kvc_status copy_prefix(int32_t src, int32_t dst, int32_t len, int32_t* got) = 0;
  virtual kvc_status reorder(const Numbers& dst, const Numbers& src) = 0;
  virtual kvc_status remove(int32_t sequence, int32_t begin, int32_t end) = 0;
  virtual kvc_status checkpoint_take(int32_t sequence) = 0;
  virtual int32_t next(int32_t sequence) = 0;
  /// A failed call leaves it as it was.
  virtual support::Digest digest() = 0;

  std::vector<std::unique_ptr<Child>> children;
};

std::unique_ptr<Player> make_oracle_player(const Script& script);
std::unique_ptr<Player> make_abi_player(const Script& script);

}  // namespace players
