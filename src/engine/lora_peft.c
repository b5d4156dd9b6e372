/* LoRA adapters as PEFT keeps them: adapter_config.json and adapter_model.safetensors.
 *
 * Owns the translation between the names of modules in `transformers` and of tensors in GGUF files. Where llama.cpp's converter reorders the rows of queries and keys (pairs that
 * turn together are neighbours in the file and half a head apart in transformers), rows of b are reordered with them. A setting of PEFT that is not translated
 * and could change what the adapter computes is refused by its name. */
#include "engine/lora.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "engine/safetensors.h"

enum { MAX_CONFIG = 4 << 20, TEMP_TRIES = 100 };

/* A linear layer of a decoder layer: "self_attn.q_proj" and "attn_q". */
typedef struct module_row {
  const char *module, *tensor;
  bool turns; /* its rows are a head's elements that rope turns */
} module_row;

static const module_row dense_modules[] = {
    {"self_attn.q_proj", "attn_q", true},  {"self_attn.k_proj", "attn_k", true},
    {"self_attn.v_proj", "attn_v", false}, {"self_attn.o_proj", "attn_output", false},
    {"mlp.gate_proj", "ffn_gate", false},  {"mlp.up_proj", "ffn_up", false},
    {"mlp.down_proj", "ffn_down", false},
};
static const module_row phi3_modules[] = {
    {"self_attn.qkv_proj", "attn_qkv", false},
    {"self_attn.o_proj", "attn_output", false},
    {"mlp.gate_up_proj", "ffn_up", false},
    {"mlp.down_proj", "ffn_down", false},
};
static const module_row lfm2_modules[] = {
    {"self_attn.q_proj", "attn_q", true},   {"self_attn.k_proj", "attn_k", true},
    {"self_attn.v_proj", "attn_v", false},  {"self_attn.out_proj", "attn_output", false},
    {"feed_forward.w1", "ffn_gate", false}, {"feed_forward.w3", "ffn_up", false},
    {"feed_forward.w2", "ffn_down", false},
};

typedef struct family {
  const char *architecture;
  const module_row *modules;
  size_t n_modules;
  bool pairs; /* rows of queries and keys stand in pairs in the file */
} family;

enum { N_DENSE = PST_ARRAY_LEN(dense_modules), N_ATTENTION = 4 };

static const family families[] = {
    {"llama", dense_modules, N_DENSE, true},
    {"mistral3", dense_modules, N_DENSE, true},
    {"smollm3", dense_modules, N_DENSE, true},
    {"granite", dense_modules, N_DENSE, true},
    {"qwen2", dense_modules, N_DENSE, false},
    {"qwen3", dense_modules, N_DENSE, false},
    {"gemma2", dense_modules, N_DENSE, false},
    {"gemma3", dense_modules, N_DENSE, false},
    {"olmo2", dense_modules, N_DENSE, false},
    {"phi3", phi3_modules, PST_ARRAY_LEN(phi3_modules), false},
    {"lfm2", lfm2_modules, PST_ARRAY_LEN(lfm2_modules), false},
    {"qwen3moe", dense_modules, N_ATTENTION, false},
    {"gpt-oss", dense_modules, N_ATTENTION, false},
};

static int find_family(const pst_engine_model_info *base, const char *path, const family **ret, pst_error *err) {
  if (!base)
    return pst_error_set(err, PST_E_BAD_INPUT, path,
                         "an adapter of PEFT says not enough of its model: the model must be named beside it");
  for (size_t i = 0; i < PST_ARRAY_LEN(families); i++)
    if (!strcmp(families[i].architecture, base->architecture)) {
      *ret = &families[i];
      return 0;
    }
  return pst_error_set(err, PST_E_UNSUPPORTED, path,
                       "architecture '%s': how PEFT names its linear layers is not known here", base->architecture);
}

