/* penstock data: records seen, brought in, taken out, forgotten, and made into data sets. */
#include <errno.h>
#include <inttypes.h>
#include <string.h>
#include <unistd.h>

#include "cli/actions.h"
#include "cli/commands.h"
#include "cli/open.h"
#include "cli/records.h"
#include "cli/workload_name.h"

#include <penstock/data.h>

typedef struct listing {
  pst_store *store;
  pst_error *err;
  bool json;
  int64_t n;
  pst_buf text, scratch;
  pst_json_writer w;
} listing;

static void begin_list(listing *l, const pst_cli_args *a, pst_store *store, pst_error *err) {
  *l = (listing){.store = store, .err = err, .json = pst_cli_flag(a, "json")};
  l->w = pst_json_writer_on(&l->text, true);
  if (l->json) pst_json_begin_array(&l->w);
}

static int end_list(listing *l, int code, const char *none) {
  if (l->json) pst_json_end_array(&l->w);
  if (!code && l->json) puts(pst_buf_text(&l->text));
  if (!code && !l->json && !l->n) puts(none);
  pst_buf_done(&l->text);
  pst_buf_done(&l->scratch);
  return code;
}

static pst_str word(const pst_cli_args *a, int i) { return pst_str_from(i < a->n_words ? a->words[i] : NULL); }

/* ---- list, show ------------------------------------------------------------------------------------------------------------ */

static void put_record_json(pst_json_writer *w, const pst_store_request *r) {
  pst_json_member_int(w, "record", r->id);
  pst_json_member_opt(w, "completion_id", r->completion_id);
  pst_json_member_int(w, "time_ms", r->time_ms);
  pst_json_member_opt(w, "workload", r->workload);
  pst_json_member_opt(w, "subject", r->subject);
  pst_json_member_opt(w, "keep", pst_str_from(pst_store_keep_name(r->keep)));
  pst_json_member_bool(w, "train", r->train);
  pst_json_member_bool(w, "imported", r->imported);
  pst_json_key(w, "expires_ms");
  if (r->expires_ms)
    pst_json_put_int(w, r->expires_ms);
  else
    pst_json_put_null(w);
}

static int list_record(void *user, const pst_store_request *r) {
  listing *l = user;
  char time[32];
  l->n++;
  if (l->json) {
    pst_json_begin_object(&l->w);
    put_record_json(&l->w, r);
    pst_json_end_object(&l->w);
    return 0;
  }
  if (l->n == 1)
    printf("%-8s %-19s  %-36s %-20s %-9s %-5s %s\n", "RECORD", "TIME (UTC)", "ID", "WORKLOAD", "KEPT", "TRAIN",
           "SUBJECT");
  printf("%-8" PRId64 " %-19s  ", r->id, pst_cli_show_time(r->time_ms, time));
  pst_cli_print_line(r->completion_id, 36, SIZE_MAX, &l->scratch);
  putchar(' ');
  pst_cli_print_line(r->workload, 20, 20, &l->scratch);
  printf(" %-9s %-5s ", pst_store_keep_name(r->keep), r->train ? "yes" : "no");
  pst_cli_print_line(r->subject, 0, 60, &l->scratch);
  putchar('\n');
  return 0;
}

static pst_store_request_filter filter_of(const pst_cli_args *a, int workload_word) {
  pst_store_request_filter f = PST_STORE_REQUEST_FILTER_INIT;
  f.workload = word(a, workload_word);
  if (!f.workload.n) f.workload.data = NULL;
  f.purpose = PST_STORE_PURPOSE_USER;
  f.origin = PST_STORE_ANY_ORIGIN;
  f.subject = pst_str_from(pst_cli_text(a, "subject"));
  f.train = pst_cli_flag(a, "trainable");
  return f;
}

/* What a list found nothing of, and where there is more. A name that nothing was ever recorded under may be a mistyped one. */
static int say_none(const pst_store_request_filter *f, pst_store *store, pst_buf *out, pst_error *err) {
  pst_str w = f->workload, s = f->subject;
  int n = (int)PST_MIN(w.n, (size_t)80);
  bool narrowed = s.data || f->train, recorded = true;
  int code = w.data ? pst_cli_workload_recorded(store, w, &recorded, err) : 0;
  pst_buf_puts(out, "no records");
  if (!w.data && !narrowed) {
    pst_buf_puts(out, " yet; users' requests become records as their API keys allow ('penstock key')");
    return code;
  }
  if (w.data) pst_buf_printf(out, " of \"%.*s\"", n, w.data);
  if (s.data) pst_buf_printf(out, " of the subject \"%.*s\"", (int)PST_MIN(s.n, (size_t)80), s.data);
  if (f->train) pst_buf_puts(out, " that may be trained on");
  if (!recorded)
    pst_buf_puts(out, "; 'penstock data stats' says which workloads have some");
  else if (narrowed && w.data)
    pst_buf_printf(out, "; 'penstock data list %.*s' lists all of that workload", n, w.data);
  else if (narrowed)
    pst_buf_puts(out, "; 'penstock data stats' says what there is");
  else
    pst_buf_printf(out, " but of evals or searches: 'penstock requests -w %.*s --all' lists those", n, w.data);
  return code;
}

