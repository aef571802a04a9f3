/* The first program for kvc in C. Its twins in examples/cpp, examples/go and examples/rust do the same and print the same,
 * byte for byte. Two of a server's conversations share a prompt, one speculates, one runs out of context:
 *
 *   export PKG_CONFIG_PATH=<prefix>/lib/pkgconfig LD_LIBRARY_PATH=<prefix>/lib
 *   cc -std=c99 kvc_example.c $(pkg-config --cflags --libs kvc) -o kvc_example && ./kvc_example
 *
 * A model would compute keys, values and queries (and rotate keys and queries by RoPE); here a formula stands in for it. */
#include <kvc/kvc.h>
#include <stdio.h>
#include <stdlib.h>

enum { LAYERS = 2, KV_HEADS = 2, QUERY_HEADS = 4, HEAD_DIM = 16, MAX_BATCH = 8, REACH = 8, MEMORY = 16, CELLS = 44 };
enum { KEY = 0, VALUE = 1, QUERY = 2 };

/* ---- Errors: the status says what to do, the message what happened -------------------------------------------------- */

static void print_error(const char *step, kvc_status status) {
  char message[512];
  kvc_last_error_copy(message, sizeof message);
  printf("%-14s %s: %s\n", step, kvc_status_name(status), message);
}

static void must(kvc_status status) {
  if (status == KVC_OK) return;
  print_error("failed", status);
  exit(1);
}

/* ---- What a model would compute ------------------------------------------------------------------------------------- */

/* Eighths between -2 and 2: exact in every storage type and in every language. */
static float element(int kind, int layer, int sequence, int position, int head, int dim) {
  return (float)((position * 29 + sequence * 13 + layer * 7 + head * 5 + dim * 3 + kind * 11) % 33 - 16) / 8;
}

/* [n_tokens, heads, HEAD_DIM] of consecutive positions */
static void fill(float *into, int kind, int layer, int sequence, int position, int n_tokens, int heads) {
  int token, head, dim;
  for (token = 0; token < n_tokens; token++)
    for (head = 0; head < heads; head++)
      for (dim = 0; dim < HEAD_DIM; dim++) *into++ = element(kind, layer, sequence, position + token, head, dim);
}

/* ---- Steps ------------------------------------------------------------------------------------------------------------ */

static void print_state(const char *step, const kvc_cache *cache) {
  uint64_t digest[2];
  must(kvc_state_digest(cache, digest));
  printf("%-14s %016llx%016llx\n", step, (unsigned long long)digest[0], (unsigned long long)digest[1]);
}

static kvc_tensor tensor(float *data, int n_tokens, int heads) {
  const int64_t shape[3] = {n_tokens, heads, HEAD_DIM};
  kvc_tensor view;
  must(kvc_tensor_dense(data, KVC_F32, 3, shape, &view));
  return view;
}

/* Opens a pass of n_tokens tokens of one sequence and runs the layers; the caller decides what of it to keep. */
static kvc_status forward(kvc_cache *cache, int sequence, int position, int n_tokens) {
  float k[MAX_BATCH * KV_HEADS * HEAD_DIM], v[MAX_BATCH * KV_HEADS * HEAD_DIM];
  float q[MAX_BATCH * QUERY_HEADS * HEAD_DIM], out[MAX_BATCH * QUERY_HEADS * HEAD_DIM];
  const kvc_tensor k_view = tensor(k, n_tokens, KV_HEADS), v_view = tensor(v, n_tokens, KV_HEADS);
  const kvc_tensor q_view = tensor(q, n_tokens, QUERY_HEADS);
  kvc_tensor out_view = tensor(out, n_tokens, QUERY_HEADS);
  int32_t positions[MAX_BATCH], sequences[MAX_BATCH];
  double sum = 0;
  int layer, i;

  for (i = 0; i < n_tokens; i++) positions[i] = position + i, sequences[i] = sequence;
  const kvc_status status = kvc_begin(cache, n_tokens, positions, sequences, NULL, 0, NULL);
  if (status != KVC_OK) return status;
  for (layer = 0; layer < LAYERS; layer++) {
    fill(k, KEY, layer, sequence, position, n_tokens, KV_HEADS);
    fill(v, VALUE, layer, sequence, position, n_tokens, KV_HEADS);
    fill(q, QUERY, layer, sequence, position, n_tokens, QUERY_HEADS);
    must(kvc_put(cache, layer, &k_view, &v_view));
    must(kvc_attention(cache, layer, &q_view, &out_view, NULL));
    for (i = 0; i < n_tokens * QUERY_HEADS * HEAD_DIM; i++) sum += out[i];
  }
  printf("%-14s sequence %d, positions %d to %d: sum %.3f\n", "attention", sequence, position, position + n_tokens - 1, sum);
  return KVC_OK;
}

