/* Strings of the template interpreter: text whose every byte knows whether it is trusted.
 *
 * Owns the builder, through which alone new text comes to be, and the plain operations on strings. Origins are runs beside
 * the text, not marks in it, so that the text itself is always what Python would have. A builder copies origins with every
 * slice it takes; nothing here can turn data into trusted text. */
#include "engine/template_types.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

const tpl_run pst_engine_tpl_run_trusted = {SIZE_MAX, true};
const tpl_run pst_engine_tpl_run_data = {SIZE_MAX, false};

/* ---- building --------------------------------------------------------------------------------------------------- */

tpl_builder pst_engine_tpl_builder(tpl_ctx *c) { return (tpl_builder){.c = c}; }

static bool reserve(tpl_builder *b, size_t extra) {
  tpl_ctx *c = b->c;
  if (c->failed) return false;
  if (extra > c->max_output || b->n > c->max_output - extra) {
    return pst_engine_tpl_fail(c, PST_E_LIMIT, "the template makes a text of more than %zu bytes", c->max_output);
  }
  if (b->n + extra <= b->capacity) return true;
  size_t capacity = PST_MAX(b->n + extra, b->capacity ? b->capacity * 2 : 32);
  char *data = pst_engine_tpl_alloc(c, capacity);
  if (!data) return false;
  if (b->n) memcpy(data, b->data, b->n);
  b->data = data;
  b->capacity = capacity;
  return true;
}

static bool push_run(tpl_builder *b, size_t end, bool trusted) {
  if (b->n_runs && b->runs[b->n_runs - 1].trusted == trusted) {
    b->runs[b->n_runs - 1].end = end;
    return true;
  }
  if (b->n_runs == b->runs_capacity) {
    size_t capacity = b->runs_capacity ? b->runs_capacity * 2 : 4;
    tpl_run *runs = pst_engine_tpl_alloc(b->c, capacity * sizeof *runs);
    if (!runs) return false;
    if (b->n_runs) memcpy(runs, b->runs, b->n_runs * sizeof *runs);
    b->runs = runs;
    b->runs_capacity = capacity;
  }
  b->runs[b->n_runs++] = (tpl_run){end, trusted};
  return true;
}

bool pst_engine_tpl_put(tpl_builder *b, const char *data, size_t n, bool trusted) {
  if (!n) return !b->c->failed;
  if (!reserve(b, n) || !push_run(b, b->n + n, trusted)) return false;
  memcpy(b->data + b->n, data, n);
  b->n += n;
  return true;
}

bool pst_engine_tpl_puts(tpl_builder *b, const char *text, bool trusted) {
  return pst_engine_tpl_put(b, text, strlen(text), trusted);
}

bool pst_engine_tpl_put_char(tpl_builder *b, uint32_t code_point, bool trusted) {
  char utf8[4];
  return pst_engine_tpl_put(b, utf8, pst_utf8_put(code_point, utf8), trusted);
}

/* The first run that ends behind `offset`; offset < s->n. */
static size_t run_at(const tpl_str *s, size_t offset) {
  size_t lo = 0, hi = s->n_runs - 1;
  while (lo < hi) {
    size_t mid = (lo + hi) / 2;
    if (s->runs[mid].end <= offset)
      lo = mid + 1;
    else
      hi = mid;
  }
  return lo;
}

bool pst_engine_tpl_trusted_at(const tpl_str *s, size_t offset) { return s->runs[run_at(s, offset)].trusted; }

bool pst_engine_tpl_put_slice(tpl_builder *b, const tpl_str *s, size_t start, size_t end) {
  if (start >= end) return !b->c->failed;
  if (!pst_engine_tpl_charge(b->c, end - start)) return false;
  size_t run = run_at(s, start);
  for (size_t at = start; at < end; run++) {
    size_t stop = run + 1 < s->n_runs ? PST_MIN(s->runs[run].end, end) : end;
    if (!pst_engine_tpl_put(b, s->data + at, stop - at, s->runs[run].trusted)) return false;
    at = stop;
  }
  return true;
}

bool pst_engine_tpl_put_str(tpl_builder *b, const tpl_str *s) { return pst_engine_tpl_put_slice(b, s, 0, s->n); }

static tpl_str *new_str(tpl_ctx *c, const char *data, size_t n) {
  tpl_str *s = pst_engine_tpl_alloc(c, sizeof *s);
  if (!s) return NULL;
  *s = (tpl_str){data ? data : "", n, SIZE_MAX, &pst_engine_tpl_run_data, 1, NULL, false};
  return s;
}

