#!/usr/bin/env python3
"""Writes tests/golden/statistics_golden.h: what the statistics of evals must give, computed by other means.

    build/venv/bin/python tests/golden/make_statistics.py > tests/golden/statistics_golden.h

Nothing here shares a formula with src/evals/statistics.c where another road is open:
  Wilson      the roots of (p - k/n)^2 = z^2 p (1 - p) / n in 60-digit decimals
  Tango       the score test itself: the restricted likelihood maximised by golden section, the limits by bisection
  Newcombe    from the Wilson roots, in decimals
  mid-p       exact fractions over all outcomes
  detectable  the power of Connor's normal approximation by numpy, searched on a grid and refined
It also checks itself against the published example of Fagerland, Lydersen and Laake (2014): 1, 1, 7, 12.
"""
import decimal
import fractions
import math
import statistics

import numpy

D = decimal.Decimal
decimal.getcontext().prec = 60
LEVELS = (0.90, 0.95, 0.99)


def z_of(confidence):
    return statistics.NormalDist().inv_cdf((1 + confidence) / 2)


def wilson(k, n, confidence):
    z2 = D(z_of(confidence)) ** 2
    p = D(k) / D(n)
    a, b, c = 1 + z2 / n, -(2 * p + z2 / n), p * p
    root = max(b * b - 4 * a * c, D(0)).sqrt()
    return (-b - root) / (2 * a), (-b + root) / (2 * a)


def log_likelihood(n10, n01, n_same, p01, delta):
    total = 0.0
    for count, p in ((n10, p01 + delta), (n01, p01), (n_same, 1 - 2 * p01 - delta)):
        if count:
            if p <= 0:
                return -math.inf
            total += count * math.log(p)
    return total


def restricted_p01(n10, n01, n_same, delta):
    """The p01 that makes the counts likeliest when p10 - p01 = delta."""
    low, high = max(0.0, -delta), (1 - delta) / 2
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(400):
        a, b = high - ratio * (high - low), low + ratio * (high - low)
        if log_likelihood(n10, n01, n_same, a, delta) < log_likelihood(n10, n01, n_same, b, delta):
            low = a
        else:
            high = b
    return (low + high) / 2


def score(n10, n01, n_same, delta):
    n = n10 + n01 + n_same
    p01 = restricted_p01(n10, n01, n_same, delta)
    variance = (2 * p01 + delta - delta * delta) / n
    return ((n10 - n01) / n - delta) / math.sqrt(variance) if variance > 1e-300 else None


def tango(n11, n10, n01, n00, confidence):
    z, n, n_same = z_of(confidence), n11 + n10 + n01 + n00, n11 + n00
    estimate = (n10 - n01) / n

    def limit(inside, outside):
        for _ in range(200):
            mid = (inside + outside) / 2
            value = score(n10, n01, n_same, mid)
            if value is not None and abs(value) <= z:
                inside = mid
            else:
                outside = mid
        return inside
    low = -1.0 if estimate == -1 else limit(estimate, -1.0)
    high = 1.0 if estimate == 1 else limit(estimate, 1.0)
    return estimate, low, high


def newcombe(n11, n10, n01, n00, confidence):
    n = n11 + n10 + n01 + n00
    p1, p2 = D(n11 + n10) / n, D(n11 + n01) / n
    l1, u1 = wilson(n11 + n10, n, confidence)
    l2, u2 = wilson(n11 + n01, n, confidence)
    product = (n11 + n10) * (n01 + n00) * (n11 + n01) * (n10 + n00)
    cross = D(n11 * n00 - n10 * n01)
    if cross > 0:
        cross = max(cross - D(n) / 2, D(0))
    phi = cross / D(product).sqrt() if product else D(0)
    below = ((p1 - l1) ** 2 - 2 * phi * (p1 - l1) * (u2 - p2) + (u2 - p2) ** 2).sqrt()
    above = ((u1 - p1) ** 2 - 2 * phi * (u1 - p1) * (p2 - l2) + (p2 - l2) ** 2).sqrt()
    return p1 - p2, max(p1 - p2 - below, D(-1)), min(p1 - p2 + above, D(1))


