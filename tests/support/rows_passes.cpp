#include <algorithm>
#include <cmath>

#include "rows_world.hpp"

/// Passes of rows and what is put in them; the constants of the model, and calls that transformer caches do not have.
namespace fuzz {

model::RowsBatch RowsWorld::Rows::given() const {
  return {q_len, flags, valid.empty() ? nullptr : valid.data(), array ? &mask : nullptr,
          types.empty() ? nullptr : types.data()};
}

std::string RowsWorld::Rows::text() const {
  std::string result = "q_len " + std::to_string(q_len) + " flags " + std::to_string(flags);
  if (!valid.empty()) result += " valid " + fuzz::text(valid);
  if (!types.empty()) result += " types " + fuzz::text(types);
  if (!array) return result;
  result += mask.of_tokens ? " mask of tokens, n " : " mask, n ";
  result += std::to_string(mask.n) + " ";
  for (const char sees : mask.sees) result += sees ? '1' : '0';
  return result;
}

// ---- Drawing a pass ----------------------------------------------------------------------------------------------------------

RowsWorld::Rows RowsWorld::draw_rows() {
  Rows rows;
  const int32_t most = oracle_.q_max();
  rows.q_len = random_.chance(0.3) ? 1 : random_.chance(0.2) ? most : random_.between(1, most);
  if (random_.chance(0.2)) rows.flags |= KVC_ROWS_NOT_CAUSAL;
  bool is_full = false;
  for (int32_t b = 0; b < n_sequences(); ++b) is_full = is_full || room(b) < rows.q_len;
  if (random_.chance(is_full ? 0.95 : 0.5))
    for (int32_t b = 0; b < n_sequences(); ++b) {
      const int32_t fits = std::min(rows.q_len, room(b));
      rows.valid.push_back(random_.chance(0.5) ? fits : random_.below(fits + 1));
    }
  if (random_.chance(oracle_.is_ring() ? 0.03 : 0.4)) give_mask(rows);
  if (random_.chance(0.35))
    for (int32_t t = 0; t < n_sequences() * rows.q_len; ++t)
      rows.types.push_back(random_.pick({0, 0, 1, 1, 2, -7}));
  if (random_.chance(0.04)) spoil(rows);
  return rows;
}

/// A mask that reaches at least the furthest new position, as a tensor of some layout and type.
void RowsWorld::give_mask(Rows& rows) {
  const int32_t batch = n_sequences(), length = setup_.cache.capacity;
  if (random_.chance(0.25)) give_right_padding(rows);
  const bool postpadded = rows.flags & KVC_ROWS_POSTPADDED;
  int32_t reaches = 1;
  for (int32_t b = 0; b < batch; ++b) {
    const int32_t taken = rows.valid.empty() || postpadded ? rows.q_len
                                                           : rows.valid[static_cast<size_t>(b)];
    reaches = std::max(reaches, std::min(length, oracle_.next(b) + taken));
  }
  if (!postpadded) {
    rows.mask.n = random_.between(reaches, length);
    if (random_.chance(0.04)) rows.mask.n = random_.chance(0.5) ? length + 1 : reaches - 1;
    rows.mask.of_tokens = random_.chance(0.4);
    const int64_t lines = int64_t{batch} * (rows.mask.of_tokens ? rows.q_len : 1);
    const double hidden = random_.pick({0.0, 0.1, 0.5, 0.95});
    for (int64_t i = 0; i < lines * rows.mask.n; ++i)
      rows.mask.sees.push_back(!random_.chance(hidden));
  }
  const int64_t n = rows.mask.n;
  rows.array.emplace(random_.pick<uint32_t>({KVC_BOOL, KVC_I32}),
                     rows.mask.of_tokens ? std::vector<int64_t>{batch, 1, rows.q_len, n}
                                         : std::vector<int64_t>{batch, n},
                     random_);
  for (size_t i = 0; i < rows.mask.sees.size(); ++i)
    rows.array->set(static_cast<int64_t>(i), rows.mask.sees[i] ? random_.pick({1, 7, -1}) : 0);
}

/// How many tokens each row takes is read off the mask.
void RowsWorld::give_right_padding(Rows& rows) {
  rows.flags |= KVC_ROWS_POSTPADDED;
  rows.valid.clear();
  const int32_t length = setup_.cache.capacity;
  rows.mask.n = random_.chance(0.7) ? length : random_.between(1, length);
  const bool hole = random_.chance(0.05);
  for (int32_t b = 0; b < n_sequences(); ++b) {
    const int32_t first = oracle_.next(b);
    const int32_t valid = random_.below(std::max(0, std::min(rows.q_len, room(b))) + 1);
    for (int32_t j = 0; j < rows.mask.n; ++j) {
      const bool is_new = first <= j && j < first + rows.q_len;
      rows.mask.sees.push_back(is_new && !hole ? j < first + valid : !random_.chance(0.3));
    }
  }
}

/// Makes the call illegal, or most likely so.
void RowsWorld::spoil(Rows& rows) {
  const auto row = static_cast<size_t>(random_.below(n_sequences()));
  switch (random_.below(6)) {
    case 0: rows.q_len = random_.pick({0, -1, INT32_MIN, INT32_MAX, oracle_.q_max() + 1}); return;
    case 1: rows.flags |= random_.pick({16u, 1u << 31, 1u << 16}); return;
    case 2:
      if (rows.flags & KVC_ROWS_POSTPADDED) return;
      rows.valid.resize(static_cast<size_t>(n_sequences()), 0);
      rows.valid[row] = random_.chance(0.5) ? rows.q_len + 1 : random_.pick({-1, INT32_MIN});
      return;
    case 3:
      if (!rows.array) rows.flags |= KVC_ROWS_POSTPADDED;
      return;
    case 4:
      if (!rows.array || oracle_.is_ring()) return;
      rows.array->tensor()->dtype = random_.pick<uint32_t>({KVC_F32, KVC_F16, KVC_U8});
      rows.refused = KVC_E_DTYPE;
      return;
    default:
      if (!rows.array || oracle_.is_ring()) return;
      ++rows.array->tensor()->shape[0];
      rows.refused = KVC_E_SHAPE;
  }
}

kvc_status RowsWorld::status_of(const Rows& rows) const {
  const kvc_status status = oracle_.fits_rows(rows.given());
  // What the mask says cannot be read when it is no mask.
  const bool is_read = rows.flags & KVC_ROWS_POSTPADDED && !rows.given().valid;
  const bool earlier = status == KVC_E_INVALID_ARGUMENT && !is_read;
  return rows.refused != KVC_OK && !earlier ? rows.refused : status;
}

// ---- A pass ------------------------------------------------------------------------------------------------------------------

void RowsWorld::begin_drawn() {
  const Rows rows = draw_rows();
  Call made = call(Op::begin, {}, rows.text());
  const kvc_status expected = status_of(rows);
  if (expected == KVC_OK) oracle_.begin_rows(rows.given());
  const model::RowsBatch given = rows.given();
  judge(made,
        kvc_begin_rows(cache_, rows.q_len, rows.flags, given.valid, rows.tensor(), given.types,
                       nullptr),
        expected);
}

void RowsWorld::begin_reserve() {
  Rows rows;
  rows.q_len = random_.chance(0.05) ? odd_number() : random_.between(1, oracle_.q_max());
  rows.flags = KVC_ROWS_RESERVE;
  Call made = call(Op::begin_reserve, {}, rows.text());
  const kvc_status expected = oracle_.begin_rows(rows.given());
  judge(made, kvc_begin_rows(cache_, rows.q_len, rows.flags, nullptr, nullptr, nullptr, nullptr),
        expected);
}

void RowsWorld::fits() {
  const Rows rows = draw_rows();
  Call made = query(Op::fits, {}, rows.text());
  const kvc_status expected = status_of(rows);
  const model::RowsBatch given = rows.given();
  judge(made, kvc_fits_rows(cache_, rows.q_len, rows.flags, given.valid, rows.tensor(), given.types),
        expected);
}

/// As many tokens of NaN as every row takes. No pass is open.
void RowsWorld::poison_by_abort() {
  log_.push_back("poison by an aborted pass");
  Numbers valid;
  for (int32_t b = 0; b < n_sequences(); ++b) valid.push_back(std::min(oracle_.q_max(), room(b)));
  const kvc_status status = kvc_begin_rows(cache_, oracle_.q_max(), 0, valid.data(), nullptr,
                                           nullptr, nullptr);
  if (status != KVC_OK) differ("begin of a pass of NaN: " + support::last_message());
  put_nan();
  if (kvc_abort(cache_) != KVC_OK) differ("abort: " + support::last_message());
  ++counts_.poisonings;
  state_may_change_ = false;
  compare_all();
}

void RowsWorld::put_nan() {
  const int64_t batch = n_sequences(), q = oracle_.q_max();
  support::Array k(KVC_F32, {batch, q, setup_.cache.n_kv_heads, oracle_.cache.head_dim_k});
  support::Array v(KVC_F32, {batch, q, oracle_.value_heads(), oracle_.cache.head_dim_v});
  k.fill(std::nan(""));
  v.fill(std::nan(""));
  for (int32_t layer = 0; layer < n_layers(); ++layer)
    if (kvc_put(cache_, layer, k.tensor(), oracle_.v_in_k() ? nullptr : v.tensor()) != KVC_OK)
      differ("put of NaN: " + support::last_message());
}

// ---- Puts --------------------------------------------------------------------------------------------------------------------

RowsWorld::KeysAndValues RowsWorld::draw_keys_and_values() {
  const int64_t batch = n_sequences();
  KeysAndValues drawn = {
      support::Array(some_dtype(),
                     {batch, q_len(), setup_.cache.n_kv_heads, oracle_.cache.head_dim_k}, random_),
      support::Array(some_dtype(),
                     {batch, q_len(), oracle_.value_heads(), oracle_.cache.head_dim_v}, random_)};
  for (support::Array* each : {&drawn.k, &drawn.v}) {
    fill_values(*each);
    spoil_padding(*each);
  }
  return drawn;
}

const kvc_tensor* RowsWorld::v_of(const KeysAndValues& drawn) const {
  return oracle_.v_in_k() ? nullptr : drawn.v.tensor();
}

kvc_status RowsWorld::spoil(KeysAndValues& drawn) {
  if (!random_.chance(0.02)) return KVC_OK;
  kvc_tensor& k = *drawn.k.tensor();
  switch (random_.below(3)) {
    case 0: ++k.shape[random_.below(2)]; return KVC_E_SHAPE;
    case 1: k.ndim = 3; return KVC_E_SHAPE;
    default: k.dtype = KVC_I32; return KVC_E_DTYPE;
  }
}

void RowsWorld::put() {
  const int32_t layer = missing_layer();
  KeysAndValues drawn = draw_keys_and_values();
  const std::vector<float> k = drawn.k.floats(), v = drawn.v.floats();
  Call made = call(Op::put, {}, "layer " + std::to_string(layer));
  kvc_status expected = oracle_.needs_pass(layer);
  if (expected == KVC_OK) expected = spoil(drawn);
  if (expected == KVC_OK) oracle_.put(layer, k, v);
  const Door at = door(layer);
  judge(made, kvc_put(at.cache, at.layer, drawn.k.tensor(), v_of(drawn)), expected);
}

kvc_status RowsWorld::put_codes(kvc_cache* cache, int32_t layer, int32_t q,
                                const model::Oracle::Bytes& k, const model::Oracle::Bytes& v) const {
  const int64_t batch = n_sequences();
  CodeArrays keys(oracle_.storage_k, k, {batch, q, setup_.cache.n_kv_heads});
  if (oracle_.v_in_k())
    return kvc_put_codes(cache, layer, keys.codes.tensor(), keys.scales_or_null(), nullptr, nullptr);
  CodeArrays values(oracle_.storage_v, v, {batch, q, oracle_.value_heads()});
  return kvc_put_codes(cache, layer, keys.codes.tensor(), keys.scales_or_null(),
                       values.codes.tensor(), values.scales_or_null());
}

void RowsWorld::put_codes() {
  const int32_t layer = missing_layer();
  const int64_t n = int64_t{n_sequences()} * q_len();
  const auto k = draw_bytes(oracle_.storage_k, n * setup_.cache.n_kv_heads, random_);
  const auto v = draw_bytes(oracle_.storage_v, n * oracle_.value_heads(), random_);
  Call made = call(Op::put_codes, {}, "layer " + std::to_string(layer));
  const kvc_status expected = oracle_.needs_pass(layer);
  if (expected == KVC_OK) oracle_.put_codes(layer, k, v);
  const Door at = door(layer);
  judge(made, put_codes(at.cache, at.layer, q_len(), k, v), expected);
}

// ---- Constants, and what is not there ----------------------------------------------------------------------------------------

void RowsWorld::bind_attention() {
  if (oracle_.pass_open && oracle_.pass.reserve) return;  // left open by the contract
  const int32_t layer = random_.below(n_layers());
  LayerAttention& constants = setup_.attention[static_cast<size_t>(layer)];
  LayerAttention changed = constants;
  changed.desc.softcap = random_.pick({0.0f, 2.0f, 15.0f});
  changed.desc.scale = random_.pick({0.0f, 0.3f, 1.5f});
  Call made = query(Op::bind_attention, {}, "layer " + std::to_string(layer));
  const kvc_status expected = oracle_.pass_open ? KVC_E_BAD_STATE : KVC_OK;
  if (expected == KVC_OK) {
    constants = changed;
    changed.bind(oracle_.constants[static_cast<size_t>(layer)]);
  }
  const Door at = door(layer);
  judge(made, changed.bind(at.cache, at.layer), expected);
}

void RowsWorld::bind_scales(int32_t layer, bool of_k, bool of_v) {
  if (oracle_.pass_open && oracle_.pass.reserve) return;  // left open by the contract
  const int32_t heads = setup_.cache.n_kv_heads, value_heads = oracle_.value_heads();
  const std::vector<float> k = draw_scales(random_, heads), v = draw_scales(random_, value_heads);
  Call made = query(Op::bind_scales, {}, "layer " + std::to_string(layer));
  const kvc_status expected = oracle_.may_bind_scales(of_k, of_v);
  const auto copy = [&](const std::vector<float>& from, std::vector<float>& to, size_t first) {
    std::copy(from.begin(), from.end(), to.begin() + static_cast<ptrdiff_t>(first));
  };
  if (expected == KVC_OK && of_k) copy(k, oracle_.scales_k, oracle_.key_row(layer, 0));
  if (expected == KVC_OK && of_v) copy(v, oracle_.scales_v, oracle_.value_row(layer, 0));
  const Door at = door(layer);
  judge(made,
        kvc_bind_scales(at.cache, at.layer, at.layer + 1, of_k ? k.data() : nullptr,
                        of_v ? v.data() : nullptr),
        expected);
}

/// NOT_SUPPORTED before anything else is looked at, so that no argument matters.
void RowsWorld::lacking() {
  const int32_t which = random_.below(6), number = odd_number();
  Call made = query(Op::lacking, {}, std::to_string(which));
  kvc_status status = KVC_OK;
  switch (which) {
    case 0: status = kvc_begin(cache_, number, nullptr, nullptr, nullptr, 0, nullptr); break;
    case 1: status = kvc_fits(cache_, number, nullptr, nullptr, nullptr); break;
    case 2: status = kvc_bind_rope(cache_, number, number, nullptr, nullptr); break;
    case 3: status = kvc_bind_shift(cache_, nullptr, nullptr); break;
    case 4: status = kvc_checkpoint_take(cache_, number); break;
    default: status = kvc_encoder_query(cache_, number, nullptr, nullptr);
  }
  judge(made, status, KVC_E_NOT_SUPPORTED);
}

}  // namespace fuzz
