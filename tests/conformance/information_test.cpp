// What the library says about itself and about failures, whatever it is asked.
#include <gtest/gtest.h>

#include <set>

#include "kvc/experimental.h"
#include "support/abi.hpp"

namespace {

TEST(Information, EveryStatusHasItsName) {
  const std::vector<kvc_status> known = {KVC_OK,
                                         KVC_E_INVALID_ARGUMENT,
                                         KVC_E_HANDLE,
                                         KVC_E_OUT_OF_MEMORY,
                                         KVC_E_NOT_SUPPORTED,
                                         KVC_E_BAD_STATE,
                                         KVC_E_BUSY,
                                         KVC_E_SHAPE,
                                         KVC_E_DTYPE,
                                         KVC_E_OVERFLOW,
                                         KVC_E_VERSION,
                                         KVC_E_CACHE_FULL,
                                         KVC_E_WINDOW_LOST,
                                         KVC_E_NOT_FOUND,
                                         KVC_E_INVALID_RECURRENT_SHAPE,
                                         KVC_E_DEVICE,
                                         KVC_E_DEVICE_MISMATCH,
                                         KVC_E_BACKEND_UNAVAILABLE,
                                         KVC_E_IO,
                                         KVC_E_CORRUPT,
                                         KVC_E_INTERNAL};
  std::set<std::string> names;
  for (const kvc_status status : known) names.insert(support::name(status));
  EXPECT_EQ(names.size(), known.size());
  EXPECT_EQ(names.count("UNKNOWN"), 0u);
  const std::set<kvc_status> numbers(known.begin(), known.end());
  for (const kvc_status other : {1, -11, -50, -1000, INT32_MIN, INT32_MAX})
    EXPECT_EQ(support::name(other), "UNKNOWN") << other;
  for (kvc_status status = -200; status < 100; ++status)
    EXPECT_EQ(support::name(status) == "UNKNOWN", numbers.count(status) == 0) << status;
}

TEST(Information, MessagesAreCutToTheRoomThereIs) {
  ASSERT_EQ(kvc_cache_destroy(reinterpret_cast<kvc_cache*>(uintptr_t{1})), KVC_E_HANDLE);
  const size_t length = kvc_last_error_copy(nullptr, 0);
  ASSERT_GT(length, 5u);
  const std::string whole = support::last_message();
  EXPECT_EQ(whole.size(), length);
  for (size_t room = 0; room <= length + 1; ++room) {
    std::string text(length + 3, '#');
    EXPECT_EQ(kvc_last_error_copy(text.data(), room), length);
    if (room > 0) {
      EXPECT_EQ(std::string(text.c_str()), whole.substr(0, room - 1));
    }
    EXPECT_EQ(text.substr(room), std::string(text.size() - room, '#')) << "beyond the room";
  }
  EXPECT_EQ(kvc_last_error_copy(nullptr, 100), length);
}

TEST(Information, WhichLibraryThisIs) {
  EXPECT_EQ(kvc_version_number(), static_cast<uint32_t>(KVC_VERSION_NUMBER));
  const std::string info = kvc_build_info();
  EXPECT_EQ(info.find("kvc "), 0u) << info;
  EXPECT_NE(info.find("cpu kernels: "), std::string::npos) << info;
  EXPECT_EQ(info, kvc_build_info());
}

TEST(Information, DevicesHaveNamesThatOpenThem) {
  char name[32] = "untouched";
  int32_t n = 0;
  bool has_cpu = false;
  for (kvc_status status; (status = kvc_device_name(n, name, sizeof name)) != KVC_E_NOT_FOUND; ++n) {
    ASSERT_EQ(status, KVC_OK) << support::last_message();
    has_cpu = has_cpu || std::string(name) == "cpu";
    kvc_device* device = nullptr;
    EXPECT_EQ(kvc_device_open(name, nullptr, nullptr, &device), KVC_OK) << name;
    EXPECT_EQ(kvc_device_close(device), KVC_OK);
  }
  EXPECT_TRUE(has_cpu);

  std::string before = name;
  EXPECT_EQ(kvc_device_name(INT32_MAX, name, sizeof name), KVC_E_NOT_FOUND);
  EXPECT_EQ(kvc_device_name(-1, name, sizeof name), KVC_E_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_device_name(INT32_MIN, name, sizeof name), KVC_E_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_device_name(0, nullptr, sizeof name), KVC_E_INVALID_ARGUMENT);
  EXPECT_EQ(kvc_device_name(0, name, 0), KVC_E_INVALID_ARGUMENT);
  EXPECT_EQ(name, before) << "a call that fails writes nothing";
  ASSERT_EQ(kvc_device_name(0, name, sizeof name), KVC_OK);
  const std::string first = name;
  before = name;
  EXPECT_EQ(kvc_device_name(0, name, first.size()), KVC_E_INVALID_ARGUMENT)
      << "no room for the terminator";
  EXPECT_EQ(name, before);
  EXPECT_EQ(kvc_device_name(0, name, first.size() + 1), KVC_OK);
  EXPECT_EQ(name, first);
}

}  // namespace
