/* Penstock store: what outlives the process. Requests, feedback, data sets, API keys, the ledger, plans, evidence, runs, jobs,
 * settings, prices, cached answers (all in HOME/penstock.db) and files kept by content hash (HOME/files).
 *
 * Threads: any thread may call any function of an open store. All writes of a process go through one writer thread, which
 * commits whatever has gathered as one durable transaction (group commit); reads run beside it on connections of their own.
 * A function that returns after a write returns after the commit, unless its comment says "queued". Several processes may
 * hold the same store open; budgets hold across them.
 * Fork: an open store must not be used in a forked child; open it there anew.
 * Signals: a program that must survive RLIMIT_FSIZE ignores SIGXFSZ; the failure is then PST_E_NO_SPACE.
 *
 * Text: a pst_str argument with data == NULL is stored as "absent" and comes back so. Text must be UTF-8. What a callback is
 * given lives until it returns. A callback returns 0 to go on; anything else stops the walk and is returned. A callback must
 * not write to the same store.
 * Time: `_ms` are Unix milliseconds. Money: `_nusd` are int64 nano-dollars.
 * Errors: besides those named, every function may fail with PST_E_NOMEM, PST_E_IO, PST_E_NO_SPACE (disk full: nothing of that
 * call was stored), PST_E_BUSY (another process held the write lock for over ten seconds) and PST_E_CORRUPT. `err` may be NULL. */
#ifndef PENSTOCK_STORE_H
#define PENSTOCK_STORE_H

#include <penstock/base.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pst_store pst_store;

/* ---- money (store/money.c; pure, no store needed) --------------------------------------------------------------- */

#define PST_STORE_NUSD_PER_USD INT64_C(1000000000)

/* *ret = a + b, a - b, or a * n. Return 0, or PST_E_LIMIT when it does not fit (ret untouched). */
int pst_store_nusd_add(int64_t a, int64_t b, int64_t *ret_nusd) PST_MUST_CHECK;
int pst_store_nusd_sub(int64_t a, int64_t b, int64_t *ret_nusd) PST_MUST_CHECK;
int pst_store_nusd_mul(int64_t a, int64_t n, int64_t *ret_nusd) PST_MUST_CHECK;
/* a * n / d rounded up (away from what we would like to pay), through 128 bits. a >= 0, n >= 0, d > 0, else PST_E_BAD_INPUT.
 * Token cost: a = n_tokens, n = price per million tokens, d = 1000000. Machine: a = busy us, n = price per hour, d = 3.6e9. */
int pst_store_nusd_scale(int64_t a, int64_t n, int64_t d, int64_t *ret_nusd) PST_MUST_CHECK;
/* Reads "12", "0.15", "$1.5" or "1e-3" US dollars exactly; digits beyond the ninth decimal must be 0. PST_E_BAD_INPUT, or PST_E_LIMIT
 * when out of range. */
int pst_store_nusd_parse(pst_str text, int64_t *ret_nusd);
/* "-12.5", shortest exact decimal US dollars. */
void pst_store_nusd_format(int64_t nusd, char ret_text[32]);

/* ---- opening (store/open.c) ------------------------------------------------------------------------------------- */

/* Opens HOME/penstock.db, making it (mode 0600) or bringing its schema up to date. Settles what crashed processes left open.
 * home: the data directory, there already (pst_home_open).
 * Errors: PST_E_CORRUPT (not a database, damaged, or another program's), PST_E_UNSUPPORTED (written by a newer Penstock),
 * PST_E_NOT_FOUND, PST_E_BAD_INPUT (home is a file), PST_E_DENIED. Close with pst_store_close. */
int pst_store_open(const char *home, pst_store **ret_store, pst_error *err);
/* Commits everything queued and closes. NULL is fine. No other thread may be inside the store. */
void pst_store_close(pst_store *store);
/* Waits until everything queued before is durable. Returns the first failure of a queued write since the last flush, or 0. */
int pst_store_flush(pst_store *store, pst_error *err);
/* Reads every page and checks it (seconds for a large file). PST_E_CORRUPT with what is wrong. */
int pst_store_verify(pst_store *store, pst_error *err);
const char *pst_store_home(const pst_store *store); /* lives as long as the store */

typedef struct pst_store_stats {
  int64_t n_commits;       /* transactions committed by this process */
  int64_t n_writes;        /* writes in them: n_writes / n_commits is the group size */
  int64_t n_failed_queued; /* queued writes that failed (each also logged) */
  int64_t n_pending;       /* writes waiting now */
} pst_store_stats;
pst_store_stats pst_store_stats_get(pst_store *store);

/* ---- API keys (store/keys.c) ------------------------------------------------------------------------------------ */

#define PST_STORE_NO_LIMIT INT64_C(-1)
#define PST_STORE_SECRET_BYTES 80 /* a secret with its terminator */

/* What a key may spend, nano-dollars; PST_STORE_NO_LIMIT for none. Days and months are calendar ones, UTC. */
typedef struct pst_store_limits {
  int64_t day_nusd, month_nusd, total_nusd;
} pst_store_limits;

/* What may be kept of a request. Metadata: who asked what workload when, tokens, time, money, subject, feedback without texts. */
typedef enum pst_store_keep {
  PST_STORE_KEEP_NOTHING = -1, /* no record at all; the ledger has its sum of money */
  PST_STORE_KEEP_METADATA,
  PST_STORE_KEEP_CONTENT,
} pst_store_keep;
const char *pst_store_keep_name(pst_store_keep keep); /* "nothing", "metadata", "content" */
bool pst_store_keep_from(pst_str name, pst_store_keep *ret_keep);

