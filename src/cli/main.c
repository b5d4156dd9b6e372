/* The program: finds the command, parses its line by its table, prints help and errors. */
#include <errno.h>
#include <math.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/cli.h"
#include "cli/commands.h"

#ifndef PST_VERSION
#define PST_VERSION "0.1.0"
#endif

static const pst_cli_command *find_command(const char *name) {
  for (size_t i = 0; i < pst_cli_n_commands; i++)
    if (!strcmp(pst_cli_commands[i]->name, name)) return pst_cli_commands[i];
  return NULL;
}

static void print_help(FILE *out) {
  fputs(
      "penstock serves open models on your own machine, keeps the books, and finds the plan that fits your application.\n\n"
      "usage: penstock COMMAND [OPTIONS]\n\n",
      out);
  for (size_t i = 0; i < pst_cli_n_commands; i++)
    fprintf(out, "  %-10s %s\n", pst_cli_commands[i]->name, pst_cli_commands[i]->summary);
  fputs("\n'penstock COMMAND --help' lists a command's options.\n", out);
}

static void print_command_help(const pst_cli_command *c, FILE *out) {
  fprintf(out, "%s\n\nusage: penstock %s%s%s%s\n", c->summary, c->name, *c->words ? " " : "", c->words,
          c->n_options ? " [OPTIONS]" : "");
  if (c->details) fprintf(out, "\n%s\n", c->details);
  if (c->n_options) fputs("\noptions:\n", out);
  for (int i = 0; i < c->n_options; i++) {
    const pst_cli_option *o = &c->options[i];
    char left[64], letter[8] = "    ";
    if (o->letter) snprintf(letter, sizeof letter, "-%c, ", o->letter);
    snprintf(left, sizeof left, "%s--%s%s%s", letter, o->name, o->value ? " " : "", o->value ? o->value : "");
    fprintf(out, "  %-26s %s", left, o->help);
    if (o->fallback && *o->fallback) fprintf(out, " [%s]", o->fallback);
    fputs(o->many ? "; may be given several times\n" : "\n", out);
  }
}

/* How far two names are apart: a mistyped option gets the nearest one as a hint. */
static int distance(const char *a, const char *b) {
  int row[64], n = (int)strlen(b);
  if (n > 62 || strlen(a) > 62) return 99;
  for (int j = 0; j <= n; j++) row[j] = j;
  for (int i = 0; a[i]; i++) {
    int diagonal = row[0];
    row[0] = i + 1;
    for (int j = 0; j < n; j++) {
      int change = diagonal + (a[i] != b[j]);
      diagonal = row[j + 1];
      row[j + 1] = PST_MIN(change, PST_MIN(row[j], diagonal) + 1);
    }
  }
  return row[n];
}

static void print_unknown_command(const char *word) {
  const char *near = NULL;
  int best = 3;
  for (size_t i = 0; i < pst_cli_n_commands; i++) {
    int d = distance(word, pst_cli_commands[i]->name);
    if (d < best) best = d, near = pst_cli_commands[i]->name;
  }
  if (near)
    fprintf(stderr, "penstock: unknown command '%.60s'; did you mean '%s'?\n", word, near);
  else
    fprintf(stderr, "penstock: unknown command '%.60s'; 'penstock --help' lists the commands\n", word);
}

static int unknown_option(const pst_cli_command *c, const char *word, pst_error *err) {
  const char *near = NULL;
  int best = 3;
  for (int i = 0; i < c->n_options; i++) {
    int d = distance(word, c->options[i].name);
    if (d < best) best = d, near = c->options[i].name;
  }
  if (near) return pst_error_set(err, PST_E_BAD_INPUT, c->name, "unknown option --%s; did you mean --%s?", word, near);
  return pst_error_set(err, PST_E_BAD_INPUT, c->name, "unknown option --%s; see 'penstock %s --help'", word, c->name);
}

static int check_value(const pst_cli_option *o, const char *text, pst_error *err) {
  double d;
  int64_t i;
  if (o->kind == PST_CLI_INT && pst_parse_i64(pst_str_from(text), (int64_t)o->min, (int64_t)o->max, &i))
    return pst_error_set(err, PST_E_BAD_INPUT, o->name, "--%s takes a whole number from %.0f to %.0f, not '%s'",
                         o->name, o->min, o->max, text);
  if (o->kind == PST_CLI_NUMBER && (pst_parse_double(pst_str_from(text), &d) || d < o->min || d > o->max))
    return pst_error_set(err, PST_E_BAD_INPUT, o->name, "--%s takes a number from %g to %g, not '%s'", o->name, o->min,
                         o->max, text);
  return 0;
}

