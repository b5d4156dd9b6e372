/* The classifier: its gradient, its optimum, its calibration, what it says of itself, and what it does with bad records, bad artefacts and odd texts. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "classifier/calibrate.h"
#include "classifier/lbfgs.h"
#include "classifier/logistic.h"

enum { SEED = 7, N_TOPICS = 5, N_TRAIN = 900, N_TEST = 3000, TEXT_BYTES = 120 };

/* ---- made-up records ---- */

typedef struct corpus {
  pst_classifier_record *records;
  char (*texts)[TEXT_BYTES];
  size_t n;
} corpus;

static const pst_str topics[N_TOPICS] = {{"alpha", 5}, {"beta", 4}, {"gamma", 5}, {"delta", 5}, {"omega", 5}};

/* Each word is one of forty, those next to the topic's own place likelier: evidence of every strength, and none that is sure. */
static corpus make_corpus(size_t n, uint64_t stream) {
  corpus c = {calloc(n, sizeof *c.records), calloc(n, TEXT_BYTES), n};
  pst_random r = {SEED, stream, 0};
  assert_non_null(c.records);
  assert_non_null(c.texts);
  for (size_t i = 0; i < n; i++) {
    size_t topic = (size_t)pst_random_below(&r, N_TOPICS), n_words = 5 + (size_t)pst_random_below(&r, 6), at = 0;
    for (size_t w = 0; w < n_words; w++) {
      double u = pst_random_next_unit(&r);
      unsigned word = (unsigned)(8 * topic + (size_t)(40 * u * u)) % 40;
      at += (size_t)snprintf(c.texts[i] + at, TEXT_BYTES - at, "%s%c%cx", w ? " " : "", (char)('a' + word / 7),
                             (char)('k' + word % 7));
    }
    c.records[i] =
        (pst_classifier_record){.text = pst_str_from(c.texts[i]), .label = topics[topic], .group = (uint32_t)i};
  }
  return c;
}

static void corpus_done(corpus *c) {
  free(c->records);
  free(c->texts);
}

static pst_classifier *train(const corpus *c, const pst_classifier_options *o, pst_buf *bytes) {
  pst_error err = PST_ERROR_INIT;
  pst_classifier *classifier = NULL;
  if (pst_classifier_train(c->records, c->n, o, bytes, &err)) fail_msg("%s: %s", err.place, err.message);
  if (pst_classifier_open(pst_buf_str(bytes), "test", &classifier, &err)) fail_msg("%s: %s", err.place, err.message);
  return classifier;
}

enum { DIMS = 12 };

/* A corpus with vectors of length 1: the topic's own direction, seen through as much noise. Words and vectors err apart from each other. */
static float *add_vectors(corpus *c, uint64_t stream, double noise) {
  float *vectors = calloc(c->n * DIMS, sizeof *vectors);
  pst_random r = {SEED, stream, 0};
  assert_non_null(vectors);
  for (size_t i = 0; i < c->n; i++) {
    float *v = vectors + i * DIMS;
    size_t topic = 0;
    double square = 0, x[DIMS];
    while (!pst_str_equal(topics[topic], c->records[i].label)) topic++;
    for (size_t d = 0; d < DIMS; d++) {
      double u = 0;
      for (int k = 0; k < 4; k++) u += pst_random_next_unit(&r) - 0.5; /* near enough to normal */
      x[d] = (d == topic || d == topic + 5) + noise * u;
      square += x[d] * x[d];
    }
    for (size_t d = 0; d < DIMS; d++) v[d] = (float)(x[d] / sqrt(square));
    c->records[i].vector = v;
  }
  return vectors;
}

/* ---- the objective ---- */

typedef struct problem {
  pst_classifier_texts texts;
  pst_classifier_vectors vectors;
  pst_classifier_dictionary dictionary;
  pst_classifier_matrix matrix;
  pst_classifier_logistic logistic;
  uint32_t classes[64];
  size_t n; /* of weights */
} problem;

