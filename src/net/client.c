/* The HTTP client: libcurl's multi interface on the loop. Owns the pool, the calls, their time-outs and bounds; libcurl owns HTTP, TLS and
 * names. It knows no formats and does not retry. libcurl does by itself when a pooled connection closes without an answer; a request with a body is
 * kept from it ("a body goes out once").
 *
 * libcurl may not be entered from inside its own callbacks, so a call is added, resumed and removed in later jobs; a cancelled call is
 * silenced at once and taken apart there. */
#include <curl/curl.h>

#include <assert.h>
#include <pthread.h>
#include <string.h>
#include <strings.h>

#include "net/loop.h"

enum {
  MAX_HEAD_BYTES = 64 << 10,
  MAX_HEADERS = 256,
  MAX_IDLE_S = 50, /* of a pooled connection: less than the 60 s and 75 s after which common servers close */
};

struct pst_net_client {
  pst_net_loop *loop;
  CURLM *multi;
  struct event *timer;
  pst_net_later reap; /* look for finished calls */
  pst_net_call *calls;
  char *ca_file;
  bool in_curl; /* a libcurl function of ours is on the stack */
};

struct pst_net_call {
  pst_net_client *client;
  pst_net_call *prev, *next;
  CURL *easy;
  struct curl_slist *header_list;
  pst_buf body;
  pst_net_later step;  /* add, resume or remove */
  struct event *timer; /* first byte, then idle */
  bool follow, added, cancelled, paused, resume, head_seen, finished;
  bool once;        /* what it asks for may cost money each time */
  bool begun;       /* libcurl has a connection and writes the request */
  long bytes_begun; /* what it had sent before: a proxy's CONNECT */
  int refused;      /* what a callback or a bound answered; 0 none */
  char refused_why[160];
  char curl_error[CURL_ERROR_SIZE];

  pst_buf head; /* lines of the head that is coming in, names and values apart */
  struct {
    size_t name, name_n, value, value_n;
  } places[MAX_HEADERS];
  size_t n_headers;
  int status;

  int64_t first_byte_timeout_us, idle_timeout_us;
  size_t max_body_bytes;
  int64_t start_us, first_byte_us, heard_us, n_body_bytes;
  int (*on_head)(void *user, const pst_net_response_head *head);
  int (*on_body)(void *user, pst_str data);
  void (*on_done)(void *user, const pst_net_call_result *result);
  void *user;
};

static pthread_once_t curl_once = PTHREAD_ONCE_INIT;
static CURLcode curl_once_rc;
static void curl_start(void) { curl_once_rc = curl_global_init(CURL_GLOBAL_DEFAULT); }

/* ---- libcurl's sockets and timer on the loop ----------------------------------------------------------------------- */

static void socket_action(pst_net_client *client, curl_socket_t fd, int what) {
  int running;
  client->in_curl = true;
  curl_multi_socket_action(client->multi, fd, what, &running);
  client->in_curl = false;
  pst_net_loop_later(client->loop, &client->reap);
}

static void on_socket_event(evutil_socket_t fd, short what, void *arg) {
  int flags = (what & EV_READ ? CURL_CSELECT_IN : 0) | (what & EV_WRITE ? CURL_CSELECT_OUT : 0);
  socket_action(arg, (curl_socket_t)fd, flags);
}

static int on_curl_socket(CURL *easy, curl_socket_t fd, int what, void *user, void *per_socket) {
  (void)easy;
  pst_net_client *client = user;
  struct event *event = per_socket;
  if (what == CURL_POLL_REMOVE) {
    if (event) event_free(event);
    curl_multi_assign(client->multi, fd, NULL);
    return 0;
  }
  short flags = (short)(EV_PERSIST | (what & CURL_POLL_IN ? EV_READ : 0) | (what & CURL_POLL_OUT ? EV_WRITE : 0));
  if (!event) {
    event = event_new(pst_net_loop_base(client->loop), fd, flags, on_socket_event, client);
    if (!event) return -1;
    curl_multi_assign(client->multi, fd, event);
  } else {
    event_del(event);
    event_assign(event, pst_net_loop_base(client->loop), fd, flags, on_socket_event, client);
  }
  return event_add(event, NULL) ? -1 : 0;
}

