#!/usr/bin/env python3
"""Decode and prefill against llama.cpp: interleaved pairs, ratio of each pair, median and spread.

    bench/compare_llama.py --llama-bench PATH [--penstock build/penstock] [--pairs 10] [--threads 2] [--json] MODEL.gguf ...

Both programs run the same test in turns (the order within a pair alternates), one test to a process, so that a noisy machine hits both alike.
Ratio > 1: Penstock is faster. llama-bench is built from llama.cpp's sources (bench/README.md says how); it is no dependency of Penstock.
"""
import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys

TESTS = [("pp512", 512, 0, 0), ("pp128", 128, 0, 0), ("tg64", 0, 64, 0), ("tg64@512", 0, 64, 512)]


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr.strip()}")
    return json.loads(done.stdout)


def ours(program, model, threads, test):
    _, prompt, gen, depth = test
    rows = run([program, "bench", model, "-p", str(prompt), "-n", str(gen), "-d", str(depth), "-t", str(threads), "-r", "2", "--json"])
    rows = rows["rows"] if isinstance(rows, dict) else rows
    row = next(r for r in rows if (r["n_prompt"], r["n_gen"]) == (prompt, gen))
    return statistics.mean(row["tokens_per_second"])


def theirs(program, model, threads, test):
    _, prompt, gen, depth = test
    rows = run([program, "-m", model, "-p", str(prompt), "-n", str(gen), "-d", str(depth), "-t", str(threads), "-r", "2", "-o", "json"])
    return statistics.mean(rows[0]["samples_ts"])


def quartiles(values):
    q = statistics.quantiles(values, n=4, method="inclusive")
    return q[0], q[1], q[2]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+")
    parser.add_argument("--llama-bench", required=True)
    parser.add_argument("--penstock", default=str(pathlib.Path(__file__).resolve().parent.parent / "build" / "penstock"))
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--test", action="append", help="one of: " + " ".join(t[0] for t in TESTS))
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    mask = os.environ.get("PENSTOCK_CPU", "best")
    results = []
    for model in args.models:
        for test in TESTS:
            if args.test and test[0] not in args.test:
                continue
            a, b = [], []
            for pair in range(args.pairs):
                sides = [(a, ours, args.penstock), (b, theirs, args.llama_bench)]
                for values, side, program in sides if pair % 2 == 0 else reversed(sides):
                    values.append(side(program, model, args.threads, test))
            low, median, high = quartiles([x / y for x, y in zip(a, b)])
            row = {
                "model": os.path.basename(model), "test": test[0], "threads": args.threads, "cpu_mask": mask, "pairs": args.pairs,
                "penstock": statistics.median(a), "llama_cpp": statistics.median(b), "ratio": median, "ratio_quartiles": [low, high],
                "ratio_range": [min(x / y for x, y in zip(a, b)), max(x / y for x, y in zip(a, b))],
            }
            results.append(row)
            if not args.json:
                print(f"{row['model']:<16} {row['test']:<10} penstock {row['penstock']:8.1f}  llama.cpp {row['llama_cpp']:8.1f}  "
                      f"ratio {median:.2f} (quartiles {low:.2f} to {high:.2f}, range {row['ratio_range'][0]:.2f} to {row['ratio_range'][1]:.2f}, "
                      f"{args.pairs} pairs, mask {mask})", flush=True)
    if args.json:
        print(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
