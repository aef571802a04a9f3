#include <algorithm>
#include <array>
#include <cstring>
#include <optional>
#include <string>
#include <vector>

#include <kvc/transformer.h>

#include "cases.hpp"
#include "measure.hpp"
#include "rig.hpp"

namespace bench {
namespace {

constexpr int32_t rows = 8, length = 4096, chunk = 256, layers = 2;
constexpr int32_t n_q_heads = 32, n_kv_heads = 8, head_dim = 128;

/// Eight histories of 4096 positions in f16, as rows of a transformer cache or as sequences of a causal one.
class Batch {
 public:
  Batch(kvc_device* device, uint32_t kind) : is_rows_(kind == KVC_TRANSFORMER) {
    kvc_cache_desc desc = KVC_CACHE_DESC_INIT;
    desc.kind = kind;
    desc.flags = KVC_CACHE_PREFAULT;
    desc.n_layers = layers;
    desc.n_kv_heads = n_kv_heads;
    desc.head_dim_k = head_dim;
    desc.dtype_k = desc.dtype_v = KVC_F16;
    desc.max_sequences = rows;
    desc.capacity = length;
    desc.max_batch = rows * chunk;
    desc.max_q_heads = n_q_heads;
    must(kvc_cache_create(device, &desc, nullptr, &cache_), "cache");
    while (next_ < length - chunk) pass(chunk, false);
  }
  ~Batch() { must(kvc_cache_destroy(cache_), "destroy"); }
  Batch(const Batch&) = delete;
  Batch& operator=(const Batch&) = delete;

  kvc_cache* cache() { return cache_; }

  /// Every row goes back to where a chunk fills it, so that passes repeat.
  void go_back() {
    for (int32_t row = 0; row < rows; ++row)
      must(kvc_resume(cache_, row, length - chunk, nullptr), "resume");
    next_ = length - chunk;
  }

  /// Seconds of a whole pass of n tokens in every row.
  double pass(int32_t n, bool attends) {
    Tensors& t = n == 1 ? one_ : many_;
    std::vector<int32_t> position, sequence;
    for (int32_t row = 0; row < rows; ++row) {
      for (int32_t i = 0; i < n; ++i) {
        position.push_back(next_ + i);
        sequence.push_back(row);
      }
    }
    next_ += n;
    return seconds([&] {
      if (is_rows_) {
        must(kvc_begin_rows(cache_, n, 0, nullptr, nullptr, nullptr, nullptr), "begin_rows");
      } else {
        must(kvc_begin(cache_, rows * n, position.data(), sequence.data(), nullptr, 0, nullptr),
             "begin");
      }
      for (int32_t layer = 0; layer < layers; ++layer) {
        must(kvc_put(cache_, layer, t.k.tensor(), t.v.tensor()), "put");
        if (attends)
          must(kvc_attention(cache_, layer, t.q.tensor(), t.out.tensor(), nullptr), "attention");
      }
      must(kvc_commit(cache_), "commit");
    });
  }

 private:
  struct Tensors {
    Tensors(bool is_rows, int32_t n)
        : k(KVC_F32, shape(is_rows, n, n_kv_heads)),
          v(KVC_F32, shape(is_rows, n, n_kv_heads)),
          q(KVC_F32, shape(is_rows, n, n_q_heads)),
          out(KVC_F32, shape(is_rows, n, n_q_heads)) {
      k.fill(1), v.fill(2), q.fill(3);
    }
    static std::vector<int64_t> shape(bool is_rows, int32_t n, int32_t heads) {
      if (is_rows) return {rows, n, heads, head_dim};
      return {rows * n, heads, head_dim};
    }
    Array k, v, q, out;
  };

