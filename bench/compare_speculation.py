#!/usr/bin/env python3
"""Decoding with speculation against decoding without: interleaved, ratio of each pair, median and spread.

    bench/compare_speculation.py [--rows snips,star,noise] [--past 400] [--asked 40] [--pairs 10] [--threads 2] [--draft DRAFT.gguf] [--data FOLDER] MODEL.gguf

snips: a text becomes JSON of intent and slots, eight examples in the prompt. star: the next reply of a support dialogue. noise: the same
at temperature 1.5, which repeats nothing: what speculation costs where it cannot help. The corpus holds the model's own answers
to requests of one half of the data; those that are timed come from the other half. A pair asks each request in every mode (none; lookup: drafts from its own text; answers:
from the corpus too; model: from the draft model too), back to back, in turning order. Ratio above 1: faster than without drafts, from an answer's first token to its last. All modes must give the same tokens.
"""
import argparse
import gzip
import json
import os
import pathlib
import random
import statistics
import subprocess
import sys

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODES = ("lookup", "answers", "model")


def snips(data):
    rows = [json.loads(line) for line in (data / "extract" / "snips.jsonl").open()]
    random.Random(1).shuffle(rows)
    examples = {}
    for row in rows:  # one of each intent, then any
        examples.setdefault(row["target"]["intent"], row)
    shown = list(examples.values()) + [r for r in rows if r not in examples.values()][:1]
    head = "".join(f"Text: {r['text']}\nJSON: {json.dumps(r['target'], ensure_ascii=False)}\n\n" for r in shown[:8])
    rest = [r for r in rows if r not in shown]
    return [f"{head}Text: {r['text']}\nJSON:" for r in rest]


def star(data):
    names = {"user": "Customer", "assistant": "Agent"}
    prompts = []
    with gzip.open(data / "replies" / "star.jsonl.gz", "rt") as file:
        for line in file:
            turns = json.loads(line)["turns"]
            ends = [i for i, t in enumerate(turns) if t["role"] == "assistant" and i >= 3]
            if ends:
                said = "".join(f"{names[t['role']]}: {t['content']}\n" for t in turns[: ends[len(ends) // 2]])
                prompts.append(f"A customer talks with a support agent.\n\n{said}Agent:")
    random.Random(1).shuffle(prompts)
    return prompts


def quartiles(values):
    return statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else values * 3


def one_row(name, args):
    prompts = {"snips": snips, "star": star, "noise": star}[name](args.data)
    half = len(prompts) // 2
    temperature = 1.5 if name == "noise" else 0
    requests = [{"prompt": p, "past": True, "temperature": temperature} for p in prompts[: min(args.past, half)]]
    requests += [{"prompt": p, "past": False, "temperature": temperature} for p in prompts[half : half + args.asked]]
    program = ROOT / "build" / "gcc" / "bench" / "bench_speculation"
    done = subprocess.run([program, args.model, str(args.pairs), str(args.threads), str(args.max_tokens), *([args.draft] if args.draft else [])], input="".join(json.dumps(r) + "\n" for r in requests), capture_output=True, text=True)
    if done.returncode:
        sys.exit(done.stderr.strip()[-2000:])
    result = json.loads(done.stdout)
    pairs = result["pairs"]
    print(f"{name}: corpus of {result['corpus_answers']} answers, {result['corpus_tokens']} tokens, {result['corpus_bytes'] / 1e6:.1f} MB, built in {result['corpus_us'] / 1000:.0f} ms; "
          f"{args.asked} requests, {pairs[0]['none']['tokens']} tokens; {result['isa']}; without drafts {statistics.median(1e6 * p['none']['tokens'] / p['none']['us'] for p in pairs):.0f} tok/s")
    for mode in (m for m in MODES if m in pairs[0]):
        low, middle, high = quartiles([p["none"]["us"] / p[mode]["us"] for p in pairs])
        total = {k: sum(p[mode][k] for p in pairs) for k in pairs[0][mode]}
        print(f"  {mode:<8} ratio {middle:.2f}  quartiles {low:.2f} to {high:.2f}, range {min(p['none']['us'] / p[mode]['us'] for p in pairs):.2f} to {max(p['none']['us'] / p[mode]['us'] for p in pairs):.2f}, "
              f"{len(pairs)} pairs; {total['tokens'] / max(total['steps'], 1):.2f} tokens a step, {total['drafted'] / max(total['steps'], 1):.2f} drafted, {100 * total['accepted'] / max(total['drafted'], 1):.0f}% of them accepted")
    sys.stdout.flush()
    return {"row": name, **result}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", metavar="MODEL.gguf")
    parser.add_argument("--draft", metavar="DRAFT.gguf", help="a smaller model of the same vocabulary")
    parser.add_argument("--rows", default="snips,star,noise")
    parser.add_argument("--past", type=int, default=400, help="answers in the corpus")
    parser.add_argument("--asked", type=int, default=40)
    parser.add_argument("--pairs", type=int, default=10)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=96)
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path(os.environ.get("PENSTOCK_TEST_DATA", ROOT / ".." / "shared" / "data")))
    parser.add_argument("--json", metavar="FILE", help="the results as JSON too")
    args = parser.parse_args()
    print(f"load {os.getloadavg()[0]:.1f}, mask {os.environ.get('PENSTOCK_CPU', 'none')}")
    results = [one_row(name, args) for name in args.rows.split(",")]
    if args.json:
        pathlib.Path(args.json).write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
