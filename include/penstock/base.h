/* Penstock base: errors, memory, bytes, text, clock, random, hash, log, threads, JSON, regex, Unicode.
 *
 * Every other folder stands on this one and on nothing beside it. Nothing here knows of models, money or sockets.
 * Unless a line says otherwise, functions are thread-safe when their objects are not shared. */
#ifndef PENSTOCK_BASE_H
#define PENSTOCK_BASE_H

#include <pthread.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#ifdef __cplusplus
extern "C" {
#endif

#if defined(__GNUC__)
#define PST_PRINTF(fmt_index, arg_index) __attribute__((format(printf, fmt_index, arg_index)))
#define PST_MUST_CHECK __attribute__((warn_unused_result))
#else
#define PST_PRINTF(fmt_index, arg_index)
#define PST_MUST_CHECK
#endif

#define PST_ARRAY_LEN(a) (sizeof(a) / sizeof((a)[0]))
#define PST_MIN(a, b) ((a) < (b) ? (a) : (b))
#define PST_MAX(a, b) ((a) > (b) ? (a) : (b))

/* ---- errors (base/error.c) -------------------------------------------------------------------------------------- */

/* The one table of codes. Functions return 0 or one of these (negative). */
#define PST_ERROR_TABLE(X)                                                   \
  X(PST_E_NOMEM, -1, "out of memory")                                        \
  X(PST_E_IO, -2, "input or output failed")                                  \
  X(PST_E_NOT_FOUND, -3, "not found")                                        \
  X(PST_E_BAD_INPUT, -4, "the input is malformed")                           \
  X(PST_E_UNSUPPORTED, -5, "well-formed, but this program does not know it") \
  X(PST_E_LIMIT, -6, "a stated limit was exceeded")                          \
  X(PST_E_CORRUPT, -7, "stored data fails its check")                        \
  X(PST_E_BUSY, -8, "in use or overloaded; try again later")                 \
  X(PST_E_CANCELLED, -9, "cancelled")                                        \
  X(PST_E_TIMEOUT, -10, "took too long")                                     \
  X(PST_E_DENIED, -11, "not allowed")                                        \
  X(PST_E_BUDGET, -12, "the budget does not cover it")                       \
  X(PST_E_UPSTREAM, -13, "a provider failed")                                \
  X(PST_E_EXISTS, -14, "exists already")                                     \
  X(PST_E_INTERNAL, -15, "a mistake of our own")                             \
  X(PST_E_NO_SPACE, -16, "no room left on the device")                       \
  X(PST_E_NO_DATA, -17, "not enough data")

enum pst_code {
  PST_OK = 0,
#define PST_ERROR_ENUM(name, value, text) name = value,
  PST_ERROR_TABLE(PST_ERROR_ENUM)
#undef PST_ERROR_ENUM
};

/* Where a person may read a failure. Owned by the caller; start with PST_ERROR_INIT. */
typedef struct pst_error {
  int code;          /* enum pst_code */
  char place[256];   /* file, file:line, option or field; may be empty */
  char message[768]; /* one sentence, without a final full stop; the remedy belongs in it */
} pst_error;
#define PST_ERROR_INIT \
  { 0, "", "" }

/* Sets *err (NULL: ignored) and returns `code`, so that `return pst_error_set(...)` reads well. `place` may be NULL. */
int pst_error_set(pst_error *err, int code, const char *place, const char *format, ...) PST_PRINTF(4, 5);
/* The same from errno: chooses the code (ENOENT, ENOSPC, EFBIG, EACCES ...) and appends strerror. */
int pst_error_set_errno(pst_error *err, int errnum, const char *place, const char *format, ...) PST_PRINTF(4, 5);
/* Puts "context: " before the message that is there; keeps code and place. Returns err->code; without
 * an err PST_E_INTERNAL, so that it never looks like success. */
int pst_error_prefix(pst_error *err, const char *format, ...) PST_PRINTF(2, 3);
/* The table's sentence for a code; never NULL. */
const char *pst_error_text(int code);
/* "place: message" into buf, always terminated. Returns buf. */
const char *pst_error_format(const pst_error *err, char *buf, size_t buf_bytes);

/* ---- memory (base/memory.c) ------------------------------------------------------------------------------------- */

/* malloc family with one seam for tests: after pst_memory_fail_after(n) the next n allocations of this process succeed and
 * all later ones fail (n < 0: none fails). A size of 0 gives a valid pointer, one near a
 * terabyte or above NULL. */
void *pst_malloc(size_t bytes);
void *pst_calloc(size_t count, size_t bytes);             /* checked product */
void *pst_realloc(void *p, size_t bytes);                 /* the old block stays valid on failure */
void *pst_malloc_aligned(size_t bytes, size_t alignment); /* freed by pst_free; alignment a power of two, at least 8 */
void pst_free(void *p);
char *pst_strdup(const char *s);
char *pst_strndup(const char *s, size_t n);
void pst_memory_fail_after(int64_t n);

/* Makes room for at least `need` elements in a doubling array: on success *array and *capacity are updated.
 * Returns 0 or PST_E_NOMEM (nothing changed). */
int pst_array_reserve(void **array, size_t *capacity, size_t need, size_t element_bytes) PST_MUST_CHECK;

/* A bump allocator for one request's lifetime. Not thread-safe. Blocks of 16 KiB and up; 16-byte aligned results. */
typedef struct pst_arena pst_arena;
pst_arena *pst_arena_create(void);
void pst_arena_free(pst_arena *arena);                 /* NULL is fine */
void pst_arena_reset(pst_arena *arena);                /* keeps the first block */
void *pst_arena_alloc(pst_arena *arena, size_t bytes); /* NULL when out of memory; not zeroed */
void *pst_arena_calloc(pst_arena *arena, size_t count, size_t bytes);
char *pst_arena_strndup(pst_arena *arena, const char *s, size_t n);
char *pst_arena_printf(pst_arena *arena, const char *format, ...) PST_PRINTF(2, 3);
size_t pst_arena_used(const pst_arena *arena); /* bytes handed out since the last reset */

/* ---- bytes and text (base/bytes.c) ------------------------------------------------------------------------------ */

/* A view: not terminated, not owned. */
typedef struct pst_str {
  const char *data;
  size_t n;
} pst_str;
#define PST_STR(literal) ((pst_str){(literal), sizeof(literal) - 1})
pst_str pst_str_from(const char *terminated); /* NULL gives an empty view */
bool pst_str_equal(pst_str a, pst_str b);
bool pst_str_is(pst_str a, const char *terminated);
bool pst_str_starts(pst_str a, pst_str prefix);
int pst_str_compare(pst_str a, pst_str b); /* bytewise; shorter first */
bool pst_is_space(char c);                 /* ASCII white space */
pst_str pst_str_trim(pst_str a);           /* ASCII white space on both ends */
/* Offset of the first `needle` at or after `from`; SIZE_MAX if none. An empty needle is found at `from`. */
size_t pst_str_find(pst_str hay, pst_str needle, size_t from);

/* A growable byte string, always zero-terminated behind `n`. Errors are sticky: after a failed growth `failed` is set,
 * appends do nothing, and pst_buf_status returns PST_E_NOMEM; check once at the end. */
typedef struct pst_buf {
  char *data; /* NULL while empty and never grown */
  size_t n;   /* bytes used, without the terminator */
  size_t capacity;
  bool failed;
} pst_buf;
#define PST_BUF_INIT \
  { NULL, 0, 0, false }
void pst_buf_done(pst_buf *b);
void pst_buf_clear(pst_buf *b); /* n = 0, failed = false, memory kept */
int pst_buf_reserve(pst_buf *b, size_t extra);
void pst_buf_append(pst_buf *b, const void *data, size_t n);
void pst_buf_append_str(pst_buf *b, pst_str s);
void pst_buf_puts(pst_buf *b, const char *terminated);
void pst_buf_putc(pst_buf *b, char c);
void pst_buf_printf(pst_buf *b, const char *format, ...) PST_PRINTF(2, 3);
void pst_buf_vprintf(pst_buf *b, const char *format, va_list args);
int pst_buf_status(const pst_buf *b);       /* 0 or PST_E_NOMEM */
const char *pst_buf_text(const pst_buf *b); /* terminated; "" while empty */
pst_str pst_buf_str(const pst_buf *b);
char *pst_buf_take(pst_buf *b); /* hands the memory over (pst_free); NULL if failed; b is empty after */

/* Strict number parsing of the whole text. Return 0, PST_E_BAD_INPUT, or PST_E_LIMIT when out of range. */
int pst_parse_i64(pst_str text, int64_t min, int64_t max, int64_t *ret_value);
int pst_parse_double(pst_str text, double *ret_value);

/* ---- files (base/file.c) ---------------------------------------------------------------------------------------- */

/* Whole file into a new terminated block (pst_free). Refuses more than max_bytes with PST_E_LIMIT. */
int pst_file_read(const char *path, size_t max_bytes, char **ret_data, size_t *ret_n, pst_error *err);
/* Writes beside `path`, fsyncs, renames over it: whole or not at all; the temporary is removed on failure. */
int pst_file_write_atomic(const char *path, const void *data, size_t n, pst_error *err);
/* The same for a content that lies in pieces. */
int pst_file_write_parts_atomic(const char *path, const pst_str *parts, size_t n_parts, pst_error *err);
/* A new empty file beside `path`, so that a rename stays within one file system, with a name of its own (pst_free): for writers that do what
 * pst_file_write_atomic does bit by bit. It is to be closed only after it was renamed or removed, or pst_dir_sweep takes it for what a killed process left. */
int pst_file_open_temporary(const char *path, char **ret_name, int *ret_fd, pst_error *err);
/* Makes a rename into a directory durable. Some file systems refuse that; the data is safe then too. */
void pst_file_sync_parent(const char *path);
/* Removes the temporaries that writers which were killed left in a directory; those of living ones stay. Needs no directory to be there. */
void pst_dir_sweep(const char *path);
/* Makes the file if need be and waits until no other process has its flock(). Closing the descriptor gives the lock back, and so does the process's end. */
int pst_file_lock(const char *path, int *ret_fd, pst_error *err);
/* The same without waiting: PST_E_BUSY. The holder may remove the file before he closes it. */
int pst_file_try_lock(const char *path, int *ret_fd, pst_error *err);
/* Removes a file or a directory with all that is in it, links but not what they point to. False: something is left. */
bool pst_dir_remove(const char *path);
int pst_dir_make(const char *path, pst_error *err); /* with parents, mode 0700 for new ones; fine if there */
bool pst_file_exists(const char *path);
bool pst_dir_exists(const char *path);
/* dir + "/" + name, normalised slashes; new string (pst_free) or NULL. */
char *pst_path_join(const char *dir, const char *name);
/* The data directory: `option` if not NULL, else $PENSTOCK_HOME, else $XDG_DATA_HOME/penstock, else
 * ~/.local/share/penstock. Made if missing. *ret_path: pst_free. A file in its place is PST_E_BAD_INPUT. */
int pst_home_open(const char *option, char **ret_path, pst_error *err);

/* A read-only mapping of a whole file. */
typedef struct pst_map {
  const uint8_t *data;
  size_t n;
  uint64_t inode, mtime_ns;
} pst_map;
int pst_map_open(const char *path, pst_map *ret_map, pst_error *err);
void pst_map_close(pst_map *map);

/* ---- embedded files (base/asset.c) ------------------------------------------------------------------------------ */

/* Every file under assets/ and web/ and every non-C file under src/ is part of the program. `name` is its path without a
 * leading src/ or assets/ ("gateway/plan.schema.json", "web/index.html"). A zero byte stands behind the data. */
bool pst_asset_find(const char *name, pst_str *ret_data);
const char *pst_asset_name(size_t index); /* NULL past the last: for listing */

/* ---- clock, random, hash (base/clock.c, base/random.c, base/hash.c) ---------------------------------------------- */

int64_t pst_clock_us(void);      /* monotonic */
int64_t pst_clock_ns(void);      /* monotonic */
int64_t pst_clock_unix_ms(void); /* wall clock */

/* A draw is a function of its coordinates: nothing to seed, nothing to share. */
uint64_t pst_random_u64(uint64_t seed, uint64_t stream, uint64_t counter);
double pst_random_unit(uint64_t seed, uint64_t stream, uint64_t counter); /* [0, 1), 53 bits */
/* A sequential generator over the same function. */
typedef struct pst_random {
  uint64_t seed, stream, counter;
} pst_random;
uint64_t pst_random_next(pst_random *r);
uint64_t pst_random_below(pst_random *r, uint64_t n); /* uniform in [0, n), n > 0, without bias */
double pst_random_next_unit(pst_random *r);
int pst_random_secret(void *out, size_t n); /* from the kernel, for keys */

typedef struct pst_sha256 {
  uint32_t h[8];
  uint64_t n_bytes;
  uint8_t block[64];
} pst_sha256;
void pst_sha256_init(pst_sha256 *s);
void pst_sha256_update(pst_sha256 *s, const void *data, size_t n);
void pst_sha256_done(pst_sha256 *s, uint8_t ret_digest[32]);
void pst_sha256_hex(const void *data, size_t n, char ret_hex[65]);
void pst_hex(const uint8_t *data, size_t n, char *ret_hex /* 2n+1 */);
uint64_t pst_hash64(const void *data, size_t n, uint64_t seed); /* fast, not for secrets; stable across versions */

/* ---- log (base/log.c) ------------------------------------------------------------------------------------------- */

typedef enum pst_log_level { PST_LOG_DEBUG, PST_LOG_INFO, PST_LOG_WARN, PST_LOG_ERROR, PST_LOG_OFF } pst_log_level;
void pst_log_set_level(pst_log_level level); /* default WARN; $PENSTOCK_LOG=debug|info|warn|error|off at first use */
bool pst_log_enabled(pst_log_level level);
/* One line to stderr: time, level, then `format`, which is key=value pairs, request id first. Thread-safe. */
void pst_log(pst_log_level level, const char *format, ...) PST_PRINTF(2, 3);

/* ---- threads (base/queue.c) ------------------------------------------------------------------------------------- */

/* Unbounded queue of pointers, many producers, many consumers. */
typedef struct pst_queue pst_queue;
pst_queue *pst_queue_create(void);
void pst_queue_free(pst_queue *q);            /* must be empty or items are leaked by the caller's choice */
int pst_queue_push(pst_queue *q, void *item); /* 0, PST_E_NOMEM, or PST_E_CANCELLED once closed */
/* Waits up to timeout_ms (<0: for ever, 0: not at all). NULL on time-out, or when closed and empty. */
void *pst_queue_pop(pst_queue *q, int64_t timeout_ms);
void pst_queue_close(pst_queue *q);
size_t pst_queue_length(pst_queue *q);

int pst_cpu_count(void); /* CPUs this process may use: affinity and cgroup quota, at least 1 */
/* Bytes that this process could have more without swapping: what the machine has available, or what its control group leaves, page cache not counted as taken. INT64_MAX: the
 * kernel does not say. */
int64_t pst_memory_available(void);

/* ---- JSON (base/json.c, over yyjson) ---------------------------------------------------------------------------- */

typedef struct pst_json_doc pst_json_doc;
typedef struct yyjson_val pst_json; /* a value inside a document; lives as long as it */
typedef enum pst_json_type {
  PST_JSON_NONE, /* a NULL pointer: "no such member" */
  PST_JSON_NULL,
  PST_JSON_BOOL,
  PST_JSON_NUMBER,
  PST_JSON_STRING,
  PST_JSON_ARRAY,
  PST_JSON_OBJECT,
} pst_json_type;

/* Parses strict JSON (RFC 8259, UTF-8). Errors give `place` as "SOURCE:LINE:COLUMN" (source NULL: "json"). Depth is limited to 512;
 * duplicate member names are refused. The text is copied. */
int pst_json_parse(const char *text, size_t n, const char *source, pst_json_doc **ret_doc, pst_error *err);
int pst_json_parse_file(const char *path, size_t max_bytes, pst_json_doc **ret_doc, pst_error *err);
void pst_json_free(pst_json_doc *doc);
const pst_json *pst_json_root(const pst_json_doc *doc);

/* All readers accept NULL (PST_JSON_NONE) and give the fallback for a wrong type. */
pst_json_type pst_json_typeof(const pst_json *v);
const pst_json *pst_json_get(const pst_json *object, const char *key);
const pst_json *pst_json_get_str(const pst_json *object, pst_str key);
/* "plan.verify.quality": a member of a member; no member's name has a dot. */
const pst_json *pst_json_path(const pst_json *object, const char *path);
size_t pst_json_size(const pst_json *v);                      /* members or elements */
const pst_json *pst_json_at(const pst_json *array, size_t i); /* O(1) amortised only through the iterator below */
pst_str pst_json_str(const pst_json *v);                      /* empty view if no string; may hold NUL bytes */
bool pst_json_bool(const pst_json *v, bool fallback);
double pst_json_double(const pst_json *v, double fallback);
bool pst_json_is_int(const pst_json *v); /* an integer in int64, or a double without fraction in +-2^53 */
bool pst_json_is_real(
    const pst_json *v); /* a number spelled with a fraction or exponent, or one beyond 64 bits: 1.0, not 1 */
int64_t pst_json_int(const pst_json *v, int64_t fallback);

typedef struct pst_json_iter {
  const pst_json *next, *value; /* value of the current entry */
  pst_str key;                  /* empty for arrays */
  size_t index, count;
  bool object;
} pst_json_iter;
pst_json_iter pst_json_iterate(const pst_json *v);
bool pst_json_next(pst_json_iter *it); /* for (it = iterate(v); next(&it);) use it.key, it.value */

bool pst_json_equal(const pst_json *a, const pst_json *b); /* by value: 1 == 1.0, member order ignored */

/* Writer: text straight into a buffer; commas and colons are its business. Strings must be UTF-8: broken bytes become U+FFFD.
 * pretty: two-space indent. More than 512 open containers, or one end too many, fail the buffer. */
typedef struct pst_json_writer {
  pst_buf *out;
  int depth;
  bool pretty;
  bool after_key;
  uint8_t has_items[64]; /* bit per open container, at most 512 */
} pst_json_writer;
pst_json_writer pst_json_writer_on(pst_buf *out, bool pretty);
void pst_json_begin_object(pst_json_writer *w);
void pst_json_end_object(pst_json_writer *w);
void pst_json_begin_array(pst_json_writer *w);
void pst_json_end_array(pst_json_writer *w);
void pst_json_key(pst_json_writer *w, const char *key);
void pst_json_key_str(pst_json_writer *w, pst_str key);
void pst_json_put_str(pst_json_writer *w, pst_str s);
void pst_json_put_cstr(pst_json_writer *w, const char *s); /* NULL writes null */
void pst_json_put_int(pst_json_writer *w, int64_t i);
void pst_json_put_double(pst_json_writer *w, double d); /* shortest round trip; not finite: null */
void pst_json_put_bool(pst_json_writer *w, bool b);
void pst_json_put_null(pst_json_writer *w);
void pst_json_put_value(pst_json_writer *w, const pst_json *v); /* copies a parsed value */
void pst_json_put_raw(pst_json_writer *w, pst_str json_text);   /* trusted, already JSON */
/* A key and its value. */
void pst_json_member_str(pst_json_writer *w, const char *key, pst_str value);
void pst_json_member_cstr(pst_json_writer *w, const char *key, const char *value);               /* NULL writes null */
void pst_json_member_strs(pst_json_writer *w, const char *key, const pst_str *values, size_t n); /* an array */
void pst_json_member_opt(pst_json_writer *w, const char *key, pst_str value); /* absent (data NULL): null */
void pst_json_member_int(pst_json_writer *w, const char *key, int64_t value);
void pst_json_member_double(pst_json_writer *w, const char *key, double value); /* not finite: null */
void pst_json_member_bool(pst_json_writer *w, const char *key, bool value);
/* Canonical form (RFC 8785): members sorted by UTF-16 code units, ECMAScript numbers, no white space. All numbers are taken
 * as doubles, as the RFC says: integers beyond 2^53 lose digits, so those that matter belong into strings. */
int pst_json_canonical(const pst_json *v, pst_buf *out);

/* ---- regular expressions (base/regex.c, over PCRE2, UTF mode) --------------------------------------------------- */

typedef struct pst_regex pst_regex; /* immutable after create: may be shared by threads */
enum {
  PST_REGEX_CASELESS = 1,
  PST_REGEX_ANCHORED = 2,
  PST_REGEX_MULTILINE = 4,
  PST_REGEX_DOTALL = 8,
  PST_REGEX_ASCII = 16, /* \w \d \s \b and [:classes:] mean ASCII only; without it they go by Unicode properties */
  PST_REGEX_VALID_TEXT =
      32, /* the caller vouches that texts are UTF-8 and `from` begins a code point: find does not check,
                              * which keeps a loop over one long text linear */
};
int pst_regex_create(pst_str pattern, unsigned flags, pst_regex **ret_regex, pst_error *err);
void pst_regex_free(pst_regex *re);
typedef struct pst_span {
  size_t start, end; /* byte offsets, end exclusive; SIZE_MAX both: the group did not take part */
} pst_span;
/* Finds the first match at or after `from`. Fills up to n_spans groups (0 = whole). Returns 1 found, 0 not, negative
 * error (PST_E_LIMIT when backtracking passed the bound, PST_E_BAD_INPUT for text that is not UTF-8). */
int pst_regex_find(const pst_regex *re, pst_str text, size_t from, pst_span *ret_spans, size_t n_spans);

/* ---- Unicode (base/unicode.c, over utf8proc) -------------------------------------------------------------------- */

/* Decodes one code point at data[*i] and advances *i by at least one byte. Broken input gives 0xFFFD exactly as Python's
 * errors='replace' does (maximal subparts). */
uint32_t pst_utf8_next(const char *data, size_t n, size_t *i);
size_t pst_utf8_put(uint32_t code_point, char out[4]); /* bytes written, 1 to 4 */
bool pst_utf8_valid(pst_str s);
void pst_utf8_sanitize(pst_str s, pst_buf *out); /* broken bytes become U+FFFD */
size_t pst_utf8_count(pst_str s);                /* code points */
/* How many bytes at the end of s begin a sequence that more bytes could complete (0 to 3). */
size_t pst_utf8_incomplete_tail(pst_str s);
uint32_t pst_unicode_lower(uint32_t cp);
uint32_t pst_unicode_upper(uint32_t cp);
bool pst_unicode_is_letter(uint32_t cp); /* general category L* */
bool pst_unicode_is_number(uint32_t cp); /* N* */
bool pst_unicode_is_space(uint32_t cp);  /* White_Space property */
int pst_unicode_category(uint32_t cp);   /* utf8proc_category_t */
/* Unicode normalisation into out. form: "NFC", "NFD", "NFKC", "NFKD". */
int pst_unicode_normalize(pst_str s, const char *form, pst_buf *out);

/* ---- progress (base/progress.c) --------------------------------------------------------------------------------- */

/* One line on stderr with bar, rate and time left: redrawn at most ten times a second on a terminal, one plain line
 * every ten seconds elsewhere; nothing at all under two seconds or when quiet. Owned by one thread. */
typedef struct pst_progress {
  char what[96];
  int64_t total; /* <= 0: unknown */
  int64_t done_count;
  int64_t start_us, drawn_us;
  bool bytes; /* counts are bytes */
  bool timed; /* counts are seconds of a budget */
  bool quiet, terminal, drawn;
} pst_progress;
void pst_progress_begin(pst_progress *p, const char *what, int64_t total, bool bytes, bool quiet);
/* Work that ends by the clock: what is counted is the seconds spent, and what is left of `seconds` is the time left. */
void pst_progress_begin_timed(pst_progress *p, const char *what, int64_t seconds, bool quiet);
void pst_progress_update(pst_progress *p, int64_t done_count);
void pst_progress_note(pst_progress *p, const char *format, ...) PST_PRINTF(2, 3); /* changes `what` */
void pst_progress_end(pst_progress *p);                                            /* clears or completes the line */

#ifdef __cplusplus
}
#endif
#endif
