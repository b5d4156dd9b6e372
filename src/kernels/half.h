/* Half-precision and bfloat conversions, exact, in integers; the same bits as vcvtph2ps and vcvtps2ph (nearest even). */
#ifndef PST_KERNELS_HALF_H
#define PST_KERNELS_HALF_H

#include <stdint.h>
#include <string.h>

static inline float pst_bits_to_float(uint32_t u) {
  float f;
  memcpy(&f, &u, sizeof f);
  return f;
}

static inline uint32_t pst_float_to_bits(float f) {
  uint32_t u;
  memcpy(&u, &f, sizeof u);
  return u;
}

static inline float pst_half_widen(uint16_t h) {
  uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
  uint32_t rest = (uint32_t)(h & 0x7fffu) << 13;
  if ((h & 0x7c00u) == 0x7c00u) return pst_bits_to_float(sign | rest | 0x7f800000u | (h & 0x3ffu ? 0x400000u : 0u));
  if (h & 0x7c00u) return pst_bits_to_float(sign | (rest + 0x38000000u));
  /* Subnormal: the 10 bits count units of 2^-24; the product is exact. */
  float tiny = (float)(h & 0x3ffu) * 0x1p-24f;
  return sign ? -tiny : tiny;
}

static inline uint16_t pst_half_narrow(float f) {
  uint32_t u = pst_float_to_bits(f);
  uint32_t sign = (u >> 16) & 0x8000u;
  u &= 0x7fffffffu;
  if (u > 0x7f800000u) return (uint16_t)(sign | 0x7e00u | ((u >> 13) & 0x3ffu));
  if (u >= 0x477ff000u) return (uint16_t)(sign | 0x7c00u); /* rounds to 65536 or more */
  if (u < 0x38800000u) {
    /* Below 2^-14: adding 0.5 puts the unit 2^-24 at the last bit, and the addition rounds to nearest even. */
    uint32_t sum = pst_float_to_bits(pst_bits_to_float(u) + 0.5f);
    return (uint16_t)(sign | (sum - 0x3f000000u));
  }
  uint32_t odd = (u >> 13) & 1u;
  return (uint16_t)(sign | ((u - 0x38000000u + 0xfffu + odd) >> 13));
}

static inline float pst_bfloat_widen(uint16_t b) { return pst_bits_to_float((uint32_t)b << 16); }

static inline uint16_t pst_bfloat_narrow(float f) {
  uint32_t u = pst_float_to_bits(f);
  if ((u & 0x7fffffffu) > 0x7f800000u) return (uint16_t)((u >> 16) | 0x40u);
  return (uint16_t)((u + 0x7fffu + ((u >> 16) & 1u)) >> 16);
}

static inline uint16_t pst_load_u16(const void *p) {
  uint16_t v;
  memcpy(&v, p, sizeof v);
  return v;
}

static inline uint32_t pst_load_u32(const void *p) {
  uint32_t v;
  memcpy(&v, p, sizeof v);
  return v;
}

static inline void pst_store_u16(void *p, uint16_t v) { memcpy(p, &v, sizeof v); }

static inline void pst_store_u32(void *p, uint32_t v) { memcpy(p, &v, sizeof v); }

static inline float pst_load_half(const void *p) { return pst_half_widen(pst_load_u16(p)); }

#endif
