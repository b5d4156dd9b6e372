/* What trainings of a workload's examples have in common (keep.h). */
#include "tune/keep.h"

#include <string.h>

enum { MOST_OF_A_NAME = 9999 };

int pst_tune_checkpoint_path(const pst_store *store, pst_str question, char *ret_path, size_t n, pst_error *err) {
  char hash[65], *dir = pst_path_join(pst_store_home(store), "tune");
  if (!dir) return pst_error_set(err, PST_E_NOMEM, NULL, "no memory for a path");
  pst_sha256_hex(question.data, question.n, hash);
  int code = pst_dir_make(dir, err), length = snprintf(ret_path, n, "%s/%.24s.checkpoint", dir, hash);
  pst_free(dir);
  if (!code && (length < 0 || (size_t)length >= n))
    code = pst_error_set(err, PST_E_LIMIT, "home", "the path of the data directory is too long");
  return code;
}

/* "banking77-1a2b3c4d", or "banking77-1a2b3c4d-2" for the second adapter of the same texts: what a name may not hold becomes a dash. */
static void name_of(const pst_gateway_adapter *a, int number, char out[64]) {
  int n = snprintf(out, 64, "%.48s-%.8s", a->workload, a->data);
  if (number > 1) snprintf(out + n, 64 - (size_t)n, "-%d", number);
  for (char *c = out; *c; c++)
    if (!((*c >= 'a' && *c <= 'z') || (*c >= 'A' && *c <= 'Z') || (*c >= '0' && *c <= '9') || *c == '.' || *c == '_' ||
          *c == '-'))
      *c = '-';
}

int pst_tune_adapter_keep(pst_store *store, pst_gateway_adapter adapter, const char *name, pst_engine_lora *lora,
                          pst_store_adapter *ret_row, pst_error *err) {
  char own[64];
  int code = PST_E_EXISTS;
  adapter.lora = lora;
  adapter.name = name ? name : own;
  for (int i = 1; code == PST_E_EXISTS && i <= (name ? 1 : MOST_OF_A_NAME); i++) {
    name_of(&adapter, i, own);
    code = pst_engine_lora_set_note(lora, PST_ENGINE_LORA_NAME, adapter.name, err);
    if (!code) code = pst_gateway_adapter_add(store, &adapter, ret_row, err);
  }
  return code;
}

double pst_tune_lot(uint64_t seed, const pst_evals_item *item) {
  return pst_random_unit(seed, 0x68656c64u, item->cluster);
}