enum { PST_STORE_RETENTION_MAX = 36500 }; /* days */
typedef struct pst_store_consent {
  pst_store_keep keep;
  bool train;         /* with CONTENT: may become training data */
  int retention_days; /* then content, subject and feedback are deleted; 0: never */
} pst_store_consent;
/* What both allow: the lesser keep, train only where both say so, the shorter retention. */
pst_store_consent pst_store_consent_lower(pst_store_consent a, pst_store_consent b);

typedef struct pst_store_key {
  int64_t id; /* > 0 */
  char name[64];
  char hint[16];     /* the secret's first characters, for lists */
  char workload[64]; /* default workload; empty: none */
  pst_store_limits limits;
  bool has_consent; /* false: what the server says holds */
  pst_store_consent consent;
  int64_t created_ms;
  int64_t disabled_ms; /* 0: in use */
} pst_store_key;

/* Makes a key. name: 1 to 63 bytes, unique (PST_E_EXISTS). workload: may be absent. ret_secret: shown once, only its salted SHA-256
 * is kept; NULL makes an account without a secret (for runs of the command line). Negative limits other than NO_LIMIT: PST_E_BAD_INPUT. */
int pst_store_key_create(pst_store *store, pst_str name, pst_str workload, pst_store_limits limits, int64_t now_ms,
                         int64_t *ret_id, char ret_secret[PST_STORE_SECRET_BYTES], pst_error *err);
/* The account that a run's calls to providers are charged to, made at first, without a secret: the ledger holds it to total_nusd over all sittings of the run.
 * 0: no limit, and *ret_id is 0, no account. */
int pst_store_run_account(pst_store *store, int64_t run_id, int64_t total_nusd, int64_t now_ms, int64_t *ret_id,
                          pst_error *err);
/* Whether it was such an account that refused a call, and not a provider's own quota. */
bool pst_store_run_refused(const pst_error *error);
/* The key that a caller's secret opens; PST_E_DENIED for an unknown, wrong or disabled one (the same sentence for all). */
int pst_store_key_check(pst_store *store, pst_str secret, pst_store_key *ret_key, pst_error *err);
int pst_store_key_get(pst_store *store, pst_str name, pst_store_key *ret_key, pst_error *err); /* PST_E_NOT_FOUND */
int pst_store_key_each(pst_store *store, int (*fn)(void *user, const pst_store_key *key), void *user, pst_error *err);
int pst_store_key_set_limits(pst_store *store, int64_t key_id, pst_store_limits limits, pst_error *err);
int pst_store_key_set_workload(pst_store *store, int64_t key_id, pst_str workload, pst_error *err);
/* NULL: the server's own holds again. PST_E_BAD_INPUT for training without content, or a retention outside 0 to PST_STORE_RETENTION_MAX. */
int pst_store_key_set_consent(pst_store *store, int64_t key_id, const pst_store_consent *consent, pst_error *err);
int pst_store_key_disable(pst_store *store, int64_t key_id, int64_t now_ms, pst_error *err); /* for good */

/* ---- budgets and the ledger (store/ledger.c) -------------------------------------------------------------------- */

/* Guarantee: for each key and each of its limited periods, settled money plus open reserves never exceeds the limit, however
 * many threads and processes reserve at once, as long as no call costs more than its reserve. A reservation is on disk
 * before pst_store_budget_reserve returns (or its callback runs). One left open by a crashed process counts, for good, at
 * its full reserve. Lowering a limit takes nothing back; it refuses what comes after. */

/* Reserves upper_bound_nusd (>= 0) for one call at now_ms. key_id 0 means "no key": *ret_reservation is 0 at once, and nothing is
 * written. Errors: PST_E_BUDGET (the sentence names the period and what is left), PST_E_NOT_FOUND, PST_E_DENIED (disabled key),
 * PST_E_BAD_INPUT. */
int pst_store_budget_reserve(pst_store *store, int64_t key_id, int64_t upper_bound_nusd, int64_t now_ms,
                             int64_t *ret_reservation, pst_error *err);
/* The same without waiting, for I/O threads. `fn` runs exactly once, on the writer thread (keep it to a queue push), or before
 * the return where nothing needs writing; code is 0 or the error. Not called if this function itself fails. */
typedef void (*pst_store_reserved_fn)(void *user, int code, int64_t reservation, const pst_error *err);
int pst_store_budget_reserve_async(pst_store *store, int64_t key_id, int64_t upper_bound_nusd, int64_t now_ms,
                                   pst_store_reserved_fn fn, void *user, pst_error *err);
/* Settles at what the call really cost (>= 0). Queued: the ledger is right at the latest after the next flush, and until then counts the
 * full reserve. An actual above the reserve is charged in full (the money is gone), flagged and logged. A reservation that is
 * not open (settled before, recovered, unknown) is left as it is, and logged. Reservation 0 does nothing. */
int pst_store_budget_settle(pst_store *store, int64_t reservation, int64_t actual_nusd, pst_error *err);
/* The call did not happen: the same as settling at 0, and marked so. Queued. */
int pst_store_budget_release(pst_store *store, int64_t reservation, pst_error *err);

