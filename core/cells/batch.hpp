#pragma once
#include <cstdint>

#include "core/base/messages.hpp"
#include "core/base/status.hpp"
#include "core/base/tensor.hpp"

namespace kvc {

/// Flags of a token of a batch, with the numbers of the ABI.
inline constexpr uint32_t token_sees_later = 1;  // not causal: it sees later tokens of its sequence too
inline constexpr uint32_t token_encoder_input = 2;  // it carries an input of an encoder cache

inline constexpr uint32_t token_masked = 4;  // it adds nothing to the state of a lightning cache, but time passes

/// The type of a token, 0: none. The tokens of one sequence with the same type see each other.
inline constexpr uint32_t token_type_shift = 16;
inline constexpr uint32_t token_types = ~uint32_t{0} << token_type_shift;
constexpr uint32_t type_of_flags(uint32_t flags) { return flags >> token_type_shift; }

/// In the place of a sequence: a padding token, which belongs to none, is never read and gets zeros.
inline constexpr int32_t no_sequence = -1;

/// The tokens of a pass of rows, where row b of a batch is sequence b: q_len in each. The first valid[b] of a row continue it,
/// the others are padding. Token i of row b has the number b · q_len + i.
struct RowTokens {
  int32_t q_len = 0;
  const int32_t* valid = nullptr;  // [batch], may be null: all
  Tensor attention_mask;  // [batch, n] or [batch, 1, q_len, n] booleans or i32, on the host, any strides; ndim 0: none
  const int32_t* types = nullptr;  // [batch · q_len], may be null: none
  bool not_causal = false;         // every token is in the except set
  bool postpadded = false;         // valid is null: it is read off the mask
};

/// The tokens of a pass: a list, or as many in every row.
struct Batch {
  int32_t n_tokens = 0;
  const int32_t* position = nullptr;  // [n_tokens]
  const int32_t* sequence = nullptr;  // [n_tokens]
  const uint32_t* flags = nullptr;    // [n_tokens], may be null: none
  void* stream = nullptr;             // that the device's work is ordered on
  uint32_t others_flags = 0;  // token flags for other caches that get the same batch: known, and not looked at
  bool replay = false;              // a graph does the pass (KVC_BEGIN_REPLAY)
  const RowTokens* rows = nullptr;  // null: a list, that of the three arrays above
};

Status check_n_tokens(const Batch& batch, int32_t max_batch);
/// The lengths of a pass of rows; q_max is what max_batch leaves for each of them.
Status check_row_lengths(const RowTokens& tokens, int32_t n_rows, int32_t q_max);
/// What token flags a kind of cache knows, and their names for messages.
struct KnownFlags {
  uint32_t bits;
  const char* names;
};
/// Whether a token's flags are known, and none where it is padding. A reserve pass has neither positions nor sequences.
Status check_token_flags(const Batch& batch, int32_t token, const KnownFlags& known);
/// The same of a token that has some.
Status check_some_flags(const Batch& batch, int32_t token, const KnownFlags& known);
/// A token that is no padding: whether its sequence exists and its position is one.
Status check_token(const Batch& batch, int32_t token, int32_t max_sequences);
/// Whether a token continues its sequence, whose next position is `next`. Strict: without a gap.
Status check_continues(const Batch& batch, int32_t token, int32_t next, bool strict);
/// The refusal of one that does not.
Status does_not_continue(const Batch& batch, int32_t token, int32_t next, bool strict);
/// Refuses replay, of a cache that cannot be captured.
Status check_no_replay(const Batch& batch);

// What every pass asks of each token is small enough to be compiled into it.

inline Status check_token_flags(const Batch& batch, int32_t token, const KnownFlags& known) {
  const bool has_none = batch.flags == nullptr || batch.flags[token] == 0;
  return has_none ? Status::ok : check_some_flags(batch, token, known);
}

inline Status check_token(const Batch& batch, int32_t token, int32_t max_sequences) {
  const int32_t position = batch.position[token], sequence = batch.sequence[token];
  if (sequence < 0 || sequence >= max_sequences)
    return no_index("sequence", token, sequence, max_sequences);
  if (position < 0 || position >= INT32_MAX - 1)
    return no_index("position", token, position, INT32_MAX - 1);
  return Status::ok;
}

inline Status check_continues(const Batch& batch, int32_t token, int32_t next, bool strict) {
  const int32_t position = batch.position[token];
  const bool continues = position >= next && (!strict || position == next);
  return continues ? Status::ok : does_not_continue(batch, token, next, strict);
}

}  // namespace kvc
