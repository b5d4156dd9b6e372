/* A point of the space as an executable plan document, and back. Owns nothing else: what a document may say is the gateway's schema. */
#include <string.h>

#include "optimizer/space.h"

static void put_engine(pst_json_writer *w, const pst_optimizer_space *s, const pst_optimizer_choice *c) {
  const pst_optimizer_axis *x = s->axes;
  const pst_optimizer_target *t = &s->targets[c->v[PST_OPTIMIZER_MODEL]];
  pst_json_begin_object(w);
  pst_json_member_str(w, "model", pst_str_from(pst_optimizer_engine_model(t)));
  if (t->sha256) pst_json_member_str(w, "sha256", pst_str_from(t->sha256));
  const int texts[] = {PST_OPTIMIZER_WEIGHTS, PST_OPTIMIZER_KV};
  for (size_t i = 0; i < PST_ARRAY_LEN(texts); i++)
    pst_json_member_str(w, x[texts[i]].name, pst_str_from(x[texts[i]].values[c->v[texts[i]]]));
  const int numbers[] = {PST_OPTIMIZER_SLOTS, PST_OPTIMIZER_CHUNK, PST_OPTIMIZER_THREADS};
  for (size_t i = 0; i < PST_ARRAY_LEN(numbers); i++) {
    pst_json_member_int(w, x[numbers[i]].name, x[numbers[i]].number[c->v[numbers[i]]]);
  }
  pst_json_end_object(w);
}

static void put_prompt(pst_json_writer *w, const pst_evals_prompt *p) {
  pst_json_key(w, "prompt");
  pst_json_begin_object(w);
  pst_json_member_str(w, "name", p->name);
  if (p->system.n) pst_json_member_str(w, "system", p->system);
  if (p->instruction.n) pst_json_member_str(w, "instruction", p->instruction);
  if (p->input_key.n) pst_json_member_str(w, "input_key", p->input_key);
  if (p->answer_key.n) pst_json_member_str(w, "answer_key", p->answer_key);
  pst_json_end_object(w);
}

/* The prompt and layout that an adapter was trained with. */
static void put_trained_with(pst_json_writer *w, const pst_optimizer_target *t) {
  static const char *const fields[] = {"prompt", "layout"};
  pst_json_doc *doc = NULL;
  if (pst_json_parse(t->trained_with, strlen(t->trained_with), NULL, &doc, NULL)) return; /* its reader has parsed it */
  for (size_t i = 0; i < PST_ARRAY_LEN(fields); i++) {
    const pst_json *v = pst_json_get(pst_json_root(doc), fields[i]);
    if (!v) continue;
    pst_json_key(w, fields[i]);
    pst_json_put_value(w, v);
  }
  pst_json_free(doc);
}

/* Behind "e1" in the order of names: the model's engine stays the plan's first. */
#define ENCODER "encoder"

static void put_encoder(pst_json_writer *w, const pst_optimizer_classifier *c) {
  pst_json_key(w, ENCODER);
  pst_json_begin_object(w);
  pst_json_member_cstr(w, "model", c->encoder);
  pst_json_member_cstr(w, "sha256", c->encoder_sha256);
  pst_json_end_object(w);
}

static void put_classifier(pst_json_writer *w, const pst_optimizer_classifier *c) {
  pst_json_begin_object(w);
  pst_json_member_str(w, "op", PST_STR("classifier"));
  pst_json_member_str(w, "artefact", pst_str_from(c->artefact));
  if (c->encoder) pst_json_member_cstr(w, "engine", ENCODER);
  if (c->adapter) pst_json_member_cstr(w, "adapter", c->adapter);
  pst_json_end_object(w);
}

