/* Penstock evals: the team's own questions, graders and statistics; a report that can be believed.
 *
 * A workload is a folder (workload.json, items.jsonl, optionally trace.jsonl). Every measurement goes through pst_gateway_chat, so that what is measured
 * is what is served. Nothing is chosen and scored on the same items: each item has a part.
 *
 * Threads: a workload is immutable once open; pst_evals_run blocks its caller and may be called by one thread per run. */
#ifndef PENSTOCK_EVALS_H
#define PENSTOCK_EVALS_H

#include <penstock/base.h>
#include <penstock/chat.h>
#include <penstock/gateway.h>
#include <penstock/store.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- workloads (evals/workload.c) ------------------------------------------------------------------------------- */

typedef enum pst_evals_part {
  PST_EVALS_EXAMPLES, /* may be shown to a model */
  PST_EVALS_SEARCH,   /* what the optimizer may look at */
  PST_EVALS_VERIFY,   /* decides */
  PST_EVALS_SEALED,   /* one last look */
  PST_EVALS_PART_COUNT
} pst_evals_part;
const char *pst_evals_part_name(pst_evals_part part);

typedef struct pst_evals_item {
  pst_str id;
  pst_chat chat;    /* the messages */
  pst_str input;    /* what a plan takes from them: the last user message, or group 1 of the workload's pattern in it */
  pst_str expected; /* the answer a graded field holds, as text: a label, or compact JSON */
  const pst_json *reference;
  pst_evals_part part;
  uint32_t cluster; /* near-duplicates share one; a cluster lies in one part */
} pst_evals_item;

typedef struct pst_evals_prompt {
  pst_str name, system, instruction, input_key, answer_key; /* keys: "" for the layout's own */
} pst_evals_prompt;

typedef enum pst_evals_grader_kind {
  PST_EVALS_EXACT,
  PST_EVALS_NORMALIZED, /* case, white space, outer punctuation and Unicode form do not count */
  PST_EVALS_CONTAINS,
  PST_EVALS_REGEX,
  PST_EVALS_NUMERIC, /* within a tolerance */
  PST_EVALS_JSON,    /* the named fields match; score = share of them, accepted = all */
  PST_EVALS_CHOICE,  /* the one label named in the answer */
  PST_EVALS_SQL,     /* the same statement, token by token in canonical form */
  PST_EVALS_GRADER_COUNT
} pst_evals_grader_kind;

typedef struct pst_evals_goal {
  double quality_floor;      /* least share of accepted answers */
  double margin;             /* non-inferior: lower bound of the paired difference above -margin */
  bool minimize_cost;        /* "objective": "cost" (default), "latency" or "quality" */
  const char *objective;     /* as written */
  double latency_p95_ms;     /* 0: none */
  int64_t cost_ceiling_nusd; /* per 1,000 accepted answers; 0: none */
  double max_quality_loss;   /* how far below the best plan that was found a plan's share may lie; 0: no limit */
} pst_evals_goal;

typedef struct pst_evals_arrival { /* one line of trace.jsonl */
  int64_t arrival_us;
  size_t item; /* index */
} pst_evals_arrival;

typedef struct pst_evals_workload pst_evals_workload;
typedef struct pst_evals_info {
  const char *name, *description, *folder;
  char fingerprint[65];  /* SHA-256 over workload.json, items.jsonl and trace.jsonl */
  const pst_str *labels; /* of a choice task, else none */
  size_t n_labels;
  /* Fields of expected JSON ("slots.artist") whose texts stand in their inputs, in 199 of 200 of the part examples and in five at least. */
  const pst_str *copied;
  size_t n_copied;
  const char *input_pattern; /* NULL: the last user message */
  const pst_evals_prompt *prompts;
  size_t n_prompts;
  pst_evals_grader_kind grader;
  const char *grader_field; /* of the reference; NULL: the reference itself */
  pst_evals_goal goal;
  int64_t machine_nusd_per_hour; /* 0: not given */
  int64_t monthly_requests;      /* 0: not given */
  int max_tokens;                /* longest answer: from the workload, else from its longest expected answer */
  bool allow_remote;
  const pst_evals_item *items;
  size_t n_items;
  const pst_evals_arrival *trace; /* in order of time; none: n_trace 0 */
  size_t n_trace;
} pst_evals_info;

