#include "tests/cuda/reachable.hpp"

#include <cuda_runtime_api.h>

#include "tests/cuda/gpu.hpp"

namespace gpu {

void make_reachable(void* block, size_t bytes) {
  const auto need = [](cudaError_t error, const char* call) {
    gpu::need(static_cast<kvc::cuda::Error>(error), call);
  };
  int has_same_address = 0;
  need(cudaDeviceGetAttribute(&has_same_address, cudaDevAttrCanUseHostPointerForRegisteredMem, 0),
       "ask for an attribute");
  if (has_same_address == 0) fail("this GPU does not reach the host's memory at its own addresses");
  need(cudaHostRegister(block, bytes, cudaHostRegisterMapped), "make the host's memory reachable");
}

}  // namespace gpu
