#!/usr/bin/env python3
"""Golden file of training, tests/golden/tune.json: loss and derivatives of LoRA adapters on tiny models, by PyTorch's autograd over `transformers`
models, all in double: of plain training, of DPO and of KTO (the formulas of TRL's trainers, the base as reference), of
learning from a teacher's likeliest tokens.

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


def tiny_model(name):
    kind = tiny.KINDS[name]
    golden = json.loads((pathlib.Path(tiny.__file__).parent.parent / f"tests/golden/architectures/{name}.json").read_text())
    tiny.Numbers.seed = golden["seed"]
    model = tiny.model_of(name, kind, {}).double()
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    weights, leaves = adapted(model, kind)
    return model, weights, leaves


def losses_of(model, weights, text):
    """Negative log-probabilities of a text's tokens behind the first N_GIVEN."""
    tokens = torch.tensor([text])
    logits = torch.func.functional_call(model, weights, (tokens,)).logits[0]
    return torch.nn.functional.cross_entropy(logits[N_GIVEN - 1:-1], tokens[0, N_GIVEN:], reduction="none")


def derived(loss, leaves):
    loss.backward()
    rows = []
    for leaf, value in leaves.items():
        g = value.grad.reshape(-1)
        rows.append([leaf, float(g.norm())] + [float(g @ plain(f"{leaf}.{which}", g.numel())) for which in ("first", "second")])
    return {"loss": float(loss), "derivatives": rows}


def make(name):
    model, weights, leaves = tiny_model(name)
    head = {"name": name, "rank": RANK, "alpha": ALPHA, "n_given": N_GIVEN}
    return {**head, **derived(losses_of(model, weights, tiny.TOKENS).sum(), leaves)}


def preferred(model, weights, n):
    """A text that goes on as the adapted model likes it: greedily, for n tokens."""
    text = list(tiny.TOKENS[:N_GIVEN])
    with torch.no_grad():
        for _ in range(n):
            text.append(int(torch.func.functional_call(model, weights, (torch.tensor([text]),)).logits[0, -1].argmax()))
    return text


def log_probs(model, weights, texts):
    return torch.stack([-losses_of(model, weights, text).sum() for text in texts])


def make_dpo(name, beta, smoothing):
    """Two pairs; TRL's sigmoid loss with label smoothing."""
    model, weights, leaves = tiny_model(name)
    liked = preferred(model, weights, 12)
    texts = [tiny.TOKENS, tiny.TOKENS[:N_GIVEN] + tiny.TOKENS[N_GIVEN:][::-1][:8], liked, liked[:N_GIVEN + 3] + tiny.TOKENS[-6:]]
    base = log_probs(model, {}, texts).detach()
    ratios = log_probs(model, weights, texts) - base
    gaps = beta * (ratios[0::2] - ratios[1::2])
    sigmoid = torch.nn.functional.logsigmoid
    loss = (-sigmoid(gaps) * (1 - smoothing) - sigmoid(-gaps) * smoothing).mean()
    return {"name": name, "objective": "dpo", "beta": beta, "smoothing": smoothing, "rank": RANK, "alpha": ALPHA, "n_given": N_GIVEN, "texts": texts,
            "references": base.tolist(), **derived(loss, leaves)}


def make_kto(name, beta, weight):
    """Four texts, the last two unwanted and of another weight; the answers to other prompts are those of the text before."""
    model, weights, leaves = tiny_model(name)
    liked = preferred(model, weights, 20)
    texts = [liked, tiny.TOKENS, liked[:N_GIVEN] + liked[N_GIVEN + 1:], tiny.TOKENS[:N_GIVEN] + tiny.TOKENS[N_GIVEN:][::-1][:11]]
    starts = [[(t + k) % 200 for t in text[:N_GIVEN]] for k, text in enumerate(texts)]
    texts = [start + text[N_GIVEN:] for start, text in zip(starts, texts)]
    contrasts = [start + texts[k - 1][N_GIVEN:] for k, start in enumerate(starts)]
    base, other = log_probs(model, {}, texts).detach(), log_probs(model, {}, contrasts).detach()
    with torch.no_grad():
        point = (log_probs(model, weights, contrasts) - other).mean().clamp(min=0)
    ratios = log_probs(model, weights, texts) - base
    wanted, unwanted = 1 - torch.sigmoid(beta * (ratios[:2] - point)), 1 - torch.sigmoid(beta * (point - ratios[2:]))
    loss = torch.cat((wanted, weight * unwanted)).mean()
    return {"name": name, "objective": "kto", "beta": beta, "weight": weight, "rank": RANK, "alpha": ALPHA, "n_given": N_GIVEN, "texts": texts,
            "references": base.tolist(), "point": float(point), **derived(loss, leaves)}


def make_distilled(name, share, k=5, n=24):
    """A teacher's k likeliest tokens at each scored one: the base, sharpened; all others are one outcome."""
    model, weights, leaves = tiny_model(name)
    text = tiny.TOKENS[:n]
    sharp = (2 * torch.func.functional_call(model, {}, (torch.tensor([text]),)).logits[0, N_GIVEN - 1:-1]).softmax(-1)
    p, ids = sharp.topk(k)
    p = torch.tensor(tiny.np.float32(p.numpy()).astype("float64"))
    q = torch.func.functional_call(model, weights, (torch.tensor([text]),)).logits[0, N_GIVEN - 1:-1].softmax(-1)
    known = q.gather(1, ids)
    rest, own = 1 - p.sum(1), 1 - known.sum(1)
    divergence = (p * (p.log() - known.log())).sum(1) + rest * (rest.log() - own.log())
    loss = (1 - share) * losses_of(model, weights, text).sum() + share * divergence.sum()
    return {"name": name, "share": share, "k": k, "n": n, "rank": RANK, "alpha": ALPHA, "n_given": N_GIVEN, "ids": ids.flatten().tolist(),
            "probabilities": p.flatten().tolist(), **derived(loss, leaves)}


def listed(models):
    lines = []
    for m in models:
        rows = ",\n   ".join(json.dumps([r[0]] + [float(f"{x:.10g}") for x in r[1:]]) for r in m.pop("derivatives"))
        lines.append(f'  {json.dumps(m)[:-1]}, "derivatives": [\n   {rows}]}}')
    return ",\n".join(lines)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default=pathlib.Path(__file__).resolve().parent.parent / "tests/golden/tune.json")
    options = parser.parse_args()
    all_in_double()
    models = [make(name) for name in NAMES]
    preferences = [make_dpo("llama", 0.1, 0.0), make_dpo("gemma3", 0.2, 0.1), make_kto("llama", 0.1, 1.0), make_kto("qwen3", 0.05, 1.5)]
    distilled = [make_distilled("llama", 0.3), make_distilled("gemma3", 1.0)]
    for m in models + preferences + distilled:
        print(f"{m['name']}{' ' + m['objective'] if 'objective' in m else ''}: loss {m['loss']:.6f} {m.get('point', '')}", file=sys.stderr)
    head = {"made_by": "tools/golden_tune.py", "torch": torch.__version__, "transformers": transformers.__version__}
    text = f'{json.dumps(head)[:-1]}, "models": [\n{listed(models)}\n], "preferences": [\n{listed(preferences)}\n], "distilled": [\n{listed(distilled)}\n]}}\n'
    pathlib.Path(options.out).write_text(text, encoding="ascii")


if __name__ == "__main__":
    main()
