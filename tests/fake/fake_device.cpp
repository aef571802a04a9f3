// A device whose memory the host cannot read: the CPU, with every block of device memory behind PROT_NONE but inside the
// device's own calls, and with token arrays of its own that follow what begin_pass() names. Linked into a library in the place
// of the real one, it registers itself under the CPU's name. A test that passes over it has proven that core and capi touch
// no byte of K and V, and that no change of a token goes unnoted.
#include "tests/fake/fake_device.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <memory>
#include <new>

#include "kernels/cpu/cpu_device.hpp"
#include "tests/fake/device_block.hpp"

namespace fake {
namespace {

using kvc::Status;

/// Memory for the device's own token arrays: zeros until they are written, like the book's.
class TokenMirror {
 public:
  bool map(int64_t n_entries) {
    if (n_entries == 0) return true;  // a cache without attention
    bytes_ = static_cast<size_t>(n_entries) * sizeof(int32_t);
    cell_ = map_one();
    position_ = map_one();
    return cell_ != nullptr && position_ != nullptr;
  }
  TokenMirror() = default;
  TokenMirror(const TokenMirror&) = delete;
  TokenMirror& operator=(const TokenMirror&) = delete;
  ~TokenMirror() {
    if (cell_ != nullptr) munmap(cell_, bytes_);
    if (position_ != nullptr) munmap(position_, bytes_);
  }

  void follow(const kvc::TokenArrays& host, const kvc::TokenChanges& changes) {
    for (int32_t i = 0; i < changes.n; ++i) {
      const kvc::TokenRange& range = changes.range[i];
      std::copy(host.cell + range.begin, host.cell + range.end, cell_ + range.begin);
      std::copy(host.position + range.begin, host.position + range.end, position_ + range.begin);
    }
  }
  kvc::AttentionPlan over(kvc::AttentionPlan plan) const {
    plan.tokens = {cell_, position_};
    return plan;
  }

 private:
  int32_t* map_one() const {
    void* mapped = mmap(nullptr, bytes_, PROT_READ | PROT_WRITE,
                        MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    return mapped == MAP_FAILED ? nullptr : static_cast<int32_t*>(mapped);
  }

  int32_t* cell_ = nullptr;
  int32_t* position_ = nullptr;
  size_t bytes_ = 0;
};

class FakeCacheDevice final : public kvc::CacheDevice {
 public:
  FakeCacheDevice(std::unique_ptr<kvc::CacheDevice> cpu, DeviceBlock* block)
      : cpu_(std::move(cpu)), block_(block) {}
  bool mirror(int64_t n_entries) { return tokens_.map(n_entries); }

  Status begin_pass(const kvc::AttentionPlan& plan, const kvc::TokenChanges& changes,
                    void* stream) noexcept override {
    tokens_.follow(plan.tokens, changes);
    return cpu_->begin_pass(tokens_.over(plan), {}, stream);
  }
  Status store(const kvc::StoreParams& params) noexcept override {
    return inside([&] { return cpu_->store(params); });
  }
  Status store_codes(const kvc::StoreCodesParams& params) noexcept override {
    return inside([&] { return cpu_->store_codes(params); });
  }
  Status load(const kvc::LoadParams& params) noexcept override {
    return inside([&] { return cpu_->load(params); });
  }
  Status move(const kvc::MoveParams& params) noexcept override {
    return inside([&] { return cpu_->move(params); });
  }
  /// `from` may be another cache's, behind another block.
  Status copy(const kvc::CopyParams& params, const kvc::CacheDevice& source) noexcept override {
    return beside(params.from.k.codes.data, [&] { return cpu_->copy(params, source); });
  }
  Status clear(const kvc::ClearParams& params) noexcept override {
    return inside([&] { return cpu_->clear(params); });
  }
  Status attention(const kvc::AttentionOperator& op,
                   const kvc::AttentionParams& params) noexcept override {
    kvc::AttentionParams here = params;
    here.plan = tokens_.over(params.plan);
    return inside([&] { return cpu_->attention(op, here); });
  }
  Status write_mask(const kvc::MaskParams& params) noexcept override {
    kvc::MaskParams here = params;
    here.plan = tokens_.over(params.plan);
    return inside([&] { return cpu_->write_mask(here); });
  }
  Status lightning(const kvc::LightningParams& params) noexcept override {
    return inside([&] { return cpu_->lightning(params); });
  }
  Status load_lightning(const kvc::LightningState& state) const noexcept override {
    return inside([&] { return cpu_->load_lightning(state); });
  }
  Status store_lightning(const kvc::LightningState& state) noexcept override {
    return inside([&] { return cpu_->store_lightning(state); });
  }
  Status store_states(const kvc::StateRows& params) noexcept override {
    return inside([&] { return cpu_->store_states(params); });
  }
  Status load_states(const kvc::StateRows& params) noexcept override {
    return beside(params.part.slot(params.slot[0]), [&] { return cpu_->load_states(params); });
  }
  Status store_conv(const kvc::ConvRows& params) noexcept override {
    return inside([&] { return cpu_->store_conv(params); });
  }
  Status copy_states(const kvc::StateCopies& params, const kvc::CacheDevice& source) noexcept override {
    const kvc::StatePart& from = params.source != nullptr ? *params.source : params.part;
    return beside(from.slot(params.from[0]), [&] {
      return beside(params.part.slot(params.to[0]), [&] { return cpu_->copy_states(params, source); });
    });
  }
  Status clear_states(const kvc::StateClears& params) noexcept override {
    const std::byte* first = params.data + static_cast<size_t>(params.slot[0]) * params.slot_bytes;
    return beside(first, [&] { return cpu_->clear_states(params); });
  }
  Status read_rows(const kvc::RowBytes& rows) const noexcept override {
    return beside(rows.plane.row(rows.head, rows.cell[0]), [&] { return cpu_->read_rows(rows); });
  }
  Status write_rows(const kvc::RowBytes& rows) noexcept override {
    return inside([&] { return cpu_->write_rows(rows); });
  }

