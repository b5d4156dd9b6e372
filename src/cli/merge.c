/* penstock merge: a model file with an adapter in its weights. */
#include <stdio.h>

#include "cli/adapter_path.h"
#include "cli/commands.h"
#include "cli/model_path.h"

static void print_result(const pst_cli_args *a, const char *type, int n_fallback) {
  pst_buf text = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&text, true);
  if (!pst_cli_flag(a, "json")) {
    printf("%s: %s with %s\n", a->words[2], a->words[0], a->words[1]);
    pst_cli_model_say_fallback(n_fallback, type);
    return;
  }
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "path", a->words[2]);
  pst_json_member_cstr(&w, "model", a->words[0]);
  pst_json_member_cstr(&w, "adapter", a->words[1]);
  pst_json_member_int(&w, "n_fallback", n_fallback);
  pst_json_end_object(&w);
  puts(pst_buf_text(&text));
  pst_buf_done(&text);
}

static int run_merge(const pst_cli_args *a, pst_error *err) {
  char *in = NULL, *adapter = NULL;
  const char *out = a->words[2], *type = pst_cli_text(a, "type");
  int n_fallback = 0;
  int code = pst_cli_model_may_write(a, out, err);
  if (!code) code = pst_cli_model_path(pst_cli_text(a, "home"), a->words[0], &in, err);
  if (!code) code = pst_cli_adapter_path(a, a->words[1], &adapter, err);
  if (!code) {
    pst_progress progress;
    pst_progress_begin(&progress, "merging", 0, true, pst_cli_flag(a, "quiet"));
    code = pst_engine_merge(in, adapter, out, type, &progress, &n_fallback, err);
    pst_progress_end(&progress);
  }
  if (!code) print_result(a, type, n_fallback);
  pst_free(in);
  pst_free(adapter);
  return code;
}

static const pst_cli_option options[] = {
    {"type", 0, PST_CLI_TEXT, "TYPE", NULL, 0, 0, false,
     "type of the matrices, as for quantize (default: as they are)"},
    PST_CLI_FORCE,
    PST_CLI_QUIET,
    PST_CLI_HOME,
    PST_CLI_JSON,
};
const pst_cli_command pst_cli_merge = {
    "merge",
    "MODEL ADAPTER OUT",
    "write a model file with a LoRA adapter in its weights",
    "MODEL is a pulled model's name or a GGUF file; ADAPTER a name of 'penstock adapters', a GGUF adapter or a folder of PEFT. A matrix\n"
    "with an adapter is added up in float32 and quantized again. OUT appears only when it is whole.",
    3,
    3,
    options,
    PST_ARRAY_LEN(options),
    run_merge};
