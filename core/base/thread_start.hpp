#pragma once
#include <pthread.h>

namespace kvc {

/// How threads of the library start: with a stack of a fixed size, whatever `ulimit -s` is.
class ThreadStart {
 public:
  ThreadStart() noexcept;
  ~ThreadStart();
  ThreadStart(const ThreadStart&) = delete;
  ThreadStart& operator=(const ThreadStart&) = delete;

  /// 0, or the system's error.
  int operator()(pthread_t* thread, void* (*body)(void*), void* argument) const noexcept;

 private:
  pthread_attr_t attributes_;
  int error_ = 0;
};

}  // namespace kvc
