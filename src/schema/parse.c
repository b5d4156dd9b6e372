/* From JSON to nodes: one table row for each keyword says in which drafts it is known, what its value must be, and where it goes.
 *
 * A node is made once for each JSON value that stands where a schema may stand, or that a reference points at. References are only noted here. */
#include "schema/schema.h"

#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

enum { D4 = 1 << PST_SCHEMA_DRAFT_4, D6 = 1 << PST_SCHEMA_DRAFT_6, D7 = 1 << PST_SCHEMA_DRAFT_7 };
enum { D2020 = 1 << PST_SCHEMA_DRAFT_2020_12, SINCE7 = D7 | D2020, SINCE6 = D6 | SINCE7, ALL = D4 | SINCE6 };

/* ---- places and failures ---- */

void pst_schema_path_write(const pst_schema_path *path, pst_buf *out) {
  if (!path) return;
  pst_schema_path_write(path->up, out);
  pst_buf_putc(out, '/');
  if (!path->key.data) {
    pst_buf_printf(out, "%zu", path->index);
    return;
  }
  for (size_t i = 0; i < path->key.n; i++) {
    char c = path->key.data[i];
    if (!path->raw && (c == '~' || c == '/'))
      pst_buf_puts(out, c == '~' ? "~0" : "~1");
    else
      pst_buf_putc(out, c);
  }
}

int pst_schema_fail(const pst_schema *s, int code, const pst_schema_path *path, pst_error *err, const char *format,
                    ...) {
  char message[512], place[256];
  pst_buf pointer = PST_BUF_INIT;
  va_list args;
  va_start(args, format);
  (void)vsnprintf(message, sizeof message, format, args);
  va_end(args);
  pst_schema_path_write(path, &pointer);
  (void)snprintf(place, sizeof place, "%.120s#%.130s", s->source, pst_buf_text(&pointer));
  pst_buf_done(&pointer);
  return pst_error_set(err, code, place, "%s", message);
}

static pst_schema_path under(const pst_schema_path *up, pst_str key, size_t index) {
  return (pst_schema_path){up, key, index, up ? up->depth + 1 : 1, false};
}

/* ---- nodes by value ---- */

static size_t slot_of(const pst_schema_place *places, size_t capacity, const pst_json *v) {
  uintptr_t address = (uintptr_t)v;
  size_t at = (size_t)pst_hash64(&address, sizeof address, 0) & (capacity - 1);
  while (places[at].json && places[at].json != v) at = (at + 1) & (capacity - 1);
  return at;
}

pst_schema_node *pst_schema_node_find(const pst_schema *s, const pst_json *v) {
  return s->places_capacity ? s->places[slot_of(s->places, s->places_capacity, v)].node : NULL;
}

static int remember(pst_schema *s, const pst_json *v, pst_schema_node *node) {
  if (s->n_places * 2 >= s->places_capacity) {
    size_t capacity = s->places_capacity ? s->places_capacity * 2 : 64;
    pst_schema_place *bigger = pst_calloc(capacity, sizeof *bigger);
    if (!bigger) return PST_E_NOMEM;
    for (size_t i = 0; i < s->places_capacity; i++)
      if (s->places[i].json) bigger[slot_of(bigger, capacity, s->places[i].json)] = s->places[i];
    pst_free(s->places);
    s->places = bigger;
    s->places_capacity = capacity;
  }
  s->places[slot_of(s->places, s->places_capacity, v)] = (pst_schema_place){v, node};
  s->n_places++;
  return 0;
}

/* ---- one keyword ---- */

typedef struct reader {
  pst_schema *s;
  pst_schema_node *node;
  const pst_json *object; /* the whole schema */
  pst_schema_draft draft;
  const pst_schema_path *path; /* of the keyword's value */
  pst_error *err;
} reader;

static int malformed(const reader *r, const char *what) {
  return pst_schema_fail(r->s, PST_E_BAD_INPUT, r->path, r->err, "%s must be %s", r->path->key.data, what);
}

static int no_memory(const reader *r) {
  return pst_schema_fail(r->s, PST_E_NOMEM, r->path, r->err, "no memory for the schema");
}

static int make_child(const reader *r, const pst_json *v, pst_str key, size_t index, const pst_schema_node **ret_node) {
  pst_schema_path path = under(r->path, key, index);
  pst_schema_node *node = NULL;
  int code = pst_schema_node_make(r->s, v, r->node->resource, &path, &node, r->err);
  if (!code) *ret_node = node;
  return code;
}

