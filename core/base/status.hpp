#pragma once
#include <cstddef>
#include <cstdint>

namespace kvc {

/// Outcome of a call. The numbers are the ABI's (capi/include/kvc/base.h); capi/src asserts that they stay equal.
enum class [[nodiscard]] Status : int32_t{
    ok = 0,
    invalid_argument = -1,
    handle = -2,
    out_of_memory = -3,
    not_supported = -4,
    bad_state = -5,
    busy = -6,
    shape = -7,
    dtype = -8,
    overflow = -9,
    version = -10,
    cache_full = -20,
    window_lost = -21,
    not_found = -22,
    invalid_recurrent_shape = -23,
    device = -40,
    device_mismatch = -41,
    backend_unavailable = -42,
    io = -60,
    corrupt = -61,
    internal = -99,
};

/// Room for one message, its terminating zero included. Longer messages are cut.
inline constexpr size_t message_capacity = 512;

/// Writes the calling thread's message and returns `status`, so that a check reads `return fail(...)`.
/// Messages add facts ("layer 40 out of range [0, 32)"), never addresses or tensor values. Allocates nothing. The message is
/// lost when more threads have one than there is room for (message_slots.cpp).
[[gnu::format(printf, 2, 3)]] Status fail(Status status, const char* format, ...) noexcept;

/// The calling thread's last message; empty before its first failure. Valid until the next failure on this thread.
const char* last_message() noexcept;

/// Copies it, cut to `capacity` and terminated (if capacity > 0). Returns its whole length.
size_t copy_last_message(char* buffer, size_t capacity) noexcept;

}  // namespace kvc