/* Reads and checks the folder (docs/workload.md). PST_E_BAD_INPUT names file, line and field; PST_E_NOT_FOUND. Unknown fields are refused, and near-duplicate
 * items in different parts. */
int pst_evals_workload_open(const char *folder, pst_evals_workload **ret_workload, pst_error *err);
void pst_evals_workload_free(pst_evals_workload *workload); /* NULL is fine */
const pst_evals_info *pst_evals_workload_info(const pst_evals_workload *workload);
/* The members of a plan that say for which workload it is: schema, workload, input_pattern, labels; into an open object. */
void pst_evals_plan_begin(const pst_evals_info *info, pst_json_writer *w);

/* Makes a workload folder of a JSONL file whose lines hold a text and a label or target (`penstock import`). Parts are drawn by near-duplicate
 * cluster with `seed`. Several text fields are joined into one message, a line each; a list of texts in a field by ", ". Whole or not at all; PST_E_EXISTS when
 * the folder is there. */
enum { PST_EVALS_TEXT_FIELDS_MAX = 16 };
typedef struct pst_evals_import_options {
  const char *name;               /* NULL: the folder's name */
  const char *const *text_fields; /* in the order of their lines */
  size_t n_text_fields;           /* 0: one is found ("text", "input", ...); at most PST_EVALS_TEXT_FIELDS_MAX */
  const char *answer_field;       /* NULL: found ("label", "target", "answer", ...) */
  size_t limit;                   /* 0: all; else a stratified sample of so many lines */
  uint64_t seed;
  /* All 0: a fifth for each of search, verify and sealed, but about 1,000, 1,500 and 1,500 items at most; the rest are examples. */
  double shares[PST_EVALS_PART_COUNT];
} pst_evals_import_options;
int pst_evals_import(const char *jsonl_path, const char *folder, const pst_evals_import_options *options,
                     pst_progress *progress, pst_error *err);

/* ---- near-duplicates (evals/text.c, evals/cluster.c) ------------------------------------------------------------ */

/* Two inputs whose sets of words have a Jaccard index above this are near-duplicates. */
#define PST_EVALS_NEAR_DUPLICATE 0.6

/* The words of a text (runs of letters, digits and marks; each CJK letter for itself), lower-cased NFKC, joined by single spaces. Appends. */
int pst_evals_words(pst_str text, pst_buf *out);

/* Numbers texts by near-duplicate cluster: single linkage over pairs with a word Jaccard above the threshold. own[i] (own NULL: none)
 * not empty: text i is linked to those with the same name, and to no others. ret_cluster: n numbers, ascending by first
 * member from 0. Exact, and near-linear for ordinary text: all-pairs join with prefix filter (Bayardo, Ma, Srikant 2007). */
int pst_evals_cluster(const pst_str *texts, const pst_str *own, size_t n, double threshold, uint32_t *ret_cluster,
                      pst_error *err);

/* Keeps the words of a workload's items, but for its examples, in the store for good, so that no training data may hold them (evals/guard.c). Every run does it for
 * the items it asks; once a state of a workload is known it costs a query. */
int pst_evals_guard(pst_store *store, const pst_evals_workload *workload, pst_error *err);
/* Which of a workload's examples are near-duplicates of items that judge: ret_near[n_items], false for other parts. The workload's own judging items do not count:
 * opening it has seen to them, by the clusters that it may have named. */
int pst_evals_guard_near(pst_store *store, const pst_evals_workload *workload, bool *ret_near, pst_error *err);
/* Hashes of a text's words in their order, as guarded items hold them; appends to *words ([*n], pst_array_reserve). */
int pst_evals_word_hashes(pst_str text, uint64_t **words, size_t *n, size_t *capacity);

/* ---- graders (evals/grade.c) ------------------------------------------------------------------------------------ */

typedef struct pst_evals_grade {
  bool accepted;
  double score; /* 0 to 1 */
} pst_evals_grade;
/* Pure: any thread. */
int pst_evals_grade_answer(const pst_evals_workload *workload, const pst_evals_item *item, pst_str answer,
                           pst_evals_grade *ret_grade, pst_error *err);

