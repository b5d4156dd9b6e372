/* The table of commands. To add one: a file with its pst_cli_command, and a line here and in commands.c. */
#ifndef PST_CLI_COMMANDS_H
#define PST_CLI_COMMANDS_H

#include "cli/cli.h"

extern const pst_cli_command *const pst_cli_commands[];
extern const size_t pst_cli_n_commands;

#endif
