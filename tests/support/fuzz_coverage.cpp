#include "fuzz_coverage.hpp"

namespace fuzz {
namespace {

/// The operations of every kind, with some that only this one has.
std::vector<Op> operations(std::vector<Op> more) {
  more.insert(more.begin(), {Op::begin, Op::begin_reserve, Op::fits, Op::commit, Op::commit_prefix,
                             Op::abort, Op::can_resume, Op::resume, Op::copy_prefix, Op::reorder,
                             Op::remove_tail, Op::remove_middle, Op::can_remove, Op::sequence_query,
                             Op::stats, Op::digest, Op::check});
  return more;
}

}  // namespace

Counts causal_counts() {
  return Counts(operations({Op::put, Op::attention, Op::attention_extra, Op::put_attention, Op::get,
                            Op::get_codes, Op::get_copy, Op::put_codes, Op::mask, Op::history,
                            Op::gather, Op::set_causal, Op::runs, Op::bind_attention, Op::bind_rope,
                            Op::bind_scales, Op::bind_shift}),
                {"shared", "slid", "full", "pass open"});
}

Counts encoder_counts() {
  return Counts(
      operations({Op::put, Op::encoder_put, Op::put_attention, Op::share, Op::attention, Op::get,
                  Op::get_codes, Op::get_copy, Op::put_codes, Op::bind_scales, Op::mask,
                  Op::history, Op::gather, Op::runs, Op::bind_attention, Op::lacking}),
      {"shared", "full", "pass open"});
}

Counts recurrent_counts() {
  return Counts(
      operations({Op::state_layout, Op::state_get, Op::state_put, Op::state_conv, Op::state_in_place,
                  Op::state_gather, Op::checkpoint_take, Op::checkpoint_list, Op::lacking}),
      {"shared", "checkpoints", "approximate", "drafts", "pass open"});
}

Counts lightning_counts() {
  return Counts(
      operations({Op::put, Op::put_attention, Op::attention, Op::lightning_read, Op::lightning_write,
                  Op::rows_set, Op::checkpoint_take, Op::checkpoint_list, Op::lacking}),
      {"shared", "checkpoints", "approximate", "drafts", "pass open"});
}

Counts rows_counts() {
  return Counts(operations({Op::rows_set, Op::insert, Op::rows_view, Op::rows_fill, Op::put,
                            Op::put_attention, Op::attention, Op::get, Op::get_codes, Op::get_copy,
                            Op::put_codes, Op::bind_scales, Op::mask, Op::history, Op::gather,
                            Op::set_causal, Op::runs, Op::bind_attention, Op::lacking}),
                {"padding", "slid", "full", "pass open"});
}

Counts wrapper_counts() {
  return Counts(operations({Op::of_child, Op::refused, Op::share, Op::set_causal,
                            Op::checkpoint_take, Op::lacking}),
                {"differ", "partly put", "pass open"});
}

}  // namespace fuzz
