/* The one table of the planner's constants (constants.h says where each comes from). */
#include "optimizer/constants.h"

const pst_optimizer_constant pst_optimizer_constants[PST_OPTIMIZER_N_CONSTANTS] = {
#define PST_OPTIMIZER_CONSTANT_ROW(name, value, unit, source) {#name, value, unit, source},
    PST_OPTIMIZER_CONSTANT_TABLE(PST_OPTIMIZER_CONSTANT_ROW)
#undef PST_OPTIMIZER_CONSTANT_ROW
};
