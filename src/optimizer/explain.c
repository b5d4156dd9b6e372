/* Evidence for people: the plan as a tree with estimates (and what was measured beside them), which field bought what, and the outcome of a run. Reads evidence
 * documents only (evidence.c writes them), so that a plan made long ago explains itself the same way. */
#include <penstock/optimizer.h>

#include <math.h>
#include <string.h>

static double number(const pst_json *v, const char *path) { return pst_json_double(pst_json_path(v, path), NAN); }
static double bound(const pst_json *v, const char *path, size_t i) {
  return pst_json_double(pst_json_at(pst_json_path(v, path), i), NAN);
}
static void put_str(pst_buf *out, const pst_json *v, const char *path) {
  pst_buf_append_str(out, pst_json_str(pst_json_path(v, path)));
}
static bool is(const pst_json *v, const char *path, const char *text) {
  return pst_str_is(pst_json_str(pst_json_path(v, path)), text);
}

/* 123456 -> "0.000123" dollars with four significant digits. */
static void put_usd(pst_buf *out, double nusd) {
  if (!isfinite(nusd)) {
    pst_buf_puts(out, "-");
    return;
  }
  double usd = nusd / 1e9;
  int decimals = usd > 0 ? (int)(2 - floor(log10(usd))) : 2;
  pst_buf_printf(out, "$%.*f", decimals < 2 ? 2 : decimals > 9 ? 9 : decimals, usd);
}

static void put_percent(pst_buf *out, const pst_json *v, const char *path) {
  pst_buf_printf(out, "%.1f%% [%.1f, %.1f]", 100 * bound(v, path, 0), 100 * bound(v, path, 1), 100 * bound(v, path, 2));
}

static void put_cost(pst_buf *out, const pst_json *v) {
  put_usd(out, bound(v, "nusd_per_1000_accepted", 0));
  pst_buf_puts(out, " [");
  put_usd(out, bound(v, "nusd_per_1000_accepted", 1));
  pst_buf_puts(out, ", ");
  put_usd(out, bound(v, "nusd_per_1000_accepted", 2));
  pst_buf_puts(out, "]");
}

/* ---- the tree ---- */

typedef struct tree {
  pst_buf *out;
  const pst_json *estimate, *measured; /* measured NULL: not asked */
} tree;

static size_t columns(const char *text) { return pst_utf8_count(pst_str_from(text)); }

static void put_padded(pst_buf *out, const char *text, size_t width) {
  pst_buf_puts(out, text);
  for (size_t n = columns(text); n < width; n++) pst_buf_putc(out, ' ');
}

static void put_figure(pst_buf *out, double value) {
  char text[40] = "-";
  if (isfinite(value))
    snprintf(text, sizeof text, fabs(value) >= 100 ? "%.0f" : fabs(value) >= 10 ? "%.1f" : "%.3g", value);
  pst_buf_printf(out, "%12s", text);
}

/* A leaf: what, estimate, and with --analyze the measured value and the ratio of the two. */
static void put_leaf(tree *t, const char *stem, const char *what, double estimate, double measured) {
  char label[160];
  snprintf(label, sizeof label, "%s%s", stem, what);
  put_padded(t->out, label, 58);
  put_figure(t->out, estimate);
  if (t->measured) {
    put_figure(t->out, measured);
    put_figure(t->out, estimate == 0 && measured == 0 ? 1 : estimate / measured);
  }
  pst_buf_putc(t->out, '\n');
}

static void put_leaf_of(tree *t, const char *stem, const char *what, const char *key) {
  put_leaf(t, stem, what, number(t->estimate, key), number(t->measured, key));
}

static void put_choice(pst_buf *out, const pst_json *choice, const char *const *names, size_t n) {
  for (size_t i = 0; i < n; i++) {
    pst_buf_printf(out, "%s%s ", i ? ", " : "", names[i]);
    put_str(out, choice, names[i]);
  }
  pst_buf_putc(out, '\n');
}

