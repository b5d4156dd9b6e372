#include "support/tiny_model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <penstock/kernels.h>

#include "engine/gguf.h"

enum {
  EMBD = 64,
  HEADS = 4,
  KV_HEADS = 2,
  HEAD = 16,
  FF = 96,
  VOCAB = 288,
  CONTEXT = 2048,
  WINDOW = 16,
  MAX_TENSORS = 256
};

typedef struct tensor {
  char name[64];
  size_t rows, cols; /* rows 0: a row of floats */
} tensor;

/* What sets the architectures' files apart. */
typedef struct kind {
  const char *name;
  bool bias, head_norms, whole_norms, no_pre_norms, post_norms, fused, window;
  bool encoder, sum_norms, positions; /* sum_norms: BERT's order; positions: and its biases and plain feed-forward */
} kind;

static const kind kinds[] = {
    {.name = "llama"},
    {.name = "qwen2", .bias = true},
    {.name = "qwen3", .head_norms = true},
    {.name = "gemma2", .post_norms = true, .window = true},
    {.name = "gemma3", .head_norms = true, .post_norms = true, .window = true},
    {.name = "phi3", .fused = true, .window = true},
    {.name = "smollm3"},
    {.name = "granite"},
    {.name = "bert", .encoder = true, .bias = true, .no_pre_norms = true, .sum_norms = true, .positions = true},
    {.name = "nomic-bert", .encoder = true, .no_pre_norms = true, .sum_norms = true},
    {.name = "gemma-embedding", .encoder = true, .head_norms = true, .post_norms = true, .window = true},
    {.name = "olmo2", .head_norms = true, .whole_norms = true, .no_pre_norms = true, .post_norms = true},
};

typedef struct maker {
  const test_tiny *o;
  pst_engine_gguf_writer *w;
  const char *arch;
  kind kind;
  tensor tensors[MAX_TENSORS];
  int n_tensors;
} maker;

static bool dropped(const maker *m, const char *name) { return m->o->drop && !strcmp(m->o->drop, name); }

static void put_int(maker *m, const char *name, uint32_t value) {
  char key[128];
  snprintf(key, sizeof key, "%s.%s", m->arch, name);
  if (!dropped(m, key)) pst_engine_gguf_writer_put_u32(m->w, key, value);
}

static void put_float(maker *m, const char *name, float value) {
  char key[128];
  snprintf(key, sizeof key, "%s.%s", m->arch, name);
  if (!dropped(m, key)) pst_engine_gguf_writer_put_f32(m->w, key, value);
}

static void add(maker *m, int layer, const char *name, size_t rows, size_t cols) {
  tensor *t = &m->tensors[m->n_tensors];
  if (layer < 0)
    snprintf(t->name, sizeof t->name, "%s", name);
  else
    snprintf(t->name, sizeof t->name, "blk.%d.%s", layer, name);
  if (dropped(m, t->name)) return;
  t->rows = rows;
  t->cols = cols;
  m->n_tensors++;
}

/* Bytes stand for themselves as GPT-2 writes them: those that are no printable Latin-1 characters from U+0100 on. */
static void byte_token(int byte, char out[8]) {
  int code = byte;
  bool printable = (byte >= 33 && byte <= 126) || (byte >= 161 && byte != 173);
  if (!printable) {
    code = 256;
    for (int b = 0; b < byte; b++) code += !((b >= 33 && b <= 126) || (b >= 161 && b != 173));
  }
  if (code < 128)
    snprintf(out, 8, "%c", code);
  else
    snprintf(out, 8, "%c%c", 0xC0 | code >> 6, 0x80 | (code & 63));
}

static void put_tokenizer(maker *m) {
  static const char *const merges[] = {"e r", "i n", "t h", "th e", "o n", "a n", "e s", "o r"};
  static const char *const merged[] = {"er", "in", "th", "the", "on", "an", "es", "or"};
  static const char *const control[] = {"<|endoftext|>", "<|im_start|>", "<|im_end|>"};
  char texts[VOCAB][24];
  pst_str tokens[VOCAB], rules[PST_ARRAY_LEN(merges)];
  int32_t types[VOCAB];
  for (int i = 0; i < VOCAB; i++) {
    types[i] = 1;
    if (i < 256) {
      byte_token(i, texts[i]);
    } else if (i < 256 + (int)PST_ARRAY_LEN(merged)) {
      snprintf(texts[i], sizeof texts[i], "%s", merged[i - 256]);
    } else if (i < 256 + (int)PST_ARRAY_LEN(merged) + 3) {
      snprintf(texts[i], sizeof texts[i], "%s", control[i - 256 - (int)PST_ARRAY_LEN(merged)]);
      types[i] = 3;
    } else {
      snprintf(texts[i], sizeof texts[i], "<unused%d>", i);
      types[i] = 5;
    }
    tokens[i] = pst_str_from(texts[i]);
  }
  for (size_t i = 0; i < PST_ARRAY_LEN(merges); i++) rules[i] = pst_str_from(merges[i]);
  pst_engine_gguf_writer_put_str(m->w, "tokenizer.ggml.model", PST_STR("gpt2"));
  pst_engine_gguf_writer_put_str(m->w, "tokenizer.ggml.pre", PST_STR("gpt-2"));
  if (!dropped(m, "tokenizer.ggml.tokens"))
    pst_engine_gguf_writer_put_strs(m->w, "tokenizer.ggml.tokens", tokens, VOCAB);
  pst_engine_gguf_writer_put_array(m->w, "tokenizer.ggml.token_type", PST_ENGINE_GGUF_I32, types, VOCAB);
  pst_engine_gguf_writer_put_strs(m->w, "tokenizer.ggml.merges", rules, PST_ARRAY_LEN(merges));
  pst_engine_gguf_writer_put_u32(m->w, "tokenizer.ggml.bos_token_id", 265);
  pst_engine_gguf_writer_put_u32(m->w, "tokenizer.ggml.eos_token_id", 266);
  static const char chatml[] =
      "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
      "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
  const char *text = m->o->template_text ? m->o->template_text : chatml;
  if (*text) pst_engine_gguf_writer_put_str(m->w, "tokenizer.chat_template", pst_str_from(text));
}

