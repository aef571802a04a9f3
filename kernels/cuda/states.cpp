#include "kernels/cuda/states.hpp"

#include <algorithm>

#include "core/base/carver.hpp"
#include "kernels/cuda/pass.hpp"

namespace kvc::cuda {
namespace {

SlotsView view_of(const StatePart& part) {
  return {reinterpret_cast<char*>(part.data), static_cast<int64_t>(part.slot_bytes),
          element_of(part.type)};
}

/// Neighbouring dimensions that lie behind each other without a gap are one.
StateView view_of(const Tensor& row, int64_t row_stride) {
  StateView view;
  view.data = static_cast<char*>(row.data);
  view.row = row_stride;
  view.element = element_of(row.dtype);
  for (int32_t d = 0; d < row.ndim; ++d) {
    if (row.shape[d] == 1) continue;
    const int32_t before = view.ndim - 1;
    if (before >= 0 && view.stride[before] == row.shape[d] * row.stride[d]) {
      view.extent[before] *= row.shape[d];
      view.stride[before] = row.stride[d];
    } else {
      view.extent[view.ndim] = row.shape[d];
      view.stride[view.ndim++] = row.stride[d];
    }
  }
  if (view.ndim == 0) view.ndim = 1;  // of one element
  return view;
}

int64_t stretches(int64_t n_states, int64_t n, int64_t stretch) {
  return n_states * ((n + stretch - 1) / stretch);
}

StateRowsLaunch rows_launch(const StateRows& params, bool loads) {
  StateRowsLaunch launch;
  launch.slots = view_of(params.part);
  launch.rows = view_of(params.row, params.row_stride);
  launch.n_elements = params.part.n_elements;
  launch.loads = loads ? 1 : 0;
  return launch;
}

Error launch_rows(const StateRowsLaunch& launch, const Launcher& launcher) {
  const int64_t n = stretches(launch.n_slots, launch.n_elements, stretch_elements);
  return launcher.launch_rows(state_rows_kernel(), n, &launch);
}

Error copy_rows(const StateRows& params, bool loads, const Launcher& launcher) {
  StateRowsLaunch launch = rows_launch(params, loads);
  for (int32_t first = 0; first < params.n_rows; first += launch_slots) {
    launch.first_row = first;
    launch.n_slots = std::min(launch_slots, params.n_rows - first);
    std::copy_n(params.slot + first, launch.n_slots, launch.slot);
    if (Error e = launch_rows(launch, launcher); e != Error::none) return e;
  }
  return Error::none;
}

ConvLaunch conv_launch(const ConvRows& params) {
  ConvLaunch launch;
  launch.slots = view_of(params.part);
  launch.x = static_cast<char*>(params.x.data);
  launch.token_stride = params.x.stride[0];
  launch.channel_stride = params.x.stride[1];
  launch.x_element = element_of(params.x.dtype);
  launch.n_channels = params.n_channels;
  launch.width = params.width;
  return launch;
}

Error launch_pieces(const ConvLaunch& launch, const Launcher& launcher) {
  const int64_t most = int64_t{launch.n_channels} * launch.most_columns;
  return launcher.launch_rows(conv_kernel(), stretches(launch.n_pieces, most, stretch_elements),
                              &launch);
}

/// Rows become pieces of as many columns as a launch has room for the tokens of.
class ConvLaunches {
 public:
  ConvLaunches(const ConvRows& params, const Launcher& launcher)
      : params_(params), launcher_(launcher), launch_(conv_launch(params)) {}

  Error add(const ConvRow& row) {
    const int32_t width = params_.width;
    const int32_t first_input = std::max(width - row.n_tokens, 0);  // the columns before are old ones
    for (int32_t first = 0, end = 0; first < width; first = end) {
      if (launch_.n_pieces == launch_slots || n_tokens_ == launch_tokens) {
        if (Error e = flush(); e != Error::none) return e;
      }
      const int32_t input = std::max(first, first_input);
      end = std::min(width, input + launch_tokens - n_tokens_);
      launch_.piece[launch_.n_pieces++] = {row.to,      row.from,     first,
                                           end - first, row.n_tokens, n_tokens_ - input};
      launch_.most_columns = std::max(launch_.most_columns, end - first);
      for (int32_t column = input; column < end; ++column)
        launch_.token[n_tokens_++] = params_.order[row.first_token + row.n_tokens + column - width];
    }
    return Error::none;
  }

  Error flush() {
    const Error e = launch_pieces(launch_, launcher_);
    launch_.n_pieces = launch_.most_columns = n_tokens_ = 0;
    return e;
  }

