// What a test in another language does to the simulated GPUs: memory of its own, and graphs. C functions that the library which
// is the plugin exports.
#include <cstddef>
#include <cstring>

#include "tests/simt/runtime_simt.hpp"

#define KVC_SIMULATED extern "C" [[gnu::visibility("default")]]

using kvc::cuda::Error, kvc::cuda::Stream;

/// Device memory; null when there is none. The alignment is CUDA's.
KVC_SIMULATED void* simulated_allocate(void*, size_t bytes, size_t) {
  void* block = nullptr;
  return kvc::cuda::runtime::allocate(bytes, &block) == Error::none ? block : nullptr;
}
KVC_SIMULATED void simulated_free(void*, void* block, size_t, size_t) {
  kvc::cuda::runtime::release(block);
}

/// Both wait for everything.
KVC_SIMULATED void simulated_write(void* to, const void* from, size_t bytes) {
  std::memcpy(simt::device::on_host(to), from, bytes);
}
KVC_SIMULATED void simulated_read(void* to, void* from, size_t bytes) {
  std::memcpy(to, simt::device::on_host(from), bytes);
}

KVC_SIMULATED int simulated_begin_capture(Stream stream) {
  return static_cast<int>(simt::device::begin_capture(stream));
}
/// Null: the capture is broken.
KVC_SIMULATED void* simulated_end_capture(Stream stream) {
  simt::device::Graph* graph = nullptr;
  return simt::device::end_capture(stream, &graph) == Error::none ? graph : nullptr;
}
KVC_SIMULATED int simulated_launch(void* graph, Stream stream) {
  return static_cast<int>(
      simt::device::launch_graph(*static_cast<simt::device::Graph*>(graph), stream));
}
KVC_SIMULATED void simulated_destroy(void* graph) {
  simt::device::destroy_graph(static_cast<simt::device::Graph*>(graph));
}
