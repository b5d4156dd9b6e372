/* Memory: the malloc family with its seam for tests, doubling arrays, and the request arena.
 *
 * Every allocation of the program goes through pst_malloc and its relatives, also those of the libraries that take an
 * allocator, so that tests can make the n-th one fail. The seam is one atomic counter: a program that does not use it
 * pays a relaxed load. The arena is a list of blocks that are bumped through and freed together; under AddressSanitizer
 * what it has not handed out is poisoned, so that overruns inside a block are found too. */
#include <penstock/base.h>

#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#if defined(__has_feature)
#if __has_feature(address_sanitizer)
#define UNDER_ASAN 1
#endif
#endif
#if defined(__SANITIZE_ADDRESS__)
#define UNDER_ASAN 1
#endif
#ifdef UNDER_ASAN
#include <sanitizer/asan_interface.h>
#define POISON(p, n) __asan_poison_memory_region((p), (n))
#define UNPOISON(p, n) __asan_unpoison_memory_region((p), (n))
#define RED_ZONE_BYTES 16u
#else
#define POISON(p, n) ((void)(p), (void)(n))
#define UNPOISON(p, n) ((void)(p), (void)(n))
#define RED_ZONE_BYTES 0u
#endif

/* ---- the seam ---- */

/* Allocations that still succeed; negative: no limit. Stays at 0 once it got there. */
static _Atomic int64_t allocations_left = -1;

void pst_memory_fail_after(int64_t n) { atomic_store(&allocations_left, n < 0 ? -1 : n); }

static bool may_allocate(void) {
  int64_t left = atomic_load_explicit(&allocations_left, memory_order_relaxed);
  while (left >= 0) {
    if (left == 0) return false;
    if (atomic_compare_exchange_weak(&allocations_left, &left, left - 1)) return true;
  }
  return true;
}

/* A terabyte at once is a mistake in a size, not a need: refused alike by every libc, overcommit setting and sanitizer. */
#define ALLOCATION_BYTES_MAX (((size_t)1 << 40) - ((size_t)1 << 30))

void *pst_malloc(size_t bytes) {
  return bytes <= ALLOCATION_BYTES_MAX && may_allocate() ? malloc(bytes ? bytes : 1) : NULL;
}

void *pst_calloc(size_t count, size_t bytes) {
  if (count == 0 || bytes == 0) count = bytes = 1;
  return count <= ALLOCATION_BYTES_MAX / bytes && may_allocate() ? calloc(count, bytes) : NULL;
}

void *pst_realloc(void *p, size_t bytes) {
  return bytes <= ALLOCATION_BYTES_MAX && may_allocate() ? realloc(p, bytes ? bytes : 1) : NULL;
}

void *pst_malloc_aligned(size_t bytes, size_t alignment) {
  if (alignment < sizeof(void *) || (alignment & (alignment - 1)) != 0 || bytes > ALLOCATION_BYTES_MAX ||
      !may_allocate())
    return NULL;
  void *p = NULL;
  return posix_memalign(&p, alignment, bytes ? bytes : 1) == 0 ? p : NULL;
}

void pst_free(void *p) { free(p); }

char *pst_strdup(const char *s) {
  size_t bytes = strlen(s) + 1;
  char *copy = pst_malloc(bytes);
  if (copy) memcpy(copy, s, bytes);
  return copy;
}

char *pst_strndup(const char *s, size_t n) {
  char *copy = n < SIZE_MAX ? pst_malloc(n + 1) : NULL;
  if (!copy) return NULL;
  if (n) memcpy(copy, s, n);
  copy[n] = '\0';
  return copy;
}

/* ---- doubling arrays ---- */

int pst_array_reserve(void **array, size_t *capacity, size_t need, size_t element_bytes) {
  if (need <= *capacity) return 0;
  size_t max = element_bytes ? (size_t)PTRDIFF_MAX / element_bytes : 0;
  if (need > max) return PST_E_NOMEM;
  size_t wanted = *capacity > max / 2 ? max : *capacity * 2;
  wanted = PST_MAX(wanted, PST_MIN((size_t)8, max));
  wanted = PST_MAX(wanted, need);
  /* The caller's variable is a T *, not a void *: it is read and written as bytes. */
  void *old;
  memcpy(&old, array, sizeof old);
  void *grown = pst_realloc(old, wanted * element_bytes);
  if (!grown) return PST_E_NOMEM;
  memcpy(array, &grown, sizeof grown);
  *capacity = wanted;
  return 0;
}

/* ---- arena ---- */

#define ARENA_ALIGNMENT ((size_t)16)
#define ARENA_BLOCK_MIN ((size_t)16 << 10)
#define ARENA_BLOCK_MAX ((size_t)1 << 20)

typedef struct arena_block {
  struct arena_block *older;
  size_t capacity, used; /* of the bytes behind this header */
} arena_block;

#define BLOCK_HEADER_BYTES ((sizeof(arena_block) + ARENA_ALIGNMENT - 1) & ~(ARENA_ALIGNMENT - 1))

struct pst_arena {
  arena_block *newest; /* never NULL: the chain ends in the first block */
  size_t next_bytes;   /* size of the next ordinary block, header included */
  size_t handed_out;
};

static char *block_data(arena_block *block) { return (char *)block + BLOCK_HEADER_BYTES; }

