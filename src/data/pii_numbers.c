/* Numbers of persons: bank accounts, cards, identity numbers, telephones. A number with check digits is taken by them; one without must look like the kind, or
 * have words before it that say what it is. */
#include "data/pii.h"

#include <string.h>

#define CARD_SEPARATORS " -."
#define PHONE_SEPARATORS " -./()"

/* ---- IBAN ---- */

static void iban_at(pst_data_scan *s, size_t start) {
  char text[40];
  size_t n = 0, i = start, wanted = (size_t)pst_data_iban_length(s->text.data + start);
  if (!wanted ||
      !pst_data_is_digit(pst_data_at(s, start + 2) == ' ' ? pst_data_at(s, start + 3) : pst_data_at(s, start + 2)))
    return;
  for (; i < s->text.n && n < wanted; i++) {
    char c = s->text.data[i];
    if (pst_data_is_alnum(c))
      text[n++] = c;
    else if ((c != ' ' && c != '-') || !pst_data_is_alnum(pst_data_at(s, i + 1)))
      return;
  }
  if (n == wanted && !pst_data_is_alnum(pst_data_at(s, i)) && pst_data_is_digit(text[2]) &&
      pst_data_is_digit(text[3]) && pst_data_mod_97(text, n))
    (void)pst_data_take(s, start, i, PST_DATA_IBAN);
}

void pst_data_find_ibans(pst_data_scan *s) {
  for (size_t i = 0; i + 15 <= s->text.n; i++)
    if (pst_data_is_alpha(s->text.data[i]) && pst_data_is_alpha(s->text.data[i + 1]) && pst_data_begins(s, i))
      iban_at(s, i);
}

/* ---- numbers in groups ---- */

/* UTF-8 of the no-break space and of the typographic hyphens and dashes count as separators: how many bytes they have. */
static size_t wide_separator(const pst_data_scan *s, size_t i) {
  unsigned char a = (unsigned char)pst_data_at(s, i), b = (unsigned char)pst_data_at(s, i + 1),
                c = (unsigned char)pst_data_at(s, i + 2);
  if (a == 0xc2 && b == 0xa0) return 2;
  return a == 0xe2 && b == 0x80 && ((c >= 0x90 && c <= 0x95) || c == 0xaf) ? 3 : 0;
}

/* Behind what parts two digits: one separator, or two with a space between; `i` where none stands. */
static size_t skip_separators(const pst_data_scan *s, size_t i, const char *separators) {
  for (int k = 0; k < 3; k++) {
    char c = pst_data_at(s, i);
    size_t wide = wide_separator(s, i);
    if (wide)
      i += wide;
    else if (c && strchr(separators, c))
      i++;
    else
      break;
  }
  return i;
}

bool pst_data_number_read(const pst_data_scan *s, size_t start, const char *separators, pst_data_number *ret) {
  pst_data_number x = {.start = start};
  size_t i = start;
  if (pst_data_at(s, i) == '+' || pst_data_at(s, i) == '(') i++;
  if (pst_data_at(s, i) == '+') i++;
  while (pst_data_is_digit(pst_data_at(s, i))) {
    int in_group = 0;
    for (; pst_data_is_digit(pst_data_at(s, i)); i++, in_group++) {
      if (x.n == PST_DATA_MOST_DIGITS) return false;
      x.digits[x.n] = s->text.data[i];
      x.ends[x.n++] = i + 1;
    }
    x.groups[x.n_groups++] = in_group;
    size_t next = skip_separators(s, i, separators);
    if (next == i) break;
    i = next;
  }
  if (x.n == 0) return false;
  x.end = x.ends[x.n - 1];
  *ret = x;
  return true;
}

bool pst_data_number_cut(pst_data_number *x, int n) {
  int in = 0, g = 0;
  while (in < n && g < x->n_groups) in += x->groups[g++];
  if (in != n) return false;
  x->n = n;
  x->n_groups = g;
  x->end = x->ends[n - 1];
  x->digits[n] = '\0';
  return true;
}

static bool ends_well(const pst_data_scan *s, size_t end) {
  return !pst_data_is_alnum(pst_data_at(s, end)) && pst_data_at(s, end) != '_';
}

/* ---- cards ---- */