static int read_node(reader *r, const pst_json *v, const pst_schema_node **ret_node) {
  pst_schema_node *node = NULL;
  int code = pst_schema_node_make(r->s, v, r->node->resource, r->path, &node, r->err);
  if (!code) *ret_node = node;
  return code;
}

static int read_nodes(reader *r, const pst_json *v, pst_schema_nodes *ret_nodes) {
  size_t n = pst_json_size(v), i = 0;
  if (pst_json_typeof(v) != PST_JSON_ARRAY) return malformed(r, "a list of schemas");
  const pst_schema_node **nodes = pst_arena_calloc(r->s->arena, n + 1, sizeof *nodes);
  if (!nodes) return no_memory(r);
  for (pst_json_iter it = pst_json_iterate(v); pst_json_next(&it); i++) {
    int code = make_child(r, it.value, (pst_str){NULL, 0}, i, &nodes[i]);
    if (code) return code;
  }
  *ret_nodes = (pst_schema_nodes){nodes, n};
  return 0;
}

static int read_count(reader *r, const pst_json *v, int64_t *ret_count) {
  int64_t count = pst_json_int(v, -1);
  if (count < 0) return malformed(r, "a whole number, 0 or more");
  *ret_count = count;
  return 0;
}

static int read_number(reader *r, const pst_json *v, const pst_json **ret_number) {
  if (pst_json_typeof(v) != PST_JSON_NUMBER) return malformed(r, "a number");
  *ret_number = v;
  return 0;
}

static int read_strings(reader *r, const pst_json *v, const pst_str **ret_strings, size_t *ret_n) {
  size_t n = pst_json_size(v), i = 0;
  if (pst_json_typeof(v) != PST_JSON_ARRAY) return malformed(r, "a list of strings");
  pst_str *strings = pst_arena_calloc(r->s->arena, n + 1, sizeof *strings);
  if (!strings) return no_memory(r);
  for (pst_json_iter it = pst_json_iterate(v); pst_json_next(&it);) {
    if (pst_json_typeof(it.value) != PST_JSON_STRING) return malformed(r, "a list of strings");
    strings[i++] = pst_json_str(it.value);
  }
  *ret_strings = strings;
  *ret_n = n;
  return 0;
}

static int read_multiple_of(reader *r, const pst_json *v) {
  if (!(pst_json_double(v, 0) > 0)) return malformed(r, "a number above 0");
  r->node->multiple_of = v;
  return 0;
}

static unsigned type_bit(pst_str name) {
  static const struct {
    const char *name;
    unsigned bit;
  } types[] = {{"null", PST_SCHEMA_NULL},     {"boolean", PST_SCHEMA_BOOLEAN}, {"integer", PST_SCHEMA_INTEGER},
               {"number", PST_SCHEMA_NUMBER}, {"string", PST_SCHEMA_STRING},   {"array", PST_SCHEMA_ARRAY},
               {"object", PST_SCHEMA_OBJECT}};
  for (size_t i = 0; i < PST_ARRAY_LEN(types); i++)
    if (pst_str_is(name, types[i].name)) return types[i].bit;
  return 0;
}

static int read_type(reader *r, const pst_json *v) {
  unsigned types = 0;
  static const char accepted[] =
      "\"null\", \"boolean\", \"integer\", \"number\", \"string\", \"array\", \"object\", or a list of these";
  if (pst_json_typeof(v) == PST_JSON_STRING) types = type_bit(pst_json_str(v));
  if (pst_json_typeof(v) == PST_JSON_ARRAY)
    for (pst_json_iter it = pst_json_iterate(v); pst_json_next(&it);) {
      unsigned bit = type_bit(pst_json_str(it.value));
      if (!bit) return malformed(r, accepted);
      types |= bit;
    }
  if (!types) return malformed(r, accepted);
  r->node->types = types;
  return 0;
}

static int read_enum(reader *r, const pst_json *v) {
  if (pst_json_typeof(v) != PST_JSON_ARRAY) return malformed(r, "a list of values");
  r->node->enumerated = v;
  return 0;
}

static int read_const(reader *r, const pst_json *v) {
  r->node->constant = v;
  return 0;
}

