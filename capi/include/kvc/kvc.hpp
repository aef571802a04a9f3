// kvc/kvc.hpp: the C API for C++17 and later, with owners, guards and exceptions. Header only.
//
// Functions call the C function of the same name; the C header of the subject documents what it does, what it costs and what
// it requires. This header adds four things:
//
//   owners      Device, Cache and Operator destroy what they own; they can be moved and not copied
//   a guard     Pass opens a pass and aborts it unless it was committed, so that an exception restores the cache
//   exceptions  a failing call throws Error, which holds the status and the message. Each status that a program may want to
//               handle has a type of its own: CacheFull, WindowLost …
//   tensors     built from a pointer or a vector, and a shape: {k, {n_tokens, n_kv_heads, head_dim}}; {}: none
//
//   kvc::CacheDesc desc;
//   desc.n_layers = 30, desc.n_kv_heads = 3, desc.head_dim_k = 64;
//   desc.max_sequences = 1, desc.capacity = 2048, desc.max_batch = 512;
//   kvc::Cache cache(kvc::Device("cpu"), desc);
//   for each batch of tokens {
//     kvc::Pass pass(cache, positions, sequences);
//     for each layer {
//       cache.put(layer, {k, {n, 3, 64}}, {v, {n, 3, 64}});
//       cache.attention(layer, {q, {n, 9, 64}}, {out, {n, 9, 64}});
//     }
//     pass.commit();
//   }
//
// It includes a header for each subject, whose calls on caches are member functions of Cache:
//
//   base.hpp             errors, owners, tensors
//   device.hpp           where memory is and how many threads work
//   kinds.hpp            what a cache is created from
//   attention.hpp        constants of the model, attention, reading K, V and the mask
//   storage.hpp          codecs of storage types
//   encoder.hpp          caches of encoder inputs, for cross attention
//   recurrent.hpp        caches of the states of recurrent layers
//   rows.hpp             transformer caches, and batches of rows
//   lightning.hpp        caches of the states of linear attention
//   operators.hpp        attention operators by name, and attention without a cache
//   callers_operator.hpp operators of your own
//   partials.hpp         merging results over parts of the keys, dropout masks, modes
//   metadata.hpp         sizes of caches as models describe them, JSON, padding
//
// Threads: as in C. Const member functions of one cache may overlap each other; all others are exclusive. An overlap that
// breaks this rule throws Busy. Different caches are independent.
// A call that throws has changed nothing (DeviceFailure and InternalError excepted).
//
// The header needs C++17 and exceptions: constructors report errors, and they have no other way. Programs that are compiled
// with -fno-exceptions or for an older standard include <kvc/kvc.h>, which C++11 compiles and which never throws.
#ifndef KVC_KVC_HPP
#define KVC_KVC_HPP

#if __cplusplus < 201703L
#error "kvc/kvc.hpp needs C++17: compile with -std=c++17 or newer, or include <kvc/kvc.h>, which C++11 compiles"
#elif !defined(__cpp_exceptions)
#error "kvc/kvc.hpp throws exceptions: compile with -fexceptions, or include <kvc/kvc.h>, which returns statuses instead"
#else

#include <algorithm>
#include <array>
#include <cstdint>
#include <vector>

#include "attention.hpp"
#include "base.hpp"
#include "callers_operator.hpp"
#include "device.hpp"
#include "encoder.hpp"
#include "kinds.hpp"
#include "lightning.hpp"
#include "metadata.hpp"
#include "operators.hpp"
#include "partials.hpp"
#include "recurrent.hpp"
#include "rows.hpp"
#include "storage.hpp"

