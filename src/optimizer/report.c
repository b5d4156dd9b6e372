/* The page: a template that lies beside this file, with the evidence put into it as data. Everything is drawn by the page's own script; nothing is fetched. */
#include <penstock/optimizer.h>

#include <string.h>

/* JSON inside a script element: "<" stands only in strings there, and as an escape it cannot end the element. */
static void put_embedded(pst_buf *out, const char *json) {
  for (const char *p = json; *p;) {
    size_t n = strcspn(p, "<");
    pst_buf_append(out, p, n);
    p += n;
    if (*p == '<') {
      pst_buf_puts(out, "\\u003c");
      p++;
    }
  }
}

int pst_optimizer_report(const char *evidence, pst_buf *out, pst_error *err) {
  static const char mark[] = "@EVIDENCE@";
  pst_str page;
  pst_json_doc *doc = NULL;
  int code = pst_json_parse(evidence, strlen(evidence), "evidence", &doc, err);
  pst_json_free(doc);
  if (code) return code;
  if (!pst_asset_find("optimizer/report.html", &page))
    return pst_error_set(err, PST_E_INTERNAL, NULL, "the report's page is not part of this program");
  size_t at = pst_str_find(page, pst_str_from(mark), 0);
  if (at == SIZE_MAX) return pst_error_set(err, PST_E_INTERNAL, NULL, "the report's page has no place for its data");
  pst_buf_append(out, page.data, at);
  put_embedded(out, evidence);
  pst_buf_append(out, page.data + at + sizeof mark - 1, page.n - at - (sizeof mark - 1));
  return pst_buf_status(out) ? pst_error_set(err, PST_E_NOMEM, NULL, "no memory for the report") : 0;
}
