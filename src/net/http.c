/* HTTP words: headers, targets, dates, status texts. Pure functions; no sockets, no state. */
#include <penstock/net.h>

#include <string.h>

static char lower(char c) { return c >= 'A' && c <= 'Z' ? (char)(c + 32) : c; }

static bool equal_fold(pst_str a, const char *b) {
  size_t n = strlen(b);
  if (a.n != n) return false;
  for (size_t i = 0; i < n; i++) {
    if (lower(a.data[i]) != lower(b[i])) return false;
  }
  return true;
}

pst_str pst_net_header_find(const pst_net_header *headers, size_t n, const char *name) {
  for (size_t i = 0; i < n; i++) {
    if (equal_fold(headers[i].name, name)) return headers[i].value;
  }
  return (pst_str){NULL, 0};
}

bool pst_net_header_has_token(pst_str value, const char *token) {
  size_t i = 0;
  while (i < value.n) {
    size_t end = i;
    while (end < value.n && value.data[end] != ',') end++;
    if (equal_fold(pst_str_trim((pst_str){value.data + i, end - i}), token)) return true;
    i = end + 1;
  }
  return false;
}

static int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  c = lower(c);
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

int pst_net_percent_decode(pst_str text, bool plus, pst_buf *out) {
  for (size_t i = 0; i < text.n; i++) {
    char c = text.data[i];
    if (c == '%') {
      bool whole = text.n - i > 2;
      int high = whole ? hex_digit(text.data[i + 1]) : -1;
      int low = whole ? hex_digit(text.data[i + 2]) : -1;
      if (high < 0 || low < 0) return PST_E_BAD_INPUT;
      c = (char)(high * 16 + low);
      i += 2;
    } else if (c == '+' && plus) {
      c = ' ';
    }
    pst_buf_putc(out, c);
  }
  return pst_buf_status(out);
}

int pst_net_query_get(pst_str query, const char *name, pst_buf *out) {
  pst_buf key = PST_BUF_INIT;
  int rc = 0;
  size_t i = 0;
  while (i < query.n && rc == 0) {
    size_t end = i;
    while (end < query.n && query.data[end] != '&') end++;
    pst_str pair = {query.data + i, end - i};
    size_t equals = pst_str_find(pair, PST_STR("="), 0);
    pst_str raw_key = {pair.data, PST_MIN(equals, pair.n)};
    pst_str raw_value = equals == SIZE_MAX ? (pst_str){"", 0} : (pst_str){pair.data + equals + 1, pair.n - equals - 1};
    i = end + 1;
    pst_buf_clear(&key);
    rc = pst_net_percent_decode(raw_key, true, &key);
    if (rc == 0 && pst_str_is(pst_buf_str(&key), name)) {
      rc = pst_net_percent_decode(raw_value, true, out);
      if (rc == 0) rc = 1;
    }
  }
  pst_buf_done(&key);
  return rc;
}

const char *pst_net_status_text(int status) {
  static const struct {
    int status;
    const char *text;
  } table[] = {
      {100, "Continue"},
      {200, "OK"},
      {201, "Created"},
      {202, "Accepted"},
      {204, "No Content"},
      {206, "Partial Content"},
      {301, "Moved Permanently"},
      {302, "Found"},
      {303, "See Other"},
      {304, "Not Modified"},
      {307, "Temporary Redirect"},
      {308, "Permanent Redirect"},
      {400, "Bad Request"},
      {401, "Unauthorized"},
      {402, "Payment Required"},
      {403, "Forbidden"},
      {404, "Not Found"},
      {405, "Method Not Allowed"},
      {406, "Not Acceptable"},
      {408, "Request Timeout"},
      {409, "Conflict"},
      {410, "Gone"},
      {411, "Length Required"},
      {412, "Precondition Failed"},
      {413, "Content Too Large"},
      {414, "URI Too Long"},
      {415, "Unsupported Media Type"},
      {416, "Range Not Satisfiable"},
      {417, "Expectation Failed"},
      {422, "Unprocessable Content"},
      {429, "Too Many Requests"},
      {431, "Request Header Fields Too Large"},
      {499, "Client Closed Request"},
      {500, "Internal Server Error"},
      {501, "Not Implemented"},
      {502, "Bad Gateway"},
      {503, "Service Unavailable"},
      {504, "Gateway Timeout"},
      {505, "HTTP Version Not Supported"},
      {507, "Insufficient Storage"},
  };
  for (size_t i = 0; i < PST_ARRAY_LEN(table); i++) {
    if (table[i].status == status) return table[i].text;
  }
  return "Unknown";
}

/* Days to a civil date: H. Hinnant, "chrono-compatible low-level date algorithms". Own arithmetic because strftime follows the locale. */
void pst_net_http_date(int64_t unix_seconds, char ret_text[30]) {
  static const char *const days[] = {"Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"};
  static const char *const months[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                       "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
  int64_t seconds = PST_MIN(PST_MAX(unix_seconds, 0), INT64_C(253402300799)); /* up to the end of the year 9999 */
  int64_t day_number = seconds / 86400;
  int rest = (int)(seconds % 86400);
  int64_t z = day_number + 719468;
  int64_t era = z / 146097;
  int day_of_era = (int)(z - era * 146097);
  int year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36524 - day_of_era / 146096) / 365;
  int day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
  int shifted_month = (5 * day_of_year + 2) / 153;
  int day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
  int month = shifted_month < 10 ? shifted_month + 3 : shifted_month - 9;
  int year = (int)(year_of_era + era * 400) + (month <= 2 ? 1 : 0);
  snprintf(ret_text, 30, "%s, %02u %s %04u %02u:%02u:%02u GMT", days[day_number % 7], (unsigned)day % 100,
           months[month - 1], (unsigned)year % 10000, (unsigned)rest / 3600 % 100, (unsigned)rest / 60 % 60,
           (unsigned)rest % 60);
}
