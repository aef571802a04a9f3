/// The attention kernels for CUDA for many columns on GPUs of compute capability 9.0.
#include <numeric>

#include "kernels/cuda/wide_sm90_instances.cuh"
#include "unit/cuda_wide_check.hpp"

namespace {

using namespace cuda_attention;

template <class T, int D, int parts>
void run_wide_sm90(const AttentionArguments& a) {
  MappedArguments mapped;
  ASSERT_EQ(map_rows(a, WideSm90Layout<D, parts>::tokens, &mapped), Error::none);
  attend_wide_sm90<T, D, parts>(mapped);
}

template <class T, int D, int parts = wide_parts<T>>
const KernelUnderTest& wide_sm90() {
  using Layout = WideSm90Layout<D, parts>;
  static const KernelUnderTest made = {run_wide_sm90<T, D, parts>,
                                       wide_sm90_shared_bytes<T, D, parts>, Layout::threads,
                                       Layout::columns};
  return made;
}

TEST(CudaWideSm90, OfBf16) {
  check_wide<Bf16, 64>(wide_sm90<Bf16, 64>(), 3000, {64, 64, 40}, {64, 64, 16}, 5);
  check_wide<Bf16, 128>(wide_sm90<Bf16, 128>(), 3100, {128, 96, 128, 80}, {128, 96, 72, 80}, 7);
}

TEST(CudaWideSm90, OfF16) {
  check_wide<F16, 64>(wide_sm90<F16, 64>(), 3300, {64, 64, 8}, {64, 64, 48}, 5);
  check_wide<F16, 128>(wide_sm90<F16, 128>(), 3400, {128, 96, 128, 80}, {128, 96, 72, 80}, 5);
}

TEST(CudaWideSm90, RoundsFactors) {
  check_rounded<Bf16, 64>(wide_sm90<Bf16, 64, 1>(), 3700, in_bf16);
  check_rounded<F16, 128>(wide_sm90<F16, 128, 1>(), 3730, in_f16);
}

/// What the last row alone sees, in a step behind others.
template <class T, int D>
void check_infinite(uint32_t seed) {
  for (const int32_t dim : {0, 9, D - 1}) {
    Options o{.type_k = stored_as<T>, .type_v = stored_as<T>, .head_dim_k = D, .head_dim_v = D};
    o.group = o.n_kv_heads = o.n_lists = 1;
    o.tokens_per_list = 20;
    o.history = 110;
    Case oracle(o, seed), subject(o, seed);
    for (Case* each : {&oracle, &subject})
      store_element(each->storage.v.stored(0, each->cells[0].back()).codes,
                    stored_as<T> == StorageType::f16 ? DType::f16 : DType::bf16, dim, not_a_number);
    oracle.clear_results();
    reference_attention(oracle.params());
    attend(subject, {}, {.seed = seed}, &wide_sm90<T, D>());
    compare(subject, oracle);
    if (::testing::Test::HasFatalFailure()) return;
  }
}

TEST(CudaWideSm90, HiddenValuesMayBeInfinite) {
  check_infinite<Bf16, 128>(3800);
  check_infinite<F16, 64>(3801);
}

/// What is in a cell, and whoever names it, goes to to[cell].
void move_rows(Case& subject, const std::vector<int32_t>& to) {
  for (const Slab* slab : {&subject.storage.k, &subject.storage.v}) {
    if (slab == &subject.storage.v && subject.storage.v_in_k) continue;
    const size_t row_bytes = slab->codes.row_stride;
    for (int32_t head = 0; head < slab->n_heads; ++head) {
      const std::byte* const rows = slab->row(head, 0);
      const std::vector<std::byte> before(rows, rows + to.size() * row_bytes);
      for (size_t cell = 0; cell < to.size(); ++cell)
        std::copy_n(before.data() + cell * row_bytes, row_bytes, slab->row(head, to[cell]));
    }
  }
  const std::vector<int32_t> rotated_for = subject.rotated_for;
  for (size_t cell = 0; cell < to.size(); ++cell)
    subject.rotated_for[static_cast<size_t>(to[cell])] = rotated_for[cell];
  for (int32_t& cell : subject.token_cells) cell = to[static_cast<size_t>(cell)];
}

/// Cell i of the case becomes that of the i-th token, of one list after another.
void line_up(Case& subject) {
  std::vector<int32_t> to(static_cast<size_t>(subject.n_cells), -1);
  int32_t next = 0;
  for (const int32_t cell : subject.token_cells) to[static_cast<size_t>(cell)] = next++;
  for (int32_t& each : to)
    if (each < 0) each = next++;
  move_rows(subject, to);
}

/// Exchanges cells a and a + distance for a = first, first + every, ….
void exchange(Case& subject, int32_t first, int32_t every, int32_t distance) {
  std::vector<int32_t> to(static_cast<size_t>(subject.n_cells));
  std::iota(to.begin(), to.end(), 0);
  for (int32_t a = first; a + distance < subject.n_cells; a += every)
    std::swap(to[static_cast<size_t>(a)], to[static_cast<size_t>(a + distance)]);
  move_rows(subject, to);
}

void turn_around(Case& subject) {
  std::vector<int32_t> to(static_cast<size_t>(subject.n_cells));
  std::iota(to.rbegin(), to.rend(), 0);
  move_rows(subject, to);
}

/// Each list counts its cells from a cell of its own.
void count_from_first_cells(Case& subject) {
  for (TokenList& list : subject.lists) {
    int32_t* const begin = subject.token_cells.data() + list.start[0];
    list.first_cell = *std::min_element(begin, begin + list.total);
    for (int32_t i = 0; i < list.total; ++i) begin[i] -= list.first_cell;
  }
}

/// Boxes are copied where rows lie one behind the other, and results do not depend on that.
template <class T, int D, int parts = wide_parts<T>>
void check_any_cells(const Options& o, uint32_t seed) {
  SCOPED_TRACE(describe(o, seed));
  Case oracle(o, seed);
  oracle.clear_results();
  reference_attention(oracle.params());
  std::vector<std::byte> bits;
  const auto boxes_of = [&](const char* cells, auto arrange) -> uint64_t {
    SCOPED_TRACE(cells);
    Case subject(o, seed);
    line_up(subject);
    arrange(subject);
    simt::Statistics made;
    attend(subject, {}, {.seed = seed, .loads = &made}, &wide_sm90<T, D, parts>());
    if (bits.empty()) {
      bits = subject.out;
      compare(subject, oracle);
    }
    EXPECT_EQ(std::memcmp(bits.data(), subject.out.data(), bits.size()), 0);
    return made.boxes;
  };
  const uint64_t boxes = boxes_of("in a row", [](Case&) {});
  EXPECT_EQ(boxes_of("from a cell of each list's own", count_from_first_cells), boxes);
  EXPECT_EQ(boxes_of("two in each step exchanged", [](Case& c) { exchange(c, 3, 29, 1); }), 0u);
  EXPECT_LE(boxes_of("the last of steps exchanged", [](Case& c) { exchange(c, 63, 128, 64); }), boxes);
  EXPECT_EQ(boxes_of("the other way round", turn_around), 0u);
  EXPECT_TRUE(boxes > 0 || launch_elsewhere != nullptr);
}

TEST(CudaWideSm90, HasTheSameBitsFromAnyCells) {
  Options o{.type_k = StorageType::bf16, .type_v = StorageType::bf16, .dtype_q = DType::bf16};
  o.head_dim_k = o.head_dim_v = 64;
  o.group = 3;
  o.n_kv_heads = 2;
  o.tokens_per_list = 30;
  o.history = 220;  // the last step of a list is not full
  check_any_cells<Bf16, 64>(o, 3900);
  o.n_kv_heads = 1;
  o.window = true;  // what is seen has a hole
  check_any_cells<Bf16, 64>(o, 3901);
  o = {.type_k = StorageType::f16, .type_v = StorageType::f16, .head_dim_k = 112, .head_dim_v = 40};
  o.n_lists = o.n_kv_heads = 1;
  o.tokens_per_list = 30;
  o.history = 150;
  o.runtime_type = in_f16;
  check_any_cells<F16, 128, 1>(o, 3902);
  o.v_in_k = true;
  check_any_cells<F16, 128, 1>(o, 3903);
}

/// Tensor maps are of whole 16 bytes, as all that wide kernels copy. Other rows are none of theirs.
TEST(CudaWideSm90, RowsThatCannotBeMapped) {
  alignas(16) static const char bytes[64] = {};
  const MappedRows right = {.data = bytes,
                            .row_stride = 16,
                            .head_stride = 64,
                            .dim = 8,
                            .n_rows = 4,
                            .n_heads = 1,
                            .box_rows = 4};
  RowMap map;
  EXPECT_EQ(runtime::map_rows(right, &map), Error::none);
  MappedRows wrong[5] = {right, right, right, right, right};
  wrong[0].data = bytes + 8;
  wrong[1].row_stride = 24;
  wrong[2].head_stride = 72;
  wrong[3].head_stride = int64_t{1} << 40;
  wrong[4].box_rows = 257;
  for (const MappedRows& rows : wrong)
    EXPECT_EQ(runtime::map_rows(rows, &map), Error::invalid_value) << &rows - wrong;

  Case subject({.type_k = StorageType::f16, .type_v = StorageType::f16}, 1);
  const Abilities abilities = {.shared_bytes_max = 227 << 10, .is_sm90 = true};
  const AttentionArguments a = arguments_of(subject.params(), {});
  EXPECT_NE(wide_kernel_for(a, abilities), nullptr);
  AttentionArguments others[5] = {a, a, a, a, a};
  others[0].k.data += 8;
  others[1].v.row_stride += 8;
  others[2].v.head_stride += 8;
  others[3].k.dim -= 4;
  others[4].v.element = Element::bf16;
  for (const AttentionArguments& other : others)
    EXPECT_EQ(wide_kernel_for(other, abilities), nullptr) << &other - others;
}

/// On another device, and of dimensions that it lacks, wide tiles are those of the kernel for all devices.
TEST(CudaWideSm90, ServesOneGeneration) {
  const auto columns = [](const Options& o, const Abilities& abilities) {
    Case subject(o, 1);
    const AttentionKernel* const kernel = wide_kernel_for(arguments_of(subject.params(), {}),
                                                          abilities);
    return kernel == nullptr ? 0 : kernel->columns;
  };
  const Abilities sm90 = {.shared_bytes_max = 227 << 10, .is_sm90 = true},
                  sm80 = {.shared_bytes_max = 163 << 10};
  for (const uint32_t runtime_type : {in_f32, in_bf16}) {
    for (const StorageType type : {StorageType::f16, StorageType::bf16}) {
      Options o{.type_k = type, .type_v = type, .head_dim_k = 128, .head_dim_v = 64};
      o.runtime_type = runtime_type;
      EXPECT_EQ(columns(o, sm90), wide_columns_max);
      EXPECT_EQ(columns(o, sm80), wide_columns);
      o.head_dim_k = 256;
      EXPECT_EQ(columns(o, sm90), wide_columns);
    }
  }
}

}  // namespace
