/* The command line: one table of commands, one row per option that feeds parsing, help and manual. */
#ifndef PST_CLI_CLI_H
#define PST_CLI_CLI_H

#include <penstock/base.h>

/* Exit codes: 0 yes or done, 1 no or failed, 2 bad input, 3 not enough data. */
enum { PST_CLI_OK = 0, PST_CLI_FAILED = 1, PST_CLI_BAD_INPUT = 2, PST_CLI_NO_DATA = 3 };

typedef enum pst_cli_kind { PST_CLI_FLAG, PST_CLI_TEXT, PST_CLI_INT, PST_CLI_NUMBER } pst_cli_kind;

typedef struct pst_cli_option {
  const char *name; /* "threads"; on the line --threads N or --threads=N */
  char letter;      /* 't', or 0 */
  pst_cli_kind kind;
  const char *value;    /* "N", shown in the help; NULL for flags */
  const char *fallback; /* used when the option is not given; NULL: none */
  double min, max;      /* of INT and NUMBER */
  bool many;            /* may be given several times */
  const char *help;
} pst_cli_option;

typedef struct pst_cli_command pst_cli_command;

/* A parsed line. */
typedef struct pst_cli_args {
  const pst_cli_command *command;
  const char *const *words; /* what is no option */
  int n_words;
  const char ***values; /* per option: its texts, in order */
  int *n_values;
} pst_cli_args;

struct pst_cli_command {
  const char *name, *words, *summary; /* "run", "MODEL [TEXT]", one line */
  const char *details;                /* more lines for the command's own help; may be NULL */
  int min_words, max_words;           /* max < 0: any number */
  const pst_cli_option *options;
  int n_options;
  int (*run)(const pst_cli_args *args,
             pst_error *err); /* 0, an exit code above, or a negative pst code with *err set */
};

bool pst_cli_flag(const pst_cli_args *a, const char *name);
const char *pst_cli_text(const pst_cli_args *a, const char *name); /* NULL: not given and no fallback */
int64_t pst_cli_int(const pst_cli_args *a, const char *name);
double pst_cli_number(const pst_cli_args *a, const char *name);
bool pst_cli_given(const pst_cli_args *a, const char *name);
int pst_cli_many(const pst_cli_args *a, const char *name, const char *const **ret_texts);
/* Says that something was done with what has the name: {"name": name, member: true} with --json, else the name and the text behind it (NULL: nothing). */
void pst_cli_done(const pst_cli_args *a, const char *name, const char *member, const char *text);
/* Whether a file can be written in a place, asked before the work whose result it is to hold; what writers that were killed left beside it is removed. NULL: nothing is to be
 * written. */
int pst_cli_check_writable(const char *path, pst_error *err);

#define PST_CLI_HOME                                                             \
  {                                                                              \
    "home", 0, PST_CLI_TEXT, "DIR", NULL, 0, 0, false,                           \
        "data directory (default: $PENSTOCK_HOME, else ~/.local/share/penstock)" \
  }
#define PST_CLI_JSON \
  { "json", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false, "print JSON for programs" }
#define PST_CLI_QUIET \
  { "quiet", 'q', PST_CLI_FLAG, NULL, NULL, 0, 0, false, "no progress" }
#define PST_CLI_FORCE \
  { "force", 'f', PST_CLI_FLAG, NULL, NULL, 0, 0, false, "replace OUT if it is there" }
#define PST_CLI_THREADS \
  { "threads", 't', PST_CLI_INT, "N", "0", 0, 64, false, "threads to compute with (0: all)" }

extern const pst_cli_command pst_cli_pull, pst_cli_models, pst_cli_run, pst_cli_chat, pst_cli_bench, pst_cli_inspect,
    pst_cli_quantize, pst_cli_import, pst_cli_eval;
extern const pst_cli_command pst_cli_embed;
extern const pst_cli_command pst_cli_merge, pst_cli_adapters;
extern const pst_cli_command pst_cli_tune, pst_cli_calibrate, pst_cli_prune;
extern const pst_cli_command pst_cli_optimize, pst_cli_explain, pst_cli_plans;
extern const pst_cli_command pst_cli_worker, pst_cli_turn;
extern const pst_cli_command pst_cli_serve, pst_cli_key, pst_cli_settings, pst_cli_requests, pst_cli_feedback,
    pst_cli_answers, pst_cli_data;

#endif
