/* What the files of the checkpoint reader share. Private to checkpoint.c (folder and tensors), checkpoint_families.c (settings and names of each
 * model_type), checkpoint_tokenizer.c and checkpoint_values.c. */
#ifndef PST_ENGINE_CHECKPOINT_IMPL_H
#define PST_ENGINE_CHECKPOINT_IMPL_H

#include "engine/gguf.h"

enum { PST_ENGINE_CKPT_MAX_CONFIG = 16 << 20 };

/* A folder on its way to be a GGUF file. */
typedef struct pst_engine_ckpt {
  const char *path;       /* the folder */
  const pst_json *config; /* of the text model, where the folder holds others too */
  const char *architecture;
  pst_arena *arena;
  pst_buf values; /* the metadata's entries, as in a GGUF file */
  uint64_t n_values;
  int n_heads, n_kv_heads, head_dim; /* decoders' */
  float *rope_factors;               /* [n_rope_factors], computed; NULL: none */
  int n_rope_factors;
  pst_error *err;
} pst_engine_ckpt;

/* Names of tensors, * standing for the layer. ours NULL: of no use here. */
typedef struct pst_engine_ckpt_rule {
  const char *theirs, *ours;
} pst_engine_ckpt_rule;

enum { PST_ENGINE_CKPT_MAX_RULES = 5, PST_ENGINE_CKPT_MAX_PREFIXES = 4 };

typedef struct pst_engine_ckpt_family {
  const char *model_type, *architecture;
  int (*keys)(pst_engine_ckpt *d);
  const pst_engine_ckpt_rule *rules[PST_ENGINE_CKPT_MAX_RULES]; /* each ends with theirs NULL */
  const char *const *prefixes; /* one of them may stand before a name; ends with NULL */
  const char *const *others;   /* prefixes of tensors of other parts: left out; ends with NULL */
  bool pairs;                  /* the file turns pairs (2i, 2i + 1) of a head together, the checkpoint (i, i + n/2) */
  bool norms_off;              /* norms are stored less one */
} pst_engine_ckpt_family;

/* By config.json's model_type; PST_E_UNSUPPORTED names those known. (checkpoint_families.c) */
int pst_engine_ckpt_family_find(const pst_engine_ckpt *d, const pst_engine_ckpt_family **ret_family);

/* tokenizer.json and tokenizer_config.json as metadata: of an encoder (WordPiece), of a decoder (BPE). (checkpoint_tokenizer.c) */
int pst_engine_ckpt_put_wordpiece(pst_engine_ckpt *d);
int pst_engine_ckpt_put_bpe(pst_engine_ckpt *d);

/* ---- checkpoint_values.c ---- */

/* Pieces of entries. */
void pst_engine_ckpt_add_u32(pst_buf *out, uint32_t v);
void pst_engine_ckpt_add_u64(pst_buf *out, uint64_t v);
void pst_engine_ckpt_add_str(pst_buf *out, pst_str s);
/* Entries; a name without "general." or "tokenizer." belongs to the architecture. After put_array the elements follow. */
void pst_engine_ckpt_put_int(pst_engine_ckpt *d, const char *name, int64_t value);
void pst_engine_ckpt_put_float(pst_engine_ckpt *d, const char *name, double value);
void pst_engine_ckpt_put_bool(pst_engine_ckpt *d, const char *name, bool value);
void pst_engine_ckpt_put_str(pst_engine_ckpt *d, const char *name, pst_str value);
void pst_engine_ckpt_put_array(pst_engine_ckpt *d, const char *name, pst_engine_gguf_kind element, uint64_t n);
/* A member of config.json as a key; the integer is required. */
int pst_engine_ckpt_copy_int(pst_engine_ckpt *d, const char *member, const char *key);
int pst_engine_ckpt_copy_float(pst_engine_ckpt *d, const char *member, const char *key, double fallback);
/* A member that may be absent, null, or this value, and nothing else; so that no setting is ignored that changes what is computed. */
int pst_engine_ckpt_want_text(const pst_engine_ckpt *d, const char *file, const pst_json *object, const char *member,
                              const char *text);
int pst_engine_ckpt_want_false(const pst_engine_ckpt *d, const char *file, const pst_json *object, const char *member);
int pst_engine_ckpt_want_number(const pst_engine_ckpt *d, const char *file, const pst_json *object, const char *member,
                                double value);
/* PST_E_...: "FILE: 'NAME' WHAT". */
int pst_engine_ckpt_fail(const pst_engine_ckpt *d, int code, const char *file, const char *what, const char *name);
/* A file of the folder. */
int pst_engine_ckpt_read_json(const pst_engine_ckpt *d, const char *name, size_t max_bytes, pst_json_doc **ret_doc);
bool pst_engine_ckpt_has_file(const pst_engine_ckpt *d, const char *name);
static inline bool pst_engine_ckpt_absent(const pst_json *v) {
  return pst_json_typeof(v) == PST_JSON_NONE || pst_json_typeof(v) == PST_JSON_NULL;
}

#endif
