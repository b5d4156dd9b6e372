/* The queue between threads, and the count of CPUs under cgroup quotas (on a made-up /sys/fs/cgroup). */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <penstock/base.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "base/internal.h"

static void test_first_in_first_out(void **state) {
  (void)state;
  static char items[1000];
  pst_queue *q = pst_queue_create();
  assert_non_null(q);
  size_t in = 0, out = 0;
  pst_random r = {1, 0, 0};
  while (out < sizeof items) { /* the ring wraps and grows at changing places */
    if (in < sizeof items && pst_random_below(&r, 5) < 3)
      assert_int_equal(pst_queue_push(q, &items[in++]), 0);
    else if (in > out)
      assert_ptr_equal(pst_queue_pop(q, 0), &items[out++]);
    else
      assert_null(pst_queue_pop(q, 0));
    assert_int_equal(pst_queue_length(q), in - out);
  }
  pst_queue_free(q);
  pst_queue_free(NULL);
}

static void test_close(void **state) {
  (void)state;
  int a = 0, b = 0;
  pst_queue *q = pst_queue_create();
  assert_int_equal(pst_queue_push(q, &a), 0);
  pst_queue_close(q);
  assert_int_equal(pst_queue_push(q, &b), PST_E_CANCELLED);
  assert_ptr_equal(pst_queue_pop(q, -1), &a); /* what was in still comes out */
  assert_null(pst_queue_pop(q, -1));          /* and nobody waits for ever */
  assert_null(pst_queue_pop(q, 1000000));
  pst_queue_close(q);
  pst_queue_free(q);
}

static void test_timeouts(void **state) {
  (void)state;
  pst_queue *q = pst_queue_create();
  int64_t before = pst_clock_us();
  assert_null(pst_queue_pop(q, 0));
  assert_null(pst_queue_pop(q, 30));
  assert_true(pst_clock_us() - before >= 30000);
  pst_queue_free(q);
}

static void test_a_failed_push_changes_nothing(void **state) {
  (void)state;
  int items[40];
  pst_queue *q = pst_queue_create();
  size_t n = 0;
  pst_memory_fail_after(1);
  while (n < 40 && pst_queue_push(q, &items[n]) == 0) n++;
  int rc = pst_queue_push(q, &items[0]);
  pst_memory_fail_after(-1);
  assert_int_equal(rc, PST_E_NOMEM);
  assert_true(n > 0 && n < 40);
  assert_int_equal(pst_queue_length(q), n);
  assert_int_equal(pst_queue_push(q, &items[n]), 0);
  for (size_t i = 0; i <= n; i++) assert_ptr_equal(pst_queue_pop(q, 0), &items[i]);
  pst_queue_free(q);
}

enum { N_PRODUCERS = 3, N_CONSUMERS = 3, N_EACH = 5000 };
typedef struct traffic {
  pst_queue *q;
  int items[N_PRODUCERS][N_EACH]; /* how often each was taken */
  _Atomic int next_producer, n_failed;
} traffic;

static void *produce(void *data) {
  traffic *t = data;
  int me = t->next_producer++;
  for (int i = 0; i < N_EACH; i++)
    if (pst_queue_push(t->q, &t->items[me][i]) != 0) t->n_failed++;
  return NULL;
}

static void *consume(void *data) {
  traffic *t = data;
  int *last[N_PRODUCERS] = {NULL};
  for (int *item; (item = pst_queue_pop(t->q, -1));) {
    ++*item; /* only the thread that took it touches it */
    size_t producer = (size_t)(item - &t->items[0][0]) / N_EACH;
    if (last[producer] && last[producer] >= item) t->n_failed++; /* one producer's items come in its order */
    last[producer] = item;
  }
  return NULL;
}

static void test_many_producers_and_consumers(void **state) {
  (void)state;
  traffic *t = pst_calloc(1, sizeof *t);
  assert_non_null(t);
  t->q = pst_queue_create();
  pthread_t producers[N_PRODUCERS], consumers[N_CONSUMERS];
  for (size_t i = 0; i < N_CONSUMERS; i++) assert_int_equal(pthread_create(&consumers[i], NULL, consume, t), 0);
  for (size_t i = 0; i < N_PRODUCERS; i++) assert_int_equal(pthread_create(&producers[i], NULL, produce, t), 0);
  for (size_t i = 0; i < N_PRODUCERS; i++) assert_int_equal(pthread_join(producers[i], NULL), 0);
  pst_queue_close(t->q);
  for (size_t i = 0; i < N_CONSUMERS; i++) assert_int_equal(pthread_join(consumers[i], NULL), 0);
  assert_int_equal(t->n_failed, 0);
  for (size_t i = 0; i < N_PRODUCERS; i++)
    for (size_t k = 0; k < N_EACH; k++) assert_int_equal(t->items[i][k], 1);
  pst_queue_free(t->q);
  pst_free(t);
}

