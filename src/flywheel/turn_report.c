/* What a turn is expected to bring, said before anything is trained, and what it brought. */
#include <math.h>
#include <string.h>

#include <penstock/engine.h>

#include "flywheel/model.h"
#include "flywheel/turn.h"

/* Cost of reading a prompt's token beside that of a generated one. Assumed: a step reads tens of tokens for little more than one. */
#define PROMPT_TOKEN_SHARE 0.15
/* Tokens that a layout puts around a message. Assumed. */
#define FRAME_TOKENS 6
enum { SAMPLE = 64 };

static double number_at(const pst_json *v, const char *path) { return pst_json_double(pst_json_path(v, path), NAN); }

/* Mean tokens of a message and of an answer, of a sample of the examples. */
static int sample(const pst_flywheel_turn_state *t, double *ret_message, double *ret_answer, pst_error *err) {
  const pst_evals_info *info = pst_evals_workload_info(t->workload);
  pst_flywheel_model m = {0};
  pst_engine_tokens tokens = {0};
  size_t n = 0, message = 0, answer = 0;
  int code = pst_flywheel_model_open(t->store, pst_str_from(t->model), t->options->threads, &m, err);
  for (size_t i = 0; i < info->n_items && n < SAMPLE && !code; i++) {
    if (info->items[i].part != PST_EVALS_EXAMPLES) continue;
    tokens.n = 0;
    code = pst_engine_tokenize(m.model, info->items[i].input, false, false, &tokens, err);
    message += tokens.n;
    tokens.n = 0;
    if (!code) code = pst_engine_tokenize(m.model, info->items[i].expected, false, false, &tokens, err);
    answer += tokens.n + 1;
    n++;
  }
  pst_engine_tokens_done(&tokens);
  pst_flywheel_model_close(&m);
  if (!code && !n)
    code = pst_error_set(err, PST_E_NO_DATA, info->name,
                         "no item has the part \"examples\": there is nothing to learn from");
  if (code) return code;
  *ret_message = (double)message / (double)n;
  *ret_answer = (double)answer / (double)n;
  return 0;
}

int pst_flywheel_turn_expect(pst_flywheel_turn_state *t, pst_buf *out, pst_error *err) {
  const pst_evals_info *info = pst_evals_workload_info(t->workload);
  double message = 0, answer = 0;
  char hash[65], *evidence = NULL;
  pst_json_doc *doc = NULL;
  int code = sample(t, &message, &answer, err);
  if (code) return code;
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_object(&w);
  pst_json_member_double(&w, "prompt_tokens", message + FRAME_TOKENS);
  pst_json_member_double(&w, "answer_tokens", answer);
  bool known =
      !pst_store_plan_assigned(t->store, pst_str_from(info->name), PST_STORE_PLAN_IN_FORCE, NULL, hash, NULL) &&
      !pst_optimizer_evidence_find(t->store, hash, &evidence, NULL) &&
      !pst_json_parse(evidence, strlen(evidence), "evidence", &doc, NULL);
  if (known) {
    const pst_json *e = pst_json_root(doc);
    double prompt = number_at(e, "plan.estimate.prompt_tokens"), cached = number_at(e, "plan.estimate.cached_tokens");
    double made = number_at(e, "plan.estimate.completion_tokens");
    pst_json_member_double(&w, "prompt_tokens_now", prompt);
    pst_json_member_double(&w, "answer_tokens_now", made);
    pst_json_member_double(&w, "request_nusd_now", number_at(e, "plan.estimate.request_nusd"));
    pst_json_member_double(&w, "cost_ratio",
                           (PROMPT_TOKEN_SHARE * (message + FRAME_TOKENS) + answer) /
                               (PROMPT_TOKEN_SHARE * (prompt - cached) + made));
  }
  pst_json_end_object(&w);
  pst_json_free(doc);
  pst_free(evidence);
  return 0;
}

static void put_doc(pst_json_writer *w, const char *key, const pst_json_doc *doc) {
  pst_json_key(w, key);
  pst_json_put_value(w, pst_json_root(doc));
}

void pst_flywheel_turn_report(const pst_flywheel_turn_state *t, pst_buf *out) {
  const pst_json *planned = pst_json_root(t->planned), *e = pst_json_get(planned, "evidence");
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "workload", pst_evals_workload_info(t->workload)->name);
  pst_json_member_double(&w, "run", (double)t->run_id);
  put_doc(&w, "data", t->data);
  put_doc(&w, "expected", t->expected);
  put_doc(&w, "adapter", t->adapter);
  pst_json_key(&w, "plan");
  pst_json_begin_object(&w);
  static const char *const members[] = {"run", "verdict", "hash"};
  for (size_t i = 0; i < PST_ARRAY_LEN(members); i++) {
    pst_json_key(&w, members[i]);
    pst_json_put_value(&w, pst_json_get(planned, members[i]));
  }
  pst_json_key(&w, "choice");
  pst_json_put_value(&w, pst_json_get(pst_json_get(e, "plan"), "choice"));
  pst_json_key(&w, "verify");
  pst_json_put_value(&w, pst_json_get(pst_json_get(e, "plan"), "verify"));
  pst_json_key(&w, "estimate");
  pst_json_put_value(&w, pst_json_get(pst_json_get(e, "plan"), "estimate"));
  pst_json_key(&w, "nusd_per_1000_accepted");
  pst_json_put_value(&w, pst_json_get(pst_json_get(e, "plan"), "nusd_per_1000_accepted"));
  pst_json_end_object(&w);
  pst_json_key(&w, "before");
  pst_json_put_value(&w, pst_json_get(e, "reference"));
  put_doc(&w, "gate", t->gated);
  pst_json_end_object(&w);
}
