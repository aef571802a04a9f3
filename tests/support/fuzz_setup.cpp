#include "fuzz_setup.hpp"

#include <cmath>
#include <sstream>

namespace fuzz {
namespace {

using support::Random;

/// Reach, memory, chunk and keep_first: what the name of a set-up stands for.
void draw_window(const std::string& name, Random& random, Setup& setup) {
  kvc_causal_desc& causal = setup.causal;
  causal.kind = KVC_CAUSAL;
  const auto is = [&](const char* other) { return name == other; };
  if (is("window") || is("window_memory") || is("window_chunk") || is("keep_first"))
    causal.reach = random.between(1, 6);
  if (is("window_memory")) causal.memory = causal.reach + random.between(0, 8);
  if (is("chunked") || is("chunked_memory") || is("window_chunk"))
    causal.chunk = random.between(1, 7);
  if (is("chunked_memory")) causal.memory = random.between(1, causal.chunk + 6);
  if (is("window_chunk")) causal.memory = random.pick({0, 0, random.between(1, 12), KVC_NONE});
  if (is("keep_first")) {
    causal.keep_first = random.between(1, 5);
    causal.memory = random.pick({0, causal.reach + random.between(0, 6)});
    if (random.chance(0.2)) causal.chunk = random.between(2, 9);
  }
  if (is("strict") || is("small_pool") || is("shift")) {
    if (random.chance(0.5)) causal.reach = random.between(1, 6);
    if (random.chance(0.5)) causal.memory = random.between(1, 9);
    if (random.chance(0.2)) causal.keep_first = random.between(1, 4);
    if (random.chance(0.2)) causal.chunk = random.between(1, 8);
  }
  if (causal.reach > 0 && random.chance(0.04)) causal.memory = KVC_NONE;
}

bool has_plain_keys(const kvc_cache_desc& cache) {
  return model::Storage(cache.dtype_k, cache.head_dim_k, cache.block_k, false).is_plain();
}

void draw_geometry(Random& random, const InCommon& common, Setup& setup) {
  kvc_cache_desc& cache = setup.cache;
  cache = support::cache_desc(random.between(1, 3), random.between(1, 2),
                              random.pick({2, 3, 4, 6, 8}), random.pick({0, 1, 2, 3, 5, 8}));
  const kvc_cache_desc plain = cache;
  // A caller's shift function turns numbers.
  do {
    cache = plain;
    draw_storage(random, true, cache);
  } while (setup.name == "shift" && (cache.flags & KVC_CACHE_V_IN_K || !has_plain_keys(cache)));
  cache.max_sequences = common.sequences(random.between(1, 4));
  cache.capacity = random.between(6, 36);
  cache.max_batch = common.batch(random.between(1, 8));
  cache.max_q_heads = cache.n_kv_heads * random.between(1, 4);
  if (random.chance(0.3)) cache.flags |= KVC_CACHE_ZERO_ON_FREE;
  if (random.chance(0.1)) cache.flags |= KVC_CACHE_PREFAULT;
  setup.causal = support::causal_desc();
  setup.causal.cell_padding = random.pick({0, 0, 1, 4, 7, 32});
  setup.causal.mask_dtype = random.pick<uint32_t>({0u, KVC_F32, KVC_F16});
}

void draw_rope(Random& random, Setup& setup) {
  setup.rope.resize(static_cast<size_t>(setup.cache.n_layers));
  setup.shift = setup.name == "shift";
  if (setup.shift) return;  // the caller's function says how keys turn
  const int32_t kind = random.below(10);
  if (kind == 0) return;  // nothing says how keys turn: shifts are not supported
  if (kind <= 2) {
    setup.causal.flags |= KVC_CAUSAL_POSITION_FREE;
    return;
  }
  bool any = false;
  for (LayerRope& layer : setup.rope) {
    const bool bound = random.chance(0.8) || (&layer == &setup.rope.back() && !any);
    any = any || bound;
    if (bound && has_room_for_rope(setup.cache)) layer = draw_layer_rope(setup.cache, random);
  }
}

}  // namespace

const std::vector<std::string>& setup_names() {
  static const std::vector<std::string> names = {
      "causal",       "window",     "window_memory", "chunked",    "chunked_memory",
      "window_chunk", "keep_first", "strict",        "small_pool", "shift"};
  return names;
}

bool has_room_for_rope(const kvc_cache_desc& cache) {
  return !(cache.flags & KVC_CACHE_V_IN_K) || cache.v_first >= 2;
}

LayerRope draw_layer_rope(const kvc_cache_desc& cache, Random& random) {
  const bool v_in_k = cache.flags & KVC_CACHE_V_IN_K;
  const int32_t dims = v_in_k ? cache.v_first : cache.head_dim_k;
  LayerRope layer;
  layer.bound = true;
  layer.desc.struct_size = sizeof layer.desc;
  layer.desc.pairs = random.pick<uint32_t>({KVC_ROPE_NEIGHBOURS, KVC_ROPE_HALVES});
  if (random.chance(0.3)) layer.desc.first_dim = random.between(0, dims - 2);
  const int32_t dims_left = dims - layer.desc.first_dim;
  layer.desc.n_dims = !v_in_k && random.chance(0.5) ? 0 : 2 * random.between(1, dims_left / 2);
  layer.desc.base = random.pick({0.0f, 100.0f, 500000.0f});
  layer.desc.scale = random.pick({0.0f, 0.5f, 1.0f});
  const int32_t n_dims = layer.desc.n_dims == 0 ? dims_left / 2 * 2 : layer.desc.n_dims;
  if (random.chance(0.3))
    for (int32_t i = 0; i < n_dims / 2; ++i)
      layer.factors.push_back(random.pick({1.0f, 2.0f, 1.25f}));
  return layer;
}

LayerAttention draw_layer_attention(const kvc_cache_desc& cache, Random& random, bool with_slopes) {
  LayerAttention layer;
  layer.bound = random.chance(0.7);
  layer.desc.struct_size = sizeof layer.desc;
  layer.desc.n_q_heads = cache.n_kv_heads * random.between(1, cache.max_q_heads / cache.n_kv_heads);
  layer.desc.scale = random.pick({0.0f, 0.0f, 0.3f, 1.5f});
  layer.desc.softcap = random.pick({0.0f, 0.0f, 2.0f, 15.0f});
  const bool slopes = with_slopes && random.chance(0.3), sinks = random.chance(0.3);
  for (int32_t h = 0; h < layer.desc.n_q_heads; ++h) {
    if (slopes) layer.slopes.push_back(static_cast<float>(random.unit()));
    if (sinks) layer.sinks.push_back(random.value());
  }
  return layer;
}

Setup draw_setup(const std::string& name, Random& random, const InCommon& common) {
  Setup setup;
  setup.name = name;
  draw_geometry(random, common, setup);
  draw_window(name, random, setup);
  if (name == "strict" || random.chance(0.05)) setup.cache.flags |= KVC_CACHE_STRICT;
  if (name == "small_pool" || random.chance(0.5)) {
    const model::Oracle full(setup.cache, setup.causal);
    const auto most = static_cast<int32_t>(full.pool());
    setup.cache.cells = std::max(setup.cache.max_batch, random.between(most / 5, most * 3 / 4));
  }
  draw_rope(random, setup);
  for (int32_t layer = 0; layer < setup.cache.n_layers; ++layer)
    setup.attention.push_back(draw_layer_attention(setup.cache, random, true));
  return setup;
}

std::string Setup::describe() const {
  std::ostringstream text;
  text << name << ": layers " << cache.n_layers << " kv_heads " << cache.n_kv_heads << " dk "
       << cache.head_dim_k << " dv " << cache.head_dim_v << describe_storage(cache) << " sequences "
       << cache.max_sequences << " capacity " << cache.capacity << " max_batch " << cache.max_batch
       << " cells " << cache.cells << " flags " << cache.flags << " | reach " << causal.reach
       << " memory " << causal.memory << " chunk " << causal.chunk << " keep_first "
       << causal.keep_first << " padding " << causal.cell_padding << " position_free "
       << causal.flags << (shift ? " | shift function" : "") << " | rope";
  for (const LayerRope& layer : rope) {
    text << ' ' << (layer.bound ? "pairs " + std::to_string(layer.desc.pairs) : "none");
    if (layer.bound)
      text << " first_dim " << layer.desc.first_dim << " n_dims " << layer.desc.n_dims << " base "
           << layer.desc.base << " scale " << layer.desc.scale
           << (layer.factors.empty() ? ";" : " factors;");
  }
  return text.str();
}

kvc_status LayerRope::bind(kvc_cache* cache, int32_t layer) const {
  return kvc_bind_rope(cache, layer, layer + 1, &desc, factors.empty() ? nullptr : factors.data());
}

model::Rope LayerRope::model(int32_t head_dim_k) const {
  model::Rope turn;
  turn.first_dim = desc.first_dim;
  turn.n_dims = desc.n_dims == 0 ? (head_dim_k - desc.first_dim) / 2 * 2 : desc.n_dims;
  turn.halves = desc.pairs == KVC_ROPE_HALVES;
  const double base = desc.base == 0 ? 10000 : desc.base;
  const double scale = desc.scale == 0 ? 1 : desc.scale;
  for (int32_t d = 0; d < turn.n_dims / 2; ++d) {
    const double factor = factors.empty() ? 1 : factors[static_cast<size_t>(d)];
    turn.frequency.push_back(scale * std::pow(base, -2.0 * d / turn.n_dims) / factor);
  }
  return turn;
}

kvc_status Setup::bind_rope(kvc_cache* handle) const {
  for (size_t i = 0; i < rope.size(); ++i) {
    if (!rope[i].bound) continue;
    const kvc_status status = rope[i].bind(handle, static_cast<int32_t>(i));
    if (status != KVC_OK) return status;
  }
  return KVC_OK;
}

kvc_status LayerAttention::bind(kvc_cache* cache, int32_t layer) const {
  return kvc_bind_attention(cache, layer, layer + 1, &desc, slopes.empty() ? nullptr : slopes.data(),
                            sinks.empty() ? nullptr : sinks.data());
}

void LayerAttention::bind(model::Constants& constants) const {
  constants.n_q_heads = desc.n_q_heads;
  constants.scale = desc.scale;
  constants.softcap = desc.softcap;
  constants.slopes.assign(slopes.begin(), slopes.end());
  constants.sinks.assign(sinks.begin(), sinks.end());
}

kvc_status Setup::bind_attention(kvc_cache* handle) const {
  for (size_t i = 0; i < attention.size(); ++i) {
    if (!attention[i].bound) continue;
    const kvc_status status = attention[i].bind(handle, static_cast<int32_t>(i));
    if (status != KVC_OK) return status;
  }
  return KVC_OK;
}

void Setup::bind_attention(model::Oracle& oracle) const {
  for (size_t i = 0; i < attention.size(); ++i)
    if (attention[i].bound) attention[i].bind(oracle.constants[i]);
}

}  // namespace fuzz
