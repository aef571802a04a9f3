#pragma once
#include <cstdint>

#include "core/base/status.hpp"

namespace kvc {

/// Flags of a token of a batch, with the numbers of the ABI.
inline constexpr uint32_t token_sees_later = 1;  // not causal: it sees later tokens of its sequence too
inline constexpr uint32_t token_type = 0xffff0000u;  // tokens of the same type see each other; not built yet

/// In the place of a sequence: a padding token, which belongs to none, is never read and gets zeros.
inline constexpr int32_t no_sequence = -1;

/// The tokens of a pass.
struct Batch {
  int32_t n_tokens = 0;
  const int32_t* position = nullptr;  // [n_tokens]
  const int32_t* sequence = nullptr;  // [n_tokens]
  const uint32_t* flags = nullptr;    // [n_tokens], may be null: none
  void* stream = nullptr;             // that the device's work is ordered on
  bool replay = false;                // the caller asks for KVC_BEGIN_REPLAY, which is not built
};

Status check_n_tokens(const Batch& batch, int32_t max_batch);
/// Whether a token's flags are known, and none where it is padding. A reserve pass has neither positions nor sequences.
Status check_token_flags(const Batch& batch, int32_t token);
/// Refuses options that are known and not built: token types, replay.
Status check_reserved(const Batch& batch);

}  // namespace kvc
