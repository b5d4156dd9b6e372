/* LoRA adapters made ready for a model.
 *
 * Owns which product of which layer a target is, whether it fits, and the packing. Files are lora.c's and lora_peft.c's; forward.c computes. Both matrices of a target are
 * packed like any float matrix, so that an adapter's products are the kernels' own and as exact; the scale is multiplied into b. */
#include "engine/adapter.h"

#include <math.h>
#include <string.h>

#include "engine/pool.h"

enum { PARTS_OF_TENSOR = 3 };

/* Some rows of a tensor are a slot's matrix. */
typedef struct piece {
  const pst_kernels_matrix *base;
  pst_engine_adapter_slot slot;
  int first; /* row of the tensor */
} piece;

typedef struct pack_job {
  const pst_engine_lora_target *target;
  pst_engine_adapter_part *part;
  int first; /* row of the target's b */
  float scale;
  size_t a_at, b_at; /* in the block */
} pack_job;

typedef struct making {
  const pst_engine_model *model;
  const pst_engine_lora *lora;
  pst_engine_adapter *adapter;
  pack_job *jobs;
  size_t n_jobs;
  size_t used;
  pst_error *err;
  atomic_size_t next;
  atomic_int code;
} making;

/* ---- what a target is ---- */

static int add_piece(piece *pieces, int n, const pst_kernels_matrix *base, pst_engine_adapter_slot slot, int *row) {
  pieces[n] = (piece){base, slot, *row};
  *row += (int)base->n_rows;
  return n + 1;
}

/* The pieces of a layer's tensor, in order of its rows; *ret_rows: how many it has. 0: no product here takes an adapter for it. */
static int find_pieces(const pst_engine_layer *y, pst_str tensor, piece pieces[PARTS_OF_TENSOR], int *ret_rows) {
  const struct {
    const char *tensor;
    const pst_kernels_matrix *base[PARTS_OF_TENSOR];
    pst_engine_adapter_slot slots[PARTS_OF_TENSOR];
  } table[] = {
      {"attn_q", {&y->q}, {PST_ENGINE_ADAPT_Q}},
      {"attn_k", {&y->k}, {PST_ENGINE_ADAPT_K}},
      {"attn_v", {&y->v}, {PST_ENGINE_ADAPT_V}},
      {"attn_qkv", {&y->q, &y->k, &y->v}, {PST_ENGINE_ADAPT_Q, PST_ENGINE_ADAPT_K, PST_ENGINE_ADAPT_V}},
      {"attn_output", {&y->o}, {PST_ENGINE_ADAPT_O}},
      {"ffn_gate", {&y->gate}, {PST_ENGINE_ADAPT_GATE}},
      {"ffn_up", {&y->up}, {PST_ENGINE_ADAPT_UP}},
      {"ffn_down", {&y->down}, {PST_ENGINE_ADAPT_DOWN}},
  };
  int n = 0;
  *ret_rows = 0;
  if (y->conv.in.n_rows || y->delta.out.n_rows) {
    if (pst_str_starts(tensor, PST_STR("attn_"))) return 0;
  }
  if (y->experts.router.n_rows && pst_str_starts(tensor, PST_STR("ffn_"))) return 0;
  for (size_t i = 0; i < PST_ARRAY_LEN(table); i++) {
    if (!pst_str_is(tensor, table[i].tensor)) continue;
    for (int k = 0; k < PARTS_OF_TENSOR && table[i].base[k]; k++) {
      if (table[i].base[k]->n_rows == 0) return 0;
      n = add_piece(pieces, n, table[i].base[k], table[i].slots[k], ret_rows);
    }
  }
  return n;
}

/* phi3 has gate and up in one tensor, of twice the rows. */
static int find_fused_up(const pst_engine_layer *y, piece pieces[PARTS_OF_TENSOR], int *ret_rows) {
  *ret_rows = 0;
  int n = add_piece(pieces, 0, &y->gate, PST_ENGINE_ADAPT_GATE, ret_rows);
  return add_piece(pieces, n, &y->up, PST_ENGINE_ADAPT_UP, ret_rows);
}

