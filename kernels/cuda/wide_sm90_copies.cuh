#pragma once
#include "kernels/cuda/attention_kernels.hpp"
#include "kernels/cuda/item.cuh"
#include "kernels/cuda/ptx_sm90.cuh"
#include "kernels/cuda/wide_sm90_layout.hpp"

/// Stages of shared memory, through which K and V go from the cache to the groups that multiply (wide_sm90.cuh), and the group that
/// copies them there.
namespace kvc::cuda {

/// What both sides of a block know of a stage. Steps are counted over all tasks of the block.
template <class Layout>
struct Sm90Stage {
  int index, parity;

  KVC_DEVICE explicit Sm90Stage(int step)
      : index(step % Layout::n_stages), parity(step / Layout::n_stages % 2) {}

  KVC_DEVICE int32_t* cells() const {
    return reinterpret_cast<int32_t*>(shared_memory() + Layout::notes_at) + index * 2 * Layout::tokens;
  }
  KVC_DEVICE int32_t* positions() const { return cells() + Layout::tokens; }
  KVC_DEVICE uint32_t keys() const {
    return shared_address() + Layout::stages_at + index * 2 * Layout::side_bytes;
  }
  KVC_DEVICE uint32_t values() const { return keys() + Layout::side_bytes; }
  KVC_DEVICE uint32_t full() const { return shared_address() + Layout::barriers_at + 8 * index; }
  KVC_DEVICE uint32_t empty() const { return full() + 8 * Layout::n_stages; }
};

/// Once for a block.
template <class Layout>
KVC_DEVICE void init_stages(const MappedArguments& mapped) {
  if (thread_index() == 0) {
    prefetch_map(mapped.k);
    prefetch_map(mapped.v);
    for (int i = 0; i < Layout::n_stages; ++i) {
      // The rows of each thread that copies, and what all of them have noted.
      init_barrier(Sm90Stage<Layout>(i).full(), Layout::group_threads + 1);
      init_barrier(Sm90Stage<Layout>(i).empty(), Layout::multiplying / 32);
    }
  }
  sync_block();
}

// Threads that do something together, and the barriers that they have.
struct Sm90Multiplying {
  static constexpr int n = 256;
  KVC_DEVICE static int thread() { return thread_index(); }
  KVC_DEVICE static int n_threads() { return n; }
  KVC_DEVICE static void sync() { sync_threads(1, n); }
};
struct Sm90Group {
  static constexpr int n = 128;
  KVC_DEVICE static int index() { return uniform(thread_index() / n); }
  KVC_DEVICE static int thread() { return thread_index() % n; }
  KVC_DEVICE static int n_threads() { return n; }
  KVC_DEVICE static void sync() { sync_threads(2 + index(), n); }
};

/// The group that copies. A step whose 64 cells follow one another is a box for each 64 dims of K and of V. Rows in
/// other cells, and those of a step that is not full, are copied 16 bytes at a time. Nothing between: a copy of a single row would
/// land as it lies in the cache, its chunks not exchanged, and a box has as many rows as it was made with.
template <class Layout>
class Sm90Copies {
  using Stage = Sm90Stage<Layout>;
  static constexpr int tokens = Layout::tokens;
  static constexpr int chunks = 8 * Layout::n_planes;  // of 16 bytes, of a row
  static constexpr int rows_at_once = Layout::group_threads / chunks;

 public:
  KVC_DEVICE explicit Sm90Copies(const MappedArguments& mapped)
      : item_{mapped.call},
        a_(mapped.call),
        mapped_(mapped),
        chunk_(Sm90Group::thread() % chunks),
        row_(Sm90Group::thread() / chunks) {}

