/* An adapter by every way of learning: a workload's examples, answers of a teacher to its users' inputs, what people said of answers.
 *
 * What comes of records goes through curation: what is near to items that judge plans is left out, private data is replaced, and the data set is the link by which the
 * deletion of a record reaches the adapter. */
#include "flywheel/tuning.h"

#include <string.h>

enum { LEAST = 8 };

typedef struct gathering {
  const pst_evals_info *info;
  pst_regex *pattern; /* NULL: the last user message is the input */
  pst_arena *arena;
  pst_tune_preference *list;
  size_t n, capacity;
  pst_flywheel_question *questions; /* inputs: one for each of the list */
  size_t questions_capacity;
  int64_t n_without_input;
  pst_buf text; /* of the line at hand */
  pst_error *err;
} gathering;

static int no_memory(pst_error *err) { return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for what is learned"); }

static bool keep(gathering *g, pst_str s, pst_str *ret) {
  const char *copy = s.data ? pst_arena_strndup(g->arena, s.data, s.n) : NULL;
  *ret = (pst_str){copy, copy ? s.n : 0};
  return copy || !s.data;
}

bool pst_flywheel_input(const pst_regex *pattern, const pst_json *messages, pst_buf *text, pst_str *ret_input) {
  const pst_data_example conversation = {.messages = messages};
  pst_span groups[2];
  pst_buf_clear(text);
  if (!pst_data_last_user_text(&conversation, text) || pst_buf_status(text)) return false;
  pst_str input = {pst_buf_text(text), text->n};
  if (pattern) {
    if (pst_regex_find(pattern, input, 0, groups, 2) != 1 || groups[1].start == SIZE_MAX) return false;
    input = (pst_str){input.data + groups[1].start, groups[1].end - groups[1].start};
  }
  *ret_input = input;
  return pst_str_trim(input).n > 0;
}

static int gather_preference(void *user, const pst_data_preference *line) {
  gathering *g = user;
  pst_tune_preference p = {.held_out = line->held};
  pst_str input;
  if (!pst_flywheel_input(g->pattern, line->messages, &g->text, &input)) {
    if (pst_buf_status(&g->text)) return no_memory(g->err);
    g->n_without_input++;
    return 0;
  }
  if (pst_array_reserve((void **)&g->list, &g->capacity, g->n + 1, sizeof *g->list)) return no_memory(g->err);
  if (!keep(g, input, &p.input) || !keep(g, line->wanted, &p.wanted) || !keep(g, line->unwanted, &p.unwanted))
    return no_memory(g->err);
  g->list[g->n++] = p;
  return 0;
}

static int gather_input(void *user, const pst_data_line *line) {
  gathering *g = user;
  pst_buf messages = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&messages, false);
  pst_data_preference p = {.messages = line->messages};
  size_t before = g->n;
  pst_str text;
  int code = gather_preference(g, &p);
  if (code || g->n == before) return code;
  pst_json_put_value(&w, line->messages);
  bool room = !pst_array_reserve((void **)&g->questions, &g->questions_capacity, g->n, sizeof *g->questions);
  code = room && !pst_buf_status(&messages) && keep(g, pst_buf_str(&messages), &text) ? 0 : no_memory(g->err);
  if (!code) g->questions[before] = (pst_flywheel_question){.messages = text};
  pst_buf_done(&messages);
  return code;
}

/* Whether there is enough for the objective; if not, what there is and what is missing. */
static int check_enough(const pst_data_curated *c, const pst_evals_info *info, pst_tune_objective objective,
                        pst_error *err) {
  long long n = c->n_records, pairs = c->n_pairs, liked = c->n_liked + pairs, disliked = c->n_disliked + pairs;
  if (objective == PST_TUNE_DPO && pairs < LEAST)
    return pst_error_set(err, PST_E_NO_DATA, info->name,
                         "dpo learns from corrections beside what they correct, %d at least, and %lld of %lld records "
                         "have one: send corrections as feedback, or take kto, which also learns from thumbs and "
                         "scores (%lld good answers, %lld bad)",
                         (int)LEAST, pairs, n, liked, disliked);
  if (objective == PST_TUNE_KTO && (liked + disliked < LEAST || !liked || !disliked))
    return pst_error_set(err, PST_E_NO_DATA, info->name,
                         "kto learns from answers that were judged, %d at least and some of each kind, and in %lld "
                         "records %lld are good and %lld bad: send thumbs, scores or corrections as feedback",
                         (int)LEAST, n, liked, disliked);
  return 0;
}

