#include "kernels/cuda/lightning_blocks.cuh"
#include "kernels/cuda/lightning_step.cuh"

namespace kvc::cuda {

Kernel keep_kernel() noexcept { return kernel<keep_tokens>("keep"); }
Kernel decay_step_kernel() noexcept { return kernel<decay_step>("decay_step"); }
Kernel decay_blocks_kernel() noexcept { return kernel<decay_blocks>("decay_blocks"); }
Kernel padding_kernel() noexcept { return kernel<clear_outputs>("padding"); }
Kernel decayed_state_kernel() noexcept { return kernel<copy_decayed_state>("decayed_state"); }

}  // namespace kvc::cuda
