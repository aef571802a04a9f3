#pragma once
#include <array>
#include <cstdint>
#include <iosfwd>

namespace fuzz {

enum class Op {
  begin,
  begin_reserve,
  fits,
  put,
  attention,
  attention_extra,  // extras
  put_attention,
  get,
  mask,
  history,
  gather,
  set_causal,
  commit,
  commit_prefix,
  abort,
  can_resume,
  resume,
  copy_prefix,
  reorder,
  remove_tail,
  remove_middle,
  can_remove,
  runs,
  sequence_query,
  stats,
  digest,
  check,
  bind_attention,
  bind_rope,
  bind_shift,
  count
};

const char* name(Op op);

/// What an operation met when it was called: in the sequences that it names, or, when it names
/// none, in any.
struct Circumstances {
  bool shared = false;  // a cell that another sequence holds too
  bool slid = false;    // tokens that have slid out of the window
  bool full = false;    // no free cell, or the call answered CACHE_FULL
  bool open = false;    // a pass
};

/// How often each operation succeeded, and what it met.
class Coverage {
 public:
  void record(Op op, bool succeeded, const Circumstances& met);
  void print(std::ostream& out) const;
  /// The smallest number of the table.
  uint64_t least() const;
  uint64_t operations = 0;     // performed
  uint64_t rows_compared = 0;  // attention rows that were compared with double
  uint64_t rows_wild = 0;      // left out: they see a key or value too large to compare
  uint64_t rebuilt = 0;        // states built a second time in other cells: equal digests
  uint64_t poisonings = 0;     // free cells filled with NaN

  /// Adds what the library returned to the run's fingerprint: the same seed has the same one as long as nothing that a
  /// caller can observe changes, cells and the bits of attention included.
  void trace(uint64_t value) { fingerprint_ = (fingerprint_ ^ value) * 0x100000001b3u; }
  uint64_t fingerprint() const { return fingerprint_; }

 private:
  static constexpr size_t columns = 5;
  std::array<std::array<uint64_t, columns>, static_cast<size_t>(Op::count)> table_{};
  uint64_t fingerprint_ = 0xcbf29ce484222325u;
};

}  // namespace fuzz
