#include <cstddef>

#include "core/base/carver.hpp"
#include "kernels/cuda/lightning.hpp"
#include "kernels/cuda/lightning_launches.hpp"
#include "kernels/cuda/pass.hpp"

/// Linear attention in passes that graphs do. Device memory has room for all segments of a pass, so no sequence is cut.
namespace kvc::cuda {
namespace {

PlannedDecay planned_in(const LightningParams& params) {
  PlannedDecay planned;
  Carver carver(params.workspace);
  planned.carve(params.bounds.max_batch, carver);
  return planned;
}

/// Brings an array to the device, so many elements at a time: their bytes are a multiple of 16.
template <class T>
class Uploads {
 public:
  Uploads(T* to, const Launcher& launcher) : to_(to), launcher_(launcher) {}

  Error add(const T& element) {
    element_[n_++] = element;
    return n_ == at_once ? flush() : Error::none;
  }
  Error flush() {
    const Error e = upload(reinterpret_cast<std::byte*>(to_), element_,
                           static_cast<size_t>(n_) * sizeof(T), launcher_);
    to_ += n_;
    n_ = 0;
    return e;
  }

 private:
  static constexpr int32_t at_once = 256;
  T* to_;
  const Launcher& launcher_;
  int32_t n_ = 0;
  T element_[at_once];
};

/// What a pass has to do, in the order in which launches read it.
class Plan {
 public:
  Plan(const LightningParams& params, const PlannedDecay& planned, const Launcher& launcher)
      : params_(params),
        segments_(planned.segment, launcher),
        blocks_(planned.block, launcher),
        tokens_(planned.token, launcher) {}

  Error add_rows(bool are_single) {
    for (const LightningRow* row = params_.row; row < params_.row + params_.n_rows; ++row) {
      if ((row->n_tokens == 1) != are_single) continue;
      if (Error e = add(*row); e != Error::none) return e;
    }
    return Error::none;
  }
  Error flush() {
    if (Error e = segments_.flush(); e != Error::none) return e;
    if (Error e = blocks_.flush(); e != Error::none) return e;
    return tokens_.flush();
  }
  int32_t n_tokens() const { return n_tokens_; }

 private:
  /// Blocks end where those of a pass do that is not captured.
  Error add(const LightningRow& row) {
    const int32_t first_block = n_blocks_;
    for (int32_t first = 0; first < row.n_tokens; first += segment_tokens) {
      Error error = Error::none;
      const int32_t n = std::min(segment_tokens, row.n_tokens - first);
      for_blocks(params_, row, first, n, [&](int32_t, int32_t n_of_block, int32_t gap) {
        if (error == Error::none) error = blocks_.add({n_tokens_, n_of_block, gap});
        n_tokens_ += n_of_block;
        ++n_blocks_;
      });
      if (error != Error::none) return error;
    }
    for (int32_t i = 0; i < row.n_tokens; ++i) {
      if (Error e = tokens_.add(token_of(params_, row, i)); e != Error::none) return e;
    }
    return segments_.add({row.from, row.to, first_block, n_blocks_ - first_block, 0});
  }

  const LightningParams& params_;
  Uploads<DecaySegment> segments_;
  Uploads<DecayBlock> blocks_;
  Uploads<DecayToken> tokens_;
  int32_t n_blocks_ = 0, n_tokens_ = 0;
};

}  // namespace

/// Uploads write whole 16 bytes.
void PlannedDecay::carve(int32_t most, Carver& carver) {
  const auto n_elements = static_cast<uint64_t>(most) + 4;
  n = carver.take<Counts>(1, 256);
  segment = carver.take<DecaySegment>(n_elements, 256);
  block = carver.take<DecayBlock>(n_elements, 256);
  token = carver.take<DecayToken>(n_elements, 256);
  padding = carver.take<int32_t>(n_elements, 256);
}

size_t lightning_workspace_bytes(const LightningBounds& bounds) {
  Carver carver;
  PlannedDecay().carve(bounds.max_batch, carver);
  return carver.used().value();
}

/// A pass of one token has no sequence of several.
Error record_lightning(const LightningParams& params, int32_t n_tokens, const Launcher& launcher) {
  const PlannedDecay planned = planned_in(params);
  if (params.q.data != nullptr) {
    PaddingLaunch launch = padding_launch(params);
    launch.planned = planned;
    const int64_t n_rows = int64_t{n_tokens} * launch.n_heads;
    if (Error e = launcher.launch_rows(padding_kernel(), n_rows, &launch); e != Error::none)
      return e;
  }
  if (params.input == LightningInput::tensors && n_tokens > 1) {
    KeepLaunch launch = keep_launch(params);
    launch.planned = planned;
    const int64_t n_rows = int64_t{n_tokens} * launch.n_heads;
    if (Error e = launcher.launch_rows(keep_kernel(), n_rows, &launch); e != Error::none) return e;
  }
  for (const bool in_blocks : {false, true}) {
    if (in_blocks && n_tokens == 1) continue;
    DecayLaunch launch = decay_launch(params, in_blocks);
    launch.planned = planned;
    const Error e = launch_all_heads(params, in_blocks, params.n_rows, launch, launcher);
    if (e != Error::none) return e;
  }
  return Error::none;
}

Error replay_lightning(const LightningParams& params, const Launcher& launcher) {
  const PlannedDecay planned = planned_in(params);
  Plan plan(params, planned, launcher);
  if (Error e = plan.add_rows(true); e != Error::none) return e;
  const int32_t n_single = plan.n_tokens();
  if (Error e = plan.add_rows(false); e != Error::none) return e;
  if (Error e = plan.flush(); e != Error::none) return e;
  const auto padding_bytes = static_cast<size_t>(params.n_padding) * sizeof(int32_t);
  const Error padded = upload(reinterpret_cast<std::byte*>(planned.padding), params.padding,
                              padding_bytes, launcher);
  if (padded != Error::none) return padded;
  const PlannedDecay::Counts n = {n_single, params.n_rows, plan.n_tokens(), params.n_padding};
  return upload(reinterpret_cast<std::byte*>(planned.n), &n, sizeof n, launcher);
}

}  // namespace kvc::cuda