static arena_block *block_create(size_t total_bytes) {
  arena_block *block = pst_malloc(total_bytes);
  if (!block) return NULL;
  block->older = NULL;
  block->capacity = total_bytes - BLOCK_HEADER_BYTES;
  block->used = 0;
  POISON(block_data(block), block->capacity);
  return block;
}

static void block_free(arena_block *block) {
  UNPOISON(block_data(block), block->capacity);
  pst_free(block);
}

pst_arena *pst_arena_create(void) {
  pst_arena *arena = pst_calloc(1, sizeof *arena);
  if (!arena) return NULL;
  arena->newest = block_create(ARENA_BLOCK_MIN);
  if (!arena->newest) {
    pst_free(arena);
    return NULL;
  }
  arena->next_bytes = 2 * ARENA_BLOCK_MIN;
  return arena;
}

void pst_arena_reset(pst_arena *arena) {
  while (arena->newest->older) {
    arena_block *older = arena->newest->older;
    block_free(arena->newest);
    arena->newest = older;
  }
  arena->newest->used = 0;
  POISON(block_data(arena->newest), arena->newest->capacity);
  arena->next_bytes = 2 * ARENA_BLOCK_MIN;
  arena->handed_out = 0;
}

void pst_arena_free(pst_arena *arena) {
  if (!arena) return;
  pst_arena_reset(arena);
  block_free(arena->newest);
  pst_free(arena);
}

static void *block_take(pst_arena *arena, arena_block *block, size_t bytes, size_t rounded) {
  char *p = block_data(block) + block->used;
  block->used += rounded;
  arena->handed_out += bytes;
  UNPOISON(p, bytes);
  return p;
}

void *pst_arena_alloc(pst_arena *arena, size_t bytes) {
  if (bytes > (size_t)PTRDIFF_MAX - 4096) return NULL;
  size_t rounded = (PST_MAX(bytes, (size_t)1) + RED_ZONE_BYTES + ARENA_ALIGNMENT - 1) & ~(ARENA_ALIGNMENT - 1);
  arena_block *block = arena->newest;
  if (rounded <= block->capacity - block->used) return block_take(arena, block, bytes, rounded);

  /* A large request gets a block of its own, put behind the newest one, so that the room left there is not lost. */
  bool own_block = rounded > (arena->next_bytes - BLOCK_HEADER_BYTES) / 2;
  block = block_create(own_block ? BLOCK_HEADER_BYTES + rounded : arena->next_bytes);
  if (!block) return NULL;
  if (own_block && arena->newest->older) {
    block->older = arena->newest->older;
    arena->newest->older = block;
  } else {
    block->older = arena->newest; /* also when the newest is the first one: that stays at the end of the chain */
    arena->newest = block;
    if (!own_block && arena->next_bytes < ARENA_BLOCK_MAX) arena->next_bytes *= 2;
  }
  return block_take(arena, block, bytes, rounded);
}

void *pst_arena_calloc(pst_arena *arena, size_t count, size_t bytes) {
  if (bytes && count > SIZE_MAX / bytes) return NULL;
  void *p = pst_arena_alloc(arena, count * bytes);
  return p ? memset(p, 0, count * bytes) : NULL;
}

char *pst_arena_strndup(pst_arena *arena, const char *s, size_t n) {
  char *copy = n < SIZE_MAX ? pst_arena_alloc(arena, n + 1) : NULL;
  if (!copy) return NULL;
  if (n) memcpy(copy, s, n);
  copy[n] = '\0';
  return copy;
}

char *pst_arena_printf(pst_arena *arena, const char *format, ...) {
  char *text = NULL;
  va_list args, again;
  va_start(args, format);
  va_copy(again, args);
  int n = vsnprintf(NULL, 0, format, args);
  if (n >= 0) text = pst_arena_alloc(arena, (size_t)n + 1);
  if (text && vsnprintf(text, (size_t)n + 1, format, again) != n) text = NULL;
  va_end(again);
  va_end(args);
  return text;
}

size_t pst_arena_used(const pst_arena *arena) { return arena->handed_out; }

/* ---- what there is ---- */

/* The number behind a word at the beginning of a line of a kernel file; -1: it is not there. */
static int64_t kernel_number(const char *path, const char *word) {
  char *text = NULL;
  size_t n = 0;
  int64_t found = -1;
  if (pst_file_read(path, 1 << 16, &text, &n, NULL)) return -1;
  for (const char *line = text; line; line = strchr(line, '\n') ? strchr(line, '\n') + 1 : NULL) {
    if (strncmp(line, word, strlen(word)) != 0) continue;
    found = strtoll(line + strlen(word), NULL, 10);
    break;
  }
  pst_free(text);
  return found;
}

int64_t pst_memory_available(void) {
  static const char group[] = "/sys/fs/cgroup/";
  char path[64];
  int64_t kib = kernel_number("/proc/meminfo", "MemAvailable:"), bytes = kib < 0 ? INT64_MAX : kib * 1024;
  (void)snprintf(path, sizeof path, "%smemory.max", group);
  int64_t most = kernel_number(path, "");
  (void)snprintf(path, sizeof path, "%smemory.current", group);
  int64_t used = kernel_number(path, "");
  (void)snprintf(path, sizeof path, "%smemory.stat", group);
  int64_t cached = kernel_number(path, "file ");
  if (most > 0 && used >= 0) bytes = PST_MIN(bytes, PST_MAX(most - used + PST_MAX(cached, 0), 0)); /* "max" is 0 */
  return bytes;
}