 private:
  const ConvRows& params_;
  const Launcher& launcher_;
  ConvLaunch launch_;
  int32_t n_tokens_ = 0;
};

}  // namespace

Error store_states(const StateRows& params, const Launcher& launcher) {
  return copy_rows(params, false, launcher);
}
Error load_states(const StateRows& params, const Launcher& launcher) {
  return copy_rows(params, true, launcher);
}

Error store_conv(const ConvRows& params, const Launcher& launcher) {
  ConvLaunches launches(params, launcher);
  for (int32_t i = 0; i < params.n_rows; ++i) {
    if (Error e = launches.add(params.row[i]); e != Error::none) return e;
  }
  return launches.flush();
}

Error copy_states(const StateCopies& params, const Launcher& launcher) {
  StateCopyLaunch launch;
  launch.to = view_of(params.part);
  launch.from = view_of(params.source != nullptr ? *params.source : params.part);
  launch.n_bytes = static_cast<int64_t>(params.part.bytes());
  for (int32_t first = 0; first < params.n; first += launch_slots) {
    launch.n = std::min(launch_slots, params.n - first);
    std::copy_n(params.from + first, launch.n, launch.from_slot);
    std::copy_n(params.to + first, launch.n, launch.to_slot);
    const int64_t n = stretches(launch.n, launch.n_bytes, stretch_bytes);
    if (Error e = launcher.launch_rows(state_copy_kernel(), n, &launch); e != Error::none) return e;
  }
  return Error::none;
}

Error clear_states(const StateClears& params, const Launcher& launcher) {
  StateClearLaunch launch;
  launch.slots = {reinterpret_cast<char*>(params.data), static_cast<int64_t>(params.slot_bytes),
                  Element::f32};
  launch.n_bytes = static_cast<int64_t>(params.n_bytes);
  for (int32_t first = 0; first < params.n; first += launch_slots) {
    launch.n = std::min(launch_slots, params.n - first);
    std::copy_n(params.slot + first, launch.n, launch.slot);
    const int64_t n = stretches(launch.n, launch.n_bytes, stretch_bytes);
    if (Error e = launcher.launch_rows(state_clear_kernel(), n, &launch); e != Error::none)
      return e;
  }
  return Error::none;
}

// ---- Graphs -----------------------------------------------------------------------------------------------------------------

/// Uploads write whole 16 bytes.
void PlannedStates::carve(int32_t most, Carver& carver) {
  const auto n_rows = static_cast<uint64_t>(most) + 4;
  n = carver.take<int32_t>(4, 256);
  read_slot = carver.take<int32_t>(n_rows, 256);
  row_slot = carver.take<int32_t>(n_rows, 256);
  order = carver.take<int32_t>(n_rows, 256);
  piece = carver.take<ConvPiece>(n_rows, 256);
}

Error record_states(const StateRows& params, bool loads, const PlannedStates& planned,
                    const Launcher& launcher) {
  StateRowsLaunch launch = rows_launch(params, loads);
  launch.n_slots = params.n_rows;
  launch.planned_n = planned.n + (loads ? 0 : 1);
  launch.planned_slot = loads ? planned.read_slot : planned.row_slot;
  return launch_rows(launch, launcher);
}

Error record_conv(const ConvRows& params, const PlannedStates& planned, const Launcher& launcher) {
  ConvLaunch launch = conv_launch(params);
  launch.n_pieces = params.n_rows;
  launch.most_columns = params.width;
  launch.planned = planned;
  return launch_pieces(launch, launcher);
}

Error replay_states(const StatePass& pass, const PlannedStates& planned, const Launcher& launcher) {
  const auto put = [&](auto* to, const auto* from, int32_t n) {
    return upload(reinterpret_cast<std::byte*>(to), from, static_cast<size_t>(n) * sizeof *from,
                  launcher);
  };
  const int32_t n[] = {pass.n_sequences, pass.n_rows};
  if (Error e = put(planned.n, n, 2); e != Error::none) return e;
  if (Error e = put(planned.read_slot, pass.read_slot, n[0]); e != Error::none) return e;
  if (Error e = put(planned.row_slot, pass.row_slot, n[1]); e != Error::none) return e;
  if (pass.conv_row == nullptr) return Error::none;
  if (Error e = put(planned.order, pass.order, pass.n_tokens); e != Error::none) return e;
  constexpr int32_t at_once = launch_slots;
  ConvPiece pieces[at_once];
  for (int32_t first = 0; first < pass.n_rows; first += at_once) {
    const int32_t n_pieces = std::min(at_once, pass.n_rows - first);
    for (int32_t i = 0; i < n_pieces; ++i) {
      const ConvRow& row = pass.conv_row[first + i];
      pieces[i] = {row.to,     row.from,     0,
                   pass.width, row.n_tokens, row.first_token + row.n_tokens - pass.width};
    }
    if (Error e = put(planned.piece + first, pieces, n_pieces); e != Error::none) return e;
  }
  return Error::none;
}

}  // namespace kvc::cuda
