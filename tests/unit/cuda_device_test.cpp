// The CUDA device over the simulation beside the CPU: random calls of a cache's part, whose memory must end up with the same
// bytes. Nothing is waited for in between, so work that is out of order or reads what has gone shows.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <iostream>
#include <memory>
#include <numeric>
#include <vector>

#include "core/base/half.hpp"
#include "kernels/cpu/cpu_device.hpp"
#include "kernels/cuda/cache_device.hpp"
#include "kernels/cuda/device.hpp"
#include "kernels/cuda/elements.cuh"
#include "kernels/cuda/pass.hpp"
#include "support/random.hpp"
#include "tests/simt/runtime_simt.hpp"

namespace {

using namespace kvc;
using support::Random;

std::shared_ptr<Device> open_cpu() {
  std::shared_ptr<Device> device;
  EXPECT_EQ(cpu::CpuDevice::create({.n_threads = 1}, &device), Status::ok);
  return device;
}

std::shared_ptr<Device> open_cuda(int32_t ordinal = 0) {
  std::shared_ptr<Device> device;
  EXPECT_EQ(cuda::CudaDevice::create(ordinal, open_cpu(), &device), Status::ok) << last_message();
  return device;
}

struct Shape {
  int32_t k_heads = 2, v_heads = 2, dim_k = 8, dim_v = 8, n_cells = 64;
  StorageType type_k = StorageType::f32, type_v = StorageType::f32;
  size_t gap = 0;  // between heads
  bool interleaved = false, v_in_k = false;
  int32_t block_k = 0, block_v = 0;  // of nf4
  bool rotated = false;              // what can be
};

constexpr int32_t n_entries = 8192;
constexpr int32_t max_tokens = 1000;
constexpr size_t tensor_bytes = size_t{1} << 20;

/// The memory of a cache on one device, and tensors: a part that calls read, and one that they write.
class Side {
 public:
  Side(std::shared_ptr<Device> device, const Shape& shape) : device_(std::move(device)) {
    const AttentionBounds bounds = {n_entries,   max_tokens,       8, shape.k_heads, shape.dim_k,
                                    shape.dim_v, seen_words(shape)};
    const size_t workspace = device_->workspace_bytes(bounds);
    bytes_ = slab_bytes + workspace + 2 * tensor_bytes;
    block_ = static_cast<std::byte*>(device_->allocate(Place::device, bytes_, false));
    EXPECT_NE(block_, nullptr);
    storage_ = storage_over(block_ + workspace, shape);
    tensors_ = block_ + workspace + slab_bytes;
    on_host_.resize(device_->host_workspace_bytes(bounds));
    const WorkspaceBlocks given = {block_, on_host_.data()};
    EXPECT_EQ(device_->attach(bounds, given, &on_device_), Status::ok) << last_message();
    Carver carver(block_);
    on_cuda_.carve(bounds, carver);
  }
  ~Side() {
    on_device_.reset();
    device_->release(Place::device, block_, bytes_);
  }
  Side(const Side&) = delete;
  Side& operator=(const Side&) = delete;

  CacheDevice& calls() { return *on_device_; }
  const LayerStorage& storage() const { return storage_; }
  std::byte* read_tensors() const { return tensors_; }
  std::byte* written_tensors() const { return tensors_ + tensor_bytes; }
  /// Of the CUDA device alone.
  const cuda::CacheWorkspace& on_cuda() const { return on_cuda_; }

  static constexpr size_t slab_bytes = size_t{1} << 20;
  /// Words with a bit for every cell that a list names, or some more.
  static int64_t seen_words(const Shape& shape) { return shape.n_cells / 64 + 2; }

