#pragma once
#include <type_traits>

#include "kernels/cuda/ptx.cuh"
#include "kernels/cuda/runtime.hpp"

/// A kernel is written as `KVC_GLOBAL void name(KVC_PARAMS(Struct) params)`; kernel<name>("name") is what runtime::launch() takes.
#if defined(KVC_SIMT)
#define KVC_GLOBAL inline
#define KVC_PARAMS(Struct) const Struct&
#else
#define KVC_GLOBAL __global__
#define KVC_PARAMS(Struct) const __grid_constant__ Struct
#endif

namespace kvc::cuda {

inline constexpr int warp_lanes = 32;

template <class Params>
Params params_of(void (*)(Params));

template <auto function>
Kernel kernel(const char* name) noexcept {
  using Params = std::remove_cvref_t<decltype(params_of(function))>;
  static_assert(sizeof(Params) <= max_params_bytes);
#if defined(KVC_SIMT)
  void (*const entry)(const void*) = [](const void* params) {
    function(*static_cast<const Params*>(params));
  };
#else
  const auto entry = function;
#endif
  return {name, reinterpret_cast<const void*>(entry), sizeof(Params)};
}

}  // namespace kvc::cuda
