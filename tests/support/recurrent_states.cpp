#include <algorithm>
#include <cmath>

#include "host_view.hpp"
#include "model/formats.hpp"
#include "recurrent_world.hpp"

/// States by copy and in place.
namespace fuzz {
namespace {

std::string of_part(int32_t layer, int32_t part) {
  return "layer " + std::to_string(layer) + " part " + std::to_string(part);
}

}  // namespace

// ---- Layout ------------------------------------------------------------------------------------

void RecurrentWorld::state_layout() {
  const int32_t wanted_n = static_cast<int32_t>(oracle_.layout().size());
  const int32_t capacity = random_.chance(0.02) ? -1 : random_.below(wanted_n + 2);
  const bool with_order = random_.chance(0.7);
  Call made = query(Op::state_layout, {}, "capacity " + std::to_string(capacity));
  kvc_state_sequence untouched{};
  untouched.sequence = -77;
  std::vector<kvc_state_sequence> sequences(static_cast<size_t>(std::max(capacity, 0)) + 1, untouched);
  Numbers order(static_cast<size_t>(setup_.cache.max_batch), -7);
  int32_t n = -7;
  const kvc_status status = kvc_state_layout(door_of_kind(), capacity, sequences.data(), &n,
                                             with_order ? order.data() : nullptr);
  const kvc_status expected = !oracle_.pass_open ? KVC_E_BAD_STATE
                              : capacity < 0     ? KVC_E_INVALID_ARGUMENT
                                                 : KVC_OK;
  if (status == KVC_OK && expected == KVC_OK) {
    expect_equal(n, wanted_n, "sequences of the layout");
    if (sequences.back().sequence != -77) differ("the layout wrote beyond its capacity");
    sequences.resize(static_cast<size_t>(std::min(n, capacity)));
    const std::vector<model::RecurrentRows> wanted = compare_layout(sequences);
    Numbers in_order;
    for (const model::RecurrentRows& rows : wanted)
      in_order.insert(in_order.end(), rows.tokens.begin(), rows.tokens.end());
    for (int32_t i = 0; i < oracle_.pass.n_tokens; ++i)
      if (std::find(in_order.begin(), in_order.end(), i) == in_order.end()) in_order.push_back(i);
    in_order.resize(order.size(), -7);
    if (with_order && order != in_order)
      differ("order is " + text(order) + ", expected " + text(in_order));
  }
  judge(made, status, expected);
}

/// Of as many sequences as there are; the whole layout of the oracle.
std::vector<model::RecurrentRows> RecurrentWorld::compare_layout(
    const std::vector<kvc_state_sequence>& sequences) {
  const std::vector<model::RecurrentRows> wanted = oracle_.layout();
  int32_t token = 0, row = 0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const kvc_state_sequence& got = sequences[i];
    const auto n_tokens = static_cast<int32_t>(wanted[i].tokens.size());
    const auto n_rows = static_cast<int32_t>(wanted[i].states.size());
    expect_equal(got.sequence, wanted[i].sequence, "sequence of the layout");
    expect_equal(got.n_tokens, n_tokens, "n_tokens");
    expect_equal(got.first_token, token, "first_token");
    expect_equal(got.first_row, row, "first_row");
    expect_equal(got.n_rows, n_rows, "n_rows");
    const bool in_range = got.read_slot >= 0 && got.read_slot < n_viewed_slots();
    if (!in_range) differ("a read slot that does not exist");
    const bool is_new = !oracle_.pass.reserve &&
                        oracle_.pass.before[static_cast<size_t>(got.sequence)].next == 0;
    if (is_new) expect_equal(got.read_slot, 0, "read slot of a new sequence");
    token += n_tokens;
    row += n_rows;
  }
  return wanted;
}

// ---- By copy -----------------------------------------------------------------------------------

void RecurrentWorld::compare_states(int32_t layer, int32_t part, int32_t state,
                                    const support::Array& got, int64_t row, const char* what) const {
  const std::vector<float> wanted = oracle_.values(state, layer, part);
  const auto size = static_cast<int64_t>(wanted.size());
  for (int64_t e = 0; e < size; ++e) {
    const double exact = model::round_to(got.tensor()->dtype, wanted[static_cast<size_t>(e)]);
    if (!same(got.get(row * size + e), exact))
      differ(std::string(what) + ": row " + std::to_string(row) + " element " + std::to_string(e) +
             " of " + of_part(layer, part) + " is " + std::to_string(got.get(row * size + e)) +
             ", expected " + std::to_string(exact));
  }
}

