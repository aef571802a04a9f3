#include "wrapper_world.hpp"

#include <algorithm>
#include <sstream>

#include "encoder_world.hpp"
#include "fuzz_coverage.hpp"
#include "fuzz_world.hpp"
#include "kvc/wrapper.h"
#include "lightning_world.hpp"
#include "recurrent_world.hpp"

/// Which children there are, which operation comes next, and what it meets.
namespace fuzz {

ChildCounts::ChildCounts()
    : causal(causal_counts()),
      encoder(encoder_counts()),
      recurrent(recurrent_counts()),
      lightning(lightning_counts()) {}

const std::vector<std::string>& wrapper_setup_names() {
  static const std::vector<std::string> all = {"any", "windows",    "speech", "hybrid", "states",
                                               "one", "everything", "shift",  "linear"};
  return all;
}

namespace {

/// The only child of which `is_meant`, null: there are several or none.
template <class Children, class IsMeant>
KindWorld* only_of(const Children& children, IsMeant is_meant) {
  KindWorld* result = nullptr;
  for (const auto& child : children) {
    if (!is_meant(*child)) continue;
    if (result != nullptr) return nullptr;
    result = child.get();
  }
  return result;
}

}  // namespace

WrapperWorld::WrapperWorld(kvc_device* device, const std::string& setup, support::Random& random,
                           Counts& counts, ChildCounts& of_children)
    : KindWorld(device, support::Random(random.bits()), counts), name_(setup) {
  const auto is = [&](const char* other) { return setup == other; };
  std::vector<std::string> kinds;
  if (is("windows")) kinds = {"causal", "causal"};
  if (is("shift")) kinds = {"causal", "causal", "recurrent"};
  if (is("speech")) kinds = {"causal", "encoder"};
  if (is("hybrid")) kinds = {"recurrent", "causal"};
  if (is("states")) kinds = {"recurrent", "recurrent"};
  if (is("linear")) kinds = {"lightning", "causal"};
  if (is("everything")) kinds = {"causal", "encoder", "recurrent", "lightning", "causal"};
  for (int32_t n = is("any") ? random.between(2, 4) : is("one") ? 1 : 0; n > 0; --n)
    kinds.push_back(random.pick<const char*>({"causal", "encoder", "recurrent", "lightning"}));
  if (random.chance(0.5)) std::reverse(kinds.begin(), kinds.end());
  for (const std::string& kind : kinds) add_child(kind, random, of_children);
  wrap();
  if (random.chance(0.3)) let_go_in_ = random.between(50, 450);
  random_ = random;  // goes on with the stream that the children were drawn from
}

void WrapperWorld::add_child(const std::string& kind, support::Random& random, ChildCounts& counts) {
  InCommon common;
  // The first child's bounds, or rarely others: what all children have counts.
  if (!children_.empty() && !random.chance(0.1)) {
    common.n_sequences = children_[0]->oracle().cache.max_sequences;
    common.max_batch = children_[0]->oracle().cache.max_batch;
  }
  const auto some = [&](std::vector<std::string> names) {
    return names[static_cast<size_t>(random.below(static_cast<int32_t>(names.size())))];
  };
  const auto own = [&] { return support::Random(random.bits()); };
  if (kind == "causal") {
    const std::string setup = name_ == "shift"     ? "shift"
                              : name_ == "windows" ? some({"causal", "window", "window_memory"})
                                                   : some(setup_names());
    const Setup drawn = draw_setup(setup, random, common);
    children_.push_back(std::make_unique<World>(device_, drawn, own(), counts.causal));
  } else if (kind == "encoder") {
    const EncoderSetup drawn = draw_encoder_setup(some(encoder_setup_names()), random, common);
    children_.push_back(std::make_unique<EncoderWorld>(device_, drawn, own(), counts.encoder));
  } else if (kind == "lightning") {
    const LightningSetup drawn = draw_lightning_setup(some(state_setup_names()), random, common);
    children_.push_back(std::make_unique<LightningWorld>(device_, drawn, own(), counts.lightning));
  } else {
    const std::string setup = name_ == "shift" ? "approximate" : some(state_setup_names());
    const RecurrentSetup drawn = draw_recurrent_setup(setup, random, common);
    children_.push_back(std::make_unique<RecurrentWorld>(device_, drawn, own(), counts.recurrent));
  }
}

/// The wrapper's layers are the children's, one child after the other; rarely it has none.
void WrapperWorld::wrap() {
  std::vector<kvc_cache*> handles;
  std::vector<model::Kind*> oracles;
  Numbers owner, layer;
  const bool with_layers = random_.chance(0.9);
  for (size_t c = 0; c < children_.size(); ++c) {
    handles.push_back(children_[c]->handle());
    oracles.push_back(&children_[c]->oracle());
    for (int32_t i = 0; with_layers && i < oracles.back()->cache.n_layers; ++i) {
      owner.push_back(static_cast<int32_t>(c));
      layer.push_back(i);
    }
  }
  if (kvc_cache_wrap(handles.data(), static_cast<int32_t>(handles.size()), owner.data(),
                     layer.data(), static_cast<int32_t>(owner.size()), &cache_.handle) != KVC_OK)
    differ("wrap: " + support::last_message());
  oracle_ = std::make_unique<model::WrapperOracle>(oracles);
  int32_t first = 0;
  for (const Child& child : children_) {
    if (with_layers)
      child->wrapped_by(
          cache_, first, oracle_->cache.max_sequences,
          (child->oracle().has_checkpoints() ? only_with_checkpoints()
                                             : only(child->oracle().cache.kind)) != nullptr);
    first += child->oracle().cache.n_layers;
  }
  compare_all();
}

/// Whatever the state is, an open pass included.
void WrapperWorld::let_go() {
  log_.push_back("the wrapper is destroyed");
  if (kvc_cache_destroy(cache_.handle) != KVC_OK) differ("destroy: " + support::last_message());
  cache_.handle = nullptr;
  for (const Child& child : children_) {
    child->unwrapped();
    child->compare_after(false);
  }
}

void WrapperWorld::step() {
  if (let_go_in_ == 0) {
    if (cache_.handle != nullptr) let_go();
    ++counts_.operations;
    return some_child().step();
  }
  if (let_go_in_ > 0) --let_go_in_;
  KindWorld::step();
}

void WrapperWorld::finish() {
  for (const Child& child : children_) child->finish();
  if (cache_.handle != nullptr) outlive_handles();
}

/// The wrapper keeps what it needs of its children.
void WrapperWorld::outlive_handles() {
  log_.push_back("the children's handles are destroyed");
  for (const Child& child : children_)
    if (kvc_cache_destroy(child->handle()) != KVC_OK) differ("destroy: " + support::last_message());
  const support::Digest before = last_digest();
  if (support::digest(handle()) != before) differ("the digest changed");
  if (kvc_cache_child(handle(), 0, nullptr, nullptr) == KVC_OK) {
    kvc_cache* child = nullptr;
    if (kvc_cache_child(handle(), 0, &child, nullptr) != KVC_E_HANDLE)
      differ("the wrapper returns the handle of a child that was destroyed");
  }
  if (oracle_->pass_open && (oracle_->abort(), kvc_abort(handle())) != KVC_OK)
    differ("abort: " + support::last_message());
  for (int32_t s = 0; s < n_sequences(); ++s) {
    const int32_t want = random_.below(std::min(oracle_->next(s), 1000) + 2);
    int32_t got = -7, wanted = -7;
    oracle_->resume(s, want, &wanted);
    if (kvc_resume(handle(), s, want, &got) != KVC_OK) differ("resume: " + support::last_message());
    expect_equal(got, wanted, "got");
  }
  compare_sequences();
  if (kvc_check(handle()) != KVC_OK) differ("check: " + support::last_message());
}

std::vector<Choice> WrapperWorld::layer_choices() {
  return {{oracle_->pass_open ? is_complete() ? 120 : 400 : 40, [this] { of_child(); }}};
}

std::vector<Choice> WrapperWorld::more_choices() {
  const bool open = oracle_->pass_open;
  const bool carries = only_encoder() != nullptr && !only_encoder()->pass.carries.empty() &&
                       !is_complete();
  return {{open ? 25 : 4, [this] { set_causal(); }},
          {carries ? 120
           : open  ? 10
                   : 4,
           [this] { share(); }},
          {15, [this] { refused(); }},
          {15, [this] { lacking(); }},
          {oracle_->has_checkpoints() ? 0 : 4, [this] { checkpoint_take(); }},
          {open ? 0 : 2, [this] { compare_rebuilt(); }}};
}

// ---- Arguments ---------------------------------------------------------------------------------

/// A byte each time, so that a fuzzer's bytes come to an end when children go on alone.
KindWorld& WrapperWorld::some_child() {
  return *children_[static_cast<size_t>(random_.below(256)) % children_.size()];
}

KindWorld* WrapperWorld::only(uint32_t kind) const {
  return only_of(children_,
                 [kind](const KindWorld& child) { return child.oracle().cache.kind == kind; });
}

KindWorld* WrapperWorld::only_with_checkpoints() const {
  return only_of(children_, [](const KindWorld& child) { return child.oracle().has_checkpoints(); });
}

model::EncoderOracle* WrapperWorld::only_encoder() const {
  KindWorld* const world = only(KVC_ENCODER);
  return world == nullptr ? nullptr : static_cast<model::EncoderOracle*>(&world->oracle());
}

int32_t WrapperWorld::some_position(int32_t sequence) {
  return some_child().some_position(sequence);
}

void WrapperWorld::give_flags(Batch& batch) {
  for (const Child& child : children_) child->give_flags(batch);
}

void WrapperWorld::give_poison_flags(Batch& batch) const {
  for (const Child& child : children_) child->give_poison_flags(batch);
}

void WrapperWorld::put_nan(const Batch& batch) {
  for (const Child& child : children_) child->put_nan(batch);
}

void WrapperWorld::expect_removal(int32_t sequence, int32_t begin, int32_t end) {
  removal_ = {sequence, begin, end};
  for (const Child& child : children_) child->expect_removal(sequence, begin, end);
}

/// The functions are called one child after the other, until one refuses.
void WrapperWorld::compare_removal(Shifting shifting) {
  for (const Child& child : children_) {
    const bool refuses = shifting == Shifting::until_refusal &&
                         child->oracle().refusal(removal_[0], removal_[1], removal_[2]) != KVC_OK;
    child->compare_removal(shifting == Shifting::none ? shifting
                           : refuses                  ? Shifting::until_refusal
                                                      : Shifting::all);
    if (refuses) shifting = Shifting::none;
  }
}

// ---- What an operation meets -------------------------------------------------------------------

/// In any sequence, whatever is named: children that would step back to different places.
Met WrapperWorld::circumstances(const Numbers&) const {
  bool differ = false;
  for (int32_t s = 0; s < n_sequences(); ++s) {
    const int32_t want = oracle_->next(s) - 1;
    int32_t first = -1;
    for (const Child& child : children_) {
      int32_t best = -1;
      if (want >= 0) child->oracle().can_resume(s, want, &best);
      if (&child == &children_[0]) first = best;
      differ = differ || best != first;
    }
  }
  const bool open = oracle_->pass_open && !oracle_->batch().reserve;
  size_t n_put = 0;
  for (const Child& child : children_) n_put += child->oracle().fully_put();
  return {differ, open && n_put > 0 && n_put < children_.size(), open};
}

std::string WrapperWorld::describe() const {
  std::ostringstream text;
  text << "a wrapper (" << name_ << ") of\n";
  for (const Child& child : children_) text << child->describe();
  return text.str();
}

}  // namespace fuzz
