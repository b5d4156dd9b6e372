/* One request: its copy of what was asked, and the way from a chosen token to text that is certain.
 *
 * Text goes out when nothing can take it back any more: whole UTF-8 characters, and no suffix that could become a stop string. */
#include "engine/session.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static int check(const pst_engine_model *m, const pst_engine_request *r, int n_ctx, pst_error *err) {
  if (r->n_prompt == 0) return pst_error_set(err, PST_E_BAD_INPUT, "prompt", "the prompt is empty");
  if (r->n_prompt >= (size_t)n_ctx)
    return pst_error_set(err, PST_E_LIMIT, "prompt",
                         "the prompt has %zu tokens; with its answer it must fit the context of %d", r->n_prompt,
                         n_ctx);
  for (size_t i = 0; i < r->n_prompt; i++)
    if (r->prompt[i] < 0 || r->prompt[i] >= m->info.n_vocab)
      return pst_error_set(err, PST_E_BAD_INPUT, "prompt", "token %d at position %zu is not in the vocabulary of %d",
                           r->prompt[i], i, m->info.n_vocab);
  if (r->max_tokens < 0) return pst_error_set(err, PST_E_BAD_INPUT, "max_tokens", "max_tokens must be 0 or more");
  if (r->n_logprobs > PST_ENGINE_MAX_TOP)
    return pst_error_set(err, PST_E_BAD_INPUT, "top_logprobs", "at most %d alternatives", PST_ENGINE_MAX_TOP);
  if (r->adapter && r->adapter->model_key != m->content_key)
    return pst_error_set(err, PST_E_BAD_INPUT, "adapter", "the adapter was opened for another model");
  if (r->choices && r->choices->codes_key != (r->adapter ? pst_engine_codes_key(r->adapter->codes) : 0))
    return pst_error_set(err, PST_E_BAD_INPUT, "choices", "the choices are not spelled in the adapter's codes");
  if (r->speculation == PST_ENGINE_SPEC_ANSWERS && !r->corpus)
    return pst_error_set(err, PST_E_BAD_INPUT, "speculation", "drafts from past answers need their corpus");
  return pst_engine_sampling_check(&r->sampling, m->info.n_vocab, err);
}

static int copy_stops(pst_engine_session *s, const pst_engine_request *r) {
  size_t total = 0;
  for (size_t i = 0; i < r->n_stop; i++) total += r->stop[i].n;
  s->stop = pst_calloc(r->n_stop, sizeof *s->stop);
  s->stop_bytes = pst_malloc(total);
  if (!s->stop || !s->stop_bytes) return PST_E_NOMEM;
  size_t at = 0;
  for (size_t i = 0; i < r->n_stop; i++) {
    if (r->stop[i].n == 0) continue;
    memcpy(s->stop_bytes + at, r->stop[i].data, r->stop[i].n);
    s->stop[s->n_stop++] = (pst_str){s->stop_bytes + at, r->stop[i].n};
    at += r->stop[i].n;
  }
  return 0;
}

/* Is there a token that goes on from these bytes? */
static bool can_go_on(const pst_engine_token_trie *trie, const char *bytes, size_t n) {
  uint32_t at = 0;
  for (size_t i = 0; i < n; i++)
    if (!(at = pst_engine_token_trie_child(trie, at, (uint8_t)bytes[i]))) return false;
  return trie->nodes[at].end > at + 1;
}

