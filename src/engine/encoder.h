/* The part of an engine that runs an encoder in place of a generator: texts in, vectors out. */
#ifndef PST_ENGINE_ENCODER_H
#define PST_ENGINE_ENCODER_H

#include "engine/model.h"

typedef struct pst_engine_encoder pst_engine_encoder;

/* Starts its thread. References the model. options: with zeros filled in, as the engine keeps them. */
int pst_engine_encoder_create(pst_engine_model *model, const pst_engine_options *options,
                              pst_engine_encoder **ret_encoder, pst_error *err);
void pst_engine_encoder_free(pst_engine_encoder *e); /* cancels what is open, then stops the thread; NULL is fine */
/* Bytes that create takes for it. */
size_t pst_engine_encoder_work_bytes(const pst_engine_model *model, const pst_engine_options *options);

/* Any thread, as the functions of the engine that they stand behind. */
int pst_engine_encoder_submit(pst_engine_encoder *e, const pst_engine_embed_request *request, uint64_t *ret_request_id,
                              pst_error *err);
void pst_engine_encoder_cancel(pst_engine_encoder *e, uint64_t request_id);
void pst_engine_encoder_get_stats(pst_engine_encoder *e, pst_engine_stats *ret_stats);

#endif
