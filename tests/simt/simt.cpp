#include "tests/simt/simt.hpp"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <deque>
#include <memory>
#include <numeric>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Pushes what a function must preserve, changes stacks, and pops it there.
extern "C" void simt_switch(void** from, void* to);
asm(R"(.text
.globl simt_switch
.hidden simt_switch
.type simt_switch, @function
simt_switch:
 pushq %rbp
 pushq %rbx
 pushq %r12
 pushq %r13
 pushq %r14
 pushq %r15
 movq %rsp, (%rdi)
 movq %rsi, %rsp
 popq %r15
 popq %r14
 popq %r13
 popq %r12
 popq %rbx
 popq %rbp
 ret
.size simt_switch, .-simt_switch
)");

namespace simt {
namespace {

constexpr size_t stack_bytes = size_t{128} << 10;
constexpr size_t shared_alignment = 1024;

struct Copy {
  char* to;
  const char* from;
  size_t bytes;
};

struct Fiber {
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  int block = 0;  // of those resident
  unsigned thread = 0;
  int level = 0;  // above 0: it runs when hardly any of a lower level can
  bool is_done = true;
  const char* waits_in = nullptr;  // null: it can run
  size_t n_loads = 0;
  std::deque<std::vector<Copy>> copies = {{}};  // by group; the last is open
};

struct Barrier {
  unsigned arrived = 0;
  Waiting waiting;
};

/// What hardware does by itself for a block.
struct Event {
  int block = 0;  // of those resident
  std::function<void()> act;
  bool is_slow = false;  // it happens when nothing else can
};

/// One collective at a time. A lane is at most one ahead of another, so two buffers are enough.
struct Warp {
  const char* name = nullptr;
  unsigned arrived = 0;
  size_t phase = 0;
  std::array<Inputs, 2> in;
  std::array<Outputs, 2> out;
  Waiting waiting;
  std::vector<std::vector<uintptr_t>> requests;  // the sectors of each
};

struct Block {
  unsigned index = 0;
  unsigned n_alive = 0;
  std::vector<char> shared;
  Barrier barrier;
  std::vector<Warp> warps;
  std::unique_ptr<BlockState> state;

  char* shared_begin() {
    const auto address = reinterpret_cast<uintptr_t>(shared.data());
    return shared.data() + (shared_alignment - address % shared_alignment) % shared_alignment;
  }
};

/// Stacks of earlier launches of this host thread, whose pages are there.
thread_local std::vector<std::unique_ptr<char[]>> stacks;

class Machine {
 public:
  Machine(unsigned grid, unsigned threads, size_t shared_bytes_of_block,
          const std::function<void()>& body, const Options& chosen)
      : n_blocks(grid),
        n_threads(threads),
        options(chosen),
        shared_bytes(shared_bytes_of_block),
        body_(body),
        random_(0x9e3779b97f4a7c15u * (uint64_t{chosen.seed} + 1)) {}

  void run();
  Fiber& fiber() { return fibers_[static_cast<size_t>(current_)]; }
  Block& block() { return blocks_[static_cast<size_t>(fiber().block)]; }
  Warp& warp() { return block().warps[fiber().thread / warp_lanes]; }

  uint64_t next() {
    random_ ^= random_ << 13;
    random_ ^= random_ >> 7;
    random_ ^= random_ << 17;
    return random_;
  }
  void begin_fiber();
  void wait(Waiting& waiting, const char* where);
  void wake(Waiting& waiting);
  void do_later(std::function<void()> act) {
    events_.push_back({fiber().block, std::move(act), next() % 8 == 0});
  }
  void yield();
  void draw_levels(int slot);

  const unsigned n_blocks, n_threads;
  const Options options;
  const size_t shared_bytes;
  Statistics statistics;
  std::string error;

 private:
  void start_block(int slot);
  void end_block(int slot);
  void run_event();
  int choose();
  void to_scheduler(bool ends = false);

  const std::function<void()>& body_;
  uint64_t random_;
  std::vector<Fiber> fibers_;  // [resident blocks][threads]
  std::vector<Block> blocks_;  // resident
  std::vector<unsigned> order_;
  unsigned n_started_ = 0;
  std::vector<int> runnable_;
  std::vector<Event> events_;
  int current_ = 0;
  void* scheduler_ = nullptr;
#if defined(__SANITIZE_ADDRESS__)
  const void* host_stack_ = nullptr;
  size_t host_stack_bytes_ = 0;
#endif
};

thread_local Machine* machine = nullptr;

void fiber_main() {
  machine->begin_fiber();
  std::abort();  // nothing runs behind the end of a fiber
}

void Machine::begin_fiber() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &host_stack_, &host_stack_bytes_);
#endif
  body_();
  fiber().is_done = true;
  to_scheduler(true);
}

void Machine::to_scheduler([[maybe_unused]] bool ends) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(ends ? nullptr : &fake, host_stack_, host_stack_bytes_);
#endif
  simt_switch(&fiber().stack_pointer, scheduler_);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, &host_stack_, &host_stack_bytes_);
#endif
}

