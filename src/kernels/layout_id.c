/* What names the packed layout: the packed form of a sample of every type and of a screen, hashed. Whoever changes how weights are packed
 * changes the name with it, and packed weights that were kept before are not taken for the new ones. */
#include "kernels/layout.h"

#include <assert.h>

enum { COLUMNS = 256, SAMPLE_BYTES = PST_LANES * COLUMNS * 4, ROOM = 2 * SAMPLE_BYTES };

static uint64_t matrix_id(uint32_t type, const uint8_t *sample, uint8_t *room, uint64_t seed) {
  pst_kernels_matrix m;
  if (pst_kernels_matrix_init(type, PST_LANES, COLUMNS, &m, NULL)) return seed;
  assert(pst_kernels_matrix_bytes(&m) <= ROOM);
  pst_kernels_matrix_pack(&m, sample, 0, 1, room);
  return pst_hash64(room, m.group_bytes, seed);
}

static uint64_t screen_id(uint8_t *sample, uint8_t *room, uint64_t seed) {
  pst_kernels_matrix m;
  pst_kernels_screen s;
  float radius[PST_LANES];
  size_t row_bytes = pst_kernels_row_bytes(PST_TYPE_Q8_0, COLUMNS);
  for (size_t i = 0; i < PST_LANES * row_bytes; i += 34) { /* a scale that is a number: 0x2xxx */
    sample[i + 1] = 0x20;
  }
  if (pst_kernels_matrix_init(PST_TYPE_Q8_0, PST_LANES, COLUMNS, &m, NULL) || pst_kernels_screen_init(&m, &s) ||
      pst_kernels_screen_pack(&s, PST_TYPE_Q8_0, sample, 0, 1, room, radius))
    return seed;
  return pst_hash64(radius, sizeof radius, pst_hash64(room, s.codes.group_bytes, seed));
}

uint64_t pst_kernels_layout_id(void) {
  uint8_t *sample = pst_malloc(SAMPLE_BYTES), *room = pst_malloc(ROOM);
  uint64_t id = 0;
  if (sample && room) {
    pst_random r = {1, 0, 0};
    for (size_t i = 0; i < SAMPLE_BYTES; i++) sample[i] = (uint8_t)pst_random_next(&r);
    id = 1;
    for (uint32_t type = 0; type < PST_TYPE_END; type++) id = matrix_id(type, sample, room, id);
    id = screen_id(sample, room, id);
  }
  pst_free(sample);
  pst_free(room);
  return id;
}
