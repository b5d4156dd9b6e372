/* penstock pull: takes models of the catalogue into the data directory. The work is pst_models_pull's; here are the words, the bar and Ctrl-C. */
#include <signal.h>

#include "cli/commands.h"

#include <penstock/engine.h>
#include <penstock/models.h>

static volatile sig_atomic_t interrupted;
static void on_signal(int number) {
  (void)number;
  interrupted = 1;
}
static bool is_cancelled(void *user) {
  (void)user;
  return interrupted != 0;
}

/* Ctrl-C or SIGTERM ends a pull between two pieces: what was fetched is kept for the next one. A second Ctrl-C ends the program. */
static void watch_signals(void) {
  struct sigaction action = {.sa_handler = on_signal, .sa_flags = (int)SA_RESETHAND};
  sigemptyset(&action.sa_mask);
  (void)sigaction(SIGINT, &action, NULL);
  (void)sigaction(SIGTERM, &action, NULL);
}

static void say(void *user, const char *line) {
  (void)user;
  fprintf(stderr, "%s\n", line);
}

/* The weights as they are, in the file format that the engine maps. */
static int convert(void *user, const char *folder, const char *out_path, pst_error *err) {
  (void)user;
  return pst_engine_quantize(folder, out_path, "F32", NULL, NULL, err);
}

static void put_file(pst_json_writer *w, const pst_models_file *f, bool was_there) {
  pst_json_begin_object(w);
  pst_json_member_cstr(w, "name", f->name);
  pst_json_member_cstr(w, "path", f->path);
  pst_json_member_int(w, "bytes", f->bytes);
  pst_json_member_cstr(w, "sha256", f->sha256);
  pst_json_member_cstr(w, "licence", f->licence);
  pst_json_member_bool(w, "was_there", was_there);
  pst_json_end_object(w);
}

static int pull_one(const pst_cli_args *a, const char *home, const char *name, pst_json_writer *w, pst_error *err) {
  pst_models_pull_options options = {.quiet = pst_cli_flag(a, "quiet"),
                                     .say = pst_cli_flag(a, "quiet") ? NULL : say,
                                     .cancelled = is_cancelled,
                                     .convert = convert,
                                     .python = pst_cli_text(a, "python"),
                                     .no_hub = pst_cli_flag(a, "no-hub")};
  pst_models_file file = {0};
  pst_error ignored = PST_ERROR_INIT;
  bool was_there = pst_models_resolve(home, name, &file, &ignored) == 0 && file.name[0];
  pst_models_file_done(&file);
  int code = pst_models_pull(home, name, &options, NULL, err);
  if (!code) code = pst_models_resolve(home, name, &file, err);
  if (!code && w)
    put_file(w, &file, was_there);
  else if (!code)
    printf("%s%s: %s\n", name, was_there ? " is there already" : "", file.path);
  pst_models_file_done(&file);
  return code;
}

static int run_pull(const pst_cli_args *a, pst_error *err) {
  char *home = NULL;
  pst_buf text = PST_BUF_INIT;
  bool json = pst_cli_flag(a, "json");
  pst_json_writer w = pst_json_writer_on(&text, true);
  watch_signals();
  int code = pst_home_open(pst_cli_text(a, "home"), &home, err);
  if (json) pst_json_begin_array(&w);
  for (int i = 0; !code && i < a->n_words; i++) code = pull_one(a, home, a->words[i], json ? &w : NULL, err);
  if (json) pst_json_end_array(&w);
  if (!code && pst_buf_status(&text)) code = pst_error_set(err, PST_E_NOMEM, NULL, "no memory");
  if (!code && json) puts(pst_buf_text(&text));
  pst_buf_done(&text);
  pst_free(home);
  return code;
}

static const pst_cli_option options[] = {
    {"no-hub", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false, "leave out model hubs: take the packages at once"},
    {"python", 0, PST_CLI_TEXT, "PATH", NULL, 0, 0, false,
     "Python whose pip takes packages (default: $PENSTOCK_PYTHON, else python3)"},
    PST_CLI_QUIET,
    PST_CLI_HOME,
    PST_CLI_JSON,
};
const pst_cli_command pst_cli_pull = {
    "pull",
    "NAME...",
    "take a model of the catalogue into the data directory",
    "'penstock models --catalogue' lists the names. An unfinished pull is taken up where it stopped; the file is checked by its\n"
    "SHA-256 and appears only when it is whole.",
    1,
    -1,
    options,
    PST_ARRAY_LEN(options),
    run_pull};
