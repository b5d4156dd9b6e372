/* penstock run: one prompt, one answer, streamed. */
#include <string.h>
#include <unistd.h>

#include "cli/generate.h"

static int read_stdin(pst_buf *out, pst_error *err) {
  char piece[4096];
  size_t n;
  while ((n = fread(piece, 1, sizeof piece, stdin)) > 0 && out->n < (64u << 20)) pst_buf_append(out, piece, n);
  return pst_buf_status(out) ? pst_error_set(err, PST_E_NOMEM, "stdin", "no memory for the prompt") : 0;
}

static int make_prompt(const pst_engine_model *model, const pst_cli_args *a, pst_str text, pst_engine_tokens *prompt,
                       pst_error *err) {
  bool raw = pst_cli_flag(a, "raw") || !pst_engine_model_get_info(model)->has_template;
  if (raw) return pst_engine_tokenize(model, text, false, true, prompt, err);
  pst_chat_message messages[2];
  size_t n = 0;
  memset(messages, 0, sizeof messages);
  if (pst_cli_text(a, "system"))
    messages[n++] = (pst_chat_message){
        .role = PST_CHAT_SYSTEM, .has_content = true, .content = pst_str_from(pst_cli_text(a, "system"))};
  messages[n++] = (pst_chat_message){.role = PST_CHAT_USER, .has_content = true, .content = text};
  pst_chat chat = {.messages = messages, .n_messages = n, .add_generation_prompt = true};
  return pst_engine_render_chat(model, &chat, prompt, NULL, err);
}

static int run_run(const pst_cli_args *a, pst_error *err) {
  pst_engine_model *model = NULL;
  pst_engine *engine = NULL;
  pst_engine_tokens prompt = {0};
  pst_buf input = PST_BUF_INIT, answer = PST_BUF_INIT;
  pst_engine_event last;
  pst_cli_generating how = {.print = !pst_cli_flag(a, "json")};
  int code = 0;
  if (a->n_words > 1)
    pst_buf_puts(&input, a->words[1]);
  else
    code = read_stdin(&input, err);
  if (!code) code = pst_cli_model_open(a, a->words[0], (int)pst_cli_int(a, "threads"), &model, err);
  if (!code) code = pst_cli_adapter_open(a, model, &how.adapter, err);
  if (!code) code = make_prompt(model, a, pst_buf_str(&input), &prompt, err);
  if (!code) code = pst_cli_engine_open(a, model, &engine, err);
  if (!code) code = pst_cli_generate(a, engine, &prompt, &how, &answer, &last, err);
  if (!code && pst_cli_flag(a, "json"))
    pst_cli_print_answer(&answer, &last);
  else if (!code)
    putchar('\n');
  if (!code && pst_cli_flag(a, "timings"))
    fprintf(stderr, "prompt %d tokens (%d cached), first token after %.1f ms; %d tokens in %.1f ms\n", last.n_prompt,
            last.n_cached, (double)last.first_token_us / 1e3, last.n_completion, (double)last.total_us / 1e3);
  pst_engine_free(engine);
  pst_engine_adapter_unref(how.adapter);
  pst_engine_model_unref(model);
  pst_engine_tokens_done(&prompt);
  pst_buf_done(&input);
  pst_buf_done(&answer);
  return code;
}

static const pst_cli_option options[] = {
    PST_CLI_GENERATE_OPTIONS,
    {"system", 's', PST_CLI_TEXT, "TEXT", NULL, 0, 0, false, "system message"},
    {"raw", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false, "no chat template: continue the text as it stands"},
    {"timings", 0, PST_CLI_FLAG, NULL, NULL, 0, 0, false, "print token counts and times to stderr"},
    PST_CLI_HOME,
    PST_CLI_JSON,
};
const pst_cli_command pst_cli_run = {
    "run",
    "MODEL [TEXT]",
    "answer one prompt",
    "Without TEXT the prompt is read from standard input. A model without a chat template continues the text.",
    1,
    2,
    options,
    PST_ARRAY_LEN(options),
    run_run};
