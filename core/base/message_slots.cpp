#include "core/base/message_slots.hpp"

#include <pthread.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>

namespace kvc {
namespace {

constexpr uint32_t n_slots = 4096;

constinit MessageSlot slots[n_slots] = {};
constinit std::atomic<uint32_t> n_begun = 0;  // slots [0, n_begun) were used at some time
constinit std::atomic<uint32_t> cursor = 0;  // where the search for the slot of an ended thread goes on

/// Each thread's slot, as its number from 1. Unlike the kernel's number of a thread, which is given again, this is null in a new
/// thread. The key exists as long as the library is loaded; before and after that there are no messages.
class Key {
 public:
  Key() noexcept {
    exists_ = pthread_atfork(nullptr, nullptr, forget) == 0 && pthread_key_create(&key_, nullptr) == 0;
  }
  ~Key() {
    if (exists_.exchange(false)) pthread_key_delete(key_);
  }
  Key(const Key&) = delete;
  Key& operator=(const Key&) = delete;

  MessageSlot* get() const noexcept {
    if (!exists_.load(std::memory_order_acquire)) return nullptr;
    const auto number = reinterpret_cast<uintptr_t>(pthread_getspecific(key_));
    return number == 0 || number > n_slots ? nullptr : &slots[number - 1];
  }

  bool set(const MessageSlot& slot) noexcept {
    const auto number = static_cast<uintptr_t>(&slot - slots) + 1;
    return exists_.load(std::memory_order_acquire) &&
           pthread_setspecific(key_, reinterpret_cast<void*>(number)) == 0;
  }

 private:
  /// The only thread of a forked child has another number than in the parent, whose slots are free here.
  static void forget() noexcept;

  std::atomic<bool> exists_{false};
  pthread_key_t key_{};
};

/// Made before and ended after all objects of a program that is linked with the static library.
[[gnu::init_priority(101)]] Key key;

void Key::forget() noexcept {
  if (key.exists_) pthread_setspecific(key.key_, nullptr);
}

constexpr uint32_t thread_of(uint64_t owner) { return static_cast<uint32_t>(owner); }

bool has_ended(uint32_t thread) noexcept {
  return syscall(SYS_tgkill, getpid(), thread, 0) != 0 && errno == ESRCH;
}

/// Takes `slot` for `thread` if nobody who lives has it. A slot of `thread` itself is of one that ended and had its number.
bool claim(MessageSlot& slot, uint32_t thread) noexcept {
  uint64_t owner = slot.owner.load(std::memory_order_relaxed);
  const uint32_t last = thread_of(owner);
  if (last != 0 && last != thread && !has_ended(last)) return false;
  const uint64_t mine = ((owner >> 32) + 1) << 32 | thread;
  return slot.owner.compare_exchange_strong(owner, mine, std::memory_order_acq_rel);
}

/// Slots of threads that have ended come first, so that memory follows the number of threads that live. But only a few are
/// looked at while there are slots that nobody has used.
MessageSlot* claim_any(uint32_t thread) noexcept {
  constexpr uint32_t few = 8;
  while (true) {
    uint32_t begun = n_begun.load(std::memory_order_acquire);
    for (uint32_t i = begun == n_slots ? begun : std::min(begun, few); i > 0; --i) {
      MessageSlot& slot = slots[cursor.fetch_add(1, std::memory_order_relaxed) % begun];
      if (claim(slot, thread)) return &slot;
    }
    if (begun == n_slots) return nullptr;
    MessageSlot& unused = slots[begun];
    if (n_begun.compare_exchange_strong(begun, begun + 1) && claim(unused, thread)) return &unused;
  }
}

}  // namespace

MessageSlot* MessageSlot::take() noexcept {
  if (MessageSlot* mine = key.get(); mine != nullptr) return mine;
  MessageSlot* slot = claim_any(static_cast<uint32_t>(syscall(SYS_gettid)));
  if (slot == nullptr || key.set(*slot)) return slot;
  slot->owner.store(slot->owner.load() & ~uint64_t{UINT32_MAX}, std::memory_order_release);
  return nullptr;
}

MessageSlot* MessageSlot::find() noexcept { return key.get(); }

void MessageSlot::done() noexcept {
  owner.store(owner.load(std::memory_order_relaxed), std::memory_order_release);
}

}  // namespace kvc
