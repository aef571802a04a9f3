#include "kernels/reference/attention.hpp"

#include <cmath>
#include <limits>
#include <vector>

#include "core/attention/visible.hpp"
#include "core/base/half.hpp"
#include "kernels/reference/stored_row.hpp"

namespace kvc {
namespace {

constexpr double infinity = std::numeric_limits<double>::infinity();

/// One visible token: its cell, its position, and the pending rotation of its key in positions.
struct Seen {
  int32_t cell = 0;
  int32_t position = 0;
  int32_t offset = 0;
};

std::vector<Seen> visible_tokens(const AttentionPlan& plan, const AttentionRow& row) {
  std::vector<Seen> tokens;
  const bool has_pending = plan.lists[row.list].has_pending;
  for_each_visible(plan, row, [&](int32_t, int32_t cell, int32_t position) {
    tokens.push_back({cell, position, has_pending ? position - plan.rotated_for[cell] : 0});
  });
  return tokens;
}

void rotate(std::vector<double>& key, const Rope& rope, int32_t offset) {
  for (int32_t i = 0; i < rope.n_dims / 2; ++i) {
    const size_t first = static_cast<size_t>(rope.first_dim) +
                         static_cast<size_t>(rope.halves ? i : 2 * i);
    const size_t second = first + static_cast<size_t>(rope.halves ? rope.n_dims / 2 : 1);
    const double angle = offset * rope.frequency[i];
    const double a = key[first];
    const double b = key[second];
    key[first] = a * std::cos(angle) - b * std::sin(angle);
    key[second] = a * std::sin(angle) + b * std::cos(angle);
  }
}

int32_t first_column(const AttentionParams& params, const AttentionRow& row) {
  return params.plan.first_column(params.plan.lists[row.list], params.first_column);
}

int64_t index_of(const Tensor& tensor, int32_t head, int32_t token, int32_t column) {
  return head * tensor.stride[0] + tensor.token_offset(token, 1) + column * tensor.stride[2];
}

/// What a bias adds, minus infinity where it or a mask hides.
double bias_of(const AttentionParams& params, const AttentionRow& row, int32_t head,
               const Seen& token) {
  const AttentionTensors& tensors = params.tensors;
  const int32_t column = token.cell - first_column(params, row);
  if (tensors.mask.data &&
      static_cast<const uint8_t*>(
          tensors.mask.data)[index_of(tensors.mask, head / tensors.mask_sharers, row.token, column)] ==
          0)
    return -infinity;
  if (!tensors.bias.data) return 0;
  return load_element(tensors.bias.data, tensors.bias.dtype,
                      index_of(tensors.bias, head / tensors.bias_sharers, row.token, column));
}

double score(const AttentionParams& params, const AttentionRow& row, int32_t head, const Seen& token) {
  const LayerStorage& storage = params.storage;
  const AttentionConstants& constants = params.constants;
  const int32_t kv_head = head / (constants.n_q_heads / storage.k.n_heads);
  std::vector<double> key = read_stored_row(storage.k, kv_head, token.cell);
  if (token.offset != 0) rotate(key, constants.rope, token.offset);
  double x = 0;
  for (int32_t i = 0; i < storage.k.head_dim(); ++i) {
    const int64_t index = params.tensors.q.token_offset(row.token) +
                          head * params.tensors.q.stride[1] + i * params.tensors.q.stride[2];
    x += key[static_cast<size_t>(i)] *
         load_element(params.tensors.q.data, params.tensors.q.dtype, index);
  }
  x *= constants.scale;
  if (constants.softcap != 0) x = constants.softcap * std::tanh(x / constants.softcap);
  if (constants.slopes) {
    x -= constants.slopes[head] * std::fabs(static_cast<double>(row.position) - token.position);
  }
  return x;
}

void attend(const AttentionParams& params, const AttentionRow& row, int32_t head) {
  const LayerStorage& storage = params.storage;
  const AttentionConstants& constants = params.constants;
  const int32_t kv_head = head / (constants.n_q_heads / storage.k.n_heads);
  std::vector<Seen> tokens = visible_tokens(params.plan, row);
  std::erase_if(tokens,
                [&](const Seen& token) { return bias_of(params, row, head, token) == -infinity; });

  std::vector<double> scores;
  double maximum = -infinity;
  for (const Seen& token : tokens) {
    scores.push_back(score(params, row, head, token) + bias_of(params, row, head, token));
    if (scores.back() > maximum) maximum = scores.back();
  }
  const double shift = maximum == -infinity ? 0 : maximum;
  double sum = 0;
  std::vector<double> out(static_cast<size_t>(storage.v.head_dim()), 0.0);
  for (size_t j = 0; j < tokens.size(); ++j) {
    const double p = std::exp(scores[j] - shift);
    const std::vector<double> value = read_stored_row(storage.v, kv_head, tokens[j].cell);
    sum += p;
    for (size_t i = 0; i < out.size(); ++i) out[i] += p * value[i];
  }
  const bool sees_nothing = sum == 0;
  const double sink = constants.sinks && !sees_nothing ? std::exp(constants.sinks[head] - shift) : 0;
  for (int32_t i = 0; i < storage.v.head_dim(); ++i) {
    const int64_t index = params.tensors.out.token_offset(row.token) +
                          head * params.tensors.out.stride[1] + i * params.tensors.out.stride[2];
    const double value = sees_nothing ? 0 : out[static_cast<size_t>(i)] / (sum + sink);
    store_element(params.tensors.out.data, params.tensors.out.dtype, index, static_cast<float>(value));
  }
  if (params.tensors.weights.data) {
    auto* weights = static_cast<float*>(params.tensors.weights.data);
    for (int64_t column = 0; column < params.tensors.weights.shape[2]; ++column)
      weights[index_of(params.tensors.weights, head, row.token, static_cast<int32_t>(column))] = 0;
    for (size_t j = 0; j < tokens.size(); ++j) {
      weights[index_of(
          params.tensors.weights, head, row.token,
          tokens[j].cell - first_column(params, row))] = static_cast<float>(std::exp(scores[j] - shift) /
                                                                            (sum + sink));
    }
  }
  if (params.tensors.lse.data) {
    const int64_t index = params.tensors.lse.token_offset(row.token) +
                          head * params.tensors.lse.stride[1];
    const double value = sees_nothing ? -infinity : shift + std::log(sum);
    static_cast<float*>(params.tensors.lse.data)[index] = static_cast<float>(value);
  }
}

}  // namespace

void reference_attention(const AttentionParams& params) {
  for (int32_t i = 0; i < params.plan.n_rows; ++i) {
    for (int32_t head = 0; head < params.constants.n_q_heads; ++head)
      attend(params, params.plan.rows[i], head);
  }
}

}  // namespace kvc
