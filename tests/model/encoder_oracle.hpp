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
  int32_t length = 0;     // 0: no layer was put
  std::vector<char> put;  // [n_layers]
  StoredRows k, v;        // [n_layers, length, n_kv_heads]
};

struct EncoderSequence {
  int32_t next = 0;
  int32_t input = -1;  // index into EncoderOracle::inputs, −1: none
  int32_t at = -1;     // position of the token that carried it
  int32_t first = -1;  // position of the first input of its history
};

struct EncoderPass : Batch {
  std::map<int32_t, bool> carries;      // sequences that carry an input; whether it is another's
  std::vector<EncoderSequence> before;  // what abort goes back to
};

/// The oracle of encoder caches: what such a cache must do, written as lists. A sequence is where it continues and which
/// input it holds. The oracle knows no slots but their count: as many are taken as there are distinct inputs in the lists.
class EncoderOracle : public ListKind<EncoderSequence> {
 public:
  EncoderOracle(const kvc_cache_desc& cache, const kvc_encoder_desc& encoder);

  /// The statuses of the puts for an input of n positions.
  kvc_status may_put(int32_t layer, int64_t n) const;
  kvc_status may_put_input(int32_t layer, int32_t sequence, int64_t n) const;
  /// The status was OK: k, v are what the caller's tensors hold, [n, n_kv_heads, head_dim].
  void put_input(int32_t layer, int32_t sequence, int64_t n, const std::vector<float>& k,
                 const std::vector<float>& v);
  /// The same of codes and scales, [n, n_kv_heads] rows of bytes.
  void put_codes(int32_t layer, int32_t sequence, int64_t n, const Oracle::Bytes& k,
                 const Oracle::Bytes& v);
  kvc_status may_bind_scales(bool of_k, bool of_v) const;
  kvc_status share(int32_t sequence, int32_t source);

  /// The status of a call that needs a pass and a layer, and of one that needs the layer to be put too.
  kvc_status needs_pass(int32_t layer) const;
  kvc_status needs_put(int32_t layer) const;
  bool fully_put() const override;
  const Batch& batch() const override { return pass; }
  /// The only sequence that carries an input in the pass, −1: none does, or several.
  int32_t only_carrying() const;

  Info info(int32_t sequence) const override;
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
  /// The row of `input.k` and `input.v` where that vector is stored.
  size_t stored_row(int32_t layer, int32_t input, int32_t row, int32_t head) const;
  /// The attention of the open pass. Weights are by the row of the input.
  AttentionResult attend(int32_t layer, int32_t n_q_heads, const std::vector<double>& q,
                         const Bias& bias) const;

  std::vector<Constants> constants;  // [n_layers]
  Storage storage_k, storage_v;
  std::vector<float> scales_k, scales_v;  // [n_layers, n_kv_heads] of f8
  std::vector<EncoderInput> inputs;       // only grows
  EncoderPass pass;

 private:
  uint32_t known_flags() const override { return KVC_TOKEN_ENCODER_INPUT; }
  bool legal_tokens(int32_t n, const int32_t* sequence, const uint32_t* token_flags) const override;
  kvc_status room(int32_t n, const int32_t* sequence, const uint32_t* token_flags) const override;
  kvc_status may_keep(const std::vector<char>&) const override { return KVC_OK; }
  bool can_continue(int32_t sequence, int32_t g) const override;
  int32_t best(int32_t sequence, int32_t want) const override;
  kvc_status may_remove_middle(int32_t sequence, int32_t begin, int32_t end) const override;
  void open(int32_t n, const int32_t* position, const int32_t* sequence,
            const uint32_t* token_flags, bool reserve) override;
  void keep(const std::vector<char>& kept) override;
  void settle() override { mark_put(); }
  void forget() override;
  void clear_pass() override { pass = {}; }
  EncoderSequence cut_to(EncoderSequence sequence, int32_t g) const override;
  void remove_middle(int32_t sequence, int32_t begin, int32_t end) override;

  void mark_put();
  /// store(input, from, to, scale of the head) keeps the rows of one head.
  template <class Store>
  void store_rows(int32_t layer, int32_t sequence, int64_t n, const Store& store);
  std::set<int32_t> held() const;
  bool any_put(int32_t input) const;

  int64_t n_slots_ = 0;
};

}  // namespace model
