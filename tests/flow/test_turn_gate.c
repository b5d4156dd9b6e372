/* What a turn lets through. A tiny model learns to tell two kinds of message apart; then come updates that must not take the place of its plan: one that changes
 * nothing, wrong labels, answers of one kind only, another template than it was trained with, items that judge among the examples. And turns that are killed
 * wherever they are, which must end as if nobody had. */
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <dirent.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>
#include <penstock/data.h>
#include <penstock/flywheel.h>
#include <sqlite3.h>

#include "support/gateway.h"
#include "support/ok.h"
#include "support/scale.h"
#include "support/temp.h"
#include "support/tiny_model.h"

enum { N_EXAMPLES = 96, N_SEARCH = 40, N_VERIFY = 120, N_ITEMS = N_EXAMPLES + N_SEARCH + N_VERIFY };
enum { N_CORRECTED = 30 };

static char model[300], model_hash[65];
static pst_error err = PST_ERROR_INIT;

/* ---- a workload ---- */

/* Message i of a stream, and what it is to be answered with: words drawn at random, and a mark. */
static const char *message(uint64_t stream, uint64_t i, char out[64]) {
  int n = 0;
  for (uint64_t w = 0; w < 4; w++) {
    for (uint64_t k = 0; k < 4; k++) out[n++] = "bcdfghjklmnpqrst"[pst_random_u64(stream, i, 8 * w + k) % 16];
    out[n++] = ' ';
  }
  (void)snprintf(out + n, 64 - (size_t)n, "%s", pst_random_u64(stream, i, 99) % 2 ? "uuuuuuuu" : "yyyyyyyy");
  return strchr(out, 'u') ? "up" : "no";
}

/* How examples are spoiled. */
typedef enum spoiling { RIGHT, SWAPPED, ONE_KIND, OTHER_FORM, LEAKED, FEW } spoiling;

static const char *spoilt(spoiling s, const char *answer) {
  static char text[32];
  if (s == SWAPPED) return strcmp(answer, "up") ? "up" : "no";
  if (s == ONE_KIND) return "up";
  if (s == OTHER_FORM) {
    (void)snprintf(text, sizeof text, "It is %s!", answer);
    return text;
  }
  return answer;
}

static void put_item(pst_buf *out, const char *id, const char *text, const char *answer, pst_evals_part part) {
  pst_buf_printf(out,
                 "{\"id\": \"%s\", \"messages\": [{\"role\": \"user\", \"content\": \"%s\"}], \"reference\": \"%s\", "
                 "\"part\": \"%s\"}\n",
                 id, text, answer, pst_evals_part_name(part));
}

/* LEAKED: the items that judge stand among the examples, in a folder of which they no longer judge anything. FEW: three examples. */
static pst_evals_workload *make_workload(const char *name, spoiling s) {
  static const char setting[] =
      "{\"schema\": 1, \"name\": \"marks\", \"task\": {\"kind\": \"text\"}, \"prompts\": [{\"name\": \"stock\", "
      "\"system\": \"Say up or no.\", \"instruction\": \"Say up or no for the message.\"}], \"grader\": {\"type\": "
      "\"exact\"}, \"goal\": {\"margin\": 0.05}, \"settings\": {\"max_tokens\": 6}}\n";
  char folder[300], id[32], text[64];
  pst_buf items = PST_BUF_INIT;
  pst_evals_workload *w = NULL;
  (void)snprintf(folder, sizeof folder, "%s/%s", test_dir, name);
  OK(pst_dir_make(folder, &err));
  test_temp_write(test_temp_path(folder, "workload.json"), setting, strlen(setting));
  for (uint64_t i = 0; i < N_ITEMS; i++) {
    pst_evals_part part = i < N_EXAMPLES              ? PST_EVALS_EXAMPLES
                          : i < N_EXAMPLES + N_SEARCH ? PST_EVALS_SEARCH
                                                      : PST_EVALS_VERIFY;
    const char *answer = message(1, i, text);
    if (s == FEW && part == PST_EVALS_EXAMPLES && i >= 3) continue;
    (void)snprintf(id, sizeof id, "m%d", (int)i);
    if (s == LEAKED && part != PST_EVALS_EXAMPLES) part = PST_EVALS_EXAMPLES;
    put_item(&items, id, text, part == PST_EVALS_EXAMPLES ? spoilt(s, answer) : answer, part);
  }
  test_temp_write(test_temp_path(folder, "items.jsonl"), items.data, items.n);
  pst_buf_done(&items);
  OK(pst_evals_workload_open(folder, &w, &err));
  return w;
}

static int set_up(void **state) {
  (void)test_dir_open(state);
  (void)snprintf(model, sizeof model, "%s", test_temp_path(test_dir, "tiny.gguf"));
  test_tiny_write(model, &(test_tiny){.seed = 3});
  char *data = NULL;
  size_t n = 0;
  if (pst_file_read(model, 1 << 24, &data, &n, &err)) return -1;
  pst_sha256_hex(data, n, model_hash);
  pst_free(data);
  return 0;
}

/* ---- a turn ---- */

/* Whether turns may answer in output codes. The few seconds that tuning has here are short for learning them well. */
static bool in_codes;

/* Seconds for a search, which goes on by the same clock when it was killed: one that runs out of time asks too few items to decide anything. */
enum { PLAN_S = 4 };

static pst_flywheel_turn_options turn_options(const pst_optimizer_model *m) {
  return (pst_flywheel_turn_options){.models = m,
                                     .n_models = 1,
                                     .tune_s = 60, /* epochs end it, unless the machine is busy */
                                     .plan_s = PLAN_S,
                                     .seed = 1,
                                     .threads = 2,
                                     .quiet = true,
                                     .codes = in_codes};
}

/* The turn's report; *ret_promoted. */
static pst_json_doc *turn(const test_gateway *t, const pst_evals_workload *w, bool *ret_promoted) {
  const pst_optimizer_model m = {model, model_hash, NULL};
  pst_flywheel_turn_options o = turn_options(&m);
  pst_flywheel_turn_result r = {0};
  pst_json_doc *doc = NULL;
  OK(pst_flywheel_turn(t->gateway, t->store, w, &o, &r, &err));
  OK(pst_json_parse(r.report, strlen(r.report), "report", &doc, &err));
  *ret_promoted = r.promoted;
  pst_flywheel_turn_result_done(&r);
  return doc;
}

