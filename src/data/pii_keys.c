/* Secrets in texts: keys and tokens by the beginnings that their makers give them, private keys, tokens of JSON (RFC 7519), what stands behind words like "password:",
 * and long random strings. */
#include "data/pii.h"

#include <string.h>

static bool is_token(char c) { return pst_data_is_alnum(c) || c == '_' || c == '-'; }
static bool is_base64(char c) { return is_token(c) || c == '+' || c == '/' || c == '.' || c == '~'; }

/* Bounded, so that text made of beginnings costs no more than its length times the bound. */
enum { TOKEN_MOST = 512, JWT_MOST = 8192, PEM_MOST = 16384 };

static size_t run_end(const pst_data_scan *s, size_t i, size_t most, bool (*is)(char c)) {
  size_t end = i;
  while (end < s->text.n && end - i < most && is(s->text.data[end])) end++;
  return end;
}

static bool starts(const pst_data_scan *s, size_t i, const char *prefix) {
  size_t n = strlen(prefix);
  return i + n <= s->text.n && !memcmp(s->text.data + i, prefix, n);
}

/* ---- beginnings ---- */

static const struct {
  const char *prefix;
  size_t least; /* bytes behind it */
} MAKERS[] = {{"sk-", 16},
              {"sk_live_", 10},
              {"sk_test_", 10},
              {"rk_live_", 10},
              {"rk_test_", 10},
              {"pk_live_", 10},
              {"pk_test_", 10},
              {"whsec_", 16},
              {"AKIA", 12},
              {"ASIA", 12},
              {"ghp_", 20},
              {"gho_", 20},
              {"ghu_", 20},
              {"ghs_", 20},
              {"ghr_", 20},
              {"github_pat_", 20},
              {"glpat-", 16},
              {"gldt-", 16},
              {"xoxb-", 10},
              {"xoxp-", 10},
              {"xoxa-", 10},
              {"xoxs-", 10},
              {"xoxr-", 10},
              {"xapp-", 10},
              {"AIza", 30},
              {"ya29.", 20},
              {"GOCSPX-", 16},
              {"hf_", 20},
              {"gsk_", 20},
              {"r8_", 20},
              {"npm_", 20},
              {"pypi-", 20},
              {"dop_v1_", 20},
              {"SG.", 20},
              {"key-", 24},
              {"EAA", 30},
              {"shpat_", 16},
              {"shpss_", 16},
              {"shpca_", 16},
              {"sq0atp-", 12},
              {"sq0csp-", 12},
              {"EAAA", 30},
              {"pst-", 40},
              {"lin_api_", 20},
              {"xai-", 20},
              {"pplx-", 20},
              {"tvly-", 16},
              {"nvapi-", 20},
              {"dapi", 28},
              {"sl.", 40},
              {"ATATT", 20},
              {"NRAK-", 20},
              {"AGE-SECRET-KEY-", 20},
              {"amzn.mws.", 16},
              {"rpa_", 20},
              {"fw_", 20},
              {"tgp_v1_", 20},
              {"figd_", 20},
              {"ntn_", 20},
              {"secret_", 20},
              {"sbp_", 20},
              {"phc_", 20},
              {"sntrys_", 20},
              {"glsa_", 20},
              {"hvs.", 20},
              {"vercel_", 16}};

static size_t maker_end(const pst_data_scan *s, size_t i) {
  for (size_t k = 0; k < PST_ARRAY_LEN(MAKERS); k++) {
    if (!starts(s, i, MAKERS[k].prefix)) continue;
    size_t from = i + strlen(MAKERS[k].prefix), end = run_end(s, from, TOKEN_MOST, is_base64);
    while (end > from && !pst_data_is_alnum(s->text.data[end - 1])) end--; /* the sentence's full stop */
    bool digit = false;
    for (size_t j = from; j < end; j++)
      digit = digit || pst_data_is_digit(s->text.data[j]) || (s->text.data[j] >= 'A' && s->text.data[j] <= 'Z');
    if (end >= from + MAKERS[k].least && digit) return end;
  }
  return 0;
}

