#pragma once
#include "core/attention/params.hpp"
#include "kernels/cuda/launcher.hpp"

/// Writes rows into cells, reads, moves and clears them: what caches call beside attention (see CacheDevice). Cells and
/// offsets are read before a call returns; tensors have to stay until the stream has come so far.
namespace kvc::cuda {

Error store_rows(const StoreParams& params, const Launcher& launcher);
Error store_codes(const StoreCodesParams& params, const Launcher& launcher);
/// For a graph: `planned` in device memory says how many tokens a pass has, at most those of `params`, and then their cells.
Error record_store(const StoreParams& params, const int32_t* planned, const Launcher& launcher);
Error record_store_codes(const StoreCodesParams& params, const int32_t* planned,
                         const Launcher& launcher);
Error load_rows(const LoadParams& params, const Launcher& launcher);
Error move_rows(const MoveParams& params, const Launcher& launcher);
Error copy_stretches(const CopyParams& params, const Launcher& launcher);
Error clear_rows(const ClearParams& params, const Launcher& launcher);

/// Rows [first, first + n) of `rows` to device memory where they lie close together, or from there. `n` is at most many_cells.
Error pack_rows(const RowBytes& rows, int32_t first, int32_t n, std::byte* packed,
                const Launcher& launcher);
Error unpack_rows(const RowBytes& rows, int32_t first, int32_t n, std::byte* packed,
                  const Launcher& launcher);

}  // namespace kvc::cuda
