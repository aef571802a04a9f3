#include "core/cells/batch.hpp"

#include <cstdio>

#include "core/base/messages.hpp"

namespace kvc {

Status check_n_tokens(const Batch& batch, int32_t max_batch) {
  if (batch.n_tokens >= 1 && batch.n_tokens <= max_batch) return Status::ok;
  return fail(Status::invalid_argument, "n_tokens %d out of range [1, %d], which is max_batch",
              batch.n_tokens, max_batch);
}

Status check_token_flags(const Batch& batch, int32_t token) {
  const uint32_t flags = batch.flags != nullptr ? batch.flags[token] : 0;
  if (const uint32_t unknown = flags & ~(token_sees_later | token_types); unknown != 0) {
    char name[32];
    std::snprintf(name, sizeof name, "token_flags[%d]", token);
    return unknown_bits(name, unknown, "KVC_TOKEN_SEES_LATER and KVC_TOKEN_TYPE()");
  }
  const bool is_padding = batch.sequence != nullptr && batch.sequence[token] == no_sequence;
  if (flags != 0 && is_padding)
    return fail(
        Status::invalid_argument,
        "token_flags[%d] is not 0, but sequence[%d] is KVC_NONE: a padding token has no flags",
        token, token);
  return Status::ok;
}

Status check_reserved(const Batch& batch) {
  return batch.replay ? not_implemented("the flag KVC_BEGIN_REPLAY") : Status::ok;
}

}  // namespace kvc
