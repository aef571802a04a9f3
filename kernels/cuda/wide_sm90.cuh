#pragma once
#include "kernels/cuda/kernel.cuh"
#include "kernels/cuda/warp_columns.cuh"
#include "kernels/cuda/wide_sm90_copies.cuh"

/// Attention of many columns on GPUs of compute capability 9.0, over K and V in f16 or bf16, of up to D dimensions.
///
/// A block is three groups of four warps. One copies K and V of steps of tokens to shared memory; two multiply, 64 columns each:
///
///   copies      waits until a stage is empty │ cells and positions of the step │ its rows, which arrive by themselves
///   multiplies  has the scores S of a step │ begins S = Q · K' of the next │ weights P, meanwhile │ values O += P · V │ leaves
///               the stage
///
/// So products run while a group makes weights: its own, and those of the other. Q lies in shared memory, S becomes the left factor P
/// where it is, in registers.
///
/// Q and P are sums of `parts` 16-bit numbers, as in wide.cuh. Tensor cores cut off when they add: smaller parts are added first,
/// before a sum is large, and each step's products with V start at zero; where factors may be rounded, parts is 1, and they
/// go on from the sums before.
namespace kvc::cuda {

/// A group that multiplies.
template <class T, int D, int parts>
class Sm90Products {
  using Layout = WideSm90Layout<D, parts>;
  using Stage = Sm90Stage<Layout>;
  using Columns = WarpColumns<T, D, parts, Layout::tokens>;
  static constexpr int tokens = Layout::tokens;
  static constexpr int v_steps = tokens / 16;  // products with 16 tokens of V
  static constexpr bool is_scaled = T::has_small_range;
  static constexpr Element element = is_scaled ? Element::f16 : Element::bf16;

 public:
  KVC_DEVICE explicit Sm90Products(const AttentionArguments& a)
      : item_{a},
        a_(a),
        lane_(thread_index() % 32),
        group_(Sm90Group::index()),
        columns_(16 * uniform(thread_index() / 32)) {}

  KVC_DEVICE void serve(int64_t index) {
    item_.begin([&] { return Task::of_launch(a_, index); });
    const Task& task = Item::task();
    const bool is_used = Layout::group_columns * group_ < task.n_used;
    columns_.clear();
    if (task.begin() < task.end()) {
      item_.for_each_segment(task.begin(), task.end(), [&](int offset, int from, int to) {
        if (is_used) stage_queries(offset);
        run(from, to, is_used);
      });
    }
    Sm90Multiplying::sync();  // rows lie where stages and queries do
    columns_.write(rows(), Layout::row_floats, merged(), merged() + Layout::columns);
    Sm90Multiplying::sync();
    item_.finish<Sm90Multiplying>(rows(), Layout::row_floats, merged(),
                                           merged() + Layout::columns, flag());
  }

 private:
  KVC_DEVICE static float* rows() { return reinterpret_cast<float*>(shared_memory() + Layout::rows_at); }
  KVC_DEVICE static float* merged() { return reinterpret_cast<float*>(shared_memory() + Layout::merged_at); }
  KVC_DEVICE static int32_t* flag() { return reinterpret_cast<int32_t*>(shared_memory() + Layout::flag_at); }
  KVC_DEVICE double* rotation() const {
    return reinterpret_cast<double*>(shared_memory() + Layout::rotations_at) + group_ * D;
  }
  /// A part of the queries of this group's columns, from the beginning of shared memory.
  KVC_DEVICE int queries_at(int part) const {
    return Layout::queries_at + part * Layout::part_bytes +
           group_ * Layout::n_planes * Layout::query_plane_bytes;
  }

  // ---- Queries -----------------------------------------------------------------------------------------------------------------

  /// Of a segment whose keys owe a rotation by `offset`.
  KVC_DEVICE void stage_queries(int offset) {
    const bool turns = offset != 0 && a_.rope_dims > 0;
    const bool is_exact = a_.q.element == element && !turns;
    query_parts_ = is_exact ? 1 : parts;
    Sm90Group::sync();  // those of the segment before are not read any more
    if (turns) item_.stage_rotation<Sm90Group>(rotation(), offset);
    if (is_scaled) scale_queries(is_exact);
    if (turns || is_scaled) Sm90Group::sync();
    store_queries(turns ? rotation() : nullptr);
    Sm90Group::sync();  // each step publishes them
  }

