/* Private to data: examples as text, and files as rows. */
#ifndef PST_DATA_DATA_H
#define PST_DATA_DATA_H

#include <penstock/data.h>

/* ---- example.c ---- */

/* An example and its record as one line of a format, without the line end, appended. False: the format cannot say it (out is as before). */
bool pst_data_example_write(const pst_data_example *example, const pst_store_request *record, pst_data_format format,
                            pst_buf *out);
/* Text as a CSV field. */
void pst_data_csv_put(pst_str text, pst_buf *out);
extern const char pst_data_csv_head[];

/* ---- source.c: a file as a walk over JSON values or CSV rows ---- */

typedef struct pst_data_source {
  FILE *file;
  const char *path;
  pst_buf buffer;    /* what was read and not yet passed over */
  size_t at;         /* in buffer */
  size_t line;       /* of the next byte, from 1 */
  size_t value_line; /* where the value that was given last begins */
  int64_t n_read;    /* bytes of the file so far */
  int64_t n_bytes;   /* of all; 0: unknown */
  bool ended, array, begun, csv;
  pst_buf cells; /* CSV: the row's fields, unquoted, one after the other */
  pst_str *fields;
  size_t *ends;
  size_t n_fields, fields_capacity, ends_capacity;
} pst_data_source;
int pst_data_source_open(const char *path, pst_data_source *ret_source, pst_error *err);
void pst_data_source_close(pst_data_source *source);
/* The first byte that is no white space; 0: the file is empty. */
int pst_data_source_peek(pst_data_source *source, char *ret_first, pst_error *err);
/* 1: *ret_value is the next line or element of the array; 0: no more. */
int pst_data_source_json(pst_data_source *source, pst_str *ret_value, pst_error *err);
/* 1: source->fields[n_fields] is the next row; 0: no more. */
int pst_data_source_csv(pst_data_source *source, pst_error *err);
/* "FILE:LINE" of the value given last. */
int pst_data_source_fail(const pst_data_source *source, int code, pst_error *err, const char *format, ...)
    PST_PRINTF(4, 5);

#endif
