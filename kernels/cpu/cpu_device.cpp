#include "kernels/cpu/cpu_device.hpp"

#include <sys/mman.h>

#include <algorithm>
#include <cstring>
#include <iterator>
#include <new>

#include "core/base/float_environment.hpp"
#include "kernels/cpu/attention.hpp"
#include "kernels/cpu/attention_workspace.hpp"
#include "kernels/cpu/kernel_table.hpp"
#include "kernels/cpu/lightning.hpp"
#include "kernels/cpu/mask.hpp"
#include "kernels/cpu/pages.hpp"
#include "kernels/cpu/rows.hpp"
#include "kernels/cpu/states.hpp"
#include "kernels/cpu/vanilla.hpp"

namespace kvc::cpu {
namespace {

/// Makes every page present now, so that the first pass does not pay for it.
void touch(std::byte* block, size_t bytes, size_t page) {
#if defined(MADV_POPULATE_WRITE)
  if (madvise(block, bytes, MADV_POPULATE_WRITE) == 0) return;
#endif
  for (size_t i = 0; i < bytes; i += page)
    static_cast<volatile std::byte*>(block)[i] = std::byte{0};
}

void* map_pages(size_t bytes, bool prefault) {
  const size_t page = system_page();
  const size_t alignment = alignment_for(bytes);
  const MappingSize mapping = mapping_for(bytes, alignment, page);
  if (mapping.bytes == 0) return nullptr;
  void* region = mmap(nullptr, mapping.bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS,
                      -1, 0);
  if (region == MAP_FAILED) return nullptr;
  auto* begin = static_cast<std::byte*>(region);
  const auto [front, back] = ends_of(reinterpret_cast<uintptr_t>(begin), mapping, alignment);
  if (front > 0) munmap(begin, front);
  std::byte* block = begin + front;
  if (back > 0) munmap(block + mapping.wanted, back);
#if defined(MADV_HUGEPAGE)
  if (alignment == huge_page)
    madvise(block, mapping.wanted, MADV_HUGEPAGE);  // a wish: without it we are only slower
#endif
  if (prefault) touch(block, mapping.wanted, page);
  return block;
}

/// Prefixes that are shared from here on are worth a read of their own.
constexpr int32_t least_shared_prefix = 256;

/// The pool and the workspace serve one cache here; the schedule of a pass is kept from layer to layer.
class CpuCacheDevice final : public CacheDevice {
 public:
  CpuCacheDevice(ThreadPool& pool, const AttentionBounds& bounds, std::byte* workspace)
      : pool_(pool),
        workspace_(workspace),
        row_scratch_(row_scratch(bounds, workspace, pool.n_threads())) {}