 private:
  /// Codes, and behind them scales.
  static Slab slab_over(std::byte* data, const RowRequest& request, int32_t n_heads,
                        const Shape& shape) {
    Slab slab;
    EXPECT_EQ(resolve_row_format(request, &slab.format), Status::ok) << last_message();
    slab.n_heads = n_heads;
    slab.n_cells = shape.n_cells;
    const auto place = [&](Plane& plane, size_t row_bytes) {
      if (row_bytes == 0) return;
      plane.row_bytes = plane.row_stride = row_bytes;
      plane.head_stride = row_bytes * static_cast<size_t>(shape.n_cells) + shape.gap;
      plane.data = data;
      data += (plane.head_stride * static_cast<size_t>(n_heads) + 63) / 64 * 64;
    };
    place(slab.codes, slab.format.code_bytes());
    place(slab.scales, slab.format.scale_bytes());
    static const std::vector<float> head_scales = some_head_scales();
    if (is_f8(request.type)) slab.head_scale = head_scales.data();
    return slab;
  }
  static std::vector<float> some_head_scales() {
    std::vector<float> scales;
    for (int32_t head = 0; head < 400; ++head)
      scales.push_back(std::ldexp(1.0f + static_cast<float>(head) / 400, head % 7 * 3 - 12));
    return scales;
  }
  static bool is_rotated(const Shape& shape, StorageType type) {
    return shape.rotated && !is_plain(type) && !is_f8(type);
  }

  static LayerStorage storage_over(std::byte* data, const Shape& shape) {
    LayerStorage storage;
    storage.k = slab_over(
        data, {"k", shape.type_k, shape.dim_k, shape.block_k, is_rotated(shape, shape.type_k)},
        shape.k_heads, shape);
    storage.v = slab_over(
        data + slab_bytes / 2,
        {"v", shape.type_v, shape.dim_v, shape.block_v, is_rotated(shape, shape.type_v)},
        shape.v_heads, shape);
    Plane &k = storage.k.codes, &v = storage.v.codes;
    if (shape.interleaved) {
      k.row_stride += v.row_bytes;
      k.head_stride = k.row_stride * static_cast<size_t>(shape.n_cells) + shape.gap;
    }
    if (shape.interleaved || shape.v_in_k) {
      v.data = k.data + (shape.v_in_k ? 0 : k.row_bytes);
      v.row_stride = k.row_stride;
      v.head_stride = k.head_stride;
    }
    if (shape.v_in_k) storage.v.scales = storage.k.scales;
    storage.v_in_k = shape.v_in_k;
    return storage;
  }

  std::shared_ptr<Device> device_;
  std::unique_ptr<CacheDevice> on_device_;
  std::vector<std::byte> on_host_;
  std::byte* block_ = nullptr;
  std::byte* tensors_ = nullptr;
  cuda::CacheWorkspace on_cuda_;
  LayerStorage storage_;
  size_t bytes_ = 0;
};

class Beside {
 public:
  Beside(const Shape& shape, uint64_t seed)
      : shape_(shape),
        random_(seed),
        cpu_(open_cpu(), shape),
        cuda_(open_cuda(), shape),
        cell_(n_entries),
        position_(n_entries) {
    for (Side* side : {&cpu_, &cuda_}) {
      Random numbers(seed);
      std::byte* const at = on_host(side->read_tensors());
      for (size_t i = 0; i < tensor_bytes; ++i)
        at[i] = static_cast<std::byte>(numbers.bits()) & std::byte{0xbf};  // finite numbers
    }
    for (size_t i = 0; i < cell_.size(); ++i) {
      cell_[i] = static_cast<int32_t>(i) % shape.n_cells;
      position_[i] = static_cast<int32_t>(i);
    }
    changes_ = {{0, n_entries}};
  }

  void call_something() {
    switch (random_.below(9)) {
      case 0: return begin();
      case 1: return store();
      case 2: return store_codes();
      case 3: return load();
      case 4: return move();
      case 5: return copy();
      case 6: return clear();
      case 7: return mask();
      default: return raw();
    }
  }

  void compare(const char* when) {
    compare(cpu_.storage().k.codes.data, cuda_.storage().k.codes.data, Side::slab_bytes, "slabs",
            when);
    compare(cpu_.written_tensors(), cuda_.written_tensors(), tensor_bytes, "tensors", when);
    begin();  // the last changes
    const int32_t* const cells = simt::device::on_host(cuda_.on_cuda().cell);
    const int32_t* const positions = simt::device::on_host(cuda_.on_cuda().position);
    for (size_t i = 0; i < cell_.size(); ++i) {
      ASSERT_EQ(cells[i], cell_[i]) << "entry " << i << when;
      ASSERT_EQ(positions[i], position_[i]) << "entry " << i << when;
    }
  }

