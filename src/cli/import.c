/* penstock import: a workload folder out of a JSONL file. */
#include <penstock/evals.h>

#include "cli/cli.h"

static int parse_shares(const char *text, double shares[PST_EVALS_PART_COUNT], pst_error *err) {
  pst_str rest = pst_str_from(text);
  double sum = 0;
  for (int i = 0; i < PST_EVALS_PART_COUNT; i++) {
    size_t end = PST_MIN(pst_str_find(rest, PST_STR(","), 0), rest.n);
    bool last = i == PST_EVALS_PART_COUNT - 1;
    if (pst_parse_double((pst_str){rest.data, end}, &shares[i]) || !(shares[i] >= 0) || (end == rest.n) != last)
      return pst_error_set(
          err, PST_E_BAD_INPUT, "shares",
          "--shares takes four numbers, for examples, search, verify and sealed, as in 0.4,0.2,0.2,0.2; not '%s'",
          text);
    sum += shares[i];
    if (!last) rest = (pst_str){rest.data + end + 1, rest.n - end - 1};
  }
  return sum > 0 ? 0 : pst_error_set(err, PST_E_BAD_INPUT, "shares", "at least one share must be above 0");
}

static void print_summary(const pst_cli_args *a, const pst_evals_info *info) {
  size_t parts[PST_EVALS_PART_COUNT] = {0};
  uint32_t n_clusters = 0;
  for (size_t i = 0; i < info->n_items; i++) {
    parts[info->items[i].part]++;
    n_clusters = PST_MAX(n_clusters, info->items[i].cluster + 1);
  }
  if (pst_cli_flag(a, "json")) {
    pst_buf out = PST_BUF_INIT;
    pst_json_writer w = pst_json_writer_on(&out, true);
    pst_json_begin_object(&w);
    pst_json_member_cstr(&w, "workload", info->name);
    pst_json_member_cstr(&w, "folder", info->folder);
    pst_json_member_cstr(&w, "description", info->description);
    pst_json_member_int(&w, "items", (int64_t)info->n_items);
    pst_json_member_int(&w, "clusters", n_clusters);
    pst_json_member_int(&w, "labels", (int64_t)info->n_labels);
    pst_json_key(&w, "parts");
    pst_json_begin_object(&w);
    for (int i = 0; i < PST_EVALS_PART_COUNT; i++) {
      pst_json_key(&w, pst_evals_part_name((pst_evals_part)i));
      pst_json_put_int(&w, (int64_t)parts[i]);
    }
    pst_json_end_object(&w);
    pst_json_end_object(&w);
    puts(pst_buf_text(&out));
    pst_buf_done(&out);
    return;
  }
  puts(info->description);
  printf("%s: %zu items in %u clusters of near-duplicates", info->folder, info->n_items, n_clusters);
  if (info->n_labels) printf(", %zu labels", info->n_labels);
  putchar('\n');
  for (int i = 0; i < PST_EVALS_PART_COUNT; i++)
    printf("  %-9s %zu\n", pst_evals_part_name((pst_evals_part)i), parts[i]);
  printf("The goal and settings in %s/workload.json are a guess: make them yours.\n", info->folder);
}

static int run_import(const pst_cli_args *a, pst_error *err) {
  pst_evals_import_options o = {.name = pst_cli_text(a, "name"),
                                .answer_field = pst_cli_text(a, "answer"),
                                .limit = (size_t)pst_cli_int(a, "limit"),
                                .seed = (uint64_t)pst_cli_int(a, "seed")};
  pst_evals_workload *workload = NULL;
  pst_progress progress;
  o.n_text_fields = (size_t)pst_cli_many(a, "text", &o.text_fields);
  int code = pst_cli_given(a, "shares") ? parse_shares(pst_cli_text(a, "shares"), o.shares, err) : 0;
  if (code) return code;
  pst_progress_begin(&progress, "importing", 0, false, pst_cli_flag(a, "quiet"));
  code = pst_evals_import(a->words[0], a->words[1], &o, &progress, err);
  pst_progress_end(&progress);
  if (!code) code = pst_evals_workload_open(a->words[1], &workload, err);
  if (!code) print_summary(a, pst_evals_workload_info(workload));
  pst_evals_workload_free(workload);
  return code;
}

static const pst_cli_option options[] = {
    {"name", 0, PST_CLI_TEXT, "NAME", NULL, 0, 0, false, "the workload's name (default: the folder's)"},
    {"text", 0, PST_CLI_TEXT, "FIELD", NULL, 0, 0, true,
     "field that holds the text, or a list of texts; several are joined, a line each (default: found)"},
    {"answer", 0, PST_CLI_TEXT, "FIELD", NULL, 0, 0, false, "field that holds the right answer (default: found)"},
    {"limit", 'n', PST_CLI_INT, "N", "0", 0, 1e7, false, "a sample of so many lines, each label in its share (0: all)"},
    {"seed", 0, PST_CLI_INT, "N", "1", 0, 9e15, false, "seed of the sample and the parts"},
    {"shares", 0, PST_CLI_TEXT, "A,B,C,D", NULL, 0, 0, false,
     "shares of examples, search, verify, sealed, on any scale (default: 0.2 each for the last three, but no more than about 600, 1000 and "
     "900 items; the rest for examples)"},
    PST_CLI_QUIET,
    PST_CLI_JSON,
};
const pst_cli_command pst_cli_import = {
    "import",
    "FILE.jsonl FOLDER",
    "make a workload of a file of texts and right answers",
    "Each line is a JSON object with a text and a label, number, JSON object, SQL statement or text that is the right answer. Near-duplicate\n"
    "texts are kept in one part. The same file and seed give the same folder.",
    2,
    2,
    options,
    PST_ARRAY_LEN(options),
    run_import};