  Status begin_pass(const AttentionPlan&, const TokenChanges&, void*) noexcept override {
    schedule_.forget();
    return Status::ok;
  }
  Status store(const StoreParams& params) noexcept override {
    store_rows(params, pool_, row_scratch_);
    return Status::ok;
  }
  Status store_codes(const StoreCodesParams& params) noexcept override {
    cpu::store_codes(params, pool_);
    return Status::ok;
  }
  Status load(const LoadParams& params) noexcept override {
    load_rows(params, pool_, row_scratch_);
    return Status::ok;
  }
  Status move(const MoveParams& params) noexcept override {
    move_rows(params, pool_);
    return Status::ok;
  }
  Status copy(const CopyParams& params, const CacheDevice&) noexcept override {
    copy_cells(params, pool_);
    return Status::ok;
  }
  Status clear(const ClearParams& params) noexcept override {
    clear_rows(params, pool_);
    return Status::ok;
  }
  Status attention(const AttentionOperator& op, const AttentionParams& params) noexcept override {
    AttentionParams call = params;
    call.workspace = workspace_;
    return op.run(op, call, *this);
  }
  Status write_mask(const MaskParams& params) noexcept override {
    cpu::write_mask(params, pool_);
    return Status::ok;
  }
  Status lightning(const LightningParams& params) noexcept override {
    cpu::lightning(params, pool_);
    return Status::ok;
  }
  Status load_lightning(const LightningState& state) const noexcept override {
    cpu::load_lightning(state);
    return Status::ok;
  }
  Status store_lightning(const LightningState& state) noexcept override {
    cpu::store_lightning(state);
    return Status::ok;
  }
  Status store_states(const StateRows& params) noexcept override {
    cpu::store_states(params, pool_);
    return Status::ok;
  }
  Status load_states(const StateRows& params) noexcept override {
    cpu::load_states(params, pool_);
    return Status::ok;
  }
  Status store_conv(const ConvRows& params) noexcept override {
    cpu::store_conv(params, pool_);
    return Status::ok;
  }
  Status copy_states(const StateCopies& params, const CacheDevice&) noexcept override {
    cpu::copy_states(params, pool_);
    return Status::ok;
  }
  Status clear_states(const StateClears& params) noexcept override {
    cpu::clear_states(params, pool_);
    return Status::ok;
  }
  Status read_rows(const RowBytes& rows) const noexcept override {
    for (int32_t i = 0; i < rows.n_rows; ++i)
      std::memcpy(rows.data + static_cast<size_t>(i) * rows.n_bytes, stored(rows, i), rows.n_bytes);
    return Status::ok;
  }
  Status write_rows(const RowBytes& rows) noexcept override {
    for (int32_t i = 0; i < rows.n_rows; ++i)
      std::memcpy(stored(rows, i), rows.data + static_cast<size_t>(i) * rows.n_bytes, rows.n_bytes);
    return Status::ok;
  }

 private:
  friend Status run_tiles(const AttentionOperator&, const AttentionParams& params,
                          CacheDevice& device) noexcept;
  friend Status run_vanilla(const AttentionOperator&, const AttentionParams& params,
                            CacheDevice& device) noexcept;

  static std::byte* stored(const RowBytes& rows, int32_t i) {
    return rows.plane.row(rows.head, rows.cell[i]) + rows.first_byte;
  }

