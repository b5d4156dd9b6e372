/* Any bytes as text for three small tokenizers. The first byte chooses tokenizer and flags; the rest is text, cut into spans of changing
 * trust at each 0xFE byte. Holds: ids are in range; untrusted text forms no control token; the tokens spell the text again. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/tokenizer.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerInitialize(int *argc, char ***argv);

#define CHECK(condition)       \
  do {                         \
    if (!(condition)) abort(); \
  } while (0)

enum {
  TYPE_NORMAL = 1,
  TYPE_UNKNOWN,
  TYPE_CONTROL,
  TYPE_USER_DEFINED,
  TYPE_UNUSED,
  TYPE_BYTE,
  MAX_TOKENS = 1024,
  LACKING = 12, /* a tokenizer without some bytes, whose unknown token is a control token */
  N_TOKENIZERS
};

typedef struct vocabulary {
  char texts[MAX_TOKENS][32];
  int32_t types[MAX_TOKENS];
  float scores[MAX_TOKENS];
  size_t n;
  char merges[MAX_TOKENS][64];
  size_t n_merges;
} vocabulary;

static vocabulary made;
static pst_engine_tokenizer *tokenizers[N_TOKENIZERS];

static void add(const char *text, int32_t type) {
  CHECK(made.n < MAX_TOKENS);
  snprintf(made.texts[made.n], sizeof made.texts[0], "%s", text);
  made.types[made.n] = type;
  made.scores[made.n] = type == TYPE_NORMAL ? -(float)made.n : 0;
  made.n++;
}

static const char *const common_words[] = {"th", "the", "in",       "ing",          "er", "re",   "on", "at",
                                           "1",  "12",  "\xC3\xA9", "\xE4\xB8\xAD", "ab", "abab", "!!"};
static const char *const special_words[] = {"<s>", "</s>", "<|im_start|>", "<|im_end|>", "<|im"};

static void add_specials(void) {
  for (size_t i = 0; i < PST_ARRAY_LEN(special_words); i++) add(special_words[i], TYPE_CONTROL);
  add("<user>", TYPE_USER_DEFINED);
  add("\n\n", TYPE_USER_DEFINED);
}

/* Bytes as byte-level BPE spells them. */
static void spell(const char *bytes, size_t n, char *out) {
  size_t at = 0;
  for (size_t i = 0; i < n; i++) {
    unsigned b = (unsigned char)bytes[i];
    bool itself = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
    unsigned cp = itself ? b : b <= 0x20 ? 0x100 + b : b <= 0xA0 ? 0x121 + b - 0x7F : 0x143;
    at += pst_utf8_put(cp, out + at);
  }
  out[at] = 0;
}

static void merge(const char *left, const char *right) {
  char a[32], b[32], both[64];
  CHECK(made.n_merges < MAX_TOKENS);
  spell(left, strlen(left), a);
  spell(right, strlen(right), b);
  snprintf(made.merges[made.n_merges++], sizeof made.merges[0], "%s %s", a, b);
  snprintf(both, sizeof both, "%.30s%.30s", a, b);
  for (size_t i = 0; i < made.n; i++)
    if (strcmp(made.texts[i], both) == 0) return;
  add(both, TYPE_NORMAL);
}