/* Draft 4: booleans that sharpen minimum and maximum. */
static int read_exclusive(reader *r, const pst_json *v, const pst_json **limit, const pst_json **exclusive) {
  if (r->draft != PST_SCHEMA_DRAFT_4 || pst_json_typeof(v) == PST_JSON_NUMBER) return read_number(r, v, exclusive);
  if (pst_json_typeof(v) != PST_JSON_BOOL) return malformed(r, "true or false in draft 4");
  if (!pst_json_bool(v, false)) return 0;
  const char *name = limit == &r->node->minimum ? "minimum" : "maximum";
  const pst_json *number = pst_json_get(r->object, name);
  if (pst_json_typeof(number) == PST_JSON_NUMBER) *exclusive = number;
  return 0;
}

static int read_exclusive_minimum(reader *r, const pst_json *v) {
  return read_exclusive(r, v, &r->node->minimum, &r->node->exclusive_minimum);
}

static int read_exclusive_maximum(reader *r, const pst_json *v) {
  return read_exclusive(r, v, &r->node->maximum, &r->node->exclusive_maximum);
}

static int make_regex(reader *r, pst_str pattern, const pst_regex **ret_regex) {
  pst_buf translated = PST_BUF_INIT;
  pst_regex *regex = NULL;
  pst_error why = PST_ERROR_INIT;
  int code = pst_schema_pattern_translate(pattern, &translated);
  if (!code) code = pst_regex_create(pst_buf_str(&translated), PST_REGEX_ASCII, &regex, &why);
  pst_buf_done(&translated);
  if (code == PST_E_BAD_INPUT || code == PST_E_LIMIT)
    return pst_schema_fail(r->s, code, r->path, r->err, "%s", why.message);
  if (code || pst_array_reserve((void **)&r->s->regexes, &r->s->regexes_capacity, r->s->n_regexes + 1, sizeof regex)) {
    pst_regex_free(regex);
    return no_memory(r);
  }
  r->s->regexes[r->s->n_regexes++] = regex;
  *ret_regex = regex;
  return 0;
}

static int read_pattern(reader *r, const pst_json *v) {
  if (pst_json_typeof(v) != PST_JSON_STRING) return malformed(r, "a string");
  r->node->pattern = pst_json_str(v);
  return make_regex(r, r->node->pattern, &r->node->pattern_regex);
}

static int read_unique(reader *r, const pst_json *v) {
  if (pst_json_typeof(v) != PST_JSON_BOOL) return malformed(r, "true or false");
  r->node->unique_items = pst_json_bool(v, false);
  return 0;
}

/* Before 2020-12 a list here was what prefixItems is now, and additionalItems what items is now. */
static int read_items(reader *r, const pst_json *v) {
  if (pst_json_typeof(v) != PST_JSON_ARRAY) return read_node(r, v, &r->node->items);
  if (r->draft == PST_SCHEMA_DRAFT_2020_12)
    return malformed(r, "a schema; a list of schemas is called prefixItems in draft 2020-12");
  return read_nodes(r, v, &r->node->prefix_items);
}

static int read_additional_items(reader *r, const pst_json *v) {
  const pst_schema_node *rest = NULL;
  int code = read_node(r, v, &rest);
  if (!code && pst_json_typeof(pst_json_get(r->object, "items")) == PST_JSON_ARRAY) r->node->items = rest;
  return code;
}

static int by_name(const void *a, const void *b) {
  return pst_str_compare(((const pst_schema_property *)a)->name, ((const pst_schema_property *)b)->name);
}

static int read_members(reader *r, const pst_json *v, pst_schema_property **ret_members) {
  size_t i = 0;
  if (pst_json_typeof(v) != PST_JSON_OBJECT) return malformed(r, "an object of schemas");
  pst_schema_property *members = pst_arena_calloc(r->s->arena, pst_json_size(v) + 1, sizeof *members);
  if (!members) return no_memory(r);
  for (pst_json_iter it = pst_json_iterate(v); pst_json_next(&it); i++) {
    members[i].name = it.key;
    int code = make_child(r, it.value, it.key, 0, &members[i].node);
    if (code) return code;
  }
  *ret_members = members;
  return 0;
}

static int read_properties(reader *r, const pst_json *v) {
  pst_schema_property *members = NULL;
  size_t n = pst_json_size(v);
  int code = read_members(r, v, &members);
  if (code) return code;
  pst_schema_property *sorted = pst_arena_calloc(r->s->arena, n + 1, sizeof *sorted);
  if (!sorted) return no_memory(r);
  memcpy(sorted, members, n * sizeof *members);
  qsort(sorted, n, sizeof *sorted, by_name);
  r->node->properties_in_order = members;
  r->node->properties = sorted;
  r->node->n_properties = n;
  return 0;
}

