/* Downloads to a file, blocking: for the command line. Owns resuming and trying again; the transfer itself is client.c's on a loop run in
 * the calling thread. What a file means, its hash and its final name are the caller's. */
#include <penstock/net.h>

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

enum { MAX_REDIRECTS = 10, PROGRESS_THAT_COUNTS = 1 << 20, UNREACHABLE_ATTEMPTS = 2 };

typedef struct transfer {
  const pst_net_download *spec;
  pst_net_loop *loop;
  int fd;
  int64_t size;  /* bytes in the file */
  int64_t whole; /* size the server tells; -1 unknown */
  int status;
  bool complete; /* 416 for a file that is whole already */
  bool retry;
  int code;
  int64_t retry_after_ms;
  bool reached; /* this attempt reached a server */
  pst_error error;
} transfer;

pst_net_download pst_net_download_default(void) {
  return (pst_net_download){
      .expected_bytes = -1, .n_attempts = 5, .connect_timeout_ms = 15000, .idle_timeout_ms = 60000};
}

/* "bytes 5-9/10" or "bytes * /10"; numbers that are not there stay -1. */
static void parse_content_range(pst_str value, int64_t *ret_from, int64_t *ret_whole) {
  *ret_from = *ret_whole = -1;
  if (!pst_str_starts(value, PST_STR("bytes "))) return;
  pst_str rest = {value.data + 6, value.n - 6};
  size_t slash = pst_str_find(rest, PST_STR("/"), 0);
  if (slash == SIZE_MAX) return;
  size_t dash = pst_str_find(rest, PST_STR("-"), 0);
  if (dash < slash && pst_parse_i64((pst_str){rest.data, dash}, 0, INT64_MAX, ret_from)) *ret_from = -1;
  if (pst_parse_i64((pst_str){rest.data + slash + 1, rest.n - slash - 1}, 0, INT64_MAX, ret_whole)) *ret_whole = -1;
}

static int restart(transfer *t) {
  if (ftruncate(t->fd, 0) || lseek(t->fd, 0, SEEK_SET) < 0)
    return pst_error_set_errno(&t->error, errno, t->spec->path, "cannot shorten the partial file");
  t->size = 0;
  return 0;
}

static int check_size(transfer *t, int64_t whole) {
  const pst_net_download *spec = t->spec;
  if (whole < 0) return 0;
  if (spec->expected_bytes >= 0 && whole != spec->expected_bytes)
    return pst_error_set(&t->error, PST_E_CORRUPT, spec->url, "the server has a file of %lld bytes, expected %lld",
                         (long long)whole, (long long)spec->expected_bytes);
  if (spec->max_bytes > 0 && whole > spec->max_bytes)
    return pst_error_set(&t->error, PST_E_LIMIT, spec->url, "the file has %lld bytes, more than the limit of %lld",
                         (long long)whole, (long long)spec->max_bytes);
  return 0;
}

static int refuse_status(transfer *t, const pst_net_response_head *head) {
  int status = head->status;
  int code = status == 401 || status == 403   ? PST_E_DENIED
             : status == 404 || status == 410 ? PST_E_NOT_FOUND
             : status == 429 || status == 503 ? PST_E_BUSY
                                              : PST_E_UPSTREAM;
  t->retry = status == 408 || status == 429 || status >= 500;
  int64_t seconds;
  if (!pst_parse_i64(pst_net_header_find(head->headers, head->n_headers, "retry-after"), 0, 30, &seconds))
    t->retry_after_ms = seconds * 1000;
  return pst_error_set(&t->error, code, t->spec->url, "the server answered %d %s", status, pst_net_status_text(status));
}

static int on_head(void *user, const pst_net_response_head *head) {
  transfer *t = user;
  int64_t from, whole;
  int rc;
  t->status = head->status;
  parse_content_range(pst_net_header_find(head->headers, head->n_headers, "content-range"), &from, &whole);
  if (head->status == 200) {
    t->whole = head->content_length;
    rc = check_size(t, t->whole);
    return rc ? rc : restart(t);
  }
  if (head->status == 206 && from == t->size) {
    t->whole = whole;
    return check_size(t, whole);
  }
  if (head->status == 206 || head->status == 416) {
    if (head->status == 416 && whole == t->size) {
      t->complete = true;
      return check_size(t, whole);
    }
    t->retry = true; /* another file than the one begun, or a confused server: once more from the start */
    rc = restart(t);
    return rc ? rc : pst_error_set(&t->error, PST_E_UPSTREAM, t->spec->url, "the server cannot continue the file");
  }
  return refuse_status(t, head);
}

static int on_body(void *user, pst_str data) {
  transfer *t = user;
  if (t->complete) return 0; /* the text of a 416 */
  if (t->spec->max_bytes > 0 && (int64_t)data.n > t->spec->max_bytes - t->size)
    return pst_error_set(&t->error, PST_E_LIMIT, t->spec->url, "the file is longer than the limit of %lld bytes",
                         (long long)t->spec->max_bytes);
  while (data.n) {
    ssize_t n = write(t->fd, data.data, data.n);
    if (n < 0 && errno == EINTR) continue;
    if (n < 0) return pst_error_set_errno(&t->error, errno, t->spec->path, "cannot write the download");
    data.data += n;
    data.n -= (size_t)n;
    t->size += n;
  }
  if (t->spec->progress) pst_progress_update(t->spec->progress, t->spec->progress_base + t->size);
  return 0;
}

