/* What tuning would be made of: the optimizer's question (pst_optimizer_options.outlook), answered from the store, the workload and training itself. */
#include <penstock/flywheel.h>

#include <string.h>

enum { TRAFFIC_DAYS = 30, LEAST = 8 };
#define DAY_MS INT64_C(86400000)

static int64_t count_examples(const pst_evals_info *info) {
  int64_t n = 0;
  for (size_t i = 0; i < info->n_items; i++) n += info->items[i].part == PST_EVALS_EXAMPLES;
  return n;
}

typedef struct counting {
  pst_str workload;
  int64_t n_train;
} counting;

static int take_counts(void *user, const pst_store_record_counts *counts) {
  counting *c = user;
  if (pst_str_equal(counts->workload, c->workload)) c->n_train = counts->n_train;
  return 0;
}

static int take_time(void *user, const pst_store_request *request) {
  *(int64_t *)user = request->time_ms;
  return 0;
}

/* Requests of users that were served here in the last days, and over how many of these they were spread. */
static int put_traffic(pst_store *store, pst_str workload, pst_json_writer *w, pst_error *err) {
  int64_t now = pst_clock_unix_ms(), first = now;
  pst_store_request_filter f = PST_STORE_REQUEST_FILTER_INIT;
  pst_store_usage usage = {.n_requests = 0};
  f.workload = workload;
  f.purpose = PST_STORE_PURPOSE_USER;
  f.since_ms = now - TRAFFIC_DAYS * DAY_MS;
  int code = pst_store_usage_get(store, &f, &usage, err);
  f.limit = 1;
  if (!code) code = pst_store_request_each(store, &f, take_time, &first, err);
  if (code) return code;
  pst_json_key(w, "served");
  pst_json_begin_object(w);
  pst_json_member_int(w, "requests", usage.n_requests);
  pst_json_member_double(w, "days", (double)(now - first) / (double)DAY_MS);
  pst_json_end_object(w);
  return 0;
}

/* What training would read and how fast; where it cannot be, why. That it lacks memory is an answer, too: who asks has a plan in hand that must not be lost for it. */
static void put_training(const pst_flywheel_outlook_source *s, const char *model, pst_json_writer *w) {
  pst_tune_workload_options o = {.model = model,
                                 .codes = s->codes ? PST_FLYWHEEL_CODES : 0,
                                 .codes_from = PST_FLYWHEEL_CODES_FROM,
                                 .training = pst_tune_options_default()};
  pst_tune_outlook look;
  pst_error why = PST_ERROR_INIT;
  o.training.threads = s->threads;
  int code = pst_tune_workload_look(s->gateway, s->store, s->workload, &o, &look, &why);
  if (code == PST_E_NO_DATA) return; /* no example says how long they are */
  if (code) {
    pst_json_member_cstr(w, "why_not", code == PST_E_NOMEM ? "there is not memory enough to train it" : why.message);
    return;
  }
  pst_json_member_double(w, "prompt_tokens", look.prompt_tokens);
  pst_json_member_double(w, "answer_tokens", look.answer_tokens);
  if (look.n_codes) {
    pst_json_member_int(w, "codes", (int64_t)look.n_codes);
    pst_json_member_double(w, "plain_answer_tokens", look.plain_answer_tokens);
  }
  pst_json_member_int(w, "adapter_params", look.adapter_params);
  pst_json_member_double(w, "tokens_per_second", look.tokens_per_second);
  pst_json_member_bool(w, "probed", look.probed);
}

int pst_flywheel_outlook(void *user, const char *model, pst_buf *out, pst_error *err) {
  const pst_flywheel_outlook_source *s = user;
  const pst_evals_info *info = pst_evals_workload_info(s->workload);
  counting c = {pst_str_from(info->name), 0};
  pst_json_writer w = pst_json_writer_on(out, false);
  int code = pst_store_records_count(s->store, take_counts, &c, err);
  pst_json_begin_object(&w);
  int64_t n_examples = count_examples(info);
  pst_json_member_int(&w, "examples", n_examples);
  pst_json_member_int(&w, "records", c.n_train);
  if (!code) code = put_traffic(s->store, c.workload, &w, err);
  if (!code && n_examples + c.n_train >= LEAST) put_training(s, model, &w); /* else their number says it */
  pst_json_end_object(&w);
  if (!code) code = pst_buf_status(out);
  return code == PST_E_NOMEM ? pst_error_set(err, code, NULL, "no memory for the outlook") : code;
}
