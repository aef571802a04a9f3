#pragma once
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/attention/params.hpp"
#include "core/base/half.hpp"
#include "kernels/cpu/kernel_table.hpp"

/// Random attention calls with every option, for tests of kernels.
namespace attention_case {

using namespace kvc;

constexpr float infinity = std::numeric_limits<float>::infinity();
constexpr float not_a_number = std::numeric_limits<float>::quiet_NaN();
constexpr DType dtypes[] = {DType::f32, DType::f16, DType::bf16};
constexpr StorageType plain_types[] = {StorageType::f32, StorageType::f16, StorageType::bf16};

/// Which options a random case uses.
struct Options {
  StorageType type_k = StorageType::f32;
  StorageType type_v = StorageType::f32;
  bool rotate = false;  // what can be
  bool v_in_k = false;  // V is the last dims of K, by head_dim_v
  DType dtype_q = DType::f32;
  DType dtype_out = DType::f32;
  int32_t group = 4;
  int32_t n_kv_heads = 2;
  int32_t head_dim_k = 64;
  int32_t head_dim_v = 64;
  int32_t n_lists = 2;
  int32_t tokens_per_list = 3;
  int32_t history = 300;  // tokens of a list, about
  bool in_a_row = false;  // long runs of consecutive cells
  bool softcap = false;
  bool slopes = false;
  bool sinks = false;
  bool lse = false;
  bool shifts = false;
  bool halves = false;
  int32_t first_rope_dim = 0;
  bool window = false;       // a reach and a kept-first part, so rows see two ranges
  bool wild_ranges = false;  // any ranges, some rows see nothing
  bool sees_later = false;
  bool hidden_nan = false;  // NaN and infinity in what some rows do not see
  bool strided = false;
  bool shared = false;  // all lists share most of their history
  bool bias = false;    // in the queries' type; every eighth is minus infinity, which hides
  bool mask = false;    // one for all heads; every fourth hides
  bool weights = false;
  float query_size = 1;
  uint32_t runtime_type = in_f32;
};

/// Calls check(options, seed) with every option, and every pair of them, over small calls of all types.
template <class Check>
void for_each_pair_of_options(const std::vector<bool Options::*>& more, uint32_t seed, Check check) {
  std::vector<bool Options::*> flags = {
      &Options::softcap, &Options::slopes, &Options::sinks,      &Options::lse,
      &Options::shifts,  &Options::halves, &Options::window,     &Options::wild_ranges,
      &Options::bias,    &Options::mask,   &Options::sees_later, &Options::hidden_nan,
      &Options::strided, &Options::weights};
  flags.insert(flags.end(), more.begin(), more.end());
  for (size_t a = 0; a < flags.size(); ++a) {
    for (size_t b = a; b < flags.size(); ++b) {
      Options o{.type_k = plain_types[seed % 3],
                .type_v = plain_types[seed / 3 % 3],
                .dtype_q = dtypes[seed / 2 % 3]};
      o.group = seed % 2 == 0 ? 4 : 3;
      o.head_dim_k = o.head_dim_v = seed % 5 == 0 ? 40 : 32;
      o.*flags[a] = true;
      o.*flags[b] = true;
      check(o, seed++);
      if (testing::Test::HasFatalFailure()) return;
    }
  }
}

/// One call with the memory it refers to.
class Case {
 public:
  Case(const Options& options, uint32_t seed) : o(options), random(seed) {
    make_lists();
    make_rows();
    make_storage();
    make_tensors();
    make_constants();
  }