/* First digits and lengths of the networks. */
static bool is_card_range(const char *d, int n) {
  int two = (d[0] - '0') * 10 + d[1] - '0', four = two * 100 + (d[2] - '0') * 10 + d[3] - '0';
  switch (d[0]) {
  case '4': return n == 13 || n == 16 || n == 19;
  case '5': return two == 50 || two >= 56 ? n >= 12 : n == 16;
  case '2': return n == 16 && ((four >= 2221 && four <= 2720) || (four >= 2200 && four <= 2204));
  case '3':
    if (two == 34 || two == 37) return n == 15;
    return two == 35 ? n >= 16 : (two == 30 || two == 36 || two == 38 || two == 39) && n >= 14 && n != 15;
  case '6': return n >= 12;
  case '8': return two == 81 && n >= 16;
  case '9': return n == 16 && four >= 9792;
  default: return n == 15 && (four == 1800 || four == 2131);
  }
}

static bool has_small_groups(const pst_data_number *x) {
  for (int i = 0; i < x->n_groups; i++)
    if (x->groups[i] < 3 && i + 1 < x->n_groups) return true;
  return x->n_groups > 6;
}

void pst_data_find_cards(pst_data_scan *s) {
  for (size_t i = 0; i < s->text.n; i++) {
    if (!pst_data_is_digit(s->text.data[i]) || !pst_data_begins(s, i)) continue;
    pst_data_number whole;
    if (!pst_data_number_read(s, i, CARD_SEPARATORS, &whole)) continue;
    for (int n = PST_MIN(whole.n, 19); n >= 12; n--) {
      pst_data_number x = whole;
      if (!pst_data_number_cut(&x, n) || has_small_groups(&x) || !ends_well(s, x.end)) continue;
      if (!is_card_range(x.digits, n) || !pst_data_luhn(x.digits, n)) continue;
      if (pst_data_take(s, x.start, x.end, PST_DATA_CARD)) i = x.end - 1;
      break;
    }
  }
}

/* ---- identity numbers ---- */

static bool groups_are(const pst_data_number *x, const char *sizes) {
  size_t n = strlen(sizes);
  if ((size_t)x->n_groups != n) return false;
  for (size_t i = 0; i < n; i++)
    if (x->groups[i] != sizes[i] - '0') return false;
  return true;
}

/* United States: area, group and serial are never 0, nor is the area 666 or above 899. */
static bool is_ssn(const char *d) {
  int area = (d[0] - '0') * 100 + (d[1] - '0') * 10 + d[2] - '0';
  return area && area != 666 && area < 900 && (d[3] != '0' || d[4] != '0') && memcmp(d + 5, "0000", 4) != 0;
}

static bool is_date(const char *d, bool day_first) { /* ddmm or mmdd at d */
  int a = (d[0] - '0') * 10 + d[1] - '0', b = (d[2] - '0') * 10 + d[3] - '0';
  int day = day_first ? a : b, month = day_first ? b : a;
  return day >= 1 && day <= 31 && month >= 1 && month <= 12;
}

/* France: the check is 97 less the rest of the other 13. */
static bool nir_is_right(const char *d) {
  uint64_t number = 0;
  for (int i = 0; i < 13; i++) number = number * 10 + (uint64_t)(d[i] - '0');
  return 97 - number % 97 == (uint64_t)(d[13] - '0') * 10 + (uint64_t)(d[14] - '0');
}

static bool is_grouped_id(const pst_data_scan *s, const pst_data_number *x) {
  const char *d = x->digits;
  static const int pesel[11] = {1, 3, 7, 9, 1, 3, 7, 9, 1, 3, 1};
  char between = pst_data_at(s, x->ends[PST_MIN(x->groups[0], x->n) - 1]);
  if (groups_are(x, "324")) return is_ssn(d);
  if (groups_are(x, "333")) return pst_data_luhn(d, 9) && d[0] != '0';        /* Canada */
  if (groups_are(x, "444")) return d[0] > '1' && pst_data_verhoeff(d, 12);    /* India */
  if (groups_are(x, "3332")) return pst_data_cpf(d);                          /* Brazil */
  if (groups_are(x, "2333")) return d[0] != '0' && pst_data_mod_11_10(d, 11); /* Germany */
  if (groups_are(x, "64") && between == '-')
    return (is_date(d + 2, false) && pst_data_luhn(d, 10)) || is_date(d, true); /* Sweden, Denmark */
  if (groups_are(x, "84") && between == '-') return is_date(d + 4, false) && pst_data_luhn(d + 2, 10);
  if (x->n == 15) return (d[0] == '1' || d[0] == '2') && nir_is_right(d);
  if (groups_are(x, "65") && between == ' ') return is_date(d, true); /* Norway */
  return x->n == 11 && x->n_groups == 1 && is_date(d + 2, false) &&
         (pst_data_weighted(d, pesel, 11, 10) || pst_data_cpf(d));
}

