#pragma once
#include <string>

namespace support {

/// Whether the processor has what the kernels of a set (portable, avx2, avx512, vnni, amx, neon) need, as the system says. Of a name
/// that it does not know: no.
bool processor_has(const std::string& set);

/// The best that the processor can run.
std::string best_set();

/// "avx2" of "kvc 0.2.0, gcc 12.2.0, cpu kernels: avx2", also if "; AMX refused: …" follows.
std::string set_in(const std::string& build_info);

/// A run that KVC_CPU_ISA puts on one instruction set must not pass with another. 0: it is that set, or none is named; 77,
/// which ctest reports as not run: the processor lacks it, or it is the best that the processor has and KVC_SKIP_BEST_ISA is
/// set; 1: the library runs something else although the processor has it.
int wrong_instruction_set();

}  // namespace support
