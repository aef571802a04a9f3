// What the header reserves for later versions: NOT_SUPPORTED by name, in its place among the errors.
#include <gtest/gtest.h>

#include "support/bad_input.hpp"

namespace {

using support::BadInput;

constexpr kvc_status invalid = KVC_E_INVALID_ARGUMENT;

/// Replay: behind everything that is wrong with the batch and an unfinished pass, before a lack of room.
TEST(Reserved, OptionsOfABatch) {
  const support::Device device(1);
  support::Specimen s(device);
  BadInput bad(s.cache);
  constexpr kvc_status reserved = KVC_E_NOT_SUPPORTED;
  s.append(0);
  s.append(0);  // sequence 0 holds 5 of 8 positions
  const int32_t position[] = {5, 6, 7, 8}, backwards[] = {6, 5}, sequence[] = {0, 0, 0, 0};
  const auto begin = [&](int32_t n, const int32_t* at, uint32_t flags) {
    return kvc_begin(s.cache, n, at, sequence, nullptr, KVC_BEGIN_REPLAY | flags, nullptr);
  };
  const std::string name = "KVC_BEGIN_REPLAY";
  bad.expect(reserved, name, [&] { return begin(2, position, 0); });
  EXPECT_NE(support::last_message().find(name), std::string::npos) << support::last_message();
  bad.expect(reserved, "with reserve", [&] { return begin(2, nullptr, KVC_BEGIN_RESERVE); });
  bad.expect(reserved, "no room", [&] { return begin(4, position, 0); });
  bad.expect(invalid, "a bad batch", [&] { return begin(2, backwards, 0); });
  bad.expect(invalid, "without positions", [&] { return begin(2, nullptr, 0); });
  bad.expect(invalid, "with reserve, of no token",
             [&] { return begin(0, nullptr, KVC_BEGIN_RESERVE); });
  s.open(1);
  bad.expect(KVC_E_BAD_STATE, "behind an unfinished pass", [&] { return begin(1, position + 1, 0); });
  bad.expect(KVC_E_BAD_STATE, "with reserve, behind an unfinished pass",
             [&] { return begin(1, nullptr, KVC_BEGIN_RESERVE); });
  EXPECT_EQ(kvc_abort(s.cache), KVC_OK);
}

/// Flags and fields of kvc_attention_extra: behind everything that is wrong with its tensors. Only columns by position may have
/// an extent that the cells do not have.
TEST(Reserved, ExtrasOfAttention) {
  const support::Device device(1);
  support::Specimen s(device);
  s.open(1);
  BadInput bad(s.cache);
  const auto expect = [&](kvc_status status, const char* word, uint32_t flags,
                          const kvc_tensor& mask, kvc_tensor& lse) {
    kvc_attention_extra extra = support::extra(nullptr, &mask);
    extra.lse = &lse;
    extra.flags = flags;
    bad.expect(status, word, [&] { return kvc_attention(s.cache, 0, &s.q, &s.out, &extra); });
    const std::string message = support::last_message();
    EXPECT_NE(message.find(word), std::string::npos) << message;
    bad.expect(status, word,
               [&] { return kvc_put_attention(s.cache, 1, &s.k, &s.v, &s.q, &s.out, &extra); });
  };
  kvc_tensor other = s.mask, short_lse = s.lse;
  other.shape[2] -= 1;
  short_lse.shape[0] = 1;
  const struct {
    const char* name;
    uint32_t flag;
  } reserved[] = {{"KVC_EXTRA_DROPOUT", KVC_EXTRA_DROPOUT},
                  {"KVC_EXTRA_BY_POSITION", KVC_EXTRA_BY_POSITION},
                  {"KVC_EXTRA_MASK_ALONE", KVC_EXTRA_MASK_ALONE}};
  for (const auto& option : reserved) {
    const bool by_position = option.flag == KVC_EXTRA_BY_POSITION;
    expect(KVC_E_NOT_SUPPORTED, option.name, option.flag, s.mask, s.lse);
    expect(KVC_E_SHAPE, "lse", option.flag, s.mask, short_lse);
    expect(by_position ? KVC_E_NOT_SUPPORTED : KVC_E_SHAPE, by_position ? option.name : "mask",
           option.flag, other, s.lse);
  }
}

}  // namespace
