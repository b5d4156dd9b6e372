/* Reading a model file into the layer table: what model.c (opening), loader.c (keys and tensors) and architectures.c (what each architecture is made of)
 * share. The table is read twice: a measuring pass counts the bytes of the packed block, a second one places and queues the packing. One thread. */
#ifndef PST_ENGINE_LOADER_H
#define PST_ENGINE_LOADER_H

#include "engine/model.h"

typedef struct pst_engine_loader {
  pst_engine_model *m;
  const char *path;
  pst_error *err;
  const char *arch; /* key prefix */
  uint8_t *memory;  /* NULL in the measuring pass */
  bool filled;      /* the memory holds what it should already: it is mapped, read-only */
  size_t used;
  uint64_t table; /* hash of what lies where */
  bool *taken;    /* per tensor: some part of the table named it */
  bool *asked;    /* per key of the file: something read it */
  const char *output_norm;
  int n_ahead; /* layers behind the model's own that predict tokens further ahead: left out */
  /* Key heads (0 where a layer does not attend) and width of the feed-forward layer by layer; NULL: all layers are alike. */
  const pst_engine_gguf_value *kv_heads, *ff;
  bool no_output_norm; /* the architecture's layers end with a norm of their own */
  size_t n_jobs;
  struct pst_engine_pack_job {
    const pst_kernels_matrix *matrix; /* of the file */
    const pst_kernels_screen *screen; /* NULL: the matrix itself is packed; else its screen is made */
    const uint8_t *src;
    uint8_t *dst;
    float *radius; /* of the screen */
  } * jobs;
  size_t jobs_capacity;
} pst_engine_loader;

/* To add an architecture: a row in the table of architectures.c. */
typedef struct pst_engine_architecture {
  const char *name;
  int (*keys)(pst_engine_loader *l); /* reads what the whole model shares */
  int (*layer)(pst_engine_loader *l, int i, pst_engine_layer *y);
  bool encodes; /* makes vectors, no text */
} pst_engine_architecture;
/* The row that general.architecture names; NULL: none, with the error set. */
const pst_engine_architecture *pst_engine_architecture_find(pst_engine_loader *l);

/* "<architecture>.<name>", in buf; the key counts as read. */
const char *pst_engine_loader_key(const pst_engine_loader *l, const char *name, char buf[128]);
/* An integer key within [min, max], which must be there. PST_E_BAD_INPUT names it. */
int pst_engine_loader_need_int(pst_engine_loader *l, const char *name, int64_t min, int64_t max, int *ret);
/* As need_int; a missing key leaves *value as it was. */
int pst_engine_loader_want_int(pst_engine_loader *l, const char *name, int64_t min, int64_t max, int *value);
int pst_engine_loader_want_double(pst_engine_loader *l, const char *name, double min, double max, double *value);
/* Whether attention knows heads of this size, keys' and values': PST_E_UNSUPPORTED. */
int pst_engine_loader_check_head(pst_engine_loader *l, int key_dim, int value_dim);
/* NULL: the file has no such tensor. It counts as taken. */
const pst_engine_gguf_tensor *pst_engine_loader_tensor(pst_engine_loader *l, const char *name);
/* Whether a tensor is there and is [n][rows][cols]: PST_E_BAD_INPUT. */
int pst_engine_loader_check_dims(pst_engine_loader *l, const pst_engine_gguf_tensor *t, const char *name, size_t n,
                                 size_t rows, size_t cols);
int pst_engine_loader_check_shape(pst_engine_loader *l, const pst_engine_gguf_tensor *t, const char *name, size_t rows,
                                  size_t cols);
/* Room for what is made of a tensor's bytes, from `src` on: its offset in the packed block. */
size_t pst_engine_loader_take_bytes(pst_engine_loader *l, const pst_engine_gguf_tensor *t, const uint8_t *src,
                                    size_t bytes);
/* Queues the packing of a matrix; nothing where the block is filled already. PST_E_NOMEM. */
int pst_engine_loader_add_job(pst_engine_loader *l, struct pst_engine_pack_job job);
/* A packed matrix for rows of a tensor, without data. */
int pst_engine_loader_init_matrix(pst_engine_loader *l, const pst_engine_gguf_tensor *t, const char *name, size_t rows,
                                  size_t cols, pst_kernels_matrix *ret);
/* Rows [first, first + rows) of a weight matrix of n_rows; the whole; required. */
int pst_engine_loader_rows(pst_engine_loader *l, const char *name, size_t n_rows, size_t first, size_t rows,
                           size_t cols, pst_kernels_matrix *ret);
int pst_engine_loader_matrix(pst_engine_loader *l, const char *name, size_t rows, size_t cols, pst_kernels_matrix *ret);
/* The first n floats of a tensor that has been checked. */
int pst_engine_loader_first_row(pst_engine_loader *l, const pst_engine_gguf_tensor *t, const char *name, size_t n,
                                const float **ret);
/* Rows of floats (norms, biases, rope factors, taps), as float32; *ret is NULL where they are missing and not required. */
int pst_engine_loader_floats(pst_engine_loader *l, const char *name, size_t rows, size_t cols, bool required,
                             const float **ret);
int pst_engine_loader_row(pst_engine_loader *l, const char *name, size_t n, bool required, const float **ret);
/* Of a layer: "blk.<layer>.<name>.weight" and "blk.<layer>.<name>". */
int pst_engine_loader_layer_matrix(pst_engine_loader *l, int layer, const char *name, size_t rows, size_t cols,
                                   pst_kernels_matrix *ret);
int pst_engine_loader_layer_row(pst_engine_loader *l, int layer, const char *name, size_t n, bool required,
                                const float **ret);

#endif
