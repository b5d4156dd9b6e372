/* Pre-tokenizers: cutting text into the words that byte-level BPE merges within.
 *
 * Owns the splitting rules and the table that maps tokenizer.ggml.pre to them. The models publish these rules as regular expressions;
 * here they are scanners over code points, since a backtracking engine would be most of the time of encoding and can be made to
 * explode by hostile text. Every scanner is linear in the piece it returns and what it must look at behind it. A rule in several
 * steps (first digits, then words) is a list of stages, each splitting the pieces of the one before, which therefore sees a piece's
 * end as the end of the text: that is what the published sequences do.
 *
 * To add one: find its regular expression in the model's tokenizer.json, see whether one of the rules below is it, else write a
 * stage, and add a row to the table at the end. */
#include <string.h>

#include "engine/tokenizer_impl.h"

/* ---- character classes ------------------------------------------------------------------------------------------ */

enum {
  LETTER = 1,       /* L */
  NUMBER = 2,       /* N */
  SPACE = 4,        /* White_Space */
  NEWLINE = 8,      /* \r and \n */
  PUNCTUATION = 16, /* P */
  SYMBOL = 32,      /* S */
  MARK = 64,        /* M */
  UPPER = 128,      /* Lu, Lt, Lm, Lo, M: what may begin a capitalised word */
  LOWER = 256,      /* Ll, Lm, Lo, M: what may end it */
};

/* utf8proc's numbering of the general categories: CN, LU, LL, LT, LM, LO, MN, MC, ME, ND, NL, NO, PC ... PO, SM, SC, SK, SO, ZS ... */
enum {
  CATEGORY_LU = 1,
  CATEGORY_LL,
  CATEGORY_LT,
  CATEGORY_LM,
  CATEGORY_LO,
  CATEGORY_MN,
  CATEGORY_ME = 8,
  CATEGORY_ND,
  CATEGORY_NO = 11,
  CATEGORY_PC,
  CATEGORY_PO = 18,
  CATEGORY_SM,
  CATEGORY_SO = 22
};

static unsigned classify(uint32_t cp) {
  int c = pst_unicode_category(cp);
  unsigned k = 0;
  if (c >= CATEGORY_LU && c <= CATEGORY_LO) k |= LETTER;
  if (c >= CATEGORY_MN && c <= CATEGORY_ME) k |= MARK | UPPER | LOWER;
  if (c >= CATEGORY_ND && c <= CATEGORY_NO) k |= NUMBER;
  if (c >= CATEGORY_PC && c <= CATEGORY_PO) k |= PUNCTUATION;
  if (c >= CATEGORY_SM && c <= CATEGORY_SO) k |= SYMBOL;
  if (c == CATEGORY_LU || c == CATEGORY_LT || c == CATEGORY_LM || c == CATEGORY_LO) k |= UPPER;
  if (c == CATEGORY_LL || c == CATEGORY_LM || c == CATEGORY_LO) k |= LOWER;
  if (pst_unicode_is_space(cp)) k |= SPACE;
  if (cp == '\r' || cp == '\n') k |= NEWLINE;
  return k;
}

/* Classes of the first 16,384 code points, which hold all alphabets of ordinary text. */
enum { TABLE_SIZE = 0x4000 };
static uint16_t class_table[TABLE_SIZE];
static pthread_once_t class_table_once = PTHREAD_ONCE_INIT;

static void fill_class_table(void) {
  for (uint32_t cp = 0; cp < TABLE_SIZE; cp++) class_table[cp] = (uint16_t)classify(cp);
}

/* One decoded character. At the end of the text: class 0, code point 0, n 0. */
typedef struct character {
  uint32_t cp;
  unsigned k;
  size_t n; /* bytes */
} character;

static inline character look(const char *s, size_t end, size_t at) {
  if (at >= end) return (character){0, 0, 0};
  unsigned char b = (unsigned char)s[at];
  if (b < 0x80) return (character){b, class_table[b], 1};
  size_t i = at;
  uint32_t cp = pst_utf8_next(s, end, &i);
  return (character){cp, cp < TABLE_SIZE ? class_table[cp] : classify(cp), i - at};
}

