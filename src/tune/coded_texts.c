/* Texts to learn with their answers in output codes: by a table that is given, or by one made of them where that is worth it.
 *
 * Owns what of a text may be coded and which tokens are free to be codes; which pieces deserve one is decided in codes.c. Prompts stay as they are. */
#include <string.h>

#include "tune/codes.h"

static int no_memory(pst_error *err) { return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for coded texts"); }

/* The part of a text that codes may stand in: of an answer that a constraint chooses not what ends it, which the constraint's texts do not have. */
static pst_tune_span span_of(const pst_tune_coding *c, const pst_tune_text *t) {
  size_t end = c->n_labels ? 1 : 0, n = t->n - t->n_given;
  return (pst_tune_span){t->tokens + t->n_given, n - PST_MIN(n, end)};
}

/* How often each token occurs in the texts, and labels that no example has. */
static int count_tokens(const pst_engine_model *model, const pst_tune_coding *c, const pst_tune_text *texts, size_t n,
                        uint32_t *seen, pst_error *err) {
  pst_engine_tokens t = {0};
  pst_buf text = PST_BUF_INIT;
  int code = 0;
  for (size_t i = 0; i < n; i++)
    for (size_t k = 0; k < texts[i].n; k++) seen[texts[i].tokens[k]]++;
  for (size_t i = 0; i < c->n_labels && !code; i++)
    for (int space = 0; space < 2 && !code; space++) {
      pst_buf_clear(&text);
      pst_buf_puts(&text, space ? " " : "");
      pst_buf_append_str(&text, c->labels[i]);
      t.n = 0;
      code = pst_buf_status(&text) ? no_memory(err)
                                   : pst_engine_tokenize(model, pst_buf_str(&text), false, false, &t, err);
      for (size_t k = 0; k < t.n && !code; k++) seen[t.ids[k]]++;
    }
  pst_engine_tokens_done(&t);
  pst_buf_done(&text);
  return code;
}

/* Of the first n_learned; *ret_codes NULL: nothing is frequent enough. */
static int learn(const pst_engine_model *model, const pst_tune_coding *c, const pst_tune_text *texts, size_t n,
                 size_t n_learned, pst_engine_codes **ret_codes, pst_error *err) {
  size_t n_free = 0;
  int32_t *free_tokens = NULL;
  uint32_t *seen = pst_calloc((size_t)pst_engine_model_get_info(model)->n_vocab, sizeof *seen);
  pst_tune_span *spans = pst_calloc(n_learned + 1, sizeof *spans);
  int code = seen && spans ? count_tokens(model, c, texts, n, seen, err) : no_memory(err);
  for (size_t i = 0; i < n_learned && !code; i++) spans[i] = span_of(c, &texts[i]);
  if (!code) code = pst_tune_codes_free_tokens(model, seen, c->most, &free_tokens, &n_free, err);
  if (!code) code = pst_tune_codes_learn(model, spans, n_learned, free_tokens, n_free, c->most, ret_codes, err);
  pst_free(free_tokens);
  pst_free(spans);
  pst_free(seen);
  return code;
}

/* The texts with coded answers, and where each begins; *ret_saved: share of the answers' tokens. */
static int encode(const pst_engine_codes *codes, const pst_tune_coding *c, const pst_tune_text *texts, size_t n,
                  pst_engine_tokens *out, size_t *starts, double *ret_saved, pst_error *err) {
  size_t plain = 0, coded = 0;
  int code = 0;
  for (size_t i = 0; i < n && !code; i++) {
    const pst_tune_text *t = &texts[i];
    pst_tune_span span = span_of(c, t);
    size_t n_end = t->n - t->n_given - span.n;
    starts[i] = out->n;
    code = pst_engine_tokens_append(out, t->tokens, t->n_given, err);
    if (!code) code = pst_engine_codes_encode(codes, span.tokens, span.n, out, err);
    if (!code) code = pst_engine_tokens_append(out, t->tokens + t->n - n_end, n_end, err);
    plain += t->n - t->n_given;
    coded += out->n - starts[i] - t->n_given;
  }
  starts[n] = out->n;
  *ret_saved = plain ? 1 - (double)coded / (double)plain : 0;
  return code;
}

int pst_tune_texts_code(const pst_engine_model *model, const pst_tune_coding *c, pst_tune_text *texts, size_t n,
                        size_t n_learned, int32_t **ret_tokens, pst_engine_codes **ret_codes, pst_error *err) {
  pst_engine_tokens coded = {0};
  pst_engine_codes *codes = NULL;
  double saved = 0;
  int code = c->given  ? pst_engine_codes_parse(pst_str_from(c->given), &codes, err)
             : c->most ? learn(model, c, texts, n, n_learned, &codes, err)
                       : 0;
  size_t *starts = !code && codes ? pst_calloc(n + 1, sizeof *starts) : NULL;
  if (!code && codes) code = starts ? encode(codes, c, texts, n, &coded, starts, &saved, err) : no_memory(err);
  if (!code && codes && (c->given || saved >= c->from)) {
    for (size_t i = 0; i < n; i++) {
      texts[i].tokens = coded.ids + starts[i];
      texts[i].n = starts[i + 1] - starts[i];
    }
    *ret_tokens = coded.ids;
    coded.ids = NULL;
    *ret_codes = codes;
    codes = NULL;
  }
  pst_engine_codes_free(codes);
  pst_free(starts);
  pst_engine_tokens_done(&coded);
  return code;
}
