// kvc/kinds.hpp: what a cache is created from. Part of <kvc/kvc.hpp>; the headers of the kinds are the manual.
//
// Descriptors are the C structs, with struct_size set and all else at its default.
#ifndef KVC_KINDS_HPP
#define KVC_KINDS_HPP

#include <cstdint>
#include <variant>

#include "kvc.h"
#include "lightning.h"
#include "transformer.h"

namespace kvc {
inline namespace api_0_2 {

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

struct TransformerDesc : kvc_transformer_desc {
  TransformerDesc() noexcept : kvc_transformer_desc(KVC_TRANSFORMER_DESC_INIT) {}
};

struct LightningDesc : kvc_lightning_desc {
  LightningDesc() noexcept : kvc_lightning_desc(KVC_LIGHTNING_DESC_INIT) {}
};

// What only one kind needs, and with it the kind; {}: a causal cache.
using KindDesc = std::variant<CausalDesc, EncoderDesc, RecurrentDesc, TransformerDesc, LightningDesc>;

namespace detail {

// By the descriptor's type. The library refuses one whose field `kind` was overwritten.
inline Kind kind_of(const KindDesc &kind) noexcept {
  constexpr Kind kinds[] = {Kind::causal, Kind::encoder, Kind::recurrent, Kind::transformer, Kind::lightning};
  static_assert(sizeof kinds / sizeof kinds[0] == std::variant_size_v<KindDesc>, "one for each alternative, in its order");
  return kinds[kind.index()];
}
inline const void *pointer_to(const KindDesc &kind) {
  return std::visit([](const auto &desc) { return static_cast<const void *>(&desc); }, kind);
}

}  // namespace detail

}  // namespace api_0_2
}  // namespace kvc

#endif
