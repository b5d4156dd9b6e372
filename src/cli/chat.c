/* penstock chat: a conversation on the terminal, or line by line from a pipe.
 *
 * Owns the messages so far and the few commands. Every turn is rendered whole through the model's template; what the turn before has
 * computed of it lies in the engine's prefix cache. A model without a template gets the plain layout of a written dialogue. */
#include <errno.h>
#include <poll.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "cli/commands.h"
#include "cli/generate.h"

enum { MAX_LINE_BYTES = 1 << 20 };

static volatile sig_atomic_t interrupted;
static void on_interrupt(int number) {
  (void)number;
  interrupted = 1;
}

typedef struct turn {
  pst_chat_role role;
  char *text;
  size_t n;
} turn;

typedef struct conversation {
  turn *turns;
  size_t n, capacity;
  char *system; /* NULL: none */
  pst_engine *engine;
  pst_engine_adapter *adapter; /* NULL: the base */
  const pst_cli_args *args;
  bool terminal, has_template;
  sigset_t signals; /* SIGINT: at a terminal it ends an answer or a line; in a pipe the program, as it is */
} conversation;

static void forget(conversation *c, size_t keep) {
  while (c->n > keep) pst_free(c->turns[--c->n].text);
}

static int add_turn(conversation *c, pst_chat_role role, pst_str text, pst_error *err) {
  char *copy = pst_strndup(text.n ? text.data : "", text.n);
  if (!copy || pst_array_reserve((void **)&c->turns, &c->capacity, c->n + 1, sizeof *c->turns)) {
    pst_free(copy);
    return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the conversation");
  }
  c->turns[c->n++] = (turn){role, copy, text.n};
  return 0;
}

/* ---- the prompt ---- */

static int render_template(const conversation *c, pst_engine_tokens *prompt, pst_error *err) {
  pst_chat_message *messages = pst_calloc(c->n + 1, sizeof *messages);
  size_t n = 0;
  if (!messages) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory");
  if (c->system)
    messages[n++] =
        (pst_chat_message){.role = PST_CHAT_SYSTEM, .has_content = true, .content = pst_str_from(c->system)};
  for (size_t i = 0; i < c->n; i++)
    messages[n++] =
        (pst_chat_message){.role = c->turns[i].role, .has_content = true, .content = {c->turns[i].text, c->turns[i].n}};
  pst_chat chat = {.messages = messages, .n_messages = n, .add_generation_prompt = true};
  int code = pst_engine_render_chat(pst_engine_get_model(c->engine), &chat, prompt, NULL, err);
  pst_free(messages);
  return code;
}

static int render_plain(const conversation *c, pst_engine_tokens *prompt, pst_error *err) {
  pst_buf text = PST_BUF_INIT;
  if (c->system) pst_buf_printf(&text, "%s\n\n", c->system);
  for (size_t i = 0; i < c->n; i++) {
    pst_buf_puts(&text, c->turns[i].role == PST_CHAT_USER ? "User: " : "Assistant: ");
    pst_buf_append(&text, c->turns[i].text, c->turns[i].n);
    pst_buf_putc(&text, '\n');
  }
  pst_buf_puts(&text, "Assistant:"); /* no space behind it: the answer's first token brings its own */
  int code = pst_buf_status(&text) ? pst_error_set(err, PST_E_NOMEM, NULL, "no memory") : 0;
  prompt->n = 0;
  if (!code) code = pst_engine_tokenize(pst_engine_get_model(c->engine), pst_buf_str(&text), false, true, prompt, err);
  pst_buf_done(&text);
  return code;
}

/* ---- one turn ---- */

static void show_note(const pst_engine_event *last, const pst_cli_args *a) {
  if (last->finish == PST_ENGINE_FINISH_CANCELLED) fputs("(stopped)\n", stderr);
  if (last->finish == PST_ENGINE_FINISH_LENGTH) fputs("(cut at the token limit; --max-tokens raises it)\n", stderr);
  if (pst_cli_flag(a, "timings"))
    fprintf(stderr, "(prompt %d tokens, %d of them cached; first token after %.1f ms; %d tokens in %.1f ms)\n",
            last->n_prompt, last->n_cached, (double)last->first_token_us / 1e3, last->n_completion,
            (double)last->total_us / 1e3);
}

