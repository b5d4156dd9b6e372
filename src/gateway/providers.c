/* Upstream providers: settings of the store, one per name, as JSON {"base_url", "key_env"} under "provider.NAME". The key itself is never stored: its
 * environment variable is named, and read when a call is made. */
#include "gateway/live.h"

#include <string.h>

static const char PREFIX[] = "provider.";

static int no_memory(pst_error *err) { return pst_error_set(err, PST_E_NOMEM, NULL, "out of memory"); }

static bool in_set(pst_str s, const char *set) {
  for (size_t i = 0; i < s.n; i++)
    if (!s.data[i] || !strchr(set, s.data[i])) return false;
  return true;
}

static bool name_valid(pst_str name) {
  return name.n > 0 && name.n < 64 && name.data[0] != '.' && name.data[0] != '-' &&
         in_set(name, "abcdefghijklmnopqrstuvwxyz0123456789._-");
}

static bool env_valid(pst_str name) {
  return in_set(name, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789_") &&
         (name.n == 0 || name.data[0] < '0' || name.data[0] > '9');
}

static bool url_valid(pst_str url) {
  pst_str http = PST_STR("http://"), https = PST_STR("https://");
  size_t scheme = pst_str_starts(url, http) ? http.n : pst_str_starts(url, https) ? https.n : 0;
  if (!scheme || url.n == scheme || url.n > 1024 || url.data[scheme] == '/') return false;
  for (size_t i = 0; i < url.n; i++)
    if ((unsigned char)url.data[i] <= ' ' || url.data[i] == '?' || url.data[i] == '#') return false;
  return true;
}

static int setting_name(pst_str name, pst_buf *out) {
  pst_buf_puts(out, PREFIX);
  pst_buf_append_str(out, name);
  return pst_buf_status(out);
}

int pst_gateway_provider_set(pst_store *store, pst_str name, pst_str base_url, pst_str key_env, pst_error *err) {
  if (!name_valid(name))
    return pst_error_set(
        err, PST_E_BAD_INPUT, "provider",
        "a provider's name has 1 to 63 of the characters a-z 0-9 . _ -, and begins with a letter or digit");
  while (base_url.n && base_url.data[base_url.n - 1] == '/') base_url.n--;
  if (!url_valid(base_url))
    return pst_error_set(err, PST_E_BAD_INPUT, "base_url", "expected a URL like https://api.example.com/v1");
  if (!env_valid(key_env))
    return pst_error_set(err, PST_E_BAD_INPUT, "key_env",
                         "expected the name of an environment variable (letters, digits, _), not the key itself");
  pst_buf setting = PST_BUF_INIT, value = PST_BUF_INIT;
  pst_json_writer w = pst_json_writer_on(&value, false);
  pst_json_begin_object(&w);
  pst_json_member_str(&w, "base_url", base_url);
  pst_json_member_str(&w, "key_env", key_env);
  pst_json_end_object(&w);
  int code = setting_name(name, &setting) || pst_buf_status(&value) ? no_memory(err) : 0;
  if (!code) code = pst_store_setting_set(store, pst_buf_str(&setting), pst_buf_str(&value), err);
  pst_buf_done(&setting);
  pst_buf_done(&value);
  return code;
}

typedef struct provider_walk {
  int (*fn)(void *user, pst_str name, pst_str base_url, pst_str key_env);
  void *user;
} provider_walk;

static int each_setting(void *user, pst_str name, pst_str value) {
  const provider_walk *walk = user;
  pst_json_doc *doc = NULL;
  if (!pst_str_starts(name, PST_STR(PREFIX))) return 0;
  int code = pst_json_parse(value.data, value.n, "provider", &doc, NULL);
  if (!code) {
    size_t skip = sizeof PREFIX - 1;
    const pst_json *root = pst_json_root(doc);
    code = walk->fn(walk->user, (pst_str){name.data + skip, name.n - skip},
                    pst_json_str(pst_json_get(root, "base_url")), pst_json_str(pst_json_get(root, "key_env")));
  }
  pst_json_free(doc);
  return code;
}

int pst_gateway_provider_each(pst_store *store, int (*fn)(void *user, pst_str name, pst_str base_url, pst_str key_env),
                              void *user, pst_error *err) {
  provider_walk walk = {fn, user};
  return pst_store_setting_each(store, each_setting, &walk, err);
}

int pst_gateway_provider_get(pst_store *store, pst_str name, pst_gateway_provider *ret_provider, pst_error *err) {
  pst_buf setting = PST_BUF_INIT;
  char *value = NULL;
  pst_json_doc *doc = NULL;
  pst_gateway_provider p = {NULL, NULL};
  int code = setting_name(name, &setting) ? no_memory(err) : 0;
  if (!code) code = pst_store_setting_get(store, pst_buf_str(&setting), &value, err);
  if (code == PST_E_NOT_FOUND)
    code = pst_error_set(err, code, "provider",
                         "there is no provider \"%.*s\"; add it first (penstock settings provider NAME URL)",
                         (int)PST_MIN(name.n, 80u), name.data);
  if (code) goto done;
  if ((code = pst_json_parse(value, strlen(value), "provider", &doc, err))) goto done;
  pst_str url = pst_json_str(pst_json_get(pst_json_root(doc), "base_url"));
  pst_str env = pst_json_str(pst_json_get(pst_json_root(doc), "key_env"));
  p.base_url = pst_strndup(url.data ? url.data : "", url.n);
  p.key_env = pst_strndup(env.data ? env.data : "", env.n);
  if (!p.base_url || !p.key_env) {
    pst_gateway_provider_done(&p);
    code = no_memory(err);
    goto done;
  }
  *ret_provider = p;
done:
  pst_json_free(doc);
  pst_free(value);
  pst_buf_done(&setting);
  return code;
}

void pst_gateway_provider_done(pst_gateway_provider *provider) {
  pst_free(provider->base_url);
  pst_free(provider->key_env);
  *provider = (pst_gateway_provider){NULL, NULL};
}
