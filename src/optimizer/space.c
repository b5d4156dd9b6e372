/* Enumerates the plan space and writes one of its points as an executable plan.
 *
 * Owns which values each field may take and which combinations make no sense. Knows nothing of speed, quality or money. Exact fields are kept apart from lossy
 * ones: the space is a product of the two, so a hundred thousand plans need the quality of only a few thousand classes, and few of those are measured. */
#include "optimizer/space.h"

#include <string.h>

/* Re-quantized weights worth a try: one wider and one narrower than what small models ship with. */
static const char *const weight_types[] = {"Q8_0", "Q4_0"};
static const int slot_values[] = {1, 2, 4, 8, 16};
static const int chunk_values[] = {64, 128, 256, 512};
static const struct {
  int k;
  bool fixed;
} example_values[] = {{0, false}, {16, true}, {1, false}, {2, false}, {4, false}, {8, false}, {16, false}};

static void add_value(pst_optimizer_axis *axis, const char *text, int number, bool fixed) {
  if (axis->n == PST_OPTIMIZER_MAX_VALUES) return;
  axis->values[axis->n] = text;
  axis->number[axis->n] = number;
  axis->fixed[axis->n++] = fixed;
}

static void add_number(pst_optimizer_space *s, int axis, int number) {
  char *text = pst_arena_printf(s->arena, "%d", number);
  if (text) add_value(&s->axes[axis], text, number, false);
}

static void name_axes(pst_optimizer_space *s) {
  static const char *const names[] = {"model",      "weights",    "kv",    "prompt", "layout",  "examples",
                                      "constraint", "classifier", "slots", "chunk",  "threads", "speculation"};
  for (int i = 0; i < PST_OPTIMIZER_N_AXES; i++) s->axes[i].name = names[i];
}

static void fill_lossy(pst_optimizer_space *s) {
  add_value(&s->axes[PST_OPTIMIZER_WEIGHTS], "shipped", 0, false);
  for (size_t i = 0; i < PST_ARRAY_LEN(weight_types); i++)
    add_value(&s->axes[PST_OPTIMIZER_WEIGHTS], weight_types[i], 0, false);
  add_value(&s->axes[PST_OPTIMIZER_KV], "f16", PST_ENGINE_KV_F16, false);
  add_value(&s->axes[PST_OPTIMIZER_KV], "q8_0", PST_ENGINE_KV_Q8_0, false);
  for (size_t i = 0; i < s->workload->n_prompts; i++) {
    pst_str name = s->workload->prompts[i].name;
    add_value(&s->axes[PST_OPTIMIZER_PROMPT], pst_arena_strndup(s->arena, name.data, name.n), (int)i, false);
  }
  for (int i = 0; i < PST_GATEWAY_LAYOUT_COUNT; i++)
    add_value(&s->axes[PST_OPTIMIZER_LAYOUT], pst_gateway_layout_name((pst_gateway_layout)i), i, false);
  size_t n_examples = 0;
  for (size_t i = 0; i < s->workload->n_items; i++)
    n_examples += s->workload->items[i].part == PST_EVALS_EXAMPLES && s->examples_index[0];
  for (size_t i = 0; i < PST_ARRAY_LEN(example_values); i++) {
    int k = example_values[i].k;
    if ((size_t)k > n_examples) continue;
    char *text = k == 0 ? "none" : pst_arena_printf(s->arena, "%s%d", example_values[i].fixed ? "fixed" : "nearest", k);
    if (text) add_value(&s->axes[PST_OPTIMIZER_EXAMPLES], text, k, example_values[i].fixed);
  }
  add_value(&s->axes[PST_OPTIMIZER_CONSTRAINT], pst_gateway_constraint_name(PST_GATEWAY_FREE), PST_GATEWAY_FREE, false);
  if (s->workload->n_labels < 2) return;
  for (int i = PST_GATEWAY_LABELS; i < PST_GATEWAY_CONSTRAINT_COUNT; i++)
    add_value(&s->axes[PST_OPTIMIZER_CONSTRAINT], pst_gateway_constraint_name((pst_gateway_constraint)i), i, false);
}

