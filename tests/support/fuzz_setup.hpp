#pragma once
#include <string>
#include <vector>

#include "abi.hpp"
#include "model/oracle.hpp"
#include "random.hpp"

/// The caches that the random operations run on.
namespace fuzz {

/// What the children of a wrapper have in common; 0: each draws its own.
struct InCommon {
  int32_t n_sequences = 0, max_batch = 0;
  int32_t sequences(int32_t drawn) const { return n_sequences > 0 ? n_sequences : drawn; }
  int32_t batch(int32_t drawn) const { return max_batch > 0 ? max_batch : drawn; }
};

/// Storage types, blocks and rotations of K and V, with dimensions that they take; half of the time plain numbers. `causal`: what
/// causal caches alone have, too.
void draw_storage(support::Random& random, bool causal, kvc_cache_desc& cache);
/// Scales of f8 codes, one per KV head.
std::vector<float> draw_scales(support::Random& random, int32_t n);
std::string describe_storage(const kvc_cache_desc& cache);

struct LayerRope {
  bool bound = false;
  kvc_rope_desc desc{};
  std::vector<float> factors;  // empty: all 1

  kvc_status bind(kvc_cache* cache, int32_t layer) const;
  model::Rope model(int32_t head_dim_k) const;
};

struct LayerAttention {
  bool bound = false;
  kvc_attention_desc desc{};
  std::vector<float> slopes, sinks;  // empty: none

  kvc_status bind(kvc_cache* cache, int32_t layer) const;
  void bind(model::Constants& constants) const;
};

/// `with_slopes`: the kind takes ALiBi's slopes.
LayerAttention draw_layer_attention(const kvc_cache_desc& cache, support::Random& random,
                                    bool with_slopes);

struct Setup {
  std::string name;
  kvc_cache_desc cache{};
  kvc_causal_desc causal{};
  std::vector<LayerRope> rope;            // [n_layers]
  std::vector<LayerAttention> attention;  // [n_layers]
  bool shift = false;                     // begins with a caller's shift function

  std::string describe() const;
  /// Binds the constants.
  kvc_status bind_rope(kvc_cache* cache) const;
  kvc_status bind_attention(kvc_cache* cache) const;
  void bind_attention(model::Oracle& oracle) const;
};

const std::vector<std::string>& setup_names();
Setup draw_setup(const std::string& name, support::Random& random, const InCommon& common = {});
/// Which turns none of V with V_IN_K; such a cache has room for that where two dimensions lie before V.
LayerRope draw_layer_rope(const kvc_cache_desc& cache, support::Random& random);
bool has_room_for_rope(const kvc_cache_desc& cache);

}  // namespace fuzz
