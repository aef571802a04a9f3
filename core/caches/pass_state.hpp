#pragma once
#include <algorithm>
#include <cstdint>

#include "core/base/carver.hpp"
#include "core/base/status.hpp"

namespace kvc {

enum class CacheState : uint32_t { idle = 0, pass = 1, reserve = 2, poisoned = 3 };

/// Which call a cache accepts in which state: the table at the top of cache.h, the same for every kind. Each need_…() is the
/// check of one column of the table.
class PassState {
 public:
  /// For messages: which call begins a pass, when a layer counts as put, and what kvc_commit() does with the others.
  struct Words {
    const char* begin = "kvc_begin";
    const char* put = "put";
    const char* unput = "fills them with zeros";
  };

  PassState(int32_t n_layers, const Words& words) : n_layers_(n_layers), words_(words) {}
  void carve(Carver& carver) {
    was_put_ = carver.take<uint8_t>(static_cast<uint64_t>(n_layers_), 64);
  }

  CacheState state() const { return state_; }
  bool is_open() const { return state_ == CacheState::pass; }
  bool is_reserve() const { return state_ == CacheState::reserve; }
  /// Whether the pass is done by a graph that was captured before.
  bool is_replay() const { return is_open() && replays_; }
  int32_t n_tokens() const { return n_tokens_; }
  uint64_t n_committed() const { return n_committed_; }

  Status need_pass() const {
    if (state_ != CacheState::idle) return Status::ok;
    return fail(Status::bad_state, "no pass is open: call %s first", words_.begin);
  }
  Status need_no_pass(const char* what) const {
    if (state_ == CacheState::idle) return Status::ok;
    return fail(Status::bad_state,
                "a pass is open: %s between passes; end it with kvc_commit or kvc_abort first", what);
  }
  Status need_own_work() const {
    if (!is_replay()) return Status::ok;
    return fail(
        Status::bad_state,
        "the open pass is a replay (KVC_BEGIN_REPLAY, KVC_ROWS_REPLAY): the graph that is launched "
        "puts and attends");
  }
  /// A reserve pass holds nothing: in it every layer counts as put.
  Status need_put(int32_t layer) const {
    if (!is_open() || was_put(layer)) return Status::ok;
    return fail(Status::bad_state, "layer %d was not put in this pass: call kvc_put for it first",
                layer);
  }
  /// What a call needs that ends an open pass on the side: a runner that died half-way must not leave zeros behind.
  Status need_fully_put() const {
    if (!is_open() || is_fully_put()) return Status::ok;
    return fail(
        Status::bad_state,
        "%d of %d layers were %s in the open pass, which this call would end: put the others, or "
        "end the pass with kvc_abort, or with kvc_commit, which %s",
        n_put_, n_layers_, words_.put, words_.unput);
  }

  bool was_put(int32_t layer) const { return was_put_[layer] != 0; }
  bool is_fully_put() const { return n_put_ == n_layers_; }
  void note_put(int32_t layer) {
    n_put_ += was_put_[layer] == 0;
    was_put_[layer] = 1;
  }

  /// A pass that has nothing to put counts as fully put from the start.
  void open(int32_t n_tokens, bool nothing_to_put, bool replays = false) {
    state_ = CacheState::pass;
    replays_ = replays;
    n_tokens_ = n_tokens;
    std::fill_n(was_put_, n_layers_, static_cast<uint8_t>(nothing_to_put));
    n_put_ = nothing_to_put ? n_layers_ : 0;
  }
  void open_reserve(int32_t n_tokens) {
    state_ = CacheState::reserve;
    n_tokens_ = n_tokens;
  }
  void close(bool committed) {
    n_committed_ += committed;
    state_ = CacheState::idle;
    n_tokens_ = 0;
  }

 private:
  int32_t n_layers_;
  Words words_;
  CacheState state_ = CacheState::idle;
  bool replays_ = false;        // the open pass
  int32_t n_tokens_ = 0;        // likewise
  int32_t n_put_ = 0;           // layers
  uint8_t* was_put_ = nullptr;  // [n_layers]
  uint64_t n_committed_ = 0;
};

}  // namespace kvc