/* End of the run of characters that have one of the classes `with` and none of `without`. */
static size_t run(const char *s, size_t end, size_t at, unsigned with, unsigned without) {
  for (;;) {
    character c = look(s, end, at);
    if (!c.n || !(c.k & with) || (c.k & without)) return at;
    at += c.n;
  }
}

/* End of the run of characters that have none of the classes. */
static size_t run_without(const char *s, size_t end, size_t at, unsigned without) {
  for (;;) {
    character c = look(s, end, at);
    if (!c.n || (c.k & without)) return at;
    at += c.n;
  }
}

/* ---- the family of rules that began with GPT-2 ------------------------------------------------------------------- */

typedef enum contraction { CONTRACTION_NONE, CONTRACTION_LOWER, CONTRACTION_ANY_CASE } contraction;

typedef struct pretokenizer_rule {
  contraction contractions; /* 's 't 're 've 'm 'll 'd as words of their own */
  bool
      space_joins; /* GPT-2: a space joins the letters or numbers behind it; else any one character that is no letter, number or
                                  newline joins letters, and nothing joins numbers */
  unsigned letters;        /* what words are made of */
  bool cased;              /* a word turns from upper to lower case at most once, and takes a contraction along */
  int max_digits;          /* numbers are cut into groups of this many; 0: not cut */
  unsigned others_without; /* a run of other characters has none of these */
  const char *others_tail; /* ASCII characters that a run of others takes along; NULL: none */
  bool newlines_end_space; /* white space up to its last newline is a word */
} rule;

/* Length of a contraction that begins at `at` (where a ' stands), or 0. U+017F is an s to those who ignore case. */
static size_t contraction_at(const char *s, size_t end, size_t at, contraction how) {
  static const char *const two[] = {"re", "ve", "ll"};
  if (how == CONTRACTION_NONE || at >= end || s[at] != '\'') return 0;
  unsigned char a = at + 1 < end ? (unsigned char)s[at + 1] : 0, b = at + 2 < end ? (unsigned char)s[at + 2] : 0;
  if (how == CONTRACTION_ANY_CASE) {
    if (a == 0xC5 && b == 0xBF) return 3;
    if (a >= 'A' && a <= 'Z') a = (unsigned char)(a + 32);
    if (b >= 'A' && b <= 'Z') b = (unsigned char)(b + 32);
  }
  if (a == 's' || a == 't' || a == 'm' || a == 'd') return 2;
  for (size_t i = 0; i < PST_ARRAY_LEN(two); i++)
    if (a == (unsigned char)two[i][0] && b == (unsigned char)two[i][1]) return 3;
  return 0;
}

/* [upper]*[lower]+; `at` if there is none. Modifier letters and the like are both upper and lower: the first part gives back just so
 * many characters that one lower is left. */
static size_t falling_word(const char *s, size_t end, size_t at) {
  size_t upper_end = at, last_both = SIZE_MAX;
  for (;;) {
    character c = look(s, end, upper_end);
    if (!c.n || !(c.k & UPPER)) break;
    if (c.k & LOWER) last_both = upper_end;
    upper_end += c.n;
  }
  if (look(s, end, upper_end).k & LOWER) return run(s, end, upper_end, LOWER, 0);
  return last_both != SIZE_MAX ? run(s, end, last_both, LOWER, 0) : at;
}

/* A word that turns from upper to lower case at most once, led by any one character that is no letter, number or newline, and with a
 * contraction where the rule has them. The order of the attempts is that of the published alternatives. */
static size_t cased_word(const char *s, size_t end, size_t at, const rule *r) {
  character c = look(s, end, at);
  bool leads = c.n && !(c.k & (LETTER | NUMBER | NEWLINE));
  size_t second = at + c.n, e = at;
  if (leads && (e = falling_word(s, end, second)) == second) e = at;
  if (e == at) e = falling_word(s, end, at);
  if (e == at && leads && (e = run(s, end, second, UPPER, 0)) == second) e = at;
  if (e == at) e = run(s, end, at, UPPER, 0); /* no lower follows: the first form would have taken it */
  return e == at ? at : e + contraction_at(s, end, e, r->contractions);
}

