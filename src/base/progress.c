/* Progress of what takes long: a bar on a terminal, a plain line now and then elsewhere, nothing for short work.
 *
 * Owns one line of stderr. The caller counts; rate and time left come from the mean since the beginning. */
#include <penstock/base.h>

#include <math.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

#define SILENT_US 2000000
#define TERMINAL_STEP_US 100000
#define PLAIN_STEP_US 10000000
#define BAR_CELLS 24

static void copy_what(pst_progress *p, const char *what) {
  size_t n = strlen(what);
  if (n >= sizeof p->what) {
    n = sizeof p->what - 1;
    n -= pst_utf8_incomplete_tail((pst_str){what, n});
  }
  memmove(p->what, what, n);
  p->what[n] = '\0';
  for (size_t i = 0; i < n; i++)
    if ((unsigned char)p->what[i] < 0x20 || p->what[i] == 0x7f) p->what[i] = ' ';
}

void pst_progress_begin(pst_progress *p, const char *what, int64_t total, bool bytes, bool quiet) {
  memset(p, 0, sizeof *p);
  copy_what(p, what);
  p->total = total;
  p->start_us = pst_clock_us();
  p->bytes = bytes;
  p->quiet = quiet;
  p->terminal = isatty(STDERR_FILENO) == 1;
}

void pst_progress_begin_timed(pst_progress *p, const char *what, int64_t seconds, bool quiet) {
  pst_progress_begin(p, what, seconds, false, quiet);
  p->timed = true;
}

static void put_count(pst_buf *line, double count, bool bytes) {
  static const char *const units[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  if (!bytes) {
    pst_buf_printf(line, count < 10 && count != (double)(int64_t)count ? "%.1f" : "%.0f", count);
    return;
  }
  size_t unit = 0;
  while (count >= 1024 && unit + 1 < PST_ARRAY_LEN(units)) {
    count /= 1024;
    unit++;
  }
  pst_buf_printf(line, unit == 0 ? "%.0f %s" : "%.1f %s", count, units[unit]);
}

static void put_duration(pst_buf *line, double seconds) {
  if (!(seconds < 360000)) {
    pst_buf_puts(line, "over 100 h");
    return;
  }
  int64_t s = (int64_t)(seconds + 0.5);
  if (s >= 3600)
    pst_buf_printf(line, "%d h %02d min", (int)(s / 3600), (int)(s / 60 % 60));
  else if (s >= 60)
    pst_buf_printf(line, "%d min %02d s", (int)(s / 60), (int)(s % 60));
  else
    pst_buf_printf(line, "%d s", (int)s);
}

static void put_bar(pst_buf *line, double part) {
  int full = (int)(part * BAR_CELLS);
  pst_buf_puts(line, " [");
  for (int i = 0; i < BAR_CELLS; i++) pst_buf_putc(line, i < full ? '#' : '.');
  pst_buf_putc(line, ']');
}

/* What is done comes last here: it is what a narrow terminal may cut. */
static void put_timed_line(const pst_progress *p, int64_t now_us, bool last, pst_buf *line) {
  double part = p->total > 0 ? (double)p->done_count / (double)p->total : 1;
  part = last || part > 1 ? 1 : part < 0 ? 0 : part;
  pst_buf_printf(line, "%3d%%", (int)(part * 100));
  if (p->terminal) put_bar(line, part);
  pst_buf_putc(line, ' ');
  if (last) {
    pst_buf_puts(line, "took ");
    put_duration(line, fmax((double)(now_us - p->start_us) * 1e-6, (double)p->done_count));
  } else if (p->total > p->done_count) {
    put_duration(line, (double)(p->total - p->done_count));
    pst_buf_puts(line, " left");
  } else {
    put_duration(line, (double)(p->done_count - p->total));
    pst_buf_puts(line, " over");
  }
  pst_buf_printf(line, "  %s", p->what);
}

static void put_line(const pst_progress *p, int64_t now_us, bool last, pst_buf *line) {
  if (p->timed) {
    put_timed_line(p, now_us, last, line);
    return;
  }
  double seconds = (double)(now_us - p->start_us) * 1e-6;
  double rate = seconds > 0 ? (double)p->done_count / seconds : 0;
  pst_buf_puts(line, p->what);
  if (p->total > 0) {
    double part = (double)p->done_count / (double)p->total;
    part = part < 0 ? 0 : part > 1 ? 1 : part;
    if (p->terminal) put_bar(line, part);
    pst_buf_printf(line, " %3d%% ", (int)(part * 100));
  } else {
    pst_buf_putc(line, ' ');
  }
  put_count(line, (double)p->done_count, p->bytes);
  if (p->total > 0) {
    pst_buf_puts(line, " of ");
    put_count(line, (double)p->total, p->bytes);
  }
  pst_buf_puts(line, ", ");
  put_count(line, rate, p->bytes);
  pst_buf_puts(line, "/s");
  if (last) {
    pst_buf_puts(line, ", took ");
    put_duration(line, seconds);
  } else if (p->total > p->done_count && rate > 0) {
    pst_buf_puts(line, ", ");
    put_duration(line, (double)(p->total - p->done_count) / rate);
    pst_buf_puts(line, " left");
  }
}

/* Cuts to the terminal's width, in code points: a line that wraps could not be redrawn. */
static void cut_to_width(pst_buf *line) {
  struct winsize size;
  size_t columns = 80;
  if (ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0) columns = size.ws_col;
  size_t at = 0, seen = 0;
  while (at < line->n && seen + 1 < columns) {
    (void)pst_utf8_next(line->data, line->n, &at);
    seen++;
  }
  if (at < line->n) {
    line->n = at;
    line->data[at] = '\0';
  }
}

static void draw(pst_progress *p, int64_t now_us, bool last) {
  pst_buf line = PST_BUF_INIT;
  put_line(p, now_us, last, &line);
  if (pst_buf_status(&line) == 0) {
    if (p->terminal) {
      cut_to_width(&line);
      (void)fprintf(stderr, "\r%s\033[K%s", pst_buf_text(&line), last ? "\n" : "");
    } else {
      (void)fprintf(stderr, "%s\n", pst_buf_text(&line));
    }
    (void)fflush(stderr);
    p->drawn = true;
    p->drawn_us = now_us;
  }
  pst_buf_done(&line);
}

void pst_progress_update(pst_progress *p, int64_t done_count) {
  p->done_count = done_count;
  if (p->quiet) return;
  int64_t now_us = pst_clock_us();
  if (now_us - p->start_us < SILENT_US) return;
  if (!p->drawn || now_us - p->drawn_us >= (p->terminal ? TERMINAL_STEP_US : PLAIN_STEP_US)) draw(p, now_us, false);
}

void pst_progress_note(pst_progress *p, const char *format, ...) {
  char what[sizeof p->what + 8] = "";
  va_list args;
  va_start(args, format);
  if (vsnprintf(what, sizeof what, format, args) < 0) what[0] = '\0';
  va_end(args);
  copy_what(p, what);
  pst_progress_update(p, p->done_count);
}

void pst_progress_end(pst_progress *p) {
  if (p->drawn && !p->quiet) draw(p, pst_clock_us(), true);
  p->quiet = true; /* a second end says nothing */
}
