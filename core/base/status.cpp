#include "core/base/status.hpp"

#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "core/base/message_slots.hpp"

namespace kvc {

Status fail(Status status, const char* format, ...) noexcept {
  MessageSlot* slot = MessageSlot::take();
  if (slot == nullptr) return status;
  va_list arguments;
  va_start(arguments, format);
  std::vsnprintf(slot->text, sizeof slot->text, format, arguments);
  va_end(arguments);
  slot->done();
  return status;
}

const char* last_message() noexcept {
  const MessageSlot* slot = MessageSlot::find();
  return slot == nullptr ? "" : slot->text;
}

size_t copy_last_message(char* buffer, size_t capacity) noexcept {
  MessageSlot* slot = MessageSlot::find();
  const char* text = slot == nullptr ? "" : slot->text;
  const size_t length = std::strlen(text);
  if (buffer != nullptr && capacity > 0) {
    const size_t copied = length < capacity ? length : capacity - 1;
    std::memcpy(buffer, text, copied);
    buffer[copied] = '\0';
  }
  if (slot != nullptr) slot->done();
  return length;
}

}  // namespace kvc