static size_t digits_at(const char *s, size_t end, size_t at, int max_digits) {
  if (max_digits == 0) return run(s, end, at, NUMBER, 0);
  for (int i = 0; i < max_digits; i++) {
    character c = look(s, end, at);
    if (!(c.k & NUMBER)) break;
    at += c.n;
  }
  return at;
}

/* White space that nothing else took: up to its last newline where the rule says so; else all of it at the end of the text, all but the
 * last character before a word (which may want a space), or the one character there is. */
static size_t white_space(const char *s, size_t end, size_t at, const rule *r) {
  size_t last = at, after_newline = 0, e = at;
  for (;;) {
    character c = look(s, end, e);
    if (!c.n || !(c.k & SPACE)) break;
    last = e;
    e += c.n;
    if (c.k & NEWLINE) after_newline = e;
  }
  if (r->newlines_end_space && after_newline) return after_newline;
  return e == end || last == at ? e : last;
}

static size_t others(const char *s, size_t end, size_t at, const rule *r) {
  size_t e = run_without(s, end, at, r->others_without);
  if (e > at && r->others_tail)
    while (e < end && s[e] && strchr(r->others_tail, s[e])) e++;
  return e;
}

static size_t next_word(const char *s, size_t end, size_t at, const rule *r) {
  character c = look(s, end, at);
  size_t e = at;
  if (!r->cased && (e = contraction_at(s, end, at, r->contractions))) return at + e;
  if (r->space_joins) {
    size_t start = c.cp == ' ' ? at + 1 : at;
    if ((e = run(s, end, start, r->letters, 0)) > start) return e;
    if ((e = digits_at(s, end, start, r->max_digits)) > start) return e;
    if ((e = others(s, end, start, r)) > start) return e;
    return white_space(s, end, at, r);
  }
  if (r->cased && (e = cased_word(s, end, at, r)) > at) return e;
  if (!r->cased && !(c.k & (LETTER | NUMBER | NEWLINE)) && (e = run(s, end, at + c.n, r->letters, 0)) > at + c.n)
    return e;
  if (!r->cased && (e = run(s, end, at, r->letters, 0)) > at) return e;
  if ((e = digits_at(s, end, at, r->max_digits)) > at) return e;
  size_t start = c.cp == ' ' ? at + 1 : at;
  if ((e = others(s, end, start, r)) > start) return e;
  if (c.k & SPACE) return white_space(s, end, at, r);
  return at + c.n; /* not reached by the rules below: every character is a letter, number, other or space */
}

static const rule gpt2_words = {.contractions = CONTRACTION_LOWER,
                                .space_joins = true,
                                .letters = LETTER,
                                .others_without = SPACE | LETTER | NUMBER};
static const rule llama3_words = {.contractions = CONTRACTION_ANY_CASE,
                                  .letters = LETTER,
                                  .max_digits = 3,
                                  .others_without = SPACE | LETTER | NUMBER,
                                  .others_tail = "\r\n",
                                  .newlines_end_space = true};
static const rule qwen2_words = {.contractions = CONTRACTION_ANY_CASE,
                                 .letters = LETTER,
                                 .max_digits = 1,
                                 .others_without = SPACE | LETTER | NUMBER,
                                 .others_tail = "\r\n",
                                 .newlines_end_space = true};
static const rule qwen35_words = {.contractions = CONTRACTION_ANY_CASE,
                                  .letters = LETTER | MARK,
                                  .max_digits = 1,
                                  .others_without = SPACE | LETTER | MARK | NUMBER,
                                  .others_tail = "\r\n",
                                  .newlines_end_space = true};
static const rule gpt4o_words = {.contractions = CONTRACTION_ANY_CASE,
                                 .letters = LETTER | MARK,
                                 .cased = true,
                                 .max_digits = 3,
                                 .others_without = SPACE | LETTER | NUMBER,
                                 .others_tail = "\r\n/",
                                 .newlines_end_space = true};
static const rule tekken_words = {.letters = LETTER | MARK,
                                  .cased = true,
                                  .max_digits = 1,
                                  .others_without = SPACE | LETTER | NUMBER,
                                  .others_tail = "\r\n/",
                                  .newlines_end_space = true};

/* ---- stages of other rules --------------------------------------------------------------------------------------- */

