// Random small transformer caches read the same rows at once and in pieces: passes of other lengths, rows that take turns, aborted
// drafts, prefixes that are kept. What is stored is the same byte for byte, and what tokens attend to is the same but for rounding.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>

#include "support/abi.hpp"
#include "support/array.hpp"
#include "support/rows_setup.hpp"

namespace {

using support::Array;
using Numbers = std::vector<int32_t>;

/// K, V and queries of every token of every row, and the cache that reads them.
class Reader {
 public:
  Reader(kvc_device* device, const fuzz::RowsSetup& setup, int32_t n_tokens, uint64_t seed)
      : setup_(setup), n_(n_tokens), seed_(seed) {
    kvc_cache_desc& desc = setup_.cache;
    dv_ = desc.head_dim_v == 0 ? desc.head_dim_k : desc.head_dim_v;
    desc.max_batch = desc.max_sequences * n_tokens;
    status = kvc_cache_create(device, &desc, &setup_.transformer, &cache.handle);
    for (int32_t row = 0; row < batch(); ++row) starts_.push_back(row % 3);
    EXPECT_EQ(kvc_rows_set(cache, 0, batch(), nullptr, starts_.data()), KVC_OK);
    outputs.assign(static_cast<size_t>(batch() * n_ * desc.n_kv_heads * dv_), 0);
  }

  int32_t batch() const { return setup_.cache.max_sequences; }
  Numbers index() const {
    Numbers result(static_cast<size_t>(batch()));
    kvc_rows_query(cache, 0, batch(), result.data(), nullptr);
    return result;
  }

  /// A pass of `valid` tokens of each row; those from kept[row] on are drafts, whose K and V are others.
  void read(int32_t q_len, const Numbers& valid, const Numbers& kept) {
    const kvc_cache_desc& desc = setup_.cache;
    const Numbers first = index();
    ASSERT_EQ(kvc_begin_rows(cache, q_len, 0, valid.data(), nullptr, nullptr, nullptr), KVC_OK)
        << support::last_message();
    for (int32_t layer = 0; layer < desc.n_layers; ++layer) {
      Array k(KVC_F32, {batch(), q_len, desc.n_kv_heads, desc.head_dim_k});
      Array v(KVC_F32, {batch(), q_len, desc.n_kv_heads, dv_}),
          out(KVC_F32, {batch(), q_len, desc.n_kv_heads, dv_});
      Array q(KVC_F32, {batch(), q_len, desc.n_kv_heads, desc.head_dim_k});
      for (int32_t t = 0; t < batch() * q_len; ++t) {
        const auto row = static_cast<size_t>(t / q_len);
        const bool draft = t % q_len >= kept[row];
        fill(k, t, 3 * layer, t / q_len, first[row] + t % q_len, draft);
        fill(v, t, 3 * layer + 1, t / q_len, first[row] + t % q_len, draft);
        fill(q, t, 3 * layer + 2, t / q_len, first[row] + t % q_len, draft);
      }
      const bool v_in_k = desc.flags & KVC_CACHE_V_IN_K;
      ASSERT_EQ(kvc_put_attention(cache, layer, k.tensor(), v_in_k ? nullptr : v.tensor(),
                                  q.tensor(), out.tensor(), nullptr),
                KVC_OK)
          << support::last_message();
      if (layer + 1 < desc.n_layers) continue;
      const int64_t width = out.count() / (batch() * q_len);
      for (int32_t t = 0; t < batch() * q_len; ++t) {
        const auto row = static_cast<size_t>(t / q_len);
        if (t % q_len >= std::min(valid[row], kept[row])) continue;
        const int64_t at = (t / q_len * n_ + first[row] + t % q_len) * width;
        for (int64_t e = 0; e < width; ++e)
          outputs[static_cast<size_t>(at + e)] = out.get(t * width + e);
      }
    }
  }
  void keep(const Numbers& valid, const Numbers& kept) {
    Numbers row, n;
    for (int32_t b = 0; b < batch(); ++b) {
      row.push_back(b);
      n.push_back(std::min(valid[static_cast<size_t>(b)], kept[static_cast<size_t>(b)]));
    }
    ASSERT_EQ(kvc_commit_prefix(cache, batch(), row.data(), n.data()), KVC_OK)
        << support::last_message();
  }

