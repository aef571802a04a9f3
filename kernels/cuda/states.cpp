#include "kernels/cuda/states.hpp"

#include <algorithm>

#include "kernels/cuda/state_params.hpp"

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

Error copy_rows(const StateRows& params, bool loads, const Launcher& launcher) {
  StateRowsLaunch launch;
  launch.slots = view_of(params.part);
  launch.rows = view_of(params.row, params.row_stride);
  launch.n_elements = params.part.n_elements;
  launch.loads = loads ? 1 : 0;
  for (int32_t first = 0; first < params.n_rows; first += launch_slots) {
    launch.first_row = first;
    launch.n_slots = std::min(launch_slots, params.n_rows - first);
    std::copy_n(params.slot + first, launch.n_slots, launch.slot);
    const int64_t n = stretches(launch.n_slots, launch.n_elements, stretch_elements);
    if (Error e = launcher.launch_rows(state_rows_kernel(), n, &launch); e != Error::none) return e;
  }
  return Error::none;
}

/// Rows become pieces of as many columns as a launch has room for the tokens of.
class ConvLaunches {
 public:
  ConvLaunches(const ConvRows& params, const Launcher& launcher)
      : params_(params), launcher_(launcher) {
    launch_.slots = view_of(params.part);
    launch_.x = static_cast<char*>(params.x.data);
    launch_.token_stride = params.x.stride[0];
    launch_.channel_stride = params.x.stride[1];
    launch_.x_element = element_of(params.x.dtype);
    launch_.n_channels = params.n_channels;
    launch_.width = params.width;
  }

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
    const int64_t most = int64_t{launch_.n_channels} * launch_.most_columns;
    const int64_t n = stretches(launch_.n_pieces, most, stretch_elements);
    const Error e = launcher_.launch_rows(conv_kernel(), n, &launch_);
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

}  // namespace kvc::cuda
