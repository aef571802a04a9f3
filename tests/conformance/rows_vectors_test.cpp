// Replays the vectors of transformer caches on the oracle, which proves the oracle, and through the C ABI: the status of each call,
// what each token sees (by mask and by attention), what each row holds. A failed call leaves the digest as it was.
#include <gtest/gtest.h>

#include <cmath>
#include <memory>

#include "kvc/transformer.h"
#include "support/abi.hpp"
#include "support/array.hpp"
#include "support/host_view.hpp"
#include "support/vectors.hpp"
#include "tests/model/rows_oracle.hpp"

namespace {

using nlohmann::json;
using support::Array;
using Numbers = std::vector<int32_t>;

const int32_t* or_null(const Numbers& numbers) {
  return numbers.empty() ? nullptr : numbers.data();
}

kvc_cache_desc cache_desc(const json& cache) {
  kvc_cache_desc desc = support::cache_desc(2, 1, 2, 3);
  desc.kind = KVC_TRANSFORMER;
  desc.max_sequences = cache["batch"];
  desc.capacity = cache["length"];
  desc.max_batch = desc.max_sequences * cache["max_q"].get<int32_t>();
  return desc;
}

kvc_transformer_desc transformer_desc(const json& cache) {
  kvc_transformer_desc desc = KVC_TRANSFORMER_DESC_INIT;
  desc.reach = cache.value("reach", 0);
  if (cache.value("ring", false)) desc.flags |= KVC_TRANSFORMER_RING;
  if (cache.value("not_causal", false)) desc.flags |= KVC_TRANSFORMER_NOT_CAUSAL;
  return desc;
}

/// What a begin or a fits is given, and the values of its tokens.
struct Given {
  int32_t q_len = 0;
  uint32_t flags = 0;
  Numbers valid, types, value;
  model::RowsMask mask;
  std::unique_ptr<Array> array;

  explicit Given(const json& step) : q_len(step["q_len"]) {
    if (step.value("postpadded", 0) != 0) flags |= KVC_ROWS_POSTPADDED;
    if (step.value("not_causal", 0) != 0) flags |= KVC_ROWS_NOT_CAUSAL;
    if (step.contains("valid")) valid = step["valid"].get<Numbers>();
    const auto flatten = [&](const char* name, Numbers& into) {
      if (!step.contains(name)) return;
      for (const json& row : step[name]) {
        const auto numbers = row.get<Numbers>();
        into.insert(into.end(), numbers.begin(), numbers.end());
      }
    };
    flatten("token_types", types);
    flatten("value", value);
    Numbers columns;
    flatten("attention_mask", columns);
    if (columns.empty()) return;
    const auto rows = static_cast<int64_t>(step["attention_mask"].size());
    mask.n = static_cast<int32_t>(columns.size()) / static_cast<int32_t>(rows);
    mask.sees.assign(columns.begin(), columns.end());
    array = std::make_unique<Array>(KVC_I32, std::vector<int64_t>{rows, mask.n});
    for (size_t i = 0; i < columns.size(); ++i) array->set(static_cast<int64_t>(i), columns[i]);
  }
  model::RowsBatch batch() const {
    return {q_len, flags, or_null(valid), array ? &mask : nullptr, or_null(types)};
  }
};

/// A row as the vectors tell it: [first, index, starts, values].
using Rows = std::vector<json>;
/// Per row and token the positions that it sees.
using Visible = std::vector<std::vector<Numbers>>;

class OraclePlayer {
 public:
  explicit OraclePlayer(const json& cache) : oracle_(cache_desc(cache), transformer_desc(cache)) {}

  kvc_status begin(const Given& given) {
    const kvc_status status = oracle_.begin_rows(given.batch());
    if (status != KVC_OK) return status;
    std::vector<float> k, v;
    for (const int32_t value : given.value) {
      k.insert(k.end(), 2, static_cast<float>(value));
      v.insert(v.end(), 3, static_cast<float>(value));
    }
    for (int32_t layer = 0; layer < 2; ++layer) oracle_.put(layer, k, v);
    return KVC_OK;
  }
  kvc_status fits(const Given& given) { return oracle_.fits_rows(given.batch()); }
  kvc_status set_causal(const Numbers& except) {
    return oracle_.set_causal(static_cast<int32_t>(except.size()), except.data());
  }
  kvc_status commit() { return oracle_.commit(); }
  kvc_status commit_prefix(const Numbers& sequence, const Numbers& keep) {
    return oracle_.commit_prefix(static_cast<int32_t>(sequence.size()), sequence.data(), keep.data());
  }
  kvc_status abort() { return oracle_.abort(); }
  kvc_status can_resume(int32_t sequence, int32_t want, int32_t* got) {
    return oracle_.can_resume(sequence, want, got);
  }
  kvc_status resume(int32_t sequence, int32_t want, int32_t* got) {
    return oracle_.resume(sequence, want, got);
  }
  kvc_status copy_prefix(int32_t src, int32_t dst, int32_t len, int32_t* got) {
    return oracle_.copy_prefix(src, dst, len, got);
  }
  kvc_status reorder(const Numbers& dst, const Numbers& src) {
    return oracle_.reorder(static_cast<int32_t>(dst.size()), dst.data(), src.data());
  }
  kvc_status remove(int32_t sequence, int32_t begin, int32_t end) {
    return oracle_.remove(sequence, begin, end);
  }
  kvc_status rows_set(int32_t row, int32_t n, const Numbers& index, const Numbers& starts) {
    return oracle_.rows_set(row, n, or_null(index), or_null(starts));
  }
  kvc_status insert(const OraclePlayer& other, int32_t slot) {
    return oracle_.insert(other.oracle_, slot);
  }