  AttentionParams params() {
    AttentionParams p;
    p.storage = storage;
    p.settings.runtime_type = o.runtime_type;
    p.constants.n_q_heads = n_q_heads();
    p.constants.scale = 1.0f / std::sqrt(static_cast<float>(o.head_dim_k));
    p.constants.softcap = o.softcap ? 5.0f : 0.0f;
    p.constants.slopes = o.slopes ? slopes.data() : nullptr;
    p.constants.sinks = o.sinks ? sinks.data() : nullptr;
    if (o.shifts)
      p.constants.rope = Rope{.frequency = frequency.data(),
                              .n_dims = rope_dims(),
                              .halves = o.halves,
                              .first_dim = o.first_rope_dim};
    p.plan = AttentionPlan{.rows = rows.data(),
                           .lists = lists.data(),
                           .tokens = {token_cells.data(), token_positions.data()},
                           .shared = &shared,
                           .rotated_for = rotated_for.data(),
                           .n_rows = static_cast<int32_t>(rows.size()),
                           .n_lists = o.n_lists,
                           .n_shared = o.shared ? 1 : 0};
    p.tensors.q = tensor(q, o.dtype_q, o.head_dim_k);
    p.tensors.out = tensor(out, o.dtype_out, o.head_dim_v);
    if (o.lse) {
      p.tensors.lse = Tensor{
          .data = lse.data(), .shape = {n_tokens, n_q_heads()}, .stride = {n_q_heads(), 1}, .ndim = 2};
    }
    if (o.bias) p.tensors.bias = columns(bias.data(), o.dtype_q, int64_t{n_tokens} * n_cells);
    if (o.mask) p.tensors.mask = columns(mask.data(), DType::boolean, 0);
    if (o.weights)
      p.tensors.weights = columns(weights.data(), DType::f32, int64_t{n_tokens} * n_cells);
    return p;
  }

  int32_t n_q_heads() const { return o.group * o.n_kv_heads; }
  int32_t rope_dims() const { return o.head_dim_k / 4 * 2; }
  size_t out_bytes() const { return out.size(); }

  void clear_results() {
    std::fill(out.begin(), out.end(), std::byte{0x11});
    std::fill(lse.begin(), lse.end(), 123.0f);
    std::fill(weights.begin(), weights.end(), 123.0f);
  }

  AttentionBounds bounds() const {
    return {.max_batch = n_tokens,
            .max_q_heads = n_q_heads(),
            .n_kv_heads = o.n_kv_heads,
            .head_dim_k = o.head_dim_k,
            .head_dim_v = o.head_dim_v};
  }

  float out_at(int32_t token, int32_t head, int32_t dim) {
    const Tensor t = tensor(out, o.dtype_out, o.head_dim_v);
    return load_element(t.data, o.dtype_out,
                        token * t.stride[0] + head * t.stride[1] + dim * t.stride[2]);
  }

  Options o;
  std::mt19937 random;
  int32_t n_tokens = 0;
  int32_t n_cells = 0;
  std::vector<std::vector<int32_t>> cells, positions;
  std::vector<int32_t> token_cells, token_positions;  // of all lists
  std::vector<TokenList> lists;
  std::vector<AttentionRow> rows;
  std::vector<int32_t> rotated_for;
  LayerStorage storage;
  std::vector<std::byte> k, k_scales, v, v_scales, q, out, bias, mask;
  std::vector<float> head_scale_k, head_scale_v;
  std::vector<float> lse, slopes, sinks, weights;
  std::vector<double> frequency;
  SharedPrefix shared;

 private:
  int32_t below(int32_t n) { return static_cast<int32_t>(random() % static_cast<uint32_t>(n)); }

