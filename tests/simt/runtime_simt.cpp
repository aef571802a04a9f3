#include "tests/simt/runtime_simt.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <vector>

#include "tests/fake/device_block.hpp"
#include "tests/simt/simt.hpp"

namespace simt::device {
namespace {

using kvc::cuda::Error;
using kvc::cuda::Grid;
using kvc::cuda::Kernel;
using kvc::cuda::Stream;

struct Queue {
  std::deque<std::function<void()>> work;
  int64_t n_given = 0;
  int64_t n_done = 0;
};

}  // namespace

struct Graph {
  std::vector<std::function<void()>> work;
};

namespace {

/// CUDA's numbers for calls that a capture forbids.
constexpr auto capture_unsupported = static_cast<Error>(900),
               capture_invalidated = static_cast<Error>(901);

/// What an event has recorded: the work of a queue up to a number.
struct Recorded {
  Queue* queue = nullptr;
  int64_t n = 0;
};

/// All simulated devices of the process. One thing happens at a time.
class Machine {
 public:
  static Machine& instance() {
    static auto* const machine = new Machine();  // outlives every test
    return *machine;
  }

  // ---- For tests ------------------------------------------------------------------------------------------------------------

  void set_seed(unsigned seed) {
    const std::lock_guard lock(mutex_);
    finish_all();
    seed_ = seed;
    random_ = 0x9e3779b97f4a7c15ull * (seed + 1);
  }
  void fail_call(int64_t n, Error error, bool stays) {
    const std::lock_guard lock(mutex_);
    fails_in_ = n;
    failure_ = error;
    failure_stays_ = stays;
  }
  int64_t n_calls() {
    const std::lock_guard lock(mutex_);
    return n_calls_;
  }
  int64_t n_launches() {
    const std::lock_guard lock(mutex_);
    return n_launches_;
  }
  int64_t n_boxes() {
    const std::lock_guard lock(mutex_);
    return n_boxes_;
  }
  int64_t n_waits() {
    const std::lock_guard lock(mutex_);
    return n_waits_;
  }
  int64_t n_held() {
    const std::lock_guard lock(mutex_);
    return n_held_;
  }
  void finish() {
    const std::lock_guard lock(mutex_);
    finish_all();
  }

  // ---- For the backend ------------------------------------------------------------------------------------------------------

  /// Calls `call`, unless this call is one that fails.
  template <class Call>
  Error checked(Call call) {
    const std::lock_guard lock(mutex_);
    if (Error error = count_call(); error != Error::none) return error;
    return call();
  }

  Error allocate(size_t bytes, void** out) {
    return checked([&] {
      if (capture_ != nullptr) return broken_capture();
      fake::DeviceBlock* const block = fake::DeviceBlock::make(bytes);
      if (block == nullptr) return Error::out_of_memory;
      poison(*block);
      fake::Blocks::add(block);
      ++n_held_;
      *out = block->data();
      return Error::none;
    });
  }
  Error release(void* block) {
    if (block == nullptr) return Error::none;
    const std::lock_guard lock(mutex_);
    finish_all();
    fake::Blocks::remove(block);
    --n_held_;
    return fault_;
  }

  /// Adds work to a stream.
  Error give(Stream stream, std::function<void()> work) {
    return checked([&] { return capture_or_give(stream, std::move(work)); });
  }
  void prepare(const Kernel& kernel) { loaded_.insert(kernel.entry); }
  Error launch(const Kernel& kernel, const Grid& grid, const void* params, Stream stream) {
    if (grid.blocks == 0) return Error::none;
    struct alignas(kvc::cuda::RowMap) Line {
      std::byte bytes[alignof(kvc::cuda::RowMap)];
    };
    auto kept = std::make_shared<std::vector<Line>>((kernel.params_bytes + sizeof(Line) - 1) /
                                                    sizeof(Line));
    std::memcpy(kept->data(), params, kernel.params_bytes);
    return checked([&] {
      if (kernel.entry == nullptr || grid.threads == 0 || grid.threads > 1024 ||
          kernel.params_bytes > kvc::cuda::max_params_bytes)
        return Error::invalid_value;
      ++n_launches_;
      if (is_captured(stream) && !loaded_.contains(kernel.entry)) {
        std::fprintf(stderr, "the kernel %s would be loaded during a capture\n", kernel.name);
        return broken_capture();
      }
      return capture_or_give(stream, [this, kernel, grid, kept] { run(kernel, grid, kept->data()); });
    });
  }

