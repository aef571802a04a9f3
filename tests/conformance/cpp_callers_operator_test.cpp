// callers_operator.hpp: a class attends in caches, in rows and without a cache as the built-in operator does; what it throws becomes
// the call's error, with its text; who owns it, and for how long.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <kvc/kvc.hpp>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "support/plain_attention.hpp"

namespace {

using support::sines;

constexpr int32_t kv_heads = 2, q_heads = 4, dim = 8;

/// Attention by the definition over f32, with whatever mask the call has.
class Textbook : public kvc::CallersOperator {
 public:
  void forward_native(const kvc::OperatorCall& call) const override {
    ++n_calls;
    last_mode = call->mode;
    if (fail) fail(call);
    const auto batch = static_cast<size_t>(std::max(call->batch, 1));
    const size_t n_q = static_cast<size_t>(call->n_tokens) / batch;
    const auto n_k = static_cast<size_t>(call.columns());
    std::vector<float> seen(batch * n_q * n_k);
    const auto q_len = static_cast<int64_t>(n_q), columns = static_cast<int64_t>(n_k);
    if (call->batch > 0)
      call.mask({seen, {call->batch, 1, q_len, columns}});
    else
      call.mask({seen, {q_len, columns}});
    for (size_t row = 0; row < batch; ++row) {
      const support::PlainSizes sizes = {n_q, n_k, q_heads, kv_heads, dim};
      const std::vector<float> out = support::plain_attention(
          sizes, rows_of(*call->q, row, n_q).data(), rows_of(*call->k, row, n_k).data(),
          rows_of(*call->v, row, n_k).data(),
          [&](size_t i, size_t j) { return seen[(row * n_q + i) * n_k + j] == 0; },
          double{call->scale});
      for_each(*call->out, row, n_q, [&](float* to, size_t i) { *to = out[i]; });
    }
  }
  void supports(const kvc_operator_needs& needs) const override {
    if (needs.dtype_k != KVC_F32) throw kvc::NotSupported("it reads f32 alone");
    if (fail_when_asked) throw std::runtime_error("asked at a bad moment");
  }

  mutable int32_t n_calls = 0;
  mutable uint32_t last_mode = 0;
  std::function<void(const kvc::OperatorCall&)> fail;
  bool fail_when_asked = false;

 private:
  /// The elements of [n, heads, dim], or of one row of [batch, n, heads, dim], with strides.
  template <class Body>
  static void for_each(const kvc_tensor& t, size_t row, size_t n, const Body& body) {
    auto* data = reinterpret_cast<float*>(static_cast<char*>(t.data) + t.byte_offset);
    const int64_t* strides = t.strides + t.ndim - 3;
    if (t.ndim == 4) data += static_cast<int64_t>(row) * t.strides[0];
    size_t i = 0;
    for (int64_t token = 0; token < static_cast<int64_t>(n); ++token)
      for (int64_t head = 0; head < t.shape[t.ndim - 2]; ++head)
        for (int64_t d = 0; d < dim; ++d)
          body(data + token * strides[0] + head * strides[1] + d * strides[2], i++);
  }
  static std::vector<float> rows_of(const kvc_tensor& t, size_t row, size_t n) {
    std::vector<float> all;
    for_each(t, row, n, [&](const float* at, size_t) { all.push_back(*at); });
    return all;
  }
};

kvc::OperatorInfo info(uint32_t more = 0) {
  kvc::OperatorInfo info;
  info.modes = KVC_MODE_ALL;
  info.features = more | KVC_FEATURE_GROUPED | KVC_FEATURE_MASK | KVC_FEATURE_WINDOW |
                  KVC_FEATURE_TRANSFORMER | KVC_FEATURE_FORWARD;
  info.storage = KVC_SET_F32 | KVC_SET_F16;
  return info;
}

kvc::CacheDesc geometry() {
  kvc::CacheDesc desc;
  desc.n_layers = 1, desc.n_kv_heads = kv_heads, desc.head_dim_k = dim;
  desc.max_sequences = 2, desc.capacity = 16, desc.max_batch = 8, desc.max_q_heads = q_heads;
  return desc;
}

class CppCallersOperator : public testing::Test {
 protected:
  CppCallersOperator() { kvc::operator_register(device_, "mine,also-mine", info(), mine_); }

