#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <set>
#include <vector>

#include "formats.hpp"
#include "kind.hpp"
#include "storage.hpp"

/// The oracle: what a causal cache must do, written as lists. A sequence is a list of tokens; a
/// token is a position and the number of a content; a content is what was put. It knows no cells
/// but their count: as many are in use as there are distinct contents in the lists. Nothing is fast
/// here, and nothing resembles the library.
namespace model {

/// How a layer's keys turn: pair i by position * frequency[i]. n_dims 0: they do not.
struct Rope {
  int32_t first_dim = 0;
  int32_t n_dims = 0;
  bool halves = false;
  std::vector<double> frequency;
};

/// Turns `vector` by `positions` (RoPE), in place.
void turn(const Rope& rope, double positions, double* vector);

/// Constants of the model for one layer.
struct Constants {
  int32_t n_q_heads = 0;  // 0: never bound, taken from q
  double scale = 0;       // 0: 1 / sqrt(head_dim_k)
  double softcap = 0;
  std::vector<double> slopes;  // empty: none
  std::vector<double> sinks;   // empty: none
};

/// A caller's shift function: turns one token's keys of a layer, [n_kv_heads, head_dim_k] as they are stored, for another
/// position. In the layer `refuses_at` it returns `refusal` instead.
struct Shift {
  std::function<void(int32_t layer, int32_t from, int32_t to, float* k)> turn;  // empty: none is bound
  int32_t refuses_at = -1;
  kvc_status refusal = KVC_OK;
};

struct Token {
  int32_t position = 0;
  int32_t content = 0;  // index into Oracle::contents
};

struct Sequence {
  std::vector<Token> tokens;  // positions ascend
  int32_t next = 0;
  int32_t lost_below = 0;
};

struct Content {
  int32_t rotated_for = 0;  // the position that its key was turned for
  std::vector<char> put;    // [n_layers]: stored, or kept as zeros
  StoredRows k, v;          // [n_layers, n_kv_heads]; with V_IN_K v has no rows
};

struct Pass : Batch {
  std::vector<int32_t> content;  // [n_tokens], empty for a reserve pass; padding has no content: -1
  std::vector<char> except;      // [n_tokens]
  std::vector<uint32_t> type;    // [n_tokens] 0: none
  std::vector<char> put;         // [n_layers]
  std::vector<Sequence> before;  // what abort goes back to
};

class Oracle : public ListKind<Sequence> {
 public:
  Oracle(const kvc_cache_desc& cache, const kvc_causal_desc& causal);

  /// k, v: what the caller's tensors hold, [n_tokens, n_kv_heads, head_dim]. With V_IN_K v is not looked at.
  kvc_status put(int32_t layer, const std::vector<float>& k, const std::vector<float>& v);
  /// The same of codes and scales, [n_tokens, n_kv_heads] rows of bytes.
  struct Bytes {
    std::vector<uint8_t> codes, scales;
  };
  kvc_status put_codes(int32_t layer, const Bytes& k, const Bytes& v);
  kvc_status set_causal(int32_t n, const int32_t* except) override;

  /// The status of binding constants; binding itself is to set `rope` or `shift.turn`.
  kvc_status may_bind_rope(const Rope& rope) const;
  kvc_status may_bind_shift(bool takes_away) const;
  kvc_status may_bind_scales(bool of_k, bool of_v) const;

  /// The status of a call that needs this layer to be put in the open pass: attention and get.
  kvc_status needs_put(int32_t layer) const;
  /// The status of a call that needs a pass and a layer: mask, history.
  kvc_status needs_pass(int32_t layer) const {
    if (!pass_open) return KVC_E_BAD_STATE;
    return layer >= 0 && layer < cache.n_layers ? KVC_OK : KVC_E_INVALID_ARGUMENT;
  }

  Info info(int32_t sequence) const override;
  int64_t used() const;    // cells held by at least one sequence
  int64_t shared() const;  // cells held by more than one
  int64_t pool() const { return pool_; }
  int32_t pending_rotation(const Token& token) const;
  bool sees(int32_t batch_index, int32_t position) const;
  bool same_block(size_t batch_index, size_t other) const;  // see each other because of their type
  std::vector<Token> visible(int32_t batch_index) const;
  bool fully_put() const override;
  const Batch& batch() const override { return pass; }
  bool turns() const;  // does any layer rotate its keys?

