#!/usr/bin/env python3
"""Penstock against llama.cpp and its forks: interleaved pairs, ratio of each pair, median and spread.

    bench/compare_llama.py --peer NAME=FOLDER [--peer NAME=FOLDER] [--pairs 10] [--threads 2] [--row ROW ...] [--json FILE] MODEL.gguf ...

FOLDER holds the peer's llama-bench and llama-batched-bench (bench/README.md says how to build them; they are no dependency of Penstock). All programs run
the same row in turns, one process a turn, the order turning with each pair, so that a noisy machine hits all alike. Speed without loading; F16 keys and
values everywhere. Ratio above 1: Penstock is faster. Beside each decode row stand the bytes that a step reads and how much of the bandwidth of a bare
streaming matrix-vector loop, measured in the same turns, that comes to.
"""
import argparse
import json
import os
import pathlib
import re
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
# name: prompt, generated, depth, sequences, whether a loop keeps core 0 busy
ROWS = {
    "prefill": (512, 0, 0, 1, False),
    "decode": (0, 128, 16, 1, False),
    "batch32": (0, 128, 64, 32, False),
    "depth4k": (0, 64, 4096, 1, False),
    "busy": (0, 128, 16, 1, True),
}


def run(command):
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr.strip()[-2000:]}")
    return done.stdout


def numbers(*values):
    return [str(v) for v in values]


class Penstock:
    name = "penstock"

    def __init__(self, program, model, threads):
        self.program, self.model, self.threads = program, model, threads
        self.isa, self.bytes_per_step = None, None

    def speed(self, row):
        prompt, gen, depth, seqs, _ = row
        command = [self.program, "bench", self.model, "--json", *numbers("-p", prompt, "-n", gen, "-d", depth, "-b", seqs, "-t", self.threads, "-r", 1)]
        result = json.loads(run(command))[0]
        self.isa, self.bytes_per_step = result["isa"], result["bytes_per_step"]
        return statistics.mean(result["tokens_per_second"])


class Peer:
    def __init__(self, name, folder, model, threads):
        self.name, self.folder, self.model, self.threads = name, pathlib.Path(folder), model, threads
        self.isa = None
        # ik_llama.cpp has no -d; its -gp generates behind a prompt and times only that.
        usage = subprocess.run([self.folder / "llama-bench", "--help"], capture_output=True, text=True)
        self.has_depth = "--n-depth" in usage.stdout + usage.stderr

    def speed(self, row):
        prompt, gen, depth, seqs, _ = row
        if seqs > 1:
            return self.batched(gen, depth, seqs)
        command = [self.folder / "llama-bench", "-m", self.model, "-o", "json", *numbers("-t", self.threads, "-r", 1)]
        if depth and not self.has_depth:
            command += ["-p", "0", "-n", "0", "-gp", f"{depth},{gen}"]
        else:
            command += numbers("-p", prompt, "-n", gen) + (numbers("-d", depth) if depth else [])
        return statistics.mean(json.loads(run(command))[0]["samples_ts"])

    def batched(self, gen, depth, seqs):
        context = seqs * (depth + gen + 8)
        done = subprocess.run(
            [self.folder / "llama-batched-bench", "-m", self.model, *numbers("-npp", depth, "-ntg", gen, "-npl", seqs, "-c", context, "-t", self.threads, "-b", 2048)],
            capture_output=True, text=True)
        # | PP | TG | B | N_KV | T_PP s | S_PP t/s | T_TG s | S_TG t/s | ...   (ik_llama.cpp writes it to stderr)
        found = re.search(rf"^\|\s*{depth}\s*\|\s*{gen}\s*\|\s*{seqs}\s*\|(.*)\|\s*$", done.stdout + done.stderr, re.M)
        if done.returncode or not found:
            sys.exit(f"{self.name}: llama-batched-bench gave no row\n{done.stderr.strip()[-2000:]}")
        system = re.search(r"^system_info:.*", done.stderr + done.stdout, re.M)
        self.isa = self.isa or (system.group(0) if system else None)
        return float(found.group(1).split("|")[4])


