#!/usr/bin/env python3
"""Golden files of the architectures, tests/golden/architectures/NAME.json: what `transformers` computes on tiny models in float32, and what
llama.cpp's converter makes of them.

    pip install torch==2.15.0 transformers==5.24.0 numpy sentencepiece
    tools/golden_architectures.py [NAME...] --llama-cpp FOLDER [--library FOLDER] [--out FOLDER] [--keep FOLDER]

--llama-cpp is the source tree of llama.cpp (vendor/llama.cpp of the source package llama-cpp-python 0.3.36 was used), whose converter and gguf package
are imported; --library the folder of a build's libllama.so. --keep leaves the converted files there.

No weights are stored. Every element of a tensor of the GGUF file is a hash of the tensor's name and the element's number (element() in
tests/support/tiny_model.c makes the same). This script puts those numbers into a transformers model under its own names, saves it, has the converter
convert it, and checks that every tensor of the file is the hash of its name: so the names, shapes, permutations and keys in the golden file are the
converter's, and a mistake that our loader shared with this script would show. The test writes the same file from the golden file and the hashes.
Tensors that the converter computes (rope_freqs) are stored as they are.

Stored besides: the log-probability of every token of a fixed text after the first, the five best tokens at its end, and how far llama.cpp is from
transformers on the converted file (float32 keys and values; the greatest difference of any log-probability), where it was asked. A difference of more
than LLAMA_TOLERANCE, or than LLAMA_DIFFERS allows and explains, ends the script. Where llama.cpp leaves a part of a model out, transformers does so too
for this comparison ("peer" in KINDS).

NAME-mxfp4 models have their experts in MXFP4: the reference computes with the dequantized weights; llama.cpp and our engine quantize activations to
8 bits for such matrices, so they are further from it, and the golden file's tolerance says by how much.
"""
import argparse
import ctypes
import json
import logging
import pathlib
import sys
import tempfile

import numpy as np
import torch
import transformers

EMBD, HEADS, KV_HEADS, HEAD, FF, VOCAB, WINDOW, CONTEXT = 64, 4, 2, 16, 96, 288, 16, 2048
EXPERTS, EXPERTS_USED, EXPERT_FF = 8, 3, 64
FIRST_SEED, N_TOKENS = 11, 48
MIN_ROUTER_GAP = 8e-3  # of the last expert chosen and the first one not, in logits: rounding must not decide
TOKENS = [(i * i * 7 + 13 * i + 5) % 256 for i in range(N_TOKENS)]
MASK = (1 << 64) - 1
LLAMA_TOLERANCE = 1e-4
# name: greatest difference, reason
LLAMA_DIFFERS = {
    "gemma2": (5e-3, "llama.cpp looks GELU up in a table of F16"),
    "gemma3": (5e-3, "the same"),
    "gemma4": (2e-2, "the same; scores without a factor pass it on"),
    "gemma4-ple": (2e-2, "the same"),
    "gemma4-moe": (2e-2, "the same"),
    "gpt-oss-mxfp4": (1.0, "activations are quantized to 8 bits before products with MXFP4"),
}
# We keep keys and values in F16 and sum in another order.
TOLERANCE, TOLERANCE_MXFP4 = (2e-3, 8e-3), (4e-2, 2e-1)
# Gemma 4's scores have no factor, and on models of this size pass the rounding of keys on tenfold: the reference rounds them as well.
TOLERANCE_ROUNDED = (2e-4, 1e-3)


# ---- the numbers --------------------------------------------------------------------------------------------------------

class Numbers:
    seed = FIRST_SEED


def bits(name, n):
    """The 64-bit hash of element i of a tensor, as element_bits() in tiny_model.c."""
    h = 0xCBF29CE484222325
    for byte in name.encode():
        h = (h ^ byte) * 0x100000001B3 & MASK
    with np.errstate(over="ignore"):
        z = np.uint64(h) + (np.uint64(Numbers.seed + 1) + np.arange(n, dtype=np.uint64)) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        return z ^ (z >> np.uint64(31))


def hashed(name, *shape):
    """A tensor's numbers: norms and scales around 1, decay rates around -1/2, all others around 0."""
    around_one = "scale" in name or "norm" in name and name.endswith(".weight")
    mean = np.float32(1.0 if around_one else -0.5 if name.endswith("ssm_a") else 0.0)
    unit = (bits(name, int(np.prod(shape))) >> np.uint64(40)).astype(np.float32) / np.float32(8388608.0) - np.float32(1.0)
    return (mean + np.float32(0.25) * unit).reshape(shape)


