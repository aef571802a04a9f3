// kvc/encoder.hpp: caches of encoder inputs, for cross attention. Part of <kvc/kvc.hpp>; encoder.h is the manual.
//
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
#ifndef KVC_ENCODER_HPP
#define KVC_ENCODER_HPP

#include <cstdint>

#include "base.hpp"

namespace kvc {
inline namespace api_0_2 {

// The input that a sequence of an encoder cache holds.
struct EncoderInput {
  std::int32_t position = KVC_NONE;  // of the token that carried it; KVC_NONE: the sequence has none
  std::int32_t length = 0;
};

// Member functions of Cache.
template <typename Self>
class EncoderCalls {
 public:
  void encoder_put(std::int32_t layer, std::int32_t sequence, const ConstTensor &k, const ConstTensor &v) {
    check(kvc_encoder_put(raw(), layer, sequence, k.get(), v.get()));
  }
  void encoder_share(std::int32_t sequence, std::int32_t source) { check(kvc_encoder_share(raw(), sequence, source)); }
  EncoderInput encoder_query(std::int32_t sequence) const {
    EncoderInput input;
    check(kvc_encoder_query(raw(), sequence, &input.position, &input.length));
    return input;
  }

 private:
  kvc_cache *raw() const noexcept { return static_cast<const Self &>(*this).handle(); }
};

}  // namespace api_0_2
}  // namespace kvc

#endif
