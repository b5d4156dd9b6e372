/* Private data is found where it was planted, and nowhere else.
 *
 * The generator below knows nothing of the detector: it makes numbers from the rules of their issuers (check digits computed here, by other means), in the
 * spellings that people use, and puts them into sentences that people wrote. */
#include <penstock/data.h>

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static pst_random dice;
static pst_error err;

static size_t below(size_t n) { return (size_t)pst_random_below(&dice, n); }
static const char *one_of(const char *const *list, size_t n) { return list[below(n)]; }
#define ONE_OF(list) one_of(list, PST_ARRAY_LEN(list))

/* ---- the generator ---- */

/* Each # a digit, @ a small letter, ^ a capital one, ~ either or a digit, % a hexadecimal digit; all else itself. */
static void spell(const char *shape, char *out) {
  for (; *shape; shape++) {
    switch (*shape) {
    case '#': *out++ = (char)('0' + below(10)); break;
    case '@': *out++ = (char)('a' + below(26)); break;
    case '^': *out++ = (char)('A' + below(26)); break;
    case '%': *out++ = "0123456789abcdef"[below(16)]; break;
    case '\x01': memcpy(out, "@db", 3), out += 3; break; /* what an @ stands for otherwise */
    case '~': *out++ = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"[below(62)]; break;
    default: *out++ = *shape;
    }
  }
  *out = '\0';
}

/* The last digit by trying all ten: the sum of the digits, every second one (from the right) doubled, ends in 0. */
static void close_with_luhn(char *number) {
  size_t n = strlen(number);
  for (number[n - 1] = '0';; number[n - 1]++) {
    int sum = 0, place = 0;
    for (size_t i = n; i-- > 0;) {
      if (number[i] < '0' || number[i] > '9') continue;
      int d = (number[i] - '0') << (place++ & 1);
      sum += d / 10 + d % 10;
    }
    if (sum % 10 == 0) return;
  }
}

static void make_card(char *out) {
  static const char *const shapes[] = {"4###############",     "4### #### #### ####", "4###-####-####-####",
                                       "5[1-5]##############", "51## #### #### ####", "55##-####-####-####",
                                       "37## ###### #####",    "34#############",     "6011 #### #### ####",
                                       "6011############",     "3530-####-####-####", "36############",
                                       "2221 #### #### ####",  "4###.####.####.####", "6250 #### #### ####"};
  const char *shape = ONE_OF(shapes);
  if (strchr(shape, '[')) shape = "53##############";
  spell(shape, out);
  close_with_luhn(out);
}

/* Check digits as ISO 13616 says: the account behind, country and 00, letters as numbers, 98 less the rest by 97; digit by digit. */
static void make_iban(char *out) {
  static const char *const shapes[][2] = {{"DE", "##################"},
                                          {"GB", "^^^^##############"},
                                          {"FR", "####################@##"},
                                          {"ES", "####################"},
                                          {"NL", "^^^^##########"},
                                          {"IT", "^######################"},
                                          {"BE", "############"},
                                          {"CH", "#################"},
                                          {"AT", "################"},
                                          {"PL", "########################"}};
  size_t pick = below(PST_ARRAY_LEN(shapes));
  char account[40], digits[100], whole[48];
  spell(shapes[pick][1], account);
  for (char *c = account; *c; c++)
    if (*c >= 'a' && *c <= 'z') *c = (char)(*c - 32);
  snprintf(whole, sizeof whole, "%s%s00", account, shapes[pick][0]);
  char *d = digits;
  for (const char *c = whole; *c; c++) d += sprintf(d, "%d", *c >= 'A' ? *c - 'A' + 10 : *c - '0');
  int rest = 0;
  for (d = digits; *d; d++) rest = (rest * 10 + *d - '0') % 97;
  snprintf(whole, sizeof whole, "%s%02d%s", shapes[pick][0], 98 - rest, account);
  bool grouped = below(2);
  for (size_t i = 0; whole[i]; i++) {
    if (grouped && i && i % 4 == 0) *out++ = ' ';
    *out++ = whole[i];
  }
  *out = '\0';
}