static int answer_turn(conversation *c, pst_str text, pst_error *err) {
  pst_engine_tokens prompt = {0};
  pst_buf answer = PST_BUF_INIT;
  pst_engine_event last = {0};
  static const char *const plain_stops[] = {"\nUser:", "\nAssistant:"};
  size_t before = c->n;
  int code = add_turn(c, PST_CHAT_USER, text, err);
  if (!code) code = c->has_template ? render_template(c, &prompt, err) : render_plain(c, &prompt, err);
  if (!code) {
    pst_cli_generating how = {.print = true,
                              .interrupted = &interrupted,
                              .stops = c->has_template ? NULL : plain_stops,
                              .n_stops = c->has_template ? 0 : PST_ARRAY_LEN(plain_stops),
                              .adapter = c->adapter};
    if (c->terminal) pthread_sigmask(SIG_UNBLOCK, &c->signals, NULL);
    code = pst_cli_generate(c->args, c->engine, &prompt, &how, &answer, &last, err);
    if (c->terminal) pthread_sigmask(SIG_BLOCK, &c->signals, NULL);
    interrupted = 0;
  }
  if (!code) {
    putchar('\n');
    fflush(stdout);
    show_note(&last, c->args);
    code = add_turn(c, PST_CHAT_ASSISTANT, pst_str_trim(pst_buf_str(&answer)), err);
  }
  if (code) forget(c, before);
  pst_engine_tokens_done(&prompt);
  pst_buf_done(&answer);
  return code;
}

/* ---- commands ---- */

static int set_system(conversation *c, pst_str text, pst_error *err) {
  char *copy = text.n ? pst_strndup(text.data, text.n) : NULL;
  if (text.n && !copy) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory");
  pst_free(c->system);
  c->system = copy;
  forget(c, 0);
  return 0;
}

static const char help[] =
    "/reset         forget the conversation\n"
    "/system TEXT   new system message, conversation forgotten; without TEXT: none\n"
    "/exit          end (so does Ctrl-D); Ctrl-C stops an answer\n"
    "//...          a message that begins with a slash; a \\ at the end of a line goes on in the next\n";

/* Whether the line was a command; *ret_exit: the last one. */
static int run_slash(conversation *c, pst_str line, bool *ret_exit, pst_error *err) {
  size_t n = 0;
  while (n < line.n && line.data[n] != ' ') n++;
  pst_str name = {line.data, n}, rest = pst_str_trim((pst_str){line.data + n, line.n - n});
  if (pst_str_is(name, "/exit") || pst_str_is(name, "/quit")) {
    *ret_exit = true;
  } else if (pst_str_is(name, "/reset")) {
    forget(c, 0);
    fputs("(forgotten)\n", stderr);
  } else if (pst_str_is(name, "/system")) {
    return set_system(c, rest, err);
  } else {
    if (!pst_str_is(name, "/help"))
      fprintf(stderr, "there is no command %.*s\n", (int)PST_MIN(name.n, (size_t)40), name.data);
    fputs(help, stderr);
  }
  return 0;
}

/* ---- reading ---- */

typedef enum reading { READ_LINE, READ_END, READ_INTERRUPTED, READ_FAILED } reading;

/* Outside of this and of an answer SIGINT is blocked, so that none is lost between a look at the flag and the read. A terminal gives one
 * line a read: what getline keeps back is never a whole one. */
static bool wait_for_key(void) {
  struct pollfd p = {.fd = STDIN_FILENO, .events = POLLIN};
  sigset_t none;
  sigemptyset(&none);
  while (!interrupted)
    if (ppoll(&p, 1, NULL, &none) > 0) return true;
  interrupted = 0;
  return false;
}

static reading read_message(const conversation *c, pst_buf *line) {
  char *text = NULL;
  size_t capacity = 0;
  reading result = READ_LINE;
  pst_buf_clear(line);
  for (const char *mark = "> ";; mark = "| ") {
    if (c->terminal) {
      fputs(mark, stdout);
      fflush(stdout);
      if (!wait_for_key()) {
        result = READ_INTERRUPTED;
        break;
      }
    }
    ssize_t n = getline(&text, &capacity, stdin);
    if (n < 0) {
      result = ferror(stdin) ? READ_FAILED : line->n ? READ_LINE : READ_END;
      break;
    }
    while (n > 0 && (text[n - 1] == '\n' || text[n - 1] == '\r')) n--;
    bool more = n > 0 && text[n - 1] == '\\';
    pst_buf_append(line, text, (size_t)n - more);
    if (!more || line->n > MAX_LINE_BYTES) break;
    pst_buf_putc(line, '\n');
  }
  free(text); /* getline's own */
  return result;
}

