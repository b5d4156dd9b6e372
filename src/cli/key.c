/* penstock key: API keys and what they may spend. */
#include <inttypes.h>
#include <string.h>

#include "cli/actions.h"
#include "cli/commands.h"
#include "cli/open.h"
#include "cli/workload_name.h"

static int read_limits(const pst_cli_args *a, pst_store_limits old, pst_store_limits *ret_limits, pst_error *err) {
  int code = pst_cli_money(a, "day", old.day_nusd, &ret_limits->day_nusd, err);
  if (!code) code = pst_cli_money(a, "month", old.month_nusd, &ret_limits->month_nusd, err);
  return code ? code : pst_cli_money(a, "total", old.total_nusd, &ret_limits->total_nusd, err);
}

/* --keep, --train and --retention over the consent that a key has (NULL: none of its own). *ret_own false: the server's is to hold. */
static int read_consent(const pst_cli_args *a, const pst_store_consent *old, pst_store_consent *ret_consent,
                        bool *ret_own, pst_error *err) {
  const pst_store_consent none = {.keep = PST_STORE_KEEP_METADATA};
  const char *keep = pst_cli_text(a, "keep"), *more = pst_cli_given(a, "train") ? "train" : "retention";
  pst_store_keep kept;
  *ret_own = !keep || strcmp(keep, "default") != 0;
  if (!*ret_own && !pst_cli_given(a, more)) return 0;
  if (!*ret_own)
    return pst_error_set(err, PST_E_BAD_INPUT, more,
                         "--keep default leaves that to the server as well: leave --%s out, or say what is kept", more);
  if (!keep && !old)
    return pst_error_set(
        err, PST_E_BAD_INPUT, "keep",
        "the key has no consent of its own yet: say with --keep what is kept (nothing, metadata or content) beside --%s",
        more);
  if (keep && !pst_store_keep_from(pst_str_from(keep), &kept))
    return pst_error_set(err, PST_E_BAD_INPUT, "keep",
                         "--keep takes nothing, metadata, content or default; not '%.40s'", keep);
  return pst_cli_consent(a, old ? *old : none, ret_consent, err);
}

static bool consents(const pst_cli_args *a) {
  return pst_cli_given(a, "keep") || pst_cli_given(a, "train") || pst_cli_given(a, "retention");
}

static void put_secret(const char *name, const char *secret, bool json) {
  if (!json) {
    puts(secret);
    fprintf(stderr, "This is the only time the key of \"%s\" is shown; only its hash is kept.\n", name);
    return;
  }
  pst_buf text = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&text, true);
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "name", name);
  pst_json_member_cstr(&w, "key", secret);
  pst_json_end_object(&w);
  puts(pst_buf_text(&text));
  pst_buf_done(&text);
}

static int create(const pst_cli_args *a, pst_store *store, const char *name, pst_error *err) {
  const pst_store_limits none = {PST_STORE_NO_LIMIT, PST_STORE_NO_LIMIT, PST_STORE_NO_LIMIT};
  pst_store_limits limits = none;
  char secret[PST_STORE_SECRET_BYTES];
  int64_t id;
  pst_store_consent consent;
  bool own = false;
  char *workload = NULL;
  int code = read_limits(a, none, &limits, err);
  if (!code && consents(a)) code = read_consent(a, NULL, &consent, &own, err);
  if (!code) code = pst_cli_workload_option(a, &workload, err);
  if (!code)
    code = pst_store_key_create(store, pst_str_from(name), pst_str_from(workload), limits, pst_clock_unix_ms(), &id,
                                secret, err);
  pst_free(workload);
  if (!code && own) code = pst_store_key_set_consent(store, id, &consent, err);
  if (code) return code;
  put_secret(name, secret, pst_cli_flag(a, "json"));
  int64_t price;
  if (pst_cli_given(a, "day") + pst_cli_given(a, "month") + pst_cli_given(a, "total") > 0 &&
      pst_store_machine_price_get(store, &price, NULL) == PST_E_NOT_FOUND)
    fputs(
        "note: what models of this machine answer costs nothing yet, and counts for no limit: 'penstock settings machine USD_PER_HOUR' says what the machine costs\n",
        stderr);
  return 0;
}

static int change(const pst_cli_args *a, pst_store *store, const char *name, pst_error *err) {
  pst_store_key key;
  pst_store_limits limits = {0};
  bool limited = pst_cli_given(a, "day") || pst_cli_given(a, "month") || pst_cli_given(a, "total");
  if (!limited && !pst_cli_given(a, "workload"))
    return pst_error_set(err, PST_E_BAD_INPUT, "key", "say what to change: --day, --month, --total or --workload");
  char *workload = NULL;
  int code = pst_store_key_get(store, pst_str_from(name), &key, err);
  if (!code) code = read_limits(a, key.limits, &limits, err);
  if (!code) code = pst_cli_workload_option(a, &workload, err);
  if (!code && limited) code = pst_store_key_set_limits(store, key.id, limits, err);
  if (!code && pst_cli_given(a, "workload"))
    code = pst_store_key_set_workload(store, key.id, pst_str_from(workload ? workload : ""), err);
  pst_free(workload);
  return code;
}

