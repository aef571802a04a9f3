// kvc/kvc.hpp: the C API for C++17 and later, with owners, guards and exceptions. Header only.
//
// Each member function calls the C function of the same name; the C headers (cache.h, attention.h, storage.h, encoder.h,
// recurrent.h, wrapper.h) document what it does, what it costs and what it requires. This header adds four things:
//
//   owners      Device and Cache destroy what they own; they can be moved and not copied
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
// It includes base.hpp (errors and tensors) and storage.hpp (codecs of storage types).
//
// Threads: as in C. Const member functions of one cache may overlap each other; all others are exclusive. An overlap that
// breaks this rule throws Busy. Different caches are independent.
// A call that throws has changed nothing (DeviceFailure and InternalError excepted).
//
// The header needs C++17 and exceptions: constructors report errors, and they have no other way. Programs that are compiled with
// -fno-exceptions or for an older standard include <kvc/kvc.h>, which C++11 compiles and which never throws.
#ifndef KVC_KVC_HPP
#define KVC_KVC_HPP

#if __cplusplus < 201703L
#error "kvc/kvc.hpp needs C++17: compile with -std=c++17 or newer, or include <kvc/kvc.h>, which C++11 compiles"
#elif !defined(__cpp_exceptions)
#error "kvc/kvc.hpp throws exceptions: compile with -fexceptions, or include <kvc/kvc.h>, which returns statuses instead"
#else

#include <algorithm>
#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "base.hpp"
#include "storage.hpp"

