/* What the files of base share with each other and with their tests, and with nobody else. */
#ifndef PENSTOCK_BASE_INTERNAL_H
#define PENSTOCK_BASE_INTERNAL_H

#include <penstock/base.h>

/* CPUs that the cgroup's quota is worth, rounded up; 0 when there is no quota. `proc_cgroup` is the text of
 * /proc/self/cgroup, `mount` the directory where the hierarchies are mounted (/sys/fs/cgroup). */
int pst_cpu_quota(pst_str proc_cgroup, const char *mount);

/* Shortest decimal digits d1 d2 ... dn (no leading or trailing zero; "0" for zero) with |value| = 0.d1d2...dn * 10^*ret_point.
 * `value` must be finite; its sign is dropped. Returns n. */
int pst_double_digits(double value, char ret_digits[24], int *ret_point);

/* ECMAScript's Number::toString of a finite number (RFC 8785, section 3.2.2.3). Returns the bytes written. */
size_t pst_double_text(double value, char ret_text[40]);

#endif