/* $defs: nodes that only references reach. */
static int read_definitions(reader *r, const pst_json *v) {
  pst_schema_property *unused = NULL;
  return read_members(r, v, &unused);
}

static int read_patterns(reader *r, const pst_json *v) {
  pst_schema_property *members = NULL;
  size_t n = pst_json_size(v);
  int code = read_members(r, v, &members);
  if (code) return code;
  pst_schema_pattern *patterns = pst_arena_calloc(r->s->arena, n + 1, sizeof *patterns);
  if (!patterns) return no_memory(r);
  for (size_t i = 0; i < n; i++) {
    patterns[i].pattern = members[i].name;
    patterns[i].node = members[i].node;
    if ((code = make_regex(r, members[i].name, &patterns[i].regex))) return code;
  }
  r->node->patterns = patterns;
  r->node->n_patterns = n;
  return 0;
}

static int read_required(reader *r, const pst_json *v) {
  return read_strings(r, v, &r->node->required, &r->node->n_required);
}

/* dependencies, dependentRequired and dependentSchemas add up. */
static int read_dependencies(reader *r, const pst_json *v) {
  pst_schema_node *node = r->node;
  size_t n = node->n_dependencies;
  if (pst_json_typeof(v) != PST_JSON_OBJECT) return malformed(r, "an object");
  pst_schema_dependency *all = pst_arena_calloc(r->s->arena, n + pst_json_size(v) + 1, sizeof *all);
  if (!all) return no_memory(r);
  if (n) memcpy(all, node->dependencies, n * sizeof *all);
  bool names = pst_str_is(r->path->key, "dependentRequired"), schemas = pst_str_is(r->path->key, "dependentSchemas");
  for (pst_json_iter it = pst_json_iterate(v); pst_json_next(&it); n++) {
    all[n].name = it.key;
    bool list = names || (!schemas && pst_json_typeof(it.value) == PST_JSON_ARRAY);
    int code = list ? read_strings(r, it.value, &all[n].required, &all[n].n_required)
                    : make_child(r, it.value, it.key, 0, &all[n].node);
    if (code) return code;
  }
  node->dependencies = all;
  node->n_dependencies = n;
  return 0;
}

static int note_reference(reader *r, const pst_json *v, bool dynamic) {
  pst_schema *s = r->s;
  if (pst_json_typeof(v) != PST_JSON_STRING) return malformed(r, "a string");
  if (pst_array_reserve((void **)&s->pending, &s->pending_capacity, s->n_pending + 1, sizeof *s->pending))
    return no_memory(r);
  s->pending[s->n_pending++] = (pst_schema_pending){r->node, pst_json_str(v), dynamic};
  return 0;
}

static int read_ref(reader *r, const pst_json *v) { return note_reference(r, v, false); }
static int read_dynamic_ref(reader *r, const pst_json *v) { return note_reference(r, v, true); }

static int note_anchor(reader *r, pst_str name, bool dynamic) {
  pst_schema *s = r->s;
  if (pst_array_reserve((void **)&s->anchors, &s->anchors_capacity, s->n_anchors + 1, sizeof *s->anchors))
    return no_memory(r);
  const pst_schema_anchor *twin = pst_schema_anchor_find(s, r->node->resource, name);
  if (twin && twin->node != r->node)
    return pst_schema_fail(s, PST_E_BAD_INPUT, r->path, r->err, "the anchor \"%.*s\" stands twice in one schema",
                           (int)PST_MIN(name.n, (size_t)80), name.data);
  s->anchors[s->n_anchors++] = (pst_schema_anchor){r->node->resource, name, r->node, dynamic};
  return 0;
}

static int read_anchor(reader *r, const pst_json *v) {
  if (pst_json_typeof(v) != PST_JSON_STRING || pst_json_str(v).n == 0) return malformed(r, "a name");
  return note_anchor(r, pst_json_str(v), pst_str_is(r->path->key, "$dynamicAnchor"));
}

/* ---- the table ---- */

typedef enum kind { NODE, NODES, COUNT, NUMBER, OWN } kind;

typedef struct keyword {
  const char *name;
  unsigned drafts;
  kind kind;
  size_t offset; /* in the node; of all kinds but OWN */
  int (*read)(reader *r, const pst_json *v);
} keyword;

