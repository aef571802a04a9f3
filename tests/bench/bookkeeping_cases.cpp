#include <algorithm>
#include <cstdio>
#include <cstring>
#include <vector>

#include "cases.hpp"
#include "measure.hpp"
#include "rig.hpp"

namespace bench {
namespace {

/// A cache whose keys and values are tiny, so that what is left is bookkeeping.
struct Ledger {
  kvc_device* device = open_device(1);
  kvc_cache* cache = nullptr;
  std::vector<float> rows;
  kvc_tensor tensor;

  Ledger(int32_t sequences, int32_t capacity, int32_t reach, int32_t cells = 0) {
    kvc_cache_desc desc = {};
    desc.struct_size = sizeof desc;
    desc.kind = KVC_CAUSAL;
    desc.n_layers = desc.n_kv_heads = desc.head_dim_k = 1;
    desc.max_sequences = sequences;
    desc.capacity = capacity;
    desc.max_batch = 512;
    desc.cells = cells;
    kvc_causal_desc causal = {};
    causal.struct_size = sizeof causal;
    causal.kind = KVC_CAUSAL;
    causal.reach = reach;
    causal.flags = KVC_CAUSAL_POSITION_FREE;
    must(kvc_cache_create(device, &desc, &causal, &cache), "cache");
  }
  ~Ledger() {
    must(kvc_cache_destroy(cache), "destroy");
    must(kvc_device_close(device), "close");
  }

  /// One pass: begin and commit. The tiny put between them is not part of the time.
  double pass(const std::vector<int32_t>& position, const std::vector<int32_t>& sequence) {
    const auto n = static_cast<int32_t>(position.size());
    const double begin = seconds([&] {
      must(kvc_begin(cache, n, position.data(), sequence.data(), nullptr, 0, nullptr), "begin");
    });
    rows.resize(position.size());
    const int64_t shape[] = {n, 1, 1};
    must(kvc_tensor_dense(rows.data(), KVC_F32, 3, shape, &tensor), "tensor");
    must(kvc_put(cache, 0, &tensor, &tensor), "put");
    return begin + seconds([&] { must(kvc_commit(cache), "commit"); });
  }