static double number(const pst_json_doc *doc, const char *path) {
  return pst_json_double(pst_json_path(pst_json_root(doc), path), -1);
}

static void in_force(const test_gateway *t, char ret_hash[65]) {
  OK(pst_store_plan_assigned(t->store, PST_STR("marks"), PST_STORE_PLAN_IN_FORCE, NULL, ret_hash, &err));
}

/* Temporaries, checkpoints, half-written adapters: what only killed or careless writers leave. */
static int count_litter(const char *dir) {
  DIR *d = opendir(dir);
  int n = 0;
  if (!d) return 0;
  for (struct dirent *e; (e = readdir(d));) {
    const char *name = e->d_name;
    char path[600];
    (void)snprintf(path, sizeof path, "%s/%s", dir, name);
    bool litter = strstr(name, ".tmp") || strstr(name, ".part") || strstr(name, ".checkpoint");
    if (litter) print_message("left behind: %s\n", path);
    n += litter;
    if (name[0] != '.' && pst_dir_exists(path)) n += count_litter(path);
  }
  (void)closedir(d);
  return n;
}

/* ---- planted adapters ---- */

/* Trains on a folder's examples and keeps what came under a name; of the folder's own workload, so that plans may use it. */
static int tune_by(const test_gateway *t, const pst_evals_workload *w, const char *name, pst_store_adapter *ret) {
  pst_tune_workload_options o = {
      .model = model, .name = name, .held_out_share = 0.1, .max_held_out = 16, .training = pst_tune_options_default()};
  pst_tune_workload_result r;
  o.training.steps = 48;
  o.training.threads = 2;
  int code = pst_tune_workload(t->gateway, t->store, w, &o, &r, &err);
  if (code) return code;
  *ret = r.adapter;
  pst_tune_workload_result_done(&r);
  return 0;
}

/* The adapter with something changed, under another name. */
static void plant(const test_gateway *t, const pst_store_adapter *from, const char *name, const char *prompt,
                  bool empty) {
  pst_engine_lora lora = {0};
  char *path = NULL;
  const char *changed = test_temp_path(test_dir, "planted.gguf");
  OK(pst_store_file_path(t->store, pst_str_from(from->file), &path, &err));
  OK(pst_engine_lora_read(path, NULL, &lora, &err));
  for (size_t i = 0; i < lora.n_targets && empty; i++)
    memset(lora.targets[i].b, 0, (size_t)lora.targets[i].rank * (size_t)lora.targets[i].n_out * sizeof(float));
  OK(pst_engine_lora_set_note(&lora, PST_ENGINE_LORA_NAME, name, &err));
  if (prompt) OK(pst_engine_lora_set_note(&lora, PST_ENGINE_LORA_PROMPT, prompt, &err));
  OK(pst_engine_lora_write_gguf(&lora, changed, &err));
  const pst_gateway_adapter a = {.name = name, .path = changed, .model = model, .workload = "marks"};
  OK(pst_gateway_adapter_add(t->store, &a, NULL, &err));
  pst_engine_lora_done(&lora);
  pst_free(path);
}

/* Plans are searched with the planted adapter among the candidates. It must have been asked, and the plan in force must be what comes out. */
static void assert_refused(const test_gateway *t, const pst_evals_workload *w, const char *name) {
  const pst_optimizer_model m = {model, model_hash, NULL};
  pst_optimizer_options o = {
      .models = &m, .n_models = 1, .seed = 5, .budget_s = 0.8, .threads = 2, .fresh = true, .quiet = true};
  pst_optimizer_result r = {0};
  OK(pst_optimizer_run(t->gateway, t->store, w, &o, &r, &err));
  pst_json_doc *doc = NULL;
  OK(pst_json_parse(r.evidence, strlen(r.evidence), "evidence", &doc, &err));
  int n_asked = 0;
  for (pst_json_iter it = pst_json_iterate(pst_json_path(pst_json_root(doc), "measured")); pst_json_next(&it);) {
    pst_str asked = pst_json_str(pst_json_path(it.value, "choice.model"));
    n_asked += pst_str_find(asked, pst_str_from(name), 0) != SIZE_MAX;
  }
  pst_str taken = pst_json_str(pst_json_path(pst_json_root(doc), "plan.choice.model"));
  print_message("%s: asked %d ways; %s, %.*s stays\n", name, n_asked, pst_optimizer_verdict_name(r.verdict),
                (int)taken.n, taken.data);
  assert_true(n_asked > 0);
  assert_int_equal(pst_str_find(taken, pst_str_from(name), 0), SIZE_MAX);
  assert_true(pst_json_bool(pst_json_path(pst_json_root(doc), "plan.same_answers"), false));
  OK(pst_store_adapter_remove(t->store, pst_str_from(name), &err));
  pst_json_free(doc);
  pst_optimizer_result_done(&r);
}

/* Through a whole turn: the folder's examples are spoiled, its judging items are right. The turn's own adapter is not served. */
static void assert_turn_refused(const test_gateway *t, const pst_evals_workload *spoiled) {
  char before[65], after[65];
  bool promoted;
  in_force(t, before);
  pst_json_doc *report = turn(t, spoiled, &promoted);
  in_force(t, after);
  pst_str why = pst_json_str(pst_json_path(pst_json_root(report), "gate.why"));
  print_message("  its turn: %.*s\n", (int)why.n, why.data);
  assert_false(promoted);
  assert_string_equal(before, after);
  pst_str name = pst_json_str(pst_json_path(pst_json_root(report), "adapter.name"));
  OK(pst_store_adapter_remove(t->store, name, &err));
  pst_json_free(report);
}

/* ---- the tests ---- */

