#pragma once

/// Bugs on purpose, so that the tests prove that they would find such a bug (docs/TESTING.md describes each). Only a test
/// build knows them: in the library `planted()` is false at compile time and leaves nothing behind.
namespace kvc {

enum class Bug {
  short_window,
  missed_slide,
  stale_layer,
  lost_below_after_abort,
  abort_loses_slid,
  uncounted_owner,
  shift_lost_on_shared,
  copy_without_lost_below,
  one_token_too_many,
  slid_freed_at_begin,
  reorder_one_by_one,
  keep_first_slides,
  failed_begin_commits,
  except_set_adds,
  late_chunk,
  second_put_ignored,
  shared_cell_rewritten,
  removal_keeps_lost_below,
  last_layer_not_cleared,
  removal_next_short,
  mask_ignored_with_bias,
  refused_shift_applied,
  type_stays_causal,
  type_begins_twice,
  type_cut_in_two,
  input_seen_early,
  dropped_input_kept,
  replaced_input_forgotten,
  shared_input_not_counted,
  unput_input_stale,
  replaced_counted_twice,
  abort_forgets_held_input,
  removal_keeps_first_input,
  digest_without_last_layer,
  reserve_pass_counted,
  refused_put_keeps_length,
  share_takes_replaced_input,
};

#ifdef KVC_PLANTED_BUGS
bool planted(Bug bug) noexcept;  // whether the environment's KVC_PLANTED_BUG names it
#else
constexpr bool planted(Bug) noexcept { return false; }
#endif

}  // namespace kvc