static void make_problem(problem *p, const corpus *c, size_t n_rows, double penalty) {
  size_t rows[64];
  memset(p, 0, sizeof *p);
  assert_true(n_rows <= 64);
  for (size_t i = 0; i < n_rows; i++) {
    rows[i] = i;
    p->classes[i] = (uint32_t)(i % 3);
  }
  assert_int_equal(pst_classifier_texts_init(&p->texts, c->records, n_rows), 0);
  assert_int_equal(pst_classifier_vectors_init(&p->vectors, c->records, n_rows, DIMS), 0);
  assert_int_equal(pst_classifier_dictionary_init(&p->dictionary, &p->texts, rows, n_rows, 1000), 0);
  assert_int_equal(pst_classifier_matrix_init(&p->matrix, &p->dictionary, &p->texts, &p->vectors, rows, n_rows), 0);
  p->logistic = (pst_classifier_logistic){.x = &p->matrix,
                                          .labels = p->classes,
                                          .n_labels = 4 /* one without records */,
                                          .penalty = penalty,
                                          .n_threads = 2};
  assert_int_equal(pst_classifier_logistic_init(&p->logistic), 0);
  p->n = pst_classifier_logistic_size(&p->logistic);
}

static void problem_done(problem *p) {
  pst_classifier_logistic_done(&p->logistic);
  pst_classifier_matrix_done(&p->matrix);
  pst_classifier_vectors_done(&p->vectors);
  pst_classifier_dictionary_done(&p->dictionary);
  pst_classifier_texts_done(&p->texts);
}

static void the_gradient_is_that_of_the_value(void **state) {
  (void)state;
  corpus c = make_corpus(20, 1);
  float *vectors = add_vectors(&c, 5, 0.9);
  problem p;
  make_problem(&p, &c, 20, 0.01);
  double *w = calloc(p.n, sizeof *w), *g = calloc(p.n, sizeof *g), *unused = calloc(p.n, sizeof *unused), largest = 0;
  for (size_t i = 0; i < p.n; i++) w[i] = pst_random_unit(SEED, 2, i) - 0.5;
  (void)pst_classifier_logistic_value(&p.logistic, w, g);
  for (size_t i = 0; i < p.n; i++) largest = fmax(largest, fabs(g[i]));
  for (size_t i = 0; i < p.n; i += 7) {
    double kept = w[i], h = 1e-5;
    w[i] = kept + h;
    double above = pst_classifier_logistic_value(&p.logistic, w, unused);
    w[i] = kept - h;
    double below = pst_classifier_logistic_value(&p.logistic, w, unused);
    w[i] = kept;
    double error = fabs((above - below) / (2 * h) - g[i]) / fmax(fabs(g[i]), 0.01 * largest);
    if (error > 1e-6) fail_msg("weight %zu: relative error %g", i, error);
  }
  free(w);
  free(g);
  free(unused);
  free(vectors);
  problem_done(&p);
  corpus_done(&c);
}

/* The function is strictly convex: where the gradient vanishes is the optimum, and there is one. */
static void two_starts_end_at_the_one_optimum(void **state) {
  (void)state;
  corpus c = make_corpus(60, 3);
  float *vectors = add_vectors(&c, 6, 0.9);
  problem p;
  make_problem(&p, &c, 60, 0.001);
  double *a = calloc(p.n, sizeof *a), *b = calloc(p.n, sizeof *b), *g = calloc(p.n, sizeof *g);
  pst_classifier_minimum one, two;
  for (size_t i = 0; i < p.n; i++) b[i] = 4 * (pst_random_unit(SEED, 4, i) - 0.5);
  assert_int_equal(pst_classifier_minimize(pst_classifier_logistic_value, &p.logistic, p.n, a, 1e-8, 2000, 1, &one), 0);
  assert_int_equal(pst_classifier_minimize(pst_classifier_logistic_value, &p.logistic, p.n, b, 1e-8, 2000, 3, &two), 0);
  assert_true(one.converged && two.converged);
  assert_true(fabs(one.value - two.value) < 1e-12);
  for (size_t i = 0; i < p.n; i++) assert_true(fabs(a[i] - b[i]) < 2e-5); /* |w - w*| <= |gradient| / penalty */
  double value = pst_classifier_logistic_value(&p.logistic, a, g), norm = 0;
  for (size_t i = 0; i < p.n; i++) norm += g[i] * g[i];
  assert_true(sqrt(norm) <= 1e-8);
  assert_true(value < log(4));           /* what zero weights give */
  for (size_t i = 0; i < p.n; i += 11) { /* every way leads up */
    a[i] += 0.01;
    assert_true(pst_classifier_logistic_value(&p.logistic, a, g) > value);
    a[i] -= 0.01;
  }
  free(a);
  free(b);
  free(g);
  free(vectors);
  problem_done(&p);
  corpus_done(&c);
}

