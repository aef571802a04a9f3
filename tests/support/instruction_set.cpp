#include "instruction_set.hpp"

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <iterator>
#include <set>
#include <sstream>

#include "kvc/kvc.h"

namespace support {

#if defined(__x86_64__)
namespace {

/// The words behind "flags" of the first processor.
std::set<std::string> processor_flags() {
  std::ifstream info("/proc/cpuinfo");
  for (std::string line; std::getline(info, line);) {
    if (line.rfind("flags", 0) != 0) continue;
    std::istringstream words(line.substr(line.find(':') + 1));
    return {std::istream_iterator<std::string>(words), {}};
  }
  return {};
}

}  // namespace

bool processor_has(const std::string& set) {
  std::string needed;
  const bool has_vectors_of_512 = set == "avx512" || set == "vnni" || set == "amx";
  if (set == "avx2" || has_vectors_of_512) needed += "avx2 fma f16c ";
  if (has_vectors_of_512) needed += "avx512f avx512bw avx512vl avx512dq ";
  if (set == "vnni") needed += "avx512_vnni avx512vbmi";
  if (set == "amx") needed += "amx_tile amx_bf16";
  if (needed.empty()) return set == "portable";
  const std::set<std::string> flags = processor_flags();
  std::istringstream words(needed);
  for (std::string word; words >> word;) {
    if (flags.count(word) == 0) return false;
  }
  return true;
}
#elif defined(__aarch64__)
bool processor_has(const std::string& set) { return set == "portable" || set == "neon"; }
#else
bool processor_has(const std::string& set) { return set == "portable"; }
#endif

std::string set_in(const std::string& build_info) {
  const std::string before = "cpu kernels: ";
  const size_t at = build_info.find(before);
  if (at == std::string::npos) return "";
  const std::string rest = build_info.substr(at + before.size());
  return rest.substr(0, rest.find(';'));
}

std::string best_set() {
  for (const char* set : {"amx", "vnni", "avx512", "avx2", "neon"}) {
    if (processor_has(set)) return set;
  }
  return "portable";
}

int wrong_instruction_set() {
  const char* wanted = std::getenv("KVC_CPU_ISA");
  if (wanted == nullptr) return 0;
  if (set_in(kvc_build_info()) == wanted) {
    if (std::getenv("KVC_SKIP_BEST_ISA") == nullptr || wanted != best_set()) return 0;
    std::cout << "NOT RUN: " << wanted << " is this processor's best, which other tests run on"
              << std::endl;
    return 77;
  }
  const std::set<std::string> known = {"portable", "avx2", "avx512", "vnni", "amx", "neon"};
  if (known.count(wanted) == 1 && !processor_has(wanted)) {
    std::cout << "NOT RUN: this processor has no " << wanted << std::endl;
    return 77;
  }
  std::cerr << "KVC_CPU_ISA=" << wanted << ", but this is " << kvc_build_info() << std::endl;
  return 1;
}

}  // namespace support
