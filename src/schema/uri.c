/* URI references against a base: RFC 3986, section 5.2, as far as schemas need it. */
#include "schema/schema.h"

#include <string.h>

typedef struct parts {
  pst_str scheme, authority, path, query;
  bool has_scheme, has_authority, has_query;
} parts;

static size_t find_any(pst_str s, size_t from, const char *set) {
  while (from < s.n && !strchr(set, s.data[from])) from++;
  return from;
}

static pst_str cut(pst_str s, size_t start, size_t end) { return (pst_str){s.data + start, end - start}; }

static parts split(pst_str s) {
  parts p = {0};
  size_t at = find_any(s, 0, ":/?");
  if (at > 0 && at < s.n && s.data[at] == ':') {
    p.scheme = cut(s, 0, at);
    p.has_scheme = true;
    s = cut(s, at + 1, s.n);
  }
  if (s.n >= 2 && s.data[0] == '/' && s.data[1] == '/') {
    size_t end = find_any(s, 2, "/?");
    p.authority = cut(s, 2, end);
    p.has_authority = true;
    s = cut(s, end, s.n);
  }
  at = find_any(s, 0, "?");
  p.path = cut(s, 0, at);
  p.has_query = at < s.n;
  if (p.has_query) p.query = cut(s, at + 1, s.n);
  return p;
}

/* Section 5.2.4, on whole segments. */
static void put_without_dots(pst_buf *out, pst_str path) {
  size_t floor = out->n;
  bool rooted = path.n && path.data[0] == '/';
  for (size_t at = rooted ? 1 : 0; at <= path.n;) {
    size_t end = find_any(path, at, "/");
    pst_str segment = cut(path, at, end);
    bool last = end >= path.n;
    if (pst_str_is(segment, ".")) {
      if (last && out->n == floor && rooted) pst_buf_putc(out, '/');
    } else if (pst_str_is(segment, "..")) {
      if (out->n > floor) out->n--; /* the slash at the end */
      while (out->n > floor && out->data[out->n - 1] != '/') out->n--;
    } else {
      if (out->n == floor && rooted) pst_buf_putc(out, '/');
      pst_buf_append_str(out, segment);
      if (!last) pst_buf_putc(out, '/');
    }
    at = end + 1;
  }
}

static void put_merged(pst_buf *out, const parts *base, pst_str path) {
  pst_buf merged = PST_BUF_INIT;
  if (base->has_authority && !base->path.n) {
    pst_buf_putc(&merged, '/');
  } else {
    size_t keep = base->path.n;
    while (keep > 0 && base->path.data[keep - 1] != '/') keep--;
    pst_buf_append(&merged, base->path.data, keep);
  }
  pst_buf_append_str(&merged, path);
  put_without_dots(out, pst_buf_str(&merged));
  if (pst_buf_status(&merged)) out->failed = true;
  pst_buf_done(&merged);
}

static void put_resolved(pst_buf *out, pst_str base, pst_str reference) {
  parts b = split(base), r = split(reference);
  const parts *head = r.has_scheme || r.has_authority ? &r : &b;
  pst_str scheme = r.has_scheme ? r.scheme : b.scheme;
  if (r.has_scheme || b.has_scheme) {
    pst_buf_append_str(out, scheme);
    pst_buf_putc(out, ':');
  }
  if (head->has_authority) {
    pst_buf_puts(out, "//");
    pst_buf_append_str(out, head->authority);
  }
  bool same_path = head == &b && !r.path.n;
  if (same_path)
    pst_buf_append_str(out, b.path);
  else if (head == &r || r.path.data[0] == '/')
    put_without_dots(out, r.path);
  else
    put_merged(out, &b, r.path);
  const parts *query = same_path && !r.has_query ? &b : &r;
  if (query->has_query) {
    pst_buf_putc(out, '?');
    pst_buf_append_str(out, query->query);
  }
}

static int hex_of(char c) {
  return c >= '0' && c <= '9'   ? c - '0'
         : c >= 'a' && c <= 'f' ? c - 'a' + 10
         : c >= 'A' && c <= 'F' ? c - 'A' + 10
                                : -1;
}

static void put_decoded(pst_buf *out, pst_str s) {
  for (size_t i = 0; i < s.n; i++) {
    int high = s.data[i] == '%' && i + 2 < s.n ? hex_of(s.data[i + 1]) : -1;
    int low = high >= 0 ? hex_of(s.data[i + 2]) : -1;
    if (low >= 0) i += 2;
    pst_buf_putc(out, low >= 0 ? (char)(high * 16 + low) : s.data[i]);
  }
}

static int keep(pst_arena *arena, pst_buf *b, pst_str *ret_text) {
  char *copy = pst_buf_status(b) ? NULL : pst_arena_strndup(arena, pst_buf_text(b), b->n);
  if (copy) *ret_text = (pst_str){copy, b->n};
  pst_buf_done(b);
  return copy ? 0 : PST_E_NOMEM;
}

int pst_schema_uri_resolve(pst_arena *arena, pst_str base, pst_str reference, pst_str *ret_uri, pst_str *ret_fragment) {
  pst_buf uri = PST_BUF_INIT, fragment = PST_BUF_INIT;
  size_t hash = find_any(reference, 0, "#");
  put_resolved(&uri, base, cut(reference, 0, hash));
  if (hash < reference.n) put_decoded(&fragment, cut(reference, hash + 1, reference.n));
  pst_str whole = {"", 0}, part = {"", 0};
  int code = keep(arena, &uri, &whole);
  int code_of_part = keep(arena, &fragment, &part);
  if (code || code_of_part) return PST_E_NOMEM;
  *ret_uri = whole;
  *ret_fragment = hash < reference.n ? part : (pst_str){NULL, 0};
  return 0;
}
