/* Private data in texts: the order of the search, addresses, and placeholders.
 *
 * Kinds with check digits or fixed beginnings come first; what they take is closed to those that go by looks. Each kind is one pass over the text, so the whole is
 * linear. The searches are written out, not regular expressions: what may stand beside a number decides more than the number. */
#include "data/pii.h"

#include <arpa/inet.h>
#include <stdlib.h>
#include <string.h>

static const char *const KINDS[PST_DATA_PII_COUNT] = {"CARD", "IBAN", "PHONE", "EMAIL", "IP", "ID", "KEY"};

const char *pst_data_pii_name(pst_data_pii kind) {
  return (unsigned)kind < PST_DATA_PII_COUNT ? KINDS[kind] : "UNKNOWN";
}

/* ---- what the kinds share ---- */

bool pst_data_take(pst_data_scan *s, size_t start, size_t end, pst_data_pii kind) {
  if (s->code || end > s->text.n || start >= end || memchr(s->taken + start, 1, end - start)) return false;
  s->code = pst_array_reserve((void **)&s->findings, &s->capacity, s->n + 1, sizeof *s->findings);
  if (s->code) return false;
  s->findings[s->n++] = (pst_data_finding){start, end, kind};
  memset(s->taken + start, 1, end - start);
  return true;
}

bool pst_data_words_before(const pst_data_scan *s, size_t start, size_t n, const char *const *words) {
  char before[64];
  size_t from = start > n ? start - n : 0, n_before = 0;
  while (from && from < start && pst_data_is_alpha(s->text.data[from - 1])) from++; /* not from within a word */
  for (size_t i = from; i < start && n_before < sizeof before - 1; i++) {
    char c = s->text.data[i];
    if (c == '\n' || ((c == '.' || c == '?' || c == '!') && pst_data_at(s, i + 1) == ' ' && i + 4 < start &&
                      pst_data_at(s, i - 1) != 'o')) {
      n_before = 0; /* another sentence; "no." is none */
      continue;
    }
    before[n_before++] = (char)(c >= 'A' && c <= 'Z' ? c | 32 : c);
  }
  before[n_before] = '\0';
  for (size_t w = 0; words[w]; w++) {
    const char *found = before;
    while ((found = strstr(found, words[w]))) {
      bool ends = !strchr(words[w], ' ') || !pst_data_is_alpha(found[strlen(words[w])]); /* "id no" is not "id not" */
      if (ends && (found == before || !pst_data_is_alpha(found[-1]))) return true;
      found++;
    }
  }
  return false;
}

/* ---- e-mail ---- */

static bool is_local(char c) {
  return pst_data_is_alnum(c) || (c && strchr("._%+-'!#$&*/=?^`{|}~", c)) || (unsigned char)c >= 0x80;
}
static bool is_domain(char c) { return pst_data_is_alnum(c) || c == '-' || c == '.' || (unsigned char)c >= 0x80; }

static void email_at(pst_data_scan *s, size_t at) {
  size_t start = at, end = at + 1, dot = 0;
  while (start > 0 && at - start < 64 && is_local(s->text.data[start - 1])) start--;
  while (start < at && !pst_data_is_alnum(s->text.data[start]) && s->text.data[start] != '_' &&
         (unsigned char)s->text.data[start] < 0x80)
    start++;
  while (end < s->text.n && end - at < 255 && is_domain(s->text.data[end])) end++;
  while (end > at + 1 && (s->text.data[end - 1] == '.' || s->text.data[end - 1] == '-')) end--;
  for (size_t i = at + 1; i < end; i++)
    if (s->text.data[i] == '.') dot = i;
  if (start == at || !dot || dot == at + 1 || end - dot < 3) return;
  for (size_t i = dot + 1; i < end; i++)
    if (pst_data_is_digit(s->text.data[i]) && !(s->text.data[dot + 1] == 'x'))
      return; /* no top-level domain has digits but xn-- */
  (void)pst_data_take(s, start, end, PST_DATA_EMAIL);
}

static void find_emails(pst_data_scan *s) {
  for (size_t i = 1; i + 1 < s->text.n; i++)
    if (s->text.data[i] == '@') email_at(s, i);
}

