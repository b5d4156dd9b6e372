/* penstock models: what lies in the data directory, what could be pulled, and taking a model out again. */
#include <stdio.h>
#include <string.h>

#include "cli/adapters.h"
#include "cli/commands.h"
#include "cli/open.h"

#include <penstock/models.h>

typedef struct listing {
  const char *home;
  bool json;
  int n, n_damaged;
  pst_store *store;   /* NULL: nothing was ever kept here */
  const char *sha256; /* of the model whose adapters are written */
  pst_buf text;
  pst_json_writer w;
} listing;

static const char *show_bytes(int64_t bytes, char *text, size_t n) {
  if (bytes >= (int64_t)1 << 30)
    snprintf(text, n, "%.2f GiB", (double)bytes / 1073741824.0);
  else
    snprintf(text, n, "%.1f MiB", (double)bytes / 1048576.0);
  return text;
}

/* An adapter of the model at hand. */
static int put_adapter_of(void *user, const pst_store_adapter *r) {
  listing *l = user;
  if (strcmp(r->base_sha256, l->sha256) != 0) return 0;
  const char *const texts[][2] = {{"name", r->name}, {"file", r->file}, {"data", r->data}, {"run", r->run}};
  pst_json_begin_object(&l->w);
  for (size_t i = 0; i < PST_ARRAY_LEN(texts); i++) {
    pst_json_key(&l->w, texts[i][0]);
    pst_json_put_cstr(&l->w, *texts[i][1] ? texts[i][1] : NULL);
  }
  pst_json_end_object(&l->w);
  return 0;
}

static int put_model(void *user, const pst_models_file *f, bool intact) {
  listing *l = user;
  l->n++;
  l->n_damaged += !intact;
  if (!l->json) {
    char size[32];
    if (l->n == 1) printf("%-24s %10s  %-20s %s\n", "NAME", "SIZE", "LICENCE", "FILE");
    printf("%-24s %10s  %-20s %s%s\n", f->name, show_bytes(f->bytes, size, sizeof size), f->licence,
           f->path ? f->path : "-", intact ? "" : "  (missing or changed)");
    return 0;
  }
  pst_json_writer *w = &l->w;
  pst_json_begin_object(w);
  pst_json_member_cstr(w, "name", f->name);
  pst_json_member_cstr(w, "path", f->path);
  pst_json_member_int(w, "bytes", f->bytes);
  pst_json_member_cstr(w, "sha256", f->sha256);
  pst_json_member_cstr(w, "licence", f->licence);
  pst_json_member_bool(w, "intact", intact);
  pst_json_key(w, "adapters");
  pst_json_begin_array(w);
  l->sha256 = f->sha256;
  int code = l->store ? pst_store_adapter_each(l->store, put_adapter_of, l, NULL) : 0;
  pst_json_end_array(w);
  pst_json_end_object(w);
  return code;
}

static int put_entry(void *user, const pst_models_entry *e) {
  listing *l = user;
  pst_models_file file = {0};
  pst_error ignored = PST_ERROR_INIT;
  bool pulled = pst_models_resolve(l->home, e->name, &file, &ignored) == 0;
  pst_models_file_done(&file);
  l->n++;
  if (!l->json) {
    char size[32];
    if (l->n == 1) printf("%-24s %10s  %-20s %-7s %s\n", "NAME", "SIZE", "LICENCE", "PULLED", "TITLE");
    printf("%-24s %10s  %-20s %-7s %s\n", e->name, show_bytes(e->bytes, size, sizeof size), e->licence,
           pulled ? "yes" : "no", e->title);
    return 0;
  }
  pst_json_writer *w = &l->w;
  pst_json_begin_object(w);
  const char *const pairs[][2] = {
      {"name", e->name}, {"title", e->title}, {"licence", e->licence}, {"sha256", e->sha256}};
  for (size_t i = 0; i < PST_ARRAY_LEN(pairs); i++) {
    pst_json_key(w, pairs[i][0]);
    pst_json_put_cstr(w, pairs[i][1]);
  }
  pst_json_member_int(w, "bytes", e->bytes);
  pst_json_member_bool(w, "pulled", pulled);
  pst_json_end_object(w);
  return 0;
}

/* What was kept here; a data directory without a store stays without. */
static int open_store(const pst_cli_args *a, const char *home, pst_store **ret_store, pst_error *err) {
  char *path = pst_path_join(home, "penstock.db");
  if (!path) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory");
  int code = pst_file_exists(path) ? pst_cli_store_open(a, ret_store, err) : 0;
  pst_free(path);
  return code;
}

