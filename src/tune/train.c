/* Training: which texts go into which step, how long it goes on, what is kept.
 *
 * Owns the order of things. Step s takes the texts s * batch_texts and following of an endless row of epochs, each a permutation drawn by (seed, epoch); so a
 * step is a function of its number, and a run that goes on from a checkpoint does what it would have done. Where time is the measure, the number of steps is
 * planned from a probe and only ever lowered. */
#include <math.h>
#include <string.h>

#include "tune/adam.h"
#include "tune/checkpoint.h"
#include "tune/net.h"

enum { MIN_SHARED = 8, REPLAN_STEPS = 8 };

typedef struct trainer {
  const pst_tune_options *o;
  const pst_tune_text *texts, *held_out;
  size_t n_texts, n_held_out, batch_texts, max_tokens;
  pst_tune_model model;
  pst_tune_lora lora;
  pst_tune_team *team;
  pst_tune_net_f32 *net;
  pst_tune_adam adam;
  float *memory, *best; /* mean, square and best; best is a part of it */
  pst_tune_batch batch;
  pst_tune_text *chosen; /* [batch_texts] of the step at hand */
  uint32_t *order;       /* [n_texts] of epoch `epoch` */
  int64_t epoch;
  char key[65];
  pst_tune_state state;
  double seconds_before; /* of earlier sessions */
  int64_t start_us, saved_us;
  int64_t session_tokens;
  pst_error *err;
} trainer;

pst_tune_options pst_tune_options_default(void) {
  return (pst_tune_options){.rank = 16,
                            .alpha = 32,
                            .roles = (1u << PST_ENGINE_ROLE_COUNT) - 1,
                            .learning_rate = 1e-3,
                            .warmup_share = 0.03,
                            .beta1 = 0.9,
                            .beta2 = 0.999,
                            .epsilon = 1e-8,
                            .clip = 1,
                            .batch_texts = 16,
                            .max_epochs = 3,
                            .patience = 3,
                            .evaluations = 10,
                            .seed = 1,
                            .max_tokens = 768,
                            .checkpoint_seconds = 60};
}

/* ---- what is asked for ---- */

static int check_options(const pst_tune_options *o, pst_error *err) {
  const char *wrong = o->rank < 1 || o->rank > 256                        ? "rank"
                      : !(o->alpha > 0)                                   ? "alpha"
                      : !(o->roles & ((1u << PST_ENGINE_ROLE_COUNT) - 1)) ? "roles"
                      : !(o->learning_rate > 0 && o->learning_rate <= 1)  ? "learning_rate"
                      : !(o->warmup_share >= 0 && o->warmup_share < 1)    ? "warmup_share"
                      : !(o->final_share >= 0 && o->final_share <= 1)     ? "final_share"
                      : !(o->beta1 >= 0 && o->beta1 < 1)                  ? "beta1"
                      : !(o->beta2 >= 0 && o->beta2 < 1)                  ? "beta2"
                      : !(o->epsilon > 0)                                 ? "epsilon"
                      : !(o->weight_decay >= 0)                           ? "weight_decay"
                      : !(o->clip >= 0)                                   ? "clip"
                      : o->batch_texts < 1 || o->batch_texts > 65536      ? "batch_texts"
                      : o->max_epochs < 1                                 ? "max_epochs"
                      : o->steps < 0                                      ? "steps"
                      : !(o->seconds >= 0)                                ? "seconds"
                      : o->patience < 0                                   ? "patience"
                      : o->evaluations < 1                                ? "evaluations"
                      : o->max_tokens < 1                                 ? "max_tokens"
                                                                          : NULL;
  return wrong ? pst_error_set(err, PST_E_BAD_INPUT, wrong, "the value is out of range") : 0;
}

static int check_texts(const trainer *t, const pst_tune_text *texts, size_t n, const char *what, size_t *longest) {
  size_t n_vocab = t->model.n_vocab;
  for (size_t i = 0; i < n; i++) {
    const pst_tune_text *x = &texts[i];
    char place[64];
    snprintf(place, sizeof place, "%s %zu", what, i);
    if (x->n < 2 || x->n_given < 1 || x->n_given >= x->n || !(x->weight > 0))
      return pst_error_set(t->err, PST_E_BAD_INPUT, place, "there must be a token given, one to score, and a weight");
    if (x->n > t->model.n_ctx)
      return pst_error_set(t->err, PST_E_LIMIT, place, "%zu tokens are more than the model's context of %zu", x->n,
                           t->model.n_ctx);
    for (size_t k = 0; k < x->n; k++)
      if (x->tokens[k] < 0 || (size_t)x->tokens[k] >= n_vocab)
        return pst_error_set(t->err, PST_E_BAD_INPUT, place, "token %ld is not in the vocabulary", (long)x->tokens[k]);
    *longest = PST_MAX(*longest, x->n);
  }
  return 0;
}