/* Rows of b between the two orders, in place: row 2j + i of a head in the file is row i * head_dim/2 + j in transformers. */
static int reorder_rows(float *b, int n_out, int rank, int head_dim, bool to_pairs, pst_error *err) {
  size_t half = (size_t)head_dim / 2, width = (size_t)rank, head = 2 * half * width;
  float *kept = pst_malloc(head * sizeof *kept);
  if (!kept) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for an adapter");
  for (size_t h = 0; h < (size_t)n_out / (2 * half); h++) {
    float *rows = b + h * head;
    memcpy(kept, rows, head * sizeof *kept);
    for (size_t i = 0; i < 2; i++)
      for (size_t j = 0; j < half; j++) {
        size_t pairs = 2 * j + i, halves = i * half + j;
        memcpy(rows + (to_pairs ? pairs : halves) * width, kept + (to_pairs ? halves : pairs) * width,
               width * sizeof *kept);
      }
  }
  pst_free(kept);
  return 0;
}

static int reorder(const family *f, const module_row *m, const pst_engine_model_info *base, bool to_pairs,
                   pst_engine_lora_target *t, const char *path, pst_error *err) {
  if (!f->pairs || !m->turns) return 0;
  if (base->head_dim < 2 || base->head_dim % 2 || t->n_out % base->head_dim)
    return pst_error_set(err, PST_E_BAD_INPUT, path, "'%s' has %d rows, no whole heads of %d", t->name, t->n_out,
                         base->head_dim);
  return reorder_rows(t->b, t->n_out, t->rank, base->head_dim, to_pairs, err);
}

/* ---- adapter_config.json ---- */

typedef struct settings {
  double alpha;
  int rank;
  bool by_root; /* scale is alpha / sqrt(rank): Kalajdzievski 2023, arXiv:2312.03732 */
} settings;

/* Whether a setting is as good as absent. */
static bool is_off(const pst_json *v) {
  switch (pst_json_typeof(v)) {
  case PST_JSON_BOOL: return !pst_json_bool(v, true);
  case PST_JSON_ARRAY:
  case PST_JSON_OBJECT: return pst_json_size(v) == 0;
  case PST_JSON_STRING: return pst_str_is(pst_json_str(v), "none") || pst_json_str(v).n == 0;
  case PST_JSON_NONE:
  case PST_JSON_NULL: return true;
  default: return false;
  }
}

/* Initialisations that change the base's weights: the adapter is no difference from the base as it was. */
static bool changes_base(const pst_json *init) {
  static const char *const kinds[] = {"pissa", "olora", "corda", "loftq", "loraga", "lora_ga"};
  pst_str s = pst_json_str(init);
  for (size_t i = 0; i < PST_ARRAY_LEN(kinds); i++)
    if (pst_str_starts(s, pst_str_from(kinds[i]))) return true;
  return false;
}

static int check_settings(const pst_json *root, const char *path, pst_error *err) {
  static const char *const refused[] = {"use_dora",
                                        "modules_to_save",
                                        "bias",
                                        "fan_in_fan_out",
                                        "lora_bias",
                                        "layer_replication",
                                        "alpha_pattern",
                                        "megatron_config",
                                        "target_parameters",
                                        "trainable_token_indices",
                                        "use_qalora",
                                        "use_bdlora",
                                        "alora_invocation_tokens",
                                        "arrow_config",
                                        "kasa_config",
                                        "monteclora_config"};
  pst_str type = pst_json_str(pst_json_get(root, "peft_type"));
  if (!pst_str_is(type, "LORA"))
    return pst_error_set(err, PST_E_UNSUPPORTED, path, "peft_type '%.*s'; only LORA is known here",
                         (int)PST_MIN(type.n, (size_t)40), type.data ? type.data : "");
  for (size_t i = 0; i < PST_ARRAY_LEN(refused); i++)
    if (!is_off(pst_json_get(root, refused[i])))
      return pst_error_set(err, PST_E_UNSUPPORTED, path, "'%s' is set, which is not known here", refused[i]);
  if (changes_base(pst_json_get(root, "init_lora_weights")))
    return pst_error_set(err, PST_E_UNSUPPORTED, path,
                         "'init_lora_weights' is one that changes the base; save the adapter with PEFT's "
                         "path_initial_model_for_weight_conversion");
  return 0;
}