static void put_model(pst_json_writer *w, const pst_optimizer_space *s, const pst_optimizer_choice *c) {
  const pst_optimizer_axis *x = s->axes;
  const pst_optimizer_target *t = &s->targets[c->v[PST_OPTIMIZER_MODEL]];
  pst_json_begin_object(w);
  pst_json_member_str(w, "op", t->provider ? PST_STR("remote") : PST_STR("local"));
  if (t->provider) {
    pst_json_member_str(w, "provider", pst_str_from(t->provider));
    pst_json_member_str(w, "model", pst_str_from(t->name + strlen(t->provider) + 1));
  } else {
    pst_json_member_str(w, "engine", PST_STR("e1"));
  }
  if (t->adapter) pst_json_member_str(w, "adapter", pst_str_from(t->adapter));
  if (t->trained_with) {
    put_trained_with(w, t);
  } else {
    put_prompt(w, &s->workload->prompts[c->v[PST_OPTIMIZER_PROMPT]]);
    pst_json_member_str(w, "layout", pst_str_from(x[PST_OPTIMIZER_LAYOUT].values[c->v[PST_OPTIMIZER_LAYOUT]]));
  }
  int e = c->v[PST_OPTIMIZER_EXAMPLES];
  if (x[PST_OPTIMIZER_EXAMPLES].number[e] > 0) {
    pst_json_key(w, "examples");
    pst_json_begin_object(w);
    pst_json_member_str(w, "index", pst_str_from(s->examples_index));
    pst_json_member_int(w, "k", x[PST_OPTIMIZER_EXAMPLES].number[e]);
    if (x[PST_OPTIMIZER_EXAMPLES].fixed[e]) {
      pst_json_member_bool(w, "fixed", true);
    }
    pst_json_end_object(w);
  }
  pst_json_member_str(w, "constraint",
                      pst_str_from(x[PST_OPTIMIZER_CONSTRAINT].values[c->v[PST_OPTIMIZER_CONSTRAINT]]));
  if (!t->provider) {
    int speculation = c->v[PST_OPTIMIZER_SPECULATION];
    pst_json_member_str(w, "speculation", pst_str_from(x[PST_OPTIMIZER_SPECULATION].values[speculation]));
    if (x[PST_OPTIMIZER_SPECULATION].number[speculation] == PST_ENGINE_SPEC_ANSWERS)
      pst_json_member_str(w, "answers", pst_str_from(s->answers));
  }
  pst_json_key(w, "sampling");
  pst_json_begin_object(w);
  pst_json_member_int(w, "temperature", 0);
  pst_json_end_object(w);
  pst_json_member_int(w, "max_tokens", s->workload->max_tokens);
  pst_json_end_object(w);
}

static void put_node(pst_json_writer *w, const pst_optimizer_space *s, const pst_optimizer_choice *c) {
  const pst_optimizer_classifier *classifier = pst_optimizer_classifier_of(s, c);
  if (!classifier) {
    put_model(w, s, c);
  } else if (pst_optimizer_is_alone(s, c)) {
    put_classifier(w, classifier);
  } else {
    pst_json_begin_object(w);
    pst_json_member_str(w, "op", PST_STR("cascade"));
    pst_json_member_str(w, "signal", PST_STR("margin"));
    pst_json_member_double(w, "threshold", pst_optimizer_point_of(s, c)->threshold);
    pst_json_key(w, "inputs");
    pst_json_begin_array(w);
    put_classifier(w, classifier);
    put_model(w, s, c);
    pst_json_end_array(w);
    pst_json_end_object(w);
  }
}

int pst_optimizer_plan_write(const pst_optimizer_space *s, const pst_optimizer_choice *c, pst_buf *out) {
  pst_json_writer w = pst_json_writer_on(out, false);
  const pst_evals_info *info = s->workload;
  pst_json_begin_object(&w);
  pst_evals_plan_begin(info, &w);
  if (info->n_copied) pst_json_member_strs(&w, "copied", info->copied, info->n_copied);
  pst_json_key(&w, "engines");
  pst_json_begin_object(&w);
  if (pst_optimizer_has_engine(s, c)) {
    pst_json_key(&w, "e1");
    put_engine(&w, s, c);
  }
  const pst_optimizer_classifier *classifier = pst_optimizer_classifier_of(s, c);
  if (classifier && classifier->encoder) put_encoder(&w, classifier);
  pst_json_end_object(&w);
  pst_json_key(&w, "root");
  put_node(&w, s, c);
  pst_json_end_object(&w);
  return pst_buf_status(out);
}

/* ---- back ---- */

static int find_value(const pst_optimizer_axis *axis, const char *text) {
  for (int i = 0; i < axis->n; i++)
    if (text && !strcmp(axis->values[i], text)) return i;
  return -1;
}

static int find_number(const pst_optimizer_axis *axis, int number) {
  for (int i = 0; i < axis->n; i++)
    if (axis->number[i] == number) return i;
  return -1;
}

static bool same_text(pst_str a, const char *b) { return pst_str_equal(a, pst_str_from(b)); }

static int find_prompt(const pst_evals_info *info, const pst_gateway_node *n) {
  for (size_t i = 0; i < info->n_prompts; i++) {
    const pst_evals_prompt *p = &info->prompts[i];
    if (same_text(p->name, n->prompt_name) && same_text(p->system, n->system) &&
        same_text(p->instruction, n->instruction) && same_text(p->input_key, n->input_key) &&
        same_text(p->answer_key, n->answer_key))
      return (int)i;
  }
  return -1;
}

static bool same_adapter(const char *a, const char *b) { return a && b ? !strcmp(a, b) : a == b; }

