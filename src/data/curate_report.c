/* The report of a curation: JSON with examples of each reason, and the same as text. What is kept in the store names records by number only, so that
 * deleting a record leaves nothing of it in a report. */
#include <string.h>

#include "data/curate.h"

enum { TEXT_BYTES = 160, EXAMPLES = 3, SUSPECTS_MOST = 1000 };

/* A text's beginning, with placeholders where the set has them. */
static void put_text(pst_data_curation *c, pst_json_writer *w, const char *name, pst_str text) {
  pst_buf safe = PST_BUF_INIT;
  if (c->options->keep_pii)
    pst_buf_append_str(&safe, text);
  else if (pst_data_placeholders_apply(c->placeholders, text, &safe, NULL))
    safe.failed = true;
  pst_str s = pst_buf_str(&safe);
  bool cut = s.n > TEXT_BYTES;
  if (cut) s.n = TEXT_BYTES - pst_utf8_incomplete_tail((pst_str){s.data, TEXT_BYTES});
  safe.n = s.n;
  if (cut) pst_buf_puts(&safe, "\xe2\x80\xa6");
  pst_json_member_str(w, name, pst_buf_str(&safe));
  if (safe.failed) w->out->failed = true;
  pst_buf_done(&safe);
}

static void put_candidate(pst_data_curation *c, pst_json_writer *w, const pst_data_candidate *x, bool texts) {
  pst_json_member_int(w, "record", x->record);
  if (!texts) return;
  put_text(c, w, "text", x->text);
  put_text(c, w, "answer", x->answer);
}

/* What a model found of answers behind their questions and without: numbers, and those that gain too little. */
static void put_gaps(pst_data_curation *c, pst_json_writer *w, bool texts) {
  int most = SUSPECTS_MOST;
  if (!c->options->gap_model) return;
  pst_json_key(w, "likelihood");
  pst_json_begin_object(w);
  pst_json_member_cstr(w, "model", c->options->gap_model);
  pst_json_member_int(w, "examined", c->done.n_gaps);
  pst_json_member_int(w, "low", c->done.n_low_gaps);
  pst_json_member_double(w, "least_gap", c->options->least_gap);
  pst_json_member_double(w, "mean_gap", c->done.n_gaps ? c->done.gap_sum / (double)c->done.n_gaps : 0);
  pst_json_key(w, "answers");
  pst_json_begin_array(w);
  for (size_t i = 0; i < c->n && most > 0; i++) {
    if (!c->list[i].low_gap) continue;
    pst_json_begin_object(w);
    put_candidate(c, w, &c->list[i], texts);
    pst_json_member_double(w, "gap", c->list[i].gap);
    pst_json_end_object(w);
    most--;
  }
  pst_json_end_array(w);
  pst_json_end_object(w);
}

static void put_example(pst_data_curation *c, pst_json_writer *w, const pst_data_candidate *x, bool texts) {
  pst_json_begin_object(w);
  put_candidate(c, w, x, texts);
  if (x->reason == PST_DATA_CONTAMINATED) {
    pst_json_member_str(w, "item", c->guards[x->other].item);
    pst_json_member_str(w, "workload", c->guards[x->other].workload);
  } else if (x->other >= 0) {
    pst_json_member_int(w, "like", x->other);
  }
  pst_json_end_object(w);
}

static void put_reason(pst_data_curation *c, pst_json_writer *w, pst_data_reason reason, bool texts) {
  int most = c->options->n_examples > 0 ? c->options->n_examples : EXAMPLES;
  pst_json_begin_object(w);
  pst_json_member_cstr(w, "reason", pst_data_reason_name(reason));
  pst_json_member_int(w, "n", c->done.n_by_reason[reason]);
  pst_json_key(w, "examples");
  pst_json_begin_array(w);
  for (size_t i = 0; i < c->n && most > 0; i++) {
    if (c->list[i].reason != reason) continue;
    put_example(c, w, &c->list[i], texts);
    most--;
  }
  pst_json_end_array(w);
  pst_json_end_object(w);
}

