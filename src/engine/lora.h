/* What the files of adapter formats share. Private to lora.c and lora_peft.c. */
#ifndef PST_ENGINE_LORA_H
#define PST_ENGINE_LORA_H

#include <penstock/engine.h>

enum { PST_ENGINE_LORA_MAX_RANK = 4096, PST_ENGINE_LORA_MAX_SIZE = 1 << 24, PST_ENGINE_LORA_MAX_NOTE = 1 << 20 };

/* Names of the notes in files: "general.name", "penstock.base", ... */
extern const char *const pst_engine_lora_keys[PST_ENGINE_LORA_NOTES];

/* Sets a note to what a file says. PST_E_BAD_INPUT: not UTF-8, a zero byte, too long. */
int pst_engine_lora_take_note(pst_engine_lora *lora, pst_engine_lora_note note, pst_str text, const char *path,
                              pst_error *err);
/* PST_E_BAD_INPUT: n of these floats are not all finite. */
int pst_engine_lora_check_finite(const float *x, size_t n, pst_str name, const char *path, pst_error *err);

/* As pst_engine_lora_read, of the two files by name. */
int pst_engine_lora_read_peft(const char *weights_path, const char *config_path, const pst_engine_model_info *base,
                              pst_engine_lora *ret_lora, pst_error *err);

#endif