bool pst_engine_tpl_build(tpl_builder *b, bool markup, tpl_val *out) {
  if (b->c->failed) return false;
  tpl_str *s = new_str(b->c, b->data, b->n);
  if (!s) return false;
  if (b->n_runs == 1) {
    s->runs = b->runs[0].trusted ? &pst_engine_tpl_run_trusted : &pst_engine_tpl_run_data;
  } else if (b->n_runs > 1) {
    s->runs = b->runs;
    s->n_runs = b->n_runs;
  }
  s->markup = markup;
  *out = pst_engine_tpl_string(s);
  return true;
}

/* ---- making and taking apart ------------------------------------------------------------------------------------ */

pst_str pst_engine_tpl_view(const tpl_str *s) { return (pst_str){s->data, s->n}; }

const tpl_str *pst_engine_tpl_str_view(tpl_ctx *c, pst_str text, bool trusted) {
  tpl_str *s = new_str(c, text.data, text.n);
  if (s && trusted) s->runs = &pst_engine_tpl_run_trusted;
  return s;
}

const tpl_str *pst_engine_tpl_str_new(tpl_ctx *c, pst_str text, bool trusted) {
  tpl_builder b = pst_engine_tpl_builder(c);
  tpl_val v;
  if (!pst_engine_tpl_put(&b, text.data, text.n, trusted) || !pst_engine_tpl_build(&b, false, &v)) return NULL;
  return v.u.s;
}

const tpl_str *pst_engine_tpl_str_slice(tpl_ctx *c, const tpl_str *s, size_t start, size_t end) {
  if (start == 0 && end == s->n) return s;
  if (!pst_engine_tpl_charge(c, 0)) return NULL;
  tpl_str *slice = new_str(c, s->data + start, end > start ? end - start : 0);
  if (!slice) return NULL;
  slice->markup = s->markup;
  if (start >= end) return slice;
  size_t first = run_at(s, start), last = run_at(s, end - 1);
  if (first == last) {
    slice->runs = s->runs[first].trusted ? &pst_engine_tpl_run_trusted : &pst_engine_tpl_run_data;
    return slice;
  }
  size_t n_runs = last - first + 1;
  tpl_run *runs = pst_engine_tpl_alloc(c, n_runs * sizeof *runs);
  if (!runs) return NULL;
  for (size_t i = 0; i < n_runs; i++) {
    runs[i] = (tpl_run){i + 1 < n_runs ? s->runs[first + i].end - start : end - start, s->runs[first + i].trusted};
  }
  slice->runs = runs;
  slice->n_runs = n_runs;
  return slice;
}

/* Appends b to the room that ends with a; false without failure when there is not enough of it. */
static bool extend_room(const tpl_str *a, const tpl_str *b) {
  tpl_room *room = a->room;
  if (!room || a->data + a->n != room->base + room->used || room->capacity - room->used < b->n ||
      room->runs_capacity - room->n_runs < b->n_runs || a->runs != room->runs || a->n_runs != room->n_runs) {
    return false;
  }
  memcpy(room->base + room->used, b->data, b->n);
  room->runs[room->n_runs - 1].end = room->used; /* the reader clamped it until now */
  for (size_t i = 0; i < b->n_runs; i++) {
    size_t end = room->used + (i + 1 < b->n_runs ? b->runs[i].end : b->n);
    tpl_run *last = &room->runs[room->n_runs - 1];
    if (last->trusted == b->runs[i].trusted)
      last->end = end;
    else
      room->runs[room->n_runs++] = (tpl_run){end, b->runs[i].trusted};
  }
  room->used += b->n;
  return true;
}

/* A copy of s in a room with space behind it, for texts that are built by appending. */
static tpl_str *into_room(tpl_ctx *c, const tpl_str *s, size_t n_more, size_t n_more_runs) {
  tpl_room *room = pst_engine_tpl_alloc(c, sizeof *room);
  if (!room) return NULL;
  room->capacity = (s->n + n_more) * 2;
  room->runs_capacity = (s->n_runs + n_more_runs) * 2;
  room->base = pst_engine_tpl_alloc(c, room->capacity);
  room->runs = pst_engine_tpl_alloc(c, room->runs_capacity * sizeof *room->runs);
  tpl_str *copy = new_str(c, room->base, s->n);
  if (!room->base || !room->runs || !copy) return NULL;
  memcpy(room->base, s->data, s->n);
  memcpy(room->runs, s->runs, s->n_runs * sizeof *room->runs);
  room->used = s->n;
  room->n_runs = s->n_runs;
  copy->runs = room->runs;
  copy->n_runs = room->n_runs;
  copy->room = room;
  return copy;
}

