#include "core/base/planted.hpp"

#ifdef KVC_PLANTED_BUGS
#include <cstdlib>
#include <cstring>
#include <iterator>

namespace kvc {
namespace {

// In the order of Bug.
constexpr const char* names[] = {
    "short_window",
    "missed_slide",
    "stale_layer",
    "lost_below_after_abort",
    "abort_loses_slid",
    "uncounted_owner",
    "shift_lost_on_shared",
    "copy_without_lost_below",
    "one_token_too_many",
    "slid_freed_at_begin",
    "reorder_one_by_one",
    "keep_first_slides",
    "failed_begin_commits",
    "except_set_adds",
    "late_chunk",
    "second_put_ignored",
    "shared_cell_rewritten",
    "removal_keeps_lost_below",
    "last_layer_not_cleared",
    "removal_next_short",
    "mask_ignored_with_bias",
    "refused_shift_applied",
    "type_stays_causal",
    "type_begins_twice",
    "type_cut_in_two",
    "input_seen_early",
    "dropped_input_kept",
    "replaced_input_forgotten",
    "shared_input_not_counted",
    "unput_input_stale",
    "replaced_counted_twice",
    "abort_forgets_held_input",
    "removal_keeps_first_input",
    "digest_without_last_layer",
    "reserve_pass_counted",
    "refused_put_keeps_length",
    "share_takes_replaced_input",
    "last_row_kept",
    "early_checkpoint",
    "long_interval",
    "lost_checkpoint_found",
    "coming_checkpoint_unlisted",
    "shared_checkpoint_not_counted",
    "resume_keeps_later_checkpoints",
    "resume_at_next_forgets",
    "copy_takes_later_checkpoints",
    "copy_becomes_exact",
    "checkpoint_at_end_stays",
    "checkpoint_at_begin_goes",
    "convolution_starts_anew",
    "convolution_not_rolled_back",
    "state_written_where_read",
    "state_gathered_before_pass",
    "unput_state_stale",
    "digest_without_checkpoints",
    "least_continuation",
    "first_refusal_counts",
    "last_child_may_be_unput",
    "first_child_commits_early",
    "count_of_last_child",
    "reserve_pass_of_wrapper_counted",
    "shift_functions_asked_first",
    "copies_of_first_child_kept",
    "except_set_of_first_child",
    "checkpoint_of_last_child",
    "digest_without_last_child",
    "reorder_of_first_child",
    "flags_of_others_refused",
    "wrapped_child_obeys",
    "sharer_owes_put",
    "one_freed_state_kept",
    "ring_slides_at_begin",
    "padding_rows_seen",
    "emptied_row_keeps_starts",
    "copied_row_without_starts",
    "padding_token_stored",
    "room_for_padding_asked",
    "types_of_last_pass",
    "type_ends_at_window",
    "except_row_past_window",
    "kept_type_unasked",
    "mask_of_first_row",
    "rows_reordered_in_turn",
    "late_ring_loses_nothing",
    "inserted_without_scales",
    "columns_filled_unheld",
    "digest_without_starts",
    "scales_left_behind",
    "scales_not_cleared",
    "unput_scales_stale",
    "codes_put_without_scales",
    "digest_without_scales",
    "copied_keys_not_turned",
    "unseen_keys_copied",
    "one_key_for_two_positions",
    "quantised_keys_split",
    "block_of_default_size",
    "v_from_first_dims",
    "scales_bound_too_late",
    "scales_of_first_layer",
    "scale_of_first_head",
    "query_not_rotated",
    "output_not_rotated_back",
    "query_rotated_before_turn",
};
static_assert(std::size(names) == static_cast<size_t>(Bug::query_rotated_before_turn) + 1);

}  // namespace

bool planted(Bug bug) noexcept {
  static const char* chosen = std::getenv(
      "KVC_PLANTED_BUG");  // NOLINT(concurrency-mt-unsafe): test builds only
  return chosen != nullptr && std::strcmp(chosen, names[static_cast<size_t>(bug)]) == 0;
}

}  // namespace kvc
#endif