static void converse(kvc_cache *cache) {
  kvc_sequence_info info = KVC_SEQUENCE_INFO_INIT;
  kvc_stats stats = KVC_STATS_INIT;
  const int32_t drafted = 1, verified = 2;
  kvc_status status;
  int32_t got;
  int i;

  must(forward(cache, 0, 0, 8));
  must(kvc_commit(cache));
  print_state("prompt", cache);
  for (i = 8; i < 16; i++) {
    must(forward(cache, 0, i, 1));
    must(kvc_commit(cache));
  }
  print_state("decode", cache);

  /* Another conversation starts with the same 12 tokens: it shares their cells. */
  must(kvc_copy_prefix(cache, 0, 1, 12, &got));
  printf("%-14s continues at %d\n", "copy_prefix", got);
  print_state("copy_prefix", cache);

  /* Four tokens were guessed, the model agrees with two. */
  must(forward(cache, 1, 12, 4));
  print_state("draft", cache);
  must(kvc_commit_prefix(cache, 1, &drafted, &verified));
  print_state("commit_prefix", cache);

  /* Make room in the middle: what lies behind moves down and is read as if it had been computed there. */
  must(kvc_remove(cache, 0, 4, 8));
  print_state("shift", cache);
  must(forward(cache, 0, 12, 1));
  must(kvc_commit(cache));
  print_state("after shift", cache);

  /* The user edits the last message. */
  must(kvc_resume(cache, 1, 13, &got));
  printf("%-14s continues at %d\n", "resume", got);
  print_state("resume", cache);

  /* The window slides; what has left it cannot be continued from. */
  for (i = 13; i < 37; i += 8) {
    must(forward(cache, 0, i, 8));
    must(kvc_commit(cache));
  }
  print_state("slide", cache);
  status = kvc_remove(cache, 0, 10, KVC_SEQ_END);
  if (status != KVC_E_WINDOW_LOST) exit(1);
  print_error("handled", status);
  must(kvc_can_resume(cache, 0, 10, &got));
  printf("%-14s could continue at %d\n", "can_resume", got);

  /* A third conversation does not fit: the second one has to go. */
  for (i = 0; i < 16; i += 8) {
    status = forward(cache, 2, i, 8);
    if (status == KVC_E_CACHE_FULL) {
      print_error("handled", status);
      must(kvc_remove(cache, 1, 0, KVC_SEQ_END));
      status = forward(cache, 2, i, 8);
    }
    must(status);
    must(kvc_commit(cache));
  }
  print_state("third", cache);

  for (i = 0; i < 3; i++) {
    must(kvc_sequence_query(cache, i, &info));
    printf("%-14s %d: positions %d to %d, %d held\n", "sequence", i, info.first, info.next, info.count);
  }
  must(kvc_cache_stats(cache, &stats));
  printf("%-14s %llu of %llu cells used, %llu shared, %llu passes\n", "stats", (unsigned long long)stats.cells_used,
         (unsigned long long)stats.cells, (unsigned long long)stats.cells_shared, (unsigned long long)stats.passes);
  must(kvc_check(cache));
}

int main(void) {
  kvc_cache_desc desc = KVC_CACHE_DESC_INIT;
  kvc_causal_desc causal = KVC_CAUSAL_DESC_INIT;
  kvc_attention_desc attention = KVC_ATTENTION_DESC_INIT;
  kvc_rope_desc rope = KVC_ROPE_DESC_INIT;
  kvc_device *device;
  kvc_cache *cache;

  desc.n_layers = LAYERS;
  desc.n_kv_heads = KV_HEADS;
  desc.head_dim_k = HEAD_DIM;
  desc.dtype_k = desc.dtype_v = KVC_F16;
  desc.max_sequences = 3;
  desc.capacity = 64;
  desc.max_batch = MAX_BATCH;
  desc.max_q_heads = QUERY_HEADS;
  desc.cells = CELLS;
  causal.reach = REACH;
  causal.memory = MEMORY;
  attention.n_q_heads = QUERY_HEADS;
  rope.pairs = KVC_ROPE_HALVES;

  must(kvc_device_open("cpu", NULL, NULL, &device));
  must(kvc_cache_create(device, &desc, &causal, &cache));
  must(kvc_bind_attention(cache, 0, LAYERS, &attention, NULL, NULL));
  must(kvc_bind_rope(cache, 0, LAYERS, &rope, NULL));
  converse(cache);
  must(kvc_cache_destroy(cache));
  must(kvc_device_close(device));
  return 0;
}
