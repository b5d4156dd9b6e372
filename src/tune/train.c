/* Training: which texts go into which step, how long it goes on, what is kept.
 *
 * Owns the order of things. Step s takes the examples s * batch_texts and following of an endless row of epochs, each a permutation drawn by (seed, epoch); so a
 * step is a function of its number, and a run that goes on from a checkpoint does what it would have done. Where time is the measure, the number of steps is
 * planned from a probe, lowered when it takes longer, and raised up to the middle. An example is a text, in DPO a pair of them; what the starting model makes of texts is found once, before the first
 * step, and kept with the checkpoint. */
#include <math.h>
#include <string.h>

#include "tune/adam.h"
#include "tune/checkpoint.h"
#include "tune/net.h"
#include "tune/preference.h"

enum { MIN_SHARED = 8, REPLAN_STEPS = 8, REFERENCES_AT_ONCE = 32 };
/* Of the held-out sample: asked to learn what answers take, asked at least, times that what may be spent on it should be enough for. */
enum { PROBE_ITEMS = 4, LEAST_SAMPLE = 8, LEAST_SCORES = 4 };

#define MOST_LOOKING 0.25 /* of the time, for looks at the held-out part */
/* Held-out loss of an adapter that is taken, over the lowest seen, at most. */
#define RISE 1.25

/* Texts that are gone through together. */
typedef struct selection {
  pst_tune_text *texts;
  double *references; /* of each text; none in SFT */
  /* KTO: answers to other prompts, by which the reference point is found. */
  pst_tune_text *contrasts;
  double *contrast_references;
  size_t n;
} selection;

typedef struct trainer {
  const pst_tune_options *o;
  const pst_tune_text *texts, *held_out;
  size_t n_texts, n_held_out, max_tokens;
  size_t unit, batch_units; /* texts of an example, examples of a step */
  pst_tune_model model;
  pst_tune_lora lora;
  pst_tune_team *team;
  pst_tune_net_f32 *net;
  pst_tune_adam adam;
  float *memory, *best; /* mean, square and best; best is a part of it */
  pst_tune_batch batch;
  selection chosen;         /* for the step or the held-out loss at hand */
  double *references;       /* [n_references]: of texts and held-out ones; in KTO of `contrasts` behind them */
  pst_tune_text *contrasts; /* KTO: [n_texts + n_held_out] */
  int32_t *contrast_tokens; /* theirs */
  double *log_probs;        /* scratch, as many as may be chosen */
  uint32_t *order;          /* [n_texts / unit] of epoch `epoch` */
  pst_tune_rewards rewards; /* of what was chosen last */
  size_t n_references;
  int64_t epoch;
  char key[65];
  pst_tune_state state;
  double seconds_before; /* of earlier sessions */
  int64_t start_us, saved_us;
  int64_t session_tokens;
  double score_shown; /* the last measured; NAN: none yet */
  const char *architecture;
  size_t n_right; /* of a pass: scores whose target was the likeliest */
  /* Encoders: texts end in their label, one of n_labels; the head [n_labels][n_embd] to start from. 0: a decoder is trained. */
  size_t n_labels;
  const float *head;
  pst_error *err;
} trainer;

pst_tune_options pst_tune_options_default(void) {
  return (pst_tune_options){.precision = PST_TUNE_INT8,
                            .beta = 0.1,
                            .teacher_share = 0.5,
                            .rank = 16,
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
                            .score_share = 0.05,
                            .seed = 1,
                            .max_tokens = 768,
                            .checkpoint_seconds = 60};
}

pst_tune_options pst_tune_options_for(pst_tune_objective objective) {
  pst_tune_options o = pst_tune_options_default();
  o.objective = objective;
  if (objective != PST_TUNE_SFT) o.learning_rate /= 10;
  o.share_prefixes = objective == PST_TUNE_DPO;
  return o;
}

static unsigned roles_of(const pst_engine_lora *lora) {
  unsigned roles = 0;
  for (size_t i = 0; i < lora->n_targets; i++)
    for (int r = 0; r < PST_ENGINE_ROLE_COUNT; r++) {
      char ending[40];
      snprintf(ending, sizeof ending, ".%s.weight", pst_engine_role_name((pst_engine_role)r));
      size_t n = strlen(lora->targets[i].name), k = strlen(ending);
      if (n > k && !strcmp(lora->targets[i].name + n - k, ending)) roles |= 1u << r;
    }
  return roles;
}

void pst_tune_options_start(pst_tune_options *options, const pst_engine_lora *start) {
  options->start = start;
  options->rank = start->n_targets ? start->targets[0].rank : 0;
  options->alpha = start->alpha > 0 ? (double)start->alpha : options->rank;
  options->roles = roles_of(start);
}

/* ---- what is asked for ---- */

static int check_options(const pst_tune_options *o, pst_error *err) {
  const char *wrong = (unsigned)o->objective >= PST_TUNE_OBJECTIVE_COUNT   ? "objective"
                      : (unsigned)o->precision >= PST_TUNE_PRECISION_COUNT ? "precision"
                      : !(o->beta > 0)                                     ? "beta"
                      : !(o->teacher_share >= 0 && o->teacher_share <= 1)  ? "teacher_share"
                      : !(o->smoothing >= 0 && o->smoothing < 0.5)         ? "smoothing"
                      : !(o->dropout >= 0 && o->dropout < 1)               ? "dropout"
                      : !(o->adversary >= 0 && o->adversary < 1)           ? "adversary"
                      : o->rank < 1 || o->rank > 256                       ? "rank"
                      : !(o->alpha > 0)                                    ? "alpha"
                      : !(o->roles & ((1u << PST_ENGINE_ROLE_COUNT) - 1))  ? "roles"
                      : !(o->learning_rate > 0 && o->learning_rate <= 1)   ? "learning_rate"
                      : !(o->warmup_share >= 0 && o->warmup_share < 1)     ? "warmup_share"
                      : !(o->final_share >= 0 && o->final_share <= 1)      ? "final_share"
                      : !(o->beta1 >= 0 && o->beta1 < 1)                   ? "beta1"
                      : !(o->beta2 >= 0 && o->beta2 < 1)                   ? "beta2"
                      : !(o->epsilon > 0)                                  ? "epsilon"
                      : !(o->weight_decay >= 0)                            ? "weight_decay"
                      : !(o->clip >= 0)                                    ? "clip"
                      : o->batch_texts < 1 || o->batch_texts > 65536       ? "batch_texts"
                      : o->max_epochs < 1                                  ? "max_epochs"
                      : o->steps < 0                                       ? "steps"
                      : !(o->seconds >= 0)                                 ? "seconds"
                      : o->patience < 0                                    ? "patience"
                      : o->evaluations < 1                                 ? "evaluations"
                      : o->scorer.n > PST_TUNE_MAX_SCORED                  ? "scorer"
                      : !(o->score_share >= 0 && o->score_share < 1)       ? "score_share"
                      : o->max_tokens < 1                                  ? "max_tokens"
                                                                           : NULL;
  return wrong ? pst_error_set(err, PST_E_BAD_INPUT, wrong, "the value is out of range") : 0;
}