static int find_target(const pst_optimizer_space *s, const char *model, const char *adapter) {
  for (int i = 0; i < s->axes[PST_OPTIMIZER_MODEL].n; i++) {
    const pst_optimizer_target *t = &s->targets[i];
    if (!t->provider && !strcmp(pst_optimizer_engine_model(t), model) && same_adapter(t->adapter, adapter)) return i;
  }
  return -1;
}

static int find_examples(const pst_optimizer_space *s, const pst_gateway_node *n) {
  const pst_optimizer_axis *axis = &s->axes[PST_OPTIMIZER_EXAMPLES];
  int k = n->examples_index ? n->n_examples : 0;
  if (k > 0 && strcmp(n->examples_index, s->examples_index) != 0) return -1;
  for (int i = 0; i < axis->n; i++)
    if (axis->number[i] == k && axis->fixed[i] == (k > 0 && n->examples_fixed)) return i;
  return -1;
}

/* The value of the classifier's axis, and the model's node (NULL: none); -1: outside the space. */
static int find_classifier(const pst_optimizer_space *s, const pst_gateway_node *root, const pst_gateway_node **ret) {
  const pst_optimizer_classifiers *all = &s->classifiers;
  bool cascade = root->op == PST_GATEWAY_OP_CASCADE;
  const pst_gateway_node *first = cascade ? &root->inputs[0] : root;
  *ret = first->op != PST_GATEWAY_OP_CLASSIFIER ? root : cascade ? &root->inputs[1] : NULL;
  if (first->op != PST_GATEWAY_OP_CLASSIFIER) return PST_OPTIMIZER_NO_CLASSIFIER;
  int own = 0;
  while (own < all->n && strcmp(first->classifier, all->list[own].artefact) != 0) own++;
  if (own == all->n) return -1;
  if (!cascade) return 1 + own;
  for (int i = 0; i < all->list[own].n_points && own == all->first && root->n_inputs == 2; i++)
    if (all->list[own].points[i].threshold == root->threshold) return 1 + all->n + i;
  return -1;
}

static bool same_copied(const pst_evals_info *info, const pst_gateway_plan *plan) {
  size_t n = 0;
  while (n < info->n_copied && n < (size_t)plan->n_copied && pst_str_equal(info->copied[n], plan->copied[n])) n++;
  return n == info->n_copied && n == (size_t)plan->n_copied;
}

bool pst_optimizer_plan_match(const pst_optimizer_space *s, const pst_gateway_plan *plan, pst_optimizer_choice *ret,
                              bool *ret_same_answers) {
  const pst_gateway_node *n;
  *ret_same_answers = same_copied(s->workload, plan);
  int classifier = find_classifier(s, &plan->root, &n);
  if (classifier > 0 && !n) {
    memset(ret, 0, sizeof *ret);
    ret->v[PST_OPTIMIZER_CLASSIFIER] = (uint8_t)classifier;
    return true;
  }
  if (classifier < 0 || n->op != PST_GATEWAY_OP_LOCAL || n->engine < 0 || n->engine >= plan->n_engines ||
      n->sampling.temperature > 0)
    return false;
  if (n->answers && strcmp(n->answers, s->answers) != 0) return false;
  const pst_gateway_engine_spec *e = &plan->engines[n->engine];
  int target = find_target(s, e->model, n->adapter);
  bool fixed = target >= 0 && s->targets[target].trained_with; /* one way to ask, the first value of each field */
  const int values[PST_OPTIMIZER_N_AXES] = {
      target,
      find_value(&s->axes[PST_OPTIMIZER_WEIGHTS], e->weights ? e->weights : "shipped"),
      find_number(&s->axes[PST_OPTIMIZER_KV], (int)e->options.kv),
      fixed ? 0 : find_prompt(s->workload, n),
      fixed ? 0 : find_number(&s->axes[PST_OPTIMIZER_LAYOUT], (int)n->layout),
      find_examples(s, n),
      find_number(&s->axes[PST_OPTIMIZER_CONSTRAINT], (int)n->constraint),
      classifier,
      find_number(&s->axes[PST_OPTIMIZER_SLOTS], e->options.slots),
      find_number(&s->axes[PST_OPTIMIZER_CHUNK], e->options.chunk),
      find_number(&s->axes[PST_OPTIMIZER_THREADS], e->options.threads),
      find_number(&s->axes[PST_OPTIMIZER_SPECULATION], (int)n->speculation)};
  for (int a = 0; a < PST_OPTIMIZER_N_AXES; a++) {
    if (values[a] < 0) return false;
    ret->v[a] = (uint8_t)values[a];
  }
  return pst_optimizer_class_find(s, ret) >= 0;
}
