#pragma once
#include <cstdint>
#include <utility>
#include <vector>

#include "kvc/lightning.h"
#include "state_oracle.hpp"

namespace model {

/// The matrices of a sequence in double, [n_layers, n_kv_heads, head_dim_k, head_dim_v], and the sum of the magnitudes of the
/// terms that make each number.
struct LightningState {
  std::vector<double> value, magnitude;
  std::pair<uint64_t, uint64_t> made_by{};  // which passes of which tokens: the same have the same bits
};

struct LightningRows {
  int32_t sequence = 0;
  std::vector<int32_t> tokens;  // of the batch
  int32_t state = 0;            // behind those that are kept
  size_t n_kept = 0;
};

struct LightningPass : Batch {
  std::vector<char> masked;              // [n_tokens]
  std::vector<LightningRows> layout;     // in order of first appearance
  std::vector<std::vector<float>> k, v;  // [n_layers] [n_tokens, n_kv_heads, dim]; empty: not put
  int32_t last_put = -1;
  std::vector<RecurrentSequence> before;  // what abort goes back to
};

/// Outputs in double, and the magnitudes of their terms: [n_tokens, n_q_heads, head_dim_v].
struct LightningOutputs {
  std::vector<double> value, magnitude;
};

/// The oracle of lightning caches: token after token, each lets the state decay by the positions that passed and adds its product.
class LightningOracle : public StateOracle {
 public:
  LightningOracle(const kvc_cache_desc& cache, const kvc_lightning_desc& lightning,
                  const std::vector<float>& slopes);

  kvc_status needs_layer(int32_t layer) const;
  /// The status of attention without a put.
  kvc_status needs_kept(int32_t layer) const;
  /// The status was OK.
  void put(int32_t layer, const std::vector<float>& k, const std::vector<float>& v);
  LightningOutputs attend(int32_t layer, int32_t n_q_heads, const std::vector<float>& q,
                          double scale) const;
  kvc_status may_write(int32_t layer, int32_t first, int32_t n) const;
  void write(int32_t layer, int32_t sequence, const std::vector<float>& matrices);
  kvc_status may_set(int32_t row, int32_t index) const;
  void set(int32_t row, int32_t index);

  const Batch& batch() const override { return pass; }
  bool fully_put() const override;
  int64_t n_slots() const override;
  bool is_draft(size_t n_tokens) const {
    return n_tokens <= static_cast<size_t>(lightning.draft_states) + 1;
  }

  kvc_lightning_desc lightning;
  std::vector<float> slopes;           // [n_layers, n_kv_heads]
  std::vector<LightningState> states;  // only grows
  LightningPass pass;

 private:
  uint32_t known_flags() const override { return KVC_TOKEN_MASKED; }
  kvc_status room(int32_t, const int32_t*, const uint32_t*) const override { return KVC_OK; }
  kvc_status may_keep(const std::vector<char>& kept) const override;
  void open(int32_t n, const int32_t* position, const int32_t* sequence,
            const uint32_t* token_flags, bool reserve) override;
  void keep(const std::vector<char>& kept) override;
  void settle() override {}  // a state is what a commit leaves from the begin on
  void forget() override { sequences = pass.before; }
  void clear_pass() override { pass = {}; }

  void make_state(const LightningRows& rows);
  /// One token of one head; `visit` sees the state behind it.
  template <class Visit>
  void walk(const LightningRows& rows, int32_t layer, size_t n_tokens, Visit visit) const;
  size_t matrix() const {
    return static_cast<size_t>(cache.head_dim_k) * static_cast<size_t>(cache.head_dim_v);
  }
  size_t at_head(int32_t layer, int32_t head) const {
    return static_cast<size_t>(layer * cache.n_kv_heads + head) * matrix();
  }
};

}  // namespace model
