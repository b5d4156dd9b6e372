/* A model in float with an adapter merged into it, and a net to go over texts with. */
#ifndef PST_TUNE_WHOLE_H
#define PST_TUNE_WHOLE_H

#include "tune/net.h"

typedef struct pst_tune_whole {
  pst_tune_model model; /* memory NULL: there is none */
  pst_tune_lora none;   /* an adapter without targets */
  pst_tune_team *team;  /* with scratch for rounding too (feedback.h) */
  pst_tune_net_f32 *net;
} pst_tune_whole;

/* adapter: a file, or NULL. Errors: those of opening both; PST_E_UNSUPPORTED (architecture), PST_E_BAD_INPUT (the adapter does not fit), PST_E_NOMEM. */
int pst_tune_load_float(const char *path, const char *adapter, int n_threads, pst_tune_model *ret_model,
                        pst_error *err);
/* The same, ready for texts of up to max_tokens tokens at once. n_threads 0: pst_cpu_count(). *whole starts as {0} and is done whatever comes. */
int pst_tune_whole_open(const char *path, const char *adapter, int n_threads, size_t max_tokens, pst_tune_whole *whole,
                        pst_error *err);
void pst_tune_whole_done(pst_tune_whole *whole);

#endif