typedef struct pst_store_budget {
  pst_store_limits limits;
  int64_t day_nusd, month_nusd, total_nusd; /* settled plus open, of the periods that hold now_ms */
  int64_t open_nusd;                        /* of the total: open reserves */
  int64_t n_open;
  int64_t n_overruns; /* settlements above their reserve, ever */
} pst_store_budget;
int pst_store_budget_get(pst_store *store, int64_t key_id, int64_t now_ms, pst_store_budget *ret_budget,
                         pst_error *err);

/* ---- requests and feedback (store/requests.c) ------------------------------------------------------------------- */

typedef enum pst_store_purpose {
  PST_STORE_PURPOSE_USER,
  PST_STORE_PURPOSE_SHADOW,
  PST_STORE_PURPOSE_EVAL,
  PST_STORE_PURPOSE_SEARCH,
  PST_STORE_PURPOSE_TEACHER,
  PST_STORE_PURPOSE_COUNT,
} pst_store_purpose;
const char *pst_store_purpose_name(pst_store_purpose purpose); /* "user" ... */

/* How an answered request is found again by others that ask exactly the same (store/cache.c). */
typedef struct pst_store_reuse {
  pst_str key; /* of all that the answer depends on, usually a hash; absent: it is not to be found */
  bool hit;    /* it was itself answered in this way: notes when, and adds nothing */
  pst_str
      examples; /* with an answer: the file that its examples came from; where it is withdrawn meanwhile nothing is added */
  int64_t max_entries; /* with an answer: of the workload; those not asked for longest go */
} pst_store_reuse;

typedef struct pst_store_request {
  int64_t id;            /* set by the store; ascending in order of arrival */
  pst_str completion_id; /* what the caller was given; unique */
  int64_t time_ms;       /* arrival */
  pst_store_purpose purpose;
  pst_str workload; /* absent: passed through outside any workload */
  pst_str plan_hash;
  int64_t key_id; /* 0: none */
  pst_str target; /* "local", "classifier", "cache", or the provider's name */
  pst_str model;
  int64_t prompt_tokens; /* cached ones included */
  int64_t cached_tokens;
  int64_t completion_tokens;
  int64_t ttft_us, total_us; /* -1: not measured */
  int status;                /* HTTP status the caller saw */
  pst_str finish;            /* "stop", "length" ...; absent on failure */
  int64_t cost_nusd;
  pst_store_keep keep;   /* NOTHING is not stored, METADATA without its content */
  bool train;            /* with CONTENT */
  bool imported;         /* brought in by pst_store_records_import, not served here */
  int64_t expires_ms;    /* when pst_store_records_prune forgets it; 0: never */
  pst_str subject;       /* whose request it was, by the application's own id; absent: unknown */
  pst_str input_json;    /* content: what was asked, a request as providers take it */
  pst_str output_json;   /* content: {"choices": [{"index", "text", "finish"}]} */
  pst_store_reuse reuse; /* to be put only */
} pst_store_request;

/* Queues a record; strings are copied. PST_E_BAD_INPUT for a missing completion_id, PST_E_LIMIT when 100,000 writes wait already. */
int pst_store_request_put(pst_store *store, const pst_store_request *request, pst_error *err);

typedef enum pst_store_origin { PST_STORE_SERVED, PST_STORE_IMPORTED, PST_STORE_ANY_ORIGIN } pst_store_origin;
typedef struct pst_store_request_filter {
  pst_str workload;           /* data NULL: any */
  pst_str completion_id;      /* data NULL: any */
  int purpose;                /* pst_store_purpose, or -1: any */
  int64_t key_id;             /* -1: any */
  int64_t since_ms, until_ms; /* [since, until); until 0: no end */
  int64_t after_id;           /* only records with a larger id: pages */
  int64_t limit;              /* 0: no limit */
  bool newest_first;
  bool with_content;       /* fill input_json, output_json */
  pst_str subject;         /* data NULL: any */
  pst_store_origin origin; /* INIT: SERVED */
  bool answered;           /* only those that were answered, whose texts are kept, and have not expired */
  bool train;              /* only those that may become training data */
  bool
      lasting; /* only those of whose retention a week or a quarter is left: what is made of them outlives its making */
} pst_store_request_filter;
#define PST_STORE_REQUEST_FILTER_INIT \
  { {NULL, 0}, {NULL, 0}, -1, -1, 0, 0, 0, 0, false, false, {NULL, 0}, PST_STORE_SERVED, false, false, false }
int pst_store_request_each(pst_store *store, const pst_store_request_filter *filter,
                           int (*fn)(void *user, const pst_store_request *request), void *user, pst_error *err);

typedef struct pst_store_usage {
  int64_t n_requests, n_failed; /* failed: status >= 400 */
  int64_t prompt_tokens, cached_tokens, completion_tokens;
  int64_t cost_nusd;
} pst_store_usage;
/* Sums over the filter (its limit, order and with_content are ignored). */
int pst_store_usage_get(pst_store *store, const pst_store_request_filter *filter, pst_store_usage *ret_usage,
                        pst_error *err);
/* Forgets the content (not the books) of records older than before_ms. *ret_n: how many; may be NULL. */
int pst_store_request_forget_content(pst_store *store, int64_t before_ms, int64_t *ret_n, pst_error *err);

typedef struct pst_store_feedback {
  int64_t id; /* set by the store */
  pst_str completion_id;
  int64_t time_ms;
  int thumbs; /* 1 up, -1 down, 0 not given */
  bool has_score;
  double score;
  pst_str correction; /* the answer it should have been */
  pst_str outcome;    /* what happened in the product */
  bool retried;       /* the user asked again */
  bool abandoned;     /* the user went away */
} pst_store_feedback;
/* Appends; several per completion are fine. PST_E_NOT_FOUND for an unknown completion_id, PST_E_BAD_INPUT when it says nothing, PST_E_UNSUPPORTED
 * for a correction where the record's consent does not allow texts. */
