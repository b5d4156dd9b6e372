/* The event loop: owns the libevent base, the queue of posted functions, timers and signals. It does not know HTTP.
 *
 * libevent is run round by round (EVLOOP_ONCE) instead of for ever, so that each round can end with the "later" jobs: connections write what the
 * round queued in one system call, and objects are freed where no callback of a library is on the stack. Other threads come in
 * through one list under a mutex and an eventfd that is written only when the list was empty; libevent's own locking stays off.
 *
 * SIGPIPE is blocked in the loop's thread while it runs: it is sent to the writing thread, and TLS writes cannot pass MSG_NOSIGNAL. */
#include "net/loop.h"

#include <assert.h>
#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

struct pst_net_timer {
  struct event *event;
  pst_net_fn fn;
  void *arg;
};

typedef struct signal_watch {
  struct event *event;
  pst_net_fn fn;
  void *arg;
  struct signal_watch *next;
} signal_watch;

/* A posted function whose storage is the loop's. */
typedef struct heap_task {
  pst_net_task task; /* first: the loop frees tasks that it knows to be heap tasks by their fn */
  pst_net_fn fn;
  void *arg;
} heap_task;

struct pst_net_loop {
  struct event_base *base;
  struct event *wake_event;
  int wake_fd;
  pthread_t thread;
  bool started, joined; /* by start, of the thread that called it */
  atomic_bool running, stop;
  _Atomic(uintptr_t) runner; /* address of a thread-local of the running thread; 0: none */
  pst_net_later later;       /* list head */
  signal_watch *signals;

  pthread_mutex_t lock; /* guards the rest */
  pst_net_task *head, **tail;
  bool ended; /* no post is taken any more */
};

static _Thread_local char thread_mark;

static void drain_posts(pst_net_loop *loop) {
  for (;;) {
    pthread_mutex_lock(&loop->lock);
    pst_net_task *task = loop->head;
    loop->head = NULL;
    loop->tail = &loop->head;
    if (!task && !atomic_load(&loop->running)) loop->ended = true;
    pthread_mutex_unlock(&loop->lock);
    if (!task) return;
    while (task) {
      pst_net_task *next = task->next; /* read first: the task may be posted again or freed by its fn */
      task->next = NULL;
      task->fn(task->arg);
      task = next;
    }
    if (atomic_load(&loop->running)) return; /* what they posted waits for the next round: sockets get their turn */
  }
}

static void on_wake(evutil_socket_t fd, short what, void *arg) {
  (void)what;
  uint64_t count;
  ssize_t n = read((int)fd, &count, sizeof count);
  (void)n; /* EAGAIN at worst: the list is looked at in any case */
  drain_posts(arg);
}

int pst_net_loop_create(pst_net_loop **ret_loop, pst_error *err) {
  int rc = PST_E_NOMEM;
  pst_net_loop *loop = pst_calloc(1, sizeof *loop);
  if (!loop) return pst_error_set(err, PST_E_NOMEM, NULL, "out of memory for the event loop");
  loop->wake_fd = -1;
  loop->tail = &loop->head;
  loop->later.prev = loop->later.next = &loop->later;
  pthread_mutex_init(&loop->lock, NULL);
  struct event_config *config = event_config_new();
  if (config) {
    event_config_set_flag(config, EVENT_BASE_FLAG_NOLOCK);
    event_config_require_features(config, EV_FEATURE_ET | EV_FEATURE_EARLY_CLOSE);
    loop->base = event_base_new_with_config(config);
    event_config_free(config);
  }
  if (!loop->base) {
    pst_error_set(err, rc, NULL, "cannot make an event loop (is epoll available?)");
    goto done;
  }
  loop->wake_fd = eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC);
  if (loop->wake_fd < 0) {
    rc = pst_error_set_errno(err, errno, NULL, "cannot make an event descriptor");
    goto done;
  }
  loop->wake_event = event_new(loop->base, loop->wake_fd, EV_READ | EV_PERSIST, on_wake, loop);
  if (!loop->wake_event || event_add(loop->wake_event, NULL)) {
    pst_error_set(err, rc, NULL, "out of memory for the event loop");
    goto done;
  }
  *ret_loop = loop;
  return 0;
done:
  pst_net_loop_free(loop);
  return rc;
}

void pst_net_loop_free(pst_net_loop *loop) {
  if (!loop) return;
  pst_net_loop_join(loop);
  assert(loop->later.next == &loop->later); /* servers and clients are freed before their loop */
  atomic_store(&loop->running, false);
  drain_posts(loop); /* a loop that never ran still keeps the promise of post */
  while (loop->signals) {
    signal_watch *watch = loop->signals;
    loop->signals = watch->next;
    event_free(watch->event);
    pst_free(watch);
  }
  if (loop->wake_event) event_free(loop->wake_event);
  if (loop->base) event_base_free(loop->base);
  if (loop->wake_fd >= 0) close(loop->wake_fd);
  pthread_mutex_destroy(&loop->lock);
  pst_free(loop);
}