/* ---- addresses of machines ---- */

static size_t ipv4_end(const pst_data_scan *s, size_t i) {
  for (int octet = 0; octet < 4; octet++) {
    int value = 0, n = 0;
    if (octet && pst_data_at(s, i++) != '.') return 0;
    for (; pst_data_is_digit(pst_data_at(s, i)) && n < 4; i++, n++) value = value * 10 + s->text.data[i] - '0';
    if (n == 0 || n > 3 || value > 255) return 0;
  }
  bool more =
      pst_data_is_alnum(pst_data_at(s, i)) || (pst_data_at(s, i) == '.' && pst_data_is_digit(pst_data_at(s, i + 1)));
  return more ? 0 : i;
}

static bool is_hex_or_colon(char c) {
  return pst_data_is_digit(c) || ((c | 32) >= 'a' && (c | 32) <= 'f') || c == ':' || c == '.';
}

static size_t ipv6_end(const pst_data_scan *s, size_t i) {
  char text[INET6_ADDRSTRLEN + 1];
  struct in6_addr address;
  size_t end = i, colons = 0, digits = 0;
  while (end < s->text.n && end - i < INET6_ADDRSTRLEN && is_hex_or_colon(s->text.data[end])) {
    colons += s->text.data[end] == ':';
    digits += pst_data_is_digit(s->text.data[end++]);
  }
  while (end > i + 1 &&
         (s->text.data[end - 1] == '.' || (s->text.data[end - 1] == ':' && s->text.data[end - 2] != ':')))
    end--;
  if (colons < 2 || !digits || end - i < 3 || pst_data_is_alnum(pst_data_at(s, end))) return 0;
  memcpy(text, s->text.data + i, end - i);
  text[end - i] = '\0';
  return inet_pton(AF_INET6, text, &address) == 1 ? end : 0;
}

/* Six pairs of hexadecimal digits with ':' or '-' between. */
static size_t hardware_end(const pst_data_scan *s, size_t i) {
  char between = pst_data_at(s, i + 2);
  if (between != ':' && between != '-') return 0;
  for (size_t k = 0; k < 17; k++) {
    char c = pst_data_at(s, i + k);
    if (k % 3 == 2 ? c != between : !(pst_data_is_digit(c) || ((c | 32) >= 'a' && (c | 32) <= 'f'))) return 0;
  }
  return pst_data_is_alnum(pst_data_at(s, i + 17)) || pst_data_at(s, i + 17) == between ? 0 : i + 17;
}

static void find_addresses(pst_data_scan *s) {
  for (size_t i = 0; i < s->text.n; i++) {
    char c = s->text.data[i];
    bool outside = i == 0 || (pst_data_begins(s, i) && s->text.data[i - 1] != '.' && s->text.data[i - 1] != ':') ||
                   (i > 1 && s->text.data[i - 1] == ':' && s->text.data[i - 2] != ':');
    if (!outside || !is_hex_or_colon(c) || c == '.') continue;
    size_t end = pst_data_is_digit(c) ? ipv4_end(s, i) : 0;
    if (!end) end = hardware_end(s, i);
    if (!end) end = ipv6_end(s, i);
    if (end && pst_data_take(s, i, end, PST_DATA_IP)) i = end - 1;
  }
}

/* ---- the search ---- */

static int by_start(const void *a, const void *b) {
  const pst_data_finding *x = a, *y = b;
  return (x->start > y->start) - (x->start < y->start);
}

int pst_data_pii_find(pst_str text, pst_data_finding **findings, size_t *n, size_t *capacity) {
  pst_data_scan s = {.text = text, .findings = *findings, .n = *n, .capacity = *capacity};
  size_t before = *n;
  s.taken = pst_calloc(text.n + 1, 1);
  if (!s.taken) return PST_E_NOMEM;
  find_emails(&s);
  pst_data_find_ibans(&s);
  pst_data_find_keys(&s);
  find_addresses(&s);
  pst_data_find_cards(&s);
  pst_data_find_ids(&s);
  pst_data_find_phones(&s);
  pst_free(s.taken);
  *findings = s.findings;
  *capacity = s.capacity;
  if (s.code) return s.code;
  if (s.n > before) qsort(s.findings + before, s.n - before, sizeof *s.findings, by_start);
  *n = s.n;
  return 0;
}

