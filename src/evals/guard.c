/* Which items were ever asked in an evaluation: their words go into the store, so that what trains a model is never what judges it. Hashes and not
 * texts: enough to find an item again, even in a store that others read. */
#include "evals/workload.h"

#include <string.h>

int pst_evals_word_hashes(pst_str text, uint64_t **words, size_t *n, size_t *capacity) {
  pst_buf folded = PST_BUF_INIT;
  int code = pst_evals_words(text, &folded);
  pst_str rest = pst_buf_str(&folded);
  while (!code && rest.n) {
    size_t end = PST_MIN(pst_str_find(rest, PST_STR(" "), 0), rest.n);
    code = pst_array_reserve((void **)words, capacity, *n + 1, sizeof **words);
    if (!code) (*words)[(*n)++] = pst_hash64(rest.data, end, 1);
    end = PST_MIN(end + 1, rest.n);
    rest = (pst_str){rest.data + end, rest.n - end};
  }
  pst_buf_done(&folded);
  return code;
}

int pst_evals_guard(pst_store *store, const pst_evals_workload *workload, pst_error *err) {
  const pst_evals_info *info = &workload->info;
  pst_str name = pst_str_from(info->name), fingerprint = pst_str_from(info->fingerprint);
  if (pst_store_guard_known(store, name, fingerprint)) return 0;
  pst_store_guarded *items = pst_calloc(info->n_items + 1, sizeof *items);
  uint64_t *words = NULL;
  size_t n = 0, n_words = 0, capacity = 0;
  int code = items ? 0 : PST_E_NOMEM;
  for (size_t i = 0; i < info->n_items && !code; i++) {
    const pst_evals_item *item = &info->items[i];
    if (item->part == PST_EVALS_EXAMPLES) continue;
    size_t first = n_words;
    code = pst_evals_word_hashes(item->input, &words, &n_words, &capacity);
    items[n++] = (pst_store_guarded){name, item->id, (int)item->part, NULL, n_words - first};
  }
  size_t at = 0;
  for (size_t i = 0; i < n && !code; i++) { /* now that the array stays where it is */
    items[i].words = words + at;
    at += items[i].n_words;
  }
  if (!code) code = pst_store_guard_put(store, name, fingerprint, items, n, err);
  if (code == PST_E_NOMEM) pst_error_set(err, code, NULL, "no memory to guard the items");
  pst_free(items);
  pst_free(words);
  return code;
}