/* Takes back up to three tokens at the end of the prompt whose text could have been part of a longer token, and remembers their bytes. */
static int back_up(pst_engine_session *s, const pst_engine_model *m) {
  const pst_engine_token_trie *trie = pst_engine_tokenizer_trie(m->tokenizer);
  if (!trie) return PST_E_NOMEM;
  pst_buf bytes = PST_BUF_INIT, best = PST_BUF_INIT;
  int take = 0;
  for (int k = 1; k <= 3 && k < s->seq.n_tokens; k++) {
    pst_buf_clear(&bytes);
    bool text = true;
    for (int i = s->seq.n_tokens - k; i < s->seq.n_tokens; i++) {
      text &= !(pst_engine_tokenizer_attributes(m->tokenizer, s->seq.tokens[i]) &
                (PST_ENGINE_TOKEN_CONTROL | PST_ENGINE_TOKEN_UNKNOWN));
      pst_buf_append_str(&bytes, pst_engine_tokenizer_bytes(m->tokenizer, s->seq.tokens[i]));
    }
    if (!text || !can_go_on(trie, pst_buf_text(&bytes), bytes.n)) break;
    take = k;
    pst_buf_clear(&best);
    pst_buf_append_str(&best, pst_buf_str(&bytes));
  }
  int code = pst_buf_status(&bytes) ? PST_E_NOMEM : pst_buf_status(&best);
  if (!code && take) {
    s->seq.n_tokens -= take;
    s->seq.n_prompt -= take;
    s->n_healed = take;
    s->n_heal = best.n;
    s->heal = pst_buf_take(&best);
    if (!s->heal) code = PST_E_NOMEM;
  }
  pst_buf_done(&bytes);
  pst_buf_done(&best);
  return code;
}

int pst_engine_session_create(const pst_engine_model *m, const pst_engine_request *r, int n_ctx,
                              pst_engine_session **ret_session, pst_error *err) {
  int code = check(m, r, n_ctx, err);
  if (code) return code;
  pst_engine_session *s = pst_calloc(1, sizeof *s);
  if (!s) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the request");
  int room = n_ctx - (int)r->n_prompt;
  s->max_tokens = r->max_tokens;
  s->seq.n_max = (int)r->n_prompt + PST_MIN(r->max_tokens, room);
  s->seq.tokens = pst_calloc((size_t)s->seq.n_max + PST_ENGINE_MAX_DRAFT + 1, sizeof *s->seq.tokens);
  size_t n_pages = ((size_t)s->seq.n_max + PST_ENGINE_PAGE - 1) / PST_ENGINE_PAGE;
  s->seq.pages = pst_calloc(n_pages, sizeof *s->seq.pages);
  s->page_memory = pst_calloc(n_pages, sizeof *s->page_memory);
  s->state = -1;
  s->bias = pst_malloc(r->sampling.n_bias * sizeof *s->bias);
  code = s->seq.tokens && s->seq.pages && s->page_memory && s->bias ? copy_stops(s, r) : PST_E_NOMEM;
  if (code) goto done;
  memcpy(s->seq.tokens, r->prompt, r->n_prompt * sizeof *r->prompt);
  s->seq.n_prompt = s->seq.n_tokens = s->n_prompt_given = (int)r->n_prompt;
  s->seq.priority = r->priority;
  s->seq.salt = pst_random_u64(m->content_key, r->prefix_salt, r->adapter ? r->adapter->key : 0);
  s->seq.score_prompt = r->score_prompt;
  s->sampling = r->sampling;
  if (r->sampling.n_bias) memcpy(s->bias, r->sampling.bias, r->sampling.n_bias * sizeof *s->bias);
  s->sampling.bias = s->bias;
  if (r->adapter) s->adapter = pst_engine_adapter_ref(r->adapter);
  if (r->choices) s->choices = pst_engine_choices_ref(r->choices);
  s->strip_space = r->choices != NULL;
  s->ignore_end = r->ignore_end;
  s->speculation = r->speculation;
  if (r->speculation == PST_ENGINE_SPEC_ANSWERS) s->corpus = pst_engine_corpus_ref(r->corpus);
  pst_engine_drafter_init(&s->drafter, s->corpus);
  s->n_logprobs = r->n_logprobs;
  s->callback = r->callback;
  s->user = r->user;
  s->margin = NAN;
  s->submit_us = pst_clock_us();
  bool coded = r->adapter && r->adapter->codes; /* a code is not the text it has in the vocabulary */
  if (r->heal && !r->choices && !r->score_prompt && !coded) code = back_up(s, m);
done:
  if (code) {
    pst_engine_session_free(s);
    return pst_error_set(err, code, NULL, "no memory for the request");
  }
  *ret_session = s;
  return 0;
}

void pst_engine_session_free(pst_engine_session *s) {
  if (!s) return;
  pst_engine_adapter_unref(s->adapter);
  pst_engine_choices_unref(s->choices);
  pst_engine_corpus_unref(s->corpus);
  pst_buf_done(&s->text);
  pst_free(s->seq.tokens);
  pst_free(s->seq.pages);
  pst_free(s->page_memory);
  pst_free(s->bias);
  pst_free(s->stop);
  pst_free(s->stop_bytes);
  pst_free(s->heal);
  pst_free(s);
}