static bool is_number_id(const pst_data_scan *s, const pst_data_number *x) {
  const char *d = x->digits;
  if (is_grouped_id(s, x)) return true;
  if (x->n_groups > 1) return false;
  if (x->n == 11) return pst_data_cpf(d) || (d[0] > '1' && pst_data_mod_11_10(d, 11));
  return x->n == 12 && d[0] > '1' && pst_data_verhoeff(d, 12);
}

/* What follows a number may be another one: the longest beginning that is an identity number. */
static void number_id_at(pst_data_scan *s, size_t i) {
  pst_data_number whole;
  if (!pst_data_number_read(s, i, " -.", &whole)) return;
  for (int n = PST_MIN(whole.n, 15); n >= 9; n--) {
    pst_data_number x = whole;
    if (!pst_data_number_cut(&x, n) || !ends_well(s, x.end) || !is_number_id(s, &x)) continue;
    (void)pst_data_take(s, x.start, x.end, PST_DATA_ID);
    return;
  }
}

/* Letters and digits by a pattern: A a letter, 9 a digit, ' ' a space or hyphen that may be missing. Returns where it ends, or 0; text gets what was read. */
static size_t match_shape(const pst_data_scan *s, size_t i, const char *shape, char *text) {
  size_t n = 0;
  for (; *shape; shape++) {
    char c = pst_data_at(s, i);
    if (*shape == ' ') {
      i += c == ' ' || c == '-' || c == '.';
      continue;
    }
    if (*shape == 'A' ? !pst_data_is_alpha(c) : !pst_data_is_digit(c)) return 0;
    text[n++] = (char)(pst_data_is_alpha(c) ? c & ~32 : c);
    i++;
  }
  text[n] = '\0';
  return ends_well(s, i) ? i : 0;
}

static bool is_dni(const char *text) {
  int number = 0;
  for (int i = text[0] >= 'X' ? 1 : 0; i < 8; i++) number = number * 10 + text[i] - '0';
  if (text[0] >= 'X') number += (text[0] - 'X') * 10000000;
  return "TRWAGMYFPDXBNJZSQVHLCKE"[number % 23] == text[8];
}

static bool is_nino(const char *t) {
  static const char *const never[] = {"BG", "GB", "NK", "KN", "TN", "NT", "ZZ"};
  for (size_t i = 0; i < PST_ARRAY_LEN(never); i++)
    if (!memcmp(t, never[i], 2)) return false;
  return !strchr("DFIQUV", t[0]) && !strchr("DFIQUVO", t[1]) && t[8] <= 'D';
}

static bool is_pan(const char *t) { return strchr("ABCFGHJLPT", t[3]) != NULL; }
static bool is_nie(const char *t) { return t[0] >= 'X' && is_dni(t); }
static bool is_hetu(const char *t) {
  int number = 0;
  for (int i = 0; i < 9; i++) number = number * 10 + t[i] - '0';
  return is_date(t, true) && "0123456789ABCDEFHJKLMNPRSTUVWXY"[number % 31] == t[9];
}

static void lettered_id_at(pst_data_scan *s, size_t i) {
  static const struct {
    const char *shape;
    bool (*check)(const char *text);
  } kinds[] = {{"AA 99 99 99 A", is_nino},                     /* United Kingdom */
               {"99999999 A", is_dni},                         /* Spain */
               {"A 9999999 A", is_nie},                        /* Spain, of foreigners */
               {"AAAAA9999A", is_pan},                         /* India, tax */
               {"999999 999A", is_hetu},                       /* Finland */
               {"AAAAAA99A99A999A", pst_data_codice_fiscale}}; /* Italy */
  char text[32];
  for (size_t k = 0; k < PST_ARRAY_LEN(kinds); k++) {
    size_t end = match_shape(s, i, kinds[k].shape, text);
    if (end && kinds[k].check(text) && pst_data_take(s, i, end, PST_DATA_ID)) return;
  }
}

static bool is_hex(char c) { return pst_data_is_digit(c) || ((c | 32) >= 'a' && (c | 32) <= 'f'); }

/* 8-4-4-4-12 hexadecimal digits (RFC 9562). */
static size_t uuid_end(const pst_data_scan *s, size_t i) {
  for (size_t k = 0; k < 36; k++) {
    char c = pst_data_at(s, i + k);
    if (k == 8 || k == 13 || k == 18 || k == 23 ? c != '-' : !is_hex(c)) return 0;
  }
  return ends_well(s, i + 36) ? i + 36 : 0;
}