  /// What a pass of two rows, or of four tokens of one sequence, returns; the pass stays open.
  static std::vector<float> pass(kvc::Cache& cache, bool rows) {
    const std::vector<float> k = sines(4 * kv_heads * dim, 1), v = sines(4 * kv_heads * dim, 2),
                             q = sines(4 * q_heads * dim, 3);
    std::vector<float> out(q.size());
    if (rows) {
      kvc::Rows two;
      two.q_len = 2;
      cache.begin_rows(two);
      cache.put(0, {k, {2, 2, kv_heads, dim}}, {v, {2, 2, kv_heads, dim}});
      cache.attention(0, {q, {2, 2, q_heads, dim}}, {out, {2, 2, q_heads, dim}});
    } else {
      cache.begin({0, 1, 2, 3}, {0, 0, 0, 0});
      cache.put_attention(0, {k, {4, kv_heads, dim}}, {v, {4, kv_heads, dim}},
                          {q, {4, q_heads, dim}}, {out, {4, q_heads, dim}});
    }
    return out;
  }

  const kvc::Device device_{"cpu"};
  const std::shared_ptr<Textbook> mine_ = std::make_shared<Textbook>();
};

void expect_near(const std::vector<float>& got, const std::vector<float>& wanted) {
  ASSERT_EQ(got.size(), wanted.size());
  for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], wanted[i], 1e-5) << i;
}

TEST_F(CppCallersOperator, AttendsAsTheBuiltInOne) {
  const kvc::Operator mine(device_, "also-mine");
  EXPECT_STREQ(mine.info().canonical, "mine");
  kvc::CausalDesc window;
  window.reach = 2;
  for (const bool rows : {false, true}) {
    const kvc::KindDesc kind = rows ? kvc::KindDesc(kvc::TransformerDesc()) : kvc::KindDesc(window);
    kvc::Cache cache(device_, geometry(), kind), other(device_, geometry(), kind);
    cache.bind_operator(0, 1, KVC_MODE_ALL, &mine);
    expect_near(pass(cache, rows), pass(other, rows));
    EXPECT_EQ(mine_->n_calls, rows ? 2 : 1);
    EXPECT_EQ(mine_->last_mode, uint32_t{KVC_MODE_PREFILL});
  }
}

TEST_F(CppCallersOperator, AttendsWithoutACache) {
  kvc::OperatorDesc bounds;
  bounds.max_rows = 1, bounds.max_q_len = bounds.max_kv_len = 4;
  bounds.n_kv_heads = kv_heads, bounds.max_q_heads = q_heads, bounds.head_dim_k = dim;
  kvc::Operator mine(device_, "mine", bounds), flash(device_, "flash", bounds);
  const std::vector<float> k = sines(4 * kv_heads * dim, 1), q = sines(4 * q_heads * dim, 3);
  std::vector<float> out(q.size()), wanted(q.size());
  kvc::ForwardDesc causal;
  causal.flags = KVC_FORWARD_CAUSAL;
  const auto forward = [&](kvc::Operator& op, std::vector<float>& into) {
    op.forward(causal, {q, {1, 4, q_heads, dim}}, {k, {1, 4, kv_heads, dim}},
               {k, {1, 4, kv_heads, dim}}, {into, {1, 4, q_heads, dim}});
  };
  forward(mine, out);
  forward(flash, wanted);
  expect_near(out, wanted);
  mine_->fail = [](const kvc::OperatorCall&) { throw kvc::BadState("not now"); };
  try {
    forward(mine, out);
    ADD_FAILURE() << "what it threw is lost";
  } catch (const kvc::BadState& error) {
    EXPECT_NE(error.message().find("mine"), std::string::npos) << error.message();
    EXPECT_NE(error.message().find(": not now"), std::string::npos) << error.message();
  }
}

