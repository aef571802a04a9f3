// The caller's floating-point environment has no effect on what a call computes, and no call changes it: rounding, flush to
// zero, traps, flags; set before or after the device is opened, for one thread and several.
#include <gtest/gtest.h>

#include <cstdlib>
#include <map>
#include <numeric>
#include <tuple>

#include "support/abi.hpp"
#include "support/float_environment.hpp"
#include "support/random.hpp"

namespace {

using support::InEnvironment;
using Bytes = std::vector<unsigned char>;

constexpr int32_t kv_heads = 2, q_heads = 8, head_dim = 40, context = 144, n_layers = 2;
constexpr int32_t prompt = 48;  // tokens of a pass with the kernels for many rows; 6 and 1 are for fewer
constexpr size_t row = size_t{kv_heads} * head_dim, q_row = size_t{q_heads} * head_dim;

struct Setting {
  uint32_t dtype;
  int32_t n_threads;
};

/// Numbers between -1 and 1, some of them so small that the storage type holds them as subnormal numbers. Not more of them than
/// needed, because processors are slow at them.
std::vector<float> some(size_t n, float small, uint64_t seed) {
  support::Random random(seed);
  std::vector<float> numbers(n);
  for (size_t i = 0; i < n; ++i)
    numbers[i] = static_cast<float>(random.unit() * 2 - 1) * (i % 61 == 0 ? small : 1.0f);
  return numbers;
}

/// A cache that is used in an environment of its caller's, and all that it returns.
class Session {
 public:
  enum Moment { before_open, after_open };

  Session(const Setting& setting, const std::string& environment, Moment moment)
      : small_(setting.dtype == KVC_F16 ? 1e-6f : 1e-39f), environment_(environment) {
    if (moment == before_open) InEnvironment::set(environment);
    kvc_device* device = nullptr;
    kvc_device_desc desc{};
    desc.struct_size = sizeof desc;
    desc.n_threads = setting.n_threads;
    if (moment == before_open) note_environment();
    call(kvc_device_open("cpu", &desc, nullptr, &device));
    if (moment == after_open) {
      InEnvironment::set(environment);
      note_environment();
    }
    kvc_cache* cache = create(device, setting.dtype);
    if (cache != nullptr) use(cache);
    call(kvc_cache_destroy(cache));
    call(kvc_device_close(device));
    InEnvironment::set("default");
  }

  const Bytes& results() const { return results_; }

 private:
  void note_environment() { outside_ = support::float_environment(); }

  /// After every call. The environment stays set: only integers and calls from here to the end.
  void call(kvc_status status) {
    if (status != KVC_OK) {
      InEnvironment::set("default");
      FAIL() << environment_ << ": " << support::name(status) << ": " << support::last_message();
    }
    if (!outside_.empty() && support::float_environment() != outside_) {
      InEnvironment::set("default");
      FAIL() << environment_ << ": a call changed the caller's environment";
    }
  }

  template <class T>
  void keep(const T* data, size_t n) {
    const auto* bytes = reinterpret_cast<const unsigned char*>(data);
    results_.insert(results_.end(), bytes, bytes + n * sizeof(T));
  }

  kvc_cache* create(kvc_device* device, uint32_t dtype) {
    kvc_cache_desc desc = support::cache_desc(n_layers, kv_heads, head_dim, head_dim);
    desc.dtype_k = desc.dtype_v = dtype;
    desc.capacity = 2 * context;
    desc.max_batch = prompt;
    desc.max_q_heads = q_heads;
    desc.max_sequences = 2;
    uint64_t bytes = 0;
    kvc_cache* cache = nullptr;
    call(kvc_cache_memory_bytes(device, &desc, nullptr, &bytes));
    call(kvc_cache_create(device, &desc, nullptr, &cache));
    kvc_attention_desc attention{};
    attention.struct_size = sizeof attention;
    attention.n_q_heads = q_heads;
    attention.softcap = 20;
    call(kvc_bind_attention(cache, 1, n_layers, &attention, nullptr, nullptr));
    kvc_rope_desc rope{};
    rope.struct_size = sizeof rope;
    call(kvc_bind_rope(cache, 0, n_layers, &rope, nullptr));
    return cache;
  }

