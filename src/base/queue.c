/* The hand-over between threads: an unbounded queue of pointers, many producers, many consumers.
 *
 * A ring that doubles under one mutex. Items are handed over per request or per step, never per token of arithmetic, so the
 * lock is not in any hot loop; what it buys is a queue that cannot lose a wake-up. Waiting uses the monotonic clock. */
#include <penstock/base.h>

#include <errno.h>
#include <time.h>

struct pst_queue {
  pthread_mutex_t lock;
  pthread_cond_t changed; /* an item came, or the queue was closed */
  void **items;           /* ring of `capacity` slots, a power of two or 0 */
  size_t capacity, first, n;
  bool closed;
};

pst_queue *pst_queue_create(void) {
  pst_queue *q = pst_calloc(1, sizeof *q);
  if (!q) return NULL;
  pthread_condattr_t attr;
  if (pthread_condattr_init(&attr) != 0) goto fail;
  bool made = pthread_condattr_setclock(&attr, CLOCK_MONOTONIC) == 0 && pthread_cond_init(&q->changed, &attr) == 0;
  (void)pthread_condattr_destroy(&attr);
  if (!made) goto fail;
  if (pthread_mutex_init(&q->lock, NULL) != 0) {
    (void)pthread_cond_destroy(&q->changed);
    goto fail;
  }
  return q;
fail:
  pst_free(q);
  return NULL;
}

void pst_queue_free(pst_queue *q) {
  if (!q) return;
  (void)pthread_mutex_destroy(&q->lock);
  (void)pthread_cond_destroy(&q->changed);
  pst_free(q->items);
  pst_free(q);
}

/* Doubles the ring; the items keep their order. */
static int grow(pst_queue *q) {
  size_t wanted = q->capacity ? q->capacity * 2 : 16;
  if (wanted > (size_t)PTRDIFF_MAX / sizeof *q->items) return PST_E_NOMEM;
  void **items = pst_malloc(wanted * sizeof *items);
  if (!items) return PST_E_NOMEM;
  for (size_t i = 0; i < q->n; i++) items[i] = q->items[(q->first + i) & (q->capacity - 1)];
  pst_free(q->items);
  q->items = items;
  q->capacity = wanted;
  q->first = 0;
  return 0;
}

int pst_queue_push(pst_queue *q, void *item) {
  (void)pthread_mutex_lock(&q->lock);
  int rc = q->closed ? PST_E_CANCELLED : 0;
  if (rc == 0 && q->n == q->capacity) rc = grow(q);
  if (rc == 0) {
    q->items[(q->first + q->n) & (q->capacity - 1)] = item;
    q->n++;
    (void)pthread_cond_signal(&q->changed);
  }
  (void)pthread_mutex_unlock(&q->lock);
  return rc;
}

static struct timespec deadline_in(int64_t timeout_ms) {
  struct timespec t = {0, 0};
  (void)clock_gettime(CLOCK_MONOTONIC, &t);
  int64_t seconds = PST_MIN(timeout_ms / 1000, (int64_t)INT32_MAX);
  t.tv_sec += (time_t)seconds;
  t.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
  if (t.tv_nsec >= 1000000000) {
    t.tv_nsec -= 1000000000;
    t.tv_sec++;
  }
  return t;
}

void *pst_queue_pop(pst_queue *q, int64_t timeout_ms) {
  struct timespec deadline = {0, 0};
  if (timeout_ms > 0) deadline = deadline_in(timeout_ms);
  void *item = NULL;
  (void)pthread_mutex_lock(&q->lock);
  while (q->n == 0 && !q->closed && timeout_ms != 0) {
    int rc = timeout_ms < 0 ? pthread_cond_wait(&q->changed, &q->lock)
                            : pthread_cond_timedwait(&q->changed, &q->lock, &deadline);
    if (rc != 0) /* ETIMEDOUT; anything else would be a mistake of ours, and must not spin */
      break;
  }
  if (q->n > 0) {
    item = q->items[q->first];
    q->first = (q->first + 1) & (q->capacity - 1);
    q->n--;
  }
  (void)pthread_mutex_unlock(&q->lock);
  return item;
}

void pst_queue_close(pst_queue *q) {
  (void)pthread_mutex_lock(&q->lock);
  q->closed = true;
  (void)pthread_cond_broadcast(&q->changed);
  (void)pthread_mutex_unlock(&q->lock);
}

size_t pst_queue_length(pst_queue *q) {
  (void)pthread_mutex_lock(&q->lock);
  size_t n = q->n;
  (void)pthread_mutex_unlock(&q->lock);
  return n;
}