static int consent(const pst_cli_args *a, pst_store *store, const char *name, pst_error *err) {
  pst_store_key key;
  pst_store_consent wanted;
  bool own = false;
  int code = pst_store_key_get(store, pst_str_from(name), &key, err);
  if (code) return code;
  if (!consents(a))
    return pst_error_set(err, PST_E_BAD_INPUT, "key", "say what may be kept: --keep, --train or --retention");
  code = read_consent(a, key.has_consent ? &key.consent : NULL, &wanted, &own, err);
  return code ? code : pst_store_key_set_consent(store, key.id, own ? &wanted : NULL, err);
}

static int disable(const pst_cli_args *a, pst_store *store, const char *name, pst_error *err) {
  (void)a;
  pst_store_key key;
  int code = pst_store_key_get(store, pst_str_from(name), &key, err);
  return code ? code : pst_store_key_disable(store, key.id, pst_clock_unix_ms(), err);
}

/* ---- list ------------------------------------------------------------------------------------------------------------------ */

typedef struct listing {
  pst_store *store;
  pst_error *err;
  bool json, runs; /* runs: their accounts too, which nobody can call with */
  int n;
  pst_buf text;
  pst_json_writer w;
} listing;

static void put_amount(pst_json_writer *w, const char *name, int64_t nusd) {
  char text[32];
  pst_json_key(w, name);
  if (nusd == PST_STORE_NO_LIMIT)
    pst_json_put_null(w);
  else
    pst_json_put_cstr(w, pst_cli_show_money(nusd, text)); /* a string: exact */
}

static void put_json(listing *l, const pst_store_key *k, const pst_store_budget *b) {
  pst_json_writer *w = &l->w;
  const char *const texts[][2] = {{"name", k->name}, {"hint", k->hint}, {"workload", k->workload}};
  pst_json_begin_object(w);
  pst_json_member_int(w, "id", k->id);
  for (size_t i = 0; i < PST_ARRAY_LEN(texts); i++) {
    pst_json_key(w, texts[i][0]);
    pst_json_put_cstr(w, *texts[i][1] ? texts[i][1] : NULL);
  }
  pst_json_member_bool(w, "disabled", k->disabled_ms != 0);
  pst_json_member_int(w, "created_ms", k->created_ms);
  pst_json_member_cstr(w, "keep",
                       k->has_consent ? pst_store_keep_name(k->consent.keep) : NULL); /* null: the server's */
  pst_json_member_bool(w, "train", k->consent.train);
  pst_json_member_int(w, "retention_days", k->consent.retention_days);
  put_amount(w, "limit_day_usd", k->limits.day_nusd);
  put_amount(w, "limit_month_usd", k->limits.month_nusd);
  put_amount(w, "limit_total_usd", k->limits.total_nusd);
  put_amount(w, "spent_day_usd", b->day_nusd);
  put_amount(w, "spent_month_usd", b->month_nusd);
  put_amount(w, "spent_total_usd", b->total_nusd);
  put_amount(w, "reserved_usd", b->open_nusd);
  pst_json_member_int(w, "open_reservations", b->n_open);
  pst_json_member_int(w, "overruns", b->n_overruns);
  pst_json_end_object(w);
}

static const char *spent_of(int64_t spent, int64_t limit, char text[72]) {
  char a[32], b[32];
  if (limit == PST_STORE_NO_LIMIT)
    snprintf(text, 72, "%s", pst_cli_show_money(spent, a));
  else
    snprintf(text, 72, "%s of %s", pst_cli_show_money(spent, a), pst_cli_show_money(limit, b));
  return text;
}

static int put_key(void *user, const pst_store_key *k) {
  listing *l = user;
  pst_store_budget b;
  if (!*k->hint && !l->runs) return 0;
  int code = pst_store_budget_get(l->store, k->id, pst_clock_unix_ms(), &b, l->err);
  if (code) return code;
  l->n++;
  if (l->json) {
    put_json(l, k, &b);
    return 0;
  }
  char day[72], month[72], total[72], days[32] = "-";
  if (k->has_consent && k->consent.retention_days) (void)snprintf(days, sizeof days, "%d", k->consent.retention_days);
  if (l->n == 1)
    printf("%-20s %-14s %-16s %-24s %-24s %-24s %-10s %-14s %s\n", "NAME", "KEY", "WORKLOAD", "TODAY $", "MONTH $",
           "TOTAL $", "KEEP", "RETENTION DAYS", "STATE");
  printf("%-20s %-14s %-16s %-24s %-24s %-24s %-10s %-14s %s\n", k->name, *k->hint ? k->hint : "-",
         *k->workload ? k->workload : "-", spent_of(b.day_nusd, k->limits.day_nusd, day),
         spent_of(b.month_nusd, k->limits.month_nusd, month), spent_of(b.total_nusd, k->limits.total_nusd, total),
         !k->has_consent    ? "default"
         : k->consent.train ? "train"
                            : pst_store_keep_name(k->consent.keep),
         days, k->disabled_ms ? "disabled" : "in use");
  return 0;
}