  Error create_stream(Stream* out) {
    return checked([&] {
      *out = new char();
      ++n_held_;
      return Error::none;
    });
  }
  /// Its work stays, and is done like that of others. So nothing else gets its address before.
  void destroy_stream(Stream stream) {
    if (stream == nullptr) return;
    const std::lock_guard lock(mutex_);
    finish_all();
    delete static_cast<char*>(stream);
    --n_held_;
  }
  Error create_event(kvc::cuda::Event* out) {
    return checked([&] {
      *out = new Recorded();
      ++n_held_;
      return Error::none;
    });
  }
  void destroy_event(kvc::cuda::Event event) {
    if (event == nullptr) return;
    const std::lock_guard lock(mutex_);
    delete static_cast<Recorded*>(event);
    --n_held_;
  }
  Error record(kvc::cuda::Event event, Stream stream) {
    return checked([&] {
      if (is_captured(stream)) return broken_capture();
      Queue& queue = queue_of(stream);
      *static_cast<Recorded*>(event) = {&queue, queue.n_given};
      return Error::none;
    });
  }
  Error wait(Stream stream, kvc::cuda::Event event) {
    return checked([&] {
      if (is_captured(stream)) return broken_capture();
      const Recorded recorded = *static_cast<Recorded*>(event);
      if (recorded.queue == nullptr) return Error::none;
      return give_now(queue_of(stream), [this, recorded] {
        while (recorded.queue->n_done < recorded.n) run_next(*recorded.queue);
      });
    });
  }
  Error synchronize(Stream stream) {
    return checked([&] {
      if (is_captured(stream)) return broken_capture();
      ++n_waits_;
      Queue& queue = queue_of(stream);
      while (!queue.work.empty()) run_next(queue);
      return fault_;
    });
  }
  Error synchronize_device() {
    return checked([&] {
      if (capture_ != nullptr) return broken_capture();
      ++n_waits_;
      finish_all();
      return fault_;
    });
  }

  // ---- Graphs ---------------------------------------------------------------------------------------------------------------

  Error begin_capture(Stream stream) {
    const std::lock_guard lock(mutex_);
    if (capture_ != nullptr || of_legacy(stream) == nullptr) return Error::invalid_value;
    capture_ = std::make_unique<Graph>();
    captured_stream_ = stream;
    capture_is_broken_ = false;
    return Error::none;
  }
  Error end_capture(Stream stream, Graph** out) {
    const std::lock_guard lock(mutex_);
    if (!is_captured(stream)) return Error::invalid_value;
    const std::unique_ptr<Graph> made = std::move(capture_);
    *out = capture_is_broken_ ? nullptr : new Graph(*made);
    return capture_is_broken_ ? capture_invalidated : Error::none;
  }
  Error launch_graph(const Graph& graph, Stream stream) {
    return checked([&] {
      if (capture_ != nullptr) return broken_capture();
      for (const std::function<void()>& work : graph.work) {
        if (Error e = give_now(queue_of(stream), work); e != Error::none) return e;
      }
      return Error::none;
    });
  }
  /// The legacy stream waits for others, so it cannot be used while one of them is captured.
  Error is_capturing(Stream stream, bool* out) {
    return checked([&] {
      *out = capture_ != nullptr && (is_captured(stream) || of_legacy(stream) == nullptr);
      return Error::none;
    });
  }

