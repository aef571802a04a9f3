#include <iterator>

#include "encoder_world.hpp"
#include "kvc/recurrent.h"
#include "wrapper_world.hpp"

/// What only wrappers have, and what is compared after every operation.
namespace fuzz {

/// One operation of a child's layers, which its world compares. Nothing else may change.
void WrapperWorld::of_child() {
  Call made = call(Op::of_child, {}, "");
  KindWorld& child = some_child();
  log_.back() += std::to_string(child.oracle().cache.kind);
  try {
    child.step_of_layers();
  } catch (const Difference& difference) {
    throw Difference(std::string(difference.what()) + "\nin a child, whose " + child.history());
  }
  log_.back() += ' ' + child.last_logged();
  state_may_change_ = child.may_have_changed();
  ++counts_.operations;
  counts_.record(made.op, true, made.met);
  children_too_ = false;
  compare_all();
  children_too_ = true;
}

/// BAD_STATE before the arguments are looked at.
void WrapperWorld::refused() {
  KindWorld& child = some_child();
  const bool has_checkpoints = child.oracle().has_checkpoints();
  const int32_t which = random_.below(has_checkpoints ? 9 : 8), number = odd_number();
  Call made = query(Op::refused, {}, std::to_string(which));
  kvc_cache* const c = child.handle();
  const auto perform = [&]() -> kvc_status {
    switch (which) {
      case 0: return kvc_begin(c, number, nullptr, nullptr, nullptr, 0, nullptr);
      case 1: return kvc_commit(c);
      case 2: return kvc_commit_prefix(c, number, nullptr, nullptr);
      case 3: return kvc_abort(c);
      case 4: return kvc_remove(c, number, number, number);
      case 5: return kvc_copy_prefix(c, number, number, number, nullptr);
      case 6: return kvc_reorder(c, number, nullptr, nullptr);
      case 7: return kvc_resume(c, number, number, nullptr);
      default: return kvc_checkpoint_take(c, number);
    }
  };
  judge(made, perform(), KVC_E_BAD_STATE);
}

/// Through the wrapper, to its only encoder cache; rather with what a sequence carries that nothing has been put for.
void WrapperWorld::share() {
  model::EncoderOracle* const encoder = only_encoder();
  int32_t sequence = some_sequence();
  const int32_t source = some_sequence();
  if (encoder != nullptr && !encoder->pass.carries.empty() && random_.chance(0.9))
    sequence = std::next(encoder->pass.carries.begin(),
                         random_.below(static_cast<int32_t>(encoder->pass.carries.size())))
                   ->first;
  Call made = call(Op::share, {},
                   "sequence " + std::to_string(sequence) + " source " + std::to_string(source));
  // Sequences that other children lack are none of the wrapper's.
  const bool exist = oracle_->is_sequence(sequence) && oracle_->is_sequence(source);
  const kvc_status expected = encoder == nullptr             ? KVC_E_NOT_SUPPORTED
                              : oracle_->pass_open && !exist ? KVC_E_INVALID_ARGUMENT
                                                             : encoder->share(sequence, source);
  judge(made, kvc_encoder_share(handle(), sequence, source), expected);
}

/// What no child of the right kind, or more than one of it, could answer.
void WrapperWorld::lacking() {
  Call made = query(Op::lacking, {}, "");
  const int32_t number = odd_number();
  const bool one_encoder = only(KVC_ENCODER) != nullptr,
             one_recurrent = only(KVC_RECURRENT) != nullptr;
  switch (random_.below(4)) {
    case 0:
      if (!one_encoder)
        return judge(made, kvc_encoder_query(handle(), number, nullptr, nullptr), KVC_E_NOT_SUPPORTED);
      break;
    case 1:
      if (only_with_checkpoints() == nullptr)
        return judge(made, kvc_checkpoint_list(handle(), number, number, nullptr, nullptr),
                     KVC_E_NOT_SUPPORTED);
      break;
    case 2:
      if (!one_recurrent)
        return judge(made, kvc_state_layout(handle(), number, nullptr, nullptr, nullptr),
                     KVC_E_NOT_SUPPORTED);
      break;
    default: break;
  }
  judge(made, kvc_bind_shift(handle(), nullptr, nullptr), KVC_E_NOT_SUPPORTED);
}

// ---- Comparisons -------------------------------------------------------------------------------

/// Sums over the children.
void WrapperWorld::compare_cells(const kvc_stats& stats) const {
  uint64_t cells = 0, used = 0, shared = 0, bytes = 0;
  for (const Child& child : children_) {
    const kvc_stats of_child = support::stats(child->handle());
    cells += of_child.cells;
    used += of_child.cells_used;
    shared += of_child.cells_shared;
    bytes += of_child.bytes;
  }
  if (stats.cells != cells || stats.cells_used != used || stats.cells_shared != shared ||
      stats.bytes != bytes)
    differ("stats are not the sums of the children's");
}

/// The digest is one of the children's, in their order.
StateHashes WrapperWorld::state_hashes() {
  StateHashes result;
  for (const Child& child : children_)
    for (const uint64_t word : child->last_digest()) {
      fold(result.fine, word);
      fold(result.coarse, word);
    }
  return result;
}

void WrapperWorld::compare_kind() {
  for (size_t c = 0; children_too_ && c < children_.size(); ++c) {
    try {
      children_[c]->compare_after(state_may_change_);
    } catch (const Difference& difference) {
      throw Difference("child " + std::to_string(c) + ": " + difference.what());
    }
  }
  compare_answers();
}

/// What the wrapper passes on to its only child of a kind.
void WrapperWorld::compare_answers() {
  const KindWorld* const encoder = only(KVC_ENCODER);
  const KindWorld* const with_checkpoints = only_with_checkpoints();
  const int32_t s = random_.below(n_sequences());
  if (encoder != nullptr) {
    int32_t through[2] = {-7, -7}, direct[2] = {-7, -7};
    if (kvc_encoder_query(handle(), s, &through[0], &through[1]) != KVC_OK ||
        kvc_encoder_query(encoder->handle(), s, &direct[0], &direct[1]) != KVC_OK)
      differ("encoder_query: " + support::last_message());
    if (through[0] != direct[0] || through[1] != direct[1])
      differ("encoder_query through the wrapper returns something else");
  }
  if (with_checkpoints == nullptr) return;
  int32_t at[2] = {-7, -7}, direct_at[2] = {-7, -7}, n = -7, direct_n = -7;
  if (kvc_checkpoint_list(handle(), s, 2, at, &n) != KVC_OK ||
      kvc_checkpoint_list(with_checkpoints->handle(), s, 2, direct_at, &direct_n) != KVC_OK)
    differ("checkpoint_list: " + support::last_message());
  if (n != direct_n || at[0] != direct_at[0] || at[1] != direct_at[1])
    differ("checkpoint_list through the wrapper returns something else");
}

void WrapperWorld::compare_rebuilt() {
  for (const Child& child : children_) child->compare_rebuilt();
  ++counts_.rebuilt;
}

}  // namespace fuzz