/* Pieces of one class (rule->letters), cut into groups of rule->max_digits, and what lies between them. */
static size_t next_class_run(const char *s, size_t end, size_t at, const rule *r) {
  if (!(look(s, end, at).k & r->letters)) return run_without(s, end, at, r->letters);
  if (r->max_digits == 0) return run(s, end, at, r->letters, 0);
  size_t e = at;
  for (int i = 0; i < r->max_digits; i++) {
    character c = look(s, end, e);
    if (!(c.k & r->letters)) break;
    e += c.n;
  }
  return e;
}

static const rule single_digits = {.letters = NUMBER, .max_digits = 1};
static const rule triple_digits = {.letters = NUMBER, .max_digits = 3};
static const rule digit_runs = {.letters = NUMBER};
static const rule single_newlines = {.letters = NEWLINE, .max_digits = 1};

/* Runs of punctuation and of the ASCII symbols named in the rule's tail, and what lies between. */
static bool in_punctuation(character c, const rule *r) {
  return (c.k & PUNCTUATION) || (c.cp && c.cp < 0x80 && strchr(r->others_tail, (int)c.cp));
}

static size_t next_punctuation(const char *s, size_t end, size_t at, const rule *r) {
  character c = look(s, end, at);
  bool inside = in_punctuation(c, r);
  do {
    at += c.n;
    c = look(s, end, at);
  } while (c.n && in_punctuation(c, r) == inside);
  return at;
}

static const rule falcon_punctuation = {.others_tail = "$+<=>^~|`"};
static const rule default_punctuation = {.others_tail = "$+<=>^~|"};

/* Groups of exactly three ASCII digits, from the left of each run, and what lies between. */
static bool three_digits(const char *s, size_t end, size_t at) {
  if (end - at < 3) return false;
  for (size_t i = at; i < at + 3; i++)
    if (s[i] < '0' || s[i] > '9') return false;
  return true;
}

static size_t next_three_digits(const char *s, size_t end, size_t at, const rule *r) {
  (void)r;
  if (three_digits(s, end, at)) return at + 3;
  while (at < end && !three_digits(s, end, at)) at++; /* stops only before an ASCII byte: never inside a character */
  return at;
}

/* ---- DeepSeek ---------------------------------------------------------------------------------------------------- */

typedef struct range {
  uint32_t low, high;
} range;

static bool in_ranges(uint32_t cp, const range *ranges, size_t n) {
  size_t low = 0, high = n;
  while (low < high) {
    size_t mid = low + (high - low) / 2;
    if (cp > ranges[mid].high)
      low = mid + 1;
    else if (cp < ranges[mid].low)
      high = mid;
    else
      return true;
  }
  return false;
}

