/* The job "fine_tune": an uploaded file of conversations becomes an adapter of a model, known by name.
 *
 * Owns the way from lines to texts. A conversation is learned as it will be served: through the model's own template, the answer with what ends it there. What the
 * file says twice is never both learned and held out. */
#include <inttypes.h>
#include <math.h>
#include <string.h>
#include <unistd.h>

#include <penstock/gateway.h>
#include <penstock/tune.h>
#include <penstock/wire.h>

#include "flywheel/model.h"
#include "flywheel/worker.h"

enum { HELD_OUT_SHARE = 10, MAX_HELD_OUT = 64, EVENTS = 40 };

typedef struct text_list {
  pst_tune_text *texts;
  size_t n, capacity;
} text_list;

typedef struct finetune {
  pst_flywheel_job *job;
  pst_flywheel_model base;
  pst_arena *arena; /* the texts' tokens */
  text_list learned, held_out;
  int64_t next_event;
  double shown_held_out; /* held-out loss of the last event; NAN: none */
  char *dir;             /* HOME/jobs */
} finetune;

/* ---- texts ---- */

static int no_memory(pst_error *err) { return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the texts"); }

static int keep_text(finetune *f, bool may_hold_out, const pst_engine_tokens *tokens, size_t n_given, pst_error *err) {
  bool hold = may_hold_out && f->held_out.n < MAX_HELD_OUT &&
              pst_hash64(tokens->ids, n_given * sizeof *tokens->ids, 7) % HELD_OUT_SHARE == 0;
  text_list *list = hold ? &f->held_out : &f->learned;
  int32_t *ids = pst_arena_alloc(f->arena, tokens->n * sizeof *ids);
  if (!ids || pst_array_reserve((void **)&list->texts, &list->capacity, list->n + 1, sizeof *list->texts))
    return no_memory(err);
  memcpy(ids, tokens->ids, tokens->n * sizeof *ids);
  list->texts[list->n++] = (pst_tune_text){.tokens = ids, .n = tokens->n, .n_given = n_given, .weight = 1};
  return 0;
}

static int read_line(finetune *f, pst_str line, bool may_hold_out, pst_error *err) {
  pst_json_doc *doc = NULL;
  pst_wire_request request = {0};
  pst_buf body = PST_BUF_INIT;
  pst_engine_tokens tokens = {0};
  size_t n_given = 0;
  pst_json_writer w = pst_json_writer_on(&body, false);
  int code = pst_json_parse(line.data, line.n, "line", &doc, err);
  if (code) return code;
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "model", "base");
  for (pst_json_iter it = pst_json_iterate(pst_json_root(doc)); pst_json_next(&it);) {
    if (!pst_str_is(it.key, "messages") && !pst_str_is(it.key, "tools")) continue;
    pst_json_key_str(&w, it.key);
    pst_json_put_value(&w, it.value);
  }
  pst_json_end_object(&w);
  code =
      pst_buf_status(&body) ? no_memory(err) : pst_wire_request_parse(PST_WIRE_CHAT, pst_buf_str(&body), &request, err);
  if (!code && request.chat.n_messages < 2)
    code = pst_error_set(err, PST_E_BAD_INPUT, "messages", "a conversation has a question and an answer");
  if (!code) code = pst_engine_render_answered(f->base.model, &request.chat, &tokens, &n_given, err);
  if (!code) code = keep_text(f, may_hold_out, &tokens, n_given, err);
  pst_engine_tokens_done(&tokens);
  pst_wire_request_done(&request);
  pst_buf_done(&body);
  pst_json_free(doc);
  return code;
}

static int read_file(finetune *f, pst_str hash, bool may_hold_out, pst_error *err) {
  char *path = NULL, *data = NULL;
  size_t n = 0;
  int64_t line = 0;
  int code = pst_store_file_path(f->job->store, hash, &path, err);
  if (!code) code = pst_file_read(path, SIZE_MAX / 2, &data, &n, err);
  for (size_t at = 0; at < n && !code;) {
    pst_error why = PST_ERROR_INIT;
    size_t end = PST_MIN(pst_str_find((pst_str){data, n}, PST_STR("\n"), at), n);
    pst_str one = pst_str_trim((pst_str){data + at, end - at});
    at = end + 1;
    line++;
    if (one.n) code = read_line(f, one, may_hold_out, &why);
    if (code) pst_error_set(err, code, "training_file", "line %" PRId64 ": %s: %s", line, why.place, why.message);
  }
  pst_free(path);
  pst_free(data);
  return code;
}