 private:
  static std::byte* on_host(std::byte* address) {
    std::byte* const device = simt::device::on_host(address);
    return device != nullptr ? device : address;
  }
  void compare(std::byte* cpu, std::byte* cuda, size_t n, const char* what, const char* when) {
    const std::byte* const device = simt::device::on_host(cuda);
    for (size_t i = 0; i < n; ++i)
      ASSERT_EQ(static_cast<int>(cpu[i]), static_cast<int>(device[i]))
          << what << " byte " << i << when;
  }

  /// The same call on both sides.
  template <class Call>
  void both(Call call) {
    for (Side* side : {&cpu_, &cuda_}) ASSERT_EQ(call(*side), Status::ok) << last_message();
  }

  int32_t some_tokens() {
    if (random_.chance(0.2)) return random_.chance(0.5) ? 0 : shape_.n_cells;
    return random_.between(1, shape_.n_cells);
  }

  /// Cells, none twice.
  std::vector<int32_t> some_cells(int32_t n, bool with_none) {
    std::vector<int32_t> cells(static_cast<size_t>(shape_.n_cells));
    std::iota(cells.begin(), cells.end(), 0);
    for (size_t i = cells.size(); i > 1; --i)
      std::swap(cells[i - 1], cells[static_cast<size_t>(random_.below(static_cast<int32_t>(i)))]);
    cells.resize(static_cast<size_t>(n));
    for (int32_t& cell : cells) {
      if (with_none && random_.chance(0.1)) cell = -1;
    }
    return cells;
  }

  /// [n, heads, dim] of any type and strides. `data` is a place in a side's tensors.
  Tensor some_tensor(int32_t n, int32_t heads, int32_t dim, DType dtype) {
    Tensor tensor;
    tensor.ndim = 3;
    tensor.dtype = dtype;
    tensor.shape[0] = n;
    tensor.shape[1] = heads;
    tensor.shape[2] = dim;
    tensor.stride[2] = random_.chance(0.3) ? 2 : 1;
    const int64_t row = tensor.stride[2] * dim + random_.below(3);
    if (random_.chance(0.3)) {  // heads outside
      tensor.stride[0] = row;
      tensor.stride[1] = row * std::max(n, 1);
    } else {
      tensor.stride[1] = row;
      tensor.stride[0] = row * heads;
    }
    if (n % 4 == 0 && random_.chance(0.3)) {  // rows of a batch, apart
      tensor.fold = 4;
      const bool heads_outside = tensor.stride[1] > tensor.stride[0];
      tensor.fold_stride = tensor.stride[0] * 4 + (heads_outside ? row : row * heads);
      tensor.stride[1] = heads_outside ? row * n * 3 : row;
    }
    return tensor;
  }
  DType some_type() { return random_.pick({DType::f32, DType::f16, DType::bf16}); }
  size_t somewhere(int64_t element) {
    return static_cast<size_t>(random_.below(64)) * static_cast<size_t>(element);
  }
  static Tensor at(Tensor tensor, std::byte* data) {
    tensor.data = data;
    return tensor;
  }

  void begin() {
    for (int32_t i = random_.below(3); i > 0; --i) {
      const bool is_long = random_.chance(0.1);
      const int64_t first = is_long ? 0 : random_.below(n_entries),
                    end = is_long ? n_entries
                                  : std::min<int64_t>(n_entries, first + random_.below(500));
      const int32_t from = random_.below(shape_.n_cells);
      const double following = is_long ? 0.5 : 0.9;
      for (int64_t e = first; e < end; ++e) {
        const bool follows = random_.chance(following);
        cell_[static_cast<size_t>(e)] = (follows ? from + static_cast<int32_t>(e - first)
                                                 : random_.below(1000)) %
                                        shape_.n_cells;
        position_[static_cast<size_t>(e)] = static_cast<int32_t>(e) + random_.below(20) / 19;
      }
      changes_.push_back({first, end});
    }
    AttentionPlan plan;
    plan.tokens = {cell_.data(), position_.data()};
    const TokenChanges changes = {changes_.data(), static_cast<int32_t>(changes_.size())};
    void* const stream = reinterpret_cast<void*>(static_cast<uintptr_t>(random_.below(4)));
    both([&](Side& side) { return side.calls().begin_pass(plan, changes, stream); });
    changes_.clear();
  }