/* A home in which an honest turn has put a plan in force. */
static test_gateway after_an_honest_turn(pst_evals_workload **ret_workload, pst_store_adapter *ret_adapter) {
  test_gateway t = test_gateway_open(NULL);
  pst_evals_workload *w = make_workload("right", RIGHT);
  bool promoted;
  pst_json_doc *report = turn(&t, w, &promoted);
  double score = number(report, "plan.verify.accepted") / number(report, "plan.verify.n");
  print_message("honest: %.0f steps, loss %.2f to %.2f, %.0f%% right\n", number(report, "adapter.steps"),
                number(report, "adapter.loss_before"), number(report, "adapter.loss"), 100 * score);
  assert_true(promoted);
  assert_true(score > 0.9);
  /* Compared with the best prompted plan, or why not. */
  bool compared = number(report, "prompted.comparison.n") >= 100;
  assert_int_equal(compared, pst_json_path(pst_json_root(report), "prompted_not_asked") == NULL);
  pst_str name = pst_json_str(pst_json_path(pst_json_root(report), "adapter.name"));
  OK(pst_store_adapter_get(t.store, name, ret_adapter, &err));
  assert_int_equal(count_litter(t.home), 0);
  pst_json_free(report);
  *ret_workload = w;
  return t;
}

static void test_planted_updates_are_refused(void **state) {
  (void)state;
  pst_evals_workload *w;
  pst_store_adapter good, bad;
  test_gateway t = after_an_honest_turn(&w, &good);
  /* What changes nothing: the same adapter by another name, and one that adds zero. */
  plant(&t, &good, "twin", NULL, false);
  assert_refused(&t, w, "twin");
  if (test_scale(0, 0, 1)) {
    plant(&t, &good, "zero", NULL, true);
    assert_refused(&t, w, "zero");
  }
  /* Asked by another template than it was trained with. */
  plant(&t, &good, "otherwise",
        "{\"layout\":\"chat\",\"prompt\":{\"name\":\"other\",\"system\":\"\",\"instruction\":\"Well?\"}}", false);
  assert_refused(&t, w, "otherwise");
  const struct {
    const char *name;
    spoiling how;
  } spoiled[] = {{"onekind", ONE_KIND}, {"swapped", SWAPPED}, {"otherform", OTHER_FORM}};
  for (int i = 0; i < test_scale(1, 1, PST_ARRAY_LEN(spoiled)); i++) {
    pst_evals_workload *other = make_workload(spoiled[i].name, spoiled[i].how);
    OK(tune_by(&t, other, spoiled[i].name, &bad));
    assert_refused(&t, w, spoiled[i].name);
    assert_turn_refused(&t, other);
    pst_evals_workload_free(other);
  }
  pst_evals_workload_free(w);
  test_gateway_close(&t);
}

/* Items that judge, in a folder of the same name whose author took them for examples: they are known by their words, and nothing is trained on them. */
static void test_leaked_items_are_left_out(void **state) {
  (void)state;
  test_gateway t = test_gateway_open(NULL);
  pst_evals_workload *w = make_workload("right", RIGHT), *leaked = make_workload("leaked", LEAKED);
  bool near[N_ITEMS];
  OK(pst_evals_guard_near(t.store, leaked, near, &err));
  for (size_t i = 0; i < N_ITEMS; i++) assert_false(near[i]); /* nobody has judged by them yet */
  OK(pst_evals_guard(t.store, w, &err));
  OK(pst_evals_guard_near(t.store, leaked, near, &err));
  for (size_t i = 0; i < N_ITEMS; i++) assert_int_equal(near[i], i >= N_EXAMPLES);
  OK(pst_evals_guard_near(t.store, w, near, &err)); /* its own judges are no examples of it */
  for (size_t i = 0; i < N_ITEMS; i++) assert_false(near[i]);
  pst_tune_workload_options o = {.model = model, .training = pst_tune_options_default()};
  pst_tune_workload_result r;
  o.training.steps = 1;
  OK(pst_tune_workload(t.gateway, t.store, leaked, &o, &r, &err));
  assert_int_equal(r.n_near, N_SEARCH + N_VERIFY);
  assert_int_equal(r.n_texts + r.n_held_out, N_EXAMPLES);
  pst_tune_workload_result_done(&r);
  pst_evals_workload_free(w);
  pst_evals_workload_free(leaked);
  test_gateway_close(&t);
}

/* ---- candidates ---- */

static bool at_once(void *user) {
  (void)user;
  return true;
}

static int append_params(void *user, const pst_store_run *run) {
  pst_buf_append_str(user, run->params);
  return 0;
}

static int take_id(void *user, const pst_store_request *r) {
  *(int64_t *)user = r->id;
  return 0;
}

/* A data set of one record of `ann`. */
static void make_set(pst_store *store, char ret_hash[65]) {
  const pst_store_request r = {.completion_id = PST_STR("a1"),
                               .time_ms = 1000,
                               .purpose = PST_STORE_PURPOSE_USER,
                               .workload = PST_STR("marks"),
                               .target = PST_STR("local"),
                               .status = 200,
                               .keep = PST_STORE_KEEP_CONTENT,
                               .train = true,
                               .subject = PST_STR("ann"),
                               .input_json = PST_STR("{}"),
                               .output_json = PST_STR("{}")};
  pst_store_request_filter f = PST_STORE_REQUEST_FILTER_INIT;
  int64_t id = 0;
  OK(pst_store_request_put(store, &r, &err));
  OK(pst_store_flush(store, &err));
  OK(pst_store_request_each(store, &f, take_id, &id, &err));
  const pst_store_data_set set = {.kind = PST_STR("training"),
                                  .workload = PST_STR("marks"),
                                  .n_lines = 1,
                                  .params = PST_STR("{}"),
                                  .created_ms = 5};
  OK(pst_store_data_set_put(store, &set, PST_STR("line\n"), true, &id, 1, ret_hash, &err));
}

