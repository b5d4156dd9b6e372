/* The compute pool.
 *
 * Steps of a small model last a few milliseconds with some two hundred meetings in each, so threads that wait spin first (a round trip is under a microsecond)
 * and give the CPU away only when the others are evidently not running. Between steps workers spin a little longer, then sleep.
 * The pool is process-wide state on purpose: two engines computing at once on the same cores would only get in each other's way. */
#include "engine/pool.h"

#include <sched.h>

static struct {
  pthread_mutex_t turn; /* held by the caller of a run */
  pthread_mutex_t lock; /* guards the sleepers' condition */
  pthread_cond_t wake;
  int n_workers;   /* made so far; under `turn` */
  atomic_uint run; /* grows with each run */
  atomic_int sleepers;
  void (*fn)(void *arg, pst_engine_team *team, int index);
  void *arg;
  pst_engine_team team;
  atomic_int left; /* workers still inside the run */
} pool = {.turn = PTHREAD_MUTEX_INITIALIZER, .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER};

/* A pause instruction takes 40 to 140 cycles: a tenth of a millisecond for a meeting, half of one between steps. */
enum { MEET_SPINS = 2000, IDLE_SPINS = 10000 };

static void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

static void wait_turn(int spins, int i) {
  if (i < spins)
    relax();
  else
    sched_yield();
}

void pst_engine_team_meet(pst_engine_team *team) {
  if (team->n_threads == 1) return;
  unsigned phase = atomic_load_explicit(&team->phase, memory_order_relaxed);
  if (atomic_fetch_add(&team->arrived, 1) == team->n_threads - 1) {
    atomic_store_explicit(&team->arrived, 0, memory_order_relaxed);
    atomic_store(&team->phase, phase + 1);
    return;
  }
  for (int i = 0; atomic_load(&team->phase) == phase; i++) wait_turn(MEET_SPINS, i);
}

static void *worker(void *arg) {
  int index = (int)((uintptr_t)arg & 0xFF);
  unsigned seen = (unsigned)((uintptr_t)arg >> 8);
  for (;;) {
    for (int i = 0; atomic_load(&pool.run) == seen && i < IDLE_SPINS; i++) relax();
    if (atomic_load(&pool.run) == seen) {
      pthread_mutex_lock(&pool.lock);
      atomic_fetch_add(&pool.sleepers, 1);
      while (atomic_load(&pool.run) == seen) pthread_cond_wait(&pool.wake, &pool.lock);
      atomic_fetch_sub(&pool.sleepers, 1);
      pthread_mutex_unlock(&pool.lock);
    }
    seen = atomic_load(&pool.run);
    if (index < pool.team.n_threads) pool.fn(pool.arg, &pool.team, index);
    atomic_fetch_sub(&pool.left, 1);
  }
  return NULL;
}

/* Workers live as long as the process: joining them would need an owner, and an idle one costs a stack. A new one is told the number of the last run, so
 * that it takes part in the next. */
static void add_workers(int wanted) {
  while (pool.n_workers < wanted) {
    pthread_t thread;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    int failed =
        pthread_create(&thread, &attributes, worker,
                       (void *)((uintptr_t)(atomic_load(&pool.run) & 0xFFFFFF) << 8 | (uintptr_t)(pool.n_workers + 1)));
    pthread_attr_destroy(&attributes);
    if (failed) return;
    pool.n_workers++;
  }
}

void pst_engine_pool_run(int n_threads, void (*fn)(void *arg, pst_engine_team *team, int index), void *arg) {
  pthread_mutex_lock(&pool.turn);
  add_workers(PST_MIN(n_threads, PST_ENGINE_MAX_THREADS) - 1);
  pool.team.n_threads = PST_MIN(n_threads, pool.n_workers + 1);
  atomic_store(&pool.team.arrived, 0);
  pool.fn = fn;
  pool.arg = arg;
  atomic_store(&pool.left, pool.n_workers);
  if (pool.team.n_threads > 1) {
    atomic_store(&pool.run, (atomic_load(&pool.run) + 1) & 0xFFFFFF); /* only the holder of `turn` writes it */
    if (atomic_load(&pool.sleepers) > 0) {
      pthread_mutex_lock(&pool.lock);
      pthread_cond_broadcast(&pool.wake);
      pthread_mutex_unlock(&pool.lock);
    }
  }
  fn(arg, &pool.team, 0);
  if (pool.team.n_threads > 1)
    for (int i = 0; atomic_load(&pool.left) > 0; i++) wait_turn(MEET_SPINS, i);
  pthread_mutex_unlock(&pool.turn);
}
