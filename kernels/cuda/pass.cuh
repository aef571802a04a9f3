#pragma once
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/pass_params.hpp"
#include "kernels/cuda/warps.cuh"

namespace kvc::cuda {

KVC_GLOBAL void write_tokens(KVC_PARAMS(TokenLaunch) params) {
  for_rows(params.n_runs, 1, [&](int index, int, int lane) {
    const TokenRun& run = params.run[index];
    for (int i = lane; i < run.n; i += warp_lanes) {
      params.cell[run.begin + i] = run.cell + i;
      params.position[run.begin + i] = run.position + i;
    }
  });
}

KVC_GLOBAL void write_bytes(KVC_PARAMS(UploadLaunch) params) {
  const int n_words = params.n_bytes / static_cast<int>(sizeof(Word4));
  for (int i = block_index() * n_threads() + thread_index(); i < n_words; i += n_blocks() * n_threads())
    reinterpret_cast<Word4*>(params.to)[i] = reinterpret_cast<const Word4*>(params.bytes)[i];
}

// ---- The mask -----------------------------------------------------------------------------------------------------------------

KVC_DEVICE char* mask_row(const MaskView& mask, int64_t token) {
  const int64_t before = mask.fold == 0
                             ? token * mask.token
                             : token / mask.fold * mask.fold_stride + token % mask.fold * mask.token;
  return mask.data + before * mask.element_bytes;
}

KVC_DEVICE void store_mask(const MaskView& mask, char* row, int64_t column, uint32_t value) {
  const int64_t at = column * mask.column;
  if (mask.element_bytes == 4) {
    reinterpret_cast<uint32_t*>(row)[at] = value;
  } else if (mask.element_bytes == 2) {
    reinterpret_cast<uint16_t*>(row)[at] = static_cast<uint16_t>(value);
  } else {
    row[at] = static_cast<char>(value);
  }
}

KVC_GLOBAL void fill_mask(KVC_PARAMS(MaskFillLaunch) params) {
  for_rows(params.n_tokens, 1, [&](int token, int, int lane) {
    char* const row = mask_row(params.mask, token);
    for (int column = lane; column < params.mask.n_columns; column += warp_lanes)
      store_mask(params.mask, row, column, params.value);
  });
}

/// Shows entries [begin, end) of a list.
KVC_DEVICE void show_entries(const MaskLaunch& params, const MaskRow& row, int begin, int end, int lane) {
  char* const to = mask_row(params.mask, row.token);
  int start = 0;  // of the piece
  for (int piece = 0; piece < 3; ++piece) {
    const int first = begin > start ? begin - start : 0;
    const int last = end - start < row.count[piece] ? end - start : row.count[piece];
    for (int i = first + lane; i < last; i += warp_lanes) {
      const int cell = params.cell[row.start[piece] + i];
      const bool hides = params.seen != nullptr &&
                         (params.seen[row.token * params.seen_words + cell / 64] >> (cell % 64) & 1u) == 0;
      if (!hides) store_mask(params.mask, to, row.first_cell + cell - row.first_column, params.visible);
    }
    start += row.count[piece];
  }
}

KVC_GLOBAL void show_mask(KVC_PARAMS(MaskLaunch) params) {
  for_rows(params.n_rows, 1, [&](int index, int, int lane) {
    const MaskRow& row = params.row[index];
    show_entries(params, row, 0, row.first_end, lane);
    show_entries(params, row, row.begin, row.end, lane);
  });
}

}  // namespace kvc::cuda
