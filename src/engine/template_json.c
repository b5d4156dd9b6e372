/* JSON in and out of the template interpreter: user data to values, and the tojson filter as transformers defines it
 * (json.dumps without HTML escaping).
 *
 * Text that came in as JSON is data. The filter keeps the origin of string characters; punctuation, numbers and literals it
 * writes count as data. */
#include "engine/template_types.h"

#include <math.h>
#include <string.h>

/* ---- in --------------------------------------------------------------------------------------------------------- */

/* Whole numbers stay whole, 1.0 stays a float: the document's own spelling decides. */
static bool from_number(tpl_ctx *c, const pst_json *v, tpl_val *out) {
  if (pst_json_is_real(v)) {
    *out = pst_engine_tpl_float(pst_json_double(v, 0));
    return true;
  }
  if (pst_json_is_int(v)) {
    *out = pst_engine_tpl_int(pst_json_int(v, 0));
    return true;
  }
  pst_buf digits = PST_BUF_INIT; /* above int64: spelled as the document has it */
  pst_json_writer w = pst_json_writer_on(&digits, false);
  pst_json_put_value(&w, v);
  *out = (tpl_val){.kind = TPL_BIGINT};
  if (pst_buf_status(&digits))
    pst_engine_tpl_fail(c, PST_E_NOMEM, "out of memory");
  else
    out->u.s = pst_engine_tpl_str_new(c, pst_buf_str(&digits), false);
  pst_buf_done(&digits);
  return out->u.s != NULL;
}

static bool from_container(tpl_ctx *c, const pst_json *v, tpl_val *out) {
  bool object = pst_json_typeof(v) == PST_JSON_OBJECT;
  tpl_list *l = object ? NULL : pst_engine_tpl_list_new(c, pst_json_size(v));
  tpl_dict *d = object ? pst_engine_tpl_dict_new(c) : NULL;
  if (!l && !d) return false;
  for (pst_json_iter it = pst_json_iterate(v); pst_json_next(&it);) {
    tpl_val item, key;
    if (!pst_engine_tpl_from_json(c, it.value, &item)) return false;
    if (!object) {
      if (!pst_engine_tpl_list_push(c, l, item)) return false;
      continue;
    }
    key = pst_engine_tpl_string(pst_engine_tpl_str_view(c, it.key, false));
    if (key.kind != TPL_STR || !pst_engine_tpl_dict_set(c, d, key, item)) return false;
  }
  *out = object ? pst_engine_tpl_dict(d) : pst_engine_tpl_list(TPL_LIST, l);
  return true;
}

bool pst_engine_tpl_from_json(tpl_ctx *c, const pst_json *v, tpl_val *out) {
  if (!pst_engine_tpl_charge(c, 0)) return false;
  switch (pst_json_typeof(v)) {
  case PST_JSON_NONE:
  case PST_JSON_NULL: *out = pst_engine_tpl_none(); return true;
  case PST_JSON_BOOL: *out = pst_engine_tpl_bool(pst_json_bool(v, false)); return true;
  case PST_JSON_NUMBER: return from_number(c, v, out);
  case PST_JSON_STRING: {
    const tpl_str *s = pst_engine_tpl_str_view(c, pst_json_str(v), false); /* the document outlives the rendering */
    *out = pst_engine_tpl_string(s);
    return s != NULL;
  }
  case PST_JSON_ARRAY:
  case PST_JSON_OBJECT: break;
  }
  if (!pst_engine_tpl_enter(c)) return false;
  bool ok = from_container(c, v, out);
  pst_engine_tpl_leave(c);
  return ok;
}

/* ---- out -------------------------------------------------------------------------------------------------------- */

typedef struct dumper {
  tpl_builder b;
  bool ascii, sort_keys, pretty;
  const tpl_str *indent; /* of one level, when pretty */
  const tpl_str *item_separator, *key_separator;
} dumper;

static bool put(dumper *d, const char *text) { return pst_engine_tpl_puts(&d->b, text, false); }