static int list(const pst_cli_args *a, pst_store *store, pst_error *err) {
  listing l;
  pst_buf none = PST_BUF_INIT;
  pst_store_request_filter f = filter_of(a, 1);
  f.limit = pst_cli_int(a, "limit");
  f.newest_first = true;
  begin_list(&l, a, store, err);
  int code = pst_store_request_each(store, &f, list_record, &l, err);
  if (!code && !l.n) code = say_none(&f, store, &none, err);
  code = end_list(&l, code, pst_buf_text(&none));
  pst_buf_done(&none);
  return code;
}

static int put_hash(void *user, pst_str hash) {
  listing *l = user;
  pst_json_put_str(&l->w, hash);
  return 0;
}

static int put_feedback(void *user, const pst_store_feedback *f) {
  pst_json_writer *w = &((listing *)user)->w;
  pst_json_begin_object(w);
  pst_json_member_int(w, "time_ms", f->time_ms);
  if (f->thumbs) pst_json_member_opt(w, "thumbs", pst_str_from(f->thumbs > 0 ? "up" : "down"));
  if (f->has_score) {
    pst_json_member_double(w, "score", f->score);
  }
  if (f->correction.data) pst_json_member_opt(w, "correction", f->correction);
  if (f->outcome.data) pst_json_member_opt(w, "outcome", f->outcome);
  if (f->retried) pst_json_member_opt(w, "signal", PST_STR("retry"));
  if (f->abandoned) pst_json_member_opt(w, "signal", PST_STR("abandon"));
  pst_json_end_object(w);
  return 0;
}

static void put_parsed(pst_json_writer *w, const char *name, pst_str json) {
  pst_json_doc *doc = NULL;
  pst_json_key(w, name);
  if (json.n && !pst_json_parse(json.data, json.n, name, &doc, NULL))
    pst_json_put_value(w, pst_json_root(doc));
  else
    pst_json_put_null(w);
  pst_json_free(doc);
}

static int show_record(void *user, const pst_store_request *r) {
  listing *l = user;
  pst_json_begin_object(&l->w);
  put_record_json(&l->w, r);
  pst_json_member_opt(&l->w, "model", r->model);
  pst_json_member_opt(&l->w, "plan", r->plan_hash);
  put_parsed(&l->w, "input", r->input_json);
  put_parsed(&l->w, "output", r->output_json);
  pst_json_key(&l->w, "feedback");
  pst_json_begin_array(&l->w);
  int code = pst_store_feedback_each(l->store, r->completion_id, 0, put_feedback, l, l->err);
  pst_json_end_array(&l->w);
  pst_json_key(&l->w, "data_sets");
  pst_json_begin_array(&l->w);
  if (!code) code = pst_store_data_set_of_record(l->store, r->id, put_hash, l, l->err);
  pst_json_end_array(&l->w);
  pst_json_end_object(&l->w);
  l->n++;
  return code;
}

static int put_use(void *user, pst_str hash, pst_str kind, pst_str name, bool stale) {
  listing *l = user;
  (void)hash;
  pst_json_begin_object(&l->w);
  pst_json_member_opt(&l->w, "kind", kind);
  pst_json_member_opt(&l->w, "name", name);
  pst_json_member_bool(&l->w, "stale", stale);
  pst_json_end_object(&l->w);
  return 0;
}

static int show_set(void *user, const pst_store_data_set *s) {
  listing *l = user;
  pst_json_begin_object(&l->w);
  pst_json_member_opt(&l->w, "data_set", s->hash);
  pst_json_member_opt(&l->w, "kind", s->kind);
  pst_json_member_opt(&l->w, "workload", s->workload);
  pst_json_member_int(&l->w, "lines", s->n_lines);
  pst_json_member_int(&l->w, "created_ms", s->created_ms);
  pst_json_member_opt(&l->w, "state", s->state == PST_STORE_DATA_WHOLE ? PST_STR("whole") : PST_STR("withdrawn"));
  pst_json_member_opt(&l->w, "replaced_by", s->replaced_by);
  put_parsed(&l->w, "params", s->params);
  put_parsed(&l->w, "report", s->report);
  pst_json_key(&l->w, "uses");
  pst_json_begin_array(&l->w);
  int code = pst_store_data_set_uses(l->store, s->hash, put_use, l, l->err);
  pst_json_end_array(&l->w);
  pst_json_end_object(&l->w);
  l->n++;
  return code;
}

