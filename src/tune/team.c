/* Fork and join over threads that stay (team.h).
 *
 * A training step has thousands of runs of a millisecond each: workers wait for the next one spinning for a little while, then asleep, and so does the
 * owner for the last piece. */
#include "tune/team.h"

#include <stdatomic.h>

enum { MAX_THREADS = 64, SPINS = 4000 };

struct pst_tune_team {
  int n_threads; /* the owner's included */
  pthread_t threads[MAX_THREADS];
  uint8_t *scratch;
  size_t scratch_bytes;
  pthread_mutex_t lock;
  pthread_cond_t wanted, finished;
  atomic_uint round; /* grows with every run */
  atomic_bool ended;
  atomic_size_t next;  /* piece to claim */
  atomic_int n_inside; /* workers that may still look at the run */
  size_t n_pieces;
  void (*fn)(void *arg, size_t piece, void *scratch);
  void *arg;
};

typedef struct member {
  pst_tune_team *team;
  int index;
} member;

static void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static void work_through(pst_tune_team *t, int index) {
  void *scratch = t->scratch + (size_t)index * t->scratch_bytes;
  for (size_t i; (i = atomic_fetch_add_explicit(&t->next, 1, memory_order_relaxed)) < t->n_pieces;)
    t->fn(t->arg, i, scratch);
}

static void *worker(void *arg) {
  member *m = arg;
  pst_tune_team *t = m->team;
  int index = m->index;
  pst_free(m);
  for (unsigned seen = 0;;) {
    for (int i = 0; i < SPINS && atomic_load(&t->round) == seen; i++) relax();
    if (atomic_load(&t->round) == seen) {
      pthread_mutex_lock(&t->lock);
      while (atomic_load(&t->round) == seen) pthread_cond_wait(&t->wanted, &t->lock);
      pthread_mutex_unlock(&t->lock);
    }
    seen = atomic_load(&t->round);
    if (atomic_load(&t->ended)) return NULL;
    work_through(t, index);
    pthread_mutex_lock(&t->lock);
    if (atomic_fetch_sub(&t->n_inside, 1) == 1) pthread_cond_signal(&t->finished);
    pthread_mutex_unlock(&t->lock);
  }
}

int pst_tune_team_create(int n_threads, size_t scratch_bytes, pst_tune_team **ret_team, pst_error *err) {
  pst_tune_team *t = pst_calloc(1, sizeof *t);
  n_threads = PST_MIN(PST_MAX(n_threads, 1), (int)MAX_THREADS);
  if (t) {
    t->scratch_bytes = (scratch_bytes + 63) & ~(size_t)63;
    t->scratch = pst_malloc_aligned((size_t)n_threads * t->scratch_bytes, 64);
  }
  if (!t || !t->scratch) {
    pst_free(t);
    return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the threads' work space");
  }
  pthread_mutex_init(&t->lock, NULL);
  pthread_cond_init(&t->wanted, NULL);
  pthread_cond_init(&t->finished, NULL);
  for (t->n_threads = 1; t->n_threads < n_threads; t->n_threads++) {
    member *m = pst_malloc(sizeof *m);
    if (!m) break;
    *m = (member){t, t->n_threads};
    if (pthread_create(&t->threads[t->n_threads], NULL, worker, m)) {
      pst_free(m);
      break;
    }
  }
  *ret_team = t;
  return 0;
}

static void next_round(pst_tune_team *t) {
  pthread_mutex_lock(&t->lock);
  atomic_fetch_add(&t->round, 1);
  pthread_cond_broadcast(&t->wanted);
  pthread_mutex_unlock(&t->lock);
}

void pst_tune_team_free(pst_tune_team *team) {
  if (!team) return;
  atomic_store(&team->ended, true);
  next_round(team);
  for (int i = 1; i < team->n_threads; i++) pthread_join(team->threads[i], NULL);
  pthread_cond_destroy(&team->wanted);
  pthread_cond_destroy(&team->finished);
  pthread_mutex_destroy(&team->lock);
  pst_free(team->scratch);
  pst_free(team);
}

int pst_tune_team_size(const pst_tune_team *team) { return team->n_threads; }

void pst_tune_team_run(pst_tune_team *team, size_t n_pieces, void (*fn)(void *arg, size_t piece, void *scratch),
                       void *arg) {
  team->fn = fn;
  team->arg = arg;
  team->n_pieces = n_pieces;
  atomic_store(&team->next, 0);
  if (team->n_threads == 1 || n_pieces == 1) {
    work_through(team, 0);
    return;
  }
  atomic_store(&team->n_inside, team->n_threads - 1);
  next_round(team);
  work_through(team, 0);
  for (int i = 0; i < SPINS && atomic_load(&team->n_inside); i++) relax();
  if (!atomic_load(&team->n_inside)) return;
  pthread_mutex_lock(&team->lock);
  while (atomic_load(&team->n_inside)) pthread_cond_wait(&team->finished, &team->lock);
  pthread_mutex_unlock(&team->lock);
}