static void hash_texts(pst_sha256 *s, const pst_tune_text *texts, size_t n) {
  for (size_t i = 0; i < n; i++) {
    pst_sha256_update(s, texts[i].tokens, texts[i].n * sizeof *texts[i].tokens);
    pst_sha256_update(s, &texts[i].n_given, sizeof texts[i].n_given);
    pst_sha256_update(s, &texts[i].weight, sizeof texts[i].weight);
  }
}

/* What a checkpoint is of: texts, what of the options changes numbers, and the model by a row of every layer. */
static void make_key(trainer *t) {
  const pst_tune_options *o = t->o;
  const double numbers[] = {o->rank,        o->alpha,        o->roles,          o->learning_rate, o->warmup_share,
                            o->final_share, o->weight_decay, o->beta1,          o->beta2,         o->epsilon,
                            o->clip,        o->batch_texts,  o->max_epochs,     (double)o->steps, o->seconds,
                            o->patience,    o->evaluations,  o->share_prefixes, o->in_order,      o->max_tokens};
  uint8_t sum[32];
  pst_sha256 s;
  pst_sha256_init(&s);
  pst_sha256_update(&s, numbers, sizeof numbers);
  pst_sha256_update(&s, &o->seed, sizeof o->seed);
  hash_texts(&s, t->texts, t->n_texts);
  hash_texts(&s, t->held_out, t->n_held_out);
  for (size_t i = 0; i < t->model.n_layers; i++)
    pst_sha256_update(&s, t->model.layers[i].linear[PST_ENGINE_ROLE_DOWN].w, t->model.n_ff * sizeof(float));
  pst_sha256_done(&s, sum);
  pst_hex(sum, sizeof sum, t->key);
}

/* ---- room ---- */

static int open_trainer(trainer *t, const pst_engine_model *model) {
  const pst_tune_options *o = t->o;
  bool roles[PST_ENGINE_ROLE_COUNT];
  size_t longest = 2;
  int threads = o->threads > 0 ? o->threads : pst_cpu_count();
  for (int r = 0; r < PST_ENGINE_ROLE_COUNT; r++) roles[r] = o->roles >> r & 1;
  int code = pst_tune_model_load(model, NULL, &t->model, t->err);
  if (!code) code = check_texts(t, t->texts, t->n_texts, "text", &longest);
  if (!code) code = check_texts(t, t->held_out, t->n_held_out, "held-out text", &longest);
  if (!code) code = pst_tune_lora_init(&t->model, (size_t)o->rank, o->alpha, roles, &t->lora, t->err);
  if (!code)
    code = pst_tune_team_create(threads, pst_tune_scratch_bytes(longest, PST_MAX(t->model.n_ff, t->model.n_embd)),
                                &t->team, t->err);
  t->max_tokens = PST_MAX((size_t)o->max_tokens, longest);
  if (!code)
    code =
        pst_tune_net_create_f32(&t->model, &t->lora, t->team, t->max_tokens, t->max_tokens, longest, &t->net, t->err);
  if (code) return code;
  size_t n = t->lora.n;
  t->memory = pst_calloc(3 * n, sizeof *t->memory);
  t->order = pst_malloc(t->n_texts * sizeof *t->order);
  t->chosen = pst_malloc(PST_MAX(t->batch_texts, t->n_held_out) * sizeof *t->chosen);
  if (!t->memory || !t->order || !t->chosen) return pst_error_set(t->err, PST_E_NOMEM, NULL, "no memory for training");
  t->best = t->memory + 2 * n;
  t->adam = (pst_tune_adam){o->beta1,       o->beta2,      o->epsilon, o->weight_decay, n,
                            t->net->params, t->net->grads, t->memory,  t->memory + n};
  t->epoch = -1;
  make_key(t);
  pst_tune_lora_start(&t->model, &t->lora, o->seed, t->net->params);
  memcpy(t->best, t->net->params, n * sizeof *t->best);
  t->state = (pst_tune_state){.best_step = -1, .best_loss = INFINITY, .held_out_before = NAN, .held_out_loss = NAN};
  return 0;
}

static void close_trainer(trainer *t) {
  pst_tune_net_free_f32(t->net);
  pst_tune_team_free(t->team);
  pst_tune_lora_done(&t->lora);
  pst_tune_model_done(&t->model);
  pst_tune_batch_done(&t->batch);
  pst_free(t->memory);
  pst_free(t->order);
  pst_free(t->chosen);
}