 private:
  static Stream of_legacy(Stream stream) {
    return stream == reinterpret_cast<Stream>(1) ? nullptr : stream;
  }
  bool is_captured(Stream stream) const {
    return capture_ != nullptr && of_legacy(stream) == captured_stream_;
  }
  Error broken_capture() {
    capture_is_broken_ = true;
    return capture_unsupported;
  }
  Error capture_or_give(Stream stream, std::function<void()> work) {
    if (capture_ != nullptr && of_legacy(stream) == nullptr) return broken_capture();
    if (!is_captured(stream)) return give_now(queue_of(stream), std::move(work));
    capture_->work.push_back(std::move(work));
    return Error::none;
  }

  Machine() { random_ = 0x9e3779b97f4a7c15ull; }

  Error count_call() {
    ++n_calls_;
    if (fault_ != Error::none) return fault_;
    if (fails_in_ == 0 || --fails_in_ > 0) return Error::none;
    fails_in_ = failure_stays_ ? 1 : 0;
    return failure_;
  }

  uint64_t draw() {
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    random_ ^= random_ << 17;
    return random_;
  }

  /// The streams of null and 1 are the same one. That of the thread is one for all: a test that has several threads gives
  /// each its own.
  Queue& queue_of(Stream stream) { return queues_[of_legacy(stream)]; }
  Error give_now(Queue& queue, std::function<void()> work) {
    queue.work.push_back(std::move(work));
    ++queue.n_given;
    for (auto& [stream, other] : queues_) {
      while (!other.work.empty() && draw() % 4 == 0) run_next(other);
    }
    return fault_;
  }
  void run_next(Queue& queue) {
    const std::function<void()> work = std::move(queue.work.front());
    queue.work.pop_front();
    if (fault_ == Error::none) work();
    ++queue.n_done;
  }
  void finish_all() {
    for (auto& [stream, queue] : queues_) {
      while (!queue.work.empty()) run_next(queue);
    }
  }

  void run(const Kernel& kernel, const Grid& grid, const void* params) {
    Options options;
    options.seed = seed_ + static_cast<unsigned>(draw() % 1024);
    const auto entry = reinterpret_cast<void (*)(const void*)>(const_cast<void*>(kernel.entry));
    const Inside inside;
    try {
      const Statistics made = simt::launch(
          grid.blocks, grid.threads, grid.shared_bytes, [&] { entry(params); }, options);
      n_boxes_ += static_cast<int64_t>(made.boxes);
    } catch (const simt::Error& error) {
      std::fprintf(stderr, "the kernel %s failed: %s\n", kernel.name, error.what());
      fault_ = Error::launch_failure;
    }
  }

  /// As on a device, nobody may count on what new memory holds. Of large blocks the ends are enough.
  static void poison(fake::DeviceBlock& block) {
    constexpr size_t most = size_t{1} << 20;
    const size_t n = std::min(block.bytes(), most);
    std::memset(block.on_host(), 0xff, n);
    std::memset(block.on_host() + block.bytes() - n, 0xff, n);
  }

 public:
  /// While one exists, device memory can be touched where it is.
  class Inside {
   public:
    Inside() {
      fake::Blocks::for_each([](fake::DeviceBlock& block) { block.enter(); });
    }
    ~Inside() {
      fake::Blocks::for_each([](fake::DeviceBlock& block) { block.leave(); });
    }
    Inside(const Inside&) = delete;
    Inside& operator=(const Inside&) = delete;
  };