/* With a file of its own for them, the held-out texts are the first of that. */
static int read_texts(finetune *f, pst_error *err) {
  pst_str training = pst_json_str(pst_json_get(f->job->params, "training_hash"));
  pst_str validation = pst_json_str(pst_json_get(f->job->params, "validation_hash"));
  int code = 0;
  if (validation.n) {
    code = read_file(f, validation, false, err);
    f->held_out = f->learned;
    f->held_out.n = PST_MIN(f->held_out.n, (size_t)MAX_HELD_OUT);
    f->learned = (text_list){0};
  }
  return code ? code : read_file(f, training, !validation.n, err);
}

/* ---- training ---- */

static void on_progress(void *user, const pst_tune_progress *p) {
  finetune *f = user;
  char text[160], data[200];
  double held_out = p->held_out_loss;
  (void)snprintf(text, sizeof text, "step %" PRId64 " of %" PRId64 ", loss %.4f, %.0f tokens/s, %.0f s left", p->step,
                 p->n_steps, p->loss, p->tokens_per_second, p->seconds_left);
  pst_flywheel_job_report(f->job, (double)p->step / (double)PST_MAX(p->n_steps, INT64_C(1)), text);
  bool measured = held_out == held_out && held_out != f->shown_held_out;
  if (p->step < f->next_event && !measured && p->step < p->n_steps) return;
  f->next_event = p->step + PST_MAX(p->n_steps / EVENTS, INT64_C(1));
  f->shown_held_out = held_out;
  int n = snprintf(data, sizeof data, "{\"step\":%" PRId64 ",\"total_steps\":%" PRId64 ",\"train_loss\":%.5f", p->step,
                   p->n_steps, p->loss);
  if (measured) n += snprintf(data + n, sizeof data - (size_t)n, ",\"valid_loss\":%.5f", held_out);
  (void)snprintf(data + n, sizeof data - (size_t)n, "}");
  (void)snprintf(text, sizeof text, "Step %" PRId64 "/%" PRId64 ": training loss=%.2f", p->step, p->n_steps, p->loss);
  pst_flywheel_job_event(f->job, "info", text, data);
}

static bool is_cancelled(void *user) {
  const finetune *f = user;
  return f->job->cancelled || f->job->stopping;
}

static char *place(const finetune *f, const char *ending) {
  pst_buf path = PST_BUF_INIT;
  pst_buf_printf(&path, "%s/ftjob-%" PRId64 ".%s", f->dir, f->job->id, ending);
  return pst_buf_take(&path);
}

static size_t longest(const text_list *list) {
  size_t most = 0;
  for (size_t i = 0; i < list->n; i++) most = PST_MAX(most, list->texts[i].n);
  return most;
}

static int train(finetune *f, const char *checkpoint, pst_engine_lora *lora, pst_tune_report *report, pst_error *err) {
  const pst_json *params = f->job->params;
  pst_tune_options o = pst_tune_options_default();
  double times = pst_json_double(pst_json_get(params, "learning_rate_multiplier"), 0);
  int64_t epochs = pst_json_int(pst_json_get(params, "n_epochs"), 0),
          batch = pst_json_int(pst_json_get(params, "batch_size"), 0);
  if (times > 0) o.learning_rate *= times;
  if (epochs > 0) o.max_epochs = (int)epochs;
  if (batch > 0) o.batch_texts = (int)batch;
  o.seed = (uint64_t)pst_json_int(pst_json_get(params, "seed"), 1);
  o.threads = f->job->options->threads;
  o.max_tokens = (int)PST_MAX((size_t)o.max_tokens, PST_MAX(longest(&f->learned), longest(&f->held_out)));
  o.checkpoint = checkpoint;
  o.on_progress = on_progress;
  o.cancelled = is_cancelled;
  o.user = f;
  return pst_tune_train(f->base.model, f->learned.texts, f->learned.n, f->held_out.texts, f->held_out.n, &o, lora,
                        report, err);
}

/* ---- the adapter ---- */

