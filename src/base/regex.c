/* Regular expressions: a thin wrap of PCRE2 in UTF mode.
 *
 * Owns the bounds: patterns and texts come from users, so backtracking, heap and pattern size are limited, \C is refused, and
 * what passes a bound is an error rather than a hang. Patterns are compiled to machine code where PCRE2 can; its 32 KiB of
 * machine stack are enough for most, and a match that needs more is done again by the interpreter, which uses the heap. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include <penstock/base.h>

#include <pcre2.h>

#define PATTERN_BYTES_MAX ((size_t)256 << 10)
#define MATCH_STEPS_MAX 5000000u
#define HEAP_KIB_MAX (64u << 10)

struct pst_regex {
  pcre2_general_context *memory;
  pcre2_match_context *bounds; /* only read after creation */
  pcre2_code *code;
  uint32_t match_options;
};

static void *take(PCRE2_SIZE bytes, void *unused) {
  (void)unused;
  return pst_malloc(bytes);
}

static void give(void *p, void *unused) {
  (void)unused;
  pst_free(p);
}

static uint32_t compile_options(unsigned flags) {
  uint32_t options = PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C;
  if (flags & PST_REGEX_CASELESS) options |= PCRE2_CASELESS;
  if (flags & PST_REGEX_ANCHORED) options |= PCRE2_ANCHORED;
  if (flags & PST_REGEX_MULTILINE) options |= PCRE2_MULTILINE;
  if (flags & PST_REGEX_DOTALL) options |= PCRE2_DOTALL;
  if (flags & PST_REGEX_ASCII) options &= ~(uint32_t)PCRE2_UCP;
  return options;
}

static int compile(pst_regex *re, pst_str pattern, unsigned flags, pst_error *err) {
  pcre2_compile_context *context = pcre2_compile_context_create(re->memory);
  if (!context) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory to compile a regular expression");
  pcre2_set_max_pattern_length(context, PATTERN_BYTES_MAX);
  int code = 0;
  PCRE2_SIZE offset = 0;
  re->code = pcre2_compile((PCRE2_SPTR)(pattern.data ? pattern.data : ""), pattern.n, compile_options(flags), &code,
                           &offset, context);
  pcre2_compile_context_free(context);
  if (re->code) return 0;
  if (code == PCRE2_ERROR_HEAP_FAILED)
    return pst_error_set(err, PST_E_NOMEM, NULL, "no memory to compile a regular expression");
  PCRE2_UCHAR text[160] = ""; /* a longer message is cut, which PCRE2 reports as an error: fine */
  (void)pcre2_get_error_message(code, text, sizeof text);
  bool too_long = pattern.n > PATTERN_BYTES_MAX;
  return pst_error_set(err, too_long ? PST_E_LIMIT : PST_E_BAD_INPUT, NULL,
                       "the regular expression is not valid at byte %zu: %s", (size_t)offset, (const char *)text);
}

int pst_regex_create(pst_str pattern, unsigned flags, pst_regex **ret_regex, pst_error *err) {
  pst_regex *re = pst_calloc(1, sizeof *re);
  if (!re) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory to compile a regular expression");
  int rc = 0;
  re->memory = pcre2_general_context_create(take, give, NULL);
  re->bounds = re->memory ? pcre2_match_context_create(re->memory) : NULL;
  if (!re->bounds) {
    rc = pst_error_set(err, PST_E_NOMEM, NULL, "no memory to compile a regular expression");
    goto done;
  }
  (void)pcre2_set_match_limit(re->bounds, MATCH_STEPS_MAX);
  (void)pcre2_set_depth_limit(re->bounds, MATCH_STEPS_MAX);
  (void)pcre2_set_heap_limit(re->bounds, HEAP_KIB_MAX);
  re->match_options = flags & PST_REGEX_VALID_TEXT ? PCRE2_NO_UTF_CHECK : 0;
  rc = compile(re, pattern, flags, err);
  if (rc != 0) goto done;
  (void)pcre2_jit_compile(re->code, PCRE2_JIT_COMPLETE); /* where it fails, pcre2_match interprets */
  *ret_regex = re;
  re = NULL;
done:
  pst_regex_free(re);
  return rc;
}

void pst_regex_free(pst_regex *re) {
  if (!re) return;
  pcre2_code_free(re->code);
  pcre2_match_context_free(re->bounds);
  pcre2_general_context_free(re->memory);
  pst_free(re);
}

static int code_of(int pcre2_code) {
  switch (pcre2_code) {
  case PCRE2_ERROR_NOMEMORY: return PST_E_NOMEM;
  case PCRE2_ERROR_MATCHLIMIT:
  case PCRE2_ERROR_DEPTHLIMIT:
  case PCRE2_ERROR_HEAPLIMIT: return PST_E_LIMIT;
  case PCRE2_ERROR_BADUTFOFFSET: return PST_E_BAD_INPUT;
  default:
    return pcre2_code >= PCRE2_ERROR_UTF8_ERR21 && pcre2_code <= PCRE2_ERROR_UTF8_ERR1 ? PST_E_BAD_INPUT
                                                                                       : PST_E_INTERNAL;
  }
}

int pst_regex_find(const pst_regex *re, pst_str text, size_t from, pst_span *ret_spans, size_t n_spans) {
  if (from > text.n) return 0;
  pcre2_match_data *found = pcre2_match_data_create_from_pattern(re->code, re->memory);
  if (!found) return PST_E_NOMEM;
  PCRE2_SPTR subject = (PCRE2_SPTR)(text.data ? text.data : "");
  int n = pcre2_match(re->code, subject, text.n, from, re->match_options, found, re->bounds);
  if (n == PCRE2_ERROR_JIT_STACKLIMIT)
    n = pcre2_match(re->code, subject, text.n, from, re->match_options | PCRE2_NO_JIT, found, re->bounds);
  int rc = n > 0 ? 1 : n == PCRE2_ERROR_NOMATCH ? 0 : code_of(n);
  if (n > 0) {
    const PCRE2_SIZE *pairs = pcre2_get_ovector_pointer(found);
    for (size_t i = 0; i < n_spans; i++) {
      bool took_part = i < (size_t)n && pairs[2 * i] != PCRE2_UNSET && pairs[2 * i] <= pairs[2 * i + 1];
      ret_spans[i] = took_part ? (pst_span){pairs[2 * i], pairs[2 * i + 1]} : (pst_span){SIZE_MAX, SIZE_MAX};
    }
  }
  pcre2_match_data_free(found);
  return rc;
}
