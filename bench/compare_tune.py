#!/usr/bin/env python3
"""Speed of LoRA training in PyTorch with PEFT, to be set beside bench_tune: the same model in float32, shapes and ranks, a step's
texts as one batch padded to its longest, loss on the answer's tokens, AdamW.

    pip install torch transformers peft accelerate gguf numpy
    bench/compare_tune.py MODEL.gguf [--rank N] [--texts N] [--length N] [--spread N] [--answer N] [--threads N] [--steps N]

Tokens of the texts, padding not counted, a second by the clock and by the process's CPU time over threads; the first step is left out.
"""
import argparse
import pathlib
import resource
import time

import peft
import torch
import transformers


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model")
    for name, value in (("rank", 16), ("texts", 16), ("length", 64), ("spread", 0), ("answer", 38), ("threads", 2), ("steps", 8)):
        parser.add_argument(f"--{name}", type=int, default=value)
    o = parser.parse_args()
    torch.set_num_threads(o.threads)
    path = pathlib.Path(o.model).resolve()
    model = transformers.AutoModelForCausalLM.from_pretrained(str(path.parent), gguf_file=path.name, dtype=torch.float32)
    model = peft.get_peft_model(model, peft.LoraConfig(r=o.rank, lora_alpha=2 * o.rank, lora_dropout=0.0, task_type="CAUSAL_LM", target_modules=[
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]))
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3, weight_decay=0.0)
    generator = torch.Generator().manual_seed(1)
    begin = cpu = 0.0
    n = 0
    for step in range(o.steps):
        if step == 1:
            begin, cpu = time.monotonic(), time.process_time()
        lengths = [int(x) for x in torch.randint(o.length - o.spread, o.length + o.spread + 1, (o.texts,), generator=generator)]
        tokens = torch.randint(0, model.config.vocab_size, (o.texts, max(lengths)), generator=generator)
        labels, mask = torch.full_like(tokens, -100), torch.zeros_like(tokens)
        for i, length in enumerate(lengths):
            labels[i, length - o.answer: length] = tokens[i, length - o.answer: length]
            mask[i, :length] = 1
        n += sum(lengths) - o.texts if step else 0
        loss = model(input_ids=tokens, attention_mask=mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
    clock, cpu = time.monotonic() - begin, time.process_time() - cpu
    print(f"torch {torch.__version__}, peft {peft.__version__}, {o.threads} threads: {n / clock:.0f} tokens/s by the clock, "
          f"{n / (cpu / o.threads):.0f} by CPU time; {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB resident at most")


if __name__ == "__main__":
    main()