  void use(kvc_cache* cache) {
    for (int32_t at = 0; at < context; at += prompt) pass(cache, 0, at, prompt);
    pass(cache, 0, context, 6);
    pass(cache, 0, context + 6, 1);
    call(kvc_copy_prefix(cache, 0, 1, 100, nullptr));
    call(kvc_remove(cache, 0, 10, 30));  // keys that nobody shares and shared ones have to turn
    call(kvc_remove(cache, 1, 20, 33));
    pass(cache, 0, context + 7 - 20, 1);
    pass(cache, 1, 100 - 13, 5);
    kvc_tensor k{}, v{};
    const int32_t position = context + 8 - 20, sequence = 0;
    call(kvc_begin(cache, 1, &position, &sequence, nullptr, 0, nullptr));
    put(cache, 1, 77);
    call(kvc_get(cache, 0, &k, &v));
    call(kvc_commit(cache));
    for (int32_t layer = 0; layer < n_layers; ++layer) gather(cache, layer);
    uint64_t digest[2] = {};
    call(kvc_state_digest(cache, digest));
    keep(digest, 2);
    call(kvc_check(cache));
  }

  void put(kvc_cache* cache, int32_t n, uint64_t seed) {
    for (int32_t layer = 0; layer < n_layers; ++layer) {
      const auto tokens = static_cast<size_t>(n);
      auto& [k, v] = inputs_.at({n, seed % 3});
      const kvc_tensor keys = support::dense(k.data(), KVC_F32, {n, kv_heads, head_dim});
      const kvc_tensor values = support::dense(v.data(), KVC_F32, {n, kv_heads, head_dim});
      EXPECT_EQ(k.size(), tokens * row);
      call(kvc_put(cache, layer, &keys, &values));
    }
  }

  void pass(kvc_cache* cache, int32_t sequence, int32_t first, int32_t n) {
    std::vector<int32_t> position(static_cast<size_t>(n));
    std::iota(position.begin(), position.end(), first);
    const std::vector<int32_t> sequences(position.size(), sequence);
    call(kvc_begin(cache, n, position.data(), sequences.data(), nullptr, 0, nullptr));
    put(cache, n, static_cast<uint64_t>(first));
    for (int32_t layer = 0; layer < n_layers; ++layer) {
      for (const bool with_weights : {false, true}) attend(cache, layer, n, with_weights);
    }
    call(kvc_commit(cache));
  }

  void attend(kvc_cache* cache, int32_t layer, int32_t n, bool with_weights) {
    const auto tokens = static_cast<size_t>(n);
    int32_t first = 0, history = 0;
    call(kvc_history(cache, layer, &first, &history));
    Bytes out(tokens * q_row * sizeof(float));
    Bytes lse(tokens * q_heads * sizeof(float));
    Bytes weights(with_weights ? q_heads * tokens * static_cast<size_t>(history) * sizeof(float) : 0);
    const uint32_t out_dtype = with_weights ? KVC_F32 : KVC_F16;
    const kvc_tensor q = support::dense(q_.data(), KVC_F32, {n, q_heads, head_dim});
    kvc_tensor to = support::dense(out.data(), out_dtype, {n, q_heads, head_dim});
    kvc_tensor sums = support::dense(lse.data(), KVC_F32, {n, q_heads});
    kvc_tensor shares = support::dense(weights.data(), KVC_F32, {q_heads, n, history});
    kvc_attention_extra extra{};
    extra.struct_size = sizeof extra;
    extra.lse = &sums;
    if (with_weights) extra.weights = &shares;
    call(kvc_attention(cache, layer, &q, &to, &extra));
    keep(out.data(), out.size());
    keep(lse.data(), lse.size());
    keep(weights.data(), weights.size());
  }

  void gather(kvc_cache* cache, int32_t layer) {
    const int32_t n = support::sequence_info(cache, 0).count;
    const size_t bytes = static_cast<size_t>(n) * row * sizeof(float);
    Bytes k(bytes), v(bytes);
    const kvc_tensor keys = support::dense(k.data(), KVC_F32, {n, kv_heads, head_dim});
    kvc_tensor to_k = keys, to_v = keys;
    to_v.data = v.data();
    call(kvc_gather(cache, layer, 0, &to_k, &to_v));
    keep(k.data(), bytes);
    keep(v.data(), bytes);
  }

  struct Input {
    std::vector<float> k, v;
  };
  static std::map<std::pair<int32_t, uint64_t>, Input> make_inputs(float small) {
    std::map<std::pair<int32_t, uint64_t>, Input> inputs;
    for (const int32_t n : {1, 5, 6, prompt}) {
      for (uint64_t seed = 0; seed < 3; ++seed)
        inputs[{n, seed}] = {some(static_cast<size_t>(n) * row, small, 3 * seed + 1),
                             some(static_cast<size_t>(n) * row, small, 3 * seed + 2)};
    }
    return inputs;
  }