/* By completion id, record number, or the beginning of a data set's hash, in this order: all three may be digits. Always JSON: it holds conversations. */
static int show(const pst_cli_args *a, pst_store *store, pst_error *err) {
  listing l = {.store = store, .err = err};
  pst_store_request_filter f = filter_of(a, 2);
  pst_str what = word(a, 1);
  char *id = NULL;
  l.w = pst_json_writer_on(&l.text, true);
  f.with_content = true;
  int code = pst_cli_record_find(store, what, &id, err);
  f.completion_id = pst_str_from(id);
  if (!code && id) code = pst_store_request_each(store, &f, show_record, &l, err);
  if (!code && l.n == 0) code = pst_store_data_set_get(store, what, show_set, &l, err);
  if (code == PST_E_NOT_FOUND || code == PST_E_BAD_INPUT)
    code =
        pst_error_set(err, PST_E_NOT_FOUND, "show",
                      "\"%.*s\" is no record and no data set; 'penstock data list' and 'penstock data sets' name them",
                      (int)PST_MIN(what.n, (size_t)80), what.data);
  if (!code) puts(pst_buf_text(&l.text));
  pst_buf_done(&l.text);
  pst_free(id);
  return code;
}

/* ---- sets, stats ----------------------------------------------------------------------------------------------------------- */

static int list_set(void *user, const pst_store_data_set *s) {
  listing *l = user;
  char time[32];
  if (l->json) return show_set(l, s);
  l->n++;
  if (l->n == 1)
    printf("%-12s  %-19s  %-20s %-10s %8s  %s\n", "DATA SET", "TIME (UTC)", "WORKLOAD", "KIND", "LINES", "STATE");
  printf("%-12.12s  %-19s  ", s->hash.data, pst_cli_show_time(s->created_ms, time));
  pst_cli_print_line(s->workload, 20, 20, &l->scratch);
  printf(" %-10.*s %8" PRId64 "  ", (int)s->kind.n, s->kind.data, s->n_lines);
  if (s->state == PST_STORE_DATA_WHOLE)
    puts("whole");
  else if (s->replaced_by.n)
    printf("withdrawn; now %.12s\n", s->replaced_by.data);
  else
    puts("withdrawn");
  return 0;
}

static int sets(const pst_cli_args *a, pst_store *store, pst_error *err) {
  listing l;
  pst_str workload = word(a, 1);
  char none[256] = "no data sets yet; 'penstock data curate WORKLOAD' makes one";
  int n = (int)PST_MIN(workload.n, (size_t)80);
  if (!workload.n) workload.data = NULL;
  if (n)
    (void)snprintf(none, sizeof none, "no data sets of \"%.*s\" yet; 'penstock data curate %.*s' makes one", n,
                   workload.data, n, workload.data);
  begin_list(&l, a, store, err);
  int code = pst_store_data_set_each(store, workload, list_set, &l, err);
  return end_list(&l, code, none);
}

static int list_counts(void *user, const pst_store_record_counts *c) {
  listing *l = user;
  char oldest[32], newest[32];
  l->n++;
  if (!l->json) {
    if (l->n == 1)
      printf("%-20s %8s %8s %8s %8s %8s %8s %8s %6s %6s %9s  %s\n", "WORKLOAD", "RECORDS", "IMPORTED", "CONTENT",
             "TRAIN", "EXPIRING", "SUBJECTS", "FEEDBACK", "UP", "DOWN", "CORRECTED", "FROM, TO (UTC)");
    pst_cli_print_line(c->workload.data ? c->workload : PST_STR("-"), 20, 20, &l->scratch);
    const int64_t wide[] = {c->n_records,  c->n_imported, c->n_content, c->n_train,
                            c->n_expiring, c->n_subjects, c->n_feedback};
    for (size_t i = 0; i < PST_ARRAY_LEN(wide); i++) printf(" %8" PRId64, wide[i]);
    printf(" %6" PRId64 " %6" PRId64 " %9" PRId64 "  %s, %s\n", c->n_up, c->n_down, c->n_corrected,
           pst_cli_show_time(c->oldest_ms, oldest), pst_cli_show_time(c->newest_ms, newest));
    return 0;
  }
  const struct {
    const char *name;
    int64_t value;
  } counts[] = {{"records", c->n_records},   {"imported", c->n_imported},
                {"content", c->n_content},   {"train", c->n_train},
                {"subjects", c->n_subjects}, {"expiring", c->n_expiring},
                {"feedback", c->n_feedback}, {"up", c->n_up},
                {"down", c->n_down},         {"corrected", c->n_corrected},
                {"oldest_ms", c->oldest_ms}, {"newest_ms", c->newest_ms}};
  pst_json_begin_object(&l->w);
  pst_json_member_opt(&l->w, "workload", c->workload);
  for (size_t i = 0; i < PST_ARRAY_LEN(counts); i++) pst_json_member_int(&l->w, counts[i].name, counts[i].value);
  pst_json_end_object(&l->w);
  return 0;
}

static int stats(const pst_cli_args *a, pst_store *store, pst_error *err) {
  listing l;
  begin_list(&l, a, store, err);
  int code = pst_store_records_count(store, list_counts, &l, err);
  return end_list(&l, code, "no records yet");
}

/* ---- export, import -------------------------------------------------------------------------------------------------------- */