static bool run_later(pst_net_loop *loop) {
  pst_net_later *list = &loop->later;
  if (list->next == list) return false;
  pst_net_later batch; /* jobs put in meanwhile wait for the next round */
  batch.next = list->next;
  batch.prev = list->prev;
  batch.next->prev = batch.prev->next = &batch;
  list->next = list->prev = list;
  while (batch.next != &batch) {
    pst_net_later *job = batch.next;
    pst_net_loop_forget(job);
    job->fn(job->arg);
  }
  return list->next != list;
}

static void run_rounds(pst_net_loop *loop) {
  sigset_t pipe_set, old_set;
  sigemptyset(&pipe_set);
  sigaddset(&pipe_set, SIGPIPE);
  pthread_sigmask(SIG_BLOCK, &pipe_set, &old_set);
  atomic_store(&loop->runner, (uintptr_t)&thread_mark);
  bool more = false;
  while (!atomic_load(&loop->stop)) {
    event_base_loop(loop->base, more ? EVLOOP_ONCE | EVLOOP_NONBLOCK : EVLOOP_ONCE);
    more = run_later(loop);
  }
  atomic_store(&loop->running, false);
  drain_posts(loop);
  for (int i = 0; i < 16 && run_later(loop); i++) {}
  atomic_store(&loop->runner, 0);
  if (!sigismember(&old_set, SIGPIPE)) {
    struct timespec zero = {0, 0};
    while (sigtimedwait(&pipe_set, NULL, &zero) == SIGPIPE) {}
  }
  pthread_sigmask(SIG_SETMASK, &old_set, NULL);
}

int pst_net_loop_run(pst_net_loop *loop, pst_error *err) {
  bool expected = false;
  if (!atomic_compare_exchange_strong(&loop->running, &expected, true) || loop->started)
    return pst_error_set(err, PST_E_INTERNAL, NULL, "the event loop runs already");
  run_rounds(loop);
  return 0;
}

static void *thread_main(void *arg) {
  pst_net_loop *loop = arg;
  run_rounds(loop);
  return NULL;
}

int pst_net_loop_start(pst_net_loop *loop, pst_error *err) {
  bool expected = false;
  if (loop->started || !atomic_compare_exchange_strong(&loop->running, &expected, true))
    return pst_error_set(err, PST_E_INTERNAL, NULL, "the event loop runs already");
  int rc = pthread_create(&loop->thread, NULL, thread_main, loop);
  if (rc) {
    atomic_store(&loop->running, false);
    return pst_error_set_errno(err, rc, NULL, "cannot start the I/O thread");
  }
  loop->started = true;
  return 0;
}

static void wake(pst_net_loop *loop) {
  uint64_t one = 1;
  ssize_t n;
  do n = write(loop->wake_fd, &one, sizeof one);
  while (n < 0 && errno == EINTR);
}

void pst_net_loop_stop(pst_net_loop *loop) {
  atomic_store(&loop->stop, true);
  wake(loop);
}

void pst_net_loop_join(pst_net_loop *loop) {
  if (!loop->started || loop->joined) return;
  assert(!pst_net_loop_is_current(loop));
  pst_net_loop_stop(loop);
  pthread_join(loop->thread, NULL);
  loop->joined = true;
}

bool pst_net_loop_is_current(const pst_net_loop *loop) {
  return atomic_load(&((pst_net_loop *)(uintptr_t)loop)->runner) == (uintptr_t)&thread_mark;
}

int pst_net_loop_post_task(pst_net_loop *loop, pst_net_task *task) {
  task->next = NULL;
  pthread_mutex_lock(&loop->lock);
  if (loop->ended) {
    pthread_mutex_unlock(&loop->lock);
    return PST_E_CANCELLED;
  }
  bool was_empty = !loop->head;
  *loop->tail = task;
  loop->tail = &task->next;
  /* Inside the lock: once it is released the loop may take the task, end, and be freed by its owner. */
  if (was_empty) wake(loop);
  pthread_mutex_unlock(&loop->lock);
  return 0;
}

static void run_heap_task(void *arg) {
  heap_task task = *(heap_task *)arg;
  pst_free(arg);
  task.fn(task.arg);
}

int pst_net_loop_post(pst_net_loop *loop, pst_net_fn fn, void *arg) {
  heap_task *task = pst_malloc(sizeof *task);
  if (!task) return PST_E_NOMEM;
  task->task.fn = run_heap_task;
  task->task.arg = task;
  task->fn = fn;
  task->arg = arg;
  int rc = pst_net_loop_post_task(loop, &task->task);
  if (rc) pst_free(task);
  return rc;
}