static bool is_teacher(const pst_tune_text *x, size_t n_vocab) {
  const pst_tune_teacher *t = x->teacher;
  bool good = !t || (t->k >= 1 && t->k <= PST_TUNE_TEACHER_MOST);
  for (size_t i = 0; t && good && i < (x->n - x->n_given) * (size_t)t->k; i++)
    good = t->ids[i] >= 0 && (size_t)t->ids[i] < n_vocab && t->probabilities[i] >= 0;
  return good;
}

static int check_texts(const trainer *t, const pst_tune_text *texts, size_t n, const char *what, size_t *longest) {
  size_t n_vocab = t->model.n_vocab, n_outcomes = t->n_labels ? t->n_labels : n_vocab;
  for (size_t i = 0; i < n; i++) {
    const pst_tune_text *x = &texts[i];
    char place[64];
    snprintf(place, sizeof place, "%s %zu", what, i);
    if (x->n < 2 || x->n_given < 1 || x->n_given >= x->n || !(x->weight > 0))
      return pst_error_set(t->err, PST_E_BAD_INPUT, place, "there must be a token given, one to score, and a weight");
    if (!is_teacher(x, n_vocab))
      return pst_error_set(t->err, PST_E_BAD_INPUT, place,
                           "a teacher says of 1 to %d tokens of the vocabulary how likely they are",
                           (int)PST_TUNE_TEACHER_MOST);
    if (t->n_labels && x->n_given != x->n - 1)
      return pst_error_set(t->err, PST_E_BAD_INPUT, place,
                           "a text for an encoder ends in its label, and nothing else is scored");
    if (x->n - (t->n_labels > 0) > t->model.n_ctx)
      return pst_error_set(t->err, PST_E_LIMIT, place, "%zu tokens are more than the model's context of %zu", x->n,
                           t->model.n_ctx);
    for (size_t k = 0; k < x->n; k++)
      if (x->tokens[k] < 0 || (size_t)x->tokens[k] >= (k + 1 < x->n ? n_vocab : n_outcomes))
        return pst_error_set(t->err, PST_E_BAD_INPUT, place, "token %ld is not in the vocabulary", (long)x->tokens[k]);
    *longest = PST_MAX(*longest, x->n);
  }
  return 0;
}

/* Pairs must go through the model together: *most grows to the tokens of the longest. */
static int check_pairs(const trainer *t, const pst_tune_text *texts, size_t n, const char *what, size_t *most) {
  if (t->o->objective != PST_TUNE_DPO) return 0;
  if (n % 2) return pst_error_set(t->err, PST_E_BAD_INPUT, what, "%zu texts are no pairs", n);
  for (size_t i = 0; i < n; i += 2) {
    const pst_tune_text *a = &texts[i], *b = &texts[i + 1];
    if (a->n_given != b->n_given || memcmp(a->tokens, b->tokens, a->n_given * sizeof *a->tokens) != 0)
      return pst_error_set(t->err, PST_E_BAD_INPUT, what, "the texts %zu and %zu have different prompts", i, i + 1);
    *most = PST_MAX(*most, a->n + b->n);
  }
  return 0;
}

static void hash_texts(pst_sha256 *s, const pst_tune_text *texts, size_t n) {
  for (size_t i = 0; i < n; i++) {
    pst_sha256_update(s, texts[i].tokens, texts[i].n * sizeof *texts[i].tokens);
    pst_sha256_update(s, &texts[i].n_given, sizeof texts[i].n_given);
    pst_sha256_update(s, &texts[i].weight, sizeof texts[i].weight);
    pst_sha256_update(s, &texts[i].unwanted, sizeof texts[i].unwanted);
    const pst_tune_teacher *t = texts[i].teacher;
    size_t n_thoughts = t ? (texts[i].n - texts[i].n_given) * (size_t)t->k : 0;
    if (!t) continue;
    pst_sha256_update(s, t->ids, n_thoughts * sizeof *t->ids);
    pst_sha256_update(s, t->probabilities, n_thoughts * sizeof *t->probabilities);
  }
}

/* What a checkpoint is of: texts, what of the options changes numbers, the start, and the model by a row of every layer. */
static void make_key(trainer *t) {
  const pst_tune_options *o = t->o;
  const double numbers[] = {o->rank,         o->alpha,
                            o->roles,        o->learning_rate,
                            o->warmup_share, o->final_share,
                            o->weight_decay, o->beta1,
                            o->beta2,        o->epsilon,
                            o->clip,         o->batch_texts,
                            o->max_epochs,   (double)o->steps,
                            o->seconds,      o->patience,
                            o->evaluations,  o->share_prefixes,
                            o->in_order,     o->max_tokens,
                            o->objective,    o->beta,
                            o->smoothing,    o->teacher_share,
                            o->score_share,  (double)(o->scorer.score ? o->scorer.n : 0),
                            o->precision,    (double)t->n_labels,
                            o->dropout,      o->adversary};
  uint8_t sum[32];
  pst_sha256 s;
  pst_sha256_init(&s);
  pst_sha256_update(&s, numbers, sizeof numbers);
  pst_sha256_update(&s, &o->seed, sizeof o->seed);
  pst_sha256_update(&s, t->net->params, t->lora.n * sizeof *t->net->params);
  hash_texts(&s, t->texts, t->n_texts);
  hash_texts(&s, t->held_out, t->n_held_out);
  for (size_t i = 0; i < t->model.n_layers; i++) {
    const pst_tune_linear *l = &t->model.layers[i].linear[PST_ENGINE_ROLE_DOWN];
    pst_sha256_update(&s, l->w ? (const void *)l->w : l->packed.data, l->w ? l->n_in * sizeof(float) : l->n_in);
  }
  pst_sha256_done(&s, sum);
  pst_hex(sum, sizeof sum, t->key);
}

