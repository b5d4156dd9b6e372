"""GGUF files by hand: a tiny model that runs, with anything in it changed or left out. Needs nothing but the standard library."""
import random
import struct

U32, F32, STR, ARRAY, I32 = 4, 6, 8, 9, 5
EMBD, FF, HEADS, KV_HEADS, LAYERS = 64, 96, 4, 2, 1


class Raw(bytes):
    """A value as it stands in the file, type and all."""


def _string(s):
    b = s.encode() if isinstance(s, str) else s
    return struct.pack("<Q", len(b)) + b


def _value(v):
    if isinstance(v, Raw):
        return v
    if isinstance(v, bool):
        return struct.pack("<IB", 7, v)
    if isinstance(v, int):
        return struct.pack("<II", U32, v)
    if isinstance(v, float):
        return struct.pack("<If", F32, v)
    if isinstance(v, list) and isinstance(v[0], str):
        return struct.pack("<IIQ", ARRAY, STR, len(v)) + b"".join(_string(s) for s in v)
    if isinstance(v, list):
        return struct.pack("<IIQ", ARRAY, I32, len(v)) + struct.pack(f"<{len(v)}i", *v)
    return struct.pack("<I", STR) + _string(v)


def _byte_tokens():
    """The 256 bytes as GPT-2 writes them."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    n, letters = 0, {}
    for b in range(256):
        letters[b] = chr(b) if b in plain else chr(256 + n)
        n += b not in plain
    return [letters[b] for b in range(256)]


def keys(**changes):
    """Metadata of a tiny llama; a change to None leaves the key out (dots written as __)."""
    tokens = _byte_tokens() + ["<|end|>", "<|user|>", "ab"]
    k = {
        "general.architecture": "llama",
        "general.name": "tiny",
        "llama.block_count": LAYERS,
        "llama.context_length": 512,
        "llama.embedding_length": EMBD,
        "llama.feed_forward_length": FF,
        "llama.attention.head_count": HEADS,
        "llama.attention.head_count_kv": KV_HEADS,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "gpt-2",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [1] * 256 + [3, 3, 1],
        "tokenizer.ggml.merges": ["a b"],
        "tokenizer.ggml.eos_token_id": 256,
        "tokenizer.chat_template": "{% for m in messages %}<|user|>{{ m.content }}<|end|>{% endfor %}",
    }
    for name, value in changes.items():
        name = name.replace("__", ".")
        if value is None:
            del k[name]
        else:
            k[name] = value
    return k


def tensors():
    kv = EMBD // HEADS * KV_HEADS
    shapes = {"token_embd.weight": (EMBD, 259), "output_norm.weight": (EMBD,)}
    for i in range(LAYERS):
        b = f"blk.{i}."
        shapes |= {b + "attn_norm.weight": (EMBD,), b + "attn_q.weight": (EMBD, EMBD), b + "attn_k.weight": (EMBD, kv),
                   b + "attn_v.weight": (EMBD, kv), b + "attn_output.weight": (EMBD, EMBD), b + "ffn_norm.weight": (EMBD,),
                   b + "ffn_gate.weight": (EMBD, FF), b + "ffn_up.weight": (EMBD, FF), b + "ffn_down.weight": (FF, EMBD)}
    return shapes


def build(metadata=None, shapes=None, version=3, magic=b"GGUF", type_of=None, empty=False):
    """The bytes before the tensor data, and the file's. type_of: {tensor: number written in its type's place}; empty: all weights 0."""
    metadata, shapes = keys() if metadata is None else metadata, tensors() if shapes is None else shapes
    out = bytearray(magic + struct.pack("<IQQ", version, len(shapes), len(metadata)))
    for name, value in metadata.items():
        out += _string(name) + _value(value)
    align = metadata.get("general.alignment", 32)
    at, rng, data = 0, random.Random(1), bytearray()
    for name, shape in shapes.items():
        n = 1
        for d in shape:
            n *= d
        out += _string(name) + struct.pack("<I", len(shape)) + struct.pack(f"<{len(shape)}Q", *shape)
        out += struct.pack("<IQ", (type_of or {}).get(name, 0), at)
        data += struct.pack(f"<{n}f", *(0 if empty else rng.uniform(-0.2, 0.2) for _ in range(n)))
        data += bytes(-len(data) % align)
        at = len(data)
    out += bytes(-len(out) % align)
    return bytes(out), bytes(out + data)