  void store() {
    const int32_t n = some_tokens();
    const std::vector<int32_t> cells = some_cells(n, true);
    const Tensor k = some_tensor(n, shape_.k_heads, shape_.dim_k, some_type());
    const Tensor v = some_tensor(n, shape_.v_heads, shape_.dim_v, some_type());
    const bool with_k = random_.chance(0.8), with_v = random_.chance(0.8);
    const size_t k_at = somewhere(4), v_at = somewhere(4) + tensor_bytes / 2;
    both([&](Side& side) {
      StoreParams params = {side.storage(), cells.data(), n, {}, {}};
      if (with_k) params.k = at(k, side.read_tensors() + k_at);
      if (with_v && !shape_.v_in_k) params.v = at(v, side.read_tensors() + v_at);
      return side.calls().store(params);
    });
  }

  void store_codes() {
    const int32_t n = some_tokens();
    const std::vector<int32_t> cells = some_cells(n, true);
    const LayerStorage& storage = cpu_.storage();
    const auto tensor = [&](const Slab& slab, int32_t elements, DType dtype) {
      return some_tensor(n, slab.n_heads, elements, dtype);
    };
    const auto codes = [&](const Slab& slab) {
      return tensor(slab, slab.format.n_codes(), format_of(slab.type()).code);
    };
    const auto scales = [&](const Slab& slab) {
      return tensor(slab, slab.format.n_scales(), format_of(slab.type()).scale);
    };
    const Tensor k = codes(storage.k), v = codes(storage.v);
    const Tensor k_scales = scales(storage.k), v_scales = scales(storage.v);
    const size_t k_at = somewhere(4), v_at = somewhere(4) + tensor_bytes / 2;
    both([&](Side& side) {
      StoreCodesParams params = {side.storage(), cells.data(), n, {}, {}, {}, {}};
      params.k = at(k, side.read_tensors() + k_at);
      if (storage.k.format.block != 0) params.k_scales = at(k_scales, side.read_tensors());
      if (shape_.v_in_k) return side.calls().store_codes(params);
      params.v = at(v, side.read_tensors() + v_at);
      if (storage.v.format.block != 0) params.v_scales = at(v_scales, side.read_tensors());
      return side.calls().store_codes(params);
    });
  }

  /// That of a layer: some dims of keys, in pairs.
  Rope some_rope() {
    Rope rope;
    const int32_t most = shape_.dim_k / 2;
    rope.n_dims = 2 * (random_.chance(0.2) ? most : random_.below(most + 1));
    rope.halves = random_.chance(0.5);
    rope.first_dim = random_.below(shape_.dim_k - rope.n_dims + 1);
    frequency_.resize(static_cast<size_t>(shape_.dim_k));
    for (size_t i = 0; i < frequency_.size(); ++i)
      frequency_[i] = 1.0 / static_cast<double>(1 + i * i);
    rope.frequency = frequency_.data();
    return rope;
  }
  std::vector<int32_t> some_offsets(int32_t n) {
    std::vector<int32_t> offsets(static_cast<size_t>(n));
    const int32_t few = random_.chance(0.5) ? 3 : 100000;
    for (int32_t& offset : offsets) offset = random_.chance(0.3) ? 0 : random_.below(few) - few / 2;
    return offsets;
  }

  void load() {
    const int32_t n = some_tokens();
    const std::vector<int32_t> cells = some_cells(n, true), rows = some_cells(n, false);
    const std::vector<int32_t> offsets = some_offsets(n);
    const Rope rope = some_rope();
    const bool has_offsets = random_.chance(0.7), has_rows = random_.chance(0.5);
    const Tensor k = some_tensor(shape_.n_cells, shape_.k_heads, shape_.dim_k, some_type());
    const Tensor v = some_tensor(shape_.n_cells, shape_.v_heads, shape_.dim_v, some_type());
    const bool with_k = random_.chance(0.8), with_v = random_.chance(0.8);
    const size_t k_at = somewhere(4), v_at = somewhere(4) + tensor_bytes / 2;
    both([&](Side& side) {
      LoadParams params = {side.storage(),
                           rope,
                           cells.data(),
                           has_offsets ? offsets.data() : nullptr,
                           has_rows ? rows.data() : nullptr,
                           n,
                           {},
                           {}};
      if (with_k) params.k = at(k, side.written_tensors() + k_at);
      if (with_v) params.v = at(v, side.written_tensors() + v_at);
      return side.calls().load(params);
    });
  }

