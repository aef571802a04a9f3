#pragma once
#include "core/base/planted.hpp"
#include "core/base/storage.hpp"

namespace kvc {

/// The storage of a layer; with the planted bug, as if it had no scales.
inline LayerStorage with_scales_unless(Bug bug, LayerStorage storage) {
  if (planted(bug)) storage.k.scales.row_bytes = storage.v.scales.row_bytes = 0;
  return storage;
}

}  // namespace kvc