static int on_curl_timer(CURLM *multi, long timeout_ms, void *user) {
  (void)multi;
  pst_net_client *client = user;
  if (timeout_ms < 0) {
    evtimer_del(client->timer);
  } else {
    pst_net_event_arm_us(client->timer, (int64_t)timeout_ms * 1000);
  }
  return 0;
}

static void on_timer(evutil_socket_t fd, short what, void *arg) {
  (void)fd;
  (void)what;
  socket_action(arg, CURL_SOCKET_TIMEOUT, 0);
}

/* ---- one call --------------------------------------------------------------------------------------------------------- */

static void call_free(pst_net_call *call) {
  pst_net_client *client = call->client;
  pst_net_loop_forget(&call->step);
  if (call->added) curl_multi_remove_handle(client->multi, call->easy);
  if (call->easy) curl_easy_cleanup(call->easy);
  curl_slist_free_all(call->header_list);
  if (call->timer) event_free(call->timer);
  if (call->prev)
    call->prev->next = call->next;
  else if (client->calls == call)
    client->calls = call->next;
  if (call->next) call->next->prev = call->prev;
  pst_buf_done(&call->body);
  pst_buf_done(&call->head);
  pst_free(call);
}

static void refuse(pst_net_call *call, int code, const char *why) {
  if (call->refused) return;
  call->refused = code;
  snprintf(call->refused_why, sizeof call->refused_why, "%s", why);
}

static int map_curl_code(CURLcode code) {
  switch (code) {
  case CURLE_OK: return 0;
  case CURLE_OPERATION_TIMEDOUT: return PST_E_TIMEOUT;
  case CURLE_OUT_OF_MEMORY: return PST_E_NOMEM;
  default: return PST_E_IO; /* also a redirect to nonsense: the caller's own URL was checked before */
  }
}

static void watch_silence(pst_net_call *call) {
  int64_t limit = call->head_seen ? call->idle_timeout_us : call->first_byte_timeout_us;
  call->heard_us = pst_clock_us();
  if (limit > 0)
    pst_net_event_arm_us(call->timer, limit);
  else
    evtimer_del(call->timer);
}

static int64_t told_length(const pst_net_header *headers, size_t n) {
  int64_t length = -1;
  pst_str text = pst_net_header_find(headers, n, "content-length");
  if (!text.data || pst_parse_i64(text, 0, INT64_MAX, &length)) return -1;
  return length;
}

/* The final head is known; a later body or end finds head_seen. */
static void deliver_head(pst_net_call *call) {
  pst_net_header headers[MAX_HEADERS];
  long status = 0;
  curl_easy_getinfo(call->easy, CURLINFO_RESPONSE_CODE, &status);
  call->status = (int)status;
  call->head_seen = true;
  call->first_byte_us = pst_clock_us() - call->start_us;
  watch_silence(call);
  if (!call->on_head) return;
  for (size_t i = 0; i < call->n_headers; i++) {
    headers[i].name = (pst_str){call->head.data + call->places[i].name, call->places[i].name_n};
    headers[i].value = (pst_str){call->head.data + call->places[i].value, call->places[i].value_n};
  }
  pst_net_response_head head = {.status = call->status,
                                .headers = headers,
                                .n_headers = call->n_headers,
                                .content_length = told_length(headers, call->n_headers)};
  int rc = call->on_head(call->user, &head);
  if (rc) refuse(call, rc < 0 ? rc : PST_E_CANCELLED, "the receiver refused the answer");
}

/* Bytes of the request itself went out since a connection was first ready for it. */
static bool is_sent(const pst_net_call *call) {
  long bytes = 0;
  curl_easy_getinfo(call->easy, CURLINFO_REQUEST_SIZE, &bytes); /* of all tries together */
  return call->head_seen || (call->begun && bytes > call->bytes_begun);
}

