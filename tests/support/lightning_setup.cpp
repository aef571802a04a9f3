#include "lightning_setup.hpp"

#include <sstream>

#include "state_world.hpp"

namespace fuzz {

LightningSetup draw_lightning_setup(const std::string& name, support::Random& random,
                                    const InCommon& common) {
  LightningSetup setup;
  setup.name = name;
  const auto is = [&](const char* other) { return name == other; };
  kvc_cache_desc& cache = setup.cache;
  cache.struct_size = sizeof cache;
  cache.kind = KVC_LIGHTNING;
  cache.n_layers = random.between(1, 3);
  cache.n_kv_heads = random.between(1, 2);
  cache.head_dim_k = random.pick({1, 2, 3, 5, 16, 17});
  cache.head_dim_v = random.pick({0, 1, 2, 4, 18});
  cache.max_sequences = common.sequences(random.between(1, 4));
  cache.max_batch = common.batch(random.between(1, 8));
  if (is("strict") || random.chance(0.05)) cache.flags |= KVC_CACHE_STRICT;
  if (random.chance(0.3)) cache.flags |= KVC_CACHE_ZERO_ON_FREE;
  if (random.chance(0.1)) cache.flags |= KVC_CACHE_PREFAULT;
  kvc_lightning_desc& lightning = setup.lightning;
  lightning = KVC_LIGHTNING_DESC_INIT;
  if (is("approximate") || random.chance(0.3)) lightning.flags |= KVC_LIGHTNING_APPROXIMATE;
  if (random.chance(0.2)) lightning.flags |= KVC_LIGHTNING_HOST_CHECKPOINTS;
  if (random.chance(0.2)) lightning.flags |= KVC_LIGHTNING_FUSED;
  lightning.block = random.pick({0, 0, 1, 2, 3});
  draw_checkpoints(name, random, lightning);
  setup.n_q_heads = cache.n_kv_heads * random.between(1, 3);
  setup.binds_attention = random.chance(0.7);
  setup.scale = setup.binds_attention ? random.pick({0.0f, 0.5f, 1.0f}) : 0.0f;
  for (int32_t i = 0; i < cache.n_layers * cache.n_kv_heads; ++i)
    setup.slopes.push_back(random.pick({0.0f, 0.001f, 0.0625f, 0.5f, 2.0f, 100.0f}));
  return setup;
}

std::string LightningSetup::describe() const {
  std::ostringstream text;
  text << name << ": layers " << cache.n_layers << " heads " << cache.n_kv_heads << " of "
       << cache.head_dim_k << " x " << cache.head_dim_v << " sequences " << cache.max_sequences
       << " max_batch " << cache.max_batch << " flags " << cache.flags << " | flags "
       << lightning.flags << " block " << lightning.block << " checkpoints "
       << lightning.checkpoints << " interval " << lightning.checkpoint_interval << " min_pos "
       << lightning.checkpoint_min_pos << " draft_states " << lightning.draft_states
       << " query heads " << n_q_heads << " scale " << scale << " slopes";
  for (const float slope : slopes) text << ' ' << slope;
  return text.str();
}

}  // namespace fuzz
