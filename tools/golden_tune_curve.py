#!/usr/bin/env python3
"""Golden file of a course of training, tests/golden/tune_curve.json: the loss of every step as PEFT and PyTorch have it, from the start that our
trainer draws, over texts in a fixed order.

    pip install torch==2.15.0 transformers==5.24.0 peft==0.21.2 accelerate gguf numpy
    tools/golden_tune_curve.py MODEL.gguf [--steps N] [--out FILE]

MODEL.gguf is SmolLM2-135M-Instruct as the catalogue has it, which transformers dequantizes to float32. Texts are messages of examples/support-desk and
their labels; what the file holds are their tokens.
"""
import argparse
import json
import math
import pathlib
import sys

import numpy as np
import peft
import torch
import transformers

ROOT = pathlib.Path(__file__).resolve().parent.parent
RANK, ALPHA, RATE, WARMUP, CLIP, BATCH, SEED = 16, 32, 1e-4, 0.03, 1.0, 4, 1
N_TEXTS, MAX_TOKENS, N_GIVEN = 96, 20, 3
ROLES = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")


def random_unit(seed, stream, n):
    """pst_random_unit(seed, stream, i) for i < n: Philox-2x64 with ten rounds."""
    mask = np.uint64(0xFFFFFFFF)
    multiplier, step = 0xD2B74407B1CE6E93, 0x9E3779B97F4A7C15
    left, right, key = np.arange(n, dtype=np.uint64), np.full(n, stream, dtype=np.uint64), seed
    m_low, m_high = np.uint64(multiplier & 0xFFFFFFFF), np.uint64(multiplier >> 32)
    with np.errstate(over="ignore"):
        for _ in range(10):
            low, high = left & mask, left >> np.uint64(32)
            ll, lh, hl, hh = low * m_low, low * m_high, high * m_low, high * m_high
            middle = (ll >> np.uint64(32)) + (lh & mask) + (hl & mask)
            top = hh + (lh >> np.uint64(32)) + (hl >> np.uint64(32)) + (middle >> np.uint64(32))
            left, right = top ^ np.uint64(key) ^ right, left * np.uint64(multiplier)
            key = (key + step) & 0xFFFFFFFFFFFFFFFF
    return (left >> np.uint64(11)).astype(np.float64) * 2.0 ** -53


def texts_of(tokenizer):
    """[tokens, n_given]: message, line break, label, end; all but the first tokens are scored, so that there is something to learn for 200 steps."""
    out = []
    for line in (ROOT / "examples/support-desk/items.jsonl").read_text().splitlines():
        item = json.loads(line)
        given = tokenizer(item["messages"][-1]["content"] + "\n", add_special_tokens=False)["input_ids"]
        answer = tokenizer(item["reference"]["intent"], add_special_tokens=False)["input_ids"] + [tokenizer.eos_token_id]
        if item["part"] == "examples" and len(given) + len(answer) <= MAX_TOKENS:
            out.append([given + answer, N_GIVEN])
    return out[:N_TEXTS]


def schedule(step, n):
    warmup = math.ceil(WARMUP * n)
    if step < warmup:
        return (step + 1) / (warmup + 1)
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / max(n - warmup, 1)))


def start(model):
    for name, parameter in model.named_parameters():
        parts = name.split(".")
        if "lora_A" in parts:
            layer, role = int(parts[parts.index("layers") + 1]), ".".join(parts[parts.index("layers") + 2:][:2])
            n_in = parameter.shape[1]
            unit = random_unit(SEED, layer * len(ROLES) + ROLES.index(role), parameter.numel())
            parameter.data = torch.from_numpy(((2 * unit - 1) / math.sqrt(n_in)).astype(np.float32)).reshape(parameter.shape)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--out", default=ROOT / "tests/golden/tune_curve.json")
    options = parser.parse_args()
    path = pathlib.Path(options.model).resolve()
    tokenizer = transformers.AutoTokenizer.from_pretrained(str(path.parent), gguf_file=path.name)
    model = transformers.AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
    model = peft.get_peft_model(model, peft.LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=[r.split(".")[1] for r in ROLES],
                                                       task_type="CAUSAL_LM"))
    start(model)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=RATE, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0)
    texts, losses = texts_of(tokenizer), []
    assert len(texts) == N_TEXTS
    for step in range(options.steps):
        chosen = [texts[(step * BATCH + i) % N_TEXTS] for i in range(BATCH)]
        scored, longest = sum(len(t) - n for t, n in chosen), max(len(t) for t, _ in chosen)
        tokens = torch.tensor([t + [0] * (longest - len(t)) for t, _ in chosen])
        mask = torch.tensor([[1] * len(t) + [0] * (longest - len(t)) for t, _ in chosen])
        labels = torch.tensor([[-100] * n + t[n:] + [-100] * (longest - len(t)) for t, n in chosen])
        logits = model(input_ids=tokens, attention_mask=mask).logits[:, :-1].float()
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100, reduction="sum") / scored
        loss.backward()
        total = float(loss.detach())
        torch.nn.utils.clip_grad_norm_(trained, CLIP)
        for group in optimizer.param_groups:
            group["lr"] = RATE * schedule(step, options.steps)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(round(total, 6))
        print(f"step {step}: {total:.5f}", file=sys.stderr, flush=True)
    head = {"made_by": "tools/golden_tune_curve.py", "torch": torch.__version__, "transformers": transformers.__version__, "peft": peft.__version__,
            "rank": RANK, "alpha": ALPHA, "learning_rate": RATE, "warmup_share": WARMUP, "clip": CLIP, "batch_texts": BATCH, "seed": SEED}
    rows = ",\n  ".join(json.dumps(t, separators=(",", ":")) for t in texts)
    pathlib.Path(options.out).write_text(f'{json.dumps(head)[:-1]},\n "losses": {json.dumps(losses)},\n "texts": [\n  {rows}]}}\n', encoding="ascii")


if __name__ == "__main__":
    main()
