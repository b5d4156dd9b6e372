/* Which fields of a workload's answers are copied from their inputs: told from the part examples, for what a plan makes of it is judged on the others. */
#include "evals/workload.h"

#include <string.h>

/* A field needs so many texts; of 200 one may not stand in its input, for people mistype. */
enum { FIELDS_MAX = 1000, TEXTS_LEAST = 5, ASTRAY_ONE_OF = 200 };

typedef struct field {
  pst_str name;
  uint32_t n, n_astray;
} field;

typedef struct finding {
  pst_arena *arena;
  pst_str input; /* of the item at hand */
  field *fields;
  size_t n;
} finding;

/* Fields beyond FIELDS_MAX are not counted: such names are data rather than fields. */
static int count(void *user, pst_str name, pst_str text, pst_str *ret_other) {
  finding *f = user;
  size_t i = 0;
  (void)ret_other;
  while (i < f->n && !pst_str_equal(f->fields[i].name, name)) i++;
  if (i == f->n) {
    if (f->n == FIELDS_MAX) return 0;
    char *copy = pst_arena_strndup(f->arena, name.data, name.n);
    if (!copy) return PST_E_NOMEM;
    f->fields[f->n++] = (field){.name = {copy, name.n}};
  }
  f->fields[i].n++;
  f->fields[i].n_astray += pst_str_find(f->input, text, 0) == SIZE_MAX;
  return 0;
}

int pst_evals_find_copied(pst_evals_workload *w, pst_error *err) {
  pst_evals_info *info = &w->info;
  pst_buf room = PST_BUF_INIT;
  finding f = {.arena = w->arena, .fields = pst_calloc(FIELDS_MAX, sizeof *f.fields)};
  int code = f.fields ? 0 : PST_E_NOMEM;
  for (size_t i = 0; i < info->n_items && info->grader == PST_EVALS_JSON && !code; i++) {
    if (info->items[i].part != PST_EVALS_EXAMPLES) continue;
    pst_buf_clear(&room);
    f.input = info->items[i].input;
    code = pst_gateway_copied_each(w->values[i], count, &f, &room);
  }
  pst_str *copied = code ? NULL : pst_arena_calloc(w->arena, f.n + 1, sizeof *copied);
  for (size_t i = 0; i < f.n && copied; i++)
    if (f.fields[i].n >= TEXTS_LEAST && f.fields[i].n_astray <= f.fields[i].n / ASTRAY_ONE_OF)
      copied[info->n_copied++] = f.fields[i].name;
  info->copied = copied;
  pst_free(f.fields);
  pst_buf_done(&room);
  return copied ? 0 : pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the workload");
}