namespace kvc {
inline namespace api_0_2 {

// A sequence number that makes a token padding (see kvc_begin).
inline constexpr std::int32_t padding = KVC_NONE;

// A layer of a child of a wrapper.
struct ChildLayer {
  std::int32_t child = 0, layer = 0;
};

// The child that owns a layer of a wrapper, and the layer's number there. The handle stays its owner's.
struct LayerOwner {
  kvc_cache *handle = nullptr;
  std::int32_t layer = 0;
};

// ---- Cache ----------------------------------------------------------------------------------------------------------

class Cache : public Owner<kvc_cache, kvc_cache_destroy>,
              public AttentionCalls<Cache>,
              public EncoderCalls<Cache>,
              public StateCalls<Cache>,
              public RowCalls<Cache>,
              public LightningCalls<Cache>,
              public OperatorCalls<Cache> {
 public:
  // Creates a cache and reserves all memory that it will ever use. The type of the third argument is its kind.
  Cache(const Device &device, const CacheDesc &desc, const KindDesc &kind = {})
      : max_sequences_(desc.max_sequences), max_batch_(desc.max_batch) {
    const CacheDesc with_kind = of_kind(detail::kind_of(kind), desc);
    check(kvc_cache_create(device.handle(), &with_kind, detail::pointer_to(kind), &handle_));
  }
  // Creates a cache of any kind, with the defaults of that kind.
  Cache(const Device &device, Kind kind, const CacheDesc &desc)
      : max_sequences_(desc.max_sequences), max_batch_(desc.max_batch) {
    const CacheDesc with_kind = of_kind(kind, desc);
    check(kvc_cache_create(device.handle(), &with_kind, nullptr, &handle_));
  }
  // Makes one cache of several, which must be idle and empty: layer i is layer layers[i].layer of children[layers[i].child].
  // The children may be moved or closed afterwards; see kvc/hybrid.hpp for a cache from a description of layers.
  static Cache wrap(const std::vector<Cache *> &children, const std::vector<ChildLayer> &layers) {
    std::vector<kvc_cache *> handles;
    std::vector<std::int32_t> child(1), layer(1);  // not null when there are no layers
    Cache wrapper;
    for (const Cache *each : children) {
      handles.push_back(each == nullptr ? nullptr : each->handle());
      if (each == nullptr) continue;
      wrapper.max_sequences_ = std::max(wrapper.max_sequences_, each->max_sequences_);  // rows: all children have as many
      wrapper.max_batch_ = std::max(wrapper.max_batch_, each->max_batch_);
    }
    for (const ChildLayer &place : layers) {
      child.insert(child.end() - 1, place.child);
      layer.insert(layer.end() - 1, place.layer);
    }
    check(kvc_cache_wrap(handles.data(), detail::length("children", handles), child.data(), layer.data(),
                         detail::length("layers", layers), &wrapper.handle_));
    return wrapper;
  }

  // The bytes that such a cache would take; allocates nothing.
  static std::uint64_t memory_bytes(const Device &device, const CacheDesc &desc, const KindDesc &kind = {}) {
    return bytes_of(device, of_kind(detail::kind_of(kind), desc), detail::pointer_to(kind));
  }
  static std::uint64_t memory_bytes(const Device &device, Kind kind, const CacheDesc &desc) {
    return bytes_of(device, of_kind(kind, desc), nullptr);
  }

  // A pass. The guard Pass, below, calls begin and abort; call these yourself to keep a pass open between functions.
  void begin(const std::vector<std::int32_t> &position, const std::vector<std::int32_t> &sequence) {
    const std::int32_t n = detail::same_length("position", position, "sequence", sequence);
    begin(n, detail::elements(position), detail::elements(sequence));
  }
  void begin(const std::vector<std::int32_t> &position, const std::vector<std::int32_t> &sequence,
             const std::vector<std::uint32_t> &token_flags, std::uint32_t flags = 0, void *stream = nullptr) {
    detail::same_length("position", position, "token_flags", token_flags);
    const std::int32_t n = detail::same_length("position", position, "sequence", sequence);
    begin(n, detail::elements(position), detail::elements(sequence), token_flags.data(), flags, stream);
  }
  void begin(std::int32_t n_tokens, const std::int32_t *position, const std::int32_t *sequence,
             const std::uint32_t *token_flags = nullptr, std::uint32_t flags = 0, void *stream = nullptr) {
    check(kvc_begin(handle_, n_tokens, position, sequence, token_flags, flags, stream));
  }
  // Whether begin() would find room. Throws whatever else begin() would throw.
  bool fits(const std::vector<std::int32_t> &position, const std::vector<std::int32_t> &sequence) const {
    const std::int32_t n = detail::same_length("position", position, "sequence", sequence);
    return fits(n, detail::elements(position), detail::elements(sequence));
  }
  bool fits(const std::vector<std::int32_t> &position, const std::vector<std::int32_t> &sequence,
            const std::vector<std::uint32_t> &token_flags) const {
    detail::same_length("position", position, "token_flags", token_flags);
    const std::int32_t n = detail::same_length("position", position, "sequence", sequence);
    return fits(n, detail::elements(position), detail::elements(sequence), token_flags.data());
  }
  bool fits(std::int32_t n_tokens, const std::int32_t *position, const std::int32_t *sequence,
            const std::uint32_t *token_flags = nullptr) const {
    const kvc_status status = kvc_fits(handle_, n_tokens, position, sequence, token_flags);
    if (status != KVC_E_CACHE_FULL) check(status);
    return status == KVC_OK;
  }
  void commit() { check(kvc_commit(handle_)); }
  void commit_prefix(const std::vector<std::int32_t> &sequence, const std::vector<std::int32_t> &keep) {
    const std::int32_t n = detail::same_length("sequence", sequence, "keep", keep);
    check(kvc_commit_prefix(handle_, n, sequence.data(), keep.data()));
  }
  void abort() { check(kvc_abort(handle_)); }

  // Sequences. can_resume, resume and copy_prefix return the position at which the sequence can continue.
  std::int32_t can_resume(std::int32_t sequence, std::int32_t want) const {
    std::int32_t best = 0;
    check(kvc_can_resume(handle_, sequence, want, &best));
    return best;
  }
  std::int32_t resume(std::int32_t sequence, std::int32_t want) {
    std::int32_t got = 0;
    check(kvc_resume(handle_, sequence, want, &got));
    return got;
  }
  std::int32_t copy_prefix(std::int32_t source, std::int32_t destination, std::int32_t len) {
    std::int32_t got = 0;
    check(kvc_copy_prefix(handle_, source, destination, len, &got));
    return got;
  }
  void reorder(const std::vector<std::int32_t> &destination, const std::vector<std::int32_t> &source) {
    const std::int32_t n = detail::same_length("destination", destination, "source", source);
    check(kvc_reorder(handle_, n, destination.data(), source.data()));
  }
  void remove(std::int32_t sequence, std::int32_t begin, std::int32_t end = KVC_SEQ_END) {
    check(kvc_remove(handle_, sequence, begin, end));
  }
  // Whether remove() would succeed: false for WindowLost, NotSupported and CacheFull; throws whatever else it would throw.
  bool can_remove(std::int32_t sequence, std::int32_t begin, std::int32_t end = KVC_SEQ_END) const {
    const kvc_status status = kvc_can_remove(handle_, sequence, begin, end);
    if (status == KVC_E_WINDOW_LOST || status == KVC_E_NOT_SUPPORTED || status == KVC_E_CACHE_FULL) return false;
    check(status);
    return true;
  }

  // Of a wrapper: by which handle its layers can be put directly.
  LayerOwner owner(std::int32_t layer) const {
    LayerOwner found;
    check(kvc_cache_child(handle_, layer, &found.handle, &found.layer));
    return found;
  }

  // Watching.
  kvc_sequence_info sequence(std::int32_t index) const {
    kvc_sequence_info info = KVC_SEQUENCE_INFO_INIT;
    check(kvc_sequence_query(handle_, index, &info));
    return info;
  }
  /// May overlap every other call, destruction too: never BUSY.
  kvc_stats stats() const {
    kvc_stats stats = KVC_STATS_INIT;
    check(kvc_cache_stats(handle_, &stats));
    return stats;
  }
  std::array<std::uint64_t, 2> digest() const {
    std::array<std::uint64_t, 2> digest{};
    check(kvc_state_digest(handle_, digest.data()));
    return digest;
  }
  void check_invariants() const { check(kvc_check(handle_)); }

 private:
  friend class StateCalls<Cache>;
  friend class RowCalls<Cache>;

  Cache() noexcept = default;
  static std::uint64_t bytes_of(const Device &device, const CacheDesc &desc, const void *of_its_kind) {
    std::uint64_t bytes = 0;
    check(kvc_cache_memory_bytes(device.handle(), &desc, of_its_kind, &bytes));
    return bytes;
  }
  static CacheDesc of_kind(Kind kind, CacheDesc desc) {
    desc.kind = static_cast<std::uint32_t>(kind);
    return desc;
  }

  std::int32_t max_sequences_ = 0, max_batch_ = 0;
};

// ---- Pass -----------------------------------------------------------------------------------------------------------

// Keeps a pass open for a block: aborts it at the end of the block unless it was committed. The cache must not move, and no
// other pass of it may begin meanwhile, or that one would be aborted.
class Pass {
 public:
  Pass(Cache &cache, const std::vector<std::int32_t> &position, const std::vector<std::int32_t> &sequence)
      : cache_(cache) {
    cache.begin(position, sequence);
  }
  Pass(Cache &cache, const std::vector<std::int32_t> &position, const std::vector<std::int32_t> &sequence,
       const std::vector<std::uint32_t> &token_flags, std::uint32_t flags = 0, void *stream = nullptr)
      : cache_(cache) {
    cache.begin(position, sequence, token_flags, flags, stream);
  }
  Pass(Cache &cache, std::int32_t n_tokens, const std::int32_t *position, const std::int32_t *sequence,
       const std::uint32_t *token_flags = nullptr, std::uint32_t flags = 0, void *stream = nullptr)
      : cache_(cache) {
    cache.begin(n_tokens, position, sequence, token_flags, flags, stream);
  }
  Pass(Cache &cache, const Rows &rows) : cache_(cache) { cache.begin_rows(rows); }
  Pass(const Pass &) = delete;
  Pass &operator=(const Pass &) = delete;
  ~Pass() {
    if (open_) kvc_abort(cache_.handle());
  }

  void commit() {
    cache_.commit();
    open_ = false;
  }
  void commit_prefix(const std::vector<std::int32_t> &sequence, const std::vector<std::int32_t> &keep) {
    cache_.commit_prefix(sequence, keep);
    open_ = false;
  }
  void abort() {
    cache_.abort();
    open_ = false;
  }

 private:
  Cache &cache_;
  bool open_ = true;
};

}  // namespace api_0_2
}  // namespace kvc

#endif
#endif
