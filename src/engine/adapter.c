/* LoRA adapters made ready for a model.
 *
 * Owns which product of which layer a target is, whether it fits, and the packing. Files are lora.c's and lora_peft.c's; forward_adapter.c computes. Both matrices of a target
 * are packed as the kernels' own, so that an adapter's products are theirs and as exact. Their form follows the base's: floats beside floats; beside quantized
 * weights four or eight bits, since an adapter costs the bytes it has. There the scales of a and b are brought by powers of two to where half precision is at its best, which is
 * taken back, with the adapter's own scale, from a x. */
#include "engine/adapter.h"

#include <math.h>
#include <stdlib.h>
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
  int first, n_out; /* rows of the target's b */
  double scale;
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

/* How a rank's matrices are folded: as often as whole blocks, and the lanes or columns that there are, allow. */
static size_t folds_of_a(size_t rank, size_t n_in) {
  size_t folds = 1;
  while (folds < PST_ENGINE_ADAPTER_FOLDS && 2 * folds * rank <= PST_KERNELS_GROUP &&
         n_in % (2 * folds * PST_KERNELS_BLOCK) == 0)
    folds *= 2;
  return folds;
}

static size_t folds_of_b(size_t rank, size_t n_out) {
  size_t folds = 1;
  while (folds < PST_ENGINE_ADAPTER_FOLDS && 2 * folds * rank <= PST_KERNELS_BLOCK && n_out % PST_KERNELS_GROUP == 0)
    folds *= 2;
  return folds;
}

static size_t blocks_of(size_t n) { return (n + PST_KERNELS_BLOCK - 1) / PST_KERNELS_BLOCK; }

/* Beside weights of up to six bits each four, beside others eight: what rounds an adapter is then far below what rounds its base (docs/notes/adapters.md). */
static uint32_t type_beside(const pst_kernels_matrix *base) {
  const pst_kernels_type_row *t = pst_kernels_type_info(base->type);
  return 8 * t->block_bytes <= 6 * t->block_elements ? PST_TYPE_Q4_0 : PST_TYPE_Q8_0;
}

static int init_quantized(pst_engine_adapter_part *part, const pst_kernels_matrix *base, pst_error *err) {
  enum { GROUP = PST_KERNELS_GROUP };
  uint32_t type = type_beside(base);
  size_t n_out = base->n_rows;
  part->a_folds = folds_of_a(part->rank, part->n_in);
  part->b_folds = folds_of_b(part->rank, n_out);
  size_t n_groups = (n_out + GROUP - 1) / GROUP, folded = (n_groups + part->b_folds - 1) / part->b_folds * GROUP;
  int code = pst_kernels_matrix_init(type, part->a_folds * part->rank, part->n_in / part->a_folds, &part->a, err);
  if (code) return code;
  code = pst_kernels_matrix_init(type, part->b_folds > 1 ? folded : n_out, blocks_of(part->rank) * PST_KERNELS_BLOCK,
                                 &part->b, err);
  part->b.group_step = part->b_folds * GROUP;
  return code;
}

static size_t a_bytes(const pst_engine_adapter_part *part) {
  return part->a_folds ? pst_kernels_matrix_bytes(&part->a)
                       : part->rank * PST_KERNELS_DOT_COLS(part->n_in) * sizeof(float);
}

