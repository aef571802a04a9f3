#pragma once
#include <cstdint>
#include <initializer_list>

#include "core/base/status.hpp"

/// Refusals that many checks share. Each names the argument as the C header does, what came, and what is taken.
namespace kvc {

/// "out is null: this call needs it"
Status is_null(const char* name) noexcept;

/// "n_layers 0 out of range [1, 65536]"
Status out_of_range(const char* name, int64_t value, int64_t low, int64_t high) noexcept;

/// "layer 40 out of range [0, 32)"; with the place in an array: "except[1] 7 out of range [0, 2)"
Status no_index(const char* name, int64_t value, int64_t count) noexcept;
Status no_index(const char* array, int32_t at, int64_t value, int64_t count) noexcept;

struct Array {
  const char* name;
  const void* data;
};
/// ok unless the number of elements is negative or an array that should hold some is null.
Status check_arrays(const char* count_name, int32_t count,
                    std::initializer_list<Array> arrays) noexcept;

/// `known`: what the flags take, in words; null: they must be 0.
Status unknown_bits(const char* name, uint64_t unknown, const char* known) noexcept;

/// NOT_SUPPORTED for what the header reserves.
Status not_implemented(const char* what) noexcept;

}  // namespace kvc
