/* Errors: the one table of codes, and how a failure is put into words.
 *
 * Owns the text of the codes and the formatting of pst_error. Does not own any policy: nothing here prints, logs or exits.
 * Messages are built in a local buffer first, so that an error's own fields may be among the arguments. */
#include <penstock/base.h>

#include <errno.h>
#include <string.h>

/* Copies terminated text into a fixed field; a text too long is cut at a whole UTF-8 sequence. */
static void copy_field(char *field, size_t field_bytes, const char *text) {
  size_t n = strlen(text);
  if (n >= field_bytes) {
    n = field_bytes - 1;
    n -= pst_utf8_incomplete_tail((pst_str){text, n});
  }
  memmove(field, text, n);
  field[n] = '\0';
}

static void set_text(pst_error *err, int code, const char *place, const char *message) {
  char place_copy[sizeof err->place];
  copy_field(place_copy, sizeof place_copy, place ? place : "");
  err->code = code;
  memcpy(err->place, place_copy, sizeof place_copy);
  copy_field(err->message, sizeof err->message, message);
}

int pst_error_set(pst_error *err, int code, const char *place, const char *format, ...) {
  if (!err) return code;
  char message[sizeof err->message + 8] = "";
  va_list args;
  va_start(args, format);
  if (vsnprintf(message, sizeof message, format, args) < 0) message[0] = '\0';
  va_end(args);
  set_text(err, code, place, message);
  return code;
}

static int code_of_errno(int errnum) {
  switch (errnum) {
  case ENOMEM: return PST_E_NOMEM;
  case ENOENT:
  case ENOTDIR:
  case ENXIO: return PST_E_NOT_FOUND;
  case ENOSPC:
  case EDQUOT:
  case EFBIG: return PST_E_NO_SPACE;
  case EACCES:
  case EPERM:
  case EROFS: return PST_E_DENIED;
  case EEXIST:
  case ENOTEMPTY: return PST_E_EXISTS;
  case EBUSY:
  case EAGAIN:
  case ETXTBSY:
  case EADDRINUSE: return PST_E_BUSY;
  case ETIMEDOUT: return PST_E_TIMEOUT;
  case ECANCELED: return PST_E_CANCELLED;
  case EISDIR:
  case ENAMETOOLONG:
  case ELOOP: return PST_E_BAD_INPUT;
  case EMFILE:
  case ENFILE: return PST_E_LIMIT;
  default: return PST_E_IO;
  }
}

int pst_error_set_errno(pst_error *err, int errnum, const char *place, const char *format, ...) {
  int code = code_of_errno(errnum);
  if (!err) return code;
  char message[sizeof err->message + 8] = "";
  va_list args;
  va_start(args, format);
  int n = vsnprintf(message, sizeof message, format, args);
  va_end(args);
  size_t used = n < 0 ? 0 : PST_MIN((size_t)n, sizeof message - 1);
  char reason_space[128];
  const char *reason = strerror_r(errnum, reason_space, sizeof reason_space);
  (void)snprintf(message + used, sizeof message - used, "%s%s", used ? ": " : "", reason);
  set_text(err, code, place, message);
  return code;
}

int pst_error_prefix(pst_error *err, const char *format, ...) {
  if (!err) return PST_E_INTERNAL; /* the code is not known here, but a failure it is */
  char message[2 * sizeof err->message] = "";
  va_list args;
  va_start(args, format);
  int n = vsnprintf(message, sizeof err->message, format, args);
  va_end(args);
  size_t used = n < 0 ? 0 : PST_MIN((size_t)n, sizeof err->message - 1);
  (void)snprintf(message + used, sizeof message - used, ": %s", err->message);
  copy_field(err->message, sizeof err->message, message);
  return err->code;
}

const char *pst_error_text(int code) {
  switch (code) {
  case PST_OK: return "no error";
#define ERROR_CASE(name, value, text) \
  case name: return text;
    PST_ERROR_TABLE(ERROR_CASE)
#undef ERROR_CASE
  default: return "unknown error";
  }
}

const char *pst_error_format(const pst_error *err, char *buf, size_t buf_bytes) {
  if (buf_bytes == 0) return buf;
  const char *message = err->message[0] ? err->message : pst_error_text(err->code);
  int n =
      err->place[0] ? snprintf(buf, buf_bytes, "%s: %s", err->place, message) : snprintf(buf, buf_bytes, "%s", message);
  if (n < 0)
    buf[0] = '\0';
  else if ((size_t)n >= buf_bytes)
    buf[buf_bytes - 1 - pst_utf8_incomplete_tail((pst_str){buf, buf_bytes - 1})] = '\0';
  return buf;
}