  Visible visible() const {
    Visible result;
    for (int32_t t = 0; t < oracle_.pass.n_tokens; ++t) {
      if (t % oracle_.pass.q_len == 0) result.emplace_back();
      Numbers& positions = result.back().emplace_back();
      for (const model::Token& token : oracle_.visible(t)) positions.push_back(token.position);
    }
    return result;
  }
  Rows rows() const {
    Rows result;
    for (int32_t s = 0; s < oracle_.cache.max_sequences; ++s) {
      Numbers values;
      for (const model::Token& token : oracle_.held(s))
        values.push_back(static_cast<int32_t>(oracle_.key(1, token)[0]));
      result.push_back({oracle_.info(s).first, oracle_.next(s),
                        oracle_.sequences[static_cast<size_t>(s)].starts, values});
    }
    return result;
  }
  support::Digest digest() const { return {}; }

 private:
  model::RowsOracle oracle_;
};

class AbiPlayer {
 public:
  explicit AbiPlayer(const json& cache)
      : desc_(cache_desc(cache)), transformer_(transformer_desc(cache)) {
    static const support::Device device(1);
    cache_.status = kvc_cache_create(device, &desc_, &transformer_, &cache_.handle);
    EXPECT_EQ(cache_.status, KVC_OK) << support::last_message();
  }

  kvc_status begin(const Given& given) {
    const kvc_status status = kvc_begin_rows(cache_, given.q_len, given.flags, or_null(given.valid),
                                             given.array ? given.array->tensor() : nullptr,
                                             or_null(given.types), nullptr);
    if (status != KVC_OK) return status;
    q_len_ = given.q_len;
    Array k(KVC_F32, {desc_.max_sequences, q_len_, 1, 2}),
        v(KVC_F32, {desc_.max_sequences, q_len_, 1, 3});
    for (int64_t i = 0; i < k.count(); ++i) k.set(i, given.value[static_cast<size_t>(i / 2)]);
    for (int64_t i = 0; i < v.count(); ++i) v.set(i, given.value[static_cast<size_t>(i / 3)]);
    for (int32_t layer = 0; layer < 2; ++layer)
      EXPECT_EQ(kvc_put(cache_, layer, k.tensor(), v.tensor()), KVC_OK) << support::last_message();
    return KVC_OK;
  }
  kvc_status fits(const Given& given) {
    return kvc_fits_rows(cache_, given.q_len, given.flags, or_null(given.valid),
                         given.array ? given.array->tensor() : nullptr, or_null(given.types));
  }
  kvc_status set_causal(const Numbers& except) {
    return kvc_set_causal(cache_, static_cast<int32_t>(except.size()), except.data());
  }
  kvc_status commit() { return kvc_commit(cache_); }
  kvc_status commit_prefix(const Numbers& sequence, const Numbers& keep) {
    return kvc_commit_prefix(cache_, static_cast<int32_t>(sequence.size()), sequence.data(),
                             keep.data());
  }
  kvc_status abort() { return kvc_abort(cache_); }
  kvc_status can_resume(int32_t sequence, int32_t want, int32_t* got) {
    return kvc_can_resume(cache_, sequence, want, got);
  }
  kvc_status resume(int32_t sequence, int32_t want, int32_t* got) {
    return kvc_resume(cache_, sequence, want, got);
  }
  kvc_status copy_prefix(int32_t src, int32_t dst, int32_t len, int32_t* got) {
    return kvc_copy_prefix(cache_, src, dst, len, got);
  }
  kvc_status reorder(const Numbers& dst, const Numbers& src) {
    return kvc_reorder(cache_, static_cast<int32_t>(dst.size()), dst.data(), src.data());
  }
  kvc_status remove(int32_t sequence, int32_t begin, int32_t end) {
    return kvc_remove(cache_, sequence, begin, end);
  }
  kvc_status rows_set(int32_t row, int32_t n, const Numbers& index, const Numbers& starts) {
    return kvc_rows_set(cache_, row, n, or_null(index), or_null(starts));
  }
  kvc_status insert(const AbiPlayer& other, int32_t slot) {
    return kvc_insert(cache_, other.cache_, slot);
  }

