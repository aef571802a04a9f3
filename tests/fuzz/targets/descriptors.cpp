// libFuzzer: descriptors made of the fuzzer's bytes. Each is answered with a status and a message; what
// was created is used a little and must be sound. An allocator bounds the memory that a cache may take.
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <initializer_list>
#include <memory>
#include <vector>

#include "fuzz/targets/require.hpp"
#include "kvc/encoder.h"
#include "kvc/recurrent.h"
#include "kvc/transformer.h"
#include "support/abi.hpp"

namespace {

constexpr size_t most_bytes = size_t{16} << 20;
constexpr size_t most_elements = size_t{1} << 20;  // of one tensor that the target makes

size_t taken = 0;  // by the call that is running: a cache has a block on the host and one on the device

void* allocate(void*, size_t bytes, size_t alignment) {
  if (bytes > most_bytes - taken) return nullptr;
  taken += bytes;
  return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
}
void release(void*, void* block, size_t, size_t) { std::free(block); }

/// Every failure is one that the headers list, and has a message.
kvc_status answered(kvc_status status, const char* call) {
  require(std::strcmp(kvc_status_name(status), "UNKNOWN") != 0, call);
  require(status != KVC_E_INTERNAL && status != KVC_E_HANDLE && status != KVC_E_BUSY, call);
  require(status == KVC_OK || !support::last_message().empty(), "a failure without a message");
  return status;
}

/// The fuzzer's bytes, one value after another; zeros when they are used up.
class Bytes {
 public:
  Bytes(const uint8_t* data, size_t size) : data_(data), left_(size) {}
  template <class T>
  T take() {
    T value{};
    const size_t n = std::min(left_, sizeof value);
    if (n > 0) std::memcpy(static_cast<void*>(&value), data_, n);
    data_ += n;
    left_ -= n;
    return value;
  }