static void make_phone(char *out) {
  static const char *const shapes[] = {"+1 (415) 555-01##", "(212) 555-0###",    "303-555-####",
                                       "646.555.####",      "+44 20 7946 0###",  "+44 7700 900###",
                                       "07700 900###",      "020 7946 0###",     "+49 30 901820##",
                                       "+49-89-636-48###",  "030 1234####",      "+33 1 42 68 53 ##",
                                       "06 12 34 5# ##",    "+91 98765 43###",   "+61 2 9374 4###",
                                       "+81-3-1234-5###",   "1-800-555-0###",    "+1415555####",
                                       "0044 20 7946 0###", "+353 1 234 5###",   "+34 912 34 56 ##",
                                       "(030) 345 67 ##",   "+1-202-555-01##",   "415 555 ####",
                                       "+39 06 698 12###",  "+86 138 1234 5###", "+55 11 91234-5###",
                                       "+46 8 123 456 ##",  "7035550###",        "(0##) 456-7###",
                                       "1##-4##-7890",      "555-01##",          "+1 650 253 0### ext. 1##"};
  spell(ONE_OF(shapes), out);
}

static void make_email(char *out) {
  static const char *const names[] = {"anna.berg", "j_doe",           "mary-jane", "x.y.z", "o'neil",
                                      "lee99",     "first.last+news", "K.Meyer",   "bo",    "jürgen.groß"};
  static const char *const hosts[] = {"example.com",      "mail.example.org", "uni-bonn.de", "a.co",
                                      "sub.domain.co.uk", "EXAMPLE.NET",      "my-firm.io",  "web.museum"};
  sprintf(out, "%s@%s", ONE_OF(names), ONE_OF(hosts));
}

static void make_ip(char *out) {
  static const char *const shapes[] = {"2001:db8::%%%%:%%%%", "fe80::1%%:%%ff:fe23:4567",
                                       "2001:0db8:85a3:0000:0000:8a2e:0370:7%%4", "00:1a:2b:%%:%%:5e",
                                       "3C-52-82-%%-%%-9F"};
  if (below(3)) {
    sprintf(out, "%d.%d.%d.%d", (int)below(223) + 1, (int)below(256), (int)below(256), (int)below(255) + 1);
    return;
  }
  spell(ONE_OF(shapes), out);
}

/* Spain: the letter is the rest by 23. Brazil: two digits, each 11 less the rest of a sum with falling weights. */
static void make_dni(char *out) {
  unsigned number = (unsigned)below(90000000) + 10000000;
  sprintf(out, "%08u%s%c", number, below(2) ? "" : "-", "TRWAGMYFPDXBNJZSQVHLCKE"[number % 23]);
}

static void make_cpf(char *out) {
  int d[11];
  for (int i = 0; i < 9; i++) d[i] = (int)below(10);
  d[0] = (d[1] + 1) % 10; /* never all the same */
  for (int k = 9; k < 11; k++) {
    int sum = 0;
    for (int i = 0; i < k; i++) sum += d[i] * (k + 1 - i);
    d[k] = sum % 11 < 2 ? 0 : 11 - sum % 11;
  }
  sprintf(out, "%d%d%d.%d%d%d.%d%d%d-%d%d", d[0], d[1], d[2], d[3], d[4], d[5], d[6], d[7], d[8], d[9], d[10]);
}

static void make_id(char *out) {
  static const char *const shapes[] = {"%%%%%%%%-%%%%-4%%%-8%%%-%%%%%%%%%%%%",
                                       "AB 12 34 5# C",
                                       "JG1030##A",
                                       "CUST-48#1#",
                                       "INV-2024-00#2#",
                                       "AB#######",
                                       "X12345##A",
                                       "passport number C0####1#7",
                                       "customer ID 88-###21",
                                       "SSN: 5#2114###",
                                       "account number 77#####1",
                                       "order number A-10###77",
                                       "member ID #MB44###9",
                                       "ABCPK12##Z",
                                       "social security number 3##-21-45#7"};
  switch (below(5)) {
  case 0: make_dni(out); return;
  case 1: make_cpf(out); return;
  case 2: sprintf(out, "%03d-%02d-%04d", (int)below(660) + 1, (int)below(99) + 1, (int)below(9999) + 1); return;
  default: spell(ONE_OF(shapes), out);
  }
}

