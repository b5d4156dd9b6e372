/* multipart/form-data as RFC 7578 and RFC 2046 have it: parts between lines of a boundary. Nothing is copied. */
#include <penstock/wire.h>

#include <string.h>

enum { MAX_BOUNDARY = 70 };

static bool same_letters(pst_str a, const char *b) {
  if (a.n != strlen(b)) return false;
  for (size_t i = 0; i < a.n; i++) {
    char c = a.data[i] >= 'A' && a.data[i] <= 'Z' ? (char)(a.data[i] + 32) : a.data[i];
    if (c != b[i]) return false;
  }
  return true;
}

/* The value of a parameter behind the ';' of a header: a token, or a text in quotes (whose \" and \\ stay as they are). */
static pst_str parameter(pst_str header, const char *name) {
  size_t at = 0;
  while ((at = pst_str_find(header, PST_STR(";"), at)) != SIZE_MAX) {
    size_t begin = ++at;
    while (at < header.n && header.data[at] != '=' && header.data[at] != ';') at++;
    if (at == header.n || header.data[at] == ';') continue;
    if (!same_letters(pst_str_trim((pst_str){header.data + begin, at - begin}), name)) continue;
    pst_str value = {header.data + at + 1, header.n - at - 1};
    if (value.n && value.data[0] == '"') {
      size_t end = 1;
      while (end < value.n && value.data[end] != '"') end += value.data[end] == '\\' && end + 1 < value.n ? 2 : 1;
      return (pst_str){value.data + 1, PST_MIN(end, value.n) - 1};
    }
    size_t end = pst_str_find(value, PST_STR(";"), 0);
    return pst_str_trim((pst_str){value.data, end == SIZE_MAX ? value.n : end});
  }
  return (pst_str){NULL, 0};
}

static int malformed(const char *what, pst_error *err) {
  return pst_error_set(err, PST_E_BAD_INPUT, NULL, "the body is not multipart/form-data: %s", what);
}

/* One part's headers and content. */
static int read_part(pst_str text, pst_wire_part *part, pst_error *err) {
  size_t end = pst_str_find(text, PST_STR("\r\n\r\n"), 0);
  if (end == SIZE_MAX) return malformed("a part has no end of its headers", err);
  part->data = (pst_str){text.data + end + 4, text.n - end - 4};
  for (size_t at = 0; at < end;) {
    size_t stop = PST_MIN(pst_str_find(text, PST_STR("\r\n"), at), end);
    pst_str line = {text.data + at, stop - at};
    size_t colon = pst_str_find(line, PST_STR(":"), 0);
    at = stop + 2;
    if (colon == SIZE_MAX || !same_letters((pst_str){line.data, colon}, "content-disposition")) continue;
    part->name = parameter(line, "name");
    part->filename = parameter(line, "filename");
  }
  return part->name.n ? 0 : malformed("a part has no name", err);
}

int pst_wire_multipart_parse(pst_str media_type, pst_str body, pst_wire_part *ret_parts, size_t max, size_t *ret_n,
                             pst_error *err) {
  char text[MAX_BOUNDARY + 5];
  pst_str boundary = parameter(media_type, "boundary");
  if (!same_letters(
          pst_str_trim((pst_str){media_type.data, PST_MIN(pst_str_find(media_type, PST_STR(";"), 0), media_type.n)}),
          "multipart/form-data"))
    return malformed("the Content-Type says otherwise", err);
  if (boundary.n == 0 || boundary.n > MAX_BOUNDARY) return malformed("the Content-Type has no sound boundary", err);
  (void)snprintf(text, sizeof text, "\r\n--%.*s", (int)boundary.n, boundary.data);
  pst_str mark = pst_str_from(text), first = {mark.data + 2, mark.n - 2};
  size_t at = pst_str_starts(body, first) ? first.n : pst_str_find(body, mark, 0), n = 0;
  if (at == SIZE_MAX) return malformed("its boundary does not occur", err);
  if (!pst_str_starts(body, first)) at += mark.n;
  for (;;) {
    pst_str rest = {body.data + at, body.n - at};
    if (pst_str_starts(rest, PST_STR("--"))) break;
    size_t line = pst_str_find(rest, PST_STR("\r\n"), 0), end = pst_str_find(rest, mark, line);
    if (line == SIZE_MAX || end == SIZE_MAX) return malformed("the last boundary is missing", err);
    if (n == max) return pst_error_set(err, PST_E_LIMIT, NULL, "the form has more than %zu parts", max);
    ret_parts[n] = (pst_wire_part){{NULL, 0}, {NULL, 0}, {NULL, 0}};
    int code = end < line + 2 ? malformed("a part is empty", err)
                              : read_part((pst_str){rest.data + line + 2, end - line - 2}, &ret_parts[n++], err);
    if (code) return code;
    at += end + mark.n;
  }
  *ret_n = n;
  return 0;
}