/* ---- room ---- */

static int no_memory(const trainer *t) { return pst_error_set(t->err, PST_E_NOMEM, NULL, "no memory for training"); }

static const pst_engine_lora_target *find_target(const pst_engine_lora *lora, size_t layer, int role) {
  char name[64];
  snprintf(name, sizeof name, "blk.%zu.%s.weight", layer, pst_engine_role_name((pst_engine_role)role));
  for (size_t i = 0; i < lora->n_targets; i++)
    if (!strcmp(lora->targets[i].name, name)) return &lora->targets[i];
  return NULL;
}

/* The adapter to start from, into the net's numbers: it must have what is trained, and nothing else. */
static int take_start(trainer *t) {
  const pst_engine_lora *start = t->o->start;
  size_t n = 0;
  for (size_t i = 0; i < t->model.n_layers; i++)
    for (int r = 0; r < PST_ENGINE_ROLE_COUNT; r++) {
      const pst_tune_linear *l = &t->model.layers[i].linear[r];
      if (t->lora.layers[i].place[r] < 0) continue;
      const pst_engine_lora_target *x = find_target(start, i, r);
      if (!x || (size_t)x->n_in != l->n_in || (size_t)x->n_out != l->n_out || (size_t)x->rank != t->lora.rank ||
          fabs(pst_engine_lora_scale(start, x) - t->lora.scale) > 1e-6 * t->lora.scale)
        return pst_error_set(t->err, PST_E_BAD_INPUT, "start",
                             "the adapter to start from has no matrix of this shape, rank and scale for layer %zu's %s",
                             i, pst_engine_role_name((pst_engine_role)r));
      memcpy(t->net->params + pst_tune_lora_a(&t->model, &t->lora, i, (pst_engine_role)r), x->a,
             t->lora.rank * l->n_in * sizeof *x->a);
      memcpy(t->net->params + t->lora.layers[i].b[r], x->b, t->lora.rank * l->n_out * sizeof *x->b);
      n++;
    }
  return n == start->n_targets ? 0
                               : pst_error_set(t->err, PST_E_BAD_INPUT, "start",
                                               "the adapter to start from has %zu matrices, of which %zu are trained",
                                               start->n_targets, n);
}

/* What DPO and KTO need beside the texts. */
static int open_references(trainer *t, size_t longest, size_t n_chosen) {
  size_t n = t->n_texts + t->n_held_out;
  bool contrasts = t->o->objective == PST_TUNE_KTO;
  if (t->o->objective == PST_TUNE_SFT) return 0;
  if (contrasts) {
    pst_tune_text *all = pst_malloc(n * sizeof *all);
    if (!all) return no_memory(t);
    memcpy(all, t->texts, t->n_texts * sizeof *all);
    if (t->n_held_out) memcpy(all + t->n_texts, t->held_out, t->n_held_out * sizeof *all);
    int code = pst_tune_mismatch(all, n, longest, &t->contrast_tokens, &t->contrasts);
    pst_free(all);
    if (code) return no_memory(t);
    t->chosen.contrasts = pst_malloc(n_chosen * sizeof *t->chosen.contrasts);
    t->chosen.contrast_references = pst_malloc(n_chosen * sizeof *t->chosen.contrast_references);
    if (!t->chosen.contrasts || !t->chosen.contrast_references) return no_memory(t);
  }
  t->n_references = contrasts ? 2 * n : n;
  t->references = pst_calloc(t->n_references, sizeof *t->references);
  t->chosen.references = pst_malloc(n_chosen * sizeof *t->chosen.references);
  t->log_probs = pst_malloc(PST_MAX(n_chosen, REFERENCES_AT_ONCE * t->unit) * sizeof *t->log_probs);
  return t->references && t->chosen.references && t->log_probs ? 0 : no_memory(t);
}

int pst_tune_memory(const pst_engine_model *model, const pst_tune_options *o, int64_t *ret_bytes, pst_error *err) {
  pst_engine_decoder d;
  int code = pst_engine_decoder_get(model, &d, err);
  if (code) return code;
  const pst_engine_model_info *info = d.info;
  double embd = info->n_embd, head = (double)info->n_vocab * embd, layers = info->n_layers;
  double matrices = 0, outputs = 0, adapter = 0, largest = head;
  for (int r = 0; r < PST_ENGINE_ROLE_COUNT; r++) {
    size_t rows, cols;
    pst_engine_decoder_shape(model, (pst_engine_role)r, &rows, &cols);
    matrices += (double)rows * (double)cols;
    outputs += (double)rows;
    largest = fmax(largest, 2 * (double)rows * (double)cols); /* gate and up are one */
    if (o->roles >> r & 1) adapter += (double)(rows + cols) * o->rank;
  }
  double weights = o->precision == PST_TUNE_INT8 ? 4 * head + 2 * 34.0 / 32 * (layers * matrices + head) + 4 * largest
                                                 : 4 * (layers * matrices + (d.tied ? 1 : 2) * head);
  /* Of a token: what every layer keeps, and about three layers' worth that is made on the way. */
  double kept = outputs + 4 * embd + (double)(info->n_heads * info->head_dim) + PST_ENGINE_ROLE_COUNT * o->rank;
  *ret_bytes =
      (int64_t)(weights + 4 * (layers + 3) * kept * o->max_tokens + 5 * 4 * layers * adapter + PST_TUNE_LOGIT_BYTES);
  return 0;
}

static size_t most_tokens(const trainer *t, const pst_tune_text *texts, size_t n, size_t most) {
  for (size_t i = 0; i < n; i++) {
    bool pair = t->o->objective == PST_TUNE_DPO && i % 2;
    most = PST_MAX(most, texts[i].n + (pair ? texts[i - 1].n : 0));
  }
  return most;
}