  /// Cells in short runs, in any order; lists in up to three pieces; positions with gaps.
  void make_lists() {
    const int32_t shared_length = o.shared ? o.history : 0;
    std::vector<int32_t> order;
    const int32_t wanted = 2 * (o.history + o.tokens_per_list + 40) * o.n_lists;
    for (int32_t run = 0; run < wanted; run += 8) order.push_back(run);
    if (!o.in_a_row) std::shuffle(order.begin(), order.end(), random);
    size_t next = 0;
    cells.resize(static_cast<size_t>(o.n_lists));
    positions.resize(cells.size());
    for (size_t l = 0; l < cells.size(); ++l) {
      const int32_t total = o.shared ? o.history + o.tokens_per_list + below(30)
                                     : std::max(o.tokens_per_list,
                                                o.history / 2 + below(o.history / 2 + 1));
      int32_t run = 0, used = 8;
      for (int32_t i = 0; i < total; ++i) {
        if (o.shared && l > 0 && i < shared_length) {
          cells[l].push_back(cells[0][static_cast<size_t>(i)]);
          positions[l].push_back(positions[0][static_cast<size_t>(i)]);
          continue;
        }
        if (used == 8 || below(o.in_a_row ? 300 : 50) == 0) {
          run = order[next++];
          used = 0;
        }
        cells[l].push_back(run + used++);
        positions[l].push_back((i == 0 ? 0 : positions[l].back() + 1) +
                               (below(20) == 0 ? below(5) : 0));
      }
    }
    n_cells = wanted + 8;
    for (size_t l = 0; l < cells.size(); ++l) {
      TokenList list;
      list.total = static_cast<int32_t>(cells[l].size());
      const int32_t first = below(list.total + 1), second = below(list.total - first + 1);
      const int32_t counts[3] = {first, second, list.total - first - second};
      int32_t at = 0;
      for (int32_t piece = 0; piece < 3; ++piece) {
        list.start[piece] = static_cast<int64_t>(token_cells.size()) + at;
        list.count[piece] = counts[piece];
        at += counts[piece];
      }
      token_cells.insert(token_cells.end(), cells[l].begin(), cells[l].end());
      token_positions.insert(token_positions.end(), positions[l].begin(), positions[l].end());
      list.has_pending = o.shifts;
      lists.push_back(list);
    }
    if (o.shared)
      shared = SharedPrefix{.list_begin = 0, .list_end = o.n_lists, .length = shared_length};
    rotated_for.assign(static_cast<size_t>(n_cells), 0);
    for (size_t l = 0; l < cells.size(); ++l) {
      const int32_t shift = below(400), pattern = below(3);
      for (size_t i = 0; i < cells[l].size(); ++i) {
        if (o.shared && l > 0 && i < static_cast<size_t>(shared_length)) continue;
        rotated_for[static_cast<size_t>(cells[l][i])] = positions[l][i] +
                                                        (pattern == 0 ? owed_in_long_runs(i, shift)
                                                                      : owed_in_short_runs(i, shift));
      }
    }
  }

  /// One shift of everything behind the first tokens.
  static int32_t owed_in_long_runs(size_t i, int32_t shift) { return i < 3 ? 0 : shift; }
  /// Stretches with a shift of their own, between tokens that each owe something else, in either direction.
  int32_t owed_in_short_runs(size_t i, int32_t shift) {
    return i % 97 < 30 ? shift : i % 97 < 60 ? static_cast<int32_t>(i) - 40 : below(3);
  }

  void make_rows() {
    std::vector<int32_t> token_order;
    n_tokens = o.n_lists * o.tokens_per_list;
    for (int32_t i = 0; i < n_tokens; ++i) token_order.push_back(i);
    std::shuffle(token_order.begin(), token_order.end(), random);
    for (int32_t l = 0; l < o.n_lists; ++l) {
      const int32_t total = lists[static_cast<size_t>(l)].total;
      for (int32_t t = 0; t < o.tokens_per_list; ++t) {
        AttentionRow row;
        row.token = token_order[rows.size()];
        row.list = l;
        const int32_t own = total - o.tokens_per_list + t;
        row.position = positions[static_cast<size_t>(l)][static_cast<size_t>(own)];
        row.end = o.sees_later ? total : own + 1;
        if (o.window) {
          row.first_end = std::min(row.end, 7);
          row.begin = std::max(row.first_end, own - 100);
        }
        if (o.wild_ranges) {
          int32_t cut[3] = {below(total + 1), below(total + 1), below(total + 1)};
          std::sort(cut, cut + 3);
          row.first_end = cut[0];
          row.begin = cut[1];
          row.end = cut[2];
          if (below(5) == 0) row.first_end = row.begin = row.end = 0;
          if (below(5) == 0) row.first_end = 0;
        }
        rows.push_back(row);
      }
    }
  }