static void on_done(void *user, const pst_net_call_result *result) {
  transfer *t = user;
  t->code = result->code;
  t->reached = result->connected;
  if (result->code && !t->error.code) {
    t->error = *result->error;
    t->retry = result->code == PST_E_IO || result->code == PST_E_TIMEOUT;
  }
  pst_net_loop_stop(t->loop);
}

static int attempt(transfer *t) {
  const pst_net_download *spec = t->spec;
  pst_net_client_options client_options = pst_net_client_options_default();
  pst_net_client *client = NULL;
  pst_net_call_options options = pst_net_call_options_default();
  t->error = (pst_error)PST_ERROR_INIT;
  t->code = 0;
  t->retry = t->complete = t->reached = false;
  t->retry_after_ms = 0;
  t->whole = -1;
  int rc = pst_net_loop_create(&t->loop, &t->error);
  if (rc) return rc;
  rc = pst_net_client_create(t->loop, &client_options, &client, &t->error);
  if (rc) goto done;
  options.url = spec->url;
  options.headers = spec->headers;
  options.n_headers = spec->n_headers;
  options.range_from = t->size;
  options.connect_timeout_ms = spec->connect_timeout_ms;
  options.first_byte_timeout_ms = spec->connect_timeout_ms + spec->idle_timeout_ms;
  options.idle_timeout_ms = spec->idle_timeout_ms;
  options.max_body_bytes = 0;
  options.max_redirects = MAX_REDIRECTS;
  options.on_head = on_head;
  options.on_body = on_body;
  options.on_done = on_done;
  options.user = t;
  rc = pst_net_client_start(client, &options, NULL, &t->error);
  if (!rc) rc = pst_net_loop_run(t->loop, &t->error);
  if (!rc) rc = t->code;
done:
  pst_net_client_free(client);
  pst_net_loop_free(t->loop);
  t->loop = NULL;
  if (rc && !t->error.code) pst_error_set(&t->error, rc, spec->url, "%s", pst_error_text(rc));
  return rc;
}

static int finish(transfer *t) {
  const pst_net_download *spec = t->spec;
  int64_t want = spec->expected_bytes >= 0 ? spec->expected_bytes : t->whole;
  if (want >= 0 && t->size != want) {
    long long got = (long long)t->size;
    (void)restart(t);
    return pst_error_set(&t->error, PST_E_CORRUPT, spec->url, "got %lld bytes, expected %lld", got, (long long)want);
  }
  if (fsync(t->fd)) return pst_error_set_errno(&t->error, errno, spec->path, "cannot write the download");
  return 0;
}

static int open_partial(transfer *t) {
  struct stat st;
  const char *path = t->spec->path;
  t->fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
  if (t->fd < 0 || fstat(t->fd, &st))
    return pst_error_set_errno(&t->error, errno, path, "cannot open the download's file");
  if (!S_ISREG(st.st_mode)) return pst_error_set(&t->error, PST_E_BAD_INPUT, path, "not a plain file");
  t->size = (int64_t)st.st_size;
  if (t->spec->expected_bytes >= 0 && t->size > t->spec->expected_bytes) return restart(t);
  if (lseek(t->fd, 0, SEEK_END) < 0)
    return pst_error_set_errno(&t->error, errno, path, "cannot continue the partial file");
  return 0;
}

static void wait_ms(int64_t ms) {
  struct timespec ts = {.tv_sec = (time_t)(ms / 1000), .tv_nsec = (long)(ms % 1000) * 1000000};
  while (nanosleep(&ts, &ts) && errno == EINTR) {}
}

int pst_net_download_run(const pst_net_download *download, int64_t *ret_bytes, pst_error *err) {
  transfer t = {.spec = download, .fd = -1, .whole = -1};
  int rc = open_partial(&t);
  int failures = 0;
  while (!rc && !(download->expected_bytes >= 0 && t.size == download->expected_bytes)) {
    int64_t before = t.size;
    rc = attempt(&t);
    if (!rc || !t.retry) break;
    failures = t.size - before >= PROGRESS_THAT_COUNTS ? 1 : failures + 1;
    if (failures >= download->n_attempts || (!t.reached && failures >= UNREACHABLE_ATTEMPTS)) break;
    wait_ms(PST_MAX(t.retry_after_ms, INT64_C(250) << PST_MIN(failures, 6)));
    rc = 0;
  }
  if (!rc) rc = finish(&t);
  if (t.fd >= 0 && close(t.fd) && !rc)
    rc = pst_error_set_errno(&t.error, errno, download->path, "cannot write the download");
  if (rc) {
    if (err) *err = t.error;
    return rc;
  }
  if (ret_bytes) *ret_bytes = t.size;
  return 0;
}