  float small_;
  std::string environment_;
  std::map<std::pair<int32_t, uint64_t>, Input> inputs_ = make_inputs(small_);
  std::vector<float> q_ = some(prompt * q_row, 1, 99);
  Bytes outside_, results_;
};

class FloatEnvironment : public testing::TestWithParam<uint32_t> {};

TEST_P(FloatEnvironment, NeitherMattersNorChanges) {
  const Session expected({GetParam(), 1}, "default", Session::before_open);
  ASSERT_FALSE(HasFatalFailure());
#ifdef KVC_SANITIZED
  const std::vector<std::string> names = {"rounding up",
                                          InEnvironment::names().back()};  // all are slow here
#else
  const std::vector<std::string> names = InEnvironment::names();
#endif
  for (const std::string& name : names) {
    for (const auto& [n_threads, moment] :
         {std::pair{1, Session::before_open}, {3, Session::before_open}, {3, Session::after_open}}) {
      const Session session({GetParam(), n_threads}, name, moment);
      ASSERT_FALSE(HasFatalFailure());
      EXPECT_TRUE(session.results() == expected.results())
          << name << (moment == Session::before_open ? ", before" : ", after")
          << " the device was opened, " << n_threads << " threads";
    }
  }
}

INSTANTIATE_TEST_SUITE_P(StorageTypes, FloatEnvironment,
                         testing::Values(uint32_t{KVC_F32}, uint32_t{KVC_F16}, uint32_t{KVC_BF16}));

// ---- The caller's functions --------------------------------------------------------------------------------------

/// Counts its calls, and those that did not find the library's environment; leaves another one behind.
struct Meddler {
  int calls = 0, elsewhere = 0;

  void meddle() {
    ++calls;
    if (!support::computes_by_default()) ++elsewhere;
    InEnvironment::set("rounding up");
  }
};

TEST(FloatEnvironmentOfCallbacks, AnAllocatorComputesInTheLibrarysAndItsChangesDoNotLast) {
  Meddler meddler;
  kvc_allocator allocator{};
  allocator.user = &meddler;
  allocator.alloc = [](void* user, size_t bytes, size_t alignment) -> void* {
    static_cast<Meddler*>(user)->meddle();
    return std::aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
  };
  allocator.free = [](void* user, void* block, size_t, size_t) {
    static_cast<Meddler*>(user)->meddle();
    std::free(block);
  };
  Bytes before, after;
  {
    const InEnvironment outside("rounding down");
    before = support::float_environment();
    const support::Device device(2, &allocator);
    const support::Cache cache(device, support::cache_desc(1, 1, 4, 4));
    after = support::float_environment();
  }
  EXPECT_TRUE(after == before);
  EXPECT_GE(meddler.calls, 4) << "two blocks come and go";
  EXPECT_EQ(meddler.elsewhere, 0);
}

TEST(FloatEnvironmentOfCallbacks, AShiftFunctionComputesInTheLibrarysAndItsChangesDoNotLast) {
  const support::Device device(2);
  const support::Cache cache(device, support::cache_desc(2, 1, 4, 4));
  Meddler meddler;
  const kvc_shift_function shift = [](void* user, int32_t, int32_t, const int32_t*, const int32_t*,
                                      kvc_tensor*) {
    static_cast<Meddler*>(user)->meddle();
    return kvc_status{KVC_OK};
  };
  ASSERT_EQ(kvc_bind_shift(cache, shift, &meddler), KVC_OK);
  const int32_t position[] = {0, 1, 2, 3}, sequence[] = {0, 0, 0, 0};
  ASSERT_EQ(kvc_begin(cache, 4, position, sequence, nullptr, 0, nullptr), KVC_OK);
  ASSERT_EQ(kvc_commit(cache), KVC_OK);
  Bytes before, after;
  kvc_status removed = KVC_OK;
  {
    const InEnvironment outside("rounding down");
    before = support::float_environment();
    removed = kvc_remove(cache, 0, 1, 2);
    after = support::float_environment();
  }
  EXPECT_EQ(removed, KVC_OK);
  EXPECT_TRUE(after == before);
  EXPECT_EQ(meddler.calls, 2) << "once for each layer";
  EXPECT_EQ(meddler.elsewhere, 0);
}

}  // namespace
