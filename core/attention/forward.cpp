#include "core/attention/forward.hpp"

#include <algorithm>
#include <new>
#include <numeric>

namespace kvc {
namespace {

int32_t cells_of(const ForwardBounds& bounds) { return bounds.max_rows * bounds.max_kv_len; }
int32_t tokens_of(const ForwardBounds& bounds) { return bounds.max_rows * bounds.max_q_len; }

/// A head's plane of vectors of f32, off powers of two, as those of caches are.
CheckedSize head_bytes(const ForwardBounds& bounds, int32_t head_dim) {
  const CheckedSize bytes = CheckedSize(static_cast<uint64_t>(cells_of(bounds))) *
                            CheckedSize(static_cast<uint64_t>(head_dim)) * CheckedSize(sizeof(float));
  return bytes.rounded_up(page_bytes) + CheckedSize(uint64_t{9} * 64);
}

StorageType stored_as(DType dtype) {
  return dtype == DType::f32   ? StorageType::f32
         : dtype == DType::f16 ? StorageType::f16
                               : StorageType::bf16;
}

Slab slab_of(std::byte* data, size_t bytes_per_head, const Tensor& tensor, int32_t n_cells) {
  Slab slab;
  slab.format.type = stored_as(tensor.dtype);
  slab.format.head_dim = static_cast<int32_t>(tensor.shape[2]);
  slab.n_heads = static_cast<int32_t>(tensor.shape[1]);
  slab.n_cells = n_cells;
  slab.codes.data = data;
  slab.codes.head_stride = bytes_per_head;
  slab.codes.row_bytes = slab.codes.row_stride = slab.format.code_bytes();
  return slab;
}

}  // namespace

Forward::Forward(const std::shared_ptr<Device>& device, const ForwardBounds& bounds)
    : device_(device), bounds_(bounds), memory_(device) {}

AttentionBounds Forward::attention_bounds() const {
  return {cells_of(bounds_),  tokens_of(bounds_), bounds_.max_q_heads,
          bounds_.n_kv_heads, bounds_.head_dim_k, bounds_.head_dim_v};
}

// Both run twice (see Carver).

void Forward::carve_host(Carver& carver) {
  const auto cells = static_cast<uint64_t>(cells_of(bounds_));
  const auto tokens = static_cast<uint64_t>(tokens_of(bounds_));
  entries_ = carver.take<int32_t>(cells, 64);
  rows_ = carver.take<AttentionRow>(tokens, 64);
  lists_ = carver.take<TokenList>(static_cast<uint64_t>(bounds_.max_rows), 64);
  padding_ = carver.take<int32_t>(tokens, 64);
  workspace_.on_host = carver.take<std::byte>(device_->host_workspace_bytes(attention_bounds()), 64);
}

void Forward::carve_device(Carver& carver) {
  const CheckedSize heads(static_cast<uint64_t>(bounds_.n_kv_heads));
  const CheckedSize k = head_bytes(bounds_, bounds_.head_dim_k);
  const CheckedSize v = head_bytes(bounds_, bounds_.head_dim_v);
  k_head_bytes_ = k.value();
  v_head_bytes_ = v.value();
  k_ = carver.take<std::byte>(heads * k, page_bytes);
  carver.take<std::byte>(page_bytes / 2, page_bytes);  // V begins half a page off K
  v_ = carver.take<std::byte>(heads * v, 64);
  workspace_.on_device = carver.take<std::byte>(device_->workspace_bytes(attention_bounds()),
                                                page_bytes);
}

Status Forward::create(const std::shared_ptr<Device>& device, const ForwardBounds& bounds,
                       std::unique_ptr<Forward>* out) {
  CacheNeeds needs;
  needs.kind = "attention without a cache";
  needs.row_k.head_dim = bounds.head_dim_k;
  needs.row_v.head_dim = bounds.head_dim_v;
  if (Status s = device->check(needs); s != Status::ok) return s;
  std::unique_ptr<Forward> forward(new (std::nothrow) Forward(device, bounds));
  if (!forward)
    return fail(Status::out_of_memory, "the process has no memory for the object of an operator");
  Carver measured_host, measured_device;
  forward->carve_host(measured_host);
  forward->carve_device(measured_device);
  if (!forward->memory_.measure(measured_host, measured_device)) {
    return fail(Status::overflow,
                "max_rows %d, max_q_len %d, max_kv_len %d, n_kv_heads %d, head_dim_k %d and "
                "head_dim_v %d need more bytes than the address space has",
                bounds.max_rows, bounds.max_q_len, bounds.max_kv_len, bounds.n_kv_heads,
                bounds.head_dim_k, bounds.head_dim_v);
  }
  if (Status s = forward->memory_.take(false); s != Status::ok) return s;
  Carver host(forward->memory_.host()), on_device(forward->memory_.on_device());
  forward->carve_host(host);
  forward->carve_device(on_device);
  std::iota(forward->entries_, forward->entries_ + cells_of(bounds), 0);
  const Status attached = device->attach(forward->attention_bounds(), forward->workspace_,
                                         &forward->on_device_);
  if (attached != Status::ok) return attached;
  *out = std::move(forward);
  return Status::ok;
}

LayerStorage Forward::storage_for(const ForwardCall& call) const {
  LayerStorage storage;
  const int32_t n_cells = call.n_rows * call.kv_len;
  storage.k = slab_of(k_, k_head_bytes_, call.k, n_cells);
  storage.v = slab_of(v_, v_head_bytes_, call.v, n_cells);
  return storage;
}

/// A row of the batch is a list, whose entries all lists share.
void Forward::make_plan(const ForwardCall& call) {
  plan_ = {};
  plan_.rows = rows_;
  plan_.lists = lists_;
  plan_.padding = padding_;
  plan_.tokens = {entries_, entries_};
  plan_.columns_by_list = true;
  plan_.batch = call.n_rows;
  for (int32_t r = 0; r < call.n_rows; ++r) {
    TokenList list;
    list.count[0] = list.total = call.kv_len;
    list.first_cell = r * call.kv_len;
    bool attends = false;
    for (int32_t i = 0; i < call.q_len; ++i) {
      AttentionRow row;
      row.token = r * call.q_len + i;
      row.list = plan_.n_lists;
      row.sequence = r;
      row.position = call.first_position + i;
      row.end = call.causal ? std::clamp(row.position + 1, 0, call.kv_len) : call.kv_len;
      row.begin = row.position < 0 ? 0 : call.visibility.low(row.position);
      if (row.begin >= row.end) {
        padding_[plan_.n_padding++] = row.token;
      } else {
        rows_[plan_.n_rows++] = row;
        attends = true;
      }
    }
    if (attends) lists_[plan_.n_lists++] = list;
  }
}

Status Forward::store(const ForwardCall& call, const LayerStorage& storage) {
  StoreParams params;
  params.storage = storage;
  params.cell = entries_;
  params.n_tokens = call.n_rows * call.kv_len;
  params.k = call.k;
  params.v = call.v;
  return on_device_->store(params);
}

Status Forward::run(const ChosenOperator& op, const ForwardCall& call) {
  make_plan(call);
  AttentionParams params;
  params.storage = storage_for(call);
  params.constants = call.constants;
  params.plan = plan_;
  params.tensors = call.tensors;
  params.settings = op.settings;
  if (call.tensors.drops)
    params.dropout = Dropout::of(call.tensors.dropout_seed, op.dropout_probability, call.layer);
  const FeatureSet needed = feature_forward | needed_features(params, call.visibility, !call.causal);
  params.n_columns = call.kv_len;
  params.layer = call.layer;
  const Mode mode = call.q_len == 1 && !call.tensors.drops ? mode_autoregressive : mode_train;
  params.features = needed;
  params.mode = mode;
  if (Status s = check_modes(*op.op, mode); s != Status::ok) return s;
  if (Status s = check_operator(*op.op, needed, params.storage); s != Status::ok) return s;
  if (Status s = store(call, params.storage); s != Status::ok) return s;
  const TokenRange all = {0, cells_of(bounds_)};
  const bool tells = device_->info().follows_tokens && !entries_are_told_;
  entries_are_told_ = true;
  const Status begun = on_device_->begin_pass(plan_, {&all, tells ? 1 : 0}, nullptr);
  return begun == Status::ok ? on_device_->attention(*op.op, params) : begun;
}

}  // namespace kvc
