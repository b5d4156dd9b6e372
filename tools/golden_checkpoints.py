#!/usr/bin/env python3
"""Golden values of checkpoints, tests/golden/checkpoints.json: what `transformers` writes into config.json and calls the tensors of the tiny models
of golden_architectures.py, and what `tokenizers` makes of texts with each kind of tokenizer.json that is read.

    pip install torch==2.15.0 transformers==5.24.0 numpy
    tools/golden_checkpoints.py [--out FILE]

No weights are stored: a tensor's numbers are made from the name that llama.cpp's converter gave it, which is found here by comparing numbers and not
by anybody's rules: "as" says whether it stands as it is, with the rows of heads in the order of halves ("halves"), or with one taken off ("less_one").
The test writes the folders anew and compares with tests/golden/architectures: the log-probabilities must be the same.
"""
import argparse
import json
import pathlib
import tempfile

import numpy as np
import torch
from safetensors.numpy import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

import golden_architectures as arch

ROOT = pathlib.Path(__file__).resolve().parent.parent
MODELS = ["llama", "llama-rope3", "qwen2", "qwen3", "qwen3-yarn", "gemma2", "gemma3", "gemma4", "gemma4-ple", "gemma4-moe", "phi3", "smollm3", "granite", "olmo2"]
TEXTS = ["Hello, world!", " The cat's 2 hats cost 1234567 dollars.", "I'M sure THEY'LL say It's camelCaseWords", "tabs\tand\n\nnewlines \r\n  end  ",
         "Ünïcode naïve café 北京 東京タワー 🙂👍🏽", "e\u0301te\u0301 \u1100\u1161 decomposed", "x=a+b; // ++i /path/to\n", "   ", "a", "",
         "مرحبا بالعالم हिन्दी ไทย", "<think>maybe</think> <|note|>", "0.001 ٣٤٥ ½ Ⅷ", "don't WON'T I'd we've", "\u2581 block ▁▁ x"]
BLOCK = "\u2581"


# ---- models -------------------------------------------------------------------------------------------------------------

def form_of(name, ours, value):
    """How a tensor of the checkpoint holds what the file calls `ours`; None: it does not."""
    want = arch.hashed(ours, *value.shape)
    if np.array_equal(value, want):
        return "same"
    if value.ndim == 2 and value.shape[0] % arch.HEAD == 0 and np.array_equal(value, arch.unpair(torch.from_numpy(want)).numpy()):
        return "halves"
    if value.ndim == 1 and np.array_equal(value, want - 1):
        return "less_one"
    return None


def model(name):
    golden = json.loads((ROOT / f"tests/golden/architectures/{name}.json").read_text())
    arch.Numbers.seed = golden["seed"]
    made, rows = arch.model_of(name, arch.KINDS[name], {}), []
    with tempfile.TemporaryDirectory() as folder:
        made.save_pretrained(folder)
        config = json.loads((pathlib.Path(folder) / "config.json").read_text())
        tensors = load_file(pathlib.Path(folder) / "model.safetensors")
    for theirs, value in sorted(tensors.items()):
        found = [(ours, form) for ours, _, dims, *_ in golden["tensors"]
                 if int(np.prod(dims)) == value.size and (form := form_of(theirs, ours, value))]
        if len(found) != 1:
            raise SystemExit(f"{name}: '{theirs}' is {found}")
        rows.append([theirs, list(value.shape), *found[0]])
    return {"config": config, "tensors": rows}


# ---- tokenizers ---------------------------------------------------------------------------------------------------------

def phrases():
    return (ROOT / "tests/golden/tokenizer/phrases.txt").read_text(errors="replace").split("\n") + TEXTS


def byte_level_vocabulary():
    t = Tokenizer(models.BPE())
    t.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    t.train_from_iterator(phrases() * 3, trainers.BpeTrainer(vocab_size=420, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False))
    saved = json.loads(t.to_str())["model"]
    return saved["vocab"], saved["merges"]


def block_vocabulary():
    """As SentencePiece's converted files: control tokens, bytes, then pieces; all ways to make a piece of two others, by the piece's id."""
    t = Tokenizer(models.BPE())
    t.normalizer = normalizers.Replace(" ", BLOCK)
    t.train_from_iterator(phrases() * 3, trainers.BpeTrainer(vocab_size=300, show_progress=False, limit_alphabet=90))
    saved = json.loads(t.to_str())["model"]
    pieces = ["<unk>", "<s>", "</s>"] + [f"<0x{b:02X}>" for b in range(256)]
    pieces += sorted(saved["vocab"], key=saved["vocab"].get)
    vocab = {p: i for i, p in enumerate(pieces)}
    merges = [[p[:k], p[k:]] for p in pieces[259:] for k in range(1, len(p)) if p[:k] in vocab and p[k:] in vocab]
    return vocab, merges


CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
UPPERS, LOWERS = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
# As the models' own files have them.
REGEX = {
    "llama3": CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen2": CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "qwen35": CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "gpt-4o": rf"[^\r\n\p{{L}}\p{{N}}]?{UPPERS}*{LOWERS}+{CONTRACTIONS}?|[^\r\n\p{{L}}\p{{N}}]?{UPPERS}+{LOWERS}*{CONTRACTIONS}?"
              r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
    "tekken": rf"[^\r\n\p{{L}}\p{{N}}]?{UPPERS}*{LOWERS}+|[^\r\n\p{{L}}\p{{N}}]?{UPPERS}+{LOWERS}*"
              r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+",
}


def split(name):
    from tokenizers import Regex
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(REGEX[name]), "isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def byte_level(vocab, merges, pre, ignore=False, nfc=False, bos=False):
    t = Tokenizer(models.BPE(vocab, [tuple(m) for m in merges], ignore_merges=ignore))
    t.pre_tokenizer, t.decoder = pre, decoders.ByteLevel()
    if nfc:
        t.normalizer = normalizers.NFC()
    t.add_special_tokens([AddedToken(x, special=True, normalized=False) for x in ("<|begin|>", "<|im_end|>")])
    t.add_tokens([AddedToken("<think>", normalized=False), AddedToken("<|note|>", normalized=False)])
    if bos:
        begin = t.token_to_id("<|begin|>")
        t.post_processor = processors.Sequence([processors.ByteLevel(trim_offsets=False),
                                                processors.TemplateProcessing(single="<|begin|> $A", special_tokens=[("<|begin|>", begin)])])
    return t


def tiny():
    """The one of the tiny models."""
    texts, types, merges = arch.vocabulary()
    t = Tokenizer(models.BPE({text: i for i, text in enumerate(texts)}, [tuple(m.split(" ")) for m in merges]))
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    t.add_special_tokens([AddedToken(text, special=True, normalized=False) for text, kind in zip(texts, types) if kind == 3])
    return t


def blocks(vocab, merges, normalizer, pre=None):
    t = Tokenizer(models.BPE(vocab, [tuple(m) for m in merges], byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    t.normalizer = normalizer
    if pre:
        t.pre_tokenizer = pre
    t.add_special_tokens([AddedToken(x, special=True, normalized=False) for x in ("<unk>", "<s>", "</s>")])
    t.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return t


def tokenizers_of():
    plain, whole = pre_tokenizers.ByteLevel(add_prefix_space=False), byte_level_vocabulary()
    digits = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True), plain])
    pieces, replace = block_vocabulary(), normalizers.Replace(" ", BLOCK)
    made = {
        "tiny": tiny(), "gpt-2": byte_level(*whole, plain), "smollm": byte_level(*whole, digits), "llama3": byte_level(*whole, split("llama3"), ignore=True, bos=True),
        "dbrx": byte_level(*whole, split("llama3")), "qwen2": byte_level(*whole, split("qwen2"), nfc=True),
        "qwen35": byte_level(*whole, split("qwen35"), nfc=True), "gpt-4o": byte_level(*whole, split("gpt-4o")),
        "tekken": byte_level(*whole, split("tekken"), ignore=True, bos=True),
        "llama2": blocks(*pieces, normalizers.Sequence([normalizers.Prepend(BLOCK), replace])),
        "gemma": blocks(*pieces, replace, pre_tokenizers.Split(" ", "merged_with_previous")),
        "metaspace": blocks(*pieces, None, pre_tokenizers.Metaspace(BLOCK, "never", False)),
    }
    out, vocabularies = {}, {}
    for name, t in made.items():
        saved = json.loads(t.to_str())
        kind = "tiny" if name == "tiny" else "blocks" if saved["model"]["byte_fallback"] else "bytes"
        vocabularies[kind] = {"vocab": saved["model"].pop("vocab"), "merges": saved["model"].pop("merges")}
        out[name] = {"vocabulary": kind, "tokenizer": saved, "ids": [t.encode(text).ids for text in TEXTS]}
    return vocabularies, out


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", default=ROOT / "tests/golden/checkpoints.json")
    options = parser.parse_args()
    torch.manual_seed(0)
    vocabularies, tokenizers = tokenizers_of()
    rows = ['"made_by": "tools/golden_checkpoints.py"', '"texts": ' + json.dumps(TEXTS)]
    for key, members in (("vocabularies", vocabularies), ("tokenizers", tokenizers), ("models", {name: model(name) for name in MODELS})):
        rows.append(f'"{key}": {{\n  ' + ",\n  ".join(f"{json.dumps(k)}: {json.dumps(v, separators=(',', ':'))}" for k, v in members.items()) + "\n }")
    pathlib.Path(options.out).write_text("{\n " + ",\n ".join(rows) + "\n}\n", encoding="ascii")


if __name__ == "__main__":
    main()