/* The cased letters of Unicode 10 or so, as the model's own file lists them. */
static const range deepseek_letters[] = {
    {0x41, 0x5A},       {0x61, 0x7A},       {0xB5, 0xB5},       {0xC0, 0xD6},       {0xD8, 0xF6},
    {0xF8, 0x1BA},      {0x1BC, 0x1BF},     {0x1C4, 0x293},     {0x295, 0x2AF},     {0x370, 0x373},
    {0x376, 0x376},     {0x377, 0x377},     {0x37B, 0x37D},     {0x37F, 0x37F},     {0x386, 0x386},
    {0x388, 0x38A},     {0x38C, 0x38C},     {0x38E, 0x3A1},     {0x3A3, 0x3F5},     {0x3F7, 0x481},
    {0x48A, 0x52F},     {0x531, 0x556},     {0x10A0, 0x10C5},   {0x13A0, 0x13F5},   {0x13F8, 0x13FD},
    {0x1C90, 0x1CBA},   {0x1CBD, 0x1CBF},   {0x1D00, 0x1D2B},   {0x1D6B, 0x1D77},   {0x1D79, 0x1D9A},
    {0x1E00, 0x1F15},   {0x1F18, 0x1F1D},   {0x1F20, 0x1F45},   {0x1F48, 0x1F4D},   {0x1F50, 0x1F57},
    {0x1F59, 0x1F59},   {0x1F5B, 0x1F5B},   {0x1F5D, 0x1F5D},   {0x1F5F, 0x1F7D},   {0x1F80, 0x1FB4},
    {0x1FB6, 0x1FBC},   {0x1FBE, 0x1FBE},   {0x1FC2, 0x1FC4},   {0x1FC6, 0x1FCC},   {0x1FD0, 0x1FD3},
    {0x1FD6, 0x1FDB},   {0x1FE0, 0x1FEC},   {0x1FF2, 0x1FF4},   {0x1FF6, 0x1FFC},   {0x2102, 0x2102},
    {0x2107, 0x2107},   {0x210A, 0x2113},   {0x2115, 0x2115},   {0x2119, 0x211D},   {0x2124, 0x2124},
    {0x2126, 0x2126},   {0x2128, 0x2128},   {0x212A, 0x212D},   {0x212F, 0x2134},   {0x2139, 0x2139},
    {0x213C, 0x213F},   {0x2145, 0x2149},   {0x214E, 0x214E},   {0x2183, 0x2183},   {0x2184, 0x2184},
    {0x2C00, 0x2C7B},   {0x2C7E, 0x2CE4},   {0x2CEB, 0x2CEE},   {0x2CF2, 0x2CF2},   {0x2CF3, 0x2CF3},
    {0xA640, 0xA66D},   {0xA680, 0xA69B},   {0xA722, 0xA76F},   {0xA771, 0xA787},   {0xA78B, 0xA78E},
    {0xAB70, 0xABBF},   {0xFB00, 0xFB06},   {0xFB13, 0xFB17},   {0xFF21, 0xFF3A},   {0xFF41, 0xFF5A},
    {0x10400, 0x1044F}, {0x104B0, 0x104D3}, {0x104D8, 0x104FB}, {0x10C80, 0x10CB2}, {0x10CC0, 0x10CF2},
    {0x118A0, 0x118DF}, {0x1E900, 0x1E943},
};
static const range deepseek_punctuation[] = {
    {0x21, 0x2F}, {0x3A, 0x7E}, {0x2018, 0x201F}, {0x3000, 0x3002}, {0xFF01, 0xFF0F}, {0xFF1A, 0xFF5E},
};
static const range deepseek_asian[] = {{0x800, 0x9FA5}, {0xAC00, 0xD7FF}};
static const range deepseek3_asian[] = {{0x3040, 0x30FF}, {0x4E00, 0x9FA5}};

/* A run of characters of the set, with one white-space character before it where `space_before`; `at` if none begins here. */
static size_t set_run(const char *s, size_t end, size_t at, const range *ranges, size_t n, bool space_before) {
  size_t e = at;
  character c = look(s, end, at);
  if (space_before && (c.k & SPACE)) {
    character d = look(s, end, at + c.n);
    if (d.n && in_ranges(d.cp, ranges, n)) e = at + c.n;
  }
  for (c = look(s, end, e); c.n && in_ranges(c.cp, ranges, n); c = look(s, end, e)) e += c.n;
  return e;
}

/* Runs of the set, and what lies between. */
static size_t next_set_run(const char *s, size_t end, size_t at, const range *ranges, size_t n, bool space_before) {
  size_t e = set_run(s, end, at, ranges, n, space_before);
  if (e > at) return e;
  do {
    at += look(s, end, at).n;
  } while (at < end && set_run(s, end, at, ranges, n, space_before) == at);
  return at;
}

static size_t next_deepseek_letters(const char *s, size_t end, size_t at, const rule *r) {
  (void)r;
  return next_set_run(s, end, at, deepseek_letters, PST_ARRAY_LEN(deepseek_letters), true);
}

static size_t next_deepseek_punctuation(const char *s, size_t end, size_t at, const rule *r) {
  (void)r;
  return next_set_run(s, end, at, deepseek_punctuation, PST_ARRAY_LEN(deepseek_punctuation), true);
}

static size_t next_deepseek_asian(const char *s, size_t end, size_t at, const rule *r) {
  (void)r;
  return next_set_run(s, end, at, deepseek_asian, PST_ARRAY_LEN(deepseek_asian), false);
}

static size_t next_deepseek3_asian(const char *s, size_t end, size_t at, const rule *r) {
  (void)r;
  return next_set_run(s, end, at, deepseek3_asian, PST_ARRAY_LEN(deepseek3_asian), false);
}

