/* Which models a search may use, as optimize and turn read it from their options. */
#ifndef PST_CLI_MODEL_LIST_H
#define PST_CLI_MODEL_LIST_H

#include <penstock/models.h>
#include <penstock/optimizer.h>

#include "cli/cli.h"

enum { PST_CLI_MAX_MODELS = 16 };

typedef struct pst_cli_model_list {
  pst_models_file files[PST_CLI_MAX_MODELS];
  char *names[PST_CLI_MAX_MODELS];
  size_t n_files; /* of all, those that make vectors included */
  pst_optimizer_model models[PST_CLI_MAX_MODELS], encoders[PST_CLI_MAX_MODELS];
  size_t n, n_encoders;
} pst_cli_model_list;

/* Those of --model, else all that were pulled: the catalogue's in its order, then the others. Those that make vectors are told apart from those that generate. */
int pst_cli_model_list_read(const pst_cli_args *a, const char *home, pst_cli_model_list *list, pst_error *err);
void pst_cli_model_list_done(pst_cli_model_list *list); /* fine on a zeroed struct */

#endif