int pst_store_feedback_put(pst_store *store, const pst_store_feedback *feedback, pst_error *err);
/* completion_id data NULL: all; after_id as above. Oldest first. */
int pst_store_feedback_each(pst_store *store, pst_str completion_id, int64_t after_id,
                            int (*fn)(void *user, const pst_store_feedback *feedback), void *user, pst_error *err);

/* ---- records as data (store/records.c) -------------------------------------------------------------------------- */

/* Stores rows as imported records, in one transaction: all or none, whatever happens to the process. next: 1 with a row (its strings live until the next
 * call), 0 at the end, negative to give up with *err; it runs on the writer thread. A row whose completion_id is there already is passed over. While
 * it runs no other process can write: some 10 us a row. */
int pst_store_records_import(pst_store *store, int (*next)(void *user, pst_store_request *ret_row, pst_error *err),
                             void *user, int64_t *ret_n_new, int64_t *ret_n_known, pst_error *err);

/* What an erasure reached. */
typedef struct pst_store_erased_set {
  char hash[65],
      replaced_by
          [65]; /* replaced_by: the same without the erased lines; empty: nothing was left, or it is not made of lines */
  const char *kind;
  int64_t n_lines; /* erased of it */
} pst_store_erased_set;
typedef struct pst_store_erased_use {
  char hash[65]; /* of the data set */
  const char *kind, *name;
} pst_store_erased_use;
typedef struct pst_store_erasure {
  int64_t n_records;
  pst_store_erased_set *sets;
  size_t n_sets, sets_capacity;
  pst_store_erased_use *uses; /* what was made of those sets and is now marked stale */
  size_t n_uses, uses_capacity;
  bool
      in_log; /* another process reads: bytes may stand in the write-ahead log until pst_store_records_prune finds it done */
  pst_arena *arena;
} pst_store_erasure;
void pst_store_erasure_done(pst_store_erasure *erasure);

/* Deletes records with content and feedback: all of a subject, or the one with a completion id (the other has data NULL). Data sets made of them are
 * replaced by others without their lines and their files removed; what was made of those sets is marked stale. PST_E_NOT_FOUND when there is no
 * such record. The bytes are overwritten in the database. */
int pst_store_records_erase(pst_store *store, pst_str subject, pst_str completion_id, int64_t now_ms,
                            pst_store_erasure *ret_erasure, pst_error *err);
/* The same for all that was imported under a workload's name: an import taken back. Records of what was served under it stay. */
int pst_store_records_unimport(pst_store *store, pst_str workload, int64_t now_ms, pst_store_erasure *ret_erasure,
                               pst_error *err);
/* The same for what has expired; of what was served here the books remain (tokens, time, money), without subject. Does, too, what earlier erasures could not do to their end. */
int pst_store_records_prune(pst_store *store, int64_t now_ms, pst_store_erasure *ret_erasure, pst_error *err);

/* What there is of each workload, by its name (absent: outside any). */
typedef struct pst_store_record_counts {
  pst_str workload;
  int64_t n_records; /* answered requests of users, and imported rows */
  int64_t n_imported, n_content, n_train, n_subjects, n_expiring;
  int64_t n_feedback, n_up, n_down, n_corrected; /* feedback rows */
  int64_t oldest_ms, newest_ms;
} pst_store_record_counts;
int pst_store_records_count(pst_store *store, int (*fn)(void *user, const pst_store_record_counts *counts), void *user,
                            pst_error *err);

/* ---- data sets and their lineage (store/data_sets.c) ------------------------------------------------------------ */

typedef enum pst_store_data_state {
  PST_STORE_DATA_WHOLE,
  PST_STORE_DATA_WITHDRAWN /* records of it were erased, or its making was broken off; its file is gone */
} pst_store_data_state;
typedef struct pst_store_data_set {
  pst_str hash; /* of its file (pst_store_file_path) */
  pst_str
      kind; /* "training": one JSON object a line, {"messages": [...], "part": "train" or "held", "cluster": n}; others as their makers say */
  pst_str workload;
  int64_t n_lines;
  pst_str params, report; /* JSON, or absent */
  int64_t created_ms;
  pst_store_data_state state;
  pst_str replaced_by; /* with WITHDRAWN: absent when nothing was left */
} pst_store_data_set;
/* Keeps a text made of records as a file, and who they are: record_ids[i] gave line i (by_line), or simply took part. set->hash, state and replaced_by are not read. The row comes before
 * the file, so that whatever happens an erasure finds it. Putting what is there again changes nothing. PST_E_NOT_FOUND when one of the records is gone meanwhile. */
int pst_store_data_set_put(pst_store *store, const pst_store_data_set *set, pst_str text, bool by_line,
                           const int64_t *record_ids, size_t n_records, char ret_hash[65], pst_error *err);
/* By full hash or a unique prefix of at least 8 digits; calls fn once. PST_E_NOT_FOUND. */
int pst_store_data_set_get(pst_store *store, pst_str hash, int (*fn)(void *user, const pst_store_data_set *set),
                           void *user, pst_error *err);
/* Newest first; workload data NULL: any. */
int pst_store_data_set_each(pst_store *store, pst_str workload, int (*fn)(void *user, const pst_store_data_set *set),
                            void *user, pst_error *err);
