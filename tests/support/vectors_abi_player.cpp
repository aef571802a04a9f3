#include <gtest/gtest.h>

#include <deque>

#include "vectors_abi_children.hpp"

/// Plays a vector through the C ABI.
namespace players {
namespace {

class AbiPlayer final : public Player {
 public:
  explicit AbiPlayer(const Script& script) : device_(1) {
    for (const ChildScript& child : script.children) {
      const void* kind_desc = child.cache.kind == KVC_CAUSAL
                                  ? static_cast<const void*>(&child.causal)
                              : child.cache.kind == KVC_ENCODER
                                  ? static_cast<const void*>(&child.encoder)
                                  : &child.recurrent;
      EXPECT_EQ(kvc_cache_create(device_, &child.cache, kind_desc, &caches_.emplace_back().handle), KVC_OK)
          << support::last_message();
      if (child.cache.kind != KVC_CAUSAL || !child.rope) continue;
      kvc_rope_desc rope{};
      rope.struct_size = sizeof rope;
      EXPECT_EQ(kvc_bind_rope(caches_.back(), 0, n_layers, &rope, nullptr), KVC_OK);
    }
    top_ = caches_[0];
    if (script.wrapped) wrap();
    for (size_t i = 0; i < caches_.size(); ++i) children.push_back(make_child(script, i));
  }
  ~AbiPlayer() override { EXPECT_EQ(kvc_check(top_), KVC_OK) << support::last_message(); }

  kvc_status begin(const Pass& pass) override {
    return kvc_begin(top_, pass.n(), pass.position.data(), pass.sequence.data(), pass.token_flags(),
                     0, nullptr);
  }
  kvc_status fits(const Pass& pass) override {
    return kvc_fits(top_, pass.n(), pass.position.data(), pass.sequence.data(), pass.token_flags());
  }
  kvc_status share(int32_t sequence, int32_t source) override {
    return kvc_encoder_share(top_, sequence, source);
  }
  kvc_status set_causal(const Numbers& except) override {
    return kvc_set_causal(top_, size(except), except.data());
  }
  kvc_status commit() override { return kvc_commit(top_); }
  kvc_status commit_prefix(const Numbers& sequence, const Numbers& keep) override {
    return kvc_commit_prefix(top_, size(sequence), sequence.data(), keep.data());
  }
  kvc_status abort() override { return kvc_abort(top_); }
  kvc_status can_resume(int32_t sequence, int32_t want, int32_t* best) override {
    return kvc_can_resume(top_, sequence, want, best);
  }
  kvc_status resume(int32_t sequence, int32_t want, int32_t* got) override {
    return kvc_resume(top_, sequence, want, got);
  }
  kvc_status copy_prefix(int32_t src, int32_t dst, int32_t len, int32_t* got) override {
    return kvc_copy_prefix(top_, src, dst, len, got);
  }
  kvc_status reorder(const Numbers& dst, const Numbers& src) override {
    return kvc_reorder(top_, size(dst), dst.data(), src.data());
  }
  kvc_status remove(int32_t sequence, int32_t begin, int32_t end) override {
    return kvc_remove(top_, sequence, begin, end);
  }
  kvc_status checkpoint_take(int32_t sequence) override {
    return kvc_checkpoint_take(top_, sequence);
  }
  int32_t next(int32_t sequence) override { return support::sequence_info(top_, sequence).next; }
  support::Digest digest() override {
    support::Digest value{};
    EXPECT_EQ(kvc_state_digest(top_, value.data()), KVC_OK) << support::last_message();
    return value;
  }

 private:
  static int32_t size(const Numbers& list) { return static_cast<int32_t>(list.size()); }

  /// The wrapper's layers are the children's, one child after the other.
  void wrap() {
    std::vector<kvc_cache*> handles(caches_.begin(), caches_.end());
    Numbers child, layer;
    for (int32_t c = 0; c < static_cast<int32_t>(handles.size()); ++c)
      for (int32_t l = 0; l < n_layers; ++l) {
        child.push_back(c);
        layer.push_back(l);
      }
    EXPECT_EQ(kvc_cache_wrap(handles.data(), static_cast<int32_t>(handles.size()), child.data(),
                             layer.data(), size(child), &wrapper_.handle),
              KVC_OK)
        << support::last_message();
    top_ = wrapper_;
  }

  /// In a wrapper the first layer is called on the child, the others through the wrapper.
  std::unique_ptr<Child> make_child(const Script& script, size_t i) {
    std::vector<Door> doors;
    for (int32_t layer = 0; layer < n_layers; ++layer)
      doors.push_back(script.wrapped && layer > 0
                          ? Door{wrapper_, static_cast<int32_t>(i) * n_layers + layer}
                          : Door{caches_[i], layer});
    const ChildScript& child = script.children[i];
    const auto make = child.cache.kind == KVC_CAUSAL    ? make_abi_causal
                      : child.cache.kind == KVC_ENCODER ? make_abi_encoder
                                                        : make_abi_recurrent;
    return make(child, caches_[i], doors);
  }

  support::Device device_;
  std::deque<support::Cache> caches_;
  support::Cache wrapper_;
  kvc_cache* top_ = nullptr;
};

}  // namespace

std::unique_ptr<Player> make_abi_player(const Script& script) {
  return std::make_unique<AbiPlayer>(script);
}

}  // namespace players