/* header.payload.signature, the first two in base64 of "{\"". */
static size_t jwt_end(const pst_data_scan *s, size_t i) {
  if (!starts(s, i, "eyJ")) return 0;
  size_t a = run_end(s, i, JWT_MOST, is_token);
  if (pst_data_at(s, a) != '.' || a < i + 10) return 0;
  size_t b = run_end(s, a + 1, JWT_MOST, is_token);
  if (b < a + 6) return 0;
  return pst_data_at(s, b) == '.' ? run_end(s, b + 1, JWT_MOST, is_token) : b;
}

static size_t pem_end(const pst_data_scan *s, size_t i) {
  if (!starts(s, i, "-----BEGIN ")) return 0;
  pst_str rest = {s->text.data, PST_MIN(s->text.n, i + PEM_MOST)};
  size_t head = pst_str_find(rest, PST_STR("-----"), i + 11);
  if (head == SIZE_MAX || head > i + 80) return 0;
  if (pst_str_find((pst_str){rest.data, head}, PST_STR("PRIVATE KEY"), i) == SIZE_MAX) return 0;
  size_t end = pst_str_find(rest, PST_STR("-----END "), head);
  if (end != SIZE_MAX) end = pst_str_find(rest, PST_STR("-----"), end + 9);
  return end == SIZE_MAX ? rest.n : end + 5; /* cut off: all that is there */
}

/* Bots of Telegram: 8 to 10 digits, a colon, 35 characters. */
static size_t bot_end(const pst_data_scan *s, size_t i) {
  size_t colon = i;
  while (pst_data_is_digit(pst_data_at(s, colon))) colon++;
  if (colon < i + 8 || colon > i + 10 || pst_data_at(s, colon) != ':') return 0;
  size_t end = run_end(s, colon + 1, TOKEN_MOST, is_token);
  return end >= colon + 31 ? end : 0;
}

/* ---- random strings ---- */

/* Long, and of capital and small letters and digits in turn, or of hexadecimal digits: no word of any language. */
static size_t random_end(const pst_data_scan *s, size_t i) {
  size_t end = run_end(s, i, TOKEN_MOST, is_base64), n_upper = 0, n_lower = 0, n_digits = 0, n_hex = 0, turns = 0;
  while (end > i && (s->text.data[end - 1] == '.' || s->text.data[end - 1] == '/')) end--;
  while (pst_data_at(s, end) == '=') end++;
  size_t n = end - i;
  if (n < 24) return 0;
  for (size_t j = i; j < end; j++) {
    char c = s->text.data[j];
    bool digit = pst_data_is_digit(c), upper = c >= 'A' && c <= 'Z';
    if (c == '/' && n_digits == 0) return 0; /* a path */
    n_digits += digit;
    n_upper += upper;
    n_lower += c >= 'a' && c <= 'z';
    n_hex += digit || ((c | 32) >= 'a' && (c | 32) <= 'f');
    if (j > i) turns += digit != pst_data_is_digit(s->text.data[j - 1]);
  }
  if (n_hex == n && n >= 32 && n_digits >= 6 && n_digits + 4 <= n) return end;
  bool mixed = n_digits >= 3 && n_upper >= 3 && n_lower >= 3 && turns >= 5;
  return mixed && n_digits + n_upper + n_lower >= n - n / 8 ? end : 0;
}

/* ---- behind words ---- */

static const char *const NAMES[] = {"password",   "passwd",       "passphrase", "passcode",   "pwd",         "api key",
                                    "api_key",    "api-key",      "apikey",     "secret",     "secret key",  "token",
                                    "access key", "auth",         "bearer",     "credential", "private key", "kennwort",
                                    "passwort",   "mot de passe", "contrase",   NULL};

static char lower(char c) { return (char)(c >= 'A' && c <= 'Z' ? c | 32 : c); }

static size_t name_end(const pst_data_scan *s, size_t i) {
  size_t best = 0;
  for (size_t k = 0; NAMES[k]; k++) {
    size_t n = strlen(NAMES[k]);
    if (i + n > s->text.n || n <= best) continue;
    size_t j = 0;
    while (j < n && lower(s->text.data[i + j]) == NAMES[k][j]) j++;
    if (j == n) best = n;
  }
  return best ? i + best : 0;
}