static int read_format(const pst_cli_args *a, pst_data_format fallback, pst_data_format *ret_format, pst_error *err) {
  const char *text = pst_cli_text(a, "format");
  *ret_format = fallback;
  if (!text || pst_data_format_from(pst_str_from(text), ret_format)) return 0;
  return pst_error_set(err, PST_E_BAD_INPUT, "format",
                       "--format takes openai, chat, sharegpt, csv, or for import also pairs and auto; not '%.40s'",
                       text);
}

typedef struct set_export {
  FILE *file;
  pst_buf line;
  pst_data_exported done;
} set_export;

static int put_line(set_export *x) {
  pst_buf_putc(&x->line, '\n');
  if (pst_buf_status(&x->line)) return PST_E_NOMEM;
  x->done.n_written++;
  return fwrite(x->line.data, 1, x->line.n, x->file) == x->line.n ? 0 : PST_E_IO;
}

/* A line of a data set as fine-tuning files have it, without what only training here needs. */
static int export_line(void *user, const pst_data_line *line) {
  set_export *x = user;
  pst_buf_clear(&x->line);
  pst_json_writer w = pst_json_writer_on(&x->line, false);
  pst_json_begin_object(&w);
  pst_json_key(&w, "messages");
  pst_json_put_value(&w, line->messages);
  if (line->tools) {
    pst_json_key(&w, "tools");
    pst_json_put_value(&w, line->tools);
  }
  pst_json_end_object(&w);
  return put_line(x);
}

static void put_output(pst_json_writer *w, const char *key, pst_str answer) {
  pst_json_key(w, key);
  pst_json_begin_array(w);
  pst_json_begin_object(w);
  pst_json_member_cstr(w, "role", "assistant");
  pst_json_member_str(w, "content", answer);
  pst_json_end_object(w);
  pst_json_end_array(w);
}

/* As fine-tuning files of the method dpo have it, which know pairs alone. */
static int export_preference(void *user, const pst_data_preference *p) {
  set_export *x = user;
  if (!p->wanted.data || !p->unwanted.data) {
    x->done.n_left_out++;
    return 0;
  }
  pst_buf_clear(&x->line);
  pst_json_writer w = pst_json_writer_on(&x->line, false);
  pst_json_begin_object(&w);
  pst_json_key(&w, "input");
  pst_json_begin_object(&w);
  pst_json_key(&w, "messages");
  pst_json_put_value(&w, p->messages);
  pst_json_end_object(&w);
  put_output(&w, "preferred_output", p->wanted);
  put_output(&w, "non_preferred_output", p->unwanted);
  pst_json_end_object(&w);
  return put_line(x);
}

static int note_kind(void *user, const pst_store_data_set *set) {
  *(bool *)user = pst_str_is(set->kind, pst_data_kind_name(PST_DATA_PREFERENCES));
  return 0;
}

static int export_set(pst_store *store, const char *set, FILE *file, pst_data_exported *ret_done, pst_error *err) {
  set_export x = {.file = file};
  bool preferences = false;
  int code = pst_store_data_set_get(store, pst_str_from(set), note_kind, &preferences, err);
  if (!code && preferences) code = pst_data_set_each_preference(store, pst_str_from(set), export_preference, &x, err);
  if (!code && !preferences) code = pst_data_set_each_line(store, pst_str_from(set), export_line, &x, err);
  if (code == PST_E_IO && err->code != code) code = pst_error_set_errno(err, errno, "export", "cannot write");
  if (code == PST_E_NOMEM) pst_error_set(err, code, NULL, "no memory to export a line");
  if (!code && fflush(file)) code = pst_error_set_errno(err, errno, "export", "cannot write");
  pst_buf_done(&x.line);
  *ret_done = x.done;
  return code;
}

/* A file beside the one that is wanted, which it becomes when it is whole. */
typedef struct output {
  const char *path;
  char *name;
  FILE *file;
} output;

static int open_output(const char *path, output *o, pst_error *err) {
  int fd;
  *o = (output){path, NULL, stdout};
  if (!path || !strcmp(path, "-")) return 0;
  int code = pst_cli_check_writable(path, err);
  if (!code) code = pst_file_open_temporary(path, &o->name, &fd, err);
  if (code) return code;
  o->file = fdopen(fd, "wb");
  if (o->file) return 0;
  code = pst_error_set_errno(err, errno, path, "cannot open");
  (void)unlink(o->name);
  (void)close(fd);
  pst_free(o->name);
  return code;
}

/* With `code` what is there stays as it was. */
static int close_output(output *o, int code, pst_error *err) {
  if (o->file == stdout) return code;
  if (!code && (fflush(o->file) || fsync(fileno(o->file)) || rename(o->name, o->path)))
    code = pst_error_set_errno(err, errno, o->path, "cannot write");
  if (code) (void)unlink(o->name);
  (void)fclose(o->file);
  pst_free(o->name);
  return code;
}