static void make_key(char *out) {
  static const char *const shapes[] = {
      "sk-proj-~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~7",
      "sk-ant-api03-~~~~~~~~~~~~~~~~~~~~~~~~~~~~1",
      "AKIA^^#^^^#^^^#^#^^^",
      "ghp_~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~1",
      "xoxb-############-############-~~~~~~~~~~~~~~~~~~~~~~~~",
      "AIzaSy~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~3",
      "hf_~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~1",
      "glpat-~~~~~~~~~~~~~~~~~~1A",
      "sk_live_~~~~~~~~~~~~~~~~~~~~~~~1",
      "SG.~~~~~~~~~~~~~~~~~~~~~~.~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~9",
      "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0NTY3ODkwIn0.~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~",
      "password: ~~~~~@@#!#",
      "api_key=%%%%%%%%%%%%%%%%1a",
      "Bearer ~~~~~~~~~~~~~~~~~~~~~~~~~~1",
      "npm_~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~1",
      "my password is @@@@@##",
      "%%%%%%%%1%2%3%4%5%6%7%8%%%%%%%a9",
      "#########:AA~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~~1",
      "postgres://app:~~~~~~~~9\x01"};
  spell(ONE_OF(shapes), out);
}

static void (*const MAKERS[PST_DATA_PII_COUNT])(char *out) = {make_card, make_iban, make_phone, make_email,
                                                              make_ip,   make_id,   make_key};

/* ---- clean text ---- */

static const char *const SENTENCES[] = {"Can you tell me why my payment was declined yesterday evening?",
                                        "I moved house in 2019 and 3 of my cards never arrived",
                                        "The table has 12,345 rows, 4.75 on average, and ends at 10:45.",
                                        "Please book a table for 4 at 7 pm on 2024-05-17 near the station.",
                                        "Version 2.10.3 fixed 17 bugs; see section 4.2 for the other 1,200."};

typedef struct corpus {
  char **texts;
  size_t n, capacity;
} corpus;

static void add_text(corpus *c, pst_str text) {
  assert_int_equal(pst_array_reserve((void **)&c->texts, &c->capacity, c->n + 1, sizeof *c->texts), 0);
  c->texts[c->n++] = pst_strndup(text.data, text.n);
}

/* Every k-th text of a file of the shared data. */
static void read_file(corpus *c, const char *name, size_t k) {
  const char *data = getenv("PENSTOCK_TEST_DATA");
  char path[512], *text = NULL;
  size_t n = 0, line = 0;
  snprintf(path, sizeof path, "%s/%s", data ? data : "../shared/data", name);
  if (pst_file_read(path, 1 << 26, &text, &n, &err)) return;
  for (size_t at = 0; at < n; line++) {
    size_t end = PST_MIN(pst_str_find((pst_str){text, n}, PST_STR("\n"), at), n);
    pst_json_doc *doc = NULL;
    if (line % k == 0 && !pst_json_parse(text + at, end - at, name, &doc, &err))
      add_text(c, pst_json_str(pst_json_get(pst_json_root(doc), "text")));
    pst_json_free(doc);
    at = end + 1;
  }
  pst_free(text);
}

static void free_corpus(corpus *c) {
  for (size_t i = 0; i < c->n; i++) pst_free(c->texts[i]);
  pst_free(c->texts);
}

static corpus clean_texts(bool *ret_shared) {
  corpus c = {0};
  read_file(&c, "intents/banking77.jsonl", 2);
  read_file(&c, "intents/clinc150.jsonl", 4);
  read_file(&c, "extract/snips.jsonl", 3);
  if (ret_shared) *ret_shared = c.n > 0;
  for (size_t i = 0; c.n < 100; i++) add_text(&c, pst_str_from(SENTENCES[i % PST_ARRAY_LEN(SENTENCES)]));
  return c;
}

/* ---- tests ---- */

/* Into a sentence, between two words, with the marks that people put around. */
static void plant(const char *sentence, const char *value, pst_buf *out, size_t *ret_start) {
  static const char *const around[][2] = {{"", ""},   {"", "."},  {"(", ")"}, {"\"", "\""}, {"", ","},
                                          {"'", "'"}, {": ", ""}, {"", "?"},  {"\n", "\n"}, {"<", ">"}};
  size_t pick = below(PST_ARRAY_LEN(around)), n = strlen(sentence), at = below(n + 1);
  while (at < n && sentence[at] != ' ') at++;
  pst_buf_append(out, sentence, at);
  if (at) pst_buf_putc(out, ' ');
  pst_buf_puts(out, around[pick][0]);
  *ret_start = out->n;
  pst_buf_puts(out, value);
  pst_buf_puts(out, around[pick][1]);
  if (at < n) pst_buf_puts(out, sentence + at);
}