static void finish(pst_net_call *call, CURLcode code) {
  pst_error err = PST_ERROR_INIT;
  pst_net_call_result result = {.n_body_bytes = call->n_body_bytes};
  const char *url = NULL;
  if (code == CURLE_OK && !call->refused && !call->head_seen) deliver_head(call);
  if (call->cancelled) {
    call_free(call);
    return;
  }
  call->finished = true;
  result.first_byte_us = call->first_byte_us;
  result.total_us = pst_clock_us() - call->start_us;
  result.status = call->head_seen ? call->status : 0;
  result.connected = is_sent(call);
  curl_easy_getinfo(call->easy, CURLINFO_EFFECTIVE_URL, &url);
  /* The place is scheme, host and path: a query may hold secrets. */
  int place_n = url ? (int)PST_MIN(strcspn(url, "?#"), 200u) : 0;
  char place[208];
  snprintf(place, sizeof place, "%.*s", place_n, url ? url : "");
  if (call->refused) {
    result.code = pst_error_set(&err, call->refused, place, "%s", call->refused_why);
  } else if (code != CURLE_OK) {
    result.code = pst_error_set(&err, map_curl_code(code), place, "%s",
                                call->curl_error[0] ? call->curl_error : curl_easy_strerror(code));
  }
  result.error = result.code ? &err : NULL;
  call->on_done(call->user, &result);
  call_free(call);
}

static void reap(void *arg) {
  pst_net_client *client = arg;
  int left;
  const CURLMsg *message;
  client->in_curl = true;
  while ((message = curl_multi_info_read(client->multi, &left))) {
    if (message->msg != CURLMSG_DONE) continue;
    CURL *easy = message->easy_handle;
    CURLcode code = message->data.result;
    char *private_data = NULL;
    curl_easy_getinfo(easy, CURLINFO_PRIVATE, &private_data);
    finish((pst_net_call *)(void *)private_data, code);
  }
  client->in_curl = false;
}

/* Ends a call from our side with what refuse() noted. */
static void fail_later(pst_net_call *call) { pst_net_loop_later(call->client->loop, &call->step); }

static void call_step(void *arg) {
  pst_net_call *call = arg;
  pst_net_client *client = call->client;
  if (call->cancelled) {
    call_free(call);
    return;
  }
  if (call->refused) {
    finish(call, CURLE_OK);
    return;
  }
  if (!call->added) {
    CURLMcode rc = curl_multi_add_handle(client->multi, call->easy);
    if (rc != CURLM_OK) {
      refuse(call, PST_E_NOMEM, curl_multi_strerror(rc));
      finish(call, CURLE_OK);
      return;
    }
    call->added = true;
    return;
  }
  if (call->resume) {
    call->resume = false;
    client->in_curl = true;
    CURLcode code = curl_easy_pause(call->easy, CURLPAUSE_CONT); /* may call on_body at once */
    client->in_curl = false;
    if (call->cancelled) return; /* its step is queued again */
    if (code != CURLE_OK || call->refused)
      finish(call, code); /* libcurl leaves such a transfer open */
    else
      pst_net_loop_later(client->loop, &client->reap);
  }
}

static void on_silence(evutil_socket_t fd, short what, void *arg) {
  (void)fd;
  (void)what;
  pst_net_call *call = arg;
  if (call->finished || call->cancelled) return;
  int64_t limit = call->head_seen ? call->idle_timeout_us : call->first_byte_timeout_us;
  if (limit <= 0 || call->paused) return;
  int64_t silent = pst_clock_us() - call->heard_us;
  if (silent < limit) {
    pst_net_event_arm_us(call->timer, limit - silent);
    return;
  }
  char why[96];
  snprintf(why, sizeof why, call->head_seen ? "the answer stopped for %.3g s" : "no answer within %.3g s",
           (double)limit / 1e6);
  refuse(call, PST_E_TIMEOUT, why);
  fail_later(call);
}

/* ---- libcurl's callbacks of one call ------------------------------------------------------------------------------------ */