static void put_head(tree *t, const pst_json *e) {
  pst_buf *out = t->out;
  pst_buf_puts(out, "plan ");
  pst_str hash = pst_json_str(pst_json_path(e, "plan.hash"));
  pst_buf_append(out, hash.data, PST_MIN(hash.n, (size_t)12));
  pst_buf_puts(out, " for ");
  put_str(out, e, "workload.name");
  const pst_json *answers =
      pst_json_path(e, "plan.verify.n") ? pst_json_path(e, "plan.verify") : pst_json_path(e, "plan.search");
  if (answers) {
    pst_buf_puts(out, ": ");
    put_percent(out, answers, "quality");
    pst_buf_printf(out, " right on %.0f %s items", number(answers, "n"),
                   pst_json_path(e, "plan.verify.n") ? "held-back" : "search");
  }
  if (pst_json_path(e, "plan.nusd_per_1000_accepted")) {
    pst_buf_puts(out, ",\n  ");
    put_cost(out, pst_json_path(e, "plan"));
    pst_buf_puts(out, " per 1,000 accepted answers");
  }
  pst_buf_puts(out, "\n\n");
  put_padded(out, "", 58);
  pst_buf_printf(out, "%12s", "estimated");
  if (t->measured) pst_buf_printf(out, "%12s%12s", "measured", "ratio");
  pst_buf_putc(out, '\n');
}

static void put_worth(tree *t, const pst_json *e) {
  const pst_json *answers =
      pst_json_path(e, "plan.verify.n") ? pst_json_path(e, "plan.verify") : pst_json_path(e, "plan.search");
  put_leaf(t, "├─ ", "quality, % accepted", 100 * bound(answers, "quality", 0), 100 * bound(t->measured, "quality", 0));
  put_leaf(t, "├─ ", "cost, $ per 1,000 accepted answers",
           bound(pst_json_path(e, "plan"), "nusd_per_1000_accepted", 0) / 1e9,
           number(t->measured, "nusd_per_1000_accepted") / 1e9);
}

static void put_training(pst_buf *out, const pst_json *e) {
  pst_buf_printf(out, "trained on %.0f examples in %.1f s; %.1f%% right on held-out folds of them\n",
                 number(e, "classifier.records"), number(e, "classifier.seconds"),
                 100 * number(e, "classifier.accuracy"));
}

/* A plan without a model that generates: the choice's classifier is "alone", or "alone with ENCODER". */
static bool is_alone(const pst_json *v, const char *path) {
  pst_str text = pst_json_str(pst_json_path(v, path));
  return pst_str_is(text, "alone") || pst_str_starts(text, PST_STR("alone "));
}

/* What the plan's classifier reads. */
static void put_what_it_reads(pst_buf *out, const pst_json *e) {
  pst_buf_puts(out, "words and pieces of words");
  if (!pst_json_path(e, "classifier.encoder")) return;
  pst_buf_puts(out, ", and the message's vector by ");
  if (pst_json_path(e, "classifier.adapter")) pst_buf_puts(out, "the tuned ");
  put_str(out, e, "classifier.encoder");
}

static void put_classifier_tree(tree *t, const pst_json *e) {
  pst_buf *out = t->out;
  pst_buf_puts(out, "classifier over ");
  put_what_it_reads(out, e);
  pst_buf_puts(out, pst_json_path(e, "classifier.encoder") ? ": nothing is generated\n"
                                                           : ": no model call is needed here\n");
  put_worth(t, e);
  pst_buf_puts(out, "├─ ");
  put_training(out, e);
  put_leaf_of(t, "├─ ", "highest load within the goal, requests/s", "capacity_rps");
  put_leaf_of(t, "├─ ", "whole answer, p50 ms", "total_p50_ms");
  put_leaf_of(t, "├─ ", "whole answer, p95 ms", "total_p95_ms");
  put_leaf_of(t, "└─ ", "tokens", "completion_tokens");
}

static void put_first(pst_buf *out, const pst_json *e) {
  const pst_json *first = pst_json_path(e, "plan.classifier_first");
  if (!first) return;
  pst_buf_printf(
      out, "classifier first, where its margin is at least %.3g: expected to answer %.0f%%, %.1f%% of them right\n",
      number(first, "threshold"), 100 * number(first, "answered"), 100 * number(first, "accuracy"));
  pst_buf_puts(out, "  it reads ");
  put_what_it_reads(out, e);
  pst_buf_puts(out, ";\n  ");
  put_training(out, e);
  pst_buf_puts(out, "the rest is asked of\n");
}