  /// By the mask; attention with a query of zeros returns the mean of the same values.
  Visible visible() const {
    const int64_t batch = desc_.max_sequences, columns = n_columns();
    Array mask(KVC_BOOL, {batch, 1, q_len_, columns}), q(KVC_F32, {batch, q_len_, 1, 2}),
        out(KVC_F32, {batch, q_len_, 1, 3});
    q.fill(0);
    EXPECT_EQ(kvc_mask(cache_, 0, mask.tensor()), KVC_OK) << support::last_message();
    EXPECT_EQ(kvc_attention(cache_, 1, q.tensor(), out.tensor(), nullptr), KVC_OK)
        << support::last_message();
    Visible result(static_cast<size_t>(batch));
    for (int64_t b = 0; b < batch; ++b) {
      const std::vector<support::Place> places = support::places(cache_, static_cast<int32_t>(b));
      for (int64_t i = 0; i < q_len_; ++i) {
        Numbers& positions = result[static_cast<size_t>(b)].emplace_back();
        const int64_t line = b * q_len_ + i;
        int64_t marked = 0;
        for (int64_t c = 0; c < columns; ++c) marked += mask.get(line * columns + c) != 0;
        double sum = 0;
        for (const support::Place& place : seen_places(b, mask, line)) {
          positions.push_back(place.position);
          sum += value_at(b, place.position);
        }
        EXPECT_EQ(marked, static_cast<int64_t>(positions.size()))
            << "the mask shows what is not held";
        const double mean = positions.empty() ? 0 : sum / static_cast<double>(positions.size());
        EXPECT_NEAR(out.get(line * 3 + 2), mean, 1e-4 * (1 + std::fabs(mean)));
      }
    }
    return result;
  }
  Rows rows() const {
    Rows result;
    Numbers index(static_cast<size_t>(desc_.max_sequences)), starts(index.size());
    EXPECT_EQ(kvc_rows_query(cache_, 0, desc_.max_sequences, index.data(), starts.data()), KVC_OK);
    for (int32_t s = 0; s < desc_.max_sequences; ++s) {
      const kvc_sequence_info info = support::sequence_info(cache_, s);
      EXPECT_EQ(info.next, index[static_cast<size_t>(s)]);
      Numbers values;
      for (const auto& [position, value] : values_of(s)) values.push_back(value);
      result.push_back({info.first, info.next, starts[static_cast<size_t>(s)], values});
    }
    EXPECT_EQ(kvc_check(cache_), KVC_OK) << support::last_message();
    return result;
  }
  support::Digest digest() const { return support::digest(cache_); }

 private:
  int64_t n_columns() const {
    const bool ring = transformer_.flags & KVC_TRANSFORMER_RING;
    return desc_.capacity + (ring ? desc_.max_batch / desc_.max_sequences : 0);
  }
  /// Position and value of what a row holds as if the pass were committed, read from the last layer.
  std::vector<std::pair<int32_t, int32_t>> values_of(int32_t s) const {
    const std::vector<support::Place> places = support::places(cache_, s);
    Array k(KVC_F32, {static_cast<int64_t>(places.size()), 1, 2});
    EXPECT_EQ(kvc_gather(cache_, 1, s, k.tensor(), nullptr), KVC_OK) << support::last_message();
    std::vector<std::pair<int32_t, int32_t>> result;
    for (size_t i = 0; i < places.size(); ++i) {
      EXPECT_EQ(places[i].cell, s * n_columns() + places[i].position % n_columns());
      result.emplace_back(places[i].position,
                          static_cast<int32_t>(k.get(static_cast<int64_t>(2 * i))));
    }
    return result;
  }
  /// What the pass still holds: a ring's rows reach further back than they will after it.
  std::vector<support::Place> seen_places(int64_t b, const Array& mask, int64_t line) const {
    std::vector<support::Place> seen;
    const int64_t columns = n_columns();
    const int32_t next = support::sequence_info(cache_, static_cast<int32_t>(b)).next;
    for (int64_t p = std::max<int64_t>(0, next - columns); p < next; ++p)
      if (mask.get(line * columns + p % columns) != 0)
        seen.push_back({static_cast<int32_t>(p % columns), static_cast<int32_t>(p), 0});
    return seen;
  }
  double value_at(int64_t b, int64_t position) const {
    kvc_tensor v{};
    EXPECT_EQ(kvc_rows_view(cache_, 1, nullptr, nullptr, &v, nullptr), KVC_OK);
    v = support::on_host(v);
    const auto* data = reinterpret_cast<const float*>(static_cast<const char*>(v.data) +
                                                      v.byte_offset);
    return static_cast<double>(data[b * v.strides[0] + position % n_columns() * v.strides[1]]);
  }