/* Before each try, with a connection at hand. Invariant "a body goes out once": no second try once a byte of the first may have arrived. */
static int on_curl_begin(void *user, char *peer, char *self, int peer_port, int self_port) {
  (void)peer;
  (void)self;
  (void)peer_port;
  (void)self_port;
  pst_net_call *call = user;
  if (call->cancelled || call->refused) return CURL_PREREQFUNC_ABORT;
  if (call->once && is_sent(call)) {
    refuse(call, PST_E_IO, "the connection was closed before an answer came");
    return CURL_PREREQFUNC_ABORT;
  }
  if (!call->begun) curl_easy_getinfo(call->easy, CURLINFO_REQUEST_SIZE, &call->bytes_begun);
  call->begun = true;
  return CURL_PREREQFUNC_OK;
}

static bool add_header_line(pst_net_call *call, pst_str line) {
  size_t colon = pst_str_find(line, PST_STR(":"), 0);
  if (colon == SIZE_MAX || colon == 0) return true;
  if (call->n_headers >= MAX_HEADERS || call->head.n + line.n > MAX_HEAD_BYTES) return false;
  pst_str name = {line.data, colon};
  pst_str value = pst_str_trim((pst_str){line.data + colon + 1, line.n - colon - 1});
  size_t i = call->n_headers++;
  call->places[i].name = call->head.n;
  call->places[i].name_n = name.n;
  pst_buf_append_str(&call->head, name);
  call->places[i].value = call->head.n;
  call->places[i].value_n = value.n;
  pst_buf_append_str(&call->head, value);
  return !call->head.failed;
}

static size_t on_curl_header(char *data, size_t size, size_t n, void *user) {
  pst_net_call *call = user;
  n *= size;
  if (call->cancelled || call->refused) return 0;
  if (call->head_seen) return n; /* trailers */
  pst_str line = pst_str_trim((pst_str){data, n});
  if (line.n == 0) {
    long status = 0;
    curl_easy_getinfo(call->easy, CURLINFO_RESPONSE_CODE, &status);
    bool on_the_way = status < 200 || (call->follow && status >= 300 && status < 400);
    if (!on_the_way) deliver_head(call);
    return call->cancelled || call->refused ? 0 : n;
  }
  if (pst_str_starts(line, PST_STR("HTTP/"))) { /* of each answer on the way: 100, redirects, proxies */
    pst_buf_clear(&call->head);
    call->n_headers = 0;
    return n;
  }
  if (!add_header_line(call, line)) {
    refuse(call, call->head.failed ? PST_E_NOMEM : PST_E_LIMIT, "the answer's headers are too long");
    return 0;
  }
  return n;
}

static size_t on_curl_body(char *data, size_t size, size_t n, void *user) {
  pst_net_call *call = user;
  n *= size;
  if (call->cancelled || call->refused) return 0;
  if (!call->head_seen) deliver_head(call); /* a redirect without a place to go is an answer with a body */
  if (call->cancelled || call->refused) return 0;
  if (call->paused) return CURL_WRITEFUNC_PAUSE; /* libcurl keeps the bytes and brings them again */
  watch_silence(call);
  if (call->max_body_bytes && n > call->max_body_bytes - (size_t)call->n_body_bytes) {
    char why[96];
    snprintf(why, sizeof why, "the answer is longer than the limit of %zu bytes", call->max_body_bytes);
    refuse(call, PST_E_LIMIT, why);
    return 0;
  }
  call->n_body_bytes += (int64_t)n;
  if (!call->on_body) return n;
  int rc = call->on_body(call->user, (pst_str){data, n});
  if (call->cancelled) return 0;
  if (rc) {
    refuse(call, rc < 0 ? rc : PST_E_CANCELLED, "the receiver refused the answer");
    return 0;
  }
  return n;
}

/* ---- start ---------------------------------------------------------------------------------------------------------------- */

static bool is_loopback_host(const char *host) {
  return strcasecmp(host, "localhost") == 0 || strncmp(host, "127.", 4) == 0 || strcmp(host, "[::1]") == 0 ||
         strcmp(host, "::1") == 0;
}

typedef struct url_facts {
  bool https, loopback;
} url_facts;

