/* The log: one line per event on stderr, written with one system call so that lines of several threads do not mix.
 *
 * Owns the level and the line's head; the caller owns the content (key=value, request id first). Control characters in a
 * message are escaped: a value taken from a request cannot forge a line or drive a terminal. */
#include <penstock/base.h>

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>
#include <unistd.h>

#define LINE_BYTES_MAX 4096u

static const char *const level_names[] = {"debug", "info", "warn", "error", "off"};
static atomic_int current_level = -1; /* -1: the environment has not been read yet */

static int level_from_environment(void) {
  const char *name = getenv("PENSTOCK_LOG");
  for (size_t i = 0; name && i < PST_ARRAY_LEN(level_names); i++)
    if (strcasecmp(name, level_names[i]) == 0) return (int)i;
  return PST_LOG_WARN;
}

void pst_log_set_level(pst_log_level level) { atomic_store(&current_level, (int)level); }

bool pst_log_enabled(pst_log_level level) {
  int now = atomic_load_explicit(&current_level, memory_order_relaxed);
  if (now < 0) {
    int fresh = level_from_environment();
    /* a level set meanwhile stays */
    if (atomic_compare_exchange_strong(&current_level, &now, fresh)) now = fresh;
  }
  return level >= PST_LOG_DEBUG && level < PST_LOG_OFF && (int)level >= now;
}

static size_t write_head(char *line, size_t line_bytes, pst_log_level level) {
  int64_t ms = pst_clock_unix_ms();
  time_t seconds = (time_t)(ms / 1000);
  struct tm tm;
  if (!gmtime_r(&seconds, &tm)) memset(&tm, 0, sizeof tm);
  size_t n = strftime(line, line_bytes, "%Y-%m-%dT%H:%M:%S", &tm);
  int more = snprintf(line + n, line_bytes - n, ".%03dZ %-5s ", (int)(ms % 1000), level_names[level]);
  return n + (more > 0 ? (size_t)more : 0);
}

/* Copies text with control characters escaped; stops where the line is full. Returns the bytes written. */
static size_t write_escaped(char *out, size_t out_bytes, const char *text) {
  static const char hex[] = "0123456789abcdef";
  size_t n = 0;
  for (; *text; text++) {
    unsigned char c = (unsigned char)*text;
    bool control = c < 0x20 || c == 0x7f;
    if (out_bytes - n < (control ? 4u : 1u)) break;
    if (!control) {
      out[n++] = (char)c;
    } else if (c == '\n' || c == '\t' || c == '\r') {
      out[n++] = '\\';
      out[n++] = c == '\n' ? 'n' : c == '\t' ? 't' : 'r';
    } else {
      out[n++] = '\\';
      out[n++] = 'x';
      out[n++] = hex[c >> 4];
      out[n++] = hex[c & 15];
    }
  }
  return n;
}

void pst_log(pst_log_level level, const char *format, ...) {
  if (!pst_log_enabled(level)) return;
  int saved_errno = errno;
  char message[LINE_BYTES_MAX], line[LINE_BYTES_MAX + 64];
  va_list args;
  va_start(args, format);
  if (vsnprintf(message, sizeof message, format, args) < 0) message[0] = '\0';
  va_end(args);
  size_t n = write_head(line, 64, level);
  n += write_escaped(line + n, sizeof line - 1 - n, message);
  line[n++] = '\n';
  for (size_t at = 0; at < n;) {
    ssize_t put = write(STDERR_FILENO, line + at, n - at);
    if (put < 0 && errno == EINTR) continue;
    if (put <= 0) break; /* nowhere left to say so */
    at += (size_t)put;
  }
  errno = saved_errno;
}
