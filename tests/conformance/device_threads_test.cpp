// The threads of a device start whatever limits the process has, or the device is not opened: then the message says why, and
// nothing is left of it.
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <functional>
#include <string>

#include "support/abi.hpp"

namespace {

constexpr int32_t most_threads = 256;

/// Of this program. The C library lays it on the stack of every thread.
[[gnu::used]] thread_local char big_thread_local[1 << 20];

/// A number of /proc/self/status.
int64_t status_number(const std::string& name) {
  std::ifstream status("/proc/self/status");
  for (std::string line; std::getline(status, line);)
    if (line.rfind(name + ":", 0) == 0) return std::stoll(line.substr(name.size() + 1));
  return -1;
}

/// Opens a device in a child process, where `limit` has taken effect.
std::string in_a_child(const std::function<bool()>& limit, const std::function<std::string()>& act) {
  int ends[2];
  if (pipe(ends) != 0) return "no pipe";
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    const std::string told = limit() ? act() : "not run";
    _exit(write(ends[1], told.data(), told.size()) == static_cast<ssize_t>(told.size()) ? 0 : 1);
  }
  close(ends[1]);
  char text[1024];
  const ssize_t n = read(ends[0], text, sizeof text);
  close(ends[0]);
  int status = -1;
  waitpid(child, &status, 0);
  return status == 0 && n > 0 ? std::string(text, static_cast<size_t>(n)) : "a child that failed";
}

bool set_limit(int resource, rlim_t limit) {
  const rlimit both = {limit, limit};
  return setrlimit(static_cast<__rlimit_resource_t>(resource), &both) == 0;
}

/// Status and message, or what is left of the device afterwards.
std::string fail_to_open(int32_t n_threads) {
  const support::Device device(n_threads);
  const std::string told = support::name(device.status) + ": " + support::last_message();
  if (device.handle != nullptr) return "a handle: " + told;
  if (const int64_t n = status_number("Threads"); n != 1)
    return std::to_string(n) + " threads: " + told;
  return told;
}

/// What `ulimit -s` sets for threads whose starter does not care.
class DefaultStackSize {
 public:
  explicit DefaultStackSize(size_t bytes) {
    pthread_getattr_default_np(&before_);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setstacksize(&attributes, bytes);
    EXPECT_EQ(pthread_setattr_default_np(&attributes), 0);
    pthread_attr_destroy(&attributes);
  }
  ~DefaultStackSize() { pthread_setattr_default_np(&before_); }
  DefaultStackSize(const DefaultStackSize&) = delete;
  DefaultStackSize& operator=(const DefaultStackSize&) = delete;

 private:
  pthread_attr_t before_;
};

TEST(DeviceThreads, StartWhateverTheDefaultSizeOfAStackIs) {
  big_thread_local[0] = 1;
  for (const size_t bytes : {size_t{16} << 10, size_t{1} << 42}) {
    const DefaultStackSize stack_size(bytes);
    const support::Device device(most_threads);
    EXPECT_EQ(device.status, KVC_OK) << bytes << ": " << support::last_message();
  }
}

TEST(DeviceThreads, TakeLittleAddressSpace) {
#ifdef KVC_SANITIZED
  GTEST_SKIP() << "a sanitizer takes address space of its own for each thread";
#endif
  const int64_t before = status_number("VmSize");
  const support::Device device(most_threads);
  ASSERT_EQ(device.status, KVC_OK) << support::last_message();
  const int64_t kib = (status_number("VmSize") - before) / (most_threads - 1);
  EXPECT_LE(kib, 1024 + 512) << "1 MiB of it is this program's thread-local storage";
}

TEST(DeviceThreads, WithoutMemoryForAllOfThemNoneStaysAndTheMessageSaysWhy) {
#ifdef KVC_SANITIZED
  GTEST_SKIP() << "a sanitizer needs all of the address space";
#endif
  const std::string told = in_a_child(
      [] {
        const auto bytes = static_cast<rlim_t>(status_number("VmSize")) << 10;
        return set_limit(RLIMIT_AS, bytes + (rlim_t{16} << 20));
      },
      [] {
        const std::string failed = fail_to_open(most_threads);
        const support::Device small(4);
        return failed + " Then: " + support::name(small.status);
      });
  EXPECT_EQ(told.rfind("OUT_OF_MEMORY: ", 0), 0u) << told;
  EXPECT_NE(told.find("of 256 threads started"), std::string::npos) << told;
  EXPECT_NE(told.find("errno 11 (EAGAIN: a limit on threads or memory"), std::string::npos) << told;
  EXPECT_NE(told.find("Then: OK"), std::string::npos) << told;
}

TEST(DeviceThreads, WhereNoMoreThreadsAreAllowedTheMessageSaysHowManyRun) {
  const std::string told = in_a_child(
      [] {  // the superuser has no such limit
        return set_limit(RLIMIT_NPROC, 1) && (getuid() != 0 || setuid(65534) == 0);
      },
      [] { return fail_to_open(3); });
  if (told == "not run") GTEST_SKIP() << "the system does not let this process limit itself";
  EXPECT_EQ(
      told.rfind("OUT_OF_MEMORY: 1 of 3 threads started, then the system refused one: errno 11", 0), 0u)
      << told;
}

}  // namespace