static double rosenbrock(void *user, const double *x, double *g) {
  (void)user;
  double a = 1 - x[0], b = x[1] - x[0] * x[0];
  g[0] = -2 * a - 400 * x[0] * b;
  g[1] = 200 * b;
  return a * a + 100 * b * b;
}

static void a_curved_valley_is_walked_to_its_end(void **state) {
  (void)state;
  double x[2] = {-1.2, 1};
  pst_classifier_minimum m;
  assert_int_equal(pst_classifier_minimize(rosenbrock, NULL, 2, x, 1e-8, 500, 1, &m), 0);
  assert_true(m.converged && m.n_iterations < 120);
  assert_true(fabs(x[0] - 1) < 1e-6 && fabs(x[1] - 1) < 1e-6);
}

/* ---- features ---- */

static size_t n_grams(const char *text, pst_classifier_grams *g) {
  g->n = 0;
  assert_int_equal(pst_classifier_grams_of(pst_str_from(text), g), 0);
  return g->n;
}

static void grams_are_words_pairs_and_pieces(void **state) {
  (void)state;
  pst_classifier_grams g = {NULL, 0, 0}, h = {NULL, 0, 0};
  assert_int_equal(n_grams("", &g), 0);
  assert_int_equal(n_grams(" \t\n ", &g), 0);
  /* word "ab"; pieces " a" "ab" "b " " ab" "ab " " ab " */
  assert_int_equal(n_grams("ab", &g), 1 + 6);
  assert_int_equal(n_grams("ab AB", &h), 2 + 6); /* and the pair; case does not count */
  size_t repeated = 0;
  for (size_t i = 0; i < h.n; i++) {
    assert_true(i == 0 || h.grams[i].hash > h.grams[i - 1].hash);
    repeated += fabs(h.grams[i].weight - (1 + log(2))) < 1e-12;
  }
  assert_int_equal(repeated, 7);
  /* Composed and decomposed, and any white space, are one. */
  size_t n = n_grams("caf\xc3\xa9 au lait", &g);
  assert_int_equal(n_grams("cafe\xcc\x81\xc2\xa0  au\nlait", &h), n);
  for (size_t i = 0; i < n; i++) assert_true(g.grams[i].hash == h.grams[i].hash);
  assert_true(n_grams("\xff\xfe\x80 broken", &g) > 0);
  assert_true(n_grams("\xe6\x97\xa5\xe6\x9c\xac\xe8\xaa\x9e", &g) > 3);
  /* An apostrophe inside a word joins it, outside it does not: one word and seven bytes of pieces, or two words and their pair. */
  size_t n_joined = n_grams("don't", &g), n_parted = n_grams("don-t", &h);
  assert_int_equal(n_parted, n_joined + 2);
  pst_free(g.grams);
  pst_free(h.grams);
}

/* ---- training ---- */

static void the_same_records_give_the_same_bytes(void **state) {
  (void)state;
  corpus c = make_corpus(300, 5);
  pst_buf first = PST_BUF_INIT;
  for (int threads = 1; threads <= 5; threads += 2) {
    pst_buf bytes = PST_BUF_INIT;
    pst_error err = PST_ERROR_INIT;
    pst_classifier_options o = {.threads = threads};
    for (size_t i = c.n; i > 1 && threads > 1; i--) { /* another order, other numbers of the groups */
      size_t j = (size_t)(pst_random_u64(SEED, 6, i) % i);
      pst_classifier_record r = c.records[i - 1];
      c.records[i - 1] = c.records[j];
      c.records[j] = r;
    }
    for (size_t i = 0; i < c.n && threads > 1; i++) c.records[i].group = (uint32_t)(i * 3);
    assert_int_equal(pst_classifier_train(c.records, c.n, &o, &bytes, &err), 0);
    if (threads == 1) {
      first = bytes;
      continue;
    }
    assert_int_equal(bytes.n, first.n);
    assert_memory_equal(bytes.data, first.data, first.n);
    pst_buf_done(&bytes);
  }
  pst_buf_done(&first);
  corpus_done(&c);
}

typedef struct graded {
  double accuracy, calibration_error, answered, answered_right;
} graded;