static int add_part(making *m, const pst_engine_lora_target *t, int layer, const piece *p) {
  pst_engine_adapter_part *part = &m->adapter->layers[layer][p->slot];
  if (part->rank)
    return pst_error_set(m->err, PST_E_BAD_INPUT, NULL, "two targets of the adapter are the same matrix: '%s'",
                         t->name);
  pack_job *j = &m->jobs[m->n_jobs++];
  *j = (pack_job){t, part, p->first, (int)p->base->n_rows, pst_engine_lora_scale(m->lora, t), 0, 0};
  part->rank = (size_t)t->rank;
  part->n_in = (size_t)t->n_in;
  if (!p->base->is_float) return init_quantized(part, p->base, m->err);
  return pst_kernels_matrix_init(PST_TYPE_F32, p->base->n_rows, part->rank, &part->b, m->err);
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

static size_t take_bytes(making *m, size_t bytes) {
  size_t at = m->used;
  m->used += (bytes + 63) & ~(size_t)63;
  return at;
}

static int by_part(const void *x, const void *y) {
  uintptr_t a = (uintptr_t)((const pack_job *)x)->part, b = (uintptr_t)((const pack_job *)y)->part;
  return (a > b) - (a < b);
}

/* Where each matrix lies: a's before its b, in the order of the parts. */
static void place_all(making *m) {
  qsort(m->jobs, m->n_jobs, sizeof *m->jobs, by_part);
  for (pack_job *j = m->jobs; j < m->jobs + m->n_jobs; j++) {
    j->a_at = take_bytes(m, a_bytes(j->part));
    j->b_at = take_bytes(m, pst_kernels_matrix_bytes(&j->part->b));
  }
}

/* ---- packing ---- */

/* Row `row` of the folded matrix a or b; b's is put together in room[n_cols]. */
static const float *folded_row(const pack_job *j, bool is_b, size_t row, float *room) {
  enum { GROUP = PST_KERNELS_GROUP };
  const pst_engine_adapter_part *part = j->part;
  size_t rank = part->rank, width = PST_KERNELS_BLOCK / part->b_folds;
  if (!is_b) return j->target->a + row % rank * part->n_in + row / rank * part->a.n_cols;
  memset(room, 0, part->b.n_cols * sizeof *room);
  for (size_t k = 0; k < part->b_folds; k++) {
    size_t from = GROUP * (row / GROUP * part->b_folds + k) + row % GROUP;
    if (from < (size_t)j->n_out)
      memcpy(room + k * width, j->target->b + ((size_t)j->first + from) * rank, rank * sizeof *room);
  }
  return room;
}

/* The exponent that brings the greatest of n scales to where a half-precision one has room on both sides. */
static int exponent_of(const float *d, size_t n) {
  float most = 0;
  int exponent = 0;
  for (size_t i = 0; i < n; i++) most = PST_MAX(most, d[i]);
  if (most > 0) frexpf(most, &exponent);
  return most > 0 ? 3 - exponent : 0;
}

/* Eight codes as the compiler's own vectors. */
typedef int8_t codes8 __attribute__((vector_size(8)));
typedef int16_t signed8 __attribute__((vector_size(16)));
typedef uint16_t words8 __attribute__((vector_size(16)));

/* The nearest to q * 8 / 127, which is 129 / 2048, times `sign`: from 0 to 15 in place of -8 to 7, to which 8 belongs too. */
static void narrow_codes(const int8_t *q, int sign, uint8_t *codes) {
  const uint16_t factor = (uint16_t)(sign * 129), middle = 8 * 2048 + 1024;
  for (int i = 0; i < PST_KERNELS_BLOCK; i += 8) {
    codes8 v;
    memcpy(&v, q + i, sizeof v);
    words8 w = ((words8) __builtin_convertvector(v, signed8) * factor + middle) >> 11;
    v = __builtin_convertvector(w - (w >> 4), codes8);
    memcpy(codes + i, &v, sizeof v);
  }
}

/* A block of Q4_0 or Q8_0, its scale times `up`, from what the kernels made of an input's block: d and q[32], one of them -127 or 127. Four bits are made of the
 * eight as Q4_0 wants them: the greatest becomes -8. */
static void put_block(uint32_t type, float d, const int8_t *q, float up, uint8_t *dst) {
  enum { BLOCK = PST_KERNELS_BLOCK };
  uint8_t codes[BLOCK];
  if (type == PST_TYPE_Q4_0) {
    int sign = memchr(q, (uint8_t)-127, BLOCK) ? 1 : -1;
    narrow_codes(q, sign, codes);
    d *= (float)sign * 127.0f / 8.0f;
  } else {
    for (int i = 0; i < BLOCK; i++) codes[i] = (uint8_t)(q[i] + 127);
  }
  uint16_t half = pst_kernels_half_from_float(d * up);
  memcpy(dst, &half, sizeof half);
  pst_kernels_block_put(type, codes, dst);
}

/* Rows of `room`, their scales times 2^exponent, as the matrix at dst. */
static void pack_codes(const pst_kernels_matrix *w, const pst_kernels_input *room, int exponent, uint8_t *rows,
                       uint8_t *dst) {
  enum { GROUP = PST_KERNELS_GROUP };
  size_t block_bytes = pst_kernels_type_info(w->type)->block_bytes;
  float up = ldexpf(1, exponent);
  for (size_t g = 0; g < w->n_groups; g++) {
    size_t first = g * GROUP * room->n_blocks, n = PST_MIN((size_t)GROUP, w->n_rows - g * GROUP) * room->n_blocks;
    for (size_t b = 0; b < n; b++)
      put_block(w->type, room->d[first + b], room->q + (first + b) * PST_KERNELS_BLOCK, up, rows + b * block_bytes);
    pst_kernels_matrix_pack(w, rows, g, g + 1, dst);
  }
}

/* A matrix of a target, its codes those that the kernels give an input: no search for scales, which would take most of the time that loading has. */
static int pack_folded(const pst_kernels *k, const pack_job *j, bool is_b, uint8_t *dst, int *ret_exponent) {
  const pst_kernels_matrix *w = is_b ? &j->part->b : &j->part->a;
  float *row = pst_malloc(w->n_cols * sizeof *row);
  uint8_t *rows = pst_malloc(PST_KERNELS_GROUP * pst_kernels_row_bytes(w->type, w->n_cols));
  void *memory = pst_malloc_aligned(pst_kernels_input_bytes(w->n_rows, w->n_cols), 64);
  int code = row && rows && memory ? 0 : PST_E_NOMEM;
  if (!code) {
    pst_kernels_input room;
    pst_kernels_input_init(&room, w->n_rows, w->n_cols, memory);
    for (size_t r = 0; r < w->n_rows; r++) k->quantize(folded_row(j, is_b, r, row), 0, room.n_blocks, &room, r);
    *ret_exponent = exponent_of(room.d, w->n_rows * room.n_blocks);
    pack_codes(w, &room, *ret_exponent, rows, dst);
  }
  pst_free(memory);
  pst_free(rows);
  pst_free(row);
  return code;
}

/* The rows of a as floats, padded with zeros. */
static void pack_rows(const pack_job *j, float *dst) {
  size_t n = j->part->n_in, cols = PST_KERNELS_DOT_COLS(n);
  memset(dst, 0, (a_bytes(j->part) + 63) & ~(size_t)63);
  for (size_t r = 0; r < j->part->rank; r++) memcpy(dst + r * cols, j->target->a + r * n, n * sizeof *dst);
}

/* b as floats, each times the scale. */
static int pack_floats(const pack_job *j, uint8_t *dst) {
  const pst_kernels_matrix *w = &j->part->b;
  size_t n = w->n_rows * w->n_cols, end = w->n_groups * w->group_bytes,
         taken = (pst_kernels_matrix_bytes(w) + 63) & ~(size_t)63;
  const float *from = j->target->b + (size_t)j->first * w->n_cols;
  float *floats = pst_malloc(n * sizeof *floats);
  if (!floats) return PST_E_NOMEM;
  for (size_t i = 0; i < n; i++) floats[i] = from[i] * (float)j->scale;
  pst_kernels_matrix_pack(w, floats, 0, w->n_groups, dst);
  memset(dst + end, 0, taken - end); /* the key is a hash of all */
  pst_free(floats);
  return 0;
}

static int pack(const making *m, const pack_job *j) {
  uint8_t *a = m->adapter->memory + j->a_at, *b = m->adapter->memory + j->b_at;
  if (!j->part->a_folds) {
    pack_rows(j, (float *)(void *)a);
    return pack_floats(j, b);
  }
  int a_exponent = 0, b_exponent = 0;
  int code = pack_folded(m->model->kernels, j, false, a, &a_exponent);
  if (!code) code = pack_folded(m->model->kernels, j, true, b, &b_exponent);
  j->part->factor = (float)ldexp(j->scale, -a_exponent - b_exponent);
  return code;
}

static void pack_some(void *arg, pst_engine_team *team, int index) {
  making *m = arg;
  (void)team;
  (void)index;
  for (size_t i; (i = atomic_fetch_add(&m->next, 1)) < m->n_jobs && !atomic_load(&m->code);) {
    int code = pack(m, &m->jobs[i]);
    if (code) atomic_store(&m->code, code);
  }
}

static int pack_all(making *m) {
  pst_engine_adapter *a = m->adapter;
  place_all(m);
  a->memory_bytes = m->used;
  a->memory = pst_malloc_aligned(a->memory_bytes, 64);
  if (!a->memory) return pst_error_set(m->err, PST_E_NOMEM, NULL, "no memory for an adapter");
  pst_engine_pool_run(PST_MIN(pst_cpu_count(), PST_ENGINE_MAX_THREADS), pack_some, m);
  if (atomic_load(&m->code)) return pst_error_set(m->err, atomic_load(&m->code), NULL, "no memory for an adapter");
  uint64_t key = a->model_key;
  for (size_t i = 0; i < m->n_jobs; i++) {
    const pack_job *j = &m->jobs[i];
    pst_engine_adapter_part *part = j->part;
    if (part->a_folds)
      part->a.data = a->memory + j->a_at;
    else
      part->rows = (const float *)(const void *)(a->memory + j->a_at);
    part->b.data = a->memory + j->b_at;
    uint32_t factor;
    memcpy(&factor, &part->factor, sizeof factor);
    uint64_t shape[4] = {(uint64_t)(part - &a->layers[0][0]), part->b.type, part->rank, factor};
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

/* The table that the note says, and each code's text. */
static int read_codes(const making *m) {
  pst_engine_adapter *a = m->adapter;
  const pst_engine_code *list;
  if (!a->notes[PST_ENGINE_LORA_CODES]) return 0;
  int code = pst_engine_codes_parse(pst_str_from(a->notes[PST_ENGINE_LORA_CODES]), &a->codes, m->err);
  if (code) return code;
  size_t n = pst_engine_codes_list(a->codes, &list);
  a->code_ends = pst_calloc(n + 1, sizeof *a->code_ends);
  if (!a->code_ends) return pst_error_set(m->err, PST_E_NOMEM, NULL, "no memory for an adapter");
  for (size_t i = 0; i < n; i++) {
    bool text = pst_engine_token_is_text(m->model, list[i].token);
    for (size_t k = 0; k < list[i].n; k++) text &= pst_engine_token_is_text(m->model, list[i].piece[k]);
    if (!text)
      return pst_error_set(m->err, PST_E_BAD_INPUT, "codes",
                           "the code %d, or what it stands for, is no text in the model's vocabulary", list[i].token);
    if (pst_engine_detokenize(m->model, list[i].piece, list[i].n, false, &a->code_texts))
      return pst_error_set(m->err, PST_E_NOMEM, NULL, "no memory for an adapter");
    a->code_ends[i] = a->code_texts.n;
  }
  a->info.n_codes = (int)n;
  return 0;
}

static int make(making *m) {
  const pst_engine_model *model = m->model;
  pst_engine_adapter *a = m->adapter;
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
  if (!code) code = read_codes(m);
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
  pst_engine_codes_free(a->codes);
  pst_buf_done(&a->code_texts);
  pst_free(a->code_ends);
  pst_free(a->layers);
  pst_free(a->memory);
  pst_free(a);
}

const pst_engine_codes *pst_engine_adapter_codes(const pst_engine_adapter *a) { return a->codes; }

pst_str pst_engine_adapter_code_text(const pst_engine_adapter *a, int32_t token) {
  const pst_engine_code *list, *found = a && a->codes ? pst_engine_codes_find(a->codes, token) : NULL;
  if (!found) return (pst_str){NULL, 0};
  (void)pst_engine_codes_list(a->codes, &list);
  size_t i = (size_t)(found - list), start = i ? a->code_ends[i - 1] : 0;
  return (pst_str){pst_buf_text(&a->code_texts) + start, a->code_ends[i] - start};
}

const pst_engine_adapter_info *pst_engine_adapter_get_info(const pst_engine_adapter *a) { return &a->info; }
