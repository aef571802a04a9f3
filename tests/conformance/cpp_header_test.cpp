// What kvc.hpp adds to C where it does more than pass arguments on: what one attention call takes and gives besides. And its
// one callback.
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <functional>
#include <kvc/kvc.hpp>
#include <limits>
#include <memory>
#include <vector>

namespace {

constexpr int32_t heads = 2, dim = 4, prompt = 3, drafts = 4;

// A tree behind the prompt: token 3, its children 4 and 5, and 6, a child of 4.
constexpr int32_t parent[prompt + drafts] = {-1, 0, 1, 2, 3, 3, 4};

bool is_before(int32_t ancestor, int32_t token) {
  while (token > ancestor) token = parent[token];
  return token == ancestor;
}

/// Keys, values or queries of tokens, one row of all heads each.
std::vector<float> rows(int32_t kind, const std::vector<int32_t>& tokens) {
  std::vector<float> all;
  for (const int32_t token : tokens)
    for (int32_t i = 0; i < heads * dim; ++i)
      all.push_back(std::sin(static_cast<float>(token * 31 + i * 7 + kind * 11)));
  return all;
}

class CppHeader : public ::testing::Test {
 protected:
  CppHeader() : cache(kvc::Device("cpu"), desc()) { run(0, 0, {0, 1, 2}); }

  static kvc::CacheDesc desc() {
    kvc::CacheDesc desc;
    desc.n_layers = 1, desc.n_kv_heads = heads, desc.head_dim_k = dim;
    desc.max_sequences = 3, desc.capacity = 16, desc.max_batch = 8, desc.max_q_heads = heads;
    return desc;
  }

  /// Begins a pass and puts what the tokens have for keys and values.
  std::unique_ptr<kvc::Pass> open(int32_t sequence, int32_t start, const std::vector<int32_t>& tokens) {
    std::vector<int32_t> position;
    for (size_t i = 0; i < tokens.size(); ++i) position.push_back(start + static_cast<int32_t>(i));
    auto pass = std::make_unique<kvc::Pass>(cache, position,
                                            std::vector<int32_t>(tokens.size(), sequence));
    const std::vector<float> k = rows(0, tokens), v = rows(1, tokens);
    const auto n = static_cast<int64_t>(tokens.size());
    cache.put(0, {k.data(), {n, heads, dim}}, {v.data(), {n, heads, dim}});
    return pass;
  }

  std::vector<float> attend(const std::vector<int32_t>& tokens, const kvc::AttentionExtra& extra = {}) {
    const std::vector<float> q = rows(2, tokens);
    std::vector<float> out(q.size());
    const auto n = static_cast<int64_t>(tokens.size());
    cache.attention(0, {q.data(), {n, heads, dim}}, {out.data(), {n, heads, dim}}, extra);
    return out;
  }

  /// A whole pass; the result of its last token.
  std::vector<float> run(int32_t sequence, int32_t start, const std::vector<int32_t>& tokens) {
    const auto pass = open(sequence, start, tokens);
    const std::vector<float> out = attend(tokens);
    pass->commit();
    return {out.end() - heads * dim, out.end()};
  }

  /// What a token of the tree sees, in the columns of the open pass.
  std::unique_ptr<bool[]> tree_mask(const std::vector<int32_t>& tokens, const kvc::History& history) {
    const auto columns = static_cast<size_t>(history.n_cells);
    std::unique_ptr<bool[]> mask(new bool[tokens.size() * columns]());
    for (size_t t = 0; t < tokens.size(); ++t)
      for (const kvc_run& run : cache.runs(0, 0))
        for (int32_t i = 0; i < run.length; ++i)
          mask[t * columns + static_cast<size_t>(run.cell + i - history.first_cell)] = is_before(
              run.position + i, tokens[t]);
    return mask;
  }

