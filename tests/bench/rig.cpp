#include "rig.hpp"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include "limits.hpp"
#include "measure.hpp"

namespace bench {

void must(kvc_status status, const char* what) {
  if (status == KVC_OK) return;
  char message[512];
  kvc_last_error_copy(message, sizeof message);
  std::fprintf(stderr, "%s: %s: %s\n", what, kvc_status_name(status), message);
  std::exit(1);
}

kvc_device* open_device(int32_t n_threads) {
  kvc_device_desc desc = KVC_DEVICE_DESC_INIT;
  desc.n_threads = n_threads != 0 ? n_threads : threads();
  kvc_device* device = nullptr;
  must(kvc_device_open("cpu", &desc, nullptr, &device), "device");
  return device;
}

constexpr size_t line = 64;

Array::Array(uint32_t dtype, const std::vector<int64_t>& shape) {
  must(kvc_tensor_dense(nullptr, dtype, static_cast<int32_t>(shape.size()), shape.data(), &tensor_),
       "tensor");
  const int64_t elements = shape[0] * tensor_.strides[0];
  bytes_.resize(static_cast<size_t>(elements) * (dtype == KVC_F32 ? 2 : 1) + line / sizeof(uint16_t));
  const auto past_line = reinterpret_cast<uintptr_t>(bytes_.data()) % line;
  tensor_.data = reinterpret_cast<char*>(bytes_.data()) + (line - past_line) % line;
}

void Array::fill(uint32_t seed) {
  std::minstd_rand random(seed);
  if (tensor_.dtype != KVC_F32) {
    const uint32_t varies = tensor_.dtype == KVC_F16 ? 0x83ff : 0x807f,
                   half = tensor_.dtype == KVC_F16 ? 0x3800 : 0x3f00;
    for (uint16_t& x : bytes_) x = static_cast<uint16_t>((random() >> 8 & varies) | half);
    return;
  }
  std::uniform_real_distribution<float> value(-1.7f, 1.7f);
  float table[4096];
  for (float& x : table) x = value(random);
  auto* floats = reinterpret_cast<float*>(bytes_.data());
  for (size_t i = 0; i < bytes_.size() / 2; ++i)
    floats[i] = table[(i * 7 + seed * 31 + i / 4096) % 4096];
}

Rig::Rig(const Setup& setup) : setup_(setup) {
  if (setup_.head_dim_v == 0) setup_.head_dim_v = setup_.head_dim;
  device_ = open_device(setup.n_threads);
  kvc_cache_desc desc = {};
  desc.struct_size = sizeof desc;
  desc.kind = KVC_CAUSAL;
  desc.flags = KVC_CACHE_PREFAULT;
  if (setup.rotate) desc.flags |= KVC_CACHE_ROTATE_K | KVC_CACHE_ROTATE_V;
  const double layer_bytes = bytes_of_history();
  if (setup_.layers == 0)
    setup_.layers = static_cast<int32_t>(
        std::fmax(2, std::ceil(static_cast<double>(bytes_beyond_caches()) / layer_bytes)));
  desc.n_layers = setup_.layers;
  desc.n_kv_heads = setup.n_kv_heads;
  desc.head_dim_k = setup.head_dim;
  desc.head_dim_v = setup_.head_dim_v;
  desc.dtype_k = desc.dtype_v = setup.dtype;
  desc.max_sequences = setup.sequences;
  const int32_t batch = std::max(setup.batch, 1);
  desc.max_batch = std::max({setup.sequences * batch, 512, setup.sequences + setup.batch});
  desc.capacity = setup.context + batch;
  if (setup.shared) desc.cells = setup.context + setup.sequences * batch;
  desc.max_q_heads = setup.n_q_heads;
  kvc_causal_desc causal = setup.causal;
  causal.struct_size = sizeof causal;
  causal.kind = KVC_CAUSAL;
  must(kvc_cache_create(device_, &desc, &causal, &cache_), "cache");

  kvc_attention_desc attention = {};
  attention.struct_size = sizeof attention;
  attention.n_q_heads = setup.n_q_heads;
  attention.softcap = setup.softcap;
  std::vector<float> slopes(static_cast<size_t>(setup.n_q_heads)), sinks(slopes.size(), 0.5f);
  for (size_t h = 0; h < slopes.size(); ++h)
    slopes[h] = std::exp2(-8.0f * static_cast<float>(h + 1) / static_cast<float>(slopes.size()));
  must(kvc_bind_attention(cache_, 0, setup_.layers, &attention, setup.alibi ? slopes.data() : nullptr,
                          setup.sinks ? sinks.data() : nullptr),
       "bind");
  if (setup.runtime_dtype != 0) bind_operator();
  generate();
}

void Rig::bind_operator() {
  kvc_operator_desc desc = KVC_OPERATOR_DESC_INIT;
  desc.runtime_dtype = setup_.runtime_dtype;
  kvc_operator* op = nullptr;
  must(kvc_operator_create(device_, "flash", &desc, &op), "operator");
  must(kvc_bind_operator(cache_, 0, setup_.layers, KVC_MODE_PREFILL, op), "bind_operator");
  must(kvc_operator_destroy(op), "destroy");
}

Rig::~Rig() {
  must(kvc_cache_destroy(cache_), "destroy");
  must(kvc_device_close(device_), "close");
}

double Rig::bytes_of_token() const {
  const auto row_bytes = [this](int32_t head_dim) {
    kvc_storage_info info = KVC_STORAGE_INFO_INIT;
    must(kvc_storage_query(setup_.dtype, head_dim, 0, &info), "storage");
    return static_cast<double>(info.bytes_per_row);
  };
  return setup_.n_kv_heads * (row_bytes(setup_.head_dim) + row_bytes(setup_.head_dim_v));
}

double Rig::bytes_of_history() const {
  double seen = setup_.context + 1;
  if (setup_.causal.reach > 0) seen = std::fmin(seen, setup_.causal.reach + 1);
  const double cells = setup_.shared ? setup_.context + setup_.sequences : setup_.sequences * seen;
  return cells * bytes_of_token();
}

double Rig::causal_operations(const Setup& setup, int32_t tokens, int32_t past) {
  double pairs = 0;
  for (int32_t t = 0; t < tokens; ++t) {
    double seen = past + t + 1;
    if (setup.causal.reach > 0) seen = std::fmin(seen, setup.causal.reach + 1);
    pairs += seen;
  }
  const int32_t head_dim_v = setup.head_dim_v != 0 ? setup.head_dim_v : setup.head_dim;
  return 2.0 * pairs * setup.n_q_heads * (setup.head_dim + head_dim_v);
}

void Rig::begin(const std::vector<int32_t>& position, const std::vector<int32_t>& sequence,
                bool sees_later) {
  const std::vector<uint32_t> flags(position.size(), sees_later ? KVC_TOKEN_SEES_LATER : 0);
  n_tokens_ = static_cast<int32_t>(position.size());
  must(kvc_begin(cache_, n_tokens_, position.data(), sequence.data(), flags.data(), 0, nullptr),
       "begin");
}

void Rig::put_all() {
  const int64_t n = n_tokens_, kv = setup_.n_kv_heads, q = setup_.n_q_heads, d = setup_.head_dim,
                dv = setup_.head_dim_v;
  arrays_.clear();
  arrays_.emplace_back(KVC_F32, std::vector<int64_t>{n, kv, d});
  arrays_.emplace_back(KVC_F32, std::vector<int64_t>{n, kv, dv});
  arrays_.emplace_back(setup_.dtype_q, std::vector<int64_t>{n, q, d});
  arrays_.emplace_back(setup_.dtype_q, std::vector<int64_t>{n, q, dv});
  arrays_.emplace_back(KVC_F32, std::vector<int64_t>{n, q});
  for (size_t i = 0; i < 3; ++i) arrays_[i].fill(static_cast<uint32_t>(i + 1));
  for (int32_t layer = 0; layer < setup_.layers; ++layer) put_layer(layer);
}

void Rig::put_layer(int32_t layer) {
  must(kvc_put(cache_, layer, arrays_[0].tensor(), arrays_[1].tensor()), "put");
}

/// Fills the histories: in chunks of one sequence after another, or one token of each per pass.
void Rig::generate() {
  const int32_t sequences = setup_.shared ? 1 : setup_.sequences;
  const int32_t chunk = setup_.together && sequences > 1 ? 1 : 512;
  for (int32_t first = 0; first < (setup_.together ? 1 : sequences); ++first) {
    const int32_t last = setup_.together ? sequences : first + 1;
    for (int32_t at = 0; at < setup_.context; at += chunk) {
      std::vector<int32_t> position, sequence;
      for (int32_t s = first; s < last; ++s) {
        for (int32_t i = at; i < std::min(at + chunk, setup_.context); ++i) {
          position.push_back(i);
          sequence.push_back(s);
        }
      }
      begin(position, sequence, false);
      if (arrays_.empty() || arrays_[0].tensor()->shape[0] != n_tokens_) {
        put_all();
      } else {
        for (int32_t layer = 0; layer < setup_.layers; ++layer) {
          must(kvc_put(cache_, layer, arrays_[0].tensor(), arrays_[1].tensor()), "put");
        }
      }
      must(kvc_commit(cache_), "commit");
    }
  }
  int32_t got = 0;
  for (int32_t to = sequences; to < setup_.sequences; ++to) {
    must(kvc_copy_prefix(cache_, 0, to, setup_.context, &got), "copy_prefix");
  }
}

void Rig::open(int32_t tokens, bool sees_later) {
  std::vector<int32_t> position, sequence;
  for (int32_t s = 0; s < setup_.sequences; ++s) {
    for (int32_t i = 0; i < tokens; ++i) {
      position.push_back(setup_.context + i);
      sequence.push_back(s);
    }
  }
  begin(position, sequence, sees_later);
  put_all();
}

void Rig::open_mixed(int32_t chunk, bool chunk_only, bool decodes_only) {
  std::vector<int32_t> position, sequence;
  for (int32_t i = 0; i < chunk && !decodes_only; ++i) {
    position.push_back(setup_.context + i);
    sequence.push_back(0);
  }
  for (int32_t s = 1; s < setup_.sequences && !chunk_only; ++s) {
    position.push_back(setup_.context);
    sequence.push_back(s);
  }
  begin(position, sequence, false);
  put_all();
}

void Rig::attend_layer(int32_t layer, bool log_sum_exp) {
  kvc_attention_extra extra{};
  extra.struct_size = sizeof extra;
  extra.lse = arrays_[4].tensor();
  must(kvc_attention(cache_, layer, arrays_[2].tensor(), arrays_[3].tensor(),
                     log_sum_exp ? &extra : nullptr),
       "attention");
}

void Rig::attend_all() {
  for (int32_t layer = 0; layer < setup_.layers; ++layer) attend_layer(layer, false);
}

void Rig::attend(bool log_sum_exp) {
  attend_layer(layer_, log_sum_exp);
  layer_ = (layer_ + 1) % setup_.layers;
}

}  // namespace bench