/* "alone", "first90%", "alone with ENCODER", "alone with tuned ENCODER" ... */
static int add_classifier(pst_optimizer_space *s, const char *how, const pst_optimizer_classifier *c, pst_error *err) {
  const char *text = c->encoder
                         ? pst_arena_printf(s->arena, "%s with %s%s", how, c->adapter ? "tuned " : "", c->encoder)
                         : pst_arena_strndup(s->arena, how, strlen(how));
  if (!text) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the candidates");
  add_value(&s->axes[PST_OPTIMIZER_CLASSIFIER], text, 0, false);
  return 0;
}

static int fill_classifiers(pst_optimizer_space *s, const pst_optimizer_classifiers *classifiers, pst_error *err) {
  pst_optimizer_classifiers *own = &s->classifiers;
  char how[32];
  int code = 0;
  add_value(&s->axes[PST_OPTIMIZER_CLASSIFIER], "none", PST_OPTIMIZER_NO_CLASSIFIER, false);
  if (!classifiers || !classifiers->n) return 0;
  *own = *classifiers;
  own->first = 0;
  for (int i = 0; i < own->n && !code; i++) {
    if (own->list[i].accuracy > own->list[own->first].accuracy) own->first = i;
    code = add_classifier(s, "alone", &own->list[i], err);
  }
  const pst_optimizer_classifier *first = &own->list[own->first];
  for (int i = 0; i < first->n_points && !code; i++) {
    (void)snprintf(how, sizeof how, "first%.0f%%", 100 * first->points[i].answered);
    code = add_classifier(s, how, first, err);
  }
  return code;
}

static void fill_exact(pst_optimizer_space *s, int max_threads) {
  for (size_t i = 0; i < PST_ARRAY_LEN(slot_values); i++) add_number(s, PST_OPTIMIZER_SLOTS, slot_values[i]);
  for (size_t i = 0; i < PST_ARRAY_LEN(chunk_values); i++) add_number(s, PST_OPTIMIZER_CHUNK, chunk_values[i]);
  add_number(s, PST_OPTIMIZER_THREADS, max_threads); /* value 0: all, what everything is measured with */
  for (int t = 1; t < max_threads; t *= 2) add_number(s, PST_OPTIMIZER_THREADS, t);
  add_value(&s->axes[PST_OPTIMIZER_SPECULATION], "none", PST_ENGINE_SPEC_NONE, false);
  add_value(&s->axes[PST_OPTIMIZER_SPECULATION], "lookup", PST_ENGINE_SPEC_LOOKUP, false);
  if (s->answers[0]) add_value(&s->axes[PST_OPTIMIZER_SPECULATION], "answers", PST_ENGINE_SPEC_ANSWERS, false);
}

static bool sensible(const pst_optimizer_space *s, const pst_optimizer_choice *c) {
  if (pst_optimizer_is_alone(s, c)) { /* no other field means anything */
    for (int a = 0; a < PST_OPTIMIZER_CLASSIFIER; a++)
      if (c->v[a]) return false;
    return true;
  }
  /* Other weights and KV types buy speed for the few requests that a classifier leaves, and cost a search much. */
  if (pst_optimizer_point_of(s, c) && (c->v[PST_OPTIMIZER_WEIGHTS] || c->v[PST_OPTIMIZER_KV])) return false;
  const pst_optimizer_target *t = &s->targets[c->v[PST_OPTIMIZER_MODEL]];
  int layout = s->axes[PST_OPTIMIZER_LAYOUT].number[c->v[PST_OPTIMIZER_LAYOUT]];
  int constraint = s->axes[PST_OPTIMIZER_CONSTRAINT].number[c->v[PST_OPTIMIZER_CONSTRAINT]];
  int k = s->axes[PST_OPTIMIZER_EXAMPLES].number[c->v[PST_OPTIMIZER_EXAMPLES]];
  if (t->provider) /* a provider chooses its own weights, keys and sampling masks */
    return c->v[PST_OPTIMIZER_WEIGHTS] == 0 && c->v[PST_OPTIMIZER_KV] == 0 && constraint == PST_GATEWAY_FREE &&
           layout != PST_GATEWAY_LAYOUT_PLAIN;
  /* An adapter was made beside these weights, and for one way to ask where that is known. */
  if (t->adapter && (c->v[PST_OPTIMIZER_WEIGHTS] || c->v[PST_OPTIMIZER_KV])) return false;
  if (t->trained_with && (c->v[PST_OPTIMIZER_PROMPT] || c->v[PST_OPTIMIZER_LAYOUT] || c->v[PST_OPTIMIZER_EXAMPLES]))
    return false;
  if (!t->trained_with && !t->has_template && layout != PST_GATEWAY_LAYOUT_PLAIN) return false;
  const char *weights = s->axes[PST_OPTIMIZER_WEIGHTS].values[c->v[PST_OPTIMIZER_WEIGHTS]];
  if (!strcmp(weights, t->weights)) return false; /* it ships so */
  /* The labels of fewer than two examples leave nothing to choose. */
  if (constraint == PST_GATEWAY_EXAMPLE_LABELS && k < 2) return false;
  /* The labels of fixed examples that show every label are all labels. */
  if (constraint == PST_GATEWAY_EXAMPLE_LABELS && s->axes[PST_OPTIMIZER_EXAMPLES].fixed[c->v[PST_OPTIMIZER_EXAMPLES]] &&
      (size_t)k >= s->workload->n_labels)
    return false;
  return true;
}

