/* The tiny models of tests/golden/architectures/NAME.json as GGUF files: keys, names and shapes as llama.cpp's converter wrote them, numbers made
 * from names. */
#ifndef PST_TESTS_SUPPORT_GOLDEN_MODEL_H
#define PST_TESTS_SUPPORT_GOLDEN_MODEL_H

#include <penstock/base.h>

/* A change to a file that is otherwise as the golden file says. All NULL: none. */
typedef struct test_golden_change {
  const char *type;      /* of the matrices that are F32: "F16", "Q8_0", ... */
  const char *drop;      /* a key or tensor that is left out */
  const char *extra_key; /* a further key of value 7 */
  const char *
      other_key; /* a key whose number becomes another: one less of a count or window, else a 16th (a norm's epsilon: 1) */
  const char *other_tensor;   /* a tensor whose numbers become others */
  const char *twin_of, *twin; /* a tensor, and the name of one more of its type and shape */
} test_golden_change;

/* What a tensor's numbers lie around, by its name: 1 of norms' weights and scales, -1/2 of decay rates, else 0. */
float test_golden_mean(const char *name);

/* Writes the model that `golden`, the root of a golden file, describes. change NULL: none. Aborts on failure. */
void test_golden_write(const char *path, const pst_json *golden, const test_golden_change *change);

/* Reads tests/golden/architectures/<name>.json. Aborts on failure; free with pst_json_free. */
pst_json_doc *test_golden_read(const char *name);
/* Both, without a change. */
void test_golden_model(const char *name, const char *path);

/* Names of the golden files, in alphabetical order; how many. Aborts on failure. */
enum { TEST_GOLDEN_MAX = 64 };
int test_golden_names(char ret_names[TEST_GOLDEN_MAX][32]);

/* How far log-probabilities are from a golden file's: of the tokens of its text, and of the best at its end. */
typedef struct test_golden_distance {
  double mean, worst;
} test_golden_distance;

/* Runs a model of the golden file's weights over its text. Aborts on failure. */
test_golden_distance test_golden_measure(const pst_json *golden, const char *path);
bool test_golden_within(const pst_json *golden, test_golden_distance d); /* by the file's own tolerances */

#endif
