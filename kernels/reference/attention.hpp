#pragma once
#include "core/attention/params.hpp"

namespace kvc {

/// What attention means, in three loops of double: the oracle that every kernel is compared with.
/// It supports all that AttentionParams can say, ignores the workspace and is slow. It allocates, so it may throw.
void reference_attention(const AttentionParams& params);

}  // namespace kvc