static double seconds_spent(const trainer *t) {
  return t->seconds_before + (double)(pst_clock_us() - t->start_us) / 1e6;
}

/* ---- a step ---- */

static double scored_weight(const pst_tune_text *texts, size_t n) {
  double sum = 0;
  for (size_t i = 0; i < n; i++) sum += (double)(texts[i].n - texts[i].n_given) * (double)texts[i].weight;
  return sum;
}

/* Adds the texts' losses to *loss and, factor not 0, their derivatives to the gradient, in as many batches as they need. */
static int run_texts(trainer *t, const pst_tune_text *texts, size_t n, double factor, double *loss) {
  pst_tune_batch *b = &t->batch;
  size_t n_tokens = 0, n_scores = 0;
  int code = 0;
  for (size_t i = 0; i < n; i++) {
    n_tokens += texts[i].n - 1;
    n_scores += texts[i].n - texts[i].n_given;
  }
  pst_tune_batch_clear(b);
  if (t->o->share_prefixes) {
    code = pst_tune_batch_add_tree(b, texts, n, MIN_SHARED);
    n_tokens = b->n_tokens;
  } else {
    for (size_t i = 0; i < n && n_tokens <= t->max_tokens && !code; i++) code = pst_tune_batch_add(b, &texts[i]);
  }
  if (code) return pst_error_set(t->err, code, NULL, "no memory for a batch");
  if (n > 1 && PST_MAX(n_tokens, n_scores) > t->max_tokens) {
    code = run_texts(t, texts, n / 2, factor, loss);
    return code ? code : run_texts(t, texts + n / 2, n - n / 2, factor, loss);
  }
  double sum;
  pst_tune_net_run_f32(t->net, b, factor, &sum);
  *loss += sum;
  if (factor != 0) {
    t->state.n_tokens += (int64_t)b->n_tokens;
    t->session_tokens += (int64_t)b->n_tokens;
  }
  return 0;
}

static void draw_order(trainer *t, int64_t epoch) {
  pst_random r = {t->o->seed, 0x6f72646572u + (uint64_t)epoch, 0};
  for (size_t i = 0; i < t->n_texts; i++) t->order[i] = (uint32_t)i;
  for (size_t i = t->n_texts; i > 1 && !t->o->in_order; i--) {
    size_t k = pst_random_below(&r, i);
    uint32_t swap = t->order[i - 1];
    t->order[i - 1] = t->order[k];
    t->order[k] = swap;
  }
  t->epoch = epoch;
}

static void choose_texts(trainer *t, int64_t step) {
  for (size_t i = 0; i < t->batch_texts; i++) {
    uint64_t at = (uint64_t)step * t->batch_texts + i;
    int64_t epoch = (int64_t)(at / t->n_texts);
    if (epoch != t->epoch) draw_order(t, epoch);
    t->chosen[i] = t->texts[t->order[at % t->n_texts]];
  }
  if (t->o->share_prefixes) pst_tune_texts_sort(t->chosen, t->batch_texts);
}

/* The step's mean loss; the gradient is complete. */
static int derive_step(trainer *t, int64_t step, double *ret_loss) {
  double loss = 0;
  choose_texts(t, step);
  double weight = scored_weight(t->chosen, t->batch_texts);
  int code = run_texts(t, t->chosen, t->batch_texts, 1 / weight, &loss);
  if (!code) *ret_loss = loss / weight;
  return code;
}

static int held_out_loss(trainer *t, double *ret_loss) {
  double loss = 0;
  memcpy(t->chosen, t->held_out, t->n_held_out * sizeof *t->chosen);
  if (t->o->share_prefixes) pst_tune_texts_sort(t->chosen, t->n_held_out);
  int code = run_texts(t, t->chosen, t->n_held_out, 0, &loss);
  if (!code) *ret_loss = loss / scored_weight(t->held_out, t->n_held_out);
  return code;
}

/* ---- how long ---- */

