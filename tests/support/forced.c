/* Teacher forcing over engine/forward.h: one sequence, pages of its own, all states kept. Rows of the head are computed
 * PST_ENGINE_HEAD_ROWS at a time and handed out one by one. */
#include "support/forced.h"

#include "engine/forward.h"

struct test_forced {
  pst_engine_forward *forward;
  uint8_t **pages;
  uint8_t *page_memory;
  float *logits; /* [PST_ENGINE_HEAD_ROWS][n_vocab] of positions first.. */
  size_t n_vocab;
  int window, n, first; /* first -1: none computed yet */
};

int test_forced_open(pst_engine_model *model, int window, int threads, test_forced **ret_forced, pst_error *err) {
  test_forced *f = pst_calloc(1, sizeof *f);
  if (!f) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory");
  size_t n_pages = ((size_t)window + PST_KERNELS_PAGE - 1) / PST_KERNELS_PAGE;
  size_t page_bytes = pst_engine_forward_page_bytes(model, PST_ENGINE_KV_F16);
  f->window = window;
  f->n_vocab = (size_t)pst_engine_model_get_info(model)->n_vocab;
  f->pages = pst_calloc(n_pages, sizeof *f->pages);
  f->page_memory = pst_malloc_aligned(n_pages * page_bytes, 64);
  f->logits = pst_calloc(PST_ENGINE_HEAD_ROWS * f->n_vocab, sizeof *f->logits);
  int code = 0;
  if (!f->pages || !f->page_memory || !f->logits) code = pst_error_set(err, PST_E_NOMEM, NULL, "no memory");
  if (!code)
    code = pst_engine_forward_create(model, PST_ENGINE_KV_F16, window, 1, window, window,
                                     threads ? threads : pst_cpu_count(), &f->forward, err);
  if (code) {
    test_forced_close(f);
    return code;
  }
  for (size_t i = 0; i < n_pages; i++) f->pages[i] = f->page_memory + i * page_bytes;
  *ret_forced = f;
  return 0;
}

void test_forced_close(test_forced *f) {
  if (!f) return;
  pst_engine_forward_free(f->forward);
  pst_free(f->pages);
  pst_free(f->page_memory);
  pst_free(f->logits);
  pst_free(f);
}

void test_forced_run(test_forced *f, const int32_t *tokens, int n) {
  pst_engine_forward_item item = {.tokens = tokens, .first = 0, .n = n, .n_logits = n, .pages = f->pages};
  pst_engine_forward_run(f->forward, &item, 1);
  f->n = n;
  f->first = -1;
}

const float *test_forced_logits(test_forced *f, int at) {
  int first = at / PST_ENGINE_HEAD_ROWS * PST_ENGINE_HEAD_ROWS;
  if (first != f->first)
    pst_engine_forward_logits(f->forward, first, PST_MIN(PST_ENGINE_HEAD_ROWS, f->n - first), NULL, 0, f->logits);
  f->first = first;
  return f->logits + (size_t)(at - first) * f->n_vocab;
}