/* On fresh records; answered: those whose margin reaches the threshold. */
static graded grade(const pst_classifier *classifier, const corpus *c, double threshold) {
  const pst_classifier_info *info = pst_classifier_get_info(classifier);
  double confidence[10] = {0}, right[10] = {0}, probabilities[N_TOPICS];
  graded g = {0, 0, 0, 0};
  for (size_t i = 0; i < c->n; i++) {
    pst_classifier_answer a;
    double sum = 0, best = 0;
    assert_int_equal(
        pst_classifier_classify(classifier, c->records[i].text, c->records[i].vector, &a, probabilities, NULL), 0);
    for (size_t k = 0; k < info->n_labels; k++) {
      sum += probabilities[k];
      best = fmax(best, probabilities[k]);
    }
    assert_true(fabs(sum - 1) < 1e-9 && best == a.probability && a.margin >= 0);
    bool hit = pst_str_equal(info->labels[a.label], c->records[i].label);
    size_t bin = PST_MIN((size_t)(10 * a.probability), (size_t)9);
    confidence[bin] += a.probability;
    right[bin] += hit;
    g.accuracy += hit;
    g.answered += a.margin >= threshold;
    g.answered_right += hit && a.margin >= threshold;
  }
  for (size_t b = 0; b < 10; b++) g.calibration_error += fabs(confidence[b] - right[b]) / (double)c->n;
  g.answered_right /= fmax(g.answered, 1);
  g.accuracy /= (double)c->n;
  g.answered /= (double)c->n;
  return g;
}

static void probabilities_mean_what_they_say(void **state) {
  (void)state;
  corpus c = make_corpus(N_TRAIN, 8), fresh = make_corpus(N_TEST, 9);
  pst_buf bytes = PST_BUF_INIT;
  pst_classifier *classifier = train(&c, NULL, &bytes);
  const pst_classifier_info *info = pst_classifier_get_info(classifier);
  graded all = grade(classifier, &fresh, 0);
  assert_true(all.accuracy > 0.65 && all.accuracy < 0.95); /* the topics overlap: this is no easy case */
  assert_true(fabs(all.accuracy - info->accuracy) < 0.05);
  assert_true(all.calibration_error < 0.05);
  assert_int_equal(info->n_records, N_TRAIN);
  assert_int_equal(info->n_labels, N_TOPICS);
  /* Abstaining: what is answered above a threshold is as much, and as right, as the held-out folds said. */
  double before = 1;
  for (size_t p = 3; p < PST_CLASSIFIER_CURVE_POINTS; p += 4) {
    const pst_classifier_point *point = &info->curve[p];
    graded some = grade(classifier, &fresh, point->threshold);
    assert_true(fabs(some.answered - point->answered) < 0.07);
    assert_true(fabs(some.answered_right - point->accuracy) < 0.07);
    assert_true(some.answered_right <= before + 0.02);
    before = some.answered_right;
  }
  assert_true(grade(classifier, &fresh, info->curve[7].threshold).answered_right > all.accuracy + 0.05);
  assert_true(info->curve[PST_CLASSIFIER_CURVE_POINTS - 1].answered == 1);
  assert_true(info->curve[PST_CLASSIFIER_CURVE_POINTS - 1].threshold == 0);
  pst_classifier_free(classifier);
  pst_buf_done(&bytes);
  corpus_done(&c);
  corpus_done(&fresh);
}

/* Texts that say nothing of their labels, each four times: a fold that held a copy of what was trained on would look perfect. */
static void a_group_is_never_parted(void **state) {
  (void)state;
  corpus c = make_corpus(400, 10);
  pst_buf bytes = PST_BUF_INIT;
  for (size_t i = 0; i < c.n; i++) {
    size_t of = i / 4;
    (void)snprintf(c.texts[i], TEXT_BYTES, "w%llx", (unsigned long long)pst_random_u64(SEED, 11, of));
    c.records[i] = (pst_classifier_record){.text = pst_str_from(c.texts[i]),
                                           .label = topics[pst_random_u64(SEED, 12, of) % N_TOPICS],
                                           .group = (uint32_t)of};
  }
  pst_classifier *classifier = train(&c, NULL, &bytes);
  assert_true(grade(classifier, &c, 0).accuracy > 0.95);
  assert_true(pst_classifier_get_info(classifier)->accuracy < 0.45);
  pst_classifier_free(classifier);
  pst_buf_done(&bytes);
  corpus_done(&c);
}

static int refused(const pst_classifier_record *records, size_t n, const char *word) {
  pst_buf out = PST_BUF_INIT;
  pst_error err = PST_ERROR_INIT;
  int code = pst_classifier_train(records, n, NULL, &out, &err);
  assert_int_equal(out.n, 0);
  if (!strstr(err.message, word)) fail_msg("%s", err.message);
  pst_buf_done(&out);
  return code;
}