/* The number of steps: as said, or as many as the time allows by a probe of one step and of the held-out part. */
static int plan_steps(trainer *t) {
  const pst_tune_options *o = t->o;
  double loss, per_evaluation = 0;
  int64_t most = (int64_t)((t->n_texts * (uint64_t)o->max_epochs + t->batch_texts - 1) / t->batch_texts);
  int code = 0;
  if (t->n_held_out) {
    int64_t begin = pst_clock_us();
    code = held_out_loss(t, &t->state.held_out_before);
    per_evaluation = (double)(pst_clock_us() - begin) / 1e6;
    t->state.best_loss = t->state.held_out_loss = t->state.held_out_before;
    t->state.best_step = 0;
  }
  t->state.n_steps = o->steps ? o->steps : most;
  if (code || o->steps || o->seconds == 0) return code;
  int64_t begin = pst_clock_us();
  code = derive_step(t, 0, &loss);
  double per_step = (double)(pst_clock_us() - begin) / 1e6;
  memset(t->net->grads, 0, t->lora.n * sizeof *t->net->grads);
  t->session_tokens = t->state.n_tokens = 0;
  double left = o->seconds - seconds_spent(t) - per_evaluation * o->evaluations;
  t->state.n_steps = (int64_t)PST_MIN(PST_MAX(left / per_step, 1), (double)most);
  return code;
}

/* Fewer steps when those so far took longer than planned. */
static void replan(trainer *t, double session_seconds, int64_t session_steps) {
  pst_tune_state *s = &t->state;
  if (t->o->steps || t->o->seconds == 0 || session_steps % REPLAN_STEPS != 0) return;
  double left = t->o->seconds - seconds_spent(t), per_step = session_seconds / (double)session_steps;
  int64_t possible = s->step + (int64_t)PST_MAX(left / per_step, 0);
  s->n_steps = PST_MAX(PST_MIN(s->n_steps, possible), s->step);
}

/* ---- the course ---- */

static int save(trainer *t) {
  if (!t->o->checkpoint) return 0;
  pst_tune_state s = t->state;
  pst_tune_numbers numbers = {t->lora.n, t->net->params, t->adam.mean, t->adam.square, t->best};
  s.seconds = seconds_spent(t);
  t->saved_us = pst_clock_us();
  return pst_tune_checkpoint_write(t->o->checkpoint, t->key, &s, &numbers, t->err);
}

static int evaluate(trainer *t) {
  pst_tune_state *s = &t->state;
  int code = held_out_loss(t, &s->held_out_loss);
  if (code) return code;
  if (s->held_out_loss < s->best_loss) {
    s->best_loss = s->held_out_loss;
    s->best_step = s->step;
    s->n_worse = 0;
    memcpy(t->best, t->net->params, t->lora.n * sizeof *t->best);
  } else {
    s->n_worse++;
  }
  return 0;
}

static bool stops_early(const trainer *t) { return t->o->patience > 0 && t->state.n_worse >= t->o->patience; }

static void report_progress(const trainer *t, double loss, double rate, double session_seconds, int64_t session_steps) {
  const pst_tune_state *s = &t->state;
  if (!t->o->on_progress) return;
  double left = (double)(s->n_steps - s->step) * session_seconds / (double)session_steps;
  pst_tune_progress p = {.step = s->step,
                         .n_steps = s->n_steps,
                         .loss = loss,
                         .held_out_loss = s->held_out_loss,
                         .tokens_per_second = (double)t->session_tokens / session_seconds,
                         .seconds_left = left,
                         .learning_rate = rate};
  t->o->on_progress(t->o->user, &p);
}

static int one_step(trainer *t, int64_t began_us, int64_t first) {
  const pst_tune_options *o = t->o;
  pst_tune_state *s = &t->state;
  double loss, rate = o->learning_rate * pst_tune_schedule(s->step, s->n_steps, o->warmup_share, o->final_share);
  int code = derive_step(t, s->step, &loss);
  if (code) return code;
  if (!isfinite(loss))
    return pst_error_set(t->err, PST_E_BAD_INPUT, "learning_rate",
                         "the loss is not finite after %lld steps: take a lower rate", (long long)s->step);
  pst_tune_adam_step(t->team, &t->adam, s->step + 1, rate, o->clip);
  for (size_t i = 0; i < t->batch_texts; i++) s->n_scored += (int64_t)(t->chosen[i].n - t->chosen[i].n_given);
  if (s->step >= s->n_steps - PST_MAX(s->n_steps / 10, 1)) {
    s->loss_sum += loss;
    s->n_loss++;
  }
  s->step++;
  double seconds = (double)(pst_clock_us() - began_us) / 1e6;
  replan(t, seconds, s->step - first);
  int64_t every = PST_MAX(s->n_steps / o->evaluations, 1);
  if (t->n_held_out && (s->step % every == 0 || s->step >= s->n_steps)) code = evaluate(t);
  report_progress(t, loss, rate, seconds, s->step - first);
  if (!code && o->checkpoint && (double)(pst_clock_us() - t->saved_us) / 1e6 >= o->checkpoint_seconds) code = save(t);
  return code;
}