#define AT(field) offsetof(pst_schema_node, field), NULL
#define BY(function) 0, function
static const keyword keywords[] = {
    {"$anchor", D2020, OWN, BY(read_anchor)},
    {"$defs", ALL, OWN, BY(read_definitions)},
    {"$dynamicAnchor", D2020, OWN, BY(read_anchor)},
    {"$dynamicRef", D2020, OWN, BY(read_dynamic_ref)},
    {"$ref", ALL, OWN, BY(read_ref)},
    {"additionalItems", ALL & ~D2020, OWN, BY(read_additional_items)},
    {"additionalProperties", ALL, NODE, AT(additional)},
    {"allOf", ALL, NODES, AT(all_of)},
    {"anyOf", ALL, NODES, AT(any_of)},
    {"const", SINCE6, OWN, BY(read_const)},
    {"contains", SINCE6, NODE, AT(contains)},
    {"definitions", ALL, OWN, BY(read_definitions)},
    {"dependencies", ALL, OWN, BY(read_dependencies)},
    {"dependentRequired", D2020, OWN, BY(read_dependencies)},
    {"dependentSchemas", D2020, OWN, BY(read_dependencies)},
    {"else", SINCE7, NODE, AT(else_node)},
    {"enum", ALL, OWN, BY(read_enum)},
    {"exclusiveMaximum", ALL, OWN, BY(read_exclusive_maximum)},
    {"exclusiveMinimum", ALL, OWN, BY(read_exclusive_minimum)},
    {"if", SINCE7, NODE, AT(if_node)},
    {"items", ALL, OWN, BY(read_items)},
    {"maxContains", D2020, COUNT, AT(max_contains)},
    {"maxItems", ALL, COUNT, AT(max_items)},
    {"maxLength", ALL, COUNT, AT(max_length)},
    {"maxProperties", ALL, COUNT, AT(max_properties)},
    {"maximum", ALL, NUMBER, AT(maximum)},
    {"minContains", D2020, COUNT, AT(min_contains)},
    {"minItems", ALL, COUNT, AT(min_items)},
    {"minLength", ALL, COUNT, AT(min_length)},
    {"minProperties", ALL, COUNT, AT(min_properties)},
    {"minimum", ALL, NUMBER, AT(minimum)},
    {"multipleOf", ALL, OWN, BY(read_multiple_of)},
    {"not", ALL, NODE, AT(not_node)},
    {"oneOf", ALL, NODES, AT(one_of)},
    {"pattern", ALL, OWN, BY(read_pattern)},
    {"patternProperties", ALL, OWN, BY(read_patterns)},
    {"prefixItems", D2020, NODES, AT(prefix_items)},
    {"properties", ALL, OWN, BY(read_properties)},
    {"propertyNames", SINCE6, NODE, AT(property_names)},
    {"required", ALL, OWN, BY(read_required)},
    {"then", SINCE7, NODE, AT(then_node)},
    {"type", ALL, OWN, BY(read_type)},
    {"unevaluatedItems", D2020, NODE, AT(unevaluated_items)},
    {"unevaluatedProperties", D2020, NODE, AT(unevaluated_properties)},
    {"uniqueItems", ALL, OWN, BY(read_unique)},
};

static const keyword *find_keyword(pst_str name, pst_schema_draft draft) {
  size_t low = 0, high = PST_ARRAY_LEN(keywords);
  while (low < high) {
    size_t middle = (low + high) / 2;
    int order = pst_str_compare(pst_str_from(keywords[middle].name), name);
    if (order == 0) return keywords[middle].drafts >> draft & 1 ? &keywords[middle] : NULL;
    if (order < 0)
      low = middle + 1;
    else
      high = middle;
  }
  return NULL;
}

static int read_keyword(reader *r, const keyword *k, const pst_json *v) {
  char *field = (char *)r->node + k->offset;
  switch (k->kind) {
  case NODE: return read_node(r, v, (const pst_schema_node **)(void *)field);
  case NODES: return read_nodes(r, v, (pst_schema_nodes *)(void *)field);
  case COUNT: return read_count(r, v, (int64_t *)(void *)field);
  case NUMBER: return read_number(r, v, (const pst_json **)(void *)field);
  default: return k->read(r, v);
  }
}

/* ---- identity: $schema and $id ---- */