static bool yes(void *user) {
  (void)user;
  return true;
}

static void records_that_cannot_be_learned_from_are_refused(void **state) {
  (void)state;
  pst_classifier_record r[3] = {{PST_STR("one"), PST_STR("a"), 0, NULL, false},
                                {PST_STR("two"), PST_STR("a"), 1, NULL, false},
                                {PST_STR("three"), PST_STR("a"), 2, NULL, false}};
  assert_int_equal(refused(r, 0, "nothing to choose"), PST_E_NO_DATA);
  assert_int_equal(refused(r, 3, "nothing to choose"), PST_E_NO_DATA); /* one label */
  r[1].label = PST_STR("");
  assert_int_equal(refused(r, 3, "empty label"), PST_E_BAD_INPUT);
  r[1].label = PST_STR("b");
  r[1].group = r[2].group = 0;
  assert_int_equal(refused(r, 3, "held out"), PST_E_NO_DATA);
  r[1].group = 1;
  pst_buf out = PST_BUF_INIT;
  pst_classifier_options o = {.cancelled = yes};
  assert_int_equal(pst_classifier_train(r, 3, &o, &out, NULL), PST_E_CANCELLED);
  assert_int_equal(pst_classifier_train(r, 3, NULL, &out, NULL), 0); /* three records, two labels: little, but enough */
  pst_buf_done(&out);
}

static void too_much_is_refused_before_memory_is_taken(void **state) {
  (void)state;
  enum { MANY = 10001 };
  pst_classifier_record *r = calloc(MANY, sizeof *r);
  char(*labels)[8] = calloc(MANY, sizeof *labels);
  assert_non_null(r);
  assert_non_null(labels);
  for (size_t i = 0; i < MANY; i++) {
    (void)snprintf(labels[i], sizeof labels[i], "%zu", i);
    r[i] = (pst_classifier_record){.text = PST_STR("text"), .label = pst_str_from(labels[i]), .group = (uint32_t)i};
  }
  assert_int_equal(refused(r, MANY, "at most 10000"), PST_E_LIMIT);
  assert_int_equal(refused(r, 6000, "at most 5592 records"), PST_E_LIMIT); /* 6,000 scores each */
  free(r);
  free(labels);
}

/* ---- artefacts ---- */

static int open_bytes(const char *data, size_t n) {
  pst_classifier *classifier = NULL;
  pst_error err = PST_ERROR_INIT;
  int code = pst_classifier_open((pst_str){data, n}, "test", &classifier, &err);
  if (code) {
    assert_null(classifier);
    assert_true(err.message[0] != '\0');
  }
  pst_classifier_free(classifier);
  return code;
}

static void a_damaged_artefact_is_refused(void **state) {
  (void)state;
  corpus c = make_corpus(60, 13);
  pst_buf bytes = PST_BUF_INIT;
  pst_classifier *classifier = train(&c, NULL, &bytes);
  const pst_classifier_info *info = pst_classifier_get_info(classifier);
  size_t n_header = (size_t)((const char *)memchr(bytes.data, '\n', bytes.n) - bytes.data) + 1;
  assert_int_equal(open_bytes(bytes.data, bytes.n), 0);
  assert_int_equal(open_bytes("", 0), PST_E_CORRUPT);
  for (size_t n = 0; n < bytes.n; n += n < n_header ? 13 : 101)
    assert_int_equal(open_bytes(bytes.data, n), PST_E_CORRUPT);
  pst_buf longer = PST_BUF_INIT;
  pst_buf_append_str(&longer, pst_buf_str(&bytes));
  pst_buf_putc(&longer, 0);
  assert_int_equal(open_bytes(longer.data, longer.n), PST_E_CORRUPT);
  for (size_t i = 0; i < n_header; i++) { /* any answer, but no wild read */
    char kept = bytes.data[i];
    bytes.data[i] = (char)(kept ^ 0x11);
    (void)open_bytes(bytes.data, bytes.n);
    bytes.data[i] = kept;
  }
  char *format = strstr(bytes.data, "classifier\":1");
  format[12] = '7';
  assert_int_equal(open_bytes(bytes.data, bytes.n), PST_E_UNSUPPORTED);
  format[12] = '1';
  uint64_t kept;
  memcpy(&kept, bytes.data + n_header, sizeof kept);
  memset(bytes.data + n_header, 0xff, sizeof kept); /* the first gram stands behind all others */
  assert_int_equal(open_bytes(bytes.data, bytes.n), PST_E_CORRUPT);
  memcpy(bytes.data + n_header, &kept, sizeof kept);
  memset(bytes.data + bytes.n - 4, 0xff, 4); /* the last bias is no number */
  assert_int_equal(open_bytes(bytes.data, bytes.n), PST_E_CORRUPT);
  assert_true(info->n_features > 0);
  pst_classifier_free(classifier);
  pst_buf_done(&longer);
  pst_buf_done(&bytes);
  corpus_done(&c);
}

