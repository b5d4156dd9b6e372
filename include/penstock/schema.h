/* Penstock schema: JSON Schema (drafts 2020-12, 7, 6 and 4), parsed once into a tree that validates values and that the engine's grammar compiles masks from.
 *
 * A schema is immutable and owns all that it refers to: any number of threads may use one. What this program does not know is refused by name (other dialects,
 * references to documents that are not here); keywords that no dialect defines are ignored, as the specification says. `format` and `content*` are annotations.
 * References are never fetched: only the document itself, and the metaschemas of drafts 7 and 2020-12, which ship with the program.
 *
 * Source: JSON Schema Core and Validation 2020-12 (draft-bhutton-json-schema-01, -validation-01); draft-handrews-json-schema-01 for draft 7. */
#ifndef PENSTOCK_SCHEMA_H
#define PENSTOCK_SCHEMA_H

#include <penstock/base.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum pst_schema_draft {
  PST_SCHEMA_DRAFT_4,
  PST_SCHEMA_DRAFT_6,
  PST_SCHEMA_DRAFT_7,
  PST_SCHEMA_DRAFT_2020_12
} pst_schema_draft;

enum { /* pst_schema_node.types */
       PST_SCHEMA_NULL = 1,
       PST_SCHEMA_BOOLEAN = 2,
       PST_SCHEMA_INTEGER = 4, /* of any size; 1.0 is one, but not in draft 4 */
       PST_SCHEMA_NUMBER = 8,
       PST_SCHEMA_STRING = 16,
       PST_SCHEMA_ARRAY = 32,
       PST_SCHEMA_OBJECT = 64
};

typedef struct pst_schema pst_schema;
typedef struct pst_schema_node pst_schema_node;

typedef struct pst_schema_property { /* a member that is named */
  pst_str name;
  const pst_schema_node *node;
} pst_schema_property;

typedef struct pst_schema_pattern { /* members whose names match */
  pst_str pattern;                  /* as written */
  const pst_regex *regex;
  const pst_schema_node *node;
} pst_schema_pattern;

typedef struct pst_schema_dependency { /* what a member's presence asks for */
  pst_str name;
  const pst_str *required;
  size_t n_required;
  const pst_schema_node *node; /* for the whole object; NULL: none */
} pst_schema_dependency;

typedef struct pst_schema_nodes {
  const pst_schema_node *const *at;
  size_t n;
} pst_schema_nodes;

/* One schema. Absent keywords are NULL, 0 or -1. A list form and a rest form of `items` are the same in all drafts here: `prefix_items`, then `items`. */
struct pst_schema_node {
  const char *path; /* where it stands in its document: "#/properties/a" */
  int resource;     /* which $id it lies under: the validator's dynamic scope */
  bool never;       /* the schema false */

  unsigned types;             /* 0: any */
  const pst_json *constant;   /* const */
  const pst_json *enumerated; /* enum: an array */

  const pst_json *minimum, *maximum, *exclusive_minimum, *exclusive_maximum, *multiple_of; /* numbers */

  int64_t min_length, max_length; /* code points; max -1: none */
  pst_str pattern;                /* as written; data NULL: none */
  const pst_regex *pattern_regex; /* searched, not anchored */

  pst_schema_nodes prefix_items;
  const pst_schema_node *items;    /* for the elements behind prefix_items */
  const pst_schema_node *contains; /* at least min_contains, at most max_contains (-1: any number) */
  int64_t min_contains, max_contains;
  int64_t min_items, max_items; /* max -1: none */
  bool unique_items;
  const pst_schema_node *unevaluated_items;

  const pst_schema_property *properties; /* ascending by name, bytewise */
  size_t n_properties;
  const pst_schema_property *properties_in_order; /* the same as written: the order a grammar writes them in */
  const pst_schema_pattern *patterns;
  size_t n_patterns;
  const pst_schema_node *additional; /* members that neither names nor patterns cover */
  const pst_schema_node *property_names;
  const pst_str *required;
  size_t n_required;
  int64_t min_properties, max_properties; /* max -1: none */
  const pst_schema_dependency *dependencies;
  size_t n_dependencies;
  const pst_schema_node *unevaluated_properties;

  const pst_schema_node *ref;         /* $ref */
  const pst_schema_node *dynamic_ref; /* $dynamicRef as it resolves without a dynamic scope */
  pst_str dynamic_name; /* the dynamic anchor that the scope may give another meaning; data NULL: none does */
  pst_schema_nodes all_of, any_of, one_of;
  const pst_schema_node *not_node, *if_node, *then_node, *else_node;
};

/* Parses a schema's text. `source` (NULL: "schema") begins the place of errors, "SOURCE#/properties/a/minimum". `fallback`: the draft of a schema that does not say
 * it by $schema. Errors: PST_E_BAD_INPUT (not JSON, a keyword's value malformed, a reference that leads nowhere), PST_E_UNSUPPORTED (a dialect or remote
 * document, by name), PST_E_LIMIT, PST_E_NOMEM. pst_schema_free. */
int pst_schema_parse(pst_str text, const char *source, pst_schema_draft fallback, pst_schema **ret_schema,
                     pst_error *err) PST_MUST_CHECK;
/* The same of a parsed value, which is copied: a request's response_format. */
int pst_schema_create(const pst_json *value, const char *source, pst_schema_draft fallback, pst_schema **ret_schema,
                      pst_error *err) PST_MUST_CHECK;
void pst_schema_free(pst_schema *schema); /* NULL is fine */
const pst_schema_node *pst_schema_root(const pst_schema *schema);

/* 0 when the value is valid. PST_E_BAD_INPUT: it is not; the place is "SOURCE#/path/to/value" (source NULL: "value"), the message says what was found and what is
 * accepted. PST_E_LIMIT: the schema refers to itself without end, or the work passed 20 million steps. Any thread. */
int pst_schema_validate(const pst_schema *schema, const pst_json *value, const char *source, pst_error *err);

#ifdef __cplusplus
}
#endif
#endif
