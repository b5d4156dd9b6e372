/* The cost rule.
 *
 * What a step of n rows costs depends on the machine, the model and on who else is using the cores, and changes while it runs. Only ratios between
 * numbers of rows decide. So the curve is a shape, which moves slowly, times a level, which follows the machine's mood quickly: a busy minute raises all alike. A sample
 * that is far off moves either by a bounded amount, as a median would. A number of rows that was not seen for long drifts towards its neighbours'
 * costs, so that one bad sample does not shut it out for ever: it is tried again now and then.
 *
 * The choice is greedy: all sequences' guesses in descending order of the chance that they are reached and right. Since that order only takes prefixes of
 * each draft, the best set of k guesses is the first k of it, and every k is looked at. */
#include "engine/speculation.h"

#include <math.h>

/* How fast level and shape follow a sample; the furthest a sample counts for, as a logarithm; steps after which a number of rows counts as unseen, and how
 * much it then forgets at each; what a row beyond all that were seen is thought to add; what drafting must promise. */
static const double level_rate = 0.1, shape_rate = 0.03, farthest = 0.4, untried_row = 0.02, least_gain = 1.02;
enum { STALE_STEPS = 512 };

static double interpolate(const pst_engine_step_curve *c, int rows, bool itself) {
  int low = rows, high = rows;
  if (itself && rows <= PST_ENGINE_CURVE_ROWS && c->n_seen[rows]) return (double)c->shape[rows];
  do low--;
  while (low > 0 && (low > PST_ENGINE_CURVE_ROWS || !c->n_seen[low]));
  do high++;
  while (high <= PST_ENGINE_CURVE_ROWS && !c->n_seen[high]);
  bool above = high <= PST_ENGINE_CURVE_ROWS;
  if (low == 0) return above ? (double)c->shape[high] : 0;
  double from = exp((double)c->shape[low]), step = untried_row * from;
  if (above) step = (exp((double)c->shape[high]) - from) / (high - low);
  return log(fmax(from + step * (rows - low), 0.5 * from));
}

double pst_engine_curve_time(const pst_engine_step_curve *c, int rows) { return exp(interpolate(c, rows, true)); }

double pst_engine_curve_us(const pst_engine_step_curve *c, int rows) {
  return pst_engine_curve_time(c, rows) * exp(c->level);
}

/* Old knowledge of a number of rows is mixed with what its neighbours say. */
static void forget(pst_engine_step_curve *c) {
  for (int rows = 2; rows <= PST_ENGINE_CURVE_ROWS; rows++) {
    if (!c->n_seen[rows] || c->n_steps - c->seen_at[rows] < STALE_STEPS) continue;
    double guess = fmin(interpolate(c, rows, false), (double)c->shape[rows]);
    c->shape[rows] = (float)(0.75 * (double)c->shape[rows] + 0.25 * guess);
  }
}

void pst_engine_curve_note(pst_engine_step_curve *c, int rows, double us) {
  if (rows < 1 || rows > PST_ENGINE_CURVE_ROWS || !(us > 0)) return;
  double sample = log(us);
  if (c->n_steps == 0) c->level = sample;
  if (++c->n_steps % (STALE_STEPS / 4) == 0) forget(c);
  c->seen_at[rows] = c->n_steps;
  if (c->n_seen[rows] == 0) {
    c->shape[rows] = (float)(sample - c->level);
    c->n_seen[rows] = 1;
    return;
  }
  double off = fmax(fmin(sample - c->level - (double)c->shape[rows], farthest), -farthest);
  c->level += level_rate * off;
  c->shape[rows] += (float)(fmax(shape_rate, 1.0 / (c->n_seen[rows] + 1)) * off);
  if (c->n_seen[rows] < UINT16_MAX) c->n_seen[rows]++;
}

int pst_engine_speculation_depth(const pst_engine_step_curve *c, int rows, int n, double chance, double round_us,
                                 int most) {
  if (c->n_steps == 0 || rows < 1) return 0;
  double round = round_us / exp(c->level), tokens = rows, reached = 1;
  double rate = rows / pst_engine_curve_time(c, rows) * least_gain;
  int best = 0;
  for (int k = 1; k <= most && rows + n * k <= PST_ENGINE_CURVE_ROWS; k++) {
    reached *= chance;
    tokens += n * reached;
    double now = tokens / (pst_engine_curve_time(c, rows + n * k) + k * round);
    if (now <= rate) continue;
    rate = now;
    best = k;
  }
  return best;
}

void pst_engine_speculation_choose(const pst_engine_step_curve *c, int rows, pst_engine_offer *offers, int n) {
  enum { MOST = PST_ENGINE_CURVE_ROWS };
  int order[MOST] = {0}, n_order = 0, best = 0;
  double reached[256];
  for (int i = 0; i < n; i++) {
    offers[i].n_chosen = 0;
    reached[i] = 1;
  }
  double tokens = rows, rate = rows / pst_engine_curve_time(c, PST_MAX(rows, 1)) * least_gain;
  while (rows + n_order < MOST) {
    int next = -1;
    double gain = 0;
    for (int i = 0; i < n; i++) {
      if (offers[i].n_chosen == offers[i].n_guesses) continue;
      double chance = reached[i] * (double)offers[i].guesses[offers[i].n_chosen].chance;
      if (chance <= gain) continue;
      gain = chance;
      next = i;
    }
    if (next < 0) break;
    reached[next] = gain;
    tokens += gain;
    offers[next].n_chosen++;
    order[n_order++] = next;
    double now = tokens / pst_engine_curve_time(c, rows + n_order);
    if (now <= rate) continue;
    rate = now;
    best = n_order;
  }
  while (n_order > best) offers[order[--n_order]].n_chosen--;
}