static void odd_texts_are_answered(void **state) {
  (void)state;
  corpus c = make_corpus(200, 14);
  pst_buf bytes = PST_BUF_INIT, huge = PST_BUF_INIT;
  pst_classifier *classifier = train(&c, NULL, &bytes);
  pst_classifier_answer empty, unknown, beginning, whole;
  assert_int_equal(pst_classifier_classify(classifier, (pst_str){NULL, 0}, NULL, &empty, NULL, NULL), 0);
  assert_int_equal(pst_classifier_classify(classifier, PST_STR("##########"), NULL, &unknown, NULL, NULL), 0);
  assert_int_equal(empty.label, unknown.label); /* the bias alone */
  assert_true(empty.margin == unknown.margin && empty.probability < 0.6);
  for (int i = 0; i < 400000; i++) pst_buf_puts(&huge, i % 3 ? "akx bkx " : "ckx \xe6\x97\xa5 ");
  assert_int_equal(pst_classifier_classify(classifier, pst_buf_str(&huge), NULL, &whole, NULL, NULL), 0);
  assert_int_equal(pst_classifier_classify(classifier, (pst_str){huge.data, 32768}, NULL, &beginning, NULL, NULL), 0);
  assert_true(whole.label == beginning.label && whole.margin == beginning.margin);
  pst_classifier_free(classifier);
  pst_buf_done(&bytes);
  pst_buf_done(&huge);
  corpus_done(&c);
}

/* ---- vectors ---- */

static const char some_hash[] = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

/* Words alone and vectors alone are each right less often than both; what is said of both holds for fresh records. */
static void vectors_and_words_together_are_right_more_often(void **state) {
  (void)state;
  corpus c = make_corpus(N_TRAIN, 20), fresh = make_corpus(N_TEST, 21), bare = make_corpus(N_TRAIN, 22);
  corpus bare_fresh = make_corpus(N_TEST, 23);
  for (size_t i = 0; i < bare.n; i++) bare.records[i].text = PST_STR("");
  for (size_t i = 0; i < bare_fresh.n; i++) bare_fresh.records[i].text = PST_STR("");
  float *vectors[] = {add_vectors(&c, 24, 0.9), add_vectors(&fresh, 25, 0.9), add_vectors(&bare, 26, 0.9),
                      add_vectors(&bare_fresh, 27, 0.9)};
  pst_classifier_options o = {.encoder = some_hash, .n_dims = DIMS};
  pst_buf bytes[3] = {PST_BUF_INIT, PST_BUF_INIT, PST_BUF_INIT};
  pst_classifier *words = train(&c, NULL, &bytes[0]), *both = train(&c, &o, &bytes[1]);
  pst_classifier *dense = train(&bare, &o, &bytes[2]);
  const pst_classifier_info *info = pst_classifier_get_info(both);
  assert_string_equal(info->encoder, some_hash);
  assert_int_equal(info->n_dims, DIMS);
  assert_null(pst_classifier_get_info(words)->encoder);
  graded all = grade(both, &fresh, 0);
  double of_words = grade(words, &fresh, 0).accuracy, of_vectors = grade(dense, &bare_fresh, 0).accuracy;
  assert_true(of_words > 0.65 && of_vectors > 0.65);
  assert_true(all.accuracy > of_words + 0.04 && all.accuracy > of_vectors + 0.04 && all.accuracy < 0.99);
  assert_true(fabs(all.accuracy - info->accuracy) < 0.04);
  assert_true(all.calibration_error < 0.05);
  assert_true(grade(both, &fresh, info->curve[11].threshold).answered_right > all.accuracy + 0.02);
  pst_classifier *const opened[] = {words, both, dense};
  for (size_t i = 0; i < 3; i++) {
    pst_classifier_free(opened[i]);
    pst_buf_done(&bytes[i]);
  }
  for (size_t i = 0; i < 4; i++) free(vectors[i]);
  corpus_done(&c);
  corpus_done(&fresh);
  corpus_done(&bare);
  corpus_done(&bare_fresh);
}

