#include "core/cells/batch.hpp"

#include <cstdio>

#include "core/base/messages.hpp"

namespace kvc {

Status check_n_tokens(const Batch& batch, int32_t max_batch) {
  if (batch.n_tokens >= 1 && batch.n_tokens <= max_batch) return Status::ok;
  return fail(Status::invalid_argument, "n_tokens %d out of range [1, %d], which is max_batch",
              batch.n_tokens, max_batch);
}

Status check_row_lengths(const RowTokens& tokens, int32_t n_rows, int32_t q_max) {
  if (tokens.q_len < 1 || tokens.q_len > q_max)
    return fail(Status::invalid_argument,
                "q_len %d out of range [1, %d], which is max_batch / max_sequences", tokens.q_len,
                q_max);
  for (int32_t row = 0; tokens.valid != nullptr && row < n_rows; ++row) {
    if (tokens.valid[row] >= 0 && tokens.valid[row] <= tokens.q_len) continue;
    return fail(Status::invalid_argument, "valid[%d] is %d; it must be from 0 to q_len %d", row,
                tokens.valid[row], tokens.q_len);
  }
  return Status::ok;
}

Status check_token_flags(const Batch& batch, int32_t token, const KnownFlags& known) {
  const uint32_t flags = batch.flags != nullptr ? batch.flags[token] : 0;
  if (const uint32_t unknown = flags & ~(known.bits | batch.others_flags); unknown != 0) {
    char name[32];
    std::snprintf(name, sizeof name, "token_flags[%d]", token);
    return unknown_bits(name, unknown, known.names);
  }
  const bool is_padding = batch.sequence != nullptr && batch.sequence[token] == no_sequence;
  if (flags != 0 && is_padding)
    return fail(
        Status::invalid_argument,
        "token_flags[%d] is not 0, but sequence[%d] is KVC_NONE: a padding token has no flags",
        token, token);
  return Status::ok;
}

Status check_token(const Batch& batch, int32_t token, int32_t max_sequences) {
  const int32_t position = batch.position[token], sequence = batch.sequence[token];
  if (sequence < 0 || sequence >= max_sequences)
    return no_index("sequence", token, sequence, max_sequences);
  if (position < 0 || position >= INT32_MAX - 1)
    return no_index("position", token, position, INT32_MAX - 1);
  return Status::ok;
}

Status check_continues(const Batch& batch, int32_t token, int32_t next, bool strict) {
  const int32_t position = batch.position[token];
  if (position >= next && (!strict || position == next)) return Status::ok;
  return fail(Status::invalid_argument, "position[%d] is %d, but sequence %d continues at %d%s",
              token, position, batch.sequence[token], next,
              strict ? ", and KVC_CACHE_STRICT allows no gap" : " or above");
}

Status check_reserved(const Batch& batch) {
  return batch.replay ? not_implemented("the flag KVC_BEGIN_REPLAY") : Status::ok;
}

}  // namespace kvc
