/* Private to data's search for private data: check digits, and what the searches for single kinds share. */
#ifndef PST_DATA_PII_H
#define PST_DATA_PII_H

#include "data/data.h"

/* A text being searched. A byte that a finding has taken is not looked at by kinds that come later. */
typedef struct pst_data_scan {
  pst_str text;
  uint8_t *taken; /* [text.n] */
  pst_data_finding *findings;
  size_t n, capacity;
  int code;
} pst_data_scan;

static inline bool pst_data_is_digit(char c) { return c >= '0' && c <= '9'; }
static inline bool pst_data_is_alpha(char c) { return (c | 32) >= 'a' && (c | 32) <= 'z'; }
static inline bool pst_data_is_alnum(char c) { return pst_data_is_digit(c) || pst_data_is_alpha(c); }
/* The byte at i; 0 outside the text. */
static inline char pst_data_at(const pst_data_scan *s, size_t i) { return i < s->text.n ? s->text.data[i] : '\0'; }
/* Nothing of a word stands before i (letters of other scripts count as words). */
static inline bool pst_data_begins(const pst_data_scan *s, size_t i) {
  return i == 0 || (!pst_data_is_alnum(s->text.data[i - 1]) && (unsigned char)s->text.data[i - 1] < 0xc0);
}

/* Takes [start, end) unless some of it is taken. True: it did. */
bool pst_data_take(pst_data_scan *s, size_t start, size_t end, pst_data_pii kind);

/* Digits that stand together: from `start`, single separators between them. */
enum { PST_DATA_MOST_DIGITS = 20 };
typedef struct pst_data_number {
  size_t start, end; /* end: behind the last digit */
  char digits[PST_DATA_MOST_DIGITS + 1];
  size_t ends[PST_DATA_MOST_DIGITS]; /* behind each digit */
  int n;
  int groups[PST_DATA_MOST_DIGITS]; /* digits of each */
  int n_groups;
} pst_data_number;
/* Reads at most PST_DATA_MOST_DIGITS digits; what is more makes it no number (false). separators: bytes that may stand between digits. */
bool pst_data_number_read(const pst_data_scan *s, size_t start, const char *separators, pst_data_number *ret_number);
/* Cuts the number behind its first n digits; false: that is within a group. */
bool pst_data_number_cut(pst_data_number *number, int n);

/* Whether one of the words (lower case, NULL at the end) stands, as a word or (of single ones) the beginning of one, in the n bytes before `start` and in the same sentence. */
bool pst_data_words_before(const pst_data_scan *s, size_t start, size_t n, const char *const *words);

/* ---- pii_checks.c: check digits, of ASCII digits ---- */
bool pst_data_luhn(const char *digits, int n);     /* ISO/IEC 7812-1 */
bool pst_data_verhoeff(const char *digits, int n); /* Verhoeff 1969 */
bool pst_data_mod_97(const char *text, size_t n);  /* ISO 7064 MOD 97-10, rotated as in ISO 13616 */
int pst_data_iban_length(const char country[2]);   /* 0: no country of the registry */
bool pst_data_weighted(const char *digits, const int *weights, int n, int modulus); /* the weighted sum is 0 */
bool pst_data_cpf(const char digits[11]);                                           /* Brazil */
bool pst_data_mod_11_10(const char *digits, int n);                                 /* ISO 7064, Germany's tax number */
bool pst_data_codice_fiscale(const char text[16]);                                  /* Italy, upper case */

/* ---- pii_keys.c, pii_numbers.c: each searches the whole text for its kinds ---- */
void pst_data_find_keys(pst_data_scan *s);
void pst_data_find_ibans(pst_data_scan *s);
void pst_data_find_cards(pst_data_scan *s);
void pst_data_find_ids(pst_data_scan *s);
void pst_data_find_phones(pst_data_scan *s);

#endif