/* ": x", " = x", " is x", "\": \"x", or for "Bearer" a space; where x begins, or 0. */
static size_t value_start(const pst_data_scan *s, size_t i, bool bare) {
  bool said = bare;
  if (starts(s, i, "ña")) i += 3;
  while (pst_data_at(s, i) == '"' || pst_data_at(s, i) == '\'' || pst_data_at(s, i) == '`') i++;
  for (int k = 0; k < 4; k++) {
    while (pst_data_at(s, i) == ' ') i++;
    if (starts(s, i, "is ") || starts(s, i, "was ") || starts(s, i, "to ")) {
      i = pst_str_find(s->text, PST_STR(" "), i);
      said = true;
    } else if (pst_data_at(s, i) == ':' || pst_data_at(s, i) == '=' || pst_data_at(s, i) == '>') {
      i++;
      said = true;
    }
  }
  while (pst_data_at(s, i) == '"' || pst_data_at(s, i) == '\'' || pst_data_at(s, i) == '`' || pst_data_at(s, i) == '<')
    i++;
  return said ? i : 0;
}

/* What stands there, if it looks chosen to be a secret and not to be read. */
static size_t secret_end(const pst_data_scan *s, size_t i) {
  size_t end = i;
  int digits = 0, letters = 0, others = 0;
  while (end < s->text.n && end <= i + TOKEN_MOST && !strchr(" \t\r\n\"'`<>,;", s->text.data[end])) end++;
  if (end > i + TOKEN_MOST) return 0; /* here, so that a long line of names and values takes no square of time */
  while (end > i && strchr(".,;:!?)]}", s->text.data[end - 1])) end--;
  for (size_t j = i; j < end; j++) {
    digits += pst_data_is_digit(s->text.data[j]);
    letters += pst_data_is_alpha(s->text.data[j]);
    others += !pst_data_is_alnum(s->text.data[j]);
  }
  size_t n = end - i;
  return n >= 6 && ((digits && (letters || others)) || (letters && others > 1)) ? end : 0;
}

static void secret_behind(pst_data_scan *s, size_t i) {
  size_t name = name_end(s, i);
  if (!name) return;
  bool bearer = lower(s->text.data[i]) == 'b' && pst_data_at(s, name) == ' ';
  size_t from = value_start(s, name, bearer), end = from ? secret_end(s, from) : 0;
  if (end) (void)pst_data_take(s, from, end, PST_DATA_KEY);
}

/* scheme://user:PASSWORD@host */
static void secret_in_url(pst_data_scan *s, size_t i) {
  size_t end = i + 3, colon = 0;
  while (end < s->text.n && end < i + 200 && !strchr(" \t\r\n\"'<>/@", s->text.data[end])) {
    if (s->text.data[end] == ':' && !colon) colon = end;
    end++;
  }
  if (pst_data_at(s, end) == '@' && colon && end > colon + 1) (void)pst_data_take(s, colon + 1, end, PST_DATA_KEY);
}

void pst_data_find_keys(pst_data_scan *s) {
  for (size_t i = 0; i < s->text.n; i++) {
    char c = s->text.data[i];
    if (c == ':' && starts(s, i, "://")) secret_in_url(s, i);
    if (s->taken[i] || (i && (is_token(s->text.data[i - 1]) && !(s->text.data[i - 1] == '-' && c == '-')))) {
      /* "my_password=" and "--password": a name may begin behind these */
      if (!s->taken[i] && i && (s->text.data[i - 1] == '_' || s->text.data[i - 1] == '-')) secret_behind(s, i);
      continue;
    }
    size_t end = 0;
    if (c == '-') end = pem_end(s, i);
    if (!end && pst_data_is_alnum(c)) {
      end = maker_end(s, i);
      if (!end && c == 'e') end = jwt_end(s, i);
      if (!end && pst_data_is_digit(c)) end = bot_end(s, i);
      if (!end) end = random_end(s, i);
    }
    if (end && pst_data_take(s, i, end, PST_DATA_KEY))
      i = end - 1;
    else
      secret_behind(s, i);
  }
}
