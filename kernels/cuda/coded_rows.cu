#include "kernels/cuda/coded_rows.cuh"

namespace kvc::cuda {

Kernel encode_few_kernel() noexcept { return kernel<encode_rows<few_cells>>("encode_few"); }
Kernel encode_many_kernel() noexcept { return kernel<encode_rows<most_encoded>>("encode_many"); }
Kernel decode_kernel() noexcept { return kernel<decode_rows>("decode"); }

}  // namespace kvc::cuda
