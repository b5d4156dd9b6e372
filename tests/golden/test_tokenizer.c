/* Tokenizers against their references on 100,000 generated strings each: every script, emoji, control characters, broken UTF-8, texts that
 * spell special tokens. tools/reference_tokenizers.py has the same generator and made the hashes, one for each 1,000 strings; where one
 * differs, its `strings` command shows the block's strings. Even strings are untrusted text, odd ones trusted: whatever stands in an even
 * one, none of its tokens is a control token. */
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>

#include <cmocka.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/tokenizer.h"
#include "support/temp.h"
#include "support/vocab.h"

#define FOLDER "tests/golden/tokenizer/"
enum { BLOCK = 1000 };

/* ---- the generator (the same in reference_tokenizers.py) ---------------------------------------------------------- */

typedef struct lines {
  char *data;
  pst_str *at;
  size_t n, capacity;
} lines;

typedef struct generator {
  lines phrases, specials, marks;
  uint32_t (*ranges)[2];
  size_t n_ranges;
  uint64_t x; /* splitmix64 */
} generator;

static lines read_lines(const char *name) {
  char path[256];
  lines l = {0};
  size_t n;
  pst_error err = PST_ERROR_INIT;
  snprintf(path, sizeof path, FOLDER "%s", name);
  if (pst_file_read(path, 1 << 20, &l.data, &n, &err) < 0) fail_msg("%s: %s", err.place, err.message);
  for (size_t at = 0; at < n;) {
    char *end = memchr(l.data + at, '\n', n - at);
    size_t stop = end ? (size_t)(end - l.data) : n;
    assert_int_equal(pst_array_reserve((void **)&l.at, &l.capacity, l.n + 1, sizeof *l.at), 0);
    l.at[l.n++] = (pst_str){l.data + at, stop - at};
    at = stop + 1;
  }
  return l;
}

static void lines_done(lines *l) {
  pst_free(l->data);
  pst_free(l->at);
}

static generator generator_make(const char *ranges) {
  generator g = {
      .phrases = read_lines("phrases.txt"), .specials = read_lines("specials.txt"), .marks = read_lines("marks.txt")};
  lines l = read_lines(ranges);
  g.ranges = pst_calloc(l.n, sizeof *g.ranges);
  assert_non_null(g.ranges);
  for (size_t i = 0; i < l.n; i++) {
    assert_int_equal(sscanf(l.at[i].data, "%x %x", &g.ranges[i][0], &g.ranges[i][1]), 2);
    g.n_ranges++;
  }
  lines_done(&l);
  return g;
}

static void generator_done(generator *g) {
  lines_done(&g->phrases);
  lines_done(&g->specials);
  lines_done(&g->marks);
  pst_free(g->ranges);
}

static uint32_t below(generator *g, size_t n) {
  g->x += 0x9E3779B97F4A7C15u;
  uint64_t z = g->x;
  z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
  z = (z ^ z >> 27) * 0x94D049BB133111EBu;
  return (uint32_t)((z ^ z >> 31) % n);
}

static void put_cp(pst_buf *out, uint32_t cp) {
  char bytes[4];
  pst_buf_append(out, bytes, pst_utf8_put(cp, bytes));
}

static void put_line(generator *g, const lines *l, pst_buf *out) { pst_buf_append_str(out, l->at[below(g, l->n)]); }

static void put_phrase(generator *g, pst_buf *out) {
  pst_str phrase = g->phrases.at[below(g, g->phrases.n)];
  if (!below(g, 4)) {
    size_t start = below(g, phrase.n + 1);
    phrase = (pst_str){phrase.data + start, below(g, phrase.n - start + 1)};
  }
  pst_buf_append_str(out, phrase);
}

static void put_emoji(generator *g, pst_buf *out) {
  static const uint32_t ranges[][2] = {{0x1F300, 0x1F64F}, {0x1F680, 0x1F6C5}, {0x1F900, 0x1F9FF}, {0x2600, 0x26FF}};
  const uint32_t *r = ranges[below(g, PST_ARRAY_LEN(ranges))];
  put_cp(out, r[0] + below(g, r[1] - r[0] + 1));
  switch (below(g, 5)) {
  case 0: put_cp(out, 0x1F3FB + below(g, 5)); break;
  case 1: put_cp(out, 0xFE0F); break;
  case 2:
    put_cp(out, 0x200D);
    put_cp(out, r[0] + below(g, r[1] - r[0] + 1));
    break;
  case 3:
    put_cp(out, 0x1F1E6 + below(g, 26));
    put_cp(out, 0x1F1E6 + below(g, 26));
    break;
  default: break;
  }
}

