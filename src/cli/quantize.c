/* penstock quantize: a model file with its matrices in another type. */
#include <stdio.h>
#include <sys/stat.h>

#include "cli/commands.h"
#include "cli/model_path.h"

static int64_t size_of(const char *path) {
  struct stat st;
  return stat(path, &st) == 0 ? (int64_t)st.st_size : 0;
}

static void print_result(bool json, const char *in, const char *out, const char *type, int n_fallback) {
  if (!json) {
    printf("%s: %.1f MiB, from %.1f MiB\n", out, (double)size_of(out) / 1048576.0, (double)size_of(in) / 1048576.0);
    pst_cli_model_say_fallback(n_fallback, type);
    return;
  }
  pst_buf text = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&text, true);
  pst_json_begin_object(&w);
  pst_json_member_cstr(&w, "path", out);
  pst_json_member_int(&w, "bytes", size_of(out));
  pst_json_member_int(&w, "source_bytes", size_of(in));
  pst_json_member_int(&w, "n_fallback", n_fallback);
  pst_json_end_object(&w);
  puts(pst_buf_text(&text));
  pst_buf_done(&text);
}

static int run_quantize(const pst_cli_args *a, pst_error *err) {
  char *in = NULL;
  const char *out = a->words[1], *type = a->words[2];
  bool json = pst_cli_flag(a, "json");
  int n_fallback = 0;
  int code = pst_cli_model_may_write(a, out, err);
  if (!code) code = pst_cli_model_path(pst_cli_text(a, "home"), a->words[0], &in, err);
  if (code) return code;
  pst_progress progress;
  pst_progress_begin(&progress, "quantizing", 0, true, pst_cli_flag(a, "quiet"));
  code = pst_engine_quantize(in, out, type, &progress, &n_fallback, err);
  pst_progress_end(&progress);
  if (!code) print_result(json, in, out, type, n_fallback);
  pst_free(in);
  return code;
}

static const pst_cli_option options[] = {
    PST_CLI_FORCE,
    PST_CLI_QUIET,
    PST_CLI_HOME,
    PST_CLI_JSON,
};
const pst_cli_command pst_cli_quantize = {
    "quantize",
    "IN OUT TYPE",
    "write a model file with its matrices in another type",
    "IN is a pulled model's name or a GGUF file. TYPE: F32 F16 BF16 Q8_0 Q6_K Q5_K Q5_1 Q5_0 Q4_K Q4_1 Q4_0 IQ4_NL IQ4_XS Q3_K. Norms and biases are copied.\n"
    "OUT appears only when it is whole.",
    3,
    3,
    options,
    PST_ARRAY_LEN(options),
    run_quantize};