/* With --json on standard output, unless the records themselves go there; else on standard error. */
static void say_exported(const pst_cli_args *a, const char *path, pst_data_format format, const pst_data_exported *e) {
  if (!pst_cli_flag(a, "json") || !path || !strcmp(path, "-")) {
    if (!pst_cli_flag(a, "quiet"))
      fprintf(stderr, "%" PRId64 " records written, %" PRId64 " left out (what %s cannot say)\n", e->n_written,
              e->n_left_out, pst_data_format_name(format));
    return;
  }
  pst_buf text = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&text, true);
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "path", path);
  pst_json_member_cstr(&w, "format", pst_data_format_name(format));
  pst_json_member_int(&w, "written", e->n_written);
  pst_json_member_int(&w, "left_out", e->n_left_out);
  pst_json_end_object(&w);
  puts(pst_buf_text(&text));
  pst_buf_done(&text);
}

static int export_records(const pst_cli_args *a, pst_store *store, pst_error *err) {
  pst_data_export_options o = {.filter = filter_of(a, 1)};
  const char *set = pst_cli_text(a, "set"), *path = pst_cli_text(a, "output");
  pst_data_exported done = {0};
  pst_progress progress;
  output out;
  int code = read_format(a, PST_DATA_OPENAI, &o.format, err);
  if (!code && set && (o.format != PST_DATA_OPENAI || a->n_words > 1 || o.filter.subject.data || o.filter.train))
    code = pst_error_set(err, PST_E_BAD_INPUT, "set", "a data set is exported whole, in the format openai");
  if (code) return code;
  code = open_output(path, &out, err);
  if (code) return code;
  pst_progress_begin(&progress, "exporting", 0, false, pst_cli_flag(a, "quiet"));
  o.progress = &progress;
  code = set ? export_set(store, set, out.file, &done, err) : pst_data_export(store, &o, out.file, &done, err);
  pst_progress_end(&progress);
  if (!code && done.n_written == 0)
    code = pst_error_set(err, PST_E_NO_DATA, "export",
                         "there is no answered record with its texts%s; 'penstock data stats' says what there is",
                         done.n_left_out ? " that this format can say" : "");
  code = close_output(&out, code, err);
  if (!code) say_exported(a, path, o.format, &done);
  return code;
}

static int import_records(const pst_cli_args *a, pst_store *store, pst_error *err) {
  pst_data_import_options o = {.workload = word(a, 1),
                               .subject = pst_str_from(pst_cli_text(a, "subject")),
                               .text_field = pst_cli_text(a, "text"),
                               .answer_field = pst_cli_text(a, "answer")};
  pst_data_imported done = {0};
  pst_progress progress;
  const pst_store_consent all = {.keep = PST_STORE_KEEP_CONTENT, .train = true};
  int code = read_format(a, PST_DATA_AUTO, &o.format, err);
  if (!code) code = pst_cli_consent(a, all, &o.consent, err);
  if (code) return code;
  pst_progress_begin(&progress, "importing", 0, true, pst_cli_flag(a, "quiet"));
  o.progress = &progress;
  code = pst_data_import(store, a->words[2], &o, &done, err);
  pst_progress_end(&progress);
  if (code) return code;
  if (pst_cli_flag(a, "json"))
    printf("{\"new\": %" PRId64 ", \"known\": %" PRId64 ", \"format\": \"%s\"}\n", done.n_new, done.n_known,
           pst_data_format_name(done.format));
  else
    printf("%" PRId64 " records imported from %s rows, %" PRId64 " were there already%s\n", done.n_new,
           pst_data_format_name(done.format), done.n_known,
           done.n_known ? " and keep the consent that they have ('penstock data delete --imported' takes them back)"
                        : "");
  return 0;
}

/* ---- delete, prune --------------------------------------------------------------------------------------------------------- */

