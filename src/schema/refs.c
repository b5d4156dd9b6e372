/* References: which node a $ref or $dynamicRef means. Nothing is fetched; the metaschemas that ship with the program are loaded when one is named. */
#include "schema/schema.h"

#include <string.h>

static const struct {
  const char *uri, *asset;
} builtin[] = {
    {"http://json-schema.org/draft-07/schema", "schema/meta/draft-07-schema.json"},
    {"https://json-schema.org/draft/2020-12/schema", "schema/meta/2020-12-schema.json"},
    {"https://json-schema.org/draft/2020-12/meta/core", "schema/meta/2020-12-core.json"},
    {"https://json-schema.org/draft/2020-12/meta/applicator", "schema/meta/2020-12-applicator.json"},
    {"https://json-schema.org/draft/2020-12/meta/unevaluated", "schema/meta/2020-12-unevaluated.json"},
    {"https://json-schema.org/draft/2020-12/meta/validation", "schema/meta/2020-12-validation.json"},
    {"https://json-schema.org/draft/2020-12/meta/meta-data", "schema/meta/2020-12-meta-data.json"},
    {"https://json-schema.org/draft/2020-12/meta/format-annotation", "schema/meta/2020-12-format-annotation.json"},
    {"https://json-schema.org/draft/2020-12/meta/content", "schema/meta/2020-12-content.json"},
};

const pst_schema_anchor *pst_schema_anchor_find(const pst_schema *s, int resource, pst_str name) {
  for (size_t i = 0; i < s->n_anchors; i++)
    if (s->anchors[i].resource == resource && pst_str_equal(s->anchors[i].name, name)) return &s->anchors[i];
  return NULL;
}

static int find_resource(const pst_schema *s, pst_str uri) {
  for (size_t i = 0; i < s->n_resources; i++)
    if (pst_str_equal(s->resources[i].uri, uri)) return (int)i;
  return -1;
}

static int fail_ref(const pst_schema *s, const pst_schema_pending *p, int code, pst_error *err, const char *why) {
  char place[256];
  (void)snprintf(place, sizeof place, "%.120s%.120s", s->source, p->node->path);
  return pst_error_set(err, code, place, "%s \"%.*s\" %s", p->dynamic ? "$dynamicRef" : "$ref",
                       (int)PST_MIN(p->uri.n, (size_t)200), p->uri.data, why);
}

static int load_builtin(pst_schema *s, const pst_schema_pending *p, pst_str uri, int *ret_resource, pst_error *err) {
  pst_str text;
  pst_json_doc *doc = NULL;
  pst_schema_node *root;
  size_t i = 0;
  while (i < PST_ARRAY_LEN(builtin) && !pst_str_is(uri, builtin[i].uri)) i++;
  if (i == PST_ARRAY_LEN(builtin))
    return fail_ref(s, p, PST_E_UNSUPPORTED, err,
                    "leads to another document, and none is fetched; put what it needs under $defs");
  if (!pst_asset_find(builtin[i].asset, &text))
    return fail_ref(s, p, PST_E_INTERNAL, err, "is not part of the program");
  int code = pst_json_parse(text.data, text.n, builtin[i].asset, &doc, err);
  if (code) return code;
  int first = (int)s->n_resources;
  code = pst_schema_document_add(s, doc, uri, PST_SCHEMA_DRAFT_2020_12, &root, err);
  if (code) pst_json_free(doc);
  if (!code) *ret_resource = first;
  return code;
}

/* One step of a JSON pointer. */
static const pst_json *step(const pst_json *v, pst_str token, pst_buf *scratch) {
  pst_buf_clear(scratch);
  for (size_t i = 0; i < token.n; i++) {
    char c = token.data[i];
    if (c == '~' && i + 1 < token.n && (token.data[i + 1] == '0' || token.data[i + 1] == '1'))
      c = token.data[++i] == '0' ? '~' : '/';
    pst_buf_putc(scratch, c);
  }
  if (pst_json_typeof(v) == PST_JSON_OBJECT) return pst_json_get_str(v, pst_buf_str(scratch));
  int64_t index;
  if (pst_json_typeof(v) != PST_JSON_ARRAY || pst_parse_i64(pst_buf_str(scratch), 0, INT32_MAX, &index)) return NULL;
  return (size_t)index < pst_json_size(v) ? pst_json_at(v, (size_t)index) : NULL;
}

/* The value a pointer leads to, and the resource it lies under: that of the innermost node on the way. */
static const pst_json *walk(const pst_schema *s, const pst_json *v, pst_str pointer, int *resource, pst_buf *scratch) {
  for (size_t at = 0; v && at < pointer.n;) {
    size_t end = PST_MIN(pst_str_find(pointer, PST_STR("/"), at + 1), pointer.n);
    v = step(v, (pst_str){pointer.data + at + 1, end - at - 1}, scratch);
    const pst_schema_node *node = v ? pst_schema_node_find(s, v) : NULL;
    if (node) *resource = node->resource;
    at = end;
  }
  return v;
}

static int follow_pointer(pst_schema *s, const pst_schema_pending *p, int resource, pst_str pointer,
                          pst_schema_node **ret_node, pst_error *err) {
  pst_buf scratch = PST_BUF_INIT;
  const pst_json *target = walk(s, s->resources[resource].root, pointer, &resource, &scratch);
  int code = pst_buf_status(&scratch);
  pst_buf_done(&scratch);
  if (code) return fail_ref(s, p, code, err, "could not be followed: no memory");
  if (!target) return fail_ref(s, p, PST_E_BAD_INPUT, err, "leads nowhere");
  pst_schema_path path = {NULL, pointer.n ? (pst_str){pointer.data + 1, pointer.n - 1} : pointer, 0, 1, true};
  return pst_schema_node_make(s, target, resource, pointer.n ? &path : NULL, ret_node, err);
}

static int resolve(pst_schema *s, const pst_schema_pending *p, pst_error *err) {
  pst_str uri, fragment;
  pst_schema_node *target = NULL;
  const pst_schema_anchor *anchor = NULL;
  if (pst_schema_uri_resolve(s->arena, s->resources[p->node->resource].uri, p->uri, &uri, &fragment))
    return fail_ref(s, p, PST_E_NOMEM, err, "could not be followed: no memory");
  int resource = find_resource(s, uri), code = 0;
  if (resource < 0) code = load_builtin(s, p, uri, &resource, err);
  if (code) return code;
  if (!fragment.n || fragment.data[0] == '/') {
    code = follow_pointer(s, p, resource, fragment, &target, err);
    if (code) return code;
  } else if (!(anchor = pst_schema_anchor_find(s, resource, fragment))) {
    return fail_ref(s, p, PST_E_BAD_INPUT, err, "names an anchor that is not there");
  }
  if (!p->dynamic) {
    p->node->ref = anchor ? anchor->node : target;
    return 0;
  }
  p->node->dynamic_ref = anchor ? anchor->node : target;
  if (anchor && anchor->dynamic) p->node->dynamic_name = anchor->name;
  return 0;
}

int pst_schema_refs_resolve(pst_schema *s, pst_error *err) {
  int code = 0;
  while (s->n_pending && !code) {
    pst_schema_pending p = s->pending[--s->n_pending];
    code = resolve(s, &p, err);
  }
  return code;
}
