/* What one engine owns. Fields below "any thread" are guarded by `lock`; the rest belongs to the engine's thread. */
#ifndef PST_ENGINE_ENGINE_H
#define PST_ENGINE_ENGINE_H

#include "engine/draft_model.h"
#include "engine/encoder.h"
#include "engine/forward.h"
#include "engine/pool.h"
#include "engine/session.h"
#include "engine/speculation.h"

/* A kept hidden state: its step item, and which of the item's. */
typedef struct pst_engine_row {
  int item, row;
} pst_engine_row;

/* What one forward step did and how long it took. */
typedef struct pst_engine_step_sample {
  int n_tokens, n_logits;
  double n_context; /* sum over tokens of the positions they attend to */
  double us;
} pst_engine_step_sample;
enum { PST_ENGINE_STEP_SAMPLES = 1024 };

/* What guesses from one corpus, or from none, were worth. */
typedef struct pst_engine_experience {
  uint64_t corpus_key; /* 0: none */
  int64_t used_at;     /* n_requests of the last that used it */
  pst_engine_acceptance acceptance;
} pst_engine_experience;
enum { PST_ENGINE_EXPERIENCES = 8 };

struct pst_engine {
  pst_engine_model *model;
  pst_engine_options options;  /* immutable */
  pst_engine_encoder *encoder; /* not NULL: the model encodes, and nothing below is in use */
  pthread_t thread;
  bool started;
  /* any thread */
  pthread_mutex_t lock;
  pthread_cond_t changed;
  pst_engine_session *inbox, *inbox_last;
  int n_inbox;
  uint64_t last_id;
  uint64_t *cancels;
  size_t n_cancels, cancels_capacity;
  bool stopping, clear_wanted;
  pst_engine_stats stats;                                  /* what the thread last showed */
  pst_engine_step_sample samples[PST_ENGINE_STEP_SAMPLES]; /* the last steps; n_samples grows for ever */
  size_t n_samples;
  /* the engine's thread */
  pst_engine_sched sched;
  pst_engine_forward *forward;
  pst_engine_session *live;
  pst_engine_stats counts;
  pst_engine_step_curve curve;
  pst_engine_experience experiences[PST_ENGINE_EXPERIENCES]; /* the least lately used makes room */
  pst_engine_offer *offers;                                  /* [slots] */
  pst_engine_session **offerers;                             /* [slots]: whose they are */
  int *offer_room;                                           /* [slots]: most guesses of each */
  pst_engine_draft_model *draft;                             /* NULL: none */
  int64_t draft_us;                                          /* its time in the step at hand */
  uint8_t *pages;                                            /* page i at i * page_bytes */
  size_t page_bytes;
  uint8_t *states;                /* [slots] recurrent states; NULL: the model has none */
  bool *state_is_taken;           /* [slots] */
  pst_engine_forward_item *items; /* [slots] */
  pst_engine_row *rows;
  pst_engine_finish finishes[256]; /* of the step's items */
  float *logits;                   /* [PST_ENGINE_HEAD_ROWS][n_vocab] */
  float *raw;                      /* [n_vocab]: logits before sampling touched them */
  pst_engine_candidate *work;      /* [n_vocab] */
  int32_t *allowed;                /* [n_vocab] */
  int32_t *groups;                 /* [n_vocab / PST_KERNELS_GROUP + 1] */
  uint8_t *group_marks;            /* as many, all 0 between uses */
};

#endif