static void put_piece(generator *g, pst_buf *out) {
  static const uint32_t spaces[] = {0x20,   0x20,   0x20,   0x09, 0x0A, 0x0A,   0x0D,   0xA0,
                                    0x2003, 0x3000, 0x2028, 0x85, 0x0B, 0x200B, 0x2581, 0x0C};
  static const uint32_t digits[] = {0x30, 0x30, 0x30, 0x660, 0x966, 0xFF10, 0x1D7CE, 0x2460};
  static const char *const broken[] = {"\xC0\x80",     "\xED\xA0\x80", "\xF4\x90\x80\x80",     "\xE2\x82",
                                       "\xF0\x9F\x98", "\xFE",         "\xF8\x88\x80\x80\x80", "\xC3"};
  uint32_t kind = below(g, 16), n, base;
  if (kind < 4) {
    put_phrase(g, out);
  } else if (kind < 7) {
    const uint32_t *r = g->ranges[below(g, g->n_ranges)];
    for (n = 1 + below(g, 12); n; n--) put_cp(out, r[0] + below(g, r[1] - r[0] + 1));
  } else if (kind == 7) {
    for (n = 1 + below(g, 16); n; n--) pst_buf_putc(out, (char)(0x20 + below(g, 95)));
  } else if (kind == 8) {
    for (n = 1 + below(g, 6); n; n--) put_cp(out, spaces[below(g, PST_ARRAY_LEN(spaces))]);
  } else if (kind == 9) {
    base = digits[below(g, PST_ARRAY_LEN(digits))];
    for (n = 1 + below(g, 7); n; n--) put_cp(out, base + below(g, 10));
  } else if (kind == 10) {
    for (n = 1 + below(g, 3); n; n--) put_emoji(g, out);
  } else if (kind == 11) {
    for (n = 1 + below(g, 4); n; n--) {
      uint32_t c = below(g, 0x41);
      put_cp(out, c < 0x20 ? c : c - 0x20 + 0x7F);
    }
  } else if (kind == 12) {
    for (n = 1 + below(g, 4); n; n--) pst_buf_putc(out, (char)(0x80 + below(g, 128)));
  } else if (kind == 13) {
    pst_buf_puts(out, broken[below(g, PST_ARRAY_LEN(broken))]);
  } else {
    put_line(g, kind == 14 ? &g->specials : &g->marks, out);
  }
}

static void put_string(generator *g, uint64_t index, pst_buf *out) {
  g->x = index * 0xD1342543DE82EF95u + 0x50656E73746F636Bu;
  for (uint32_t n = 1 + below(g, 8); n; n--) put_piece(g, out);
}

/* ---- comparison --------------------------------------------------------------------------------------------------- */

/* In WordPiece the token for a word that cannot be spelled is a control token by type: it says nothing but that. */
static void check_untrusted(const pst_engine_tokenizer *t, const pst_engine_tokens *tokens, uint64_t index) {
  const pst_engine_tokenizer_info *info = pst_engine_tokenizer_get_info(t);
  const bool word_piece = strcmp(info->model, "bert") == 0;
  for (size_t i = 0; i < tokens->n; i++) {
    if (word_piece && tokens->ids[i] == info->unk) continue;
    if (pst_engine_tokenizer_attributes(t, tokens->ids[i]) & PST_ENGINE_TOKEN_CONTROL)
      fail_msg("string %llu is not trusted, but token %d of it is a control token", (unsigned long long)index,
               (int)tokens->ids[i]);
  }
}

/* SHA-256 over each string's ids and a -1, little-endian; its first 16 digits. */
static void hash_block(const pst_engine_tokenizer *t, generator *g, uint64_t block, char ret_hex[17]) {
  pst_sha256 hash;
  uint8_t digest[32];
  pst_buf text = PST_BUF_INIT;
  pst_engine_tokens tokens = {0};
  const int32_t mark = -1;
  pst_sha256_init(&hash);
  for (uint64_t i = block * BLOCK; i < (block + 1) * BLOCK; i++) {
    pst_buf_clear(&text);
    tokens.n = 0;
    put_string(g, i, &text);
    assert_int_equal(pst_buf_status(&text), 0);
    assert_int_equal(
        pst_engine_tokenizer_encode(t, pst_buf_str(&text), i % 2 ? PST_ENGINE_ENCODE_SPECIAL : 0, &tokens, NULL), 0);
    if (i % 2 == 0) check_untrusted(t, &tokens, i);
    if (tokens.n) pst_sha256_update(&hash, tokens.ids, tokens.n * sizeof *tokens.ids);
    pst_sha256_update(&hash, &mark, sizeof mark);
  }
  pst_sha256_done(&hash, digest);
  char hex[65];
  pst_hex(digest, 32, hex);
  memcpy(ret_hex, hex, 16);
  ret_hex[16] = 0;
  pst_buf_done(&text);
  pst_engine_tokens_done(&tokens);
}