static void planted_items_are_found(void **state) {
  (void)state;
  enum { EACH = 3000 };
  corpus clean = clean_texts(NULL);
  pst_data_finding *found = NULL;
  size_t capacity = 0, n_shown = 0;
  for (int kind = 0; kind < PST_DATA_PII_COUNT; kind++) {
    size_t n_found = 0;
    dice = (pst_random){7, (uint64_t)kind, 0};
    for (int i = 0; i < EACH; i++) {
      pst_buf text = PST_BUF_INIT;
      char value[160];
      size_t start = 0, n = 0;
      MAKERS[kind](value);
      plant(clean.texts[below(clean.n)], value, &text, &start);
      assert_int_equal(pst_data_pii_find(pst_buf_str(&text), &found, &n, &capacity), 0);
      /* Found: what ends the value is taken, and most of its digits (words before an id or key stay). */
      size_t end = start + strlen(value), covered = 0, wanted = 0;
      for (size_t k = start; k < end; k++) {
        bool digit = text.data[k] >= '0' && text.data[k] <= '9', in = false;
        for (size_t f = 0; f < n; f++) in = in || (k >= found[f].start && k < found[f].end);
        wanted += digit || kind == PST_DATA_EMAIL;
        covered += (digit || kind == PST_DATA_EMAIL) && in;
      }
      bool hit = covered == wanted;
      n_found += hit;
      if (!hit && n_shown++ < 12)
        print_message("missed %s: %s\n", pst_data_pii_name((pst_data_pii)kind), pst_buf_text(&text));
      pst_buf_done(&text);
    }
    print_message("%-6s %zu of %d\n", pst_data_pii_name((pst_data_pii)kind), n_found, EACH);
    assert_true(n_found * 100 >= EACH * 99u);
  }
  pst_free(found);
  free_corpus(&clean);
}

static void clean_text_is_left_alone(void **state) {
  (void)state;
  bool shared = false;
  corpus clean = clean_texts(&shared);
  pst_data_finding *found = NULL;
  size_t capacity = 0, n_tokens = 0, n_hits = 0;
  for (size_t i = 0; i < clean.n; i++) {
    size_t n = 0;
    pst_str text = pst_str_from(clean.texts[i]);
    assert_int_equal(pst_data_pii_find(text, &found, &n, &capacity), 0);
    for (size_t k = 0; k < text.n; k++) n_tokens += text.data[k] == ' ';
    n_tokens++;
    for (size_t f = 0; f < n; f++)
      if (n_hits++ < 12)
        print_message("false %s: %.*s in: %s\n", pst_data_pii_name(found[f].kind), (int)(found[f].end - found[f].start),
                      text.data + found[f].start, text.data);
  }
  print_message("%zu hits in %zu tokens of clean text%s\n", n_hits, n_tokens,
                shared ? "" : " (the shared data is not here)");
  assert_true(n_hits * 1000 <= n_tokens);
  pst_free(found);
  free_corpus(&clean);
}

static void placeholders_are_stable(void **state) {
  (void)state;
  pst_data_placeholders *p = pst_data_placeholders_create();
  pst_buf out = PST_BUF_INIT;
  int64_t counts[PST_DATA_PII_COUNT] = {0};
  static const char *const texts[][2] = {
      {"Mail a.b@example.com or call +49 30 1234567.", "Mail [EMAIL_1] or call [PHONE_1]."},
      {"A.B@EXAMPLE.COM wrote to c@d.org", "[EMAIL_1] wrote to [EMAIL_2]"},
      {"+49-30-1234567 again; card 4111 1111 1111 1111", "[PHONE_1] again; card [CARD_1]"},
      {"4111-1111-1111-1111, 4111111111111111; DE89370400440532013000", "[CARD_1], [CARD_1]; [IBAN_1]"},
      {"nothing here", "nothing here"},
      {"", ""}};
  for (size_t i = 0; i < PST_ARRAY_LEN(texts); i++) {
    pst_buf_clear(&out);
    assert_int_equal(pst_data_placeholders_apply(p, pst_str_from(texts[i][0]), &out, counts), 0);
    assert_string_equal(pst_buf_text(&out), texts[i][1]);
  }
  assert_int_equal(counts[PST_DATA_EMAIL], 3);
  assert_int_equal(counts[PST_DATA_CARD], 3);
  pst_buf_done(&out);
  pst_data_placeholders_free(p);
}