/* The records it was made of, by line. */
int pst_store_data_set_records(pst_store *store, pst_str hash, int (*fn)(void *user, int64_t line, int64_t record_id),
                               void *user, pst_error *err);
/* The sets that hold a record. */
int pst_store_data_set_of_record(pst_store *store, int64_t record_id, int (*fn)(void *user, pst_str hash), void *user,
                                 pst_error *err);
/* Notes that something (kind "adapter", with its name) was made of a data set; again: as the set is now. PST_E_NOT_FOUND for an unknown set. */
int pst_store_data_set_used(pst_store *store, pst_str hash, pst_str kind, pst_str name, int64_t now_ms, pst_error *err);
/* Kinds of products that hold a set's texts: when the set is withdrawn, they are removed with it unless they were made of a whole set as well. The folder's name is its path from
 * the store's home, that of an index its hash. */
#define PST_STORE_PRODUCT_FOLDER "folder"
#define PST_STORE_PRODUCT_EXAMPLES "examples"
#define PST_STORE_PRODUCT_CHECKPOINT "checkpoint" /* pst_store_checkpoint_note; goes when any of its sets does */
/* Keeps a file made of a data set, as pst_store_file_put does, and notes it before it is there. PST_E_NOT_FOUND: the set is unknown or withdrawn. */
int pst_store_data_set_product(pst_store *store, pst_str set, pst_str kind, const void *data, size_t n,
                               char ret_hash[65], pst_error *err);
/* The set that a folder was made of, by what pst_store_data_set_used noted; empty: none. */
int pst_store_data_set_of_folder(pst_store *store, const char *folder, char ret_hash[65], pst_error *err);
/* Whether records of a set, or of that which a product was made of, were erased. False where the store cannot be read. */
bool pst_store_data_withdrawn(pst_store *store, pst_str hash);
/* Those noted, and adapters that name the set as their data. hash data NULL: of all sets. stale: records of the set were erased since. */
int pst_store_data_set_uses(pst_store *store, pst_str hash,
                            int (*fn)(void *user, pst_str hash, pst_str kind, pst_str name, bool stale), void *user,
                            pst_error *err);

/* ---- items that no training data may hold (store/data_sets.c) --------------------------------------------------- */

typedef struct pst_store_guarded {
  pst_str workload, item;
  int part;              /* of the workload, as evals number them */
  const uint64_t *words; /* hashes of its words in their order, [n_words] */
  size_t n_words;
} pst_store_guarded;
/* Keeps the items of a workload's state (fingerprint) for good. Keeping a state twice is fine, and quick. */
int pst_store_guard_put(pst_store *store, pst_str workload, pst_str fingerprint, const pst_store_guarded *items,
                        size_t n, pst_error *err);
bool pst_store_guard_known(pst_store *store, pst_str workload, pst_str fingerprint);
int pst_store_guard_each(pst_store *store, int (*fn)(void *user, const pst_store_guarded *item), void *user,
                         pst_error *err);

/* ---- plans and evidence (store/plans.c) ------------------------------------------------------------------------- */

typedef enum pst_store_plan_role { PST_STORE_PLAN_IN_FORCE, PST_STORE_PLAN_SHADOW } pst_store_plan_role;

/* Keeps a plan under the SHA-256 of its canonical form (RFC 8785); keeping one twice is fine. json: one JSON object (its schema is
 * the caller's business). */
int pst_store_plan_put(pst_store *store, pst_str json, int64_t now_ms, char ret_hash[65], pst_error *err);
/* By full hash or a unique prefix of at least 8 digits. *ret_json: canonical, terminated, pst_free. ret_hash: may be NULL.
 * PST_E_NOT_FOUND; PST_E_BAD_INPUT when the prefix is ambiguous. */
int pst_store_plan_get(pst_store *store, pst_str hash, char **ret_json, char ret_hash[65], pst_error *err);
/* Puts a kept plan into a role of a workload. hash data NULL: leaves the role empty. note: may be absent; goes into the history. */
int pst_store_plan_assign(pst_store *store, pst_str workload, pst_store_plan_role role, pst_str hash, pst_str note,
                          int64_t now_ms, pst_error *err);
/* Puts a kept plan in force in the place of the plan `expected` (empty: of none), as one step. It may be in force already. PST_E_EXISTS: another one is by now, and stays. */
int pst_store_plan_replace(pst_store *store, pst_str workload, const char *expected, pst_str hash, pst_str note,
                           int64_t now_ms, pst_error *err);
/* Puts back the plan that was in force before the present one. expected: which that must be, by full hash (PST_E_EXISTS: it is another by now, and nothing changes); NULL: any.
 * PST_E_NOT_FOUND when there was none. ret_hash: may be NULL. */
int pst_store_plan_roll_back(pst_store *store, pst_str workload, const char *expected, pst_str note, int64_t now_ms,
                             char ret_hash[65], pst_error *err);
/* The plan that a roll-back would put back; PST_E_NOT_FOUND when there was none. ret_json (pst_free) and ret_hash may be NULL. */
int pst_store_plan_before(pst_store *store, pst_str workload, char **ret_json, char ret_hash[65], pst_error *err);
/* The name of an adapter that a plan rests on (names by its file) and that learned from records which were erased since; empty: there is none. */
int pst_store_plan_find_stale(pst_store *store, pst_str plan_json, char ret_adapter[64], pst_error *err);
/* The plan in a role; PST_E_NOT_FOUND when empty. ret_json (pst_free) and ret_hash may be NULL. */
int pst_store_plan_assigned(pst_store *store, pst_str workload, pst_store_plan_role role, char **ret_json,
                            char ret_hash[65], pst_error *err);