void test_tiny_put_tokenizer(pst_engine_gguf_writer *writer) {
  const test_tiny plain = {0};
  maker m = {.o = &plain, .w = writer};
  put_tokenizer(&m);
}

static void put_keys(maker *m, int n_layers) {
  pst_engine_gguf_writer_put_str(m->w, "general.architecture", pst_str_from(m->arch));
  put_int(m, "block_count", (uint32_t)n_layers);
  put_int(m, "context_length", CONTEXT);
  put_int(m, "embedding_length", EMBD);
  put_int(m, "feed_forward_length", FF);
  put_int(m, "attention.head_count", HEADS);
  put_int(m, "attention.head_count_kv", m->kind.sum_norms ? HEADS : KV_HEADS);
  put_int(m, "attention.key_length", HEAD);
  put_int(m, "attention.value_length", HEAD);
  put_float(m, m->kind.sum_norms ? "attention.layer_norm_epsilon" : "attention.layer_norm_rms_epsilon", 1e-5f);
  if (!m->kind.positions) put_float(m, "rope.freq_base", 10000.0f);
  if (m->kind.sum_norms) pst_engine_gguf_writer_put_u32(m->w, "tokenizer.ggml.token_type_count", 2);
  if (m->o->pooling) put_int(m, "pooling_type", (uint32_t)m->o->pooling);
  if (m->o->dense) {
    put_int(m, "dense_2_feat_in", EMBD);
    put_int(m, "dense_2_feat_out", FF);
    put_int(m, "dense_3_feat_in", FF);
    put_int(m, "dense_3_feat_out", EMBD);
  }
  if (m->kind.window) put_int(m, "attention.sliding_window", WINDOW);
  if (!strcmp(m->arch, "granite")) {
    put_float(m, "embedding_scale", 3.0f);
    put_float(m, "residual_scale", 0.5f);
    put_float(m, "attention.scale", 0.125f);
    put_float(m, "logit_scale", 2.0f);
  }
  if (m->o->extra_key) pst_engine_gguf_writer_put_u32(m->w, m->o->extra_key, 7);
}

static void add_layer(maker *m, int i) {
  const kind *k = &m->kind;
  const size_t q = HEADS * HEAD, kv = (k->sum_norms ? HEADS : KV_HEADS) * HEAD;
  if (!k->no_pre_norms) add(m, i, "attn_norm.weight", 0, EMBD);
  if (k->fused) {
    add(m, i, "attn_qkv.weight", q + 2 * kv, EMBD);
  } else {
    add(m, i, "attn_q.weight", q, EMBD);
    add(m, i, "attn_k.weight", kv, EMBD);
    add(m, i, "attn_v.weight", kv, EMBD);
  }
  if (k->bias) {
    add(m, i, "attn_q.bias", 0, q);
    add(m, i, "attn_k.bias", 0, kv);
    add(m, i, "attn_v.bias", 0, kv);
  }
  add(m, i, "attn_output.weight", EMBD, q);
  if (!k->no_pre_norms) add(m, i, "ffn_norm.weight", 0, EMBD);
  if (!k->fused && !k->positions) add(m, i, "ffn_gate.weight", FF, EMBD);
  add(m, i, "ffn_up.weight", k->fused ? 2 * FF : FF, EMBD);
  add(m, i, "ffn_down.weight", EMBD, FF);
  if (k->head_norms) {
    add(m, i, "attn_q_norm.weight", 0, k->whole_norms ? q : HEAD);
    add(m, i, "attn_k_norm.weight", 0, k->whole_norms ? kv : HEAD);
  }
  if (k->positions) {
    add(m, i, "attn_output.bias", 0, EMBD);
    add(m, i, "ffn_up.bias", 0, FF);
    add(m, i, "ffn_down.bias", 0, EMBD);
  }
  if (k->sum_norms) {
    add(m, i, "attn_output_norm.weight", 0, EMBD);
    add(m, i, "attn_output_norm.bias", 0, EMBD);
    add(m, i, "layer_output_norm.weight", 0, EMBD);
    add(m, i, "layer_output_norm.bias", 0, EMBD);
  }
  if (k->post_norms) {
    add(m, i, "post_attention_norm.weight", 0, EMBD);
    add(m, i, "post_ffw_norm.weight", 0, EMBD);
  }
}