static void put_suspects(pst_data_curation *c, pst_json_writer *w, bool texts) {
  int most = SUSPECTS_MOST;
  pst_json_key(w, "suspects");
  pst_json_begin_array(w);
  for (size_t i = 0; i < c->n && most > 0; i++) {
    const pst_data_candidate *x = &c->list[i];
    if (!x->suspect) continue;
    pst_json_begin_object(w);
    put_candidate(c, w, x, texts);
    pst_json_member_str(w, "likely", x->opinion.label);
    pst_json_member_double(w, "probability", x->opinion.probability);
    pst_json_member_double(w, "own", x->opinion.own);
    pst_json_end_object(w);
    most--;
  }
  pst_json_end_array(w);
}

void pst_data_report_write(pst_data_curation *c, bool texts, pst_buf *out) {
  const pst_data_curated *d = &c->done;
  const struct {
    const char *name;
    int64_t value;
  } counts[] = {{"records", d->n_records},
                {"kept", d->n_by_reason[PST_DATA_KEPT]},
                {"held", d->n_held},
                {"corrected", d->n_corrected},
                {"pairs", d->n_pairs},
                {"liked", d->n_liked},
                {"disliked", d->n_disliked},
                {"clusters", d->n_clusters},
                {"labels", d->n_labels},
                {"guarded_items", d->n_guarded},
                {"pairs_compared", d->n_verified},
                {"wall_ms", d->wall_ms}};
  pst_json_writer w = pst_json_writer_on(out, true);
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "data_set", d->hash[0] ? d->hash : NULL);
  pst_json_member_str(&w, "workload", c->options->workload);
  for (size_t i = 0; i < PST_ARRAY_LEN(counts); i++) pst_json_member_int(&w, counts[i].name, counts[i].value);
  pst_json_key(&w, "dropped");
  pst_json_begin_array(&w);
  for (int r = PST_DATA_KEPT + 1; r < PST_DATA_REASON_COUNT; r++)
    if (d->n_by_reason[r]) put_reason(c, &w, (pst_data_reason)r, texts);
  pst_json_end_array(&w);
  pst_json_key(&w, "private");
  pst_json_begin_object(&w);
  for (int k = 0; k < PST_DATA_PII_COUNT; k++)
    if (d->n_pii[k]) pst_json_member_int(&w, pst_data_pii_name((pst_data_pii)k), d->n_pii[k]);
  pst_json_end_object(&w);
  put_suspects(c, &w, texts);
  put_gaps(c, &w, texts);
  pst_json_end_object(&w);
}

/* ---- as text ---- */

static int64_t number(const pst_json *object, const char *name) { return pst_json_int(pst_json_get(object, name), 0); }

/* On one line, whatever stands in it. */
static void put_quoted(const pst_json *text, pst_buf *out) {
  pst_str s = pst_json_str(text);
  for (size_t i = 0; i < s.n; i++)
    pst_buf_putc(out, (unsigned char)s.data[i] < 0x20 || s.data[i] == 0x7f ? ' ' : s.data[i]);
}

static void put_example_text(const pst_json *e, pst_buf *out) {
  pst_buf_printf(out, "      %lld: ", (long long)number(e, "record"));
  put_quoted(pst_json_get(e, "text"), out);
  pst_buf_puts(out, "  =>  ");
  put_quoted(pst_json_get(e, "answer"), out);
  if (pst_json_get(e, "like")) pst_buf_printf(out, "  (record %lld stays)", (long long)number(e, "like"));
  if (pst_json_get(e, "item")) {
    pst_buf_puts(out, "  (item ");
    put_quoted(pst_json_get(e, "item"), out);
    pst_buf_puts(out, " of ");
    put_quoted(pst_json_get(e, "workload"), out);
    pst_buf_putc(out, ')');
  }
  pst_buf_putc(out, '\n');
}

static void put_suspects_text(const pst_json *suspects, pst_buf *out) {
  size_t n = pst_json_size(suspects), shown = 0;
  if (!n) return;
  pst_buf_printf(out, "\n%zu labels to look at; a classifier that was not shown them says otherwise:\n", n);
  for (pst_json_iter it = pst_json_iterate(suspects); shown < 10 && pst_json_next(&it); shown++) {
    pst_buf_printf(out, "      %lld: ", (long long)number(it.value, "record"));
    put_quoted(pst_json_get(it.value, "text"), out);
    pst_buf_puts(out, "  =>  ");
    put_quoted(pst_json_get(it.value, "answer"), out);
    pst_buf_puts(out, "; likely ");
    put_quoted(pst_json_get(it.value, "likely"), out);
    pst_buf_printf(out, " (%.0f%%)\n", 100 * pst_json_double(pst_json_get(it.value, "probability"), 0));
  }
  if (n > shown) pst_buf_printf(out, "      and %zu more: --json lists them\n", n - shown);
}