/* A number that grows with each assignment made by any process: poll it to notice a new plan. Never fails; 0 when it cannot be read. */
int64_t pst_store_plan_generation(pst_store *store);

typedef struct pst_store_plan_event {
  int64_t id, time_ms;
  pst_str workload, plan_hash; /* plan_hash absent: role emptied */
  pst_store_plan_role role;
  pst_str event; /* "assign" or "roll back" */
  pst_str note;
} pst_store_plan_event;
/* Oldest first; workload data NULL: all. */
int pst_store_plan_history(pst_store *store, pst_str workload, int (*fn)(void *user, const pst_store_plan_event *event),
                           void *user, pst_error *err);

/* Keeps a JSON document that says what was measured of a kept plan. ret_id: may be NULL. PST_E_NOT_FOUND for an unknown plan. */
int pst_store_evidence_put(pst_store *store, pst_str plan_hash, pst_str workload, pst_str json, int64_t now_ms,
                           int64_t *ret_id, pst_error *err);
/* Oldest first; plan_hash or workload data NULL: any. */
int pst_store_evidence_each(pst_store *store, pst_str plan_hash, pst_str workload,
                            int (*fn)(void *user, int64_t id, int64_t time_ms, pst_str plan_hash, pst_str json),
                            void *user, pst_error *err);

/* ---- runs (store/runs.c) ---------------------------------------------------------------------------------------- */

typedef enum pst_store_run_state {
  PST_STORE_RUN_ACTIVE, /* begun, not ended; after a crash still so, and can be taken up again */
  PST_STORE_RUN_DONE,
  PST_STORE_RUN_FAILED,
  PST_STORE_RUN_CANCELLED,
} pst_store_run_state;

typedef struct pst_store_run {
  int64_t id;
  pst_str kind;     /* "eval", "optimize", "calibration" ... */
  pst_str workload; /* may be absent */
  pst_str params;   /* JSON, canonical */
  pst_store_run_state state;
  pst_str result; /* JSON, absent until it ended */
  int64_t created_ms, updated_ms;
  int64_t n_rows;
} pst_store_run;

/* Begins a run. params: a JSON value; what makes two runs "the same" must be in it. */
int pst_store_run_create(pst_store *store, pst_str kind, pst_str workload, pst_str params, int64_t now_ms,
                         int64_t *ret_id, pst_error *err);
/* The newest run of this kind, workload and params (by canonical form) in `state`; PST_E_NOT_FOUND. This is how a run resumes. */
int pst_store_run_find(pst_store *store, pst_str kind, pst_str workload, pst_str params, pst_store_run_state state,
                       int64_t *ret_id, pst_error *err);
/* Calls fn once with the run; PST_E_NOT_FOUND. */
int pst_store_run_get(pst_store *store, int64_t run_id, int (*fn)(void *user, const pst_store_run *run), void *user,
                      pst_error *err);
/* Newest first; kind or workload data NULL: any; limit 0: all. */
int pst_store_run_each(pst_store *store, pst_str kind, pst_str workload, int64_t limit,
                       int (*fn)(void *user, const pst_store_run *run), void *user, pst_error *err);
/* Appends a measurement. key: names it within the run ("item 17, plan ab12"); a second row with the same key is not stored, and is
 * no error, so that a resumed run may repeat its last steps; data NULL: always stored. json: one JSON value.
 * durable: returns after the commit; else queued (flush before claiming the run is done). */
int pst_store_run_append(pst_store *store, int64_t run_id, pst_str key, pst_str json, bool durable, pst_error *err);
/* Rows in order of arrival with seq > after_seq. */
int pst_store_run_rows(pst_store *store, int64_t run_id, int64_t after_seq,
                       int (*fn)(void *user, int64_t seq, pst_str key, pst_str json), void *user, pst_error *err);
/* Ends a run: state, and a JSON result or absent. Queued rows before it are committed with it. */
int pst_store_run_end(pst_store *store, int64_t run_id, pst_store_run_state state, pst_str result, int64_t now_ms,
                      pst_error *err);
/* One process at a time at what runs of a kind work at: `question` is the workload, or whatever else makes two of them the same. The lock goes with its owner's end, however that
 * comes. PST_E_BUSY: somebody else is at it. */
typedef struct pst_store_run_lock {
  int fd; /* -1: none is held */
  char path[4096];
} pst_store_run_lock;
#define PST_STORE_RUN_LOCK_INIT \
  { -1, "" }
int pst_store_run_lock_take(pst_store *store, const char *kind, pst_str question, pst_store_run_lock *ret_lock,
                            pst_error *err);
void pst_store_run_lock_give(pst_store_run_lock *lock); /* one that was not taken is fine */

/* ---- jobs (store/jobs.c) ---------------------------------------------------------------------------------------- */

typedef enum pst_store_job_state {
  PST_STORE_JOB_QUEUED,
  PST_STORE_JOB_RUNNING,
  PST_STORE_JOB_DONE,
  PST_STORE_JOB_FAILED,
  PST_STORE_JOB_CANCELLED,
} pst_store_job_state;