static void add_tensors(maker *m, int n_layers) {
  add(m, -1, "token_embd.weight", VOCAB, EMBD);
  if (!m->kind.sum_norms) add(m, -1, "output_norm.weight", 0, EMBD);
  if (m->kind.positions) add(m, -1, "position_embd.weight", CONTEXT, EMBD);
  if (m->kind.sum_norms) {
    add(m, -1, "token_types.weight", 2, EMBD);
    add(m, -1, "token_embd_norm.weight", 0, EMBD);
    add(m, -1, "token_embd_norm.bias", 0, EMBD);
  }
  if (m->o->dense) {
    add(m, -1, "dense_2.weight", FF, EMBD);
    add(m, -1, "dense_3.weight", EMBD, FF);
  }
  for (int i = 0; i < n_layers; i++) add_layer(m, i);
  if (m->o->extra_tensor) add(m, -1, m->o->extra_tensor, 8, EMBD);
}

/* splitmix64 from the FNV-1a hash of the name. */
uint64_t test_tiny_bits(const char *name, uint64_t seed, uint64_t i) {
  uint64_t h = 0xcbf29ce484222325u;
  for (; *name; name++) h = (h ^ (uint8_t)*name) * 0x100000001b3u;
  uint64_t z = h + (seed + i + 1) * 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

float test_tiny_element(const char *name, uint64_t seed, uint64_t i) {
  return (float)(test_tiny_bits(name, seed, i) >> 40) / 8388608.0f - 1.0f;
}

/* Norms lie around 1, everything else around 0. */
static void write_tensor(maker *m, const tensor *t, uint32_t type) {
  pst_error err = PST_ERROR_INIT;
  size_t length = strlen(t->name);
  float x[128], mean = length > 11 && !strcmp(t->name + length - 11, "norm.weight") ? 1.0f : 0.0f;
  uint8_t out[sizeof x];
  if (t->cols > PST_ARRAY_LEN(x)) abort();
  for (size_t k = 0; k < PST_MAX(t->rows, (size_t)1); k++) {
    for (size_t i = 0; i < t->cols; i++) x[i] = mean + 0.25f * test_tiny_element(t->name, m->o->seed, k * t->cols + i);
    if (pst_kernels_quantize_row(type, x, t->cols, NULL, out)) abort();
    if (pst_engine_gguf_writer_write(m->w, out, pst_kernels_row_bytes(type, t->cols), &err)) abort();
  }
}

void test_tiny_write(const char *path, const test_tiny *options) {
  maker m = {.o = options, .arch = options->architecture ? options->architecture : "llama"};
  pst_error err = PST_ERROR_INIT;
  const pst_kernels_type_row *type = pst_kernels_type_find(pst_str_from(options->type ? options->type : "F32"));
  int n_layers = options->n_layers ? options->n_layers : 2;
  m.kind = kinds[0]; /* an architecture that nobody knows is a llama by another name */
  for (size_t i = 0; i < PST_ARRAY_LEN(kinds); i++)
    if (!strcmp(kinds[i].name, m.arch)) m.kind = kinds[i];
  if (!type || pst_engine_gguf_writer_create(path, 32, &m.w, &err)) abort();
  put_keys(&m, n_layers);
  put_tokenizer(&m);
  add_tensors(&m, n_layers);
  for (int i = 0; i < m.n_tensors; i++) {
    uint64_t dims[2] = {m.tensors[i].cols, m.tensors[i].rows};
    bool row = m.tensors[i].rows == 0;
    pst_engine_gguf_writer_add_tensor(m.w, pst_str_from(m.tensors[i].name), row ? (uint32_t)PST_TYPE_F32 : type->type,
                                      row ? 1 : 2, dims);
  }
  for (int i = 0; i < m.n_tensors; i++)
    write_tensor(&m, &m.tensors[i], m.tensors[i].rows ? type->type : (uint32_t)PST_TYPE_F32);
  if (pst_engine_gguf_writer_finish(m.w, &err)) abort();
  pst_engine_gguf_writer_free(m.w);
}

void test_gguf_copy_tensors(pst_engine_gguf_writer *writer, const pst_engine_gguf *gguf) {
  pst_error err = PST_ERROR_INIT;
  size_t n = pst_engine_gguf_n_tensors(gguf);
  for (size_t i = 0; i < n; i++) {
    const pst_engine_gguf_tensor *t = pst_engine_gguf_tensor_at(gguf, i);
    pst_engine_gguf_writer_add_tensor(writer, t->name, t->type, t->n_dims, t->dims);
  }
  for (size_t i = 0; i < n; i++) {
    const pst_engine_gguf_tensor *t = pst_engine_gguf_tensor_at(gguf, i);
    if (pst_engine_gguf_writer_write(writer, t->data, t->bytes, &err)) abort();
  }
}
