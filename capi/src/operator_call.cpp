#include "capi/src/operator_call.hpp"

#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <limits>

#include "capi/src/arguments.hpp"
#include "capi/src/guard.hpp"
#include "core/attention/visible.hpp"
#include "core/base/half.hpp"

namespace kvc::capi {
namespace {

/// Calls that run, each with its thread. Not thread-local storage, for the reasons of core/base/message_slots.hpp.
struct Running {
  std::atomic<const CallInProgress*> call;  // null: free
  std::atomic<pthread_t> thread;
};
constexpr int32_t most_running = 1024;
Running running[most_running];

/// Where the tokens of a sequence or padding have no position.
constexpr int32_t nowhere = -1;

/// Two dimensions for the one of tokens, `dim`: [batch, q_len].
Tensor unfolded(const Tensor& tensor, int32_t dim, int32_t batch) {
  Tensor rows = tensor;
  rows.ndim = tensor.ndim + 1;
  for (int32_t d = tensor.ndim; d > dim + 1; --d) {
    rows.shape[d] = tensor.shape[d - 1];
    rows.stride[d] = tensor.stride[d - 1];
  }
  const int64_t per_row = tensor.shape[dim] / batch;
  rows.shape[dim] = batch;
  rows.shape[dim + 1] = per_row;
  rows.stride[dim] = tensor.fold != 0 ? tensor.fold_stride : per_row * tensor.stride[dim];
  rows.stride[dim + 1] = tensor.stride[dim];
  return rows;
}

}  // namespace

CallInProgress::CallInProgress(const AttentionParams& params, const DeviceInfo& device)
    : params_(params), device_(device) {}

CallInProgress::~CallInProgress() {
  if (slot_ < 0) return;
  running[slot_].thread.store(pthread_t{}, std::memory_order_relaxed);
  running[slot_].call.store(nullptr, std::memory_order_release);
}

Status CallInProgress::begin() {
  describe();
  for (int32_t slot = 0; slot < most_running; ++slot) {
    const CallInProgress* free = nullptr;
    if (running[slot].call.load(std::memory_order_relaxed) != nullptr) continue;
    if (!running[slot].call.compare_exchange_strong(free, this)) continue;
    running[slot].thread.store(pthread_self(), std::memory_order_release);
    slot_ = slot;
    return Status::ok;
  }
  return fail(Status::busy, "%d threads are in calls of callers' operators already", most_running);
}

/// A call is compared by address alone until it is known to be this thread's, which is inside it.
const CallInProgress* CallInProgress::find(const kvc_operator_call* call) {
  for (const Running& one : running) {
    const CallInProgress* const candidate = one.call.load(std::memory_order_acquire);
    if (candidate == nullptr || &candidate->call_ != call) continue;
    if (pthread_equal(one.thread.load(std::memory_order_acquire), pthread_self()) != 0)
      return candidate;
  }
  return nullptr;
}

/// A tensor of the call as its function gets it; null where there is none.
const kvc_tensor* CallInProgress::view(const Tensor& tensor, int32_t token_dim, kvc_tensor* out) const {
  if (tensor.data == nullptr) return nullptr;
  if (params_.plan.batch == 0) {
    write_view(tensor, device_, out);
    return out;
  }
  Tensor rows = unfolded(tensor, token_dim, params_.plan.batch);
  if (token_dim == 1) {  // [heads, batch, q_len, columns]: the batch comes first
    std::swap(rows.shape[0], rows.shape[1]);
    std::swap(rows.stride[0], rows.stride[1]);
  }
  write_view(rows, device_, out);
  return out;
}

/// What is stored, [cells, heads, …], of a batch as [batch, columns, heads, …].
const kvc_tensor* CallInProgress::stored(const Tensor& rows, kvc_tensor* out) const {
  if (rows.data == nullptr) return nullptr;
  const int32_t batch = params_.plan.batch;
  write_view(batch == 0 ? rows : unfolded(rows, 0, batch), device_, out);
  return out;
}

void CallInProgress::describe() {
  const AttentionTensors& tensors = params_.tensors;
  const AttentionPlan& plan = params_.plan;
  const LayerStorage& storage = params_.storage;
  const auto n_tokens = static_cast<int32_t>(tensors.q.shape[0]);
  call_.mode = params_.mode;
  call_.features = params_.features;
  call_.layer = params_.layer;
  call_.n_tokens = n_tokens;
  call_.n_q_heads = params_.constants.n_q_heads;
  call_.n_kv_heads = storage.k.n_heads;
  call_.batch = plan.batch;
  call_.scale = params_.constants.scale;
  call_.softcap = params_.constants.softcap;
  call_.keep_factor = params_.dropout.keep_factor;
  call_.dropout_prob = params_.dropout.probability;
  call_.dropout_seed = params_.dropout.seed;
  call_.block_q = params_.settings.block_q;
  call_.block_k = params_.settings.block_k;
  call_.block_b = params_.settings.block_b;
  call_.stretches = params_.settings.stretches;
  call_.slopes = params_.constants.slopes;
  call_.sinks = params_.constants.sinks;

  const int32_t n_cells = params_.n_columns * std::max(plan.batch, 1);
  const int32_t first = params_.first_column;
  call_.k = stored(storage.k.view(first, n_cells), &k_);
  call_.k_scales = stored(storage.k.scale_view(first, n_cells), &k_scales_);
  call_.v = stored(storage.v.view(first, n_cells), &v_);
  call_.v_scales = stored(storage.v.scale_view(first, n_cells), &v_scales_);
  call_.q = view(tensors.q, 0, &q_);
  Tensor bias = tensors.bias,
         mask = tensors.mask;  // those that KV heads share have as many heads as these
  bias.shape[0] /= tensors.bias_sharers;
  mask.shape[0] /= tensors.mask_sharers;
  call_.bias = view(bias, 1, &bias_);
  call_.mask = view(mask, 1, &mask_);
  (void)view(tensors.out, 0, &out_);
  call_.out = &out_;
  call_.lse = view(tensors.lse, 0, &lse_) != nullptr ? &lse_ : nullptr;
  call_.weights = view(tensors.weights, 1, &weights_) != nullptr ? &weights_ : nullptr;

  // The workspace has room for far more than this, and no kernel uses it meanwhile.
  auto* const position = reinterpret_cast<int32_t*>(params_.workspace);
  int32_t* const sequence = position + n_tokens;
  std::fill_n(position, n_tokens, nowhere);
  std::fill_n(sequence, n_tokens, KVC_NONE);
  for (int32_t i = 0; i < plan.n_rows; ++i) {
    position[plan.rows[i].token] = plan.rows[i].position;
    sequence[plan.rows[i].token] = plan.rows[i].sequence;
  }
  call_.position = position;
  call_.sequence = sequence;
}

namespace {

Status not_running() {
  return fail(
      Status::invalid_argument,
      "call is none that the function of an operator is in on this thread: pass the one that "
      "it got, before it returns");
}

/// 1 and 0, or 0 and minus infinity.
void write_seen(const Tensor& into, int64_t index, bool sees) {
  const float hidden = -std::numeric_limits<float>::infinity();
  const bool is_bool = into.dtype == DType::boolean;
  store_element(into.data, into.dtype, index, is_bool ? (sees ? 1.0f : 0.0f) : (sees ? 0.0f : hidden));
}

void write_mask(const AttentionParams& params, const Tensor& into) {
  const AttentionPlan& plan = params.plan;
  const Tensor& mask = params.tensors.mask;
  for (int64_t token = 0; token < into.shape[0]; ++token) {
    for (int64_t column = 0; column < into.shape[1]; ++column)
      write_seen(into, into.token_offset(token) + column * into.stride[1], false);
  }
  for (int32_t i = 0; i < plan.n_rows; ++i) {
    const AttentionRow& row = plan.rows[i];
    const int32_t first = plan.first_column(plan.lists[row.list], params.first_column);
    for_each_visible(plan, row, [&](int32_t, int32_t cell, int32_t) {
      const int64_t column = cell - first;
      const bool hides = mask.data != nullptr &&
                         static_cast<const uint8_t*>(
                             mask.data)[mask.token_offset(row.token, 1) + column * mask.stride[2]] ==
                             0;
      write_seen(into, into.token_offset(row.token) + column * into.stride[1], !hides);
    });
  }
}

Status call_mask(const kvc_operator_call* call, const kvc_tensor* into) {
  const CallInProgress* const running_call = CallInProgress::find(call);
  if (running_call == nullptr) return not_running();
  const AttentionParams& params = running_call->params();
  const int32_t batch = params.plan.batch, n_tokens = call->n_tokens;
  const Expected shape = batch == 0 ? Expected{2, {n_tokens, params.n_columns}, "n_tokens, columns"}
                                    : Expected{4,
                                               {batch, 1, n_tokens / batch, params.n_columns},
                                               "batch, 1, q_len, columns"};
  Tensor mask;
  if (Status s = read_tensor("into", into, shape, Direction::out, running_call->device(), &mask,
                             Elements::mask);
      s != Status::ok)
    return s;
  if (params.tensors.mask.data != nullptr && params.tensors.mask.stride[0] != 0 && call->n_q_heads > 1)
    return fail(Status::not_supported,
                "the mask of the call differs from head to head: read call->mask");
  if (batch != 0) {  // [batch, 1, q_len, columns] as kernels count tokens
    for (int32_t d = 1; d < 3; ++d) {
      mask.shape[d] = mask.shape[d + 1];
      mask.stride[d] = mask.stride[d + 1];
    }
    mask.ndim = 3;
    fold_tokens(TokenDims::rows(batch, n_tokens / batch), 0, &mask);
  }
  write_mask(params, mask);
  return Status::ok;
}

Status call_positions(const kvc_operator_call* call, int32_t sequence, int32_t capacity,
                      int32_t* position) {
  const CallInProgress* const running_call = CallInProgress::find(call);
  if (running_call == nullptr) return not_running();
  if (Status s = check_arrays("capacity", capacity, {{"position", position}}); s != Status::ok)
    return s;
  const AttentionParams& params = running_call->params();
  const AttentionPlan& plan = params.plan;
  const bool is_there = std::any_of(plan.rows, plan.rows + plan.n_rows, [&](const AttentionRow& row) {
    return row.sequence == sequence;
  });
  if (!is_there)
    return fail(Status::invalid_argument, "sequence %d has no query in this call", sequence);
  std::fill_n(position, std::min(capacity, params.n_columns), nowhere);
  for (int32_t i = 0; i < plan.n_rows; ++i) {
    const AttentionRow& row = plan.rows[i];
    if (row.sequence != sequence) continue;
    const int32_t first = plan.first_column(plan.lists[row.list], params.first_column);
    for_each_visible(plan, row, [&](int32_t, int32_t cell, int32_t at) {
      if (cell - first < capacity) position[cell - first] = at;
    });
  }
  return Status::ok;
}

}  // namespace
}  // namespace kvc::capi

kvc_status kvc_call_mask(const kvc_operator_call* call, kvc_tensor* into) noexcept {
  return kvc::capi::guard([&] { return kvc::capi::call_mask(call, into); });
}

kvc_status kvc_call_positions(const kvc_operator_call* call, int32_t sequence, int32_t capacity,
                              int32_t* position) noexcept {
  return kvc::capi::guard(
      [&] { return kvc::capi::call_positions(call, sequence, capacity, position); });
}
