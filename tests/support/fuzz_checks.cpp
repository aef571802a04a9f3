#include <algorithm>
#include <map>

#include "fuzz_world.hpp"
#include "stored_bytes.hpp"

/// What is compared after every operation.
namespace fuzz {

void World::compare_kind() {
  compare_places();
  counts_.record(Op::runs, true, circumstances({}));
  compare_gathered(random_.below(setup_.cache.n_layers), random_.below(setup_.cache.max_sequences));
}

/// Runs name the oracle's positions and debts, are the fewest, and two tokens share a cell exactly
/// where they share a content.
void World::compare_places() {
  places_.assign(static_cast<size_t>(setup_.cache.max_sequences), {});
  std::map<int32_t, int32_t> content_of, cell_of;
  for (int32_t s = 0; s < setup_.cache.max_sequences; ++s) {
    const std::vector<kvc_run> runs = support::runs(cache_, s);
    std::vector<support::Place>& places = places_[static_cast<size_t>(s)];
    for (size_t r = 0; r < runs.size(); ++r) {
      const kvc_run& run = runs[r];
      const kvc_run* before = r > 0 ? &runs[r - 1] : nullptr;
      if (before && before->cell + before->length == run.cell && before->offset == run.offset &&
          before->position + before->length == run.position)
        differ("two runs of sequence " + std::to_string(s) + " could be one");
      if (run.length < 1) differ("an empty run");
      for (int32_t i = 0; i < run.length; ++i)
        places.push_back({run.cell + i, run.position + i, run.offset});
      counts_.trace(static_cast<uint64_t>(run.cell) << 32 | static_cast<uint32_t>(run.length));
    }
    const auto& tokens = oracle_.sequences[static_cast<size_t>(s)].tokens;
    expect_equal(static_cast<int64_t>(places.size()), static_cast<int64_t>(tokens.size()),
                 "tokens in runs");
    for (size_t i = 0; i < tokens.size(); ++i) {
      expect_equal(places[i].position, tokens[i].position, "position in a run");
      expect_equal(places[i].offset, oracle_.pending_rotation(tokens[i]), "offset of a run");
      if (places[i].cell < 0 || places[i].cell >= oracle_.pool()) differ("a cell beyond the pool");
      const auto content = content_of.insert({places[i].cell, tokens[i].content}).first;
      const auto cell = cell_of.insert({tokens[i].content, places[i].cell}).first;
      if (content->second != tokens[i].content) differ("two tokens lie in one cell");
      if (cell->second != places[i].cell) differ("a shared token was copied to another cell");
    }
  }
}

void World::compare_cells(const kvc_stats& stats) const {
  expect_equal(static_cast<int64_t>(stats.cells), oracle_.pool(), "stats.cells");
  expect_equal(static_cast<int64_t>(stats.cells_used), oracle_.used(), "stats.cells_used");
  expect_equal(static_cast<int64_t>(stats.cells_shared), oracle_.shared(), "stats.cells_shared");
}

void World::compare_gathered(int32_t layer, int32_t sequence) {
  const auto n = static_cast<int64_t>(oracle_.sequences[static_cast<size_t>(sequence)].tokens.size());
  support::Array k(KVC_F32, {n, setup_.cache.n_kv_heads, oracle_.cache.head_dim_k});
  support::Array v(KVC_F32, {n, setup_.cache.n_kv_heads, oracle_.cache.head_dim_v});
  if (kvc_gather(cache_, layer, sequence, k.tensor(), v.tensor()) != KVC_OK)
    differ("gather: " + support::last_message());
  compare_gathered(layer, sequence, &k, &v, false);
}

void World::compare_contents() {
  for (int32_t layer = 0; layer < setup_.cache.n_layers; ++layer)
    for (int32_t s = 0; s < setup_.cache.max_sequences; ++s) compare_gathered(layer, s);
}

/// The same state put together in another cache, sequences in the opposite order: other cells, the
/// same digest. Only states that puts alone can reach.
void World::compare_rebuilt() {
  for (const model::Sequence& sequence : oracle_.sequences) {
    if (sequence.lost_below > 0) return;
    const int32_t end = sequence.tokens.empty() ? 0 : sequence.tokens.back().position + 1;
    if (sequence.next != end) return;
    for (const model::Token& token : sequence.tokens)
      if (oracle_.pending_rotation(token) != 0) return;
  }
  kvc_cache_desc desc = setup_.cache;
  desc.cells = 0;
  support::Cache other(device_, desc, &setup_.causal);
  if (other.status != KVC_OK || setup_.bind_rope(other) != KVC_OK)
    differ("the second cache failed");
  for (int32_t s = setup_.cache.max_sequences; s-- > 0;) {
    for (const model::Token& token : oracle_.sequences[static_cast<size_t>(s)].tokens) {
      if (kvc_begin(other, 1, &token.position, &s, nullptr, 0, nullptr) != KVC_OK)
        differ("the second cache: " + support::last_message());
      for (int32_t layer = 0; layer < setup_.cache.n_layers; ++layer) {
        const auto first = static_cast<size_t>(layer * setup_.cache.n_kv_heads);
        const model::Content& content = oracle_.contents[static_cast<size_t>(token.content)];
        Codes codes{1, {}, {}};
        for (size_t row = first; row < first + static_cast<size_t>(setup_.cache.n_kv_heads); ++row) {
          append_row(codes.k, content.k, row);
          if (!oracle_.v_in_k()) append_row(codes.v, content.v, row);
        }
        put_codes(other, layer, codes);
      }
      kvc_commit(other);
    }
  }
  for (int32_t s = 0; s < setup_.cache.max_sequences; ++s)
    if (support::sequence_info(other, s).lost_below > 0) return;  // it slides when put one by one
  if (support::digest(other) != last_digest_)
    differ("the same state in other cells has another digest");
  ++counts_.rebuilt;
}

}  // namespace fuzz
