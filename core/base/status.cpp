#include "core/base/status.hpp"

#include <cstdarg>
#include <cstdio>

namespace kvc {
namespace {

/// Lies in the room that a thread has from its start: other models allocate it at the first failure of each thread when
/// the library came by dlopen.
[[gnu::tls_model("initial-exec")]] thread_local char message[message_capacity];

}  // namespace

Status fail(Status status, const char* format, ...) noexcept {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return status;
}

const char* last_message() noexcept { return message; }

}  // namespace kvc