static int check_url(const char *url, url_facts *ret_facts, pst_error *err) {
  char *scheme = NULL, *host = NULL;
  CURLU *parsed = url ? curl_url() : NULL;
  int rc = 0;
  if (!url || !parsed)
    return pst_error_set(err, url ? PST_E_NOMEM : PST_E_BAD_INPUT, NULL, url ? "out of memory" : "no URL");
  CURLUcode code = curl_url_set(parsed, CURLUPART_URL, url, 0);
  if (!code) code = curl_url_get(parsed, CURLUPART_SCHEME, &scheme, 0);
  if (!code) code = curl_url_get(parsed, CURLUPART_HOST, &host, 0);
  if (code) {
    rc = pst_error_set(err, PST_E_BAD_INPUT, NULL, "bad URL: %s", curl_url_strerror(code));
  } else if (strcmp(scheme, "http") != 0 && strcmp(scheme, "https") != 0) {
    rc = pst_error_set(err, PST_E_BAD_INPUT, NULL, "bad URL: %.20s is not http or https", scheme);
  } else {
    *ret_facts = (url_facts){.https = strcmp(scheme, "https") == 0, .loopback = is_loopback_host(host)};
  }
  curl_free(scheme);
  curl_free(host);
  curl_url_cleanup(parsed);
  return rc;
}

static bool clean_text(pst_str s) {
  for (size_t i = 0; i < s.n; i++) {
    unsigned char ch = (unsigned char)s.data[i];
    if ((ch < 0x20 && ch != '\t') || ch == 0x7f) return false;
  }
  return true;
}

static int set_headers(pst_net_call *call, const pst_net_call_options *options, pst_error *err) {
  pst_buf line = PST_BUF_INIT;
  int rc = 0;
  for (size_t i = 0; i <= options->n_headers && !rc; i++) {
    pst_buf_clear(&line);
    if (i == options->n_headers) {
      pst_buf_puts(&line, "Expect:"); /* libcurl would wait a second for "100 Continue" with longer bodies */
    } else {
      pst_net_header h = options->headers[i];
      if (h.name.n == 0 || !clean_text(h.name) || !clean_text(h.value) ||
          pst_str_find(h.name, PST_STR(":"), 0) != SIZE_MAX) {
        rc = pst_error_set(err, PST_E_BAD_INPUT, NULL, "header %zu of the request is malformed", i + 1);
        break;
      }
      pst_buf_append_str(&line, h.name);
      if (h.value.n)
        pst_buf_puts(&line, ": ");
      else
        pst_buf_putc(&line, ';'); /* libcurl's way to send an empty value */
      pst_buf_append_str(&line, h.value);
    }
    struct curl_slist *longer =
        pst_buf_status(&line) ? NULL : curl_slist_append(call->header_list, pst_buf_text(&line));
    if (longer)
      call->header_list = longer;
    else
      rc = pst_error_set(err, PST_E_NOMEM, NULL, "out of memory for a request");
  }
  pst_buf_done(&line);
  return rc;
}

static bool method_ok(const char *method) {
  size_t n = strlen(method);
  return n > 0 && n < 16 && strspn(method, "ABCDEFGHIJKLMNOPQRSTUVWXYZ") == n;
}

/* The first failure is kept; libcurl's setopt takes any argument, hence a macro. */
#define SET(option, value)                                                \
  do {                                                                    \
    if (rc == CURLE_OK) rc = curl_easy_setopt(call->easy, option, value); \
  } while (0)

