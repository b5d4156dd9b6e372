/* A model as its authors publish it: a folder with config.json, tokenizer.json and model.safetensors, or the files that model.safetensors.index.json names. */
#ifndef PST_ENGINE_CHECKPOINT_H
#define PST_ENGINE_CHECKPOINT_H

#include "engine/gguf.h"

/* Opens a GGUF file, or a folder with a checkpoint as if it were one: keys and tensors have GGUF's names, the weights stay where they are, mapped. So
 * everything that reads a model reads either. A folder's format is 0 to pst_engine_gguf_version. Errors: those of pst_engine_gguf_open; PST_E_UNSUPPORTED
 * (model_type, tokenizer, setting or tensor that cannot be described, by name), PST_E_NOT_FOUND (a file is missing). */
int pst_engine_checkpoint_open(const char *path, pst_engine_gguf **ret_gguf, pst_error *err) PST_MUST_CHECK;

#endif
