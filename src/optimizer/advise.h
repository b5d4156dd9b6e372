/* What tuning should be worth, said before anything is trained: the cost of a request to a plan that does not exist yet, by the same cost model as that of all others. */
#ifndef PST_OPTIMIZER_ADVISE_H
#define PST_OPTIMIZER_ADVISE_H

#include "optimizer/search.h"

/* The model that tuning would begin with: the local one with the fewest parameters. -1: there is none. */
int pst_optimizer_advise_model(const pst_optimizer_space *space);

/* Appends the evidence's member "tuning" as a JSON object. outlook: what the world said of `model` (world.h). chosen: the class of the plan taken, or of the
 * reference; n_classes: the reference, outside the space; estimate: the plan's. PST_E_NOMEM. */
int pst_optimizer_advise(pst_optimizer_state *state, int model, const pst_json *outlook, int chosen,
                         const pst_optimizer_estimate *estimate, pst_buf *out, pst_error *err);

#endif
