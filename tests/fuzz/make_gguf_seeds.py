#!/usr/bin/env python3
"""Writes the seeds of fuzz_gguf, small whole files, to tests/fuzz/corpus/gguf. Needs nothing but the standard library."""
import os
import struct
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, "..", "faults"))
import gguf_file  # noqa: E402  (a neighbour, found by the line before)

SPECIAL = ["<s>", "</s>", "<|im_end|>"]


def tokenizer(model, tokens, types, **more):
    names = {"model": model, "tokens": tokens, "token_type": types, **more}
    return {"general.architecture": "llama", **{"tokenizer.ggml." + k: v for k, v in names.items()}}


def floats(values):
    return gguf_file.Raw(struct.pack("<IIQ", gguf_file.ARRAY, gguf_file.F32, len(values)) + struct.pack(f"<{len(values)}f", *values))


def every_type():
    """One value of each type that GGUF has, and an array of arrays."""
    scalars = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
    values = {f"v.{t}": gguf_file.Raw(struct.pack("<I" + f, t, 1)) for t, f in scalars.items()}
    values |= {f"a.{t}": gguf_file.Raw(struct.pack("<IIQ" + f * 2, 9, t, 2, 0, 1)) for t, f in scalars.items()}
    values["nested"] = gguf_file.Raw(struct.pack("<IIQ", 9, 9, 1) + struct.pack("<IQBB", 0, 2, 7, 9))
    return {"general.architecture": "llama", "general.alignment": 64, "text": "é", **values}


def main():
    tensors = {"a.weight": (32, 2), "b.weight": (3,), "c.weight": (2, 3, 2)}
    words = ["the", "ing", "ab"]
    letters = [chr(c) for c in range(ord("!"), 127)]
    bytes_ = gguf_file._byte_tokens()
    pieces = ["<unk>", *SPECIAL, *(f"<0x{b:02X}>" for b in range(256)), "\u2581", "\u2581the", *words, *letters]
    kinds = [2] + [3] * 3 + [6] * 256 + [1] * (len(pieces) - 260)
    seeds = {
        "types": (every_type(), {}),
        "tensors": ({"general.architecture": "llama"}, tensors),
        "bpe": (tokenizer("gpt2", [*bytes_, *SPECIAL, "th", "the", "ab"], [1] * 256 + [3] * 3 + [1] * 3, pre="gpt-2",
                          merges=["t h", "th e", "a b"], eos_token_id=258, bos_token_id=256), {"a.weight": (4,)}),
        "sentencepiece": (tokenizer("llama", pieces, kinds, scores=floats([-float(i) for i in range(len(pieces))]), unknown_token_id=0,
                                    bos_token_id=1, eos_token_id=2, add_bos_token=True, add_space_prefix=False), {}),
        "wordpiece": (tokenizer("bert", ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "\u2581the", "ing", *("\u2581" + c for c in letters), *letters],
                                [3] * 4 + [1] * (2 + 2 * len(letters)), unknown_token_id=1, cls_token_id=2, seperator_token_id=3), {}),
    }
    folder = os.path.join(HERE, "corpus", "gguf")
    os.makedirs(folder, exist_ok=True)
    for name, (metadata, shapes) in seeds.items():
        with open(os.path.join(folder, name), "wb") as f:
            f.write(gguf_file.build(metadata, shapes, empty=True)[1])


if __name__ == "__main__":
    main()
