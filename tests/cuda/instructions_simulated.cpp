#include "tests/cuda/instructions.cuh"
#include "tests/simt/simt.hpp"

namespace instructions {

void simulate(const Params& params) {
  simt::launch(1, lanes, shared_bytes, [&] { run_instruction(params); });
}

}  // namespace instructions
