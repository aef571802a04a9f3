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

Status check_some_flags(const Batch& batch, int32_t token, const KnownFlags& known) {
  if (const uint32_t unknown = batch.flags[token] & ~(known.bits | batch.others_flags); unknown != 0) {
    char name[32];
    std::snprintf(name, sizeof name, "token_flags[%d]", token);
    return unknown_bits(name, unknown, known.names);
  }
  if (batch.sequence != nullptr && batch.sequence[token] == no_sequence)
    return fail(
        Status::invalid_argument,
        "token_flags[%d] is not 0, but sequence[%d] is KVC_NONE: a padding token has no flags",
        token, token);
  return Status::ok;
}

Status does_not_continue(const Batch& batch, int32_t token, int32_t next, bool strict) {
  return fail(Status::invalid_argument, "position[%d] is %d, but sequence %d continues at %d%s",
              token, batch.position[token], batch.sequence[token], next,
              strict ? ", and KVC_CACHE_STRICT allows no gap" : " or above");
}

Status check_no_replay(const Batch& batch) {
  if (!batch.replay) return Status::ok;
  return fail(
      Status::not_supported,
      "a graph is to do the pass (KVC_BEGIN_REPLAY, KVC_ROWS_REPLAY), and graphs do passes on CUDA "
      "devices");
}

}  // namespace kvc