static int by_id(const void *a, const void *b) {
  return (*(const int32_t *)a > *(const int32_t *)b) - (*(const int32_t *)a < *(const int32_t *)b);
}

/* Tokens that write the first bytes of what was backed up, or all of it and more. */
static int allowed_by_heal(const pst_engine_session *s, const pst_engine_model *m, int32_t *ret) {
  const pst_engine_token_trie *trie = pst_engine_tokenizer_trie(m->tokenizer);
  uint32_t at = 0;
  int n = 0;
  for (size_t i = 0; i < s->n_heal; i++) {
    at = pst_engine_token_trie_child(trie, at, (uint8_t)s->heal[i]);
    if (!at) break;
    uint32_t end = i + 1 < s->n_heal ? trie->nodes[at + 1].first : trie->nodes[trie->nodes[at].end].first;
    for (uint32_t k = trie->nodes[at].first; k < end; k++) ret[n++] = trie->ids[k];
  }
  qsort(ret, (size_t)n, sizeof *ret, by_id);
  return n;
}

int pst_engine_session_allowed(const pst_engine_session *s, const pst_engine_model *m, int32_t *ret) {
  if (s->choices) return pst_engine_choices_allowed(s->choices, s->choice_node, ret);
  if (s->n_heal) return allowed_by_heal(s, m, ret);
  return -1;
}

/* ---- events ---- */

static void send(pst_engine_session *s, pst_engine_event *e) {
  e->request_id = s->id;
  if (s->callback) s->callback(s->user, e);
}

/* Length of the longest end of `text` that begins a stop string. */
static size_t held_back(const pst_engine_session *s, pst_str text) {
  size_t held = 0;
  for (size_t i = 0; i < s->n_stop; i++)
    for (size_t n = PST_MIN(s->stop[i].n - 1, text.n); n > held; n--)
      if (!memcmp(text.data + text.n - n, s->stop[i].data, n)) held = n;
  return held;
}

static size_t find_stop(const pst_engine_session *s, pst_str text) {
  size_t first = SIZE_MAX;
  for (size_t i = 0; i < s->n_stop; i++) first = PST_MIN(first, pst_str_find(text, s->stop[i], 0));
  return first;
}

static void fill_logprobs(const pst_engine_session *s, const pst_engine_model *m, int32_t token, const float *raw,
                          pst_engine_event *e, pst_engine_top top[PST_ENGINE_MAX_TOP]) {
  if (s->n_logprobs < 0 || !raw) return;
  double log_sum = pst_engine_log_sum_exp(raw, m->info.n_vocab);
  e->logprob = (float)((double)raw[token] - log_sum);
  e->n_top = (size_t)PST_MIN(s->n_logprobs, m->info.n_vocab);
  if (e->n_top) pst_engine_top_logprobs(raw, m->info.n_vocab, log_sum, (int)e->n_top, top);
  e->top = top;
}

/* A token's text in this answer. */
static pst_str text_of(const pst_engine_session *s, const pst_engine_model *m, int32_t token) {
  pst_str text = pst_engine_adapter_code_text(s->adapter, token);
  return text.data ? text : pst_engine_tokenizer_bytes(m->tokenizer, token);
}

/* The bytes a token adds to the answer: without what was healed, and without the space that parts a choice from the prompt. */
static pst_str new_bytes(pst_engine_session *s, const pst_engine_model *m, int32_t token) {
  if (pst_engine_tokenizer_attributes(m->tokenizer, token) & PST_ENGINE_TOKEN_CONTROL) return (pst_str){"", 0};
  pst_str bytes = text_of(s, m, token);
  if (s->n_heal) {
    size_t again = PST_MIN(bytes.n, s->n_heal);
    memmove(s->heal, s->heal + again, s->n_heal -= again);
    bytes = (pst_str){bytes.data + again, bytes.n - again};
  }
  if (s->strip_space && bytes.n) {
    s->strip_space = false;
    if (bytes.data[0] == ' ') bytes = (pst_str){bytes.data + 1, bytes.n - 1};
  }
  return bytes;
}