void RecurrentWorld::state_get() {
  const int32_t layer = some_layer(), part = some_part();
  const std::vector<model::RecurrentRows> layout = oracle_.layout();
  const auto n = static_cast<int64_t>(layout.size());
  support::Array into = draw_states(n, part);
  kvc_status expected = oracle_.needs_part(layer, part);
  Call made = query(Op::state_get, oracle_.pass.sequence, of_part(layer, part));
  const Door at = door(layer);
  if (random_.chance(0.1)) {  // only what it would be
    kvc_tensor shape{};
    const kvc_status status = kvc_state_get(at.cache, at.layer, part, &shape);
    if (status == KVC_OK && expected == KVC_OK) {
      expect_equal(shape.ndim, part == KVC_PART_CONV ? 3 : 2, "dimensions of a part");
      expect_equal(shape.shape[0], n, "sequences of a part");
      const int64_t columns = part == KVC_PART_CONV ? shape.shape[2] : 1;
      expect_equal(shape.shape[1] * columns, oracle_.size_of(part), "size of a part");
      expect_equal(shape.dtype, oracle_.dtype_of(part), "dtype of a part");
    }
    return judge(made, status, expected);
  }
  kvc_tensor given = *into.tensor();
  const kvc_status spoilt = spoil(given, true);
  if (expected == KVC_OK) expected = spoilt;
  const kvc_status status = kvc_state_get(at.cache, at.layer, part, &given);
  if (status == KVC_OK && expected == KVC_OK && !oracle_.pass.reserve) {
    if (!into.gaps_intact()) differ("state_get wrote beside its output");
    for (int64_t i = 0; i < n; ++i) {
      const int32_t s = layout[static_cast<size_t>(i)].sequence;
      compare_states(layer, part, oracle_.pass.before[static_cast<size_t>(s)].state, into, i,
                     "state_get");
    }
  }
  judge(made, status, expected);
}

void RecurrentWorld::state_put() {
  int32_t layer = 0;
  const int32_t part = missing_part(&layer);
  support::Array from = draw_states(oracle_.n_rows(), part);
  fill_values(from);
  kvc_status expected = oracle_.needs_part(layer, part);
  Call made = call(Op::state_put, oracle_.pass.sequence, of_part(layer, part));
  kvc_tensor given = *from.tensor();
  const kvc_status spoilt = spoil(given, true);
  if (expected == KVC_OK) expected = spoilt;
  if (expected == KVC_OK) oracle_.put(layer, part, from.floats());
  const Door at = door(layer);
  judge(made, kvc_state_put(at.cache, at.layer, part, &given), expected);
}

void RecurrentWorld::state_conv() {
  int32_t layer = 0;
  missing_part(&layer);
  const int64_t n = n_tokens(), channels = setup_.recurrent.conv_channels;
  support::Array x(some_dtype(), {n, std::max<int64_t>(channels, 1)}, random_);
  fill_values(x);
  spoil_padding(x);
  kvc_status expected = oracle_.needs_part(layer, KVC_PART_CONV);
  Call made = call(Op::state_conv, oracle_.pass.sequence, "layer " + std::to_string(layer));
  kvc_tensor given = *x.tensor();
  if (random_.chance(0.03)) {
    ++given.shape[random_.below(2)];
    if (expected == KVC_OK) expected = KVC_E_SHAPE;
  }
  if (expected == KVC_OK) oracle_.conv(layer, x.floats());
  const Door at = door(layer);
  judge(made, kvc_state_conv(at.cache, at.layer, &given), expected);
}

// ---- In place ----------------------------------------------------------------------------------

/// Element e of a slot, as a double, and where it lies.
namespace {

char* slot_of(const kvc_tensor& view, int32_t slot) {
  return static_cast<char*>(view.data) + view.byte_offset +
         int64_t{slot} * view.strides[0] * (view.dtype == KVC_F32 ? 4 : 2);
}

double element(const kvc_tensor& view, int32_t slot, int64_t e) {
  return model::load(slot_of(view, slot), view.dtype, e);
}

}  // namespace

/// All but those that checkpoints have in host memory.
int64_t RecurrentWorld::n_viewed_slots() const {
  const bool apart = (setup_.recurrent.flags & KVC_RECURRENT_HOST_CHECKPOINTS) != 0 &&
                     support::over_fake_device();
  const int64_t n_checkpoints = std::max(oracle_.recurrent.checkpoints, 0);
  return oracle_.n_slots() - (apart ? oracle_.cache.max_sequences * n_checkpoints : 0);
}