TEST_F(CppCallersOperator, PositionsOfColumns) {
  kvc::Cache cache(device_, geometry());
  const kvc::Operator mine(device_, "mine");
  cache.bind_operator(0, 1, KVC_MODE_ALL, &mine);
  std::vector<int32_t> found, first(2);
  mine_->fail = [&](const kvc::OperatorCall& call) {
    found = call.positions(0);
    call.positions(0, 2, first.data());
    EXPECT_THROW(call.positions(1), kvc::InvalidArgument);
    std::vector<float> wrong(4);
    EXPECT_THROW(call.mask({wrong, {2, 2}}), kvc::ShapeError);
    EXPECT_EQ((*call).n_tokens, 4);
    EXPECT_THROW(cache.commit(), kvc::Busy);
  };
  pass(cache, false);
  ASSERT_GE(found.size(), 4u);
  EXPECT_EQ(std::vector<int32_t>(found.begin(), found.begin() + 4),
            (std::vector<int32_t>{0, 1, 2, 3}));
  EXPECT_EQ(first, (std::vector<int32_t>{0, 1}));
}

/// What attention throws when the operator throws this.
template <class Thrown, class Expected>
void expect_thrown(kvc::Cache& cache, Textbook& mine, const Thrown& thrown, const std::string& text) {
  const std::vector<float> row = sines(q_heads * dim, 1);
  std::vector<float> out(row.size());
  mine.fail = [&](const kvc::OperatorCall&) { throw thrown; };
  try {
    cache.attention(0, {row, {1, q_heads, dim}}, {out, {1, q_heads, dim}});
    ADD_FAILURE() << "it was taken: " << text;
  } catch (const Expected& error) {
    EXPECT_NE(error.message().find("the operator mine"), std::string::npos) << error.message();
    EXPECT_EQ(error.message().substr(error.message().size() - text.size()), text) << error.message();
  }
  mine.fail = nullptr;
}

TEST_F(CppCallersOperator, WhatItThrowsIsTheCallsError) {
  kvc::Cache cache(device_, geometry()), poisoned(device_, geometry());
  const kvc::Operator mine(device_, "mine");
  const std::vector<float> row = sines(q_heads * dim, 1);
  for (kvc::Cache* each : {&cache, &poisoned}) {
    each->bind_operator(0, 1, KVC_MODE_ALL, &mine);
    each->begin({0}, {0});
    each->put(0, {row, {1, kv_heads, dim}}, {row, {1, kv_heads, dim}});
  }
  const auto digest = cache.digest();
  expect_thrown<kvc::ShapeError, kvc::ShapeError>(cache, *mine_, kvc::ShapeError("too wide"),
                                                  ": too wide");
  expect_thrown<std::bad_alloc, kvc::OutOfMemory>(cache, *mine_, std::bad_alloc(),
                                                  ": std::bad_alloc");
  expect_thrown<std::runtime_error, kvc::InvalidArgument>(cache, *mine_, std::runtime_error("lost"),
                                                          ": lost");
  expect_thrown<int, kvc::InvalidArgument>(cache, *mine_, 7,
                                           ": an exception that is no std::exception");
  const std::string text(300, 'x');
  expect_thrown<kvc::NotSupported, kvc::NotSupported>(cache, *mine_, kvc::NotSupported(text),
                                                      ": " + text.substr(0, 255));
  EXPECT_EQ(cache.digest(), digest);
  std::vector<float> out(row.size());
  cache.attention(0, {row, {1, q_heads, dim}}, {out, {1, q_heads, dim}});  // as it was
  try {  // the next error of the library's own has none of it
    cache.attention(1, {row, {1, q_heads, dim}}, {out, {1, q_heads, dim}});
    ADD_FAILURE() << "there is no layer 1";
  } catch (const kvc::InvalidArgument& error) {
    EXPECT_EQ(error.message().find("xxx"), std::string::npos) << error.message();
  }
  expect_thrown<kvc::InternalError, kvc::InternalError>(poisoned, *mine_,
                                                        kvc::InternalError("broken"), ": broken");
  EXPECT_THROW(poisoned.commit(), kvc::InternalError);
}

