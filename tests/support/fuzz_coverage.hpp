#pragma once
#include "fuzz_counts.hpp"

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
class Coverage : public Counts {
 public:
  Coverage();
  void record(Op op, bool succeeded, const Circumstances& met);
};

}  // namespace fuzz
