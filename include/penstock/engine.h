/* Penstock engine: one open model on one machine.
 *
 * A pst_engine_model is a file made ready (weights packed for this CPU, tokenizer, template): immutable, counted, shared by threads.
 * A pst_engine runs one model with one configuration: its own thread owns the KV pages, the scheduler and all sequences; requests
 * come in from any thread and answers go out through one callback on the engine's thread.
 *
 * Exactness: a request's logits are bit-identical alone, in any batch, in any prefill chunking, on any number of threads, with or
 * without prefix reuse and greedy speculation. A random draw is a function of (seed, choice, position). */
#ifndef PENSTOCK_ENGINE_H
#define PENSTOCK_ENGINE_H

#include <penstock/base.h>
#include <penstock/chat.h>

#ifdef __cplusplus
extern "C" {
#endif

/* ---- models ----------------------------------------------------------------------------------------------------- */

typedef struct pst_engine_model pst_engine_model;

typedef struct pst_engine_model_info {
  const char *path, *architecture, *name; /* owned by the model */
  const char *weights;                    /* the type most weight bytes have, e.g. "Q4_1" */
  const char *isa;                        /* kernels in use: "scalar", "avx2", "avx512", ... */
  int64_t n_params, file_bytes, packed_bytes;
  int n_layers, n_embd, n_ff, n_heads, n_kv_heads, head_dim, n_vocab, n_ctx_train;
  int n_dims;   /* of an encoder's embeddings; 0: the model generates text */
  int min_dims; /* embeddings may be cut to so many elements and normalised anew; n_dims: they may not */
  int bos, eos; /* token ids; -1: none */
  bool has_template;
  int64_t kv_bytes_per_token_f16; /* all layers, K and V */
  int64_t
      state_bytes; /* of a sequence's recurrent state. Such a model shares no prefixes and takes no drafts. 0: it has none */
  int64_t step_bytes; /* weights that a step for one greedy token reads: a head's screen in place of the head */
} pst_engine_model_info;

/* Opens, checks and packs a GGUF file. Packing uses n_threads (0: pst_cpu_count()). Errors: PST_E_IO, PST_E_BAD_INPUT (malformed, with the
 * place), PST_E_UNSUPPORTED (architecture, type or key, by name), PST_E_NOMEM. Counted: one reference for the caller. */
int pst_engine_model_open(const char *path, int n_threads, pst_engine_model **ret_model, pst_error *err);
/* The same, and what was packed is kept in the directory `packed_dir` (made when missing), where the next open of the same file maps it: opening
 * takes milliseconds, and processes share the memory. Files there may be deleted at any time. Whatever is wrong there is logged, never an error. */
int pst_engine_model_open_kept(const char *path, const char *packed_dir, int n_threads, pst_engine_model **ret_model,
                               pst_error *err);
/* Whether a file is an encoder's, by its architecture alone; no weight is read. False too for what cannot be opened. */
bool pst_engine_model_encodes(const char *path);
pst_engine_model *pst_engine_model_ref(pst_engine_model *model);
void pst_engine_model_unref(pst_engine_model *model); /* NULL is fine */
const pst_engine_model_info *pst_engine_model_get_info(const pst_engine_model *model);

/* What `inspect` shows, without packing anything: JSON object text appended to *out: format, architecture, types, tokenizer, template, memory
 * needed for one sequence of n_ctx tokens (0: the lesser of the model's context and 8192), metadata, tensors. A sound file that this program cannot run is no error:
 * "runs" is false and "problem" says why. Errors: PST_E_IO and its kin, PST_E_BAD_INPUT (malformed), PST_E_NOMEM. */
int pst_engine_inspect(const char *path, int n_ctx, pst_buf *out, pst_error *err);
/* Reads every weight: PST_E_CORRUPT names the first tensor with one that is not finite (a damaged scale). progress: as for quantize. */
int pst_engine_check_weights(const char *path, pst_progress *progress, pst_error *err);
/* Re-quantizes a GGUF file's matrices to `type` (F32 F16 BF16 Q8_0 Q4_0 Q4_1 Q5_0 Q5_1 Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS, letter case ignored), everything else copied;
 * whole file or nothing. Rows that the type's block does not divide fall back as the field does (Q4_K to Q5_0, Q5_K to Q5_1, Q6_K to Q8_0; those of 32
 * to F16); such tensors are counted in *ret_n_fallback (NULL: not wanted). `progress`: begun and ended by the caller, counts bytes read; its total is
 * set here; NULL: silent. Replaces a file at out_path; refuses in_path itself. Errors: those of opening; PST_E_UNSUPPORTED (type), PST_E_BAD_INPUT
 * (a weight that is not finite), PST_E_LIMIT (one beyond the type's range), PST_E_NO_SPACE, PST_E_IO. Any thread; computes in the process's pool. */
int pst_engine_quantize(const char *in_path, const char *out_path, const char *type, pst_progress *progress,
                        int *ret_n_fallback, pst_error *err);

/* ---- LoRA adapters as files (engine/lora.c, engine/lora_peft.c) ---------------------------------------------------- */

/* What a matrix of the base gets on top: y += scale * b (a x). Hu et al. 2021, arXiv:2106.09685. */
typedef struct pst_engine_lora_target {
  char *name; /* of the base's tensor as in its GGUF file: "blk.0.attn_q.weight" */
  int rank, n_in, n_out;
  float *a; /* [rank][n_in] */
  float *
      b; /* [n_out][rank]; rows in the order of the GGUF file's tensor, which for some architectures is not that of PEFT */
} pst_engine_lora_target;

/* What may be said of an adapter. base and data are content hashes (SHA-256, hexadecimal). prompt: how it was trained to be asked, as JSON with the members `layout` and
 * `prompt` of a plan's node: {"layout": "plain", "prompt": {"name": "tuned", "input_key": "Message", "answer_key": "Answer"}}. codes: by which it answers
 * (pst_engine_codes_write); unlike the others this says something of what it computes. */
typedef enum pst_engine_lora_note {
  PST_ENGINE_LORA_NAME,
  PST_ENGINE_LORA_BASE,
  PST_ENGINE_LORA_DATA,
  PST_ENGINE_LORA_RUN,
  PST_ENGINE_LORA_PROMPT,
  PST_ENGINE_LORA_CODES,
  PST_ENGINE_LORA_NOTES,
} pst_engine_lora_note;

/* An adapter in the caller's memory, to be read, written and trained. Plain data, owned by one thread; starts as {0}. */
typedef struct pst_engine_lora {
  char *architecture; /* of the base: "llama" */
  float alpha;        /* scale is alpha / rank; 0: scale is 1 */
  pst_engine_lora_target *targets;
  size_t n_targets, capacity;
  char *notes[PST_ENGINE_LORA_NOTES]; /* UTF-8; NULL: nothing is said */
} pst_engine_lora;

void pst_engine_lora_done(pst_engine_lora *lora); /* frees everything inside; {0} again */
double pst_engine_lora_scale(const pst_engine_lora *lora, const pst_engine_lora_target *target);
/* One target more, a and b all zeros; *ret_target (NULL: not wanted) is good until the next one. The name is copied. PST_E_BAD_INPUT: a name that is there
 * already or a size out of range; PST_E_NOMEM. */
int pst_engine_lora_add(pst_engine_lora *lora, pst_str name, int rank, int n_in, int n_out,
                        pst_engine_lora_target **ret_target, pst_error *err);
/* Replaces a note; the text is copied. NULL text: nothing is said. PST_E_NOMEM. */
int pst_engine_lora_set_note(pst_engine_lora *lora, pst_engine_lora_note note, const char *text, pst_error *err);

/* Reads an adapter: a GGUF file as llama.cpp's converter makes them, or PEFT's adapter_model.safetensors beside its adapter_config.json (the path of the folder or
 * of the safetensors file). base: the model that it is for, asked about architecture, layers and heads; a GGUF file can be read without (NULL). Whether the
 * targets' shapes are the model's is not asked here. What changes more than the linear layers' products (DoRA, modules_to_save, biases, embeddings, ...) is refused
 * by name. *ret_lora becomes the caller's. Errors: PST_E_IO and its kin, PST_E_BAD_INPUT (malformed, with the place), PST_E_UNSUPPORTED, PST_E_LIMIT, PST_E_NOMEM. */
int pst_engine_lora_read(const char *path, const pst_engine_model_info *base, pst_engine_lora *ret_lora,
                         pst_error *err);
/* Whether weights of a model could take the adapter in: PST_E_BAD_INPUT (it is for another architecture), PST_E_UNSUPPORTED (it answers in codes, which nobody would
 * expand any more). path: of the adapter, for the error. */
int pst_engine_lora_check_merge(const pst_engine_lora *lora, const pst_engine_model_info *base, const char *path,
                                pst_error *err);
/* A GGUF adapter of float32, whole or not at all; replaces a file at `path`. PST_E_BAD_INPUT: no architecture, no target; else as writing files. */
int pst_engine_lora_write_gguf(const pst_engine_lora *lora, const char *path, pst_error *err);
/* A folder as PEFT's save_pretrained makes it, for the text model's class, whole or not at all. base as for reading. PST_E_EXISTS: something is at `path`;
 * PST_E_UNSUPPORTED: the architecture or a tensor has no name in PEFT. */
int pst_engine_lora_write_peft(const pst_engine_lora *lora, const pst_engine_model_info *base, const char *path,
                               pst_error *err);

/* ---- adapters that requests can name (engine/adapter.c) ----------------------------------------------------------- */

/* An adapter made ready for a model: packed for this CPU, in floats beside float matrices, in four bits beside quantized ones of up to six bits a weight, in eight
 * beside others (docs/notes/adapters.md has what that costs). Immutable, counted, shared by threads; any number may be loaded, and requests of one engine may each
 * name another. */
typedef struct pst_engine_adapter pst_engine_adapter;
enum { PST_ENGINE_ADAPTER_MAX_RANK = 256 };

typedef struct pst_engine_adapter_info {
  const char *notes[PST_ENGINE_LORA_NOTES]; /* owned by the adapter; NULL: nothing is said */
  int n_targets, rank;                      /* the largest */
  int n_codes;                              /* by which it answers; 0: in plain tokens */
  int64_t bytes;                            /* of packed weights: what a step with it reads beside the base's */
} pst_engine_adapter_info;

/* Reads and packs an adapter for a model. Errors: those of pst_engine_lora_read; PST_E_BAD_INPUT (made for another architecture or for other shapes), PST_E_UNSUPPORTED (a
 * tensor whose product takes no adapter here: experts, recurrences, the head), PST_E_LIMIT (rank). Codes that the model's vocabulary does not have are
 * PST_E_BAD_INPUT too. One reference for the caller. */
int pst_engine_adapter_open(const pst_engine_model *model, const char *path, pst_engine_adapter **ret_adapter,
                            pst_error *err);
/* Reads an adapter and says whether it is one for the model in a file, of which no weight is read. Errors as pst_engine_adapter_open. *ret_lora becomes the
 * caller's. */
int pst_engine_adapter_read(const char *model_path, const char *path, pst_engine_lora *ret_lora, pst_error *err);
/* pst_engine_adapter_open from memory; `lora` stays the caller's. */
int pst_engine_adapter_create(const pst_engine_model *model, const pst_engine_lora *lora,
                              pst_engine_adapter **ret_adapter, pst_error *err);
pst_engine_adapter *pst_engine_adapter_ref(pst_engine_adapter *adapter);
void pst_engine_adapter_unref(pst_engine_adapter *adapter); /* NULL is fine */
const pst_engine_adapter_info *pst_engine_adapter_get_info(const pst_engine_adapter *adapter);

/* A GGUF file of a model with an adapter added to its matrices: a matrix with a target is dequantized, gets scale * b a in float32 and is quantized again, to `type` as in
 * pst_engine_quantize, or to the type it has (NULL); all others are as pst_engine_quantize leaves them. Errors: those of quantizing and of opening
 * the adapter; PST_E_UNSUPPORTED: type NULL, and a matrix has a type that is not written here; an adapter that answers in codes, which nobody would expand. */
int pst_engine_merge(const char *in_path, const char *adapter_path, const char *out_path, const char *type,
                     pst_progress *progress, int *ret_n_fallback, pst_error *err);

/* ---- a file with tensors of the caller's (engine/replace.c) --------------------------------------------------------- */

typedef struct pst_engine_tensor {
  const char *name; /* as in the GGUF file */
  uint32_t type;    /* number in GGUF (pst_kernels_type) */
  size_t n_rows, n_cols;
  const void *data; /* [n_rows] rows of the type; not read by pst_engine_replace_measure */
} pst_engine_tensor;
/* Bytes of all tensors, and their elements, of the file that pst_engine_replace would write. Errors as there, but for writing. */
int pst_engine_replace_measure(const char *in_path, const pst_engine_tensor *given, size_t n, int64_t *ret_bytes,
                               int64_t *ret_elements, pst_error *err);
/* A GGUF file or checkpoint's folder written as a GGUF file in which tensors are the given ones; all others and the metadata are copied. Whole or not at all;
 * replaces a file at out_path, refuses in_path itself. note (NULL: none): kept as penstock.calibrated. Errors: those of opening; PST_E_BAD_INPUT (no such tensor, other
 * dimensions), PST_E_UNSUPPORTED (rows that are no blocks of the type), PST_E_NO_SPACE, PST_E_IO. */
int pst_engine_replace(const char *in_path, const char *out_path, const pst_engine_tensor *given, size_t n,
                       const char *note, pst_error *err);

/* ---- a file with fewer layers (engine/drop_layers.c) ---------------------------------------------------------------- */

/* Writes in_path to out_path without the layers dropped[n], numbers from 0; those behind move up, and block_count is what is left. Whole or not at all; replaces a file at out_path,
 * refuses in_path itself. note (NULL: none): kept as penstock.pruned. Errors: those of opening; PST_E_BAD_INPUT (no such layer, one twice, all of them), PST_E_UNSUPPORTED (the file
 * has a value for each layer), as writing files. */
int pst_engine_drop_layers(const char *in_path, const char *out_path, const int *dropped, size_t n, const char *note,
                           pst_error *err);

/* ---- a decoder's weights as numbers (engine/decoder.c) -------------------------------------------------------------- */

/* The linear layers of a decoder's layer: queries, keys, values, attention's output, and the gated feed-forward branch. */
typedef enum pst_engine_role {
  PST_ENGINE_ROLE_Q,
  PST_ENGINE_ROLE_K,
  PST_ENGINE_ROLE_V,
  PST_ENGINE_ROLE_O,
  PST_ENGINE_ROLE_GATE,
  PST_ENGINE_ROLE_UP,
  PST_ENGINE_ROLE_DOWN,
  PST_ENGINE_ROLE_COUNT
} pst_engine_role;
/* "attn_q": the tensor of layer i is "blk.<i>.attn_q.weight" in a GGUF file. */
const char *pst_engine_role_name(pst_engine_role role);

/* Position p turns a head's pair i by p * scale * base^(-2i/n_rot) / factors[i], and stretches it by magnitude. */
typedef struct pst_engine_turn {
  double base, scale, magnitude;
  const float *factors; /* [n_rot / 2]; NULL: ones */
  int n_rot;
  bool neighbours; /* elements 2i and 2i + 1 are a pair; else i and i + n_rot / 2 */
} pst_engine_turn;

typedef struct pst_engine_affine {
  const float *weight, *bias; /* [n_embd]; weight NULL: there is none */
} pst_engine_affine;

/* NULL: the layer does without. */
typedef struct pst_engine_decoder_layer {
  const float *attn_norm, *post_attn_norm, *ffn_norm, *post_ffn_norm; /* [n_embd] */
  const float *q_norm, *k_norm;                  /* [head_dim], each head by itself, before turning */
  const float *bias[PST_ENGINE_ROLE_COUNT];      /* [rows] */
  pst_engine_affine attn_sum_norm, ffn_sum_norm; /* encoders: layer norms of x with a branch's output added */
  int window;                                    /* 0: all positions before; else the last so many */
  int turn;                                      /* of the decoder's turns; -1: none */
} pst_engine_decoder_layer;

/* What one token's way through a decoder is made of: x = embedding * embedding_scale; in each layer x += post(o(attention(turned q, k, v of norm(x)))) and
 * x += post(down(activation(gate) * up)) of norm(x); logits = head * norm(x). Pointers live as long as the model. */
typedef struct pst_engine_decoder {
  const pst_engine_model_info *info;
  const float *output_norm;
  float embedding_scale, attention_scale, norm_eps;
  bool gelu; /* the gate's activation is GELU in the tanh form; else SiLU */
  bool tied; /* the head is the embedding */
  int n_turns;
  pst_engine_turn turns[2];
  /* Encoders. */
  bool both_ways;       /* every token sees the whole text */
  bool pools_first;     /* a text's vector is its first token's state; else the mean of all */
  int n_positions;      /* rows of pst_engine_decoder_positions, added to the embedding */
  const float *segment; /* [n_embd], added too; or NULL */
  pst_engine_affine embedding_norm;
} pst_engine_decoder;

/* PST_E_UNSUPPORTED, by name: an architecture that is none of llama, qwen2, qwen3 and gemma3. */
int pst_engine_decoder_get(const pst_engine_model *model, pst_engine_decoder *ret_decoder, pst_error *err);
/* The same of an encoder: x = layer norm of (embedding + position + segment); in each layer x = attn_sum_norm(x + o(attention(q, k, v of x))), then
 * x = ffn_sum_norm(x + down(gelu(up of x))), GELU being x Phi(x); no gate, no head, output_norm NULL. PST_E_UNSUPPORTED, by name: an architecture other than bert, pooling by the last
 * token, or projections behind the pooling. */
int pst_engine_decoder_get_encoder(const pst_engine_model *model, pst_engine_decoder *ret_decoder, pst_error *err);
void pst_engine_decoder_get_layer(const pst_engine_model *model, int layer, pst_engine_decoder_layer *ret_layer);
void pst_engine_decoder_shape(const pst_engine_model *model, pst_engine_role role, size_t *ret_rows, size_t *ret_cols);
/* Rows [first, first + n) of a layer's matrix, of the embedding, of the head: float32, ret_out[n][cols], in the row order of the file. Any thread. */
void pst_engine_decoder_rows(const pst_engine_model *model, int layer, pst_engine_role role, size_t first, size_t n,
                             float *ret_out);
void pst_engine_decoder_embedding(const pst_engine_model *model, size_t first, size_t n, float *ret_out);
void pst_engine_decoder_head(const pst_engine_model *model, size_t first, size_t n, float *ret_out);
void pst_engine_decoder_positions(const pst_engine_model *model, size_t first, size_t n, float *ret_out);

/* ---- text and tokens -------------------------------------------------------------------------------------------- */

typedef struct pst_engine_tokens {
  int32_t *ids; /* pst_free by pst_engine_tokens_done */
  size_t n, capacity;
} pst_engine_tokens;
void pst_engine_tokens_done(pst_engine_tokens *t);
/* n more. PST_E_NOMEM. */
int pst_engine_tokens_append(pst_engine_tokens *t, const int32_t *ids, size_t n, pst_error *err);

/* Text to tokens, appended. `special`: the text is trusted, control tokens in it are recognised. `add_bos`: the model's own BOS rule applies. */
int pst_engine_tokenize(const pst_engine_model *model, pst_str text, bool special, bool add_bos,
                        pst_engine_tokens *tokens, pst_error *err);
/* The first token of both vocabularies that is another text in b than in a; -1: none, though one may have more of them. */
int32_t pst_engine_vocabulary_differs(const pst_engine_model *a, const pst_engine_model *b);
/* Whether an answer ends with this token: the model's end tokens, by its file and by name. */
bool pst_engine_token_ends(const pst_engine_model *model, int32_t token);
/* Whether a token is a piece of text: none that controls, ends, or stands for what is unknown. */
bool pst_engine_token_is_text(const pst_engine_model *model, int32_t token);
/* Tokens to bytes, appended; control tokens are left out unless `special`. */
int pst_engine_detokenize(const pst_engine_model *model, const int32_t *ids, size_t n, bool special, pst_buf *out);

/* A conversation through the model's chat template, to tokens (replaces *tokens). Special tokens in user text are never control tokens. Parts that are
 * texts are joined where the template knows strings only. Without a template, and for parts that are not text: PST_E_UNSUPPORTED. `ret_text` (NULL: not wanted) gets the rendered text. */
int pst_engine_render_chat(const pst_engine_model *model, const pst_chat *chat, pst_engine_tokens *tokens,
                           pst_buf *ret_text, pst_error *err);
/* A conversation whose last message is the assistant's, as it would be served (replaces *tokens): the first *ret_n_given tokens are the prompt of
 * pst_engine_render_chat, then come the answer and the token that ends it (engine/answered.c). PST_E_UNSUPPORTED: no template, or tool calls that the template writes in
 * another way once they are past; PST_E_BAD_INPUT: no answer. */
int pst_engine_render_answered(const pst_engine_model *model, const pst_chat *chat, pst_engine_tokens *tokens,
                               size_t *ret_n_given, pst_error *err);
/* The token that ends an answer where the model's template writes it; without a template the end of a text. -1: there is none. */
int32_t pst_engine_answer_end(const pst_engine_model *model);

/* ---- terse output codes (engine/codes.c) --------------------------------------------------------------------------- */

/* Frequent pieces of a task's answers, each written as one token that plain answers have no use for: an adapter that was trained on coded answers gives them in fewer
 * tokens, and the engine expands each code as it comes. Prompts stay plain. Immutable; owned by one thread while it is made. */
typedef struct pst_engine_codes pst_engine_codes;
enum { PST_ENGINE_MAX_CODES = 4096, PST_ENGINE_MAX_CODE_TOKENS = 1024 };

typedef struct pst_engine_code {
  int32_t token;        /* the code */
  const int32_t *piece; /* [n] plain tokens that it stands for; none of them is a code */
  size_t n;             /* at least 2 */
} pst_engine_code;

/* Copies the table. PST_E_BAD_INPUT: a code or a piece that is there twice, a piece that is too short or not plain; PST_E_LIMIT; PST_E_NOMEM. */
int pst_engine_codes_create(const pst_engine_code *codes, size_t n, pst_engine_codes **ret_codes, pst_error *err);
/* The same from text as pst_engine_codes_write gives it: [[code, token, token, ...], ...]. */
int pst_engine_codes_parse(pst_str text, pst_engine_codes **ret_codes, pst_error *err);
void pst_engine_codes_write(const pst_engine_codes *codes, pst_buf *out);
void pst_engine_codes_free(pst_engine_codes *codes); /* NULL is fine */
/* All codes, ascending by token; the table's. Returns how many. */
size_t pst_engine_codes_list(const pst_engine_codes *codes, const pst_engine_code **ret_codes);
/* The entry of a code; NULL: the token is none. */
const pst_engine_code *pst_engine_codes_find(const pst_engine_codes *codes, int32_t token);
/* Of what the table holds; 0: NULL, there are no codes. */
uint64_t pst_engine_codes_key(const pst_engine_codes *codes);
/* Plain tokens to the fewest that expand to them, appended to *out; of several ways the one with the longest piece first. PST_E_BAD_INPUT: a plain token is
 * a code; PST_E_NOMEM. On failure *out may have grown. */
int pst_engine_codes_encode(const pst_engine_codes *codes, const int32_t *ids, size_t n, pst_engine_tokens *out,
                            pst_error *err);
/* Coded tokens to plain ones, appended to *out: what encode was given. PST_E_NOMEM. */
int pst_engine_codes_expand(const pst_engine_codes *codes, const int32_t *ids, size_t n, pst_engine_tokens *out,
                            pst_error *err);
/* The codes by which an adapter answers, the adapter's; NULL: none, answers are plain. Any thread. */
const pst_engine_codes *pst_engine_adapter_codes(const pst_engine_adapter *adapter);
/* The text that a code stands for, the adapter's; data NULL: the token is no code of it. adapter NULL: of the base there are none. Any thread. */
pst_str pst_engine_adapter_code_text(const pst_engine_adapter *adapter, int32_t token);

/* ---- requests --------------------------------------------------------------------------------------------------- */

typedef struct pst_engine_bias {
  int32_t token;
  float bias; /* added to the logit; -100 bans, +100 forces, as in the OpenAI API */
} pst_engine_bias;

typedef struct pst_engine_sampling {
  float temperature;                         /* 0: greedy */
  int top_k;                                 /* 0: off */
  float top_p, min_p;                        /* 1 and 0: off */
  float repetition_penalty;                  /* 1: off; over the last penalty_window tokens of prompt and answer */
  float frequency_penalty, presence_penalty; /* 0: off; over the answer, as in the OpenAI API */
  int penalty_window;                        /* 0: whole context */
  uint64_t seed;
  uint32_t choice; /* which of n answers: part of the draw's coordinates */
  const pst_engine_bias *bias;
  size_t n_bias;
} pst_engine_sampling;
pst_engine_sampling pst_engine_sampling_default(void); /* temperature 1, all filters off */

/* A compiled choice list: the answer is exactly one of the texts, then the end. Immutable, counted. `separator_healed`: a single
 * leading space before each text is allowed and stripped from the answer, as base models want it. codes: those of the adapter that is to choose
 * (pst_engine_adapter_codes; NULL: none); PST_E_BAD_INPUT where a text needs a token that is a code. */
typedef struct pst_engine_choices pst_engine_choices;
int pst_engine_choices_create(const pst_engine_model *model, const pst_str *texts, size_t n, bool leading_space,
                              const pst_engine_codes *codes, pst_engine_choices **ret_choices, pst_error *err);
pst_engine_choices *pst_engine_choices_ref(pst_engine_choices *choices);
void pst_engine_choices_unref(pst_engine_choices *choices);

typedef enum pst_engine_finish {
  PST_ENGINE_FINISH_NONE,
  PST_ENGINE_FINISH_STOP,   /* end token, stop string, or the constraint is complete */
  PST_ENGINE_FINISH_LENGTH, /* max_tokens or the context is full */
  PST_ENGINE_FINISH_CANCELLED,
  PST_ENGINE_FINISH_ERROR,
} pst_engine_finish;

typedef struct pst_engine_top {
  int32_t token;
  float
      logprob; /* natural log, of the model's own distribution: before temperature, filters, bias, penalties and constraint */
} pst_engine_top;
/* The n highest of logits [n_vocab], n at most n_vocab, best first, lowest id first on ties, as log-probabilities given the log-sum (0: the logits themselves). Pure: any thread. */
void pst_engine_top_logprobs(const float *logits, int n_vocab, double log_sum, int n, pst_engine_top *ret_top);

/* What one call of the callback carries. All pointers live until it returns. */
typedef struct pst_engine_event {
  uint64_t request_id;
  int32_t token;             /* -1: only text or the end */
  pst_str text;              /* bytes that are now certain: whole UTF-8, past any stop string; may be empty */
  pst_str token_text;        /* the token's own bytes, of a code those it stands for; for logprobs */
  float logprob;             /* as above; valid when logprobs were asked for */
  const pst_engine_top *top; /* n_top best, best first */
  size_t n_top;
  pst_engine_finish finish; /* not NONE: the last event of the request */
  const pst_error *error;   /* with FINISH_ERROR */
  /* With the last event: */
  int n_prompt, n_cached, n_completion; /* tokens; n_cached of the prompt came from shared pages */
  int n_drafted, n_accepted, n_steps;   /* speculation: drafted, accepted; forward steps that served the request */
  int n_token_steps; /* of the steps those that gave it tokens: fewer than n_completion where drafts were accepted or a constraint left no choice */
  int64_t queued_us, first_token_us, total_us; /* since submit: until admitted, until the first token, until the end */
  int64_t busy_us; /* of the time of the steps that served it, the share that its tokens have of all tokens in them */
  double margin;   /* log-probability gap of best and second best choice (constraint) or mean top-2 gap; NAN unknown */
} pst_engine_event;
/* On the engine's thread; must not block and must not call into the engine other than cancel. */
typedef void (*pst_engine_callback)(void *user, const pst_engine_event *event);

/* Where guesses at the next tokens come from; what they are worth and what verifying them costs is measured as the engine runs, and decides how many
 * are verified, zero included. Exact: the answer is the same with any of them. */
typedef enum pst_engine_speculation {
  PST_ENGINE_SPEC_NONE,
  PST_ENGINE_SPEC_LOOKUP,  /* the request's own prompt and answer */
  PST_ENGINE_SPEC_ANSWERS, /* these, and a corpus of past answers */
  PST_ENGINE_SPEC_MODEL,   /* the request's own text, and what the engine's draft model would say */
} pst_engine_speculation;

/* Past answers as a suffix automaton (engine/corpus.c). Immutable, counted, shared by engines and threads. At most 56 bytes a token. */
typedef struct pst_engine_corpus pst_engine_corpus;
/* Most tokens of a corpus, one added for each answer. */
#define PST_ENGINE_CORPUS_TOKENS 2097152
/* tokens: n answers of lengths[i] tokens, one behind the other; what ends them (end token, stop string) is worth keeping. Linear time. Errors: PST_E_LIMIT,
 * PST_E_BAD_INPUT (a negative token), PST_E_NOMEM. One reference for the caller. */
int pst_engine_corpus_create(const int32_t *tokens, const size_t *lengths, size_t n, pst_engine_corpus **ret_corpus,
                             pst_error *err);
pst_engine_corpus *pst_engine_corpus_ref(pst_engine_corpus *corpus);
void pst_engine_corpus_unref(pst_engine_corpus *corpus); /* NULL is fine */
size_t pst_engine_corpus_bytes(const pst_engine_corpus *corpus);

typedef struct pst_engine_request {
  const int32_t *prompt; /* copied by submit; at least 1 token */
  size_t n_prompt;
  bool heal;                    /* the prompt's last token may be backed up and its text re-derived (token healing) */
  int max_tokens;               /* new tokens; 0: score only */
  pst_engine_sampling sampling; /* bias is copied */
  const pst_str *stop;          /* stop strings, copied; never part of the answer */
  size_t n_stop;
  bool ignore_end;             /* go on past end tokens (benchmarks) */
  pst_engine_choices *choices; /* NULL: free text; referenced */
  pst_engine_speculation speculation;
  pst_engine_corpus *corpus; /* with SPEC_ANSWERS; referenced */
  int n_logprobs;            /* -1: none; 0: the chosen token's; up to 20 alternatives */
  bool score_prompt; /* an event for every prompt token after the first, with its log-probability (teacher forcing) */
  /* NULL: the base, bit for bit. Else of this engine's model; referenced. Prompts with different adapters share no pages. Of one with codes, tokens are counted as they are
   * made, texts and stop strings as they are expanded; `choices` must have its codes, and no prompt is healed. */
  pst_engine_adapter *adapter;
  uint64_t prefix_salt; /* prompts with different salts share no pages (isolation of API keys); 0: the common one */
  int priority;         /* lower first; same priority in order of arrival */
  pst_engine_callback callback;
  void *user;
} pst_engine_request;

/* ---- the engine ------------------------------------------------------------------------------------------------- */

typedef enum pst_engine_kv { PST_ENGINE_KV_F16, PST_ENGINE_KV_Q8_0 } pst_engine_kv;

typedef struct pst_engine_options {
  pst_engine_kv kv;
  int slots;         /* sequences decoded together, 1 to 256 */
  int chunk;         /* prefill tokens per step, 16 to 2048 */
  int threads;       /* 0: pst_cpu_count() */
  int n_ctx;         /* longest sequence, 0: the lesser of the model's and 8192 */
  int kv_tokens;     /* positions in the page pool, 0: enough for slots x 1024 and for one of n_ctx */
  int max_queue;     /* waiting requests before PST_E_BUSY */
  bool no_reuse;     /* do not share prefix pages */
  bool draft_always; /* verify every guess, whatever the cost rule says: for tests and for measuring the rule */
  /* What guesses for PST_ENGINE_SPEC_MODEL: a smaller model over the same vocabulary; NULL: none. Referenced. Its keys and values take room for as many positions. */
  pst_engine_model *draft;
} pst_engine_options;
pst_engine_options pst_engine_options_default(void);

/* What an engine with these options (NULL: the defaults) would take beside the packed weights. Errors as pst_engine_create. */
int pst_engine_estimate_memory(const pst_engine_model *model, const pst_engine_options *options, int64_t *ret_kv_bytes,
                               int64_t *ret_work_bytes, pst_error *err);

typedef struct pst_engine pst_engine;
/* Starts the engine's thread. References the model. Memory for KV and work space is taken here, so that nothing is allocated per token. */
int pst_engine_create(pst_engine_model *model, const pst_engine_options *options, pst_engine **ret_engine,
                      pst_error *err);
void pst_engine_free(
    pst_engine *engine); /* cancels what is open (each gets its last event), then stops the thread; NULL is fine */
const pst_engine_options *pst_engine_get_options(const pst_engine *engine); /* with zeros filled in */
pst_engine_model *pst_engine_get_model(const pst_engine *engine);

/* Any thread. Errors at once: PST_E_BAD_INPUT (empty prompt, token out of range, field out of range), PST_E_LIMIT (prompt longer than the
 * context), PST_E_UNSUPPORTED (PST_ENGINE_SPEC_MODEL without a draft model), PST_E_BUSY (queue full). On success exactly one last event will come. */
int pst_engine_submit(pst_engine *engine, const pst_engine_request *request, uint64_t *ret_request_id, pst_error *err);
void pst_engine_cancel(pst_engine *engine,
                       uint64_t request_id); /* any thread; unknown ids are ignored; at most one step more */

/* ---- texts that are only scored (engine/score.c) --------------------------------------------------------------------- */

typedef struct pst_engine_score_text {
  const int32_t *tokens;
  size_t n; /* at least 2 */
} pst_engine_score_text;

typedef struct pst_engine_score_job {
  const pst_engine_score_text *texts;
  size_t n_texts;
  int n_top; /* likeliest tokens told of at each position, 0 to 20 */
  /* For each token of a text but the first, in order: its position (from 1), its log-probability given those before it and the likeliest tokens there. On the engine's
   * thread; events of different texts are interleaved. */
  void (*told)(void *user, size_t text, size_t position, const pst_engine_event *event);
  void *user;
  bool (*cancelled)(void *user); /* asked before each text; NULL: never */
  void *cancelled_user;
} pst_engine_score_job;
/* Scores texts by the base model and waits for all. Errors: those of pst_engine_submit and of the engine; PST_E_CANCELLED. Not on the engine's thread. */
int pst_engine_score_wait(pst_engine *engine, const pst_engine_score_job *job, pst_error *err);

/* ---- embeddings (engine/embed.c) --------------------------------------------------------------------------------- */

/* A model whose info has n_dims makes embeddings and nothing else: its engine takes pst_engine_embed in place of pst_engine_submit. Texts that wait
 * together go through the model together; a text's vector is bit-identical alone and in any batch. An engine of an encoder keeps no KV pages; of its
 * options threads, n_ctx (longest text), chunk (tokens in a step, at least n_ctx) and max_queue count. */

/* A text with the tokens that the model wants around it, appended. Control tokens are not recognised in it. Errors as pst_engine_tokenize. */
int pst_engine_embed_tokenize(const pst_engine_model *model, pst_str text, pst_engine_tokens *tokens, pst_error *err);

/* The one event of a request. Pointers live until the callback returns. */
typedef struct pst_engine_embed_event {
  uint64_t request_id;
  pst_engine_finish finish; /* STOP, or CANCELLED */
  const float *vectors;     /* [n_texts][n_dims], each of length 1; NULL unless STOP */
  size_t n_texts;
  int n_dims;
  int64_t n_tokens; /* of all texts */
  int n_steps;
  int64_t queued_us, total_us; /* since submit: until its first step, until the end */
  int64_t busy_us;             /* of the time of its steps, the share that its tokens have of all tokens in them */
} pst_engine_embed_event;
typedef void (*pst_engine_embed_callback)(void *user, const pst_engine_embed_event *event); /* as pst_engine_callback */

typedef struct pst_engine_embed_request {
  const int32_t *tokens;       /* of all texts, one behind the other; copied */
  const size_t *lengths;       /* [n_texts] tokens of each text, at least 1; copied */
  size_t n_texts;              /* at least 1 */
  pst_engine_adapter *adapter; /* with which all of them are read; referenced; NULL: the base */
  int priority;                /* lower first; same priority in order of arrival */
  pst_engine_embed_callback callback;
  void *user;
} pst_engine_embed_request;

/* Any thread. Errors at once: PST_E_UNSUPPORTED (the model generates text), PST_E_BAD_INPUT (an empty text, a token out of range, another model's adapter), PST_E_LIMIT (a text longer than
 * the context), PST_E_BUSY. On success exactly one event will come; pst_engine_cancel takes the id. */
int pst_engine_embed(pst_engine *engine, const pst_engine_embed_request *request, uint64_t *ret_request_id,
                     pst_error *err);
/* The same, waiting for the end: ret_vectors [n_texts][n_dims]. Not on the engine's thread. */
int pst_engine_embed_wait(pst_engine *engine, pst_engine_adapter *adapter, const int32_t *tokens, const size_t *lengths,
                          size_t n_texts, float *ret_vectors, pst_error *err);
/* The first `dims` of a vector of n_dims, brought to length 1 again; a zero vector stays one. Sound for dims >= info.min_dims (Kusupati et al. 2022,
 * arXiv:2205.13147). PST_E_BAD_INPUT: dims out of range. Pure. */
int pst_engine_embedding_cut(float *vector, int n_dims, int dims);

typedef struct pst_engine_stats {
  int n_running, n_queued;
  int kv_pages, kv_pages_used, kv_pages_cached;
  int64_t n_requests, n_prompt_tokens, n_cached_tokens, n_completion_tokens, n_steps, n_drafted, n_accepted;
  int64_t busy_us; /* time spent in steps */
} pst_engine_stats;
void pst_engine_get_stats(pst_engine *engine, pst_engine_stats *ret_stats); /* any thread */
void pst_engine_clear_prefix_cache(
    pst_engine *engine); /* any thread; takes effect before the next admission: the declared cold state */

/* ---- the scheduler, replayed ------------------------------------------------------------------------------------- */

/* The step-time model: microseconds for one forward step. Fitted by pst_engine_calibrate, refined online. */
typedef struct pst_engine_step_model {
  double fixed_us;       /* per step: weights read once, barriers */
  double token_us;       /* per token in the step beyond the first */
  double context_us;     /* per token and 1,000 positions attended */
  double head_us;        /* per row of logits beyond the first */
  double relative_error; /* median absolute relative residual of the fit */
} pst_engine_step_model;
double pst_engine_step_predict(const pst_engine_step_model *m, int n_tokens, int n_logits, double n_context);
/* Measures steps on an idle engine for at most budget_ms and fits the model. Blocks; any thread but the engine's. */
int pst_engine_calibrate(pst_engine *engine, int budget_ms, pst_engine_step_model *ret_model, pst_error *err);

/* A request as the replay sees it: token counts, no tensors. */
typedef struct pst_engine_replay_item {
  int64_t arrival_us;
  int n_prompt, n_completion;
  int n_shared;   /* leading prompt tokens equal to those of items of the same group */
  uint32_t group; /* prefix group; 0: shares with nobody */
  double accept;  /* tokens gained per speculative step beyond the first; 0: none */
  double drafted; /* tokens drafted per such step; 0: as many as may be */
} pst_engine_replay_item;
typedef struct pst_engine_replay_result {
  int64_t queued_us, first_token_us, finish_us; /* since arrival */
} pst_engine_replay_result;
/* Runs the server's own scheduler over the items in virtual time. `ret_results` has n entries. *ret_makespan_us: end of the last. */
int pst_engine_replay(const pst_engine_options *options, const pst_engine_step_model *model,
                      const pst_engine_replay_item *items, size_t n, pst_engine_replay_result *ret_results,
                      int64_t *ret_makespan_us, pst_error *err);

/* What speculation would have made of known answers, asked one after the other, by the engine's own drafts and cost rule; what one teaches about the worth of
 * guesses serves the next. corpus NULL: PST_ENGINE_SPEC_LOOKUP; else referenced. model: what steps cost; NULL: every guess is verified. Owned by
 * one thread. PST_E_NOMEM. */
typedef struct pst_engine_draft_replay pst_engine_draft_replay;
int pst_engine_draft_replay_create(pst_engine_corpus *corpus, const pst_engine_step_model *model,
                                   pst_engine_draft_replay **ret_replay, pst_error *err);
void pst_engine_draft_replay_free(pst_engine_draft_replay *replay); /* NULL is fine */
/* An answer of n tokens, the first n_prompt the prompt's. *ret_steps: steps that would have given the others, the first with the prompt; *ret_drafted: guesses
 * verified on the way. PST_E_NOMEM. */
int pst_engine_draft_replay_answer(pst_engine_draft_replay *replay, const int32_t *tokens, size_t n_prompt, size_t n,
                                   int64_t *ret_steps, int64_t *ret_drafted, pst_error *err);

#ifdef __cplusplus
}
#endif
#endif
