/* The table of commands, in the order of the help. */
#include "cli/commands.h"

/* One a line, so that two additions do not collide. */
/* clang-format off */
const pst_cli_command *const pst_cli_commands[] = {
    &pst_cli_pull,
    &pst_cli_models,
    &pst_cli_inspect,
    &pst_cli_quantize,
    &pst_cli_merge,
    &pst_cli_adapters,
    &pst_cli_calibrate,
    &pst_cli_prune,
    &pst_cli_run,
    &pst_cli_chat,
    &pst_cli_embed,
    &pst_cli_import,
    &pst_cli_eval,
    &pst_cli_bench,
    &pst_cli_tune,
    &pst_cli_optimize,
    &pst_cli_turn,
    &pst_cli_explain,
    &pst_cli_plans,
    &pst_cli_serve,
    &pst_cli_worker,
    &pst_cli_key,
    &pst_cli_settings,
    &pst_cli_requests,
    &pst_cli_feedback,
    &pst_cli_answers,
    &pst_cli_data,
};
/* clang-format on */
const size_t pst_cli_n_commands = PST_ARRAY_LEN(pst_cli_commands);
