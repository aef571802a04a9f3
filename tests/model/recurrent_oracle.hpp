#pragma once
#include <cstdint>
#include <vector>

#include "kvc/recurrent.h"
#include "state_oracle.hpp"

namespace model {

/// What a sequence is in after some tokens: every part of every layer, as the storage types hold it.
struct RecurrentState {
  std::vector<float> conv;       // [n_layers, conv_channels, conv_dim]
  std::vector<float> recurrent;  // [n_layers, state_size]
};

/// A sequence of the batch.
struct RecurrentRows {
  int32_t sequence = 0;
  std::vector<int32_t> tokens;  // of the batch
  std::vector<int32_t> states;  // after each token, or after the last one
};

struct RecurrentPass : Batch {
  std::vector<RecurrentRows> layout;      // in order of first appearance
  std::vector<char> put;                  // [n_layers, 2]: conv, recurrent
  std::vector<RecurrentSequence> before;  // what abort goes back to
};

/// The oracle of recurrent caches: what such a cache must do, written as lists. A sequence is where it continues, a state, and
/// the states that it can go back to. The oracle knows no slots: a pass appends states to the list of all, with what was
/// there before in them, and puts write into those.
class RecurrentOracle : public StateOracle {
 public:
  RecurrentOracle(const kvc_cache_desc& cache, const kvc_recurrent_desc& recurrent);

  /// The status of a call that needs a pass and a layer, and of one that needs the part too.
  kvc_status needs_pass(int32_t layer) const;
  kvc_status needs_part(int32_t layer, int32_t part) const;
  /// The status was OK: the rows that the caller's tensor holds, [n_rows, size_of(part)].
  void put(int32_t layer, int32_t part, const std::vector<float>& rows);
  /// Likewise the inputs of the convolution, [n_tokens, conv_channels].
  void conv(int32_t layer, const std::vector<float>& x);

  bool fully_put() const override;
  bool any_put() const;
  const Batch& batch() const override { return pass; }
  int32_t n_rows() const;
  int64_t n_slots() const override;
  bool has(int32_t part) const { return size_of(part) > 0; }
  int64_t size_of(int32_t part) const;  // elements of a layer; 0: the cache lacks it, or it does not exist
  uint32_t dtype_of(int32_t part) const;
  /// The layout of a pass, of a reserve pass too.
  std::vector<RecurrentRows> layout() const;
  /// A part of a layer of a state: [size_of(part)].
  std::vector<float> values(int32_t state, int32_t layer, int32_t part) const;

  kvc_recurrent_desc recurrent;  // with the defaults filled in; KVC_NONE of the interval and of checkpoints stays
  std::vector<RecurrentState> states;  // only grows
  RecurrentPass pass;

 private:
  uint32_t known_flags() const override { return 0; }
  kvc_status room(int32_t, const int32_t*, const uint32_t*) const override { return KVC_OK; }
  kvc_status may_keep(const std::vector<char>& kept) const override;
  void open(int32_t n, const int32_t* position, const int32_t* sequence,
            const uint32_t* token_flags, bool reserve) override;
  void keep(const std::vector<char>& kept) override;
  void settle() override {}  // the states already hold what was there before
  void forget() override { sequences = pass.before; }
  void clear_pass() override { pass = {}; }

  std::vector<float>& all_of(int32_t state, int32_t part);
};

}  // namespace model
