#pragma once
#include <cstdint>
#include <map>
#include <set>
#include <vector>

#include "attention.hpp"
#include "kvc/encoder.h"
#include "oracle.hpp"

namespace model {

/// What an encoder read, as the storage types hold it.
struct EncoderInput {
  int32_t length = 0;       // 0: no layer was put
  std::vector<char> put;    // [n_layers]
  std::vector<float> k, v;  // [n_layers, length, n_kv_heads, head_dim]
};

struct EncoderSequence {
  int32_t next = 0;
  int32_t input = -1;  // index into EncoderOracle::inputs, −1: none
  int32_t at = -1;     // position of the token that carried it
  int32_t first = -1;  // position of the first input of its history
};

struct EncoderPass {
  bool reserve = false;
  int32_t n_tokens = 0;
  std::vector<int32_t> position, sequence;  // [n_tokens], empty for a reserve pass
  std::map<int32_t, bool> carries;      // sequences that carry an input; whether it is another's
  std::vector<EncoderSequence> before;  // what abort goes back to
};

/// The oracle of encoder caches: what such a cache must do, written as lists. A sequence is where it continues and which
/// input it holds. The oracle knows no slots but their count: as many are taken as there are distinct inputs in the lists.
class EncoderOracle {
 public:
  EncoderOracle(const kvc_cache_desc& cache, const kvc_encoder_desc& encoder);

  kvc_status begin(int32_t n, const int32_t* position, const int32_t* sequence,
                   const uint32_t* token_flags, uint32_t flags);
  kvc_status fits(int32_t n, const int32_t* position, const int32_t* sequence,
                  const uint32_t* token_flags) const;
  /// The statuses of the puts for an input of n positions.
  kvc_status may_put(int32_t layer, int64_t n) const;
  kvc_status may_put_input(int32_t layer, int32_t sequence, int64_t n) const;
  /// The status was OK: k, v are what the caller's tensors hold, [n, n_kv_heads, head_dim].
  void put_input(int32_t layer, int32_t sequence, int64_t n, const std::vector<float>& k,
                 const std::vector<float>& v);
  kvc_status share(int32_t sequence, int32_t source);
  kvc_status commit();
  kvc_status commit_prefix(int32_t n, const int32_t* sequence, const int32_t* keep);
  kvc_status abort();
  kvc_status can_resume(int32_t sequence, int32_t want, int32_t* best) const;
  kvc_status resume(int32_t sequence, int32_t want, int32_t* got);
  kvc_status copy_prefix(int32_t src, int32_t dst, int32_t len, int32_t* got);
  kvc_status reorder(int32_t n, const int32_t* dst, const int32_t* src);
  kvc_status can_remove(int32_t sequence, int32_t begin, int32_t end) const;
  kvc_status remove(int32_t sequence, int32_t begin, int32_t end);

  /// The status of a call that needs a pass and a layer, and of one that needs the layer to be put too.
  kvc_status needs_pass(int32_t layer) const;
  kvc_status needs_put(int32_t layer) const;
  bool fully_put() const;
  /// The only sequence that carries an input in the pass, −1: none does, or several.
  int32_t only_carrying() const;

  Info info(int32_t sequence) const;
  int32_t length(int32_t sequence) const;  // of the input that it holds
  int64_t slots() const { return n_slots_; }
  int64_t slots_used() const { return static_cast<int64_t>(held().size()); }
  int64_t used() const;    // positions of inputs that sequences hold
  int64_t shared() const;  // and of those that several hold
  /// The input that a token of the open pass sees, −1: none, or one that was not put.
  int32_t seen(int32_t token) const;
  /// Row `row` of an input in a layer: [n_kv_heads, head_dim], zeros where the layer was not put.
  std::vector<double> key(int32_t layer, int32_t input, int32_t row) const;
  std::vector<double> value(int32_t layer, int32_t input, int32_t row) const;
  /// The attention of the open pass. Weights are by the row of the input.
  AttentionResult attend(int32_t layer, int32_t n_q_heads, const std::vector<double>& q,
                         const Bias& bias) const;

  kvc_cache_desc cache;
  std::vector<Constants> constants;        // [n_layers]
  std::vector<EncoderSequence> sequences;  // as if an open pass were committed
  std::vector<EncoderInput> inputs;        // only grows
  bool pass_open = false;
  EncoderPass pass;
  uint64_t passes = 0;  // committed

 private:
  bool legal_flags(int32_t n, const int32_t* sequence, const uint32_t* token_flags) const;
  bool legal_batch(int32_t n, const int32_t* position, const int32_t* sequence,
                   const uint32_t* token_flags) const;
  bool closable() const { return !pass_open || fully_put(); }
  void close(bool keep);
  bool can_continue(const EncoderSequence& sequence, int32_t g) const;
  int32_t largest_continuation(const EncoderSequence& sequence, int32_t want) const;
  static EncoderSequence cut(EncoderSequence sequence, int32_t g);
  std::set<int32_t> held() const;
  bool any_put(int32_t input) const;
  bool is_sequence(int32_t s) const { return s >= 0 && s < cache.max_sequences; }
  EncoderSequence& at(int32_t s) { return sequences[static_cast<size_t>(s)]; }
  const EncoderSequence& at(int32_t s) const { return sequences[static_cast<size_t>(s)]; }

  int64_t n_slots_ = 0;
};

}  // namespace model