  const bool is_rows_;
  kvc_cache* cache_ = nullptr;
  int32_t next_ = 0;
  Tensors one_{is_rows_, 1}, many_{is_rows_, chunk};
};

/// Median seconds of passes over rows, and over a causal cache.
struct Beside {
  double rows = 0, causal = 0;
};

/// Passes of one token in each row, and of a chunk.
std::array<Beside, 2> measure_beside_causal(kvc_device* device, bool rows_first) {
  std::optional<Batch> of_rows, causal;
  if (rows_first) of_rows.emplace(device, KVC_TRANSFORMER);
  causal.emplace(device, KVC_CAUSAL);
  if (!rows_first) of_rows.emplace(device, KVC_TRANSFORMER);
  const auto measure = [&](int32_t n, int repeats) {
    std::vector<double> here, there;
    for (int i = 0; i < repeats; ++i) {
      if (rows_first) here.push_back(of_rows->pass(n, true));
      there.push_back(causal->pass(n, true));
      if (!rows_first) here.push_back(of_rows->pass(n, true));
      of_rows->go_back();
      causal->go_back();
    }
    return Beside{median(here), median(there)};
  };
  return {measure(1, 15), measure(chunk, 1)};
}

/// What is made first, and goes first, was slower by an eighth in a prefill, whatever it was: both take turns at it.
void beside_causal(kvc_device* device) {
  constexpr const char* names[] = {"decode of 8 rows × 4k, beside a causal cache",
                                   "prefill of 256 tokens in 8 rows × 4k, beside a causal cache"};
  for (int pair = 0; pair < pairs(); ++pair) {
    const auto first = measure_beside_causal(device, true),
               second = measure_beside_causal(device, false);
    for (size_t i = 0; i < first.size(); ++i) {
      const double here = first[i].rows + second[i].rows, there = first[i].causal + second[i].causal;
      report({"rows", names[i], "x", Better::lower, 1.03, 1}, here / there, here / 2);
    }
  }
}

/// The limit copies as many bytes between blocks of the same sizes.
void insert_cost(kvc_device* device, Limits& limits) {
  kvc_cache_desc desc = KVC_CACHE_DESC_INIT;
  desc.kind = KVC_TRANSFORMER;
  desc.flags = KVC_CACHE_PREFAULT;
  desc.n_layers = 16;
  desc.n_kv_heads = n_kv_heads;
  desc.head_dim_k = head_dim;
  desc.dtype_k = desc.dtype_v = KVC_F16;
  desc.max_sequences = 1;
  desc.capacity = length;
  desc.max_batch = 512;
  kvc_cache *one = nullptr, *batch = nullptr;
  must(kvc_cache_create(device, &desc, nullptr, &one), "cache");
  desc.max_sequences = 4;
  must(kvc_cache_create(device, &desc, nullptr, &batch), "cache");
  for (int32_t at = 0; at < length; at += desc.max_batch) {
    must(kvc_begin_rows(one, desc.max_batch, 0, nullptr, nullptr, nullptr, nullptr), "begin_rows");
    must(kvc_commit(one), "commit");
  }
  const size_t bytes = size_t{n_kv_heads} * length * head_dim * 2;  // of a layer's K
  std::vector<std::byte> from(bytes * 32), to(bytes * 32 * 4);
  std::memset(from.data(), 1, from.size());
  std::memset(to.data(), 1, to.size());
  size_t slot = 0;
  for (int pair = 0; pair < pairs(); ++pair) {
    std::vector<double> inserts, copies;
    for (int i = 0; i < 5; ++i, slot = (slot + 1) % 4) {
      std::vector<std::byte*> sources, targets;
      for (size_t part = 0; part < 32; ++part) {
        sources.push_back(from.data() + part * bytes);
        targets.push_back(to.data() + (slot * 32 + part) * bytes);
      }
      copies.push_back(limits.copy_seconds(targets, sources, bytes));
      inserts.push_back(
          seconds([&] { must(kvc_insert(batch, one, static_cast<int32_t>(slot)), "insert"); }));
    }
    report({"rows", "insert of a row of 4k tokens, 16 layers", "% of copying", Better::higher, 80, 90},
           100 * median(copies) / median(inserts), median(inserts));
  }
  must(kvc_cache_destroy(batch), "destroy");
  must(kvc_cache_destroy(one), "destroy");
}

}  // namespace

void rows_cases(Limits& limits) {
  kvc_device* const device = open_device();
  beside_causal(device);
  insert_cost(device, limits);
  must(kvc_device_close(device), "close");
}

}  // namespace bench
