// Slots of a recurrent cache on a device that fills freed ones with NaN, so that whoever still reads one finds out, and with the
// slot of zeros behind memory that cannot be written. And on a device that fails at its n-th call, for every n.
#include <gtest/gtest.h>
#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <functional>
#include <iostream>
#include <map>
#include <memory>

#include "capi/src/handle_table.hpp"
#include "capi/src/objects.hpp"
#include "core/caches/recurrent.hpp"
#include "support/random.hpp"
#include "support/recurrent_rig.hpp"
#include "tests/fake/over_cpu.hpp"

namespace {

using kvc::Status;
using support::Put;
using support::Random;
using Rig = support::RecurrentRig;

// ---- Devices --------------------------------------------------------------------------------------------------------------

/// The CPU, but slots that are to become zeros become NaN, and copies to pinned memory are made when they must have been, not before.
template <class Around>
class PoisoningSide final : public fake::CacheDeviceOver<Around> {
 public:
  using Over = fake::CacheDeviceOver<Around>;
  using Over::Over;
  Status copy_states(const kvc::StateCopies& params, const kvc::CacheDevice& source) noexcept override {
    if (!params.part.is_pinned) {
      if (Status s = finish_copies(); s != Status::ok) return s;
      return Over::copy_states(params, source);
    }
    for (int32_t i = 0; i < params.n; ++i) {
      late_.push_back({params.part.slot(params.to[i]), params.source->slot(params.from[i]),
                       params.part.bytes()});
    }
    return Status::ok;
  }
  Status finish_copies() noexcept override {
    for (const Late& copy : late_) std::memcpy(copy.to, copy.from, copy.n_bytes);
    late_.clear();
    return Status::ok;
  }
  Status load_states(const kvc::StateRows& params) noexcept override {
    if (Status s = finish_copies(); s != Status::ok) return s;
    return Over::load_states(params);
  }
  Status clear_states(const kvc::StateClears& params) noexcept override {
    for (int32_t i = 0; i < params.n; ++i)
      std::memset(params.data + static_cast<size_t>(params.slot[i]) * params.slot_bytes, 0xff,
                  params.n_bytes);
    return Status::ok;
  }

 private:
  struct Late {
    std::byte* to;
    const std::byte* from;
    size_t n_bytes;
  };
  std::vector<Late> late_;
};

class PoisoningDevice final : public fake::DeviceOverCpu {
 public:
  kvc::DeviceInfo info() const noexcept override {
    kvc::DeviceInfo info = DeviceOverCpu::info();
    info.pins_memory = true;
    return info;
  }
  Status attach(const kvc::AttentionBounds& bounds, const kvc::WorkspaceBlocks& workspace,
                std::unique_ptr<kvc::CacheDevice>* out) noexcept override {
    const auto plain = [](auto call) { return call(); };
    std::unique_ptr<kvc::CacheDevice> cpu;
    if (Status s = attach_around(bounds, workspace, plain, &cpu); s != Status::ok) return s;
    *out = std::make_unique<PoisoningSide<decltype(plain)>>(std::move(cpu), plain);
    return Status::ok;
  }
};

/// The CPU until its n-th call.
class FailingDevice final : public fake::DeviceOverCpu {
 public:
  explicit FailingDevice(int32_t failing) : failing_(failing) {}
  Status attach(const kvc::AttentionBounds& bounds, const kvc::WorkspaceBlocks& workspace,
                std::unique_ptr<kvc::CacheDevice>* out) noexcept override {
    const auto around = [this](auto call) {
      if (calls_++ != failing_) return call();
      return kvc::fail(Status::device, "the device fell off the bus");
    };
    return attach_around(bounds, workspace, around, out);
  }

 private:
  int32_t failing_, calls_ = 0;
};

/// A cache of the rig's sizes on such a device, behind the C ABI.
void create_on(const std::shared_ptr<kvc::Device>& device, Rig& rig, bool checkpoints_apart = false) {
  kvc::CacheBounds bounds;
  bounds.n_layers = rig.desc.n_layers;
  bounds.max_sequences = rig.desc.max_sequences;
  bounds.max_batch = rig.desc.max_batch;
  bounds.zero_on_free = true;
  kvc::RecurrentRequest request;
  request.approximate = true;
  request.state_size = rig.recurrent.state_size;
  request.conv_channels = rig.recurrent.conv_channels;
  request.conv_dim = rig.recurrent.conv_dim;
  request.checkpoints.checkpoints = rig.recurrent.checkpoints;
  request.checkpoints.checkpoint_interval = rig.recurrent.checkpoint_interval;
  request.checkpoints.checkpoint_min_pos = rig.recurrent.checkpoint_min_pos;
  request.checkpoints.on_host = checkpoints_apart;
  request.draft_states = rig.recurrent.draft_states;
  kvc::RecurrentSettings settings;
  ASSERT_EQ(kvc::RecurrentCache::resolve(bounds, request, &settings), Status::ok);
  auto object = std::make_unique<kvc::capi::CacheObject>();
  ASSERT_EQ(kvc::RecurrentCache::create(device, bounds, settings, &object->cache), Status::ok);
  const kvc::CacheStats stats = object->cache->stats();
  rig.cache.handle = static_cast<kvc_cache*>(
      kvc::capi::handles::add(kvc::capi::Kind::cache, object.release(), stats));
}

// ---- Freed slots ------------------------------------------------------------------------------------------------------------

/// What every sequence holds, by the values of its tokens.
class Model {
 public:
  struct Sequence {
    std::vector<int32_t> values;                          // that its state contains
    std::map<int32_t, std::vector<int32_t>> checkpoints;  // by place
  };