static void put_gaps_text(const pst_json *g, pst_buf *out) {
  const pst_json *answers = pst_json_get(g, "answers");
  size_t n = pst_json_size(answers), shown = 0;
  if (!g) return;
  pst_str model = pst_json_str(pst_json_get(g, "model"));
  pst_buf_printf(out,
                 "\nby %.*s %lld of %lld answers gain no more than %.3g nats a token by their questions (mean %.3g):\n",
                 (int)model.n, model.data, (long long)number(g, "low"), (long long)number(g, "examined"),
                 pst_json_double(pst_json_get(g, "least_gap"), 0), pst_json_double(pst_json_get(g, "mean_gap"), 0));
  for (pst_json_iter it = pst_json_iterate(answers); shown < 10 && pst_json_next(&it); shown++) {
    pst_buf_printf(out, "      %lld: ", (long long)number(it.value, "record"));
    put_quoted(pst_json_get(it.value, "text"), out);
    pst_buf_puts(out, "  =>  ");
    put_quoted(pst_json_get(it.value, "answer"), out);
    pst_buf_printf(out, "  (%.3f)\n", pst_json_double(pst_json_get(it.value, "gap"), 0));
  }
  if (n > shown) pst_buf_printf(out, "      and %zu more: --json lists them\n", n - shown);
}

int pst_data_report_text(pst_str report_json, pst_buf *out, pst_error *err) {
  pst_json_doc *doc = NULL;
  int code = pst_json_parse(report_json.data, report_json.n, "report", &doc, err);
  if (code) return code;
  const pst_json *r = pst_json_root(doc);
  int64_t n = number(r, "records"), kept = number(r, "kept");
  pst_buf_printf(out, "%lld records, %lld kept (%lld to train on, %lld held back) in %lld clusters", (long long)n,
                 (long long)kept, (long long)(kept - number(r, "held")), (long long)number(r, "held"),
                 (long long)number(r, "clusters"));
  if (number(r, "labels")) pst_buf_printf(out, ", %lld labels", (long long)number(r, "labels"));
  if (number(r, "corrected")) pst_buf_printf(out, ", %lld with a correction", (long long)number(r, "corrected"));
  if (number(r, "pairs") + number(r, "liked") + number(r, "disliked"))
    pst_buf_printf(out, ", %lld beside what they correct, %lld liked, %lld disliked", (long long)number(r, "pairs"),
                   (long long)number(r, "liked"), (long long)number(r, "disliked"));
  pst_buf_printf(out, "; compared with %lld items that judge models\n", (long long)number(r, "guarded_items"));
  for (pst_json_iter it = pst_json_iterate(pst_json_get(r, "dropped")); pst_json_next(&it);) {
    pst_str reason = pst_json_str(pst_json_get(it.value, "reason"));
    pst_buf_printf(out, "\n%8lld  %.*s\n", (long long)number(it.value, "n"), (int)reason.n, reason.data);
    for (pst_json_iter e = pst_json_iterate(pst_json_get(it.value, "examples")); pst_json_next(&e);)
      put_example_text(e.value, out);
  }
  const pst_json *private = pst_json_get(r, "private");
  if (pst_json_size(private)) pst_buf_puts(out, "\nprivate data replaced:");
  for (pst_json_iter it = pst_json_iterate(private); pst_json_next(&it);)
    pst_buf_printf(out, " %.*s %lld", (int)it.key.n, it.key.data, (long long)pst_json_int(it.value, 0));
  if (pst_json_size(private)) pst_buf_putc(out, '\n');
  put_suspects_text(pst_json_get(r, "suspects"), out);
  put_gaps_text(pst_json_get(r, "likelihood"), out);
  pst_str hash = pst_json_str(pst_json_get(r, "data_set"));
  if (hash.n)
    pst_buf_printf(out, "\ndata set %.*s, made in %lld ms\n", (int)hash.n, hash.data, (long long)number(r, "wall_ms"));
  else
    pst_buf_puts(out, "\nno data set: nothing is left\n");
  pst_json_free(doc);
  return pst_buf_status(out) ? pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the report") : 0;
}
