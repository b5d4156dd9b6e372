/* Fork and join over a range. What is computed must not depend on where the range is cut: then it does not depend on the number of threads either. */
#ifndef PST_CLASSIFIER_PARALLEL_H
#define PST_CLASSIFIER_PARALLEL_H

#include <stddef.h>

enum { PST_CLASSIFIER_MAX_THREADS = 64 };

/* Calls fn(arg, first, end) on disjoint ranges that cover [0, n), one on the calling thread; returns when all have returned. A thread that cannot be started
 * is done without. */
void pst_classifier_parallel(int n_threads, size_t n, void (*fn)(void *arg, size_t first, size_t end), void *arg);

#endif