/* ---- CPUs ---- */

static char *mount_dir;

static int make_mount(void **state) {
  (void)state;
  char name[] = "/tmp/penstock-cgroup-XXXXXX";
  if (!mkdtemp(name)) return -1;
  mount_dir = pst_strdup(name);
  return mount_dir ? 0 : -1;
}

static int remove_mount(void **state) {
  (void)state;
  char command[128];
  (void)snprintf(command, sizeof command, "rm -rf '%s'", mount_dir);
  pst_free(mount_dir);
  return system(command);
}

static void put(const char *group, const char *file, const char *text) {
  char *dir = pst_path_join(mount_dir, group), *path = pst_path_join(dir, file);
  assert_int_equal(pst_dir_make(dir, NULL), 0);
  assert_int_equal(pst_file_write_atomic(path, text, strlen(text), NULL), 0);
  pst_free(path);
  pst_free(dir);
}

static int quota(const char *proc_cgroup) { return pst_cpu_quota(pst_str_from(proc_cgroup), mount_dir); }

static void test_quota_of_version_2(void **state) {
  (void)state;
  assert_int_equal(quota("0::/a/b/c\n"), 0);
  put("a", "cpu.max", "350000 100000\n");
  put("a/b", "cpu.max", "max 100000\n");
  assert_int_equal(quota("0::/a/b/c\n"), 4); /* 3.5, from the grandparent */
  put("a/b/c", "cpu.max", "50000 100000\n");
  assert_int_equal(quota("0::/a/b/c\n"), 1);
  assert_int_equal(quota("0::/a/b\n"), 4);
  assert_int_equal(quota("0::/elsewhere\n"), 0);
  put("", "cpu.max", "200000 100000\n"); /* a container's view: its own group is the root */
  assert_int_equal(quota("0::/as/the/host/names/it\n"), 2);
  assert_int_equal(quota("0::/a\n"), 2);
  put("", "cpu.max", "max 100000\n");
}

static void test_quota_of_version_1(void **state) {
  (void)state;
  put("cpu/x", "cpu.cfs_quota_us", "-1\n");
  put("cpu/x", "cpu.cfs_period_us", "100000\n");
  assert_int_equal(quota("3:cpu,cpuacct:/x\n"), 0);
  put("cpu/x", "cpu.cfs_quota_us", "250000\n");
  assert_int_equal(quota("5:memory:/x\n3:cpu,cpuacct:/x\n0::/\n"), 3);
  assert_int_equal(quota("3:cpuacct,cpu:/x"), 3);
  assert_int_equal(quota("3:cpuacct:/x\n4:cpuset:/x\n"), 0); /* other controllers */
}

static void test_quota_of_nonsense(void **state) {
  (void)state;
  put("bad", "cpu.max", "many 100000\n");
  assert_int_equal(quota("0::/bad\n"), 0);
  put("bad", "cpu.max", "100000 0\n");
  assert_int_equal(quota("0::/bad\n"), 0);
  put("bad", "cpu.max", "100000\n");
  assert_int_equal(quota("0::/bad\n"), 0);
  put("bad", "cpu.max", "");
  assert_int_equal(quota("0::/bad\n"), 0);
  put("bad", "cpu.max", "9223372036854775807 1");
  assert_true(quota("0::/bad\n") > 0);
  assert_int_equal(quota(""), 0);
  assert_int_equal(quota("\n\n:::\n::\nx"), 0);
}

static void test_count_follows_affinity(void **state) {
  (void)state;
  int all = pst_cpu_count();
  assert_true(all >= 1);
  cpu_set_t before, one;
  assert_int_equal(sched_getaffinity(0, sizeof before, &before), 0);
  CPU_ZERO(&one);
  for (size_t cpu = 0; cpu < CPU_SETSIZE && CPU_COUNT(&one) == 0; cpu++)
    if (CPU_ISSET(cpu, &before)) CPU_SET(cpu, &one);
  assert_true(all <= CPU_COUNT(&before));
  assert_int_equal(sched_setaffinity(0, sizeof one, &one), 0);
  int narrowed = pst_cpu_count();
  assert_int_equal(sched_setaffinity(0, sizeof before, &before), 0);
  assert_int_equal(narrowed, 1);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_first_in_first_out),
      cmocka_unit_test(test_close),
      cmocka_unit_test(test_timeouts),
      cmocka_unit_test(test_a_failed_push_changes_nothing),
      cmocka_unit_test(test_many_producers_and_consumers),
      cmocka_unit_test(test_quota_of_version_2),
      cmocka_unit_test(test_quota_of_version_1),
      cmocka_unit_test(test_quota_of_nonsense),
      cmocka_unit_test(test_count_follows_affinity),
  };
  return cmocka_run_group_tests(tests, make_mount, remove_mount);
}
