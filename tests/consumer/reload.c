/* Loads and unloads the library a thousand times, with a device and a cache in between: it goes away each time, and
 * neither mappings nor threads stay behind. */
#define _POSIX_C_SOURCE 200809L
#include <dlfcn.h>
#include <kvc/kvc.h>
#include <stdio.h>
#include <string.h>

typedef kvc_status open_function(const char *, const kvc_device_desc *, const kvc_allocator *, kvc_device **);
typedef kvc_status close_function(kvc_device *);
typedef kvc_status create_function(kvc_device *, const kvc_cache_desc *, const void *, kvc_cache **);
typedef kvc_status destroy_function(kvc_cache *);

static void *symbol(void *library, const char *name, void *function, size_t size) {
  void *address = dlsym(library, name);
  memcpy(function, &address, size); /* ISO C has no cast from data to function pointers */
  return address;
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

#if defined(__SANITIZE_ADDRESS__)
enum { SPARE_MAPPINGS = 1000 }; /* the sanitizer keeps freed memory for a while */
#else
enum { SPARE_MAPPINGS = 4 };
#endif

int main(int argc, char **argv) {
  enum { ROUNDS = 1000, WARM = 10 };
  const char *path = argc > 1 ? argv[1] : "libkvc.so.0";
  int round, maps = 0;
  for (round = 0; round < ROUNDS; round++) {
    kvc_device_desc desc = {sizeof desc, 2, 0};
    kvc_cache_desc small = {sizeof small, KVC_CAUSAL, 0, 2, 2, 8, 8, KVC_F32, KVC_F32, 4, 4, 4, 0, 0, 0};
    kvc_device *device = NULL;
    kvc_cache *cache = NULL;
    open_function *open_device;
    close_function *close_device;
    create_function *create_cache;
    destroy_function *destroy_cache;
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (library == NULL) return fprintf(stderr, "round %d: %s\n", round, dlerror()), 1;
    if (symbol(library, "kvc_device_open", &open_device, sizeof open_device) == NULL ||
        symbol(library, "kvc_device_close", &close_device, sizeof close_device) == NULL ||
        symbol(library, "kvc_cache_create", &create_cache, sizeof create_cache) == NULL ||
        symbol(library, "kvc_cache_destroy", &destroy_cache, sizeof destroy_cache) == NULL)
      return fprintf(stderr, "round %d: a symbol is missing\n", round), 1;
    if (open_device("cpu", &desc, NULL, &device) != KVC_OK) return fprintf(stderr, "round %d: open\n", round), 1;
    if (create_cache(device, &small, NULL, &cache) != KVC_OK) return fprintf(stderr, "round %d: create\n", round), 1;
    if (destroy_cache(cache) != KVC_OK) return fprintf(stderr, "round %d: destroy\n", round), 1;
    if (close_device(device) != KVC_OK) return fprintf(stderr, "round %d: close\n", round), 1;
    if (dlclose(library) != 0) return fprintf(stderr, "round %d: %s\n", round, dlerror()), 1;
    if (count_lines("/proc/self/maps", "libkvc") != 0) return fprintf(stderr, "round %d: still mapped\n", round), 1;
    if (round == WARM) maps = count_lines("/proc/self/maps", "");
  }
  if (count_lines("/proc/self/status", "Threads:\t1\n") != 1) return fprintf(stderr, "a thread stayed\n"), 1;
  if (count_lines("/proc/self/maps", "") > maps + SPARE_MAPPINGS)
    return fprintf(stderr, "mappings grew from %d to %d\n", maps, count_lines("/proc/self/maps", "")), 1;
  printf("loaded and unloaded %d times\n", ROUNDS);
  return 0;
}
