/* JSON: whatever parses can be written, read back as the same value, and has a stable canonical form; whatever does not names
 * its place. The first byte of the input chooses how it is written. */
#include <penstock/base.h>

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static void require(bool good) {
  if (!good) abort();
}

static pst_json_doc *parse_again(const pst_buf *text) {
  pst_json_doc *doc = NULL;
  require(pst_buf_status(text) == 0);
  require(pst_json_parse(pst_buf_text(text), text->n, NULL, &doc, NULL) == 0);
  return doc;
}

static size_t visit(const pst_json *v) {
  size_t sum = pst_json_str(v).n + (size_t)pst_json_is_int(v) + (size_t)(pst_json_double(v, 0) > 0);
  pst_json_iter it = pst_json_iterate(v);
  size_t i = 0;
  for (; pst_json_next(&it); i++) {
    require(it.object ? pst_json_get_str(v, it.key) == it.value : i >= 8 || pst_json_at(v, i) == it.value);
    require(pst_utf8_valid(it.key));
    sum += visit(it.value);
  }
  require(i == pst_json_size(v));
  return sum;
}

static void check_writing(const pst_json *root, bool pretty) {
  pst_buf text = PST_BUF_INIT, again = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&text, pretty);
  pst_json_put_value(&w, root);
  pst_json_doc *doc = parse_again(&text);
  require(pst_json_equal(root, pst_json_root(doc)));
  w = pst_json_writer_on(&again, pretty);
  pst_json_put_value(&w, pst_json_root(doc));
  require(pst_str_equal(pst_buf_str(&text), pst_buf_str(&again)));
  pst_json_free(doc);
  pst_buf_done(&text);
  pst_buf_done(&again);
}

static void check_canonical(const pst_json *root) {
  pst_buf text = PST_BUF_INIT, again = PST_BUF_INIT;
  require(pst_json_canonical(root, &text) == 0);
  pst_json_doc *doc = parse_again(&text);
  require(pst_json_canonical(pst_json_root(doc), &again) == 0);
  require(pst_str_equal(pst_buf_str(&text), pst_buf_str(&again)));
  pst_json_free(doc);
  pst_buf_done(&text);
  pst_buf_done(&again);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
  if (n == 0) return 0;
  pst_json_doc *doc = NULL;
  pst_error err = PST_ERROR_INIT;
  int rc = pst_json_parse((const char *)data + 1, n - 1, "fuzz", &doc, &err);
  if (rc != 0) {
    require(!doc && err.code == rc && strncmp(err.place, "fuzz:", 5) == 0 && err.message[0]);
    require(pst_utf8_valid(pst_str_from(err.message)));
    return 0;
  }
  (void)visit(pst_json_root(doc));
  require(pst_json_equal(pst_json_root(doc), pst_json_root(doc)));
  check_writing(pst_json_root(doc), data[0] & 1);
  check_canonical(pst_json_root(doc));
  pst_json_free(doc);
  return 0;
}
