#include "kernels/cuda/cache_device.hpp"

#include <algorithm>
#include <new>

#include "kernels/cuda/attention_kernels.hpp"
#include "kernels/cuda/code_params.hpp"
#include "kernels/cuda/lightning.hpp"
#include "kernels/cuda/lightning_params.hpp"
#include "kernels/cuda/pass.hpp"
#include "kernels/cuda/pass_params.hpp"
#include "kernels/cuda/row_params.hpp"
#include "kernels/cuda/rows.hpp"
#include "kernels/cuda/states.hpp"

namespace kvc::cuda {
namespace {

/// Blocks of a launch for each multiprocessor: enough warps to keep its memory busy.
constexpr int32_t blocks_per_multiprocessor = 8;

/// Null and 1 are the same stream.
Stream same_stream(Stream stream) {
  return stream == reinterpret_cast<Stream>(uintptr_t{1}) ? nullptr : stream;
}

/// Calls per_part(first, n) for as many rows at a time as staging and a launch have room for.
template <class PerPart>
Error in_parts(const RowBytes& rows, PerPart per_part) {
  const size_t fit = CacheWorkspace::staging_bytes / std::max<size_t>(rows.n_bytes, 1);
  const auto at_once = static_cast<int32_t>(std::min<size_t>(fit, many_cells));
  for (int32_t first = 0; first < rows.n_rows; first += at_once) {
    const Error e = per_part(first, std::min(at_once, rows.n_rows - first));
    if (e != Error::none) return e;
  }
  return Error::none;
}

/// Nothing is to be loaded while a graph is captured.
Error load_what_passes_launch(const AttentionBounds& bounds) {
  for (const Kernel& kernel :
       {upload_kernel(), store_few_kernel(), encode_few_kernel(), state_rows_kernel(),
        conv_kernel(), keep_kernel(), decay_step_kernel(), padding_kernel()}) {
    int32_t n_blocks = 0;
    if (Error e = runtime::prepare(kernel, {1, 128, 0}, &n_blocks); e != Error::none) return e;
  }
  return load_kernels(bounds);
}

}  // namespace

void CacheWorkspace::carve(const AttentionBounds& bounds, Carver& carver) {
  const auto entries = static_cast<uint64_t>(bounds.n_token_entries);
  cell = carver.take<int32_t>(entries, 256);
  position = carver.take<int32_t>(entries, 256);
  seen = carver.take<uint64_t>(CheckedSize(static_cast<uint64_t>(bounds.max_batch)) *
                                   CheckedSize(static_cast<uint64_t>(bounds.seen_words)),
                               256);
  staging = carver.take<std::byte>(staging_bytes, 256);
  planned = carver.take<int32_t>(planned_cells + static_cast<uint64_t>(bounds.max_batch) + 3, 256);
  attention = carver.take<std::byte>(Attention::memory_bytes(bounds), 256);
}

CudaCacheDevice::CudaCacheDevice(const DeviceShape& shape, const AttentionBounds& bounds,
                                 const CacheWorkspace& workspace, std::byte* on_host)
    : shape_(shape),
      workspace_(workspace),
      attention_(bounds, shape.abilities, shape.n_multiprocessors, workspace.attention, on_host) {}

Status CudaCacheDevice::create(const DeviceShape& shape, const AttentionBounds& bounds,
                               const WorkspaceBlocks& workspace, std::unique_ptr<CacheDevice>* out) {
  CacheWorkspace carved;
  Carver carver(workspace.on_device);
  carved.carve(bounds, carver);
  std::unique_ptr<CudaCacheDevice> made(
      new (std::nothrow) CudaCacheDevice(shape, bounds, carved, workspace.on_host));
  if (!made)
    return fail(Status::out_of_memory,
                "the process has no memory for a cache's part of the device");
  if (Error e = runtime::create_event(&made->event_); e != Error::none)
    return made->says("the making of an event", e);
  if (workspace.has_pinned) {
    Error e = runtime::create_stream(&made->copies_);
    if (e == Error::none) e = runtime::create_event(&made->copied_);
    if (e != Error::none) return made->says("the making of a stream", e);
  }
  if (Error e = load_what_passes_launch(bounds); e != Error::none)
    return made->says("the loading of kernels", e);
  *out = std::move(made);
  return Status::ok;
}

CudaCacheDevice::~CudaCacheDevice() {
  runtime::destroy_event(event_);
  runtime::destroy_event(copied_);
  runtime::destroy_stream(copies_);
}

Launcher CudaCacheDevice::launcher() const {
  return {stream_, shape_.n_multiprocessors * blocks_per_multiprocessor};
}

Status CudaCacheDevice::says(const char* what, Error error) const noexcept {
  return fail(Status::device, "cuda:%d says %s at %s", shape_.device, name_of(error), what);
}

Error CudaCacheDevice::order(Stream before, Stream behind) const {
  if (before == behind) return Error::none;
  const Error e = runtime::record(event_, before);
  return e == Error::none ? runtime::wait(behind, event_) : e;
}

Error CudaCacheDevice::go_to(Stream stream) {
  stream = same_stream(stream);
  const Error e = order(stream_, stream);
  if (e == Error::none) stream_ = stream;
  return e;
}

Status CudaCacheDevice::begin_pass(const AttentionPlan& plan, const TokenChanges& changes,
                                   void* stream) noexcept {
  return run("the begin of a pass", [&](const Launcher&) -> Error {
    if (Error e = go_to(stream); e != Error::none) return e;
    attention_.forget();
    const Error followed = follow_tokens(plan.tokens, changes, workspace_.cell, workspace_.position,
                                         launcher());
    if (followed != Error::none || plan.seen == nullptr) return followed;
    n_all_seen_ = 0;
    const auto words = static_cast<size_t>((plan.n_rows + plan.n_padding) * plan.seen_words);
    return upload(reinterpret_cast<std::byte*>(workspace_.seen), plan.seen,
                  words * sizeof(uint64_t), launcher());
  });
}

Status CudaCacheDevice::store(const StoreParams& params) noexcept {
  return run("a put", [&](const Launcher& launcher) { return store_rows(params, launcher); });
}

Status CudaCacheDevice::store_codes(const StoreCodesParams& params) noexcept {
  return run("a put of codes",
             [&](const Launcher& launcher) { return cuda::store_codes(params, launcher); });
}

Status CudaCacheDevice::load(const LoadParams& params) noexcept {
  return run("the reading of rows",
             [&](const Launcher& launcher) { return load_rows(params, launcher); });
}

Status CudaCacheDevice::move(const MoveParams& params) noexcept {
  return run("the moving of rows",
             [&](const Launcher& launcher) { return move_rows(params, launcher); });
}

/// The work of another cache may go to another stream: what it was given before comes before, what it is given later behind.
template <class Call>
Status CudaCacheDevice::beside(const char* what, const CacheDevice& source, Call call) noexcept {
  return run(what, [&](const Launcher& launcher) -> Error {
    const auto& other = static_cast<const CudaCacheDevice&>(source);
    const Stream from = other.stream_;
    if (Error e = order(from, launcher.stream); e != Error::none) return e;
    if (Error e = other.behind_copies(launcher.stream); e != Error::none) return e;
    if (Error e = call(launcher); e != Error::none) return e;
    return order(launcher.stream, from);
  });
}

Status CudaCacheDevice::copy(const CopyParams& params, const CacheDevice& source) noexcept {
  return beside("the copying of rows", source,
                [&](const Launcher& launcher) { return copy_stretches(params, launcher); });
}

Status CudaCacheDevice::clear(const ClearParams& params) noexcept {
  return run("the clearing of rows",
             [&](const Launcher& launcher) { return clear_rows(params, launcher); });
}

Status CudaCacheDevice::attention(const AttentionOperator& op, const AttentionParams& params) noexcept {
  if (!op.is_callers) return op.run(op, params, *this);
  return fail(Status::not_supported,
              "the operator %s is a caller's: on a CUDA device only its own operators attend",
              op.name);
}

Status CudaCacheDevice::attend(const AttentionParams& params) noexcept {
  return run("attention",
             [&](const Launcher& launcher) { return attention_.run(params, tokens(), launcher); });
}

Status CudaCacheDevice::write_mask(const MaskParams& params) noexcept {
  return run("a mask", [&](const Launcher& launcher) {
    return cuda::write_mask(params, workspace_.cell, workspace_.seen, launcher);
  });
}

// ---- States -----------------------------------------------------------------------------------------------------------------

Status CudaCacheDevice::store_states(const StateRows& params) noexcept {
  return run("a put of states",
             [&](const Launcher& launcher) { return cuda::store_states(params, launcher); });
}

Status CudaCacheDevice::load_states(const StateRows& params) noexcept {
  return run("the reading of states", [&](const Launcher& launcher) -> Error {
    if (params.part.is_pinned) {
      if (Error e = behind_copies(launcher.stream); e != Error::none) return e;
    }
    return cuda::load_states(params, launcher);
  });
}

Status CudaCacheDevice::store_conv(const ConvRows& params) noexcept {
  return run("a put of a convolution's inputs",
             [&](const Launcher& launcher) { return cuda::store_conv(params, launcher); });
}

Status CudaCacheDevice::copy_states(const StateCopies& params, const CacheDevice& source) noexcept {
  const bool from_pinned = params.source != nullptr && params.source->is_pinned;
  if (&source == this && params.part.is_pinned != from_pinned)
    return from_pinned ? copy_in(params) : copy_out(params);
  return beside("the copying of states", source,
                [&](const Launcher& launcher) { return cuda::copy_states(params, launcher); });
}

/// They have a stream of their own, so the next pass does not wait for them.
Status CudaCacheDevice::copy_out(const StateCopies& params) noexcept {
  return run("the copying of states to checkpoints", [&](const Launcher& launcher) -> Error {
    if (Error e = order(launcher.stream, copies_); e != Error::none) return e;
    is_copying_ = true;
    for (int32_t i = 0; i < params.n; ++i) {
      const Error e = runtime::copy_to_host(params.part.slot(params.to[i]),
                                            params.source->slot(params.from[i]),
                                            params.part.bytes(), copies_);
      if (e != Error::none) return e;
    }
    return runtime::record(copied_, copies_);
  });
}

Status CudaCacheDevice::copy_in(const StateCopies& params) noexcept {
  return run("the copying of checkpoints to states", [&](const Launcher& launcher) -> Error {
    if (Error e = behind_copies(launcher.stream); e != Error::none) return e;
    for (int32_t i = 0; i < params.n; ++i) {
      const Error e = runtime::copy_to_device(params.part.slot(params.to[i]),
                                              params.source->slot(params.from[i]),
                                              params.part.bytes(), launcher.stream);
      if (e != Error::none) return e;
    }
    return Error::none;
  });
}

Error CudaCacheDevice::behind_copies(Stream stream) const {
  return is_copying_ ? runtime::wait(stream, copied_) : Error::none;
}

Status CudaCacheDevice::finish_copies() noexcept {
  if (!is_copying_) return Status::ok;
  const Status s = run("the end of the copying of states",
                       [&](const Launcher& launcher) { return behind_copies(launcher.stream); });
  is_copying_ = s != Status::ok;
  return s;
}

Status CudaCacheDevice::clear_states(const StateClears& params) noexcept {
  return run("the clearing of states",
             [&](const Launcher& launcher) { return cuda::clear_states(params, launcher); });
}

// ---- Linear attention -------------------------------------------------------------------------------------------------------

Status CudaCacheDevice::lightning(const LightningParams& params) noexcept {
  return run("linear attention",
             [&](const Launcher& launcher) { return cuda::lightning(params, launcher); });
}

Status CudaCacheDevice::load_lightning(const LightningState& state) const noexcept {
  return run("the reading of a state",
             [&](const Launcher& launcher) { return cuda::load_lightning(state, launcher); });
}

Status CudaCacheDevice::store_lightning(const LightningState& state) noexcept {
  return run("the writing of a state",
             [&](const Launcher& launcher) { return cuda::store_lightning(state, launcher); });
}

// ---- Stored bytes -----------------------------------------------------------------------------------------------------------

Status CudaCacheDevice::read_rows(const RowBytes& rows) const noexcept {
  const std::lock_guard lock(staging_);
  return run("the reading of stored bytes", [&](const Launcher& launcher) -> Error {
    if (Error e = behind_copies(launcher.stream); e != Error::none) return e;
    return in_parts(rows, [&](int32_t first, int32_t n) -> Error {
      const Error packed = pack_rows(rows, first, n, workspace_.staging, launcher);
      if (packed != Error::none) return packed;
      std::byte* const to = rows.data + static_cast<size_t>(first) * rows.n_bytes;
      const Error copied = runtime::copy_to_host(
          to, workspace_.staging, static_cast<size_t>(n) * rows.n_bytes, launcher.stream);
      return copied == Error::none ? runtime::synchronize(launcher.stream) : copied;
    });
  });
}

Status CudaCacheDevice::write_rows(const RowBytes& rows) noexcept {
  return run("the writing of stored bytes", [&](const Launcher& launcher) {
    return in_parts(rows, [&](int32_t first, int32_t n) -> Error {
      const std::byte* const from = rows.data + static_cast<size_t>(first) * rows.n_bytes;
      const Error copied = runtime::copy_to_device(
          workspace_.staging, from, static_cast<size_t>(n) * rows.n_bytes, launcher.stream);
      if (copied != Error::none) return copied;
      const Error written = unpack_rows(rows, first, n, workspace_.staging, launcher);
      return written == Error::none ? runtime::synchronize(launcher.stream) : written;
    });
  });
}

}  // namespace kvc::cuda
