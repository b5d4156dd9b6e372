/* A file as a walk over its rows: JSON lines, the elements of one JSON array, or the rows of a CSV file (RFC 4180), read piece by piece, with the
 * line that each begins at. Does not parse JSON: an array is cut at the commas of its first level. */
#include "data/data.h"

#include <errno.h>
#include <stdarg.h>
#include <string.h>
#include <sys/stat.h>

enum { BLOCK_BYTES = 1 << 18 };
#define ROW_BYTES_MAX ((size_t)64 << 20)

int pst_data_source_fail(const pst_data_source *s, int code, pst_error *err, const char *format, ...) {
  char place[256], text[600];
  va_list args;
  va_start(args, format);
  (void)vsnprintf(text, sizeof text, format, args);
  va_end(args);
  (void)snprintf(place, sizeof place, "%.230s:%zu", s->path, s->value_line);
  return pst_error_set(err, code, place, "%s", text);
}

/* What comes through a pipe comes when its writer likes, and rows are stored under the store's lock: so it is gathered first. */
static int spool(const char *path, FILE **file, pst_error *err) {
  char *block = pst_malloc(BLOCK_BYTES);
  FILE *gathered = block ? tmpfile() : NULL;
  int code = gathered ? 0 : pst_error_set_errno(err, errno, path, "cannot make a temporary file");
  size_t n = 1;
  while (!code && n) {
    n = fread(block, 1, BLOCK_BYTES, *file);
    if (n == 0 && ferror(*file)) code = pst_error_set_errno(err, errno, path, "cannot read");
    if (!code && n && fwrite(block, 1, n, gathered) != n)
      code = pst_error_set_errno(err, errno, path, "cannot write a temporary file");
  }
  if (!code && fseek(gathered, 0, SEEK_SET)) code = pst_error_set_errno(err, errno, path, "cannot read");
  pst_free(block);
  if (*file != stdin) (void)fclose(*file);
  *file = gathered;
  if (code && gathered) {
    (void)fclose(gathered);
    *file = NULL;
  }
  return code;
}

int pst_data_source_open(const char *path, pst_data_source *ret_source, pst_error *err) {
  pst_data_source s = {.path = path, .line = 1, .value_line = 1};
  struct stat st;
  s.file = strcmp(path, "-") ? fopen(path, "rb") : stdin;
  if (!s.file || fstat(fileno(s.file), &st)) return pst_error_set_errno(err, errno, path, "cannot open");
  int code = S_ISDIR(st.st_mode)   ? pst_error_set(err, PST_E_BAD_INPUT, path, "is a directory, not a file")
             : S_ISREG(st.st_mode) ? 0
                                   : spool(path, &s.file, err);
  if (code) {
    pst_data_source_close(&s);
    return code;
  }
  s.n_bytes = S_ISREG(st.st_mode) ? (int64_t)st.st_size : 0;
  *ret_source = s;
  return 0;
}

void pst_data_source_close(pst_data_source *s) {
  if (s->file && s->file != stdin) (void)fclose(s->file);
  pst_buf_done(&s->buffer);
  pst_buf_done(&s->cells);
  pst_free(s->fields);
  pst_free(s->ends);
  memset(s, 0, sizeof *s);
}

/* More bytes behind those that are there; what was passed over is dropped. Offsets above `at` move by what is returned in *ret_moved. */
static int fill(pst_data_source *s, size_t *ret_moved, pst_error *err) {
  if (s->buffer.n - s->at > ROW_BYTES_MAX)
    return pst_data_source_fail(s, PST_E_LIMIT, err, "a row has more than %zu MiB", ROW_BYTES_MAX >> 20);
  size_t moved = s->at, left = s->buffer.n - s->at;
  if (moved) memmove(s->buffer.data, s->buffer.data + moved, left);
  s->buffer.n = left;
  s->at = 0;
  if (ret_moved) *ret_moved = moved;
  if (pst_buf_reserve(&s->buffer, BLOCK_BYTES))
    return pst_error_set(err, PST_E_NOMEM, s->path, "no memory to read the file");
  size_t n = fread(s->buffer.data + left, 1, BLOCK_BYTES, s->file);
  if (n == 0 && ferror(s->file)) return pst_error_set_errno(err, errno, s->path, "cannot read");
  bool start = s->n_read == 0;
  s->buffer.n = left + n;
  s->buffer.data[s->buffer.n] = '\0';
  s->n_read += (int64_t)n;
  s->ended = n == 0;
  if (start && n >= 3 && !memcmp(s->buffer.data, "\xef\xbb\xbf", 3)) s->at = 3; /* a byte order mark */
  return 0;
}

static bool is_space(char c) { return c == ' ' || c == '\t' || c == '\r' || c == '\n'; }

int pst_data_source_peek(pst_data_source *s, char *ret_first, pst_error *err) {
  for (;;) {
    while (s->at < s->buffer.n && is_space(s->buffer.data[s->at])) s->line += s->buffer.data[s->at++] == '\n';
    if (s->at < s->buffer.n || s->ended) break;
    int code = fill(s, NULL, err);
    if (code) return code;
  }
  s->value_line = s->line;
  *ret_first = s->at < s->buffer.n ? s->buffer.data[s->at] : '\0';
  return 0;
}

/* ---- JSON ---- */

/* Where the value at s->at ends: at a line's end, or in an array at a comma or bracket of its level. */
typedef struct cut {
  size_t i; /* looked at up to here */
  size_t depth;
  bool quoted, escaped;
} cut;

