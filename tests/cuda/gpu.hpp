#pragma once
#include <cstddef>
#include <string>
#include <vector>

#include "kernels/cuda/runtime.hpp"
#include "kvc/kvc.h"

/// What programs for "cuda:0" need beside the library: memory, streams, times and graphs. There are two implementations: gpu_cuda.cpp
/// for a GPU and gpu_simulated.cpp for the simulation, so every such program is built twice.
namespace gpu {

using kvc::cuda::Stream;

/// Each ends the program with what was to be done, and the library's last message.
[[noreturn]] void fail(const std::string& what);
void need(kvc::cuda::Error error, const char* call);
void must(kvc_status status, const char* call);

/// A block of the GPU's memory. Its contents are undefined.
class Memory {
 public:
  explicit Memory(size_t bytes);
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  std::byte* data() const { return data_; }
  size_t bytes() const { return bytes_; }

  /// Both wait for the copy.
  void write(const void* from, size_t bytes) const;
  void read(void* to, size_t bytes) const;

 private:
  size_t bytes_;
  std::byte* data_ = nullptr;
};

/// A dense tensor there, or on the host.
kvc_tensor tensor(void* data, bool on_gpu, uint32_t dtype, const std::vector<int64_t>& shape);

Stream create_stream();
void destroy_stream(Stream stream);

/// A point in the work of a stream, whose time is known once it is reached.
struct Mark;
Mark* create_mark();
void destroy_mark(Mark* mark);
void record(Mark* mark, Stream stream);
/// Waits for the second.
double microseconds(const Mark* from, const Mark* to);

/// Work that is captured from a stream, to be launched again and again.
struct Graph;
void begin_capture(Stream stream);
Graph* end_capture(Stream stream);
void launch(Graph* graph, Stream stream);
void destroy_graph(Graph* graph);

}  // namespace gpu