static CURLcode set_request(pst_net_call *call, const pst_net_call_options *o, const url_facts *facts) {
  CURLcode rc = CURLE_OK;
  const char *method = o->method ? o->method : o->body.n ? "POST" : "GET";
  SET(CURLOPT_URL, o->url);
  SET(CURLOPT_PROTOCOLS_STR, "http,https");
  SET(CURLOPT_REDIR_PROTOCOLS_STR, facts->https ? "https" : "http,https");
  SET(CURLOPT_HTTPHEADER, call->header_list);
  if (strcmp(method, "HEAD") == 0) {
    SET(CURLOPT_NOBODY, 1L);
  } else if (o->body.n || strcmp(method, "POST") == 0) {
    call->once = o->max_redirects <= 0; /* a redirect is followed with the body */
    SET(CURLOPT_POST, 1L);
    SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)call->body.n);
    SET(CURLOPT_POSTFIELDS, pst_buf_text(&call->body));
    if (strcmp(method, "POST") != 0) SET(CURLOPT_CUSTOMREQUEST, method);
  } else if (strcmp(method, "GET") != 0) {
    SET(CURLOPT_CUSTOMREQUEST, method);
  }
  if (o->range_from > 0) {
    char range[32];
    snprintf(range, sizeof range, "%lld-", (long long)o->range_from);
    SET(CURLOPT_RANGE, range);
  }
  if (o->max_redirects > 0) {
    call->follow = true;
    SET(CURLOPT_FOLLOWLOCATION, 1L);
    SET(CURLOPT_MAXREDIRS, (long)o->max_redirects);
  }
  if (facts->loopback) SET(CURLOPT_PROXY, "");
  return rc;
}

static CURLcode set_transport(pst_net_call *call, const pst_net_call_options *o) {
  CURLcode rc = CURLE_OK;
  SET(CURLOPT_NOSIGNAL, 1L);
  SET(CURLOPT_NOPROGRESS, 1L);
  SET(CURLOPT_QUICK_EXIT, 1L); /* a cancelled call does not wait for a name server */
  SET(CURLOPT_SUPPRESS_CONNECT_HEADERS, 1L);
  SET(CURLOPT_SSL_VERIFYPEER, 1L);
  SET(CURLOPT_SSL_VERIFYHOST, 2L);
  if (call->client->ca_file) SET(CURLOPT_CAINFO, call->client->ca_file);
  SET(CURLOPT_CONNECTTIMEOUT_MS, (long)PST_MIN(PST_MAX(o->connect_timeout_ms, 1), 86400000));
  if (o->total_timeout_ms > 0) SET(CURLOPT_TIMEOUT_MS, (long)PST_MIN(o->total_timeout_ms, INT32_MAX));
  SET(CURLOPT_MAXAGE_CONN, (long)MAX_IDLE_S);
  SET(CURLOPT_PREREQFUNCTION, on_curl_begin);
  SET(CURLOPT_PREREQDATA, call);
  SET(CURLOPT_TCP_NODELAY, 1L);
  SET(CURLOPT_TCP_KEEPALIVE, 1L);
  SET(CURLOPT_USERAGENT, "penstock");
  SET(CURLOPT_ERRORBUFFER, call->curl_error);
  SET(CURLOPT_PRIVATE, (char *)call);
  SET(CURLOPT_HEADERFUNCTION, on_curl_header);
  SET(CURLOPT_HEADERDATA, call);
  SET(CURLOPT_WRITEFUNCTION, on_curl_body);
  SET(CURLOPT_WRITEDATA, call);
  SET(CURLOPT_HTTP_TRANSFER_DECODING, 1L);
  return rc;
}
#undef SET

pst_net_call_options pst_net_call_options_default(void) {
  return (pst_net_call_options){.connect_timeout_ms = 10000, .max_body_bytes = 64 << 20};
}

int pst_net_client_start(pst_net_client *client, const pst_net_call_options *options, pst_net_call **ret_call,
                         pst_error *err) {
  url_facts facts = {false, false};
  int rc = check_url(options->url, &facts, err);
  if (rc) return rc;
  if (options->method && !method_ok(options->method))
    return pst_error_set(err, PST_E_BAD_INPUT, NULL, "bad HTTP method");
  assert(options->on_done);
  pst_net_call *call = pst_calloc(1, sizeof *call);
  if (!call) return pst_error_set(err, PST_E_NOMEM, NULL, "out of memory for a request");
  call->client = client;
  call->step = (pst_net_later){.fn = call_step, .arg = call};
  call->on_head = options->on_head;
  call->on_body = options->on_body;
  call->on_done = options->on_done;
  call->user = options->user;
  call->first_byte_timeout_us = options->first_byte_timeout_ms * 1000;
  call->idle_timeout_us = options->idle_timeout_ms * 1000;
  call->max_body_bytes = options->max_body_bytes;
  call->first_byte_us = -1;
  call->start_us = pst_clock_us();
  call->easy = curl_easy_init();
  call->timer = evtimer_new(pst_net_loop_base(client->loop), on_silence, call);
  pst_buf_append_str(&call->body, options->body);
  if (!call->easy || !call->timer || call->body.failed) {
    rc = pst_error_set(err, PST_E_NOMEM, NULL, "out of memory for a request");
    goto done;
  }
  rc = set_headers(call, options, err);
  if (rc) goto done;
  CURLcode code = set_request(call, options, &facts);
  if (code == CURLE_OK) code = set_transport(call, options);
  if (code != CURLE_OK) {
    rc = pst_error_set(err, map_curl_code(code), NULL, "cannot set up a request: %s", curl_easy_strerror(code));
    goto done;
  }
  call->next = client->calls;
  if (call->next) call->next->prev = call;
  client->calls = call;
  watch_silence(call);
  pst_net_loop_later(client->loop, &call->step);
  if (ret_call) *ret_call = call;
  return 0;
done:
  call_free(call);
  return rc;
}