static int draft_of(const pst_schema *s, const pst_json *v, const pst_schema_path *path, pst_schema_draft *draft,
                    pst_error *err) {
  static const struct {
    const char *uri;
    pst_schema_draft draft;
  } known[] = {{"json-schema.org/draft-04/schema", PST_SCHEMA_DRAFT_4},
               {"json-schema.org/draft-06/schema", PST_SCHEMA_DRAFT_6},
               {"json-schema.org/draft-07/schema", PST_SCHEMA_DRAFT_7},
               {"json-schema.org/draft/2020-12/schema", PST_SCHEMA_DRAFT_2020_12}};
  const pst_json *named = pst_json_get(v, "$schema");
  if (!named) return 0;
  pst_str uri = pst_json_str(named), bare = uri;
  size_t start = pst_str_find(uri, PST_STR("://"), 0);
  if (start != SIZE_MAX) bare = (pst_str){uri.data + start + 3, uri.n - start - 3};
  if (bare.n && bare.data[bare.n - 1] == '#') bare.n--;
  for (size_t i = 0; i < PST_ARRAY_LEN(known); i++)
    if (pst_str_is(bare, known[i].uri)) {
      *draft = known[i].draft;
      return 0;
    }
  return pst_schema_fail(s, PST_E_UNSUPPORTED, path, err,
                         "the dialect \"%.*s\" is not known here; drafts 4, 6, 7 and 2020-12 are",
                         (int)PST_MIN(uri.n, (size_t)120), uri.data);
}

static int add_resource(pst_schema *s, pst_str uri, const pst_json *root, pst_schema_draft draft, int *ret_resource) {
  if (pst_array_reserve((void **)&s->resources, &s->resources_capacity, s->n_resources + 1, sizeof *s->resources))
    return PST_E_NOMEM;
  s->resources[s->n_resources] = (pst_schema_resource){uri, root, draft};
  *ret_resource = (int)s->n_resources++;
  return 0;
}

/* An $id makes a resource of its own; before 2020-12 its fragment is an anchor. */
static int read_identity(reader *r, pst_error *err) {
  bool old = r->draft != PST_SCHEMA_DRAFT_2020_12;
  const pst_json *id = pst_json_get(r->object, r->draft == PST_SCHEMA_DRAFT_4 ? "id" : "$id");
  pst_str text = pst_json_str(id), uri, fragment;
  if (pst_json_typeof(id) != PST_JSON_STRING || (old && pst_json_get(r->object, "$ref"))) return 0;
  int code = pst_schema_uri_resolve(r->s->arena, r->s->resources[r->node->resource].uri, text, &uri, &fragment);
  pst_schema_resource *own = &r->s->resources[r->node->resource];
  if (!code && own->root == r->object)
    own->uri = uri; /* the document says what it is called */
  else if (!code && text.n && text.data[0] != '#')
    code = add_resource(r->s, uri, r->object, r->draft, &r->node->resource);
  if (code) return pst_schema_fail(r->s, PST_E_NOMEM, r->path, err, "no memory for the schema");
  return old && fragment.n && fragment.data[0] != '/' ? note_anchor(r, fragment, false) : 0;
}

/* ---- one schema ---- */

static int read_all(reader *r, const pst_schema_path *path) {
  /* Before 2020-12 nothing beside a $ref counts, though definitions may still be referred to. */
  bool only_ref =
      r->draft != PST_SCHEMA_DRAFT_2020_12 && pst_json_typeof(pst_json_get(r->object, "$ref")) == PST_JSON_STRING;
  for (pst_json_iter it = pst_json_iterate(r->object); pst_json_next(&it);) {
    const keyword *k = find_keyword(it.key, r->draft);
    if (!k || (only_ref && k->read != read_ref && k->read != read_definitions)) continue;
    pst_schema_path here = under(path, it.key, 0);
    r->path = &here;
    int code = read_keyword(r, k, it.value);
    r->path = path;
    if (code) return code;
  }
  return 0;
}

static pst_schema_node *new_node(pst_schema *s, int resource, const pst_schema_path *path) {
  pst_buf text = PST_BUF_INIT;
  pst_schema_node *node = pst_arena_calloc(s->arena, 1, sizeof *node);
  pst_buf_putc(&text, '#');
  pst_schema_path_write(path, &text);
  char *kept = node && !pst_buf_status(&text) ? pst_arena_strndup(s->arena, text.data, text.n) : NULL;
  pst_buf_done(&text);
  if (!kept) return NULL;
  node->path = kept;
  node->resource = resource;
  node->max_length = node->max_items = node->max_properties = node->max_contains = -1;
  node->min_contains = 1;
  return node;
}