  /// A slab over memory of its own; f8 heads have scales.
  Slab make_own_slab(StorageType type, int32_t head_dim, std::vector<std::byte>& codes,
                     std::vector<std::byte>& scales, std::vector<float>& head_scale, size_t gap) {
    Slab slab;
    const bool can_rotate = !is_plain(type) && !is_f8(type) && head_dim % 2 == 0;
    const RowRequest request = {"type", type, head_dim, 0, o.rotate && can_rotate};
    if (resolve_row_format(request, &slab.format) != Status::ok)
      throw std::runtime_error(last_message());
    slab.n_heads = o.n_kv_heads;
    slab.n_cells = n_cells;
    const auto place = [&](Plane& plane, std::vector<std::byte>& memory, size_t row_bytes) {
      plane.row_bytes = plane.row_stride = row_bytes;
      plane.head_stride = row_bytes * static_cast<size_t>(n_cells) + gap;
      memory.assign(plane.head_stride * static_cast<size_t>(o.n_kv_heads), std::byte{0xff});
      plane.data = memory.data();
    };
    place(slab.codes, codes, slab.format.code_bytes());
    if (slab.format.block != 0) place(slab.scales, scales, slab.format.scale_bytes());
    if (is_f8(type)) {
      for (int32_t head = 0; head < o.n_kv_heads; ++head)
        head_scale.push_back(0.01f + static_cast<float>(below(100)) / 64);
      slab.head_scale = head_scale.data();
    }
    return slab;
  }

  void make_slabs() {
    storage.k = make_own_slab(o.type_k, o.head_dim_k, k, k_scales, head_scale_k, 64);
    if (!o.v_in_k) {
      storage.v = make_own_slab(o.type_v, o.head_dim_v, v, v_scales, head_scale_v, 128);
      return;
    }
    storage.v_in_k = true;
    storage.v = storage.k;
    RowFormat before = storage.k.format;
    before.head_dim -= o.head_dim_v;
    storage.v.codes.data += before.code_bytes();
    storage.v.format.head_dim = o.head_dim_v;
    storage.v.codes.row_bytes = storage.v.format.code_bytes();
    if (o.type_k == StorageType::int8) {
      storage.v.format.block = o.head_dim_v;
    } else if (storage.k.format.block != 0) {
      storage.v.scales.data += before.scale_bytes();
    }
  }

  void store(const Slab& slab, int32_t head, int32_t cell, std::vector<float>& values) const {
    const cpu::KernelTable& table = cpu::portable_kernels;
    if (slab.format.rotation != 0)
      table.rotate(values.data(), slab.format.head_dim, slab.format.rotation);
    table.encode(slab.format, slab.stored(head, cell), values.data());
  }

  void make_storage() {
    make_slabs();
    std::normal_distribution<float> normal;
    for (size_t l = 0; l < cells.size(); ++l) {
      for (size_t i = 0; i < cells[l].size(); ++i) {
        const auto index = static_cast<int32_t>(i);
        bool seen = false;
        for (const AttentionRow& row : rows) {
          const bool here = row.list == static_cast<int32_t>(l) ||
                            (o.shared && index < shared.length);
          seen = seen || (here && (index < row.first_end || (index >= row.begin && index < row.end)));
        }
        // A poisoned cell makes those rows NaN that see it, in both results, and must not touch the others.
        const bool poisoned = o.hidden_nan && (!seen || below(150) == 0);
        for (int32_t head = 0; head < o.n_kv_heads; ++head) {
          std::vector<float> key(static_cast<size_t>(o.head_dim_k)),
              value(static_cast<size_t>(o.head_dim_v));
          for (float& x : key) x = poisoned ? not_a_number : normal(random) * 2;
          for (float& x : value) {
            x = !poisoned ? normal(random) : seen || index % 2 == 0 ? not_a_number : infinity;
          }
          store(storage.k, head, cells[l][i], key);
          if (!o.v_in_k) store(storage.v, head, cells[l][i], value);
        }
      }
    }
  }