/* Letters, digits and hyphens with at least four digits; where it ends, or 0. */
static size_t code_end(const pst_data_scan *s, size_t i) {
  int digits = 0, letters = 0;
  size_t end = i;
  for (; pst_data_is_alnum(pst_data_at(s, end)) ||
         ((pst_data_at(s, end) == '-' || pst_data_at(s, end) == '/') && pst_data_is_alnum(pst_data_at(s, end + 1)));
       end++) {
    digits += pst_data_is_digit(s->text.data[end]);
    letters += pst_data_is_alpha(s->text.data[end]);
    if (digits + letters > 24) return 0;
  }
  bool date = letters == 0 && end - i >= 7 && end - i <= 10 && pst_data_at(s, i + 4) == '-'; /* 2009-05-25, 2009-08 */
  return !date && digits >= 4 && digits + letters >= 5 && letters <= 8 + digits ? end : 0;
}

/* "CUST-48213", "INV-2024-00123", "AB1234567": capitals, then digits, as numbers of customers, invoices and passports are written. */
static bool is_numbered(const pst_data_scan *s, size_t i, size_t end) {
  size_t letters = 0, digits = 0, at = i;
  while (at < end && s->text.data[at] >= 'A' && s->text.data[at] <= 'Z') at++, letters++;
  bool hyphen = pst_data_at(s, at) == '-';
  for (size_t k = at; k < end; k++) {
    char c = s->text.data[k];
    bool may_follow = pst_data_is_digit(c) || (hyphen && c == '-') || (k + 1 == end && pst_data_is_alpha(c));
    if (!may_follow) return false;
    digits += pst_data_is_digit(c);
  }
  if (digits > 12) return false;
  return hyphen ? letters >= 2 && letters <= 6 && digits >= 5 : letters >= 1 && letters <= 3 && digits >= 6;
}

/* "passport number: X1234567", "my SSN is 123456789", "customer ID #99182-7". */
static bool says_id(const pst_data_scan *s, size_t start) {
  static const char *const words[] = {"passport",
                                      "ssn",
                                      "social security",
                                      "national id",
                                      "identity number",
                                      "identity card",
                                      "identity no",
                                      "licence",
                                      "license",
                                      "driver",
                                      "tax id",
                                      "tax number",
                                      "taxpayer",
                                      "insurance number",
                                      "insurance id",
                                      "nhs",
                                      "customer id",
                                      "customer number",
                                      "customer no",
                                      "account number",
                                      "account no",
                                      "account id",
                                      "acct",
                                      "member id",
                                      "member number",
                                      "membership",
                                      "employee id",
                                      "employee number",
                                      "patient",
                                      "medical record",
                                      "mrn",
                                      "student id",
                                      "student number",
                                      "user id",
                                      "userid",
                                      "user_id",
                                      "client id",
                                      "client number",
                                      "policy number",
                                      "policy no",
                                      "id number",
                                      "id no",
                                      "id card",
                                      "personal number",
                                      "personnummer",
                                      "steuer",
                                      "ausweis",
                                      "bsn",
                                      "nino",
                                      "aadhaar",
                                      "pan ",
                                      "cpf",
                                      "dni",
                                      "nie ",
                                      "vat",
                                      "routing number",
                                      "sort code",
                                      "order number",
                                      "order id",
                                      "order no",
                                      "booking reference",
                                      "booking number",
                                      "reservation number",
                                      "confirmation number",
                                      "case number",
                                      "ticket number",
                                      "reference number",
                                      "invoice number",
                                      "tracking number",
                                      "customer_id",
                                      "account_number",
                                      "patient_id",
                                      "employee_id",
                                      NULL};
  return pst_data_words_before(s, start, 32, words);
}

void pst_data_find_ids(pst_data_scan *s) {
  for (size_t i = 0; i < s->text.n; i++) {
    if (!pst_data_is_alnum(s->text.data[i]) || !pst_data_begins(s, i) || s->taken[i]) continue;
    size_t end = is_hex(s->text.data[i]) ? uuid_end(s, i) : 0;
    if (end && pst_data_take(s, i, end, PST_DATA_ID)) {
      i = end - 1;
      continue;
    }
    if (pst_data_is_digit(s->text.data[i])) number_id_at(s, i);
    if (!s->taken[i]) lettered_id_at(s, i);
    if (s->taken[i]) continue;
    end = code_end(s, i);
    if (end && (is_numbered(s, i, end) || says_id(s, i))) (void)pst_data_take(s, i, end, PST_DATA_ID);
    if (end) i = end - 1;
  }
}

/* ---- telephones ---- */

static bool says_phone(const pst_data_scan *s, size_t start) {
  static const char *const words[] = {"phone",    "tel",   "mobile",  "cell",    "call", "fax",
                                      "whatsapp", "sms",   "dial",    "reach",   "ring", "contact number",
                                      "hotline",  "handy", "text me", "text us", NULL};
  return pst_data_words_before(s, start, 32, words);
}