/* The newest that there is room for, and none that learned from what was erased. */
static void test_which_adapters_are_candidates(void **state) {
  (void)state;
  const pst_optimizer_model m = {model, model_hash, NULL};
  const pst_optimizer_options o = {
      .models = &m, .n_models = 1, .seed = 5, .budget_s = 1, .threads = 1, .quiet = true, .cancelled = at_once};
  pst_tune_workload_options tuning = {.model = model, .training = pst_tune_options_default()};
  pst_tune_workload_result r;
  pst_optimizer_result none;
  pst_store_erasure erasure;
  pst_buf params = PST_BUF_INIT;
  char set[65];
  test_gateway t = test_gateway_open(NULL);
  pst_evals_workload *w = make_workload("right", RIGHT);
  tuning.training.steps = 1;
  OK(pst_tune_workload(t.gateway, t.store, w, &tuning, &r, &err));
  make_set(t.store, set);
  for (int i = 0; i < 26; i++) { /* the last letters are the newest */
    pst_store_adapter copy = r.adapter;
    const pst_store_adapter_origin origin = {.data_set = i == 25 ? set : NULL};
    (void)snprintf(copy.name, sizeof copy.name, "copy-%c", 'a' + i);
    copy.created_ms += 1 + i;
    OK(pst_store_adapter_put(t.store, &copy, &origin, &err));
  }
  OK(pst_store_records_erase(t.store, PST_STR("ann"), (pst_str){NULL, 0}, 9, &erasure, &err));
  pst_store_erasure_done(&erasure);
  assert_int_equal(pst_optimizer_run(t.gateway, t.store, w, &o, &none, &err), PST_E_CANCELLED);
  OK(pst_store_run_each(t.store, PST_STR("optimize"), PST_STR("marks"), 0, append_params, &params, &err));
  assert_null(strstr(pst_buf_text(&params), ":copy-z"));
  assert_non_null(strstr(pst_buf_text(&params), ":copy-y"));
  assert_non_null(strstr(pst_buf_text(&params), ":copy-c")); /* with the model, 24 */
  assert_null(strstr(pst_buf_text(&params), ":copy-b"));
  pst_buf_done(&params);
  pst_tune_workload_result_done(&r);
  pst_evals_workload_free(w);
  test_gateway_close(&t);
}

/* ---- kills ---- */

/* Where a turn ends itself as kill -9 would; text NULL: not there. */
typedef struct killing {
  const char *note;  /* when a step begins */
  int64_t step;      /* of training, behind the note; 0: never */
  int n_cancellable; /* at so many questions whether to go on, behind the note; 0: never */
  bool noted;
} killing;

static void kill_at_note(void *user, const char *text) {
  killing *k = user;
  if (!k->note || strncmp(text, k->note, strlen(k->note)) != 0) return;
  k->noted = true;
  if (!k->n_cancellable && !k->step) (void)raise(SIGKILL);
}

static void kill_at_step(void *user, const pst_tune_progress *p) {
  const killing *k = user;
  if (k->step && p->step >= k->step && (k->noted || !k->note)) (void)raise(SIGKILL);
}

static bool kill_when_asked(void *user) {
  killing *k = user;
  if (k->noted && k->n_cancellable && --k->n_cancellable == 0) (void)raise(SIGKILL);
  return false;
}

/* What the child process does: the program called by itself, since an engine's threads do not outlive a fork. Arguments: home, folder, model, its hash, and
 * the killing's fields, and whether answers are in codes. */
static int child_main(char **argv) {
  killing k = {strcmp(argv[6], "nowhere") != 0 ? argv[6] : NULL, atoi(argv[7]), atoi(argv[8]), false};
  pst_flywheel_turn_result r = {0};
  pst_evals_workload *w = NULL;
  (void)snprintf(model, sizeof model, "%s", argv[4]);
  (void)snprintf(model_hash, sizeof model_hash, "%s", argv[5]);
  in_codes = atoi(argv[9]);
  const pst_optimizer_model m = {model, model_hash, NULL};
  pst_flywheel_turn_options o = turn_options(&m);
  o.note = kill_at_note;
  o.on_tuning = kill_at_step;
  o.cancelled = kill_when_asked;
  o.user = &k;
  test_gateway t = test_gateway_open_at(argv[2], NULL);
  int code = pst_evals_workload_open(argv[3], &w, &err);
  if (!code) code = pst_flywheel_turn(t.gateway, t.store, w, &o, &r, &err);
  if (code) fprintf(stderr, "%s: %s\n", err.place, err.message);
  pst_flywheel_turn_result_done(&r);
  pst_evals_workload_free(w);
  test_gateway_close_keep(&t);
  return code ? 1 : 0;
}

/* A turn in a process of its own, over a home that is there; ends by itself or by the killing. after_ms > 0: is killed from outside, then. Returns whether it was. */
static bool turn_in_child(char *home, const char *folder, const killing *k, int after_ms) {
  char step[24], asked[24], program[] = "/proc/self/exe", child_mode[] = "child", name[300], key[65], note[32];
  (void)snprintf(step, sizeof step, "%d", (int)k->step);
  (void)snprintf(asked, sizeof asked, "%d", k->n_cancellable);
  (void)snprintf(name, sizeof name, "%s", model);
  (void)snprintf(key, sizeof key, "%s", model_hash);
  (void)snprintf(note, sizeof note, "%s", k->note ? k->note : "nowhere");
  char where[300];
  (void)snprintf(where, sizeof where, "%s", folder);
  char codes[] = {in_codes ? '1' : '0', '\0'};
  char *arguments[] = {program, child_mode, home, where, name, key, note, step, asked, codes, NULL};
  pid_t child = fork();
  int status = 0;
  assert_true(child >= 0);
  if (child == 0) {
    (void)execv(program, arguments);
    _exit(127);
  }
  if (after_ms > 0) {
    (void)usleep((useconds_t)after_ms * 1000);
    (void)kill(child, SIGKILL);
  }
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_true(WIFSIGNALED(status) || WEXITSTATUS(status) == 0);
  return WIFSIGNALED(status);
}

typedef struct run_counts {
  int n_turns, n_searches, n_active;
} run_counts;

static int count_run(void *user, const pst_store_run *run) {
  run_counts *c = user;
  c->n_turns += pst_str_is(run->kind, "turn");
  c->n_searches += pst_str_is(run->kind, "optimize");
  c->n_active +=
      run->state == PST_STORE_RUN_ACTIVE && !pst_str_is(run->kind, "search") && !pst_str_is(run->kind, "eval");
  return 0;
}

