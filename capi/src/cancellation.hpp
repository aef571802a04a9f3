#pragma once
#include <pthread.h>

namespace kvc::capi {

/// While one exists, the calling thread is not cancelled (pthread_cancel): it stays pending. Cancellation unwinds the stack, and
/// neither functions that do not throw nor objects that are half made survive that. For the places that reach a cancellation
/// point: the system's (getrandom, files of a cgroup, pthread_join), or one in a function of the caller's.
class NoCancellation {
 public:
  NoCancellation() noexcept { pthread_setcancelstate(PTHREAD_CANCEL_DISABLE, &before_); }
  ~NoCancellation() { pthread_setcancelstate(before_, nullptr); }
  NoCancellation(const NoCancellation&) = delete;
  NoCancellation& operator=(const NoCancellation&) = delete;

 private:
  int before_ = PTHREAD_CANCEL_ENABLE;
};

}  // namespace kvc::capi
