/* What the files of tuning on records share. Private to flywheel: tuning.c (records to what is learned), teacher.c (answers of a teacher). */
#ifndef PST_FLYWHEEL_TUNING_H
#define PST_FLYWHEEL_TUNING_H

#include <penstock/data.h>
#include <penstock/flywheel.h>

/* What a plan takes from a conversation (an array of messages): what the user said last, text parts together, or group 1 of the workload's pattern (NULL: none) in it. *ret_input lies in
 * `text`, which is cleared before. False: it takes nothing from such a one. */
bool pst_flywheel_input(const pst_regex *pattern, const pst_json *messages, pst_buf *text, pst_str *ret_input);

/* Inputs that a teacher is asked, and what it says. */
typedef struct pst_flywheel_question {
  pst_str messages; /* JSON, as recorded */
  pst_str answer;   /* data NULL: none that will do */
} pst_flywheel_question;

/* Asks the teacher (a target as pst_evals_target_open takes it) all questions, a few at a time, and keeps what it says until pst_flywheel_teach_done, so that no question is paid for twice. An answer that is
 * none of the workload's labels, or not the JSON that it wants, is none. Answers are in the arena. Calls are booked as a run of kind "teacher" and become no records. Errors: those of
 * the target; what would fail for every question; what failed first where more than half of the new calls did, and what answered is kept; PST_E_CANCELLED. */
int pst_flywheel_teach(pst_gateway *gateway, pst_store *store, const pst_evals_workload *workload,
                       const pst_flywheel_tune_options *options, pst_flywheel_question *questions, size_t n,
                       pst_arena *arena, pst_flywheel_taught *ret_taught, pst_error *err);
/* Forgets what teachers said for a workload. */
int pst_flywheel_teach_done(pst_store *store, const pst_evals_workload *workload, pst_error *err);

#endif
