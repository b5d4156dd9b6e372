/* Products of float matrices, as training wants them: any of the two operands may be read by columns, and the result may be added to.
 *
 * Owns the walk over a product: the right operand is copied into panels of 32 columns, a depth of DEEP at a time, and strips of rows of the left one, read
 * where they are, go over the panels while these lie in the second-level cache. An element of the result is one chain of fused multiply-adds in ascending
 * depth, begun with zero or with what was there; a chain that is left off at a panel's end goes on from memory with the same bits. So a product cut into
 * tiles, in any direction and by any number of threads, is the same as the whole. */
#include <penstock/kernels.h>

#include <string.h>

enum { PANEL = PST_KERNELS_PANEL, DEEP = 512, PANELS = 4 };
_Static_assert(sizeof(float) * DEEP * PANELS * PANEL <= PST_KERNELS_WORK_BYTES, "the panels fit the work space");

/* Columns [first, first + n_cols) and rows [deep, deep + n_deep) of b as a panel; columns beyond n_cols are zeros. */
static void pack_panel(const pst_kernels *k, pst_kernels_floats b, size_t deep, size_t n_deep, size_t first,
                       size_t n_cols, float *panel) {
  const float *from = b.data + deep * b.row + first * b.col;
  if (n_cols < PANEL) memset(panel, 0, n_deep * PANEL * sizeof *panel);
  if (b.col == 1 && n_cols == PANEL) { /* of a size that the compiler knows */
    for (size_t p = 0; p < n_deep; p++) memcpy(panel + p * PANEL, from + p * b.row, PANEL * sizeof *panel);
    return;
  }
  if (b.col == 1) {
    for (size_t p = 0; p < n_deep; p++) memcpy(panel + p * PANEL, from + p * b.row, n_cols * sizeof *panel);
    return;
  }
  k->panel_pack(from, b.col, n_deep, n_cols, panel);
}

void pst_kernels_product(const pst_kernels *k, size_t n_rows, size_t n_cols, size_t n_deep, pst_kernels_floats a,
                         pst_kernels_floats b, float *c, size_t c_row, bool add, void *work) {
  float *panels = work;
  if (!n_deep && !add)
    for (size_t i = 0; i < n_rows; i++) memset(c + i * c_row, 0, n_cols * sizeof *c);
  for (size_t j = 0; j < n_cols; j += PANELS * PANEL)
    for (size_t p = 0; p < n_deep; p += DEEP) {
      size_t deep = PST_MIN(n_deep - p, (size_t)DEEP), cols = PST_MIN(n_cols - j, (size_t)PANELS * PANEL);
      for (size_t x = 0; x < cols; x += PANEL)
        pack_panel(k, b, p, deep, j + x, PST_MIN(cols - x, (size_t)PANEL), panels + x * DEEP);
      for (size_t i = 0; i < n_rows; i += PST_KERNELS_STRIP)
        for (size_t x = 0; x < cols; x += PANEL)
          k->panel_product(PST_MIN(n_rows - i, (size_t)PST_KERNELS_STRIP), deep, a.data + i * a.row + p * a.col, a.row,
                           a.col, panels + x * DEEP, c + i * c_row + j + x, c_row, PST_MIN(cols - x, (size_t)PANEL),
                           add || p > 0);
    }
}
