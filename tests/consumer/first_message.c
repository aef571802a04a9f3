/* The first message of a thread allocates nothing, in a program that loaded the library with dlopen too. It defines malloc
 * and its relatives, so it is not for sanitizers. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <kvc/kvc.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

extern void *__libc_malloc(size_t);
extern void *__libc_calloc(size_t, size_t);
extern void *__libc_realloc(void *, size_t);
extern void *__libc_memalign(size_t, size_t);

static __thread int watching;
static __thread int allocations;

void *malloc(size_t size) {
  allocations += watching;
  return __libc_malloc(size);
}
void *calloc(size_t n, size_t size) {
  allocations += watching;
  return __libc_calloc(n, size);
}
void *realloc(void *block, size_t size) {
  allocations += watching;
  return __libc_realloc(block, size);
}
void *memalign(size_t alignment, size_t size) {
  allocations += watching;
  return __libc_memalign(alignment, size);
}
void *aligned_alloc(size_t alignment, size_t size) {
  allocations += watching;
  return __libc_memalign(alignment, size);
}

static kvc_status (*commit)(kvc_cache *);
static size_t (*last_error_copy)(char *, size_t);

static void *meet_a_failure(void *failed) {
  char message[512] = "";
  kvc_status status;
  size_t length;
  watching = 1;
  status = commit(NULL);
  length = last_error_copy(message, sizeof message);
  watching = 0;
  if (status != KVC_E_HANDLE || length == 0 || strlen(message) != length || allocations != 0) {
    fprintf(stderr, "status %d, message \"%s\", %d allocations\n", status, message, allocations);
    *(int *)failed = 1;
  }
  return NULL;
}

int main(int argc, char **argv) {
  int failed = 0;
  void *volatile block;
  pthread_t thread;
  void *address, *library = dlopen(argc > 1 ? argv[1] : "libkvc.so.0", RTLD_NOW | RTLD_LOCAL);
  if (library == NULL) return fprintf(stderr, "%s\n", dlerror()), 1;
  address = dlsym(library, "kvc_commit");
  memcpy(&commit, &address, sizeof commit); /* ISO C has no cast from data to function pointers */
  address = dlsym(library, "kvc_last_error_copy");
  memcpy(&last_error_copy, &address, sizeof last_error_copy);
  if (commit == NULL || last_error_copy == NULL) return fprintf(stderr, "a symbol is missing\n"), 1;

  watching = 1; /* an allocation is really seen; else the zeros would say nothing */
  block = malloc(100);
  watching = 0;
  if (allocations != 1 || block == NULL) return fprintf(stderr, "malloc is not watched\n"), 1;
  allocations = 0;

  meet_a_failure(&failed);
  if (pthread_create(&thread, NULL, meet_a_failure, &failed) != 0) return fprintf(stderr, "no thread\n"), 1;
  pthread_join(thread, NULL);
  if (failed) return 1;
  printf("the first messages of two threads allocated nothing\n");
  return 0;
}
