#include "kernels/cuda/rows.cuh"

namespace kvc::cuda {

Kernel store_few_kernel() noexcept { return kernel<store_rows<few_cells>>("store_few"); }
Kernel store_many_kernel() noexcept { return kernel<store_rows<many_cells>>("store_many"); }
Kernel clear_few_kernel() noexcept { return kernel<clear_rows<few_cells>>("clear_few"); }
Kernel clear_many_kernel() noexcept { return kernel<clear_rows<many_cells>>("clear_many"); }
Kernel load_kernel() noexcept { return kernel<load_rows>("load"); }
Kernel turn_kernel() noexcept { return kernel<turn_rows>("turn"); }
Kernel move_kernel() noexcept { return kernel<move_rows>("move"); }
Kernel copy_kernel() noexcept { return kernel<copy_rows>("copy"); }
Kernel raw_kernel() noexcept { return kernel<copy_raw>("raw"); }

}  // namespace kvc::cuda
