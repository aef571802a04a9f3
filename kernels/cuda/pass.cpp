#include "kernels/cuda/pass.hpp"

#include <algorithm>
#include <cstring>

#include "kernels/cuda/pass_params.hpp"

namespace kvc::cuda {
namespace {

/// How many entries from `at` on have cells and positions that follow each other.
int32_t run_at(const TokenArrays& host, int64_t at, int64_t end) {
  const auto most = static_cast<int32_t>(std::min<int64_t>(end - at, run_entries));
  int32_t n = 1;
  while (n < most && host.cell[at + n] == host.cell[at] + n &&
         host.position[at + n] == host.position[at] + n)
    ++n;
  return n;
}

struct MaskValues {
  uint32_t visible, hidden;
};

MaskValues values_of(DType dtype) {
  switch (dtype) {
    case DType::f32: return {0, 0xff800000u};
    case DType::f16: return {0, 0xfc00u};
    case DType::bf16: return {0, 0xff80u};
    default: return {1, 0};  // boolean: masks have no other
  }
}

MaskView view_of(const Tensor& into) {
  MaskView view;
  view.data = static_cast<char*>(into.data);
  view.token = into.stride[0];
  view.column = into.stride[1];
  view.fold_stride = into.fold_stride;
  view.fold = into.fold;
  view.element_bytes = static_cast<int32_t>(size_of(into.dtype));
  view.n_columns = static_cast<int32_t>(into.shape[1]);
  return view;
}

}  // namespace

Error follow_tokens(const TokenArrays& host, const TokenChanges& changes, int32_t* cell,
                    int32_t* position, const Launcher& launcher) {
  TokenLaunch launch;
  launch.cell = cell;
  launch.position = position;
  const auto flush = [&]() -> Error {
    const Error e = launcher.launch_rows(tokens_kernel(), launch.n_runs, &launch);
    launch.n_runs = 0;
    return e;
  };
  for (int32_t i = 0; i < changes.n; ++i) {
    const TokenRange& range = changes.range[i];
    for (int64_t at = range.begin; at < range.end;) {
      if (launch.n_runs == most_runs) {
        if (Error e = flush(); e != Error::none) return e;
      }
      TokenRun& run = launch.run[launch.n_runs++];
      run = {at, host.cell[at], host.position[at], run_at(host, at, range.end)};
      at += run.n;
    }
  }
  return flush();
}

Error upload(std::byte* to, const void* from, size_t n_bytes, const Launcher& launcher) {
  UploadLaunch launch;
  for (size_t at = 0; at < n_bytes; at += static_cast<size_t>(upload_bytes)) {
    const size_t n = std::min(n_bytes - at, static_cast<size_t>(upload_bytes));
    launch.to = reinterpret_cast<char*>(to + at);
    launch.n_bytes = static_cast<int32_t>((n + 15) / 16 * 16);
    std::memcpy(launch.bytes, static_cast<const std::byte*>(from) + at, n);
    const int64_t n_rows = launch.n_bytes / (16 * 32) + 1;  // a warp copies so many bytes at once
    if (Error e = launcher.launch_rows(upload_kernel(), n_rows, &launch); e != Error::none)
      return e;
  }
  return Error::none;
}

Error write_mask(const MaskParams& params, const int32_t* cell, const uint64_t* seen,
                 const Launcher& launcher) {
  const AttentionPlan& plan = params.plan;
  const MaskValues values = values_of(params.into.dtype);
  MaskFillLaunch fill;
  fill.mask = view_of(params.into);
  fill.value = params.all_visible ? values.visible : values.hidden;
  fill.n_tokens = static_cast<int32_t>(params.into.shape[0]);
  if (Error e = launcher.launch_rows(mask_fill_kernel(), fill.n_tokens, &fill); e != Error::none)
    return e;
  MaskLaunch launch;
  launch.mask = fill.mask;
  launch.visible = values.visible;
  launch.cell = cell;
  launch.seen = plan.seen != nullptr ? seen : nullptr;
  launch.seen_words = plan.seen_words;
  for (int32_t first = 0; first < plan.n_rows; first += mask_rows) {
    launch.n_rows = std::min(mask_rows, plan.n_rows - first);
    for (int32_t i = 0; i < launch.n_rows; ++i) {
      const AttentionRow& row = plan.rows[first + i];
      const TokenList& list = plan.lists[row.list];
      launch.row[i] = {{list.start[0], list.start[1], list.start[2]},
                       {list.count[0], list.count[1], list.count[2]},
                       list.first_cell,
                       plan.first_column(list, params.first_column),
                       row.token,
                       row.first_end,
                       row.begin,
                       row.end};
    }
    if (Error e = launcher.launch_rows(mask_kernel(), launch.n_rows, &launch); e != Error::none)
      return e;
  }
  return Error::none;
}

}  // namespace kvc::cuda
