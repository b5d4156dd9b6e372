/* Matrices that were rounded, kept until the file that they are for is written: what calibration goes on from when it was interrupted behind them. */
#ifndef PST_TUNE_ROUNDED_H
#define PST_TUNE_ROUNDED_H

#include <penstock/tune_calibrate.h>

/* As it lies in its file; views into `map`. */
typedef struct pst_tune_rounded {
  pst_tune_calibrate_report report; /* as far as it was known */
  size_t n;
  const int32_t *chosen; /* [n]: of each matrix's offers */
  pst_str rows;          /* of all matrices, one behind the other */
  pst_map map;
} pst_tune_rounded;

/* The file is whole or not there. key: SHA-256 over what the run is. rows [n]: a matrix's each. Errors: those of files. */
int pst_tune_rounded_write(const char *path, const char key[65], const pst_tune_calibrate_report *report,
                           const int32_t *chosen, const pst_str *rows, size_t n, pst_error *err);
/* Of n matrices. *ret_found false: there is no file, or one of another run or version. PST_E_CORRUPT: damaged, with what to do. */
int pst_tune_rounded_open(const char *path, const char key[65], size_t n, bool *ret_found, pst_tune_rounded *ret,
                          pst_error *err);
void pst_tune_rounded_close(pst_tune_rounded *r); /* {0} is fine */

#endif