  /// The key of a token as it must look now: with its pending rotation applied. [n_kv_heads, head_dim_k]
  std::vector<double> key(int32_t layer, const Token& token) const;
  std::vector<double> value(int32_t layer, const Token& token) const;
  /// What a query head is multiplied with, as stored, and the query as it is multiplied: turned the other way by what the key owes,
  /// then rotated as the key is.
  const float* stored_key(int32_t layer, const Token& token, int32_t head) const;
  std::vector<double> as_multiplied(int32_t layer, const Token& token, const double* q) const;
  /// Values as stored, [n_kv_heads, head_dim_v].
  std::vector<float> stored_value(int32_t layer, const Token& token) const;
  bool v_in_k() const { return cache.flags & KVC_CACHE_V_IN_K; }

  /// kvc_get() rewrites the keys that owe a rotation and that some token of the batch sees; a cell
  /// that somebody else holds too, hidden or not, is copied first. Its status, then which keys.
  kvc_status get(int32_t layer, bool wants_k, bool wants_v) const;
  bool get_pays() const { return storage_k.is_plain(); }
  struct Debt {
    int32_t sequence, position;
  };
  std::vector<Debt> debts() const;
  /// One of them has been rewritten: it has no pending rotation from now on. `k` [n_layers, n_kv_heads,
  /// head_dim_k] are the rounded keys. It stays so when the pass is aborted.
  void pay(int32_t sequence, int32_t position, const std::vector<float>& k);

  /// kvc_get_copy() shows every cell once: where two sequences of the batch see a cell at different positions, and its key owes them
  /// different rotations, the one that comes later in the batch gets a copy. Its status, then what it does.
  kvc_status get_copy(int32_t layer) const;
  void split();

  kvc_causal_desc causal;
  bool limited = false;    // is memory limited?
  int32_t memory = 0;      // when it is
  std::vector<Rope> rope;  // [n_layers]
  Shift shift;
  std::vector<Constants> constants;  // [n_layers]
  Storage storage_k, storage_v;
  std::vector<float> scales_k, scales_v;  // [n_layers, n_kv_heads] of f8

  std::vector<Content> contents;  // only grows
  Pass pass;

 private:
  uint32_t known_flags() const override { return 0xffff0000u | KVC_TOKEN_SEES_LATER; }
  bool legal_tokens(int32_t n, const int32_t* sequence, const uint32_t* token_flags) const override;
  kvc_status room(int32_t n, const int32_t* sequence, const uint32_t* token_flags) const override;
  kvc_status may_keep(const std::vector<char>& kept) const override;
  bool can_continue(int32_t sequence, int32_t g) const override;
  int32_t best(int32_t sequence, int32_t want) const override;
  kvc_status may_remove_middle(int32_t sequence, int32_t begin, int32_t end) const override;
  kvc_status shift_refusal(int32_t sequence, int32_t end) const override;
  void open(int32_t n, const int32_t* position, const int32_t* sequence,
            const uint32_t* token_flags, bool reserve) override;
  void keep(const std::vector<char>& kept) override;
  void settle() override;
  void forget() override { sequences = pass.before; }
  void clear_pass() override { pass = {}; }
  Sequence cut_to(Sequence sequence, int32_t g) const override;
  void remove_middle(int32_t sequence, int32_t begin, int32_t end) override;

  int64_t low(int64_t g) const;
  int32_t limit() const;
  /// What lost_below of a sequence becomes when [begin, end) is removed; -1: that lies too far back.
  int32_t lost_after_removal(const Sequence& sequence, int32_t begin, int32_t end) const;
  int64_t n_moved(const Sequence& sequence, int32_t end) const;
  int32_t shifted(const Token& token, int32_t to);
  std::vector<Debt> splits() const;
  void replace_content(int32_t sequence, int32_t old, const Content& by);
  size_t row(int32_t layer, int32_t head) const {
    return static_cast<size_t>(layer * cache.n_kv_heads + head);
  }
  template <class Store>
  kvc_status store_tokens(int32_t layer, const Store& store);
  std::map<int32_t, std::set<int32_t>> holders() const;
  int64_t free_now() const;

  int64_t pool_ = 0;
};

}  // namespace model