def mid_p(n10, n01):
    """All 2^n outcomes of the discordant pairs: those less likely than what was seen, and half of those as likely."""
    n = n10 + n01
    seen = math.comb(n, n10)
    less = sum(math.comb(n, k) for k in range(n + 1) if math.comb(n, k) < seen)
    equal = sum(math.comb(n, k) for k in range(n + 1) if math.comb(n, k) == seen)
    return float(fractions.Fraction(2 * less + equal, 2 * 2 ** n))


def detectable(n, psi, alpha, power):
    """The least d whose power reaches `power`; beyond psi all discordant pairs lie on one side."""
    normal = statistics.NormalDist()

    def reached(d):
        spread = math.sqrt(max(psi, d) - d * d)
        shift = d * math.sqrt(n) - normal.inv_cdf(1 - alpha / 2) * math.sqrt(max(psi, d))
        return shift / spread >= normal.inv_cdf(power) if spread > 0 else shift >= 0
    grid = numpy.linspace(1e-6, 1 - 1e-9, 20001)
    high = next((float(d) for d in grid if reached(float(d))), 1.0)
    low = max(high - 1e-4, 0.0)
    for _ in range(100):
        mid = (low + high) / 2
        low, high = (low, mid) if reached(mid) else (mid, high)
    return high


PAIRED = [(1, 1, 7, 12), (59, 6, 16, 80), (7, 25, 2, 68), (0, 0, 0, 10), (10, 0, 0, 0), (5, 0, 0, 5), (0, 10, 0, 0),
          (0, 0, 10, 0), (0, 5, 5, 0), (1, 0, 0, 0), (0, 1, 0, 0), (0, 1, 1, 0), (3, 1, 0, 0), (0, 0, 3, 1),
          (212, 14, 9, 75), (180, 31, 0, 99), (2000, 120, 131, 749), (43, 0, 1, 0), (900000, 1200, 1100, 97700)]


def main():
    assert [round(x, 3) for x in tango(1, 1, 7, 12, 0.95)[1:]] == [-0.517, -0.026]
    assert [round(float(x), 3) for x in newcombe(1, 1, 7, 12, 0.95)[1:]] == [-0.507, -0.026]
    print("/* Written by tests/golden/make_statistics.py; do not edit. */")
    print("static const struct { long long k, n; double confidence, low, high; } wilson_golden[] = {")
    for k, n in ((0, 1), (1, 1), (0, 10), (10, 10), (3, 10), (186, 310), (310, 310), (1, 100000), (99999, 100000), (81, 263)):
        for level in LEVELS:
            low, high = wilson(k, n, level)
            print(f"    {{{k}, {n}, {level!r}, {float(low)!r}, {float(high)!r}}},")
    print("};")
    for name, method in (("tango", tango), ("newcombe", newcombe)):
        print(f"static const struct {{ long long n11, n10, n01, n00; double confidence, estimate, low, high; }} {name}_golden[] = {{")
        for counts in PAIRED:
            for level in LEVELS:
                row = ", ".join(repr(float(x)) for x in method(*counts, level))
                print(f"    {{{', '.join(map(str, counts))}, {level!r}, {row}}},")
        print("};")
    print("static const struct { long long n10, n01; double p; } mid_p_golden[] = {")
    for n10, n01 in ((1, 0), (0, 1), (1, 1), (5, 5), (1, 7), (6, 16), (25, 2), (14, 9), (120, 131), (0, 40), (500, 420), (2000, 1900)):
        print(f"    {{{n10}, {n01}, {mid_p(n10, n01)!r}}},")
    print("};")
    print("static const struct { long long n; double discordant, alpha, power, d; } detectable_golden[] = {")
    for n, psi, alpha, power in ((310, 0.1, 0.05, 0.8), (310, 0.0, 0.05, 0.8), (50, 0.3, 0.05, 0.9), (10, 0.1, 0.05, 0.8),
                                 (2, 0.5, 0.05, 0.8), (10000, 0.02, 0.01, 0.95), (1000, 1.0, 0.05, 0.8)):
        print(f"    {{{n}, {psi!r}, {alpha!r}, {power!r}, {detectable(n, psi, alpha, power)!r}}},")
    print("};")


if __name__ == "__main__":
    main()
