#include <cuda_runtime_api.h>

#include "tests/cuda/gpu.hpp"

namespace gpu {
namespace {

void need(cudaError_t error, const char* call) {
  gpu::need(static_cast<kvc::cuda::Error>(error), call);
}
cudaStream_t of(Stream stream) { return static_cast<cudaStream_t>(stream); }

}  // namespace

struct Mark {
  cudaEvent_t event = nullptr;
};
struct Graph {
  cudaGraphExec_t executable = nullptr;
};

Stream create_stream() {
  cudaStream_t stream = nullptr;
  need(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "create a stream");
  return stream;
}
void destroy_stream(Stream stream) { need(cudaStreamDestroy(of(stream)), "destroy a stream"); }

Mark* create_mark() {
  auto* const mark = new Mark();
  need(cudaEventCreate(&mark->event), "create an event");
  return mark;
}
void destroy_mark(Mark* mark) {
  need(cudaEventDestroy(mark->event), "destroy an event");
  delete mark;
}
void record(Mark* mark, Stream stream) {
  need(cudaEventRecord(mark->event, of(stream)), "record an event");
}
double microseconds(const Mark* from, const Mark* to) {
  float milliseconds = 0;
  need(cudaEventSynchronize(to->event), "wait for an event");
  need(cudaEventElapsedTime(&milliseconds, from->event, to->event), "measure");
  return 1e3 * static_cast<double>(milliseconds);
}

void begin_capture(Stream stream) {
  need(cudaStreamBeginCapture(of(stream), cudaStreamCaptureModeThreadLocal), "begin a capture");
}
Graph* end_capture(Stream stream) {
  cudaGraph_t captured = nullptr;
  need(cudaStreamEndCapture(of(stream), &captured), "end a capture");
  auto* const graph = new Graph();
  need(cudaGraphInstantiate(&graph->executable, captured, 0), "instantiate a graph");
  need(cudaGraphDestroy(captured), "destroy what was captured");
  return graph;
}
void launch(Graph* graph, Stream stream) {
  need(cudaGraphLaunch(graph->executable, of(stream)), "launch a graph");
}
void destroy_graph(Graph* graph) {
  need(cudaGraphExecDestroy(graph->executable), "destroy a graph");
  delete graph;
}

}  // namespace gpu
