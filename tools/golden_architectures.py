#!/usr/bin/env python3
"""Makes tests/golden/architectures.json: what `transformers` computes for the tiny models of tests/support/tiny_model.c.

    pip install torch==2.15.0 transformers==5.24.0 numpy
    tools/golden_architectures.py > tests/golden/architectures.json

Weights are not stored: both sides make the same numbers from tensor names. Here they go into a transformers model in float32, by the file's names; queries
and keys of architectures that turn neighbouring pairs are brought back to the halves that transformers turns. Stored: the log-probability of every
token of a fixed text after the first, and the five best tokens at its end.
"""
import json
import sys

import numpy as np
import torch
import transformers

EMBD, HEADS, KV_HEADS, HEAD, FF, VOCAB, WINDOW = 64, 4, 2, 16, 96, 288, 16
LAYERS, SEED, N_TOKENS = 7, 11, 48
TOKENS = [(i * i * 7 + 13 * i + 5) % 256 for i in range(N_TOKENS)]
MASK = (1 << 64) - 1


def elements(name, n):
    """Element i of a tensor, as element() in tiny_model.c."""
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = (h ^ byte) * 0x100000001B3 & MASK
    with np.errstate(over="ignore"):
        z = np.uint64(h) + (np.uint64(SEED + 1) + np.arange(n, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float32) / np.float32(8388608.0) - np.float32(1.0)


def tensor(name, *shape):
    mean = np.float32(1.0 if name.endswith("norm.weight") else 0.0)
    return torch.from_numpy((mean + np.float32(0.25) * elements(name, int(np.prod(shape)))).reshape(shape))


def unpair(w):
    """Rows of heads whose pairs (2i, 2i+1) turn together, in the order of halves (i, i + n/2)."""
    heads = w.reshape(-1, HEAD // 2, 2, *w.shape[1:])
    return heads.transpose(1, 2).reshape(w.shape)


COMMON = dict(hidden_size=EMBD, intermediate_size=FF, num_hidden_layers=LAYERS, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS,
              vocab_size=VOCAB, max_position_embeddings=2048, rms_norm_eps=1e-5, tie_word_embeddings=True, attn_implementation="eager",
              pad_token_id=0, bos_token_id=None, eos_token_id=None)
ROPE = dict(rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
KINDS = {
    "llama": dict(config=("LlamaConfig", {**ROPE, "head_dim": HEAD}), pairs=True),
    "qwen2": dict(config=("Qwen2Config", ROPE), bias=True),
    "qwen3": dict(config=("Qwen3Config", {**ROPE, "head_dim": HEAD}), head_norms=HEAD),
    "gemma2": dict(config=("Gemma2Config", {**ROPE, "head_dim": HEAD, "query_pre_attn_scalar": HEAD, "sliding_window": WINDOW,
                                            "hidden_activation": "gelu_pytorch_tanh"}), post="gemma", minus=True),
    "gemma3": dict(config=("Gemma3TextConfig", {"head_dim": HEAD, "query_pre_attn_scalar": HEAD, "sliding_window": WINDOW,
                                                "hidden_activation": "gelu_pytorch_tanh",
                                                "rope_parameters": {"full_attention": {"rope_type": "default", "rope_theta": 10000.0},
                                                                    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0}}}),
                   post="gemma", minus=True, head_norms=HEAD),
    "phi3": dict(config=("Phi3Config", {**ROPE, "sliding_window": WINDOW}), fused=True),
    "smollm3": dict(config=("SmolLM3Config", {**ROPE, "no_rope_layers": [int((i + 1) % 4 != 0) for i in range(LAYERS)]}), pairs=True),
    "granite": dict(config=("GraniteConfig", {**ROPE, "embedding_multiplier": 3.0, "residual_multiplier": 0.5, "attention_multiplier": 0.125,
                                              "logits_scaling": 2.0}), pairs=True),
    "olmo2": dict(config=("Olmo2Config", ROPE), post="olmo2", no_pre=True, head_norms="whole"),
}


def state_of(kind):
    q, kv = HEADS * HEAD, KV_HEADS * HEAD
    minus = 1.0 if kind.get("minus") else 0.0  # Gemma's modules add one to their norms; the file has it added
    turn = unpair if kind.get("pairs") else (lambda w: w)
    state = {"model.embed_tokens.weight": tensor("token_embd.weight", VOCAB, EMBD), "model.norm.weight": tensor("output_norm.weight", EMBD) - minus}
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    for i in range(LAYERS):
        a, b = f"blk.{i}.", f"model.layers.{i}."

        def row(name, n):
            return tensor(a + name, n) - minus

        def matrix(name, rows, cols):
            return tensor(a + name, rows, cols)

        if kind.get("fused"):
            state[b + "self_attn.qkv_proj.weight"] = matrix("attn_qkv.weight", q + 2 * kv, EMBD)
            state[b + "mlp.gate_up_proj.weight"] = matrix("ffn_up.weight", 2 * FF, EMBD)
        else:
            state[b + "self_attn.q_proj.weight"] = turn(matrix("attn_q.weight", q, EMBD))
            state[b + "self_attn.k_proj.weight"] = turn(matrix("attn_k.weight", kv, EMBD))
            state[b + "self_attn.v_proj.weight"] = matrix("attn_v.weight", kv, EMBD)
            state[b + "mlp.gate_proj.weight"] = matrix("ffn_gate.weight", FF, EMBD)
            state[b + "mlp.up_proj.weight"] = matrix("ffn_up.weight", FF, EMBD)
        state[b + "self_attn.o_proj.weight"] = matrix("attn_output.weight", EMBD, q)
        state[b + "mlp.down_proj.weight"] = matrix("ffn_down.weight", EMBD, FF)
        if kind.get("bias"):
            for name, n in (("q", q), ("k", kv), ("v", kv)):
                state[b + f"self_attn.{name}_proj.bias"] = tensor(a + f"attn_{name}.bias", n)
        norms = kind.get("head_norms")
        if norms:
            state[b + "self_attn.q_norm.weight"] = row("attn_q_norm.weight", q if norms == "whole" else HEAD)
            state[b + "self_attn.k_norm.weight"] = row("attn_k_norm.weight", kv if norms == "whole" else HEAD)
        post = kind.get("post")
        if not kind.get("no_pre"):
            state[b + "input_layernorm.weight"] = row("attn_norm.weight", EMBD)
            before = "pre_feedforward_layernorm" if post == "gemma" else "post_attention_layernorm"
            state[b + before + ".weight"] = row("ffn_norm.weight", EMBD)
        if post:
            state[b + "post_attention_layernorm.weight"] = row("post_attention_norm.weight", EMBD)
            state[b + "post_feedforward_layernorm.weight"] = row("post_ffw_norm.weight", EMBD)
    return state


def main():
    torch.manual_seed(0)
    out = {"made_by": "tools/golden_architectures.py", "transformers": transformers.__version__, "layers": LAYERS, "seed": SEED, "tokens": TOKENS,
           "architectures": []}
    for name, kind in KINDS.items():
        config_name, extra = kind["config"]
        config = getattr(transformers, config_name)(**{**COMMON, **extra})
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
        missing, unexpected = model.load_state_dict(state_of(kind), strict=False)
        missing = [m for m in missing if "rotary" not in m]
        if missing or unexpected:
            sys.exit(f"{name}: missing {missing}, unexpected {unexpected}")
        with torch.no_grad():
            logits = model(torch.tensor([TOKENS])).logits[0].double()
        logprobs = torch.log_softmax(logits, -1)
        best = torch.topk(logprobs[-1], 5)
        out["architectures"].append({
            "name": name,
            "logprobs": [round(float(logprobs[i, TOKENS[i + 1]]), 5) for i in range(N_TOKENS - 1)],
            "best": best.indices.tolist(),
            "best_logprobs": [round(float(x), 5) for x in best.values],
        })
        print(name, config_name, "entropy", round(float(-(logprobs.exp() * logprobs).sum(-1).mean()), 2), file=sys.stderr)
    print(json.dumps(out, indent=1))


if __name__ == "__main__":
    main()