static int run_steps(trainer *t) {
  int64_t began_us = pst_clock_us(), first = t->state.step;
  while (t->state.step < t->state.n_steps && !stops_early(t)) {
    if (t->o->cancelled && t->o->cancelled(t->o->user)) {
      int code = save(t);
      return code ? code
                  : pst_error_set(t->err, PST_E_CANCELLED, NULL, "training was stopped after %lld of %lld steps",
                                  (long long)t->state.step, (long long)t->state.n_steps);
    }
    int code = one_step(t, began_us, first);
    if (code) return code;
  }
  return 0;
}

/* ---- the result ---- */

static int put_adapter(const trainer *t, const float *params, const char *architecture, pst_engine_lora *lora) {
  lora->alpha = (float)t->o->alpha;
  lora->architecture = pst_strdup(architecture);
  if (!lora->architecture) return pst_error_set(t->err, PST_E_NOMEM, NULL, "no memory for the adapter");
  for (size_t i = 0; i < t->model.n_layers; i++)
    for (int r = 0; r < PST_ENGINE_ROLE_COUNT; r++) {
      const pst_tune_linear *l = &t->model.layers[i].linear[r];
      pst_engine_lora_target *target;
      char name[64];
      if (t->lora.layers[i].place[r] < 0) continue;
      snprintf(name, sizeof name, "blk.%zu.%s.weight", i, pst_engine_role_name((pst_engine_role)r));
      int code =
          pst_engine_lora_add(lora, pst_str_from(name), t->o->rank, (int)l->n_in, (int)l->n_out, &target, t->err);
      if (code) return code;
      memcpy(target->a, params + pst_tune_lora_a(&t->model, &t->lora, i, (pst_engine_role)r),
             t->lora.rank * l->n_in * sizeof *target->a);
      memcpy(target->b, params + t->lora.layers[i].b[r], t->lora.rank * l->n_out * sizeof *target->b);
    }
  return 0;
}

static pst_tune_report report_of(const trainer *t, double session_seconds) {
  const pst_tune_state *s = &t->state;
  return (pst_tune_report){.n_steps = s->step,
                           .best_step = t->n_held_out ? s->best_step : s->step,
                           .n_tokens = s->n_tokens,
                           .n_scored = s->n_scored,
                           .loss = s->n_loss ? s->loss_sum / (double)s->n_loss : NAN,
                           .held_out_before = s->held_out_before,
                           .held_out_loss = t->n_held_out ? s->best_loss : NAN,
                           .seconds = seconds_spent(t),
                           .tokens_per_second = (double)t->session_tokens / session_seconds,
                           .memory_bytes = t->model.bytes + t->net->bytes + 3 * t->lora.n * sizeof(float),
                           .stopped_early = s->step < s->n_steps};
}

int pst_tune_train(const pst_engine_model *model, const pst_tune_text *texts, size_t n_texts,
                   const pst_tune_text *held_out, size_t n_held_out, const pst_tune_options *options,
                   pst_engine_lora *ret_lora, pst_tune_report *ret_report, pst_error *err) {
  trainer t = {
      .o = options, .texts = texts, .held_out = held_out, .n_texts = n_texts, .n_held_out = n_held_out, .err = err};
  pst_engine_lora lora = {0};
  bool found = false;
  t.start_us = t.saved_us = pst_clock_us();
  int code = check_options(options, err);
  if (code) return code;
  if (n_texts == 0) return pst_error_set(err, PST_E_NO_DATA, NULL, "there is no text to train on");
  t.batch_texts = PST_MIN((size_t)options->batch_texts, n_texts);
  code = open_trainer(&t, model);
  if (!code && options->checkpoint) {
    pst_tune_numbers numbers = {t.lora.n, t.net->params, t.adam.mean, t.adam.square, t.best};
    code = pst_tune_checkpoint_read(options->checkpoint, t.key, &found, &t.state, &numbers, err);
    if (found) t.seconds_before = t.state.seconds;
  }
  if (!code && !found) code = plan_steps(&t);
  int64_t began_us = pst_clock_us();
  if (!code) code = run_steps(&t);
  const char *architecture = pst_engine_model_get_info(model)->architecture;
  if (!code) code = put_adapter(&t, n_held_out ? t.best : t.net->params, architecture, &lora);
  if (!code) {
    *ret_report = report_of(&t, PST_MAX((double)(pst_clock_us() - began_us) / 1e6, 1e-6));
    *ret_lora = lora;
    if (options->checkpoint) (void)remove(options->checkpoint);
  } else {
    pst_engine_lora_done(&lora);
  }
  close_trainer(&t);
  return code;
}