typedef struct pst_store_job {
  int64_t id;
  pst_str kind, params; /* params: JSON */
  pst_store_job_state state;
  bool cancel_wanted;
  double progress;                          /* 0 to 1 */
  pst_str message;                          /* what it is doing, or why it failed; may be absent */
  pst_str result;                           /* JSON; absent until done */
  int64_t attempts;                         /* how often a worker took it */
  int64_t created_ms, started_ms, ended_ms; /* 0: not yet */
} pst_store_job;

int pst_store_job_submit(pst_store *store, pst_str kind, pst_str params, int64_t now_ms, int64_t *ret_id,
                         pst_error *err);
/* Takes the oldest queued job for this process, having put back in the queue those of workers that died; one that was taken
 * max_attempts times already fails instead. *ret_id 0: nothing to do. */
int pst_store_job_take(pst_store *store, int64_t max_attempts, int64_t now_ms, int64_t *ret_id, pst_error *err);
/* From the worker: progress and message. *ret_cancel (may be NULL): somebody asked for its end. */
int pst_store_job_report(pst_store *store, int64_t job_id, double progress, pst_str message, bool *ret_cancel,
                         pst_error *err);
/* A job that runs here goes back into the queue. counts: as a try, since something went wrong (message); else as if it had not been taken. */
int pst_store_job_release(pst_store *store, int64_t job_id, bool counts, pst_str message, pst_error *err);
int pst_store_job_end(pst_store *store, int64_t job_id, pst_store_job_state state, pst_str message, pst_str result,
                      int64_t now_ms, pst_error *err);
/* A queued job is cancelled at once, a running one is asked to stop. PST_E_NOT_FOUND; fine if it has ended. */
int pst_store_job_cancel(pst_store *store, int64_t job_id, int64_t now_ms, pst_error *err);
int pst_store_job_get(pst_store *store, int64_t job_id, int (*fn)(void *user, const pst_store_job *job), void *user,
                      pst_error *err);
/* Newest first; limit 0: all. */
int pst_store_job_each(pst_store *store, int64_t limit, int (*fn)(void *user, const pst_store_job *job), void *user,
                       pst_error *err);

/* ---- uploads (store/uploads.c) ---------------------------------------------------------------------------------- */

/* A file that a client sent, by a number; its bytes are HOME/uploads/<sha256>. */
typedef struct pst_store_upload {
  int64_t id, key_id; /* key_id 0: sent without one */
  pst_str name, purpose, hash;
  int64_t bytes, created_ms;
} pst_store_upload;
/* Keeps the bytes and a row about them. name and purpose: valid UTF-8. */
int pst_store_upload_put(pst_store *store, pst_str name, pst_str purpose, int64_t key_id, pst_str data, int64_t now_ms,
                         int64_t *ret_id, pst_error *err);
/* Calls fn once; PST_E_NOT_FOUND, also for what was deleted and for another key's. key_id -1: whosever it is. */
int pst_store_upload_get(pst_store *store, int64_t id, int64_t key_id,
                         int (*fn)(void *user, const pst_store_upload *upload), void *user, pst_error *err);
/* Newest first; those before_id (0: from the newest). limit 0: all. */
int pst_store_upload_each(pst_store *store, int64_t key_id, int64_t before_id, int64_t limit,
                          int (*fn)(void *user, const pst_store_upload *upload), void *user, pst_error *err);
/* The path of an upload's bytes (pst_free), by their hash; errors as for pst_store_file_path. */
int pst_store_upload_path(pst_store *store, pst_str hash, char **ret_path, pst_error *err);
/* Forgets the row, and removes the bytes when no other row names them. PST_E_NOT_FOUND as above. */
int pst_store_upload_delete(pst_store *store, int64_t id, int64_t key_id, pst_error *err);

/* ---- settings, prices, cached answers (store/settings.c) -------------------------------------------------------- */

/* A named value, text of the caller's choice. data NULL removes it. */
int pst_store_setting_set(pst_store *store, pst_str name, pst_str value, pst_error *err);
int pst_store_setting_get(pst_store *store, pst_str name, char **ret_value,
                          pst_error *err); /* pst_free; PST_E_NOT_FOUND */
int pst_store_setting_each(pst_store *store, int (*fn)(void *user, pst_str name, pst_str value), void *user,
                           pst_error *err);

/* Price of this machine, nano-dollars per hour; PST_E_NOT_FOUND when never set. */
int pst_store_machine_price_set(pst_store *store, int64_t nusd_per_hour, pst_error *err);
int pst_store_machine_price_get(pst_store *store, int64_t *ret_nusd_per_hour, pst_error *err);

/* What a provider charges for a model, nano-dollars per million tokens ($0.15 per million = 150000000). */
typedef struct pst_store_price {
  int64_t input, cached_input, output; /* cached_input: PST_STORE_NO_LIMIT where the provider makes no difference */
} pst_store_price;
/* model "*": any model of that provider without a price of its own. Negative prices: PST_E_BAD_INPUT. */
int pst_store_price_set(pst_store *store, pst_str provider, pst_str model, pst_store_price price, pst_error *err);
int pst_store_price_get(pst_store *store, pst_str provider, pst_str model, pst_store_price *ret_price,
                        pst_error *err); /* NOT_FOUND */
/* Every price, by provider and model. */
int pst_store_price_each(pst_store *store,
                         int (*fn)(void *user, pst_str provider, pst_str model, pst_store_price price), void *user,
                         pst_error *err);
