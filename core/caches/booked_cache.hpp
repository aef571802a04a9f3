#pragma once
#include <memory>
#include <mutex>
#include <new>

#include "core/base/health.hpp"
#include "core/base/planted.hpp"
#include "core/caches/cache.hpp"
#include "core/caches/memory.hpp"
#include "core/caches/pass_state.hpp"
#include "core/cells/batch.hpp"
#include "core/cells/sequence_checks.hpp"
#include "core/device.hpp"

namespace kvc {

/// What the kinds of cache share that keep a book of their sequences over memory of their own: the state of the pass, the book
/// behind every call that moves sequences, and creation. `Book` decides and remembers; the kind stores what it is told to.
///
/// The kind provides carve_host() and carve_device(), attach(), and the members that are pure here; carve_pinned() where it has
/// memory of that place, and too_large() where it has other bounds than keys and values have.
template <class Book>
class BookedCache : public Cache {
 public:
  const CacheBounds& bounds() const final { return bounds_; }
  const DeviceInfo& device() const final { return device_info_; }
  const Health& health() const final { return health_; }
  int32_t n_tokens() const final { return pass_.n_tokens(); }

  Status fits(const Batch& batch, bool reserve) const final {
    const std::lock_guard lock(planning_);
    return can_begin(batch, reserve);
  }

  // Asking.
  Status need_pass() const final { return pass_.need_pass(); }
  Status need_fully_put() const final { return pass_.need_fully_put(); }
  KnownFlags known_flags() const final { return book_.known_flags; }
  Status can_begin(const Batch& batch, bool reserve) const final {
    const Status valid = reserve ? check_reserve(batch) : book_.check_batch(batch);
    if (valid != Status::ok) return valid;
    if (Status s = pass_.need_fully_put(); s != Status::ok) return s;
    if (Status s = check_replay(batch, reserve); s != Status::ok) return s;
    return reserve ? Status::ok : book_.check_room(batch);
  }
  Status check_stream(const Batch& batch, bool reserve) const final {
    bool records = false;
    if (Status s = health_.after(device_->is_recording(batch.stream, &records)); s != Status::ok)
      return s;
    if (!records) return Status::ok;
    if (reserve && pass_recorder() != nullptr) return check_before_recording();
    if (reserve) {
      return fail(Status::not_supported,
                  "the stream is being captured, and the cache's device captures no passes");
    }
    return fail(
        Status::bad_state,
        "the stream is being captured: begin what the graph is to do as a reserve pass "
        "(KVC_BEGIN_RESERVE, KVC_ROWS_RESERVE), and after the capture the passes that it does as "
        "replays (KVC_BEGIN_REPLAY, KVC_ROWS_REPLAY)");
  }
  Status need_no_recording(const char* call) const final {
    bool records = recorder_ != nullptr;
    if (!records && device_info_.takes_stream) {
      if (Status s = health_.after(device_->is_recording(stream_, &records)); s != Status::ok)
        return s;
    }
    if (!records) return Status::ok;
    return fail(Status::not_supported,
                "%s while the stream is being captured: what it does cannot become part of a graph",
                call);
  }
  Status check_end(const char* call) const final {
    return pass_.is_open() ? need_no_recording(call) : Status::ok;
  }
  Status check_distinct(int32_t n, const int32_t* sequence) const final {
    return book_.check_distinct(n, sequence);
  }
  Status check_kept(int32_t sequence, int32_t keep) const final {
    if (pass_.is_reserve()) return Status::ok;
    const Status s = check_kept_of(sequence, keep, book_.sequence(sequence).n_added);
    return s == Status::ok ? check_kept_tokens(sequence, keep) : s;
  }
  int32_t best_continuation(int32_t sequence, int32_t want) const final {
    return book_.best_continuation(sequence, want);
  }
  Status check_reorder(int32_t n, const int32_t* destination, const int32_t* source) const final {
    return book_.check_reorder(n, destination, source);
  }
  SequenceInfo info(int32_t sequence) const final { return book_.info(sequence); }
  Status check() const override { return book_.check(pass_.is_open()); }