 private:
  std::recursive_mutex mutex_;
  std::map<Stream, Queue> queues_;  // whose addresses stay
  std::unique_ptr<Graph> capture_;  // under way
  Stream captured_stream_ = nullptr;
  bool capture_is_broken_ = false;
  std::set<const void*> loaded_;  // kernels
  uint64_t random_ = 1;
  unsigned seed_ = 0;
  Error fault_ = Error::none;  // of a kernel; stays
  int64_t fails_in_ = 0;
  Error failure_ = Error::none;
  bool failure_stays_ = false;
  int64_t n_calls_ = 0, n_launches_ = 0, n_boxes_ = 0, n_waits_ = 0, n_held_ = 0;
};

thread_local int32_t current = 0;

/// What a block may ask for.
size_t shared_bytes_of(int32_t device) { return size_t{device == sm90 ? 227u : 163u} << 10; }

constexpr auto no_kernel_image = static_cast<Error>(209);
/// Kernels for sm_90 alone say so in their names.
bool has_code_for(const Kernel& kernel) {
  return current == sm90 || std::strstr(kernel.name, "sm90") == nullptr;
}

/// Zeros in whole pages are pages that are not there.
void zero(std::byte* to, size_t bytes) {
  constexpr size_t page = 4096, least = size_t{1} << 20;
  fake::DeviceBlock* const block = fake::Blocks::holding(to);
  const bool whole = block != nullptr && reinterpret_cast<uintptr_t>(to) % page == 0;
  const size_t freed = whole && bytes >= least ? bytes / page * page : 0;
  std::byte* const host = block != nullptr ? block->on_host() + (to - block->data()) : to;
  if (freed > 0 && madvise(host, freed, MADV_REMOVE) != 0) {
    std::memset(host, 0, bytes);
  } else {
    std::memset(host + freed, 0, bytes - freed);
  }
}

void copy(void* to, const void* from, size_t bytes) {
  const Machine::Inside inside;
  std::memcpy(to, from, bytes);
}

}  // namespace

void set_seed(unsigned seed) { Machine::instance().set_seed(seed); }
void fail_call(int64_t n, kvc::cuda::Error error, bool stays) {
  Machine::instance().fail_call(n, error, stays);
}
int64_t n_calls() { return Machine::instance().n_calls(); }
int64_t n_launches() { return Machine::instance().n_launches(); }
int64_t n_boxes() { return Machine::instance().n_boxes(); }
int64_t n_waits() { return Machine::instance().n_waits(); }
int64_t n_held() { return Machine::instance().n_held(); }
void finish() { Machine::instance().finish(); }

Error begin_capture(Stream stream) { return Machine::instance().begin_capture(stream); }
Error end_capture(Stream stream, Graph** out) {
  return Machine::instance().end_capture(stream, out);
}
Error launch_graph(const Graph& graph, Stream stream) {
  return Machine::instance().launch_graph(graph, stream);
}
void destroy_graph(Graph* graph) { delete graph; }

void* on_host(void* device_memory) {
  finish();
  auto* const address = static_cast<std::byte*>(device_memory);
  fake::DeviceBlock* const block = fake::Blocks::holding(address);
  return block == nullptr ? nullptr : block->on_host() + (address - block->data());
}

}  // namespace simt::device