/* ---- placeholders ---- */

typedef struct known {
  uint64_t hash[2]; /* of the value's form: 128 bits, so that no two values meet */
  int64_t number;   /* from 1; 0: free */
} known;

struct pst_data_placeholders {
  known *slots;
  size_t n_slots, n;
  int64_t counts[PST_DATA_PII_COUNT];
  pst_data_finding *findings;
  size_t capacity;
};

pst_data_placeholders *pst_data_placeholders_create(void) { return pst_calloc(1, sizeof(pst_data_placeholders)); }

void pst_data_placeholders_free(pst_data_placeholders *p) {
  if (!p) return;
  pst_free(p->slots);
  pst_free(p->findings);
  pst_free(p);
}

static int grow(pst_data_placeholders *p) {
  size_t n = p->n_slots ? p->n_slots * 2 : 256;
  known *slots = pst_calloc(n, sizeof *slots);
  if (!slots) return PST_E_NOMEM;
  for (size_t i = 0; i < p->n_slots; i++) {
    if (!p->slots[i].number) continue;
    size_t at = p->slots[i].hash[0] & (n - 1);
    while (slots[at].number) at = (at + 1) & (n - 1);
    slots[at] = p->slots[i];
  }
  pst_free(p->slots);
  p->slots = slots;
  p->n_slots = n;
  return 0;
}

/* A number is the same with and without its separators, an address in capitals or not; a key is only itself. */
static void form_of(pst_data_pii kind, pst_str value, pst_buf *form) {
  bool loose = kind != PST_DATA_KEY,
       numbers = kind == PST_DATA_CARD || kind == PST_DATA_IBAN || kind == PST_DATA_PHONE || kind == PST_DATA_ID;
  for (size_t i = 0; i < value.n; i++) {
    char c = value.data[i];
    if (numbers && !pst_data_is_alnum(c)) continue;
    pst_buf_putc(form, (char)(loose && c >= 'A' && c <= 'Z' ? c | 32 : c));
  }
}

static int number_of(pst_data_placeholders *p, pst_data_pii kind, pst_str value, int64_t *ret_number) {
  pst_buf form = PST_BUF_INIT;
  form_of(kind, value, &form);
  int code = pst_buf_status(&form);
  if (!code && p->n * 2 >= p->n_slots) code = grow(p);
  if (code) {
    pst_buf_done(&form);
    return code;
  }
  uint64_t a = pst_hash64(form.data, form.n, (uint64_t)kind + 100),
           b = pst_hash64(form.data, form.n, (uint64_t)kind + 200);
  pst_buf_done(&form);
  size_t at = a & (p->n_slots - 1);
  while (p->slots[at].number && (p->slots[at].hash[0] != a || p->slots[at].hash[1] != b))
    at = (at + 1) & (p->n_slots - 1);
  if (!p->slots[at].number) {
    p->slots[at] = (known){{a, b}, ++p->counts[kind]};
    p->n++;
  }
  *ret_number = p->slots[at].number;
  return 0;
}

int pst_data_placeholders_apply(pst_data_placeholders *p, pst_str text, pst_buf *out, int64_t *counts) {
  size_t n = 0, at = 0;
  int code = pst_data_pii_find(text, &p->findings, &n, &p->capacity);
  for (size_t i = 0; i < n && !code; i++) {
    const pst_data_finding *f = &p->findings[i];
    int64_t number = 0;
    code = number_of(p, f->kind, (pst_str){text.data + f->start, f->end - f->start}, &number);
    pst_buf_append(out, text.data + at, f->start - at);
    pst_buf_printf(out, "[%s_%lld]", KINDS[f->kind], (long long)number);
    at = f->end;
    if (counts) counts[f->kind]++;
  }
  if (text.n > at) pst_buf_append(out, text.data + at, text.n - at);
  return code ? code : pst_buf_status(out);
}
