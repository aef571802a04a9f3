// kvc/lightning.hpp: lightning caches, for linear attention with decay. Part of <kvc/kvc.hpp>; lightning.h is the manual.
//
//   kvc::Cache cache(device, desc, kvc::LightningDesc());  // desc.capacity is 0: states do not grow
//   for each layer cache.bind_decay(layer, layer + 1, kvc::slopes(kvc::Slopes::minimax, 32, layer, n_layers).data());
//   kvc::Pass pass(cache, positions, sequences);           // or of kvc::Rows
//   for each layer cache.put_attention(layer, {k, {n, 32, 128}}, {v, {n, 32, 128}}, {q, {n, 32, 128}}, {out, {n, 32, 128}});
//   pass.commit();
//
// Checkpoints are those of recurrent caches: checkpoint_take(), checkpoint_list(), resume().
#ifndef KVC_LIGHTNING_HPP
#define KVC_LIGHTNING_HPP

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "base.hpp"
#include "lightning.h"

namespace kvc {
inline namespace api_0_2 {

// Families of slopes, see kvc_slopes().
enum class Slopes : std::uint32_t {
  alibi = KVC_SLOPES_ALIBI,
  lightning2 = KVC_SLOPES_LIGHTNING2,
  minimax = KVC_SLOPES_MINIMAX,
  linear = KVC_SLOPES_LINEAR
};

// [n_heads] for bind_decay(), and those of alibi for bind_attention(), too. alibi ignores the layer.
inline std::vector<float> slopes(Slopes family, std::int32_t n_heads, std::int32_t layer = 0, std::int32_t n_layers = 1) {
  std::vector<float> found(static_cast<std::size_t>(std::clamp(n_heads, 1, 1 << 20)));  // of more heads nothing is written
  check(kvc_slopes(static_cast<std::uint32_t>(family), n_heads, layer, n_layers, found.data()));
  return found;
}

// Member functions of Cache.
template <typename Self>
class LightningCalls {
 public:
  // Slopes of layers [layer_begin, layer_end), one for each state head, copied. While the cache is empty.
  void bind_decay(std::int32_t layer_begin, std::int32_t layer_end, const float *slopes) {
    check(kvc_bind_decay(raw(), layer_begin, layer_end, slopes));
  }
  // The shape that lightning_read() needs, [n, n_kv_heads, head_dim_k, head_dim_v] of f32; data is null.
  kvc_tensor lightning_shape(std::int32_t layer, std::int32_t sequence_begin, std::int32_t n) const {
    kvc_tensor shape{};
    check(kvc_lightning_read(raw(), layer, sequence_begin, n, &shape));
    return shape;
  }
  // The states of sequences [sequence_begin, sequence_begin + n).
  void lightning_read(std::int32_t layer, std::int32_t sequence_begin, std::int32_t n, Tensor state) const {
    check(kvc_lightning_read(raw(), layer, sequence_begin, n, state.get()));
  }
  void lightning_write(std::int32_t layer, std::int32_t sequence_begin, std::int32_t n, const ConstTensor &state) {
    check(kvc_lightning_write(raw(), layer, sequence_begin, n, state.get()));
  }

 private:
  kvc_cache *raw() const noexcept { return static_cast<const Self &>(*this).handle(); }
};

}  // namespace api_0_2
}  // namespace kvc

#endif
