/* penstock settings: the price of this machine, outside providers, and what they charge. */
#include <string.h>

#include "cli/commands.h"
#include "cli/open.h"

#include <penstock/gateway.h>

static int set_machine(const pst_cli_args *a, pst_store *store, pst_error *err) {
  int64_t nusd;
  if (pst_store_nusd_parse(pst_str_from(a->words[1]), &nusd) || nusd < 0)
    return pst_error_set(err, PST_E_BAD_INPUT, "machine", "expected US dollars per hour like 0.085, not '%.40s'",
                         a->words[1]);
  return pst_store_machine_price_set(store, nusd, err);
}

static int set_provider(const pst_cli_args *a, pst_store *store, pst_error *err) {
  const char *key_env = a->n_words > 3 ? a->words[3] : "";
  return pst_gateway_provider_set(store, pst_str_from(a->words[1]), pst_str_from(a->words[2]), pst_str_from(key_env),
                                  err);
}

typedef struct wanted {
  pst_str name;
  bool found;
} wanted;

static int find_provider(void *user, pst_str name, pst_str base_url, pst_str key_env) {
  (void)base_url;
  (void)key_env;
  wanted *w = user;
  w->found = w->found || pst_str_equal(w->name, name);
  return 0;
}

static int set_price(const pst_cli_args *a, pst_store *store, pst_error *err) {
  pst_store_price price;
  wanted w = {pst_str_from(a->words[1]), false};
  if (!pst_cli_given(a, "input") || !pst_cli_given(a, "output"))
    return pst_error_set(err, PST_E_BAD_INPUT, "price",
                         "--input and --output are needed: US dollars per million tokens");
  int code = pst_gateway_provider_each(store, find_provider, &w, err);
  if (!code && !w.found)
    return pst_error_set(err, PST_E_NOT_FOUND, "price",
                         "there is no provider '%.60s'; 'penstock settings provider NAME URL [KEY_ENV]' makes one",
                         a->words[1]);
  if (!code) code = pst_cli_money(a, "input", 0, &price.input, err);
  if (!code) code = pst_cli_money(a, "output", 0, &price.output, err);
  if (!code) code = pst_cli_money(a, "cached", PST_STORE_NO_LIMIT, &price.cached_input, err);
  return code ? code : pst_store_price_set(store, w.name, pst_str_from(a->words[2]), price, err);
}

/* ---- list ------------------------------------------------------------------------------------------------------------------ */

typedef struct listing {
  bool json;
  pst_json_writer w;
} listing;

static int put_provider(void *user, pst_str name, pst_str base_url, pst_str key_env) {
  listing *l = user;
  if (!l->json) {
    printf("provider  %-20.*s %.*s%s%.*s\n", (int)name.n, name.data, (int)base_url.n, base_url.data,
           key_env.n ? "  key in $" : "", (int)key_env.n, key_env.n ? key_env.data : "");
    return 0;
  }
  pst_json_begin_object(&l->w);
  pst_json_member_str(&l->w, "name", name);
  pst_json_member_str(&l->w, "base_url", base_url);
  pst_json_member_str(&l->w, "key_env", key_env);
  pst_json_end_object(&l->w);
  return 0;
}

static int put_price(void *user, pst_str provider, pst_str model, pst_store_price price) {
  listing *l = user;
  char input[32], cached[32], output[32];
  (void)pst_cli_show_money(price.input, input);
  (void)pst_cli_show_money(price.cached_input, cached);
  (void)pst_cli_show_money(price.output, output);
  if (!l->json) {
    printf("price     %.*s/%.*s  $%s in, $%s cached, $%s out per million tokens\n", (int)provider.n, provider.data,
           (int)model.n, model.data, input, price.cached_input == PST_STORE_NO_LIMIT ? input : cached, output);
    return 0;
  }
  const pst_str names[] = {provider, model};
  pst_json_begin_object(&l->w);
  for (size_t i = 0; i < 2; i++) {
    pst_json_key(&l->w, i ? "model" : "provider");
    pst_json_put_str(&l->w, names[i]);
  }
  pst_json_member_cstr(&l->w, "input_usd", input);
  pst_json_member_cstr(&l->w, "cached_input_usd", price.cached_input == PST_STORE_NO_LIMIT ? NULL : cached);
  pst_json_member_cstr(&l->w, "output_usd", output);
  pst_json_end_object(&l->w);
  return 0;
}

