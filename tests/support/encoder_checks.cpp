#include <algorithm>
#include <cmath>

#include "encoder_world.hpp"
#include "fuzz_state.hpp"
#include "stored_bytes.hpp"

/// What is compared after every operation; the same state in other slots; NaN in free slots.
namespace fuzz {

void EncoderWorld::compare_kind() {
  for (int32_t s = 0; s < setup_.cache.max_sequences; ++s) {
    int32_t position = -7, length = -7;
    if (kvc_encoder_query(cache_, s, &position, &length) != KVC_OK)
      differ("query: " + support::last_message());
    expect_equal(length, oracle_.length(s), "length of an input");
    const model::EncoderSequence& sequence = oracle_.sequences[static_cast<size_t>(s)];
    expect_equal(position, sequence.input >= 0 ? sequence.at : KVC_NONE, "position of an input");
  }
  compare_places();
  counts_.record(Op::runs, true, circumstances({}));
  if (random_.chance(0.2)) compare_contents();
}

/// An input is one run at the start of a slot, stays there, and shares its slot with no other.
void EncoderWorld::compare_places() {
  for (int32_t s = 0; s < setup_.cache.max_sequences; ++s) {
    const std::vector<kvc_run> runs = support::runs(cache_, s);
    expect_equal(static_cast<int64_t>(runs.size()), oracle_.length(s) > 0, "runs");
    if (runs.empty()) continue;
    const kvc_run& run = runs[0];
    counts_.trace(static_cast<uint64_t>(run.cell) << 32 | static_cast<uint32_t>(run.length));
    expect_equal(run.length, oracle_.length(s), "length of a run");
    expect_equal(run.position, 0, "position of a run");
    expect_equal(run.offset, 0, "offset of a run");
    expect_equal(run.cell % setup_.cache.capacity, 0, "place of an input in its slot");
    if (run.cell / setup_.cache.capacity >= oracle_.slots()) differ("a slot that does not exist");
    const int32_t input = oracle_.sequences[static_cast<size_t>(s)].input;
    expect_equal(cell_of_.insert({input, run.cell}).first->second, run.cell, "cell of an input");
  }
  std::set<int32_t> cells;
  for (const int32_t input : live_inputs())
    if (!cells.insert(cell_of_.at(input)).second) differ("two inputs lie in one slot");
}

void EncoderWorld::compare_cells(const kvc_stats& stats) const {
  expect_equal(static_cast<int64_t>(stats.cells), oracle_.slots() * setup_.cache.capacity, "cells");
  expect_equal(static_cast<int64_t>(stats.cells_used), oracle_.used(), "cells_used");
  expect_equal(static_cast<int64_t>(stats.cells_shared), oracle_.shared(), "cells_shared");
}

/// Left open by the contract: whether a reserve pass counts as open, which input abort would bring back, and whether the one that
/// is carried is another's.
StateHashes EncoderWorld::state_hashes() {
  StateHashes result;
  const auto both = [&](uint64_t word) {
    fold(result.fine, word);
    fold(result.coarse, word);
  };
  const auto fold_sequence = [&](const model::EncoderSequence& sequence, const auto& into) {
    for (const int32_t number : {sequence.next, sequence.at, sequence.first})
      into(static_cast<uint64_t>(number));
    if (sequence.input < 0) return;
    const model::EncoderInput& input = oracle_.inputs[static_cast<size_t>(sequence.input)];
    into(static_cast<uint64_t>(input.length));
    for (int32_t layer = 0; input.length > 0 && layer < setup_.cache.n_layers; ++layer) {
      const bool put = input.put[static_cast<size_t>(layer)];
      into(put);
      for (int32_t row = 0; put && row < input.length; ++row)
        for (int32_t head = 0; head < setup_.cache.n_kv_heads; ++head) {
          const size_t stored = oracle_.stored_row(layer, sequence.input, row, head);
          Hash hash;
          for (const model::StoredRows* rows : {&input.k, &input.v}) fold_row(hash, *rows, stored);
          into(hash.first);
          into(hash.second);
        }
    }
  };
  for (int32_t s = 0; s < setup_.cache.max_sequences; ++s) {
    fold_sequence(oracle_.sequences[static_cast<size_t>(s)], both);
    const auto carried = oracle_.pass.carries.find(s);
    if (carried == oracle_.pass.carries.end()) continue;
    fold(result.fine, carried->second);
    fold_sequence(oracle_.pass.before[static_cast<size_t>(s)],
                  [&](uint64_t word) { fold(result.fine, word); });
  }
  fold(result.fine, !oracle_.pass_open ? 0 : oracle_.pass.reserve ? 2 : 1);
  fold(result.coarse, oracle_.pass_open && !oracle_.pass.reserve);
  return result;
}

void EncoderWorld::compare_contents() {
  for (int32_t layer = 0; layer < setup_.cache.n_layers; ++layer)
    for (int32_t s = 0; s < setup_.cache.max_sequences; ++s) {
      const int64_t n = oracle_.length(s), heads = setup_.cache.n_kv_heads;
      support::Array k(KVC_F32, {n, heads, oracle_.cache.head_dim_k});
      support::Array v(KVC_F32, {n, heads, oracle_.cache.head_dim_v});
      if (kvc_gather(cache_, layer, s, k.tensor(), v.tensor()) != KVC_OK)
        differ("gather: " + support::last_message());
      compare_gathered(layer, s, &k, &v, false);
    }
}

// ---- The same state in other slots ---------------------------------------------------------------------------------

/// One pass of one token, which carries an input of the oracle; −1: another, of one position; −2: none.
void EncoderWorld::put_again(kvc_cache* other, int32_t sequence, int32_t position,
                             int32_t input) const {
  const uint32_t flags = input == -2 ? 0 : KVC_TOKEN_ENCODER_INPUT;
  if (kvc_begin(other, 1, &position, &sequence, &flags, 0, nullptr) != KVC_OK)
    differ("the second cache: " + support::last_message());
  const int32_t n = input == -2   ? 0
                    : input == -1 ? 1
                                  : oracle_.inputs[static_cast<size_t>(input)].length;
  for (int32_t layer = 0; n > 0 && layer < setup_.cache.n_layers; ++layer) {
    const auto rows = static_cast<size_t>(n * setup_.cache.n_kv_heads);
    Codes codes{n, {}, {}};
    if (input < 0) {  // any
      codes.k = {std::vector<uint8_t>(rows * oracle_.storage_k.code_bytes(), 1),
                 std::vector<uint8_t>(rows * oracle_.storage_k.scale_bytes(), 1)};
      codes.v = {std::vector<uint8_t>(rows * oracle_.storage_v.code_bytes(), 1),
                 std::vector<uint8_t>(rows * oracle_.storage_v.scale_bytes(), 1)};
    } else {
      const model::EncoderInput& held = oracle_.inputs[static_cast<size_t>(input)];
      const size_t first = oracle_.stored_row(layer, input, 0, 0);
      for (size_t row = first; row < first + rows; ++row) {
        append_row(codes.k, held.k, row);
        append_row(codes.v, held.v, row);
      }
    }
    if (put_codes(other, layer, codes) != KVC_OK)
      differ("the second cache: " + support::last_message());
  }
  if (kvc_commit(other) != KVC_OK) differ("the second cache: " + support::last_message());
}

/// The sequences in the opposite order, nothing shared, each with its first input, its newest and its last token.
void EncoderWorld::compare_rebuilt() {
  kvc_cache_desc desc = setup_.cache;
  desc.flags &= ~uint32_t{KVC_CACHE_STRICT};
  kvc_encoder_desc encoder = KVC_ENCODER_DESC_INIT;
  support::Cache other;
  if (kvc_cache_create(device_, &desc, &encoder, &other.handle) != KVC_OK)
    differ("the second cache: " + support::last_message());
  for (int32_t s = setup_.cache.max_sequences; s-- > 0;) {
    const model::EncoderSequence& sequence = oracle_.sequences[static_cast<size_t>(s)];
    const bool has = sequence.input >= 0;
    if (has && sequence.first < sequence.at) put_again(other, s, sequence.first, -1);
    if (has) put_again(other, s, sequence.at, sequence.input);
    if (sequence.next > (has ? sequence.at + 1 : 0)) put_again(other, s, sequence.next - 1, -2);
  }
  if (support::digest(other) != last_digest_)
    differ("the same state in other slots has another digest");
  ++counts_.rebuilt;
}

}  // namespace fuzz
