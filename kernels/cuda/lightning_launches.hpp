#pragma once
#include <algorithm>

#include "core/attention/lightning.hpp"
#include "kernels/cuda/launcher.hpp"
#include "kernels/cuda/lightning_params.hpp"

/// What calls of linear attention and graphs share: launches without what is to be done, and how sequences are cut into blocks.
namespace kvc::cuda {

/// Whether a row's state is made by the kernel for single tokens.
inline bool is_step(const LightningParams& params, const LightningRow& row) {
  return row.n_tokens == 1 || params.input == LightningInput::none;
}

DecayToken token_of(const LightningParams& params, const LightningRow& row, int32_t index);

KeepLaunch keep_launch(const LightningParams& params);
PaddingLaunch padding_launch(const LightningParams& params);
/// Of the kernel for single tokens, or of the one for blocks of them.
DecayLaunch decay_launch(const LightningParams& params, bool in_blocks);

/// Launches one for `n_segments` of them, for as many heads at a time as have room.
Error launch_all_heads(const LightningParams& params, bool in_blocks, int32_t n_segments,
                       DecayLaunch& launch, const Launcher& launcher);

/// Calls add(index of its first token, tokens, gap before it) for the blocks of tokens [first, first + n) of a row.
template <class Add>
void for_blocks(const LightningParams& params, const LightningRow& row, int32_t first, int32_t n,
                Add add) {
  const LightningToken* const token = params.token + row.first_token;
  const int32_t of_cache = params.bounds.block;
  const int32_t most = std::min(of_cache == 0 ? decay_tile : of_cache, decay_tile);
  for (int32_t i = first, end = 0; i < first + n; i = end) {
    const int32_t next = i == 0 ? row.next : token[i - 1].position + 1;
    const int32_t last = std::min(first + n, i + most);
    for (end = i + 1; end < last && token[end].position == token[i].position + end - i;) ++end;
    add(i, end - i, token[i].position - next);
  }
}

}  // namespace kvc::cuda