/* The white space at the end of the text, and what lies before it. */
static size_t next_trailing_space(const char *s, size_t end, size_t at, const rule *r) {
  (void)r;
  size_t tail = end;
  while (tail > at) {
    size_t p = tail - 1;
    while (p > at && ((unsigned char)s[p] & 0xC0) == 0x80) p--;
    if (!(look(s, end, p).k & SPACE)) break;
    tail = p;
  }
  return tail > at ? tail : end;
}

/* The main rule of DeepSeek V3: words led by punctuation, words led by anything else that is no letter, punctuation or symbol, runs of
 * punctuation and symbols, white space; `at` where none of them begins. */
static size_t deepseek3_word(const char *s, size_t end, size_t at) {
  static const rule spaces = {.newlines_end_space = true};
  character c = look(s, end, at), d = look(s, end, at + c.n);
  size_t e;
  if (c.cp < 0x80 && (c.k & (PUNCTUATION | SYMBOL)) && d.cp < 0x80 && (d.k & LETTER)) {
    for (e = at + 1; e < end && (unsigned char)s[e] < 0x80 && (class_table[(unsigned char)s[e]] & LETTER);) e++;
    return e;
  }
  if (!(c.k & (LETTER | PUNCTUATION | SYMBOL | NEWLINE)) && (d.k & (LETTER | MARK)))
    return run(s, end, at + c.n, LETTER | MARK, 0);
  if (c.k & (LETTER | MARK)) return run(s, end, at, LETTER | MARK, 0);
  size_t start = c.cp == ' ' ? at + 1 : at;
  if ((e = run(s, end, start, PUNCTUATION | SYMBOL, 0)) > start) {
    while (e < end && (s[e] == '\r' || s[e] == '\n')) e++;
    return e;
  }
  return (c.k & SPACE) ? white_space(s, end, at, &spaces) : at;
}

static size_t next_deepseek3_word(const char *s, size_t end, size_t at, const rule *r) {
  (void)r;
  size_t e = deepseek3_word(s, end, at);
  if (e > at) return e;
  /* What no form takes (numbers, control characters) stays together until something does. */
  do {
    at += look(s, end, at).n;
  } while (at < end && deepseek3_word(s, end, at) == at);
  return at;
}

/* DeepSeek Coder: letters and punctuation by class, each with one white-space character before. */
static size_t next_class_run_led(const char *s, size_t end, size_t at, const rule *r) {
  character c = look(s, end, at);
  if (c.k & r->letters) return run(s, end, at, r->letters, 0);
  if ((c.k & SPACE) && (look(s, end, at + c.n).k & r->letters)) return run(s, end, at + c.n, r->letters, 0);
  do {
    at += c.n;
    c = look(s, end, at);
  } while (c.n && !(c.k & r->letters) && !((c.k & SPACE) && (look(s, end, at + c.n).k & r->letters)));
  return at;
}

static const rule coder_letters = {.letters = LETTER};
static const rule coder_punctuation = {.letters = PUNCTUATION};

/* ---- the table --------------------------------------------------------------------------------------------------- */

#define WORDS(rule) \
  { next_word, &rule }
#define RUNS(rule) \
  { next_class_run, &rule }
#define GPT2_STAGES \
  { WORDS(gpt2_words) }
#define DIGITS_GPT2_STAGES \
  { RUNS(single_digits), WORDS(gpt2_words) }
#define DEEPSEEK3_STAGES                                                             \
  {                                                                                  \
    RUNS(triple_digits), {next_deepseek3_asian, NULL}, { next_deepseek3_word, NULL } \
  }