/// The slots that may be read show the states from before the pass, slot 0 zeros, and the rows what was put.
void RecurrentWorld::compare_slots(int32_t layer, int32_t part, const kvc_tensor& view) {
  std::vector<kvc_state_sequence> sequences(oracle_.layout().size());
  int32_t n = 0, n_rows = 0;
  Numbers slots(static_cast<size_t>(oracle_.n_rows()));
  if (kvc_state_layout(handle(), static_cast<int32_t>(sequences.size()), sequences.data(), &n,
                       nullptr) != KVC_OK ||
      kvc_state_slots(door_of_kind(), static_cast<int32_t>(slots.size()), slots.data(), &n_rows) !=
          KVC_OK)
    differ("layout or slots: " + support::last_message());
  expect_equal(view.shape[0], n_viewed_slots(), "slots of a view");
  expect_equal(view.dtype, oracle_.dtype_of(part), "dtype of a view");
  expect_equal(n_rows, oracle_.n_rows(), "slots to write");
  const int64_t size = oracle_.size_of(part);
  const auto compare = [&](int32_t slot, const std::vector<float>& wanted, const char* what) {
    for (int64_t e = 0; e < size; ++e)
      if (!same(element(view, slot, e), wanted[static_cast<size_t>(e)]))
        differ(std::string(what) + " shows something else in slot " + std::to_string(slot) +
               " of " + of_part(layer, part));
  };
  compare(0, std::vector<float>(static_cast<size_t>(size)), "the slot of zeros");
  for (const int32_t slot : slots) {
    if (slot < 1 || slot >= n_viewed_slots()) differ("a slot to write that does not exist");
    if (std::count(slots.begin(), slots.end(), slot) != 1) differ("two rows have one slot");
    for (const kvc_state_sequence& each : sequences)
      if (each.read_slot == slot) differ("a slot to write is read");
  }
  if (setup_.cache.flags & KVC_CACHE_ZERO_ON_FREE) compare_freed(layer, part, view, slots);
  if (oracle_.pass.reserve) return;
  const bool put = oracle_.pass.put[static_cast<size_t>(layer * 2 + (part == KVC_PART_RECURRENT))];
  size_t row = 0;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const model::RecurrentRows& rows = oracle_.pass.layout[i];
    const int32_t before = oracle_.pass.before[static_cast<size_t>(rows.sequence)].state;
    compare(sequences[i].read_slot, oracle_.values(before, layer, part), "a slot to read");
    for (const int32_t state : rows.states) {
      if (put) compare(slots[row], oracle_.values(state, layer, part), "a slot that was put");
      ++row;
    }
  }
}

/// With ZERO_ON_FREE a slot holds zeros, or a state that somebody holds, or will be written by this pass.
void RecurrentWorld::compare_freed(int32_t layer, int32_t part, const kvc_tensor& view,
                                   const Numbers& to_write) const {
  std::vector<std::vector<float>> live = {oracle_.values(0, layer, part)};
  for (const auto* list : {&oracle_.sequences, &oracle_.pass.before})
    for (const model::RecurrentSequence& sequence : *list) {
      live.push_back(oracle_.values(sequence.state, layer, part));
      for (const model::Checkpoint& each : sequence.checkpoints)
        live.push_back(oracle_.values(each.state, layer, part));
    }
  const int64_t size = oracle_.size_of(part);
  for (int32_t slot = 1; slot < n_viewed_slots(); ++slot) {
    if (std::count(to_write.begin(), to_write.end(), slot) > 0) continue;
    const bool known = std::any_of(live.begin(), live.end(), [&](const std::vector<float>& values) {
      for (int64_t e = 0; e < size; ++e)
        if (!same(element(view, slot, e), values[static_cast<size_t>(e)])) return false;
      return true;
    });
    if (!known) differ("slot " + std::to_string(slot) + " was freed and is not zero");
  }
}

void RecurrentWorld::write_rows(int32_t part, const kvc_tensor& view, const Numbers& slots,
                                const std::vector<float>& rows) {
  const int64_t size = oracle_.size_of(part);
  for (size_t row = 0; row < slots.size(); ++row)
    for (int64_t e = 0; e < size; ++e)
      model::store(slot_of(view, slots[row]), view.dtype, e,
                   rows[row * static_cast<size_t>(size) + static_cast<size_t>(e)]);
}

