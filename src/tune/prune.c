/* Which layers a workload misses least, and the file without them (tune_prune.h).
 *
 * Owns the order in which layers go. Every look is a run of the float model without one more layer over the same texts, compared with the whole model's. After the first round
 * only those that were missed least are looked at again: what hardly counts with all others there seldom counts more than the rest without some. */
#include <penstock/tune_prune.h>

#include <math.h>

#include "tune/divergence.h"
#include "tune/whole.h"

/* Candidates beyond twice the layers that are to go. */
enum { MORE_CANDIDATES = 4 };

typedef struct pruning {
  const pst_tune_prune_options *o;
  pst_tune_whole whole;
  pst_tune_model trial; /* the whole's with a layer table of its own */
  pst_tune_judge judge;
  bool *gone;   /* [n_layers] */
  double *loss; /* [n_layers]: without this one alone */
  int n_gone;
  int64_t n_done;
} pruning;

pst_tune_prune_options pst_tune_prune_options_default(void) {
  return (pst_tune_prune_options){.max_tokens = 512, .search_tokens = 512};
}

/* The divergence without the layers that are gone, and `layer` (-1: no other). */
static pst_tune_divergence look(pruning *p, int layer, pst_tune_judge *judge) {
  const pst_tune_model *m = &p->whole.model;
  size_t n = 0;
  for (size_t i = 0; i < m->n_layers; i++)
    if (!p->gone[i] && (int)i != layer) p->trial.layers[n++] = m->layers[i];
  p->trial.n_layers = n;
  return pst_tune_judge_run(judge, &p->trial);
}

static size_t n_candidates(const pruning *p) {
  return PST_MIN(p->whole.model.n_layers, 2 * (size_t)p->o->n_layers + MORE_CANDIDATES);
}

/* In the first round all are; then those that few others were missed less than. */
static bool is_candidate(const pruning *p, size_t layer) {
  size_t n_less = 0;
  for (size_t i = 0; i < p->whole.model.n_layers && p->n_gone; i++) n_less += p->loss[i] < p->loss[layer];
  return !p->gone[layer] && n_less < n_candidates(p);
}

static int tell(pruning *p, pst_error *err) {
  p->n_done++;
  if (p->o->progress) {
    pst_progress_note(p->o->progress, "%d of %d layers left out", p->n_gone, p->o->n_layers);
    pst_progress_update(p->o->progress, p->n_done);
  }
  if (p->o->cancelled && p->o->cancelled(p->o->user)) return pst_error_set(err, PST_E_CANCELLED, NULL, "cancelled");
  return 0;
}

/* One more layer goes: the one whose going leaves the least divergence. */
static int drop_one(pruning *p, pst_error *err) {
  int best = -1, code = 0;
  double least = INFINITY;
  for (int i = 0; i < (int)p->whole.model.n_layers && !code; i++) {
    if (!is_candidate(p, (size_t)i)) continue;
    double loss = look(p, i, &p->judge).answers;
    if (!isfinite(loss)) loss = 1e300;
    if (p->n_gone == 0) p->loss[i] = loss;
    if (loss < least) {
      least = loss;
      best = i;
    }
    code = tell(p, err);
  }
  if (code) return code;
  p->gone[best] = true;
  p->n_gone++;
  return 0;
}

static int check(const pruning *p, const char *path, pst_error *err) {
  const pst_tune_model *m = &p->whole.model;
  if (p->o->n_layers < 1 || p->o->n_layers > PST_TUNE_PRUNE_MOST || (size_t)p->o->n_layers >= m->n_layers)
    return pst_error_set(err, PST_E_BAD_INPUT, "layers", "of %zu layers at least one goes and at least one stays",
                         m->n_layers);
  for (size_t i = 1; i < m->n_layers; i++)
    if (m->layers[i].window != m->layers[0].window || m->layers[i].turn != m->layers[0].turn)
      return pst_error_set(
          err, PST_E_UNSUPPORTED, path,
          "its layers are of several kinds that take turns (windows, positions): none can be left out");
  return 0;
}

static int open_all(pruning *p, const char *in_path, const pst_tune_traffic *search, pst_error *err) {
  const pst_tune_prune_options *o = p->o;
  if (o->max_tokens < 2 || !o->search_tokens)
    return pst_error_set(err, PST_E_BAD_INPUT, "max_tokens", "the model reads at least 2 tokens at once");
  int code = pst_tune_whole_open(in_path, NULL, o->threads, o->max_tokens, &p->whole, err);
  if (!code) code = check(p, in_path, err);
  if (code) return code;
  size_t n = p->whole.model.n_layers;
  p->trial = p->whole.model;
  p->trial.layers = pst_calloc(n, sizeof *p->trial.layers);
  p->gone = pst_calloc(n, sizeof *p->gone);
  p->loss = pst_calloc(n, sizeof *p->loss);
  if (!p->trial.layers || !p->gone || !p->loss) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for layers");
  if (o->progress) {
    o->progress->total = (int64_t)n;
    for (size_t k = 1; k < (size_t)o->n_layers; k++) o->progress->total += (int64_t)(n_candidates(p) - k);
  }
  return pst_tune_judge_create(p->whole.net, &p->whole.model, search, o->search_tokens, true, &p->judge, err);
}

static int prune(pruning *p, const char *in_path, const char *out_path, const pst_tune_traffic *held_out,
                 pst_tune_prune_report *r, pst_error *err) {
  pst_tune_judge proof = {0};
  int64_t elements;
  int n = 0, code = 0;
  while (!code && p->n_gone < p->o->n_layers) code = drop_one(p, err);
  if (!code) code = pst_tune_judge_create(p->whole.net, &p->whole.model, held_out, 0, false, &proof, err);
  if (!code) r->held_out = look(p, -1, &proof);
  pst_tune_judge_done(&proof);
  r->n_layers = (int)p->whole.model.n_layers;
  for (int i = 0; i < r->n_layers && !code; i++)
    if (p->gone[i]) r->dropped[n++] = i;
  if (!code) code = pst_engine_drop_layers(in_path, out_path, r->dropped, (size_t)n, p->o->note, err);
  if (!code) code = pst_engine_replace_measure(in_path, NULL, 0, &r->source_bytes, &elements, err);
  if (!code) code = pst_engine_replace_measure(out_path, NULL, 0, &r->bytes, &elements, err);
  return code;
}

int pst_tune_prune(const char *in_path, const char *out_path, const pst_tune_traffic *search,
                   const pst_tune_traffic *held_out, const pst_tune_prune_options *options,
                   pst_tune_prune_report *ret_report, pst_error *err) {
  pruning p = {.o = options};
  pst_tune_prune_report r = {0};
  int64_t start = pst_clock_us();
  int code = open_all(&p, in_path, search, err);
  if (!code) code = prune(&p, in_path, out_path, held_out, &r, err);
  pst_tune_judge_done(&p.judge);
  pst_free(p.trial.layers);
  pst_free(p.gone);
  pst_free(p.loss);
  pst_tune_whole_done(&p.whole);
  if (code) return code;
  r.seconds = (double)(pst_clock_us() - start) / 1e6;
  *ret_report = r;
  return 0;
}