static bool put_string(dumper *d, const tpl_str *s) {
  static const char special[] = "\"\\\n\r\t\f\b", letters[] = "\"\\nrtfb";
  bool ok = put(d, "\"");
  size_t plain = 0; /* start of what needs no escape */
  for (size_t i = 0; ok && i < s->n;) {
    size_t at = i;
    unsigned char ch = (unsigned char)s->data[i];
    if (ch < 128 && ch >= 32 && ch != '"' && ch != '\\' && (ch != 127 || !d->ascii)) {
      i++;
      continue;
    }
    uint32_t cp = pst_utf8_next(s->data, s->n, &i);
    if (cp >= 128 && !d->ascii) continue;
    char text[16];
    const char *known = cp && cp < 128 ? strchr(special, (int)cp) : NULL;
    if (known)
      snprintf(text, sizeof text, "\\%c", letters[known - special]);
    else if (cp < 0x10000)
      snprintf(text, sizeof text, "\\u%04x", cp);
    else
      snprintf(text, sizeof text, "\\u%04x\\u%04x", 0xD800 + ((cp - 0x10000) >> 10), 0xDC00 + ((cp - 0x10000) & 0x3FF));
    ok = pst_engine_tpl_put_slice(&d->b, s, plain, at) &&
         pst_engine_tpl_puts(&d->b, text, pst_engine_tpl_trusted_at(s, at));
    plain = i;
  }
  return ok && pst_engine_tpl_put_slice(&d->b, s, plain, s->n) && put(d, "\"");
}

static bool put_float(dumper *d, double f) {
  char text[40];
  if (isnan(f)) return put(d, "NaN");
  if (isinf(f)) return put(d, f > 0 ? "Infinity" : "-Infinity");
  pst_engine_tpl_float_repr(f, text);
  return put(d, text);
}

static bool new_line(dumper *d, int level) {
  if (!d->pretty) return true;
  bool ok = put(d, "\n");
  for (int i = 0; ok && i < level; i++) ok = pst_engine_tpl_put_str(&d->b, d->indent);
  return ok;
}

static bool dump(dumper *d, const tpl_val *v, int level);

static bool dump_list(dumper *d, const tpl_list *l, int level) {
  if (!l->n) return put(d, "[]");
  bool ok = put(d, "[");
  for (size_t i = 0; ok && i < l->n; i++) {
    ok = (!i || pst_engine_tpl_put_str(&d->b, d->item_separator)) && new_line(d, level + 1) &&
         dump(d, &l->items[i], level + 1);
  }
  return ok && new_line(d, level) && put(d, "]");
}

/* The text a key becomes. */
static bool key_text(tpl_ctx *c, const tpl_val *key, tpl_val *out) {
  char text[40] = "";
  switch (key->kind) {
  case TPL_STR:
  case TPL_BIGINT: *out = pst_engine_tpl_string(key->u.s); return true;
  case TPL_BOOL: snprintf(text, sizeof text, "%s", key->u.b ? "true" : "false"); break;
  case TPL_NONE: snprintf(text, sizeof text, "null"); break;
  case TPL_INT: snprintf(text, sizeof text, "%lld", (long long)key->u.i); break;
  case TPL_FLOAT: pst_engine_tpl_float_repr(key->u.f, text); break;
  default:
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "keys must be str, int, float, bool or None, not %s",
                               pst_engine_tpl_type_name(key));
  }
  const tpl_str *s = pst_engine_tpl_str_new(c, pst_str_from(text), false);
  *out = pst_engine_tpl_string(s);
  return s != NULL;
}

static bool dump_dict(dumper *d, const tpl_dict *dict, int level) {
  tpl_ctx *c = d->b.c;
  if (!dict->n) return put(d, "{}");
  tpl_val *keys = pst_engine_tpl_alloc(c, dict->n * sizeof *keys),
          *values = pst_engine_tpl_alloc(c, dict->n * sizeof *values);
  if (!keys || !values) return false;
  for (size_t i = 0; i < dict->n; i++) {
    keys[i] = dict->entries[i].key;
    values[i] = dict->entries[i].value;
  }
  if (d->sort_keys && !pst_engine_tpl_sort(c, values, keys, dict->n, false)) return false;
  bool ok = put(d, "{");
  for (size_t i = 0; ok && i < dict->n; i++) {
    tpl_val key;
    ok = (!i || pst_engine_tpl_put_str(&d->b, d->item_separator)) && new_line(d, level + 1) &&
         key_text(c, &keys[i], &key) && put_string(d, key.u.s) && pst_engine_tpl_put_str(&d->b, d->key_separator) &&
         dump(d, &values[i], level + 1);
  }
  return ok && new_line(d, level) && put(d, "}");
}

