/* Typed reading of JSON members. Owns the wording of "wrong type" and "out of range"; does not know which members there are. */
#include "wire/reader.h"

#include <string.h>

const pst_json *pst_wire_get(const pst_wire_reader *r, const char *key) {
  const pst_json *v = pst_json_get(r->object, key);
  return pst_json_typeof(v) == PST_JSON_NULL ? NULL : v;
}

const char *pst_wire_type_name(const pst_json *v) {
  switch (pst_json_typeof(v)) {
  case PST_JSON_NONE: return "nothing";
  case PST_JSON_NULL: return "null";
  case PST_JSON_BOOL: return "a boolean";
  case PST_JSON_NUMBER: return pst_json_is_int(v) ? "an integer" : "a number";
  case PST_JSON_STRING: return "a string";
  case PST_JSON_ARRAY: return "an array";
  case PST_JSON_OBJECT: return "an object";
  }
  return "something else";
}

int pst_wire_fail(const pst_wire_reader *r, int code, const char *key, const char *format, ...) {
  char place[256], text[512];
  va_list args;
  va_start(args, format);
  vsnprintf(text, sizeof text, format, args);
  va_end(args);
  snprintf(place, sizeof place, "%s%s%s", r->path, r->path[0] && key ? "." : "", key ? key : "");
  return pst_error_set(r->err, code, place, "%s", text);
}

int pst_wire_fail_type(const pst_wire_reader *r, const char *key, const char *expected, const pst_json *got) {
  if (!got) return pst_wire_fail(r, PST_E_BAD_INPUT, key, "missing: expected %s", expected);
  return pst_wire_fail(r, PST_E_BAD_INPUT, key, "wrong type: expected %s, got %s", expected, pst_wire_type_name(got));
}

pst_wire_reader pst_wire_reader_into(const pst_wire_reader *r, const char *key, int64_t i, const pst_json *value) {
  pst_wire_reader inner = {.object = value, .err = r->err};
  const char *dot = r->path[0] ? "." : "";
  if (i < 0) {
    snprintf(inner.path, sizeof inner.path, "%.100s%s%.40s", r->path, dot, key);
  } else {
    snprintf(inner.path, sizeof inner.path, "%.100s%s%.30s[%lld]", r->path, dot, key, (long long)i);
  }
  return inner;
}

int pst_wire_read_bool(const pst_wire_reader *r, const char *key, bool *ret_value) {
  const pst_json *v = pst_wire_get(r, key);
  if (!v) return 0;
  if (pst_json_typeof(v) != PST_JSON_BOOL) return pst_wire_fail_type(r, key, "a boolean", v);
  *ret_value = pst_json_bool(v, false);
  return 0;
}

int pst_wire_read_double(const pst_wire_reader *r, const char *key, double min, double max, bool *ret_has,
                         double *ret_value) {
  const pst_json *v = pst_wire_get(r, key);
  if (!v) return 0;
  if (pst_json_typeof(v) != PST_JSON_NUMBER) return pst_wire_fail_type(r, key, "a number", v);
  double d = pst_json_double(v, 0);
  if (!(d >= min && d <= max))
    return pst_wire_fail(r, PST_E_BAD_INPUT, key, "%g is out of range: %g to %g", d, min, max);
  if (ret_has) *ret_has = true;
  *ret_value = d;
  return 0;
}

int pst_wire_read_int(const pst_wire_reader *r, const char *key, int64_t min, int64_t max, bool *ret_has,
                      int64_t *ret_value) {
  const pst_json *v = pst_wire_get(r, key);
  if (!v) return 0;
  if (pst_json_typeof(v) != PST_JSON_NUMBER) return pst_wire_fail_type(r, key, "an integer", v);
  if (!pst_json_is_int(v)) {
    double d = pst_json_double(v, 0);
    if (d < (double)min || d > (double)max)
      return pst_wire_fail(r, PST_E_BAD_INPUT, key, "%g is out of range: %lld to %lld", d, (long long)min,
                           (long long)max);
    return pst_wire_fail_type(r, key, "an integer", v);
  }
  int64_t i = pst_json_int(v, 0);
  if (i < min || i > max)
    return pst_wire_fail(r, PST_E_BAD_INPUT, key, "%lld is out of range: %lld to %lld", (long long)i, (long long)min,
                         (long long)max);
  if (ret_has) *ret_has = true;
  *ret_value = i;
  return 0;
}

int pst_wire_read_str(const pst_wire_reader *r, const char *key, size_t max_bytes, pst_str *ret_value) {
  const pst_json *v = pst_wire_get(r, key);
  if (!v) return 0;
  if (pst_json_typeof(v) != PST_JSON_STRING) return pst_wire_fail_type(r, key, "a string", v);
  pst_str s = pst_json_str(v);
  if (s.n > max_bytes)
    return pst_wire_fail(r, PST_E_LIMIT, key, "%zu bytes are more than the limit of %zu", s.n, max_bytes);
  *ret_value = s;
  return 0;
}

int pst_wire_parse_body(pst_wire_reader *r, pst_str body, pst_json_doc **ret_doc) {
  pst_error bad = PST_ERROR_INIT;
  pst_json_doc *doc = NULL;
  int rc = pst_json_parse(body.data ? body.data : "", body.n, "body", &doc, &bad);
  if (rc) return pst_error_set(r->err, rc, NULL, "the body is not valid JSON (%.60s): %.400s", bad.place, bad.message);
  r->object = pst_json_root(doc);
  if (pst_json_typeof(r->object) != PST_JSON_OBJECT) {
    rc = pst_error_set(r->err, PST_E_BAD_INPUT, NULL, "the body must be a JSON object, got %s",
                       pst_wire_type_name(r->object));
    pst_json_free(doc);
    return rc;
  }
  *ret_doc = doc;
  return 0;
}