namespace kvc {
inline namespace api_0_2 {

// ---- Descriptors: the C structs, with struct_size set and all else at its default -----------------------------------

struct DeviceDesc : kvc_device_desc {
  DeviceDesc() noexcept : kvc_device_desc(KVC_DEVICE_DESC_INIT) {}
};

// A sequence number that makes a token padding (see kvc_begin).
inline constexpr std::int32_t padding = KVC_NONE;

enum class Kind : std::uint32_t {
  causal = KVC_CAUSAL,
  encoder = KVC_ENCODER,
  recurrent = KVC_RECURRENT,
  wrapper = KVC_WRAPPER,
  transformer = KVC_TRANSFORMER,
  lightning = KVC_LIGHTNING
};

struct CacheDesc : kvc_cache_desc {  // Cache fills in the kind
  CacheDesc() noexcept : kvc_cache_desc(KVC_CACHE_DESC_INIT) {}
};

struct CausalDesc : kvc_causal_desc {
  CausalDesc() noexcept : kvc_causal_desc(KVC_CAUSAL_DESC_INIT) {}
};

struct EncoderDesc : kvc_encoder_desc {
  EncoderDesc() noexcept : kvc_encoder_desc(KVC_ENCODER_DESC_INIT) {}
};

struct RecurrentDesc : kvc_recurrent_desc {  // the size of one part or both has no default
  RecurrentDesc() noexcept : kvc_recurrent_desc(KVC_RECURRENT_DESC_INIT) {}
};

// What only one kind needs, and with it the kind: a CausalDesc (all defaults: {}), an EncoderDesc or a RecurrentDesc.
using KindDesc = std::variant<CausalDesc, EncoderDesc, RecurrentDesc>;

struct AttentionDesc : kvc_attention_desc {
  AttentionDesc() noexcept : kvc_attention_desc(KVC_ATTENTION_DESC_INIT) {}
};

struct RopeDesc : kvc_rope_desc {
  RopeDesc() noexcept : kvc_rope_desc(KVC_ROPE_DESC_INIT) {}
};

// ---- What calls take and return -------------------------------------------------------------------------------------

// What one attention call takes and returns besides q and out; see kvc_attention_extra. Empty: not wanted.
struct AttentionExtra {
  std::optional<ConstTensor> bias, mask;
  std::optional<Tensor> lse, weights;
};

// Keys and values of one layer.
struct KeyValueViews {
  kvc_tensor k, v;
};

// Codes and scales of one layer. Empty: the type stores no scales.
struct CodeViews {
  kvc_tensor k{};
  std::optional<kvc_tensor> k_scales;
  kvc_tensor v{};
  std::optional<kvc_tensor> v_scales;
};

// The cells that the columns of views, masks, biases and weights stand for: column i is cell first_cell + i.
struct History {
  std::int32_t first_cell = 0, n_cells = 0;
};

// The input that a sequence of an encoder cache holds.
struct EncoderInput {
  std::int32_t position = KVC_NONE;  // of the token that carried it; KVC_NONE: the sequence has none
  std::int32_t length = 0;
};

// Parts of a state of a recurrent cache.
enum class Part : std::int32_t { conv = KVC_PART_CONV, recurrent = KVC_PART_RECURRENT };

// The batch of a pass by sequences, see kvc_state_layout().
struct StateLayout {
  std::vector<kvc_state_sequence> sequences;
  std::vector<std::int32_t> order;  // [n_tokens] indexes into the batch; those of padding come last
};

// A layer of a child of a wrapper.
struct ChildLayer {
  std::int32_t child = 0, layer = 0;
};

// The child that owns a layer of a wrapper, and the layer's number there. The handle stays its owner's.
struct LayerOwner {
  kvc_cache *handle = nullptr;
  std::int32_t layer = 0;
};

// ---- Device ---------------------------------------------------------------------------------------------------------

// Where memory is and how many threads work. May be closed before the caches created on it.
class Device {
 public:
  // By default it has as many threads as the process may use. Throws VersionMismatch if the minor version of the library
  // is not that of these headers: structs and functions may differ.
  explicit Device(const char *name = "cpu", const DeviceDesc &desc = {}, const kvc_allocator *allocator = nullptr) {
    check_version(kvc_version_number());
    check(kvc_device_open(name, &desc, allocator, &handle_));
  }
  Device(Device &&other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Device &operator=(Device &&other) noexcept {
    if (this != &other) {
      kvc_device_close(handle_);
      handle_ = std::exchange(other.handle_, nullptr);
    }
    return *this;
  }
  ~Device() { kvc_device_close(handle_); }

  // The destructor does the same but cannot report BUSY. Closing twice is allowed.
  void close() {
    check(kvc_device_close(handle_));
    handle_ = nullptr;
  }
  kvc_device *handle() const noexcept { return handle_; }

 private:
  kvc_device *handle_ = nullptr;
};

// ---- Cache ----------------------------------------------------------------------------------------------------------

class Cache {
 public:
  // Creates a cache and reserves all memory that it will ever use: a causal one, an encoder cache (inputs of encoders, for cross
  // attention) or a recurrent one (states of recurrent layers), as the type of the third argument says.
  Cache(const Device &device, const CacheDesc &desc, const KindDesc &kind = {}) : max_batch_(desc.max_batch) {
    const CacheDesc with_kind = of_kind(kind_of(kind), desc);
    check(kvc_cache_create(device.handle(), &with_kind, pointer_to(kind), &handle_));
  }
  // Creates a cache of any kind, with the defaults of that kind.
  Cache(const Device &device, Kind kind, const CacheDesc &desc) : max_batch_(desc.max_batch) {
    const CacheDesc with_kind = of_kind(kind, desc);
    check(kvc_cache_create(device.handle(), &with_kind, nullptr, &handle_));
  }
  // Makes one cache of several, which must be idle and empty: layer i is layer layers[i].layer of children[layers[i].child].
  // The children may be moved or closed afterwards; see kvc/hybrid.hpp for a cache from a description of layers.
  static Cache wrap(const std::vector<Cache *> &children, const std::vector<ChildLayer> &layers) {
    std::vector<kvc_cache *> handles;
    std::vector<std::int32_t> child(1), layer(1);  // not null when there are no layers
    std::int32_t max_batch = 0;
    for (const Cache *each : children) {
      handles.push_back(each == nullptr ? nullptr : each->handle_);
      if (each != nullptr) max_batch = std::max(max_batch, each->max_batch_);
    }
    for (const ChildLayer &place : layers) {
      child.insert(child.end() - 1, place.child);
      layer.insert(layer.end() - 1, place.layer);
    }
    Cache wrapper;
    check(kvc_cache_wrap(handles.data(), length("children", handles), child.data(), layer.data(), length("layers", layers),
                         &wrapper.handle_));
    wrapper.max_batch_ = max_batch;
    return wrapper;
  }
  Cache(Cache &&other) noexcept : handle_(std::exchange(other.handle_, nullptr)), max_batch_(other.max_batch_) {}
  Cache &operator=(Cache &&other) noexcept {
    if (this != &other) {
      kvc_cache_destroy(handle_);
      handle_ = std::exchange(other.handle_, nullptr);
      max_batch_ = other.max_batch_;
    }
    return *this;
  }
  ~Cache() { kvc_cache_destroy(handle_); }

  // The destructor does the same but cannot report BUSY. Closing twice is allowed.
  void close() {
    check(kvc_cache_destroy(handle_));
    handle_ = nullptr;
  }
  kvc_cache *handle() const noexcept { return handle_; }

  // The bytes that such a cache would take; allocates nothing.
  static std::uint64_t memory_bytes(const Device &device, const CacheDesc &desc, const KindDesc &kind = {}) {
    return bytes_of(device, of_kind(kind_of(kind), desc), pointer_to(kind));
  }
  static std::uint64_t memory_bytes(const Device &device, Kind kind, const CacheDesc &desc) {
    return bytes_of(device, of_kind(kind, desc), nullptr);
  }

  // Constants of the model, for layers [layer_begin, layer_end). Arrays are copied and may be null.
  void bind_attention(std::int32_t layer_begin, std::int32_t layer_end, const AttentionDesc &desc,
                      const float *alibi_slopes = nullptr, const float *sinks = nullptr) {
    check(kvc_bind_attention(handle_, layer_begin, layer_end, &desc, alibi_slopes, sinks));
  }
  void bind_rope(std::int32_t layer_begin, std::int32_t layer_end, const RopeDesc &desc,
                 const float *frequency_factors = nullptr) {
    check(kvc_bind_rope(handle_, layer_begin, layer_end, &desc, frequency_factors));
  }

  // Of f8 keys and values: one for each KV head, copied. Null: stay as they are.
  void bind_scales(std::int32_t layer_begin, std::int32_t layer_end, const float *k_scales, const float *v_scales) {
    check(kvc_bind_scales(handle_, layer_begin, layer_end, k_scales, v_scales));
  }

  // `function` and `user` must stay valid until the cache is destroyed or another function is bound.
  void bind_shift(kvc_shift_function function, void *user) { check(kvc_bind_shift(handle_, function, user)); }

  // A pass. The guard Pass, below, calls begin and abort; call these yourself to keep a pass open between functions.
  void begin(const std::vector<std::int32_t> &position, const std::vector<std::int32_t> &sequence) {
    begin(same_length("position", position, "sequence", sequence), elements(position), elements(sequence));
  }
  void begin(const std::vector<std::int32_t> &position, const std::vector<std::int32_t> &sequence,
             const std::vector<std::uint32_t> &token_flags, std::uint32_t flags = 0, void *stream = nullptr) {
    same_length("position", position, "token_flags", token_flags);
    begin(same_length("position", position, "sequence", sequence), elements(position), elements(sequence), token_flags.data(),
          flags, stream);
  }
  void begin(std::int32_t n_tokens, const std::int32_t *position, const std::int32_t *sequence,
             const std::uint32_t *token_flags = nullptr, std::uint32_t flags = 0, void *stream = nullptr) {
    check(kvc_begin(handle_, n_tokens, position, sequence, token_flags, flags, stream));
  }
  // Whether begin() would find room. Throws whatever else begin() would throw.
  bool fits(const std::vector<std::int32_t> &position, const std::vector<std::int32_t> &sequence) const {
    return fits(same_length("position", position, "sequence", sequence), elements(position), elements(sequence));
  }
  bool fits(const std::vector<std::int32_t> &position, const std::vector<std::int32_t> &sequence,
            const std::vector<std::uint32_t> &token_flags) const {
    same_length("position", position, "token_flags", token_flags);
    return fits(same_length("position", position, "sequence", sequence), elements(position), elements(sequence),
                token_flags.data());
  }
  bool fits(std::int32_t n_tokens, const std::int32_t *position, const std::int32_t *sequence,
            const std::uint32_t *token_flags = nullptr) const {
    const kvc_status status = kvc_fits(handle_, n_tokens, position, sequence, token_flags);
    if (status != KVC_E_CACHE_FULL) check(status);
    return status == KVC_OK;
  }
  // With KVC_CACHE_V_IN_K v is {}, here and in put_attention().
  void put(std::int32_t layer, const ConstTensor &k, const ConstTensor &v) {
    check(kvc_put(handle_, layer, k.get(), v.get()));
  }
  void attention(std::int32_t layer, const ConstTensor &q, Tensor out) {
    check(kvc_attention(handle_, layer, q.get(), out.get(), nullptr));
  }
  void attention(std::int32_t layer, const ConstTensor &q, Tensor out, AttentionExtra extra) {
    const kvc_attention_extra pointers = pointers_to(extra);
    check(kvc_attention(handle_, layer, q.get(), out.get(), &pointers));
  }
  void put_attention(std::int32_t layer, const ConstTensor &k, const ConstTensor &v, const ConstTensor &q, Tensor out) {
    check(kvc_put_attention(handle_, layer, k.get(), v.get(), q.get(), out.get(), nullptr));
  }
  void put_attention(std::int32_t layer, const ConstTensor &k, const ConstTensor &v, const ConstTensor &q, Tensor out,
                     AttentionExtra extra) {
    const kvc_attention_extra pointers = pointers_to(extra);
    check(kvc_put_attention(handle_, layer, k.get(), v.get(), q.get(), out.get(), &pointers));
  }
  // What a cache of the same storage stored, as encode() and get_codes() have it. Scales that are not stored are {}, and with
  // KVC_CACHE_V_IN_K v and v_scales are.
  void put_codes(std::int32_t layer, const ConstTensor &k, const ConstTensor &k_scales, const ConstTensor &v,
                 const ConstTensor &v_scales) {
    check(kvc_put_codes(handle_, layer, k.get(), k_scales.get(), v.get(), v_scales.get()));
  }
  // The tokens of the batch, by index, that also see later tokens.
  void set_causal(const std::vector<std::int32_t> &except) {
    check(kvc_set_causal(handle_, length("except", except), except.data()));
  }
  void commit() { check(kvc_commit(handle_)); }
  void commit_prefix(const std::vector<std::int32_t> &sequence, const std::vector<std::int32_t> &keep) {
    const std::int32_t n = same_length("sequence", sequence, "keep", keep);
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
    const std::int32_t n = same_length("destination", destination, "source", source);
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

  // Encoder caches hold what cross attention sees. A token of a pass carries an input if its flags have
  // KVC_TOKEN_ENCODER_INPUT; it is put once for each layer, and later tokens of its sequence see it without a put:
  //
  //   kvc::Cache cross(device, desc, kvc::EncoderDesc());
  //   kvc::Pass pass(cross, {0, 0}, {0, 1}, std::vector<std::uint32_t>(2, KVC_TOKEN_ENCODER_INPUT));
  //   cross.encoder_share(1, 0);  // both hear one recording
  //   for each layer {
  //     cross.encoder_put(layer, 0, {k, {1500, 6, 64}}, {v, {1500, 6, 64}});
  //     cross.attention(layer, {q, {2, 6, 64}}, {out, {2, 6, 64}});
  //   }
  //   pass.commit();
  void encoder_put(std::int32_t layer, std::int32_t sequence, const ConstTensor &k, const ConstTensor &v) {
    check(kvc_encoder_put(handle_, layer, sequence, k.get(), v.get()));
  }
  void encoder_share(std::int32_t sequence, std::int32_t source) { check(kvc_encoder_share(handle_, sequence, source)); }
  EncoderInput encoder_query(std::int32_t sequence) const {
    EncoderInput input;
    check(kvc_encoder_query(handle_, sequence, &input.position, &input.length));
    return input;
  }

  // Recurrent caches hold states in place of keys and values. A pass reads those that its sequences had and stores those that
  // its tokens leave, the rows:
  //
  //   const kvc::StateLayout layout = cache.state_layout();  // which tokens and rows belong to which sequence
  //   for each layer {
  //     cache.state_get(layer, kvc::Part::recurrent, {before, {n_sequences, 32, 128, 128}});
  //     …                                                    // your recurrence
  //     cache.state_put(layer, kvc::Part::recurrent, {after, {n_rows, 32, 128, 128}});
  //     cache.state_conv(layer, {x, {n_tokens, n_channels}});
  //   }
  StateLayout state_layout() const {
    StateLayout layout;
    layout.sequences = list_of<kvc_state_sequence>([&](std::int32_t room, kvc_state_sequence *sequences, std::int32_t *n) {
      layout.order.assign(static_cast<std::size_t>(max_batch_), -1);  // room for any pass: how many tokens it has is not told
      return kvc_state_layout(handle_, room, sequences, n, layout.order.data());
    });
    layout.order.erase(std::find(layout.order.begin(), layout.order.end(), -1), layout.order.end());
    return layout;
  }
  // The shape that state_get() needs, [n_sequences, dims…], and the storage type; data is null.
  kvc_tensor state_shape(std::int32_t layer, Part part) {
    kvc_tensor shape{};
    check(kvc_state_get(handle_, layer, static_cast<std::int32_t>(part), &shape));
    return shape;
  }
  void state_get(std::int32_t layer, Part part, Tensor into) {
    check(kvc_state_get(handle_, layer, static_cast<std::int32_t>(part), into.get()));
  }
  void state_put(std::int32_t layer, Part part, const ConstTensor &from) {
    check(kvc_state_put(handle_, layer, static_cast<std::int32_t>(part), from.get()));
  }
  void state_conv(std::int32_t layer, const ConstTensor &x) { check(kvc_state_conv(handle_, layer, x.get())); }
  // All slots, [n_slots, dims…], for kernels that work in place: they read the slots that state_layout() names, write those of
  // state_slots() and call state_done(). The view lasts until the pass ends.
  kvc_tensor state_view(std::int32_t layer, Part part, const std::vector<std::int64_t> &dims = {}) {
    kvc_tensor slots{};
    check(kvc_state_view(handle_, layer, static_cast<std::int32_t>(part), length("dims", dims),
                         dims.empty() ? nullptr : dims.data(), &slots));
    return slots;
  }
  std::vector<std::int32_t> state_slots() const {
    return list_of([&](std::int32_t room, std::int32_t *slot, std::int32_t *n) {
      return kvc_state_slots(handle_, room, slot, n);
    });
  }
  void state_done(std::int32_t layer, Part part) {
    check(kvc_state_done(handle_, layer, static_cast<std::int32_t>(part)));
  }
  void state_gather(std::int32_t layer, Part part, std::int32_t sequence, std::int32_t at, Tensor into) {
    check(kvc_state_gather(handle_, layer, static_cast<std::int32_t>(part), sequence, at, into.get()));
  }
  // resume() goes back to a checkpoint.
  void checkpoint_take(std::int32_t sequence) { check(kvc_checkpoint_take(handle_, sequence)); }
  std::vector<std::int32_t> checkpoint_list(std::int32_t sequence) const {
    return list_of([&](std::int32_t room, std::int32_t *at, std::int32_t *n) {
      return kvc_checkpoint_list(handle_, sequence, room, at, n);
    });
  }

  // Of a wrapper: by which handle its layers can be put directly.
  LayerOwner owner(std::int32_t layer) const {
    LayerOwner found;
    check(kvc_cache_child(handle_, layer, &found.handle, &found.layer));
    return found;
  }

  // Reading, for callers with kernels of their own. The views last until the pass ends. get() lends f32, f16 and bf16, in which
  // keys are rotated as far as they owe; get_codes() lends every storage type as it is; get_copy() decodes every storage type.
  KeyValueViews get(std::int32_t layer) {
    KeyValueViews views{};
    check(kvc_get(handle_, layer, &views.k, &views.v));
    return views;
  }
  CodeViews get_codes(std::int32_t layer) {
    CodeViews views;
    kvc_tensor k_scales{}, v_scales{};
    check(kvc_get_codes(handle_, layer, &views.k, &k_scales, &views.v, &v_scales));
    if (k_scales.ndim > 0) views.k_scales = k_scales;
    if (v_scales.ndim > 0) views.v_scales = v_scales;
    return views;
  }
  // The shapes that get_copy() needs, [history, n_kv_heads, head_dim], as f32; data is null.
  KeyValueViews copy_shapes(std::int32_t layer) {
    KeyValueViews shapes{};
    check(kvc_get_copy(handle_, layer, &shapes.k, &shapes.v));
    return shapes;
  }
  // A k or v that is not wanted is {}.
  void get_copy(std::int32_t layer, Tensor k, Tensor v) { check(kvc_get_copy(handle_, layer, k.get(), v.get())); }
  History history(std::int32_t layer) {
    History range;
    check(kvc_history(handle_, layer, &range.first_cell, &range.n_cells));
    return range;
  }
  // The shape that mask() needs, [n_tokens, history], and the mask_dtype of the descriptor; data is null.
  kvc_tensor mask_shape(std::int32_t layer) {
    kvc_tensor shape{};
    check(kvc_mask(handle_, layer, &shape));
    return shape;
  }
  void mask(std::int32_t layer, Tensor into) { check(kvc_mask(handle_, layer, into.get())); }
  // Copies the keys, the values or both of a sequence, in order of position. A v that is your own kvc_tensor may have the
  // flag KVC_TENSOR_TRANSPOSED.
  void gather(std::int32_t layer, std::int32_t sequence, Tensor k, Tensor v) {
    check(kvc_gather(handle_, layer, sequence, k.get(), v.get()));
  }
  void gather_keys(std::int32_t layer, std::int32_t sequence, Tensor k) {
    check(kvc_gather(handle_, layer, sequence, k.get(), nullptr));
  }
  void gather_values(std::int32_t layer, std::int32_t sequence, Tensor v) {
    check(kvc_gather(handle_, layer, sequence, nullptr, v.get()));
  }
  std::vector<kvc_run> runs(std::int32_t layer, std::int32_t sequence) const {
    return list_of<kvc_run>([&](std::int32_t room, kvc_run *found, std::int32_t *n) {
      return kvc_runs(handle_, layer, sequence, room, found, n);
    });
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
  Cache() noexcept = default;
  static std::uint64_t bytes_of(const Device &device, const CacheDesc &desc, const void *of_its_kind) {
    std::uint64_t bytes = 0;
    check(kvc_cache_memory_bytes(device.handle(), &desc, of_its_kind, &bytes));
    return bytes;
  }
  // All that `list(room, elements, &n)` lists.
  template <typename Element = std::int32_t, typename List>
  static std::vector<Element> list_of(List list) {
    std::vector<Element> found;
    std::int32_t n = 0, room = 0;
    do {  // another thread may change their number between two calls
      found.resize(static_cast<std::size_t>(n));
      room = n;
      check(list(room, found.data(), &n));
    } while (n > room);
    found.resize(static_cast<std::size_t>(n));
    return found;
  }
  template <typename Element>
  static std::int32_t length(const char *name, const std::vector<Element> &values) {
    if (values.size() > static_cast<std::size_t>(INT32_MAX))
      raise(KVC_E_INVALID_ARGUMENT,
            std::string(name) + " has " + std::to_string(values.size()) + " elements; at most 2147483647 are taken");
    return static_cast<std::int32_t>(values.size());
  }
  template <typename Element>
  static std::int32_t same_length(const char *a_name, const std::vector<std::int32_t> &a, const char *b_name,
                                  const std::vector<Element> &b) {
    if (a.size() != b.size())
      raise(KVC_E_INVALID_ARGUMENT, std::string(a_name) + " has " + std::to_string(a.size()) + " elements, " + b_name + " has " +
                                        std::to_string(b.size()) + ": they must have the same number");
    return length(a_name, a);
  }
  // Not null: the data() of an empty vector may be, and C would then miss the array and not its elements.
  static const std::int32_t *elements(const std::vector<std::int32_t> &values) {
    static constexpr std::int32_t none = 0;
    return values.empty() ? &none : values.data();
  }
  // By the descriptor's type. The library refuses one whose field `kind` was overwritten.
  static Kind kind_of(const KindDesc &kind) {
    if (std::holds_alternative<EncoderDesc>(kind)) return Kind::encoder;
    return std::holds_alternative<RecurrentDesc>(kind) ? Kind::recurrent : Kind::causal;
  }
  static const void *pointer_to(const KindDesc &kind) {
    return std::visit([](const auto &desc) { return static_cast<const void *>(&desc); }, kind);
  }
  static CacheDesc of_kind(Kind kind, CacheDesc desc) {
    desc.kind = static_cast<std::uint32_t>(kind);
    return desc;
  }
  static kvc_attention_extra pointers_to(AttentionExtra &extra) {
    kvc_attention_extra pointers = KVC_ATTENTION_EXTRA_INIT;
    if (extra.bias) pointers.bias = extra.bias->get();
    if (extra.mask) pointers.mask = extra.mask->get();
    if (extra.weights) pointers.weights = extra.weights->get();
    if (extra.lse) pointers.lse = extra.lse->get();
    return pointers;
  }

  kvc_cache *handle_ = nullptr;
  std::int32_t max_batch_ = 0;
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
