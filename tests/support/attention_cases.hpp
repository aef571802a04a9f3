#pragma once
#include <cstdint>
#include <functional>
#include <vector>

#include "attention_rig.hpp"

/// Options of attention, and the passes that meet them.
namespace support {

struct AttentionOption {
  const char* name;
  std::function<void(AttentionOptions&)> apply;
};

/// Every option, storage types included.
const std::vector<AttentionOption>& attention_options();

/// Passes of one token and of many, sharing, shifts and what else the options ask for, each compared with double, then the textbook.
/// Returns the largest error.
double run_attention(AttentionOptions options, uint64_t seed);

/// Each option alone, but not each with every other: KVC_ONE_PAIR_IN says of how many pairs one is run. Under a
/// sanitizer all of them would take minutes.
size_t one_pair_in();

}  // namespace support