static int add_value(pst_cli_args *a, int i, const char *text, pst_error *err) {
  const pst_cli_option *o = &a->command->options[i];
  int code = check_value(o, text, err);
  if (code) return code;
  if (a->n_values[i] && !o->many) a->n_values[i] = 0; /* the last one counts */
  a->values[i][a->n_values[i]++] = text;
  return 0;
}

static int find_option(const pst_cli_command *c, const char *name, size_t n) {
  for (int i = 0; i < c->n_options; i++)
    if (strlen(c->options[i].name) == n && !strncmp(c->options[i].name, name, n)) return i;
  return -1;
}

static int parse_word(pst_cli_args *a, int argc, char **argv, int *at, pst_error *err) {
  const pst_cli_command *c = a->command;
  const char *word = argv[*at], *value = NULL;
  int i = -1;
  if (word[1] == '-') {
    const char *name = word + 2, *equals = strchr(name, '=');
    size_t n = equals ? (size_t)(equals - name) : strlen(name);
    i = find_option(c, name, n);
    if (i < 0) {
      char copy[64];
      snprintf(copy, sizeof copy, "%.*s", (int)PST_MIN(n, (size_t)60), name);
      return unknown_option(c, copy, err);
    }
    if (equals) value = equals + 1;
  } else {
    for (int k = 0; k < c->n_options; k++)
      if (c->options[k].letter && c->options[k].letter == word[1]) i = k;
    if (i < 0)
      return pst_error_set(err, PST_E_BAD_INPUT, c->name, "unknown option %.20s; see 'penstock %s --help'", word,
                           c->name);
    if (word[2]) value = word + 2;
  }
  const pst_cli_option *o = &c->options[i];
  if (o->kind == PST_CLI_FLAG) {
    if (value) return pst_error_set(err, PST_E_BAD_INPUT, o->name, "--%s takes no value", o->name);
    value = "";
  } else if (!value) {
    if (++*at >= argc) return pst_error_set(err, PST_E_BAD_INPUT, o->name, "--%s needs a value: %s", o->name, o->value);
    value = argv[*at];
  }
  return add_value(a, i, value, err);
}

static int run_command(const pst_cli_command *c, int argc, char **argv, pst_error *err) {
  size_t n = (size_t)c->n_options + 1, most = (size_t)argc + 1;
  pst_arena *arena = pst_arena_create();
  if (!arena) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory");
  pst_cli_args a = {c, NULL, 0, pst_arena_calloc(arena, n, sizeof *a.values),
                    pst_arena_calloc(arena, n, sizeof *a.n_values)};
  const char **words = pst_arena_calloc(arena, most, sizeof *words);
  int code = a.values && a.n_values && words ? 0 : PST_E_NOMEM;
  for (size_t i = 0; i < n && !code; i++)
    if (!(a.values[i] = pst_arena_calloc(arena, most, sizeof **a.values))) code = PST_E_NOMEM;
  bool only_words = false;
  for (int i = 0; i < argc && !code; i++) {
    if (!only_words && !strcmp(argv[i], "--"))
      only_words = true;
    else if (!only_words && (!strcmp(argv[i], "--help") || !strcmp(argv[i], "-h"))) {
      print_command_help(c, stdout);
      goto done;
    } else if (!only_words && argv[i][0] == '-' && argv[i][1])
      code = parse_word(&a, argc, argv, &i, err);
    else
      words[a.n_words++] = argv[i];
  }
  a.words = words;
  const char *gap = *c->words ? " " : "";
  if (!code && c->max_words >= 0 && a.n_words > c->max_words)
    code = pst_error_set(err, PST_E_BAD_INPUT, c->name, "unexpected '%.100s'; usage: penstock %s%s%s [OPTIONS]",
                         words[c->max_words], c->name, gap, c->words);
  else if (!code && a.n_words < c->min_words)
    code = pst_error_set(err, PST_E_BAD_INPUT, c->name, "usage: penstock %s%s%s [OPTIONS]", c->name, gap, c->words);
  if (!code) code = c->run(&a, err);
done:
  pst_arena_free(arena);
  return code;
}

/* ---- reading a parsed line ---- */

static int index_of(const pst_cli_args *a, const char *name) { return find_option(a->command, name, strlen(name)); }

bool pst_cli_given(const pst_cli_args *a, const char *name) {
  int i = index_of(a, name);
  return i >= 0 && a->n_values[i] > 0;
}
bool pst_cli_flag(const pst_cli_args *a, const char *name) { return pst_cli_given(a, name); }