def bandwidth(megabytes, threads):
    probe = ROOT / "build" / "gcc" / "bench" / "bench_stream"
    if not probe.exists():
        return None
    return json.loads(run([probe, *numbers(megabytes, threads, 5)]))["matvec_gbs"]


def one_row(name, model, peers, args):
    row = ROWS[name]
    sides = [Penstock(args.penstock, model, args.threads)] + [Peer(n, f, model, args.threads) for n, f in peers]
    speeds, probes = {s.name: [] for s in sides}, []
    spinner = subprocess.Popen(["taskset", "-c", "0", "sh", "-c", "while :; do :; done"]) if row[4] else None
    try:
        for pair in range(args.pairs):
            for side in sides[pair % len(sides):] + sides[:pair % len(sides)]:
                speeds[side.name].append(side.speed(row))
            if row[1] and not row[4]:
                probes.append(bandwidth(sides[0].bytes_per_step // 1_000_000, args.threads))
    finally:
        if spinner:
            spinner.kill()
            spinner.wait()
    mine = speeds["penstock"]
    result = {"row": name, "model": os.path.basename(model), "pairs": args.pairs, "threads": args.threads, "isa": sides[0].isa,
              "penstock": statistics.median(mine), "peers": {}}
    for n, _ in peers:
        ratios = [a / b for a, b in zip(mine, speeds[n])]
        low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive") if len(ratios) > 1 else ratios * 3
        result["peers"][n] = {"speed": statistics.median(speeds[n]), "ratio": middle, "quartiles": [low, high], "range": [min(ratios), max(ratios)]}
    probes = [p for p in probes if p]
    if probes:
        read = statistics.median(mine) / row[3] * sides[0].bytes_per_step * 1e-9
        result.update(megabytes_per_step=sides[0].bytes_per_step / 1e6, bandwidth_gbs=statistics.median(probes), of_bandwidth=read / statistics.median(probes))
    return result


def show(result):
    print(f"{result['model'][:12]:<12} {result['row']:<8} penstock {result['penstock']:8.1f} tok/s ({result['isa']})")
    for name, peer in result["peers"].items():
        print(f"{'':21} against {name:<10} {peer['speed']:8.1f}  ratio {peer['ratio']:.2f}  quartiles {peer['quartiles'][0]:.2f} to {peer['quartiles'][1]:.2f}, "
              f"range {peer['range'][0]:.2f} to {peer['range'][1]:.2f}, {result['pairs']} pairs")
    if "bandwidth_gbs" in result:
        print(f"{'':21} {result['megabytes_per_step']:.0f} MB a step; {100 * result['of_bandwidth']:.0f}% of {result['bandwidth_gbs']:.1f} GB/s (bare matrix-vector loop, same turns)")
    sys.stdout.flush()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("models", nargs="+", metavar="MODEL.gguf")
    parser.add_argument("--peer", action="append", required=True, metavar="NAME=FOLDER", help="a folder with llama-bench and llama-batched-bench")
    parser.add_argument("--penstock", default=str(ROOT / "build" / "penstock"))
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--row", action="append", choices=list(ROWS), help="default: all")
    parser.add_argument("--json", metavar="FILE", help="the results as JSON too")
    args = parser.parse_args()
    peers = [tuple(p.split("=", 1)) for p in args.peer]
    if any(len(p) != 2 for p in peers):
        parser.error("--peer takes NAME=FOLDER")
    cpu = re.search(r"model name\s*:\s*(.*)", pathlib.Path("/proc/cpuinfo").read_text())
    print(f"{cpu.group(1) if cpu else 'unknown processor'}, load {os.getloadavg()[0]:.1f}, mask {os.environ.get('PENSTOCK_CPU', 'none')}")
    results = []
    for model in args.models:
        for name in args.row or ROWS:
            results.append(one_row(name, model, peers, args))
            show(results[-1])
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
