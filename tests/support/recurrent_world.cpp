#include "recurrent_world.hpp"

#include <algorithm>

/// Which operation comes next and with which arguments.
namespace fuzz {

RecurrentWorld::RecurrentWorld(kvc_device* device, const RecurrentSetup& setup,
                               const support::Random& random, Counts& counts)
    : StateWorld(device, random, counts), setup_(setup), oracle_(setup.cache, setup.recurrent) {
  cache_.status = kvc_cache_create(device, &setup.cache, &setup.recurrent, &cache_.handle);
  if (cache_.status != KVC_OK) differ("create: " + support::last_message());
  poison_all();
  compare_all();
}

std::vector<Choice> RecurrentWorld::layer_choices() {
  const bool open = oracle_.pass_open;
  const int32_t put = !open ? 10 : is_complete() ? 25 : 150;
  const int32_t work = open ? 30 : 8;
  return {{work, [this] { state_layout(); }},      {work, [this] { state_get(); }},
          {put, [this] { state_put(); }},          {put / 2, [this] { state_conv(); }},
          {put / 2, [this] { state_in_place(); }}, {30, [this] { state_gather(); }},
          {20, [this] { list_checkpoints(); }},    {10, [this] { lacking(); }}};
}

std::vector<Choice> RecurrentWorld::more_choices() {
  return {{oracle_.pass_open ? 0 : 6, [this] { compare_rebuilt(); }}};
}

// ---- Arguments ---------------------------------------------------------------------------------

int32_t RecurrentWorld::some_part() {
  if (random_.chance(0.02)) return random_.pick({0, 3, -1, INT32_MAX});
  return random_.pick({KVC_PART_CONV, KVC_PART_RECURRENT});
}

int32_t RecurrentWorld::missing_part(int32_t* layer) {
  int32_t part = some_part();
  *layer = some_layer();
  for (int32_t tries = 0; tries < 6 && oracle_.needs_part(*layer, part) == KVC_OK; ++tries) {
    const auto at = static_cast<size_t>(*layer * 2 + (part == KVC_PART_RECURRENT));
    if (oracle_.pass.put.empty() || !oracle_.pass.put[at]) break;
    part = some_part();
    *layer = some_layer();
  }
  for (int32_t tries = 0; tries < 4 && !oracle_.has(part); ++tries) part = some_part();
  return part;
}

support::Array RecurrentWorld::draw_states(int64_t n, int32_t part) {
  std::vector<int64_t> shape;
  if (n >= 0) shape.push_back(n);
  int64_t left = std::max<int64_t>(oracle_.size_of(part), 1);
  for (int64_t dim = 2; left > 1 && shape.size() < 4; ++dim) {
    if (left % dim != 0 || random_.chance(0.4)) {
      if (dim >= left) break;
      continue;
    }
    shape.push_back(dim);
    left /= dim;
    dim = 1;
  }
  shape.push_back(left);
  if (random_.chance(0.2)) shape.push_back(1);
  return support::Array(some_dtype(), shape, random_);
}

kvc_status RecurrentWorld::spoil(kvc_tensor& tensor, bool has_rows) {
  const auto last = tensor.ndim - 1;
  switch (random_.below(60)) {
    case 0:
      if (!has_rows) return KVC_OK;
      ++tensor.shape[0];
      return KVC_E_SHAPE;
    case 1: ++tensor.shape[last]; return KVC_E_INVALID_RECURRENT_SHAPE;
    case 2: tensor.shape[last] = 0; return KVC_E_INVALID_RECURRENT_SHAPE;
    case 3: tensor.ndim = 0; return KVC_E_SHAPE;
    case 4: tensor.dtype = KVC_BOOL; return KVC_E_DTYPE;
    case 5:
      if (!has_rows) return KVC_OK;
      tensor.ndim = 1;
      return KVC_E_INVALID_RECURRENT_SHAPE;
    default: return KVC_OK;
  }
}

bool RecurrentWorld::has_drafts() const {
  return std::any_of(oracle_.pass.layout.begin(), oracle_.pass.layout.end(),
                     [](const model::RecurrentRows& rows) { return rows.states.size() > 1; });
}

}  // namespace fuzz