  support::Cache cache;
  kvc_status status = KVC_OK;
  std::vector<double> outputs;  // [batch, n, heads, head_dim_v] of the last layer

 private:
  /// What belongs to a token at a position of a row; of a draft something else.
  void fill(Array& array, int32_t token, int32_t side, int32_t row, int32_t position,
            bool draft) const {
    const int64_t width = array.count() / (array.tensor()->shape[0] * array.tensor()->shape[1]);
    support::Random random(support::derived_seed(
        seed_ + draft, static_cast<uint64_t>((side * 64 + row) * 4096 + position)));
    for (int64_t e = 0; e < width; ++e) array.set(token * width + e, random.value());
  }

  fuzz::RowsSetup setup_;
  int32_t n_, dv_ = 0;
  uint64_t seed_;
  Numbers starts_;
};

/// The rest of every row, in passes of random lengths, some of whose tokens are drafts.
void read_in_pieces(Reader& reader, int32_t n, support::Random& random) {
  for (Numbers index = reader.index(); *std::min_element(index.begin(), index.end()) < n;
       index = reader.index()) {
    const int32_t q_len = random.chance(0.4) ? 1 : random.between(1, n);
    Numbers valid, kept;
    for (const int32_t at : index) {
      valid.push_back(random.chance(0.2) ? 0 : random.below(std::min(q_len, n - at) + 1));
      kept.push_back(random.chance(0.6) ? q_len : random.below(q_len + 1));
    }
    reader.read(q_len, valid, kept);
    if (testing::Test::HasFatalFailure()) return;
    if (random.chance(0.2)) {
      ASSERT_EQ(kvc_abort(reader.cache), KVC_OK);
    } else {
      reader.keep(valid, kept);
    }
  }
}

TEST(RowsPrefill, AtOnceIsTheSameAsInPieces) {
  const support::Device device(2);
  support::Random random(20261130);
  int32_t n_compared = 0;
  for (int32_t round = 0; round < 80; ++round) {
    const std::string name = random.chance(0.5) ? "window" : random.chance(0.5) ? "ring" : "any";
    fuzz::RowsSetup setup = fuzz::draw_rows_setup(name, random);
    setup.transformer.flags &= ~uint32_t{KVC_TRANSFORMER_NOT_CAUSAL};  // which splitting narrows
    const bool ring = setup.transformer.flags & KVC_TRANSFORMER_RING;
    const int32_t n = ring ? setup.cache.capacity * 2 : setup.cache.capacity;
    SCOPED_TRACE(setup.describe());
    const uint64_t seed = random.bits();
    Reader once(device, setup, n, seed), pieces(device, setup, n, seed);
    ASSERT_EQ(once.status, KVC_OK) << support::last_message();
    ASSERT_EQ(pieces.status, KVC_OK) << support::last_message();
    const Numbers all(static_cast<size_t>(once.batch()), n);
    once.read(n, all, all);
    if (HasFatalFailure()) return;
    ASSERT_EQ(kvc_commit(once.cache), KVC_OK);
    read_in_pieces(pieces, n, random);
    if (HasFatalFailure()) return;
    EXPECT_EQ(support::digest(once.cache), support::digest(pieces.cache));
    for (size_t i = 0; i < once.outputs.size(); ++i, ++n_compared)
      ASSERT_NEAR(pieces.outputs[i], once.outputs[i], 1e-4 * (1 + std::fabs(once.outputs[i]))) << i;
  }
  EXPECT_GT(n_compared, 10000);
}

}  // namespace