static void print_erasure(const pst_cli_args *a, const pst_store_erasure *e, const char *verb) {
  if (pst_cli_flag(a, "json")) {
    pst_buf out = PST_BUF_INIT;
    pst_json_writer w = pst_json_writer_on(&out, true);
    pst_json_begin_object(&w);
    pst_json_member_int(&w, "records", e->n_records);
    pst_json_key(&w, "data_sets");
    pst_json_begin_array(&w);
    for (size_t i = 0; i < e->n_sets; i++) {
      pst_json_begin_object(&w);
      pst_json_member_opt(&w, "data_set", pst_str_from(e->sets[i].hash));
      pst_json_member_opt(&w, "kind", pst_str_from(e->sets[i].kind));
      pst_json_member_int(&w, "lines", e->sets[i].n_lines);
      pst_json_member_cstr(&w, "replaced_by", e->sets[i].replaced_by[0] ? e->sets[i].replaced_by : NULL);
      pst_json_end_object(&w);
    }
    pst_json_end_array(&w);
    pst_json_key(&w, "stale");
    pst_json_begin_array(&w);
    for (size_t i = 0; i < e->n_uses; i++) {
      pst_json_begin_object(&w);
      pst_json_member_opt(&w, "kind", pst_str_from(e->uses[i].kind));
      pst_json_member_opt(&w, "name", pst_str_from(e->uses[i].name));
      pst_json_member_opt(&w, "data_set", pst_str_from(e->uses[i].hash));
      pst_json_end_object(&w);
    }
    pst_json_end_array(&w);
    pst_json_member_bool(&w, "bytes_in_log", e->in_log);
    pst_json_end_object(&w);
    puts(pst_buf_text(&out));
    pst_buf_done(&out);
    return;
  }
  printf("%" PRId64 " records %s\n", e->n_records, verb);
  for (size_t i = 0; i < e->n_sets; i++)
    printf("data set %.12s: %" PRId64 " lines gone%s%.12s\n", e->sets[i].hash, e->sets[i].n_lines,
           e->sets[i].replaced_by[0] ? "; now " : "; withdrawn", e->sets[i].replaced_by);
  for (size_t i = 0; i < e->n_uses; i++)
    printf("%s %s was made of it: %s\n", e->uses[i].kind, e->uses[i].name,
           !strcmp(e->uses[i].kind, PST_STORE_PRODUCT_FOLDER) || !strcmp(e->uses[i].kind, PST_STORE_PRODUCT_EXAMPLES)
               ? "gone with it, run the turn again"
               : "make it again, or remove it");
  if (e->in_log)
    puts("another process reads the store: bytes are overwritten by 'penstock data prune' when it is done");
}

static int delete_records(const pst_cli_args *a, pst_store *store, pst_error *err) {
  pst_store_erasure e;
  pst_str subject = pst_str_from(pst_cli_text(a, "subject")), id = pst_str_from(pst_cli_text(a, "id")),
          imported = pst_str_from(pst_cli_text(a, "imported"));
  int64_t now_ms = pst_clock_unix_ms();
  if ((subject.n > 0) + (id.n > 0) + (imported.n > 0) != 1)
    return pst_error_set(err, PST_E_BAD_INPUT, "delete",
                         "say which records: one of --subject ID, --id ID and --imported WORKLOAD");
  char *found = NULL;
  int code = id.n ? pst_cli_record_find(store, id, &found, err) : 0;
  if (found) id = pst_str_from(found);
  if (!code)
    code = imported.n ? pst_store_records_unimport(store, imported, now_ms, &e, err)
                      : pst_store_records_erase(store, subject, id, now_ms, &e, err);
  pst_free(found);
  if (code) return code;
  print_erasure(a, &e, "deleted");
  pst_store_erasure_done(&e);
  return 0;
}

static int prune(const pst_cli_args *a, pst_store *store, pst_error *err) {
  pst_store_erasure e;
  int code = pst_store_records_prune(store, pst_clock_unix_ms(), &e, err);
  if (code) return code;
  print_erasure(a, &e, "had expired and were forgotten");
  pst_store_erasure_done(&e);
  return 0;
}

/* ---- curate ---------------------------------------------------------------------------------------------------------------- */

static int print_report(const pst_cli_args *a, const pst_buf *report, pst_error *err) {
  pst_buf text = PST_BUF_INIT;
  int code = 0;
  if (pst_cli_flag(a, "json"))
    puts(pst_buf_text(report));
  else
    code = pst_data_report_text(pst_buf_str(report), &text, err);
  if (text.n) fputs(pst_buf_text(&text), stdout);
  pst_buf_done(&text);
  return code;
}

static int curate(const pst_cli_args *a, pst_store *store, pst_error *err) {
  pst_evals_workload *form = NULL;
  pst_data_curate_options o = {.workload = word(a, 1),
                               .near_duplicate = pst_cli_number(a, "near"),
                               .min_score = pst_cli_given(a, "min-score") ? pst_cli_number(a, "min-score") : 0,
                               .has_min_score = pst_cli_given(a, "min-score"),
                               .most_per_label = pst_cli_int(a, "per-label"),
                               .held = pst_cli_number(a, "held"),
                               .keep_pii = pst_cli_flag(a, "keep-private"),
                               .drop_suspects = pst_cli_flag(a, "drop-suspects"),
                               .skip_suspects = pst_cli_flag(a, "skip-suspects"),
                               .kind = pst_cli_flag(a, "preferences") ? PST_DATA_PREFERENCES : PST_DATA_TRAINING,
                               .gap_model = pst_cli_text(a, "gap-model"),
                               .least_gap = pst_cli_number(a, "least-gap"),
                               .flag_gaps = pst_cli_flag(a, "flag-gaps"),
                               .n_examples = (int)pst_cli_int(a, "examples"),
                               .seed = (uint64_t)pst_cli_int(a, "seed")};
  pst_data_curated done;
  pst_buf report = PST_BUF_INIT;
  pst_progress progress;
  int code = 0;
  pst_gateway *gateway = NULL;
  const pst_gateway_options gateway_options = {.home = pst_store_home(store)};
  if (!o.gap_model && (pst_cli_given(a, "least-gap") || o.flag_gaps))
    code = pst_error_set(err, PST_E_BAD_INPUT, "data curate",
                         "--least-gap and --flag-gaps are of --gap-model: say which model judges");
  if (!code && pst_cli_given(a, "form")) code = pst_evals_workload_open(pst_cli_text(a, "form"), &form, err);
  if (!code && o.gap_model) code = pst_gateway_open(store, &gateway_options, &gateway, err);
  if (code) {
    pst_evals_workload_free(form);
    return code;
  }
  o.form = form;
  o.gateway = gateway;
  pst_progress_begin(&progress, "curating", 0, false, pst_cli_flag(a, "quiet"));
  o.progress = &progress;
  code = pst_data_curate(store, &o, &done, &report, err);
  pst_progress_end(&progress);
  if (!code) code = print_report(a, &report, err);
  if (!code && !done.hash[0]) code = PST_CLI_NO_DATA;
  pst_buf_done(&report);
  if (gateway) pst_gateway_close(gateway);
  pst_evals_workload_free(form);
  return code;
}

