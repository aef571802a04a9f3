#include "attention_rig.hpp"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "host_view.hpp"
#include "model/dropout.hpp"

namespace support {
namespace {

kvc_cache_desc describe(const AttentionOptions& options, int32_t capacity, int32_t max_batch) {
  kvc_cache_desc desc = cache_desc(1, options.n_kv_heads, options.head_dim_k, options.head_dim_v);
  desc.dtype_k = options.dtype_k;
  desc.dtype_v = options.v_in_k ? 0 : options.dtype_v;
  desc.block_k = options.block_k;
  desc.block_v = options.v_in_k ? 0 : options.block_v;
  desc.v_first = options.v_first;
  if (options.rotated) desc.flags |= KVC_CACHE_ROTATE_K;
  if (options.rotated && !options.v_in_k) desc.flags |= KVC_CACHE_ROTATE_V;
  if (options.interleaved) desc.flags |= KVC_CACHE_INTERLEAVED;
  if (options.v_in_k) desc.flags |= KVC_CACHE_V_IN_K;
  desc.max_sequences = options.mixed || options.shared ? 3 : 1;
  desc.capacity = capacity;
  desc.max_batch = max_batch;
  desc.max_q_heads = options.n_q_heads;
  return desc;
}

kvc_causal_desc describe_causal(const AttentionOptions& options) {
  kvc_causal_desc causal = causal_desc();
  causal.reach = options.reach;
  causal.memory = options.memory;
  causal.chunk = options.chunk;
  causal.keep_first = options.keep_first;
  causal.cell_padding = options.padding;
  if (!options.rope) causal.flags |= KVC_CAUSAL_POSITION_FREE;
  return causal;
}

Cache make_cache(kvc_device* device, const AttentionOptions& options, int32_t capacity,
                 int32_t max_batch) {
  const kvc_causal_desc causal = describe_causal(options);
  return Cache(device, describe(options, capacity, max_batch), &causal);
}

}  // namespace

kvc_device* shared_device() {
  static const Device device(1);
  return device;
}

AttentionRig::AttentionRig(kvc_device* device, const AttentionOptions& chosen, int32_t capacity,
                           int32_t max_batch, uint64_t seed)
    : options(reconciled(chosen)),
      random(seed),
      cache(make_cache(device, options, capacity, max_batch)),
      oracle(describe(options, capacity, max_batch), describe_causal(options)) {
  EXPECT_EQ(cache.status, KVC_OK) << options.name << ": " << last_message();
  poison();
  bind_scales();
  if (options.rope) bind_rope();
  kvc_attention_desc desc{};
  desc.struct_size = sizeof desc;
  desc.n_q_heads = options.n_q_heads;
  desc.scale = options.scale;
  desc.softcap = options.softcap;
  std::vector<float> slopes, sinks;
  for (int32_t h = 0; h < options.n_q_heads; ++h) {
    slopes.push_back(
        std::exp2f(-8.0f * static_cast<float>(h + 1) / static_cast<float>(options.n_q_heads)));
    sinks.push_back(random.value());
  }
  EXPECT_EQ(kvc_bind_attention(cache, 0, 1, &desc, options.slopes ? slopes.data() : nullptr,
                               options.sinks ? sinks.data() : nullptr),
            KVC_OK)
      << last_message();
  model::Constants& constants = oracle.constants[0];
  constants = {options.n_q_heads, options.scale, options.softcap, {}, {}};
  if (options.slopes) constants.slopes.assign(slopes.begin(), slopes.end());
  if (options.sinks) constants.sinks.assign(sinks.begin(), sinks.end());
  if (!options.op.empty()) bind_operator(device);
}

void AttentionRig::bind_operator(kvc_device* device) {
  kvc_operator* op = nullptr;
  ASSERT_EQ(kvc_operator_create(device, options.op.c_str(), &options.op_desc, &op), KVC_OK)
      << last_message();
  EXPECT_EQ(kvc_bind_operator(cache, 0, 1, options.op_modes, op), KVC_OK) << last_message();
  EXPECT_EQ(kvc_operator_destroy(op), KVC_OK);  // the cache keeps what it needs
}

double AttentionRig::dropout_factor(int32_t head, int32_t token, int32_t position,
                                    uint64_t dropout_seed) const {
  const auto at = static_cast<size_t>(token);
  return model::dropout_factor(
      {dropout_seed, 0, head, oracle.pass.sequence[at], oracle.pass.position[at], position},
      options.op_desc.dropout_prob);
}

void AttentionRig::bind_rope() {
  const int32_t n_dims = (options.v_in_k ? options.v_first : options.head_dim_k) / 2 * 2;
  kvc_rope_desc rope{};
  rope.struct_size = sizeof rope;
  rope.n_dims = n_dims;
  rope.pairs = options.halves ? KVC_ROPE_HALVES : KVC_ROPE_NEIGHBOURS;
  EXPECT_EQ(kvc_bind_rope(cache, 0, 1, &rope, nullptr), KVC_OK) << last_message();
  oracle.rope[0] = {0, n_dims, options.halves, {}};
  for (int32_t i = 0; i < n_dims / 2; ++i)
    oracle.rope[0].frequency.push_back(std::pow(10000.0, -2.0 * i / n_dims));
}

/// Another one for each head that stores f8.
void AttentionRig::bind_scales() {
  const bool of_k = oracle.storage_k.is_f8(), of_v = oracle.storage_v.is_f8() && !options.v_in_k;
  if (!of_k && !of_v) return;
  for (size_t head = 0; head < oracle.scales_k.size(); ++head) {
    const float scale = 0.005f * static_cast<float>(head + 1);
    if (of_k) oracle.scales_k[head] = scale;
    if (of_v) oracle.scales_v[head] = 3 * scale;
  }
  EXPECT_EQ(kvc_bind_scales(cache, 0, 1, of_k ? oracle.scales_k.data() : nullptr,
                            of_v ? oracle.scales_v.data() : nullptr),
            KVC_OK)
      << last_message();
}

Array AttentionRig::array(uint32_t dtype, const std::vector<int64_t>& shape) {
  return options.strided ? Array(dtype, shape, random) : Array(dtype, shape);
}

void AttentionRig::poison() {
  for (int32_t s = 0; s < oracle.cache.max_sequences; ++s) {
    for (;;) {
      const kvc_stats now = stats(cache);
      const auto free = static_cast<int32_t>(now.cells - now.cells_used);
      const int32_t n = std::min({oracle.cache.max_batch, free, sequence_info(cache, s).room});
      // Where memory is limited a sequence takes no more than its share; the others take the rest.
      if (n < 1 || sequence_info(cache, s).lost_below > 0) break;
      std::vector<int32_t> position, sequence(static_cast<size_t>(n), s);
      for (int32_t i = 0; i < n; ++i) position.push_back(sequence_info(cache, s).next + i);
      ASSERT_EQ(kvc_begin(cache, n, position.data(), sequence.data(), nullptr, 0, nullptr), KVC_OK);
      Array k(KVC_F32, {n, options.n_kv_heads, options.head_dim_k});
      Array v(KVC_F32, {n, options.n_kv_heads, options.head_dim_v});
      k.fill(std::nan(""));
      v.fill(std::nan(""));
      ASSERT_EQ(kvc_put(cache, 0, k.tensor(), options.v_in_k ? nullptr : v.tensor()), KVC_OK);
      ASSERT_EQ(kvc_commit(cache), KVC_OK);
    }
  }
  for (int32_t s = 0; s < oracle.cache.max_sequences; ++s)
    ASSERT_EQ(kvc_remove(cache, s, 0, KVC_SEQ_END), KVC_OK);
}

void AttentionRig::open(const std::vector<int32_t>& position, const std::vector<int32_t>& sequence,
                        const std::vector<uint32_t>& flags) {
  const auto n = static_cast<int32_t>(position.size());
  const uint32_t* token_flags = flags.empty() ? nullptr : flags.data();
  ASSERT_EQ(kvc_begin(cache, n, position.data(), sequence.data(), token_flags, 0, nullptr), KVC_OK)
      << last_message();
  ASSERT_EQ(oracle.begin(n, position.data(), sequence.data(), token_flags, 0), KVC_OK);
  Array k = array(options.dtype_in, {n, options.n_kv_heads, options.head_dim_k});
  Array v = array(options.dtype_in, {n, options.n_kv_heads, options.head_dim_v});
  k.fill(random);
  v.fill(random);
  for (int64_t t = 0; options.hidden_nan && t < n; ++t) {
    if (position[static_cast<size_t>(t)] % 5 != 2) continue;
    for (Array* each : {&k, &v}) {
      const int64_t row = each->count() / n;
      for (int64_t i = 0; i < row; ++i) each->set(t * row + i, std::nan(""));
    }
  }
  put(k, v);
}

void AttentionRig::put(Array& k, Array& v) {
  ASSERT_EQ(kvc_put(cache, 0, k.tensor(), options.v_in_k ? nullptr : v.tensor()), KVC_OK)
      << last_message();
  ASSERT_EQ(oracle.put(0, k.floats(), v.floats()), KVC_OK);
}

/// A bias and a mask of random shape, broadcast or not. Columns that nobody may see hold NaN.
AttentionRig::Extra AttentionRig::make_extra() {
  Extra extra;
  extra.desc.struct_size = sizeof extra.desc;
  if (!options.bias && !options.mask && !options.weights && !options.hidden_nan) return extra;
  EXPECT_EQ(kvc_history(cache, 0, &extra.first_cell, &extra.n_cells), KVC_OK) << last_message();
  std::vector<char> seen(static_cast<size_t>(extra.n_cells));
  std::vector<char> is_nan(seen.size());
  for (int32_t s = 0; s < oracle.cache.max_sequences; ++s) {
    extra.cell.emplace_back();
    for (const Place& place : places(cache, s)) {
      extra.cell.back()[place.position] = place.cell;
      const auto column = static_cast<size_t>(place.cell - extra.first_cell);
      if (place.cell < extra.first_cell || column >= seen.size()) continue;
      seen[column] = 1;
    }
    for (const model::Token& token : oracle.sequences[static_cast<size_t>(s)].tokens) {
      const auto column = static_cast<size_t>(extra.cell.back().at(token.position) - extra.first_cell);
      const model::Content& content = oracle.contents[static_cast<size_t>(token.content)];
      if (column < seen.size() && std::isnan(content.k.numbers(0)[0])) is_nan[column] = 1;
    }
  }
  const int64_t n = oracle.pass.n_tokens, heads = options.n_q_heads;
  const auto make = [&](uint32_t dtype) -> Array& {
    std::vector<int64_t> shape = {random.chance(0.3) ? 1 : heads, random.chance(0.3) ? 1 : n,
                                  extra.n_cells};
    if (shape[0] == 1 && random.chance(0.5)) shape.erase(shape.begin());
    return extra.arrays.emplace_back(array(dtype, shape));
  };
  extra.arrays.reserve(2);
  const uint32_t types[] = {KVC_F32, KVC_F16, KVC_BF16};
  const bool by_mask = options.mask || (options.hidden_nan && !options.bias);
  const Array* bias = nullptr;
  const Array* mask = nullptr;
  if (options.bias) {
    Array& array = make(types[random.below(3)]);
    for (int64_t i = 0; i < array.count(); ++i) {
      const auto column = static_cast<size_t>(i % extra.n_cells);
      const bool hides = random.chance(0.1) || (options.hidden_nan && is_nan[column]);
      array.set(i, !seen[column] ? std::nan("")
                   : hides       ? -HUGE_VAL
                                 : static_cast<double>(random.value()));
    }
    bias = &array;
    extra.desc.bias = array.tensor();
  }
  if (by_mask) {
    Array& array = make(KVC_BOOL);
    for (int64_t i = 0; i < array.count(); ++i) {
      const auto column = static_cast<size_t>(i % extra.n_cells);
      array.set(i, !(options.mask && random.chance(0.3)) && !(options.hidden_nan && is_nan[column]));
    }
    mask = &array;
    extra.desc.mask = array.tensor();
  }
  extra.bias = [this, bias, mask, cells = extra.cell, first = extra.first_cell](
                   int32_t head, int32_t token, int32_t position) {
    const auto sequence = static_cast<size_t>(oracle.pass.sequence[static_cast<size_t>(token)]);
    const int32_t column = cells[sequence].at(position) - first;
    if (mask && broadcast_get(*mask, head, token, column) == 0) return -HUGE_VAL;
    return bias ? broadcast_get(*bias, head, token, column) : 0.0;
  };
  return extra;
}

void AttentionRig::compare_weights(const Array& weights, const Extra& extra,
                                   const model::AttentionResult& wanted) {
  const int64_t n = oracle.pass.n_tokens;
  for (int64_t token = 0; token < n; ++token) {
    const auto sequence = static_cast<size_t>(oracle.pass.sequence[static_cast<size_t>(token)]);
    for (int64_t head = 0; head < options.n_q_heads; ++head) {
      std::vector<double> exact(static_cast<size_t>(extra.n_cells));
      for (const auto& [position, weight] :
           wanted.weights[static_cast<size_t>(token * options.n_q_heads + head)])
        exact[static_cast<size_t>(extra.cell[sequence].at(position) - extra.first_cell)] = weight;
      for (int64_t column = 0; column < extra.n_cells; ++column) {
        const double weight = weights.get((head * n + token) * extra.n_cells + column);
        ASSERT_NEAR(weight, exact[static_cast<size_t>(column)], 1e-5) << options.name;
      }
    }
  }
}

double AttentionRig::attend_and_compare() {
  const int64_t n = oracle.pass.n_tokens, heads = options.n_q_heads, dv = options.head_dim_v;
  Array q = array(options.dtype_q, {n, heads, options.head_dim_k});
  Array out = array(options.dtype_out, {n, heads, dv});
  Array lse = array(KVC_F32, {n, heads});
  q.fill(random);
  Extra extra = make_extra();
  Array weights = array(KVC_F32, {heads, n, std::max(extra.n_cells, 1)});
  if (options.weights) extra.desc.weights = weights.tensor();
  const bool drops = options.op_desc.dropout_prob > 0;
  model::Bias counts;
  double keep_factor = 1;
  if (drops) {
    extra.desc.flags |= KVC_EXTRA_DROPOUT;
    extra.desc.dropout_seed = static_cast<uint64_t>(random.below(1 << 30)) << 17 | 1;
    keep_factor = 1 / (1 - static_cast<double>(options.op_desc.dropout_prob));
    counts = [this, seed = extra.desc.dropout_seed](int32_t head, int32_t token, int32_t position) {
      return dropout_factor(head, token, position, seed);
    };
  }
  EXPECT_EQ(support::attention(cache, 0, q.tensor(), out.tensor(),
                               options.lse ? lse.tensor() : nullptr, &extra.desc),
            KVC_OK)
      << last_message();
  EXPECT_TRUE(out.gaps_intact() && lse.gaps_intact() && weights.gaps_intact());
  const model::AttentionResult wanted = model::attend(oracle, 0, options.n_q_heads, q.doubles(),
                                                      extra.bias, counts);
  if (options.weights) compare_weights(weights, extra, wanted);
  double worst = 0;
  for (int64_t row = 0; row < n * heads; ++row) {
    const double largest = keep_factor * wanted.largest[static_cast<size_t>(row)];
    for (int64_t d = 0; d < dv; ++d) {
      const double exact = wanted.out[static_cast<size_t>(row * dv + d)];
      const double rounding = options.dtype_out == KVC_F32
                                  ? 0
                                  : 0.5 * model::spacing(options.dtype_out, exact);
      const double error = std::fabs(out.get(row * dv + d) - exact) - rounding;
      const double magnitude = wanted.magnitude[static_cast<size_t>(row)];
      if (!(error <= model::attention_error(magnitude, largest, options.op_desc.runtime_dtype) +
                         0.5 * model::spacing(KVC_F32, exact))) {
        ADD_FAILURE() << options.name << ": token " << row / heads << " of " << n << " head "
                      << row % heads << " dimension " << d << " is " << out.get(row * dv + d)
                      << ", in double " << exact;
        return HUGE_VAL;
      }
      worst = std::max(worst, error / std::max(largest, 1e-30));
    }
    const double sum = wanted.lse[static_cast<size_t>(row)];
    if (options.lse && std::isinf(sum)) {
      EXPECT_EQ(lse.get(row), sum) << options.name;
    } else if (options.lse) {
      EXPECT_NEAR(lse.get(row), sum,
                  model::log_sum_exp_error(wanted.magnitude[static_cast<size_t>(row)],
                                           options.op_desc.runtime_dtype))
          << options.name;
    }
  }
  return worst * 1e6;
}

void AttentionRig::compare_textbook() {
  const int32_t n = oracle.pass.n_tokens, heads = options.n_q_heads, dv = options.head_dim_v;
  kvc_tensor k{}, v{}, size{};
  if (oracle.storage_k.is_plain() && oracle.storage_v.is_plain()) {
    ASSERT_EQ(kvc_get(cache, 0, &k, &v), KVC_OK) << last_message();
    k = on_host(k);
    v = on_host(v);
  }
  // What is stored in codes is copied, and so are, one test in two, numbers.
  std::vector<float> copied_k, copied_v;
  if (k.data == nullptr || random.chance(0.5)) {
    k = v = {};
    ASSERT_EQ(kvc_get_copy(cache, 0, &k, &v), KVC_OK) << last_message();
    ASSERT_EQ(k.data, nullptr);
    copied_k.resize(static_cast<size_t>(k.shape[0] * k.shape[1] * k.shape[2]));
    copied_v.resize(static_cast<size_t>(v.shape[0] * v.shape[1] * v.shape[2]));
    k.data = copied_k.data();
    v.data = copied_v.data();
    ASSERT_EQ(kvc_get_copy(cache, 0, &k, &v), KVC_OK) << last_message();
  }
  ASSERT_EQ(kvc_mask(cache, 0, &size), KVC_OK);
  ASSERT_EQ(size.shape[1], k.shape[0]);
  Array mask(KVC_F32, {n, size.shape[1]});
  ASSERT_EQ(kvc_mask(cache, 0, mask.tensor()), KVC_OK);
  Array q(KVC_F32, {n, heads, options.head_dim_k}), out(KVC_F32, {n, heads, dv});
  q.fill(random);
  ASSERT_EQ(kvc_attention(cache, 0, q.tensor(), out.tensor(), nullptr), KVC_OK);
  const double scale = options.scale != 0 ? options.scale
                                          : 1 / std::sqrt(static_cast<double>(options.head_dim_k));
  const auto element = [](const kvc_tensor& view, int64_t cell, int64_t head, int64_t d) {
    return model::load(view.data, view.dtype,
                       cell * view.strides[0] + head * view.strides[1] + d * view.strides[2]);
  };
  for (int32_t t = 0; t < n; ++t) {
    const auto row = static_cast<size_t>(t);
    // ALiBi needs positions: the columns that a row sees are its visible tokens, cell by cell.
    std::vector<std::pair<int32_t, int32_t>> seen_cells;  // (cell, position)
    for (const Place& place : places(cache, oracle.pass.sequence[row]))
      if (oracle.sees(t, place.position)) seen_cells.emplace_back(place.cell, place.position);
    std::sort(seen_cells.begin(), seen_cells.end());
    std::vector<int64_t> columns;
    for (int64_t c = 0; c < size.shape[1]; ++c)
      if (mask.get(t * size.shape[1] + c) == 0) columns.push_back(c);
    ASSERT_EQ(columns.size(), seen_cells.size()) << options.name;
    for (int32_t h = 0; h < heads; ++h) {
      const int32_t kv = h / (heads / options.n_kv_heads);
      std::vector<double> values, wanted(static_cast<size_t>(dv));
      std::vector<model::Seen> seen;
      values.reserve(columns.size() * static_cast<size_t>(dv));
      for (size_t i = 0; i < columns.size(); ++i) {
        double dot = 0;
        for (int32_t d = 0; d < options.head_dim_k; ++d)
          dot += q.get((t * heads + h) * options.head_dim_k + d) * element(k, columns[i], kv, d);
        const double* value = values.data() + values.size();
        for (int32_t d = 0; d < dv; ++d) values.push_back(element(v, columns[i], kv, d));
        const double distance = std::abs(oracle.pass.position[row] - seen_cells[i].second);
        seen.push_back({dot, distance, value});
      }
      model::attend_row(oracle.constants[0], h, scale, seen, dv, wanted.data());
      for (int32_t d = 0; d < dv; ++d)
        ASSERT_NEAR(out.get((t * heads + h) * dv + d), wanted[static_cast<size_t>(d)], 3e-5)
            << options.name << ": the textbook over get and mask";
    }
  }
}

void AttentionRig::commit() {
  ASSERT_EQ(kvc_commit(cache), KVC_OK);
  ASSERT_EQ(oracle.commit(), KVC_OK);
}

void AttentionRig::remove(int32_t sequence, int32_t begin, int32_t end) {
  const kvc_status expected = oracle.remove(sequence, begin, end);
  ASSERT_EQ(kvc_remove(cache, sequence, begin, end), expected) << last_message();
}

void AttentionRig::copy(int32_t src, int32_t dst) {
  int32_t got = 0;
  const kvc_status expected = oracle.copy_prefix(src, dst, INT32_MAX, &got);
  ASSERT_EQ(kvc_copy_prefix(cache, src, dst, INT32_MAX, nullptr), expected) << last_message();
}

}  // namespace support
