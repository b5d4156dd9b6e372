#!/usr/bin/env python3
"""Weights calibrated here against llama.cpp's llama-quantize with an importance matrix, at equal bytes: divergence from the float model on held-out traffic.

    bench/compare_calibration.py --penstock build/penstock --llama DIR WORKLOAD MODEL --adapter ADAPTER --plan in-force --general TEXT --off-domain TEXT --out DIR

DIR of --llama holds llama-quantize and llama-imatrix. The budget is the bytes of all tensors in llama.cpp's file of --type, every matrix in it (--pure) or in what
llama.cpp falls back to. Both sides are calibrated twice: on the workload's part examples as `penstock calibrate --traffic-out` writes them, and on as many bytes of
the general text. All files are measured by the same float forward pass, on the workload's part verify and on the off-domain text. Prints JSON.
"""
import argparse
import json
import pathlib
import subprocess


def run(*command):
    subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def output(*command):
    return json.loads(subprocess.run([str(c) for c in command], check=True, capture_output=True, text=True).stdout)


def weights(penstock, path):
    """Bytes of a file's tensors, and their elements."""
    types = output(penstock, "inspect", path, "--json")["types"]
    return sum(t["bytes"] for t in types), sum(t["params"] for t in types)


def llama_quantize(a, reference, path, *options):
    run(a.llama / "llama-quantize", *options, "--pure", "--token-embedding-type", a.embedding_type, reference, path, a.type, a.threads)


def llama_file(a, reference, text):
    """llama.cpp's file, calibrated on a text."""
    matrix, path = a.out / f"imatrix-{text.stem}.gguf", a.out / f"llama-{text.stem}.gguf"
    run(a.llama / "llama-imatrix", "-m", reference, "-f", text, "--parse-special", "-o", matrix, "-t", a.threads, "-c", 256, "-b", 256, "--no-ppl", "--process-output")
    llama_quantize(a, reference, path, "--imatrix", matrix)
    return path


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("workload", type=pathlib.Path)
    p.add_argument("model", help="a pulled model's name or a GGUF file")
    p.add_argument("--penstock", type=pathlib.Path, default=pathlib.Path("build/penstock"))
    p.add_argument("--llama", type=pathlib.Path, required=True)
    p.add_argument("--general", type=pathlib.Path, required=True, help="calibration text that is not the workload's")
    p.add_argument("--off-domain", type=pathlib.Path, required=True, help="text on which the loss off-domain is measured; none of it in --general")
    p.add_argument("--out", type=pathlib.Path, required=True)
    p.add_argument("--adapter", type=pathlib.Path, help="merged into the float model first")
    p.add_argument("--plan", help="whose prompts are served, as for penstock calibrate")
    p.add_argument("--items", type=int, default=384, help="of the part examples")
    p.add_argument("--held-out-items", type=int, default=256, help="of the part verify")
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--type", default="IQ4_XS")
    p.add_argument("--embedding-type", default="IQ4_NL", help="llama-quantize has no fallback for it")
    a = p.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    reference, traffic, general, plain = (a.out / name for name in ("float.gguf", "traffic.txt", "general.txt", "llama-plain.gguf"))
    if a.adapter:
        run(a.penstock, "merge", a.model, a.adapter, reference, "--type", "F32", "--force", "-q")
    else:
        run(a.penstock, "quantize", a.model, reference, "F32", "--force", "-q")
    llama_quantize(a, reference, plain)
    n_bytes, n_elements = weights(a.penstock, plain)
    calibrate = [a.penstock, "calibrate", a.workload, reference, "--force", "-q", "--json", "--threads", a.threads, "--bits", 8 * n_bytes / n_elements,
                 "--held-out-items", a.held_out_items, "--general", a.off_domain, *(("--plan", a.plan) if a.plan else ())]
    report = {"budget_bytes": n_bytes, "budget_bits": 8 * n_bytes / n_elements}
    report["ours, traffic"] = ours = output(*calibrate, a.out / "ours-traffic.gguf", "--items", a.items, "--traffic-out", traffic)
    general.write_bytes(a.general.read_bytes()[: traffic.stat().st_size])
    others = {"llama.cpp, no calibration": plain, "llama.cpp, general": llama_file(a, reference, general), "llama.cpp, traffic": llama_file(a, reference, traffic)}
    compared = [x for path in others.values() for x in ("--compare", path)]
    report["ours, general"] = output(*calibrate, a.out / "ours-general.gguf", "--on", general, "--on-tokens", ours["calibration_tokens"], *compared)
    for name, found in zip(others, report["ours, general"].pop("compared")):
        report[name] = found | {"bytes": weights(a.penstock, found["path"])[0]}
    for name in ("ours, general", *others):
        for of in ("all", "answers"):
            report[name][f"traffic_lower_{of}"] = 1 - ours["held_out"][of] / report[name]["held_out"][of]
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
