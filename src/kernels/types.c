/* The table of element types: names and block sizes.
 *
 * Owns the facts about a type that need no arithmetic. Packing, unpacking and products are the other files' business.
 * The table itself is in the header (PST_KERNELS_TYPE_TABLE) so that the enum and the rows cannot disagree. */
#include <penstock/kernels.h>

/* Indexed by GGUF number; rows without a name are numbers nobody uses here. */
static const pst_kernels_type_row type_rows[PST_TYPE_END] = {
#define TYPE_ROW(name, number, elements, bytes) [number] = {#name, number, elements, bytes},
    PST_KERNELS_TYPE_TABLE(TYPE_ROW)
#undef TYPE_ROW
};

const pst_kernels_type_row *pst_kernels_type_info(uint32_t type) {
  if (type >= PST_TYPE_END || !type_rows[type].name) return NULL;
  return &type_rows[type];
}

static char ascii_upper(char c) { return c >= 'a' && c <= 'z' ? (char)(c - 'a' + 'A') : c; }

const pst_kernels_type_row *pst_kernels_type_find(pst_str name) {
  for (uint32_t t = 0; t < PST_TYPE_END; t++) {
    const char *row_name = type_rows[t].name;
    if (!row_name) continue;
    size_t i = 0;
    while (i < name.n && row_name[i] && ascii_upper(name.data[i]) == row_name[i]) i++;
    if (i == name.n && !row_name[i]) return &type_rows[t];
  }
  return NULL;
}

size_t pst_kernels_row_bytes(uint32_t type, uint64_t n_elements) {
  const pst_kernels_type_row *row = pst_kernels_type_info(type);
  if (!row || n_elements % row->block_elements) return 0;
  uint64_t n_blocks = n_elements / row->block_elements;
  if (n_blocks > SIZE_MAX / row->block_bytes) return 0;
  return (size_t)(n_blocks * row->block_bytes);
}
