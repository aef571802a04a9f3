#include "hybrid.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "host_view.hpp"
#include "model/formats.hpp"

namespace support {
namespace {

float rounded(uint32_t dtype, float value) {
  return static_cast<float>(model::round_to(dtype, static_cast<double>(value)));
}

/// Within (−1, 1), so that no layer grows what it is given.
float squashed(float value) { return value / (1 + std::fabs(value)); }

}  // namespace

std::string HybridShape::describe() const {
  std::string text = "children";
  for (size_t c = 0; c < kinds.size(); ++c)
    text += ' ' + std::to_string(kinds[c]) + "/reach " + std::to_string(reaches[c]) + "/dtype " +
            std::to_string(dtypes[c]);
  text += " layers";
  for (const Layer& layer : layers)
    text += ' ' + std::to_string(layer.child) + '.' + std::to_string(layer.layer);
  return text + " conv_dim " + std::to_string(conv_dim) + " draft_states " +
         std::to_string(draft_states);
}

/// A recurrent and a causal child at least, and up to three more.
HybridShape draw_hybrid(Random& random) {
  HybridShape shape;
  shape.kinds = {KVC_RECURRENT, KVC_CAUSAL};
  for (int32_t more = random.below(4); more > 0; --more)
    shape.kinds.push_back(random.pick<uint32_t>({KVC_RECURRENT, KVC_CAUSAL, KVC_CAUSAL, KVC_ENCODER}));
  if (random.chance(0.5)) std::swap(shape.kinds[0], shape.kinds[1]);
  std::vector<int32_t> used(shape.kinds.size(), 0);
  for (const uint32_t kind : shape.kinds) {
    shape.reaches.push_back(kind == KVC_CAUSAL && random.chance(0.5) ? random.between(2, 7) : 0);
    shape.limited = shape.limited || shape.reaches.back() > 0;
    shape.dtypes.push_back(random.pick<uint32_t>({KVC_F32, KVC_F16, KVC_BF16}));
  }
  const auto n_children = static_cast<int32_t>(shape.kinds.size());
  const int32_t n_layers = n_children + random.below(4);
  for (int32_t i = 0; i < n_layers; ++i) {
    const int32_t child = i < n_children ? i : random.below(n_children);
    shape.layers.push_back({child, used[static_cast<size_t>(child)]++});
  }
  shape.conv_dim = random.below(4);
  shape.draft_states = random.between(2, 5);
  return shape;
}

Hybrid::Hybrid(kvc_device* device, const HybridShape& shape) : shape_(shape) {
  std::vector<kvc_cache*> handles;
  std::vector<int32_t> owner, number;
  for (size_t c = 0; c < shape.kinds.size(); ++c) {
    int32_t n_layers = 0;
    for (const HybridShape::Layer& layer : shape.layers)
      n_layers += layer.child == static_cast<int32_t>(c);
    kvc_cache_desc cache = KVC_CACHE_DESC_INIT;
    cache.kind = shape.kinds[c];
    cache.n_layers = n_layers;
    cache.max_sequences = max_sequences;
    cache.max_batch = max_batch;
    kvc_causal_desc causal = KVC_CAUSAL_DESC_INIT;
    kvc_encoder_desc encoder = KVC_ENCODER_DESC_INIT;
    kvc_recurrent_desc recurrent = KVC_RECURRENT_DESC_INIT;
    const void* of_kind = &causal;
    if (cache.kind == KVC_RECURRENT) {
      recurrent.state_size = state_size;
      recurrent.conv_channels = shape.conv_dim > 0 ? dim : 0;
      recurrent.conv_dim = shape.conv_dim;
      recurrent.dtype_state = recurrent.dtype_conv = shape.dtypes[c];
      recurrent.checkpoint_interval = KVC_NONE;
      recurrent.draft_states = shape.draft_states;
      of_kind = &recurrent;
    } else {
      cache.n_kv_heads = 1;
      cache.head_dim_k = dim;
      cache.dtype_k = cache.dtype_v = shape.dtypes[c];
      cache.capacity = cache.kind == KVC_CAUSAL ? 64 : n_inputs;
      causal.reach = shape.reaches[c];
      causal.memory = shape.reaches[c] > 0 ? shape.reaches[c] + 12 : 0;  // room to step back
      if (cache.kind == KVC_ENCODER) of_kind = &encoder;
    }
    EXPECT_EQ(kvc_cache_create(device, &cache, of_kind, &children_.emplace_back().handle), KVC_OK)
        << last_message();
    handles.push_back(children_.back());
  }
  for (const HybridShape::Layer& layer : shape.layers) {
    owner.push_back(layer.child);
    number.push_back(layer.layer);
  }
  EXPECT_EQ(kvc_cache_wrap(handles.data(), static_cast<int32_t>(handles.size()), owner.data(),
                           number.data(), static_cast<int32_t>(owner.size()), &wrapper_.handle),
            KVC_OK)
      << last_message();
}

std::vector<TokenOutput> Hybrid::run(const std::vector<TextToken>& batch, Random& random) {
  std::vector<int32_t> position, sequence;
  std::vector<uint32_t> flags;
  bool has_encoder = false;
  for (const uint32_t kind : shape_.kinds) has_encoder = has_encoder || kind == KVC_ENCODER;
  Rows x;
  for (const TextToken& token : batch) {
    position.push_back(token.position);
    sequence.push_back(token.sequence);
    flags.push_back(has_encoder && token.carries ? uint32_t{KVC_TOKEN_ENCODER_INPUT} : 0);
    for (int32_t d = 0; d < dim; ++d)
      x.push_back(static_cast<float>((token.id * 7 + d * 13) % 31 - 15) / 16);
  }
  EXPECT_EQ(kvc_begin(wrapper_, static_cast<int32_t>(batch.size()), position.data(),
                      sequence.data(), flags.data(), 0, nullptr),
            KVC_OK)
      << last_message();
  std::vector<TokenOutput> outputs(batch.size());
  for (int32_t i = 0; i < static_cast<int32_t>(shape_.layers.size()); ++i) {
    const auto child = static_cast<size_t>(shape_.layers[static_cast<size_t>(i)].child);
    if (shape_.kinds[child] == KVC_RECURRENT)
      run_recurrent(i, shape_.dtypes[child], x, random.chance(0.5));
    else
      run_attention(i, x, shape_.kinds[child] == KVC_ENCODER, batch, outputs);
  }
  for (size_t t = 0; t < batch.size(); ++t)
    outputs[t].exact.assign(x.begin() + static_cast<ptrdiff_t>(t * dim),
                            x.begin() + static_cast<ptrdiff_t>((t + 1) * dim));
  return outputs;
}

namespace {

/// One sequence's memory in one layer: what is stored, as the storage type holds it.
struct LayerMemory {
  std::vector<float> conv;  // [dim, conv_dim]
  std::vector<float> h;     // [state_size]
};

/// A short convolution and a decaying state; x becomes the output.
void step(uint32_t dtype, int32_t conv_dim, LayerMemory& memory, float* x) {
  const auto width = static_cast<size_t>(conv_dim);
  for (size_t c = 0; c < Hybrid::dim; ++c) {
    float* columns = memory.conv.data() + c * width;
    const float input = rounded(dtype, x[c]);
    float sum = input;
    for (size_t j = 0; j < width; ++j) sum += columns[j] * (0.25f + 0.125f * static_cast<float>(j));
    for (size_t j = 0; j + 1 < width; ++j) columns[j] = columns[j + 1];
    if (width > 0) columns[width - 1] = input;
    x[c] = squashed(sum);
  }
  for (size_t i = 0; i < memory.h.size(); ++i)
    memory.h[i] = rounded(dtype, 0.75f * memory.h[i] + x[i % Hybrid::dim]);
  for (size_t c = 0; c < Hybrid::dim; ++c) x[c] = squashed(x[c] + 0.5f * memory.h[c]);
}

}  // namespace

/// Reads what the sequences had before the pass, computes row after row, and stores the rows.
void Hybrid::run_recurrent(int32_t layer, uint32_t dtype, Rows& x, bool in_place) {
  kvc_cache* const child = children_[static_cast<size_t>(owner_of(layer))];
  const int64_t width = shape_.conv_dim, n_tokens = static_cast<int64_t>(x.size()) / dim;
  int32_t n = 0, n_rows = 0;
  std::vector<int32_t> order(static_cast<size_t>(n_tokens));
  std::vector<kvc_state_sequence> sequences(max_sequences);
  EXPECT_EQ(kvc_state_layout(child, max_sequences, sequences.data(), &n, order.data()), KVC_OK);
  std::vector<int32_t> slots(static_cast<size_t>(n_tokens));
  EXPECT_EQ(kvc_state_slots(child, static_cast<int32_t>(n_tokens), slots.data(), &n_rows), KVC_OK);
  Rows h(static_cast<size_t>(n * state_size)), conv(static_cast<size_t>(n * dim * width));
  kvc_tensor into = dense(h.data(), KVC_F32, {n, state_size});
  EXPECT_EQ(kvc_state_get(wrapper_, layer, KVC_PART_RECURRENT, &into), KVC_OK) << last_message();
  into = dense(conv.data(), KVC_F32, {n, dim, width});
  if (width > 0) {
    EXPECT_EQ(kvc_state_get(wrapper_, layer, KVC_PART_CONV, &into), KVC_OK) << last_message();
  }

  const Rows inputs = x;
  Rows h_rows, conv_rows;
  for (int32_t s = 0; s < n; ++s) {
    const kvc_state_sequence& sequence = sequences[static_cast<size_t>(s)];
    const auto h_begin = h.begin() + s * state_size;
    const auto conv_begin = conv.begin() + static_cast<ptrdiff_t>(s * dim * width);
    LayerMemory memory{{conv_begin, conv_begin + static_cast<ptrdiff_t>(dim * width)},
                       {h_begin, h_begin + state_size}};
    for (int32_t i = 0; i < sequence.n_tokens; ++i) {
      const auto token = static_cast<size_t>(order[static_cast<size_t>(sequence.first_token + i)]);
      step(dtype, shape_.conv_dim, memory, x.data() + token * dim);
      if (i < sequence.n_tokens - sequence.n_rows) continue;
      h_rows.insert(h_rows.end(), memory.h.begin(), memory.h.end());
      conv_rows.insert(conv_rows.end(), memory.conv.begin(), memory.conv.end());
    }
  }
  if (in_place) {
    slots.resize(static_cast<size_t>(n_rows));
    write_in_place(layer, KVC_PART_RECURRENT, slots, h_rows);
    if (width > 0) write_in_place(layer, KVC_PART_CONV, slots, conv_rows);
    return;
  }
  const kvc_tensor from = dense(h_rows.data(), KVC_F32, {n_rows, state_size});
  EXPECT_EQ(kvc_state_put(wrapper_, layer, KVC_PART_RECURRENT, &from), KVC_OK) << last_message();
  Rows raw = inputs;
  const kvc_tensor columns = dense(raw.data(), KVC_F32, {n_tokens, dim});
  if (width > 0) {
    EXPECT_EQ(kvc_state_conv(wrapper_, layer, &columns), KVC_OK) << last_message();
  }
}

void Hybrid::write_in_place(int32_t layer, int32_t part, const std::vector<int32_t>& slots,
                            const Rows& rows) {
  kvc_tensor view{};
  EXPECT_EQ(kvc_state_view(wrapper_, layer, part, 0, nullptr, &view), KVC_OK) << last_message();
  view = on_host(view);
  const size_t size = slots.empty() ? 0 : rows.size() / slots.size();
  for (size_t row = 0; row < slots.size(); ++row)
    for (size_t e = 0; e < size; ++e)
      model::store(static_cast<char*>(view.data) + view.byte_offset, view.dtype,
                   slots[row] * view.strides[0] + static_cast<int64_t>(e),
                   static_cast<double>(rows[row * size + e]));
  EXPECT_EQ(kvc_state_done(wrapper_, layer, part), KVC_OK) << last_message();
}

/// Keys are the tokens' values, V the same in the opposite order.
void Hybrid::run_attention(int32_t layer, const Rows& x, bool is_encoder,
                           const std::vector<TextToken>& batch, std::vector<TokenOutput>& outputs) {
  const auto n = static_cast<int64_t>(batch.size());
  Rows k = x, v(x.size()), out(x.size());
  for (size_t t = 0; t < batch.size(); ++t)
    for (size_t d = 0; d < dim; ++d) v[t * dim + d] = x[t * dim + dim - 1 - d];
  const kvc_tensor queries = dense(k.data(), KVC_F32, {n, 1, dim});
  if (is_encoder) {
    for (const TextToken& token : batch) {
      if (!token.carries) continue;
      Rows input(static_cast<size_t>(n_inputs * dim));
      for (size_t i = 0; i < input.size(); ++i)
        input[i] = static_cast<float>((token.id * 5 + static_cast<int32_t>(i) * 11) % 29 - 14) / 16;
      const kvc_tensor kv = dense(input.data(), KVC_F32, {n_inputs, 1, dim});
      EXPECT_EQ(kvc_encoder_put(wrapper_, layer, token.sequence, &kv, &kv), KVC_OK) << last_message();
    }
  } else {
    const kvc_tensor values = dense(v.data(), KVC_F32, {n, 1, dim});
    EXPECT_EQ(kvc_put(wrapper_, layer, &queries, &values), KVC_OK) << last_message();
  }
  kvc_tensor result = dense(out.data(), KVC_F32, {n, 1, dim});
  EXPECT_EQ(kvc_attention(wrapper_, layer, &queries, &result, nullptr), KVC_OK) << last_message();
  for (size_t t = 0; t < batch.size(); ++t)
    outputs[t].attended.insert(outputs[t].attended.end(),
                               out.begin() + static_cast<ptrdiff_t>(t * dim),
                               out.begin() + static_cast<ptrdiff_t>((t + 1) * dim));
}

std::vector<float> Hybrid::contents(int32_t sequence) const {
  std::vector<float> result;
  const auto append = [&](const std::vector<float>& values) {
    result.insert(result.end(), values.begin(), values.end());
  };
  const int32_t next = sequence_info(wrapper_, sequence).next;
  for (int32_t layer = 0; layer < static_cast<int32_t>(shape_.layers.size()); ++layer) {
    const auto child = static_cast<size_t>(owner_of(layer));
    if (shape_.kinds[child] == KVC_RECURRENT) {
      std::vector<float> h(state_size), conv(static_cast<size_t>(dim * shape_.conv_dim));
      kvc_tensor into = dense(h.data(), KVC_F32, {state_size});
      EXPECT_EQ(kvc_state_gather(wrapper_, layer, KVC_PART_RECURRENT, sequence, next, &into), KVC_OK)
          << last_message();
      into = dense(conv.data(), KVC_F32, {dim, shape_.conv_dim});
      if (shape_.conv_dim > 0) {
        EXPECT_EQ(kvc_state_gather(wrapper_, layer, KVC_PART_CONV, sequence, next, &into), KVC_OK)
            << last_message();
      }
      append(h);
      append(conv);
      continue;
    }
    // Of a window what its next token would see: what lies further back depends on how the text was cut.
    const int32_t reach = shape_.reaches[child];
    const int32_t count = sequence_info(children_[child], sequence).count;
    std::vector<float> k(static_cast<size_t>(count * dim)), v(k.size());
    kvc_tensor keys = dense(k.data(), KVC_F32, {count, 1, dim});
    kvc_tensor values = dense(v.data(), KVC_F32, {count, 1, dim});
    EXPECT_EQ(kvc_gather(wrapper_, layer, sequence, &keys, &values), KVC_OK) << last_message();
    const int32_t seen = reach > 0 ? std::min(reach, count) : count;
    append({k.end() - seen * dim, k.end()});
    append({v.end() - seen * dim, v.end()});
  }
  return result;
}

}  // namespace support
