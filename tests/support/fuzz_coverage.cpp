#include "fuzz_coverage.hpp"

#include <iterator>

namespace fuzz {
namespace {

// clang-format off
constexpr const char* names[] = {
    "begin", "begin_reserve", "fits", "put", "attention", "attention_extra", "put_attention", "get",
    "mask", "history", "gather", "set_causal", "commit", "commit_prefix", "abort", "can_resume", "resume", "copy_prefix",
    "reorder", "remove_tail", "remove_middle", "can_remove", "runs", "sequence_query", "stats", "digest", "check",
    "bind_attention", "bind_rope", "bind_shift"};
// clang-format on
static_assert(std::size(names) == static_cast<size_t>(Op::count));

}  // namespace

const char* name(Op op) { return names[static_cast<size_t>(op)]; }

Coverage::Coverage()
    : Counts({std::begin(names), std::end(names)},
             {"succeeded", "shared", "slid", "full", "pass open"}) {}

void Coverage::record(Op op, bool succeeded, const Circumstances& met) {
  Counts::record(static_cast<size_t>(op), {succeeded, met.shared, met.slid, met.full, met.open});
}

}  // namespace fuzz