def hashed_mxfp4(name, *shape):
    """Blocks of 17 bytes [..., n/32, 17]: an exponent of 2^-6 to 2^-3, then 32 codes of 4 bits."""
    blocks = int(np.prod(shape)) // 32
    raw = (bits(name, blocks * 17) >> np.uint64(56)).astype(np.uint8).reshape(blocks, 17)
    raw[:, 0] = 121 + raw[:, 0] % 4
    return raw.reshape(*shape[:-1], shape[-1] // 32, 17)


def tensor(name, *shape):
    return torch.from_numpy(hashed(name, *shape))


def unpair(w):
    """Rows of heads whose pairs (2i, 2i+1) turn together, in the order of halves (i, i + n/2)."""
    heads = w.reshape(-1, HEAD // 2, 2, *w.shape[1:])
    return heads.transpose(1, 2).reshape(w.shape)


# ---- the architectures --------------------------------------------------------------------------------------------------

COMMON = dict(hidden_size=EMBD, intermediate_size=FF, num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, vocab_size=VOCAB,
              max_position_embeddings=CONTEXT, rms_norm_eps=1e-5, tie_word_embeddings=True, pad_token_id=0, bos_token_id=None, eos_token_id=None)
THETA = 10000.0
ROPE = dict(rope_parameters={"rope_type": "default", "rope_theta": THETA})
LLAMA3 = dict(rope_parameters={"rope_type": "llama3", "rope_theta": THETA, "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                               "original_max_position_embeddings": 64})
# The ramp's ends lie at pairs 0.8 and 3.8 of 8; in the second by numbers of turns that only some of llama.cpp's architectures read.
YARN = {"rope_type": "yarn", "rope_theta": THETA, "factor": 4.0, "beta_fast": 32.0, "beta_slow": 1.0, "original_max_position_embeddings": 512}
YARN_SHORT = {**YARN, "beta_fast": 1.0, "beta_slow": 0.032, "original_max_position_embeddings": 16}
GEMMA = dict(head_dim=HEAD, query_pre_attn_scalar=HEAD, sliding_window=WINDOW, hidden_activation="gelu_pytorch_tanh")
MOE = dict(num_experts=EXPERTS, num_experts_per_tok=EXPERTS_USED, moe_intermediate_size=EXPERT_FF, norm_topk_prob=True)


def gpt_oss(experts, used, **more):
    config = dict(head_dim=HEAD, sliding_window=WINDOW, num_local_experts=experts, num_experts_per_tok=used, intermediate_size=EXPERT_FF,
                  tie_word_embeddings=False, rope_parameters={**YARN, "truncate": False})
    # llama.cpp rounds the ends of YaRN's ramp, as for all models.
    more["peer"] = {"rope_parameters": YARN}
    return dict(layers=3, bias=True, o_bias=True, untied=True, experts="gpt-oss", sinks=True, ffn_norm="post_attention_norm", config=("GptOssConfig", config), **more)


KINDS = {
    "llama": dict(layers=3, config=("LlamaConfig", {**ROPE, "head_dim": HEAD}), pairs=True),
    "llama-rope3": dict(layers=3, config=("LlamaConfig", {**LLAMA3, "head_dim": HEAD, "tie_word_embeddings": False}), pairs=True, untied=True),
    "mistral3": dict(layers=3, pairs=True, untied=True,
                     config=("Ministral3Config", dict(head_dim=HEAD, tie_word_embeddings=False, rope_parameters={
                         **YARN_SHORT, "mscale": 1.0, "mscale_all_dim": 1.0, "llama_4_scaling_beta": 0.3,
                         "max_position_embeddings": CONTEXT}))),
    "qwen2": dict(layers=3, config=("Qwen2Config", ROPE), bias=True),
    "qwen3": dict(layers=3, config=("Qwen3Config", {**ROPE, "head_dim": HEAD}), head_norms=HEAD),
    "qwen3-yarn": dict(layers=3, config=("Qwen3Config", dict(rope_parameters=YARN, head_dim=HEAD)), head_norms=HEAD),
    "qwen3moe": dict(layers=3, config=("Qwen3MoeConfig", {**ROPE, **MOE, "head_dim": HEAD}), head_norms=HEAD, experts="qwen3"),
    "gemma2": dict(layers=4, config=("Gemma2Config", {**ROPE, **GEMMA}), post="gemma", minus=True),
    "gemma3": dict(layers=7, post="gemma", minus=True, head_norms=HEAD,
                   config=("Gemma3TextConfig", {**GEMMA, "rope_parameters": {
                       "full_attention": {"rope_type": "linear", "rope_theta": 100000.0, "factor": 8.0},
                       "sliding_attention": {"rope_type": "default", "rope_theta": THETA}}})),
    "phi3": dict(layers=3, config=("Phi3Config", {**ROPE, "sliding_window": WINDOW}), fused=True,
                 peer={"sliding_window": None}),  # llama.cpp has no windows for it
    "smollm3": dict(layers=5, config=("SmolLM3Config", ROPE), pairs=True),
    "granite": dict(layers=3, pairs=True, config=("GraniteConfig", {**ROPE, "embedding_multiplier": 3.0, "residual_multiplier": 0.5,
                                                                    "attention_multiplier": 0.125, "logits_scaling": 2.0})),
    "olmo2": dict(layers=3, config=("Olmo2Config", {**ROPE, "tie_word_embeddings": False}), untied=True, post="olmo2", no_pre=True, head_norms="whole"),
    "gpt-oss": gpt_oss(EXPERTS, EXPERTS_USED),
    # Every expert is used: rounding must not turn a near-tie of the router into another expert.
    "gpt-oss-mxfp4": gpt_oss(4, 4, mxfp4=True),
    "lfm2": dict(layers=5, conv=3, head_norms=HEAD, names="lfm2",
                 config=("Lfm2Config", {**ROPE, "norm_eps": 1e-5, "block_auto_adjust_ff_dim": False, "conv_L_cache": 3,
                                        "layer_types": ["conv", "conv", "full_attention", "conv", "full_attention"]})),
}
DELTA = dict(n_k=2, n_v=4, head=16, conv=4)
DELTA_CONFIG = dict(head_dim=HEAD, linear_conv_kernel_dim=DELTA["conv"], linear_key_head_dim=DELTA["head"], linear_value_head_dim=DELTA["head"],
                    linear_num_key_heads=DELTA["n_k"], linear_num_value_heads=DELTA["n_v"], rms_norm_eps=1e-6,
                    layer_types=["linear_attention", "full_attention", "linear_attention", "linear_attention"])
KINDS["qwen35"] = dict(layers=4, delta=True, minus=True, head_norms=HEAD, q_gate=True, ffn_norm="post_attention_norm", config=("Qwen3_5TextConfig", {
    **DELTA_CONFIG, "rope_parameters": {"rope_type": "default", "rope_theta": THETA, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1],
                                        "mrope_interleaved": True}}))
SHARED_FF = 32
HYBRID_MOE = {**MOE, "shared_expert_intermediate_size": SHARED_FF}
QWEN35 = KINDS["qwen35"]
KINDS["qwen35moe"] = {**QWEN35, "experts": "qwen3", "shared": True,
                      "config": ("Qwen3_5MoeTextConfig", {**QWEN35["config"][1], **HYBRID_MOE})}
KINDS["qwen3next"] = {**KINDS["qwen35moe"], "delta_heads": "grouped", "config": ("Qwen3NextConfig", {
    **DELTA_CONFIG, **HYBRID_MOE, "decoder_sparse_step": 1, "rope_parameters": {"rope_type": "default", "rope_theta": THETA, "partial_rotary_factor": 0.5}})}
KINDS["qwen35-mtp"] = {**KINDS["qwen35"], "mtp": True}
# Full layers have larger heads than sliding ones, and fewer of them for keys, which are values as well (31B). The last layers of the models with
# embeddings by layer (E2B, E4B) read what earlier layers keep, and are twice as wide. The mixture (26B-A4B) has both branches in every layer.
FULL_HEAD, PER_LAYER = 32, 32
GEMMA4 = dict(head_dim=HEAD, global_head_dim=FULL_HEAD, sliding_window=WINDOW, hidden_size_per_layer_input=0, rms_norm_eps=1e-5,
              hidden_activation="gelu_pytorch_tanh", final_logit_softcapping=4.0, vocab_size_per_layer_input=VOCAB, rope_parameters={
                  "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 100000.0},
                  "sliding_attention": {"rope_type": "default", "rope_theta": THETA}})
SLIDING_FULL = ["sliding_attention", "full_attention"]
ONE_FULL = dict(attention_k_eq_v=True, num_global_key_value_heads=1)
KINDS["gemma4"] = dict(layers=4, gemma4=True, post="gemma", config=("Gemma4TextConfig", {**GEMMA4, **ONE_FULL, "layer_types": SLIDING_FULL * 2}))
KINDS["gemma4-ple"] = dict(layers=6, gemma4=True, post="gemma", config=("Gemma4TextConfig", {
    **GEMMA4, "layer_types": SLIDING_FULL * 3, "num_kv_shared_layers": 2, "use_double_wide_mlp": True, "hidden_size_per_layer_input": PER_LAYER}))
KINDS["gemma4-moe"] = dict(layers=4, gemma4=True, post="gemma", config=("Gemma4TextConfig", {
    **GEMMA4, **ONE_FULL, "layer_types": SLIDING_FULL * 2, "enable_moe_block": True, "num_experts": EXPERTS, "top_k_experts": EXPERTS_USED,
    "moe_intermediate_size": EXPERT_FF}))
# transformers' names where they are not Llama's.
NAMES = {"lfm2": {"model.norm": "model.embedding_norm", "input_layernorm": "operator_norm", "post_attention_layernorm": "ffn_norm",
                  "self_attn.o_proj": "self_attn.out_proj", "self_attn.q_norm": "self_attn.q_layernorm",
                  "self_attn.k_norm": "self_attn.k_layernorm", "mlp.gate_proj": "feed_forward.w1", "mlp.up_proj": "feed_forward.w3",
                  "mlp.down_proj": "feed_forward.w2"}}


def attention_state(kind, a, b):
    q, kv = HEADS * HEAD, KV_HEADS * HEAD
    turn = unpair if kind.get("pairs") else (lambda w: w)
    state = {b + "self_attn.o_proj.weight": tensor(a + "attn_output.weight", EMBD, q)}
    if kind.get("fused"):
        state[b + "self_attn.qkv_proj.weight"] = tensor(a + "attn_qkv.weight", q + 2 * kv, EMBD)
    else:
        state[b + "self_attn.q_proj.weight"] = turn(tensor(a + "attn_q.weight", 2 * q if kind.get("q_gate") else q, EMBD))
        state[b + "self_attn.k_proj.weight"] = turn(tensor(a + "attn_k.weight", kv, EMBD))
        state[b + "self_attn.v_proj.weight"] = tensor(a + "attn_v.weight", kv, EMBD)
    if kind.get("bias"):
        for name, n in (("q", q), ("k", kv), ("v", kv)):
            state[b + f"self_attn.{name}_proj.bias"] = tensor(a + f"attn_{name}.bias", n)
    if kind.get("o_bias"):
        state[b + "self_attn.o_proj.bias"] = tensor(a + "attn_output.bias", EMBD)
    if kind.get("sinks"):
        state[b + "self_attn.sinks"] = tensor(a + "attn_sinks.weight", HEADS)
    norms, minus = kind.get("head_norms"), 1.0 if kind.get("minus") else 0.0
    if norms:
        state[b + "self_attn.q_norm.weight"] = tensor(a + "attn_q_norm.weight", q if norms == "whole" else HEAD) - minus
        state[b + "self_attn.k_norm.weight"] = tensor(a + "attn_k_norm.weight", kv if norms == "whole" else HEAD) - minus
    return state


def expert_matrix(kind, name, *shape):
    if not kind.get("mxfp4"):
        return tensor(name, *shape)
    import gguf
    raw = hashed_mxfp4(name, *shape)
    return torch.from_numpy(gguf.quants.dequantize(raw.reshape(-1, 17), gguf.GGMLQuantizationType.MXFP4).reshape(shape))


def feed_forward_state(kind, config, a, b):
    experts = kind.get("experts")
    if not experts and kind.get("fused"):
        return {b + "mlp.gate_up_proj.weight": tensor(a + "ffn_up.weight", 2 * FF, EMBD), b + "mlp.down_proj.weight": tensor(a + "ffn_down.weight", EMBD, FF)}
    if not experts:
        return {b + "mlp.gate_proj.weight": tensor(a + "ffn_gate.weight", FF, EMBD), b + "mlp.up_proj.weight": tensor(a + "ffn_up.weight", FF, EMBD),
                b + "mlp.down_proj.weight": tensor(a + "ffn_down.weight", EMBD, FF)}
    n = config.num_experts
    gate = expert_matrix(kind, a + "ffn_gate_exps.weight", n, EXPERT_FF, EMBD)
    up = expert_matrix(kind, a + "ffn_up_exps.weight", n, EXPERT_FF, EMBD)
    down = expert_matrix(kind, a + "ffn_down_exps.weight", n, EMBD, EXPERT_FF)
    router = tensor(a + "ffn_gate_inp.weight", n, EMBD)
    if experts == "qwen3":
        state = {b + "mlp.gate.weight": router, b + "mlp.experts.gate_up_proj": torch.cat((gate, up), 1), b + "mlp.experts.down_proj": down}
        if kind.get("shared"):
            state[b + "mlp.shared_expert_gate.weight"] = tensor(a + "ffn_gate_inp_shexp.weight", 1, EMBD)
            state[b + "mlp.shared_expert.gate_proj.weight"] = tensor(a + "ffn_gate_shexp.weight", SHARED_FF, EMBD)
            state[b + "mlp.shared_expert.up_proj.weight"] = tensor(a + "ffn_up_shexp.weight", SHARED_FF, EMBD)
            state[b + "mlp.shared_expert.down_proj.weight"] = tensor(a + "ffn_down_shexp.weight", EMBD, SHARED_FF)
        return state
    gate_bias, up_bias = tensor(a + "ffn_gate_exps.bias", n, EXPERT_FF), tensor(a + "ffn_up_exps.bias", n, EXPERT_FF)
    return {b + "mlp.router.weight": router, b + "mlp.router.bias": tensor(a + "ffn_gate_inp.bias", n),
            b + "mlp.experts.gate_up_proj": torch.stack((gate, up), 2).reshape(n, 2 * EXPERT_FF, EMBD).transpose(1, 2).contiguous(),
            b + "mlp.experts.gate_up_proj_bias": torch.stack((gate_bias, up_bias), 2).reshape(n, 2 * EXPERT_FF),
            b + "mlp.experts.down_proj": down.transpose(1, 2).contiguous(),
            b + "mlp.experts.down_proj_bias": tensor(a + "ffn_down_exps.bias", n, EMBD)}


def norm_state(kind, a, b):
    post, minus, state = kind.get("post"), 1.0 if kind.get("minus") else 0.0, {}
    if not kind.get("no_pre"):
        state[b + "input_layernorm.weight"] = tensor(a + "attn_norm.weight", EMBD) - minus
        before = "pre_feedforward_layernorm" if post == "gemma" else "post_attention_layernorm"
        name = kind.get("ffn_norm", "ffn_norm")
        state[b + before + ".weight"] = tensor(a + name + ".weight", EMBD) - minus
    if post:
        state[b + "post_attention_layernorm.weight"] = tensor(a + "post_attention_norm.weight", EMBD) - minus
        state[b + "post_feedforward_layernorm.weight"] = tensor(a + "post_ffw_norm.weight", EMBD) - minus
    return state


def conv_state(kind, a, b):
    return {b + "conv.in_proj.weight": tensor(a + "shortconv.in_proj.weight", 3 * EMBD, EMBD),
            b + "conv.out_proj.weight": tensor(a + "shortconv.out_proj.weight", EMBD, EMBD),
            b + "conv.conv.weight": tensor(a + "shortconv.conv.weight", EMBD, kind["conv"]).reshape(EMBD, 1, kind["conv"])}


def untile(w, dim, head):
    """Value heads as transformers groups them by their key head; the file has the first of every group, then the second, ..."""
    shape, n = w.shape, DELTA["n_v"] // DELTA["n_k"]
    return w.reshape(*shape[:dim], n, DELTA["n_k"], head, *shape[dim + 1:]).transpose(dim, dim + 1).reshape(shape)


def grouped_delta_state(a, b):
    """Qwen 3 Next: value heads stand by key head, and the projections have each key head's parts together."""
    d, n_k, n_v = DELTA["head"], DELTA["n_k"], DELTA["n_v"]
    keys, values = d * n_k, d * n_v
    q, k, v = tensor(a + "attn_qkv.weight", 2 * keys + values, EMBD).split((keys, keys, values))
    parts = [x.reshape(n_k, -1, EMBD) for x in (q, k, v, tensor(a + "attn_gate.weight", values, EMBD))]
    b += "linear_attn."
    return {b + "in_proj_qkvz.weight": torch.cat(parts, 1).reshape(-1, EMBD), b + "in_proj_ba.weight": tensor(a + "ssm_ba.weight", 2 * n_v, EMBD),
            b + "conv1d.weight": tensor(a + "ssm_conv1d.weight", 2 * keys + values, DELTA["conv"]).unsqueeze(1),
            b + "dt_bias": tensor(a + "ssm_dt.bias", n_v), b + "A_log": torch.log(-tensor(a + "ssm_a", n_v)),
            b + "norm.weight": tensor(a + "ssm_norm.weight", d), b + "out_proj.weight": tensor(a + "ssm_out.weight", EMBD, values)}


def delta_state(kind, a, b):
    if kind.get("delta_heads") == "grouped":
        return grouped_delta_state(a, b)
    d, n_v = DELTA["head"], DELTA["n_v"]
    keys, values = d * DELTA["n_k"], d * n_v
    qkv, conv = tensor(a + "attn_qkv.weight", 2 * keys + values, EMBD), tensor(a + "ssm_conv1d.weight", 2 * keys + values, DELTA["conv"])
    b += "linear_attn."
    return {b + "in_proj_qkv.weight": torch.cat((qkv[:2 * keys], untile(qkv[2 * keys:], 0, d))),
            b + "in_proj_z.weight": untile(tensor(a + "attn_gate.weight", values, EMBD), 0, d),
            b + "in_proj_b.weight": untile(tensor(a + "ssm_beta.weight", n_v, EMBD), 0, 1),
            b + "in_proj_a.weight": untile(tensor(a + "ssm_alpha.weight", n_v, EMBD), 0, 1),
            b + "conv1d.weight": torch.cat((conv[:2 * keys], untile(conv[2 * keys:], 0, d))).unsqueeze(1),
            b + "dt_bias": untile(tensor(a + "ssm_dt.bias", n_v), 0, 1), b + "A_log": torch.log(-untile(tensor(a + "ssm_a", n_v), 0, 1)),
            b + "norm.weight": tensor(a + "ssm_norm.weight", d), b + "out_proj.weight": untile(tensor(a + "ssm_out.weight", EMBD, values), 1, d)}


def gemma4_state(config, i, a, b):
    """A layer of Gemma 4 but its norms around the branches; its modules add nothing to norms."""
    one, mode = config.per_layer_config[i], config.kv_sharing_modes[i]
    full, reuses, per_layer = config.layer_types[i] == "full_attention", mode == "reuse", config.hidden_size_per_layer_input
    head, kv = one.head_dim, one.num_key_value_heads * one.head_dim
    ff = FF * (2 if reuses and config.use_double_wide_mlp else 1)
    at = b + "self_attn."
    state = {at + "q_proj.weight": tensor(a + "attn_q.weight", HEADS * head, EMBD), at + "o_proj.weight": tensor(a + "attn_output.weight", EMBD, HEADS * head),
             at + "q_norm.weight": tensor(a + "attn_q_norm.weight", head), b + "layer_scalar": tensor(a + "layer_output_scale.weight", 1),
             b + "mlp.gate_proj.weight": tensor(a + "ffn_gate.weight", ff, EMBD), b + "mlp.up_proj.weight": tensor(a + "ffn_up.weight", ff, EMBD),
             b + "mlp.down_proj.weight": tensor(a + "ffn_down.weight", EMBD, ff)}
    if not reuses:
        state[at + "k_proj.weight"] = tensor(a + "attn_k.weight", kv, EMBD)
        state[at + "k_norm.weight"] = tensor(a + "attn_k_norm.weight", head)
        if not (full and config.attention_k_eq_v):
            state[at + "v_proj.weight"] = tensor(a + "attn_v.weight", kv, EMBD)
    if per_layer:
        state[b + "per_layer_input_gate.weight"] = tensor(a + "inp_gate.weight", per_layer, EMBD)
        state[b + "per_layer_projection.weight"] = tensor(a + "proj.weight", EMBD, per_layer)
        state[b + "post_per_layer_input_norm.weight"] = tensor(a + "post_norm.weight", EMBD)
    if config.enable_moe_block:
        n = config.num_experts
        state[b + "router.proj.weight"] = tensor(a + "ffn_gate_inp.weight", n, EMBD)
        state[b + "router.scale"] = tensor(a + "ffn_gate_inp.scale", EMBD)
        state[b + "router.per_expert_scale"] = tensor(a + "ffn_down_exps.scale", n)
        state[b + "experts.gate_up_proj"] = tensor(a + "ffn_gate_up_exps.weight", n, 2 * EXPERT_FF, EMBD)
        state[b + "experts.down_proj"] = tensor(a + "ffn_down_exps.weight", n, EMBD, EXPERT_FF)
        for theirs, ours in (("post_feedforward_layernorm_1", "post_ffw_norm_1"), ("post_feedforward_layernorm_2", "post_ffw_norm_2"),
                             ("pre_feedforward_layernorm_2", "pre_ffw_norm_2")):
            state[b + theirs + ".weight"] = tensor(a + ours + ".weight", EMBD)
    return state


def gemma4_ends(config):
    n, layers = config.hidden_size_per_layer_input, config.num_hidden_layers
    if not n:
        return {}
    return {"model.embed_tokens_per_layer.weight": tensor("per_layer_token_embd.weight", VOCAB, layers * n),
            "model.per_layer_model_projection.weight": tensor("per_layer_model_proj.weight", layers * n, EMBD),
            "model.per_layer_projection_norm.weight": tensor("per_layer_proj_norm.weight", n)}


def state_of(kind, config):
    minus = 1.0 if kind.get("minus") else 0.0  # Gemma's modules add one to their norms; the file has it added
    norm = "token_embd_norm.weight" if kind.get("conv") else "output_norm.weight"
    state = {"model.embed_tokens.weight": tensor("token_embd.weight", VOCAB, EMBD), "model.norm.weight": tensor(norm, EMBD) - minus}
    state["lm_head.weight"] = tensor("output.weight", VOCAB, EMBD) if kind.get("untied") else state["model.embed_tokens.weight"]
    if kind.get("gemma4"):
        state.update(gemma4_ends(config))
    for i in range(kind["layers"]):
        a, b = f"blk.{i}.", f"model.layers.{i}."
        if kind.get("gemma4"):
            state.update(gemma4_state(config, i, a, b))
            state.update(norm_state(kind, a, b))
            continue
        of = {"conv": conv_state, "linear_attention": delta_state}.get((getattr(config, "layer_types", None) or [None] * (i + 1))[i], attention_state)
        state.update(of(kind, a, b))
        state.update(feed_forward_state(kind, config, a, b))
        state.update(norm_state(kind, a, b))
    for old, new in NAMES.get(kind.get("names"), {}).items():
        state = {k.replace(old, new): v for k, v in state.items()}
    return state


def model_of(name, kind, more):
    config_name, extra = kind["config"]
    common = {k: v for k, v in COMMON.items() if not (kind.get("conv") and k == "rms_norm_eps")}
    config = getattr(transformers, config_name)(**{**common, "num_hidden_layers": kind["layers"], **extra, **more})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float32, attn_implementation="eager").eval()
    missing, unexpected = model.load_state_dict(state_of(kind, config), strict=False)
    missing = [m for m in missing if "rotary" not in m]
    if missing or unexpected:
        sys.exit(f"{name}: missing {missing}, unexpected {unexpected}")
    return model


# ---- the converter ------------------------------------------------------------------------------------------------------

def vocabulary():
    """The one of tiny_model.c: bytes as GPT-2 writes them, a few merges, ChatML's control tokens, unused ones."""
    printable = [b for b in range(256) if 33 <= b <= 126 or (b >= 161 and b != 173)]
    texts = [chr(b) if b in printable else chr(256 + sum(c not in printable for c in range(b))) for b in range(256)]
    merges = ["e r", "i n", "t h", "th e", "o n", "a n", "e s", "o r"]
    tokens = texts + [m.replace(" ", "") for m in merges] + ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    types = [1] * (256 + len(merges)) + [3] * 3
    tokens += [f"<unused{i}>" for i in range(len(tokens), VOCAB)]
    return tokens, types + [5] * (VOCAB - len(types)), merges


def convert(model, folder, path):
    import gguf
    from conversion import ModelBase, ModelType, get_model_architecture, get_model_class
    logging.disable(logging.INFO)
    model.save_pretrained(folder)
    vocab = {f"token {i}": i for i in range(VOCAB)}  # counted by the converter of Gemma 3
    (folder / "tokenizer.json").write_text(json.dumps({"added_tokens": [], "model": {"vocab": vocab}}))
    hparams = ModelBase.load_hparams(folder, False)
    of = get_model_class(get_model_architecture(hparams, ModelType.TEXT))
    of.no_mtp = True
    converter = of(folder, gguf.LlamaFileType.ALL_F32, path)
    writes = getattr(converter, "impl", converter)

    def set_vocab():
        tokens, types, merges = vocabulary()
        writes.gguf_writer.add_tokenizer_model("gpt2")
        writes.gguf_writer.add_tokenizer_pre("gpt-2")
        writes.gguf_writer.add_token_list(tokens)
        writes.gguf_writer.add_token_types(types)
        writes.gguf_writer.add_token_merges(merges)
        writes.gguf_writer.add_bos_token_id(265)
        writes.gguf_writer.add_eos_token_id(266)

    converter.set_vocab = writes.set_vocab = set_vocab
    converter.write()


def to_mxfp4(path, out):
    """The converted file with the experts' matrices in MXFP4, as gpt-oss ships."""
    import gguf
    reader = gguf.GGUFReader(path)
    arch = reader.fields["general.architecture"].contents()
    writer = gguf.GGUFWriter(out, arch)
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            writer.add_key_value(field.name, field.contents(), field.types[0], sub_type=field.types[-1] if len(field.types) > 1 else None)
    for t in reader.tensors:
        if "_exps.weight" in t.name:
            shape = [int(n) for n in reversed(t.shape)]
            raw = hashed_mxfp4(t.name, *shape)
            writer.add_tensor(t.name, raw.reshape(*shape[:-1], -1), raw_dtype=gguf.GGMLQuantizationType.MXFP4)
        else:
            writer.add_tensor(t.name, t.data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def with_mtp(path, out):
    """The converted file of Qwen 3.5 as checkpoints with a layer for multi-token prediction give it: one layer more, which no logit depends on."""
    import gguf
    reader = gguf.GGUFReader(path)
    arch, n = reader.fields["general.architecture"].contents(), KINDS["qwen35"]["layers"]
    writer = gguf.GGUFWriter(out, arch)
    changed = {f"{arch}.block_count": n + 1, f"{arch}.attention.recurrent_layers": reader.fields[f"{arch}.attention.recurrent_layers"].contents() + [False]}
    for field in reader.fields.values():
        if not field.name.startswith("GGUF.") and field.name != "general.architecture":
            writer.add_key_value(field.name, changed.get(field.name, field.contents()), field.types[0],
                                 sub_type=field.types[-1] if len(field.types) > 1 else None)
    writer.add_uint32(f"{arch}.nextn_predict_layers", 1)
    for t in reader.tensors:
        writer.add_tensor(t.name, t.data)
        if t.name.startswith("blk.1."):  # an attention layer
            name = t.name.replace("blk.1.", f"blk.{n}.")
            writer.add_tensor(name, hashed(name, *t.data.shape))
    for name, *shape in (("eh_proj", EMBD, 2 * EMBD), ("enorm", EMBD), ("hnorm", EMBD), ("shared_head_norm", EMBD)):
        name = f"blk.{n}.nextn.{name}.weight"
        writer.add_tensor(name, hashed(name, *shape))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def keys_of(reader):
    """What the file says about the model: [key, kind, value]."""
    names = {4: "u32", 5: "i32", 6: "f32", 7: "bool", 8: "string", 10: "u64"}
    out = []
    for field in reader.fields.values():
        if field.name.startswith(("GGUF.", "tokenizer.")) or (field.name.startswith("general.") and field.name != "general.architecture"):
            continue
        value, kinds = field.contents(), [int(t) for t in field.types]
        kind = names[kinds[-1]] + ("[]" if kinds[0] == 9 else "")
        out.append([field.name, kind, [v for v in value] if kind.endswith("[]") else value])
    return out


def tensors_of(name, reader):
    """[name, type, dims as GGUF has them] or, of tensors that the converter computed, the values as well."""
    out = []
    for t in reader.tensors:
        shape, row = [int(n) for n in reversed(t.shape)], [t.name, t.tensor_type.name, [int(n) for n in t.shape]]
        if t.tensor_type.name == "MXFP4":
            same = np.array_equal(t.data.reshape(-1), hashed_mxfp4(t.name, *shape).reshape(-1))
        else:
            same = np.allclose(t.data.reshape(-1), hashed(t.name, *shape).reshape(-1), rtol=0, atol=2e-7)  # Gemma: 1 taken and added
        if not same and t.data.size <= 64 and t.name == "rope_freqs.weight":
            row.append([float(x) for x in t.data.reshape(-1)])
        elif not same:
            sys.exit(f"{name}: the converter's '{t.name}' is not what its name says")
        out.append(row)
    return out


# ---- llama.cpp ----------------------------------------------------------------------------------------------------------

def llama_logits(library, path, adapter=None):
    """float32 logits of TOKENS by llama.cpp, with a GGUF adapter where one is given, keys and values in float32; a process of its own is not needed, files are tiny."""
    import os
    os.environ["LLAMA_CPP_LIB_PATH"] = str(library)
    import llama_cpp as api
    llama_logits.quiet = api.llama_log_callback(lambda level, text, user: None)
    api.llama_log_set(llama_logits.quiet, ctypes.c_void_p(0))
    api.llama_backend_init()
    model = api.llama_model_load_from_file(str(path).encode(), api.llama_model_default_params())
    if not model:
        return None
    params = api.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = 256
    params.n_threads = params.n_threads_batch = 1
    params.type_k = params.type_v = api.GGML_TYPE_F32
    params.flash_attn_type = api.LLAMA_FLASH_ATTN_TYPE_DISABLED
    context = api.llama_init_from_model(model, params)
    if adapter:
        lora = api.llama_adapter_lora_init(model, str(adapter).encode())
        if not lora or api.llama_set_adapters_lora(context, (api.llama_adapter_lora_p_ctypes * 1)(lora), 1, (ctypes.c_float * 1)(1.0)):
            sys.exit(f"{adapter}: llama.cpp does not take it")
    batch = api.llama_batch_init(N_TOKENS, 0, 1)
    for i, token in enumerate(TOKENS):
        batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0], batch.logits[i] = token, i, 1, 0, True
    batch.n_tokens = N_TOKENS
    if api.llama_decode(context, batch):
        sys.exit(f"{path}: llama_decode failed")
    out = np.ctypeslib.as_array(api.llama_get_logits(context), (N_TOKENS * VOCAB,)).reshape(N_TOKENS, VOCAB).copy()
    api.llama_batch_free(batch)
    api.llama_free(context)
    api.llama_model_free(model)
    return torch.from_numpy(out)


# ---- all together -------------------------------------------------------------------------------------------------------

def dump(path, golden):
    """One member a line, and one key or tensor a line."""
    rows = []
    for key, value in golden.items():
        if key in ("keys", "tensors"):
            value = "[\n  " + ",\n  ".join(json.dumps(row) for row in value) + "\n ]"
        else:
            value = json.dumps(value)
        rows.append(f' "{key}": {value}')
    path.write_text("{\n" + ",\n".join(rows) + "\n}\n", encoding="ascii")


def logprobs_of(model):
    with torch.no_grad():
        return torch.log_softmax(model(torch.tensor([TOKENS])).logits[0].double(), -1)


def logprobs_rounded(model):
    """With keys and values in F16, as we keep them."""
    from transformers.models.gemma4 import modeling_gemma4
    exact = modeling_gemma4.eager_attention_forward
    modeling_gemma4.eager_attention_forward = lambda module, q, k, v, *more, **named: exact(module, q, k.half().float(), v.half().float(), *more, **named)
    try:
        return logprobs_of(model)
    finally:
        modeling_gemma4.eager_attention_forward = exact


def router_gap(model):
    """The least distance by which an expert was chosen over another, for the tokens of the text."""
    gaps = []

    def look(module, given, out):
        if module.top_k < module.num_experts:
            top = torch.sort(out[0], dim=-1, descending=True).values
            gaps.append(float((top[:, module.top_k - 1] - top[:, module.top_k]).min()))

    def look_at_logits(module, given, out):  # of Gemma 4, whose routers' inputs are smaller by this root, and so are the logits' errors
        top = torch.sort(out * EMBD ** 0.5, dim=-1, descending=True).values
        gaps.append(float((top[:, EXPERTS_USED - 1] - top[:, EXPERTS_USED]).min()))

    hooks = [m.register_forward_hook(look) for m in model.modules() if type(m).__name__.endswith("TopKRouter")]
    hooks += [m.proj.register_forward_hook(look_at_logits) for m in model.modules() if type(m).__name__ == "Gemma4TextRouter"]
    logprobs_of(model)
    for hook in hooks:
        hook.remove()
    return min(gaps, default=1.0)


def make(name, kind, options):
    import gguf
    Numbers.seed = FIRST_SEED
    while router_gap(model := model_of(name, kind, {})) < MIN_ROUTER_GAP:
        Numbers.seed += 1
    logprobs = logprobs_of(model)
    with tempfile.TemporaryDirectory() as work:
        path = pathlib.Path(options.keep or work) / f"{name}.gguf"
        convert(model, pathlib.Path(work) / "model", path)
        after = to_mxfp4 if kind.get("mxfp4") else with_mtp if kind.get("mtp") else None
        if after:
            after(path.rename(pathlib.Path(work) / "plain.gguf"), path)
        reader = gguf.GGUFReader(path)
        keys, tensors = keys_of(reader), tensors_of(name, reader)
        peer, apart = llama_logits(options.library, path) if options.library else None, None
    if peer is not None:
        ours = logprobs_of(model_of(name, kind, kind["peer"])) if "peer" in kind else logprobs
        apart = float((torch.log_softmax(peer.double(), -1) - ours).abs().max())
        if apart > LLAMA_DIFFERS.get(name, (LLAMA_TOLERANCE,))[0]:
            sys.exit(f"{name}: llama.cpp differs from transformers by {apart}")
    if kind.get("gemma4"):
        logprobs = logprobs_rounded(model)
    best = torch.topk(logprobs[-1], 5)
    mean, worst = TOLERANCE_MXFP4 if kind.get("mxfp4") else TOLERANCE_ROUNDED if kind.get("gemma4") else TOLERANCE
    dump(pathlib.Path(options.out) / f"{name}.json", {
        "made_by": "tools/golden_architectures.py", "transformers": transformers.__version__, "llama_cpp_differs_by": apart and float(f"{apart:.1e}"),
        "seed": Numbers.seed, "mean_tolerance": mean, "worst_tolerance": worst, "tokens": TOKENS,
        "logprobs": [round(float(logprobs[i, TOKENS[i + 1]]), 5) for i in range(N_TOKENS - 1)],
        "best": best.indices.tolist(), "best_logprobs": [round(float(x), 5) for x in best.values], "keys": keys, "tensors": tensors})
    entropy = float(-(logprobs.exp() * logprobs).sum(-1).mean())
    print(f"{name}: entropy {entropy:.2f}, llama.cpp differs by {apart}", file=sys.stderr)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*")
    parser.add_argument("--llama-cpp", required=True, help="source tree of llama.cpp")
    parser.add_argument("--library", help="folder of libllama.so; left out: llama.cpp does not compute")
    parser.add_argument("--out", default=pathlib.Path(__file__).resolve().parent.parent / "tests/golden/architectures")
    parser.add_argument("--keep", help="folder that keeps the converted files")
    options = parser.parse_args()
    sys.path[:0] = [options.llama_cpp, str(pathlib.Path(options.llama_cpp) / "gguf-py")]
    pathlib.Path(options.out).mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    for name in options.names or KINDS:
        make(name, KINDS[name], options)


if __name__ == "__main__":
    main()