/* "my Suffix" to "my-suffix-7": what a name may have, and the job's number, which makes it the only one. */
static void name_adapter(const finetune *f, char name[64]) {
  pst_str suffix = pst_json_str(pst_json_get(f->job->params, "suffix"));
  size_t n = 0;
  for (size_t i = 0; i < suffix.n && n < 40; i++) {
    char c = suffix.data[i] >= 'A' && suffix.data[i] <= 'Z' ? (char)(suffix.data[i] + 32) : suffix.data[i];
    bool plain = (c >= 'a' && c <= 'z') || (c >= '0' && c <= '9');
    if (plain || (n && name[n - 1] != '-')) name[n++] = plain ? c : '-';
  }
  if (n == 0) name[n++] = 'f', name[n++] = 't';
  if (name[n - 1] == '-') n--;
  (void)snprintf(name + n, 64 - n, "-%" PRId64, f->job->id);
}

static int add_adapter(finetune *f, pst_engine_lora *lora, char name[64], pst_error *err) {
  char run[40], model[256];
  char *path = place(f, "gguf");
  pst_str target = pst_json_str(pst_json_get(f->job->params, "target"));
  pst_str data = pst_json_str(pst_json_get(f->job->params, "training_hash"));
  char hash[65];
  (void)snprintf(hash, sizeof hash, "%.*s", (int)data.n, data.data);
  (void)snprintf(model, sizeof model, "%.*s", (int)target.n, target.data);
  pst_wire_id_write("ftjob", f->job->id, run);
  name_adapter(f, name);
  int code = path ? 0 : no_memory(err);
  if (!code) code = pst_engine_lora_set_note(lora, PST_ENGINE_LORA_NAME, name, err);
  if (!code) code = pst_engine_lora_write_gguf(lora, path, err);
  const pst_gateway_adapter adapter = {.name = name, .path = path, .model = model, .data = hash, .run = run};
  if (!code) code = pst_gateway_adapter_add(f->job->store, &adapter, NULL, err);
  if (path) (void)unlink(path);
  pst_free(path);
  return code;
}

/* ---- the job ---- */

static int open_model(finetune *f, pst_error *err) {
  pst_str target = pst_json_str(pst_json_get(f->job->params, "target"));
  int code = pst_flywheel_model_open(f->job->store, target, f->job->options->threads, &f->base, err);
  f->dir = pst_path_join(pst_store_home(f->job->store), "jobs");
  f->arena = pst_arena_create();
  if (!code && (!f->dir || !f->arena)) code = no_memory(err);
  return code ? code : pst_dir_make(f->dir, err);
}

static int run(finetune *f, pst_buf *result, pst_error *err) {
  pst_engine_lora lora = {0};
  pst_tune_report report = {0};
  char name[64], text[160];
  pst_flywheel_job_report(f->job, 0, "opening the model");
  int code = open_model(f, err);
  if (!code) code = read_texts(f, err);
  char *checkpoint = code ? NULL : place(f, "checkpoint");
  if (!code && !checkpoint) code = no_memory(err);
  if (!code) {
    (void)snprintf(text, sizeof text, "Fine-tuning job started: %zu examples, %zu held out", f->learned.n,
                   f->held_out.n);
    pst_flywheel_job_event(f->job, "info", text, NULL);
    code = train(f, checkpoint, &lora, &report, err);
  }
  if (!code) code = add_adapter(f, &lora, name, err);
  if (checkpoint && (!code || (code == PST_E_CANCELLED && f->job->cancelled))) (void)unlink(checkpoint);
  if (!code) {
    pst_str model = pst_json_str(pst_json_get(f->job->params, "model"));
    pst_json_writer w = pst_json_writer_on(result, false);
    pst_buf tuned = PST_BUF_INIT;
    pst_buf_printf(&tuned, "%.*s:%s", (int)model.n, model.data, name);
    pst_json_begin_object(&w);
    pst_json_member_str(&w, "fine_tuned_model", pst_buf_str(&tuned));
    pst_json_member_int(&w, "trained_tokens", report.n_tokens);
    pst_json_member_double(&w, "held_out_loss", report.held_out_loss);
    pst_json_end_object(&w);
    (void)snprintf(text, sizeof text, "New fine-tuned model created: %.120s", pst_buf_text(&tuned));
    pst_flywheel_job_event(f->job, "info", text, NULL);
    pst_buf_done(&tuned);
  }
  pst_engine_lora_done(&lora);
  pst_free(checkpoint);
  return code;
}

int pst_flywheel_finetune(pst_flywheel_job *job, pst_buf *result, pst_error *err) {
  finetune f = {.job = job, .shown_held_out = NAN};
  int code = run(&f, result, err);
  pst_flywheel_model_close(&f.base);
  pst_arena_free(f.arena);
  pst_free(f.learned.texts);
  pst_free(f.held_out.texts);
  pst_free(f.dir);
  return code;
}