/* A step beyond what is free would be ended by the kernel, and with it whoever asked. How long texts are is theirs to say who send them. */
static int check_memory(const trainer *t, const pst_engine_model *model) {
  if (t->n_labels) return 0; /* a decoder's is reckoned; texts for an encoder are short */
  pst_tune_options o = *t->o;
  size_t most = most_tokens(t, t->held_out, t->n_held_out, most_tokens(t, t->texts, t->n_texts, (size_t)o.max_tokens));
  int64_t bytes, available = pst_memory_available();
  o.max_tokens = (int)PST_MIN(most, (size_t)INT32_MAX);
  int code = pst_tune_memory(model, &o, &bytes, t->err);
  if (code || bytes <= available) return code;
  return pst_error_set(
      t->err, PST_E_NOMEM, NULL,
      "training takes about %.1f GB of memory with texts of up to %zu tokens, and %.1f GB are free; end "
      "what else runs, tune a smaller model, or leave out the longest texts",
      (double)bytes / 1e9, most, (double)available / 1e9);
}

static int open_net(trainer *t, const pst_engine_model *model, size_t *ret_longest) {
  const pst_tune_options *o = t->o;
  bool roles[PST_ENGINE_ROLE_COUNT];
  size_t longest = 2, most = 0;
  int threads = o->threads > 0 ? o->threads : pst_cpu_count();
  for (int r = 0; r < PST_ENGINE_ROLE_COUNT; r++) roles[r] = o->roles >> r & 1;
  int code = check_memory(t, model);
  if (!code)
    code = t->n_labels ? pst_tune_model_load_encoder(model, o->precision, t->n_labels, &t->model, t->err)
                       : pst_tune_model_load(model, o->precision, &t->model, t->err);
  if (!code) code = check_texts(t, t->texts, t->n_texts, "text", &longest);
  if (!code) code = check_texts(t, t->held_out, t->n_held_out, "held-out text", &longest);
  if (!code) code = check_pairs(t, t->texts, t->n_texts, "texts", &most);
  if (!code) code = check_pairs(t, t->held_out, t->n_held_out, "held-out texts", &most);
  if (!code) code = pst_tune_lora_init(&t->model, (size_t)o->rank, o->alpha, roles, &t->lora, t->err);
  if (!code)
    code = pst_tune_team_create(threads, pst_tune_scratch_bytes(longest, PST_MAX(t->model.n_ff, t->model.n_embd)),
                                &t->team, t->err);
  t->max_tokens = PST_MAX((size_t)o->max_tokens, PST_MAX(longest, most));
  if (!code)
    code =
        pst_tune_net_create_f32(&t->model, &t->lora, t->team, t->max_tokens, t->max_tokens, longest, &t->net, t->err);
  if (!code) t->net->teacher_share = o->objective == PST_TUNE_SFT ? o->teacher_share : 0;
  if (!code && t->n_labels) {
    t->net->smoothing = o->smoothing;
    t->net->dropout = o->dropout;
    t->net->adversary = o->adversary;
  }
  *ret_longest = longest;
  return code;
}

static int open_trainer(trainer *t, const pst_engine_model *model) {
  const pst_tune_options *o = t->o;
  size_t longest;
  int code = open_net(t, model, &longest);
  if (code) return code;
  size_t n = t->lora.n, n_chosen = PST_MAX(t->batch_units * t->unit, t->n_held_out);
  t->memory = pst_calloc(3 * n, sizeof *t->memory);
  t->order = pst_malloc(t->n_texts * sizeof *t->order);
  t->chosen.texts = pst_malloc(n_chosen * sizeof *t->chosen.texts);
  if (!t->memory || !t->order || !t->chosen.texts) return no_memory(t);
  code = open_references(t, longest, n_chosen);
  t->best = t->memory + 2 * n;
  t->adam = (pst_tune_adam){o->beta1,       o->beta2,      o->epsilon, o->weight_decay, n,
                            t->net->params, t->net->grads, t->memory,  t->memory + n};
  t->epoch = -1;
  pst_tune_lora_start(&t->model, &t->lora, o->seed, t->net->params);
  if (t->head) memcpy(t->net->params + t->lora.head, t->head, (n - t->lora.head) * sizeof *t->head);
  if (!code && o->start) code = take_start(t);
  make_key(t);
  memcpy(t->best, t->net->params, n * sizeof *t->best);
  t->state = (pst_tune_state){.best_step = -1,
                              .best_loss = INFINITY,
                              .lowest_loss = INFINITY,
                              .held_out_before = NAN,
                              .held_out_loss = NAN,
                              .margin = NAN,
                              .accuracy = NAN,
                              .best = {.step = -1},
                              .last = {.step = -1}};
  return code;
}

static void close_trainer(trainer *t) {
  pst_tune_net_free_f32(t->net);
  pst_tune_team_free(t->team);
  pst_tune_lora_done(&t->lora);
  pst_tune_model_done(&t->model);
  pst_tune_batch_done(&t->batch);
  pst_free(t->memory);
  pst_free(t->order);
  pst_free(t->chosen.texts);
  pst_free(t->chosen.references);
  pst_free(t->chosen.contrasts);
  pst_free(t->chosen.contrast_references);
  pst_free(t->references);
  pst_free(t->contrasts);
  pst_free(t->contrast_tokens);
  pst_free(t->log_probs);
}

static double seconds_spent(const trainer *t) {
  return t->seconds_before + (double)(pst_clock_us() - t->start_us) / 1e6;
}

/* ---- texts through the model ---- */

/* What a way through texts is for. */
typedef struct pass {
  const pst_tune_text *texts;
  const double *references; /* of each text: the objective weighs them; NULL: they have their weights */
  double point;             /* KTO, with references */
  double *log_probs;        /* get those of the texts; NULL: not wanted */
  double factor;            /* of the loss's derivatives, which are added to the gradient; 0: none */
  double loss;              /* sum */
} pass;

static void run_batch(trainer *t, pass *p, size_t first) {
  pst_tune_batch *b = &t->batch;
  double sum = 0;
  if (p->references) {
    pst_tune_weighing w = {
        t->o->objective, t->o->beta, t->o->smoothing, p->point, p->texts + first, p->references + first,
        t->log_probs,    0,          t->rewards};
    pst_tune_net_run_weighed_f32(t->net, b, p->factor, pst_tune_weigh, &w);
    t->rewards = w.rewards;
    sum = w.loss;
  } else {
    pst_tune_net_run_f32(t->net, b, p->factor, &sum);
    if (p->log_probs) pst_tune_log_probs(t->net->losses, b, p->log_probs + first);
  }
  p->loss += sum;
  t->n_right += t->net->n_right;
  if (p->factor != 0) {
    t->state.n_tokens += (int64_t)b->n_tokens;
    t->session_tokens += (int64_t)b->n_tokens;
  }
}