void pst_engine_session_score(pst_engine_session *s, const pst_engine_model *m, int32_t token, const float *raw) {
  pst_engine_top top[PST_ENGINE_MAX_TOP];
  pst_engine_event e = {0};
  e.token = token;
  e.token_text = pst_engine_tokenizer_bytes(m->tokenizer, token);
  double log_sum = pst_engine_log_sum_exp(raw, m->info.n_vocab);
  e.logprob = (float)((double)raw[token] - log_sum);
  e.n_top = (size_t)PST_MAX(s->n_logprobs, 0);
  if (e.n_top) pst_engine_top_logprobs(raw, m->info.n_vocab, log_sum, (int)e.n_top, top);
  e.top = top;
  send(s, &e);
}

/* Where the choice list stands after a token; STOP when the text is complete. */
static pst_engine_finish walk_choices(pst_engine_session *s, int32_t token) {
  int next = pst_engine_choices_step(s->choices, s->choice_node, token);
  if (next < 0) return PST_ENGINE_FINISH_STOP; /* an end token where one was allowed */
  s->choice_node = next;
  return pst_engine_choices_is_leaf(s->choices, next) ? PST_ENGINE_FINISH_STOP : PST_ENGINE_FINISH_NONE;
}

pst_engine_finish pst_engine_session_accept(pst_engine_session *s, const pst_engine_model *m, int32_t token,
                                            const float *raw) {
  pst_engine_finish finish = PST_ENGINE_FINISH_NONE;
  bool end = !s->ignore_end && (pst_engine_tokenizer_attributes(m->tokenizer, token) & PST_ENGINE_TOKEN_END);
  s->seq.tokens[s->seq.n_tokens++] = token;
  s->n_completion++;
  if (!s->first_us) s->first_us = pst_clock_us();
  if (s->choices) {
    bool closing = pst_engine_choices_step(s->choices, s->choice_node, token) < 0;
    finish = walk_choices(s, token);
    if (closing) return finish;
  }
  if (end) return PST_ENGINE_FINISH_STOP;
  pst_engine_top top[PST_ENGINE_MAX_TOP];
  pst_engine_event e = {0};
  e.token = token;
  e.token_text = text_of(s, m, token);
  fill_logprobs(s, m, token, raw, &e, top);
  pst_engine_text_stream_push(&s->stream, new_bytes(s, m, token), &s->text);
  size_t stop = find_stop(s, pst_buf_str(&s->text)), ready;
  if (stop != SIZE_MAX) {
    finish = PST_ENGINE_FINISH_STOP;
    s->text.n = ready = stop;
  } else {
    ready = s->text.n - held_back(s, pst_buf_str(&s->text));
  }
  e.text = (pst_str){pst_buf_text(&s->text), ready};
  send(s, &e);
  if (ready) memmove(s->text.data, s->text.data + ready, s->text.n - ready);
  s->text.n -= ready;
  if (stop != SIZE_MAX) s->stream.n_held = 0;
  if (finish == PST_ENGINE_FINISH_NONE && (s->n_completion >= s->max_tokens || s->seq.n_tokens >= s->seq.n_max))
    finish = PST_ENGINE_FINISH_LENGTH;
  return finish;
}

void pst_engine_session_end(pst_engine_session *s, pst_engine_finish finish, const pst_error *error) {
  pst_engine_event e = {0};
  int64_t now = pst_clock_us();
  pst_engine_text_stream_finish(&s->stream, &s->text);
  e.token = -1;
  e.text = pst_buf_str(&s->text);
  e.finish = finish;
  e.error = error;
  e.n_prompt = s->n_prompt_given;
  e.n_cached = s->seq.n_cached;
  e.n_completion = s->n_completion;
  e.n_drafted = s->n_drafted;
  e.n_accepted = s->n_accepted;
  e.n_steps = s->n_steps;
  e.n_token_steps = s->n_token_steps;
  e.queued_us = (s->admit_us ? s->admit_us : now) - s->submit_us;
  e.first_token_us = (s->first_us ? s->first_us : now) - s->submit_us;
  e.total_us = now - s->submit_us;
  e.busy_us = (int64_t)ceil(s->busy_us);
  e.margin = s->margin;
  send(s, &e);
}