/* North America: area code and exchange begin with 2 to 9 (the numbers of examples, 555, included). */
static bool is_nanp(const pst_data_number *x) {
  const char *d = x->digits;
  int at = 0;
  if (x->n == 11 && d[0] == '1') at = 1;
  if (x->n - at != 10 || d[at] < '2') return false;
  if (x->n_groups == 1) return d[at + 3] >= '2';
  return groups_are(x, "334") || groups_are(x, "1334") || groups_are(x, "37") || groups_are(x, "64");
}

/* "(123) 456-7890", "123-456-7890", "123-4567": so written, a number is dialled, whatever its area. */
static bool is_written_as_phone(const pst_data_scan *s, const pst_data_number *x) {
  char last = pst_data_at(s, x->ends[x->n - 5]), first = s->text.data[x->start];
  if (last != '-' && last != '.') return false;
  if (groups_are(x, "34")) return last == '-' && x->digits[0] >= '2';
  return groups_are(x, "1334") || (groups_are(x, "334") && (first == '(' || pst_data_at(s, x->ends[2]) == last));
}

static bool looks_like_phone(const pst_data_scan *s, const pst_data_number *x) {
  const char *d = x->digits;
  char first = s->text.data[x->start];
  bool plus = first == '+' || (first == '(' && pst_data_at(s, x->start + 1) == '+');
  if (plus) return x->n >= 7 && x->n <= 15;
  if (x->n >= 10 && x->n <= 15 && d[0] == '0' && d[1] == '0' && d[2] != '0') return x->n_groups > 1 || x->n >= 11;
  if (is_nanp(x) || (x->n >= 7 && is_written_as_phone(s, x))) return true;
  if (d[0] == '0' && d[1] != '0' && x->n >= 9 && x->n <= 12) return x->n_groups <= 6;
  if (groups_are(x, "55")) return d[0] >= '6'; /* India, without the country's code */
  return x->n >= 7 && x->n <= 15 && says_phone(s, x->start);
}

static bool is_plain_number(const pst_data_scan *s, const pst_data_number *x) { /* 12.345.678, 3.14159, a date */
  char between = pst_data_at(s, x->ends[x->groups[0] - 1]);
  if (x->n_groups < 2) return false;
  if (groups_are(x, "422") || groups_are(x, "224")) return true;
  if (between == '/' && x->n_groups == 3 && x->groups[0] <= 2 && x->groups[1] <= 2) return true;
  bool dotted = between == '.' && s->text.data[x->start] != '+';
  return dotted && x->n_groups == 2;
}

/* "ext. 12", "x12" behind a number. */
static size_t extension_end(const pst_data_scan *s, size_t end) {
  static const char *const words[] = {" ext. ", " ext.",   " ext ", " extension ", " x",
                                      "x",      ", ext. ", ",ext.", " #",          NULL};
  for (size_t w = 0; words[w]; w++) {
    size_t n = strlen(words[w]), i = end;
    if (end + n > s->text.n || memcmp(s->text.data + end, words[w], n) != 0) continue;
    for (i += n; pst_data_is_digit(pst_data_at(s, i)); i++) {}
    if (i > end + n && i <= end + n + 6 && ends_well(s, i)) return i;
  }
  return end;
}

void pst_data_find_phones(pst_data_scan *s) {
  for (size_t i = 0; i < s->text.n; i++) {
    char c = s->text.data[i];
    bool lead = (c == '+' || c == '(') && (pst_data_is_digit(pst_data_at(s, i + 1)) || pst_data_at(s, i + 1) == '+');
    if ((!lead && !pst_data_is_digit(c)) || !pst_data_begins(s, i)) continue;
    pst_data_number x;
    if (!pst_data_number_read(s, i, PHONE_SEPARATORS, &x)) {
      while (pst_data_is_digit(pst_data_at(s, i + 1))) i++;
      continue;
    }
    size_t before = i;
    for (int n = x.n; n >= 7; n--) { /* what follows a number may be another one */
      pst_data_number part = x;
      if (!pst_data_number_cut(&part, n) || !ends_well(s, part.end)) continue;
      if (is_plain_number(s, &part) || !looks_like_phone(s, &part)) continue;
      size_t end = extension_end(s, part.end);
      if (pst_data_take(s, part.start, end, PST_DATA_PHONE)) i = end - 1;
      break;
    }
    if (i == before && !lead) /* on behind this group */
      i = x.ends[x.groups[0] - 1] - 1;
  }
}
