/* The plan space: one axis per field of a plan, and every combination that makes sense.
 *
 * A plan is a choice: one value per axis. The first PST_OPTIMIZER_N_LOSSY axes can change answers: their combinations are the *classes* whose quality is
 * measured. The others are exact (same tokens): they change speed only, and are shared by every class. */
#ifndef PST_OPTIMIZER_SPACE_H
#define PST_OPTIMIZER_SPACE_H

#include <penstock/optimizer.h>

enum {
  PST_OPTIMIZER_MODEL,
  PST_OPTIMIZER_WEIGHTS,
  PST_OPTIMIZER_KV,
  PST_OPTIMIZER_PROMPT,
  PST_OPTIMIZER_LAYOUT,
  PST_OPTIMIZER_EXAMPLES,
  PST_OPTIMIZER_CONSTRAINT,
  PST_OPTIMIZER_CLASSIFIER,
  PST_OPTIMIZER_N_LOSSY,
  PST_OPTIMIZER_SLOTS = PST_OPTIMIZER_N_LOSSY,
  PST_OPTIMIZER_CHUNK,
  PST_OPTIMIZER_THREADS,
  PST_OPTIMIZER_SPECULATION,
  PST_OPTIMIZER_N_AXES
};
enum { PST_OPTIMIZER_MAX_VALUES = 24 };

typedef struct pst_optimizer_axis {
  const char *name; /* as in the plan document */
  const char *values[PST_OPTIMIZER_MAX_VALUES];
  int number[PST_OPTIMIZER_MAX_VALUES]; /* of numeric axes; examples: how many */
  bool fixed[PST_OPTIMIZER_MAX_VALUES]; /* examples: the first of the index */
  int n;
} pst_optimizer_axis;

typedef struct pst_optimizer_choice {
  uint8_t v[PST_OPTIMIZER_N_AXES];
} pst_optimizer_choice;

/* A model as the planner knows it, or a model with an adapter. Remote ones have a provider and neither weights, KV nor template. */
typedef struct pst_optimizer_target {
  const char *name, *sha256; /* "base:adapter" with an adapter; of the base's file */
  const char *adapter;       /* SHA-256 of the adapter's file in the store; NULL: the model as it is */
  const char *base;          /* with an adapter: the model, as an engine names it */
  const char *
      trained_with; /* with an adapter: JSON, the fields `prompt` and `layout` of its plans; NULL: it was not said, and all are tried */
  int64_t adapter_params; /* its numbers; of the base: */
  int64_t n_params, step_bytes;
  const char *provider;  /* NULL: local */
  pst_store_price price; /* of a remote one */
  bool has_template;
  int n_ctx;
  char weights[16];    /* as shipped */
  double label_tokens; /* mean length of the workload's expected answers, end included */
  double label_steps;  /* mean number of their tokens that leave a choice among the labels; 0: not known */
} pst_optimizer_target;

enum { PST_OPTIMIZER_N_POINTS = 3, PST_OPTIMIZER_MAX_CLASSIFIERS = 4 };

/* A classifier of the workload's, as far as planning goes. All figures are of records held out from the model that scored them. */
typedef struct pst_optimizer_classifier {
  char artefact[65];
  const char *encoder, *encoder_sha256; /* the model whose vectors of the input it reads; NULL: n-grams alone */
  const char *adapter;                  /* the encoder's, by its file; NULL: none */
  double accuracy;
  double item_us; /* measured: one answer through the gateway */
  pst_classifier_point points[PST_OPTIMIZER_N_POINTS];
  int n_points;
} pst_optimizer_classifier;

/* Values of the axis PST_OPTIMIZER_CLASSIFIER: no classifier (0); nothing but list[value - 1], all other lossy fields 0; behind those, list[first] before the model,
 * which is asked where its margin is below the threshold of points[value - 1 - n]. Only the one that is right most often stands before a model: what it takes
 * is little beside what the model takes, and it leaves the model less. */
enum { PST_OPTIMIZER_NO_CLASSIFIER };
typedef struct pst_optimizer_classifiers {
  pst_optimizer_classifier list[PST_OPTIMIZER_MAX_CLASSIFIERS];
  int n, first;
} pst_optimizer_classifiers;

typedef struct pst_optimizer_space {
  pst_optimizer_axis axes[PST_OPTIMIZER_N_AXES];
  pst_optimizer_target targets[PST_OPTIMIZER_MAX_VALUES];
  pst_optimizer_choice *classes; /* exact axes 0; in order of enumeration */
  size_t n_classes;
  pst_optimizer_choice *exact; /* lossy axes 0 */
  size_t n_exact;
  int64_t n_plans;         /* classes with an engine times exact, and remote ones */
  int64_t n_refused;       /* combinations that make no sense, not counted in n_plans */
  int reference_class;     /* index; -1: the plan in force is none of these */
  char examples_index[65]; /* hash; empty: the workload has no examples */
  char answers[65];        /* hash of the file of past answers; empty: none are recorded */
  pst_optimizer_classifiers classifiers;
  const pst_evals_info *workload;
  int kv_tokens_per_slot;
  pst_arena *arena;
} pst_optimizer_space;