/* ---- the command ----------------------------------------------------------------------------------------------------------- */

enum { LIST, SHOW, STATS, SETS, IMPORT, EXPORT, CURATE, DELETE, PRUNE, N_ACTIONS };
static const char *const action_names[N_ACTIONS] = {"list",   "show",   "stats",  "sets", "import",
                                                    "export", "curate", "delete", "prune"};
enum {
  OF_LIST = 1 << LIST,
  OF_IMPORT = 1 << IMPORT,
  OF_EXPORT = 1 << EXPORT,
  OF_CURATE = 1 << CURATE,
  OF_DELETE = 1 << DELETE
};
static const pst_cli_owned owned[] = {{"limit", OF_LIST},
                                      {"subject", OF_LIST | OF_IMPORT | OF_EXPORT | OF_DELETE},
                                      {"id", OF_DELETE},
                                      {"imported", OF_DELETE},
                                      {"trainable", OF_LIST | OF_EXPORT},
                                      {"format", OF_IMPORT | OF_EXPORT},
                                      {"set", OF_EXPORT},
                                      {"output", OF_EXPORT},
                                      {"text", OF_IMPORT},
                                      {"answer", OF_IMPORT},
                                      {"keep", OF_IMPORT},
                                      {"train", OF_IMPORT},
                                      {"retention", OF_IMPORT},
                                      {"near", OF_CURATE},
                                      {"per-label", OF_CURATE},
                                      {"held", OF_CURATE},
                                      {"min-score", OF_CURATE},
                                      {"form", OF_CURATE},
                                      {"keep-private", OF_CURATE},
                                      {"drop-suspects", OF_CURATE},
                                      {"skip-suspects", OF_CURATE},
                                      {"gap-model", OF_CURATE},
                                      {"least-gap", OF_CURATE},
                                      {"flag-gaps", OF_CURATE},
                                      {"preferences", OF_CURATE},
                                      {"examples", OF_CURATE},
                                      {"seed", OF_CURATE}};

static int run_data(const pst_cli_args *a, pst_error *err) {
  static const struct {
    const char *words;
    int min_words, max_words; /* behind the verb */
    int (*run)(const pst_cli_args *a, pst_store *store, pst_error *err);
  } actions[N_ACTIONS] = {[LIST] = {"[WORKLOAD]", 0, 1, list},
                          [SHOW] = {"ID", 1, 1, show},
                          [STATS] = {"", 0, 0, stats},
                          [SETS] = {"[WORKLOAD]", 0, 1, sets},
                          [IMPORT] = {"WORKLOAD FILE", 2, 2, import_records},
                          [EXPORT] = {"[WORKLOAD]", 0, 1, export_records},
                          [CURATE] = {"WORKLOAD", 1, 1, curate},
                          [DELETE] = {"--subject ID, --id ID or --imported WORKLOAD", 0, 0, delete_records},
                          [PRUNE] = {"", 0, 0, prune}};
  int i, code = pst_cli_action(a, action_names, N_ACTIONS, owned, PST_ARRAY_LEN(owned), &i, err);
  if (code) return code;
  if (a->n_words - 1 < actions[i].min_words || a->n_words - 1 > actions[i].max_words)
    return pst_error_set(err, PST_E_BAD_INPUT, "data", "it is: penstock data %s %s", action_names[i], actions[i].words);
  pst_store *store = NULL;
  char *workload = NULL;
  const char *words[3] = {0};
  pst_cli_args named = *a;
  for (int k = 0; k < a->n_words; k++) words[k] = a->words[k];
  named.words = words;
  if (i != SHOW && a->n_words > 1) code = pst_cli_workload_name(words[1], &workload, err);
  if (workload) words[1] = workload;
  if (!code) code = pst_cli_store_open(a, &store, err);
  if (!code) code = actions[i].run(&named, store, err);
  pst_store_close(store);
  pst_free(workload);
  return code;
}