/* Steps an odometer over axes [first, end); false after the last. */
static bool next_choice(const pst_optimizer_space *s, pst_optimizer_choice *c, int first, int end) {
  for (int a = end - 1; a >= first; a--) {
    if (++c->v[a] < s->axes[a].n) return true;
    c->v[a] = 0;
  }
  return false;
}

static int enumerate(pst_optimizer_space *s, pst_error *err) {
  size_t capacity = 0, n = 1;
  int64_t n_without_engine = 0;
  pst_optimizer_choice c = {{0}};
  do {
    if (!sensible(s, &c)) {
      s->n_refused++;
      continue;
    }
    if (pst_array_reserve((void **)&s->classes, &capacity, s->n_classes + 1, sizeof c))
      return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for %zu candidates", s->n_classes);
    s->classes[s->n_classes++] = c;
    n_without_engine += !pst_optimizer_has_engine(s, &c);
  } while (next_choice(s, &c, 0, PST_OPTIMIZER_N_LOSSY));
  for (int a = PST_OPTIMIZER_N_LOSSY; a < PST_OPTIMIZER_N_AXES; a++) n *= (size_t)s->axes[a].n;
  s->exact = pst_calloc(n, sizeof *s->exact);
  if (!s->exact) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the candidates");
  memset(&c, 0, sizeof c);
  do {
    s->exact[s->n_exact++] = c;
  } while (next_choice(s, &c, PST_OPTIMIZER_N_LOSSY, PST_OPTIMIZER_N_AXES));
  s->n_plans = ((int64_t)s->n_classes - n_without_engine) * (int64_t)s->n_exact + n_without_engine;
  return 0;
}

int pst_optimizer_space_init(pst_optimizer_space *s, const pst_evals_info *workload,
                             const pst_optimizer_target *targets, size_t n_targets, int max_threads,
                             const char *examples_index, const char *answers,
                             const pst_optimizer_classifiers *classifiers, pst_error *err) {
  memset(s, 0, sizeof *s);
  s->workload = workload;
  s->arena = pst_arena_create();
  if (!s->arena) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the candidates");
  if (n_targets == 0 || n_targets > PST_OPTIMIZER_MAX_VALUES)
    return n_targets
               ? pst_error_set(err, PST_E_LIMIT, NULL,
                               "more than %d models to choose from: name those to consider with --model",
                               PST_OPTIMIZER_MAX_VALUES)
               : pst_error_set(err, PST_E_NOT_FOUND, NULL,
                               "there is no model to plan with: 'penstock pull NAME' takes one in, or name a file "
                               "with --model");
  snprintf(s->examples_index, sizeof s->examples_index, "%s", examples_index ? examples_index : "");
  snprintf(s->answers, sizeof s->answers, "%s", answers ? answers : "");
  name_axes(s);
  for (size_t i = 0; i < n_targets; i++) {
    s->targets[i] = targets[i];
    add_value(&s->axes[PST_OPTIMIZER_MODEL], targets[i].name, (int)i, false);
  }
  fill_lossy(s);
  fill_exact(s, PST_MAX(max_threads, 1));
  int code = fill_classifiers(s, classifiers, err);
  return code ? code : enumerate(s, err);
}