/* Texts [first, first + n) of a pass in as many batches as they need, examples whole. */
static int run_texts(trainer *t, pass *p, size_t first, size_t n) {
  const pst_tune_text *texts = p->texts + first;
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
  if (n > t->unit && PST_MAX(n_tokens, n_scores) > t->max_tokens) {
    size_t half = n / t->unit / 2 * t->unit;
    code = run_texts(t, p, first, half);
    return code ? code : run_texts(t, p, first + half, n - half);
  }
  run_batch(t, p, first);
  return 0;
}

/* Log-probabilities of texts by the starting model, a few at a time. */
static int refer(trainer *t, const pst_tune_text *texts, size_t n, double *ret_references) {
  size_t step = REFERENCES_AT_ONCE * t->unit;
  for (size_t i = 0; i < n; i += step) {
    pass p = {.texts = texts + i, .log_probs = ret_references + i};
    if (t->o->cancelled && t->o->cancelled(t->o->user))
      return pst_error_set(t->err, PST_E_CANCELLED, NULL, "training was stopped before its first step");
    int code = run_texts(t, &p, 0, PST_MIN(step, n - i));
    if (code) return code;
  }
  return 0;
}

static int find_references(trainer *t) {
  size_t n = t->n_texts + t->n_held_out;
  if (!t->references) return 0;
  int code = refer(t, t->texts, t->n_texts, t->references);
  if (!code) code = refer(t, t->held_out, t->n_held_out, t->references + t->n_texts);
  return code || !t->contrasts ? code : refer(t, t->contrasts, n, t->references + n);
}

/* ---- examples ---- */

/* Adds the example whose first text is number `first` of texts and held-out ones. */
static void choose(trainer *t, size_t first) {
  selection *c = &t->chosen;
  size_t all = t->n_texts + t->n_held_out;
  for (size_t i = first; i < first + t->unit; i++, c->n++) {
    c->texts[c->n] = i < t->n_texts ? t->texts[i] : t->held_out[i - t->n_texts];
    if (t->references) c->references[c->n] = t->references[i];
    if (!t->contrasts) continue;
    c->contrasts[c->n] = t->contrasts[i];
    c->contrast_references[c->n] = t->references[all + i];
  }
}

static double scored_weight(const pst_tune_text *texts, size_t n) {
  double sum = 0;
  for (size_t i = 0; i < n; i++) sum += (double)(texts[i].n - texts[i].n_given) * (double)texts[i].weight;
  return sum;
}

/* The model's divergence from where it started, by what the answers to other prompts have gained; a negative estimate counts as none. */
static int find_point(trainer *t, double *ret_point) {
  pass p = {.texts = t->chosen.contrasts, .log_probs = t->log_probs};
  double sum = 0;
  int code = run_texts(t, &p, 0, t->chosen.n);
  for (size_t i = 0; i < t->chosen.n && !code; i++) sum += t->log_probs[i] - t->chosen.contrast_references[i];
  if (!code) *ret_point = PST_MAX(sum / (double)t->chosen.n, 0);
  return code;
}

/* The mean loss of what is chosen, and its rewards; with `derive` the gradient grows by its derivatives. */
static int run_chosen(trainer *t, bool derive, double *ret_loss) {
  selection *c = &t->chosen;
  bool sft = t->o->objective == PST_TUNE_SFT;
  size_t n_examples = c->n / t->unit;
  int code = 0;
  if (sft && t->o->share_prefixes) pst_tune_texts_sort(c->texts, c->n);
  double weight = sft ? scored_weight(c->texts, c->n) : (double)n_examples;
  pass p = {.texts = c->texts, .references = c->references, .factor = derive ? 1 / weight : 0};
  t->rewards = (pst_tune_rewards){.n = 0};
  t->n_right = 0;
  if (t->contrasts) code = find_point(t, &p.point);
  if (!code) code = run_texts(t, &p, 0, c->n);
  if (!code) *ret_loss = p.loss / weight;
  return code;
}

static void draw_order(trainer *t, int64_t epoch) {
  pst_random r = {t->o->seed, 0x6f72646572u + (uint64_t)epoch, 0};
  size_t n = t->n_texts / t->unit;
  for (size_t i = 0; i < n; i++) t->order[i] = (uint32_t)i;
  for (size_t i = n; i > 1 && !t->o->in_order; i--) {
    size_t k = pst_random_below(&r, i);
    uint32_t swap = t->order[i - 1];
    t->order[i - 1] = t->order[k];
    t->order[k] = swap;
  }
  t->epoch = epoch;
}

/* The step's mean loss; the gradient is complete. */
static int derive_step(trainer *t, int64_t step, double *ret_loss) {
  size_t n = t->n_texts / t->unit;
  t->chosen.n = 0;
  t->net->draw = pst_random_u64(t->o->seed, 0x64726f70u, (uint64_t)step);
  for (size_t i = 0; i < t->batch_units; i++) {
    uint64_t at = (uint64_t)step * t->batch_units + i;
    int64_t epoch = (int64_t)(at / n);
    if (epoch != t->epoch) draw_order(t, epoch);
    choose(t, t->order[at % n] * t->unit);
  }
  return run_chosen(t, true, ret_loss);
}

static int held_out_loss(trainer *t, double *ret_loss) {
  int64_t begin = pst_clock_us();
  t->chosen.n = 0;
  for (size_t i = 0; i < t->n_held_out; i += t->unit) choose(t, t->n_texts + i);
  int code = run_chosen(t, false, ret_loss);
  t->state.look_seconds = (double)(pst_clock_us() - begin) / 1e6;
  return code;
}

/* ---- the held-out sample's own grade ---- */

static int put_adapter(const trainer *t, const float *params, pst_engine_lora *lora);