 private:
  /// Inside this cache's memory and the one that `source` lies in: another cache's, or what is pinned.
  template <class Call>
  Status beside(const std::byte* source, Call call) const {
    DeviceBlock* const other = Blocks::holding(source);
    if (other == nullptr || other == block_) return inside(call);
    other->enter();
    const Status status = inside(call);
    other->leave();
    return status;
  }
  template <class Call>
  Status inside(Call call) const {
    if (block_ == nullptr) return call();
    block_->enter();
    const Status status = call();
    block_->leave();
    return status;
  }

  std::unique_ptr<kvc::CacheDevice> cpu_;
  DeviceBlock* block_;  // null: the host's allocator gave the memory, which stays as it is
  TokenMirror tokens_;
};

class FakeDevice final : public kvc::Device {
 public:
  FakeDevice(std::shared_ptr<kvc::Device> cpu, bool owns_memory)
      : cpu_(std::move(cpu)), owns_memory_(owns_memory) {}

  kvc::DeviceInfo info() const noexcept override {
    kvc::DeviceInfo info = cpu_->info();
    info.plans_ahead = info.follows_tokens = info.pins_memory = true;
    return info;
  }
  void* allocate(kvc::Place place, size_t bytes, bool prefault) noexcept override {
    if (place == kvc::Place::host || !owns_memory_) return cpu_->allocate(place, bytes, prefault);
    DeviceBlock* block = DeviceBlock::make(bytes);
    if (block == nullptr) return nullptr;
    Blocks::add(block);
    return block->data();
  }
  void release(kvc::Place place, void* data, size_t bytes) noexcept override {
    if (place == kvc::Place::host || !owns_memory_) return cpu_->release(place, data, bytes);
    Blocks::remove(data);
  }
  const kvc::AttentionOperator* attention_operator(int32_t index) const noexcept override {
    return cpu_->attention_operator(index);
  }
  size_t workspace_bytes(const kvc::AttentionBounds& bounds) const noexcept override {
    return cpu_->workspace_bytes(bounds);
  }
  size_t host_workspace_bytes(const kvc::AttentionBounds& bounds) const noexcept override {
    return cpu_->host_workspace_bytes(bounds);
  }
  size_t lightning_workspace_bytes(const kvc::LightningBounds& bounds) const noexcept override {
    return cpu_->lightning_workspace_bytes(bounds);
  }
  Status attach(const kvc::AttentionBounds& bounds, const kvc::WorkspaceBlocks& workspace,
                std::unique_ptr<kvc::CacheDevice>* out) noexcept override {
    std::unique_ptr<kvc::CacheDevice> cpu;
    if (Status s = cpu_->attach(bounds, workspace, &cpu); s != Status::ok) return s;
    std::unique_ptr<FakeCacheDevice> made(
        new (std::nothrow) FakeCacheDevice(std::move(cpu), Blocks::holding(workspace.on_device)));
    if (made == nullptr || !made->mirror(bounds.n_token_entries))
      return kvc::fail(Status::out_of_memory, "no memory for the fake device's token arrays");
    *out = std::move(made);
    return Status::ok;
  }

 private:
  std::shared_ptr<kvc::Device> cpu_;
  bool owns_memory_;
};

Status open(const kvc::DeviceOptions& options, std::shared_ptr<kvc::Device>* out) {
  std::shared_ptr<kvc::Device> cpu;
  if (Status s = kvc::cpu::CpuDevice::create(options, &cpu); s != Status::ok) return s;
  *out = std::make_shared<FakeDevice>(std::move(cpu), options.allocator == nullptr);
  return Status::ok;
}

// Before main, so before the library looks for its own.
[[maybe_unused]] const bool registered = kvc::register_device({.name = "cpu", .open = open});

}  // namespace
}  // namespace fake
