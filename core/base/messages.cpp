#include "core/base/messages.hpp"

#include <cinttypes>

namespace kvc {

Status is_null(const char* name) noexcept {
  return fail(Status::invalid_argument, "%s is null: this call needs it", name);
}

Status out_of_range(const char* name, int64_t value, int64_t low, int64_t high) noexcept {
  return fail(Status::invalid_argument, "%s %" PRId64 " out of range [%" PRId64 ", %" PRId64 "]",
              name, value, low, high);
}

Status no_index(const char* name, int64_t value, int64_t count) noexcept {
  return fail(Status::invalid_argument, "%s %" PRId64 " out of range [0, %" PRId64 ")", name, value,
              count);
}

Status no_index(const char* array, int32_t at, int64_t value, int64_t count) noexcept {
  return fail(Status::invalid_argument, "%s[%d] %" PRId64 " out of range [0, %" PRId64 ")", array,
              at, value, count);
}

Status check_arrays(const char* count_name, int32_t count,
                    std::initializer_list<Array> arrays) noexcept {
  if (count < 0)
    return fail(Status::invalid_argument, "%s is %d; it must be 0 or more", count_name, count);
  for (const Array& array : arrays) {
    if (count > 0 && array.data == nullptr) {
      return fail(Status::invalid_argument, "%s is null, but %s is %d", array.name, count_name, count);
    }
  }
  return Status::ok;
}

Status unknown_bits(const char* name, uint64_t unknown, const char* known) noexcept {
  return fail(Status::invalid_argument, "%s has the unknown bits 0x%" PRIx64 "; it %s%s", name,
              unknown, known == nullptr ? "must be 0" : "takes ", known == nullptr ? "" : known);
}

Status not_implemented(const char* what) noexcept {
  return fail(Status::not_supported, "%s is reserved: this version does not implement it", what);
}

}  // namespace kvc
