#include "kernels/cuda/states.cuh"

namespace kvc::cuda {

Kernel state_rows_kernel() noexcept { return kernel<copy_state_rows>("state_rows"); }
Kernel conv_kernel() noexcept { return kernel<store_conv>("conv"); }
Kernel state_copy_kernel() noexcept { return kernel<copy_slots>("state_copy"); }
Kernel state_clear_kernel() noexcept { return kernel<clear_slots>("state_clear"); }

}  // namespace kvc::cuda