/* What these tokens cost, rounded up; PST_E_LIMIT on overflow. cached_tokens are part of prompt_tokens. */
int pst_store_price_cost(pst_store_price price, int64_t prompt_tokens, int64_t cached_tokens, int64_t completion_tokens,
                         int64_t *ret_nusd) PST_MUST_CHECK;

/* Begins scopes of answers to what users asked: the erasure of any record forgets them. */
#define PST_STORE_SCOPE_TEACHER "teacher/"
/* Answers kept for reuse by exact key. scope parts users that must not see each other's; key: what the
 * answer depends on, usually a hash; meta: JSON or absent. Putting again replaces. Queued. */
int pst_store_answer_put(pst_store *store, pst_str scope, pst_str key, pst_str answer, pst_str meta, int64_t now_ms,
                         pst_error *err);
/* *ret_answer and *ret_meta (NULL where absent; the argument may be NULL): pst_free. PST_E_NOT_FOUND. */
int pst_store_answer_get(pst_store *store, pst_str scope, pst_str key, char **ret_answer, size_t *ret_n,
                         char **ret_meta, pst_error *err);
int pst_store_answer_forget(pst_store *store, pst_str scope, int64_t before_ms, int64_t *ret_n, pst_error *err);

/* ---- answers given again (store/cache.c) ------------------------------------------------------------------------ */

/* The answer cache holds no text of its own: an entry leads from a key to a record whose content is kept (pst_store_request.reuse), so that it is there exactly as long as
 * consent lets the record be. Erasing, expiry and forgetting of content take the entry with them, in the same transaction; where an erasure withdraws data sets, plans may
 * answer otherwise than before, and all entries go. */
typedef struct pst_store_cached {
  char *output_json, *model; /* as recorded */
  int64_t prompt_tokens, completion_tokens;
} pst_store_cached;
/* The answer under a key, recorded at since_ms or later and not expired at now_ms; one indexed read. pst_store_cached_done. PST_E_NOT_FOUND (err is not set then). */
int pst_store_cache_get(pst_store *store, pst_str key, int64_t since_ms, int64_t now_ms, pst_store_cached *ret_answer,
                        pst_error *err);
void pst_store_cached_done(pst_store_cached *answer); /* fine on a zeroed struct */
/* How many entries a workload has; data NULL: all. */
int pst_store_cache_count(pst_store *store, pst_str workload, int64_t *ret_n, pst_error *err);

/* ---- files by content hash (store/files.c) ---------------------------------------------------------------------- */

/* Keeps bytes as HOME/files/<sha256>, whole or not at all. Keeping the same again is fine. */
int pst_store_file_put(pst_store *store, const void *data, size_t n, char ret_hash[65], pst_error *err);
/* Moves a finished file of the same file system into the store: hashes, fsyncs, renames. `path` is gone after success. */
int pst_store_file_adopt(pst_store *store, const char *path, char ret_hash[65], pst_error *err);
/* The path of a kept file (pst_free); PST_E_NOT_FOUND, PST_E_BAD_INPUT for what is no SHA-256 in lower-case hex. */
int pst_store_file_path(pst_store *store, pst_str hash, char **ret_path, pst_error *err);

/* ---- adapters (store/adapters.c) -------------------------------------------------------------------------------- */

/* A LoRA adapter by name. Texts that are empty were not said. Stale: records of a data set that it was made of were erased since; found when it is read, and not
 * to be put. */
typedef struct pst_store_adapter {
  char name[64];  /* letters, digits, '.', '_', '-' */
  char file[65];  /* SHA-256 of the file in HOME/files */
  char base[256]; /* the model that it is for, as it is called here */
  char base_sha256[65];
  char workload[64]; /* that it was made for */
  char data[65];     /* content hash of what it was made from */
  char run[64];      /* that made it */
  int64_t rank, bytes, created_ms;
  bool stale;
} pst_store_adapter;
/* What else an adapter was made of: data sets by hash (taught_set: to whose inputs a teacher gave the answers), and an adapter by name, whose own data sets count too. NULL: none. */
typedef struct pst_store_adapter_origin {
  const char *data_set, *from, *taught_set;
} pst_store_adapter_origin;
bool pst_store_adapter_name_valid(pst_str name);
/* Adds one, and in the same transaction notes that its data sets made it, so that there is no adapter which an erasure does not reach. origin NULL: nothing is known.
 * PST_E_EXISTS: the name stands for another file or base (the same again is fine). PST_E_BAD_INPUT: the name. PST_E_NOT_FOUND: the data set. */
int pst_store_adapter_put(pst_store *store, const pst_store_adapter *adapter, const pst_store_adapter_origin *origin,
                          pst_error *err);
/* Notes what a file that training goes on from, in the data directory, is made of, before it is there: whenever an erasure has reached one of the sets, the next prune removes the
 * file, as often as it is written. PST_E_NOT_FOUND: the data set. PST_E_BAD_INPUT: the path. */
int pst_store_checkpoint_note(pst_store *store, const char *path, const pst_store_adapter_origin *origin,
                              pst_error *err);
int pst_store_adapter_get(pst_store *store, pst_str name, pst_store_adapter *ret_adapter,
                          pst_error *err); /* PST_E_NOT_FOUND */
int pst_store_adapter_each(pst_store *store, int (*fn)(void *user, const pst_store_adapter *adapter), void *user,
                           pst_error *err); /* by name */
/* Forgets the name; the file stays, since plans name it. PST_E_NOT_FOUND. */
int pst_store_adapter_remove(pst_store *store, pst_str name, pst_error *err);

#ifdef __cplusplus
}
#endif
#endif