static int read_settings(const char *path, settings *ret, pst_error *err) {
  pst_json_doc *doc = NULL;
  int code = pst_json_parse_file(path, MAX_CONFIG, &doc, err);
  if (code) return code;
  const pst_json *root = pst_json_root(doc);
  code = check_settings(root, path, err);
  int64_t rank = pst_json_int(pst_json_get(root, "r"), 0);
  double alpha = pst_json_double(pst_json_get(root, "lora_alpha"), NAN);
  if (!code && (rank < 1 || rank > PST_ENGINE_LORA_MAX_RANK))
    code = pst_error_set(err, PST_E_BAD_INPUT, path, "'r' is no rank from 1 to %d", PST_ENGINE_LORA_MAX_RANK);
  if (!code && !isfinite((float)alpha))
    code = pst_error_set(err, PST_E_BAD_INPUT, path, "'lora_alpha' is missing, or no finite number");
  if (!code) *ret = (settings){alpha, (int)rank, pst_json_bool(pst_json_get(root, "use_rslora"), false)};
  pst_json_free(doc);
  return code;
}

static double wanted_scale(const settings *s, int rank) { return s->alpha / (s->by_root ? sqrt(rank) : rank); }

/* ---- reading ---- */

typedef struct reading {
  const char *path;
  const pst_engine_model_info *base;
  const family *family;
  settings settings;
  const pst_engine_gguf_tensor *tensors;
  size_t n_tensors;
  pst_engine_lora *lora;
  pst_error *err;
} reading;

static int refuse(const reading *r, pst_str name, const char *what) {
  return pst_error_set(r->err, PST_E_UNSUPPORTED, r->path, "tensor '%.*s' %s", (int)PST_MIN(name.n, (size_t)160),
                       name.data, what);
}

static bool cut_start(pst_str *s, const char *start) {
  pst_str t = pst_str_from(start);
  if (!pst_str_starts(*s, t)) return false;
  *s = (pst_str){s->data + t.n, s->n - t.n};
  return true;
}

static bool cut_end(pst_str *s, const char *end) {
  size_t n = strlen(end);
  if (s->n < n || memcmp(s->data + s->n - n, end, n) != 0) return false;
  s->n -= n;
  return true;
}

/* "base_model.model.model.layers.3.self_attn.q_proj" to layer 3 and the module's row. */
static int find_module(const reading *r, pst_str name, int *ret_layer, const module_row **ret_module) {
  pst_str rest = name;
  cut_start(&rest, "base_model.model.");
  while (cut_start(&rest, "model.") || cut_start(&rest, "language_model.")) {}
  int64_t layer = -1;
  if (cut_start(&rest, "layers.")) {
    size_t dot = pst_str_find(rest, PST_STR("."), 0);
    if (dot != SIZE_MAX && !pst_parse_i64((pst_str){rest.data, dot}, 0, r->base->n_layers - 1, &layer))
      rest = (pst_str){rest.data + dot + 1, rest.n - dot - 1};
  }
  for (size_t i = 0; i < r->family->n_modules && layer >= 0; i++)
    if (pst_str_is(rest, r->family->modules[i].module)) {
      *ret_layer = (int)layer;
      *ret_module = &r->family->modules[i];
      return 0;
    }
  return refuse(r, name, "belongs to no linear layer that adapters are known for here");
}

static const pst_engine_gguf_tensor *find_tensor(const reading *r, pst_str name) {
  for (size_t i = 0; i < r->n_tensors; i++)
    if (pst_str_equal(r->tensors[i].name, name)) return &r->tensors[i];
  return NULL;
}