/* ---- statistics (evals/statistics.c; pure) ---------------------------------------------------------------------- */

typedef struct pst_evals_interval {
  double estimate, low, high; /* two-sided; confidence as asked, 0.95 by custom */
} pst_evals_interval;
/* Wilson (1927) for k of n; n 0: estimate NAN, [0, 1]. */
pst_evals_interval pst_evals_wilson(int64_t k, int64_t n, double confidence);
/* Difference of paired proportions p(a) - p(b), by Tango (1998). n11: both accepted, n10: only a, n01: only b, n00: neither. All 0:
 * estimate NAN, [-1, 1]. */
pst_evals_interval pst_evals_tango(int64_t n11, int64_t n10, int64_t n01, int64_t n00, double confidence);
/* The same by Newcombe (1998), method 10. */
pst_evals_interval pst_evals_newcombe(int64_t n11, int64_t n10, int64_t n01, int64_t n00, double confidence);
double pst_evals_mcnemar_mid_p(int64_t n10, int64_t n01); /* two-sided mid-p (Fagerland 2013) */
/* Smallest paired difference that n items detect with this power at two-sided alpha, given the share of discordant pairs; at most 1. */
double pst_evals_detectable(int64_t n, double discordant, double alpha, double power);
/* Items after which the two-sided interval at 1 - alpha of a paired difference lies above `least` with this power, where `difference` is the true one; whole, at least 1;
 * INFINITY where difference <= least. discordant: the share of discordant pairs. With least 0 the inverse of pst_evals_detectable. */
double pst_evals_items_needed(double difference, double least, double discordant, double alpha, double power);
/* Nearest-rank quantile of n values (sorted in place), q in [0, 1]; NAN for n 0. */
double pst_evals_quantile(double *values, size_t n, double q);

/* ---- runs (evals/run.c) ----------------------------------------------------------------------------------------- */

typedef struct pst_evals_answer {
  size_t item; /* index into the workload's items */
  bool done;   /* false: not asked, or it failed (error_code) */
  int error_code;
  pst_evals_grade grade;
  pst_str text; /* owned by the run's result */
  int64_t prompt_tokens, cached_tokens, completion_tokens;
  int64_t ttft_us, total_us, cost_nusd;
  double margin;
  int n_stages, n_steps, n_drafted, n_accepted;
} pst_evals_answer;

typedef struct pst_evals_run_options {
  pst_store_purpose purpose; /* EVAL or SEARCH */
  const size_t *items;       /* indices, in the order asked */
  size_t n_items;
  int concurrency; /* calls in flight; 0: slots of the plan's engines, or 8 for remotes */
  int64_t key_id;  /* account that pays for providers' answers (pst_store_run_account); 0: nobody's */
  bool
      or_less; /* where its money is spent before the end, what was answered of the first items is the result, and the run is left to be taken up */
  bool exclude_self; /* an item's own example is never shown to it (always true when items are of the examples part) */
  bool resume; /* take up the newest unfinished run of the same plan, workload and items; finished answers are reused */
  int64_t
      run_id; /* take up this run, ended or not (PST_E_BAD_INPUT when it is one of something else); 0: as `resume` says */
  bool warm;                     /* false: prefix caches are cleared first (the declared cold state) */
  pst_progress *progress;        /* begun by the caller; counts items; NULL: silent */
  bool (*cancelled)(void *user); /* NULL: never */
  void *user;
} pst_evals_run_options;

typedef struct pst_evals_run {
  pst_evals_answer *answers; /* one per asked item, in that order */
  size_t n;                  /* as many as were to be asked; with or_less perhaps fewer */
  int64_t n_accepted, n_failed;
  int64_t n_reused; /* of the answers: kept from before, not asked again */
  int64_t wall_us;  /* of all sittings of the run, without the pauses between them */
  int64_t cost_nusd;
  int64_t run_id;          /* in the store */
  pst_error first_failure; /* code 0: none failed */
  pst_arena *arena;
} pst_evals_run;
/* Asks a plan the items through the gateway, grades, and keeps each answer in the store's runs (kind "eval" or "search"; docs/workload.md). The order of
 * the items does not matter to any answer. A call that fails counts as not accepted; a plan that cannot be run at all, and one whose first 16 calls all
 * fail, is an error. After an error or PST_E_CANCELLED what was answered stays for a resume. Stored rows are queued: a crash loses at most those. */