  void make_tensors() {
    std::normal_distribution<float> normal;
    const auto elements = [&](int32_t dim) {
      return static_cast<size_t>(n_tokens) * static_cast<size_t>(n_q_heads()) *
             static_cast<size_t>(dim) * (o.strided ? 2 : 1);
    };
    q.resize(elements(o.head_dim_k) * size_of(o.dtype_q));
    out.resize(elements(o.head_dim_v) * size_of(o.dtype_out));
    for (size_t i = 0; i < elements(o.head_dim_k); ++i)
      store_element(q.data(), o.dtype_q, static_cast<int64_t>(i), normal(random) * o.query_size);
    lse.resize(static_cast<size_t>(n_tokens) * static_cast<size_t>(n_q_heads()));
    const size_t of_a_head = static_cast<size_t>(n_tokens) * static_cast<size_t>(n_cells);
    const size_t of_all = of_a_head * static_cast<size_t>(n_q_heads());
    if (o.bias) bias.resize(of_all * size_of(o.dtype_q));
    for (size_t i = 0; i < bias.size() / size_of(o.dtype_q); ++i)
      store_element(bias.data(), o.dtype_q, static_cast<int64_t>(i),
                    below(8) == 0 ? -infinity : normal(random));
    if (o.mask) mask.resize(of_a_head);
    for (std::byte& each : mask) each = std::byte{below(4) != 0};
    if (o.weights) weights.resize(of_all);
  }

  /// [head][token][cell] of something.
  Tensor columns(void* data, DType dtype, int64_t head_stride) const {
    return {.data = static_cast<std::byte*>(data),
            .shape = {n_q_heads(), n_tokens, n_cells},
            .stride = {head_stride, n_cells, 1},
            .ndim = 3,
            .dtype = dtype};
  }

  void make_constants() {
    for (int32_t h = 0; h < n_q_heads(); ++h) {
      slopes.push_back(std::exp2(-8.0f * static_cast<float>(h + 1) / static_cast<float>(n_q_heads())));
      sinks.push_back(static_cast<float>(below(7)) - 3.0f);
    }
    for (int32_t i = 0; i < o.head_dim_k / 2; ++i)
      frequency.push_back(std::pow(10000.0, -2.0 * i / o.head_dim_k));
  }

  /// [token][head][dim], or with strides [dim][head][2 · token].
  Tensor tensor(std::vector<std::byte>& data, DType dtype, int32_t dim) {
    Tensor t{.data = data.data(), .shape = {n_tokens, n_q_heads(), dim}, .ndim = 3, .dtype = dtype};
    const int64_t heads = n_q_heads();
    const int64_t stride[2][3] = {{heads * dim, dim, 1},
                                  {2, int64_t{2} * n_tokens, 2 * heads * n_tokens}};
    std::copy_n(stride[o.strided ? 1 : 0], 3, t.stride);
    return t;
  }
};

inline std::string describe(const Options& o, uint32_t seed) {
  std::string text = "seed " + std::to_string(seed);
  const auto add = [&](const char* name, int64_t value) {
    text += std::string(" ") + name + "=" + std::to_string(value);
  };
  text += std::string("k ") + format_of(o.type_k).name + " v " + format_of(o.type_v).name + " ";
  add("rotate", o.rotate);
  add("v_in_k", o.v_in_k);
  add("group", o.group), add("kv_heads", o.n_kv_heads), add("dk", o.head_dim_k),
      add("dv", o.head_dim_v);
  add("lists", o.n_lists), add("tokens", o.tokens_per_list), add("history", o.history),
      add("softcap", o.softcap);
  add("slopes", o.slopes), add("sinks", o.sinks), add("shifts", o.shifts), add("halves", o.halves),
      add("first_rope_dim", o.first_rope_dim), add("window", o.window);
  add("wild", o.wild_ranges), add("later", o.sees_later), add("nan", o.hidden_nan),
      add("strided", o.strided), add("in a row", o.in_a_row);
  add("shared", o.shared), add("bias", o.bias), add("mask", o.mask), add("weights", o.weights);
  return text;
}

}  // namespace attention_case