/* A matrix's numbers, each times `factor`. */
static int read_floats(const reading *r, const pst_engine_gguf_tensor *t, double factor, float *out) {
  if (pst_kernels_dequantize_row(t->type, t->data, (size_t)t->n_elements, out))
    return refuse(r, t->name, "is not F32, F16 or BF16");
  for (size_t i = 0; i < t->n_elements && factor != 1; i++) out[i] = (float)(out[i] * factor);
  return pst_engine_lora_check_finite(out, (size_t)t->n_elements, t->name, r->path, r->err);
}

static int read_pair(const reading *r, const pst_engine_gguf_tensor *a, pst_str module) {
  const module_row *m = NULL;
  char other[300], name[96];
  int layer = 0, code = find_module(r, module, &layer, &m);
  if (code) return code;
  snprintf(other, sizeof other, "%.*s.lora_B.weight", (int)module.n, module.data);
  snprintf(name, sizeof name, "blk.%d.%s.weight", layer, m->tensor);
  const pst_engine_gguf_tensor *b = find_tensor(r, pst_str_from(other));
  const uint64_t most = PST_ENGINE_LORA_MAX_SIZE;
  if (!b || a->n_dims != 2 || b->n_dims != 2 || b->dims[0] != a->dims[1] || a->dims[0] > most || b->dims[1] > most ||
      a->dims[1] > PST_ENGINE_LORA_MAX_RANK)
    return pst_error_set(r->err, PST_E_BAD_INPUT, r->path, "'%.*s': lora_A and lora_B of fitting shapes are not there",
                         (int)module.n, module.data);
  pst_engine_lora_target *t = NULL;
  code =
      pst_engine_lora_add(r->lora, pst_str_from(name), (int)a->dims[1], (int)a->dims[0], (int)b->dims[1], &t, r->err);
  if (code) return code;
  double ours = pst_engine_lora_scale(r->lora, t), theirs = wanted_scale(&r->settings, t->rank);
  code = read_floats(r, a, 1, t->a);
  if (!code) code = read_floats(r, b, ours == theirs || ours == 0 ? 1 : theirs / ours, t->b);
  return code ? code : reorder(r->family, m, r->base, true, t, r->path, r->err);
}

static int read_tensors(const reading *r) {
  size_t n_b = 0;
  int code = 0;
  for (size_t i = 0; i < r->n_tensors && !code; i++) {
    pst_str name = r->tensors[i].name, as_a = name, as_b = name;
    if (r->tensors[i].type == PST_ENGINE_SAFETENSORS_OTHER) return refuse(r, name, "is not F32, F16 or BF16");
    if (cut_end(&as_a, ".lora_A.weight"))
      code = read_pair(r, &r->tensors[i], as_a);
    else if (cut_end(&as_b, ".lora_B.weight"))
      n_b++;
    else
      return refuse(r, name, "is neither a lora_A nor a lora_B of a linear layer");
  }
  if (!code && (n_b != r->lora->n_targets || n_b == 0))
    code = pst_error_set(r->err, PST_E_BAD_INPUT, r->path,
                         "has %zu tensors lora_A and %zu lora_B, where each needs its other", r->lora->n_targets, n_b);
  return code;
}

static int read_notes(const pst_map *map, const char *path, pst_engine_lora *lora, pst_error *err) {
  pst_json_doc *doc = NULL;
  size_t ignored = 0;
  int code = pst_engine_safetensors_header(map, path, &doc, &ignored, err);
  if (code) return code;
  const pst_json *notes = pst_json_get(pst_json_root(doc), "__metadata__");
  for (size_t k = 0; k < PST_ENGINE_LORA_NOTES && !code; k++)
    code = pst_engine_lora_take_note(lora, (pst_engine_lora_note)k,
                                     pst_json_str(pst_json_get(notes, pst_engine_lora_keys[k])), path, err);
  pst_json_free(doc);
  return code;
}