/* Rows for labels in bytewise order that look for what add_vectors plants. */
static void plant_head(float *head) {
  static const size_t ascending[N_TOPICS] = {0, 1, 3, 2, 4};
  for (size_t k = 0; k < N_TOPICS; k++)
    for (size_t d = 0; d < DIMS; d++) head[k * DIMS + d] = d == ascending[k] || d == ascending[k] + 5 ? 8 : 0;
}

/* A head is added to words, more often right than either, and what is said of the sum is of records that neither has seen. Vectors of those seen are not looked at. */
static void a_head_and_words_together_are_right_more_often(void **state) {
  (void)state;
  float head[N_TOPICS * DIMS];
  corpus c = make_corpus(N_TRAIN, 40), fresh = make_corpus(N_TEST, 41);
  float *vectors[] = {add_vectors(&c, 42, 0.9), add_vectors(&fresh, 43, 0.9)};
  plant_head(head);
  for (size_t i = 0; i < c.n; i++) {
    c.records[i].held_out = i % 3 == 0;
    if (!c.records[i].held_out) c.records[i].vector = NULL;
  }
  pst_classifier_options o = {.encoder = some_hash, .n_dims = DIMS, .head = head}, two = o;
  pst_buf bytes[3] = {PST_BUF_INIT, PST_BUF_INIT, PST_BUF_INIT};
  two.threads = 2;
  pst_classifier *words = train(&c, NULL, &bytes[0]), *both = train(&c, &o, &bytes[1]);
  pst_classifier_free(train(&c, &two, &bytes[2]));
  assert_int_equal(bytes[1].n, bytes[2].n);
  assert_memory_equal(bytes[1].data, bytes[2].data, bytes[1].n);
  const pst_classifier_info *info = pst_classifier_get_info(both);
  assert_int_equal(info->n_records, N_TRAIN);
  graded all = grade(both, &fresh, 0);
  double of_words = grade(words, &fresh, 0).accuracy;
  for (size_t i = 0; i < fresh.n; i++) fresh.records[i].text = PST_STR("");
  double of_head = grade(both, &fresh, 0).accuracy;
  assert_true(all.accuracy > of_words + 0.04 && all.accuracy > of_head + 0.02 && all.accuracy < 0.99);
  assert_true(fabs(all.accuracy - info->accuracy) < 0.05);
  assert_true(all.calibration_error < 0.06);
  for (int all_held_out = 0; all_held_out < 2; all_held_out++) {
    pst_error err = PST_ERROR_INIT;
    pst_buf none = PST_BUF_INIT;
    for (size_t i = 0; i < c.n; i++) {
      c.records[i].held_out = all_held_out;
      c.records[i].vector = vectors[0] + i * DIMS;
    }
    assert_int_equal(pst_classifier_train(c.records, c.n, &o, &none, &err), PST_E_NO_DATA);
    assert_int_equal(none.n, 0);
  }
  pst_classifier_free(words);
  pst_classifier_free(both);
  for (size_t i = 0; i < 3; i++) pst_buf_done(&bytes[i]);
  for (size_t i = 0; i < 2; i++) free(vectors[i]);
  corpus_done(&c);
  corpus_done(&fresh);
}

/* Vectors that say nothing are given next to no weight, and cost next to nothing. */
static void vectors_that_say_nothing_do_no_harm(void **state) {
  (void)state;
  corpus c = make_corpus(N_TRAIN, 30), fresh = make_corpus(N_TEST, 31);
  float *vectors[] = {add_vectors(&c, 32, 1e6), add_vectors(&fresh, 33, 1e6)};
  pst_classifier_options o = {.encoder = some_hash, .n_dims = DIMS};
  pst_buf bytes[2] = {PST_BUF_INIT, PST_BUF_INIT};
  pst_classifier *words = train(&c, NULL, &bytes[0]), *both = train(&c, &o, &bytes[1]);
  assert_true(grade(both, &fresh, 0).accuracy > grade(words, &fresh, 0).accuracy - 0.02);
  pst_classifier_free(words);
  pst_classifier_free(both);
  for (size_t i = 0; i < 2; i++) {
    pst_buf_done(&bytes[i]);
    free(vectors[i]);
  }
  corpus_done(&c);
  corpus_done(&fresh);
}