  kvc_cache_desc desc_;
  kvc_transformer_desc transformer_;
  support::Cache cache_;
  int64_t q_len_ = 0;
};

/// Another cache, whose rows are filled by one pass; then come their starts.
template <class Player>
std::unique_ptr<Player> made_of(const json& other) {
  json cache = other;
  cache["batch"] = other["rows"].size();
  auto made = std::make_unique<Player>(cache);
  json step = {{"q_len", cache["max_q"]}};
  Numbers starts;
  for (const json& row : other["rows"]) {
    auto values = row["values"].get<Numbers>();
    step["valid"].push_back(values.size());
    values.resize(cache["max_q"]);
    step["value"].push_back(values);
    starts.push_back(row["starts"]);
  }
  EXPECT_EQ(made->begin(Given(step)), KVC_OK) << support::last_message();
  EXPECT_EQ(made->commit(), KVC_OK) << support::last_message();
  EXPECT_EQ(made->rows_set(0, static_cast<int32_t>(starts.size()), {}, starts), KVC_OK)
      << support::last_message();
  return made;
}

template <class Player>
kvc_status perform(Player& player, const json& step, int32_t* got) {
  const std::string op = step["op"];
  const auto numbers = [&](const char* name) {
    return step.contains(name) ? step[name].get<Numbers>() : Numbers();
  };
  if (op == "begin") return player.begin(Given(step));
  if (op == "fits") return player.fits(Given(step));
  if (op == "set_causal") return player.set_causal(numbers("except"));
  if (op == "commit") return player.commit();
  if (op == "commit_prefix") return player.commit_prefix(numbers("sequence"), numbers("keep"));
  if (op == "abort") return player.abort();
  if (op == "can_resume") return player.can_resume(step["sequence"], step["want"], got);
  if (op == "resume") return player.resume(step["sequence"], step["want"], got);
  if (op == "copy_prefix") return player.copy_prefix(step["src"], step["dst"], step["len"], got);
  if (op == "reorder") return player.reorder(numbers("dst"), numbers("src"));
  if (op == "remove")
    return player.remove(step["sequence"], step["begin"],
                         step["end"].is_null() ? KVC_SEQ_END : step["end"].get<int32_t>());
  if (op == "rows_set") {
    const Numbers index = numbers("index"), starts = numbers("starts");
    const size_t n = std::max(index.size(), starts.size());
    return player.rows_set(step["row"], static_cast<int32_t>(n), index, starts);
  }
  if (op == "insert") return player.insert(*made_of<Player>(step["other"]), step["slot"]);
  ADD_FAILURE() << "unknown operation " << op;
  return KVC_E_INTERNAL;
}

template <class Player>
void replay(const json& script) {
  Player player(script["cache"]);
  if (script["cache"].contains("starts")) {
    const auto starts = script["cache"]["starts"].get<Numbers>();
    ASSERT_EQ(player.rows_set(0, static_cast<int32_t>(starts.size()), {}, starts), KVC_OK);
  }
  int n = 0;
  for (const json& step : script["steps"]) {
    SCOPED_TRACE(script["name"].get<std::string>() + ", step " + std::to_string(n++) + ": " +
                 step.dump());
    const support::Digest before = player.digest();
    int32_t got = -7;
    const kvc_status status = perform(player, step, &got);
    ASSERT_EQ(support::name(status), step["status"].get<std::string>()) << support::last_message();
    if (status != KVC_OK) {
      ASSERT_EQ(player.digest(), before);
    } else if (step.contains("got")) {
      ASSERT_EQ(got, step["got"].get<int32_t>());
    }
    if (step.contains("visible")) {
      ASSERT_EQ(json(player.visible()), step["visible"]);
    }
    ASSERT_EQ(json(player.rows()), step["rows"]);
  }
}

template <class Player>
void replay_all() {
  const json scripts = support::vectors("rows.json")["transformer"];
  ASSERT_EQ(scripts.size(), 94u);
  for (const json& script : scripts) replay<Player>(script);
}

TEST(RowsVectors, OnTheOracle) { replay_all<OraclePlayer>(); }

TEST(RowsVectors, ThroughTheLibrary) { replay_all<AbiPlayer>(); }

}  // namespace
