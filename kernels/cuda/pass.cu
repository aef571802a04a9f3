#include "kernels/cuda/pass.cuh"

namespace kvc::cuda {

Kernel tokens_kernel() noexcept { return kernel<write_tokens>("tokens"); }
Kernel upload_kernel() noexcept { return kernel<write_bytes>("upload"); }
Kernel mask_fill_kernel() noexcept { return kernel<fill_mask>("mask_fill"); }
Kernel mask_kernel() noexcept { return kernel<show_mask>("mask"); }

}  // namespace kvc::cuda