static int read_all(reading *r, const pst_map *map, pst_arena *arena) {
  pst_engine_lora *lora = r->lora;
  pst_engine_gguf_tensor *tensors = NULL;
  int code = pst_engine_safetensors_read(map, r->path, arena, &tensors, &r->n_tensors, r->err);
  if (code) return code;
  r->tensors = tensors;
  lora->architecture = pst_strdup(r->base->architecture);
  if (!lora->architecture) return pst_error_set(r->err, PST_E_NOMEM, r->path, "no memory for an adapter");
  /* alpha 0 stands for a scale of 1 in a GGUF file, where PEFT means that nothing is added. */
  lora->alpha = (float)(wanted_scale(&r->settings, r->settings.rank) * r->settings.rank);
  if (lora->alpha == 0)
    return pst_error_set(r->err, PST_E_UNSUPPORTED, r->path, "'lora_alpha' is 0: the adapter does nothing");
  code = read_notes(map, r->path, lora, r->err);
  return code ? code : read_tensors(r);
}

int pst_engine_lora_read_peft(const char *weights_path, const char *config_path, const pst_engine_model_info *base,
                              pst_engine_lora *ret_lora, pst_error *err) {
  pst_engine_lora lora = {0};
  reading r = {.path = weights_path, .base = base, .lora = &lora, .err = err};
  pst_map map = {0};
  pst_arena *arena = NULL;
  int code = find_family(base, weights_path, &r.family, err);
  if (!code) code = read_settings(config_path, &r.settings, err);
  if (!code) code = pst_map_open(weights_path, &map, err);
  if (code) return code;
  arena = pst_arena_create();
  code = arena ? read_all(&r, &map, arena) : pst_error_set(err, PST_E_NOMEM, weights_path, "no memory");
  pst_arena_free(arena);
  pst_map_close(&map);
  if (code)
    pst_engine_lora_done(&lora);
  else
    *ret_lora = lora;
  return code;
}

/* ---- writing ---- */

typedef struct writing {
  const pst_engine_lora *lora;
  const pst_engine_model_info *base;
  const family *family;
  const char *path;
  const module_row **modules; /* [n_targets] */
  int *layers;                /* [n_targets] */
  pst_arena *arena;
  pst_error *err;
} writing;

/* "blk.3.attn_q.weight" to layer 3 and the module's row. */
static int place_target(const writing *w, size_t i) {
  const char *name = w->lora->targets[i].name;
  pst_str rest = pst_str_from(name);
  int64_t layer = -1;
  size_t dot = SIZE_MAX;
  if (cut_start(&rest, "blk.") && cut_end(&rest, ".weight")) dot = pst_str_find(rest, PST_STR("."), 0);
  if (dot != SIZE_MAX && !pst_parse_i64((pst_str){rest.data, dot}, 0, w->base->n_layers - 1, &layer))
    rest = (pst_str){rest.data + dot + 1, rest.n - dot - 1};
  for (size_t k = 0; k < w->family->n_modules && layer >= 0; k++)
    if (pst_str_is(rest, w->family->modules[k].tensor)) {
      w->modules[i] = &w->family->modules[k];
      w->layers[i] = (int)layer;
      return 0;
    }
  return pst_error_set(w->err, PST_E_UNSUPPORTED, w->path, "the tensor '%s' has no name in PEFT", name);
}

static const char *module_name(const writing *w, size_t i, const char *before, const char *after) {
  return pst_arena_printf(w->arena, "%smodel.layers.%d.%s%s", before, w->layers[i], w->modules[i]->module, after);
}