  // Doing.
  Status open(const Batch& batch, bool reserve) final {
    tokens_per_row_ = batch.rows != nullptr ? batch.rows->q_len : 0;
    if (reserve) {
      bool records = false;
      if (Status s = health_.after(device_->is_recording(batch.stream, &records)); s != Status::ok)
        return s;
      pass_.open_reserve(batch.n_tokens);
      if (records) begin_recording(batch);
      return Status::ok;
    }
    book_.open_pass(batch);
    stream_ = batch.stream;
    return health_.ok() ? open_pass(batch) : health_.status();
  }
  void keep_added(int32_t sequence, int32_t keep) final {
    if (pass_.is_open()) book_.keep_added(sequence, keep);
  }
  Status end_pass() final {
    if (!pass_.is_open()) {
      end_recording();
      pass_.close(pass_.is_reserve() && planted(Bug::reserve_pass_counted));
      return Status::ok;
    }
    if (Status s = settle_unput(); s != Status::ok) return s;
    book_.commit_pass();
    pass_.close(true);
    return follow_book();
  }
  Status drop_pass() final {
    if (pass_.is_open()) book_.abort_pass();
    end_recording();
    pass_.close(false);
    return follow_book();
  }
  Status cut(int32_t sequence, int32_t position) final {
    book_.cut(sequence, position);
    return follow_book();
  }
  Status copy(int32_t source, int32_t destination, int32_t position) override {
    book_.copy_prefix(source, destination, position);
    return follow_book();
  }
  Status apply_reorder(int32_t n, const int32_t* destination, const int32_t* source) override {
    book_.reorder(n, destination, source);
    return follow_book();
  }

 protected:
  template <class Rules>
  BookedCache(const std::shared_ptr<Device>& device, const CacheBounds& bounds, const Rules& rules,
              const PassState::Words& words)
      : device_(device),
        bounds_(bounds),
        device_info_(device->info()),
        memory_(device),
        pass_(bounds.n_layers, words),
        book_(rules, health_) {}

  /// Bytes of the blocks that a cache of this kind takes from its device.
  template <class Kind, class Settings>
  static Status memory_bytes_of(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                                const Settings& settings, uint64_t* bytes) {
    Kind cache(device, bounds, settings);
    if (Status s = measure(cache); s != Status::ok) return s;
    *bytes = cache.memory_.bytes();
    return Status::ok;
  }

  template <class Kind, class Settings>
  static Status create_of(const std::shared_ptr<Device>& device, const CacheBounds& bounds,
                          const Settings& settings, std::shared_ptr<Cache>* out) {
    std::shared_ptr<Kind> cache(new (std::nothrow) Kind(device, bounds, settings));
    if (!cache)
      return fail(Status::out_of_memory, "the process has no memory for a cache's object");
    if (Status s = measure(*cache); s != Status::ok) return s;
    if (Status s = cache->memory_.take(bounds.prefault); s != Status::ok) return s;
    Carver host(cache->memory_.host()), on_device(cache->memory_.on_device()),
        pinned(cache->memory_.pinned());
    cache->carve_host(host);
    cache->carve_device(on_device);
    cache->carve_pinned(pinned);
    cache->book_.reset();
    if (Status s = cache->attach(); s != Status::ok) return s;
    *out = std::move(cache);
    return Status::ok;
  }

  /// For calls that bind what stored tokens depend on: they need every sequence to begin at 0.
  Status need_empty(const char* call) const {
    for (int32_t sequence = 0; sequence < bounds_.max_sequences; ++sequence) {
      const int32_t next = book_.sequence(sequence).next;
      if (next == 0) continue;
      return fail(Status::bad_state,
                  "sequence %d continues at %d: call %s while the cache is empty, right after "
                  "kvc_cache_create, or empty every sequence with kvc_remove first",
                  sequence, next, call);
    }
    return Status::ok;
  }

  void carve_pinned(Carver&) {}

  /// Refuses bounds for which no address space has room.
  Status too_large() const {
    return fail(
        Status::overflow,
        "n_layers %d, n_kv_heads %d, head_dim_k %d, head_dim_v %d, max_batch %d and %d cells need "
        "more bytes than the address space has",
        bounds_.n_layers, bounds_.n_kv_heads, bounds_.head_dim_k, bounds_.head_dim_v,
        bounds_.max_batch, bounds_.cells);
  }

  CacheState state() const { return health_.ok() ? pass_.state() : CacheState::poisoned; }

