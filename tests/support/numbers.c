#include "support/numbers.h"

#include <stdio.h>
#include <string.h>

static pst_evals_item items[N_ITEMS];
static char ids[N_ITEMS][8];
static const pst_str labels[N_LABELS] = {{"one", 3}, {"two", 3}, {"three", 5}, {"four", 4}, {"five", 4}, {"six", 3}};
static pst_evals_prompt prompts[3];

pst_evals_info test_numbers(void) {
  static const char *const names[] = {"a", "b", "c"};
  for (size_t i = 0; i < 3; i++) {
    prompts[i].name = pst_str_from(names[i]);
    prompts[i].instruction = PST_STR("Which number?");
  }
  for (int i = 0; i < N_ITEMS; i++) {
    snprintf(ids[i], sizeof ids[i], "i%03d", i);
    items[i].id = pst_str_from(ids[i]);
    items[i].input = items[i].id;
    items[i].expected = labels[i % N_LABELS];
    items[i].part = i < N_EXAMPLES              ? PST_EVALS_EXAMPLES
                    : i < N_EXAMPLES + N_SEARCH ? PST_EVALS_SEARCH
                                                : PST_EVALS_VERIFY;
  }
  pst_evals_info w = {.name = "numbers",
                      .description = "made up",
                      .folder = ".",
                      .labels = labels,
                      .n_labels = N_LABELS,
                      .prompts = prompts,
                      .n_prompts = 3,
                      .goal = {0.6, 0.03, true, "cost", 2000, 0, 0},
                      .monthly_requests = 100000,
                      .max_tokens = 12,
                      .items = items,
                      .n_items = N_ITEMS};
  memset(w.fingerprint, 'f', 64);
  w.fingerprint[64] = '\0';
  return w;
}