  /// A cell may be written after it was read, not read after it was written.
  void move() {
    if (shape_.k_heads != shape_.v_heads) return;  // caches of such layers move none
    const int32_t n = random_.between(1, shape_.n_cells);
    const std::vector<int32_t> to = some_cells(n, false);
    std::vector<int32_t> from(to.size());
    std::vector<char> is_written(static_cast<size_t>(shape_.n_cells));
    for (size_t i = 0; i < to.size(); ++i) {
      do {
        from[i] = random_.chance(0.3) ? to[i] : random_.below(shape_.n_cells);
      } while (is_written[static_cast<size_t>(from[i])] != 0 && from[i] != to[i]);
      is_written[static_cast<size_t>(to[i])] = 1;
    }
    const std::vector<int32_t> offsets = some_offsets(n);
    const Rope rope = some_rope();
    const bool has_offsets = random_.chance(0.7) && is_plain(shape_.type_k);
    both([&](Side& side) {
      return side.calls().move({side.storage(), rope, from.data(), to.data(),
                                has_offsets ? offsets.data() : nullptr, n});
    });
  }

  void copy() {
    const int32_t n = random_.pick({0, 1, 3, shape_.n_cells / 2});
    const int32_t part = shape_.n_cells / (2 * std::max(n, 1));
    std::vector<CellStretch> stretches(static_cast<size_t>(n));
    for (int32_t i = 0; i < n; ++i)
      stretches[static_cast<size_t>(i)] = {2 * i * part, (2 * i + 1) * part, random_.below(part + 1)};
    const bool exchanges = random_.chance(0.5);
    both([&](Side& side) {
      return side.calls().copy({side.storage(), side.storage(), stretches.data(), n, exchanges},
                               side.calls());
    });
  }

  void clear() {
    const int32_t n = some_tokens();
    const std::vector<int32_t> cells = some_cells(n, true);
    both([&](Side& side) { return side.calls().clear({side.storage(), cells.data(), n}); });
  }

  void mask() {
    AttentionPlan plan;
    plan.tokens = {cell_.data(), position_.data()};
    plan.columns_by_list = random_.chance(0.3);
    // A list names no cell twice.
    const std::vector<int32_t> cells = some_cells(shape_.n_cells, false);
    std::copy(cells.begin(), cells.end(), cell_.begin());
    changes_.push_back({0, shape_.n_cells});
    std::vector<TokenList> lists(3);
    for (TokenList& list : lists) {
      for (int32_t piece = 0, start = random_.below(4); piece < 3; ++piece) {
        list.start[piece] = start;
        list.count[piece] = random_.below(shape_.n_cells / 4);
        list.total += list.count[piece];
        start += list.count[piece] + random_.below(4);
      }
      list.first_cell = random_.below(5);
    }
    std::vector<AttentionRow> rows;
    const int32_t room = static_cast<int32_t>(tensor_bytes) / (8 * (shape_.n_cells + 6));
    const int32_t n_tokens = random_.between(1, std::min(random_.chance(0.2) ? max_tokens : 30, room));
    const int64_t seen_words = Side::seen_words(shape_);
    std::vector<uint64_t> seen(static_cast<size_t>(n_tokens * seen_words));
    for (uint64_t& word : seen) word = random_.bits();
    for (int32_t token = 0; token < n_tokens; ++token) {
      AttentionRow row;
      row.token = n_tokens - 1 - token;
      row.list = token * 3 / n_tokens;
      const int32_t total = lists[static_cast<size_t>(row.list)].total;
      row.first_end = random_.below(total + 1);
      row.begin = random_.between(row.first_end, total);
      row.end = random_.between(row.begin, total);
      if (random_.chance(0.9)) rows.push_back(row);
    }
    std::vector<int32_t> padding(static_cast<size_t>(n_tokens) - rows.size());
    plan.rows = rows.data();
    plan.lists = lists.data();
    plan.padding = padding.data();
    plan.n_rows = static_cast<int32_t>(rows.size());
    plan.n_padding = static_cast<int32_t>(padding.size());
    plan.n_lists = 3;
    if (random_.chance(0.5)) {
      plan.seen = seen.data();
      plan.seen_words = seen_words;
    }
    Tensor into;
    into.ndim = 2;
    into.dtype = random_.pick({DType::f32, DType::f16, DType::bf16, DType::boolean});
    into.shape[0] = n_tokens;
    into.shape[1] = shape_.n_cells + 5;
    into.stride[1] = random_.pick({1, 2});
    into.stride[0] = into.shape[1] * into.stride[1] + random_.below(2);
    const bool all_visible = random_.chance(0.1);
    if (all_visible) plan.n_rows = 0;
    const TokenChanges changes = {changes_.data(), static_cast<int32_t>(changes_.size())};
    both([&](Side& side) {
      if (Status s = side.calls().begin_pass(plan, changes, nullptr); s != Status::ok) return s;
      return side.calls().write_mask({plan, at(into, side.written_tensors()), 0, all_visible});
    });
    changes_.clear();
  }