static void check_golden(const pst_engine_tokenizer *t, const char *name) {
  char file[128], ranges[64], hex[17];
  int n_different = 0;
  snprintf(file, sizeof file, "%s.golden", name);
  lines golden = read_lines(file);
  assert_true(golden.n >= 102); /* a comment, the ranges' file, 100 hashes or more */
  snprintf(ranges, sizeof ranges, "%.*s", (int)golden.at[1].n, golden.at[1].data);
  generator g = generator_make(ranges);
  for (size_t i = 2; i < golden.n; i++) {
    hash_block(t, &g, i - 2, hex);
    if (pst_str_is(golden.at[i], hex)) continue;
    fprintf(stderr, "%s: strings %zu to %zu differ from the reference\n", name, (i - 2) * BLOCK, (i - 1) * BLOCK - 1);
    n_different++;
  }
  generator_done(&g);
  lines_done(&golden);
  assert_int_equal(n_different, 0);
}

static void check_file(pst_engine_gguf *g, const char *name) {
  pst_error err = PST_ERROR_INIT;
  pst_engine_tokenizer *t = NULL;
  if (pst_engine_tokenizer_create(g, &t, &err) < 0) fail_msg("%s: %s", err.place, err.message);
  pst_engine_gguf_close(g);
  check_golden(t, name);
  pst_engine_tokenizer_free(t);
}

static void check_model(const char *variable, const char *name) {
  const char *path = getenv(variable);
  pst_error err = PST_ERROR_INIT;
  pst_engine_gguf *g = NULL;
  if (!path || !pst_file_exists(path)) {
    printf("%s names no model file\n", variable);
    skip();
  }
  if (pst_engine_gguf_open(path, &g, &err) < 0) fail_msg("%s: %s", err.place, err.message);
  check_file(g, name);
}

static void check_vocabulary(const char *name) {
  uint8_t *data;
  size_t n;
  pst_error err = PST_ERROR_INIT;
  pst_engine_gguf *g = NULL;
  if (!test_vocab_unpack(name, &data, &n)) skip();
  if (pst_engine_gguf_open_memory(data, n, name, &g, &err) < 0) fail_msg("%s", err.message);
  check_file(g, name);
  pst_free(data);
}

typedef struct scored {
  double score;
  uint64_t id;
} scored;

static int compare_scored(const void *a, const void *b) {
  const scored *x = a, *y = b;
  if (x->score != y->score) return x->score > y->score ? -1 : 1;
  return x->id < y->id ? -1 : x->id > y->id;
}

static const pst_engine_gguf_value *array_of(const pst_engine_gguf *g, const char *key, pst_engine_gguf_class class) {
  const pst_engine_gguf_value *v = NULL;
  assert_int_equal(pst_engine_gguf_get_array(g, key, class, &v, NULL), 0);
  return v;
}

static bool is_normal(const pst_engine_tokenizer *t, const char *text, size_t n) {
  int32_t id = pst_engine_tokenizer_find(t, (pst_str){text, n});
  return id >= 0 && pst_engine_tokenizer_attributes(t, id) == 0;
}