static int list(const pst_cli_args *a, pst_store *store, pst_error *err) {
  listing l = {.store = store, .err = err, .json = pst_cli_flag(a, "json"), .runs = pst_cli_flag(a, "runs")};
  l.w = pst_json_writer_on(&l.text, true);
  if (l.json) pst_json_begin_array(&l.w);
  int code = pst_store_key_each(store, put_key, &l, err);
  if (l.json) pst_json_end_array(&l.w);
  if (!code && l.json) puts(pst_buf_text(&l.text));
  if (!code && !l.json && !l.n) puts("no keys yet; 'penstock key create NAME' makes one");
  pst_buf_done(&l.text);
  return code;
}

/* ---- the command ----------------------------------------------------------------------------------------------------------- */

enum { CREATE, LIMIT, CONSENT, DISABLE, LIST, N_ACTIONS };
static const char *const action_names[N_ACTIONS] = {"create", "limit", "consent", "disable", "list"};
enum { OF_MONEY = 1 << CREATE | 1 << LIMIT, OF_CONSENT = 1 << CREATE | 1 << CONSENT };
static const pst_cli_owned owned[] = {{"day", OF_MONEY},         {"month", OF_MONEY},  {"total", OF_MONEY},
                                      {"workload", OF_MONEY},    {"keep", OF_CONSENT}, {"train", OF_CONSENT},
                                      {"retention", OF_CONSENT}, {"runs", 1 << LIST}};

static int run_key(const pst_cli_args *a, pst_error *err) {
  static int (*const actions[LIST])(const pst_cli_args *, pst_store *, const char *, pst_error *) = {create, change,
                                                                                                     consent, disable};
  int i, code = pst_cli_action(a, action_names, N_ACTIONS, owned, PST_ARRAY_LEN(owned), &i, err);
  if (code) return code;
  if ((i == LIST) != (a->n_words < 2))
    return pst_error_set(err, PST_E_BAD_INPUT, "key",
                         i == LIST ? "list takes no name" : "%s needs the key's name: penstock key %s NAME",
                         action_names[i], action_names[i]);
  pst_store *store = NULL;
  code = pst_cli_store_open(a, &store, err);
  if (!code && i != LIST) code = actions[i](a, store, a->words[1], err);
  if (!code && (i == LIST || (i != CREATE && pst_cli_flag(a, "json")))) code = list(a, store, err);
  pst_store_close(store);
  return code;
}

static const pst_cli_option options[] = {
    {"day", 0, PST_CLI_TEXT, "USD", NULL, 0, 0, false, "create, limit: may spend so much a day (UTC); none: no limit"},
    {"month", 0, PST_CLI_TEXT, "USD", NULL, 0, 0, false, "create, limit: may spend so much a calendar month"},
    {"total", 0, PST_CLI_TEXT, "USD", NULL, 0, 0, false, "create, limit: may spend so much ever"},
    {"workload", 'w', PST_CLI_TEXT, "WORKLOAD", NULL, 0, 0, false,
     "create, limit: answers requests whose model is nothing this server knows"},
    {"runs", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false, "list: what runs with --budget-usd have spent, too"},
    {"keep", 0, PST_CLI_TEXT, "WHAT", NULL, 0, 0, false,
     "create, consent: of a request: nothing, metadata, content (texts too), or default: what the server says"},
    {"train", 0, PST_CLI_TEXT, "YES/NO", NULL, 0, 0, false,
     "create, consent: whether content may become training data"},
    {"retention", 0, PST_CLI_INT, "DAYS", NULL, 0, PST_STORE_RETENTION_MAX, false,
     "create, consent: then texts, subject and feedback are deleted (0: never)"},
    PST_CLI_HOME,
    PST_CLI_JSON,
};
const pst_cli_command pst_cli_key = {"key",
                                     "create|list|limit|consent|disable [NAME]",
                                     "API keys and their budgets",
                                     "create NAME   makes a key and prints it, once; limits and workload as below\n"
                                     "list          keys, what they may spend and have spent (the default)\n"
                                     "limit NAME    changes limits or workload\n"
                                     "consent NAME  says what may be kept of its requests, and for how long\n"
                                     "disable NAME  for good; running requests are finished",
                                     0,
                                     2,
                                     options,
                                     PST_ARRAY_LEN(options),
                                     run_key};
