/* Random numbers: a counter-based generator, so that a draw is a function of (seed, stream, counter), and the kernel's for
 * keys.
 *
 * The function is Philox-2x64 with ten rounds (Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3",
 * SC 2011): for each key it is a bijection of 128 bits, which passes BigCrush. Key = seed, words = (counter, stream); the
 * first word of the result is the draw. Not for secrets. */
#include <penstock/base.h>

#include <errno.h>
#include <fcntl.h>
#include <sys/random.h>
#include <unistd.h>

__extension__ typedef unsigned __int128 uint128;

#define PHILOX_ROUNDS 10
#define PHILOX_MULTIPLIER 0xD2B74407B1CE6E93u
#define PHILOX_KEY_STEP 0x9E3779B97F4A7C15u /* golden ratio */

uint64_t pst_random_u64(uint64_t seed, uint64_t stream, uint64_t counter) {
  uint64_t left = counter, right = stream, key = seed;
  for (int round = 0; round < PHILOX_ROUNDS; round++) {
    uint128 product = (uint128)left * PHILOX_MULTIPLIER;
    left = (uint64_t)(product >> 64) ^ key ^ right;
    right = (uint64_t)product;
    key += PHILOX_KEY_STEP;
  }
  return left;
}

static double unit_of(uint64_t bits) { return (double)(bits >> 11) * 0x1p-53; }

double pst_random_unit(uint64_t seed, uint64_t stream, uint64_t counter) {
  return unit_of(pst_random_u64(seed, stream, counter));
}

uint64_t pst_random_next(pst_random *r) { return pst_random_u64(r->seed, r->stream, r->counter++); }

double pst_random_next_unit(pst_random *r) { return unit_of(pst_random_next(r)); }

/* Lemire, "Fast random integer generation in an interval", 2019. */
uint64_t pst_random_below(pst_random *r, uint64_t n) {
  uint128 product = (uint128)pst_random_next(r) * n;
  if ((uint64_t)product < n) {
    uint64_t unfair = (0 - n) % n; /* 2^64 mod n */
    while ((uint64_t)product < unfair) product = (uint128)pst_random_next(r) * n;
  }
  return (uint64_t)(product >> 64);
}

static int secret_from_device(uint8_t *out, size_t n) {
  int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return PST_E_IO;
  int rc = 0;
  while (n > 0) {
    ssize_t got = read(fd, out, n);
    if (got > 0) {
      out += got;
      n -= (size_t)got;
    } else if (got == 0 || errno != EINTR) {
      rc = PST_E_IO;
      break;
    }
  }
  (void)close(fd);
  return rc;
}

int pst_random_secret(void *out, size_t n) {
  uint8_t *at = out;
  while (n > 0) {
    ssize_t got = getrandom(at, n, 0);
    if (got > 0) {
      at += got;
      n -= (size_t)got;
    } else if (got < 0 && errno == ENOSYS) {
      return secret_from_device(at, n);
    } else if (got < 0 && errno != EINTR) {
      return PST_E_IO;
    }
  }
  return 0;
}
