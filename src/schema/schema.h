/* The inside of a schema: documents, resources, anchors, and the map from JSON to nodes that references are resolved by.
 *
 * parse.c makes nodes of JSON and notes references; refs.c resolves them, which may make more nodes and load more documents; validate.c reads the finished tree. */
#ifndef PST_SCHEMA_SCHEMA_H
#define PST_SCHEMA_SCHEMA_H

#include <penstock/schema.h>

/* A document or a part of one with an $id of its own. */
typedef struct pst_schema_resource {
  pst_str uri; /* absolute where the document says so, without a fragment */
  const pst_json *root;
  pst_schema_draft draft;
} pst_schema_resource;

typedef struct pst_schema_anchor {
  int resource;
  pst_str name;
  const pst_schema_node *node;
  bool dynamic;
} pst_schema_anchor;

/* A reference whose target is not known yet. */
typedef struct pst_schema_pending {
  pst_schema_node *node;
  pst_str uri; /* as written */
  bool dynamic;
} pst_schema_pending;

typedef struct pst_schema_place { /* of one JSON value: its node */
  const pst_json *json;
  pst_schema_node *node;
} pst_schema_place;

struct pst_schema {
  pst_arena *arena;
  pst_schema_node *root;
  pst_json_doc **docs;
  size_t n_docs, docs_capacity;
  pst_schema_resource *resources;
  size_t n_resources, resources_capacity;
  pst_schema_anchor *anchors;
  size_t n_anchors, anchors_capacity;
  pst_regex **regexes;
  size_t n_regexes, regexes_capacity;
  pst_schema_place *places; /* open addressing by address */
  size_t n_places, places_capacity;
  pst_schema_pending *pending;
  size_t n_pending, pending_capacity;
  const char *source;
};

/* A path as a chain on the stack, outermost last. */
typedef struct pst_schema_path {
  const struct pst_schema_path *up; /* NULL: the root */
  pst_str key;                      /* data NULL: an index */
  size_t index;
  int depth;
  bool raw; /* the key is a pointer already */
} pst_schema_path;
void pst_schema_path_write(const pst_schema_path *path, pst_buf *out); /* JSON pointer; "" for the root */

/* parse.c: the node of a value that lies under `resource`; made once for each value. */
int pst_schema_node_make(pst_schema *s, const pst_json *v, int resource, const pst_schema_path *path,
                         pst_schema_node **ret_node, pst_error *err);
pst_schema_node *pst_schema_node_find(const pst_schema *s, const pst_json *v);
/* Takes a document over (on success), and makes its nodes. uri: what it is called where it does not say so itself. */
int pst_schema_document_add(pst_schema *s, pst_json_doc *doc, pst_str uri, pst_schema_draft fallback,
                            pst_schema_node **ret_root, pst_error *err);
int pst_schema_fail(const pst_schema *s, int code, const pst_schema_path *path, pst_error *err, const char *format, ...)
    PST_PRINTF(5, 6);

/* refs.c: resolves all that is pending. */
int pst_schema_refs_resolve(pst_schema *s, pst_error *err);
const pst_schema_anchor *pst_schema_anchor_find(const pst_schema *s, int resource, pst_str name);

/* uri.c: RFC 3986, section 5.2. The fragment is left out; ret_fragment is what stood behind '#', percent-decoded (data NULL: none). */
int pst_schema_uri_resolve(pst_arena *arena, pst_str base, pst_str reference, pst_str *ret_uri, pst_str *ret_fragment);

/* pattern.c: an ECMA-262 pattern in the spelling of base's regular expressions. */
int pst_schema_pattern_translate(pst_str pattern, pst_buf *out);

#endif