static void put_tree(tree *t, const pst_json *e) {
  pst_buf *out = t->out;
  const pst_json *choice = pst_json_path(e, "plan.choice");
  static const char *const engine[] = {"weights", "kv", "slots", "chunk", "threads"};
  static const char *const prompt[] = {"layout", "examples"}, *const answer[] = {"constraint", "speculation"};
  bool remote = !pst_json_path(choice, "slots");
  put_first(out, e);
  pst_buf_puts(out, remote ? "remote " : "local ");
  put_str(out, choice, "model");
  pst_buf_putc(out, '\n');
  put_worth(t, e);
  if (!remote) {
    pst_buf_puts(out, "├─ engine ");
    put_choice(out, choice, engine, PST_ARRAY_LEN(engine));
    char at_load[80];
    snprintf(at_load, sizeof at_load, "at %.3g requests/s: time to first token, p50 ms",
             number(t->estimate, "load_rps"));
    put_leaf_of(t, "│  ├─ ", "highest load within the goal, requests/s", "capacity_rps");
    put_leaf_of(t, "│  ├─ ", "flat out, requests/s", "saturated_rps");
    put_leaf_of(t, "│  ├─ ", at_load, "ttft_p50_ms");
    put_leaf_of(t, "│  ├─ ", "   time to first token, p95 ms", "ttft_p95_ms");
    put_leaf_of(t, "│  ├─ ", "   whole answer, p50 ms", "total_p50_ms");
    put_leaf_of(t, "│  ├─ ", "   whole answer, p95 ms", "total_p95_ms");
    double pace = number(t->estimate, "tokens_per_second"), paced = number(t->measured, "tokens_per_second");
    put_leaf(t, "│  └─ ", "   tokens/s of one stream", pace > 0 ? pace : NAN, paced > 0 ? paced : NAN);
  }
  pst_buf_puts(out, "├─ prompt ");
  put_str(out, choice, "prompt");
  pst_buf_puts(out, ", ");
  put_choice(out, choice, prompt, PST_ARRAY_LEN(prompt));
  put_leaf_of(t, "│  ├─ ", "tokens", "prompt_tokens");
  put_leaf_of(t, "│  └─ ", "of them from the prefix cache", "cached_tokens");
  pst_buf_puts(out, "└─ answer ");
  put_choice(out, choice, answer, remote ? 1 : 2);
  int64_t n_copied = pst_json_int(pst_json_path(e, "plan.copied_fields"), 0);
  if (n_copied)
    pst_buf_printf(out,
                   "   ├─ texts of %lld %s are copied from the input: misspelt ones are mended, a stream comes whole\n",
                   (long long)n_copied, n_copied == 1 ? "field" : "fields");
  put_leaf_of(t, "   └─ ", "tokens", "completion_tokens");
}

/* ---- fields ---- */

static void put_gain(pst_buf *out, const pst_json *f) {
  if (is(f, "quality_from", "exact")) {
    pst_buf_printf(out, "%-28s", "same tokens");
    return;
  }
  char text[64];
  snprintf(text, sizeof text, "%+.1f [%+.1f, %+.1f]%s", 100 * bound(f, "quality_gain", 0),
           100 * bound(f, "quality_gain", 1), 100 * bound(f, "quality_gain", 2),
           is(f, "quality_from", "believed") ? " believed" : "");
  pst_buf_printf(out, "%-28s", text);
}

