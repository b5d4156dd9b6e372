/* Adapters of random numbers, large enough to change every answer. */
#ifndef PST_TESTS_SUPPORT_RANDOM_ADAPTER_H
#define PST_TESTS_SUPPORT_RANDOM_ADAPTER_H

#include <penstock/engine.h>

/* On every `step`-th of a layer's linear matrices, those of attention first; of mixtures on attention's alone. Numbers by `seed`, `spread` wide. Errors:
 * PST_E_NOMEM. Ends with pst_engine_lora_done. */
int test_random_adapter(const pst_engine_model *model, int rank, int seed, int step, float spread,
                        pst_engine_lora *ret_lora, pst_error *err);

#endif