/* The first n of the sample, asked of the numbers as they stand. */
static int ask_sample(trainer *t, size_t n, uint64_t *ret_right) {
  pst_engine_lora lora = {0};
  int64_t begin = pst_clock_us();
  int code = put_adapter(t, t->net->params, &lora);
  if (!code) code = t->o->scorer.score(t->o->scorer.user, &lora, n, ret_right, t->err);
  pst_engine_lora_done(&lora);
  t->state.score_cost = (double)(pst_clock_us() - begin) / 1e6;
  t->state.score_seconds += t->state.score_cost;
  return code;
}

/* Whether the clock decides how many steps there are. */
static bool by_time(const trainer *t) { return t->o->steps == 0 && t->o->seconds != 0; }

static double score_allowance(const trainer *t) { return t->o->score_share * t->o->seconds; }

/* How much of the sample is asked each time: so much that a few times fit what they may take in all, by a probe; nothing where that is too little to say anything.
 * Where no time is set, so that steps decide, all of it. */
static int plan_sample(trainer *t) {
  const pst_tune_options *o = t->o;
  pst_tune_state *s = &t->state;
  uint64_t ignored;
  size_t probe = PST_MIN(o->scorer.n, (size_t)PROBE_ITEMS);
  if (!o->scorer.score || !o->scorer.n || !t->n_held_out) return 0;
  s->n_sample = (int64_t)o->scorer.n;
  if (!by_time(t)) return 0;
  int code = ask_sample(t, probe, &ignored);
  if (code) return code;
  double fit = score_allowance(t) / LEAST_SCORES / (s->score_cost / (double)probe);
  s->n_sample = fit < LEAST_SAMPLE ? 0 : PST_MIN((int64_t)fit, s->n_sample);
  s->score_cost *= (double)s->n_sample / (double)probe; /* as far as is known */
  return 0;
}

/* The end is always looked at where one look fits; before it, as many as the time gone by has earned. */
static bool may_ask(const trainer *t) {
  const pst_tune_state *s = &t->state;
  if (!s->n_sample) return false;
  if (!by_time(t)) return true;
  double share = s->step >= s->n_steps ? 1 : (double)s->step / (double)s->n_steps;
  double earned = s->step >= s->n_steps ? score_allowance(t) : share * (score_allowance(t) - s->score_cost);
  return s->score_seconds + s->score_cost <= earned;
}

static int count_bits(uint64_t bits) {
  int n = 0;
  for (; bits; bits &= bits - 1) n++;
  return n;
}

/* Which of two looks answered more of the sample right: 1 the later one, -1 the best so far; 0 where either was not asked, or where the difference is within so many standard errors of
 * the paired one (McNemar's: the square root of those that differ). Examples take two: of ten looks at the same sample the best is one by chance, and what comes later is better as a rule.
 * Preferences, which begin at an adapter that may only lose, take one. */
static int by_answers(const trainer *t, const pst_tune_evaluation *e, uint64_t right) {
  const pst_tune_state *s = &t->state;
  if (!e->n_asked || !s->best_asked) return 0;
  int wins = count_bits(right & ~s->best_right), losses = count_bits(s->best_right & ~right),
      errors = t->o->objective == PST_TUNE_SFT ? 2 : 1;
  if ((wins - losses) * (wins - losses) <= errors * errors * (wins + losses)) return 0;
  return wins > losses ? 1 : -1;
}

/* Answers first. Where they say nothing, a decoder that learns answers is better later: what it says gets right while the rate falls, though the loss of held-out texts has long risen a
 * little (docs/notes/tuning.md); a loss far above the lowest, or above the start's, is another matter. Of preferences the lower loss is better. */
static bool is_better(const trainer *t, const pst_tune_evaluation *e, uint64_t right) {
  const pst_tune_state *s = &t->state;
  int answers = by_answers(t, e, right);
  if (answers) return answers > 0;
  if (t->o->objective != PST_TUNE_SFT) return e->loss < s->best_loss;
  return e->loss < s->held_out_before && e->loss < RISE * s->lowest_loss;
}

/* Of an encoder: its loss rises with its confidence while it still tells more texts apart, and probabilities are calibrated afterwards. */
static bool tells_better(const pst_tune_state *s, const pst_tune_evaluation *e) {
  if (s->best.step < 0 || e->n_right != s->best.n_right) return s->best.step < 0 || e->n_right > s->best.n_right;
  return e->loss < s->best.loss;
}

/* ---- how long ---- */

/* Rewards of what was chosen last, for the report. */
static void note_rewards(trainer *t) {
  t->state.margin = pst_tune_rewards_margin(&t->rewards);
  t->state.accuracy = pst_tune_rewards_accuracy(&t->rewards);
}

/* That see each example as often as it may be seen. */
static int64_t most_steps(const trainer *t) {
  return (int64_t)((t->n_texts / t->unit * (uint64_t)t->o->max_epochs + t->batch_units - 1) / t->batch_units);
}

/* As many looks at the held-out part as are asked for, or as `seconds` allow; the end is always looked at. */
static int64_t looks_within(const trainer *t, double seconds) {
  double fit = t->state.look_seconds > 0 ? seconds / t->state.look_seconds : t->o->evaluations;
  return (int64_t)PST_MAX(PST_MIN(fit, t->o->evaluations), 1.0);
}

/* The number of steps: as said, or as many as the time allows by a probe of one step and of the held-out part. */
static int plan_steps(trainer *t) {
  const pst_tune_options *o = t->o;
  double loss;
  int64_t most = most_steps(t);
  int code = 0;
  if (t->n_held_out) {
    code = held_out_loss(t, &t->state.held_out_before);
    t->state.best_loss = t->state.lowest_loss = t->state.held_out_loss = t->state.held_out_before;
    t->state.best_step = 0;
    note_rewards(t);
  }
  if (!code) code = plan_sample(t);
  t->state.n_steps = o->steps ? o->steps : most;
  t->state.n_looks = o->evaluations;
  if (code || !by_time(t)) return code;
  int64_t begin = pst_clock_us();
  code = derive_step(t, 0, &loss);
  double per_step = (double)(pst_clock_us() - begin) / 1e6;
  memset(t->net->grads, 0, t->lora.n * sizeof *t->net->grads);
  t->session_tokens = t->state.n_tokens = 0;
  double left = o->seconds - seconds_spent(t);
  if (t->state.n_sample) left -= score_allowance(t) - t->state.score_seconds;
  t->state.n_looks = looks_within(t, MOST_LOOKING * left);
  left -= t->state.look_seconds * (double)t->state.n_looks;
  t->state.n_steps = (int64_t)PST_MIN(PST_MAX(left / per_step, 1), (double)most);
  return code;
}

