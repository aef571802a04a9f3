#include "core/base/status.hpp"

#include <cstdarg>
#include <cstdio>

namespace kvc {
namespace {
thread_local char message[message_capacity];
}

Status fail(Status status, const char* format, ...) noexcept {
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(message, sizeof message, format, arguments);
  va_end(arguments);
  return status;
}

const char* last_message() noexcept { return message; }

}  // namespace kvc
