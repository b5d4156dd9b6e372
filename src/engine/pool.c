/* The compute pool.
 *
 * Steps of a small model last a few milliseconds with some two hundred meetings in each, so threads that wait spin first (a round trip is under a microsecond)
 * and give the CPU away only when the others are evidently not running. Between steps workers spin a little longer, then sleep.
 * The pool is process-wide state on purpose: two engines computing at once on the same cores would only get in each other's way.
 *
 * Where another program has a core, the thread that shares it is away for milliseconds at a time, and at every meeting the others wait for it: two
 * threads are then slower than one. So the time that threads wait in vain is added up, and when fewer threads would do better, fewer run; now and then
 * one more is tried. Results do not depend on how many compute. */
#include "engine/pool.h"

#include <linux/futex.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

/* A worker's own word to wait for: one that does not take part in a run is not waited for. */
typedef struct seat {
  _Alignas(64) atomic_uint go; /* grows with each run it takes part in */
  atomic_bool asleep;
} seat;

static struct {
  pthread_mutex_t turn;               /* held by the caller of a run; guards what has no other rule */
  int n_workers;                      /* made so far */
  seat seats[PST_ENGINE_MAX_THREADS]; /* of workers 1 to n_workers */
  void (*fn)(void *arg, pst_engine_team *team, int index);
  void *arg;
  pst_engine_team team;
  atomic_int left; /* workers still inside the run */
} pool = {.turn = PTHREAD_MUTEX_INITIALIZER};

/* How many threads pay. All under `turn`. */
static struct {
  int limit;                    /* 0: none */
  int64_t spent_us, stalled_us; /* in the runs of the window at hand; stalled: all threads together */
  int64_t retry_us, pause_us;   /* when one more is tried, and how long after a failure */
} pay;

/* A pause instruction takes 40 to 140 cycles: a tenth of a millisecond for a meeting, half of one between steps. */
enum { MEET_SPINS = 2000, IDLE_SPINS = 10000 };
/* A window of runs that went well; waiting that is no accident; pauses between tries. */
enum { WINDOW_US = 20000, STALL_US = 4000, PAUSE_US = 50000, MAX_PAUSE_US = 1000000 };

static void relax(void) {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  __asm__ volatile("yield");
#endif
}

/* The time that waiting took beyond the spins. */
static void add_stall(pst_engine_team *team, int64_t since_us) {
  if (since_us) atomic_fetch_add_explicit(&team->stalled_us, pst_clock_us() - since_us, memory_order_relaxed);
}

/* One turn of a wait: spins at first, later gives the CPU away, from since_us on. */
typedef struct waiting {
  int n_spins;
  int64_t since_us; /* 0: still spinning */
} waiting;

static void wait_turn(waiting *w) {
  if (w->n_spins < MEET_SPINS) {
    w->n_spins++;
    relax();
    return;
  }
  if (!w->since_us) w->since_us = pst_clock_us();
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
  waiting w = {0, 0};
  while (atomic_load(&team->phase) == phase) wait_turn(&w);
  add_stall(team, w.since_us);
}

void pst_engine_team_await(pst_engine_team *team, const atomic_int *count, int wanted) {
  waiting w = {0, 0};
  while (atomic_load_explicit(count, memory_order_acquire) < wanted) wait_turn(&w);
  add_stall(team, w.since_us);
}

static void sleep_until_wanted(seat *s, unsigned seen) {
  for (int i = 0; atomic_load(&s->go) == seen && i < IDLE_SPINS; i++) relax();
  while (atomic_load(&s->go) == seen) {
    atomic_store(&s->asleep, true);
    (void)syscall(SYS_futex, &s->go, FUTEX_WAIT_PRIVATE, seen, NULL, NULL, 0); /* returns at once when it has changed */
    atomic_store(&s->asleep, false);
  }
}

static void wake(seat *s) {
  atomic_fetch_add(&s->go, 1);
  if (atomic_load(&s->asleep)) (void)syscall(SYS_futex, &s->go, FUTEX_WAKE_PRIVATE, 1, NULL, NULL, 0);
}

static void *worker(void *arg) {
  int index = (int)(intptr_t)arg;
  seat *s = &pool.seats[index];
  for (unsigned seen = 0;; seen++) { /* every call is answered: the run waits for it */
    sleep_until_wanted(s, seen);
    pool.fn(pool.arg, &pool.team, index);
    atomic_fetch_sub(&pool.left, 1);
  }
  return NULL;
}

/* Workers live as long as the process: joining them would need an owner, and an idle one costs a stack. */
static void add_workers(int wanted) {
  while (pool.n_workers < wanted) {
    pthread_t thread;
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    int failed = pthread_create(&thread, &attributes, worker, (void *)(intptr_t)(pool.n_workers + 1));
    pthread_attr_destroy(&attributes);
    if (failed) return;
    pool.n_workers++;
  }
}

/* How many of n threads to use now. */
static int choose_threads(int n, int64_t now_us) {
  if (!pay.limit || pay.limit >= n) return n;
  if (now_us >= pay.retry_us && !pay.spent_us) { /* a window begins: one more */
    pay.limit++;
    pay.retry_us = INT64_MAX;
  }
  return PST_MIN(pay.limit, n);
}

/* With n threads of which one was away for a time s, the others' part of the work was done in T - s. One thread fewer, and none away, would have
 * taken n / (n - 1) of that: less than T when s is above T / n. */
static void judge(int n, int64_t now_us, int64_t spent_us, int64_t stalled_us) {
  pay.spent_us += spent_us;
  pay.stalled_us += stalled_us;
  if (n > 1 && pay.stalled_us > STALL_US * (n - 1) && pay.stalled_us > pay.spent_us * (n - 1) / n) {
    pay.pause_us = PST_MIN(PST_MAX(pay.pause_us * 2, PAUSE_US), MAX_PAUSE_US);
    pay.retry_us = now_us + pay.pause_us;
    pay.limit = n - 1;
  } else if (pay.spent_us < WINDOW_US) {
    return;
  } else if (pay.retry_us == INT64_MAX) { /* the one more has paid: the next is tried soon */
    pay.pause_us = 0;
    pay.retry_us = now_us + PAUSE_US;
  }
  pay.spent_us = pay.stalled_us = 0;
}

void pst_engine_pool_run(int n_threads, void (*fn)(void *arg, pst_engine_team *team, int index), void *arg) {
  pthread_mutex_lock(&pool.turn);
  int64_t start_us = pst_clock_us();
  waiting w = {0, 0};
  n_threads = choose_threads(PST_MIN(n_threads, PST_ENGINE_MAX_THREADS), start_us);
  add_workers(n_threads - 1);
  n_threads = PST_MIN(n_threads, pool.n_workers + 1);
  pool.team.n_threads = n_threads;
  atomic_store(&pool.team.arrived, 0);
  atomic_store(&pool.team.stalled_us, 0);
  pool.fn = fn;
  pool.arg = arg;
  atomic_store(&pool.left, n_threads - 1);
  for (int i = 1; i < n_threads; i++) wake(&pool.seats[i]);
  fn(arg, &pool.team, 0);
  while (atomic_load(&pool.left) > 0) wait_turn(&w);
  add_stall(&pool.team, w.since_us);
  int64_t end_us = pst_clock_us();
  judge(n_threads, end_us, end_us - start_us, atomic_load(&pool.team.stalled_us));
  pthread_mutex_unlock(&pool.turn);
}
