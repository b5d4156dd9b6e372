/* Traffic of random tokens below 256, for tiny models. */
#ifndef PST_TESTS_SUPPORT_TRAFFIC_H
#define PST_TESTS_SUPPORT_TRAFFIC_H

#include <penstock/tune_calibrate.h>

/* n_texts texts of `length` tokens, at most 256, n_given of them the prompt; `seed` decides all. The caller's. Aborts on failure. */
pst_tune_traffic test_traffic(uint64_t seed, size_t n_texts, size_t length, size_t n_given);

#endif