/// Looks at a view, and mostly writes its rows and says so.
void RecurrentWorld::state_in_place() {
  int32_t layer = 0;
  const int32_t part = missing_part(&layer);
  const support::Array states = draw_states(0, part);
  std::vector<int64_t> dims(states.tensor()->shape + 1,
                            states.tensor()->shape + states.tensor()->ndim);
  const bool plain = random_.chance(0.3);
  Call made = call(Op::state_in_place, oracle_.pass.sequence, of_part(layer, part));
  kvc_status expected = oracle_.needs_part(layer, part);
  auto n_dims = static_cast<int32_t>(dims.size());
  if (expected == KVC_OK && !plain && random_.chance(0.05)) {
    ++dims.back();
    expected = KVC_E_INVALID_RECURRENT_SHAPE;
  } else if (expected == KVC_OK && !plain && random_.chance(0.05)) {
    n_dims = random_.pick({8, -1, INT32_MAX});
    expected = KVC_E_INVALID_ARGUMENT;
  }
  const Door at = door(layer);
  kvc_tensor view{};
  const kvc_status status = plain ? kvc_state_view(at.cache, at.layer, part, 0, nullptr, &view)
                                  : kvc_state_view(at.cache, at.layer, part, n_dims, dims.data(),
                                                   &view);
  if (status != KVC_OK || expected != KVC_OK) return judge(made, status, expected);
  view = support::on_host(view);
  compare_slots(layer, part, view);
  if (oracle_.pass.reserve || random_.chance(0.2)) {
    state_may_change_ = false;
    return judge(made, status, expected);
  }
  int32_t n_rows = 0;
  Numbers slots(static_cast<size_t>(oracle_.n_rows()));
  if (kvc_state_slots(handle(), static_cast<int32_t>(slots.size()), slots.data(), &n_rows) != KVC_OK)
    differ("slots: " + support::last_message());
  support::Array rows(oracle_.dtype_of(part), {n_rows, oracle_.size_of(part)});
  fill_values(rows);
  write_rows(part, view, slots, rows.floats());
  oracle_.put(layer, part, rows.floats());
  judge(made, kvc_state_done(at.cache, at.layer, part), KVC_OK);
}

// ---- Outside a pass ----------------------------------------------------------------------------

void RecurrentWorld::state_gather() {
  const int32_t layer = some_layer(), part = some_part(), sequence = some_sequence();
  const int32_t g = random_.chance(0.03) ? odd_number() : some_position(sequence);
  support::Array into = draw_states(-1, part);
  Call made = query(
      Op::state_gather, {sequence},
      of_part(layer, part) + " sequence " + std::to_string(sequence) + " at " + std::to_string(g));
  const bool exists = layer >= 0 && layer < n_layers() && oracle_.has(part) &&
                      oracle_.is_sequence(sequence) && g >= 0;
  kvc_tensor given = *into.tensor();
  kvc_status expected = spoil(given, false);
  const int32_t state = exists ? oracle_.state_at(sequence, g) : -1;
  if (!exists)
    expected = KVC_E_INVALID_ARGUMENT;
  else if (expected == KVC_OK && state < 0)
    expected = KVC_E_NOT_FOUND;
  const Door at = door(layer, sequence);
  const kvc_status status = kvc_state_gather(at.cache, at.layer, part, sequence, g, &given);
  if (status == KVC_OK && expected == KVC_OK) {
    if (!into.gaps_intact()) differ("state_gather wrote beside its output");
    compare_states(layer, part, state, into, 0, "state_gather");
  }
  judge(made, status, expected);
}

void RecurrentWorld::list_checkpoints() {
  const int32_t sequence = some_sequence();
  checkpoint_list(sequence, random_.chance(0.02) ? -1 : random_.below(7));
}

/// NOT_SUPPORTED before anything else is looked at, so that no argument matters.
void RecurrentWorld::lacking() {
  const int32_t which = random_.below(9), number = odd_number();
  Call made = query(Op::lacking, {}, std::to_string(which));
  kvc_cache* const c = handle();
  const auto perform = [&]() -> kvc_status {
    switch (which) {
      case 0: return kvc_set_causal(c, number, nullptr);
      case 1: return kvc_bind_rope(c, number, number, nullptr, nullptr);
      case 2: return kvc_bind_shift(c, nullptr, nullptr);
      case 3: return kvc_put(c, number, nullptr, nullptr);
      case 4: return kvc_get(c, number, nullptr, nullptr);
      case 5: return kvc_mask(c, number, nullptr);
      case 6: return kvc_attention(c, number, nullptr, nullptr, nullptr);
      case 7: return kvc_gather(c, number, number, nullptr, nullptr);
      default: return kvc_bind_attention(c, number, number, nullptr, nullptr, nullptr);
    }
  };
  judge(made, perform(), KVC_E_NOT_SUPPORTED);
}

}  // namespace fuzz