/* Records in any order, any number of threads: the same bytes; and a damaged artefact is an error with vectors too. */
static void vectors_leave_no_trace_of_order_and_threads(void **state) {
  (void)state;
  corpus c = make_corpus(120, 34);
  float *vectors = add_vectors(&c, 35, 0.9);
  pst_buf first = PST_BUF_INIT;
  for (int threads = 1; threads <= 3; threads++) {
    pst_classifier_options o = {.encoder = some_hash, .n_dims = DIMS, .threads = threads};
    pst_buf bytes = PST_BUF_INIT;
    for (size_t i = 0; i < c.n / 2 && threads > 1; i++) {
      pst_classifier_record kept = c.records[i];
      c.records[i] = c.records[c.n - 1 - i];
      c.records[c.n - 1 - i] = kept;
    }
    pst_classifier_free(train(&c, &o, &bytes));
    if (threads > 1) {
      assert_int_equal(bytes.n, first.n);
      assert_memory_equal(bytes.data, first.data, first.n);
      pst_buf_done(&bytes);
    } else {
      first = bytes;
    }
  }
  for (size_t n = 0; n < first.n; n += 97) assert_int_equal(open_bytes(first.data, n), PST_E_CORRUPT);
  char *dims = strstr(first.data, "\"n_dims\":12");
  assert_non_null(dims);
  dims[9] = '2';
  assert_int_equal(open_bytes(first.data, first.n), PST_E_CORRUPT); /* 22 would be longer */
  dims[9] = '1';
  memset(first.data + first.n - 4 * N_TOPICS - 4, 0xff, 4); /* the last of the vector's weights is no number */
  assert_int_equal(open_bytes(first.data, first.n), PST_E_CORRUPT);
  pst_buf_done(&first);
  free(vectors);
  corpus_done(&c);
}

/* ---- memory ---- */

static void memory_runs_out(const corpus *c, pst_classifier_options o) {
  int code = PST_E_NOMEM, n_failures = 0;
  for (int64_t n = 0; code == PST_E_NOMEM; n += 1 + n / 16) {
    pst_buf out = PST_BUF_INIT;
    pst_error err = PST_ERROR_INIT;
    pst_memory_fail_after(n);
    code = pst_classifier_train(c->records, c->n, &o, &out, &err);
    if (!code) {
      pst_memory_fail_after(n_failures % 8);
      pst_classifier *classifier = NULL;
      if (!pst_classifier_open(pst_buf_str(&out), NULL, &classifier, NULL)) pst_classifier_free(classifier);
    }
    pst_memory_fail_after(-1);
    pst_buf_done(&out);
    n_failures += code != 0;
  }
  assert_int_equal(code, 0);
  assert_true(n_failures > 20);
}

static void running_out_of_memory_is_an_error(void **state) {
  (void)state;
  corpus c = make_corpus(24, 15);
  float *vectors = add_vectors(&c, 36, 0.9);
  memory_runs_out(&c, (pst_classifier_options){.threads = 1});
  memory_runs_out(&c, (pst_classifier_options){.threads = 1, .encoder = some_hash, .n_dims = DIMS});
  free(vectors);
  corpus_done(&c);
}

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(the_gradient_is_that_of_the_value),
      cmocka_unit_test(two_starts_end_at_the_one_optimum),
      cmocka_unit_test(a_curved_valley_is_walked_to_its_end),
      cmocka_unit_test(grams_are_words_pairs_and_pieces),
      cmocka_unit_test(the_same_records_give_the_same_bytes),
      cmocka_unit_test(probabilities_mean_what_they_say),
      cmocka_unit_test(a_group_is_never_parted),
      cmocka_unit_test(records_that_cannot_be_learned_from_are_refused),
      cmocka_unit_test(too_much_is_refused_before_memory_is_taken),
      cmocka_unit_test(a_damaged_artefact_is_refused),
      cmocka_unit_test(odd_texts_are_answered),
      cmocka_unit_test(vectors_and_words_together_are_right_more_often),
      cmocka_unit_test(a_head_and_words_together_are_right_more_often),
      cmocka_unit_test(vectors_that_say_nothing_do_no_harm),
      cmocka_unit_test(vectors_leave_no_trace_of_order_and_threads),
      cmocka_unit_test(running_out_of_memory_is_an_error),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
