/* Check digits of numbers that belong to persons. Pure. */
#include "data/pii.h"

#include <string.h>

bool pst_data_luhn(const char *digits, int n) {
  int sum = 0;
  for (int i = 0; i < n; i++) {
    int d = digits[n - 1 - i] - '0';
    if (i % 2) d = d * 2 - (d > 4 ? 9 : 0);
    sum += d;
  }
  return n > 0 && sum % 10 == 0;
}

bool pst_data_verhoeff(const char *digits, int n) {
  /* The dihedral group of order 10: a + b over rotations 0 to 4 and reflections 5 to 9; the permutation is applied once more for each place. */
  static const uint8_t permutation[10] = {1, 5, 7, 6, 2, 8, 3, 0, 9, 4};
  int check = 0;
  for (int i = 0; i < n; i++) {
    int d = digits[n - 1 - i] - '0';
    for (int k = 0; k < i % 8; k++) d = permutation[d];
    bool a = check >= 5, b = d >= 5;
    int x = check % 5, y = d % 5;
    int turn = a ? (x - y + 5) % 5 : (x + y) % 5;
    check = turn + (a != b ? 5 : 0);
  }
  return n > 0 && check == 0;
}

bool pst_data_mod_97(const char *text, size_t n) {
  unsigned rest = 0;
  for (size_t i = 0; i < n; i++) {
    char c = text[(i + 4) % n];
    unsigned value = pst_data_is_digit(c) ? (unsigned)(c - '0') : (unsigned)((c | 32) - 'a') + 10;
    rest = (rest * (value > 9 ? 100 : 10) + value) % 97;
  }
  return n > 4 && rest == 1;
}

/* Country and length, by the registry of ISO 13616. */
static const char IBANS[] =
    "AD24AE23AL28AT20AZ28BA20BE16BG22BH22BI27BR29BY28CH21CR22CY28CZ24DE22DJ27DK18DO28EE20EG29ES24FI18FK18FO18FR27GB22"
    "GE22GI23GL18GR27GT28HN28HR21HU28IE22IL23IQ23IS26IT27JO30KW30KZ20LB28LC32LI21LT20LU20LV21LY25MC27MD24ME22MK19MN20"
    "MR27MT31MU30NI28NL18NO15OM23PK24PL28PS29PT25QA29RO24RS22RU33SA24SC31SD18SE24SI19SK24SM27SO23ST25SV28TL23TN24TR26"
    "UA29VA22VG24XK20YE30";

int pst_data_iban_length(const char country[2]) {
  for (size_t i = 0; i + 4 <= sizeof IBANS - 1; i += 4)
    if ((country[0] & ~32) == IBANS[i] && (country[1] & ~32) == IBANS[i + 1])
      return (IBANS[i + 2] - '0') * 10 + IBANS[i + 3] - '0';
  return 0;
}

bool pst_data_weighted(const char *digits, const int *weights, int n, int modulus) {
  int sum = 0;
  for (int i = 0; i < n; i++) sum += weights[i] * (digits[i] - '0');
  return sum % modulus == 0;
}

bool pst_data_cpf(const char digits[11]) {
  bool same = true;
  for (int i = 1; i < 11; i++) same = same && digits[i] == digits[0];
  for (int n = 9; n <= 10 && !same; n++) {
    int sum = 0;
    for (int i = 0; i < n; i++) sum += (n + 1 - i) * (digits[i] - '0');
    if (sum * 10 % 11 % 10 != digits[n] - '0') return false;
  }
  return !same;
}

bool pst_data_mod_11_10(const char *digits, int n) {
  int product = 10;
  for (int i = 0; i < n - 1; i++) {
    int sum = (digits[i] - '0' + product) % 10;
    product = (sum ? sum : 10) * 2 % 11;
  }
  return n > 1 && (11 - product) % 10 == digits[n - 1] - '0';
}

bool pst_data_codice_fiscale(const char text[16]) {
  /* What a digit or letter counts in odd places (the first is odd), as the decree of 12 March 1974 lists it. */
  static const uint8_t odd[26] = {1,  0,  5, 7, 9, 13, 15, 17, 19, 21, 2,  4,  18,
                                  20, 11, 3, 6, 8, 12, 14, 16, 10, 22, 25, 24, 23};
  int sum = 0;
  for (int i = 0; i < 15; i++) {
    int value = pst_data_is_digit(text[i]) ? text[i] - '0' : text[i] - 'A';
    sum += i % 2 ? value : odd[value];
  }
  return text[15] == 'A' + sum % 26;
}
