#include "tests/simt/sm90.hpp"

#include <algorithm>
#include <cstring>
#include <deque>
#include <limits>
#include <map>
#include <string>
#include <utility>
#include <vector>

namespace simt::sm90 {
namespace {

struct SharedBarrier {
  unsigned count = 0;
  unsigned pending = 0;  // arrivals that the phase still waits for
  unsigned phase = 0;
  int64_t bytes = 0;          // that it waits for, too
  bool is_published = false;  // to units that copy
  Waiting waiting;

  void arrive() {
    if (pending == 0) fail("more than %u arrivals in a phase", count);
    --pending;
    end_phase();
  }
  void land(size_t landed) {
    bytes -= static_cast<int64_t>(landed);
    end_phase();
  }

 private:
  void end_phase() {
    if (pending > 0 || bytes != 0) return;
    pending = count;
    ++phase;
    wake(waiting);
  }
};

struct NamedBarrier {
  unsigned expected = 0;
  unsigned arrived = 0;
  Waiting waiting;
};

/// Sums of products that are under way: what they will be.
struct Sums {
  GroupSums to;
  std::vector<float> values;  // [threads][n_sums]
  int n_products = 0;         // that have not been waited for
};

struct Pending {
  Product product;
  bool has_run = false;
};

struct Group {
  const char* name = nullptr;
  unsigned arrived = 0;
  Brought brought{};
  Waiting waiting;
  unsigned registers = 0;
  bool is_fenced = false;
  std::deque<std::vector<Pending>> products = {{}};  // by group; the last is open
  std::map<const float*, Sums> sums;                 // by those of the first thread
};

constexpr unsigned registers_of_block = 65536;

struct State final : BlockState {
  State() : groups(n_threads() / group_threads), seen(shared_bytes(), static_cast<char>(0xff)) {
    const unsigned each = registers_of_block / n_threads() / 8 * 8;
    for (Group& group : groups) group.registers = each < 256 ? each : 255;
  }
  void forget(size_t at, size_t bytes) override { std::memset(seen.data() + at, 0xff, bytes); }
  std::string unfinished() const override {
    for (const Group& group : groups)
      if (!group.sums.empty()) return "products that nobody has waited for";
    return "";
  }

