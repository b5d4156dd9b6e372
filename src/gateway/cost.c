/* What calls cost, and what they can cost at most: pure arithmetic in nano-dollars.
 *
 * Local: a step of the engine serves several requests at once; each is charged the share of the step's time that its tokens have of the step's tokens
 * (pst_engine_event.busy_us). So the sum over all calls is the price of the machine for the time it worked; its idle time is not charged to calls, it is in
 * the cost per accepted answer of a plan, which the optimizer works out.
 *
 * Before a call its time is unknown. The bound takes 2 operations per parameter and token (Kaplan et al. 2020, arXiv:2001.08361, section 2.1) at a speed that
 * any machine this program is run on exceeds many times over, and attention on top. A call is never charged more than its bound. */
#include "gateway/live.h"

static const int64_t US_PER_HOUR = INT64_C(3600000000);
enum {
  SLOWEST_FLOP_PER_US = 5000, /* 5 GFLOP/s; two cores with AVX2 do over 100 */
  LONG_CONTEXT_FACTOR =
      4, /* attention over 8,192 positions costs less than three times the matrices of the smallest models */
  GRAMS_PER_BYTE = 6,         /* features a byte of text can begin */
  CLASSIFIER_US = 10000,      /* of any text: a thread may have to wait for its turn */
  CLASSIFIED_BYTES = 1 << 20, /* a classifier reads less of a text */
  TOKENS_PER_PART = 64,       /* what a provider's template may put around a message or a tool */
};

int64_t pst_gateway_cost_local(int64_t nusd_per_hour, int64_t busy_us) {
  int64_t cost;
  return pst_store_nusd_scale(PST_MAX(busy_us, 0), nusd_per_hour, US_PER_HOUR, &cost) ? INT64_MAX : cost;
}

int pst_gateway_cost_local_bound(int64_t nusd_per_hour, const pst_engine_model_info *info, int64_t n_tokens,
                                 int64_t *ret_nusd) {
  int64_t us_per_token = LONG_CONTEXT_FACTOR * (2 * info->n_params / SLOWEST_FLOP_PER_US + 1), us;
  int code = pst_store_nusd_mul(us_per_token, n_tokens, &us);
  return code ? code : pst_store_nusd_scale(us, nusd_per_hour, US_PER_HOUR, ret_nusd);
}

int pst_gateway_cost_classifier_bound(int64_t nusd_per_hour, size_t n_bytes, size_t n_labels, int64_t *ret_nusd) {
  if (n_labels > INT32_MAX) return PST_E_LIMIT;
  int64_t us_per_byte = GRAMS_PER_BYTE * (1 + 2 * (int64_t)n_labels / SLOWEST_FLOP_PER_US);
  int64_t us = CLASSIFIER_US + us_per_byte * (int64_t)PST_MIN(n_bytes, (size_t)CLASSIFIED_BYTES);
  return pst_store_nusd_scale(us, nusd_per_hour, US_PER_HOUR, ret_nusd);
}

int pst_gateway_cost_remote_bound(pst_store_price price, size_t body_bytes, size_t n_parts, int64_t max_tokens,
                                  int64_t *ret_nusd) {
  if (body_bytes > INT64_MAX / 4 || n_parts > INT64_MAX / 4 / TOKENS_PER_PART) return PST_E_LIMIT;
  if (price.cached_input > price.input) price.input = price.cached_input;
  price.cached_input = PST_STORE_NO_LIMIT;
  return pst_store_price_cost(price, (int64_t)body_bytes + (int64_t)n_parts * TOKENS_PER_PART, 0, max_tokens, ret_nusd);
}
