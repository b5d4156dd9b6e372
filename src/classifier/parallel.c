/* Fork and join (parallel.h). A thread for each range and call: a call takes milliseconds, starting a thread microseconds. */
#include "classifier/parallel.h"

#include <pthread.h>

#include <penstock/base.h>

typedef struct share {
  void (*fn)(void *arg, size_t first, size_t end);
  void *arg;
  size_t first, end;
} share;

static void *run(void *arg) {
  const share *s = arg;
  s->fn(s->arg, s->first, s->end);
  return NULL;
}

void pst_classifier_parallel(int n_threads, size_t n, void (*fn)(void *arg, size_t first, size_t end), void *arg) {
  share shares[PST_CLASSIFIER_MAX_THREADS];
  pthread_t threads[PST_CLASSIFIER_MAX_THREADS];
  bool started[PST_CLASSIFIER_MAX_THREADS] = {false};
  size_t n_shares = (size_t)PST_MIN(PST_MAX(n_threads, 1), PST_CLASSIFIER_MAX_THREADS);
  if (n == 0) return;
  n_shares = PST_MIN(n_shares, n);
  for (size_t i = 0; i < n_shares; i++) shares[i] = (share){fn, arg, n * i / n_shares, n * (i + 1) / n_shares};
  for (size_t i = 1; i < n_shares; i++) started[i] = pthread_create(&threads[i], NULL, run, &shares[i]) == 0;
  run(&shares[0]);
  for (size_t i = 1; i < n_shares; i++)
    if (started[i])
      (void)pthread_join(threads[i], NULL);
    else
      run(&shares[i]);
}