static bool split_name(const char *name, int n_layers, int *ret_layer, pst_str *ret_tensor) {
  pst_str s = pst_str_from(name), end = PST_STR(".weight"), start = PST_STR("blk.");
  if (!pst_str_starts(s, start) || s.n < start.n + end.n || memcmp(s.data + s.n - end.n, end.data, end.n) != 0)
    return false;
  s = (pst_str){s.data + start.n, s.n - start.n - end.n};
  size_t dot = pst_str_find(s, PST_STR("."), 0);
  int64_t layer = 0;
  if (dot == SIZE_MAX || pst_parse_i64((pst_str){s.data, dot}, 0, n_layers - 1, &layer)) return false;
  *ret_layer = (int)layer;
  *ret_tensor = (pst_str){s.data + dot + 1, s.n - dot - 1};
  return true;
}

/* ---- layout ---- */

/* Of finite floats without their signs the greater has the greater bits. */
static bool fits_half(const float *x, size_t n, double scale) {
  uint32_t most = 0;
  float greatest;
  for (size_t i = 0; i < n; i++) {
    uint32_t bits;
    memcpy(&bits, &x[i], sizeof bits);
    most = PST_MAX(most, bits & 0x7fffffffu);
  }
  memcpy(&greatest, &most, sizeof greatest);
  return (double)greatest * scale < 65504.0;
}

/* Beside quantized weights half precision: its rounding is far below theirs, and the bytes are what an adapter costs. */
static uint32_t type_of(const pst_kernels_matrix *base, const float *x, size_t n, double scale) {
  return base->is_float || !fits_half(x, n, fabs(scale)) ? PST_TYPE_F32 : PST_TYPE_F16;
}

static size_t a_row_bytes(const pst_engine_adapter_part *part) {
  return PST_KERNELS_DOT_COLS(part->n_in) * (part->a_type == PST_TYPE_F32 ? 4 : 2);
}

static size_t a_bytes(const pst_engine_adapter_part *part) { return part->rank * a_row_bytes(part); }

static size_t take_bytes(making *m, size_t bytes) {
  size_t at = m->used;
  m->used += (bytes + 63) & ~(size_t)63;
  return at;
}

static int add_part(making *m, const pst_engine_lora_target *t, int layer, const piece *p) {
  pst_engine_adapter_part *part = &m->adapter->layers[layer][p->slot];
  if (part->rank)
    return pst_error_set(m->err, PST_E_BAD_INPUT, NULL, "two targets of the adapter are the same matrix: '%s'",
                         t->name);
  double scale = pst_engine_lora_scale(m->lora, t);
  size_t rank = (size_t)t->rank, n_in = (size_t)t->n_in;
  uint32_t b_type = type_of(p->base, t->b + (size_t)p->first * rank, p->base->n_rows * rank, scale);
  int code = pst_kernels_matrix_init(b_type, p->base->n_rows, rank, &part->b, m->err);
  if (code) return code;
  part->rank = rank;
  part->n_in = n_in;
  part->a_type = type_of(p->base, t->a, rank * n_in, 1);
  size_t a_at = take_bytes(m, a_bytes(part)), b_at = take_bytes(m, pst_kernels_matrix_bytes(&part->b));
  m->jobs[m->n_jobs++] = (pack_job){t, part, p->first, (float)scale, a_at, b_at};
  return 0;
}

static int add_target(making *m, const pst_engine_lora_target *t) {
  const pst_engine_model *model = m->model;
  piece pieces[PARTS_OF_TENSOR];
  pst_str tensor = {0};
  int layer = 0, rows = 0, n = 0;
  if (split_name(t->name, model->info.n_layers, &layer, &tensor)) {
    const pst_engine_layer *y = &model->layers[layer];
    n = find_pieces(y, tensor, pieces, &rows);
    if (n == 1 && pst_str_is(tensor, "ffn_up") && !strcmp(model->info.architecture, "phi3"))
      n = find_fused_up(y, pieces, &rows);
  }
  if (n == 0) return pst_error_set(m->err, PST_E_UNSUPPORTED, NULL, "the model's '%s' takes no adapter here", t->name);
  if (t->n_out != rows || (size_t)t->n_in != pieces[0].base->n_cols)
    return pst_error_set(m->err, PST_E_BAD_INPUT, NULL,
                         "the adapter's '%s' is %d by %d, where the model's is %d by %zu: it is another model's",
                         t->name, t->n_out, t->n_in, rows, pieces[0].base->n_cols);
  if (t->rank > PST_ENGINE_ADAPTER_MAX_RANK)
    return pst_error_set(m->err, PST_E_LIMIT, NULL, "the adapter's '%s' has rank %d, more than %d; merge it instead",
                         t->name, t->rank, PST_ENGINE_ADAPTER_MAX_RANK);
  int code = 0;
  for (int k = 0; k < n && !code; k++) code = add_part(m, t, layer, &pieces[k]);
  m->adapter->info.rank = PST_MAX(m->adapter->info.rank, t->rank);
  return code;
}

