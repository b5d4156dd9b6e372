#!/usr/bin/env python3
"""Weights calibrated here against llama.cpp's llama-quantize with an importance matrix, at equal bytes: divergence from the float model on held-out traffic.

    bench/compare_calibration.py --penstock build/penstock --llama DIR WORKLOAD MODEL.gguf --general TEXT --off-domain TEXT --out DIR

DIR of --llama holds llama-quantize and llama-imatrix. Both sides get the same calibration texts: what `penstock calibrate --traffic-out` writes, or the general
text cut to the same size. All files are measured by the same float forward pass, on the workload's part verify and on the off-domain text. Prints JSON.
"""
import argparse
import json
import pathlib
import subprocess


def run(*command):
    subprocess.run([str(c) for c in command], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def llama_files(llama, out, model, texts, types, threads):
    """{name: path} of llama.cpp's files: each calibration text, each type, every tensor in it."""
    files = {}
    for text in texts:
        matrix = out / f"{text.stem}.imatrix.gguf"
        run(llama / "llama-imatrix", "-m", model, "-f", text, "--parse-special", "-o", matrix, "-t", threads, "-c", 256, "-b", 256, "--no-ppl", "--process-output")
        for kind in types:
            path = files[f"llama.cpp {kind}, {text.stem}"] = out / f"llama-{text.stem}-{kind}.gguf"
            run(llama / "llama-quantize", "--imatrix", matrix, "--pure", "--token-embedding-type", kind, model, path, kind, threads)
    return files


def main():
    p = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    p.add_argument("workload", type=pathlib.Path)
    p.add_argument("model", type=pathlib.Path)
    p.add_argument("--penstock", type=pathlib.Path, default=pathlib.Path("build/penstock"))
    p.add_argument("--llama", type=pathlib.Path, required=True)
    p.add_argument("--general", type=pathlib.Path, required=True, help="calibration text that is not the workload's")
    p.add_argument("--off-domain", type=pathlib.Path, required=True, help="text on which the loss off-domain is measured")
    p.add_argument("--out", type=pathlib.Path, required=True)
    p.add_argument("--adapter", type=pathlib.Path, help="merged into the float model first")
    p.add_argument("--items", type=int, default=128)
    p.add_argument("--held-out-items", type=int, default=64)
    p.add_argument("--threads", type=int, default=2)
    p.add_argument("--types", nargs="+", default=["IQ4_NL", "Q4_0"])
    a = p.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    reference, traffic, general = a.out / "float.gguf", a.out / "traffic.txt", a.out / "general.txt"
    if a.adapter:
        run(a.penstock, "merge", a.model, a.adapter, reference, "--type", "F32", "--force", "-q")
    else:
        run(a.penstock, "quantize", a.model, reference, "F32", "--force", "-q")
    calibrate = [a.penstock, "calibrate", a.workload, reference, a.out / "penstock.gguf", "--force", "-q", "--json", "--items", a.items]
    run(*calibrate, "--search-tokens", 2, "--held-out-items", 1, "--bits", 16, "--no-feedback", "--traffic-out", traffic)
    general.write_bytes(a.general.read_bytes()[: traffic.stat().st_size])
    files = llama_files(a.llama, a.out, reference, [traffic, general], a.types, a.threads)
    bits = max(path.stat().st_size for path in files.values())
    elements = json.loads(subprocess.run([str(a.penstock), "inspect", str(reference), "--json"], check=True, capture_output=True, text=True).stdout)["n_params"]
    header = reference.stat().st_size - 4 * elements
    compared = [x for path in files.values() for x in ("--compare", path)]
    done = subprocess.run([str(x) for x in [*calibrate, "--held-out-items", a.held_out_items, "--general", a.off_domain, "--bits", 8 * (bits - header) / elements, *compared]],
                          check=True, capture_output=True, text=True)
    report = json.loads(done.stdout)
    ours = report["held_out"]
    for (name, path), other in zip(files.items(), report["compared"]):
        other |= {"name": name, "bytes": path.stat().st_size, "lower_all": 1 - ours["all"] / other["held_out"]["all"], "lower_answers": 1 - ours["answers"] / other["held_out"]["answers"]}
    report["file_bytes"] = (a.out / "penstock.gguf").stat().st_size
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
