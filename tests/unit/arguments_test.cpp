// Descriptors and output structs of callers that were built against another version: what an older caller does not have is zero
// or not written, what a newer one sets must be zero.
#include "capi/src/arguments.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <cstring>

namespace {

/// What a struct of 0.1 may look like after two versions.
struct Grown {
  uint32_t struct_size;
  int32_t first;
  uint64_t second;
  int32_t third;  // since the version after
  int32_t fourth;
  uint64_t fifth;  // since the one after that
};
constexpr uint32_t size_at_first = 16, size_between = 24;

}  // namespace

template <>
inline constexpr size_t kvc::capi::first_size<Grown> = size_at_first;

namespace {

using kvc::Status;

/// The bytes of a caller: its struct, and behind it what is none of the library's business.
struct Caller {
  static constexpr unsigned char beside = 0x5A;

  alignas(Grown) std::array<unsigned char, 64> bytes;

  explicit Caller(uint32_t struct_size) {
    bytes.fill(beside);
    const Grown all = {struct_size, 1, 2, 3, 4, 5};
    std::memcpy(bytes.data(), &all, struct_size < sizeof all ? struct_size : sizeof all);
    std::memcpy(bytes.data(), &struct_size, sizeof struct_size);
  }
  Grown* as() { return reinterpret_cast<Grown*>(bytes.data()); }
  bool intact_from(size_t at) const {
    for (; at < bytes.size(); ++at)
      if (bytes[at] != beside) return false;
    return true;
  }
};

TEST(Descriptors, OfOlderCallersEndInZeros) {
  Grown read;
  std::memset(static_cast<void*>(&read), 0x77, sizeof read);
  Caller old(size_at_first);
  ASSERT_EQ(kvc::capi::read_descriptor("grown", old.as(), &read), Status::ok);
  EXPECT_EQ(read.struct_size, size_at_first);
  EXPECT_EQ(read.first, 1);
  EXPECT_EQ(read.second, 2u);
  EXPECT_EQ(read.third, 0);
  EXPECT_EQ(read.fourth, 0);
  EXPECT_EQ(read.fifth, 0u);

  Caller between(size_between);
  ASSERT_EQ(kvc::capi::read_descriptor("grown", between.as(), &read), Status::ok);
  EXPECT_EQ(read.third, 3);
  EXPECT_EQ(read.fourth, 4);
  EXPECT_EQ(read.fifth, 0u);
}

TEST(Descriptors, OfThisVersionAndLater) {
  Grown read;
  Caller same(sizeof(Grown));
  ASSERT_EQ(kvc::capi::read_descriptor("grown", same.as(), &read), Status::ok);
  EXPECT_EQ(read.fifth, 5u);

  Caller newer(sizeof(Grown) + 8);
  EXPECT_EQ(kvc::capi::read_descriptor("grown", newer.as(), &read), Status::version);
  std::memset(newer.bytes.data() + sizeof(Grown), 0, 8);
  ASSERT_EQ(kvc::capi::read_descriptor("grown", newer.as(), &read), Status::ok);
  EXPECT_EQ(read.fifth, 5u);
}

TEST(Descriptors, ShorterThanAnyAreRefused) {
  Grown read;
  for (const uint32_t size : {0u, 4u, size_at_first - 1, 4097u}) {
    Caller wrong(size_at_first);
    wrong.as()->struct_size = size;
    EXPECT_EQ(kvc::capi::read_descriptor("grown", wrong.as(), &read), Status::invalid_argument);
    if (size < size_at_first) {
      EXPECT_EQ(kvc::capi::check_output("grown", wrong.as()), Status::invalid_argument);
    }
  }
}

TEST(Answers, FillWhatTheCallerHasRoomFor) {
  const Grown filled = {0, 10, 20, 30, 40, 50};
  for (const uint32_t size : {size_at_first, size_between, uint32_t{sizeof(Grown)}, 48u}) {
    Caller caller(size);
    caller.bytes.fill(Caller::beside);
    caller.as()->struct_size = size;
    ASSERT_EQ(kvc::capi::check_output("grown", caller.as()), Status::ok);
    kvc::capi::write_output(filled, caller.as());
    EXPECT_EQ(caller.as()->struct_size, size);
    EXPECT_EQ(caller.as()->second, 20u);
    EXPECT_EQ(caller.as()->fourth == 40, size >= size_between);
    EXPECT_EQ(caller.as()->fifth == 50, size >= sizeof(Grown));
    EXPECT_TRUE(caller.intact_from(std::min<size_t>(size, sizeof(Grown)))) << size;
  }
}

}  // namespace