/* What a turn came to, without what differs from run to run: times, and what is measured in them. */
static void put_outcome(const pst_json_doc *report, pst_buf *out) {
  static const char *const paths[] = {
      "data", "adapter.name", "adapter.examples", "adapter.held_out", "plan.verdict", "plan.choice.model", "gate"};
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_object(&w);
  for (size_t i = 0; i < PST_ARRAY_LEN(paths); i++) {
    pst_json_key(&w, paths[i]);
    pst_json_put_value(&w, pst_json_path(pst_json_root(report), paths[i]));
  }
  pst_json_end_object(&w);
  assert_int_equal(pst_buf_status(out), 0);
}

/* A home in which a turn has come to its end: one turn, one search, nothing begun and left, nothing lying about. */
static void check_home(char *home, const char *want_plan) {
  test_gateway t = test_gateway_open_at(home, NULL);
  run_counts c = {0, 0, 0};
  char plan[65];
  in_force(&t, plan);
  if (want_plan) assert_string_equal(plan, want_plan);
  OK(pst_store_run_each(t.store, (pst_str){NULL, 0}, (pst_str){NULL, 0}, 0, count_run, &c, &err));
  assert_int_equal(c.n_turns, 1);
  assert_int_equal(c.n_searches, 1);
  assert_int_equal(c.n_active, 0);
  assert_int_equal(count_litter(home), 0);
  test_gateway_close_keep(&t);
}

/* Goes on to the end. */
static void finish_turn(char *home, const pst_evals_workload *w, pst_buf *outcome) {
  test_gateway t = test_gateway_open_at(home, NULL);
  bool promoted;
  char plan[65];
  pst_json_doc *report = turn(&t, w, &promoted);
  put_outcome(report, outcome);
  if (!promoted) fail_msg("not promoted: %s", outcome->data);
  (void)snprintf(plan, sizeof plan, "%.64s", pst_json_str(pst_json_path(pst_json_root(report), "plan.hash")).data);
  pst_json_free(report);
  test_gateway_close_keep(&t);
  check_home(home, plan);
}

static void test_killed_turns_go_on(void **state) {
  (void)state;
  killing places[] = {{.note = "data"},
                      {.note = "what tuning"},
                      {.note = "tune"},
                      {.step = 1},
                      {.step = 40},
                      {.note = "plan"},
                      {.note = "plan", .n_cancellable = 2},
                      {.note = "plan", .n_cancellable = 9},
                      {.note = "gate"}};
  pst_buf whole = PST_BUF_INIT, broken = PST_BUF_INIT;
  char *home = test_temp_dir(), *other = test_temp_dir(), folder[300];
  pst_evals_workload *w = make_workload("right", RIGHT);
  (void)snprintf(folder, sizeof folder, "%s", pst_evals_workload_info(w)->folder);
  for (size_t i = 0; i < PST_ARRAY_LEN(places); i++)
    if (!turn_in_child(home, folder, &places[i], 0)) fail_msg("killing %d was not reached", (int)i);
  finish_turn(home, w, &broken);
  finish_turn(other, w, &whole);
  assert_string_equal(broken.data, whole.data);
  test_temp_remove(home);
  test_temp_remove(other);
  pst_buf_done(&whole);
  pst_buf_done(&broken);
  pst_evals_workload_free(w);
}

/* ---- preferences ---- */

typedef struct id_list {
  char ids[N_CORRECTED][80];
  int n;
} id_list;

static int note_id(void *user, const pst_store_request *r) {
  id_list *l = user;
  (void)snprintf(l->ids[l->n++], sizeof l->ids[0], "%.*s", (int)r->completion_id.n, r->completion_id.data);
  return 0;
}

/* Records whose answers were wrong, each with the right one as its correction. */
static void add_corrections(pst_store *store) {
  const pst_data_import_options o = {.workload = PST_STR("marks"),
                                     .consent = {.keep = PST_STORE_KEEP_CONTENT, .train = true}};
  pst_store_request_filter f = PST_STORE_REQUEST_FILTER_INIT;
  pst_data_imported done;
  pst_buf rows = PST_BUF_INIT;
  id_list l = {.n = 0};
  char text[64];
  for (uint64_t i = 0; i < N_CORRECTED; i++) {
    const char *answer = message(7, i, text);
    pst_buf_printf(&rows, "{\"text\":\"%s\",\"answer\":\"%s\"}\n", text, spoilt(SWAPPED, answer));
  }
  const char *path = test_temp_path(test_dir, "corrected.jsonl");
  test_temp_write(path, rows.data, rows.n);
  OK(pst_data_import(store, path, &o, &done, &err));
  f.origin = PST_STORE_ANY_ORIGIN;
  OK(pst_store_request_each(store, &f, note_id, &l, &err));
  assert_int_equal(l.n, N_CORRECTED);
  for (int i = 0; i < l.n; i++) {
    uint64_t of = (uint64_t)i;
    const pst_store_feedback said = {
        .completion_id = pst_str_from(l.ids[i]), .time_ms = 1000 + i, .correction = pst_str_from(message(7, of, text))};
    OK(pst_store_feedback_put(store, &said, &err));
  }
  OK(pst_store_flush(store, &err));
  pst_buf_done(&rows);
}

static int count_adapter(void *user, const pst_store_adapter *row) {
  *(int *)user += !row->stale;
  return 0;
}

static int adapters_of(pst_store *store) {
  int n = 0;
  OK(pst_store_adapter_each(store, count_adapter, &n, &err));
  return n;
}

