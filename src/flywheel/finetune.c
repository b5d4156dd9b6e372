/* The job "fine_tune": an uploaded file of conversations, or of preferences between answers, becomes an adapter of a model, known by name.
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
  pst_wire_tuning_method method;
  size_t unit; /* texts of an example: 2 in DPO */
  pst_flywheel_model base;
  char *model, *from;      /* its name, and that of the adapter to start from (NULL: none) */
  pst_engine_lora start;   /* that adapter */
  pst_engine_codes *given; /* its codes; NULL: none */
  pst_arena *arena;        /* the texts' tokens */
  text_list learned, held_out;
  text_list surplus; /* of prompts that are held out, beyond what is asked: neither learned nor asked */
  bool may_hold_out; /* of the file at hand */
  int64_t next_event;
  double shown_held_out; /* held-out loss of the last event; NAN: none */
  double share;          /* done, by steps */
  char text[160];        /* how it stands */
  char *dir;             /* HOME/jobs */
  int32_t *coded;        /* tokens of texts in output codes */
  pst_buf codes;         /* their table; empty: none */
} finetune;

/* ---- texts ---- */

static int no_memory(pst_error *err) { return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the texts"); }

static bool is_held_out(const finetune *f, const int32_t *prompt, size_t n) {
  for (size_t i = 0; i < f->held_out.n; i += f->unit) {
    const pst_tune_text *held = &f->held_out.texts[i];
    if (held->n_given == n && !memcmp(held->tokens, prompt, n * sizeof *prompt)) return true;
  }
  return false;
}

/* By the prompt, so that nothing that is said of it is learned while it is held out. */
static text_list *list_for(finetune *f, const pst_engine_tokens *tokens, size_t n_given) {
  if (!f->may_hold_out || pst_hash64(tokens->ids, n_given * sizeof *tokens->ids, 7) % HELD_OUT_SHARE != 0)
    return &f->learned;
  if (f->held_out.n < MAX_HELD_OUT * f->unit) return &f->held_out;
  return is_held_out(f, tokens->ids, n_given) ? &f->surplus : &f->learned;
}

/* list: where it goes; NULL there: that is decided here, and told. */
static int keep_text(finetune *f, const pst_wire_request *request, text_list **list, pst_error *err) {
  pst_engine_tokens tokens = {0};
  size_t n_given = 0, most = (size_t)pst_engine_model_get_info(f->base.model)->n_ctx_train;
  int code = pst_engine_render_answered(f->base.model, &request->chat, &tokens, &n_given, err);
  if (!code && tokens.n > most)
    code = pst_error_set(err, PST_E_BAD_INPUT, NULL, "%zu tokens are more than the model's context of %zu", tokens.n,
                         most);
  for (size_t i = n_given; i < tokens.n && !code && f->given; i++)
    if (pst_engine_codes_find(f->given, tokens.ids[i]))
      code = pst_error_set(err, PST_E_BAD_INPUT, NULL,
                           "the answer has a token that is an output code of the adapter to start from");
  if (!code) {
    if (!*list) *list = list_for(f, &tokens, n_given);
    text_list *l = *list;
    int32_t *ids = pst_arena_alloc(f->arena, tokens.n * sizeof *ids);
    if (!ids || pst_array_reserve((void **)&l->texts, &l->capacity, l->n + 1, sizeof *l->texts)) {
      code = no_memory(err);
    } else {
      memcpy(ids, tokens.ids, tokens.n * sizeof *ids);
      l->texts[l->n++] = (pst_tune_text){.tokens = ids, .n = tokens.n, .n_given = n_given, .weight = 1};
    }
  }
  pst_engine_tokens_done(&tokens);
  return code;
}

static int keep_line(void *user, const pst_wire_tuning_line *line, pst_error *err) {
  finetune *f = user;
  text_list *list = NULL;
  int code = keep_text(f, &line->wanted, &list, err);
  if (!code && f->unit == 2) code = keep_text(f, &line->unwanted, &list, err);
  return code;
}

static int read_file(finetune *f, pst_str hash, const char *field, pst_error *err) {
  char *path = NULL, *data = NULL;
  size_t n = 0;
  int64_t n_lines = 0;
  int code = pst_store_upload_path(f->job->store, hash, &path, err);
  if (!code) code = pst_file_read(path, SIZE_MAX / 2, &data, &n, err);
  if (!code) {
    pst_error why = PST_ERROR_INIT;
    code = pst_wire_tuning_lines_each((pst_str){data, n}, f->method, keep_line, f, &n_lines, &why);
    if (code) pst_error_set(err, code, field, "%s", why.message);
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
    code = read_file(f, validation, "validation_file", err);
    f->held_out = f->learned;
    f->held_out.n = PST_MIN(f->held_out.n, MAX_HELD_OUT * f->unit);
    f->learned = (text_list){0};
  }
  f->may_hold_out = !validation.n;
  if (!code) code = read_file(f, training, "training_file", err);
  if (!code && !f->learned.n) { /* all of one prompt */
    f->learned = f->held_out;
    f->held_out = (text_list){0};
  }
  return code;
}

/* ---- training ---- */

static void on_progress(void *user, const pst_tune_progress *p) {
  finetune *f = user;
  char text[160], data[280];
  double held_out = p->held_out_loss;
  (void)snprintf(f->text, sizeof f->text, "step %" PRId64 " of %" PRId64 ", loss %.4f, %.0f tokens/s, %.0f s left",
                 p->step, p->n_steps, p->loss, p->tokens_per_second, p->seconds_left);
  f->share = (double)p->step / (double)PST_MAX(p->n_steps, INT64_C(1));
  bool measured = held_out == held_out && held_out != f->shown_held_out;
  if (p->step < f->next_event && !measured && p->step < p->n_steps) return;
  f->next_event = p->step + PST_MAX(p->n_steps / EVENTS, INT64_C(1));
  f->shown_held_out = held_out;
  int n = snprintf(data, sizeof data, "{\"step\":%" PRId64 ",\"total_steps\":%" PRId64 ",\"train_loss\":%.5f", p->step,
                   p->n_steps, p->loss);
  if (measured) n += snprintf(data + n, sizeof data - (size_t)n, ",\"valid_loss\":%.5f", held_out);
  if (p->margin == p->margin)
    n += snprintf(data + n, sizeof data - (size_t)n, ",\"reward_margin\":%.5f,\"reward_accuracy\":%.4f", p->margin,
                  p->accuracy);
  (void)snprintf(data + n, sizeof data - (size_t)n, "}");
  (void)snprintf(text, sizeof text, "Step %" PRId64 "/%" PRId64 ": training loss=%.2f", p->step, p->n_steps, p->loss);
  pst_flywheel_job_event(f->job, "info", text, data);
}

/* Asked before each step, and while a model that is to learn preferences is asked what it says of them now, which may take hours. */
static bool is_cancelled(void *user) {
  finetune *f = user;
  pst_flywheel_job_report(f->job, f->share, f->text);
  return f->job->cancelled || f->job->stopping;
}

static char *place(const finetune *f, const char *ending) {
  pst_buf path = PST_BUF_INIT;
  pst_buf_printf(&path, "%s/" PST_FLYWHEEL_JOB_FILE "%" PRId64 ".%s", f->dir, f->job->id, ending);
  return pst_buf_take(&path);
}

static size_t longest(const text_list *list) {
  size_t most = 0;
  for (size_t i = 0; i < list->n; i++) most = PST_MAX(most, list->texts[i].n);
  return most;
}

/* What the job asks for, and else what is usual. */
static pst_tune_options options_of(finetune *f, const char *checkpoint) {
  const pst_json *params = f->job->params;
  pst_tune_options o = pst_tune_options_for(f->method == PST_WIRE_TUNING_DPO ? PST_TUNE_DPO : PST_TUNE_SFT);
  double times = pst_json_double(pst_json_get(params, "learning_rate_multiplier"), 0),
         beta = pst_json_double(pst_json_get(params, "beta"), 0);
  int64_t epochs = pst_json_int(pst_json_get(params, "n_epochs"), 0),
          batch = pst_json_int(pst_json_get(params, "batch_size"), 0);
  if (times > 0) o.learning_rate *= times;
  if (beta > 0) o.beta = beta;
  if (epochs > 0) o.max_epochs = (int)epochs;
  if (batch > 0) o.batch_texts = (int)batch;
  if (f->from) pst_tune_options_start(&o, &f->start);
  o.seed = (uint64_t)pst_json_int(pst_json_get(params, "seed"), 1);
  o.threads = f->job->options->threads;
  o.max_tokens = (int)PST_MAX((size_t)o.max_tokens, PST_MAX(longest(&f->learned), longest(&f->held_out)));
  o.checkpoint = checkpoint;
  o.on_progress = on_progress;
  o.cancelled = is_cancelled;
  o.user = f;
  return o;
}

/* ---- output codes ---- */

static void say_codes(const finetune *f, const pst_engine_codes *codes) {
  char text[160];
  const pst_engine_code *list;
  if (codes)
    (void)snprintf(text, sizeof text, "Answers are learned in %zu output codes", pst_engine_codes_list(codes, &list));
  else
    (void)snprintf(text, sizeof text, "No output codes: no piece of the answers is frequent enough");
  pst_flywheel_job_event(f->job, "info", text, NULL);
}

/* Where it is asked for, or the adapter to start from has them. One table for all texts, held-out ones at the end. */
static int use_codes(finetune *f, pst_error *err) {
  text_list *l = &f->learned, *h = &f->held_out;
  const int64_t most = pst_json_int(pst_json_get(f->job->params, "codes"), 0);
  const pst_tune_coding coding = {.given = f->start.notes[PST_ENGINE_LORA_CODES], .most = (size_t)PST_MAX(most, 0)};
  pst_engine_codes *codes = NULL;
  if (!coding.given && !coding.most) return 0;
  if (pst_array_reserve((void **)&l->texts, &l->capacity, l->n + h->n, sizeof *l->texts)) return no_memory(err);
  if (h->n) memcpy(l->texts + l->n, h->texts, h->n * sizeof *h->texts);
  int code = pst_tune_texts_code(f->base.model, &coding, l->texts, l->n + h->n, l->n, &f->coded, &codes, err);
  if (!code) {
    if (h->n) memcpy(h->texts, l->texts + l->n, h->n * sizeof *h->texts);
    if (codes) pst_engine_codes_write(codes, &f->codes);
    code = pst_buf_status(&f->codes) ? no_memory(err) : 0;
    say_codes(f, codes);
  }
  pst_engine_codes_free(codes);
  return code;
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
  char run[40];
  pst_str data = pst_json_str(pst_json_get(f->job->params, "training_hash"));
  char hash[65];
  (void)snprintf(hash, sizeof hash, "%.*s", (int)data.n, data.data);
  pst_wire_id_write("ftjob", f->job->id, run);
  name_adapter(f, name);
  int code = pst_engine_lora_set_note(lora, PST_ENGINE_LORA_NAME, name, err);
  const pst_gateway_adapter adapter = {
      .name = name, .lora = lora, .model = f->model, .data = hash, .run = run, .origin = {.from = f->from}};
  return code ? code : pst_gateway_adapter_add(f->job->store, &adapter, NULL, err);
}

/* ---- the job ---- */

/* "model:adapter" where there is such an adapter, else the whole is a model's name. */
static int find_names(finetune *f, pst_error *err) {
  pst_str target = pst_json_str(pst_json_get(f->job->params, "target"));
  pst_store_adapter row;
  size_t colon = target.n;
  while (colon > 0 && target.data[colon - 1] != ':') colon--;
  pst_str adapter = {target.data + colon, target.n - colon};
  int code = colon > 1 && adapter.n ? pst_store_adapter_get(f->job->store, adapter, &row, err) : PST_E_NOT_FOUND;
  if (code && code != PST_E_NOT_FOUND) return code;
  f->model = pst_strndup(target.data, code ? target.n : colon - 1);
  if (!code) f->from = pst_strndup(adapter.data, adapter.n);
  return f->model && (code || f->from) ? 0 : no_memory(err);
}

static int open_model(finetune *f, pst_error *err) {
  if (!pst_wire_tuning_method_from(pst_json_str(pst_json_get(f->job->params, "method")), &f->method))
    f->method = PST_WIRE_TUNING_SUPERVISED;
  f->unit = f->method == PST_WIRE_TUNING_DPO ? 2 : 1;
  int code = find_names(f, err);
  if (!code)
    code = pst_flywheel_model_open(f->job->store, pst_str_from(f->model), f->job->options->threads, &f->base, err);
  if (!code && f->from) code = pst_gateway_adapter_read(f->job->store, f->from, f->model, &f->start, err);
  const char *codes = f->start.notes[PST_ENGINE_LORA_CODES];
  if (!code && codes) code = pst_engine_codes_parse(pst_str_from(codes), &f->given, err);
  f->dir = pst_path_join(pst_store_home(f->job->store), PST_FLYWHEEL_JOBS);
  f->arena = pst_arena_create();
  if (!code && (!f->dir || !f->arena)) code = no_memory(err);
  return code ? code : pst_dir_make(f->dir, err);
}

/* What the model is called from now on: the name that the job had for its base, and the adapter's. */
static void put_tuned_model(const finetune *f, const char *name, pst_buf *out) {
  pst_str model = pst_json_str(pst_json_get(f->job->params, "model"));
  size_t from = f->from ? strlen(f->from) + 1 : 0;
  if (from && model.n > from && !memcmp(model.data + model.n - from + 1, f->from, from - 1)) model.n -= from;
  pst_buf_printf(out, "%.*s:%s", (int)model.n, model.data, name);
}

static int run(finetune *f, pst_buf *result, pst_error *err) {
  pst_engine_lora lora = {0};
  pst_tune_report report = {0};
  char name[64], text[160];
  pst_flywheel_job_report(f->job, 0, "opening the model");
  (void)snprintf(f->text, sizeof f->text, "before the first step");
  int code = open_model(f, err);
  if (!code) code = read_texts(f, err);
  if (!code) code = use_codes(f, err);
  char *checkpoint = code ? NULL : place(f, "checkpoint");
  if (!code && !checkpoint) code = no_memory(err);
  if (!code)
    code = pst_store_checkpoint_note(f->job->store, checkpoint, &(pst_store_adapter_origin){.from = f->from}, err);
  if (!code) {
    int n = snprintf(text, sizeof text, "Fine-tuning job started: %zu examples, %zu held out", f->learned.n / f->unit,
                     f->held_out.n / f->unit);
    if (f->surplus.n)
      (void)snprintf(text + n, sizeof text - (size_t)n, ", %zu more of held-out prompts left out",
                     f->surplus.n / f->unit);
    pst_flywheel_job_event(f->job, "info", text, NULL);
    const pst_tune_options o = options_of(f, checkpoint);
    code = pst_tune_train(f->base.model, f->learned.texts, f->learned.n, f->held_out.texts, f->held_out.n, &o, &lora,
                          &report, err);
  }
  if (!code && f->codes.n) code = pst_engine_lora_set_note(&lora, PST_ENGINE_LORA_CODES, f->codes.data, err);
  if (!code) code = add_adapter(f, &lora, name, err);
  if (!code) {
    pst_json_writer w = pst_json_writer_on(result, false);
    pst_buf tuned = PST_BUF_INIT;
    put_tuned_model(f, name, &tuned);
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
  finetune f = {.job = job, .shown_held_out = NAN, .codes = PST_BUF_INIT};
  int code = run(&f, result, err);
  pst_flywheel_model_close(&f.base);
  pst_engine_lora_done(&f.start);
  pst_engine_codes_free(f.given);
  pst_free(f.model);
  pst_free(f.from);
  pst_free(f.coded);
  pst_buf_done(&f.codes);
  pst_arena_free(f.arena);
  pst_free(f.learned.texts);
  pst_free(f.held_out.texts);
  pst_free(f.surplus.texts);
  pst_free(f.dir);
  return code;
}