/* ---- packing ---- */

/* The rows of a, padded with zeros. */
static int pack_rows(const pst_engine_adapter_part *part, const float *x, uint8_t *dst) {
  size_t bytes = a_row_bytes(part), own = pst_kernels_row_bytes(part->a_type, part->n_in);
  int code = 0;
  for (size_t r = 0; r < part->rank && !code; r++) {
    code = pst_kernels_quantize_row(part->a_type, x + r * part->n_in, part->n_in, NULL, dst + r * bytes);
    memset(dst + r * bytes + own, 0, bytes - own);
  }
  memset(dst + part->rank * bytes, 0, (-(part->rank * bytes)) & 63);
  return code;
}

/* The rows of x, each element times scale, into the matrix at dst. What lies between it and the next is zeroed: the key is a hash of all. */
static int pack(const pst_kernels_matrix *w, const float *x, float scale, uint8_t *dst) {
  enum { GROUP = PST_KERNELS_GROUP };
  size_t row_bytes = pst_kernels_row_bytes(w->type, w->n_cols);
  float *floats = pst_malloc(GROUP * w->n_cols * sizeof *floats);
  uint8_t *rows = pst_malloc(GROUP * row_bytes);
  int code = floats && rows ? 0 : PST_E_NOMEM;
  for (size_t g = 0; g < w->n_groups && !code; g++) {
    size_t n = PST_MIN((size_t)GROUP, w->n_rows - g * GROUP) * w->n_cols;
    const float *from = x + g * GROUP * w->n_cols;
    for (size_t i = 0; i < n; i++) floats[i] = from[i] * scale;
    if (w->type == PST_TYPE_F32)
      memcpy(rows, floats, n * sizeof *floats);
    else
      code = pst_kernels_quantize_row(w->type, floats, n, NULL, rows);
    if (!code) pst_kernels_matrix_pack(w, rows, g, g + 1, dst);
  }
  size_t end = w->n_groups * w->group_bytes, taken = (pst_kernels_matrix_bytes(w) + 63) & ~(size_t)63;
  memset(dst + end, 0, taken - end);
  pst_free(floats);
  pst_free(rows);
  return code;
}

static void pack_some(void *arg, pst_engine_team *team, int index) {
  making *m = arg;
  (void)team;
  (void)index;
  for (size_t i; (i = atomic_fetch_add(&m->next, 1)) < m->n_jobs && !atomic_load(&m->code);) {
    const pack_job *j = &m->jobs[i];
    uint8_t *memory = m->adapter->memory;
    int code = pack_rows(j->part, j->target->a, memory + j->a_at);
    if (!code)
      code = pack(&j->part->b, j->target->b + (size_t)j->first * (size_t)j->target->rank, j->scale, memory + j->b_at);
    if (code) atomic_store(&m->code, code);
  }
}

static int pack_all(making *m) {
  pst_engine_adapter *a = m->adapter;
  a->memory_bytes = m->used;
  a->memory = pst_malloc_aligned(a->memory_bytes, 64);
  if (!a->memory) return pst_error_set(m->err, PST_E_NOMEM, NULL, "no memory for an adapter");
  pst_engine_pool_run(PST_MIN(pst_cpu_count(), PST_ENGINE_MAX_THREADS), pack_some, m);
  if (atomic_load(&m->code)) return pst_error_set(m->err, atomic_load(&m->code), NULL, "no memory for an adapter");
  uint64_t key = a->model_key;
  for (size_t i = 0; i < m->n_jobs; i++) {
    const pack_job *j = &m->jobs[i];
    j->part->a = a->memory + j->a_at;
    j->part->b.data = a->memory + j->b_at;
    ptrdiff_t place = j->part - &a->layers[0][0];
    uint64_t shape[4] = {(uint64_t)place, j->part->a_type, j->part->b.type, j->part->rank};
    key = pst_hash64(shape, sizeof shape, key);
  }
  a->key = pst_hash64(a->memory, a->memory_bytes, key) | 1;
  a->info.bytes = (int64_t)m->used;
  return 0;
}