/* A data set of records. */
static int curate(pst_store *store, const pst_evals_workload *workload, const pst_flywheel_tune_options *options,
                  pst_data_kind kind, pst_data_curated *ret, pst_error *err) {
  const pst_evals_info *info = pst_evals_workload_info(workload);
  const pst_data_curate_options o = {.workload = pst_str_from(info->name),
                                     .kind = kind,
                                     .held = kind == PST_DATA_INPUTS ? 0 : options->tune.held_out_share,
                                     .min_score = options->min_score,
                                     .has_min_score = true,
                                     .seed = options->tune.training.seed,
                                     .form = workload};
  pst_buf report = PST_BUF_INIT;
  int code = pst_data_curate(store, &o, ret, &report, err);
  pst_buf_done(&report);
  return code;
}

static int begin(gathering *g, const pst_evals_workload *workload, pst_error *err) {
  *g = (gathering){.info = pst_evals_workload_info(workload), .arena = pst_arena_create(), .err = err};
  if (!g->arena) return no_memory(err);
  return g->info->input_pattern ? pst_regex_create(pst_str_from(g->info->input_pattern), 0, &g->pattern, err) : 0;
}

static void done(gathering *g) {
  pst_regex_free(g->pattern);
  pst_arena_free(g->arena);
  pst_free(g->list);
  pst_free(g->questions);
  pst_buf_done(&g->text);
}

int pst_flywheel_prefer(pst_gateway *gateway, pst_store *store, const pst_evals_workload *workload, const char *hash,
                        const pst_tune_workload_options *options, pst_tune_workload_result *ret_result,
                        int64_t *ret_n_without_input, pst_error *err) {
  gathering g;
  int code = begin(&g, workload, err);
  if (!code) code = pst_data_set_each_preference(store, pst_str_from(hash), gather_preference, &g, err);
  pst_tune_workload_options o = *options;
  o.preferences = g.list;
  o.n_preferences = g.n;
  o.data_set = hash;
  if (!code) code = pst_tune_workload(gateway, store, workload, &o, ret_result, err);
  if (!code && ret_n_without_input) *ret_n_without_input = g.n_without_input;
  done(&g);
  return code;
}

static int prefer(pst_gateway *gateway, pst_store *store, const pst_evals_workload *workload,
                  const pst_flywheel_tune_options *options, pst_flywheel_tune_result *r, pst_error *err) {
  pst_data_curated curated;
  int code = curate(store, workload, options, PST_DATA_PREFERENCES, &curated, err);
  if (!code) code = check_enough(&curated, pst_evals_workload_info(workload), options->tune.training.objective, err);
  return code ? code
              : pst_flywheel_prefer(gateway, store, workload, curated.hash, &options->tune, &r->tuned,
                                    &r->n_without_input, err);
}

static int be_taught(pst_gateway *gateway, pst_store *store, const pst_evals_workload *workload,
                     const pst_flywheel_tune_options *options, pst_flywheel_tune_result *r, pst_error *err) {
  gathering g;
  pst_tune_workload_options tune = options->tune;
  pst_data_curated curated = {.n_records = 0};
  int code = begin(&g, workload, err);
  if (!code) code = curate(store, workload, options, PST_DATA_INPUTS, &curated, err);
  if (!code && curated.hash[0])
    code = pst_data_set_each_input(store, pst_str_from(curated.hash), gather_input, &g, err);
  if (!code) code = pst_flywheel_teach(gateway, store, workload, options, g.questions, g.n, g.arena, &r->taught, err);
  for (size_t i = 0; i < g.n && !code; i++) g.list[i].wanted = g.questions[i].answer;
  tune.preferences = g.list;
  tune.n_preferences = g.n;
  r->n_without_input = g.n_without_input;
  tune.taught_set = !code && curated.hash[0] ? curated.hash : NULL;
  if (!code) code = pst_tune_workload(gateway, store, workload, &tune, &r->tuned, err);
  done(&g);
  if (code || options->keep_taught) return code;
  code = pst_flywheel_taught_forget(store, workload, err);
  if (code) pst_tune_workload_result_done(&r->tuned);
  return code;
}

int pst_flywheel_tune(pst_gateway *gateway, pst_store *store, const pst_evals_workload *workload,
                      const pst_flywheel_tune_options *options, pst_flywheel_tune_result *ret_result, pst_error *err) {
  bool examples = options->tune.training.objective == PST_TUNE_SFT;
  pst_flywheel_tune_result r = {.taught = {.n_asked = 0}};
  if (options->teacher && !examples)
    return pst_error_set(err, PST_E_BAD_INPUT, "teacher", "a teacher gives answers to learn: it goes with sft alone");
  int code = !examples          ? prefer(gateway, store, workload, options, &r, err)
             : options->teacher ? be_taught(gateway, store, workload, options, &r, err)
                                : pst_tune_workload(gateway, store, workload, &options->tune, &r.tuned, err);
  if (!code) *ret_result = r;
  return code;
}