/* 1: the value ends before c. */
static bool ends_value(const pst_data_source *s, cut *c, char byte) {
  if (!s->array) return byte == '\n';
  if (c->quoted) {
    if (c->escaped)
      c->escaped = false;
    else if (byte == '\\')
      c->escaped = true;
    else if (byte == '"')
      c->quoted = false;
    return false;
  }
  if (byte == '"') c->quoted = true;
  if (c->depth == 0 && (byte == ',' || byte == ']')) return true;
  if (byte == '{' || byte == '[') c->depth++;
  if ((byte == '}' || byte == ']') && c->depth) c->depth--;
  return false;
}

/* Steps over the bracket or comma between elements. 1: an element follows. */
static int next_element(pst_data_source *s, bool *ret_more, pst_error *err) {
  char first = 0;
  int code = pst_data_source_peek(s, &first, err);
  if (code) return code;
  bool more = first == (s->begun ? ',' : '[');
  bool end = s->begun && first == ']';
  if (!more && !end) return pst_data_source_fail(s, PST_E_BAD_INPUT, err, "the array is not closed by ']'");
  s->at++;
  if (more) {
    bool opened = !s->begun;
    s->begun = true;
    code = pst_data_source_peek(s, &first, err);
    if (code) return code;
    if (!first) return pst_data_source_fail(s, PST_E_BAD_INPUT, err, "the array is not closed by ']'");
    if (opened && first == ']') end = true, s->at++;
  }
  if (end) {
    code = pst_data_source_peek(s, &first, err);
    if (!code && first) return pst_data_source_fail(s, PST_E_BAD_INPUT, err, "something stands behind the array");
  }
  *ret_more = !end;
  return code;
}

int pst_data_source_json(pst_data_source *s, pst_str *ret_value, pst_error *err) {
  char first = 0;
  int code = pst_data_source_peek(s, &first, err);
  bool more = first != '\0' || s->array;
  if (!code && more && s->array) code = next_element(s, &more, err);
  if (code || !more) return code;
  cut c = {.i = s->at};
  for (;; c.i++) {
    if (c.i == s->buffer.n) {
      size_t moved = 0;
      if (!s->ended) code = fill(s, &moved, err);
      if (code) return code;
      c.i -= moved;
      if (c.i == s->buffer.n) break; /* the file's end */
    }
    if (ends_value(s, &c, s->buffer.data[c.i])) break;
    s->line += s->buffer.data[c.i] == '\n';
  }
  *ret_value = pst_str_trim((pst_str){s->buffer.data + s->at, c.i - s->at});
  s->at = c.i;
  return 1;
}

/* ---- CSV ---- */

static int end_cell(pst_data_source *s) {
  int code = pst_array_reserve((void **)&s->ends, &s->ends_capacity, s->n_fields + 1, sizeof *s->ends);
  if (!code) s->ends[s->n_fields++] = s->cells.n;
  return code;
}

static int finish_row(pst_data_source *s, pst_error *err) {
  int code = end_cell(s);
  if (!code) code = pst_buf_status(&s->cells);
  if (!code) code = pst_array_reserve((void **)&s->fields, &s->fields_capacity, s->n_fields, sizeof *s->fields);
  if (code) return pst_error_set(err, code, s->path, "no memory to read the file");
  for (size_t i = 0; i < s->n_fields; i++) {
    size_t start = i ? s->ends[i - 1] : 0;
    s->fields[i] = (pst_str){pst_buf_text(&s->cells) + start, s->ends[i] - start};
    if (!pst_utf8_valid(s->fields[i])) return pst_data_source_fail(s, PST_E_BAD_INPUT, err, "the row is not UTF-8");
  }
  return 1;
}

int pst_data_source_csv(pst_data_source *s, pst_error *err) {
  char first = 0;
  int code = pst_data_source_peek(s, &first, err);
  if (code || !first) return code;
  enum { START, PLAIN, QUOTED, CLOSED } state = START;
  pst_buf_clear(&s->cells);
  s->n_fields = 0;
  for (;;) {
    if (s->at == s->buffer.n && !s->ended && (code = fill(s, NULL, err))) return code;
    bool end = s->at == s->buffer.n;
    if (end && state == QUOTED)
      return pst_data_source_fail(s, PST_E_BAD_INPUT, err, "a quoted field is not closed by '\"'");
    if (end) return finish_row(s, err);
    char c = s->buffer.data[s->at++];
    s->line += c == '\n';
    if (s->cells.n > ROW_BYTES_MAX)
      return pst_data_source_fail(s, PST_E_LIMIT, err, "a row has more than %zu MiB", ROW_BYTES_MAX >> 20);
    if (state == QUOTED) {
      if (c == '"')
        state = CLOSED;
      else
        pst_buf_putc(&s->cells, c);
    } else if (c == '"' && state != PLAIN) {
      if (state == CLOSED) pst_buf_putc(&s->cells, '"');
      state = QUOTED;
    } else if (c == ',') {
      if (end_cell(s)) return pst_error_set(err, PST_E_NOMEM, s->path, "no memory to read the file");
      state = START;
    } else if (c == '\n') {
      return finish_row(s, err);
    } else if (c != '\r') {
      if (state == CLOSED)
        return pst_data_source_fail(s, PST_E_BAD_INPUT, err, "a quoted field goes on behind its '\"'");
      pst_buf_putc(&s->cells, c);
      state = PLAIN;
    }
  }
}