void pst_net_call_cancel(pst_net_call *call) {
  if (call->finished || call->cancelled) return;
  call->cancelled = true;
  pst_net_loop_later(call->client->loop, &call->step);
}

bool pst_net_call_is_begun(const pst_net_call *call) { return call->begun; }

void pst_net_call_pause(pst_net_call *call, bool paused) {
  if (call->finished || call->cancelled || call->paused == paused) return;
  call->paused = paused;
  if (paused) return;
  watch_silence(call);
  call->resume = true;
  pst_net_loop_later(call->client->loop, &call->step);
}

/* ---- the client ------------------------------------------------------------------------------------------------------------- */

pst_net_client_options pst_net_client_options_default(void) {
  return (pst_net_client_options){.max_connections = 256, .max_connections_per_host = 64};
}

int pst_net_client_create(pst_net_loop *loop, const pst_net_client_options *options, pst_net_client **ret_client,
                          pst_error *err) {
  pthread_once(&curl_once, curl_start);
  if (curl_once_rc != CURLE_OK)
    return pst_error_set(err, PST_E_INTERNAL, NULL, "libcurl cannot start: %s", curl_easy_strerror(curl_once_rc));
  pst_net_client *client = pst_calloc(1, sizeof *client);
  if (!client) return pst_error_set(err, PST_E_NOMEM, NULL, "out of memory for the HTTP client");
  client->loop = loop;
  client->reap = (pst_net_later){.fn = reap, .arg = client};
  client->ca_file = options->ca_file ? pst_strdup(options->ca_file) : NULL;
  client->timer = evtimer_new(pst_net_loop_base(loop), on_timer, client);
  client->multi = curl_multi_init();
  if (!client->timer || !client->multi || (options->ca_file && !client->ca_file)) {
    pst_net_client_free(client);
    return pst_error_set(err, PST_E_NOMEM, NULL, "out of memory for the HTTP client");
  }
  curl_multi_setopt(client->multi, CURLMOPT_SOCKETFUNCTION, on_curl_socket);
  curl_multi_setopt(client->multi, CURLMOPT_SOCKETDATA, client);
  curl_multi_setopt(client->multi, CURLMOPT_TIMERFUNCTION, on_curl_timer);
  curl_multi_setopt(client->multi, CURLMOPT_TIMERDATA, client);
  curl_multi_setopt(client->multi, CURLMOPT_MAX_TOTAL_CONNECTIONS, (long)PST_MAX(options->max_connections, 1));
  curl_multi_setopt(client->multi, CURLMOPT_MAX_HOST_CONNECTIONS, (long)PST_MAX(options->max_connections_per_host, 1));
  *ret_client = client;
  return 0;
}

void pst_net_client_free(pst_net_client *client) {
  if (!client) return;
  assert(!client->in_curl);
  while (client->calls) call_free(client->calls);
  pst_net_loop_forget(&client->reap);
  if (client->multi) curl_multi_cleanup(client->multi); /* closes pooled connections through on_curl_socket */
  if (client->timer) event_free(client->timer);
  pst_free(client->ca_file);
  pst_free(client);
}