typedef struct waited_call {
  pst_net_task task;
  pst_net_fn fn;
  void *arg;
  pthread_mutex_t lock;
  pthread_cond_t cond;
  bool finished;
} waited_call;

static void run_waited_call(void *arg) {
  waited_call *call = arg;
  call->fn(call->arg);
  pthread_mutex_lock(&call->lock);
  call->finished = true;
  pthread_cond_signal(&call->cond);
  pthread_mutex_unlock(&call->lock);
}

int pst_net_loop_call(pst_net_loop *loop, pst_net_fn fn, void *arg) {
  if (pst_net_loop_is_current(loop)) {
    fn(arg);
    return 0;
  }
  waited_call call = {.fn = fn, .arg = arg};
  call.task.fn = run_waited_call;
  call.task.arg = &call;
  pthread_mutex_init(&call.lock, NULL);
  pthread_cond_init(&call.cond, NULL);
  int rc = pst_net_loop_post_task(loop, &call.task);
  if (!rc) {
    pthread_mutex_lock(&call.lock);
    while (!call.finished) pthread_cond_wait(&call.cond, &call.lock);
    pthread_mutex_unlock(&call.lock);
  }
  pthread_cond_destroy(&call.cond);
  pthread_mutex_destroy(&call.lock);
  return rc;
}

/* ---- later jobs --------------------------------------------------------------------------------------------------- */

void pst_net_loop_later(pst_net_loop *loop, pst_net_later *job) {
  if (job->next) return;
  pst_net_later *list = &loop->later;
  bool was_empty = list->next == list;
  job->prev = list->prev;
  job->next = list;
  list->prev->next = job;
  list->prev = job;
  /* From outside the loop's thread (before it runs) the first round would wait for an event that may never come. */
  if (was_empty && !pst_net_loop_is_current(loop)) wake(loop);
}

void pst_net_loop_forget(pst_net_later *job) {
  if (!job->next) return;
  job->prev->next = job->next;
  job->next->prev = job->prev;
  job->prev = job->next = NULL;
}

struct event_base *pst_net_loop_base(pst_net_loop *loop) {
  return loop->base;
}

/* ---- timers and signals -------------------------------------------------------------------------------------------- */

void pst_net_event_arm_us(struct event *timer, int64_t delay_us) {
  if (delay_us < 0) delay_us = 0;
  struct timeval tv = {.tv_sec = (time_t)(delay_us / 1000000), .tv_usec = (suseconds_t)(delay_us % 1000000)};
  evtimer_add(timer, &tv);
}

static void on_timer(evutil_socket_t fd, short what, void *arg) {
  (void)fd;
  (void)what;
  pst_net_timer *timer = arg;
  timer->fn(timer->arg); /* may free the timer */
}

int pst_net_timer_create(pst_net_loop *loop, pst_net_fn fn, void *arg, pst_net_timer **ret_timer) {
  pst_net_timer *timer = pst_calloc(1, sizeof *timer);
  if (!timer) return PST_E_NOMEM;
  timer->fn = fn;
  timer->arg = arg;
  timer->event = evtimer_new(loop->base, on_timer, timer);
  if (!timer->event) {
    pst_free(timer);
    return PST_E_NOMEM;
  }
  *ret_timer = timer;
  return 0;
}

void pst_net_timer_set(pst_net_timer *timer, int64_t delay_ms) {
  if (delay_ms < 0) {
    evtimer_del(timer->event);
  } else {
    pst_net_event_arm_us(timer->event, PST_MIN(delay_ms, INT64_C(86400000) * 365) * 1000);
  }
}

void pst_net_timer_free(pst_net_timer *timer) {
  if (!timer) return;
  event_free(timer->event);
  pst_free(timer);
}

static void on_signal(evutil_socket_t number, short what, void *arg) {
  (void)number;
  (void)what;
  signal_watch *watch = arg;
  watch->fn(watch->arg);
}

int pst_net_loop_on_signal(pst_net_loop *loop, int signal_number, pst_net_fn fn, void *arg, pst_error *err) {
  signal_watch *watch = pst_calloc(1, sizeof *watch);
  if (!watch) return pst_error_set(err, PST_E_NOMEM, NULL, "out of memory for a signal handler");
  watch->fn = fn;
  watch->arg = arg;
  watch->event = evsignal_new(loop->base, signal_number, on_signal, watch);
  if (!watch->event || event_add(watch->event, NULL)) {
    if (watch->event) event_free(watch->event);
    pst_free(watch);
    return pst_error_set(err, PST_E_INTERNAL, NULL, "cannot watch signal %d", signal_number);
  }
  watch->next = loop->signals;
  loop->signals = watch;
  return 0;
}
