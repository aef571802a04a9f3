#pragma once
#include <array>
#include <cstdint>
#include <iosfwd>
#include <stdexcept>
#include <vector>

namespace fuzz {

/// The library and the oracle differ.
struct Difference : std::runtime_error {
  using std::runtime_error::runtime_error;
};

/// The operations of all kinds of caches.
enum class Op {
  begin,
  begin_reserve,
  fits,
  rows_set,
  insert,
  rows_view,
  rows_fill,
  put,
  encoder_put,
  put_attention,
  share,
  attention,
  attention_extra,  // extras
  get,
  get_codes,
  get_copy,
  put_codes,
  mask,
  history,
  gather,
  state_layout,
  state_get,
  state_put,
  state_conv,
  state_in_place,  // view, slots, done
  state_gather,
  lightning_read,
  lightning_write,
  checkpoint_take,
  checkpoint_list,
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
  bind_attention,
  bind_rope,
  bind_scales,
  bind_shift,
  lacking,   // calls that the kind does not have: they succeed in returning NOT_SUPPORTED
  of_child,  // what layers do with a child of a wrapper
  refused,  // calls that a wrapped child leaves to its wrapper: they succeed in returning BAD_STATE
  runs,
  sequence_query,
  stats,
  digest,
  check,
  count
};

const char* name(Op op);

/// What an operation met when it was called, in the order of the table's columns behind the first.
using Met = std::vector<char>;

/// What a run of random operations counts: a table of operations and what each met, and the fingerprint of all that the
/// library returned.
class Counts {
 public:
  /// The rows and, behind `succeeded`, the columns of the table.
  Counts(const std::vector<Op>& rows, const std::vector<const char*>& met);

  void record(Op op, bool succeeded, const Met& met);
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
  const std::vector<Op> rows_;
  std::vector<const char*> headings_;
  std::array<size_t, static_cast<size_t>(Op::count)> row_of_{};
  std::vector<uint64_t> table_;  // [rows][headings]
  uint64_t fingerprint_ = 0xcbf29ce484222325u;
};

}  // namespace fuzz