  explicit Model(Rig& rig) : rig_(rig), sequences_(4) {}

  void step(Random& random) {
    const int32_t s = random.below(4), t = random.below(4);
    switch (random.below(7)) {
      case 0:
      case 1: return pass(random);
      case 2: {
        if (rig_.recurrent.checkpoints == KVC_NONE) return;
        ASSERT_EQ(kvc_checkpoint_take(rig_.cache, s), KVC_OK) << support::last_message();
        return follow(s, sequences_[at(s)]);
      }
      case 3: {
        int32_t got = 0;
        ASSERT_EQ(kvc_resume(rig_.cache, s, random.below(rig_.next(s) + 2), &got), KVC_OK);
        return follow(s, cut(s, got));
      }
      case 4: {
        if (s == t) return;
        int32_t got = 0;
        const int32_t length = random.below(rig_.next(s) + 2);
        ASSERT_EQ(kvc_copy_prefix(rig_.cache, s, t, length, &got), KVC_OK);
        return follow(t, cut(s, got));
      }
      case 5: {
        if (s == t) return;
        const int32_t dst[] = {s, t}, src[] = {t, s};
        ASSERT_EQ(kvc_reorder(rig_.cache, 2, dst, src), KVC_OK);
        return std::swap(sequences_[at(s)], sequences_[at(t)]);
      }
      default: return pass_that_ends_early(random);
    }
  }

  void expect_all() {
    for (int32_t s = 0; s < 4; ++s) {
      rig_.expect_state(s, rig_.next(s), sequences_[at(s)].values);
      for (const auto& [place, values] : sequences_[at(s)].checkpoints)
        rig_.expect_state(s, place, values);
    }
    ASSERT_EQ(kvc_check(rig_.cache), KVC_OK) << support::last_message();
  }

 private:
  static size_t at(int32_t sequence) { return static_cast<size_t>(sequence); }

  std::vector<Rig::Token> draw(Random& random) {
    std::vector<Rig::Token> tokens;
    for (int32_t i = random.between(1, 6); i > 0; --i)
      tokens.push_back({random.below(4), random.below(90)});
    return tokens;
  }
  void pass(Random& random) {
    const auto tokens = draw(random);
    rig_.pass(tokens, random.pick({Put::by_copy, Put::in_place}));
    if (testing::Test::HasFatalFailure()) return;
    for (const Rig::Token& token : tokens)
      sequences_[at(token.sequence)].values.push_back(token.value);
    ASSERT_EQ(kvc_commit(rig_.cache), KVC_OK);
    for (int32_t s = 0; s < 4; ++s) follow(s, sequences_[at(s)]);
  }
  void pass_that_ends_early(Random& random) {
    const auto tokens = draw(random);
    rig_.pass(tokens, Put::in_place);
    if (random.chance(0.5)) {
      ASSERT_EQ(kvc_abort(rig_.cache), KVC_OK);
      return;
    }
    const int32_t sequence = tokens[0].sequence;
    int32_t n = 0, keep = random.below(2);
    for (const Rig::Token& token : tokens) n += token.sequence == sequence;
    if (n > rig_.recurrent.draft_states + 1) keep = 0;
    ASSERT_EQ(kvc_commit_prefix(rig_.cache, 1, &sequence, &keep), KVC_OK) << support::last_message();
    for (const Rig::Token& token : tokens) {
      if (token.sequence == sequence && keep-- <= 0) continue;
      sequences_[at(token.sequence)].values.push_back(token.value);
    }
    for (int32_t s = 0; s < 4; ++s) follow(s, sequences_[at(s)]);
  }
  Sequence cut(int32_t s, int32_t place) {
    const Sequence& of = sequences_[at(s)];
    if (place == 0) return {};
    Sequence sequence = of;
    const auto found = of.checkpoints.find(place);
    if (found != of.checkpoints.end()) sequence.values = found->second;
    return sequence;
  }
  /// Which checkpoints there are is what the library lists (recurrent_test); what they hold is not.
  void follow(int32_t s, Sequence sequence) {
    std::map<int32_t, std::vector<int32_t>> listed;
    for (const int32_t place : rig_.checkpoints(s)) {
      const auto found = sequence.checkpoints.find(place);
      listed[place] = found != sequence.checkpoints.end() ? found->second : sequence.values;
    }
    sequence.checkpoints = listed;
    sequences_[at(s)] = sequence;
  }