void pst_optimizer_space_done(pst_optimizer_space *s) {
  pst_free(s->classes);
  pst_free(s->exact);
  pst_arena_free(s->arena);
  memset(s, 0, sizeof *s);
}

size_t pst_optimizer_examples_order(const pst_evals_info *w, size_t *ret_items) {
  size_t *rank = pst_calloc(PST_MAX(w->n_items, 1), sizeof *rank), n = 0, n_rounds = 0;
  if (!rank) return 0;
  for (size_t i = 0; i < w->n_items;
       i++) { /* how many of its label stand before it: one more than the last one's rank */
    if (w->items[i].part != PST_EVALS_EXAMPLES) continue;
    for (size_t j = i; j-- > 0 && !rank[i];)
      if (w->items[j].part == PST_EVALS_EXAMPLES && pst_str_equal(w->items[j].expected, w->items[i].expected))
        rank[i] = rank[j] + 1;
    n_rounds = PST_MAX(n_rounds, rank[i] + 1);
  }
  for (size_t round = 0; round < n_rounds; round++)
    for (size_t i = 0; i < w->n_items; i++)
      if (w->items[i].part == PST_EVALS_EXAMPLES && rank[i] == round) ret_items[n++] = i;
  pst_free(rank);
  return n;
}

void pst_optimizer_class_name(const pst_optimizer_space *s, const pst_optimizer_choice *c, pst_buf *out) {
  int classifier = c->v[PST_OPTIMIZER_CLASSIFIER];
  if (classifier) pst_buf_printf(out, "classifier %s", s->axes[PST_OPTIMIZER_CLASSIFIER].values[classifier]);
  if (pst_optimizer_is_alone(s, c)) return;
  if (classifier) pst_buf_puts(out, " then ");
  for (int a = 0; a < PST_OPTIMIZER_CLASSIFIER; a++) pst_buf_printf(out, a ? " %s" : "%s", s->axes[a].values[c->v[a]]);
}

void pst_optimizer_plan_name(const pst_optimizer_space *s, const pst_optimizer_choice *c, pst_buf *out) {
  pst_optimizer_class_name(s, c, out);
  for (int a = PST_OPTIMIZER_N_LOSSY; a < PST_OPTIMIZER_N_AXES && pst_optimizer_has_engine(s, c); a++)
    pst_buf_printf(out, " %s=%s", s->axes[a].name, s->axes[a].values[c->v[a]]);
}

int pst_optimizer_base_target(const pst_optimizer_space *s, int m) {
  const pst_optimizer_target *t = s->targets;
  for (int b = 0; b < m && t[m].adapter; b++)
    if (!t[b].adapter && !strcmp(t[b].name, t[m].base)) return b;
  return m;
}

int pst_optimizer_class_find(const pst_optimizer_space *s, const pst_optimizer_choice *c) {
  for (size_t i = 0; i < s->n_classes; i++)
    if (!memcmp(s->classes[i].v, c->v, PST_OPTIMIZER_N_LOSSY)) return (int)i;
  return -1;
}

pst_engine_options pst_optimizer_engine_options(const pst_optimizer_space *s, const pst_optimizer_choice *c) {
  const pst_optimizer_axis *x = s->axes;
  pst_engine_options o = pst_engine_options_default();
  o.kv = (pst_engine_kv)x[PST_OPTIMIZER_KV].number[c->v[PST_OPTIMIZER_KV]];
  o.slots = x[PST_OPTIMIZER_SLOTS].number[c->v[PST_OPTIMIZER_SLOTS]];
  o.chunk = x[PST_OPTIMIZER_CHUNK].number[c->v[PST_OPTIMIZER_CHUNK]];
  o.threads = x[PST_OPTIMIZER_THREADS].number[c->v[PST_OPTIMIZER_THREADS]];
  int n_ctx = s->targets[c->v[PST_OPTIMIZER_MODEL]].n_ctx;
  o.n_ctx = n_ctx > 0 ? PST_MIN(n_ctx, 8192) : 8192;
  o.kv_tokens = PST_MAX(o.slots * 1024, o.n_ctx);
  return o;
}
