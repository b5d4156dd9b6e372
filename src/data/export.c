/* Export: answered records, oldest first, each as a line of the wanted format, with the latest correction as its answer. */
#include "data/data.h"

#include <errno.h>
#include <string.h>

typedef struct exporter {
  pst_store *store;
  const pst_data_export_options *options;
  FILE *file;
  pst_buf line, correction;
  bool corrected;
  pst_data_exported done;
  pst_error *err;
} exporter;

static int take_correction(void *user, const pst_store_feedback *f) {
  exporter *x = user;
  if (!f->correction.data) return 0;
  x->corrected = true;
  pst_buf_clear(&x->correction);
  pst_buf_append_str(&x->correction, f->correction);
  return pst_buf_status(&x->correction);
}

static bool write_record(exporter *x, const pst_store_request *r) {
  pst_json_doc *input = NULL, *output = NULL;
  pst_data_example example;
  pst_str correction = {x->corrected ? pst_buf_text(&x->correction) : NULL, x->correction.n};
  bool ok = r->input_json.n && r->output_json.n &&
            !pst_json_parse(r->input_json.data, r->input_json.n, "input", &input, NULL) &&
            !pst_json_parse(r->output_json.data, r->output_json.n, "output", &output, NULL) &&
            !pst_data_example_of(pst_json_root(input), pst_json_root(output), correction, &example);
  pst_buf_clear(&x->line);
  ok = ok && pst_data_example_write(&example, r, x->options->format, &x->line);
  pst_json_free(input);
  pst_json_free(output);
  return ok;
}

static int export_record(void *user, const pst_store_request *r) {
  exporter *x = user;
  x->corrected = false;
  int code = pst_store_feedback_each(x->store, r->completion_id, 0, take_correction, x, x->err);
  if (code) return code;
  if (write_record(x, r)) {
    pst_buf_putc(&x->line, '\n');
    if (pst_buf_status(&x->line)) return pst_error_set(x->err, PST_E_NOMEM, NULL, "no memory to export a record");
    if (fwrite(x->line.data, 1, x->line.n, x->file) != x->line.n)
      return pst_error_set_errno(x->err, errno, "export", "cannot write");
    x->done.n_written++;
  } else {
    x->done.n_left_out++;
  }
  if (x->options->progress) pst_progress_update(x->options->progress, x->done.n_written + x->done.n_left_out);
  return 0;
}

int pst_data_export(pst_store *store, const pst_data_export_options *options, FILE *file,
                    pst_data_exported *ret_exported, pst_error *err) {
  exporter x = {.store = store, .options = options, .file = file, .err = err};
  pst_store_request_filter filter = options->filter;
  if (options->format == PST_DATA_AUTO || options->format == PST_DATA_PAIRS)
    return pst_error_set(err, PST_E_BAD_INPUT, "format", "records are written as openai, chat, sharegpt or csv");
  filter.answered = filter.with_content = true;
  int code = 0;
  if (options->format == PST_DATA_CSV && fputs(pst_data_csv_head, file) < 0)
    code = pst_error_set_errno(err, errno, "export", "cannot write");
  if (!code) code = pst_store_request_each(store, &filter, export_record, &x, err);
  if (!code && fflush(file)) code = pst_error_set_errno(err, errno, "export", "cannot write");
  if (!code) *ret_exported = x.done;
  pst_buf_done(&x.line);
  pst_buf_done(&x.correction);
  return code;
}