  void raw() {
    const int32_t n = some_tokens();
    const std::vector<int32_t> cells = some_cells(n, false);
    const bool of_k = random_.chance(0.5);
    const bool of_scales = random_.chance(0.3) &&
                           (of_k ? cpu_.storage().k : cpu_.storage().v).format.block != 0;
    const auto plane = [&](const Side& side) {
      const Slab& slab = of_k ? side.storage().k : side.storage().v;
      return of_scales ? slab.scales : slab.codes;
    };
    const size_t row_bytes = plane(cpu_).row_bytes;
    const auto first = static_cast<size_t>(random_.below(static_cast<int32_t>(row_bytes)));
    const size_t n_bytes = row_bytes - first;
    std::vector<std::byte> data[2];
    const bool writes = random_.chance(0.3);
    size_t index = 0;
    both([&](Side& side) {
      std::vector<std::byte>& bytes = data[index++];
      for (size_t i = 0; i < n_bytes * static_cast<size_t>(n); ++i)
        bytes.push_back(static_cast<std::byte>(i) & std::byte{0xbf});
      const RowBytes rows = {plane(side), 0, cells.data(), n, first, n_bytes, bytes.data()};
      return writes ? side.calls().write_rows(rows) : side.calls().read_rows(rows);
    });
    ASSERT_TRUE(data[0] == data[1]);
  }