/* ---- opening ---- */

static int copy_notes(pst_engine_adapter *a, const pst_engine_lora *lora, pst_error *err) {
  for (size_t k = 0; k < PST_ENGINE_LORA_NOTES; k++) {
    if (!lora->notes[k]) continue;
    if (!(a->notes[k] = pst_strdup(lora->notes[k])))
      return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for an adapter");
    a->info.notes[k] = a->notes[k];
  }
  return 0;
}

static int make(making *m) {
  const pst_engine_model *model = m->model;
  pst_engine_adapter *a = m->adapter;
  if (model->info.n_dims)
    return pst_error_set(m->err, PST_E_UNSUPPORTED, NULL, "the model is an encoder (%s), which takes no adapters here",
                         model->info.architecture);
  if (!m->lora->architecture || strcmp(m->lora->architecture, model->info.architecture) != 0)
    return pst_error_set(m->err, PST_E_BAD_INPUT, NULL, "the adapter is for models of architecture '%s', not '%s'",
                         m->lora->architecture ? m->lora->architecture : "(none)", model->info.architecture);
  a->n_layers = model->info.n_layers;
  a->model_key = model->content_key;
  a->info.n_targets = (int)m->lora->n_targets;
  a->layers = pst_calloc((size_t)a->n_layers, sizeof *a->layers);
  m->jobs = pst_calloc(m->lora->n_targets * PARTS_OF_TENSOR, sizeof *m->jobs);
  if (!a->layers || !m->jobs) return pst_error_set(m->err, PST_E_NOMEM, NULL, "no memory for an adapter");
  int code = copy_notes(a, m->lora, m->err);
  for (size_t i = 0; i < m->lora->n_targets && !code; i++) code = add_target(m, &m->lora->targets[i]);
  return code ? code : pack_all(m);
}

int pst_engine_adapter_create(const pst_engine_model *model, const pst_engine_lora *lora,
                              pst_engine_adapter **ret_adapter, pst_error *err) {
  making m = {.model = model, .lora = lora, .err = err};
  m.adapter = pst_calloc(1, sizeof *m.adapter);
  if (!m.adapter) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for an adapter");
  atomic_init(&m.adapter->n_refs, 1);
  int code = make(&m);
  pst_free(m.jobs);
  if (code)
    pst_engine_adapter_unref(m.adapter);
  else
    *ret_adapter = m.adapter;
  return code;
}

int pst_engine_adapter_open(const pst_engine_model *model, const char *path, pst_engine_adapter **ret_adapter,
                            pst_error *err) {
  pst_engine_lora lora = {0};
  int code = pst_engine_lora_read(path, &model->info, &lora, err);
  if (code) return code;
  code = pst_engine_adapter_create(model, &lora, ret_adapter, err);
  if (code) pst_error_prefix(err, "%s", path);
  pst_engine_lora_done(&lora);
  return code;
}

int pst_engine_adapter_read(const char *model_path, const char *path, pst_engine_lora *ret_lora, pst_error *err) {
  pst_engine_model *model = NULL;
  pst_engine_adapter *adapter = NULL;
  pst_engine_lora lora = {0};
  int code = pst_engine_model_examine(model_path, &model, err);
  if (!code) code = pst_engine_lora_read(path, &model->info, &lora, err);
  if (!code && (code = pst_engine_adapter_create(model, &lora, &adapter, err))) pst_error_prefix(err, "%s", path);
  pst_engine_adapter_unref(adapter);
  pst_engine_model_unref(model);
  if (code)
    pst_engine_lora_done(&lora);
  else
    *ret_lora = lora;
  return code;
}

pst_engine_adapter *pst_engine_adapter_ref(pst_engine_adapter *a) {
  atomic_fetch_add(&a->n_refs, 1);
  return a;
}

void pst_engine_adapter_unref(pst_engine_adapter *a) {
  if (!a || atomic_fetch_sub(&a->n_refs, 1) > 1) return;
  for (size_t k = 0; k < PST_ENGINE_LORA_NOTES; k++) pst_free(a->notes[k]);
  pst_free(a->layers);
  pst_free(a->memory);
  pst_free(a);
}

const pst_engine_adapter_info *pst_engine_adapter_get_info(const pst_engine_adapter *a) { return &a->info; }