void Machine::wait(Waiting& waiting, const char* where) {
  waiting.push_back(current_);
  fiber().waits_in = where;
  to_scheduler();
}

void Machine::wake(Waiting& waiting) {
  for (const int index : waiting) {
    fibers_[static_cast<size_t>(index)].waits_in = nullptr;
    runnable_.push_back(index);
  }
  waiting.clear();
}

void Machine::yield() {
  runnable_.push_back(current_);
  to_scheduler();
}

/// A quarter of a block's warps as a whole, and an eighth of its other threads, are to starve.
void Machine::draw_levels(int slot) {
  if (options.seed % 2 != 0) return;
  const int level = 1 + static_cast<int>(next() % 3);
  bool is_slow_warp = false;
  for (unsigned t = 0; t < n_threads; ++t) {
    if (t % warp_lanes == 0) is_slow_warp = next() % 4 == 0;
    const size_t index = static_cast<size_t>(slot) * n_threads + t;
    fibers_[index].level = is_slow_warp || next() % 8 == 0 ? level : 0;
  }
}

int Machine::choose() {
  const auto draw = [this] { return static_cast<size_t>(next() % runnable_.size()); };
  const auto level = [this](size_t i) { return fibers_[static_cast<size_t>(runnable_[i])].level; };
  size_t pick = draw();
  for (int tries = 0; tries < 24 && level(pick) > 0; ++tries) {
    const size_t other = draw();
    if (level(other) < level(pick)) pick = other;
  }
  const int chosen = runnable_[pick];
  runnable_[pick] = runnable_.back();
  runnable_.pop_back();
  return chosen;
}

void Machine::start_block(int slot) {
  Block& block = blocks_[static_cast<size_t>(slot)];
  block = Block{};
  block.index = order_[n_started_++];
  block.n_alive = n_threads;
  // All bits set are a NaN in every type of float.
  block.shared.assign(shared_bytes + shared_alignment, static_cast<char>(0xff));
  block.warps.resize((n_threads + warp_lanes - 1) / warp_lanes);
  for (unsigned t = 0; t < n_threads; ++t) {
    const size_t index = static_cast<size_t>(slot) * n_threads + t;
    Fiber& fiber = fibers_[index];
    fiber = Fiber{};
    fiber.stack = stacks[index].get();
    fiber.block = slot;
    fiber.thread = t;
    fiber.is_done = false;
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(fiber.stack, stack_bytes);
#endif
    char* top = fiber.stack + stack_bytes;
    top -= reinterpret_cast<uintptr_t>(top) % 64;
    auto** words = reinterpret_cast<void**>(top);
    *--words = nullptr;
    *--words = reinterpret_cast<void*>(&fiber_main);
    for (int preserved = 0; preserved < 6; ++preserved) *--words = nullptr;
    fiber.stack_pointer = words;
    runnable_.push_back(static_cast<int>(index));
  }
  draw_levels(slot);
}

void Machine::end_block(int slot) {
  Block& block = blocks_[static_cast<size_t>(slot)];
  std::string left;
  if (block.state != nullptr) left = block.state->unfinished();
  for (const Event& event : events_)
    if (event.block == slot) left = "copies on their way";
  if (!left.empty()) error = "block " + std::to_string(block.index) + " has ended with " + left;
  for (Warp& warp : block.warps) {
    for (std::vector<uintptr_t>& sectors : warp.requests) {
      std::sort(sectors.begin(), sectors.end());
      const auto end = std::unique(sectors.begin(), sectors.end());
      statistics.sectors += static_cast<uint64_t>(end - sectors.begin());
      ++statistics.requests;
    }
  }
}

void Machine::run_event() {
  const size_t pick = next() % events_.size();
  if (events_[pick].is_slow && !runnable_.empty()) return;
  const std::function<void()> act = std::move(events_[pick].act);
  events_[pick] = std::move(events_.back());
  events_.pop_back();
  act();
}

void Machine::run() {
  const unsigned resident = std::min(n_blocks, static_cast<unsigned>(options.resident));
  const size_t n_fibers = size_t{resident} * n_threads;
  while (stacks.size() < n_fibers)
    stacks.push_back(std::make_unique_for_overwrite<char[]>(stack_bytes));
  blocks_.resize(resident);
  fibers_.resize(n_fibers);
  order_.resize(n_blocks);
  std::iota(order_.begin(), order_.end(), 0u);
  for (size_t i = n_blocks; i > 1; --i) std::swap(order_[i - 1], order_[next() % i]);
  for (unsigned slot = 0; slot < resident; ++slot) start_block(static_cast<int>(slot));
  while (!(runnable_.empty() && events_.empty()) && error.empty()) {
    if (!events_.empty() && (runnable_.empty() || next() % 32 == 0)) {
      run_event();
      continue;
    }
    current_ = choose();
    Fiber& running = fiber();
#if defined(__SANITIZE_ADDRESS__)
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, running.stack, stack_bytes);
#endif
    simt_switch(&scheduler_, running.stack_pointer);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
    if (!running.is_done) continue;
    Block& left = blocks_[static_cast<size_t>(running.block)];
    if (--left.n_alive > 0) continue;
    end_block(running.block);
    if (n_started_ < n_blocks) start_block(running.block);
  }
  for (const Fiber& stuck : fibers_) {
    if (!error.empty() || stuck.is_done) continue;
    error = "deadlock: thread " + std::to_string(stuck.thread) + " of block " +
            std::to_string(blocks_[static_cast<size_t>(stuck.block)].index) + " waits in " +
            stuck.waits_in;
  }
}

}  // namespace

