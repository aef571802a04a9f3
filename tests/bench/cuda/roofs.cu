#include "tests/bench/cuda/roofs.cuh"

namespace bench_cuda {

Kernel read_kernel() noexcept { return kernel<read_all>("read"); }
Kernel copy_kernel() noexcept { return kernel<copy_all>("copy"); }
Kernel multiply_kernel() noexcept { return kernel<multiply_all>("multiply"); }

}  // namespace bench_cuda
