/* Adapters that have a name here: checked against their model once, kept as GGUF files by content hash. What serves them is engines.c. */
#include <penstock/gateway.h>
#include <penstock/models.h>

#include <string.h>
#include <unistd.h>

static int no_memory(pst_error *err) { return pst_error_set(err, PST_E_NOMEM, "adapter", "no memory for an adapter"); }

/* The model's file and its hash. */
static int find_base(pst_store *store, const char *model, pst_models_file *ret_file, pst_error *err) {
  pst_models_file file = {.path = NULL};
  int code = pst_models_resolve(pst_store_home(store), model, &file, err);
  if (!code && !file.sha256[0]) code = pst_models_hash(pst_store_home(store), file.path, NULL, file.sha256, err);
  if (code)
    pst_models_file_done(&file);
  else
    *ret_file = file;
  return code;
}

/* Notes that the file lacks; the base's must be right where it is said. */
static int complete_notes(pst_engine_lora *lora, const pst_gateway_adapter *a, const char *base, pst_error *err) {
  const struct {
    pst_engine_lora_note note;
    const char *text;
  } wanted[] = {{PST_ENGINE_LORA_NAME, a->name},
                {PST_ENGINE_LORA_BASE, base},
                {PST_ENGINE_LORA_DATA, a->data},
                {PST_ENGINE_LORA_RUN, a->run}};
  const char *said = lora->notes[PST_ENGINE_LORA_BASE];
  if (said && strcmp(said, base) != 0)
    return pst_error_set(err, PST_E_BAD_INPUT, "adapter",
                         "the adapter was made for the model file %.12s..., \"%s\" is %.12s...", said, a->model, base);
  int code = 0;
  for (size_t i = 0; i < PST_ARRAY_LEN(wanted) && !code; i++)
    if (wanted[i].text && !lora->notes[wanted[i].note])
      code = pst_engine_lora_set_note(lora, wanted[i].note, wanted[i].text, err);
  return code;
}

/* Whether the name is free for the file, or stands for the same already: what is refused must not be among the store's files, where nobody could tell it from one that a
 * plan names. */
static int check_name(pst_store *store, const char *name, const char *part, pst_error *err) {
  pst_store_adapter row;
  pst_map map;
  char hash[65];
  int code = pst_store_adapter_get(store, pst_str_from(name), &row, NULL);
  if (code) return 0; /* free; or what is wrong is said when it is put */
  code = pst_map_open(part, &map, err);
  if (code) return code;
  pst_sha256_hex(map.data, map.n, hash);
  pst_map_close(&map);
  return strcmp(hash, row.file)
             ? pst_error_set(err, PST_E_EXISTS, "name",
                             "the adapter \"%s\" is there already and is another; choose a name", name)
             : 0;
}

/* The adapter's file among the store's, and its row. On its way there it has one name, so that what a killed process left is written over by the next; one process at a
 * time. */
static int keep(pst_store *store, const pst_gateway_adapter *a, const pst_engine_lora *lora, pst_store_adapter *row,
                pst_error *err) {
  pst_buf part = PST_BUF_INIT, lock = PST_BUF_INIT;
  int fd = -1;
  pst_buf_printf(&part, "%s/adapter-%s.part", pst_store_home(store), a->name);
  pst_buf_printf(&lock, "%s/adapters.lock", pst_store_home(store));
  int code = pst_buf_status(&part) || pst_buf_status(&lock) ? no_memory(err) : pst_file_lock(lock.data, &fd, err);
  if (!code) {
    code = pst_engine_lora_write_gguf(lora, part.data, err);
    if (!code) code = check_name(store, a->name, part.data, err);
    if (!code) code = pst_store_file_adopt(store, part.data, row->file, err);
    if (code) (void)unlink(part.data);
    if (!code) code = pst_store_adapter_put(store, row, &a->origin, err);
    (void)close(fd);
  }
  pst_buf_done(&part);
  pst_buf_done(&lock);
  return code;
}

static void copy_text(char *out, size_t n, const char *text) { (void)snprintf(out, n, "%s", text ? text : ""); }

static void describe(const pst_engine_lora *lora, const pst_gateway_adapter *a, const pst_models_file *base,
                     pst_store_adapter *row) {
  copy_text(row->name, sizeof row->name, a->name);
  copy_text(row->base, sizeof row->base, base->name[0] ? base->name : base->path);
  copy_text(row->base_sha256, sizeof row->base_sha256, base->sha256);
  copy_text(row->workload, sizeof row->workload, a->workload);
  copy_text(row->data, sizeof row->data, lora->notes[PST_ENGINE_LORA_DATA]);
  copy_text(row->run, sizeof row->run, lora->notes[PST_ENGINE_LORA_RUN]);
  for (size_t i = 0; i < lora->n_targets; i++) {
    const pst_engine_lora_target *t = &lora->targets[i];
    row->rank = PST_MAX(row->rank, t->rank);
    row->bytes += (int64_t)t->rank * (t->n_in + t->n_out) * (int64_t)sizeof(float);
  }
  row->created_ms = pst_clock_unix_ms();
}

int pst_gateway_adapter_add(pst_store *store, const pst_gateway_adapter *a, pst_store_adapter *ret_row,
                            pst_error *err) {
  pst_models_file base = {.path = NULL};
  pst_engine_lora read = {0}, *lora = a->lora ? a->lora : &read;
  pst_store_adapter row = {.rank = 0};
  if (!pst_store_adapter_name_valid(pst_str_from(a->name)))
    return pst_error_set(err, PST_E_BAD_INPUT, "name",
                         "an adapter's name has 1 to 63 letters, digits, dots, dashes and underscores");
  int code = find_base(store, a->model, &base, err);
  if (code) return code;
  if (!a->lora) code = pst_engine_adapter_read(base.path, a->path, &read, err);
  if (!code) code = complete_notes(lora, a, base.sha256, err);
  if (!code) {
    describe(lora, a, &base, &row);
    code = keep(store, a, lora, &row, err);
  }
  pst_engine_lora_done(&read);
  pst_models_file_done(&base);
  if (!code && ret_row) *ret_row = row;
  return code;
}

int pst_gateway_adapter_read(pst_store *store, const char *name, const char *model, pst_engine_lora *ret_lora,
                             pst_error *err) {
  pst_store_adapter row;
  pst_models_file base = {.path = NULL};
  char *path = NULL;
  int code = pst_store_adapter_get(store, pst_str_from(name), &row, err);
  if (!code && row.stale)
    return pst_error_set(err, PST_E_BAD_INPUT, "adapter", "%s was made of data that were erased since", name);
  if (!code) code = find_base(store, model, &base, err);
  if (!code && strcmp(row.base_sha256, base.sha256) != 0)
    code = pst_error_set(err, PST_E_BAD_INPUT, "adapter",
                         "%s is an adapter of %s as the file %.12s..., and \"%s\" is %.12s...", name, row.base,
                         row.base_sha256, model, base.sha256);
  if (!code) code = pst_store_file_path(store, pst_str_from(row.file), &path, err);
  if (!code) code = pst_engine_lora_read(path, NULL, ret_lora, err);
  pst_free(path);
  pst_models_file_done(&base);
  return code;
}
