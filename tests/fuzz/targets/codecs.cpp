// libFuzzer: a codec and numbers made of the fuzzer's bytes. What kvc_encode() writes is what the model encodes, byte for byte, and
// kvc_decode() reads what the model reads.
#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

#include "fuzz/targets/require.hpp"
#include "model/storage.hpp"
#include "support/abi.hpp"
#include "support/array.hpp"

namespace {

bool same_nan(const model::Storage& storage, float a, float b) {
  return storage.is_plain() && std::isnan(a) && std::isnan(b);
}

void compare(const kvc_codec_desc& desc, const model::Storage& storage, const float* x) {
  support::Array values(KVC_F32, {storage.dim}), read(KVC_F32, {storage.dim});
  support::Array codes(storage.code_dtype(), {storage.codes_per_row()});
  support::Array scales(storage.block > 0 ? storage.scale_dtype() : uint32_t{KVC_F32},
                        {std::max<int64_t>(1, storage.scales_per_row())});
  kvc_tensor* const given = storage.block > 0 ? scales.tensor() : nullptr;
  std::memcpy(values.element(0), x, static_cast<size_t>(storage.dim) * sizeof *x);
  require(kvc_encode(&desc, values.tensor(), codes.tensor(), given) == KVC_OK, "encode");
  const float bound = desc.scale == 0 ? 1 : desc.scale;
  std::vector<uint8_t> wanted(storage.code_bytes()), wanted_scales(storage.scale_bytes());
  model::encode(storage, x, bound, wanted.data(), wanted_scales.data());
  std::vector<float> number(static_cast<size_t>(storage.dim)), mine(number.size());
  model::decode(storage, wanted.data(), wanted_scales.data(), bound, number.data());
  model::decode(storage, codes.element(0), scales.element(0), bound, mine.data());
  const size_t element = storage.code_bytes() / static_cast<size_t>(storage.codes_per_row());
  for (size_t i = 0; i < wanted.size(); i += element)
    require(std::memcmp(codes.element(0) + i, wanted.data() + i, element) == 0 ||
                same_nan(storage, number[i / element], mine[i / element]),
            "other codes");
  require(wanted_scales.empty() ||
              std::memcmp(scales.element(0), wanted_scales.data(), wanted_scales.size()) == 0,
          "other scales");
  require(kvc_decode(&desc, codes.tensor(), given, read.tensor()) == KVC_OK, "decode");
  for (size_t i = 0; storage.rotation == 0 && i < number.size(); ++i) {
    const double got = read.get(static_cast<int64_t>(i));
    require(got == double{number[i]} || (std::isnan(got) && std::isnan(number[i])),
            "other numbers");
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr uint32_t types[] = {KVC_F32,  KVC_F16,  KVC_BF16, KVC_F8_E4M3, KVC_F8_E5M2,
                                KVC_Q8_0, KVC_Q4_0, KVC_INT8, KVC_NF4};
  if (size < 8) return 0;
  kvc_codec_desc desc = KVC_CODEC_DESC_INIT;
  desc.dtype = data[0] < 240 ? types[data[0] % 9] : data[0];
  desc.flags = data[1] % 8 == 7 ? data[1] : data[1] % 2;
  desc.block = data[2] % 2 == 0 ? 0 : data[2] % 4 == 1 ? 16 << data[2] / 4 % 4 : data[2];
  if (data[3] % 4 == 0) std::memcpy(&desc.scale, data + 4, sizeof desc.scale);
  const size_t n = (size - 8) / sizeof(float);
  const int64_t dim = n > 4096 ? 4096 : static_cast<int64_t>(n);
  std::vector<float> x(static_cast<size_t>(dim) + 1);
  std::memcpy(x.data(), data + 8, static_cast<size_t>(dim) * sizeof(float));
  std::vector<unsigned char> room(x.size() * 8);
  // Whether the descriptor is taken is asked with tensors that fit no type: SHAPE or DTYPE say that it was.
  const kvc_tensor values = support::dense(x.data(), KVC_F32, {dim});
  kvc_tensor nothing = support::dense(room.data(), KVC_BOOL, {1, 1});
  const kvc_status status = kvc_encode(&desc, &values, &nothing, nullptr);
  require(status != KVC_OK && status != KVC_E_INTERNAL && !support::last_message().empty(),
          "a wrong tensor");
  if (dim == 0 || status != KVC_E_SHAPE) return 0;
  const bool rotates = (desc.flags & KVC_CODEC_ROTATE) != 0;
  compare(desc, model::Storage(desc.dtype, static_cast<int32_t>(dim), desc.block, rotates), x.data());
  return 0;
}
