/* Arithmetic on nano-dollars: integers only, every overflow caught, rounding always up. Pure functions; no store. */
#include <penstock/store.h>

#include <string.h>

int pst_store_nusd_add(int64_t a, int64_t b, int64_t *ret_nusd) {
  int64_t sum;
  if (__builtin_add_overflow(a, b, &sum)) return PST_E_LIMIT;
  *ret_nusd = sum;
  return 0;
}

int pst_store_nusd_sub(int64_t a, int64_t b, int64_t *ret_nusd) {
  int64_t difference;
  if (__builtin_sub_overflow(a, b, &difference)) return PST_E_LIMIT;
  *ret_nusd = difference;
  return 0;
}

int pst_store_nusd_mul(int64_t a, int64_t n, int64_t *ret_nusd) {
  int64_t product;
  if (__builtin_mul_overflow(a, n, &product)) return PST_E_LIMIT;
  *ret_nusd = product;
  return 0;
}

int pst_store_nusd_scale(int64_t a, int64_t n, int64_t d, int64_t *ret_nusd) {
  if (a < 0 || n < 0 || d <= 0) return PST_E_BAD_INPUT;
  __extension__ typedef unsigned __int128 wide;
  wide divisor = (wide)d;
  wide scaled = ((wide)a * (wide)n + divisor - 1) / divisor;
  if (scaled > (wide)INT64_MAX) return PST_E_LIMIT;
  *ret_nusd = (int64_t)scaled;
  return 0;
}

/* Digits with at most one dot, as an integer of the digits and the power of ten it is to be multiplied with. */
static int parse_digits(pst_str text, size_t *i, uint64_t *ret_digits, int64_t *ret_exponent) {
  uint64_t digits = 0;
  int64_t exponent = 0;
  size_t n_digits = 0;
  bool dot = false;
  for (; *i < text.n; (*i)++) {
    char c = text.data[*i];
    if (c == '.' && !dot) {
      dot = true;
      continue;
    }
    if (c < '0' || c > '9') break;
    n_digits++;
    uint64_t digit = (uint64_t)(c - '0');
    if (digit == 0 && dot) { /* trailing zeros carry no value: keep them as exponent until a digit follows */
      size_t j = *i;
      while (j < text.n && text.data[j] == '0') j++;
      if (j == text.n || text.data[j] < '0' || text.data[j] > '9') {
        *i = j - 1;
        continue;
      }
    }
    if (digits > (UINT64_MAX - digit) / 10) return PST_E_LIMIT;
    digits = digits * 10 + digit;
    if (dot) exponent--;
  }
  if (!n_digits) return PST_E_BAD_INPUT;
  *ret_digits = digits;
  *ret_exponent = exponent;
  return 0;
}

int pst_store_nusd_parse(pst_str text, int64_t *ret_nusd) {
  text = pst_str_trim(text);
  size_t i = 0;
  bool negative = i < text.n && text.data[i] == '-';
  if (negative) i++;
  if (i < text.n && text.data[i] == '$') i++;
  uint64_t digits;
  int64_t exponent;
  int code = parse_digits(text, &i, &digits, &exponent);
  if (code) return code;
  if (i < text.n && (text.data[i] == 'e' || text.data[i] == 'E')) {
    i++;
    if (i < text.n && text.data[i] == '+') i++;
    int64_t e;
    code = pst_parse_i64((pst_str){text.data + i, text.n - i}, -100, 100, &e);
    if (code) return code;
    exponent += e;
    i = text.n;
  }
  if (i != text.n) return PST_E_BAD_INPUT;
  exponent += 9;
  for (; exponent < 0 && digits; exponent++) {
    if (digits % 10) return PST_E_BAD_INPUT; /* finer than a nano-dollar */
    digits /= 10;
  }
  for (; exponent > 0 && digits; exponent--) {
    if (digits > UINT64_MAX / 10) return PST_E_LIMIT;
    digits *= 10;
  }
  if (digits > (uint64_t)INT64_MAX) return PST_E_LIMIT;
  *ret_nusd = negative ? -(int64_t)digits : (int64_t)digits;
  return 0;
}

void pst_store_nusd_format(int64_t nusd, char ret_text[32]) {
  uint64_t magnitude = nusd < 0 ? UINT64_C(0) - (uint64_t)nusd : (uint64_t)nusd;
  uint64_t whole = magnitude / (uint64_t)PST_STORE_NUSD_PER_USD, part = magnitude % (uint64_t)PST_STORE_NUSD_PER_USD;
  int n =
      snprintf(ret_text, 32, "%s%llu.%09llu", nusd < 0 ? "-" : "", (unsigned long long)whole, (unsigned long long)part);
  while (n > 0 && ret_text[n - 1] == '0') ret_text[--n] = '\0';
  if (n > 0 && ret_text[n - 1] == '.') ret_text[n - 1] = '\0';
}
