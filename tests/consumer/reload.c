/* Loads and unloads the library more often than a process has keys for thread-specific values (1024), with a device, a cache, a
 * pass and a failure in between: it goes away each time, and neither mappings nor threads nor messages stay behind. The pass is wide enough to wake the thread pool and to enter the kernels for
 * many rows (with AMX, where the process asks the system for its registers). */
#define _POSIX_C_SOURCE 200809L
#include <dlfcn.h>
#include <kvc/kvc.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

enum { TOKENS = 64, KV_HEADS = 2, QUERY_HEADS = 4, HEAD_DIM = 64 };

/* The functions that a round calls, looked up anew in each. */
static struct {
  kvc_status (*device_open)(const char *, const kvc_device_desc *, const kvc_allocator *, kvc_device **);
  kvc_status (*device_close)(kvc_device *);
  kvc_status (*cache_create)(kvc_device *, const kvc_cache_desc *, const void *, kvc_cache **);
  kvc_status (*cache_destroy)(kvc_cache *);
  kvc_status (*tensor_dense)(void *, uint32_t, int32_t, const int64_t *, kvc_tensor *);
  kvc_status (*begin)(kvc_cache *, int32_t, const int32_t *, const int32_t *, const uint32_t *, uint32_t, void *);
  kvc_status (*put)(kvc_cache *, int32_t, const kvc_tensor *, const kvc_tensor *);
  kvc_status (*attention)(kvc_cache *, int32_t, const kvc_tensor *, kvc_tensor *, kvc_tensor *);
  kvc_status (*commit)(kvc_cache *);
  size_t (*last_error_copy)(char *, size_t);
} kvc;

static int find(void *library, const char *name, void *function, size_t size) {
  void *address = dlsym(library, name);
  memcpy(function, &address, size); /* ISO C has no cast from data to function pointers */
  if (address == NULL) fprintf(stderr, "%s is missing\n", name);
  return address != NULL;
}
#define FIND(name) find(library, "kvc_" #name, &kvc.name, sizeof kvc.name)

static int find_all(void *library) {
  return FIND(device_open) && FIND(device_close) && FIND(cache_create) && FIND(cache_destroy) && FIND(tensor_dense) &&
         FIND(begin) && FIND(put) && FIND(attention) && FIND(commit) && FIND(last_error_copy);
}

/* The name of the call that failed, or null. */
#define TRY(call) \
  if ((call) != KVC_OK) return #call

static const char *use_cache(kvc_cache *cache) {
  static float k[TOKENS * KV_HEADS * HEAD_DIM], q[TOKENS * QUERY_HEADS * HEAD_DIM], out[TOKENS * QUERY_HEADS * HEAD_DIM];
  static int32_t position[TOKENS], sequence[TOKENS];
  const int64_t kv_shape[3] = {TOKENS, KV_HEADS, HEAD_DIM}, q_shape[3] = {TOKENS, QUERY_HEADS, HEAD_DIM};
  kvc_tensor k_view, q_view, out_view;
  size_t i;
  for (i = 0; i < TOKENS; i++) position[i] = (int32_t)i;
  for (i = 0; i < sizeof k / sizeof *k; i++) k[i] = 1;
  memset(out, 0, sizeof out);
  TRY(kvc.tensor_dense(k, KVC_F32, 3, kv_shape, &k_view));
  TRY(kvc.tensor_dense(q, KVC_F32, 3, q_shape, &q_view));
  TRY(kvc.tensor_dense(out, KVC_F32, 3, q_shape, &out_view));
  TRY(kvc.begin(cache, TOKENS, position, sequence, NULL, 0, NULL));
  TRY(kvc.put(cache, 0, &k_view, &k_view));
  TRY(kvc.attention(cache, 0, &q_view, &out_view, NULL));
  TRY(kvc.commit(cache));
  for (i = 0; i < sizeof out / sizeof *out; i++)
    if (out[i] < 0.999f || out[i] > 1.001f) return "attention over values of 1";
  return NULL;
}

static const char *use_device(void) {
  kvc_device_desc desc = {sizeof desc, 2, 0};
  kvc_cache_desc cache_desc = {sizeof cache_desc};
  kvc_device *device = NULL;
  kvc_cache *cache = NULL;
  const char *failed;
  cache_desc.kind = KVC_CAUSAL;
  cache_desc.n_layers = 1;
  cache_desc.n_kv_heads = KV_HEADS;
  cache_desc.head_dim_k = HEAD_DIM;
  cache_desc.dtype_k = cache_desc.dtype_v = KVC_F16;
  cache_desc.max_sequences = 1;
  cache_desc.capacity = cache_desc.max_batch = TOKENS;
  cache_desc.max_q_heads = QUERY_HEADS;
  TRY(kvc.device_open("cpu", &desc, NULL, &device));
  TRY(kvc.cache_create(device, &cache_desc, NULL, &cache));
  failed = use_cache(cache);
  if (failed != NULL) return failed;
  TRY(kvc.cache_destroy(cache));
  TRY(kvc.device_close(device));
  return NULL;
}

static const char *fail_once(void) {
  if (kvc.last_error_copy(NULL, 0) != 0) return "a message before the first failure";
  if (kvc.commit(NULL) != KVC_E_HANDLE) return "commit of null";
  return kvc.last_error_copy(NULL, 0) == 0 ? "no message" : NULL;
}

/* Lines of a file in /proc/self that hold `word`. */
static int count_lines(const char *path, const char *word) {
  char line[4096];
  int count = 0;
  FILE *file = fopen(path, "r");
  while (file != NULL && fgets(line, sizeof line, file) != NULL) count += strstr(line, word) != NULL;
  if (file != NULL) fclose(file);
  return count;
}

/* The status of a child that does nothing. */
static int fork_once(void) {
  int status = 1;
  const pid_t child = fork();
  if (child == 0) _exit(0);
  return child > 0 && waitpid(child, &status, 0) == child ? status : 1;
}

#if defined(__SANITIZE_ADDRESS__)
enum { SPARE_MAPPINGS = 1000 }; /* the sanitizer keeps freed memory for a while */
#else
enum { SPARE_MAPPINGS = 4 };
#endif

int main(int argc, char **argv) {
  enum { ROUNDS = 1100, WARM = 10 };
  const char *path = argc > 1 ? argv[1] : "libkvc.so.0";
  int round, maps = 0;
  for (round = 0; round < ROUNDS; round++) {
    const char *failed;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) return fprintf(stderr, "round %d: %s\n", round, dlerror()), 1;
    if (!find_all(library)) return 1;
    failed = use_device();
    if (failed == NULL) failed = fail_once();
    if (failed != NULL) return fprintf(stderr, "round %d: %s\n", round, failed), 1;
    if (dlclose(library) != 0) return fprintf(stderr, "round %d: %s\n", round, dlerror()), 1;
    if (count_lines("/proc/self/maps", "libkvc") != 0) return fprintf(stderr, "round %d: still mapped\n", round), 1;
    if (round == WARM) maps = count_lines("/proc/self/maps", "");
  }
  if (fork_once() != 0) return fprintf(stderr, "a forked child ends with what the library left behind\n"), 1;
  if (count_lines("/proc/self/status", "Threads:\t1\n") != 1) return fprintf(stderr, "a thread stayed\n"), 1;
  if (count_lines("/proc/self/maps", "") > maps + SPARE_MAPPINGS)
    return fprintf(stderr, "mappings grew from %d to %d\n", maps, count_lines("/proc/self/maps", "")), 1;
  printf("loaded and unloaded %d times\n", ROUNDS);
  return 0;
}