static int write_weights(const writing *w, const char *path) {
  size_t n = w->lora->n_targets;
  pst_engine_safetensors_item *items = pst_arena_calloc(w->arena, 2 * n, sizeof *items);
  pst_engine_safetensors_note notes[PST_ENGINE_LORA_NOTES + 1] = {{"format", "pt"}};
  size_t n_notes = 1;
  int code = items ? 0 : pst_error_set(w->err, PST_E_NOMEM, w->path, "no memory to write the adapter");
  for (size_t i = 0; i < n && !code; i++) {
    pst_engine_lora_target t = w->lora->targets[i];
    size_t floats = (size_t)t.n_out * (size_t)t.rank;
    float *b = pst_arena_alloc(w->arena, floats * sizeof *b);
    const char *a_name = module_name(w, i, "base_model.model.", ".lora_A.weight"),
               *b_name = module_name(w, i, "base_model.model.", ".lora_B.weight");
    if (!a_name || !b_name || !b) return pst_error_set(w->err, PST_E_NOMEM, w->path, "no memory to write the adapter");
    memcpy(b, t.b, floats * sizeof *b);
    t.b = b;
    items[2 * i] = (pst_engine_safetensors_item){a_name, {(uint64_t)t.rank, (uint64_t)t.n_in}, t.a};
    items[2 * i + 1] = (pst_engine_safetensors_item){b_name, {(uint64_t)t.n_out, (uint64_t)t.rank}, b};
    code = reorder(w->family, w->modules[i], w->base, false, &t, w->path, w->err);
  }
  for (size_t k = 0; k < PST_ENGINE_LORA_NOTES; k++)
    if (w->lora->notes[k]) notes[n_notes++] = (pst_engine_safetensors_note){pst_engine_lora_keys[k], w->lora->notes[k]};
  return code ? code : pst_engine_safetensors_write(path, items, 2 * n, notes, n_notes, w->err);
}

/* The first target of its module, and how many layers have it. */
static bool is_first(const writing *w, size_t i, int *ret_n_layers) {
  *ret_n_layers = 0;
  for (size_t k = 0; k < w->lora->n_targets; k++) {
    if (w->modules[k] != w->modules[i]) continue;
    if (k < i) return false;
    ++*ret_n_layers;
  }
  return true;
}

/* Modules by their short names where every layer has them, else one by one: PEFT makes an adapter for each that a name fits. */
static int put_modules(const writing *w, pst_json_writer *j) {
  const pst_engine_lora *lora = w->lora;
  int n_layers = 0;
  bool everywhere = true;
  for (size_t i = 0; i < lora->n_targets; i++)
    if (is_first(w, i, &n_layers)) everywhere &= n_layers == w->base->n_layers;
  pst_json_key(j, "target_modules");
  pst_json_begin_array(j);
  for (size_t i = 0; i < lora->n_targets; i++) {
    if (everywhere && !is_first(w, i, &n_layers)) continue;
    const char *full = module_name(w, i, "", "");
    if (!full) return pst_error_set(w->err, PST_E_NOMEM, w->path, "no memory to write the adapter");
    pst_json_put_cstr(j, everywhere ? strrchr(w->modules[i]->module, '.') + 1 : full);
  }
  pst_json_end_array(j);
  return 0;
}

/* Ranks and alphas of the targets that differ from the first's. */
static int put_patterns(const writing *w, pst_json_writer *j) {
  static const char *const keys[] = {"rank_pattern", "alpha_pattern"};
  int rank = w->lora->targets[0].rank;
  for (size_t k = 0; k < PST_ARRAY_LEN(keys); k++) {
    pst_json_key(j, keys[k]);
    pst_json_begin_object(j);
    for (size_t i = 0; i < w->lora->n_targets; i++) {
      if (w->lora->targets[i].rank == rank || (k == 1 && w->lora->alpha != 0)) continue;
      const char *full = module_name(w, i, "", "");
      if (!full) return pst_error_set(w->err, PST_E_NOMEM, w->path, "no memory to write the adapter");
      pst_json_member_int(j, full, w->lora->targets[i].rank);
    }
    pst_json_end_object(j);
  }
  return 0;
}

