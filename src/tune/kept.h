/* A file that an interrupted run goes on from: whole or not there, of one question and version, and checked as it is read. Numbers in it are the machine's own: it is
 * for the machine that wrote it. */
#ifndef PST_TUNE_KEPT_H
#define PST_TUNE_KEPT_H

#include <penstock/base.h>

typedef struct pst_tune_kept {
  const uint8_t *data; /* the parts, one behind the other; aligned for any number; a view into `map` */
  size_t n;
  pst_map map;
} pst_tune_kept;

/* kind: what the file is, its last byte the version. key: SHA-256 over what the run is. Errors: those of files. */
int pst_tune_kept_write(const char *path, const char kind[8], const char key[65], const pst_str *parts, size_t n,
                        pst_error *err);
/* *ret_found false: there is no file, or one of another run or version, which the next write replaces. PST_E_CORRUPT: damaged, or another kind. */
int pst_tune_kept_open(const char *path, const char kind[8], const char key[65], bool *ret_found, pst_tune_kept *ret,
                       pst_error *err);
void pst_tune_kept_close(pst_tune_kept *kept); /* {0} is fine */

#endif
