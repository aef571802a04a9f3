#include "tests/cuda/instructions.cuh"

namespace instructions {

Kernel instruction_kernel() noexcept { return kernel<run_instruction>("instruction"); }

}  // namespace instructions