  kvc::Cache cache;
};

TEST_F(CppHeader, ATreeInOnePassIsItsBranches) {
  const std::vector<int32_t> tree = {3, 4, 5, 6};
  cache.copy_prefix(0, 1, prompt);
  cache.copy_prefix(0, 2, prompt);
  std::vector<std::vector<float>> branches;  // the last token of each
  branches.push_back(run(1, prompt, {3}));
  branches.push_back(run(1, prompt + 1, {4}));
  branches.push_back(run(2, prompt, {3, 5}));
  branches.push_back(run(1, prompt + 2, {6}));

  const auto pass = open(0, prompt, tree);
  const kvc::History history = cache.history(0);
  const auto mask = tree_mask(tree, history);
  const int64_t columns = history.n_cells;
  std::vector<float> weights(static_cast<size_t>(heads * drafts * columns), 9),
      lse(heads * drafts, 9);
  kvc::AttentionExtra extra;
  extra.mask = kvc::ConstTensor(mask.get(), {drafts, columns});
  extra.weights = kvc::Tensor(weights.data(), {heads, drafts, columns});
  extra.lse = kvc::Tensor(lse.data(), {drafts, heads});
  const std::vector<float> out = attend(tree, extra);
  for (size_t t = 0; t < drafts; ++t)
    for (size_t i = 0; i < heads * dim; ++i)
      EXPECT_NEAR(out[t * heads * dim + i], branches[t][i], 1e-6) << "token " << tree[t];
  for (size_t row = 0; row < heads * drafts; ++row) {
    float sum = 0;
    for (int64_t c = 0; c < columns; ++c) {
      const float weight = weights[row * static_cast<size_t>(columns) + static_cast<size_t>(c)];
      const bool seen = mask[row % drafts * static_cast<size_t>(columns) + static_cast<size_t>(c)];
      EXPECT_EQ(weight > 0, seen);
      sum += weight;
    }
    EXPECT_NEAR(sum, 1, 1e-6);
    EXPECT_LT(lse[row], 9);
  }
}

TEST_F(CppHeader, ABiasOfMinusInfinityIsAMask) {
  const auto pass = open(0, prompt, {3, 5});
  const kvc::History history = cache.history(0);
  const auto columns = static_cast<size_t>(history.n_cells);
  std::vector<uint8_t> mask(columns);  // of one row, for all heads and tokens
  std::vector<float> bias(columns, -INFINITY);
  for (size_t c = 0; c < columns; c += 2) mask[c] = 255, bias[c] = 0;
  kvc::AttentionExtra masked, biased;
  masked.mask = kvc::ConstTensor(mask.data(), KVC_BOOL, {history.n_cells});
  biased.bias = kvc::ConstTensor(bias.data(), {history.n_cells});
  EXPECT_EQ(attend({3, 5}, masked), attend({3, 5}, biased));
  EXPECT_NE(attend({3, 5}, masked), attend({3, 5}));

  mask.assign(columns, 0);
  EXPECT_EQ(attend({3, 5}, masked), std::vector<float>(2 * heads * dim, 0.0f));
}

TEST_F(CppHeader, KeysAndValuesAreGatheredTogetherOrAlone) {
  const std::vector<float> keys = rows(0, {0, 1, 2}), values = rows(1, {0, 1, 2});
  std::vector<float> k(keys.size()), v(values.size());
  cache.gather(0, 0, {k.data(), {prompt, heads, dim}}, {v.data(), {prompt, heads, dim}});
  EXPECT_EQ(k, keys);
  EXPECT_EQ(v, values);
  k.assign(k.size(), 9), v.assign(v.size(), 9);
  cache.gather_keys(0, 0, {k.data(), {prompt, heads, dim}});
  EXPECT_EQ(k, keys);
  kvc_tensor columns = *kvc::Tensor(v.data(), {heads, dim, prompt}).get();
  columns.flags = KVC_TENSOR_TRANSPOSED;
  cache.gather_values(0, 0, columns);
  for (size_t token = 0; token < prompt; ++token)
    for (size_t i = 0; i < heads * dim; ++i)
      EXPECT_EQ(v[i * prompt + token], values[token * heads * dim + i]);
}

TEST_F(CppHeader, WhatDoesNotFitThrows) {
  const auto pass = open(0, prompt, {3});
  const bool mask[1] = {true};
  kvc::AttentionExtra extra;
  extra.bias = kvc::ConstTensor(mask, {1});
  EXPECT_THROW(attend({3}, extra), kvc::DtypeError);
  extra = {};
  extra.mask = kvc::ConstTensor(mask, {1, 1, 1, 1});
  EXPECT_THROW(attend({3}, extra), kvc::ShapeError);
  pass->abort();
  EXPECT_THROW(cache.history(0), kvc::BadState);
}

TEST_F(CppHeader, TensorsOfAGpuAreNotTheCpus) {
  const std::vector<float> data = rows(0, {3});
  const kvc::ConstTensor k(data.data(), {1, heads, dim}), there = k.on_cuda(3);
  EXPECT_EQ(there.get()->device_type, KVC_CUDA);
  EXPECT_EQ(there.get()->device_id, 3);
  EXPECT_EQ(k.get()->device_type, KVC_CPU);
  const auto pass = open(0, prompt, {3});
  EXPECT_THROW(cache.put(0, there, k), kvc::DeviceMismatch);
  pass->abort();
  kvc::Device().synchronize();
}

/// Counts its calls and keys; leaves keys as they are. Refuses when it has no more calls left.
struct Shifter {
  int32_t calls_left, n_keys;
};

kvc_status shift(void* user, int32_t, int32_t n, const int32_t* from, const int32_t* to,
                 kvc_tensor* k) {
  auto& shifter = *static_cast<Shifter*>(user);
  if (shifter.calls_left-- == 0) return KVC_E_NOT_FOUND;
  shifter.n_keys += k->shape[0] == n && to[0] < from[0] ? n : 0;
  return KVC_OK;
}

TEST_F(CppHeader, AShiftFunctionMovesKeysUntilItIsTakenAway) {
  Shifter shifter = {1, 0};
  EXPECT_THROW(cache.remove(0, 0, 1), kvc::NotSupported);
  cache.bind_shift(shift, &shifter);
  cache.remove(0, 0, 1);
  EXPECT_EQ(shifter.n_keys, prompt - 1);
  EXPECT_EQ(cache.sequence(0).next, prompt - 1);
  const auto digest = cache.digest();
  EXPECT_THROW(cache.remove(0, 0, 1), kvc::Error);  // it refuses
  EXPECT_EQ(cache.digest(), digest);
  cache.bind_shift(nullptr, nullptr);
  EXPECT_THROW(cache.remove(0, 0, 1), kvc::NotSupported);
  const auto pass = open(0, prompt - 1, {3});
  EXPECT_THROW(cache.bind_shift(shift, &shifter), kvc::BadState);
}

TEST_F(CppHeader, AKindIsNamedOrFollowsFromItsDescriptor) {
  const kvc::Device device("cpu");
  kvc::CacheDesc desc;
  desc.n_layers = desc.n_kv_heads = desc.head_dim_k = 1;
  desc.max_sequences = desc.capacity = desc.max_batch = 4;
  EXPECT_EQ(kvc::Cache::memory_bytes(device, kvc::Kind::causal, desc),
            kvc::Cache::memory_bytes(device, desc));
  EXPECT_EQ(kvc::Cache(device, kvc::Kind::causal, desc).stats().cells, 16u);
  EXPECT_THROW(kvc::Cache(device, kvc::Kind::wrapper, desc), kvc::NotSupported);
  kvc::CausalDesc window;
  window.kind = KVC_ENCODER;
  EXPECT_THROW(kvc::Cache(device, desc, window), kvc::InvalidArgument);
}

TEST_F(CppHeader, CanRemoveSaysWhatRemoveWould) {
  EXPECT_TRUE(cache.can_remove(0, 1));
  EXPECT_FALSE(cache.can_remove(0, 0, 1));  // positions would move, and nothing says how keys rotate
  EXPECT_THROW((void)cache.can_remove(0, 2, 1), kvc::InvalidArgument);
  EXPECT_EQ(cache.sequence(0).count, prompt);
}

/// The call throws InvalidArgument with this message.
void expect(const std::string& message, const std::function<void()>& call) {
  try {
    call();
    ADD_FAILURE() << "not refused: " << message;
  } catch (const kvc::InvalidArgument& error) {
    EXPECT_EQ(error.message(), message);
  }
}

TEST_F(CppHeader, ArraysOfDifferentLengthsAreNamedWithTheirLengths) {
  const std::string same = ": they must have the same number";
  expect("position has 2 elements, sequence has 1" + same, [&] { cache.begin({3, 4}, {0}); });
  expect("position has 0 elements, sequence has 1" + same, [&] { (void)cache.fits({}, {0}); });
  expect("sequence has 1 elements, keep has 2" + same, [&] { cache.commit_prefix({0}, {1, 1}); });
  expect("destination has 2 elements, source has 3" + same, [&] {
    cache.reorder({0, 1}, {1, 2, 0});
  });
  const std::vector<int32_t> position = {prompt}, sequence = {0};
  const std::vector<uint32_t> flags = {0, 0};
  const std::string flags_differ = "position has 1 elements, token_flags has 2" + same;
  expect(flags_differ, [&] { kvc::Pass pass(cache, position, sequence, flags); });
  expect(flags_differ, [&] { (void)cache.fits(position, sequence, flags); });
}

TEST_F(CppHeader, EmptyVectorsAreNoTokensAndNotNull) {
  const std::vector<int32_t> none;
  const std::vector<uint32_t> no_flags;
  const std::string message = "n_tokens 0 out of range [1, 8], which is max_batch";
  expect(message, [&] { cache.begin(none, none); });
  expect(message, [&] { kvc::Pass pass(cache, none, none, no_flags); });
  expect(message, [&] { (void)cache.fits(none, none); });
  expect(message, [&] { (void)cache.fits(none, none, no_flags); });
  std::vector<float> data(1);
  expect("ndim 0 out of range [1, 8]", [&] { kvc::Tensor(data.data(), {}); });
  expect("ndim 0 out of range [1, 8]", [&] { kvc::ConstTensor(data, {}); });
}

TEST_F(CppHeader, TokenFlagsAreAVectorToo) {
  const std::vector<int32_t> position = {prompt, prompt + 1}, sequence = {0, 0};
  const std::vector<uint32_t> sees_later = {KVC_TOKEN_SEES_LATER, 0}, unknown = {2, 0};
  EXPECT_TRUE(cache.fits(position, sequence, sees_later));
  EXPECT_THROW((void)cache.fits(position, sequence, unknown), kvc::InvalidArgument);
  EXPECT_THROW(kvc::Pass(cache, position, sequence, unknown), kvc::InvalidArgument);
  kvc::Pass pass(cache, position, sequence, sees_later);
  const auto columns = static_cast<size_t>(cache.history(0).n_cells);
  std::vector<float> mask(2 * columns);
  cache.mask(0, {mask, {2, static_cast<int64_t>(columns)}});
  EXPECT_EQ(std::count(mask.begin(), mask.begin() + static_cast<int64_t>(columns), 0.0f), prompt + 2);
}

TEST_F(CppHeader, VectorsMustHoldTheirShape) {
  std::vector<float> data(2 * heads * dim);
  const std::vector<float>& constant = data;
  EXPECT_EQ(kvc::Tensor(data, {2, heads, dim}).get()->data, data.data());
  EXPECT_EQ(kvc::ConstTensor(constant, {1, heads, dim}).get()->shape[0], 1);  // longer is fine
  std::vector<uint16_t> half(4);
  EXPECT_EQ(kvc::Tensor(half, KVC_F16, {2, 2}).get()->dtype, static_cast<uint32_t>(KVC_F16));
  const std::string too_short = "the vector has 16 elements, the shape takes 24";
  expect(too_short, [&] { kvc::Tensor(data, {3, heads, dim}); });
  expect(too_short, [&] { kvc::ConstTensor(constant, {3, heads, dim}); });
  expect("the vector has 4 elements, the shape takes 5", [&] { kvc::Tensor(half, KVC_BF16, {5}); });
  const std::string other_size = "the vector's elements have 2 bytes, those of dtype 4";
  expect(other_size, [&] { kvc::Tensor(half, KVC_F32, {2}); });
  expect(other_size, [&] { kvc::ConstTensor(half, KVC_F32, {2}); });
  expect(too_short, [&] { cache.gather_keys(0, 0, {data, {prompt, heads, dim}}); });
}

TEST_F(CppHeader, PaddingIsNeitherReadNorSeen) {
  const std::vector<int32_t> position = {prompt, 0, prompt + 1};
  const std::vector<int32_t> sequence = {0, kvc::padding, 0};
  const uint32_t flags[] = {0, KVC_TOKEN_SEES_LATER, 0};
  EXPECT_TRUE(cache.fits(position, sequence));
  EXPECT_THROW((void)cache.fits(3, position.data(), sequence.data(), flags), kvc::InvalidArgument);
  kvc::Pass pass(cache, position, sequence);
  std::vector<float> x(3 * heads * dim, 0.5f), out(x.size(), 9), lse(3 * heads, 9);
  kvc::AttentionExtra extra;
  extra.lse = kvc::Tensor(lse.data(), {3, heads});
  const kvc::ConstTensor rows(x.data(), {3, heads, dim});
  cache.put_attention(0, rows, rows, rows, {out.data(), {3, heads, dim}}, extra);
  for (size_t i = 0; i < heads * dim; ++i) EXPECT_EQ(out[heads * dim + i], 0);
  EXPECT_EQ(lse[heads], -std::numeric_limits<float>::infinity());
  EXPECT_NE(out[0], 0);

  const int64_t columns = cache.history(0).n_cells;
  const auto mask = std::make_unique<bool[]>(static_cast<size_t>(3 * columns));
  cache.mask(0, {mask.get(), {3, columns}});
  const auto seen = [&](int64_t token) {
    return std::count(mask.get() + token * columns, mask.get() + (token + 1) * columns, true);
  };
  EXPECT_EQ(seen(0), prompt + 1);
  EXPECT_EQ(seen(1), 0);
  EXPECT_EQ(seen(2), prompt + 2);
}

}  // namespace