static void put_fields(pst_buf *out, const pst_json *e) {
  const pst_json *fields = pst_json_path(e, "fields");
  bool starred = false;
  if (!pst_json_size(fields)) return;
  pst_buf_puts(out, "\nWhich field bought what (each put back alone to the reference's value)\n");
  pst_buf_printf(out, "  %-12s %-30s %-28s %s\n", "field", "reference -> plan", "quality, points [95%]",
                 "cost of a request");
  for (pst_json_iter it = pst_json_iterate(fields); pst_json_next(&it);) {
    pst_buf change = PST_BUF_INIT;
    put_str(&change, it.value, "reference");
    pst_buf_puts(&change, " -> ");
    put_str(&change, it.value, "plan");
    if (pst_json_bool(pst_json_path(it.value, "with_labels"), false)) pst_buf_puts(&change, " *");
    starred |= pst_json_bool(pst_json_path(it.value, "with_labels"), false);
    pst_str name = pst_json_str(pst_json_path(it.value, "field"));
    pst_buf_printf(out, "  %-12.*s %-30s ", (int)name.n, name.data ? name.data : "", pst_buf_text(&change));
    pst_buf_done(&change);
    if (is(it.value, "quality_from", "impossible")) {
      pst_buf_puts(out, "makes no plan without the others\n");
      continue;
    }
    put_gain(out, it.value);
    double with = number(e, "plan.estimate.request_nusd"), without = number(it.value, "without.request_nusd");
    if (isfinite(without))
      pst_buf_printf(out, " %+.1f%%\n", 100 * (with / without - 1));
    else
      pst_buf_puts(out, " without it the latency objective never holds\n");
  }
  if (starred)
    pst_buf_puts(out, "  * with the constraint on all labels, since there are no examples to take them from\n");
}

/* ---- what was learned, against what prompts alone reach ---- */

static void put_choice_name(pst_buf *out, const pst_json *f) {
  static const char *const names[] = {"model", "weights", "kv", "prompt", "layout", "examples", "constraint"};
  bool alone = is_alone(f, "choice.classifier");
  if (pst_json_path(f, "choice.classifier") && !is(f, "choice.classifier", "none")) {
    pst_buf_puts(out, "classifier ");
    put_str(out, f, "choice.classifier");
    pst_buf_puts(out, alone ? " (nothing is generated)" : " then ");
  }
  for (size_t i = 0; i < PST_ARRAY_LEN(names) && !alone; i++) {
    if (i) pst_buf_putc(out, ' ');
    put_str(out, pst_json_path(f, "choice"), names[i]);
  }
}

static void put_prompted(pst_buf *out, const pst_json *e) {
  const pst_json *p = pst_json_path(e, "verification.prompted"),
                 *why = pst_json_path(e, "verification.prompted_not_asked");
  if (why) {
    pst_buf_puts(out, "\nThe best plan of prompted models was not asked beside it: ");
    pst_buf_append_str(out, pst_json_str(why));
    pst_buf_putc(out, '\n');
  }
  if (!p) return;
  pst_buf_puts(out, "\nThe best plan of prompted models, on the same items: ");
  put_choice_name(out, p);
  pst_buf_puts(out, "\n     quality ");
  put_percent(out, p, "verify.quality");
  pst_buf_printf(out, "; against it the plan taken has %+.1f points [%+.1f, %+.1f], paired on %.0f items\n     ",
                 100 * bound(p, "comparison.difference", 0), 100 * bound(p, "comparison.difference", 1),
                 100 * bound(p, "comparison.difference", 2), number(p, "comparison.n"));
  put_cost(out, p);
  pst_buf_puts(out, " per 1,000 accepted");
  double ratio = number(p, "cost_ratio");
  if (ratio > 0) pst_buf_printf(out, "; the plan taken costs %.3g of that", ratio);
  if (pst_json_path(p, "cost_part")) {
    pst_buf_puts(out, ", about ");
    put_str(out, p, "cost_part");
  }
  pst_buf_putc(out, '\n');
}

