/* Penstock server: the OpenAI-compatible HTTP address in front of a gateway.
 *
 *   POST /v1/chat/completions   POST /v1/completions   POST /v1/feedback
 *   POST GET DELETE /v1/files[/ID[/content]]           POST GET /v1/fine_tuning/jobs[/ID[/cancel|events|checkpoints]]
 *   GET  /v1/models[/ID]        GET  /health           GET  /metrics
 *
 * Which plan answers: the request's `model` names a workload with a plan in force, a local model, "provider/model", a served alias, or "default" (what
 * pst_server_options.default_model says). A name that is none of these goes to the default workload of the caller's API key, if it has one; else it is
 * 404 model_not_found. Paths of this machine are never taken from a request.
 *
 * Keys: a request over the loopback interface needs none unless require_key is set; all others need one, and so do those that come over loopback for
 * somebody else: with a proxy's header (Forwarded, X-Forwarded-For, X-Real-IP), or with an Origin that is not on loopback, which is a page of another site
 * in a browser on this machine. A key that is sent and begins as ours do ("pst-") must be right in any case; other texts are what clients send that insist
 * on a key, and are ignored where none is needed.
 *
 * Records: the consent of the caller's key holds, else that of the options. Headers of a request can only lower it: X-Penstock-Keep (nothing, metadata,
 * content), X-Penstock-Train (no), X-Penstock-Retention-Days. Whose request it is: X-Penstock-Subject, else `safety_identifier`, else `user`. */
#ifndef PENSTOCK_SERVER_H
#define PENSTOCK_SERVER_H

#include <penstock/base.h>
#include <penstock/gateway.h>
#include <penstock/store.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef struct pst_server pst_server;

/* A name that clients use, and what the gateway calls it (a file's path, for instance). */
typedef struct pst_server_alias {
  const char *id, *name;
} pst_server_alias;

typedef struct pst_server_options {
  const char *address;       /* "127.0.0.1" */
  int port;                  /* 0: the system chooses */
  bool require_key;          /* on loopback too */
  pst_store_consent consent; /* what may be kept of requests whose key says nothing about it */
  const pst_server_alias *aliases;
  size_t n_aliases;
  const char *default_model; /* id or gateway name that "default" stands for; NULL: there is none */
  int max_open;              /* requests being answered before 503; 0: 512 */
  size_t max_body_bytes;     /* 0: 32 MiB */
  int64_t drain_ms;          /* how long requests in flight may take after a drain began; 0: 30,000 */
  void (*ready)(
      void *user); /* NULL, or called by pst_server_run when signals are watched and requests will be answered */
  void *user;
} pst_server_options;

/* Listens at once, answers from pst_server_run on. store and gateway must outlive the server. A port in use is PST_E_BUSY. Strings are copied. */
int pst_server_open(pst_store *store, pst_gateway *gateway, const pst_server_options *options, pst_server **ret_server,
                    pst_error *err);
int pst_server_port(const pst_server *server);
/* Serves in the calling thread until it has drained. The first SIGTERM, SIGINT or (unless it is ignored) SIGHUP begins the drain, a second one cuts what is open, a third kills. */
int pst_server_run(pst_server *server, pst_error *err);
/* Any thread: as the first, or with `cut` the second signal. Requests in flight are finished, new ones get 503. */
void pst_server_drain(pst_server *server, bool cut);
void pst_server_close(pst_server *server); /* not while it runs; NULL is fine */

#ifdef __cplusplus
}
#endif
#endif