/* A SentencePiece vocabulary as BPE over characters: all pairs of normal tokens that make one, best score first. */
static void put_characters(pst_engine_gguf_writer *w, const pst_engine_gguf *g, const pst_engine_tokenizer *t) {
  const pst_engine_gguf_value *tokens = array_of(g, "tokenizer.ggml.tokens", PST_ENGINE_GGUF_STRINGS);
  const pst_engine_gguf_value *types = array_of(g, "tokenizer.ggml.token_type", PST_ENGINE_GGUF_INTEGERS);
  const pst_engine_gguf_value *scores = array_of(g, "tokenizer.ggml.scores", PST_ENGINE_GGUF_NUMBERS);
  size_t n_merges = 0, capacity = 0, n = tokens->n;
  pst_str *rows = pst_calloc(n, sizeof *rows), *merges = NULL;
  int32_t *kinds = pst_calloc(n, sizeof *kinds);
  scored *order = pst_calloc(n, sizeof *order);
  pst_arena *arena = pst_arena_create();
  for (uint64_t i = 0; i < n; i++) {
    rows[i] = pst_engine_gguf_value_str(tokens, i);
    kinds[i] = (int32_t)pst_engine_gguf_value_i64(types, i);
    order[i] = (scored){pst_engine_gguf_value_f64(scores, i), i};
  }
  qsort(order, n, sizeof *order, compare_scored);
  for (uint64_t i = 0; i < n; i++) {
    pst_str text = rows[order[i].id];
    size_t k = 0;
    while (kinds[order[i].id] == 1 && (pst_utf8_next(text.data, text.n, &k), k < text.n)) {
      if (!is_normal(t, text.data, k) || !is_normal(t, text.data + k, text.n - k)) continue;
      const char *pair = pst_arena_printf(arena, "%.*s %.*s", (int)k, text.data, (int)(text.n - k), text.data + k);
      assert_int_equal(pst_array_reserve((void **)&merges, &capacity, n_merges + 1, sizeof *merges), 0);
      merges[n_merges++] = pst_str_from(pair);
    }
  }
  pst_engine_gguf_writer_put_str(w, "tokenizer.ggml.model", PST_STR("gemma4"));
  pst_engine_gguf_writer_put_strs(w, "tokenizer.ggml.tokens", rows, n);
  pst_engine_gguf_writer_put_array(w, "tokenizer.ggml.token_type", PST_ENGINE_GGUF_I32, kinds, n);
  pst_engine_gguf_writer_put_strs(w, "tokenizer.ggml.merges", merges, n_merges);
  pst_arena_free(arena);
  pst_free(rows);
  pst_free(kinds);
  pst_free(order);
  pst_free(merges);
}

static void check_characters(const char *vocabulary, const char *name) {
  uint8_t *data;
  size_t n;
  pst_error err = PST_ERROR_INIT;
  pst_engine_gguf *g = NULL;
  pst_engine_tokenizer *t = NULL;
  pst_engine_gguf_writer *w = NULL;
  if (!test_vocab_unpack(vocabulary, &data, &n)) skip();
  char *dir = test_temp_dir();
  const char *path = test_temp_path(dir, "characters.gguf");
  assert_int_equal(pst_engine_gguf_open_memory(data, n, vocabulary, &g, &err), 0);
  assert_int_equal(pst_engine_tokenizer_create(g, &t, &err), 0);
  assert_int_equal(pst_engine_gguf_writer_create(path, 32, &w, &err), 0);
  put_characters(w, g, t);
  if (pst_engine_gguf_writer_finish(w, &err)) fail_msg("%s", err.message);
  pst_engine_gguf_writer_free(w);
  pst_engine_tokenizer_free(t);
  pst_engine_gguf_close(g);
  pst_free(data);
  if (pst_engine_gguf_open(path, &g, &err) < 0) fail_msg("%s", err.message);
  check_file(g, name);
  test_temp_remove(dir);
}

#define GOLDEN_TEST(function, call)    \
  static void function(void **state) { \
    (void)state;                       \
    call;                              \
  }
GOLDEN_TEST(test_smollm2, check_model("PENSTOCK_TEST_SMOLLM2", "smollm2"))
GOLDEN_TEST(test_gemma3, check_model("PENSTOCK_TEST_GEMMA3", "gemma3"))
GOLDEN_TEST(test_gpt2, check_vocabulary("gpt-2"))
GOLDEN_TEST(test_llama_spm, check_vocabulary("llama-spm"))
GOLDEN_TEST(test_phi3, check_vocabulary("phi-3"))
GOLDEN_TEST(test_llama_bpe, check_vocabulary("llama-bpe"))
GOLDEN_TEST(test_qwen2, check_vocabulary("qwen2"))
GOLDEN_TEST(test_starcoder, check_vocabulary("starcoder"))
GOLDEN_TEST(test_deepseek_llm, check_vocabulary("deepseek-llm"))
GOLDEN_TEST(test_falcon, check_vocabulary("falcon"))
GOLDEN_TEST(test_bert, check_vocabulary("bert-bge"))
GOLDEN_TEST(test_characters, check_characters("llama-spm", "characters"))

int main(void) {
  const struct CMUnitTest tests[] = {
      cmocka_unit_test(test_smollm2),   cmocka_unit_test(test_gemma3),    cmocka_unit_test(test_gpt2),
      cmocka_unit_test(test_llama_spm), cmocka_unit_test(test_phi3),      cmocka_unit_test(test_llama_bpe),
      cmocka_unit_test(test_qwen2),     cmocka_unit_test(test_starcoder), cmocka_unit_test(test_deepseek_llm),
      cmocka_unit_test(test_falcon),    cmocka_unit_test(test_bert),      cmocka_unit_test(test_characters),
  };
  return cmocka_run_group_tests(tests, NULL, NULL);
}