  /// What is already f16 stays as it was.
  KVC_DEVICE void scale_queries(bool is_exact) const {
    const int end = Layout::group_columns * (group_ + 1), n_used = Item::task().n_used;
    for (int c = Layout::group_columns * group_ + columns_.first() / 16 % 4; c < end && c < n_used; c += 4) {
      const float undone = item_.unscale_of(Item::column(c), lane_);
      if (lane_ == 0) Item::column(c).unscale = is_exact ? a_.q_factor : undone;
    }
  }

  KVC_DEVICE void store_queries(const double* table) const {
    for (int i = Sm90Group::thread(); i < Layout::group_columns * D / 2; i += Sm90Group::n) {
      const int row = i / (D / 2), dim = i % (D / 2) * 2, c = Layout::group_columns * group_ + row;
      float x = 0, y = 0;
      if (c < Item::task().n_used && dim < a_.k.dim) {
        const Column& column = Item::column(c);
        const float scale = 1.0f / column.unscale;  // powers of two
        x = item_.turned_query(column, dim, table) * scale;
        y = item_.turned_query(column, dim + 1, table) * scale;
      }
      const int at = dim / 64 * Layout::query_plane_bytes + row * 128 +
                     (dim % 64 / 8 ^ row % 8) * 16 + dim % 8 * 2;
      for (int part = 0; part < query_parts_; ++part) {
        const uint32_t pair = T::pack(x, y);
        *reinterpret_cast<uint32_t*>(shared_memory() + queries_at(part) + at) = pair;
        x -= T::low(pair);
        y -= T::high(pair);
      }
    }
  }

  // ---- Steps --------------------------------------------------------------------------------------------------------------------

  /// The seen coordinates [begin, end), a step at a time. A group without columns leaves each stage to the other.
  KVC_DEVICE void run(int begin, int end, bool is_used) {
    typename Columns::Scores next;
    if (is_used) {
      const Stage first(step_);
      wait_for_phase(first.full(), first.parity);
      begin_keys(first, query_parts_ * Layout::n_planes, next);
      wait_for_products<0>(next);
    }
    KVC_NO_UNROLL for (int u0 = begin; u0 < end; u0 += tokens) {
      const Stage stage(step_);
      if (is_used) {
        multiply(stage, u0, end, next);
      } else {
        wait_for_phase(stage.full(), stage.parity);
      }
      ++step_;
      sync_warp();
      if (lane_ == 0) arrive(stage.empty());
    }
  }

  /// What this group's columns make of the tokens from u0 on. `next` are products with their keys, and become those of the next
  /// step. Behind the last step there is none, but the compiler waits at once for what is begun under a condition: so a few products
  /// that nobody looks at are.
  KVC_DEVICE void multiply(const Stage& stage, int u0, int end, typename Columns::Scores& next) {
    const uint32_t of_lane = lane_ % 16 * 128 + (lane_ / 16 ^ lane_ % 8) * 16;
    const auto load_values = [&](uint32_t (&values)[4], int j, int i) {
      const uint32_t tokens_16 = stage.values() + i / 4 * Layout::plane_bytes + j * 16 * 128;
      load_matrices_transposed(values, (tokens_16 + of_lane) ^ i % 4 * 32);
    };
    typename Columns::Scores s;
    typename Columns::Seen seen = {};
    typename Columns::Weights weights;
    float fade[2];
    KVC_UNROLL for (int e = 0; e < 4; ++e) {
      const float factor = a_.score_factor * Item::column(columns_.column_of(e / 2)).unscale;
      KVC_UNROLL for (int i = 0; i < Columns::eights; ++i) s[i][e] = next[i][e] * factor;
    }
    const bool is_last = u0 + tokens >= end;
    const Stage ahead(is_last ? step_ : step_ + 1);
    wait_for_phase(ahead.full(), ahead.parity);
    begin_keys(ahead, is_last ? 1 : query_parts_ * Layout::n_planes, next);
    columns_.finish_scores(item_, s, stage.cells(), stage.positions(), u0, end);
    columns_.soften(s, fade);
    // The warps of a group multiply together, so they decide alike: now, for nothing holds both scores and their parts.
    const bool apart = may_hide(u0, end) && Columns::has_infinite_values(load_values);
    if (apart) Columns::find_seen(s, seen);
    Columns::split_weights(s, weights);
    if (apart) {
      columns_.fade_sums(fade);
      columns_.add_values_apart(seen, weights, a_.v.dim, load_values);
    } else {
      add_values(stage, weights, fade);
    }
    wait_for_products<0>(next);
  }

