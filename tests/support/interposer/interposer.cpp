#include "interposer.hpp"

#include <dlfcn.h>
#include <pthread.h>
#include <sched.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstddef>

#include "kvc/kvc.h"

namespace {

// Relaxed, all of them: under ThreadSanitizer they must not order what the library does.
constexpr auto relaxed = std::memory_order_relaxed;
std::atomic<int> watching{0};  // calls that are inside the library now
std::atomic<uint64_t> allocations{0}, mappings{0}, threads{0}, calls{0};

void note(std::atomic<uint64_t>& counter) {
  if (watching.load(relaxed) > 0) counter.fetch_add(1, relaxed);
}

template <class Function>
Function* next(Function*, const char* name) {
  return reinterpret_cast<Function*>(dlsym(RTLD_NEXT, name));
}

}  // namespace

namespace interposer {

Counts taken() noexcept {
  return {allocations.load(relaxed), mappings.load(relaxed), threads.load(relaxed)};
}

uint64_t watched_calls() noexcept { return calls.load(relaxed); }

Watch::Watch() noexcept { watching.fetch_add(1, relaxed); }
Watch::~Watch() { watching.fetch_sub(1, relaxed); }

}  // namespace interposer

// ---- Memory and threads ------------------------------------------------------------------------

extern "C" {

#ifndef KVC_SANITIZED
void* __libc_malloc(size_t);
void* __libc_calloc(size_t, size_t);
void* __libc_realloc(void*, size_t);
void* __libc_memalign(size_t, size_t);

void* malloc(size_t size) {
  note(allocations);
  return __libc_malloc(size);
}
void* calloc(size_t n, size_t size) {
  note(allocations);
  return __libc_calloc(n, size);
}
void* realloc(void* block, size_t size) {
  note(allocations);
  return __libc_realloc(block, size);
}
void* memalign(size_t alignment, size_t size) {
  note(allocations);
  return __libc_memalign(alignment, size);
}
void* aligned_alloc(size_t alignment, size_t size) {
  note(allocations);
  return __libc_memalign(alignment, size);
}
int posix_memalign(void** block, size_t alignment, size_t size) {
  note(allocations);
  *block = __libc_memalign(alignment, size);
  return *block ? 0 : ENOMEM;
}
void* mmap(void* address, size_t size, int protection, int flags, int file, off_t offset) noexcept {
  note(mappings);
  return reinterpret_cast<void*>(syscall(SYS_mmap, address, size, protection, flags, file, offset));
}
void* mmap64(void* address, size_t size, int protection, int flags, int file, off64_t at) noexcept {
  note(mappings);
  return reinterpret_cast<void*>(syscall(SYS_mmap, address, size, protection, flags, file, at));
}
void* mremap(void* address, size_t old_size, size_t size, int flags, ...) noexcept {
  note(mappings);
  va_list rest;
  va_start(rest, flags);
  void* const target = flags & MREMAP_FIXED ? va_arg(rest, void*) : nullptr;
  va_end(rest);
  return reinterpret_cast<void*>(syscall(SYS_mremap, address, old_size, size, flags, target));
}
int clone(int (*start)(void*), void* stack, int flags, void* argument, ...) noexcept {
  note(threads);
  va_list rest;
  va_start(rest, argument);
  auto* const parent_id = va_arg(rest, pid_t*);  // where not given, as meaningless as to the real one
  auto* const storage = va_arg(rest, void*);
  auto* const child_id = va_arg(rest, pid_t*);
  va_end(rest);
  static auto* const real = next(&clone, "clone");
  return real(start, stack, flags, argument, parent_id, storage, child_id);
}
#else
// Part of the sanitizers' interface, but in a header that GCC does not install.
int __sanitizer_install_malloc_and_free_hooks(void (*)(const volatile void*, size_t),
                                              void (*)(const volatile void*));
#endif

int pthread_create(pthread_t* thread, const pthread_attr_t* attributes, void* (*start)(void*),
                   void* argument) noexcept {
  note(threads);
  static auto* const real = next(&pthread_create, "pthread_create");
  return real(thread, attributes, start, argument);
}

// ---- The library, wrapped ------------------------------------------------------------------------

// Defines kvc_NAME as a call of the library's kvc_NAME that is watched. PARAMETERS as in the header.
#define WATCHED(NAME, PARAMETERS, ...)            \
  kvc_status NAME PARAMETERS noexcept {           \
    static auto* const real = next(&NAME, #NAME); \
    calls.fetch_add(1, relaxed);                  \
    const interposer::Watch watch;                \
    return real(__VA_ARGS__);                     \
  }

using Desc = kvc_attention_desc;
using Ints = const int32_t*;
using In = const kvc_tensor*;
using Out = kvc_tensor*;
using Extra = const kvc_attention_extra*;

WATCHED(kvc_begin, (kvc_cache * c, int32_t n, Ints p, Ints s, const uint32_t* t, uint32_t f, void* m),
        c, n, p, s, t, f, m)
WATCHED(kvc_fits, (const kvc_cache* c, int32_t n, Ints p, Ints s, const uint32_t* t), c, n, p, s, t)
WATCHED(kvc_put, (kvc_cache * c, int32_t l, In k, In v), c, l, k, v)
WATCHED(kvc_set_causal, (kvc_cache * c, int32_t n, Ints e), c, n, e)
WATCHED(kvc_commit, (kvc_cache * c), c)
WATCHED(kvc_commit_prefix, (kvc_cache * c, int32_t n, Ints s, Ints k), c, n, s, k)
WATCHED(kvc_abort, (kvc_cache * c), c)
WATCHED(kvc_can_resume, (const kvc_cache* c, int32_t s, int32_t w, int32_t* b), c, s, w, b)
WATCHED(kvc_resume, (kvc_cache * c, int32_t s, int32_t w, int32_t* g), c, s, w, g)
WATCHED(kvc_copy_prefix, (kvc_cache * c, int32_t s, int32_t d, int32_t l, int32_t* g), c, s, d, l, g)
WATCHED(kvc_reorder, (kvc_cache * c, int32_t n, Ints d, Ints s), c, n, d, s)
WATCHED(kvc_remove, (kvc_cache * c, int32_t s, int32_t b, int32_t e), c, s, b, e)
WATCHED(kvc_can_remove, (const kvc_cache* c, int32_t s, int32_t b, int32_t e), c, s, b, e)
WATCHED(kvc_sequence_query, (const kvc_cache* c, int32_t s, kvc_sequence_info* o), c, s, o)
WATCHED(kvc_cache_stats, (const kvc_cache* c, kvc_stats* o), c, o)
WATCHED(kvc_state_digest, (const kvc_cache* c, uint64_t* o), c, o)
WATCHED(kvc_check, (const kvc_cache* c), c)
WATCHED(kvc_bind_attention,
        (kvc_cache * c, int32_t b, int32_t e, const Desc* d, const float* a, const float* s), c, b,
        e, d, a, s)
WATCHED(kvc_bind_rope,
        (kvc_cache * c, int32_t b, int32_t e, const kvc_rope_desc* d, const float* f), c, b, e, d, f)
WATCHED(kvc_bind_operator, (kvc_cache * c, int32_t b, int32_t e, uint32_t m, kvc_operator* o), c, b,
        e, m, o)
WATCHED(kvc_bind_shift, (kvc_cache * c, kvc_shift_function f, void* u), c, f, u)
WATCHED(kvc_attention, (kvc_cache * c, int32_t l, In q, Out o, Extra e), c, l, q, o, e)
WATCHED(kvc_put_attention, (kvc_cache * c, int32_t l, In k, In v, In q, Out o, Extra e), c, l, k, v,
        q, o, e)
WATCHED(kvc_get, (kvc_cache * c, int32_t l, Out k, Out v), c, l, k, v)
WATCHED(kvc_get_codes, (kvc_cache * c, int32_t l, Out k, Out a, Out v, Out b), c, l, k, a, v, b)
WATCHED(kvc_get_copy, (kvc_cache * c, int32_t l, Out k, Out v), c, l, k, v)
WATCHED(kvc_put_codes, (kvc_cache * c, int32_t l, In k, In a, In v, In b), c, l, k, a, v, b)
WATCHED(kvc_begin_rows, (kvc_cache * c, int32_t n, uint32_t f, Ints v, In m, Ints t, void* s), c, n,
        f, v, m, t, s)
WATCHED(kvc_fits_rows, (const kvc_cache* c, int32_t n, uint32_t f, Ints v, In m, Ints t), c, n, f,
        v, m, t)
WATCHED(kvc_rows_query, (const kvc_cache* c, int32_t b, int32_t n, int32_t* i, int32_t* s), c, b, n,
        i, s)
WATCHED(kvc_rows_set, (kvc_cache * c, int32_t b, int32_t n, Ints i, Ints s), c, b, n, i, s)
WATCHED(kvc_insert, (kvc_cache * c, const kvc_cache* o, int32_t s), c, o, s)
WATCHED(kvc_rows_view, (const kvc_cache* c, int32_t l, Out k, Out ks, Out v, Out vs), c, l, k, ks,
        v, vs)
WATCHED(kvc_rows_fill, (kvc_cache * c, int32_t l, int32_t b, int32_t n, In k, In ks, In v, In vs),
        c, l, b, n, k, ks, v, vs)
WATCHED(kvc_bind_decay, (kvc_cache * c, int32_t b, int32_t e, const float* s), c, b, e, s)
WATCHED(kvc_lightning_read, (const kvc_cache* c, int32_t l, int32_t b, int32_t n, Out s), c, l, b,
        n, s)
WATCHED(kvc_lightning_write, (kvc_cache * c, int32_t l, int32_t b, int32_t n, In s), c, l, b, n, s)
WATCHED(kvc_bind_scales, (kvc_cache * c, int32_t b, int32_t e, const float* k, const float* v), c,
        b, e, k, v)
WATCHED(kvc_history, (kvc_cache * c, int32_t l, int32_t* f, int32_t* n), c, l, f, n)
WATCHED(kvc_mask, (kvc_cache * c, int32_t l, Out i), c, l, i)
WATCHED(kvc_gather, (kvc_cache * c, int32_t l, int32_t s, Out k, Out v), c, l, s, k, v)
WATCHED(kvc_runs, (const kvc_cache* c, int32_t l, int32_t s, int32_t m, kvc_run* r, int32_t* n), c,
        l, s, m, r, n)
WATCHED(kvc_state_layout,
        (const kvc_cache* c, int32_t m, kvc_state_sequence* s, int32_t* n, int32_t* o), c, m, s, n, o)
WATCHED(kvc_state_get, (kvc_cache * c, int32_t l, int32_t p, Out i), c, l, p, i)
WATCHED(kvc_state_put, (kvc_cache * c, int32_t l, int32_t p, In f), c, l, p, f)
WATCHED(kvc_state_conv, (kvc_cache * c, int32_t l, In x), c, l, x)
WATCHED(kvc_state_view, (kvc_cache * c, int32_t l, int32_t p, int32_t n, const int64_t* d, Out s),
        c, l, p, n, d, s)
WATCHED(kvc_state_slots, (const kvc_cache* c, int32_t m, int32_t* s, int32_t* n), c, m, s, n)
WATCHED(kvc_state_done, (kvc_cache * c, int32_t l, int32_t p), c, l, p)
WATCHED(kvc_state_gather, (kvc_cache * c, int32_t l, int32_t p, int32_t s, int32_t a, Out i), c, l,
        p, s, a, i)
WATCHED(kvc_checkpoint_take, (kvc_cache * c, int32_t s), c, s)
WATCHED(kvc_checkpoint_list, (const kvc_cache* c, int32_t s, int32_t m, int32_t* a, int32_t* n), c,
        s, m, a, n)
WATCHED(kvc_encoder_put, (kvc_cache * c, int32_t l, int32_t s, In k, In v), c, l, s, k, v)
WATCHED(kvc_encoder_share, (kvc_cache * c, int32_t s, int32_t f), c, s, f)
WATCHED(kvc_encoder_query, (const kvc_cache* c, int32_t s, int32_t* p, int32_t* l), c, s, p, l)

}  // extern "C"

#ifdef KVC_SANITIZED
namespace {

void on_malloc(const volatile void*, size_t) { note(allocations); }
void on_free(const volatile void*) {}

[[maybe_unused]] const int installed = __sanitizer_install_malloc_and_free_hooks(on_malloc, on_free);

}  // namespace
#endif
