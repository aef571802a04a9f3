#include <chrono>
#include <cstdint>

#include "tests/cuda/gpu.hpp"
#include "tests/simt/runtime_simt.hpp"

namespace gpu {

using Clock = std::chrono::steady_clock;

/// The time when the work before it was done, which is done at once.
struct Mark {
  Clock::time_point at;
};
struct Graph {
  simt::device::Graph* captured = nullptr;
};

/// A number that no other stream has.
Stream create_stream() {
  static uintptr_t last = 0x1000;
  return reinterpret_cast<Stream>(++last);
}
void destroy_stream(Stream stream) { need(kvc::cuda::runtime::synchronize(stream), "synchronize"); }

Mark* create_mark() { return new Mark(); }
void destroy_mark(Mark* mark) { delete mark; }
void record(Mark* mark, Stream stream) {
  need(kvc::cuda::runtime::synchronize(stream), "synchronize");
  mark->at = Clock::now();
}
double microseconds(const Mark* from, const Mark* to) {
  return std::chrono::duration<double, std::micro>(to->at - from->at).count();
}

void begin_capture(Stream stream) { need(simt::device::begin_capture(stream), "begin a capture"); }
Graph* end_capture(Stream stream) {
  auto* const graph = new Graph();
  need(simt::device::end_capture(stream, &graph->captured), "end a capture");
  return graph;
}
void launch(Graph* graph, Stream stream) {
  need(simt::device::launch_graph(*graph->captured, stream), "launch a graph");
}
void destroy_graph(Graph* graph) {
  simt::device::finish();
  simt::device::destroy_graph(graph->captured);
  delete graph;
}

}  // namespace gpu