  KVC_DEVICE bool may_hide(int u0, int end) const {
    return Columns::is_boundary(u0, end) || a_.bias.data != nullptr || a_.mask.data != nullptr ||
           a_.seen != nullptr;
  }

  /// Begins products of queries and keys, a part and 64 dims at a time: the last n of them, where small parts come first.
  KVC_DEVICE void begin_keys(const Stage& stage, int n, typename Columns::Scores& s) const {
    publish_shared();
    KVC_UNROLL for (int i = 0; i < Columns::eights; ++i) KVC_UNROLL for (int e = 0; e < 4; ++e) s[i][e] = 0;
    n = uniform(n);  // where the compiler knew that it is 1, it would wait for each product
    KVC_NO_UNROLL do {
      fence_products();
      --n;
      const int plane = Layout::n_planes - 1 - n % Layout::n_planes;
      const uint32_t queries = shared_address() + queries_at(n / Layout::n_planes) +
                               plane * Layout::query_plane_bytes;
      const uint32_t keys = stage.keys() + plane * Layout::plane_bytes;
      KVC_UNROLL for (int skipped = 0; skipped < 128; skipped += 32)
        multiply_shared<T, tokens>(s, matrix_at(queries + skipped, 0),
                                   matrix_at(keys + skipped, 0), true);
      end_product_group();
    } while (n > 0);
  }

  KVC_DEVICE void add_values(const Stage& stage, const typename Columns::Weights& weights,
                             const float (&fade)[2]) {
    if constexpr (parts == 1) {
      columns_.fade_sums(fade);
      multiply_values<D>(stage.values(), weights, columns_.sums, true);
    } else {
      float sums[8][4] = {};
      // The compiler does not see that it is false, or it would take registers for the sums of each plane.
      const bool goes_on = query_parts_ == 0;
      KVC_UNROLL for (int plane = 0; plane < Layout::n_planes; ++plane) {
        multiply_values<64>(stage.values() + plane * Layout::plane_bytes, weights, sums, goes_on);
        KVC_UNROLL for (int i = 0; i < 8; ++i) {
          KVC_UNROLL for (int e = 0; e < 4; ++e) {
            float& sum = columns_.sums[8 * plane + i][e];
            sum = multiply_add(sum, fade[e / 2], sums[i][e]);
          }
        }
      }
    }
  }

  /// Sums of n dims, whose values begin there. `goes_on`: they are added to what is there.
  template <int n>
  KVC_DEVICE void multiply_values(uint32_t values, const typename Columns::Weights& weights,
                                  float (&sums)[n / 8][4], bool goes_on) const {
    fence_products();
    KVC_UNROLL for (int part = parts - 1; part >= 0; --part)
      KVC_UNROLL for (int j = 0; j < v_steps; ++j)
        multiply_registers<T, n>(sums, weights[j][part],
                                 matrix_at(values + j * 16 * 128, Layout::plane_bytes),
                                 goes_on || part < parts - 1 || j > 0);
    end_product_group();
    wait_for_products<0>(sums);
  }

  const Item item_;
  const AttentionArguments& a_;
  const int lane_, group_;
  int query_parts_;
  Columns columns_;
  int step_ = 0;
};

template <class T, int D, int parts>
KVC_GLOBAL void KVC_LAUNCH_BOUNDS(384, 1) attend_wide_sm90(KVC_PARAMS(MappedArguments) mapped) {
#if defined(KVC_SIMT) || defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using Layout = WideSm90Layout<D, parts>;
  const AttentionArguments& a = mapped.call;
  const int64_t n = int64_t{launched(a).n_parts} * a.shape.turns();
  init_stages<Layout>(mapped);
  if (Sm90Group::index() == 2) {
    give_registers<Layout::registers_to_copy>();
    Sm90Copies<Layout> copies(mapped);
    for (int64_t i = block_index(); i < n; i += n_blocks()) copies.serve();
  } else {
    take_registers<Layout::registers_to_multiply>();
    Sm90Products<T, D, parts> products(a);
    for (int64_t i = block_index(); i < n; i += n_blocks()) products.serve(i);
  }
#endif
}

}  // namespace kvc::cuda
