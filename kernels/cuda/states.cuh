#pragma once
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/state_params.hpp"
#include "kernels/cuda/warps.cuh"

/// A warp serves a stretch of a state at a time; those of one state follow each other.
namespace kvc::cuda {

KVC_DEVICE char* slot_of(const SlotsView& slots, int32_t slot) {
  return slots.data + slot * slots.slot_bytes;
}

KVC_DEVICE int n_stretches(int64_t n, int64_t stretch) {
  return static_cast<int>((n + stretch - 1) / stretch);
}

/// Calls per_stretch(index, first element, how many, lane) for the stretches of `n_states` states of n elements.
template <class PerStretch>
KVC_DEVICE void for_stretches(int n_states, int64_t n, int64_t stretch, PerStretch per_stretch) {
  for_rows(n_stretches(n, stretch), n_states, [&](int which, int index, int lane) {
    const int64_t first = which * stretch;
    per_stretch(index, first, static_cast<int>(n - first < stretch ? n - first : stretch), lane);
  });
}

/// Elements from the start of a row to its element `index`.
KVC_DEVICE int64_t offset_in_row(const StateView& rows, int64_t index) {
  int64_t offset = 0;
  for (int d = rows.ndim - 1; d > 0; --d) {
    offset += index % rows.extent[d] * rows.stride[d];
    index /= rows.extent[d];
  }
  return offset + index * rows.stride[0];
}

KVC_DEVICE void convert_one(const ElementRow& to, const ElementRow& from) {
  convert_row(to, from, 1, 0, 1);
}

// ---- By copy ----------------------------------------------------------------------------------------------------------------

/// `n`, or what a graph's pass has of them.
KVC_DEVICE int planned_or(const int32_t* planned, int n) {
  return planned != nullptr && *planned < n ? *planned : n;
}

KVC_GLOBAL void copy_state_rows(KVC_PARAMS(StateRowsLaunch) params) {
  const StateView& rows = params.rows;
  const int32_t* const slots = params.planned_slot != nullptr ? params.planned_slot : params.slot;
  const auto copy = [&](const ElementRow& stored, const ElementRow& given, int n, int lane,
                        int n_lanes) {
    if (params.loads != 0) {
      convert_row(given, stored, n, lane, n_lanes);
    } else {
      convert_row(stored, given, n, lane, n_lanes);
    }
  };
  const auto stored_at = [&](int index, int64_t element) {
    char* const slot = slot_of(params.slots, slots[index]);
    return ElementRow{slot + element * element_bytes(params.slots.element), 1, params.slots.element};
  };
  const auto given_at = [&](int index, int64_t offset) {
    const int64_t element = (params.first_row + index) * rows.row + offset;
    return ElementRow{rows.data + element * element_bytes(rows.element), rows.stride[0], rows.element};
  };
  const auto per_stretch = [&](int index, int64_t first, int n, int lane) {
    if (rows.ndim == 1) {
      copy(stored_at(index, first), given_at(index, first * rows.stride[0]), n, lane, warp_lanes);
      return;
    }
    for (int i = lane; i < n; i += warp_lanes)
      copy(stored_at(index, first + i), given_at(index, offset_in_row(rows, first + i)), 1, 0, 1);
  };
  const int n_slots = planned_or(params.planned_n, params.n_slots);
  for_stretches(n_slots, params.n_elements, stretch_elements, per_stretch);
}

// ---- Convolutions -----------------------------------------------------------------------------------------------------------

KVC_DEVICE void store_column(const ConvLaunch& params, const ConvPiece& piece, int64_t channel,
                             int column) {
  const auto stored = [&](int32_t slot, int64_t of) {
    const int64_t at = (channel * params.width + of) * element_bytes(params.slots.element);
    return ElementRow{slot_of(params.slots, slot) + at, 1, params.slots.element};
  };
  const int before = column + piece.n_tokens;
  if (before < params.width) return convert_one(stored(piece.to, column), stored(piece.from, before));
  const int32_t* const tokens = params.planned.order != nullptr ? params.planned.order : params.token;
  const int64_t token = tokens[piece.tokens + column];
  const int64_t at = token * params.token_stride + channel * params.channel_stride;
  convert_one(stored(piece.to, column),
              {params.x + at * element_bytes(params.x_element), 1, params.x_element});
}

/// Elements of a piece count column by column of one channel, then of the next, as they are stored.
KVC_GLOBAL void store_conv(KVC_PARAMS(ConvLaunch) params) {
  const int64_t most = int64_t{params.n_channels} * params.most_columns;
  const bool is_planned = params.planned.piece != nullptr;
  const ConvPiece* const pieces = is_planned ? params.planned.piece : params.piece;
  const auto per_stretch = [&](int index, int64_t first, int n, int lane) {
    const ConvPiece& piece = pieces[index];
    const int64_t end = int64_t{params.n_channels} * piece.n;
    for (int64_t i = first + lane; i < first + n && i < end; i += warp_lanes)
      store_column(params, piece, i / piece.n, piece.first + static_cast<int>(i % piece.n));
  };
  const int n_pieces = planned_or(is_planned ? params.planned.n + 1 : nullptr, params.n_pieces);
  for_stretches(n_pieces, most, stretch_elements, per_stretch);
}

// ---- From slots to slots ------------------------------------------------------------------------------------------------------

KVC_GLOBAL void copy_slots(KVC_PARAMS(StateCopyLaunch) params) {
  const auto copy = [&](int index, int64_t first, int n, int lane) {
    copy_bytes(slot_of(params.to, params.to_slot[index]) + first,
               slot_of(params.from, params.from_slot[index]) + first, n, lane, warp_lanes);
  };
  for_stretches(params.n, params.n_bytes, stretch_bytes, copy);
}

KVC_GLOBAL void clear_slots(KVC_PARAMS(StateClearLaunch) params) {
  const auto clear = [&](int index, int64_t first, int n, int lane) {
    clear_bytes(slot_of(params.slots, params.slot[index]) + first, n, lane, warp_lanes);
  };
  for_stretches(params.n, params.n_bytes, stretch_bytes, clear);
}

}  // namespace kvc::cuda
