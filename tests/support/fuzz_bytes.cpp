#include "fuzz_bytes.hpp"

#include <cstdlib>
#include <iostream>

namespace fuzz {

void run_bytes(const std::function<std::unique_ptr<KindWorld>()>& make) {
  std::unique_ptr<KindWorld> world;
  try {
    world = make();
    while (world->bytes_left() > 0) world->step();
    world->finish();
  } catch (const Difference& difference) {
    std::cerr << "\nDIFFERENCE: " << difference.what() << "\n"
              << (world ? world->history() : "while the cache was made") << std::endl;
    std::abort();
  }
}

}  // namespace fuzz
