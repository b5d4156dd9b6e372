/* What a training of a workload's examples is made of and leaves, whatever it trains: who is held out, where its checkpoint and its adapter are kept. Shared by
 * workload.c and encoder.c. */
#ifndef PST_TUNE_KEEP_H
#define PST_TUNE_KEEP_H

#include <penstock/tune.h>

/* HOME/tune/<hash of the question>: a run with other texts or options has another file. Makes the folder. ret_path [n]. PST_E_LIMIT, PST_E_NOMEM, those of files. */
int pst_tune_checkpoint_path(const pst_store *store, pst_str question, char *ret_path, size_t n, pst_error *err);
/* Keeps adapter->lora by `name`, or where it is NULL by one made of the workload's name and the hash of the texts, a number behind it when other steps, objectives or
 * teachers have made another of them. adapter->name is set here. Errors: those of pst_gateway_adapter_add. */
int pst_tune_adapter_keep(pst_store *store, pst_gateway_adapter adapter, const char *name, pst_engine_lora *lora,
                          pst_store_adapter *ret_row, pst_error *err);

/* In [0, 1), the same for all of a cluster: those below a share are held out. */
double pst_tune_lot(uint64_t seed, const pst_evals_item *item);

#endif
