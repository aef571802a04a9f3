// The first program for kvc in C++. Its twins in examples/c, examples/go and examples/rust do the same and print the
// same, byte for byte. Two of a server's conversations share a prompt, one speculates, one runs out of context.
// CMakeLists.txt beside this file shows how to find an installed kvc.
//
// A model would compute keys, values and queries (and rotate keys and queries by RoPE); here a formula stands in for it.
#include <cstdio>
#include <kvc/kvc.hpp>
#include <vector>

namespace {

constexpr int layers = 2, kv_heads = 2, query_heads = 4, head_dim = 16, max_batch = 8;

// ---- What a model would compute --------------------------------------------------------------------------------------

enum Kind { key, value, query };

/// Eighths between -2 and 2: exact in every storage type and in every language.
float element(Kind kind, int layer, int sequence, int position, int head, int dim) {
  const int mixed = position * 29 + sequence * 13 + layer * 7 + head * 5 + dim * 3 + kind * 11;
  return static_cast<float>(mixed % 33 - 16) / 8;
}

/// [n_tokens, heads, head_dim] of consecutive positions
std::vector<float> elements(Kind kind, int layer, int sequence, int position, int n_tokens, int heads) {
  std::vector<float> all;
  for (int token = 0; token < n_tokens; ++token) {
    for (int head = 0; head < heads; ++head) {
      for (int dim = 0; dim < head_dim; ++dim) {
        all.push_back(element(kind, layer, sequence, position + token, head, dim));
      }
    }
  }
  return all;
}

// ---- Steps -----------------------------------------------------------------------------------------------------------

void print_state(const char* step, const kvc::Cache& cache) {
  const auto digest = cache.digest();
  std::printf("%-14s %016llx%016llx\n", step, static_cast<unsigned long long>(digest[0]),
              static_cast<unsigned long long>(digest[1]));
}

void print_error(const kvc::Error& error) { std::printf("%-14s %s\n", "handled", error.what()); }

/// Runs the layers of an open pass of n tokens of one sequence.
void run_layers(kvc::Cache& cache, int sequence, int position, int n) {
  std::vector<float> out(static_cast<size_t>(n * query_heads * head_dim));
  double sum = 0;
  for (int layer = 0; layer < layers; ++layer) {
    const auto k = elements(key, layer, sequence, position, n, kv_heads);
    const auto v = elements(value, layer, sequence, position, n, kv_heads);
    const auto q = elements(query, layer, sequence, position, n, query_heads);
    cache.put(layer, {k.data(), {n, kv_heads, head_dim}}, {v.data(), {n, kv_heads, head_dim}});
    cache.attention(layer, {q.data(), {n, query_heads, head_dim}},
                    {out.data(), {n, query_heads, head_dim}});
    for (const float one : out) sum += one;
  }
  std::printf("%-14s sequence %d, positions %d to %d: sum %.3f\n", "attention", sequence, position,
              position + n - 1, sum);
}

/// Positions of n tokens from `first` on, and their sequence.
struct Batch {
  std::vector<int> positions, sequences;
  Batch(int sequence, int first, int n) : sequences(static_cast<size_t>(n), sequence) {
    for (int i = 0; i < n; ++i) positions.push_back(first + i);
  }
};

void forward(kvc::Cache& cache, int sequence, int position, int n) {
  const Batch batch(sequence, position, n);
  kvc::Pass pass(cache, batch.positions, batch.sequences);
  run_layers(cache, sequence, position, n);
  pass.commit();
}

/// Four tokens were guessed, the model agrees with two.
void speculate(kvc::Cache& cache, int sequence, int position) {
  const Batch batch(sequence, position, 4);
  kvc::Pass pass(cache, batch.positions, batch.sequences);
  run_layers(cache, sequence, position, 4);
  print_state("draft", cache);
  pass.commit_prefix({sequence}, {2});
  print_state("commit_prefix", cache);
}

void converse(kvc::Cache& cache) {
  forward(cache, 0, 0, 8);
  print_state("prompt", cache);
  for (int position = 8; position < 16; ++position) forward(cache, 0, position, 1);
  print_state("decode", cache);

  // Another conversation starts with the same 12 tokens: it shares their cells.
  std::printf("%-14s continues at %d\n", "copy_prefix", cache.copy_prefix(0, 1, 12));
  print_state("copy_prefix", cache);
  speculate(cache, 1, 12);

  // Make room in the middle: what lies behind moves down and is read as if it had been computed there.
  cache.remove(0, 4, 8);
  print_state("shift", cache);
  forward(cache, 0, 12, 1);
  print_state("after shift", cache);

  // The user edits the last message.
  std::printf("%-14s continues at %d\n", "resume", cache.resume(1, 13));
  print_state("resume", cache);

  // The window slides; what has left it cannot be continued from.
  for (int position = 13; position < 37; position += 8) forward(cache, 0, position, 8);
  print_state("slide", cache);
  try {
    cache.remove(0, 10);
  } catch (const kvc::WindowLost& error) {
    print_error(error);
  }
  std::printf("%-14s could continue at %d\n", "can_resume", cache.can_resume(0, 10));

  // A third conversation does not fit: the second one has to go.
  for (int position = 0; position < 16; position += 8) {
    try {
      forward(cache, 2, position, 8);
    } catch (const kvc::CacheFull& error) {
      print_error(error);
      cache.remove(1, 0);
      forward(cache, 2, position, 8);
    }
  }
  print_state("third", cache);

  for (int sequence = 0; sequence < 3; ++sequence) {
    const kvc_sequence_info info = cache.sequence(sequence);
    std::printf("%-14s %d: positions %d to %d, %d held\n", "sequence", sequence, info.first,
                info.next, info.count);
  }
  const kvc_stats stats = cache.stats();
  std::printf("%-14s %llu of %llu cells used, %llu shared, %llu passes\n", "stats",
              static_cast<unsigned long long>(stats.cells_used),
              static_cast<unsigned long long>(stats.cells),
              static_cast<unsigned long long>(stats.cells_shared),
              static_cast<unsigned long long>(stats.passes));
  cache.check_invariants();
}

kvc::Cache make_cache() {
  kvc::CacheDesc desc;
  desc.n_layers = layers;
  desc.n_kv_heads = kv_heads;
  desc.head_dim_k = head_dim;
  desc.dtype_k = desc.dtype_v = KVC_F16;
  desc.max_sequences = 3;
  desc.capacity = 64;
  desc.max_batch = max_batch;
  desc.max_q_heads = query_heads;
  desc.cells = 44;
  kvc::CausalDesc causal;
  causal.reach = 8;
  causal.memory = 16;
  kvc::AttentionDesc attention;
  attention.n_q_heads = query_heads;
  kvc::RopeDesc rope;
  rope.pairs = KVC_ROPE_HALVES;

  kvc::Cache cache(kvc::Device("cpu"), desc, causal);  // the cache keeps what it needs of the device
  cache.bind_attention(0, layers, attention);
  cache.bind_rope(0, layers, rope);
  return cache;
}

}  // namespace

int main() {
  try {
    kvc::Cache cache = make_cache();
    converse(cache);
  } catch (const kvc::Error& error) {
    std::fprintf(stderr, "failed: %s\n", error.what());
    return 1;
  }
  return 0;
}
