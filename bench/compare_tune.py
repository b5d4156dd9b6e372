#!/usr/bin/env python3
"""Speed of LoRA training beside PyTorch with PEFT: the same model, shapes and ranks, a step's texts as one batch padded to its longest, loss on the
answer's tokens, AdamW, float32. Pairs of a few steps of each, one behind the other, first one first, then the other.

    pip install torch transformers peft accelerate gguf numpy
    bench/compare_tune.py MODEL.gguf [--bench build/gcc/bench/bench_tune] [--pairs N] [--rank N] [--texts N] [--length N] [--spread N] [--answer N]
                          [--threads N] [--steps N]

Tokens of the texts, padding not counted, a second by the clock; the first step of each side is left out of its time. Every pair has Penstock's products with frozen
weights in 8 bits (as it trains when nothing is said) and in float.
"""
import argparse
import pathlib
import re
import resource
import statistics
import subprocess
import time

import peft
import torch
import transformers


class Peer:
    """The model in PyTorch, and texts without end."""

    def __init__(self, o):
        self.o = o
        path = pathlib.Path(o.model).resolve()
        model = transformers.AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
        self.model = peft.get_peft_model(model, peft.LoraConfig(r=o.rank, lora_alpha=2 * o.rank, lora_dropout=0.0, task_type="CAUSAL_LM", target_modules=[
            "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]))
        self.optimizer = torch.optim.AdamW([p for p in self.model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
        self.generator = torch.Generator().manual_seed(1)

    def step(self):
        """One optimizer step; tokens of its texts."""
        o = self.o
        lengths = [int(x) for x in torch.randint(o.length - o.spread, o.length + o.spread + 1, (o.texts,), generator=self.generator)]
        tokens = torch.randint(0, self.model.config.vocab_size, (o.texts, max(lengths)), generator=self.generator)
        labels, mask = torch.full_like(tokens, -100), torch.zeros_like(tokens)
        for i, length in enumerate(lengths):
            labels[i, length - o.answer: length] = tokens[i, length - o.answer: length]
            mask[i, :length] = 1
        self.model(input_ids=tokens, attention_mask=mask, labels=labels).loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        return sum(lengths) - o.texts

    def speed(self):
        begin = time.monotonic()
        n = sum(self.step() for _ in range(self.o.steps - 1))
        return n / (time.monotonic() - begin)


def ours(o, int8):
    """Tokens of the texts a second, and what else bench_tune says."""
    arguments = [f"--{name}={getattr(o, name)}".split("=") for name in ("rank", "texts", "length", "spread", "answer", "threads", "steps")]
    out = subprocess.run([o.bench, o.model, *sum(arguments, []), "--int8", str(int(int8))], check=True, capture_output=True, text=True).stdout
    return float(re.search(r"of the texts ([0-9]+)", out).group(1)), out


def show(name, ratios):
    low, middle, high = min(ratios), statistics.median(ratios), max(ratios)
    print(f"{name}: {middle:.2f} times PyTorch's speed, median of {len(ratios)} pairs ({low:.2f} to {high:.2f})")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--bench", default="build/gcc/bench/bench_tune")
    for name, value in (("pairs", 10), ("rank", 16), ("texts", 16), ("length", 64), ("spread", 0), ("answer", 38), ("threads", 2), ("steps", 4)):
        parser.add_argument(f"--{name}", type=int, default=value)
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    peer = Peer(o)
    peer.step()
    ratios = {True: [], False: []}
    speeds = []
    for pair in range(o.pairs):
        first = peer.speed() if pair % 2 == 0 else None
        mine = {int8: ours(o, int8) for int8 in ((True, False) if pair % 4 < 2 else (False, True))}
        speeds.append(first or peer.speed())
        for int8 in mine:
            ratios[int8].append(mine[int8][0] / speeds[-1])
        print(f"pair {pair + 1}: PyTorch {speeds[-1]:.0f} tokens/s, Penstock {mine[True][0]:.0f} in 8 bits, {mine[False][0]:.0f} in float", flush=True)
    print(f"torch {torch.__version__}, peft {peft.__version__}, {o.threads} threads, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB resident at most")
    print(mine[True][1], end="")
    show("in 8 bits", ratios[True])
    show("in float", ratios[False])


if __name__ == "__main__":
    main()
