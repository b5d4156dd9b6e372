/* How likely answers are for a model of this machine: behind what was asked, as it is served, and by themselves.
 *
 * The same tokens are counted both times, so that the difference says what the question does for the answer and nothing else. */
#include <math.h>
#include <string.h>

#include "gateway/live.h"
#include "gateway/prompt.h"

typedef struct reading {
  pst_gateway_likelihood *items;
  pst_engine_tokens *asked, *alone; /* of each item; n 0: it is not read */
  size_t *n_given;
  pst_engine_score_text *texts; /* two of each item that is read */
  size_t *item_of;              /* of each text */
  double *sums;                 /* of each text */
  size_t n_texts;
} reading;

/* Without a template the question is laid out in pairs, as a plan without a prompt would. */
static int render(const pst_engine_model *model, const pst_chat *chat, pst_engine_tokens *tokens, size_t *ret_n_given,
                  pst_error *err) {
  if (pst_engine_model_get_info(model)->has_template)
    return pst_engine_render_answered(model, chat, tokens, ret_n_given, err);
  static const pst_gateway_plan plan = {.root = {.op = PST_GATEWAY_OP_LOCAL, .layout = PST_GATEWAY_LAYOUT_PLAIN}};
  pst_gateway_prompt prompt = {0};
  pst_arena *arena = pst_arena_create();
  pst_str input;
  int code = arena ? pst_gateway_prompt_input(&plan, chat, arena, &input, err)
                   : pst_error_set(err, PST_E_NOMEM, NULL, "no memory for a question");
  if (!code) code = pst_gateway_prompt_build(&plan, &plan.root, NULL, input, NULL, 0, &prompt, err);
  if (!code)
    code = pst_gateway_prompt_answered(&prompt, model, chat->messages[chat->n_messages - 1].content, tokens,
                                       ret_n_given, err);
  pst_gateway_prompt_done(&prompt);
  pst_arena_free(arena);
  return code;
}

/* The answer behind the token that begins a text; a model without one goes without, and the first token is then not counted in either. */
static int cut_answer(const pst_engine_model *model, const pst_engine_tokens *asked, size_t n_given,
                      pst_engine_tokens *alone, pst_error *err) {
  const pst_engine_model_info *info = pst_engine_model_get_info(model);
  int32_t first = info->bos >= 0 ? info->bos : info->eos;
  int code = first >= 0 ? pst_engine_tokens_append(alone, &first, 1, err) : 0;
  return code ? code : pst_engine_tokens_append(alone, asked->ids + n_given, asked->n - n_given, err);
}

static int read_item(reading *r, const pst_engine_model *model, size_t n_ctx, size_t i, pst_error *err) {
  int code = render(model, r->items[i].chat, &r->asked[i], &r->n_given[i], err);
  if (!code) code = cut_answer(model, &r->asked[i], r->n_given[i], &r->alone[i], err);
  if (code) return code;
  if (r->asked[i].n >= n_ctx || r->alone[i].n < 2) return 0;
  const pst_engine_tokens *both[2] = {&r->asked[i], &r->alone[i]};
  for (int k = 0; k < 2; k++) {
    r->item_of[r->n_texts] = i;
    r->texts[r->n_texts++] = (pst_engine_score_text){both[k]->ids, both[k]->n};
  }
  return 0;
}

/* On the engine's thread. A text's tokens count from where the other of its item has them too. */
static void told(void *user, size_t text, size_t position, const pst_engine_event *e) {
  reading *r = user;
  size_t i = r->item_of[text], n_counted = r->alone[i].n - 1;
  if (position + n_counted >= r->texts[text].n) r->sums[text] += (double)e->logprob / (double)n_counted;
}

static int allocate(reading *r, pst_gateway_likelihood *items, size_t n) {
  *r = (reading){.items = items,
                 .asked = pst_calloc(n + 1, sizeof *r->asked),
                 .alone = pst_calloc(n + 1, sizeof *r->alone),
                 .n_given = pst_calloc(n + 1, sizeof *r->n_given),
                 .texts = pst_calloc(2 * n + 1, sizeof *r->texts),
                 .item_of = pst_calloc(2 * n + 1, sizeof *r->item_of),
                 .sums = pst_calloc(2 * n + 1, sizeof *r->sums)};
  return r->asked && r->alone && r->n_given && r->texts && r->item_of && r->sums ? 0 : PST_E_NOMEM;
}

static void done(reading *r, size_t n) {
  for (size_t i = 0; i < n && r->asked && r->alone; i++) {
    pst_engine_tokens_done(&r->asked[i]);
    pst_engine_tokens_done(&r->alone[i]);
  }
  pst_free(r->asked);
  pst_free(r->alone);
  pst_free(r->n_given);
  pst_free(r->texts);
  pst_free(r->item_of);
  pst_free(r->sums);
}

int pst_gateway_likelihoods(pst_gateway *g, const char *model, pst_gateway_likelihood *items, size_t n,
                            pst_error *err) {
  pst_gateway_engine_spec spec = pst_gateway_plain_spec(g, model);
  pst_gateway_slot *slot = NULL;
  reading r;
  int code = allocate(&r, items, n);
  if (code) pst_error_set(err, code, NULL, "no memory for %zu answers", n);
  if (!code) code = pst_gateway_engines_take_now(g->engines, &spec, NULL, &slot, err);
  if (!code && pst_engine_model_get_info(slot->model)->n_dims)
    code = pst_error_set(err, PST_E_UNSUPPORTED, model, "the model makes embeddings, not text");
  size_t n_ctx = code ? 0 : (size_t)pst_engine_get_options(slot->engine)->n_ctx;
  for (size_t i = 0; i < n && !code; i++) code = read_item(&r, slot->model, n_ctx, i, err);
  const pst_engine_score_job job = {.texts = r.texts, .n_texts = r.n_texts, .told = told, .user = &r};
  if (!code) code = pst_engine_score_wait(slot->engine, &job, err);
  for (size_t i = 0; i < n && !code; i++) items[i].asked = items[i].alone = NAN;
  for (size_t i = 0; i < r.n_texts && !code; i += 2) {
    items[r.item_of[i]].asked = r.sums[i];
    items[r.item_of[i]].alone = r.sums[i + 1];
  }
  if (slot) pst_gateway_engines_give(g->engines, slot);
  done(&r, n);
  return code;
}
