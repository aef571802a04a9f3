#pragma once
#include "kernels/cuda/lightning_params.hpp"
#include "kernels/cuda/row_access.cuh"

/// Linear attention with decay: what its kernels share, and those that move rows. lightning_step.cuh is for sequences of one token,
/// lightning_blocks.cuh for longer ones. All multiply and add in f32, and make factors of time in double.
namespace kvc::cuda {

/// λ^n as the sum of two floats: one alone would be off by the same in every step, and a sequence has many.
struct DecayFactor {
  float high, low;
};

KVC_DEVICE double decay_of(float slope, int64_t positions) {
  return exponential(-static_cast<double>(slope) * static_cast<double>(positions));
}
KVC_DEVICE DecayFactor in_two_floats(double decay) {
  const auto high = static_cast<float>(decay);
  return {high, static_cast<float>(decay - static_cast<double>(high))};
}
KVC_DEVICE float decayed(float before, const DecayFactor& factor, float added) {
  return multiply_add(before, factor.high, multiply_add(before, factor.low, added));
}

KVC_DEVICE bool is_masked(const DecayToken& token) { return (token.index_and_mask & 1u) != 0; }
KVC_DEVICE int64_t index_of(const DecayToken& token) { return token.index_and_mask >> 1; }

KVC_DEVICE char* kept_row(const KeptView& kept, int head, const DecayToken& token) {
  const bool is_drafted = token.kept < 0;
  const int64_t row = is_drafted ? ~token.kept : token.kept;
  char* const of_head = is_drafted ? kept.drafted + head * kept.drafted_head
                                   : kept.last + head * kept.last_head;
  return of_head + row * kept.row_bytes;
}

/// A number of a kept key or value; of a masked token it is zero, and nothing is read.
KVC_DEVICE float kept_number(const KeptView& kept, int head, const DecayToken& token, int dim) {
  return is_masked(token) ? 0.0f : load_element(kept_row(kept, head, token), kept.element, dim);
}

/// Keeps a key or value as it is put.
KVC_DEVICE void keep_row(const KeptView& kept, const RowsView& rows, int head, const DecayToken& token,
                         int lane, int n_lanes) {
  convert_row({kept_row(kept, head, token), 1, kept.element}, tensor_row(rows, head, index_of(token)),
              kept.dim, lane, n_lanes);
}

KVC_DEVICE float* state_of(const DecayLaunch& params, int32_t slot, int head) {
  return reinterpret_cast<float*>(params.states + slot * params.slot_bytes) +
         int64_t{head} * params.k.dim * params.padded_v;
}

/// Segments of sequences of one token, or of the others, with what they name.
struct DecayWork {
  const DecaySegment* segment;
  int n_segments;
  const DecayBlock* block;
  const DecayToken* token;
};
KVC_DEVICE DecayWork work_of(const DecayLaunch& params, bool are_single) {
  const PlannedDecay& planned = params.planned;
  if (planned.n == nullptr) return {params.segment, params.n_segments, params.block, params.token};
  const int n_single = planned.n->n_single;
  if (are_single) return {planned.segment, n_single, planned.block, planned.token};
  return {planned.segment + n_single, planned.n->n_sequences - n_single, planned.block, planned.token};
}

/// What a block of threads works on: columns from first_column on of the state of one head.
struct DecayItem {
  int segment, head, first_column;
};
KVC_DEVICE int n_panels(const DecayLaunch& params, int panel) {
  return (params.padded_v + panel - 1) / panel;
}
/// Panels of a head follow each other: they read the same keys and queries.
KVC_DEVICE DecayItem item_at(const DecayLaunch& params, int64_t index, int panel) {
  const int panels = n_panels(params, panel);
  const int64_t head = index / panels;
  return {static_cast<int>(head / params.n_heads),
          params.first_head + static_cast<int>(head % params.n_heads),
          static_cast<int>(index % panels) * panel};
}
KVC_DEVICE int64_t n_items(const DecayLaunch& params, const DecayWork& work, int panel) {
  return int64_t{work.n_segments} * params.n_heads * n_panels(params, panel);
}

KVC_GLOBAL void keep_tokens(KVC_PARAMS(KeepLaunch) params) {
  const PlannedDecay& planned = params.planned;
  const bool is_planned = planned.n != nullptr;
  const DecayToken* const tokens = is_planned ? planned.token + planned.n->n_single : params.token;
  const int n = is_planned ? planned.n->n_tokens - planned.n->n_single : params.n_tokens;
  for_rows(n, params.n_heads, [&](int index, int head, int lane) {
    const DecayToken& token = tokens[index];
    if (is_masked(token)) return;
    keep_row(params.k, params.k_rows, head, token, lane, warp_lanes);
    keep_row(params.v, params.v_rows, head, token, lane, warp_lanes);
  });
}

KVC_GLOBAL void clear_outputs(KVC_PARAMS(PaddingLaunch) params) {
  const bool is_planned = params.planned.n != nullptr;
  const int32_t* const tokens = is_planned ? params.planned.padding : params.token;
  const int n = is_planned ? params.planned.n->n_padding : params.n_tokens;
  for_rows(n, params.n_heads, [&](int index, int head, int lane) {
    const ElementRow row = tensor_row(params.out, head, tokens[index]);
    for (int i = lane; i < params.dim; i += warp_lanes)
      store_element(row.data, row.element, i * row.stride, 0.0f);
  });
}

KVC_GLOBAL void copy_decayed_state(KVC_PARAMS(DecayedStateLaunch) params) {
  for_rows(params.dim_k, params.n_heads, [&](int d, int index, int lane) {
    const int head = params.first_head + index;
    char* const state = params.state +
                        (int64_t{head} * params.dim_k + d) * params.padded_v * 4;
    const ElementRow stored = {state, 1, Element::f32};
    const ElementRow given = tensor_row(params.rows, head, d);
    if (params.stores != 0) {
      convert_row(stored, given, params.dim_v, lane, warp_lanes);
    } else if (params.passed == 0) {
      convert_row(given, stored, params.dim_v, lane, warp_lanes);
    } else {
      const DecayFactor factor = in_two_floats(decay_of(params.slope[index], params.passed));
      for (int i = lane; i < params.dim_v; i += warp_lanes) {
        const float before = reinterpret_cast<const float*>(state)[i];
        store_element(given.data, given.element, i * given.stride, decayed(before, factor, 0.0f));
      }
    }
  });
}

}  // namespace kvc::cuda
