#pragma once
#include "core/attention/params.hpp"
#include "kernels/cuda/launcher.hpp"

/// The part of rows.hpp that meets codes: sides whose numbers are stored as they are are left out.
namespace kvc::cuda {

Error encode_rows(const StoreParams& params, const Launcher& launcher);
/// As record_store().
Error record_encoding(const StoreParams& params, const int32_t* planned, const Launcher& launcher);
Error decode_rows(const LoadParams& params, const Launcher& launcher);

}  // namespace kvc::cuda