int pst_evals_run_plan(pst_gateway *gateway, pst_store *store, const pst_evals_workload *workload,
                       pst_gateway_plan *plan, const pst_evals_run_options *options, pst_evals_run *ret_run,
                       pst_error *err);
void pst_evals_run_done(pst_evals_run *run);
/* How often this part of these items was asked: the runs in the store, of whatever plan. Verify and sealed wear out by use. */
int pst_evals_uses(pst_store *store, const pst_evals_workload *workload, pst_evals_part part, int64_t *ret_n,
                   pst_error *err);

/* ---- comparison (evals/compare.c) ------------------------------------------------------------------------------- */

typedef enum pst_evals_verdict { PST_EVALS_YES, PST_EVALS_NO, PST_EVALS_NOT_ENOUGH_DATA } pst_evals_verdict;
typedef struct pst_evals_comparison {
  int64_t n, n11, n10, n01, n00; /* pairs where both answered; a = candidate, b = reference */
  pst_evals_interval a, b;       /* Wilson */
  pst_evals_interval difference; /* Tango, a - b */
  double mid_p, detectable, margin;
  pst_evals_verdict
      non_inferior; /* YES: difference.low > -margin. NO: difference.high < -margin. else not enough data */
} pst_evals_comparison;
/* Pairs two runs over the same items by item. A failed answer counts as not accepted. */
int pst_evals_compare(const pst_evals_run *a, const pst_evals_run *b, double margin, double confidence,
                      pst_evals_comparison *ret_comparison, pst_error *err);

/* ---- targets and reports (evals/target.c, evals/report.c) -------------------------------------------------------- */

/* The plan that a target's text names: "in-force" (the workload's plan in force), a plan file's path, a kept plan's hash (or 8 or more of its digits),
 * "model:NAME" or just NAME (a local model as it is: the workload's first prompt, greedy, no constraint; the plain layout where the model has no template) or
 * "PROVIDER/MODEL" (the same of a provider; PST_E_DENIED where the workload's privacy does not allow it). PST_E_NOT_FOUND, PST_E_BAD_INPUT. One
 * reference for the caller. */
int pst_evals_target_open(pst_gateway *gateway, pst_store *store, const pst_evals_workload *workload, const char *text,
                          pst_gateway_plan **ret_plan, pst_error *err);

typedef struct pst_evals_target {
  const char *name; /* as given */
  const pst_gateway_plan *plan;
  const pst_evals_run *run;
} pst_evals_target;

typedef struct pst_evals_report {
  const pst_evals_workload *workload;
  pst_evals_part part;
  const pst_evals_target *targets;         /* the last is the reference that the others are compared with */
  size_t n_targets;                        /* at least 1 */
  const pst_evals_comparison *comparisons; /* n_targets - 1: target i with the last */
  double confidence;
  int64_t n_uses;                /* of the part, this one included */
  int64_t machine_nusd_per_hour; /* 0: unknown */
} pst_evals_report;
typedef enum pst_evals_format { PST_EVALS_TEXT, PST_EVALS_JSON_TEXT, PST_EVALS_HTML } pst_evals_format;
/* The answer to the question that the report was asked: with two targets or more whether the first is not inferior to the last; with one, whether its
 * score reaches the goal's quality floor (YES: the whole interval does; NO: none of it). */
pst_evals_verdict pst_evals_report_verdict(const pst_evals_report *report);
const char *pst_evals_verdict_name(pst_evals_verdict verdict); /* "yes", "no", "not enough data" */
/* What the accepted answers of a run cost, nano-dollars per 1,000 of them: the machine's price over the run's wall time, or where a provider answers what
 * it charged. -1: nothing was accepted, or the price is unknown. */
int64_t pst_evals_cost_per_1000(const pst_evals_report *report, size_t target);
/* Appends the report. HTML is one self-contained page. */
int pst_evals_report_write(const pst_evals_report *report, pst_evals_format format, pst_buf *out, pst_error *err);

#ifdef __cplusplus
}
#endif
#endif