/* Fewer steps when those so far took longer than planned; more, up to the middle of what is possible, when they took less: what was planned by one step in a busy moment would leave time over.
 * The last step planned asks once more, since a plan of fewer than REPLAN_STEPS would else stand. */
static void replan(trainer *t, double session_seconds, int64_t session_steps) {
  pst_tune_state *s = &t->state;
  if (!by_time(t)) return;
  if (session_steps % REPLAN_STEPS != 0 && s->step < s->n_steps) return;
  double last_look = s->look_seconds + (s->n_sample ? s->score_cost : 0);
  double left = t->o->seconds - seconds_spent(t) - last_look, per_step = session_seconds / (double)session_steps;
  int64_t possible = s->step + (int64_t)PST_MAX(left / per_step, 0);
  bool may_grow = !s->shortened && 2 * s->step <= possible;
  int64_t most = may_grow ? most_steps(t) : s->n_steps;
  s->n_steps = PST_MAX(PST_MIN(most, possible), s->step);
}

/* ---- the course ---- */

static pst_tune_numbers numbers_of(const trainer *t) {
  return (pst_tune_numbers){t->lora.n, t->net->params,  t->adam.mean, t->adam.square,
                            t->best,   t->n_references, t->references};
}

static int save(trainer *t) {
  if (!t->o->checkpoint) return 0;
  pst_tune_state s = t->state;
  pst_tune_numbers numbers = numbers_of(t);
  s.seconds = seconds_spent(t);
  t->saved_us = pst_clock_us();
  return pst_tune_checkpoint_write(t->o->checkpoint, t->key, &s, &numbers, t->err);
}

static int evaluate(trainer *t) {
  pst_tune_state *s = &t->state;
  uint64_t right = 0;
  int code = held_out_loss(t, &s->held_out_loss);
  s->last = (pst_tune_evaluation){.step = s->step, .loss = s->held_out_loss};
  if (!code && may_ask(t)) {
    code = ask_sample(t, (size_t)s->n_sample, &right);
    s->last.n_asked = (int32_t)s->n_sample;
    s->last.n_right = count_bits(right);
    t->score_shown = (double)s->last.n_right / (double)s->n_sample;
  }
  if (t->n_labels) { /* whoever is told apart was asked already */
    s->last.n_asked = (int32_t)t->n_held_out;
    s->last.n_right = (int32_t)t->n_right;
    t->score_shown = (double)t->n_right / (double)t->n_held_out;
  }
  if (code) return code;
  pst_log(PST_LOG_INFO, "event=tune_evaluation step=%lld loss=%.4f asked=%d right=%d", (long long)s->step,
          s->held_out_loss, s->last.n_asked, s->last.n_right);
  if (s->n_evaluations < (int64_t)PST_ARRAY_LEN(s->evaluations)) s->evaluations[s->n_evaluations++] = s->last;
  /* A loss of preferences says nothing of answers: whoever was not asked is neither better nor worse than one who was. */
  if (t->o->objective != PST_TUNE_SFT && s->best_asked && !s->last.n_asked) return 0;
  bool better = t->n_labels ? tells_better(s, &s->last) : is_better(t, &s->last, right);
  bool gains = t->o->objective == PST_TUNE_SFT && !t->n_labels ? s->held_out_loss < s->lowest_loss : better;
  if (better) {
    s->best = s->last;
    s->best_right = right;
    s->best_asked = s->last.n_asked > 0;
    s->best_loss = s->held_out_loss;
    s->best_step = s->step;
    memcpy(t->best, t->net->params, t->lora.n * sizeof *t->best);
    note_rewards(t);
  }
  s->n_worse = gains ? 0 : s->n_worse + 1;
  s->lowest_loss = fmin(s->lowest_loss, s->held_out_loss);
  return 0;
}

/* What the start answers, which preferences are not to cost: it is the first to be kept. */
static int evaluate_start(trainer *t) {
  pst_tune_state *s = &t->state;
  if (t->o->objective == PST_TUNE_SFT || !s->n_sample) return 0;
  int code = ask_sample(t, (size_t)s->n_sample, &s->best_right);
  if (code) return code;
  s->best = (pst_tune_evaluation){
      .loss = s->held_out_before, .n_asked = (int32_t)s->n_sample, .n_right = count_bits(s->best_right)};
  s->best_asked = true;
  s->evaluations[s->n_evaluations++] = s->best;
  return 0;
}

/* Where held-out losses have long not fallen, what is left of the schedule is cut to a fifth of the whole, in which the rate falls to its end all the same: an adapter as a high rate
 * had it answers worse than one that was led to the end, even of a lower loss. */
static void shorten(trainer *t) {
  pst_tune_state *s = &t->state;
  int64_t end = s->step + PST_MAX(s->step / 4, 1);
  if (t->o->patience == 0 || s->n_worse < t->o->patience || end >= s->n_steps) return;
  s->n_steps = end;
  s->shortened = true;
}

