// kvc/storage.hpp: how vectors lie in a storage type, and the codecs of caches. Part of <kvc/kvc.hpp>; storage.h is the manual.
//
//   kvc::CodecDesc codec;
//   codec.dtype = KVC_Q4_0, codec.flags = KVC_CODEC_ROTATE;
//   const kvc_storage_info row = kvc::storage_query(codec.dtype, 64);  // 32 codes of KVC_U8, 2 scales of KVC_F16
//   std::vector<std::uint8_t> codes(n * 32);
//   std::vector<std::uint16_t> scales(n * 2);
//   kvc::encode(codec, {x, {n, 64}}, {codes, row.code_dtype, {n, 32}}, {scales, row.scale_dtype, {n, 2}});
//
// The same bytes lie in a cache whose desc.dtype_k is KVC_Q4_0 and whose desc.flags has KVC_CACHE_ROTATE_K.
#ifndef KVC_STORAGE_HPP
#define KVC_STORAGE_HPP

#include <cstdint>

#include "base.hpp"

namespace kvc {
inline namespace api_0_2 {

struct CodecDesc : kvc_codec_desc {  // dtype has no default
  CodecDesc() noexcept : kvc_codec_desc(KVC_CODEC_DESC_INIT) {}
};

// How vectors of head_dim numbers lie in a storage type. block: of KVC_NF4.
inline kvc_storage_info storage_query(std::uint32_t dtype, std::int32_t head_dim, std::int32_t block = 0) {
  kvc_storage_info info = KVC_STORAGE_INFO_INIT;
  check(kvc_storage_query(dtype, head_dim, block, &info));
  return info;
}

// The scales of a type that stores none are {}.
inline void encode(const CodecDesc &desc, const ConstTensor &values, Tensor codes, Tensor scales = {}) {
  check(kvc_encode(&desc, values.get(), codes.get(), scales.get()));
}
inline void decode(const CodecDesc &desc, const ConstTensor &codes, const ConstTensor &scales, Tensor values) {
  check(kvc_decode(&desc, codes.get(), scales.get(), values.get()));
}

}  // namespace api_0_2
}  // namespace kvc

#endif