static int list(const pst_cli_args *a, pst_store *store, pst_error *err) {
  pst_buf text = PST_BUF_INIT;
  listing l = {pst_cli_flag(a, "json"), pst_json_writer_on(&text, true)};
  int64_t nusd;
  char money[32];
  bool known = pst_store_machine_price_get(store, &nusd, NULL) == 0;
  if (known) (void)pst_cli_show_money(nusd, money);
  if (l.json) {
    pst_json_begin_object(&l.w);
    pst_json_member_cstr(&l.w, "machine_usd_per_hour", known ? money : NULL);
    pst_json_key(&l.w, "providers");
    pst_json_begin_array(&l.w);
  } else {
    printf("machine   %s%s\n", known ? "$" : "no price set: local answers cost nothing in the books",
           known ? money : "");
  }
  int code = pst_gateway_provider_each(store, put_provider, &l, err);
  if (l.json) {
    pst_json_end_array(&l.w);
    pst_json_key(&l.w, "prices");
    pst_json_begin_array(&l.w);
  }
  if (!code) code = pst_store_price_each(store, put_price, &l, err);
  if (l.json) {
    pst_json_end_array(&l.w);
    pst_json_end_object(&l.w);
    if (!code) puts(pst_buf_text(&text));
  }
  pst_buf_done(&text);
  return code;
}

/* ---- the command ----------------------------------------------------------------------------------------------------------- */

static int run_settings(const pst_cli_args *a, pst_error *err) {
  static const struct {
    const char *verb, *usage;
    int min, max;
    int (*run)(const pst_cli_args *a, pst_store *store, pst_error *err);
  } verbs[] = {
      {"list", "list", 0, 1, list},
      {"machine", "machine USD_PER_HOUR", 2, 2, set_machine},
      {"provider", "provider NAME URL [KEY_ENV]", 3, 4, set_provider},
      {"price", "price PROVIDER MODEL --input USD --output USD [--cached USD]", 3, 3, set_price},
  };
  const char *verb = a->n_words ? a->words[0] : "list";
  size_t i = 0;
  while (i < PST_ARRAY_LEN(verbs) && strcmp(verb, verbs[i].verb)) i++;
  if (i == PST_ARRAY_LEN(verbs))
    return pst_error_set(err, PST_E_BAD_INPUT, "settings",
                         "unknown action '%.40s'; there are list, machine, provider, price", verb);
  if (a->n_words < verbs[i].min || a->n_words > verbs[i].max)
    return pst_error_set(err, PST_E_BAD_INPUT, "settings", "usage: penstock settings %s", verbs[i].usage);
  pst_store *store = NULL;
  int code = pst_cli_store_open(a, &store, err);
  if (!code) code = verbs[i].run(a, store, err);
  if (!code && verbs[i].run != list && pst_cli_flag(a, "json")) code = list(a, store, err);
  pst_store_close(store);
  return code;
}

static const pst_cli_option options[] = {
    {"input", 0, PST_CLI_TEXT, "USD", NULL, 0, 0, false, "price of a million prompt tokens"},
    {"output", 0, PST_CLI_TEXT, "USD", NULL, 0, 0, false, "price of a million answer tokens"},
    {"cached", 0, PST_CLI_TEXT, "USD", NULL, 0, 0, false,
     "price of a million cached prompt tokens (default: as input)"},
    PST_CLI_HOME,
    PST_CLI_JSON,
};
const pst_cli_command pst_cli_settings = {
    "settings",
    "[list|machine|provider|price ...]",
    "prices and outside providers",
    "list                          what is set (the default)\n"
    "machine USD_PER_HOUR          price of this machine: what local answers cost\n"
    "provider NAME URL [KEY_ENV]   an OpenAI-compatible address (https://host/v1); KEY_ENV names the environment\n"
    "                              variable that holds its key: the key itself is never stored\n"
    "price PROVIDER MODEL          what it charges; MODEL may be '*'; needs --input and --output",
    0,
    4,
    options,
    PST_ARRAY_LEN(options),
    run_settings};