static bool dump(dumper *d, const tpl_val *v, int level) {
  tpl_ctx *c = d->b.c;
  char text[24];
  switch (v->kind) {
  case TPL_NONE: return put(d, "null");
  case TPL_BOOL: return put(d, v->u.b ? "true" : "false");
  case TPL_INT: snprintf(text, sizeof text, "%lld", (long long)v->u.i); return put(d, text);
  case TPL_BIGINT: return pst_engine_tpl_put_str(&d->b, v->u.s);
  case TPL_FLOAT: return put_float(d, v->u.f);
  case TPL_STR: return put_string(d, v->u.s);
  case TPL_LIST:
  case TPL_TUPLE:
  case TPL_DICT: break;
  default:
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT, "Object of type %s is not JSON serializable",
                               pst_engine_tpl_type_name(v));
  }
  if (!pst_engine_tpl_charge(c, 0) || !pst_engine_tpl_enter(c)) return false;
  bool ok = v->kind == TPL_DICT ? dump_dict(d, v->u.dict, level) : dump_list(d, v->u.list, level);
  pst_engine_tpl_leave(c);
  return ok;
}

static bool read_indent(dumper *d, const tpl_val *v) {
  tpl_ctx *c = d->b.c;
  if (v->kind == TPL_MISSING || v->kind == TPL_NONE) return true;
  d->pretty = true;
  if (v->kind == TPL_STR) {
    d->indent = v->u.s;
    return true;
  }
  int64_t n;
  if (!pst_engine_tpl_want_int(c, v, &n)) return false;
  if (n > 256) return pst_engine_tpl_fail_unsupported(c, "an indent of more than 256");
  char spaces[256];
  memset(spaces, ' ', sizeof spaces);
  d->indent = pst_engine_tpl_str_new(c, (pst_str){spaces, n > 0 ? (size_t)n : 0}, false);
  return d->indent != NULL;
}

static bool read_separators(dumper *d, const tpl_val *v) {
  tpl_ctx *c = d->b.c;
  d->item_separator = pst_engine_tpl_str_view(c, d->pretty ? PST_STR(",") : PST_STR(", "), false);
  d->key_separator = pst_engine_tpl_str_view(c, PST_STR(": "), false);
  if (!d->item_separator || !d->key_separator) return false;
  if (v->kind == TPL_MISSING || v->kind == TPL_NONE) return true;
  tpl_list *pair;
  if (!pst_engine_tpl_collect(c, v, &pair)) return false;
  if (pair->n != 2)
    return pst_engine_tpl_fail(c, PST_E_BAD_INPUT,
                               pair->n > 2 ? "too many values to unpack (expected 2)"
                                           : "not enough values to unpack (expected 2, got %zu)",
                               pair->n);
  if (pair->items[0].kind != TPL_STR || pair->items[1].kind != TPL_STR)
    return pst_engine_tpl_fail_unsupported(c, "separators of tojson that are no strings");
  d->item_separator = pair->items[0].u.s;
  d->key_separator = pair->items[1].u.s;
  return true;
}

bool pst_engine_tpl_tojson(tpl_ctx *c, const tpl_val *self, const tpl_args *args, tpl_val *out) {
  static const char *const names[] = {"ensure_ascii", "indent", "separators", "sort_keys"};
  tpl_val v[4];
  dumper d = {.b = pst_engine_tpl_builder(c)};
  return pst_engine_tpl_arguments(c, "tojson", args, names, 4, 0, v) && pst_engine_tpl_truth(c, &v[0], &d.ascii) &&
         pst_engine_tpl_truth(c, &v[3], &d.sort_keys) && read_indent(&d, &v[1]) && read_separators(&d, &v[2]) &&
         dump(&d, self, 0) && pst_engine_tpl_build(&d.b, false, out);
}
