#!/usr/bin/env python3
"""Writes a workload's trace.jsonl: a busy hour squeezed into ten minutes.

    tools/make_trace.py examples/support-desk > examples/support-desk/trace.jsonl

Arrivals are a Poisson process whose rate swells slowly towards the middle and bursts once, as after a newsletter. The
items come from the parts `examples` and `search` only, each once, so that a trace tells nothing about the held-back parts;
about one message in fifty is sent a second time within seconds, as people do. The seed is fixed: the same items give
the same file.
"""
import json
import math
import pathlib
import random
import sys

SEED = 20
LENGTH_S = 600
BASE_PER_S = 0.80
SWELL_PER_S = 0.18
BURST_FROM_S, BURST_TO_S, BURST_PER_S = 370, 430, 2.2
RESEND_SHARE = 0.02


def rate(t):
    """Arrivals per second at t seconds."""
    if BURST_FROM_S <= t < BURST_TO_S:
        return BURST_PER_S
    return BASE_PER_S + SWELL_PER_S * math.sin(math.pi * t / LENGTH_S)


def arrivals(rng):
    """Arrival times in ms: a homogeneous process at the highest rate, thinned to rate(t) (Lewis and Shedler, 1979)."""
    t = 0.0
    while True:
        t -= math.log(1.0 - rng.random()) / BURST_PER_S
        if t >= LENGTH_S:
            return
        if rng.random() * BURST_PER_S < rate(t):
            yield round(t * 1000)


def trace(items):
    rng = random.Random(SEED)
    pool = [i["id"] for i in items if i["part"] in ("examples", "search")]
    for n in range(len(pool) - 1, 0, -1):  # Fisher-Yates by random() alone, whose stream Python keeps across versions
        k = int(rng.random() * (n + 1))
        pool[n], pool[k] = pool[k], pool[n]
    rows = []
    for n, t_ms in enumerate(arrivals(rng)):
        rows.append((t_ms, pool[n % len(pool)]))
        if rng.random() < RESEND_SHARE:
            rows.append((t_ms + 2000 + round(rng.random() * 10000), rows[-1][1]))
    return [{"t_ms": t_ms, "item": item} for t_ms, item in sorted(rows)]


def main():
    if len(sys.argv) != 2:
        sys.exit("make_trace: name the workload's folder, as in: tools/make_trace.py examples/support-desk")
    text = (pathlib.Path(sys.argv[1]) / "items.jsonl").read_text(encoding="utf-8")
    for row in trace([json.loads(line) for line in text.splitlines()]):
        print(json.dumps(row))


if __name__ == "__main__":
    main()
