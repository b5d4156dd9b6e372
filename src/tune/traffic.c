/* A workload's traffic as tokens: prompts as the gateway serves them, and right answers as a model would write them. */
#include <penstock/tune_calibrate.h>

#include <stdlib.h>
#include <string.h>

void pst_tune_traffic_done(pst_tune_traffic *traffic) {
  pst_free(traffic->tokens);
  pst_free(traffic->texts);
  memset(traffic, 0, sizeof *traffic);
}

int pst_tune_traffic_add(pst_tune_traffic *t, const int32_t *tokens, size_t n, size_t n_given) {
  if (n_given < 1 || n_given >= n) return PST_E_BAD_INPUT;
  int code = pst_array_reserve((void **)&t->tokens, &t->tokens_capacity, t->n_tokens + n, sizeof *t->tokens);
  if (!code) code = pst_array_reserve((void **)&t->texts, &t->texts_capacity, t->n_texts + 1, sizeof *t->texts);
  if (code) return code;
  memcpy(t->tokens + t->n_tokens, tokens, n * sizeof *tokens);
  t->texts[t->n_texts++] = (pst_tune_traffic_text){t->n_tokens, n, n_given};
  t->n_tokens += n;
  return 0;
}

/* ---- items ---- */

typedef struct drawn {
  uint64_t key;
  const pst_evals_item *item;
} drawn;

static int by_key(const void *a, const void *b) {
  const drawn *x = a, *y = b;
  if (x->key != y->key) return x->key < y->key ? -1 : 1;
  return pst_str_compare(x->item->id, y->item->id);
}

static int render_item(pst_gateway *gateway, const pst_gateway_plan *plan, const pst_evals_item *item,
                       pst_tune_traffic *traffic, pst_error *err) {
  pst_engine_tokens tokens = {0};
  size_t n_given = 0;
  int code = pst_gateway_render_answered(gateway, plan, &plan->root, item->input, &item->id, 1, item->expected, &tokens,
                                         &n_given, err);
  /* An empty answer of a model without an end token says nothing. */
  if (!code && tokens.n > n_given && n_given) code = pst_tune_traffic_add(traffic, tokens.ids, tokens.n, n_given);
  if (code == PST_E_NOMEM) pst_error_set(err, code, NULL, "no memory for the traffic");
  pst_engine_tokens_done(&tokens);
  return code;
}

int pst_tune_traffic_render(pst_gateway *gateway, const pst_gateway_plan *plan, const pst_evals_workload *workload,
                            pst_evals_part part, size_t limit, pst_tune_traffic *traffic, pst_error *err) {
  const pst_evals_info *info = pst_evals_workload_info(workload);
  pst_engine *engine = NULL;
  size_t n = 0;
  if (plan->root.op != PST_GATEWAY_OP_LOCAL)
    return pst_error_set(err, PST_E_BAD_INPUT, info->folder,
                         "the plan's root asks no local model; what one is asked is what weights are calibrated on");
  drawn *list = pst_calloc(info->n_items + 1, sizeof *list);
  if (!list) return pst_error_set(err, PST_E_NOMEM, info->folder, "no memory for the items");
  for (size_t i = 0; i < info->n_items; i++)
    if (info->items[i].part == part)
      list[n++] = (drawn){pst_hash64(info->items[i].id.data, info->items[i].id.n, 0), &info->items[i]};
  qsort(list, n, sizeof *list, by_key);
  int code =
      n ? 0 : pst_error_set(err, PST_E_NO_DATA, info->folder, "no item is of the part %s", pst_evals_part_name(part));
  if (!code) code = pst_gateway_engine_acquire(gateway, plan, plan->root.engine, &engine, err);
  for (size_t i = 0; i < (limit ? PST_MIN(limit, n) : n) && !code; i++)
    code = render_item(gateway, plan, list[i].item, traffic, err);
  pst_gateway_engine_release(gateway, engine);
  pst_free(list);
  return code;
}

int pst_tune_traffic_cut(const pst_engine_model *model, pst_str text, size_t n_tokens, size_t limit_tokens,
                         pst_tune_traffic *traffic, pst_error *err) {
  pst_engine_tokens tokens = {0};
  int code = pst_engine_tokenize(model, text, false, true, &tokens, err);
  if (!code && tokens.n < 2) code = pst_error_set(err, PST_E_NO_DATA, NULL, "the text has fewer than 2 tokens");
  size_t end = limit_tokens ? PST_MIN(limit_tokens, tokens.n) : tokens.n;
  for (size_t at = 0; at + 1 < end && !code; at += n_tokens) {
    size_t n = PST_MIN(n_tokens, end - at);
    if (n < 2) break;
    code = pst_tune_traffic_add(traffic, tokens.ids + at, n, 1);
    if (code)
      pst_error_set(err, code, NULL,
                    code == PST_E_NOMEM ? "no memory for the text" : "pieces of 2 tokens or more are wanted");
  }
  pst_engine_tokens_done(&tokens);
  return code;
}
