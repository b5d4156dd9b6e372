#!/usr/bin/env python3
"""Golden file of training, tests/golden/tune.json: loss and derivatives of LoRA adapters on tiny models, by PyTorch's autograd over `transformers`
models, all in double.

    pip install torch==2.15.0 transformers==5.24.0 numpy
    tools/golden_tune.py [--out FILE]

The models are those of tools/golden_architectures.py, and the adapter's numbers are hashes of names too: element i of "blk.0.attn_q.weight.lora_a". Of each
derivative three numbers are kept: its length, and its products with two vectors of hashes ("NAME.first", "NAME.second"), which a mistake anywhere in it
changes.
"""
import argparse
import json
import pathlib
import sys

import torch
import transformers

import golden_architectures as tiny

NAMES = ("llama", "llama-rope3", "qwen2", "qwen3", "qwen3-yarn", "gemma3")
RANK, ALPHA, N_GIVEN = 4, 6.0, 9
ROLES = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj",
         "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj"}


def all_in_double():
    """transformers computes norms, angles and softmax in float32 whatever the model's type is: here float32 means double."""
    torch.float32 = torch.float = torch.float64
    torch.Tensor.float = torch.Tensor.double


def plain(name, n):
    """Numbers in [-1, 1): the hash itself, not a weight's scale of it."""
    return (torch.from_numpy((tiny.bits(name, n) >> tiny.np.uint64(40)).astype("float64")) / 8388608.0 - 1.0)


def adapted(model, kind):
    """The model's weights with the adapter's product on top, and the adapter's leaves by name."""
    weights, leaves = dict(model.named_parameters()), {}
    for i in range(kind["layers"]):
        for role, module in ROLES.items():
            name, theirs = f"blk.{i}.{role}.weight", f"model.layers.{i}.{module}.weight"
            n_out, n_in = weights[theirs].shape
            a = (0.25 * plain(name + ".lora_a", RANK * n_in)).reshape(RANK, n_in).requires_grad_()
            b = (0.25 * plain(name + ".lora_b", n_out * RANK)).reshape(n_out, RANK).requires_grad_()
            leaves[name + ".lora_a"], leaves[name + ".lora_b"] = a, b
            turned = tiny.unpair(b) if kind.get("pairs") and role in ("attn_q", "attn_k") else b
            weights[theirs] = weights[theirs] + ALPHA / RANK * turned @ a
    return weights, leaves


def make(name):
    kind = tiny.KINDS[name]
    golden = json.loads((pathlib.Path(tiny.__file__).parent.parent / f"tests/golden/architectures/{name}.json").read_text())
    tiny.Numbers.seed = golden["seed"]
    model = tiny.model_of(name, kind, {}).double()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    weights, leaves = adapted(model, kind)
    tokens = torch.tensor([tiny.TOKENS])
    logits = torch.func.functional_call(model, weights, (tokens,)).logits[0]
    losses = torch.nn.functional.cross_entropy(logits[N_GIVEN - 1:-1], tokens[0, N_GIVEN:], reduction="none")
    losses.sum().backward()
    rows = []
    for leaf, value in leaves.items():
        g = value.grad.reshape(-1)
        rows.append([leaf, float(g.norm())] + [float(g @ plain(f"{leaf}.{which}", g.numel())) for which in ("first", "second")])
    return {"name": name, "rank": RANK, "alpha": ALPHA, "n_given": N_GIVEN, "loss": float(losses.sum()), "derivatives": rows}


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default=pathlib.Path(__file__).resolve().parent.parent / "tests/golden/tune.json")
    options = parser.parse_args()
    all_in_double()
    models = [make(name) for name in NAMES]
    for m in models:
        print(f"{m['name']}: loss {m['loss']:.6f}", file=sys.stderr)
    lines = []
    for m in models:
        rows = ",\n   ".join(json.dumps([r[0]] + [float(f"{x:.10g}") for x in r[1:]]) for r in m.pop("derivatives"))
        lines.append(f'  {json.dumps(m)[:-1]}, "derivatives": [\n   {rows}]}}')
    head = {"made_by": "tools/golden_tune.py", "torch": torch.__version__, "transformers": transformers.__version__}
    pathlib.Path(options.out).write_text(json.dumps(head)[:-1] + ', "models": [\n' + ",\n".join(lines) + "\n]}\n", encoding="ascii")


if __name__ == "__main__":
    main()