  /// The task that the groups that multiply begin.
  KVC_DEVICE void serve() {
    Item::follow();
    const Task& task = Item::task();
    if (task.begin() >= task.end()) return;
    const int64_t first_cell = task.list.first_cell;
    k_ = a_.k.data + task.kv_head * a_.k.head_stride + first_cell * a_.k.row_stride + 16 * chunk_;
    v_ = a_.v.data + task.kv_head * a_.v.head_stride + first_cell * a_.v.row_stride + 16 * chunk_;
    item_.for_each_segment(task.begin(), task.end(), [this](int, int from, int to) { run(from, to); });
  }

 private:
  /// The seen coordinates [begin, end), a step at a time. Tokens behind the end are read from the last one, which somebody sees.
  KVC_DEVICE void run(int begin, int end) {
    const int thread = Sm90Group::thread();
    int cell = 0, position = 0;
    const auto fetch = [&](int first) {
      if (thread >= tokens || first >= end) return;
      const int seen = first + thread;
      const int64_t entry = Item::entry(seen < end ? seen : end - 1);
      cell = a_.cells[entry];
      position = Item::task().list.first_position + a_.positions[entry];
    };
    fetch(begin);
    KVC_NO_UNROLL for (int u0 = begin; u0 < end; u0 += tokens) {
      const Stage stage(step_++);
      wait_for_phase(stage.empty(), stage.parity ^ 1);
      if (thread < tokens) {
        stage.cells()[thread] = cell;
        stage.positions()[thread] = position;
      }
      Sm90Group::sync();
      if (follow_one_another(stage)) {
        if (thread < 32) copy_boxes(stage);
      } else {
        if (thread == 0) arrive(stage.full());
        copy_rows(stage);
      }
      fetch(u0 + tokens);
      arrive_when_copied(stage.full());
    }
  }

  /// The cells of a step; of one that is not full, the last stands there again. Each warp finds the same.
  KVC_DEVICE static bool follow_one_another(const Stage& stage) {
    const int lane = thread_index() % 32, first = stage.cells()[0];
    bool has_gap = false;
    for (int i = lane; i < tokens; i += 32) has_gap = has_gap || stage.cells()[i] != first + i;
    return !any_lane(has_gap);
  }

  /// By a warp. What threads have written or read there before is behind what they have published.
  KVC_DEVICE void copy_boxes(const Stage& stage) const {
    publish_shared();
    if (thread_index() % 32 != 0) return;
    arrive_and_expect(stage.full(), 2 * Layout::side_bytes);
    const Task& task = Item::task();
    const int cell = static_cast<int>(task.list.first_cell) + stage.cells()[0];
    KVC_UNROLL for (int plane = 0; plane < Layout::n_planes; ++plane) {
      const uint32_t at = plane * Layout::plane_bytes;
      copy_box(stage.keys() + at, mapped_.k, 64 * plane, cell, task.kv_head, stage.full());
      copy_box(stage.values() + at, mapped_.v, 64 * plane, cell, task.kv_head, stage.full());
    }
  }

  KVC_DEVICE void copy_rows(const Stage& stage) const {
    const bool has_k = 8 * chunk_ < a_.k.dim, has_v = 8 * chunk_ < a_.v.dim;
    const uint32_t to = stage.keys() + chunk_ / 8 * Layout::plane_bytes + row_ * 128 +
                        (chunk_ ^ row_) % 8 * 16;
    KVC_UNROLL_2 for (int i = 0; i < tokens / rows_at_once; ++i) {
      const int64_t cell = stage.cells()[i * rows_at_once + row_];
      const uint32_t at = to + i * rows_at_once * 128;
      copy_async(at, has_k ? k_ + cell * a_.k.row_stride : a_.k.data, has_k);
      copy_async(at + Layout::side_bytes, has_v ? v_ + cell * a_.v.row_stride : a_.v.data, has_v);
    }
  }

  const Item item_;
  const AttentionArguments& a_;
  const MappedArguments& mapped_;
  const int chunk_, row_;  // that this thread copies of rows; rows_at_once further, it is the same of eight rows
  const char *k_, *v_;     // row 0 of the KV head
  int step_ = 0;
};

}  // namespace kvc::cuda
