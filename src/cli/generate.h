/* Generating on the command line: shared by run and chat. */
#ifndef PST_CLI_GENERATE_H
#define PST_CLI_GENERATE_H

#include <signal.h>

#include "cli/adapter_path.h"
#include "cli/model_path.h"

#define PST_CLI_GENERATE_OPTIONS                                                                                       \
  {"max-tokens", 'n', PST_CLI_INT, "N", "256", 1, 1 << 20, false, "most tokens of an answer"},                         \
      {"temperature", 0, PST_CLI_NUMBER, "X", "0", 0, 100, false, "0: always the likeliest token"},                    \
      {"top-k", 0, PST_CLI_INT, "N", "0", 0, 1 << 20, false, "sample from the N likeliest (0: all)"},                  \
      {"top-p", 0, PST_CLI_NUMBER, "X", "1", 1e-6, 1, false, "sample from the likeliest that make up X"},              \
      {"min-p", 0, PST_CLI_NUMBER, "X", "0", 0, 0.999, false, "leave out what is below X of the likeliest"},           \
      {"repeat-penalty", 0, PST_CLI_NUMBER, "X", "1", 0.01, 10, false, "above 1: repeat less"},                        \
      {"seed", 0, PST_CLI_INT, "N", "0", 0, 9007199254740992.0, false, "of the draws"},                                \
      {"stop", 0, PST_CLI_TEXT, "TEXT", NULL, 0, 0, true, "end the answer before TEXT"},                               \
      {"choice", 0, PST_CLI_TEXT, "TEXT", NULL, 0, 0, true, "the answer is one of these"},                             \
      {"lookup", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false, "guess ahead from the prompt (same answer, often faster)"}, \
      {"draft", 0, PST_CLI_TEXT, "MODEL", NULL, 0, 0, false, "a smaller model of the same vocabulary guesses ahead"},  \
      PST_CLI_ADAPTER, PST_CLI_THREADS

int pst_cli_engine_open(const pst_cli_args *a, pst_engine_model *model, pst_engine **ret_engine, pst_error *err);
typedef struct pst_cli_generating {
  bool print;                               /* text goes to stdout as it comes */
  const volatile sig_atomic_t *interrupted; /* not 0: the answer ends with what there is; NULL: nobody interrupts */
  const char *const *stops;                 /* beside those of the options */
  size_t n_stops;
  pst_engine_adapter *adapter; /* NULL: the base */
} pst_cli_generating;
/* Blocks until the answer is whole. Pointers in *ret_last are void. */
int pst_cli_generate(const pst_cli_args *a, pst_engine *engine, const pst_engine_tokens *prompt,
                     const pst_cli_generating *how, pst_buf *answer, pst_engine_event *ret_last, pst_error *err);
void pst_cli_print_answer(const pst_buf *answer, const pst_engine_event *last);

#endif