/* Whether the plan gives answers again, and what that is expected to save. */
static void put_cache(pst_buf *out, const pst_json *e) {
  const pst_json *c = pst_json_path(e, "cache");
  if (!c) return;
  pst_buf_puts(out, "\nAnswer cache: ");
  if (is(c, "verdict", "in_plan")) pst_buf_puts(out, "in the plan");
  if (is(c, "verdict", "proposed"))
    pst_buf_puts(out, "proposed; the plan in force stays as it is: give it the member \"cache\": {}");
  if (is(c, "verdict", "no_hash"))
    pst_buf_puts(out, "not in the plan, an engine of which has no sha256; name a pulled model");
  if (is(c, "verdict", "no_gain")) pst_buf_puts(out, "no gain is expected");
  if (is(c, "verdict", "unknown")) pst_buf_puts(out, "its gain is not known, as what a request costs is not");
  if (is(c, "verdict", "too_few_requests"))
    pst_buf_printf(out, "not proposed, users' requests are too few to say how often they repeat (%.0f are wanted)",
                   number(c, "requests_wanted"));
  if (is(c, "verdict", "nothing_kept"))
    pst_buf_puts(out, "how often requests repeat is not known, no content is kept (serve --keep content)");
  if (pst_json_path(c, "requests"))
    pst_buf_printf(
        out,
        "\n  %.0f requests in %.0f days, %.0f kept with their content; %.1f%% of all asked again what was asked before",
        number(c, "requests"), number(c, "days"), number(c, "kept"), 100 * number(c, "share"));
  pst_buf_putc(out, '\n');
  if (!(number(c, "share") > 0) || !(number(c, "request_nusd") > 0)) return;
  pst_buf_puts(out, "  a request then ");
  put_usd(out, number(c, "request_nusd_with"));
  pst_buf_puts(out, " expected, against ");
  put_usd(out, number(c, "request_nusd"));
  pst_buf_puts(out, "; the same answers\n");
}

/* ---- the plan ---- */

int pst_optimizer_explain(const char *evidence, const char *measured, pst_buf *out, pst_error *err) {
  pst_json_doc *doc = NULL, *seen = NULL;
  int code = pst_json_parse(evidence, strlen(evidence), "evidence", &doc, err);
  if (!code && measured) code = pst_json_parse(measured, strlen(measured), "measured", &seen, err);
  if (!code) {
    const pst_json *e = pst_json_root(doc);
    tree t = {out, pst_json_path(e, "plan.estimate"), seen ? pst_json_root(seen) : NULL};
    put_head(&t, e);
    if (is_alone(e, "plan.choice.classifier"))
      put_classifier_tree(&t, e);
    else if (pst_json_path(e, "plan.choice"))
      put_tree(&t, e);
    else
      pst_buf_puts(out, "the plan in force, outside the space that was searched: no estimates\n");
    if (pst_json_path(e, "plan.choice") && !(number(t.estimate, "tokens_per_second") > 0) &&
        pst_json_path(e, "plan.choice.slots"))
      pst_buf_puts(out, "\nanswers come whole with their first token: they have no pace in tokens/s\n");
    if (t.measured)
      pst_buf_printf(
          out,
          "\nmeasured: %.0f arrivals at %.2f requests/s, then %.0f flat out, %.0f s in all, every answer graded;\n"
          "ratio: estimated / measured; the measured highest load is the estimate by the ratio found flat out\n",
          number(t.measured, "n"), number(t.measured, "load_rps"), number(t.measured, "n_saturated"),
          number(t.measured, "seconds"));
    put_prompted(out, e);
    put_fields(out, e);
    put_cache(out, e);
    code = pst_buf_status(out) ? pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the explanation") : 0;
  }
  pst_json_free(doc);
  pst_json_free(seen);
  return code;
}

/* ---- the outcome of a run ---- */

/* Where there were any to choose from. */
static void put_providers(pst_buf *out, const pst_json *e) {
  double limit = number(e, "spent.providers_limit_nusd");
  bool any = number(e, "spent.providers_nusd") > 0;
  for (pst_json_iter it = pst_json_iterate(pst_json_path(e, "space.models")); pst_json_next(&it);)
    any = any || pst_json_bool(pst_json_get(it.value, "remote"), false);
  if (!any) return;
  pst_buf_puts(out, "  providers      ");
  put_usd(out, number(e, "spent.providers_nusd"));
  if (limit >= 0) {
    pst_buf_puts(out, " of at most ");
    put_usd(out, limit);
  }
  if (pst_json_bool(pst_json_path(e, "spent.provider_refused"), false))
    pst_buf_puts(out, "; a call was refused for want of money, and none was made after it (--budget-usd)");
  pst_buf_putc(out, '\n');
}