static pst_engine_tokenizer *create(const char *model, const char *pre, int32_t unknown) {
  pst_str strings[MAX_TOKENS];
  char path[] = "/tmp/fuzz_tokenizer_XXXXXX";
  pst_engine_gguf_writer *w = NULL;
  pst_engine_gguf *g = NULL;
  pst_engine_tokenizer *t = NULL;
  int fd = mkstemp(path);
  CHECK(fd >= 0);
  close(fd);
  CHECK(pst_engine_gguf_writer_create(path, 32, &w, NULL) == 0);
  pst_engine_gguf_writer_put_str(w, "tokenizer.ggml.model", pst_str_from(model));
  if (pre) pst_engine_gguf_writer_put_str(w, "tokenizer.ggml.pre", pst_str_from(pre));
  if (unknown >= 0) pst_engine_gguf_writer_put_u32(w, "tokenizer.ggml.unknown_token_id", (uint32_t)unknown);
  for (size_t i = 0; i < made.n; i++) strings[i] = pst_str_from(made.texts[i]);
  pst_engine_gguf_writer_put_strs(w, "tokenizer.ggml.tokens", strings, made.n);
  pst_engine_gguf_writer_put_array(w, "tokenizer.ggml.token_type", PST_ENGINE_GGUF_I32, made.types, made.n);
  pst_engine_gguf_writer_put_array(w, "tokenizer.ggml.scores", PST_ENGINE_GGUF_F32, made.scores, made.n);
  for (size_t i = 0; i < made.n_merges; i++) strings[i] = pst_str_from(made.merges[i]);
  pst_engine_gguf_writer_put_strs(w, "tokenizer.ggml.merges", strings, made.n_merges);
  CHECK(pst_engine_gguf_writer_finish(w, NULL) == 0);
  pst_engine_gguf_writer_free(w);
  CHECK(pst_engine_gguf_open(path, &g, NULL) == 0);
  unlink(path);
  pst_error err = PST_ERROR_INIT;
  if (pst_engine_tokenizer_create(g, &t, &err) < 0) {
    fprintf(stderr, "%s: %s\n", err.place, err.message);
    abort();
  }
  pst_engine_gguf_close(g);
  return t;
}

static void make_bpe(bool lacking) {
  made = (vocabulary){0};
  for (int b = 0; b < 256; b++) {
    if (lacking && (b < 8 || b == '!' || b > 0xF0)) continue;
    char c = (char)b, text[8];
    spell(&c, 1, text);
    add(text, TYPE_NORMAL);
  }
  static const char *const pairs[][2] = {
      {"t", "h"}, {"th", "e"},          {" ", "the"},     {" ", " "}, {"  ", "  "}, {"i", "n"},       {"in", "g"},
      {"a", "b"}, {"ab", "ab"},         {"abab", "abab"}, {"!", "!"}, {"1", "2"},   {"\xC3", "\xA9"}, {"\n", "\n"},
      {"'", "s"}, {"\xE4\xB8", "\xAD"}, {"\xE4", "\xB8"}, {"a", "a"}, {"aa", "aa"}, {"<", "|"},       {"\r", "\n"}};
  /* A merge may only name tokens that are there. */
  merge("\xE4", "\xB8");
  for (size_t i = 0; i < PST_ARRAY_LEN(pairs); i++) {
    if (!lacking || pairs[i][0][0] != '!') merge(pairs[i][0], pairs[i][1]);
  }
  add_specials();
}

static void make_spm(void) {
  made = (vocabulary){0};
  char text[8];
  add("<unk>", TYPE_UNKNOWN);
  add_specials();
  for (int b = 0; b < 256; b++) {
    snprintf(text, sizeof text, "<0x%02X>", (unsigned)b);
    add(text, TYPE_BYTE);
  }
  add("\xE2\x96\x81", TYPE_NORMAL);
  for (size_t i = 0; i < PST_ARRAY_LEN(common_words); i++) add(common_words[i], TYPE_NORMAL);
  for (char c = '!'; c < 0x7F; c++) {
    text[0] = c;
    text[1] = 0;
    add(text, TYPE_NORMAL);
  }
  add("s>", TYPE_NORMAL);
  add("aa", TYPE_UNUSED);
  add("aaa", TYPE_NORMAL);
  add("\xE2\x96\x81\xE2\x96\x81", TYPE_NORMAL);
  add("\xE2\x96\x81the", TYPE_NORMAL);
}

static void make_wpm(void) {
  made = (vocabulary){0};
  char text[8];
  add("[UNK]", TYPE_CONTROL);
  add_specials();
  for (size_t i = 0; i < PST_ARRAY_LEN(common_words); i++) add(common_words[i], TYPE_NORMAL);
  for (char c = '!'; c < 0x7F; c++) {
    snprintf(text, sizeof text, "%c", c);
    add(text, TYPE_NORMAL);
    snprintf(text, sizeof text, "\xE2\x96\x81%c", c);
    add(text, TYPE_NORMAL);
  }
}

