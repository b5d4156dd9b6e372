/* Penstock tune: a LoRA adapter trained on texts, over a model of the engine, on this machine.
 *
 * Training has a forward and backward of its own over the engine's layer table (src/tune/ops.inc). The same texts, options and seed give the same
 * adapter, bit for bit, on any number of threads, and however often training was interrupted and taken up again.
 *
 * Threads: training blocks its caller and uses threads of its own. */
#ifndef PENSTOCK_TUNE_H
#define PENSTOCK_TUNE_H

#include <penstock/base.h>
#include <penstock/engine.h>
#include <penstock/evals.h>

#ifdef __cplusplus
extern "C" {
#endif

/* What training lowers. SFT: the mean negative log-likelihood of scored tokens. DPO: of pairs of answers to one prompt the wanted one becomes likelier than the other
 * (Rafailov et al. 2023, arXiv:2305.18290). KTO: answers, each marked as wanted or not, become likelier or less likely (Ethayarajh et al. 2024,
 * arXiv:2402.01306). The last two compare with the model as it is at the start, by whole answers. */
typedef enum pst_tune_objective {
  PST_TUNE_SFT,
  PST_TUNE_DPO,
  PST_TUNE_KTO,
  PST_TUNE_OBJECTIVE_COUNT
} pst_tune_objective;
const char *pst_tune_objective_name(pst_tune_objective objective); /* "dpo" */
bool pst_tune_objective_from(pst_str name, pst_tune_objective *ret_objective);

/* How the frozen weights are multiplied. FLOAT: float32, exactly. INT8: as inference does it, weights and what they are multiplied with in 8 bits by blocks of 32, in
 * both passes; the adapter's own numbers, what is derived by them, norms, attention and losses are float32 all the same. Several times as fast where the machine has
 * integer dot products, and in less memory. */
typedef enum pst_tune_precision { PST_TUNE_FLOAT, PST_TUNE_INT8, PST_TUNE_PRECISION_COUNT } pst_tune_precision;
const char *pst_tune_precision_name(pst_tune_precision precision); /* "int8" */
bool pst_tune_precision_from(pst_str name, pst_tune_precision *ret_precision);

/* What a teacher of the same vocabulary thinks comes next at each scored token of a text: its k likeliest tokens. Caller's. */
enum { PST_TUNE_TEACHER_MOST = 32 };
typedef struct pst_tune_teacher {
  int k;                      /* 1 to PST_TUNE_TEACHER_MOST */
  const int32_t *ids;         /* [n - n_given][k], distinct in each row */
  const float *probabilities; /* the same shape; a row's sum is at most 1, up to rounding */
} pst_tune_teacher;

/* A text to learn; scored are the tokens behind the first n_given. In DPO texts 2i and 2i + 1 are a pair of one prompt, the wanted answer first. */
typedef struct pst_tune_text {
  const int32_t *tokens;
  size_t n, n_given; /* 1 <= n_given <= n - 1 */
  float weight;  /* SFT: of each scored token; else of the text, in DPO of the pair (its first text's); 1 as a rule */
  bool unwanted; /* KTO: the answer is one that should become less likely */
  const pst_tune_teacher *teacher; /* SFT: NULL: the text alone is learned */
} pst_tune_text;

/* Asks an adapter as it stands for answers to the first n of a held-out sample; bit i of *ret_right: item i was answered right. Blocks; on the caller's thread. */
typedef struct pst_tune_scorer {
  int (*score)(void *user, const pst_engine_lora *adapter, size_t n, uint64_t *ret_right, pst_error *err);
  void *user;
  size_t n; /* items of the sample, at most PST_TUNE_MAX_SCORED */
} pst_tune_scorer;
#define PST_TUNE_MAX_SCORED 64

/* Looks that a report has room for: the first of them. */
#define PST_TUNE_MAX_EVALUATIONS 32

/* A look at held-out texts in the course of training. */
typedef struct pst_tune_evaluation {
  int64_t step;
  double loss;
  int32_t n_asked, n_right; /* of the sample; n_asked 0: only the loss was measured */
} pst_tune_evaluation;

/* How training goes, told after every step. */
typedef struct pst_tune_progress {
  int64_t step, n_steps;
  double
      loss; /* of the step: SFT: mean negative log-likelihood of its scored tokens, nats; else the mean over examples */
  double margin, accuracy;  /* of the step's rewards (pst_tune_report); NAN in SFT */
  double held_out_loss;     /* the last measured; NAN: none yet */
  double score;             /* share of the held-out sample answered right, the last measured; NAN: none yet */
  double tokens_per_second; /* read by the model, since the start */
  double seconds_left;
  double learning_rate;
} pst_tune_progress;

typedef struct pst_tune_options {
  pst_tune_objective objective;
  pst_tune_precision precision;
  double beta; /* DPO, KTO: how dear it is to leave the starting model */
  /* SFT with teachers: a scored token's loss is (1 - share) times its negative log-likelihood plus share times KL(teacher || model) over the teacher's likeliest tokens and all
   * others as one outcome (Hinton, Vinyals and Dean 2015, arXiv:1503.02531). 0 to 1. */
  double teacher_share;
  double
      smoothing; /* DPO: share of pairs that are taken to be the wrong way round; encoders: of labels, spread over all of them. 0 to below 1/2 */
  double dropout; /* encoders: share of what each branch adds to the state that a step goes without; 0 to below 1 */
  /* Encoders: each text of a step is learned twice, as it is and with its embeddings moved by this share of their length to where its loss rises fastest (Miyato, Dai and
   * Goodfellow 2017, arXiv:1605.07725), which takes twice the time; 0 to below 1, 0: once. */
  double adversary;
  int rank;             /* of every adapter, 1 to 256 */
  double alpha;         /* the scale is alpha / rank */
  unsigned roles;       /* which linear layers: bits 1 << pst_engine_role */
  double learning_rate; /* the highest: rises over the warm-up, then falls as a cosine to final_share of it */
  double warmup_share, final_share;
  double weight_decay, beta1, beta2, epsilon; /* AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) */
  double clip;                                /* largest norm of the gradient; 0: any */
  int batch_texts;                            /* texts (DPO: pairs) of an optimizer step */
  int max_epochs;                             /* each text is seen at most so often */
  /* Where training starts: an adapter of this rank, this alpha and exactly these roles; NULL: the base as it is. Read before the function returns. */
  const pst_engine_lora *start;
  int64_t steps;  /* exactly so many, or as many as max_epochs gives; 0: as many as `seconds` allow */
  double seconds; /* time for it, checkpoints and held-out losses included; 0: any */
  int patience; /* held-out losses in a row without a new lowest behind which training is led to its end: at most a fifth of all steps are left, the rate falls; 0: none are */
  int evaluations;        /* held-out losses in the course of training, at least 1 */
  pst_tune_scorer scorer; /* score NULL: the loss alone says which adapter is taken */
  double
      score_share; /* of `seconds`, the most that answers to the sample may take; without a limit of time every evaluation asks */
  bool
      needs_answers; /* no step is made where the sample cannot be asked: what nobody compared by answers is not wanted */
  bool share_prefixes; /* beginnings that texts of a step share are computed once */
  bool in_order;       /* texts in the order given, else in one drawn anew for each epoch */
  uint64_t seed;
  int threads;    /* 0: pst_cpu_count() */
  int max_tokens; /* tokens that go through the model at once; more where a text (DPO: a pair) is longer */
  const char *
      checkpoint; /* file to go on from and to save in; NULL: none. At the end it holds the end, from which the same call gives the same adapter at once: the
                           * caller removes it when the adapter is safe */
  double checkpoint_seconds;                                          /* between two */
  void (*on_progress)(void *user, const pst_tune_progress *progress); /* NULL: silent; on the caller's thread */
  bool (*cancelled)(void *user);                                      /* asked between steps; NULL: never */
  void *user;
} pst_tune_options;
pst_tune_options pst_tune_options_default(void);
/* The default for an objective: preferences want a much lower rate than examples, for what is learned is a difference, and the model is held to where it began; a pair has one prompt,
 * which is computed once. */
pst_tune_options pst_tune_options_for(pst_tune_objective objective);
/* To go on from an adapter, which is read until training begins: `start`, rank, alpha and roles. */
void pst_tune_options_start(pst_tune_options *options, const pst_engine_lora *start);

typedef struct pst_tune_report {
  int64_t n_steps, best_step; /* steps done; after which the adapter is from (n_steps without held-out texts) */
  int64_t n_tokens, n_scored; /* read and scored by all steps */
  double loss;                /* mean of the last tenth of the steps */
  double held_out_before, held_out_loss; /* of the start, of the adapter; NAN: no held-out text */
  /* DPO, KTO: rewards (beta times an answer's log-probability less that of the start) of the held-out texts with the adapter, else of the last step's: by how much the mean of
   * wanted answers is above that of the others; share of pairs in the right order, in KTO of texts on the right side of the reference point. NAN in SFT. */
  double margin, accuracy;
  double seconds;
  double tokens_per_second;
  size_t memory_bytes;      /* weights, work space, optimizer */
  bool shortened;           /* by patience */
  double score_seconds;     /* of `seconds`, for answers to the held-out sample */
  pst_tune_evaluation best; /* of the adapter taken; step -1: none was evaluated */
  pst_tune_evaluation evaluations[PST_TUNE_MAX_EVALUATIONS];
  size_t n_evaluations;
} pst_tune_report;

/* About how many bytes training takes beside the model as the engine has it, most of them at once: weights as they are multiplied with, work space for max_tokens at a time, the
 * adapter and its optimizer. Within a tenth for models of the sizes that are trained here, rather more than less. Errors: PST_E_UNSUPPORTED (architecture). */
int pst_tune_memory(const pst_engine_model *model, const pst_tune_options *options, int64_t *ret_bytes, pst_error *err);

/* Members of an open JSON object: "evaluations" ([{"step", "held_out_loss", "asked", "right"}]; the last two where answers were asked for), "score_seconds" and,
 * where the adapter taken was asked, "score" ({"asked", "right"}). */
void pst_tune_report_put_evaluations(const pst_tune_report *report, pst_json_writer *w);

/* Trains an adapter on `texts`; `held_out` (n_held_out 0: none) is never trained on, and decides which step's adapter is taken: the one that answers more of the
 * scorer's sample right, by more than two standard errors of the paired difference in SFT and one in DPO and KTO; else, or where either was not asked, in SFT the later one, if its loss is below the start's and at most
 * a quarter above the lowest; in DPO and KTO the one of the lower loss. There the start is the first that is asked (step 0), and one that was not asked takes no place of one that was. The result is written into
 * *ret_lora, the caller's (pst_engine_lora_done). Errors: PST_E_UNSUPPORTED (architecture), PST_E_BAD_INPUT (an option, a text or the adapter to start from, by name), PST_E_NO_DATA (no
 * text), PST_E_LIMIT (a text longer than the model's context), PST_E_CORRUPT (the checkpoint is damaged; another question's is written over), PST_E_CANCELLED (a checkpoint is left), PST_E_NOMEM (also before the first step, where pst_tune_memory says more than is free), those of files. */
int pst_tune_train(const pst_engine_model *model, const pst_tune_text *texts, size_t n_texts,
                   const pst_tune_text *held_out, size_t n_held_out, const pst_tune_options *options,
                   pst_engine_lora *ret_lora, pst_tune_report *ret_report, pst_error *err);

/* The same for an encoder (bert) that learns to tell texts apart: a text is its tokens as the encoder reads them and, as its last token, its label, one of n_labels;
 * logits are head * vector * PST_TUNE_HEAD_SCALE, the vector being what the engine would give. head [n_labels][n_embd]: where it starts, and as trained when all went well. Of
 * the looks at held-out texts that which tells most of them apart counts; their n_asked are all. Only SFT; no scorer. */
int pst_tune_train_encoder(const pst_engine_model *model, const pst_tune_text *texts, size_t n_texts,
                           const pst_tune_text *held_out, size_t n_held_out, size_t n_labels,
                           const pst_tune_options *options, float *head, pst_engine_lora *ret_lora,
                           pst_tune_report *ret_report, pst_error *err);
#define PST_TUNE_HEAD_SCALE 20

/* ---- texts in output codes (tune/coded_texts.c) ------------------------------------------------------------------- */

/* By which codes answers are written; zeroed: by none. */
typedef struct pst_tune_coding {
  const char *given; /* a table as pst_engine_codes_write gives it; NULL: one is made of the answers */
  size_t most;       /* codes that are made; 0: none are */
  double from;       /* share of the answers' tokens that those made must save, else there are none */
  const pst_str *labels;
  size_t n_labels; /* the only answers that there are; 0: any */
} pst_tune_coding;
/* Writes the answers of texts [n] in codes, of which those made are made of the first n_learned. Then the texts' tokens are in *ret_tokens (the caller's: pst_free), and *ret_codes says how they are read (the
 * caller's); where there are no codes neither is touched. Errors: PST_E_BAD_INPUT (the table; a text that has one of its codes), PST_E_NOMEM. */
int pst_tune_texts_code(const pst_engine_model *model, const pst_tune_coding *coding, pst_tune_text *texts, size_t n,
                        size_t n_learned, int32_t **ret_tokens, pst_engine_codes **ret_codes, pst_error *err);

/* ---- a workload's examples as texts (tune/workload.c) ---------------------------------------------------------------- */

/* What was said of answers to an input: one that was wanted, one that was not, or both. */
typedef struct pst_tune_preference {
  pst_str input;            /* as a plan takes it from a conversation */
  pst_str wanted, unwanted; /* answers; data NULL: none */
  bool held_out;
} pst_tune_preference;

typedef struct pst_tune_workload_options {
  const char *model;     /* as it is called here */
  const char *layout;    /* of the prompt, as in plans; NULL: plain, or chat where an answer has several lines */
  const char *prompt;    /* one of the workload's, by name; NULL: nothing but the message */
  const char *name;      /* of the adapter; NULL: made of the workload's name and the texts' hash */
  double held_out_share; /* of the examples, by cluster; at most max_held_out of them */
  size_t max_held_out, max_texts; /* max_texts 0: all */
  /* SFT: wanted answers that are learned beside the workload's examples. DPO, KTO: what is learned in place of them; DPO takes those with both answers; in KTO the rarer
   * kind weighs so much more that both weigh the same in all. The examples that SFT would hold out are still asked for answers; preferences near to them are held out, too. */
  const pst_tune_preference *preferences;
  size_t n_preferences;
  const char *
      data_set; /* hash of the set that preferences or examples came from, which is noted with the adapter; NULL: none */
  const char *taught_set; /* hash of the set of inputs that a teacher answered, noted in the same way; NULL: none */
  const char *
      teacher; /* SFT: a larger model of the same vocabulary, as it is called here, whose thoughts are learned from; NULL: none */
  const char
      *from; /* an adapter of the model, by name, to start from; NULL: none. Its rank, alpha, roles and codes count */
  /* Answers are learned and served in codes (engine/codes.c): at most so many are made of the examples' answers, and used where they save at least codes_from of the answers'
   * tokens. 0: none. No teacher goes with them, for what one thinks comes next is plain. */
  size_t codes;
  double codes_from;
  bool
      only_better; /* what is no better than the start (report.best_step 0), or was not compared by answers, is not kept: the result's adapter has no name */
  bool
      leave_checkpoint; /* the caller removes it, once it has kept what came; until then the same call gives the same at once */
  pst_tune_options training; /* `checkpoint` is chosen here: a file in HOME/tune; `start` by `from` */
} pst_tune_workload_options;

typedef struct pst_tune_workload_result {
  pst_tune_report report;
  size_t n_texts, n_held_out,
      n_left_out; /* examples, in DPO pairs; left out: longer than the model's context, or with a code of the adapter to start from in a plain answer */
  size_t
      n_near; /* left out as near-duplicates: examples of items that judge, a teacher's inputs of held-out examples */
  double prompt_tokens, answer_tokens; /* means, as served */
  size_t n_codes;                      /* in which answers are served; 0: they are plain */
  double plain_answer_tokens;          /* mean, without them */
  pst_store_adapter adapter;
  char plan_hash[65]; /* of a plan that serves the adapter with the prompt it was trained with; kept in the store */
  char *plan_json;    /* canonical */
  char *checkpoint;   /* where it was left; NULL: it was not */
} pst_tune_workload_result;
void pst_tune_workload_result_done(pst_tune_workload_result *result);

/* Trains an adapter on the examples of a workload (no other part is read), or on preferences, each rendered as the gateway would serve it, and keeps it by name with a
 * plan that uses it; what it was made of (data_set, from) is noted in the same transaction. Errors: PST_E_EXISTS (the name, before training where it is another's), PST_E_NOT_FOUND (model, prompt, adapter), PST_E_NO_DATA (too few examples), PST_E_BAD_INPUT (codes with a teacher among them), those of pst_tune_train and of the store. Blocks. */
int pst_tune_workload(pst_gateway *gateway, pst_store *store, const pst_evals_workload *workload,
                      const pst_tune_workload_options *options, pst_tune_workload_result *ret_result, pst_error *err);

/* ---- an encoder that tells a choice task's labels apart (tune/encoder.c) ---------------------------------------------- */

typedef struct pst_tune_encoder_options {
  const pst_evals_workload *workload;
  const char *model, *sha256; /* the encoder as it is called here, and the hash of its file */
  const char *name;           /* of the adapter; NULL: made of the workload's name and the texts' hash */
  double held_out_share;      /* of the examples, by cluster; at most max_held_out of them */
  size_t max_held_out;
  const char *data_set;  /* hash of the set that examples came from, which is noted with the adapter; NULL: none */
  bool leave_checkpoint; /* as in pst_tune_workload_options */
  pst_tune_options training;
} pst_tune_encoder_options;
pst_tune_encoder_options pst_tune_encoder_options_default(void);

typedef struct pst_tune_encoder_result {
  pst_tune_report report;
  size_t n_texts, n_held_out, n_labels;
  size_t n_near; /* left out as near-duplicates of items that judge */
  pst_store_adapter adapter;
  char classifier[65];                          /* artefact, made beside the head */
  double accuracy, log_loss, calibration_error; /* its, on the held-out examples */
  char plan_hash[65];                           /* of a plan in which it answers alone; kept in the store */
  char *plan_json;                              /* canonical */
  char *checkpoint;                             /* where it was left; NULL: it was not */
} pst_tune_encoder_result;
void pst_tune_encoder_result_done(pst_tune_encoder_result *result);

/* Trains an encoder on the examples of a choice task (no other part is read), keeps its adapter by name, makes a classifier beside the head that was trained with it, and a plan of
 * the two. Errors: PST_E_NO_DATA (too few examples, one label), PST_E_UNSUPPORTED (the model), PST_E_EXISTS (the name), PST_E_CANCELLED (a checkpoint is left), those of
 * pst_tune_train, of the classifier and of the store. Blocks. */
int pst_tune_encoder(pst_gateway *gateway, pst_store *store, const pst_tune_encoder_options *options,
                     pst_tune_encoder_result *ret_result, pst_error *err);

/* What training on a workload's examples would be made of. */
typedef struct pst_tune_outlook {
  size_t n_texts;                      /* held-out ones included */
  double prompt_tokens, answer_tokens; /* means, as served by the tuned plan */
  size_t n_codes;                      /* in which it would answer; 0: in plain tokens */
  double plain_answer_tokens;          /* mean, without them */
  int64_t adapter_params;
  double tokens_per_second; /* read in training, on this machine with so many threads */
  bool probed;              /* by one step made for it; else it is what the last run (SFT) of this model here had */
} pst_tune_outlook;

/* Looks ahead without training, but for one step on a few texts where nobody has trained this model with so many threads in this home yet (seconds, and the memory of
 * training). Of the options model, layout, prompt, max_texts, codes, and training's rank, precision and threads count. Errors as pst_tune_workload; PST_E_LIMIT where
 * the step would take more memory than is free. Blocks. */
int pst_tune_workload_look(pst_gateway *gateway, pst_store *store, const pst_evals_workload *workload,
                           const pst_tune_workload_options *options, pst_tune_outlook *ret_outlook, pst_error *err);

#ifdef __cplusplus
}
#endif
#endif
