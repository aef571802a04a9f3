#pragma once
#include <cstddef>
#include <cstdint>

#include "kernels/cuda/runtime.hpp"

/// The simulated device behind kernels/cuda/runtime.hpp, and what tests may do to it.
///
/// It is as unhelpful as a device may be. The host cannot touch its memory where it is, and new memory is full of NaN. What is
/// given to a stream runs late: when somebody waits, or at a call that a seed chooses, and in the order of its stream alone.
/// So a missing wait, an order that no event made and host memory that did not stay are noticed.
namespace simt::device {

inline constexpr int32_t n_devices = 2;
inline constexpr int32_t sm90 = 0;  // the one of compute capability 9.0; the other is of 8.0
inline constexpr int32_t n_multiprocessors = 2;

/// Of what runs when, and of the order of threads in kernels. The work of all streams is done before.
void set_seed(unsigned seed);

/// The n-th call from now on fails with `error`, and with `stays` so does each one after it. 0: none does. What gives memory
/// and events back never fails.
void fail_call(int64_t n, kvc::cuda::Error error, bool stays);

/// Calls that could have failed so far.
int64_t n_calls();
/// Kernels that were launched so far.
int64_t n_launches();
/// Boxes of rows that kernels have copied so far.
int64_t n_boxes();
/// Calls that waited so far.
int64_t n_waits();
/// Blocks of memory and events that are not given back.
int64_t n_held();

/// Captures what is given to a stream, and does none of it. Meanwhile no kernel is loaded and nothing waits, as on a GPU.
kvc::cuda::Error begin_capture(kvc::cuda::Stream stream);
struct Graph;
/// Null, with an error, where a call has broken the capture.
kvc::cuda::Error end_capture(kvc::cuda::Stream stream, Graph** out);
/// Gives the stream all that was captured, with the parameters that it had.
kvc::cuda::Error launch_graph(const Graph& graph, kvc::cuda::Stream stream);
void destroy_graph(Graph* graph);

/// Does the work of all streams.
void finish();

/// Where the host can touch the same byte of device memory. What is under way is done first.
void* on_host(void* device_memory);
template <class T>
T* on_host(T* device_memory) {
  return static_cast<T*>(on_host(static_cast<void*>(device_memory)));
}

}  // namespace simt::device