int LLVMFuzzerInitialize(int *argc, char ***argv) {
  static const char *const pres[] = {"gpt-2",        "smollm", "llama-bpe",   "qwen2",   "falcon",
                                     "deepseek-llm", "gpt-4o", "deepseek-v3", "default", "deepseek-coder"};
  (void)argc;
  (void)argv;
  make_bpe(true);
  tokenizers[LACKING] = create("gpt2", "smollm", (int32_t)(made.n - PST_ARRAY_LEN(special_words) - 2)); /* "<s>" */
  make_bpe(false);
  for (size_t i = 0; i < PST_ARRAY_LEN(pres); i++) tokenizers[i] = create("gpt2", pres[i], -1);
  make_spm();
  tokenizers[10] = create("llama", NULL, -1);
  make_wpm();
  tokenizers[11] = create("bert", NULL, -1);
  return 0;
}

static void check_text(const pst_engine_tokenizer *t, const pst_engine_span *spans, size_t n_spans,
                       const pst_engine_tokens *tokens) {
  const pst_engine_tokenizer_info *info = pst_engine_tokenizer_get_info(t);
  pst_buf in = PST_BUF_INIT, out = PST_BUF_INIT;
  pst_engine_text_stream stream = PST_ENGINE_TEXT_STREAM_INIT;
  for (size_t i = 0; i < n_spans; i++) pst_utf8_sanitize(spans[i].text, &in);
  for (size_t i = 0; i < tokens->n; i++)
    pst_engine_text_stream_push(&stream, pst_engine_tokenizer_bytes(t, tokens->ids[i]), &out);
  pst_engine_text_stream_finish(&stream, &out);
  CHECK(pst_utf8_valid(pst_buf_str(&out)));
  if (strcmp(info->model, "gpt2") == 0 && strcmp(info->pre, "qwen2") != 0 && t != tokenizers[LACKING])
    CHECK(pst_str_equal(pst_buf_str(&in), pst_buf_str(&out)));
  pst_buf_done(&in);
  pst_buf_done(&out);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n) {
  if (n < 1) return 0;
  const pst_engine_tokenizer *t = tokenizers[data[0] % N_TOKENIZERS];
  const unsigned control = PST_ENGINE_TOKEN_CONTROL;
  bool trust = (data[0] / N_TOKENIZERS) % 2, any_trusted = false;
  pst_engine_span spans[64];
  size_t n_spans = 0, start = 1;
  for (size_t i = 1; i <= n; i++) {
    if (i < n && (data[i] != 0xFE || n_spans >= PST_ARRAY_LEN(spans) - 1)) continue;
    spans[n_spans++] = (pst_engine_span){{(const char *)data + start, i - start}, trust};
    any_trusted = any_trusted || trust;
    trust = !trust;
    start = i + 1;
  }
  pst_engine_tokens tokens = {0};
  CHECK(pst_engine_tokenizer_encode_spans(t, spans, n_spans, 0, &tokens, NULL) == 0);
  /* Of text that no token covers the other kinds say so. */
  const pst_engine_tokenizer_info *info = pst_engine_tokenizer_get_info(t);
  int32_t unk = strcmp(info->model, "gpt2") == 0 ? -1 : info->unk;
  for (size_t i = 0; i < tokens.n; i++) {
    CHECK(tokens.ids[i] >= 0 && tokens.ids[i] < pst_engine_tokenizer_get_info(t)->n_vocab);
    if (!any_trusted && tokens.ids[i] != unk) CHECK(!(pst_engine_tokenizer_attributes(t, tokens.ids[i]) & control));
  }
  check_text(t, spans, n_spans, &tokens);
  pst_engine_tokens_done(&tokens);
  return 0;
}