  void fill(int32_t sequence, int32_t tokens) {
    for (int32_t at = 0; at < tokens; at += 512) {
      std::vector<int32_t> position, owner;
      for (int32_t i = at; i < std::min(at + 512, tokens); ++i)
        position.push_back(i), owner.push_back(sequence);
      pass(position, owner);
    }
  }
};

void pass_cost(int32_t cells, const char* size, double must_step, double must_batch, double go_step,
               double go_batch) {
  constexpr int32_t sequences = 64;
  const int32_t per_sequence = cells / sequences;
  // A window somewhat below its share, so that sequences slide all the time.
  Ledger ledger(sequences, 1 << 24, per_sequence - 32, cells);
  std::vector<int32_t> next(sequences, 0);
  for (int32_t s = 0; s < sequences; ++s) {
    ledger.fill(s, per_sequence - 31);
    next[static_cast<size_t>(s)] = per_sequence - 31;
  }
  const auto step = [&] {
    std::vector<int32_t> position, sequence;
    for (int32_t s = 0; s < sequences; ++s)
      position.push_back(next[static_cast<size_t>(s)]++), sequence.push_back(s);
    return ledger.pass(position, sequence);
  };
  const auto batch = [&](int32_t s) {
    std::vector<int32_t> position, sequence;
    for (int32_t i = 0; i < 512; ++i)
      position.push_back(next[static_cast<size_t>(s)]++), sequence.push_back(s);
    return ledger.pass(position, sequence);
  };
  for (int i = 0; i < 20; ++i) step();
  for (int pair = 0; pair < pairs(); ++pair) {
    std::vector<double> steps, batches;
    for (int i = 0; i < 51; ++i) steps.push_back(step());
    for (int i = 0; i < 15; ++i) batches.push_back(batch(i % sequences));
    const double s = median(steps), b = median(batches);
    report({"bookkeeping",
            std::string("begin + commit, ") + size + " cells, 64 sequences, a token each", "µs",
            Better::lower, must_step, go_step},
           1e6 * s, s);
    report({"bookkeeping", std::string("begin + commit, ") + size + " cells, one batch of 512",
            "µs", Better::lower, must_batch, go_batch},
           1e6 * b, b);
    for (int i = 0; i < 5; ++i) step();
  }
}

void sequence_cost() {
  constexpr int32_t tokens = 65536;
  Ledger ledger(3, tokens + 1024, 0);
  ledger.fill(0, tokens);
  for (int pair = 0; pair < pairs(); ++pair) {
    int32_t got = 0;
    const double copy = seconds(
        [&] { must(kvc_copy_prefix(ledger.cache, 0, 1, tokens, &got), "copy_prefix"); });
    report({"bookkeeping", "copy_prefix of 64k tokens", "µs", Better::lower, 200, 50}, 1e6 * copy,
           copy);
    const double shift = seconds([&] { must(kvc_remove(ledger.cache, 1, 4, 260), "remove"); });
    report({"bookkeeping", "shift of a tail of 64k", "µs", Better::lower, 200, 50}, 1e6 * shift,
           shift);
    const double remove = seconds(
        [&] { must(kvc_remove(ledger.cache, 1, 0, KVC_SEQ_END), "remove"); });
    report({"bookkeeping", "remove of a shared tail of 64k", "µs", Better::lower, 200, 50},
           1e6 * remove, remove);
    must(kvc_copy_prefix(ledger.cache, 0, 1, tokens, &got), "copy_prefix");
    must(kvc_remove(ledger.cache, 0, 0, KVC_SEQ_END), "remove");
    const double freed = seconds([&] { must(kvc_remove(ledger.cache, 1, 0, KVC_SEQ_END), "remove"); });
    report({"bookkeeping", "remove of a tail of 64k", "µs", Better::lower, 200, 50}, 1e6 * freed,
           freed);
    ledger.fill(0, tokens);
  }
}

/// Masks beside memset of as many bytes, both in the caches.
void mask_cost() {
  Ledger ledger(1, 1 << 13, 0);
  ledger.fill(0, 4096);
  for (const int32_t tokens : {1, 512}) {
    std::vector<int32_t> position, sequence(static_cast<size_t>(tokens), 0);
    for (int32_t i = 0; i < tokens; ++i) position.push_back(4096 + i);
    must(kvc_begin(ledger.cache, tokens, position.data(), sequence.data(), nullptr, 0, nullptr),
         "begin");
    const int64_t shape[] = {tokens, 1, 1};
    must(kvc_tensor_dense(ledger.rows.data(), KVC_F32, 3, shape, &ledger.tensor), "tensor");
    must(kvc_put(ledger.cache, 0, &ledger.tensor, &ledger.tensor), "put");
    for (const uint32_t dtype : {KVC_F32, KVC_BOOL}) {
      kvc_tensor mask = {};
      must(kvc_mask(ledger.cache, 0, &mask), "mask");
      std::vector<char> bytes(static_cast<size_t>(mask.shape[0] * mask.shape[1]) *
                              (dtype == KVC_F32 ? 4 : 1));
      const int64_t columns[] = {mask.shape[0], mask.shape[1]};
      must(kvc_tensor_dense(bytes.data(), dtype, 2, columns, &mask), "tensor");
      for (int pair = 0; pair < pairs(); ++pair) {
        double base = 1, time = 1;
        for (int i = 0; i < 10; ++i) {
          base = std::min(base, seconds([&] {
                            std::memset(bytes.data(), i, bytes.size());
                            asm volatile("" ::"r"(bytes.data()) : "memory");
                          }));
          time = std::min(time, seconds([&] { must(kvc_mask(ledger.cache, 0, &mask), "mask"); }));
        }
        report({"bookkeeping",
                "mask of " + std::to_string(tokens) + " tokens on 4k, " +
                    (dtype == KVC_F32 ? "f32" : "booleans"),
                "x memset", Better::lower, 8, 2},
               time / base, time);
      }
    }
    must(kvc_abort(ledger.cache), "abort");
  }
}

/// Bytes that grow with the pool and with the sequences, by difference, K and V taken off.
void memory_cost() {
  kvc_device* device = nullptr;
  must(kvc_device_open("cpu", nullptr, nullptr, &device), "device");
  const auto bytes = [&](int32_t cells, int32_t capacity) {
    kvc_cache_desc desc = {};
    desc.struct_size = sizeof desc;
    desc.kind = KVC_CAUSAL;
    desc.n_layers = desc.n_kv_heads = desc.head_dim_k = 1;
    desc.max_sequences = 16;
    desc.capacity = capacity;
    desc.max_batch = 64;
    desc.cells = cells;
    uint64_t total = 0;
    must(kvc_cache_memory_bytes(device, &desc, nullptr, &total), "memory_bytes");
    return static_cast<double>(total);
  };
  constexpr int32_t more = 1 << 20;
  const double per_cell = (bytes(2 * more, more) - bytes(more, more)) / more -
                          8;  // K and V take 8 bytes of each cell here
  // A sequence has entries for as many positions as there are cells, at most.
  const double per_position = (bytes(2 * more, 2 * more) - bytes(2 * more, more)) / more / 16;
  report({"bookkeeping", "metadata per cell", "B", Better::lower, 16, 0}, per_cell, 0);
  report({"bookkeeping", "metadata per (sequence, position)", "B", Better::lower, 8, 0},
         per_position, 0);
  must(kvc_device_close(device), "close");
}

}  // namespace

void bookkeeping_cases() {
  pass_cost(1 << 16, "64k", 3, 15, 2, 6);
  pass_cost(1 << 20, "1M", 10, 30, 4, 12);
  sequence_cost();
  mask_cost();
  memory_cost();
}

}  // namespace bench