const tpl_str *pst_engine_tpl_str_concat(tpl_ctx *c, const tpl_str *a, const tpl_str *b) {
  if (!b->n && !a->markup) return a;
  if (!a->n && !b->markup) return b;
  if (b->n > c->max_output || a->n > c->max_output - b->n) {
    pst_engine_tpl_fail(c, PST_E_LIMIT, "the template makes a text of more than %zu bytes", c->max_output);
    return NULL;
  }
  if (!pst_engine_tpl_charge(c, b->n)) return NULL;
  if (a->n < 128) {
    tpl_builder builder = pst_engine_tpl_builder(c);
    tpl_val v;
    return reserve(&builder, a->n + b->n) && pst_engine_tpl_put_str(&builder, a) &&
                   pst_engine_tpl_put_str(&builder, b) && pst_engine_tpl_build(&builder, false, &v)
               ? v.u.s
               : NULL;
  }
  if (!extend_room(a, b)) {
    if (!pst_engine_tpl_charge(c, a->n)) return NULL;
    a = into_room(c, a, b->n, b->n_runs);
    if (!a || !extend_room(a, b)) return NULL;
  }
  tpl_str *s = new_str(c, a->data, a->n + b->n);
  if (!s) return NULL;
  s->room = a->room;
  s->runs = a->room->runs;
  s->n_runs = a->room->n_runs;
  return s;
}

size_t pst_engine_tpl_chars(const tpl_str *s) {
  if (s->n_chars != SIZE_MAX) return s->n_chars;
  size_t n = 0;
  for (size_t i = 0; i < s->n; i++) n += ((unsigned char)s->data[i] & 0xC0) != 0x80;
  /* Constants of the template were counted at compilation: only strings of this rendering are written here. */
  ((tpl_str *)(uintptr_t)s)->n_chars = n;
  return n;
}

size_t pst_engine_tpl_char_offset(const tpl_str *s, size_t n_chars) {
  if (pst_engine_tpl_chars(s) == s->n) return PST_MIN(n_chars, s->n);
  size_t i = 0;
  for (; i < s->n; i++) {
    if (((unsigned char)s->data[i] & 0xC0) != 0x80 && n_chars-- == 0) break;
  }
  return i;
}

/* ---- operations ------------------------------------------------------------------------------------------------- */

static bool in_set(const tpl_str *chars, const char *cp, size_t n, uint32_t value) {
  if (!chars) return pst_engine_tpl_is_space(value);
  return pst_str_find(pst_engine_tpl_view(chars), (pst_str){cp, n}, 0) != SIZE_MAX;
}

const tpl_str *pst_engine_tpl_str_strip(tpl_ctx *c, const tpl_str *s, const tpl_str *chars, int sides) {
  size_t start = 0, end = s->n;
  if (!pst_engine_tpl_charge(c, 0)) return NULL;
  while ((sides & 1) && start < end) {
    size_t next = start;
    uint32_t cp = pst_utf8_next(s->data, s->n, &next);
    if (!in_set(chars, s->data + start, next - start, cp)) break;
    start = next;
  }
  while ((sides & 2) && end > start) {
    size_t at = end - 1;
    while (at > start && ((unsigned char)s->data[at] & 0xC0) == 0x80) at--;
    size_t next = at;
    uint32_t cp = pst_utf8_next(s->data, s->n, &next);
    if (!in_set(chars, s->data + at, next - at, cp)) break;
    end = at;
  }
  return pst_engine_tpl_charge(c, s->n - (end - start)) ? pst_engine_tpl_str_slice(c, s, start, end) : NULL;
}

bool pst_engine_tpl_str_replace(tpl_ctx *c, const tpl_str *s, const tpl_str *old, const tpl_str *by, int64_t count,
                                tpl_val *out) {
  tpl_builder b = pst_engine_tpl_builder(c);
  size_t at = 0;
  if (!pst_engine_tpl_charge(c, s->n)) return false;
  if (!old->n) { /* between all characters, and at both ends */
    while (count != 0) {
      if (!pst_engine_tpl_put_str(&b, by)) return false;
      if (count > 0) count--;
      if (at >= s->n) break;
      size_t next = at;
      pst_utf8_next(s->data, s->n, &next);
      if (!pst_engine_tpl_put_slice(&b, s, at, next)) return false;
      at = next;
    }
  }
  for (size_t found; old->n && count != 0; at = found + old->n) {
    found = pst_str_find(pst_engine_tpl_view(s), pst_engine_tpl_view(old), at);
    if (found == SIZE_MAX) break;
    if (!pst_engine_tpl_put_slice(&b, s, at, found) || !pst_engine_tpl_put_str(&b, by)) return false;
    if (count > 0) count--;
  }
  return pst_engine_tpl_put_slice(&b, s, at, s->n) && pst_engine_tpl_build(&b, s->markup, out);
}