  const Shape shape_;
  Random random_;
  Side cpu_, cuda_;
  std::vector<int32_t> cell_, position_;
  std::vector<TokenRange> changes_;
  std::vector<double> frequency_;
};

/// Random calls over each of the shapes.
void call_beside_the_cpu(const std::vector<Shape>& shapes, uint64_t seed) {
  std::cout << "seeds from " << seed << std::endl;
  for (const Shape& shape : shapes) {
    simt::device::set_seed(static_cast<unsigned>(seed));
    Beside beside(shape, seed);
    for (int32_t round = 0; round < 6; ++round) {
      for (int32_t i = 0; i < 40; ++i) {
        beside.call_something();
        if (testing::Test::HasFatalFailure())
          FAIL() << "seed " << seed << ", call " << i << " of round " << round;
      }
      beside.compare("");
      if (testing::Test::HasFatalFailure()) FAIL() << "seed " << seed << ", round " << round;
    }
    ++seed;
  }
}

TEST(CudaDevice, StoresWhatTheCpuStores) {
  call_beside_the_cpu(
      {{},
       {.k_heads = 3,
        .v_heads = 1,
        .dim_k = 64,
        .dim_v = 32,
        .type_k = StorageType::bf16,
        .type_v = StorageType::f16,
        .gap = 48},
       {.k_heads = 1,
        .v_heads = 2,
        .dim_k = 7,
        .dim_v = 5,
        .n_cells = 200,
        .type_k = StorageType::f16,
        .type_v = StorageType::f16,
        .gap = 2},
       {.dim_k = 16,
        .dim_v = 16,
        .type_k = StorageType::bf16,
        .type_v = StorageType::bf16,
        .interleaved = true},
       {.k_heads = 1,
        .v_heads = 1,
        .dim_k = 24,
        .dim_v = 16,
        .type_k = StorageType::f16,
        .type_v = StorageType::f16,
        .v_in_k = true},
       {.k_heads = 1, .v_heads = 1, .dim_k = 130, .dim_v = 2, .n_cells = 60},
       // More than the parameters of a launch have room for: pairs of dimensions, cells, runs, rows of masks.
       {.k_heads = 1, .v_heads = 1, .dim_k = 3100, .dim_v = 2, .n_cells = 12},
       {.k_heads = 1, .v_heads = 1, .dim_k = 2, .dim_v = 2, .n_cells = 8000}},
      20261130);
}

/// Each type as K and as V, with dimensions that are no multiple of anything, blocks of every size, and more heads, or
/// more tokens, than a launch has.
TEST(CudaDevice, StoresTheCodesThatTheCpuStores) {
  using enum StorageType;
  call_beside_the_cpu(
      {{.k_heads = 2, .v_heads = 2, .dim_k = 64, .dim_v = 32, .type_k = q8_0, .type_v = q4_0},
       {.k_heads = 2, .v_heads = 3, .dim_k = 96, .dim_v = 33, .type_k = q4_0, .type_v = int8, .gap = 8},
       {.k_heads = 3, .v_heads = 1, .dim_k = 7, .dim_v = 21, .type_k = f8_e4m3, .type_v = f8_e5m2},
       {.dim_k = 48, .dim_v = 128, .type_k = nf4, .type_v = nf4, .block_v = 128},
       {.dim_k = 64, .dim_v = 96, .type_k = nf4, .type_v = nf4, .block_k = 16, .block_v = 32},
       {.dim_k = 192, .dim_v = 64, .type_k = nf4, .type_v = q8_0, .rotated = true},
       {.dim_k = 22, .dim_v = 96, .type_k = int8, .type_v = q4_0, .gap = 4, .rotated = true},
       {.dim_k = 32, .dim_v = 64, .type_k = bf16, .type_v = q4_0, .rotated = true},
       {.k_heads = 1, .v_heads = 1, .dim_k = 96, .dim_v = 64, .type_k = q8_0, .type_v = q8_0, .v_in_k = true},
       {.k_heads = 1, .v_heads = 260, .dim_k = 4, .dim_v = 3, .n_cells = 8, .type_k = int8, .type_v = f8_e4m3},
       {.k_heads = 1, .v_heads = 1, .dim_k = 3, .dim_v = 2, .n_cells = 8000, .type_k = int8, .type_v = bf16}},
      20261201);
}

TEST(CudaDevice, UploadsMoreThanALaunchHasRoomFor) {
  const std::shared_ptr<Device> device = open_cuda();
  constexpr size_t most = 100000;
  auto* const to = static_cast<std::byte*>(device->allocate(Place::device, most + 16, false));
  Random random(1);
  for (const size_t n : {size_t{0}, size_t{1}, size_t{16}, size_t{32255}, size_t{32257}, most}) {
    std::vector<std::byte> bytes(n);
    for (std::byte& byte : bytes) byte = static_cast<std::byte>(random.bits());
    const std::vector<std::byte> wanted = bytes;
    ASSERT_EQ(cuda::upload(to, bytes.data(), n, {.most_blocks = 3}), cuda::Error::none);
    std::fill(bytes.begin(), bytes.end(), std::byte{});
    simt::device::finish();
    EXPECT_TRUE(std::equal(wanted.begin(), wanted.end(), simt::device::on_host(to))) << n;
  }
  device->release(Place::device, to, most + 16);
}

/// Of the bits of core/base/half.hpp: all of 16 bits, and the neighbours of all that round to them.
TEST(CudaDevice, ConvertsAsTheCpu) {
  for (uint32_t half = 0; half < 0x10000; ++half) {
    const auto bits = static_cast<uint16_t>(half);
    ASSERT_EQ(cuda::bits_of(cuda::f16_bits_to_f32(half)), cuda::bits_of(f16_to_f32(bits))) << half;
    for (const float x : {f16_to_f32(bits), bf16_to_f32(bits)}) {
      for (int32_t away = -2; away <= 2; ++away) {
        for (const uint32_t middle : {0u, 0xfffu, 0x1000u, 0x7fffu, 0x8000u}) {
          const float near = cuda::float_of(cuda::bits_of(x) + middle + static_cast<uint32_t>(away));
          ASSERT_EQ(cuda::f32_to_f16_bits(near), f32_to_f16(near)) << cuda::bits_of(near);
          ASSERT_EQ(cuda::f32_to_bf16_bits(near), f32_to_bf16(near)) << cuda::bits_of(near);
        }
      }
    }
  }
}

}  // namespace
