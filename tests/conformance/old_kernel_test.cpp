// On a kernel that cannot wipe memory in forked children there are no handles, and the message says why. The functions
// below take the place of the C library's in this program: a program's own symbols come first.
#include <gtest/gtest.h>
#include <kvc/kvc.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <string>

namespace {

bool is_old = false;

}  // namespace

extern "C" int madvise(void* address, size_t length, int advice) noexcept {
  if (is_old && advice == MADV_WIPEONFORK) {
    errno = EINVAL;
    return -1;
  }
  return static_cast<int>(syscall(SYS_madvise, address, length, advice));
}

namespace {

TEST(OldKernel, HasNoHandlesAndIsToldWhy) {
  kvc_device* device = nullptr;
  is_old = true;
  ASSERT_EQ(kvc_device_open("cpu", nullptr, nullptr, &device), KVC_E_OUT_OF_MEMORY);
  EXPECT_EQ(device, nullptr);
  char message[512];
  kvc_last_error_copy(message, sizeof message);
  EXPECT_NE(std::string(message).find("MADV_WIPEONFORK, Linux 4.14"), std::string::npos) << message;
  EXPECT_NE(std::string(message).find("errno " + std::to_string(EINVAL)), std::string::npos)
      << message;
  is_old = false;
  EXPECT_EQ(kvc_device_open("cpu", nullptr, nullptr, &device), KVC_OK);
  EXPECT_EQ(kvc_device_close(device), KVC_OK);
}

}  // namespace