  // Passes that a graph does.
  /// Null where the kind, or its device, can record none.
  virtual PassRecorder* pass_recorder() const { return nullptr; }
  /// Of passes that no graph can do.
  virtual Status check_replayed(const Batch&) const { return Status::ok; }
  /// A graph is captured from now on: what the kind remembers of the pass before has no meaning in it.
  virtual void forget_pass() {}

  // What a kind adds to a pass.
  virtual Status open_pass(const Batch& batch) = 0;  // the book's is open
  /// Whether the first n tokens that the pass added to a sequence make sense without the others.
  virtual Status check_kept_tokens(int32_t, int32_t) const { return Status::ok; }
  /// What was not put gets its meaning, before the book commits.
  virtual Status settle_unput() = 0;
  /// What the book has changed happens in memory: with zero_on_free what became free becomes zeros.
  virtual Status follow_book() = 0;

  std::shared_ptr<Device> device_;
  CacheBounds bounds_;
  DeviceInfo device_info_;
  CacheMemory memory_;
  Health health_;
  mutable std::mutex planning_;  // const calls plan in the book's scratch, and may overlap
  PassState pass_;
  Book book_;
  PassRecorder* recorder_ = nullptr;  // of the open pass, which a graph records
  void* stream_ = nullptr;            // of the last pass that was no reserve pass
  int32_t tokens_per_row_ = 0;        // likewise; 0: its tokens are a list

 private:
  /// A begin ends the pass before.
  Status check_before_recording() const {
    if (!pass_.is_open()) return Status::ok;
    return fail(Status::bad_state,
                "a pass is open while the stream is being captured, and its end cannot become part "
                "of a graph: commit it before the capture begins");
  }
  Status check_replay(const Batch& batch, bool reserve) const {
    if (!batch.replay) return Status::ok;
    const PassRecorder* const recorder = pass_recorder();
    if (recorder == nullptr) return check_no_replay(batch);
    if (!reserve) {
      const Status s = recorder->check_replay(batch.n_tokens);
      return s == Status::ok ? check_replayed(batch) : s;
    }
    return fail(
        Status::invalid_argument,
        "flags asks for a reserve pass (KVC_BEGIN_RESERVE, KVC_ROWS_RESERVE) and for a replay "
        "(KVC_BEGIN_REPLAY, KVC_ROWS_REPLAY): the one sizes or captures a graph, the other is a "
        "pass that it does");
  }
  void begin_recording(const Batch& batch) {
    forget_pass();
    recorder_ = pass_recorder();
    recorder_->begin_recording(batch.n_tokens, batch.stream);
  }
  void end_recording() {
    if (recorder_ != nullptr) recorder_->end_recording();
    recorder_ = nullptr;
  }

  /// Lays the cache out over no blocks, which touches nothing.
  template <class Kind>
  static Status measure(Kind& cache) {
    Carver host, on_device, pinned;
    cache.carve_host(host);
    cache.carve_device(on_device);
    cache.carve_pinned(pinned);
    return cache.memory_.measure(host, on_device, pinned) ? Status::ok : cache.too_large();
  }

  /// A batch of which only the number and the flags of its tokens count.
  Status check_reserve(const Batch& batch) const {
    if (Status s = check_n_tokens(batch, bounds_.max_batch); s != Status::ok) return s;
    for (int32_t token = 0; token < batch.n_tokens; ++token) {
      if (Status s = check_token_flags(batch, token, book_.known_flags); s != Status::ok) return s;
    }
    return Status::ok;
  }
};

/// A cache whose removals change the book alone: what the book allows cannot fail.
template <class Book>
class LabelledCache : public BookedCache<Book> {
 public:
  Status check_removal(int32_t sequence, int32_t begin, int32_t end) const final {
    return this->book_.check_removal(sequence, begin, end);
  }
  Status prepare_removal(int32_t sequence, int32_t begin, int32_t end) final {
    removal_ = {sequence, begin, end};
    return this->book_.check_removal(sequence, begin, end);
  }
  Status apply_removal() final {
    this->book_.remove(removal_.sequence, removal_.begin, removal_.end);
    return this->follow_book();
  }
  Status cancel_removal() final { return Status::ok; }

 protected:
  using BookedCache<Book>::BookedCache;

 private:
  struct {
    int32_t sequence, begin, end;
  } removal_ = {};  // that is prepared
};

}  // namespace kvc