/* Corrections are learned behind the examples; a turn that is killed on the way there comes to the same end, with nothing twice; what was learned of records goes with them. */
static void test_what_users_said_is_learned(void **state) {
  (void)state;
  in_codes = true; /* which answers of preferences are learned in, too */
  const killing places[] = {
      {.note = "preferences"}, {.note = "prefer:"}, {.note = "prefer:", .step = 1}, {.note = "plan"}};
  char *home = test_temp_dir(), folder[300];
  pst_store_request_filter all = PST_STORE_REQUEST_FILTER_INIT;
  all.origin = PST_STORE_ANY_ORIGIN;
  pst_evals_workload *w = make_workload("right", RIGHT);
  (void)snprintf(folder, sizeof folder, "%s", pst_evals_workload_info(w)->folder);
  test_gateway t = test_gateway_open_at(home, NULL);
  add_corrections(t.store);
  test_gateway_close_keep(&t);
  for (size_t i = 0; i < PST_ARRAY_LEN(places); i++)
    if (!turn_in_child(home, folder, &places[i], 0)) fail_msg("killing %d was not reached", (int)i);
  t = test_gateway_open_at(home, NULL);
  bool promoted;
  pst_json_doc *report = turn(&t, w, &promoted);
  in_codes = false;
  const pst_json *said = pst_json_get(pst_json_root(report), "preferences");
  bool taken = pst_json_bool(pst_json_get(said, "taken"), false);
  pst_str why = pst_json_str(pst_json_get(said, "why"));
  print_message("%d pairs, %.0f steps: %.*s\n", N_CORRECTED, number(report, "preferences.steps"), (int)why.n, why.data);
  assert_true(promoted);
  assert_true(number(report, "data.added") == N_CORRECTED);
  assert_true(pst_str_is(pst_json_str(pst_json_get(said, "objective")), "dpo"));
  assert_true(number(report, "preferences.pairs") == N_CORRECTED && number(report, "preferences.held_out") > 0);
  assert_true(number(report, "preferences.examples") + number(report, "preferences.held_out") == N_CORRECTED);
  assert_true(number(report, "preferences.steps") >= 1 && why.n > 0);
  assert_true(taken == (pst_json_get(said, "name") != NULL));
  assert_int_equal(adapters_of(t.store), 1 + taken);
  assert_int_equal(count_litter(home), 0);
  pst_json_free(report);
  id_list l = {.n = 0};
  pst_store_erasure erasure;
  OK(pst_store_request_each(t.store, &all, note_id, &l, &err));
  OK(pst_store_records_erase(t.store, (pst_str){NULL, 0}, pst_str_from(l.ids[0]), 9, &erasure, &err));
  pst_store_erasure_done(&erasure);
  assert_int_equal(adapters_of(t.store), 0);
  test_gateway_close_keep(&t);
  test_temp_remove(home);
  pst_evals_workload_free(w);
}

/* ---- turns that are given up ---- */

static void await_tuning(void *user, const char *text) {
  if (!strncmp(text, "tune:", 5)) *(bool *)user = true;
}

static bool is_tuning(void *user) { return *(bool *)user; }

static int count_state(void *user, const pst_store_run *run) {
  ((int *)user)[run->state]++;
  return 0;
}

/* Cancelled when it comes to tuning. */
static int turn_until_tuning(const test_gateway *t, const pst_evals_workload *w, bool fresh) {
  const pst_optimizer_model m = {model, model_hash, NULL};
  bool tuning = false;
  pst_flywheel_turn_options o = turn_options(&m);
  pst_flywheel_turn_result r;
  o.note = await_tuning;
  o.cancelled = is_tuning;
  o.user = &tuning;
  o.fresh = fresh;
  return pst_flywheel_turn(t->gateway, t->store, w, &o, &r, &err);
}

static void assert_runs(const test_gateway *t, int n_active, int n_failed, int n_cancelled) {
  int n[8] = {0};
  OK(pst_store_run_each(t->store, PST_STR("turn"), PST_STR("marks"), 0, count_state, n, &err));
  assert_int_equal(n[PST_STORE_RUN_ACTIVE], n_active);
  assert_int_equal(n[PST_STORE_RUN_FAILED], n_failed);
  assert_int_equal(n[PST_STORE_RUN_CANCELLED], n_cancelled);
}

/* A turn that found too few examples is over: the next one sees the records that have come since, of which some say two things of one message. A fresh one leaves no
 * other unfinished. */
static void test_a_turn_that_cannot_end_is_over(void **state) {
  (void)state;
  const pst_data_import_options o = {.workload = PST_STR("marks"),
                                     .consent = {.keep = PST_STORE_KEEP_CONTENT, .train = true}};
  pst_data_imported done;
  pst_buf rows = PST_BUF_INIT;
  char text[64];
  test_gateway t = test_gateway_open(NULL);
  pst_evals_workload *w = make_workload("few", FEW);
  const pst_optimizer_model m = {model, model_hash, NULL};
  pst_flywheel_turn_options all = turn_options(&m);
  pst_flywheel_turn_result r;
  assert_int_equal(pst_flywheel_turn(t.gateway, t.store, w, &all, &r, &err), PST_E_NO_DATA);
  assert_runs(&t, 0, 1, 0);
  for (uint64_t i = 0; i < 100; i++) {
    const char *answer = message(7, i / 2, text);
    pst_buf_printf(&rows, "{\"text\":\"%s\",\"answer\":\"%s\"}\n", text, i % 4 == 3 ? spoilt(SWAPPED, answer) : answer);
  }
  const char *path = test_temp_path(test_dir, "twice.jsonl");
  test_temp_write(path, rows.data, rows.n);
  OK(pst_data_import(t.store, path, &o, &done, &err));
  OK(pst_store_flush(t.store, &err));
  assert_int_equal(turn_until_tuning(&t, w, false), PST_E_CANCELLED);
  assert_runs(&t, 1, 1, 0);
  assert_int_equal(turn_until_tuning(&t, w, true), PST_E_CANCELLED);
  assert_runs(&t, 1, 1, 1);
  pst_buf_done(&rows);
  pst_evals_workload_free(w);
  test_gateway_close(&t);
}

