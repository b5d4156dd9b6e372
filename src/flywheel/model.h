/* A model of this machine, open by the name it has here. Private to flywheel. */
#ifndef PST_FLYWHEEL_MODEL_H
#define PST_FLYWHEEL_MODEL_H

#include <penstock/engine.h>
#include <penstock/models.h>
#include <penstock/store.h>

typedef struct pst_flywheel_model {
  pst_models_file file;
  pst_engine_model *model;
} pst_flywheel_model;

/* Errors: those of pst_models_resolve and of opening. {0} may be closed. */
static inline int pst_flywheel_model_open(pst_store *store, pst_str name, int threads, pst_flywheel_model *ret,
                                          pst_error *err) {
  const char *home = pst_store_home(store);
  char *text = pst_strndup(name.data, name.n);
  int code =
      text ? pst_models_resolve(home, text, &ret->file, err) : pst_error_set(err, PST_E_NOMEM, NULL, "no memory");
  char *packed = code ? NULL : pst_models_packed_dir(home);
  if (!code) code = pst_engine_model_open_kept(ret->file.path, packed, threads, &ret->model, err);
  pst_free(packed);
  pst_free(text);
  return code;
}

static inline void pst_flywheel_model_close(pst_flywheel_model *m) {
  pst_engine_model_unref(m->model);
  pst_models_file_done(&m->file);
}

#endif