static const pretokenizer pretokenizers[] = {
    {.name = "default",
     .stages =
         {{next_punctuation, &default_punctuation}, WORDS(gpt2_words), RUNS(digit_runs), {next_three_digits, NULL}}},
    {.name = "gpt-2", .stages = GPT2_STAGES},
    {.name = "phi-2", .stages = GPT2_STAGES},
    {.name = "mpt", .stages = GPT2_STAGES},
    {.name = "olmo", .stages = GPT2_STAGES},
    {.name = "roberta-bpe", .stages = GPT2_STAGES},
    {.name = "modern-bert", .stages = GPT2_STAGES},
    {.name = "exaone4", .stages = GPT2_STAGES},
    {.name = "granite-docling", .stages = GPT2_STAGES},
    {.name = "trillion", .stages = GPT2_STAGES},
    {.name = "smollm", .stages = DIGITS_GPT2_STAGES},
    {.name = "starcoder", .stages = DIGITS_GPT2_STAGES},
    {.name = "refact", .stages = DIGITS_GPT2_STAGES},
    {.name = "command-r", .stages = DIGITS_GPT2_STAGES},
    {.name = "codeshell", .stages = DIGITS_GPT2_STAGES},
    {.name = "exaone", .stages = DIGITS_GPT2_STAGES},
    {.name = "minerva-7b", .stages = DIGITS_GPT2_STAGES},
    {.name = "llama-bpe", .stages = {WORDS(llama3_words)}, .ignore_merges = true, .add_bos = true},
    {.name = "llama3", .stages = {WORDS(llama3_words)}, .ignore_merges = true, .add_bos = true},
    {.name = "llama-v3", .stages = {WORDS(llama3_words)}, .ignore_merges = true, .add_bos = true},
    {.name = "falcon3", .stages = {WORDS(llama3_words)}, .ignore_merges = true, .add_bos = true},
    {.name = "lfm2", .stages = {WORDS(llama3_words)}, .ignore_merges = true, .add_bos = true},
    {.name = "dbrx", .stages = {WORDS(llama3_words)}},
    {.name = "smaug-bpe", .stages = {WORDS(llama3_words)}},
    {.name = "glm4", .stages = {WORDS(llama3_words)}, .ignore_merges = true},
    {.name = "chatglm-bpe", .stages = {WORDS(llama3_words)}},
    {.name = "qwen2", .stages = {WORDS(qwen2_words)}, .nfc = true},
    {.name = "deepseek-r1-qwen", .stages = {WORDS(qwen2_words)}, .nfc = true},
    {.name = "qwen35", .stages = {WORDS(qwen35_words)}, .nfc = true},
    {.name = "gpt-4o", .stages = {WORDS(gpt4o_words)}},
    {.name = "llama4", .stages = {WORDS(gpt4o_words)}},
    {.name = "tekken", .stages = {WORDS(tekken_words)}, .ignore_merges = true, .add_bos = true},
    {.name = "falcon",
     .stages = {{next_punctuation, &falcon_punctuation}, WORDS(gpt2_words), {next_three_digits, NULL}}},
    {.name = "deepseek-llm",
     .stages = {RUNS(single_newlines),
                {next_deepseek_letters, NULL},
                {next_deepseek_punctuation, NULL},
                {next_trailing_space, NULL},
                {next_deepseek_asian, NULL},
                RUNS(digit_runs)}},
    {.name = "deepseek-coder",
     .stages = {RUNS(single_newlines),
                {next_class_run_led, &coder_letters},
                {next_class_run_led, &coder_punctuation},
                {next_deepseek_asian, NULL},
                RUNS(single_digits)}},
    {.name = "deepseek-v3", .stages = DEEPSEEK3_STAGES},
    {.name = "hunyuan-dense", .stages = DEEPSEEK3_STAGES},
};

const pretokenizer *pst_engine_pretokenizer_find(pst_str name) {
  for (size_t i = 0; i < PST_ARRAY_LEN(pretokenizers); i++)
    if (pst_str_is(name, pretokenizers[i].name)) {
      pthread_once(&class_table_once, fill_class_table);
      return &pretokenizers[i];
    }
  return NULL;
}

static int split(const pretokenizer *p, int stage, const char *s, size_t end, int (*word)(void *, pst_str),
                 void *user) {
  if (stage == PRETOKENIZER_MAX_STAGES || !p->stages[stage].next) return word(user, (pst_str){s, end});
  for (size_t at = 0; at < end;) {
    size_t e = p->stages[stage].next(s, end, at, p->stages[stage].rule);
    int r = split(p, stage + 1, s + at, e - at, word, user);
    if (r < 0) return r;
    at = e;
  }
  return 0;
}

int pst_engine_pretokenizer_split(const pretokenizer *p, pst_str text, int (*word)(void *user, pst_str word),
                                  void *user) {
  return split(p, 0, text.data, text.n, word, user);
}