Statistics launch(unsigned grid, unsigned threads, size_t shared_bytes,
                  const std::function<void()>& body, const Options& options) {
  Machine own(grid, threads, shared_bytes, body, options);
  Machine* const outer = std::exchange(machine, &own);
  own.run();
  machine = outer;
  if (!own.error.empty()) throw Error(own.error);
  return own.statistics;
}

unsigned thread_index() { return machine->fiber().thread; }
unsigned block_index() { return machine->block().index; }
unsigned n_threads() { return machine->n_threads; }
unsigned n_blocks() { return machine->n_blocks; }
const Options& options() { return machine->options; }
char* shared_memory() { return machine->block().shared_begin(); }
size_t shared_bytes() { return machine->shared_bytes; }

void fail(const char* format, ...) {
  char text[400];
  va_list list;
  va_start(list, format);
  std::vsnprintf(text, sizeof text, format, list);
  va_end(list);
  machine->error = text;
  machine->yield();  // to the scheduler, which ends the launch: nothing of this fiber's stack is needed any more
  std::abort();
}

void sync_block() {
  Machine& m = *machine;
  Barrier& barrier = m.block().barrier;
  if (++barrier.arrived < m.n_threads) return m.wait(barrier.waiting, "sync_block");
  barrier.arrived = 0;
  m.draw_levels(m.fiber().block);
  m.wake(barrier.waiting);
  maybe_yield();
}

void maybe_yield() {
  if (machine->next() % 8 == 0) machine->yield();
}

void collective(const char* name, const uint32_t* in, int n_in, uint32_t* out, int n_out,
                Compute compute) {
  Machine& m = *machine;
  Warp& warp = m.warp();
  const size_t lane = m.fiber().thread % warp_lanes;
  if (warp.arrived == 0) warp.name = name;
  if (warp.name != name)
    fail("thread %u came to %s while its warp is in %s", m.fiber().thread, name, warp.name);
  const size_t phase = warp.phase;
  std::copy_n(in, n_in, warp.in[phase][lane].begin());
  if (++warp.arrived < warp_lanes) {
    m.wait(warp.waiting, name);
  } else {
    compute(warp.in[phase], warp.out[phase]);
    warp.arrived = 0;
    warp.phase ^= 1u;
    m.wake(warp.waiting);
  }
  std::copy_n(warp.out[phase][lane].begin(), n_out, out);
}

void begin_copy(size_t to, const void* from, size_t bytes) {
  if (to >= shared_bytes() || to + bytes > shared_bytes())
    fail("a copy to byte %zu of %zu of shared memory", to, shared_bytes());
  char* const target = shared_memory() + to;
  std::memset(target, 0xff, bytes);
  if (block_state() != nullptr) block_state()->forget(to, bytes);
  machine->fiber().copies.back().push_back({target, static_cast<const char*>(from), bytes});
  maybe_yield();
}

namespace {

void land(const std::vector<Copy>& copies) {
  for (const Copy& copy : copies) {
    if (copy.from == nullptr) {
      std::memset(copy.to, 0, copy.bytes);
    } else {
      std::memcpy(copy.to, copy.from, copy.bytes);
    }
  }
}

}  // namespace

void end_copy_group() { machine->fiber().copies.emplace_back(); }

void wait_for_copies(size_t n_left) {
  std::deque<std::vector<Copy>>& groups = machine->fiber().copies;
  for (; groups.size() > n_left + 1; groups.pop_front()) land(groups.front());
  maybe_yield();
}

std::function<void()> take_copies() {
  std::deque<std::vector<Copy>> taken(1);
  std::swap(taken, machine->fiber().copies);
  return [taken] {
    for (const std::vector<Copy>& group : taken) land(group);
  };
}

std::unique_ptr<BlockState>& block_state() { return machine->block().state; }
void wait_in(Waiting& waiting, const char* where) { machine->wait(waiting, where); }
void wake(Waiting& waiting) { machine->wake(waiting); }
void do_later(std::function<void()> act) { machine->do_later(std::move(act)); }
uint64_t draw() { return machine->next(); }

void count_load(const void* address, size_t bytes) {
  Machine& m = *machine;
  if (!m.options.counts_loads) return;
  Warp& warp = m.warp();
  const size_t request = m.fiber().n_loads++;
  if (warp.requests.size() <= request) warp.requests.resize(request + 1);
  const uintptr_t first = reinterpret_cast<uintptr_t>(address);
  for (uintptr_t sector = first / 32; sector <= (first + bytes - 1) / 32; ++sector)
    warp.requests[request].push_back(sector);
  m.statistics.loaded_bytes += bytes;
}

void count_product() { ++machine->statistics.products; }
void count_box() { ++machine->statistics.boxes; }

}  // namespace simt