/* Wrong preferences lower their own loss and cost answers: the adapter that they begin from stays. Right ones, learned softly, cost none and are kept. */
static void test_only_what_answers_better_is_kept(void **state) {
  (void)state;
  pst_tune_preference list[N_CORRECTED];
  char texts[N_CORRECTED][64];
  pst_store_adapter from;
  test_gateway t = test_gateway_open(NULL);
  pst_evals_workload *w = make_workload("right", RIGHT);
  OK(tune_by(&t, w, "good", &from));
  for (int wrong = 0; wrong < 2; wrong++) {
    for (uint64_t i = 0; i < N_CORRECTED; i++) {
      pst_str right = pst_str_from(message(7, i, texts[i])),
              other = pst_str_is(right, "up") ? PST_STR("no") : PST_STR("up");
      list[i] = (pst_tune_preference){pst_str_from(texts[i]), wrong ? other : right, wrong ? right : other,
                                      .held_out = i % 5 == 0};
    }
    pst_tune_workload_options o = {.model = model,
                                   .held_out_share = 0.3,
                                   .max_held_out = 32,
                                   .preferences = list,
                                   .n_preferences = N_CORRECTED,
                                   .from = "good",
                                   .only_better = true,
                                   .training = pst_tune_options_for(PST_TUNE_DPO)};
    pst_tune_workload_result r;
    o.training.steps = 12;
    o.training.learning_rate = wrong ? 1e-3 : 1e-4;
    o.training.evaluations = 1; /* at the end */
    o.training.batch_texts = 8;
    o.training.threads = 2;
    OK(pst_tune_workload(t.gateway, t.store, w, &o, &r, &err));
    const pst_tune_evaluation *first = &r.report.evaluations[0], *last = first + r.report.n_evaluations - 1;
    print_message("%s: %d of %d right, then %d; loss %.3f to %.3f\n", wrong ? "wrong" : "right", first->n_right,
                  first->n_asked, last->n_right, first->loss, last->loss);
    assert_true(first->step == 0 && first->n_asked > 8);
    assert_true(last->loss < first->loss);
    if (wrong) assert_true(last->n_right < first->n_right && r.report.best_step == 0 && !r.plan_json);
    assert_true((r.report.best_step > 0) == (r.adapter.name[0] != '\0'));
    if (!wrong) assert_true(r.report.best_step > 0);
    pst_tune_workload_result_done(&r);
  }
  pst_evals_workload_free(w);
  test_gateway_close(&t);
}

/* An adapter of the same numbers with a code that stands for other tokens, and is the first token of "up". */
static void plant_code(const test_gateway *t, const pst_store_adapter *from, const char *name) {
  pst_engine_lora lora = {0};
  pst_engine_model *m = NULL;
  pst_engine_tokens ids = {0};
  char *path = NULL, note[64];
  const char *changed = test_temp_path(test_dir, "coded.gguf");
  OK(pst_engine_model_open(model, 1, &m, &err));
  OK(pst_engine_tokenize(m, PST_STR(" up"), false, false, &ids, &err));
  int32_t code = ids.ids[ids.n - 1], other = code > 20 ? code - 10 : code + 10;
  (void)snprintf(note, sizeof note, "[[%d,%d,%d]]", code, other, other + 1);
  OK(pst_store_file_path(t->store, pst_str_from(from->file), &path, &err));
  OK(pst_engine_lora_read(path, NULL, &lora, &err));
  OK(pst_engine_lora_set_note(&lora, PST_ENGINE_LORA_NAME, name, &err));
  OK(pst_engine_lora_set_note(&lora, PST_ENGINE_LORA_CODES, note, &err));
  OK(pst_engine_lora_write_gguf(&lora, changed, &err));
  const pst_gateway_adapter a = {.name = name, .path = changed, .model = model, .workload = "marks"};
  OK(pst_gateway_adapter_add(t->store, &a, NULL, &err));
  pst_engine_lora_done(&lora);
  pst_engine_tokens_done(&ids);
  pst_engine_model_unref(m);
  pst_free(path);
}

/* Answers that plainly have what is a code of the adapter to start from are left out, and are no end to the rest. */
static void test_answers_with_codes_are_left_out(void **state) {
  (void)state;
  enum { N_PLAIN = 12, N = 20 };
  pst_tune_preference list[N];
  char texts[N][64];
  pst_store_adapter from;
  test_gateway t = test_gateway_open(NULL);
  pst_evals_workload *w = make_workload("right", RIGHT);
  OK(tune_by(&t, w, "good", &from));
  plant_code(&t, &from, "coded");
  for (uint64_t i = 0; i < N; i++) {
    (void)message(7, i, texts[i]);
    list[i] = (pst_tune_preference){.input = pst_str_from(texts[i]),
                                    .wanted = PST_STR("no"),
                                    .unwanted = i < N_PLAIN ? PST_STR("dim") : PST_STR("up")};
  }
  pst_tune_workload_options o = {.model = model,
                                 .preferences = list,
                                 .n_preferences = N,
                                 .from = "coded",
                                 .training = pst_tune_options_for(PST_TUNE_DPO)};
  pst_tune_workload_result r;
  o.training.steps = 1;
  OK(pst_tune_workload(t.gateway, t.store, w, &o, &r, &err));
  assert_int_equal(r.n_texts, N_PLAIN);
  assert_int_equal(r.n_left_out, N - N_PLAIN);
  assert_int_equal(r.n_codes, 1);
  pst_tune_workload_result_done(&r);
  pst_evals_workload_free(w);
  test_gateway_close(&t);
}

static int count_done(void *user, const pst_store_run *run) {
  *(int *)user += run->state == PST_STORE_RUN_DONE;
  return 0;
}

/* Whoever is killed on the way out has done it all the same. */
static bool is_done(const char *home) {
  pst_store *store = NULL;
  int n = 0;
  OK(pst_store_open(home, &store, &err));
  OK(pst_store_run_each(store, PST_STR("turn"), (pst_str){NULL, 0}, 0, count_done, &n, &err));
  pst_store_close(store);
  return n > 0;
}