static int write_config(const writing *w, const char *path) {
  pst_buf out = PST_BUF_INIT;
  pst_json_writer j = pst_json_writer_on(&out, true);
  int rank = w->lora->targets[0].rank;
  pst_json_begin_object(&j);
  pst_json_member_cstr(&j, "peft_type", "LORA");
  pst_json_member_cstr(&j, "task_type", "CAUSAL_LM");
  pst_json_key(&j, "base_model_name_or_path");
  pst_json_put_null(&j);
  pst_json_member_cstr(&j, "bias", "none");
  pst_json_member_bool(&j, "fan_in_fan_out", false);
  pst_json_member_bool(&j, "inference_mode", true);
  pst_json_member_int(&j, "r", rank);
  pst_json_member_double(&j, "lora_alpha", w->lora->alpha == 0 ? (double)rank : (double)w->lora->alpha);
  pst_json_member_double(&j, "lora_dropout", 0);
  int code = put_modules(w, &j);
  if (!code) code = put_patterns(w, &j);
  pst_json_end_object(&j);
  if (!code && pst_buf_status(&out))
    code = pst_error_set(w->err, PST_E_NOMEM, w->path, "no memory to write the adapter");
  if (!code) code = pst_file_write_atomic(path, out.data, out.n, w->err);
  pst_buf_done(&out);
  return code;
}

static int make_temp(const char *path, pst_arena *arena, const char **ret_temp, pst_error *err) {
  for (int i = 0; i < TEMP_TRIES; i++) {
    uint32_t tag = 0;
    int code = pst_random_secret(&tag, sizeof tag);
    const char *temp = code ? NULL : pst_arena_printf(arena, "%s.%08x.part", path, tag);
    if (!temp) return pst_error_set(err, PST_E_NOMEM, path, "cannot choose a name for the temporary folder");
    if (!mkdir(temp, 0777)) {
      *ret_temp = temp;
      return 0;
    }
    if (errno != EEXIST) return pst_error_set_errno(err, errno, path, "cannot make the folder");
  }
  return pst_error_set(err, PST_E_EXISTS, path, "cannot find a free name for the temporary folder");
}

/* Both files into a folder beside `path`, which then takes its name. */
static int write_folder(const writing *w) {
  const char *temp = NULL;
  int code = make_temp(w->path, w->arena, &temp, w->err);
  if (code) return code;
  const char *weights = pst_arena_printf(w->arena, "%s/adapter_model.safetensors", temp),
             *config = pst_arena_printf(w->arena, "%s/adapter_config.json", temp);
  if (!weights || !config) code = pst_error_set(w->err, PST_E_NOMEM, w->path, "no memory to write the adapter");
  if (!code) code = write_weights(w, weights);
  if (!code) code = write_config(w, config);
  if (!code && rename(temp, w->path)) code = pst_error_set_errno(w->err, errno, w->path, "cannot rename into place");
  if (!code) return 0;
  if (weights) (void)unlink(weights);
  if (config) (void)unlink(config);
  (void)rmdir(temp);
  return code;
}

int pst_engine_lora_write_peft(const pst_engine_lora *lora, const pst_engine_model_info *base, const char *path,
                               pst_error *err) {
  writing w = {.lora = lora, .base = base, .path = path, .err = err};
  size_t n = lora->n_targets;
  int code = find_family(base, path, &w.family, err);
  if (code) return code;
  if (!lora->architecture || n == 0 || strcmp(lora->architecture, base->architecture) != 0)
    return pst_error_set(err, PST_E_BAD_INPUT, path, "an adapter of architecture '%s' for a model of '%s'",
                         lora->architecture && n ? lora->architecture : "(none)", base->architecture);
  if (pst_dir_exists(path) || pst_file_exists(path))
    return pst_error_set(err, PST_E_EXISTS, path, "is there already; give the adapter's folder another name");
  w.arena = pst_arena_create();
  w.modules = w.arena ? pst_arena_calloc(w.arena, n, sizeof *w.modules) : NULL;
  w.layers = w.arena ? pst_arena_calloc(w.arena, n, sizeof *w.layers) : NULL;
  if (!w.modules || !w.layers) code = pst_error_set(err, PST_E_NOMEM, path, "no memory to write the adapter");
  for (size_t i = 0; i < n && !code; i++) code = place_target(&w, i);
  if (!code) code = write_folder(&w);
  pst_arena_free(w.arena);
  return code;
}
