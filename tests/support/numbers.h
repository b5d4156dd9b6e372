/* The made-up workload that the planner's tests plan for: numbers to be named, and models that might name them. */
#ifndef PST_TESTS_SUPPORT_NUMBERS_H
#define PST_TESTS_SUPPORT_NUMBERS_H

#include <penstock/evals.h>

enum { N_EXAMPLES = 60, N_SEARCH = 200, N_VERIFY = 300, N_ITEMS = N_EXAMPLES + N_SEARCH + N_VERIFY, N_LABELS = 6 };
#define ENCODER_HASH "eeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeeee"
#define ADAPTER "dddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddddd"
#define INDEX_HASH "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define ARTEFACT "cccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccccc"
#define ENCODED_ARTEFACT "eccceccceccceccceccceccceccceccceccceccceccceccceccceccceccceccc"
#define ANSWERS_HASH "5b4c3d2e1f00f1e2d3c4b5a69788796a5b4c3d2e1f00f1e2d3c4b5a69788796a"

/* Trained on the bare input, and twice: once nobody said how. */
#define TUNED                                                                                        \
  {                                                                                                  \
    .name = "small:tuned", .base = "small", .adapter = ADAPTER, .adapter_params = 50,                \
    .trained_with = "{\"layout\":\"plain\",\"prompt\":{\"name\":\"bare\",\"answer_key\":\"Label\"}}" \
  }

/* Its items are there once: part examples first, then search, then verify; of labels in turn. */
pst_evals_info test_numbers(void);

#endif