/* The model that an engine of a target names. */
static inline const char *pst_optimizer_engine_model(const pst_optimizer_target *t) {
  return t->adapter ? t->base : t->name;
}

/* The target whose engine answers for target m: its base for an adapter, which stands before it; m otherwise. */
int pst_optimizer_base_target(const pst_optimizer_space *s, int m);

/* Fills the axes from the workload and the targets. `max_threads` at least 1. examples_index, answers: hashes, or NULL. classifiers: NULL, or what was
 * trained; their `first` is found. */
int pst_optimizer_space_init(pst_optimizer_space *space, const pst_evals_info *workload,
                             const pst_optimizer_target *targets, size_t n_targets, int max_threads,
                             const char *examples_index, const char *answers,
                             const pst_optimizer_classifiers *classifiers, pst_error *err);
void pst_optimizer_space_done(pst_optimizer_space *space);

/* The order of the examples in the index: round robin over the labels, so that the first ones show every label. ret: indices into items; returns how many. */
size_t pst_optimizer_examples_order(const pst_evals_info *workload, size_t *ret_items);

/* "smollm2-135m shipped f16 terse chat nearest4 labels": names a class in the log. */
void pst_optimizer_class_name(const pst_optimizer_space *space, const pst_optimizer_choice *choice, pst_buf *out);
/* The same with the exact fields behind it. */
void pst_optimizer_plan_name(const pst_optimizer_space *space, const pst_optimizer_choice *choice, pst_buf *out);
/* The executable plan document (canonical order is the gateway's business). */
int pst_optimizer_plan_write(const pst_optimizer_space *space, const pst_optimizer_choice *choice, pst_buf *out);
/* The choice whose work an executable plan does, exact axes at the nearest value; false: none in the space. ret_same_answers: false where the answers' texts are not
 * mended as the space's are, so that the plan itself is outside. */
bool pst_optimizer_plan_match(const pst_optimizer_space *space, const pst_gateway_plan *plan,
                              pst_optimizer_choice *ret_choice, bool *ret_same_answers);
int pst_optimizer_class_find(const pst_optimizer_space *space, const pst_optimizer_choice *choice); /* -1: none */
/* Engine options of a choice with zeros filled in, as the engine would. */
pst_engine_options pst_optimizer_engine_options(const pst_optimizer_space *space, const pst_optimizer_choice *choice);
/* A classifier and nothing else: no generator is asked. */
static inline bool pst_optimizer_is_alone(const pst_optimizer_space *space, const pst_optimizer_choice *c) {
  int v = c->v[PST_OPTIMIZER_CLASSIFIER];
  return v != PST_OPTIMIZER_NO_CLASSIFIER && v <= space->classifiers.n;
}
/* The classifier of a choice, alone or before a model; NULL: none. */
static inline const pst_optimizer_classifier *pst_optimizer_classifier_of(const pst_optimizer_space *space,
                                                                          const pst_optimizer_choice *c) {
  const pst_optimizer_classifiers *all = &space->classifiers;
  int v = c->v[PST_OPTIMIZER_CLASSIFIER];
  if (v == PST_OPTIMIZER_NO_CLASSIFIER) return NULL;
  return &all->list[v <= all->n ? v - 1 : all->first];
}
/* Where a classifier before a model hands on to it; NULL: there is none before one. */
static inline const pst_classifier_point *pst_optimizer_point_of(const pst_optimizer_space *space,
                                                                 const pst_optimizer_choice *c) {
  const pst_optimizer_classifiers *all = &space->classifiers;
  int v = c->v[PST_OPTIMIZER_CLASSIFIER];
  return v <= all->n ? NULL : &all->list[all->first].points[v - 1 - all->n];
}
/* What a team has without Penstock's own answerers: models, prompts and examples, and nothing that was learned from the records. */
static inline bool pst_optimizer_is_prompted(const pst_optimizer_space *space, const pst_optimizer_choice *c) {
  return c->v[PST_OPTIMIZER_CLASSIFIER] == PST_OPTIMIZER_NO_CLASSIFIER &&
         !space->targets[c->v[PST_OPTIMIZER_MODEL]].adapter;
}
/* Share of requests that the model of a choice is expected to be asked: all, none, or what a classifier before it leaves. */
static inline double pst_optimizer_model_share(const pst_optimizer_space *space, const pst_optimizer_choice *c) {
  const pst_classifier_point *point = pst_optimizer_point_of(space, c);
  return point ? 1 - point->answered : c->v[PST_OPTIMIZER_CLASSIFIER] == PST_OPTIMIZER_NO_CLASSIFIER;
}
static inline bool pst_optimizer_is_remote(const pst_optimizer_space *space, const pst_optimizer_choice *c) {
  return space->targets[c->v[PST_OPTIMIZER_MODEL]].provider != NULL;
}

/* An engine of this machine serves it, so its exact fields mean something. */
static inline bool pst_optimizer_has_engine(const pst_optimizer_space *space, const pst_optimizer_choice *c) {
  return !pst_optimizer_is_alone(space, c) && !pst_optimizer_is_remote(space, c);
}

#endif