static const pst_cli_option options[] = {
    {"limit", 'n', PST_CLI_INT, "N", "20", 1, 1000000, false, "list: the newest N"},
    {"subject", 's', PST_CLI_TEXT, "ID", NULL, 0, 0, false,
     "whose records: to list, export or delete; import: of rows that name none"},
    {"id", 0, PST_CLI_TEXT, "ID", NULL, 0, 0, false, "delete: one record, by its id or number"},
    {"imported", 0, PST_CLI_TEXT, "WORKLOAD", NULL, 0, 0, false, "delete: all that was imported under this name"},
    {"trainable", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false, "list, export: only what may be trained on"},
    {"format", 'f', PST_CLI_TEXT, "NAME", NULL, 0, 0, false,
     "openai (export's default), chat, sharegpt, csv; import: also pairs, auto (default)"},
    {"set", 0, PST_CLI_TEXT, "HASH", NULL, 0, 0, false, "export: the lines of a data set instead of records"},
    {"output", 'o', PST_CLI_TEXT, "FILE", NULL, 0, 0, false, "export: where to (default: standard output)"},
    {"text", 0, PST_CLI_TEXT, "FIELD", NULL, 0, 0, false, "import: field or column of the text (default: found)"},
    {"answer", 0, PST_CLI_TEXT, "FIELD", NULL, 0, 0, false, "import: field or column of the answer (default: found)"},
    {"near", 0, PST_CLI_NUMBER, "J", "0.8", 0.5, 1, false, "curate: Jaccard index of words that makes near-duplicates"},
    {"per-label", 0, PST_CLI_INT, "N", "0", 0, 1e9, false, "curate: at most so many examples of a label (0: all)"},
    {"held", 0, PST_CLI_NUMBER, "SHARE", "0.1", 0, 0.9, false, "curate: share held back from training, by cluster"},
    {"min-score", 0, PST_CLI_NUMBER, "X", NULL, -1e300, 1e300, false, "curate: a feedback score below is bad [0.5]"},
    {"form", 0, PST_CLI_TEXT, "FOLDER", NULL, 0, 0, false,
     "curate: a workload whose labels or JSON the answers must have; its items are guarded"},
    {"keep-private", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false, "curate: leave private data in the texts"},
    {"drop-suspects", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false, "curate: leave out likely wrong labels"},
    {"skip-suspects", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false, "curate: do not look for likely wrong labels"},
    {"gap-model", 0, PST_CLI_TEXT, "NAME", NULL, 0, 0, false,
     "curate: leave out answers that this model finds no likelier behind their questions than alone"},
    {"least-gap", 0, PST_CLI_NUMBER, "X", "0", -100, 100, false, "curate: what an answer must gain, nats a token"},
    {"flag-gaps", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false, "curate: only list such answers"},
    {"preferences", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false,
     "curate: what was said of answers, for 'tune --objective dpo' and kto, instead of examples"},
    {"examples", 0, PST_CLI_INT, "N", "3", 1, 1000, false, "curate: examples of each reason in the report"},
    {"seed", 0, PST_CLI_INT, "N", "1", 0, 9e15, false, "curate: of what is drawn"},
    {"keep", 0, PST_CLI_TEXT, "WHAT", "content", 0, 0, false,
     "import: of a row; nothing less is taken, as rows are texts"},
    {"train", 0, PST_CLI_TEXT, "YES/NO", NULL, 0, 0, false,
     "import: whether rows may become training data (default: yes)"},
    {"retention", 0, PST_CLI_INT, "DAYS", "0", 0, PST_STORE_RETENTION_MAX, false,
     "import: then texts, subject and feedback are deleted (0: never)"},
    PST_CLI_QUIET,
    PST_CLI_HOME,
    PST_CLI_JSON,
};
const pst_cli_command pst_cli_data = {
    "data",
    "ACTION ...",
    "records: see, import, export, curate, delete",
    "list [WORKLOAD]        records, newest first\n"
    "show ID                one record (by its number or id), or a data set, whole\n"
    "stats                  how many there are of each workload, and what may be done with them\n"
    "sets [WORKLOAD]        data sets made of records\n"
    "import WORKLOAD FILE   JSON lines, a JSON array or CSV become records, all or none ('-': standard input); with nothing said,\n"
    "                       whole, for training too, and for good (--keep, --train, --retention)\n"
    "export [WORKLOAD]      answered records with their texts; a correction replaces its answer. --set HASH: a data set's lines,\n"
    "                       of preferences the pairs, as fine-tuning by dpo reads them\n"
    "curate WORKLOAD        makes a data set of records that may be trained on, and says what was left out and why\n"
    "delete --subject ID    deletes somebody's records, and their lines in data sets; --id: one record;\n"
    "                       --imported WORKLOAD: what was imported under that name\n"
    "prune                  forgets what has expired (serve does so every hour); what has expired is not read meanwhile\n"
    "WORKLOAD is a name, or a folder with a workload.json that says it.",
    1,
    3,
    options,
    PST_ARRAY_LEN(options),
    run_data};