static void put_verdict(pst_buf *out, const pst_json *e) {
  put_str(out, e, "workload.name");
  if (is(e, "verdict", "found") && pst_json_bool(pst_json_path(e, "plan.is_reference"), false))
    pst_buf_puts(out, ": the reference plan is already the best, and holds on held-back items\n");
  else if (is(e, "verdict", "found") && pst_json_bool(pst_json_path(e, "plan.same_answers"), false))
    pst_buf_puts(out, ": the reference plan's answers are the best; settings that serve them better were found\n");
  else if (is(e, "verdict", "found"))
    pst_buf_puts(out, ": a plan was found and verified\n");
  else if (is(e, "verdict", "none"))
    pst_buf_puts(out, ": no plan passed; the reference plan stays\n");
  else
    pst_buf_puts(out, ": not enough data to decide; the reference plan stays\n");
  if (is_alone(e, "plan.choice.classifier")) {
    pst_buf_puts(out, pst_json_path(e, "classifier.encoder")
                          ? "  nothing is generated: a classifier over the message and its vector answers, "
                          : "  no model call needed here: a classifier answers, ");
    put_training(out, e);
  }
  pst_buf_printf(
      out, "  looked at      %.0f plans (%.0f kinds of answer x %.0f exact settings), %.0f answers asked in %.0f s\n",
      number(e, "space.plans"), number(e, "space.classes"), number(e, "space.exact"), number(e, "spent.answers"),
      number(e, "spent.total_s"));
  pst_buf_printf(out,
                 "  time went to   calibration %.0f s, search %.0f s, verification %.0f s; the search ended because ",
                 number(e, "spent.calibration_s"), number(e, "spent.search_s"), number(e, "spent.verify_s"));
  put_str(out, e, "spent.search_ended");
  pst_buf_puts(out, "\n  which costs    ");
  put_usd(out, number(e, "spent.machine_nusd"));
  pst_buf_puts(out, " of machine time, ");
  put_usd(out, number(e, "spent.nusd_per_1000_of_a_month"));
  pst_buf_puts(out, " per 1,000 requests of one month\n");
  put_providers(out, e);
}

static void put_difference(pst_buf *out, const pst_json *e, const pst_json *f) {
  pst_buf_printf(out, " against %.1f%% of the reference: ", 100 * bound(f, "comparison.reference", 0));
  pst_buf_printf(out, "%+.1f points [%+.1f, %+.1f] paired on %.0f items, ", 100 * bound(f, "comparison.difference", 0),
                 100 * bound(f, "comparison.difference", 1), 100 * bound(f, "comparison.difference", 2),
                 number(f, "comparison.n"));
  const char *how = is(f, "comparison.non_inferior", "yes")  ? "not inferior"
                    : is(f, "comparison.non_inferior", "no") ? "inferior"
                                                             : "undecided";
  pst_buf_printf(out, "%s at a margin of %.1f (mid-p %.3g)\n", how, 100 * number(e, "goal.margin"),
                 number(f, "comparison.mcnemar_mid_p"));
}

/* How a limit stands: "holds, by the whole interval". */
static const char *standing(const pst_json *f, const char *holds, const char *by_interval, const char *missed) {
  bool yes = pst_json_bool(pst_json_path(f, holds), false);
  bool whole = pst_json_bool(pst_json_path(f, yes ? by_interval : missed), false);
  return yes     ? whole ? "holds, by the whole interval" : "holds by the point estimate, not by the whole interval"
         : whole ? "is missed, by the whole interval"
                 : "is missed by the point estimate, not by the whole interval";
}

static void put_floors(pst_buf *out, const pst_json *e, const pst_json *f) {
  pst_buf_printf(out, "     floor of %.0f%% %s; ", 100 * number(e, "goal.quality_floor"),
                 standing(f, "floor_holds", "floor_holds_by_interval", "floor_missed_by_interval"));
  if (!pst_json_path(f, "against_best")) return;
  pst_buf_printf(out, "at most %.3g points below the best plan found %s (%+.1f [%+.1f, %+.1f]);\n     ",
                 100 * number(e, "goal.max_quality_loss"),
                 standing(f, "loss_holds", "loss_holds_by_interval", "loss_missed_by_interval"),
                 100 * bound(f, "against_best.difference", 0), 100 * bound(f, "against_best.difference", 1),
                 100 * bound(f, "against_best.difference", 2));
}

