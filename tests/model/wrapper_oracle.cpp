#include "wrapper_oracle.hpp"

#include <algorithm>
#include <iterator>
#include <utility>

#include "oracle.hpp"

namespace model {
namespace {

/// What all children keep to: the sequences that each of them has, the shortest batch, no gaps if one of them takes none.
kvc_cache_desc in_common(const std::vector<Kind*>& children) {
  kvc_cache_desc desc = children[0]->cache;
  for (const Kind* child : children) {
    desc.max_sequences = std::min(desc.max_sequences, child->cache.max_sequences);
    desc.max_batch = std::min(desc.max_batch, child->cache.max_batch);
    desc.flags |= child->cache.flags & KVC_CACHE_STRICT;
  }
  return desc;
}

/// The order in which errors are looked for, from an illegal argument on.
constexpr kvc_status order[] = {KVC_E_INVALID_ARGUMENT, KVC_E_BAD_STATE,  KVC_E_WINDOW_LOST,
                                KVC_E_NOT_SUPPORTED,    KVC_E_CACHE_FULL, KVC_OK};

auto place(kvc_status status) { return std::find(std::begin(order), std::end(order), status); }

/// The flags that a child knows.
std::vector<uint32_t> only(uint32_t known, int32_t n, const uint32_t* token_flags) {
  std::vector<uint32_t> result;
  for (int32_t i = 0; token_flags && i < n; ++i) result.push_back(token_flags[i] & known);
  return result;
}

}  // namespace

WrapperOracle::WrapperOracle(std::vector<Kind*> children)
    : Kind(in_common(children)), children_(std::move(children)) {}

/// The status of the call: of all that children return the one that is looked for first.
kvc_status WrapperOracle::first_of(const Ask& ask) const {
  kvc_status result = KVC_OK;
  for (const Kind* child : children_) {
    const kvc_status status = ask(*child);
    if (place(status) < place(result)) result = status;
  }
  return result;
}

// ---- Asking ------------------------------------------------------------------------------------

uint32_t WrapperOracle::known_flags() const {
  uint32_t known = 0;
  for (const Kind* child : children_) known |= child->known_flags();
  return known;
}

bool WrapperOracle::legal_tokens(int32_t n, const int32_t* sequence,
                                 const uint32_t* token_flags) const {
  return std::all_of(children_.begin(), children_.end(), [&](const Kind* child) {
    const std::vector<uint32_t> flags = only(child->known_flags(), n, token_flags);
    return child->legal_tokens(n, sequence, flags.empty() ? nullptr : flags.data());
  });
}

kvc_status WrapperOracle::room(int32_t n, const int32_t* sequence, const uint32_t* token_flags) const {
  return first_of([&](const Kind& child) {
    const std::vector<uint32_t> flags = only(child.known_flags(), n, token_flags);
    return child.room(n, sequence, flags.empty() ? nullptr : flags.data());
  });
}

kvc_status WrapperOracle::may_keep(const std::vector<char>& kept) const {
  return first_of([&](const Kind& child) { return child.may_keep(kept); });
}

bool WrapperOracle::can_continue(int32_t s, int32_t g) const {
  return std::all_of(children_.begin(), children_.end(),
                     [&](const Kind* child) { return child->can_continue(s, g); });
}

/// The least answer may be no place for another child: all are asked again until nobody returns less.
int32_t WrapperOracle::best(int32_t s, int32_t want) const {
  int32_t g = std::min(want, next(s));
  while (!can_continue(s, g))
    for (const Kind* child : children_) g = child->best(s, g);
  return g;
}

kvc_status WrapperOracle::may_remove_middle(int32_t s, int32_t b, int32_t e) const {
  return first_of([&](const Kind& child) { return child.may_remove_middle(s, b, e); });
}

/// Functions are called when all else has been asked, one child after the other.
kvc_status WrapperOracle::shift_refusal(int32_t s, int32_t e) const {
  for (const Kind* child : children_)
    if (const kvc_status status = child->shift_refusal(s, e); status != KVC_OK) return status;
  return KVC_OK;
}

bool WrapperOracle::has_checkpoints() const {
  return std::any_of(children_.begin(), children_.end(),
                     [](const Kind* child) { return child->has_checkpoints(); });
}

bool WrapperOracle::checkpoints_are_off() const {
  return std::any_of(children_.begin(), children_.end(),
                     [](const Kind* child) { return child->checkpoints_are_off(); });
}

bool WrapperOracle::fully_put() const {
  return std::all_of(children_.begin(), children_.end(),
                     [](const Kind* child) { return child->fully_put(); });
}

/// K and V are counted by causal children alone.
Info WrapperOracle::info(int32_t s) const {
  Info result{next(s), next(s), 0, children_[0]->info(s).room, 0, 0};
  bool any = false;
  for (const Kind* child : children_) {
    const Info of_child = child->info(s);
    result.room = std::min(result.room, of_child.room);
    result.flags |= of_child.flags;
    if (dynamic_cast<const Oracle*>(child) == nullptr) continue;
    result.first = any ? std::max(result.first, of_child.first) : of_child.first;
    result.count = any ? std::min(result.count, of_child.count) : of_child.count;
    result.lost_below = std::max(result.lost_below, of_child.lost_below);
    any = true;
  }
  return result;
}

// ---- Doing -------------------------------------------------------------------------------------

void WrapperOracle::open(int32_t n, const int32_t* position, const int32_t* sequence,
                         const uint32_t* token_flags, bool reserve) {
  for (Kind* child : children_) {
    const std::vector<uint32_t> flags = only(child->known_flags(), n, token_flags);
    child->open(n, position, sequence, flags.empty() ? nullptr : flags.data(), reserve);
    child->pass_open = true;
  }
}

void WrapperOracle::keep(const std::vector<char>& kept) {
  for (Kind* child : children_) child->keep(kept);
}

void WrapperOracle::close() {
  if (pass_open && !batch().reserve) ++passes;
  for (Kind* child : children_) child->close();
  pass_open = false;
}

void WrapperOracle::undo() {
  for (Kind* child : children_) child->undo();
  pass_open = false;
}

void WrapperOracle::cut(int32_t s, int32_t g) {
  for (Kind* child : children_) child->cut(s, g);
}

void WrapperOracle::copy(int32_t src, int32_t dst, int32_t g) {
  for (Kind* child : children_) child->copy(src, dst, g);
}

void WrapperOracle::copy_all(int32_t n, const int32_t* dst, const int32_t* src) {
  for (Kind* child : children_) child->copy_all(n, dst, src);
}

void WrapperOracle::remove_middle(int32_t s, int32_t b, int32_t e) {
  for (Kind* child : children_) child->remove_middle(s, b, e);
}

void WrapperOracle::take_checkpoint(int32_t s) {
  for (Kind* child : children_) child->take_checkpoint(s);
}

kvc_status WrapperOracle::set_causal(int32_t n, const int32_t* except) {
  kvc_status result = KVC_E_NOT_SUPPORTED;  // until there is one that has the call
  for (Kind* child : children_)
    if (dynamic_cast<Oracle*>(child) != nullptr) result = child->set_causal(n, except);
  return result;
}

}  // namespace model