static void report_progress(const trainer *t, double loss, const pst_tune_rewards *rewards, double rate,
                            double session_seconds, int64_t session_steps) {
  const pst_tune_state *s = &t->state;
  if (!t->o->on_progress) return;
  double left = (double)(s->n_steps - s->step) * session_seconds / (double)session_steps;
  pst_tune_progress p = {.step = s->step,
                         .n_steps = s->n_steps,
                         .loss = loss,
                         .margin = pst_tune_rewards_margin(rewards),
                         .accuracy = pst_tune_rewards_accuracy(rewards),
                         .held_out_loss = s->held_out_loss,
                         .score = t->score_shown,
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
  const pst_tune_rewards rewards = t->rewards;
  if (!t->n_held_out) note_rewards(t);
  if (!isfinite(loss))
    return pst_error_set(t->err, PST_E_BAD_INPUT, "learning_rate",
                         "the loss is not finite after %lld steps: take a lower rate", (long long)s->step);
  pst_tune_adam_step(t->team, &t->adam, s->step + 1, rate, o->clip);
  for (size_t i = 0; i < t->chosen.n; i++) s->n_scored += (int64_t)(t->chosen.texts[i].n - t->chosen.texts[i].n_given);
  if (s->step >= s->n_steps - PST_MAX(s->n_steps / 10, 1)) {
    s->loss_sum += loss;
    s->n_loss++;
  }
  s->step++;
  double seconds = (double)(pst_clock_us() - began_us) / 1e6;
  replan(t, seconds, s->step - first);
  int64_t every = PST_MAX(s->n_steps / s->n_looks, 1);
  if (t->n_held_out && (s->step % every == 0 || s->step >= s->n_steps)) code = evaluate(t);
  if (!code) shorten(t);
  report_progress(t, loss, &rewards, rate, seconds, s->step - first);
  if (!code && o->checkpoint && (double)(pst_clock_us() - t->saved_us) / 1e6 >= o->checkpoint_seconds) code = save(t);
  return code;
}

static int run_steps(trainer *t) {
  int64_t began_us = pst_clock_us(), first = t->state.step;
  while (t->state.step < t->state.n_steps) {
    if (t->o->cancelled && t->o->cancelled(t->o->user)) {
      int code = save(t);
      return code ? code
                  : pst_error_set(t->err, PST_E_CANCELLED, NULL, "training was stopped after %lld of %lld steps%s",
                                  (long long)t->state.step, (long long)t->state.n_steps,
                                  t->o->checkpoint ? "; the same goes on from there when it is asked for again" : "");
    }
    int code = one_step(t, began_us, first);
    if (code) return code;
  }
  return 0;
}

/* ---- the result ---- */

static int put_adapter(const trainer *t, const float *params, pst_engine_lora *lora) {
  lora->alpha = (float)t->o->alpha;
  lora->architecture = pst_strdup(t->architecture);
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
  pst_tune_report r = {.n_steps = s->step,
                       .best_step = t->n_held_out ? s->best_step : s->step,
                       .n_tokens = s->n_tokens,
                       .n_scored = s->n_scored,
                       .loss = s->n_loss ? s->loss_sum / (double)s->n_loss : NAN,
                       .held_out_before = s->held_out_before,
                       .held_out_loss = t->n_held_out ? s->best_loss : NAN,
                       .margin = s->margin,
                       .accuracy = s->accuracy,
                       .seconds = seconds_spent(t),
                       .tokens_per_second = t->session_tokens ? (double)t->session_tokens / session_seconds
                                                              : (double)s->n_tokens / seconds_spent(t),
                       .memory_bytes = t->model.bytes + t->net->bytes + 3 * t->lora.n * sizeof(float),
                       .shortened = s->shortened,
                       .score_seconds = s->score_seconds,
                       .best = s->best,
                       .n_evaluations = (size_t)s->n_evaluations};
  memcpy(r.evaluations, s->evaluations, sizeof r.evaluations);
  return r;
}

/* head: NULL, or where an encoder's stands and comes back. */
static int train(trainer t, const pst_engine_model *model, float *head, pst_engine_lora *ret_lora,
                 pst_tune_report *ret_report) {
  const pst_tune_options *options = t.o;
  size_t n_texts = t.n_texts, n_held_out = t.n_held_out;
  pst_error *err = t.err;
  pst_engine_lora lora = {0};
  bool found = false;
  t.head = head;
  t.architecture = pst_engine_model_get_info(model)->architecture;
  t.score_shown = NAN;
  t.start_us = t.saved_us = pst_clock_us();
  int code = check_options(options, err);
  if (code) return code;
  if (n_texts == 0) return pst_error_set(err, PST_E_NO_DATA, NULL, "there is no text to train on");
  t.unit = pst_tune_unit(options->objective);
  t.batch_units = PST_MIN((size_t)options->batch_texts, PST_MAX(n_texts / t.unit, 1));
  code = open_trainer(&t, model);
  if (!code && options->checkpoint) {
    pst_tune_numbers numbers = numbers_of(&t);
    code = pst_tune_checkpoint_read(options->checkpoint, t.key, &found, &t.state, &numbers, err);
    if (found) t.seconds_before = t.state.seconds;
  }
  if (!code && !found) code = find_references(&t);
  if (!code && !found) code = plan_steps(&t);
  if (!code && !found) code = evaluate_start(&t);
  if (!code && !found && options->needs_answers && !t.state.n_sample) t.state.n_steps = 0;
  if (!code && !found && t.references) code = save(&t);
  int64_t began_us = pst_clock_us();
  if (!code) code = run_steps(&t);
  if (!code && t.session_tokens) code = save(&t); /* so that what follows may be killed, too */
  const float *best = n_held_out ? t.best : t.net ? t.net->params : NULL;
  if (!code) code = put_adapter(&t, best, &lora);
  if (!code && head) memcpy(head, best + t.lora.head, (t.lora.n - t.lora.head) * sizeof *head);
  if (!code) {
    *ret_report = report_of(&t, PST_MAX((double)(pst_clock_us() - began_us) / 1e6, 1e-6));
    *ret_lora = lora;
  } else {
    pst_engine_lora_done(&lora);
  }
  close_trainer(&t);
  return code;
}

int pst_tune_train(const pst_engine_model *model, const pst_tune_text *texts, size_t n_texts,
                   const pst_tune_text *held_out, size_t n_held_out, const pst_tune_options *options,
                   pst_engine_lora *ret_lora, pst_tune_report *ret_report, pst_error *err) {
  trainer t = {
      .o = options, .texts = texts, .held_out = held_out, .n_texts = n_texts, .n_held_out = n_held_out, .err = err};
  return train(t, model, NULL, ret_lora, ret_report);
}

int pst_tune_train_encoder(const pst_engine_model *model, const pst_tune_text *texts, size_t n_texts,
                           const pst_tune_text *held_out, size_t n_held_out, size_t n_labels,
                           const pst_tune_options *options, float *head, pst_engine_lora *ret_lora,
                           pst_tune_report *ret_report, pst_error *err) {
  trainer t = {.o = options,
               .texts = texts,
               .held_out = held_out,
               .n_texts = n_texts,
               .n_held_out = n_held_out,
               .n_labels = n_labels,
               .err = err};
  if (n_labels < 2 || options->objective != PST_TUNE_SFT || options->share_prefixes)
    return pst_error_set(err, PST_E_BAD_INPUT, "labels",
                         "an encoder learns to tell two labels or more apart, each text by itself");
  return train(t, model, head, ret_lora, ret_report);
}