static int list_models(const pst_cli_args *a, const char *home, pst_error *err) {
  bool catalogue = pst_cli_flag(a, "catalogue");
  listing l = {.home = home, .json = pst_cli_flag(a, "json")};
  l.w = pst_json_writer_on(&l.text, true);
  int code = catalogue ? 0 : open_store(a, home, &l.store, err), n_adapters = 0;
  if (l.json) pst_json_begin_array(&l.w);
  if (!code)
    code = catalogue ? pst_models_catalogue_each(put_entry, &l, err) : pst_models_each(home, put_model, &l, err);
  if (l.json) pst_json_end_array(&l.w);
  if (!code && pst_buf_status(&l.text)) code = pst_error_set(err, PST_E_NOMEM, NULL, "no memory");
  if (!code && l.json)
    puts(pst_buf_text(&l.text));
  else if (!code && !l.n)
    printf("no models in %s yet; 'penstock models --catalogue' lists what 'penstock pull NAME' takes\n", home);
  else if (!code && l.n_damaged)
    printf(
        "%d of %d missing or changed since they were pulled: 'penstock models --verify NAME' reads a file again, 'penstock pull "
        "NAME' replaces it\n",
        l.n_damaged, l.n);
  int64_t copies = pst_models_copies(home, false);
  char size[32];
  if (!code && !l.json && !catalogue && copies)
    printf(
        "copies made here (other types of weights, packed ones): %s; 'penstock models --clear-copies' removes them, and they are made "
        "again when wanted\n",
        show_bytes(copies, size, sizeof size));
  if (!code && !l.json && l.store) code = pst_cli_adapters_print(l.store, false, &l.text, &n_adapters, err);
  pst_store_close(l.store);
  pst_buf_done(&l.text);
  return code;
}

static int verify_model(const pst_cli_args *a, const char *home, const char *name, pst_error *err) {
  pst_models_file file = {0};
  pst_error ignored = PST_ERROR_INIT;
  pst_progress progress;
  char what[96];
  int64_t total = pst_models_resolve(home, name, &file, &ignored) == 0 ? file.bytes : 0;
  pst_models_file_done(&file);
  snprintf(what, sizeof what, "reading %s", name);
  pst_progress_begin(&progress, what, total, true, pst_cli_flag(a, "quiet") || pst_cli_flag(a, "json"));
  int code = pst_models_verify(home, name, &progress, err);
  pst_progress_end(&progress);
  if (!code) pst_cli_done(a, name, "intact", ": the file is as it was pulled");
  return code;
}

static void clear_copies(const pst_cli_args *a, const char *home) {
  char size[32];
  int64_t bytes = pst_models_copies(home, true);
  if (pst_cli_flag(a, "json"))
    printf("{\"bytes\": %lld}\n", (long long)bytes);
  else
    printf("%s of copies removed\n", show_bytes(bytes, size, sizeof size));
}

static int run_models(const pst_cli_args *a, pst_error *err) {
  char *home = NULL;
  const char *remove = pst_cli_text(a, "remove"), *verify = pst_cli_text(a, "verify");
  bool clear = pst_cli_flag(a, "clear-copies");
  if ((remove != NULL) + (verify != NULL) + pst_cli_flag(a, "catalogue") + clear > 1)
    return pst_error_set(err, PST_E_BAD_INPUT, "models",
                         "one of --catalogue, --verify, --remove and --clear-copies at a time");
  int code = pst_home_open(pst_cli_text(a, "home"), &home, err);
  if (!code && remove) {
    code = pst_models_remove(home, remove, err);
    if (!code) pst_cli_done(a, remove, "removed", " is removed");
  } else if (!code && verify) {
    code = verify_model(a, home, verify, err);
  } else if (!code && clear) {
    clear_copies(a, home);
  } else if (!code) {
    code = list_models(a, home, err);
  }
  pst_free(home);
  return code;
}

static const pst_cli_option options[] = {
    {"catalogue", 'c', PST_CLI_FLAG, NULL, NULL, 0, 0, false, "list what can be pulled"},
    {"verify", 0, PST_CLI_TEXT, "NAME", NULL, 0, 0, false, "read the model's whole file again and compare its SHA-256"},
    {"remove", 0, PST_CLI_TEXT, "NAME", NULL, 0, 0, false, "take a model out of the data directory"},
    {"clear-copies", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false,
     "remove what was made from models here: re-quantized copies, packed weights; they are made again when wanted"},
    PST_CLI_QUIET,
    PST_CLI_HOME,
    PST_CLI_JSON,
};
const pst_cli_command pst_cli_models = {"models",
                                        "",
                                        "list the models in the data directory and their adapters",
                                        NULL,
                                        0,
                                        0,
                                        options,
                                        PST_ARRAY_LEN(options),
                                        run_models};