  Rig& rig_;
  std::vector<Sequence> sequences_;
};

/// No page of the slot of zeros can be written while this lives.
class ZerosProtected {
 public:
  explicit ZerosProtected(Rig& rig) {
    kvc_tensor view{};
    const int32_t part = rig.recurrent.conv_dim > 0 ? KVC_PART_CONV : KVC_PART_RECURRENT;
    rig.pass({{0, 1}});
    EXPECT_EQ(kvc_state_view(rig.cache, 0, part, 0, nullptr, &view), KVC_OK);
    EXPECT_EQ(kvc_abort(rig.cache), KVC_OK);
    auto* zeros = static_cast<std::byte*>(view.data);
    std::byte* behind = zeros + view.strides[0] * static_cast<int64_t>(sizeof(float));
    constexpr uintptr_t page = 4096;
    EXPECT_EQ(reinterpret_cast<uintptr_t>(behind) % page, 0u) << "slot 1 begins a page";
    first_ = zeros - reinterpret_cast<uintptr_t>(zeros) % page;
    bytes_ = static_cast<size_t>(behind - first_);
    EXPECT_EQ(mprotect(first_, bytes_, PROT_READ), 0);
  }
  ~ZerosProtected() { mprotect(first_, bytes_, PROT_READ | PROT_WRITE); }
  ZerosProtected(const ZerosProtected&) = delete;
  ZerosProtected& operator=(const ZerosProtected&) = delete;

 private:
  std::byte* first_;
  size_t bytes_;
};

TEST(RecurrentSlots, NobodyReadsAFreedSlotOrWritesTheSlotOfZeros) {
  for (const int32_t checkpoints : {int32_t{KVC_NONE}, 1, 3}) {
    for (const int32_t which : {0, 1, 2, 3}) {
      const bool apart = which >= 2;
      const int32_t draft_states = which % 2 * 2;
      Rig rig(nullptr);
      rig.recurrent.checkpoints = checkpoints;
      rig.recurrent.checkpoint_interval = 2;
      rig.recurrent.checkpoint_min_pos = KVC_NONE;
      rig.recurrent.draft_states = draft_states;
      create_on(std::make_shared<PoisoningDevice>(), rig, apart);
      const ZerosProtected zeros(rig);
      Model model(rig);
      Random random(static_cast<uint64_t>(checkpoints * 10 + which + 20));
      for (int32_t step = 0; step < 300; ++step) {
        model.step(random);
        model.expect_all();
        ASSERT_FALSE(testing::Test::HasFailure()) << "step " << step;
      }
    }
  }
}

// ---- A device that fails ------------------------------------------------------------------------------------------------------

/// Everything that reaches the device. The status of the first call that is not OK.
kvc_status live(Rig& rig) {
  kvc_cache* cache = rig.cache;
  std::vector<float> numbers(size_t{2} * Rig::state_size, 0.5f);
  kvc_tensor two = support::dense(numbers.data(), KVC_F32, {2, Rig::state_size});
  kvc_tensor one = support::dense(numbers.data(), KVC_F32, {Rig::state_size});
  const kvc_tensor x = support::dense(numbers.data(), KVC_F32, {2, Rig::channels});
  uint64_t digest[2];
  const int32_t recurrent = KVC_PART_RECURRENT;
  const std::function<kvc_status()> calls[] = {
      [&] {
        return rig.begin({{0, 1}, {1, 2}});
      },
      [&] { return kvc_state_get(cache, 0, recurrent, &two); },
      [&] { return kvc_state_put(cache, 0, recurrent, &two); },
      [&] { return kvc_state_conv(cache, 0, &x); },
      [&] { return kvc_state_digest(cache, digest); },
      [&] { return kvc_commit(cache); },  // the parts of layer 1 are copied
      [&] { return kvc_state_gather(cache, 0, recurrent, 0, 1, &one); },
      [&] { return kvc_check(cache); },
      [&] { return kvc_resume(cache, 0, 0, nullptr); },  // clears a slot
  };
  for (const auto& call : calls)
    if (const kvc_status status = call()) return status;
  return KVC_OK;
}

TEST(RecurrentSlots, ADeviceThatFailsPoisonsTheCacheAtEveryCall) {
  int32_t n = 0;
  for (bool met = true; met; ++n) {
    Rig rig(nullptr);
    create_on(std::make_shared<FailingDevice>(n), rig);
    const kvc_status status = live(rig);
    met = status != KVC_OK;
    if (!met) continue;
    EXPECT_EQ(support::name(status), "DEVICE") << n << ": " << support::last_message();
    EXPECT_EQ(support::name(rig.begin({{0, 1}})), "DEVICE") << n;
    EXPECT_EQ(support::name(kvc_checkpoint_take(rig.cache, 0)), "DEVICE") << n;
    EXPECT_EQ(support::stats(rig.cache).state, uint32_t{KVC_STATE_POISONED}) << n;
  }
  std::cout << n - 1 << " calls of the device failed one after another" << std::endl;
  EXPECT_GE(n, 15);
}

}  // namespace