/* In a pipe a failed turn ends the program; at the terminal it is told, and the conversation stays as it was before. */
static int take_line(conversation *c, const pst_buf *line, bool *ret_exit, pst_error *err) {
  pst_str text = pst_str_trim(pst_buf_str(line));
  int code = pst_buf_status(line) ? pst_error_set(err, PST_E_NOMEM, "stdin", "no memory for the message") : 0;
  if (!code && !text.n) return 0;
  if (!code && line->n > MAX_LINE_BYTES)
    code = pst_error_set(err, PST_E_LIMIT, "stdin", "a message may have %d bytes", MAX_LINE_BYTES);
  if (!code && text.data[0] == '/' && !(text.n > 1 && text.data[1] == '/')) return run_slash(c, text, ret_exit, err);
  if (!code && text.data[0] == '/') text = (pst_str){text.data + 1, text.n - 1};
  if (!code) code = answer_turn(c, text, err);
  if (code == PST_E_LIMIT) pst_error_prefix(err, "/reset starts anew");
  if (!code || !c->terminal) return code;
  char shown[1100];
  fprintf(stderr, "penstock: %s\n", pst_error_format(err, shown, sizeof shown));
  return 0;
}

static int converse(conversation *c, pst_error *err) {
  pst_buf line = PST_BUF_INIT;
  bool last = false, warned = false;
  int code = 0;
  if (c->terminal) fputs("/help lists the commands; Ctrl-D ends\n", stderr);
  while (!code && !last) {
    reading r = read_message(c, &line);
    if (r == READ_INTERRUPTED) {
      if (warned) break;
      fputs("\n(Ctrl-C once more, Ctrl-D or /exit ends)\n", stderr);
      warned = true;
      continue;
    }
    warned = false;
    if (r == READ_FAILED) code = pst_error_set_errno(err, errno, "stdin", "cannot read");
    if (r != READ_LINE) break;
    code = take_line(c, &line, &last, err);
  }
  if (c->terminal) putchar('\n');
  pst_buf_done(&line);
  return code;
}

static int run_chat(const pst_cli_args *a, pst_error *err) {
  pst_engine_model *model = NULL;
  conversation c = {.args = a, .terminal = isatty(STDIN_FILENO) != 0};
  struct sigaction action = {.sa_handler = on_interrupt};
  int code = pst_cli_model_open(a, a->words[0], (int)pst_cli_int(a, "threads"), &model, err);
  sigemptyset(&action.sa_mask);
  sigemptyset(&c.signals);
  sigaddset(&c.signals, SIGINT);
  if (!code && c.terminal) { /* before the engine's threads are there: they inherit the mask */
    pthread_sigmask(SIG_BLOCK, &c.signals, NULL);
    (void)sigaction(SIGINT, &action, NULL);
  }
  if (!code) code = pst_cli_adapter_open(a, model, &c.adapter, err);
  if (!code) code = pst_cli_engine_open(a, model, &c.engine, err);
  if (!code && pst_cli_text(a, "system")) code = set_system(&c, pst_str_from(pst_cli_text(a, "system")), err);
  if (!code) {
    c.has_template = pst_engine_model_get_info(model)->has_template;
    code = converse(&c, err);
  }
  forget(&c, 0);
  pst_free(c.turns);
  pst_free(c.system);
  pst_engine_free(c.engine);
  pst_engine_adapter_unref(c.adapter);
  pst_engine_model_unref(model);
  return code;
}

static const pst_cli_option options[] = {
    PST_CLI_GENERATE_OPTIONS,
    {"system", 's', PST_CLI_TEXT, "TEXT", NULL, 0, 0, false, "system message"},
    {"timings", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false, "print token counts and times after each answer to stderr"},
    PST_CLI_HOME,
};
const pst_cli_command pst_cli_chat = {
    "chat",
    "MODEL",
    "talk with a model",
    "Reads a message a line from the terminal or a pipe. /help lists the commands inside. Ctrl-C stops an answer.",
    1,
    1,
    options,
    PST_ARRAY_LEN(options),
    run_chat};