namespace kvc::cuda {

using simt::device::Machine;

const char* name_of(Error error) noexcept {
  switch (error) {
    case Error::none: return "cudaSuccess";
    case Error::invalid_value: return "cudaErrorInvalidValue";
    case Error::out_of_memory: return "cudaErrorMemoryAllocation";
    case Error::insufficient_driver: return "cudaErrorInsufficientDriver";
    case Error::no_device: return "cudaErrorNoDevice";
    case Error::launch_failure: return "cudaErrorLaunchFailure";
  }
  return "cudaErrorUnknown";
}

namespace runtime {

Error count_devices(int32_t* n) noexcept {
  return Machine::instance().checked([&] {
    *n = simt::device::n_devices;
    return Error::none;
  });
}
Error properties_of(int32_t device, DeviceProperties* out) noexcept {
  return Machine::instance().checked([&] {
    if (device < 0 || device >= simt::device::n_devices) return Error::invalid_value;
    *out = {};
    std::snprintf(out->name, sizeof out->name, "a simulated device");
    out->major = device == simt::device::sm90 ? 9 : 8;
    out->n_multiprocessors = simt::device::n_multiprocessors;
    out->memory_bytes = size_t{64} << 30;
    out->l2_bytes = size_t{32} << 20;
    out->shared_bytes_per_block = simt::device::shared_bytes_of(device);
    return Error::none;
  });
}
Error current_device(int32_t* device) noexcept {
  return Machine::instance().checked([&] {
    *device = simt::device::current;
    return Error::none;
  });
}
Error use_device(int32_t device) noexcept {
  return Machine::instance().checked([&] {
    if (device < 0 || device >= simt::device::n_devices) return Error::invalid_value;
    simt::device::current = device;
    return Error::none;
  });
}

Error allocate(size_t bytes, void** out) noexcept {
  return Machine::instance().allocate(bytes, out);
}
Error release(void* block) noexcept { return Machine::instance().release(block); }

/// Kernels and copies reach it, and so it is a block like those of the device: who touches it on the host would have to know what
/// is under way.
Error allocate_pinned(size_t bytes, void** out) noexcept {
  return Machine::instance().allocate(bytes, out);
}
Error release_pinned(void* block) noexcept { return Machine::instance().release(block); }

Error fill_zero(void* block, size_t bytes, Stream stream) noexcept {
  return Machine::instance().give(
      stream, [=] { simt::device::zero(static_cast<std::byte*>(block), bytes); });
}
Error copy_to_device(void* to, const void* from, size_t bytes, Stream stream) noexcept {
  return Machine::instance().give(stream, [=] { simt::device::copy(to, from, bytes); });
}
Error copy_to_host(void* to, const void* from, size_t bytes, Stream stream) noexcept {
  return Machine::instance().give(stream, [=] { simt::device::copy(to, from, bytes); });
}

Error prepare(const Kernel& kernel, const Grid& grid, int32_t* blocks_per_multiprocessor) noexcept {
  return Machine::instance().checked([&] {
    if (grid.shared_bytes > simt::device::shared_bytes_of(simt::device::current))
      return Error::invalid_value;
    if (!simt::device::has_code_for(kernel)) return simt::device::no_kernel_image;
    *blocks_per_multiprocessor = 2;
    Machine::instance().prepare(kernel);
    return Error::none;
  });
}
Error launch(const Kernel& kernel, const Grid& grid, const void* params, Stream stream) noexcept {
  if (!simt::device::has_code_for(kernel)) return simt::device::no_kernel_image;
  return Machine::instance().launch(kernel, grid, params, stream);
}

/// What a copy needs is in it as it was given.
Error map_rows(const MappedRows& rows, RowMap* out) noexcept {
  return Machine::instance().checked([&] {
    const auto all = reinterpret_cast<uintptr_t>(rows.data) |
                     static_cast<uintptr_t>(rows.row_stride) |
                     static_cast<uintptr_t>(rows.head_stride);
    if (all % 16 != 0 || rows.dim < 1 || rows.n_rows < 1 || rows.n_heads < 1 || rows.box_rows < 1 ||
        rows.box_rows > 256 || rows.row_stride >> 40 != 0 || rows.head_stride >> 40 != 0)
      return Error::invalid_value;
    *out = {};
    std::memcpy(out, &rows, sizeof rows);
    return Error::none;
  });
}

Error is_capturing(Stream stream, bool* out) noexcept {
  return Machine::instance().is_capturing(stream, out);
}

Error create_stream(Stream* out) noexcept { return Machine::instance().create_stream(out); }
void destroy_stream(Stream stream) noexcept { Machine::instance().destroy_stream(stream); }

Error create_event(Event* out) noexcept { return Machine::instance().create_event(out); }
void destroy_event(Event event) noexcept { Machine::instance().destroy_event(event); }
Error record(Event event, Stream stream) noexcept {
  return Machine::instance().record(event, stream);
}
Error wait(Stream stream, Event event) noexcept { return Machine::instance().wait(stream, event); }

Error synchronize(Stream stream) noexcept { return Machine::instance().synchronize(stream); }
Error synchronize_device() noexcept { return Machine::instance().synchronize_device(); }

}  // namespace runtime
}  // namespace kvc::cuda