bool pst_engine_tpl_escape_html(tpl_ctx *c, const tpl_str *s, tpl_val *out) {
  if (s->markup) {
    *out = pst_engine_tpl_string(s);
    return true;
  }
  tpl_builder b = pst_engine_tpl_builder(c);
  size_t done = 0;
  for (size_t i = 0; i < s->n; i++) {
    const char *entity = NULL;
    switch (s->data[i]) {
    case '&': entity = "&amp;"; break;
    case '<': entity = "&lt;"; break;
    case '>': entity = "&gt;"; break;
    case '"': entity = "&#34;"; break;
    case '\'': entity = "&#39;"; break;
    default: continue;
    }
    if (!pst_engine_tpl_put_slice(&b, s, done, i) || !pst_engine_tpl_puts(&b, entity, pst_engine_tpl_trusted_at(s, i)))
      return false;
    done = i + 1;
  }
  return pst_engine_tpl_put_slice(&b, s, done, s->n) && pst_engine_tpl_build(&b, true, out);
}

bool pst_engine_tpl_put_repr(tpl_builder *b, const tpl_str *s) {
  bool single = memchr(s->data, '\'', s->n) != NULL, twice = memchr(s->data, '"', s->n) != NULL;
  char quote = single && !twice ? '"' : '\'';
  bool ok = pst_engine_tpl_put(b, &quote, 1, false);
  for (size_t i = 0; ok && i < s->n;) {
    size_t at = i;
    uint32_t cp = pst_utf8_next(s->data, s->n, &i);
    bool trusted = pst_engine_tpl_trusted_at(s, at);
    char text[16] = "";
    if (cp == '\\' || cp == (unsigned char)quote)
      snprintf(text, sizeof text, "\\%c", (char)cp);
    else if (cp == '\n')
      snprintf(text, sizeof text, "\\n");
    else if (cp == '\r')
      snprintf(text, sizeof text, "\\r");
    else if (cp == '\t')
      snprintf(text, sizeof text, "\\t");
    else if (!pst_engine_tpl_is_printable(cp))
      snprintf(text, sizeof text, cp < 0x100 ? "\\x%02x" : cp < 0x10000 ? "\\u%04x" : "\\U%08x", cp);
    ok = text[0] ? pst_engine_tpl_puts(b, text, trusted) : pst_engine_tpl_put(b, s->data + at, i - at, trusted);
  }
  return ok && pst_engine_tpl_charge(b->c, s->n) && pst_engine_tpl_put(b, &quote, 1, false);
}

/* Python's repr of a float: the shortest digits that read back the same; exponent form outside 1e-4 to 1e16. */
void pst_engine_tpl_float_repr(double f, char out[40]) {
  if (isnan(f) || isinf(f)) {
    snprintf(out, 40, "%s", isnan(f) ? "nan" : f > 0 ? "inf" : "-inf");
    return;
  }
  char digits[40];
  int precision = 0;
  for (; precision < 17; precision++) {
    snprintf(digits, sizeof digits, "%.*e", precision, f);
    if (strtod(digits, NULL) == f) break; /* written and read in the same locale */
  }
  char *e = strchr(digits, 'e');
  int exponent = (int)strtol(e + 1, NULL, 10);
  bool negative = digits[0] == '-';
  char mantissa[24];
  int n = 0;
  for (char *p = digits; p < e && n < 20; p++) {
    if (*p >= '0' && *p <= '9') mantissa[n++] = *p;
  }
  char *o = out;
  if (negative) *o++ = '-';
  if (exponent < -4 || exponent >= 16) {
    *o++ = mantissa[0];
    if (n > 1) {
      *o++ = '.';
      memcpy(o, mantissa + 1, (size_t)n - 1);
      o += n - 1;
    }
    snprintf(o, (size_t)(out + 40 - o), "e%c%02d", exponent < 0 ? '-' : '+', abs(exponent));
    return;
  }
  if (exponent < 0) {
    *o++ = '0';
    *o++ = '.';
    for (int i = -1; i > exponent; i--) *o++ = '0';
    memcpy(o, mantissa, (size_t)n);
    o += n;
  } else {
    for (int i = 0; i <= exponent; i++) *o++ = i < n ? mantissa[i] : '0';
    *o++ = '.';
    for (int i = exponent + 1; i < n; i++) *o++ = mantissa[i];
    if (n <= exponent + 1) *o++ = '0';
  }
  *o = '\0';
}
