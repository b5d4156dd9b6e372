/* The table of embedded files, written by tools/embed.sh at build time. Private to base: others call pst_asset_find. */
#ifndef PENSTOCK_BASE_ASSET_H
#define PENSTOCK_BASE_ASSET_H

typedef struct pst_asset_entry {
  const char *name;       /* path without a leading src/ or assets/; NULL in the closing row */
  const char *data, *end; /* a zero byte stands at *end */
} pst_asset_entry;

extern const pst_asset_entry pst_asset_table[];

#endif
