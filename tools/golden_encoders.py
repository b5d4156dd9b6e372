#!/usr/bin/env python3
"""Makes tests/golden/encoders.json: the embeddings that `transformers` computes for the tiny encoders of tests/support/tiny_model.c.

    pip install torch==2.15.0 transformers==5.24.0 numpy
    tools/golden_encoders.py > tests/golden/encoders.json

As in golden_architectures.py weights are made from tensor names on both sides. Stored: for texts of several lengths (one token, less than a window, across
pages of 64) the vector of length 1 that sentence-transformers would make of the states: pooled, projected where the model does, normalised.
"""
import json
import sys

import torch
import transformers
from golden_architectures import EMBD, FF, HEAD, HEADS, KV_HEADS, LAYERS, SEED, VOCAB, WINDOW, tensor

CONTEXT = 2048
LENGTHS = [1, 7, 48, 150]
TEXTS = [[(i * i * 7 + 13 * i + 5 + 31 * k) % 256 for i in range(n)] for k, n in enumerate(LENGTHS)]
COMMON = dict(hidden_size=EMBD, intermediate_size=FF, num_hidden_layers=LAYERS, num_attention_heads=HEADS, vocab_size=VOCAB,
              max_position_embeddings=CONTEXT, pad_token_id=0)
MEAN, CLS, LAST = 1, 2, 3


def norm(state, ours, theirs):
    state[theirs + ".weight"] = tensor(ours + ".weight", EMBD)
    state[theirs + ".bias"] = tensor(ours + ".bias", EMBD)


def linear(state, ours, theirs, rows, cols, bias):
    state[theirs + ".weight"] = tensor(ours + ".weight", rows, cols)
    if bias:
        state[theirs + ".bias"] = tensor(ours + ".bias", rows)


def embeddings(state, positions):
    state["embeddings.word_embeddings.weight"] = tensor("token_embd.weight", VOCAB, EMBD)
    state["embeddings.token_type_embeddings.weight"] = tensor("token_types.weight", 2, EMBD)
    if positions:
        state["embeddings.position_embeddings.weight"] = tensor("position_embd.weight", CONTEXT, EMBD)
    norm(state, "token_embd_norm", "embeddings.LayerNorm")


def bert():
    state = {}
    embeddings(state, True)
    for i in range(LAYERS):
        a, b = f"blk.{i}.", f"encoder.layer.{i}."
        for ours, theirs in (("attn_q", "attention.self.query"), ("attn_k", "attention.self.key"), ("attn_v", "attention.self.value"),
                             ("attn_output", "attention.output.dense")):
            linear(state, a + ours, b + theirs, EMBD, EMBD, True)
        linear(state, a + "ffn_up", b + "intermediate.dense", FF, EMBD, True)
        linear(state, a + "ffn_down", b + "output.dense", EMBD, FF, True)
        norm(state, a + "attn_output_norm", b + "attention.output.LayerNorm")
        norm(state, a + "layer_output_norm", b + "output.LayerNorm")
    config = transformers.BertConfig(**COMMON, hidden_act="gelu", layer_norm_eps=1e-5, type_vocab_size=2)
    return transformers.BertModel(config, add_pooling_layer=False), state


