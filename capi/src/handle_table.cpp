#include "capi/src/handle_table.hpp"

#include <sys/mman.h>
#include <sys/random.h>

#include <atomic>
#include <cerrno>

#include "capi/src/stats_board.hpp"
#include "core/caches/wrapper.hpp"

namespace kvc::capi::handles {
namespace {

static_assert(sizeof(void*) == 8, "handles need 64 bits");

// A handle, from the top: 16 bits of a fixed pattern, then 48 bits that are (generation 28, index 16, kind 4), scrambled.
constexpr uint64_t pattern = uint64_t{0x6b76} << 48;
constexpr uint64_t payload_mask = (uint64_t{1} << 48) - 1;
constexpr uint32_t n_slots = 1 << 16;
constexpr uint32_t last_generation = (1u << 28) -
                                     1;  // odd while the slot is in use, even while it is free
constexpr uint64_t multiplier = 0x9e3779b97f4b;  // odd, so that scrambling can be undone

constexpr uint64_t inverse(uint64_t odd) {
  uint64_t x = odd;  // right in the low 3 bits; each step doubles them (Newton)
  for (int i = 0; i < 5; ++i) x *= 2 - odd * x;
  return x;
}
static_assert(((multiplier * inverse(multiplier)) & payload_mask) == 1);

// Low half of a slot's word: who is inside.
constexpr uint64_t exclusive_bit = uint64_t{1} << 31;
constexpr uint64_t inside_mask = (uint64_t{1} << 32) - 1;

struct Slot {
  std::atomic<uint64_t> word;  // generation << 32 | exclusive << 31 | number of shared calls
  void* object;
  std::atomic<uint32_t> kind;  // a stale handle may be looked up while its slot begins a new life
  uint32_t next_free;          // index + 1 of the next free slot; 0: none
  bool is_pinned;              // only changed by who is alone inside
  std::atomic<uint16_t> n_children;
  std::atomic<uint16_t> children[WrapperCache::max_children];  // slots
};

struct Table {
  std::atomic<uint64_t> secret;  // 0: this process has not begun to use the table (a forked child, say)
  std::atomic<uint32_t> lock;
  uint32_t first_free;  // index + 1
  uint32_t n_begun;     // slots that were ever used
  uint32_t n_live;
  Slot slots[n_slots];
  StatsBoard boards[n_slots];  // of the caches among them
};

std::atomic<Table*> shared_table{nullptr};

/// Unmaps the table with the library, unless handles are still in use then.
struct TableOwner {
  ~TableOwner() {
    Table* table = shared_table.load();
    if (table == nullptr || table->n_live != 0) return;
    shared_table.store(nullptr);
    munmap(table, sizeof(Table));
  }
} table_owner;

class Lock {
 public:
  explicit Lock(Table& table) : table_(table) {
    while (table_.lock.exchange(1, std::memory_order_acquire) != 0) {
    }
  }
  ~Lock() { table_.lock.store(0, std::memory_order_release); }
  Lock(const Lock&) = delete;
  Lock& operator=(const Lock&) = delete;

