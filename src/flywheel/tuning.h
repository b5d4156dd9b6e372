/* What the files of tuning on records share. Private to flywheel: tuning.c (records to what is learned), teacher.c (answers of a teacher). */
#ifndef PST_FLYWHEEL_TUNING_H
#define PST_FLYWHEEL_TUNING_H

#include <penstock/data.h>
#include <penstock/flywheel.h>

/* What a plan takes from a conversation (an array of messages): what the user said last, text parts together, or group 1 of the workload's pattern (NULL: none) in it. *ret_input lies in
 * `text`, which is cleared before. False: it takes nothing from such a one. */
bool pst_flywheel_input(const pst_regex *pattern, const pst_json *messages, pst_buf *text, pst_str *ret_input);

/* Trains on a data set of kind "preference" of the workload, which the adapter then knows: options->preferences and data_set are found here. *ret_n_without_input (NULL: not wanted): its
 * lines from which a plan takes no input. Errors: those of pst_data_set_each_preference and of pst_tune_workload. */
int pst_flywheel_prefer(pst_gateway *gateway, pst_store *store, const pst_evals_workload *workload, const char *hash,
                        const pst_tune_workload_options *options, pst_tune_workload_result *ret_result,
                        int64_t *ret_n_without_input, pst_error *err);

/* Inputs that a teacher is asked, and what it says. */
typedef struct pst_flywheel_question {
  pst_str messages; /* JSON, as recorded */
  pst_str answer;   /* data NULL: none that will do */
} pst_flywheel_question;

/* Asks the teacher (a target as pst_evals_target_open takes it) all questions, a few at a time, and keeps what it says until pst_flywheel_taught_forget, so that no question is paid for twice. An answer that is
 * none of the workload's labels, or not the JSON that it wants, is none. Answers are in the arena. Calls are booked as a run of kind "teacher" and become no records. Errors: those of
 * the target; what would fail for every question; what failed first where more than half of the new calls did, and what answered is kept; PST_E_CANCELLED. */
int pst_flywheel_teach(pst_gateway *gateway, pst_store *store, const pst_evals_workload *workload,
                       const pst_flywheel_tune_options *options, pst_flywheel_question *questions, size_t n,
                       pst_arena *arena, pst_flywheel_taught *ret_taught, pst_error *err);

#endif