def nomic_bert():
    state = {}
    embeddings(state, False)
    for i in range(LAYERS):
        a, b = f"blk.{i}.", f"layers.{i}."
        for ours, theirs in (("attn_q", "q"), ("attn_k", "k"), ("attn_v", "v"), ("attn_output", "o")):
            linear(state, a + ours, b + f"self_attn.{theirs}_proj", EMBD, EMBD, False)
        for name in ("gate", "up"):
            linear(state, a + f"ffn_{name}", b + f"mlp.{name}_proj", FF, EMBD, False)
        linear(state, a + "ffn_down", b + "mlp.down_proj", EMBD, FF, False)
        norm(state, a + "attn_output_norm", b + "post_attention_layernorm")
        norm(state, a + "layer_output_norm", b + "post_mlp_layernorm")
    config = transformers.NomicBertConfig(**COMMON, layer_norm_eps=1e-5, type_vocab_size=2,
                                          rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    return transformers.NomicBertModel(config), state


def gemma_embedding():
    q, kv = HEADS * HEAD, KV_HEADS * HEAD
    # Gemma's modules add one to their norms; the file has it added.
    state = {"embed_tokens.weight": tensor("token_embd.weight", VOCAB, EMBD), "norm.weight": tensor("output_norm.weight", EMBD) - 1.0}
    for i in range(LAYERS):
        a, b = f"blk.{i}.", f"layers.{i}."
        for ours, theirs, rows, cols in (("attn_q", "self_attn.q_proj", q, EMBD), ("attn_k", "self_attn.k_proj", kv, EMBD),
                                         ("attn_v", "self_attn.v_proj", kv, EMBD), ("attn_output", "self_attn.o_proj", EMBD, q),
                                         ("ffn_gate", "mlp.gate_proj", FF, EMBD), ("ffn_up", "mlp.up_proj", FF, EMBD),
                                         ("ffn_down", "mlp.down_proj", EMBD, FF)):
            linear(state, a + ours, b + theirs, rows, cols, False)
        for ours, theirs, n in (("attn_norm", "input_layernorm", EMBD), ("ffn_norm", "pre_feedforward_layernorm", EMBD),
                                ("post_attention_norm", "post_attention_layernorm", EMBD),
                                ("post_ffw_norm", "post_feedforward_layernorm", EMBD), ("attn_q_norm", "self_attn.q_norm", HEAD),
                                ("attn_k_norm", "self_attn.k_norm", HEAD)):
            state[b + theirs + ".weight"] = tensor(a + ours + ".weight", n) - 1.0
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    config = transformers.Gemma3TextConfig(**COMMON, num_key_value_heads=KV_HEADS, head_dim=HEAD, query_pre_attn_scalar=HEAD, rms_norm_eps=1e-5,
                                           sliding_window=WINDOW, hidden_activation="gelu_pytorch_tanh", use_bidirectional_attention=True,
                                           rope_parameters={"full_attention": rope, "sliding_attention": {**rope, "rope_theta": 10000.0}})
    return transformers.Gemma3TextModel(config), state


CASES = [
    ("bert", bert, MEAN, False),
    ("bert", bert, CLS, False),
    ("bert", bert, LAST, False),
    ("nomic-bert", nomic_bert, MEAN, False),
    ("gemma-embedding", gemma_embedding, MEAN, False),
    ("gemma-embedding", gemma_embedding, MEAN, True),
]


def main():
    out = {"made_by": "tools/golden_encoders.py", "transformers": transformers.__version__, "layers": LAYERS, "seed": SEED, "texts": TEXTS, "encoders": []}
    for name, make, pooling, dense in CASES:
        model, state = make()
        model = model.float().eval()
        model.config._attn_implementation = "eager"
        missing, unexpected = model.load_state_dict(state, strict=False)
        missing = [m for m in missing if "rotary" not in m and "position_ids" not in m]
        if missing or unexpected:
            sys.exit(f"{name}: missing {missing}, unexpected {unexpected}")
        vectors = []
        for text in TEXTS:
            with torch.no_grad():
                states = model(torch.tensor([text])).last_hidden_state[0].double()
            v = {MEAN: states.mean(0), CLS: states[0], LAST: states[-1]}[pooling]
            if dense:
                v = tensor("dense_3.weight", EMBD, FF).double() @ (tensor("dense_2.weight", FF, EMBD).double() @ v)
            vectors.append([round(float(x), 6) for x in v / v.norm()])
        out["encoders"].append({"name": name, "pooling": pooling, "dense": dense, "vectors": vectors})
    print(json.dumps(out, indent=None, separators=(",", ":")).replace("[[", "[\n[").replace("],[", "],\n["))


if __name__ == "__main__":
    main()