 private:
  const uint8_t* data_;
  size_t left_;
};

/// A descriptor, with a tail that a longer struct_size would claim. Often its size is right.
template <class Descriptor>
std::vector<unsigned char> descriptor(Bytes& bytes) {
  std::vector<unsigned char> memory(sizeof(Descriptor));
  const auto known = bytes.take<Descriptor>();
  const auto tail = bytes.take<uint8_t>();
  std::memcpy(memory.data(), &known, sizeof known);
  uint32_t size = 0;
  std::memcpy(&size, memory.data(), sizeof size);
  if (tail % 4 != 0 || size > 4096) size = sizeof(Descriptor);
  std::memcpy(memory.data(), &size, sizeof size);
  memory.resize(std::max<size_t>(memory.size(), size), tail % 8 == 4 ? 1 : 0);
  return memory;
}

template <class Descriptor>
const Descriptor* as(const std::vector<unsigned char>& memory) {
  return reinterpret_cast<const Descriptor*>(memory.data());
}

/// A tensor over `data`, or none: often one that fits, else whatever the bytes say. Its strides are those of its shape;
/// others would be lies about the caller's memory, which nobody can find out.
kvc_tensor* tensor(Bytes& bytes, float* data, std::initializer_list<int64_t> extents,
                   kvc_tensor& into) {
  const auto kind = bytes.take<uint8_t>();
  if (kind % 4 == 0) return nullptr;
  if (kind % 4 == 1) into = bytes.take<kvc_tensor>();
  constexpr uint32_t dtypes[] = {KVC_F32, KVC_F16, KVC_BF16, KVC_BOOL};
  if (kind % 4 != 1) {
    into = support::dense(data, dtypes[kind / 4 % 4], extents);
    into.ndim -= bytes.take<uint8_t>() % 3;  // leading dimensions may be missing
    std::copy_n(extents.begin() + 3 - into.ndim, into.ndim, into.shape);
  }
  into.data = data;
  into.byte_offset %= 2;  // 1 is misaligned for all but KVC_BOOL
  uint64_t stride = 1;
  for (int32_t d = std::clamp(into.ndim, 0, 8) - 1; d >= 0; --d) {
    if (bytes.take<uint8_t>() % 4 == 1) into.shape[d] = 1;
    into.strides[d] = static_cast<int64_t>(stride);
    stride *= static_cast<uint64_t>(into.shape[d]);
  }
  return &into;
}

/// What a call brings along, made of the fuzzer's bytes. Weights of a shape that is taken are looked at.
void attend_with(kvc_cache* cache, Bytes& bytes, const kvc_tensor& q, kvc_tensor& out) {
  int32_t first = 0, history = 0;
  require(kvc_history(cache, 0, &first, &history) == KVC_OK, "history");
  const auto elements = static_cast<size_t>(q.shape[1]) * static_cast<size_t>(history);
  if (elements > most_elements) return;
  std::vector<float> bias(elements, 0.25f), mask(elements), weights(elements, -1.0f);
  auto extra_memory = descriptor<kvc_attention_extra>(bytes);
  kvc_attention_extra extra;
  std::memcpy(&extra, extra_memory.data(), sizeof extra);
  kvc_tensor tensors[3];
  const auto extents = {q.shape[1], int64_t{1}, int64_t{history}};
  extra.bias = tensor(bytes, bias.data(), extents, tensors[0]);
  extra.mask = tensor(bytes, mask.data(), extents, tensors[1]);
  extra.weights = tensor(bytes, weights.data(), extents, tensors[2]);
  extra.lse = nullptr;
  if (bytes.take<uint8_t>() % 4 != 0) {  // what later versions fill in
    extra.flags = 0;
    extra.dropout_seed = 0;
    extra.first_position = nullptr;
    extra.constants = nullptr;
    extra.alibi_slopes = extra.sinks = nullptr;
  }
  std::memcpy(extra_memory.data(), &extra, sizeof extra);
  const kvc_status status = answered(
      kvc_attention(cache, 0, &q, &out, as<kvc_attention_extra>(extra_memory)), "attention");
  const bool all_written = extra.weights == nullptr || weights[elements - 1] >= 0;
  require(status != KVC_OK || all_written, "weights were not written");
}

/// One pass of one token in every layer, attention in the first.
void use(kvc_cache* cache, const kvc_cache_desc& desc, int32_t n_q_heads, Bytes& bytes) {
  const int32_t head_dim_v = desc.head_dim_v == 0 ? desc.head_dim_k : desc.head_dim_v;
  const auto elements = static_cast<size_t>(std::max(n_q_heads, desc.n_kv_heads)) *
                        static_cast<size_t>(std::max(desc.head_dim_k, head_dim_v));
  if (elements > most_elements || desc.n_layers > 64) return;
  std::vector<float> data(elements, 0.5f), result(elements);
  const kvc_tensor k = support::dense(data.data(), KVC_F32, {1, desc.n_kv_heads, desc.head_dim_k});
  const kvc_tensor v = support::dense(data.data(), KVC_F32, {1, desc.n_kv_heads, head_dim_v});
  const kvc_tensor q = support::dense(data.data(), KVC_F32, {1, n_q_heads, desc.head_dim_k});
  kvc_tensor out = support::dense(result.data(), KVC_F32, {1, n_q_heads, head_dim_v});
  const bool v_in_k = (desc.flags & KVC_CACHE_V_IN_K) != 0;
  const int32_t position = 0, sequence = desc.max_sequences - 1;
  if (answered(kvc_begin(cache, 1, &position, &sequence, nullptr, 0, nullptr), "begin") != KVC_OK)
    return;
  for (int32_t layer = 0; layer < desc.n_layers; ++layer)
    require(kvc_put(cache, layer, &k, v_in_k ? nullptr : &v) == KVC_OK, "put");
  require(kvc_attention(cache, 0, &q, &out, nullptr) == KVC_OK, "attention");
  attend_with(cache, bytes, q, out);
  kvc_tensor copy_k{}, copy_v{};
  require(kvc_get_copy(cache, 0, &copy_k, &copy_v) == KVC_OK, "get_copy");
  require(copy_k.shape[2] == desc.head_dim_k && copy_v.shape[2] == head_dim_v, "shapes of copies");
  require(kvc_commit(cache) == KVC_OK, "commit");
}

/// One pass of one token in every part of every layer, then tensors made of bytes.
void use_states(kvc_cache* cache, const kvc_cache_desc& desc, Bytes& bytes) {
  const int32_t position = 0, sequence = desc.max_sequences - 1;
  if (answered(kvc_begin(cache, 1, &position, &sequence, nullptr, 0, nullptr), "begin") != KVC_OK)
    return;
  for (const int32_t part : {KVC_PART_CONV, KVC_PART_RECURRENT}) {
    kvc_tensor state{};
    if (answered(kvc_state_get(cache, 0, part, &state), "state_get") != KVC_OK) continue;
    int64_t elements = 1;
    for (int32_t d = 0; d < state.ndim; ++d) elements *= state.shape[d];
    std::vector<float> data(static_cast<size_t>(elements), 0.5f);
    const kvc_tensor rows = support::dense(data.data(), KVC_F32, {1, elements});
    for (int32_t layer = 0; layer < desc.n_layers; ++layer)
      require(kvc_state_put(cache, layer, part, &rows) == KVC_OK, "state_put");
    const auto extents = {int64_t{1}, state.shape[1], state.ndim > 2 ? state.shape[2] : 1};
    kvc_tensor made;
    answered(kvc_state_put(cache, 0, part, tensor(bytes, data.data(), extents, made)), "put");
    answered(kvc_state_get(cache, 0, part, tensor(bytes, data.data(), extents, made)), "get");
    const auto at = bytes.take<int8_t>();
    kvc_tensor* into = tensor(bytes, data.data(), extents, made);
    answered(kvc_state_gather(cache, 0, part, sequence, at, into), "gather");
    const auto n_dims = bytes.take<int8_t>();
    const int64_t dims[7] = {bytes.take<int64_t>(), state.shape[1], extents.begin()[2], 1, 1, 1, 1};
    answered(kvc_state_view(cache, 0, part, n_dims, dims, &made), "view");
  }
  answered(kvc_checkpoint_take(cache, sequence), "checkpoint_take");
  answered(kvc_resume(cache, sequence, bytes.take<int32_t>(), nullptr), "resume");
}

/// Passes of rows whose lengths, mask and types are made of bytes; rows that are set.
void use_rows(kvc_cache* cache, const kvc_cache_desc& desc, Bytes& bytes) {
  if (desc.max_sequences > 64) return;
  const auto rows = static_cast<size_t>(desc.max_sequences);
  for (int32_t pass = 0; pass < 3; ++pass) {
    const int32_t q_len = bytes.take<int8_t>();
    std::vector<int32_t> valid(rows), types(rows * 128);
    for (int32_t& n : valid) n = bytes.take<int8_t>();
    for (int32_t& type : types) type = bytes.take<uint8_t>() % 4;
    std::vector<float> shown(rows * 256, 0.5f);
    kvc_tensor made;
    const kvc_tensor* mask = tensor(bytes, shown.data(), {desc.max_sequences, 1, 256}, made);
    const auto flags = bytes.take<uint8_t>();
    const int32_t* const lengths = flags % 2 == 0 ? valid.data() : nullptr;
    const kvc_status fits = kvc_fits_rows(cache, q_len, flags / 2, lengths, mask, types.data());
    require(answered(kvc_begin_rows(cache, q_len, flags / 2, lengths, mask, types.data(), nullptr),
                     "begin_rows") == fits,
            "fits_rows and begin_rows differ");
    if (fits != KVC_OK) continue;
    require(kvc_commit(cache) == KVC_OK, "commit");
  }
  std::vector<int32_t> index(rows), starts(rows);
  for (int32_t& each : index) each = bytes.take<int32_t>();
  for (int32_t& each : starts) each = bytes.take<int8_t>();
  const auto row = bytes.take<int8_t>(), n = static_cast<int8_t>(bytes.take<uint8_t>() % 2);
  const bool with_starts = bytes.take<uint8_t>() % 2 == 0;
  answered(kvc_rows_set(cache, row, n, index.data(), with_starts ? starts.data() : nullptr),
           "rows_set");
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  Bytes bytes(data, size);
  const kvc_allocator bounded = {nullptr, allocate, release};
  static const support::Device device(1, &bounded);
  const auto cache_memory = descriptor<kvc_cache_desc>(bytes);
  const auto causal_memory = descriptor<kvc_causal_desc>(bytes);
  const auto attention_memory = descriptor<kvc_attention_desc>(bytes);
  const auto rope_memory = descriptor<kvc_rope_desc>(bytes);
  const auto* desc = as<kvc_cache_desc>(cache_memory);
  const bool defaults = bytes.take<uint8_t>() % 4 == 0;
  std::vector<unsigned char> other_memory;  // what another kind needs
  if (desc->kind == KVC_ENCODER) other_memory = descriptor<kvc_encoder_desc>(bytes);
  if (desc->kind == KVC_RECURRENT) other_memory = descriptor<kvc_recurrent_desc>(bytes);
  if (desc->kind == KVC_TRANSFORMER) other_memory = descriptor<kvc_transformer_desc>(bytes);
  const void* kind_desc = other_memory.empty() ? causal_memory.data() : other_memory.data();
  if (defaults) kind_desc = nullptr;

  uint64_t announced = 0;
  const kvc_status measured = answered(kvc_cache_memory_bytes(device, desc, kind_desc, &announced),
                                       "memory_bytes");
  kvc_cache* cache = nullptr;
  taken = 0;
  const kvc_status created = answered(kvc_cache_create(device, desc, kind_desc, &cache), "create");
  require((cache != nullptr) == (created == KVC_OK), "a handle and a status that do not fit");
  const bool fits = measured == KVC_OK && announced <= most_bytes;
  require(created == (measured != KVC_OK ? measured
                      : fits             ? KVC_OK
                                         : KVC_E_OUT_OF_MEMORY),
          "create and memory_bytes differ");
  if (cache != nullptr) {
    require(support::stats(cache).bytes == announced, "memory_bytes was wrong");
    const auto begin = bytes.take<int8_t>(), end = bytes.take<int8_t>();
    answered(kvc_bind_rope(cache, begin, end, as<kvc_rope_desc>(rope_memory), nullptr),
             "bind_rope");
    const auto* attention = as<kvc_attention_desc>(attention_memory);
    const kvc_status bound = answered(kvc_bind_attention(cache, 0, 1, attention, nullptr, nullptr),
                                      "bind_attention");
    if (desc->kind == KVC_CAUSAL)
      use(cache, *desc, bound == KVC_OK ? attention->n_q_heads : desc->n_kv_heads, bytes);
    if (desc->kind == KVC_RECURRENT) use_states(cache, *desc, bytes);
    if (desc->kind == KVC_TRANSFORMER) use_rows(cache, *desc, bytes);
    require(kvc_check(cache) == KVC_OK, "check");
    require(kvc_cache_destroy(cache) == KVC_OK, "destroy");
  }
  return 0;
}