/* Which floor the search went by. */
static void put_search_floor(pst_buf *out, const pst_json *e) {
  const pst_json *f = pst_json_path(e, "floor");
  if (!pst_json_path(f, "best")) return; /* the goal names its floor itself */
  pst_buf_printf(out, "  floor in search %.1f%%, ", 100 * number(f, "quality"));
  pst_buf_puts(out, is(f, "from", "goal")   ? "the goal's"
                    : is(f, "from", "best") ? "by the best plan found"
                                            : "the reference's less the margin");
  pst_buf_puts(out, "; the best plan found is ");
  put_str(out, f, "best");
  pst_buf_puts(out, ", ");
  put_percent(out, f, "best_quality");
  pst_buf_putc(out, '\n');
}

static void put_trial(pst_buf *out, const pst_json *e, const pst_json *f, int rank) {
  pst_buf_printf(out, "  %d. ", rank);
  put_choice_name(out, f);
  if (!pst_json_bool(pst_json_path(f, "asked"), false)) {
    pst_buf_puts(out, "\n     not asked: ");
    put_str(out, f, "not_asked");
    pst_buf_putc(out, '\n');
    return;
  }
  pst_buf_puts(out, "\n     quality ");
  put_percent(out, f, "verify.quality");
  bool same = pst_json_bool(pst_json_path(f, "same_answers"), false);
  if (same) pst_buf_puts(out, ", the reference's own answers\n");
  if (!same) put_difference(out, e, f);
  put_floors(out, e, f);
  put_cost(out, f);
  bool passed = pst_json_bool(pst_json_path(f, "passed"), false);
  bool better =
      pst_json_bool(pst_json_path(f, "better"), true); /* evidence from before it was asked for says nothing */
  pst_buf_printf(out, " per 1,000 accepted: %s%s\n", passed ? "taken" : "not taken",
                 better ? "" : ", it is no better than the reference by the objective");
}

/* Whom the finalists were asked beside, and on how many items. */
static void put_held_back(pst_buf *out, const pst_json *e) {
  double before = number(e, "verification.asked_before"), n = number(e, "verification.n"),
         reference = number(e, "verification.reference.n");
  pst_buf_printf(out, "\nFinalists, in the order fixed before the held-back items were asked (%.0f of %.0f items; ", n,
                 number(e, "verification.available"));
  if (before > 0)
    pst_buf_printf(out, "%.0f plan%s had been asked them before, which wears them out)\n", before,
                   before == 1 ? "" : "s");
  else
    pst_buf_puts(out, "never asked before)\n");
  if (reference < n)
    pst_buf_printf(out, "  the reference was asked the first %.0f: %s\n", reference,
                   pst_json_bool(pst_json_path(e, "spent.provider_refused"), false)
                       ? "then the money for providers was spent"
                       : "by the search it lies so far behind that they show it");
}

static void put_tuning_cost(pst_buf *out, const pst_json *t) {
  double ratio = number(t, "cost_ratio");
  pst_buf_puts(out, "  a tuned request ");
  put_usd(out, number(t, "request_nusd"));
  pst_buf_printf(out, " expected (%.0f + %.0f tokens), against ", number(t, "prompt_tokens"),
                 number(t, "answer_tokens"));
  put_usd(out, number(t, "request_nusd_now"));
  pst_buf_printf(out, ": %.3g%s, however often it is right\n", ratio < 1 ? 100 * ratio : ratio,
                 ratio < 1 ? "% of it" : " times it");
  pst_buf_printf(out, "  training        %.0f min at %.0f tokens/s (%s), ", number(t, "train_s") / 60,
                 number(t, "tokens_per_second"),
                 pst_json_bool(pst_json_path(t, "probed"), false) ? "one step, timed" : "as the last time");
  put_usd(out, number(t, "train_nusd"));
  pst_buf_puts(out, " with planning anew");
  if (number(t, "payback_days") > 0) pst_buf_printf(out, "; paid back in %.3g days", number(t, "payback_days"));
  pst_buf_printf(out, " at %.0f requests a month (", number(t, "monthly_requests"));
  put_str(out, t, "monthly_from");
  pst_buf_puts(out, ")\n");
}