  ThreadPool& pool_;
  std::byte* workspace_;
  const RowScratch row_scratch_;
  Schedule schedule_;
};

/// FlashAttention's online softmax over tiles. The driver picks the narrow, the medium or the wide kernel by the number of rows
/// of a tile.
Status run_tiles(const AttentionOperator&, const AttentionParams& params,
                 CacheDevice& device) noexcept {
  auto& here = static_cast<CpuCacheDevice&>(device);
  cpu::attention(params, here.pool_, here.schedule_);
  return Status::ok;
}

Status run_vanilla(const AttentionOperator&, const AttentionParams& params,
                   CacheDevice& device) noexcept {
  vanilla_attention(params, static_cast<CpuCacheDevice&>(device).pool_);
  return Status::ok;
}

constexpr FeatureSet of_all = feature_mask | feature_bias | feature_window | feature_chunk |
                              feature_not_causal | feature_softcap | feature_alibi | feature_sinks |
                              feature_lse | feature_weights | feature_grouped |
                              feature_dims_differ | feature_shifted | feature_rotated |
                              feature_transformer | feature_forward;

constexpr const char* flash_aliases[] = {"flash_attn2",     "sdpa", "splash", "blockwise",
                                         "paged_attention", nullptr};
constexpr const char* decode_aliases[] = {"autoregressive_decodeattn", nullptr};

// Blocks are multiples of the kernels' steps: vectors of rows; strips of 12 cells, blocks of 64, blocks of 96 or 128.
constexpr int32_t block_q_multiple = 16, block_k_multiple = 384;
static_assert(tile_rows_max % block_q_multiple == 0 && tile_cells_max % block_k_multiple == 0);

/// The first is what attends where no other is bound.
constexpr AttentionOperator operators[] = {
    {.name = "flash",
     .aliases = flash_aliases,
     .features = of_all | feature_block_q | feature_block_k,
     .storage = every_storage,
     .block_q_multiple = block_q_multiple,
     .block_k_multiple = block_k_multiple,
     .block_q_max = tile_rows_max,
     .block_k_max = tile_cells_max,
     .workspace_bytes = attention_workspace_bytes,
     .run = run_tiles},
    {.name = "vanilla",
     .features = of_all | feature_dropout,
     .storage = every_storage,
     .softmax_types = in_f64 | in_f32 | in_f16 | in_bf16,
     .workspace_bytes = attention_workspace_bytes,
     .run = run_vanilla},
    {.name = "decode",
     .aliases = decode_aliases,
     .features = of_all | feature_block_k,
     .modes = mode_autoregressive,
     .storage = every_storage,
     .block_k_multiple = block_k_multiple,
     .block_k_max = tile_cells_max,
     .workspace_bytes = attention_workspace_bytes,
     .run = run_tiles},
    {.name = "ring",
     .features = of_all | feature_scan,
     .storage = every_storage,
     .workspace_bytes = attention_workspace_bytes,
     .run = run_tiles},
    // Caches that hold states attend by themselves: the name is all that there is to bind.
    {.name = "lightning",
     .features = feature_lightning | feature_grouped | feature_dims_differ | feature_transformer,
     .storage = storage_bit(StorageType::f32)}};

}  // namespace

Status CpuDevice::create(const DeviceOptions& options, std::shared_ptr<Device>* out) {
  ThreadPool* pool = nullptr;
  if (Status s = ThreadPool::create(options.n_threads, &pool); s != Status::ok) return s;
  const Allocator allocator = options.allocator ? *options.allocator : Allocator{};
  std::unique_ptr<Device> device(new (std::nothrow) CpuDevice(pool, allocator));
  if (!device) {
    ThreadPool::destroy(pool);
    return fail(Status::out_of_memory, "the process has no memory for the object of a device");
  }
  *out = std::move(device);
  return Status::ok;
}

CpuDevice::~CpuDevice() { ThreadPool::destroy(pool_); }

DeviceInfo CpuDevice::info() const noexcept {
  return {.least_shared_prefix = least_shared_prefix,
          .n_threads = pool_->n_threads(),
          .instruction_set = kernels().name};
}

void* CpuDevice::allocate(Place, size_t bytes, bool prefault) noexcept {
  if (bytes == 0) bytes = 1;
  if (!allocator_.alloc) return map_pages(bytes, prefault);
  void* block = [&] {
    const FloatEnvironmentAroundCallback around;
    return allocator_.alloc(allocator_.user, bytes, alignment_for(bytes));
  }();
  if (block) std::memset(block, 0, bytes);
  return block;
}

void CpuDevice::release(Place, void* block, size_t bytes) noexcept {
  if (!block) return;
  if (bytes == 0) bytes = 1;
  if (!allocator_.alloc) {
    munmap(block, whole_pages(bytes, system_page()));
  } else if (allocator_.free) {
    const FloatEnvironmentAroundCallback around;
    allocator_.free(allocator_.user, block, bytes, alignment_for(bytes));
  }
}

const AttentionOperator* CpuDevice::attention_operator(int32_t index) const noexcept {
  return index >= 0 && static_cast<size_t>(index) < std::size(operators) ? &operators[index]
                                                                         : nullptr;
}

size_t CpuDevice::workspace_bytes(const AttentionBounds& bounds) const noexcept {
  if (bounds.max_batch == 0) return 0;  // a cache without attention over keys
  size_t most = 0;
  for (const AttentionOperator& op : operators) {
    if (op.workspace_bytes != nullptr)
      most = std::max(most, op.workspace_bytes(bounds, pool_->n_threads()));
  }
  return most;
}

size_t CpuDevice::lightning_workspace_bytes(const LightningBounds& bounds) const noexcept {
  return cpu::lightning_workspace_bytes(bounds, pool_->n_threads());
}

Status CpuDevice::attach(const AttentionBounds& bounds, const WorkspaceBlocks& workspace,
                         std::unique_ptr<CacheDevice>* out) noexcept {
  out->reset(new (std::nothrow) CpuCacheDevice(*pool_, bounds, workspace.on_device));
  return *out ? Status::ok
              : fail(Status::out_of_memory,
                     "the process has no memory for a cache's part of the device");
}

}  // namespace kvc::cpu