static void look_alikes_are_left(void **state) {
  (void)state;
  static const char *const texts[] = {"the card 4111 1111 1111 1112 has a wrong check digit, so it is none",
                                      "DE88370400440532013000 is no account",
                                      "in 1999-2000 and 2001-2002",
                                      "it is 2024-01-15, or 15.01.2024",
                                      "population 12 345 678",
                                      "3.14159265",
                                      "version 10.2.3",
                                      "the score was 21-14, 7-3, 28-10",
                                      "std::vector<int> and a::b",
                                      "1,234,567.89 dollars",
                                      "my password is wrong",
                                      "the token is missing",
                                      "see https://example.com/a/b?c=d",
                                      "@someone said hi",
                                      "a@b",
                                      "12:30:45",
                                      "999.999.999.999",
                                      "supercalifragilisticexpialidocious",
                                      "src/data/import/files_and_folders.c"};
  pst_data_finding *found = NULL;
  size_t capacity = 0;
  for (size_t i = 0; i < PST_ARRAY_LEN(texts); i++) {
    size_t n = 0;
    assert_int_equal(pst_data_pii_find(pst_str_from(texts[i]), &found, &n, &capacity), 0);
    for (size_t f = 0; f < n; f++)
      if (found[f].kind != PST_DATA_PHONE || i > 0) fail_msg("%s in: %s", pst_data_pii_name(found[f].kind), texts[i]);
  }
  pst_free(found);
}

/* Any bytes, and texts made to be slow: all of beginnings. */
static void hostile_text_costs_no_more(void **state) {
  (void)state;
  static const char *const units[] = {
      "a-",    "1-", "a+", "eyJ", "-----BEGIN PRIVATE KEY-----", "@a.bc", "password: ", "1.1.", "::1",
      "://a:", "(+", "9 ", "A1"};
  pst_data_finding *found = NULL;
  size_t capacity = 0;
  int64_t start = pst_clock_us();
  for (size_t u = 0; u < PST_ARRAY_LEN(units); u++) {
    pst_buf text = PST_BUF_INIT;
    size_t n = 0;
    while (text.n < 200000) pst_buf_puts(&text, units[u]);
    assert_int_equal(pst_data_pii_find(pst_buf_str(&text), &found, &n, &capacity), 0);
    for (size_t i = 0; i < n; i++) {
      assert_true(found[i].start < found[i].end && found[i].end <= text.n);
      assert_true(i == 0 || found[i].start >= found[i - 1].end);
    }
    pst_buf_done(&text);
  }
  assert_true(pst_clock_us() - start < 60000000);
  dice = (pst_random){3, 3, 0};
  for (int i = 0; i < 3000; i++) {
    char *bytes = pst_malloc(65); /* of its size exactly, so that a sanitizer sees a step too far */
    size_t n = 0, length = below(64);
    for (size_t k = 0; k < length; k++)
      bytes[k] = i % 2 ? (char)below(256) : "0123456789abcEF@.:-+/() eyJ=#"[below(29)];
    char *exact = pst_malloc(length);
    memcpy(exact, bytes, length);
    assert_int_equal(pst_data_pii_find((pst_str){exact, length}, &found, &n, &capacity), 0);
    pst_free(exact);
    pst_free(bytes);
  }
  pst_free(found);
}

int main(void) {
  const struct CMUnitTest tests[] = {cmocka_unit_test(planted_items_are_found),
                                     cmocka_unit_test(clean_text_is_left_alone),
                                     cmocka_unit_test(placeholders_are_stable), cmocka_unit_test(look_alikes_are_left),
                                     cmocka_unit_test(hostile_text_costs_no_more)};
  return cmocka_run_group_tests(tests, NULL, NULL);
}
