/* AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) as PyTorch orders its operations, in float; sums of squares in double over fixed runs. */
#include "tune/adam.h"

#include <math.h>

enum { LEAST_RUN = 1 << 16, MAX_RUNS = 1 << 14 };

typedef struct step_work {
  const pst_tune_adam *adam;
  size_t run;      /* numbers of a piece */
  double *squares; /* of each run */
  float factor, decay, rate, root_correction;
} step_work;

static void square_piece(void *arg, size_t piece, void *scratch) {
  const step_work *w = arg;
  size_t first = piece * w->run, end = PST_MIN(first + w->run, w->adam->n);
  double lane[8] = {0};
  (void)scratch;
  for (size_t i = first; i < end; i++) lane[i % 8] += (double)w->adam->grads[i] * (double)w->adam->grads[i];
  for (size_t l = 1; l < 8; l++) lane[0] += lane[l];
  w->squares[piece] = lane[0];
}

static void step_piece(void *arg, size_t piece, void *scratch) {
  const step_work *w = arg;
  const pst_tune_adam *a = w->adam;
  size_t first = piece * w->run, end = PST_MIN(first + w->run, a->n);
  float beta1 = (float)a->beta1, beta2 = (float)a->beta2, epsilon = (float)a->epsilon;
  (void)scratch;
  for (size_t i = first; i < end; i++) {
    float g = a->grads[i] * w->factor;
    a->mean[i] += (g - a->mean[i]) * (1 - beta1);
    a->square[i] = a->square[i] * beta2 + (1 - beta2) * g * g;
    a->params[i] =
        a->params[i] * w->decay - w->rate * a->mean[i] / (sqrtf(a->square[i]) / w->root_correction + epsilon);
    a->grads[i] = 0;
  }
}

double pst_tune_adam_step(pst_tune_team *team, const pst_tune_adam *adam, int64_t step, double learning_rate,
                          double clip) {
  double squares[MAX_RUNS], sum = 0;
  size_t run = PST_MAX((size_t)LEAST_RUN, (adam->n + MAX_RUNS - 1) / MAX_RUNS), n_runs = (adam->n + run - 1) / run;
  step_work w = {.adam = adam, .run = run, .squares = squares, .factor = 1};
  pst_tune_team_run(team, n_runs, square_piece, &w);
  for (size_t i = 0; i < n_runs; i++) sum += squares[i];
  double length = sqrt(sum);
  if (clip > 0 && length > clip) w.factor = (float)(clip / (length + 1e-6));
  w.decay = (float)(1 - learning_rate * adam->weight_decay);
  w.rate = (float)(learning_rate / (1 - pow(adam->beta1, (double)step)));
  w.root_correction = (float)sqrt(1 - pow(adam->beta2, (double)step));
  pst_tune_team_run(team, n_runs, step_piece, &w);
  return length;
}

double pst_tune_schedule(int64_t step, int64_t n_steps, double warmup_share, double final_share) {
  const double pi = 3.14159265358979323846;
  double warmup = ceil(warmup_share * (double)n_steps), at = (double)step;
  if (at < warmup) return (at + 1) / (warmup + 1);
  double share = (at - warmup) / PST_MAX((double)n_steps - warmup, 1);
  return final_share + (1 - final_share) * 0.5 * (1 + cos(pi * share));
}