const char *pst_cli_text(const pst_cli_args *a, const char *name) {
  int i = index_of(a, name);
  if (i < 0) return NULL;
  return a->n_values[i] ? a->values[i][a->n_values[i] - 1] : a->command->options[i].fallback;
}

int64_t pst_cli_int(const pst_cli_args *a, const char *name) {
  int64_t v = 0;
  const char *text = pst_cli_text(a, name);
  if (text) (void)pst_parse_i64(pst_str_from(text), INT64_MIN, INT64_MAX, &v);
  return v;
}

double pst_cli_number(const pst_cli_args *a, const char *name) {
  double v = 0;
  const char *text = pst_cli_text(a, name);
  if (text) (void)pst_parse_double(pst_str_from(text), &v);
  return v;
}

int pst_cli_many(const pst_cli_args *a, const char *name, const char *const **ret_texts) {
  int i = index_of(a, name);
  if (i < 0) return 0;
  *ret_texts = a->values[i];
  return a->n_values[i];
}

void pst_cli_done(const pst_cli_args *a, const char *name, const char *member, const char *text) {
  pst_buf json = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&json, true);
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "name", name);
  pst_json_member_bool(&w, member, true);
  pst_json_end_object(&w);
  if (pst_cli_flag(a, "json"))
    puts(pst_buf_text(&json));
  else if (text)
    printf("%s%s\n", name, text);
  pst_buf_done(&json);
}

int pst_cli_check_writable(const char *path, pst_error *err) {
  char *name = NULL;
  int fd = -1;
  if (!path) return 0;
  if (pst_dir_exists(path)) return pst_error_set(err, PST_E_BAD_INPUT, path, "is a directory; name a file in it");
  int code = pst_file_open_temporary(path, &name, &fd, err);
  if (code) return code;
  (void)unlink(name);
  (void)close(fd);
  char *slash = strrchr(name, '/');
  if (slash) *slash = '\0';
  pst_dir_sweep(!slash ? "." : *name ? name : "/");
  pst_free(name);
  return 0;
}

/* ---- main ---- */

/* Where 1 is an answer ("no"), whatever kept an answer from coming is not 1. */
static int exit_code_of(const pst_cli_command *c, int code) {
  bool answers = c == &pst_cli_eval || c == &pst_cli_optimize || c == &pst_cli_turn;
  switch (code) {
  case PST_E_BAD_INPUT:
  case PST_E_UNSUPPORTED:
  case PST_E_LIMIT:
  case PST_E_NOT_FOUND:
  case PST_E_EXISTS:
  case PST_E_CORRUPT:
  case PST_E_BUSY:
  case PST_E_NO_SPACE:
  case PST_E_DENIED: return PST_CLI_BAD_INPUT;
  case PST_E_NO_DATA: return PST_CLI_NO_DATA;
  default: return answers ? PST_CLI_NO_DATA : PST_CLI_FAILED;
  }
}

int main(int argc, char **argv) {
  signal(SIGPIPE, SIG_IGN);
  signal(SIGXFSZ, SIG_IGN); /* a full disk is an error of write(), not the end of the program */
  if (argc < 2 || !strcmp(argv[1], "--help") || !strcmp(argv[1], "-h") || !strcmp(argv[1], "help")) {
    const pst_cli_command *about = argc > 2 ? find_command(argv[2]) : NULL;
    if (about)
      print_command_help(about, stdout);
    else
      print_help(argc < 2 ? stderr : stdout);
    return argc < 2 ? PST_CLI_BAD_INPUT : PST_CLI_OK;
  }
  if (!strcmp(argv[1], "--version") || !strcmp(argv[1], "version")) {
    puts("penstock " PST_VERSION);
    return PST_CLI_OK;
  }
  const pst_cli_command *c = find_command(argv[1]);
  if (!c) {
    print_unknown_command(argv[1]);
    return PST_CLI_BAD_INPUT;
  }
  pst_error err = PST_ERROR_INIT;
  int code = run_command(c, argc - 2, argv + 2, &err);
  if ((fflush(stdout) || ferror(stdout)) && code >= 0)
    code = pst_error_set_errno(&err, errno, "stdout", "cannot write");
  if (code >= 0) return code;
  char text[1100];
  if (!err.code) pst_error_set(&err, code, c->name, "%s", pst_error_text(code));
  fprintf(stderr, "penstock: %s\n", pst_error_format(&err, text, sizeof text));
  return exit_code_of(c, code);
}
