// The last message belongs to the thread whose call failed: none before its first failure, none of another's, whatever threads
// come and go, in forked children, and when more threads have one than the library keeps.
#include <gtest/gtest.h>
#include <pthread.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <string>
#include <thread>

#include "support/abi.hpp"

namespace {

/// Fails with a message that holds `number`.
void fail_with(int32_t number) {
  kvc_tensor tensor{};
  const int64_t shape[] = {1};
  EXPECT_EQ(kvc_tensor_dense(nullptr, KVC_F32, number, shape, &tensor), KVC_E_INVALID_ARGUMENT);
}

bool is_message_of(int32_t number) {
  return support::last_message().find(std::to_string(number)) != std::string::npos;
}

/// More than the kernel's numbers of threads (where the system has few of them), and more than the library keeps messages.
TEST(ThreadMessages, AThreadBeginsWithoutOneHoweverManyHaveEnded) {
#ifdef KVC_SANITIZED
  constexpr int32_t n_threads = 5000;
#else
  constexpr int32_t n_threads = 40000;
#endif
  int32_t old = 0, lost = 0;
  for (int32_t i = 0; i < n_threads; ++i) {
    std::thread([&, i] {
      if (!support::last_message().empty()) ++old;
      fail_with(100000 + i);
      if (!is_message_of(100000 + i)) ++lost;
    }).join();
  }
  EXPECT_EQ(old, 0);
  EXPECT_EQ(lost, 0);
}

TEST(ThreadMessages, EachOfManyThreadsKeepsItsOwn) {
  std::atomic<int32_t> wrong{0};
  std::vector<std::thread> threads;
  for (int32_t t = 0; t < 16; ++t) {
    threads.emplace_back([&, t] {
      for (int32_t i = 0; i < 500; ++i) {
        fail_with(1000 * (t + 1) + i);
        std::this_thread::yield();
        if (!is_message_of(1000 * (t + 1) + i)) ++wrong;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
}

TEST(ThreadMessages, AForkedChildBeginsWithoutOneAndTheParentKeepsIts) {
  fail_with(4711);
  const pid_t child = fork();
  if (child == 0) {
    alarm(60);
    if (!support::last_message().empty()) _exit(1);
    std::thread([] { fail_with(31); }).join();
    if (!support::last_message().empty()) _exit(2);
    fail_with(32);
    std::thread([] { fail_with(33); }).join();
    _exit(is_message_of(32) ? 0 : 3);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0) << "exit status " << WEXITSTATUS(status);
  EXPECT_TRUE(is_message_of(4711)) << support::last_message();
}

TEST(ThreadMessages, AThreadThatEndsMayStillFail) {
  static std::atomic<int32_t> failures;
  failures = 0;
  pthread_key_t key{};
  ASSERT_EQ(pthread_key_create(&key,
                               [](void*) {
                                 fail_with(5000);
                                 if (is_message_of(5000)) ++failures;
                               }),
            0);
  for (int32_t i = 0; i < 100; ++i) {
    std::thread([&] {
      fail_with(4000);
      pthread_setspecific(key, &key);
    }).join();
  }
  pthread_key_delete(key);
  EXPECT_EQ(failures, 100);
}

/// Threads that fail and then wait.
class Waiting {
 public:
  ~Waiting() {
    go_on_ = true;
    go_on_.notify_all();
    for (const pthread_t thread : threads_) pthread_join(thread, nullptr);
  }

  bool start(int32_t n) {
    pthread_attr_t small;
    pthread_attr_init(&small);
    pthread_attr_setstacksize(&small, size_t{64} << 10);
    pthread_t thread{};
    while (n > 0 && pthread_create(&thread, &small, run, this) == 0) {
      threads_.push_back(thread);
      --n;
    }
    pthread_attr_destroy(&small);
    while (n_failed_ < static_cast<int32_t>(threads_.size())) std::this_thread::yield();
    return n == 0;
  }

  int32_t n_kept() const { return n_kept_; }

 private:
  static void* run(void* argument) {
    auto& self = *static_cast<Waiting*>(argument);
    kvc_commit(nullptr);
    if (kvc_last_error_copy(nullptr, 0) > 0) ++self.n_kept_;
    ++self.n_failed_;
    self.go_on_.wait(false);
    return nullptr;
  }

  std::vector<pthread_t> threads_;
  std::atomic<int32_t> n_failed_{0}, n_kept_{0};
  std::atomic<bool> go_on_{false};
};

// What docs/THREADING.md says the library keeps at a time.
constexpr int32_t most_messages = 4096;

TEST(ThreadMessages, WhereTooManyThreadsHaveOneFurtherOnesAreLost) {
#ifdef KVC_SANITIZED
  GTEST_SKIP() << "a sanitizer has no room for so many threads";
#endif
  fail_with(17);
  {
    Waiting threads;
    if (!threads.start(most_messages + 100)) GTEST_SKIP() << "the system starts no more threads";
    EXPECT_EQ(threads.n_kept(), most_messages - 1) << "this thread has one, too";
    EXPECT_TRUE(is_message_of(17));
    fail_with(18);
    EXPECT_TRUE(is_message_of(18));
  }
  Waiting again;
  ASSERT_TRUE(again.start(100));
  EXPECT_EQ(again.n_kept(), 100) << "threads that ended have made room";
}

}  // namespace
