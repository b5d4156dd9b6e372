/* The likelihood gap: by how much a model finds an answer likelier behind its question than by itself, per token. Where that is nothing, the question has little to do with the answer:
 * it is wrong, empty, or the same whatever is asked (instruction-following difficulty: Li et al. 2023, arXiv:2308.12032). */
#include <math.h>
#include <string.h>

#include <penstock/wire.h>

#include "data/curate.h"

enum { AT_ONCE = 128 };

typedef struct portion {
  pst_data_candidate *candidates[AT_ONCE];
  pst_wire_request requests[AT_ONCE];
  pst_gateway_likelihood items[AT_ONCE];
  size_t n;
} portion;

/* The conversation with its answer, in messages. */
static void write_body(const pst_data_example *e, pst_buf *out) {
  pst_json_writer w = pst_json_writer_on(out, false);
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "model", "any");
  pst_json_key(&w, "messages");
  pst_json_begin_array(&w);
  for (pst_json_iter it = pst_json_iterate(e->messages); pst_json_next(&it);) pst_json_put_value(&w, it.value);
  if (!e->messages) {
    pst_json_begin_object(&w);
    pst_json_member_cstr(&w, "role", "user");
    pst_json_member_str(&w, "content", e->prompt);
    pst_json_end_object(&w);
  }
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "role", "assistant");
  pst_json_member_str(&w, "content", e->answer);
  pst_json_end_object(&w);
  pst_json_end_array(&w);
  pst_json_end_object(&w);
}

/* Adds a candidate that can be read: an answer of plain text to a conversation of texts. */
static int add(const pst_data_curation *c, portion *p, pst_data_candidate *x) {
  pst_json_doc *input = NULL, *output = NULL;
  pst_data_example e;
  pst_buf body = PST_BUF_INIT;
  pst_error why = PST_ERROR_INIT;
  int code = pst_json_parse(x->input.data, x->input.n, "input", &input, c->err);
  if (!code) code = pst_json_parse(x->output.data, x->output.n, "output", &output, c->err);
  bool readable = !code && !pst_data_example_of(pst_json_root(input), pst_json_root(output), x->correction, &e) &&
                  !e.tool_calls && !e.tools;
  if (readable) write_body(&e, &body);
  if (!code && pst_buf_status(&body)) code = PST_E_NOMEM;
  if (!code && readable) {
    int parsed = pst_wire_request_parse(PST_WIRE_CHAT, pst_buf_str(&body), &p->requests[p->n], &why);
    if (!parsed) {
      p->items[p->n] = (pst_gateway_likelihood){.chat = &p->requests[p->n].chat};
      p->candidates[p->n++] = x;
    }
    code = parsed == PST_E_NOMEM ? parsed : 0;
  }
  pst_json_free(input);
  pst_json_free(output);
  pst_buf_done(&body);
  return code;
}

static int judge(pst_data_curation *c, portion *p) {
  const pst_data_curate_options *o = c->options;
  int code = p->n ? pst_gateway_likelihoods(o->gateway, o->gap_model, p->items, p->n, c->err) : 0;
  for (size_t i = 0; i < p->n; i++) {
    pst_data_candidate *x = p->candidates[i];
    double gap = p->items[i].asked - p->items[i].alone;
    pst_wire_request_done(&p->requests[i]);
    if (code || !isfinite(gap)) continue;
    x->gap = gap;
    x->low_gap = gap <= o->least_gap;
    c->done.n_gaps++;
    c->done.n_low_gaps += x->low_gap;
    c->done.gap_sum += gap;
    if (x->low_gap && !o->flag_gaps) x->reason = PST_DATA_GAP;
  }
  p->n = 0;
  return code;
}

int pst_data_judge_likelihood(pst_data_curation *c) {
  portion *p = pst_calloc(1, sizeof *p);
  int code = p ? 0 : PST_E_NOMEM;
  for (size_t i = 0; i < c->n && !code; i++) {
    if (c->list[i].reason != PST_DATA_KEPT) continue;
    code = add(c, p, &c->list[i]);
    if (!code && p->n == AT_ONCE) code = judge(c, p);
  }
  if (!code) code = judge(c, p);
  for (size_t i = 0; p && i < p->n; i++) pst_wire_request_done(&p->requests[i]);
  pst_free(p);
  return code == PST_E_NOMEM ? pst_data_no_memory(c) : code;
}