/* From outside, wherever it is, until one comes through. */
static void test_killed_at_any_moment(void **state) {
  (void)state;
  pst_evals_workload *w = make_workload("right", RIGHT);
  char folder[300];
  (void)snprintf(folder, sizeof folder, "%s", pst_evals_workload_info(w)->folder);
  pst_evals_workload_free(w);
  for (uint64_t round = 0; round < (uint64_t)test_scale(0, 0, 5); round++) {
    char *home = test_temp_dir();
    killing never = {.note = NULL};
    uint64_t n_killed = 0;
    while (n_killed < 200 && !is_done(home)) {
      uint64_t ms = 20 + pst_random_u64(11, round, n_killed) % 600 + 8 * n_killed;
      n_killed += turn_in_child(home, folder, &never, (int)ms);
    }
    print_message("round %d: %d kills\n", (int)round, (int)n_killed);
    assert_in_range(n_killed, 1, 199);
    check_home(home, NULL);
    test_temp_remove(home);
  }
}

/* Killed when the search was over and the turn did not know yet: the search is not made again. */
static void test_a_finished_search_is_taken_up(void **state) {
  (void)state;
  char *home = test_temp_dir(), path[300];
  pst_buf first = PST_BUF_INIT, second = PST_BUF_INIT;
  pst_evals_workload *w = make_workload("right", RIGHT);
  finish_turn(home, w, &first);
  test_gateway t = test_gateway_open_at(home, NULL);
  OK(pst_store_plan_assign(t.store, PST_STR("marks"), PST_STORE_PLAN_IN_FORCE, (pst_str){NULL, 0}, PST_STR("test"), 1,
                           &err));
  test_gateway_close_keep(&t);
  (void)snprintf(path, sizeof path, "%s/penstock.db", home);
  sqlite3 *db = NULL;
  assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
  assert_int_equal(sqlite3_exec(db,
                                "DELETE FROM run_rows WHERE key IN ('plan', 'gate') AND run_id IN (SELECT id FROM runs "
                                "WHERE kind = 'turn'); UPDATE runs SET state = 0, result = NULL WHERE kind = 'turn'",
                                NULL, NULL, NULL),
                   SQLITE_OK);
  (void)sqlite3_close(db);
  finish_turn(home, w, &second);
  assert_string_equal(first.data, second.data);
  test_temp_remove(home);
  pst_buf_done(&first);
  pst_buf_done(&second);
  pst_evals_workload_free(w);
}

/* A second turn of the workload would take the same steps of the same run. */
static void test_one_turn_at_a_time(void **state) {
  (void)state;
  const pst_optimizer_model m = {model, model_hash, NULL};
  pst_flywheel_turn_options o = turn_options(&m);
  pst_flywheel_turn_result r;
  pst_store_run_lock lock;
  test_gateway t = test_gateway_open(NULL);
  pst_evals_workload *w = make_workload("right", RIGHT);
  OK(pst_store_run_lock_take(t.store, "turn", PST_STR("marks"), &lock, &err));
  assert_int_equal(pst_flywheel_turn(t.gateway, t.store, w, &o, &r, &err), PST_E_BUSY);
  assert_non_null(strstr(err.message, "another turn"));
  pst_store_run_lock_give(&lock);
  pst_evals_workload_free(w);
  test_gateway_close(&t);
}

/* Between a turn's plan and its gate somebody puts another plan in force: it stays. */
/* And the turn's answers are in codes. */
static void test_a_plan_of_others_stays(void **state) {
  (void)state;
  in_codes = true;
  char *home = test_temp_dir(), folder[300], hash[65], after[65];
  pst_evals_workload *w = make_workload("right", RIGHT);
  killing at_gate = {.note = "gate"};
  pst_buf plan = PST_BUF_INIT;
  (void)snprintf(folder, sizeof folder, "%s", pst_evals_workload_info(w)->folder);
  assert_true(turn_in_child(home, folder, &at_gate, 0));
  test_gateway t = test_gateway_open_at(home, NULL);
  pst_buf_printf(&plan,
                 "{\"schema\":1,\"workload\":\"marks\",\"engines\":{\"e1\":{\"model\":\"%s\"}},\"root\":{\"op\":"
                 "\"local\",\"engine\":\"e1\"}}",
                 model);
  OK(pst_store_plan_put(t.store, pst_buf_str(&plan), 1, hash, &err));
  OK(pst_store_plan_assign(t.store, PST_STR("marks"), PST_STORE_PLAN_IN_FORCE, pst_str_from(hash), PST_STR("test"), 1,
                           &err));
  bool promoted;
  pst_json_doc *report = turn(&t, w, &promoted);
  in_codes = false;
  pst_str why = pst_json_str(pst_json_path(pst_json_root(report), "gate.why"));
  assert_false(promoted);
  assert_true(pst_str_find(why, PST_STR("another plan"), 0) != SIZE_MAX);
  assert_true(number(report, "expected.codes.n") > 0);
  assert_true(number(report, "expected.codes.saved") >= PST_FLYWHEEL_CODES_FROM);
  assert_true(number(report, "adapter.codes.n") == number(report, "expected.codes.n"));
  in_force(&t, after);
  assert_string_equal(after, hash);
  pst_json_free(report);
  pst_buf_done(&plan);
  pst_evals_workload_free(w);
  test_gateway_close(&t);
}

int main(int argc, char **argv) {
  if (argc == 10 && !strcmp(argv[1], "child")) return child_main(argv);
  const struct CMUnitTest tests[] = {cmocka_unit_test(test_planted_updates_are_refused),
                                     cmocka_unit_test(test_leaked_items_are_left_out),
                                     cmocka_unit_test(test_which_adapters_are_candidates),
                                     cmocka_unit_test(test_one_turn_at_a_time),
                                     cmocka_unit_test(test_a_finished_search_is_taken_up),
                                     cmocka_unit_test(test_a_plan_of_others_stays),
                                     cmocka_unit_test(test_killed_turns_go_on),
                                     cmocka_unit_test(test_a_turn_that_cannot_end_is_over),
                                     cmocka_unit_test(test_what_users_said_is_learned),
                                     cmocka_unit_test(test_only_what_answers_better_is_kept),
                                     cmocka_unit_test(test_answers_with_codes_are_left_out),
                                     cmocka_unit_test(test_killed_at_any_moment)};
  return cmocka_run_group_tests(tests, set_up, test_dir_close);
}
