#pragma once
#include <vector>

#include "kernels/cpu/kernel_table.hpp"

/// Kernel tables of this machine; each test walks them and names the one that fails.
inline std::vector<const kvc::cpu::KernelTable*> tables() {
  std::vector<const kvc::cpu::KernelTable*> found;
  for (int32_t i = 0; const kvc::cpu::KernelTable* table = kvc::cpu::runnable_kernels(i); ++i)
    found.push_back(table);
  return found;
}