  std::map<size_t, SharedBarrier> barriers;
  std::map<unsigned, NamedBarrier> named;
  std::vector<Group> groups;
  std::vector<char> seen;       // by units that multiply
  unsigned free_registers = 0;  // that groups have left
  Waiting for_registers;
};

State& state() {
  std::unique_ptr<BlockState>& made = block_state();
  if (made == nullptr) made = std::make_unique<State>();
  return static_cast<State&>(*made);
}

Group& own_group() {
  const unsigned index = thread_index() / group_threads;
  if (index >= state().groups.size())
    fail("thread %u is in no whole group of warps", thread_index());
  return state().groups[index];
}

SharedBarrier& barrier_at(size_t at) {
  const auto found = state().barriers.find(at);
  if (found == state().barriers.end()) fail("there is no barrier at byte %zu of shared memory", at);
  return found->second;
}

}  // namespace

void meet(const char* name, const void* own, void (*act)(const void* context, const Brought&),
          const void* context) {
  Group& group = own_group();
  if (group.arrived == 0) group.name = name;
  if (group.name != name)
    fail("thread %u came to %s while its group is in %s", thread_index(), name, group.name);
  group.brought[thread_index() % group_threads] = own;
  if (++group.arrived < group_threads) return wait_in(group.waiting, name);
  group.arrived = 0;
  act(context, group.brought);
  wake(group.waiting);
  maybe_yield();
}

void sync_threads(unsigned barrier, unsigned n) {
  if (barrier == 0 || barrier > 15 || n == 0 || n % warp_lanes != 0)
    fail("barrier %u of %u threads", barrier, n);
  NamedBarrier& own = state().named[barrier];
  if (own.arrived == 0) own.expected = n;
  if (own.expected != n) fail("barrier %u of %u and of %u threads", barrier, own.expected, n);
  if (++own.arrived < n) return wait_in(own.waiting, "bar.sync");
  own.arrived = 0;
  wake(own.waiting);
  maybe_yield();
}

void init_barrier(size_t at, unsigned count) {
  if (at % 8 != 0 || at + 8 > shared_bytes() || count == 0)
    fail("a barrier of %u at byte %zu of shared memory", count, at);
  if (!state().barriers.try_emplace(at, SharedBarrier{count, count, 0, 0, false, {}}).second)
    fail("a second barrier at byte %zu of shared memory", at);
}

void arrive(size_t at) {
  maybe_yield();
  barrier_at(at).arrive();
  maybe_yield();
}

void arrive_when_copied(size_t at) {
  SharedBarrier& barrier = barrier_at(at);
  do_later([land = take_copies(), &barrier] {
    land();
    barrier.arrive();
  });
}

void arrive_and_expect(size_t at, size_t bytes) {
  maybe_yield();
  barrier_at(at).bytes += static_cast<int64_t>(bytes);
  barrier_at(at).arrive();
  maybe_yield();
}

namespace {

constexpr size_t line_bytes = 128, lines_at_once = 8;

/// Both threads and units that multiply see it from now on.
void land_lines(char* to, char* seen, const Box& box, size_t first, size_t n) {
  for (size_t i = first * line_bytes; i < (first + n) * line_bytes; ++i) {
    const size_t line = i / line_bytes, of_line = i % line_bytes;
    const char byte = of_line < box.row_bytes ? box.from[line * box.row_stride + of_line] : '\0';
    const size_t exchanged = i ^ (line % 8 * 16);
    to[exchanged] = seen[exchanged] = byte;
  }
}

}  // namespace

void copy_box(size_t to, const Box& box, size_t at) {
  SharedBarrier& barrier = barrier_at(at);
  const size_t bytes = box.n_rows * line_bytes;
  if (to % (lines_at_once * line_bytes) != 0 || to + bytes > shared_bytes())
    fail("a box of %zu rows at byte %zu of shared memory", box.n_rows, to);
  if (!barrier.is_published) fail("a box for a barrier that was not published");
  char *const target = shared_memory() + to, *const seen = state().seen.data() + to;
  if (std::memcmp(target, seen, bytes) != 0)
    fail("a box over what was written at byte %zu and not published", to);
  std::memset(target, 0xff, bytes);
  std::memset(seen, 0xff, bytes);
  for (size_t line = 0; line < box.n_rows; line += lines_at_once) {
    const size_t n = std::min(lines_at_once, box.n_rows - line);
    do_later([=, &barrier] {
      land_lines(target, seen, box, line, n);
      barrier.land(n * line_bytes);
    });
  }
  count_box();
  maybe_yield();
}

void wait_for_phase(size_t at, unsigned parity) {
  SharedBarrier& barrier = barrier_at(at);
  while (barrier.phase % 2 == parity) wait_in(barrier.waiting, "mbarrier.try_wait");
  maybe_yield();
}

void publish_shared() {
  std::memcpy(state().seen.data(), shared_memory(), shared_bytes());
  for (auto& [at, barrier] : state().barriers) barrier.is_published = true;
  maybe_yield();
}
const char* published() { return state().seen.data(); }

void change_registers(unsigned n, bool to_more) {
  State& all = state();
  Group& group = own_group();
  meet(to_more ? "setmaxnreg.inc" : "setmaxnreg.dec", nullptr, [&](const Brought&) {
    if (n % 8 != 0 || n < 24 || n > 256 || to_more != (n > group.registers))
      fail("%u registers after %u", n, group.registers);
    if (to_more) return;
    all.free_registers += (group.registers - n) * group_threads;
    group.registers = n;
    wake(all.for_registers);
  });
  while (group.registers != n) {
    const unsigned wanted = (n - group.registers) * group_threads;
    if (all.free_registers < wanted) {
      wait_in(all.for_registers, "setmaxnreg.inc");
      continue;
    }
    all.free_registers -= wanted;
    group.registers = n;
  }
}

// ---- Products -----------------------------------------------------------------------------------------------------------------

namespace {

void run(Group& group, Pending& pending) {
  if (std::exchange(pending.has_run, true)) return;
  Sums& sums = group.sums.at(pending.product.of[0].sums);
  GroupSums values;
  for (size_t t = 0; t < group_threads; ++t)
    values[t] = sums.values.data() + t * pending.product.n_sums;
  pending.product.add(pending.product.of, values);
}

/// The last product of some sums brings them to where they belong.
void retire(Group& group, Pending& pending) {
  run(group, pending);
  const auto found = group.sums.find(pending.product.of[0].sums);
  Sums& sums = found->second;
  if (--sums.n_products > 0) return;
  const size_t n = pending.product.n_sums;
  for (size_t t = 0; t < group_threads; ++t)
    std::memcpy(sums.to[t], sums.values.data() + t * n, n * sizeof(float));
  group.sums.erase(found);
}

}  // namespace

void begin_product(const Product& product) {
  Group& group = own_group();
  if (!group.is_fenced) fail("a product without a fence before");
  const size_t n = product.n_sums;
  const auto [at, is_new] = group.sums.try_emplace(product.of[0].sums);
  Sums& sums = at->second;
  if (is_new) {
    sums.values.resize(group_threads * n);
    for (size_t t = 0; t < group_threads; ++t) {
      sums.to[t] = product.of[t].sums;
      std::memcpy(sums.values.data() + t * n, sums.to[t], n * sizeof(float));
      std::fill_n(sums.to[t], n, std::numeric_limits<float>::quiet_NaN());
    }
  }
  if (sums.values.size() != group_threads * n) fail("products of other sizes add to the same sums");
  ++sums.n_products;
  group.products.back().push_back({product});
  if (draw() % 2 == 0) return;
  for (std::vector<Pending>& some : group.products)
    for (Pending& pending : some) run(group, pending);
}

void fence_products() {
  Group& group = own_group();
  meet("wgmma.fence", nullptr, [&](const Brought&) { group.is_fenced = true; });
}

void end_product_group() {
  Group& group = own_group();
  meet("wgmma.commit_group", nullptr, [&](const Brought&) { group.products.emplace_back(); });
}

void wait_for_products(size_t n_left) {
  Group& group = own_group();
  meet("wgmma.wait_group", nullptr, [&](const Brought&) {
    for (; group.products.size() > n_left + 1; group.products.pop_front())
      for (Pending& pending : group.products.front()) retire(group, pending);
    group.is_fenced = false;
  });
}

}  // namespace simt::sm90
