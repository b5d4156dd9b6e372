#!/usr/bin/env python3
"""Golden files of LoRA adapters, tests/golden/adapters/NAME/: what PEFT saves, what llama.cpp's converter makes of it, and what a tiny model computes with it.

    pip install torch==2.15.0 transformers==5.24.0 peft==0.21.2 numpy sentencepiece
    tools/golden_adapters.py [NAME...] --llama-cpp FOLDER [--library FOLDER] [--penstock PROGRAM]

The models are those of golden_architectures.py, whose numbers are hashes of tensor names; so are the adapters'. In each folder: adapter_config.json and
adapter_model.safetensors as PEFT saved them, adapter.gguf as convert_lora_to_gguf.py of llama.cpp's source tree made it, and golden.json with the
log-probability of every token of the text with the adapter, by PEFT in float32, and how far llama.cpp is from it (--library).

With --penstock, the other way round: the program converts each form into the other, and llama.cpp and PEFT must load what it made and compute the same
within LLAMA_TOLERANCE.
"""
import argparse
import json
import pathlib
import shutil
import subprocess
import sys
import tempfile

import peft
import torch

import golden_architectures as base
from golden_architectures import FIRST_SEED, KINDS, LLAMA_DIFFERS, LLAMA_TOLERANCE, N_TOKENS, TOKENS, Numbers, hashed, model_of

DENSE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
# name: PEFT's settings; where ranks differ, and where alpha is over the root of the rank
ADAPTERS = {
    "llama": dict(r=2, lora_alpha=8, target_modules=DENSE, rank_pattern={"down_proj": 3}),
    "qwen2": dict(r=2, lora_alpha=3, target_modules=DENSE, layers_to_transform=[1], use_rslora=True),
    "qwen3": dict(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"]),
    "gemma3": dict(r=2, lora_alpha=4, target_modules=DENSE, layers_to_transform=[2]),
    "phi3": dict(r=2, lora_alpha=4, target_modules=["qkv_proj", "o_proj", "gate_up_proj", "down_proj"], layers_to_transform=[1]),
}


def adapted(name, settings):
    Numbers.seed = FIRST_SEED
    model = peft.get_peft_model(model_of(name, KINDS[name], {}), peft.LoraConfig(task_type="CAUSAL_LM", **settings))
    with torch.no_grad():
        for key, w in model.named_parameters():
            if ".lora_" in key:
                w.copy_(torch.from_numpy(hashed(key, *w.shape)))
    return model.eval()


def check(what, apart, limit):
    print(f"{what}: {apart:.1e}", file=sys.stderr)
    if not apart <= limit:
        sys.exit(f"{what} differs by {apart}, more than {limit}")
    return float(f"{apart:.1e}")


def llama_logprobs(library, path, adapter):
    return torch.log_softmax(base.llama_logits(library, path, adapter).double(), -1)


def convert(options, name, folder, model_path, work, logprobs):
    """The converter's file, and how far llama.cpp with it is from PEFT; None: not asked."""
    subprocess.run([sys.executable, pathlib.Path(options.llama_cpp) / "convert_lora_to_gguf.py", "--base", work / "model", "--outtype", "f32",
                    "--outfile", folder / "adapter.gguf", work / "peft"], check=True, stderr=subprocess.DEVNULL)
    if not options.library or "peer" in KINDS[name]:  # llama.cpp leaves a part of some models out
        return None
    limit = LLAMA_DIFFERS.get(name, (LLAMA_TOLERANCE,))[0]
    return check(f"{name}: llama.cpp with the converter's file", float((llama_logprobs(options.library, model_path, folder / "adapter.gguf") - logprobs).abs().max()), limit)


def convert_back(options, name, folder, model_path, work, logprobs):
    """What the program makes of each form, loaded by the form's owner."""
    def export(given, out, *more):
        subprocess.run([options.penstock, "adapters", "export", given, out, "--model", model_path, *more], check=True, stdout=subprocess.DEVNULL)

    export(folder, work / "ours.gguf")
    export(work / "ours.gguf", work / "ours", "--peft")
    if options.library and "peer" not in KINDS[name]:
        limit = LLAMA_DIFFERS.get(name, (LLAMA_TOLERANCE,))[0]
        check(f"{name}: llama.cpp with our file", float((llama_logprobs(options.library, model_path, work / "ours.gguf") - logprobs).abs().max()), limit)
    Numbers.seed = FIRST_SEED
    again = peft.PeftModel.from_pretrained(model_of(name, KINDS[name], {}), work / "ours").eval()
    check(f"{name}: PEFT with our folder", float((base.logprobs_of(again) - logprobs).abs().max()), LLAMA_TOLERANCE)


def make(name, settings, options):
    folder = options.out / name
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as work:
        work = pathlib.Path(work)
        model_path = work / f"{name}.gguf"
        Numbers.seed = FIRST_SEED
        plain = model_of(name, KINDS[name], {})
        base.convert(plain, work / "model", model_path)
        model = adapted(name, settings)
        logprobs = base.logprobs_of(model)
        model.save_pretrained(work / "peft")
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            shutil.copy(work / "peft" / file, folder / file)
        apart = None
        if not settings.get("use_rslora"):  # which the converter does not read
            apart = convert(options, name, folder, model_path, work, logprobs)
        if options.penstock:
            convert_back(options, name, folder, model_path, work, logprobs)
    moved = float((logprobs - base.logprobs_of(plain)).abs().max())
    golden = {"made_by": "tools/golden_adapters.py", "peft": peft.__version__, "llama_cpp_differs_by": apart, "adapter_moves_by": round(moved, 2),
              "tokens": TOKENS, "logprobs": [round(float(logprobs[i, TOKENS[i + 1]]), 5) for i in range(N_TOKENS - 1)]}
    (folder / "golden.json").write_text("{\n" + ",\n".join(f' "{k}": {json.dumps(v)}' for k, v in golden.items()) + "\n}\n", encoding="ascii")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--llama-cpp", required=True, help="source tree of llama.cpp")
    parser.add_argument("--library", help="folder of libllama.so; left out: llama.cpp does not compute")
    parser.add_argument("--penstock", help="the program; left out: what it writes is not tried")
    parser.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).resolve().parent.parent / "tests/golden/adapters")
    options = parser.parse_args()
    sys.path[:0] = [options.llama_cpp, str(pathlib.Path(options.llama_cpp) / "gguf-py")]
    torch.manual_seed(0)
    for name in options.names or ADAPTERS:
        make(name, ADAPTERS[name], options)


if __name__ == "__main__":
    main()
