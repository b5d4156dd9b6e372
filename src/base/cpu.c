/* How many CPUs this process may use: the smaller of its affinity mask and its cgroup's quota (versions 2 and 1).
 *
 * A container's quota is invisible to sysconf; starting a thread per core of the host under a quota of two makes every step
 * wait for throttled threads. A quota of 1.5 CPUs counts as 2. */
#include "base/internal.h"

#include <errno.h>
#include <sched.h>
#include <unistd.h>

static int affinity_count(void) {
  /* The kernel refuses a mask smaller than its own; double until it fits. */
  for (int n_cpus = 1024; n_cpus <= 1 << 20; n_cpus *= 2) {
    cpu_set_t *set = CPU_ALLOC((size_t)n_cpus);
    if (!set) break;
    size_t bytes = CPU_ALLOC_SIZE((size_t)n_cpus);
    CPU_ZERO_S(bytes, set);
    bool known = sched_getaffinity(0, bytes, set) == 0;
    bool too_small = !known && errno == EINVAL;
    int count = known ? CPU_COUNT_S(bytes, set) : 0;
    CPU_FREE(set);
    if (count > 0) return count;
    if (!too_small) break;
  }
  long online = sysconf(_SC_NPROCESSORS_ONLN);
  return online > 0 && online < 1 << 20 ? (int)online : 1;
}

static int quota_cpus(int64_t quota_us, int64_t period_us) {
  if (quota_us <= 0 || period_us <= 0) return 0;
  int64_t cpus = quota_us / period_us + (quota_us % period_us != 0);
  return cpus > 1 << 20 ? 1 << 20 : (int)cpus;
}

/* The first number of a small kernel file; false if it is missing or says otherwise. */
static bool read_numbers(const char *dir, const char *name, int64_t *ret_first, int64_t *ret_second) {
  char *path = pst_path_join(dir, name);
  char *data = NULL;
  size_t n = 0;
  bool good = false;
  if (path && pst_file_read(path, 4096, &data, &n, NULL) == 0) {
    pst_str text = pst_str_trim((pst_str){data, n});
    size_t blank = pst_str_find(text, PST_STR(" "), 0);
    pst_str first = {text.data, blank == SIZE_MAX ? text.n : blank};
    good = pst_parse_i64(first, INT64_MIN, INT64_MAX, ret_first) == 0;
    if (good && ret_second) {
      good = blank != SIZE_MAX;
      pst_str second = good ? (pst_str){text.data + blank + 1, text.n - blank - 1} : text;
      good = good && pst_parse_i64(second, INT64_MIN, INT64_MAX, ret_second) == 0;
    }
  }
  pst_free(data);
  pst_free(path);
  return good;
}

static int quota_of_dir(const char *dir, bool v2) {
  int64_t quota = 0, period = 0;
  if (v2) /* "max 100000" or "150000 100000" */
    return read_numbers(dir, "cpu.max", &quota, &period) ? quota_cpus(quota, period) : 0;
  if (!read_numbers(dir, "cpu.cfs_quota_us", &quota, NULL) || !read_numbers(dir, "cpu.cfs_period_us", &period, NULL))
    return 0;
  return quota_cpus(quota, period);
}

/* The tightest quota from the group at `group` up to the root of its hierarchy. In a container the group may be named as
 * the host sees it, which does not exist inside; its ancestors, the mount itself last, are looked at all the same. */
static int quota_of_hierarchy(const char *root, pst_str group, bool v2) {
  int least = 0;
  for (;;) {
    char *name = pst_strndup(group.data, group.n);
    char *dir = name ? pst_path_join(root, name) : NULL;
    int here = dir ? quota_of_dir(dir, v2) : 0;
    pst_free(dir);
    pst_free(name);
    if (here > 0 && (least == 0 || here < least)) least = here;
    if (group.n == 0) return least;
    do group.n--;
    while (group.n > 0 && group.data[group.n] != '/');
  }
}

/* Does the comma list of controllers name "cpu"? */
static bool names_cpu(pst_str controllers) {
  size_t at = 0;
  while (at <= controllers.n) {
    size_t comma = pst_str_find(controllers, PST_STR(","), at);
    size_t end = comma == SIZE_MAX ? controllers.n : comma;
    if (pst_str_is((pst_str){controllers.data + at, end - at}, "cpu")) return true;
    at = end + 1;
  }
  return false;
}

int pst_cpu_quota(pst_str proc_cgroup, const char *mount) {
  int least = 0;
  for (size_t at = 0; at < proc_cgroup.n;) { /* lines "id:controllers:group" */
    size_t newline = pst_str_find(proc_cgroup, PST_STR("\n"), at);
    size_t end = newline == SIZE_MAX ? proc_cgroup.n : newline;
    pst_str line = {proc_cgroup.data + at, end - at};
    at = end + 1;
    size_t colon = pst_str_find(line, PST_STR(":"), 0);
    size_t second = colon == SIZE_MAX ? SIZE_MAX : pst_str_find(line, PST_STR(":"), colon + 1);
    if (second == SIZE_MAX) continue;
    pst_str controllers = {line.data + colon + 1, second - colon - 1};
    pst_str group = {line.data + second + 1, line.n - second - 1};
    int here = 0;
    if (controllers.n == 0) {
      here = quota_of_hierarchy(mount, group, true);
    } else if (names_cpu(controllers)) {
      char *root = pst_path_join(mount, "cpu"); /* also a link to "cpu,cpuacct" where they are mounted together */
      here = root ? quota_of_hierarchy(root, group, false) : 0;
      pst_free(root);
    }
    if (here > 0 && (least == 0 || here < least)) least = here;
  }
  return least;
}

int pst_cpu_count(void) {
  int count = affinity_count();
  char *groups = NULL;
  size_t n = 0;
  if (pst_file_read("/proc/self/cgroup", (size_t)1 << 20, &groups, &n, NULL) == 0) {
    int quota = pst_cpu_quota((pst_str){groups, n}, "/sys/fs/cgroup");
    if (quota > 0) count = PST_MIN(count, quota);
    pst_free(groups);
  }
  return PST_MAX(count, 1);
}