TEST_F(CppCallersOperator, ItIsAskedWhatItSupports) {
  kvc::CacheDesc half = geometry();
  half.dtype_k = half.dtype_v = KVC_F16;
  kvc::Cache cache(device_, half);
  const kvc::Operator mine(device_, "mine");
  try {
    cache.bind_operator(0, 1, KVC_MODE_ALL, &mine);
    ADD_FAILURE() << "it was bound";
  } catch (const kvc::NotSupported& error) {
    EXPECT_NE(error.message().find(": it reads f32 alone"), std::string::npos) << error.message();
  }
  kvc::OperatorNeeds needs;
  needs.mode = KVC_MODE_PREFILL;
  EXPECT_EQ(kvc::operator_supports(device_, "also-mine", needs), "mine");
  mine_->fail_when_asked = true;
  EXPECT_THROW(kvc::operator_supports(device_, "mine", needs), kvc::InvalidArgument);
}

/// The functions that run on the CPU and on CUDA devices; the flag is set when it ends.
class OnTheCpu : public kvc::CallersOperator {
 public:
  explicit OnTheCpu(bool& ended) : ended_(ended) {}
  ~OnTheCpu() override { ended_ = true; }
  void forward_native(const kvc::OperatorCall&) const override { throw kvc::BadState("native"); }
  void forward_cpu(const kvc::OperatorCall&) const override { throw kvc::BadState("cpu"); }
  void forward_cuda(const kvc::OperatorCall&) const override { throw kvc::BadState("cuda"); }

 private:
  bool& ended_;
};

TEST_F(CppCallersOperator, ItLastsAsLongAsItIsHeld) {
  bool first = false, second = false;
  kvc::operator_register(device_, "held", info(), std::make_shared<OnTheCpu>(first));
  EXPECT_THROW(kvc::operator_register(device_, "held", info(), std::make_shared<OnTheCpu>(second)),
               kvc::InvalidArgument);
  EXPECT_TRUE(second) << "what was refused is not kept";
  second = false;
  EXPECT_THROW(kvc::operator_register(device_, "none", info(), nullptr), kvc::InvalidArgument);
  {
    kvc::Cache cache(device_, geometry());
    {
      const kvc::Operator held(device_, "held");
      kvc::operator_register(device_, "held", info(), std::make_shared<OnTheCpu>(second),
                             KVC_OPERATOR_REPLACE);
      cache.bind_operator(0, 1, KVC_MODE_ALL, &held);
    }
    EXPECT_FALSE(first);
    try {
      pass(cache, false);
      ADD_FAILURE() << "what it threw is lost";
    } catch (const kvc::BadState& error) {
      EXPECT_NE(error.message().find(": cpu"), std::string::npos) << error.message();
    }
  }
  EXPECT_TRUE(first);
  EXPECT_FALSE(second);
  kvc::operator_unregister(device_, "held");
  EXPECT_TRUE(second);
  EXPECT_THROW(kvc::operator_unregister(device_, "held"), kvc::NotFound);
  EXPECT_THROW(kvc::operator_unregister(device_, "flash"), kvc::NotSupported);
  EXPECT_EQ(mine_.use_count(), 2);
  kvc::operator_unregister(device_, "also-mine");
  EXPECT_EQ(mine_.use_count(), 1);
}

}  // namespace
