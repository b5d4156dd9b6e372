/* Private to wire: reading typed members of a JSON object, with the member's path in the error. */
#ifndef PST_WIRE_READER_H
#define PST_WIRE_READER_H

#include <penstock/wire.h>

typedef struct pst_wire_reader {
  const pst_json *object;
  char path[160]; /* of the object: "" or "messages[1].content[0]" */
  pst_error *err;
} pst_wire_reader;

/* A member; absent and null give NULL. */
const pst_json *pst_wire_get(const pst_wire_reader *r, const char *key);
/* Sets err with the member's path as place. `key` NULL: the object itself. Returns `code`. */
int pst_wire_fail(const pst_wire_reader *r, int code, const char *key, const char *format, ...) PST_PRINTF(4, 5);
int pst_wire_fail_type(const pst_wire_reader *r, const char *key, const char *expected, const pst_json *got);
/* A reader on element i of member `key`, or on the member itself with i < 0. */
pst_wire_reader pst_wire_reader_into(const pst_wire_reader *r, const char *key, int64_t i, const pst_json *value);

/* Absent: 0 and nothing is touched. ret_has may be NULL. */
int pst_wire_read_bool(const pst_wire_reader *r, const char *key, bool *ret_value);
int pst_wire_read_double(const pst_wire_reader *r, const char *key, double min, double max, bool *ret_has,
                         double *ret_value);
int pst_wire_read_int(const pst_wire_reader *r, const char *key, int64_t min, int64_t max, bool *ret_has,
                      int64_t *ret_value);
int pst_wire_read_str(const pst_wire_reader *r, const char *key, size_t max_bytes, pst_str *ret_value);
/* A type name for messages: "a string", "an array". */
const char *pst_wire_type_name(const pst_json *v);

/* JSON documents that views of a request point into. */
typedef struct pst_wire_docs {
  pst_json_doc *doc;
  struct pst_wire_docs *next; /* arena memory */
} pst_wire_docs;

/* Parses a whole request body, which must be an object; a syntax error says where in the message, and has no place: it is no field's. */
int pst_wire_parse_body(pst_wire_reader *r, pst_str body, pst_json_doc **ret_doc);

/* request.c: a member that is a string, strings, token ids, or lists of token ids; required. Arrays are the arena's. */
int pst_wire_read_prompts(const pst_wire_reader *r, const char *key, size_t max, pst_arena *arena,
                          const pst_wire_prompt **ret_prompts, size_t *ret_n);

/* messages.c */
int pst_wire_read_messages(const pst_wire_reader *r, pst_wire_request *request);
int pst_wire_read_tools(const pst_wire_reader *r, pst_wire_request *request);

#endif