 private:
  Table& table_;
};

/// Null: the message says what was refused.
Table* map_table() {
  Table* table = shared_table.load(std::memory_order_acquire);
  if (table != nullptr) return table;
  void* memory = mmap(nullptr, sizeof(Table), PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  if (memory == MAP_FAILED) {
    (void)fail(Status::out_of_memory, "the system refuses to map the table of handles: errno %d",
               errno);
    return nullptr;
  }
  if (madvise(memory, sizeof(Table), MADV_WIPEONFORK) != 0) {
    (void)fail(Status::out_of_memory,
               "the kernel refuses to wipe the table of handles in forked children "
               "(MADV_WIPEONFORK, Linux 4.14 or newer): errno %d",
               errno);
    munmap(memory, sizeof(Table));
    return nullptr;
  }
  auto* mapped = static_cast<Table*>(memory);  // zeros are a table without handles
  if (shared_table.compare_exchange_strong(table, mapped)) return mapped;
  munmap(memory, sizeof(Table));
  return table;
}

uint64_t new_secret() {
  uint64_t secret = 0;
  if (getrandom(&secret, sizeof secret, GRND_NONBLOCK) != static_cast<ssize_t>(sizeof secret)) {
    secret = reinterpret_cast<uintptr_t>(&secret) *
             multiplier;  // early boot: the stack's random place has to do
  }
  return (secret & payload_mask) | 1;
}

uint64_t encode(uint64_t secret, uint32_t generation, uint32_t index, uint32_t kind) {
  const uint64_t payload = uint64_t{generation} << 20 | uint64_t{index} << 4 | kind;
  return pattern | (((payload * multiplier) & payload_mask) ^ secret);
}

struct Key {
  Slot* slot;
  uint32_t generation;
};

StatsBoard& board_of(Table& table, const Slot& slot) { return table.boards[&slot - table.slots]; }

const char* name_of(Kind kind) {
  switch (kind) {
    case Kind::device: return "device";
    case Kind::cache: return "cache";
    case Kind::op: return "op";
  }
  return "handle";
}

/// What a handle stands for, in a sentence.
const char* noun_of(Kind kind) { return kind == Kind::op ? "operator" : name_of(kind); }

Status not_live(Kind kind) {
  return fail(Status::handle, "%s was closed or destroyed already, or is no handle of kvc",
              name_of(kind));
}

Status decode(const void* handle, Kind kind, Key* key) {
  if (handle == nullptr) {
    return fail(Status::handle,
                "%s is null: it was not created, or its variable no longer holds it", name_of(kind));
  }
  const uint64_t value = reinterpret_cast<uintptr_t>(handle);
  Table* table = shared_table.load(std::memory_order_acquire);
  const uint64_t secret = table == nullptr ? 0 : table->secret.load(std::memory_order_acquire);
  if ((value & ~payload_mask) != pattern || secret == 0)
    return fail(
        Status::handle,
        "%s is no handle of this process: it was not set, or it was made before a fork (a child "
        "opens and creates its own)",
        name_of(kind));
  const uint64_t payload = (((value & payload_mask) ^ secret) * inverse(multiplier)) & payload_mask;
  Slot& slot = table->slots[payload >> 4 & (n_slots - 1)];
  const auto generation = static_cast<uint32_t>(payload >> 20);
  const bool live = slot.word.load(std::memory_order_acquire) >> 32 == generation &&
                    (generation & 1u) != 0;
  if (!live) return not_live(kind);
  const uint32_t slot_kind = slot.kind.load(std::memory_order_relaxed);
  if (slot_kind != (payload & 15u)) return not_live(kind);
  if (slot_kind != static_cast<uint32_t>(kind)) {
    const auto is = static_cast<Kind>(slot_kind);
    return fail(Status::handle, "%s is the handle of %s %s", name_of(kind),
                is == Kind::op ? "an" : "a", noun_of(is));
  }
  *key = {&slot, generation};
  return Status::ok;
}

/// The slot of a handle that the caller has entered.
Slot& entered_slot(Table& table, const void* handle) {
  const uint64_t value = reinterpret_cast<uintptr_t>(handle);
  const uint64_t payload = (((value & payload_mask) ^ table.secret.load()) * inverse(multiplier)) &
                           payload_mask;
  return table.slots[payload >> 4 & (n_slots - 1)];
}

/// BUSY when a call of this kind may not be inside beside those that are.
Status check_access(uint64_t word, Kind kind, Access access) {
  const uint64_t inside = word & inside_mask;
  if (access == Access::exclusive ? inside == 0 : (inside & exclusive_bit) == 0) return Status::ok;
  return fail(Status::busy,
              "another call is inside this %s, and %s: let calls on one %s follow each other, or "
              "repeat this one",
              noun_of(kind),
              (inside & exclusive_bit) != 0 ? "that call excludes all others"
                                            : "this call, which is not const, needs it alone",
              noun_of(kind));
}

uint64_t entered(uint64_t word, Access access) {
  return access == Access::exclusive ? word | exclusive_bit : word + 1;
}

void leave(Slot& slot, Access access) {
  if (access == Access::exclusive)
    slot.word.fetch_and(~exclusive_bit, std::memory_order_release);
  else
    slot.word.fetch_sub(1, std::memory_order_release);
}

/// Its generation must be even. A slot whose generations are used up is retired.
void let_go(Table& table, Slot& slot) {
  slot.object = nullptr;
  if (slot.word.load() >> 32 >= last_generation) return;
  slot.next_free = table.first_free;
  table.first_free = static_cast<uint32_t>(&slot - table.slots) + 1;
}

}  // namespace

void* add(Kind kind, void* object, const CacheStats& stats, const Pin* children,
          int32_t n_children) noexcept {
  Table* table = map_table();
  if (table == nullptr) return nullptr;
  const Lock lock(*table);
  if (table->secret.load() == 0) table->secret.store(new_secret());
  uint32_t index = 0;
  if (table->first_free != 0) {
    index = table->first_free - 1;
    table->first_free = table->slots[index].next_free;
  } else if (table->n_begun < n_slots) {
    index = table->n_begun++;
  } else {
    (void)fail(Status::out_of_memory,
               "all %u handles are in use: destroy caches and operators or close devices that are "
               "no longer "
               "needed",
               n_slots);
    return nullptr;
  }
  Slot& slot = table->slots[index];
  const auto generation = static_cast<uint32_t>(slot.word.load() >> 32) + 1;
  slot.object = object;
  slot.kind.store(static_cast<uint32_t>(kind), std::memory_order_relaxed);
  if (kind == Kind::cache) board_of(*table, slot).begin(stats);
  slot.n_children.store(static_cast<uint16_t>(n_children), std::memory_order_release);
  for (int32_t i = 0; i < n_children; ++i)
    slot.children[i].store(static_cast<uint16_t>(children[i].slot), std::memory_order_release);
  slot.word.store(uint64_t{generation} << 32, std::memory_order_release);
  ++table->n_live;
  return reinterpret_cast<void*>(
      encode(table->secret.load(), generation, index, static_cast<uint32_t>(kind)));
}

Status enter(const void* handle, Kind kind, Access access, void** object) noexcept {
  Key key = {};
  if (Status s = decode(handle, kind, &key); s != Status::ok) return s;
  uint64_t word = key.slot->word.load(std::memory_order_relaxed);
  do {
    if (word >> 32 != key.generation) return not_live(kind);
    if (Status s = check_access(word, kind, access); s != Status::ok) return s;
  } while (!key.slot->word.compare_exchange_weak(word, entered(word, access),
                                                 std::memory_order_acquire));
  *object = key.slot->object;
  return Status::ok;
}

void leave(const void* handle, Access access) noexcept {
  leave(entered_slot(*shared_table.load(std::memory_order_acquire), handle), access);
}

void leave(const void* handle, const CacheStats& stats) noexcept {
  Table& table = *shared_table.load(std::memory_order_acquire);
  Slot& slot = entered_slot(table, handle);
  board_of(table, slot).post(stats);
  leave(slot, Access::exclusive);
}

void post_poison(const void* handle) noexcept {
  Table& table = *shared_table.load(std::memory_order_acquire);
  board_of(table, entered_slot(table, handle)).poison();
}

/// Whoever reads a post of the slot's next cache finds out: that cache was added, and its first post made, after the
/// generation had moved on, and posts are releases. While a wrapper lives, its children's slots are theirs.
Status read_stats(const void* handle, CacheStats* stats) noexcept {
  Key key = {};
  if (Status s = decode(handle, Kind::cache, &key); s != Status::ok) return s;
  Table& table = *shared_table.load(std::memory_order_acquire);
  *stats = board_of(table, *key.slot).read();
  const int32_t n_children = key.slot->n_children.load(std::memory_order_acquire);
  for (int32_t i = 0; i < n_children; ++i) {
    const CacheStats of_child = table.boards[key.slot->children[i].load(std::memory_order_acquire)].read();
    if (of_child.state == CacheState::poisoned) stats->state = CacheState::poisoned;
    stats->cells += of_child.cells;
    stats->cells_used += of_child.cells_used;
    stats->cells_shared += of_child.cells_shared;
    stats->bytes += of_child.bytes;
  }
  if (key.slot->word.load(std::memory_order_acquire) >> 32 == key.generation) return Status::ok;
  return not_live(Kind::cache);
}

void erase(const void* handle, void** object) noexcept {
  Table& table = *shared_table.load(std::memory_order_acquire);
  Slot& slot = entered_slot(table, handle);
  const Lock lock(table);
  *object = slot.is_pinned ? nullptr : slot.object;
  const uint64_t generation = (slot.word.load() >> 32) + 1;
  slot.word.store(generation << 32, std::memory_order_release);
  --table.n_live;
  if (!slot.is_pinned) let_go(table, slot);
}

Status remove(const void* handle, Kind kind, void** object) noexcept {
  if (Status s = enter(handle, kind, Access::exclusive, object); s != Status::ok) return s;
  erase(handle, object);
  return Status::ok;
}

// ---- Pins ---------------------------------------------------------------------------------------------------------------

namespace {

Slot& pinned_slot(const Pin& pin) {
  return shared_table.load(std::memory_order_acquire)->slots[pin.slot];
}

}  // namespace

Pin pin_of(void* handle) noexcept {
  Table& table = *shared_table.load(std::memory_order_acquire);
  return {static_cast<uint32_t>(&entered_slot(table, handle) - table.slots), handle};
}

void pin(const Pin& pin) noexcept { pinned_slot(pin).is_pinned = true; }

Status enter(const Pin& pin, Access access, void** object) noexcept {
  Slot& slot = pinned_slot(pin);
  uint64_t word = slot.word.load(std::memory_order_relaxed);
  do {
    if (Status s = check_access(word, Kind::cache, access); s != Status::ok) return s;
  } while (!slot.word.compare_exchange_weak(word, entered(word, access), std::memory_order_acquire));
  *object = slot.object;
  return Status::ok;
}

void leave(const Pin& pin, Access access) noexcept { leave(pinned_slot(pin), access); }

void leave(const Pin& pin, const CacheStats& stats) noexcept {
  Table& table = *shared_table.load(std::memory_order_acquire);
  table.boards[pin.slot].post(stats);
  leave(table.slots[pin.slot], Access::exclusive);
}

void post_poison(const Pin& pin) noexcept {
  shared_table.load(std::memory_order_acquire)->boards[pin.slot].poison();
}

void* unpin(const Pin& pin) noexcept {
  Table& table = *shared_table.load(std::memory_order_acquire);
  Slot& slot = table.slots[pin.slot];
  const Lock lock(table);
  slot.is_pinned = false;
  void* object = nullptr;
  if (!is_live(pin)) {
    object = slot.object;
    let_go(table, slot);
  }
  leave(slot, Access::exclusive);
  return object;
}

bool is_live(const Pin& pin) noexcept {
  return (pinned_slot(pin).word.load(std::memory_order_acquire) >> 32 & 1u) != 0;
}

}  // namespace kvc::capi::handles