int pst_schema_node_make(pst_schema *s, const pst_json *v, int resource, const pst_schema_path *path,
                         pst_schema_node **ret_node, pst_error *err) {
  pst_json_type type = pst_json_typeof(v);
  pst_schema_node *node = pst_schema_node_find(s, v);
  if (node) {
    *ret_node = node;
    return 0;
  }
  if (type != PST_JSON_OBJECT && type != PST_JSON_BOOL)
    return pst_schema_fail(s, PST_E_BAD_INPUT, path, err, "a schema is an object, true or false");
  node = new_node(s, resource, path);
  if (!node || remember(s, v, node)) return pst_schema_fail(s, PST_E_NOMEM, path, err, "no memory for the schema");
  node->never = type == PST_JSON_BOOL && !pst_json_bool(v, true);
  reader r = {s, node, v, s->resources[resource].draft, path, err};
  int code = draft_of(s, v, path, &r.draft, err);
  if (!code) code = read_identity(&r, err);
  if (!code) code = read_all(&r, path);
  if (!code) *ret_node = node;
  return code;
}

/* ---- documents ---- */

int pst_schema_document_add(pst_schema *s, pst_json_doc *doc, pst_str uri, pst_schema_draft fallback,
                            pst_schema_node **ret_root, pst_error *err) {
  const pst_json *root = pst_json_root(doc);
  pst_schema_draft draft = fallback;
  int resource = 0, code = draft_of(s, root, NULL, &draft, err);
  if (code) return code;
  if (add_resource(s, uri, root, draft, &resource) ||
      pst_array_reserve((void **)&s->docs, &s->docs_capacity, s->n_docs + 1, sizeof *s->docs))
    return pst_schema_fail(s, PST_E_NOMEM, NULL, err, "no memory for the schema");
  code = pst_schema_node_make(s, root, resource, NULL, ret_root, err);
  if (!code) s->docs[s->n_docs++] = doc;
  return code;
}

static int create(pst_json_doc *doc, const char *source, pst_schema_draft fallback, pst_schema **ret_schema,
                  pst_error *err) {
  pst_schema *s = pst_calloc(1, sizeof *s);
  if (s) s->arena = pst_arena_create();
  if (!s || !s->arena || !(s->source = pst_arena_strndup(s->arena, source, strlen(source)))) {
    pst_json_free(doc);
    pst_schema_free(s);
    return pst_error_set(err, PST_E_NOMEM, source, "no memory for the schema");
  }
  int code = pst_schema_document_add(s, doc, (pst_str){"", 0}, fallback, &s->root, err);
  if (code)
    pst_json_free(doc);
  else
    code = pst_schema_refs_resolve(s, err);
  if (code)
    pst_schema_free(s);
  else
    *ret_schema = s;
  return code;
}

int pst_schema_parse(pst_str text, const char *source, pst_schema_draft fallback, pst_schema **ret_schema,
                     pst_error *err) {
  pst_json_doc *doc = NULL;
  int code = pst_json_parse(text.data, text.n, source ? source : "schema", &doc, err);
  return code ? code : create(doc, source ? source : "schema", fallback, ret_schema, err);
}

int pst_schema_create(const pst_json *value, const char *source, pst_schema_draft fallback, pst_schema **ret_schema,
                      pst_error *err) {
  pst_buf text = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&text, false);
  pst_json_put_value(&w, value);
  int code = pst_buf_status(&text);
  if (code)
    pst_error_set(err, code, source, "no memory for the schema");
  else
    code = pst_schema_parse(pst_buf_str(&text), source, fallback, ret_schema, err);
  pst_buf_done(&text);
  return code;
}

void pst_schema_free(pst_schema *s) {
  if (!s) return;
  for (size_t i = 0; i < s->n_regexes; i++) pst_regex_free(s->regexes[i]);
  for (size_t i = 0; i < s->n_docs; i++) pst_json_free(s->docs[i]);
  pst_arena_free(s->arena);
  pst_free(s->docs);
  pst_free(s->resources);
  pst_free(s->anchors);
  pst_free(s->regexes);
  pst_free(s->places);
  pst_free(s->pending);
  pst_free(s);
}

const pst_schema_node *pst_schema_root(const pst_schema *s) { return s->root; }