/* Whether to tune next, or what is missing for it. */
static void put_tuning(pst_buf *out, const pst_json *e) {
  const pst_json *t = pst_json_path(e, "tuning");
  if (!t) return;
  pst_buf_puts(out, "\nTuning ");
  put_str(out, t, "model");
  if (is(t, "verdict", "impossible")) {
    pst_buf_puts(out, ": it cannot be: ");
    put_str(out, t, "why_not");
    pst_buf_putc(out, '\n');
    return;
  }
  pst_buf_printf(out, " on %.0f examples and %.0f records: ", number(t, "examples"), number(t, "records"));
  if (is(t, "verdict", "proposed")) pst_buf_puts(out, "proposed\n");
  if (is(t, "verdict", "no_gain")) pst_buf_puts(out, "no gain is expected, the plan costs no more\n");
  if (is(t, "verdict", "unknown"))
    pst_buf_puts(out, "what it would cost cannot be estimated from these; a turn measures it\n");
  if (is(t, "verdict", "tuned_already"))
    pst_buf_puts(out, "the plan is tuned; a further turn learns from what came since\n");
  if (is(t, "verdict", "too_few_examples"))
    pst_buf_printf(out, "too few, %.0f are wanted: items of the part examples, or records with leave to train\n",
                   number(t, "examples_wanted"));
  if (number(t, "request_nusd") > 0) put_tuning_cost(out, t);
  if (!pst_json_path(t, "command")) return;
  pst_buf_puts(out, "  ");
  put_str(out, t, "command");
  pst_buf_putc(out, '\n');
}

/* Rows of the front by cost; few enough for selection by repeated search. */
static void put_front(pst_buf *out, const pst_json *e) {
  pst_buf_puts(out, "\nPareto front of what was measured on search items\n");
  pst_buf_printf(out, "  %-26s %5s  %-14s %s\n", "quality [95%]", "items", "$ per 1,000", "plan");
  double last = -INFINITY;
  for (;;) {
    const pst_json *best = NULL;
    for (pst_json_iter it = pst_json_iterate(pst_json_path(e, "measured")); pst_json_next(&it);) {
      double cost = bound(it.value, "nusd_per_1000_accepted", 0);
      if (pst_json_bool(pst_json_path(it.value, "front"), false) && cost > last &&
          (!best || cost < bound(best, "nusd_per_1000_accepted", 0)))
        best = it.value;
    }
    if (!best) return;
    last = bound(best, "nusd_per_1000_accepted", 0);
    pst_buf quality = PST_BUF_INIT, cost = PST_BUF_INIT;
    put_percent(&quality, best, "quality");
    put_usd(&cost, last);
    pst_buf_printf(out, "  %-26s %5.0f  %-14s ", pst_buf_text(&quality), number(best, "n"), pst_buf_text(&cost));
    put_str(out, best, "name");
    pst_buf_putc(out, '\n');
    pst_buf_done(&quality);
    pst_buf_done(&cost);
  }
}

int pst_optimizer_summary(const char *evidence, pst_buf *out, pst_error *err) {
  pst_json_doc *doc = NULL;
  int code = pst_json_parse(evidence, strlen(evidence), "evidence", &doc, err);
  if (code) return code;
  const pst_json *e = pst_json_root(doc);
  put_verdict(out, e);
  int rank = 1;
  put_held_back(out, e);
  put_search_floor(out, e);
  for (pst_json_iter it = pst_json_iterate(pst_json_path(e, "verification.finalists")); pst_json_next(&it);)
    put_trial(out, e, it.value, rank++);
  put_prompted(out, e);
  put_front(out, e);
  put_cache(out, e);
  put_tuning(out, e);
  pst_json_free(doc);
  return pst_buf_status(out) ? pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the summary") : 0;
}
